"""Whoever changes the history leaves a trace, and the check says where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from agenticmail_enterprise.adapters.stores.memory import MemoryStore
from agenticmail_enterprise.catalog.records import CALLS, CHAIN_HEADS, CallRecord, ChainHead
from agenticmail_enterprise.catalog.store import Replace
from agenticmail_enterprise.gateway.chainverify import MEANING, hash_of, verify
from agenticmail_enterprise.tests.unit.gateway_journal.conftest import Opener
from agenticmail_enterprise.tests.unit.gateway_journal.journal_kit import DENY, new_call, proven, records

COUNT = 20


@pytest.fixture
async def chain(opened: Opener, store: MemoryStore) -> list[CallRecord]:
    journal = await opened()
    for _ in range(COUNT):
        journal.record(new_call(), DENY, "denied")
    await journal.drained()
    assert await journal.stop()
    return await proven(store)


def remove(store: MemoryStore, record: CallRecord) -> None:
    store._space.tables["call"].take((record.org, record.id))


async def put(store: MemoryStore, *changed: CallRecord) -> None:
    await store.append(CALLS, changed)


def rehashed(record: CallRecord, **changes: Any) -> CallRecord:
    copy = msgspec.structs.replace(record, **changes)
    digest = hash_of(msgspec.structs.replace(copy))
    return msgspec.structs.replace(copy, hash=digest)


FIELDS: dict[str, Any] = {
    "agent": "agt_2", "key": "key_9", "door": "checks", "upstream": "other", "tool": "read", "at": 5, "effect": "allow",
    "rule": "x", "code": "ALLOWED", "reason": "because", "args_digest": "0", "args": "{}", "outcome": "ok", "status": 1,
    "error": "E", "duration_us": 9, "upstream_us": 9, "request_bytes": 9, "response_bytes": 9, "request_id": "r",
    "trace_id": "t", "flags": ("f",), "hash": "c" * 64,
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), FIELDS.items())
async def test_any_changed_field_is_found(store: MemoryStore, chain: list[CallRecord], field: str, value: Any) -> None:
    await put(store, msgspec.structs.replace(chain[7], **{field: value}))
    report = await verify(store, "org_a")
    assert report.problem
    assert (report.problem.kind, report.problem.seq, report.problem.id) == ("altered", 8, chain[7].id)
    assert (report.checked, report.ok) == (7, False)


def test_every_field_of_a_record_is_under_the_hash() -> None:
    under = set(CallRecord.__struct_fields__) - {"version", "created_at", "updated_at", "org", "id", "seq", "prev"}
    assert under == set(FIELDS)


Attack = Callable[[MemoryStore, list[CallRecord]], Any]


async def swap(store: MemoryStore, chain: list[CallRecord]) -> None:
    one, two = chain[4], chain[5]
    await put(store, msgspec.structs.replace(one, seq=6), msgspec.structs.replace(two, seq=5))


async def swap_and_rehash(store: MemoryStore, chain: list[CallRecord]) -> None:
    one = rehashed(chain[5], seq=5, prev=chain[3].hash)
    await put(store, one, rehashed(chain[4], seq=6, prev=one.hash))


async def forge(store: MemoryStore, chain: list[CallRecord]) -> None:
    await put(store, rehashed(chain[9], outcome="ok"))


async def insert(store: MemoryStore, chain: list[CallRecord]) -> None:
    await put(store, rehashed(chain[9], id="dec_zzz"))


async def delete(store: MemoryStore, chain: list[CallRecord]) -> None:
    remove(store, chain[9])


async def delete_first(store: MemoryStore, chain: list[CallRecord]) -> None:
    remove(store, chain[0])


async def delete_all(store: MemoryStore, chain: list[CallRecord]) -> None:
    for record in chain:
        remove(store, record)


async def cut(store: MemoryStore, chain: list[CallRecord]) -> None:
    for record in chain[15:]:
        remove(store, record)


async def replace_last(store: MemoryStore, chain: list[CallRecord]) -> None:
    await put(store, rehashed(chain[-1], outcome="ok"))


async def renumber(store: MemoryStore, chain: list[CallRecord]) -> None:
    await put(store, rehashed(chain[9], seq=500))


async def move_head(store: MemoryStore, chain: list[CallRecord]) -> None:
    head: ChainHead = await store.get(CHAIN_HEADS, "org_a", "calls")
    head.hash = "d" * 64
    await store.commit(Replace(CHAIN_HEADS, head))


@pytest.mark.parametrize(
    ("attack", "kind", "seq"),
    [
        (swap, "unlinked", 5), (swap_and_rehash, "unlinked", 7), (forge, "unlinked", 11), (insert, "inserted", 10),
        (delete, "missing", 10), (delete_first, "missing", 1), (delete_all, "truncated", 1), (cut, "truncated", 16),
        (replace_last, "head", 20), (renumber, "missing", 10), (move_head, "head", 20),
    ],
)  # fmt: skip
@pytest.mark.parametrize("page", [1, 7, 500])
async def test_an_attack_is_found_and_named(
    store: MemoryStore, chain: list[CallRecord], attack: Attack, kind: str, seq: int, page: int
) -> None:
    await attack(store, chain)
    report = await verify(store, "org_a", page=page)
    assert report.problem
    assert (report.problem.kind, report.problem.seq) == (kind, seq)
    assert report.problem.sentence == MEANING[report.problem.kind]
    # Those before it hold; of two with one number the first does too, and all of them where the head is wrong.
    assert report.checked == (seq if kind in ("head", "inserted") else seq - 1)
    assert not report.ok


async def test_a_whole_chain_holds_page_by_page(store: MemoryStore, chain: list[CallRecord]) -> None:
    told: list[int] = []
    report = await verify(store, "org_a", page=6, progress=told.append)
    assert report.ok
    assert (report.checked, report.head_seq, report.head_hash) == (COUNT, COUNT, chain[-1].hash)
    assert told == [6, 12, 18, 20]


async def test_an_organisation_without_calls_is_in_order(store: MemoryStore) -> None:
    report = await verify(store, "org_none")
    assert (report.ok, report.checked, report.head_hash) == (True, 0, "")


async def test_rows_beyond_the_head_are_counted_and_vouch_for_nothing(
    store: MemoryStore, chain: list[CallRecord]
) -> None:
    await put(store, rehashed(chain[-1], id="dec_zzz", seq=21, prev=chain[-1].hash))
    report = await verify(store, "org_a")
    assert (report.ok, report.checked, report.beyond) == (True, COUNT, 1)
    assert len(await records(store)) == COUNT + 1


async def test_what_is_the_stores_to_set_is_not_under_the_hash(store: MemoryStore, chain: list[CallRecord]) -> None:
    await put(store, msgspec.structs.replace(chain[3], updated_at=77))
    assert (await verify(store, "org_a")).ok
