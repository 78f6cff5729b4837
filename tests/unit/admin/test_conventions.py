"""What holds for every operation: merge patches, preconditions, repeated requests, dry runs, rates, versions."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from agenticmail_enterprise.admin_ui import examples
from agenticmail_enterprise.admin_ui.api import OPERATIONS
from agenticmail_enterprise.admin_ui.limits import ApiLimits
from agenticmail_enterprise.admin_ui.operation import Operation
from agenticmail_enterprise.admin_ui.patching import merge
from agenticmail_enterprise.catalog.errors import StoreUnavailable, TooManyRequests
from agenticmail_enterprise.catalog.records import AGENTS, KEYS, PROFILES, REPLAYS, TOOLS, UPSTREAMS, USERS
from agenticmail_enterprise.catalog.store import Query

from .test_every_operation import named, path_of, send

MUTATIONS = [item for item in OPERATIONS if item.served_by == "admin" and item.repeatable]
KEYED = [item for item in MUTATIONS if item.method in {"POST", "PATCH"}]
STORED = (AGENTS, KEYS, PROFILES, UPSTREAMS, TOOLS, USERS)
UNSHOWN = {"refresh_upstream", "create_link", "sign_user_out", "remove_second_factor", "expect_hook", "forget_hook"}
"""What they change is no record that is shown: links, sessions, secrets, signs of life."""


async def everything(site: Any) -> list[bytes]:
    """All that is stored and that operations change."""
    found = []
    for entity in STORED:
        page = await site.store.find(Query(entity, "by_org", {"org": site.org}, limit=500))
        found += [msgspec.json.encode(record) for record in page.records]
    return found


# -- PATCH -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [  # RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}), ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}), ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}), ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}), (["a", "b"], ["c", "d"], ["c", "d"]), ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None), ({"a": "foo"}, "bar", "bar"), ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}), ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)  # fmt: skip
def test_merging_is_the_rfcs(target: Any, patch: Any, merged: Any) -> None:
    before = msgspec.json.encode(target)
    assert merge(target, patch) == merged
    assert msgspec.json.encode(target) == before


def test_every_put_has_its_patch() -> None:
    """Every one that takes a body: without one there is nothing to merge. A decision is a deed, not a state."""
    deeds = {"/api/engine/approvals/{id}"}
    patched = {operation.path for operation in OPERATIONS if operation.method == "PATCH"}
    replaced = {operation.path for operation in OPERATIONS if operation.method == "PUT" and operation.body}
    assert replaced - deeds == patched


async def test_a_patch_changes_what_it_names_and_nothing_else(site: Any) -> None:
    made = await site.call(
        "POST", "/api/agents", {"name": "bot", "description": "One.", "metadata": {"a": "1", "b": "2"}}
    )
    path = made.headers["Location"]
    changed = await site.call("PATCH", path, {"status": "suspended", "metadata": {"a": None, "c": "3"}})
    agent = changed.json["data"]
    assert changed.status == 200
    assert (agent["name"], agent["description"], agent["status"]) == ("bot", "One.", "suspended")
    assert agent["metadata"] == {"b": "2", "c": "3"}
    assert changed.headers["ETag"] == '"2"'
    emptied = await site.call("PATCH", path, {"description": None})
    assert emptied.json["data"]["description"] == ""
    missing = await site.call("PATCH", path, {"name": None, "status": "asleep"})
    assert (missing.status, missing.fields) == (422, {"/name": "required", "/status": "choice"})
    late = await site.call("PATCH", path, {"description": "x"}, headers={"If-Match": '"1"'})
    assert late.status == 412


async def test_a_patch_keeps_the_secrets_that_it_does_not_name(site: Any) -> None:
    body = {"name": "files", "url": "https://mcp.example.com/mcp", "secrets": {"X-One": "first", "X-Two": "second"}}
    path = (await site.call("POST", "/api/gateway/upstreams", body)).headers["Location"]
    assert (await site.call("PATCH", path, {"timeout_ms": 900})).json["data"]["secrets"] == {
        "X-One": "set",
        "X-Two": "set",
    }
    changed = await site.call("PATCH", path, {"secrets": {"X-One": None, "X-Three": "third"}})
    assert changed.json["data"]["secrets"] == {"X-Two": "set", "X-Three": "set"}
    assert changed.json["data"]["timeout_ms"] == 900
    record = (await site.store.find(Query(UPSTREAMS, "by_org", {"org": site.org}))).records[0]
    assert site.runtime.registry.open_secrets(record) == {"X-Two": "second", "X-Three": "third"}
    moved = await site.call("PATCH", path, {"url": "https://other.example.com/mcp"})
    assert moved.fields == {"/secrets": "moved"}


async def test_a_profiles_patch_needs_to_know_what_it_changes(site: Any) -> None:
    path = (await site.call("POST", "/api/agents", {"name": "bot", "preset": "sandbox"})).headers[
        "Location"
    ] + "/profile"
    blind = await site.call("PATCH", path, {"profile": {"max_risk": "medium"}})
    assert (blind.status, blind.json["code"]) == (428, "PRECONDITION_REQUIRED")
    before = await site.call("GET", path)
    tag = before.headers["ETag"]
    changed = await site.call("PATCH", path, {"profile": {"max_risk": "medium"}}, headers={"If-Match": tag})
    profile = changed.json["data"]
    assert (profile["source"], profile["preset"]) == ("own", None)
    assert profile["profile"] == {**before.json["data"]["profile"], "max_risk": "medium"}
    again = await site.call("PATCH", path, {"profile": {"max_risk": "low"}}, headers={"If-Match": tag})
    assert again.status == 412
    preset = await site.call("PATCH", path, {"preset": "developer"}, headers={"If-Match": "*"})
    assert preset.json["data"]["preset"] == "developer"


async def test_two_patches_at_once_lose_nothing(site: Any) -> None:
    path = (await site.call("POST", "/api/agents", {"name": "bot"})).headers["Location"]
    answers = await asyncio.gather(*(site.call("PATCH", path, {"metadata": {f"k{n}": "x"}}) for n in range(8)))
    done = sum(answer.status == 200 for answer in answers)
    assert {answer.status for answer in answers} <= {200, 409}
    assert len((await site.call("GET", path)).json["data"]["metadata"]) == done >= 1


# -- Idempotency-Key ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("operation", KEYED, ids=named)
async def test_sent_again_a_request_is_answered_again_and_done_once(site: Any, operation: Operation) -> None:
    await site.furnish()
    headers = {"Idempotency-Key": "0b1c-first"}
    first = await send(site, operation, headers=headers)
    after, entries = await everything(site), len(await site.audit())
    second = await send(site, operation, headers=headers)
    assert first.status == second.status == operation.status
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    for name in ("ETag", "Location"):
        assert second.headers.get(name) == first.headers.get(name)
    once = {**first.json["data"], **dict.fromkeys(operation.once)}
    assert second.json == {"data": once}
    assert await everything(site) == after
    assert len(await site.audit()) == entries


async def test_a_key_that_was_shown_is_not_shown_again_nor_stored(site: Any) -> None:
    body = {"kind": "program", "scopes": ["agents:read"]}
    first = await site.call("POST", "/api/keys", body, headers={"Idempotency-Key": "k"})
    secret = first.json["data"]["key"]
    second = await site.call("POST", "/api/keys", body, headers={"Idempotency-Key": "k"})
    assert second.json["data"]["key"] is None
    assert second.json["data"]["id"] == first.json["data"]["id"]
    (replay,) = (await site.store.find(Query(REPLAYS, "by_end", {"shelf": "replay"}))).records
    assert secret not in str(replay)


async def test_a_key_belongs_to_its_request_its_sender_and_its_path(site: Any) -> None:
    headers = {"Idempotency-Key": "k"}
    assert (await site.call("POST", "/api/agents", {"name": "one"}, headers=headers)).status == 201
    other = await site.call("POST", "/api/agents", {"name": "two"}, headers=headers)
    assert (other.status, other.json["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert (
        await site.call("POST", "/api/agents", {"name": "two"}, headers=headers, key=await site.key("*"))
    ).status == 201
    assert (await site.call("POST", "/api/agents", {"name": "one"}, headers=headers, key=site.stranger)).status == 201
    key = {"kind": "program", "scopes": ["agents:read"]}
    assert (await site.call("POST", "/api/keys", key, headers=headers)).status == 201
    for bad in ("", " ", "x" * 256, "tab\there"):
        assert (await site.call("POST", "/api/agents", {"name": "x"}, headers={"Idempotency-Key": bad})).status == 400


async def test_after_a_refusal_the_key_is_free_and_after_a_fault_it_is_not(site: Any) -> None:
    headers = {"Idempotency-Key": "k"}
    await site.call("POST", "/api/agents", {"name": "taken"})
    assert (await site.call("POST", "/api/agents", {"name": "taken"}, headers=headers)).status == 409
    assert (await site.call("POST", "/api/agents", {"name": "free"}, headers=headers)).status == 201

    async def fail(*_: Any, **__: Any) -> None:
        raise StoreUnavailable

    real, site.accounts.create_agent = site.accounts.create_agent, fail
    assert (await site.call("POST", "/api/agents", {"name": "new"}, headers={"Idempotency-Key": "l"})).status == 503
    site.accounts.create_agent = real
    again = await site.call("POST", "/api/agents", {"name": "new"}, headers={"Idempotency-Key": "l"})
    assert (again.status, again.json["code"]) == (409, "IDEMPOTENCY_IN_FLIGHT")


async def test_twins_are_done_once(site: Any) -> None:
    async def twin() -> Any:
        return await site.call("POST", "/api/agents", {"name": "twin"}, headers={"Idempotency-Key": "k"})

    answers = await asyncio.gather(*(twin() for _ in range(10)))
    assert {answer.status for answer in answers} <= {201, 409}
    assert all(answer.json["code"] == "IDEMPOTENCY_IN_FLIGHT" for answer in answers if answer.status == 409)
    assert len((await site.call("GET", "/api/agents")).json["data"]) == 1
    assert (await twin()).headers["Idempotent-Replayed"] == "true"


async def test_what_has_ended_is_done_anew_and_swept(site: Any) -> None:
    replays, now = site.admin._replays, [1_000_000.0]
    replays._clock = lambda: now[0]
    body, headers = {"kind": "program", "scopes": ["agents:read"]}, {"Idempotency-Key": "k"}
    one = await site.call("POST", "/api/keys", body, headers=headers)
    await site.call("POST", "/api/keys", body, headers={"Idempotency-Key": "old"})
    now[0] += 24 * 3600 + 1
    two = await site.call("POST", "/api/keys", body, headers=headers)
    assert two.json["data"]["id"] != one.json["data"]["id"]
    left = (await site.store.find(Query(REPLAYS, "by_end", {"shelf": "replay"}))).records
    assert len(left) == 1


# -- dry runs ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("operation", MUTATIONS, ids=named)
async def test_a_dry_run_tells_and_changes_nothing(site: Any, operation: Operation) -> None:
    await site.furnish()
    before, entries = await everything(site), len(await site.audit())
    answer = await send(site, operation, query={"dry_run": "true"})
    assert answer.status == 200, answer.json
    assert answer.json["data"]["dry_run"] is True
    assert bool(answer.json["data"]["changes"]) == (operation.name not in UNSHOWN)
    assert await everything(site) == before
    assert len(await site.audit()) == entries
    assert site.refresher.asked == []
    assert "Bearer" not in str(answer.json)
    real = await send(site, operation, query={"dry_run": "false"})
    assert real.status == operation.status


async def test_a_dry_run_says_which_fields_and_refuses_what_would_be_refused(site: Any) -> None:
    path = (await site.call("POST", "/api/agents", {"name": "bot", "preset": "sandbox"})).headers["Location"]
    await site.call("POST", "/api/keys", {"kind": "agent", "agent_id": path.rpartition("/")[2]})
    tried = await site.call(
        "PATCH", path, {"status": "suspended", "metadata": {"team": "x"}}, query={"dry_run": "true"}
    )
    (change,) = tried.json["data"]["changes"]
    assert (change["action"], change["kind"]) == ("update", "agent")
    assert change["fields"] == [
        {"path": "/status", "before": "active", "after": "suspended"},
        {"path": "/metadata/team", "before": None, "after": "x"},
    ]
    assert tried.json["data"]["result"]["status"] == "suspended"
    gone = await site.call("DELETE", path, query={"dry_run": "true"})
    assert {(item["action"], item["kind"]) for item in gone.json["data"]["changes"]} == {
        ("delete", "agent"),
        ("update", "key"),
    }
    made = await site.call(
        "POST", "/api/keys", {"kind": "program", "scopes": ["agents:read"]}, query={"dry_run": "true"}
    )
    assert made.json["data"]["result"]["key"] is None
    taken = await site.call("POST", "/api/agents", {"name": "bot"}, query={"dry_run": "true"})
    assert (taken.status, taken.json["code"]) == (409, "CONFLICT")
    stale = await site.call("DELETE", path, query={"dry_run": "true"}, headers={"If-Match": '"9"'})
    assert stale.status == 412
    for bad in ("yes", "", "1"):
        assert (await site.call("DELETE", path, query={"dry_run": bad})).fields == {"/dry_run": "type"}
    assert (await site.call("DELETE", path + "?dry_run=true&dry_run=false")).status == 422
    assert (await site.call("GET", path, query={"dry_run": "true"})).status == 400
    nobody = await site.call("DELETE", path, query={"dry_run": "true"}, key=await site.key("agents:read"))
    assert nobody.status == 403


# -- versions, rates, the document -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "operation",
    [item for item in OPERATIONS if item.method == "GET" and item.path.startswith("/api/") and not item.download],
    ids=named,
)
async def test_every_path_is_also_served_under_its_version(site: Any, operation: Operation) -> None:
    await site.furnish()
    path = path_of(operation)
    plain = await site.call("GET", path)
    versioned = await site.call("GET", path.replace("/api/", "/api/v1/", 1))
    assert (versioned.status, versioned.body) == (plain.status, plain.body)
    assert versioned.headers["API-Version"] == "1"
    assert (await site.call("GET", path.replace("/api/", "/api/v1/v1/", 1))).status == 404
    assert (await site.call("GET", path.replace("/api/", "/api/v2/", 1))).status == 404


async def test_answers_say_what_is_left_and_too_many_are_refused(site: Any) -> None:
    first = await site.call("GET", "/api/agents")
    assert first.headers["RateLimit-Policy"] == '"key";q=1200;w=60'
    assert first.headers["RateLimit"].startswith('"key";r=11')
    site.admin._limits = ApiLimits(3)
    answers = [await site.call("GET", "/api/agents") for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert answers[0].headers["RateLimit"] == '"key";r=2;t=20'
    refused = answers[-1]
    assert refused.json["code"] == "RATE_LIMITED"
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["RateLimit"].startswith('"key";r=0;')
    assert set(refused.json["details"]) == {"retry_after"}
    assert (await site.call("GET", "/api/agents", key=site.stranger)).status == 200
    failed = await site.call("GET", "/api/agents/agt_none", key=site.stranger)
    assert (failed.status, failed.headers["RateLimit"][:9]) == (404, '"key";r=1')
    site.admin._limits = ApiLimits(0)
    assert "RateLimit" not in (await site.call("GET", "/api/agents")).headers


def test_a_quota_of_none_never_refuses() -> None:
    from agenticmail_enterprise.catalog.calls import Principal

    principal, limits = Principal("o", "", "", "key_1"), ApiLimits(1)
    limits.charge(principal)
    with pytest.raises(TooManyRequests):
        limits.charge(principal)
    free = ApiLimits(0)
    assert [free.charge(principal) for _ in range(5)] == [{}] * 5


async def test_the_document_shows_all_of_it(site: Any) -> None:
    document = (await site.call("GET", "/api/openapi.json")).json
    assert document["x-aliases"] == {"/api/v1": "/api"}
    assert {"RateLimit", "RateLimit-Policy", "API-Version"} <= set(document["components"]["headers"])
    for operation in MUTATIONS:
        entry = document["paths"][operation.path][operation.method.lower()]
        names = {parameter["name"]: parameter for parameter in entry["parameters"]}
        assert "dry_run" in names
        assert ("Idempotency-Key" in names) == (operation.method in {"POST", "PATCH"})
        assert ("If-Match" in names) == (operation.method != "POST")
        if operation.precondition:
            assert names["If-Match"]["required"] is True
            assert "428" in entry["responses"]
        if operation.method == "PATCH":
            assert "application/merge-patch+json" in entry["requestBody"]["content"]
    profile = document["paths"]["/api/agents/{id}/profile"]["patch"]
    assert profile["operationId"] == "patch_agent_profile"
    assert profile["parameters"][0]["example"] == examples.AGENT_ID
