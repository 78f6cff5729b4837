"""Is the hook there that should see an agent's own tool calls? One that falls silent while its agent works is an alarm.

A runtime such as OpenClaw goes on without a plugin that was removed, broken or never loaded. So the hook says that it
is there (`beat`), and its silence is held against what the journal knows: calls of its agent that came through a door
of the gateway although no hook has been heard of for `hooks.silence`. Then the alarm: a warning in the log, a metric,
an audit entry, and by `hooks.on_silence` the agent is suspended until a person looks. The same for a hook that saw
calls end which nobody had checked. Calls that ran with other arguments than those that were checked are an alarm only.

Nothing here is on a call's way: presence is a record, and the journal is read in the store, now and then, for agents
whose hook is overdue.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Final, Literal, get_args

import msgspec
import structlog

from ..catalog.calls import Principal
from ..catalog.errors import Conflict, EnterpriseError, NotFound, Stale, StoreError
from ..catalog.ids import new_id
from ..catalog.records import AUDIT, CALLS, HOOKS, AuditEntry, CallRecord, HookPresence, HookState
from ..catalog.store import MAX_PAGE, Insert, Query, Replace, Store
from .accounts import Accounts, AgentChange
from .changes import ATTEMPTS
from .metrics import Family, Gauge
from .settings import HookSettings

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 5.0
"""How often overdue hooks are looked for, at most; never rarer than a fourth of `hooks.silence`."""

MAX_REST: Final = 60.0
"""How long at most until an overdue hook of an agent that does nothing is looked into again, in seconds."""

RECENT: Final = 50
"""Records of an agent that one look reads."""

STATES: Final[tuple[HookState, ...]] = get_args(HookState)
ACTOR: Final = "gateway"
OWN_DOOR: Final = "checks"
"""Calls that the hook itself asked about, and no sign that anything passed it by."""

Alarm = Literal["silent", "unchecked", "changed"]
SAYING: Final[dict[Alarm, str]] = {
    "silent": "its hook has fallen silent while the agent goes on working",
    "unchecked": "its hook saw tool calls end that nobody had checked",
    "changed": "tool calls ran with other arguments than those that were checked",
}

PAUSING: Final[frozenset[Alarm]] = frozenset({"silent", "unchecked"})
"""Arguments may also be changed by a runtime's own tidying: that is told, and pauses nobody."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Short = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[\w .:+/-]*$(?!\n)")]


class Beat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A hook's sign of life. `instance` is new with every start of the hook, and its counts begin at 0 then."""

    instance: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$(?!\n)")]
    runtime: Short = ""
    plugin: Short = ""
    state: Literal["alive", "stopped"] = "alive"
    calls: Count = 0
    unchecked: Count = 0
    changed: Count = 0


class HookWatch:
    """One per worker. Workers may look at the same time: what one of them decided, the others find decided."""

    def __init__(
        self, store: Store, accounts: Accounts, settings: HookSettings, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._settings = settings
        self._clock = clock
        self._next = 0.0
        self._since = clock()
        self._resting: dict[tuple[str, str], tuple[int, float, float]] = {}
        self.alarms: Counter[str] = Counter()
        self.states: Counter[str] = Counter()

    # -- what a hook says ------------------------------------------------------------------------------------------
    async def beat(self, principal: Principal, beat: Beat) -> HookPresence:
        """Take a sign of life. Raises StoreError."""
        for _ in range(ATTEMPTS):
            before: HookPresence | None = await self._store.get(HOOKS, principal.org, principal.agent_id)
            risen = _risen(before, beat)
            after = self._next_of(principal, before, beat)
            # Paused before it is written down: what comes in between is looked at again, and never passed over.
            paused = any(kind in PAUSING for kind, _ in risen) and await self._pause(after)
            try:
                write = Insert(HOOKS, after) if before is None else Replace(HOOKS, after)
                stored: HookPresence = (await self._store.commit(write))[0]
            except (Conflict, Stale):
                continue
            for kind, count in risen:
                await self._report(stored, kind, count, paused)
            return stored
        raise Stale

    def _next_of(self, principal: Principal, before: HookPresence | None, beat: Beat) -> HookPresence:
        now = int(self._clock() * 1000)
        record = HookPresence(org=principal.org, id=principal.agent_id, created_at=now)
        if before is not None:
            record = msgspec.structs.replace(before)
        record.state, record.runtime, record.plugin = beat.state, beat.runtime, beat.plugin
        record.instance, record.seen_at, record.updated_at = beat.instance, now, now
        record.calls, record.unchecked, record.changed = beat.calls, beat.unchecked, beat.changed
        return record

    async def expect(self, org: str, agent_id: str) -> HookPresence:
        """From now on this agent's calls count as overdue without a hook. Raises NotFound, StoreError."""
        await self._accounts.agent(org, agent_id)
        known: HookPresence | None = await self._store.get(HOOKS, org, agent_id)
        if known is not None:
            return known
        now = int(self._clock() * 1000)
        record = HookPresence(org=org, id=agent_id, created_at=now, updated_at=now, seen_at=now)
        try:
            stored: HookPresence = (await self._store.commit(Insert(HOOKS, record)))[0]
        except Conflict:
            stored = await self._store.get(HOOKS, org, agent_id) or record
        return stored

    # -- what the journal says -------------------------------------------------------------------------------------
    async def look(self, now: float) -> None:
        """Find hooks that are overdue while their agents work. Raises StoreError. `now` is UNIX time in seconds."""
        if now < self._next:
            return
        if now - self._next > self._settings.silence:
            self._since = now  # nobody looked for long (a start, a stopped machine): hooks could not be heard either
        self._next = now + min(LOOK_SECONDS, self._settings.silence / 4)
        try:
            await self._look(now)
        except StoreError:
            self._since = now
            raise

    async def _look(self, now: float) -> None:
        states: Counter[str] = Counter()
        resting: dict[tuple[str, str], tuple[int, float, float]] = {}
        for state in STATES:
            query = Query(HOOKS, "by_state", {"state": state}, limit=MAX_PAGE)
            while True:
                page = await self._store.find(query)
                for record in page.records:
                    states[state] += 1
                    if now - record.seen_at / 1000 > self._settings.silence:
                        resting[record.org, record.id] = await self._overdue(record, now)
                if not page.cursor:
                    break
                query = msgspec.structs.replace(query, cursor=page.cursor)
        self.states, self._resting = states, resting

    async def _overdue(self, record: HookPresence, now: float) -> tuple[int, float, float]:
        """Look into one overdue hook. (last sign of life, when to look again, pause): agents that rest with their hooks
        are looked at ever more rarely."""
        seen_at, until, pause = self._resting.get((record.org, record.id), (0, 0.0, 0.0))
        if seen_at == record.seen_at and now < until:
            return seen_at, until, pause
        late = await self._worked(record)
        if late:
            await self._silent(record, late)
            return record.seen_at, now, 0.0
        pause = min(MAX_REST, pause * 2 or LOOK_SECONDS) if seen_at == record.seen_at else 0.0
        return record.seen_at, now + pause, pause

    async def _silent(self, record: HookPresence, late: int) -> None:
        paused = await self._pause(record)
        claimed = msgspec.structs.replace(record)
        claimed.state, claimed.alarm = "silent", "silent"
        claimed.updated_at = int(self._clock() * 1000)
        claimed.alarm_at = max(claimed.updated_at, late)  # workers' clocks differ: what was told is told
        try:
            stored: HookPresence = (await self._store.commit(Replace(HOOKS, claimed)))[0]
        except Stale:
            return  # another worker was first and told everybody, or the hook is back
        await self._report(stored, "silent", 1, paused)

    async def _worked(self, record: HookPresence) -> int:
        """When (ms) the agent's newest call passed a door after its hook should have been heard of again; 0: none."""
        silence = int(self._settings.silence * 1000)
        after = max(record.seen_at + silence, int(self._since * 1000) + silence, record.alarm_at) * 1000
        query = Query(CALLS, "by_agent", {"org": record.org, "agent": record.id}, limit=RECENT, descending=True)
        newest: list[CallRecord] = (await self._store.find(query)).records
        passed = (call for call in newest if call.door != OWN_DOOR and call.code != "AGENT_SUSPENDED")
        late = max((call.at for call in passed), default=0)
        return late // 1000 + 1 if late > after else 0

    # -- the alarm -------------------------------------------------------------------------------------------------
    async def _report(self, record: HookPresence, kind: Alarm, count: int, paused: bool) -> None:
        self.alarms[kind] += 1
        log.warning(
            "hook_alarm", alarm=kind, agent=record.id, org=record.org, runtime=record.runtime, count=count,
            paused=paused, because=SAYING[kind],
        )  # fmt: skip
        now = int(self._clock() * 1000)
        details = {"because": SAYING[kind], "count": str(count), "seen_at": str(record.seen_at)}
        entries = [self._entry(record, f"hook.{kind}", now, details)]
        if paused:
            entries.append(self._entry(record, "agent.suspend", now, {"because": SAYING[kind]}))
        await self._store.append(AUDIT, entries)

    @staticmethod
    def _entry(record: HookPresence, action: str, now: int, details: dict[str, str]) -> AuditEntry:
        return AuditEntry(
            org=record.org, id=new_id("audit"), created_at=now, updated_at=now, at=now, actor=ACTOR, action=action,
            resource=record.id, details=details,
        )  # fmt: skip

    async def _pause(self, record: HookPresence) -> bool:
        """Suspend the agent where settings say so; whether it was at work."""
        if self._settings.on_silence != "pause":
            return False
        for _ in range(ATTEMPTS):
            try:
                agent = await self._accounts.agent(record.org, record.id)
                if agent.status != "active":
                    return False
                change = AgentChange(
                    name=agent.name, description=agent.description, status="suspended", metadata=agent.metadata
                )
                await self._accounts.replace_agent(record.org, record.id, change, agent.version)
                return True
            except Stale:
                continue
            except NotFound:
                return False
            except EnterpriseError as error:
                log.warning("hook_pause_failed", agent=record.id, org=record.org, reason=error.message)
                return False
        return False

    def gauges(self) -> list[Gauge]:
        return [
            Gauge(
                Family(
                    "agenticmail_hooks", "Hooks in agents' runtimes by state, as last seen.", ("state",), merge="max"
                ),
                lambda: [((state,), self.states[state]) for state in STATES],
            ),
            Gauge(
                Family("agenticmail_hook_alarms", "Alarms about hooks.", ("alarm",)),
                lambda: [((kind,), self.alarms[kind]) for kind in SAYING],
                counts=True,
            ),
        ]


def _risen(before: HookPresence | None, beat: Beat) -> list[tuple[Alarm, int]]:
    """Counts that rose since the last beat of the same instance, each an alarm."""
    known = before if before is not None and before.instance == beat.instance else None
    unchecked = beat.unchecked - (known.unchecked if known else 0)
    changed = beat.changed - (known.changed if known else 0)
    found: list[tuple[Alarm, int]] = [("unchecked", unchecked), ("changed", changed)]
    return [(kind, count) for kind, count in found if count > 0]
