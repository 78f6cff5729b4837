"""One store and one folder a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agenticmail_enterprise.adapters.stores.memory import MemoryStore, Space
from agenticmail_enterprise.gateway.journal import Journal
from agenticmail_enterprise.tests.unit.gateway_journal.journal_kit import memory_store, settings

Opener = Callable[..., Awaitable[Journal]]


@pytest.fixture
def space() -> Space:
    return Space()


@pytest.fixture
async def store(space: Space) -> MemoryStore:
    return await memory_store(space)


@pytest.fixture
async def opened(store: MemoryStore, tmp_path: Path) -> AsyncIterator[Opener]:
    """Open a journal: `await opened(sync="group")`; with a store of its own: `await opened(store=other)`."""
    journals: list[Journal] = []

    async def open_journal(*, store: Any = store, **changes: Any) -> Journal:
        journal = Journal(store, settings(**changes), tmp_path)
        await journal.start()
        journals.append(journal)
        return journal

    yield open_journal
    for journal in journals:
        await journal.stop(2)
