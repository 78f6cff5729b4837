"""Rate limits: exact where the ceiling is small, never too generous where it is large, and never forgotten."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from agenticmail_enterprise.catalog.calls import AgentView, Principal, Tool
from agenticmail_enterprise.catalog.profiles import Profile, RateLimit
from agenticmail_enterprise.policies.limits import RateLimits, RateLimitsConfig, Window

AGENT = AgentView(org="org1", id="agt1", name="mail-bot", status="active")
PRINCIPAL = Principal("org1", "agt1", "mail-bot", "key1")
TOOL = Tool(id="send_email")


class Meter:
    """One agent's rate guard and a clock to turn."""

    def __init__(self, *rates: RateLimit, **config):
        self.now = 50_000.0
        self.plugin = RateLimits(RateLimitsConfig(**config), clock=lambda: self.now)
        self.profile = Profile(rate_limits=rates)
        self.guard = self.compile()

    def compile(self, agent=AGENT, tool=TOOL, profile=None):
        return self.plugin.compile(agent, profile or self.profile, tool)

    def call(self, kit, guard=None):
        return (guard or self.guard)(kit.call(PRINCIPAL))

    def passed(self, kit, times):
        return sum(self.call(kit) is None for _ in range(times))


def test_a_ceiling_and_when_to_come_back(kit):
    meter = Meter(RateLimit(per_minute=3))
    assert meter.passed(kit, 3) == 3
    meter.now += 20
    verdict = meter.call(kit)
    assert (verdict.effect, verdict.code, verdict.rule) == ("deny", "RATE_LIMITED", "rate-limits:per_minute")
    assert verdict.retry_after == 40.0
    assert verdict.reason == "mail-bot may not call send_email: its 3 calls per minute are used up; try again in 40 s."
    meter.now += verdict.retry_after - 0.001
    assert meter.call(kit) is not None
    meter.now += 0.001
    assert meter.passed(kit, 5) == 3


def test_there_is_no_edge_to_exploit(kit):
    """Five calls at the end of one minute and five at the start of the next are ten in two seconds."""
    meter = Meter(RateLimit(per_minute=5))
    meter.now = 59.0 + 60 * 1_000
    assert meter.passed(kit, 5) == 5
    meter.now += 2
    assert meter.passed(kit, 5) == 0


def test_a_denied_call_costs_nothing(kit):
    meter = Meter(RateLimit(per_minute=2))
    assert meter.passed(kit, 100) == 2
    meter.now += 60
    assert meter.passed(kit, 100) == 2


def test_all_ceilings_count_and_a_call_is_charged_to_all_or_none(kit):
    meter = Meter(RateLimit(per_minute=2, per_hour=3, per_day=4))
    assert meter.passed(kit, 9) == 2
    meter.now += 60
    assert meter.passed(kit, 9) == 1
    assert meter.call(kit).rule == "rate-limits:per_hour"
    meter.now += 3_600
    assert meter.passed(kit, 9) == 1
    assert meter.call(kit).rule == "rate-limits:per_day"


def test_limits_of_some_tools_and_of_all_together(kit):
    meter = Meter(RateLimit(per_minute=1, tools=("send_*",)), RateLimit(per_minute=3))
    read = meter.compile(tool=Tool(id="read_inbox"))
    reply = meter.compile(tool=Tool(id="send_reply"))
    assert meter.call(kit) is None
    assert meter.call(kit, reply).rule == "rate-limits:per_minute:send_*"
    assert [meter.call(kit, read) is None for _ in range(3)] == [True, True, False]


def test_two_rules_about_the_same_calls_are_one_counter_with_the_lower_ceiling(kit):
    meter = Meter(RateLimit(per_minute=5), RateLimit(per_minute=2))
    assert meter.passed(kit, 9) == 2


def test_agents_and_organisations_have_their_own(kit):
    meter = Meter(RateLimit(per_minute=1))
    for org, agent in (("org1", "agt1"), ("org1", "agt2"), ("org2", "agt1")):
        guard = meter.compile(AgentView(org=org, id=agent, name="x", status="active"))
        assert [meter.call(kit, guard) is None for _ in range(2)] == [True, False]


def test_counters_outlast_recompiling_and_changed_ceilings(kit):
    meter = Meter(RateLimit(per_minute=3))
    assert meter.passed(kit, 3) == 3
    assert meter.call(kit, meter.compile()) is not None
    raised = meter.compile(profile=Profile(rate_limits=(RateLimit(per_minute=5),)))
    assert [meter.call(kit, raised) is None for _ in range(3)] == [True, True, False]
    lowered = meter.compile(profile=Profile(rate_limits=(RateLimit(per_minute=2),)))
    assert meter.call(kit, lowered).retry_after == 60.0


def test_no_limit_no_guard():
    meter = Meter(RateLimit(), RateLimit(per_minute=1, tools=("other",)))
    assert meter.guard is None


def test_peeking_charges_nothing(kit):
    meter = Meter(RateLimit(per_minute=1))
    look = meter.plugin.peek(AGENT, meter.profile, TOOL)
    assert [meter.call(kit, look) for _ in range(5)] == [None] * 5
    assert meter.call(kit) is None
    assert meter.call(kit, look).code == "RATE_LIMITED"


def test_workers_share_a_ceiling(kit):
    assert Meter(RateLimit(per_minute=10), processes=3).passed(kit, 99) == 3
    assert Meter(RateLimit(per_minute=2), processes=8).passed(kit, 99) == 1


class TestMemory:
    def test_idle_counters_are_swept(self, kit):
        meter = Meter(RateLimit(per_minute=1), max_counters=2_000)
        for turn in range(4):
            for at in range(1_500):
                guard = meter.compile(AgentView(org="o", id=f"{turn}-{at}", name="x", status="active"))
                assert meter.call(kit, guard) is None
            meter.now += 61
        assert len(meter.plugin._windows) <= 2_000

    def test_a_full_table_denies_and_forgets_nobody(self, kit):
        meter = Meter(RateLimit(per_minute=1), max_counters=10)
        guards = [meter.compile(AgentView(org="o", id=str(at), name="x", status="active")) for at in range(11)]
        assert [meter.call(kit, guard) is None for guard in guards] == [True] * 10 + [False]
        verdict = meter.call(kit, guards[10])
        assert verdict.code == "POLICY_ERROR"
        assert "no room" in verdict.reason
        assert [meter.call(kit, guard).code for guard in guards[:10]] == ["RATE_LIMITED"] * 10

    def test_several_new_counters_at_once_survive_the_sweep(self, kit):
        meter = Meter(RateLimit(per_minute=9, per_hour=9, per_day=9), max_counters=3)
        assert meter.passed(kit, 3) == 3

    def test_a_busy_window_stays_small(self):
        window = Window()
        for at in range(100_000):
            window.used(at / 1_000, 60.0)
            window.charge(at / 1_000, 1.0)
        assert len(window.stamps) <= 62


# Multiples of 0.7, which 60 is none of: about a call exactly one window old the oracle differs (it still counts it).
GAPS = st.lists(st.sampled_from([0.0, 0.7, 1.4, 7.0, 29.4, 30.1, 59.5, 60.2]), max_size=80)


class Oracle:
    """The `limits` package's exact moving window, under the same clock."""

    def __init__(self, ceiling, monkeypatch_time):
        self.item = RateLimitItemPerMinute(ceiling)
        self.limiter = MovingWindowRateLimiter(MemoryStorage())
        self._at = monkeypatch_time

    def hit(self) -> bool:
        return self.limiter.hit(self.item, "agent")


@pytest.fixture
def frozen(monkeypatch):
    holder = {"now": 1_000_000.0}
    monkeypatch.setattr(time, "time", lambda: holder["now"])
    return holder


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_small_ceiling_is_the_exact_moving_window(kit_session, data):
    kit, now = kit_session
    ceiling = data.draw(st.integers(1, 6))
    meter, oracle = Meter(RateLimit(per_minute=ceiling)), Oracle(ceiling, now)
    meter.now = now["now"]
    for gap in data.draw(GAPS):
        now["now"] += gap
        meter.now = now["now"]
        assert (meter.call(kit) is None) is oracle.hit(), f"after {gap}"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_large_ceiling_never_lets_more_pass_and_denies_little_more(kit_session, data):
    """Sandwiched: the exact window would have let every call pass that we let pass; and when we deny, then so many calls
    passed in the last 61 seconds (the window and one grain of it)."""
    kit, now = kit_session
    ceiling = 70
    meter, oracle, times = Meter(RateLimit(per_minute=ceiling)), Oracle(ceiling, now), []
    for gap, burst in data.draw(
        st.lists(st.tuples(st.sampled_from([0.13, 0.91, 5.2, 19.5]), st.integers(1, 30)), max_size=40)
    ):
        now["now"] += gap
        meter.now = now["now"]
        for _ in range(burst):
            if meter.call(kit) is None:
                assert oracle.hit()
                times.append(meter.now)
            else:
                assert sum(at > meter.now - 61.0 for at in times) >= ceiling


@pytest.fixture
def kit_session(kit, frozen):
    return kit, frozen
