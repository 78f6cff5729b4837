"""Who is deciding, and with which role: the one place that says so, from the credential and from nothing else."""

from __future__ import annotations

from typing import Final

import msgspec

from ...catalog.approvals import APPROVER_ROLES, ApproverRole, Stage
from ...catalog.calls import Principal
from ...catalog.errors import Forbidden
from ...catalog.records import KEYS, ApiKey
from ...catalog.store import Store
from ..scopes import EVERY, ROLE_SCOPES, covers

DECIDE: Final = "approvals:decide"
MAX_CHAIN: Final = 16


class Decider(msgspec.Struct, frozen=True, kw_only=True):
    """`id` is a person's or a key's. `person` is who stands behind it: keys that one person (or one key) made count as
    one, so that nobody approves twice."""

    id: str
    role: ApproverRole | None
    person: str
    name: str = ""

    def may(self, stage: Stage) -> bool:
        """Whether a stage asks this decider."""
        if stage.approvers:
            return self.id in stage.approvers or self.person in stage.approvers
        return self.role is not None and APPROVER_ROLES.index(self.role) >= APPROVER_ROLES.index(stage.role)


async def decider_of(store: Store, principal: Principal) -> Decider:
    """Who decides with this credential. Forbidden for an agent's key, whatever its scopes: no agent approves calls."""
    if principal.agent_id:
        raise Forbidden("Agents do not decide about approvals.")
    if not covers(principal.scopes, DECIDE):
        raise Forbidden(f"Deciding needs the scope {DECIDE}.", scope=DECIDE)
    role = getattr(principal, "role", None)  # a person who signed in carries the role they have now
    if role is not None:
        known: ApproverRole | None = role if role in APPROVER_ROLES else None
        name = getattr(principal, "name", "") or getattr(principal, "email", "")
        return Decider(id=principal.key_id, role=known, person=principal.key_id, name=name)
    return Decider(
        id=principal.key_id, role=_role_of(principal), person=await root_of(store, principal.org, principal.key_id)
    )


def _role_of(principal: Principal) -> ApproverRole | None:
    """The highest role all of whose scopes a key holds. `approvals:decide` alone makes a member of it."""
    held = principal.scopes
    if EVERY in held:
        return "owner"
    for role in reversed(APPROVER_ROLES):
        if ROLE_SCOPES[role] - {EVERY} <= held:
            return role
    return "member"


async def root_of(store: Store, org: str, key_id: str) -> str:
    """Who stands behind a key: the person who made it, or the first key of those that made one another."""
    current = key_id
    for _ in range(MAX_CHAIN):
        if not current.startswith("key_"):
            return current
        key: ApiKey | None = await store.get(KEYS, org, current)
        if key is None or not key.created_by.startswith(("key_", "usr_")):
            return current
        current = key.created_by
    return current
