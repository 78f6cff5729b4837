"""Streamed answers: a slow reader slows the upstream down, and a stream that is left is cut."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import resource
from typing import Any

import pytest

from agenticmail_enterprise.catalog.errors import UpstreamTimeout
from agenticmail_enterprise.gateway.pool_answer import HIGH_WATER, Answer

BLOCK = 64 * 1024


def blocks(peer: Any, count: int, chunked: bool) -> Any:
    """Send `count` blocks as fast as they are taken; `peer.sent` counts them."""
    peer.sent = 0
    digest = hashlib.sha256()

    async def run() -> bytes:
        for number in range(count):
            data = number.to_bytes(4, "big") * (BLOCK // 4)
            digest.update(data)
            await peer.send(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            peer.sent += 1
        if chunked:
            await peer.send(b"0\r\n\r\n")
        return digest.digest()

    return run()


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_slow_reader_slows_the_upstream_and_memory_stays_bounded(
    serve: Any, make_pool: Any, kit: Any, chunked: bool
) -> None:
    count = 1000  # 62 MiB; what sockets of both sides hold is some 6 MiB at most
    peers: list[Any] = []
    digests: list[bytes] = []

    async def script(peer: Any) -> None:
        while await peer.request() is not None:
            peers.append(peer)
            kind = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (count * BLOCK)
            await peer.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % kind)
            digests.append(await blocks(peer, count, chunked))

    pool = make_pool(await serve(script))
    answer = await pool.send(*kit.request(), timeout=30)
    stream = answer.stream()
    digest = hashlib.sha256(await anext(stream))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(4):  # nobody reads
        stalled = peers[0].sent
        await asyncio.sleep(0.05)
    assert peers[0].sent == stalled < count / 2
    assert answer._source.size <= 2 * HIGH_WATER + BLOCK  # type: ignore[union-attr]
    async for chunk in stream:
        digest.update(chunk)
    assert digest.digest() == digests[0]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < 24 * 1024, "the stream was held in memory"
    assert pool.stats.idle == 1
    # and its connection, which was paused at times, is as good as new
    answer = await pool.send(*kit.request(), timeout=30)
    answer.close()
    assert pool.stats.open == 0


async def test_a_stream_that_is_closed_early_cuts_its_connection(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        if await peer.request() is not None:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                await peer.send(b"3\r\n:\n\n\r\n")
                await asyncio.sleep(0.002)
                if peer.writer.transport.is_closing():
                    return

    upstream = await serve(script)
    pool = make_pool(upstream)
    answer = await pool.send(*kit.request(), timeout=30)
    async for chunk in answer.stream():
        assert chunk == b":\n\n"
        break
    answer.close()
    answer.close()
    assert pool.stats.open == 0
    assert pool.stats.breaker == "closed"
    await kit.until(lambda: upstream.open == 0)


async def test_a_stream_that_is_forgotten_cuts_its_connection(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await peer.request()

    upstream = await serve(script)
    pool = make_pool(upstream)
    answer = await pool.send(*kit.request(), timeout=30)
    assert pool.stats.open == 1
    del answer
    gc.collect()
    await kit.until(lambda: pool.stats.open == 0 and upstream.open == 0)


async def test_a_reader_that_is_cancelled_may_read_on_or_close(serve: Any, make_pool: Any, kit: Any) -> None:
    more = asyncio.Event()

    async def script(peer: Any) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await more.wait()
        await peer.send(b"1\r\nb\r\n0\r\n\r\n")
        await peer.request()

    pool = make_pool(await serve(script))
    answer = await pool.send(*kit.request(), timeout=30)
    source = answer._source
    assert source is not None
    assert await source.next() == b"a"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(source.next(), 0.01)
    more.set()
    assert await source.next() == b"b"
    assert await source.next() is None
    assert pool.stats.idle == 1


async def test_a_stream_may_be_silent_for_ever_unless_a_limit_is_set(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        while await peer.request() is not None:
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
            await asyncio.sleep(1.2)
            await peer.send(b"1\r\nb\r\n0\r\n\r\n")

    upstream = await serve(script)
    answer = await make_pool(upstream).send(*kit.request(), timeout=1.0)
    assert await answer.read(10) == b"ab"  # the deadline was for the head
    impatient = make_pool(upstream, stream_idle=0.2)
    answer = await impatient.send(*kit.request(), timeout=30)
    got = b""
    with pytest.raises(UpstreamTimeout, match="fell silent"):
        async for chunk in answer.stream():
            got += chunk
    assert got == b"a"
    assert impatient.stats.open == 0


async def test_a_slow_reader_is_not_the_upstreams_silence(serve: Any, make_pool: Any, kit: Any) -> None:
    size = 2_000_000

    async def script(peer: Any) -> None:
        while await peer.request() is not None:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"z" * size)

    pool = make_pool(await serve(script), stream_idle=0.5)
    answer = await pool.send(*kit.request(), timeout=30)
    await asyncio.sleep(0.8)
    got = chunks = 0
    async for chunk in answer.stream():
        got += len(chunk)
        chunks += 1
        if chunks == 2:
            await asyncio.sleep(0.8)
    assert got == size


async def test_two_readers_of_one_stream_are_a_mistake(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await peer.request()

    pool = make_pool(await serve(script))
    answer = await pool.send(*kit.request(), timeout=30)
    assert answer._source is not None
    first = asyncio.ensure_future(answer._source.next())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError):
        await answer._source.next()
    answer.close()
    await asyncio.gather(first, return_exceptions=True)


async def test_answers_of_other_transports_read_the_same() -> None:
    class Pipe:
        def __init__(self) -> None:
            self.parts = [b"one", b"two"]
            self.closed = 0

        async def next(self) -> bytes | None:
            return self.parts.pop(0) if self.parts else None

        def close(self) -> None:
            self.closed += 1

    whole = Answer(
        200, b"OK", [(b"Content-Type", b"Application/JSON; charset=utf-8")], b"{}", media=b"Application/JSON; x"
    )
    assert await whole.read(10) == b"{}"
    assert whole.content_type == "application/json"
    whole.close()
    pipe = Pipe()
    streamed = Answer(200, b"OK", [], None, source=pipe)
    assert [chunk async for chunk in streamed.stream()] == [b"one", b"two"]
    streamed.close()
    assert pipe.closed == 1
    assert "streamed" in repr(streamed)
