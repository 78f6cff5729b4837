"""`POST /tools/invoke`: OpenClaw's endpoint behind ours. Judged, on record, written anew; every trick a refusal."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from aiohttp import web

from agenticmail_enterprise.catalog.profiles import ApprovalRule, ArgumentRule, Profile, RateLimit, ToolRule
from tests.flows.house import Answer, House

INVOKE = "/tools/invoke"
CLERK = Profile(
    name="clerk", tools=ToolRule(allow=("sessions_list", "message", "automations", "web_fetch")), max_risk="critical",
    argument_rules=(ArgumentRule(name="send-only", tools=("message",), field="action", op="equals", values=("send",), required=True),),
    approval=ApprovalRule(tools=("automations",)),
)  # fmt: skip


class Claw:
    """An OpenClaw gateway as far as HTTP shows it: a token of its own, POST only, its own shape of answers."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, str], Any]] = []
        self.answer: tuple[int, Any] = (200, {"ok": True, "result": {"content": [{"type": "text", "text": "done"}]}})
        self.hang: asyncio.Event | None = None
        self.url = ""

    async def __aenter__(self) -> Claw:
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        assert request.path == INVOKE
        if request.method != "POST":
            return web.Response(status=405)
        if request.headers.get("Authorization") != "Bearer claw-token":
            return web.json_response({"ok": False, "error": {"type": "unauthorized", "message": "no"}}, status=401)
        self.seen.append((dict(request.headers), await request.json()))
        if self.hang is not None:
            await self.hang.wait()
        status, body = self.answer
        return web.json_response(body, status=status)


async def behind(house: House, claw: Claw, name: str = "openclaw") -> None:
    spec = {"kind": "openclaw", "secrets": {"Authorization": "Bearer claw-token"}}
    await house.upstream(name, claw.url, **spec)


async def invoke(house: House, key: str, body: Any, path: str = INVOKE, **headers: str) -> Answer:
    return await house.send("POST", path, key=key, body=body, headers=headers)


async def test_an_allowed_call_reaches_openclaw_with_the_gateways_token_and_is_on_record(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Claw() as claw:
        await behind(house, claw)
        key = await house.agent("clerk", CLERK)
        answer = await invoke(house, key, {"tool": "sessions_list", "args": {"limit": 5}}, Cookie="a=b")
        assert (answer.status, answer.json) == (200, claw.answer[1])
        ((headers, body),) = claw.seen
        assert body == {"tool": "sessions_list", "args": {"limit": 5}}
        assert key not in json.dumps(headers)
        assert "Cookie" not in headers
        assert headers["traceparent"].startswith("00-")
        (record,) = await house.records(1)
        assert (record.door, record.upstream, record.tool) == ("openclaw", "openclaw", "sessions_list")
        assert (record.effect, record.outcome, record.status, record.args) == ("allow", "ok", 200, '{"limit":5}')


async def test_refusals_are_openclaws_own_shape(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Claw() as claw:
        await behind(house, claw)
        key = await house.agent("clerk", CLERK)
        denied = await invoke(house, key, {"tool": "gateway"})
        held = await invoke(house, key, {"tool": "cron", "args": {"job": "x"}})
        assert (denied.status, held.status) == (403, 403)
        for answer, code, asks in ((denied, "TOOL_NOT_GRANTED", False), (held, "APPROVAL_REQUIRED", True)):
            error = answer.json["error"]
            assert answer.json["ok"] is False
            assert (error["type"], error["code"], error["requiresApproval"]) == ("tool_call_blocked", code, asks)
        assert claw.seen == []
        records = await house.records(2)
        assert [(r.tool, r.outcome) for r in records] == [("gateway", "denied"), ("automations", "held")]
        assert denied.json["error"]["decision_id"] == records[0].id


async def test_the_action_is_an_argument_that_rules_see(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Claw() as claw:
        await behind(house, claw)
        key = await house.agent("clerk", CLERK)
        assert (await invoke(house, key, {"tool": "message", "action": "delete", "args": {"id": 1}})).status == 403
        assert (await invoke(house, key, {"tool": "message", "action": "send", "args": {"to": "x"}})).status == 200
        # an action among the arguments wins in OpenClaw, and the other is not passed on at all
        assert (
            await invoke(house, key, {"name": "message", "action": "send", "args": {"action": "delete"}})
        ).status == 403
        assert (
            await invoke(house, key, {"name": "message", "action": "delete", "args": {"action": "send"}})
        ).status == 200
        assert [body for _, body in claw.seen] == [
            {"tool": "message", "args": {"to": "x"}, "action": "send"},
            {"tool": "message", "args": {"action": "send"}},
        ]


@pytest.mark.parametrize(("body", "where"), [
    ({}, "/tool"), ([], ""), ({"tool": "sessions_list", "name": "message"}, "/name"), ({"tool": " sessions_list"}, "/tool"),
    ({"tool": "Sessions_List"}, "/tool"), ({"tool": "CRON"}, "/tool"), ({"tool": "sessions_list", "args": []}, "/args"),
    ({"tool": "sessions_list", "args": "x"}, "/args"), ({"tool": "sessions_list", "dryRun": True}, "/dryRun"),
    ({"tool": "sessions_list", "Args": {}}, "/Args"), ({"tool": 7}, "/tool"), ({"tool": "sessions_list", "action": 7}, "/action"),
    ({"tool": "sess\u202eions"}, "/tool"), ({"tool": "x" * 513}, "/tool"), ({"tool": "sessions_list", "sessionKey": {}}, "/sessionKey"),
])  # fmt: skip
async def test_a_body_with_another_reading_is_refused(tmp_path: Path, body: Any, where: str) -> None:
    async with House(tmp_path) as house, Claw() as claw:
        await behind(house, claw)
        key = await house.agent("clerk", Profile(name="all", max_risk="critical", allow_unknown=True))
        answer = await invoke(house, key, body)
        assert (answer.status, answer.json["error"]["code"]) == (422, "VALIDATION_ERROR")
        assert where in {field["path"] for field in answer.json["error"]["fields"]}
        assert claw.seen == []
        (record,) = await house.records(1)
        assert (record.effect, record.code, record.door) == ("deny", "BAD_REQUEST", "openclaw")


@pytest.mark.parametrize(("raw", "headers", "status"), [
    (b'{"tool":"sessions_list","tool":"message"}', {}, 400), (b"{", {}, 400), (b'{"tool":"sessions_list"}', {"Content-Encoding": "gzip"}, 415),
    (b'{"tool":"sessions_list"}', {"Content-Type": "application/json; charset=utf-16"}, 415),
    (b'{"tool":"sessions_list"}', {"x-openclaw-message-to": "someone"}, 400), (b'{"tool":"sessions_list"}', {"X-OpenClaw-Scopes": "operator.admin"}, 400),
])  # fmt: skip
async def test_bytes_and_headers_with_another_reading_are_refused(
    tmp_path: Path, raw: bytes, headers: dict[str, str], status: int
) -> None:
    async with House(tmp_path) as house, Claw() as claw:
        await behind(house, claw)
        key = await house.agent("clerk", CLERK)
        answer = await house.send("POST", INVOKE, key=key, body=raw, headers=headers)
        assert (answer.status, answer.json["ok"]) == (status, False)
        assert claw.seen == []
        assert len(await house.records(1)) == 1


async def test_an_agent_names_its_own_openclaw_agent_only(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Claw() as claw:
        await behind(house, claw)
        plain = await house.agent("plain", CLERK)
        ops = await house.agent("ops", CLERK, metadata={"openclaw_agent": "ops"})
        call = {"tool": "sessions_list"}
        for key, target, status in (
            (plain, {"agentId": "ops"}, 403), (plain, {"sessionKey": "agent:ops:main"}, 403), (plain, {"sessionKey": "main"}, 200),
            (ops, {"agentId": "main"}, 403), (ops, {"sessionKey": "agent:main:x"}, 403), (ops, {"sessionKey": "agent:opsx:x"}, 403),
            (ops, {"sessionKey": "agent:ops:x"}, 200), (ops, {}, 200),
        ):  # fmt: skip
            assert (await invoke(house, key, {**call, **target})).status == status, target
        assert [body.get("agentId") for _, body in claw.seen] == [None, None, "ops"]


async def test_which_openclaw_is_meant(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Claw() as one, Claw() as two:
        key = await house.agent("clerk", CLERK)
        assert (await invoke(house, key, {"tool": "sessions_list"})).status == 404
        await behind(house, one, "home")
        assert (await invoke(house, key, {"tool": "sessions_list"})).status == 200
        await behind(house, two, "office")
        several = await invoke(house, key, {"tool": "sessions_list"})
        assert (several.status, "several" in several.json["error"]["message"]) == (404, True)
        assert (await invoke(house, key, {"tool": "sessions_list"}, "/openclaw/office/tools/invoke")).status == 200
        assert [len(claw.seen) for claw in (one, two)] == [1, 1]
        for path in ("/openclaw/OFFICE/tools/invoke", "/openclaw/office/tools/invoke/", "/openclaw/nobody/tools/invoke", "/openclaw/office", "/Tools/Invoke",
                     "/tools/invoke/",  "/mcp/office", "/tools/invoke?x=1"):  # fmt: skip
            assert (await invoke(house, key, {"tool": "sessions_list"}, path)).status in {400, 404}, path
        assert [len(claw.seen) for claw in (one, two)] == [1, 1]


async def test_strangers_programs_and_other_methods(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Claw() as claw:
        await behind(house, claw)
        key = await house.agent("clerk", CLERK)
        program = await house.program("calls:read")
        call = {"tool": "sessions_list"}
        nobody = await invoke(house, "", call)
        assert (nobody.status, nobody.json["error"]["type"]) == (401, "unauthorized")
        assert nobody.headers["WWW-Authenticate"]
        assert (await invoke(house, "", call, Authorization="Bearer claw-token")).status == 401
        assert (await invoke(house, program, call)).status == 403
        got = await house.send("GET", INVOKE, key=key)
        assert (got.status, got.headers["Allow"]) == (405, "POST")
        assert claw.seen == []


async def test_what_openclaw_refuses_or_fails_is_passed_on_and_recorded(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Claw() as claw:
        await behind(house, claw)
        key = await house.agent("clerk", CLERK)
        for answer in (
            (404, {"ok": False, "error": {"type": "not_found", "message": "no"}}),
            (200, {"ok": False}),
            (200, "text"),
        ):
            claw.answer = answer
            said = await invoke(house, key, {"tool": "sessions_list"})
            assert (said.status, said.json) == answer
        assert [record.outcome for record in await house.records(3)] == ["error"] * 3


async def test_an_openclaw_that_is_away(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        async with Claw() as claw:
            await behind(house, claw)
        key = await house.agent("clerk", CLERK)
        answer = await invoke(house, key, {"tool": "sessions_list"})
        assert answer.status in {502, 503}
        assert answer.json["error"]["type"] == "upstream_error"
        (record,) = await house.records(1)
        assert (record.effect, record.outcome) == ("allow", "not_sent")


async def test_rates_count_here_too(tmp_path: Path) -> None:
    limited = Profile(
        name="slow",
        tools=ToolRule(allow=("sessions_list",)),
        max_risk="critical",
        rate_limits=(RateLimit(per_minute=1),),
    )
    async with House(tmp_path) as house, Claw() as claw:
        await behind(house, claw)
        key = await house.agent("slow", limited)
        assert (await invoke(house, key, {"tool": "sessions_list"})).status == 200
        second = await invoke(house, key, {"tool": "sessions_list"})
        assert (second.status, second.json["error"]["code"]) == (429, "RATE_LIMITED")
        assert int(second.headers["Retry-After"]) > 0


async def test_a_client_that_leaves_is_recorded(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Claw() as claw:
        await behind(house, claw)
        key = await house.agent("clerk", CLERK)
        claw.hang = asyncio.Event()
        call = asyncio.create_task(invoke(house, key, {"tool": "sessions_list"}))
        while not claw.seen:
            await asyncio.sleep(0.01)
        call.cancel()
        (record,) = await house.records(1)
        assert (record.outcome, record.error) == ("cancelled", "CLIENT_LEFT")
        claw.hang.set()


async def test_an_openclaw_is_probed_when_it_is_registered(tmp_path: Path) -> None:
    async with House(tmp_path) as house, Claw() as claw:
        admin = await house.program("upstreams:write", "upstreams:read")
        spec = {
            "name": "home",
            "kind": "openclaw",
            "url": claw.url,
            "allow_private": True,
            "secrets": {"Authorization": "Bearer claw-token"},
        }
        made = await house.send("POST", "/api/gateway/upstreams", key=admin, body=spec)
        assert (made.status, made.json["data"]["listing"]["ok"]) == (201, True)
        assert "claw-token" not in made.body.decode()
        wrong = await house.send(
            "POST", "/api/gateway/upstreams", key=admin, body={**spec, "name": "two", "url": claw.url + INVOKE}
        )
        assert (wrong.status, wrong.json["details"]["fields"][0]["path"]) == (422, "/url")
