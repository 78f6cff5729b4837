"""Stores around stores: they keep the whole contract and add one thing each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agenticmail_enterprise.adapters.stores.memory import MemoryStore
from agenticmail_enterprise.adapters.stores.observed import Observed
from agenticmail_enterprise.adapters.stores.retried import Retried
from agenticmail_enterprise.catalog.errors import Conflict, StoreError, StoreUnavailable
from agenticmail_enterprise.catalog.store import Listening, Store
from agenticmail_enterprise.tests.contract.backends import BUILT_IN
from agenticmail_enterprise.tests.contract.suite import (
    ITEMS,
    LINES,
    MIGRATIONS,
    Check,
    add,
    asked,
    bench_on,
    every_check,
    line,
    put,
)

MEMORY = BUILT_IN[0]
WRAPPED = [
    msgspec.structs.replace(MEMORY, name="observed", create=lambda *a: Observed(MEMORY.create(*a), lambda *_: None)),
    msgspec.structs.replace(MEMORY, name="retried", create=lambda *a: Retried(MEMORY.create(*a), attempts=1)),
]


@pytest.mark.parametrize("backend", WRAPPED, ids=lambda backend: backend.name)
@pytest.mark.parametrize(
    "check", [check for check in every_check() if check.suits(MEMORY)], ids=lambda check: check.name
)
async def test_a_wrapped_store_keeps_the_contract(backend: Any, check: Check, tmp_path: Path) -> None:
    async with bench_on(backend, tmp_path) as bench:
        await check.run(bench)


async def test_each_operation_is_reported_once() -> None:
    told: list[tuple[str, str, float, str]] = []
    ticks = iter(range(1000))
    store = Observed(MemoryStore(migrations=MIGRATIONS), lambda *facts: told.append(facts), clock=lambda: next(ticks))
    await store.open()
    await store.migrate()
    await store.commit(put("1"), add("2"))
    with pytest.raises(Conflict):
        await store.commit(put("1"))
    await store.get(ITEMS, "acme", "1")
    await store.find(asked())
    await store.count(asked())
    await store.append(LINES, [line("1")])
    await store.prune(LINES, "acme", 1)
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    assert [fact[:2] for fact in told] == [
        ("open", ""), ("migrate", ""), ("commit", "item"), ("commit", "item"), ("get", "item"), ("find", "item"),
        ("count", "item"), ("append", "line"), ("prune", "line"), ("close", ""), ("ping", ""),
    ]  # fmt: skip
    assert {fact[2] for fact in told} == {1}
    assert [fact[3] for fact in told if fact[3]] == ["CONFLICT", "STORE_UNAVAILABLE"]


async def test_a_report_that_raises_is_counted_and_changes_nothing() -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    store = Observed(MemoryStore(migrations=MIGRATIONS), broken)
    await store.open()
    await store.migrate()
    assert len(await store.commit(put("1"))) == 1
    with pytest.raises(Conflict):
        await store.commit(put("1"))
    assert store.faults == 4


class Shaky(MemoryStore):
    """Unreachable for the next `down` operations."""

    down = 0
    calls = 0

    def _table(self, entity: Any) -> Any:
        self.calls += 1
        if self.down:
            self.down -= 1
            raise StoreUnavailable
        return super()._table(entity)


async def shaky() -> tuple[Shaky, Retried, list[float]]:
    inner, waits = Shaky(migrations=MIGRATIONS), []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    store = Retried(inner, attempts=3, base=1.0, sleep=sleep)
    await store.open()
    await store.migrate()
    await store.commit(put("1"))
    inner.calls = 0
    return inner, store, waits


async def test_reads_are_tried_again() -> None:
    inner, store, waits = await shaky()
    inner.down = 2
    assert (await store.get(ITEMS, "acme", "1")).id == "1"
    assert (inner.calls, store.retries, len(waits)) == (3, 2, 2)
    assert waits[1] > waits[0] * 0.99
    inner.down = 1
    assert len((await store.find(asked())).records) == 1
    inner.down = 1
    assert await store.count(asked()) == 1
    inner.down = 3
    with pytest.raises(StoreUnavailable):
        await store.get(ITEMS, "acme", "1")
    assert inner.down == 0


async def test_writes_are_never_repeated() -> None:
    inner, store, waits = await shaky()
    for work in (
        lambda: store.commit(add("1")), lambda: store.append(LINES, [line("1")]), lambda: store.prune(LINES, "acme", 1),
    ):  # fmt: skip
        inner.calls, inner.down = 0, 1
        with pytest.raises(StoreUnavailable):
            await work()
        assert inner.calls == 1
    assert waits == []


async def test_other_errors_are_not_tried_again() -> None:
    _, store, waits = await shaky()
    with pytest.raises(StoreError):
        await store.find(asked("nope"))
    assert waits == []


def test_what_only_a_backend_has_shows_through() -> None:
    class Hearing(MemoryStore):
        async def listen(self) -> Any:
            yield "policy"

    for wrap in (lambda store: Observed(store, lambda *_: None), Retried):
        assert isinstance(wrap(MemoryStore()), Store)
        assert not isinstance(wrap(MemoryStore()), Listening)
        assert isinstance(wrap(Hearing()), Listening)
