"""A hook that falls silent while its agent works raises the alarm and pauses the agent; one that is there does not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from agenticmail_enterprise.catalog.errors import StoreUnavailable
from agenticmail_enterprise.catalog.profiles import Profile, ToolRule
from agenticmail_enterprise.catalog.records import AUDIT, HOOKS, AuditEntry, HookPresence
from agenticmail_enterprise.catalog.store import Query
from agenticmail_enterprise.gateway.accounts import AgentSpec
from agenticmail_enterprise.gateway.hookwatch import HookWatch
from agenticmail_enterprise.gateway.settings import HookSettings
from tests.flows.house import House, Outage
from tests.flows.servers import Counting

CLERK = Profile(name="clerk", tools=ToolRule(allow=("mail__*", "exec")), max_risk="critical")
HOOKS_AT = "/api/engine/hooks"
BEAT = {"instance": "one", "runtime": "openclaw/2026.9.6", "plugin": "1.0.0"}


class Watched:
    """An agent with a server to work at, and a watch whose clock the story turns: it begins `ago` seconds in the past,
    so that what the agent does now comes late."""

    def __init__(self, house: House, key: str, agent: str, settings: HookSettings) -> None:
        self.house, self.key, self.agent = house, key, agent
        self.now = time.time() - 3600
        self.watch = HookWatch(house.runtime.store, house.runtime.accounts, settings, lambda: self.now)
        house.runtime.hooks = house.runtime.heartbeats._watch = self.watch

    async def beat(self, **more: Any) -> Any:
        answer = await self.house.send("POST", f"{HOOKS_AT}/heartbeat", key=self.key, body={**BEAT, **more})
        assert answer.status == 200, answer.body
        return answer.json["data"]

    async def work(self) -> bool:
        """One call through the MCP door, drained to the store; whether it passed."""
        answer = await self.house.call(self.key, "/mcp/mail", "read_mail")
        await self.house.runtime.journal.drained()
        return not answer.json["result"]["isError"]

    async def look(self, seconds: float = 0.0) -> None:
        """Look once more, as if without pause, `seconds` later."""
        self.now += seconds
        self.watch._next = self.now
        await self.watch.look(self.now)

    async def status(self) -> str:
        return str((await self.house.runtime.accounts.agent(self.house.org, self.agent)).status)

    async def presence(self) -> HookPresence | None:
        found: HookPresence | None = await self.house.runtime.store.get(HOOKS, self.house.org, self.agent)
        return found

    async def audit(self) -> list[AuditEntry]:
        page = await self.house.runtime.store.find(Query(AUDIT, "by_org", {"org": self.house.org}, limit=100))
        return [entry for entry in page.records if entry.actor == "gateway"]


async def watched(house: House, upstream: Counting, **settings: Any) -> Watched:
    await house.upstream("mail", upstream.url)
    key = await house.agent("clerk", CLERK)
    agent = (await house.runtime.identity.of_key(key)).agent_id
    return Watched(house, key, agent, HookSettings(**settings))


async def test_silence_while_the_agent_works_pauses_it(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Counting() as upstream:
        one = await watched(house, upstream)
        assert (await one.beat()) == {"agent_id": one.agent, "state": "alive", "heartbeat": 15.0}
        assert await one.work()
        await one.look(59)
        assert await one.status() == "active"
        await one.look(2)
        assert await one.status() == "suspended"
        assert not await one.work()  # at once
        presence = await one.presence()
        assert presence is not None
        assert (presence.state, presence.alarm) == ("silent", "silent")
        assert [(entry.action, entry.resource) for entry in await one.audit()] == [
            ("hook.silent", one.agent),
            ("agent.suspend", one.agent),
        ]
        metrics = (await house.send("GET", "/metrics")).body.decode()
        assert metrics.count("agenticmail_hook_alarms_total{") == 3
        assert one.watch.alarms == {"silent": 1}
        await one.look(100)  # what is over is no news
        assert one.watch.alarms == {"silent": 1}


async def test_a_hook_that_is_there_and_an_agent_that_rests_are_no_news(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Counting() as upstream:
        one = await watched(house, upstream)
        await one.beat()
        await one.look(3000)
        assert (await one.status(), one.watch.alarms) == ("active", {})
        one.now = time.time()
        await one.beat()
        assert await one.work()
        await one.look(1)
        assert (await one.status(), one.watch.alarms) == ("active", {})


async def test_what_the_hook_itself_asks_is_no_sign_of_bypass(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Counting() as upstream:
        one = await watched(house, upstream)
        await one.beat()
        await house.send("POST", "/api/engine/check-permission", key=one.key, body={"tool": "nothing"})
        await house.runtime.journal.drained()
        await one.look(100)
        assert (await one.status(), one.watch.alarms) == ("active", {})


async def test_where_settings_say_so_the_alarm_pauses_nobody(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Counting() as upstream:
        one = await watched(house, upstream, on_silence="alarm")
        await one.beat()
        await one.work()
        await one.look(61)
        assert (await one.status(), one.watch.alarms) == ("active", {"silent": 1})
        assert [entry.action for entry in await one.audit()] == ["hook.silent"]
        await one.look(61)
        assert one.watch.alarms == {"silent": 1}  # told once, until the agent works on


async def test_a_hook_that_never_came_is_missed_once_it_is_expected(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Counting() as upstream:
        one = await watched(house, upstream)
        await one.work()
        await one.look(61)
        assert await one.status() == "active"  # nobody expects a hook of this agent
        admin = await house.program("agents:write", "agents:read")
        expected = await house.send("PUT", f"{HOOKS_AT}/{one.agent}", key=admin)
        assert (expected.status, expected.json["data"]["state"], expected.json["data"]["seen_at"]) == (
            200,
            "expected",
            None,
        )
        await one.look(61)
        assert await one.status() == "suspended"
        assert (await house.send("DELETE", f"{HOOKS_AT}/{one.agent}", key=admin)).status == 204
        assert (await house.send("DELETE", f"{HOOKS_AT}/{one.agent}", key=admin)).status == 404
        assert (await house.send("PUT", f"{HOOKS_AT}/agt_nobody", key=admin)).status == 404
        assert (await house.send("GET", HOOKS_AT, key=admin)).json["data"] == []


async def test_a_hook_that_stopped_properly_is_missed_as_well(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Counting() as upstream:
        one = await watched(house, upstream)
        await one.beat(state="stopped")
        await one.look(100)
        assert await one.status() == "active"
        await one.work()
        await one.look(1)
        assert await one.status() == "suspended"


async def test_calls_that_nobody_checked_pause_and_changed_arguments_are_told(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Counting() as upstream:
        one = await watched(house, upstream)
        await one.beat(calls=3, changed=1)
        assert (await one.status(), one.watch.alarms) == ("active", {"changed": 1})
        await one.beat(calls=4, changed=1)
        assert one.watch.alarms == {"changed": 1}
        await one.beat(calls=5, changed=1, unchecked=2)
        assert (await one.status(), one.watch.alarms) == ("suspended", {"changed": 1, "unchecked": 1})
        await one.beat(instance="two", unchecked=2)  # a new start counts from 0
        assert one.watch.alarms["unchecked"] == 2
        actions = [entry.action for entry in await one.audit()]
        assert actions == ["hook.changed", "hook.unchecked", "agent.suspend", "hook.unchecked"]


async def test_a_gateway_that_could_not_hear_blames_no_hook(tmp_path: Path) -> None:
    """After a start, an outage of the store or a stopped clock, a hook has its time anew."""
    async with House(tmp_path) as house, Counting() as upstream:
        one = await watched(house, upstream)
        await one.beat()
        await one.work()
        one.now = time.time() + 5
        with Outage(house.runtime.store), pytest.raises(StoreUnavailable):
            await one.look()
        await one.look()
        assert (await one.status(), one.watch.alarms) == ("active", {})
        later = HookWatch(house.runtime.store, house.runtime.accounts, HookSettings(), lambda: one.now)
        await later.look(one.now)
        assert later.alarms == {}


async def test_agents_that_rest_are_looked_at_rarely_and_seen_when_they_work(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Counting() as upstream:
        one = await watched(house, upstream)
        await one.beat()
        looked: list[str] = []
        find = one.watch._worked

        async def counting(record: HookPresence) -> int:
            looked.append(record.id)
            return await find(record)

        one.watch._worked = counting  # type: ignore[method-assign]
        await one.look(61)
        for _ in range(100):
            await one.look(5)
        assert 8 <= len(looked) <= 16
        await one.work()
        await one.look(60)
        assert await one.status() == "suspended"


async def test_an_agent_that_was_set_active_again_is_watched_again(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Counting() as upstream:
        one = await watched(house, upstream)
        await one.beat()
        await one.work()
        await one.look(61)
        assert await one.status() == "suspended"
        await house.runtime.accounts.replace_agent(house.org, one.agent, AgentSpec(name="clerk"))
        await one.look(5)
        assert await one.status() == "active"  # nothing new happened
        await house.runtime.epochs.look()
        assert await one.work()
        await one.look(60)
        assert await one.status() == "suspended"


async def test_two_workers_raise_one_alarm(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Counting() as upstream:
        one = await watched(house, upstream)
        await one.beat()
        await one.work()
        record = await one.presence()
        assert record is not None
        one.now += 61
        await one.watch._overdue(record, one.now)
        await one.watch._overdue(record, one.now)  # as another worker that read the record before
        assert one.watch.alarms == {"silent": 1}


@pytest.mark.parametrize("body", [
    {}, {"instance": ""}, {"instance": "a b"}, {"instance": "x", "calls": -1}, {"instance": "x", "state": "silent"}, {"instance": "x", "more": 1},
    {"instance": "x", "runtime": "a\nb"},
])  # fmt: skip
async def test_a_bad_sign_of_life_is_none(tmp_path: Path, body: dict[str, Any]) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", CLERK)
        answer = await house.send("POST", f"{HOOKS_AT}/heartbeat", key=key, body=body)
        assert (answer.status, answer.json["code"]) == (422, "VALIDATION_ERROR")


async def test_only_an_agents_key_gives_signs_of_life(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        program = await house.program("agents:read", "agents:write")
        assert (await house.send("POST", f"{HOOKS_AT}/heartbeat", key=program, body=BEAT)).status == 403
        assert (await house.send("POST", f"{HOOKS_AT}/heartbeat", body=BEAT)).status == 401
        key = await house.agent("clerk", CLERK)
        for method, path in (("GET", HOOKS_AT), ("PUT", f"{HOOKS_AT}/agt_x"), ("DELETE", f"{HOOKS_AT}/agt_x")):
            assert (await house.send(method, path, key=key)).status == 403
