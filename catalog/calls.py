"""One call on its way through: who, which tool, with what. And the verdict on it.

Plain slotted classes where the hot path makes one per call, frozen Structs where a value is compiled once and shared.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from .profiles import Risk, SideEffect
from .records import AgentStatus, Door, Effect, Role

Code = Literal[
    "ALLOWED", "AGENT_SUSPENDED", "AGENT_ARCHIVED", "NO_PROFILE", "TOOL_UNKNOWN", "TOOL_DENIED", "TOOL_NOT_GRANTED",
    "RISK_TOO_HIGH", "SIDE_EFFECT_BLOCKED", "OUTSIDE_SCHEDULE", "IP_NOT_ALLOWED", "ARGUMENT_DENIED", "RATE_LIMITED",
    "APPROVAL_REQUIRED", "PIN_CHANGED", "PLUGIN_DENIED", "POLICY_ERROR", "POLICY_STALE", "BAD_REQUEST",
    "UNAUTHENTICATED", "NOT_FOUND", "JOURNAL_FULL",
]  # fmt: skip
"""Why, for programs. Closed: the docs list every one, and a test holds them to it."""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """What the catalog knows of one tool. `known=False`: nobody registered it, and `risk` is then a worst case."""

    id: str
    name: str = ""
    description: str = ""
    group: str = ""
    skills: tuple[str, ...] = ()
    risk: Risk = "high"
    side_effects: tuple[SideEffect, ...] = ()
    upstream: str = ""
    known: bool = True
    pin_held: bool = False
    once: bool = False
    """Must not run twice (it says so itself, or a person did)."""


class Verdict(msgspec.Struct, frozen=True):
    """The answer. `rule` names what decided it (`default-deny`, `skill:email-management`, `profile.tools.deny:exec`,
    `argument-rules:internal-only`, ...); `reason` is one sentence an agent can act on."""

    effect: Effect
    rule: str
    code: Code
    reason: str
    retry_after: float = 0.0
    flags: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        return self.effect == "allow"


class Principal:
    """Who is calling: an agent, by one of its keys (or, with `agent_id` "", a program).

    `slot` belongs to the policy chain: it keeps the agent's compiled snapshot there, so that the warm path needs one
    look-up for identity and none for the snapshot.
    """

    __slots__ = ("agent_id", "agent_name", "allowed_ips", "expires_at", "key_id", "org", "scopes", "slot")

    def __init__(
        self, org: str, agent_id: str, agent_name: str, key_id: str, *, scopes: tuple[str, ...] = (),
        expires_at: int = 0, allowed_ips: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.org = org
        self.agent_id = agent_id
        self.agent_name = agent_name
        self.key_id = key_id
        self.scopes = frozenset(scopes)
        self.expires_at = expires_at
        self.allowed_ips = allowed_ips
        self.slot: Any = None

    def watched(self, now: float) -> bool:
        """Whether this key must be looked at on every request: it has run out, or is bound to addresses."""
        return bool(self.allowed_ips) or self.expired(now)

    def expired(self, now: float) -> bool:
        """Whether the key has run out at `now` (UNIX seconds)."""
        return self.expires_at != 0 and self.expires_at <= now * 1000


class Person(Principal):
    """Somebody who signed in. `key_id` is the user's id, so that records name who did it; `scopes` are the role's, as
    they are at this request. A `Person` is made for one request and never kept."""

    __slots__ = ("email", "limited", "name", "role", "session_id")

    def __init__(
        self, org: str, user_id: str, role: Role, scopes: frozenset[str], *, session_id: str, email: str = "",
        name: str = "", limited: bool = False,
    ) -> None:  # fmt: skip
        """`limited`: the organisation asks for a second factor and there is none yet, so only own affairs are open."""
        super().__init__(org, "", "", user_id, scopes=() if limited else tuple(scopes))
        self.role: Role = role
        self.session_id = session_id
        self.email = email
        self.name = name
        self.limited = limited

    @property
    def user_id(self) -> str:
        return self.key_id


_EMPTY: Final[dict[str, Any]] = {}


class Call:
    """One call under decision. `raw` are the argument bytes (JSON) exactly as received; `args` is their decoded form,
    made at the first look (msgspec.DecodeError when they are not a JSON object: doors check before they build a Call).

    `tool` is the catalog's id; `at` is UNIX time in seconds; `ip` is the client's address, proxies resolved. `exact`:
    `raw` is known to be what encoding `args` again would give, so that no key can stand in it twice.
    """

    __slots__ = (
        "_args", "at", "door", "exact", "id", "idempotency", "ip", "principal", "raw", "request_id", "tool", "trace_id",
        "upstream",
    )  # fmt: skip

    def __init__(
        self, principal: Principal, tool: str, raw: bytes | msgspec.Raw, id: str, at: float, door: Door = "mcp",  # noqa: A002
        upstream: str = "", ip: str = "", request_id: str = "", trace_id: str = "", args: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """With `args` the door has decoded them already, and `raw` is their encoding (`exact`)."""
        self.principal = principal
        self.tool = tool
        self.raw = raw
        self.id = id
        self.at = at
        self.door: Door = door
        self.upstream = upstream
        self.ip = ip
        self.request_id = request_id
        self.trace_id = trace_id
        self.idempotency = ""
        self._args = args
        self.exact = args is not None

    @property
    def args(self) -> dict[str, Any]:
        args = self._args
        if args is None:
            args = self._args = decode_object(self.raw) if self.raw else _EMPTY
        return args


decode_object: Final = msgspec.json.Decoder(dict[str, Any]).decode


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin may know of the agent it is compiled for."""

    org: str
    id: str
    name: str
    status: AgentStatus
    metadata: dict[str, str] = {}
