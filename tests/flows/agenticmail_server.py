"""AgenticMail as recorded: answers the requests of `agenticmail_pairs.json` as the real API did, and notes what came.

It reads requests as generously as the real one (Express): case of paths and a trailing slash do not matter to it.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

PAIRS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "agenticmail_pairs.json").read_text())
KEYS = {
    "ak_ALICE": "ak_alice0123456789abcdef",
    "ak_BOB": "ak_bob0123456789abcdef00",
    "mk_MASTER": "mk_master0123456789abcdef",
}
"""The recording's keys, at the length of real ones."""


def grown(value: Any) -> Any:
    """A part of a recording with keys of real length."""
    text = json.dumps(value)
    for short, long in KEYS.items():
        text = text.replace(f'"{short}"', f'"{long}"')
    return json.loads(text)


class Recorded:
    """`async with Recorded() as api:`; `api.url` is its base. `seen` holds (method, target, headers, body) of each."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        self.hold: asyncio.Event | None = None
        self._queues: list[asyncio.Queue[bytes]] = []
        self.url = ""

    async def __aenter__(self) -> Recorded:
        self._runner = web.ServerRunner(web.Server(self._handle, handler_cancellation=True), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.root = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self.url = f"{self.root}/api/agenticmail"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    @property
    def streams(self) -> int:
        return len(self._queues)

    def tell(self, event: bytes) -> None:
        """Say something on every open event stream."""
        for queue in self._queues:
            queue.put_nowait(event)

    @property
    def sent(self) -> list[dict[str, Any]]:
        """The bodies of what would have become mail."""
        return [json.loads(body) for method, target, _, body in self.seen if target.casefold().endswith("/send")]

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.method, request.raw_path, dict(request.headers), body))
        path = request.raw_path.partition("?")[0].rstrip("/").casefold()
        if path == "/api/agenticmail/events":
            return await self._stream(request)
        if self.hold is not None and request.method == "GET" and "/drafts/" in path:
            await self.hold.wait()
        for (method, place), (status, said) in self.answers.items():
            if (method, "/api/agenticmail" + place) == (request.method, path):
                return web.json_response(said, status=status)
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        value = json.loads(body) if body else None
        for pair in PAIRS:
            wanted = KEYS.get(pair["key"], pair["key"]) or ""
            asked = pair["request"] or None
            if (pair["method"], pair["path"], wanted, asked) == (request.method, request.raw_path, key, value or None):
                return self._said(pair)
        return web.json_response({"error": "Not found"}, status=404)

    @staticmethod
    def _said(pair: dict[str, Any]) -> web.Response:
        headers = {"X-Powered-By": "AgenticMail", "RateLimit-Policy": "10000;w=60"}
        if pair["status"] == 204:
            return web.Response(status=204, headers=headers)
        if not pair["type"].startswith("application/json"):
            return web.Response(body=pair["response"].encode(), headers={**headers, "Content-Type": pair["type"]})
        body = json.dumps(grown(pair["response"]), separators=(",", ":"), ensure_ascii=False).encode()
        return web.Response(status=pair["status"], body=body, headers={**headers, "Content-Type": pair["type"]})

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": connected\n\n")
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._queues.append(queue)
        try:
            while True:
                await response.write(b"data: " + await queue.get() + b"\n\n")
        finally:
            self._queues.remove(queue)
