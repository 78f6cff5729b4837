"""A child process of another worker: the exchange is played over there, judged and recorded here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import aiohttp
from aiohttp import web

from ...catalog.errors import UpstreamBroken, UpstreamError
from ..pool import Answer
from ..wire import HOP_BY_HOP, RawResponse, RawStream, encode_headers, read_body, status_line
from .siblings import Handler, Siblings

PATH: Final = "/stdio"
FAILED: Final = 599
"""Status between workers for an UpstreamError: its code in a header, its sentence in the body."""

_ORG, _NAME, _SESSION, _METHOD = b"X-Org", b"X-Upstream", b"X-Session", b"X-Method"
_ERROR: Final = b"X-Agenticmail-Error"
_MOST: Final = 1 << 30
_DROP: Final = HOP_BY_HOP | {b"content-length", b"date", b"server"}


def _kinds(parent: type[UpstreamError]) -> Iterator[type[UpstreamError]]:
    yield parent
    for kind in parent.__subclasses__():
        yield from _kinds(kind)


class Distant:
    """A stream from another worker. A Source."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def next(self) -> bytes | None:
        try:
            return await self._answer.content.readany() or None
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamBroken("The worker that has this session ended in the middle.") from error

    def close(self) -> None:
        self._answer.close()


async def play(siblings: Siblings, worker: int, live: Any, session: str, method: bytes, body: bytes) -> Answer | None:
    """One exchange with a session at another worker. None when that worker is gone, and its children with it.

    Raises UpstreamError as the child's own door would.
    """
    headers = [
        (_ORG, live.org.encode()), (_NAME, live.name.encode()), (_SESSION, session.encode()), (_METHOD, method),
        (b"Content-Type", b"application/json"),
    ]  # fmt: skip
    answer = await siblings.ask(worker, "POST", PATH, headers, body)
    if answer is None:
        return None
    own = [(name, value) for name, value in answer.raw_headers if name.lower() not in _DROP]
    media = answer.headers.get("Content-Type", "").encode("latin-1")
    if answer.content_length is None:
        return Answer(answer.status, b"", own, None, media=media, source=Distant(answer))
    async with answer:
        try:
            whole = await answer.read()
        except aiohttp.ClientError as error:
            raise UpstreamBroken("The worker that has this session ended in the middle.") from error
    if answer.status == FAILED and _ERROR.decode() in answer.headers:
        code = answer.headers[_ERROR.decode()]
        kind = next((kind for kind in _kinds(UpstreamError) if kind.code == code), UpstreamError)
        raise kind(whole.decode())
    return Answer(answer.status, b"", own, whole, media=media)


def stdio_handlers(upstreams: Any) -> dict[str, Handler]:
    """What a worker does for the others' agents whose sessions have their child here."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        said = {name.lower(): value for name, value in request.raw_headers}
        org, name, session = (said.get(key.lower(), b"").decode() for key in (_ORG, _NAME, _SESSION))
        body = await read_body(request, _MOST) or b""
        live = upstreams.get(org, name)
        try:
            if live is None or live.kind != "mcp_stdio":
                raise UpstreamBroken(f"{name!r} is not in service.")
            answer: Answer = await live.pass_on("", session, False, said.get(_METHOD.lower(), b"POST"), body)
            if answer.body is not None:
                head = status_line(answer.status) + encode_headers(answer.headers)
                return RawResponse(answer.status, head, answer.body)
        except UpstreamError as error:
            head = status_line(FAILED) + encode_headers([(_ERROR, error.code.encode())])
            return RawResponse(FAILED, head, error.message.encode())
        return await _stream(request, answer)

    return {PATH: handle}


async def _stream(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    out = RawStream(request, answer.status, answer.headers)
    try:
        await out.start()
        async for chunk in answer.stream():
            await out.write(bytes(chunk))
    except UpstreamError as error:
        if request.transport is not None:
            request.transport.abort()  # a truncated answer must not look complete
        raise ConnectionResetError("The child broke off.") from error
    finally:
        answer.close()
    await out.finish()
    return out
