"""JSON-RPC batches, which MCP had in revision 2025-03-26 only: each call in it is judged and recorded by itself.

What is refused is answered here; the rest travels on as one smaller batch, and both halves come back together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from ...catalog.calls import Call, Verdict
from ...catalog.errors import JournalFull, UpstreamError
from ...catalog.ids import new_id
from ...catalog.records import Outcome
from ..proxy import Passed, Proxy, outcome_of
from ..wire import RawResponse, json_response
from . import relay
from .jsonrpc import RpcError, check_envelope, encode, subject_of
from .mcpfacts import INVALID_REQUEST, JUDGED, Subject
from .refusals import denied_body, failed_body

MAX_BATCH: Final = 100
_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_id: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

MakeCall = Callable[[str, Subject, str, dict[str, Any]], Call]
Send = Callable[[bytes], Awaitable[Any]]


class Part:
    """One judged call of the batch that travels on."""

    __slots__ = ("passed", "rpc_id", "subject")

    def __init__(self, passed: Passed, rpc_id: Any, subject: Subject) -> None:
        self.passed = passed
        self.rpc_id = rpc_id
        self.subject = subject


class Sorted(msgspec.Struct):
    """A batch after judgement."""

    onward: list[dict[str, Any]]
    answered: list[bytes]
    parts: list[Part]


async def judge(proxy: Proxy, make_call: MakeCall, messages: list[Any], size: int, started: int) -> Sorted:
    """Judge each message. Raises RpcError when the batch itself is malformed: then none of it is forwarded."""
    if len(messages) > MAX_BATCH:
        raise RpcError(INVALID_REQUEST, f"A batch holds at most {MAX_BATCH} messages.")
    prepared: list[tuple[dict[str, Any], Subject | None, str, dict[str, Any]]] = []
    for message in messages:
        check_envelope(message)
        subject = JUDGED.get(message.get("method", ""))
        if subject is not None and "id" not in message:
            raise RpcError(INVALID_REQUEST, "A call needs an id: without one its result has nowhere to go.")
        name, arguments = subject_of(message, subject.field) if subject is not None else ("", {})
        prepared.append((message, subject, name, arguments))
    result = Sorted([], [], [])
    for message, subject, name, arguments in prepared:
        if subject is None:
            result.onward.append(message)
            continue
        call = make_call(new_id("call"), subject, name, arguments)
        verdict = proxy.chain.decide(call)
        if verdict is None:
            verdict = await proxy.chain.settle(call)
        passed: Passed | Verdict
        if verdict.effect == "allow":
            passed = await begin(proxy, call, verdict, size, started)
        else:
            passed = await proxy.refuse(call, verdict, size, started)
        if isinstance(passed, Verdict):
            result.answered.append(denied_body(subject, message["id"], call.id, passed, False))
        else:
            result.onward.append(message)
            result.parts.append(Part(passed, message["id"], subject))
    return result


async def begin(proxy: Proxy, call: Call, verdict: Verdict, size: int, started: int) -> Passed | Verdict:
    """Write one call's intent, without sending it yet."""
    try:
        return await proxy.open(call, verdict, size, started)
    except JournalFull:
        return proxy.journal_full(call)


async def handle_batch(door: Any, visit: Any, messages: list[Any]) -> web.StreamResponse:
    """Judge, forward the rest, join the answers."""
    proxy: Proxy = door.proxy
    size = int(visit.request.content_length or 0)
    sorted_ = await judge(proxy, lambda *about: door.call(visit, *about), messages, size, visit.started)
    if not sorted_.onward:
        return json_response(200, b"[" + b",".join(sorted_.answered) + b"]")
    body = encode(sorted_.onward)
    try:
        answer = await visit.live.send(door.head(visit, b"POST", len(body), visit.id), body)
        answer_body = answer.body if answer.body is not None else None
        if answer_body is None and answer.content_type != "text/event-stream":
            answer_body = await answer.read(64 * 1024 * 1024)
    except UpstreamError as error:
        close(proxy, sorted_.parts, outcome_of(error), 0, error.code)
        failed = [failed_body(part.subject, part.rpc_id, part.passed.call.id, error, False) for part in sorted_.parts]
        return json_response(200, b"[" + b",".join([*sorted_.answered, *failed]) + b"]")
    except asyncio.CancelledError:
        close(proxy, sorted_.parts, "cancelled", 0, "CLIENT_LEFT")
        raise
    headers = relay.response_headers(answer, door.sealer(visit), visit.request_id)
    change = door.filter(visit)
    if answer_body is not None:
        close_by_answer(proxy, sorted_.parts, answer.status, answer_body)
        return await joined(answer, headers, answer_body, sorted_.answered, change)
    relayed = relay.Relayed()
    try:
        response = await relay.stream(
            visit.request, answer, headers, change, relayed, events=True, first=sorted_.answered
        )
    except UpstreamError as error:
        close(proxy, sorted_.parts, outcome_of(error), answer.status, error.code)
        raise ConnectionResetError("The upstream broke off.") from error
    except (ConnectionError, asyncio.CancelledError):
        close(proxy, sorted_.parts, "cancelled", answer.status, "CLIENT_LEFT")
        raise
    finally:
        answer.close()
    close(proxy, sorted_.parts, "error" if relayed.error or answer.status >= 400 else "ok", answer.status, "")
    return response


async def joined(
    answer: Any, headers: list[tuple[bytes, bytes]], body: bytes, answered: list[bytes], change: relay.Filter
) -> RawResponse:
    """The upstream's answer with ours beside it."""
    if not answered:
        return await relay.whole(answer, headers, body, change)
    changed = await change(body) if body.strip() else None
    theirs = body if changed is None else changed
    try:
        rest = (
            [bytes(item) for item in _array(theirs)]
            if theirs.strip()[:1] == b"["
            else ([theirs] if theirs.strip() else [])
        )
    except msgspec.MsgspecError:
        rest = []
    kept = [(name, value) for name, value in headers if name.lower() != b"content-type"]
    return json_response(200, b"[" + b",".join([*answered, *rest]) + b"]", kept)


def close_by_answer(proxy: Proxy, parts: list[Part], status: int, body: bytes) -> None:
    """Give each call the outcome its own answer says."""
    failed: dict[bytes, bool] = {}
    try:
        for item in _array(body) if body.lstrip()[:1] == b"[" else [body]:
            message = _id(item)
            failed[bytes(message.get("id", b""))] = relay.says_error(bytes(item))
    except (msgspec.MsgspecError, UnicodeError):
        failed.clear()
    for part in parts:
        error = status >= 400 or failed.get(encode(part.rpc_id), True)
        proxy.finish(part.passed, "error" if error else "ok", status, len(body))


def close(proxy: Proxy, parts: list[Part], outcome: Outcome, status: int, error: str) -> None:
    for part in parts:
        proxy.finish(part.passed, outcome, status, 0, error)
