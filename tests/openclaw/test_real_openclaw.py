"""A real OpenClaw with our plugin in front of a real gateway: blocked, recorded, parked and approved, unwrapped."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from agenticmail_enterprise.catalog.profiles import ApprovalRule, ArgumentRule, Profile, ToolRule
from agenticmail_enterprise.catalog.records import CallRecord
from tests.flows.desk import Desk
from tests.flows.house import House
from tests.flows.servers import Counting

from . import real

pytestmark = pytest.mark.slow

CLERK = Profile(
    name="clerk", tools=ToolRule(allow=("exec", "read", "write", "sessions_list", "mail__*")), max_risk="critical",
    argument_rules=(ArgumentRule(name="echo-only", tools=("exec",), field="command", op="command_in", values=("echo", "ls")),),
    approval=ApprovalRule(tools=("write",)),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _openclaw() -> None:
    try:
        real.find()
    except real.Unavailable as reason:
        pytest.skip(f"OpenClaw cannot be had: {reason}")


def config(house: House, key: str, **more: Any) -> dict[str, Any]:
    return {"apiUrl": f"http://127.0.0.1:{house.server.port}", "apiKey": key, **more}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def facts(record: CallRecord) -> tuple[str, str, str]:
    return record.tool, record.effect, record.outcome


async def test_calls_are_judged_recorded_and_blocked(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", CLERK)
        steps = [("exec", {"command": "echo governed"})], [("exec", {"command": "rm -rf x"})], "done"
        async with real.Model(*steps) as model:
            await real.OpenClaw(tmp_path, model, config(house, key)).turn("go")
        allowed, denied = model.results()
        assert "governed" in allowed
        assert "echo-only" in denied
        assert "decision dec_" in denied
        records = await house.records(2)
        assert [facts(record) for record in records] == [("exec", "allow", "ok"), ("exec", "deny", "denied")]
        assert records[0].args == '{"command":"echo governed"}'
        assert "hook:openclaw" in records[0].flags
        assert any(flag.startswith("run:") for flag in records[0].flags)
        assert "session:story" in records[0].flags
        (hook,) = (await house.send("GET", "/api/engine/hooks", key=await house.program("agents:read"))).json["data"]
        assert (hook["state"], hook["unchecked"], hook["changed"]) == ("alive", 0, 0)
        assert hook["runtime"].startswith("openclaw")


async def test_tool_search_is_judged_by_the_call_inside_and_once(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", CLERK)
        inside = [("tool_call", {"id": "openclaw:core:sessions_list", "args": {}})]
        outside = [("tool_call", {"id": "agents_list", "args": {}})]
        async with real.Model(inside, outside, "done") as model:
            await real.OpenClaw(tmp_path, model, config(house, key)).turn("go")
        assert "sessions_list" in model.results()[0]
        assert "may not call agents_list" in model.results()[1]
        records = await house.records(2)
        assert [facts(record) for record in records] == [
            ("sessions_list", "allow", "ok"),
            ("agents_list", "deny", "denied"),
        ]


async def test_a_held_call_is_parked_until_it_is_approved(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        desk = house.runtime.holds = Desk()
        key = await house.agent("clerk", CLERK)
        async with real.Model([("write", {"path": "note.txt", "content": "held"})], "done") as model:
            claw = real.OpenClaw(tmp_path, model, config(house, key))
            turn = asyncio.create_task(claw.turn("go"))
            approval = await asyncio.wait_for(desk.next(), real.TURN_SECONDS)
            assert not (claw.workspace / "note.txt").exists()
            desk.approve(approval)
            await turn
        assert (claw.workspace / "note.txt").read_text() == "held"
        held, ran = await house.records(2)
        assert facts(held) == ("write", "hold", "held")
        assert facts(ran) == ("write", "allow", "ok")
        assert ran.rule == f"approval:{approval}"


async def test_without_a_gateway_nothing_runs(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", CLERK)
        settings = config(house, key)
    async with real.Model([("write", {"path": "note.txt", "content": "x"})], "done") as model:
        claw = real.OpenClaw(tmp_path, model, settings)
        await claw.turn("go")
    assert "could not be asked" in model.results()[0]
    assert not (claw.workspace / "note.txt").exists()


async def test_a_plugin_that_is_badly_configured_blocks(tmp_path: Path) -> None:
    async with real.Model([("exec", {"command": "touch made"})], "done") as model:
        claw = real.OpenClaw(tmp_path, model, {"apiUrl": "http://127.0.0.1:1", "apiKeyFile": "/nowhere/key"})
        await claw.turn("go")
    assert "the plugin cannot work" in model.results()[0]
    assert not (claw.workspace / "made").exists()


async def test_through_the_mcp_url_a_call_is_judged_once(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Counting() as upstream:
        await house.upstream("mail", upstream.url)
        key = await house.agent("clerk", CLERK)
        server = {
            "url": f"http://127.0.0.1:{house.server.port}/mcp/mail", "transport": "streamable-http",
            "headers": {"X-API-Key": key},
        }  # fmt: skip
        steps = [("tool_call", {"id": "office__read_mail", "args": {"id": 7}})], "done"
        async with real.Model(*steps) as model:
            claw = real.OpenClaw(tmp_path, model, config(house, key), mcp={"servers": {"office": server}})
            await claw.turn("go")
        assert len(upstream.calls) == 1, model.results()
        records = await house.records(1)
        assert [(record.door, *facts(record)) for record in records] == [("mcp", "mail__read_mail", "allow", "ok")]


async def test_in_code_mode_the_program_and_each_of_its_calls_are_judged(tmp_path: Path) -> None:
    coder = Profile(name="coder", tools=ToolRule(allow=("code_execution", "sessions_list")), max_risk="critical")
    code = (
        "const seen = [];"
        " try { await sessions_list({}); seen.push('it ran'); } catch (error) { seen.push(error.message); }"
        " try { await agents_list({}); seen.push('it ran'); } catch (error) { seen.push(error.message); }"
        " return seen;"
    )
    async with House(tmp_path) as house:
        key = await house.agent("coder", coder)
        async with real.Model([("exec", {"code": code})], "done") as model:
            claw = real.OpenClaw(tmp_path, model, config(house, key), tools={"codeMode": {"enabled": True}})
            await claw.turn("go")
        assert "it ran" in model.results()[0]
        assert "may not call agents_list" in model.results()[0]
        records = await house.records(3)
        assert {facts(record) for record in records} == {
            ("code_execution", "allow", "ok"),
            ("sessions_list", "allow", "ok"),
            ("agents_list", "deny", "denied"),
        }


async def test_its_tools_invoke_is_governed_by_the_gateway_in_front_and_by_the_plugin(tmp_path: Path) -> None:
    async with House(tmp_path) as house, real.Model("unused") as model:
        key = await house.agent("clerk", CLERK)
        port = free_port()
        claw = real.OpenClaw(
            tmp_path, model, config(house, key),
            gateway={"mode": "local", "bind": "loopback", "port": port, "auth": {"mode": "token", "token": "claw-token"}},
        )  # fmt: skip
        process = await claw.start("gateway", "run", "--port", str(port))
        try:
            await house.upstream(
                "openclaw", f"http://127.0.0.1:{port}", kind="openclaw", secrets={"Authorization": "Bearer claw-token"}
            )
            admin = await house.program("upstreams:read", "upstreams:write")
            (server,) = (await house.send("GET", "/api/gateway/upstreams", key=admin)).json["data"]
            async with asyncio.timeout(real.TURN_SECONDS):
                while True:
                    probed = await house.send("POST", f"/api/gateway/upstreams/{server['id']}/refresh", key=admin)
                    if probed.json["data"]["ok"]:
                        break
                    assert process.returncode is None, (await process.communicate())[0].decode()[-2000:]
                    await asyncio.sleep(1)
            allowed = await house.send("POST", "/tools/invoke", key=key, body={"tool": "sessions_list", "args": {}})
            assert (allowed.status, allowed.json["ok"]) == (200, True), allowed.body
            denied = await house.send("POST", "/tools/invoke", key=key, body={"tool": "agents_list", "args": {}})
            assert (denied.status, denied.json["error"]["code"]) == (403, "TOOL_NOT_GRANTED")
            # The plugin asked as well, and its question stays open: OpenClaw tells no plugin how such a call ended.
            records = [(r.door, r.tool, r.effect) for r in await house.records(2)]
            assert records == [("openclaw", "sessions_list", "allow"), ("openclaw", "agents_list", "deny")]
            assert len(house.runtime.checks._open) == 1
        finally:
            process.terminate()
            await process.communicate()
        hooks = (await house.send("GET", "/api/engine/hooks", key=await house.program("agents:read"))).json["data"]
        assert hooks[0]["state"] == "stopped"
