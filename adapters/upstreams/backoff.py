"""When a new child may be started after others died early: exponential delays with jitter, and no I/O of its own.

`policies.resilience.CircuitBreaker` rests for a fixed time and probes with one call; a program that cannot start wants
longer and longer rests, and its health shows only after it has lived for a while. Hence a state machine of its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from ...catalog import errors

LENIENT: Final = 3
"""Early deaths in a row of children that had already answered, before new ones are delayed. Such a death tells more
about the request than about the program; without this, one agent's crashing call would keep all others waiting."""

MAX_EXPONENT: Final = 30


class Backoff:
    """`enter` before a start; then `spoke`, and at the end one of `died` and `survived`.

    A child that dies before `healthy_after` seconds died early. After early deaths, starts are admitted one at a time,
    each `base * 2**n` seconds (at most `cap`, with jitter between half and all of it) after the one before, until a
    child answers; the count falls to zero when a child started since has lived for `healthy_after`.
    """

    __slots__ = ("_base", "_cap", "_clock", "_delay", "_failed_at", "_healthy_after", "_random", "_until", "failures")

    def __init__(
        self, *, base: float = 0.5, cap: float = 60.0, healthy_after: float = 30.0,
        clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self._base = base
        self._cap = cap
        self._healthy_after = healthy_after
        self._clock = clock
        self._random = jitter
        self._until = 0.0
        self._delay = 0.0
        self._failed_at = 0.0
        self.failures = 0

    @property
    def retry_after(self) -> float:
        """Seconds until a start is admitted; 0.0 when one is now."""
        return max(0.0, self._until - self._clock()) if self._delay else 0.0

    def enter(self) -> None:
        """Admit one start. Raises BreakerOpen with `retry_after` (seconds) and `failures` among its details."""
        wait = self.retry_after
        if wait > 0:
            times = "once" if self.failures == 1 else f"{self.failures} times in a row"
            raise errors.BreakerOpen(
                f"The server's process died early {times}; the next start is in {wait:.1f} s.",
                retry_after=round(wait, 3), failures=self.failures,
            )  # fmt: skip
        if self._delay:
            self._until = self._clock() + self._delay

    def spoke(self) -> None:
        """A child answered: further ones need not wait for it to prove itself."""
        self._delay = 0.0

    def died(self, started: float, *, spoke: bool) -> None:
        """A child that nobody ended has ended; `started` by the same clock."""
        now = self._clock()
        if now - started >= self._healthy_after:
            self.survived(started)
            return
        if self.failures and started < self._failed_at:
            return  # it fell together with the one that is counted already
        self.failures += 1
        self._failed_at = now
        exponent = self.failures - 1 - (LENIENT if spoke else 0)
        if exponent < 0:
            return
        full = min(self._cap, self._base * 2 ** min(exponent, MAX_EXPONENT))
        self._delay = full * (0.5 + self._random() / 2)
        self._until = now + self._delay

    def survived(self, started: float) -> None:
        """A child is alive, or ended as it should. It clears the record if it is younger than the last failure."""
        if self.failures and started >= self._failed_at and self._clock() - started >= self._healthy_after:
            self.failures = 0
            self._delay = 0.0
