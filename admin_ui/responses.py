"""Answers: the envelope `{data, meta}`, errors `{error, code, details, request_id}`, and the headers of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..catalog.errors import EnterpriseError
from ..catalog.records import Replay
from ..gateway.wire import RawResponse, encode_headers, status_line
from .dryrun import TrialOut
from .operation import Listing, Operation, Reply, etag
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
    content_type: str = "application/json",
) -> RawResponse:  # fmt: skip
    """A whole answer with the headers that all have."""
    headers = [
        *SECURITY,
        (b"Cache-Control", cache.encode()),
        (b"X-Request-Id", request_id.encode()),
        (b"API-Version", API_VERSION),
        *((name.encode(), value.encode("latin-1", "replace")) for name, value in (extra or {}).items()),
    ]
    if body:
        headers.append((b"Content-Type", content_type.encode()))
    return RawResponse(status, status_line(status) + encode_headers(headers), body)


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
    return answer(operation.status, _encode({"data": result.value}), request_id, extra=extra)


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
