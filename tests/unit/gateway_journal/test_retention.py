"""Old records go, the chain stays provable, and a kill half-way is mended."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agenticmail_enterprise.adapters.stores.memory import MemoryStore
from agenticmail_enterprise.catalog.errors import StoreError, StoreUnavailable, ValidationFailed
from agenticmail_enterprise.catalog.records import ANCHORS, CALLS, CHAIN_HEADS, CallRecord, ChainHead
from agenticmail_enterprise.catalog.store import Insert, Query, Replace
from agenticmail_enterprise.gateway.chainverify import HEAD_ID, hash_of, verify
from agenticmail_enterprise.gateway.retention import prune
from agenticmail_enterprise.tests.unit.gateway_journal.journal_kit import records

ORG = "org_a"
NOW = 1_000_000.0


def clock() -> float:
    return NOW


async def grow(store: MemoryStore, *ats: int) -> None:
    """Append records of these moments (ms) to the chain, as the drain does."""
    head: ChainHead | None = await store.get(CHAIN_HEADS, ORG, HEAD_ID)
    seq, prev = (head.seq, head.hash) if head else (0, "")
    made: list[CallRecord] = []
    for at in ats:
        seq += 1
        record = CallRecord(org=ORG, id=f"dec_{at:012x}{seq:020x}", at=at * 1000, tool="t", seq=seq, prev=prev)
        record.hash = prev = hash_of(msgspec.structs.replace(record))
        made.append(msgspec.structs.replace(record, created_at=at))
    end = (
        ChainHead(org=ORG, id=HEAD_ID, seq=seq, hash=prev)
        if head is None
        else msgspec.structs.replace(head, seq=seq, hash=prev)
    )
    await store.append(CALLS, made, Insert(CHAIN_HEADS, end) if head is None else Replace(CHAIN_HEADS, end))


async def seqs(store: MemoryStore) -> list[int]:
    return [record.seq for record in await records(store)]


async def test_the_beginning_that_is_old_goes_and_the_rest_verifies(store: MemoryStore) -> None:
    await grow(store, *range(10, 30))
    cut = await prune(store, ORG, 15, by="ana", clock=clock)
    assert cut.anchor
    assert (cut.pruned, cut.anchor.seq, cut.anchor.by, cut.anchor.before) == (5, 5, "ana", 15)
    assert await seqs(store) == list(range(6, 21))
    report = await verify(store, ORG)
    assert (report.ok, report.checked, report.head_seq) == (True, 15, 20)
    assert report.anchor == cut.anchor
    await grow(store, 30, 31)
    second = await prune(store, ORG, 31, by="ben", clock=clock)
    assert second.anchor
    assert (second.pruned, second.anchor.seq) == (16, 21)
    report = await verify(store, ORG)
    assert (report.ok, report.checked, report.head_seq) == (True, 1, 22)
    assert await store.count(Query(ANCHORS, "by_seq", {"org": ORG})) == 2  # every cut stays on record


async def test_a_call_that_began_early_and_ended_late_stays_until_all_before_it_may_go(store: MemoryStore) -> None:
    await grow(store, 10, 11, 500, 12, 13, 501)
    assert (await prune(store, ORG, 100, by="ana", clock=clock)).pruned == 2
    assert await seqs(store) == [3, 4, 5, 6]
    assert (await verify(store, ORG)).ok


async def test_a_whole_chain_may_go_and_a_new_record_follows(store: MemoryStore) -> None:
    await grow(store, 10, 11, 12)
    assert (await prune(store, ORG, 100, by="ana", clock=clock)).pruned == 3
    assert await seqs(store) == []
    assert (await verify(store, ORG)).ok
    await grow(store, 200)
    report = await verify(store, ORG)
    assert (report.ok, report.checked, report.head_seq) == (True, 1, 4)


async def test_killed_half_way_it_still_verifies_and_the_next_cut_cleans_up(store: MemoryStore) -> None:
    await grow(store, *range(10, 30))

    class Dying:
        def __getattr__(self, name: str) -> Any:
            async def die(*_: Any) -> None:
                raise StoreUnavailable

            return die if name == "prune" else getattr(store, name)

    with pytest.raises(StoreUnavailable):
        await prune(Dying(), ORG, 15, by="ana", clock=clock)
    assert len(await seqs(store)) == 20
    report = await verify(store, ORG)
    assert (report.ok, report.checked) == (True, 15)
    assert (await prune(store, ORG, 15, by="ana", clock=clock)).pruned == 0
    assert await seqs(store) == list(range(6, 21))


async def test_nothing_goes_while_what_would_go_does_not_hold(store: MemoryStore) -> None:
    await grow(store, *range(10, 30))
    record = (await records(store))[2]
    await store.append(CALLS, [msgspec.structs.replace(record, tool="harmless")])
    with pytest.raises(StoreError, match="number 3"):
        await prune(store, ORG, 15, by="ana", clock=clock)
    assert len(await seqs(store)) == 20
    assert await store.count(Query(ANCHORS, "by_seq", {"org": ORG})) == 0


async def test_what_is_removed_behind_an_anchor_is_still_found(store: MemoryStore) -> None:
    await grow(store, *range(10, 30))
    await prune(store, ORG, 15, by="ana", clock=clock)
    sixth = (await records(store))[0]
    store._space.tables["call"].take((ORG, sixth.id))
    report = await verify(store, ORG)
    assert report.problem
    assert (report.problem.kind, report.problem.seq) == ("missing", 6)


async def test_dry_run_and_dates(store: MemoryStore) -> None:
    await grow(store, *range(10, 30))
    tried = await prune(store, ORG, 15, by="ana", clock=clock, dry_run=True)
    assert (tried.pruned, tried.anchor) == (5, None)
    assert len(await seqs(store)) == 20
    for wrong in (0, -1, int(NOW * 1000) - 3_600_000, int(NOW * 1000) + 1):
        with pytest.raises(ValidationFailed):
            await prune(store, ORG, wrong, by="ana", clock=clock)
    assert (await prune(store, "org_nobody", 15, by="ana", clock=clock)).pruned == 0
