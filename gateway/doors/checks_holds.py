"""Parking: a hook's held call waits here, in rounds, until somebody has decided on it.

A hook asks in rounds (of `wait` seconds) because proxies and HTTP clients give up on silent requests long before a
person decides. What was approved is claimed, so that it is used once, and judged again right before: an agent that was
suspended, or a rule that was changed meanwhile, wins over the approval. The approval answers the hold, not a denial.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from ...catalog.calls import Call, Verdict
from ...catalog.errors import EnterpriseError, StoreError
from ...catalog.ids import new_id
from ...policies.chain import assemble
from ...policies.running import run_guards
from ..holds import Holds, Ruling
from ..proxy import Proxy
from .checks_open import CallKey, OpenChecks, Parked

PARK_SECONDS: Final = 600.0
"""How long a call may be parked: what OpenClaw lets a hook take."""

STALE: Final = "The gateway cannot read its policy at the moment and lets nothing pass unchecked; try again later."
USED: Final = "This approval has been used already."
EXPIRED: Final = "Nobody decided in time, so the call was not approved."


class Ruled(msgspec.Struct, frozen=True):
    """`call` None: still pending. Else the call that was decided on, with its own record's id; `edited`: not with the
    arguments that were asked for."""

    verdict: Verdict
    call: Call | None = None
    edited: bool = False


class Parking:
    """One per worker. `holds` gives the engine of approvals, or None where there is none."""

    def __init__(self, proxy: Proxy, book: OpenChecks, holds: Callable[[], Holds | None]) -> None:
        self._proxy = proxy
        self._book = book
        self._holds = holds

    async def park(self, call: Call, verdict: Verdict, key: CallKey, what: str) -> Parked | None:
        """Hand a held call over to the engine. None: there is no engine, or it could not keep it."""
        engine = self._holds()
        if engine is None:
            return None
        try:
            approval = await engine.hold(call, verdict)
        except StoreError:
            self._proxy.metrics.fault("holds")
            return None
        parked = Parked(approval, call.id, what, call.at + PARK_SECONDS)
        self._book.park(key, parked)
        return parked

    async def wait(self, call: Call, parked: Parked, key: CallKey, seconds: float, started: int) -> Ruled:
        """What was decided by the end of this round, on record when it was. Raises nothing but CancelledError."""
        pending = Verdict("hold", "approval", "APPROVAL_REQUIRED", f"Waiting for approval {parked.approval}.")
        engine = self._holds()
        if engine is None:
            return Ruled(pending)
        org = call.principal.org
        try:
            ruling = await engine.wait(org, parked.approval, max(0.0, min(seconds, parked.until - time.time())))
            if ruling.state == "pending":
                return Ruled(pending)
            self._book.unpark(key)
            won = ruling.state == "approved" and await engine.claim(org, parked.approval)
        except EnterpriseError:
            self._proxy.metrics.fault("holds")
            return Ruled(pending)
        return await self._ruled(call, parked, ruling, won, started)

    async def _ruled(self, call: Call, parked: Parked, ruling: Ruling, won: bool, started: int) -> Ruled:
        edited = ruling.state == "approved" and ruling.args is not None and ruling.args != bytes(call.raw)
        raw = ruling.args if edited and ruling.args is not None else call.raw
        decided = Call(
            call.principal, call.tool, raw, id=new_id("call"), at=time.time(), door="checks", ip=call.ip,
            request_id=call.request_id, trace_id=call.trace_id,
        )  # fmt: skip
        rule = f"approval:{parked.approval}"
        if won:
            verdict = await self._again(decided)
            if verdict.effect != "deny":
                reason = ruling.reason or "Approved."
                return Ruled(Verdict("allow", rule, "ALLOWED", reason, 0.0, ("approved",)), decided, edited)
        else:
            said = {"expired": EXPIRED, "denied": "A reviewer rejected this call."}
            reason = USED if ruling.state == "approved" else ruling.reason or said[ruling.state]
            verdict = Verdict("deny", rule, "APPROVAL_REQUIRED", reason)
        return Ruled(await self._proxy.refuse(decided, verdict, len(decided.raw), started), decided, edited)

    async def _again(self, call: Call) -> Verdict:
        """The verdict on a call as policy stands now, charging nothing: that was done when it was held."""
        chain = self._proxy.chain
        try:
            subject, tool = await chain.subject(call.principal, call.tool)
        except (StoreError, TimeoutError):
            return Verdict("deny", "policy-freshness", "POLICY_STALE", STALE, 5.0)
        return run_guards(call, assemble(subject, tool, chain.plugins, peek=True), chain.plugins)


__all__ = ["PARK_SECONDS", "Parking", "Ruled"]
