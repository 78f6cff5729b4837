"""What counts as one source of attempts, and how the buckets hold."""

from __future__ import annotations

import pytest

from agenticmail_enterprise.catalog.errors import TooManyRequests
from agenticmail_enterprise.gateway.people.throttle import KNOWN, SOURCE, Throttle, account_of, source_of


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def never() -> bool:
    return False


async def always() -> bool:
    return True


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),  # one customer's /64
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("198.51.100.1", "198.51.100.2", False),
        ("::ffff:198.51.100.1", "198.51.100.1", True),
        ("", "nonsense", True),
    ],
)
def test_sources(one: str, two: str, same: bool) -> None:
    assert (source_of(one) == source_of(two)) == same


def test_an_account_is_one_however_it_is_written() -> None:
    assert account_of(" Olga@ACME.test ") == account_of("olga@acme.test") != account_of("olga@acme.tes")
    account_of("\ud800")


async def test_a_source_has_its_burst_and_then_one_now_and_then() -> None:
    ticks = Ticks()
    throttle = Throttle(clock=ticks)
    for number in range(SOURCE.burst):
        await throttle.sign_in("198.51.100.1", f"a{number}", "", never)
    with pytest.raises(TooManyRequests) as caught:
        await throttle.sign_in("198.51.100.1", "other", "", never)
    assert 0 < caught.value.details["retry_after"] <= SOURCE.seconds
    await throttle.sign_in("198.51.100.2", "other", "", never)
    ticks.now += SOURCE.seconds
    await throttle.sign_in("198.51.100.1", "other", "", never)
    with pytest.raises(TooManyRequests):
        await throttle.sign_in("198.51.100.1", "other", "", never)


async def test_familiar_places_are_asked_about_only_when_it_matters_and_have_an_end_too() -> None:
    throttle = Throttle(clock=Ticks())
    asked = 0

    async def familiar() -> bool:
        nonlocal asked
        asked += 1
        return True

    number = 0
    while not asked:
        number += 1
        await throttle.sign_in(f"198.51.100.{number}", "a", "", familiar)
    for _ in range(1, KNOWN.burst):
        await throttle.sign_in(f"198.51.100.{number}", "a", "", familiar)
    with pytest.raises(TooManyRequests):
        await throttle.sign_in(f"198.51.100.{number}", "a", "", always)


async def test_workers_share_what_one_would_grant() -> None:
    throttles = [Throttle(4, Ticks()) for _ in range(4)]
    passed = 0
    for throttle in throttles:
        for number in range(SOURCE.burst):
            try:
                await throttle.sign_in("198.51.100.1", f"a{number}", "", never)
                passed += 1
            except TooManyRequests:
                break
    assert passed == SOURCE.burst
