"""Calls that must not run twice: repeats and simultaneous twins get the first one's result."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agenticmail_enterprise.catalog.approvals import ONCES
from agenticmail_enterprise.catalog.profiles import Profile, RateLimit, ToolRule
from agenticmail_enterprise.catalog.store import Query
from agenticmail_enterprise.gateway.doors.straight import Flight
from agenticmail_enterprise.gateway.settings import ApprovalSettings
from tests.flows.house import House
from tests.flows.servers import Counting, Misbehaving, read_request

FREE = Profile(name="free", tools=ToolRule(allow=("mail__*",)), max_risk="critical", allow_unknown=True)
MAIL = {"to": "ada@acme.test", "subject": "Hello"}


def marked() -> Counting:
    server = Counting()
    server.tools[1]["annotations"] = {"idempotentHint": False}
    return server


async def listed(house: House, url: str) -> None:
    await house.runtime.upstreams.refresh(house.org, await house.upstream("mail", url))


def about(answer: Any) -> Any:
    return answer.json["result"]["_meta"]["enterprise.agenticmail/decision"]["idempotency"]


async def test_a_repeat_of_a_marked_tool_replays_and_other_arguments_run(tmp_path: Path) -> None:
    async with marked() as server, House(tmp_path) as house:
        await listed(house, server.url)
        key, other = await house.agent("clerk", FREE), await house.agent("other", FREE)
        first = await house.call(key, "/mcp/mail", "send_mail", MAIL)
        again = await house.call(key, "/mcp/mail", "send_mail", {"subject": "Hello", "to": "ada@acme.test"})
        assert (about(first)["repeat"], about(again)["repeat"]) == (False, True)
        assert first.json["result"]["content"] == again.json["result"]["content"]
        assert len(server.calls) == 1
        await house.call(key, "/mcp/mail", "send_mail", {**MAIL, "subject": "Other"})
        await house.call(other, "/mcp/mail", "send_mail", MAIL)
        assert len(server.calls) == 3
        for _ in range(2):
            await house.call(key, "/mcp/mail", "read_mail", {"id": 1})
        assert len(server.calls) == 5, "what is not marked runs as often as it is called"
        records = await house.records(6)
        assert [record.rule for record in records].count("idempotency:replay") == 1


async def test_of_simultaneous_twins_one_runs_and_the_others_wait(tmp_path: Path) -> None:
    async with marked() as server, House(tmp_path) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", FREE)
        gate = asyncio.Event()
        server.before = gate.wait  # type: ignore[assignment]
        asked = [asyncio.create_task(house.call(key, "/mcp/mail", "send_mail", MAIL)) for _ in range(6)]
        while not server.calls:
            await asyncio.sleep(0.01)
        gate.set()
        answers = [await task for task in asked]
        assert sorted(about(answer)["repeat"] for answer in answers) == [False] + [True] * 5
        assert len(server.calls) == 1


async def test_a_key_is_honoured_passed_on_and_not_for_two_calls(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", FREE)
        headers = {"Idempotency-Key": "order-17"}
        for _ in range(3):
            answer = await house.call(key, "/mcp/mail", "send_mail", MAIL, headers=headers)
            assert answer.json["result"]["isError"] is False
        assert len(server.calls) == 1
        sent = next(head for head, message in server.seen if message.get("method") == "tools/call")
        assert sent["Idempotency-Key"] == "order-17"
        clash = await house.call(key, "/mcp/mail", "send_mail", {"to": "bob@acme.test"}, headers=headers)
        assert "other arguments" in clash.json["result"]["content"][0]["text"]
        await house.call(
            key, "/mcp/mail", "send_mail", {"to": "bob@acme.test"}, headers={"Idempotency-Key": "order-18"}
        )
        assert len(server.calls) == 2


async def test_what_could_not_be_sent_may_be_tried_again(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        server = Counting()
        async with server:
            url = server.url
            await listed(house, url)
            key = await house.agent("clerk", FREE)
        headers = {"Idempotency-Key": "order-19"}
        failed = await house.call(key, "/mcp/mail", "send_mail", MAIL, headers=headers)
        assert failed.json["result"]["isError"] is True
        async with Counting(port=int(url.rpartition(":")[2].partition("/")[0])) as back:
            for _ in range(100):  # the breaker may be resting
                answer = await house.call(key, "/mcp/mail", "send_mail", MAIL, headers=headers)
                if answer.json["result"]["isError"] is False:
                    break
                await asyncio.sleep(0.1)
            assert len(back.calls) == 1


async def test_a_call_that_broke_off_is_unknown_and_not_sent_again(tmp_path: Path) -> None:
    calls: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = await read_request(reader)
            if b"tools/call" in body:
                calls.append(body)
                return
            text = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}'
            if b'"initialize"' in body:
                text = b'{"jsonrpc":"2.0","id":2,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"t","version":"1"}}}'
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)
            )

    async with Misbehaving(script) as server, House(tmp_path) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", FREE)
        headers = {"Idempotency-Key": "order-20"}
        for _ in range(3):
            answer = await house.call(key, "/mcp/mail", "send_mail", MAIL, headers=headers)
            assert "may have run, or not" in answer.json["result"]["content"][0]["text"]
        assert len(calls) == 1


async def test_results_are_sealed_and_forgotten_after_the_window(tmp_path: Path) -> None:
    async with marked() as server, House(tmp_path, approvals=ApprovalSettings(idempotency=1, sweep=0.05)) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", FREE)
        await house.call(key, "/mcp/mail", "send_mail", MAIL)
        query = Query(ONCES, "by_org", {"org": house.org})
        for record in (await house.runtime.store.find(query)).records:
            assert "ada@acme.test" not in record.sealed_result
        for _ in range(500):
            if not (await house.runtime.store.find(query)).records:
                break
            await asyncio.sleep(0.02)
        await house.call(key, "/mcp/mail", "send_mail", MAIL)
        assert len(server.calls) == 2


@pytest.mark.parametrize("repeats", ["once", "safe"])
async def test_a_person_says_whether_a_tool_may_run_twice(tmp_path: Path, repeats: str) -> None:
    server = Counting() if repeats == "once" else marked()
    async with server, House(tmp_path) as house:
        upstream = await house.upstream("mail", server.url)
        await house.runtime.upstreams.refresh(house.org, upstream)
        key, admin = await house.agent("clerk", FREE), await house.program("*")
        tools = (await house.send("GET", f"/api/gateway/upstreams/{upstream}/tools", key=admin)).json["data"]
        tool = next(one["id"] for one in tools if one["tool_id"] == "mail__send_mail")
        path = f"/api/gateway/upstreams/{upstream}/tools/{tool}"
        assert (await house.send("PUT", path, key=admin, body={"repeats": repeats})).status == 200
        for _ in range(2):
            await house.call(key, "/mcp/mail", "send_mail", MAIL)
        assert len(server.calls) == (1 if repeats == "once" else 2)


async def test_a_call_that_needs_nobody_by_a_grant_still_runs_once(tmp_path: Path) -> None:
    from agenticmail_enterprise.catalog.approvals import ApprovalPolicySpec, AutoApproveRule, Condition

    async with marked() as server, House(tmp_path) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", FREE)
        rule = AutoApproveRule(
            name="inside", conditions=(Condition(field="to", op="domain_in", values=("acme.test",)),)
        )
        await house.runtime.approvals.book.create_policy(
            house.org, ApprovalPolicySpec(name="all", auto_approve_rules=(rule,))
        )
        for _ in range(3):
            assert (await house.call(key, "/mcp/mail", "send_mail", MAIL)).json["result"]["isError"] is False
        assert len(server.calls) == 1


@pytest.mark.parametrize("door", ["/mcp/mail", "/mcp"])
async def test_a_key_on_a_subscription_leaves_it_a_subscription(tmp_path: Path, door: str) -> None:
    free = Profile(name="free", tools=ToolRule(allow=("mail__*",)), max_risk="critical", allow_unknown=True)
    async with Counting() as server, House(tmp_path) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", free)
        headers = {"Idempotency-Key": "order-21"}
        if door == "/mcp":
            hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
                "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}  # fmt: skip
            opened = await house.send("POST", door, key=key, body=hello)
            headers["Mcp-Session-Id"] = opened.headers["Mcp-Session-Id"]
        before = len(server.seen)
        message = {"jsonrpc": "2.0", "id": 3, "method": "resources/subscribe", "params": {"uri": "mail://inbox"}}
        await house.send("POST", door, key=key, body=message, headers=headers)
        methods = [one.get("method") for _, one in server.seen[before:]]
        assert "resources/read" not in methods
        assert door == "/mcp" or "resources/subscribe" in methods


@pytest.mark.parametrize(
    ("outcome", "said", "runs"),
    [("", "may have run, or not", 0), ("ok", "result was not kept", 0), ("not_sent", "was not sent", 1)],
)
async def test_what_a_dead_worker_left_is_judged_by_the_journal(
    tmp_path: Path, outcome: str, said: str, runs: int
) -> None:
    from agenticmail_enterprise.catalog.approvals import Once
    from agenticmail_enterprise.catalog.records import AGENTS, CALLS, CallRecord
    from agenticmail_enterprise.catalog.store import Insert
    from agenticmail_enterprise.gateway.approvals.canonical import canonical, digest_of

    # The sweeper would judge it as well: here it is the repeat that finds it.
    async with marked() as server, House(tmp_path, approvals=ApprovalSettings(sweep=60.0)) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", FREE)
        (agent,) = (await house.runtime.store.find(Query(AGENTS, "by_org", {"org": house.org}))).records
        arguments = digest_of(canonical(MAIL))
        once_id = digest_of(canonical([agent.id, "mail__send_mail", "arguments", arguments]))
        left = Once(
            org=house.org,
            id=once_id,
            agent=agent.id,
            tool="mail__send_mail",
            arguments=arguments,
            call_id="dec_dead",
            until=1,
        )
        await house.runtime.store.commit(Insert(ONCES, left))
        if outcome:
            await house.runtime.store.append(CALLS, [CallRecord(org=house.org, id="dec_dead", outcome=outcome)])  # type: ignore[arg-type]
        first = (await house.call(key, "/mcp/mail", "send_mail", MAIL)).json["result"]
        assert said in first["content"][0]["text"]
        assert server.calls == []
        await house.call(key, "/mcp/mail", "send_mail", MAIL)
        assert len(server.calls) == runs


async def test_a_marked_tool_leaves_the_straight_way_and_is_charged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    take_over = Flight._take_over
    monkeypatch.setattr(Flight, "_take_over", lambda flight: (taken.append(flight.call.tool), take_over(flight)))
    limited = msgspec.structs.replace(FREE, rate_limits=(RateLimit(per_hour=6),))
    async with marked() as server, House(tmp_path) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", limited)
        await house.call(key, "/mcp/mail", "read_mail", {"id": 1})
        answers = [await house.call(key, "/mcp/mail", "send_mail", MAIL) for _ in range(5)]
        assert [about(answer)["repeat"] for answer in answers] == [False, True, True, True, True]
        assert taken.count("mail__send_mail") >= 4, "they came over the fast lane"
        assert len(server.calls) == 2
        over = await house.call(key, "/mcp/mail", "send_mail", MAIL)
        assert "RATE_LIMITED" in over.json["result"]["content"][0]["text"]
