"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a request that is sent again is answered again, and
done once.

A key belongs to the organisation, the credential, the method and the path. The first request that carries it leaves a
record before anything is done; whoever comes with it later gets the stored answer (`Idempotent-Replayed: true`), 409
while the first is not done, 422 with another body. A refusal (4xx) changed nothing, so its key is free again. After a
fault (5xx), or a gateway that was killed, nobody knows what was done: the key stays taken, and the sender must look.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from ..catalog.errors import BadRequest, Conflict, EnterpriseError, InFlight, KeyReused, Stale
from ..catalog.ids import PREFIXES
from ..catalog.records import REPLAYS, Replay
from ..catalog.store import Delete, Insert, Query, Replace, Store
from .operation import Context, Operation, Reply, etag

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotent-Replayed"
KEPT_MS: Final = 24 * 3600 * 1000
SWEEP_SECONDS: Final = 60.0
SWEEP_MANY: Final = 90

_KEY: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


class Replayed(msgspec.Struct):
    """An answer that was given before."""

    record: Replay


class Replays:
    """One per worker; what it knows is in the store, so that any worker may answer the second request."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._swept = 0.0

    async def run(self, ctx: Context, key: str, content: bytes, work: Callable[[], Awaitable[Any]]) -> Any:
        """What `work` gives, or `Replayed`. BadRequest, KeyReused, InFlight; whatever `work` raises."""
        if not _KEY.fullmatch(key):
            raise BadRequest(f"{HEADER} is 1 to 255 printable ASCII characters.", header=HEADER)
        claim = self._claim(ctx, key, content)
        known = await self._begin(claim)
        if known is not None:
            return _judged(known, claim)
        try:
            result = await work()
        except EnterpriseError as error:
            if error.status < 500:
                await self._forget(claim)
            raise
        await self._finish(claim, ctx.operation, result)
        await self._sweep()
        return result

    def _claim(self, ctx: Context, key: str, content: bytes) -> Replay:
        now = int(self._clock() * 1000)
        place = msgspec.json.encode([ctx.org, ctx.principal.key_id, ctx.operation.name, sorted(ctx.path.items()), key])
        return Replay(
            org=ctx.org, id=f"{PREFIXES['replay']}_{hashlib.sha256(place).hexdigest()}", created_at=now, updated_at=now,
            fingerprint=hashlib.sha256(content).hexdigest(), ends_at=now + KEPT_MS,
        )  # fmt: skip

    async def _begin(self, claim: Replay) -> Replay | None:
        """None when the key is ours from now on; else what is known of the first request with it."""
        for _ in range(3):
            try:
                await self._store.commit(Insert(REPLAYS, claim))
            except Conflict:
                known: Replay | None = await self._store.get(REPLAYS, claim.org, claim.id)
            else:
                return None
            if known is not None and known.ends_at > claim.created_at:
                return known
            if known is not None:
                await self._drop(known)
        raise InFlight

    async def _finish(self, claim: Replay, operation: Operation, result: Any) -> None:
        done = msgspec.structs.replace(claim, version=1, state="done", status=operation.status)
        if isinstance(result, Reply):
            done.body = msgspec.json.encode({"data": without(result.value, operation.once)}).decode()
            done.location = result.location
            done.etag = "" if result.version is None else etag(result.version)
        await self._store.commit(Replace(REPLAYS, done))

    async def _forget(self, claim: Replay) -> None:
        await self._drop(msgspec.structs.replace(claim, version=1))

    async def _drop(self, record: Replay) -> None:
        try:
            await self._store.commit(Delete(REPLAYS, record.org, record.id, record.version))
        except Stale:
            return  # somebody else has

    async def _sweep(self) -> None:
        """Remove what has ended, now and then."""
        now = self._clock()
        if now - self._swept < SWEEP_SECONDS:
            return
        self._swept = now
        query = Query(REPLAYS, "by_end", {"shelf": "replay"}, limit=SWEEP_MANY, until=int(now * 1000))
        for record in (await self._store.find(query)).records:
            await self._drop(record)


def _judged(known: Replay, claim: Replay) -> Replayed:
    if known.fingerprint != claim.fingerprint:
        raise KeyReused
    if known.state == "running":
        raise InFlight(
            "A request with this Idempotency-Key is being done, or was cut off: look whether it was done, and send "
            "another key to do it again.", retry_after=1,
        )  # fmt: skip
    return Replayed(known)


def without(value: Any, once: tuple[str, ...]) -> Any:
    """A value as it may be shown again: what is shown once only is null."""
    plain = msgspec.to_builtins(value)
    return {**plain, **dict.fromkeys(once)} if once and isinstance(plain, dict) else plain
