"""The store that the settings mean: as durable as the journal promises, observed, and asked again where that is safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agenticmail_enterprise.adapters.stores.memory import MemoryStore
from agenticmail_enterprise.catalog.errors import SettingsError, StoreUnavailable
from agenticmail_enterprise.catalog.records import EPOCHS
from agenticmail_enterprise.catalog.store import GLOBAL, Increment
from agenticmail_enterprise.gateway import stores
from agenticmail_enterprise.gateway.runtime import Runtime
from agenticmail_enterprise.gateway.settings import JournalSettings, Settings
from agenticmail_enterprise.gateway.stores import database_url, open_store, serving_store
from agenticmail_enterprise.gateway.vault import Vault


def settings(url: str, sync: Any) -> Settings:
    return Settings(database=url, journal=JournalSettings(sync=sync))


@pytest.mark.parametrize(
    ("url", "sync", "opened"),
    [
        ("sqlite:///gw.db", "none", "sqlite:///gw.db"),
        ("sqlite:///gw.db", "group", "sqlite:///gw.db?synchronous=full"),
        ("sqlite:///gw.db", "always", "sqlite:///gw.db?synchronous=full"),
        ("sqlite:///gw.db?readers=4", "group", "sqlite:///gw.db?readers=4&synchronous=full"),
        ("sqlite:///gw.db?synchronous=normal", "always", "sqlite:///gw.db?synchronous=normal"),
        ("sqlite:///gw.db?synchronous=extra&readers=4", "group", "sqlite:///gw.db?synchronous=extra&readers=4"),
        ("memory://", "always", "memory://"),
    ],
)
def test_sqlite_waits_for_the_disk_where_the_journal_promises_so(url: str, sync: str, opened: str) -> None:
    assert database_url(settings(url, sync)) == opened


@pytest.mark.parametrize(("sync", "level"), [("none", 1), ("group", 2), ("always", 2)])
async def test_the_database_of_a_running_gateway_says_so_itself(tmp_path: Path, sync: Any, level: int) -> None:
    made = Settings(database=f"sqlite:///{tmp_path}/gw.db", data_dir=str(tmp_path), journal=JournalSettings(sync=sync))
    Vault.load(made, create=True)
    runtime = await Runtime.open(made)
    try:
        writer = runtime.store.driver.writer  # type: ignore[attr-defined]
        assert await writer.fetch("PRAGMA synchronous", ()) == [(level,)]
    finally:
        await runtime.close()


class Shaky(MemoryStore):
    """Cannot be reached for its first `failures` operations."""

    failures = 0
    commits = 0

    async def get(self, *args: Any) -> Any:
        self._shake()
        return await super().get(*args)

    async def commit(self, *writes: Any) -> list[Any]:
        self.commits += 1
        self._shake()
        return await super().commit(*writes)

    def _shake(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable


async def test_reads_are_tried_again_writes_are_not_and_each_try_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, told = Shaky(), []
    monkeypatch.setattr(stores, "open_store", lambda url: inner)
    store = serving_store(Settings(database="memory://"), lambda *facts: told.append((facts[0], facts[1], facts[3])))
    await store.open()
    await store.migrate()
    told.clear()
    inner.failures = 2
    assert await store.get(EPOCHS, GLOBAL, "policy") is None
    assert told == [("get", "epoch", "STORE_UNAVAILABLE")] * 2 + [("get", "epoch", "")]
    told.clear()
    inner.failures = 1
    with pytest.raises(StoreUnavailable):
        await store.commit(Increment(EPOCHS, GLOBAL, "policy", "value"))
    assert inner.commits == 1
    assert told == [("commit", "epoch", "STORE_UNAVAILABLE")]
    inner.failures = 3
    with pytest.raises(StoreUnavailable):
        await store.get(EPOCHS, GLOBAL, "policy")


def test_a_database_nobody_stands_behind_is_refused() -> None:
    for url in ("oracle://x", "gw.db", ""):
        with pytest.raises(SettingsError, match="supported"):
            open_store(url)
