"""The process: sockets, the edge where requests are routed, and a stop that finishes or records every call."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from posixpath import normpath
from typing import Any, Final, cast
from urllib.parse import unquote

import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.streams import StreamReader

from ..catalog.errors import BadRequest, EnterpriseError, HostRefused, NotFound, SettingsError, Unauthenticated
from .doors.jsonrpc import encode
from .doors.openclaw import OPENCLAW
from .doors.refusals import http_refusal
from .doors.turnaway import Turnaway
from .lane import LaneRequest, Lanes, Work
from .runtime import Runtime
from .stores import ROOT
from .wire import Gone, RawResponse, json_response, status_line

log = structlog.get_logger()

SERVER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
KEEPALIVE_SECONDS: Final = 75.0
SWEEP_SECONDS: Final = 0.2
HOT: Final = (
    "/mcp", "/http", "/api/agenticmail", "/api/engine/check-permission", "/api/engine/tool-calls", "/tools/invoke",
    OPENCLAW,
)  # fmt: skip

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Protocol(web.RequestHandler):
    """aiohttp's connection, with our words and our record for what is not HTTP."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        edge: Edge = self._manager.edge  # type: ignore[union-attr]
        return edge.broken_request(request, status, exc, message)


class HttpServer(web.Server):
    """Makes `Protocol`s."""

    def __init__(self, edge: Edge, **options: Any) -> None:
        super().__init__(edge.handle, request_factory=self._request, handler_cancellation=True, **options)
        self.edge = edge
        self._options = options

    def __call__(self) -> web.RequestHandler:
        return Protocol(self, loop=self._loop, **self._options)

    def _request(
        self, message: RawRequestMessage, payload: StreamReader, protocol: web.RequestHandler,
        writer: AbstractStreamWriter, task: asyncio.Task[None],
    ) -> web.BaseRequest:  # fmt: skip
        request = web.BaseRequest(message, payload, protocol, writer, task, self._loop)
        if self.edge.trusted:
            address = forwarded_for(
                request.remote or "", message.headers.getall("X-Forwarded-For", []), self.edge.trusted
            )
            return web.BaseRequest(message, payload, protocol, writer, task, self._loop, remote=address)
        return request


class Edge:
    """Where a request goes. Hot doors first, by exact path; everything else is the admin module's."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.stopping = False
        self.turnaway = Turnaway(runtime.proxy, "mcp")
        self._admin: Handler = import_module(f"{ROOT}.admin_ui.mount").create(runtime).handle
        self._pending: set[asyncio.Task[Any]] = set()
        self.exact: dict[str, Handler] = {
            "/mcp": runtime.aggregate.handle,
            "/api/engine/check-permission": runtime.checks.check,
            "/api/engine/tool-calls": runtime.checks.report,
            "/api/v1/engine/check-permission": runtime.checks.check,
            "/api/v1/engine/tool-calls": runtime.checks.report,
            "/api/engine/hooks/heartbeat": runtime.heartbeats.handle,
            "/tools/invoke": runtime.openclaw.handle,
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._metrics,
        }
        server = runtime.settings.server
        self._hosts = LOOPBACK | {host.lower() for host in server.allowed_hosts}
        if server.host not in {"", "0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            self._hosts |= {server.host.lower()}
        loopback = server.host in LOOPBACK or server.host == "::1"
        self._any_host = "*" in server.allowed_hosts or (not loopback and not server.allowed_hosts)
        self._known: dict[tuple[str | None, str | None], bool] = {}
        self.trusted = networks(server.trusted_proxies)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. A client that has left in the middle gets no answer, and that is no fault of ours."""
        try:
            return await self._route(request)
        except ConnectionError:
            return Gone()

    async def quick(self, request: LaneRequest, rest: Work | None = None) -> web.StreamResponse:
        """Answer one request of a fast lane, or await the rest of its answer. A fault of ours is logged whole, and
        answered without detail."""
        try:
            if rest is not None:
                return await rest
            if request.raw_path.startswith("/mcp/"):
                return await self.runtime.mcp.quick(request)
            return await self.runtime.checks.check(cast("web.BaseRequest", request))
        except ConnectionError:
            return Gone()
        except Exception as error:
            log.exception("request_failed", path=request.raw_path, error=repr(error))
            return http_refusal(EnterpriseError())

    def serves(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether a head's Host and Origin are ours."""
        found: dict[bytes, str] = {}
        for name, value in headers:
            low = name.lower()
            if low in {b"host", b"origin"}:
                if low in found:
                    return False  # which of the two counts is not for us to guess
                found[low] = value.decode("latin-1")
        return self._check_source(found.get(b"host"), found.get(b"origin"))

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers
        source = (headers.get("Host"), headers.get("Origin"))
        allowed = self._known.get(source)
        if allowed is None:
            allowed = self._check_source(*source)
        path = request.raw_path
        if not allowed:
            return await self._refuse(request, HostRefused())
        odd = oddity(request)
        if odd:
            response = await self._refuse(request, BadRequest(odd))
            response.force_close()  # where its body ends is a matter of opinion
            return response
        if path.startswith("/mcp/"):
            name = path[5:]
            if SERVER_NAME.fullmatch(name) is not None:
                return await self.runtime.mcp.handle(request, name)
            return await self._refuse(
                request, NotFound("There is no such MCP endpoint; paths are exact and lower-case.")
            )
        if path.startswith(OPENCLAW):
            return await self.runtime.openclaw.handle(request)
        handler = self.exact.get(path)
        if handler is not None:
            return await handler(request)
        if self.runtime.rest.serves(path):
            return await self.runtime.rest.handle(request)
        if means_a_hot_door(path):
            return await self._refuse(request, NotFound("There is no such endpoint; paths are exact and lower-case."))
        return await self._admin(request)

    def _check_source(self, host: str | None, origin: str | None) -> bool:
        """Whether a Host and Origin are ours to serve: the guard against DNS rebinding."""
        allowed = host is not None and (self._any_host or _host_name(host) in self._hosts)
        if allowed and origin not in {None, ""}:
            name = _host_name(str(origin).partition("://")[2])
            allowed = name in self._hosts or (self._any_host and name == _host_name(str(host)))
        if len(self._known) > 1000:
            self._known.clear()
        self._known[host, origin] = allowed
        return allowed

    async def _refuse(self, request: web.BaseRequest, error: EnterpriseError) -> RawResponse:
        return await self.turnaway.refuse(request, error, None, "", time.perf_counter_ns())

    def broken_request(
        self, request: web.BaseRequest, status: int, exc: BaseException | None, message: str | None
    ) -> web.StreamResponse:
        """What could not be parsed as HTTP, or a fault of ours (which is logged whole and answered without detail)."""
        if status >= 500:
            log.error("request_failed", path=request.raw_path[:200], exc_info=exc)
            error: EnterpriseError = EnterpriseError()
        else:
            text = (message or str(exc or "")).strip().splitlines()
            error = BadRequest("This is not a valid HTTP request" + (f": {text[0][:200]}" if text else "."))
            task = asyncio.get_running_loop().create_task(self._refuse(request, error))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)
        response = http_refusal(error)
        response.force_close()
        return response

    async def settled(self) -> None:
        """Return when each broken request is on record."""
        while self._pending:
            await asyncio.wait(self._pending)

    async def _health(self, request: web.BaseRequest) -> web.StreamResponse:
        return json_response(200, b'{"status":"ok"}')

    async def _ready(self, request: web.BaseRequest) -> web.StreamResponse:
        problems = {"server": "The server is stopping."} if self.stopping else await self.runtime.ready()
        if problems:
            return json_response(503, encode({"status": "not ready", "problems": problems}), [(b"Retry-After", b"1")])
        return json_response(200, b'{"status":"ready"}')

    async def _metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        """For loopback clients, and for keys with the scope `metrics:read`."""
        remote = request.remote or ""
        if remote not in {"127.0.0.1", "::1"}:
            try:
                principal = await self.runtime.identity.resolve(request.headers, remote)
                if not principal.scopes & {"metrics:read", "*"}:
                    raise Unauthenticated("This API key may not read metrics.")
            except EnterpriseError as error:
                return http_refusal(error)
        head = (
            status_line(200) + b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\nCache-Control: no-store\r\n"
        )
        return RawResponse(200, head, self.runtime.metrics.exposition())


def oddity(request: web.BaseRequest) -> str:
    """What aiohttp's parser lets pass and two servers in a row could read differently, as a sentence, or ""."""
    headers = request.headers
    if request.version not in {HttpVersion10, HttpVersion11}:
        return "Speak HTTP/1.1 here."
    coding = headers.get("Transfer-Encoding")
    if coding is not None and (coding.strip().lower() != "chunked" or request.version == HttpVersion10):
        return "The only Transfer-Encoding is chunked, in HTTP/1.1."
    if headers.get("Expect", "100-continue").strip().lower() != "100-continue":
        return "The only expectation that can be met is 100-continue."
    if len(headers.getall("Origin", ())) > 1:
        return "The header Origin is given twice."
    return ""


def means_a_hot_door(path: str) -> bool:
    """Whether somebody less exact could read a path as a hot door's. It is refused like a call: on record."""
    plain = unquote(unquote(path)).replace("\\", "/").casefold()
    if not path.startswith("/"):  # absolute form
        plain = "/" + plain.partition("://")[2].partition("/")[2]
    plain = "/" + normpath("/" + plain.partition("?")[0].partition("#")[0]).strip("/ \0")
    plain = plain.replace("/api/v1/", "/api/", 1) if plain.startswith("/api/v1/") else plain
    return plain.startswith(HOT)


def _host_name(value: str) -> str:
    """The host of `host[:port]`, lower case, without a trailing dot."""
    host = value.lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".")


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """CIDRs as networks. Raises SettingsError for one that is none."""
    try:
        return tuple(ipaddress.ip_network(text, strict=False) for text in texts)
    except ValueError as error:
        raise SettingsError(f"server.trusted_proxies: {error}.") from None


def forwarded_for(peer: str, headers: Sequence[str], trusted: Sequence[Network]) -> str:
    """The client's address: the peer's, or, where that is a trusted proxy, the last address in X-Forwarded-For that is
    none. An entry that is no address ends the search: what stands before it was written by nobody we know."""
    found = peer
    for entry in reversed([part.strip() for header in headers for part in header.split(",")]):
        try:
            if not any(ipaddress.ip_address(found) in network for network in trusted):
                break
            ipaddress.ip_address(entry)
        except ValueError:
            break
        found = entry
    return found


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket, shared with other workers (SO_REUSEPORT). Raises SettingsError."""
    try:
        info = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(info[0], info[1])
    except OSError as error:
        raise SettingsError(f"server.host: {host!r} is not an address of this machine: {error}.") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(info[4])
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise SettingsError(
            f"server.port: cannot listen on {host}:{port}: {error.strerror}. Choose another with --port.", port=port
        ) from error
    sock.setblocking(False)
    return sock


class Server:
    """One worker's server. `await Server.start(runtime, sock)`; `await server.stop()`."""

    def __init__(self, runtime: Runtime, sock: socket.socket) -> None:
        self.runtime = runtime
        self.edge = Edge(runtime)
        self._sock = sock
        self._http: HttpServer | None = None
        self._site: asyncio.Server | None = None
        self._lanes: Lanes
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._http = HttpServer(self.edge, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS, auto_decompress=False,
                                max_line_size=16384, max_field_size=16384)  # fmt: skip
        self._lanes = Lanes(self.edge, self._http, self.runtime.settings.server.body_limit, KEEPALIVE_SECONDS)
        self._site = await loop.create_server(self._lanes, sock=self._sock, backlog=1024)
        self._sweeper = loop.create_task(self._sweep())

    async def _sweep(self) -> None:
        """Small chores: reports that other workers left, checks that were never reported."""
        checks = self.runtime.checks
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._lanes.sweep(asyncio.get_running_loop().time())
            self.runtime.upstreams.reap()
            try:
                checks.sweep(time.time())
                await checks.collect()
                await self.runtime.hooks.look(time.time())
            except EnterpriseError as error:
                self.runtime.metrics.fault("sweep")
                log.debug("sweep_failed", reason=error.message)

    async def stop(self) -> None:
        """Stop accepting, let calls in flight finish within `stop_grace`, cut the rest (recorded too), close all."""
        self.edge.stopping = True
        self.runtime.aggregate.end_streams()
        self.runtime.rest.end_streams()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._site is not None:
            self._site.close()
        if self._http is not None:
            self._http.pre_shutdown()
            self._lanes.stop()
            deadline = time.monotonic() + self.runtime.settings.server.stop_grace
            while self.runtime.proxy.in_flight and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            await self._http.shutdown(1.0)
            await self._lanes.cut()
        await self.edge.settled()
        await self.runtime.close()


async def serve(runtime: Runtime, sock: socket.socket, ready: Callable[[Server], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then stop gracefully."""
    server = Server(runtime, sock)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await server.start()
    if ready is not None:
        ready(server)
    await stop.wait()
    await server.stop()
