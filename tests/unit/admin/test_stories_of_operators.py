"""What operators do, from the first agent to the revoked key, and what they are told on the way."""

from __future__ import annotations

from typing import Any

import pytest

from agenticmail_enterprise.admin_ui import examples
from agenticmail_enterprise.admin_ui.show import in_full
from agenticmail_enterprise.catalog.errors import UpstreamTimeout
from agenticmail_enterprise.catalog.profiles import Profile
from agenticmail_enterprise.gateway.identity import CALL_SCOPE
from agenticmail_enterprise.gateway.tools_registry import Correction

EMPTY = in_full(Profile())


async def make(site: Any, **body: Any) -> dict[str, Any]:
    answer = await site.call("POST", "/api/agents", {"name": "bot", **body})
    assert answer.status == 201, answer.json
    return answer.json["data"]


# -- agents ------------------------------------------------------------------------------------------------------
async def test_an_agent_is_made_found_changed_and_deleted(site: Any) -> None:
    made = await site.call("POST", "/api/agents", {"name": "support-bot", "preset": "customer-support"})
    agent = made.json["data"]
    assert made.headers["Location"] == f"/api/agents/{agent['id']}"
    found = await site.call("GET", made.headers["Location"])
    assert found.json["data"] == agent
    changed = await site.call("PUT", made.headers["Location"], {"name": "renamed", "metadata": {"team": "mail"}})
    assert changed.json["data"]["metadata"] == {"team": "mail"}
    assert changed.json["data"]["profile_id"] == agent["profile_id"]
    gone = await site.call("DELETE", made.headers["Location"])
    assert (gone.status, gone.body) == (204, b"")
    assert (await site.call("GET", made.headers["Location"])).status == 404
    assert (await site.call("DELETE", made.headers["Location"])).status == 404


async def test_a_taken_name_is_a_conflict_that_names_the_index(site: Any) -> None:
    await make(site)
    answer = await site.call("POST", "/api/agents", {"name": "bot"})
    assert (answer.status, answer.json["code"], answer.json["details"]) == (409, "CONFLICT", {"index": "name"})
    assert set(answer.json) == {"error", "code", "details", "request_id"}
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]


async def test_giving_a_profile_needs_the_right_to_give_profiles(site: Any) -> None:
    key = await site.key("agents:write", "agents:read")
    assert (await site.call("POST", "/api/agents", {"name": "a"}, key=key)).status == 201
    answer = await site.call("POST", "/api/agents", {"name": "b", "preset": "full-access"}, key=key)
    assert (answer.status, answer.json["details"]["scope"]) == (403, "profiles:write")


async def test_the_tenant_never_comes_from_the_body(site: Any) -> None:
    for field in ("org", "id", "tenant", "version", "created_by"):
        answer = await site.call("POST", "/api/agents", {"name": "bot", field: site.other})
        assert answer.fields == {f"/{field}": "unknown_field"}


# -- versions ----------------------------------------------------------------------------------------------------
async def test_changes_can_be_held_to_what_was_read(site: Any) -> None:
    agent = await make(site)
    path = f"/api/agents/{agent['id']}"
    first = (await site.call("GET", path)).headers["ETag"]
    same = await site.call("GET", path, headers={"If-None-Match": first})
    assert (same.status, same.body) == (304, b"")
    changed = await site.call("PUT", path, {"name": "one"}, headers={"If-Match": f'"x", {first}'})
    assert (changed.status, changed.headers["ETag"] != first) == (200, True)
    late = await site.call("PUT", path, {"name": "two"}, headers={"If-Match": first})
    assert (late.status, late.json["code"]) == (412, "PRECONDITION_FAILED")
    assert (await site.call("DELETE", path, headers={"If-Match": first})).status == 412
    weak = await site.call("PUT", path, {"name": "two"}, headers={"If-Match": f"W/{changed.headers['ETag']}"})
    assert weak.status == 412, "a weak tag never matches a change"
    assert (await site.call("PUT", path, {"name": "two"}, headers={"If-Match": "*"})).status == 200
    for bad in ("3", '"', "", "a b"):
        assert (await site.call("PUT", path, {"name": "two"}, headers={"If-Match": bad})).status == 400
        assert (await site.call("GET", path, headers={"If-None-Match": bad})).status == 400


async def test_a_profiles_tag_changes_with_the_agent_and_with_what_it_says(site: Any) -> None:
    agent = await make(site)
    path = f"/api/agents/{agent['id']}/profile"
    tags = [(await site.call("GET", path)).headers["ETag"]]
    for body in ({"preset": "sandbox"}, {"profile": {"max_risk": "high"}}, {"profile": {"max_risk": "low"}}):
        answer = await site.call("PUT", path, body, headers={"If-Match": tags[-1]})
        assert answer.status == 200
        tags.append(answer.headers["ETag"])
    assert len(set(tags)) == 4
    assert (await site.call("PUT", path, {"preset": "sandbox"}, headers={"If-Match": tags[1]})).status == 412


# -- profiles ----------------------------------------------------------------------------------------------------
async def test_an_agent_without_a_profile_shows_one_that_allows_nothing(site: Any) -> None:
    agent = await make(site)
    data = (await site.call("GET", f"/api/agents/{agent['id']}/profile")).json["data"]
    assert (data["id"], data["source"], data["profile"]) == (None, "none", EMPTY)


async def test_a_profile_is_shown_as_it_was_given_with_where_it_comes_from(site: Any) -> None:
    agent = await make(site)
    path = f"/api/agents/{agent['id']}/profile"
    preset = (await site.call("PUT", path, {"preset": "sandbox"})).json["data"]
    assert (preset["source"], preset["preset"]) == ("preset", "sandbox")
    wanted = {"name": "Mine", "max_risk": "high", "tools": {"allow": ["mail__*"]}, "rate_limits": [{"per_minute": 5}]}
    own = (await site.call("PUT", path, {"profile": wanted})).json["data"]
    assert (own["source"], own["profile"]["skills"]) == ("own", {"mode": "allowlist", "list": []})
    assert (own["profile"]["max_risk"], own["profile"]["tools"]) == ("high", {"allow": ["mail__*"], "deny": []})
    assert own["profile"]["rate_limits"] == [{"per_minute": 5, "per_hour": 0, "per_day": 0, "tools": []}]
    assert (await site.call("PUT", path, {"profile": own["profile"]})).json["data"]["profile"] == own["profile"]
    assert (await site.call("PUT", path, {"profile_id": own["id"]})).json["data"]["id"] == own["id"]


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        ({}, {""}), ({"preset": "sandbox", "profile": {}}, {""}), ({"preset": "nothing"}, {"/preset"}),
        ({"profile_id": "prf_x"}, {"/profile_id"}), ({"preset": None}, {"/preset"}), ({"profile": []}, {"/profile"}),
        ({"profile": {"max_risk": "huge", "maxRisk": "low", "skills": {"list": [1]}}},
         {"/profile/max_risk", "/profile/maxRisk", "/profile/skills/list/0"}),
        ({"profile": {"schedule": [{"timezone": "Mars/Base"}], "allowed_ips": ["nowhere"]}},
         {"/profile/schedule/0/timezone", "/profile/allowed_ips/0"}),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_a_profile_is_said_with_its_place(site: Any, body: Any, paths: set[str]) -> None:
    agent = await make(site)
    answer = await site.call("PUT", f"/api/agents/{agent['id']}/profile", body)
    assert (answer.status, set(answer.fields)) == (422, paths)


# -- keys --------------------------------------------------------------------------------------------------------
async def test_a_key_is_shown_once_works_and_is_dead_when_revoked(site: Any) -> None:
    made = (await site.call("POST", "/api/keys", {"kind": "program", "scopes": ["agents:read"], "name": "ci"})).json[
        "data"
    ]
    secret = made.pop("key")
    assert made["prefix"] == secret[:11]
    assert made["status"] == "active"
    assert (await site.call("GET", f"/api/keys/{made['id']}")).json["data"] == made
    assert secret.encode() not in (await site.call("GET", "/api/keys")).body
    assert (await site.call("GET", "/api/agents", key=secret)).status == 200
    assert (await site.call("GET", "/api/agents", key="", headers={"Authorization": f"Bearer {secret}"})).status == 200
    revoked = await site.call("DELETE", f"/api/keys/{made['id']}")
    assert (revoked.status, revoked.json["data"]["status"]) == (200, "revoked")
    assert (await site.call("GET", "/api/agents", key=secret)).status == 401
    assert (await site.call("DELETE", f"/api/keys/{made['id']}")).json["data"] == revoked.json["data"]


async def test_an_agents_key_is_bound_to_it_and_dies_with_it(site: Any) -> None:
    agent = await make(site)
    made = (await site.call("POST", "/api/keys", {"kind": "agent", "agent_id": agent["id"]})).json["data"]
    principal = await site.runtime.identity.of_key(made["key"])
    assert (principal.agent_id, principal.scopes) == (agent["id"], frozenset({CALL_SCOPE}))
    await site.call("DELETE", f"/api/agents/{agent['id']}")
    assert (await site.call("GET", f"/api/keys/{made['id']}")).json["data"]["status"] == "revoked"
    assert (await site.call("GET", "/api/agents", key=made["key"])).status == 401


async def test_no_chain_of_keys_ends_wider_than_it_began(site: Any) -> None:
    minting = await site.key("keys:create", "agents:read", "audit:read")
    child = await site.call("POST", "/api/keys", {"kind": "program", "scopes": ["agents:read"]}, key=minting)
    assert child.status == 201
    for body in (
        {"kind": "program", "scopes": ["*"]}, {"kind": "program", "scopes": ["keys:create"]},
        {"kind": "program", "scopes": ["agents:read", "agents:write"]},
        {"kind": "agent", "agent_id": examples.AGENT_ID},
    ):  # fmt: skip
        answer = await site.call("POST", "/api/keys", body, key=minting)
        assert (answer.status, answer.json["code"]) in {(403, "FORBIDDEN"), (422, "VALIDATION_ERROR")}
        answer = await site.call("POST", "/api/keys", body, key=child.json["data"]["key"])
        assert (answer.status, answer.json["details"]) == (403, {"scope": "keys:create"})
    for scopes in (["*"], ["keys:create"]):
        assert (await site.call("POST", "/api/keys", {"kind": "program", "scopes": scopes})).status == 403


async def test_keys_expire_in_ninety_days_unless_told_otherwise(site: Any) -> None:
    body = {"kind": "program", "scopes": ["agents:read"]}
    usual = (await site.call("POST", "/api/keys", body)).json["data"]
    assert usual["expires_at"]
    never = (await site.call("POST", "/api/keys", {**body, "expires_at": None})).json["data"]
    assert never["expires_at"] is None
    told = (await site.call("POST", "/api/keys", {**body, "expires_at": "2099-01-01T00:00:00+01:00"})).json["data"]
    assert told["expires_at"] == "2098-12-31T23:00:00.000Z"
    for wrong in ("2001-01-01T00:00:00Z", "1900-01-01T00:00:00Z", "2099-01-01T00:00:00", "soon", 5):
        assert list((await site.call("POST", "/api/keys", {**body, "expires_at": wrong})).fields) == ["/expires_at"]


async def test_a_key_with_addresses_is_refused_elsewhere(site: Any) -> None:
    elsewhere = await site.key("agents:read", allowed_ips=("203.0.113.0/24",))
    here = await site.key("agents:read", allowed_ips=("127.0.0.0/8",))
    assert (await site.call("GET", "/api/agents", key=elsewhere)).status == 401
    assert (await site.call("GET", "/api/agents", key=here)).status == 200


# -- upstreams ---------------------------------------------------------------------------------------------------
async def test_an_upstream_is_registered_asked_and_its_secret_never_shown_again(site: Any) -> None:
    body = {"name": "files", "url": "https://mcp.example.com/mcp", "secrets": {"Authorization": "Bearer top-secret"}}
    made = await site.call("POST", "/api/gateway/upstreams", body)
    data = made.json["data"]
    assert site.refresher.asked == [(site.org, data["id"])]
    assert (data["secrets"], data["listing"]) == ({"Authorization": "set"}, {"ok": True, "error": "", "tools": 3})
    for answer in (
        made,
        await site.call("GET", made.headers["Location"]),
        await site.call("GET", "/api/gateway/upstreams"),
    ):
        assert b"top-secret" not in answer.body
    again = {key: data[key] for key in ("name", "kind", "url", "secrets", "timeout_ms")}
    changed = await site.call("PUT", made.headers["Location"], {**again, "timeout_ms": 500})
    assert changed.status == 200, "what was read can be sent back"
    record = await site.runtime.registry.upstream(site.org, data["id"])
    assert site.runtime.registry.open_secrets(record) == {"Authorization": "Bearer top-secret"}


async def test_a_server_that_does_not_answer_is_registered_all_the_same(site: Any) -> None:
    site.refresher.answer = UpstreamTimeout()
    made = await site.call("POST", "/api/gateway/upstreams", {"name": "slow", "url": "https://mcp.example.com/mcp"})
    assert made.status == 201
    assert made.json["data"]["listing"] == {"ok": False, "error": "The upstream did not answer in time.", "tools": 0}
    assert (await site.call("GET", made.headers["Location"])).status == 200


async def test_commands_on_the_gateways_host_need_a_scope_of_their_own(site: Any) -> None:
    body = {"name": "local", "kind": "mcp_stdio", "command": ["server", "--root", "/srv"], "env": {"A": "b"}}
    writer = await site.key("upstreams:write", "upstreams:read")
    for method, path in (("POST", "/api/gateway/upstreams"), ("PUT", f"/api/gateway/upstreams/{examples.UPSTREAM_ID}")):
        answer = await site.call(method, path, body, key=writer)
        assert (answer.status, answer.json["details"]["scope"]) == (403, "upstreams:stdio")
    both = await site.key("upstreams:write", "upstreams:stdio")
    assert (await site.call("POST", "/api/gateway/upstreams", body, key=both)).status == 201
    shell = await site.call("POST", "/api/gateway/upstreams", {**body, "name": "b", "command": "sh -c x"}, key=both)
    assert shell.fields == {"/command": "type"}


async def test_a_tools_risk_is_corrected_and_its_changed_definition_accepted(site: Any) -> None:
    await site.furnish()
    registry = site.runtime.registry
    upstream = await registry.upstream(site.org, examples.UPSTREAM_ID)
    await registry.record_listing(site.org, upstream, {"tools": [{"name": "send", "description": "Now different."}]})
    path = f"/api/gateway/upstreams/{examples.UPSTREAM_ID}/tools"
    (tool,) = (await site.call("GET", path)).json["data"]
    assert (tool["changed"], tool["definition"]["description"]) == (True, "Now different.")
    answer = await site.call("PUT", f"{path}/{tool['id']}", {"accept_pin": True, "risk": "critical"})
    data = answer.json["data"]
    assert (data["changed"], data["risk"], data["corrected"], data["description"]) == (
        False,
        "critical",
        True,
        "Now different.",
    )
    wrong = await site.call("PUT", f"{path}/{tool['id']}", {"risk": "huge", "skills": [], "side_effects": ["explodes"]})
    assert set(wrong.fields) == {"/risk", "/skills", "/side_effects/0"}
    assert (await site.call("PUT", f"{path}/tol_unknown", {"risk": "low"})).status == 404
    assert Correction().accept_pin is False


async def test_deleting_an_upstream_takes_its_tools_out_of_the_catalog(site: Any) -> None:
    await site.furnish()
    query = {"group": "mail"}
    assert len((await site.call("GET", "/api/engine/tools", query=query)).json["data"]) == 1
    assert (await site.call("DELETE", f"/api/gateway/upstreams/{examples.UPSTREAM_ID}")).status == 204
    assert (await site.call("GET", "/api/engine/tools", query=query)).json["data"] == []


# -- the catalog -------------------------------------------------------------------------------------------------
async def test_the_catalog_can_be_read_by_skill_preset_and_risk(site: Any) -> None:
    skill = (await site.call("GET", "/api/engine/skills/email-management")).json["data"]
    assert skill["skill"]["tools"] == [tool["id"] for tool in skill["tools"]]
    assert (await site.call("GET", "/api/engine/skills/nothing")).status == 404
    presets = (await site.call("GET", "/api/engine/presets")).json["data"]
    assert [item["id"] for item in presets] == [
        "research-assistant", "customer-support", "developer", "full-access", "sandbox",
    ]  # fmt: skip
    critical = (await site.call("GET", "/api/engine/tools?risk=critical&limit=200")).json["data"]
    assert critical
    assert all(tool["risk"] == "critical" for tool in critical)


async def test_a_tool_policy_names_unknown_skills_by_their_place(site: Any) -> None:
    answer = await site.call("POST", "/api/engine/tool-policy", {"skills": ["email-management", "nothing"]})
    assert answer.fields == {"/skills/1": "unknown_skill"}
    policy = (await site.call("POST", "/api/engine/tool-policy", {"skills": ["email-management"]})).json["data"]
    assert policy["allow"]
    assert not set(policy["allow"]) & set(policy["deny"])


async def test_the_audit_can_be_searched_by_who_and_what(site: Any) -> None:
    await make(site)
    await site.call("POST", "/api/agents", {"name": "bot"})
    made = (await site.call("GET", "/api/audit?action=agent.create&order=oldest")).json["data"]
    assert [entry["outcome"] for entry in made] == ["ok", "refused"]
    assert made[1]["details"]["code"] == "CONFLICT"
    by_actor = (await site.call("GET", "/api/audit", query={"actor": made[0]["actor"]})).json
    assert by_actor["meta"]["total"] == 2
    both = {"actor": made[0]["actor"], "action": "agent.*", "outcome": "refused"}
    found = (await site.call("GET", "/api/audit", query=both)).json
    assert [entry["id"] for entry in found["data"]] == [made[1]["id"]]
    assert found["meta"]["total"] is None
