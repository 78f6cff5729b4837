"""The checks door: for tools that an agent runs in its own process. Same chain, same journal, nothing forwarded.

`POST /api/engine/check-permission` answers one check `{tool, args?, ...}` or a batch `{checks: [...]}`. An allowed
check opens a record that `POST /api/engine/tool-calls` closes with `{decision_id, outcome, ...}`; one that is never
reported reads `unknown`.

A hook (docs/openclaw.md) says more: `tool_call_id`, `run_id`, `session_id`, so that reports and repeats find their
decision; `runtime`, so that wrapped calls are judged by what they do (`wrapped`); and `wait`, the seconds it can wait
for an approval. A held check of a hook is parked: the hook asks again with the same ids until somebody decides, at
most PARK_SECONDS (`checks_holds`).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
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
    StoreUnavailable,
    ValidationFailed,
)
from ...catalog.ids import new_id
from ...catalog.records import CHECK_REPORTS, CheckReport, Outcome
from ...catalog.store import Delete, Insert, Query, Store
from ..holds import Holds
from ..identity import Identity
from ..journal import Ticket
from ..proxy import JOURNAL_FULL, Proxy
from ..wire import json_response, read_body
from .checks_holds import PARK_SECONDS, Parking
from .checks_open import OpenChecks, Opened, alias, call_key, digest
from .checks_straight import PlainChecks
from .headers import check_body_headers, request_id, scan, trace
from .held import Held
from .jsonrpc import RpcError, decode, encode
from .turnaway import Turnaway
from .wrapped import Inner, unwrap

MAX_BATCH: Final = 100
CHECK_PATH: Final = "/api/engine/check-permission"
HAND_OVER_SECONDS: Final = 0.1
HAND_OVER_LOOKS: Final = 20
DECISION_ID: Final = re.compile(r"dec_[0-9a-f]{32}")

PLAIN: Final = Inner("", {})
"""Stands for a check that is no hook's: nothing is wrapped."""

ToolName = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


CallId = Annotated[str, msgspec.Meta(max_length=256)]


class Check(msgspec.Struct, forbid_unknown_fields=True):
    """One question. `args` are the arguments the agent is about to use. `agent_id`: the agent's id or name, when given,
    must be the key's. `tool_call_id`, `run_id` and `session_id` are the runtime's own; `wait` is in seconds."""

    tool: ToolName
    args: dict[str, Any] = {}
    agent_id: CallId = ""
    runtime: Literal["", "openclaw"] = ""
    tool_kind: Annotated[str, msgspec.Meta(max_length=64)] = ""
    tool_call_id: CallId = ""
    run_id: CallId = ""
    session_id: CallId = ""
    wait: Annotated[float, msgspec.Meta(ge=0, le=PARK_SECONDS)] = 0.0


_NO_HOOK: Final = Check("-")


class Batch(msgspec.Struct, forbid_unknown_fields=True):
    checks: Annotated[list[Check], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """How a checked call ended: the one of `decision_id`, or of `tool_call_id` and `run_id`. `duration_ms` as the
    agent measured it; `args_changed`: it ran with other arguments than those that were checked."""

    decision_id: Annotated[str, msgspec.Meta(max_length=64)] = ""
    outcome: Literal["ok", "error", "timeout", "cancelled"] = "ok"
    error: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    duration_ms: Annotated[float, msgspec.Meta(ge=0, le=86_400_000)] = 0.0
    tool_call_id: CallId = ""
    run_id: CallId = ""
    args_changed: bool = False


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
        holds: Callable[[], Holds | None] = lambda: None,
    ) -> None:
        self._store = store
        self._siblings = siblings
        self._proxy = proxy
        self._identity = identity
        self._turnaway = turnaway
        self._body_limit = body_limit
        self.held: Held | None = None
        self._open = OpenChecks(lambda ticket: self._close(ticket, "unknown", "NOT_REPORTED", 0))
        self._parking = Parking(proxy, self._open, holds)
        self._plain = PlainChecks(proxy, identity, self._open, self._plainly, _answer)

    async def check(self, request: web.BaseRequest) -> web.StreamResponse:
        """`POST /api/engine/check-permission`."""
        started = time.perf_counter_ns()
        principal: Principal | None = None
        try:
            noted, principal = await self._enter(request)
            value = await self._body(request, noted)
            if isinstance(value, dict) and "checks" in value:
                batch = convert(value, Batch)
                answers = [await self._one(request, noted, principal, check, started) for check in batch.checks]
                return json_response(200, encode({"data": answers, "meta": {"total": len(answers)}}))
            answer = await self._one(request, noted, principal, convert(value, Check), started)
            return json_response(200, encode({"data": answer}))
        except EnterpriseError as error:
            return await self._turnaway.refuse(request, error, principal, "", started)

    async def report(self, request: web.BaseRequest) -> web.StreamResponse:
        """`POST /api/engine/tool-calls`."""
        started = time.perf_counter_ns()
        principal: Principal | None = None
        try:
            noted, principal = await self._enter(request)
            report = named(principal, convert(await self._body(request, noted), Report))
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
                known.straight = self._plain
        return noted, principal

    def _take(self, org: str, agent: str, report: Report) -> bool:
        """Close the decision a report is about; False when it is not open here, or another agent's."""
        opened = self._open.take(org, agent, report.decision_id)
        if opened is None:
            return False
        flags = ("args-changed",) if report.args_changed else ()
        self._close(opened.ticket, report.outcome, report.error, int(report.duration_ms * 1000), flags)
        return True

    async def _hand_over(self, principal: Principal, report: Report) -> bool:
        """Leave the report for the worker that decided, and wait until it was taken. Raises StoreError."""
        if not self._siblings or DECISION_ID.fullmatch(report.decision_id) is None:
            return False
        left = CheckReport(
            org=principal.org, id=report.decision_id, agent=principal.agent_id, outcome=report.outcome,
            error=report.error, duration_us=int(report.duration_ms * 1000), args_changed=report.args_changed,
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
        if not len(self._open) or not self._siblings:
            return
        page = await self._store.find(Query(CHECK_REPORTS, "waiting", {"state": "waiting"}, limit=200))
        for left in page.records:
            if left.id not in self._open:
                continue
            try:
                await self._store.commit(Delete(CHECK_REPORTS, left.org, left.id))
            except Stale:
                continue  # its sender gave up
            report = Report(
                left.id, left.outcome, left.error, left.duration_us / 1000, args_changed=left.args_changed
            )  # fmt: skip
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
        inner = PLAIN
        if check.runtime or check.agent_id or check.tool_call_id or check.run_id or check.session_id or check.wait:
            _examine(principal, check)
            inner = unwrap(check.tool, check.args, check.runtime, check.tool_kind)
        if not check.tool.isprintable():
            raise ValidationFailed([("/tool", "invalid", "The tool's name has control characters.")])
        tool, args = (check.tool, check.args) if inner is PLAIN else (inner.tool, inner.args)
        raw = encode(args) if args else b""
        call_id = new_id("call")
        call = Call(
            principal, tool, raw, id=call_id, at=time.time(), door="checks", ip=request.remote or "",
            request_id=request_id(noted, call_id), trace_id=trace(noted, call_id)[0], args=args,
        )  # fmt: skip
        if not check.tool_call_id:
            return await self._said(call, await self._decide(call, check, inner, started))
        return await self._hooked(call, check, inner, started)

    async def _hooked(self, call: Call, check: Check, inner: Inner, started: int) -> dict[str, Any]:
        """A hook's check: one that it asks again, one inside a wrapper that was judged already, or a new one."""
        call.request_id = _shown(check.tool_call_id) or call.id
        key = call_key(call.principal, check.run_id, check.tool_call_id)
        what = digest(call.tool, bytes(call.raw))
        decision = "" if inner.wrapped or inner.carrier else self._open.enter(key, what)
        if decision:
            return _answer(call, Verdict("allow", "wrapper", "ALLOWED", "Allowed with the call around it."), decision)
        parked = self._open.parked(key, what, call.at)
        if parked is None:
            verdict = await self._decide(call, check, inner, started)
            if verdict.effect == "hold":
                parked = await self._parking.park(call, verdict, key, what)
            if parked is None:
                return _answer(call, verdict, wrapped=inner.wrapped)
        ruled = await self._parking.wait(call, parked, key, check.wait, started)
        if ruled.call is None:
            return _answer(call, ruled.verdict, parked.decision, wrapped=inner.wrapped, approval=parked.approval)
        verdict = ruled.verdict
        if verdict.effect == "allow":
            verdict = await self._remember(ruled.call, marked(verdict, check), len(ruled.call.raw), check, inner)
        answer = _answer(ruled.call, verdict, wrapped=inner.wrapped)
        if ruled.edited and verdict.effect == "allow":
            answer["args"] = ruled.call.args
        return answer

    async def _decide(self, call: Call, check: Check, inner: Inner, started: int) -> Verdict:
        """Judge, and write it down."""
        chain = self._proxy.chain
        if inner.carrier:
            try:
                await chain.admit(call.principal)  # Forbidden for an agent that may not work at all
            except TimeoutError:
                raise StoreUnavailable from None
            verdict: Verdict | None = Verdict("allow", "carrier", "ALLOWED", "It only carries other calls.")
        else:
            verdict = chain.decide(call)
        if verdict is None:
            verdict = await chain.settle(call)
        verdict = await self._released(call, verdict)
        return await self._noted(call, marked(verdict, check) if check.tool_call_id else verdict, check, inner, started)

    async def _noted(self, call: Call, verdict: Verdict, check: Check, inner: Inner, started: int) -> Verdict:
        """Write a decision down; the verdict that counts."""
        if verdict.effect == "allow":
            return await self._remember(call, verdict, len(call.raw), check, inner)
        return await self._proxy.refuse(call, verdict, len(call.raw), started)

    async def _plainly(self, call: Call, verdict: Verdict, started: int) -> dict[str, Any]:
        verdict = await self._released(call, verdict)
        return await self._said(call, await self._noted(call, verdict, _NO_HOOK, PLAIN, started))

    async def _released(self, call: Call, verdict: Verdict) -> Verdict:
        """Allow a held check that needs nobody, or somebody approved."""
        if verdict.effect == "hold" and self.held is not None:
            return await self.held.release(call, verdict)
        return verdict

    async def _said(self, call: Call, verdict: Verdict) -> dict[str, Any]:
        """The answer; where people must be asked, they are, and it says so."""
        answer = _answer(call, verdict)
        if verdict.effect == "hold" and self.held is not None:
            answer |= await self.held.checked(call, verdict)
        return answer

    async def _remember(self, call: Call, verdict: Verdict, size: int, check: Check, inner: Inner) -> Verdict:
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
        opened = Opened(call.principal, ticket, call.at)
        if not check.tool_call_id:
            self._open.add(call.id, opened)
            return verdict
        inside = digest(call.tool, bytes(call.raw)) if inner.wrapped else ""
        self._open.add(
            call.id, opened, key=call_key(call.principal, check.run_id, check.tool_call_id), inside=inside
        )  # fmt: skip
        return verdict

    def sweep(self, now: float) -> None:
        """Close what has waited too long for its report, as `unknown`. Called now and then."""
        self._open.sweep(now)

    def close_all(self) -> None:
        """At stop: what was not reported is unknown."""
        self._open.clear()

    def _close(
        self, ticket: Ticket, outcome: Outcome, error: str, duration_us: int, flags: tuple[str, ...] = ()
    ) -> None:
        self._proxy.journal.finish(
            ticket, outcome, status=0, error=error, duration_us=duration_us, upstream_us=0, response_bytes=0,
            flags=flags,
        )  # fmt: skip
        self._proxy.metrics.call("checks", "allow", outcome)


def _examine(principal: Principal, check: Check) -> None:
    """What a type cannot say of a hook's check. Raises ValidationFailed."""
    if not check.tool_call_id and (check.run_id or check.session_id or check.wait):
        raise ValidationFailed([
            (f"/{name}", "needs_tool_call_id", f"{name} belongs to a tool_call_id, which is missing.")
            for name in ("run_id", "session_id", "wait") if getattr(check, name)
        ])  # fmt: skip
    if check.agent_id and check.agent_id not in {principal.agent_id, principal.agent_name}:
        raise ValidationFailed([("/agent_id", "not_the_keys", "This API key is another agent's than the one named.")])


def named(principal: Principal, report: Report) -> Report:
    """A report with the name of its decision. Raises ValidationFailed when it has none, or two."""
    if bool(report.decision_id) == bool(report.tool_call_id) or (report.run_id and not report.tool_call_id):
        text = "Name the call by its decision_id, or by its tool_call_id and run_id."
        raise ValidationFailed([("/decision_id", "required", text)])
    if report.tool_call_id:
        report.decision_id = alias(call_key(principal, report.run_id, report.tool_call_id))
    return report


_ODD: Final = re.compile(r"[^\w.:/|@=+-]", re.ASCII)


def _shown(text: str) -> str:
    """A runtime's id as it is kept on record: 64 harmless characters at most."""
    return _ODD.sub("?", text[:64])


def marked(verdict: Verdict, check: Check) -> Verdict:
    """A verdict whose record says in which run and session of the runtime it was asked for, and how it was wrapped."""
    marks = [f"{name}:{_shown(text)}" for name, text in (("run", check.run_id), ("session", check.session_id)) if text]
    if check.runtime:
        marks.insert(0, f"hook:{check.runtime}")
    return msgspec.structs.replace(verdict, flags=(*verdict.flags, *marks))


def _answer(
    call: Call, verdict: Verdict, decision: str = "", *, wrapped: bool = False, approval: str = ""
) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "allowed": verdict.effect == "allow",
        "requires_approval": verdict.effect == "hold",
        "reason": verdict.reason,
        "code": verdict.code,
        "decision_id": decision or call.id,
        "tool": call.tool,
    }
    if verdict.retry_after:
        answer["retry_after"] = round(verdict.retry_after, 3)
    if wrapped:
        answer["wrapped"] = True
    if approval:
        answer["approval_id"] = approval
        answer["pending"] = verdict.effect == "hold"
    return answer


def convert(value: Any, kind: type[Any]) -> Any:
    """A typed body. Raises ValidationFailed with the field's JSON Pointer."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        message, _, where = text.partition(" - at `$")
        path = "/" + where.rstrip("`").lstrip(".").replace("[", "/").replace("]", "").replace(".", "/") if where else ""
        raise ValidationFailed([(path, "invalid", message + ".")]) from None
