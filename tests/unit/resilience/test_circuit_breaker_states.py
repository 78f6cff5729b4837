"""The circuit breaker, move by move and against a model."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agenticmail_enterprise.catalog.errors import BreakerOpen
from agenticmail_enterprise.policies.resilience import CircuitBreaker


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.failure(breaker.enter())


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    time = Time()
    changes: list[str] = []
    breaker = CircuitBreaker(3, 10.0, clock=time, on_change=changes.append)
    fail(breaker, 2)
    breaker.success(breaker.enter())
    fail(breaker, 2)
    assert (breaker.state, breaker.calm) == ("closed", False)
    fail(breaker)
    assert (breaker.state, breaker.opened, breaker.retry_after) == ("open", 1, 10.0)
    with pytest.raises(BreakerOpen) as refusal:
        breaker.enter()
    assert refusal.value.details == {"retry_after": 10.0, "state": "open"}
    time.now += 9.5
    assert breaker.retry_after == 0.5
    assert changes == ["open"]


def test_half_open_lets_one_probe_pass() -> None:
    time = Time()
    breaker = CircuitBreaker(1, 10.0, clock=time)
    fail(breaker)
    time.now += 10
    probe = breaker.enter()
    assert breaker.state == "half_open"
    for _ in range(3):
        with pytest.raises(BreakerOpen):
            breaker.enter()
    breaker.success(probe)
    assert (breaker.state, breaker.calm) == ("closed", True)


def test_a_probe_that_fails_opens_it_for_another_rest() -> None:
    time = Time()
    breaker = CircuitBreaker(5, 10.0, clock=time)
    fail(breaker, 5)
    time.now += 12
    breaker.failure(breaker.enter())
    assert (breaker.state, breaker.retry_after, breaker.opened) == ("open", 10.0, 2)


def test_several_recoveries_may_be_asked_for() -> None:
    time = Time()
    breaker = CircuitBreaker(1, 10.0, recoveries=2, clock=time)
    fail(breaker)
    time.now += 10
    breaker.success(breaker.enter())
    assert breaker.state == "half_open"
    breaker.success(breaker.enter())
    assert breaker.state == "closed"


def test_a_probe_that_tells_nothing_gives_its_place_back() -> None:
    time = Time()
    breaker = CircuitBreaker(1, 10.0, clock=time)
    fail(breaker)
    time.now += 10
    breaker.abandon(breaker.enter())
    assert breaker.retry_after == 0.0
    breaker.success(breaker.enter())
    assert breaker.state == "closed"


def test_a_probe_that_vanishes_does_not_block_for_ever() -> None:
    time = Time()
    breaker = CircuitBreaker(1, 10.0, clock=time)
    fail(breaker)
    time.now += 10
    breaker.enter()
    assert breaker.retry_after == 10.0
    time.now += 10
    breaker.success(breaker.enter())
    assert breaker.state == "closed"


def test_tickets_from_before_a_change_change_nothing() -> None:
    time = Time()
    breaker = CircuitBreaker(2, 10.0, clock=time)
    slow = [breaker.enter() for _ in range(5)]
    fail(breaker, 2)
    breaker.success(slow[0])
    assert breaker.state == "open"
    time.now += 10
    probe = breaker.enter()
    breaker.failure(slow[1])
    breaker.success(slow[2])
    breaker.abandon(slow[3])
    assert breaker.state == "half_open"
    with pytest.raises(BreakerOpen):
        breaker.enter()
    breaker.success(probe)
    breaker.failure(slow[4])
    assert (breaker.state, breaker.calm) == ("closed", True)


def test_reset_closes_it() -> None:
    breaker = CircuitBreaker(1)
    fail(breaker)
    breaker.reset()
    assert (breaker.state, breaker.calm, breaker.retry_after) == ("closed", True, 0.0)


@pytest.mark.parametrize(("failures", "rest", "recoveries"), [(0, 1, 1), (1, 0, 1), (1, -1, 1), (1, 1, 0)])
def test_nonsense_is_refused(failures: int, rest: float, recoveries: int) -> None:
    with pytest.raises(ValueError, match="breaker needs"):
        CircuitBreaker(failures, rest, recoveries=recoveries)


async def test_run_counts_what_it_is_told_to_count() -> None:
    breaker = CircuitBreaker(2, 10.0)

    async def fine() -> str:
        return "fine"

    async def bad() -> str:
        raise KeyError("bad")

    assert await breaker.run(fine) == "fine"
    for _ in range(5):
        with pytest.raises(KeyError):
            await breaker.run(bad, counts=lambda error: not isinstance(error, KeyError))
    assert breaker.state == "closed"
    for _ in range(2):
        with pytest.raises(KeyError):
            await breaker.run(bad)
    with pytest.raises(BreakerOpen):
        await breaker.run(fine)


class AgainstAModel(RuleBasedStateMachine):
    """Concurrent calls in any order: at most one probe at a time, and open means refused."""

    def __init__(self) -> None:
        super().__init__()
        self.time = Time()
        self.breaker = CircuitBreaker(3, 10.0, clock=self.time)
        self.tickets: list[tuple[int, str]] = []
        self.opened_at: float | None = None

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.0, 10.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.time.now += seconds

    @rule()
    def call(self) -> None:
        before = self.breaker.state
        try:
            ticket = self.breaker.enter()
        except BreakerOpen:
            assert before != "closed"
            assert self.breaker.retry_after > 0
        else:
            if before == "open":
                assert self.opened_at is not None
                assert self.time.now >= self.opened_at + 10
            self.tickets.append((ticket, self.breaker.state))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), outcome=st.sampled_from(["success", "failure", "abandon"]))
    def report(self, data: st.DataObject, outcome: str) -> None:
        ticket, _ = self.tickets.pop(data.draw(st.integers(0, len(self.tickets) - 1)))
        before = self.breaker.state
        current = ticket == self.breaker.ticket
        getattr(self.breaker, outcome)(ticket)
        if not current or outcome == "abandon":
            assert self.breaker.state == before
        elif before == "half_open":
            assert self.breaker.state == ("closed" if outcome == "success" else "open")
        if self.breaker.state == "open" and before != "open":
            self.opened_at = self.time.now

    @invariant()
    def calm_means_closed(self) -> None:
        assert not self.breaker.calm or self.breaker.state == "closed"


TestAgainstAModel = AgainstAModel.TestCase
