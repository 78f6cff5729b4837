"""Refusals in MCP's own words. One place decides how a verdict or a failure reaches a model.

A refused `tools/call` is a *result* with `isError: true` and a sentence the model can act on: three JSON-RPC or HTTP
errors make OpenClaw pause the whole server. Reads and prompts have no such result, so theirs is a JSON-RPC error.
"""

from __future__ import annotations

from typing import Any, Final

from ...catalog.calls import Verdict
from ...catalog.errors import EnterpriseError
from ..wire import RawResponse, json_response
from .jsonrpc import RpcError, encode, error_body
from .mcpfacts import POLICY_DENIED, STATUS_OF, TOOL, UPSTREAM_FAILED, Subject

DECISION_META: Final = "enterprise.agenticmail/decision"


def tool_error(request_id: Any, text: str, meta: dict[str, Any], modern: bool) -> bytes:
    """A `tools/call` result that says no. `meta` tells programs what `text` tells the model."""
    result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": True}
    if modern:
        result["resultType"] = "complete"
    result["_meta"] = {DECISION_META: meta}
    return encode({"jsonrpc": "2.0", "id": request_id, "result": result})


def decision_meta(call_id: str, effect: str, code: str, retry_after: float = 0.0) -> dict[str, Any]:
    meta: dict[str, Any] = {"decision_id": call_id, "effect": effect, "code": code}
    if retry_after:
        meta["retry_after"] = round(retry_after, 3)
    return meta


def denied_body(subject: Subject, request_id: Any, call_id: str, verdict: Verdict, modern: bool) -> bytes:
    """The JSON-RPC answer to a call that policy refused."""
    meta = decision_meta(call_id, verdict.effect, verdict.code, verdict.retry_after)
    text = f"{verdict.reason} [{verdict.code}, decision {call_id}]"
    if subject is TOOL:
        return tool_error(request_id, text, meta, modern)
    return error_body(POLICY_DENIED, text, request_id, {DECISION_META: meta})


def failed_body(subject: Subject | None, request_id: Any, call_id: str, error: EnterpriseError, modern: bool) -> bytes:
    """The JSON-RPC answer to a call that was allowed but could not be made, or whose end is unknown."""
    meta = decision_meta(call_id, "allow", error.code, float(error.details.get("retry_after") or 0.0))
    text = f"{error.message} [{error.code}, decision {call_id}]"
    if subject is TOOL:
        return tool_error(request_id, text, meta, modern)
    return error_body(UPSTREAM_FAILED, text, request_id, {DECISION_META: meta})


def rpc_refusal(error: RpcError) -> RawResponse:
    """The answer to a body that could not be accepted."""
    return json_response(STATUS_OF.get(error.code, 200), error_body(error.code, error.message, error.request_id))


def http_refusal(error: EnterpriseError, request_id: str = "") -> RawResponse:
    """The answer to a request that never became a call: `{error, code, details}` with the error's own status."""
    body: dict[str, Any] = {"error": error.message, "code": error.code, "details": error.details}
    if request_id:
        body["request_id"] = request_id
    extra: list[tuple[bytes, bytes]] = []
    if error.status == 401:
        extra.append((b"WWW-Authenticate", b'Bearer realm="agenticmail-enterprise"'))
    if error.status == 405 and "allow" in error.details:
        extra.append((b"Allow", str(error.details["allow"]).encode()))
    if error.status in {429, 503}:
        extra.append((b"Retry-After", str(max(1, round(float(error.details.get("retry_after") or 1)))).encode()))
    return json_response(error.status, encode(body), extra)
