"""`/api/agents`: agents and the permission profile each of them has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...catalog.errors import BadRequest, Conflict, PreconditionFailed, Stale
from ...catalog.profiles import Profile
from ...catalog.records import AGENTS, AgentStatus
from ...gateway.accounts import AgentChange, AgentSpec, Assignment
from .. import show
from ..examples import AGENT_ID
from ..operation import Context, Example, Listing, Reply, operation
from ..paging import PageQuery, View, listing

_INTERNAL = {"name": "internal", "tools": ["send_email"], "field": "to", "op": "domain_in", "values": ["acme.test"]}


class AgentIn(AgentSpec, kw_only=True):
    """An agent to be made. With `preset` or `profile_id` it can work at once; with neither it may do nothing."""

    preset: str | msgspec.UnsetType = msgspec.UNSET
    profile_id: str | msgspec.UnsetType = msgspec.UNSET


class AgentQuery(PageQuery, kw_only=True):
    """One filter at a time."""

    status: AgentStatus | msgspec.UnsetType = msgspec.UNSET
    profile_id: str | msgspec.UnsetType = msgspec.UNSET


@operation(
    "GET", "/api/agents", tag="agents", scope="agents:read", query=AgentQuery, returns=show.AgentOut, listing=True,
    errors=(BadRequest,), example=Example(query={"limit": "10", "status": "active"}),
)  # fmt: skip
async def list_agents(ctx: Context, query: AgentQuery) -> Listing:
    """The agents of this organisation, oldest first."""
    given = {
        name: value
        for name, value in (("status", query.status), ("profile_id", query.profile_id))
        if value is not msgspec.UNSET
    }
    if len(given) > 1:
        raise BadRequest("Filter by status or by profile_id, one at a time.")
    index = {"": "by_org", "status": "by_status", "profile_id": "by_profile"}["".join(given)]
    return await listing(ctx, query, View(entity=AGENTS, index=index, where={"org": ctx.org, **given}), show.agent)


@operation(
    "POST", "/api/agents", tag="agents", scope="agents:write", role="member", body=AgentIn, returns=show.AgentOut,
    status=201, audit="agent.create", errors=(Conflict,),
    example=Example(body={"name": "support-bot", "description": "Answers customers.", "preset": "customer-support"}),
)  # fmt: skip
async def create_agent(ctx: Context, body: AgentIn) -> Reply:
    """Make an agent.

    Its name is unique in the organisation. Naming a profile or a preset here also needs the scope profiles:write.
    """
    spec = AgentSpec(name=body.name, description=body.description, status=body.status, metadata=body.metadata)
    assignment = None
    if body.preset is not msgspec.UNSET or body.profile_id is not msgspec.UNSET:
        ctx.require("profiles:write")
        assignment = Assignment(preset=body.preset, profile_id=body.profile_id)
    agent = await ctx.runtime.accounts.create_agent(ctx.org, spec, assignment)
    ctx.resource = agent.id
    ctx.details["name"] = agent.name
    return Reply(show.agent(agent), agent.version, f"/api/agents/{agent.id}")


@operation(
    "GET", "/api/agents/{id}", tag="agents", scope="agents:read", returns=show.AgentOut,
    example=Example(path={"id": AGENT_ID}),
)  # fmt: skip
async def get_agent(ctx: Context) -> Reply:
    """One agent."""
    agent = await ctx.runtime.accounts.agent(ctx.org, ctx.path["id"])
    return Reply(show.agent(agent), agent.version)


async def _agent_now(ctx: Context, patch: Mapping[str, Any]) -> tuple[AgentChange, int]:
    agent = await ctx.runtime.accounts.agent(ctx.org, ctx.path["id"])
    now = AgentChange(name=agent.name, description=agent.description, status=agent.status, metadata=agent.metadata)
    return now, agent.version


@operation(
    "PUT", "/api/agents/{id}", tag="agents", scope="agents:write", role="member", body=AgentChange,
    returns=show.AgentOut, current=_agent_now, audit="agent.update", errors=(Conflict, Stale, PreconditionFailed),
    example=Example(
        path={"id": AGENT_ID}, body={"name": "research-bot", "status": "suspended", "metadata": {"team": "growth"}}
    ),
)  # fmt: skip
async def replace_agent(ctx: Context, body: AgentChange) -> Reply:
    """Say everything about an agent anew.

    What is left out takes its default, but the status and the profile stay. A suspended or archived agent is denied
    every call.
    """
    accounts = ctx.runtime.accounts
    stored = await accounts.agent(ctx.org, ctx.path["id"])
    version = stored.version if ctx.match(stored.version) else None
    agent = await accounts.replace_agent(ctx.org, stored.id, body, version)
    ctx.details["status"] = agent.status
    return Reply(show.agent(agent), agent.version)


@operation(
    "DELETE", "/api/agents/{id}", tag="agents", scope="agents:write", role="member", returns=None, status=204,
    audit="agent.delete", errors=(Stale, PreconditionFailed), example=Example(path={"id": AGENT_ID}),
)  # fmt: skip
async def delete_agent(ctx: Context) -> None:
    """Remove an agent for good.

    Its keys are revoked with it, and the profile that was its own goes too. The record of its calls stays.
    """
    accounts = ctx.runtime.accounts
    stored = await accounts.agent(ctx.org, ctx.path["id"])
    ctx.details["name"] = stored.name
    await accounts.delete_agent(ctx.org, stored.id, stored.version if ctx.match(stored.version) else None)


@operation(
    "GET", "/api/agents/{id}/profile", tag="agents", scope="profiles:read", returns=show.ProfileOut,
    example=Example(path={"id": AGENT_ID}),
)  # fmt: skip
async def get_agent_profile(ctx: Context) -> Reply:
    """The permission profile an agent has, and where it comes from."""
    accounts = ctx.runtime.accounts
    agent = await accounts.agent(ctx.org, ctx.path["id"])
    shown = show.profile(agent, await accounts.profile_of(agent))
    return Reply(shown, shown.version)


async def _profile_now(ctx: Context, patch: Mapping[str, Any]) -> tuple[Assignment, str]:
    """What its profile says, when that is to be changed. Changed, a preset or shared profile becomes one of its own."""
    agent = await ctx.runtime.accounts.agent(ctx.org, ctx.path["id"])
    record = await ctx.runtime.accounts.profile_of(agent)
    version = show.profile_version(agent, record)
    if "profile" not in patch:
        return Assignment(), version
    return Assignment(profile=record.spec if record is not None else Profile()), version


@operation(
    "PUT", "/api/agents/{id}/profile", tag="agents", scope="profiles:write", role="admin", body=Assignment,
    returns=show.ProfileOut, current=_profile_now, careful=True, audit="agent.profile",
    errors=(Stale, PreconditionFailed),
    example=Example(
        path={"id": AGENT_ID},
        body={
            "profile": {
                "name": "Inbox only",
                "skills": {"mode": "allowlist", "list": ["email-management"]},
                "max_risk": "high",
                "argument_rules": [_INTERNAL],
                "rate_limits": [{"per_minute": 30}],
            }
        },
    ),
)  # fmt: skip
async def put_agent_profile(ctx: Context, body: Assignment) -> Reply:
    """Give an agent a profile: a preset, a shared one, or one of its own.

    The body has exactly one of `preset` (its id), `profile_id` (a shared profile's) and `profile` (all of it). The
    agent's next call is judged by it.
    """
    accounts = ctx.runtime.accounts
    stored = await accounts.agent(ctx.org, ctx.path["id"])
    matched = ctx.match(show.profile_version(stored, await accounts.profile_of(stored)))
    agent, record = await accounts.assign(ctx.org, stored.id, body, stored.version if matched else None)
    ctx.details["profile"] = record.preset or record.id
    shown = show.profile(agent, record)
    return Reply(shown, shown.version)
