"""Rate limits: ceilings per minute, hour and day, each over a sliding window.

A ceiling holds for every window of its length, wherever it begins: never more than N calls in any 60 seconds. Fixed
windows let 2 N pass around their edge, and a leaky bucket (GCRA) nearly 2 N after a pause. The times of the calls are
kept as runs: up to 60 a window, each call its own run while the ceiling is 60 or less (then the window is exact),
otherwise calls within 1/60 of the window share one and leave it with the run's last call, so that an error only ever
denies, for at most 1/60 of the window longer.

Charged only when every other guard has passed (`charges`), so that a call that is denied for its arguments costs
nothing. Counters live in the process: they outlast every recompilation of a policy, start afresh with the process, and
each of several workers has its own, which is why `processes` divides the ceilings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Annotated, ClassVar, Final

import msgspec

from ..catalog.calls import AgentView, Call, Tool, Verdict
from ..catalog.plugins import GuardFunction
from ..catalog.profiles import Profile
from .patterns import compiled
from .verdicts import Match, denied, fault, shown

PERIODS: Final[tuple[tuple[str, float], ...]] = (("minute", 60.0), ("hour", 3600.0), ("day", 86400.0))
RUNS: Final = 60
SWEEP_FROM: Final = 1_024

Key = tuple[str, str, str, tuple[str, ...]]
"""(org, agent, period's name, the rule's tools). Without the ceiling: raising a limit keeps its count."""


class Window:
    """Calls of the last period. `stamps` are the last times of runs, oldest first; `counts` how many calls each
    holds."""

    __slots__ = ("counts", "opened", "stamps", "total")

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self.counts: list[int] = []
        self.total = 0
        self.opened = 0.0

    def used(self, now: float, period: float) -> int:
        """How many calls count at `now`."""
        stamps = self.stamps
        if stamps and stamps[0] <= now - period:
            gone = 1
            while gone < len(stamps) and stamps[gone] <= now - period:
                gone += 1
            self.total -= sum(self.counts[:gone])
            del stamps[:gone], self.counts[:gone]
        return self.total

    def charge(self, now: float, grain: float) -> None:
        self.total += 1
        if self.stamps and now - self.opened < grain:
            self.stamps[-1] = now
            self.counts[-1] += 1
        else:
            self.opened = now
            self.stamps.append(now)
            self.counts.append(1)


class Limit(msgspec.Struct, frozen=True):
    """One ceiling that applies to a tool."""

    key: Key
    ceiling: int
    period: float
    unit: str

    @property
    def grain(self) -> float:
        return 0.0 if self.ceiling <= RUNS else self.period / RUNS

    @property
    def rule(self) -> str:
        scope = ",".join(self.key[3])
        return f"rate-limits:per_{self.unit}" + (f":{shown(scope)}" if scope else "")


class RateLimitsConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`max_counters`: counters kept at most (one per agent, period and rule; some 300 bytes each); with all of them in
    use a call that needs another is denied. `processes`: how many workers share the agents' calls; ceilings are
    divided."""

    max_counters: Annotated[int, msgspec.Meta(ge=1)] = 500_000
    processes: Annotated[int, msgspec.Meta(ge=1)] = 1


class RateLimits:
    """The guard behind `Profile.rate_limits`."""

    kind: ClassVar[str] = "guard"
    config: ClassVar[type[msgspec.Struct]] = RateLimitsConfig
    charges: ClassVar[bool] = True

    def __init__(self, config: RateLimitsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._windows: dict[Key, Window] = {}
        self._sweep_at = SWEEP_FROM

    async def provision(self) -> None: ...

    async def close(self) -> None:
        self._windows.clear()

    def limits(self, agent: AgentView, profile: Profile, tool: Tool) -> tuple[Limit, ...]:
        """The ceilings that apply, the lowest of those that count the same calls."""
        lowest: dict[Key, Limit] = {}
        for rate in profile.rate_limits:
            if rate.tools and tool.id not in compiled(rate.tools):
                continue
            for unit, period in PERIODS:
                ceiling = {"minute": rate.per_minute, "hour": rate.per_hour, "day": rate.per_day}[unit]
                if ceiling:
                    share = max(1, ceiling // self._config.processes)
                    key = (agent.org, agent.id, unit, tuple(sorted(set(rate.tools))))
                    if key not in lowest or share < lowest[key].ceiling:
                        lowest[key] = Limit(key, share, period, unit)
        return tuple(lowest.values())

    def compile(self, agent: AgentView, profile: Profile, tool: Tool) -> GuardFunction | None:
        limits = self.limits(agent, profile, tool)
        return self._several(limits) if limits else None

    def peek(self, agent: AgentView, profile: Profile, tool: Tool) -> GuardFunction | None:
        """Like `compile`, but the function charges nothing: what the limit would say now."""
        limits = self.limits(agent, profile, tool)

        def look(call: Call) -> Verdict | None:
            now = self._clock()
            for limit in limits:
                window = self._windows.get(limit.key)
                if window is not None and window.used(now, limit.period) >= limit.ceiling:
                    return self._refusal(call, limit, window, now)
            return None

        return look if limits else None

    def examine(self, agent: AgentView, profile: Profile, tool: Tool, call: Call) -> list[Match]:
        """Every ceiling about this tool with its present count, for explanations."""
        return [
            Match(
                stage="rate", rule=limit.rule, effect="deny" if used >= limit.ceiling else "allow", matched=True,
                detail=f"{used} of {limit.ceiling} calls used in the last {limit.unit}",
            )
            for limit in self.limits(agent, profile, tool)
            for used in [self.used(limit)]
        ]  # fmt: skip

    def ceiling_for(self, share: int) -> int:
        """The ceiling a profile must give for this process to let `share` calls pass."""
        return share * self._config.processes

    def used(self, limit: Limit) -> int:
        window = self._windows.get(limit.key)
        return 0 if window is None else window.used(self._clock(), limit.period)

    def _several(self, limits: tuple[Limit, ...]) -> GuardFunction:
        # The windows are looked up by key at each call and never held: a swept one must not live on beside its
        # successor.
        windows, clock, room = self._windows, self._clock, self._new_window
        rows = tuple((limit, limit.key, limit.ceiling, limit.period, limit.grain) for limit in limits)

        def check_rate(call: Call) -> Verdict | None:
            now = clock()
            for limit, key, ceiling, period, _ in rows:
                window = windows.get(key)
                if window is None:
                    if not room(key, now):
                        because = "the gateway has no room for another rate counter"
                        return fault("rate-limits", call.principal.agent_name, call.tool, because)
                elif window.used(now, period) >= ceiling:
                    return self._refusal(call, limit, window, now)
            for _, key, _, _, grain in rows:
                windows[key].charge(now, grain)
            return None

        return check_rate

    def _refusal(self, call: Call, limit: Limit, window: Window, now: float) -> Verdict:
        wait = max(0.0, self._wait(limit, window, now))
        which = f" of {shown(', '.join(limit.key[3]))}" if limit.key[3] else ""
        because = f"its {limit.ceiling} calls{which} per {limit.unit} are used up; try again in {math.ceil(wait)} s."
        return denied("RATE_LIMITED", limit.rule, call.principal.agent_name, call.tool, because, retry_after=wait)

    @staticmethod
    def _wait(limit: Limit, window: Window, now: float) -> float:
        """Seconds until so many calls have left the window that one more fits."""
        excess = window.total - limit.ceiling + 1
        for stamp, count in zip(window.stamps, window.counts, strict=True):
            excess -= count
            if excess <= 0:
                return stamp + limit.period - now
        return limit.period

    def _new_window(self, key: Key, now: float) -> bool:
        """Make a counter; False when there is no room. Empty counters are swept as the table grows."""
        if len(self._windows) >= min(self._sweep_at, self._config.max_counters):
            periods = dict(PERIODS)
            for old, window in list(self._windows.items()):
                if old[:2] != key[:2] and not window.used(now, periods[old[2]]):  # not one just made for this call
                    del self._windows[old]
            self._sweep_at = max(SWEEP_FROM, 2 * len(self._windows))
            if len(self._windows) >= self._config.max_counters:
                return False
        self._windows[key] = Window()
        return True
