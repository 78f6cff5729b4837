"""Every record once: whatever the store says, wherever a worker dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agenticmail_enterprise.adapters.stores.memory import MemoryStore, Space
from agenticmail_enterprise.catalog.errors import Conflict, Stale, StoreError, StoreUnavailable
from agenticmail_enterprise.catalog.records import CHAIN_HEADS, SPOOL_MARKS, CallRecord, ChainHead, SpoolMark
from agenticmail_enterprise.catalog.store import GLOBAL, Insert, Store
from agenticmail_enterprise.gateway import drain as drain_module
from agenticmail_enterprise.gateway import journal as journal_module
from agenticmail_enterprise.gateway.chainverify import verify
from agenticmail_enterprise.gateway.journal import Journal
from agenticmail_enterprise.gateway.spool import STRIDE, Home
from agenticmail_enterprise.gateway.streams import OrphanStream
from agenticmail_enterprise.tests.unit.gateway_journal.conftest import Opener
from agenticmail_enterprise.tests.unit.gateway_journal.journal_kit import (
    ALLOW,
    DENY,
    SEGMENT,
    Failing,
    Gate,
    Split,
    Wrapper,
    die,
    marks,
    memory_store,
    new_call,
    proven,
    records,
    recovered,
    settings,
    spools,
)

BIG = {"segment_bytes": 16 * SEGMENT, "max_bytes": 64 * SEGMENT}


def some_calls(journal: Journal, count: int, *, open_: int = 0, org: str = "org_a") -> tuple[set[str], set[str]]:
    """Ids of calls that ended, and of calls that did not."""
    ended = [new_call(org) for _ in range(count)]
    for call in ended:
        journal.finish(journal.begin(call, ALLOW), "ok")
    opened = [new_call(org) for _ in range(open_)]
    for call in opened:
        journal.begin(call, ALLOW)
    return {call.id for call in ended}, {call.id for call in opened}


def by_outcome(found: list[CallRecord]) -> tuple[set[str], set[str]]:
    assert len({record.id for record in found}) == len(found)
    return (
        {record.id for record in found if record.outcome == "ok"},
        {record.id for record in found if record.outcome == "unknown"},
    )


# -- the store ---------------------------------------------------------------------------------------------------
FAULTS = {
    "unreachable": [("before", StoreUnavailable())] * 3,
    "answer lost": [("after", StoreUnavailable())],
    "answer lost twice": [("after", StoreUnavailable()), ("before", StoreError()), ("after", StoreUnavailable())],
    "stale": [("before", Stale()), ("before", Stale())],
    "conflict": [("before", Conflict("id"))],
    "stale after all": [("after", Stale())],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS.keys())
async def test_a_store_that_fails_gets_each_record_once(
    opened: Opener, store: MemoryStore, faults: list[tuple[str, Exception]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain_module, "_BACKOFF", (0.001, 0.01))
    failing = Failing(store, *faults)
    journal = await opened(store=failing, **BIG)
    ended, _ = some_calls(journal, 200)
    await journal.drained()
    more, _ = some_calls(journal, 50)
    await journal.drained()
    assert not failing.faults
    assert by_outcome(await proven(store)) == (ended | more, set())
    assert journal.lag().records == 0
    assert journal.counts.drained == 250


async def test_two_workers_on_one_chain_take_turns(space: Space, tmp_path: Path) -> None:
    stores = [await memory_store(space) for _ in range(2)]
    journals = [Journal(Wrapper(store), settings(**BIG), tmp_path) for store in stores]
    for journal in journals:
        await journal.start()
    expected: set[str] = set()
    for _ in range(30):
        for journal in journals:
            expected |= some_calls(journal, 5)[0]
        await asyncio.sleep(0.003)
    for journal in journals:
        assert await journal.stop()
    assert by_outcome(await proven(stores[0])) == (expected, set())
    assert journals[0].counts.stale + journals[1].counts.stale > 0


async def test_a_chain_that_another_made_first_is_gone_on_with(opened: Opener, store: MemoryStore) -> None:
    """The head is there although this worker never saw it: Insert meets Conflict."""

    class Blind(Wrapper):
        def __init__(self, store: Store) -> None:
            super().__init__(store)
            self.blind = True

        async def get(self, entity: Any, org: str, id: str) -> Any:
            if self.blind and entity is CHAIN_HEADS:
                self.blind = False
                return None
            return await self.inner.get(entity, org, id)

    await store.commit(Insert(CHAIN_HEADS, ChainHead(org="org_a", id="calls", seq=7, hash="b" * 64)))
    journal = await opened(store=Blind(store))
    some_calls(journal, 1)
    await journal.drained()
    [record] = await records(store)
    assert (record.seq, record.prev) == (8, "b" * 64)
    assert journal.counts.stale == 1


async def test_a_fault_of_ours_in_the_drain_is_counted_and_tried_again(
    opened: Opener, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_RETRY", 0.01)
    failing = Failing(store, ("before", ZeroDivisionError()))
    journal = await opened(store=failing)
    ended, _ = some_calls(journal, 3)
    await journal.drained()
    assert by_outcome(await proven(store))[0] == ended
    assert journal.counts.store_errors == 1


# -- a worker dies -----------------------------------------------------------------------------------------------
async def test_a_dead_workers_calls_are_drained_by_the_next(opened: Opener, store: MemoryStore, tmp_path: Path) -> None:
    journal = await opened(store=Gate(store), **BIG)
    ended, open_ = some_calls(journal, 100, open_=30)
    journal.record(new_call("org_b"), DENY, "denied")
    await die(journal)
    after = await recovered(store, tmp_path)
    assert by_outcome(await proven(store)) == (ended, open_)
    assert len(await proven(store, "org_b")) == 1
    assert after.counts.replayed == 131
    assert (spools(tmp_path), await marks(store)) == ([], 0)


async def test_what_was_drained_before_the_death_is_not_drained_again(
    opened: Opener, store: MemoryStore, tmp_path: Path
) -> None:
    journal = await opened(**BIG)
    early, open_ = some_calls(journal, 40, open_=5)
    await journal.drained()
    journal._drain._store = Gate(store)
    late, more = some_calls(journal, 40, open_=5)
    await die(journal)
    after = await recovered(store, tmp_path)
    assert by_outcome(await proven(store)) == (early | late, open_ | more)
    assert after.counts.replayed == 50


async def test_a_call_whose_intent_was_drained_past_gets_its_outcome(
    opened: Opener, store: MemoryStore, tmp_path: Path
) -> None:
    """Its intent lies before the mark, its outcome after it."""
    journal = await opened(**BIG)
    call = new_call()
    ticket = journal.begin(call, ALLOW)
    some_calls(journal, 10)
    await journal.drained()
    journal._drain._store = Gate(store)
    journal.finish(ticket, "ok", status=204)
    await die(journal)
    await recovered(store, tmp_path)
    [record] = [record for record in await proven(store) if record.id == call.id]
    assert (record.outcome, record.status) == ("ok", 204)


async def test_carried_intents_survive_the_death_of_their_first_home(
    opened: Opener, store: MemoryStore, tmp_path: Path
) -> None:
    journal = await opened(max_bytes=4 * SEGMENT)
    long = new_call(tool="stream")
    journal.begin(long, ALLOW)
    ended: set[str] = set()
    while journal.spool.current.number < 8:
        assert await journal.room(60)
        ended |= some_calls(journal, 10)[0]
        await asyncio.sleep(0)
    await journal.drained()
    await journal._let_go()
    first = min(int(path.name[:8], 16) for path in (tmp_path / "spool").glob("*/*.seg"))
    assert first > 1
    await die(journal)
    await recovered(store, tmp_path)
    assert by_outcome(await proven(store)) == (ended, {long.id})


def dying_at(step: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make an adopter fail once, just before or just after one of its steps; returns how to make it well."""

    class Died(OSError):
        pass

    def before(*_: Any, **__: Any) -> Any:
        raise Died("killed")

    if step == "before the segments go":
        monkeypatch.setattr(OrphanStream, "discard", before)
    elif step == "some segments are gone":
        monkeypatch.setattr(OrphanStream, "discard", lambda self: (self.segments[0].remove(), before()))
    elif step == "before the mark goes":
        monkeypatch.setattr(drain_module.Drain, "forget_mark", before)
    elif step == "before the folder goes":
        monkeypatch.setattr(Home, "remove", before)
    return monkeypatch.undo


@pytest.mark.parametrize(
    "step",
    ["before the segments go", "some segments are gone", "before the mark goes", "before the folder goes"],
)
async def test_an_adopter_that_dies_leaves_the_rest_to_the_next(
    opened: Opener, store: MemoryStore, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await opened(store=Gate(store))
    ended: set[str] = set()
    open_: set[str] = set()
    for _ in range(6):
        assert await journal.room(60)
        more = some_calls(journal, 20, open_=2)
        ended |= more[0]
        open_ |= more[1]
        await asyncio.sleep(0.01)
    await die(journal)
    heal = dying_at(step, monkeypatch)
    adopter = await opened()
    await asyncio.sleep(0.2)
    await die(adopter)
    heal()
    assert len(spools(tmp_path)) == 2
    await recovered(store, tmp_path)
    assert by_outcome(await proven(store)) == (ended, open_)
    assert (spools(tmp_path), await marks(store)) == ([], 0)


@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.parametrize("at", range(4))
async def test_an_adopter_killed_in_any_batch_is_followed_up(
    opened: Opener, store: MemoryStore, tmp_path: Path, at: int, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 16: ended calls, then calls without outcome, which have places of their own after the last frame."""
    monkeypatch.setattr(drain_module, "BATCH", 16)
    journal = await opened(store=Gate(store), **BIG)
    ended, open_ = some_calls(journal, 30, open_=30)
    await die(journal)

    hung = asyncio.Event()

    class Hang(Wrapper):
        async def append(self, *arguments: Any) -> None:
            if self.appends == at and lost == "before":
                await self.hang()
            await super().append(*arguments)
            if self.appends == at + 1 and lost == "after":
                await self.hang()

        async def hang(self) -> None:
            hung.set()
            await asyncio.Event().wait()

    adopter = await opened(store=Hang(store))
    await asyncio.wait_for(hung.wait(), 30)
    await die(adopter)
    before = {record.id for record in await proven(store)}
    assert len(before) == min(60, 16 * (at + (lost == "after")))
    await recovered(store, tmp_path)
    found = await proven(store)
    assert by_outcome(found) == (ended, open_)
    assert {record.id for record in found[: len(before)]} == before


@pytest.mark.parametrize("grace", [0.0, 0.02])
async def test_a_stop_cut_short_is_finished_by_the_next(
    opened: Opener, store: MemoryStore, tmp_path: Path, grace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain_module, "BATCH", 8)

    class Slow(Wrapper):
        async def append(self, *arguments: Any) -> None:
            await asyncio.sleep(0.005)
            await super().append(*arguments)
            await asyncio.sleep(0.005)

    journal = await opened(store=Slow(store), **BIG)
    ended, open_ = some_calls(journal, 20, open_=40)
    assert not await journal.stop(grace)
    await recovered(store, tmp_path)
    assert by_outcome(await proven(store)) == (ended, open_)


# -- a store without large transactions --------------------------------------------------------------------------
@pytest.mark.parametrize("cut", [0, 1, 5, 19, 20])
async def test_rows_without_their_guards_are_overwritten(
    opened: Opener, store: MemoryStore, tmp_path: Path, cut: int
) -> None:
    """Killed between rows and guards; another worker's records take the same numbers meanwhile."""
    split = Split(store, cut, asyncio.CancelledError())
    journal = await opened(store=split, **BIG)
    ended, _ = some_calls(journal, 20)
    async with asyncio.timeout(30):
        while split.cut >= 0 or (await verify(store, "org_a")).beyond < cut:
            await asyncio.sleep(0.005)
    await die(journal)
    report = await verify(store, "org_a")
    assert (report.head_seq, report.beyond) == (0, cut)
    other = await opened(store=Split(store))
    other._adopt_after = float("inf")
    more, _ = some_calls(other, 7)
    await other.drained()
    assert await other.stop()
    await recovered(Split(store), tmp_path)
    assert by_outcome(await proven(store))[0] == ended | more


async def test_two_workers_without_large_transactions_keep_one_chain(space: Space, tmp_path: Path) -> None:
    stores = [await memory_store(space) for _ in range(2)]
    journals = [Journal(Split(store), settings(**BIG), tmp_path) for store in stores]
    for journal in journals:
        await journal.start()
    expected: set[str] = set()
    for _ in range(20):
        for journal in journals:
            expected |= some_calls(journal, 5)[0]
        await asyncio.sleep(0.004)
    for journal in journals:
        assert await journal.stop()
    assert by_outcome(await proven(stores[0]))[0] == expected


# -- damage ------------------------------------------------------------------------------------------------------
def damage(folder: Path, number: int, at: int) -> None:
    path = next((folder / "spool").glob(f"*/{number:08x}-*.seg"))
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


async def test_a_torn_frame_at_the_end_is_passed_over(opened: Opener, store: MemoryStore, tmp_path: Path) -> None:
    journal = await opened(store=Gate(store), **BIG)
    ended, _ = some_calls(journal, 10)
    end = journal.spool.written - STRIDE
    journal.begin(new_call(), ALLOW)
    await die(journal)
    damage(tmp_path, 1, end + 30)
    after = await recovered(store, tmp_path)
    assert by_outcome(await proven(store)) == (ended, set())
    assert (after.counts.torn, after.counts.damaged) == (1, 0)
    assert spools(tmp_path) == []


async def test_damage_in_the_middle_costs_one_frame_and_keeps_the_file(
    opened: Opener, store: MemoryStore, tmp_path: Path
) -> None:
    journal = await opened(store=Gate(store), **BIG)
    first = new_call()
    journal.finish(journal.begin(first, ALLOW), "ok")
    ended, _ = some_calls(journal, 10)
    await die(journal)
    damage(tmp_path, 1, 40)
    after = await recovered(store, tmp_path)
    assert by_outcome(await proven(store)) == (ended, set())
    assert (after.counts.damaged, after.counts.lost_intents) == (1, 1)
    assert spools(tmp_path) == ["damaged"]
    assert len(list((tmp_path / "spool" / "damaged").iterdir())) == 1


async def test_a_truncated_spool_file_is_read_as_far_as_it_goes(
    opened: Opener, store: MemoryStore, tmp_path: Path
) -> None:
    journal = await opened(store=Gate(store), **BIG)
    ended, _ = some_calls(journal, 10)
    end = journal.spool.written - STRIDE
    some_calls(journal, 10)
    await die(journal)
    path = next((tmp_path / "spool").glob("*/00000001-*.seg"))
    with path.open("r+b") as file:
        file.truncate(end + 20)
    await recovered(store, tmp_path)
    assert by_outcome(await proven(store)) == (ended, set())


async def test_an_empty_orphan_and_a_left_mark_are_cleared(store: MemoryStore, tmp_path: Path) -> None:
    """A worker that died between removing its segments and removing its mark."""
    home = Home.create(tmp_path / "spool")
    await store.commit(Insert(SPOOL_MARKS, SpoolMark(org=GLOBAL, id=home.name, offset=5, done=True)))
    home.release()
    await recovered(store, tmp_path)
    assert (spools(tmp_path), await marks(store)) == ([], 0)


async def test_workers_that_die_while_this_one_lives_are_adopted(
    opened: Opener, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "ADOPT_EVERY", 0.02)
    survivor = await opened()
    victim = await opened(store=Gate(store), **BIG)
    ended, open_ = some_calls(victim, 10, open_=1)
    await die(victim)
    while len(spools(tmp_path)) > 1:
        await asyncio.sleep(0.01)
    assert by_outcome(await proven(store)) == (ended, open_)
    assert survivor.counts.replayed == 11
