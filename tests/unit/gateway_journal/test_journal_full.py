"""The spool is bounded: calls wait, then are denied; outcomes always fit; nothing is dropped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from pathlib import Path

import pytest

from agenticmail_enterprise.adapters.stores.memory import MemoryStore
from agenticmail_enterprise.catalog.errors import JournalFull
from agenticmail_enterprise.gateway import spool as spool_module
from agenticmail_enterprise.gateway.journal import Journal
from agenticmail_enterprise.tests.unit.gateway_journal.conftest import Opener
from agenticmail_enterprise.tests.unit.gateway_journal.journal_kit import (
    ALLOW,
    DENY,
    SEGMENT,
    Gate,
    new_call,
    proven,
    recovered,
    spools,
)


async def fill(journal: Journal) -> list[int]:
    """Begin calls until there is no room; their tickets."""
    tickets = []
    while True:
        try:
            tickets.append(journal.begin(new_call(), ALLOW))
        except JournalFull:
            if not await journal.room(0.02):
                return tickets


async def test_a_full_spool_denies_and_still_takes_every_outcome(opened: Opener, store: MemoryStore) -> None:
    gate = Gate(store)
    journal = await opened(store=gate, max_bytes=3 * SEGMENT)
    tickets = await fill(journal)
    assert len(tickets) > 50
    assert journal.lag().bytes == 3 * SEGMENT
    assert journal.counts.full
    with pytest.raises(JournalFull):
        journal.begin(new_call(), ALLOW)
    for ticket in tickets:
        journal.finish(ticket, "error", error="E" * 5000, flags=("f" * 100,) * 20)
    gate.open_gate.set()
    assert await journal.room(60)
    journal.finish(journal.begin(new_call(), ALLOW), "ok")
    assert await journal.stop()
    found = await proven(store)
    assert len(found) == len(tickets) + 1
    assert {record.outcome for record in found[:-1]} == {"error"}


async def test_refusals_fill_it_too_and_are_never_lost(opened: Opener, store: MemoryStore) -> None:
    gate = Gate(store)
    journal = await opened(store=gate, max_bytes=2 * SEGMENT)
    written = 0
    while not journal.counts.full:
        with contextlib.suppress(JournalFull):
            journal.record(new_call(), DENY, "denied")
            written += 1
    gate.open_gate.set()
    await journal.drained()
    assert len(await proven(store)) == written
    journal.record(new_call(), DENY, "denied")


async def test_who_waits_for_room_goes_on_when_there_is_some(opened: Opener, store: MemoryStore) -> None:
    gate = Gate(store)
    journal = await opened(store=gate, max_bytes=2 * SEGMENT)
    tickets = await fill(journal)
    waiters = [asyncio.create_task(journal.room(60)) for _ in range(20)]
    await asyncio.sleep(0.05)
    assert not any(waiter.done() for waiter in waiters)
    for ticket in tickets:
        journal.finish(ticket, "ok")
    gate.open_gate.set()
    assert await asyncio.gather(*waiters) == [True] * 20


async def test_a_disk_without_room_is_a_full_journal_until_it_has_some(
    opened: Opener, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await opened()
    await asyncio.sleep(0.05)
    room = spool_module.allocate

    def no_room(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool_module, "allocate", no_room)
    gate = Gate(store)
    journal._drain._store = gate
    tickets = await fill(journal)
    assert journal.counts.disk_errors > 0
    assert journal.spool.held < journal._settings.max_bytes
    for ticket in tickets:
        journal.finish(ticket, "ok")
    monkeypatch.setattr(spool_module, "allocate", room)
    assert await journal.room(60)
    gate.open_gate.set()
    await journal.drained()
    assert len(await proven(store)) == len(tickets)


async def test_a_stop_without_a_store_leaves_the_spool_to_the_next(
    opened: Opener, store: MemoryStore, tmp_path: Path
) -> None:
    gate = Gate(store)
    journal = await opened(store=gate)
    for _ in range(100):
        journal.finish(journal.begin(new_call(), ALLOW), "ok")
    open_ = new_call()
    journal.begin(open_, ALLOW)
    assert not await journal.stop(0.1)
    assert len(spools(tmp_path)) == 1
    await recovered(store, tmp_path)
    found = await proven(store)
    assert len(found) == 101
    assert {record.id for record in found if record.outcome == "unknown"} == {open_.id}
    assert spools(tmp_path) == []


async def test_a_long_call_does_not_hold_fifty_segments(opened: Opener, store: MemoryStore) -> None:
    """Its intent is carried forward; its record is complete, and there once."""
    journal = await opened(max_bytes=4 * SEGMENT)
    long = new_call(tool="stream")
    ticket = journal.begin(long, ALLOW, 77)
    short = 0
    while journal.spool.current.number < 50:
        if not await journal.room(60):
            pytest.fail("The long call filled the spool.")
        for _ in range(20):
            journal.finish(journal.begin(new_call(), ALLOW), "ok")
        short += 20
        await asyncio.sleep(0)
    await journal.drained()
    assert journal.counts.carried > 5
    journal.finish(ticket, "ok", status=200)
    assert await journal.stop()
    found = await proven(store)
    assert len(found) == short + 1
    [record] = [record for record in found if record.tool == "stream"]
    assert (record.id, record.outcome, record.status, record.request_bytes) == (long.id, "ok", 200, 77)
    assert journal.counts.lost_intents == 0


async def test_many_long_calls_leave_room_for_short_ones(opened: Opener, store: MemoryStore) -> None:
    journal = await opened(max_bytes=6 * SEGMENT)
    long = [journal.begin(new_call(tool="stream"), ALLOW) for _ in range(80)]
    short = 0
    while journal.spool.current.number < 40:
        if not await journal.room(60):
            pytest.fail("The long calls filled the spool.")
        for _ in range(10):
            journal.finish(journal.begin(new_call(), ALLOW), "ok")
        short += 10
        await asyncio.sleep(0)
    for ticket in long:
        journal.finish(ticket, "ok")
    assert await journal.stop()
    found = await proven(store)
    assert len(found) == short + 80
    assert {record.outcome for record in found} == {"ok"}
