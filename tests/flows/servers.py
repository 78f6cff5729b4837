"""MCP servers of the tests' own. `Counting` behaves and remembers what it saw; `Misbehaving` breaks in one way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from aiohttp import web

TOOLS = [
    {"name": "read_mail", "description": "Read one mail.", "inputSchema": {"type": "object"},
     "annotations": {"readOnlyHint": True, "openWorldHint": False}},
    {"name": "send_mail", "description": "Send a mail.", "inputSchema": {"type": "object"}},
    {"name": "delete_mail", "description": "Delete a mail.", "inputSchema": {"type": "object"},
     "annotations": {"destructiveHint": True}},
]  # fmt: skip


class Counting:
    """A handshake-era server over streamable HTTP with JSON answers. `seen` holds every request's (headers, message)."""

    def __init__(self, *, port: int = 0) -> None:
        self._port = port
        self.seen: list[tuple[dict[str, str], Any]] = []
        self.bodies: list[bytes] = []
        self.tools: list[dict[str, Any]] = [dict(tool) for tool in TOOLS]
        self.resources = [{"uri": "mail://inbox", "name": "inbox"}, {"uri": "mail://secret", "name": "secret"}]
        self.prompts = [{"name": "summary"}, {"name": "hidden"}]
        self.before: Callable[[], Awaitable[None]] | None = None
        self.url = ""

    @property
    def calls(self) -> list[Any]:
        return [
            message for _, message in self.seen if isinstance(message, dict) and message.get("method") == "tools/call"
        ]

    async def __aenter__(self) -> Counting:
        server = web.Server(self._handle, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/mcp"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.bodies.append(body)
        message = json.loads(body) if body else {"method": request.method}
        self.seen.append((dict(request.headers), message))
        if isinstance(message, list):
            return web.json_response([self._answer(part) for part in message if "id" in part])
        if message.get("method") == "tools/call" and self.before is not None:
            await self.before()
        if "id" not in message:
            return web.Response(status=202)
        headers = {"Mcp-Session-Id": "upstream-session-1"} if message["method"] == "initialize" else {}
        return web.json_response(self._answer(message), headers=headers)

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        result = self._result(message["method"], message.get("params") or {})
        if result is None:
            return {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no such method"}}
        return {"jsonrpc": "2.0", "id": message["id"], "result": result}

    def _result(self, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
        table: dict[str, Callable[[], dict[str, Any]]] = {
            "initialize": lambda: {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "t", "version": "1"},
            },
            "ping": dict,
            "tools/list": lambda: {"tools": self.tools},
            "resources/list": lambda: {"resources": self.resources},
            "resources/templates/list": lambda: {"resourceTemplates": []},
            "prompts/list": lambda: {"prompts": self.prompts},
            "tools/call": lambda: {
                "content": [{"type": "text", "text": json.dumps(params.get("arguments"))}],
                "isError": False,
            },
            "resources/read": lambda: {"contents": [{"uri": params["uri"], "text": "hello"}]},
            "prompts/get": lambda: {"messages": []},
        }
        make = table.get(method)
        return make() if make is not None else None


class Telling(Counting):
    """A `Counting` that tells of changes: over `subscriptions/listen` when `modern`, else over its sessions' GET streams.

    `streams` are the open ones, as (session or request id, queue); `answers` is what clients answered to its requests.
    """

    def __init__(self, *, modern: bool = False, port: int = 0) -> None:
        super().__init__(port=port)
        self.modern = modern
        self.streams: list[tuple[Any, asyncio.Queue[dict[str, Any] | None]]] = []
        self.answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.watched: dict[str, set[str]] = {}
        self.ended: list[str] = []
        self._sessions = 0

    @property
    def port(self) -> int:
        return int(self._runner.addresses[0][1])

    def tell(self, method: str, params: dict[str, Any] | None = None, **more: Any) -> int:
        """Say something on every stream, stamped as the era wants it; how many there were."""
        for owner, queue in self.streams:
            meta = {"_meta": {"io.modelcontextprotocol/subscriptionId": owner}} if self.modern else {}
            queue.put_nowait({"jsonrpc": "2.0", "method": method, "params": {**(params or {}), **meta}, **more})
        return len(self.streams)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        message = json.loads(body) if body else {"method": request.method}
        method = message.get("method")
        session = request.headers.get("Mcp-Session-Id", "")
        if method is None:
            self.answers.put_nowait(message)
            return web.Response(status=202)
        if method == "DELETE":
            self.ended.append(session)
            return web.Response(status=204)
        if method == "GET" and not self.modern:
            return await self._stream(request, session, None)
        if method == "subscriptions/listen" and self.modern:
            acknowledged = {"notifications": message["params"]["notifications"]}
            return await self._stream(request, message["id"], acknowledged)
        if method in {"resources/subscribe", "resources/unsubscribe"} and not self.modern:
            watched = self.watched.setdefault(session, set())
            (watched.add if method == "resources/subscribe" else watched.discard)(message["params"]["uri"])
            return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": {}})
        response = await super()._handle(request)
        if method == "initialize" and response.status == 200:
            self._sessions += 1
            response.headers["Mcp-Session-Id"] = f"session-{self._sessions}"
        return response

    async def _stream(self, request: web.BaseRequest, owner: Any, first: dict[str, Any] | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        entry = (owner, queue)
        self.streams.append(entry)
        if first is not None:
            first["_meta"] = {"io.modelcontextprotocol/subscriptionId": owner}
            said = {"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": first}
            await response.write(b"data: " + json.dumps(said).encode() + b"\n\n")
        try:
            while (message := await queue.get()) is not None:
                await response.write(b"event: message\ndata: " + json.dumps(message).encode() + b"\n\n")
        finally:
            self.streams.remove(entry)
        return response

    def _result(self, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
        capabilities = {
            "tools": {"listChanged": True}, "prompts": {"listChanged": True},
            "resources": {"listChanged": True, "subscribe": True}, "logging": {},
        }  # fmt: skip
        about = {"capabilities": capabilities, "serverInfo": {"name": "telling", "version": "1"}}
        if method == "server/discover":
            return {"supportedVersions": ["2026-07-28"], **about, "resultType": "complete"} if self.modern else None
        if method == "initialize":
            return None if self.modern else {"protocolVersion": "2025-11-25", **about}
        return super()._result(method, params)


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Misbehaving:
    """A raw TCP server that runs one script per connection."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.url = ""

    async def __aenter__(self) -> Misbehaving:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/mcp"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """One request's body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0
    )
    return await reader.readexactly(length) if length else b""
