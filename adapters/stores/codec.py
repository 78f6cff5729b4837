"""Records to bytes and back; keys; cursors. What every backend derives from an `Entity`, derived once.

A record is stored whole as JSON. Its version is not in there: it has a column (or an attribute) of its own, because
conditional writes compare it. Key fields (those that an index matches or sorts by) are copied out beside the body.
"""

from __future__ import annotations

import binascii
import re
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from hashlib import blake2b
from operator import attrgetter
from typing import Any, Final

import msgspec

from ...catalog.errors import CursorInvalid, StoreError, ValidationFailed
from ...catalog.store import Entity, Index, Record

Clock = Callable[[], int]
"""Milliseconds since the epoch."""

MAX_KEY_BYTES: Final = 1024
"""Bytes of UTF-8 in one key: the sort key of DynamoDB; three of them fit an index entry of MySQL (3072)."""

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
CREATED: Final = Index("_created", ("org",), sort="created_at")
"""The index behind `prune` of append-only entities whose ids do not tell the time; no query can name it."""

_TIME_MAX: Final = (1 << 48) - 1
_CURSOR_MAX: Final = 8192
_MARK: Final = 8
_OWN: Final = frozenset(("org", "id", "version", "created_at", "updated_at"))
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]*")
_ALWAYS_FITS: Final = MAX_KEY_BYTES // 4

encode_json: Final = msgspec.json.Encoder().encode


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Shape:
    """What a backend needs to know of one entity. StoreError when its declaration promises what not every backend can
    hold: an index without tenant that is not `across`, a key that is no string, integer or boolean, an optional sort
    field, a unique index on an append-only entity.

    `keys` are the fields copied out of the body besides `org` and `id`, in order of first use. `kinds` has the Python
    type of each key field. `indexes` are the declared ones and, where append-only, `CREATED`, unless ids tell the time;
    `aged` is the index that `prune` goes by.
    """

    __slots__ = ("_decode", "_row", "aged", "counters", "entity", "indexes", "keys", "kinds", "name", "unique")

    def __init__(self, entity: Entity) -> None:
        self.entity = entity
        self.name = entity.name
        self.aged = _aged(entity)
        self.indexes = (*entity.indexes, CREATED) if entity.append_only and self.aged is CREATED else entity.indexes
        self.unique = tuple(index for index in self.indexes if index.unique)
        kinds = {field.name: _kind(field.type) for field in _fields(entity.type)}
        self.keys = keys_of(self.indexes)
        if not _NAME.fullmatch(entity.name):
            raise StoreError(f"Entity {entity.name!r}: names are made of a-z, 0-9 and _.")
        for index in self.indexes:
            _check_index(entity, index, kinds)
        self.kinds: dict[str, type] = {name: kinds[name][0] for name in ("org", "id", *self.keys)}
        self.counters = frozenset(name for name, kind in kinds.items() if kind == (int, False)) - _OWN
        self._decode = msgspec.json.Decoder(entity.type).decode
        self._row = attrgetter("org", "id", *self.keys)

    def until(self, before: int) -> Any:
        """The bound on the index `aged` of what was created before a time in milliseconds."""
        if self.aged is CREATED:
            return max(INT_MIN, min(INT_MAX, before))
        return f"{self.entity.time_ordered}_{max(0, min(_TIME_MAX, before)):012x}"

    def row(self, record: Record) -> tuple[Any, ...]:
        """(org, id, *keys) of a record. ValidationFailed when one of them is no key every backend can hold."""
        return self.checked_keys(self._row(record))

    def checked_keys(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same of keys that stand beside their record."""
        for value in row:
            # The common case in one look: a short ASCII string without NUL, or a small integer.
            if type(value) is str:
                if len(value) <= _ALWAYS_FITS and "\0" not in value and value.isascii():
                    continue
            elif type(value) is int and INT_MIN <= value <= INT_MAX:
                continue
            return self._checked_row(row)
        return row if row[0] and row[1] else self._checked_row(row)

    def _checked_row(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        names = ("org", "id", *self.keys)
        faults = [
            (f"/{name}", "invalid", fault)
            for name, value in zip(names, row, strict=True)
            if (fault := self._fault(name, value))
        ]
        if faults:
            raise ValidationFailed(faults, f"A key of a record of {self.name} cannot be stored.")
        return tuple(int(value) if type(value) is bool else value for value in row)

    def _fault(self, name: str, value: Any) -> str:
        if name in ("org", "id") and value in ("", None):
            return "must not be empty"
        if value is not None and not isinstance(value, self.kinds[name]):
            return f"must be {self.kinds[name].__name__}"
        return key_fault(value)

    def encode(self, record: Record) -> bytes:
        """ValidationFailed for what JSON cannot hold (a lone surrogate)."""
        try:
            return encode_json(record)
        except (UnicodeEncodeError, TypeError, ValueError, RecursionError) as error:
            raise ValidationFailed(
                [("", "invalid", str(error))], f"A record of {self.name} cannot be encoded."
            ) from error

    def decode(self, body: bytes, version: int) -> Any:
        """A new record. StoreError when the stored body no longer fits the type."""
        try:
            record = self._decode(body)
        except msgspec.DecodeError as error:
            raise StoreError(f"A stored record of {self.name} cannot be read: {error}", entity=self.name) from error
        record.version = version
        return record

    def checked(self, body: bytes, version: int) -> Any:
        """As `decode`, for a body that is about to be stored: ValidationFailed, so that nothing unreadable gets in."""
        try:
            record = self._decode(body)
        except msgspec.DecodeError as error:
            raise ValidationFailed([_located(str(error))], f"A record of {self.name} is not valid.") from error
        record.version = version
        return record


def _aged(entity: Entity) -> Index:
    if not entity.time_ordered:
        return CREATED
    for index in entity.indexes:
        if index.fields == ("org",) and index.sort in ("", "id") and not index.unique:
            return index
    raise StoreError(f"Entity {entity.name!r} is time-ordered and has no index on org alone.")


def keys_of(indexes: Sequence[Index]) -> tuple[str, ...]:
    """The key fields of some indexes besides `org` and `id`, in order of first use."""
    names = dict.fromkeys(name for index in indexes for name in (*index.fields, index.sort))
    return tuple(name for name in names if name not in ("", "org", "id"))


def order_of(index: Index) -> tuple[str, ...]:
    """The fields that put the matches of an index in one order, no two alike."""
    sort = (index.sort,) if index.sort and index.sort != "id" else ()
    return (*sort, "id", "org") if index.across else (*sort, "id")


def key_fault(value: Any) -> str:
    """Why a value can be no key, or "". The same answer for every backend, or one would hide what another refuses."""
    if isinstance(value, str):
        if "\0" in value:
            return "must not contain NUL"
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            return "is not valid Unicode"
        return f"is longer than {MAX_KEY_BYTES} bytes" if size > MAX_KEY_BYTES else ""
    if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        return "does not fit 64 bits"
    return ""


def fits(*keys: str) -> bool:
    """Whether a record with these string keys can exist at all."""
    return all(key and not key_fault(key) for key in keys)


def _fields(type_: type[Record]) -> tuple[msgspec.inspect.Field, ...]:
    info = msgspec.inspect.type_info(type_)
    if not isinstance(info, msgspec.inspect.StructType):
        raise StoreError(f"{type_!r} is no record type.")
    return info.fields


def _kind(info: msgspec.inspect.Type) -> tuple[type, bool]:
    """The Python type of a field if it can be a key (else `object`), and whether it may be None."""
    if isinstance(info, msgspec.inspect.UnionType):
        rest = [part for part in info.types if not isinstance(part, msgspec.inspect.NoneType)]
        return (_kind(rest[0])[0], True) if len(rest) == 1 < len(info.types) else (object, True)
    if isinstance(info, msgspec.inspect.LiteralType):
        found = {type(value) for value in info.values}
        return (found.pop(), False) if len(found) == 1 else (object, False)
    kinds: dict[type, type] = {
        msgspec.inspect.StrType: str, msgspec.inspect.IntType: int, msgspec.inspect.BoolType: bool,
    }  # fmt: skip
    return kinds.get(type(info), object), False


def _check_index(entity: Entity, index: Index, kinds: dict[str, tuple[type, bool]]) -> None:
    where = f"Index {index.name!r} of entity {entity.name!r}"
    if not _NAME.fullmatch(index.name):
        raise StoreError(f"{where}: names are made of a-z, 0-9 and _.")
    if not index.fields or ("org" not in index.fields[:1] and not index.across):
        raise StoreError(f"{where}: the first field is org, or the index is across=True.")
    if index.unique and entity.append_only:
        raise StoreError(f"{where}: an append-only entity has no unique index.")
    for name in filter(None, (*index.fields, index.sort)):
        if kinds.get(name, (object, False))[0] is object:
            raise StoreError(f"{where}: field {name!r} is no string, integer or boolean of the record.")
    if index.sort and kinds[index.sort][1]:
        raise StoreError(f"{where}: the sort field {index.sort!r} may be None, which has no place in an order.")


def _located(message: str) -> tuple[str, str, str]:
    """msgspec's "Expected `str` - at `$.a[0].b`" as a field error."""
    text, _, path = message.partition(" - at `$")
    pointer = "".join(f"/{part}" for part in re.split(r"[.\[\]]+", path.rstrip("`")) if part)
    return pointer, "invalid", text


# -- cursors -----------------------------------------------------------------------------------------------------
def fingerprint(*facts: Any) -> bytes:
    """16 bytes that differ when any of these facts do."""
    return blake2b(encode_json(facts), digest_size=16).digest()


def encode_cursor(query: bytes, position: Sequence[Any]) -> str:
    """A position as opaque base64url, marked with the query's fingerprint.

    The mark finds mistakes; it is no signature, because a position grants nothing: the tenant stands in the query.
    """
    body = encode_json(position)
    mark = blake2b(body, key=query, digest_size=_MARK).digest()
    return urlsafe_b64encode(mark + body).decode().rstrip("=")


def decode_cursor(query: bytes, cursor: str, kinds: Sequence[type]) -> tuple[Any, ...]:
    """The position in a cursor of this query: one value for each of `kinds`. CursorInvalid for any other cursor."""
    if len(cursor) > _CURSOR_MAX or not cursor.isascii():
        raise CursorInvalid
    try:
        raw = b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        position = msgspec.json.decode(raw[_MARK:], type=tuple[str | int, ...])
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise CursorInvalid from error
    if encode_cursor(query, position) != cursor or len(position) != len(kinds):
        raise CursorInvalid
    wanted = [int if kind is bool else kind for kind in kinds]
    if any(type(value) is not kind or key_fault(value) for value, kind in zip(position, wanted, strict=True)):
        raise CursorInvalid
    return position
