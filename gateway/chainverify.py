"""The hash chain: how a call's record becomes a link, and how a whole chain is checked.

A record's **canonical bytes** are its JSON as msgspec writes it (fields in declared order, defaults left out) with
`seq` and `prev` set, `hash`, `version` and `updated_at` empty, and `created_at` the milliseconds of `at`. Its hash is
SHA-256, in hex, of the previous record's hash (64 ASCII characters; nothing for the first) and the canonical bytes.
There is one chain for each organisation, in the order in which records were drained; `ChainHead` says where it ends,
and `ChainAnchor`, where `gateway.retention` has cut off old records, behind which number it begins.

The chain shows that something was changed by anyone who did not also recompute every later link and the head. Who can
do that has the database to himself: keep `Report.head_hash` somewhere else, and compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec.structs import FieldInfo

from ..catalog.records import ANCHORS, CALLS, CHAIN_HEADS, CallRecord, ChainAnchor, ChainHead
from ..catalog.store import MAX_PAGE, Query, Store

HEAD_ID: Final = "calls"
"""`id` of the ChainHead of an organisation's calls."""

encode: Final = msgspec.json.Encoder().encode
decode: Final = msgspec.json.Decoder(CallRecord).decode


# -- a record in two halves --------------------------------------------------------------------------------------
def _half(name: str, fields: Iterable[FieldInfo]) -> Any:
    """A struct of some fields of `CallRecord`: names, types, defaults and order are said there and nowhere else."""
    taken = [(one.name, one.type) if one.required else (one.name, one.type, one.default) for one in fields]
    return msgspec.defstruct(name, taken, module=__name__, omit_defaults=True, gc=False)


def _halves() -> tuple[list[FieldInfo], list[FieldInfo]]:
    """The fields before `outcome`, without what the store sets, and those from it to its place in the chain."""
    fields = msgspec.structs.fields(CallRecord)
    names = [field.name for field in fields]
    middle, end = names.index("outcome"), names.index("seq")
    return [field for field in fields[:middle] if field.name not in {"version", "updated_at"}], list(fields[middle:end])


if TYPE_CHECKING:

    class Intent(msgspec.Struct):
        def __init__(self, *values: Any, **named: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

    class Ending(msgspec.Struct):
        def __init__(self, *values: Any, **named: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

else:
    #: What is known of a call before it leaves.
    Intent = _half("Intent", _halves()[0])
    #: How it ended.
    Ending = _half("Ending", _halves()[1])


def joined(intent: bytes, ending: bytes) -> bytes:
    """One JSON object of two: byte for byte what encoding the whole record would give."""
    return intent[:-1] + b"," + ending[1:] if len(ending) > 2 else intent


def link(body: bytes, seq: int, prev: bytes) -> tuple[bytes, str]:
    """Canonical bytes of a record (given without its place in the chain) at a place, and its hash."""
    before = b',"prev":"%b"' % prev if prev else b""
    text = b'%b,"seq":%d%b}' % (body[:-1], seq, before)
    return text, sha256(prev + text).hexdigest()


def hash_of(record: CallRecord) -> str:
    """The hash that a stored record must have. Changes the copy it is given: what is the store's to set goes out."""
    record.hash = ""
    record.version = record.updated_at = 0
    record.created_at = record.at // 1000
    return sha256(record.prev.encode() + encode(record)).hexdigest()


# -- checking ----------------------------------------------------------------------------------------------------
Kind = Literal["altered", "missing", "inserted", "unlinked", "truncated", "head"]

MEANING: Final[dict[Kind, str]] = {
    "altered": "The record was changed after it was written: its content does not have its hash.",
    "missing": "There is no record with this number: it was removed, or its number was changed.",
    "inserted": "There is more than one record with this number.",
    "unlinked": "The record does not follow the one before it: records were reordered, or one of the two was replaced.",
    "truncated": "The chain ends before its head says: the last records were removed.",
    "head": "The last record does not have the hash that the chain's head has: one of the two was replaced.",
}


class Problem(msgspec.Struct, frozen=True):
    """The first thing that is wrong, at which number, in which record ("" when there is none)."""

    kind: Kind
    seq: int
    id: str = ""

    @property
    def sentence(self) -> str:
        return MEANING[self.kind]


class Report(msgspec.Struct, frozen=True):
    """`checked`: how many records hold. `beyond`: records after the head, which nothing vouches for (a worker that was
    killed in mid-batch leaves them on a store without large transactions; its successor overwrites them). `anchor`: the
    cut behind which the check began, None for a chain that is there from its first record."""

    org: str
    checked: int
    head_seq: int
    head_hash: str
    problem: Problem | None = None
    beyond: int = 0
    anchor: ChainAnchor | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None


async def anchor_of(store: Store, org: str) -> ChainAnchor | None:
    """Where an organisation's chain was cut last, or None. Raises StoreError."""
    page = await store.find(Query(ANCHORS, "by_seq", {"org": org}, limit=1, descending=True))
    return page.records[0] if page.records else None


async def head_of(store: Store, org: str) -> ChainHead:
    """Where an organisation's chain ends; number 0 for one without records. Raises StoreError."""
    return await store.get(CHAIN_HEADS, org, HEAD_ID) or ChainHead(org=org, id=HEAD_ID)


async def verify(
    store: Store, org: str, *, page: int = MAX_PAGE, progress: Callable[[int], None] | None = None
) -> Report:
    """Check an organisation's chain from its anchor, or its first record, to its head, one page in memory at a time.

    Records that are drained meanwhile are not looked at. `progress` is told the last number checked, once a page.
    Raises StoreError when the store cannot be read.
    """
    # The anchor before the head: a cut that is made in between must not lie behind a head that was read earlier.
    anchor = await anchor_of(store, org)
    walk = Walk(await head_of(store, org), anchor)
    query = Query(CALLS, "chain", {"org": org}, limit=page, since=walk.seq + 1)
    while True:
        found = await store.find(query)
        for record in found.records:
            if not walk.step(record):
                return await _unless_cut(store, walk, page, progress)
        if progress is not None:
            progress(walk.seq)
        if not found.cursor:
            return walk.report(ended=True)
        query = msgspec.structs.replace(query, cursor=found.cursor)


async def _unless_cut(store: Store, walk: Walk, page: int, progress: Callable[[int], None] | None) -> Report:
    """The report of a check that met a fault; a new check where the chain was cut under its feet."""
    anchor = await anchor_of(store, walk.head.org)
    if anchor is not None and anchor.seq > (walk.anchor.seq if walk.anchor else 0):
        return await verify(store, walk.head.org, page=page, progress=progress)
    return walk.report()


class Walk:
    """The state of one check: the last good link."""

    def __init__(self, head: ChainHead, anchor: ChainAnchor | None = None) -> None:
        self.head = head
        self.anchor = anchor
        self.checked = 0
        self.seq = anchor.seq if anchor else 0
        self.hash = anchor.hash if anchor else ""
        self._beyond = 0
        self._problem: Problem | None = None

    def step(self, record: CallRecord) -> bool:
        """False when this record ends the check."""
        if record.seq > self.head.seq:
            if self.seq == self.head.seq:
                self._beyond += 1
                return True
            return self._stop("missing", self.seq + 1)
        if record.seq <= self.seq:
            return self._stop("inserted", record.seq, record.id)
        if record.seq != self.seq + 1:
            return self._stop("missing", self.seq + 1)
        prev, stored = record.prev, record.hash
        if prev != self.hash:
            return self._stop("unlinked", record.seq, record.id)
        if hash_of(record) != stored:
            return self._stop("altered", record.seq, record.id)
        self.seq, self.hash = record.seq, stored
        self.checked += 1
        return True

    def _stop(self, kind: Kind, seq: int, id_: str = "") -> bool:
        self._problem = Problem(kind, seq, id_)
        return False

    def report(self, *, ended: bool = False) -> Report:
        head = self.head
        if ended and self.seq < head.seq:
            self._stop("truncated", self.seq + 1)
        elif ended and self.hash != head.hash:
            self._stop("head", self.seq)
        return Report(head.org, self.checked, head.seq, head.hash, self._problem, self._beyond, self.anchor)
