"""What is stored of approvals: policies, held calls, standing grants, notification channels, and results kept for
repeats.

Terms are frozen into an approval when a call is held: a policy that is changed afterwards binds the next call, not one
that people are already looking at. Times are milliseconds since the epoch, spans seconds.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from .profiles import Glob, Name, Operator, Risk, SideEffect, Window
from .store import Entity, Index, Record

ApproverRole = Literal["member", "admin", "owner"]
"""Roles that can be asked to decide, weakest first; each stands for those above it too."""

APPROVER_ROLES: Final[tuple[ApproverRole, ...]] = ("member", "admin", "owner")

ApprovalState = Literal[
    "pending", "approved", "executing", "executed", "not_executed", "unknown", "rejected", "expired", "cancelled"
]
"""`approved`: decided and not yet sent. `unknown`: it may have been sent, and nobody can say. The last six are
final."""

FINAL: Final[frozenset[ApprovalState]] = frozenset(
    {"executed", "not_executed", "unknown", "rejected", "expired", "cancelled"}
)

DecisionKind = Literal["approve", "reject", "edit", "delegate", "snooze", "escalate", "expire", "auto", "cancel"]
ExpiryEffect = Literal["deny", "approve"]
ChannelKind = Literal["webhook", "slack", "email"]

Seconds = Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400)]
Approver = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
"""The id of a person (`usr_...`) or of an API key (`key_...`)."""


class _Spec(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Condition(_Spec, kw_only=True, frozen=True):
    """One demand on the arguments, with the operators of argument rules. `field` is a path, or `recipient_domain`:
    the domain of every recipient (to, cc, bcc, replyTo) and of one at least. What is missing does not meet it."""

    field: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    op: Operator
    values: tuple[str | int | float | bool, ...] = ()


class AutoApproveRule(_Spec, kw_only=True, frozen=True):
    """A call that meets every condition, inside one of the windows when there are any, needs nobody. A rule without
    conditions and windows would approve everything and is refused."""

    name: Name
    conditions: tuple[Condition, ...] = ()
    schedule: tuple[Window, ...] = ()


class Stage(_Spec, kw_only=True, frozen=True):
    """Who is asked, and for how long. `approvers` given: these and nobody else; else everybody of `role` or above."""

    role: ApproverRole = "admin"
    approvers: tuple[Approver, ...] = ()
    timeout: Seconds = 3600


class ApprovalPolicySpec(_Spec, kw_only=True, frozen=True):
    """A policy matches a tool that any of `tools` (globs of tool ids), `skills`, `risks` or `side_effects` names; with
    none of them given it matches every tool. `agents` (ids or names) narrows it to some; none: all.

    A matching policy holds calls that would pass, and says who decides about calls held by an agent's profile. Of
    several the highest `priority` counts, then the oldest.
    """

    name: Name
    description: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    enabled: bool = True
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    agents: tuple[Glob, ...] = ()
    tools: tuple[Glob, ...] = ()
    skills: tuple[Name, ...] = ()
    risks: tuple[Risk, ...] = ()
    side_effects: tuple[SideEffect, ...] = ()
    role: ApproverRole = "admin"
    approvers: tuple[Approver, ...] = ()
    approvals: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1
    separation_of_duties: bool = False
    auto_approve_rules: tuple[AutoApproveRule, ...] = ()
    timeout: Seconds = 3600
    escalation: tuple[Stage, ...] = ()
    on_expiry: ExpiryEffect = "deny"


class ApprovalPolicy(Record, kw_only=True, omit_defaults=True):
    """A stored policy. `name` repeats the spec's, for the index."""

    name: str = ""
    spec: ApprovalPolicySpec = msgspec.field(default_factory=lambda: ApprovalPolicySpec(name="policy"))


class Terms(_Spec, kw_only=True, frozen=True):
    """What was agreed when the call was held: the stages in order, how many must approve, and what silence means."""

    policy_id: str = ""
    policy_name: str = ""
    policy_version: int = 0
    stages: tuple[Stage, ...] = (Stage(),)
    approvals: int = 1
    separation_of_duties: bool = False
    on_expiry: ExpiryEffect = "deny"


class Change(_Spec, kw_only=True, frozen=True):
    """One difference between two versions of the arguments. `path` is a JSON Pointer; values are sealed elsewhere: only
    digests (SHA-256 of the canonical value, "" for none) stand here."""

    path: str
    before: str = ""
    after: str = ""


class Decision(_Spec, kw_only=True, frozen=True):
    """Who did what, when, to which bytes (`digest` of the canonical form that was shown)."""

    at: int
    kind: DecisionKind
    by: str
    name: str = ""
    role: str = ""
    person: str = ""
    reason: str = ""
    digest: str = ""
    to: str = ""
    changes: tuple[Change, ...] = ()


class Approval(Record, kw_only=True, omit_defaults=True):
    """One held call. `sealed` is its canonical form (RFC 8785), encrypted; `digest` the form's SHA-256 (hex).

    `twin` finds it for the same call made again: SHA-256 over who, what and the arguments as asked for; "" once
    repeats no longer meet it. `watch` is "on" while `due_at` says when the sweeper must look again. `phase` "sending"
    means that bytes may have left. `fence` rises with every claim: a worker with an older one can store nothing.
    """

    state: ApprovalState = "pending"
    agent: str = ""
    agent_name: str = ""
    key: str = ""
    door: str = ""
    upstream: str = ""
    kind: str = "tool"
    tool: str = ""
    pin: str = ""
    twin: str = ""
    digest: str = ""
    asked_digest: str = ""
    sealed: str = ""
    sealed_asked: str = ""
    risk: str = ""
    side_effects: tuple[str, ...] = ()
    rule: str = ""
    reason: str = ""
    call_id: str = ""
    request_id: str = ""
    trace_id: str = ""
    ip: str = ""
    terms: Terms = msgspec.field(default_factory=Terms)
    stage: int = 0
    stage_until: int = 0
    delegated_to: str = ""
    snoozed_until: int = 0
    decisions: tuple[Decision, ...] = ()
    rejection: str = ""
    watch: Literal["", "on"] = ""
    due_at: int = 0
    decided_at: int = 0
    phase: Literal["", "claimed", "sending"] = ""
    worker: str = ""
    fence: int = 0
    lease_until: int = 0
    execution_id: str = ""
    outcome: str = ""
    error: str = ""
    sealed_result: str = ""
    finished_at: int = 0
    deliveries: int = 0


class Grant(Record, kw_only=True, omit_defaults=True):
    """A standing permission: calls of one agent and tool whose arguments meet every condition need nobody, until it
    expires or was used `limit` times. `used` is the store's counter. Made by a person, visible, revocable."""

    agent: str = ""
    tool: str = ""
    pair: str = ""
    conditions: tuple[Condition, ...] = ()
    limit: int = 0
    used: int = 0
    expires_at: int = 0
    revoked_at: int = 0
    created_by: str = ""
    reason: str = ""


class Channel(Record, kw_only=True, omit_defaults=True):
    """Where people are told of held calls. `url` and `secret` are sealed: a Slack URL is a credential in itself."""

    name: str = ""
    kind: ChannelKind = "webhook"
    enabled: bool = True
    sealed_url: str = ""
    sealed_secret: str = ""
    allow_private: bool = False
    recipients: tuple[str, ...] = ()
    events: tuple[str, ...] = ()


class Delivery(Record, kw_only=True, omit_defaults=True):
    """One message on its way to one channel. Kept in the store until it arrived, or `attempts` ran out."""

    channel: str = ""
    approval: str = ""
    event: str = ""
    body: str = ""
    attempts: int = 0
    error: str = ""
    state: Literal["due", "sent", "failed"] = "due"
    due_at: int = 0


class Once(Record, kw_only=True, omit_defaults=True):
    """A call of a tool that must not run twice; `id` is SHA-256 over agent, tool and key (or arguments). Made before
    the call leaves. `state` "open" after `until`: nobody knows how it ended."""

    agent: str = ""
    tool: str = ""
    arguments: str = ""
    state: Literal["open", "done", "failed"] = "open"
    outcome: str = ""
    call_id: str = ""
    sealed_result: str = ""
    until: int = 0
    watch: Literal["", "on"] = "on"


APPROVALS_SINCE: Final = 5
"""The migration that brings these."""

_SINCE: Final = APPROVALS_SINCE

APPROVAL_POLICIES: Final = Entity(
    "approval_policy",
    ApprovalPolicy,
    (Index("by_org", ("org",)), Index("name", ("org", "name"), unique=True)),
    since=_SINCE,
)
APPROVALS: Final = Entity(
    "approval", Approval,
    (Index("by_org", ("org",)), Index("by_state", ("org", "state")), Index("by_agent", ("org", "agent")),
     Index("by_agent_state", ("org", "agent", "state")),
     Index("twin", ("org", "twin"), unique=True), Index("due", ("watch",), sort="due_at", across=True)),
    since=_SINCE,
)  # fmt: skip
GRANTS: Final = Entity("grant", Grant, (Index("by_org", ("org",)), Index("by_pair", ("org", "pair"))), since=_SINCE)
CHANNELS: Final = Entity(
    "channel", Channel, (Index("by_org", ("org",)), Index("name", ("org", "name"), unique=True)), since=_SINCE
)
DELIVERIES: Final = Entity(
    "delivery", Delivery,
    (Index("by_org", ("org",)), Index("due", ("state",), sort="due_at", across=True)), since=_SINCE,
)  # fmt: skip
ONCES: Final = Entity(
    "once", Once, (Index("by_org", ("org",)), Index("due", ("watch",), sort="until", across=True)), since=_SINCE
)

APPROVAL_ENTITIES: Final = (APPROVAL_POLICIES, APPROVALS, GRANTS, CHANNELS, DELIVERIES, ONCES)
