"""The route table: method and path to the one tool that they mean. Undocumented means denied.

Matching is exact. A segment that could be read as a fixed word of the table (in another case, or encoded) and as a
parameter's value is refused: servers that ignore case would take it for the word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ....catalog.errors import BadRequest, FieldError, UndocumentedRoute
from ....catalog.routes import Route
from .targets import Target, value_of

_LITERAL: Final = re.compile(r"[A-Za-z0-9._~-]+")
_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]{0,63})\}")
SCALARS: Final = frozenset({"string", "integer", "number", "boolean"})
BODIED: Final = frozenset({"POST", "PUT", "PATCH"})


def template(path: str) -> list[tuple[str, str]]:
    """(literal, "") or ("", parameter) for each segment of a path template. Raises ValueError."""
    parts: list[tuple[str, str]] = []
    for segment in path[1:].split("/"):
        parameter = _PARAMETER.fullmatch(segment)
        if parameter is not None:
            parts.append(("", parameter[1]))
        elif _LITERAL.fullmatch(segment) is not None and segment not in {".", ".."}:
            parts.append((segment, ""))
        else:
            raise ValueError(f"{segment!r} is neither a plain word nor a {{parameter}}")
    return parts


class _Node:
    __slots__ = ("folded", "parameter", "routes", "words")

    def __init__(self) -> None:
        self.words: dict[str, _Node] = {}
        self.folded: set[str] = set()
        self.parameter: _Node | None = None
        self.routes: dict[str, Route] = {}


class RouteTable:
    """Routes of one upstream, ready. `slashes`: path parameters whose value may hold an encoded slash."""

    def __init__(self, routes: Iterable[Route], slashes: frozenset[str] = frozenset()) -> None:
        """The routes are held to have no faults (`faults_of`)."""
        self._root = _Node()
        self._slashes = slashes
        self.by_tool: dict[str, Route] = {}
        for route in routes:
            node = self._root
            for word, parameter in template(route.path):
                if parameter:
                    node.parameter = node.parameter or _Node()
                    node = node.parameter
                else:
                    node.folded.add(word.casefold())
                    node = node.words.setdefault(word, _Node())
            node.routes[route.method] = route
            self.by_tool[route.tool] = route

    def match(self, method: str, target: Target) -> tuple[Route, dict[str, str]]:
        """The route that a request means, and its path's parameters decoded.

        Raises UndocumentedRoute; BadRequest for a path that could be read in two ways.
        """
        node = self._root
        values: list[str] = []
        for segment in target.segments:
            known = node.words.get(segment)
            if known is not None:
                node = known
                continue
            value = value_of(segment, slashes=bool(self._slashes))
            if value.strip(" ").casefold() in node.folded:
                raise BadRequest("The path spells a word of this API in another way; paths are exact.")
            if node.parameter is None:
                raise UndocumentedRoute
            values.append(value)
            node = node.parameter
        route = node.routes.get(method)
        if route is None:
            raise UndocumentedRoute
        names = [parameter for _, parameter in template(route.path) if parameter]
        found = dict(zip(names, values, strict=True))
        if any("/" in value and name not in self._slashes for name, value in found.items()):
            raise BadRequest("A part of the path holds an encoded slash.")
        return route, found


def faults_of(routes: Iterable[Route]) -> list[FieldError]:
    """Everything that is wrong with a table, by JSON Pointer below the list."""
    faults: list[FieldError] = []
    tools: set[str] = set()
    shapes: set[tuple[str, tuple[str, ...]]] = set()
    for place, route in enumerate(routes):
        at = f"/routes/{place}"
        try:
            parts = template(route.path)
        except ValueError as error:
            faults.append((f"{at}/path", "invalid", f"The path is no template: {error}."))
            continue
        shape = (route.method, tuple(word.casefold() for word, _ in parts))
        if shape in shapes:
            faults.append((f"{at}/path", "duplicate", "Another route has the same method and path."))
        shapes.add(shape)
        if route.tool in tools:
            faults.append((f"{at}/tool", "duplicate", f"Another route is the tool {route.tool!r}."))
        tools.add(route.tool)
        if route.tool.startswith(("resource:", "prompt:", "template:")):
            faults.append((f"{at}/tool", "invalid", "This prefix belongs to other kinds of things."))
        faults += _field_faults(at, route, [parameter for _, parameter in parts if parameter])
    return faults


def _field_faults(at: str, route: Route, parameters: list[str]) -> list[FieldError]:
    faults: list[FieldError] = []
    names = [*parameters, *(field.name for field in (*route.query, *route.body))]
    folded = [name.casefold() for name in names]
    faults += [
        (at, "duplicate", f"The argument {name!r} is given in two places.")
        for name in sorted({name for name in names if folded.count(name.casefold()) > 1})
    ]
    faults += [
        (f"{at}/path_fields", "unknown", f"The path has no parameter {field.name!r}.")
        for field in route.path_fields
        if field.name not in parameters
    ]
    faults += [
        (f"{at}/{part}", "invalid", f"{field.name!r} must be a string, number or boolean here.")
        for part, fields in (("path_fields", route.path_fields), ("query", route.query))
        for field in fields
        if field.type not in SCALARS
    ]
    if route.body and route.method not in BODIED:
        faults.append((f"{at}/body", "invalid", f"{route.method} takes no body."))
    return faults
