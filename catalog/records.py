"""What is stored: the record types and their entities, indexes and migrations. One place for each fact.

Struct fields are append-only once released: a new field has a default, so that old records still decode.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from .approvals import APPROVAL_ENTITIES, APPROVALS_SINCE
from .profiles import Profile, Risk, SideEffect
from .routes import Route
from .store import Entity, Index, Record

AgentStatus = Literal["active", "suspended", "archived"]
KeyKind = Literal["agent", "program"]
UpstreamKind = Literal["mcp_http", "mcp_stdio", "openclaw", "http"]
ToolKind = Literal["tool", "resource", "template", "prompt"]
PinPolicy = Literal["flag", "hold"]
Role = Literal["viewer", "member", "admin", "owner"]
UserStatus = Literal["active", "suspended"]
SessionKind = Literal["token", "page"]
TicketPurpose = Literal["invite", "reset", "sign_in"]
Effect = Literal["allow", "deny", "hold"]
Outcome = Literal["ok", "error", "denied", "held", "not_sent", "timeout", "broken", "cancelled", "unknown"]
Door = Literal["mcp", "checks", "openclaw", "http", "agenticmail"]
HookState = Literal["expected", "alive", "silent", "stopped"]


class Org(Record, kw_only=True, omit_defaults=True):
    """A tenant. Its own `org` is GLOBAL, so that tenants can be listed; its `id` is the `org` of all it owns."""

    name: str = ""
    plan: str = "self-hosted"


class User(Record, kw_only=True, omit_defaults=True):
    """A person. `password_hash` is Argon2id in PHC format, "" until one is set. E-mail is stored lower-cased."""

    email: str = ""
    name: str = ""
    role: Role = "viewer"
    password_hash: str = ""
    status: UserStatus = "active"
    password_at: int = 0
    created_by: str = ""


class Agent(Record, kw_only=True, omit_defaults=True):
    """An employed agent. `profile_id` names a `ProfileRecord`; without one nothing is allowed."""

    name: str = ""
    description: str = ""
    status: AgentStatus = "active"
    profile_id: str = ""
    metadata: dict[str, str] = {}


class ProfileRecord(Record, kw_only=True, omit_defaults=True):
    """A permission profile. `owner` is the agent it is private to, or ""."""

    name: str = ""
    owner: str = ""
    preset: str = ""
    spec: Profile = msgspec.field(default_factory=Profile)


class ApiKey(Record, kw_only=True, omit_defaults=True):
    """A credential. Only `digest` (SHA-256, hex) of the secret is kept. `expires_at` 0: never; `revoked_at` 0: not."""

    digest: str = ""
    kind: KeyKind = "agent"
    agent_id: str = ""
    name: str = ""
    prefix: str = ""
    last4: str = ""
    scopes: tuple[str, ...] = ()
    allowed_ips: tuple[str, ...] = ()
    expires_at: int = 0
    revoked_at: int = 0
    created_by: str = ""


class Upstream(Record, kw_only=True, omit_defaults=True):
    """A server behind the gateway. `name` is its id in URLs and tool names: [a-z0-9][a-z0-9-]*.

    `routes` are those of a plain HTTP API (http). `secrets` holds header values (mcp_http, http) or environment values
    (mcp_stdio), each encrypted at rest; `headers` and `env` hold the plain ones. `allow_private` permits
    loopback and private addresses; cloud metadata addresses stay refused whatever is set. `catalog="agenticmail"`: its
    tools carry the catalog's own ids (`send_email`). `kind="openclaw"`: `url` is the base of an OpenClaw gateway.
    """

    name: str = ""
    kind: UpstreamKind = "mcp_http"
    enabled: bool = True
    url: str = ""
    command: str = ""
    args: tuple[str, ...] = ()
    cwd: str = ""
    headers: dict[str, str] = {}
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    allow_private: bool = False
    verify_tls: bool = True
    timeout_ms: int = 60_000
    connect_timeout_ms: int = 5_000
    max_connections: int = 100
    pin_policy: PinPolicy = "flag"
    catalog: str = ""
    routes: tuple[Route, ...] = ()


class ToolRecord(Record, kw_only=True, omit_defaults=True):
    """One tool, resource, template or prompt an upstream offers. `tool_id` is what rules speak of.

    `pin` is the SHA-256 of what was approved (name, description, schemas, annotations); `seen` of what was last
    offered: they differ when the server changed its tool since. `corrected` marks risk or effects set by a person.
    `repeats`: what a person said about running it twice; "": as the server says (`idempotentHint: false` is `once`).
    """

    upstream: str = ""
    kind: ToolKind = "tool"
    name: str = ""
    tool_id: str = ""
    title: str = ""
    description: str = ""
    definition: str = ""
    risk: Risk = "high"
    side_effects: tuple[SideEffect, ...] = ()
    skills: tuple[str, ...] = ("custom-tools",)
    corrected: bool = False
    pin: str = ""
    seen: str = ""
    gone: bool = False
    repeats: Literal["", "safe", "once"] = ""


class CallRecord(Record, kw_only=True, omit_defaults=True, gc=False):
    """One call, for good. Order of fields is part of the hash chain: append only. What is known before the call
    leaves (to `trace_id`) stands before its outcome, so that the journal can join the two without decoding either.

    `seq`, `prev` and `hash` are set when the record is drained. `at` is the decision in microseconds since the
    epoch; durations are microseconds, sizes bytes. `args_digest` is SHA-256 (hex) of the arguments that were judged, as
    compact JSON (docs/journal.md); "" when there are none.
    """

    agent: str = ""
    key: str = ""
    door: Door = "mcp"
    upstream: str = ""
    tool: str = ""
    at: int = 0
    effect: Effect = "deny"
    rule: str = ""
    code: str = ""
    reason: str = ""
    args_digest: str = ""
    args: str = ""
    request_bytes: int = 0
    request_id: str = ""
    trace_id: str = ""
    outcome: Outcome = "unknown"
    status: int = 0
    error: str = ""
    duration_us: int = 0
    upstream_us: int = 0
    response_bytes: int = 0
    flags: tuple[str, ...] = ()
    seq: int = 0
    prev: str = ""
    hash: str = ""


class ChainHead(Record, kw_only=True, omit_defaults=True):
    """Where an organisation's hash chain ends. `id == "calls"`."""

    seq: int = 0
    hash: str = ""


class ChainAnchor(Record, kw_only=True, omit_defaults=True):
    """A place where an organisation's chain was cut: records up to `seq` were removed on purpose, and the check starts
    behind it. `hash` is the hash of record `seq`; `before` (ms) the age that was asked for; `by` who asked, `at` (ms)
    when; `pruned` how many records this cut took."""

    seq: int = 0
    hash: str = ""
    before: int = 0
    by: str = ""
    at: int = 0
    pruned: int = 0


class SpoolMark(Record, kw_only=True, omit_defaults=True):
    """How far a worker's spool is drained. `id` is the spool's name; `org` is GLOBAL. `offset` is a position in the
    spool (segment number * 2^32 + bytes); `done`: all of it is in the store, what is left of its files may go."""

    offset: int = 0
    done: bool = False


class Epoch(Record, kw_only=True, omit_defaults=True):
    """A counter that rises with every write that can change a verdict. `org` GLOBAL, `id == "policy"`."""

    value: int = 0


class AuditEntry(Record, kw_only=True, omit_defaults=True):
    """One mutation, refusal or sign-in in the admin module. `at` in milliseconds. `actor` is the id of a key or of a
    person (`usr_...`), `anonymous`, or where the command line did it, `cli`."""

    at: int = 0
    actor: str = ""
    action: str = ""
    resource: str = ""
    outcome: Literal["ok", "refused"] = "ok"
    details: dict[str, str] = {}
    ip: str = ""
    request_id: str = ""


class CheckReport(Record, kw_only=True, omit_defaults=True):
    """An outcome report that reached another worker than the one that decided; `id` is the decision's. That worker
    takes it and deletes it."""

    agent: str = ""
    state: Literal["waiting"] = "waiting"
    outcome: Outcome = "unknown"
    error: str = ""
    duration_us: int = 0
    args_changed: bool = False


class HookPresence(Record, kw_only=True, omit_defaults=True):
    """The hook that an agent's runtime asks before every tool call. `id` is the agent's.

    `expected`: it should be there and has never been heard of. `seen_at` is its last sign of life, `alarm_at` the last
    alarm about it, in milliseconds; what the agent did before either is no news. Counts are the hook's own since it
    started (`instance`): calls it saw, calls that ended without having been checked, and calls that ran with other
    arguments than those that were checked.
    """

    state: HookState = "expected"
    runtime: str = ""
    plugin: str = ""
    instance: str = ""
    seen_at: int = 0
    alarm_at: int = 0
    alarm: str = ""
    calls: int = 0
    unchecked: int = 0
    changed: int = 0


class Replay(Record, kw_only=True, omit_defaults=True):
    """The answer to a request that carried an Idempotency-Key; `id` is made of who sent which key where. `fingerprint`:
    SHA-256 (hex) of query and body. `body` holds no secret: what was shown once is null. Gone at `ends_at` (ms)."""

    shelf: Literal["replay"] = "replay"
    state: Literal["running", "done"] = "running"
    fingerprint: str = ""
    status: int = 0
    body: str = ""
    etag: str = ""
    location: str = ""
    ends_at: int = 0


class Session(Record, kw_only=True, omit_defaults=True):
    """One sign-in of a person; it ends when this record goes. Secrets are kept as SHA-256 (hex) only.

    `lookup` finds it: of kind `token` by the part of the refresh token that stays, of kind `page` by the cookie.
    `current` is the refresh secret that is valid now; whoever shows an older one has stolen it, or was stolen from.
    """

    user_id: str = ""
    kind: SessionKind = "token"
    lookup: str = ""
    current: str = ""
    expires_at: int = 0
    seen_at: int = 0
    ip: str = ""
    agent: str = ""
    method: str = ""


class SecondFactor(Record, kw_only=True, omit_defaults=True):
    """A person's TOTP (RFC 6238); `id` is the user's. `secret` and `pending` are sealed; `on_at` 0: not switched on.
    `last_step`: the time step of the last code taken. `recovery`: SHA-256 (hex) of the unused recovery codes."""

    secret: str = ""
    pending: str = ""
    on_at: int = 0
    last_step: int = 0
    recovery: tuple[str, ...] = ()


class Ticket(Record, kw_only=True, omit_defaults=True):
    """A one-time link: whoever has it may do what `purpose` says, once, for this person. Kept as SHA-256 (hex)."""

    user_id: str = ""
    purpose: TicketPurpose = "reset"
    digest: str = ""
    expires_at: int = 0
    created_by: str = ""


class Roster(Record, kw_only=True, omit_defaults=True):
    """Guards that an organisation keeps an owner: whoever takes one away replaces this, so two at once collide.
    `id == "owners"`; `changes` counts."""

    changes: int = 0


class Company(Record, kw_only=True, omit_defaults=True):
    """What an organisation has set for itself; `id == "company"`. `secrets` are sealed."""

    domain: str = ""
    contact: str = ""
    timezone: str = "UTC"
    require_second_factor: bool = False
    session_hours: int = 0
    mail_host: str = ""
    mail_port: int = 587
    mail_user: str = ""
    mail_from: str = ""
    secrets: dict[str, str] = {}


ORGS: Final = Entity("org", Org, (Index("by_org", ("org",)),))
USERS: Final = Entity(
    "user", User, (Index("email", ("email",), unique=True, across=True), Index("by_org", ("org",)),
                   Index("by_role", ("org", "role")))
)  # fmt: skip
AGENTS: Final = Entity(
    "agent", Agent, (Index("name", ("org", "name"), unique=True), Index("by_org", ("org",)),
                     Index("by_status", ("org", "status")), Index("by_profile", ("org", "profile_id")))
)  # fmt: skip
PROFILES: Final = Entity(
    "profile", ProfileRecord, (Index("by_org", ("org",)), Index("owner", ("org", "owner"), unique=True))
)
KEYS: Final = Entity(
    "key", ApiKey, (Index("digest", ("digest",), unique=True, across=True), Index("by_org", ("org",)),
                    Index("by_agent", ("org", "agent_id")), Index("by_creator", ("org", "created_by")))
)  # fmt: skip
UPSTREAMS: Final = Entity(
    "upstream", Upstream, (Index("name", ("org", "name"), unique=True), Index("by_org", ("org",)))
)
TOOLS: Final = Entity(
    "tool", ToolRecord, (Index("tool_id", ("org", "tool_id"), unique=True), Index("by_org", ("org",)),
                         Index("by_upstream", ("org", "upstream")))
)  # fmt: skip
CALLS: Final = Entity(
    "call", CallRecord,
    (Index("by_org", ("org",)), Index("by_agent", ("org", "agent")), Index("chain", ("org",), sort="seq")),
    append_only=True, time_ordered="dec",
)  # fmt: skip
CHAIN_HEADS: Final = Entity("chain_head", ChainHead)
ANCHORS: Final = Entity("chain_anchor", ChainAnchor, (Index("by_seq", ("org",), sort="seq"),), since=2)
SPOOL_MARKS: Final = Entity("spool_mark", SpoolMark, (Index("by_org", ("org",)),))
EPOCHS: Final = Entity("epoch", Epoch)
AUDIT: Final = Entity(
    "audit", AuditEntry,
    (Index("by_org", ("org",)), Index("by_actor", ("org", "actor")), Index("by_action", ("org", "action")),
     Index("by_resource", ("org", "resource")), Index("by_outcome", ("org", "outcome"))),
    append_only=True,
)  # fmt: skip

CHECK_REPORTS: Final = Entity("check_report", CheckReport, (Index("waiting", ("state",), across=True),))

REPLAYS: Final = Entity("replay", Replay, (Index("by_end", ("shelf",), sort="ends_at", across=True),), since=2)

SESSIONS: Final = Entity(
    "session", Session, (Index("lookup", ("lookup",), unique=True, across=True),
                         Index("by_user", ("org", "user_id"))), since=3,
)  # fmt: skip
SECOND_FACTORS: Final = Entity("second_factor", SecondFactor, since=3)
TICKETS: Final = Entity(
    "ticket", Ticket, (Index("digest", ("digest",), unique=True, across=True), Index("by_user", ("org", "user_id"))),
    since=3,
)  # fmt: skip
ROSTERS: Final = Entity("roster", Roster, since=3)
COMPANIES: Final = Entity("company", Company, since=3)

HOOKS: Final = Entity(
    "hook_presence", HookPresence, (Index("by_org", ("org",)), Index("by_state", ("state",), across=True)), since=4
)

ENTITIES: Final = (
    ORGS,
    USERS,
    AGENTS,
    PROFILES,
    KEYS,
    UPSTREAMS,
    TOOLS,
    CALLS,
    CHAIN_HEADS,
    SPOOL_MARKS,
    EPOCHS,
    AUDIT,
    CHECK_REPORTS,
)


class Migration(msgspec.Struct, frozen=True):
    """One numbered, additive step: the entities it creates and the indexes it adds to earlier ones."""

    number: int
    entities: tuple[Entity, ...] = ()
    indexes: tuple[tuple[str, str], ...] = ()


PEOPLE: Final = Migration(
    3,
    (SESSIONS, SECOND_FACTORS, TICKETS, ROSTERS, COMPANIES),
    (("user", "by_role"), ("key", "by_creator"), ("audit", "by_resource"), ("audit", "by_outcome")),
)

MIGRATIONS: Final = (
    Migration(1, ENTITIES), Migration(2, (ANCHORS, REPLAYS)), PEOPLE, Migration(4, (HOOKS,)),
    Migration(APPROVALS_SINCE, APPROVAL_ENTITIES),
)  # fmt: skip
"""In order, without gaps. Released ones never change; a new entity or index is a new Migration at the end."""
