"""Health by more than one sample, and retries that never repeat what may have happened."""

from __future__ import annotations

import asyncio

import pytest

from agenticmail_enterprise.catalog.errors import (
    BreakerOpen,
    UpstreamBroken,
    UpstreamBusy,
    UpstreamRefused,
    UpstreamTimeout,
)
from agenticmail_enterprise.policies.resilience import HealthMonitor, with_retry


async def well() -> bool:
    return True


def test_the_first_sample_decides_and_then_it_takes_several() -> None:
    changes: list[str] = []
    monitor = HealthMonitor(well, unhealthy_after=3, healthy_after=2, on_change=changes.append)
    assert (monitor.status, monitor.healthy) == ("unknown", False)
    assert monitor.report(True) == "healthy"
    assert [monitor.report(False, "down") for _ in range(2)] == ["healthy"] * 2
    assert monitor.report(True) == "healthy"
    assert [monitor.report(False, "down") for _ in range(3)] == ["healthy", "healthy", "unhealthy"]
    assert (monitor.last_error, monitor.healthy) == ("down", False)
    assert monitor.report(True) == "unhealthy"
    assert monitor.report(False) == "unhealthy"
    assert [monitor.report(True) for _ in range(2)] == ["unhealthy", "healthy"]
    assert changes == ["healthy", "unhealthy", "healthy"]
    assert (monitor.checks, monitor.last_error) == (11, "")
    assert HealthMonitor(well).report(False) == "unhealthy"


async def test_a_check_fails_by_saying_no_by_raising_or_by_taking_too_long() -> None:
    async def says_nothing() -> None:
        return None

    async def says_no() -> bool:
        return False

    async def raises() -> bool:
        raise ConnectionError("gone")

    async def hangs() -> bool:
        await asyncio.sleep(60)
        return True

    outcomes = []
    for check in (well, says_nothing, says_no, raises, hangs):
        monitor = HealthMonitor(check, timeout=0.05)
        outcomes.append((await monitor.probe(), monitor.last_error))
    assert outcomes == [
        ("healthy", ""),
        ("healthy", ""),
        ("unhealthy", "the check said no"),
        ("unhealthy", "ConnectionError: gone"),
        ("unhealthy", "no answer within 0.05 s"),
    ]


async def test_it_asks_at_intervals_until_it_is_cancelled() -> None:
    slept: list[float] = []
    enough = asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            enough.set()
            await asyncio.sleep(60)

    monitor = HealthMonitor(well, interval=7.0, sleep=sleep)
    task = asyncio.ensure_future(monitor.run())
    await asyncio.wait_for(enough.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slept == [7.0] * 3
    assert monitor.checks == 3


@pytest.mark.parametrize("options", [{"interval": 0}, {"timeout": 0}, {"unhealthy_after": 0}, {"healthy_after": 0}])
def test_monitors_that_never_decide_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="health monitor needs"):
        HealthMonitor(well, **options)  # type: ignore[arg-type]


class Flaky:
    """Fails with each error in turn, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


class Naps:
    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


async def test_what_was_not_sent_is_tried_again_with_growing_pauses() -> None:
    call, naps, told = Flaky(UpstreamRefused(), UpstreamBusy(), UpstreamRefused()), Naps(), []
    answer = await with_retry(
        call, attempts=4, base=0.1, sleep=naps, random=lambda: 1.0,
        on_retry=lambda attempt, delay, error: told.append((attempt, delay, type(error))),
    )  # fmt: skip
    assert answer == "done"
    assert naps.taken == [0.1, 0.2, 0.4]
    assert told == [(1, 0.1, UpstreamRefused), (2, 0.2, UpstreamBusy), (3, 0.4, UpstreamRefused)]


@pytest.mark.parametrize("error", [UpstreamTimeout(), UpstreamBroken(), ValueError("mine")])
async def test_what_may_have_happened_is_not(error: Exception) -> None:
    call = Flaky(error)
    with pytest.raises(type(error)):
        await with_retry(call, sleep=Naps())
    assert call.calls == 1


async def test_attempts_are_counted_and_the_last_error_is_raised() -> None:
    call, naps = Flaky(*[UpstreamRefused(str(number)) for number in range(5)]), Naps()
    with pytest.raises(UpstreamRefused, match="2"):
        await with_retry(call, attempts=3, sleep=naps)
    assert (call.calls, len(naps.taken)) == (3, 2)
    with pytest.raises(ValueError, match="At least one"):
        await with_retry(call, attempts=0)


@pytest.mark.parametrize(("chance", "expected"), [(0.0, [0.5, 1.0, 1.5]), (0.999999, [1.0, 2.0, 3.0])])
async def test_pauses_have_jitter_and_a_ceiling(chance: float, expected: list[float]) -> None:
    naps = Naps()
    await with_retry(
        Flaky(*[UpstreamRefused()] * 3), attempts=4, base=1.0, cap=3.0, sleep=naps, random=lambda: chance
    )  # fmt: skip
    assert naps.taken == pytest.approx(expected, rel=1e-4)


async def test_what_the_other_side_asks_for_is_respected() -> None:
    naps = Naps()
    await with_retry(Flaky(BreakerOpen(None, retry_after=2.5)), base=0.1, sleep=naps)
    assert naps.taken == [2.5]
    call = Flaky(BreakerOpen(None, retry_after=60))
    with pytest.raises(BreakerOpen):  # longer than anybody would wait here
        await with_retry(call, cap=5.0, sleep=naps)
    assert call.calls == 1


async def test_a_rule_of_ones_own() -> None:
    call = Flaky(KeyError("a"), KeyError("b"))
    assert await with_retry(call, retry_on=lambda error: isinstance(error, KeyError), sleep=Naps()) == "done"


async def test_many_attempts_do_not_overflow() -> None:
    naps = Naps()
    await with_retry(Flaky(*[UpstreamRefused()] * 2000), attempts=2001, sleep=naps, random=lambda: 1.0)
    assert max(naps.taken) == 5.0


async def test_cancellation_is_not_retried() -> None:
    call = Flaky()

    async def cancelled() -> str:
        await call()
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await with_retry(cancelled, retry_on=lambda _: True, sleep=Naps())
    assert call.calls == 1
