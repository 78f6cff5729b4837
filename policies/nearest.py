"""One step towards a call that may happen: for each code of a verdict, the smallest change that answers it.

A step takes a `Case` (who, which profile, which tool) and returns the changed one with a description for people. It
promises nothing: `explain` judges the changed case again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Literal

import msgspec

from ..catalog.calls import AgentView, Call, Code, Tool, Verdict
from ..catalog.profiles import ArgumentRule, Profile, RateLimit, ToolRule, Window
from .addresses import BadAddress, domains
from .fields import Surprise, find, parse
from .guards import DAYS, moment_of, networks, zone
from .limits import Limit, RateLimits
from .operators import BadRule, clean_path, is_number
from .patterns import compiled
from .pluginhost import PluginHost
from .rules import CompiledRule, applicable, broken
from .snapshot import Subject
from .verdicts import shown

Who = Literal["an administrator", "the agent"]


class Change(msgspec.Struct, frozen=True):
    """`change` in words, `where` as a path an administrator knows, `who` can make it."""

    change: str
    where: str
    who: Who = "an administrator"


class Case(msgspec.Struct, frozen=True):
    """Everything of a policy that a change may touch."""

    agent: AgentView | None
    profile: Profile | None
    key_ips: tuple[str, ...]
    tool: Tool

    @property
    def subject(self) -> Subject:
        return Subject(self.agent, self.profile, self.key_ips)


Step = tuple[Case, Change] | None


def step_for(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    """The change that answers this verdict, None when none is known (a stranger's plugin said no, there is no
    agent)."""
    step = STEPS.get(verdict.code)
    return None if step is None else step(case, call, verdict, plugins)


def _replaced(case: Case, **fields: Any) -> Case:
    profile = case.profile
    assert profile is not None  # noqa: S101 - every step below answers a verdict that a profile gave
    return msgspec.structs.replace(case, profile=msgspec.structs.replace(profile, **fields))


def _named(tool_id: str) -> bool:
    """Whether an id can be granted by name. As a pattern, an id with a wildcard in it would grant more than itself."""
    return 0 < len(tool_id) <= 256 and "*" not in tool_id and "?" not in tool_id and tool_id.isprintable()


def _activate(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    if case.agent is None:
        return None
    agent = msgspec.structs.replace(case.agent, status="active")
    changed = msgspec.structs.replace(case, agent=agent)
    return changed, Change(f"set the agent's status from {case.agent.status} to active", f"agents/{agent.id}.status")


def _give_profile(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    if case.agent is None or not _named(case.tool.id):
        return None
    profile = Profile(tools=ToolRule(allow=(case.tool.id,)), max_risk=case.tool.risk)
    changed = msgspec.structs.replace(case, profile=profile)
    what = f"give the agent a profile that allows {case.tool.id} (risk {case.tool.risk})"
    return changed, Change(what, f"agents/{case.agent.id}.profile_id")


def _allow(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    if case.profile is None or not _named(case.tool.id):
        return None
    tools = case.profile.tools
    changed = _replaced(case, tools=msgspec.structs.replace(tools, allow=(*tools.allow, case.tool.id)))
    return changed, Change(f"allow {case.tool.id}", "profile.tools.allow")


def _undeny(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    if case.profile is None:
        return None
    tools = case.profile.tools
    kept = tuple(glob for glob in tools.deny if case.tool.id not in compiled((glob,)))
    gone = ", ".join(shown(glob) for glob in tools.deny if glob not in kept)
    return _replaced(case, tools=msgspec.structs.replace(tools, deny=kept)), Change(
        f"remove {gone}", "profile.tools.deny"
    )


def _raise_risk(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    return _replaced(case, max_risk=case.tool.risk), Change(
        f"raise the maximum risk to {case.tool.risk}", "profile.max_risk"
    )


def _unblock(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    if case.profile is None:
        return None
    blocked = case.profile.blocked_side_effects
    kept = tuple(effect for effect in blocked if effect not in case.tool.side_effects)
    gone = ", ".join(effect for effect in blocked if effect not in kept)
    return _replaced(case, blocked_side_effects=kept), Change(f"remove {gone}", "profile.blocked_side_effects")


def _open_hour(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    if case.profile is None or not case.profile.schedule:
        return None
    timezone = case.profile.schedule[0].timezone
    start = moment_of(call.at).astimezone(zone(timezone)).replace(minute=0)
    end = "24:00" if start.hour == 23 else f"{(start + timedelta(hours=1)).hour:02d}:00"
    window = Window(days=(DAYS[start.weekday()],), start=f"{start.hour:02d}:00", end=end, timezone=timezone)
    changed = _replaced(case, schedule=(*case.profile.schedule, window))
    what = f"add {window.days[0]} {window.start}-{window.end} {timezone}, or call within the schedule"
    return changed, Change(what, "profile.schedule")


def _admit_ip(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    try:
        networks((call.ip,))
    except ValueError:
        return None
    if verdict.rule == "key.allowed_ips":
        changed = msgspec.structs.replace(case, key_ips=(*case.key_ips, call.ip))
    elif case.profile is not None:
        changed = _replaced(case, allowed_ips=(*case.profile.allowed_ips, call.ip))
    else:
        return None
    return changed, Change(f"add {call.ip}", verdict.rule)


# -- argument rules ----------------------------------------------------------------------------------------------------
def _relax_rule(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    """Widen the rule by the very value where that is enough, else remove it."""
    if case.profile is None:
        return None
    for rule in applicable(case.profile, case.tool.id):
        if verdict.rule == f"argument-rules:{rule.name}" and not _meets(rule, call):
            break
    else:
        return None
    where = f"profile.argument_rules[{rule.name}]"
    rules = list(case.profile.argument_rules)
    at = next(at for at, other in enumerate(rules) if other is rule)
    wider = _widened(rule, call)
    if wider is None or not _meets(wider, call):
        del rules[at]
        return _replaced(case, argument_rules=tuple(rules)), Change("remove the rule", where)
    rules[at] = wider
    what = (
        "let '"
        + shown(rule.field)
        + "' also be "
        + shown(", ".join(str(v) for v in wider.values if v not in rule.values))
    )
    return _replaced(case, argument_rules=tuple(rules)), Change(what, f"{where}.values")


def _meets(rule: ArgumentRule, call: Call) -> bool:
    try:
        return broken(rule) is None and CompiledRule(rule).check(call.args) is None
    except Surprise:
        return False


def _widened(rule: ArgumentRule, call: Call) -> ArgumentRule | None:
    try:
        values = find(call.args, parse(rule.field)).values
        operands = _operands(rule, values)
    except (Surprise, BadAddress, BadRule, ValueError):
        return None
    return msgspec.structs.replace(rule, values=operands) if operands else None


def _operands(rule: ArgumentRule, values: list[Any]) -> tuple[Any, ...]:
    """The operands that would let `values` pass; () when operands cannot do it. Raises ValueError for unfit values."""
    texts = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if is_number(value)]
    if rule.op == "one_of":
        return (*rule.values, *(value for value in values if isinstance(value, str | int | float)))
    if rule.op in {"max", "min"} and numbers:
        return ((max if rule.op == "max" else min)(numbers),)
    if rule.op == "max_length" and texts:
        return (max(map(len, texts)),)
    if rule.op == "domain_in":
        return tuple(dict.fromkeys((*rule.values, *(domain for text in texts for domain in domains(text)))))
    if rule.op == "path_within":
        return tuple(dict.fromkeys((*rule.values, *map(clean_path, texts))))
    if rule.op == "command_in":
        return tuple(dict.fromkeys((*rule.values, *(text.split()[0] for text in texts if text.split()))))
    return ()


# -- rates, approval, faults ------------------------------------------------------------------------------------------
def _raise_limit(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    limiter = next((active.plugin for active in plugins.guards if isinstance(active.plugin, RateLimits)), None)
    if limiter is None or case.profile is None or case.agent is None:
        return None
    limit = next((one for one in limiter.limits(case.agent, case.profile, case.tool) if one.rule == verdict.rule), None)
    if limit is None:
        return None
    needed = limiter.ceiling_for(limiter.used(limit) + 1)
    rates = tuple(_raised(rate, limit, needed) for rate in case.profile.rate_limits)
    wait = f" (or wait {verdict.retry_after:.0f} s)" if verdict.retry_after else ""
    what = f"raise the limit per {limit.unit} to {needed}{wait}"
    return _replaced(case, rate_limits=rates), Change(what, "profile.rate_limits")


def _raised(rate: RateLimit, limit: Limit, needed: int) -> RateLimit:
    field = f"per_{limit.unit}"
    same = tuple(sorted(set(rate.tools))) == limit.key[3]
    if same and 0 < getattr(rate, field) < needed:
        return msgspec.structs.replace(rate, **{field: needed})
    return rate


def _waive_approval(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    if case.profile is None or not verdict.rule.startswith("profile.approval."):
        return None
    approval, tool = case.profile.approval, case.tool
    part = verdict.rule.removeprefix("profile.approval.").partition(":")[0]
    kept: tuple[Any, ...]
    if part == "tools":
        kept = tuple(glob for glob in approval.tools if tool.id not in compiled((glob,)))
    elif part == "risks":
        kept = tuple(risk for risk in approval.risks if risk != tool.risk)
    else:
        kept = tuple(effect for effect in approval.side_effects if effect not in tool.side_effects)
    gone = ", ".join(shown(entry) for entry in getattr(approval, part) if entry not in kept)
    changed = _replaced(case, approval=msgspec.structs.replace(approval, **{part: kept}))
    return changed, Change(f"remove {gone}", f"profile.approval.{part}")


def _accept_pin(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    tool = msgspec.structs.replace(case.tool, pin_held=False)
    changed = msgspec.structs.replace(case, tool=tool)
    return changed, Change("approve the tool's changed description", f"tools/{shown(tool.id)}.pin")


def _mend(case: Case, call: Call, verdict: Verdict, plugins: PluginHost) -> Step:
    """Take out of the profile what cannot be compiled."""
    profile = case.profile
    if profile is None:
        return None
    rules = tuple(rule for rule in profile.argument_rules if broken(rule) is None)
    if len(rules) < len(profile.argument_rules):
        gone = ", ".join(shown(rule.name) for rule in profile.argument_rules if rule not in rules)
        return _replaced(case, argument_rules=rules), Change(f"correct or remove {gone}", "profile.argument_rules")
    ips = tuple(text for text in profile.allowed_ips if _sound(networks, (text,)))
    if ips and len(ips) < len(profile.allowed_ips):
        return _replaced(case, allowed_ips=ips), Change("remove what is no address", "profile.allowed_ips")
    windows = tuple(window for window in profile.schedule if _sound(zone, window.timezone))
    if windows and len(windows) < len(profile.schedule):
        return _replaced(case, schedule=windows), Change("correct or remove unknown time zones", "profile.schedule")
    return None


def _sound(read: Callable[[Any], Any], value: Any) -> bool:
    try:
        read(value)
    except ValueError:
        return False
    return True


STEPS: Final[dict[Code, Callable[[Case, Call, Verdict, PluginHost], Step]]] = {
    "AGENT_SUSPENDED": _activate,
    "AGENT_ARCHIVED": _activate,
    "NO_PROFILE": _give_profile,
    "TOOL_UNKNOWN": _allow,
    "TOOL_NOT_GRANTED": _allow,
    "TOOL_DENIED": _undeny,
    "RISK_TOO_HIGH": _raise_risk,
    "SIDE_EFFECT_BLOCKED": _unblock,
    "OUTSIDE_SCHEDULE": _open_hour,
    "IP_NOT_ALLOWED": _admit_ip,
    "ARGUMENT_DENIED": _relax_rule,
    "RATE_LIMITED": _raise_limit,
    "APPROVAL_REQUIRED": _waive_approval,
    "PIN_CHANGED": _accept_pin,
    "POLICY_ERROR": _mend,
}
"""Which change answers which code. A code that is missing (PLUGIN_DENIED) has no change that we know of."""
