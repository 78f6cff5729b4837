"""One keep-alive connection: bytes out, one strictly framed response in. The hottest code of the product.

A request is under way in the states HEAD and BODY only. A connection is used again only if its response ended exactly
where its last byte ended.

An upstream sends the same response head again and again. One that came twice is remembered with what the parser read in
it, and an answer that begins with these bytes and is as long as they say needs no second parse: the same bytes mean the
same. Only whole, ordinary answers are so remembered.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade

from ..catalog.errors import UpstreamBroken, UpstreamError, UpstreamProtocol, UpstreamTimeout
from .pool_answer import Answer, KnownHead, Stream, StreamedAnswer
from .pool_delivery import Poll, Remains, acknowledged, duplicate, watcher
from .pool_framing import BODY, DEAD, DONE, HEAD, IDLE, Framing
from .pool_idle import parse_keep_alive

ONE_WRITE: Final = 64 * 1024
"""Larger request bodies are written beside their head instead of being copied behind it."""


MAX_KNOWN_HEAD: Final = 2048
MAX_KNOWN_HEADS: Final = 2048
"""Bytes of a response head that is remembered, and how many are, for all upstreams: about 4 MB at most."""

_CR: Final = 13
_heads: Final[dict[bytes, KnownHead]] = {}


class Lost(Exception):
    """The connection ended before one byte of the answer. `answer`: a 408 that says the server closed it idle."""

    def __init__(self, remains: Remains, reused: bool, answer: Answer | None = None) -> None:
        super().__init__("The connection ended before the answer began.")
        self.remains = remains
        self.reused = reused
        self.answer = answer


class Receiver(Protocol):
    """Who waits for an answer: an `asyncio.Future[Answer]`, or whatever offers these three of its methods."""

    def done(self) -> bool: ...

    def set_result(self, result: Answer, /) -> None: ...

    def set_exception(self, error: BaseException, /) -> None: ...


class Owner(Protocol):
    """The pool, as its connections see it."""

    clock: Callable[[], float]
    max_head: int
    stream_idle: float | None

    def released(self, conn: Connection, now: float) -> None:
        """The connection is idle: it may be used again."""

    def gone(self, conn: Connection) -> None:
        """The connection is of no use any more. Called once."""

    def closed_idle(self, conn: Connection) -> None:
        """The server closed it, or wrote to it, while it was idle."""

    def announced(self, seconds: float) -> None:
        """The server says for how long it keeps idle connections."""

    def began_stream(self, conn: Connection) -> None:
        """From now on the time between pieces counts, not the deadline."""

    def broke_off(self) -> None:
        """A stream that had begun was not finished."""


class Connection(Framing, asyncio.Protocol):
    """Made by the pool's dialler; `begin` sends a request, and the future it was given gets the Answer or an error."""

    __slots__ = (
        "_future", "_hint", "_latest", "_loop", "_overhead", "_owner", "_sent", "_spare", "_started", "_tls",
        "_transport", "_unacked_from", "deadline", "idle_since", "poll", "reused", "touched",
    )  # fmt: skip

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop, tls: bool) -> None:
        super().__init__(owner.max_head)
        self._owner = owner
        self._loop = loop
        self._tls = tls
        self._transport: asyncio.Transport | None = None
        self._spare: socket.socket | None = None  # with TLS: the transport may be gone before its end is reported
        self._future: Receiver | None = None
        self._latest = b""  # the head of the latest whole answer that was parsed
        self._sent = self._overhead = 0
        self._unacked_from = -1
        self._hint = b""
        self.reused = False
        self.idle_since = owner.clock()
        self.deadline = self.touched = self._started = 0.0
        self.poll: Poll | None = None

    # -- from the event loop -------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.state == DEAD:
            self._transport.abort()
            return
        fd = self._fileno()
        self.poll = watcher(fd)
        if self._tls:
            self._spare = duplicate(fd)

    def data_received(self, data: bytes) -> None:
        state = self.state
        if state >= DONE:
            self._unasked()
            return
        first = not self._seen
        if first and self._whole and not self._rare:
            end = data.find(b"\r\n\r\n") + 4
            known = _heads.get(data[:end])
            if known is not None and len(data) - end == known.length and end <= self._max_head:
                self._answer(known, data[end:])
                return
        if state == HEAD:
            self._seen += len(data)
            if first and not data.startswith(b"HTTP/1.1 "):
                if data[:1] != b"H":
                    self.fail(UpstreamProtocol("The upstream's answer is not HTTP/1.1."))
                    return
                self._odd = self._rare = True
        try:
            self._feed(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if self.state != DONE:
                self._malformed(error)
                return
            self._keep = False  # the answer is complete; what follows it is not for anybody
        state = self.state
        if state == DONE:
            self._finish(data, first)
        elif state == BODY:
            if self._stream is not None:
                self.touched = self._owner.clock()
                self._bound_overhead(len(data))
            elif not self._whole:
                self._open_stream()
        elif self._seen > self._max_head:
            self.fail(UpstreamProtocol("The upstream's header section is too large."))

    def eof_received(self) -> bool:
        self._ended(clean=True)
        return False  # the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(clean=exc is None and self._tls)  # TLS transports do not always report the end before
        self._transport = self.poll = None

    # -- from the pool -------------------------------------------------------------------------------------------
    def begin(self, future: Receiver, head: bytes, body: bytes, now: float, deadline: float, stream: bool) -> None:
        """Send a request on an idle connection."""
        self._future = future
        self._started = now
        self.deadline = deadline
        if self._rare:
            self._reset()
        self._whole = not stream
        self._seen = 0
        self._length = None
        self._reason = self._media = b""
        self._headers = []
        self._parts = []
        self.state = HEAD
        if head[0] == 72 and head.startswith(b"HEAD "):  # H
            self._bodiless = self._rare = True
        transport = self._transport
        assert transport is not None  # noqa: S101 - an idle connection has one
        data = b""
        if len(body) <= ONE_WRITE:
            data = head + body
        else:
            self._rare = True
        self._unacked_from = acknowledged(self._spare) if self._spare else self._sent + 1
        self._sent += len(data) or len(head) + len(body)
        if data:
            transport.write(data)
        else:
            transport.writelines((head, body))

    def carries(self, future: Receiver) -> bool:
        return self._future is future

    def fail(self, error: UpstreamError) -> None:
        """End it, and what it was carrying, with `error`."""
        future, stream, self._future, self._stream = self._future, self._stream, None, None
        self.kill()
        if future is not None and not future.done():
            future.set_exception(error)
        if stream is not None:
            stream.finish(error)
            self._owner.broke_off()

    def kill(self) -> None:
        """End it at once. What it carried is its caller's to settle."""
        if self.state == DEAD:
            return
        self.state = DEAD
        self._part(abort=True)

    def retire(self) -> None:
        """Close an idle connection in good order."""
        if self.state != DEAD:
            self.state = DEAD
            self._part(abort=False)

    def due(self, now: float, idle_limit: float) -> float:
        """When it has to be looked at, on the pool's clock."""
        if self.state == IDLE:
            return self.idle_since + idle_limit
        if self._stream is None:
            return self.deadline
        pause = self._owner.stream_idle
        if pause is None:
            return float("inf")
        return (self.touched if self._stream.wanted else now) + pause

    def expire(self) -> None:
        """Its time has come: retire an idle one, fail what is under way."""
        if self.state == IDLE:
            self.retire()
        elif self._stream is not None:
            self.fail(UpstreamTimeout("The upstream fell silent in the middle of its answer."))
        else:
            self.fail(UpstreamTimeout())

    # -- from its stream -----------------------------------------------------------------------------------------
    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        self.touched = self._owner.clock()
        if self._transport is not None:
            self._transport.resume_reading()

    def cut(self) -> None:
        self._stream = None
        self.kill()

    # -- inside --------------------------------------------------------------------------------------------------
    def _answer(self, known: KnownHead, body: bytes) -> None:
        """The response is complete, and its head is one that was read before."""
        owner = self._owner
        now = owner.clock()
        future, self._future = self._future, None
        if known.hint:
            self.hinted(known.hint)
        self.state = IDLE
        self.idle_since = now
        self.reused = True
        owner.released(self, now)
        if future is not None and not future.done():
            future.set_result(
                Answer(
                    known.status, known.reason, known.headers, body, known.length, known.media, now - self._started,
                    None, known,
                )
            )  # fmt: skip

    def _learn(self, data: bytes) -> None:
        """A whole, ordinary answer: remember its head if the one before had the same."""
        end = data.find(b"\r\n\r\n") + 4
        head = data[:end]
        if head != self._latest or self._length != len(data) - end:
            self._latest = head if end <= MAX_KNOWN_HEAD else b""
            return
        hints = [value for name, value in self._headers if name.lower() == b"keep-alive"]
        if len(hints) > 1:
            return  # each of them counts: that is the parser's way
        if len(_heads) >= MAX_KNOWN_HEADS:
            _heads.clear()
        hint = hints[0] if hints else b""
        _heads[head] = KnownHead(self._status, self._reason, self._headers, self._length, self._media, hint)

    def _finish(self, data: bytes, first: bool) -> None:
        """The response is complete; `data` were its last bytes, and all of them if `first`."""
        if self._bodiless:
            self._parts = []
            self._renew()  # llhttp waits for a body that a HEAD request does not get
        owner = self._owner
        now = owner.clock()
        if self._events and self._stream is None:
            self._open_stream()
            if self.state == DEAD:
                return
        stream = self._stream
        future = self._future
        self._future = self._stream = None
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        answer = Answer(self._status, self._reason, self._headers, body, self._length, self._media, now - self._started)
        # llhttp skips CR and LF between messages and stumbles over all else: what ends otherwise had no surplus.
        if self._keep and (data[-1] > _CR or self._exact(data, first)) and not (self._rare and self._sending()):
            self.state = IDLE
            self.idle_since = now
            self.reused = True
            if stream is not None and stream.paused:
                self.resume()
            if first and stream is None and not self._rare:
                self._learn(data)
            owner.released(self, now)
        elif self._status == 408 and self.reused and stream is None and future is not None:
            self._lose(future, answer)  # the server's goodbye to an idle connection crossed our request
            return
        else:
            self.retire()
        if stream is not None:
            stream.finish()
        elif future is not None and not future.done():
            future.set_result(answer)

    def _open_stream(self) -> None:
        """Hand the answer over at its head; the rest follows as it comes."""
        future, self._future = self._future, None
        stream = self._stream = Stream(self._loop, self)
        now = self.touched = self._owner.clock()
        self._overhead = 0
        self._last = b""
        for part in self._parts:
            stream.put(part)
        self._parts = []
        if future is None or future.done():  # its caller has left in this very moment
            stream.close()
            return
        self._owner.began_stream(self)
        future.set_result(
            StreamedAnswer(
                self._status, self._reason, self._headers, None, self._length, self._media, now - self._started, stream
            )
        )

    def _fileno(self) -> int:
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        return -1 if sock is None else int(sock.fileno())

    def _sending(self) -> bool:
        """Whether the answer came before the request was sent to its end."""
        return self._transport is None or self._transport.get_write_buffer_size() > 0

    def hinted(self, value: bytes) -> None:
        if value != self._hint:  # the same on every answer
            self._hint = value
            seconds = parse_keep_alive(value)
            if seconds is not None:
                self._owner.announced(seconds)

    def _bound_overhead(self, size: int) -> None:
        """Chunk extensions and unfinished trailers carry no body, and llhttp keeps or skips them without end."""
        if self._last:
            self._last = b""
            self._overhead = 0
            return
        self._overhead += size
        if self._overhead > self._max_head:
            self.fail(UpstreamProtocol("The upstream sends framing without content."))

    def _unasked(self) -> None:
        """Bytes, though nothing was asked: whatever they are, no later answer may begin with them."""
        if self.state == IDLE:
            self._owner.closed_idle(self)
            self.kill()

    def _malformed(self, error: Exception) -> None:
        cause = error.__context__
        if isinstance(cause, UpstreamProtocol):
            self.fail(cause)
        elif isinstance(error, HttpParserUpgrade):
            self.fail(UpstreamProtocol("The upstream switched protocols without having been asked to."))
        else:
            self.fail(UpstreamProtocol(f"The upstream's answer is not valid HTTP/1.1: {error}."))

    def _ended(self, clean: bool) -> None:
        """The upstream will send no more. `clean`: it said so, and the socket is still there to be asked."""
        state = self.state
        if state == DEAD:
            return
        if state == IDLE:
            self._owner.closed_idle(self)
            self.kill()
        elif state == HEAD and not self._seen:
            future, self._future = self._future, None
            self._lose(future, None, clean)
        elif state == BODY and self._until_close and clean:
            self.state = DONE
            self._finish(b"", first=False)
        else:
            self.fail(UpstreamBroken())

    def _lose(self, future: Receiver | None, answer: Answer | None, clean: bool = True) -> None:
        """Not one byte of an answer came. Keep the socket until the pool has asked it what became of the request."""
        wanted = future is not None and not future.done()
        sock = None
        if clean and wanted:
            sock = self._spare if self._tls else duplicate(self._fileno())
            self._spare = None
        remains = Remains(sock, self._unacked_from)
        self.kill()
        if wanted and future is not None:
            future.set_exception(Lost(remains, self.reused, answer))

    def _part(self, abort: bool) -> None:
        transport = self._transport
        if transport is not None:
            if abort:
                transport.abort()
            else:
                transport.close()
        if self._spare is not None:
            self._spare.close()
            self._spare = None
        self._feed = _no_more
        del self._parser  # breaks the circle of parser and connection
        self._owner.gone(self)


def _no_more(_: bytes) -> None:
    """What a dead connection does with bytes."""
