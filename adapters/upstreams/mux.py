"""Many callers over one child: for the stateless revision, where no call depends on the one before, and for the
gateway's own questions (what tools does this server have?).

    mux = StdioMux(upstream)
    answer = await mux.request(b'{"jsonrpc":"2.0","id":"a-7","method":"tools/call",...}', timeout=60)
    tools = await mux.ask("tools/list", {}, timeout=10)

The child is started at the first request and after each death at the next one, within the upstream's backoff. Callers
never see each other: ids, progress tokens and subscription ids are remapped (`remap`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeVar

import msgspec

from ...catalog import errors
from . import remap
from .mcp_stdio import StdioSession, StdioUpstream
from .process import without_stderr

T = TypeVar("T")
Era = Literal["modern", "handshake"]

MODERN: Final = "2026-07-28"
LATEST_HANDSHAKE: Final = "2025-11-25"
_META: Final = "io.modelcontextprotocol/"
UNSUPPORTED_VERSION: Final = -32022
METHOD_NOT_FOUND: Final = -32601
INTERNAL_ERROR: Final = -32603
MAX_SERVER_REQUESTS: Final = 64
TICK: Final = 0.005
"""Seconds: a loop's timers may end a little before the clock that they were set by."""

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


class _Pending:
    """A request on its way, and who waits for its answer."""

    __slots__ = ("answer", "on_notify", "sent", "session")

    def __init__(self, sent: remap.Outgoing, session: StdioSession, on_notify: Callable[[bytes], Any] | None) -> None:
        self.sent = sent
        self.session = session
        self.on_notify = on_notify
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()


class StdioMux:
    """`era`, `version` and `server` (the server's own answer to `server/discover` or `initialize`) are known once a
    child runs. `strays` counts messages that belong to nobody (late answers, mostly), `faults` receivers that raised.
    """

    def __init__(
        self, upstream: StdioUpstream, *, era: Era | None = None, client: dict[str, str] | None = None,
        on_request: Callable[[bytes], Awaitable[bytes]] | None = None,
        on_notification: Callable[[bytes], Any] | None = None, max_pending: int = 1000, start_timeout: float = 60.0,
        probe_timeout: float = 10.0,
    ) -> None:  # fmt: skip
        """`era` None: ask the server which it speaks. `client` is our name and version as the server shall hear them.

        `on_request` answers what the server asks (message in, whole response out); without it `ping` is answered and
        all else refused. `on_notification` hears notifications that belong to no caller's request.
        `start_timeout`: seconds for a new child to be ready; `probe_timeout`: for its answer about its era.
        """
        self._upstream = upstream
        self._wanted = era
        self._client = client or {"name": "agenticmail-enterprise", "version": "1"}
        self._on_request = on_request
        self._on_notification = on_notification
        self._max_pending = max_pending
        self._start_timeout = start_timeout
        self._probe_timeout = probe_timeout
        self._pending: dict[int, _Pending] = {}
        self._last = 0
        self._session: StdioSession | None = None
        self._opening: asyncio.Task[StdioSession] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._answering = 0
        self._closed = False
        self.era: Era | None = None
        self.version = ""
        self.server: dict[str, Any] = {}
        self.strays = 0
        self.faults = 0

    # -- for callers -------------------------------------------------------------------------------------------------
    async def request(
        self, message: bytes, *, timeout: float | None, on_notify: Callable[[bytes], Any] | None = None
    ) -> bytes:
        """Send one JSON-RPC request, return its response, both as the caller writes and reads them.

        `on_notify` gets this request's progress and subscription events. A caller that is cancelled, or that `timeout`
        (seconds) cuts off, cancels its request at the server too.
        Raises BadRequest; UpstreamRefused and its classes (nothing was sent), UpstreamTimeout, UpstreamBroken.
        """
        return await self._within(timeout, lambda session: self._exchange(session, message, on_notify))

    async def notify(self, message: bytes) -> None:
        """Send one notification as it is. `notifications/cancelled` is refused with BadRequest: cancel the request.

        Raises what `StdioSession.send` raises.
        """
        try:
            method = remap.method_of(remap.split(message)[0])
        except (msgspec.MsgspecError, IndexError) as error:
            raise errors.BadRequest(f"This is not a JSON-RPC notification: {error}") from None
        if method == "notifications/cancelled":
            raise errors.BadRequest("A shared connection's requests are cancelled by their callers only.")
        session = await self._ready()
        await session.send(message)

    async def ask(self, method: str, params: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        """A question of our own; the `result`. The envelope that the server's era wants is added.

        Raises UpstreamProtocol when it answers with an error (details: `code`), and what `request` raises.
        """
        return await self._within(timeout, lambda session: self._ask(session, method, self._enveloped(params)))

    async def _within(self, timeout: float | None, work: Callable[[StdioSession], Awaitable[T]]) -> T:
        """`work` with a child that is ready. Late before that is UpstreamBusy, since nothing was sent."""
        late: type[errors.UpstreamError] = errors.UpstreamBusy
        try:
            async with asyncio.timeout(timeout) as deadline:
                session = await self._ready()
                late = errors.UpstreamTimeout
                return await work(session)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise late(f"{self._upstream.name!r} did not answer within {timeout:g} s.") from None

    async def close(self) -> None:
        """End the child; callers that wait get UpstreamBroken."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._session is not None:
            await self._session.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- one exchange ------------------------------------------------------------------------------------------------
    async def _exchange(self, session: StdioSession, message: bytes, on_notify: Callable[[bytes], Any] | None) -> bytes:
        if len(self._pending) >= self._max_pending:
            raise errors.UpstreamBusy(f"{self._upstream.name!r} has {self._max_pending} requests in progress.")
        self._last = own = self._last + 1
        pending = _Pending(remap.readdress(message, own), session, on_notify)
        self._pending[own] = pending
        try:
            await session.send(pending.sent.line)
            return await pending.answer
        except errors.UpstreamError:
            raise  # it has ended, or has not read the request
        except BaseException:
            self._cancel_at_server(session, own, pending.sent.method)
            raise
        finally:
            del self._pending[own]
            if pending.answer.done() and not pending.answer.cancelled():
                pending.answer.exception()  # seen, also when sending failed first

    def _cancel_at_server(self, session: StdioSession, own: int, method: str) -> None:
        """Nobody waits any more. `initialize` may not be cancelled; a server that is gone needs no word."""
        if method == "initialize" or not session.alive:
            return
        params = {"requestId": own, "reason": "The caller has left."}
        self._spawn(self._say(session, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}))

    async def _say(self, session: StdioSession, message: dict[str, Any]) -> None:
        try:
            await session.send(_encode(message))
        except errors.EnterpriseError:
            self.faults += 1

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- a child, ready to be asked ----------------------------------------------------------------------------------
    async def _ready(self) -> StdioSession:
        if self._closed:
            raise errors.UpstreamRefused(f"The connection to {self._upstream.name!r} is closed.")
        session = self._session
        if session is not None and session.alive:
            return session
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open(), name=f"open {self._upstream.name}")
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _opened(self, task: asyncio.Task[StdioSession]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # seen: every caller that waits gets it, and there may be none left

    async def _open(self) -> StdioSession:
        session = await self._start()
        try:
            async with asyncio.timeout(self._start_timeout):
                if self._wanted != "handshake" and await self._discover(session):
                    return session
                if not session.alive:  # some servers end at a method that they do not know: this one is not asked again
                    self._wanted = "handshake"
                    session = await self._start_again()
                await self._initialize(session)
                return session
        except TimeoutError:
            await session.close()
            raise errors.UpstreamRefused(
                f"{self._upstream.name!r} was not ready within {self._start_timeout:g} s of its start."
            ) from None
        except BaseException:
            await session.close()
            raise

    async def _start(self) -> StdioSession:
        session: StdioSession | None = None

        def over(reason: str) -> None:
            if self._session is session:
                self._session = None
            self._fail_all(session, reason)

        session = self._session = await self._upstream.open_session(self._on_line, over)
        return session

    async def _start_again(self) -> StdioSession:
        """After the rest that the death just seen has earned."""
        while rest := self._upstream.backoff.retry_after:
            await asyncio.sleep(max(rest, TICK))
        return await self._start()

    async def _discover(self, session: StdioSession) -> bool:
        """True when the server speaks the stateless revision. Any other answer, or none, means that it does not."""
        only = self._wanted == "modern"
        try:
            async with asyncio.timeout(None if only else self._probe_timeout):
                result = await self._ask(session, "server/discover", {"_meta": self._envelope()})
        except (errors.UpstreamProtocol, errors.UpstreamBroken, TimeoutError):
            if only:
                raise
            return False
        versions = result.get("supportedVersions")
        if isinstance(versions, list) and MODERN in versions:
            self.server, self.era, self.version = result, "modern", MODERN
            return True
        if only:
            raise errors.UpstreamProtocol(f"{self._upstream.name!r} does not speak {MODERN}.")
        return False

    async def _initialize(self, session: StdioSession) -> None:
        params = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": self._client}
        try:
            self.server = await self._ask(session, "initialize", params)
        except errors.UpstreamProtocol as error:
            # A slow server may read our question, which we had given up, before this: it then speaks the other era.
            if error.details.get("code") == UNSUPPORTED_VERSION and await self._discover(session):
                return
            raise
        self.era, self.version = "handshake", str(self.server.get("protocolVersion", ""))
        await session.send(_encode({"jsonrpc": "2.0", "method": "notifications/initialized"}))

    async def _ask(self, session: StdioSession, method: str, params: dict[str, Any]) -> dict[str, Any]:
        question = {"jsonrpc": "2.0", "id": 0, "method": method, "params": params}
        answer = _decode(await self._exchange(session, _encode(question), None))
        result = answer.get("result")
        if isinstance(result, dict):
            return result
        error = answer.get("error")
        code = error.get("code") if isinstance(error, dict) else None
        said = error.get("message") if isinstance(error, dict) else "no result"
        raise errors.UpstreamProtocol(f"{self._upstream.name!r} answered {method} with an error: {said}", code=code)

    def _envelope(self) -> dict[str, Any]:
        return {
            _META + "protocolVersion": MODERN, _META + "clientCapabilities": {}, _META + "clientInfo": self._client,
        }  # fmt: skip

    def _enveloped(self, params: dict[str, Any]) -> dict[str, Any]:
        if self.era != "modern":
            return params
        return {**params, "_meta": {**params.get("_meta", {}), **self._envelope()}}

    # -- what the child says -----------------------------------------------------------------------------------------
    def _on_line(self, line: bytes) -> None:
        try:
            messages = remap.split(line)
        except msgspec.MsgspecError:
            self.strays += 1
            return
        for fields in messages:
            try:
                self._route(fields)
            except msgspec.MsgspecError:
                self.strays += 1

    def _route(self, fields: remap.Fields) -> None:
        method = remap.method_of(fields)
        if method and "id" in fields:
            self._server_asks(fields, method)
        elif method:
            self._server_tells(fields, method)
        else:
            self._server_answers(fields)

    def _server_answers(self, fields: remap.Fields) -> None:
        pending = self._pending.get(remap.own_id(fields.get("id")) or 0)
        if pending is None or pending.answer.done():
            self.strays += 1
            return
        try:
            pending.answer.set_result(remap.restore_response(fields, pending.sent))
        except msgspec.MsgspecError as error:
            pending.answer.set_exception(errors.UpstreamProtocol(f"The server's answer is not valid: {error}"))

    def _server_tells(self, fields: remap.Fields, method: str) -> None:
        owner = remap.owner_of(fields, method)
        pending = self._pending.get(owner) if owner is not None else None
        if pending is not None:
            self._tell(pending.on_notify, remap.restore_notification(fields, method, pending.sent))
        elif owner is not None or method == remap.PROGRESS:
            self.strays += 1  # of a request that is over: no other caller may see it
        else:
            self._tell(self._on_notification, remap.join(fields))

    def _tell(self, receiver: Callable[[bytes], Any] | None, message: bytes) -> None:
        if receiver is None:
            return
        try:
            receiver(message)
        except Exception:  # noqa: BLE001 - counted: one caller's fault must not end the others' connection
            self.faults += 1

    def _server_asks(self, fields: remap.Fields, method: str) -> None:
        session = self._session
        if session is None:
            return
        if method == "ping" and self._on_request is None:
            self._spawn(self._say(session, {"jsonrpc": "2.0", "id": fields["id"], "result": {}}))
        elif self._on_request is None or self._answering >= MAX_SERVER_REQUESTS:
            error = {"code": METHOD_NOT_FOUND, "message": f"{method} is not answered here."}
            self._spawn(self._say(session, {"jsonrpc": "2.0", "id": fields["id"], "error": error}))
        else:
            self._spawn(self._answer(session, self._on_request, fields))

    async def _answer(
        self, session: StdioSession, handler: Callable[[bytes], Awaitable[bytes]], fields: remap.Fields
    ) -> None:
        self._answering += 1
        try:
            await session.send(await handler(remap.join(fields)))
        except Exception:  # noqa: BLE001 - counted, and the server hears of it: it must not wait for ever
            self.faults += 1
            error = {"code": INTERNAL_ERROR, "message": "The request could not be answered."}
            await self._say(session, {"jsonrpc": "2.0", "id": fields["id"], "error": error})
        finally:
            self._answering -= 1

    def _fail_all(self, session: StdioSession | None, reason: str) -> None:
        message = f"The server's process has ended: {without_stderr(reason)}"
        for pending in self._pending.values():
            if pending.session is session and not pending.answer.done():
                pending.answer.set_exception(errors.UpstreamBroken(message))
