"""Reading a spool: frames in order, outcomes joined to their intents.

* `LiveStream` follows the spool that this worker writes; `OrphanStream` reads what a worker that is gone has left.
* Both leave finished records in `ready`, which `drain.Drain` takes to the store, and keep the intents that are `open`.

**Letting go.** Segments go oldest first, when all in them is in the store and no open call's intent has its home there.
The intents of long calls are carried forward: written again in the present segment.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Final, Protocol

import msgspec
import structlog

from ..catalog.records import SpoolMark
from ..catalog.store import GLOBAL
from .chainverify import Ending, encode, joined
from .spool import CARRIED, INTENT, OUTCOME, OVERHEAD, STRIDE, Frame, Home, Segment, Spool, read_frames

FINAL: Final = 1 << 62
"""Added to a ticket: the position of a record whose outcome never came. Above any in a segment."""

_CHUNK: Final = 128 * 1024
_FRAME: Final = struct.Struct("<IIBQ")
_BRACE: Final = ord("}")

log = structlog.get_logger(__name__)

Ready = tuple[bytes, int]
"""A finished record without its place in the chain, and the position after its last frame."""


class Counts(msgspec.Struct):
    """What happened since the start, for /metrics. Those after `carried` ask for a look at the log."""

    drained: int = 0
    replayed: int = 0
    stale: int = 0
    carried: int = 0
    full: int = 0
    store_errors: int = 0
    disk_errors: int = 0
    torn: int = 0
    damaged: int = 0
    lost_intents: int = 0
    late_outcomes: int = 0
    mended: int = 0


class Writer(Protocol):
    """What the drain asks of the journal it drains."""

    spool: Spool

    def carry(self, ticket: int, body: bytes) -> bool:
        """Write an open call's intent again. False when it is open no longer, or there is no room now."""

    def may_reuse(self) -> bool:
        """Whether a drained segment may become a spare."""

    def retired(self) -> None:
        """A segment was let go."""

    def pressed(self) -> bool:
        """Whether the spool has as many segments as it may have."""


# -- reading -----------------------------------------------------------------------------------------------------
class Stream:
    """One spool being read. `position`: everything before it was read. `open`: intents without outcome, each with the
    number of the segment it stands in. `ready`: read, not known to be in the store; `doubt`: the first may be in it."""

    def __init__(self, name: str, counts: Counts) -> None:
        self.name = name
        self.counts = counts
        self.position = 0
        self.open: dict[int, tuple[bytes, int]] = {}
        self.mark = SpoolMark(org=GLOBAL, id=name)
        self.ready: deque[Ready] = deque()
        self.doubt = False
        self.drained = 0

    def apply(self, kind: int, ticket: int, body: bytes, segment: int, position: int) -> None:
        """Take in one frame. Frames before the mark are in the store already."""
        if kind == OUTCOME:
            intent = self.open.pop(ticket, None)
            if position <= self.mark.offset:
                return
            if intent is None:
                self.counts.lost_intents += 1
                log.error("journal_outcome_without_intent", spool=self.name, position=position)
                return
            self.ready.append((joined(_bare(intent[0]), body), position))
        elif kind in (INTENT, CARRIED):
            self.open[ticket] = body, segment
        elif position > self.mark.offset:
            self.ready.append((body, position))

    @property
    def committed(self) -> int:
        """Everything before this position is in the store, or is the intent of an open call."""
        return self.mark.offset if self.ready else self.position

    def abandon(self) -> None:
        """Nothing more will come: what is open has no outcome. Such records have places after all others, in the order
        of their tickets, so that whoever takes over in the middle knows which of them are in the store."""
        for ticket in sorted(self.open):
            intent, position = self.open[ticket][0], FINAL + ticket
            if position > self.mark.offset:
                ending = Ending(error="NO_OUTCOME", flags=_flags(intent))
                self.ready.append((joined(_bare(intent), encode(ending)), position))
        self.open.clear()


def _bare(intent: bytes) -> bytes:
    """An intent's frame may end in a line of flags."""
    return intent if intent[-1] == _BRACE else intent[: intent.index(b"\n")]


def _flags(intent: bytes) -> tuple[str, ...]:
    return () if intent[-1] == _BRACE else msgspec.json.decode(intent[intent.index(b"\n") :], type=tuple[str, ...])


class LiveStream(Stream):
    """The spool that this process writes. Its frames are read without a look at their checksums: we wrote them."""

    def __init__(self, name: str, spool: Spool, counts: Counts) -> None:
        super().__init__(name, counts)
        self._spool = spool
        self._segment = spool.current
        self._offset = 0
        self.position = spool.current.number * STRIDE

    @property
    def behind(self) -> bool:
        return bool(self.ready) or self.position < self._spool.written

    def pull(self) -> None:
        """Read one chunk. Nothing happens when all was read."""
        spool, segment = self._spool, self._segment
        present = segment is spool.current
        stop = spool.written - segment.number * STRIDE if present else segment.used
        if self._offset >= stop:
            if not present:
                self._advance()
            return
        data = segment.read(self._offset, min(_CHUNK, stop - self._offset))
        unpack, at, size = _FRAME.unpack_from, 0, len(data)
        base, number = segment.number * STRIDE + self._offset, segment.number
        opened, ready, done = self.open, self.ready, self.mark.offset
        while at + OVERHEAD <= size:
            length, _, kind, ticket = unpack(data, at)
            end = at + 8 + length
            if end > size:
                break
            if kind == INTENT:
                opened[ticket] = data[at + OVERHEAD : end], number
            elif kind == OUTCOME and ticket in opened and base + end > done:  # `apply`, for nearly every frame
                intent = opened.pop(ticket)[0]
                if intent[-1] != _BRACE:
                    intent = _bare(intent)
                ready.append((b"%b,%b" % (intent[:-1], data[at + OVERHEAD + 1 : end]), base + end))
            else:
                self.apply(kind, ticket, data[at + OVERHEAD : end], number, base + end)
            at = end
        self._offset += at
        self.position = segment.number * STRIDE + self._offset
        if not present and self._offset >= stop:
            self._advance()

    def _advance(self) -> None:
        later = (segment for segment in self._spool.closed if segment.number > self._segment.number)
        self._segment, self._offset = next(later, self._spool.current), 0
        self.position = self._segment.number * STRIDE

    def release(self, writer: Writer) -> bool:
        """Let go of the segments that are not needed any more, and carry the intents of long calls out of those that
        they alone hold back. True when intents were carried: sync, then call again."""
        spool = self._spool
        drained = [segment for segment in spool.closed if (segment.number + 1) * STRIDE <= self.committed]
        if not drained:
            return False
        homes = {home for _, home in self.open.values()}
        for segment in drained:
            if segment.number in homes:
                return self._carry(writer, drained[drained.index(segment) :])
            if not spool.retire(reuse=writer.may_reuse()):
                return False
            writer.retired()
        return False

    def _carry(self, writer: Writer, pinned: list[Segment]) -> bool:
        """Carrying costs writes: worth it when it frees three times as much, or when there is no room left."""
        last = pinned[-1].number
        held = {ticket: body for ticket, (body, home) in self.open.items() if home <= last}
        size = sum(map(len, held.values()))
        if sum(segment.size for segment in pinned) < 3 * size and not writer.pressed():
            return False
        moved = 0
        for ticket, body in held.items():
            if writer.carry(ticket, body):
                # At home in the present segment from now on; reading the frame will say the same.
                self.open[ticket] = body, self._spool.current.number
                moved += 1
        self.counts.carried += moved
        return moved > 0


class OrphanStream(Stream):
    """The spool of a process that is gone. `homes` stay claimed until all of it is in the store."""

    def __init__(self, home: Home, counts: Counts) -> None:
        super().__init__(home.name, counts)
        self.home = home
        self.segments = home.segments()
        self.damaged: list[Segment] = []
        self.bytes = sum(segment.size for segment in self.segments)

    def load(self, segment: Segment) -> list[Frame]:
        """All frames of a segment; what is damaged is counted. Runs on a thread."""
        frames, damages = read_frames(segment.read_all(), segment.seed)
        for damage in damages:
            if damage.torn:
                # A process was killed in mid-frame: that call had not left yet.
                self.counts.torn += 1
                log.warning("journal_torn_frame", file=str(segment.path), offset=damage.start)
            else:
                self.counts.damaged += 1
                log.error("journal_damaged", file=str(segment.path), start=damage.start, end=damage.end)
                if segment not in self.damaged:
                    self.damaged.append(segment)
        return frames

    def discard(self) -> None:
        """Remove the segments, oldest first: an outcome must not outlive its intent's frame, nor the reverse."""
        for segment in self.segments:
            if segment in self.damaged:
                log.error("journal_segment_kept", file=str(self.home.set_aside(segment)))
            else:
                segment.remove()

    def close(self) -> None:
        for segment in self.segments:
            segment.close()
        self.home.release()
