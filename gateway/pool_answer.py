"""What an upstream answered: whole, or as a stream that its reader slows down."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Protocol

from ..catalog.errors import UpstreamBroken, UpstreamProtocol

HIGH_WATER: Final = 256 * 1024
LOW_WATER: Final = 64 * 1024
"""Bytes of one stream that are kept here before its socket is read no further, and the rest at which it is again.
uvloop reads 256 KiB at a time, so one stream holds at most twice the high mark."""


class Source(Protocol):
    """Where a stream's bytes come from."""

    async def next(self) -> bytes | None:
        """The next bytes, never empty; None at the end. Raises UpstreamError when it breaks off."""

    def close(self) -> None:
        """Nobody reads on. May be called at any time, and twice."""


class KnownHead:
    """A response head that an upstream sent before, byte for byte, and what was read in it. `block` is a door's: its
    own form of these headers, made once."""

    __slots__ = ("block", "headers", "hint", "length", "media", "reason", "status")

    def __init__(
        self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], length: int, media: bytes, hint: bytes
    ) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.length = length
        self.media = media
        self.hint = hint
        self.block: bytes | None = None


class Answer:
    """One response. `headers` keep their order and case; `body` is all of it, or None when it is to be streamed.

    `content_length` is what the upstream declared, or None. `elapsed` is the time in seconds from sending the request
    to the whole answer, or to its head when it is streamed. Bytes are as the upstream coded them (Content-Encoding).
    Answers of other transports are made the same way, with a `source` of their own. `known`: its head came before, and
    `headers` are shared with the other answers that had it.
    """

    __slots__ = ("_media", "_source", "body", "content_length", "elapsed", "headers", "known", "reason", "status")

    def __init__(
        self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], body: bytes | None = b"",
        content_length: int | None = None, media: bytes = b"", elapsed: float = 0.0, source: Source | None = None,
        known: KnownHead | None = None,
    ) -> None:  # fmt: skip
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = body
        self.content_length = content_length
        self.elapsed = elapsed
        self._media = media
        self._source = source
        self.known = known

    @property
    def content_type(self) -> str:
        """The media type in lower case without parameters (`application/json`); "" when there is none."""
        return self._media.partition(b";")[0].strip().lower().decode("latin-1")

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case."""
        for key, value in self.headers:
            if key.lower() == name:
                return value
        return None

    async def stream(self) -> AsyncIterator[bytes]:
        """The body in pieces as they arrive, or in one piece when it is here already. Raises UpstreamError.

        Leaving the loop early does not free the connection at once: call `close`.
        """
        if self._source is None:
            if self.body:
                yield self.body
            return
        while (chunk := await self._source.next()) is not None:
            yield chunk

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises UpstreamProtocol, and gives up the rest, when it is larger than `limit` bytes."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self.stream():
            size += len(chunk)
            if size > limit:
                self.close()
                raise UpstreamProtocol(f"The upstream's answer is larger than {limit} bytes.", limit=limit)
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Done with it. A connection whose answer has not been read to its end is cut, for it cannot be used again."""
        if self._source is not None:
            self._source.close()

    def __repr__(self) -> str:
        size = "streamed" if self.body is None else f"{len(self.body)} bytes"
        return f"<Answer {self.status} {size}>"


class StreamedAnswer(Answer):
    """An Answer that cuts its connection when it is forgotten without having been closed."""

    __slots__ = ()

    def __del__(self) -> None:
        source = self._source
        if isinstance(source, Stream):
            source.forget()


class Feed(Protocol):
    """The connection behind a stream, as the stream sees it."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cut(self) -> None: ...


class Stream:
    """The bytes between a connection and one reader. `error` is raised after what came before it was read."""

    __slots__ = ("_chunks", "_feed", "_loop", "_waiter", "ended", "error", "paused", "size")

    def __init__(self, loop: asyncio.AbstractEventLoop, feed: Feed) -> None:
        self._loop = loop
        self._feed: Feed | None = feed
        self._chunks: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.size = 0
        self.paused = False
        self.ended = False
        self.error: Exception | None = None

    @property
    def wanted(self) -> bool:
        """True while the reader waits, or would: nothing is held back here, so silence is the upstream's."""
        return not self._chunks

    def put(self, chunk: bytes) -> None:
        """Bytes have arrived."""
        self._chunks.append(chunk)
        self.size += len(chunk)
        if self.size > HIGH_WATER and not self.paused and self._feed is not None:
            self.paused = True
            self._feed.pause()
        self._wake()

    def finish(self, error: Exception | None = None) -> None:
        """No more will come: the connection has other work, or is gone."""
        self._feed = None
        self.ended = True
        if self.error is None:
            self.error = error
        self._wake()

    async def next(self) -> bytes | None:
        while not self._chunks:
            if self.ended:
                if self.error is not None:
                    raise self.error
                return None
            if self._waiter is not None:
                raise RuntimeError("A stream has one reader.")
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk = self._chunks.popleft()
        self.size -= len(chunk)
        if self.paused and self.size <= LOW_WATER:
            self.paused = False
            if self._feed is not None:
                self._feed.resume()
        return chunk

    def close(self) -> None:
        if self._feed is not None:
            feed = self._feed
            self.finish(UpstreamBroken("The stream was closed by its reader."))
            feed.cut()
        self._chunks.clear()
        self.size = 0

    def forget(self) -> None:
        """As `close`, from wherever the garbage collector runs."""
        if self._feed is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.close)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
