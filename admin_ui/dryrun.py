"""`?dry_run=true`: a mutation is checked and told, and nothing is changed.

The operation runs as ever, on a store that answers its writes as the real one would and keeps none of them. What it
would have written is the answer: which record is made, changed or removed, and field by field how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from ..catalog.approvals import APPROVAL_POLICIES, APPROVALS, CHANNELS, GRANTS
from ..catalog.errors import Conflict, Stale
from ..catalog.records import (
    AGENTS,
    COMPANIES,
    KEYS,
    PROFILES,
    TOOLS,
    UPSTREAMS,
    USERS,
    Company,
    ProfileRecord,
)
from ..catalog.store import Delete, Entity, Increment, Insert, Query, Record, Replace, Store, Write
from ..gateway.accounts import Accounts
from ..gateway.approvals.engine import ApprovalEngine
from ..gateway.hookwatch import HookWatch
from ..gateway.metrics import Metrics
from ..gateway.registry import Registry
from ..gateway.settings import Settings
from ..gateway.upstream_spec import KEPT
from ..gateway.vault import Vault
from . import show, show_approvals
from .operation import ListingReport, Resolver, Runtime
from .validate import pointer

UNSAID: Final = frozenset({"id", "version", "created_at", "updated_at"})
"""Fields that the store sets: no news."""


class FieldChange(msgspec.Struct, kw_only=True):
    """One field: where (JSON Pointer), and its value before and after; null where there is none."""

    path: str
    before: Any
    after: Any


class Change(msgspec.Struct, kw_only=True):
    """One record that would be made, changed or removed."""

    action: Literal["create", "update", "delete"]
    kind: str
    id: str
    fields: list[FieldChange]


class TrialOut(msgspec.Struct, kw_only=True):
    """What would happen. `result` is what the answer would hold; ids and times of new records will differ."""

    dry_run: Literal[True]
    changes: list[Change]
    result: Any


class NotAsked(msgspec.Struct):
    """Servers are not contacted in a dry run."""

    ok: bool = True
    error: str = "Not asked: this was a dry run."
    tools: int = 0


class TrialStore:
    """Reads are the store's; writes are judged, noted in `changes`, and not done."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.changes: list[Change] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def commit(self, *writes: Write) -> list[Any]:
        """Results as of a real commit. Raises Conflict and Stale as it would."""
        return [await self._judge(write) for write in writes]

    async def append(self, entity: Entity, records: Any, *guards: Write) -> None:
        """Nothing that operations do appends; were it so, it would not happen here."""

    async def _judge(self, write: Write) -> Any:
        match write:
            case Insert(entity, record):
                if await self.inner.get(entity, record.org, record.id) is not None:
                    raise Conflict("id")
                await self._unique(entity, record)
                self._note("create", entity, None, record)
                return msgspec.structs.replace(record, version=1)
            case Replace(entity, record):
                before = await self._stored(entity, record.org, record.id, record.version)
                await self._unique(entity, record)
                self._note("update", entity, before, record)
                return msgspec.structs.replace(record, version=record.version + 1)
            case Delete(entity, org, id_, version):
                self._note("delete", entity, await self._stored(entity, org, id_, version), None)
                return None
            case Increment(entity, org, id_, field, by):
                counter = await self.inner.get(entity, org, id_)
                return (getattr(counter, field) if counter is not None else 0) + by

    async def _stored(self, entity: Entity, org: str, id_: str, version: int | None) -> Record:
        found: Record | None = await self.inner.get(entity, org, id_)
        if found is None or version not in {None, found.version}:
            raise Stale
        return found

    async def _unique(self, entity: Entity, record: Record) -> None:
        for index in entity.indexes:
            where = {field: getattr(record, field) for field in index.fields}
            if not index.unique or any(value in {None, ""} for value in where.values()):
                continue
            page = await self.inner.find(Query(entity, index.name, where, limit=1))
            if page.records and page.records[0].id != record.id:
                raise Conflict(index.name)

    def _note(self, action: Any, entity: Entity, before: Record | None, after: Record | None) -> None:
        view = VIEWS.get(entity.name)
        subject = after if after is not None else before
        if view is None or subject is None:
            return
        sides = [msgspec.to_builtins(view(side)) if side is not None else {} for side in (before, after)]
        self.changes.append(Change(action=action, kind=entity.name, id=subject.id, fields=differences(*sides)))


def _profile(record: ProfileRecord) -> dict[str, Any]:
    return {"name": record.name, "preset": record.preset or None, "profile": show.in_full(record.spec)}


def _company(record: Company) -> dict[str, Any]:
    return {**msgspec.to_builtins(record), "secrets": dict.fromkeys(record.secrets, KEPT)}


VIEWS: Final[Mapping[str, Callable[[Any], Any]]] = {
    AGENTS.name: show.agent, KEYS.name: lambda record: show.key(record, record.updated_at), PROFILES.name: _profile,
    UPSTREAMS.name: show.upstream, TOOLS.name: show.upstream_tool, USERS.name: show.user, COMPANIES.name: _company,
    APPROVALS.name: show_approvals.approval, APPROVAL_POLICIES.name: show_approvals.policy,
    GRANTS.name: lambda record: show_approvals.grant(record, record.updated_at), CHANNELS.name: show_approvals.channel,
}  # fmt: skip
"""How records are shown; one that is not here is nobody's concern (counters)."""


def differences(before: Any, after: Any, path: str = "") -> list[FieldChange]:
    """What differs between two values, at the deepest object members that do."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [name for name in {**before, **after} if path or name not in UNSAID]
        return [
            change for name in names for change in differences(before.get(name), after.get(name), pointer(path, name))
        ]
    return [] if before == after else [FieldChange(path=path, before=before, after=after)]


class _Upstreams:
    async def refresh(self, org: str, upstream_id: str) -> ListingReport:
        return NotAsked()


class TrialRuntime:
    """The gateway's parts over a `TrialStore`: what they change is not changed, here or elsewhere."""

    def __init__(self, real: Runtime) -> None:
        self.trial = TrialStore(real.store)
        self.store: Store = self.trial
        self.settings: Settings = real.settings
        self.vault: Vault = real.vault
        self.metrics: Metrics = real.metrics
        self.identity: Resolver = real.identity
        self.accounts = Accounts(self.store)
        self.registry = Registry(self.store, real.vault)
        self.approvals = ApprovalEngine(self.store, real.vault, settings=real.settings.approvals)  # that runs nothing
        self.upstreams = _Upstreams()
        self.people = real.people.over(self.store, self.accounts)
        self.hooks = HookWatch(self.store, self.accounts, real.settings.hooks)
