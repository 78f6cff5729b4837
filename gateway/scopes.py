"""What a credential may do, by name. The one table: an operation names one scope, a role has scopes, a key holds some.
The API, the OpenAPI document, the CLI, the rule for minting keys and the rules about people read it.

A person does what their role's scopes cover, a key what its own cover; nobody gives away what they do not hold:

* A role is given, and people of it are changed or removed, by those alone who hold all its scopes (`covers_role`); what
  would let one person act as another (a reset link, taking away a second factor) needs more than they have
  (`outranks`), or `*`. So admins make no owners, and nobody climbs by way of somebody else.
* Nobody changes their own role or status.

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

from ..catalog.calls import Person, Principal
from ..catalog.errors import Forbidden, SecondFactorMissing
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
    "audit:read": "See who changed what, who signed in, and who was refused.",
    "users:read": "See the people of the organisation.",
    "users:write": "Add, change and remove people whose role gives no more than the credential itself may do.",
    "settings:read": "See the organisation's settings: never a stored secret, only that it is set.",
    "settings:write": "Change the organisation's settings.",
    "metrics:read": "Read /metrics from another machine.",
})  # fmt: skip
"""Scope -> what it permits, for people."""

_VIEWER: Final = ("agents:read", "profiles:read", "upstreams:read", "catalog:read", "calls:read")
_MEMBER: Final = (
    *_VIEWER, "agents:write", "approvals:read", "approvals:decide", "approvals:request", "approval-policies:read",
)  # fmt: skip
_ADMIN: Final = (
    *_MEMBER, "profiles:write", "keys:read", "keys:revoke", KEYS_CREATE, "upstreams:write", "audit:read",
    "metrics:read", "users:read", "users:write", "settings:read", "settings:write", "approval-policies:write",
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


def least_role(scope: str) -> Role:
    """The first role, from below, that has a scope. Every scope is some role's."""
    return next(role for role in ROLES if scope in ROLE_SCOPES[role])


def covers_role(held: Collection[str], role: Role) -> bool:
    """Whether a credential with `held` may do all that a role may: then it may give the role, and take it away."""
    return EVERY in held or ROLE_SCOPES[role] <= frozenset(held)


def outranks(held: Collection[str], role: Role) -> bool:
    """Whether a credential with `held` may do more than a role may; `*` outranks every role, owners among them."""
    return EVERY in held or ROLE_SCOPES[role] < frozenset(held)


def admit(principal: Principal, scope: str) -> None:
    """Let a credential do what `scope` names. Raises Forbidden, saying what is missing and who has it."""
    if covers(principal.scopes, scope):
        return
    if not isinstance(principal, Person):
        raise Forbidden(f"This API key lacks the scope {scope}.", scope=scope)
    if principal.limited:
        raise SecondFactorMissing(scope=scope)
    least = least_role(scope)
    raise Forbidden(
        f"Your role is {principal.role}; this needs {least} or higher (scope {scope}).", scope=scope, role=least
    )


def unknown(scopes: Iterable[str]) -> list[str]:
    """Those that are no scopes, in the order given."""
    return [scope for scope in scopes if scope not in SCOPES]
