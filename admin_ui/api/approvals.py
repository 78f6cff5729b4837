"""`/api/engine/approvals`: held calls are seen, decided, and asked for. The credential alone says who decides."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ...catalog.approvals import APPROVALS, ApprovalState
from ...catalog.errors import BadRequest, Conflict, EnterpriseError, Forbidden, NotFound, PreconditionFailed, Stale
from ...catalog.records import AGENTS, Agent
from ...catalog.tools import TOOL_INDEX
from ...gateway.approvals.deciding import Decided, Deed
from ...gateway.approvals.engine import Ask
from ...gateway.approvals.who import decider_of
from ...gateway.scopes import CALL
from ...policies.catalogue import Catalog
from .. import show_approvals as show
from ..examples import AGENT_ID, APPROVAL_ID
from ..operation import Context, Example, Listing, Reply, operation
from ..paging import PageQuery, View, listing


class ApprovalQuery(PageQuery, kw_only=True):
    """One filter at a time."""

    state: ApprovalState | msgspec.UnsetType = msgspec.UNSET
    agent_id: str | msgspec.UnsetType = msgspec.UNSET


class ApprovalIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A call that an agent will run itself once somebody approved it."""

    agent_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    tool: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    arguments: dict[str, Any] = {}
    reason: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class BatchDeed(Deed, kw_only=True):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class BatchIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Decisions about several calls; each stands for itself and leaves its own record."""

    decisions: Annotated[list[BatchDeed], msgspec.Meta(min_length=1, max_length=100)]


@operation(
    "GET", "/api/engine/approvals", tag="approvals", scope="approvals:read", role="member", query=ApprovalQuery,
    returns=show.ApprovalOut, listing=True, errors=(BadRequest,), example=Example(query={"state": "pending"}),
)  # fmt: skip
async def list_approvals(ctx: Context, query: ApprovalQuery) -> Listing:
    """Held calls, newest first, without their arguments."""
    given = {
        index: value
        for index, value in (("state", query.state), ("agent", query.agent_id))
        if value is not msgspec.UNSET
    }
    if len(given) > 1:
        raise BadRequest("Filter by state or by agent_id, one at a time.")
    index = {"": "by_org", "state": "by_state", "agent": "by_agent"}["".join(given)]
    view = View(entity=APPROVALS, index=index, where={"org": ctx.org, **given}, descending=True)
    return await listing(ctx, query, view, show.approval)


@operation(
    "POST", "/api/engine/approvals", tag="approvals", scope="approvals:request", role="member", body=ApprovalIn,
    returns=show.ApprovalOut, status=201, audit="approval.request", errors=(NotFound, Conflict),
    example=Example(body={"agent_id": AGENT_ID, "tool": "exec", "reason": "A release."}),
)  # fmt: skip
async def request_approval(ctx: Context, body: ApprovalIn) -> Reply:
    """Ask people about a call that an agent will run itself.

    Once it is approved, the agent's very same check is allowed, once. A call that waits already, or was decided a
    short while ago, is given back as it stands.
    """
    agent: Agent | None = await ctx.store.get(AGENTS, ctx.org, body.agent_id)
    if agent is None:
        raise NotFound("There is no such agent.")
    tool = await Catalog(TOOL_INDEX, ctx.store).load(ctx.org, body.tool)
    ask = Ask(
        org=ctx.org, agent=agent.id, agent_name=agent.name, tool=body.tool, arguments=body.arguments, door="checks",
        kind="check", rule="requested", reason=body.reason, request_id=ctx.request_id, ip=ctx.ip,
    )  # fmt: skip
    approval, _ = await ctx.runtime.approvals.hold(ask, tool)
    ctx.resource = approval.id
    ctx.details["tool"] = body.tool
    return Reply(show.approval(approval), approval.version, f"/api/engine/approvals/{approval.id}")


@operation(
    "GET", "/api/engine/approvals/{id}", tag="approvals", scope="approvals:read", role="member",
    returns=show.ApprovalDetailOut, example=Example(path={"id": APPROVAL_ID}),
)  # fmt: skip
async def get_approval(ctx: Context) -> Reply:
    """One held call, with all of it: the stored form to the last byte, and everything invisible drawn."""
    engine = ctx.runtime.approvals
    approval = await engine.get(ctx.org, ctx.path["id"])
    return Reply(show.detail(engine, approval), approval.version)


@operation(
    "PUT", "/api/engine/approvals/{id}", tag="approvals", scope="approvals:decide", role="member", body=Deed,
    returns=show.ApprovalDetailOut, audit="approval.decide",
    errors=(Conflict, Decided, Stale, PreconditionFailed, NotFound),
    example=Example(path={"id": APPROVAL_ID}, body={"action": "reject", "reason": "Not to customers."}),
)  # fmt: skip
async def decide_approval(ctx: Context, body: Deed) -> Reply:
    """Approve, reject with a reason, edit and approve, delegate, or snooze.

    Who decides is the credential that was sent. `digest` says which bytes were looked at; if they were edited since,
    nothing is decided (409 STALE). A call that was decided already answers 409 ALREADY_DECIDED, and says by whom.
    """
    engine = ctx.runtime.approvals
    stored = await engine.get(ctx.org, ctx.path["id"])
    version = stored.version if ctx.match(stored.version) else None
    decider = await decider_of(ctx.store, ctx.principal)
    approval = await engine.decide(ctx.org, stored.id, decider, body, version)
    ctx.details["action"] = body.action
    ctx.details["digest"] = approval.digest
    ctx.details["tool"] = approval.tool
    return Reply(show.detail(engine, approval), approval.version)


@operation(
    "POST", "/api/engine/approvals/decisions", tag="approvals", scope="approvals:decide", role="member", body=BatchIn,
    returns=show.BatchOut, audit="approval.batch",
    example=Example(body={"decisions": [{"id": APPROVAL_ID, "action": "reject", "reason": "Not to customers."}]}),
)  # fmt: skip
async def decide_approvals(ctx: Context, body: BatchIn) -> Reply:
    """Decide about several held calls at once.

    Each is decided for itself: one that cannot be decided does not keep the others from it, and says why.
    """
    engine = ctx.runtime.approvals
    decider = await decider_of(ctx.store, ctx.principal)
    items: list[show.BatchItemOut] = []
    for one in body.decisions:
        deed = Deed(**{field: getattr(one, field) for field in Deed.__struct_fields__})
        try:
            approval = await engine.decide(ctx.org, one.id, decider, deed)
            items.append(show.BatchItemOut(id=one.id, ok=True, state=approval.state, code="", error=""))
        except EnterpriseError as error:
            if error.status >= 500:
                raise
            items.append(show.BatchItemOut(id=one.id, ok=False, state="", code=error.code, error=error.message))
    ctx.resource = body.decisions[0].id
    ctx.details["done"] = str(sum(item.ok for item in items))
    ctx.details["approvals"] = " ".join(item.id for item in items)[:500]
    return Reply(show.BatchOut(items=items))


@operation(
    "GET", "/api/engine/approvals/{id}/result", tag="approvals", scope=CALL, role="owner", returns=show.ResultOut,
    example=Example(path={"id": APPROVAL_ID}),
)  # fmt: skip
async def get_approval_result(ctx: Context) -> Reply:
    """How a held call of one's own stands, and its result: what an agent polls."""
    engine = ctx.runtime.approvals
    if not ctx.principal.agent_id:
        ctx.require("approvals:read")
    approval = await engine.get(ctx.org, ctx.path["id"])
    if ctx.principal.agent_id and ctx.principal.agent_id != approval.agent:
        raise Forbidden("This is another agent's call.")
    return Reply(
        show.ResultOut(
            id=approval.id, state=approval.state, outcome=approval.outcome, rejection=approval.rejection,
            error=approval.error, answer=engine.result(approval),
        ),
        approval.version,
    )  # fmt: skip
