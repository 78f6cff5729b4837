"""What a pool says of itself."""

from __future__ import annotations

import msgspec

from ..policies.resilience import BreakerState


class PoolStats(msgspec.Struct, frozen=True):
    """A moment's view. `created`, `reused`, `resent`, `stale` count since the start: connections made, requests on a
    used connection, requests sent again, idle connections that the server had closed."""

    open: int
    idle: int
    waiting: int
    created: int
    reused: int
    resent: int
    stale: int
    breaker: BreakerState
    breaker_opened: int
