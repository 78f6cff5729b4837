"""The checks door: an agent asks before it runs a tool of its own, and says how it went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agenticmail_enterprise.catalog.profiles import ApprovalRule, ArgumentRule, Profile, RateLimit, ToolRule
from agenticmail_enterprise.catalog.records import CALLS
from agenticmail_enterprise.catalog.store import Query
from tests.flows.crash_kit import Mortal
from tests.flows.house import Answer, House

SHELL = Profile(
    name="shell", tools=ToolRule(allow=("exec", "read", "write")), max_risk="critical",
    argument_rules=(ArgumentRule(name="home-only", tools=("read",), field="path", op="path_within", values=("/home/agent",), required=True),),
    approval=ApprovalRule(tools=("write",)),
)  # fmt: skip
CHECK, REPORT = "/api/engine/check-permission", "/api/engine/tool-calls"


async def check(house: House, key: str, tool: str, **args: Any) -> dict[str, Any]:
    answer = await house.send("POST", CHECK, key=key, body={"tool": tool, "args": args})
    assert answer.status == 200, answer.body
    said: dict[str, Any] = answer.json["data"]
    return said


async def report(house: House, key: str, decision: str, **facts: Any) -> Answer:
    return await house.send("POST", REPORT, key=key, body={"decision_id": decision, **facts})


async def test_an_allowed_check_opens_a_record_and_its_report_closes_it(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        said = await check(house, key, "exec", command="ls")
        assert (said["allowed"], said["requires_approval"], said["code"], said["tool"]) == (
            True,
            False,
            "ALLOWED",
            "exec",
        )
        await house.records(0)  # open: nothing is in the store before it has ended
        done = await report(house, key, said["decision_id"], outcome="error", error="exit status 2", duration_ms=12.5)
        assert (done.status, done.json["data"]["outcome"]) == (200, "error")
        (record,) = await house.records(1)
        assert (record.id, record.door, record.tool, record.effect) == (said["decision_id"], "checks", "exec", "allow")
        assert (record.outcome, record.error, record.duration_us) == ("error", "exit status 2", 12_500)
        assert record.args == '{"command":"ls"}'
        again = await report(house, key, said["decision_id"], outcome="ok")
        assert again.status == 404  # once is for good
        assert [r.outcome for r in await house.records(2)] == ["error", "denied"]


async def test_a_refusal_says_why_and_a_hold_that_it_is_one(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        outside = await check(house, key, "read", path="/etc/shadow")
        assert (outside["allowed"], outside["code"]) == (False, "ARGUMENT_DENIED")
        assert "/home/agent" in outside["reason"]
        held = await check(house, key, "write", path="/home/agent/x")
        assert (held["allowed"], held["requires_approval"], held["code"]) == (False, True, "APPROVAL_REQUIRED")
        unknown = await check(house, key, "launch_missiles")
        assert unknown["allowed"] is False
        assert (await report(house, key, outside["decision_id"])).status == 404  # nothing was run
        records = await house.records(4)
        assert [record.outcome for record in records] == ["denied", "held", "denied", "denied"]
        assert [record.id for record in records[:3]] == [
            outside["decision_id"],
            held["decision_id"],
            unknown["decision_id"],
        ]


async def test_a_batch_is_answered_in_order_each_with_its_own_record(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        asked = [
            {"tool": "exec"},
            {"tool": "rm"},
            {"tool": "read", "args": {"path": "/home/agent/a"}},
            {"tool": "write"},
        ]
        answer = (await house.send("POST", CHECK, key=key, body={"checks": asked})).json
        assert answer["meta"] == {"total": 4}
        assert [said["tool"] for said in answer["data"]] == ["exec", "rm", "read", "write"]
        assert [said["allowed"] for said in answer["data"]] == [True, False, True, False]
        ids = [said["decision_id"] for said in answer["data"]]
        assert len(set(ids)) == 4
        for decision in (ids[0], ids[2]):
            assert (await report(house, key, decision)).status == 200
        assert {record.id for record in await house.records(4)} == set(ids)


async def test_another_agents_decision_is_not_there(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        mine, other = await house.agent("mine", SHELL), await house.agent("other", SHELL)
        said = await check(house, mine, "exec")
        stolen = await report(house, other, said["decision_id"], outcome="ok")
        invented = await report(house, other, "dec_" + "0" * 32, outcome="ok")
        assert stolen.status == invented.status == 404
        assert stolen.json["error"] == invented.json["error"]  # nothing tells one from the other
        assert (await report(house, mine, said["decision_id"], outcome="timeout")).status == 200
        records = await house.records(3)
        assert [record.outcome for record in records if record.tool == "exec"] == ["timeout"]


async def test_a_key_that_is_no_agents_may_not_ask(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        program = await house.program("calls:read")
        for path, body in ((CHECK, {"tool": "exec"}), (REPORT, {"decision_id": "dec_1"})):
            assert (await house.send("POST", path, key=program, body=body)).status == 403
            assert (await house.send("POST", path, body=body)).status == 401
            assert (await house.send("POST", path, key="ek_" + "a" * 49, body=body)).status == 401
        for record in await house.nobodys(6):
            assert (record.effect, record.outcome, record.door) == ("deny", "denied", "checks")


async def test_rates_count_here_too(tmp_path: Path) -> None:
    profile = Profile(
        name="slow", tools=ToolRule(allow=("exec",)), max_risk="critical", rate_limits=(RateLimit(per_minute=2),)
    )
    async with House(tmp_path) as house:
        key = await house.agent("slow", profile)
        said = [await check(house, key, "exec") for _ in range(3)]
        assert [one["allowed"] for one in said] == [True, True, False]
        assert said[2]["code"] == "RATE_LIMITED"
        assert 0 < said[2]["retry_after"] <= 60


async def test_what_was_never_reported_is_unknown_when_the_gateway_stops(tmp_path: Path) -> None:
    house = House(tmp_path)
    async with house:
        key = await house.agent("clerk", SHELL)
        said = await check(house, key, "exec", command="ls")
    again = Mortal(tmp_path)
    again.org = house.org
    async with again.opened() as runtime:
        page = await runtime.store.find(Query(CALLS, "by_org", {"org": house.org}))
    (record,) = page.records
    assert (record.id, record.outcome, record.error) == (said["decision_id"], "unknown", "NOT_REPORTED")


async def test_what_waits_too_long_for_its_report_is_unknown(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        said = await check(house, key, "exec")
        import time

        house.runtime.checks.sweep(time.time() + 3500)
        await house.records(0)
        house.runtime.checks.sweep(time.time() + 3700)
        (record,) = await house.records(1)
        assert (record.id, record.outcome, record.error) == (said["decision_id"], "unknown", "NOT_REPORTED")
        assert (await report(house, key, said["decision_id"])).status == 404


@pytest.mark.parametrize(("body", "where"), [
    ({}, ""), ({"tool": 5}, "/tool"), ({"tool": ""}, "/tool"), ({"tool": "exec", "args": []}, "/args"), ({"tool": "exec", "x": 1}, ""),
    ({"checks": []}, "/checks"), ({"checks": [{"tool": "exec"}, {"tool": 7}]}, "/checks/1/tool"), ({"tool": "ex\u202eec"}, "/tool"),
])  # fmt: skip
async def test_a_bad_question_names_the_field(tmp_path: Path, body: Any, where: str) -> None:
    async with House(tmp_path) as house:
        key = await house.agent("clerk", SHELL)
        answer = await house.send("POST", CHECK, key=key, body=body)
        assert (answer.status, answer.json["code"]) == (422, "VALIDATION_ERROR")
        (field,) = answer.json["details"]["fields"]
        assert field["path"] == where
        (record,) = await house.records(1)
        assert (record.effect, record.code, record.door) == ("deny", "BAD_REQUEST", "checks")
