"""An observer named in the settings is told of every call, after it is on record, and cannot change one."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agenticmail_enterprise.catalog.plugins import ENTRY_POINT_GROUP, NoConfig
from agenticmail_enterprise.catalog.records import CallRecord
from agenticmail_enterprise.gateway.settings import PluginSettings
from agenticmail_enterprise.policies import pluginhost
from tests.flows.house import House

HEARD: list[CallRecord] = []


class Listener:
    kind: ClassVar[str] = "observer"
    config = NoConfig

    def __init__(self, config: Any) -> None:
        del config

    async def provision(self) -> None: ...

    async def close(self) -> None: ...

    def observe(self, call: CallRecord) -> None:
        HEARD.append(call)
        if len(HEARD) == 1:
            raise RuntimeError("an observer's fault is its own")


async def test_observers_hear_every_call_and_their_faults_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pluginhost.entry_points
    point = EntryPoint("listener", f"{__name__}:Listener", ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Listener if self is point else real_load(self))
    monkeypatch.setattr(pluginhost, "entry_points", lambda **options: [*real(**options), point])
    HEARD.clear()
    async with House(tmp_path, plugins=PluginSettings(observers=("listener",))) as house:
        key = await house.agent("clerk")
        for _ in range(3):
            await house.send("POST", "/api/engine/check-permission", key=key, body={"tool": "exec"})
        records = await house.records(3)
        assert [call.id for call in HEARD] == [record.id for record in records]
        assert house.runtime.plugins.faults["listener"] == 1


real_load = EntryPoint.load
