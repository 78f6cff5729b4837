"""Workers that are killed: run as `journal_child.py crash|race FOLDER ...`, told about by what it writes to a ledger.

It imports once and forks a worker for each round, so that a round costs its own time only. A worker is a journal on
SQLite with the smallest segments, under a load of overlapping calls. The ledger stands for the upstream: `B id` is
written when a call reaches it, after its intent was written down; `E id` when the caller has got the answer, after the
outcome was. Whatever stands there must be on record.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from agenticmail_enterprise.adapters.stores import sqlite
from agenticmail_enterprise.catalog.calls import Call, Principal, Verdict
from agenticmail_enterprise.catalog.errors import JournalFull
from agenticmail_enterprise.catalog.ids import new_id
from agenticmail_enterprise.catalog.store import Entity, Record, Write
from agenticmail_enterprise.gateway.journal import Journal
from agenticmail_enterprise.gateway.settings import JournalSettings

ORGS = [Principal(f"org_{n}", "agt_1", "one", "key_1") for n in range(3)]
ALLOW = Verdict("allow", "rule", "ALLOWED", "It may.")
RAW = b'{"to":"bob@example.com","body":"' + b"x" * 200 + b'"}'


class Split:
    """SQLite as a store without large transactions."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def append(self, entity: Entity, records: list[Record], *guards: Write) -> None:
        await self._store.append(entity, records)
        await self._store.commit(*guards)


async def open_journal(folder: Path, split: bool, sync: str) -> tuple[Any, Journal]:
    store: Any = sqlite.create(f"sqlite:///{folder}/calls.db")
    await store.open()
    store = Split(store) if split else store
    settings = JournalSettings(sync=sync, segment_bytes=65536, max_bytes=8 * 65536, drain_interval=0.005)
    journal = Journal(store, settings, folder)
    await journal.start()
    return store, journal


async def caller(journal: Journal, ledger: int, until: float, count: int) -> None:
    while count and time.monotonic() < until:
        call = Call(random.choice(ORGS), "send", RAW, id=new_id("call"), at=time.time())
        try:
            ticket = journal.begin(call, ALLOW, len(RAW))
        except JournalFull:
            await journal.room(1)
            continue
        count -= 1
        if journal.needs_wait:
            await journal.flushed()
        os.write(ledger, f"B {call.id}\n".encode())
        await asyncio.sleep(random.choice((0, 0, 0.0005, 0.003, 0.05)))
        journal.finish(ticket, "ok", status=200)
        os.write(ledger, f"E {call.id}\n".encode())


async def work(folder: Path, split: bool, sync: str, seconds: float, count: int) -> None:
    ledger = os.open(folder / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    store, journal = await open_journal(folder, split, sync)
    until = time.monotonic() + seconds
    await asyncio.gather(*(caller(journal, ledger, until, count) for _ in range(12)))
    await journal.stop(60)
    await store.close()


def fork(folder: Path, split: bool, sync: str, seconds: float, count: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    random.seed()
    asyncio.run(work(folder, split, sync, seconds, count))
    os._exit(0)


def crash(folder: Path, rounds: int, split: bool, sync: str) -> None:
    """Kill a worker after a random moment, again and again; each next one adopts what is left, under load itself."""
    for number in range(rounds):
        workers = [fork(folder, split, sync, 10, 10**9) for _ in range(1 + number % 2)]
        time.sleep(0.01 + random.random() * 0.2)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def race(folder: Path, workers: int, count: int) -> None:
    """Workers that drain into one chain at once, and stop by themselves."""
    for pid in [fork(folder, False, "none", 60, count) for _ in range(workers)]:
        _, status = os.waitpid(pid, 0)
        if status:
            sys.exit(f"A worker ended with {status}.")


async def migrate(folder: Path) -> None:
    store = sqlite.create(f"sqlite:///{folder}/calls.db")
    await store.open()
    await store.migrate()
    await store.close()


if __name__ == "__main__":
    what, place = sys.argv[1], Path(sys.argv[2])
    asyncio.run(migrate(place))
    if what == "crash":
        crash(place, int(sys.argv[3]), sys.argv[4] == "split", sys.argv[5])
    else:
        race(place, int(sys.argv[3]), int(sys.argv[4]))
