"""`/mcp`: every server an agent may use as one, for the official client of either era and for raw requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import types

from agenticmail_enterprise.catalog.profiles import Profile, ToolRule
from tests.flows.house import House, official
from tests.flows.servers import Counting, Misbehaving

EVERYTHING = Path(__file__).resolve().parents[1] / "conformance" / "everything.py"
CLERK = Profile(
    name="clerk", tools=ToolRule(allow=("mail__read_mail", "post__*", "mail__resource:mail://inbox", "mail__prompt:summary")),
    max_risk="critical", allow_unknown=True,
)  # fmt: skip
NARROW = Profile(name="narrow", tools=ToolRule(allow=("mail__read_mail", "post__read_mail")), max_risk="critical")
ANY = Profile(name="any", tools=ToolRule(allow=("*",)), max_risk="critical", allow_unknown=True)
HELLO = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
    "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}  # fmt: skip
UNAVAILABLE = "enterprise.agenticmail/unavailable"


async def session(house: House, key: str) -> dict[str, str]:
    hello = await house.send("POST", "/mcp", key=key, body=HELLO)
    assert (hello.status, hello.json["result"]["protocolVersion"]) == (200, "2025-11-25")
    return {"Mcp-Session-Id": hello.headers["Mcp-Session-Id"]}


async def ask(house: House, key: str, at: dict[str, str], method: str, params: dict[str, Any] | None = None) -> Any:
    body = {"jsonrpc": "2.0", "id": 5, "method": method, "params": params or {}}
    answer = await house.send("POST", "/mcp", key=key, body=body, headers=at)
    assert answer.json["id"] == 5
    return answer.json.get("result") or answer.json["error"]


@contextlib.asynccontextmanager
async def two(tmp_path: Path) -> AsyncIterator[tuple[House, Counting, Counting]]:
    async with Counting() as mail, Counting() as post, House(tmp_path) as house:
        post.resources = [{"uri": "post://box", "name": "box"}]
        post.prompts = [{"name": "letter"}]
        for name, server in (("mail", mail), ("post", post)):
            upstream = await house.upstream(name, server.url)
            assert (await house.runtime.upstreams.refresh(house.org, upstream)).ok
        mail.seen.clear()
        post.seen.clear()
        yield house, mail, post


async def test_two_servers_are_one_list_and_each_call_reaches_its_own(tmp_path: Path) -> None:
    async with two(tmp_path) as (house, mail, post):
        key = await house.agent("clerk", CLERK)
        at = await session(house, key)
        tools = (await ask(house, key, at, "tools/list"))["tools"]
        assert [tool["name"] for tool in tools] == [
            "mail__read_mail",
            "post__read_mail",
            "post__send_mail",
            "post__delete_mail",
        ]
        assert tools[1]["description"] == "Read one mail."
        assert (await ask(house, key, at, "tools/call", {"name": "post__send_mail", "arguments": {"n": 1}}))[
            "isError"
        ] is False
        assert (await ask(house, key, at, "tools/call", {"name": "mail__read_mail", "arguments": {"n": 2}}))[
            "isError"
        ] is False
        refused = await ask(house, key, at, "tools/call", {"name": "mail__send_mail", "arguments": {"n": 3}})
        assert refused["isError"] is True
        assert [call["params"] for call in post.calls] == [{"name": "send_mail", "arguments": {"n": 1}}]
        assert [call["params"] for call in mail.calls] == [{"name": "read_mail", "arguments": {"n": 2}}]
        assert [(r.upstream, r.tool, r.effect) for r in await house.records(3)] == [
            ("post", "post__send_mail", "allow"), ("mail", "mail__read_mail", "allow"), ("mail", "mail__send_mail", "deny"),
        ]  # fmt: skip


async def test_lists_are_each_agents_own(tmp_path: Path) -> None:
    async with two(tmp_path) as (house, _, _):
        clerk, narrow = await house.agent("clerk", CLERK), await house.agent("narrow", NARROW)

        async def names(key: str, method: str, list_: str, field: str) -> list[str]:
            return [item[field] for item in (await ask(house, key, await session(house, key), method))[list_]]

        assert await names(narrow, "tools/list", "tools", "name") == ["mail__read_mail", "post__read_mail"]
        assert await names(narrow, "resources/list", "resources", "uri") == []
        assert await names(clerk, "resources/list", "resources", "uri") == ["mail://inbox", "post://box"]
        assert await names(clerk, "prompts/list", "prompts", "name") == ["mail__summary", "post__letter"]


async def test_resources_and_prompts_lead_to_their_server(tmp_path: Path) -> None:
    async with two(tmp_path) as (house, mail, _post):
        key = await house.agent("clerk", CLERK)
        at = await session(house, key)
        assert (await ask(house, key, at, "resources/read", {"uri": "post://box"}))["contents"][0][
            "uri"
        ] == "post://box"
        assert "contents" in await ask(house, key, at, "resources/read", {"uri": "mail://inbox"})
        assert "messages" in await ask(house, key, at, "prompts/get", {"name": "mail__summary"})
        refused = await ask(house, key, at, "resources/read", {"uri": "mail://secret"})
        assert "mail://secret" in refused["message"]
        nowhere = await ask(house, key, at, "resources/read", {"uri": "ftp://nobody"})
        assert nowhere["code"] in {-32002, -32010}
        hidden = await ask(house, key, at, "prompts/get", {"name": "mail__hidden"})
        assert "hidden" in hidden["message"]
        asked = [
            message["method"] for _, message in mail.seen if message.get("method") in {"resources/read", "prompts/get"}
        ]
        assert asked == ["resources/read", "prompts/get"]
        assert [r.effect for r in await house.records(6)] == ["allow", "allow", "allow", "deny", "deny", "deny"]


@pytest.mark.parametrize(
    "name", ["read_mail", "nosuch__read_mail", "mail__", "__read_mail", "mail_read_mail", "MAIL__read_mail"]
)
async def test_names_that_lead_nowhere_are_refused_and_recorded(tmp_path: Path, name: str) -> None:
    async with two(tmp_path) as (house, mail, post):
        key = await house.agent("any", ANY)
        result = await ask(house, key, await session(house, key), "tools/call", {"name": name, "arguments": {}})
        assert result["isError"] is True
        assert mail.calls == post.calls == []
        (record,) = await house.records(1)
        assert record.effect == "deny"


async def test_a_server_that_is_down_is_named_and_the_others_are_listed(tmp_path: Path) -> None:
    async with Misbehaving(lambda reader, writer: asyncio.sleep(0)) as gone:
        url = gone.url
    async with two(tmp_path) as (house, _mail, _):
        await house.upstream("broken", url)
        key = await house.agent("any", ANY)
        at = await session(house, key)
        result = await ask(house, key, at, "tools/list")
        assert {tool["name"].split("__")[0] for tool in result["tools"]} == {"mail", "post"}
        assert list(result["_meta"][UNAVAILABLE]) == ["broken"]
        assert len(result["_meta"][UNAVAILABLE]["broken"]) > 10
        call = await ask(house, key, at, "tools/call", {"name": "broken__x", "arguments": {}})
        assert call["_meta"]["enterprise.agenticmail/decision"]["code"] in {"UPSTREAM_UNREACHABLE", "UPSTREAM_RESTING"}
        assert (await ask(house, key, at, "tools/call", {"name": "mail__read_mail", "arguments": {}}))[
            "isError"
        ] is False
        first, second = await house.records(2)
        assert (first.outcome, second.outcome) == ("not_sent", "ok")


async def test_a_session_is_sealed_to_its_agent_and_outlives_a_restart(tmp_path: Path) -> None:
    async with two(tmp_path) as (house, mail, _):
        first, second = await house.agent("first", ANY), await house.agent("second", ANY)
        at = await session(house, first)
        call = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "mail__read_mail", "arguments": {}},
        }
        (sealed,) = at.values()
        for stolen in (sealed, sealed[:-2] + "AA", sealed[::-1], "x", "a.b"):
            answer = await house.send("POST", "/mcp", key=second, body=call, headers={"Mcp-Session-Id": stolen})
            assert answer.status == 404, stolen
        assert (await house.send("DELETE", "/mcp", key=second, headers=at)).status == 404
        assert mail.calls == []
        missing = await house.send("POST", "/mcp", key=first, body=call)
        assert missing.status == 400
    async with House(tmp_path) as house:  # the same database and key file, and nothing in memory
        house.org = (await house.runtime.identity.of_key(first)).org
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        answer = await house.send("POST", "/mcp", key=first, body=ping, headers=at)
        assert (answer.status, answer.json["result"]) == (200, {})  # the id itself says all that is needed
        assert (await house.send("POST", "/mcp", key=second, body=ping, headers=at)).status == 404
        assert (await house.send("DELETE", "/mcp", key=first, headers=at)).status == 204


# -- a server that does everything -------------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def everything() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EVERYTHING), "--port", "0", "--until-stdin-closes",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield json.loads(await asyncio.wait_for(process.stdout.readline(), 30))["url"]
    finally:
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 60)


async def test_a_server_may_ask_the_agents_model_and_its_person_in_mid_call(tmp_path: Path) -> None:
    sampled: list[str] = []
    elicited: list[str] = []

    async def sample(context: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
        sampled.append(params.messages[0].content.text)  # type: ignore[union-attr]
        return types.CreateMessageResult(
            role="assistant", content=types.TextContent(type="text", text="forty-two"), model="m"
        )

    async def elicit(context: Any, params: Any) -> types.ElicitResult:
        elicited.append(params.message)
        return types.ElicitResult(action="accept", content={"username": "ada", "email": "ada@acme.test"})

    async with everything() as url, Counting() as mail, House(tmp_path) as house:
        await house.upstream("all", url)
        await house.upstream("mail", mail.url)
        key = await house.agent("any", ANY)
        options = {"sampling_callback": sample, "elicitation_callback": elicit}
        async with official(house, key, "/mcp", "legacy", **options) as client:
            assert client.protocol_version == "2025-11-25"
            names = [tool.name for tool in (await client.list_tools()).tools]
            assert {"all__test_sampling", "all__test_elicitation", "mail__read_mail"} <= set(names)
            answer = await client.call_tool("all__test_sampling", {"prompt": "What is it?"})
            assert "forty-two" in answer.content[0].text
            assert sampled == ["What is it?"]
            answer = await client.call_tool("all__test_elicitation", {"message": "Who are you?"})
            assert "action=accept" in answer.content[0].text
            assert "ada@acme.test" in answer.content[0].text
            assert elicited == ["Who are you?"]
            assert not (await client.call_tool("mail__read_mail", {})).is_error
        # Nothing but the calls: the stream that the client opened beside them is no call.
        assert [(r.tool, r.outcome) for r in await house.records(3)] == [
            ("all__test_sampling", "ok"), ("all__test_elicitation", "ok"), ("mail__read_mail", "ok"),
        ]  # fmt: skip


async def test_progress_and_logs_pass_while_a_call_runs(tmp_path: Path) -> None:
    heard: list[str] = []
    steps: list[float] = []

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        heard.append(str(params.data))

    async def progress(done: float, total: float | None, message: str | None) -> None:
        steps.append(done)

    async with everything() as url, House(tmp_path) as house:
        await house.upstream("all", url)
        key = await house.agent("any", ANY)
        async with official(house, key, "/mcp", "legacy", logging_callback=log) as client:
            await client.call_tool("all__test_tool_with_logging", {})
            await client.call_tool("all__test_tool_with_progress", {}, progress_callback=progress)
        assert heard == ["Tool execution started", "Tool processing data", "Tool execution completed"]
        assert steps == [0, 50, 100]


async def test_the_stateless_era_works_over_all_servers(tmp_path: Path) -> None:
    async def elicit(context: Any, params: Any) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"name": "Ada"})

    async with everything() as url, Counting() as mail, House(tmp_path) as house:
        await house.upstream("all", url)
        await house.upstream("mail", mail.url)
        key = await house.agent("any", ANY)
        async with official(house, key, "/mcp", elicitation_callback=elicit) as client:
            assert client.protocol_version == "2026-07-28"
            assert "all__test_simple_text" in {tool.name for tool in (await client.list_tools()).tools}
            text = (await client.call_tool("all__test_simple_text", {})).content[0].text
            assert text.startswith("This is a simple text")
            asked = await client.call_tool("all__test_input_required_result_elicitation", {})
            assert not asked.is_error  # input_required travelled out, the answer back in
            assert not (await client.call_tool("mail__read_mail", {})).is_error
            resource = (await client.list_resources()).resources[0]
            assert (await client.read_resource(str(resource.uri))).contents
        assert {record.outcome for record in await house.records(5)} == {"ok"}
