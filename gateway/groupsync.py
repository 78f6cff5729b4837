"""Group sync: the spool on the disk, in a thread, as often as somebody waits for it and never more often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ..catalog.errors import JournalBroken
from .spool import Segment, Spool, sync_file


class GroupSync:
    """Puts the spool on the disk, in a thread. One sync runs at a time and serves all who waited before it began; who
    comes later shares the next. Nothing runs while nobody waits.

    A disk that failed once is not trusted again (JournalBroken): after a failed sync the kernel may have dropped pages.
    """

    def __init__(self, spool: Spool, threads: ThreadPoolExecutor, failed: Callable[[str], None]) -> None:
        self._spool = spool
        self._threads = threads
        self._failed = failed
        self._synced = -1
        self._running: asyncio.Future[None] | None = None
        self.rounds = 0

    async def reached(self) -> None:
        """Return when all that is written now is on the disk."""
        target = self._spool.written
        while self._synced < target:
            if self._running is None:
                self._running = asyncio.ensure_future(self._round())
            await asyncio.shield(self._running)

    async def _round(self) -> None:
        target, segments = self._spool.written, self._spool.take_unsynced()
        for segment in segments:
            segment.busy = True
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, _sync_files, segments)
        except OSError as error:
            message = f"The journal's disk failed: {error.strerror}."
            self._failed(message)
            raise JournalBroken(message) from error
        else:
            self._synced = target
            self.rounds += 1
        finally:
            self._running = None
            for segment in segments:
                segment.busy = False


def _sync_files(segments: list[Segment]) -> None:
    for segment in segments:
        sync_file(segment)
