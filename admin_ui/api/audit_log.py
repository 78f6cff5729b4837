"""`/api/audit`: who changed what, who signed in, who was refused. Read and exported, never changed."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from ...catalog.errors import BadRequest, NotFound
from ...catalog.records import AUDIT, AuditEntry
from ...catalog.store import MAX_PAGE, Query
from .. import show
from ..examples import AUDIT_ID
from ..operation import Context, Download, Example, Listing, Reply, operation
from ..paging import DEFAULT_LIMIT, Count, Cursor, Limit, Moment, PageNumber, View, listing, sifted
from .history import bound

Format = Literal["csv", "json", "ndjson"]

KINDS: Final[dict[Format, str]] = {
    "csv": "text/csv; charset=utf-8", "json": "application/json", "ndjson": "application/x-ndjson",
}  # fmt: skip

COLUMNS: Final = ("at", "id", "actor", "action", "resource", "outcome", "ip", "request_id", "details")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""A cell that begins so is run by spreadsheet programs (OWASP, CSV injection)."""

INDEXED: Final = ("resource", "actor", "action", "outcome")
"""Filters with an index `by_...`, the one that leaves least first; the others are held against what it finds."""


class Filters(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All that are given must hold. `actor`: the id of a key or a person, `anonymous`, `cli`. `action`: `agent.create`,
    or all of a kind, `agent.*`. `resource`: an id. `ip`: an address. `request_id`: what one request did. `since` <=
    time < `until`, RFC 3339 with a zone."""

    actor: str | msgspec.UnsetType = msgspec.UNSET
    action: str | msgspec.UnsetType = msgspec.UNSET
    resource: str | msgspec.UnsetType = msgspec.UNSET
    outcome: Literal["ok", "refused"] | msgspec.UnsetType = msgspec.UNSET
    ip: str | msgspec.UnsetType = msgspec.UNSET
    request_id: str | msgspec.UnsetType = msgspec.UNSET
    since: Moment | msgspec.UnsetType = msgspec.UNSET
    until: Moment | msgspec.UnsetType = msgspec.UNSET
    order: Literal["newest", "oldest"] = "newest"


class AuditQuery(Filters, kw_only=True):
    """The filters, and which page: `page` and `limit`, or `cursor` and `limit`. `count=none`: `meta.total` is null."""

    page: PageNumber = 1
    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor = ""
    count: Count = "exact"


class ExportQuery(Filters, kw_only=True):
    """The filters of the list. `format`: csv, json (one array) or ndjson (one object a line)."""

    format: Format = "csv"


def _given(query: Filters) -> dict[str, str]:
    names = ("actor", "action", "resource", "outcome", "ip", "request_id")
    return {name: value for name in names if not isinstance(value := getattr(query, name), msgspec.UnsetType)}


def _view(ctx: Context, query: Filters) -> View:
    """The index that serves a query best, and what must hold besides."""
    given = _given(query)
    where, index = {"org": ctx.org}, "by_org"
    for name in INDEXED:
        if name in given and not (name == "action" and given[name].endswith("*")):
            where, index = {"org": ctx.org, name: given.pop(name)}, f"by_{name}"
            break
    return View(
        entity=AUDIT, index=index, where=where, descending=query.order == "newest",
        since=bound("audit", query.since), until=bound("audit", query.until), keep=_sieve(given), also=given,
    )  # fmt: skip


def _sieve(left: dict[str, str]) -> Callable[[AuditEntry], bool]:
    def keep(entry: AuditEntry) -> bool:
        for name, wanted in left.items():
            value: str = getattr(entry, name)
            if name == "action" and wanted.endswith("*"):
                if not value.startswith(wanted[:-1]):
                    return False
            elif value != wanted:
                return False
        return True

    return keep


@operation(
    "GET", "/api/audit", tag="audit", scope="audit:read", role="admin", query=AuditQuery, returns=show.AuditOut,
    listing=True, errors=(BadRequest,), example=Example(query={"action": "agent.create", "outcome": "ok"}),
)  # fmt: skip
async def list_audit(ctx: Context, query: AuditQuery) -> Listing:
    """Who changed what, who signed in and who was refused, newest first.

    With several filters `meta.total` is null, and a page may be short while `has_more` is true: go on with the cursor.
    """
    view = _view(ctx, query)
    return await (sifted if view.also else listing)(ctx, query, view, show.audit)


@operation(
    "GET", "/api/audit/{id}", tag="audit", scope="audit:read", role="admin", returns=show.AuditOut,
    example=Example(path={"id": AUDIT_ID}),
)  # fmt: skip
async def get_audit_entry(ctx: Context) -> Reply:
    """One entry."""
    entry: AuditEntry | None = await ctx.store.get(AUDIT, ctx.org, ctx.path["id"])
    if entry is None:
        raise NotFound(f"There is no audit entry {ctx.path['id']!r}.")
    return Reply(show.audit(entry))


@operation(
    "GET", "/api/audit/export", tag="audit", scope="audit:read", role="admin", query=ExportQuery,
    returns=tuple(KINDS.values()), download=True, audit="audit.export",
    example=Example(query={"format": "csv", "outcome": "refused", "since": "2026-01-01T00:00:00Z"}),
)  # fmt: skip
async def export_audit(ctx: Context, query: ExportQuery) -> Download:
    """The whole of it, or what the filters leave, as a file: CSV, JSON or NDJSON.

    In CSV a cell that a spreadsheet would run as a formula begins with an apostrophe. The export itself is on the
    audit.
    """
    ctx.resource = "audit"
    ctx.details |= {"format": query.format, **_given(query)}
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return Download(
        _parts(query.format, _entries(ctx, _view(ctx, query))), KINDS[query.format], f"audit-{stamp}.{query.format}"
    )


async def _entries(ctx: Context, view: View) -> AsyncIterator[list[show.AuditOut]]:
    """All that a view shows, page by page."""
    cursor = ""
    while True:
        page = await ctx.store.find(
            Query(
                view.entity, view.index, view.where, limit=MAX_PAGE, cursor=cursor, descending=view.descending,
                since=view.since, until=view.until,
            )
        )  # fmt: skip
        yield [show.audit(entry) for entry in page.records if view.keep(entry)]
        cursor = page.cursor
        if not cursor:
            return


async def _parts(kind: Format, pages: AsyncIterator[list[show.AuditOut]]) -> AsyncIterator[bytes]:
    encode = msgspec.json.encode
    first = True
    if kind == "csv":
        yield _rows([COLUMNS])
    async for entries in pages:
        if kind == "csv":
            yield _rows([_cells(entry) for entry in entries])
        elif kind == "ndjson":
            yield b"".join(encode(entry) + b"\n" for entry in entries)
        elif entries:
            yield (b"[\n" if first else b",\n") + b",\n".join(encode(entry) for entry in entries)
            first = False
    if kind == "json":
        yield b"[]\n" if first else b"\n]\n"


def _cells(entry: show.AuditOut) -> tuple[str, ...]:
    values: dict[str, Any] = msgspec.structs.asdict(entry)
    values["details"] = msgspec.json.encode(entry.details).decode()
    return tuple(_inert(str(values[name])) for name in COLUMNS)


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _rows(rows: list[tuple[str, ...]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()
