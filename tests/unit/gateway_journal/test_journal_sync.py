"""`sync`: who waits for the disk, for how long, and what happens when the disk fails."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from agenticmail_enterprise.adapters.stores.memory import MemoryStore
from agenticmail_enterprise.catalog.errors import JournalBroken
from agenticmail_enterprise.gateway import groupsync
from agenticmail_enterprise.gateway import spool as spool_module
from agenticmail_enterprise.gateway.spool import Segment
from agenticmail_enterprise.tests.unit.gateway_journal.conftest import Opener
from agenticmail_enterprise.tests.unit.gateway_journal.journal_kit import ALLOW, SEGMENT, Gate, new_call, proven


class Disk:
    """Counts syncs, and holds them while `free` is clear."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: list[list[tuple[int, int]]] = []
        self.free = threading.Event()
        self.free.set()
        self.error: OSError | None = None
        monkeypatch.setattr(groupsync, "_sync_files", self._sync)

    async def at_work(self) -> None:
        """Return when a sync has begun."""
        async with asyncio.timeout(30):
            while not self.synced:
                await asyncio.sleep(0.001)

    def _sync(self, segments: list[Segment]) -> None:
        self.synced.append([(segment.number, segment.used) for segment in segments])
        assert self.free.wait(60)
        if self.error:
            raise self.error


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize(
    ("sync", "intent", "outcome"), [("none", False, False), ("group", True, False), ("always", True, True)]
)
async def test_who_waits(opened: Opener, disk: Disk, sync: str, intent: bool, outcome: bool) -> None:
    journal = await opened(sync=sync)
    assert (journal.needs_wait, journal.waits_outcome) == (intent, outcome)
    journal.begin(new_call(), ALLOW)
    await journal.flushed()
    assert len(disk.synced) == int(intent)


async def test_nobody_waits_no_sync(opened: Opener, disk: Disk) -> None:
    journal = await opened(sync="group")
    for _ in range(20):
        journal.finish(journal.begin(new_call(), ALLOW), "ok")
    await journal.drained()
    assert disk.synced == []
    await journal.flushed()
    await journal.flushed()
    assert len(disk.synced) == 1


async def test_all_who_wait_share_the_next_sync(opened: Opener, disk: Disk) -> None:
    journal = await opened(sync="group")
    disk.free.clear()
    order: list[int] = []

    async def call(number: int) -> None:
        journal.begin(new_call(), ALLOW)
        await journal.flushed()
        order.append(number)

    first = asyncio.create_task(call(0))
    await disk.at_work()
    rest = [asyncio.create_task(call(number)) for number in range(1, 40)]
    await asyncio.sleep(0.01)
    assert order == []
    assert len(disk.synced) == 1
    disk.free.set()
    await asyncio.gather(first, *rest)
    assert order[0] == 0
    assert len(disk.synced) == 2


async def test_a_waiter_that_leaves_does_not_stop_the_sync_of_the_others(opened: Opener, disk: Disk) -> None:
    journal = await opened(sync="group")
    disk.free.clear()
    journal.begin(new_call(), ALLOW)
    waiters = [asyncio.create_task(journal.flushed()) for _ in range(3)]
    await disk.at_work()
    waiters[0].cancel()
    await asyncio.sleep(0.01)
    disk.free.set()
    await asyncio.gather(*waiters[1:])
    assert len(disk.synced) == 1


async def test_a_sync_covers_every_segment_that_was_written_to(opened: Opener, store: MemoryStore, disk: Disk) -> None:
    gate = Gate(store)
    journal = await opened(sync="group", store=gate)
    while journal.spool.current.number < 4:
        assert await journal.room(60)
        for _ in range(10):
            journal.finish(journal.begin(new_call(), ALLOW), "ok")
    await journal.flushed()
    journal.begin(new_call(), ALLOW)
    await journal.flushed()
    assert [[number for number, _ in round_] for round_ in disk.synced] == [[1, 2, 3, 4], [4]]
    gate.open_gate.set()


async def test_a_segment_being_synced_is_not_let_go(opened: Opener, store: MemoryStore, disk: Disk) -> None:
    journal = await opened(sync="group")
    disk.free.clear()
    journal.record(new_call(), ALLOW, "ok")
    waiter = asyncio.create_task(journal.flushed())
    await disk.at_work()
    first = journal.spool.current
    while journal.spool.current.number < 3:
        assert await journal.room(60)
        journal.finish(journal.begin(new_call(), ALLOW), "ok")
    await asyncio.sleep(0.05)
    assert first in journal.spool.closed
    assert first.fd >= 0
    disk.free.set()
    await waiter
    journal.record(new_call(), ALLOW, "ok")
    await journal.drained()
    assert first not in journal.spool.closed
    assert await journal.stop()
    assert {record.outcome for record in await proven(store)} == {"ok"}


async def test_a_disk_that_fails_once_is_not_trusted_again(opened: Opener, store: MemoryStore, disk: Disk) -> None:
    journal = await opened(sync="group")
    ticket = journal.begin(new_call(), ALLOW)
    disk.error = OSError(5, "Input/output error")
    waiters: list[Any] = [asyncio.create_task(journal.flushed()) for _ in range(3)]
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert {type(result) for result in results} == {JournalBroken}
    assert "Input/output error" in journal.problem
    with pytest.raises(JournalBroken):
        journal.begin(new_call(), ALLOW)
    disk.error = None
    journal.finish(ticket, "not_sent")
    assert await journal.stop()
    assert [record.outcome for record in await proven(store)] == ["not_sent"]


async def test_the_name_of_a_segment_is_synced_with_its_first_frames(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of one which is used again under another name."""
    folders: list[object] = []
    monkeypatch.setattr(spool_module, "sync_folder", folders.append)
    journal = await opened(sync="group")
    names = set()
    for _ in range(1000):
        assert await journal.room(60)
        journal.finish(journal.begin(new_call(), ALLOW), "ok")
        await journal.flushed()
        names.add(journal.spool.current.number)
    assert len(names) > 5
    assert len(folders) == len(names)


async def test_the_real_disk_is_synced(opened: Opener, store: MemoryStore) -> None:
    journal = await opened(sync="always", segment_bytes=2 * SEGMENT)

    async def caller() -> None:
        for _ in range(20):
            ticket = journal.begin(new_call(), ALLOW)
            await journal.flushed()
            journal.finish(ticket, "ok")
            await journal.flushed()

    await asyncio.gather(*(caller() for _ in range(16)))
    assert journal._sync.rounds < 16 * 40
    assert await journal.stop()
    assert len(await proven(store)) == 320
