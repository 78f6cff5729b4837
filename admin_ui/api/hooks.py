"""`/api/engine/hooks`: the hooks that agents' own runtimes ask before a tool call, and whether they are there."""

from __future__ import annotations

from typing import Final

import msgspec

from ...catalog.errors import BadRequest, NotFound
from ...catalog.records import HOOKS, HookPresence, HookState
from ...catalog.store import Delete
from ...gateway.hookwatch import Beat
from ...gateway.scopes import CALL
from ..examples import AGENT_ID
from ..operation import Context, Example, Listing, Operation, Reply, operation
from ..paging import PageQuery, View, listing
from ..show import Time, moment, moment_or_none


class HookOut(msgspec.Struct, kw_only=True):
    """The hook of one agent. `state` `expected`: not heard of yet; `silent`: missing while its agent worked. The counts
    are the hook's own since it started: calls it saw, calls nobody had checked, calls whose arguments changed after."""

    agent_id: str
    state: HookState
    runtime: str
    plugin: str
    seen_at: Time | None
    alarm: str
    alarm_at: Time | None
    calls: int
    unchecked: int
    changed: int
    created_at: Time
    version: int


class BeatOut(msgspec.Struct, kw_only=True):
    """`heartbeat`: seconds until the next sign of life is due."""

    agent_id: str
    state: HookState
    heartbeat: float


def shown(record: HookPresence) -> HookOut:
    return HookOut(
        agent_id=record.id, state=record.state, runtime=record.runtime, plugin=record.plugin,
        seen_at=None if record.state == "expected" else moment(record.seen_at), alarm=record.alarm,
        alarm_at=moment_or_none(record.alarm_at), calls=record.calls, unchecked=record.unchecked,
        changed=record.changed, created_at=moment(record.created_at), version=record.version,
    )  # fmt: skip


HEARTBEAT: Final = Operation(
    name="beat_hook", method="POST", path="/api/engine/hooks/heartbeat", tag="hooks", scope=CALL, role="owner",
    summary="A hook's sign of life.",
    description="The agent is the one that the key is bound to. Once a hook has been heard of, its silence while the "
    "agent works is an alarm, and by `hooks.on_silence` pauses the agent.",
    body=Beat, returns=BeatOut, handler=None, served_by="gateway",
    example=Example(body={"instance": "4f0c2a77", "runtime": "openclaw/2026.9.6", "plugin": "1.0.0", "calls": 12}),
)  # fmt: skip


@operation(
    "GET", "/api/engine/hooks", tag="hooks", scope="agents:read", query=PageQuery, returns=HookOut, listing=True,
    errors=(BadRequest,), example=Example(query={"limit": "10"}),
)  # fmt: skip
async def list_hooks(ctx: Context, query: PageQuery) -> Listing:
    """The hooks of this organisation's agents."""
    return await listing(ctx, query, View(entity=HOOKS, index="by_org", where={"org": ctx.org}), shown)


@operation(
    "PUT", "/api/engine/hooks/{id}", tag="hooks", scope="agents:write", role="member", returns=HookOut,
    audit="hook.expect", errors=(NotFound,), example=Example(path={"id": AGENT_ID}),
)  # fmt: skip
async def expect_hook(ctx: Context) -> Reply:
    """Expect a hook at an agent's runtime.

    From now on the agent's calls without one raise the alarm, also when its plugin was never loaded.
    """
    record = await ctx.runtime.hooks.expect(ctx.org, ctx.path["id"])
    return Reply(shown(record), version=record.version)


@operation(
    "DELETE", "/api/engine/hooks/{id}", tag="hooks", scope="agents:write", role="member", returns=None, status=204,
    audit="hook.forget", errors=(NotFound,), example=Example(path={"id": AGENT_ID}),
)  # fmt: skip
async def forget_hook(ctx: Context) -> None:
    """Expect no hook of an agent any more: its plugin was removed on purpose."""
    record: HookPresence | None = await ctx.store.get(HOOKS, ctx.org, ctx.path["id"])
    if record is None:
        raise NotFound("No hook is known of this agent.")
    await ctx.store.commit(Delete(HOOKS, ctx.org, record.id))
