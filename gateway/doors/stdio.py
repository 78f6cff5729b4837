"""The transparent door in front of a child process: streamable HTTP on the agent's side, lines of JSON on the other.

Handshake era: one session, one child (an MCP stdio server knows one client). 2026-07-28: requests are independent, so
an agent's requests share one child of its own. Either way ids and tokens are the adapter's (`StdioMux`): no client's
choice of them can meet another's answer.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from typing import Any, Final

import msgspec

from ...catalog.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from ...catalog.records import Upstream
from ..mcpclient import Lines, Link
from ..pool import Answer
from .jsonrpc import error_body
from .mcpfacts import INVALID_REQUEST, MODERN
from .siblings import Siblings
from .sse import event
from .stdio_siblings import play

JSON: Final = [(b"Content-Type", b"application/json")]
EVENTS: Final = [(b"Content-Type", b"text/event-stream"), (b"Cache-Control", b"no-store")]
IDLE_SECONDS: Final = 1800.0
"""How long a session nobody uses keeps its child: agents vanish without a DELETE."""

MAX_UNHEARD: Final = 256
"""Messages of a server kept while no stream of its client is open; beyond it the oldest go."""

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


def is_request(message: bytes) -> bool:
    """Whether a message wants an answer; else it is a notification, or an answer itself."""
    return {"method", "id"} <= _fields(message).keys()


class Exchange:
    """One request at the child, and what has come back for it. A Source for `Answer`."""

    def __init__(self, mux: Any) -> None:
        self._mux = mux
        self._ready = asyncio.Event()
        self._queue: deque[bytes] = deque()
        self._error: UpstreamError | None = None
        self.number = 0
        self.finished = False

    def put(self, message: bytes, *, last: bool) -> None:
        self._queue.append(message)
        self.finished = self.finished or last
        self._ready.set()

    def fail(self, error: UpstreamError) -> None:
        self._error = error
        self.finished = True
        self._ready.set()

    async def first(self) -> tuple[bytes, bool]:
        """The first message, and whether it is the answer itself. Raises UpstreamError."""
        await self._ready.wait()
        if self._queue:
            data = self._queue.popleft()
            return data, self.finished and self._error is None and not self._queue
        raise self._error or UpstreamBroken()

    def again(self, message: bytes) -> None:
        """Put a message back in front."""
        self._queue.appendleft(message)

    async def message(self) -> bytes | None:
        while not self._queue:
            if self._error is not None:
                raise self._error
            if self.finished:
                return None
            self._ready.clear()
            await self._ready.wait()
        return self._queue.popleft()

    async def next(self) -> bytes | None:
        message = await self.message()
        return event(message) if message is not None else None

    def close(self) -> None:
        """Nobody waits any more: the child is told, as by a client that cancels."""
        self._mux.cancel(self.number)


class Listening:
    """The client's own event stream (GET). A Source."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._ready = asyncio.Event()
        self.queue: deque[bytes] = deque()
        self.open = True

    def put(self, data: bytes) -> None:
        self.queue.append(data)
        self._ready.set()

    async def next(self) -> bytes | None:
        while not self.queue:
            if not self.open:
                return None
            self._ready.clear()
            await self._ready.wait()
        return event(self.queue.popleft())

    def end(self) -> None:
        self.open = False
        self._ready.set()

    def close(self) -> None:
        self.open = False
        if self._bridge.listening is self:
            self._bridge.listening = None


class Bridge:
    """One child with one client in front of it. Whose an answer or an event is, its `mux` knows; what belongs to no
    request goes to the client's own stream, or waits for one."""

    def __init__(self, name: str, adapter: Any) -> None:
        self._name = name
        self._unheard: deque[bytes] = deque(maxlen=MAX_UNHEARD)
        self.listening: Listening | None = None
        self.mux = adapter.StdioMux(name, self._on_message, self._on_over)
        self.used = time.monotonic()

    @property
    def idle(self) -> bool:
        return self.mux.idle and self.listening is None

    @property
    def alive(self) -> bool:
        alive: bool = self.mux.alive
        return alive

    def _on_message(self, message: bytes, method: str) -> None:
        """What the server says that names no request: with the only call in the air, else on the client's stream."""
        waiting = self.mux.waiting()
        asks = b'"id"' in message and "id" in _fields(message)
        if not method.endswith("/list_changed") and (
            len(waiting) == 1 or (waiting and self.listening is None and asks)
        ):
            waiting[0].put(message, last=False)
        elif self.listening is not None:
            self.listening.put(message)
        else:
            self._unheard.append(message)

    def _on_over(self, reason: str) -> None:
        if self.listening is not None:
            self.listening.end()

    async def request(self, message: bytes, timeout: float) -> Answer:
        """Send a request on; a plain answer when nothing precedes it, else a stream. Raises UpstreamError."""
        self.used = time.monotonic()
        exchange = Exchange(self.mux)
        try:
            async with asyncio.timeout(timeout):
                exchange.number = await self.mux.request(message, exchange)
                data, whole = await exchange.first()
        except TimeoutError:
            exchange.close()
            raise UpstreamTimeout(
                f"{self._name!r} did not answer within {timeout:g} s; whether it acted is unknown."
            ) from None
        except BaseException:
            exchange.close()
            raise
        if whole:
            return Answer(200, b"OK", list(JSON), data, media=b"application/json")
        exchange.again(data)
        return Answer(200, b"OK", list(EVENTS), None, media=b"text/event-stream", source=exchange)

    async def batch(self, messages: list[bytes], timeout: float) -> Answer:
        """A batch (2025-03-26): each message by itself, the answers together. Raises UpstreamError."""
        self.used = time.monotonic()
        exchanges: list[Exchange] = []
        frames: list[bytes] = []
        try:
            async with asyncio.timeout(timeout):
                for message in messages:
                    if is_request(message):
                        exchanges.append(Exchange(self.mux))
                        exchanges[-1].number = await self.mux.request(message, exchanges[-1])
                    else:
                        await self.mux.tell(message)
                for exchange in exchanges:
                    while (frame := await exchange.message()) is not None:
                        frames.append(frame)
        except TimeoutError:
            raise UpstreamTimeout(
                f"{self._name!r} did not answer within {timeout:g} s; whether it acted is unknown."
            ) from None
        finally:
            for exchange in exchanges:
                exchange.close()
        if not exchanges:
            return Answer(202, b"Accepted", [], b"")
        if len(frames) == len(exchanges):
            return Answer(200, b"OK", list(JSON), b"[" + b",".join(frames) + b"]", media=b"application/json")
        events = b"".join(event(frame) for frame in frames)
        return Answer(200, b"OK", list(EVENTS), events, media=b"text/event-stream")

    def listen(self) -> Answer:
        if self.listening is not None:
            self.listening.end()
        self.listening = Listening(self)
        while self._unheard:
            self.listening.put(self._unheard.popleft())
        return Answer(200, b"OK", list(EVENTS), None, media=b"text/event-stream", source=self.listening)


class StdioLive:
    """An mcp_stdio upstream in service: the Forwarder of `gateway.upstreams`, with sessions instead of a pool."""

    kind = "mcp_stdio"

    def __init__(
        self, record: Upstream, secrets_: dict[str, str], adapter: Any, siblings: Siblings | None = None
    ) -> None:
        self._siblings = siblings
        self.record = record
        self.org = record.org
        self.name = record.name
        self.prefix = f"{record.name}__"
        self.listings: dict[bytes, bool] = {}
        self.offers: dict[str, frozenset[str]] = {}
        self._timeout = record.timeout_ms / 1000
        self._adapter = adapter
        self.processes = adapter.create(
            record.command, record.args, record.cwd, {**record.env, **secrets_}, name=record.name,
            limits=adapter.Limits(max_sessions=record.max_connections),
        )  # fmt: skip
        self._sessions: dict[str, Bridge] = {}
        self._shared: dict[str, Bridge] = {}
        self._opening = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def breaker_state(self) -> str:
        return "open" if self.processes.backoff.retry_after > 0 else "closed"

    def view(self, visit: Any) -> View:
        return View(self, visit)

    def link(self, *, owner: str = "", **options: Any) -> Link:
        """A conversation; stateless requests for an `owner` go to the child that this agent has at any door."""
        return Link(_Wire(self, owner), **options)

    async def close(self, grace: float) -> None:
        self._sessions.clear()
        self._shared.clear()
        await self.processes.close()

    def reap(self) -> None:
        """End the children of sessions that nobody has used for long."""
        now = time.monotonic()
        for table in (self._sessions, self._shared):
            for name, bridge in list(table.items()):
                if not bridge.alive or (bridge.idle and now - bridge.used > IDLE_SECONDS):
                    del table[name]
                    task = asyncio.get_running_loop().create_task(bridge.mux.close())
                    self._ending.add(task)
                    task.add_done_callback(self._ending.discard)

    async def pass_on(self, owner: str, session: str, modern: bool, method: bytes, body: bytes) -> Answer:
        """One HTTP exchange, played on a child. Raises UpstreamError."""
        if modern:
            return await self._play(await self._shared_bridge(owner), body)
        if session and (answer := await self._elsewhere(session, method, body)) is not None:
            return answer
        if method == b"POST" and not session:
            message = _fields(body) if not body.lstrip().startswith(b"[") else {}
            if message.get("method") == msgspec.Raw(b'"initialize"'):
                return await self._initialize(body)
            return _refused(400, "The session is missing; initialize one.", message.get("id"))
        bridge = self._sessions.get(session)
        if bridge is None or not bridge.alive:
            self._sessions.pop(session, None)
            return _refused(404, "There is no such session; initialize a new one.", None)
        if method == b"DELETE":
            del self._sessions[session]
            await bridge.mux.close()
            return Answer(200, b"OK", [], b"")
        if method == b"GET":
            return bridge.listen()
        return await self._play(bridge, body)

    async def _elsewhere(self, session: str, method: bytes, body: bytes) -> Answer | None:
        """The exchange, when the session's child is another worker's and that one serves: else the session is gone."""
        siblings = self._siblings
        if siblings is None or siblings.count == 1:
            return None
        number = session.partition(".")[0]
        home = siblings.home(int(number)) if number.isdecimal() and len(number) < 5 else siblings.worker
        return None if home == siblings.worker else await play(siblings, home, self, session, method, body)

    async def _play(self, bridge: Bridge, body: bytes) -> Answer:
        if body.lstrip().startswith(b"["):
            return await bridge.batch([bytes(part) for part in _array(body)], self._timeout)
        if is_request(body):
            return await bridge.request(body, self._timeout)
        await bridge.mux.tell(body)
        return Answer(202, b"Accepted", [], b"")

    async def _bridge(self) -> Bridge:
        bridge = Bridge(self.name, self._adapter)
        await bridge.mux.open(self.processes)
        return bridge

    async def _initialize(self, message: bytes) -> Answer:
        bridge = await self._bridge()
        try:
            answer = await bridge.request(message, self._timeout)
        except BaseException:
            await bridge.mux.close()
            raise
        session = f"{self._siblings.worker if self._siblings is not None else 0}.{secrets.token_urlsafe(24)}"
        self._sessions[session] = bridge
        answer.headers.append((b"Mcp-Session-Id", session.encode()))
        return answer

    async def _shared_bridge(self, owner: str) -> Bridge:
        """The child that an agent's stateless requests share."""
        async with self._opening:
            bridge = self._shared.get(owner)
            if bridge is None or not bridge.alive:
                bridge = self._shared[owner] = await self._bridge()
            return bridge


class View:
    """The upstream as one request sees it: keeps what its headers said."""

    def __init__(self, live: StdioLive, visit: Any) -> None:
        self.live = live
        self.record = live.record
        self.org = live.org
        self.name = live.name
        self.prefix = live.prefix
        self.kind = live.kind
        self.listings = live.listings
        self.offers = live.offers
        self._visit = visit
        self._method = b"POST"

    def head(self, method: bytes, lines: bytes, length: int) -> bytes:
        del lines, length  # a child knows no headers
        self._method = method
        return b""

    async def send(self, head: bytes, body: bytes, *, stream: bool = False) -> Answer:
        del head, stream
        visit = self._visit
        return await self.live.pass_on(visit.principal.agent_id, visit.session, visit.modern, self._method, body)


class _Wire:
    """Carries the gateway's own conversations."""

    def __init__(self, live: StdioLive, owner: str) -> None:
        self._live = live
        self._passing = not owner
        self._owner = owner or f"gateway-{secrets.token_hex(8)}"

    async def exchange(self, method: bytes, lines: Lines, body: bytes, *, stream: bool) -> Answer:
        del stream
        named = {name.lower(): value.decode("latin-1") for name, value in lines}
        modern = named.get(b"mcp-protocol-version") == MODERN
        return await self._live.pass_on(self._owner, named.get(b"mcp-session-id", ""), modern, method, body)

    async def close(self) -> None:
        """The child of an agent stays; one that was started for this conversation alone ends with it."""
        bridge = self._live._shared.pop(self._owner, None) if self._passing else None
        if bridge is not None:
            await bridge.mux.close()


def _refused(status: int, text: str, rpc_id: Any) -> Answer:
    return Answer(status, b"", list(JSON), error_body(INVALID_REQUEST, text, rpc_id), media=b"application/json")
