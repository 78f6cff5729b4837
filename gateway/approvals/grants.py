"""When nobody need be asked: a standing grant, or an auto-approve rule of the policy that counts."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import msgspec

from ...catalog.approvals import APPROVALS, GRANTS, Approval, Condition, Grant
from ...catalog.calls import Tool
from ...catalog.errors import EnterpriseError, LimitReached
from ...catalog.store import MAX_PAGE, Increment, Query
from ...policies.approvals import auto_approved, conditions_test
from .book import pair
from .desk import Desk
from .form import twin_of

MAX_GRANTS: Final = 200
"""Grants of one agent and tool that are looked at, newest first."""

HISTORY: Final = 200
ENOUGH: Final = 3
"""So many approvals of alike calls, and none rejected, propose a grant."""


async def release(
    engine: Desk, org: str, agent: str, agent_name: str, tool: Tool, arguments: dict[str, Any], door: str
) -> str:
    """The rule that lets a held call pass, or "". A call that is held already stays so: a grant made meanwhile must
    not send it beside its approval."""
    try:
        twin = twin_of(org, agent, door, tool.id, arguments)
    except ValueError:
        return ""
    if await engine.find_twin(org, twin) is not None:
        return ""
    granted = await _granted(engine, org, agent, tool.id, arguments)
    if granted:
        return granted
    policy = await engine.book.policy_for(org, agent, agent_name, tool)
    if policy is None:
        return ""
    rule = auto_approved(policy, arguments, engine.now() / 1000)
    return f"auto-approve:{policy.id}:{rule}" if rule else ""


async def _granted(engine: Desk, org: str, agent: str, tool: str, arguments: dict[str, Any]) -> str:
    now = engine.now()
    query = Query(GRANTS, "by_pair", {"org": org, "pair": pair(agent, tool)}, limit=MAX_GRANTS, descending=True)
    for grant in (await engine.store.find(query)).records:
        if not usable(grant, now) or not _meets(grant, arguments):
            continue
        try:
            await engine.store.commit(Increment(GRANTS, org, grant.id, "used", ceiling=grant.limit))
        except LimitReached:
            continue
        return f"grant:{grant.id}"
    return ""


def usable(grant: Grant, now: int) -> bool:
    return not grant.revoked_at and grant.expires_at > now and grant.used < grant.limit


def _meets(grant: Grant, arguments: dict[str, Any]) -> bool:
    try:
        return bool(grant.conditions) and conditions_test(grant.conditions)(arguments)
    except (ValueError, TypeError, RecursionError):
        return False


class Proposal(msgspec.Struct, kw_only=True):
    """A grant that would have spared people these decisions. Somebody must make it: nothing is granted by itself."""

    agent_id: str
    tool: str
    conditions: tuple[Condition, ...]
    approvals: int


async def proposals(engine: Desk, org: str) -> list[Proposal]:
    """From the last approvals: per agent and tool, texts and numbers that were the same in all approved calls, when
    there were several and none was rejected."""
    page = await engine.store.find(
        Query(APPROVALS, "by_org", {"org": org}, limit=min(HISTORY, MAX_PAGE), descending=True)
    )
    groups: dict[tuple[str, str], list[Approval]] = {}
    refused: Counter[tuple[str, str]] = Counter()
    for approval in page.records:
        key = (approval.agent, approval.tool)
        if approval.state == "rejected" or approval.digest != approval.asked_digest:
            refused[key] += 1
        elif approval.state == "executed":
            groups.setdefault(key, []).append(approval)
    found: list[Proposal] = []
    for (agent, tool), approvals in groups.items():
        if len(approvals) < ENOUGH or refused[agent, tool]:
            continue
        conditions = _common(engine, approvals)
        if conditions:
            found.append(Proposal(agent_id=agent, tool=tool, conditions=conditions, approvals=len(approvals)))
    return sorted(found, key=lambda one: (-one.approvals, one.agent_id, one.tool))


def _common(engine: Desk, approvals: list[Approval]) -> tuple[Condition, ...]:
    """Top-level arguments that all of the calls share. What differs is left free, so only shared recipients, paths and
    the like make a proposal."""
    shared: dict[str, Any] | None = None
    for approval in approvals:
        try:
            arguments = engine.form(approval).arguments
        except EnterpriseError:
            return ()
        plain = {
            key: value
            for key, value in arguments.items()
            if key.isidentifier() and (type(value) is int or (type(value) is str and 0 < len(value) <= 200))
        }
        shared = plain if shared is None else {key: value for key, value in shared.items() if plain.get(key) == value}
    return tuple(Condition(field=key, op="equals", values=(value,)) for key, value in sorted((shared or {}).items()))
