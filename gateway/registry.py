"""Upstream servers: registered, changed, removed; with what they keep secret sealed, and every field held to a rule.

Credentials go in and never come out: a stored one is shown as `set`. An upstream's name is part of its tools' ids and
of the call record, so it never changes. The tools an upstream offers are `gateway.tools_registry`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, cast

import msgspec

from ..catalog.errors import NotFound, Stale, ValidationFailed
from ..catalog.ids import new_id
from ..catalog.records import TOOLS, UPSTREAMS, Upstream
from ..catalog.store import MAX_PAGE, Delete, Insert, Query, Replace, Store
from .changes import ATTEMPTS, ROOM, Changes, Clock
from .tools_registry import ToolsRegistry
from .upstream_spec import KEPT, UpstreamSpec, destination, faults_of, routes_of
from .vault import Aad, Vault


class Registry:
    """One per worker. `tools` keeps what upstreams offer; `on_change` runs after each write of policy."""

    def __init__(
        self, store: Store, vault: Vault, clock: Clock = time.time, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self._store = store
        self._vault = vault
        self._changes = Changes(store, clock, on_change)
        self.tools = ToolsRegistry(store, self._changes)
        self.record_listing = self.tools.record_listing

    async def upstream(self, org: str, upstream_id: str) -> Upstream:
        """One upstream by its id. NotFound when this organisation has none of that id."""
        found: Upstream | None = await self._store.get(UPSTREAMS, org, upstream_id)
        if found is None:
            raise NotFound(f"There is no upstream {upstream_id!r}.")
        return found

    async def by_name(self, org: str, name: str) -> Upstream:
        """One upstream by its name. NotFound."""
        page = await self._store.find(Query(UPSTREAMS, "name", {"org": org, "name": name}, limit=1))
        if not page.records:
            raise NotFound(f"There is no upstream named {name!r}.")
        return cast(Upstream, page.records[0])

    async def all(self, org: str) -> list[Upstream]:
        """Every upstream of an organisation, oldest first."""
        records: list[Upstream] = []
        cursor = ""
        while True:
            page = await self._store.find(Query(UPSTREAMS, "by_org", {"org": org}, limit=MAX_PAGE, cursor=cursor))
            records += page.records
            cursor = page.cursor
            if not cursor:
                return records

    async def create(self, org: str, spec: UpstreamSpec) -> Upstream:
        """Register an upstream. ValidationFailed with every fault; Conflict("name")."""
        faults = faults_of(spec)
        faults += [
            (f"/secrets/{name}", "not_stored", "There is nothing stored to keep; send the value.")
            for name, value in _given(spec).items()
            if value == KEPT
        ]
        if faults:
            raise ValidationFailed(faults)
        now = self._changes.now()
        record = Upstream(org=org, id=new_id("upstream"), name=spec.name, created_at=now, updated_at=now)
        self._fill(record, spec, {})
        return cast(Upstream, (await self._changes.commit(Insert(UPSTREAMS, record)))[0])

    async def replace(self, org: str, upstream_id: str, spec: UpstreamSpec, version: int | None = None) -> Upstream:
        """Say everything about an upstream anew. `secrets` left out: all stay; a value of `set` keeps that one.

        ValidationFailed with every fault: also when the name differs, or when stored secrets would go to another place
        than they were given for. Stale when `version` is no longer the stored one.
        """
        record = await self.upstream(org, upstream_id)
        if version is not None and record.version != version:
            raise Stale
        faults = faults_of(spec)
        if spec.name != record.name:
            faults.append(("/name", "immutable", "A name stays: it is part of tool ids and records. Register another."))
        given = record.secrets if spec.secrets is msgspec.UNSET else _given(spec)
        kept = {name for name in given if spec.secrets is msgspec.UNSET or given[name] == KEPT}
        faults += [
            (f"/secrets/{name}", "not_stored", "There is nothing stored to keep; send the value.")
            for name in sorted(kept - record.secrets.keys())
        ]
        if kept and destination(spec) != _destination_of(record):
            # whoever may change an upstream must not learn its credentials by pointing it at a server of their own
            faults.append(("/secrets", "moved", "The upstream moves to another place: send its secrets again."))
        if faults:
            raise ValidationFailed(faults)
        self._fill(record, spec, {name: record.secrets[name] for name in kept})
        record.updated_at = self._changes.now()
        return cast(Upstream, (await self._changes.commit(Replace(UPSTREAMS, record)))[0])

    async def delete(self, org: str, upstream_id: str, version: int | None = None) -> None:
        """Remove an upstream and what is known of its tools. Its tools go first: what is unknown is denied."""
        record = await self.upstream(org, upstream_id)
        if version is not None and record.version != version:
            raise Stale
        for _ in range(ATTEMPTS):
            if await self._try_delete(record, version):
                return
        raise Stale

    async def _try_delete(self, record: Upstream, version: int | None) -> bool:
        query = Query(TOOLS, "by_upstream", {"org": record.org, "upstream": record.name}, limit=ROOM - 1)
        try:
            while True:
                page = await self._store.find(query)
                removals = [Delete(TOOLS, record.org, tool.id) for tool in page.records]
                if not page.cursor:
                    await self._changes.commit(*removals, Delete(UPSTREAMS, record.org, record.id, version))
                    return True
                await self._changes.commit(*removals)
        except Stale:  # somebody removed one of them meanwhile; look again, unless the upstream itself changed
            await self.upstream(record.org, record.id)
            if version is not None and (await self.upstream(record.org, record.id)).version != version:
                raise
            return False

    # -- secrets -------------------------------------------------------------------------------------------------
    def open_secrets(self, record: Upstream) -> dict[str, str]:
        """The secrets in clear, for the connection alone. SecretError when one cannot be opened."""
        return {name: self._vault.open(sealed, _aad(record, name)) for name, sealed in record.secrets.items()}

    async def reseal(self, org: str) -> int:
        """Seal anew, under the vault's first key, what an older key sealed. How many upstreams that changed."""
        changed = 0
        for record in await self.all(org):
            if all(self._vault.is_current(sealed) for sealed in record.secrets.values()):
                continue
            plain = self.open_secrets(record)
            record.secrets = {name: self._vault.seal(value, _aad(record, name)) for name, value in plain.items()}
            record.updated_at = self._changes.now()
            await self._changes.commit(Replace(UPSTREAMS, record))
            changed += 1
        return changed

    def _fill(self, record: Upstream, spec: UpstreamSpec, kept: Mapping[str, str]) -> None:
        """Put a spec that was found without fault into its record."""
        for field in _PLAIN:
            setattr(record, field, getattr(spec, field))
        record.routes = routes_of(spec)
        record.command = spec.command[0] if spec.command else ""
        record.args = spec.command[1:]
        fresh = {name: value for name, value in _given(spec).items() if name not in kept}
        sealed = {name: self._vault.seal(value, _aad(record, name)) for name, value in fresh.items()}
        record.secrets = {**kept, **sealed}


_PLAIN: Final = (
    "kind", "enabled", "url", "cwd", "headers", "env", "allow_private", "verify_tls", "timeout_ms",
    "connect_timeout_ms", "max_connections", "pin_policy", "catalog",
)  # fmt: skip
"""Fields that a spec and its record have alike."""


def _given(spec: UpstreamSpec) -> dict[str, str]:
    return {} if isinstance(spec.secrets, msgspec.UnsetType) else spec.secrets


def _aad(record: Upstream, name: str) -> Aad:
    return (record.org, UPSTREAMS.name, f"secrets.{name}", record.id)


def _destination_of(record: Upstream) -> tuple[str, ...]:
    command = (record.command, *record.args) if record.command else ()
    return destination(UpstreamSpec(name=record.name, kind=record.kind, url=record.url, command=command))
