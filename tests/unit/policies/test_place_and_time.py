"""Where a call comes from and when: allowed addresses and weekly windows."""

from datetime import UTC, datetime

import pytest

from agenticmail_enterprise.catalog.calls import Principal
from agenticmail_enterprise.catalog.profiles import Window
from agenticmail_enterprise.policies.guards import ip_guard, schedule_guard

PRINCIPAL = Principal("org1", "agt1", "mail-bot", "key1")


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("allowed", "good", "bad"),
    [
        (
            ("10.0.0.0/8",),
            ["10.1.2.3", "::ffff:10.1.2.3"],
            ["11.0.0.1", "", "x", "10.0.0", "::1", "010.0.0.1", "10.0.0.1/8"],
        ),
        (("192.168.1.5",), ["192.168.1.5"], ["192.168.1.6", "::ffff:192.168.1.6"]),
        (("2001:db8::/32", "::1"), ["2001:db8::5", "::1"], ["2001:db9::", "127.0.0.1"]),
        (("0.0.0.0/0",), ["8.8.8.8"], ["2001:db8::5", "unix"]),
    ],
)
def test_addresses(kit, allowed, good, bad):
    guard = ip_guard(allowed, "profile.allowed_ips")
    for _ in range(2):  # the second time from memory
        assert [ip for ip in good if guard(kit.call(PRINCIPAL, ip=ip)) is not None] == []
        assert [ip for ip in bad if guard(kit.call(PRINCIPAL, ip=ip)) is None] == []
    verdict = guard(kit.call(PRINCIPAL, ip=bad[0]))
    assert (verdict.code, verdict.rule) == ("IP_NOT_ALLOWED", "profile.allowed_ips")


def test_the_memory_of_addresses_is_bounded_and_right(kit):
    guard = ip_guard(("10.0.0.0/24",), "key.allowed_ips")
    for number in range(1_000):
        assert (guard(kit.call(PRINCIPAL, ip=f"10.0.{number // 256}.{number % 256}")) is None) is (number < 256)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "localhost", "", "10.0.0.0/33"])
def test_what_is_no_network_does_not_compile(text):
    with pytest.raises(ValueError, match="."):
        ip_guard((text,), "x")


OFFICE = Window(days=("mon", "tue"), start="09:00", end="17:00", timezone="Europe/Berlin")
NIGHT = Window(days=("fri",), start="22:00", end="02:00", timezone="UTC")
ALWAYS = Window(timezone="Asia/Kathmandu")


@pytest.mark.parametrize(
    ("window", "moment", "open"),
    [
        (OFFICE, "2026-01-05T08:00", True), (OFFICE, "2026-01-05T07:59", False), (OFFICE, "2026-01-05T15:59:59", True),
        (OFFICE, "2026-01-05T16:00", False), (OFFICE, "2026-01-07T12:00", False),
        (OFFICE, "2026-07-06T07:00", True), (OFFICE, "2026-07-06T06:59", False),  # summer time
        (NIGHT, "2026-01-09T22:00", True), (NIGHT, "2026-01-10T01:59", True), (NIGHT, "2026-01-10T02:00", False),
        (NIGHT, "2026-01-10T23:00", False), (NIGHT, "2026-01-09T01:00", False),
        (ALWAYS, "2026-01-09T23:59", True), (ALWAYS, "2026-01-10T18:15", True),
        (Window(start="09:00", end="09:00"), "2026-01-05T09:00", False), (Window(days=()), "2026-01-05T09:00", False),
        (Window(days=("sun",), start="23:00", end="01:00", timezone="America/New_York"), "2026-01-05T05:30", True),
        (Window(days=("sun",), start="01:30", end="02:30", timezone="Europe/Berlin"), "2026-10-25T00:15", True),  # 02:15, twice
        (Window(days=("sun",), start="01:30", end="02:30", timezone="Europe/Berlin"), "2026-10-25T01:15", True),
    ],
)  # fmt: skip
def test_windows(kit, window, moment, open):
    guard = schedule_guard((window,))
    verdict = guard(kit.call(PRINCIPAL, at=at(moment)))
    assert (verdict is None) is open
    if not open:
        assert verdict.code == "OUTSIDE_SCHEDULE"
        assert window.timezone in verdict.reason


def test_one_window_of_several_is_enough_and_time_moves_both_ways(kit):
    guard = schedule_guard((OFFICE, NIGHT))
    moments = [
        ("2026-01-05T10:00", True),
        ("2026-01-09T22:30", True),
        ("2026-01-09T12:00", False),
        ("2026-01-05T10:00", True),
    ]
    assert [(m, guard(kit.call(PRINCIPAL, at=at(m))) is None) for m, _ in moments] == moments


def test_an_unknown_zone_does_not_compile():
    for name in ("Mars/Olympus", "../../etc/passwd", "\0", ""):
        with pytest.raises(ValueError, match="time zone"):
            schedule_guard((Window(timezone=name) if name else Window(timezone=" "),))
