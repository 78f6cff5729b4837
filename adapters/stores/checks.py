"""What is refused before any driver is asked, and in the same words everywhere; what is left is ready to run.

A query becomes a `Plan`, a write becomes a `Prepared`: stamped, encoded, validated, its keys copied out. All of it is
done on the caller's turn, so that a record changed after the call returns to the loop changes nothing stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ...catalog.errors import BadRequest, LimitReached, RecordTooLarge, StoreError, UndeclaredQuery, ValidationFailed
from ...catalog.store import (
    MAX_BATCH,
    MAX_PAGE,
    Delete,
    Encoded,
    Entity,
    Increment,
    Index,
    Insert,
    Query,
    Record,
    Replace,
    Write,
)
from .codec import INT_MAX, INT_MIN, Shape, decode_cursor, encode_cursor, fingerprint, fits, key_fault, order_of
from .schema import Schema

MAX_RECORD_BYTES: Final = 16 * 1024 * 1024
"""The largest encoded record of the backends that have no limit of their own: MongoDB's document, MySQL's packet."""


# -- queries -----------------------------------------------------------------------------------------------------
class Plan(msgspec.Struct, frozen=True):
    """A query that an index serves. `values` are those of `index.fields`, in order; `order` names the fields of a
    position; `after` is the cursor's position or (). `nothing`: no record can match (a value that no key can have)."""

    shape: Shape
    index: Index
    values: tuple[Any, ...] = ()
    order: tuple[str, ...] = ()
    since: Any = None
    until: Any = None
    after: tuple[Any, ...] = ()
    descending: bool = False
    limit: int = 0
    mark: bytes = b""
    nothing: bool = False

    def cursor(self, row: Sequence[Any]) -> str:
        """The cursor behind a record whose `Shape.row` is given."""
        named = dict(zip(("org", "id", *self.shape.keys), row, strict=True))
        return encode_cursor(self.mark, [named[name] for name in self.order])


def plan(schema: Schema, query: Query) -> Plan:
    """UndeclaredQuery when no index serves the query, BadRequest for its limit, CursorInvalid for its cursor."""
    shape = schema.shape(query.entity)
    index = query.entity.index(query.index)
    where = query.where
    if where.keys() != set(index.fields):
        raise _undeclared(query, f"takes exactly {', '.join(index.fields)}, not {', '.join(where) or 'nothing'}")
    if not 1 <= query.limit <= MAX_PAGE:
        raise BadRequest(f"limit must be between 1 and {MAX_PAGE}.", limit=query.limit)
    sort = index.sort or "id"
    for name, value in (*where.items(), ("since", query.since), ("until", query.until)):
        kind = shape.kinds[name if name in where else sort]
        if not _is(value, kind) and (name in where or value is not None):
            raise _undeclared(query, f"{name} must be {kind.__name__}, not {type(value).__name__}")
    for bound in (query.since, query.until):
        if bound is not None and (fault := key_fault(bound)):
            raise BadRequest(f"A bound of the query {fault}.")
    values = tuple(int(value) if type(value) is bool else value for value in (where[name] for name in index.fields))
    if any(key_fault(value) or (value == "" and (index.unique or name == "org")) for name, value in where.items()):
        return Plan(shape, index, nothing=True)
    order = order_of(index)
    mark = fingerprint(shape.name, index.name, values, query.descending, query.since, query.until)
    after = decode_cursor(mark, query.cursor, [shape.kinds[name] for name in order]) if query.cursor else ()
    return Plan(shape, index, values, order, query.since, query.until, after, query.descending, query.limit, mark)


def _is(value: Any, kind: type) -> bool:
    """Whether a query's value is of a key's kind; an integer is no boolean, nor the other way round."""
    return isinstance(value, kind) and (kind is bool) is isinstance(value, bool)


def _undeclared(query: Query, what: str) -> UndeclaredQuery:
    message = f"Index {query.index!r} of {query.entity.name} {what}."
    return UndeclaredQuery(message, entity=query.entity.name, index=query.index)


def positive(name: str, value: int) -> int:
    """BadRequest unless it is at least 1."""
    if value < 1:
        raise BadRequest(f"{name} must be at least 1.")
    return bounded(value)


def bounded(value: int) -> int:
    """The nearest integer of 64 bits."""
    return max(INT_MIN, min(INT_MAX, value))


# -- writes ------------------------------------------------------------------------------------------------------
class Stored(msgspec.Struct, frozen=True):
    """A record as it goes into the store: its keys, body and version, and itself as it will be read again."""

    shape: Shape
    row: tuple[Any, ...]
    body: bytes
    version: int
    record: Any


class Inserting(msgspec.Struct, frozen=True):
    new: Stored


class Replacing(msgspec.Struct, frozen=True):
    """`new.version` is one more than the version that must be stored now."""

    new: Stored


class Deleting(msgspec.Struct, frozen=True):
    shape: Shape
    org: str
    id: str
    version: int | None


class Adding(msgspec.Struct, frozen=True):
    shape: Shape
    write: Increment
    now: int
    limit: int

    def first(self) -> tuple[Stored, int]:
        """The record that an increment of an absent one makes, and its counter. LimitReached as in `next`."""
        shape, write = self.shape, self.write
        return self.next(shape.entity.type(org=write.org, id=write.id, created_at=self.now), 1)

    def next(self, record: Any, version: int) -> tuple[Stored, int]:
        """What is to be stored in place of `record` (which is changed), and its counter."""
        write = self.write
        value = getattr(record, write.field) + write.by
        passed = (write.by > 0 and write.ceiling is not None and value > write.ceiling) or (
            write.by < 0 and write.floor is not None and value < write.floor
        )
        if passed or not INT_MIN <= value <= INT_MAX:
            raise LimitReached(entity=self.shape.name, id=write.id, field=write.field)
        setattr(record, write.field, value)
        record.version, record.updated_at = 0, self.now
        return stored(self.shape, record, version, self.limit), value


Prepared = Inserting | Replacing | Deleting | Adding


def stored(shape: Shape, record: Record, version: int, limit: int) -> Stored:
    """Encode a record and prove that it can be read again. ValidationFailed, RecordTooLarge."""
    body = sized(shape, record.id, shape.encode(record), limit)
    again = shape.checked(body, version)
    return Stored(shape, shape.row(again), body, version, again)


def sized(shape: Shape, id: str, body: bytes, limit: int) -> bytes:  # noqa: A002 - the field's own name
    if len(body) > limit:
        message = f"A record of {shape.name} has {len(body)} bytes; this store accepts {limit}."
        raise RecordTooLarge(message, entity=shape.name, id=id, size=len(body), limit=limit)
    return body


def prepare(schema: Schema, writes: Sequence[Write], now: int, limit: int) -> list[Prepared]:
    """Writes ready to run at `now` (ms). StoreError for more than MAX_BATCH, for two of one record and for what an
    append-only entity does not allow; ValidationFailed and RecordTooLarge for the records."""
    if len(writes) > MAX_BATCH:
        raise StoreError(f"A commit has at most {MAX_BATCH} writes, not {len(writes)}.")
    seen = set()
    ready: list[Prepared] = []
    for write in writes:
        shape = schema.shape(write.entity)
        if shape.entity.append_only and not isinstance(write, Insert):
            raise StoreError(f"{shape.name} is append-only: {type(write).__name__} is refused.", entity=shape.name)
        one = _prepared(shape, write, now, limit)
        address = (shape.name, *_address(write))
        if address in seen:
            raise StoreError(f"A commit writes each record once; {shape.name} {address[2]!r} came twice.")
        seen.add(address)
        ready.append(one)
    return ready


def _address(write: Write) -> tuple[str, str]:
    if isinstance(write, Insert | Replace):
        return write.record.org, write.record.id
    return write.org, write.id


def _prepared(shape: Shape, write: Write, now: int, limit: int) -> Prepared:
    if isinstance(write, Insert):
        return Inserting(stored(shape, _stamped(shape, write.record, now), 1, limit))
    if isinstance(write, Replace):
        after = _possible(write.record.version) + 1
        return Replacing(stored(shape, _stamped(shape, write.record, now), after, limit))
    if not fits(write.org, write.id):
        raise ValidationFailed(
            [("/id", "invalid", "is no key of a record")], f"No record of {shape.name} has this key."
        )
    if isinstance(write, Delete):
        return Deleting(shape, write.org, write.id, None if write.version is None else _possible(write.version))
    if write.field not in shape.counters:
        raise StoreError(f"{shape.name}.{write.field} is no counter.", entity=shape.name, field=write.field)
    return Adding(shape, write, now, limit)


def _possible(version: int) -> int:
    """The version, or 0, which no stored record has, for one that no driver could bind."""
    return version if 0 < version < INT_MAX else 0


def _stamped(shape: Shape, record: Record, now: int) -> Record:
    typed(shape, record)
    return msgspec.structs.replace(record, version=0, created_at=record.created_at or now, updated_at=now)


def typed(shape: Shape, record: Record) -> None:
    if type(record) is not shape.entity.type:
        raise StoreError(f"{shape.name} holds {shape.entity.type.__name__}, not {type(record).__name__}.")


# -- appends -----------------------------------------------------------------------------------------------------
def appendable(schema: Schema, entity: Entity) -> Shape:
    """StoreError when the entity is not append-only: what may be overwritten by id must never have versions."""
    shape = schema.shape(entity)
    if not shape.entity.append_only:
        raise StoreError(f"{shape.name} is not append-only: use commit.", entity=shape.name)
    return shape


def appended(shape: Shape, record: Record | Encoded, now: int, limit: int) -> tuple[tuple[Any, ...], bytes]:
    """The keys and body of a record to append. Kept as it is (it may be hashed); only a `created_at` of 0 is set, as
    `prune` needs it. Types are trusted here: reading each one back would double the cost of the journal."""
    if type(record) is Encoded:
        return shape.checked_keys(record.keys), sized(shape, record.keys[1], record.body, limit)
    assert isinstance(record, Record)  # noqa: S101 - the other half of the union
    if type(record) is not shape.entity.type:
        typed(shape, record)
    if not record.created_at:
        record = msgspec.structs.replace(record, created_at=now)
    return shape.row(record), sized(shape, record.id, shape.encode(record), limit)
