"""Token buckets: never more than the burst and the rate, in any stretch of time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from agenticmail_enterprise.policies.resilience import KeyedRateLimiter, RateLimiter


class Time:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_and_then_the_rate() -> None:
    time = Time()
    limiter = RateLimiter(2.0, 5.0, clock=time)
    assert [limiter.take() for _ in range(6)] == [True] * 5 + [False]
    assert limiter.retry_after() == 0.5
    time.now += 0.5
    assert limiter.take()
    assert not limiter.take()
    time.now += 100
    assert limiter.full
    assert limiter.tokens == 5.0


def test_tokens_are_taken_all_or_none() -> None:
    limiter = RateLimiter(1.0, 3.0, clock=Time())
    assert not limiter.take(4)
    assert limiter.retry_after(4) == float("inf")
    assert limiter.take(3)
    assert not limiter.take(0.1)
    assert limiter.take(0)
    with pytest.raises(ValueError, match="given back"):
        limiter.take(-1)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    time = Time()
    limiter = RateLimiter(1.0, 2.0, clock=time)
    limiter.take(2)
    time.now -= 10
    assert not limiter.take()
    time.now += 11
    assert limiter.take()
    assert not limiter.take()


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (1, 0), (-1, 1), (1, -1), (float("nan"), 1)])
def test_limiters_without_tokens_are_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="above zero"):
        RateLimiter(rate, burst)


STEPS = st.lists(st.tuples(st.floats(0, 3), st.floats(0.1, 3)), min_size=1, max_size=60)


@given(st.floats(0.1, 50), st.floats(1, 20), STEPS)
def test_no_stretch_of_time_holds_more_than_burst_and_rate(
    rate: float, burst: float, steps: list[tuple[float, float]]
) -> None:
    time = Time()
    limiter = RateLimiter(rate, burst, clock=time)
    taken: list[tuple[float, float]] = []
    for wait, count in steps:
        time.now += wait
        if limiter.take(count):
            taken.append((time.now, count))
        elif count <= burst:
            hint = limiter.retry_after(count)
            assert hint > 0
            time.now += hint * 1.0001 + 1e-6  # what it promises, it keeps
            assert limiter.take(count)
            taken.append((time.now, count))
    for start in range(len(taken)):
        total = 0.0
        for at, count in taken[start:]:
            total += count
            assert total <= burst + rate * (at - taken[start][0]) + 1e-6


def test_it_admits_no_more_than_a_moving_window_of_burst_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `limits` library as a witness: what passes the bucket passes a window of burst + rate."""
    time = Time()
    monkeypatch.setattr("time.time", time)
    window = MovingWindowRateLimiter(MemoryStorage())
    item = RateLimitItemPerSecond(10 + 5)
    limiter = RateLimiter(10.0, 5.0, clock=time)
    passed = 0
    for _ in range(2000):
        time.now += 0.013
        if limiter.take():
            passed += 1
            assert window.hit(item, "key")
    assert passed >= 2000 * 0.013 * 10 - 1


def test_each_key_has_its_own_bucket() -> None:
    time = Time()
    limiter = KeyedRateLimiter(1.0, 2.0, clock=time)
    assert [limiter.take("a") for _ in range(3)] == [True, True, False]
    assert limiter.take("b")
    assert limiter.retry_after("a") == 1.0
    limiter.forget("a")
    assert limiter.take("a", 2)


def test_full_buckets_are_forgotten_and_others_are_not() -> None:
    time = Time()
    limiter = KeyedRateLimiter(1.0, 10.0, max_keys=3, clock=time)
    for key in ("a", "b", "c"):
        limiter.take(key)
    limiter.take("a", 9)
    time.now += 1.5
    assert limiter.take("d")
    assert len(limiter) == 2  # b and c were full again
    assert not limiter.take("a", 2)


def test_inventing_keys_buys_nothing() -> None:
    time = Time()
    limiter = KeyedRateLimiter(1.0, 5.0, max_keys=10, clock=time)
    passed = sum(limiter.take(f"key-{number}", 5) for number in range(1000))
    assert passed == 10 + 1  # ten buckets, and one for all who came later
    assert len(limiter) == 10
    time.now += 5
    assert limiter.take("key-500", 5)


def test_room_for_no_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one key"):
        KeyedRateLimiter(1, 1, max_keys=0)
