"""The straight way: a plain `tools/call` on a fast lane, from its bytes to the upstream's socket without a coroutine.

Nearly every call of an agent is one more of a kind: a head that is known, a body in one of the two orders in which
clients write it, a tool that is compiled for the agent, an upstream's connection that is ready. For those, what
`McpDoor` does in coroutines happens here in one function, and the answer goes out of the function that the pool calls
when it has come. Whatever is not so is left to `McpDoor`: before the verdict by returning False, as if nobody had
looked; after it, which may have charged a limit, by `Lane.go_on` with a coroutine that takes over where this one ends.

Both ways say and record the same; tests/security holds them to it.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast
from weakref import WeakSet

import msgspec
import structlog
from aiohttp import web

from ...catalog.calls import Call, Verdict, decode_object
from ...catalog.errors import JournalFull
from ...catalog.ids import CALL_PREFIX, uuid7
from ...policies.chain import NON_IDEMPOTENT
from ..drafts import Draft
from ..lane import Known, Lane, LaneRequest
from ..pool import Answer, Begun
from ..proxy import Passed, Sender
from ..upstreams import Live
from ..wire import encode_headers, status_line
from .headers import RESPONSE_DROP
from .jsonrpc import ODD, encode
from .mcpfacts import TOOL
from .relay import outcome_of

if TYPE_CHECKING:
    from .mcp import Entry, McpDoor, Visit

MAX_ROUTES: Final = 10_000
"""Tools remembered per worker, for all request heads: about 25 MB at most. Past it all tables start afresh: agents
choose the names they ask for, and the heads."""

_ID: Final = rb'(?P<id>0|[1-9][0-9]{0,14}|"[A-Za-z0-9_.:-]{1,64}")'
_PARAMS: Final = rb'\{"name":"(?P<name>[A-Za-z0-9_.-]{1,128})","arguments":(?P<args>\{.+\})\}'
_jsonrpc_first: Final = re.compile(
    rb'\{"jsonrpc":"2\.0","id":%b,"method":"tools/call","params":%b\}' % (_ID, _PARAMS), re.DOTALL
).fullmatch
_method_first: Final = re.compile(
    rb'\{"method":"tools/call","params":%b,"jsonrpc":"2\.0","id":%b\}' % (_PARAMS, _ID), re.DOTALL
).fullmatch
_NONE: Final = b"-"
"""A response head that is not passed on as it is: its headers are not the same for everybody, or it has no length."""

_CONTENTLESS: Final = frozenset({204, 304})
"""Answers that may carry no Content-Length of ours (RFC 9110, section 8.6)."""

log = structlog.get_logger()


class Route:
    """One tool behind one request head."""

    __slots__ = ("draft", "head", "live", "tool")

    def __init__(self, live: Live, tool: str, head: bytes) -> None:
        self.live = live
        self.tool = tool
        self.head = head
        self.draft: Draft | None = None


class Straight:
    """For one request head that came before. Call it with a lane and a body: False, and nothing was done, when this
    request is not for the straight way."""

    __slots__ = ("__weakref__", "_door", "_entry", "_routes", "_said")

    made: ClassVar[int] = 0
    """Routes made since the tables were empty."""

    def __init__(self, door: McpDoor, entry: Entry) -> None:
        self._door = door
        self._entry = entry
        self._routes: dict[bytes, Route] = {}
        #: The tool's name as the Mcp-Name header says it; the body must say the same.
        self._said = entry.name.encode("utf-8", "replace") if entry.name is not None else None

    @classmethod
    def of(cls, door: McpDoor, entry: Entry) -> Straight | None:
        """None for heads whose requests need a closer look."""
        silent = entry.method is None and not entry.modern and entry.name is None
        spoken = entry.method == "tools/call" and entry.name is not None
        plain = not entry.principal.allowed_ips and not entry.idempotency and not door.proxy.journal.needs_wait
        return cls(door, entry) if plain and (silent or spoken) else None

    def __call__(self, lane: Lane, known: Known, body: bytes) -> bool:
        started = time.perf_counter_ns()
        match = _jsonrpc_first(body) or _method_first(body)
        door, entry = self._door, self._entry
        if match is None or entry.generation != door.identity.generation:
            return False
        rpc_id, name, raw = match.group("id", "name", "args")
        who, now = entry.principal, time.time()
        live = door.upstreams.get(who.org, entry.server)
        if (
            type(live) is not Live
            or (self._said is not None and self._said != name)
            or (who.expires_at and who.expired(now))
        ):
            return False
        try:
            args = decode_object(raw)
            if encode(args) != raw:  # other spellings, and keys given twice
                return False
        except ODD:
            return False
        if not args:
            return False
        route = self._routes.get(name)
        if route is None or route.live is not live:
            route = self._route(name, live)
        call_id = uuid7(CALL_PREFIX)
        call = Call(
            who, route.tool, raw, call_id, now, "mcp", live.name, lane.remote, call_id, call_id[-32:], args,
        )  # fmt: skip
        verdict = door.chain.decide(call)
        if verdict is None:
            return False
        flight = Flight(call, verdict, started, lane, known, door, entry, live, body, rpc_id)
        flight.begin(route)
        return True

    def _route(self, name: bytes, live: Live) -> Route:
        if Straight.made >= MAX_ROUTES:
            Straight.made = 0
            for other in list(_tables):
                other._routes.clear()
        Straight.made += 1
        _tables.add(self)
        head = live.start(b"POST", self._entry.forward)
        route = self._routes[name] = Route(live, live.prefix + TOOL.prefix + name.decode(), head)
        return route


_tables: Final[WeakSet[Straight]] = WeakSet()
"""Those that remember a route."""


class Flight(Passed):
    """A judged call on its way: what its lane cancels, and what the pool tells of the answer."""

    __slots__ = (
        "_begun", "_closed", "_door", "_entry", "_head", "_known", "_lane", "_live", "_over", "_rpc_id", "_sent",
        "body",
    )  # fmt: skip

    def __init__(
        self, call: Call, verdict: Verdict, started: int, lane: Lane, known: Known, door: McpDoor, entry: Entry,
        live: Live, body: bytes, rpc_id: bytes,
    ) -> None:  # fmt: skip
        self.call = call
        self.verdict = verdict
        self.ticket = 0
        self.started = started
        self.upstream_us = 0
        self.answer: Answer | None = None
        self.body = body
        self._lane = lane
        self._known = known
        self._door = door
        #: Not `known.door`: another request with this head may find meanwhile that it means nothing any more.
        self._entry = entry
        self._live = live
        self._rpc_id = rpc_id
        self._head = b""
        self._sent = 0
        self._begun: Begun | None = None
        self._over = False
        self._closed = False

    def begin(self, route: Route) -> None:
        """Write down the intent and send, where both can be done at once."""
        call, verdict, body = self.call, self.verdict, self.body
        own = call.trace_id.encode()
        self._head = b"%btraceparent: 00-%b-%b-01\r\nContent-Length: %d\r\n\r\n" % (
            route.head, own, own[16:], len(body),
        )  # fmt: skip
        proxy = self._door.proxy
        journal = proxy.journal
        if verdict.effect != "allow":
            self._take_over()
            return
        try:
            draft = route.draft
            if draft is None or draft.verdict is not verdict:
                if NON_IDEMPOTENT in verdict.flags:  # never drafted, so every such call is seen here
                    self._take_over()
                    return
                draft = route.draft = Draft.of(call, verdict)
            self.ticket = journal.begin_as(draft, call, verdict, call.raw, len(body))
        except JournalFull:
            self._take_over()
            return
        proxy.in_flight += 1
        self._lane.fly(self)
        self._sent = time.perf_counter_ns()
        live = self._live
        self._begun = live.pool.start(self, self._head, body, live.timeout)
        if self._begun is None:
            self._over = True
            self._carry(live)

    # -- the pool's receiver -------------------------------------------------------------------------------------
    def done(self) -> bool:
        return self._over

    def set_result(self, answer: Answer, /) -> None:
        """The answer is there, or begins."""
        self._over = True
        self.answer = answer
        self.upstream_us = (time.perf_counter_ns() - self._sent) // 1000
        begun = self._begun
        assert begun is not None  # noqa: S101 - the pool answers what was begun
        self._live.pool.judged(begun, answer)
        try:
            body, known = answer.body, answer.known
            block = _NONE if body is None else (known and known.block) or _block(answer)
            if body is None or block is _NONE:
                request, visit = self._visit()
                self._lane.go_on(request, self._door.answer(visit, self, TOOL, self._id()))
                return
            outcome = outcome_of(answer.status, body)
            self._closed = True
            self._door.proxy.finish(self, outcome, answer.status, len(body))
            self._lane.answered(
                b"%bX-Request-Id: %b\r\nContent-Length: %d\r\n\r\n%b" % (block, self.call.id.encode(), len(body), body)
            )
        except Exception:
            log.exception("answer_failed", call=self.call.id)
            answer.close()
            if not self._closed:
                self._closed = True
                self._door.proxy.finish(self, "error", answer.status, len(answer.body or b""))
            self._lane.abort()

    def set_exception(self, error: BaseException, /) -> None:
        """The connection ended, or the deadline."""
        self._over = True
        assert self._begun is not None  # noqa: S101 - as above
        self._carry(_Rescuer(self._live, self._begun, error))

    # -- the lane's ----------------------------------------------------------------------------------------------
    def cancel(self) -> None:
        """The client has left."""
        if self._over or self._begun is None:
            return
        self._over = True
        self._live.pool.leave(self._begun, self)
        self.upstream_us = (time.perf_counter_ns() - self._sent) // 1000
        self._door.proxy.finish(self, "cancelled", 0, 0, "CLIENT_LEFT")

    # -- where a coroutine goes on -------------------------------------------------------------------------------
    def _visit(self) -> tuple[LaneRequest, Visit]:
        request = LaneRequest(self._lane, self._known, self.body)
        request.started = self.started
        return request, self._door.revisit(cast("web.BaseRequest", request), self._entry, self._live, self.call)

    def _id(self) -> Any:
        return msgspec.json.decode(self._rpc_id)

    def _take_over(self) -> None:
        """Refused or held, not to be run twice, or the journal has no room now."""
        request, visit = self._visit()
        message = msgspec.json.decode(self.body)
        work = self._door.deliver(visit, self.call, self.verdict, TOOL, self._head, self.body, message)
        self._lane.go_on(request, work)

    def _carry(self, sender: Sender) -> None:
        """The intent is written; the rest takes time."""
        request, visit = self._visit()
        work = self._door.carry(visit, self, sender, TOOL, self._head, self.body, self._id(), self._sent)
        self._lane.go_on(request, work)


class _Rescuer:
    """Goes on with a request that the pool could not bring to its end."""

    def __init__(self, live: Live, begun: Begun, error: BaseException) -> None:
        self.name = live.name
        self._live = live
        self._begun = begun
        self._error = error

    async def send(self, head: bytes, body: bytes, *, stream: bool = False) -> Answer:
        return await self._live.pool.rescue(self._begun, self._error, head, body)


def _block(answer: Answer) -> bytes:
    """Status line and headers as they travel on; `_NONE` where they hold a session, which is bound to its agent."""
    known = answer.known
    if known is not None and known.block is not None:
        return known.block
    headers = [header for header in answer.headers if header[0].lower() not in RESPONSE_DROP]
    block = status_line(answer.status) + encode_headers(headers)
    if answer.status in _CONTENTLESS or any(name.lower() == b"mcp-session-id" for name, _ in headers):
        block = _NONE
    if known is not None:
        known.block = block
    return block
