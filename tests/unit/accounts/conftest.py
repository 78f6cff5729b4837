"""A store in memory, and the services over it. `changes` counts what `on_change` was told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from argon2 import PasswordHasher

from agenticmail_enterprise.adapters.stores import memory
from agenticmail_enterprise.catalog.records import EPOCHS
from agenticmail_enterprise.catalog.store import GLOBAL
from agenticmail_enterprise.gateway.accounts import Accounts
from agenticmail_enterprise.gateway.passwords import Passwords
from agenticmail_enterprise.gateway.registry import Registry
from agenticmail_enterprise.gateway.vault import Vault


class World:
    """One worker's services, with a clock that stands still until it is moved."""

    org = "org_a"
    other = "org_b"

    def __init__(self, store: Any) -> None:
        self.store = store
        self.seconds = 1_795_000_000.0
        self.told = 0
        self.vault = Vault([b"k" * 32])
        cheap = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        self.accounts = Accounts(store, lambda: self.seconds, self.tell, cheap)
        self.registry = Registry(store, self.vault, lambda: self.seconds, self.tell)

    def tell(self) -> None:
        self.told += 1

    @property
    def now(self) -> int:
        return int(self.seconds * 1000)

    async def epoch(self) -> int:
        record = await self.store.get(EPOCHS, GLOBAL, "policy")
        return record.value if record else 0


@pytest.fixture
async def store() -> AsyncIterator[Any]:
    made = memory.create("memory://")
    await made.open()
    await made.migrate()
    yield made
    await made.close()


@pytest.fixture
async def world(store: Any) -> World:
    return World(store)
