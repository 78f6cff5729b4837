"""`/api/calls`: what agents did. Read only."""

from __future__ import annotations

from typing import Literal

import msgspec

from ...catalog.errors import NotFound
from ...catalog.ids import PREFIXES
from ...catalog.records import CALLS, CHAIN_HEADS, CallRecord, ChainHead
from .. import show
from ..examples import AGENT_ID, CALL_ID
from ..operation import Context, Example, Listing, Reply, operation
from ..paging import Moment, PageQuery, View, listing


class SpanQuery(PageQuery, kw_only=True):
    """`since` <= time < `until`, RFC 3339 with a zone. `order`: newest first unless said otherwise."""

    since: Moment | msgspec.UnsetType = msgspec.UNSET
    until: Moment | msgspec.UnsetType = msgspec.UNSET
    order: Literal["newest", "oldest"] = "newest"


class CallQuery(SpanQuery, kw_only=True):
    """`agent_id`: only that agent's calls."""

    agent_id: str | msgspec.UnsetType = msgspec.UNSET


@operation(
    "GET", "/api/calls", tag="calls", scope="calls:read", query=CallQuery, returns=show.CallOut, listing=True,
    example=Example(query={"agent_id": AGENT_ID, "limit": "20", "since": "2026-01-01T00:00:00Z"}),
)  # fmt: skip
async def list_calls(ctx: Context, query: CallQuery) -> Listing:
    """The record of calls, newest first: who, which tool, the verdict and its rule, and how it ended.

    A call appears here when the journal has been drained, less than a second after it ended.
    """
    where = {"org": ctx.org}
    index = "by_org"
    if not isinstance(query.agent_id, msgspec.UnsetType):
        where, index = {"org": ctx.org, "agent": query.agent_id}, "by_agent"
    newest = await _newest(ctx)
    view = View(
        entity=CALLS, index=index, where=where, descending=query.order == "newest",
        since=bound("call", query.since), until=bound("call", query.until),
        # On stores without large transactions a row may be there before the chain vouches for it.
        keep=lambda record: record.seq <= newest,
    )  # fmt: skip
    return await listing(ctx, query, view, show.call)


@operation(
    "GET", "/api/calls/{id}", tag="calls", scope="calls:read", returns=show.CallOut,
    example=Example(path={"id": CALL_ID}),
)  # fmt: skip
async def get_call(ctx: Context) -> Reply:
    """One call by its decision id, as agents are told it (`dec_...`)."""
    record: CallRecord | None = await ctx.store.get(CALLS, ctx.org, ctx.path["id"])
    if record is None or record.seq > await _newest(ctx):
        raise NotFound(f"There is no call {ctx.path['id']!r} on record.")
    return Reply(show.call(record))


async def _newest(ctx: Context) -> int:
    """The last sequence number that the organisation's chain vouches for."""
    head: ChainHead | None = await ctx.store.get(CHAIN_HEADS, ctx.org, "calls")
    return head.seq if head is not None else 0


def bound(kind: str, moment: Moment | msgspec.UnsetType) -> str | None:
    """The smallest id of a moment: ids begin with their time, so a span of time is a span of ids."""
    if isinstance(moment, msgspec.UnsetType):
        return None
    return f"{PREFIXES[kind]}_{max(0, int(moment.timestamp() * 1000)):012x}"
