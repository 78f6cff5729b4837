"""Who must approve what: an organisation's approval policies, matched against an agent and a tool, and the conditions
under which nobody need be asked. Data in, answers out; the engine that asks people is `gateway.approvals`.

Everything fails closed: a condition that cannot be followed is not met, a policy that cannot be compiled asks people.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ..catalog.approvals import ApprovalPolicy, ApprovalPolicySpec, AutoApproveRule, Condition, Stage, Terms
from ..catalog.calls import AgentView, Tool
from .fields import Surprise, parse
from .fields import find as follow
from .guards import moment_of, window_test
from .operators import OPERATORS, BadRule
from .patterns import compiled
from .verdicts import Finding, shown

RECIPIENT_DOMAIN: Final = "recipient_domain"
RECIPIENT_FIELDS: Final = ("to", "cc", "bcc", "replyTo", "reply_to")
DOMAIN_OPERATORS: Final = {"equals": "domain_in", "one_of": "domain_in", "domain_in": "domain_in"}
"""`recipient_domain` with these demands that every recipient is at one of the domains."""

Met = Callable[[dict[str, Any]], bool]


def condition_test(condition: Condition) -> Met:
    """Compile a condition. ValueError says what is wrong with it."""
    if condition.field == RECIPIENT_DOMAIN:
        return _recipients(condition)
    steps = parse(condition.field)
    test = OPERATORS[condition.op].compile(condition.values)
    absent = condition.op == "absent"

    def met(args: dict[str, Any]) -> bool:
        try:
            found = follow(args, steps)
        except Surprise:
            return False
        if absent:
            return not found.values and not found.nulls
        if not found.values or found.missing or found.nulls:
            return False
        return all(test(value) is None for value in found.values)

    return met


def _recipients(condition: Condition) -> Met:
    op = DOMAIN_OPERATORS.get(condition.op)
    if op is None:
        raise BadRule(f"{RECIPIENT_DOMAIN} takes one of: {', '.join(DOMAIN_OPERATORS)}")
    test = OPERATORS["domain_in"].compile(condition.values)
    paths = [parse(field) for field in RECIPIENT_FIELDS]

    def met(args: dict[str, Any]) -> bool:
        # A key that differs from a known one in case or separators only might be read as it by the upstream.
        known = {field.casefold() for field in RECIPIENT_FIELDS}
        if any(key not in RECIPIENT_FIELDS and key.casefold() in known for key in args):
            return False
        values: list[Any] = []
        try:
            for steps in paths:
                values += follow(args, steps).values
        except Surprise:
            return False
        return bool(values) and all(test(value) is None for value in values)

    return met


def conditions_test(conditions: Sequence[Condition]) -> Met:
    """All of them. ValueError."""
    tests = [condition_test(condition) for condition in conditions]
    return lambda args: all(test(args) for test in tests)


def check_spec(spec: ApprovalPolicySpec) -> list[tuple[str, str]]:
    """What is wrong with a policy beyond its types: (JSON Pointer, sentence)."""
    faults: list[tuple[str, str]] = []
    for place, rule in enumerate(spec.auto_approve_rules):
        where = f"/auto_approve_rules/{place}"
        if not rule.conditions and not rule.schedule:
            faults.append((where, "A rule without conditions and schedule would approve everything."))
        for number, condition in enumerate(rule.conditions):
            try:
                condition_test(condition)
            except ValueError as error:
                faults.append((f"{where}/conditions/{number}", f"This condition cannot be used: {error}."))
        for number, window in enumerate(rule.schedule):
            try:
                window_test(window)
            except ValueError as error:
                faults.append((f"{where}/schedule/{number}", f"This window cannot be used: {error}."))
    named = [("/approvers", spec.approvers)]
    named += [(f"/escalation/{place}/approvers", stage.approvers) for place, stage in enumerate(spec.escalation)]
    for where, approvers in named:
        if 0 < len(set(approvers)) < spec.approvals:
            few = len(set(approvers))
            faults.append((where, f"{spec.approvals} approvals are needed, and only {few} may give one."))
    return faults


def matches(spec: ApprovalPolicySpec, agent_id: str, agent_name: str, tool: Tool) -> bool:
    """Whether a policy speaks about calls of this tool by this agent."""
    if not spec.enabled:
        return False
    if spec.agents:
        agents = compiled(spec.agents)
        if agent_id not in agents and agent_name not in agents:
            return False
    if not (spec.tools or spec.skills or spec.risks or spec.side_effects):
        return True
    return (
        (bool(spec.tools) and tool.id in compiled(spec.tools))
        or any(skill in spec.skills for skill in tool.skills)
        or tool.risk in spec.risks
        or any(effect in spec.side_effects for effect in tool.side_effects)
    )


def ordered(policies: Sequence[ApprovalPolicy]) -> tuple[ApprovalPolicy, ...]:
    """The order in which policies count: priority first, then age (ids are ordered by time)."""
    return tuple(sorted(policies, key=lambda policy: (-policy.spec.priority, policy.id)))


def choose(policies: Sequence[ApprovalPolicy], agent_id: str, agent_name: str, tool: Tool) -> ApprovalPolicy | None:
    """The policy that counts, of `ordered` ones."""
    return next((policy for policy in policies if matches(policy.spec, agent_id, agent_name, tool)), None)


def finding(policies: Sequence[ApprovalPolicy], agent: AgentView, tool: Tool) -> Finding | None:
    """What approval policies say to a tool that would pass: hold, or nothing."""
    policy = choose(policies, agent.id, agent.name, tool)
    if policy is None:
        return None
    because = f"a person must approve this call first (approval policy {shown(policy.spec.name)})."
    return Finding("hold", f"approval-policy:{policy.id}", "APPROVAL_REQUIRED", because)


def terms_of(policy: ApprovalPolicy | None) -> Terms:
    """What is agreed when a call is held under a policy; without one: an administrator, an hour, and silence denies."""
    if policy is None:
        return Terms(policy_name="default")
    spec = policy.spec
    first = Stage(role=spec.role, approvers=spec.approvers, timeout=spec.timeout)
    return Terms(
        policy_id=policy.id, policy_name=spec.name, policy_version=policy.version, stages=(first, *spec.escalation),
        approvals=spec.approvals, separation_of_duties=spec.separation_of_duties, on_expiry=spec.on_expiry,
    )  # fmt: skip


def auto_approved(policy: ApprovalPolicy, args: dict[str, Any], at: float) -> str:
    """The name of the first auto-approve rule that a call meets at `at` (UNIX seconds), or ""."""
    return next((rule.name for rule in policy.spec.auto_approve_rules if _rule_met(rule, args, at)), "")


def _rule_met(rule: AutoApproveRule, args: dict[str, Any], at: float) -> bool:
    if not rule.conditions and not rule.schedule:
        return False
    try:
        if not conditions_test(rule.conditions)(args):
            return False
        return not rule.schedule or any(window_test(window)(moment_of(at)) for window in rule.schedule)
    except (ValueError, TypeError, RecursionError):
        return False  # a rule that cannot be applied approves nothing
