"""What a call through the pool gets when the upstream behaves."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from agenticmail_enterprise.catalog.errors import UpstreamProtocol
from agenticmail_enterprise.gateway.pool_framing import MAX_BUFFERED


async def test_an_answer_keeps_status_reason_headers_and_bytes(serve: Any, make_pool: Any, kit: Any) -> None:
    body = b"\x1f\x8b not really gzip \x00\xff"
    upstream = await serve(
        kit.answering(
            kit.ok(
                body, b"X-Case: One", b"x-case: two", b"Content-Encoding: gzip", b"Empty:", status=b"418 I'm a teapot"
            )
        )
    )
    answer = await make_pool(upstream).send(*kit.request(), timeout=30)
    assert (answer.status, answer.reason, answer.body) == (418, b"I'm a teapot", body)
    assert answer.headers == [
        (b"Content-Length", str(len(body)).encode()), (b"X-Case", b"One"), (b"x-case", b"two"),
        (b"Content-Encoding", b"gzip"), (b"Empty", b""),
    ]  # fmt: skip
    assert answer.content_length == len(body)
    assert answer.header(b"x-case") == b"One"
    assert answer.elapsed > 0


async def test_the_request_arrives_as_it_was_given(serve: Any, make_pool: Any, kit: Any) -> None:
    log: list[bytes] = []
    upstream = await serve(kit.answering(kit.ok(), log=log))
    pool = make_pool(upstream)
    big = bytes(range(256)) * 4096  # a megabyte: written beside its head
    for body in (b"", b"{}", big):
        head, body = kit.request(body=body)
        await pool.send(head, body, timeout=30)
        assert log.pop() == head + body


async def test_one_connection_serves_one_call_after_another(serve: Any, make_pool: Any, kit: Any) -> None:
    upstream = await serve(kit.answering(kit.ok()))
    pool = make_pool(upstream)
    for _ in range(50):
        assert (await pool.send(*kit.request(), timeout=30)).body == b"ok"
    stats = pool.stats
    assert (upstream.connections, stats.created, stats.reused, stats.open, stats.idle) == (1, 1, 49, 1, 1)


async def test_warm_a_call_suspends_once_and_sets_no_timer(serve: Any, make_pool: Any, kit: Any) -> None:
    upstream = await serve(kit.answering(kit.ok()))
    pool = make_pool(upstream)
    await pool.send(*kit.request(), timeout=30)
    loop = asyncio.get_running_loop()
    timers = []
    call = pool.send(*kit.request(), timeout=4.9)  # a deadline after the timer that is set already
    original = pool._arm
    pool._arm = lambda *args: (timers.append(args), original(*args))
    pool._armed = 0.0
    future = call.send(None)
    assert asyncio.isfuture(future)
    assert future.get_loop() is loop
    while not future.done():
        await asyncio.sleep(0)
    with pytest.raises(StopIteration) as stop:
        call.send(None)
    assert stop.value.value.body == b"ok"
    assert inspect.getcoroutinestate(call) == "CORO_CLOSED"
    assert timers == []


async def test_no_second_request_is_written_before_the_answer(serve: Any, make_pool: Any, kit: Any) -> None:
    """Pipelining is off: with one connection, the server never sees two requests at a time."""
    early = []

    async def script(peer: Any) -> None:
        while await peer.request() is not None:
            await asyncio.sleep(0.005)
            early.append(bytes(peer.reader._buffer))
            await peer.send(kit.ok())

    pool = make_pool(await serve(script), max_connections=1)
    answers = await asyncio.gather(*[pool.send(*kit.request(), timeout=30) for _ in range(8)])
    assert [answer.body for answer in answers] == [b"ok"] * 8
    assert early == [b""] * 8


async def test_bodies_at_the_limit_come_whole_and_larger_ones_are_streamed(
    serve: Any, make_pool: Any, kit: Any
) -> None:
    at, over = b"a" * MAX_BUFFERED, b"b" * 1_000_000
    pool = make_pool(await serve(kit.answering(kit.ok(at), kit.ok(over), kit.ok(b""))))
    assert (await pool.send(*kit.request(), timeout=30)).body == at
    answer = await pool.send(*kit.request(), timeout=30)
    assert answer.body is None
    assert await answer.read(10**7) == over
    answer.close()
    assert (await pool.send(*kit.request(), timeout=30)).body == b""
    assert pool.stats.created == 1


async def test_a_chunked_answer_is_streamed_without_its_framing(serve: Any, make_pool: Any, kit: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\n\r\n"

    async def script(peer: Any) -> None:
        while await peer.request() is not None:
            await peer.send(head)
            for part in (b"5;ext=1\r\nhello\r\n", b"6\r\n world\r\n", b"0\r\nX-Trailer: yes\r\n\r\n"):
                await asyncio.sleep(0.005)
                await peer.send(part)

    pool = make_pool(await serve(script))
    for _ in range(3):
        answer = await pool.send(*kit.request(), timeout=30)
        assert answer.body is None
        assert answer.content_type == "text/event-stream"
        assert answer.content_length is None
        assert [chunk async for chunk in answer.stream()] == [b"hello", b" world"]
        assert all(name != b"X-Trailer" for name, _ in answer.headers)
    assert pool.stats.created == 1


async def test_events_are_streamed_even_when_all_of_them_are_there(serve: Any, make_pool: Any, kit: Any) -> None:
    pool = make_pool(await serve(kit.answering(kit.ok(b"data: 1\n\n", b"Content-Type: text/event-stream"))))
    for _ in range(3):
        answer = await pool.send(*kit.request(), timeout=30)
        assert answer.body is None
        assert b"".join([chunk async for chunk in answer.stream()]) == b"data: 1\n\n"
    assert pool.stats.created == 1


async def test_a_chunked_json_answer_that_is_there_already_comes_whole(serve: Any, make_pool: Any, kit: Any) -> None:
    data = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    )
    pool = make_pool(await serve(kit.answering(data)))
    for _ in range(3):
        answer = await pool.send(*kit.request(), timeout=30)
        assert answer.body == b"{}"
        assert [chunk async for chunk in answer.stream()] == [b"{}"]
    assert pool.stats.created == 1


async def test_asked_to_stream_it_answers_at_the_head(serve: Any, make_pool: Any, kit: Any) -> None:
    rest = asyncio.Event()

    async def script(peer: Any) -> None:
        while await peer.request() is not None:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
            await rest.wait()
            await peer.send(b"cd")

    pool = make_pool(await serve(script))
    answer = await pool.send(*kit.request(), timeout=30, stream=True)
    assert answer.body is None
    assert answer.content_length == 4
    rest.set()
    assert await answer.read(100) == b"abcd"


async def test_an_answer_in_single_bytes_is_the_same_answer(serve: Any, make_pool: Any, kit: Any) -> None:
    data = kit.ok(b"slowly", b"X-A: b")

    async def script(peer: Any) -> None:
        while await peer.request() is not None:
            for index in range(len(data)):
                await peer.send(data[index : index + 1])
                await asyncio.sleep(0)

    pool = make_pool(await serve(script))
    for _ in range(3):
        answer = await pool.send(*kit.request(), timeout=30)
        assert (answer.body, answer.reason, answer.headers[1]) == (b"slowly", b"OK", (b"X-A", b"b"))
    assert pool.stats.created == 1


async def test_interim_answers_are_skipped(serve: Any, make_pool: Any, kit: Any) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 9\r\n\r\n"

    async def script(peer: Any) -> None:
        while await peer.request() is not None:
            await peer.send(interim + kit.ok(b"one"))
            if await peer.request() is None:
                return
            await peer.send(interim)
            await asyncio.sleep(0.005)
            await peer.send(kit.ok(b"two", b"X-Final: yes"))

    pool = make_pool(await serve(script))
    one = await pool.send(*kit.request(), timeout=30)
    assert (one.status, one.body, one.headers) == (200, b"one", [(b"Content-Length", b"3")])
    two = await pool.send(*kit.request(), timeout=30)
    assert (two.status, two.body, two.header(b"x-final"), two.header(b"link")) == (200, b"two", b"yes", None)
    assert pool.stats.created == 1


@pytest.mark.parametrize(
    ("method", "head", "status"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", 200),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n", 200),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 12\r\n\r\n", 304),
    ],
)
async def test_answers_without_a_body(
    serve: Any, make_pool: Any, kit: Any, method: str, head: bytes, status: int
) -> None:
    pool = make_pool(await serve(kit.answering(head)))
    for _ in range(3):
        answer = await pool.send(*kit.request(method, b""), timeout=30)
        assert (answer.status, answer.body) == (status, b"")
    assert (await pool.send(*kit.request(method, b""), timeout=30)).status == status


async def test_http_1_0_is_understood_and_its_connection_closed(serve: Any, make_pool: Any, kit: Any) -> None:
    upstream = await serve(kit.answering(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"))
    pool = make_pool(upstream)
    for count in (1, 2):
        assert (await pool.send(*kit.request(), timeout=30)).body == b"ok"
        assert (upstream.connections, pool.stats.open) == (count, 0)


async def test_a_body_that_ends_with_the_connection(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nall ")
        await asyncio.sleep(0.005)
        await peer.send(b"of it")

    pool = make_pool(await serve(script))
    answer = await pool.send(*kit.request(), timeout=30)
    assert await answer.read(100) == b"all of it"
    assert pool.stats.open == 0


async def test_read_gives_up_beyond_its_limit(serve: Any, make_pool: Any, kit: Any) -> None:
    pool = make_pool(await serve(kit.answering(kit.ok(b"x" * 20_000_000))))
    answer = await pool.send(*kit.request(), timeout=30)
    with pytest.raises(UpstreamProtocol):
        await answer.read(200_000)
    assert pool.stats.open == 0


async def test_redirects_are_answers_and_nothing_more(serve: Any, make_pool: Any, kit: Any) -> None:
    upstream = await serve(kit.answering(kit.ok(b"", b"Location: http://169.254.169.254/", status=b"302 Found")))
    answer = await make_pool(upstream).send(*kit.request(), timeout=30)
    assert answer.status == 302
    assert upstream.connections == 1
