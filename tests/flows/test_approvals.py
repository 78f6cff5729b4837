"""Held calls, from the agent's request to its result: through a real gateway, decided by whoever may."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agenticmail_enterprise.catalog.approvals import (
    APPROVALS,
    Approval,
    ApprovalPolicySpec,
    AutoApproveRule,
    Condition,
    Stage,
)
from agenticmail_enterprise.catalog.profiles import ApprovalRule, Profile, ToolRule
from agenticmail_enterprise.catalog.store import Query
from agenticmail_enterprise.gateway.approvals.deciding import Deed
from agenticmail_enterprise.gateway.approvals.who import Decider
from agenticmail_enterprise.gateway.doors.straight import Flight
from agenticmail_enterprise.gateway.settings import ApprovalSettings
from tests.flows.house import House
from tests.flows.servers import Counting

ASKS = Profile(
    name="asks", tools=ToolRule(allow=("mail__*", "exec")), max_risk="critical", allow_unknown=True,
    approval=ApprovalRule(tools=("mail__send_mail", "mail__resource:mail://secret", "exec")),
)  # fmt: skip
FREE = Profile(name="free", tools=ToolRule(allow=("mail__*",)), max_risk="critical")
ANA = Decider(id="usr_ana", role="admin", person="usr_ana", name="Ana")
BEN = Decider(id="usr_ben", role="admin", person="usr_ben", name="Ben")
MEG = Decider(id="usr_meg", role="member", person="usr_meg", name="Meg")
MAIL = {"to": "ada@acme.test", "subject": "Hello", "amount": 12.5}
PATIENT = ApprovalSettings(hold_timeout=60.0, sweep=0.05)
BRIEF = ApprovalSettings(hold_timeout=0.1, sweep=0.05)


async def waiting(house: House, state: str = "pending", many: int = 1) -> list[Approval]:
    """The organisation's approvals in a state, once there are so many."""
    for _ in range(600):
        page = await house.runtime.store.find(Query(APPROVALS, "by_state", {"org": house.org, "state": state}))
        if len(page.records) >= many:
            return page.records
        await asyncio.sleep(0.02)
    page = await house.runtime.store.find(Query(APPROVALS, "by_org", {"org": house.org}))
    raise AssertionError([(record.state, record.error, record.rejection) for record in page.records])


async def listed(house: House, url: str) -> str:
    upstream = await house.upstream("mail", url)
    await house.runtime.upstreams.refresh(house.org, upstream)
    return upstream


async def decide(house: House, approval: Approval, who: Decider, **deed: Any) -> Approval:
    return await house.runtime.approvals.decide(house.org, approval.id, who, Deed(**deed))


@pytest.mark.parametrize("door", ["/mcp/mail", "/mcp"])
async def test_an_approved_call_runs_once_and_its_waiting_agent_gets_the_result(tmp_path: Path, door: str) -> None:
    async with Counting() as server, House(tmp_path, approvals=PATIENT) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        tool, headers = "send_mail", {}
        if door == "/mcp":
            tool = "mail__send_mail"
            hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
                "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}  # fmt: skip
            opened = await house.send("POST", door, key=key, body=hello)
            headers = {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"]}
        asked = asyncio.create_task(house.call(key, door, tool, MAIL, headers=headers))
        (approval,) = await waiting(house)
        assert (approval.tool, approval.agent_name, approval.rule) == (
            "mail__send_mail",
            "clerk",
            "profile.approval.tools:mail__send_mail",
        )
        assert server.calls == []
        assert "ada@acme.test" not in approval.sealed
        assert house.runtime.approvals.form(approval).arguments == MAIL
        await decide(house, approval, ANA, action="approve", digest=approval.digest)
        answer = (await asked).json["result"]
        assert answer["isError"] is False
        assert '"to": "ada@acme.test"' in answer["content"][0]["text"]
        said = answer["_meta"]["enterprise.agenticmail/decision"]["approval"]
        assert said == {"id": approval.id, "state": "executed", "repeat": False}
        assert [call["params"]["arguments"] for call in server.calls] == [MAIL]
        again = (await house.call(key, door, tool, MAIL, headers=headers)).json["result"]
        assert again["content"] == answer["content"]
        assert again["_meta"]["enterprise.agenticmail/decision"]["approval"]["repeat"] is True
        assert len(server.calls) == 1, "a repeat replays; it does not run again"
        records = await house.records(3)
        assert [(r.effect, r.outcome, r.rule.partition(":")[0]) for r in records] == [
            ("hold", "held", "profile.approval.tools"), ("allow", "ok", "approval"), ("hold", "held", "profile.approval.tools"),
        ]  # fmt: skip


async def test_a_held_request_is_answered_before_its_client_gives_up_and_the_repeat_gets_the_result(
    tmp_path: Path,
) -> None:
    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        first = (await house.call(key, "/mcp/mail", "send_mail", MAIL)).json["result"]
        (approval,) = await waiting(house)
        assert first["isError"] is True
        assert approval.id in first["content"][0]["text"]
        assert first["_meta"]["enterprise.agenticmail/decision"]["approval"]["state"] == "pending"
        # The same arguments in another order and spelling are the same call.
        second = await house.call(
            key, "/mcp/mail", "send_mail", {"amount": 12.50, "subject": "Hello", "to": "ada@acme.test"}
        )
        assert second.json["result"]["_meta"]["enterprise.agenticmail/decision"]["approval"]["id"] == approval.id
        await decide(house, approval, ANA, action="approve")
        (done,) = await waiting(house, "executed")
        assert (done.outcome, done.fence) == ("ok", 1)
        third = (await house.call(key, "/mcp/mail", "send_mail", MAIL)).json["result"]
        assert third["isError"] is False
        assert len(server.calls) == 1


async def test_a_rejection_reaches_the_agent_with_its_reason(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path, approvals=PATIENT) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        asked = asyncio.create_task(house.call(key, "/mcp/mail", "send_mail", MAIL))
        (approval,) = await waiting(house)
        await decide(house, approval, ANA, action="reject", reason="Not to customers")
        text = (await asked).json["result"]["content"][0]["text"]
        assert "Not to customers." in text
        assert server.calls == []


async def test_what_was_edited_is_what_runs_and_the_difference_is_recorded(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path, approvals=PATIENT) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        asked = asyncio.create_task(house.call(key, "/mcp/mail", "send_mail", MAIL))
        (approval,) = await waiting(house)
        edited = {**MAIL, "to": "bob@acme.test"}
        stored = await decide(house, approval, ANA, action="edit", arguments=edited)
        await asked
        assert [call["params"]["arguments"] for call in server.calls] == [edited]
        (decision,) = stored.decisions
        assert [change.path for change in decision.changes] == ["/to"]
        assert house.runtime.approvals.form(stored, asked=True).arguments == MAIL


async def test_a_resource_is_held_and_read_like_a_tool(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path, approvals=PATIENT) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        message = {"jsonrpc": "2.0", "id": 3, "method": "resources/read", "params": {"uri": "mail://secret"}}
        asked = asyncio.create_task(house.send("POST", "/mcp/mail", key=key, body=message))
        (approval,) = await waiting(house)
        await decide(house, approval, ANA, action="approve")
        assert (await asked).json["result"]["contents"][0]["text"] == "hello"


async def test_a_client_that_asks_for_progress_hears_of_it_while_it_waits(tmp_path: Path) -> None:
    settings = ApprovalSettings(hold_timeout=60.0, sweep=0.05, progress=0.05)
    async with Counting() as server, House(tmp_path, approvals=settings) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        message = {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {
            "name": "send_mail", "arguments": MAIL, "_meta": {"progressToken": "p1"}}}  # fmt: skip
        asked = asyncio.create_task(house.send("POST", "/mcp/mail", key=key, body=message))
        (approval,) = await waiting(house)
        await asyncio.sleep(0.3)
        await decide(house, approval, ANA, action="approve")
        messages = (await asked).messages
        progress = [one for one in messages if one.get("method") == "notifications/progress"]
        assert len(progress) >= 2
        assert {one["params"]["progressToken"] for one in progress} == {"p1"}
        assert [one["params"]["progress"] for one in progress] == list(range(1, len(progress) + 1))
        assert messages[-1]["result"]["isError"] is False


@pytest.mark.parametrize("change", ["policy", "key", "agent", "pin", "pin-unseen", "upstream"])
async def test_policy_and_pin_are_checked_again_right_before_it_runs(tmp_path: Path, change: str) -> None:
    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        upstream = await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        await house.call(key, "/mcp/mail", "send_mail", MAIL)
        (approval,) = await waiting(house)
        accounts = house.runtime.accounts
        if change == "policy":
            from agenticmail_enterprise.gateway.accounts import Assignment

            denies = Profile(
                name="denies", tools=ToolRule(allow=("mail__*",), deny=("mail__send_mail",)), max_risk="critical"
            )
            await accounts.assign(house.org, approval.agent, Assignment(profile=denies))
        elif change == "key":
            await accounts.revoke(house.org, approval.key)
        elif change == "agent":
            await accounts.delete_agent(house.org, approval.agent)
        elif change == "upstream":
            await house.runtime.registry.delete(house.org, upstream)
            await house.runtime.upstreams.sync()
        else:
            server.tools[1]["description"] = "Send a mail, and a copy to me."
            if change == "pin":
                await house.runtime.upstreams.refresh(house.org, upstream)
        await decide(house, approval, ANA, action="approve")
        (done,) = await waiting(house, "not_executed")
        assert done.error
        assert server.calls == []


async def test_a_tool_the_agent_runs_itself_is_released_once_after_approval(tmp_path: Path) -> None:
    async with House(tmp_path, approvals=BRIEF) as house:
        key = await house.agent("clerk", ASKS)
        check = {"tool": "exec", "args": {"command": "ls"}}
        first = (await house.send("POST", "/api/engine/check-permission", key=key, body=check)).json["data"]
        assert (first["allowed"], first["requires_approval"], first["approval"]["state"]) == (False, True, "pending")
        (approval,) = await waiting(house)
        await decide(house, approval, ANA, action="approve")
        answers = await asyncio.gather(
            *(house.send("POST", "/api/engine/check-permission", key=key, body=check) for _ in range(5))
        )
        assert sorted(answer.json["data"]["allowed"] for answer in answers) == [False] * 4 + [True]


# -- policies ----------------------------------------------------------------------------------------------------
async def test_an_approval_policy_holds_what_a_profile_lets_pass_and_its_rules_let_it_pass_again(
    tmp_path: Path,
) -> None:
    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", FREE)
        assert (await house.call(key, "/mcp/mail", "send_mail", MAIL)).json["result"]["isError"] is False
        rule = AutoApproveRule(name="inside", conditions=(Condition(field="recipient_domain", op="equals", values=("acme.test",)),
                                                          Condition(field="amount", op="max", values=(100,))))  # fmt: skip
        await house.runtime.approvals.book.create_policy(
            house.org, ApprovalPolicySpec(name="mail", tools=("mail__send_*",), auto_approve_rules=(rule,))
        )
        assert (await house.call(key, "/mcp/mail", "send_mail", MAIL)).json["result"]["isError"] is False
        for arguments in (
            {**MAIL, "to": "eve@evil.test"}, {**MAIL, "bcc": ["eve@evil.test"]}, {**MAIL, "amount": 101}, {"to": "ada@acme.test"},
            {"amount": 1}, {**MAIL, "BCC": "eve@evil.test"},
        ):  # fmt: skip
            held = (await house.call(key, "/mcp/mail", "send_mail", arguments)).json["result"]
            assert held["isError"] is True, arguments
        assert len(server.calls) == 2
        assert len(await waiting(house, many=6)) == 6
        assert (await house.call(key, "/mcp/mail", "read_mail", {})).json["result"]["isError"] is False


async def test_two_must_approve_and_one_counts_once(tmp_path: Path) -> None:
    from agenticmail_enterprise.catalog.errors import Conflict, Forbidden

    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        await house.runtime.approvals.book.create_policy(house.org, ApprovalPolicySpec(name="four eyes", approvals=2))
        await house.call(key, "/mcp/mail", "send_mail", MAIL)
        (approval,) = await waiting(house)
        with pytest.raises(Forbidden):
            await decide(house, approval, MEG, action="approve")
        await decide(house, approval, ANA, action="approve")
        with pytest.raises(Conflict):
            await decide(house, approval, ANA, action="approve")
        assert server.calls == []
        stored = await decide(house, approval, BEN, action="edit", arguments={**MAIL, "subject": "Hi"})
        assert stored.state == "pending", "what was approved before an edit was approved of other bytes"
        await decide(house, approval, ANA, action="approve", digest=stored.digest)
        await waiting(house, "executed")
        assert server.calls[0]["params"]["arguments"]["subject"] == "Hi"


async def test_silence_escalates_then_denies_and_all_of_it_survives_a_restart(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        spec = ApprovalPolicySpec(name="slow", role="member", timeout=1, escalation=(Stage(role="owner", timeout=1),))
        await house.runtime.approvals.book.create_policy(house.org, spec)
        await house.call(key, "/mcp/mail", "send_mail", MAIL)
        (approval,) = await waiting(house)
        org = house.org
    async with House(tmp_path, approvals=BRIEF) as house:
        house.org = org
        (expired,) = await waiting(house, "expired")
        assert [decision.kind for decision in expired.decisions] == ["escalate", "expire"]
        assert expired.id == approval.id
        again = (await house.call(key, "/mcp/mail", "send_mail", MAIL)).json["result"]
        assert "Nobody decided" in again["content"][0]["text"]
        assert server.calls == []


async def test_simultaneous_twins_are_one_approval_and_one_call(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path, approvals=PATIENT) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        asked = [asyncio.create_task(house.call(key, "/mcp/mail", "send_mail", MAIL)) for _ in range(8)]
        (approval,) = await waiting(house)
        await decide(house, approval, ANA, action="approve")
        answers = [(await task).json["result"]["isError"] for task in asked]
        assert answers == [False] * 8
        assert len(server.calls) == 1


# -- tasks (2026-07-28) --------------------------------------------------------------------------------------------
def modern(method: str, params: dict[str, Any], name: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}},
    }
    headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method} | ({"Mcp-Name": name} if name else {})
    return {"jsonrpc": "2.0", "id": 4, "method": method, "params": {**params, "_meta": meta}}, headers


async def rpc(house: House, key: str, door: str, method: str, params: dict[str, Any], name: str = "") -> Any:
    body, headers = modern(method, params, name)
    return (await house.send("POST", door, key=key, body=body, headers=headers)).json


@pytest.mark.parametrize("door", ["/mcp/mail", "/mcp"])
async def test_a_client_of_tasks_gets_a_task_and_polls_it_to_the_result(tmp_path: Path, door: str) -> None:
    async with Counting() as server, House(tmp_path, approvals=PATIENT) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        other = await house.agent("other", ASKS)
        name = "send_mail" if door != "/mcp" else "mail__send_mail"
        task = (await rpc(house, key, door, "tools/call", {"name": name, "arguments": MAIL}, name))["result"]
        assert (task["resultType"], task["status"]) == ("task", "working")
        polled = (await rpc(house, key, door, "tasks/get", {"taskId": task["taskId"]}, task["taskId"]))["result"]
        assert (polled["resultType"], polled["status"]) == ("complete", "working")
        strange = await rpc(house, other, door, "tasks/get", {"taskId": task["taskId"]}, task["taskId"])
        assert strange["error"]["code"] == -32602
        (approval,) = await waiting(house)
        await decide(house, approval, ANA, action="approve")
        await waiting(house, "executed")
        done = (await rpc(house, key, door, "tasks/get", {"taskId": task["taskId"]}, task["taskId"]))["result"]
        assert (done["status"], done["result"]["isError"]) == ("completed", False)
        assert len(server.calls) == 1


async def test_a_task_can_be_taken_back_before_anybody_decided(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path, approvals=PATIENT) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        task = (
            await rpc(house, key, "/mcp/mail", "tools/call", {"name": "send_mail", "arguments": MAIL}, "send_mail")
        )["result"]
        await rpc(house, key, "/mcp/mail", "tasks/cancel", {"taskId": task["taskId"]}, task["taskId"])
        done = (await rpc(house, key, "/mcp/mail", "tasks/get", {"taskId": task["taskId"]}, task["taskId"]))["result"]
        assert done["status"] == "cancelled"
        assert server.calls == []


# -- over HTTP -------------------------------------------------------------------------------------------------------
async def test_people_see_every_byte_and_decide_over_http_by_their_credential_alone(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        owner, member = await house.program("*"), await house.program("approvals:read", "approvals:decide")
        hidden = {
            **MAIL,
            "subject": "invoice\u202efdp.exe",
            "attachments": [{"filename": "a.txt", "content": "aGVsbG8="}],
        }
        await house.call(key, "/mcp/mail", "send_mail", hidden)
        (found,) = (await house.send("GET", "/api/engine/approvals?state=pending", key=owner)).json["data"]
        path = f"/api/engine/approvals/{found['id']}"
        detail = (await house.send("GET", path, key=member)).json["data"]
        assert "⟦U+202E RIGHT-TO-LEFT OVERRIDE⟧" in detail["arguments"]["subject"]
        assert detail["attachments"][0]["size"] == 5
        import hashlib

        assert hashlib.sha256(detail["canonical"].encode()).hexdigest() == detail["digest"]
        refused = await house.send("PUT", path, key=member, body={"action": "approve"})
        assert (refused.status, "role admin" in refused.json["error"]) == (403, True)
        agent = await house.send("PUT", path, key=key, body={"action": "approve"})
        assert agent.status == 403
        forged = await house.send("PUT", path, key=owner, body={"action": "approve", "by": "usr_boss"})
        assert forged.status == 422
        stale = await house.send("PUT", path, key=owner, body={"action": "approve", "digest": "0" * 64})
        assert (stale.status, stale.json["code"]) == (409, "STALE")
        nothing = await house.send("PUT", path, key=owner, body={"action": "reject"})
        assert nothing.status == 422
        done = await house.send("PUT", path, key=owner, body={"action": "approve", "digest": detail["digest"]})
        assert (done.status, done.json["data"]["state"]) == (200, "approved")
        second = await house.send("PUT", path, key=owner, body={"action": "reject", "reason": "no"})
        assert (second.status, second.json["code"]) == (409, "ALREADY_DECIDED")
        await waiting(house, "executed")
        assert server.calls[0]["params"]["arguments"] == hidden
        mine = (await house.send("GET", f"{path}/result", key=key)).json["data"]
        assert (mine["state"], mine["answer"]["result"]["isError"]) == ("executed", False)
        other = await house.agent("other", ASKS)
        assert (await house.send("GET", f"{path}/result", key=other)).status == 403


async def test_a_batch_decides_each_for_itself(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        key, owner = await house.agent("clerk", ASKS), await house.program("*")
        for number in range(3):
            await house.call(key, "/mcp/mail", "send_mail", {"n": number})
        ids = [approval.id for approval in await waiting(house, many=3)]
        body = {"decisions": [{"id": ids[0], "action": "approve"}, {"id": ids[1], "action": "reject", "reason": "no"},
                              {"id": "apr_none", "action": "approve"}]}  # fmt: skip
        items = (await house.send("POST", "/api/engine/approvals/decisions", key=owner, body=body)).json["data"][
            "items"
        ]
        assert [(item["ok"], item["code"]) for item in items] == [(True, ""), (True, ""), (False, "NOT_FOUND")]
        await waiting(house, "executed")
        assert len(await waiting(house, "rejected")) == len(await waiting(house, "pending")) == 1
        assert [call["params"]["arguments"] for call in server.calls] == [{"n": 0}]


async def test_keys_of_one_maker_count_as_one_and_duties_are_separated(tmp_path: Path) -> None:
    from agenticmail_enterprise.gateway.keys import KeySpec

    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        boss = await house.program("*")
        spec = KeySpec(kind="program", scopes=("*",))
        _, one = await house.runtime.accounts.mint(house.org, spec, created_by="usr_bob")
        _, two = await house.runtime.accounts.mint(house.org, spec, created_by="usr_bob")
        policy = {"name": "apart", "approvals": 2, "separation_of_duties": True}
        made = await house.send("POST", "/api/engine/approval-policies", key=boss, body=policy)
        assert made.status == 201
        await house.agent("clerk", ASKS)
        agents = (await house.send("GET", "/api/agents", key=boss)).json["data"]
        _, key = await house.runtime.accounts.mint(house.org, KeySpec(agent_id=agents[0]["id"]), created_by="usr_eva")
        _, evas = await house.runtime.accounts.mint(house.org, spec, created_by="usr_eva")
        await house.runtime.epochs.look()
        await house.call(key, "/mcp/mail", "send_mail", MAIL)
        (approval,) = await waiting(house)
        path = f"/api/engine/approvals/{approval.id}"
        refused = await house.send("PUT", path, key=evas, body={"action": "approve"})
        assert (refused.status, "Separation of duties" in refused.json["error"]) == (403, True)
        assert (await house.send("PUT", path, key=one, body={"action": "approve"})).status == 200
        assert (await house.send("PUT", path, key=two, body={"action": "approve"})).status == 409
        assert server.calls == []
        assert (await house.send("PUT", path, key=boss, body={"action": "approve"})).json["data"]["state"] == "approved"
        await waiting(house, "executed")


async def test_who_it_is_delegated_to_may_decide_and_a_snooze_reminds(tmp_path: Path) -> None:
    from agenticmail_enterprise.catalog.errors import Forbidden, ValidationFailed
    from agenticmail_enterprise.catalog.records import KEYS

    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        helper = await house.program("approvals:decide")
        keys = (await house.runtime.store.find(Query(KEYS, "by_org", {"org": house.org}))).records
        helper_id = next(one.id for one in keys if one.scopes == ("approvals:decide",))
        await house.call(key, "/mcp/mail", "send_mail", MAIL)
        (approval,) = await waiting(house)
        with pytest.raises(Forbidden):
            await decide(house, approval, MEG, action="delegate", to=helper_id)
        for nobody in ("usr_none", "key_none", next(one.id for one in keys if one.agent_id)):
            with pytest.raises(ValidationFailed):
                await decide(house, approval, ANA, action="delegate", to=nobody)
        snoozed = await decide(house, approval, ANA, action="snooze", seconds=60)
        assert snoozed.due_at == snoozed.snoozed_until < snoozed.stage_until
        await decide(house, approval, ANA, action="delegate", to=helper_id)
        answer = await house.send("PUT", f"/api/engine/approvals/{approval.id}", key=helper, body={"action": "approve"})
        assert answer.json["data"]["state"] == "approved"
        await waiting(house, "executed")


async def test_a_grant_is_bounded_by_arguments_count_and_its_revocation(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        key, owner = await house.agent("clerk", ASKS), await house.program("*")
        member = await house.program("approvals:read", "approvals:decide")
        agent = (await house.send("GET", "/api/agents", key=owner)).json["data"][0]["id"]
        body = {"agent_id": agent, "tool": "mail__send_mail", "limit": 2,
                "conditions": [{"field": "recipient_domain", "op": "equals", "values": ["acme.test"]}]}  # fmt: skip
        assert (await house.send("POST", "/api/engine/approval-grants", key=member, body=body)).status == 403
        made = (await house.send("POST", "/api/engine/approval-grants", key=owner, body=body)).json["data"]
        results = []
        for number, to in enumerate(["a@acme.test", "a@evil.test", "b@acme.test", "c@acme.test"]):
            answer = await house.call(key, "/mcp/mail", "send_mail", {"to": to, "n": number})
            results.append(answer.json["result"]["isError"])
        assert results == [False, True, False, True]
        (shown,) = (await house.send("GET", "/api/engine/approval-grants", key=owner)).json["data"]
        assert (shown["used"], shown["status"]) == (2, "used_up")
        assert any(record.rule == f"grant:{made['id']}" for record in await house.records(4))
        assert (await house.send("DELETE", f"/api/engine/approval-grants/{made['id']}", key=owner)).status == 204


async def test_alike_approvals_propose_a_grant(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        key, owner = await house.agent("clerk", ASKS), await house.program("*")
        for number in range(3):
            await house.call(key, "/mcp/mail", "send_mail", {"to": "ada@acme.test", "n": number})
        for approval in await waiting(house, many=3):
            await decide(house, approval, ANA, action="approve")
        await waiting(house, "executed", many=3)
        (proposal,) = (await house.send("GET", "/api/engine/approval-grants/proposals", key=owner)).json["data"]
        assert (proposal["tool"], proposal["approvals"]) == ("mail__send_mail", 3)
        assert [(one["field"], one["values"]) for one in proposal["conditions"]] == [("to", ["ada@acme.test"])]


@pytest.mark.parametrize("tampered", ["sealed", "digest"])
async def test_a_stored_call_that_was_tampered_with_never_runs(tmp_path: Path, tampered: str) -> None:
    from agenticmail_enterprise.catalog.store import Replace

    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        await house.call(key, "/mcp/mail", "send_mail", {"n": 1})
        await house.call(key, "/mcp/mail", "send_mail", {"n": 2})
        first, second = sorted(await waiting(house, many=2), key=lambda one: one.id)
        if tampered == "sealed":
            first.sealed = second.sealed
        else:
            first.digest = first.asked_digest = second.digest
        await house.runtime.store.commit(Replace(APPROVALS, first))
        await decide(house, first, ANA, action="approve")
        await waiting(house, "not_executed")
        assert server.calls == []


async def test_what_has_no_canonical_form_is_refused_and_says_why(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        for value in (2**60, 2.0**60):
            answer = (await house.call(key, "/mcp/mail", "send_mail", {"n": value})).json["result"]
            assert "too large to be exact" in answer["content"][0]["text"]
        assert server.calls == []


async def test_a_child_process_is_called_once_after_approval_like_any_server(tmp_path: Path) -> None:
    import sys

    async with House(tmp_path, approvals=PATIENT) as house:
        command = (
            sys.executable,
            "-m",
            "agenticmail_enterprise.gateway.demo.mailserver",
            "--folder",
            str(tmp_path / "mail"),
        )
        upstream = await house.upstream("mail", kind="mcp_stdio", command=command)
        assert (await house.runtime.upstreams.refresh(house.org, upstream)).ok
        profile = Profile(name="m", tools=ToolRule(allow=("mail__*",)), max_risk="critical",
                          approval=ApprovalRule(tools=("mail__send_email",)))  # fmt: skip
        key = await house.agent("clerk", profile)
        hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}  # fmt: skip
        opened = await house.send("POST", "/mcp/mail", key=key, body=hello)
        headers = {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"]}
        mail = {"to": "ada@acme.test", "subject": "Hi", "text": "Hello"}
        asked = asyncio.create_task(house.call(key, "/mcp/mail", "send_email", mail, headers=headers))
        (approval,) = await waiting(house)
        await decide(house, approval, ANA, action="approve")
        answer = (await asked).json["result"]
        assert answer.get("isError", False) is False, answer
        (done,) = await waiting(house, "executed")
        assert done.outcome == "ok"


async def test_an_explanation_names_the_approval_policy(tmp_path: Path) -> None:
    import time

    from agenticmail_enterprise.catalog.calls import Call, Principal
    from agenticmail_enterprise.policies.explain import explain_call

    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        await house.agent("clerk", FREE)
        made = await house.runtime.approvals.book.create_policy(
            house.org, ApprovalPolicySpec(name="mail", tools=("mail__send_*",))
        )
        from agenticmail_enterprise.catalog.records import AGENTS

        (agent,) = (await house.runtime.store.find(Query(AGENTS, "by_org", {"org": house.org}))).records
        call = Call(Principal(house.org, agent.id, "clerk", ""), "mail__send_mail", b"{}", id="dec_x", at=time.time())
        explanation = await explain_call(house.runtime.chain, call)
        assert (explanation.effect, explanation.rule) == ("hold", f"approval-policy:{made.id}")


# -- people who signed in --------------------------------------------------------------------------------------------
async def signed_in(house: House, role: str) -> tuple[str, dict[str, str]]:
    """Somebody of a role: their id, and what their program sends."""
    password = "a password for a story"
    email = f"{role}@acme.test"
    user = await house.runtime.accounts.create_user(house.org, email, password, role=role)
    answer = await house.send("POST", "/auth/login", body={"email": email, "password": password})
    assert answer.status == 200, answer.body
    return user.id, {"Authorization": f"Bearer {answer.json['data']['token']}"}


async def test_people_decide_by_the_role_they_have_now(tmp_path: Path) -> None:
    async with Counting() as server, House(tmp_path, approvals=BRIEF) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        admin_id, admin = await signed_in(house, "admin")
        _, member = await signed_in(house, "member")
        _, viewer = await signed_in(house, "viewer")
        await house.call(key, "/mcp/mail", "send_mail", MAIL)
        (held,) = await waiting(house)
        path, approve = f"/api/engine/approvals/{held.id}", {"action": "approve"}
        for headers, least in ((viewer, "member"), (member, "admin")):
            refused = await house.send("PUT", path, headers=headers, body=approve)
            assert (refused.status, refused.json["code"], refused.json["details"]["role"]) == (403, "FORBIDDEN", least)
        assert (await house.send("GET", path, headers=viewer)).status == 403
        assert (await house.send("GET", path, headers=member)).status == 200
        assert server.calls == []
        tried = await house.send("PUT", f"{path}?dry_run=true", headers=admin, body=approve)
        assert (tried.status, tried.json["data"]["dry_run"]) == (200, True)
        assert [change["kind"] for change in tried.json["data"]["changes"]] == ["approval"]
        assert [one.id for one in await waiting(house)] == [held.id], "trying it decides nothing"
        done = await house.send("PUT", path, headers=admin, body=approve)
        assert (done.status, done.json["data"]["state"]) == (200, "approved")
        (ran,) = await waiting(house, "executed")
        assert [decision.by for decision in ran.decisions] == [admin_id]
        assert len(server.calls) == 1


# -- the straight way ------------------------------------------------------------------------------------------------
async def test_a_call_held_on_a_warm_connection_is_held_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    take_over = Flight._take_over
    monkeypatch.setattr(Flight, "_take_over", lambda flight: (taken.append(flight.call.tool), take_over(flight)))
    async with Counting() as server, House(tmp_path, approvals=PATIENT) as house:
        await listed(house, server.url)
        key = await house.agent("clerk", ASKS)
        for number in range(1, 4):  # the first of them compiles the tool
            asked = asyncio.create_task(house.call(key, "/mcp/mail", "send_mail", {**MAIL, "amount": number}))
            (held,) = await waiting(house)
            await decide(house, held, ANA, action="approve")
            assert (await asked).json["result"]["isError"] is False
        assert taken == ["mail__send_mail"] * 2
        assert [call["params"]["arguments"]["amount"] for call in server.calls] == [1, 2, 3]


# -- hooks -----------------------------------------------------------------------------------------------------------
async def test_a_hook_waits_for_a_person_and_uses_the_approval_once(tmp_path: Path) -> None:
    async with House(tmp_path, approvals=BRIEF) as house:
        key = await house.agent("clerk", ASKS)
        body = {"tool": "exec", "args": {"command": "ls"}, "tool_call_id": "call_1", "run_id": "run_1"}

        async def ask(**more: Any) -> Any:
            answer = await house.send("POST", "/api/engine/check-permission", key=key, body={**body, **more})
            assert answer.status == 200, answer.body
            return answer.json["data"]

        first = await ask()
        (held,) = await waiting(house)
        assert (first["approval_id"], first["pending"], held.kind) == (held.id, True, "check")
        asked = asyncio.create_task(ask(wait=60))
        await decide(house, held, ANA, action="approve")
        allowed = await asked
        assert (allowed["allowed"], allowed["requires_approval"]) == (True, False)
        assert [one.outcome for one in await waiting(house, "executed")] == ["released"]
        again = await ask(tool_call_id="call_2")
        assert (again["allowed"], again["pending"]) == (False, True), "an approval is used once"
        (second,) = await waiting(house)
        await decide(house, second, ANA, action="reject", reason="Not twice.")
        refused = await ask(tool_call_id="call_2", wait=60)
        assert (refused["allowed"], refused["requires_approval"]) == (False, False)
        assert "Not twice." in refused["reason"]
