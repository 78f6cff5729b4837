"""Approvals, their policies, grants and channels as the API shows them. Addresses and secrets never."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from ..catalog.approvals import (
    Approval,
    ApprovalPolicy,
    ApprovalState,
    Channel,
    ChannelKind,
    Condition,
    Decision,
    Grant,
)
from ..gateway.approvals.canonical import canonical
from ..gateway.approvals.deciding import given, stage_of
from ..gateway.approvals.engine import ApprovalEngine
from ..gateway.approvals.form import Attachment, Difference, attachments, differences, shown
from .show import Time, in_full, moment, moment_or_none

FullPolicy = Annotated[
    dict[str, Any], msgspec.Meta(extra_json_schema={"$ref": "#/components/schemas/ApprovalPolicySpec"})
]


class StageOut(msgspec.Struct, kw_only=True):
    """Who is asked now. `approvers` empty: everybody of the role or above."""

    number: int
    of: int
    role: str
    approvers: tuple[str, ...]
    until: Time


class DecisionOut(msgspec.Struct, kw_only=True):
    """Who did what, when, about which bytes. `by` null: nobody, time ran out. `changed`: JSON Pointers of an edit."""

    at: Time
    kind: str
    by: str | None
    name: str
    role: str
    reason: str
    digest: str
    to: str
    changed: list[str]


class ApprovalOut(msgspec.Struct, kw_only=True):
    """A held call without its arguments. `digest` is of its canonical form (RFC 8785), as it stands now."""

    id: str
    state: ApprovalState
    agent_id: str
    agent_name: str
    tool: str
    kind: str
    upstream: str
    risk: str
    side_effects: tuple[str, ...]
    rule: str
    reason: str
    decision_id: str
    digest: str
    edited: bool
    policy_id: str | None
    policy_name: str
    stage: StageOut
    approvals_needed: int
    approvals_given: int
    separation_of_duties: bool
    on_expiry: Literal["deny", "approve"]
    delegated_to: str | None
    snoozed_until: Time | None
    decisions: list[DecisionOut]
    rejection: str
    outcome: str
    error: str
    execution_id: str | None
    created_at: Time
    decided_at: Time | None
    finished_at: Time | None
    version: int


class ApprovalDetailOut(ApprovalOut, kw_only=True):
    """A held call with all of it. `canonical` is the stored form itself, the very text that `digest` is of; `arguments`
    are its arguments with everything invisible drawn (`⟦U+202E RIGHT-TO-LEFT OVERRIDE⟧`); nothing is cut.
    `differences`: what editing changed of what the agent asked for."""

    canonical: str
    arguments: dict[str, Any]
    attachments: list[Attachment]
    differences: list[Difference]


class ResultOut(msgspec.Struct, kw_only=True):
    """How a held call stands, for whoever waits. `answer` is the upstream's `{"result"}` or `{"error"}`, null while
    there is none."""

    id: str
    state: ApprovalState
    outcome: str
    rejection: str
    error: str
    answer: Any


class BatchItemOut(msgspec.Struct, kw_only=True):
    """What came of one decision of a batch. `code` and `error` are empty when it was done."""

    id: str
    ok: bool
    state: str
    code: str
    error: str


class BatchOut(msgspec.Struct, kw_only=True):
    """One entry per decision, in their order."""

    items: list[BatchItemOut]


class ApprovalPolicyOut(msgspec.Struct, kw_only=True):
    """An approval policy, with every field spelled out under `policy`."""

    id: str
    name: str
    enabled: bool
    priority: int
    policy: FullPolicy
    created_at: Time
    updated_at: Time
    version: int


class GrantOut(msgspec.Struct, kw_only=True):
    """A standing grant."""

    id: str
    agent_id: str
    tool: str
    conditions: tuple[Condition, ...]
    limit: int
    used: int
    status: Literal["active", "used_up", "expired", "revoked"]
    reason: str
    created_by: str
    created_at: Time
    expires_at: Time
    revoked_at: Time | None
    version: int


class ProposalOut(msgspec.Struct, kw_only=True):
    """A grant that would have spared these decisions. Nothing is granted unless somebody makes it."""

    agent_id: str
    tool: str
    conditions: tuple[Condition, ...]
    approvals: int


class ChannelOut(msgspec.Struct, kw_only=True):
    """A notification channel. Its URL and secret are never shown."""

    id: str
    name: str
    kind: ChannelKind
    enabled: bool
    allow_private: bool
    recipients: tuple[str, ...]
    events: tuple[str, ...]
    created_at: Time
    version: int


class NewChannelOut(ChannelOut, kw_only=True):
    """A channel just made. `secret` verifies the signature of its messages: shown this once. Empty where there is
    none; null in an answer that is given again (Idempotency-Key) and in a dry run."""

    secret: str | None


def decision(one: Decision) -> DecisionOut:
    return DecisionOut(
        at=moment(one.at), kind=one.kind, by=one.by or None, name=one.name, role=one.role, reason=one.reason,
        digest=one.digest, to=one.to, changed=[change.path for change in one.changes],
    )  # fmt: skip


def approval(one: Approval) -> ApprovalOut:
    stage = stage_of(one)
    number = min(one.stage, len(one.terms.stages) - 1) + 1
    return ApprovalOut(
        id=one.id, state=one.state, agent_id=one.agent, agent_name=one.agent_name, tool=one.tool, kind=one.kind,
        upstream=one.upstream, risk=one.risk, side_effects=one.side_effects, rule=one.rule, reason=one.reason,
        decision_id=one.call_id, digest=one.digest, edited=one.digest != one.asked_digest,
        policy_id=one.terms.policy_id or None, policy_name=one.terms.policy_name,
        stage=StageOut(
            number=number, of=len(one.terms.stages), role=stage.role, approvers=stage.approvers,
            until=moment(one.stage_until),
        ),
        approvals_needed=one.terms.approvals, approvals_given=given(one),
        separation_of_duties=one.terms.separation_of_duties, on_expiry=one.terms.on_expiry,
        delegated_to=one.delegated_to or None, snoozed_until=moment_or_none(one.snoozed_until),
        decisions=[decision(item) for item in one.decisions], rejection=one.rejection, outcome=one.outcome,
        error=one.error, execution_id=one.execution_id or None, created_at=moment(one.created_at),
        decided_at=moment_or_none(one.decided_at), finished_at=moment_or_none(one.finished_at), version=one.version,
    )  # fmt: skip


def detail(engine: ApprovalEngine, one: Approval) -> ApprovalDetailOut:
    """With the call itself, opened. SecretError when what is stored was tampered with."""
    form = engine.form(one)
    asked = engine.form(one, asked=True)
    text = canonical(msgspec.structs.asdict(form)).decode()
    fields = {field: getattr(approval(one), field) for field in ApprovalOut.__struct_fields__}
    return ApprovalDetailOut(
        **fields, canonical=text, arguments=shown(form.arguments), attachments=attachments(form.arguments),
        differences=differences(asked.arguments, form.arguments),
    )  # fmt: skip


def policy(record: ApprovalPolicy) -> ApprovalPolicyOut:
    return ApprovalPolicyOut(
        id=record.id, name=record.name, enabled=record.spec.enabled, priority=record.spec.priority,
        policy=in_full(record.spec), created_at=moment(record.created_at), updated_at=moment(record.updated_at),
        version=record.version,
    )  # fmt: skip


def grant(record: Grant, now: int) -> GrantOut:
    status: Literal["active", "used_up", "expired", "revoked"] = "active"
    if record.revoked_at:
        status = "revoked"
    elif record.expires_at <= now:
        status = "expired"
    elif record.used >= record.limit:
        status = "used_up"
    return GrantOut(
        id=record.id, agent_id=record.agent, tool=record.tool, conditions=record.conditions, limit=record.limit,
        used=record.used, status=status, reason=record.reason, created_by=record.created_by,
        created_at=moment(record.created_at), expires_at=moment(record.expires_at),
        revoked_at=moment_or_none(record.revoked_at), version=record.version,
    )  # fmt: skip


def channel(record: Channel) -> ChannelOut:
    return ChannelOut(
        id=record.id, name=record.name, kind=record.kind, enabled=record.enabled, allow_private=record.allow_private,
        recipients=record.recipients, events=record.events, created_at=moment(record.created_at),
        version=record.version,
    )  # fmt: skip


def new_channel(record: Channel, secret: str) -> NewChannelOut:
    fields = {field: getattr(channel(record), field) for field in ChannelOut.__struct_fields__}
    return NewChannelOut(**fields, secret=secret)
