"""ACME's house rules: a guard, a gate and an observer for AgenticMail Enterprise."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import msgspec

from agenticmail_enterprise.catalog.calls import AgentView, Call, Tool, Verdict
from agenticmail_enterprise.catalog.plugins import GateFunction, GuardFunction, NoConfig
from agenticmail_enterprise.catalog.profiles import Profile
from agenticmail_enterprise.catalog.records import CallRecord


class MarkersConfig(msgspec.Struct, forbid_unknown_fields=True):
    markers: tuple[str, ...] = ("BEGIN PRIVATE KEY",)


class NoMarkers:
    """A guard: no tool that sends something out may be given a text with one of the markers in it."""

    kind = "guard"
    config = MarkersConfig

    def __init__(self, config: MarkersConfig) -> None:
        self.markers = [marker.encode() for marker in config.markers]

    async def provision(self) -> None: ...

    async def close(self) -> None: ...

    def compile(self, agent: AgentView, profile: Profile, tool: Tool) -> GuardFunction | None:
        if not tool.side_effects:
            return None  # nothing to say about this tool: its calls cost nothing
        markers = self.markers

        def check(call: Call) -> Verdict | None:
            for marker in markers:
                if marker in bytes(call.raw):
                    reason = f"{agent.name} may not call {call.tool}: its arguments hold a secret; leave it out."
                    return Verdict("deny", "acme-no-markers", "PLUGIN_DENIED", reason)
            return None

        return check


class FreezeConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    calendar: str
    """Path of a JSON file: {"frozen": true}."""


class ChangeFreeze:
    """A gate: while the calendar says so, nothing that modifies or deletes may pass. Asked for every call, so it may wait
    for a file or a server; what does not answer within `gate_timeout` denies."""

    kind = "gate"
    config = FreezeConfig

    def __init__(self, config: FreezeConfig) -> None:
        self.calendar = Path(config.calendar)

    async def provision(self) -> None:
        await asyncio.to_thread(self.calendar.read_text)  # no calendar: the gateway does not start

    async def close(self) -> None: ...

    def compile(self, agent: AgentView, profile: Profile, tool: Tool) -> GateFunction | None:
        if not {"modifies-files", "deletes-data"} & set(tool.side_effects):
            return None

        async def ask(call: Call) -> Verdict | None:
            calendar = json.loads(await asyncio.to_thread(self.calendar.read_text))
            if not calendar["frozen"]:
                return None
            reason = f"{agent.name} may not call {call.tool}: changes are frozen; try again after the freeze."
            return Verdict("deny", "acme-freeze", "PLUGIN_DENIED", reason, retry_after=3600.0)

        return ask


class Tally:
    """An observer: counts calls by verdict. Told after the answer has left, so it can delay nobody."""

    kind = "observer"
    config = NoConfig

    def __init__(self, config: NoConfig) -> None:
        self.seen: Counter[str] = Counter()

    async def provision(self) -> None: ...

    async def close(self) -> None: ...

    def observe(self, call: CallRecord) -> None:
        self.seen[call.effect] += 1
