"""What a decision makes of an approval. Pure functions: an approval, a decider and a moment in, a changed approval out
(in place), or a refusal raised. Nothing here knows a store.

Approvals are counted by the bytes they are about: an edit changes the digest, so what was approved before it counts no
more. One person counts once, whatever keys they use.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from ...catalog.approvals import FINAL, Approval, Change, Decision, DecisionKind, Stage
from ...catalog.errors import Conflict, Forbidden, Stale, ValidationFailed
from .who import Decider

MAX_DECISIONS: Final = 200
WORDS: Final = {
    "approved": "approved", "executing": "approved", "executed": "approved", "not_executed": "approved",
    "unknown": "approved", "rejected": "rejected", "expired": "expired", "cancelled": "cancelled",
}  # fmt: skip


class Decided(Conflict):
    """Somebody decided this already."""

    code = "ALREADY_DECIDED"

    def __init__(self, message: str) -> None:
        super().__init__("state", message)


class Deed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What somebody decides. `digest`: of the form they looked at. `arguments`: with `edit`, all of them anew.
    `to`: with `delegate`, a person's or key's id. `seconds`: with `snooze`."""

    action: Literal["approve", "reject", "edit", "delegate", "snooze"]
    reason: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    digest: Annotated[str, msgspec.Meta(max_length=64)] = ""
    arguments: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    to: Annotated[str, msgspec.Meta(max_length=128)] = ""
    seconds: Annotated[int, msgspec.Meta(ge=60, le=7 * 86_400)] = 900


def stage_of(approval: Approval) -> Stage:
    """Who is asked now."""
    stages = approval.terms.stages
    return stages[min(approval.stage, len(stages) - 1)]


def may_decide(approval: Approval, decider: Decider, requester: str) -> str:
    """Why this decider may not decide, or "". `requester` is who stands behind the agent's key."""
    asked = approval.terms.stages[: approval.stage + 1]
    delegated = bool(approval.delegated_to) and approval.delegated_to in {decider.id, decider.person}
    if not delegated and not any(decider.may(stage) for stage in asked):
        stage = asked[-1]
        who = "the named approvers" if stage.approvers else f"the role {stage.role} or higher"
        return f"This is for {who} to decide."
    if approval.terms.separation_of_duties and requester in {decider.id, decider.person}:
        return "Separation of duties: whoever stands behind the agent's key may not decide about its calls."
    return ""


def check_open(approval: Approval, now: int) -> None:
    """Decided says who was first."""
    if approval.state == "pending":
        return
    last = next((one for one in reversed(approval.decisions) if one.kind in ENDING), None)
    by = (last.name or last.by) if last is not None and last.by else "the gateway"
    ago = max(0, now - approval.decided_at) // 1000
    word = WORDS.get(approval.state, "decided")
    raise Decided(f"It was {word} by {by} {ago} s ago.")


ENDING: Final[frozenset[DecisionKind]] = frozenset({"approve", "edit", "reject", "expire", "auto", "cancel"})


def check_digest(approval: Approval, deed: Deed) -> None:
    """Whoever approves or edits has seen these very bytes. Stale otherwise."""
    if deed.digest and deed.digest != approval.digest:
        raise Stale("The call was edited since you looked at it; look again.")
    if not deed.digest and approval.digest != approval.asked_digest:
        raise Stale("The call was edited: send the digest of what you looked at.")


def apply(approval: Approval, deed: Deed, decider: Decider, now: int, *, changes: tuple[Change, ...] = ()) -> Approval:
    """Record a deed and what follows from it. Forbidden, Decided, Stale, ValidationFailed, Conflict.

    For an edit the caller has put the new form into the approval before (`sealed`, `digest`). Whether the decider may
    decide at all was asked before (`may_decide`).
    """
    check_open(approval, now)
    if len(approval.decisions) >= MAX_DECISIONS:
        raise Forbidden("Too much has been done to this approval; it can only run out.")
    kinds: dict[str, DecisionKind] = {"approve": "approve", "reject": "reject", "edit": "edit",
                                      "delegate": "delegate", "snooze": "snooze"}  # fmt: skip
    kind = kinds[deed.action]
    if kind == "approve":
        if any(_approves(one, approval.digest) and one.person == decider.person for one in approval.decisions):
            raise Conflict("approver", "You approved this already; somebody else must approve it too.")
    elif kind == "reject" and not deed.reason.strip():
        raise ValidationFailed([("/reason", "required", "Say why: the agent is told.")])
    elif kind == "delegate" and not deed.to:
        raise ValidationFailed([("/to", "required", "Say to whom: the id of a person or a key.")])
    approval.decisions += (
        Decision(
            at=now, kind=kind, by=decider.id, name=decider.name, role=decider.role or "", person=decider.person,
            reason=deed.reason, digest=approval.digest, to=deed.to if kind == "delegate" else "", changes=changes,
        ),
    )  # fmt: skip
    if kind in {"approve", "edit"}:
        if given(approval) >= approval.terms.approvals:
            approve(approval, now)
    elif kind == "reject":
        approval.rejection = deed.reason.strip()
        close(approval, "rejected", now)
    elif kind == "delegate":
        approval.delegated_to = deed.to
    else:
        approval.snoozed_until = now + deed.seconds * 1000
        approval.due_at = min(approval.stage_until, approval.snoozed_until)
    return approval


def _approves(decision: Decision, digest: str) -> bool:
    return decision.kind in {"approve", "edit"} and decision.digest == digest


def given(approval: Approval) -> int:
    """How many different people approved the bytes as they are."""
    return len({one.person for one in approval.decisions if _approves(one, approval.digest)})


def approve(approval: Approval, now: int) -> None:
    """Decided: from now on the executor's. Due at once, so that any worker sends it should this one die."""
    approval.state = "approved"
    approval.decided_at = now
    approval.watch, approval.due_at = "on", now


def close(approval: Approval, state: Any, now: int, keep: int = 600_000) -> None:
    """Final. Repeats of the call meet it for `keep` more milliseconds."""
    assert state in FINAL  # noqa: S101 - the callers name a final state
    approval.state = state
    approval.decided_at = approval.decided_at or now
    approval.finished_at = now
    approval.phase, approval.lease_until = "", 0
    approval.watch, approval.due_at = "on", now + keep


def fall_due(approval: Approval, now: int) -> DecisionKind | None:
    """What silence makes of a pending approval at `now`: "snooze" (remind), "escalate", "expire", or None."""
    if approval.state != "pending":
        return None
    if now < approval.stage_until:
        if approval.snoozed_until and now >= approval.snoozed_until:
            approval.snoozed_until = 0
            approval.due_at = approval.stage_until
            return "snooze"
        approval.due_at = min(approval.stage_until, approval.snoozed_until or approval.stage_until)
        return None
    if approval.stage + 1 < len(approval.terms.stages):
        approval.stage += 1
        stage = stage_of(approval)
        approval.stage_until = now + stage.timeout * 1000
        approval.snoozed_until = 0
        approval.due_at = approval.stage_until
        approval.decisions += (Decision(at=now, kind="escalate", by="", to=f"stage {approval.stage + 1}"),)
        return "escalate"
    approval.decisions += (Decision(at=now, kind="expire", by="", digest=approval.digest),)
    if approval.terms.on_expiry == "approve":
        approve(approval, now)
    else:
        close(approval, "expired", now)
    return "expire"
