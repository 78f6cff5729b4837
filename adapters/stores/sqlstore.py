"""The storage port over any SQL driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from ...catalog.records import MIGRATIONS, Migration
from ...catalog.store import Encoded, Entity, Page, Query, Record, Write
from .checks import MAX_RECORD_BYTES, Plan, appendable, plan, positive, prepare
from .codec import Clock, fits, now_ms
from .programs import Program, append, commit, migrate, prune
from .schema import Schema
from .sql import Dialect, Table

T = TypeVar("T")


class Driver(Protocol):
    """Connections to one SQL database. Raises only errors of `catalog.errors`; StoreUnavailable while not open.

    `fetch` runs one SELECT and sees every transaction that was committed before the call. `transact` runs the program
    that `make` returns in one transaction: committed as a whole before it returns, or not at all. It throws
    `programs.Duplicate` into the program when a statement meets a taken unique key, and may call `make` again when the
    database has rolled back without an effect (a deadlock, a failed serialisation). `open`, `close`: idempotent.
    """

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def ping(self) -> None: ...

    async def fetch(self, sql: str, parameters: Sequence[Any]) -> Sequence[Sequence[Any]]: ...

    async def transact(self, make: Callable[[], Program[T]]) -> T: ...


class SqlStore:
    """`catalog.store.Store` in a `Dialect`, over a `Driver`. `clock` returns milliseconds since the epoch."""

    def __init__(
        self, driver: Driver, dialect: Dialect, *, migrations: Sequence[Migration] = MIGRATIONS, clock: Clock = now_ms,
        max_bytes: int = MAX_RECORD_BYTES,
    ) -> None:  # fmt: skip
        self.driver = driver
        self._dialect = dialect
        self._schema = Schema(migrations)
        self._tables = {name: Table(shape, dialect) for name, shape in self._schema.shapes.items()}
        self._clock = clock
        self._max_bytes = max_bytes

    async def open(self) -> None:
        await self.driver.open()

    async def close(self) -> None:
        await self.driver.close()

    async def ping(self) -> None:
        await self.driver.ping()

    async def migrate(self) -> list[int]:
        return await self.driver.transact(lambda: migrate(self._schema, self._dialect, self._clock()))

    async def get(self, entity: Entity, org: str, id: str) -> Any | None:  # noqa: A002 - the field's own name
        shape = self._schema.shape(entity)
        if not fits(org, id):
            return None
        rows = await self.driver.fetch(self._tables[shape.name].get, (org, id))
        return shape.decode(rows[0][1], rows[0][0]) if rows else None

    async def find(self, query: Query) -> Page:
        wanted = plan(self._schema, query)
        if wanted.nothing:
            return Page([])
        table, shape = self._tables[wanted.shape.name], wanted.shape
        rows = await self.driver.fetch(*table.select(wanted, wanted.limit + 1))
        records = [shape.decode(row[3], row[2]) for row in rows[: wanted.limit]]
        if len(rows) <= wanted.limit:
            return Page(records)
        last = rows[wanted.limit - 1]
        return Page(records, wanted.cursor((*last[:2], *last[4:])))

    async def count(self, query: Query, cap: int = 10_000) -> int:
        wanted = plan(self._schema, msgspec.structs.replace(query, cursor=""))
        cap = positive("cap", cap)
        if wanted.nothing:
            return 0
        rows = await self.driver.fetch(*self._tables[wanted.shape.name].select(wanted, cap, "count"))
        return int(rows[0][0])

    async def commit(self, *writes: Write) -> list[Any]:
        ready = prepare(self._schema, writes, self._clock(), self._max_bytes)
        return await self.driver.transact(lambda: commit(self._tables, ready)) if ready else []

    async def append(self, entity: Entity, records: Sequence[Record | Encoded], *guards: Write) -> None:
        table, now = self._tables[appendable(self._schema, entity).name], self._clock()
        ready = prepare(self._schema, guards, now, self._max_bytes)
        if records or ready:
            batch = tuple(records)
            await self.driver.transact(lambda: append(self._tables, table, batch, ready, now, self._max_bytes))

    async def prune(self, entity: Entity, org: str, before: int, limit: int = 1000) -> int:
        shape = appendable(self._schema, entity)
        limit = positive("limit", limit)
        if not fits(org):
            return 0
        wanted = Plan(shape, shape.aged, (org,), until=shape.until(before))
        return await self.driver.transact(lambda: prune(self._tables[shape.name], wanted, limit))
