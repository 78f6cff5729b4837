"""The contract of `catalog.store.Store` as checks that any backend can be put through.

A check is an async function of one `Bench`; `@check(needs=...)` registers it. `CHECKS` has all of them once the
`checks_*` modules are imported, which `every_check()` does. A backend is a row of `backends.BACKENDS`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import msgspec

from agenticmail_enterprise.catalog.records import Migration
from agenticmail_enterprise.catalog.store import Delete, Entity, Increment, Index, Insert, Query, Record, Replace, Store

Ability = Literal["durable", "shared", "atomic_append", "inspects"]
"""durable: data outlives `close`. shared: two stores on one place see each other. atomic_append: rows of an append
whose guards failed are not there. inspects: the backend can describe its schema."""


# -- the records of the suite ------------------------------------------------------------------------------------
class Item(Record, kw_only=True, omit_defaults=True):
    name: str = ""
    team: str = ""
    email: str | None = None
    rank: int = 0
    on: bool = False
    amount: int = 0
    kind: Literal["plain", "odd"] = "plain"
    note: str = ""
    tags: dict[str, str] = {}


class Line(Record, kw_only=True, omit_defaults=True):
    agent: str = ""
    seq: int = 0
    text: str = ""


class Head(Record, kw_only=True, omit_defaults=True):
    seq: int = 0


class Step(Record, kw_only=True, omit_defaults=True):
    seq: int = 0


ITEMS = Entity(
    "item",
    Item,
    (
        Index("name", ("org", "name"), unique=True),
        Index("email", ("email",), unique=True, across=True),
        Index("by_org", ("org",)),
        Index("by_team", ("org", "team")),
        Index("by_rank", ("org",), sort="rank"),
        Index("team_rank", ("org", "team"), sort="rank"),
        Index("by_on", ("org", "on")),
        Index("everywhere", ("team",), across=True),
    ),
)
LINES = Entity(
    "line",
    Line,
    (Index("by_org", ("org",)), Index("by_agent", ("org", "agent")), Index("chain", ("org",), sort="seq")),
    append_only=True,
)
HEADS = Entity("head", Head)
STEPS = Entity(
    "step", Step, (Index("by_org", ("org",)), Index("chain", ("org",), sort="seq")), append_only=True, time_ordered="stp",
)  # fmt: skip
STRANGER = Entity("stranger", Head)
MIGRATIONS = (Migration(1, (ITEMS, LINES, HEADS, STEPS)),)


# -- backends ----------------------------------------------------------------------------------------------------
class Clock:
    """Milliseconds; moves when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


Create = Callable[[Path, Sequence[Migration], Callable[[], int]], Store]
Describe = Callable[[Path], Any]


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """One row. `create(place, migrations, clock)` makes a store; the same `place` (an empty folder of the check's own)
    means the same data. `describe(place)` returns the schema as a value that can be compared."""

    name: str
    create: Create
    abilities: frozenset[Ability]
    max_bytes: int
    describe: Describe | None = None
    reachable: Callable[[], bool] = lambda: True


class Bench:
    """What a check works with: an open and migrated `store`, the row, the clock, and further stores on demand."""

    def __init__(self, backend: Backend, place: Path) -> None:
        self.backend = backend
        self.place = place
        self.clock = Clock()
        self.store: Store = backend.create(place, MIGRATIONS, self.clock)

    def another(self, migrations: Sequence[Migration] = MIGRATIONS) -> Store:
        """A second store on the same place, not yet open."""
        return self.backend.create(self.place, migrations, self.clock)

    def elsewhere(self, name: str, migrations: Sequence[Migration] = MIGRATIONS) -> tuple[Path, Store]:
        place = self.place / name
        place.mkdir()
        return place, self.backend.create(place, migrations, self.clock)


@asynccontextmanager
async def bench_on(backend: Backend, place: Path) -> AsyncIterator[Bench]:
    bench = Bench(backend, place)
    await bench.store.open()
    try:
        await bench.store.migrate()
        yield bench
    finally:
        await bench.store.close()


# -- checks ------------------------------------------------------------------------------------------------------
class Check(msgspec.Struct, frozen=True):
    name: str
    run: Callable[[Bench], Awaitable[None]]
    needs: frozenset[Ability]

    def suits(self, backend: Backend) -> bool:
        return self.needs <= backend.abilities


CHECKS: list[Check] = []


def check(*needs: Ability) -> Callable[[Callable[[Bench], Awaitable[None]]], Callable[[Bench], Awaitable[None]]]:
    def register(function: Callable[[Bench], Awaitable[None]]) -> Callable[[Bench], Awaitable[None]]:
        CHECKS.append(Check(function.__name__, function, frozenset(needs)))
        return function

    return register


def every_check() -> list[Check]:
    for module in ("checks_writes", "checks_appends", "checks_encoded", "checks_queries", "checks_life"):
        import_module(f"{__package__ or 'agenticmail_enterprise.tests.contract'}.{module}")
    return CHECKS


# -- short forms -------------------------------------------------------------------------------------------------
def item(id: str, org: str = "acme", **fields: Any) -> Item:
    return Item(org=org, id=id, **fields)


def put(id: str, org: str = "acme", **fields: Any) -> Insert:
    return Insert(ITEMS, item(id, org, **fields))


def over(record: Record, entity: Entity = ITEMS, **changes: Any) -> Replace:
    return Replace(entity, msgspec.structs.replace(record, **changes))


def gone(id: str, version: int | None = None, org: str = "acme") -> Delete:
    return Delete(ITEMS, org, id, version)


def add(id: str, by: int = 1, ceiling: int | None = None, floor: int | None = None, org: str = "acme") -> Increment:
    return Increment(ITEMS, org, id, "amount", by, ceiling, floor)


def line(id: str, seq: int = 0, org: str = "acme", **fields: Any) -> Line:
    return Line(org=org, id=id, seq=seq, **fields)


def asked(
    index: str = "by_org", entity: Entity = ITEMS, *, where: dict[str, Any] | None = None, **options: Any
) -> Query:
    return Query(entity, index, {"org": "acme"} if where is None else where, **options)


async def ids(store: Store, query: Query) -> list[str]:
    """All ids that a query finds, page by page."""
    found: list[str] = []
    for _ in range(1000):
        page = await store.find(query)
        found += [record.id for record in page.records]
        if not page.cursor:
            return found
        query = msgspec.structs.replace(query, cursor=page.cursor)
    raise AssertionError("the pages do not end")
