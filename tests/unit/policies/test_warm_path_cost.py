"""What a warm decision costs, in Python calls and objects rather than in time, so that it cannot creep up unseen."""

import gc
import sys

import pytest

from agenticmail_enterprise.catalog.profiles import ArgumentRule, Profile, RateLimit, SkillRule

MAILER = Profile(
    skills=SkillRule(list=("email-management",)), max_risk="medium", rate_limits=(RateLimit(per_day=100_000),),
    argument_rules=(ArgumentRule(name="internal-only", tools=("send_*",), field="to", op="domain_in", values=("acme.test",)),),
)  # fmt: skip
ARGS = {"to": "joe@acme.test", "subject": "Report", "body": "x" * 200}


def python_calls(function, argument):
    """The Python functions that run, by name."""
    names: list[str] = []

    def note(frame, event, arg):
        if event == "call":
            names.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        result = function(argument)
    finally:
        sys.setprofile(None)
    return names, result


@pytest.fixture
async def warm(kit):
    house = kit.House(profile=MAILER)
    assert (await house.ask(args=ARGS)).allowed
    return house


async def test_a_warm_decision_with_a_rule_and_a_limit_is_ten_python_calls(warm):
    names, verdict = python_calls(warm.chain.decide, warm.call(args=ARGS))
    assert verdict.allowed
    assert names == [
        "decide",
        "check_arguments", "args", "names_a_key_twice", "flat", "test", "<lambda>",
        "check_rate", "used", "charge",
    ]  # fmt: skip


async def test_without_rules_it_is_one(kit):
    house = kit.House(profile=Profile(skills=SkillRule(list=("email-management",)), max_risk="medium"))
    await house.ask(args=ARGS)
    names, verdict = python_calls(house.chain.decide, house.call(args=ARGS))
    assert (names, verdict.allowed) == (["decide"], True)


async def test_a_strangers_guard_costs_three_more_than_itself(kit):
    house = kit.House(
        kit.guard("mine", lambda call: None),
        profile=Profile(skills=SkillRule(list=("email-management",)), max_risk="medium"),
    )
    await house.ask(args=ARGS)
    names, _ = python_calls(house.chain.decide, house.call(args=ARGS))
    assert names == ["decide", "run", "_run", "_inside", "<lambda>"]


async def test_it_leaves_nothing_behind(warm):
    """No object that the collector tracks is made and kept by a thousand decisions, but for the calls themselves."""
    calls = [warm.call(args=ARGS) for _ in range(1_000)]
    for call in calls:
        assert call.args
    warm.chain.decide(calls[0])
    gc.collect()
    before = len(gc.get_objects())
    verdicts = {id(warm.chain.decide(call)) for call in calls}
    gc.collect()
    assert len(verdicts) == 1
    assert len(gc.get_objects()) - before < 20


async def test_ten_thousand_agents_cost_about_a_kilobyte_each(kit):
    """Measured as sizes of objects that belong to one agent's snapshot, not as memory of the process."""
    house = kit.House(profile=MAILER)
    principals = [house.agent(f"a{n}", name=f"bot{n}") for n in range(50)]
    for principal in principals:
        await house.ask(args=ARGS, principal=principal)
    seen: set[int] = set()

    def size(thing) -> int:
        if id(thing) in seen or isinstance(thing, type | type(sys)) or not gc.is_tracked(thing):
            return 0
        seen.add(id(thing))
        return sys.getsizeof(thing) + sum(size(inner) for inner in gc.get_referents(thing))

    size(principals[0].slot)  # what is shared is counted with the first
    own = [size(principal.slot) for principal in principals[1:]]
    assert max(own) < 3_000
