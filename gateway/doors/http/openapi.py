"""An OpenAPI 3.x document as routes. What a route table cannot say exactly is left out, and so denied: operations with
cookie or required header parameters, arrays in queries or paths, bodies that are no JSON object."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec

from ....catalog.routes import MAX_ROUTES, Field, Method, Route, ValueType
from .table import BODIED, SCALARS, template

METHODS: Final = ("get", "post", "put", "patch", "delete")
MAX_REFS: Final = 32
_KNOWN: Final = frozenset({"string", "integer", "number", "boolean", "array", "object"})
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.-]+")

Object = Mapping[str, Any]


class NotUsable(ValueError):
    """Nothing can be read from this document; the message says why."""


class _Skip(Exception):
    """This operation cannot be governed exactly."""


def import_routes(document: Object) -> tuple[Route, ...]:
    """The routes of a document, in its order. Raises NotUsable."""
    version = document.get("openapi")
    if not isinstance(version, str) or not version.startswith("3."):
        raise NotUsable("This is no OpenAPI 3.x document: it does not say openapi: 3.x.")
    paths = document.get("paths")
    if not isinstance(paths, dict):
        raise NotUsable("The document has no paths.")
    routes: list[Route] = []
    for path, item in paths.items():
        if not isinstance(item, dict):
            continue
        for method in METHODS:
            operation = item.get(method)
            if isinstance(operation, dict):
                try:
                    routes.append(_route(document, str(path), method.upper(), item, operation))
                except (_Skip, msgspec.ValidationError, TypeError, AttributeError, RecursionError):
                    continue  # the last three: it is not built as the specification says
    if not routes:
        raise NotUsable("None of the document's operations can be governed exactly.")
    if len(routes) > MAX_ROUTES:
        raise NotUsable(f"The document has more than {MAX_ROUTES} operations; give routes for those that are needed.")
    return tuple(routes)


def _route(document: Object, path: str, method: str, item: Object, operation: Object) -> Route:
    try:
        template(path)
    except ValueError:
        raise _Skip from None
    places: dict[str, list[Field]] = {"path": [], "query": []}
    for parameter in _parameters(document, item, operation):
        where = parameter.get("in")
        if where == "header" and not parameter.get("required"):
            continue  # not sent
        if where not in places:
            raise _Skip
        field = _field(document, str(parameter.get("name")), parameter.get("schema") or {}, parameter)
        if field.type in SCALARS:
            places[where].append(field)
        elif field.required or where == "path":
            raise _Skip
    body, free = _body(document, operation) if method in BODIED else ((), False)
    if method not in BODIED and _required_body(document, operation):
        raise _Skip
    route = Route(
        cast(Method, method), path, _tool(operation, method, path), _description(operation), tuple(places["path"]),
        tuple(places["query"]), body, free,
    )  # fmt: skip
    return msgspec.convert(msgspec.to_builtins(route), Route)  # holds names and lengths to their bounds


def _parameters(document: Object, item: Object, operation: Object) -> list[Object]:
    """The path's own parameters, those of the operation instead where they are the same."""
    found: dict[tuple[Any, Any], Object] = {}
    for holder in (item, operation):
        listed = holder.get("parameters") or []
        for parameter in listed if isinstance(listed, list) else ():
            resolved = _resolve(document, parameter)
            found[resolved.get("in"), resolved.get("name")] = resolved
    return list(found.values())


def _body(document: Object, operation: Object) -> tuple[tuple[Field, ...], bool]:
    """(fields, whether others may be given) of a JSON object body. Raises _Skip for any other."""
    if not operation.get("requestBody"):
        return (), False
    described = _resolve(document, operation["requestBody"])
    content = described.get("content")
    media = content.get("application/json") if isinstance(content, dict) else None
    if not isinstance(media, dict):
        raise _Skip
    schema = _flat(document, media.get("schema") or {})
    kind = schema.get("type", "object")
    if kind not in ("object", ["object", "null"]) or "oneOf" in schema or "anyOf" in schema:
        raise _Skip
    properties = schema.get("properties")
    fields = [
        _field(document, str(name), inner, {"required": name in (schema.get("required") or ())})
        for name, inner in (properties.items() if isinstance(properties, dict) else ())
        if not (isinstance(inner, dict) and inner.get("readOnly"))
    ]
    extra = schema.get("additionalProperties", not fields)
    return tuple(fields), extra is True or isinstance(extra, dict)


def _required_body(document: Object, operation: Object) -> bool:
    return bool(operation.get("requestBody")) and bool(_resolve(document, operation["requestBody"]).get("required"))


def _flat(document: Object, schema: Any) -> dict[str, Any]:
    """A schema with its `allOf` parts joined."""
    whole = dict(_resolve(document, schema))
    for part in whole.pop("allOf", None) or ():
        inner = _flat(document, part)
        whole["properties"] = {**(inner.get("properties") or {}), **(whole.get("properties") or {})}
        whole["required"] = [*(inner.get("required") or ()), *(whole.get("required") or ())]
        for key in ("type", "oneOf", "anyOf", "additionalProperties"):
            if key in inner:
                whole.setdefault(key, inner[key])
    return whole


def _field(document: Object, name: str, schema: Any, said: Object) -> Field:
    resolved = _resolve(document, schema)
    kind = resolved.get("type")
    if isinstance(kind, list):
        kinds = [one for one in kind if one != "null"]
        kind = kinds[0] if len(kinds) == 1 and said.get("required") else None
    text = said.get("description") or resolved.get("description") or ""
    fitting = kind if kind in _KNOWN and not resolved.get("nullable") else "any"
    if fitting == "any" and said.get("in"):
        fitting = "string"
    return Field(name, cast(ValueType, fitting), said.get("required") is True, str(text)[:2000])


def _resolve(document: Object, value: Any) -> Object:
    """What a `$ref` within the document stands for. Raises _Skip for what is not there, or elsewhere."""
    for _ in range(MAX_REFS):
        if not isinstance(value, dict):
            raise _Skip
        reference = value.get("$ref")
        if reference is None:
            return value
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise _Skip
        value = document
        for part in reference[2:].split("/"):
            value = value.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(value, dict) else None
    raise _Skip


def _tool(operation: Object, method: str, path: str) -> str:
    given = operation.get("operationId")
    name = given if isinstance(given, str) and given else f"{method.lower()}_{path.strip('/').replace('/', '_')}"
    return _UNFIT.sub("_", name).strip("_")[:128] or "call"


def _description(operation: Object) -> str:
    parts = [operation.get("summary"), operation.get("description")]
    return "\n\n".join(part for part in parts if isinstance(part, str) and part)[:2000]
