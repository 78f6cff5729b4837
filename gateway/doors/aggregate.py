"""`/mcp`: every server an agent may use, as one MCP server. Tools and prompts are named `server__name`.

Here the gateway is a server itself, in both eras, and a client of each upstream in whichever era that one speaks. A
session id (handshake era) carries what `initialize` said, sealed to the agent, so that any worker and any restart can
go on with it; conversations with upstreams are opened when first needed.
"""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any, Final

import msgspec
from aiohttp import web

from ...catalog.calls import Principal, Verdict
from ...catalog.errors import BodyTooLarge, EnterpriseError, MethodNotAllowed, NotFound, UpstreamError
from ..mcpclient import RpcFailure
from ..proxy import Passed, outcome_of
from ..wire import RawResponse, encode_headers, json_response, read_body, status_line
from .aggregate_calls import CallSender, Conversation, Reply, answer_stream
from .aggregate_lists import merged, owner_of_uri, split_name
from .headers import check_body_headers
from .held import HELD_METHODS, TASK_METHODS, TASKS, own_task
from .jsonrpc import RpcError, check_envelope, decode, encode, error_body, subject_of
from .mcp import McpDoor, Visit
from .mcpfacts import (
    HANDSHAKE,
    HEADER_MISMATCH,
    INVALID_PARAMS,
    INVALID_REQUEST,
    JUDGED,
    LISTS,
    META_CAPABILITIES,
    META_CLIENT,
    META_VERSION,
    METHOD_NOT_FOUND,
    MODERN,
    RESOURCE_NOT_FOUND,
    STATUS_OF,
    UNSUPPORTED_VERSION,
    UPSTREAM_FAILED,
    Subject,
)
from .refusals import denied_body, failed_body, rpc_refusal

SERVER_INFO: Final = {"name": "agenticmail-enterprise", "title": "AgenticMail Enterprise gateway", "version": "0.1.0"}
CAPABILITIES: Final[dict[str, Any]] = {"tools": {}, "resources": {}, "prompts": {}, "completions": {}, "logging": {}}
INSTRUCTIONS: Final = "Tools and prompts are named server__name. A refused call says why and names its decision."
MAX_SESSION: Final = 2048
MAX_CONVERSATIONS: Final = 5_000

_session: Final = msgspec.json.Decoder(dict[str, Any]).decode


class AggregateDoor:
    """One per worker. Borrows the transparent door's parts."""

    def __init__(self, door: McpDoor) -> None:
        self.door = door
        self._conversations: dict[tuple[str, str, str], Conversation] = {}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request to `/mcp`. Raises nothing but ConnectionError and CancelledError."""
        started = time.perf_counter_ns()
        principal: Principal | None = None
        door = self.door
        try:
            entry = await door.enter(request, "")
            principal = entry.principal
            visit = Visit(request, entry, None, started)
            if request.method == "POST":
                return await self._post(visit)
            if request.method == "DELETE":
                return await self._end(visit)
            if request.method == "GET":
                raise MethodNotAllowed("This endpoint has no stream of its own.", allow="POST, DELETE")
            raise MethodNotAllowed(f"{request.method} is not a method of an MCP endpoint.", allow="POST, DELETE")
        except EnterpriseError as error:
            return await door.turnaway.refuse(request, error, principal, "", started)

    async def _post(self, visit: Visit) -> web.StreamResponse:
        door = self.door
        check_body_headers(visit.entry.noted)
        body = await read_body(visit.request, door.body_limit)
        if body is None:
            raise BodyTooLarge(limit=door.body_limit)
        try:
            message = check_envelope(decode(body))
            door.check_routing(visit, message)
            conversation = self._conversation(visit, message)
            return await self._dispatch(visit, message, conversation, body)
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
        result = await self._unjudged(visit, message, method, conversation)
        if visit.modern:
            result = {"resultType": "complete", **result}
        return json_response(200, encode({"jsonrpc": "2.0", "id": message["id"], "result": result}))

    # -- conversations -------------------------------------------------------------------------------------------
    def _conversation(self, visit: Visit, message: dict[str, Any]) -> Conversation:
        """What this request belongs to: a session (handshake era), or itself alone (2026-07-28)."""
        if visit.modern:
            return self._modern(visit, message)
        if message.get("method") == "initialize":
            return Conversation(visit.principal, "", {}, {})
        sealed = visit.entry.text(b"mcp-session-id")
        if not sealed:
            raise RpcError(INVALID_REQUEST, "Send the Mcp-Session-Id that initialize gave you.", message.get("id"))
        key = (visit.principal.org, visit.principal.agent_id, sealed)
        known = self._conversations.get(key)
        if known is not None:
            return known
        payload = self.door.sessions.open(visit.principal.org, visit.principal.agent_id, "", sealed)
        if payload is None:
            raise NotFound("There is no such session; initialize a new one.")
        said = _session(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
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
        params = message.get("params") or {}
        asked = params.get("protocolVersion")
        version = asked if asked in HANDSHAKE else HANDSHAKE[0]
        capabilities = params.get("capabilities")
        info = params.get("clientInfo")
        if not isinstance(capabilities, dict) or not isinstance(info, dict):
            raise RpcError(INVALID_PARAMS, "initialize needs capabilities and clientInfo.", message["id"])
        said = encode(
            {
                "v": version,
                "c": capabilities,
                "i": {"name": str(info.get("name", ""))[:64], "version": str(info.get("version", ""))[:32]},
                "n": visit.id[-16:],
            }
        )
        if len(said) > MAX_SESSION:
            raise RpcError(INVALID_PARAMS, "The capabilities are too large.", message["id"])
        payload = base64.urlsafe_b64encode(said).decode().rstrip("=")
        sealed = self.door.sessions.seal(visit.principal.org, visit.principal.agent_id, "", payload)
        result = {
            "protocolVersion": version,
            "capabilities": CAPABILITIES,
            "serverInfo": SERVER_INFO,
            "instructions": INSTRUCTIONS,
        }
        body = encode({"jsonrpc": "2.0", "id": message["id"], "result": result})
        return json_response(200, body, [(b"Mcp-Session-Id", sealed.encode())])

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
        if subject.field == "uri":
            live, local = owner_of_uri(self.door.upstreams.of(visit.principal.org), name), name
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
        sender = CallSender(conversation.link(live), str(message["method"]), params)
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
        self, visit: Visit, passed: Passed, sender: CallSender, reply: Reply, subject: Subject
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
        visit.live = _Nowhere()
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
            return {
                "supportedVersions": [MODERN],
                "capabilities": {**CAPABILITIES, "extensions": {TASKS: {}}},
                "serverInfo": SERVER_INFO,
                "instructions": INSTRUCTIONS,
                "ttlMs": 0,
                "cacheScope": "private",
            }
        if method == "logging/setLevel":
            await conversation.broadcast(method, params)
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

    async def _complete(self, visit: Visit, message: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
        params = message.get("params") or {}
        ref = params.get("ref")
        name = ref.get("name", ref.get("uri")) if isinstance(ref, dict) else None
        if not isinstance(ref, dict) or not isinstance(name, str):
            raise RpcError(INVALID_PARAMS, "completion/complete needs a ref with a name or uri.", message["id"])
        lives = self.door.upstreams.of(visit.principal.org)
        if "name" in ref:
            server, local = split_name(name)
            live, ref = self.door.upstreams.get(visit.principal.org, server), {**ref, "name": local}
            governed = f"{server}__prompt:{local}"
        else:
            live, local = owner_of_uri(lives, name), name
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


class _Nowhere:
    """Stands for the missing server when a name leads nowhere."""

    name = ""
    prefix = ""


def _decoded(body: bytes) -> dict[str, Any]:
    message: dict[str, Any] = msgspec.json.decode(body)
    return {key: message[key] for key in ("result", "error") if key in message}


__all__ = ["UNSUPPORTED_VERSION", "AggregateDoor", "encode_headers"]
