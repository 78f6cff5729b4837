"""The admin module behind the gateway's edge: `create(runtime).handle` answers whatever is not a hot door.

Reading order: `handle` (never raises for what a client sent) -> `_respond` (route, key, scope, query, body) -> the
operation -> `_finish` (audit, envelope).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
import structlog
from aiohttp import web

from ..catalog.calls import Person, Principal
from ..catalog.errors import BadRequest, BodyTooLarge, EnterpriseError, Forbidden, UnsupportedMedia
from ..catalog.ids import new_id
from ..catalog.store import GLOBAL
from ..gateway.scopes import admit
from ..gateway.wire import RawResponse, read_body
from .api import OPERATIONS
from .audit import AuditTrail
from .openapi import document
from .operation import Context, Download, Operation, Runtime, etag, etags
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

SINGLE: Final = ("X-API-Key", "Authorization", "If-Match", "If-None-Match", "Content-Encoding", "Content-Length")
"""Given twice, two readers could each believe another one: refused."""


class Visit:
    """One request on its way: what is known of it so far, for the answer and the audit."""

    __slots__ = ("ctx", "id", "ip", "operation", "principal", "request", "resource")

    def __init__(self, request: web.BaseRequest) -> None:
        self.request = request
        given = request.headers.get("X-Request-Id", "")
        self.id = given if REQUEST_ID.fullmatch(given) else new_id("request")
        self.ip = request.remote or ""
        self.operation: Operation | None = None
        self.principal: Principal | None = None
        self.ctx: Context | None = None
        self.resource = ""


class Admin:
    """One per worker."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._router = Router(OPERATIONS)
        self._audit = AuditTrail(runtime)
        self._limit = min(BODY_LIMIT, runtime.settings.server.body_limit)
        self._document = msgspec.json.encode(document(OPERATIONS, _version()))
        self._document_tag = hashlib.sha256(self._document).hexdigest()[:32]
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
            return self._serve_document(visit)
        if operation.handler is None:
            raise BadRequest("This path is served as it is written, without parameters.")
        principal = await self._admitted(visit, operation)
        if_match = request.headers.get("If-Match")
        ctx = visit.ctx = Context(
            self._runtime, operation, principal, variables, request_id=visit.id, ip=visit.ip, if_match=if_match,
            headers=request.headers,
        )  # fmt: skip
        ctx.note = partial(self._audit.noted, ctx)
        none_match = request.headers.get("If-None-Match")
        tags = etags(none_match) if none_match is not None else None
        arguments = await self._arguments(request, operation)
        result = await self._run(ctx, operation, arguments)
        if isinstance(result, Download):
            return await stream(request, result, visit.id)
        return success(operation, result, visit.id, tags)

    async def _admitted(self, visit: Visit, operation: Operation) -> Principal:
        """Who sends this, and may: the one place that asks. Raises Unauthenticated, Forbidden, CrossSite."""
        if operation.public:
            return NOBODY
        request = visit.request
        principal = visit.principal = await self._runtime.people.who.resolve(request.method, request.headers, visit.ip)
        if not operation.person:
            admit(principal, operation.scope)
        elif not isinstance(principal, Person):
            raise Forbidden("This is for people who signed in, not for API keys.")
        return principal

    async def _arguments(self, request: web.BaseRequest, operation: Operation) -> list[Any]:
        """The body and the query that an operation declares, typed. Raises every kind of 4xx."""
        arguments: list[Any] = []
        pairs = _query(request)
        if operation.query is None and pairs:
            raise BadRequest(f"This path takes no query parameters, and got {pairs[0][0]!r}.")
        if operation.body is not None:
            arguments.append(convert(decode(await self._body(request)), operation.body))
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

    async def _run(self, ctx: Context, operation: Operation, arguments: list[Any]) -> Any:
        """Run the handler. A mutation runs to its end, audit entry included, also when the client has left."""
        if not operation.audit:
            return await self._call(ctx, operation, arguments)
        task = asyncio.get_running_loop().create_task(self._change(ctx, operation, arguments))
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
        return failure(error, visit.id, problem=problem, path=visit.request.rel_url.raw_path[:200])

    def _serve_document(self, visit: Visit) -> RawResponse:
        tag = etag(self._document_tag)
        none_match = visit.request.headers.get("If-None-Match")
        known = etags(none_match) if none_match is not None else []
        if "*" in known or tag in [item.removeprefix("W/") for item in known]:
            return answer(304, b"", visit.id, extra={"ETag": tag}, cache="no-cache")
        return answer(200, self._document, visit.id, extra={"ETag": tag}, cache="no-cache")


def create(runtime: Runtime) -> Admin:
    """The admin module of one worker. The gateway finds this function by name."""
    return Admin(runtime)


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
