"""A stale pooled connection never becomes the caller's error; nothing that may have been processed is sent again.

The races are made, not waited for: the server's sockets are plain ones in this process, so that it can close between
two steps of the client without the event loop having a chance to notice.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agenticmail_enterprise.catalog.errors import UpstreamBroken, UpstreamRefused
from agenticmail_enterprise.gateway.pool_delivery import Remains, acknowledged
from agenticmail_enterprise.gateway.pool_idle import UNKNOWN_LIMIT

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Sockets:
    """A server whose every step is a plain call: accept, read, answer, close."""

    def __init__(self) -> None:
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.listener.setblocking(False)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/mcp"
        self.accepted: list[socket.socket] = []

    async def accept(self) -> socket.socket:
        sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        sock.setblocking(False)
        self.accepted.append(sock)
        return sock

    async def serve_one(self, sock: socket.socket, answer: bytes = RESPONSE) -> bytes:
        loop = asyncio.get_running_loop()
        data = b""
        while b"\r\n\r\n" not in data or not data.endswith(b"{}"):
            piece = await loop.sock_recv(sock, 65536)
            assert piece, "the client closed"
            data += piece
        await loop.sock_sendall(sock, answer)
        return data

    async def serve_another(self) -> bytes:
        return await self.serve_one(await self.accept())

    def nobody_else(self) -> bool:
        """True when no further connection was made."""
        try:
            sock, _ = self.listener.accept()
        except BlockingIOError:
            return True
        sock.close()
        return False

    def close(self) -> None:
        for sock in (*self.accepted, self.listener):
            sock.close()


@pytest.fixture
async def sockets() -> AsyncIterator[Sockets]:
    server = Sockets()
    yield server
    server.close()


async def warm(pool: Any, sockets: Sockets, kit: Any) -> socket.socket:
    """One exchange, after which the pool holds an idle connection. Returns the server's end of it."""
    call = asyncio.ensure_future(pool.send(*kit.request(), timeout=30))
    sock = await sockets.accept()
    await sockets.serve_one(sock)
    assert (await call).body == b"ok"
    assert pool.stats.idle == 1
    return sock


def trust_blindly(pool: Any, clock: Any) -> None:
    """Take the idle connection as one that has rested for no time at all: nobody looks at it before it is used."""
    for conn in pool._idle:
        conn.idle_since = clock() + 60


async def crossing(pool: Any, clock: Any, request: tuple[bytes, bytes], **options: Any) -> asyncio.Task[Any]:
    """Send a request that is written before the loop can see what the server did to the idle connection."""
    trust_blindly(pool, clock)
    conn = pool._idle[-1]
    conn.pause()
    call = asyncio.ensure_future(pool.send(*request, **{"timeout": 30, **options}))
    await asyncio.sleep(0.005)
    conn.resume()
    return call


async def test_a_close_that_was_noticed_costs_a_new_connection_and_nothing_else(
    sockets: Any, make_pool: Any, kit: Any
) -> None:
    pool = make_pool(sockets.url)
    (await warm(pool, sockets, kit)).close()
    await kit.until(lambda: pool.stats.open == 0)
    await warm(pool, sockets, kit)
    assert (pool.stats.stale, pool.stats.resent) == (1, 0)


@pytest.mark.parametrize("how", ["close", "reset", "half-close", "bytes"])
async def test_a_close_that_the_loop_has_not_noticed_yet_is_looked_for(
    sockets: Any, make_pool: Any, kit: Any, clock: Any, how: str
) -> None:
    pool = make_pool(sockets.url, clock=clock)
    sock = await warm(pool, sockets, kit)
    clock.ahead += 0.5  # it has rested for a while
    if how == "half-close":
        sock.shutdown(socket.SHUT_WR)
    elif how == "bytes":
        sock.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    else:
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    await warm(pool, sockets, kit)
    assert (pool.stats.stale, pool.stats.resent, pool.stats.created) == (1, 0, 2)


@pytest.mark.parametrize("body", [b"{}", b" " * 300_000 + b"{}"])
@pytest.mark.parametrize("noticed", ["after writing", "before writing"])
async def test_a_post_that_crossed_the_close_is_proven_unprocessed_and_sent_again(
    sockets: Any, make_pool: Any, kit: Any, clock: Any, body: bytes, noticed: str
) -> None:
    pool = make_pool(sockets.url, clock=clock)
    sock = await warm(pool, sockets, kit)
    second = asyncio.ensure_future(sockets.serve_another())
    await asyncio.sleep(0)
    trust_blindly(pool, clock)
    sock.close()  # its FIN is under way when the request is written
    head, body = kit.request(body=body)
    if noticed == "after writing":
        answer = await (await crossing(pool, clock, (head, body)))
    else:
        answer = await pool.send(head, body, timeout=30)
    assert answer.body == b"ok"
    assert await second == head + body
    assert (pool.stats.resent, pool.stats.created) == (1, 2)
    assert sockets.nobody_else()


async def test_several_closes_in_a_row_are_survived(sockets: Any, make_pool: Any, kit: Any, clock: Any) -> None:
    pool = make_pool(sockets.url, clock=clock)
    for _ in range(5):
        sock = await warm(pool, sockets, kit)
        another = asyncio.ensure_future(sockets.serve_another())
        await asyncio.sleep(0)
        trust_blindly(pool, clock)
        sock.close()
        assert (await pool.send(*kit.request(), timeout=30)).body == b"ok"
        await another
        sockets.accepted[-1].close()
        await kit.until(lambda: pool.stats.open == 0)
    assert pool.stats.resent == 5


async def test_a_post_that_was_read_is_never_sent_again(sockets: Any, make_pool: Any, kit: Any, clock: Any) -> None:
    pool = make_pool(sockets.url, clock=clock)
    sock = await warm(pool, sockets, kit)
    trust_blindly(pool, clock)
    call = asyncio.ensure_future(pool.send(*kit.request(), timeout=30))
    await sockets.serve_one(sock, b"")
    sock.close()
    with pytest.raises(UpstreamBroken, match="whether it acted is unknown"):
        await call
    assert sockets.nobody_else()
    assert (pool.stats.resent, pool.stats.open) == (0, 0)


async def test_a_post_that_reached_the_servers_machine_is_never_sent_again(
    sockets: Any, make_pool: Any, kit: Any, clock: Any
) -> None:
    """The unavoidable window: acknowledged by the kernel, closed by the program, which may or may not have read it."""
    pool = make_pool(sockets.url, clock=clock)
    sock = await warm(pool, sockets, kit)
    trust_blindly(pool, clock)
    call = asyncio.ensure_future(pool.send(*kit.request(), timeout=30))
    await asyncio.sleep(0.02)
    sock.close()  # with the request unread: a reset
    with pytest.raises(UpstreamBroken, match="whether it acted is unknown"):
        await call
    assert sockets.nobody_else()


async def test_a_server_that_only_stopped_sending_may_have_read_the_request(
    sockets: Any, make_pool: Any, kit: Any, clock: Any
) -> None:
    pool = make_pool(sockets.url, clock=clock)
    sock = await warm(pool, sockets, kit)
    sock.shutdown(socket.SHUT_WR)
    call = await crossing(pool, clock, kit.request())
    assert b"POST /mcp" in sock.recv(65536)  # it did
    with pytest.raises(UpstreamBroken, match="whether it acted is unknown"):
        await call
    assert sockets.nobody_else()


async def test_without_a_proof_a_replayable_request_is_sent_once_more_and_no_oftener(
    sockets: Any, make_pool: Any, kit: Any, clock: Any
) -> None:
    pool = make_pool(sockets.url, clock=clock)
    sock = await warm(pool, sockets, kit)
    trust_blindly(pool, clock)
    call = asyncio.ensure_future(pool.send(*kit.request(), timeout=30, replayable=True))
    await sockets.serve_one(sock, b"")
    sock.close()
    again = await sockets.accept()
    await sockets.serve_one(again, b"")
    again.close()
    with pytest.raises(UpstreamBroken):
        await call
    assert sockets.nobody_else()
    assert pool.stats.resent == 1


async def test_a_new_connection_that_closes_after_reading_is_broken_even_if_replayable(
    serve: Any, make_pool: Any, kit: Any
) -> None:
    async def script(peer: Any) -> None:
        await peer.request()

    upstream = await serve(script)
    pool = make_pool(upstream)
    with pytest.raises(UpstreamBroken):
        await pool.send(*kit.request(), timeout=30, replayable=True)
    assert upstream.connections == 1


async def test_a_new_connection_that_closed_before_the_request_left_is_a_refusal(
    sockets: Any, make_pool: Any, kit: Any, monkeypatch: Any
) -> None:
    """Nothing can have been processed: callers may know it, and try elsewhere."""
    pool = make_pool(sockets.url)
    dial = pool._dialler.dial

    async def dial_and_be_closed(*args: Any) -> Any:
        conn = await dial(*args)
        (await sockets.accept()).close()
        return conn

    monkeypatch.setattr(pool._dialler, "dial", dial_and_be_closed)
    with pytest.raises(UpstreamRefused) as refusal:
        await pool.send(*kit.request(), timeout=30)
    assert refusal.value.unsent
    assert (pool.stats.open, pool.stats.resent) == (0, 0)


async def test_a_server_that_accepts_and_closes_leaves_no_call_hanging(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        peer.close()

    pool = make_pool(await serve(script))
    outcomes = await asyncio.gather(*[pool.send(*kit.request(), timeout=30) for _ in range(20)], return_exceptions=True)
    assert all(isinstance(error, (UpstreamRefused, UpstreamBroken)) for error in outcomes)
    assert pool.stats.open == 0


async def test_a_408_that_crossed_the_request_is_a_close_like_another(
    sockets: Any, make_pool: Any, kit: Any, clock: Any
) -> None:
    goodbye = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    pool = make_pool(sockets.url, clock=clock)
    sock = await warm(pool, sockets, kit)
    trust_blindly(pool, clock)
    sock.send(goodbye)
    sock.close()
    call = asyncio.ensure_future(pool.send(*kit.request(), timeout=30))
    await sockets.serve_one(await sockets.accept())
    assert (await call).body == b"ok"
    # One that answers a request which it has read is an answer.
    trust_blindly(pool, clock)
    call = asyncio.ensure_future(pool.send(*kit.request(), timeout=30))
    await sockets.serve_one(sockets.accepted[-1], goodbye)
    sockets.accepted[-1].close()
    assert (await call).status == 408
    assert sockets.nobody_else()


async def test_waiting_for_proof_ends_with_its_patience(sockets: Any) -> None:
    client = socket.create_connection(sockets.listener.getsockname())
    server = await sockets.accept()
    before = acknowledged(client)
    server.shutdown(socket.SHUT_WR)
    client.send(b"unanswered")
    client.setblocking(False)
    remains = Remains(client, before)
    assert await remains.untouched(0.0) is False  # neither a reset nor an acknowledgement yet
    assert await remains.untouched(1.0) is False  # and no second chance: the socket has been let go
    assert client.fileno() == -1


async def test_a_caller_that_leaves_during_the_proof_leaves_nothing_behind(
    sockets: Any, make_pool: Any, kit: Any, clock: Any
) -> None:
    pool = make_pool(sockets.url, clock=clock)
    sock = await warm(pool, sockets, kit)
    sock.shutdown(socket.SHUT_WR)
    call = await crossing(pool, clock, kit.request())
    await kit.until(lambda: pool.stats.open == 0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0.01)
    sock.setblocking(True)
    sock.settimeout(30)
    while sock.recv(65536):
        pass  # its end arrives: no duplicate of the client's socket is left open


# -- resting for less time than the server lets it -------------------------------------------------------------------
async def test_an_announced_idle_limit_is_kept(serve: Any, make_pool: Any, kit: Any, clock: Any) -> None:
    upstream = await serve(kit.answering(kit.ok(b"ok", b"Keep-Alive: timeout=5, max=100")))
    pool = make_pool(upstream, clock=clock)
    await pool.send(*kit.request(), timeout=30)
    clock.ahead += 3.8
    await pool.send(*kit.request(), timeout=30)
    assert upstream.connections == 1
    clock.ahead += 4.1  # the server's limit less a margin
    for replayable in (False, True):
        await pool.send(*kit.request(), timeout=30, replayable=replayable)
        assert upstream.connections == 2


async def test_a_server_that_keeps_nothing_gets_new_connections(serve: Any, make_pool: Any, kit: Any) -> None:
    upstream = await serve(kit.answering(kit.ok(b"ok", b"Keep-Alive: timeout=0")))
    pool = make_pool(upstream, max_connections=1)
    await asyncio.gather(*[pool.send(*kit.request(), timeout=30) for _ in range(5)])
    assert (upstream.connections, pool.stats.open) == (5, 0)


async def test_with_an_unknown_limit_only_replayable_requests_use_a_long_rested_connection(
    serve: Any, make_pool: Any, kit: Any, clock: Any
) -> None:
    upstream = await serve(kit.answering(kit.ok()))
    pool = make_pool(upstream, clock=clock, idle_timeout=60)
    await pool.send(*kit.request(), timeout=30)
    clock.ahead += UNKNOWN_LIMIT + 1
    await pool.send(*kit.request(), timeout=30, replayable=True)
    assert upstream.connections == 1
    clock.ahead += UNKNOWN_LIMIT + 1
    await pool.send(*kit.request(), timeout=30)
    assert upstream.connections == 2


async def test_rested_connections_are_closed_by_the_clock(serve: Any, make_pool: Any, kit: Any) -> None:
    upstream = await serve(kit.answering(kit.ok()))
    pool = make_pool(upstream, idle_timeout=0.03)
    await asyncio.gather(*[pool.send(*kit.request(), timeout=30) for _ in range(4)])
    assert pool.stats.idle == 4
    await kit.until(lambda: pool.stats.open == 0 and upstream.open == 0)
    assert pool.stats.stale == 0


async def test_the_limit_of_a_server_that_says_nothing_is_learned(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        while True:
            try:
                async with asyncio.timeout(0.5):
                    if await peer.request() is None:
                        return
            except TimeoutError:
                return
            await peer.send(kit.ok())

    upstream = await serve(script)
    pool = make_pool(upstream)
    for _ in range(2):  # two connections die idle at the same age
        await pool.send(*kit.request(), timeout=30)
        await kit.until(lambda: pool.stats.open == 0)
    assert pool.stats.stale == 2
    await pool.send(*kit.request(), timeout=30)
    await kit.until(lambda: pool.stats.open == 0)  # this one by us, and earlier
    assert pool.stats.stale == 2


@pytest.mark.parametrize("announce", [False, True])
async def test_no_error_reaches_callers_of_a_server_that_closes_idle_connections_at_random(
    sockets: Any, make_pool: Any, kit: Any, announce: bool
) -> None:
    """POSTs, never replayable, against a server that closes after 0 to 4 ms of rest. An error is allowed only where
    bytes lay unread in the server's own socket when it closed; no request is processed twice."""
    chance = random.Random(7)
    processed: list[bytes] = []
    unavoidable = 0
    loop = asyncio.get_running_loop()
    answer = RESPONSE.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=1\r\n\r\n") if announce else RESPONSE

    async def serve(sock: socket.socket) -> None:
        nonlocal unavoidable
        first = True
        while True:
            closes_at = loop.time() + chance.random() * 0.004
            while not _readable(sock):
                if not first and loop.time() > closes_at:
                    unavoidable += _readable(sock)  # nothing comes between this look and the close
                    sock.close()
                    return
                await asyncio.sleep(0)
            got = sock.recv(65536)
            if not got:
                return
            first = False
            processed.append(got[got.index(b"\r\n\r\n") + 4 :])
            await loop.sock_sendall(sock, answer)

    async def accept() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(serve(await sockets.accept()))

    server = asyncio.ensure_future(accept())
    pool = make_pool(sockets.url, max_connections=8)
    numbers = iter(range(600))
    answered: list[bytes] = []
    broken: list[bytes] = []

    async def caller() -> None:
        for number in numbers:
            body = b"%06d" % number
            try:
                assert (await pool.send(*kit.request(body=body), timeout=30)).body == b"ok"
            except UpstreamBroken:
                broken.append(body)
            else:
                answered.append(body)
            await asyncio.sleep(chance.random() * 0.005)

    await asyncio.gather(*[caller() for _ in range(6)])
    server.cancel()
    await asyncio.gather(server, return_exceptions=True)
    stats = pool.stats
    assert stats.stale + stats.resent > 20, "the server closed nothing under our hands"
    assert len(answered) + len(broken) == 600
    assert len(broken) <= unavoidable
    assert len(set(processed)) == len(processed), "a request was processed twice"
    assert set(answered) <= set(processed)


def _readable(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True
