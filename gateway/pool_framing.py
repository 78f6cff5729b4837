"""What may count as one HTTP/1.1 response: the parser's side of a connection.

httptools (llhttp) refuses what is not HTTP/1.1 grammar: two Content-Lengths, Content-Length beside Transfer-Encoding,
bare CR or LF, folded headers, bad chunks. What it lets pass and a proxy must not is refused here: other versions,
codings other than `chunked`, an upgrade nobody asked for, oversized heads, a second response.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from httptools import HttpResponseParser

from ..catalog.errors import UpstreamProtocol
from .pool_answer import Stream

HEAD: Final = 0  # zero, because the parser's hottest callback asks for it
BODY: Final = 1
DONE: Final = 2
IDLE: Final = 3
DEAD: Final = 4

MAX_BUFFERED: Final = 64 * 1024
"""Bodies with a declared length up to this are handed over whole; all others are streamed."""
_LENGTH: Final = 1
_CODING: Final = 2
_KEEP_ALIVE: Final = 3
_MEDIA: Final = 4
_SPECIAL: Final = {
    b"content-length": _LENGTH, b"transfer-encoding": _CODING, b"keep-alive": _KEEP_ALIVE, b"content-type": _MEDIA,
}  # fmt: skip
_KINDS: dict[bytes, int] = {}
"""Header names as upstreams spell them -> what they mean to us, so that the common ones cost no `lower()`. Bounded."""
_JSON: Final = b"application/json"  # by far the commonest: one comparison
_MAX_KINDS: Final = 2048


class Framing:
    """The state of one response at a time. Its `on_*` methods are httptools' callbacks; what they raise arrives as the
    `__context__` of the error that the parser raises."""

    __slots__ = (
        "_bodiless", "_chunked", "_events", "_feed", "_headers", "_interim", "_keep", "_last", "_length", "_max_head",
        "_media", "_odd", "_parser", "_parts", "_rare", "_reason", "_seen", "_status", "_stream", "_until_close",
        "_whole", "state",
    )  # fmt: skip

    def __init__(self, max_head: int) -> None:
        self._max_head = max_head
        self.state = IDLE
        self._seen = self._status = 0  # bytes of the head, the status code
        self._length: int | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._reason = self._media = b""
        self._parts: list[bytes] = []
        self._stream: Stream | None = None
        self._keep = True  # may the connection be used again?
        self._odd = False  # is another version than 1.1 possible?
        self._rare = False  # is any of the flags to be reset?
        self._interim = False  # did a 100 or 103 come first?
        self._bodiless = False  # is it the answer to HEAD?
        self._whole = False  # is the answer handed over when it is complete?
        self._last = b""  # the latest piece of a streamed body
        self._chunked = self._events = self._until_close = False
        self._renew()

    def hinted(self, value: bytes) -> None:
        """A Keep-Alive header has come."""

    def on_message_begin(self) -> None:
        if self.state:
            raise UpstreamProtocol("The upstream sent a second response.")

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.state:
            return  # a trailer: dropped, as HTTP lets a proxy do
        self._headers.append((name, value))
        kind = _KINDS.get(name)
        if kind is None:
            kind = _classify(name)
        if kind:
            if kind == _LENGTH:
                self._length = int(value)  # llhttp has seen to it that it is one number, once
            elif kind == _MEDIA:
                self._media = value
            elif kind == _CODING:
                self._coding(value)
            else:
                self.hinted(value)

    def on_headers_complete(self) -> None:
        parser = self._parser
        status = parser.get_status_code()
        if self._odd or not 200 <= status <= 599:
            self._unusual(status)
            if status < 200:
                return
        if self._seen > self._max_head:
            self._weigh()
        self._status = status
        if not parser.should_keep_alive():
            self._keep = False
        length = self._length
        if self._bodiless or status in (204, 304):
            # A body after all would be read as the next answer's beginning: such a server gets no second request.
            self._keep = self._keep and (self._bodiless or status == 304 or not (length or self._chunked))
            self._rare = self._whole = True
            self.state = DONE if self._bodiless else BODY
            return
        if length is None or length > MAX_BUFFERED:
            self._whole = False
            self._rare = True
            self._until_close = length is None and not self._chunked
        media = self._media
        if media != _JSON and media[:17].lower() == b"text/event-stream":
            self._whole = False
            self._rare = self._events = True
        self.state = BODY

    def on_body(self, chunk: bytes) -> None:
        if self._stream is None:
            self._parts.append(chunk)
        else:
            self._last = chunk
            self._stream.put(chunk)

    def on_message_complete(self) -> None:
        if self.state == HEAD:  # the end of an interim answer: the real one follows
            self._forget_head()
        else:
            self.state = DONE

    def _renew(self) -> None:
        self._parser = HttpResponseParser(self)
        self._feed: Callable[[bytes], None] = self._parser.feed_data

    def _forget_head(self) -> None:
        self._headers = []
        self._reason = self._media = b""
        self._length = None
        self._chunked = False

    def _reset(self) -> None:
        """After a response that was out of the ordinary."""
        self._chunked = self._until_close = self._events = False
        self._odd = self._interim = self._bodiless = self._rare = False
        self._keep = True

    def _exact(self, data: bytes, first: bool) -> bool:
        """Whether no stray line ends came after the response, whose last bytes were in `data` (all of them if `first`).

        llhttp skips them without a word. Where it cannot be known, the answer is no: the connection is then spared.
        """
        length = 0 if self._bodiless or self._status in (204, 304) else self._length
        if first and length is not None and not self._interim:
            return len(data) == data.find(b"\r\n\r\n") + 4 + length
        run = len(data) - len(data.rstrip(b"\r\n"))
        if not length:
            return run == 4 < len(data)  # the end of a head, of the last chunk, or of trailers
        last = self._parts[-1] if self._parts else self._last
        tail = len(last) - len(last.rstrip(b"\r\n"))
        return run == tail < len(last)

    def _coding(self, value: bytes) -> None:
        if self._chunked or value.strip(b" \t").lower() != b"chunked":
            raise UpstreamProtocol("The upstream used a transfer coding other than chunked.")
        self._chunked = True

    def _weigh(self) -> None:
        """What was read so far may hold a piece of the body: count the head alone."""
        if sum([len(name) + len(value) + 4 for name, value in self._headers]) > self._max_head:
            raise UpstreamProtocol("The upstream's header section is too large.")

    def _unusual(self, status: int) -> None:
        """Other versions, interim answers, and status codes that do not exist."""
        version = self._parser.get_http_version()
        if version == "1.0":
            self._keep = False
            if self._chunked:
                raise UpstreamProtocol("The upstream used a transfer coding in HTTP/1.0.")
        elif version != "1.1":
            raise UpstreamProtocol(f"The upstream speaks HTTP/{version}, not HTTP/1.1.")
        if status == 101:
            raise UpstreamProtocol("The upstream switched protocols without having been asked to.")
        if status > 599:
            raise UpstreamProtocol(f"The upstream answered with the status {status}, which does not exist.")
        if status < 200:
            self._interim = self._odd = self._rare = True


def _classify(name: bytes) -> int:
    kind = _SPECIAL.get(name.lower(), 0)
    if len(_KINDS) < _MAX_KINDS:
        _KINDS[name] = kind
    return kind
