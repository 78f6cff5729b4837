"""THE HOT PATH. One call: judge, write down the intent, forward, write down the outcome.

Doors read a protocol into a `Call` and hand it here with the bytes to forward. Warm, a call costs one suspension (the
upstream's answer) and touches no store, no lock and no logger. The order is the product's promise: nothing is forwarded
before its intent is in the journal, and nothing is answered before its outcome is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final, Protocol

from ..catalog.calls import Call, Verdict
from ..catalog.errors import EnterpriseError, JournalFull, UpstreamBroken, UpstreamError, UpstreamTimeout
from ..catalog.records import Door, Outcome
from ..policies.chain import NON_IDEMPOTENT, Chain
from .journal import Journal, Ticket
from .metrics import Metrics
from .pool import Answer

JOURNAL_FULL: Final = Verdict(
    "deny",
    "journal",
    "JOURNAL_FULL",
    "The gateway's journal cannot take a record now, so no call may be made. Try again later.",
    5.0,
)


class Sender(Protocol):
    """What a call is sent through: the pool of an HTTP upstream, or a session of a child process."""

    name: str

    async def send(self, head: bytes, body: bytes, *, stream: bool = False) -> Answer:
        """Raises UpstreamError; an `unsent` one when not a byte can have been processed."""


class Releases(Protocol):
    """What needs nobody of what is held. `doors.held.Held`."""

    async def release(self, call: Call, verdict: Verdict) -> Verdict:
        """Allow, where nobody need be asked; else the verdict as it is. Never raises."""


class Passed:
    """A call that was forwarded: the answer, and the ticket that `finish` closes when the last byte has passed."""

    __slots__ = ("answer", "call", "started", "ticket", "upstream_us", "verdict")

    def __init__(self, call: Call, verdict: Verdict, ticket: Ticket, started: int) -> None:
        self.call = call
        self.verdict = verdict
        self.ticket = ticket
        self.started = started
        self.upstream_us = 0
        self.answer: Answer | None = None


class Proxy:
    """One per worker."""

    def __init__(self, chain: Chain, journal: Journal, metrics: Metrics, full_wait: float = 2.0) -> None:
        self.chain = chain
        self.journal = journal
        self.metrics = metrics
        self.in_flight = 0
        self.full_wait = full_wait
        self.holds: Releases | None = None
        #: Doors that see to calls that must not run twice: these get their allow verdicts back unsent.
        self.once: frozenset[Door] = frozenset()

    async def handle(
        self, call: Call, sender: Sender, head: bytes, body: bytes, started: int, *, stream: bool = False
    ) -> Passed | Verdict:
        """Judge and forward. A Verdict: refused, and on record; or one that allows, of a call that must not
        run twice, which nobody has sent yet (`doors.once`). A Passed: the answer has begun; call `finish`.

        Raises UpstreamError after recording it: `not_sent` when it cannot have been processed, else what is known.
        `started` is time.perf_counter_ns() at the door.
        """
        verdict = self.chain.decide(call)
        if verdict is None:
            verdict = await self.chain.settle(call)
        return await self.forward(call, verdict, sender, head, body, started, stream=stream)

    async def forward(
        self, call: Call, verdict: Verdict, sender: Sender, head: bytes, body: bytes, started: int, *,
        stream: bool = False,
    ) -> Passed | Verdict:  # fmt: skip
        """`handle` for a call that was judged already."""
        if verdict.effect != "allow":
            if verdict.effect == "hold" and self.holds is not None:
                verdict = await self.holds.release(call, verdict)
            if verdict.effect != "allow":
                return await self.refuse(call, verdict, len(body), started)
        if (call.idempotency or (verdict.flags and NON_IDEMPOTENT in verdict.flags)) and call.door in self.once:
            return verdict
        try:
            ticket = self.journal.begin(call, verdict, len(body))
        except JournalFull:
            late = await self._begin_late(call, verdict, len(body))
            if late is None:
                return self.journal_full(call)
            ticket = late
        passed = Passed(call, verdict, ticket, started)
        self.in_flight += 1
        return await self.carry(passed, sender, head, body, stream=stream)

    async def carry(
        self, passed: Passed, sender: Sender, head: bytes, body: bytes, *, stream: bool = False, sent: int = 0
    ) -> Passed | Verdict:
        """Forward a call whose intent is written. Raises UpstreamError after recording it. `sent`: since when the
        upstream's time counts (perf_counter_ns), 0 for now."""
        sent = sent or time.perf_counter_ns()
        try:
            if self.journal.needs_wait:
                await self.journal.flushed()
            passed.answer = await sender.send(head, body, stream=stream)
        except UpstreamError as error:
            passed.upstream_us = (time.perf_counter_ns() - sent) // 1000
            self.finish(passed, outcome_of(error), 0, 0, error.code)
            raise
        except JournalFull as error:  # the disk failed under the intent: nothing was sent
            self.finish(passed, "not_sent", 0, 0, error.code)
            return self.journal_full(passed.call)
        except asyncio.CancelledError:
            passed.upstream_us = (time.perf_counter_ns() - sent) // 1000
            self.finish(passed, "cancelled", 0, 0, "CLIENT_LEFT")
            raise
        passed.upstream_us = (time.perf_counter_ns() - sent) // 1000
        return passed

    def finish(
        self, passed: Passed, outcome: Outcome, status: int, size: int, error: str = "", flags: tuple[str, ...] = ()
    ) -> None:
        """Write down how a forwarded call ended. Exactly once per Passed."""
        self.in_flight -= 1
        duration = (time.perf_counter_ns() - passed.started) // 1000
        self.journal.finish(passed.ticket, outcome, status, error, duration, passed.upstream_us, size, flags)
        answer = passed.answer  # a stream's length is the upstream's own
        added = max(0, duration - passed.upstream_us) if answer is not None and answer.body is not None else -1
        self.metrics.passed(passed.call.door, outcome, passed.call.upstream, passed.upstream_us, added)

    async def open(self, call: Call, verdict: Verdict, size: int, started: int) -> Passed:
        """Write the intent of an allowed call that is sent together with others. Raises JournalFull."""
        ticket = await self._begin_late(call, verdict, size)
        if ticket is None:
            raise JournalFull
        if self.journal.needs_wait:
            await self.journal.flushed()
        self.in_flight += 1
        return Passed(call, verdict, ticket, started)

    async def kept(self) -> None:
        """Where outcomes too must be on the disk before the answer goes out (`sync = always`): wait until they are.
        A disk that fails here stops the journal, and with it every later call; this one was made."""
        if self.journal.waits_outcome:
            with contextlib.suppress(JournalFull):
                await self.journal.flushed()

    def journal_full(self, call: Call) -> Verdict:
        self.metrics.refusal(call.door, "JOURNAL_FULL")
        return JOURNAL_FULL

    async def refuse(self, call: Call, verdict: Verdict, size: int, started: int) -> Verdict:
        """Record a call that is not forwarded. Returns the verdict, or JOURNAL_FULL when it cannot be written down."""
        outcome: Outcome = "held" if verdict.effect == "hold" else "denied"
        return await self.note(call, verdict, outcome, size, started)

    async def note(self, call: Call, verdict: Verdict, outcome: Outcome, size: int, started: int) -> Verdict:
        """One complete record of a decision that forwards nothing here (refusals, and the checks door)."""
        duration = (time.perf_counter_ns() - started) // 1000
        try:
            try:
                self.journal.record(call, verdict, outcome, duration_us=duration, request_bytes=size)
            except JournalFull:
                if not await self.journal.room(self.full_wait):
                    return self.journal_full(call)
                self.journal.record(call, verdict, outcome, duration_us=duration, request_bytes=size)
            if self.journal.needs_wait:
                await self.journal.flushed()
        except JournalFull:
            return self.journal_full(call)
        self.metrics.calls[call.door, verdict.effect, outcome] += 1
        return verdict

    async def _begin_late(self, call: Call, verdict: Verdict, size: int) -> Ticket | None:
        """Write the intent, waiting for room when the spool is full. None when there is still none."""
        for _ in range(2):
            try:
                return self.journal.begin(call, verdict, size)
            except JournalFull:
                if not await self.journal.room(self.full_wait):
                    return None
        return None


def outcome_of(error: EnterpriseError) -> Outcome:
    """What a failed send means for the record: sent or not, known or not."""
    if isinstance(error, UpstreamError) and error.unsent:
        return "not_sent"
    if isinstance(error, UpstreamTimeout):
        return "timeout"
    if isinstance(error, UpstreamBroken):
        return "broken"
    return "error"
