"""An upstream of kind `http` in service: its route table, its pool, and its tools as an MCP server would offer them.

Behind `/mcp` the gateway is a client of MCP servers; `ToolWire` is one that lives in this process and has the routes as
tools. A tool's arguments are checked and written into a request by the same code that reads requests.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, Final

import msgspec

from ....catalog.errors import EnterpriseError, UpstreamError
from ....catalog.records import Upstream
from ....catalog.routes import Field, Route
from ...mcpclient import Lines, Link
from ...pool import Answer, Origin, Pool
from ..jsonrpc import decode, encode, error_body
from ..mcpfacts import HANDSHAKE, INVALID_PARAMS, META_VERSION, METHOD_NOT_FOUND, MODERN
from . import agenticmail_table
from .arguments import check, declared, write
from .table import RouteTable
from .targets import read_target

AGENTICMAIL: Final = "agenticmail"
CLIENT_PATIENCE: Final = 20.0
"""Seconds that an AgenticMail call may take: its clients give up after 30, and a call may need a look-up before."""

CACHEABLE: Final = frozenset({"server/discover", "tools/list"})
"""Results that say at 2026-07-28 how long they hold."""

MAX_RESULT: Final = 4 * 1024 * 1024
_JSON: Final = b"application/json"


class Prepared(msgspec.Struct, frozen=True):
    """A request ready to be sent. `target` is the part below the upstream's base."""

    route: Route
    target: str
    body: bytes


class Wire:
    """Sends requests to the API itself: the proxy's `Sender` for judged ones."""

    def __init__(self, live: HttpLive) -> None:
        self.name = live.name
        self._live = live

    async def send(self, head: bytes, body: bytes, *, stream: bool = False) -> Answer:
        live = self._live
        return await live.pool.send(head, body, timeout=live.timeout, stream=stream)


class HttpLive:
    """The Forwarder of `gateway.upstreams`. To the MCP doors it is a server; to the HTTP doors it is `wire`."""

    kind = "http"

    def __init__(self, record: Upstream, pool: Pool, origin: Origin, injected: dict[str, str]) -> None:
        self.record = record
        self.org = record.org
        self.name = record.name
        self.prefix = f"{record.name}__"
        self.listings: dict[bytes, bool] = {}
        self.offers: dict[str, frozenset[str]] = {}
        self.pool = pool
        self.agenticmail = record.catalog == AGENTICMAIL
        self.base = origin.base_path or (agenticmail_table.PREFIX if self.agenticmail else "")
        self.timeout = record.timeout_ms / 1000
        self.slashes: frozenset[str] = frozenset()
        routes = record.routes
        if self.agenticmail:
            self.timeout = min(self.timeout, CLIENT_PATIENCE)
            self.slashes = agenticmail_table.SLASHES
            routes = agenticmail_table.routes()
        self.table = RouteTable(routes, self.slashes)
        self.routes = routes
        self.wire = Wire(self)
        self.locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._host = origin.host_line
        self._injected = [(name.encode(), value.encode()) for name, value in injected.items()]

    # -- requests ------------------------------------------------------------------------------------------------
    def prepare(
        self, route: Route, arguments: dict[str, Any], query: tuple[str, ...] = (), *, bodied: bool | None = None
    ) -> Prepared:
        """The request that judged arguments mean, read back as the upstream will: it must be the same route's.

        Raises BadRequest, UndocumentedRoute, ValidationFailed.
        """
        target, body = write(route, arguments, query, bodied=bodied, slashes=self.slashes)
        meant, _ = self.table.match(route.method, read_target(target))
        if meant is not route:
            raise UpstreamError("The arguments would make another call than the one that was judged.")
        return Prepared(route, target, body)

    def request(self, ready: Prepared, lines: bytes, credential: str = "") -> bytes:
        """A request's head. `credential`: the agent's own key, sent instead of the gateway's."""
        parts = [b"%b %b HTTP/1.1\r\n" % (ready.route.method.encode(), (self.base + ready.target).encode()), self._host]
        if credential:
            parts.append(b"Authorization: Bearer %b\r\n" % credential.encode())
        parts += [
            b"%b: %b\r\n" % header
            for header in self._injected
            if not (credential and header[0].lower() in {b"authorization", b"x-api-key"})
        ]
        parts.append(lines)
        if ready.body:
            parts.append(b"Content-Type: %b\r\nContent-Length: %d\r\n\r\n" % (_JSON, len(ready.body)))
        elif ready.route.method in {"POST", "PUT", "PATCH"}:
            parts.append(b"Content-Length: 0\r\n\r\n")
        else:
            parts.append(b"\r\n")
        return b"".join(parts)

    def lock(self, subject: str) -> asyncio.Lock:
        """One at a time about one thing (a draft that is judged and then sent must not change in between)."""
        lock = self.locks.get(subject)
        if lock is None:
            lock = self.locks[subject] = asyncio.Lock()
        return lock

    # -- as an MCP server ----------------------------------------------------------------------------------------
    def head(self, method: bytes, lines: bytes, length: int) -> bytes:
        """For the transparent MCP door, which writes heads: only whether there is a message matters here."""
        return method

    async def send(self, head: bytes, body: bytes, *, stream: bool = False) -> Answer:
        return await ToolWire(self).exchange(head, [], body, stream=stream)

    def view(self, visit: Any) -> HttpLive:
        return self

    def link(self, *, owner: str = "", **options: Any) -> Link:
        return Link(ToolWire(self), **options)

    @property
    def breaker_state(self) -> str:
        return str(self.pool.stats.breaker)

    def reap(self) -> None:
        """Idle connections are the pool's to close."""

    async def close(self, grace: float) -> None:
        await self.pool.close(grace)

    def tools(self) -> list[dict[str, Any]]:
        """The routes as `tools/list` shows them. AgenticMail's own tools are its MCP server's to offer."""
        return [] if self.agenticmail else [tool_of(route) for route in self.routes]


def tool_of(route: Route) -> dict[str, Any]:
    fields = declared(route)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _property(field) for name, field in fields.items()},
        "required": [name for name, field in fields.items() if field.required],
        "additionalProperties": route.open,
    }
    tool: dict[str, Any] = {
        "name": route.tool,
        "description": route.description or f"{route.method} {route.path}",
        "inputSchema": schema,
    }
    if route.method == "GET":
        tool["annotations"] = {"readOnlyHint": True}
    return tool


def _property(field: Field) -> dict[str, Any]:
    shown: dict[str, Any] = {} if field.type == "any" else {"type": field.type}
    if field.description:
        shown["description"] = field.description
    return shown


class ToolWire:
    """Carries MCP messages to the routes of one upstream: `mcpclient.Wire`, without a network before the API."""

    def __init__(self, live: HttpLive) -> None:
        self._live = live

    async def exchange(self, method: bytes, lines: Lines, body: bytes, *, stream: bool) -> Answer:
        del lines, stream
        if method != b"POST":
            return Answer(405, b"Method Not Allowed", [(b"Allow", b"POST")], b"")
        message = decode(body)
        if not isinstance(message, dict) or "id" not in message:
            return Answer(202, b"Accepted", [], b"")
        params = message.get("params") or {}
        modern = META_VERSION in (params.get("_meta") or {})
        payload = await self._answer(str(message.get("method")), params, message["id"])
        if isinstance(payload, dict):
            if modern:
                payload.setdefault("resultType", "complete")
                if message["method"] in CACHEABLE:
                    payload |= {"ttlMs": 0, "cacheScope": "private"}
            payload = encode({"jsonrpc": "2.0", "id": message["id"], "result": payload})
        return Answer(200, b"OK", [(b"Content-Type", _JSON)], payload, len(payload), _JSON)

    async def close(self) -> None:
        """Nothing is held."""

    async def _answer(self, method: str, params: dict[str, Any], rpc_id: Any) -> dict[str, Any] | bytes:
        info = {"name": self._live.name, "version": "1"}
        if method == "server/discover":
            return {"supportedVersions": [MODERN], "capabilities": {"tools": {}}, "serverInfo": info}
        if method == "initialize":
            asked = params.get("protocolVersion")
            version = asked if asked in HANDSHAKE else HANDSHAKE[0]
            return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
        if method == "ping":
            return {}
        if method == "tools/list":
            return {"tools": self._live.tools()}
        if method == "tools/call":
            route = None if self._live.agenticmail else self._live.table.by_tool.get(str(params.get("name")))
            if route is None:
                return error_body(INVALID_PARAMS, "There is no such tool here.", rpc_id)
            return await self._call(route, params.get("arguments") or {})
        return error_body(METHOD_NOT_FOUND, f"An HTTP API has no {method}.", rpc_id)

    async def _call(self, route: Route, arguments: dict[str, Any]) -> dict[str, Any]:
        """One tool call as a request. What the arguments lack, and what the API refuses, is a result that says so;
        raises UpstreamError when there is no answer."""
        live = self._live
        try:
            check(route, arguments)
            ready = live.prepare(route, arguments)
        except UpstreamError:
            raise
        except EnterpriseError as error:
            faults = [str(field.get("message")) for field in error.details.get("fields", ())]
            return _text(" ".join(faults) or error.message, failed=True)
        answer = await live.pool.send(
            live.request(ready, b"Accept: application/json\r\n"), ready.body, timeout=live.timeout
        )
        try:
            body = answer.body if answer.body is not None else await answer.read(MAX_RESULT)
        finally:
            answer.close()
        return _result(answer, body)


def _result(answer: Answer, body: bytes) -> dict[str, Any]:
    failed = answer.status >= 300
    try:
        text = bytes(body).decode("utf-8")
    except UnicodeDecodeError:
        return _text(f"The API answered {answer.status} with {len(body)} bytes that are no text.", failed=True)
    if failed:
        return _text(f"The API answered {answer.status}. {text}".strip(), failed=True)
    result = _text(text or f"Done ({answer.status}).", failed=False)
    if answer.content_type == "application/json":
        try:
            value = msgspec.json.decode(body)
        except msgspec.MsgspecError:
            return result
        if isinstance(value, dict):
            result["structuredContent"] = value
    return result


def _text(text: str, *, failed: bool) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "isError": failed}
