"""The transparent door in front of a child process: streamable HTTP on the agent's side, lines of JSON on the other.

Handshake era: one session, one child (an MCP stdio server knows one client). 2026-07-28: requests are independent, so
an agent's requests share one child of its own. Either way request ids are replaced on the way in and restored on the
way out, so that no client's choice of ids can meet another's answer.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ...catalog.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from ...catalog.records import Upstream
from ..mcpclient import Lines, Link
from ..pool import Answer
from .jsonrpc import encode, error_body
from .mcpfacts import INVALID_REQUEST, MODERN
from .sse import event

JSON: Final = [(b"Content-Type", b"application/json")]
EVENTS: Final = [(b"Content-Type", b"text/event-stream"), (b"Cache-Control", b"no-store")]
IDLE_SECONDS: Final = 1800.0
"""How long a session nobody uses keeps its child: agents vanish without a DELETE."""

MAX_UNHEARD: Final = 256
"""Messages of a server kept while no stream of its client is open; beyond it the oldest go."""

_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


class Exchange:
    """One request at the child, and what has come back for it. A Source for `Answer`."""

    def __init__(self, bridge: Bridge, number: str, rpc_id: Any, token: Any) -> None:
        self._bridge = bridge
        self._ready = asyncio.Event()
        self._queue: deque[bytes] = deque()
        self._error: UpstreamError | None = None
        self.number = number
        self.rpc_id = rpc_id
        self.token = token
        self.finished = False

    def put(self, data: bytes, *, last: bool) -> None:
        self._queue.append(data)
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
            return data, self.finished and not self._queue
        raise self._error or UpstreamBroken()

    async def next(self) -> bytes | None:
        while not self._queue:
            if self._error is not None:
                raise self._error
            if self.finished:
                return None
            self._ready.clear()
            await self._ready.wait()
        return event(self._queue.popleft())

    def close(self) -> None:
        self._bridge.forget(self)


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
    """One child with one client in front of it."""

    def __init__(self, name: str, tell: Callable[[str], str]) -> None:
        """`tell` makes a reason fit for agents (without the child's own stderr)."""
        self._name = name
        self._tell_reason = tell
        self._numbers = itertools.count(1)
        self._pending: dict[str, Exchange] = {}
        self._unheard: deque[bytes] = deque(maxlen=MAX_UNHEARD)
        self.listening: Listening | None = None
        self.child: Any = None
        self.used = time.monotonic()

    @property
    def idle(self) -> bool:
        return not self._pending and self.listening is None

    def on_message(self, data: bytes) -> None:
        """One line from the child: an answer, a notification, or a request to the client."""
        try:
            message = _decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return  # counted as noise by the session
        if "method" not in message:
            exchange = self._pending.pop(str(message.get("id")), None)
            if exchange is not None:
                message["id"] = exchange.rpc_id
                exchange.put(encode(message), last=True)
            return
        self._route(message, data)

    def _route(self, message: dict[str, Any], data: bytes) -> None:
        params = message.get("params")
        token = params.get("progressToken") if isinstance(params, dict) else None
        pending = list(self._pending.values())
        for exchange in pending:
            if token is not None and exchange.token == token:
                exchange.put(data, last=False)
                return
        if len(pending) == 1 or (pending and self.listening is None and "id" in message):
            pending[0].put(data, last=False)
        elif self.listening is not None:
            self.listening.put(data)
        else:
            self._unheard.append(data)

    def on_close(self, reason: str) -> None:
        error = UpstreamBroken(
            f"The process of {self._name!r} ended ({self._tell_reason(reason)}); whether it acted is unknown."
        )
        for exchange in self._pending.values():
            exchange.fail(error)
        self._pending.clear()
        if self.listening is not None:
            self.listening.end()

    async def request(self, message: dict[str, Any], timeout: float) -> Answer:
        """Send a request on; a plain answer when nothing precedes it, else a stream. Raises UpstreamError."""
        self.used = time.monotonic()
        params = message.get("params")
        meta = params.get("_meta") if isinstance(params, dict) else None
        token = meta.get("progressToken") if isinstance(meta, dict) else None
        exchange = Exchange(self, f"gw{next(self._numbers)}", message.get("id"), token)
        self._pending[exchange.number] = exchange
        try:
            async with asyncio.timeout(timeout):
                await self.child.send(encode({**message, "id": exchange.number}))
                data, whole = await exchange.first()
        except TimeoutError:
            self.forget(exchange)
            raise UpstreamTimeout(
                f"{self._name!r} did not answer within {timeout:g} s; whether it acted is unknown."
            ) from None
        except BaseException:
            self.forget(exchange)
            raise
        if whole:
            return Answer(200, b"OK", list(JSON), data, media=b"application/json")
        exchange._queue.appendleft(data)
        return Answer(200, b"OK", list(EVENTS), None, media=b"text/event-stream", source=exchange)

    def forget(self, exchange: Exchange) -> None:
        """Nobody waits any more: tell the child, as a client would that cancels."""
        if self._pending.pop(exchange.number, None) is None or not self.child.alive:
            return
        notice = {
            "jsonrpc": "2.0",
            "method": "notifications/cancelled",
            "params": {"requestId": exchange.number, "reason": "The client left."},
        }
        task = asyncio.get_running_loop().create_task(self._tell(encode(notice)))
        self._telling = task

    async def _tell(self, data: bytes) -> None:
        try:
            await self.child.send(data)
        except UpstreamError:
            return  # it has ended meanwhile: nothing left to cancel

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

    def __init__(self, record: Upstream, secrets_: dict[str, str], adapter: Any) -> None:
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

    def link(self, **options: Any) -> Link:
        return Link(_Wire(self), **options)

    async def close(self, grace: float) -> None:
        self._sessions.clear()
        self._shared.clear()
        await self.processes.close()

    def reap(self) -> None:
        """End the children of sessions that nobody has used for long."""
        now = time.monotonic()
        for table in (self._sessions, self._shared):
            for name, bridge in list(table.items()):
                if not bridge.child.alive or (bridge.idle and now - bridge.used > IDLE_SECONDS):
                    del table[name]
                    task = asyncio.get_running_loop().create_task(bridge.child.close())
                    self._ending.add(task)
                    task.add_done_callback(self._ending.discard)

    async def pass_on(self, owner: str, session: str, modern: bool, method: bytes, body: bytes) -> Answer:
        """One HTTP exchange, played on a child. Raises UpstreamError."""
        if modern:
            return await self._play(await self._shared_bridge(owner), _decode(body))
        if method == b"POST" and not session:
            message = _decode(body)
            if message.get("method") == "initialize":
                return await self._initialize(message)
            return _refused(400, "The session is missing; initialize one.", message.get("id"))
        bridge = self._sessions.get(session)
        if bridge is None or not bridge.child.alive:
            self._sessions.pop(session, None)
            return _refused(404, "There is no such session; initialize a new one.", None)
        if method == b"DELETE":
            del self._sessions[session]
            await bridge.child.close()
            return Answer(200, b"OK", [], b"")
        if method == b"GET":
            return bridge.listen()
        return await self._play(bridge, _decode(body))

    async def _play(self, bridge: Bridge, message: dict[str, Any]) -> Answer:
        if "method" in message and "id" in message:
            return await bridge.request(message, self._timeout)
        await bridge.child.send(encode(message))
        return Answer(202, b"Accepted", [], b"")

    async def _bridge(self) -> Bridge:
        bridge = Bridge(self.name, self._adapter.without_stderr)
        bridge.child = await self.processes.open_session(bridge.on_message, bridge.on_close)
        return bridge

    async def _initialize(self, message: dict[str, Any]) -> Answer:
        bridge = await self._bridge()
        try:
            answer = await bridge.request(message, self._timeout)
        except BaseException:
            await bridge.child.close()
            raise
        session = secrets.token_urlsafe(24)
        self._sessions[session] = bridge
        answer.headers.append((b"Mcp-Session-Id", session.encode()))
        return answer

    async def _shared_bridge(self, owner: str) -> Bridge:
        """The child that an agent's stateless requests share."""
        async with self._opening:
            bridge = self._shared.get(owner)
            if bridge is None or not bridge.child.alive:
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

    def __init__(self, live: StdioLive) -> None:
        self._live = live
        self._owner = f"gateway-{secrets.token_hex(8)}"

    async def exchange(self, method: bytes, lines: Lines, body: bytes, *, stream: bool) -> Answer:
        del stream
        named = {name.lower(): value.decode("latin-1") for name, value in lines}
        modern = named.get(b"mcp-protocol-version") == MODERN
        return await self._live.pass_on(self._owner, named.get(b"mcp-session-id", ""), modern, method, body)

    async def close(self) -> None:
        bridge = self._live._shared.pop(self._owner, None)
        if bridge is not None:
            await bridge.child.close()


def _refused(status: int, text: str, rpc_id: Any) -> Answer:
    return Answer(status, b"", list(JSON), error_body(INVALID_REQUEST, text, rpc_id), media=b"application/json")
