"""`create_enterprise_hook`: the hook for agents in Python, sync and async, in front of a real gateway and of bad ones."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agenticmail_enterprise import create_enterprise_hook
from agenticmail_enterprise.catalog.errors import ValidationFailed
from agenticmail_enterprise.catalog.profiles import ApprovalRule, Profile, ToolRule
from tests.flows.desk import Desk
from tests.flows.house import House

SHELL = Profile(
    name="shell",
    tools=ToolRule(allow=("exec", "write")),
    max_risk="critical",
    approval=ApprovalRule(tools=("write",)),
)
KEY = "ek_" + "a" * 43


def hook_for(house: House, key: str, agent: str = "clerk", **options: Any) -> Any:
    return create_enterprise_hook(f"http://127.0.0.1:{house.server.port}/", key, agent, **options)


async def test_before_and_after_async(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        hook = hook_for(house, await house.agent("clerk", SHELL)).aio
        allowed = await hook.before_tool_call("exec", {"command": "ls"})
        assert (allowed["allowed"], allowed["requires_approval"], allowed["code"]) == (True, False, "ALLOWED")
        assert await hook.after_tool_call("exec", "a b", 12.5, error=ValueError("exit status 2")) is True
        assert await hook.after_tool_call("exec") is False  # there is no open call any more
        denied = await hook.before_tool_call("rm")
        assert (denied["allowed"], denied["requires_approval"], denied["reason"] != "") == (False, False, True)
        held = await hook.before_tool_call("write", {"path": "x"})
        assert (held["allowed"], held["requires_approval"]) == (False, True)
        ran, *_ = records = await house.records(3)
        assert [record.outcome for record in records] == ["error", "denied", "held"]
        assert (ran.id, ran.error, ran.duration_us) == (allowed["decision_id"], "exit status 2", 12_500)


async def test_before_and_after_sync(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        hook = hook_for(house, await house.agent("clerk", SHELL))

        def agent() -> list[bool]:
            one, two = hook.before_tool_call("exec", {"n": 1}), hook.before_tool_call("exec", {"n": 2})
            assert one["allowed"]
            assert two["allowed"]
            return [
                hook.after_tool_call("exec", decision_id=one["decision_id"]),
                hook.after_tool_call("exec", error="two failed"),
            ]

        assert await asyncio.to_thread(agent) == [True, True]
        outcomes = {record.args: record.outcome for record in await house.records(2)}
        assert outcomes == {'{"n":1}': "ok", '{"n":2}': "error"}


async def test_a_denial_is_remembered_for_a_while_and_an_allowed_call_never(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        hook = hook_for(house, await house.agent("clerk", SHELL), cache_seconds=60)
        now = [0.0]
        hook._clock = lambda: now[0]
        for cached in (False, True, True):
            assert (await hook.aio.before_tool_call("rm", {"b": 1, "a": 2}))["cached"] is cached
        assert (await hook.aio.before_tool_call("rm", {"a": 2, "b": 1}))["cached"] is True
        assert (await hook.aio.before_tool_call("rm", {"a": 3}))["cached"] is False
        now[0] = 61.0
        assert (await hook.aio.before_tool_call("rm", {"b": 1, "a": 2}))["cached"] is False
        for _ in range(2):
            assert (await hook.aio.before_tool_call("exec", {}))["cached"] is False
            assert (await hook.aio.before_tool_call("write", {}))["cached"] is False
        await hook.aio.after_tool_call("exec")
        await hook.aio.after_tool_call("exec")
        assert len(await house.records(7)) == 7


async def test_a_hook_may_wait_for_an_approval_and_runs_what_was_approved(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        desk = house.runtime.holds = Desk()
        hook = hook_for(house, await house.agent("clerk", SHELL), approval_wait=300)
        asking = asyncio.create_task(hook.aio.before_tool_call("write", {"path": "x"}))
        desk.approve(await desk.next(), b'{"path":"y"}')
        decision = await asking
        assert (decision["allowed"], decision["args"]) == (True, {"path": "y"})
        assert await hook.aio.after_tool_call("write", tool_call_id=decision["tool_call_id"]) is True
        asking = asyncio.create_task(hook.aio.before_tool_call("write", {"path": "z"}))
        desk.reject(await desk.next(), "No.")
        assert (await asking)["reason"] == "No."
        assert [record.outcome for record in await house.records(4)] == ["held", "ok", "held", "denied"]


async def test_it_is_closed_without_a_gateway_unless_told_otherwise(tmp_path: Path) -> None:
    closed = create_enterprise_hook("http://127.0.0.1:1", KEY, "clerk")
    decision = closed.before_tool_call("exec", {})
    assert (decision["allowed"], decision["code"]) == (False, "GATEWAY_UNREACHABLE")
    assert "could not be asked" in decision["reason"]
    opened = create_enterprise_hook("http://127.0.0.1:1", KEY, "clerk", fail_open=True)
    assert opened.before_tool_call("exec", {})["allowed"] is True
    assert opened.after_tool_call("exec") is False


async def test_a_gateway_that_refuses_the_question_opens_nothing(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        await house.agent("other", SHELL)
        for secret, agent in ((KEY, "clerk"), (key, "other")):
            hook = hook_for(house, secret, agent, fail_open=True)
            assert (await hook.aio.before_tool_call("exec", {}))["allowed"] is False
        assert (await hook_for(house, key, fail_open=True).aio.before_tool_call("", {}))["allowed"] is False


@contextmanager
def liar(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """Something that answers every POST with the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


GOOD = {"allowed": True, "requires_approval": False, "reason": "", "code": "ALLOWED", "decision_id": "dec_1"}


@pytest.mark.parametrize(("status", "body", "open_too"), [
    (200, b"", False), (200, b"null", False), (200, b'{"data":{}}', False), (200, b"\xff", False), (302, b"", False), (404, b"", False), (500, b"<html>", True),
    (200, json.dumps({"data": {**GOOD, "allowed": "yes"}}).encode(), False), (200, json.dumps({"data": {**GOOD, "args": []}}).encode(), False),
])  # fmt: skip
def test_what_is_no_answer_allows_nothing(status: int, body: bytes, open_too: bool) -> None:
    with liar(status, body, Location="http://127.0.0.1:1/") as url:
        assert create_enterprise_hook(url, KEY, "clerk").before_tool_call("exec", {})["allowed"] is False
        assert (
            create_enterprise_hook(url, KEY, "clerk", fail_open=True).before_tool_call("exec", {})["allowed"]
            is open_too
        )


def test_what_is_wrong_is_said_at_once_and_the_key_is_never_shown() -> None:
    with pytest.raises(ValidationFailed) as caught:
        create_enterprise_hook("ftp://x", "secret", " ", timeout=0, approval_wait=601)
    paths = [field["path"] for field in caught.value.details["fields"]]
    assert paths == ["/api_url", "/api_key", "/agent_id", "/timeout", "/approval_wait"]
    for url in ("http://", "http://u:p@x", "http://x?y", "http://x:99999"):
        with pytest.raises(ValidationFailed):
            create_enterprise_hook(url, KEY, "clerk")
    hook = create_enterprise_hook("http://x", KEY, "clerk")
    assert KEY not in repr(hook)
    with pytest.raises(TypeError):
        hook.before_tool_call("exec", {"x": object()})
