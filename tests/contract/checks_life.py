"""Opening, closing, migrating; what stays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from agenticmail_enterprise.catalog.errors import StoreError, StoreUnavailable
from agenticmail_enterprise.catalog.records import MIGRATIONS as RELEASED
from agenticmail_enterprise.catalog.records import Migration
from agenticmail_enterprise.catalog.store import Entity, Index, Insert, Listening, Query, Record, Store
from agenticmail_enterprise.tests.contract.suite import ITEMS, LINES, Bench, add, asked, check, ids, item, line, put


class Thing(Record, kw_only=True, omit_defaults=True):
    name: str = ""
    colour: str = "grey"
    size: int = 1
    email: str | None = None


OLD_THING = Entity("thing", Thing, (Index("by_org", ("org",)), Index("name", ("org", "name"), unique=True)))
NEW_THING = Entity(
    "thing",
    Thing,
    (
        Index("by_colour", ("org", "colour"), sort="size"),
        Index("by_org", ("org",)),
        Index("name", ("org", "name"), unique=True),
        Index("email", ("email",), unique=True, across=True),
    ),
)
EXTRA = Entity("extra", Thing, (Index("by_org", ("org",)),), since=2)
OLD = (Migration(1, (OLD_THING,)),)
NEW = (Migration(1, (NEW_THING,)), Migration(2, (EXTRA,), (("thing", "by_colour"), ("thing", "email"))))


async def _migrated(store: Store) -> list[int]:
    await store.open()
    return await store.migrate()


@check()
async def open_close_ping_may_be_repeated(bench: Bench) -> None:
    assert isinstance(bench.store, Store)
    assert isinstance(bench.store, Listening) in (True, False)
    await bench.store.open()
    await bench.store.ping()
    await asyncio.gather(bench.store.open(), bench.store.ping(), bench.store.open())
    await bench.store.close()
    await bench.store.close()
    await bench.store.open()
    await bench.store.ping()


@check()
async def a_closed_store_is_unavailable(bench: Bench) -> None:
    await bench.store.close()
    for work in (
        bench.store.ping(), bench.store.migrate(), bench.store.get(ITEMS, "acme", "1"), bench.store.find(asked()),
        bench.store.count(asked()), bench.store.commit(put("1")), bench.store.append(LINES, [line("1")]),
        bench.store.prune(LINES, "acme", 1),
    ):  # fmt: skip
        with pytest.raises(StoreUnavailable):
            await work


@check()
async def closing_lets_what_was_asked_finish(bench: Bench) -> None:
    work = [asyncio.ensure_future(bench.store.commit(put(str(n)))) for n in range(20)]
    await asyncio.sleep(0)
    await bench.store.close()
    answers = await asyncio.gather(*work, return_exceptions=True)
    assert all(isinstance(answer, list | StoreUnavailable) for answer in answers)


@check()
async def a_cancelled_commit_is_whole_or_absent(bench: Bench) -> None:
    for number in range(30):
        work = asyncio.ensure_future(bench.store.commit(put(f"a{number}"), put(f"b{number}"), add("sum")))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    await bench.store.commit(put("last"))
    found = set(await ids(bench.store, asked()))
    both = [n for n in range(30) if {f"a{n}", f"b{n}"} <= found]
    assert len(both) * 2 + 1 + bool(both) == len(found)
    counted = await bench.store.get(ITEMS, "acme", "sum")
    assert (counted.amount if counted else 0) == len(both)


@check()
async def migrating_twice_does_nothing(bench: Bench) -> None:
    await bench.store.commit(put("1"))
    assert await bench.store.migrate() == []
    assert await ids(bench.store, asked()) == ["1"]


@check()
async def what_is_not_migrated_is_a_clear_error(bench: Bench) -> None:
    _, store = bench.elsewhere("empty")
    await store.open()
    try:
        for work in (store.get(ITEMS, "acme", "1"), store.find(asked()), store.commit(put("1"))):
            with pytest.raises(StoreError, match="migration"):
                await work
        assert await store.migrate() == [1]
        assert await store.get(ITEMS, "acme", "1") is None
    finally:
        await store.close()


@check("durable")
async def what_is_stored_outlives_the_store(bench: Bench) -> None:
    await bench.store.commit(put("1", name="One", tags={"a": "b"}))
    await bench.store.append(LINES, [line("1", 1)])
    before = await bench.store.get(ITEMS, "acme", "1")
    await bench.store.close()
    again = bench.another()
    try:
        assert await _migrated(again) == []
        assert await again.get(ITEMS, "acme", "1") == before
        assert await ids(again, asked("chain", LINES)) == ["1"]
    finally:
        await again.close()


@check("shared")
async def two_stores_on_one_place_see_each_other(bench: Bench) -> None:
    other = bench.another()
    try:
        await _migrated(other)
        await bench.store.commit(put("1"))
        assert await other.get(ITEMS, "acme", "1") == await bench.store.get(ITEMS, "acme", "1")
        await asyncio.gather(*(store.commit(add("sum")) for store in (bench.store, other) for _ in range(25)))
        assert (await other.get(ITEMS, "acme", "sum")).amount == 50
    finally:
        await other.close()


@check("shared")
async def many_migrate_at_once(bench: Bench) -> None:
    place, first = bench.elsewhere("together")
    stores = [first, *(bench.backend.create(place, NEW, bench.clock) for _ in range(5))]
    stores[0] = bench.backend.create(place, NEW, bench.clock)
    try:
        applied = await asyncio.gather(*(_migrated(store) for store in stores))
        assert sorted(applied) == [[], [], [], [], [], [1, 2]]
    finally:
        for store in stores:
            await store.close()


async def _stepwise(bench: Bench, steps: Sequence[Sequence[Migration]]) -> tuple[object, Store]:
    place, store = bench.elsewhere("stepwise", steps[0])
    await _migrated(store)
    await store.commit(
        *(Insert(OLD_THING, Thing(org="acme", id=str(n), name=f"n{n}", size=9 - n, email=f"{n}@x")) for n in range(3)),
        Insert(OLD_THING, Thing(org="acme", id="red", colour="red", email="")),
    )
    await store.close()
    store = bench.backend.create(place, steps[1], bench.clock)
    assert await _migrated(store) == [2]
    assert bench.backend.describe
    return bench.backend.describe(place), store


@check("inspects", "durable")
async def fresh_and_stepwise_do_not_differ(bench: Bench) -> None:
    assert bench.backend.describe
    stepwise, store = await _stepwise(bench, (OLD, NEW))
    await store.close()
    place, fresh = bench.elsewhere("fresh", NEW)
    assert await _migrated(fresh) == [1, 2]
    await fresh.close()
    assert bench.backend.describe(place) == stepwise


@check("inspects", "durable")
async def a_new_index_has_the_old_records(bench: Bench) -> None:
    _, store = await _stepwise(bench, (OLD, NEW))
    try:
        grey = Query(NEW_THING, "by_colour", {"org": "acme", "colour": "grey"}, limit=2)
        assert await ids(store, grey) == ["2", "1", "0"]
        assert await ids(store, Query(NEW_THING, "email", {"email": "1@x"})) == ["1"]
        assert await ids(store, Query(NEW_THING, "by_org", {"org": "acme"})) == ["0", "1", "2", "red"]
        await store.commit(
            Insert(EXTRA, Thing(org="acme", id="1")), Insert(NEW_THING, Thing(org="acme", id="9", email=""))
        )
    finally:
        await store.close()


@check("durable")
async def a_unique_index_over_duplicates_cannot_be_added(bench: Bench) -> None:
    place, store = bench.elsewhere("twice", OLD)
    await _migrated(store)
    await store.commit(*(Insert(OLD_THING, Thing(org="acme", id=str(n), email="same@x")) for n in range(2)))
    await store.close()
    store = bench.backend.create(place, NEW, bench.clock)
    try:
        with pytest.raises(StoreError, match="email"):
            await _migrated(store)
    finally:
        await store.close()
    store = bench.backend.create(place, OLD, bench.clock)
    try:
        assert await _migrated(store) == [], "a migration that failed has not happened"
        assert await ids(store, Query(OLD_THING, "by_org", {"org": "acme"})) == ["0", "1"]
    finally:
        await store.close()


@check("durable")
async def a_newer_database_is_refused(bench: Bench) -> None:
    place, store = bench.elsewhere("newer", NEW)
    await _migrated(store)
    await store.close()
    store = bench.backend.create(place, OLD, bench.clock)
    try:
        with pytest.raises(StoreError, match="newer"):
            await _migrated(store)
    finally:
        await store.close()


@check()
async def the_released_migrations_hold_every_kind_of_record(bench: Bench) -> None:
    _, store = bench.elsewhere("released", RELEASED)
    try:
        assert await _migrated(store) == [migration.number for migration in RELEASED]
        for entity in (entity for migration in RELEASED for entity in migration.entities):
            [stored] = await store.commit(Insert(entity, entity.type(org="acme", id="1")))
            assert await store.get(entity, "acme", "1") == stored
            for index in entity.indexes:
                where = {name: getattr(stored, name) for name in index.fields}
                found = await ids(store, Query(entity, index.name, where))
                assert found == ([] if index.unique and "" in where.values() else ["1"])
    finally:
        await store.close()


@check()
async def declarations_that_not_every_backend_can_hold(bench: Bench) -> None:
    good = Entity("thing", Thing)
    indexes = (
        Index("x", ("colour",)), Index("x", ("colour", "org")), Index("x", ()), Index("x", ("org", "nope")),
        Index("x", ("org",), sort="email"), Index("X y", ("org",)), Index("x", ("org", "created_at", "metadata")),
    )  # fmt: skip
    bad: list[Sequence[Migration]] = [
        (Migration(1, (msgspec.structs.replace(good, indexes=(index,)),)),) for index in indexes
    ]
    unique = Index("x", ("org", "name"), unique=True)
    bad += [
        (Migration(1, (msgspec.structs.replace(good, append_only=True, indexes=(unique,)),)),),
        (Migration(1, (msgspec.structs.replace(good, name='a"b'),)),),
        (Migration(2, (good,)),),
        (Migration(1, (good, good)),),
        (Migration(1, (good,)), Migration(2, (), (("thing", "nope"),))),
        (Migration(1, (good,)), Migration(2, (), (("no", "x"),))),
    ]  # fmt: skip
    for number, migrations in enumerate(bad):
        with pytest.raises(StoreError):
            bench.elsewhere(f"bad{number}", migrations)


@check()
async def a_record_of_an_older_shape_still_reads(bench: Bench) -> None:
    """A field added later has its default: the body is decoded by name."""
    [stored] = await bench.store.commit(Insert(ITEMS, item("1")))
    assert stored.tags == {}
    assert stored.kind == "plain"
