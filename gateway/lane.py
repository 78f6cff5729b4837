"""The fast lane: the hot doors' requests, read without building a request object.

An agent's keep-alive connection sends the same request head again and again; only bodies differ. So a head is parsed
strictly and judged once (`learn`), and found by its very bytes from then on: who is calling, which server, what travels
on. The same bytes always mean the same, so a hit can never mean more than the parse that was made of them.

Everything that is not a plain POST to a hot door (another path or method, chunked bodies, upgrades, oddities of any
kind) is handed to aiohttp with every byte that was received, for the rest of the connection: there it is parsed by
aiohttp's own strict parser, served or refused, and recorded.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, cast

from aiohttp import web
from aiohttp.http import HttpVersion11
from multidict import CIMultiDict, CIMultiDictProxy

MAX_HEAD: Final = 16 * 1024
MAX_KNOWN: Final = 20_000
"""Heads remembered per worker: at about 1 KB each, 20 MB at most."""

MAX_KNOWN_HEAD: Final = 2048
PARTIAL_SECONDS: Final = 30.0
"""How long a request may take to arrive."""

_LINE: Final = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*"
    rb"([\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?[ \t]*"
)
_START: Final = re.compile(rb"POST (/mcp/[a-z0-9][a-z0-9-]{0,62}|/api/engine/check-permission) HTTP/1\.1")
_UNIQUE: Final = re.compile(rb"\r\n(?:traceparent|x-request-id|idempotency-key):", re.IGNORECASE)
_ELSEWHERE: Final = frozenset(
    {b"transfer-encoding", b"expect", b"upgrade", b"content-encoding", b"x-forwarded-for", b"forwarded"}
)
"""Headers whose requests are aiohttp's to read."""


class Known:
    """A head, understood. `door` is what its door made of it; `straight`, where the door sets it, is called with a lane
    and a body, and takes the request from there or returns False. Its headers are read from its bytes again when they
    are asked for: there is one of these for each agent that has called."""

    __slots__ = ("door", "head", "length", "path", "straight")

    def __init__(self, path: str, head: bytes, length: int) -> None:
        self.path = path
        self.head = head
        self.length = length
        self.door: Any = None
        self.straight: Callable[[Lane, Known, bytes], bool] | None = None

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        lines = self.head[:-4].split(b"\r\n")[1:]
        return tuple((match[1], match[2] or b"") for line in lines if (match := _LINE.fullmatch(line)) is not None)


def learn(head: bytes) -> Known | None:
    """A strict reading of a request head (with its blank line), or None when it is not a hot door's plain POST."""
    lines = head[:-4].split(b"\r\n")
    start = _START.fullmatch(lines[0])
    if start is None or len(lines) > 100 or len(head) > MAX_HEAD:
        return None
    length = -1
    hosts = 0
    for line in lines[1:]:
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        name, value = match[1], match[2] or b""
        low = name.lower()
        if low in _ELSEWHERE or (low == b"connection" and value.lower() != b"keep-alive"):
            return None
        if low == b"content-length":
            if length >= 0 or not value.isdigit() or len(value) > 12:
                return None
            length = int(value)
        hosts += low == b"host"
    if length < 0 or hosts != 1:
        return None
    return Known(start[1].decode(), head, length)


class Drainer:
    """What `RawStream` waits on when the client reads slowly."""

    __slots__ = ("_lane",)

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    async def drain(self) -> None:
        await self._lane.drained()


class Content:
    """A body that has arrived, as aiohttp's stream would give it."""

    __slots__ = ("_body", "total_bytes")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.total_bytes = len(body)

    def is_eof(self) -> bool:
        return True

    def read_nowait(self, size: int) -> bytes:
        return self._body


class LaneRequest:
    """As much of aiohttp's request as the hot doors use."""

    __slots__ = ("_lane", "body", "known", "started")

    method = "POST"
    version = HttpVersion11
    keep_alive = True

    def __init__(self, lane: Lane, known: Known, body: bytes) -> None:
        self._lane = lane
        self.known = known
        self.body = body
        self.started = time.perf_counter_ns()

    @property
    def transport(self) -> asyncio.Transport | None:
        return self._lane.transport

    @property
    def remote(self) -> str:
        return self._lane.remote

    @property
    def writer(self) -> Drainer:
        return Drainer(self._lane)

    @property
    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return self.known.headers

    @property
    def raw_path(self) -> str:
        return self.known.path

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.known.headers]
        return CIMultiDictProxy(CIMultiDict(pairs))

    @property
    def content(self) -> Content:
        return Content(self.body)

    @property
    def content_length(self) -> int:
        return len(self.body)


Work = Coroutine[Any, Any, web.StreamResponse]


class InFlight(Protocol):
    """A call that a door forwarded without a coroutine. It ends with `Lane.answered` or `Lane.go_on`."""

    def cancel(self) -> None:
        """The client has left: end it, and write that down."""


class House(Protocol):
    """What the lanes lead to."""

    async def quick(self, request: LaneRequest, rest: Work | None = None) -> web.StreamResponse:
        """Answer a request, or await the `rest` of its answer. Raises nothing but CancelledError."""

    def serves(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether a head's Host and Origin are this gateway's."""


class Lanes:
    """All fast lanes of a worker, and the heads they know."""

    def __init__(self, house: House, elsewhere: Callable[[], web.RequestHandler], body_limit: int, idle: float) -> None:
        """`elsewhere` makes aiohttp's protocol; `body_limit` in bytes, `idle` in seconds."""
        self.house = house
        self.elsewhere = elsewhere
        self.body_limit = body_limit
        self.idle = idle
        self.heads: dict[bytes, Known] = {}
        self.open: set[Lane] = set()
        self.stopping = False

    def __call__(self) -> Lane:
        return Lane(self)

    def find(self, head: bytes) -> Known | None:
        """The reading of a head: remembered, or made now."""
        known = self.heads.get(head)
        if known is not None:
            return known
        known = learn(head)
        if known is None or known.length > self.body_limit or not self.house.serves(known.headers):
            return None
        if len(head) <= MAX_KNOWN_HEAD and _UNIQUE.search(head) is None:
            if len(self.heads) >= MAX_KNOWN:
                self.heads.clear()
            self.heads[head] = known
        return known

    def sweep(self, now: float) -> None:
        """Close lanes that have been idle, or in the middle of a request, for too long."""
        for lane in list(self.open):
            lane.expire(now, self.idle)

    def stop(self) -> None:
        """No further requests: idle lanes close now, busy ones after their answer."""
        self.stopping = True
        for lane in list(self.open):
            lane.retire()

    async def cut(self) -> None:
        """Close everything now; what is in flight is cancelled, and recorded as such before this returns."""
        lanes = list(self.open)
        await asyncio.gather(*(lane.cut() for lane in lanes))


class Lane(asyncio.Protocol):
    """One connection. Requests are answered one at a time, in order."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._todo: tuple[LaneRequest, Work | None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._flight: InFlight | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._busy = False
        self._since = 0.0
        self._drain: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport | None = None
        self.remote = ""

    # -- transport callbacks ---------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.remote = str(peer[0]) if isinstance(peer, tuple) else ""
        self._since = self._loop.time()
        self._lanes.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._lanes.open.discard(self)
        self.resume_writing()
        self._land()
        self._forsake()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        if self._drain is None:
            self._drain = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drain is not None:
            if not self._drain.done():
                self._drain.set_result(None)
            self._drain = None
            if self._buffer and not self._busy:
                self._after(keep_alive=True)

    async def drained(self) -> None:
        if self._drain is not None:
            await asyncio.shield(self._drain)
        if self.transport is None:
            raise ConnectionResetError("The client has left.")

    def data_received(self, data: bytes) -> None:
        if self._buffer or self._busy or self._drain is not None:
            self._buffer += data
            if not self._busy and self._drain is None:
                self._next()
            elif len(self._buffer) > MAX_HEAD + self._lanes.body_limit and self.transport is not None:
                self.transport.pause_reading()
            return
        end = data.find(b"\r\n\r\n") + 4
        if end > 3:
            head = data[:end]
            known = self._lanes.heads.get(head) or self._lanes.find(head)
            if known is not None and len(data) - end == known.length:  # one whole request: the common case
                body = data[end:]
                if known.straight is None or not known.straight(self, known, body):
                    self._begin(LaneRequest(self, known, body))
                return
        self._buffer += data
        self._next()

    # -- requests ---------------------------------------------------------------------------------------------------
    def _next(self) -> None:
        """Take the next whole request from the buffer, wait for more, or hand the connection over."""
        buffer = self._buffer
        if not buffer:
            return
        end = buffer.find(b"\r\n\r\n", 0, MAX_HEAD + 4) + 4
        if end == 3:
            # A head that cannot become one of ours is not waited for: another method, too long, or lines without CR.
            if (
                len(buffer) > MAX_HEAD
                or not b"POST /".startswith(bytes(buffer[:6]))
                or buffer.count(b"\n") != buffer.count(b"\r\n")
            ):
                self._hand_over()
            return
        known = self._lanes.find(bytes(buffer[:end]))
        if known is None:
            self._hand_over()
            return
        whole = end + known.length
        if len(buffer) < whole:
            return
        body = bytes(buffer[end:whole])
        del buffer[:whole]
        self._begin(LaneRequest(self, known, body))

    def _begin(self, request: LaneRequest) -> None:
        self._put(request, None)

    def _put(self, request: LaneRequest, rest: Work | None) -> None:
        self._busy = True
        self._todo = request, rest
        if self._task is None:
            self._task = self._loop.create_task(self._work())
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _work(self) -> None:
        """Answer requests until the connection ends or is handed over."""
        serve = self._lanes.house.quick
        while self.transport is not None:
            if self._todo is None:
                self._waiter = self._loop.create_future()
                await self._waiter
                continue
            (request, rest), self._todo = self._todo, None
            response = await serve(request, rest)
            await response.prepare(cast("web.BaseRequest", request))
            self._busy = False
            self._since = self._loop.time()
            self._after(response.keep_alive)

    # -- from doors that take a request without a coroutine -----------------------------------------------------------
    def fly(self, flight: InFlight) -> None:
        """A call is on its way; nothing else is answered before it."""
        self._busy = True
        self._flight = flight

    def go_on(self, request: LaneRequest, work: Work) -> None:
        """The rest of this request takes a coroutine."""
        self._flight = None
        self._put(request, work)

    def answered(self, data: bytes) -> None:
        """The whole answer to the call that was on its way."""
        self._flight = None
        self._busy = False
        transport = self.transport
        if transport is None:
            return
        transport.write(data)
        self._since = self._loop.time()
        if self._buffer or self._lanes.stopping:
            self._after(keep_alive=True)

    def abort(self) -> None:
        """A fault of ours: no answer can be given here any more."""
        if self.transport is not None:
            self.transport.abort()

    def _land(self) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.cancel()

    def _forsake(self) -> asyncio.Task[None] | None:
        """The connection ends before the rest of an answer began. It is begun, and cancelled where it first waits: only
        so does its call get an outcome."""
        todo, self._todo = self._todo, None
        if todo is None or todo[1] is None:
            return None
        request, rest = todo[0], todo[1]
        self._ending = self._loop.create_task(self._cancelled(request, rest))
        return self._ending

    async def _cancelled(self, request: LaneRequest, rest: Work) -> None:
        task = asyncio.current_task()
        if task is not None:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await self._lanes.house.quick(request, rest)

    def _after(self, keep_alive: bool | None) -> None:
        """An answer is out: go on with what has arrived meanwhile, or end here."""
        transport = self.transport
        if transport is None:
            return
        if not keep_alive or self._lanes.stopping:
            transport.close()
            self.transport = None
        elif self._buffer and self._drain is None:  # else when the client has read what it was sent
            transport.resume_reading()
            self._next()

    def _hand_over(self) -> None:
        """From here on this connection is aiohttp's, with every byte that was received and not answered."""
        transport = self.transport
        if transport is None:
            return
        data = bytes(self._buffer)
        self._buffer.clear()
        self._lanes.open.discard(self)
        self.transport = None
        task, self._task = self._task, None
        handler = self._lanes.elsewhere()
        transport.set_protocol(handler)
        handler.connection_made(transport)
        transport.resume_reading()
        handler.data_received(data)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    # -- housekeeping -----------------------------------------------------------------------------------------------
    def expire(self, now: float, idle: float) -> None:
        if self._busy or self.transport is None:
            return
        if now - self._since > (PARTIAL_SECONDS if self._buffer and self._drain is None else idle):
            self.transport.close()

    async def cut(self) -> None:
        tasks = {task for task in (self._task, self._forsake()) if task is not None}
        if self.transport is not None:
            self.transport.abort()
        self._land()
        if self._task is not None:
            self._task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def retire(self) -> None:
        if not self._busy and self.transport is not None:
            self.transport.close()
