"""What the process says, to standard error: lines for people on a terminal, one JSON object a line for programs.

Everything goes through one chain, our lines and the standard library's (aiohttp, asyncio), and the last step before a
line is made masks secrets: by the name of the field, and by what the text looks like. The warm path of a call logs
nothing.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO

import structlog

from .settings import LogSettings

MASK: Final = "***"
MAX_DEPTH: Final = 8
"""Deeper values are shown as `...`: a log line is no place for a whole tree, and a cycle must end."""

_SECRET_NAME: Final = re.compile(
    r"(?:^|[_\-.\s])(?:pass(?:word|wd|phrase)?|secrets?|tokens?|authorization|api_?-?keys?|x-api-key|cookies?|"
    r"set-cookie|credentials?|private_?-?key|secret_?-?key)$",
    re.IGNORECASE,
)
_SECRET_TEXT: Final = (
    (re.compile(r"\bek_[A-Za-z0-9]+"), f"ek_{MASK}"),
    (re.compile(r"\b([am]k)_[A-Za-z0-9]{16,}"), rf"\1_{MASK}"),
    (re.compile(r"\b(rt|lk|ps|dv)_[A-Za-z0-9_-]{16,}(\.[A-Za-z0-9_-]+)*"), rf"\1_{MASK}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]*)?"), MASK),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*):[^\s@/]+@"), rf"\1:{MASK}@"),
    (re.compile(r"([?&](?:password|token|secret|api_?key|authToken)=)[^&\s]+", re.IGNORECASE), rf"\1{MASK}"),
)

_SHARED: Final[tuple[Any, ...]] = (structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level)
"""Steps that our lines and the standard library's have in common, before masking."""


def masked_text(text: str) -> str:
    """A text with everything in it masked that looks like a credential: keys, bearer tokens, passwords in URLs."""
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


def masked(value: Any, depth: int = 0) -> Any:
    """A value with secrets masked at any depth: by the names of mappings' keys, and in every text."""
    if isinstance(value, str):
        return masked_text(value)
    if isinstance(value, bytes | bytearray):
        return masked_text(bytes(value).decode("utf-8", "backslashreplace"))
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth >= MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {key: _masked_field(str(key), item, depth) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [masked(item, depth + 1) for item in value]
    return masked_text(str(value))


def _masked_field(name: str, value: Any, depth: int) -> Any:
    if _SECRET_NAME.search(name) and value not in (None, "", False, True):
        return MASK
    return masked(value, depth + 1)


def redact(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The processor that masks. structlog's own fields (`_record`, `_from_structlog`) pass as they are."""
    for name, value in event.items():
        if not name.startswith("_"):
            event[name] = _masked_field(name, value, 0)
    return event


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Set both logging systems up, for the rest of this process. Format auto: console on a terminal, else JSON."""
    stream = sys.stderr if stream is None else stream
    level = getattr(logging, settings.level.upper())
    wanted = settings.format if settings.format != "auto" else ("console" if stream.isatty() else "json")
    people = wanted == "console"
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if people else "iso", utc=not people, key="time")
    renderer = _console(stream) if people else structlog.processors.JSONRenderer(default=str)
    ending: list[Any] = [stamp, structlog.processors.format_exc_info, redact, renderer]
    structlog.configure(
        processors=[*_SHARED, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.INFO))
    logging.getLogger("asyncio").setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)


def _console(stream: TextIO) -> structlog.dev.ConsoleRenderer:
    colours = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return structlog.dev.ConsoleRenderer(
        colors=colours, pad_event_to=24, timestamp_key="time", exception_formatter=structlog.dev.plain_traceback
    )
