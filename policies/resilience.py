"""When to stop trying, and when to try again: small state machines with an injected clock, and no I/O of their own.

* `CircuitBreaker`: after some failures in a row an upstream is left alone for a while, then probed by one call.
* `RateLimiter`: a token bucket. `KeyedRateLimiter`: one bucket per key, in bounded memory.
* `HealthMonitor`: is it well? Asked at intervals, answered by more than one sample.
* `with_retry`: tries again only what cannot have happened yet, unless told otherwise.

None of them is for use from several threads. Clocks return seconds and never go back (time.monotonic).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeVar

from ..catalog.errors import BreakerOpen, EnterpriseError

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]
BreakerState = Literal["closed", "open", "half_open"]
Health = Literal["unknown", "healthy", "unhealthy"]
T = TypeVar("T")


class CircuitBreaker:
    """Closed: calls pass, failures in a row are counted. Open: calls are refused for `rest` seconds. Half open: one
    call at a time passes as a probe; `recoveries` good ones in a row close it, one bad one opens it again.

    Each call takes a ticket from `enter` and hands it back to exactly one of `success`, `failure`, `abandon`. A ticket
    from before a change of state changes nothing: a slow call that fails late cannot reopen what has recovered since.
    `calm` is True while it is closed and the last call went well: then nothing needs to be reported but failures.
    """

    __slots__ = ("_clock", "_failures", "_good", "_limit", "_opened", "_probing", "_recoveries", "_rest", "_state",
                 "calm", "on_change", "opened", "ticket")  # fmt: skip

    def __init__(
        self, failures: int = 5, rest: float = 30.0, *, recoveries: int = 1, clock: Clock = time.monotonic,
        on_change: Callable[[BreakerState], None] | None = None,
    ) -> None:  # fmt: skip
        """`failures` in a row open it (at least 1); `rest` in seconds, above 0. Raises ValueError."""
        if failures < 1 or rest <= 0 or recoveries < 1:
            raise ValueError("A breaker needs at least one failure, a rest above zero and at least one recovery.")
        self._limit = failures
        self._rest = rest
        self._recoveries = recoveries
        self._clock = clock
        self._state: BreakerState = "closed"
        self._failures = 0
        self._good = 0
        self._opened = 0.0
        self._probing: float | None = None
        self.calm = True
        self.ticket = 0
        self.opened = 0
        self.on_change = on_change

    @property
    def state(self) -> BreakerState:
        """`open` until the first call after the rest, which makes it `half_open`."""
        return self._state

    @property
    def retry_after(self) -> float:
        """Seconds until a call may be tried; 0.0 when one may be tried now."""
        if self._state == "closed":
            return 0.0
        since = self._opened if self._state == "open" else self._probing
        return 0.0 if since is None else max(0.0, since + self._rest - self._clock())

    def enter(self) -> int:
        """A ticket for one call. Raises BreakerOpen, with `retry_after` in seconds among its details."""
        if self._state == "closed":
            return self.ticket
        now = self._clock()
        if self._state == "open" and now >= self._opened + self._rest:
            self._change("half_open")
        # A probe that nobody reported on (its task was destroyed) must not keep the breaker half open for ever.
        free = self._probing is None or now >= self._probing + self._rest
        if self._state == "half_open" and free:
            self._probing = now
            return self.ticket
        raise BreakerOpen(None, retry_after=round(self.retry_after, 3), state=self._state)

    def success(self, ticket: int) -> None:
        """The call went well."""
        if ticket != self.ticket:
            return
        if self._state == "half_open":
            self._probing = None
            self._good += 1
            if self._good >= self._recoveries:
                self._change("closed")
        elif self._state == "closed":
            self._failures = 0
            self.calm = True

    def failure(self, ticket: int) -> None:
        """The call failed in a way that tells against the upstream."""
        if ticket != self.ticket:
            return
        self.calm = False
        self._failures += 1
        if self._state == "half_open" or (self._state == "closed" and self._failures >= self._limit):
            self._opened = self._clock()
            self.opened += 1
            self._change("open")

    def abandon(self, ticket: int) -> None:
        """The call ended without telling anything (its caller left): a probe's place is free again."""
        if ticket == self.ticket:
            self._probing = None

    def reset(self) -> None:
        """Closed and calm, whatever was."""
        self._change("closed")

    async def run(self, call: Callable[[], Awaitable[T]], *, counts: Callable[[Exception], bool] | None = None) -> T:
        """Await `call()` under the breaker. An exception counts as a failure unless `counts` says it does not.

        Raises BreakerOpen, and whatever `call` raises.
        """
        ticket = self.enter()
        try:
            result = await call()
        except Exception as error:
            if counts is None or counts(error):
                self.failure(ticket)
            else:
                self.abandon(ticket)
            raise
        except BaseException:
            self.abandon(ticket)
            raise
        self.success(ticket)
        return result

    def _change(self, state: BreakerState) -> None:
        changed = state != self._state
        self._state = state
        self.ticket += 1
        self._probing = None
        self._good = 0
        if state == "closed":
            self._failures = 0
            self.calm = True
        if changed and self.on_change is not None:
            self.on_change(state)


class RateLimiter:
    """A token bucket: `rate` tokens a second, at most `burst` at once. It starts full.

    In any stretch of t seconds at most `burst + rate * t` tokens are taken.
    """

    __slots__ = ("_at", "_clock", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, *, clock: Clock = time.monotonic) -> None:
        """Raises ValueError unless both are above zero."""
        if not (rate > 0 and burst > 0):
            raise ValueError("A rate limiter needs a rate and a burst above zero.")
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._tokens = burst
        self._at = clock()

    @property
    def tokens(self) -> float:
        """What could be taken now."""
        now = self._clock()
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
            self._at = now
        return self._tokens

    @property
    def full(self) -> bool:
        """True when the bucket remembers nothing: dropping it and making a new one changes nothing."""
        return self.tokens >= self.burst

    def take(self, count: float = 1.0) -> bool:
        """Take `count` tokens, or none and False. Raises ValueError for a negative count."""
        if count < 0:
            raise ValueError("Tokens cannot be given back.")
        if self.tokens < count:
            return False
        self._tokens -= count
        return True

    def retry_after(self, count: float = 1.0) -> float:
        """Seconds until `count` tokens are there; 0.0 when they are, infinity when they never will be."""
        if count > self.burst:
            return float("inf")
        return max(0.0, (count - self.tokens) / self.rate)


class KeyedRateLimiter:
    """One bucket per key, for at most `max_keys` keys at a time.

    Full buckets are forgotten, which changes nothing. When all are in use, further keys share one bucket: memory stays
    bounded, and inventing keys never buys anybody more tokens.
    """

    __slots__ = ("_buckets", "_burst", "_clock", "_max_keys", "_next_sweep", "_rate", "_shared")

    def __init__(self, rate: float, burst: float, *, max_keys: int = 10_000, clock: Clock = time.monotonic) -> None:
        if max_keys < 1:
            raise ValueError("A keyed rate limiter needs room for at least one key.")
        self._rate = rate
        self._burst = burst
        self._max_keys = max_keys
        self._clock = clock
        self._buckets: dict[str, RateLimiter] = {}
        self._shared = RateLimiter(rate, burst, clock=clock)
        self._next_sweep = 0.0

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, count: float = 1.0) -> bool:
        """Take `count` tokens from the key's bucket, or none and False."""
        return self._bucket(key).take(count)

    def retry_after(self, key: str, count: float = 1.0) -> float:
        """Seconds until the key's bucket has `count` tokens."""
        return self._bucket(key).retry_after(count)

    def tokens(self, key: str) -> float:
        """What the key's bucket holds now."""
        return self._bucket(key).tokens

    def forget(self, key: str) -> None:
        """The key's bucket is full again."""
        self._buckets.pop(key, None)

    def _bucket(self, key: str) -> RateLimiter:
        bucket = self._buckets.get(key)
        if bucket is not None:
            return bucket
        if len(self._buckets) >= self._max_keys and not self._sweep():
            return self._shared
        bucket = self._buckets[key] = RateLimiter(self._rate, self._burst, clock=self._clock)
        return bucket

    def _sweep(self) -> bool:
        """Forget full buckets; at most once in the time that one token takes, so that strangers cost no scans."""
        now = self._clock()
        if now < self._next_sweep:
            return False
        self._next_sweep = now + 1.0 / self._rate
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if not bucket.full}
        return len(self._buckets) < self._max_keys


class HealthMonitor:
    """Asks `check` at intervals whether something is well.

    `unhealthy_after` failures in a row make it unhealthy, `healthy_after` successes in a row healthy again; the first
    answer of all decides at once. A check fails by returning False, raising, or taking longer than `timeout` seconds.
    """

    def __init__(
        self, check: Callable[[], Awaitable[bool | None]], *, interval: float = 30.0, timeout: float = 5.0,
        unhealthy_after: int = 3, healthy_after: int = 2, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep,
        on_change: Callable[[Health], None] | None = None,
    ) -> None:  # fmt: skip
        """Raises ValueError for thresholds below 1 or times that are not above zero."""
        if unhealthy_after < 1 or healthy_after < 1 or interval <= 0 or timeout <= 0:
            raise ValueError("A health monitor needs thresholds of at least one, and times above zero.")
        self._check = check
        self._interval = interval
        self._timeout = timeout
        self._needed = {"healthy": healthy_after, "unhealthy": unhealthy_after}
        self._clock = clock
        self._sleep = sleep
        self._on_change = on_change
        self._streak = 0
        self._last: Health = "unknown"
        self.status: Health = "unknown"
        self.checks = 0
        self.checked_at: float | None = None
        self.last_error = ""

    @property
    def healthy(self) -> bool:
        """False also while nothing is known."""
        return self.status == "healthy"

    def report(self, well: bool, error: str = "") -> Health:
        """Count one sample, from whatever source, and return the status after it."""
        sample: Health = "healthy" if well else "unhealthy"
        self._streak = self._streak + 1 if sample == self._last else 1
        self._last = sample
        self.checks += 1
        self.checked_at = self._clock()
        self.last_error = "" if well else error
        if sample != self.status and (self.status == "unknown" or self._streak >= self._needed[sample]):
            self.status = sample
            if self._on_change is not None:
                self._on_change(sample)
        return self.status

    async def probe(self) -> Health:
        """Ask once, now."""
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._check()
        except TimeoutError:
            return self.report(False, f"no answer within {self._timeout:g} s")
        except Exception as error:  # noqa: BLE001 - a check that raises is a failed check, and says why
            return self.report(False, f"{type(error).__name__}: {error}")
        return self.report(answer is not False, "the check said no")

    async def run(self) -> None:
        """Ask for ever. Ends by cancellation."""
        while True:
            await self.probe()
            await self._sleep(self._interval)


def unsent(error: Exception) -> bool:
    """The default of `with_retry`: True when not one byte of the request can have been processed."""
    return bool(getattr(error, "unsent", False))


MAX_EXPONENT: Final = 62


async def with_retry(
    call: Callable[[], Awaitable[T]], *, attempts: int = 3, base: float = 0.1, cap: float = 5.0,
    retry_on: Callable[[Exception], bool] = unsent, on_retry: Callable[[int, float, Exception], None] | None = None,
    sleep: Sleep = asyncio.sleep, random: Callable[[], float] = random.random,
) -> T:  # fmt: skip
    """Await `call()`, up to `attempts` times in all, while `retry_on` says of its exception that trying again is safe.

    Before attempt n it waits between half and all of `min(cap, base * 2 ** (n - 2))` seconds, and never less than the
    `retry_after` that an error of ours carries; an error that asks for more than `cap` is raised at once.
    Raises what the last attempt raised; ValueError for less than one attempt.
    """
    if attempts < 1:
        raise ValueError("At least one attempt is needed.")
    attempt = 1
    while True:
        try:
            return await call()
        except Exception as error:
            asked = _asked(error)
            if attempt >= attempts or asked > cap or not retry_on(error):
                raise
            full = min(cap, base * 2 ** min(attempt - 1, MAX_EXPONENT))
            delay = max(asked, full * (0.5 + random() / 2))
            if on_retry is not None:
                on_retry(attempt, delay, error)
        attempt += 1
        await sleep(delay)


def _asked(error: Exception) -> float:
    """Seconds that an error of ours asks callers to wait."""
    value = error.details.get("retry_after", 0.0) if isinstance(error, EnterpriseError) else 0.0
    return float(value) if isinstance(value, (int, float)) else 0.0
