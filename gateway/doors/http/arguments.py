"""Arguments: read from a request's path, query and body; checked; and written as the one request that they mean.

Both ways to a tool end in `write`: whatever came in, the upstream gets what was judged, in one spelling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from ....catalog.errors import BadRequest, FieldError, InvalidJson, UnsupportedMedia, ValidationFailed
from ....catalog.routes import Field, Route
from ..headers import check_body_headers
from ..jsonrpc import RpcError, decode, encode
from .table import BODIED, template
from .targets import Target, value_of, write_query, write_segment

_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?")
MAX_DEPTH: Final = 64
FORBIDDEN_KEYS: Final = frozenset({"__proto__", "constructor", "prototype"})
"""Names by which JavaScript servers reach what is no data."""

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,),
    "object": (dict,), "any": (str, int, float, bool, list, dict),
}  # fmt: skip


def read_object(noted: dict[bytes, bytes], body: bytes) -> dict[str, Any] | None:
    """A JSON object; None when there is no body. UTF-8 without a mark, said to be application/json, no key twice.

    Raises UnsupportedMedia, InvalidJson, BadRequest.
    """
    check_body_headers(noted)
    if not body:
        return None
    kind = noted.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise UnsupportedMedia("Send the body as application/json.")
    try:
        value = decode(body)
    except RpcError as error:
        raise InvalidJson(error.message) from None
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object.")
    _walk(value, 0)
    return value


def _walk(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BadRequest("The body is nested too deeply.")
    if isinstance(value, dict):
        if len({key.casefold() for key in value}) != len(value):
            raise BadRequest("An object has two keys that differ in case only.")
        for key, inner in value.items():
            if key in FORBIDDEN_KEYS or not key.isprintable():
                raise BadRequest("An object has a key that programs read differently.")
            _walk(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _walk(inner, depth + 1)


def gather(route: Route, path: dict[str, str], target: Target, body: dict[str, Any] | None) -> dict[str, Any]:
    """One set of arguments. Raises ValidationFailed for a name that is given in two places or is none of the route's,
    and for values that are not of their type."""
    if body is not None and route.method not in BODIED:
        raise BadRequest(f"A {route.method} request has no body here.")
    arguments: dict[str, Any] = {}
    types = {field.name: field.type for field in (*route.path_fields, *route.query)}
    allowed = {field.name for field in route.query}
    bodied = {field.name for field in route.body}
    faults: list[FieldError] = []
    for name, text in path.items():
        arguments[name] = _typed(name, text, types.get(name, "string"), faults)
    for name, text in target.query.items():
        if name in path or name in bodied or (name not in allowed and not route.open):
            faults.append((f"/{name}", "unknown", f"{name} is no query parameter of this route."))
        else:
            arguments[name] = _typed(name, text, types.get(name, "string"), faults)
    for name, value in (body or {}).items():
        if name in arguments or name in allowed or name in path:
            faults.append((f"/{name}", "duplicate", f"{name} belongs to the path or the query."))
        else:
            arguments[name] = value
    if faults:
        raise ValidationFailed(faults)
    check(route, arguments)
    return arguments


def _typed(name: str, text: str, wanted: str, faults: list[FieldError]) -> Any:
    if wanted == "integer" and _INTEGER.fullmatch(text):
        return int(text)
    if wanted == "number" and _NUMBER.fullmatch(text):
        return float(text) if "." in text else int(text)
    if wanted == "boolean" and text in {"true", "false"}:
        return text == "true"
    if wanted != "string":
        faults.append((f"/{name}", "type", f"{name} must be a plain {wanted}."))
    return text


def check(route: Route, arguments: dict[str, Any]) -> None:
    """Whether arguments are the route's: names, presence, types. Raises ValidationFailed with every fault."""
    faults: list[FieldError] = []
    fields = declared(route)
    placed = fields.keys() - {field.name for field in route.body}
    folded = {name.casefold(): name for name in fields}
    for name, value in arguments.items():
        field = fields.get(name)
        if field is None:
            meant = folded.get(name.casefold())
            if meant is not None:
                faults.append((f"/{name}", "spelling", f"Write {meant}, not {name}."))
            elif not route.open:
                faults.append((f"/{name}", "unknown", f"{name} is no argument of this route."))
        elif not _fits(value, field) or (value is None and name in placed):
            faults.append((f"/{name}", "type", f"{name} must be of type {field.type}."))
    for name, field in fields.items():
        if field.required and name not in arguments:
            faults.append((f"/{name}", "required", f"{name} is missing."))
    if faults:
        raise ValidationFailed(faults)


def _fits(value: Any, field: Field) -> bool:
    if field.type == "any":
        return True
    if value is None:
        return not field.required
    if isinstance(value, bool) and field.type != "boolean":
        return False
    return isinstance(value, _TYPES[field.type])


def declared(route: Route) -> dict[str, Field]:
    """A route's arguments by name; what stands in the path is required."""
    typed = {field.name: field for field in route.path_fields}
    fields: dict[str, Field] = {}
    for _, name in template(route.path):
        if name:
            own = typed.get(name)
            fields[name] = Field(name, own.type if own else "string", True, own.description if own else "")
    for field in (*route.query, *route.body):
        fields[field.name] = field
    return fields


def write(
    route: Route,
    arguments: dict[str, Any],
    query: Iterable[str] = (),
    *,
    bodied: bool | None = None,
    slashes: frozenset[str] = frozenset(),
) -> tuple[str, bytes]:
    """(target below the upstream's base, body) of the request that checked arguments mean. `query`: names of an open
    route's arguments that came in the query. `bodied`: whether there is a body though it may be empty (None: where the
    route has one). Raises BadRequest for a value that a path cannot carry."""
    rest = dict(arguments)
    segments: list[str] = []
    for word, name in template(route.path):
        segments.append(word or _segment(name, rest.pop(name), name in slashes))
    named = [*(field.name for field in route.query), *query]
    if route.method not in BODIED:
        named += [name for name in rest if name not in named]
    pairs = {name: _text(name, rest.pop(name)) for name in named if name in rest}
    target = "/" + "/".join(segments) + write_query(pairs)
    wants = bool(rest) or (bool(route.body) or route.open if bodied is None else bodied)
    return target, encode(rest) if wants and route.method in BODIED else b""


def _segment(name: str, value: Any, slashes: bool) -> str:
    segment = write_segment(_text(name, value))
    value_of(segment, slashes=slashes)
    return segment


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if any(ord(character) < 32 or ord(character) == 127 for character in value):
            raise BadRequest(f"{name} holds control characters.")
        return value
    if isinstance(value, int | float):
        return encode(value).decode()
    raise BadRequest(f"{name} must be a string, a number or a boolean.")
