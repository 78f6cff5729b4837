"""What a credential may do, by name. The one table of scopes: the API, the OpenAPI document, the CLI and the rule for
minting keys read it.

Two laws about API keys:

* An agent's key holds `gateway:call` and nothing else: it makes calls, it administers nothing.
* A key makes keys only with `keys:create`, and what it makes is less than itself: scopes from its own without
  `keys:create` and `*`, an expiry no later and addresses no wider than its own, in its own organisation. `*` stands
  for every scope, also for `keys:create`; it is given by `init` and the CLI alone, which work on the store itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from ..catalog.records import Role

EVERY: Final = "*"
CALL: Final = "gateway:call"
KEYS_CREATE: Final = "keys:create"
STDIO: Final = "upstreams:stdio"

SCOPES: Final[Mapping[str, str]] = MappingProxyType({
    EVERY: "Everything below. Held by the key that `init` prints; no API call gives it to another key.",
    CALL: "Call tools through the gateway's doors and ask the checks door. All that an agent's key holds.",
    "agents:read": "See agents.",
    "agents:write": "Create, change and delete agents. Deleting one revokes its keys.",
    "profiles:read": "See which permission profile an agent has, and what it says.",
    "profiles:write": "Give an agent another permission profile.",
    "keys:read": "See API keys: never the secret, only who made them, what they may do and until when.",
    "keys:revoke": "Revoke API keys.",
    KEYS_CREATE: "Create API keys that may do less than the creating key. No API call gives this scope to another key.",
    "upstreams:read": "See upstream servers and their tools: never a stored credential, only that it is set.",
    "upstreams:write": "Register, change and delete upstream servers; correct what is known of their tools.",
    STDIO: "With upstreams:write: register servers that the gateway starts as a child process on its host.",
    "catalog:read": "See the catalog: skills, tools, presets, tool policies.",
    "calls:read": "See the record of calls, and statistics over it.",
    "approvals:read": "See held calls with all of their arguments, and who decided about them.",
    "approvals:decide": "Decide about held calls, as far as the policy asks this person or key; make standing grants.",
    "approvals:request": "Ask for the approval of a call that an agent will run itself.",
    "approval-policies:read": "See approval policies and notification channels: never a stored address or secret.",
    "approval-policies:write": "Create, change and delete approval policies and notification channels.",
    "audit:read": "See who changed what, and who was refused.",
    "metrics:read": "Read /metrics from another machine.",
})  # fmt: skip
"""Scope -> what it permits, for people."""

_VIEWER: Final = ("agents:read", "profiles:read", "upstreams:read", "catalog:read", "calls:read")
_MEMBER: Final = (
    *_VIEWER, "agents:write", "approvals:read", "approvals:decide", "approvals:request", "approval-policies:read",
)  # fmt: skip
_ADMIN: Final = (
    *_MEMBER, "profiles:write", "keys:read", "keys:revoke", KEYS_CREATE, "upstreams:write", "audit:read",
    "metrics:read", "approval-policies:write",
)  # fmt: skip

ROLE_SCOPES: Final[Mapping[Role, frozenset[str]]] = MappingProxyType({
    "viewer": frozenset(_VIEWER),
    "member": frozenset(_MEMBER),
    "admin": frozenset(_ADMIN),
    "owner": frozenset((*_ADMIN, STDIO, CALL, EVERY)),
})  # fmt: skip
"""What a person of each role may do; each role has all that the one before it has."""

ROLES: Final[tuple[Role, ...]] = ("viewer", "member", "admin", "owner")


def covers(held: Collection[str], needed: str) -> bool:
    """Whether a credential with `held` may do what `needed` names. "" needs nothing."""
    return not needed or needed in held or EVERY in held


def delegable(held: Collection[str]) -> frozenset[str]:
    """The scopes that a key with `held` may give to a key it makes. Empty without `keys:create`."""
    if not covers(held, KEYS_CREATE):
        return frozenset()
    own = SCOPES.keys() if EVERY in held else held
    return frozenset(own) - {EVERY, KEYS_CREATE}


def unknown(scopes: Iterable[str]) -> list[str]:
    """Those that are no scopes, in the order given."""
    return [scope for scope in scopes if scope not in SCOPES]
