"""List results shown to an agent: only what it may use, in the server's own order, each item byte for byte.

Works on one JSON-RPC message. By shape and not by the request, because a resumed stream may replay a list's answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from .mcpfacts import LISTS, governed_id

Visible = Callable[[str], bool]
"""governed id -> whether the agent may see it."""

_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_any: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode

MARKERS: Final = tuple(f'"{key}"'.encode() for key, _, _ in LISTS.values())


class Filtered(msgspec.Struct):
    """`body` is the message to pass on; `seen` the definitions the server offered, by list key, for pinning."""

    body: bytes
    seen: dict[str, list[dict[str, Any]]]
    whole: bool
    """True when the answer is a list in one page, so that what is absent is gone."""


def may_hold_list(data: bytes) -> bool:
    """A cheap look: could this message be a list's answer?"""
    return any(marker in data for marker in MARKERS)


def filter_message(data: bytes, server: str, visible: Visible) -> Filtered | None:
    """The message with hidden items removed, or None when it is no list answer. Raises msgspec.MsgspecError or
    UnicodeError when a list answer cannot be read: what cannot be filtered is not passed on."""
    if not may_hold_list(data):
        return None
    if data.lstrip()[:1] == b"[":
        return _filter_batch(data, server, visible)
    message = _object(data)
    if "result" not in message:
        return None
    raw = bytes(message["result"]).lstrip()
    if not raw.startswith(b"{"):
        return None
    result = _object(raw)
    seen: dict[str, list[dict[str, Any]]] = {}
    hidden = 0
    for key, field, prefix in LISTS.values():
        if key not in result or not bytes(result[key]).lstrip().startswith(b"["):
            continue
        kept: list[msgspec.Raw] = []
        seen[key] = []
        for item in _array(result[key]):
            definition = _any(item)
            if not isinstance(definition, dict) or not isinstance(name := definition.get(field), str):
                hidden += 1
                continue
            seen[key].append(definition)
            if visible(governed_id(server, prefix, name)):
                kept.append(item)
            else:
                hidden += 1
        result[key] = msgspec.Raw(_encode(kept))
    if not seen:
        return None
    if "cacheScope" in result:
        # The answer now depends on who asked: no shared cache may hand it to another agent.
        result["cacheScope"] = msgspec.Raw(b'"private"')
    elif not hidden:
        return Filtered(data, seen, "nextCursor" not in result)
    message["result"] = msgspec.Raw(_encode(result))
    return Filtered(_encode(message), seen, "nextCursor" not in result)


def _filter_batch(data: bytes, server: str, visible: Visible) -> Filtered:
    seen: dict[str, list[dict[str, Any]]] = {}
    out: list[msgspec.Raw] = []
    for item in _array(data):
        filtered = filter_message(bytes(item), server, visible)
        out.append(item if filtered is None else msgspec.Raw(filtered.body))
        if filtered is not None:
            for key, definitions in filtered.seen.items():
                seen.setdefault(key, []).extend(definitions)
    return Filtered(_encode(out), seen, False)
