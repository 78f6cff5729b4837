"""A request target, read strictly. Raises BadRequest for whatever two servers in a row could read differently.

Refused: dot segments, doubled and trailing slashes, backslashes, matrix parameters (`;`), a percent sign or a slash
within an encoded segment, encoded letters and digits, bytes that are not UTF-8, control characters, fragments,
parameters without `=`, with brackets, or given twice (in whatever case).
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from ....catalog.errors import BadRequest

MAX_TARGET: Final = 8192
_SEGMENT: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})+")
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]+")
_ENCODED_PLAIN: Final = re.compile(r"%(?:2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aAeE])")
"""An unreserved character (RFC 3986 section 2.3) that was encoded: a disguise, no client does it."""
_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_QUERY_VALUE: Final = re.compile(r"(?:[A-Za-z0-9._~!$'()*+,:@/?-]|%[0-9A-Fa-f]{2})*")


class Target:
    """`segments` are the path's, as they came; `query` is decoded, in its order."""

    __slots__ = ("query", "segments")

    def __init__(self, segments: list[str], query: dict[str, str]) -> None:
        self.segments = segments
        self.query = query


def read_target(raw: str) -> Target:
    """Path and query of what follows a door's prefix, beginning with a slash."""
    if len(raw) > MAX_TARGET:
        raise BadRequest("The path is too long.")
    path, _, query = raw.partition("?")
    if not path.startswith("/"):
        raise BadRequest("The path must begin with one slash.")
    segments = path[1:].split("/")
    for segment in segments:
        if not segment:
            raise BadRequest("The path has doubled slashes, or ends in one; paths are exact.")
        if _SEGMENT.fullmatch(segment) is None:
            raise BadRequest("The path has characters that must be encoded, or that programs read differently.")
    return Target(segments, read_query(query) if query else {})


def value_of(segment: str, *, slashes: bool = False) -> str:
    """What a path's segment says. `slashes`: an encoded slash is part of the value (a folder's path)."""
    if "%" not in segment:
        value = segment
    else:
        if _ENCODED_PLAIN.search(segment) is not None:
            raise BadRequest("The path encodes letters or digits that need no encoding.")
        value = _decoded(segment)
    if not value.isprintable() or any(sign in value for sign in "\\%;?#"):
        raise BadRequest("A part of the path holds characters that programs read differently.")
    if "/" in value and not slashes:
        raise BadRequest("A part of the path holds an encoded slash.")
    if any(part.strip(" ") in {"", ".", ".."} for part in value.split("/")):
        raise BadRequest("The path has dot segments or empty parts.")
    return value


def read_query(query: str) -> dict[str, str]:
    """Parameters by name. `+` is a space, as in forms; what is forwarded says %20."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for part in query.split("&"):
        key, sign, value = part.partition("=")
        if not sign or _KEY.fullmatch(key) is None:
            raise BadRequest("Query parameters are name=value; names are plain and without brackets.")
        if key.casefold() in seen:
            raise BadRequest(f"The query parameter {key} is given twice.")
        seen.add(key.casefold())
        if _QUERY_VALUE.fullmatch(value) is None:
            raise BadRequest(f"The query parameter {key} holds characters that must be encoded.")
        text = _decoded(value.replace("+", " "))
        if any(ord(character) < 32 or ord(character) == 127 for character in text):
            raise BadRequest(f"The query parameter {key} holds control characters.")
        found[key] = text
    return found


def write_segment(value: str) -> str:
    """A value as one segment, in the one spelling that is forwarded."""
    return value if _PLAIN.fullmatch(value) is not None else quote(value, safe="")


def write_query(pairs: dict[str, str]) -> str:
    """`?name=value&...`, or "" for none."""
    if not pairs:
        return ""
    return "?" + "&".join(f"{key}={quote(value, safe='')}" for key, value in pairs.items())


def _decoded(text: str) -> str:
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The request target encodes bytes that are not UTF-8.") from None
