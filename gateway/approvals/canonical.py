"""The canonical form of JSON (RFC 8785, JCS): the same value always has the same bytes, and so the same digest.

Stricter than the RFC in one point: a whole number that a double cannot hold exactly is refused, not rounded, since what
is approved must be what is sent.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Final

MAX_EXACT: Final = 2**53 - 1
"""The largest whole number that every JSON reader understands the same way (RFC 7493 section 2.2)."""

WRITTEN_OUT: Final = 1e21
"""Doubles below this are written without an exponent, and would read back as whole numbers."""

MAX_DEPTH: Final = 64

_quote: Final = json.JSONEncoder(ensure_ascii=False).encode
"""Escapes what RFC 8785 section 3.2.2.2 escapes, the same way."""


class NotCanonical(ValueError):
    """A value that has no canonical form; the message says why."""


def canonical(value: Any) -> bytes:
    """The canonical bytes of a JSON value. NotCanonical."""
    parts: list[str] = []
    _write(value, parts, 0)
    try:
        return "".join(parts).encode()
    except UnicodeEncodeError:
        raise NotCanonical("a text has half of a surrogate pair") from None


def digest_of(data: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(data).hexdigest()


def _write(value: Any, parts: list[str], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise NotCanonical(f"it is nested deeper than {MAX_DEPTH} levels")
    if value is None:
        parts.append("null")
    elif value is True:
        parts.append("true")
    elif value is False:
        parts.append("false")
    elif type(value) is str:
        parts.append(_quote(value))
    elif type(value) is int:
        if abs(value) > MAX_EXACT:
            raise NotCanonical(f"the number {value if abs(value) < 10**30 else 'in it'} is too large to be exact")
        parts.append(str(value))
    elif type(value) is float:
        if MAX_EXACT < abs(value) < WRITTEN_OUT:
            raise NotCanonical(f"the number {value:.17g} is too large to be exact")
        parts.append(number(value))
    elif type(value) is dict:
        _object(value, parts, depth)
    elif isinstance(value, list | tuple):
        parts.append("[")
        for place, item in enumerate(value):
            if place:
                parts.append(",")
            _write(item, parts, depth + 1)
        parts.append("]")
    else:
        raise NotCanonical(f"a {type(value).__name__} is no JSON value")


def _object(value: dict[str, Any], parts: list[str], depth: int) -> None:
    if not all(type(key) is str for key in value):
        raise NotCanonical("the keys of an object are texts")
    parts.append("{")
    # Sorted by UTF-16 code units (section 3.2.3), which is not the order of code points beyond U+FFFF.
    for place, key in enumerate(sorted(value, key=lambda text: text.encode("utf-16-be", "surrogatepass"))):
        if place:
            parts.append(",")
        parts.append(_quote(key))
        parts.append(":")
        _write(value[key], parts, depth + 1)
    parts.append("}")


def number(value: float) -> str:
    """A double as ECMAScript writes it (ECMA-262, Number::toString). NotCanonical for infinities and NaN."""
    if not math.isfinite(value):
        raise NotCanonical("NaN and infinity are no JSON numbers")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    # repr gives the shortest digits that read back as the same double, as ECMAScript does.
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    if fraction == "0":
        fraction = ""
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    if whole == "0":
        point = int(exponent or 0) - (len(fraction) - len(fraction.lstrip("0")))
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    power = f"e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return f"{sign}{digits[0]}{'.' + digits[1:] if count > 1 else ''}{power}"
