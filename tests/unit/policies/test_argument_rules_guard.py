"""Argument rules as the agent meets them, and as an administrator writes them."""

import msgspec
import pytest

from agenticmail_enterprise.catalog.calls import AgentView
from agenticmail_enterprise.catalog.plugins import NoConfig
from agenticmail_enterprise.catalog.profiles import ArgumentRule, Profile, RateLimit, SkillRule, Window
from agenticmail_enterprise.policies.rules import ArgumentRules, names_a_key_twice
from agenticmail_enterprise.policies.validation import validate_profile

AGENT = AgentView(org="org1", id="agt1", name="mail-bot", status="active")
INTERNAL = ArgumentRule(name="internal-only", tools=("send_*",), field="to", op="domain_in", values=("acme.test",))


def rule(op, field="to", values=(), **more):
    return ArgumentRule(name="r", tools=("*",), field=field, op=op, values=values, **more)


@pytest.fixture
def judged(kit):
    """The verdict of rules on arguments."""
    plugin = ArgumentRules(NoConfig())
    principal = kit.House().principal

    def judge(args, *rules):
        guard = plugin.compile(AGENT, Profile(argument_rules=rules), kit.MAIL)
        return guard(kit.call(principal, "send_email", args))

    return judge


def test_mail_to_colleagues_passes_and_to_strangers_does_not(judged):
    assert judged({"to": "joe@acme.test"}, INTERNAL) is None
    verdict = judged({"to": ["joe@acme.test", "x@evil.test"]}, INTERNAL)
    assert (verdict.effect, verdict.code, verdict.rule) == ("deny", "ARGUMENT_DENIED", "argument-rules:internal-only")
    assert verdict.reason == (
        "mail-bot may not call send_email: the argument 'to' must hold only addresses at acme.test, "
        "and its domain evil.test is not allowed (rule internal-only); change it and try again."
    )


def test_a_rule_about_other_tools_is_not_compiled(kit):
    assert ArgumentRules(NoConfig()).compile(AGENT, Profile(argument_rules=(INTERNAL,)), kit.READ) is None


@pytest.mark.parametrize("args", [{}, {"to": None}, {"to": []}])
def test_a_missing_field_passes_unless_it_is_required(judged, args):
    assert judged(args, INTERNAL) is None
    assert judged(args, msgspec.structs.replace(INTERNAL, required=True)).code == "ARGUMENT_DENIED"


@pytest.mark.parametrize(
    "args",
    [
        {"to": {"path": "/etc/passwd"}},
        {"to": 5},
        {"to": True},
        {"to": [None]},
        {"to": [["a@acme.test"], {"x": 1}]},
        {"to": ""},
    ],
)
def test_shapes_that_are_no_address_deny(judged, args):
    assert judged(args, INTERNAL).code == "ARGUMENT_DENIED"


def test_present_and_absent(judged):
    assert judged({"to": []}, rule("present")) is None
    assert judged({"to": {"x": 1}}, rule("present")) is None
    assert judged({"to": None}, rule("present")).code == "ARGUMENT_DENIED"
    assert judged({}, rule("present")).code == "ARGUMENT_DENIED"
    assert judged({}, rule("absent", "bcc")) is None
    for value in (None, "", [], "x@y.test"):
        assert judged({"bcc": value}, rule("absent", "bcc")).code == "ARGUMENT_DENIED"
    assert judged({"items": [{"a": 1}, {}]}, rule("present", "items[*].a")).code == "ARGUMENT_DENIED"


def test_required_holds_for_every_element(judged):
    prices = rule("max", "items[*].price", (100,), required=True)
    assert judged({"items": [{"price": 5}, {"price": 100}]}, prices) is None
    assert judged({"items": [{"price": 5}, {"price": 101}]}, prices).code == "ARGUMENT_DENIED"
    assert judged({"items": [{"price": 5}, {}]}, prices).code == "ARGUMENT_DENIED"
    assert judged({"items": [{"price": 5}, {"price": "5"}]}, prices).code == "ARGUMENT_DENIED"


def test_every_rule_must_agree_and_the_first_that_does_not_is_named(judged):
    short = ArgumentRule(name="short", tools=("*",), field="subject", op="max_length", values=(5,))
    assert judged({"to": "a@acme.test", "subject": "hi"}, INTERNAL, short) is None
    assert judged({"to": "a@acme.test", "subject": "too long"}, INTERNAL, short).rule == "argument-rules:short"
    assert judged({"to": "a@evil.test", "subject": "too long"}, INTERNAL, short).rule == "argument-rules:internal-only"


class TestKeysGivenTwice:
    """One JSON reader takes the first, the next the last: what was judged might not be what is done."""

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"to":"x@evil.test","to":"a@acme.test"}',
            b'{ "to" : "x@evil.test" , "to" : "a@acme.test" }',
            b'{"t\\u006f":"x@evil.test","to":"a@acme.test"}',
            b'{"to":"a@acme.test","x":{"y":[{"k":1,"k":2}]}}',
            b'{"to":"a@acme.test","a\\"":1,"a\\"":1}',
            b'{"to":"a@acme.test","":1,"":1}',
        ],
    )
    def test_are_denied(self, judged, raw):
        verdict = judged(raw, INTERNAL)
        assert (verdict.code, verdict.rule) == ("ARGUMENT_DENIED", "argument-rules")
        assert "twice" in verdict.reason

    @pytest.mark.parametrize(
        "raw",
        [
            b"{}", b'{"to":"a@acme.test","x":{"to":1}}', b'{"a":{"k":1},"b":{"k":1}}', b'{"x":"\\"to\\":1,\\"to\\":2"}',
            '{"ü":"€","x":"\u2028"}'.encode(), b'{"a":"\\u00fc\\/\\n","b":[1e5,-0.0,1.50]}', b'{"a":"\x7f"}', b' {\n\t"a" : 1 }',
        ],
    )  # fmt: skip
    def test_nothing_else_is_mistaken_for_it(self, raw):
        assert not names_a_key_twice(raw, msgspec.json.decode(raw))


def test_deep_json_denies_and_does_not_break(kit, judged):
    deep = b'{"to":' + b"[" * 200 + b'"a@acme.test"' + b"]" * 200 + b"}"
    assert judged(deep, INTERNAL) is None
    assert judged(deep.replace(b"acme", b"evil"), INTERNAL).code == "ARGUMENT_DENIED"


async def test_json_too_deep_to_read_is_a_policy_error(kit):
    house = kit.House(
        profile=Profile(skills=SkillRule(list=("email-management",)), max_risk="medium", argument_rules=(INTERNAL,))
    )
    bottomless = b'{"to":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    verdict = await house.ask("send_email", bottomless)
    assert (verdict.effect, verdict.code) == ("deny", "POLICY_ERROR")


def test_a_rule_that_cannot_be_compiled_denies(judged):
    verdict = judged({"to": "a@acme.test"}, INTERNAL, rule("matches", values=("(",)))
    assert (verdict.code, verdict.rule) == ("POLICY_ERROR", "argument-rules:r")


def test_rules_about_1_and_about_true_are_not_confused(judged):
    """As Python values both rules are equal; a cache keyed by them would answer one with the other."""
    one, true = rule("equals", "n", (1,)), rule("equals", "n", (True,))
    assert one == true
    assert judged({"n": 1}, one) is None
    assert judged({"n": 1}, true).code == "ARGUMENT_DENIED"
    assert judged({"n": True}, true) is None


def test_agents_with_the_same_rules_share_one_function(kit):
    plugin = ArgumentRules(NoConfig())
    other = AgentView(org="org2", id="agt9", name="x", status="active")
    profile, same = Profile(argument_rules=(INTERNAL,)), Profile(name="other", argument_rules=(INTERNAL,))
    assert plugin.compile(AGENT, profile, kit.MAIL) is plugin.compile(other, same, kit.MAIL)


def test_profiles_are_checked_before_they_are_stored():
    good = Profile(
        argument_rules=(INTERNAL,), schedule=(Window(timezone="Europe/Berlin"),), allowed_ips=("10.0.0.0/8", "::1"),
        rate_limits=(RateLimit(per_minute=5),),
    )  # fmt: skip
    assert validate_profile(good) == []
    bad = Profile(
        argument_rules=(rule("max", values=("x",)), rule("equals", "a..b", ("x",)), ArgumentRule(name="n", tools=(), field="a", op="present")),
        schedule=(Window(timezone="Mars/Olympus"), Window(start="09:00", end="09:00"), Window(days=())),
        allowed_ips=("10.0.0.1/8", "localhost", ""),
    )  # fmt: skip
    problems = validate_profile(bad)
    assert {(path, code) for path, code, _ in problems} == {
        ("/argument_rules/0/values", "INVALID_RULE"), ("/argument_rules/1/field", "INVALID_RULE"),
        ("/argument_rules/0/name", "DUPLICATE"), ("/argument_rules/1/name", "DUPLICATE"), ("/argument_rules/2/tools", "REQUIRED"),
        ("/schedule/0/timezone", "INVALID_TIMEZONE"), ("/schedule/1/end", "EMPTY_WINDOW"), ("/schedule/2/days", "EMPTY_WINDOW"),
        ("/allowed_ips/0", "INVALID_ADDRESS"), ("/allowed_ips/1", "INVALID_ADDRESS"), ("/allowed_ips/2", "INVALID_ADDRESS"),
    }  # fmt: skip
    assert all(sentence.endswith(".") for _, _, sentence in problems)
