"""Server-sent events as bytes: cut a stream into events, look into one, write one back changed.

Only what MCP needs (WHATWG HTML section 9.2): lines end in LF, CR or CRLF; an event ends at an empty line; its `data`
lines join with LF. Events that nobody changes are passed on byte for byte.
"""

from __future__ import annotations

import re
from typing import Final

_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r|\r\n\n|\n\r\n|\r\r\n")
_LINE: Final = re.compile(rb"\r\n|\n|\r")
MAX_EVENT: Final = 64 * 1024 * 1024


class EventTooLarge(Exception):
    """One event is larger than MAX_EVENT."""


class Splitter:
    """Feed chunks, take whole events (with their terminating blank line). What is left at the end is no event."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events completed by this chunk, in order. Raises EventTooLarge."""
        start = max(0, len(self._buffer) - 3)
        self._buffer += chunk
        events: list[bytes] = []
        while (match := _END.search(self._buffer, start)) is not None:
            end = match.end()
            # A CR at the very end may be half of a CRLF: wait for the next byte.
            if end == len(self._buffer) and self._buffer[-1:] == b"\r":
                break
            events.append(bytes(self._buffer[:end]))
            del self._buffer[:end]
            start = 0
        if len(self._buffer) > MAX_EVENT:
            raise EventTooLarge
        return events

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)


def data_of(event: bytes) -> bytes:
    """The joined `data` of one event, b"" when it has none."""
    parts: list[bytes] = []
    for line in _LINE.split(event):
        if line.startswith(b"data:"):
            value = line[5:]
            parts.append(value[1:] if value.startswith(b" ") else value)
        elif line == b"data":
            parts.append(b"")
    return b"\n".join(parts)


def with_data(event: bytes, data: bytes) -> bytes:
    """The event with other data (one line of JSON); its id, name and retry lines stay."""
    kept = [line for line in _LINE.split(event) if line and not line.startswith(b"data")]
    return b"\n".join([*kept, b"data: " + data, b"", b""])


def event(data: bytes, event_id: str = "") -> bytes:
    """A new `message` event."""
    identifier = f"id: {event_id}\n".encode() if event_id else b""
    return b"event: message\n%sdata: %s\n\n" % (identifier, data)
