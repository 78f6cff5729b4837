"""Freshness: a counter in the store rises with every write that can change a verdict; this watches it.

A change made in this process is applied at once by whoever made it; one made elsewhere within `refresh` seconds. While
the counter cannot be read the chain is told, and closes when that has lasted `stale_grace`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from ..catalog.errors import EnterpriseError
from ..catalog.records import EPOCHS
from ..catalog.store import GLOBAL, Store

log = structlog.get_logger()


class EpochWatcher:
    """`on_change` runs when the epoch moved; `on_read(ok)` after every look."""

    def __init__(
        self, store: Store, refresh: float, on_change: Callable[[], Awaitable[None]], on_read: Callable[[bool], None]
    ) -> None:
        self._store = store
        self._refresh = refresh
        self._on_change = on_change
        self._on_read = on_read
        self._seen = -1
        self._wake = asyncio.Event()
        self._looking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._readable = True

    async def start(self) -> None:
        await self.look()
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="epoch-watcher")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def nudge(self) -> None:
        """Look now: this process has just written."""
        self._wake.set()

    async def look(self) -> bool:
        """Read the epoch once; True when it moved. What follows from it has been done on return."""
        async with self._looking:
            return await self._look()

    async def _look(self) -> bool:
        try:
            async with asyncio.timeout(max(1.0, self._refresh * 4)):
                record = await self._store.get(EPOCHS, GLOBAL, "policy")
        except (EnterpriseError, TimeoutError) as error:
            if self._readable:
                log.warning("policy_store_unreadable", reason=str(error) or "no answer in time")
            self._readable = False
            self._on_read(False)
            return False
        if not self._readable:
            log.info("policy_store_readable_again")
        self._readable = True
        self._on_read(True)
        value = record.value if record is not None else 0
        if value == self._seen:
            return False
        first, self._seen = self._seen == -1, value
        if not first:
            await self._on_change()
        return True

    async def _watch(self) -> None:
        while True:
            try:
                # Not wait_for: on Python 3.11 it swallows a cancellation that comes in the event's own tick.
                async with asyncio.timeout(self._refresh):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self.look()
            except EnterpriseError as error:
                # The change itself could not be applied (the store went away between two reads): look again.
                self._seen = -2
                self._on_read(False)
                log.warning("policy_change_not_applied", reason=error.message)
