"""A store that tells how long each operation took and how it ended. What it tells is counted; it changes nothing."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ...catalog.errors import EnterpriseError
from ...catalog.store import Encoded, Entity, Page, Query, Record, Store, Write

T = TypeVar("T")

Report = Callable[[str, str, float, str], None]
"""(operation, entity or "", seconds, error code or ""). All but the seconds come from small closed sets."""


class Observed:
    """`inner`, with a report after each operation. A report that raises is counted in `faults`."""

    def __init__(self, inner: Store, report: Report, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.inner = inner
        self.faults = 0
        self._report = report
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        """What only some backends have (`listen`) is theirs, unobserved."""
        return getattr(self.inner, name)

    async def open(self) -> None:
        await self._told("open", "", self.inner.open())

    async def close(self) -> None:
        await self._told("close", "", self.inner.close())

    async def ping(self) -> None:
        await self._told("ping", "", self.inner.ping())

    async def migrate(self) -> list[int]:
        return await self._told("migrate", "", self.inner.migrate())

    async def get(self, entity: Entity, org: str, id: str) -> Any | None:  # noqa: A002 - the field's own name
        return await self._told("get", entity.name, self.inner.get(entity, org, id))

    async def find(self, query: Query) -> Page:
        return await self._told("find", query.entity.name, self.inner.find(query))

    async def count(self, query: Query, cap: int = 10_000) -> int:
        return await self._told("count", query.entity.name, self.inner.count(query, cap))

    async def commit(self, *writes: Write) -> list[Any]:
        entity = writes[0].entity.name if writes else ""
        return await self._told("commit", entity, self.inner.commit(*writes))

    async def append(self, entity: Entity, records: Sequence[Record | Encoded], *guards: Write) -> None:
        await self._told("append", entity.name, self.inner.append(entity, records, *guards))

    async def prune(self, entity: Entity, org: str, before: int, limit: int = 1000) -> int:
        return await self._told("prune", entity.name, self.inner.prune(entity, org, before, limit))

    async def _told(self, operation: str, entity: str, work: Awaitable[T]) -> T:
        start, code = self._clock(), ""
        try:
            return await work
        except BaseException as error:
            code = error.code if isinstance(error, EnterpriseError) else type(error).__name__
            raise
        finally:
            try:
                self._report(operation, entity, self._clock() - start, code)
            except Exception:  # noqa: BLE001 - a report must not decide how an operation ends
                self.faults += 1
