"""Routes of a plain HTTP API, as data: which method and path is which tool, and where each argument travels.

A route is the one description that both ways to a tool share: a REST request is read into arguments by it, and
arguments are written into a request by it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
ValueType = Literal["string", "integer", "number", "boolean", "array", "object", "any"]

ArgumentName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,127}$(?!\n)")]
ToolName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$(?!\n)")]
Text = Annotated[str, msgspec.Meta(max_length=2000)]

MAX_ROUTES = 500


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One argument. In a path or query its type is a scalar's; there it is required in a path always."""

    name: ArgumentName
    type: ValueType = "string"
    required: bool = False
    description: Text = ""


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One operation. `path` is a template from the upstream's base on: `/customers/{id}/notes`.

    `path_fields` types the path's parameters (strings where left out); `query` and `body` name what else may be given.
    All of them share one namespace, that of the tool's arguments. `open`: arguments that are not named pass as well
    (as parts of the body, or of the query where the method has none).
    """

    method: Method
    path: Annotated[str, msgspec.Meta(pattern=r"^/", max_length=512)]
    tool: ToolName
    description: Text = ""
    path_fields: tuple[Field, ...] = ()
    query: tuple[Field, ...] = ()
    body: tuple[Field, ...] = ()
    open: bool = False


Routes = Annotated[tuple[Route, ...], msgspec.Meta(max_length=MAX_ROUTES)]
