"""A gateway and a server behind it in a thread of their own, for tests that are plain functions: hypothesis runs
hundreds of examples against one."""

from __future__ import annotations

import asyncio
import fcntl
import re
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from agenticmail_enterprise.catalog.profiles import ArgumentRule, Profile, ToolRule
from agenticmail_enterprise.catalog.records import CALLS, CallRecord
from agenticmail_enterprise.catalog.store import GLOBAL, Query
from agenticmail_enterprise.gateway.lane import Lane
from tests.flows.house import House
from tests.flows.servers import Counting
from tests.security.wire import Reply, read_reply

T = TypeVar("T")
ALLOWED = frozenset({"read_mail", "send_mail"})
CLERK = Profile(
    name="clerk", tools=ToolRule(allow=("mail__read_mail", "mail__send_mail", "exec", "mail__prompt:summary", "mail__resource:mail://inbox")),
    max_risk="critical",
    argument_rules=(ArgumentRule(name="internal", tools=("mail__send_mail",), field="to", op="domain_in", values=("acme.test",), required=True),),
)  # fmt: skip
LIMIT = 30.0
LOOK = 0.02
"""Seconds between questions whether the server is at rest. No answer depends on it."""
TURNS = 5
LAST_CHUNK = b"0\r\n\r\n"
_ID = re.compile(rb"dec_[0-9a-f]{32}")


class Stage:
    """`key` may read mails, and send them within acme.test. `port` is the gateway's. `session` is a header for `/mcp`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway", daemon=True)
        self.errors: list[dict[str, Any]] = []
        self.key = ""
        self.session = ""
        self.port = 0
        self.house: House
        self.server: Counting
        self._known: set[str] = set()
        self._met: set[Any] = set()

    def __enter__(self) -> Stage:
        self._thread.start()
        self.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * LIMIT)

    async def _open(self) -> None:
        self._loop.set_exception_handler(lambda loop, context: self.errors.append(context))
        self.server = await Counting().__aenter__()
        self.house = await House(self._folder).__aenter__()
        upstream = await self.house.upstream("mail", self.server.url)
        await self.house.runtime.upstreams.refresh(self.house.org, upstream)
        self.key = await self.house.agent("clerk", CLERK)
        self.port = self.house.server.port
        hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}  # fmt: skip
        answer = await self.house.send("POST", "/mcp", key=self.key, body=hello)
        self.session = f"Mcp-Session-Id: {answer.headers['Mcp-Session-Id']}\r\n"

    async def _close(self) -> None:
        await self.house.__aexit__(None, None, None)
        await self.server.__aexit__(None, None, None)

    def converse(self, pieces: list[bytes]) -> list[Reply]:
        """Send pieces of bytes, read what comes back until the server closes or waits for more, which its own loop
        says: silence alone means nothing on a slow machine. Raises ValueError for an answer that is none, and
        AssertionError when the server neither closes nor comes to rest."""
        got = bytearray()
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            own = sock.getsockname()[1]
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(LIMIT)
            with suppress(ConnectionError):
                for piece in pieces:
                    sock.sendall(piece)
                self._hear(sock, own, got)
        self.run(self._until(lambda: self._settled() and not any(_peer(each.transport) == own for each in self._met)))
        return asyncio.run(_parse(bytes(got)))

    def _hear(self, sock: socket.socket, own: int, got: bytearray) -> None:
        end = time.monotonic() + LIMIT
        rest = ""
        while True:
            # Once the server rests, what it wrote is here: one look more, without waiting, takes it all.
            sock.settimeout(0 if rest else LOOK)
            try:
                data = sock.recv(65536)
            except (TimeoutError, BlockingIOError):
                if rest:
                    got += LAST_CHUNK if rest == "stream" else b""  # it ends when its client leaves: now
                    return
                assert time.monotonic() < end, f"no end and no rest; so far {bytes(got)!r}"
                rest = self.run(self._resting(own)) if _unsent(sock) == 0 else ""
                continue
            if not data:
                return
            got += data

    # -- what the gateway's loop knows ---------------------------------------------------------------------------
    def _protocols(self) -> set[Any]:
        """Lanes and aiohttp's handlers, those that were met before and still have work included. On the loop."""
        server = self.house.server
        found = {*server._lanes.open, *(server._http.connections if server._http is not None else ())}
        self._met = found | {each for each in self._met if _busy(each)}
        return self._met

    async def _resting(self, port: int) -> str:
        """What a connection does that has read all that came over it: "wait" for more, or hold a "stream" open. "" when
        there is more to do, or no such connection. Looked at over some turns of the loop: what was woken goes on in one
        of the next, and looks idle till then."""
        rest = ""
        for _ in range(TURNS):
            found = [each for each in self._protocols() if _peer(each.transport) == port]
            if not found or self.house.server.edge._pending:
                return ""
            streams = [stream._visit.request for stream in self.house.runtime.aggregate.streams.running]
            kinds = {_rest(each, streams) for each in found}
            if "" in kinds:
                return ""
            rest = max(kinds)
            await asyncio.sleep(0)
        return "stream" if rest == "stream" else "wait"

    def _settled(self) -> bool:
        """Whether nothing is being handled that could still make a record. On the loop."""
        return (
            not any(map(_busy, self._protocols()))
            and not self.house.server.edge._pending
            and not self.house.runtime.proxy.in_flight
        )

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT):
            while not holds():
                await asyncio.sleep(0.002)

    def records(self) -> list[CallRecord]:
        """Those that came since the last look, oldest first."""
        return self.run(self._records())

    async def _records(self) -> list[CallRecord]:
        await self._until(self._settled)
        await self.house.runtime.journal.drained()
        found: list[CallRecord] = []
        for org in (self.house.org, GLOBAL):
            query = Query(CALLS, "by_org", {"org": org}, limit=500, descending=True)
            found += [r for r in (await self.house.runtime.store.find(query)).records if r.id not in self._known]
        self._known |= {record.id for record in found}
        return found[::-1]


def _peer(transport: Any) -> int:
    name = transport.get_extra_info("peername") if transport is not None else None
    return int(name[1]) if name else 0


def _count(fd: int, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, request, b"\0" * 4))[0])


def _unsent(sock: socket.socket) -> int:
    """Bytes that the other side's kernel has not got yet. (Elsewhere than on Linux, loopback hands over at once.)"""
    return _count(sock.fileno(), termios.TIOCOUTQ) if sys.platform == "linux" else 0


def _busy(protocol: Any) -> bool:
    """Whether a request of a protocol is unanswered, or its handler has not ended."""
    if isinstance(protocol, Lane):
        return protocol._busy and (protocol.transport is not None or not _over(protocol._task))
    return bool(protocol._request_in_progress)


def _over(task: asyncio.Task[None] | None) -> bool:
    return task is None or task.done()


def _rest(protocol: Any, streams: list[Any]) -> str:
    """ "wait", "stream", or "" for one that has something to do. `streams`: requests whose answers stay open."""
    transport = protocol.transport
    if _count(transport.get_extra_info("socket").fileno(), termios.FIONREAD) or transport.get_write_buffer_size():
        return ""
    if not _busy(protocol):
        return "" if getattr(protocol, "_messages", ()) else "wait"
    request = getattr(protocol, "_current_request", None)
    if any(request is each for each in streams):
        return "stream"
    return "wait" if request is not None and request.content._waiter is not None else ""  # in the middle of a body


async def _parse(data: bytes) -> list[Reply]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    replies = []
    while (reply := await read_reply(reader)) is not None:
        replies.append(reply)
    return replies


def anonymous(body: bytes) -> bytes:
    """A body without what differs from one answer to the next."""
    return _ID.sub(b"dec_", body)
