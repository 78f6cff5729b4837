"""The port of approvals, as far as a door needs it: hand over a held call, wait for what people decide, use it once.

The engine behind it is named in `Runtime.holds`; where none is, a held call is refused, and says that it is held.
A door that lets an agent run its own tool (the checks door) waits here; a door that forwards leaves the stored call to
the engine.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from ..catalog.calls import Call, Verdict

State = Literal["pending", "approved", "denied", "expired"]


class Ruling(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a held call so far. `reason` is for the agent; `args` are the arguments (JSON) that were approved
    where they differ from those that were asked for, else None."""

    state: State
    reason: str = ""
    args: bytes | None = None


class Holds(Protocol):
    """Everything raises StoreError when nobody can say; the call is then refused."""

    async def hold(self, call: Call, verdict: Verdict) -> str:
        """Keep a call until somebody decides; the approval's id. The same call (agent, tool, canonical arguments)
        asked for again while it is undecided, or approved and not claimed yet, gives the same id."""

    async def wait(self, org: str, approval_id: str, seconds: float) -> Ruling:
        """The ruling, waited for at most `seconds`; `pending` when there is none by then."""

    async def claim(self, org: str, approval_id: str) -> bool:
        """Use an approval up. True for exactly one caller, whatever crashes or races."""
