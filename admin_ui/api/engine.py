"""`/api/engine`: the catalog (skills, presets, tools), OpenClaw's tool policy, statistics; the checks door's page."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Final, get_args

import msgspec

from ...catalog.calls import Tool
from ...catalog.errors import JournalFull, NotFound, ValidationFailed
from ...catalog.presets import PRESET_PROFILES, get_preset
from ...catalog.profiles import Risk, SideEffect
from ...catalog.records import (
    AGENTS,
    CALLS,
    CHAIN_HEADS,
    KEYS,
    TOOLS,
    UPSTREAMS,
    AgentStatus,
    ChainHead,
    Outcome,
    ToolRecord,
)
from ...catalog.skills import BUILTIN_SKILLS, SKILL_INDEX, Category, Skill, get_skill
from ...catalog.store import MAX_PAGE, Entity, Query
from ...catalog.tools import TOOL_INDEX
from ...gateway.doors.checks import Batch, Check, Report
from ...gateway.scopes import CALL
from ...policies.toolpolicy import generate_openclaw_tool_policy
from .. import show
from ..examples import CALL_ID
from ..operation import NO_AUDIT, Context, Example, Listing, Operation, Reply, operation
from ..paging import PageQuery, of_sequence

RECENT: Final = 200


class SkillQuery(PageQuery, kw_only=True):
    """`category`: only skills of that category."""

    category: Category | msgspec.UnsetType = msgspec.UNSET


class ToolQuery(PageQuery, kw_only=True):
    """All filters must hold. `group`: one of the built-in groups, or the name of an upstream."""

    group: str | msgspec.UnsetType = msgspec.UNSET
    skill: str | msgspec.UnsetType = msgspec.UNSET
    risk: Risk | msgspec.UnsetType = msgspec.UNSET


class ToolOut(msgspec.Struct, kw_only=True):
    """A tool of the catalog. `upstream` null: built in, offered by nobody in particular."""

    id: str
    name: str
    description: str
    group: str
    skills: tuple[str, ...]
    risk: Risk
    side_effects: tuple[SideEffect, ...]
    upstream: str | None


class SkillOut(msgspec.Struct, kw_only=True):
    """A skill with its tools in full."""

    skill: Skill
    tools: list[ToolOut]


class ToolPolicyIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The skills to be granted."""

    skills: Annotated[tuple[str, ...], msgspec.Meta(max_length=100)]


class ToolPolicyOut(msgspec.Struct, kw_only=True):
    """For OpenClaw's `openclaw.json`: `tools.allow` and `tools.deny`."""

    allow: list[str]
    deny: list[str]


class StatsOut(msgspec.Struct, kw_only=True):
    """Counts of one organisation, exact up to 10,000 each. `calls` is all that is on record; `recent_*` count the
    newest 200 of them."""

    agents: int
    agents_by_status: dict[str, int]
    keys: int
    upstreams: int
    skills: int
    presets: int
    tools_builtin: int
    tools_registered: int
    calls: int
    recent_effects: dict[str, int]
    recent_outcomes: dict[str, int]


class CheckOut(msgspec.Struct, kw_only=True):
    """The answer to one check. Anything but `allowed` means: do not run the tool. `tool`: the one that was judged, of
    a `wrapped` call the one inside. `pending`: ask again with the same ids until somebody has decided. `args`: run it
    with these instead, for they are what was approved."""

    allowed: bool
    requires_approval: bool
    reason: str
    code: str
    decision_id: str
    tool: str
    retry_after: float | msgspec.UnsetType = msgspec.UNSET
    wrapped: bool | msgspec.UnsetType = msgspec.UNSET
    approval_id: str | msgspec.UnsetType = msgspec.UNSET
    pending: bool | msgspec.UnsetType = msgspec.UNSET
    args: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class ReportOut(msgspec.Struct, kw_only=True):
    """The record of the decision, closed."""

    decision_id: str
    outcome: Outcome


# -- skills and presets ------------------------------------------------------------------------------------------
@operation(
    "GET", "/api/engine/skills", tag="catalog", scope="catalog:read", query=SkillQuery, returns=Skill, listing=True,
    example=Example(query={"category": "communication"}),
)  # fmt: skip
async def list_skills(ctx: Context, query: SkillQuery) -> Listing:
    """The built-in skills: what is granted when tool ids are too small a unit."""
    wanted = [skill for skill in BUILTIN_SKILLS if query.category in {msgspec.UNSET, skill.category}]
    return of_sequence(ctx, query, wanted, f"skills:{query.category}")


@operation(
    "GET", "/api/engine/skills/{id}", tag="catalog", scope="catalog:read", returns=SkillOut,
    example=Example(path={"id": "email-management"}),
)  # fmt: skip
async def get_one_skill(ctx: Context) -> Reply:
    """One skill with its tools."""
    skill = get_skill(ctx.path["id"])
    return Reply(SkillOut(skill=skill, tools=[_builtin(TOOL_INDEX[tool]) for tool in skill.tools]))


@operation(
    "GET", "/api/engine/presets", tag="catalog", scope="catalog:read", query=PageQuery, returns=show.PresetOut,
    listing=True, example=Example(),
)  # fmt: skip
async def list_presets(ctx: Context, query: PageQuery) -> Listing:
    """The preset permission profiles."""
    return of_sequence(ctx, query, [show.preset(item) for item in PRESET_PROFILES], "presets")


@operation(
    "GET", "/api/engine/presets/{id}", tag="catalog", scope="catalog:read", returns=show.PresetOut,
    example=Example(path={"id": "research-assistant"}),
)  # fmt: skip
async def get_one_preset(ctx: Context) -> Reply:
    """One preset with everything its profile says."""
    return Reply(show.preset(get_preset(ctx.path["id"])))


# -- tools -------------------------------------------------------------------------------------------------------
@operation(
    "GET", "/api/engine/tools", tag="catalog", scope="catalog:read", query=ToolQuery, returns=ToolOut, listing=True,
    example=Example(query={"skill": "email-management", "limit": "200"}),
)  # fmt: skip
async def list_tools(ctx: Context, query: ToolQuery) -> Listing:
    """The tool catalog: the built-in tools, then what this organisation's upstreams offer."""
    tools = [_builtin(tool) for tool in TOOL_INDEX.values()]
    tools += [_registered(record) for record in await _records(ctx) if not record.gone]
    wanted = [
        tool
        for tool in tools
        if query.group in {msgspec.UNSET, tool.group}
        and query.risk in {msgspec.UNSET, tool.risk}
        and (isinstance(query.skill, msgspec.UnsetType) or query.skill in tool.skills)
    ]
    return of_sequence(ctx, query, wanted, f"tools:{query.group}:{query.skill}:{query.risk}")


def _builtin(tool: Tool) -> ToolOut:
    return ToolOut(
        id=tool.id, name=tool.name, description=tool.description, group=tool.group, skills=tool.skills,
        risk=tool.risk, side_effects=tool.side_effects, upstream=None,
    )  # fmt: skip


def _registered(record: ToolRecord) -> ToolOut:
    return ToolOut(
        id=record.tool_id, name=record.title or record.name, description=record.description, group=record.upstream,
        skills=record.skills, risk=record.risk, side_effects=record.side_effects, upstream=record.upstream,
    )  # fmt: skip


async def _records(ctx: Context) -> list[ToolRecord]:
    records: list[ToolRecord] = []
    cursor = ""
    while True:
        page = await ctx.store.find(Query(TOOLS, "by_org", {"org": ctx.org}, limit=MAX_PAGE, cursor=cursor))
        records += page.records
        cursor = page.cursor
        if not cursor:
            return records


@operation(
    "POST", "/api/engine/tool-policy", tag="catalog", scope="catalog:read", body=ToolPolicyIn, returns=ToolPolicyOut,
    audit=NO_AUDIT, example=Example(body={"skills": ["email-management", "web-search"]}),
)  # fmt: skip
async def make_tool_policy(ctx: Context, body: ToolPolicyIn) -> Reply:
    """OpenClaw's allow and deny list for some skills. Nothing is stored."""
    try:
        policy = generate_openclaw_tool_policy(body.skills)
    except ValidationFailed as error:
        faults = [("/skills" + fault["path"], fault["code"], fault["message"]) for fault in error.details["fields"]]
        raise ValidationFailed(faults) from None
    return Reply(ToolPolicyOut(allow=policy["allow"], deny=policy["deny"]))


# -- statistics --------------------------------------------------------------------------------------------------
@operation(
    "GET", "/api/engine/stats", tag="calls", scope="calls:read", returns=StatsOut, example=Example(),
)  # fmt: skip
async def get_stats(ctx: Context) -> Reply:
    """How much of everything there is, and what became of the newest calls."""
    store, org = ctx.store, ctx.org

    async def count(entity: Entity) -> int:
        return await store.count(Query(entity, "by_org", {"org": org}))

    statuses = {
        status: await store.count(Query(AGENTS, "by_status", {"org": org, "status": status}))
        for status in get_args(AgentStatus)
    }
    head: ChainHead | None = await store.get(CHAIN_HEADS, org, "calls")
    recent = (await store.find(Query(CALLS, "by_org", {"org": org}, limit=RECENT, descending=True))).records
    effects: Counter[str] = Counter(record.effect for record in recent)
    outcomes: Counter[str] = Counter(record.outcome for record in recent)
    return Reply(
        StatsOut(
            agents=await count(AGENTS), agents_by_status=statuses, keys=await count(KEYS),
            upstreams=await count(UPSTREAMS), skills=len(SKILL_INDEX), presets=len(PRESET_PROFILES),
            tools_builtin=len(TOOL_INDEX), tools_registered=await count(TOOLS), calls=head.seq if head else 0,
            recent_effects=dict(effects), recent_outcomes=dict(outcomes),
        )
    )  # fmt: skip


# -- the checks door, which the gateway answers itself -----------------------------------------------------------
CHECK_PERMISSION: Final = Operation(
    name="check_permission", method="POST", path="/api/engine/check-permission", tag="checks", scope=CALL,
    role="owner", summary="May this agent use this tool, with these arguments?",
    description="One check, or `checks` with up to 100 of them; the answer to those is a list. The agent is the one "
    "that the key is bound to. An allowed check opens a record that tool-calls closes; others are on record at once. A "
    "hook names the call by its runtime's ids, and may wait for an approval.",
    body=(Check, Batch), returns=CheckOut, handler=None, errors=(JournalFull,), served_by="gateway",
    example=Example(body={"tool": "send_email", "args": {"to": "ana@acme.test", "subject": "Hello"}}),
)  # fmt: skip

TOOL_CALLS: Final = Operation(
    name="report_tool_call", method="POST", path="/api/engine/tool-calls", tag="checks", scope=CALL, role="owner",
    summary="Report how a checked call ended.",
    description="Once per decision, by the agent that asked. A decision that is never reported reads `unknown`.",
    body=Report, returns=ReportOut, handler=None, errors=(NotFound,), served_by="gateway",
    example=Example(body={"decision_id": CALL_ID, "outcome": "ok", "duration_ms": 12.5}),
)  # fmt: skip
