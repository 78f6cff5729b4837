"""What `append` does with records in their stored form, and `prune` with entities whose ids tell their age."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agenticmail_enterprise.catalog.errors import EnterpriseError, Stale, ValidationFailed
from agenticmail_enterprise.catalog.store import Encoded, Entity, Insert, Query
from agenticmail_enterprise.tests.contract.suite import (
    HEADS,
    LINES,
    STEPS,
    Bench,
    Head,
    Step,
    asked,
    check,
    gone,
    ids,
    line,
    over,
)

encode = msgspec.json.Encoder().encode
NOW = 1_700_000_000_000


def stored(record: Any, *keys: str) -> Encoded:
    """A record's stored form; `keys` are the fields that its indexes name, in order of first use."""
    return Encoded((record.org, record.id, *(getattr(record, key) for key in keys)), encode(record))


def written(id: str, seq: int = 0, **fields: Any) -> Encoded:
    """LINES is pruned by `created_at`, which is a key of its own, the last."""
    return stored(line(id, seq, created_at=fields.pop("created_at", NOW), **fields), "agent", "seq", "created_at")


def step_id(at: int, tail: int = 0) -> str:
    return f"stp_{at:012x}7{tail:019x}"


def step(at: int, tail: int = 0, **fields: Any) -> Step:
    return Step(**{"org": "acme", "id": step_id(at, tail), "created_at": at, **fields})


@check()
async def encoded_rows_are_records(bench: Bench) -> None:
    given = line("1", 7, created_at=NOW, agent="a", text='x\u2028"\\')
    await bench.store.append(LINES, [stored(given, "agent", "seq", "created_at")])
    assert await bench.store.get(LINES, "acme", "1") == msgspec.structs.replace(given, version=1)
    for index, where in (("by_org", {"org": "acme"}), ("by_agent", {"org": "acme", "agent": "a"})):
        assert await ids(bench.store, asked(index, LINES, where=where)) == ["1"]
    assert await bench.store.count(asked("by_agent", LINES, where={"org": "acme", "agent": "b"})) == 0
    assert await ids(bench.store, asked("chain", LINES, since=7)) == ["1"]
    assert await ids(bench.store, asked("chain", LINES, since=8)) == []


@check()
async def encoded_rows_and_records_mix(bench: Bench) -> None:
    mixed = [written(f"{n:04}", n) if n % 3 else line(f"{n:04}", n, created_at=NOW) for n in range(700)]
    await bench.store.append(LINES, mixed)
    found: list[Any] = []
    query = asked("chain", LINES, limit=500)
    while True:
        page = await bench.store.find(query)
        found += page.records
        if not page.cursor:
            break
        query = msgspec.structs.replace(query, cursor=page.cursor)
    assert [(one.id, one.seq, one.version, one.created_at) for one in found] == [
        (f"{n:04}", n, 1, NOW) for n in range(700)
    ]


@check()
async def encoded_rows_are_idempotent_by_id(bench: Bench) -> None:
    await bench.store.append(LINES, [written("1", 1), line("2", 2)])
    await bench.store.append(LINES, [line("1", 11, text="again"), written("2", 12, agent="z"), written("3", 3)])
    found = (await bench.store.find(asked("chain", LINES))).records
    assert [(one.id, one.seq, one.text, one.version) for one in found] == [
        ("3", 3, "", 1), ("1", 11, "again", 1), ("2", 12, "", 1),
    ]  # fmt: skip
    assert await ids(bench.store, asked("by_agent", LINES, where={"org": "acme", "agent": "z"})) == ["2"]
    await bench.store.append(LINES, [written("9", 1), line("9", 2), written("9", 99)])
    assert (await bench.store.get(LINES, "acme", "9")).seq == 99


@check("atomic_append")
async def encoded_rows_stand_or_fall_with_their_guards(bench: Bench) -> None:
    [head] = await bench.store.commit(Insert(HEADS, Head(org="acme", id="calls")))
    await bench.store.append(LINES, [written("1", 1)], over(head, HEADS, seq=1))
    with pytest.raises(Stale):
        await bench.store.append(LINES, [written("1", 9), line("2", 2), written("3", 3)], over(head, HEADS, seq=2))
    with pytest.raises(Stale):
        await bench.store.append(LINES, [written("4", 4)], gone("none"))
    assert await ids(bench.store, asked("chain", LINES)) == ["1"]
    assert (await bench.store.get(LINES, "acme", "1")).seq == 1


@check("atomic_append")
async def encoded_rows_with_impossible_keys_are_refused_whole(bench: Bench) -> None:
    good = written("good", 1)
    for keys in (
        ("", "1", "", 0, NOW), ("acme", "", "", 0, NOW), (None, "1", "", 0, NOW), ("acme", "1", "", 2**63, NOW),
        ("acme", "1", "\ud800", 0, NOW), ("acme", "1", "a\0b", 0, NOW),
        ("acme", "1", "x" * 100_000, 0, NOW),
    ):  # fmt: skip
        with pytest.raises(ValidationFailed):
            await bench.store.append(LINES, [good, Encoded(keys, good.body)])
    with pytest.raises(EnterpriseError):
        await bench.store.append(LINES, [good, Encoded(good.keys, b"x" * (bench.backend.max_bytes + 1))])
    assert await ids(bench.store, asked("chain", LINES)) == []


@check("durable")
async def encoded_rows_outlive_a_restart(bench: Bench) -> None:
    await bench.store.append(LINES, [written("1", 1, text="x")])
    await bench.store.append(STEPS, [stored(step(5), "seq")])
    await bench.store.close()
    other = bench.another()
    await other.open()
    try:
        await other.migrate()
        assert (await other.get(LINES, "acme", "1")).text == "x"
        assert await other.get(STEPS, "acme", step_id(5)) is not None
    finally:
        await other.close()
    await bench.store.open()


# -- ids that tell their age -------------------------------------------------------------------------------------
def all_of(entity: Entity, org: str = "acme", **options: Any) -> Query:
    return Query(entity, "by_org", {"org": org}, **options)


@check()
async def time_ordered_records_are_pruned_by_their_ids(bench: Bench) -> None:
    # `created_at` says the opposite: it is the ids that count.
    rows: list[Any] = [step(1000 + n, created_at=5000 - n, seq=n) for n in range(20)]
    rows = [stored(row, "seq") if number % 2 else row for number, row in enumerate(rows)]
    await bench.store.append(STEPS, [*reversed(rows), step(1, org="other")])
    assert await bench.store.prune(STEPS, "acme", 1000) == 0, "made at 1000 exactly: not before it"
    assert await bench.store.prune(STEPS, "acme", 1010, limit=4) == 4
    assert await ids(bench.store, all_of(STEPS)) == [step_id(1000 + n) for n in range(4, 20)]
    assert await bench.store.prune(STEPS, "acme", 1010) == 6
    assert await bench.store.prune(STEPS, "acme", 1010) == 0
    assert await ids(bench.store, asked("chain", STEPS)) == [step_id(1000 + n) for n in range(10, 20)]
    assert await bench.store.get(STEPS, "other", step_id(1)) is not None
    for before in (-5, 0, 1):
        assert await bench.store.prune(STEPS, "acme", before) == 0
    with pytest.raises(EnterpriseError):
        await bench.store.prune(STEPS, "acme", 1010, limit=0)
    assert await bench.store.prune(STEPS, "acme", 2**80, limit=2**80) == 10
    assert await ids(bench.store, asked("chain", STEPS)) == []
    assert await bench.store.count(all_of(STEPS, "other")) == 1


@check()
async def time_ordered_records_of_one_millisecond_go_together(bench: Bench) -> None:
    await bench.store.append(STEPS, [step(1000, 0), step(1000, 16**19 - 1), step(1001, 0), stored(step(999, 9), "seq")])
    assert await bench.store.prune(STEPS, "acme", 1000) == 1
    assert await bench.store.prune(STEPS, "acme", 1001) == 2
    assert await ids(bench.store, all_of(STEPS)) == [step_id(1001)]


@check()
async def thousands_of_time_ordered_records_are_pruned(bench: Bench) -> None:
    await bench.store.append(STEPS, [stored(step(1000 + n // 10, n, seq=n), "seq") for n in range(2500)])
    assert await bench.store.prune(STEPS, "acme", 1200, limit=1500) == 1500
    assert await bench.store.prune(STEPS, "acme", 1200, limit=1500) == 500
    assert await bench.store.count(all_of(STEPS)) == 500
    assert (await ids(bench.store, all_of(STEPS, limit=500)))[0] == step_id(1200, 2000)
