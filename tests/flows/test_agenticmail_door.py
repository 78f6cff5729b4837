"""Stories of the AgenticMail door, in front of an API that answers as the real one was recorded."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agenticmail_enterprise.catalog.profiles import ApprovalRule, ArgumentRule, Profile, ToolRule
from agenticmail_enterprise.gateway.doors.http.redaction import redact
from agenticmail_enterprise.tests.flows.agenticmail_server import KEYS, PAIRS, Recorded, grown
from agenticmail_enterprise.tests.flows.house import Answer, House

BASE = "/api/agenticmail"
ALICE, BOB = KEYS["ak_ALICE"], KEYS["ak_BOB"]
ALL = Profile(name="all", tools=ToolRule(allow=("agenticmail_*",)), max_risk="critical")
OWN = ("approve with agent key", "approve master", "approve twice", "no auth", "bad key", "not found")
"""Pairs that the gateway answers itself: approving what AgenticMail held is no tool, and unknown paths are denied."""


class Desk:
    """A house with AgenticMail behind it."""

    def __init__(self, house: House, api: Recorded) -> None:
        self.house = house
        self.api = api

    async def agent(self, name: str, profile: Profile, key: str = "") -> str:
        """An agent; its own AgenticMail key stands for it when `key` is given."""
        secret = await self.house.agent(name, profile)
        if key:
            principal = await self.house.runtime.identity.of_key(secret)
            await self.house.runtime.accounts.adopt(self.house.org, principal.agent_id, key, created_by="tests")
            await self.house.runtime.epochs.look()
        return secret

    async def ask(
        self, method: str, path: str, body: Any = None, *, key: str = ALICE, headers: dict[str, str] | None = None
    ) -> Answer:
        """As AgenticMail's clients do: the bearer key, JSON, the path as it is."""
        sent = {"Authorization": f"Bearer {key}", **({"Content-Type": "application/json"} if body is not None else {})}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        url = aiohttp.client.URL(f"http://127.0.0.1:{self.house.server.port}{path}", encoded=True)
        async with self.house.http.request(method, url, data=data, headers={**sent, **(headers or {})}) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def send(self, body: Any, **options: Any) -> Answer:
        return await self.ask("POST", f"{BASE}/mail/send", body, **options)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with Recorded() as api, House(tmp_path) as house:
        await house.upstream("mail", api.url, kind="http", catalog="agenticmail")
        yield Desk(house, api)


async def test_every_recorded_pair_passes_as_it_is(desk: Desk) -> None:
    await desk.agent("alice", ALL, ALICE)
    await desk.agent("bob", ALL, BOB)
    master = await desk.agent("operator", ALL)
    judged = [pair for pair in PAIRS if pair["name"] not in OWN]
    for pair in judged:
        agent = pair["key"] != "mk_MASTER" and pair["key"] is not None
        if not agent:
            continue
        answer = await desk.ask(pair["method"], pair["path"], pair["request"], key=KEYS[pair["key"]])
        direct = await directly(desk, pair)
        assert (pair["name"], answer.status, answer.body) == (pair["name"], direct.status, redact(direct.body))
        assert answer.headers.get("Content-Type") == direct.headers.get("Content-Type")
    assert master
    rows = await desk.house.records(sum(pair["key"] in {"ak_ALICE", "ak_BOB"} for pair in judged))
    assert {row.door for row in rows} == {"agenticmail"}
    assert {row.effect for row in rows} == {"allow"}


async def directly(desk: Desk, pair: dict[str, Any]) -> Answer:
    headers = {"Authorization": f"Bearer {KEYS[pair['key']]}"} if pair["key"] else {}
    asked = (pair["method"], desk.api.root + pair["path"])
    async with aiohttp.ClientSession() as http, http.request(*asked, json=pair["request"], headers=headers) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


async def test_master_pairs_pass_with_the_gateways_own_credential(tmp_path: Path) -> None:
    async with Recorded() as api, House(tmp_path) as house:
        secrets = {"Authorization": f"Bearer {KEYS['mk_MASTER']}"}
        await house.upstream("mail", api.root, kind="http", catalog="agenticmail", secrets=secrets)
        desk = Desk(house, api)
        key = await desk.agent("operator", ALL)
        for pair in PAIRS:
            if pair["key"] != "mk_MASTER" or pair["name"] in OWN:
                continue
            answer = await desk.ask(pair["method"], pair["path"], pair["request"], key=key)
            direct = await directly(desk, pair)
            assert (pair["name"], answer.status, answer.body) == (pair["name"], direct.status, redact(direct.body))
            assert b"ak_" not in answer.body.replace(b"ak_redacted", b"")
        assert all(key not in str(headers) for _, _, headers, _ in api.seen)


async def test_keys_in_answers_are_taken_out(desk: Desk) -> None:
    await desk.agent("alice", ALL, ALICE)
    answer = await desk.ask("GET", f"{BASE}/accounts/me")
    assert answer.json["apiKey"] == "ak_redacted"
    assert answer.json["name"] == "alice"
    assert redact(b'{"k":"\\u0061k_alice0123"}') == b'{"k":"ak_redacted"}'


COLLEAGUES = Profile(
    name="colleagues", tools=ToolRule(allow=("agenticmail_*",)), max_risk="critical",
    argument_rules=(
        ArgumentRule(name="colleagues-only", tools=("agenticmail_*",), field="recipients", op="domain_in", values=("acme.test",)),
        ArgumentRule(name="small", tools=("agenticmail_send",), field="attachments[*].size", op="max", values=(4,)),
        ArgumentRule(name="no-secrets", tools=("agenticmail_*",), field="subject", op="not_one_of", values=("secret",)),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"to": "eve@evil.test"},
        {"cc": ["bob@acme.test", "eve@evil.test"]},
        {"bcc": "eve@evil.test"},
        {"to": "bob@acme.test, Eve <eve@evil.test>"},
        {"attachments": [{"filename": "a", "content": "aGVsbG8=", "encoding": "base64"}]},
        {"subject": "secret"},
    ],
)
async def test_rules_see_recipients_subject_and_attachments(desk: Desk, change: dict[str, Any]) -> None:
    await desk.agent("alice", COLLEAGUES, ALICE)
    answer = await desk.send({"to": "bob@acme.test", "subject": "s", "text": "t", **change})
    assert (answer.status, answer.json["code"]) == (403, "ARGUMENT_DENIED")
    assert desk.api.seen == []
    (record,) = await desk.house.records(1)
    assert (record.outcome, record.tool, record.door) == ("denied", "agenticmail_send", "agenticmail")


async def test_addresses_are_forwarded_in_the_form_that_was_judged(desk: Desk) -> None:
    await desk.agent("alice", COLLEAGUES, ALICE)
    await desk.send({"to": " Bob  <bob@ACME.Test> ,carol@acme.test.", "cc": ['"B, C" <d@acme.test>'], "subject": "s"})
    (sent,) = desk.api.sent
    assert sent == {"to": '"Bob" <bob@acme.test>, carol@acme.test', "cc": ['"B, C" <d@acme.test>'], "subject": "s"}


BODIES: dict[str, tuple[bytes, dict[str, str]]] = {
    "gzip": (gzip.compress(b'{"to":"a@b.c","subject":"s"}'), {"Content-Encoding": "gzip"}),
    "gzip unsaid": (gzip.compress(b'{"to":"a@b.c","subject":"s"}'), {}),
    "utf-16": ('{"to":"a@b.c","subject":"s"}'.encode("utf-16"), {"Content-Type": "application/json; charset=utf-16"}),
    "utf-16 unsaid": ('{"to":"a@b.c","subject":"s"}'.encode("utf-16-le"), {}),
    "mark": (b'\xef\xbb\xbf{"to":"a@b.c","subject":"s"}', {}),
    "form": (b"to=a@b.c&subject=s", {"Content-Type": "application/x-www-form-urlencoded"}),
    "multipart": (b"--x\r\n\r\n--x--", {"Content-Type": "multipart/form-data; boundary=x"}),
    "text": (b'{"to":"a@b.c","subject":"s"}', {"Content-Type": "text/plain"}),
    "twice": (b'{"to":"bob@acme.test","to":"eve@evil.test","subject":"s"}', {}),
    "case": (b'{"to":"bob@acme.test","TO":"eve@evil.test","subject":"s"}', {}),
    "proto": (b'{"to":"bob@acme.test","__proto__":{"to":"eve@evil.test"},"subject":"s"}', {}),
    "list": (b'[{"to":"bob@acme.test"}]', {}),
    "null": (b"null", {}),
    "broken": (b'{"to":', {}),
}
SHAPES: dict[str, dict[str, Any]] = {
    "object to": {"to": {"address": "bob@acme.test"}},
    "list in to": {"to": [["bob@acme.test"]]},
    "object text": {"text": {"path": "/etc/passwd"}},
    "object html": {"html": {"href": "http://127.0.0.1/"}},
    "object subject": {"subject": {"path": "/etc/passwd"}},
    "attached path": {"attachments": [{"filename": "a", "path": "/etc/passwd"}]},
    "attached href": {"attachments": [{"filename": "a", "content": "a", "href": "http://127.0.0.1/"}]},
    "attached object": {"attachments": [{"filename": "a", "content": {"path": "/etc/passwd"}}]},
    "attached raw": {"attachments": [{"raw": "From: x"}]},
    "raw": {"raw": "From: x"},
    "envelope": {"envelope": {"to": "eve@evil.test"}},
    "headers": {"headers": {"Bcc": "eve@evil.test"}},
    "group": {"to": "friends: eve@evil.test;"},
    "comment": {"to": "bob@acme.test (eve@evil.test)"},
    "quoted local": {"to": '"eve@evil.test x"@acme.test'},
    "route": {"to": "<@evil.test:bob@acme.test>"},
    "percent": {"to": "eve%evil.test@acme.test"},
    "line break": {"to": "bob@acme.test\r\nBcc: eve@evil.test"},
    "name with address": {"to": '"eve@evil.test" <bob@acme.test>'},
    "look-alike": {"to": "bob@acmе.test"},
    "reply to": {"replyTo": {"address": "eve@evil.test"}},
    "empty entry": {"to": ["bob@acme.test", "bob@acme.test,"]},
    "own name": {"recipients": ["bob@acme.test"]},
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
async def test_bodies_that_two_could_read_differently_are_refused(desk: Desk, name: str) -> None:
    await desk.agent("alice", ALL, ALICE)
    body, headers = BODIES[name]
    answer = await desk.send(body, headers=headers)
    assert answer.status in {400, 415, 422}, answer.body
    await refused(desk, answer)


@pytest.mark.parametrize("name", SHAPES)
async def test_values_of_another_shape_are_refused(desk: Desk, name: str) -> None:
    await desk.agent("alice", ALL, ALICE)
    answer = await desk.send({"to": "bob@acme.test", "subject": "s", **SHAPES[name]})
    assert answer.status == 422, answer.body
    await refused(desk, answer)


PATHS = (
    "/mail/Send", "/MAIL/send", "/mail/send/", "//mail/send", "/mail//send", "/mail/./send", "/x/../mail/send",
    "/mail/%73end", "/mail%2Fsend", "/mail/send;x=1", "/mail/send%00", "/mail/send%20", "/mail\\send", "/mail/send?a",
    "/mail/send?a=1&a=2", "/mail/send?a[]=1", "/mail/send?a=1&A=2", "/mail/nope", "/mail/send/x",
    "/mail/pending/1/approve", "/tasks/rpc", "/mail/inbound", "/mail/send%3F", "/mail/%2e%2e/send",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
async def test_paths_are_exact_and_what_is_undocumented_is_denied(desk: Desk, path: str) -> None:
    await desk.agent("alice", ALL, ALICE)
    answer = await desk.ask("POST", BASE + path, {"to": "bob@acme.test", "subject": "s"})
    assert answer.status in {400, 403, 404, 422}, answer.body
    await refused(desk, answer)


@pytest.mark.parametrize("path", ["/API/agenticmail/mail/send", "/api//agenticmail/mail/send", "/api/agenticmai%6C/mail/send",
                                  "/api/agenticmail;/mail/send", "/x/../api/agenticmail/mail/send", "/api/v1/agenticmail/mail/send"])  # fmt: skip
async def test_other_spellings_of_the_door_are_no_door(desk: Desk, path: str) -> None:
    await desk.agent("alice", ALL, ALICE)
    answer = await desk.ask("POST", path, {"to": "bob@acme.test", "subject": "s"})
    assert answer.status in {401, 404}
    assert desk.api.seen == []


@pytest.mark.parametrize("path", ["/accounts/Me", "/accounts/%6De", "/accounts/ME", "/accounts/Directory"])
async def test_a_word_in_another_spelling_is_no_parameter(desk: Desk, path: str) -> None:
    await desk.agent("alice", ALL, ALICE)
    answer = await desk.ask("GET", BASE + path)
    assert answer.status == 400
    await refused(desk, answer)


async def test_the_method_is_the_requests_own(desk: Desk) -> None:
    await desk.agent("alice", Profile(name="r", tools=ToolRule(allow=("agenticmail_read",))), ALICE)
    for method in ("HEAD", "OPTIONS", "PUT"):
        assert (await desk.ask(method, f"{BASE}/mail/messages/617")).status == 403
    override = {"X-HTTP-Method-Override": "DELETE", "X-Method-Override": "DELETE"}
    await desk.ask("GET", f"{BASE}/mail/messages/617", headers=override)
    ((method, _, headers, _),) = desk.api.seen
    assert method == "GET"
    assert not any("override" in name.lower() for name in headers)


async def refused(desk: Desk, answer: Answer) -> None:
    """Nothing was forwarded, and the refusal is on record."""
    assert answer.status != 202
    assert "error" in answer.json
    assert desk.api.seen == []
    (record,) = await desk.house.records(1)
    assert (record.effect, record.outcome) == ("deny", "denied")
    assert record.door == "agenticmail"


HOLDING = Profile(
    name="asks", tools=ToolRule(allow=("agenticmail_*",)), max_risk="critical",
    approval=ApprovalRule(tools=("agenticmail_send", "agenticmail_delete")),
)  # fmt: skip


async def test_held_mail_is_told_in_agenticmails_own_shape_and_never_202(desk: Desk) -> None:
    await desk.agent("alice", HOLDING, ALICE)
    answer = await desk.send({"to": "bob@localhost", "subject": "hello"})
    assert (answer.status, answer.json["sent"], answer.json["blocked"]) == (200, False, True)
    assert answer.json["pendingId"].startswith("dec_")
    other = await desk.ask("DELETE", f"{BASE}/mail/messages/617")
    assert (other.status, other.json["code"]) == (403, "APPROVAL_REQUIRED")
    assert desk.api.seen == []
    assert {row.outcome for row in await desk.house.records(2)} == {"held"}


async def test_a_202_of_the_upstream_becomes_200(desk: Desk) -> None:
    await desk.agent("alice", ALL, ALICE)
    desk.api.answers["POST", "/mail/send"] = (202, {"queued": True})
    answer = await desk.send({"to": "bob@acme.test", "subject": "s"})
    assert (answer.status, answer.json) == (200, {"queued": True})


DRAFT = next(pair["response"] for pair in PAIRS if pair["name"] == "draft get")


@pytest.mark.parametrize(
    ("stored", "allowed"),
    [
        ({"to_addr": "bob@acme.test"}, True),
        ({"to_addr": "eve@evil.test"}, False),
        ({"to_addr": "bob@acme.test", "cc": "eve@evil.test"}, False),
        ({"to_addr": "bob@acme.test", "bcc": '["eve@evil.test"]'}, False),
        ({"to_addr": "bob@acme.test", "subject": "secret"}, False),
    ],
)
async def test_drafts_are_judged_on_what_they_will_send(desk: Desk, stored: dict[str, Any], allowed: bool) -> None:
    await desk.agent("alice", COLLEAGUES, ALICE)
    desk.api.answers["GET", "/drafts/d1"] = (200, {**DRAFT, "id": "d1", **stored})
    desk.api.answers["POST", "/drafts/d1/send"] = (200, {"messageId": "<1@localhost>"})
    answer = await desk.ask("POST", f"{BASE}/drafts/d1/send", {})
    assert answer.status == (200 if allowed else 403), answer.body
    asked = [(method, target.removeprefix(BASE)) for method, target, _, _ in desk.api.seen]
    assert asked == [("GET", "/drafts/d1"), *([("POST", "/drafts/d1/send")] if allowed else [])]
    (record,) = await desk.house.records(1)
    assert record.tool == "agenticmail_drafts"


async def test_a_draft_that_nobody_can_read_is_not_sent(desk: Desk) -> None:
    await desk.agent("alice", ALL, ALICE)
    assert (await desk.ask("POST", f"{BASE}/drafts/d1/send", {})).status == 404
    desk.api.answers["GET", "/drafts/d1"] = (200, {**DRAFT, "to_addr": "friends: eve@evil.test;"})
    assert (await desk.ask("POST", f"{BASE}/drafts/d1/send", {})).status == 422
    desk.api.answers["GET", "/drafts/d1"] = (500, {"error": "no"})
    assert (await desk.ask("POST", f"{BASE}/drafts/d1/send", {})).status == 502
    assert not any(method == "POST" for method, _, _, _ in desk.api.seen)
    assert {row.effect for row in await desk.house.records(3)} == {"deny"}


async def test_who_may_not_send_drafts_learns_nothing_of_them(desk: Desk) -> None:
    await desk.agent("alice", Profile(name="r", tools=ToolRule(allow=("agenticmail_read",))), ALICE)
    answer = await desk.ask("POST", f"{BASE}/drafts/d1/send", {})
    assert (answer.status, desk.api.seen) == (403, [])


async def test_templates_are_judged_filled_in(desk: Desk) -> None:
    await desk.agent("alice", COLLEAGUES, ALICE)
    entry = {"id": "t1", "subject": "{{what}}", "text_body": "Dear {{ who }}", "html_body": None}
    desk.api.answers["GET", "/templates"] = (200, {"templates": [entry]})
    desk.api.answers["POST", "/templates/t1/send"] = (200, {"messageId": "<1@localhost>"})
    path = f"{BASE}/templates/t1/send"
    denied = await desk.ask("POST", path, {"to": "bob@acme.test", "variables": {"what": "secret"}})
    assert (denied.status, denied.json["code"]) == (403, "ARGUMENT_DENIED")
    sent = await desk.ask("POST", path, {"to": "bob@acme.test", "variables": {"what": "news"}})
    assert sent.status == 200
    assert (await desk.ask("POST", f"{BASE}/templates/t2/send", {"to": "bob@acme.test"})).status == 404


async def test_scheduled_mail_is_judged_when_it_is_scheduled(desk: Desk) -> None:
    await desk.agent("alice", COLLEAGUES, ALICE)
    body = {"to": "eve@evil.test", "subject": "x", "text": "y", "sendAt": "2030-01-01T00:00:00Z"}
    assert (await desk.ask("POST", f"{BASE}/scheduled", body)).status == 403
    assert desk.api.seen == []


async def test_an_agents_own_key_is_its_identity_here_and_nowhere_else(desk: Desk) -> None:
    secret = await desk.agent("alice", ALL, ALICE)
    answer = await desk.ask("GET", f"{BASE}/accounts/me")
    assert answer.status == 200
    assert desk.api.seen[0][2]["Authorization"] == f"Bearer {ALICE}"
    assert (await desk.ask("GET", f"{BASE}/accounts/me", key=BOB)).status == 401
    assert (await desk.ask("GET", f"{BASE}/accounts/me", headers={"X-API-Key": secret})).status == 401
    assert (await desk.house.send("POST", "/mcp", key=ALICE, body={})).status == 401
    assert (await desk.house.send("POST", "/api/engine/check-permission", key=ALICE, body={"tool": "x"})).status == 401
    stored = await desk.house.runtime.store.find(keys_of(desk.house.org))
    assert ALICE not in str(stored.records)
    adopted = next(record for record in stored.records if record.prefix == "ak_")
    await desk.house.runtime.accounts.revoke(desk.house.org, adopted.id)
    await desk.house.runtime.epochs.look()
    assert (await desk.ask("GET", f"{BASE}/accounts/me")).status == 401


def keys_of(org: str) -> Any:
    from agenticmail_enterprise.catalog.records import KEYS
    from agenticmail_enterprise.catalog.store import Query

    return Query(KEYS, "by_org", {"org": org}, limit=100)


async def test_events_stream_redacted_and_five_at_most(desk: Desk) -> None:
    await desk.agent("alice", ALL, ALICE)
    url = f"{BASE}/events"
    headers = {"Authorization": f"Bearer {ALICE}"}
    streams = [await desk.house.http.get(url, headers=headers) for _ in range(5)]
    first = streams[0]
    assert first.headers["Content-Type"] == "text/event-stream"
    for stream in streams:
        assert await asyncio.wait_for(stream.content.readuntil(b"\n\n"), 30) == b": connected\n\n"
    refused_one = await desk.ask("GET", url)
    assert (refused_one.status, refused_one.json["code"]) == (429, "RATE_LIMITED")
    assert desk.api.streams == 5
    desk.api.tell(b'{"key":"%s"}' % ALICE.encode())
    for stream in streams:
        event = await asyncio.wait_for(stream.content.readuntil(b"\n\n"), 30)
        assert ALICE.encode() not in event
        assert b"ak_redacted" in event
    for stream in streams:
        stream.close()
    rows = await desk.house.records(6)
    assert sorted(row.outcome for row in rows) == ["cancelled"] * 5 + ["denied"]
    again = await desk.house.http.get(url, headers=headers)
    assert again.status == 200
    again.close()


async def test_streams_end_with_the_gateway_and_are_on_record(desk: Desk) -> None:
    await desk.agent("alice", ALL, ALICE)
    stream = await desk.house.http.get(f"{BASE}/events", headers={"Authorization": f"Bearer {ALICE}"})
    await asyncio.wait_for(stream.content.readuntil(b"\n\n"), 30)
    desk.house.runtime.rest.end_streams()
    with contextlib.suppress(aiohttp.ClientError):
        await asyncio.wait_for(stream.content.read(), 30)
    (record,) = await desk.house.records(1)
    assert record.outcome == "cancelled"


async def test_a_draft_does_not_change_between_being_judged_and_being_sent(desk: Desk) -> None:
    await desk.agent("alice", COLLEAGUES, ALICE)
    desk.api.answers["GET", "/drafts/d1"] = (200, {**DRAFT, "to_addr": "bob@acme.test"})
    desk.api.answers["POST", "/drafts/d1/send"] = desk.api.answers["PUT", "/drafts/d1"] = (200, {"ok": True})
    desk.api.hold = asyncio.Event()
    send = asyncio.ensure_future(desk.ask("POST", f"{BASE}/drafts/d1/send", {}))
    while not desk.api.seen:
        await asyncio.sleep(0.01)
    change = asyncio.ensure_future(desk.ask("PUT", f"{BASE}/drafts/d1", {"to": "bob@acme.test", "subject": "other"}))
    for _ in range(3):  # other calls pass meanwhile, so the change had its chance
        assert (await desk.ask("GET", f"{BASE}/accounts/me")).status == 200
    desk.api.hold.set()
    assert {(await send).status, (await change).status} == {200}
    drafts = [method for method, target, _, _ in desk.api.seen if "/drafts/" in target]
    assert drafts == ["GET", "POST", "PUT"]


def test_the_recording_is_grown() -> None:
    assert grown({"k": "ak_ALICE"}) == {"k": ALICE}
