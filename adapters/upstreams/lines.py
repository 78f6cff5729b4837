"""What a child writes, in bounded memory: messages from stdout, the last lines of stderr."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ...catalog import errors

MAX_STDERR_LINE: Final = 4096
"""Bytes of one line of stderr that are kept; a longer one goes on as a line of its own."""

_decode: Final = msgspec.json.Decoder().decode
_decode_shape: Final = msgspec.json.Decoder(msgspec.Raw).decode


class OversizeError(Exception):
    """A line is longer than its bound."""


class LineSplitter:
    """Bytes in as they come, whole lines out, without their ends. Holds at most `limit` bytes of an unfinished line."""

    __slots__ = ("_limit", "_rest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes. Raises OversizeError, after which the splitter is not to be used."""
        first, *others = data.split(b"\n")
        self._rest += first
        lines: list[bytes] = []
        if others:
            lines.append(bytes(self._rest))
            lines += others[:-1]
            self._rest = bytearray(others[-1])
        if len(self._rest) > self._limit or any(len(line) > self._limit for line in lines):
            raise OversizeError
        return [line.removesuffix(b"\r") for line in lines]

    def end(self) -> bytes:
        """What came after the last line end."""
        rest = bytes(self._rest)
        self._rest = bytearray()
        return rest


class StderrRing:
    """The last lines of stderr, at most `lines` of them and `size` bytes; printable characters only.

    `dropped` counts lines that had to go. `on_line` hears every line as it is kept; if it raises, that is counted in
    `faults` and the child goes on: a reporter must not end what it reports on.
    """

    __slots__ = ("_kept", "_lines", "_on_line", "_rest", "_size", "_used", "dropped", "faults")

    def __init__(self, lines: int, size: int, on_line: Callable[[str], Any] | None = None) -> None:
        self._lines = lines
        self._size = size
        self._on_line = on_line
        self._kept: deque[str] = deque()
        self._rest = b""
        self._used = 0
        self.dropped = 0
        self.faults = 0

    def feed(self, data: bytes) -> None:
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        if newline:
            for line in whole.split(b"\n"):
                self._cut(line)
        while len(rest) > MAX_STDERR_LINE:
            self.add(rest[:MAX_STDERR_LINE])
            rest = rest[MAX_STDERR_LINE:]
        self._rest = rest

    def end(self) -> None:
        """The stream is over: what has no line end is a line too."""
        if self._rest:
            self.add(self._rest)
            self._rest = b""

    def _cut(self, line: bytes) -> None:
        for start in range(0, len(line) or 1, MAX_STDERR_LINE):
            self.add(line[start : start + MAX_STDERR_LINE])

    def add(self, line: bytes) -> None:
        self.keep(clean_text(line))

    def keep(self, text: str) -> None:
        """Keep a line that is clean already."""
        self._kept.append(text)
        self._used += len(text)
        while len(self._kept) > self._lines or self._used > self._size:
            self._used -= len(self._kept.popleft())
            self.dropped += 1
        if self._on_line is not None:
            try:
                self._on_line(text)
            except Exception:  # noqa: BLE001 - counted: a fault in reporting ends nothing
                self.faults += 1

    def tail(self) -> list[str]:
        """Oldest first."""
        return list(self._kept)

    def last(self) -> str:
        """The last line that says something, or ""."""
        return next((line for line in reversed(self._kept) if line.strip()), "")


def clean_text(line: bytes) -> str:
    """A line for people's eyes: no terminal codes, no control characters (they are shown as a question mark)."""
    text = line.removesuffix(b"\r").decode("utf-8", "replace").expandtabs(4)
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def is_message(line: bytes) -> bool:
    """True for what may be JSON-RPC: one JSON object or array (a batch) in UTF-8."""
    if not line.lstrip().startswith((b"{", b"[")):
        return False
    try:
        _decode_shape(line)
        if not line.isascii():
            line.decode("utf-8")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def one_line(message: bytes, limit: int) -> bytes:
    """`message` as it may stand on one line, its line end included.

    Line breaks in valid JSON are always between tokens, so a space says the same; all else stays byte for byte.
    Raises InvalidJson, BodyTooLarge (`limit` in bytes).
    """
    if len(message) > limit:
        raise errors.BodyTooLarge(f"A message to this server may have {limit} bytes.", limit=limit, size=len(message))
    try:
        value = _decode(message)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise errors.InvalidJson(f"The message is not valid JSON: {error}") from None
    if not isinstance(value, dict | list):
        raise errors.InvalidJson("A JSON-RPC message is an object, or an array of them.")
    if b"\n" in message or b"\r" in message:
        message = message.replace(b"\r", b" ").replace(b"\n", b" ")
    return message + b"\n"
