"""The upstream pool: our own keep-alive HTTP/1.1 connections, because they are where a proxied call's time goes.

Warm, `send` takes a connection that is ready, writes the request in one piece and suspends once, until the answer is
there. What it promises:

* A request that may have been processed is never sent again. It is sent again, on a new connection, only if it is
  proven that the server accepted nothing of it (pool_delivery), or once if the caller says that it is replayable.
* An idle connection that the server has closed, or is about to close, does not become the caller's error: connections
  rest for less time than the server lets them (pool_idle), are looked at before use, and see above.
* A connection whose caller has left, or whose answer was not framed to the byte, is cut and never used again.
* At most `max_connections` at a time; further calls wait in order of arrival, until their deadline.
* No redirect is followed, nothing is decompressed, and only addresses that were checked are connected to.

Parts: pool_origin (URL, TLS, heads), addresses (what may be contacted), pool_dial, pool_connection and
pool_framing (the wire), pool_answer (whole or streamed), pool_idle, pool_delivery.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from ..catalog.errors import (
    AddressRefused,
    BreakerOpen,
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
)
from ..policies.resilience import CircuitBreaker
from .addresses import Resolver, lookup
from .pool_answer import Answer
from .pool_connection import Connection, Lost, Receiver
from .pool_dial import Dialler
from .pool_framing import DEAD, IDLE
from .pool_idle import IdleLimit
from .pool_origin import Origin, build_head, tls_context
from .pool_stats import PoolStats

LOOK_AFTER: Final = 0.01
"""Seconds of rest after which a connection is looked at before use (0.6 us): more than a busy loop's turn takes. What
closes sooner is settled by proof."""
PROOF_PATIENCE: Final = 1.0
"""Seconds to wait for the proof that a request was not accepted: a few round trips."""
MAX_PROVEN: Final = 2
"""How often one request is sent again after proof."""
SWEEP_AT_MOST: Final = 0.005
FAILED_STATUSES: Final = frozenset({502, 503, 504})
"""Answers that a breaker counts as failures: what proxies say when the server behind them is away."""
NEVER: Final = float("inf")

__all__ = ["Answer", "Origin", "Pool", "PoolStats", "build_head", "tls_context"]


Begun = tuple[Connection, float, int]
"""A request under way: its connection, its deadline on the pool's clock, and the breaker's ticket."""


class Pool:
    """Connections to one origin, for one event loop."""

    def __init__(
        self, origin: Origin, *, max_connections: int = 100, connect_timeout: float = 5.0, idle_timeout: float = 30.0,
        max_head: int = 64 * 1024, stream_idle: float | None = None, resolver: Resolver = lookup,
        breaker: CircuitBreaker | None = None, failed_statuses: frozenset[int] = FAILED_STATUSES,
        allow_private: bool = False, verify_tls: bool = True, tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Times in seconds, sizes in bytes. `stream_idle`: the longest silence within a streamed answer, None for no
        limit. `tls` replaces the context that `verify_tls` chooses. Without a `breaker`, none interferes.
        Raises ValueError for less than one connection."""
        if max_connections < 1:
            raise ValueError("A pool needs at least one connection.")
        self.origin = origin
        self.clock = clock
        self.max_head = max_head
        self.stream_idle = stream_idle
        self._breaker = breaker or CircuitBreaker()
        self._counts = breaker is not None
        self._failed_statuses = failed_statuses
        self._connect_timeout = connect_timeout
        context = (tls or tls_context(verify_tls)) if origin.secure else None
        self._dialler = Dialler(
            origin, resolver=resolver, allow_private=allow_private, context=context, clock=clock
        )  # fmt: skip
        self._limits = IdleLimit(idle_timeout)
        self._loop: asyncio.AbstractEventLoop
        self._max = max_connections
        self._taken = 0  # places in use: connections, and those being made
        self._all: set[Connection] = set()
        self._idle: list[Connection] = []  # the freshest last
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._armed = NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._empty: asyncio.Future[None] | None = None
        self._created = self._reused = self._resent = self._stale = 0

    async def send(
        self, head: bytes, body: bytes = b"", *, timeout: float, stream: bool = False, replayable: bool = False
    ) -> Answer:
        """Send a request; `head` is what `build_head` makes, ending with its blank line.

        The answer comes whole if its length is declared and at most 64 KiB, or if all of it is there with its head;
        otherwise, and always for text/event-stream, it is to be streamed, as soon as its head is there. `stream` asks
        for that whatever its length. What is streamed must be read to its end or closed. `timeout`, in seconds, covers
        waiting for a connection, connecting, and the answer up to there. `replayable`: processing it twice is harmless.

        Raises UpstreamRefused, UpstreamBusy, BreakerOpen, AddressRefused (nothing was processed); UpstreamTimeout,
        UpstreamBroken, UpstreamProtocol (unknown). Cancelling it cuts the connection.
        """
        breaker = self._breaker
        ticket = breaker.ticket if breaker.calm else breaker.enter()
        now = self.clock()
        deadline = now + timeout
        idle = self._idle
        if idle and now - idle[-1].idle_since < LOOK_AFTER:
            conn: Connection | None = idle.pop()
        else:
            conn = self._take(now, replayable)
        future: asyncio.Future[Answer] | None = None
        try:
            if conn is None:
                conn = await self._acquire(deadline, replayable)
                now = self.clock()
            else:
                self._reused += 1
            if deadline < self._armed:
                self._arm(deadline, now)
            future = self._loop.create_future()
            conn.begin(future, head, body, now, deadline, stream)
            answer = await future
        except Lost as lost:
            answer = await self._resend(
                lost, head, body, deadline=deadline, stream=stream, replayable=replayable, ticket=ticket
            )
        except BaseException as error:
            self._settle(error, conn, future, ticket)
            raise
        if answer.status >= 500 or not breaker.calm:
            self._judge(answer, ticket)
        return answer

    # -- without waiting -----------------------------------------------------------------------------------------
    def start(self, receiver: Receiver, head: bytes, body: bytes, timeout: float) -> Begun | None:
        """`send` for a caller that is no coroutine: send at once on a connection that is ready, and tell `receiver`.
        None, and nothing was done, when that cannot be: then call `send`.

        An answer goes to `judged`, an error to `rescue`; a caller that leaves calls `leave`. One of the three, once.
        """
        breaker = self._breaker
        idle = self._idle
        if not idle or not breaker.calm:
            return None
        now = self.clock()
        conn = idle.pop() if now - idle[-1].idle_since < LOOK_AFTER else self._take(now, False)
        if conn is None:
            return None
        self._reused += 1
        deadline = now + timeout
        if deadline < self._armed:
            self._arm(deadline, now)
        conn.begin(receiver, head, body, now, deadline, False)
        return conn, deadline, breaker.ticket

    def judged(self, begun: Begun, answer: Answer) -> None:
        """What `start` began was answered."""
        if answer.status >= 500 or not self._breaker.calm:
            self._judge(answer, begun[2])

    async def rescue(self, begun: Begun, error: BaseException, head: bytes, body: bytes) -> Answer:
        """What `start` began came to an error: send it again if that is safe. Raises as `send`."""
        _, deadline, ticket = begun
        if not isinstance(error, Lost):
            self._settle(error, None, None, ticket)
            raise error
        answer = await self._resend(error, head, body, deadline=deadline, stream=False, replayable=False, ticket=ticket)
        self.judged(begun, answer)
        return answer

    def leave(self, begun: Begun, receiver: Receiver) -> None:
        """Nobody waits any more for what `start` began: cut its connection."""
        conn, _, ticket = begun
        if conn.carries(receiver):
            conn.kill()
        self._breaker.abandon(ticket)

    @property
    def stats(self) -> PoolStats:
        breaker = self._breaker
        return PoolStats(
            open=len(self._all), idle=len(self._idle), waiting=len(self._waiting), created=self._created,
            reused=self._reused, resent=self._resent, stale=self._stale, breaker=breaker.state,
            breaker_opened=breaker.opened,
        )  # fmt: skip

    async def close(self, grace: float = 5.0) -> None:
        """Take no more requests, let those under way finish for `grace` seconds, then cut them (UpstreamBroken)."""
        self._closing = True
        refusal = UpstreamRefused("The gateway is closing its connections to this upstream.")
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(refusal)
        for conn in self._idle[:]:
            conn.retire()
        if self._taken and grace > 0:
            self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._empty], timeout=grace)
        for conn in list(self._all):
            conn.fail(UpstreamBroken("The gateway stopped before the upstream answered; whether it acted is unknown."))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed = NEVER
        await asyncio.sleep(0)  # closed sockets are let go in the loop's next round

    # -- finding a connection ------------------------------------------------------------------------------------
    def _take(self, now: float, replayable: bool) -> Connection | None:
        """The freshest idle connection that can be trusted, or None."""
        idle = self._idle
        while idle:
            conn = idle.pop()
            age = now - conn.idle_since
            limits = self._limits
            if age > (limits.limit if replayable else limits.cautious):
                conn.retire()
                continue
            poll = conn.poll
            if poll is not None and not poll(0):
                return conn
            self._stale += 1
            limits.observe(age, now)
            conn.kill()
        return None

    async def _acquire(self, deadline: float, replayable: bool, fresh: bool = False) -> Connection:
        """A connection within the deadline; with `fresh` a new one if at all possible, ahead of those who wait."""
        while True:
            if self._closing:
                raise UpstreamRefused("The gateway is closing its connections to this upstream.")
            if not fresh:
                conn = self._take(self.clock(), replayable)
                if conn is not None:
                    return conn
            elif self._idle and self._taken >= self._max:
                self._idle[0].retire()
            if self._taken < self._max:
                self._taken += 1
                return await self._connect(deadline)
            got = await self._wait(deadline, fresh)
            if got is None:
                return await self._connect(deadline)
            if got.state == IDLE:
                self._reused += 1
                return got

    async def _connect(self, deadline: float) -> Connection:
        """A new connection in a place that the caller has taken; the place is given back if there is none."""
        try:
            self._loop = asyncio.get_running_loop()
            seconds = min(self._connect_timeout, deadline - self.clock())
            conn = await self._dialler.dial(self, max(seconds, 0.0))
            if conn.state == DEAD or self._closing:
                conn.kill()
                raise UpstreamRefused("The connection was closed before it was used.")
        except BaseException:
            self._place_free()
            raise
        self._all.add(conn)
        self._created += 1
        return conn

    async def _wait(self, deadline: float, first: bool) -> Connection | None:
        """Wait for a connection, or (None) for a place to make one. Raises UpstreamBusy at the deadline."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Connection | None] = loop.create_future()
        if first:
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        timer = loop.call_later(max(0.0, deadline - self.clock()), _too_late, waiter)
        try:
            return await waiter
        except BaseException:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_back(waiter.result())  # cancelled in the moment of being served
            raise
        finally:
            timer.cancel()

    def _give_back(self, got: Connection | None) -> None:
        if got is None:
            self._place_free()
        elif got.state == IDLE:
            self.released(got, self.clock())

    def _place_free(self) -> None:
        """Somebody who waits gets the place, else it is free."""
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(None)
            return
        self._taken -= 1
        if not self._taken and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def _next_waiter(self) -> asyncio.Future[Connection | None] | None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    # -- when it did not go well ---------------------------------------------------------------------------------
    async def _resend(
        self, lost: Lost, head: bytes, body: bytes, *, deadline: float, stream: bool, replayable: bool, ticket: int
    ) -> Answer:
        """The connection closed without a byte of an answer: send again if that is safe, else say what is known."""
        conn: Connection | None = None
        future: asyncio.Future[Answer] | None = None
        spare = replayable
        try:
            for _ in range(MAX_PROVEN):
                replay = spare and lost.reused
                if replay:
                    spare = False
                    lost.remains.close()
                elif not await lost.remains.untouched(min(PROOF_PATIENCE, deadline - self.clock())):
                    if lost.answer is not None:
                        return lost.answer
                    raise UpstreamBroken(
                        "The upstream closed the connection without an answer; whether it acted is unknown."
                    )
                elif not lost.reused:
                    raise UpstreamRefused("The upstream closed the connection before it accepted the request.")
                conn = await self._acquire(deadline, replayable, fresh=True)
                self._resent += 1
                now = self.clock()
                if deadline < self._armed:
                    self._arm(deadline, now)
                future = self._loop.create_future()
                conn.begin(future, head, body, now, deadline, stream)
                try:
                    return await future
                except Lost as again:
                    lost = again
            lost.remains.close()
            raise UpstreamBroken("The upstream closes its connections without an answer; whether it acted is unknown.")
        except BaseException as error:
            self._settle(error, conn, future, ticket)
            raise

    def _settle(
        self, error: BaseException, conn: Connection | None, future: asyncio.Future[Answer] | None, ticket: int
    ) -> None:
        """After a failure: leave no connection dirty, and tell the breaker what it should know."""
        if conn is not None and future is not None:
            if conn.carries(future):
                conn.kill()
            elif future.done() and not future.cancelled():
                _drop_outcome(future)  # it arrived in the moment in which its caller left
        breaker = self._breaker
        if isinstance(error, UpstreamError) and not isinstance(error, (AddressRefused, BreakerOpen, UpstreamBusy)):
            if self._counts and not self._closing:
                breaker.failure(ticket)
        else:
            breaker.abandon(ticket)

    def _judge(self, answer: Answer, ticket: int) -> None:
        if answer.status in self._failed_statuses:
            if self._counts:
                self._breaker.failure(ticket)
        else:
            self._breaker.success(ticket)

    # -- from connections ----------------------------------------------------------------------------------------
    def released(self, conn: Connection, now: float) -> None:
        limit = self._limits.limit
        if self._closing or not limit:
            conn.retire()
            return
        if self._waiting:
            waiter = self._next_waiter()
            if waiter is not None:
                waiter.set_result(conn)
                return
        self._idle.append(conn)
        expires = now + limit
        if expires < self._armed:
            self._arm(expires, now)

    def gone(self, conn: Connection) -> None:
        if conn in self._idle:
            self._idle.remove(conn)
        if conn in self._all:
            self._all.remove(conn)
            self._place_free()

    def closed_idle(self, conn: Connection) -> None:
        now = self.clock()
        self._stale += 1
        if conn.reused:
            self._limits.observe(now - conn.idle_since, now)

    def announced(self, seconds: float) -> None:
        self._limits.announce(seconds)

    def began_stream(self, conn: Connection) -> None:
        if self.stream_idle is not None and conn.touched + self.stream_idle < self._armed:
            self._arm(conn.touched + self.stream_idle, conn.touched)

    def broke_off(self) -> None:
        if self._counts and not self._closing:
            self._breaker.failure(self._breaker.ticket)

    # -- time ----------------------------------------------------------------------------------------------------
    def _arm(self, at: float, now: float) -> None:
        """One timer serves all deadlines: it is set to the earliest, and moved only when an earlier one comes."""
        if self._timer is not None:
            self._timer.cancel()
        self._armed = at
        self._timer = asyncio.get_running_loop().call_later(max(SWEEP_AT_MOST, at - now), self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        self._armed = NEVER
        now = self.clock()
        self._limits.refresh(now)
        limit = self._limits.limit
        earliest = NEVER
        for conn in list(self._all):
            due = conn.due(now, limit)
            if due <= now:
                conn.expire()
            elif due < earliest:
                earliest = due
        if earliest < self._armed:  # an expired call may have made way for a waiting one, which set the timer
            self._arm(earliest, now)


def _too_late(waiter: asyncio.Future[Connection | None]) -> None:
    if not waiter.done():
        waiter.set_exception(UpstreamBusy())


def _drop_outcome(future: asyncio.Future[Answer]) -> None:
    """Close an answer, or the remains of a connection, that nobody will look at."""
    error = future.exception()
    if error is None:
        future.result().close()
    elif isinstance(error, Lost):
        error.remains.close()
