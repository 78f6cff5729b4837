"""A store that asks again when a read finds it unreachable. Writes pass as they are: whether a commit that was cut off
has happened is not known here, and doing it twice could be worse than saying so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ...catalog.errors import StoreUnavailable
from ...catalog.store import Encoded, Entity, Page, Query, Record, Store, Write
from ...policies.resilience import Sleep, with_retry

T = TypeVar("T")


class Retried:
    """`inner`, with `get`, `find`, `count` and `ping` tried up to `attempts` times while they raise StoreUnavailable,
    after waits that double from `base` seconds. `retries` counts the tries beyond the first."""

    def __init__(self, inner: Store, *, attempts: int = 3, base: float = 0.05, sleep: Sleep = asyncio.sleep) -> None:
        self.inner = inner
        self.retries = 0
        self._attempts = attempts
        self._base = base
        self._sleep = sleep

    def __getattr__(self, name: str) -> Any:
        """What only some backends have (`listen`) is theirs, as it is."""
        return getattr(self.inner, name)

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    async def ping(self) -> None:
        await self._again(self.inner.ping)

    async def migrate(self) -> list[int]:
        return await self.inner.migrate()

    async def get(self, entity: Entity, org: str, id: str) -> Any | None:  # noqa: A002 - the field's own name
        return await self._again(lambda: self.inner.get(entity, org, id))

    async def find(self, query: Query) -> Page:
        return await self._again(lambda: self.inner.find(query))

    async def count(self, query: Query, cap: int = 10_000) -> int:
        return await self._again(lambda: self.inner.count(query, cap))

    async def commit(self, *writes: Write) -> list[Any]:
        return await self.inner.commit(*writes)

    async def append(self, entity: Entity, records: Sequence[Record | Encoded], *guards: Write) -> None:
        await self.inner.append(entity, records, *guards)

    async def prune(self, entity: Entity, org: str, before: int, limit: int = 1000) -> int:
        return await self.inner.prune(entity, org, before, limit)

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        return await with_retry(
            call,
            attempts=self._attempts,
            base=self._base,
            retry_on=_unreachable,
            on_retry=self._count,
            sleep=self._sleep,
        )

    def _count(self, attempt: int, delay: float, error: Exception) -> None:
        self.retries += 1


def _unreachable(error: Exception) -> bool:
    return isinstance(error, StoreUnavailable)
