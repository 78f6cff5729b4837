"""The five preset profiles, ready to be given to an agent or copied and changed.

One rule holds for all of them: **what is riskier than the preset's `risk` is never done without a person's approval.**
`risk` therefore says what happens by itself, and `profile.max_risk` what can be reached by asking. The two differ in
two presets, each for one reason: Customer Support (medium) must be able to send mail, which is a high risk, and
Developer (high) must be able to run commands, which is a critical one. With `max_risk` at the label these calls would
be refused outright, and the approval rule for them could never apply.

Tools are granted by skill where the whole skill is meant, and by id where a skill holds more than the preset means
(Email Management also tidies, deletes and schedules). A skill also brings the tools of registered MCP servers that are
assigned to it, within the same risk and side effects. Tools that nobody registered are denied, except in Full Access.

Rates are those of the published presets. Their "external actions an hour" are limits on the tools that send, post, pay
or move a device; Research Assistant and Sandbox have no such tool.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from .errors import NotFound
from .profiles import ApprovalRule, Profile, RateLimit, Risk, SideEffect, SkillRule, ToolRule
from .tools import TOOL_INDEX
from .tools.agenticmail_mcp import EQUIVALENTS
from .tools.entry import SIDE_EFFECTS


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """A named profile. `risk` is the highest risk of a call that passes without a person's approval."""

    id: str
    name: str
    description: str
    risk: Risk
    profile: Profile


_SENDING: Final[tuple[SideEffect, ...]] = ("sends-email", "sends-message", "sends-sms")
_ACTING_OUTSIDE: Final[frozenset[SideEffect]] = frozenset({*_SENDING, "posts-social", "controls-device", "financial"})


def _acting_outside(tool_ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(id_ for id_ in tool_ids if _ACTING_OUTSIDE.intersection(TOOL_INDEX[id_].side_effects)))


def _in_both_clients(*plugin_ids: str) -> tuple[str, ...]:
    """The plugin's tools and their twins of the MCP server: an agent may hold either client."""
    wanted = frozenset(plugin_ids)
    return (*plugin_ids, *(mcp for mcp, plugin in EQUIVALENTS.items() if plugin in wanted))


_GOALS: Final = ("get_goal", "create_goal", "update_goal", "progress_card")

_RESEARCH_ASSISTANT = Preset(
    id="research-assistant",
    name="Research Assistant",
    description="Searches and reads the web, files and past sessions; takes notes in its own memory. Sends nothing, "
    "writes and deletes no file.",
    risk="low",
    profile=Profile(
        name="Research Assistant",
        skills=SkillRule(
            list=(
                "web-search", "web-browsing", "news-monitoring", "academic-research", "note-taking", "memory",
                "knowledge-base",
            ),
        ),
        tools=ToolRule(
            allow=(
                "read", "ls", "view_image", "session_status", "sessions_search", "sessions_history", "ask_user",
                *_GOALS,
            ),
            deny=("exec", "write", "edit"),
        ),
        max_risk="low",
        blocked_side_effects=(
            *_SENDING, "posts-social", "runs-code", "modifies-files", "deletes-data", "controls-device",
            "accesses-secrets", "financial",
        ),
        rate_limits=(RateLimit(per_minute=30, per_hour=500, per_day=5000),),
    ),
)  # fmt: skip

_SUPPORT_TOOLS: Final = (
    *_in_both_clients(
        "agenticmail_inbox", "agenticmail_read", "agenticmail_search", "agenticmail_digest", "agenticmail_folders",
        "agenticmail_list_folder", "agenticmail_mark_read", "agenticmail_move", "agenticmail_wait_for_email",
        "agenticmail_send", "agenticmail_reply", "agenticmail_forward", "agenticmail_template_send",
    ),
    "web_search", "web_fetch", "message", "conversations_list", "conversations_send", "ask_user", "session_status",
)  # fmt: skip

_CUSTOMER_SUPPORT = Preset(
    id="customer-support",
    name="Customer Support",
    description="Reads and sorts mail, looks things up, and answers customers: every message that leaves waits for a "
    "person's approval. Deletes nothing, runs nothing.",
    risk="medium",
    profile=Profile(
        name="Customer Support",
        skills=SkillRule(list=("knowledge-base", "crm")),
        tools=ToolRule(allow=_SUPPORT_TOOLS, deny=("exec", "browser", "write", "edit")),
        max_risk="high",  # sending is a high risk; see the module's rule
        blocked_side_effects=(
            "posts-social", "runs-code", "modifies-files", "deletes-data", "controls-device", "accesses-secrets",
            "financial",
        ),
        approval=ApprovalRule(risks=("high", "critical"), side_effects=_SENDING),
        rate_limits=(
            RateLimit(per_minute=20, per_hour=300, per_day=3000),
            RateLimit(per_hour=50, tools=_acting_outside(_SUPPORT_TOOLS)),
        ),
    ),
)  # fmt: skip

_DEVELOPER = Preset(
    id="developer",
    name="Developer",
    description="Works on code, files, databases, containers and interfaces, with the web at hand. Commands and "
    "terminals wait for a person's approval. Sends no mail and no message.",
    risk="high",
    profile=Profile(
        name="Developer",
        skills=SkillRule(
            list=(
                "code-execution", "git-github", "docker", "database", "api-integration", "network", "file-management",
                "web-search", "web-browsing", "memory",
            ),
        ),
        tools=ToolRule(
            allow=(
                "session_status", "sessions_list", "sessions_history", "sessions_search", "sessions_spawn",
                "sessions_yield", "subagents", "agents_list", "agents_wait", "ask_user", *_GOALS,
            ),
            deny=("agenticmail_send", "send_email", "message", "tts", "nodes"),
        ),
        max_risk="critical",  # running a command is a critical risk; see the module's rule
        blocked_side_effects=(*_SENDING, "posts-social", "controls-device", "accesses-secrets", "financial"),
        approval=ApprovalRule(risks=("critical",)),
        rate_limits=(RateLimit(per_minute=60, per_hour=1000, per_day=10_000),),
    ),
)  # fmt: skip

_FULL_ACCESS = Preset(
    id="full-access",
    name="Full Access",
    description="Everything, also tools that nobody registered. For an owner's own agent.",
    risk="critical",
    profile=Profile(
        name="Full Access",
        skills=SkillRule(mode="blocklist"),
        max_risk="critical",
        allow_unknown=True,
        rate_limits=(
            RateLimit(per_minute=120, per_hour=5000, per_day=50_000),
            RateLimit(per_hour=500, tools=_acting_outside(TOOL_INDEX)),
        ),
    ),
)

_SANDBOX = Preset(
    id="sandbox",
    name="Sandbox",
    description="For trying an agent out: it reads files and memory and keeps its goals. No network, nothing sent, "
    "nothing written to disk.",
    risk="low",
    profile=Profile(
        name="Sandbox",
        tools=ToolRule(
            allow=("read", "ls", "memory_search", "memory_get", "session_status", "agents_list", *_GOALS),
        ),
        max_risk="low",
        blocked_side_effects=SIDE_EFFECTS,
        rate_limits=(RateLimit(per_minute=60, per_hour=1000, per_day=10_000),),
    ),
)  # fmt: skip

PRESET_PROFILES: Final[tuple[Preset, ...]] = (
    _RESEARCH_ASSISTANT, _CUSTOMER_SUPPORT, _DEVELOPER, _FULL_ACCESS, _SANDBOX,
)  # fmt: skip
"""Five presets; over `TOOL_INDEX` they reach 25, 35, 45, all and 10 tools."""


def get_preset(preset_id: str) -> Preset:
    """The preset of this id. NotFound, naming it, when there is none."""
    for preset in PRESET_PROFILES:
        if preset.id == preset_id:
            return preset
    raise NotFound(f"There is no preset {preset_id!r}.", preset=preset_id)
