"""The gateway's own guards: where a call comes from and when. Compiled only where something is configured.

Raise ValueError on a profile that cannot be compiled; the chain turns that into a deny.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ..catalog.calls import Call, Verdict
from ..catalog.plugins import GuardFunction
from ..catalog.profiles import Window
from .verdicts import denied, shown

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MAX_REMEMBERED: Final = 16
"""Client addresses whose answer one guard remembers."""


def networks(allowed: tuple[str, ...]) -> tuple[Network, ...]:
    """Addresses and CIDRs as networks. ValueError for what is neither, or has host bits set."""
    return tuple(ipaddress.ip_network(text.strip()) for text in allowed)


def in_networks(ip: str, within: tuple[Network, ...]) -> bool:
    """Whether an address lies in one of them. An IPv4 address written as IPv6 counts as IPv4; no address as outside."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in within if network.version == (mapped or address).version)


def ip_guard(allowed: tuple[str, ...], rule: str) -> GuardFunction:
    """Denies calls from anywhere else. `rule` names whose list it is: the profile's or the key's."""
    within = networks(allowed)
    remembered: dict[str, bool] = {}

    def check_ip(call: Call) -> Verdict | None:
        inside = remembered.get(call.ip)
        if inside is None:
            if len(remembered) >= MAX_REMEMBERED:
                remembered.clear()
            inside = remembered[call.ip] = in_networks(call.ip, within)
        if inside:
            return None
        because = (
            f"{shown(call.ip) or 'an unknown address'} is not an address it may call from; call from an allowed one."
        )
        return denied("IP_NOT_ALLOWED", rule, call.principal.agent_name, call.tool, because)

    return check_ip


@lru_cache(maxsize=512)
def zone(name: str) -> ZoneInfo:
    """A time zone by IANA name. ValueError for an unknown one."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone of the IANA database") from None


def _minutes(text: str) -> int:
    return int(text[:2]) * 60 + int(text[3:])


def window_test(window: Window) -> Callable[[datetime], bool]:
    """Whether an aware moment lies in a weekly window. A window that crosses midnight belongs to the day it starts on.
    A window whose end equals its start is empty (the whole day is 00:00 to 24:00)."""
    local = zone(window.timezone)
    days = frozenset(DAYS.index(day) for day in window.days)
    start, end = _minutes(window.start), _minutes(window.end)

    def inside(moment: datetime) -> bool:
        here = moment.astimezone(local)
        today, minute = here.weekday(), here.hour * 60 + here.minute
        if start <= end:
            return today in days and start <= minute < end
        return (today in days and minute >= start) or ((today - 1) % 7 in days and minute < end)

    return inside


def moment_of(at: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(at))


def described(window: Window) -> str:
    days = "every day" if len(window.days) == 7 else ", ".join(window.days)
    return f"{days} {window.start}-{window.end} {window.timezone}"


def schedule_guard(schedule: tuple[Window, ...]) -> GuardFunction:
    """Denies calls outside every window. One look at the calendar a minute: windows and zone offsets are whole
    minutes."""
    tests = tuple(window_test(window) for window in schedule)
    listed = "; ".join(described(window) for window in schedule)
    last_minute, last_open = -1, False

    def check_schedule(call: Call) -> Verdict | None:
        nonlocal last_minute, last_open
        minute = int(call.at // 60)
        if minute != last_minute:
            moment = moment_of(call.at)
            last_minute, last_open = minute, any(test(moment) for test in tests)
        if last_open:
            return None
        because = f"it may make calls only within its schedule ({listed}); try again then."
        return denied("OUTSIDE_SCHEDULE", "profile.schedule", call.principal.agent_name, call.tool, because)

    return check_schedule
