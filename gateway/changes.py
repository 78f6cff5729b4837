"""How policy is changed: one atomic batch that also raises the policy epoch, then everybody here is told.

Whoever writes a record that can change a verdict writes it through here, so that no change can be made and not noticed:
other processes see the epoch within the refresh interval, this one drops what it compiled at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from ..catalog.records import EPOCHS
from ..catalog.store import GLOBAL, MAX_BATCH, Increment, Store, Write

EPOCH_ID: Final = "policy"
ROOM: Final = MAX_BATCH - 1
"""Writes in one change: the epoch takes one place of the batch."""

ATTEMPTS: Final = 4
"""How often a change is tried that reads, decides and writes, when others write in between."""

Clock = Callable[[], float]


class Changes:
    """`commit` for writes that can change a verdict. `on_change` runs after each, in this process."""

    def __init__(self, store: Store, clock: Clock = time.time, on_change: Callable[[], None] = lambda: None) -> None:
        self.store = store
        self._clock = clock
        self._on_change = on_change

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return int(self._clock() * 1000)

    async def commit(self, *writes: Write) -> list[Any]:
        """The store's results for `writes` (at most `ROOM`), committed together with the epoch. Raises StoreError.

        `on_change` is also called when the commit fails: an error may have hidden a success.
        """
        try:
            results = await self.store.commit(*writes, Increment(EPOCHS, GLOBAL, EPOCH_ID, "value"))
        finally:
            self._on_change()
        return results[: len(writes)]
