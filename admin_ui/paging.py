"""Lists: by page number while near the front, by cursor as far as anyone likes.

A cursor is the store's own position with a keyed digest over it, the organisation and the filters: one that was made
up, changed, or taken to another list is refused before the store sees it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec

from ..catalog.errors import CursorInvalid, UseCursor
from ..catalog.store import MAX_PAGE, Entity, Query
from .operation import Context, Listing

MAX_LIMIT: Final = 200
DEFAULT_LIMIT: Final = 50
MAX_OFFSET: Final = 10_000
"""Rows that may be skipped by page number: each is read. Further in, a cursor leads at no cost."""

COUNT_CAP: Final = 10_000
"""`meta.total` is exact up to this many; a longer list says this many."""

_MAC: Final = 16

Count = Literal["exact", "none"]
Cursor = Annotated[str, msgspec.Meta(max_length=4096)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)]
PageNumber = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class PageQuery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`page` and `limit`, or `cursor` and `limit`. `count=none`: do not count, `meta.total` is null."""

    page: PageNumber = 1
    limit: Limit = DEFAULT_LIMIT
    cursor: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    count: Literal["exact", "none"] = "exact"


class Paging(Protocol):
    """What lists need of a query."""

    @property
    def page(self) -> int: ...

    @property
    def limit(self) -> int: ...

    @property
    def cursor(self) -> str: ...

    @property
    def count(self) -> Literal["exact", "none"]: ...


class View(msgspec.Struct, kw_only=True):
    """Which list: an index with its equality fields; `keep` drops records that must not be shown. `also`: by
    what, where that is asked for: cursors of different questions must not mix."""

    entity: Entity
    index: str
    where: dict[str, Any]
    descending: bool = False
    since: str | None = None
    until: str | None = None
    keep: Callable[[Any], bool] = lambda record: True
    also: dict[str, str] = {}


MAX_SCAN: Final = 5_000
"""Records looked at for one page of what `sifted` keeps."""


async def sifted(ctx: Context, query: Paging, view: View, show: Callable[[Any], Any]) -> Listing:
    """One page of what `keep` leaves of a stored list, by cursor. Not counted; short where little is kept of much."""
    if query.page > 1:
        raise UseCursor("With several filters a list is read on with meta.next_cursor.")
    fingerprint = _fingerprint(ctx, view)
    cursor = _unseal(ctx, query.cursor, fingerprint) if query.cursor else ""
    kept: list[Any] = []
    seen = 0
    while True:
        # Never more than there is room for: the store's cursor stands behind a page, not inside it.
        found = await ctx.store.find(
            Query(
                view.entity, view.index, view.where, limit=query.limit - len(kept), cursor=cursor,
                descending=view.descending, since=view.since, until=view.until,
            )
        )  # fmt: skip
        kept += [show(record) for record in found.records if view.keep(record)]
        seen += len(found.records)
        cursor = found.cursor
        if not cursor or len(kept) >= query.limit or seen >= MAX_SCAN:
            break
    page = None if query.cursor else 1
    return Listing(kept, query.limit, None, page, _seal(ctx, cursor, fingerprint) if cursor else "")


async def listing(ctx: Context, query: Paging, view: View, show: Callable[[Any], Any]) -> Listing:
    """One page of a stored list, each record as `show` gives it. CursorInvalid, UseCursor."""
    fingerprint = _fingerprint(ctx, view)
    asked = Query(
        view.entity, view.index, view.where, limit=query.limit, descending=view.descending,
        since=view.since, until=view.until,
    )  # fmt: skip
    page: int | None = None
    if query.cursor:
        asked = msgspec.structs.replace(asked, cursor=_unseal(ctx, query.cursor, fingerprint))
    else:
        page = query.page
        skipped = await _skip(ctx, asked, (query.page - 1) * query.limit)
        if skipped is None:
            return Listing([], query.limit, await _count(ctx, query, asked), page)
        asked = msgspec.structs.replace(asked, cursor=skipped)
    found = await ctx.store.find(asked)
    return Listing(
        [show(record) for record in found.records if view.keep(record)],
        query.limit,
        await _count(ctx, query, asked),
        page,
        _seal(ctx, found.cursor, fingerprint) if found.cursor else "",
    )


async def _skip(ctx: Context, asked: Query, rows: int) -> str | None:
    """The store's cursor past so many rows; "" at the front, None past the end."""
    if rows > MAX_OFFSET:
        raise UseCursor(f"Pages lead {MAX_OFFSET} rows into a list; go on with meta.next_cursor.")
    cursor = ""
    while rows > 0:
        step = min(rows, MAX_PAGE)
        found = await ctx.store.find(msgspec.structs.replace(asked, limit=step, cursor=cursor))
        cursor = found.cursor
        if not cursor:
            return None
        rows -= step
    return cursor


async def _count(ctx: Context, query: Paging, asked: Query) -> int | None:
    if query.count == "none":
        return None
    return await ctx.store.count(msgspec.structs.replace(asked, cursor=""), COUNT_CAP)


def of_sequence(ctx: Context, query: PageQuery, items: Sequence[Any], name: str) -> Listing:
    """One page of a list in memory. `name` tells lists (and their filters) apart, so that cursors do not mix."""
    page: int | None = None
    if query.cursor:
        start = int(_unseal(ctx, query.cursor, name))
    else:
        page, start = query.page, (query.page - 1) * query.limit
    end = start + query.limit
    following = _seal(ctx, str(end), name) if end < len(items) else ""
    total = None if query.count == "none" else len(items)
    return Listing(list(items[start:end]), query.limit, total, page, following)


def _fingerprint(ctx: Context, view: View) -> str:
    parts = [ctx.org, view.entity.name, view.index, sorted(view.where.items()), view.descending, view.since, view.until,
             *sorted(view.also.items())]  # fmt: skip
    return msgspec.json.encode(parts).decode()


def _digest(ctx: Context, position: str, fingerprint: str) -> bytes:
    text = msgspec.json.encode([ctx.org, fingerprint, position])
    return hmac.digest(ctx.runtime.vault.derive(b"cursor"), text, hashlib.sha256)[:_MAC]


def _seal(ctx: Context, position: str, fingerprint: str) -> str:
    return base64.urlsafe_b64encode(_digest(ctx, position, fingerprint) + position.encode()).decode().rstrip("=")


def _unseal(ctx: Context, cursor: str, fingerprint: str) -> str:
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        position = data[_MAC:].decode()
    except (binascii.Error, ValueError):
        raise CursorInvalid from None
    if not hmac.compare_digest(data[:_MAC], _digest(ctx, position, fingerprint)):
        raise CursorInvalid
    return position
