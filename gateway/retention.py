"""Retention: records of calls older than a date are removed, so that what stays can still be proven whole.

The chain is cut at its old end only, never in the middle: what goes is its longest beginning in which every record is
older than the date. A call that began earlier but ended late stands further on in the chain, and stays until all before
it may go. The order is: check what will go, write the anchor, remove. Whoever is killed in between leaves old records
behind the anchor, which no check looks at and which the next cut removes.

The store removes by age (the time in a record's id), the chain is cut by number: so no more is removed than what is
older than every record that stays. What the two disagree about stays behind the anchor until a later cut.

Not closed: a record from before the cut that is drained in the very moment of the removal (an old spool that is adopted
just then) could go with the others, and would read as missing. Hence nothing younger than a day is ever removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from ..catalog.errors import StoreError, ValidationFailed
from ..catalog.ids import new_id, time_of
from ..catalog.records import ANCHORS, CALLS, ChainAnchor
from ..catalog.store import MAX_PAGE, Insert, Query, Store
from .chainverify import Walk, anchor_of, head_of

YOUNGEST_MS: Final = 24 * 3600 * 1000
"""What is younger is never removed: a call may still be open, or in a spool."""


class Cut(msgspec.Struct, frozen=True):
    """What a cut did: `pruned` records went (with `dry_run`: would go), the chain begins behind `anchor`."""

    org: str
    pruned: int
    anchor: ChainAnchor | None


async def prune(
    store: Store, org: str, before: int, *, by: str, dry_run: bool = False,
    clock: Callable[[], float] = time.time,
) -> Cut:  # fmt: skip
    """Remove an organisation's oldest records, those from before `before` (ms), and anchor what stays.

    ValidationFailed for a date that is not past; StoreError when a record that would go does not hold: a cut must not
    hide that something was changed.
    """
    now = int(clock() * 1000)
    if not 0 < before <= now - YOUNGEST_MS:
        raise ValidationFailed([("/before", "range", "Only what is older than a day can be removed.")])
    last = await anchor_of(store, org)
    if last is not None and not dry_run:
        await _remove(store, org, last.seq, last.before)  # what an earlier cut, that was killed, has left
    walk = await _walked(store, org, last, before)
    if not walk.checked or dry_run:
        return Cut(org, walk.checked, last)
    anchor = ChainAnchor(
        org=org, id=new_id("anchor"), created_at=now, updated_at=now, seq=walk.seq, hash=walk.hash, before=before,
        by=by, at=now, pruned=walk.checked,
    )  # fmt: skip
    (anchor,) = await store.commit(Insert(ANCHORS, anchor))
    await _remove(store, org, anchor.seq, before)
    return Cut(org, walk.checked, anchor)


async def _walked(store: Store, org: str, last: ChainAnchor | None, before: int) -> Walk:
    """The check of all that may go. Raises StoreError when it fails."""
    walk = Walk(await head_of(store, org), last)
    query = Query(CALLS, "chain", {"org": org}, limit=MAX_PAGE, since=walk.seq + 1, until=walk.head.seq + 1)
    while True:
        page = await store.find(query)
        for record in page.records:
            if record.at // 1000 >= before:
                return walk
            if not walk.step(record):
                problem = walk.report().problem
                raise StoreError(
                    f"Nothing was removed: the chain does not hold at number {record.seq}.",
                    hint="agenticmail-enterprise audit verify says what is wrong.",
                    problem=problem.kind if problem else "", seq=record.seq,
                )  # fmt: skip
        if not page.cursor:
            return walk
        query = msgspec.structs.replace(query, cursor=page.cursor)


async def _remove(store: Store, org: str, seq: int, before: int) -> None:
    """Remove the records up to a number, as far as they are older than all that stay."""
    limit = min(before, await _oldest_after(store, org, seq, before))
    while await store.prune(CALLS, org, limit):
        continue


async def _oldest_after(store: Store, org: str, seq: int, before: int) -> int:
    """The time (ms) of the oldest record behind a number, or `before` when none is older."""
    query = Query(CALLS, "by_org", {"org": org}, limit=MAX_PAGE)
    while True:
        page = await store.find(query)
        for record in page.records:
            if record.seq > seq or time_of(record.id) >= before:
                return time_of(record.id)
        if not page.cursor:
            return before
        query = msgspec.structs.replace(query, cursor=page.cursor)
