"""A child process behind the doors: the demo's mail server over stdio, as the official client meets it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from agenticmail_enterprise.catalog.profiles import ArgumentRule, Profile, ToolRule
from tests.flows.house import House, official

MAIL = Profile(
    name="mail", tools=ToolRule(allow=("mail__*",), deny=("mail__delete_email",)), max_risk="critical",
    argument_rules=(ArgumentRule(name="internal", tools=("mail__send_email",), field="to", op="domain_in", values=("acme.test",)),),
)  # fmt: skip
ERAS = {"auto": "2026-07-28", "legacy": "2025-11-25"}

NOSY = """
import json, os, sys
seen = 0
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    if message["method"] == "tools/call":
        seen += 1
        said = {"env": dict(os.environ), "seen": seen, "pid": os.getpid(), "args": message["params"].get("arguments")}
        result = {"content": [{"type": "text", "text": json.dumps(said)}]}
    elif message["method"] == "tools/list":
        result = {"tools": [{"name": "look", "inputSchema": {"type": "object"}}]}
    elif message["method"] == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "nosy", "version": "1"}}
    else:
        result = {}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
SLOW = """
import json, sys, time
for line in sys.stdin:
    message = json.loads(line)
    if message.get("method") == "tools/call":
        print("busy", message["params"]["arguments"]["marker"], file=open(message["params"]["arguments"]["marker"], "w"))
        time.sleep(60)
    elif "id" in message:
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "slow", "version": "1"}}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
ANY = Profile(name="any", tools=ToolRule(allow=("mail__*",)), max_risk="critical", allow_unknown=True)
HELLO = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
    "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}  # fmt: skip


async def mailserver(house: House, folder: Path) -> str:
    command = (sys.executable, "-m", "agenticmail_enterprise.gateway.demo.mailserver", "--folder", str(folder))
    upstream = await house.upstream("mail", kind="mcp_stdio", command=command)
    report = await house.runtime.upstreams.refresh(house.org, upstream)
    assert report.ok, report.error
    return upstream


async def session(house: House, key: str) -> dict[str, str]:
    hello = await house.send("POST", "/mcp/mail", key=key, body=HELLO)
    assert hello.status == 200, hello.body
    return {"Mcp-Session-Id": hello.headers["Mcp-Session-Id"]}


def look(answer: Any) -> Any:
    import json

    return json.loads(answer.json["result"]["content"][0]["text"])


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize(("path", "prefix"), [("/mcp/mail", ""), ("/mcp", "mail__")], ids=["transparent", "aggregated"])
async def test_the_official_client_works_through_either_door_in_either_era(
    tmp_path: Path, path: str, prefix: str, mode: str
) -> None:
    folder = tmp_path / "mails"
    async with House(tmp_path) as house:
        await mailserver(house, folder)
        key = await house.agent("clerk", MAIL)
        async with official(house, key, path, mode) as client:
            assert client.protocol_version == ERAS[mode]
            tools = [tool.name for tool in (await client.list_tools()).tools]
            assert tools == [f"{prefix}{name}" for name in ("list_inbox", "read_email", "search_emails", "send_email")]
            listed = await client.call_tool(f"{prefix}list_inbox", {})
            assert [mail["id"] for mail in listed.structured_content["emails"]] == ["in-0001", "in-0002", "in-0003"]
            mail = {"to": "ada@acme.test", "subject": "Report", "text": "All well."}
            sent = await client.call_tool(f"{prefix}send_email", mail)
            assert not sent.is_error
            outside = await client.call_tool(f"{prefix}send_email", {**mail, "to": "eve@evil.test"})
            assert outside.is_error
            assert "acme.test" in outside.content[0].text
            denied = await client.call_tool(f"{prefix}delete_email", {"id": "in-0001"})
            assert denied.is_error
            resources = [str(resource.uri) for resource in (await client.list_resources()).resources]
            assert resources == ["mail://inbox", "mail://outbox"]
            assert "in-0002" in (await client.read_resource("mail://inbox")).contents[0].text
            assert [prompt.name for prompt in (await client.list_prompts()).prompts] == [f"{prefix}draft_reply"]
            drafted = await client.get_prompt(f"{prefix}draft_reply", {"id": "in-0001"})
            assert "lamp" in drafted.messages[0].content.text
        assert [path.name for path in (folder / "outbox").iterdir()] == ["out-0001.eml"]
        assert len(list((folder / "inbox").iterdir())) == 3
        assert [(record.tool, record.effect, record.outcome) for record in await house.records(6)] == [
            ("mail__list_inbox", "allow", "ok"), ("mail__send_email", "allow", "ok"), ("mail__send_email", "deny", "denied"),
            ("mail__delete_email", "deny", "denied"), ("mail__resource:mail://inbox", "allow", "ok"),
            ("mail__prompt:draft_reply", "allow", "ok"),
        ]  # fmt: skip


async def test_each_session_has_a_child_of_its_own_and_belongs_to_its_agent(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        await house.upstream("mail", kind="mcp_stdio", command=(sys.executable, "-c", NOSY))
        first, second = await house.agent("first", ANY), await house.agent("second", ANY)
        mine, again, theirs = await session(house, first), await session(house, first), await session(house, second)
        seen = [
            look(await house.call(key, "/mcp/mail", "look", headers=at))
            for key, at in ((first, mine), (first, again), (second, theirs))
        ]
        assert len({said["pid"] for said in seen}) == 3
        assert [said["seen"] for said in seen] == [1, 1, 1]
        stolen = await house.call(second, "/mcp/mail", "look", headers=mine)
        assert stolen.status == 404
        assert look(await house.call(first, "/mcp/mail", "look", headers=mine))["seen"] == 2
        assert (await house.send("DELETE", "/mcp/mail", key=second, headers=mine)).status == 404
        assert (await house.send("DELETE", "/mcp/mail", key=first, headers=mine)).status == 200
        assert (await house.call(first, "/mcp/mail", "look", headers=mine)).status == 404
        assert look(await house.call(first, "/mcp/mail", "look", headers=again))["seen"] == 2


async def test_stateless_requests_of_two_agents_never_share_a_child(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        await house.upstream("mail", kind="mcp_stdio", command=(sys.executable, "-c", NOSY))
        first, second = await house.agent("first", ANY), await house.agent("second", ANY)
        modern = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "look"}
        answers = await asyncio.gather(
            *(
                house.call(key, "/mcp/mail", "look", {"n": n}, headers=modern)
                for n in range(10)
                for key in (first, second)
            )
        )
        said = [look(answer) for answer in answers]
        assert [one["args"]["n"] for one in said] == [n for n in range(10) for _ in range(2)]  # each its own answer
        assert len({one["pid"] for one in said[0::2]}) == len({one["pid"] for one in said[1::2]}) == 1
        assert said[0]["pid"] != said[1]["pid"]


async def test_a_child_knows_only_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTICMAIL_SECRET_KEY_OF_THE_GATEWAY", "hush")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    async with House(tmp_path) as house:
        await house.upstream(
            "mail",
            kind="mcp_stdio",
            command=(sys.executable, "-c", NOSY),
            env={"MODE": "test"},
            secrets={"TOKEN": "s3cret"},
        )
        key = await house.agent("clerk", ANY)
        env = look(await house.call(key, "/mcp/mail", "look", headers=await session(house, key)))["env"]
        assert (env["MODE"], env["TOKEN"]) == ("test", "s3cret")
        assert "hush" not in env.values()
        assert not [name for name in env if name.startswith("AGENTICMAIL")]
        assert key not in str(env)


async def test_a_child_killed_in_the_middle_of_a_call_is_told_and_replaced(tmp_path: Path) -> None:
    marker = tmp_path / "busy"
    async with House(tmp_path) as house:
        await house.upstream("mail", kind="mcp_stdio", command=(sys.executable, "-c", SLOW))
        key = await house.agent("clerk", ANY)
        at = await session(house, key)
        call = asyncio.create_task(house.call(key, "/mcp/mail", "look", {"marker": str(marker)}, headers=at))
        while not marker.exists():
            assert not call.done(), call.result().body
            await asyncio.sleep(0.02)
        (live,) = house.runtime.upstreams.all()
        (bridge,) = live._sessions.values()
        os.kill(bridge.mux.pid, signal.SIGKILL)
        result = (await asyncio.wait_for(call, 60)).json["result"]
        assert result["isError"] is True
        assert "whether it acted is unknown" in result["content"][0]["text"]
        (record,) = await house.records(1)
        assert (record.outcome, record.error) == ("broken", "UPSTREAM_BROKEN")
        assert (await house.call(key, "/mcp/mail", "look", {"marker": str(marker)}, headers=at)).status == 404
        assert await session(house, key) != at


async def test_children_do_not_outlive_the_gateway(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        await house.upstream("mail", kind="mcp_stdio", command=(sys.executable, "-c", NOSY))
        key = await house.agent("clerk", ANY)
        pid = look(await house.call(key, "/mcp/mail", "look", headers=await session(house, key)))["pid"]
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


TALKING = """
import json, sys, threading, time
def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
KEY = "io.modelcontextprotocol/subscriptionId"
cancelled, listening, calls = [], [], []
for line in sys.stdin:
    m = json.loads(line)
    method, params = m.get("method"), m.get("params") or {}
    if method == "initialize":
        say(id=m["id"], result={"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {"listChanged": True}},
                                "serverInfo": {"name": "talking", "version": "1"}})
    elif method == "server/discover":
        say(id=m["id"], result={"supportedVersions": ["2026-07-28"], "resultType": "complete",
            "capabilities": {"tools": {"listChanged": True}, "resources": {"subscribe": True}}, "serverInfo": {"name": "t", "version": "1"}})
    elif method == "subscriptions/listen":
        listening.append(m["id"])
        say(method="notifications/subscriptions/acknowledged",
            params={"notifications": params["notifications"], "_meta": {KEY: m["id"]}})
    elif method == "tools/list":
        say(id=m["id"], result={"tools": [{"name": "look", "inputSchema": {"type": "object"}}], "resultType": "complete",
                                "ttlMs": 0, "cacheScope": "private"})
    elif method == "resources/list":
        say(id=m["id"], result={"resources": [{"uri": "mail://x", "name": "x"}], "resultType": "complete"})
    elif method in ("resources/templates/list", "prompts/list"):
        say(id=m["id"], error={"code": -32601, "message": "no such method"})
    elif method == "tools/call" and params["arguments"].get("wait"):
        calls.append(m)  # answered together with the other
        if len(calls) == 2:
            for call in calls:
                say(method="notifications/progress", params={"progressToken": call["params"]["_meta"]["progressToken"], "progress": 1})
            for call in reversed(calls):
                say(id=call["id"], result={"content": [{"type": "text", "text": call["params"]["arguments"]["wait"]}]})
    elif method == "tools/call":
        for own in listening:
            say(method="notifications/resources/updated", params={"uri": "mail://x", "_meta": {KEY: own}})
        say(id=m["id"], result={"content": [{"type": "text", "text": json.dumps(cancelled)}], "resultType": "complete"})
    elif method == "notifications/cancelled":
        cancelled.append(params["requestId"])
    elif "id" in m:
        say(id=m["id"], result={})
"""


@pytest.mark.parametrize(("path", "tool"), [("/mcp/mail", "look"), ("/mcp", "mail__look")])
async def test_the_official_client_subscribes_through_a_child_process(tmp_path: Path, path: str, tool: str) -> None:
    from mcp.client.subscriptions import ResourceUpdated

    async with House(tmp_path) as house:
        await house.upstream("mail", kind="mcp_stdio", command=(sys.executable, "-c", TALKING))
        key = await house.agent("clerk", ANY)
        async with official(house, key, path) as client:
            assert client.protocol_version == "2026-07-28"
            async with (
                client.listen(resource_subscriptions=["mail://x"]) as first,
                client.listen(resource_subscriptions=["mail://x"]) as second,
            ):
                assert first.subscription_id != second.subscription_id
                await client.call_tool(tool, {})
                for subscription in (first, second):  # each with the id that its own client knows
                    async with asyncio.timeout(30):
                        assert await anext(subscription) == ResourceUpdated("mail://x")


async def test_two_calls_with_one_progress_token_hear_each_of_their_own(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        await house.upstream("mail", kind="mcp_stdio", command=(sys.executable, "-c", TALKING))
        key = await house.agent("clerk", ANY)
        modern = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "look"}

        def call(word: str) -> Any:
            params = {"name": "look", "arguments": {"wait": word}, "_meta": {"progressToken": "same"}}
            body = {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": params}
            return house.send("POST", "/mcp/mail", key=key, body=body, headers=modern)

        for word, answer in zip(("a", "b"), await asyncio.gather(call("a"), call("b")), strict=True):
            progress, result = answer.messages
            assert progress["params"] == {"progressToken": "same", "progress": 1}
            assert (result["id"], result["result"]["content"][0]["text"]) == (3, word)


async def test_a_batch_is_played_message_by_message(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        await house.upstream("mail", kind="mcp_stdio", command=(sys.executable, "-c", TALKING))
        key = await house.agent("clerk", ANY)
        hello = {**HELLO, "params": {**HELLO["params"], "protocolVersion": "2025-03-26"}}  # type: ignore[dict-item]
        opened = await house.send("POST", "/mcp/mail", key=key, body=hello)
        at = {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"]}

        def waits(word: str) -> dict[str, Any]:
            params = {"name": "look", "arguments": {"wait": word}, "_meta": {"progressToken": word}}
            return {"jsonrpc": "2.0", "id": word, "method": "tools/call", "params": params}

        ping = {"jsonrpc": "2.0", "id": "p", "method": "ping"}
        plain = await house.send("POST", "/mcp/mail", key=key, body=[ping, {**ping, "id": "q"}], headers=at)
        assert [answer["id"] for answer in plain.json] == ["p", "q"]
        talk = await house.send("POST", "/mcp/mail", key=key, body=[waits("a"), waits("b")], headers=at)
        frames = talk.messages
        assert {frame["params"]["progressToken"] for frame in frames if "method" in frame} == {"a", "b"}
        assert {frame["id"] for frame in frames if "id" in frame} == {"a", "b"}
        note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert (await house.send("POST", "/mcp/mail", key=key, body=[note], headers=at)).status == 202


async def test_a_cancellation_reaches_the_child_under_the_id_that_it_knows(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        await house.upstream("mail", kind="mcp_stdio", command=(sys.executable, "-c", TALKING))
        key = await house.agent("clerk", ANY)
        at = await session(house, key)
        arguments = {"wait": "for ever"}
        waiting = asyncio.create_task(house.call(key, "/mcp/mail", "look", arguments, headers=at))
        (live,) = house.runtime.upstreams.all()
        (bridge,) = live._sessions.values()
        while bridge.mux.idle:
            await asyncio.sleep(0.01)
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
        assert (await house.send("POST", "/mcp/mail", key=key, body=note, headers=at)).status == 202
        said = look(await house.call(key, "/mcp/mail", "look", {}, headers=at))
        assert said == [bridge.mux._last - 1]
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
