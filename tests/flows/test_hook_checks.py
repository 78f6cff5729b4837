"""What a hook needs of the checks door: its own ids, wrapped calls, and waiting for an approval."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agenticmail_enterprise.catalog.profiles import ApprovalRule, ArgumentRule, Profile, ToolRule
from agenticmail_enterprise.gateway.accounts import AgentChange
from tests.flows.desk import Desk
from tests.flows.house import Answer, House

CHECK, REPORT = "/api/engine/check-permission", "/api/engine/tool-calls"
SHELL = Profile(
    name="shell", tools=ToolRule(allow=("exec", "read", "write", "sessions_list", "code_execution")), max_risk="critical",
    argument_rules=(ArgumentRule(name="home-only", tools=("write",), field="path", op="path_within", values=("/home/agent",), required=True),),
    approval=ApprovalRule(tools=("write",)),
)  # fmt: skip
NOTE = {"path": "/home/agent/note", "content": "x"}


async def ask(house: House, key: str, tool: str, args: dict[str, Any], call: str = "call_1", **more: Any) -> Answer:
    body = {"tool": tool, "args": args, "tool_call_id": call, "run_id": "run_1", "session_id": "s 1", **more}
    return await house.send("POST", CHECK, key=key, body=body)


async def said(house: House, key: str, tool: str, args: dict[str, Any], call: str = "call_1", **more: Any) -> Any:
    answer = await ask(house, key, tool, args, call, **more)
    assert answer.status == 200, answer.body
    return answer.json["data"]


async def report(house: House, key: str, **facts: Any) -> Answer:
    return await house.send("POST", REPORT, key=key, body=facts)


async def test_a_report_by_tool_call_id_finds_its_decision_and_the_record_names_run_and_session(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        other = await house.agent("other", SHELL)
        first = await said(house, key, "exec", {"command": "ls"}, runtime="openclaw")
        assert (await report(house, other, tool_call_id="call_1", run_id="run_1")).status == 404
        assert (await report(house, key, tool_call_id="call_1", run_id="run_2")).status == 404
        done = await report(house, key, tool_call_id="call_1", run_id="run_1", outcome="error", args_changed=True)
        assert done.status == 200
        assert (await report(house, key, decision_id=first["decision_id"])).status == 404
        record = next(record for record in await house.records(4) if record.tool == "exec")
        assert (record.outcome, record.request_id) == ("error", "call_1")
        assert record.flags == ("hook:openclaw", "run:run_1", "session:s?1", "args-changed")


async def test_the_same_id_again_is_another_call(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        first = await said(house, key, "exec", {"command": "ls"})
        second = await said(house, key, "exec", {"command": "ls"})
        assert first["decision_id"] != second["decision_id"]
        for one in (first, second):
            assert (await report(house, key, decision_id=one["decision_id"])).status == 200
        assert len(await house.records(2)) == 2


@pytest.mark.parametrize(
    ("tool", "args", "kind", "judged", "allowed"),
    [
        ("tool_call", {"id": "sessions_list", "args": {}}, "", "sessions_list", True),
        ("tool_call", {"id": "openclaw:core:sessions_list", "args": {}}, "", "sessions_list", True),
        ("tool_call", {"id": "openclaw:core:gateway", "args": {}}, "", "gateway", False),
        ("tool_call", {"id": "mcp:mail:mail__send", "args": {}}, "", "mail__send", False),
        ("tool_call", {"id": " exec ", "command": "ls"}, "", "exec", True),
        ("tool_search_code", {"code": "1"}, "", "code_execution", True),
        ("exec", {"code": "1"}, "code_mode_exec", "code_execution", True),
        ("tool_search", {"query": "x"}, "", "tool_search", True),
        ("wait", {"id": 1}, "", "wait", True),
    ],
)
async def test_wrapped_calls_are_judged_by_what_is_inside(
    tmp_path: Path, tool: str, args: dict[str, Any], kind: str, judged: str, allowed: bool
) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        answer = await said(house, key, tool, args, runtime="openclaw", tool_kind=kind)
        assert (answer["tool"], answer["allowed"]) == (judged, allowed)
        if allowed:
            assert (await report(house, key, tool_call_id="call_1", run_id="run_1")).status == 200
        (record,) = await house.records(1)
        assert (record.tool, record.effect) == (judged, "allow" if allowed else "deny")


async def test_wrappers_mean_nothing_outside_openclaw_and_carry_nobody_who_may_not_work(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        assert (await said(house, key, "tool_call", {"id": "exec"}))["code"] == "TOOL_UNKNOWN"
        assert (await said(house, key, "wait", {}))["code"] == "TOOL_UNKNOWN"
        idle = await house.agent("idle")
        carried = await ask(house, idle, "tool_search", {"query": "x"}, runtime="openclaw")
        assert carried.status == 403
        for args in ({}, {"id": ""}, {"id": 7}, {"id": "exec", "args": []}):
            assert (await ask(house, key, "tool_call", args, runtime="openclaw")).status == 422


async def test_the_call_inside_a_wrapper_is_not_judged_twice_and_only_once_spared(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        outer = await said(
            house, key, "tool_call", {"id": "exec", "args": {"command": "ls"}}, "outer", runtime="openclaw"
        )
        assert outer["wrapped"] is True
        elsewhere = await said(house, key, "exec", {"command": "ls"}, "i0", runtime="openclaw", run_id="run_2")
        changed = await said(house, key, "exec", {"command": "ls -l"}, "i1", runtime="openclaw")
        inner = await said(house, key, "exec", {"command": "ls"}, "i2", runtime="openclaw")
        again = await said(house, key, "exec", {"command": "ls"}, "i3", runtime="openclaw")
        ids = [one["decision_id"] for one in (outer, elsewhere, changed, inner, again)]
        assert ids[3] == ids[0]
        assert len(set(ids)) == 4
        assert (await report(house, key, tool_call_id="i2", run_id="run_1")).status == 200
        (record,) = await house.records(1)
        assert (record.id, record.tool, record.args) == (ids[0], "exec", '{"command":"ls"}')


async def test_what_a_wrapper_left_unused_dies_with_its_report(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        outer = await said(house, key, "tool_call", {"id": "exec", "args": {}}, "outer", runtime="openclaw")
        assert (await report(house, key, tool_call_id="outer", run_id="run_1")).status == 200
        later = await said(house, key, "exec", {}, "inner", runtime="openclaw")
        assert later["decision_id"] != outer["decision_id"]


# -- waiting for an approval ---------------------------------------------------------------------------------------
async def test_without_an_engine_a_held_call_is_refused_at_once(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.runtime.holds = None
        key = await house.agent("clerk", SHELL)
        held = await said(house, key, "write", NOTE, wait=600)
        assert (held["allowed"], held["requires_approval"], "approval_id" in held) == (False, True, False)
        (record,) = await house.records(1)
        assert record.outcome == "held"


async def test_a_parked_call_is_approved_while_its_hook_waits(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        desk = house.runtime.holds = Desk()
        key = await house.agent("clerk", SHELL)
        asking = asyncio.create_task(said(house, key, "write", NOTE, wait=600))
        approval = await desk.next()
        await house.records(1)  # the hold is on record before anybody decides
        desk.approve(approval)
        answer = await asking
        assert (answer["allowed"], answer["requires_approval"], "args" in answer) == (True, False, False)
        assert (await report(house, key, tool_call_id="call_1", run_id="run_1")).status == 200
        held, ran = await house.records(2)
        assert (held.effect, held.outcome, held.id != ran.id) == ("hold", "held", True)
        assert (ran.effect, ran.outcome, ran.rule, "approved" in ran.flags) == (
            "allow",
            "ok",
            f"approval:{approval}",
            True,
        )
        assert desk.claims == [approval]


async def test_asked_in_rounds_it_is_one_hold_and_one_approval(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        desk = house.runtime.holds = Desk()
        key = await house.agent("clerk", SHELL)
        rounds = [await said(house, key, "write", NOTE, wait=0) for _ in range(3)]
        assert all(one["pending"] and one["requires_approval"] and not one["allowed"] for one in rounds)
        assert len({one["approval_id"] for one in rounds}) == len({one["decision_id"] for one in rounds}) == 1
        desk.approve(rounds[0]["approval_id"])
        answer = await said(house, key, "write", NOTE, wait=0)
        assert answer["allowed"] is True
        assert len(desk.calls) == 1
        # used up: the same call once more is a new hold
        again = await said(house, key, "write", NOTE, "call_2", wait=0)
        assert (again["allowed"], again["approval_id"]) == (False, "apr_2")


async def test_other_arguments_are_not_what_was_approved(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        desk = house.runtime.holds = Desk()
        key = await house.agent("clerk", SHELL)
        first = await said(house, key, "write", NOTE, wait=0)
        desk.approve(first["approval_id"])
        other = await said(house, key, "write", {**NOTE, "content": "y"}, wait=0)
        assert (other["allowed"], other["pending"]) == (False, True)
        stranger = await house.agent("stranger", SHELL)
        assert (await said(house, stranger, "write", NOTE, wait=0))["allowed"] is False


async def test_a_rejection_reaches_the_agent_and_so_does_the_end_of_waiting(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        desk = house.runtime.holds = Desk()
        key = await house.agent("clerk", SHELL)
        for number, decide in enumerate((lambda one: desk.reject(one, "Not on a Sunday."), desk.expire)):
            args = {**NOTE, "content": str(number)}
            asking = asyncio.create_task(said(house, key, "write", args, f"call_{number}", wait=600))
            decide(await desk.next())
            answer = await asking
            assert (answer["allowed"], answer["requires_approval"]) == (False, False)
            assert ("Sunday" in answer["reason"]) == (number == 0)
        assert [record.outcome for record in await house.records(4)] == ["held", "denied", "held", "denied"]


async def test_edited_arguments_come_back_and_are_judged_again(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        desk = house.runtime.holds = Desk()
        key = await house.agent("clerk", SHELL)
        first = await said(house, key, "write", NOTE, wait=0)
        desk.approve(first["approval_id"], b'{"path":"/home/agent/other","content":"z"}')
        answer = await said(house, key, "write", NOTE, wait=0)
        assert (answer["allowed"], answer["args"]) == (True, {"path": "/home/agent/other", "content": "z"})
        second = await said(house, key, "write", NOTE, "call_2", wait=0)
        desk.approve(second["approval_id"], b'{"path":"/etc/passwd","content":"z"}')
        outside = await said(house, key, "write", NOTE, "call_2", wait=0)
        assert (outside["allowed"], outside["code"], "args" in outside) == (False, "ARGUMENT_DENIED", False)


async def test_policy_wins_over_an_approval(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        desk = house.runtime.holds = Desk()
        key = await house.agent("clerk", SHELL)
        first = await said(house, key, "write", NOTE, wait=0)
        (record,) = await house.records(1)
        await house.runtime.accounts.replace_agent(
            house.org, record.agent, AgentChange(name="clerk", status="suspended")
        )
        await house.runtime.epochs.look()
        desk.approve(first["approval_id"])
        answer = await said(house, key, "write", NOTE, wait=0)
        assert (answer["allowed"], answer["code"]) == (False, "AGENT_SUSPENDED")


async def test_an_approval_that_another_worker_used_is_not_used_again(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        desk = house.runtime.holds = Desk()
        key = await house.agent("clerk", SHELL)
        first = await said(house, key, "write", NOTE, wait=0)
        desk.approve(first["approval_id"])
        assert await desk.claim(house.org, first["approval_id"])
        answer = await said(house, key, "write", NOTE, wait=0)
        assert (answer["allowed"], "used already" in answer["reason"]) == (False, True)


async def test_an_approval_that_came_too_late_is_found_by_the_next_such_call(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        desk = house.runtime.holds = Desk()
        key = await house.agent("clerk", SHELL)
        first = await said(house, key, "write", NOTE, wait=0)
        desk.approve(first["approval_id"])  # its hook has given up
        later = await said(house, key, "write", NOTE, "call_9", wait=0)
        assert (later["allowed"], len(desk.calls)) == (True, 1)
        assert (await said(house, key, "write", NOTE, "call_10", wait=0))["allowed"] is False


async def test_an_engine_that_is_away_refuses_and_forgets_nothing(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        desk = house.runtime.holds = Desk()
        key = await house.agent("clerk", SHELL)
        first = await said(house, key, "write", NOTE, wait=0)
        desk.approve(first["approval_id"])
        desk.broken = True
        away = await said(house, key, "write", NOTE, wait=0)
        assert (away["allowed"], away["pending"]) == (False, True)
        other = await said(house, key, "write", NOTE, "call_2", wait=0)
        assert (other["allowed"], "approval_id" in other) == (False, False)
        desk.broken = False
        assert (await said(house, key, "write", NOTE, wait=0))["allowed"] is True


async def test_a_denied_call_asks_nobody(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        desk = house.runtime.holds = Desk()
        key = await house.agent("clerk", SHELL)
        assert (await said(house, key, "write", {"path": "/etc/passwd"}, wait=600))["code"] == "ARGUMENT_DENIED"
        assert desk.calls == {}


@pytest.mark.parametrize(("more", "where"), [
    ({"wait": 601}, "/wait"), ({"wait": -1}, "/wait"), ({"tool_call_id": "", "wait": 1}, "/run_id"), ({"tool_call_id": "x" * 257}, "/tool_call_id"),
    ({"runtime": "other"}, "/runtime"), ({"run_id": 7}, "/run_id"), ({"tool_kind": "x" * 65}, "/tool_kind"),
])  # fmt: skip
async def test_bad_ids_name_the_field(tmp_path: Path, more: dict[str, Any], where: str) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        answer = await ask(house, key, "exec", {}, **more) if "tool_call_id" not in more else await house.send(
            "POST", CHECK, key=key, body={"tool": "exec", "args": {}, "run_id": "r", **more}
        )  # fmt: skip
        assert answer.status == 422
        assert where in [field["path"] for field in answer.json["details"]["fields"]]


async def test_a_report_names_one_decision(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        for facts in (
            {},
            {"decision_id": "dec_1", "tool_call_id": "x"},
            {"decision_id": "dec_1", "run_id": "x"},
            {"run_id": "x"},
        ):
            assert (await report(house, key, **facts)).status == 422, facts


async def test_the_agent_that_is_named_is_the_keys(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        await house.agent("other", SHELL)
        body = {"tool": "exec", "args": {}}
        assert (await house.send("POST", CHECK, key=key, body={**body, "agent_id": "clerk"})).status == 200
        assert (await house.send("POST", CHECK, key=key, body={**body, "agent_id": "other"})).status == 422
