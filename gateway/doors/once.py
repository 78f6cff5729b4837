"""Calls that must not run twice: of a tool that is marked so, or with an `Idempotency-Key`.

The first one is written down before it leaves, and runs over a conversation of the gateway's own; its twins wait for
it, and whoever repeats it inside the window gets the stored result, marked as a repeat. What may have run is not run
again: when nobody knows how it ended, a repeat is told so. What was surely not sent may be tried again at once.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import msgspec
from aiohttp import web

from ...catalog.approvals import ONCES, Once
from ...catalog.calls import Call, Verdict
from ...catalog.errors import Conflict, EnterpriseError, JournalFull, Stale, StoreError, UpstreamError
from ...catalog.records import CALLS, CallRecord
from ...catalog.store import Delete, Insert, Query, Replace, Store
from ..approvals.canonical import NotCanonical, canonical, digest_of
from ..approvals.form import MAX_RESULT
from ..approvals.runner import METHODS, Ready
from ..mcpclient import Link
from ..proxy import Proxy
from ..settings import ApprovalSettings
from ..upstreams import Upstreams
from ..vault import Aad, Vault
from ..wire import json_response
from .held import said_no
from .jsonrpc import encode
from .mcpfacts import Subject
from .refusals import DECISION_META, decision_meta, denied_body

LOOK_SECONDS: Final = 0.1
SHARE: Final = 0.8
"""Of an open record's time the call may take."""

ATTEMPTS: Final = 6


class Unsendable(EnterpriseError):
    """The call could not be made; nothing was sent."""

    code, status = "NOT_SENT", 502


class OnceDoor:
    """One per worker."""

    def __init__(
        self, store: Store, vault: Vault, proxy: Proxy, upstreams: Upstreams, settings: ApprovalSettings
    ) -> None:
        self._store = store
        self._vault = vault
        self._proxy = proxy
        self._upstreams = upstreams
        self._settings = settings

    async def answer(
        self, visit: Any, message: dict[str, Any], subject: Subject, name: str, call: Call, verdict: Verdict
    ) -> web.StreamResponse:
        """The answer to an allowed call that must not run twice. Raises ConnectionError, CancelledError."""
        rpc_id = message["id"]
        try:
            record, mine = await self._claim(call)
            if mine:
                # Seen to its end whether the client stays or not: its result is for the repeats too.
                work = asyncio.ensure_future(self._run(call, verdict, subject, name, record, visit.started))
                work.add_done_callback(lambda done: done.cancelled() or done.exception())
                record = await asyncio.shield(work)
            else:
                if record.arguments != _arguments(call):
                    return await self._refuse(visit, rpc_id, subject, call)
                record = await self._wait(record, visit.started)
                replay = Verdict("allow", "idempotency:replay", "ALLOWED", "A repeat.", 0.0, ("replayed",))
                await self._proxy.note(call, replay, "ok" if record.state == "done" else "held", 0, visit.started)
        except (EnterpriseError, NotCanonical) as error:
            said = error.message if isinstance(error, EnterpriseError) else f"{error}."
            text = f"This call must not run twice, and could not be made: {said} [decision {call.id}]"
            return json_response(200, said_no(subject, rpc_id, call.id, "NOT_SENT", text, visit.modern))
        return json_response(200, self._body(subject, rpc_id, call.id, record, visit.modern, repeat=not mine))

    # -- who runs it -------------------------------------------------------------------------------------------------
    async def _claim(self, call: Call) -> tuple[Once, bool]:
        """The record of this call, and whether it is this caller's to run. StoreError, NotCanonical."""
        who = call.principal
        arguments = _arguments(call)
        what = ["key", call.idempotency] if call.idempotency else ["arguments", arguments]
        once_id = digest_of(canonical([who.agent_id, call.tool, *what]))
        for _ in range(ATTEMPTS):
            now = _now()
            fresh = Once(
                org=who.org, id=once_id, agent=who.agent_id, tool=call.tool, arguments=arguments, call_id=call.id,
                until=now + int(self._settings.lease * 1000), created_at=now, updated_at=now,
            )  # fmt: skip
            try:
                return (await self._store.commit(Insert(ONCES, fresh)))[0], True
            except Conflict:
                known: Once | None = await self._store.get(ONCES, who.org, once_id)
            if known is None:
                continue
            if known.until > now:
                return known, False
            try:
                if known.state == "open":
                    return await self.resolve(known, now), False
                await self._store.commit(Delete(ONCES, who.org, once_id, known.version))
            except Stale:
                continue
        raise Stale

    async def resolve(self, record: Once, now: int) -> Once:
        """What can be said of a call whose worker died: from the journal, or that nobody knows. Stale, StoreError."""
        found: CallRecord | None = await self._store.get(CALLS, record.org, record.call_id)
        known = found.outcome if found is not None else "unknown"
        record.outcome = known if known in {"ok", "error", "not_sent"} else "unknown"
        record.state = "failed" if known == "not_sent" else "done"
        record.until = now if record.state == "failed" else now + self._settings.idempotency * 1000
        return (await self._store.commit(Replace(ONCES, record)))[0]  # type: ignore[no-any-return]

    async def _wait(self, record: Once, started: int) -> Once:
        """The record once its call has ended, or as it stands when the client would give up."""
        ends = started / 1e9 + self._settings.hold_timeout
        while record.state == "open" and time.perf_counter() < ends:
            await asyncio.sleep(LOOK_SECONDS)
            again: Once | None = await self._store.get(ONCES, record.org, record.id)
            if again is None:
                raise Unsendable("It was tried just now and could not be sent; try again.")
            record = again
        return record

    # -- running it --------------------------------------------------------------------------------------------------
    async def _run(self, call: Call, verdict: Verdict, subject: Subject, name: str, record: Once, started: int) -> Once:
        limit = self._settings.lease * SHARE
        try:
            prepared = await self._prepare(call, verdict, subject, name, started, limit)
        except BaseException:
            await self._store.commit(Delete(ONCES, record.org, record.id))
            raise
        try:
            async with asyncio.timeout(limit):
                ended = await prepared.send()
        except TimeoutError:
            record.outcome = "unknown"
        else:
            if ended.state == "not_executed":
                await self._store.commit(Delete(ONCES, record.org, record.id))
                raise Unsendable(ended.error)
            record.outcome = ended.outcome if ended.state == "executed" else "unknown"
            if ended.answer is not None:
                text = msgspec.json.encode(ended.answer).decode()
                if len(text) <= MAX_RESULT:
                    record.sealed_result = self._vault.seal(text, _aad(record))
        record.state = "done"
        record.until = _now() + self._settings.idempotency * 1000
        try:
            return (await self._store.commit(Replace(ONCES, record)))[0]  # type: ignore[no-any-return]
        except StoreError:
            return record  # this caller gets its answer; a repeat is told what the journal knows

    async def _prepare(
        self, call: Call, verdict: Verdict, subject: Subject, name: str, started: int, limit: float
    ) -> Ready:
        live = self._upstreams.get(call.principal.org, call.upstream)
        if live is None:
            raise Unsendable("Its server is no longer there.")
        link: Link = live.link()
        try:
            async with asyncio.timeout(limit):
                await link.open()
            passed = await self._proxy.open(call, verdict, len(call.raw), started)
        except (UpstreamError, JournalFull) as error:
            raise Unsendable(error.message) from None
        except TimeoutError:
            raise Unsendable("Its server could not be reached in time.") from None
        params = {"uri": name} if subject.field == "uri" else {"name": name, "arguments": call.args}
        return Ready(self._proxy, passed, link, METHODS[subject.kind], params, call.idempotency)

    # -- answering ---------------------------------------------------------------------------------------------------
    async def _refuse(self, visit: Any, rpc_id: Any, subject: Subject, call: Call) -> web.StreamResponse:
        """A key that was used for another call: which of the two is meant is not for us to guess."""
        reason = "This Idempotency-Key was used with other arguments; use a new one for another call."
        verdict = Verdict("deny", "idempotency:key", "BAD_REQUEST", reason)
        verdict = await self._proxy.refuse(call, verdict, 0, visit.started)
        return json_response(200, denied_body(subject, rpc_id, call.id, verdict, visit.modern))

    def _body(self, subject: Subject, rpc_id: Any, call_id: str, record: Once, modern: bool, *, repeat: bool) -> bytes:
        about = {"repeat": repeat, "first_decision_id": record.call_id, "state": record.state}
        meta = {**decision_meta(call_id, "allow", "ALLOWED"), "idempotency": about}
        answer: dict[str, Any] = {}
        if record.sealed_result:
            answer = msgspec.json.decode(self._vault.open(record.sealed_result, _aad(record)))
        if "error" in answer:
            return encode({"jsonrpc": "2.0", "id": rpc_id, "error": answer["error"]})
        if "result" in answer:
            result = dict(answer["result"])
            if modern:
                result.setdefault("resultType", "complete")
            known = result.get("_meta")
            result["_meta"] = {**(known if isinstance(known, dict) else {}), DECISION_META: meta}
            return encode({"jsonrpc": "2.0", "id": rpc_id, "result": result})
        if record.state == "open":
            text = "The same call is running already; make it again later to get its result. It is not made twice."
        elif record.outcome == "unknown":
            text = "This call may have run, or not; it is not made again. Find out before you ask for it anew."
        elif record.outcome == "not_sent":
            text = "The call was not sent; make it again."
        else:
            text = "This call ran, and its result was not kept. It is not made again."
        return said_no(subject, rpc_id, call_id, "ALLOWED", f"{text} [decision {call_id}]", modern)

    # -- chores ------------------------------------------------------------------------------------------------------
    async def sweep(self) -> None:
        """Forget what is over, and say what can be said of calls whose worker died. StoreError."""
        now = _now()
        page = await self._store.find(Query(ONCES, "due", {"watch": "on"}, limit=100, until=now + 1))
        for record in page.records:
            try:
                if record.state == "open":
                    await self.resolve(record, now)
                else:
                    await self._store.commit(Delete(ONCES, record.org, record.id, record.version))
            except Stale:
                continue  # another worker did it


def _arguments(call: Call) -> str:
    return digest_of(canonical(call.args))


def _aad(record: Once) -> Aad:
    return (record.org, "once", "result", record.id)


def _now() -> int:
    return int(time.time() * 1000)
