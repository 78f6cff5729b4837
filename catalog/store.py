"""The storage port: eleven methods over declared entities. Not an ORM, and narrow on purpose.

Shaped so that SQL, MongoDB and DynamoDB can all hold the same promises:

* a record is one msgspec Struct (a subclass of `Record`), addressed by `(entity, org, id)`, kept whole as JSON;
* `commit(*writes)` is one atomic batch of conditional writes, at most `MAX_BATCH` of them (DynamoDB's transaction);
* a query names a declared index and gives all its equality fields; anything else is `UndeclaredQuery` everywhere;
* ids and indexed strings compare by bytes, case-sensitively, on every backend;
* `append` is for immutable, high-volume records (the journal): idempotent by id, any number of rows, and official
  only once the guarding writes given with it have committed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec

MAX_BATCH: Final = 100
"""Writes in one commit: the limit of DynamoDB's TransactWriteItems."""

MAX_PAGE: Final = 500


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What every stored thing has. Times are milliseconds since the epoch, UTC.

    `org` is the tenant; records that belong to no tenant use `GLOBAL`. `version` is 0 before the first insert,
    1 after it, and rises by one with each `Replace`; it is the store's to set.
    """

    org: str
    id: str
    version: int = 0
    created_at: int = 0
    updated_at: int = 0


GLOBAL: Final = "-"
"""The `org` of records outside any tenant (epochs, spool marks)."""

R = TypeVar("R", bound=Record)


class Index(msgspec.Struct, frozen=True):
    """A declared way to look. `fields` are matched by equality, all of them; results run in order of `sort`, then id.

    The first field is `org`, or the index is `across=True` (looked up without a tenant: the digest of a key, the
    e-mail at sign-in). A unique index allows one record per combination of `fields`; a record whose value for any
    of them is None or "" is not in a unique index.
    """

    name: str
    fields: tuple[str, ...]
    sort: str = ""
    unique: bool = False
    across: bool = False


class Entity(msgspec.Struct, frozen=True):
    """One kind of record. `name` is the table or item prefix; `since` is the migration that brought it.

    `time_ordered`: every id is this prefix and a UUIDv7 in hex (`catalog.ids`). An append-only entity that says so, and
    has an index on `org` alone, is pruned by its ids and needs no index of times.
    """

    name: str
    type: type[Record]
    indexes: tuple[Index, ...] = ()
    append_only: bool = False
    since: int = 1
    time_ordered: str = ""

    def index(self, name: str) -> Index:
        for index in self.indexes:
            if index.name == name:
                return index
        from .errors import UndeclaredQuery

        raise UndeclaredQuery(f"{self.name} has no index {name!r}", entity=self.name, index=name)


class Encoded(NamedTuple):
    """A record for `append` in its stored form, for writers that have it so: `keys` are its `org`, its `id` and the
    fields that the entity's indexes name, in order of first use; `body` is its JSON with `created_at` set. Trusted to
    say the same."""

    keys: tuple[Any, ...]
    body: bytes


class Insert(msgspec.Struct, frozen=True):
    """Store a new record. `Conflict(index)` when its id ("id") or a unique index is taken."""

    entity: Entity
    record: Record


class Replace(msgspec.Struct, frozen=True):
    """Store a changed record over the version it carries. `Stale` when that is no longer the stored version or gone."""

    entity: Entity
    record: Record


class Delete(msgspec.Struct, frozen=True):
    """Remove a record. `Stale` when it is gone, or its version is not `version` (None: whatever it is)."""

    entity: Entity
    org: str
    id: str
    version: int | None = None


class Increment(msgspec.Struct, frozen=True):
    """Add `by` to the integer `field` of a record, which is made (all defaults) when absent.

    `LimitReached` when the result would pass `ceiling` (by > 0) or fall below `floor` (by < 0). `version` stays.
    """

    entity: Entity
    org: str
    id: str
    field: str
    by: int = 1
    ceiling: int | None = None
    floor: int | None = None


Write = Insert | Replace | Delete | Increment


class Query(msgspec.Struct, frozen=True):
    """`where` gives every equality field. `since`/`until` bound the sort field or id (since <= x < until)."""

    entity: Entity
    index: str
    where: dict[str, Any]
    limit: int = 50
    cursor: str = ""
    descending: bool = False
    since: Any = None
    until: Any = None


class Page(msgspec.Struct):
    """`cursor` is "" on the last page. Cursors are positions, not offsets: stable under concurrent inserts."""

    records: list[Any]
    cursor: str = ""


@runtime_checkable
class Store(Protocol):
    """What a backend promises. Raises only errors of `catalog.errors`; StoreUnavailable when it cannot be reached."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def ping(self) -> None:
        """Return when the store can read; raise StoreUnavailable otherwise."""

    async def migrate(self) -> list[int]:
        """Bring the schema to the newest migration; the numbers that were applied. Safe on every start, by many."""

    async def get(self, entity: Entity, org: str, id: str) -> Any | None:  # noqa: A002 - the field's own name
        """One record, or None. A new copy each time: changing it changes nothing stored."""

    async def find(self, query: Query) -> Page: ...

    async def count(self, query: Query, cap: int = 10_000) -> int:
        """How many records match, counting no further than `cap`."""

    async def commit(self, *writes: Write) -> list[Any]:
        """All or nothing. A result per write: the record (Insert, Replace), None (Delete), the value (Increment).

        Of several failing writes the first in order decides the error. One record may be written once per batch.
        """

    async def append(self, entity: Entity, records: Sequence[Record | Encoded], *guards: Write) -> None:
        """Store many immutable records, then commit `guards`. Storing an id again overwrites it (same content, or a
        re-chained one after `Stale`). On a backend with large transactions all of it is atomic; on others rows may
        be there before the guards are: readers trust only what the guards vouch for (the chain head's sequence)."""

    async def prune(self, entity: Entity, org: str, before: int, limit: int = 1000) -> int:
        """Delete up to `limit` records of an append-only entity created before `before` (ms); how many went."""


@runtime_checkable
class Listening(Protocol):
    """The twelfth method, where a backend has it (LISTEN/NOTIFY); elsewhere readers poll the epoch."""

    def listen(self) -> AsyncIterator[str]: ...
