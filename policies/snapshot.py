"""One agent, compiled: what the warm path looks up instead of computing.

A snapshot begins with the agent and its profile; a tool is compiled into a `Ready` on its first call. Everything
that was read or compiled since the last change hangs on one `Generation`, and goes with it. Profiles and findings
are shared by all agents of a profile and allow verdicts by everybody, so that an agent costs about a kilobyte.
"""

from __future__ import annotations

import asyncio
from typing import Final

from ..catalog.calls import AgentView, Tool, Verdict
from ..catalog.plugins import GateFunction, GuardFunction
from ..catalog.profiles import Profile
from .permissions import find, grant
from .verdicts import Finding, denied, spoken

MAX_READY: Final = 256
"""Tools compiled per agent; past it the table starts afresh. Agents choose the names they ask for."""

MAX_FINDINGS: Final = 65_536
MAX_SNAPSHOTS: Final = 50_000
MAX_PROFILES: Final = 10_000


class Ready:
    """One tool for one agent. `verdict` holds when no guard and no gate objects; `names` says whose each guard is."""

    __slots__ = ("gates", "guards", "names", "verdict")

    def __init__(
        self,
        verdict: Verdict,
        guards: tuple[GuardFunction, ...] = (),
        names: tuple[str, ...] = (),
        gates: tuple[tuple[str, GateFunction], ...] = (),
    ) -> None:
        self.verdict = verdict
        self.guards = guards
        self.names = names
        self.gates = gates


class Subject:
    """Whose calls are judged: an agent (None: there is none), its profile, and the addresses its key may come from."""

    __slots__ = ("agent", "key_ips", "profile")

    def __init__(self, agent: AgentView | None, profile: Profile | None, key_ips: tuple[str, ...] = ()) -> None:
        self.agent = agent
        self.profile = profile
        self.key_ips = key_ips

    @property
    def name(self) -> str:
        return self.agent.name if self.agent is not None else ""


class AgentSnapshot(Subject):
    """A Subject with its compiled tools. `ready` is what `decide` reads: tools without gates. `gated` are the
    others."""

    __slots__ = ("epoch", "gated", "profile_id", "ready")

    def __init__(
        self,
        epoch: int,
        agent: AgentView | None,
        profile: Profile | None,
        profile_id: str,
        key_ips: tuple[str, ...] = (),
    ) -> None:
        super().__init__(agent, profile, key_ips)
        self.epoch = epoch
        self.profile_id = profile_id
        self.ready: dict[str, Ready] = {}
        self.gated: dict[str, Ready] = {}

    def find(self, tool_id: str) -> Ready | None:
        return self.ready.get(tool_id) or self.gated.get(tool_id)

    def keep(self, tool_id: str, ready: Ready) -> None:
        table = self.gated if ready.gates else self.ready
        if len(table) >= MAX_READY:
            table.clear()
        table[tool_id] = ready


SnapshotKey = tuple[str, str, tuple[str, ...]]
"""(org, agent, the key's addresses)."""


class Generation:
    """All that was read and compiled between two changes. A load that began in an old one files its result there, where
    nobody looks: a change can never be overwritten by what was read before it."""

    __slots__ = ("epoch", "findings", "loading", "profiles", "snapshots")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.profiles: dict[tuple[str, str], Profile | None] = {}
        self.findings: dict[tuple[str, str, str], Finding | None] = {}
        self.snapshots: dict[SnapshotKey, AgentSnapshot] = {}
        self.loading: dict[SnapshotKey, asyncio.Task[AgentSnapshot]] = {}

    def verdict(self, snapshot: AgentSnapshot, tool: Tool) -> Verdict:
        """The standing verdict, with the profile's findings shared by all of its agents."""
        if snapshot.agent is None or snapshot.profile is None or snapshot.agent.status != "active":
            return standing(snapshot, tool)
        key = (snapshot.agent.org, snapshot.profile_id, tool.id)
        if key in self.findings:
            finding = self.findings[key]
        else:
            if len(self.findings) >= MAX_FINDINGS:
                self.findings.clear()
            finding = self.findings[key] = find(snapshot.profile, tool)
        return grant(snapshot.profile, tool) if finding is None else spoken(finding, snapshot.name, tool.id)


def standing(subject: Subject, tool: Tool) -> Verdict:
    """What agent and profile say to a tool before any look at a call: the first two steps of the running order."""
    agent, profile = subject.agent, subject.profile
    if agent is None:
        because = "this key belongs to no agent that exists; use a key of an agent."
        return denied("AGENT_ARCHIVED", "agent:missing", "", tool.id, because)
    if agent.status == "suspended":
        because = "the agent is suspended; stop, and ask an administrator."
        return denied("AGENT_SUSPENDED", "agent:suspended", agent.name, tool.id, because)
    if agent.status != "active":
        return denied("AGENT_ARCHIVED", "agent:archived", agent.name, tool.id, "the agent is archived; stop.")
    if profile is None:
        because = "the agent has no permission profile, and without one nothing is allowed; ask an administrator."
        return denied("NO_PROFILE", "default-deny:no-profile", agent.name, tool.id, because)
    finding = find(profile, tool)
    return grant(profile, tool) if finding is None else spoken(finding, agent.name, tool.id)
