"""Calls, stores that misbehave on demand, and workers that die: what the journal's tests are told with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agenticmail_enterprise.adapters.stores.memory import MemoryStore, Space
from agenticmail_enterprise.catalog.calls import Call, Principal, Verdict
from agenticmail_enterprise.catalog.ids import new_id
from agenticmail_enterprise.catalog.records import CALLS, SPOOL_MARKS, CallRecord
from agenticmail_enterprise.catalog.store import GLOBAL, Entity, Query, Record, Store, Write
from agenticmail_enterprise.gateway.chainverify import verify
from agenticmail_enterprise.gateway.journal import Journal
from agenticmail_enterprise.gateway.settings import JournalSettings

ALLOW = Verdict("allow", "skill:email-management", "ALLOWED", "The skill email-management grants send_email.")
DENY = Verdict("deny", "default-deny", "TOOL_NOT_GRANTED", "Nothing grants it.")
SEGMENT = 64 * 1024
RAW = b'{"to":"bob@example.com","subject":"hello"}'


def new_call(org: str = "org_a", *, id: str = "", raw: bytes = RAW, **more: Any) -> Call:
    who = Principal(org, more.pop("agent", "agt_1"), "one", "key_1")
    return Call(who, more.pop("tool", "send_email"), raw, id=id or new_id("call"), at=time.time(), **more)


def settings(**changes: Any) -> JournalSettings:
    return JournalSettings(
        **{"segment_bytes": SEGMENT, "max_bytes": 16 * SEGMENT, "drain_interval": 0.01, "full_wait": 0.05, **changes}
    )


async def memory_store(space: Space | None = None) -> MemoryStore:
    store = MemoryStore(space=space)
    await store.open()
    await store.migrate()
    return store


async def records(store: Store, org: str = "org_a") -> list[CallRecord]:
    """All records of an organisation, in order of the chain."""
    found: list[CallRecord] = []
    query = Query(CALLS, "chain", {"org": org}, limit=500)
    while True:
        page = await store.find(query)
        found += page.records
        if not page.cursor:
            return found
        query = Query(CALLS, "chain", {"org": org}, limit=500, cursor=page.cursor)


async def marks(store: Store) -> int:
    return await store.count(Query(SPOOL_MARKS, "by_org", {"org": GLOBAL}))


def spools(folder: Path) -> list[str]:
    """What is left on the disk of any worker's spool, damaged segments included."""
    return sorted(path.name for path in (folder / "spool").iterdir() if path.is_dir())


async def proven(store: Store, *orgs: str) -> list[CallRecord]:
    """All records, after checking that each chain holds and nothing stands beyond its head."""
    found = []
    for org in orgs or ("org_a",):
        report = await verify(store, org)
        assert report.ok, (report, report.problem and report.problem.sentence)
        assert report.beyond == 0
        chain = await records(store, org)
        assert [record.seq for record in chain] == list(range(1, report.head_seq + 1))
        found += chain
    return found


async def die(journal: Journal) -> None:
    """What is left of a worker after SIGKILL: its files and an open lock, nothing else."""
    journal._task.cancel()
    await asyncio.gather(journal._task, return_exceptions=True)
    if journal._drain._job is not None:
        await asyncio.wait([journal._drain._job])
    await journal._drain.release_orphans()
    journal._threads.shutdown()
    journal.spool.close()
    journal._home.release()
    journal._started, journal._shut = False, "dead"


async def recovered(store: Store, folder: Path, **changes: Any) -> Journal:
    """A next process: starts, drains what there is, stops."""
    journal = Journal(store, settings(**changes), folder)
    await journal.start()
    await journal.drained()
    assert await journal.stop()
    return journal


class Wrapper:
    """A store around a store."""

    def __init__(self, store: Store) -> None:
        self.inner = store
        self.appends = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def append(self, entity: Entity, records: Sequence[Record], *guards: Write) -> None:
        self.appends += 1
        await self.inner.append(entity, records, *guards)


class Failing(Wrapper):
    """Each append takes the next of `faults`: an error to raise `before` or `after` the append; then it works."""

    def __init__(self, store: Store, *faults: tuple[str, Exception]) -> None:
        super().__init__(store)
        self.faults = list(faults)

    async def append(self, entity: Entity, records: Sequence[Record], *guards: Write) -> None:
        when, error = self.faults.pop(0) if self.faults else ("", None)
        if when == "before" and error:
            raise error
        await super().append(entity, records, *guards)
        if when == "after" and error:
            raise error


class Split(Wrapper):
    """A store without large transactions: the rows are there before the guards commit. `cut`: how many rows of the
    next append are stored before the connection is lost (-1: all goes well)."""

    def __init__(self, store: Store, cut: int = -1, error: Exception | None = None) -> None:
        super().__init__(store)
        self.cut = cut
        self.error = error

    async def append(self, entity: Entity, records: Sequence[Record], *guards: Write) -> None:
        self.appends += 1
        cut, self.cut = self.cut, -1
        await self.inner.append(entity, records if cut < 0 else list(records)[:cut])
        if cut >= 0 and self.error:
            raise self.error
        await self.inner.commit(*guards)


class Gate(Wrapper):
    """Appends wait until it is opened, as on a store that cannot be reached."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.open_gate = asyncio.Event()

    async def append(self, entity: Entity, records: Sequence[Record], *guards: Write) -> None:
        await self.open_gate.wait()
        await super().append(entity, records, *guards)
