"""What `append` and `prune` promise: immutable records, vouched for by their guards."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from agenticmail_enterprise.catalog.errors import Conflict, EnterpriseError, LimitReached, Stale, StoreError
from agenticmail_enterprise.catalog.store import Delete, Increment, Insert, Replace
from agenticmail_enterprise.tests.contract.suite import (
    HEADS,
    ITEMS,
    LINES,
    Bench,
    Head,
    add,
    asked,
    check,
    gone,
    ids,
    item,
    line,
    over,
)


@check()
async def an_append_is_idempotent_by_id(bench: Bench) -> None:
    await bench.store.append(LINES, [line(str(n), n) for n in range(5)])
    await bench.store.append(LINES, [line(str(n), n + 10, text="again") for n in range(3, 8)])
    found = (await bench.store.find(asked("chain", LINES))).records
    assert [(record.id, record.seq) for record in found] == [
        ("0", 0), ("1", 1), ("2", 2), ("3", 13), ("4", 14), ("5", 15), ("6", 16), ("7", 17),
    ]  # fmt: skip
    assert {record.version for record in found} == {1}
    await bench.store.append(LINES, [line("9", 1), line("9", 99)])
    assert (await bench.store.get(LINES, "acme", "9")).seq == 99
    await bench.store.append(LINES, [])


@check()
async def an_append_keeps_records_as_they_are(bench: Bench) -> None:
    given = line("1", 1, created_at=7, text="x")
    await bench.store.append(LINES, [given, line("2", 2)])
    assert await bench.store.get(LINES, "acme", "1") == msgspec.structs.replace(given, version=1)
    assert (await bench.store.get(LINES, "acme", "2")).created_at == bench.clock.now
    assert (given.version, given.updated_at) == (0, 0)


@check()
async def an_append_of_thousands(bench: Bench) -> None:
    await bench.store.append(LINES, [line(f"{n:05}", n, agent=str(n % 3)) for n in range(2345)], add("mark"))
    assert await bench.store.count(asked("by_org", LINES)) == 2345
    assert await bench.store.count(asked("by_agent", LINES, where={"org": "acme", "agent": "1"})) == 782
    assert (await ids(bench.store, asked("by_org", LINES, limit=500)))[::500] == [
        "00000",
        "00500",
        "01000",
        "01500",
        "02000",
    ]


@check("atomic_append")
async def rows_without_their_guards_are_not_there(bench: Bench) -> None:
    [head] = await bench.store.commit(Insert(HEADS, Head(org="acme", id="calls")))
    await bench.store.append(LINES, [line("1", 1)], over(head, HEADS, seq=1))
    with pytest.raises(Stale):
        await bench.store.append(LINES, [line("1", 9), line("2", 2)], over(head, HEADS, seq=2))
    assert (await bench.store.get(LINES, "acme", "1")).seq == 1
    assert await bench.store.get(LINES, "acme", "2") is None
    with pytest.raises(LimitReached):
        await bench.store.append(LINES, [line("2", 2)], add("x"), add("y", 2, ceiling=1))
    assert await bench.store.get(ITEMS, "acme", "x") is None
    with pytest.raises(Stale):
        await bench.store.append(LINES, [line("1", 7), line("1", 8), line("1", 9)], gone("none"))
    assert (await bench.store.find(asked("chain", LINES))).records == [await bench.store.get(LINES, "acme", "1")]
    assert (await bench.store.get(LINES, "acme", "1")).seq == 1


@check()
async def a_failed_guard_is_told_and_the_head_stays(bench: Bench) -> None:
    [head] = await bench.store.commit(Insert(HEADS, Head(org="acme", id="calls")))

    async def append(number: int) -> int:
        try:
            await bench.store.append(LINES, [line(str(number), number)], over(head, HEADS, seq=number))
        except Stale:
            return 0
        return number

    won = [number for number in await asyncio.gather(*(append(n) for n in range(1, 9))) if number]
    assert len(won) == 1
    assert (await bench.store.get(HEADS, "acme", "calls")).seq == won[0]
    assert (await bench.store.get(LINES, "acme", str(won[0]))).seq == won[0]


@check()
async def append_only_means_it(bench: Bench) -> None:
    [stored] = await bench.store.commit(Insert(LINES, line("1", 1)))
    for write in (Replace(LINES, stored), Delete(LINES, "acme", "1"), Increment(LINES, "acme", "1", "seq")):
        with pytest.raises(StoreError, match="append-only"):
            await bench.store.commit(write)
    with pytest.raises(StoreError, match="append-only"):
        await bench.store.append(ITEMS, [item("1")])
    with pytest.raises(StoreError, match="append-only"):
        await bench.store.prune(ITEMS, "acme", 2**60)
    with pytest.raises(Conflict):
        await bench.store.commit(Insert(LINES, line("1", 2)))
    assert (await bench.store.get(LINES, "acme", "1")).seq == 1


@check()
async def prune_takes_the_oldest_first(bench: Bench) -> None:
    lines = [line(f"{n:02}", created_at=1000 - n) for n in range(20)] + [line("x", org="other", created_at=1)]
    await bench.store.append(LINES, lines)
    assert await bench.store.prune(LINES, "acme", 990, limit=4) == 4
    assert await ids(bench.store, asked("by_org", LINES)) == [f"{n:02}" for n in range(16)]
    assert await bench.store.prune(LINES, "acme", 990) == 5
    assert await bench.store.prune(LINES, "acme", 990) == 0
    assert (await ids(bench.store, asked("by_org", LINES)))[-1] == "10", "created at 990 exactly: not before it"
    assert await bench.store.get(LINES, "other", "x") is not None
    with pytest.raises(EnterpriseError):
        await bench.store.prune(LINES, "acme", 990, limit=0)
    assert await bench.store.prune(LINES, "acme", 2**80, limit=2**80) == 11
    assert await ids(bench.store, asked("chain", LINES)) == []
