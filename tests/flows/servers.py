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
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
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
