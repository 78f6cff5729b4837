"""The gateway as an MCP client: for listing what an upstream offers, and behind the aggregated door.

A `Link` is one conversation with one upstream in whichever era it speaks: 2026-07-28 without a session, or an
`initialize` handshake and a session. It is found out once and kept. Server requests that arrive in mid-call (sampling,
elicitation, roots) go to `on_request`; without one they are answered with METHOD_NOT_FOUND, as the protocol asks.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import msgspec

from ..catalog.errors import UpstreamError, UpstreamProtocol
from .doors.jsonrpc import encode, error_body
from .doors.mcpfacts import (
    HANDSHAKE,
    META_CAPABILITIES,
    META_CLIENT,
    META_VERSION,
    METHOD_NOT_FOUND,
    MODERN,
    NAMED,
    encode_header_value,
)
from .doors.sse import EventTooLarge, Splitter, data_of
from .pool import Answer

CLIENT_INFO: Final = {"name": "agenticmail-enterprise", "version": "0.1.0"}
MAX_PAGES: Final = 200
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode

OnMessage = Callable[[dict[str, Any]], Awaitable[dict[str, Any] | None]]
"""A notification or request from the server; for a request, its answer (`{"result": ...}` or `{"error": ...}`)."""

Lines = list[tuple[bytes, bytes]]


class RpcFailure(UpstreamError):
    """The server answered with a JSON-RPC error."""

    code = "UPSTREAM_ERROR"

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message") or "The server answered with an error."), rpc=error)
        self.error = error


class Wire(Protocol):
    """What carries messages to one upstream: HTTP here, a child process in `adapters`."""

    async def exchange(self, method: bytes, lines: Lines, body: bytes, *, stream: bool) -> Answer: ...

    async def close(self) -> None:
        """The conversation is over."""


class Link:
    """One conversation. `version` is "" until the first request found out what the server speaks."""

    def __init__(self, wire: Wire, *, capabilities: dict[str, Any] | None = None, info: dict[str, Any] | None = None,
                 on_message: OnMessage | None = None,
        prefer_modern: bool = True,
    ) -> None:  # fmt: skip
        self._wire = wire
        self._ids = itertools.count(1)
        self._on_message = on_message
        self._prefer_modern = prefer_modern
        self._opening = asyncio.Lock()
        self._opened = False
        self.capabilities = capabilities or {}
        self.info = info or CLIENT_INFO
        self.version = ""
        self.session = ""
        self.server: dict[str, Any] = {}

    @property
    def modern(self) -> bool:
        return self.version == MODERN

    async def open(self) -> None:
        """Find out the era, once. The preferred one is tried first: an agent of the handshake era needs a server it can
        be asked through (sampling, elicitation), which only that era has."""
        if self._opened:
            return
        async with self._opening:  # requests that come together find out together
            if not self._opened:
                await self._find_out()
                self._opened = True

    async def _find_out(self) -> None:
        refused: UpstreamError = UpstreamProtocol("The server speaks no era of MCP that this gateway does.")
        tries = (self._discover, self._initialize) if self._prefer_modern else (self._initialize, self._discover)
        for attempt in tries:
            try:
                if await attempt():
                    return
            except (RpcFailure, UpstreamProtocol) as error:
                refused = error
            self.version, self.session = "", ""
        raise refused

    async def _discover(self) -> bool:
        self.version = MODERN
        self.server = await self.request("server/discover", {})
        return MODERN in (self.server.get("supportedVersions") or [MODERN])

    async def _initialize(self) -> bool:
        params = {"protocolVersion": HANDSHAKE[0], "capabilities": self.capabilities, "clientInfo": self.info}
        result = await self.request("initialize", params)
        version = result.get("protocolVersion")
        if version not in HANDSHAKE:
            raise UpstreamProtocol(f"The server speaks MCP {version!r}, which this gateway does not.")
        self.version, self.server = str(version), result
        await self.notify("notifications/initialized")
        return True

    async def request(self, method: str, params: dict[str, Any], on_message: OnMessage | None = None) -> dict[str, Any]:
        """One request, its result. Raises RpcFailure for an error answer, UpstreamError when there is none."""
        request_id, lines, body = self.prepare(method, params)
        answer = await self._wire.exchange(b"POST", lines, body, stream=False)
        return await self.read(answer, request_id, on_message)

    def prepare(self, method: str, params: dict[str, Any]) -> tuple[int, Lines, bytes]:
        """(id, header lines, body) of a request in the server's era, for `exchange`; its answer goes to `read`."""
        request_id = next(self._ids)
        lines = self._lines(method, params)
        if self.modern:
            meta = {
                **params.get("_meta", {}),
                META_VERSION: MODERN,
                META_CLIENT: self.info,
                META_CAPABILITIES: self.capabilities,
            }
            params = {**params, "_meta": meta}
        return request_id, lines, encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})

    async def exchange(self, lines: Lines, body: bytes) -> Answer:
        return await self._wire.exchange(b"POST", lines, body, stream=False)

    async def stream(self, method: str, params: dict[str, Any], on_message: OnMessage) -> dict[str, Any]:
        """A request that is answered when its stream ends (`subscriptions/listen`); meanwhile `on_message` hears what
        the server says. Raises as `request`."""
        request_id, lines, body = self.prepare(method, params)
        answer = await self._wire.exchange(b"POST", lines, body, stream=True)
        return await self.read(answer, request_id, on_message)

    async def listen(self, on_message: OnMessage, opened: Callable[[], None]) -> bool:
        """What the server says outside of any request: the session's own stream (GET), until it ends.

        `opened` is called when it stands. False when the server has none (it answers 405, or in any way that is no
        stream). Requests are served beside each other: one that waits for a person keeps nothing else waiting.
        Raises UpstreamError when the stream breaks off.
        """
        answer = await self._wire.exchange(b"GET", self._lines("", {}), b"", stream=True)
        serving: set[asyncio.Task[None]] = set()
        try:
            if answer.status != 200 or answer.content_type != "text/event-stream":
                return False
            opened()
            splitter = Splitter()
            async for chunk in answer.stream():
                for event in splitter.feed(bytes(chunk)):
                    message = _heard(data_of(event))
                    if message is None:
                        continue
                    if "id" not in message:
                        await on_message(message)
                        continue
                    task = asyncio.get_running_loop().create_task(self._serve_quietly(message, on_message))
                    serving.add(task)
                    task.add_done_callback(serving.discard)
            return True
        except EventTooLarge:
            raise UpstreamProtocol("One event of the server is too large.") from None
        finally:
            answer.close()
            for task in serving:
                task.cancel()

    async def _serve_quietly(self, message: dict[str, Any], on_message: OnMessage) -> None:
        try:
            await self._serve(message, on_message)
        except UpstreamError:
            return  # the server has gone: nobody waits for this answer any more

    async def notify(self, method: str, params: dict[str, Any] | None = None) -> None:
        """A notification; what the server thinks of it is not waited for beyond its HTTP answer."""
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        if params is not None:
            message["params"] = params
        answer = await self._wire.exchange(b"POST", self._lines(method, params or {}), encode(message), stream=False)
        answer.close()

    async def close(self) -> None:
        """End the session, if there is one. Failures do not matter: the server forgets it by itself."""
        if not self.session:
            await self._wire.close()
            return
        try:
            answer = await self._wire.exchange(b"DELETE", self._lines("", {}), b"", stream=False)
            answer.close()
        except UpstreamError:
            return
        finally:
            self.session = ""
            await self._wire.close()

    async def list_all(self, method: str, key: str) -> list[dict[str, Any]]:
        """Every item of a list, all pages. A server that does not have the method has no items."""
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            try:
                result = await self.request(method, {"cursor": cursor} if cursor else {})
            except RpcFailure as failure:
                if failure.error.get("code") == METHOD_NOT_FOUND and not items:
                    return []
                raise
            page = result.get(key)
            if not isinstance(page, list):
                raise UpstreamProtocol(f"The answer to {method} has no list {key!r}.")
            items.extend(item for item in page if isinstance(item, dict))
            cursor = result.get("nextCursor")
            if not isinstance(cursor, str) or not cursor:
                return items
        raise UpstreamProtocol(f"The answer to {method} has more than {MAX_PAGES} pages.")

    def _lines(self, method: str, params: dict[str, Any]) -> Lines:
        lines: Lines = [(b"Accept", b"application/json, text/event-stream")]
        if method:
            lines.append((b"Content-Type", b"application/json"))
        if self.version:
            lines.append((b"MCP-Protocol-Version", self.version.encode()))
        if self.modern:
            lines.append((b"Mcp-Method", method.encode()))
            field = NAMED.get(method)
            if field is not None and isinstance(name := params.get(field), str):
                lines.append((b"Mcp-Name", encode_header_value(name).encode()))
        if self.session:
            lines.append((b"Mcp-Session-Id", self.session.encode()))
        return lines

    async def read(self, answer: Answer, request_id: int, on_message: OnMessage | None = None) -> dict[str, Any]:
        """The result in an answer, serving what the server says before it. Raises as `request`."""
        on_message = on_message or self._on_message
        for name, value in answer.headers:
            if name.lower() == b"mcp-session-id" and not self.modern:
                self.session = value.decode("latin-1")
        kind = answer.content_type
        try:
            if kind == "text/event-stream":
                splitter = Splitter()
                async for chunk in answer.stream():
                    for event in splitter.feed(bytes(chunk)):
                        result = await self._take(data_of(event), request_id, on_message)
                        if result is not None:
                            return result
                raise UpstreamProtocol("The server ended its stream without an answer.")
            body = answer.body if answer.body is not None else b"".join([bytes(part) async for part in answer.stream()])
            if kind != "application/json":
                raise UpstreamProtocol(
                    f"The server answered {answer.status} with {kind or 'no content type'}.", status=answer.status
                )
            result = await self._take(body, request_id, on_message)
            if result is None:
                raise UpstreamProtocol("The server answered with another request's answer.")
            return result
        finally:
            answer.close()

    async def _take(self, data: bytes, request_id: int, on_message: OnMessage | None) -> dict[str, Any] | None:
        """Look at one message: our result, or something the server says in between."""
        if not data.strip():
            return None
        try:
            message = _decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise UpstreamProtocol(f"The server's answer is not a JSON object: {error}") from None
        if "method" in message:
            await self._serve(message, on_message)
            return None
        if message.get("id") != request_id and message.get("id") is not None:
            return None
        failure = message.get("error")
        if isinstance(failure, dict):
            raise RpcFailure(failure)
        result = message.get("result")
        if not isinstance(result, dict):
            raise UpstreamProtocol("The server's answer has no result.")
        return result

    async def _serve(self, message: dict[str, Any], on_message: OnMessage | None) -> None:
        """Hand over a notification or request; send a request's answer back."""
        answer = await on_message(message) if on_message is not None else None
        if "id" not in message:
            return
        if answer is None and message["method"] == "ping":
            answer = {"result": {}}
        if answer is None:
            body = error_body(METHOD_NOT_FOUND, "The gateway does not serve this request.", message["id"])
        else:
            body = encode({"jsonrpc": "2.0", "id": message["id"], **answer})
        reply = await self._wire.exchange(b"POST", self._lines("response", {}), body, stream=False)
        reply.close()


def _heard(data: bytes) -> dict[str, Any] | None:
    """A notification or request in an event; None for what is neither. One that cannot be read is left out: what a
    server says unasked is no answer that somebody waits for."""
    if not data.strip():
        return None
    try:
        message = _decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return message if isinstance(message.get("method"), str) else None
