"""Upstreams that break the rules of HTTP: each a clear error, and never a connection that is used again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agenticmail_enterprise.catalog.errors import UpstreamBroken, UpstreamProtocol

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

MALFORMED = {
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "conflicting lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\noki",
    "a list of lengths": HEAD + b"Content-Length: 2, 2\r\n\r\nok",
    "a signed length": HEAD + b"Content-Length: +2\r\n\r\nok",
    "a negative length": HEAD + b"Content-Length: -2\r\n\r\nok",
    "a hexadecimal length": HEAD + b"Content-Length: 0x2\r\n\r\nok",
    "an empty length": HEAD + b"Content-Length: \r\n\r\nok",
    "an endless length": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\nok",
    "length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "another coding": HEAD + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "two codings": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a vertical tab": HEAD + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "a folded header": HEAD + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "NUL in a value": HEAD + b"X: a\x00b\r\nContent-Length: 2\r\n\r\nok",
    "bare CR in a value": HEAD + b"X: a\rb\r\nContent-Length: 2\r\n\r\nok",
    "bare LF in a value": HEAD + b"X: a\nY: b\r\nContent-Length: 2\r\n\r\nok",
    "line ends without CR": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "an empty name": HEAD + b": x\r\nContent-Length: 2\r\n\r\nok",
    "a space in a name": HEAD + b"X y: x\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "no HTTP": b"ok\r\n\r\n",
    "another protocol": b"RTSP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "a line end first": b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "an SSH banner": b"SSH-2.0-OpenSSH_9.9\r\n",
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "status 99": b"HTTP/1.1 99 Hm\r\nContent-Length: 2\r\n\r\nok",
    "status 600": b"HTTP/1.1 600 Hm\r\nContent-Length: 2\r\n\r\nok",
    "status 20": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
    "an upgrade": b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nxx",
    "a bare 101": b"HTTP/1.1 101 Switching\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\nok",
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a head too large": HEAD + b"X: " + b"a" * 70_000 + b"\r\nContent-Length: 2\r\n\r\nok",
    "too many headers": HEAD + b"X: y\r\n" * 20_000 + b"Content-Length: 2\r\n\r\nok",
    "interim answers without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
}  # fmt: skip

BAD_CHUNKS = {
    "a chunk too long": b"3\r\nabcd\r\n0\r\n\r\n",
    "a negative chunk": b"-3\r\nabc\r\n0\r\n\r\n",
    "a prefixed chunk": b"0x3\r\nabc\r\n0\r\n\r\n",
    "chunk lines without CR": b"3\nabc\n0\n\n",
    "a chunk size too large": b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "no chunk size": b"\r\nabc\r\n0\r\n\r\n",
    "a chunk extension without end": b"3;" + b"x" * 200_000,
    "a trailer without end": b"0\r\nX: " + b"x" * 200_000,
    "too many trailers": b"0\r\n" + b"X: yyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 10_000,
    "a header injected as a trailer": b"0\r\nX: a\nContent-Length: 5\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("pieces", ["at once", "in pieces"])
async def test_malformed_heads_end_the_connection(serve: Any, make_pool: Any, kit: Any, name: str, pieces: str) -> None:
    data = MALFORMED[name]

    async def script(peer: Any) -> None:
        await peer.request()
        size = len(data) if pieces == "at once" else max(1, len(data) // 7)
        for start in range(0, len(data), size):
            await peer.send(data[start : start + size])
            await asyncio.sleep(0)
        await peer.request()

    upstream = await serve(script)
    pool = make_pool(upstream)
    with pytest.raises(UpstreamProtocol):
        await pool.send(*kit.request(), timeout=30)
    assert pool.stats.open == 0
    await kit.until(lambda: upstream.open == 0)


@pytest.mark.parametrize("name", BAD_CHUNKS)
async def test_malformed_chunks_end_the_stream(serve: Any, make_pool: Any, kit: Any, name: str) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"2\r\nhi\r\n")
        await asyncio.sleep(0.005)
        data = BAD_CHUNKS[name]
        for start in range(0, len(data), 50_000):
            await peer.send(data[start : start + 50_000])
        await peer.request()

    upstream = await serve(script)
    pool = make_pool(upstream, stream_idle=2)
    answer = await pool.send(*kit.request(), timeout=30)
    got = b""
    with pytest.raises(UpstreamProtocol):
        async for chunk in answer.stream():
            got += chunk
    assert got.startswith(b"hi")
    assert pool.stats.open == 0
    await kit.until(lambda: upstream.open == 0)


@pytest.mark.parametrize(
    "surplus",
    [b"x", b"\r\n", b"\n", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"HTTP/1.1 ", b"\x00"],
)
@pytest.mark.parametrize(
    "first",
    [
        HEAD + b"Content-Length: 4\r\n\r\ngood",
        HEAD + b"Content-Length: 4\r\n\r\nis\r\n",
        HEAD + b"Content-Length: 0\r\n\r\n",
        CHUNKED + b"4\r\ngood\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 4\r\n\r\ngood",
    ],
)
@pytest.mark.parametrize("pieces", [1, 2])
async def test_bytes_after_a_response_are_nobodys(
    serve: Any, make_pool: Any, kit: Any, surplus: bytes, first: bytes, pieces: int
) -> None:
    """The answer stands, the connection goes: the next caller must not be given what was smuggled behind it."""

    async def script(peer: Any) -> None:
        if await peer.request() is None:
            return
        if peer.number > 1:
            await peer.send(kit.ok(b"fresh"))
        elif pieces == 1:
            await peer.send(first + surplus)
        else:
            await peer.send(first[:-3])
            await asyncio.sleep(0.003)
            await peer.send(first[-3:] + surplus)
        await peer.request()

    upstream = await serve(script)
    pool = make_pool(upstream)
    answer = await pool.send(*kit.request(), timeout=30)
    body = await answer.read(1000)
    assert body in {b"good", b"is\r\n", b""}
    assert (await pool.send(*kit.request(), timeout=30)).body == b"fresh"
    assert upstream.connections == 2


@pytest.mark.parametrize("surplus", [b"x", b"\r\n", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"])
async def test_bytes_on_an_idle_connection_discard_it(serve: Any, make_pool: Any, kit: Any, surplus: bytes) -> None:
    async def script(peer: Any) -> None:
        if await peer.request() is None:
            return
        await peer.send(kit.ok(b"one" if peer.number == 1 else b"two"))
        if peer.number == 1:
            await asyncio.sleep(0.01)
            await peer.send(surplus)
        await peer.request()

    pool = make_pool(await serve(script))
    assert (await pool.send(*kit.request(), timeout=30)).body == b"one"
    await kit.until(lambda: pool.stats.open == 0)
    assert (await pool.send(*kit.request(), timeout=30)).body == b"two"
    assert pool.stats.stale == 1


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n"],
)
async def test_a_204_that_declares_a_body_costs_its_connection(
    serve: Any, make_pool: Any, kit: Any, head: bytes
) -> None:
    upstream = await serve(kit.answering(head))
    pool = make_pool(upstream)
    for count in (1, 2):
        assert (await pool.send(*kit.request(), timeout=30)).body == b""
        assert (upstream.connections, pool.stats.open) == (count, 0)


@pytest.mark.parametrize(
    "sent", [b"HTTP", HEAD, HEAD + b"Content-Length: 9\r\n\r\nhalf", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_an_answer_cut_short_is_broken(serve: Any, make_pool: Any, kit: Any, sent: bytes, ending: str) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.send(sent)
        await asyncio.sleep(0.01)
        getattr(peer, ending)()

    upstream = await serve(script)
    pool = make_pool(upstream)
    with pytest.raises(UpstreamBroken, match="whether it acted is unknown"):
        await pool.send(*kit.request(), timeout=30, replayable=True)
    assert (upstream.connections, pool.stats.open) == (1, 0)


@pytest.mark.parametrize("head", [HEAD + b"Content-Length: 900000\r\n\r\n", CHUNKED])
@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_a_stream_cut_short_is_broken(serve: Any, make_pool: Any, kit: Any, head: bytes, ending: str) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.send(head + b"4\r\nhalf\r\n")
        await asyncio.sleep(0.01)
        getattr(peer, ending)()

    pool = make_pool(await serve(script))
    answer = await pool.send(*kit.request(), timeout=30)
    with pytest.raises(UpstreamBroken):
        await answer.read(10**6)
    assert pool.stats.open == 0


async def test_a_body_until_close_that_is_reset_is_broken(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.send(HEAD + b"\r\nsome")
        await asyncio.sleep(0.01)
        peer.reset()

    pool = make_pool(await serve(script))
    answer = await pool.send(*kit.request(), timeout=30)
    with pytest.raises(UpstreamBroken):
        await answer.read(10**6)


async def test_connection_close_is_honoured(serve: Any, make_pool: Any, kit: Any) -> None:
    upstream = await serve(kit.answering(kit.ok(b"bye", b"Connection: Keep-Alive, Close")))
    pool = make_pool(upstream)
    for count in (1, 2, 3):
        assert (await pool.send(*kit.request(), timeout=30)).body == b"bye"
        assert (upstream.connections, pool.stats.open) == (count, 0)


async def test_an_answer_before_the_request_was_read_is_taken_and_the_connection_dropped(
    serve: Any, make_pool: Any, kit: Any
) -> None:
    async def script(peer: Any) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(kit.ok(b"too large", b"Connection: close", status=b"413 Content Too Large"))
        await asyncio.sleep(0.02)

    pool = make_pool(await serve(script))
    answer = await pool.send(*kit.request(body=b"x" * 20_000_000), timeout=30)
    assert (answer.status, answer.body) == (413, b"too large")
    assert pool.stats.open == 0


async def test_an_early_answer_does_not_free_a_connection_that_is_still_sending(
    serve: Any, make_pool: Any, kit: Any
) -> None:
    """Keep-alive or not: the rest of our body is still on its way and would be read as the next request."""

    async def script(peer: Any) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(kit.ok(b"early"))
        await peer.request()

    pool = make_pool(await serve(script))
    assert (await pool.send(*kit.request(body=b"x" * 20_000_000), timeout=30)).body == b"early"
    assert pool.stats.open == 0
