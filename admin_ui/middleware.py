"""Middleware for servers of one's own: what the gateway's own edge does, as aiohttp middlewares and decorators.

    app = web.Application(middlewares=[
        request_id(), request_logger(), security_headers(), cors(["https://app.acme.test"]),
        rate_limiter(per_ip=120, per_key=600), error_handler(), audit_logger(store, org), authenticate(people.who),
    ])

    @require_role("admin")
    @validate(Order)
    async def create(request, order): ...

That order is meant: the id first, so that every line and answer has it; headers and limits outside the error handler,
so that errors have them too; the audit outside whoever says no. Each stands alone and can be left out.

`trusted_proxies` (CIDRs): whose X-Forwarded-For is believed; without them the peer's address counts.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import wraps
from typing import Any, Final, Protocol, TypeVar

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ..catalog.calls import Person, Principal
from ..catalog.errors import (
    BadRequest,
    BodyTooLarge,
    EnterpriseError,
    Forbidden,
    SecondFactorMissing,
    TooManyRequests,
    Unauthenticated,
    UnsupportedMedia,
)
from ..catalog.ids import new_id
from ..catalog.records import AUDIT, AuditEntry, Role
from ..catalog.store import Store
from ..gateway.people.crosssite import SAFE_METHODS
from ..gateway.people.who import COOKIE
from ..gateway.scopes import ROLES, covers_role
from ..gateway.server import forwarded_for, networks
from ..policies.resilience import KeyedRateLimiter
from .validate import convert, decode

log = structlog.get_logger()

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{8,128}")
ID: Final = web.RequestKey("agenticmail_request_id", str)
NONCE: Final = web.RequestKey("agenticmail_csp_nonce", str)
PRINCIPAL: Final = web.RequestKey("agenticmail_principal", Principal)
"""What the middlewares leave in a request for handlers: `request[ID]`, `request[NONCE]`, `request[PRINCIPAL]`."""

CSP: Final = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; object-src 'none'"
)
FIXED: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_SERVER_ERROR: Final = 500

B = TypeVar("B")


class Resolver(Protocol):
    """Who sends a request: `People.who` is one. Raises Unauthenticated, CrossSite."""

    async def resolve(self, method: str, headers: Any, ip: str) -> Principal: ...


def client_ip(request: web.BaseRequest, trusted_proxies: Sequence[str] = ()) -> str:
    """The client's address, behind trusted proxies too."""
    peer = request.remote or ""
    if not trusted_proxies:
        return peer
    return forwarded_for(peer, request.headers.getall("X-Forwarded-For", []), networks(trusted_proxies))


# -- ids and lines -----------------------------------------------------------------------------------------------
def request_id() -> Middleware:
    """Take over X-Request-Id where it is well formed, else make one; it is in `request[ID]` and in the answer."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id", "")
        request[ID] = given if REQUEST_ID.fullmatch(given) else new_id("request")
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers["X-Request-Id"] = request[ID]
            raise
        _put(response, {"X-Request-Id": request[ID]})
        return response

    return middleware


def request_logger(trusted_proxies: Sequence[str] = ()) -> Middleware:
    """One line per request: method, path (never the query: secrets stand in queries), status, milliseconds, address."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        status = _SERVER_ERROR
        try:
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as error:
            status = error.status
            raise
        finally:
            log.info(
                "request", method=request.method, path=request.path[:500], status=status,
                duration_ms=round((time.perf_counter() - started) * 1000, 2), ip=client_ip(request, trusted_proxies),
                request_id=request.get(ID, ""),
            )  # fmt: skip

    return middleware


def error_handler() -> Middleware:
    """Every error as JSON `{error, code, details, request_id}`; one of ours is logged whole and told without detail."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except EnterpriseError as error:
            return _failure(request, error)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return _answer(request, error.status, error.reason, f"HTTP_{error.status}", {}, dict(error.headers))
        except Exception:
            log.exception("request_failed", path=request.path[:200], request_id=request.get(ID, ""))
            return _failure(request, EnterpriseError())

    return middleware


def _failure(request: web.Request, error: EnterpriseError) -> web.Response:
    headers: dict[str, str] = {}
    if error.status == Unauthenticated.status:
        headers["WWW-Authenticate"] = "Bearer"
    wait = error.details.get("retry_after")
    if wait is not None:
        headers["Retry-After"] = str(max(1, math.ceil(float(wait))))
    return _answer(request, error.status, error.message, error.code, error.details, headers)


def _answer(
    request: web.Request, status: int, text: str, code: str, details: dict[str, Any], headers: dict[str, str]
) -> web.Response:
    body = {"error": text, "code": code, "details": details, "request_id": request.get(ID, "")}
    kept = {name: value for name, value in headers.items() if name.lower() not in {"content-type", "content-length"}}
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/json",
        headers={**kept, "Cache-Control": "no-store"},
    )  # fmt: skip


# -- headers -----------------------------------------------------------------------------------------------------
def security_headers(csp: str = CSP, *, hsts_seconds: int = 31_536_000, trusted_proxies: bool = False) -> Middleware:
    """The headers that browsers heed. `{nonce}` in `csp` becomes `request[NONCE]`, new for each request. HSTS is sent
    over TLS only, as RFC 6797 wants it; `trusted_proxies`: a proxy in front says so in X-Forwarded-Proto."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonce = request[NONCE] = secrets.token_urlsafe(16)
        headers = {**FIXED, "Content-Security-Policy": csp.replace("{nonce}", nonce)}
        forwarded = request.headers.get("X-Forwarded-Proto", "").lower() == "https"
        if hsts_seconds and (request.secure or (trusted_proxies and forwarded)):
            headers["Strict-Transport-Security"] = f"max-age={hsts_seconds}; includeSubDomains"
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(headers)
            raise
        _put(response, headers)
        return response

    return middleware


def cors(
    origins: Collection[str], *, methods: Sequence[str] = ("GET", "POST", "PUT", "PATCH", "DELETE"),
    headers: Sequence[str] = ("Authorization", "Content-Type", "X-API-Key", "X-Request-Id", "If-Match"),
    credentials: bool = False, max_age: int = 600,
) -> Middleware:  # fmt: skip
    """Pages of these origins may read the answers; all others get none of the headers that would let them.

    `*` lets every page read what needs no cookie; with `credentials` it is refused (ValueError): it would hand every
    signed-in person's data to every site.
    """
    if credentials and "*" in origins:
        raise ValueError("Name the origins: * and credentials together open everything to every site.")
    allowed = frozenset(origin.rstrip("/").lower() for origin in origins)

    def granted(request: web.Request) -> dict[str, str]:
        origin = request.headers.get("Origin", "")
        if not origin or not ("*" in allowed or origin.lower() in allowed):
            return {}
        found = {"Access-Control-Allow-Origin": "*" if "*" in allowed else origin}
        if credentials:
            found["Access-Control-Allow-Credentials"] = "true"
        return found

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        found = granted(request)
        preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if preflight and found:
            found |= {
                "Access-Control-Allow-Methods": ", ".join(methods),
                "Access-Control-Allow-Headers": ", ".join(headers),
                "Access-Control-Max-Age": str(max_age),
            }
        if preflight:
            return web.Response(status=204, headers={**found, "Vary": "Origin"})
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update({**found, "Vary": "Origin"})
            raise
        _put(response, {**found, "Vary": "Origin"})
        return response

    return middleware


def _put(response: web.StreamResponse, headers: dict[str, str]) -> None:
    """Add headers to an answer whose head has not been sent yet."""
    if not response.prepared:
        response.headers.update(headers)


# -- limits ------------------------------------------------------------------------------------------------------
def rate_limiter(
    per_ip: int = 120, per_key: int = 600, *, window: float = 60.0, trusted_proxies: Sequence[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Middleware:  # fmt: skip
    """At most so many requests in `window` seconds per address and per credential; both must have room, so inventing
    credentials buys nothing. 429 with Retry-After beyond. Every answer has RateLimit and RateLimit-Policy as
    draft-ietf-httpapi-ratelimit-headers says: `r` left, `t` seconds until all of it is there again."""
    limits = {"ip": (per_ip, _limiter(per_ip, window, clock)), "key": (per_key, _limiter(per_key, window, clock))}

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        names = {"ip": client_ip(request, trusted_proxies), "key": _credential(request)}
        headers, wait = _charge(limits, {name: value for name, value in names.items() if value}, window)
        if wait:
            error = TooManyRequests(retry_after=math.ceil(wait))
            response: web.StreamResponse = _failure(request, error)
        else:
            try:
                response = await handler(request)
            except web.HTTPException as error:
                error.headers.update(headers)
                raise
        _put(response, headers)
        return response

    return middleware


def _limiter(count: int, window: float, clock: Callable[[], float]) -> KeyedRateLimiter:
    return KeyedRateLimiter(count / window, count, max_keys=100_000, clock=clock)


def _credential(request: web.Request) -> str:
    """A digest of what the request is vouched for by, "" for nothing."""
    cookie = next((value for name, value in request.cookies.items() if name.endswith(COOKIE)), "")
    text = request.headers.get("X-API-Key") or request.headers.get("Authorization") or cookie
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() if text else ""


def _charge(
    limits: dict[str, tuple[int, KeyedRateLimiter]], names: dict[str, str], window: float
) -> tuple[dict[str, str], float]:
    """Take one of each; the headers, and how long to wait where one is used up."""
    wait = 0.0
    for name, value in names.items():
        limiter = limits[name][1]
        if not limiter.take(value):
            wait = max(wait, limiter.retry_after(value))
    policies, states = [], []
    for name, value in names.items():
        quota, limiter = limits[name]
        left = limiter.tokens(value)
        policies.append(f'"{name}";q={quota};w={round(window)}')
        states.append(f'"{name}";r={int(left)};t={math.ceil((quota - left) * window / quota)}')
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)}, wait


# -- who ---------------------------------------------------------------------------------------------------------
def authenticate(resolver: Resolver, *, trusted_proxies: Sequence[str] = (), optional: bool = False) -> Middleware:
    """Who sends it, in `request[PRINCIPAL]`. `optional`: whoever has no credential passes, without a principal; whoever
    has one that is not valid never does."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = any(name in request.headers for name in ("Authorization", "X-API-Key", "Cookie"))
        if given or not optional:
            ip = client_ip(request, trusted_proxies)
            request[PRINCIPAL] = await resolver.resolve(request.method, request.headers, ip)
        return await handler(request)

    return middleware


def require_role(role: Role) -> Callable[[Handler], Handler]:
    """A handler for people of a role or a higher one, and for keys that may do all that the role may."""
    if role not in ROLES:
        raise ValueError(f"There is no role {role!r}; there are: {', '.join(ROLES)}.")

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        async def guarded(request: web.Request) -> web.StreamResponse:
            principal = request.get(PRINCIPAL)
            if principal is None:
                raise Unauthenticated
            if isinstance(principal, Person) and principal.limited:
                raise SecondFactorMissing
            if not covers_role(principal.scopes, role):
                raise Forbidden(f"This needs the role {role} or a higher one.", role=role)
            return await handler(request)

        return guarded

    return decorate


def validate(
    schema: type[B], *, limit: int = 1024 * 1024
) -> Callable[[Callable[[web.Request, B], Awaitable[web.StreamResponse]]], Handler]:
    """A handler `(request, body)` whose body is JSON of a msgspec Struct; every faulty field is named (422)."""

    def decorate(handler: Callable[[web.Request, B], Awaitable[web.StreamResponse]]) -> Handler:
        @wraps(handler)
        async def checked(request: web.Request) -> web.StreamResponse:
            return await handler(request, convert(decode(await _read(request, limit)), schema))

        return checked

    return decorate


async def _read(request: web.Request, limit: int) -> bytes:
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMedia("Send the body as it is: no Content-Encoding is accepted.")
    parts: list[bytes] = []
    size = 0
    try:
        while chunk := await request.content.readany():
            size += len(chunk)
            if size > limit:
                raise BodyTooLarge(f"A body has at most {limit} bytes here.", limit=limit)
            parts.append(chunk)
    except web.RequestPayloadError:
        raise BadRequest("The body ended before its end.") from None
    return b"".join(parts)


# -- the audit ---------------------------------------------------------------------------------------------------
def audit_logger(store: Store, org: str, *, trusted_proxies: Sequence[str] = ()) -> Middleware:
    """One entry per change and per refusal (401, 403): actor, action (method and route), resource, status, address,
    request id. It reports: an entry that cannot be stored is logged, and the answer stands. Put it inside the error
    handler; it sees errors as they are raised."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        status, code = _SERVER_ERROR, "INTERNAL"
        try:
            response = await handler(request)
            status, code = response.status, ""
            return response
        except EnterpriseError as error:
            status, code = error.status, error.code
            raise
        except web.HTTPException as error:
            status, code = error.status, f"HTTP_{error.status}"
            raise
        finally:
            if request.method not in SAFE_METHODS or status in {401, 403}:
                await _note(store, _entry(request, org, status, code, client_ip(request, trusted_proxies)))

    return middleware


def _entry(request: web.Request, org: str, status: int, code: str, ip: str) -> AuditEntry:
    principal = request.get(PRINCIPAL)
    resource = request.match_info.route.resource
    path = resource.canonical if resource is not None else request.path
    now = int(time.time() * 1000)
    details = {"status": str(status), **({"code": code} if code else {})}
    return AuditEntry(
        org=principal.org if principal is not None else org, id=new_id("audit"), created_at=now, updated_at=now, at=now,
        actor=principal.key_id if principal is not None else "anonymous", action=f"{request.method} {path}"[:200],
        resource=request.match_info.get("id", request.path)[:500], outcome="ok" if status < 400 else "refused",
        details=details, ip=ip, request_id=request.get(ID, ""),
    )  # fmt: skip


async def _note(store: Store, entry: AuditEntry) -> None:
    try:
        await store.append(AUDIT, [entry])
    except EnterpriseError as error:
        log.warning("audit_entry_lost", action=entry.action, request_id=entry.request_id, reason=error.message)
