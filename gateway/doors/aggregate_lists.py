"""Names across servers: `server__tool` put together and taken apart, lists merged, and whose a resource is."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from .mcpfacts import LISTS, governed_id

SEPARATOR: Final = "__"
URI_FIELDS: Final = {key: field for key, field, _ in LISTS.values() if field != "name"}
"""List key -> field, of the lists whose items have a URI."""


def split_name(name: str) -> tuple[str, str]:
    """`mail__send_email` -> ("mail", "send_email"); ("", name) when there is no server in it. Server names never
    contain the separator, so the first one is it."""
    server, separator, local = name.partition(SEPARATOR)
    return (server, local) if separator and local else ("", name)


def merged(
    parts: list[tuple[Any, list[dict[str, Any]]]], field: str, prefix: str, visible: Callable[[str], bool], key: str
) -> list[dict[str, Any]]:
    """One list from many: servers by name, each in its own order; names with the server in front, URIs as they are
    (a URI offered twice belongs to the first server). Only what the agent may use."""
    items: list[dict[str, Any]] = []
    taken: set[str] = set()
    for live, own in parts:
        for item in own:
            name = item.get(field)
            if not isinstance(name, str) or not visible(governed_id(live.name, prefix, name)):
                continue
            if field == "name":
                items.append({**item, "name": f"{live.name}{SEPARATOR}{name}"})
            elif name not in taken:
                taken.add(name)
                items.append(item)
        remember(live, key, own)
    return items


def remember(live: Any, key: str, items: list[dict[str, Any]]) -> None:
    """Keep which URIs a server offers, for `owner_of_uri`."""
    field = URI_FIELDS.get(key)
    if field is not None:
        live.offers[key] = frozenset(item[field] for item in items if isinstance(item.get(field), str))


def owner_of_uri(lives: list[Any], uri: str) -> Any | None:
    """The server a resource belongs to: one that lists it, else one with a template that it fits, in order of name."""
    for live in lives:
        if uri in live.offers.get("resources", ()):
            return live
    for live in lives:
        templates = live.offers.get("resourceTemplates", frozenset())
        if uri in templates or any(_pattern(template).fullmatch(uri) for template in templates):
            return live
    return None


@lru_cache(maxsize=1024)
def _pattern(template: str) -> re.Pattern[str]:
    """An RFC 6570 template as an expression: each `{...}` stands for any run of characters without a space."""
    parts = re.split(r"\{[^{}]*\}", template)
    return re.compile(r"\S*?".join(re.escape(part) for part in parts))
