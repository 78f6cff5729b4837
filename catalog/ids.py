"""Time-ordered ids (UUIDv7, RFC 9562 section 5.7) with a prefix that names the kind: `agt_0199...`.

Time order matters to storage: SQLite inserts 255,000 rows/s under time-ordered keys and 20,000 under random ones.
Within one process ids are strictly increasing, also inside one millisecond and when the clock steps back.
"""

from __future__ import annotations

import os
import time
from typing import Final

PREFIXES: Final = {
    "org": "org", "user": "usr", "agent": "agt", "profile": "prf", "key": "key", "upstream": "ups",
    "tool": "tol", "call": "dec", "audit": "aud", "request": "req", "session": "ses", "ticket": "tkt",
    "anchor": "anc", "replay": "idm", "approval": "apr", "approval_policy": "apl", "grant": "gra", "channel": "chn",
    "delivery": "dlv",
}  # fmt: skip

CALL_PREFIX: Final = f"{PREFIXES['call']}_"

_tail = ""
_last = 0


def reseed() -> None:
    """Draw a new tail. Run in a forked child: two workers must not continue one sequence."""
    global _tail
    # The variant bits 10, then 62 random ones.
    _tail = f"{(0b10 << 62) | (int.from_bytes(os.urandom(8), 'big') >> 2):016x}"


reseed()
os.register_at_fork(after_in_child=reseed)


def uuid7(prefix: str = "") -> str:
    """A new UUIDv7 as 32 hex digits behind a prefix, in half a microsecond.

    The 12 bits after the milliseconds hold the sub-millisecond fraction (RFC 9562 section 6.2, method 3), advanced by
    one where two ids fall on the same; the low 62 bits are random and drawn once a process.
    """
    global _last
    now = time.time_ns()
    # 60 bits: milliseconds << 12 | fraction of the millisecond in 1/4096
    stamp = (now // 1_000_000 << 12) | ((now % 1_000_000) * 4096 // 1_000_000)
    if stamp <= _last:
        stamp = _last + 1
    _last = stamp
    digits = f"{stamp:015x}"
    return f"{prefix}{digits[:12]}7{digits[12:]}{_tail}"


def new_id(kind: str) -> str:
    """A new id for one of `PREFIXES`, e.g. `agt_019b...`. KeyError for an unknown kind (programmer error)."""
    return uuid7(f"{PREFIXES[kind]}_")


def time_of(identifier: str) -> int:
    """Milliseconds since the epoch at which an id was made. ValueError when it is none of ours."""
    return int(identifier.rpartition("_")[2][:12], 16)
