"""How often signing in may be tried. Guessing must be slow, yet nobody may be locked out by somebody else's guessing,
and nothing may tell whether an address has an account.

* Every source (an IPv4 address, an IPv6 /64) has a bucket of its own, whatever it tries.
* Every account has a bucket for strangers, whether it exists or not.
* Who comes with the mark of a device on which this account signed in before draws from the device's own bucket, and
  from nothing else; an address with a live session of this account draws from a bucket of the two, where the strangers'
  bucket of the account is empty. So a flood of guesses slows strangers down and not the person. What remains for
  somebody at a new place during a flood: the next token of the bucket, or a one-time link, which is not guessed and so
  not counted per account.
* Codes of the second factor have buckets by the same scheme; only who knows the password comes that far.

Buckets are in memory, per worker: a ceiling is divided among the workers.
"""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from ...catalog.errors import TooManyRequests
from ...policies.resilience import KeyedRateLimiter

MAX_SOURCES: Final = 100_000


class Pace(msgspec.Struct, frozen=True):
    """`burst` attempts at once, then one every `seconds`."""

    burst: int
    seconds: float


SOURCE: Final = Pace(20, 6.0)
ACCOUNT: Final = Pace(30, 30.0)
KNOWN: Final = Pace(10, 30.0)
CODES: Final = Pace(6, 300.0)
CODES_KNOWN: Final = Pace(6, 60.0)
MAIL: Final = Pace(3, 1200.0)

_SENTENCE: Final = "Too many attempts. Wait, or use a one-time sign-in link."


class Throttle:
    """One per worker. `workers` divides what one process grants."""

    def __init__(self, workers: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        def made(pace: Pace) -> KeyedRateLimiter:
            burst = max(2.0, pace.burst / workers)
            return KeyedRateLimiter(1.0 / (pace.seconds * workers), burst, max_keys=MAX_SOURCES, clock=clock)

        self._sources, self._accounts, self._known = made(SOURCE), made(ACCOUNT), made(KNOWN)
        self._codes, self._codes_known, self._mail = made(CODES), made(CODES_KNOWN), made(MAIL)

    def source(self, ip: str) -> None:
        """An attempt from an address, at whatever. Raises TooManyRequests."""
        _take(self._sources, source_of(ip))

    async def sign_in(self, ip: str, account: str, device: str, familiar: Callable[[], Awaitable[bool]]) -> None:
        """An attempt at an account (`account_of`), from a device known for it or "". `familiar` is asked only when the
        account's bucket is empty. Raises TooManyRequests."""
        if device:
            _take(self._known, f"device:{device}")
            return
        self.source(ip)
        if self._accounts.take(account):
            return
        if await familiar():
            _take(self._known, f"place:{account}:{source_of(ip)}")
            return
        _refuse(self._accounts, account)

    def code(self, ip: str, user_id: str, device: str) -> None:
        """An attempt at a second factor. Raises TooManyRequests."""
        if device:
            _take(self._codes_known, f"{user_id}:{device}")
            return
        self.source(ip)
        _take(self._codes, user_id)

    def password(self, user_id: str) -> None:
        """Somebody signed in says their password again. Raises TooManyRequests."""
        _take(self._known, f"again:{user_id}")

    def mail(self, account: str) -> bool:
        """Whether one more link may go to this address."""
        return self._mail.take(account)


def source_of(ip: str) -> str:
    """What counts as one source: an IPv4 address, the first 64 bits of an IPv6 one."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def account_of(email: str) -> str:
    """The name of an account's bucket. A digest: what people type into this field is not always an address."""
    return hashlib.sha256(email.strip().lower().encode("utf-8", "replace")).hexdigest()


def _take(limiter: KeyedRateLimiter, key: str) -> None:
    if not limiter.take(key):
        _refuse(limiter, key)


def _refuse(limiter: KeyedRateLimiter, key: str) -> None:
    raise TooManyRequests(_SENTENCE, retry_after=round(max(1.0, limiter.retry_after(key)), 1))
