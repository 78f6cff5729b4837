"""Approval policies, standing grants and notification channels, as operators manage them; and the table of policies
that calls are matched against, read once per policy epoch."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec

from ...catalog.approvals import (
    APPROVAL_POLICIES,
    CHANNELS,
    GRANTS,
    ApprovalPolicy,
    ApprovalPolicySpec,
    Channel,
    ChannelKind,
    Condition,
    Grant,
)
from ...catalog.calls import AgentView, Tool
from ...catalog.errors import AddressRefused, FieldError, NotFound, Stale, ValidationFailed
from ...catalog.ids import new_id
from ...catalog.records import AGENTS
from ...catalog.store import MAX_PAGE, Delete, Entity, Insert, Query, Record, Replace, Store
from ...policies.approvals import check_spec, choose, conditions_test, finding, ordered
from ...policies.verdicts import Finding
from ..addresses import check_url
from ..changes import Changes
from ..vault import Vault

T = TypeVar("T", bound=Record)

MAX_POLICIES: Final = 500
"""Approval policies of one organisation: all of them are looked through when a tool is compiled."""

EVENTS: Final = ("requested", "escalated", "reminded", "decided", "expired", "finished")
"""What a channel can be told of."""


class GrantSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A standing grant to be made. At least one condition: a grant for whatever arguments is a policy's job."""

    agent_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    tool: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    conditions: Annotated[tuple[Condition, ...], msgspec.Meta(min_length=1, max_length=20)]
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 10
    seconds: Annotated[int, msgspec.Meta(ge=60, le=30 * 86_400)] = 3600
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class ChannelSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A channel to be made or replaced. `secret` (webhook) is made when left out, and shown once."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    kind: ChannelKind = "webhook"
    enabled: bool = True
    url: Annotated[str, msgspec.Meta(max_length=2048)] = ""
    secret: Annotated[str, msgspec.Meta(max_length=256)] = ""
    allow_private: bool = False
    recipients: Annotated[tuple[str, ...], msgspec.Meta(max_length=50)] = ()
    events: tuple[str, ...] = EVENTS


class Book:
    """One per worker. `epoch` tells when what was read is out of date (the policy chain's own count)."""

    def __init__(
        self, store: Store, vault: Vault, epoch: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.time, on_change: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._store = store
        self._vault = vault
        self._epoch = epoch
        self._changes = Changes(store, clock, on_change)
        self._tables: dict[str, tuple[int, tuple[ApprovalPolicy, ...]]] = {}

    # -- what calls are matched against -----------------------------------------------------------------------------
    async def load(self, org: str) -> tuple[ApprovalPolicy, ...]:
        """The organisation's policies in the order in which they count, as of this epoch. StoreError."""
        epoch = self._epoch()
        known = self._tables.get(org)
        if known is not None and known[0] == epoch:
            return known[1]
        policies = ordered(await self._all(APPROVAL_POLICIES, org))
        if epoch == self._epoch():
            if len(self._tables) >= 10_000:
                self._tables.clear()
            self._tables[org] = (epoch, policies)
        return policies

    async def hold(self, agent: AgentView, tool: Tool) -> Finding | None:
        """What approval policies say to a tool that would pass (the policy chain asks this when it compiles)."""
        return finding(await self.load(agent.org), agent, tool)

    async def policy_for(self, org: str, agent_id: str, agent_name: str, tool: Tool) -> ApprovalPolicy | None:
        return choose(await self.load(org), agent_id, agent_name, tool)

    # -- policies ---------------------------------------------------------------------------------------------------
    async def policy(self, org: str, policy_id: str) -> ApprovalPolicy:
        """NotFound."""
        return await self._one(APPROVAL_POLICIES, ApprovalPolicy, org, policy_id, "approval policy")

    async def create_policy(self, org: str, spec: ApprovalPolicySpec) -> ApprovalPolicy:
        """ValidationFailed; Conflict("name") when the name is taken."""
        _check(spec)
        if await self._store.count(Query(APPROVAL_POLICIES, "by_org", {"org": org}), MAX_POLICIES) >= MAX_POLICIES:
            raise ValidationFailed([("", "too_many", f"An organisation has at most {MAX_POLICIES} approval policies.")])
        now = self._changes.now()
        record = ApprovalPolicy(
            org=org, id=new_id("approval_policy"), name=spec.name, spec=spec, created_at=now, updated_at=now
        )
        return _stored(await self._commit(Insert(APPROVAL_POLICIES, record)), ApprovalPolicy)

    async def replace_policy(
        self, org: str, policy_id: str, spec: ApprovalPolicySpec, version: int | None = None
    ) -> ApprovalPolicy:
        """NotFound, ValidationFailed, Conflict("name"), Stale."""
        _check(spec)
        record = await self.policy(org, policy_id)
        if version is not None and record.version != version:
            raise Stale
        record.name, record.spec, record.updated_at = spec.name, spec, self._changes.now()
        return _stored(await self._commit(Replace(APPROVAL_POLICIES, record)), ApprovalPolicy)

    async def delete_policy(self, org: str, policy_id: str, version: int | None = None) -> ApprovalPolicy:
        """NotFound, Stale. Calls held under it keep their terms."""
        record = await self.policy(org, policy_id)
        await self._commit(Delete(APPROVAL_POLICIES, org, policy_id, version))
        return record

    async def _commit(self, *writes: Any) -> list[Any]:
        try:
            return await self._changes.commit(*writes)
        finally:
            self._tables.clear()

    # -- grants -----------------------------------------------------------------------------------------------------
    async def grant(self, org: str, grant_id: str) -> Grant:
        """NotFound."""
        return await self._one(GRANTS, Grant, org, grant_id, "grant")

    async def create_grant(self, org: str, spec: GrantSpec, created_by: str) -> Grant:
        """NotFound for an agent that is not there, ValidationFailed."""
        if await self._store.get(AGENTS, org, spec.agent_id) is None:
            raise NotFound("There is no such agent.")
        try:
            conditions_test(spec.conditions)
        except ValueError as error:
            raise ValidationFailed([("/conditions", "invalid", f"A condition cannot be used: {error}.")]) from None
        now = self._changes.now()
        record = Grant(
            org=org, id=new_id("grant"), agent=spec.agent_id, tool=spec.tool, pair=pair(spec.agent_id, spec.tool),
            conditions=spec.conditions, limit=spec.limit, expires_at=now + spec.seconds * 1000, created_by=created_by,
            reason=spec.reason, created_at=now, updated_at=now,
        )  # fmt: skip
        return _stored(await self._store.commit(Insert(GRANTS, record)), Grant)

    async def revoke_grant(self, org: str, grant_id: str) -> Grant:
        """At once and for good. NotFound."""
        for _ in range(4):
            record = await self.grant(org, grant_id)
            if record.revoked_at:
                return record
            record.revoked_at = record.updated_at = self._changes.now()
            try:
                return _stored(await self._store.commit(Replace(GRANTS, record)), Grant)
            except Stale:
                continue
        raise Stale

    # -- channels ---------------------------------------------------------------------------------------------------
    async def channel(self, org: str, channel_id: str) -> Channel:
        """NotFound."""
        return await self._one(CHANNELS, Channel, org, channel_id, "notification channel")

    async def channels(self, org: str) -> list[Channel]:
        return await self._all(CHANNELS, org)

    async def create_channel(self, org: str, spec: ChannelSpec, secret: str) -> Channel:
        """`secret` signs a webhook's messages. ValidationFailed, Conflict("name")."""
        _check_channel(spec)
        now = self._changes.now()
        channel_id = new_id("channel")
        record = Channel(
            org=org, id=channel_id, name=spec.name, kind=spec.kind, enabled=spec.enabled,
            allow_private=spec.allow_private, recipients=spec.recipients, events=spec.events, created_at=now,
            updated_at=now,
        )  # fmt: skip
        if spec.url:
            record.sealed_url = self._vault.seal(spec.url, (org, "channel", "url", channel_id))
        if spec.kind == "webhook":
            record.sealed_secret = self._vault.seal(secret, (org, "channel", "secret", channel_id))
        return _stored(await self._store.commit(Insert(CHANNELS, record)), Channel)

    async def delete_channel(self, org: str, channel_id: str) -> Channel:
        """NotFound."""
        record = await self.channel(org, channel_id)
        await self._store.commit(Delete(CHANNELS, org, channel_id))
        return record

    async def _one(self, entity: Entity, kind: type[T], org: str, record_id: str, what: str) -> T:
        record = await self._store.get(entity, org, record_id)
        if record is None:
            raise NotFound(f"There is no such {what}.")
        assert isinstance(record, kind)  # noqa: S101 - the entity's type
        return record

    async def _all(self, entity: Entity, org: str) -> list[Any]:
        records: list[Any] = []
        query = Query(entity, "by_org", {"org": org}, limit=MAX_PAGE)
        while True:
            page = await self._store.find(query)
            records += page.records
            if not page.cursor:
                return records
            query = msgspec.structs.replace(query, cursor=page.cursor)


def finder(store: Store) -> Callable[[AgentView, Tool], Awaitable[Finding | None]]:
    """What approval policies say to a tool that would pass, for whoever judges without a gateway around it."""

    async def hold(agent: AgentView, tool: Tool) -> Finding | None:
        page = await store.find(Query(APPROVAL_POLICIES, "by_org", {"org": agent.org}, limit=MAX_POLICIES))
        return finding(ordered(page.records), agent, tool)

    return hold


def _stored(results: list[Any], kind: type[T]) -> T:
    """What the one write of a commit stored."""
    stored = results[0]
    assert isinstance(stored, kind)  # noqa: S101 - the entity's type
    return stored


def pair(agent_id: str, tool: str) -> str:
    """What grants are found by. A space stands in no agent's id."""
    return f"{agent_id} {tool}"


def _check(spec: ApprovalPolicySpec) -> None:
    faults = check_spec(spec)
    if faults:
        raise ValidationFailed([(path, "invalid", sentence) for path, sentence in faults])


def usable_secret(secret: str) -> bool:
    """Whether a webhook's secret is one of Standard Webhooks, and not too short to be one."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        return False
    return secret.startswith("whsec_") and len(key) >= 24


def _check_channel(spec: ChannelSpec) -> None:
    faults: list[FieldError] = []
    if spec.kind == "webhook" and spec.secret and not usable_secret(spec.secret):
        faults.append(("/secret", "format", "A secret is whsec_ and the base64 of 24 bytes or more."))
    if spec.kind == "email":
        if not spec.recipients:
            faults.append(("/recipients", "required", "An e-mail channel needs a recipient."))
        faults += [
            (f"/recipients/{place}", "invalid", "This is no e-mail address.")
            for place, address in enumerate(spec.recipients)
            if address.count("@") != 1 or not address.isprintable() or any(c in address for c in " <>,;\"'")
        ]
    elif not spec.url:
        faults.append(("/url", "required", "This kind of channel needs a URL."))
    faults += [
        (f"/events/{place}", "choice", f"Known events are: {', '.join(EVENTS)}.")
        for place, event in enumerate(spec.events)
        if event not in EVENTS
    ]
    if faults:
        raise ValidationFailed(faults)
    if spec.url:
        try:
            check_url(spec.url, allow_private=spec.allow_private)
        except AddressRefused as error:
            raise ValidationFailed([("/url", "address_refused", error.message)]) from None
