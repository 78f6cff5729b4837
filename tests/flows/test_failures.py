"""What happens when something breaks: one story a row of docs/failures.md, told by what the agent gets and the record."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agenticmail_enterprise.catalog.calls import AgentView, Call, Tool, Verdict
from agenticmail_enterprise.catalog.plugins import ENTRY_POINT_GROUP, NoConfig
from agenticmail_enterprise.catalog.profiles import Profile, ToolRule
from agenticmail_enterprise.gateway import groupsync
from agenticmail_enterprise.gateway.settings import JournalSettings, PluginSettings, PolicySettings, ServerSettings
from agenticmail_enterprise.policies import pluginhost
from tests.flows.crash_kit import Mortal
from tests.flows.house import Answer, House, Outage
from tests.flows.servers import Counting, Misbehaving, read_request

ALL = Profile(name="all", tools=ToolRule(allow=("mail__*",)), max_risk="critical", allow_unknown=True)
DECISION = "enterprise.agenticmail/decision"


def code_of(answer: Answer) -> str:
    """The code of a call that was not made, or whose end is unknown: a result the model can read."""
    assert answer.status == 200
    result = answer.json["result"]
    assert result["isError"] is True
    decision = result["_meta"][DECISION]
    assert decision["decision_id"] in result["content"][0]["text"]
    return str(decision["code"])


def went_well(answer: Answer) -> bool:
    return answer.status == 200 and answer.json["result"]["isError"] is False


# -- the store ---------------------------------------------------------------------------------------------------
async def test_store_unreachable(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path) as house:
        await house.upstream("mail", server.url)
        warm, cold = await house.agent("warm", ALL), await house.agent("cold", ALL)
        assert went_well(await house.call(warm, "/mcp/mail", "read_mail"))
        await house.records(1)
        with Outage(house.runtime.store) as outage:
            assert went_well(await house.call(warm, "/mcp/mail", "read_mail"))
            unknown_key = await house.call(cold, "/mcp/mail", "read_mail")
            assert (unknown_key.status, unknown_key.json["code"]) == (503, "STORE_UNAVAILABLE")
            assert "Retry-After" in unknown_key.headers
            unknown_tool = await house.call(warm, "/mcp/mail", "never_seen_before")
            assert code_of(unknown_tool) == "POLICY_STALE"
            ready = await house.send("GET", "/ready")
            assert (ready.status, list(ready.json["problems"])) == (503, ["store"])
            while house.runtime.journal.counts.store_errors == 0:
                await asyncio.sleep(0.02)
            assert house.runtime.journal.lag().records >= 2
        assert outage.refused > 0
        assert len(server.calls) == 2
        records = await house.records(3)
        assert [(r.effect, r.outcome, r.code) for r in records] == [
            ("allow", "ok", "ALLOWED"), ("allow", "ok", "ALLOWED"), ("deny", "denied", "POLICY_STALE"),
        ]  # fmt: skip
        (nobody,) = await house.nobodys(1)
        assert nobody.code == "POLICY_STALE"
        assert went_well(await house.call(cold, "/mcp/mail", "read_mail"))


async def test_policy_unreadable_for_longer_than_stale_grace(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path, policy=PolicySettings(refresh=0.02, stale_grace=1.0)) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", ALL)
        assert went_well(await house.call(key, "/mcp/mail", "read_mail"))
        with Outage(house.runtime.store):
            while not house.runtime.chain.closed:
                await asyncio.sleep(0.02)
            refused = await house.call(key, "/mcp/mail", "read_mail")
            assert code_of(refused) == "POLICY_STALE"
            assert refused.json["result"]["_meta"][DECISION]["retry_after"] > 0
            assert len(server.calls) == 1
        while house.runtime.chain.closed:
            await asyncio.sleep(0.02)
        assert went_well(await house.call(key, "/mcp/mail", "read_mail"))
        records = await house.records(3)
        assert [record.code for record in records] == ["ALLOWED", "POLICY_STALE", "ALLOWED"]
        assert records[1].outcome == "denied"


# -- the upstream ------------------------------------------------------------------------------------------------
async def test_upstream_hanging(tmp_path: Path) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    async with Misbehaving(hang) as server, House(tmp_path) as house:
        await house.upstream("mail", server.url, timeout_ms=300)
        key = await house.agent("clerk", ALL)
        assert code_of(await house.call(key, "/mcp/mail", "read_mail")) == "UPSTREAM_TIMEOUT"
        (record,) = await house.records(1)
        assert (record.effect, record.outcome, record.error) == ("allow", "timeout", "UPSTREAM_TIMEOUT")
        assert record.upstream_us >= 250_000
        assert server.connections == 1  # not tried again


async def test_upstream_closing_before_it_answers(tmp_path: Path) -> None:
    async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    async with Misbehaving(vanish) as server, House(tmp_path) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", ALL)
        assert code_of(await house.call(key, "/mcp/mail", "read_mail")) == "UPSTREAM_BROKEN"
        (record,) = await house.records(1)
        assert (record.effect, record.outcome, record.error) == ("allow", "broken", "UPSTREAM_BROKEN")
        assert server.connections == 1


async def test_upstream_closing_in_the_middle_of_a_json_answer(tmp_path: Path) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n" + b'{"jsonrpc":"2.0",'
        )
        await writer.drain()

    async with Misbehaving(half) as server, House(tmp_path) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", ALL)
        assert code_of(await house.call(key, "/mcp/mail", "read_mail")) == "UPSTREAM_BROKEN"
        (record,) = await house.records(1)
        assert (record.effect, record.outcome, record.error) == ("allow", "broken", "UPSTREAM_BROKEN")
        assert server.connections == 1


async def test_upstream_closing_in_the_middle_of_a_large_json_answer(tmp_path: Path) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n" + b"[" * 200_000
        )
        await writer.drain()

    async with Misbehaving(half) as server, House(tmp_path) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", ALL)
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await house.call(key, "/mcp/mail", "read_mail")
        (record,) = await house.records(1)
        assert (record.effect, record.outcome, record.error) == ("allow", "broken", "UPSTREAM_BROKEN")
        assert 0 < record.response_bytes <= 200_000


async def test_upstream_closing_in_the_middle_of_an_event_stream(tmp_path: Path) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        event = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{}}\n\n'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        await writer.drain()

    async with Misbehaving(half) as server, House(tmp_path) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", ALL)
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "read_mail", "arguments": {}}}
        async with house.http.post("/mcp/mail", json=body, headers={"X-API-Key": key}) as answer:
            assert answer.status == 200
            assert b"notifications/message" in await answer.content.readuntil(b"\n\n")
            with pytest.raises((aiohttp.ClientError, ConnectionError)):  # cut, so that it cannot look complete
                await answer.content.read()
        (record,) = await house.records(1)
        assert (record.effect, record.outcome, record.error) == ("allow", "broken", "UPSTREAM_BROKEN")
        assert record.response_bytes > 0


async def test_upstream_answering_nonsense(tmp_path: Path) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"220 mail.test ESMTP ready\r\n\r\n")
        await writer.drain()

    async with Misbehaving(babble) as server, House(tmp_path) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", ALL)
        assert code_of(await house.call(key, "/mcp/mail", "read_mail")) == "UPSTREAM_PROTOCOL"
        (record,) = await house.records(1)
        assert (record.effect, record.outcome, record.error) == ("allow", "error", "UPSTREAM_PROTOCOL")


async def test_upstream_refusing_connections(tmp_path: Path) -> None:
    async with Misbehaving(lambda reader, writer: asyncio.sleep(0)) as server:
        url = server.url
    async with House(tmp_path) as house:
        await house.upstream("mail", url)
        key = await house.agent("clerk", ALL)
        assert code_of(await house.call(key, "/mcp/mail", "read_mail")) == "UPSTREAM_UNREACHABLE"
        (record,) = await house.records(1)
        assert (record.effect, record.outcome, record.error) == ("allow", "not_sent", "UPSTREAM_UNREACHABLE")


async def test_upstream_failing_again_and_again(tmp_path: Path) -> None:
    async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    async with Misbehaving(vanish) as server, House(tmp_path) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", ALL)
        codes = [code_of(await house.call(key, "/mcp/mail", "read_mail")) for _ in range(6)]
        assert codes == ["UPSTREAM_BROKEN"] * 5 + ["UPSTREAM_RESTING"]
        resting = await house.call(key, "/mcp/mail", "read_mail")
        assert 0 < resting.json["result"]["_meta"][DECISION]["retry_after"] <= 30
        assert server.connections == 5
        records = await house.records(7)
        assert [record.outcome for record in records] == ["broken"] * 5 + ["not_sent"] * 2
        assert records[-1].error == "UPSTREAM_RESTING"


async def test_upstream_restarted(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        async with Counting() as server:
            await house.upstream("mail", server.url)
            key = await house.agent("clerk", ALL)
            assert went_well(await house.call(key, "/mcp/mail", "read_mail"))
            port = int(server.url.split(":")[2].split("/")[0])
        async with Counting(port=port) as again:
            assert went_well(await house.call(key, "/mcp/mail", "read_mail"))
            assert len(again.calls) == 1
        records = await house.records(2)
        assert [record.outcome for record in records] == ["ok", "ok"]


# -- child processes ---------------------------------------------------------------------------------------------
DYING = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("method") == "tools/call":
        sys.exit(3)
    if "id" in message:
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "d", "version": "1"}}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
HELLO = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
    "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}  # fmt: skip


async def test_stdio_child_dying_in_the_middle_of_a_call(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        await house.upstream("mail", kind="mcp_stdio", command=(sys.executable, "-c", DYING))
        key = await house.agent("clerk", ALL)

        async def initialize() -> dict[str, str]:
            hello = await house.send("POST", "/mcp/mail", key=key, body=HELLO)
            return {"Mcp-Session-Id": hello.headers["Mcp-Session-Id"]}

        session = await initialize()
        broken = await house.call(key, "/mcp/mail", "read_mail", headers=session)
        assert code_of(broken) == "UPSTREAM_BROKEN"
        gone = await house.call(key, "/mcp/mail", "read_mail", headers=session)
        assert gone.status == 404  # the client is to initialize a new session, which starts a new child
        assert await initialize() != session
        first, second = await house.records(2)
        assert (first.effect, first.outcome, first.error) == ("allow", "broken", "UPSTREAM_BROKEN")
        assert (second.effect, second.outcome, second.status) == ("allow", "error", 404)


async def test_stdio_child_that_cannot_start(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        await house.upstream("mail", kind="mcp_stdio", command=("/no/such/program",))
        key = await house.agent("clerk", ALL)
        hello = await house.send("POST", "/mcp/mail", key=key, body=HELLO)
        assert (hello.status, hello.json["error"]["data"][DECISION]["code"]) == (502, "UPSTREAM_UNREACHABLE")
        modern = {
            "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "read_mail",
        }  # fmt: skip
        call = await house.call(key, "/mcp/mail", "read_mail", headers=modern)
        assert code_of(call) == "UPSTREAM_UNREACHABLE"
        (record,) = await house.records(1)
        assert (record.effect, record.outcome, record.error) == ("allow", "not_sent", "UPSTREAM_UNREACHABLE")


# -- the client --------------------------------------------------------------------------------------------------
async def test_client_leaving_in_the_middle_of_a_call(tmp_path: Path) -> None:
    arrived, cut = asyncio.Event(), asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        arrived.set()
        await reader.read()
        cut.set()

    async with Misbehaving(wait) as server, House(tmp_path) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", ALL)
        call = asyncio.create_task(house.call(key, "/mcp/mail", "read_mail"))
        await asyncio.wait_for(arrived.wait(), 30)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(cut.wait(), 30)  # the server is told by the end of the connection
        (record,) = await house.records(1)
        assert (record.effect, record.outcome, record.error) == ("allow", "cancelled", "CLIENT_LEFT")


# -- the journal -------------------------------------------------------------------------------------------------
async def test_journal_full(tmp_path: Path) -> None:
    small = JournalSettings(segment_bytes=65536, max_bytes=131072, full_wait=0.05)
    async with Counting() as server, House(tmp_path, journal=small) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", ALL)
        assert went_well(await house.call(key, "/mcp/mail", "read_mail", {"n": "warm"}))
        answers: list[Answer] = []
        with Outage(house.runtime.store):
            while not answers or went_well(answers[-1]):
                answers.append(await house.call(key, "/mcp/mail", "read_mail", {"text": "x" * 1000, "n": len(answers)}))
                assert len(answers) < 500
            seen = len(server.calls)
            full = await house.call(key, "/mcp/mail", "read_mail", {"text": "x" * 1000})
            assert code_of(full) == "JOURNAL_FULL"
            assert full.json["result"]["_meta"][DECISION]["retry_after"] > 0
            assert len(server.calls) == seen
        assert house.runtime.metrics.refused["mcp", "JOURNAL_FULL"] >= 2
        records = await house.records(seen)  # nothing that was forwarded is missing
        assert {record.outcome for record in records} == {"ok"}
        assert went_well(await house.call(key, "/mcp/mail", "read_mail"))


async def test_journals_disk_failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(segment: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with Counting() as server, House(tmp_path, journal=JournalSettings(sync="group", full_wait=0.05)) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", ALL)
        assert went_well(await house.call(key, "/mcp/mail", "read_mail"))
        seen = len(server.calls)
        monkeypatch.setattr(groupsync, "sync_file", fail)
        struck = await house.call(key, "/mcp/mail", "read_mail")
        assert code_of(struck) == "JOURNAL_FULL"
        monkeypatch.undo()  # a disk that failed once is not trusted again
        assert code_of(await house.call(key, "/mcp/mail", "read_mail")) == "JOURNAL_FULL"
        assert len(server.calls) == seen
        ready = await house.send("GET", "/ready")
        assert (ready.status, list(ready.json["problems"])) == (503, ["journal"])
        assert os.strerror(errno.EIO) in ready.json["problems"]["journal"]
        assert house.runtime.metrics.refused["mcp", "JOURNAL_FULL"] >= 2
        records = await house.records(2)
        assert [(record.outcome, record.error) for record in records] == [("ok", ""), ("not_sent", "JOURNAL_BROKEN")]


# -- the gateway itself ------------------------------------------------------------------------------------------
def ask(gateway: Mortal, http: aiohttp.ClientSession, key: str) -> Any:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "read_mail", "arguments": {}}}
    return http.post(f"{gateway.url}/mcp/mail", json=body, headers={"X-API-Key": key})


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def test_gateway_killed(tmp_path: Path) -> None:
    gateway = Mortal(tmp_path)
    never = asyncio.Event()
    async with Counting() as server, aiohttp.ClientSession() as http:
        server.before = never.wait  # type: ignore[assignment]
        key = await gateway.prepare(server.url, ALL)
        async with gateway.running():
            call = asyncio.create_task(ask(gateway, http, key).__aenter__())
            await until(lambda: len(server.calls) == 1)
            await gateway.kill()
            with pytest.raises((aiohttp.ClientError, ConnectionError)):
                await call
        never.set()
        async with gateway.opened() as runtime:
            (record,) = await gateway.records(runtime)
        assert (record.effect, record.outcome, record.error) == ("allow", "unknown", "NO_OUTCOME")
        assert len(server.calls) == 1  # not sent again


async def test_gateway_stopped_with_a_call_in_flight(tmp_path: Path) -> None:
    gateway = Mortal(tmp_path)
    gate = asyncio.Event()
    async with Counting() as server, aiohttp.ClientSession() as http:
        server.before = gate.wait  # type: ignore[assignment]
        key = await gateway.prepare(server.url, ALL)
        async with gateway.running():
            call = asyncio.create_task(ask(gateway, http, key).__aenter__())
            await until(lambda: len(server.calls) == 1)
            ending = asyncio.create_task(gateway.end(signal.SIGTERM))
            with pytest.raises(aiohttp.ClientConnectionError):
                async with asyncio.timeout(60):
                    while True:  # until the signal has arrived
                        await (await http.get(f"{gateway.url}/health")).read()
                        await asyncio.sleep(0.02)
            assert not ending.done()
            gate.set()
            answer = await call
            assert (await answer.json())["result"]["isError"] is False
            assert await ending == 0
        async with gateway.opened() as runtime:
            (record,) = await gateway.records(runtime)
        assert (record.effect, record.outcome) == ("allow", "ok")


async def test_gateway_stopped_before_a_call_ends(tmp_path: Path) -> None:
    gateway = Mortal(tmp_path, server=ServerSettings(stop_grace=0.2))
    gate = asyncio.Event()
    async with Counting() as server, aiohttp.ClientSession() as http:
        server.before = gate.wait  # type: ignore[assignment]
        key = await gateway.prepare(server.url, ALL)
        async with gateway.running():
            call = asyncio.create_task(ask(gateway, http, key).__aenter__())
            await until(lambda: len(server.calls) == 1)
            assert await gateway.end(signal.SIGTERM) == 0
            with pytest.raises((aiohttp.ClientError, ConnectionError)):
                await call
        gate.set()
        async with gateway.opened() as runtime:
            (record,) = await gateway.records(runtime)
        assert (record.effect, record.outcome, record.error) == ("allow", "cancelled", "CLIENT_LEFT")


# -- plugins -----------------------------------------------------------------------------------------------------
class _Guard:
    kind = "guard"
    config = NoConfig

    def __init__(self, config: NoConfig) -> None:
        self.config = config  # type: ignore[misc,assignment]

    async def provision(self) -> None:
        """Nothing to set up."""

    async def close(self) -> None:
        """Nothing to close."""


class Raising(_Guard):
    def compile(self, agent: AgentView, profile: Profile, tool: Tool) -> Callable[[Call], Verdict | None]:
        def check(call: Call) -> Verdict | None:
            raise LookupError("no such table: budgets")

        return check


class Hanging(_Guard):
    def compile(self, agent: AgentView, profile: Profile, tool: Tool) -> Callable[[Call], Verdict | None]:
        def check(call: Call) -> Verdict | None:
            time.sleep(60)
            return None

        return check


class Point(EntryPoint):
    """An installed plugin, as far as the gateway can tell."""

    def load(self) -> Any:
        return {"raising": Raising, "hanging": Hanging}[self.name]


def install(monkeypatch: pytest.MonkeyPatch, name: str) -> PluginSettings:
    ours = list(pluginhost.entry_points(group=ENTRY_POINT_GROUP))
    point = Point(name=name, value=f"elsewhere.plugins:{name}", group=ENTRY_POINT_GROUP)
    monkeypatch.setattr(pluginhost, "entry_points", lambda group: [*ours, point])
    return PluginSettings(guards=("argument-rules", name, "rate-limits"), guard_timeout=0.5)


async def test_plugin_guard_raising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Counting() as server, House(tmp_path, plugins=install(monkeypatch, "raising")) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", ALL)
        for _ in range(2):  # cold, then warm
            answer = await house.call(key, "/mcp/mail", "read_mail")
            assert code_of(answer) == "POLICY_ERROR"
            assert "budgets" not in answer.body.decode()  # what went wrong inside is not the agent's to read
        assert server.calls == []
        for record in await house.records(2):
            assert (record.effect, record.outcome, record.code) == ("deny", "denied", "POLICY_ERROR")
            assert "raising" in record.rule


async def test_plugin_guard_hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Counting() as server, House(tmp_path, plugins=install(monkeypatch, "hanging")) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", ALL)
        started = time.monotonic()
        answers = [await house.call(key, "/mcp/mail", "read_mail") for _ in range(3)]
        assert time.monotonic() - started < 60  # it wanted to sleep for a minute, each time
        assert [code_of(answer) for answer in answers] == ["POLICY_ERROR"] * 3
        assert server.calls == []
        for record in await house.records(3):
            assert (record.effect, record.outcome, record.code) == ("deny", "denied", "POLICY_ERROR")
