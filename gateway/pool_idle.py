"""How long may a connection rest before it is used again? Less than the server lets it, as far as that can be known."""

from __future__ import annotations

import re
from typing import Final

UNKNOWN_LIMIT: Final = 4.0
"""Seconds, for a request that must not be sent twice while the server's limit is unknown. The commonest limit by far is
5 s (Node.js, uvicorn, hypercorn, Apache httpd: their documented defaults); this stays below it."""
MAX_MARGIN: Final = 1.0
WORTH_IT: Final = 0.01
"""A server that closes within so few seconds after an answer does not keep connections: none is used again."""
FORGET_AFTER: Final = 300.0
"""Seconds for which what closes taught is believed."""
SAMPLES: Final = 8
SAME_MOMENT: Final = 0.1
"""Closes less than this apart (seconds) are one event: a server that restarts closes everything at once."""

_TIMEOUT: Final = re.compile(rb"(?:^|[,;\s])timeout\s*=\s*\"?([0-9]{1,9})", re.IGNORECASE)


def parse_keep_alive(value: bytes) -> float | None:
    """The seconds of a `Keep-Alive: timeout=5, max=100` header, or None."""
    match = _TIMEOUT.search(value)
    return float(match[1]) if match else None


class IdleLimit:
    """The limits of one origin, in seconds. `limit` for requests that may be sent twice, `cautious` for others.

    Sources, of which the strictest counts: the pool's own setting; the server's Keep-Alive header, less a margin; what
    the server's closes have taught, less a margin. One close teaches nothing: two must come at about the same age and
    at different moments.
    """

    __slots__ = ("_announced", "_learned", "_learned_at", "_own", "_samples", "cautious", "limit")

    def __init__(self, own: float) -> None:
        self._own = own
        self._announced: float | None = None
        self._learned: float | None = None
        self._learned_at = 0.0
        self._samples: list[tuple[float, float]] = []
        self.limit = own
        self.cautious = min(own, UNKNOWN_LIMIT)

    def announce(self, seconds: float) -> None:
        """The server says for how long it keeps an idle connection."""
        self._announced = seconds
        self._settle()

    def observe(self, age: float, now: float) -> None:
        """The server closed a connection that had been idle for `age` seconds."""
        for other, at in self._samples:
            if abs(other - age) <= 0.25 * max(other, age) + 0.02 and now - at >= SAME_MOMENT:
                self._learned = min(other, age)
                self._learned_at = now
                self._settle()
                break
        self._samples = [*self._samples[1 - SAMPLES :], (age, now)]

    def refresh(self, now: float) -> None:
        """Forget what was learned too long ago. Called now and then."""
        if self._learned is not None and now - self._learned_at > FORGET_AFTER:
            self._learned = None
            self._samples = []
            self._settle()

    def _settle(self) -> None:
        known = [seconds for seconds in (self._announced, self._learned) if seconds is not None]
        if known:
            shortest = min(known)
            limit = min(self._own, shortest - min(MAX_MARGIN, shortest / 2))
            self.limit = self.cautious = limit if limit >= WORTH_IT else 0.0
        else:
            self.limit = self._own
            self.cautious = min(self._own, UNKNOWN_LIMIT)
