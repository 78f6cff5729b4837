"""Many requests over one child: the place where JSON-RPC ids, progress tokens and subscription ids are remapped.

    mux = StdioMux("time", on_message, on_over)
    await mux.open(upstream)
    await mux.request(b'{"jsonrpc":"2.0","id":"a-7","method":"tools/call",...}', receiver)

Requests never see each other, whatever ids and tokens their senders chose: each goes out under a number of ours
(`remap`), and what belongs to it (its answer, its progress, the events of its subscription) comes back with its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from ...catalog import errors
from . import remap
from .mcp_stdio import Limits, StdioSession, StdioUpstream, create
from .process import without_stderr

MAX_PENDING: Final = 1000
CANCELLED: Final = "notifications/cancelled"

_encode: Final = msgspec.json.Encoder().encode
_raw: Final = msgspec.json.Decoder(remap.Fields).decode


class Receiver(Protocol):
    """Who waits for an answer. Called on the loop; must not block or raise."""

    def put(self, message: bytes, *, last: bool) -> None:
        """A message that belongs to the request; `last`: its answer."""

    def fail(self, error: errors.UpstreamError) -> None:
        """The child has ended: nothing more will come."""


class _Pending:
    __slots__ = ("receiver", "sent")

    def __init__(self, sent: remap.Outgoing, receiver: Receiver) -> None:
        self.sent = sent
        self.receiver = receiver


class StdioMux:
    """One child. `on_message(message, method)` hears what the server says that belongs to no request; `on_over(reason)`
    of the child's end, after all who waited have been told. `strays` counts messages that belong to nobody (late
    answers, mostly)."""

    def __init__(
        self, name: str, on_message: Callable[[bytes, str], Any], on_over: Callable[[str], Any] | None = None, *,
        max_pending: int = MAX_PENDING,
    ) -> None:  # fmt: skip
        self._name = name
        self._on_message = on_message
        self._on_over = on_over
        self._max_pending = max_pending
        self._pending: dict[int, _Pending] = {}
        self._last = 0
        self._session: StdioSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.strays = 0

    async def open(self, upstream: StdioUpstream) -> None:
        """Start the child. Raises what `StdioUpstream.open_session` raises."""
        self._session = await upstream.open_session(self._on_line, self._on_end)

    @property
    def alive(self) -> bool:
        """True while a message may be sent."""
        return self._session is not None and self._session.alive

    @property
    def pid(self) -> int:
        return self._open_session().pid

    @property
    def idle(self) -> bool:
        """True while no request waits for its answer."""
        return not self._pending

    def waiting(self) -> list[Receiver]:
        """Who waits for an answer, oldest first; subscriptions, which wait for ever, are left out."""
        return [entry.receiver for entry in self._pending.values() if entry.sent.method != remap.LISTEN]

    # -- towards the child -----------------------------------------------------------------------------------------
    async def request(self, message: bytes, receiver: Receiver) -> int:
        """Send one request; the number to `cancel` it by. What belongs to it goes to `receiver`.

        Raises BadRequest, UpstreamBusy (too many wait), and what `StdioSession.send` raises; the receiver hears nothing
        then.
        """
        if len(self._pending) >= self._max_pending:
            raise errors.UpstreamBusy(f"{self._name!r} has {self._max_pending} requests in progress.")
        session = self._open_session()
        own = self._last = self._last + 1
        sent = remap.readdress(message, own)
        self._pending[own] = _Pending(sent, receiver)
        try:
            await session.send(sent.line)
        except BaseException:
            self.cancel(own)
            raise
        return own

    async def tell(self, message: bytes) -> None:
        """Send a notification, or the answer to a request of the server. A `notifications/cancelled` gets the number
        under which its request runs; one for a request that is over is dropped.

        Raises BadRequest, and what `StdioSession.send` raises.
        """
        try:
            (fields,) = remap.split(message)
            if remap.method_of(fields) == CANCELLED:
                params = _raw(fields["params"])
                own = self._number_of(params["requestId"])
                if own is None:
                    return
                params["requestId"] = msgspec.Raw(b"%d" % own)
                fields["params"] = msgspec.Raw(_encode(params))
                message = remap.join(fields)
        except (msgspec.MsgspecError, KeyError, ValueError, UnicodeError) as error:
            raise errors.BadRequest(f"This is not a JSON-RPC notification or answer: {error}") from None
        await self._open_session().send(message)

    def cancel(self, own: int) -> None:
        """Nobody waits for that request any more: tell the server, as a client that cancels would. `initialize` may not
        be cancelled, and a request that was answered needs no word."""
        pending = self._pending.pop(own, None)
        if pending is None or pending.sent.method == "initialize" or not self.alive:
            return
        params = {"requestId": own, "reason": "The caller has left."}
        notice = _encode({"jsonrpc": "2.0", "method": CANCELLED, "params": params})
        task = asyncio.get_running_loop().create_task(self._say(notice))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End the child; who waits hears of it."""
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> StdioSession:
        if self._session is None:
            raise errors.UpstreamRefused(f"The process of {self._name!r} has not been started.")
        return self._session

    def _number_of(self, original: msgspec.Raw) -> int | None:
        """The newest request that its sender knows by this id."""
        wanted = bytes(original)
        return next((own for own in reversed(self._pending) if bytes(self._pending[own].sent.id) == wanted), None)

    async def _say(self, notice: bytes) -> None:
        try:
            await self._open_session().send(notice)
        except errors.EnterpriseError:
            return  # it has ended meanwhile: nothing is left to cancel

    # -- from the child --------------------------------------------------------------------------------------------
    def _on_line(self, line: bytes) -> None:
        try:
            messages = remap.split(line)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self.strays += 1
            return
        for fields in messages:
            try:
                self._route(fields)
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                self.strays += 1

    def _route(self, fields: remap.Fields) -> None:
        method = remap.method_of(fields)
        if not method:
            self._answered(fields)
            return
        owner = remap.owner_of(fields, method) if "id" not in fields else None
        pending = self._pending.get(owner) if owner is not None else None
        if pending is not None:
            pending.receiver.put(remap.restore_notification(fields, method, pending.sent), last=False)
        elif owner is not None or method == remap.PROGRESS:
            self.strays += 1  # of a request that is over: no other may see it
        else:
            self._on_message(remap.join(fields), method)

    def _answered(self, fields: remap.Fields) -> None:
        own = remap.own_id(fields.get("id")) or 0
        pending = self._pending.get(own)
        if pending is None:
            self.strays += 1
            return
        answer = remap.restore_response(fields, pending.sent)
        del self._pending[own]
        pending.receiver.put(answer, last=True)

    def _on_end(self, reason: str) -> None:
        error = errors.UpstreamBroken(
            f"The process of {self._name!r} ended ({without_stderr(reason)}); whether it acted is unknown."
        )
        pending, self._pending = self._pending, {}
        for entry in pending.values():
            entry.receiver.fail(error)
        if self._on_over is not None:
            self._on_over(reason)


__all__ = ["Limits", "Receiver", "StdioMux", "StdioUpstream", "create", "without_stderr"]
