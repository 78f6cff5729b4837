"""Why a call was refused, and what would have let it pass: every suggestion is carried out here and must keep its word."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agenticmail_enterprise.catalog.calls import AgentView, Principal, Tool, Verdict
from agenticmail_enterprise.catalog.profiles import (
    RISKS,
    ApprovalRule,
    ArgumentRule,
    Profile,
    RateLimit,
    SkillRule,
    ToolRule,
    Window,
)
from agenticmail_enterprise.policies.chain import assemble
from agenticmail_enterprise.policies.explain import explain, explain_call, find_nearest, rehearse
from agenticmail_enterprise.policies.nearest import STEPS, Case
from agenticmail_enterprise.policies.running import run_guards
from agenticmail_enterprise.policies.snapshot import Subject
from agenticmail_enterprise.policies.verdicts import CODES

AGENT = AgentView(org="org1", id="agt1", name="mail-bot", status="active")
MAILER = Profile(skills=SkillRule(list=("email-management",)), max_risk="medium")
INTERNAL = ArgumentRule(name="internal-only", tools=("send_*",), field="to", op="domain_in", values=("acme.test",))
EVIL = {"to": "a@evil.test", "amount": 500, "n": None}


def change(profile, **fields):
    return msgspec.structs.replace(profile, **fields)


@pytest.fixture
def told(kit):
    """An explanation for a profile and arguments."""
    host = kit.host()
    principal = Principal("org1", "agt1", "mail-bot", "key1")

    def tell(profile, args=None, tool=kit.MAIL, agent=AGENT, key_ips=(), **fields):
        return explain(Subject(agent, profile, key_ips), tool, kit.call(principal, tool.id, args or {}, **fields), host)

    return tell


def test_an_allowed_call_names_its_grant_and_needs_no_change(told):
    explanation = told(MAILER)
    assert (explanation.effect, explanation.rule, explanation.nearest) == ("allow", "skill:email-management", ())
    assert explanation.sentence == "mail-bot may call send_email: Allowed by skill:email-management."


def test_every_rule_that_speaks_is_listed_not_only_the_winner(told):
    profile = change(
        MAILER, max_risk="low", argument_rules=(INTERNAL,), rate_limits=(RateLimit(per_minute=5),), allowed_ips=("10.0.0.1",),
        schedule=(Window(days=("sun",)),), approval=ApprovalRule(tools=("send_*",)), blocked_side_effects=("sends-email",),
    )  # fmt: skip
    explanation = told(profile, EVIL, ip="8.8.8.8")
    assert explanation.rule == "profile.max_risk:low"
    said = {(match.stage, match.rule): match for match in explanation.matches}
    assert {key: match.effect for key, match in said.items()} == {
        ("agent", "agent:active"): "allow",
        ("grant", "skill:email-management"): "allow",
        ("risk", "profile.max_risk:low"): "deny",
        ("side effects", "profile.blocked_side_effects:sends-email"): "deny",
        ("approval", "profile.approval.tools:send_*"): "hold",
        ("place and time", "profile.allowed_ips"): "deny",
        ("place and time", "profile.schedule"): "deny",
        ("arguments", "argument-rules:internal-only"): "deny",
        ("rate", "rate-limits:per_minute"): "allow",
    }
    assert 'to = "a@evil.test"' in said["arguments", "argument-rules:internal-only"].detail
    assert said["rate", "rate-limits:per_minute"].detail == "0 of 5 calls used in the last minute"


@pytest.mark.parametrize(
    ("profile", "where", "words"),
    [
        (Profile(max_risk="medium"), "profile.tools.allow", "allow send_email"),
        (change(MAILER, max_risk="low"), "profile.max_risk", "raise the maximum risk to medium"),
        (change(MAILER, tools=ToolRule(deny=("send_*", "x"))), "profile.tools.deny", "remove send_*"),
        (
            change(MAILER, blocked_side_effects=("sends-email", "financial")),
            "profile.blocked_side_effects",
            "remove sends-email",
        ),
        (
            change(MAILER, argument_rules=(INTERNAL,)),
            "profile.argument_rules[internal-only].values",
            "let 'to' also be evil.test",
        ),
        (change(MAILER, allowed_ips=("10.0.0.1",)), "profile.allowed_ips", "add 127.0.0.1"),
        (
            change(MAILER, schedule=(Window(days=("sun",), timezone="Asia/Tokyo"),)),
            "profile.schedule",
            "add mon 21:00-22:00 Asia/Tokyo",
        ),
        (change(MAILER, approval=ApprovalRule(risks=("medium", "high"))), "profile.approval.risks", "remove medium"),
        (change(MAILER, allowed_ips=("10.0.0.1/8", "127.0.0.1")), "profile.allowed_ips", "no address"),
    ],
)
def test_the_nearest_change_is_one_step(told, profile, where, words):
    explanation = told(profile, EVIL)
    assert explanation.effect != "allow"
    (step,) = explanation.nearest
    assert (step.where, step.who) == (where, "an administrator")
    assert words in step.change
    assert explanation.after == "allow"


@pytest.mark.parametrize(
    ("rule", "args", "values"),
    [
        (("max", "amount", (100,)), {"amount": [500, 700]}, "700"),
        (("min", "amount", (100,)), {"amount": 5}, "5"),
        (("one_of", "mode", ("a",)), {"mode": "b"}, "b"),
        (("max_length", "text", (3,)), {"text": "abcdef"}, "6"),
        (("path_within", "path", ("/work",)), {"path": "/etc/x/../y"}, "/etc/y"),
        (("command_in", "cmd", ("git",)), {"cmd": "ls -la"}, "ls"),
    ],
)
def test_a_rule_is_widened_by_the_value_itself(told, rule, args, values):
    op, field, operands = rule
    explanation = told(
        change(MAILER, argument_rules=(ArgumentRule(name="r", tools=("*",), field=field, op=op, values=operands),)),
        args,
    )
    (step,) = explanation.nearest
    assert step.change == f"let '{field}' also be {values}"


@pytest.mark.parametrize(
    ("rule", "args"),
    [
        (("matches", "x", ("[a-z]+",)), {"x": "A"}),
        (("domain_in", "to", ("acme.test",)), {"to": "not an address"}),
        (("command_in", "cmd", ("git",)), {"cmd": "git; rm -rf /"}),
        (("not_equals", "x", ("a",)), {"x": "a"}),
        (("absent", "bcc", ()), {"bcc": "x"}),
        (("present", "bcc", ()), {}),
        (("equals", "m.x", (1,)), {"m": "odd"}),
        (("matches", "x", ("(",)), {"x": "broken rule"}),
    ],
)
def test_where_widening_does_not_help_the_rule_must_go(told, rule, args):
    op, field, operands = rule
    explanation = told(
        change(MAILER, argument_rules=(ArgumentRule(name="r", tools=("*",), field=field, op=op, values=operands),)),
        args,
    )
    (step,) = explanation.nearest
    assert step.where.startswith("profile.argument_rules")
    assert "remove" in step.change
    assert explanation.after == "allow"


def test_several_steps_stand_together_and_a_hold_is_honest(told):
    profile = Profile(argument_rules=(INTERNAL,), approval=ApprovalRule(tools=("*",)))
    explanation = told(profile, EVIL)
    assert [step.where for step in explanation.nearest] == [
        "profile.tools.allow", "profile.max_risk", "profile.argument_rules[internal-only].values",
    ]  # fmt: skip
    assert explanation.after == "hold"


def test_who_is_asking(told, kit):
    suspended = msgspec.structs.replace(AGENT, status="suspended")
    assert told(MAILER, agent=suspended).nearest[0].where == "agents/agt1.status"
    assert told(None).nearest[0].change == "give the agent a profile that allows send_email (risk medium)"
    nobody = told(MAILER, agent=None)
    assert (nobody.code, nobody.nearest) == ("AGENT_ARCHIVED", ())
    tied = told(MAILER, key_ips=("10.0.0.0/8",))
    assert (tied.rule, tied.nearest[0].where) == ("key.allowed_ips", "key.allowed_ips")
    held = told(MAILER, tool=msgspec.structs.replace(kit.MAIL, pin_held=True))
    assert held.nearest[0].where == "tools/send_email.pin"


@pytest.mark.parametrize("name", ["*", "send_?", "a*b", "x" * 300, "", "a\nb"])
def test_a_tools_name_is_never_suggested_as_a_pattern_that_grants_more(told, name):
    tool = Tool(id=name, known=False, risk="critical")
    assert told(Profile(), tool=tool).nearest == ()
    assert told(None, tool=tool).nearest == ()


def test_an_address_that_is_none_is_never_suggested(told):
    assert told(change(MAILER, allowed_ips=("10.0.0.1",)), ip="").nearest == ()


async def test_explaining_charges_nothing_and_asks_no_gate(kit):
    asked = []

    async def gate(call):
        asked.append(call)

    house = kit.House(kit.gate("desk", gate), profile=change(MAILER, rate_limits=(RateLimit(per_minute=1),)))
    for _ in range(5):
        explanation = await explain_call(house.chain, house.call())
        assert explanation.effect == "allow"
    assert [match.rule for match in explanation.matches if match.stage == "gate"] == ["desk"]
    assert asked == []
    assert [(await house.ask()).code for _ in range(2)] == ["ALLOWED", "RATE_LIMITED"]
    explanation = await explain_call(house.chain, house.call())
    assert explanation.code == "RATE_LIMITED"
    assert explanation.nearest[0].change == "raise the limit per minute to 2 (or wait 60 s)"


async def test_a_strangers_plugin_is_listed_and_has_no_known_remedy(kit):
    def refuse(call):
        return Verdict("deny", "mine:r1", "PLUGIN_DENIED", "no")

    def fail(call):
        raise ValueError

    house = kit.House(kit.guard("mine", refuse), profile=MAILER)
    explanation = await explain_call(house.chain, house.call())
    assert (explanation.rule, explanation.nearest, explanation.after) == ("mine:r1", (), "")
    assert ("mine:r1", "deny") in [(match.rule, match.effect) for match in explanation.matches]
    house = kit.House(kit.guard("mine", fail), profile=MAILER)
    assert (await explain_call(house.chain, house.call())).code == "POLICY_ERROR"


async def test_a_stranger_that_charges_is_not_asked(kit):
    calls = []
    house = kit.House(kit.guard("meter", calls.append, charges=True), profile=MAILER)
    explanation = await explain_call(house.chain, house.call())
    assert (explanation.effect, calls) == ("allow", [])
    assert any("cannot be asked" in match.detail for match in explanation.matches)


def test_an_explanation_can_be_sent_as_json(told):
    explanation = told(change(MAILER, argument_rules=(INTERNAL,)), EVIL)
    assert msgspec.json.decode(msgspec.json.encode(explanation))["nearest"][0]["who"] == "an administrator"


def test_every_code_of_a_profile_has_a_step():
    """The others are a stranger's, a store's that is away, or a door's: no profile gave them, so none can take them back."""
    assert set(STEPS) <= CODES
    assert not {"ALLOWED", "PLUGIN_DENIED", "POLICY_STALE"} & set(STEPS)


EFFECTS = st.sets(st.sampled_from(["sends-email", "runs-code"]), max_size=2).map(tuple)
GLOBS = st.lists(st.sampled_from(["send_email", "send_*", "exec", "*", "x"]), max_size=2).map(tuple)
SKILLS = st.sets(st.sampled_from(["email-management", "code-execution"]), max_size=2).map(tuple)
RULES = st.builds(
    ArgumentRule, name=st.sampled_from(["r1", "r2"]), tools=st.just(("*",)), required=st.booleans(),
    field=st.sampled_from(["to", "amount", "n", "to.x", "list[*]", "a..b"]),
    op=st.sampled_from(["domain_in", "domain_not_in", "max", "min", "one_of", "matches", "absent", "equals", "command_in", "path_within"]),
    values=st.sampled_from([(), ("acme.test",), (100,), ("a",), ("/work",)]),
)  # fmt: skip
PROFILES = st.builds(
    Profile, skills=st.builds(SkillRule, mode=st.sampled_from(["allowlist", "blocklist"]), list=SKILLS),
    tools=st.builds(ToolRule, allow=GLOBS, deny=GLOBS), max_risk=st.sampled_from(RISKS), blocked_side_effects=EFFECTS,
    allow_unknown=st.booleans(), argument_rules=st.lists(RULES, max_size=3).map(tuple),
    approval=st.builds(ApprovalRule, tools=GLOBS, side_effects=EFFECTS, risks=st.sets(st.sampled_from(RISKS), max_size=1).map(tuple)),
    schedule=st.lists(st.builds(Window, days=st.just(("sun",)), timezone=st.sampled_from(["UTC", "Asia/Kathmandu", "Nowhere"])), max_size=2).map(tuple),
    allowed_ips=st.lists(st.sampled_from(["10.0.0.1", "127.0.0.0/8", "bad"]), max_size=2).map(tuple),
    rate_limits=st.lists(st.builds(RateLimit, per_minute=st.integers(0, 2), per_day=st.integers(0, 2), tools=GLOBS), max_size=2).map(tuple),
)  # fmt: skip
ARGS = st.sampled_from(
    [{}, EVIL, {"to": "a@acme.test", "amount": 50}, {"to": ["x@y.test", {}], "list": [1, "a"]}, {"to": {"x": "a"}}]
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    profile=PROFILES,
    args=ARGS,
    tool=st.sampled_from(["send_email", "exec", "x"]),
    charged=st.integers(0, 3),
    status=st.sampled_from(["active", "suspended"]),
)
def test_the_winner_is_the_chains_and_the_nearest_change_keeps_its_word(kit, profile, args, tool, charged, status):
    """For any profile: explain and the chain agree; what `nearest` says is carried out on a copy, step by step and
    none without need, and then judged by the guards that charge."""
    host = kit.host()
    principal = Principal("org1", "agt1", "mail-bot", "key1")
    known = kit.BUILTIN.get(tool) or Tool(id=tool, known=False, risk="critical", side_effects=("sends-email",))
    agent = msgspec.structs.replace(AGENT, status=status)
    ready = assemble(Subject(agent, profile), known, host)
    for _ in range(charged):
        run_guards(kit.call(principal, tool, args), ready, host)
    case = Case(agent, profile, (), known)
    call = kit.call(principal, tool, args)
    explanation = explain(case.subject, known, call, host)
    steps, after = find_nearest(case, call, host, rehearse(case, call, host))
    mended = case
    for step in steps:
        verdict = rehearse(mended, call, host)
        assert verdict.effect != after
        mended, change = STEPS[verdict.code](mended, call, verdict, host)
        assert change == step
    assert not steps or rehearse(mended, call, host).effect == after
    real = run_guards(call, ready, host)  # from here on it is charged
    assert (explanation.effect, explanation.code, explanation.rule) == (real.effect, real.code, real.rule)
    assert (explanation.nearest, explanation.after) == (steps, after)
    if real.effect != "allow":
        says = {match.effect for match in explanation.matches}
        assert real.effect in says or real.code == "POLICY_ERROR"
    if real.effect == "deny" and steps:
        assert run_guards(call, assemble(mended.subject, mended.tool, host), host).effect == after
