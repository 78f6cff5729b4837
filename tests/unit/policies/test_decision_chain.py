"""The chain: the running order, freshness, loading, and that every fault denies."""

import asyncio
import time

import msgspec
import pytest
import uvloop

from agenticmail_enterprise.catalog.calls import Principal, Verdict
from agenticmail_enterprise.catalog.errors import Forbidden
from agenticmail_enterprise.catalog.profiles import (
    ApprovalRule,
    ArgumentRule,
    Profile,
    RateLimit,
    SkillRule,
    ToolRule,
    Window,
)
from agenticmail_enterprise.catalog.records import AGENTS

MAILER = Profile(skills=SkillRule(list=("email-management",)), max_risk="medium")
INTERNAL = ArgumentRule(name="internal-only", tools=("send_*",), field="to", op="domain_in", values=("acme.test",))
CLOSED = Window(days=("sun",), start="03:00", end="03:01")
GOOD, EVIL = {"to": "a@acme.test"}, {"to": "a@evil.test"}
NO = Verdict("deny", "mine", "PLUGIN_DENIED", "no")
ASK = Verdict("hold", "mine", "APPROVAL_REQUIRED", "ask")


def change(profile, **fields):
    return msgspec.structs.replace(profile, **fields)


class TestRunningOrder:
    """Each step in front of the next: with everything wrong, the first is the answer; mend it and the next one is."""

    async def test_step_by_step(self, kit):
        guard = kit.guard("mine", lambda call: NO if call.args.get("mine") else None)
        asked = []

        async def gate(call):
            asked.append(call.id)
            return NO if call.args.get("gate") else None

        wrong = change(
            MAILER, max_risk="low", skills=SkillRule(), schedule=(CLOSED,), allowed_ips=("10.0.0.1",), argument_rules=(INTERNAL,),
            rate_limits=(RateLimit(per_day=1),), approval=ApprovalRule(tools=("*",)),
        )  # fmt: skip
        house = kit.House(guard, kit.gate("desk", gate), profile=wrong)
        house.agent(status="suspended")
        args, where = {"to": "a@evil.test", "mine": 1, "gate": 1}, {"ip": "8.8.8.8"}

        async def code():
            verdict = await house.ask("send_email", args, **where)
            return f"{verdict.effect} {verdict.code}"

        assert await code() == "deny AGENT_SUSPENDED"
        house.agent(profile_id="")
        assert await code() == "deny NO_PROFILE"
        house.agent()
        assert await code() == "deny TOOL_NOT_GRANTED"
        house.profile(wrong := change(wrong, skills=MAILER.skills))
        assert await code() == "deny RISK_TOO_HIGH"
        house.profile(wrong := change(wrong, max_risk="medium"))
        assert await code() == "deny IP_NOT_ALLOWED"
        where["ip"] = "10.0.0.1"
        assert await code() == "deny OUTSIDE_SCHEDULE"
        house.profile(wrong := change(wrong, schedule=()))
        assert await code() == "deny ARGUMENT_DENIED"
        args["to"] = "a@acme.test"
        assert await code() == "deny PLUGIN_DENIED"
        del args["mine"]
        assert asked == []
        assert await code() == "deny PLUGIN_DENIED"  # the gate's; it was asked, so the call has been charged
        assert len(asked) == 1
        assert await code() == "deny RATE_LIMITED"
        assert len(asked) == 1
        house.profile(change(wrong, rate_limits=()))
        del args["gate"]
        assert await code() == "hold APPROVAL_REQUIRED"

    async def test_a_call_denied_for_its_arguments_is_not_charged(self, kit):
        late = kit.guard("late", lambda call: NO if call.args.get("late") else None)
        house = kit.House(
            late, profile=change(MAILER, argument_rules=(INTERNAL,), rate_limits=(RateLimit(per_minute=1),))
        )
        for args in (EVIL, GOOD | {"late": 1}) * 5:
            assert (await house.ask(args=args)).code in {"ARGUMENT_DENIED", "PLUGIN_DENIED"}
        assert [(await house.ask(args=GOOD)).code for _ in range(2)] == ["ALLOWED", "RATE_LIMITED"]

    async def test_a_hold_waits_for_what_may_still_deny(self, kit):
        holds = kit.guard("holds", lambda call: ASK)
        denies = kit.guard("denies", lambda call: NO if call.args else None)
        house = kit.House(holds, denies, profile=MAILER)
        for _ in range(2):  # cold, then warm
            assert (await house.ask()).effect == "hold"
            assert (await house.ask(args={"x": 1})).effect == "deny"

    async def test_keys_have_addresses_of_their_own(self, kit):
        house = kit.House(profile=MAILER)
        tied = Principal("org1", "agt1", "mail-bot", "key2", allowed_ips=("10.0.0.0/8",))
        assert (await house.ask(principal=tied, ip="10.5.5.5")).allowed
        verdict = await house.ask(principal=tied, ip="8.8.8.8")
        assert (verdict.code, verdict.rule) == ("IP_NOT_ALLOWED", "key.allowed_ips")
        assert (await house.ask(ip="8.8.8.8")).allowed

    async def test_two_keys_of_an_agent_share_its_limits(self, kit):
        house = kit.House(profile=change(MAILER, rate_limits=(RateLimit(per_minute=2),)))
        keys = [
            Principal("org1", "agt1", "mail-bot", f"key{n}", allowed_ips=("0.0.0.0/0",) * (n % 2)) for n in range(4)
        ]
        codes = [(await house.ask(principal=key)).code for key in keys]
        assert codes == ["ALLOWED", "ALLOWED", "RATE_LIMITED", "RATE_LIMITED"]


class TestWhoIsAsking:
    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"status": "suspended"}, "AGENT_SUSPENDED"),
            ({"status": "archived"}, "AGENT_ARCHIVED"),
            ({"profile_id": "gone"}, "NO_PROFILE"),
        ],
    )
    async def test_agents_that_may_do_nothing(self, kit, fields, code):
        house = kit.House(profile=MAILER)
        house.agent(**fields)
        for _ in range(2):
            verdict = await house.ask()
            assert verdict.code == code
            assert "mail-bot may not call send_email" in verdict.reason
        with pytest.raises(Forbidden):
            await house.chain.admit(house.principal)

    async def test_keys_without_an_agent(self, kit):
        house = kit.House(profile=MAILER)
        for principal in (
            Principal("org1", "", "", "key9"),
            Principal("org1", "agt9", "x", "k"),
            Principal("org2", "agt1", "x", "k"),
        ):
            assert (await house.ask(principal=principal)).code == "AGENT_ARCHIVED"


class TestTheWarmPath:
    async def test_the_first_call_settles_and_the_next_decide(self, kit):
        house = kit.House(profile=change(MAILER, argument_rules=(INTERNAL,), rate_limits=(RateLimit(per_minute=100),)))
        assert house.chain.decide(house.call(args=GOOD)) is None
        verdict = await house.chain.settle(house.call(args=GOOD))
        reads = len(house.shelf.reads)
        assert house.chain.decide(house.call(args=GOOD)) is verdict
        assert house.chain.decide(house.call(args=EVIL)).code == "ARGUMENT_DENIED"
        assert len(house.shelf.reads) == reads

    async def test_denials_are_warm_as_well(self, kit):
        house = kit.House(profile=MAILER)
        assert (await house.ask("exec")).code == "TOOL_NOT_GRANTED"
        assert house.chain.decide(house.call("exec")).code == "TOOL_NOT_GRANTED"

    async def test_made_up_tool_names_do_not_fill_memory(self, kit):
        house = kit.House(profile=MAILER)
        for number in range(1_000):
            assert (await house.ask(f"made-up-{number}")).code == "TOOL_UNKNOWN"
        assert len(house.principal.slot.ready) <= 256

    async def test_agents_of_a_profile_share_what_can_be_shared(self, kit):
        house = kit.House(profile=MAILER)
        principals = [house.agent(f"a{number}", name=f"bot{number}") for number in range(20)]
        verdicts = [await house.ask(principal=principal) for principal in principals]
        assert len({id(verdict) for verdict in verdicts}) == 1
        assert len({id(principal.slot.profile) for principal in principals}) == 1
        assert house.shelf.reads.count("profile") == 1

    async def test_ten_calls_at_once_load_once(self, kit):
        house = kit.House(profile=MAILER)
        house.shelf.before = lambda what: asyncio.sleep(0.01)
        verdicts = await asyncio.gather(*(house.ask() for _ in range(10)))
        assert {verdict.code for verdict in verdicts} == {"ALLOWED"}
        assert house.shelf.reads.count("agent") == 1

    async def test_a_caller_that_leaves_does_not_take_the_others_along(self, kit):
        house = kit.House(profile=MAILER)
        begun, gate = asyncio.Event(), asyncio.Event()

        async def before(what):
            begun.set()
            await gate.wait()

        house.shelf.before = before
        first = asyncio.create_task(house.ask())
        await begun.wait()
        second = asyncio.create_task(house.ask())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        gate.set()
        assert (await second).allowed
        with pytest.raises(asyncio.CancelledError):
            await first


class TestFreshness:
    async def test_a_change_counts_from_the_next_call_on(self, kit):
        house = kit.House(profile=MAILER)
        assert (await house.ask()).allowed
        house.agent(status="suspended")
        assert (await house.ask()).code == "AGENT_SUSPENDED"
        house.agent()
        assert (await house.ask()).allowed

    async def test_without_being_told_the_chain_keeps_what_it_knows(self, kit):
        house = kit.House(profile=MAILER)
        assert (await house.ask()).allowed
        house.shelf.remove(AGENTS, "org1", "agt1")
        assert (await house.ask()).allowed
        house.chain.invalidate()
        assert (await house.ask()).code == "AGENT_ARCHIVED"

    async def test_a_load_that_began_before_a_change_is_not_kept(self, kit):
        """The old record is read, then the agent is suspended, then the load ends: the next call must see the change."""
        house = kit.House(profile=MAILER)
        release = asyncio.Event()

        async def slow(what):
            if what == "profile":
                await release.wait()

        house.shelf.before = slow
        early = asyncio.create_task(house.ask())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        house.agent(status="suspended")
        house.shelf.before = None
        late = await house.ask()
        release.set()
        assert late.code == "AGENT_SUSPENDED"
        assert (await early).code in {"ALLOWED", "AGENT_SUSPENDED"}  # it arrived before the change
        assert (await house.ask()).code == "AGENT_SUSPENDED"

    async def test_rates_outlast_changes(self, kit):
        house = kit.House(profile=change(MAILER, rate_limits=(RateLimit(per_minute=3),)))
        codes = []
        for _ in range(5):
            codes.append((await house.ask()).code)
            house.chain.invalidate()
        assert codes == ["ALLOWED"] * 3 + ["RATE_LIMITED"] * 2

    async def test_the_gate_closes_when_the_store_stays_away_and_opens_again(self, kit):
        house = kit.House(profile=MAILER, stale_grace=60.0)
        now = house.clock.now
        assert (await house.ask()).allowed
        house.shelf.broken = True
        for seconds in (1, 30, 59):
            house.chain.freshen(False, now + seconds)
            assert (await house.ask()).allowed, seconds
        house.chain.freshen(False, now + 60)
        assert house.chain.closed
        verdict = await house.ask()
        assert (verdict.effect, verdict.code, verdict.retry_after) == ("deny", "POLICY_STALE", 5.0)
        house.shelf.broken = False
        assert (await house.ask()).code == "POLICY_STALE"  # only the watcher opens it
        house.agent(status="suspended")
        house.chain.freshen(True, now + 61)
        assert (await house.ask()).code == "AGENT_SUSPENDED"
        house.agent()
        house.chain.freshen(False, now + 62)
        assert (await house.ask()).allowed

    async def test_what_is_not_in_memory_cannot_be_allowed_while_the_store_is_away(self, kit):
        house = kit.House(profile=MAILER)
        house.shelf.broken = True
        assert (await house.ask()).code == "POLICY_STALE"
        house.shelf.broken = False
        assert (await house.ask()).allowed

    async def test_a_store_that_hangs_denies(self, kit):
        house = kit.House(profile=MAILER, load_timeout=0.02)
        house.shelf.before = lambda what: asyncio.sleep(60)
        assert (await house.ask()).code == "POLICY_STALE"


NONSENSE = [
    True, False, 0, 1, "deny", "", (), {}, object(), Verdict, Verdict("allow", "x", "ALLOWED", "ok"),
    Verdict("deny", "x", "NO_SUCH_CODE", "ok"), Verdict("deny", "x", "ALLOWED", "ok"), Verdict("maybe", "x", "PLUGIN_DENIED", "ok"),
    Verdict("deny", 5, "PLUGIN_DENIED", "ok"), Verdict("deny", "x", "PLUGIN_DENIED", None), Verdict("deny", "x", "PLUGIN_DENIED", "ok", "5"),
    Verdict("deny", "x", "PLUGIN_DENIED", "ok", float("nan")), Verdict("deny", "x", "PLUGIN_DENIED", "ok", 0.0, ["flag"]),
    Verdict("deny", "x", ["PLUGIN_DENIED"], "ok"), Verdict(["deny"], "x", "PLUGIN_DENIED", "ok"),
]  # fmt: skip


class TestFaultsDeny:
    @pytest.mark.parametrize("answer", NONSENSE, ids=lambda answer: repr(answer)[:40].partition(" object at ")[0])
    async def test_nonsense_from_a_guard(self, kit, answer):
        house = kit.House(kit.guard("mine", lambda call: answer), profile=MAILER)
        for _ in range(2):
            verdict = await house.ask()
            assert (verdict.effect, verdict.code, verdict.rule) == ("deny", "POLICY_ERROR", "mine")
        assert house.host.faults["mine"] == 2

    @pytest.mark.parametrize("answer", NONSENSE, ids=lambda answer: repr(answer)[:40].partition(" object at ")[0])
    async def test_nonsense_from_a_gate(self, kit, answer):
        async def gate(call):
            return answer

        house = kit.House(kit.gate("desk", gate), profile=MAILER)
        assert (await house.ask()).code == "POLICY_ERROR"

    @pytest.mark.parametrize(
        "error",
        [
            ValueError,
            RecursionError,
            MemoryError,
            StopIteration,
            StopAsyncIteration,
            SystemExit,
            asyncio.CancelledError,
            GeneratorExit,
        ],
    )
    async def test_whatever_a_guard_or_gate_raises(self, kit, error):
        def raises(call):
            raise error

        async def raises_later(call):
            raise error

        for plugin in (kit.guard("mine", raises), kit.gate("mine", raises_later), kit.gate("mine", raises)):
            house = kit.House(plugin, profile=MAILER)
            for _ in range(2):
                assert (await house.ask()).code == "POLICY_ERROR"
            assert house.host.faults["mine"] == 2

    async def test_a_coroutine_from_a_guard_is_nonsense_and_leaves_no_warning(self, kit):
        async def later(call): ...

        assert (
            await kit.House(kit.guard("mine", lambda call: later(call)), profile=MAILER).ask()
        ).code == "POLICY_ERROR"
        assert (await kit.House(kit.guard("mine", later), profile=MAILER).ask()).code == "POLICY_ERROR"

    async def test_ctrl_c_in_a_guard_is_still_ctrl_c(self, kit):
        def interrupted(call):
            raise KeyboardInterrupt

        house = kit.House(kit.guard("mine", interrupted), profile=MAILER)
        with pytest.raises(KeyboardInterrupt):
            await house.ask()

    @pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
    def test_a_guard_that_hangs_denies_and_rests_and_others_go_on(self, kit, runner):
        def hang(call):
            if call.tool == "send_email":
                while True:
                    time.sleep(1)

        async def story():
            house = kit.House(
                kit.guard("mine", hang), profile=change(MAILER), host_options={"guard_timeout": 0.5, "cooldown": 60.0}
            )
            await house.host.provision()
            try:
                first, second = await house.ask(), await house.ask()
                next(active for active in house.host.guards if active.name == "mine").ward.rests_until = 0.0
                return first, second, await house.ask("read_inbox")
            finally:
                await house.host.close()

        first, second, third = runner(story())
        assert (first.code, second.code) == ("POLICY_ERROR", "POLICY_ERROR")
        assert "did not answer in time" in first.reason
        assert "is resting" in second.reason
        assert third.allowed

    async def test_a_compile_that_fails_hangs_or_returns_nonsense(self, kit):
        def fails(self, agent, profile, tool):
            raise KeyError("x")

        def hangs(self, agent, profile, tool):
            while True:
                pass

        for compile in (fails, hangs, lambda self, agent, profile, tool: "not callable"):
            house = kit.House(
                kit.plugin("mine", "guard", compile=compile), profile=MAILER, host_options={"guard_timeout": 0.04}
            )
            await house.host.provision()
            assert (await house.ask()).code == "POLICY_ERROR"
            await house.host.close()

    async def test_a_guard_that_rested_while_a_tool_was_compiled_is_asked_again_later(self, kit):
        house = kit.House(kit.guard("mine", lambda call: None), profile=MAILER)
        ward = next(active.ward for active in house.host.guards if active.name == "mine")
        ward.rests_until = time.monotonic() + 60
        assert (await house.ask()).code == "POLICY_ERROR"
        ward.rests_until = 0.0
        assert (await house.ask()).allowed

    @pytest.mark.parametrize(
        "broken",
        [
            {"argument_rules": (ArgumentRule(name="r", tools=("*",), field="a..b", op="equals", values=(1,)),)},
            {"allowed_ips": ("localhost",)},
            {"schedule": (Window(timezone="Mars/Olympus"),)},
        ],
    )
    async def test_a_profile_that_cannot_be_compiled(self, kit, broken):
        house = kit.House(profile=change(MAILER, **broken))
        for _ in range(2):
            assert (await house.ask()).code == "POLICY_ERROR"

    @pytest.mark.parametrize(
        ("active", "needs", "missing"),
        [
            ((), {"argument_rules": (INTERNAL,)}, "argument-rules"),
            (("argument-rules",), {"rate_limits": (RateLimit(per_minute=5),)}, "rate-limits"),
        ],
    )
    async def test_rules_that_nobody_enforces_let_nothing_pass(self, kit, active, needs, missing):
        house = kit.House(profile=change(MAILER, **needs), host_options={"ours": active})
        verdict = await house.ask(args=GOOD)
        assert verdict.code == "POLICY_ERROR"
        assert missing in verdict.reason


class TestGates:
    async def test_all_must_agree_and_are_asked_every_time(self, kit):
        asked = []

        async def yes(call):
            asked.append("yes")

        async def no(call):
            asked.append("no")
            return NO if call.args else None

        house = kit.House(kit.gate("first", yes), kit.gate("second", no), profile=MAILER)
        assert (await house.ask()).allowed
        assert (await house.ask(args={"x": 1})).code == "PLUGIN_DENIED"
        assert asked == ["yes", "no"] * 2
        assert house.chain.decide(house.call()) is None

    async def test_one_that_does_not_answer_in_time_denies_even_if_it_refuses_to_end(self, kit):
        async def stubborn(call):
            while True:
                try:
                    await asyncio.sleep(0.01)
                    if done:
                        return
                except asyncio.CancelledError:
                    pass

        done = []
        house = kit.House(kit.gate("desk", stubborn), profile=MAILER, gate_timeout=0.03)
        try:
            verdict = await house.ask()
        finally:
            done.append(1)
        assert (verdict.code, verdict.rule) == ("POLICY_ERROR", "desk")
        await asyncio.sleep(0.03)

    async def test_an_agent_suspended_while_the_gate_thinks_is_not_let_through(self, kit):
        async def slow(call):
            house.agent(status="suspended")

        house = kit.House(kit.gate("desk", slow), profile=MAILER)
        assert (await house.ask()).code == "AGENT_SUSPENDED"

    async def test_a_gates_hold_is_a_hold(self, kit):
        async def ask(call):
            return ASK

        assert (await kit.House(kit.gate("desk", ask), profile=MAILER).ask()).effect == "hold"

    async def test_a_client_that_leaves_is_a_cancellation(self, kit):
        async def slow(call):
            await asyncio.sleep(60)

        house = kit.House(kit.gate("desk", slow), profile=MAILER)
        task = asyncio.create_task(house.ask())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class TestLists:
    async def test_an_agent_sees_what_it_may_use(self, kit):
        house = kit.House(
            profile=change(MAILER, approval=ApprovalRule(tools=("send_*",)), tools=ToolRule(deny=("hidden",)))
        )
        house.upstream(name="crm")
        for tool, skills in (
            ("crm__find", ("email-management",)),
            ("crm__drop", ("database",)),
            ("hidden", ("email-management",)),
        ):
            house.tool(tool_id=tool, upstream="crm", name=tool, skills=skills, risk="low")
        visible = house.chain.viewer(house.principal)
        assert not visible("read_inbox")  # not admitted yet
        await house.chain.admit(house.principal)
        visible = house.chain.viewer(house.principal)
        names = ["read_inbox", "send_email", "exec", "crm__find", "crm__drop", "hidden", "no-such"]
        assert [name for name in names if visible(name)] == ["read_inbox", "send_email", "crm__find"]

    async def test_a_list_still_shows_when_policy_changes_in_between(self, kit):
        house = kit.House(profile=MAILER)
        house.upstream(name="crm")
        house.tool(tool_id="crm__find", upstream="crm", skills=("email-management",), risk="low")
        await house.chain.admit(house.principal)
        await house.ask()
        house.chain.invalidate()
        assert house.chain.viewer(house.principal)("crm__find")


async def test_agents_that_are_gone_from_the_store_are_read_once_per_change(kit):
    house = kit.House(profile=MAILER)
    house.shelf.remove(AGENTS, "org1", "agt1")
    for _ in range(5):
        assert (await house.ask()).code == "AGENT_ARCHIVED"
    assert house.shelf.reads.count("agent") == 1
