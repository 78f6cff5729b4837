"""From the spool to the store: every finished call once, in batches, each organisation's linked in a chain.

**Exactly once.** The mark says up to which position a spool is in the store, and it commits with the records. Reading
starts anew from the first segment there is: what lies before the mark only rebuilds the calls that are open. An append
whose answer was lost is not repeated before the mark has been read again. On a store that cannot commit all rows at
once, rows may be there without their mark: they are overwritten by id, and no reader trusts rows beyond a chain's head.

**Two workers, one chain.** The head is replaced under its version; who comes second reads it again and links anew.

**An orphaned spool** ends in this order: its last records and the mark's `done` in one commit, the segments, the mark,
the folder. Whoever is killed in between, the next one goes on from there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import structlog

from ..catalog.errors import Conflict, EnterpriseError, Stale
from ..catalog.records import CALLS, CHAIN_HEADS, SPOOL_MARKS, CallRecord, ChainHead, SpoolMark
from ..catalog.store import GLOBAL, Delete, Encoded, Insert, Replace, Store, Write
from .chainverify import HEAD_ID, decode, encode, link
from .spool import STRIDE, Frame, Segment, claim_orphans
from .streams import Counts, LiveStream, OrphanStream, Stream

BATCH: Final = 8000
"""Records in one commit, at most: what a busy second brings goes into few, so that an index page that many of them
touch is written once (SQLite: 11 us a record in batches of 1000, 7.7 in batches of 4000, 6.7 in 8000)."""

MAX_ORGS: Final = 90
"""Organisations in one batch: their heads and the mark are one commit of at most `MAX_BATCH` writes."""

_SLICE: Final = 128
"""Records linked before the loop gets its turn: about 0.4 ms."""
_BACKOFF: Final = (0.05, 5.0)
_WARY: Final = 32
_HEADS_MAX: Final = 10_000
Body = tuple[bytes, bytes]
"""(organisation as it stands in the JSON, a record without its place in the chain)."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Drain:
    """Brings streams to the store. All of it runs on the loop; the store's own work is on the store's threads."""

    def __init__(self, store: Store, root: Path, counts: Counts) -> None:
        self._store = store
        self._root = root
        self.counts = counts
        self.orphans: list[OrphanStream] = []
        #: Called between the batches of an orphan, so that the living do not wait for the dead.
        self.between: Callable[[], Awaitable[None]] = _nothing
        #: Told of each record when it is in the store (observers' plugins); never raises.
        self.observe: Callable[[CallRecord], None] | None = None
        self._job: asyncio.Future[Any] | None = None
        self._heads: dict[bytes, ChainHead] = {}
        #: Batches for which heads are read rather than remembered, because another worker writes the same chains.
        self._wary = 0

    @property
    def orphan_bytes(self) -> int:
        return sum(stream.bytes for stream in self.orphans)

    # -- one stream ----------------------------------------------------------------------------------------------
    async def live(self, stream: LiveStream, target: int, let_go: Callable[[], Awaitable[None]]) -> None:
        """Drain all that was written before a position. `let_go` is called after each batch."""
        while stream.ready or stream.position < target:
            while stream.position < target and len(stream.ready) < BATCH:
                stream.pull()
                await asyncio.sleep(0)
            if stream.ready:
                await self.commit(stream)
            await let_go()

    async def orphan(self, stream: OrphanStream) -> None:
        """Drain all of an orphaned spool and remove it."""
        stream.mark = await self._read_mark(stream)
        if not stream.mark.done:
            for segment in stream.segments:
                frames = await self._on_thread(stream.load, segment)
                await self._feed(stream, segment, frames)
            stream.abandon()
            self.counts.replayed += len(stream.ready)
            await self.settle(stream)
        await self._on_thread(stream.discard)
        await self.forget_mark(stream)
        await self._on_thread(stream.home.remove)
        log.info("journal_orphan_drained", spool=stream.name)

    async def _feed(self, stream: OrphanStream, segment: Segment, frames: list[Frame]) -> None:
        base = segment.number * STRIDE
        for number, frame in enumerate(frames):
            stream.apply(frame.kind, frame.ticket, frame.body, segment.number, base + frame.end)
            stream.position = base + frame.end
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            if len(stream.ready) >= BATCH:
                self.counts.replayed += len(stream.ready)
                await self.commit(stream)
                await self.between()

    async def settle(self, stream: Stream) -> None:
        """Commit what is ready to the last record, and mark the spool as done (when there ever was anything)."""
        while stream.ready:
            await self.commit(stream)
        if stream.mark.version:
            await self.commit(stream, done=True)

    async def forget_mark(self, stream: Stream) -> None:
        """Remove the mark of a spool whose segments are gone."""
        if stream.mark.version:
            try:
                await self._store.commit(Delete(SPOOL_MARKS, GLOBAL, stream.name))
            except Stale:
                log.debug("journal_mark_gone", spool=stream.name)

    # -- one batch -----------------------------------------------------------------------------------------------
    async def commit(self, stream: Stream, *, done: bool = False) -> None:
        """Bring the first batch of `stream.ready` to the store, however often it takes.

        Stays here while the store cannot be reached. May be cancelled at any point and called again.
        """
        delay = _BACKOFF[0]
        while True:
            try:
                if await self._try_commit(stream, done):
                    return
            except (Stale, Conflict):
                self.counts.stale += 1
                self._wary = _WARY
                self._heads.clear()
                await asyncio.sleep(random.random() * delay)  # noqa: S311 - spreads the workers, no secret
            except EnterpriseError as error:
                self.counts.store_errors += 1
                self._heads.clear()
                log.warning("journal_store_error", code=error.code, error=error.message, retry_in=delay)
                await asyncio.sleep(delay * (0.5 + random.random() / 2))  # noqa: S311
                delay = min(delay * 2, _BACKOFF[1])

    async def _try_commit(self, stream: Stream, done: bool) -> bool:
        """One attempt. True when the batch, or an earlier attempt at it, is in the store."""
        if stream.doubt:
            stream.mark = await self._read_mark(stream)
            stream.doubt = False
            waiting = len(stream.ready)
            while stream.ready and (stream.mark.done or stream.ready[0][1] <= stream.mark.offset):
                stream.ready.popleft()
            if stream.mark.done or len(stream.ready) < waiting:
                self._count(stream, waiting - len(stream.ready))
                return True
        batch, offset = _next_batch(stream)
        heads = await self._heads_of({org for org, _ in batch})
        rows = await self._linked(batch, heads)
        mark = msgspec.structs.replace(stream.mark, offset=max(stream.mark.offset, offset), done=done)
        stream.doubt = True
        await self._store.append(CALLS, rows, *map(_guard, heads.values()), _guard(mark))
        self._committed(stream, len(batch), heads, mark)
        await self._tell(rows)
        return True

    async def _tell(self, rows: list[Encoded]) -> None:
        """Observers are told a few records at a time, so that the loop gets its turn."""
        if self.observe is not None:
            for number, row in enumerate(rows):
                self.observe(decode(row.body))
                if number % _SLICE == _SLICE - 1:
                    await asyncio.sleep(0)

    def _committed(self, stream: Stream, count: int, heads: dict[bytes, ChainHead], mark: SpoolMark) -> None:
        stream.doubt = False
        mark.version += 1
        stream.mark = mark
        for _ in range(count):
            stream.ready.popleft()
        for head in heads.values():
            head.version += 1
        if len(self._heads) > _HEADS_MAX:
            self._heads.clear()
        self._heads.update(heads)
        self._wary = max(0, self._wary - 1)
        self._count(stream, count)

    def _count(self, stream: Stream, count: int) -> None:
        stream.drained += count
        self.counts.drained += count

    async def _heads_of(self, orgs: set[bytes]) -> dict[bytes, ChainHead]:
        """Where each organisation's chain ends: copies, to be moved on."""
        heads = {}
        for org in orgs:
            head = None if self._wary else self._heads.get(org)
            if head is None:
                name = msgspec.json.decode(b'"' + org + b'"', type=str)
                head = await self._store.get(CHAIN_HEADS, name, HEAD_ID) or ChainHead(org=name, id=HEAD_ID)
            heads[org] = msgspec.structs.replace(head)
        return heads

    async def _linked(self, batch: list[Body], heads: dict[bytes, ChainHead]) -> list[Encoded]:
        """The records of a batch at their places in their chains, ready for the store."""
        rows: list[Encoded] = []
        for start in range(0, len(batch), _SLICE):
            for org, body in batch[start : start + _SLICE]:
                head = heads[org]
                seq = head.seq + 1
                prev = head.hash.encode()
                text, digest = link(body, seq, prev)
                try:
                    record = decode(text)
                except msgspec.DecodeError as error:
                    self.counts.mended += 1
                    # All of it into the log: what `mended` leaves out stands nowhere else.
                    log.error("journal_record_mended", error=str(error), record=repr(body))  # noqa: TRY400
                    text, digest = link(mended(body), seq, prev)
                    record = decode(text)
                head.seq, head.hash = seq, digest
                keys = (record.org, record.id, record.agent, seq)
                rows.append(Encoded(keys, b'%b,"hash":"%b"}' % (text[:-1], digest.encode())))
            await asyncio.sleep(0)
        return rows

    async def _read_mark(self, stream: Stream) -> SpoolMark:
        mark = await self._store.get(SPOOL_MARKS, GLOBAL, stream.name)
        return mark if isinstance(mark, SpoolMark) else SpoolMark(org=GLOBAL, id=stream.name)

    # -- the spools of processes that are gone -------------------------------------------------------------------
    async def adopt(self) -> None:
        """Claim what processes that are gone have left. OSError when the folder cannot be read."""
        await self._on_thread(self._claim)

    def _claim(self) -> None:
        for home in claim_orphans(self._root):
            log.info("journal_orphan_claimed", spool=home.name)
            try:
                self.orphans.append(OrphanStream(home, self.counts))
            except OSError:
                home.release()
                raise

    async def drain_orphans(self) -> None:
        """Drain each claimed spool. One that cannot be read is given back, to be tried again."""
        while self.orphans:
            stream = self.orphans[0]
            try:
                await self.orphan(stream)
            except OSError as error:
                log.error("journal_orphan_unreadable", spool=stream.name, error=str(error))  # noqa: TRY400
                stream.close()
            self.orphans.remove(stream)

    async def release_orphans(self) -> None:
        """Leave what is not drained to others."""
        if self._job is not None:
            await asyncio.wait([self._job])
        for stream in self.orphans:
            stream.close()
        self.orphans.clear()

    async def _on_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run file work on a thread. When this is cancelled the thread goes on; `release_orphans` waits for it."""
        job = self._job = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
        return await asyncio.shield(job)


async def _nothing() -> None:
    """Between batches."""


def _next_batch(stream: Stream) -> tuple[list[Body], int]:
    """The next records, and the position after them."""
    batch: list[Body] = []
    orgs: set[bytes] = set()
    org = start = b"?"
    offset = 0 if stream.ready else stream.position
    for body, position in islice(stream.ready, BATCH):
        # Every body begins with {"org":"...", and mostly with the one before.
        if not body.startswith(start):
            org = body[8 : body.index(b'"', 8)]
            start = b'{"org":"%b"' % org
            if org not in orgs:
                if len(orgs) == MAX_ORGS:
                    break
                orgs.add(org)
        batch.append((org, body))
        offset = position
    return batch, offset


def _guard(record: ChainHead | SpoolMark) -> Write:
    entity = CHAIN_HEADS if isinstance(record, ChainHead) else SPOOL_MARKS
    return Replace(entity, record) if record.version else Insert(entity, record)


def mended(body: bytes) -> bytes:
    """A record whose fields do not fit their types, made to fit: what is wrong is left out, and said so in `flags`.

    Only a fault of ours can write one; it must not hold up the journal.
    """
    fields = msgspec.json.decode(body, type=dict[str, object])
    kept = {}
    for name, value in fields.items():
        try:
            msgspec.convert({"org": "-", "id": "-", name: value}, CallRecord)
        except msgspec.ValidationError:
            continue
        kept[name] = value
    record = msgspec.convert({**kept, "flags": ["mended"]}, CallRecord)
    return encode(record)
