"""What a profile grants: one tool judged against one profile, in one fixed order. Data in, verdict out.

1. unknown: a tool nobody registered is denied, unless `allow_unknown` is set or `tools.allow` names it.
2. `tools.deny`: beats every grant.
3. grant: `tools.allow`, else a skill (allowlist: one of the tool's skills is listed; blocklist: the tool has skills and
   none of them is listed, so one blocked skill is enough to lose a tool that serves two).
4. `max_risk`, then `blocked_side_effects`: these bind tools that are allowed by name as well. An unknown tool counts as
   critical with every side effect, since nobody can say that it is less.
5. approval, then a changed pin: hold. Whoever is asked, and what happens then, is `gateway.approvals`' business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, get_args

import msgspec

from ..catalog.calls import Code, Tool, Verdict
from ..catalog.profiles import RISKS, Profile, SideEffect
from .patterns import compiled
from .verdicts import Finding, allowed, shown, spoken

ALL_SIDE_EFFECTS: Final[tuple[SideEffect, ...]] = get_args(SideEffect)
DEFAULT_DENY: Final = "default-deny"


def unknown_tool(tool_id: str) -> Tool:
    """A tool nobody registered: the worst case of everything."""
    return Tool(id=tool_id, risk="critical", side_effects=ALL_SIDE_EFFECTS, known=False)


def granted_by(profile: Profile, tool: Tool) -> str | None:
    """The rule that grants a tool, whatever else forbids it; None: nothing does."""
    glob = compiled(profile.tools.allow).find(tool.id)
    if glob is not None:
        return f"profile.tools.allow:{glob}"
    listed = profile.skills.list
    if profile.skills.mode == "allowlist":
        skill = next((skill for skill in tool.skills if skill in listed), None)
    else:
        skill = tool.skills[0] if tool.skills and not any(skill in listed for skill in tool.skills) else None
    if skill is not None and tool.known:
        return f"skill:{skill}"
    return "profile.allow_unknown" if not tool.known and profile.allow_unknown else None


def _unknown(profile: Profile, tool: Tool) -> Finding | None:
    if tool.known or profile.allow_unknown or tool.id in compiled(profile.tools.allow):
        return None
    return Finding(
        "deny", "default-deny:unknown-tool", "TOOL_UNKNOWN",
        "no such tool is registered, and unknown tools are denied; check the tool's name.",
    )  # fmt: skip


def _denied(profile: Profile, tool: Tool) -> Finding | None:
    glob = compiled(profile.tools.deny).find(tool.id)
    if glob is None:
        return None
    return Finding(
        "deny", f"profile.tools.deny:{glob}", "TOOL_DENIED", "its profile denies this tool by name; use another one."
    )


def _not_granted(profile: Profile, tool: Tool) -> Finding | None:
    if granted_by(profile, tool) is not None:
        return None
    skills = f" nor a skill that has it ({', '.join(map(shown, tool.skills))})" if tool.skills else ""
    return Finding(
        "deny", DEFAULT_DENY, "TOOL_NOT_GRANTED",
        f"its profile grants neither the tool{skills}; use a tool it has, or ask an administrator for this one."
        if skills
        else "its profile does not grant the tool; use a tool it has, or ask an administrator for this one.",
    )  # fmt: skip


def _risk(profile: Profile, tool: Tool) -> Finding | None:
    if RISKS.index(tool.risk) <= RISKS.index(profile.max_risk):
        return None
    risk = tool.risk if tool.known else f"unknown and counts as {tool.risk}"
    return Finding(
        "deny", f"profile.max_risk:{profile.max_risk}", "RISK_TOO_HIGH",
        f"the tool's risk is {risk}, and its profile allows {profile.max_risk} at most; use a less risky tool.",
    )  # fmt: skip


def _side_effects(profile: Profile, tool: Tool) -> Finding | None:
    blocked = [effect for effect in tool.side_effects if effect in profile.blocked_side_effects]
    if not blocked:
        return None
    what = ", ".join(blocked) if tool.known else f"unknown and may include {', '.join(blocked)}"
    return Finding(
        "deny", f"profile.blocked_side_effects:{blocked[0]}", "SIDE_EFFECT_BLOCKED",
        f"the tool's side effects are blocked by its profile ({what}); find a way without them.",
    )  # fmt: skip


def approval_rule(profile: Profile, tool: Tool) -> str | None:
    """The rule by which a person must approve calls of this tool; None: nobody need."""
    approval = profile.approval
    glob = compiled(approval.tools).find(tool.id)
    if glob is not None:
        return f"profile.approval.tools:{glob}"
    if tool.risk in approval.risks:
        return f"profile.approval.risks:{tool.risk}"
    effect = next((effect for effect in tool.side_effects if effect in approval.side_effects), None)
    return None if effect is None else f"profile.approval.side_effects:{effect}"


def _approval(profile: Profile, tool: Tool) -> Finding | None:
    rule = approval_rule(profile, tool)
    if rule is None:
        return None
    because = f"a person must approve this call first ({shown(rule)})."
    return Finding("hold", rule, "APPROVAL_REQUIRED", because)


def _pin(profile: Profile, tool: Tool) -> Finding | None:
    if not tool.pin_held:
        return None
    because = "its server changed the tool's description, and a person must look at it first."
    return Finding("hold", "pin", "PIN_CHANGED", because, ("pin-changed",))


Stage = Callable[[Profile, Tool], Finding | None]

STAGES: Final[tuple[tuple[str, Stage], ...]] = (
    ("unknown tool", _unknown),
    ("denied tools", _denied),
    ("grant", _not_granted),
    ("risk", _risk),
    ("side effects", _side_effects),
    ("approval", _approval),
    ("pin", _pin),
)
"""The fixed order. The first finding decides."""


def find(profile: Profile, tool: Tool) -> Finding | None:
    """The first objection of a profile to a tool, None when it may be used."""
    for _, stage in STAGES:
        finding = stage(profile, tool)
        if finding is not None:
            return finding
    return None


def grant(profile: Profile, tool: Tool) -> Verdict:
    """The allow verdict of a tool without an objection, one object per rule."""
    return allowed(granted_by(profile, tool) or DEFAULT_DENY, () if tool.known else ("unknown-tool",))


def judge(profile: Profile, tool: Tool, agent: str = "") -> Verdict:
    """What a profile says to a tool, before any look at arguments, time, place or rate. `agent` is its name, for the
    reason. Never raises on a Profile that decodes."""
    finding = find(profile, tool)
    return grant(profile, tool) if finding is None else spoken(finding, agent, tool.id)


class Permission(msgspec.Struct, frozen=True):
    """What `PermissionEngine.check_permission` answers. `allowed` and `requires_approval` are never both true."""

    allowed: bool
    requires_approval: bool
    reason: str
    code: Code
    rule: str
    tool: str


class PermissionEngine:
    """Permissions as a library: profiles and a mapping of tools, no store and no gateway.

    >>> engine = PermissionEngine(TOOL_INDEX)
    >>> engine.check_permission(Profile(), "send_email").allowed
    False
    """

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        """`tools`: what is known, by id, e.g. `catalog.tools.TOOL_INDEX`. Everything else counts as unknown."""
        self._tools = tools

    def tool(self, tool_id: str) -> Tool:
        return self._tools.get(tool_id) or unknown_tool(tool_id)

    def check_permission(self, profile: Profile, tool_id: str, agent: str = "") -> Permission:
        """May a holder of `profile` use this tool? Looks at the tool only: argument rules, rates and schedules need a
        call and are the gateway's (`policies.chain`)."""
        verdict = judge(profile, self.tool(tool_id), agent)
        return Permission(
            verdict.effect == "allow", verdict.effect == "hold", verdict.reason, verdict.code, verdict.rule, tool_id
        )
