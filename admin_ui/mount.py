"""The admin module behind the gateway's edge: `create(runtime).handle` answers whatever is not a hot door.

Reading order: `handle` (never raises for what a client sent) -> `_respond` (route, key, scope, query, body) -> the
operation -> `_finish` (audit, envelope).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Coroutine
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
import structlog
from aiohttp import web

from ..catalog.calls import Person, Principal
from ..catalog.errors import (
    BadRequest,
    BodyTooLarge,
    EnterpriseError,
    Forbidden,
    PreconditionRequired,
    UnsupportedMedia,
    ValidationFailed,
)
from ..catalog.ids import new_id
from ..catalog.store import GLOBAL
from ..gateway.scopes import admit
from ..gateway.wire import RawResponse, read_body
from . import patching
from .api import OPERATIONS
from .audit import AuditTrail
from .dryrun import TrialOut, TrialRuntime
from .limits import ApiLimits
from .openapi import document
from .operation import Context, Download, Operation, Reply, Runtime, etag, etags
from .replays import HEADER as IDEMPOTENCY
from .replays import Replays, without
from .responses import PROBLEM, answer, failure, stream, success
from .router import Router
from .validate import convert, convert_query, decode

log = structlog.get_logger()

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{8,128}")
BODY_LIMIT: Final = 1024 * 1024
"""Bytes of a body here, unless the server's limit is lower. What is administered is small."""

BODY_SECONDS: Final = 30.0
MAX_PARAMETERS: Final = 50
DISTRIBUTION: Final = "agenticmail-enterprise"
NOBODY: Final = Principal(GLOBAL, "", "", "")

DRY_RUN: Final = "dry_run"
SINGLE: Final = (
    "X-API-Key", "Authorization", IDEMPOTENCY, "If-Match", "If-None-Match", "Content-Encoding", "Content-Length",
)  # fmt: skip
"""Given twice, two readers could each believe another one: refused."""


class Visit:
    """One request on its way: what is known of it so far, for the answer and the audit."""

    __slots__ = ("content", "ctx", "dry", "headers", "id", "ip", "operation", "principal", "request", "resource")

    def __init__(self, request: web.BaseRequest) -> None:
        self.request = request
        given = request.headers.get("X-Request-Id", "")
        self.id = given if REQUEST_ID.fullmatch(given) else new_id("request")
        self.ip = request.remote or ""
        self.operation: Operation | None = None
        self.principal: Principal | None = None
        self.ctx: Context | None = None
        self.resource = ""
        #: Query and body as they came, for the fingerprint of an Idempotency-Key.
        self.content = b""
        self.dry = False
        #: Headers of the answer that are known beforehand.
        self.headers: dict[str, str] = {}


class Admin:
    """One per worker."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._router = Router(OPERATIONS)
        self._audit = AuditTrail(runtime)
        self._replays = Replays(runtime.store)
        self._limits = ApiLimits(runtime.settings.server.api_rate)
        self._limit = min(BODY_LIMIT, runtime.settings.server.body_limit)
        self._changing: set[asyncio.Task[Any]] = set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Raises nothing but CancelledError."""
        visit = Visit(request)
        try:
            response = await self._respond(visit)
        except EnterpriseError as error:
            response = await self._failed(visit, error)
        except Exception:  # the last line: a fault of ours is logged whole, and told without detail
            log.exception("admin_request_failed", request_id=visit.id, path=request.path[:200])
            response = await self._failed(visit, EnterpriseError())
        if not request.content.is_eof():
            response.force_close()  # the body was not read: what follows on this connection is not a request
        return response

    async def _respond(self, visit: Visit) -> web.StreamResponse:
        request = visit.request
        _check_single(request)
        route, variables = self._router.route(request.rel_url.raw_path)
        if request.method == "OPTIONS":
            return answer(204, b"", visit.id, extra={"Allow": route.allow})
        operation = visit.operation = self._router.operation(route, request.method)
        visit.resource = variables.get("id", "")
        if operation.served_by == "document":
            return await self._serve_document(visit)
        if operation.handler is None:
            raise BadRequest("This path is served as it is written, without parameters.")
        principal = await self._admitted(visit, operation)
        pairs = self._taken(visit, operation)
        trial = TrialRuntime(self._runtime) if visit.dry else None
        if_match = request.headers.get("If-Match")
        ctx = visit.ctx = Context(
            trial or self._runtime, operation, principal, variables, request_id=visit.id, ip=visit.ip,
            if_match=if_match, headers=request.headers,
        )  # fmt: skip
        ctx.note = partial(self._audit.noted, ctx)
        none_match = request.headers.get("If-None-Match")
        tags = etags(none_match) if none_match is not None else None
        arguments = await self._arguments(visit, ctx, pairs)
        if operation.precondition and if_match is None:
            raise PreconditionRequired
        if trial is not None:
            result: Any = _told(trial, operation, await self._call(ctx, operation, arguments))
        else:
            result = await self._run(visit, ctx, arguments)
        if isinstance(result, Download):
            return await stream(request, result, visit.id, visit.headers)
        return success(operation, result, visit.id, tags, visit.headers)

    async def _admitted(self, visit: Visit, operation: Operation) -> Principal:
        """Who sends this, and may: the one place that asks. Raises Unauthenticated, Forbidden, CrossSite."""
        if operation.public:
            return NOBODY  # how often strangers may try is the operation's own matter
        request = visit.request
        principal = visit.principal = await self._runtime.people.who.resolve(request.method, request.headers, visit.ip)
        if not operation.person:
            admit(principal, operation.scope)
        elif not isinstance(principal, Person):
            raise Forbidden("This is for people who signed in, not for API keys.")
        visit.headers = self._limits.charge(principal)
        return principal

    @staticmethod
    def _taken(visit: Visit, operation: Operation) -> list[tuple[str, str]]:
        """The query parameters that are the operation's own. BadRequest, ValidationFailed."""
        pairs = _query(visit.request)
        if operation.repeatable:
            tried = [value for name, value in pairs if name == DRY_RUN]
            if tried and tried not in (["true"], ["false"]):
                raise ValidationFailed([(f"/{DRY_RUN}", "type", f"{DRY_RUN} is true or false, once.")])
            visit.dry = tried == ["true"]
            pairs = [pair for pair in pairs if pair[0] != DRY_RUN]
        if operation.query is None and pairs:
            raise BadRequest(f"This path takes no query parameters, and got {pairs[0][0]!r}.")
        return pairs

    async def _arguments(self, visit: Visit, ctx: Context, pairs: list[tuple[str, str]]) -> list[Any]:
        """The body and the query that an operation declares, typed. Raises every kind of 4xx."""
        request, operation = visit.request, ctx.operation
        arguments: list[Any] = []
        visit.content = request.rel_url.raw_query_string.encode()
        if operation.body is not None:
            body = await self._body(request)
            visit.content += b"\n" + body
            value = decode(body)
            if operation.method == "PATCH":
                value = await patching.body_of(ctx, operation, value)
            arguments.append(convert(value, operation.body))
        if operation.query is not None:
            arguments.append(convert_query(pairs, operation.query))
        return arguments

    async def _body(self, request: web.BaseRequest) -> bytes:
        """The bytes of the body. JSON is JSON whatever the content type says; compressed or cut ones are refused."""
        coding = request.headers.get("Content-Encoding", "identity")
        if coding.strip().lower() != "identity":
            raise UnsupportedMedia("Send the body as it is: no Content-Encoding is accepted.")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await read_body(request, self._limit)
        except TimeoutError:
            raise BadRequest(f"The body did not arrive within {BODY_SECONDS:.0f} s.") from None
        except web.RequestPayloadError:
            raise BadRequest("The body ended before its end.") from None
        if body is None:
            raise BodyTooLarge(f"A body has at most {self._limit} bytes here.", limit=self._limit)
        return body

    async def _run(self, visit: Visit, ctx: Context, arguments: list[Any]) -> Any:
        """Run the handler. A mutation runs to its end, audit entry included, also when the client has left."""
        operation = ctx.operation
        if not operation.audit:
            return await self._call(ctx, operation, arguments)
        work: Callable[[], Coroutine[Any, Any, Any]] = partial(self._change, ctx, operation, arguments)
        key = visit.request.headers.get(IDEMPOTENCY)
        if key is not None and operation.repeatable and operation.method in {"POST", "PATCH"}:
            work = partial(self._replays.run, ctx, key, visit.content, work)
        task = asyncio.get_running_loop().create_task(work())
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        return await asyncio.shield(task)

    async def _change(self, ctx: Context, operation: Operation, arguments: list[Any]) -> Any:
        result = await self._call(ctx, operation, arguments)
        await self._audit.done(ctx)
        return result

    @staticmethod
    async def _call(ctx: Context, operation: Operation, arguments: list[Any]) -> Any:
        if operation.handler is None:
            raise BadRequest
        if operation.method == "PATCH":
            return await patching.run(ctx, operation, arguments)
        return await operation.handler(ctx, *arguments)

    async def _failed(self, visit: Visit, error: EnterpriseError) -> RawResponse:
        """Count, record where it is called for, and answer."""
        self._runtime.metrics.refusal("admin", error.code)
        if error.status >= 500:
            log.warning("admin_request_not_served", request_id=visit.id, code=error.code, reason=error.message)
        if visit.operation is not None:
            ctx = visit.ctx
            await self._audit.refused(
                visit.operation, visit.principal, error, resource=(ctx.resource if ctx else "") or visit.resource,
                ip=visit.ip, request_id=visit.id, about=ctx.about if ctx else "",
            )  # fmt: skip
        problem = PROBLEM in visit.request.headers.get("Accept", "").lower()
        return failure(error, visit.id, problem=problem, path=visit.request.rel_url.raw_path[:200],
                       headers=visit.headers)  # fmt: skip

    async def _serve_document(self, visit: Visit) -> RawResponse:
        body, digest = await asyncio.to_thread(_document)
        tag = etag(digest)
        none_match = visit.request.headers.get("If-None-Match")
        known = etags(none_match) if none_match is not None else []
        if "*" in known or tag in [item.removeprefix("W/") for item in known]:
            return answer(304, b"", visit.id, extra={"ETag": tag}, cache="no-cache")
        return answer(200, body, visit.id, extra={"ETag": tag}, cache="no-cache")


@cache
def _document() -> tuple[bytes, str]:
    """The OpenAPI document and the tag of its content: made when it is first asked for, off the loop."""
    body = msgspec.json.encode(document(OPERATIONS, _version()))
    return body, hashlib.sha256(body).hexdigest()[:32]


def create(runtime: Runtime) -> Admin:
    """The admin module of one worker. The gateway finds this function by name."""
    return Admin(runtime)


def _told(trial: TrialRuntime, operation: Operation, result: Any) -> TrialOut:
    """What a dry run has found. A secret that was made for it is nobody's, and is not shown."""
    value = without(result.value, operation.once) if isinstance(result, Reply) else None
    return TrialOut(dry_run=True, changes=trial.trial.changes, result=value)


def _check_single(request: web.BaseRequest) -> None:
    for name in SINGLE:
        if len(request.headers.getall(name, ())) > 1:
            raise BadRequest(f"The header {name} is given more than once.", header=name)


def _query(request: web.BaseRequest) -> list[tuple[str, str]]:
    raw = request.rel_url.raw_query_string
    try:
        return parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except (UnicodeDecodeError, ValueError):
        raise BadRequest("The query cannot be read: percent-encoded UTF-8 is expected.") from None


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0"
