"""Upstreams that behave as badly as they like, and pools pointed at them, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import uvloop

from agenticmail_enterprise.gateway.pool import Origin, Pool, build_head


def pytest_asyncio_loop_factories(config: Any, item: Any) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def ok(body: bytes = b"ok", *lines: bytes, status: bytes = b"200 OK") -> bytes:
    """A response with a declared length."""
    head = b"".join(line + b"\r\n" for line in lines)
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), head, body)


def request(method: str = "POST", body: bytes = b"{}", target: str = "/mcp") -> tuple[bytes, bytes]:
    return build_head(method, target, [(b"Host", b"x"), (b"Content-Length", b"%d" % len(body))]), body


class Peer:
    """One accepted connection, as the scripted server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number

    async def request(self) -> bytes | None:
        """The next request, head and body; None when the client has closed."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            return head + await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class Upstream:
    """A raw TCP (or TLS) server that plays `script` on every connection."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections = 0
        self.open = 0
        self.requests: list[bytes] = []
        self.port = 0
        self.tls = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{'localhost' if self.tls else '127.0.0.1'}:{self.port}/mcp"

    async def start(self, tls: ssl.SSLContext | None) -> None:
        self.tls = tls is not None
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.script(Peer(reader, writer, self.connections))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)


Serve = Callable[..., Awaitable[Upstream]]
MakePool = Callable[..., Pool]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    started: list[Upstream] = []

    async def start(script: Script, tls: ssl.SSLContext | None = None) -> Upstream:
        upstream = Upstream(script)
        await upstream.start(tls)
        started.append(upstream)
        return upstream

    yield start
    for upstream in started:
        await upstream.stop()
    gc.collect()


@pytest.fixture
async def make_pool() -> AsyncIterator[MakePool]:
    """Pools for an Upstream (or a URL), closed after the test; none may leave a connection behind."""
    pools: list[Pool] = []

    def make(upstream: Upstream | str, **options: Any) -> Pool:
        url = upstream if isinstance(upstream, str) else upstream.url
        pool = Pool(Origin.parse(url), allow_private=True, **options)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        await pool.close(grace=0)
        assert pool.stats.open == 0
        assert pool.stats.waiting == 0


class Clock:
    """Real time that can be moved forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kit() -> Any:
    """The helpers of this file, for test modules (which cannot import a conftest)."""

    class Kit:
        pass

    Kit.ok = staticmethod(ok)  # type: ignore[attr-defined]
    Kit.request = staticmethod(request)  # type: ignore[attr-defined]
    Kit.until = staticmethod(until)  # type: ignore[attr-defined]
    Kit.answering = staticmethod(answering)  # type: ignore[attr-defined]
    return Kit


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Let the loop run until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.002)


def answering(*answers: bytes, close_after: bool = False, log: list[bytes] | None = None) -> Script:
    """A script that answers each request of a connection with the next answer, the last one for ever."""

    async def script(peer: Peer) -> None:
        count = 0
        while (got := await peer.request()) is not None:
            if log is not None:
                log.append(got)
            await peer.send(answers[min(count, len(answers) - 1)])
            count += 1
            if close_after:
                peer.close()
                return

    return script
