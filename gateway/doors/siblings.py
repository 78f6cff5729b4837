"""Between the workers of one gateway: a request that belongs to another worker is handed over to it.

What lives in one process (a session's stream, a question to an agent that waits for its answer, a child process) is
reached from every worker: its session id names the worker, and the others pass requests on over a Unix socket in
`data_dir/workers`, a folder of this user alone. The caller was identified before; it is identified again over there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from ...catalog.errors import SettingsError, UpstreamBroken
from ..wire import HOP_BY_HOP, RawResponse, RawStream, encode_headers, status_line

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

CLIENT: Final = b"x-agenticmail-client"
"""The address of the client, for the worker that answers. Never taken from a client: stripped, then set."""

CONNECT_SECONDS: Final = 2.0
LONGEST_PATH: Final = 100
"""Bytes of a socket's path at most (the kernel takes 107)."""

_OWN: Final = HOP_BY_HOP | {b"content-length", CLIENT}


class Siblings:
    """One worker's way to the others. With one worker there is nothing to open, and every number leads home."""

    def __init__(self, folder: Path, worker: int, count: int) -> None:
        self.worker = worker
        self.count = max(1, count)
        self._folder = folder / "workers"
        self._handlers: dict[str, Handler] = {}
        self._server: asyncio.Server | None = None
        self._http: web.Server | None = None
        self._sessions: dict[int, aiohttp.ClientSession] = {}
        self._directory = -1

    def home(self, number: Any) -> int:
        """The worker of a session that was begun at worker `number`: that one, or, when there are fewer now, another,
        but the same for all."""
        return number % self.count if isinstance(number, int) else 0

    async def start(self, handlers: dict[str, Handler]) -> None:
        """Serve the others: path -> handler. Raises SettingsError when the socket cannot be made."""
        if self.count == 1:
            return
        self._handlers = handlers
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._folder.chmod(0o700)
            path = self._path(self.worker)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # of the worker that was here before
            self._http = web.Server(
                self._serve, request_factory=self._request, handler_cancellation=True, access_log=None,
                auto_decompress=False, max_line_size=16384, max_field_size=16384,
            )  # fmt: skip
            self._server = await asyncio.get_running_loop().create_unix_server(self._http, path=path)
        except OSError as error:
            raise SettingsError(
                f"data_dir: no socket can be made in {self._folder}: {error.strerror or error}."
            ) from error

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._http is not None:
            await self._http.shutdown(1.0)
        for session in self._sessions.values():
            await session.close()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def there(self, worker: int) -> bool:
        """Whether that worker serves now."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self._path(worker))
            except OSError:
                return False
        return True

    async def ask(
        self, worker: int, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> aiohttp.ClientResponse | None:
        """One request, its response to be read and released. None when that worker does not serve now: nothing was
        sent. Raises UpstreamBroken when it ended in the middle."""
        sent: CIMultiDict[str] = CIMultiDict(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in headers
        )
        try:
            return await self._session(worker).request(
                method, f"http://worker{path}", data=body or None, headers=sent, allow_redirects=False
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            return None
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamBroken(
                "The worker that has this session ended in the middle; whether it acted is unknown."
            ) from error

    async def forward(self, request: web.BaseRequest, worker: int, body: bytes) -> web.StreamResponse | None:
        """Hand a request over, and its answer back. None when that worker does not serve now.

        Raises UpstreamBroken before the answer began; ConnectionError when it broke off, or the client left.
        """
        headers = [(name, value) for name, value in request.raw_headers if name.lower() not in _OWN]
        headers.append((CLIENT, (request.remote or "").encode("latin-1", "replace")))
        answer = await self.ask(worker, request.method, request.path, headers, body)
        if answer is None:
            return None
        async with answer:
            back = [(name, value) for name, value in answer.raw_headers if name.lower() not in _OWN]
            if answer.content_length is not None or answer.status == 204:
                try:
                    whole = await answer.read()
                except aiohttp.ClientError as error:
                    raise UpstreamBroken("The worker that has this session ended in the middle.") from error
                kept = [(name, value) for name, value in back if name.lower() not in {b"date", b"server"}]
                return RawResponse(answer.status, status_line(answer.status) + encode_headers(kept), whole)
            out = RawStream(request, answer.status, back)
            await out.start()
            try:
                async for chunk in answer.content.iter_any():
                    await out.write(chunk)
            except aiohttp.ClientError as error:
                if request.transport is not None:
                    request.transport.abort()  # a truncated answer must not look complete
                raise ConnectionResetError("The other worker broke off.") from error
            await out.finish()
            return out

    # -- inside --------------------------------------------------------------------------------------------------
    def _session(self, worker: int) -> aiohttp.ClientSession:
        session = self._sessions.get(worker)
        if session is None:
            # No connection is used twice: whether one that was idle has taken a request could not be known.
            connector = aiohttp.UnixConnector(self._path(worker), force_close=True, limit=0)
            timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
            session = self._sessions[worker] = aiohttp.ClientSession(
                connector=connector, timeout=timeout, auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            )  # fmt: skip
        return session

    def _path(self, worker: int) -> str:
        path = str(self._folder / f"{worker}.sock")
        if len(os.fsencode(path)) <= LONGEST_PATH:
            return path
        if self._directory < 0:  # by way of the open folder, whose own path may be as long as it likes
            self._directory = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._directory}/{worker}.sock"

    def _request(
        self, message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]
    ) -> web.BaseRequest:
        remote = message.headers.get(CLIENT.decode(), "")
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, remote=remote)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = self._handlers.get(request.path)
        if handler is None:
            return RawResponse(404, status_line(404), b"")
        return await handler(request)
