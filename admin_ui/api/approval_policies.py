"""`/api/engine/approval-policies`, `-grants` and `-channels`: who is asked, when nobody need be, and where people hear
of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...catalog.approvals import APPROVAL_POLICIES, CHANNELS, GRANTS, ApprovalPolicySpec
from ...catalog.errors import Conflict, NotFound, PreconditionFailed, Stale
from ...catalog.tools import TOOL_INDEX
from ...gateway.approvals.book import ChannelSpec, GrantSpec
from ...gateway.approvals.grants import proposals
from ...gateway.approvals.notify import new_secret
from ...gateway.approvals.who import decider_of
from ...gateway.scopes import EVERY
from ...policies.catalogue import Catalog
from .. import show_approvals as show
from ..examples import AGENT_ID, APPROVAL_POLICY_ID, CHANNEL_ID, GRANT_ID
from ..operation import Context, Example, Listing, Reply, operation
from ..paging import PageQuery, View, listing, of_sequence

_SPEC = {
    "name": "Mail leaves the house", "side_effects": ["sends-email"], "role": "admin", "timeout": 1800,
    "auto_approve_rules": [
        {"name": "inside", "conditions": [{"field": "recipient_domain", "op": "equals", "values": ["acme.com"]}]}
    ],
    "escalation": [{"role": "owner", "timeout": 3600}],
}  # fmt: skip


@operation(
    "GET", "/api/engine/approval-policies", tag="approvals", scope="approval-policies:read", role="member",
    query=PageQuery, returns=show.ApprovalPolicyOut, listing=True, example=Example(query={"limit": "10"}),
)  # fmt: skip
async def list_approval_policies(ctx: Context, query: PageQuery) -> Listing:
    """The approval policies of this organisation, oldest first."""
    view = View(entity=APPROVAL_POLICIES, index="by_org", where={"org": ctx.org})
    return await listing(ctx, query, view, show.policy)


@operation(
    "POST", "/api/engine/approval-policies", tag="approvals", scope="approval-policies:write", role="admin",
    body=ApprovalPolicySpec, returns=show.ApprovalPolicyOut, status=201, audit="approval_policy.create",
    errors=(Conflict,), example=Example(body=_SPEC),
)  # fmt: skip
async def create_approval_policy(ctx: Context, body: ApprovalPolicySpec) -> Reply:
    """Make an approval policy. The next call is judged by it.

    Approving by silence (`on_expiry: approve`) is for owners to set: it needs the scope `*`.
    """
    _check_silence(ctx, body)
    record = await ctx.runtime.approvals.book.create_policy(ctx.org, body)
    ctx.resource = record.id
    ctx.details["name"] = record.name
    return Reply(show.policy(record), record.version, f"/api/engine/approval-policies/{record.id}")


def _check_silence(ctx: Context, body: ApprovalPolicySpec) -> None:
    if body.on_expiry == "approve":
        ctx.require(EVERY)


@operation(
    "GET", "/api/engine/approval-policies/{id}", tag="approvals", scope="approval-policies:read", role="member",
    returns=show.ApprovalPolicyOut, example=Example(path={"id": APPROVAL_POLICY_ID}),
)  # fmt: skip
async def get_approval_policy(ctx: Context) -> Reply:
    """One approval policy."""
    record = await ctx.runtime.approvals.book.policy(ctx.org, ctx.path["id"])
    return Reply(show.policy(record), record.version)


async def _policy_now(ctx: Context, patch: Mapping[str, Any]) -> tuple[ApprovalPolicySpec, int]:
    record = await ctx.runtime.approvals.book.policy(ctx.org, ctx.path["id"])
    return record.spec, record.version


@operation(
    "PUT", "/api/engine/approval-policies/{id}", tag="approvals", scope="approval-policies:write", role="admin",
    body=ApprovalPolicySpec, returns=show.ApprovalPolicyOut, current=_policy_now, audit="approval_policy.update",
    errors=(Conflict, Stale, PreconditionFailed),
    example=Example(path={"id": APPROVAL_POLICY_ID}, body={**_SPEC, "name": "Mail to strangers"}),
)  # fmt: skip
async def replace_approval_policy(ctx: Context, body: ApprovalPolicySpec) -> Reply:
    """Say everything about an approval policy anew. Calls that are held already keep the terms they were held under."""
    _check_silence(ctx, body)
    book = ctx.runtime.approvals.book
    stored = await book.policy(ctx.org, ctx.path["id"])
    version = stored.version if ctx.match(stored.version) else None
    record = await book.replace_policy(ctx.org, stored.id, body, version)
    ctx.details["name"] = record.name
    return Reply(show.policy(record), record.version)


@operation(
    "DELETE", "/api/engine/approval-policies/{id}", tag="approvals", scope="approval-policies:write", role="admin",
    returns=None, status=204, audit="approval_policy.delete", errors=(Stale, PreconditionFailed),
    example=Example(path={"id": APPROVAL_POLICY_ID}),
)  # fmt: skip
async def delete_approval_policy(ctx: Context) -> None:
    """Remove an approval policy. Calls that are held already keep the terms they were held under."""
    book = ctx.runtime.approvals.book
    stored = await book.policy(ctx.org, ctx.path["id"])
    ctx.details["name"] = stored.name
    await book.delete_policy(ctx.org, stored.id, stored.version if ctx.match(stored.version) else None)


# -- standing grants ---------------------------------------------------------------------------------------------
@operation(
    "GET", "/api/engine/approval-grants", tag="approvals", scope="approvals:read", role="member", query=PageQuery,
    returns=show.GrantOut, listing=True, example=Example(query={"limit": "10"}),
)  # fmt: skip
async def list_grants(ctx: Context, query: PageQuery) -> Listing:
    """Standing grants, newest first, with how often each was used."""
    now = ctx.runtime.approvals.now()
    view = View(entity=GRANTS, index="by_org", where={"org": ctx.org}, descending=True)
    return await listing(ctx, query, view, lambda record: show.grant(record, now))


@operation(
    "POST", "/api/engine/approval-grants", tag="approvals", scope="approvals:decide", role="member", body=GrantSpec,
    returns=show.GrantOut, status=201, audit="approval_grant.create", errors=(NotFound,),
    example=Example(
        body={"agent_id": AGENT_ID, "tool": "exec", "limit": 5, "seconds": 3600, "reason": "A migration tonight.",
              "conditions": [{"field": "command", "op": "one_of", "values": ["make migrate"]}]}
    ),
)  # fmt: skip
async def create_grant(ctx: Context, body: GrantSpec) -> Reply:
    """Let calls of one agent and tool pass for a while without asking, bounded by arguments, number and time.

    Only who could approve such a call alone may make one. It reduces human oversight: it is listed, and revocable at
    once.
    """
    engine = ctx.runtime.approvals
    decider = await decider_of(ctx.store, ctx.principal)
    tool = await Catalog(TOOL_INDEX, ctx.store).load(ctx.org, body.tool)
    await engine.check_grant(ctx.org, body.agent_id, tool, decider)
    record = await engine.book.create_grant(ctx.org, body, decider.id)
    ctx.resource = record.id
    ctx.details["tool"] = record.tool
    return Reply(show.grant(record, engine.now()), record.version, f"/api/engine/approval-grants/{record.id}")


@operation(
    "GET", "/api/engine/approval-grants/proposals", tag="approvals", scope="approvals:read", role="member",
    query=PageQuery, returns=show.ProposalOut, listing=True, example=Example(query={"limit": "10"}),
)  # fmt: skip
async def list_grant_proposals(ctx: Context, query: PageQuery) -> Listing:
    """Grants that would have spared people decisions, from the last approvals. Nothing is granted by itself."""
    found = await proposals(ctx.runtime.approvals, ctx.org)
    shown = [
        show.ProposalOut(agent_id=one.agent_id, tool=one.tool, conditions=one.conditions, approvals=one.approvals)
        for one in found
    ]
    return of_sequence(ctx, query, shown, "grant-proposals")


@operation(
    "DELETE", "/api/engine/approval-grants/{id}", tag="approvals", scope="approvals:decide", role="member",
    returns=None, status=204, audit="approval_grant.revoke", errors=(Stale,), example=Example(path={"id": GRANT_ID}),
)  # fmt: skip
async def revoke_grant(ctx: Context) -> None:
    """Revoke a standing grant, at once and for good."""
    record = await ctx.runtime.approvals.book.revoke_grant(ctx.org, ctx.path["id"])
    ctx.details["tool"] = record.tool


# -- notification channels ---------------------------------------------------------------------------------------
@operation(
    "GET", "/api/engine/approval-channels", tag="approvals", scope="approval-policies:read", role="member",
    query=PageQuery, returns=show.ChannelOut, listing=True, example=Example(query={"limit": "10"}),
)  # fmt: skip
async def list_channels(ctx: Context, query: PageQuery) -> Listing:
    """Where people are told of held calls."""
    view = View(entity=CHANNELS, index="by_org", where={"org": ctx.org})
    return await listing(ctx, query, view, show.channel)


@operation(
    "POST", "/api/engine/approval-channels", tag="approvals", scope="approval-policies:write", role="admin",
    body=ChannelSpec, returns=show.NewChannelOut, status=201, audit="approval_channel.create",
    once=("secret",), errors=(Conflict,),
    example=Example(body={"name": "operations", "kind": "webhook", "url": "https://hooks.example.com/approvals"}),
)  # fmt: skip
async def create_channel(ctx: Context, body: ChannelSpec) -> Reply:
    """Have people told: by signed webhook, Slack-compatible webhook, or e-mail.

    The secret that verifies a webhook's signature is shown this once. Private addresses need `allow_private`, which
    needs the scope `*`.
    """
    if body.allow_private:
        ctx.require(EVERY)
    secret = (body.secret or new_secret()) if body.kind == "webhook" else ""
    record = await ctx.runtime.approvals.book.create_channel(ctx.org, body, secret)
    ctx.resource = record.id
    ctx.details["name"] = record.name
    return Reply(show.new_channel(record, secret), record.version, f"/api/engine/approval-channels/{record.id}")


@operation(
    "DELETE", "/api/engine/approval-channels/{id}", tag="approvals", scope="approval-policies:write", role="admin",
    returns=None, status=204, audit="approval_channel.delete", example=Example(path={"id": CHANNEL_ID}),
)  # fmt: skip
async def delete_channel(ctx: Context) -> None:
    """Tell nobody there any more. Messages on their way are dropped."""
    record = await ctx.runtime.approvals.book.delete_channel(ctx.org, ctx.path["id"])
    ctx.details["name"] = record.name
