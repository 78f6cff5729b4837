"""An upstream's answer on its way to the agent: whole or as a stream, with lists filtered, byte for byte otherwise."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
from aiohttp import web

from ...catalog.errors import UpstreamError, UpstreamProtocol
from ...catalog.records import Outcome
from ..pool import Answer
from ..wire import Headers, RawResponse, RawStream, encode_headers, status_line
from .headers import RESPONSE_DROP
from .sse import EventTooLarge, Splitter, data_of, with_data
from .sse import event as event_of

Filter = Callable[[bytes], Awaitable[bytes | None]]
"""A message's bytes -> the bytes to pass on instead, or None to leave them. May raise UpstreamProtocol."""

MAX_WHOLE: Final = 64 * 1024 * 1024

SealSession = Callable[[str], str]

_IS_ERROR: Final = re.compile(rb'"isError"\s*:\s*true|"error"\s*:\s*\{')
_message: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Flag(msgspec.Struct):
    isError: bool = False  # noqa: N815 - the protocol's own name


_flag: Final = msgspec.json.Decoder(_Flag).decode


def response_headers(answer: Answer, seal: SealSession | None, request_id: str) -> Headers:
    """The upstream's headers without those of its own hop, its session id bound to the agent, and the request's id."""
    headers: Headers = []
    for name, value in answer.headers:
        low = name.lower()
        if low in RESPONSE_DROP:
            continue
        if low == b"mcp-session-id" and seal is not None:
            value = seal(value.decode("latin-1")).encode("latin-1")
        headers.append((name, value))
    headers.append((b"X-Request-Id", request_id.encode()))
    return headers


def says_error(data: bytes) -> bool:
    """Whether a JSON-RPC answer is an error, or a tool result with `isError: true`."""
    # Two searches at the speed of memory tell for nearly every answer that it is none.
    if b'"error"' not in data and data.count(b'"isError"') == data.count(b'"isError":false'):
        return False
    if _IS_ERROR.search(data) is None:
        return False
    try:
        message = _message(data)
        if "error" in message:
            return True
        return "result" in message and _flag(message["result"]).isError
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False


def outcome_of(status: int, body: bytes) -> Outcome:
    """How a whole answer counts in the record."""
    return "error" if status >= 400 or says_error(body) else "ok"


async def whole(answer: Answer, headers: Headers, body: bytes, change: Filter | None) -> RawResponse:
    """An answer that arrived in one piece."""
    if change is not None:
        if any(name.lower() == b"content-encoding" for name, _ in headers):
            raise UpstreamProtocol("The server compressed a list, though it was not asked to.")
        changed = await change(body)
        body = body if changed is None else changed
    return RawResponse(answer.status, status_line(answer.status) + encode_headers(headers), body)


class Relayed:
    """What passed through a stream."""

    __slots__ = ("error", "size")

    def __init__(self) -> None:
        self.size = 0
        self.error = False


async def stream(
    request: web.BaseRequest,
    answer: Answer,
    headers: Headers,
    change: Filter | None,
    relayed: Relayed,
    *,
    events: bool,
    first: Sequence[bytes] = (),
) -> RawStream:
    """Pass a stream on as it comes. With `change`, event by event; else chunk by chunk.

    Raises UpstreamError when the upstream breaks off: the client's connection is then cut too, so that a truncated
    answer cannot look complete. ConnectionError when the client has left.
    """
    out = RawStream(request, answer.status, headers)
    await out.start()
    for message in first:  # answers of our own, ahead of the server's
        await out.write(event_of(message))
    splitter = Splitter() if events else None
    try:
        async for part in answer.stream():
            chunk = bytes(part)
            relayed.size += len(chunk)
            if splitter is None:
                await out.write(chunk)
                continue
            for event in splitter.feed(chunk):
                await out.write(await _event(event, change, relayed))
        if splitter is not None and splitter.rest and change is None:
            await out.write(splitter.rest)
    except (UpstreamError, EventTooLarge) as error:
        if request.transport is not None:
            request.transport.abort()
        raise error if isinstance(error, UpstreamError) else UpstreamProtocol("One event is too large.") from error
    await out.finish()
    return out


async def _event(event: bytes, change: Filter | None, relayed: Relayed) -> bytes:
    if not relayed.error and _IS_ERROR.search(event) is not None:
        relayed.error = says_error(data_of(event))
    if change is None:
        return event
    changed = await change(data_of(event))
    return event if changed is None else with_data(event, changed)


async def collect(answer: Answer) -> bytes:
    """A whole list. Raises UpstreamError; UpstreamProtocol for one of more than `MAX_WHOLE` bytes."""
    parts: list[bytes] = []
    size = 0
    async for part in answer.stream():
        size += len(part)
        if size > MAX_WHOLE:
            raise UpstreamProtocol("The server's list is too large.")
        parts.append(bytes(part))
    return b"".join(parts)
