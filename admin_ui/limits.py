"""How many requests a credential may send to the API, and the headers that say so
(draft-ietf-httpapi-ratelimit-headers): `r` are left, `t` seconds until all are there again."""

from __future__ import annotations

import math
from typing import Final

from ..catalog.calls import Principal
from ..catalog.errors import TooManyRequests
from ..policies.resilience import KeyedRateLimiter

WINDOW: Final = 60


class ApiLimits:
    """One per worker. `quota`: requests a minute of one credential; 0: no limit, and no headers."""

    def __init__(self, quota: int) -> None:
        self._quota = quota
        self._buckets = KeyedRateLimiter(quota / WINDOW, quota, max_keys=100_000) if quota else None

    def charge(self, principal: Principal) -> dict[str, str]:
        """Take one request; the headers of its answer. TooManyRequests, with them in `details`."""
        if self._buckets is None:
            return {}
        key = principal.key_id
        taken = self._buckets.take(key)
        left = self._buckets.tokens(key)
        full = math.ceil((self._quota - left) * WINDOW / self._quota)
        headers = {
            "RateLimit-Policy": f'"key";q={self._quota};w={WINDOW}',
            "RateLimit": f'"key";r={int(left)};t={full}',
        }
        if not taken:
            raise TooManyRequests(
                f"This API key has sent {self._quota} requests within {WINDOW} seconds.",
                retry_after=math.ceil(self._buckets.retry_after(key)), headers=headers,
            )  # fmt: skip
        return headers
