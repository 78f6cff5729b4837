"""Every operation with every role, every scope, no scope and no credential. What is expected stands here by hand: this
table is the promise, and whoever changes a right changes it here too, or finds this test red."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from agenticmail_enterprise.admin_ui.api import OPERATIONS
from agenticmail_enterprise.admin_ui.operation import Operation
from agenticmail_enterprise.catalog.records import KEYS, ApiKey
from agenticmail_enterprise.catalog.store import Insert
from agenticmail_enterprise.gateway.accounts import AgentSpec
from agenticmail_enterprise.gateway.keys import KeySpec, digest_of, new_secret
from agenticmail_enterprise.gateway.scopes import ROLE_SCOPES, SCOPES, least_role
from tests.unit.admin.test_every_operation import call_as, path_of

RIGHTS: dict[tuple[str, str], list[str]] = {
    # (scope, least role): operations
    ("agents:read", "viewer"): ["list_agents", "get_agent", "list_hooks"],
    ("agents:write", "member"): [
        "create_agent", "replace_agent", "patch_agent", "delete_agent", "expect_hook", "forget_hook",
    ],
    ("profiles:read", "viewer"): ["get_agent_profile"],
    ("profiles:write", "admin"): ["put_agent_profile", "patch_agent_profile"],
    ("keys:read", "admin"): ["list_keys", "get_key"],
    ("keys:create", "admin"): ["create_key"],
    ("keys:revoke", "admin"): ["revoke_key"],
    ("upstreams:read", "viewer"): ["list_upstreams", "get_upstream", "list_upstream_tools"],
    ("upstreams:write", "admin"): [
        "create_upstream", "replace_upstream", "patch_upstream", "patch_tool", "delete_upstream", "refresh_upstream", "correct_tool",
    ],
    ("catalog:read", "viewer"): [
        "list_skills", "get_one_skill", "list_presets", "get_one_preset", "list_tools", "make_tool_policy",
    ],
    ("calls:read", "viewer"): ["list_calls", "get_call", "get_stats", "get_overview"],
    ("audit:read", "admin"): ["list_audit", "get_audit_entry", "export_audit"],
    ("users:read", "admin"): ["list_users", "get_user"],
    ("users:write", "admin"): [
        "create_user", "replace_user", "patch_user", "delete_user", "create_link", "sign_user_out", "remove_second_factor",
    ],
    ("settings:read", "admin"): ["get_settings"],
    ("settings:write", "admin"): ["replace_settings", "patch_settings"],
    ("approvals:read", "member"): ["list_approvals", "get_approval", "list_grants", "list_grant_proposals"],
    ("approvals:request", "member"): ["request_approval"],
    ("approvals:decide", "member"): ["decide_approval", "decide_approvals", "create_grant", "revoke_grant"],
    ("approval-policies:read", "member"): ["list_approval_policies", "get_approval_policy", "list_channels"],
    ("approval-policies:write", "admin"): [
        "create_approval_policy", "replace_approval_policy", "patch_approval_policy", "delete_approval_policy",
        "create_channel", "delete_channel",
    ],
    ("gateway:call", "owner"): ["check_permission", "report_tool_call", "beat_hook", "get_approval_result"],
}  # fmt: skip

ANYBODY = {
    "login", "login_second_factor", "login_link", "open_session", "open_session_second_factor", "open_session_link",
    "refresh", "forgot_password", "reset_password", "get_openapi",
}  # fmt: skip
SIGNED_IN = {
    "logout", "logout_everywhere", "get_me", "change_me", "patch_me", "change_password", "setup_second_factor",
    "confirm_second_factor", "renew_recovery_codes", "disable_second_factor", "list_my_sessions", "end_my_session",
}  # fmt: skip
LADDER = ("viewer", "member", "admin", "owner")

SCOPE_OF = {name: scope for (scope, _), names in RIGHTS.items() for name in names}
LEAST_OF = {name: role for (_, role), names in RIGHTS.items() for name in names}
OURS = [operation for operation in OPERATIONS if operation.served_by == "admin"]


def test_every_operation_is_in_the_table_and_none_is_made_up() -> None:
    expected = sorted([*SCOPE_OF, *ANYBODY, *SIGNED_IN])
    assert sorted(operation.name for operation in OPERATIONS) == expected


def test_roles_and_scopes_say_what_the_table_says() -> None:
    for (scope, role), _ in RIGHTS.items():
        assert least_role(scope) == role
    for lower, higher in pairwise(LADDER):
        assert ROLE_SCOPES[lower] < ROLE_SCOPES[higher], "each role has all that the one below has, and more"
    for role in LADDER[:-1]:
        assert not ROLE_SCOPES[role] & {"*", "gateway:call", "upstreams:stdio"}


async def credentials(site: Any) -> dict[str, dict[str, str]]:
    """One of everything that can be sent: name -> headers."""
    found: dict[str, dict[str, str]] = {"nobody": {}}
    for role in LADDER:
        found[f"role {role}"] = {"Authorization": f"Bearer {await site.token(await site.person(role))}"}
    for scope in SCOPES:
        if scope != "gateway:call":
            found[f"scope {scope}"] = {"X-API-Key": await site.key(scope)}
    agent = await site.accounts.create_agent(site.org, AgentSpec(name="walker"))
    _, found_key = await site.accounts.mint(site.org, KeySpec(agent_id=agent.id), created_by="cli")
    found["scope gateway:call"] = {"X-API-Key": found_key}
    bare = new_secret()
    record = ApiKey(org=site.org, id="key_bare", digest=digest_of(bare), kind="program")
    await site.store.commit(Insert(KEYS, record))
    found["no scope"] = {"X-API-Key": bare}
    return found


def expected(operation: Operation, who: str) -> str:
    """`passes`, `refused` (valid, not allowed) or `unknown` (no valid credential)."""
    if operation.name in ANYBODY:
        return "passes"
    if who == "nobody":
        return "unknown"
    kind, _, name = who.partition(" ")
    if operation.name in SIGNED_IN:
        return "passes" if kind == "role" else "refused"
    if kind == "role":
        return "passes" if LADDER.index(name) >= LADDER.index(LEAST_OF[operation.name]) else "refused"
    return "passes" if kind == "scope" and name in {SCOPE_OF[operation.name], "*"} else "refused"


def seen(operation: Operation, answer: Any) -> str:
    """How it was received. What an operation itself refuses (a role that may not be given, a scope that one field needs)
    comes after it was let in, and names something else."""
    code = (answer.json or {}).get("code", "") if answer.status >= 400 else ""
    if code == "UNAUTHENTICATED" and operation.name not in ANYBODY:
        return "unknown"
    if code == "FORBIDDEN" and operation.name not in ANYBODY:
        details = answer.json["details"]
        if operation.person or (
            details.get("scope") == operation.scope and len(details) < 3 and "scopes" not in details
        ):
            return "refused"
    return "passes"


@pytest.mark.parametrize("operation", OURS, ids=lambda item: item.name)
async def test_the_walk(site: Any, operation: Operation) -> None:
    await site.furnish()
    body = operation.example.body if operation.body is not None else None
    found = {}
    for who, headers in (await credentials(site)).items():
        query = dict(operation.example.query)
        answer = await call_as(site, operation, path_of(operation), body, query=query, headers=headers, key="")
        assert answer.status < 500, (who, answer.json)
        found[who] = seen(operation, answer)
    assert found == {who: expected(operation, who) for who in found}
    assert len(found) == 1 + len(LADDER) + len(SCOPES) + 1


async def test_a_key_with_no_scope_can_do_nothing(site: Any) -> None:
    await site.furnish()
    bare = (await credentials(site))["no scope"]
    for operation in OURS:
        if operation.public:
            continue
        body = operation.example.body if operation.body is not None else None
        answer = await site.call(operation.method, path_of(operation), body, key="", headers=bare)
        assert (answer.status, answer.json["code"]) == (403, "FORBIDDEN"), operation.name
