"""The checks door: for tools that an agent runs in its own process. Same chain, same journal, nothing forwarded.

`POST /api/engine/check-permission` answers one check `{tool, args?, agent_id?, explain?}` or a batch `{checks: [...]}`.
An allowed check opens a record that `POST /api/engine/tool-calls` closes with `{decision_id, outcome, ...}`; one
that is never reported reads `unknown`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from typing import Annotated, Any, Final, Literal

import msgspec
from aiohttp import web

from ...catalog.calls import Call, Principal, Verdict
from ...catalog.errors import (
    BodyTooLarge,
    Conflict,
    EnterpriseError,
    InvalidJson,
    JournalFull,
    MethodNotAllowed,
    NotFound,
    Stale,
    ValidationFailed,
)
from ...catalog.ids import new_id
from ...catalog.records import CHECK_REPORTS, CheckReport, Outcome
from ...catalog.store import Delete, Insert, Query, Store
from ..drafts import Draft
from ..identity import Identity
from ..journal import Ticket
from ..lane import Known, Lane, LaneRequest
from ..proxy import JOURNAL_FULL, Proxy
from ..wire import json_response, read_body, whole_response
from .headers import check_body_headers, request_id, scan, trace
from .held import Held
from .jsonrpc import ODD, RpcError, decode, encode
from .turnaway import Turnaway

MAX_BATCH: Final = 100
MAX_OPEN: Final = 20_000
"""Checks waiting for their outcome report, per worker; the oldest beyond it are closed as `unknown`."""

MAX_DRAFTS: Final = 10_000
CHECK_PATH: Final = "/api/engine/check-permission"
OPEN_SECONDS: Final = 3600.0
HAND_OVER_SECONDS: Final = 0.1
HAND_OVER_LOOKS: Final = 20
DECISION_ID: Final = re.compile(r"dec_[0-9a-f]{32}")

ToolName = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class Check(msgspec.Struct, forbid_unknown_fields=True):
    """One question. `args` are the arguments the agent is about to use."""

    tool: ToolName
    args: dict[str, Any] = {}


_check: Final = msgspec.json.Decoder(Check).decode
_encode: Final = msgspec.json.Encoder().encode
_ARGS: Final = b',"args":'


class Batch(msgspec.Struct, forbid_unknown_fields=True):
    checks: Annotated[list[Check], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """How a checked call ended. `duration_ms` as the agent measured it."""

    decision_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    outcome: Literal["ok", "error", "timeout", "cancelled"] = "ok"
    error: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    duration_ms: Annotated[float, msgspec.Meta(ge=0, le=86_400_000)] = 0.0


class _Open:
    __slots__ = ("agent", "at", "org", "ticket")

    def __init__(self, principal: Principal, ticket: Ticket, at: float) -> None:
        self.org = principal.org
        self.agent = principal.agent_id
        self.ticket = ticket
        self.at = at


class ChecksDoor:
    """One per worker. A report that reaches another worker than the one that decided is handed over through the store
    (`siblings`: whether there are others)."""

    def __init__(
        self,
        proxy: Proxy,
        identity: Identity,
        turnaway: Turnaway,
        body_limit: int,
        store: Store,
        *,
        siblings: bool = False,
    ) -> None:
        self._store = store
        self._siblings = siblings
        self._proxy = proxy
        self._identity = identity
        self._turnaway = turnaway
        self._body_limit = body_limit
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self.held: Held | None = None
        self._drafts: dict[tuple[str, str], Draft] = {}

    async def check(self, request: web.BaseRequest) -> web.StreamResponse:
        """`POST /api/engine/check-permission`."""
        started = time.perf_counter_ns()
        principal: Principal | None = None
        try:
            noted, principal = await self._enter(request)
            value = await self._body(request, noted)
            if isinstance(value, dict) and "checks" in value:
                batch = _convert(value, Batch)
                answers = [await self._one(request, noted, principal, check, started) for check in batch.checks]
                return json_response(200, encode({"data": answers, "meta": {"total": len(answers)}}))
            answer = await self._one(request, noted, principal, _convert(value, Check), started)
            return json_response(200, encode({"data": answer}))
        except EnterpriseError as error:
            return await self._turnaway.refuse(request, error, principal, "", started)

    async def report(self, request: web.BaseRequest) -> web.StreamResponse:
        """`POST /api/engine/tool-calls`."""
        started = time.perf_counter_ns()
        principal: Principal | None = None
        try:
            noted, principal = await self._enter(request)
            report = _convert(await self._body(request, noted), Report)
            if not self._take(principal.org, principal.agent_id, report) and not await self._hand_over(
                principal, report
            ):
                raise NotFound("There is no open decision of this agent with that id.")
            return json_response(200, encode({"data": {"decision_id": report.decision_id, "outcome": report.outcome}}))
        except EnterpriseError as error:
            return await self._turnaway.refuse(request, error, principal, "", started)

    async def _enter(self, request: web.BaseRequest) -> tuple[dict[bytes, bytes], Principal]:
        """Who asks. A head that a fast lane has seen before was read then, and counts while no policy changed since."""
        known = getattr(request, "known", None)
        if known is not None and known.door is not None:
            generation, noted, principal = known.door
            if generation == self._identity.generation and not principal.watched(time.time()):
                return noted, principal
        generation = self._identity.generation
        noted = scan(request.raw_headers).noted
        principal = await self._turnaway.identify(self._identity, noted, request)
        if known is not None:
            known.door = (generation, noted, principal)
            if request.raw_path == CHECK_PATH:
                known.straight = self.straight
        return noted, principal

    def _take(self, org: str, agent: str, report: Report) -> bool:
        """Close the decision a report is about; False when it is not open here, or another agent's."""
        opened = self._open.get(report.decision_id)
        if opened is None or (opened.org, opened.agent) != (org, agent):
            return False
        del self._open[report.decision_id]
        self._close(opened.ticket, report.outcome, report.error, int(report.duration_ms * 1000))
        return True

    async def _hand_over(self, principal: Principal, report: Report) -> bool:
        """Leave the report for the worker that decided, and wait until it was taken. Raises StoreError."""
        if not self._siblings or DECISION_ID.fullmatch(report.decision_id) is None:
            return False
        left = CheckReport(
            org=principal.org, id=report.decision_id, agent=principal.agent_id, outcome=report.outcome,
            error=report.error, duration_us=int(report.duration_ms * 1000),
        )  # fmt: skip
        try:
            await self._store.commit(Insert(CHECK_REPORTS, left))
        except Conflict:
            return False
        for _ in range(HAND_OVER_LOOKS):
            await asyncio.sleep(HAND_OVER_SECONDS)
            if await self._store.get(CHECK_REPORTS, principal.org, report.decision_id) is None:
                return True
        try:
            await self._store.commit(Delete(CHECK_REPORTS, principal.org, report.decision_id))
        except Stale:
            return True  # taken at the last moment
        return False

    async def collect(self) -> None:
        """Take the reports that other workers left for this one. Called often where there are siblings."""
        if not self._open or not self._siblings:
            return
        page = await self._store.find(Query(CHECK_REPORTS, "waiting", {"state": "waiting"}, limit=200))
        for left in page.records:
            if left.id not in self._open:
                continue
            try:
                await self._store.commit(Delete(CHECK_REPORTS, left.org, left.id))
            except Stale:
                continue  # its sender gave up
            report = Report(left.id, left.outcome, left.error, left.duration_us / 1000)
            self._take(left.org, left.agent, report)

    async def _body(self, request: web.BaseRequest, noted: dict[bytes, bytes]) -> Any:
        if request.method != "POST":
            raise MethodNotAllowed("Use POST here.", allow="POST")
        check_body_headers(noted)
        body = await read_body(request, self._body_limit)
        if body is None:
            raise BodyTooLarge(limit=self._body_limit)
        try:
            return decode(body)
        except RpcError as error:
            raise InvalidJson(error.message) from None

    async def _one(
        self, request: web.BaseRequest, noted: dict[bytes, bytes], principal: Principal, check: Check, started: int
    ) -> dict[str, Any]:
        if not check.tool.isprintable():
            raise ValidationFailed([("/tool", "invalid", "The tool's name has control characters.")])
        raw = encode(check.args) if check.args else b""
        call_id = new_id("call")
        call = Call(
            principal, check.tool, raw, id=call_id, at=time.time(), door="checks", ip=request.remote or "",
            request_id=request_id(noted, call_id), trace_id=trace(noted, call_id)[0], args=check.args,
        )  # fmt: skip
        chain = self._proxy.chain
        verdict = chain.decide(call)
        if verdict is None:
            verdict = await chain.settle(call)
        return await self._noted(call, verdict, len(raw), started)

    async def _noted(self, call: Call, verdict: Verdict, size: int, started: int) -> dict[str, Any]:
        """Write a decision down, and say it. Where people must be asked, they are."""
        if verdict.effect == "hold" and self.held is not None:
            verdict = await self.held.release(call, verdict)
        if verdict.effect == "allow":
            verdict = await self._remember(call, verdict, size)
        else:
            verdict = await self._proxy.refuse(call, verdict, size, started)
        answer = _answer(call, verdict)
        if verdict.effect == "hold" and self.held is not None:
            answer |= await self.held.checked(call, verdict)
        return answer

    # -- without a coroutine ---------------------------------------------------------------------------------------
    def straight(self, lane: Lane, known: Known, body: bytes) -> bool:
        """One plain check on a fast lane whose head came before; False, and nothing was done, for any other. See
        `doors.straight`."""
        started = time.perf_counter_ns()
        generation, _, principal = known.door
        now = time.time()
        journal, chain = self._proxy.journal, self._proxy.chain
        if generation != self._identity.generation or principal.watched(now) or journal.needs_wait:
            return False
        try:
            check = _check(body)
            if _encode(check) != body or not check.args or not check.tool.isprintable():
                return False
        except ODD:
            return False
        raw = body[body.index(_ARGS) + len(_ARGS) : -1]
        call_id = new_id("call")
        call = Call(
            principal, check.tool, raw, id=call_id, at=now, door="checks", ip=lane.remote, request_id=call_id,
            trace_id=call_id[-32:], args=check.args,
        )  # fmt: skip
        verdict = chain.decide(call)
        if verdict is None:
            return False
        try:
            if verdict.effect != "allow":
                raise JournalFull  # a refusal may have to wait too: both go on in a coroutine
            ticket = self._begin(call, verdict, raw)
        except JournalFull:
            request = LaneRequest(lane, known, body)
            lane.go_on(request, self._rest(call, verdict, len(raw), started))
            return True
        self._keep(call, ticket)
        lane.answered(whole_response(encode({"data": _answer(call, verdict)})))
        return True

    def _begin(self, call: Call, verdict: Verdict, raw: bytes) -> Ticket:
        """Raises JournalFull."""
        journal = self._proxy.journal
        key = (call.principal.key_id, call.tool)
        draft = self._drafts.get(key)
        if draft is None or draft.verdict is not verdict:
            draft = Draft.of(call, verdict)
            if draft is not None:
                if len(self._drafts) >= MAX_DRAFTS:
                    self._drafts.clear()
                self._drafts[key] = draft
        return journal.begin_as(draft, call, verdict, raw, len(raw))

    async def _rest(self, call: Call, verdict: Verdict, size: int, started: int) -> web.StreamResponse:
        return json_response(200, encode({"data": await self._noted(call, verdict, size, started)}))

    async def _remember(self, call: Call, verdict: Verdict, size: int) -> Verdict:
        """Open the record of an allowed check; its report closes it."""
        journal = self._proxy.journal
        try:
            ticket = journal.begin(call, verdict, size)
        except JournalFull:
            if not await journal.room(self._proxy.full_wait):
                return JOURNAL_FULL
            ticket = journal.begin(call, verdict, size)
        if journal.needs_wait:
            await journal.flushed()
        self._keep(call, ticket)
        return verdict

    def _keep(self, call: Call, ticket: Ticket) -> None:
        self._open[call.id] = _Open(call.principal, ticket, call.at)
        if len(self._open) > MAX_OPEN:
            self._close(self._open.popitem(last=False)[1].ticket, "unknown", "NOT_REPORTED", 0)

    def sweep(self, now: float) -> None:
        """Close what has waited too long for its report, as `unknown`. Called now and then."""
        while self._open:
            opened = next(iter(self._open.values()))
            if now - opened.at < OPEN_SECONDS:
                return
            self._close(self._open.popitem(last=False)[1].ticket, "unknown", "NOT_REPORTED", 0)

    def close_all(self) -> None:
        """At stop: what was not reported is unknown."""
        while self._open:
            self._close(self._open.popitem(last=False)[1].ticket, "unknown", "NOT_REPORTED", 0)

    def _close(self, ticket: Ticket, outcome: Outcome, error: str, duration_us: int) -> None:
        self._proxy.journal.finish(
            ticket, outcome, status=0, error=error, duration_us=duration_us, upstream_us=0, response_bytes=0, flags=()
        )
        self._proxy.metrics.call("checks", "allow", outcome)


def _answer(call: Call, verdict: Verdict) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "allowed": verdict.effect == "allow",
        "requires_approval": verdict.effect == "hold",
        "reason": verdict.reason,
        "code": verdict.code,
        "decision_id": call.id,
        "tool": call.tool,
    }
    if verdict.retry_after:
        answer["retry_after"] = round(verdict.retry_after, 3)
    return answer


def _convert(value: Any, kind: type[Any]) -> Any:
    """A typed body. Raises ValidationFailed with the field's JSON Pointer."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        message, _, where = text.partition(" - at `$")
        path = "/" + where.rstrip("`").lstrip(".").replace("[", "/").replace("]", "").replace(".", "/") if where else ""
        raise ValidationFailed([(path, "invalid", message + ".")]) from None
