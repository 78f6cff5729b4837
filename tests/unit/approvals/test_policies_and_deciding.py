"""Who is asked, when nobody is, and what silence and decisions make of an approval. No store, no clock."""

from __future__ import annotations

import pytest

from agenticmail_enterprise.catalog.approvals import (
    APPROVER_ROLES,
    Approval,
    ApprovalPolicy,
    ApprovalPolicySpec,
    AutoApproveRule,
    Condition,
    Stage,
)
from agenticmail_enterprise.catalog.calls import Tool
from agenticmail_enterprise.catalog.errors import Conflict, Stale, ValidationFailed
from agenticmail_enterprise.catalog.profiles import Window
from agenticmail_enterprise.gateway.approvals.deciding import (
    Decided,
    Deed,
    apply,
    check_digest,
    fall_due,
    given,
    may_decide,
)
from agenticmail_enterprise.gateway.approvals.who import Decider
from agenticmail_enterprise.gateway.scopes import ROLES
from agenticmail_enterprise.policies.approvals import auto_approved, check_spec, choose, ordered, terms_of

MAIL = Tool(id="mail__send", skills=("email-management",), risk="high", side_effects=("sends-email",))
LIST = Tool(id="mail__list", skills=("notes",), risk="low")
MONDAY_NOON = 1_795_435_200.0 + 0  # 2026-11-23 12:00 UTC


def policy(**fields: object) -> ApprovalPolicy:
    spec = ApprovalPolicySpec(**{"name": "p", **fields})  # type: ignore[arg-type]
    return ApprovalPolicy(org="o", id=f"apl_{spec.name}", name=spec.name, spec=spec, version=3)


def test_approver_roles_are_roles_in_their_order() -> None:
    assert [role for role in ROLES if role in APPROVER_ROLES] == list(APPROVER_ROLES)


@pytest.mark.parametrize(
    ("fields", "mail", "lists"),
    [
        ({}, True, True),
        ({"tools": ("mail__s*",)}, True, False),
        ({"skills": ("email-management",)}, True, False),
        ({"risks": ("low",)}, False, True),
        ({"side_effects": ("sends-email",)}, True, False),
        ({"tools": ("other__*",), "risks": ("high",)}, True, False),
        ({"agents": ("agt_2", "bot-*")}, False, False),
        ({"agents": ("clerk",)}, True, True),
        ({"enabled": False}, False, False),
    ],
)
def test_a_policy_speaks_about_what_any_of_its_selectors_names(
    fields: dict[str, object], mail: bool, lists: bool
) -> None:
    found = [choose((policy(**fields),), "agt_1", "clerk", tool) is not None for tool in (MAIL, LIST)]
    assert found == [mail, lists]


def test_priority_counts_then_age() -> None:
    first, second, third = policy(name="a"), policy(name="b", priority=5), policy(name="c", priority=5)
    assert [one.name for one in ordered((first, third, second))] == ["b", "c", "a"]


AUTO = [
    (Condition(field="to", op="domain_in", values=("acme.com",)), {"to": "a@acme.com"}, {"to": "a@evil.com"}),
    (Condition(field="recipient_domain", op="equals", values=("acme.com",)), {"to": ["a@acme.com"]}, {"to": "a@acme.com", "cc": "x@evil.com"}),
    (Condition(field="recipient_domain", op="equals", values=("acme.com",)), {"bcc": "a@acme.com"}, {}),
    (Condition(field="recipient_domain", op="equals", values=("acme.com",)), {"to": "a@acme.com"}, {"to": "a@acme.com", "Cc": "x@evil.com"}),
    (Condition(field="recipient_domain", op="equals", values=("acme.com",)), {"to": "a@acme.com"}, {"to": {"path": "/etc"}}),
    (Condition(field="amount", op="max", values=(100,)), {"amount": 100}, {"amount": "5"}),
    (Condition(field="amount", op="max", values=(100,)), {"amount": 0}, {"amount": None}),
    (Condition(field="items[*].n", op="max", values=(1,)), {"items": [{"n": 1}]}, {"items": []}),
    (Condition(field="cc", op="absent"), {"to": "a"}, {"cc": None}),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "good", "bad"), AUTO)
def test_an_auto_rule_is_met_or_fails_closed(
    condition: Condition, good: dict[str, object], bad: dict[str, object]
) -> None:
    one = policy(auto_approve_rules=(AutoApproveRule(name="r", conditions=(condition,)),))
    assert auto_approved(one, good, MONDAY_NOON) == "r"
    assert auto_approved(one, bad, MONDAY_NOON) == ""


def test_an_auto_rule_keeps_its_hours() -> None:
    rule = AutoApproveRule(name="r", schedule=(Window(days=("mon",), start="09:00", end="17:00"),))
    one = policy(auto_approve_rules=(rule,))
    assert auto_approved(one, {}, MONDAY_NOON) == "r"
    assert auto_approved(one, {}, MONDAY_NOON + 86_400) == ""
    assert auto_approved(one, {}, MONDAY_NOON + 6 * 3600) == ""


@pytest.mark.parametrize(("fields", "path"), [
    ({"auto_approve_rules": (AutoApproveRule(name="all"),)}, "/auto_approve_rules/0"),
    ({"auto_approve_rules": (AutoApproveRule(name="r", conditions=(Condition(field="a..b", op="present"),)),)}, "/auto_approve_rules/0/conditions/0"),
    ({"auto_approve_rules": (AutoApproveRule(name="r", conditions=(Condition(field="recipient_domain", op="max", values=(1,)),)),)}, "/auto_approve_rules/0/conditions/0"),
    ({"auto_approve_rules": (AutoApproveRule(name="r", schedule=(Window(timezone="Mars/X"),)),)}, "/auto_approve_rules/0/schedule/0"),
    ({"approvals": 2, "approvers": ("usr_a", "usr_a")}, "/approvers"),
    ({"approvals": 2, "escalation": (Stage(approvers=("usr_a",)),)}, "/escalation/0/approvers"),
])  # fmt: skip
def test_a_policy_that_cannot_work_is_refused_where_it_is_wrong(fields: dict[str, object], path: str) -> None:
    assert [where for where, _ in check_spec(policy(**fields).spec)] == [path]


# -- deciding ----------------------------------------------------------------------------------------------------
ANA = Decider(id="usr_a", role="admin", person="usr_a", name="Ana")
KEY = Decider(id="key_a", role="admin", person="usr_a")
BEN = Decider(id="usr_b", role="owner", person="usr_b")
MEG = Decider(id="usr_m", role="member", person="usr_m")


def held(**fields: object) -> Approval:
    terms = terms_of(policy(**fields))
    return Approval(
        org="o",
        id="apr_1",
        digest="d1",
        asked_digest="d1",
        terms=terms,
        stage_until=1_000_000,
        due_at=1_000_000,
        watch="on",
    )


def test_one_person_counts_once_whatever_keys_they_use() -> None:
    approval = held(approvals=2)
    apply(approval, Deed(action="approve"), ANA, 1)
    with pytest.raises(Conflict):
        apply(approval, Deed(action="approve"), KEY, 2)
    assert (approval.state, given(approval)) == ("pending", 1)
    assert apply(approval, Deed(action="approve"), BEN, 3).state == "approved"
    with pytest.raises(Decided):
        apply(approval, Deed(action="reject", reason="late"), ANA, 4)


@pytest.mark.parametrize(("fields", "decider", "requester", "may"), [
    ({}, ANA, "", True), ({}, MEG, "", False), ({"role": "member"}, MEG, "", True), ({"role": "owner"}, ANA, "", False),
    ({"approvers": ("usr_m",)}, MEG, "", True), ({"approvers": ("usr_m",)}, BEN, "", False),
    ({"approvers": ("usr_a",)}, KEY, "", True), ({"separation_of_duties": True}, ANA, "usr_a", False),
    ({"separation_of_duties": True}, KEY, "usr_a", False), ({"separation_of_duties": True}, BEN, "usr_a", True),
])  # fmt: skip
def test_who_may_decide(fields: dict[str, object], decider: Decider, requester: str, may: bool) -> None:
    assert (may_decide(held(**fields), decider, requester) == "") is may


def test_a_later_stage_asks_its_people_besides() -> None:
    approval = held(escalation=(Stage(role="owner", timeout=60),), approvers=("usr_m",))
    assert may_decide(approval, BEN, "")
    assert fall_due(approval, 1_000_000) == "escalate"
    assert (approval.stage_until, approval.due_at) == (1_060_000, 1_060_000)
    assert may_decide(approval, BEN, "") == may_decide(approval, MEG, "") == ""


@pytest.mark.parametrize(("on_expiry", "state"), [("deny", "expired"), ("approve", "approved")])
def test_silence_means_what_the_policy_says(on_expiry: str, state: str) -> None:
    approval = held(on_expiry=on_expiry)
    assert fall_due(approval, 999_999) is None
    assert fall_due(approval, 1_000_000) == "expire"
    assert approval.state == state


def test_a_snooze_reminds_once_and_prolongs_nothing() -> None:
    approval = apply(held(), Deed(action="snooze", seconds=100), ANA, 500_000)
    assert approval.due_at == 600_000
    assert fall_due(approval, 600_000) == "snooze"
    assert (approval.due_at, approval.snoozed_until) == (1_000_000, 0)
    late = apply(held(), Deed(action="snooze", seconds=10_000), ANA, 500_000)
    assert late.due_at == 1_000_000


def test_what_somebody_approves_they_have_seen() -> None:
    approval = held()
    check_digest(approval, Deed(action="approve"))
    with pytest.raises(Stale):
        check_digest(approval, Deed(action="approve", digest="d0"))
    approval.digest = "d2"
    with pytest.raises(Stale):
        check_digest(approval, Deed(action="approve"))
    check_digest(approval, Deed(action="approve", digest="d2"))


@pytest.mark.parametrize("deed", [Deed(action="reject"), Deed(action="reject", reason="  "), Deed(action="delegate")])
def test_a_deed_without_what_it_needs_is_refused(deed: Deed) -> None:
    with pytest.raises(ValidationFailed):
        apply(held(), deed, ANA, 1)
