"""AgenticMail's answers repeat its keys (`ak_`, `mk_`): an agent that learns one has a way around the gateway."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from ....catalog.errors import UpstreamProtocol
from ..jsonrpc import encode

_KEY: Final = re.compile(rb"(?<![A-Za-z0-9_])(ak|mk)_[A-Za-z0-9_-]{3,}")
_TEXT: Final = re.compile(_KEY.pattern.decode())
_ESCAPE: Final = re.compile(rb"\\u00[2-7]")


def redact(body: bytes) -> bytes:
    """A JSON body or a stream's event with every key taken out, otherwise byte for byte as it came. Raises
    UpstreamProtocol where escapes hide what cannot be read."""
    if _ESCAPE.search(body) is not None:  # ASCII that needed no escape: read it, and write it plainly
        try:
            return encode(_walk(msgspec.json.decode(body)))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise UpstreamProtocol("The upstream's answer is not valid JSON.") from None
    return _KEY.sub(rb"\1_redacted", body)


def _walk(value: Any) -> Any:
    if isinstance(value, str):
        return _TEXT.sub(r"\1_redacted", value)
    if isinstance(value, list):
        return [_walk(inner) for inner in value]
    if isinstance(value, dict):
        return {_walk(key): _walk(inner) for key, inner in value.items()}
    return value
