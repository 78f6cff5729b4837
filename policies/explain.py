"""Why? Every rule that speaks about a call, the one that decides, and the nearest change that would let it pass.

An explanation charges nothing and asks no gate. Its verdict is the chain's: the same `assemble`, the same guards,
with those that charge replaced by their `peek`. The nearest change is not advice from a table: each step is applied
to a copy of the policy, which is judged again, until the call would be allowed, or, if it was denied, at least be
held for a person.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from ..catalog.calls import Call, Code, Tool, Verdict
from ..catalog.records import Effect
from .chain import Chain, assemble, place_and_time
from .nearest import Case, Change, step_for
from .permissions import STAGES, granted_by
from .pluginhost import Active, PluginHost
from .running import run_guards
from .snapshot import Ready, Subject
from .verdicts import Match, shown, spoken
from .watchdog import FAULTS

MAX_STEPS: Final = 24
"""Changes tried at most. A profile has fewer stages; several rules of one stage may each need one."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """`sentence` says it all in one; `rule` and `code` name the winner among `matches`, which stand in running order.
    `nearest`: all of these changes together would let the call pass; empty when it does, or when nothing known
    would."""

    sentence: str
    effect: Effect
    code: Code
    rule: str
    agent: str
    tool: str
    matches: tuple[Match, ...] = ()
    nearest: tuple[Change, ...] = ()
    after: Literal["allow", "hold", ""] = ""
    """What the verdict would be after `nearest`."""


async def explain_call(chain: Chain, call: Call) -> Explanation:
    """Explain a call as policy stands now. Raises StoreError."""
    subject, tool = await chain.subject(call.principal, call.tool)
    explanation = explain(subject, tool, call, chain.plugins)
    if explanation.effect != "allow" or chain.approvals is None or subject.agent is None:
        return explanation
    finding = await chain.approvals(subject.agent, tool)
    if finding is None:
        return explanation
    held = spoken(finding, subject.name, tool.id)
    match = Match(stage="approval policy", rule=held.rule, effect="hold", matched=True)
    return msgspec.structs.replace(
        explanation, sentence=held.reason, effect="hold", code=held.code, rule=held.rule,
        matches=(*explanation.matches, match),
    )  # fmt: skip


def explain(subject: Subject, tool: Tool, call: Call, plugins: PluginHost) -> Explanation:
    """Explain a call by `subject` to `tool`. `call.args` must decode (doors check before they build a Call)."""
    case = Case(subject.agent, subject.profile, subject.key_ips, tool)
    verdict = rehearse(case, call, plugins)
    nearest, after = find_nearest(case, call, plugins, verdict)
    sentence = verdict.reason
    if verdict.effect == "allow":
        sentence = f"{shown(subject.name)} may call {shown(tool.id)}: {verdict.reason}"
    return Explanation(
        sentence=sentence,
        effect=verdict.effect, code=verdict.code, rule=verdict.rule, agent=subject.name, tool=tool.id,
        matches=tuple(matches(case, call, plugins)), nearest=nearest, after=after,
    )  # fmt: skip


def rehearse(case: Case, call: Call, plugins: PluginHost) -> Verdict:
    """The verdict the chain would give before its gates, charging nothing."""
    return run_guards(call, assemble(case.subject, case.tool, plugins, peek=True), plugins)


def find_nearest(
    case: Case, call: Call, plugins: PluginHost, verdict: Verdict
) -> tuple[tuple[Change, ...], Literal["allow", "hold", ""]]:
    """Remove one objection after the other. Each step answers the objection that decided, so none can be left out."""
    goal = {"allow"} if verdict.effect == "hold" else {"allow", "hold"}
    changes: list[Change] = []
    while verdict.effect not in goal and len(changes) < MAX_STEPS:
        step = step_for(case, call, verdict, plugins)
        if step is None:
            return (), ""
        case, change = step
        changes.append(change)
        verdict = rehearse(case, call, plugins)
    if not changes or verdict.effect not in goal:
        return (), ""
    return tuple(changes), "allow" if verdict.effect == "allow" else "hold"


# -- every rule, in running order ------------------------------------------------------------------------------------
def matches(case: Case, call: Call, plugins: PluginHost) -> Iterator[Match]:
    """What each rule says, not stopping at the first that objects."""
    agent, profile = case.agent, case.profile
    status = agent.status if agent is not None else "missing"
    yield Match(
        stage="agent",
        rule=f"agent:{status}",
        effect="allow" if status == "active" else "deny",
        matched=True,
        detail=f"the agent is {status}",
    )
    if agent is None or profile is None:
        yield Match(
            stage="grant", rule="default-deny:no-profile", effect="deny", matched=True, detail="there is no profile"
        )
        return
    for stage, look in STAGES:
        finding = look(profile, case.tool)
        if finding is not None:
            yield Match(stage=stage, rule=finding.rule, effect=finding.effect, matched=True, detail=finding.because)
        elif stage == "grant":
            rule = granted_by(profile, case.tool) or "default-deny"
            yield Match(stage=stage, rule=rule, effect="allow", matched=True, detail=f"granted by {shown(rule)}")
        elif stage == "risk":
            detail = f"risk {case.tool.risk}, at most {profile.max_risk} allowed"
            yield Match(
                stage=stage, rule=f"profile.max_risk:{profile.max_risk}", effect="allow", matched=True, detail=detail
            )
    yield from _place_and_time(case, call, plugins)
    for active in plugins.guards:
        yield from _guard(active, case, call, plugins)
    for active in plugins.gates:
        yield Match(stage="gate", rule=active.name, effect="none", matched=True, detail="asked about real calls only")


def _place_and_time(case: Case, call: Call, plugins: PluginHost) -> Iterator[Match]:
    try:
        guards = place_and_time(case.subject)
    except ValueError as error:
        yield Match(stage="place and time", rule="profile", effect="deny", matched=True, detail=str(error))
        return
    for name, guard in guards:
        verdict = run_guards(call, Ready(Verdict("allow", name, "ALLOWED", ""), (guard,), (name,)), plugins)
        detail = (
            f"from {shown(call.ip) or 'an unknown address'}, at {call.at:.0f}"
            if verdict.effect == "allow"
            else verdict.reason
        )
        yield Match(stage="place and time", rule=name, effect=verdict.effect, matched=True, detail=detail)


def _guard(active: Active, case: Case, call: Call, plugins: PluginHost) -> Iterator[Match]:
    """A plugin's own account (`examine`, optional), else what its function says of this call."""
    agent, profile = case.agent, case.profile
    if agent is None or profile is None:
        return
    stage = "rate" if active.charges else "arguments"
    try:
        examine = getattr(active.plugin, "examine", None)
        if examine is not None:
            found = plugins.watchdog.run(active.ward, lambda: list(examine(agent, profile, case.tool, call)))
            yield from (match for match in found if isinstance(match, Match))
            return
        guard = plugins.compile_guard(active, agent, profile, case.tool, peek=True)
    except FAULTS as error:
        yield Match(
            stage=stage,
            rule=active.name,
            effect="deny",
            matched=True,
            detail=f"the check failed: {type(error).__name__}",
        )
        return
    if guard is None:
        detail = "charges, and cannot be asked without" if active.charges else "nothing to say about this tool"
        yield Match(stage=stage, rule=active.name, effect="none", matched=active.charges, detail=detail)
        return
    verdict = run_guards(
        call, Ready(Verdict("allow", active.name, "ALLOWED", "no objection"), (guard,), (active.name,)), plugins
    )
    yield Match(stage=stage, rule=verdict.rule, effect=verdict.effect, matched=True, detail=verdict.reason)
