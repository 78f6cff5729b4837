"""The hash chain: how a call's record becomes a link, and how a whole chain is checked.

A record's **canonical bytes** are its JSON as msgspec writes it (fields in declared order, defaults left out) with
`seq` and `prev` set, `hash`, `version` and `updated_at` empty, and `created_at` the milliseconds of `at`. Its hash is
SHA-256, in hex, of the previous record's hash (64 ASCII characters; nothing for the first) and the canonical bytes.
There is one chain for each organisation, in the order in which records were drained; `ChainHead` says where it ends.

The chain shows that something was changed by anyone who did not also recompute every later link and the head. Who can
do that has the database to himself: keep `Report.head_hash` somewhere else, and compare.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Final, Literal

import msgspec

from ..catalog.records import CALLS, CHAIN_HEADS, CallRecord, ChainHead
from ..catalog.store import MAX_PAGE, Query, Store

HEAD_ID: Final = "calls"
"""`id` of the ChainHead of an organisation's calls."""

encode: Final = msgspec.json.Encoder().encode
decode: Final = msgspec.json.Decoder(CallRecord).decode


# -- a record in two halves --------------------------------------------------------------------------------------
class Intent(msgspec.Struct, omit_defaults=True, gc=False):
    """What is known of a call before it leaves: the first fields of `CallRecord`, in its order, with its defaults."""

    org: str
    id: str
    created_at: int = 0
    agent: str = ""
    key: str = ""
    door: str = "mcp"
    upstream: str = ""
    tool: str = ""
    at: int = 0
    effect: str = "deny"
    rule: str = ""
    code: str = ""
    reason: str = ""
    args_digest: str = ""
    args: str = ""
    request_bytes: int = 0
    request_id: str = ""
    trace_id: str = ""


class Ending(msgspec.Struct, omit_defaults=True, gc=False):
    """How it ended: the fields that follow."""

    outcome: str = "unknown"
    status: int = 0
    error: str = ""
    duration_us: int = 0
    upstream_us: int = 0
    response_bytes: int = 0
    flags: tuple[str, ...] = ()


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
    killed in mid-batch leaves them on a store without large transactions; its successor overwrites them)."""

    org: str
    checked: int
    head_seq: int
    head_hash: str
    problem: Problem | None = None
    beyond: int = 0

    @property
    def ok(self) -> bool:
        return self.problem is None


async def verify(
    store: Store, org: str, *, page: int = MAX_PAGE, progress: Callable[[int], None] | None = None
) -> Report:
    """Check an organisation's chain from its first record to its head, one page in memory at a time.

    Records that are drained meanwhile are not looked at. `progress` is told the last number checked, once a page.
    Raises StoreError when the store cannot be read.
    """
    head = await store.get(CHAIN_HEADS, org, HEAD_ID) or ChainHead(org=org, id=HEAD_ID)
    walk = _Walk(head)
    query = Query(CALLS, "chain", {"org": org}, limit=page)
    while True:
        found = await store.find(query)
        for record in found.records:
            if not walk.step(record):
                return walk.report()
        if progress is not None:
            progress(walk.seq)
        if not found.cursor:
            return walk.report(ended=True)
        query = msgspec.structs.replace(query, cursor=found.cursor)


class _Walk:
    """The state of one check: the last good link."""

    def __init__(self, head: ChainHead) -> None:
        self._head = head
        self.seq = 0
        self._hash = ""
        self._beyond = 0
        self._problem: Problem | None = None

    def step(self, record: CallRecord) -> bool:
        """False when this record ends the check."""
        if record.seq > self._head.seq:
            if self.seq == self._head.seq:
                self._beyond += 1
                return True
            return self._stop("missing", self.seq + 1)
        if record.seq <= self.seq:
            return self._stop("inserted", record.seq, record.id)
        if record.seq != self.seq + 1:
            return self._stop("missing", self.seq + 1)
        prev, stored = record.prev, record.hash
        if prev != self._hash:
            return self._stop("unlinked", record.seq, record.id)
        if hash_of(record) != stored:
            return self._stop("altered", record.seq, record.id)
        self.seq, self._hash = record.seq, stored
        return True

    def _stop(self, kind: Kind, seq: int, id_: str = "") -> bool:
        self._problem = Problem(kind, seq, id_)
        return False

    def report(self, *, ended: bool = False) -> Report:
        head = self._head
        if ended and self.seq < head.seq:
            self._stop("truncated", self.seq + 1)
        elif ended and self._hash != head.hash:
            self._stop("head", self.seq)
        return Report(head.org, self.seq, head.seq, head.hash, self._problem, self._beyond)
