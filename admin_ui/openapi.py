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
    InvalidJson,
    NotFound,
    StoreUnavailable,
    Unauthenticated,
    UnsupportedMedia,
    ValidationFailed,
)
from ..gateway.scopes import ROLE_SCOPES, SCOPES
from .operation import Operation

REF: Final = "#/components/schemas/{name}"
SECURITY: Final[list[dict[str, list[str]]]] = [{"ApiKey": []}, {"Bearer": []}]

DESCRIPTION: Final = """\
The API of an AgenticMail Enterprise gateway: what agents are, what they may do, and what they did.

Answers are `{data}` or, for lists, `{data, meta}`; errors are `{error, code, details, request_id}` with every faulty
field in `details.fields`. A list is read with `page` and `limit`, or on and on with `cursor` (`meta.next_cursor`).
Single objects have an `ETag`; send it as `If-Match` to change exactly what was read, as `If-None-Match` to save the
answer. `Accept: application/problem+json` gets errors as RFC 9457 has them. Times are RFC 3339 in UTC. An API key works
within its own organisation; what belongs to another one is not found.
"""

TAGS: Final = {
    "agents": "Agents and their permission profiles.",
    "keys": "API keys: shown once, revocable at once, unable to widen themselves.",
    "upstreams": "The MCP servers behind the gateway, and the tools they offer.",
    "catalog": "Skills, presets and tools.",
    "checks": "For tools that an agent runs itself: ask before, report after. Same policy, same record.",
    "hooks": "Hooks in agents' own runtimes: their signs of life, and which are expected.",
    "calls": "The record of calls.",
    "audit": "Who changed what.",
    "meta": "About this API.",
}


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
    types: set[Any] = {Failure, Meta}
    for operation in operations:
        types |= {kind for kind in (*_bodies(operation), operation.returns, operation.query) if kind is not None}
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
        "components": {"schemas": components, "securitySchemes": _security()},
        "x-scopes": dict(SCOPES),
        "x-roles": {role: sorted(scopes) for role, scopes in ROLE_SCOPES.items()},
    }  # fmt: skip


def _security() -> dict[str, Any]:
    about = "An API key, `ek_...`."
    return {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": about},
        "Bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "ek_", "description": about},
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
        "parameters": [*_path_parameters(operation), *_query_parameters(operation, components), *_headers(operation)],
        "responses": {**_success(operation, schema_of), **_failures(operation, schema_of)},
    }
    if operation.public:
        entry["security"] = []
    else:
        entry["x-scope"] = operation.scope
        entry["x-role"] = operation.role
    if operation.audit:
        entry["x-audit"] = operation.audit
    bodies = [schema_of[kind] for kind in _bodies(operation)]
    if bodies:
        schema = bodies[0] if len(bodies) == 1 else {"oneOf": bodies}
        content = {"schema": schema, "examples": {"example": {"value": operation.example.body}}}
        entry["requestBody"] = {"required": True, "content": {"application/json": content}}
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
    if operation.method not in {"PUT", "DELETE"} or operation.served_by != "admin":
        return []
    text = "The ETag that was read: the change is made only if nothing was changed since."
    return [{"name": "If-Match", "in": "header", "required": False, "schema": {"type": "string"}, "description": text}]


def _success(operation: Operation, schema_of: dict[Any, Any]) -> dict[str, Any]:
    if operation.served_by == "document":
        schema = {"type": "object", "required": ["openapi", "paths"]}
        return {"200": {"description": operation.summary, "content": {"application/json": {"schema": schema}}}}
    if operation.returns is None:
        return {str(operation.status): {"description": "Done."}}
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


def errors_of(operation: Operation) -> list[type[EnterpriseError]]:
    """Every error an operation may answer with: its own, and those that come with what it takes."""
    errors: list[type[EnterpriseError]] = [BadRequest, StoreUnavailable]
    if not operation.public:
        errors += [Unauthenticated, Forbidden]
    if "{" in operation.path:
        errors.append(NotFound)
    if _bodies(operation):
        errors += [InvalidJson, BodyTooLarge, UnsupportedMedia]
    if _bodies(operation) or operation.query is not None:
        errors.append(ValidationFailed)
    return [*dict.fromkeys([*errors, *operation.errors])]


def _failures(operation: Operation, schema_of: dict[Any, Any]) -> dict[str, Any]:
    by_status: dict[int, list[type[EnterpriseError]]] = {}
    for error in errors_of(operation):
        by_status.setdefault(error.status, []).append(error)
    return {str(status): _failure(by_status[status], schema_of) for status in sorted(by_status)}


def _failure(errors: Iterable[type[EnterpriseError]], schema_of: dict[Any, Any]) -> dict[str, Any]:
    text = " ".join(f"`{error.code}`: {(error.__doc__ or '').strip().splitlines()[0]}" for error in errors)
    return {"description": text, "content": {"application/json": {"schema": schema_of[Failure]}}}
