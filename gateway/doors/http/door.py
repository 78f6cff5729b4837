"""`/http/{upstream}/*` and `/api/agenticmail/*`: a REST request is read into a call, judged, and written anew.

Reading order: `handle` -> `_enter` (who, which upstream, which route) -> `_read` (arguments) -> `_judged` -> proxy ->
`_answer`. Nothing of the request's own spelling travels on: target, headers and body are written from what was judged.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any, Final

from aiohttp import web

from ....catalog.calls import Call, Principal, Verdict
from ....catalog.errors import (
    BodyTooLarge,
    Conflict,
    EnterpriseError,
    Forbidden,
    NotFound,
    TooManyRequests,
    Unauthenticated,
    UpstreamError,
    UpstreamProtocol,
)
from ....catalog.ids import new_id
from ....catalog.records import Door
from ....catalog.routes import Route
from ...identity import CALL_SCOPE, Identity, ip_allowed
from ...pool import Answer
from ...proxy import Passed, Proxy, outcome_of
from ...upstreams import Upstreams
from ...wire import Headers, RawResponse, encode_headers, json_response, read_body, status_line
from .. import relay
from ..headers import request_id, scan, trace
from ..jsonrpc import encode
from ..refusals import http_refusal
from ..turnaway import Turnaway
from . import agenticmail, mail
from .agenticmail_table import PREFIX
from .arguments import gather, read_object
from .live import HttpLive, Prepared
from .redaction import redact
from .targets import read_target

HTTP_PREFIX: Final = "/http/"
MAX_STREAMS: Final = 5
"""Event streams of one agent at one AgenticMail upstream: its own limit, kept here so that it is told clearly."""

MAX_READ: Final = 32 * 1024 * 1024
EVENTS: Final = "text/event-stream"
PASSED_ON: Final = frozenset({
    b"accept", b"accept-language", b"user-agent", b"idempotency-key", b"if-match", b"if-none-match", b"last-event-id",
})  # fmt: skip
"""The only request headers that travel on: others (X-HTTP-Method-Override, X-Original-URL ...) can change a call."""

FOREIGN: Final = ("ak_", "mk_")
TROUBLE: Final = frozenset({"JOURNAL_FULL", "POLICY_STALE"})


class Visit:
    """One request at these doors, as far as it has been read."""

    __slots__ = ("credential", "door", "id", "live", "noted", "principal", "request", "request_id", "started")

    def __init__(self, request: web.BaseRequest, door: Door, started: int) -> None:
        self.request = request
        self.door: Door = door
        self.started = started
        self.id = new_id("call")
        self.request_id = self.id
        self.noted: dict[bytes, bytes] = {}
        self.principal: Principal | None = None
        self.credential = ""
        self.live: HttpLive | None = None


class Ask:
    """What a request asks for: the route, the request to send, and what rules see."""

    __slots__ = ("arguments", "ready", "route")

    def __init__(self, route: Route, ready: Prepared, arguments: dict[str, Any]) -> None:
        self.route = route
        self.ready = ready
        self.arguments = arguments


class HttpDoor:
    """One per worker; both doors."""

    def __init__(self, proxy: Proxy, identity: Identity, upstreams: Upstreams, body_limit: int) -> None:
        self._proxy = proxy
        self._chain = proxy.chain
        self._identity = identity
        self._upstreams = upstreams
        self._limit = body_limit
        self._turnaway: dict[Door, Turnaway] = {door: Turnaway(proxy, door) for door in ("http", "agenticmail")}
        self._streams: Counter[tuple[str, str, str]] = Counter()
        self._open: set[asyncio.Task[Any]] = set()

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a raw request target is these doors' to answer."""
        return path.startswith((HTTP_PREFIX, PREFIX + "/"))

    def end_streams(self) -> None:
        """The gateway stops: event streams end, each with its record."""
        for task in list(self._open):
            task.cancel()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Raises nothing but ConnectionError and CancelledError."""
        door: Door = "http" if request.raw_path.startswith(HTTP_PREFIX) else "agenticmail"
        visit = Visit(request, door, time.perf_counter_ns())
        name = ""
        try:
            name, rest = self._place(request.raw_path, door)
            await self._enter(visit, name)
            return await self._serve(visit, rest)
        except EnterpriseError as error:
            upstream = visit.live.name if visit.live is not None else name
            return await self._turnaway[door].refuse(request, error, visit.principal, upstream, visit.started)

    @staticmethod
    def _place(raw: str, door: Door) -> tuple[str, str]:
        """(upstream's name, "" for AgenticMail's, and the target below it)."""
        if door == "agenticmail":
            return "", raw[len(PREFIX) :]
        name, slash, rest = raw[len(HTTP_PREFIX) :].partition("/")
        return name, slash + rest

    async def _enter(self, visit: Visit, name: str) -> None:
        """Who, and which upstream. Raises Unauthenticated, Forbidden, NotFound."""
        request = visit.request
        visit.noted = scan(request.raw_headers).noted
        visit.request_id = request_id(visit.noted, visit.id)
        key = foreign_key(visit.noted) if visit.door == "agenticmail" else ""
        if key:
            principal = await self._identity.of_foreign(key)
            if principal.allowed_ips and not ip_allowed(request.remote or "", principal.allowed_ips):
                raise Unauthenticated("This API key may not be used from this address.")
            if CALL_SCOPE not in principal.scopes:
                raise Forbidden("This API key is not an agent's; calls need a key bound to an agent.")
            visit.credential = key
        else:
            principal = await self._turnaway[visit.door].identify(self._identity, visit.noted, request)
        visit.principal = principal
        visit.live = self._upstream(principal.org, name)

    def _upstream(self, org: str, name: str) -> HttpLive:
        if name:
            live = self._upstreams.get(org, name)
            if not isinstance(live, HttpLive) or live.agenticmail:
                raise NotFound(f"There is no HTTP upstream {name[:63]!r} here.")
            return live
        found = [live for live in self._upstreams.of(org) if isinstance(live, HttpLive) and live.agenticmail]
        if not found:
            raise NotFound("No AgenticMail upstream is registered here.")
        if len(found) > 1:
            raise Conflict("catalog", "Several AgenticMail upstreams are enabled; leave one.")
        return found[0]

    async def _serve(self, visit: Visit, rest: str) -> web.StreamResponse:
        live, principal = visit.live, visit.principal
        assert live is not None  # noqa: S101 - set by _enter
        assert principal is not None  # noqa: S101 - set by _enter
        target = read_target(rest)
        route, path = live.table.match(visit.request.method, target)
        body = await read_body(visit.request, self._limit)
        if body is None:
            raise BodyTooLarge(limit=self._limit)
        value = read_object(visit.noted, body)
        arguments = gather(route, path, target, value)
        if live.agenticmail:
            arguments = agenticmail.shape(route, arguments)
        ready = live.prepare(route, arguments, tuple(target.query), bodied=value is not None)
        ask = Ask(route, ready, arguments)
        if not live.agenticmail:
            return await self._judged(visit, live, principal, ask)
        subject = mail.subject_of(route, arguments)
        if not subject:
            return await self._mail(visit, live, principal, ask)
        async with live.lock(f"{principal.agent_id}:{subject}"):
            return await self._mail(visit, live, principal, ask)

    async def _mail(self, visit: Visit, live: HttpLive, principal: Principal, ask: Ask) -> web.StreamResponse:
        """An AgenticMail request: judged on what it will send, wherever that is kept."""
        route = ask.route
        sent: dict[str, Any] = {}
        if (route.method, route.path) in mail.LOOKS_UP:
            await self._chain.admit(principal)
            if self._chain.viewer(principal)(route.tool):  # who may not send at all learns nothing of the draft
                sent = await mail.contents(live, route, ask.arguments, visit.credential)
        ask.arguments = agenticmail.judged(route, agenticmail.complete(route, ask.arguments, sent))
        if route.path != "/events":
            return await self._judged(visit, live, principal, ask)
        place = (live.name, principal.org, principal.agent_id)
        if self._streams[place] >= MAX_STREAMS:
            raise TooManyRequests(f"This agent has {MAX_STREAMS} event streams open; close one.", retry_after=30)
        self._streams[place] += 1
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - runs in one
        self._open.add(task)
        try:
            return await self._judged(visit, live, principal, ask, stream=True)
        finally:
            self._open.discard(task)
            self._streams[place] -= 1
            if not self._streams[place]:
                del self._streams[place]

    async def _judged(
        self, visit: Visit, live: HttpLive, principal: Principal, ask: Ask, *, stream: bool = False
    ) -> web.StreamResponse:
        trace_id, traceparent = trace(visit.noted, visit.id)
        tool = ask.route.tool if live.agenticmail else live.prefix + ask.route.tool
        call = Call(
            principal, tool, encode(ask.arguments) if ask.arguments else b"", id=visit.id, at=time.time(),
            door=visit.door, upstream=live.name, ip=visit.request.remote or "", request_id=visit.request_id,
            trace_id=trace_id, args=ask.arguments,
        )  # fmt: skip
        lines = passed_lines(visit) + traceparent
        head = live.request(ask.ready, lines, visit.credential)
        try:
            passed = await self._proxy.handle(call, live.wire, head, ask.ready.body, visit.started, stream=stream)
        except UpstreamError as error:
            await self._proxy.kept()
            return http_refusal(error, call.id)
        if isinstance(passed, Verdict):
            return refusal(visit.door, ask.route, call, passed)
        return await self._answer(visit, live, passed)

    # -- back to the agent -----------------------------------------------------------------------------------------
    async def _answer(self, visit: Visit, live: HttpLive, passed: Passed) -> web.StreamResponse:
        answer = passed.answer
        assert answer is not None  # noqa: S101 - set by the proxy on this path
        headers = response_headers(answer, visit.request_id)
        relayed = relay.Relayed()
        begun = False
        status = 200 if answer.status == 202 and live.agenticmail else answer.status  # clients read 202 as "sent"
        try:
            body = answer.body
            if live.agenticmail and answer.content_type != EVENTS and reads_keys(answer):
                body = redact(await answer.read(MAX_READ) if body is None else bytes(body))
            if body is None:
                change = _redacting if live.agenticmail and answer.content_type == EVENTS else None
                begun = True
                response = await relay.stream(
                    visit.request, answer, headers, change, relayed, events=answer.content_type == EVENTS
                )
        except UpstreamError as error:
            self._proxy.finish(passed, outcome_of(error), answer.status, relayed.size, error.code)
            if begun:
                raise ConnectionResetError("The upstream broke off.") from error
            await self._proxy.kept()
            return http_refusal(error, visit.id)
        except (ConnectionError, asyncio.CancelledError):
            self._proxy.finish(passed, "cancelled", answer.status, relayed.size, "CLIENT_LEFT")
            raise
        finally:
            answer.close()
        size = relayed.size if body is None else len(body)
        self._proxy.finish(passed, "error" if answer.status >= 400 else "ok", answer.status, size)
        await self._proxy.kept()
        if body is None:
            return response
        return RawResponse(status, status_line(status) + encode_headers(headers), body)


def foreign_key(noted: dict[bytes, bytes]) -> str:
    """The AgenticMail key that a client of its own sends, "" for none. Raises Unauthenticated beside another key."""
    bearer = noted.get(b"authorization", b"")
    token = bearer[7:].strip().decode("latin-1") if bearer[:7].lower() == b"bearer " else ""
    if not token.startswith(FOREIGN):
        return ""
    if b"x-api-key" in noted:
        raise Unauthenticated("X-API-Key and Authorization carry different keys.")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise Unauthenticated("This API key is not valid.")
    return token


def passed_lines(visit: Visit) -> bytes:
    """The request headers that travel on. One given twice is left out: it says two things."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in visit.request.raw_headers:
        low = name.lower()
        if low in PASSED_ON:
            found.setdefault(low, []).append(b"%b: %b\r\n" % (name, value))
    lines = b"".join(lines[0] for lines in found.values() if len(lines) == 1)
    return lines + b"X-Request-Id: %b\r\n" % visit.request_id.encode()


def response_headers(answer: Answer, request: str) -> Headers:
    """The upstream's headers; a redirection's target is left out, for it leads around the gateway."""
    headers = relay.response_headers(answer, None, request)
    return [header for header in headers if header[0].lower() not in {b"location", b"refresh"}]


def reads_keys(answer: Answer) -> bool:
    """Whether an answer is of a kind that holds AgenticMail's own words (and keys), not an attachment's bytes. Raises
    UpstreamProtocol for one that was compressed unasked, so that nobody can look."""
    kind = answer.content_type
    own = kind in {"", "application/json"} or kind.endswith("+json")
    coding = (answer.header(b"content-encoding") or b"identity").strip().lower()
    if own and coding not in {b"", b"identity"}:
        raise UpstreamProtocol("The upstream compressed its answer, though it was not asked to.")
    return own


async def _redacting(data: bytes) -> bytes | None:
    try:
        changed = redact(data)
    except UpstreamProtocol:
        changed = b""  # an event that cannot be read is not passed on
    return None if changed == data else changed


def refusal(door: Door, route: Route, call: Call, verdict: Verdict) -> RawResponse:
    """A refused or held call in the client's words. Never 202: AgenticMail's clients tell the model "sent" then."""
    held = verdict.effect == "hold"
    if door == "agenticmail" and held and (route.method, route.path) == agenticmail.SEND:
        warning = {"category": "policy", "severity": "high", "ruleId": verdict.rule, "description": verdict.reason}
        body: dict[str, Any] = {
            "sent": False, "blocked": True, "pendingId": call.id, "warnings": [warning],
            "summary": f"HELD BY POLICY. Email NOT sent. {verdict.reason}",
        }  # fmt: skip
        return json_response(200, encode(body))
    details: dict[str, Any] = {"decision_id": call.id, "effect": verdict.effect, "tool": call.tool}
    status = 503 if verdict.code in TROUBLE else 403
    extra: Headers = []
    if verdict.retry_after:
        details["retry_after"] = round(verdict.retry_after, 3)
        if door == "http" and verdict.code == "RATE_LIMITED":
            status = 429
        extra.append((b"Retry-After", str(max(1, round(verdict.retry_after))).encode()))
    return json_response(status, encode({"error": verdict.reason, "code": verdict.code, "details": details}), extra)
