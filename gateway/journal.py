"""The journal: every call is written down before it leaves and when it has ended, and none of it is ever lost.

* `begin` before a call leaves, `finish` when it has ended; `record` for a call that is not forwarded. Each is a copy
  into a mapped file: synchronous, a few microseconds, and safe from `kill -9` at its return.
* `room` when they raise JournalFull; `flushed`, where `needs_wait`, to be safe from a power cut too.
* `start` claims what earlier processes have left; `stop` leaves an empty spool; `lag` and `counts` are for /metrics.

Room for the outcome of every open call is set aside when the call begins, so that only `begin` and `record` can find
the spool full. All methods are for the loop's thread. docs/journal.md says what happens when; docs/decisions/0003 why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
import structlog

from ..catalog.calls import Call, Verdict
from ..catalog.errors import JournalBroken, JournalFull, SettingsError
from ..catalog.records import CallRecord, Outcome
from ..catalog.store import Store
from .chainverify import Ending, encode, joined
from .drafts import ENDING_MAX, FLAGS, MAX_DRAFTED, PLAIN_ENDING, PLAIN_FLAGS, Draft, ending, flag_line, intent, quoted
from .drain import Drain
from .groupsync import GroupSync
from .redaction import is_plain
from .settings import JournalSettings
from .spool import CARRIED, COMPLETE, INTENT, OUTCOME, OVERHEAD, Home, Spool
from .streams import Counts, LiveStream

Ticket = int
"""What `begin` gives and `finish` takes."""

ADOPT_EVERY: Final = 10.0
"""Seconds between looks for spools of workers that have died since."""

_ENDING_FRAME: Final = ENDING_MAX + OVERHEAD
_RETRY: Final = 1.0

log = structlog.get_logger(__name__)


class Lag(msgspec.Struct, frozen=True):
    """What is not in the store yet: finished `records` of this worker, the age of the oldest in `seconds` (to the drain
    interval), and `bytes` on the disk, those of claimed orphans included."""

    records: int
    seconds: float
    bytes: int


class Journal:
    """One per worker. `data_dir` is on a local disk; workers on one machine share it, each with a spool of its own.

    SettingsError when `max_bytes` has no room for two segments.
    """

    def __init__(self, store: Store, settings: JournalSettings, data_dir: str | Path) -> None:
        if settings.max_bytes < 2 * settings.segment_bytes:
            raise SettingsError("journal.max_bytes must be at least twice journal.segment_bytes.")
        self.counts = Counts()
        #: Await `flushed` after `begin` and `record`, before going on.
        self.needs_wait = settings.sync != "none"
        #: Await `flushed` after `finish` as well, before the answer's last byte.
        self.waits_outcome = settings.sync == "always"
        self._settings = settings
        self._root = Path(data_dir).absolute() / "spool"
        self._drain = Drain(store, self._root, self.counts)
        self._drain.between = self._drain_live
        #: Whether a record keeps the arguments, secrets masked.
        self.keeps_arguments = settings.arguments == "redacted"
        self._low = settings.segment_bytes // 2
        self._started = False
        #: Why nothing may be written, or "".
        self._shut = "The journal is not open."
        self._ticket = 0
        self._open: dict[Ticket, int] = {}
        self._flags: dict[Ticket, tuple[str, ...]] = {}
        self._reserved = 0
        self._finished = 0
        self._idle = False
        self._preparing: asyncio.Task[None] | None = None
        self._prepare_after = 0.0
        self._caught_up = time.monotonic()
        self._adopt_after = 0.0
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._changed = asyncio.Event()
        self._waiters = 0

    def tell(self, observe: Callable[[CallRecord], None]) -> None:
        """Have `observe` told of each record once it is in the store. It must not raise."""
        self._drain.observe = observe

    @property
    def problem(self) -> str:
        """Why nothing may be written, or ""."""
        return self._shut

    # -- life ----------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Make this worker's spool and begin to drain; what earlier processes left is drained in the background.
        JournalBroken when the spool cannot be made (no permission, no room)."""
        try:
            self._home = await asyncio.to_thread(Home.create, self._root)
            self.spool = await asyncio.to_thread(self._make_spool)
        except OSError as error:
            raise JournalBroken(f"The journal's spool in {self._root} cannot be made: {error.strerror}.") from error
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="journal-sync")
        self._sync = GroupSync(self.spool, self._threads, self._break)
        self._live = LiveStream(self._home.name, self.spool, self.counts)
        self._started, self._shut = True, ""
        self._task = asyncio.create_task(self._run(), name="journal-drain")

    def _make_spool(self) -> Spool:
        spool = Spool(self._home.path, self._settings.segment_bytes)
        spool.add_spare(spool.make(spool.number()))
        return spool

    async def stop(self, grace: float = 10.0) -> bool:
        """Drain everything; calls still open become `unknown`. True when the spool is empty and gone. False when the
        store could not take it within `grace` seconds: the spool stays for the next process."""
        if not self._started:
            return True
        self._started, self._shut = False, "The journal is not open."
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._preparing is not None:
            await self._preparing
        await self._drain.release_orphans()
        self._open.clear()
        try:
            async with asyncio.timeout(grace):
                await self._empty()
        except TimeoutError:
            log.warning("journal_left_behind", spool=self._home.name, records=self.lag().records)
            emptied = False
        else:
            emptied = True
        self._threads.shutdown()
        self.spool.close()
        self._home.release()
        return emptied

    async def _empty(self) -> None:
        await self._drain.live(self._live, self.spool.written, self._let_go)
        self._live.abandon()
        await self._drain.settle(self._live)
        for segment in self.spool.remaining():
            segment.remove()
        await self._drain.forget_mark(self._live)
        await asyncio.to_thread(self._home.remove)

    # -- the hot path --------------------------------------------------------------------------------------------
    def begin(self, call: Call, verdict: Verdict, request_bytes: int = 0) -> Ticket:
        """Write down that a call is about to leave. JournalFull: await `room`, try once more, or deny. JournalBroken:
        deny. A record is kept under `call.id`: no two calls may share one."""
        if self._shut:
            raise JournalBroken(self._shut)
        body = intent(call, verdict, request_bytes, self.spool.body_max, self.keeps_arguments)
        return self._begun(body + flag_line(verdict.flags), verdict.flags)

    def begin_as(self, draft: Draft | None, call: Call, verdict: Verdict, raw: bytes, request_bytes: int) -> Ticket:
        """`begin` for one more call of a kind that there is a draft of, with `call.exact` and no ids but its own: the
        same bytes, sooner."""
        keeps = self.keeps_arguments
        if self._shut or draft is None or len(raw) > MAX_DRAFTED or (keeps and not is_plain(call.args)):
            return self.begin(call, verdict, request_bytes)
        body = draft.fill(call.id.encode(), int(call.at * 1e6), raw, quoted(raw) if keeps else b"", request_bytes)
        if len(body) > self.spool.body_max - 2 * ENDING_MAX:  # small segments
            return self.begin(call, verdict, request_bytes)
        return self._begun(body, verdict.flags)

    def _begun(self, body: bytes, flags: tuple[str, ...]) -> Ticket:
        spool = self.spool
        size = len(body) + OVERHEAD
        # Set aside: its outcome, and the same again should it have to be carried forward.
        reserve = size + _ENDING_FRAME
        if spool.free - self._reserved < size + reserve:
            raise self._full()
        ticket = self._ticket = self._ticket + 1
        spool.append(INTENT, ticket, body)
        self._open[ticket] = reserve
        self._reserved += reserve
        if flags:
            self._flags[ticket] = flags
        if spool.free - self._reserved < self._low:
            self._top_up()
        return ticket

    def finish(
        self, ticket: Ticket, outcome: Outcome, status: int = 0, error: str = "", duration_us: int = 0,
        upstream_us: int = 0, response_bytes: int = 0, flags: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """Write down how a call ended. Never raises for want of room. A second time for one ticket is counted only."""
        reserve = self._open.pop(ticket, 0)
        if not reserve:
            self.counts.late_outcomes += 1
            log.warning("journal_outcome_unexpected", ticket=ticket, outcome=outcome)
            return
        if self._flags:
            flags = self._flags.pop(ticket, ()) + flags
        usual = duration_us > 0 and upstream_us > 0 and response_bytes > 0
        if status == 200 and not error and usual and (not flags or _few(flags)):
            flagged = FLAGS % encode(flags) if flags else b""
            body = PLAIN_ENDING % (outcome.encode(), duration_us, upstream_us, response_bytes, flagged)
        else:
            body = ending(Ending(outcome, status, error, duration_us, upstream_us, response_bytes, flags))
        self.spool.append(OUTCOME, ticket, body)
        self._reserved -= reserve
        self._finished += 1
        if self._idle:
            self._rouse()
        if self._waiters:
            self._notify()

    def record(
        self, call: Call, verdict: Verdict, outcome: Outcome, *, status: int = 0, error: str = "", duration_us: int = 0,
        request_bytes: int = 0, response_bytes: int = 0, flags: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """Write down a call that is not forwarded, whole. JournalFull and JournalBroken as `begin`."""
        if self._shut:
            raise JournalBroken(self._shut)
        spool = self.spool
        end = ending(Ending(outcome, status, error, duration_us, 0, response_bytes, verdict.flags + flags))
        body = joined(intent(call, verdict, request_bytes, spool.body_max, self.keeps_arguments), end)
        if spool.free - self._reserved < len(body) + OVERHEAD:
            raise self._full()
        spool.append(COMPLETE, 0, body)
        self._finished += 1
        if self._idle:
            self._rouse()
        if spool.free - self._reserved < self._low:
            self._top_up()

    async def flushed(self) -> None:
        """Return when all that was written so far is on the disk; at once where `sync` is `none`."""
        if self.needs_wait:
            await self._sync.reached()

    async def room(self, timeout: float) -> bool:
        """Wait until there is room for any call. False when there is still none after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self._shut or self.spool.free - self._reserved < 2 * (self.spool.body_max + OVERHEAD) + _ENDING_FRAME:
            left = deadline - time.monotonic()
            if self._shut or left <= 0:
                return False
            self._top_up()
            await self._change(left)
        return True

    async def drained(self) -> None:
        """Return when every call that has ended by now, and every orphaned spool found by now, is in the store."""
        target = self.spool.written
        while self._live.committed < target or self._drain.orphans or not self._adopt_after:
            self._hurry.set()
            await self._change(1.0)

    def lag(self) -> Lag:
        """How far the store is behind."""
        records = self._finished - self._live.drained
        seconds = time.monotonic() - self._caught_up if records else 0.0
        return Lag(records, seconds, self.spool.held + self._drain.orphan_bytes)

    # -- room ----------------------------------------------------------------------------------------------------
    def _full(self) -> JournalFull:
        self.counts.full += 1
        self._top_up()
        return JournalFull()

    def pressed(self) -> bool:
        settings = self._settings
        return self.spool.held + self._drain.orphan_bytes + settings.segment_bytes > settings.max_bytes

    def may_reuse(self) -> bool:
        # Segments are numbered when they are made: one in the making must come before the next.
        fits = self.spool.held + self._drain.orphan_bytes <= self._settings.max_bytes
        return self._preparing is None and fits and len(self.spool.spares) < 2

    def retired(self) -> None:
        if self.spool.free - self._reserved < self._low:
            self._top_up()
        self._notify()

    def carry(self, ticket: Ticket, body: bytes) -> bool:
        if ticket not in self._open or self.spool.free < len(body) + OVERHEAD + len(self._open) * _ENDING_FRAME:
            return False
        self.spool.append(CARRIED, ticket, body)
        return True

    def _top_up(self) -> None:
        """Make a spare segment, in a thread, unless there are as many segments as there may be."""
        if (
            self._preparing is None
            and not self._shut
            and not self.pressed()
            and time.monotonic() >= self._prepare_after
        ):
            self._preparing = asyncio.create_task(self._prepare(), name="journal-spare")

    async def _prepare(self) -> None:
        try:
            self.spool.add_spare(await asyncio.to_thread(self.spool.make, self.spool.number()))
        except OSError as error:
            self.counts.disk_errors += 1
            self._prepare_after = time.monotonic() + _RETRY
            log.error("journal_no_segment", error=error.strerror, folder=str(self._home.path))  # noqa: TRY400
        finally:
            self._preparing = None
        self._notify()

    # -- draining ------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        while True:
            try:
                await self._cycle()
            except Exception:  # a fault here is counted and tried again: the calls wait in the spool
                self.counts.store_errors += 1
                log.exception("journal_drain_failed")
                await asyncio.sleep(_RETRY)

    async def _cycle(self) -> None:
        if time.monotonic() >= self._adopt_after:
            await self._drain.adopt()
            self._adopt_after = time.monotonic() + ADOPT_EVERY
        await self._drain_live()
        await self._drain.drain_orphans()
        await self._let_go()
        if not self._live.behind and not self._hurry.is_set():
            self._idle = True
            await _within(self._wake, ADOPT_EVERY)
            self._idle = False
            self._wake.clear()
        # Let a batch come together.
        await _within(self._hurry, self._settings.drain_interval)
        self._hurry.clear()

    async def _drain_live(self) -> None:
        if self._live.behind:
            began = time.monotonic()
            await self._drain.live(self._live, self.spool.written, self._let_go)
            self._caught_up = began

    async def _let_go(self) -> None:
        if self._live.release(self):
            # Intents were carried forward. Their first homes may go when their new ones are as safe.
            await self.flushed()
            self._live.release(self)
        self._notify()

    def _rouse(self) -> None:
        self._idle = False
        self._caught_up = time.monotonic()
        self._wake.set()

    def _notify(self) -> None:
        if self._waiters:
            self._changed.set()
            self._changed = asyncio.Event()

    async def _change(self, timeout: float) -> None:
        self._waiters += 1
        if self._idle:
            self._rouse()
        try:
            await _within(self._changed, timeout)
        finally:
            self._waiters -= 1

    def _break(self, reason: str) -> None:
        self._shut = reason
        log.error("journal_broken", reason=reason)


def _few(flags: tuple[str, ...]) -> bool:
    """Whether an outcome with these flags fits its place for certain."""
    text = "".join(flags)
    return len(flags) < 4 and len(text) <= PLAIN_FLAGS and text.isascii()


async def _within(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, no longer than that."""
    try:
        # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
