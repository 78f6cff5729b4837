"""Records as the API shows them: RFC 3339 times, milliseconds, null where there is nothing; secrets never."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from ..catalog.presets import Preset
from ..catalog.profiles import Profile, Risk, SideEffect
from ..catalog.records import (
    Agent,
    AgentStatus,
    ApiKey,
    AuditEntry,
    CallRecord,
    Door,
    Effect,
    KeyKind,
    Outcome,
    PinPolicy,
    ProfileRecord,
    Role,
    ToolKind,
    ToolRecord,
    Upstream,
    UpstreamKind,
    User,
    UserStatus,
)
from ..catalog.routes import Route
from ..gateway.upstream_spec import KEPT

Time = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""RFC 3339, UTC, with `Z`."""


def moment(milliseconds: int) -> str:
    """Milliseconds since the epoch as RFC 3339."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_or_none(milliseconds: int) -> str | None:
    """As `moment`; None for 0."""
    return moment(milliseconds) if milliseconds else None


FullProfile = Annotated[dict[str, Any], msgspec.Meta(extra_json_schema={"$ref": "#/components/schemas/Profile"})]
"""A `Profile` with its defaults spelled out: what is stored leaves them away."""


def in_full(value: Any) -> Any:
    """A struct as plain data with every field, defaults included."""
    if isinstance(value, msgspec.Struct):
        return {name: in_full(item) for name, item in msgspec.structs.asdict(value).items()}
    return [in_full(item) for item in value] if isinstance(value, tuple | list) else value


class PresetOut(msgspec.Struct, kw_only=True):
    """A preset. `risk` is the highest risk of a call that passes without a person's approval."""

    id: str
    name: str
    description: str
    risk: Risk
    profile: FullProfile


def preset(item: Preset) -> PresetOut:
    return PresetOut(
        id=item.id, name=item.name, description=item.description, risk=item.risk, profile=in_full(item.profile)
    )  # fmt: skip


class AgentOut(msgspec.Struct, kw_only=True):
    """An agent. Without a profile it may do nothing."""

    id: str
    name: str
    description: str
    status: AgentStatus
    profile_id: str | None
    metadata: dict[str, str]
    created_at: Time
    updated_at: Time
    version: int


def agent(record: Agent) -> AgentOut:
    return AgentOut(
        id=record.id, name=record.name, description=record.description, status=record.status,
        profile_id=record.profile_id or None, metadata=record.metadata, created_at=moment(record.created_at),
        updated_at=moment(record.updated_at), version=record.version,
    )  # fmt: skip


class ProfileOut(msgspec.Struct, kw_only=True):
    """The profile an agent has: where it comes from, and all it says. `id` null: it has none and may do nothing."""

    agent_id: str
    id: str | None
    name: str
    source: Literal["none", "preset", "shared", "own"]
    preset: str | None
    profile: FullProfile
    version: str


def profile(owner: Agent, record: ProfileRecord | None) -> ProfileOut:
    if record is None:
        return ProfileOut(
            agent_id=owner.id, id=None, name="", source="none", preset=None, profile=in_full(Profile()),
            version=profile_version(owner, None),
        )  # fmt: skip
    source: Literal["preset", "shared", "own"] = "preset" if record.preset else "own" if record.owner else "shared"
    return ProfileOut(
        agent_id=owner.id, id=record.id, name=record.name, source=source, preset=record.preset or None,
        profile=in_full(record.spec), version=profile_version(owner, record),
    )  # fmt: skip


def profile_version(owner: Agent, record: ProfileRecord | None) -> str:
    """Changes with which profile the agent has, and with what it says."""
    return f"{owner.version}.{record.id if record else 'none'}.{record.version if record else 0}"


class KeyOut(msgspec.Struct, kw_only=True):
    """An API key without its secret. `expires_at` null: never."""

    id: str
    kind: KeyKind
    name: str
    agent_id: str | None
    prefix: str
    last4: str
    status: Literal["active", "expired", "revoked"]
    scopes: tuple[str, ...]
    allowed_ips: tuple[str, ...]
    created_by: str
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None
    version: int


class NewKeyOut(KeyOut, kw_only=True):
    """A key just made. `key` is the credential itself: it is shown this once and is not stored. Null in an answer that
    is given again (Idempotency-Key) and in a dry run."""

    key: str | None


def key_status(record: ApiKey, now: int) -> Literal["active", "expired", "revoked"]:
    if record.revoked_at:
        return "revoked"
    return "expired" if record.expires_at and record.expires_at <= now else "active"


def key(record: ApiKey, now: int) -> KeyOut:
    return KeyOut(
        id=record.id, kind=record.kind, name=record.name, agent_id=record.agent_id or None, prefix=record.prefix,
        last4=record.last4, status=key_status(record, now), scopes=record.scopes, allowed_ips=record.allowed_ips,
        created_by=record.created_by, created_at=moment(record.created_at),
        expires_at=moment_or_none(record.expires_at), revoked_at=moment_or_none(record.revoked_at),
        version=record.version,
    )  # fmt: skip


def new_key(record: ApiKey, secret: str, now: int) -> NewKeyOut:
    return NewKeyOut(**msgspec.structs.asdict(key(record, now)), key=secret)


class ListingOut(msgspec.Struct, kw_only=True):
    """What came of asking the server what it offers. Not `ok`: it is registered all the same, and `error` says why."""

    ok: bool
    error: str
    tools: int


class UpstreamOut(msgspec.Struct, kw_only=True):
    """An upstream. `secrets` says which are set, never what they are. `listing` after a change: what it offers."""

    id: str
    name: str
    kind: UpstreamKind
    enabled: bool
    url: str
    command: list[str]
    cwd: str
    headers: dict[str, str]
    env: dict[str, str]
    secrets: dict[str, str]
    allow_private: bool
    verify_tls: bool
    timeout_ms: int
    connect_timeout_ms: int
    max_connections: int
    pin_policy: PinPolicy
    catalog: str
    routes: tuple[Route, ...]
    created_at: Time
    updated_at: Time
    version: int
    listing: ListingOut | None = None


def upstream(record: Upstream, listing: ListingOut | None = None) -> UpstreamOut:
    return UpstreamOut(
        id=record.id, name=record.name, kind=record.kind, enabled=record.enabled, url=record.url,
        command=[record.command, *record.args] if record.command else [], cwd=record.cwd, headers=record.headers,
        env=record.env, secrets=dict.fromkeys(record.secrets, KEPT), allow_private=record.allow_private,
        verify_tls=record.verify_tls, timeout_ms=record.timeout_ms, connect_timeout_ms=record.connect_timeout_ms,
        max_connections=record.max_connections, pin_policy=record.pin_policy, catalog=record.catalog,
        routes=record.routes, created_at=moment(record.created_at), updated_at=moment(record.updated_at),
        version=record.version, listing=listing,
    )  # fmt: skip


class UpstreamToolOut(msgspec.Struct, kw_only=True):
    """Something an upstream offers. `changed`: its definition is no longer the approved one. `definition` is the last
    seen; title and description are the approved ones. `corrected`: a person set risk, effects or skills.
    `repeats`: what a person said about running it twice, empty for what the server says."""

    id: str
    tool_id: str
    kind: ToolKind
    name: str
    title: str
    description: str
    risk: Risk
    side_effects: tuple[SideEffect, ...]
    skills: tuple[str, ...]
    corrected: bool
    changed: bool
    gone: bool
    repeats: Literal["", "safe", "once"]
    pin: str
    seen: str
    definition: Any
    created_at: Time
    updated_at: Time
    version: int


def upstream_tool(record: ToolRecord) -> UpstreamToolOut:
    return UpstreamToolOut(
        id=record.id, tool_id=record.tool_id, kind=record.kind, name=record.name, title=record.title,
        description=record.description, risk=record.risk, side_effects=record.side_effects, skills=record.skills,
        corrected=record.corrected, changed=record.pin != record.seen, gone=record.gone, repeats=record.repeats,
        pin=record.pin,
        seen=record.seen, definition=_json(record.definition), created_at=moment(record.created_at),
        updated_at=moment(record.updated_at), version=record.version,
    )  # fmt: skip


class CallOut(msgspec.Struct, kw_only=True):
    """One call, as it is on record. `arguments` null: only their digest was kept. `hash` chains the records."""

    id: str
    at: Time
    agent_id: str | None
    key_id: str | None
    door: Door
    upstream: str
    tool: str
    effect: Effect
    rule: str
    code: str
    reason: str
    arguments: Any
    arguments_digest: str
    outcome: Outcome
    status: int | None
    error: str
    duration_ms: float
    upstream_ms: float
    request_bytes: int
    response_bytes: int
    request_id: str
    trace_id: str
    flags: tuple[str, ...]
    seq: int
    hash: str
    prev: str


def call(record: CallRecord) -> CallOut:
    at = datetime.fromtimestamp(record.at / 1_000_000, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return CallOut(
        id=record.id, at=at, agent_id=record.agent or None, key_id=record.key or None, door=record.door,
        upstream=record.upstream, tool=record.tool, effect=record.effect, rule=record.rule, code=record.code,
        reason=record.reason, arguments=_json(record.args), arguments_digest=record.args_digest,
        outcome=record.outcome, status=record.status or None, error=record.error,
        duration_ms=record.duration_us / 1000, upstream_ms=record.upstream_us / 1000,
        request_bytes=record.request_bytes, response_bytes=record.response_bytes, request_id=record.request_id,
        trace_id=record.trace_id, flags=record.flags, seq=record.seq, hash=record.hash, prev=record.prev,
    )  # fmt: skip


class UserOut(msgspec.Struct, kw_only=True):
    """A person. `has_password` false: they have not used their invitation yet."""

    id: str
    email: str
    name: str
    role: Role
    status: UserStatus
    has_password: bool
    created_by: str
    created_at: Time
    updated_at: Time
    version: int


def user(record: User) -> UserOut:
    return UserOut(
        id=record.id, email=record.email, name=record.name, role=record.role, status=record.status,
        has_password=bool(record.password_hash), created_by=record.created_by, created_at=moment(record.created_at),
        updated_at=moment(record.updated_at), version=record.version,
    )  # fmt: skip


class AuditOut(msgspec.Struct, kw_only=True):
    """One entry: who did what to what, or was refused."""

    id: str
    at: Time
    actor: str
    action: str
    resource: str
    outcome: Literal["ok", "refused"]
    details: dict[str, str]
    ip: str
    request_id: str


def audit(record: AuditEntry) -> AuditOut:
    return AuditOut(
        id=record.id, at=moment(record.at), actor=record.actor, action=record.action, resource=record.resource,
        outcome=record.outcome, details=record.details, ip=record.ip, request_id=record.request_id,
    )  # fmt: skip


def _json(text: str) -> Any:
    """Stored JSON as a value; None for nothing; a text that is no JSON (cut off when it was stored) as it is."""
    if not text:
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
