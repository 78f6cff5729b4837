"""What servers tell unasked, through `/mcp`: to the official client of either era, and byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from mcp import types
from mcp.client.subscriptions import PromptsListChanged, ResourceUpdated, ToolsListChanged
from mcp.shared.exceptions import MCPError

from agenticmail_enterprise.catalog.profiles import Profile, ToolRule
from tests.flows.house import House, official
from tests.flows.servers import Telling
from tests.flows.test_aggregated_door import ANY, ask, everything, session

CLERK = Profile(
    name="clerk", tools=ToolRule(allow=("*__read_mail", "*__resource:mail://inbox", "*__resource:mail://inbox/*")),
    max_risk="critical", allow_unknown=True,
)  # fmt: skip
TOOLS_CHANGED = "notifications/tools/list_changed"
UPDATED = "notifications/resources/updated"
VISIBLE = {"name": "read_mail", "description": "Reads it better.", "inputSchema": {"type": "object"}}
HIDDEN = {"name": "burn_mail", "description": "Not for clerks.", "inputSchema": {"type": "object"}}
LONG = 30.0


async def until(holds: Callable[[], Any]) -> None:
    """Wait for something that happens elsewhere."""
    async with asyncio.timeout(LONG):
        while not holds():
            await asyncio.sleep(0.01)


async def following(subscription: Any) -> Any:
    async with asyncio.timeout(LONG):
        return await anext(subscription)


@contextlib.asynccontextmanager
async def both(tmp_path: Path) -> AsyncIterator[tuple[House, Telling, Telling]]:
    """A house with a server of each era."""
    async with Telling(modern=True) as new, Telling() as old, House(tmp_path) as house:
        for server in (new, old):
            server.resources = [{"uri": "mail://inbox", "name": "inbox"}, {"uri": "mail://secret", "name": "secret"}]
        old.resources = [{"uri": "old://box", "name": "box"}]
        await house.upstream("new", new.url)
        await house.upstream("old", old.url)
        yield house, new, old


class Raw:
    """A stream read message by message."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> Any:
        """The next message; None at the end."""
        async with asyncio.timeout(LONG):
            while line := await self.response.content.readline():
                if line.startswith(b"data:"):
                    return json.loads(line[5:])
        return None


@contextlib.asynccontextmanager
async def raw(house: House, method: str, key: str, headers: dict[str, str], body: Any = None) -> AsyncIterator[Raw]:
    sent = {"X-API-Key": key, "Accept": "application/json, text/event-stream", **headers}
    async with house.http.request(method, "/mcp", headers=sent, json=body) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"] == "text/event-stream"
        yield Raw(response)


def listen(rpc_id: Any = "L-1", **notifications: Any) -> dict[str, Any]:
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
    params = {"notifications": notifications, "_meta": meta}
    return {"jsonrpc": "2.0", "id": rpc_id, "method": "subscriptions/listen", "params": params}


MODERN = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "subscriptions/listen"}


# -- 2026-07-28 ----------------------------------------------------------------------------------------------------
async def test_the_official_client_hears_of_changes_at_servers_of_both_eras(tmp_path: Path) -> None:
    async with everything() as url, Telling() as old, House(tmp_path) as house:
        await house.upstream("all", url)
        await house.upstream("old", old.url)
        key = await house.agent("any", ANY)
        async with (
            official(house, key, "/mcp") as client,
            client.listen(tools_list_changed=True, prompts_list_changed=True, resource_subscriptions=["mail://inbox"])
            as subscription,
        ):  # fmt: skip
            assert subscription.honored.tools_list_changed
            assert subscription.honored.resource_subscriptions == ["mail://inbox"]
            assert not subscription.honored.resources_list_changed
            await client.call_tool("all__test_trigger_tool_change", {})
            assert await following(subscription) == ToolsListChanged()
            await client.call_tool("all__test_trigger_prompt_change", {})
            assert await following(subscription) == PromptsListChanged()
            old.tell(UPDATED, {"uri": "mail://inbox"})
            assert await following(subscription) == ResourceUpdated("mail://inbox")
            old.tools.append(dict(HIDDEN))
            old.tell(TOOLS_CHANGED)
            assert await following(subscription) == ToolsListChanged()
            assert "old__burn_mail" in {tool.name for tool in (await client.list_tools()).tools}
        await until(lambda: not old.streams)  # nobody listens any more: neither does the gateway


async def test_every_frame_has_the_id_of_the_request_that_listens(tmp_path: Path) -> None:
    async with both(tmp_path) as (house, new, old):
        key = await house.agent("any", ANY)
        body = listen(41, toolsListChanged=True, resourceSubscriptions=["mail://inbox", "old://box"])
        async with raw(house, "POST", key, MODERN, body) as stream:
            first = await stream.next()
            assert first["method"] == "notifications/subscriptions/acknowledged"
            assert first["params"]["notifications"] == {
                "toolsListChanged": True, "resourceSubscriptions": ["mail://inbox", "old://box"],
            }  # fmt: skip
            new.tell(UPDATED, {"uri": "mail://inbox"})
            second = await stream.next()
            old.tell(UPDATED, {"uri": "old://box"})
            third = await stream.next()
            assert [frame["params"]["uri"] for frame in (second, third)] == ["mail://inbox", "old://box"]
            stamps = [
                frame["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] for frame in (first, second, third)
            ]
            assert stamps == [41, 41, 41]
            assert all("id" not in frame for frame in (first, second, third))


async def test_an_agent_hears_only_of_what_it_may_see(tmp_path: Path) -> None:
    async with both(tmp_path) as (house, new, old):
        clerk, other = await house.agent("clerk", CLERK), await house.agent("any", ANY)
        body = listen(toolsListChanged=True, resourceSubscriptions=["mail://inbox", "mail://secret", "nowhere://x"])
        async with raw(house, "POST", clerk, MODERN, body) as narrow, raw(house, "POST", other, MODERN, body) as wide:
            said = (await narrow.next())["params"]
            assert said["notifications"] == {"toolsListChanged": True, "resourceSubscriptions": ["mail://inbox"]}
            refused = said["_meta"]["enterprise.agenticmail/refused"]
            assert set(refused) == {"mail://secret", "nowhere://x"}
            assert "mail://secret" in refused["mail://secret"]
            assert set((await wide.next())["params"]["notifications"]["resourceSubscriptions"]) == {
                "mail://inbox", "mail://secret",
            }  # fmt: skip
            new.tools.append(dict(HIDDEN))
            assert new.tell(TOOLS_CHANGED) == 1  # one stream serves both agents
            assert (await wide.next())["method"] == TOOLS_CHANGED
            new.tell(UPDATED, {"uri": "mail://secret"})
            assert (await wide.next())["params"]["uri"] == "mail://secret"
            new.tell(UPDATED, {"uri": "mail://inbox/17"})  # a part of what was subscribed to
            assert (await wide.next())["params"]["uri"] == "mail://inbox/17"
            new.tools[0] = dict(VISIBLE)
            new.tell(TOOLS_CHANGED)
            assert (await wide.next())["method"] == TOOLS_CHANGED
            # The clerk heard of the one resource and the one tool, and of nothing before.
            assert (await narrow.next())["params"]["uri"] == "mail://inbox/17"
            assert (await narrow.next())["method"] == TOOLS_CHANGED
        assert old.seen
        records = [(r.tool, r.effect) for r in await house.records(6)]
        assert sorted(records) == sorted([
            ("new__resource:mail://inbox", "allow"), ("new__resource:mail://secret", "deny"),
            ("resource:nowhere://x", "deny"), ("new__resource:mail://inbox", "allow"),
            ("new__resource:mail://secret", "allow"), ("resource:nowhere://x", "deny"),
        ])  # fmt: skip


async def test_a_server_that_dies_ends_nothing_and_its_news_are_told_when_it_is_back(tmp_path: Path) -> None:
    async with both(tmp_path) as (house, new, old):
        key = await house.agent("any", ANY)
        body = listen(toolsListChanged=True, resourceSubscriptions=["old://box", "mail://inbox"])
        async with raw(house, "POST", key, MODERN, body) as stream:
            await stream.next()
            port = old.port
            await old.__aexit__(None, None, None)
            new.tell(UPDATED, {"uri": "mail://inbox"})
            assert (await stream.next())["params"]["uri"] == "mail://inbox"
            async with raw(house, "POST", key, MODERN, listen(toolsListChanged=True)) as late:
                said = (await late.next())["params"]
                assert list(said["_meta"]["enterprise.agenticmail/unavailable"]) == ["old"]
            async with Telling(port=port) as again:
                again.resources = [{"uri": "old://box", "name": "box"}]
                again.tools = [dict(VISIBLE)]
                heard = [await stream.next(), await stream.next()]
                assert sorted(frame["method"] for frame in heard) == [UPDATED, TOOLS_CHANGED]
                await until(lambda: again.streams)
                again.tell(UPDATED, {"uri": "old://box"})
                assert (await stream.next())["params"]["uri"] == "old://box"


async def test_a_server_that_is_registered_or_removed_while_an_agent_listens_is_news(tmp_path: Path) -> None:
    async with both(tmp_path) as (house, _, _), Telling(modern=True) as third:
        key = await house.agent("any", ANY)
        async with raw(house, "POST", key, MODERN, listen(toolsListChanged=True)) as stream:
            await stream.next()
            added = await house.upstream("third", third.url)
            assert (await stream.next())["method"] == TOOLS_CHANGED
            await house.runtime.registry.delete(house.org, added)
            await house.runtime.epochs.look()
            assert (await stream.next())["method"] == TOOLS_CHANGED


async def test_nothing_is_told_to_a_key_that_was_revoked(tmp_path: Path) -> None:
    async with both(tmp_path) as (house, _, _):
        key = await house.agent("any", ANY)
        principal = await house.runtime.identity.of_key(key)
        async with raw(house, "POST", key, MODERN, listen("x", toolsListChanged=True)) as stream:
            await stream.next()
            await house.runtime.accounts.revoke(house.org, principal.key_id)
            await house.runtime.epochs.look()
            last = await stream.next()
            assert (last["id"], last["result"]["resultType"]) == ("x", "complete")
            assert await stream.next() is None


async def test_a_stop_of_the_gateway_ends_a_subscription_gracefully(tmp_path: Path) -> None:
    async with both(tmp_path) as (house, _, _):
        key = await house.agent("any", ANY)
        async with official(house, key, "/mcp") as client, client.listen(tools_list_changed=True) as subscription:
            stopping = asyncio.create_task(house.server.stop())
            with pytest.raises(StopAsyncIteration):  # not SubscriptionLost
                await following(subscription)
            await stopping
        house.server.stop = _nothing  # type: ignore[method-assign]


async def _nothing() -> None:
    return None


async def test_when_all_that_was_asked_for_is_refused_so_is_the_request(tmp_path: Path) -> None:
    async with both(tmp_path) as (house, _, _):
        key = await house.agent("clerk", CLERK)
        async with official(house, key, "/mcp") as client:
            with pytest.raises(MCPError) as refused:
                async with client.listen(resource_subscriptions=["mail://secret"]):
                    pass
            assert (refused.value.error.code, "mail://secret" in refused.value.error.message) == (-32010, True)
        assert [(r.tool, r.effect) for r in await house.records(1)] == [("new__resource:mail://secret", "deny")]


@pytest.mark.parametrize(
    "notifications",
    [
        None, [], "all", {"toolsListChanged": "yes"}, {"toolslistchanged": True}, {"resourceSubscriptions": "mail://inbox"},
        {"resourceSubscriptions": [1]}, {"resourceSubscriptions": ["mail://\u0007"]}, {"resourceSubscriptions": [""]},
        {"ResourceSubscriptions": ["mail://inbox"]}, {"resourceSubscriptions": ["a"] * 1001},
    ],
    ids=lambda value: json.dumps(value)[:40],
)  # fmt: skip
async def test_a_filter_that_cannot_be_read_is_refused(tmp_path: Path, notifications: Any) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("any", ANY)
        body = listen()
        body["params"]["notifications"] = notifications
        answer = await house.send("POST", "/mcp", key=key, body=body, headers=MODERN)
        assert (answer.status, answer.json["error"]["code"]) == (400, -32602)
        (record,) = await house.records(1)
        assert record.effect == "deny"


async def test_each_era_has_its_own_way_to_subscribe(tmp_path: Path) -> None:
    async with both(tmp_path) as (house, _, _):
        key = await house.agent("any", ANY)
        at = await session(house, key)
        assert (await ask(house, key, at, "subscriptions/listen", {"notifications": {}}))["code"] == -32601
        body = {**listen(), "method": "resources/subscribe"}
        body["params"] = {"uri": "mail://inbox", "_meta": body["params"]["_meta"]}
        headers = {**MODERN, "Mcp-Method": "resources/subscribe"}
        answer = await house.send("POST", "/mcp", key=key, body=body, headers=headers)
        assert (answer.status, answer.json["error"]["code"]) == (404, -32601)


# -- the handshake era -----------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_the_official_clients_session_has_a_stream_that_is_no_incident(tmp_path: Path) -> None:
    heard: asyncio.Queue[Any] = asyncio.Queue()

    async def handler(message: Any) -> None:
        if not isinstance(message, Exception):
            heard.put_nowait(message)

    async with both(tmp_path) as (house, new, old):
        key = await house.agent("any", ANY)
        async with official(house, key, "/mcp", "legacy", message_handler=handler) as client:
            await until(lambda: new.streams and old.streams)
            await client.list_tools()
            old.tools.append(dict(HIDDEN))
            old.tell(TOOLS_CHANGED)
            async with asyncio.timeout(LONG):
                assert isinstance(await heard.get(), types.ToolListChangedNotification)
            await client.subscribe_resource("mail://inbox")
            await client.subscribe_resource("old://box")
            await until(lambda: {"old://box"} in old.watched.values())
            new.tell(UPDATED, {"uri": "mail://inbox"})
            async with asyncio.timeout(LONG):
                assert (await heard.get()).params.uri == "mail://inbox"
            old.tell(UPDATED, {"uri": "old://box"})
            async with asyncio.timeout(LONG):
                assert (await heard.get()).params.uri == "old://box"
            await client.unsubscribe_resource("old://box")
            await until(lambda: {"old://box"} not in old.watched.values())
        records = [(r.tool, r.outcome) for r in await house.records(2)]
        assert records == [("new__resource:mail://inbox", "ok"), ("old__resource:old://box", "ok")]
        await until(lambda: not new.streams and not old.streams)


async def test_servers_log_and_ask_outside_of_calls(tmp_path: Path) -> None:
    logged: asyncio.Queue[str] = asyncio.Queue()

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        logged.put_nowait(str(params.data))

    async def elicit(context: Any, params: Any) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"said": params.message})

    async with both(tmp_path) as (house, _, old):
        key = await house.agent("any", ANY)
        options = {"logging_callback": log, "elicitation_callback": elicit}
        async with official(house, key, "/mcp", "legacy", **options) as client:
            await until(lambda: old.streams)
            assert not (await client.call_tool("old__read_mail", {})).is_error
            # The gateway's own session, and the one that it has for this agent.
            sessions = {owner for owner, _ in old.streams}
            assert len(sessions) == 2
            (_, queue) = old.streams[-1]
            log_message = {"level": "info", "data": "still working"}
            queue.put_nowait({"jsonrpc": "2.0", "method": "notifications/message", "params": log_message})
            async with asyncio.timeout(LONG):
                assert await logged.get() == "still working"
            question = {"mode": "form", "message": "Go on?", "requestedSchema": {"type": "object", "properties": {}}}
            queue.put_nowait({"jsonrpc": "2.0", "id": "q-1", "method": "elicitation/create", "params": question})
            async with asyncio.timeout(LONG):
                answer = await old.answers.get()
            assert (answer["id"], answer["result"]["action"]) == ("q-1", "accept")
            assert answer["result"]["content"] == {"said": "Go on?"}
        assert [r.tool for r in await house.records(1)] == ["old__read_mail"]


async def test_a_session_has_one_stream_and_its_end_ends_it(tmp_path: Path) -> None:
    async with both(tmp_path) as (house, new, _):
        key, thief = await house.agent("any", ANY), await house.agent("thief", ANY)
        at = await session(house, key)
        assert (await house.send("GET", "/mcp", key=thief, headers=at)).status == 404
        async with raw(house, "GET", key, at) as first:
            await until(lambda: new.streams)
            async with raw(house, "GET", key, at) as second:
                assert await first.next() is None  # the newer one takes over
                await ask(house, key, at, "tools/list")
                new.tools.append(dict(HIDDEN))
                await until(lambda: new.tell(TOOLS_CHANGED))
                frame = await second.next()
                assert frame == {"jsonrpc": "2.0", "method": TOOLS_CHANGED}
                assert (await house.send("DELETE", "/mcp", key=key, headers=at)).status == 204
                assert await second.next() is None
        (record,) = await house.records(1)  # the thief's
        assert record.code == "NOT_FOUND"


async def test_looking_for_a_stream_where_there_is_none_is_answered_and_no_incident(tmp_path: Path) -> None:
    async with both(tmp_path) as (house, _, _):
        key = await house.agent("any", ANY)
        for headers in ({}, {"MCP-Protocol-Version": "2026-07-28"}, {"MCP-Protocol-Version": "2025-11-25"}):
            answer = await house.send("GET", "/mcp", key=key, headers=headers)
            assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert (await house.send("GET", "/mcp", key="ek_nobody")).status == 401
        assert (await house.call(key, "/mcp", "x")).status == 400
        assert len(await house.nobodys(1)) == 1
        at = await session(house, key)
        assert (await house.send("GET", "/mcp", key=key, headers=at, body=listen())).status == 400
        assert [r.code for r in await house.records(2)] == ["BAD_REQUEST", "BAD_REQUEST"]


async def test_a_subscription_that_the_server_does_not_offer_is_refused(tmp_path: Path) -> None:
    from tests.flows.servers import Counting

    async with Counting() as plain, House(tmp_path) as house:
        await house.upstream("mail", plain.url)
        key, clerk = await house.agent("any", ANY), await house.agent("clerk", CLERK)
        at = await session(house, key)
        refused = await ask(house, key, at, "resources/subscribe", {"uri": "mail://inbox"})
        assert refused["code"] == -32601
        assert "mail" in refused["message"]
        at = await session(house, clerk)
        assert (await ask(house, clerk, at, "resources/subscribe", {"uri": "mail://secret"}))["code"] == -32010


async def test_open_streams_are_bounded_by_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agenticmail_enterprise.gateway.doors.aggregate_streams.MAX_PER_AGENT", 1)
    async with both(tmp_path) as (house, _, _):
        key, other = await house.agent("any", ANY), await house.agent("other", ANY)
        async with raw(house, "POST", key, MODERN, listen(toolsListChanged=True)) as stream:
            await stream.next()
            answer = await house.send("POST", "/mcp", key=key, body=listen(toolsListChanged=True), headers=MODERN)
            assert (answer.status, answer.json["code"]) == (429, "RATE_LIMITED")
            async with raw(house, "POST", other, MODERN, listen(toolsListChanged=True)) as theirs:
                await theirs.next()


# -- conversations with servers ------------------------------------------------------------------------------------
def stateless_call(tool: str) -> tuple[dict[str, Any], dict[str, str]]:
    body = listen(3)
    body["method"] = "tools/call"
    body["params"] = {"name": tool, "arguments": {}, "_meta": body["params"]["_meta"]}
    return body, {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": tool}


async def test_requests_that_come_together_open_one_session_with_a_server(tmp_path: Path) -> None:
    async with both(tmp_path) as (house, _, old):
        key = await house.agent("any", ANY)
        at = await session(house, key)
        answers = await asyncio.gather(
            *(house.call(key, "/mcp", "old__read_mail", {"n": n}, headers=at) for n in range(8))
        )
        assert all(answer.json["result"]["isError"] is False for answer in answers)
        methods = [message["method"] for _, message in old.seen]
        assert (methods.count("initialize"), methods.count("tools/call")) == (1, 8)


async def test_a_session_that_a_server_wanted_for_a_stateless_request_ends_with_it(tmp_path: Path) -> None:
    async with both(tmp_path) as (house, _, old):
        key = await house.agent("any", ANY)
        body, headers = stateless_call("old__read_mail")
        for _ in range(3):
            answer = await house.send("POST", "/mcp", key=key, body=body, headers=headers)
            assert answer.json["result"]["isError"] is False
        await until(lambda: len(old.ended) == 3)
        assert set(old.ended) == {"session-1", "session-2", "session-3"}


async def test_an_agents_stateless_requests_share_its_child_at_either_door(tmp_path: Path) -> None:
    import sys

    from tests.flows.test_stdio_door import NOSY

    async with House(tmp_path) as house:
        await house.upstream("mail", kind="mcp_stdio", command=(sys.executable, "-c", NOSY))
        first, second = await house.agent("first", ANY), await house.agent("second", ANY)

        async def look(key: str, path: str, tool: str) -> Any:
            body, headers = stateless_call(tool)
            answer = await house.send("POST", path, key=key, body=body, headers=headers)
            return json.loads(answer.json["result"]["content"][0]["text"])

        mine = [await look(first, "/mcp", "mail__look") for _ in range(3)] + [await look(first, "/mcp/mail", "look")]
        theirs = await look(second, "/mcp", "mail__look")
        assert [said["seen"] for said in mine] == [1, 2, 3, 4]
        assert len({said["pid"] for said in mine}) == 1
        assert theirs["pid"] != mine[0]["pid"]


async def test_a_server_with_few_connections_keeps_them_for_calls(tmp_path: Path) -> None:
    async with Telling() as old, House(tmp_path) as house:
        await house.upstream("old", old.url, max_connections=1)
        key = await house.agent("any", ANY)
        async with raw(house, "POST", key, MODERN, listen(toolsListChanged=True)) as stream:
            said = (await stream.next())["params"]["_meta"]["enterprise.agenticmail/unavailable"]
            assert "max_connections" in said["old"]
            at = await session(house, key)
            answer = await house.call(key, "/mcp", "old__read_mail", {}, headers=at)
            assert answer.json["result"]["isError"] is False
