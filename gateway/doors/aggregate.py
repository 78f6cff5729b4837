"""`/mcp`: every server an agent may use, as one MCP server. Tools and prompts are named `server__name`.

Here the gateway is a server itself, in both eras, and a client of each upstream in whichever era that one speaks. A
session id (handshake era) carries what `initialize` said, sealed to the agent, so that any worker and any restart can
go on with it; conversations with upstreams are opened when first needed.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import msgspec
from aiohttp import web

from ...catalog.calls import Principal, Verdict
from ...catalog.errors import BadRequest, BodyTooLarge, EnterpriseError, MethodNotAllowed, NotFound, UpstreamError
from ..mcpclient import RpcFailure
from ..proxy import Passed, outcome_of
from ..wire import RawResponse, json_response, read_body, status_line
from .aggregate_calls import CallSender, Conversation, Reply, answer_stream
from .aggregate_hello import DISCOVERED, begin, unpack
from .aggregate_lists import merged, owner_of_uri, remember, split_name
from .aggregate_session import SessionStream, Subscriber, unsubscribe
from .aggregate_streams import NOWHERE, Streams, listen
from .headers import check_body_headers
from .held import HELD_METHODS, TASK_METHODS, own_task
from .jsonrpc import RpcError, check_envelope, decode, encode, error_body, subject_of
from .mcp import McpDoor, Visit
from .mcpfacts import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    INVALID_REQUEST,
    JUDGED,
    LISTEN,
    LISTS,
    META_CAPABILITIES,
    META_CLIENT,
    META_VERSION,
    METHOD_NOT_FOUND,
    MODERN,
    RESOURCE_NOT_FOUND,
    STATUS_OF,
    UPSTREAM_FAILED,
    Subject,
)
from .refusals import denied_body, failed_body, http_refusal, rpc_refusal
from .siblings import Siblings

MAX_CONVERSATIONS: Final = 5_000


class AggregateDoor:
    """One per worker. Borrows the transparent door's parts."""

    def __init__(self, door: McpDoor, siblings: Siblings) -> None:
        self.door = door
        self.siblings = siblings
        self.streams = Streams(door)
        self._parting: set[asyncio.Task[None]] = set()
        self._conversations: dict[tuple[str, str, str], Conversation] = {}

    def end_streams(self) -> None:
        """The gateway stops: say so on every open stream."""
        self.streams.end()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request to `/mcp`. Raises nothing but ConnectionError and CancelledError."""
        return await self._handle(request, handed_over=False)

    async def handle_here(self, request: web.BaseRequest) -> web.StreamResponse:
        """The same for a request that another worker handed over."""
        return await self._handle(request, handed_over=True)

    async def _handle(self, request: web.BaseRequest, *, handed_over: bool) -> web.StreamResponse:
        started = time.perf_counter_ns()
        principal: Principal | None = None
        door = self.door
        try:
            entry = await door.enter(request, "")
            principal = entry.principal
            visit = Visit(request, entry, None, started)
            body = await self._body(visit) if request.method == "POST" else b""
            home = self._home(visit)
            if home != self.siblings.worker and not handed_over:
                response = await self._hand_over(visit, home, body)
                if response is not None:
                    return response
            if request.method == "POST":
                return await self._post(visit, body)
            if request.method == "DELETE":
                return await self._end(visit)
            if request.method == "GET":
                return await self._stream(visit)
            raise MethodNotAllowed(f"{request.method} is not a method of an MCP endpoint.", allow="GET, POST, DELETE")
        except EnterpriseError as error:
            return await door.turnaway.refuse(request, error, principal, "", started)

    def _home(self, visit: Visit) -> int:
        """The worker that a request's session lives at; this one for what belongs to no session."""
        here = self.siblings.worker
        sealed = visit.entry.text(b"mcp-session-id")
        if self.siblings.count == 1 or visit.modern or not sealed:
            return here
        payload = self.door.sessions.open(visit.principal.org, visit.principal.agent_id, "", sealed)
        return here if payload is None else self.siblings.home(unpack(payload).get("w"))

    async def _hand_over(self, visit: Visit, home: int, body: bytes) -> web.StreamResponse | None:
        """Let the session's own worker answer. None when it does not serve now: then this one does, with conversations
        of its own, as after a restart."""
        try:
            return await self.siblings.forward(visit.request, home, body)
        except UpstreamError as error:
            return http_refusal(error, visit.request_id)  # the call, if there was one, is on record over there

    async def _body(self, visit: Visit) -> bytes:
        """Raises BodyTooLarge, UnsupportedMedia."""
        check_body_headers(visit.entry.noted)
        body = await read_body(visit.request, self.door.body_limit)
        if body is None:
            raise BodyTooLarge(limit=self.door.body_limit)
        return body

    async def _post(self, visit: Visit, body: bytes) -> web.StreamResponse:
        door = self.door
        try:
            message = check_envelope(decode(body))
            door.check_routing(visit, message)
            conversation = self._conversation(visit, message)
            try:
                return await self._dispatch(visit, message, conversation, body)
            finally:
                if visit.modern:
                    self._part(conversation)
        except RpcError as error:
            await door.turnaway.note(
                visit.principal, "", error.message, visit.ip, visit.request_id, len(body), visit.started
            )
            return rpc_refusal(error)

    async def _dispatch(
        self, visit: Visit, message: dict[str, Any], conversation: Conversation, body: bytes
    ) -> web.StreamResponse:
        method = message.get("method")
        if method in JUDGED and "id" not in message:
            raise RpcError(INVALID_REQUEST, "A call needs an id: without one its result has nowhere to go.")
        if method is None or "id" not in message:
            await conversation.heard(message)
            return RawResponse(202, status_line(202), b"")
        await self.door.chain.admit(visit.principal)
        if method == "initialize":
            return self._initialize(visit, message)
        subject = JUDGED.get(method)
        if subject is not None:
            return await self._judged(visit, message, subject, conversation, body)
        if method in TASK_METHODS and self.door.held is not None and (task := own_task(message)):
            return await self.door.held.task(visit, message, task)
        if method == LISTEN and visit.modern:
            wanted = (message.get("params") or {}).get("notifications")
            if isinstance(wanted, dict) and wanted.get("resourceSubscriptions"):
                await self._learn_offers(visit, conversation)
            return await listen(self.streams, visit, message, self.door.upstreams.of(visit.principal.org))
        result = await self._unjudged(visit, message, method, conversation)
        if visit.modern:
            result = {"resultType": "complete", **result}
        return json_response(200, encode({"jsonrpc": "2.0", "id": message["id"], "result": result}))

    def _part(self, conversation: Conversation) -> None:
        """A stateless request is over: so are the sessions that servers of the handshake era wanted for it."""
        if any(link.session for _, link in conversation.links()):
            task = asyncio.get_running_loop().create_task(conversation.close())
            self._parting.add(task)
            task.add_done_callback(self._parting.discard)

    # -- conversations -------------------------------------------------------------------------------------------
    def _conversation(self, visit: Visit, message: dict[str, Any]) -> Conversation:
        """What this request belongs to: a session (handshake era), or itself alone (2026-07-28)."""
        if visit.modern:
            return self._modern(visit, message)
        if message.get("method") == "initialize":
            return Conversation(visit.principal, "", {}, {})
        if not visit.entry.text(b"mcp-session-id"):
            raise RpcError(INVALID_REQUEST, "Send the Mcp-Session-Id that initialize gave you.", message.get("id"))
        return self._session(visit)

    def _session(self, visit: Visit) -> Conversation:
        """The session that a request names. Raises NotFound."""
        sealed = visit.entry.text(b"mcp-session-id")
        key = (visit.principal.org, visit.principal.agent_id, sealed)
        known = self._conversations.get(key)
        if known is not None:
            return known
        payload = self.door.sessions.open(visit.principal.org, visit.principal.agent_id, "", sealed)
        if payload is None:
            raise NotFound("There is no such session; initialize a new one.")
        said = unpack(payload)
        conversation = Conversation(visit.principal, said["v"], said["c"], said["i"])
        if len(self._conversations) >= MAX_CONVERSATIONS:
            self._conversations.pop(next(iter(self._conversations))).drop()
        self._conversations[key] = conversation
        return conversation

    def _modern(self, visit: Visit, message: dict[str, Any]) -> Conversation:
        if message.get("method") is None or "id" not in message:
            return Conversation(visit.principal, MODERN, {}, {})
        meta = (message.get("params") or {}).get("_meta")
        if not isinstance(meta, dict) or META_VERSION not in meta or not isinstance(meta.get(META_CAPABILITIES), dict):
            raise RpcError(
                INVALID_PARAMS, f"params._meta must carry {META_VERSION} and {META_CAPABILITIES}.", message["id"]
            )
        if meta[META_VERSION] != MODERN:
            raise RpcError(
                HEADER_MISMATCH, "The MCP-Protocol-Version header is not the envelope's version.", message["id"]
            )
        info = meta.get(META_CLIENT)
        return Conversation(visit.principal, MODERN, meta[META_CAPABILITIES], info if isinstance(info, dict) else {})

    def _initialize(self, visit: Visit, message: dict[str, Any]) -> RawResponse:
        payload, result = begin(message, visit.id[-16:], self.siblings.worker)
        sealed = self.door.sessions.seal(visit.principal.org, visit.principal.agent_id, "", payload)
        body = encode({"jsonrpc": "2.0", "id": message["id"], "result": result})
        return json_response(200, body, [(b"Mcp-Session-Id", sealed.encode())])

    async def _stream(self, visit: Visit) -> web.StreamResponse:
        """The session's own stream. The stateless era has none, and a client of any era may look: no incident.

        A GET with a body is one: it is something else that was dressed up as a GET."""
        if visit.request.content_length or visit.request.body_exists:
            raise BadRequest("A GET has no body here.")
        if visit.modern or not visit.entry.text(b"mcp-session-id"):
            return http_refusal(MethodNotAllowed("Only a session has a stream here.", allow="POST"), visit.request_id)
        conversation = self._session(visit)
        await self.door.chain.admit(visit.principal)
        with self.streams.place(visit.principal):
            stream = SessionStream(self.streams, visit, conversation)
            home = self._home(visit)
            if home != self.siblings.worker:  # a guest while its own worker is away: it shall come again then
                stream.welcome(lambda: not self.siblings.there(home))
            return await stream.serve()

    async def _end(self, visit: Visit) -> web.StreamResponse:
        sealed = visit.entry.text(b"mcp-session-id")
        principal = visit.principal
        if self.door.sessions.open(principal.org, principal.agent_id, "", sealed) is None:
            raise NotFound("There is no such session.")
        conversation = self._conversations.pop((principal.org, principal.agent_id, sealed), None)
        if conversation is not None:
            await conversation.close()
        return RawResponse(204, status_line(204), b"")

    # -- requests ------------------------------------------------------------------------------------------------
    async def _judged(
        self, visit: Visit, message: dict[str, Any], subject: Subject, conversation: Conversation, body: bytes
    ) -> web.StreamResponse:
        """A call, read or prompt: to the one server it names."""
        name, arguments = subject_of(message, subject.field)
        subscribing = message["method"] == "resources/subscribe"
        if subscribing and visit.modern:
            raise RpcError(METHOD_NOT_FOUND, "2026-07-28 has subscriptions/listen for this.", message["id"])
        if subject.field == "uri":
            live, local = await self._owner(visit, conversation, name), name
        else:
            server, local = split_name(name)
            live = self.door.upstreams.get(visit.principal.org, server)
        if live is None:
            return await self._nowhere(visit, message, subject, name)
        visit.live = live
        call = self.door.call(visit, visit.id, subject, local, arguments)
        if visit.entry.idempotency and message["method"] in HELD_METHODS:
            call.idempotency = visit.entry.idempotency
        params = {**(message.get("params") or {}), subject.field: local}
        sender: CallSender | Subscriber
        if subscribing:
            sender = Subscriber(conversation, live, local)
        else:
            sender = CallSender(conversation, live, str(message["method"]), params)
        reply = Reply(visit, message["id"], conversation)
        try:
            passed = await self.door.proxy.handle(call, sender, b"", body, visit.started)
        except RpcFailure as failure:
            return self._rpc_failure(message["id"], failure)
        except UpstreamError as error:
            return json_response(200, failed_body(subject, message["id"], call.id, error, visit.modern))
        if isinstance(passed, Verdict):
            return await self.door.refused(visit, message, subject, local, call, passed)
        return await self._finish(visit, passed, sender, reply, subject)

    async def _finish(
        self, visit: Visit, passed: Passed, sender: CallSender | Subscriber, reply: Reply, subject: Subject
    ) -> web.StreamResponse:
        """Read the server's answer to its end and write it in the agent's era."""
        proxy = self.door.proxy
        try:
            result = await sender.result(passed.answer, reply.relay)
        except RpcFailure as failure:
            proxy.finish(passed, "error", 200, 0, "RPC_ERROR")
            return await answer_stream(reply, {"error": failure.error})
        except UpstreamError as error:
            proxy.finish(passed, outcome_of(error), 0, 0, error.code)
            body = _decoded(failed_body(subject, reply.rpc_id, passed.call.id, error, visit.modern))
            return await answer_stream(reply, body)
        except (ConnectionError, asyncio.CancelledError):
            proxy.finish(passed, "cancelled", 0, 0, "CLIENT_LEFT")
            raise
        if visit.modern:
            result.setdefault("resultType", "complete")
        size = len(encode(result))
        proxy.finish(passed, "error" if result.get("isError") is True else "ok", 200, size)
        return await answer_stream(reply, {"result": result})

    async def _nowhere(self, visit: Visit, message: dict[str, Any], subject: Subject, name: str) -> web.StreamResponse:
        """The name leads to no server of this organisation: judged as what it is, an unknown tool."""
        visit.live = NOWHERE
        call = self.door.call(visit, visit.id, subject, name, {})
        chain = self.door.chain
        verdict = chain.decide(call) or await chain.settle(call)
        if verdict.effect == "allow":  # a profile may allow unknown tools; there is still nothing to call
            verdict = Verdict(
                "deny", "door", "NOT_FOUND", f"There is no server behind {name!r}. Names are server__name."
            )
        verdict = await self.door.proxy.refuse(call, verdict, 0, visit.started)
        if subject.field == "uri" and verdict.code == "NOT_FOUND":
            return json_response(200, error_body(RESOURCE_NOT_FOUND, verdict.reason, message["id"]))
        return json_response(200, denied_body(subject, message["id"], call.id, verdict, visit.modern))

    async def _unjudged(
        self, visit: Visit, message: dict[str, Any], method: str, conversation: Conversation
    ) -> dict[str, Any]:
        params = message.get("params") or {}
        if method in LISTS:
            return await self._list(visit, method, conversation)
        if method == "ping" and not visit.modern:
            return {}
        if method == "server/discover":
            return dict(DISCOVERED)
        if method == "logging/setLevel":
            await conversation.broadcast(method, params)
            return {}
        if method == "resources/unsubscribe" and not visit.modern:
            uri = params.get("uri")
            if not isinstance(uri, str):
                raise RpcError(INVALID_PARAMS, "params.uri must be a string.", message["id"])
            await unsubscribe(conversation, uri)
            return {}
        if method == "completion/complete":
            return await self._complete(visit, message, conversation)
        raise RpcError(METHOD_NOT_FOUND, f"The aggregated endpoint does not serve {method}.", message["id"])

    async def _list(self, visit: Visit, method: str, conversation: Conversation) -> dict[str, Any]:
        """One list over all servers, asked at the same time; a server that does not answer is left out and named."""
        key, field, prefix = LISTS[method]
        door = self.door
        lives = door.upstreams.of(visit.principal.org)
        answers = await asyncio.gather(*(conversation.list_from(live, method, key) for live in lives))
        missing: dict[str, str] = {}
        parts: list[tuple[Any, list[dict[str, Any]]]] = []
        for live, (items, problem) in zip(lives, answers, strict=True):
            if problem:
                missing[live.name] = problem
                continue
            parts.append((live, items))
            await door.upstreams.saw(live, {key: items}, whole=True)
        await door.chain.admit(visit.principal)
        result: dict[str, Any] = {key: merged(parts, field, prefix, door.chain.viewer(visit.principal), key)}
        if visit.modern:
            result |= {"ttlMs": 0, "cacheScope": "private"}
        if missing:
            result["_meta"] = {"enterprise.agenticmail/unavailable": missing}
        return result

    async def _owner(self, visit: Visit, conversation: Conversation, uri: str) -> Any | None:
        """The server a resource belongs to, or None."""
        lives = self.door.upstreams.of(visit.principal.org)
        found = owner_of_uri(lives, uri)
        if found is None and await self._learn_offers(visit, conversation):
            found = owner_of_uri(lives, uri)
        return found

    async def _learn_offers(self, visit: Visit, conversation: Conversation) -> bool:
        """Ask the servers that this worker has not yet seen the resources of: their list may have been asked for at
        another worker, or before a restart. True when there were any."""
        asked = [
            (live, method, key)
            for live in self.door.upstreams.of(visit.principal.org)
            for method, (key, field, _) in LISTS.items()
            if field != "name" and key not in live.offers
        ]
        answers = await asyncio.gather(*(conversation.list_from(*about) for about in asked))
        for (live, _, key), (items, problem) in zip(asked, answers, strict=True):
            if not problem:
                remember(live, key, items)
                await self.door.upstreams.saw(live, {key: items}, whole=True)
        return bool(asked)

    async def _complete(self, visit: Visit, message: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
        params = message.get("params") or {}
        ref = params.get("ref")
        name = ref.get("name", ref.get("uri")) if isinstance(ref, dict) else None
        if not isinstance(ref, dict) or not isinstance(name, str):
            raise RpcError(INVALID_PARAMS, "completion/complete needs a ref with a name or uri.", message["id"])
        if "name" in ref:
            server, local = split_name(name)
            live, ref = self.door.upstreams.get(visit.principal.org, server), {**ref, "name": local}
            governed = f"{server}__prompt:{local}"
        else:
            live, local = await self._owner(visit, conversation, name), name
            governed = f"{live.name}__template:{name}" if live is not None else ""
        visible = self.door.chain.viewer(visit.principal)
        if live is None or not visible(governed):
            raise RpcError(INVALID_PARAMS, "There is no such prompt or resource.", message["id"])
        link = conversation.link(live)
        try:
            await link.open()
            return await link.request("completion/complete", {**params, "ref": ref})
        except RpcFailure as failure:
            raise RpcError(int(failure.error.get("code", UPSTREAM_FAILED)), failure.message, message["id"]) from None
        except UpstreamError as error:
            raise RpcError(UPSTREAM_FAILED, error.message, message["id"]) from None

    @staticmethod
    def _rpc_failure(rpc_id: Any, failure: RpcFailure) -> RawResponse:
        status = STATUS_OF.get(failure.error.get("code", 0), 200)
        return json_response(status, encode({"jsonrpc": "2.0", "id": rpc_id, "error": failure.error}))


def _decoded(body: bytes) -> dict[str, Any]:
    message: dict[str, Any] = msgspec.json.decode(body)
    return {key: message[key] for key in ("result", "error") if key in message}
