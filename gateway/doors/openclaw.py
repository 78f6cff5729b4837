"""`POST /tools/invoke` and `POST /openclaw/{upstream}/tools/invoke`: OpenClaw's own HTTP endpoint, governed.

OpenClaw takes a bearer of its token for an operator who may do everything, so the token is the gateway's, and an agent
has a key of ours. A body has one reading: it is understood field by field, judged, and written anew for OpenClaw; what
OpenClaw would read in its own way (two names, another case, arguments that are no object, `dryRun`, headers that add a
target to the call) is refused. Answers keep OpenClaw's shape, `{ok, result}` or `{ok: false, error: {type, message}}`.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, Final

import msgspec
from aiohttp import web

from ...catalog.calls import Call, Principal, Verdict
from ...catalog.errors import (
    BadRequest,
    BodyTooLarge,
    EnterpriseError,
    Forbidden,
    InvalidJson,
    MethodNotAllowed,
    NotFound,
    StoreUnavailable,
    UpstreamError,
    ValidationFailed,
)
from ...catalog.ids import new_id
from ...catalog.tools import TOOL_INDEX
from ...policies.chain import Chain
from ..identity import Identity
from ..pool import Answer
from ..proxy import Passed, Proxy, outcome_of
from ..upstreams import Live, Upstreams
from ..wire import Headers, RawResponse, encode_headers, json_response, read_body, status_line
from .headers import check_body_headers, request_id, scan, trace
from .jsonrpc import RpcError, decode, encode
from .relay import response_headers
from .turnaway import CODES, NOBODY, Turnaway

OPENCLAW: Final = "/openclaw/"
INVOKE: Final = "/tools/invoke"
NAMED: Final = re.compile(r"/openclaw/([a-z0-9][a-z0-9-]{0,62})/tools/invoke")
KIND: Final = "openclaw"
DEFAULT_NAME: Final = "openclaw"
AGENT_METADATA: Final = "openclaw_agent"
"""Key of an agent's metadata: the OpenClaw agent whose sessions it may name."""

MAX_ANSWER: Final = 64 * 1024 * 1024
MAX_TEXT: Final = 512
ALIASES: Final = {"cron": "automations"}
"""OpenClaw's other names for a tool at this endpoint."""

FIELDS: Final = frozenset(
    {"tool", "name", "action", "args", "sessionKey", "agentId", "idempotencyKey", "dryRun"}
)  # fmt: skip
STATUS: Final = {"RATE_LIMITED": 429, "JOURNAL_FULL": 503, "POLICY_STALE": 503, "POLICY_ERROR": 503}
TYPES: Final = {401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed"}


class Invocation(msgspec.Struct):
    """A body, understood. `judged` are the arguments as the tool will see them: `action` is one of them."""

    tool: str
    args: dict[str, Any]
    judged: dict[str, Any]
    action: str
    session_key: str
    agent_id: str
    idempotency_key: str

    def encoded(self) -> bytes:
        """The body for OpenClaw."""
        optional = {
            "action": self.action, "sessionKey": self.session_key, "agentId": self.agent_id,
            "idempotencyKey": self.idempotency_key,
        }  # fmt: skip
        body = {"tool": self.tool, "args": self.args, **{name: value for name, value in optional.items() if value}}
        return encode(body)


class OpenClawDoor:
    """One per worker."""

    def __init__(
        self, proxy: Proxy, chain: Chain, identity: Identity, upstreams: Upstreams, turnaway: Turnaway, body_limit: int
    ) -> None:
        self._proxy = proxy
        self._chain = chain
        self._identity = identity
        self._upstreams = upstreams
        self._turnaway = turnaway
        self._body_limit = body_limit

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Raises nothing but ConnectionError and CancelledError."""
        started = time.perf_counter_ns()
        principal: Principal | None = None
        live: Live | None = None
        try:
            noted = scan(request.raw_headers).noted
            principal = await self._turnaway.identify(self._identity, noted, request)
            live = self._upstream(principal.org, request.raw_path)
            if request.method != "POST":
                raise MethodNotAllowed("Use POST here.", allow="POST")
            _no_hidden_targets(request)
            invocation = understood(await self._body(request, noted))
            await self._bind(principal, invocation)
            return await self._invoke(request, noted, principal, live, invocation, started)
        except EnterpriseError as error:
            return await self._refuse(request, error, principal, live, started)

    def _upstream(self, org: str, path: str) -> Live:
        """The OpenClaw that a path means. Raises NotFound."""
        match = NAMED.fullmatch(path)
        if match is None and path != INVOKE:
            raise NotFound("There is no such endpoint; paths are exact and lower-case.")
        found: list[Live] = self._upstreams.others(org, KIND)
        if match is not None:
            found = [live for live in found if live.name == match[1]]
        elif len(found) > 1:
            found = [live for live in found if live.name == DEFAULT_NAME]
            if not found:
                raise NotFound("There are several OpenClaw upstreams; use /openclaw/NAME/tools/invoke.")
        if not found:
            raise NotFound("There is no such OpenClaw upstream, or it is disabled.")
        return found[0]

    async def _body(self, request: web.BaseRequest, noted: dict[bytes, bytes]) -> Any:
        check_body_headers(noted)
        body = await read_body(request, self._body_limit)
        if body is None:
            raise BodyTooLarge(limit=self._body_limit)
        try:
            return decode(body)
        except RpcError as error:
            raise InvalidJson(error.message) from None

    async def _bind(self, principal: Principal, invocation: Invocation) -> None:
        """An agent speaks for its own OpenClaw agent and for no other. Raises Forbidden."""
        key, agent = invocation.session_key, invocation.agent_id
        try:
            subject, _ = await self._chain.subject(principal, invocation.tool)
        except TimeoutError:
            raise StoreUnavailable from None
        own = subject.agent.metadata.get(AGENT_METADATA, "") if subject.agent is not None else ""
        if agent and agent != own:
            raise Forbidden(f"This agent may not name the OpenClaw agent {agent!r} (metadata {AGENT_METADATA}).")
        if key and key != "main" and not (own and key.startswith(f"agent:{own}:")):
            raise Forbidden(f"This agent may not name the session {key!r} (metadata {AGENT_METADATA}).")
        if own and (not key or key == "main"):
            invocation.agent_id = own

    async def _invoke(
        self, request: web.BaseRequest, noted: dict[bytes, bytes], principal: Principal, live: Live,
        invocation: Invocation, started: int,
    ) -> web.StreamResponse:  # fmt: skip
        call_id = new_id("call")
        trace_id, traceparent = trace(noted, call_id)
        call = Call(
            principal, invocation.tool, encode(invocation.judged) if invocation.judged else b"", id=call_id,
            at=time.time(), door="openclaw", upstream=live.name, ip=request.remote or "",
            request_id=request_id(noted, call_id), trace_id=trace_id,
        )  # fmt: skip
        call._args = invocation.judged
        body = invocation.encoded()
        lines = b"Content-Type: application/json\r\nAccept: application/json\r\nX-Request-Id: %b\r\n%b" % (
            call.request_id.encode(), traceparent,
        )  # fmt: skip
        try:
            passed = await self._proxy.handle(call, live, live.head(b"POST", lines, len(body)), body, started)
        except UpstreamError as error:
            return failure(error.status, "upstream_error", error.message, error.code, call.id, error)
        if isinstance(passed, Verdict):
            return refusal(passed, call.id)
        return await self._answer(passed)

    async def _answer(self, passed: Passed) -> RawResponse:
        answer = passed.answer
        assert answer is not None  # noqa: S101 - set by Proxy.handle on this path
        try:
            body = answer.body if answer.body is not None else await answer.read(MAX_ANSWER)
        except UpstreamError as error:
            self._proxy.finish(passed, outcome_of(error), answer.status, 0, error.code)
            return failure(error.status, "upstream_error", error.message, error.code, passed.call.id, error)
        except asyncio.CancelledError:
            self._proxy.finish(passed, "cancelled", answer.status, 0, "CLIENT_LEFT")
            raise
        finally:
            answer.close()
        self._proxy.finish(passed, "ok" if succeeded(answer, body) else "error", answer.status, len(body))
        headers: Headers = response_headers(answer, None, passed.call.request_id)
        return RawResponse(answer.status, status_line(answer.status) + encode_headers(headers), body)

    async def _refuse(
        self, request: web.BaseRequest, error: EnterpriseError, principal: Principal | None, live: Live | None,
        started: int,
    ) -> RawResponse:  # fmt: skip
        """Record and answer what failed before it was a call."""
        call_id = await self._turnaway.note(
            principal or NOBODY, live.name if live is not None else "", error.message, request.remote or "", "", 0,
            started, CODES.get(type(error), "BAD_REQUEST"),
        )  # fmt: skip
        response = failure(
            error.status, TYPES.get(error.status, "invalid_request"), error.message, error.code, call_id, error
        )
        if not request.content.is_eof():
            response.force_close()  # the body was not read: what follows on this connection is not a request
        return response


def _no_hidden_targets(request: web.BaseRequest) -> None:
    """`x-openclaw-*` headers choose scopes, channels and recipients behind the judge's back. Raises BadRequest."""
    for name in request.headers:
        if name.lower().startswith("x-openclaw-"):
            raise BadRequest(f"The header {name} is for the operator to set, in the headers of the upstream.")
    if request.query_string:
        raise BadRequest("This path takes no query parameters.")


def understood(body: Any) -> Invocation:
    """A body with exactly one reading. Raises ValidationFailed with every fault."""
    if not isinstance(body, dict):
        raise ValidationFailed([("", "invalid", "The body is a JSON object.")])
    faults = [(f"/{key}", "unknown", f"{key!r} is no field of this request.") for key in body if key not in FIELDS]
    texts: dict[str, str] = {}
    for name in ("tool", "name", "action", "sessionKey", "agentId", "idempotencyKey"):
        value = body.get(name)
        if value is None:
            value = ""
        if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable() or value != value.strip():
            text = f"{name} is a printable string of at most {MAX_TEXT} characters, without space at its ends."
            faults.append((f"/{name}", "invalid", text))
            value = ""
        texts[name] = value
    args = body.get("args")
    if args is None:
        args = {}
    if not isinstance(args, dict):
        faults.append(("/args", "invalid", "The arguments are an object."))
        args = {}
    dry = body.get("dryRun")
    if dry is not None and dry is not False:
        faults.append(("/dryRun", "unsupported", "OpenClaw makes the call all the same; leave dryRun out."))
    if texts["tool"] and texts["name"] and texts["tool"] != texts["name"]:
        faults.append(("/name", "ambiguous", "tool and name differ; give one of them."))
    tool = texts["name"] or texts["tool"]
    if not tool and not any(fault[0] in {"/tool", "/name"} for fault in faults):
        faults.append(("/tool", "required", "Name the tool to invoke."))
    folded = tool.casefold()
    if folded != tool and (folded in TOOL_INDEX or folded in ALIASES):
        faults.append(("/tool", "invalid", f"This tool's name is spelt {folded!r}."))
    if faults:
        raise ValidationFailed(faults)
    action = texts["action"]
    judged = {**args, "action": action} if action and "action" not in args else args
    return Invocation(
        ALIASES.get(tool, tool), args, judged, "" if "action" in args else action, texts["sessionKey"],
        texts["agentId"], texts["idempotencyKey"],
    )  # fmt: skip


class _Ok(msgspec.Struct):
    ok: bool = False


def succeeded(answer: Answer, body: bytes) -> bool:
    """Whether OpenClaw says that the tool did its work."""
    try:
        return answer.status < 400 and msgspec.json.decode(body, type=_Ok).ok
    except (msgspec.MsgspecError, UnicodeError):
        return False


def refusal(verdict: Verdict, call_id: str) -> RawResponse:
    """A verdict in OpenClaw's words."""
    status = STATUS.get(verdict.code, 403)
    error: dict[str, Any] = {
        "type": "tool_call_blocked", "message": verdict.reason, "requiresApproval": verdict.effect == "hold",
        "code": verdict.code, "decision_id": call_id,
    }  # fmt: skip
    extra: Headers = []
    if verdict.retry_after or status == 503:
        extra.append((b"Retry-After", str(max(1, round(verdict.retry_after))).encode()))
    return json_response(status, encode({"ok": False, "error": error}), extra)


def failure(
    status: int, kind: str, message: str, code: str, call_id: str, error: EnterpriseError | None = None
) -> RawResponse:
    """What is no verdict on a call, in OpenClaw's words."""
    facts: dict[str, Any] = {"type": kind, "message": message, "code": code, "decision_id": call_id}
    extra: Headers = []
    if error is not None:
        if error.details.get("fields"):
            facts["fields"] = error.details["fields"]
        if status == 401:
            extra.append((b"WWW-Authenticate", b'Bearer realm="agenticmail-enterprise"'))
        if status == 405:
            extra.append((b"Allow", b"POST"))
        if status in {429, 503}:
            extra.append((b"Retry-After", str(max(1, round(float(error.details.get("retry_after") or 1)))).encode()))
    return json_response(status, encode({"ok": False, "error": facts}), extra)
