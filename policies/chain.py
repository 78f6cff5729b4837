"""THE running order. One call is judged in these steps, and the first objection decides:

    1 agent state       suspended, archived, without a profile: nothing else matters              compiled
    2 grant             is the tool granted, is its risk and are its side effects allowed          compiled
    3 plan              (an empty place: what the organisation has paid for; a later issue)         compiled
    4 place and time    the key's addresses, the profile's addresses, its schedule: cheap          guards
    5 argument rules    and every other guard that counts nothing, in the order of the settings    guards
    6 rate and budget   guards that charge: after all that may deny, so that a denied call is free  guards
    7 gates             external decision points: slow, so only for what would pass otherwise       gates
    8 approval          last: no person is asked about a call that would fail anyway               compiled

"Compiled" steps become one ready verdict per agent and tool. A hold, from step 8 or a guard, counts only when nothing
denies. `decide` is the warm path: two look-ups, a flat tuple of functions, a verdict made ahead; None means `settle`.

Every fault denies: a guard or gate that raises, hangs or answers nonsense with POLICY_ERROR, as does a profile that
cannot be compiled or that relies on a plugin which is not active; a store that cannot be read with POLICY_STALE.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from ..catalog.calls import AgentView, Call, Principal, Tool, Verdict
from ..catalog.errors import Forbidden, PluginError, StoreError, StoreUnavailable
from ..catalog.plugins import GateFunction, GuardFunction
from ..catalog.profiles import Profile
from ..catalog.records import AGENTS, PROFILES, Agent, ProfileRecord
from ..catalog.store import Store
from .catalogue import Catalog
from .guards import ip_guard, schedule_guard
from .patterns import compiled
from .pluginhost import PluginHost
from .running import ask_gates, guard_fault, run_guards, weigh
from .snapshot import MAX_PROFILES, MAX_SNAPSHOTS, AgentSnapshot, Generation, Ready, SnapshotKey, Subject, standing
from .verdicts import Finding, allowed, denied, fault, shown, spoken
from .watchdog import FAULTS

STALE_RULE: Final = "policy-freshness"
RETRY_SECONDS: Final = 5.0
LOAD_SECONDS: Final = 10.0
"""How long one agent's policy may take to load before its call is denied."""

NON_IDEMPOTENT: Final = "non-idempotent"
"""The flag on the verdict of a tool that must not run twice."""

Named = list[tuple[str, GuardFunction]]
ApprovalFinder = Callable[[AgentView, Tool], Awaitable[Finding | None]]


def assemble(
    subject: Subject, tool: Tool, plugins: PluginHost, *, verdict: Verdict | None = None, peek: bool = False
) -> Ready:
    """Compile one tool for one agent, in the running order. `verdict`: steps 1, 2 and 8, when they are known already;
    `peek`: charge nothing (for explanations). Whatever cannot be compiled becomes a deny."""
    verdict = verdict or standing(subject, tool)
    agent, profile = subject.agent, subject.profile
    if verdict.effect == "deny" or agent is None or profile is None:
        return Ready(verdict)
    guards: Named = []
    try:
        guards += place_and_time(subject)
        require_active(profile, tool, plugins)
        for active in plugins.guards:  # argument rules first, those that charge last: `PluginHost.guards` is so ordered
            guard = plugins.compile_guard(active, agent, profile, tool, peek=peek)
            if guard is not None:
                guards.append((active.name, guard))
        gates: list[tuple[str, GateFunction]] = []
        for active in plugins.gates:
            gate = plugins.compile_gate(active, agent, profile, tool)
            if gate is not None:
                gates.append((active.name, gate))
    except (PluginError, ValueError) as error:
        return Ready(fault("profile", agent.name, tool.id, f"its policy cannot be compiled ({shown(str(error))})"))
    return Ready(verdict, tuple(guard for _, guard in guards), tuple(name for name, _ in guards), tuple(gates))


def place_and_time(subject: Subject) -> Named:
    """Step 4. ValueError when an address, network or time zone is none."""
    guards: Named = []
    if subject.key_ips:
        guards.append(("key.allowed_ips", ip_guard(subject.key_ips, "key.allowed_ips")))
    if subject.profile is not None and subject.profile.allowed_ips:
        guards.append(("profile.allowed_ips", ip_guard(subject.profile.allowed_ips, "profile.allowed_ips")))
    if subject.profile is not None and subject.profile.schedule:
        guards.append(("profile.schedule", schedule_guard(subject.profile.schedule)))
    return guards


def require_active(profile: Profile, tool: Tool, plugins: PluginHost) -> None:
    """A profile's rules bind although nobody activated what enforces them: then nothing passes. Raises ValueError."""
    rules = any(tool.id in compiled(rule.tools) for rule in profile.argument_rules)
    rates = any(not rate.tools or tool.id in compiled(rate.tools) for rate in profile.rate_limits)
    for needed, name in ((rules, "argument-rules"), (rates, "rate-limits")):
        if needed and name not in plugins:
            raise ValueError(f"the profile needs the plugin {name}, which is not active")


class Chain:
    """The judge of one process. `decide` and `settle` run on the event loop's thread."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        plugins: PluginHost,
        *,
        gate_timeout: float = 5.0,
        stale_grace: float = 60.0,
        load_timeout: float = LOAD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Times in seconds; `clock` is the one whose values `freshen` is given."""
        self._store = store
        self._catalog = catalog
        self.plugins = plugins
        self._gate_timeout = gate_timeout
        self._stale_grace = stale_grace
        self._load_timeout = load_timeout
        self._fresh_at = clock()
        self._closed = False
        self._epoch = 1
        self._generation = Generation(1)
        #: What approval policies say to a tool that would pass. Asked when a tool is compiled, never on the warm path.
        self.approvals: ApprovalFinder | None = None

    # -- the warm path -------------------------------------------------------------------------------------------------
    def decide(self, call: Call) -> Verdict | None:
        """The verdict on a call whose agent and tool are compiled and without gates; None: `await settle`."""
        snapshot = call.principal.slot
        if snapshot is None or snapshot.epoch != self._epoch:
            return None
        ready = snapshot.ready.get(call.tool)
        if ready is None:
            return None
        guard = None
        try:
            for guard in ready.guards:
                objection = guard(call)
                if objection is not None:
                    return weigh(call, ready, self.plugins, guard, objection)
        except FAULTS as error:
            return guard_fault(call, ready, self.plugins, guard, error)
        verdict: Verdict = ready.verdict
        return verdict

    # -- the cold path -------------------------------------------------------------------------------------------------
    async def settle(self, call: Call) -> Verdict:
        """The verdict on any call: loads and compiles what is missing, asks gates. Raises nothing but
        CancelledError."""
        principal = call.principal
        try:
            snapshot, ready = await self._ready(principal, call.tool)
            verdict = run_guards(call, ready, self.plugins)
            if verdict.effect == "deny" or not ready.gates:
                return verdict
            objection = await ask_gates(call, ready, self.plugins, self._gate_timeout)
            if objection is not None:
                return objection
            if snapshot.epoch != self._epoch:  # policy changed while the gates thought: the agent may be gone by now
                _, ready = await self._ready(principal, call.tool)
                if ready.verdict.effect == "deny":
                    return ready.verdict
            return verdict
        except (StoreError, TimeoutError):
            return self._stale(call)
        except Exception as error:  # noqa: BLE001 - whatever is broken here denies
            self.plugins.note_fault("chain", error)
            return fault("chain", principal.agent_name, call.tool, "its policy could not be applied")

    def _stale(self, call: Call) -> Verdict:
        because = "the gateway cannot read its policy at the moment and lets nothing pass unchecked; try again later."
        return denied(
            "POLICY_STALE", STALE_RULE, call.principal.agent_name, call.tool, because, retry_after=RETRY_SECONDS
        )

    # -- loading -------------------------------------------------------------------------------------------------------
    async def _ready(self, principal: Principal, tool_id: str) -> tuple[AgentSnapshot, Ready]:
        generation = self._generation  # the one that `_snapshot` begins in: nothing is awaited in between
        snapshot = await self._snapshot(principal)
        ready = snapshot.find(tool_id)
        if ready is None:
            async with asyncio.timeout(self._load_timeout):
                tool = await self._catalog.load(principal.org, tool_id)
            standing_verdict = await self._with_approvals(snapshot, tool, generation.verdict(snapshot, tool))
            if tool.once and standing_verdict.effect == "allow":
                standing_verdict = allowed(standing_verdict.rule, (*standing_verdict.flags, NON_IDEMPOTENT))
            ready = assemble(snapshot, tool, self.plugins, verdict=standing_verdict)
            # What was read is at least as new as this call, and is kept only if nothing changed in the meantime. A
            # policy that cannot be compiled is not kept: a plugin may have been resting after it hung.
            if snapshot.epoch == self._epoch and ready.verdict.code != "POLICY_ERROR":
                snapshot.keep(tool_id, ready)
        return snapshot, ready

    async def _with_approvals(self, snapshot: AgentSnapshot, tool: Tool, verdict: Verdict) -> Verdict:
        """A call that would pass is held where an approval policy says so. StoreError."""
        if self.approvals is None or verdict.effect != "allow" or snapshot.agent is None:
            return verdict
        async with asyncio.timeout(self._load_timeout):
            finding = await self.approvals(snapshot.agent, tool)
        return verdict if finding is None else spoken(finding, snapshot.name, tool.id)

    async def recheck(self, call: Call) -> Verdict:
        """The verdict on a call that was decided about before: as `settle`, with everything read anew, and nothing
        charged a second time. Raises StoreError, TimeoutError."""
        subject, tool = await self.subject(call.principal, call.tool)
        ready = assemble(subject, tool, self.plugins, peek=True)
        verdict = run_guards(call, ready, self.plugins)
        if verdict.effect == "deny" or not ready.gates:
            return verdict
        return await ask_gates(call, ready, self.plugins, self._gate_timeout) or verdict

    async def _snapshot(self, principal: Principal) -> AgentSnapshot:
        """The agent's snapshot of this epoch. One loader per agent at a time, whom all its callers await.
        StoreError."""
        if self._closed:
            raise StoreUnavailable
        generation = self._generation
        key: SnapshotKey = (principal.org, principal.agent_id, principal.allowed_ips)
        snapshot = generation.snapshots.get(key)
        if snapshot is None:
            task = generation.loading.get(key)
            if task is None:
                task = generation.loading[key] = asyncio.ensure_future(self._load(generation, key))
                task.add_done_callback(lambda _: generation.loading.pop(key, None))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            snapshot = await asyncio.shield(task)
        if snapshot.epoch == self._epoch:
            principal.slot = snapshot
        return snapshot

    async def _load(self, generation: Generation, key: SnapshotKey) -> AgentSnapshot:
        org, agent_id, key_ips = key
        async with asyncio.timeout(self._load_timeout):
            record: Agent | None = await self._store.get(AGENTS, org, agent_id) if agent_id else None
            profile_id = record.profile_id if record is not None else ""
            profile = await self._profile(generation, org, profile_id) if profile_id else None
        agent = None
        if record is not None:
            agent = AgentView(org=org, id=record.id, name=record.name, status=record.status, metadata=record.metadata)
        snapshot = AgentSnapshot(generation.epoch, agent, profile, profile_id, key_ips)
        if len(generation.snapshots) >= MAX_SNAPSHOTS:
            generation.snapshots.clear()
        generation.snapshots[key] = snapshot
        return snapshot

    async def _profile(self, generation: Generation, org: str, profile_id: str) -> Profile | None:
        known = generation.profiles
        if (org, profile_id) not in known:
            record: ProfileRecord | None = await self._store.get(PROFILES, org, profile_id)
            if len(known) >= MAX_PROFILES:
                known.clear()
            known[org, profile_id] = record.spec if record is not None else None
            return known[org, profile_id]
        return known[org, profile_id]

    # -- what lists show -----------------------------------------------------------------------------------------------
    async def admit(self, principal: Principal) -> None:
        """Make ready what `viewer` needs. Raises Forbidden when the agent may not work at all, StoreError."""
        snapshot = await self._snapshot(principal)
        agent = snapshot.agent
        if agent is None or agent.status != "active" or snapshot.profile is None:
            verdict = standing(snapshot, Tool(id="tools"))
            raise Forbidden(verdict.reason, reason=verdict.code)
        async with asyncio.timeout(self._load_timeout):
            await self._catalog.load_all(principal.org)

    def viewer(self, principal: Principal) -> Callable[[str], bool]:
        """tool id -> whether a list shows it to this agent: what is allowed or held for approval. Never waits;
        hides all
        unless `admit` was awaited. It shows and does not decide, so what was last known will do."""
        key: SnapshotKey = (principal.org, principal.agent_id, principal.allowed_ips)
        snapshot: AgentSnapshot | None = self._generation.snapshots.get(key) or principal.slot
        catalog, org = self._catalog, principal.org

        def visible(tool_id: str) -> bool:
            return snapshot is not None and standing(snapshot, catalog.lookup(org, tool_id)).effect != "deny"

        return visible

    async def subject(self, principal: Principal, tool_id: str) -> tuple[Subject, Tool]:
        """Whom and what a call by this key would be about, as they stand now (for `explain`). Raises StoreError."""
        snapshot = await self._snapshot(principal)
        return snapshot, await self._catalog.load(principal.org, tool_id)

    # -- freshness -----------------------------------------------------------------------------------------------------
    @property
    def epoch(self) -> int:
        """The local count of changes; not the stored epoch."""
        return self._epoch

    @property
    def closed(self) -> bool:
        """Whether everything is denied because the policy is too old."""
        return self._closed

    def invalidate(self) -> None:
        """Policy changed: drop every snapshot. What guards count (rates) is theirs and stays."""
        self._epoch += 1
        self._generation = Generation(self._epoch)
        self._catalog.invalidate()

    def freshen(self, ok: bool, now: float) -> None:
        """Told by whoever watches the stored epoch, at each look: whether it could be read. After `stale_grace`
        without,
        everything is denied (POLICY_STALE) until it can be read again. `now` is the clock's."""
        if ok:
            self._fresh_at = now
            if self._closed:
                self._closed = False
                self.invalidate()
        elif not self._closed and now - self._fresh_at >= self._stale_grace:
            self._closed = True
            self.invalidate()
