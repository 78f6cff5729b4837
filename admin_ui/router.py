"""From method and path to an operation. Paths are exact: no case folding, no doubled or final slash, no dots."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

from ..catalog.errors import MethodNotAllowed, NotFound
from .operation import Operation

MAX_SEGMENT: Final = 512
VERSIONED: Final = "/api/v1/"
"""The paths of this version of the API, also under its number."""

API_DOCS: Final = "/api/openapi.json"


class Route:
    """One path template and its operations by method."""

    __slots__ = ("operations", "segments")

    def __init__(self, template: str) -> None:
        self.segments = tuple(template.split("/")[1:])
        self.operations: dict[str, Operation] = {}

    @property
    def literals(self) -> int:
        """How many segments are fixed: of two templates that fit, the one with more is meant."""
        return sum(not segment.startswith("{") for segment in self.segments)

    @property
    def allow(self) -> str:
        methods = {*self.operations, "OPTIONS"} | ({"HEAD"} if "GET" in self.operations else set())
        return ", ".join(sorted(methods))

    def fits(self, segments: tuple[str, ...]) -> dict[str, str] | None:
        """The variable segments, or None when the path is another."""
        found: dict[str, str] = {}
        for template, segment in zip(self.segments, segments, strict=True):
            if template.startswith("{"):
                if not segment:
                    return None
                found[template[1:-1]] = segment
            elif template != segment:
                return None
        return found


class Router:
    """Made once from the table of operations. ValueError when two of them share method and path."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        routes: dict[str, Route] = {}
        for operation in operations:
            route = routes.setdefault(operation.path, Route(operation.path))
            if operation.method in route.operations:
                raise ValueError(f"{operation.method} {operation.path} is declared twice")
            route.operations[operation.method] = operation
        self._by_length: dict[int, list[Route]] = {}
        for route in sorted(routes.values(), key=lambda item: -item.literals):
            self._by_length.setdefault(len(route.segments), []).append(route)

    def route(self, raw_path: str) -> tuple[Route, dict[str, str]]:
        """The route of a path as it was sent (still percent-encoded), and its variable segments. NotFound."""
        if raw_path.startswith(VERSIONED):
            raw_path = "/api/" + raw_path.removeprefix(VERSIONED)
        try:
            segments = tuple(unquote(part, errors="strict") for part in raw_path.split("/")[1:])
        except UnicodeDecodeError:
            raise _not_found() from None
        if all(len(segment) <= MAX_SEGMENT and segment.isprintable() for segment in segments):
            for route in self._by_length.get(len(segments), ()):
                variables = route.fits(segments)
                if variables is not None:
                    return route, variables
        raise _not_found()

    @staticmethod
    def operation(route: Route, method: str) -> Operation:
        """The operation of a method; HEAD is GET without its body. MethodNotAllowed, with `allow`."""
        operation = route.operations.get("GET" if method == "HEAD" else method)
        if operation is None:
            raise MethodNotAllowed(f"This path takes {route.allow}.", allow=route.allow)
        return operation


def _not_found() -> NotFound:
    return NotFound(f"There is nothing at this path. Paths are exact and lower-case; {API_DOCS} lists them.")
