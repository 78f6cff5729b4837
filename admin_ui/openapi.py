"""The OpenAPI 3.1 document, made from the table of operations and msgspec's schemas of their types. Nothing by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from ..catalog.errors import (
    BadRequest,
    BodyTooLarge,
    EnterpriseError,
    Forbidden,
    InFlight,
    InvalidJson,
    KeyReused,
    NotFound,
    PreconditionRequired,
    StoreUnavailable,
    TooManyRequests,
    Unauthenticated,
    UnsupportedMedia,
    ValidationFailed,
)
from ..gateway.people.who import COOKIE
from ..gateway.scopes import ROLE_SCOPES, SCOPES
from .dryrun import TrialOut
from .operation import Operation

REF: Final = "#/components/schemas/{name}"
SECURITY: Final[list[dict[str, list[str]]]] = [{"ApiKey": []}, {"Bearer": []}, {"Session": []}]

DESCRIPTION: Final = """\
The API of an AgenticMail Enterprise gateway: what agents are, what they may do, and what they did.

Answers are `{data}` or, for lists, `{data, meta}`; errors are `{error, code, details, request_id}` with every faulty
field in `details.fields`. A list is read with `page` and `limit`, or on and on with `cursor` (`meta.next_cursor`).
Single objects have an `ETag`; send it as `If-Match` to change exactly what was read, as `If-None-Match` to save the
answer. `PATCH` takes a JSON Merge Patch. `POST` and `PATCH` take an `Idempotency-Key`: sent again within 24 hours they
are answered again and done once. `?dry_run=true` on a mutation tells what it would change, and changes nothing. Every
path is also served under `/api/v1`. `Accept: application/problem+json` gets errors as RFC 9457 has them. Times are RFC
3339 in UTC. An API key works within its own organisation; what belongs to another one is not found.
"""

TAGS: Final = {
    "approvals": "Held calls, decisions about them, approval policies, standing grants, notification channels.",
    "agents": "Agents and their permission profiles.",
    "keys": "API keys: shown once, revocable at once, unable to widen themselves.",
    "upstreams": "The MCP servers behind the gateway, and the tools they offer.",
    "catalog": "Skills, presets and tools.",
    "checks": "For tools that an agent runs itself: ask before, report after. Same policy, same record.",
    "hooks": "Hooks in agents' own runtimes: their signs of life, and which are expected.",
    "calls": "The record of calls.",
    "audit": "Who changed what.",
    "auth": "Signing in and out, and one's own affairs: password, second factor, sessions.",
    "users": "The people of the organisation, and what they may do.",
    "company": "What the organisation has set for itself, and how much of everything it has.",
    "meta": "About this API.",
}


HEADERS: Final = {
    "If-Match": ({"PUT", "PATCH", "DELETE"}, "The ETag that was read: the change is made only if nothing was changed "
                 "since. `*`: whatever it is."),
    "Idempotency-Key": ({"POST", "PATCH"}, "Any text of yours, new for each request that is meant: sent again with it, "
                        "the request is answered again, with `Idempotent-Replayed: true`, and done once."),
}  # fmt: skip
"""Request header -> (methods that take it, what it is)."""

SENT: Final = {
    "RateLimit": "What is left: `r` requests, `t` seconds until all of them are there again.",
    "RateLimit-Policy": "The limit: `q` requests in `w` seconds of one API key.",
    "API-Version": "The version of this API.",
    "X-Request-Id": "Names this request in logs and in the audit.",
}
"""Headers of every answer."""


class Failure(msgspec.Struct, kw_only=True):
    """An error. `code` is one of a closed set, for programs; `error` is one sentence, for people."""

    error: str
    code: str
    details: dict[str, Any]
    request_id: str


class Meta(msgspec.Struct, kw_only=True):
    """Where in a list this page is. `total` is exact up to 10,000; null when not counted. `page` null: by cursor."""

    total: int | None
    page: int | None
    limit: int
    next_cursor: str | None
    has_more: bool


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The document. ValueError when a tag is not described here."""
    types: set[Any] = {Failure, Meta, TrialOut}
    for operation in operations:
        returns = None if operation.download else operation.returns
        types |= {kind for kind in (*_bodies(operation), returns, operation.query) if kind is not None}
    ordered = sorted(types, key=lambda kind: str(kind.__name__))
    schemas, components = msgspec.json.schema_components(ordered, ref_template=REF)
    schema_of = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        if operation.tag not in TAGS:
            raise ValueError(f"{operation.name}: the tag {operation.tag!r} is not described")
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schema_of, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AgenticMail Enterprise", "version": version, "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "security": SECURITY,
        "paths": paths,
        "components": {
            "schemas": components, "securitySchemes": _security(),
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in SENT.items()},
        },
        "x-aliases": {"/api/v1": "/api"},
        "x-scopes": dict(SCOPES),
        "x-roles": {role: sorted(scopes) for role, scopes in ROLE_SCOPES.items()},
    }  # fmt: skip


def _security() -> dict[str, Any]:
    key = "An API key, `ek_...`."
    either = "An API key, or the access token of POST /auth/login."
    page = "A page's session, of POST /auth/session. Changes must come from a page of this origin."
    return {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": key},
        "Bearer": {"type": "http", "scheme": "bearer", "description": either},
        "Session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": page},
    }


def _bodies(operation: Operation) -> tuple[Any, ...]:
    """The types a body may have: none, one, or one of several."""
    if operation.body is None:
        return ()
    return operation.body if isinstance(operation.body, tuple) else (operation.body,)


def _operation(operation: Operation, schema_of: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description or operation.summary,
        "parameters": [
            *_path_parameters(operation),
            *_query_parameters(operation, components),
            *_dry_run(operation),
            *_headers(operation),
        ],
        "responses": _told({**_success(operation, schema_of), **_failures(operation, schema_of)}),
    }
    if operation.public:
        entry["security"] = []
    elif operation.person:
        entry["security"] = [{"Session": []}, {"Bearer": []}]
        entry["x-person"] = True
    else:
        entry["x-scope"] = operation.scope
        entry["x-role"] = operation.role
    if operation.audit:
        entry["x-audit"] = operation.audit
    bodies = [schema_of[kind] for kind in _bodies(operation)]
    if bodies:
        schema = bodies[0] if len(bodies) == 1 else {"oneOf": bodies}
        content = {"schema": schema, "examples": {"example": {"value": operation.example.body}}}
        kinds = {"application/json": content}
        if operation.method == "PATCH":
            content["schema"] = {"type": "object", "description": f"A merge patch of {operation.body.__name__}."}
            kinds["application/merge-patch+json"] = content
        entry["requestBody"] = {"required": True, "content": kinds}
    return entry


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": name, "in": "path", "required": True, "schema": {"type": "string"},
            "example": operation.example.path[name],
        }
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]  # fmt: skip


def _query_parameters(operation: Operation, components: dict[str, Any]) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    properties = components[operation.query.__name__]["properties"]
    parameters = []
    for name, schema in properties.items():
        parameter: dict[str, Any] = {"name": name, "in": "query", "required": False, "schema": schema}
        if name in operation.example.query:
            value = operation.example.query[name]
            parameter["example"] = int(value) if schema.get("type") == "integer" else value
        parameters.append(parameter)
    return parameters


def _headers(operation: Operation) -> list[dict[str, Any]]:
    if operation.served_by != "admin":
        return []
    return [
        {"name": name, "in": "header", "required": name == "If-Match" and operation.precondition,
         "schema": {"type": "string"}, "description": text}
        for name, (methods, text) in HEADERS.items()
        if operation.method in methods and (name == "If-Match" or operation.repeatable)
    ]  # fmt: skip


def _dry_run(operation: Operation) -> list[dict[str, Any]]:
    if not operation.repeatable or operation.served_by != "admin":
        return []
    text = "Tell what would change, and change nothing."
    return [{"name": "dry_run", "in": "query", "required": False, "schema": {"type": "boolean"}, "description": text}]


def _success(operation: Operation, schema_of: dict[Any, Any]) -> dict[str, Any]:
    if operation.served_by == "document":
        schema = {"type": "object", "required": ["openapi", "paths"]}
        return {"200": {"description": operation.summary, "content": {"application/json": {"schema": schema}}}}
    found = _done(operation, schema_of)
    if operation.repeatable and operation.served_by == "admin":
        tried = {"type": "object", "required": ["data"], "properties": {"data": schema_of[TrialOut]}}
        if operation.status != 200:
            found["200"] = {"description": "A dry run.", "content": {"application/json": {"schema": tried}}}
        else:
            body = found["200"]["content"]["application/json"]
            body["schema"] = {"anyOf": [body["schema"], tried]}
    return found


def _done(operation: Operation, schema_of: dict[Any, Any]) -> dict[str, Any]:
    if operation.returns is None:
        return {str(operation.status): {"description": "Done."}}
    if operation.download:
        kinds = {kind: {"schema": {"type": "string"}} for kind in operation.returns}
        return {"200": {"description": operation.summary, "content": kinds}}
    item = schema_of[operation.returns]
    if operation.listing:
        data: dict[str, Any] = {"type": "array", "items": item}
    elif len(_bodies(operation)) > 1:
        data = {"oneOf": [item, {"type": "array", "items": item}]}  # one body asks one question, the other several
    else:
        data = item
    envelope: dict[str, Any] = {"type": "object", "required": ["data"], "properties": {"data": data}}
    if operation.listing:
        envelope["required"] = ["data", "meta"]
        envelope["properties"]["meta"] = schema_of[Meta]
    described = operation.summary
    return {str(operation.status): {"description": described, "content": {"application/json": {"schema": envelope}}}}


def _told(responses: dict[str, Any]) -> dict[str, Any]:
    """With the headers that every answer has."""
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in SENT}
    return {status: {**response, "headers": headers} for status, response in responses.items()}


def errors_of(operation: Operation) -> list[type[EnterpriseError]]:
    """Every error an operation may answer with: its own, and those that come with what it takes."""
    errors: list[type[EnterpriseError]] = [BadRequest, StoreUnavailable]
    if not operation.public:
        errors += [Unauthenticated, Forbidden, TooManyRequests]
    if "{" in operation.path:
        errors.append(NotFound)
    if _bodies(operation):
        errors += [InvalidJson, BodyTooLarge, UnsupportedMedia]
    if _bodies(operation) or operation.query is not None or operation.repeatable:
        errors.append(ValidationFailed)
    if operation.precondition:
        errors.append(PreconditionRequired)
    if operation.repeatable and operation.method in {"POST", "PATCH"} and operation.served_by == "admin":
        errors += [KeyReused, InFlight]
    return [*dict.fromkeys([*errors, *operation.errors])]


def _failures(operation: Operation, schema_of: dict[Any, Any]) -> dict[str, Any]:
    by_status: dict[int, list[type[EnterpriseError]]] = {}
    for error in errors_of(operation):
        by_status.setdefault(error.status, []).append(error)
    return {str(status): _failure(by_status[status], schema_of) for status in sorted(by_status)}


def _failure(errors: Iterable[type[EnterpriseError]], schema_of: dict[Any, Any]) -> dict[str, Any]:
    text = " ".join(f"`{error.code}`: {(error.__doc__ or '').strip().splitlines()[0]}" for error in errors)
    return {"description": text, "content": {"application/json": {"schema": schema_of[Failure]}}}
