"""The demo's mail server as a real client meets it: the official SDK, over stdio and over HTTP, in both eras."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import aiohttp
import pytest
from mcp import StdioServerParameters
from mcp.client.client import Client
from mcp.shared.exceptions import MCPError

from agenticmail_enterprise.adapters.upstreams.mcp_stdio import create

MODULE = ["-m", "agenticmail_enterprise.gateway.demo.mailserver", "--folder"]
ERAS = {"auto": "2026-07-28", "2026-07-28": "2026-07-28", "legacy": "2025-11-25"}


async def all_of_it(client, folder, mode):
    """Everything the server offers, used once."""
    assert client.protocol_version == ERAS[mode]
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools) == ["list_inbox", "read_email", "search_emails", "send_email", "delete_email"]
    assert tools["delete_email"].annotations.destructive_hint is True
    assert tools["read_email"].annotations.read_only_hint is True
    assert tools["send_email"].annotations.open_world_hint is True
    listed = await client.call_tool("list_inbox", {})
    assert [mail["id"] for mail in listed.structured_content["emails"]] == ["in-0001", "in-0002", "in-0003"]
    await client.call_tool("send_email", {"to": "dana@customer.test", "subject": "Grüße", "text": "Hallo 😀\n"})
    assert (folder / "outbox" / "out-0001.eml").exists()
    refused = await client.call_tool("delete_email", {"id": "../../etc/passwd"})
    assert refused.is_error
    assert "'id' is not valid" in refused.content[0].text
    assert [str(resource.uri) for resource in (await client.list_resources()).resources] == [
        "mail://inbox",
        "mail://outbox",
    ]
    assert "in-0002" in (await client.read_resource("mail://inbox")).contents[0].text
    assert (await client.list_resource_templates()).resource_templates[0].uri_template == "mail://message/{id}"
    assert (await client.list_prompts()).prompts[0].name == "draft_reply"
    assert "lamp" in (await client.get_prompt("draft_reply", {"id": "in-0001"})).messages[0].content.text
    with pytest.raises(MCPError):
        await client.call_tool("no_such_tool", {})


@pytest.mark.parametrize("mode", ERAS)
async def test_over_stdio(folder, mode):
    parameters = StdioServerParameters(command=sys.executable, args=[*MODULE, str(folder)])
    async with Client(parameters, mode=mode) as client:
        await all_of_it(client, folder, mode)


@pytest.fixture
async def url(folder):
    process = await asyncio.create_subprocess_exec(
        sys.executable, *MODULE, str(folder), "--http", "0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    yield (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 60) == 0


@pytest.mark.parametrize("mode", ERAS)
async def test_over_http(folder, url, mode):
    async with Client(url, mode=mode) as client:
        await all_of_it(client, folder, mode)


async def test_http_refuses_what_it_should(url):
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    envelope = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list_inbox", "_meta": envelope}}
    agree = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "list_inbox"}
    async with aiohttp.ClientSession() as http:

        async def status(body, **headers):
            async with http.post(
                url, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
            ) as answer:
                return answer.status

        assert await status(ping) == 200
        assert await status({"jsonrpc": "2.0", "method": "notifications/initialized"}) == 202
        assert await status(ping, Host="evil.example") == 403
        assert await status(ping, Origin="http://evil.example") == 403
        assert await status(ping, MCP_Protocol_Version="1999-01-01") == 400
        assert await status(call, **agree) == 200
        for name, lie in {
            "MCP-Protocol-Version": "2025-11-25",
            "Mcp-Method": "tools/list",
            "Mcp-Name": "send_email",
        }.items():
            assert await status(call, **{**agree, name: lie}) == 400
            assert await status(call, **{k: v for k, v in agree.items() if k != name}) == 400
        async with http.post(url, data=b"{}", headers={"Content-Type": "text/plain"}) as answer:
            assert answer.status == 415
        async with http.post(url, data=b"{", headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 400
        async with http.get(url) as answer:
            assert answer.status == 405


async def test_behind_the_gateways_own_process_port(folder):
    upstream = create(sys.executable, [*MODULE, str(folder)], "", {}, name="mail")
    heard = asyncio.Queue()
    session = await upstream.open_session(heard.put_nowait, lambda reason: None)
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
    await session.send(json.dumps(message).encode())
    answer = json.loads(await asyncio.wait_for(heard.get(), 60))
    assert len(answer["result"]["tools"]) == 5
    await session.close()
    await upstream.close()
    assert upstream.deaths == 0


async def test_the_server_needs_neither_the_sdk_nor_the_gateway(folder):
    code = "import sys; from agenticmail_enterprise.gateway.demo import mailserver; print(*sys.modules)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env={**os.environ}
    )
    modules = set((await process.communicate())[0].decode().split())
    assert modules.isdisjoint({"mcp", "aiohttp", "asyncio", "agenticmail_enterprise.gateway.proxy"})
