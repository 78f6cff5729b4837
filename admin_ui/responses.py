"""Answers: the envelope `{data, meta}`, errors `{error, code, details, request_id}`, and the headers of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from ..catalog.errors import EnterpriseError
from ..catalog.records import Replay
from ..gateway.wire import RawResponse, RawStream, encode_headers, status_line
from .dryrun import TrialOut
from .operation import Download, Listing, Operation, Reply, etag
from .replays import REPLAYED, Replayed

REALM: Final = 'Bearer realm="agenticmail-enterprise"'
PROBLEM: Final = "application/problem+json"

SECURITY: Final[list[tuple[bytes, bytes]]] = [
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"X-Frame-Options", b"DENY"),
]
"""On every answer. These are data, never pages: nothing may be loaded from, or framed around, them."""

API_VERSION: Final = b"1"

_encode: Final = msgspec.json.Encoder().encode


def answer(
    status: int, body: bytes, request_id: str, *, extra: dict[str, str] | None = None, cache: str = "no-store",
    content_type: str = "application/json", cookies: tuple[str, ...] = (),
) -> RawResponse:  # fmt: skip
    """A whole answer with the headers that all have."""
    headers = _headers(request_id, extra or {}, cache, cookies)
    if body:
        headers.append((b"Content-Type", content_type.encode()))
    return RawResponse(status, status_line(status) + encode_headers(headers), body)


def _headers(request_id: str, extra: dict[str, str], cache: str, cookies: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
    return [
        *SECURITY,
        (b"Cache-Control", cache.encode()),
        (b"X-Request-Id", request_id.encode()),
        (b"API-Version", API_VERSION),
        *((name.encode(), value.encode("latin-1", "replace")) for name, value in extra.items()),
        *((b"Set-Cookie", cookie.encode("latin-1", "replace")) for cookie in cookies),
    ]


async def stream(
    request: web.BaseRequest, download: Download, request_id: str, headers: Mapping[str, str]
) -> web.StreamResponse:
    """A file as it is made. What fails before its first part is an error like any other; later the connection breaks
    off, so that nobody takes half a file for a whole one."""
    first = await anext(aiter(download.parts), b"")
    extra = {
        **headers,
        "Content-Type": download.content_type,
        "Content-Disposition": f'attachment; filename="{download.filename}"',
    }
    response = RawStream(request, 200, _headers(request_id, extra, "no-store", ()))
    await response.start()
    if request.method == "HEAD":
        response.force_close()
        return response
    try:
        await response.write(first)
        async for part in download.parts:
            await response.write(part)
        await response.finish()
    except EnterpriseError:
        if request.transport is not None:
            request.transport.abort()
        response.force_close()
    return response


def success(
    operation: Operation, result: Any, request_id: str, none_match: list[str] | None,
    headers: Mapping[str, str] | None = None,
) -> RawResponse:  # fmt: skip
    """What a handler gave back, in the envelope; 304 when `none_match` (the tags of If-None-Match) has its tag."""
    extra: dict[str, str] = dict(headers or {})
    if isinstance(result, Listing):
        return answer(operation.status, _encode({"data": result.items, "meta": _meta(result)}), request_id, extra=extra)
    if isinstance(result, Replayed):
        return _again(result.record, request_id, extra)
    if isinstance(result, TrialOut):
        return answer(200, _encode({"data": result}), request_id, extra=extra)
    if not isinstance(result, Reply):
        return answer(operation.status, b"", request_id, extra=extra)
    if result.location:
        extra["Location"] = result.location
    if result.version is not None:
        extra["ETag"] = etag(result.version)
        if none_match is not None and ("*" in none_match or extra["ETag"] in _weakly(none_match)):
            return answer(304, b"", request_id, extra=extra)
    body = _encode({"data": result.value})
    return answer(operation.status, body, request_id, extra=extra, cookies=result.cookies)


def _again(record: Replay, request_id: str, extra: dict[str, str]) -> RawResponse:
    """An answer that was given before, marked so."""
    kept = {"Location": record.location, "ETag": record.etag}
    extra |= {name: value for name, value in kept.items() if value} | {REPLAYED: "true"}
    return answer(record.status, record.body.encode(), request_id, extra=extra)


def _weakly(tags: list[str]) -> list[str]:
    """For If-None-Match, a weak tag is as good as a strong one (RFC 9110 section 13.1.2)."""
    return [tag.removeprefix("W/") for tag in tags]


def _meta(listing: Listing) -> dict[str, Any]:
    return {
        "total": listing.total,
        "page": listing.page,
        "limit": listing.limit,
        "next_cursor": listing.next_cursor or None,
        "has_more": bool(listing.next_cursor),
    }


def failure(
    error: EnterpriseError, request_id: str, *, problem: bool = False, path: str = "",
    headers: Mapping[str, str] | None = None,
) -> RawResponse:  # fmt: skip
    """An error as it is answered. `problem`: as RFC 9457 has it, for clients that ask."""
    details = {name: value for name, value in error.details.items() if name not in {"allow", "headers"}}
    if problem:
        body = {
            "type": "about:blank", "title": (type(error).__doc__ or "").strip(), "status": error.status,
            "detail": error.message, "instance": path, "code": error.code, "details": details,
            "request_id": request_id,
        }  # fmt: skip
    else:
        body = {"error": error.message, "code": error.code, "details": details, "request_id": request_id}
    kind = PROBLEM if problem else "application/json"
    extra = {**(headers or {}), **error.details.get("headers", {}), **_error_headers(error)}
    return answer(error.status, _encode(body), request_id, extra=extra, content_type=kind)


def _error_headers(error: EnterpriseError) -> dict[str, str]:
    extra: dict[str, str] = {}
    if error.status == 401:
        extra["WWW-Authenticate"] = REALM
    if error.status == 405 and "allow" in error.details:
        extra["Allow"] = str(error.details["allow"])
    if error.status in {429, 503}:
        extra["Retry-After"] = str(max(1, round(float(error.details.get("retry_after") or 1))))
    return extra
