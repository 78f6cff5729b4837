"""Deadlines, the number of connections, callers that leave, the breaker, and the end."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
from typing import Any

import pytest

from agenticmail_enterprise.catalog.errors import (
    AddressRefused,
    BreakerOpen,
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamProtocol,
    UpstreamRefused,
    UpstreamTimeout,
)
from agenticmail_enterprise.gateway.pool import Origin, Pool
from agenticmail_enterprise.gateway.pool_connection import Connection
from agenticmail_enterprise.policies.resilience import CircuitBreaker


async def hold(peer: Any) -> None:
    """Read requests and never answer."""
    while await peer.request() is not None:
        pass


# -- deadlines -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "sent",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhal", b"HTTP/1.1 100 Continue\r\n\r\n"],
)
async def test_an_answer_that_does_not_come_is_a_timeout_and_its_connection_is_cut(
    serve: Any, make_pool: Any, kit: Any, sent: bytes
) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.send(sent)
        await peer.request()

    upstream = await serve(script)
    pool = make_pool(upstream)
    with pytest.raises(UpstreamTimeout):
        await pool.send(*kit.request(), timeout=0.05, replayable=True)
    assert (pool.stats.open, upstream.connections) == (0, 1)
    await kit.until(lambda: upstream.open == 0)


async def test_each_call_has_its_own_deadline(serve: Any, make_pool: Any, kit: Any) -> None:
    pool = make_pool(await serve(hold))
    loop = asyncio.get_running_loop()
    ended: list[float] = []

    async def call(seconds: float) -> None:
        with pytest.raises(UpstreamTimeout):
            await pool.send(*kit.request(), timeout=seconds)
        ended.append(seconds)

    started = loop.time()
    late = asyncio.ensure_future(call(60))
    await asyncio.gather(call(0.3), call(0.05), call(0.15))  # the earliest is not the first
    assert sorted(ended) == [0.05, 0.15, 0.3]
    assert loop.time() - started >= 0.29
    assert not late.done()
    late.cancel()


async def test_a_deadline_set_long_ago_does_not_hit_a_later_call(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        while (got := await peer.request()) is not None:
            if got.endswith(b"2"):
                await past.wait()
            await peer.send(kit.ok())

    past = asyncio.Event()
    pool = make_pool(await serve(script))
    await pool.send(*kit.request(body=b"1"), timeout=1.0)
    asyncio.get_running_loop().call_later(1.1, past.set)
    assert (await pool.send(*kit.request(body=b"2"), timeout=30)).body == b"ok"


async def test_nobody_listens(make_pool: Any, kit: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pool = make_pool(f"http://127.0.0.1:{port}/")
    with pytest.raises(UpstreamRefused) as refusal:
        await pool.send(*kit.request(), timeout=30)
    assert refusal.value.unsent
    assert pool.stats.open == 0


async def test_a_connection_that_is_not_accepted_in_time(make_pool: Any, kit: Any) -> None:
    with socket.socket() as full:  # its backlog is full: further connections hang
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        pool = make_pool(f"http://127.0.0.1:{full.getsockname()[1]}/", connect_timeout=0.05)
        with pytest.raises(UpstreamRefused, match=r"did not accept a connection within 0\.05 s"):
            await pool.send(*kit.request(), timeout=30)
        with pytest.raises(UpstreamRefused, match=r"did not accept a connection within 0\.0"):
            await pool.send(*kit.request(), timeout=0.02)
        for filler in fillers:
            filler.close()
    assert pool.stats.open == 0


async def test_the_next_address_is_tried_when_one_does_not_answer(serve: Any, make_pool: Any, kit: Any) -> None:
    upstream = await serve(kit.answering(kit.ok()))
    asked = []

    async def resolver(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.9", "::1", "127.0.0.1"]

    pool = make_pool(f"http://server.test:{upstream.port}/mcp", resolver=resolver)
    assert (await pool.send(*kit.request(), timeout=30)).body == b"ok"
    assert asked == [("server.test", upstream.port)]


@pytest.mark.parametrize(
    "addresses", [["169.254.169.254"], ["127.0.0.1", "169.254.169.254"], ["::ffff:169.254.169.254"]]
)
async def test_what_a_name_resolves_to_is_judged_at_each_connection(
    serve: Any, make_pool: Any, kit: Any, addresses: list[str]
) -> None:
    """A name that is harmless when it is registered and leads to a metadata service later (DNS rebinding)."""
    upstream = await serve(kit.answering(kit.ok(b"ok", b"Connection: close")))
    answers = [["127.0.0.1"], addresses]

    async def resolver(host: str, port: int) -> list[str]:
        return answers.pop(0)

    ahead = [0.0]
    pool = make_pool(
        f"http://rebind.test:{upstream.port}/", resolver=resolver,
        clock=lambda: asyncio.get_running_loop().time() + ahead[0],
    )  # fmt: skip
    await pool.send(*kit.request(), timeout=30)
    ahead[0] = 60.0
    with pytest.raises(AddressRefused):
        await pool.send(*kit.request(), timeout=30)
    assert upstream.connections == 1


async def test_private_addresses_need_permission(serve: Any, kit: Any) -> None:
    upstream = await serve(kit.answering(kit.ok()))
    breaker = CircuitBreaker(1)
    pool = Pool(Origin.parse(upstream.url), breaker=breaker)
    with pytest.raises(AddressRefused):
        await pool.send(*kit.request(), timeout=30)
    assert upstream.connections == 0
    assert breaker.state == "closed"  # nothing was learned about the upstream
    await pool.close(0)


# -- the number of connections ---------------------------------------------------------------------------------------
async def test_no_more_than_so_many_connections_and_calls_wait_in_order(serve: Any, make_pool: Any, kit: Any) -> None:
    order: list[bytes] = []
    most = 0

    async def script(peer: Any) -> None:
        nonlocal most
        while (got := await peer.request()) is not None:
            most = max(most, upstream.open)
            order.append(got[-2:])
            await asyncio.sleep(0.002)
            await peer.send(kit.ok())

    upstream = await serve(script)
    pool = make_pool(upstream, max_connections=1)
    calls = [asyncio.ensure_future(pool.send(*kit.request(body=b"%02d" % n), timeout=30)) for n in range(12)]
    await asyncio.sleep(0)
    assert pool.stats.waiting == 11
    await asyncio.gather(*calls)
    assert order == [b"%02d" % n for n in range(12)]
    assert (most, upstream.connections, pool.stats.waiting) == (1, 1, 0)


async def test_who_waits_too_long_is_told_that_nothing_was_sent(serve: Any, make_pool: Any, kit: Any) -> None:
    upstream = await serve(hold)
    pool = make_pool(upstream, max_connections=1)
    first = asyncio.ensure_future(pool.send(*kit.request(), timeout=30))
    await kit.until(lambda: upstream.open == 1)
    with pytest.raises(UpstreamBusy) as busy:
        await pool.send(*kit.request(), timeout=0.03)
    assert busy.value.unsent
    assert pool.stats.waiting == 0
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_a_failed_connection_makes_way_for_the_next_in_line(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.send(b"nonsense" if peer.number % 2 else kit.ok(b"ok", b"Connection: close"))

    pool = make_pool(await serve(script), max_connections=2)
    outcomes = await asyncio.gather(*[pool.send(*kit.request(), timeout=30) for _ in range(20)], return_exceptions=True)
    assert sum(isinstance(outcome, UpstreamProtocol) for outcome in outcomes) == 10
    assert sum(getattr(outcome, "body", None) == b"ok" for outcome in outcomes) == 10
    assert pool._taken == 0


async def test_refused_connections_do_not_use_up_places(make_pool: Any, kit: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pool = make_pool(f"http://127.0.0.1:{port}/", max_connections=2)
    outcomes = await asyncio.gather(*[pool.send(*kit.request(), timeout=30) for _ in range(10)], return_exceptions=True)
    assert all(type(outcome) is UpstreamRefused for outcome in outcomes)
    assert pool._taken == 0


def test_a_pool_without_connections_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Pool(Origin.parse("http://x.test/"), max_connections=0)


# -- callers that leave ----------------------------------------------------------------------------------------------
async def test_a_caller_that_leaves_takes_its_connection_along(serve: Any, make_pool: Any, kit: Any) -> None:
    """What the server still answers must not reach the next caller."""

    async def script(peer: Any) -> None:
        while (got := await peer.request()) is not None:
            await asyncio.sleep(0.01)
            await peer.send(kit.ok(got[-2:]))

    upstream = await serve(script)
    pool = make_pool(upstream, max_connections=1)
    left = asyncio.ensure_future(pool.send(*kit.request(body=b"01"), timeout=30))
    await kit.until(lambda: upstream.open == 1)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert pool.stats.open == 0
    assert (await pool.send(*kit.request(body=b"02"), timeout=30)).body == b"02"


async def test_callers_that_leave_at_any_moment_leave_nothing(serve: Any, make_pool: Any, kit: Any) -> None:
    """Waiting, connecting, sending, in the moment of the answer: whoever stays gets its own answer."""

    async def script(peer: Any) -> None:
        while (got := await peer.request()) is not None:
            body = got.rpartition(b"\r\n\r\n")[2]
            await peer.send(kit.ok(body) if body[0] % 2 else kit.ok(body, b"Content-Type: text/event-stream"))

    chance = random.Random(3)
    pool = make_pool(await serve(script), max_connections=4)

    async def call(number: int) -> None:
        body = b"%d-%d" % (number % 10, number)
        answer = await pool.send(*kit.request(body=body), timeout=30)
        assert await answer.read(100) == body

    tasks = []
    for number in range(400):
        task = asyncio.ensure_future(call(number))
        if chance.random() < 0.5:
            asyncio.get_running_loop().call_later(chance.random() * 0.01, task.cancel)
        tasks.append(task)
        if number % 10 == 0:
            await asyncio.sleep(chance.random() * 0.005)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert outcomes.count(None) >= 150
    assert pool.stats.waiting == 0
    assert pool._taken == pool.stats.open == pool.stats.idle
    assert all(conn.state == 3 for conn in pool._idle)


async def test_who_leaves_in_the_moment_of_being_served_passes_it_on(serve: Any, make_pool: Any, kit: Any) -> None:
    release = asyncio.Event()

    async def script(peer: Any) -> None:
        while await peer.request() is not None:
            await release.wait()
            await peer.send(kit.ok())

    pool = make_pool(await serve(script), max_connections=1)
    first = asyncio.ensure_future(pool.send(*kit.request(), timeout=30))
    await asyncio.sleep(0.01)
    second = asyncio.ensure_future(pool.send(*kit.request(), timeout=30))
    third = asyncio.ensure_future(pool.send(*kit.request(), timeout=30))
    await asyncio.sleep(0)
    first.add_done_callback(lambda _: second.cancel())
    release.set()
    await first
    assert (await asyncio.wait_for(third, 30)).body == b"ok"
    await asyncio.gather(second, return_exceptions=True)
    assert pool._taken == 1


# -- the breaker -----------------------------------------------------------------------------------------------------
async def test_failures_in_a_row_open_the_breaker_and_a_probe_closes_it(
    serve: Any, make_pool: Any, kit: Any, clock: Any
) -> None:
    sick = True

    async def script(peer: Any) -> None:
        while await peer.request() is not None:
            await peer.send(b"nonsense" if sick else kit.ok())

    upstream = await serve(script)
    pool = make_pool(upstream, breaker=CircuitBreaker(3, 10.0, clock=clock), clock=clock)
    for _ in range(3):
        with pytest.raises(UpstreamProtocol):
            await pool.send(*kit.request(), timeout=30)
    with pytest.raises(BreakerOpen) as resting:
        await pool.send(*kit.request(), timeout=30)
    assert 9 < resting.value.details["retry_after"] <= 10
    assert resting.value.unsent
    assert (upstream.connections, pool.stats.breaker, pool.stats.breaker_opened) == (3, "open", 1)
    clock.ahead += 10
    with pytest.raises(UpstreamProtocol):  # the probe
        await pool.send(*kit.request(), timeout=30)
    with pytest.raises(BreakerOpen):
        await pool.send(*kit.request(), timeout=30)
    sick = False
    clock.ahead += 10
    outcomes = await asyncio.gather(*[pool.send(*kit.request(), timeout=30) for _ in range(5)], return_exceptions=True)
    assert sum(isinstance(outcome, BreakerOpen) for outcome in outcomes) == 4  # one probe at a time
    assert pool.stats.breaker == "closed"
    assert (await pool.send(*kit.request(), timeout=30)).body == b"ok"


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (b"502 Bad", "open"),
        (b"503 No", "open"),
        (b"504 Late", "open"),
        (b"500 Oops", "closed"),
        (b"429 Slow", "closed"),
        (b"404 No", "closed"),
    ],
)
async def test_which_answers_count_as_failures(serve: Any, make_pool: Any, kit: Any, status: bytes, state: str) -> None:
    pool = make_pool(await serve(kit.answering(kit.ok(b"x", status=status))), breaker=CircuitBreaker(2))
    for _ in range(2):
        assert (await pool.send(*kit.request(), timeout=30)).body == b"x"
    assert pool.stats.breaker == state


async def test_a_good_answer_starts_the_count_anew(serve: Any, make_pool: Any, kit: Any) -> None:
    bad = kit.ok(b"x", status=b"503 No")
    pool = make_pool(await serve(kit.answering(bad, kit.ok(), bad, kit.ok(), bad, kit.ok())), breaker=CircuitBreaker(2))
    for _ in range(6):
        await pool.send(*kit.request(), timeout=30)
    assert pool.stats.breaker == "closed"


async def test_refusals_timeouts_and_breaks_count_and_leaving_does_not(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        if peer.number == 1:
            await peer.send(b"HTTP/1.1 2")
        else:
            await peer.request()

    upstream = await serve(script)
    pool = make_pool(upstream, breaker=CircuitBreaker(3))
    with pytest.raises(UpstreamBroken):
        await pool.send(*kit.request(), timeout=30)
    for _ in range(3):
        call = asyncio.ensure_future(pool.send(*kit.request(), timeout=30))
        await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    with pytest.raises(UpstreamTimeout):
        await pool.send(*kit.request(), timeout=0.02)
    assert pool.stats.breaker == "closed"
    await upstream.stop()
    with pytest.raises(UpstreamRefused):
        await pool.send(*kit.request(), timeout=30)
    assert pool.stats.breaker == "open"


async def test_a_probe_whose_caller_leaves_gives_its_place_back(
    serve: Any, make_pool: Any, kit: Any, clock: Any
) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        if peer.number == 2:
            await peer.request()
        await peer.send(b"nonsense" if peer.number == 1 else kit.ok())

    upstream = await serve(script)
    pool = make_pool(upstream, breaker=CircuitBreaker(1, 5.0, clock=clock))
    with pytest.raises(UpstreamProtocol):
        await pool.send(*kit.request(), timeout=30)
    clock.ahead += 5
    probe = asyncio.ensure_future(pool.send(*kit.request(), timeout=30))
    await kit.until(lambda: upstream.connections == 2)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    assert (await pool.send(*kit.request(), timeout=30)).body == b"ok"


# -- the end ---------------------------------------------------------------------------------------------------------
async def test_closing_lets_calls_finish_within_the_grace(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        while (got := await peer.request()) is not None:
            await (closing if got.endswith(b"1") else asyncio.Event()).wait()
            await peer.send(kit.ok())

    closing = asyncio.Event()
    upstream = await serve(script)
    pool = make_pool(upstream, max_connections=2)
    short = asyncio.ensure_future(pool.send(*kit.request(body=b"1"), timeout=60))
    long = asyncio.ensure_future(pool.send(*kit.request(body=b"2"), timeout=60))
    waiting = asyncio.ensure_future(pool.send(*kit.request(body=b"3"), timeout=60))
    await kit.until(lambda: upstream.open == 2)
    asyncio.get_running_loop().call_soon(closing.set)
    await pool.close(grace=2.0)
    assert (await short).body == b"ok"
    with pytest.raises(UpstreamBroken):
        await long
    with pytest.raises(UpstreamRefused):
        await waiting
    with pytest.raises(UpstreamRefused):
        await pool.send(*kit.request(), timeout=30)
    assert (pool.stats.open, pool._taken, pool._timer) == (0, 0, None)


async def test_closing_an_idle_pool_takes_no_time(serve: Any, make_pool: Any, kit: Any) -> None:
    upstream = await serve(kit.answering(kit.ok()))
    pool = make_pool(upstream)
    await pool.send(*kit.request(), timeout=30)
    await asyncio.wait_for(pool.close(grace=60), 30)
    await kit.until(lambda: upstream.open == 0)


async def test_ten_thousand_calls_at_64_callers_leak_nothing(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        count = 0
        while (got := await peer.request()) is not None:
            count += 1
            if count % 501 == 500:
                peer.writer.write(kit.ok(got[-4:], b"Connection: close"))
                return
            peer.writer.write(kit.ok(got[-4:]))

    upstream = await serve(script)
    pool = make_pool(upstream, max_connections=24)
    numbers = iter(range(10_000))
    errors: list[UpstreamError] = []

    async def caller() -> None:
        for number in numbers:
            body = b"%04d" % number
            try:
                assert (await pool.send(*kit.request(body=body), timeout=30)).body == body
            except UpstreamError as error:
                errors.append(error)

    await pool.send(*kit.request(body=b"0000"), timeout=30)
    before = len(os.listdir("/proc/self/fd"))
    await asyncio.gather(*[caller() for _ in range(64)])
    assert errors == []
    assert pool.stats.open <= 24
    await pool.close(0)
    await kit.until(lambda: upstream.open == 0)
    await kit.until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    gc.collect()
    assert not any(isinstance(thing, Connection) for thing in gc.get_objects())
