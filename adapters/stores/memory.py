"""Memory: the port in dictionaries and sorted lists. It promises all that the others do, except to outlive the process.

Records are kept encoded, so that nothing a caller holds is what is stored. Nothing here awaits, so a batch is atomic
by itself; when one of its writes fails, those before it are undone.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import msgspec

from ...catalog.errors import Conflict, SettingsError, Stale, StoreError, StoreUnavailable
from ...catalog.records import MIGRATIONS, Migration
from ...catalog.store import Encoded, Entity, Index, Page, Query, Record, Write
from .checks import (
    MAX_RECORD_BYTES,
    Adding,
    Deleting,
    Inserting,
    Plan,
    Prepared,
    Replacing,
    Stored,
    appendable,
    appended,
    plan,
    positive,
    prepare,
)
from .codec import Clock, Shape, fits, now_ms, order_of
from .programs import refuse_newer
from .schema import Schema

Address = tuple[str, str]
Entry = tuple[Any, ...]
Undo = Callable[[], None]


def create(
    url: str = "memory://", *, migrations: Sequence[Migration] = MIGRATIONS, clock: Clock = now_ms
) -> MemoryStore:
    """A store of its own, empty. SettingsError for anything but `memory://`."""
    if url not in ("memory:", "memory://"):
        raise SettingsError(f"{url!r} is no URL of the memory store: memory://.")
    return MemoryStore(migrations=migrations, clock=clock)


class Row(msgspec.Struct, frozen=True):
    version: int
    body: bytes
    keys: tuple[Any, ...]
    """`Shape.row`."""


class Table:
    """The rows of one entity, and one sorted list of entries for each index.

    An entry has the index's fields, then the fields that order its matches; a row with None or, in a unique index, ""
    in one of the fields has no entry.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.rows: dict[Address, Row] = {}
        self._at = {name: place for place, name in enumerate(("org", "id", *shape.keys))}
        self.entries: dict[Index, list[Entry]] = {index: [] for index in shape.indexes}

    def entry(self, index: Index, keys: Sequence[Any]) -> Entry | None:
        values = [keys[self._at[name]] for name in index.fields]
        if None in values or (index.unique and "" in values):
            return None
        return (*values, *(keys[self._at[name]] for name in order_of(index)))

    def put(self, new: Row) -> Undo:
        """Store a row, over the one of the same address; how to take that back."""
        address = (new.keys[0], new.keys[1])
        old = self._swap(address, new)
        return lambda: self._restore(address, old)

    def take(self, address: Address) -> Undo:
        old = self._swap(address, None)
        return lambda: self._restore(address, old)

    def _restore(self, address: Address, old: Row | None) -> None:
        self._swap(address, old)

    def _swap(self, address: Address, new: Row | None) -> Row | None:
        old = self.rows.pop(address, None)
        for index, entries in self.entries.items():
            gone = self.entry(index, old.keys) if old else None
            come = self.entry(index, new.keys) if new else None
            if gone == come:
                continue
            if gone is not None:
                del entries[bisect_left(entries, gone)]
            if come is not None:
                insort(entries, come)
        if new is not None:
            self.rows[address] = new
        return old

    def taken(self, index: Index, keys: Sequence[Any]) -> bool:
        """Whether another row has the values of these keys in a unique index."""
        entry = self.entry(index, keys)
        if entry is None:
            return False
        start, end = self._span(index, entry[: len(index.fields)])
        return any(self.address(index, other) != (keys[0], keys[1]) for other in self.entries[index][start:end])

    def address(self, index: Index, entry: Entry) -> Address:
        names = (*index.fields, *order_of(index))
        return entry[names.index("org")], entry[names.index("id")]

    def matches(self, plan: Plan) -> tuple[int, int]:
        """The part of the index's list that a plan asks for, in ascending order: from, to."""
        entries, values = self.entries[plan.index], plan.values
        start, end = self._span(plan.index, values)
        if plan.since is not None:
            start = max(start, bisect_left(entries, (*values, plan.since)))
        if plan.until is not None:
            end = min(end, bisect_left(entries, (*values, plan.until)))
        if plan.after and plan.descending:
            end = min(end, bisect_left(entries, (*values, *plan.after)))
        elif plan.after:
            start = max(start, bisect_right(entries, (*values, *plan.after)))
        return start, max(start, end)

    def _span(self, index: Index, values: Entry) -> tuple[int, int]:
        entries, length = self.entries[index], len(values)
        start = bisect_left(entries, values)
        return start, bisect_right(entries, values, lo=start, key=lambda entry: entry[:length])


class Space:
    """What is kept. Two stores on one space are like two processes on one database."""

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self.migration = 0


class MemoryStore:
    """`catalog.store.Store` in memory. What is in `space` stays there when the store is closed and opened again."""

    def __init__(
        self, *, space: Space | None = None, migrations: Sequence[Migration] = MIGRATIONS, clock: Clock = now_ms,
        max_bytes: int = MAX_RECORD_BYTES,
    ) -> None:  # fmt: skip
        self._space = space or Space()
        self._schema = Schema(migrations)
        self._clock = clock
        self._max_bytes = max_bytes
        self._open = False

    async def open(self) -> None:
        self._open = True

    async def close(self) -> None:
        self._open = False

    async def ping(self) -> None:
        self._check_open()

    async def migrate(self) -> list[int]:
        self._check_open()
        space = self._space
        refuse_newer(space.migration, self._schema.newest)
        applied = []
        for step in self._schema.steps[space.migration :]:
            for added in step.added:
                old = space.tables.get(added.shape.name)
                space.tables[added.shape.name] = self._rebuilt(added.shape, old.rows.values() if old else ())
            space.migration = step.number
            applied.append(step.number)
        return applied

    def _rebuilt(self, shape: Shape, rows: Iterable[Row]) -> Table:
        table = Table(shape)
        for row in rows:
            keys = shape.row(shape.decode(row.body, row.version))
            for index in shape.unique:
                if table.taken(index, keys):
                    message = f"Index {index.name!r} of {shape.name} cannot be made: two records have the same values."
                    raise StoreError(message, entity=shape.name, index=index.name)
            table.put(Row(row.version, row.body, keys))
        return table

    async def get(self, entity: Entity, org: str, id: str) -> Any | None:  # noqa: A002 - the field's own name
        table, shape = self._table(entity), self._schema.shape(entity)
        row = table.rows.get((org, id))
        return shape.decode(row.body, row.version) if row else None

    async def find(self, query: Query) -> Page:
        wanted, table = plan(self._schema, query), self._table(query.entity)
        if wanted.nothing:
            return Page([])
        start, end = table.matches(wanted)
        entries = table.entries[wanted.index]
        limit = wanted.limit
        part = (
            entries[max(start, end - limit) : end][::-1]
            if wanted.descending
            else entries[start : min(end, start + limit)]
        )
        rows = [table.rows[table.address(wanted.index, entry)] for entry in part]
        records = [wanted.shape.decode(row.body, row.version) for row in rows]
        return Page(records, wanted.cursor(rows[-1].keys) if end - start > limit else "")

    async def count(self, query: Query, cap: int = 10_000) -> int:
        wanted = plan(self._schema, msgspec.structs.replace(query, cursor=""))
        cap, table = positive("cap", cap), self._table(query.entity)
        if wanted.nothing:
            return 0
        start, end = table.matches(wanted)
        return min(cap, end - start)

    async def commit(self, *writes: Write) -> list[Any]:
        ready = prepare(self._schema, writes, self._clock(), self._max_bytes)
        for write in writes:
            self._table(write.entity)
        return self._all_or_nothing(ready, [])

    async def append(self, entity: Entity, records: Sequence[Record | Encoded], *guards: Write) -> None:
        shape, now = appendable(self._schema, entity), self._clock()
        table = self._table(entity)
        ready = prepare(self._schema, guards, now, self._max_bytes)
        rows = [appended(shape, record, now, self._max_bytes) for record in records]
        self._all_or_nothing(ready, [table.put(Row(1, body, keys)) for keys, body in rows])

    async def prune(self, entity: Entity, org: str, before: int, limit: int = 1000) -> int:
        shape, limit = appendable(self._schema, entity), positive("limit", limit)
        table = self._table(entity)
        if not fits(org):
            return 0
        start, end = table.matches(Plan(shape, shape.aged, (org,), until=shape.until(before)))
        gone = table.entries[shape.aged][start : min(end, start + limit)]
        for entry in gone:
            table.take(table.address(shape.aged, entry))
        return len(gone)

    def _check_open(self) -> None:
        if not self._open:
            raise StoreUnavailable("The store is not open.")

    def _table(self, entity: Entity) -> Table:
        shape = self._schema.shape(entity)
        self._check_open()
        table = self._space.tables.get(shape.name)
        if table is None or (table.shape is not shape and table.shape.entity != shape.entity):
            raise StoreError(f"The memory store lacks a migration (entity {shape.name}).", entity=shape.name)
        return table

    # -- writes ----------------------------------------------------------------------------------------------
    def _all_or_nothing(self, ready: list[Prepared], undo: list[Undo]) -> list[Any]:
        try:
            return [self._apply(write, undo) for write in ready]
        except BaseException:
            for step in reversed(undo):
                step()
            raise

    def _apply(self, write: Prepared, undo: list[Undo]) -> Any:
        if isinstance(write, Inserting):
            table = self._space.tables[write.new.shape.name]
            if write.new.row[:2] in table.rows:
                raise Conflict("id")
            return self._put(table, write.new, undo)
        if isinstance(write, Replacing):
            table = self._space.tables[write.new.shape.name]
            self._current(table, write.new.shape, write.new.row[:2], write.new.version - 1)
            return self._put(table, write.new, undo)
        if isinstance(write, Deleting):
            table, address = self._space.tables[write.shape.name], (write.org, write.id)
            self._current(table, write.shape, address, write.version)
            undo.append(table.take(address))
            return None
        return self._add(self._space.tables[write.shape.name], write, undo)

    def _add(self, table: Table, write: Adding, undo: list[Undo]) -> int:
        row = table.rows.get((write.write.org, write.write.id))
        new, value = write.next(write.shape.decode(row.body, row.version), row.version) if row else write.first()
        self._put(table, new, undo)
        return value

    def _put(self, table: Table, new: Stored, undo: list[Undo]) -> Any:
        for index in new.shape.unique:
            if table.taken(index, new.row):
                raise Conflict(index.name)
        undo.append(table.put(Row(new.version, new.body, new.row)))
        return new.record

    def _current(self, table: Table, shape: Shape, address: tuple[Any, ...], version: int | None) -> Row:
        row = table.rows.get((address[0], address[1]))
        if row is None or version not in (None, row.version):
            self._stale(shape, address)
        return row

    def _stale(self, shape: Shape, address: tuple[Any, ...]) -> NoReturn:
        raise Stale(entity=shape.name, id=address[1])
