"""`/mcp/{server}`: one upstream, transparent. Everything passes as it is; calls and reads are judged, lists filtered.

Reading order of a call: `handle` (who, which server, which method) -> `_post` (one JSON-RPC message) -> `_judged`
(tool and arguments into a `Call`) -> `gateway.proxy` -> `_answer`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec
from aiohttp import web

from ...catalog.calls import Call, Principal, Verdict
from ...catalog.errors import (
    BadRequest,
    BodyTooLarge,
    EnterpriseError,
    MethodNotAllowed,
    NotFound,
    UpstreamError,
    UpstreamProtocol,
)
from ...catalog.ids import new_id
from ...policies.chain import Chain
from ..identity import Identity
from ..lane import LaneRequest
from ..pool import Answer
from ..proxy import Passed, Proxy, Sender, outcome_of
from ..sessions import SessionSeal
from ..upstreams import Upstreams
from ..wire import json_response, read_body
from . import relay
from .headers import Scan, check_body_headers, request_id, scan, trace
from .held import HELD_METHODS, TASK_METHODS, Held, own_task
from .jsonrpc import RpcError, check_envelope, decode, encode, plain_call, subject_of
from .lists import filter_message
from .mcpfacts import (
    HEADER_MISMATCH,
    INVALID_REQUEST,
    JUDGED,
    LISTS,
    MODERN,
    NAMED,
    TOOL,
    Subject,
    header_value,
)
from .once import OnceDoor
from .refusals import denied_body, failed_body, rpc_refusal
from .straight import Straight
from .turnaway import Turnaway

STREAM_TYPE: Final = "text/event-stream"
BATCH_VERSIONS: Final = frozenset({"", "2025-03-26"})
"""JSON-RPC batches existed in one revision only; a client that names none may speak it."""

REMOVED: Final = "resources/subscribe"
"""No longer a method at 2026-07-28. One that names nothing there passes, for the server to say so (404)."""


class Entry:
    """What a request head means at this door: who, which server, what travels on. Made once per head on a fast lane."""

    __slots__ = (
        "forward", "generation", "idempotency", "method", "modern", "name", "noted", "principal", "server", "session",
        "text", "version",
    )  # fmt: skip

    def __init__(self, scanned: Scan, principal: Principal, server: str, generation: int) -> None:
        self.noted = scanned.noted
        self.text = scanned.text
        self.forward = b"".join(scanned.lines)
        self.principal = principal
        self.server = server
        self.generation = generation
        self.version = scanned.text(b"mcp-protocol-version")
        self.modern = self.version == MODERN
        self.method = scanned.text(b"mcp-method") if b"mcp-method" in scanned.noted else None
        self.name = header_value(scanned.text(b"mcp-name")) if b"mcp-name" in scanned.noted else None
        self.session = ""
        self.idempotency = scanned.text(b"idempotency-key")


class Visit:
    """One request at this door."""

    __slots__ = (
        "entry",
        "id",
        "live",
        "modern",
        "principal",
        "request",
        "request_id",
        "session",
        "started",
        "trace_id",
    )

    def __init__(self, request: web.BaseRequest, entry: Entry, live: Any, started: int) -> None:
        self.request = request
        self.entry = entry
        self.principal = entry.principal
        self.live = live
        self.started = started
        self.modern = entry.modern
        self.session = entry.session
        self.id = new_id("call")
        self.request_id = request_id(entry.noted, self.id)
        self.trace_id = ""

    @property
    def ip(self) -> str:
        return self.request.remote or ""


class McpDoor:
    """One per worker."""

    def __init__(
        self, proxy: Proxy, chain: Chain, identity: Identity, upstreams: Upstreams, sessions: SessionSeal,
        turnaway: Turnaway, body_limit: int,
    ) -> None:  # fmt: skip
        self.proxy = proxy
        self.chain = chain
        self.identity = identity
        self.upstreams = upstreams
        self.sessions = sessions
        self.turnaway = turnaway
        self.body_limit = body_limit
        self.held: Held | None = None
        self.once: OnceDoor | None = None

    async def handle(self, request: web.BaseRequest, server: str) -> web.StreamResponse:
        """Answer one request to `/mcp/{server}`. Raises nothing but ConnectionError and CancelledError."""
        started = time.perf_counter_ns()
        entry: Entry | None = None
        try:
            entry = await self.enter(request, server)
            visit = self._visit(request, entry, started)
            if request.method != "POST":
                return await self._other(visit)
            check_body_headers(entry.noted)
            body = await read_body(request, self.body_limit)
            if body is None:
                raise BodyTooLarge(limit=self.body_limit)
            return await self._post(visit, body)
        except EnterpriseError as error:
            principal = entry.principal if entry is not None else await self._principal(request)
            return await self.turnaway.refuse(request, error, principal, server, started)

    async def quick(self, request: Any) -> web.StreamResponse:
        """The same for a POST on a fast lane, whose head has been read before."""
        known = request.known
        entry: Entry | None = known.door
        try:
            if entry is None or entry.generation != self.identity.generation or entry.principal.watched(time.time()):
                known.door = None
                known.straight = None
                entry = known.door = await self.enter(request, known.path[5:])
                check_body_headers(entry.noted)
                known.straight = Straight.of(self, entry)
            return await self._post(self._visit(request, entry, request.started), request.body)
        except EnterpriseError as error:
            principal = entry.principal if entry is not None else await self._principal(request)
            return await self.turnaway.refuse(request, error, principal, known.path[5:], request.started)

    async def enter(self, request: web.BaseRequest, server: str) -> Entry:
        """Read a head. Raises EnterpriseError."""
        generation = self.identity.generation
        scanned = scan(request.raw_headers)
        principal = await self.turnaway.identify(self.identity, scanned.noted, request)
        entry = Entry(scanned, principal, server, generation)
        if server:
            self._open_session(entry)
        return entry

    async def _principal(self, request: web.BaseRequest) -> Principal | None:
        """Whose request it was that could not be read, if that much can be said."""
        try:
            return await self.turnaway.identify(self.identity, scan(request.raw_headers).noted, request)
        except EnterpriseError:
            return None

    def _visit(self, request: web.BaseRequest, entry: Entry, started: int) -> Visit:
        live = self.upstreams.get(entry.principal.org, entry.server)
        if live is None:
            raise NotFound(f"There is no MCP server {entry.server!r} here.")
        visit = Visit(request, entry, live, started)
        visit.live = live.view(visit)
        return visit

    # -- POST ----------------------------------------------------------------------------------------------------
    async def _post(self, visit: Visit, body: bytes) -> web.StreamResponse:
        try:
            message = decode(body)
            plain = plain_call(message)
            if plain is not None:
                self.check_routing(visit, message)
                return await self._judged(visit, message, TOOL, body, plain)
            if isinstance(message, list):
                return await self._batch(visit, message)
            check_envelope(message)
            method = message.get("method")
            self.check_routing(visit, message)
            subject = JUDGED.get(method) if method is not None else None
            if subject is not None and not (
                visit.modern and method == REMOVED and not message.get("params", {}).get("uri")
            ):
                return await self._judged(visit, message, subject, body, subject_of(message, subject.field))
        except RpcError as error:
            await self.turnaway.note(
                visit.principal, visit.live.name, error.message, visit.ip, visit.request_id, len(body), visit.started
            )
            return rpc_refusal(error)
        return await self._unjudged(visit, message, body)

    def check_routing(self, visit: Visit, message: dict[str, Any]) -> None:
        """`Mcp-Method` and `Mcp-Name` must repeat the body: required by 2026-07-28, and true wherever given."""
        entry = visit.entry
        if entry.method is None and not entry.modern and b"mcp-name" not in entry.noted:
            return
        method = message.get("method")
        modern = entry.modern and method is not None and "id" in message
        if (entry.method is not None or modern) and (entry.method or "") != (method or ""):
            raise RpcError(HEADER_MISMATCH, "The Mcp-Method header is not the method of the body.", message.get("id"))
        field = NAMED.get(method) if method is not None else None
        given = b"mcp-name" in entry.noted
        if field is None or not (given or modern):
            return
        name = (message.get("params") or {}).get(field)
        if name is not None and entry.name != name:
            raise RpcError(HEADER_MISMATCH, f"The Mcp-Name header is not the body's params.{field}.", message.get("id"))

    async def _judged(
        self, visit: Visit, message: dict[str, Any], subject: Subject, body: bytes, about: tuple[str, dict[str, Any]]
    ) -> web.StreamResponse:
        call = self.call(visit, visit.id, subject, *about)
        if "id" not in message:
            raise RpcError(INVALID_REQUEST, "A call needs an id: without one its result has nowhere to go.")
        head = self.head(visit, b"POST", len(body), call.id)
        call.trace_id = visit.trace_id
        if visit.entry.idempotency and message["method"] in HELD_METHODS:
            call.idempotency = visit.entry.idempotency
        verdict = self.chain.decide(call)
        if verdict is None:
            verdict = await self.chain.settle(call)
        return await self.deliver(visit, call, verdict, subject, head, body, message)

    async def deliver(
        self, visit: Visit, call: Call, verdict: Verdict, subject: Subject, head: bytes, body: bytes,
        message: dict[str, Any],
    ) -> web.StreamResponse:  # fmt: skip
        """Forward a call; or tell the agent that it was refused, or how it stands."""
        rpc_id = message["id"]
        try:
            passed = await self.proxy.forward(call, verdict, visit.live, head, body, visit.started)
        except UpstreamError as error:
            await self.proxy.kept()
            return json_response(200, failed_body(subject, rpc_id, call.id, error, visit.modern))
        if isinstance(passed, Verdict):
            return await self.refused(visit, message, subject, message["params"][subject.field], call, passed)
        return await self.answer(visit, passed, subject, rpc_id)

    async def carry(
        self, visit: Visit, passed: Passed, sender: Sender, subject: Subject, head: bytes, body: bytes, rpc_id: Any,
        sent: int,
    ) -> web.StreamResponse:  # fmt: skip
        """Go on with a call whose intent is written."""
        try:
            carried = await self.proxy.carry(passed, sender, head, body, sent=sent)
        except UpstreamError as error:
            return json_response(200, failed_body(subject, rpc_id, visit.id, error, visit.modern))
        if isinstance(carried, Verdict):
            return json_response(200, denied_body(subject, rpc_id, visit.id, carried, visit.modern))
        return await self.answer(visit, carried, subject, rpc_id)

    def revisit(self, request: web.BaseRequest, entry: Entry, live: Any, call: Call) -> Visit:
        """The visit of a call that has come as far as this on the straight way."""
        visit = Visit(request, entry, live, cast("LaneRequest", request).started)
        visit.id = visit.request_id = call.id
        visit.trace_id = call.trace_id
        return visit

    async def refused(
        self, visit: Visit, message: dict[str, Any], subject: Subject, name: str, call: Call, verdict: Verdict
    ) -> web.StreamResponse:
        """The answer to a call that is not forwarded as it came: denied, waiting for a person, or run once only."""
        if verdict.effect == "allow" and self.once is not None:
            return await self.once.answer(visit, message, subject, name, call, verdict)
        if verdict.effect == "hold" and self.held is not None and message["method"] in HELD_METHODS:
            return await self.held.answer(visit, message, subject, name, call, verdict)
        return json_response(200, denied_body(subject, message["id"], call.id, verdict, visit.modern))

    def call(self, visit: Visit, call_id: str, subject: Subject, name: str, arguments: dict[str, Any]) -> Call:
        live = visit.live
        if subject.field == "uri":
            arguments = {"uri": name, **arguments}
        raw = encode(arguments) if arguments else b""
        return Call(
            visit.principal, live.prefix + subject.prefix + name, raw, id=call_id, at=time.time(),
            upstream=live.name, ip=visit.ip, request_id=visit.request_id, args=arguments,
        )  # fmt: skip

    async def answer(self, visit: Visit, passed: Passed, subject: Subject, rpc_id: Any) -> web.StreamResponse:
        answer = passed.answer
        assert answer is not None  # noqa: S101 - set by Proxy.handle on this path
        headers = relay.response_headers(answer, self.sealer(visit), visit.request_id)
        body = answer.body
        if body is not None:
            self.proxy.finish(passed, relay.outcome_of(answer.status, body), answer.status, len(body))
            await self.proxy.kept()
            return await relay.whole(answer, headers, body, None)
        relayed = relay.Relayed()
        try:
            response = await relay.stream(
                visit.request, answer, headers, None, relayed, events=answer.content_type == STREAM_TYPE
            )
        except UpstreamError as error:
            self.proxy.finish(passed, outcome_of(error), answer.status, relayed.size, error.code)
            raise ConnectionResetError("The upstream broke off.") from error
        except (ConnectionError, asyncio.CancelledError):
            self.proxy.finish(passed, "cancelled", answer.status, relayed.size, "CLIENT_LEFT")
            raise
        finally:
            answer.close()
        failed = relayed.error or answer.status >= 400
        self.proxy.finish(passed, "error" if failed else "ok", answer.status, relayed.size)
        await self.proxy.kept()
        return response

    async def _batch(self, visit: Visit, messages: list[Any]) -> web.StreamResponse:
        from .batch import handle_batch

        if visit.entry.version not in BATCH_VERSIONS:
            raise RpcError(INVALID_REQUEST, "JSON-RPC batches exist in MCP 2025-03-26 only.")
        if not messages:
            raise RpcError(INVALID_REQUEST, "The batch is empty.")
        return await handle_batch(self, visit, messages)

    # -- what is not judged -----------------------------------------------------------------------------------------
    async def _unjudged(self, visit: Visit, message: dict[str, Any], body: bytes) -> web.StreamResponse:
        """Handshakes, pings, notifications, responses, completions, lists: forwarded; lists come back filtered."""
        await self._admit(visit)
        method = message.get("method")
        if method in TASK_METHODS and "id" in message and self.held is not None and (task := own_task(message)):
            return await self.held.task(visit, message, task)
        if method == "subscriptions/listen":
            refused = await self._judge_subscriptions(visit, message)
            if refused is not None:
                return refused
        head = self.head(visit, b"POST", len(body), visit.id)
        try:
            answer = await visit.live.send(head, body, stream=method == "subscriptions/listen")
        except UpstreamError as error:
            return json_response(error.status, failed_body(None, message.get("id"), visit.id, error, visit.modern))
        change = self.filter(visit) if method in LISTS else None
        return await self._pass(visit, answer, change)

    async def _judge_subscriptions(self, visit: Visit, message: dict[str, Any]) -> web.StreamResponse | None:
        """`subscriptions/listen` names resources to watch: each is judged like a read of it."""
        watched = _member(message.get("params") or {}, "notifications", dict)
        for uri in _member(watched, "resourceSubscriptions", list):
            subject = JUDGED["resources/subscribe"]
            if not isinstance(uri, str) or not uri.isprintable():
                raise BadRequest("resourceSubscriptions must be printable strings.")
            call = self.call(visit, new_id("call"), subject, uri, {})
            verdict = self.chain.decide(call) or await self.chain.settle(call)
            outcome = {"allow": "ok", "hold": "held"}.get(verdict.effect, "denied")
            verdict = await self.proxy.note(call, verdict, outcome, 0, visit.started)  # type: ignore[arg-type]
            if verdict.effect != "allow":
                return json_response(200, denied_body(subject, message.get("id"), call.id, verdict, visit.modern))
        return None

    async def _other(self, visit: Visit) -> web.StreamResponse:
        """GET opens or resumes an event stream, DELETE ends a session."""
        method = visit.request.method
        if method not in {"GET", "DELETE"}:
            raise MethodNotAllowed(f"{method} is not a method of an MCP endpoint.", allow="GET, POST, DELETE")
        await self._admit(visit)
        answer = await visit.live.send(self.head(visit, method.encode(), 0, visit.id), b"", stream=method == "GET")
        return await self._pass(visit, answer, self.filter(visit) if method == "GET" else None)

    async def _admit(self, visit: Visit) -> None:
        """Only an agent that may work at all opens sessions and lists. Raises Forbidden."""
        await self.chain.admit(visit.principal)

    async def _pass(self, visit: Visit, answer: Answer, change: relay.Filter | None) -> web.StreamResponse:
        headers = relay.response_headers(answer, self.sealer(visit), visit.request_id)
        events = answer.content_type == STREAM_TYPE
        try:
            body = answer.body
            if body is None and change is not None and not events:
                body = await relay.collect(answer)
            if body is not None:
                return await relay.whole(answer, headers, body, change)
            return await relay.stream(visit.request, answer, headers, change, relay.Relayed(), events=events)
        except UpstreamError as error:
            if visit.request.transport is None or visit.request.transport.is_closing():
                raise ConnectionResetError("The upstream broke off.") from error
            raise
        finally:
            answer.close()

    def filter(self, visit: Visit) -> relay.Filter:
        """What hides from this agent what it may not use, and shows the catalog what the server offers."""
        live = visit.live

        async def change(data: bytes) -> bytes | None:
            try:
                filtered = filter_message(data, live.name, self.chain.viewer(visit.principal))
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                raise UpstreamProtocol(f"The server's list cannot be read: {error}") from None
            if filtered is None:
                return None
            if await self.upstreams.saw(live, filtered.seen, whole=filtered.whole):
                # The listing taught the catalog something: judge what is visible by what is known now.
                await self.chain.admit(visit.principal)
                filtered = filter_message(data, live.name, self.chain.viewer(visit.principal))
            return filtered.body if filtered is not None else None

        return change

    # -- towards the upstream ------------------------------------------------------------------------------------
    def head(self, visit: Visit, method: bytes, length: int, call_id: str) -> bytes:
        visit.trace_id, traceparent = trace(visit.entry.noted, call_id)
        head: bytes = visit.live.head(method, visit.entry.forward + traceparent, length)
        return head

    def _open_session(self, entry: Entry) -> None:
        """Translate the agent's sealed session id into the upstream's. Raises NotFound for one it was never given: 404
        tells a client to start a new session."""
        sealed = entry.text(b"mcp-session-id")
        if not sealed:
            return
        principal = entry.principal
        session = self.sessions.open(principal.org, principal.agent_id, entry.server, sealed)
        if session is None:
            raise NotFound("There is no such session; initialize a new one.")
        entry.session = session
        entry.forward += b"Mcp-Session-Id: %b\r\n" % session.encode("latin-1")

    def sealer(self, visit: Visit) -> Callable[[str], str]:
        principal = visit.principal
        return lambda session: self.sessions.seal(principal.org, principal.agent_id, visit.live.name, session)


def _member(holder: dict[str, Any], key: str, kind: type[Any]) -> Any:
    """An optional member of one type. Raises BadRequest for what another reader could take for it."""
    value = holder.get(key)
    if (value is not None and not isinstance(value, kind)) or any(
        name != key and name.casefold() == key.casefold() for name in holder
    ):
        raise BadRequest(f"{key} must be spelt so, and be of the type that the protocol gives it.")
    return kind() if value is None else value
