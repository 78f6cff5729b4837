"""A gateway and a server behind it in a thread of their own, for tests that are plain functions: hypothesis runs
hundreds of examples against one."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from agenticmail_enterprise.catalog.profiles import ArgumentRule, Profile, ToolRule
from agenticmail_enterprise.catalog.records import CALLS, CallRecord
from agenticmail_enterprise.catalog.store import GLOBAL, Query
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
QUIET = 0.15
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
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

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
        """Send pieces of bytes, read what comes back until the server closes or has nothing more to say. Raises
        ValueError for an answer that is none."""
        got = bytearray()
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                for piece in pieces:
                    sock.sendall(piece)
                sock.settimeout(QUIET)
                while data := sock.recv(65536):
                    got += data
            except (TimeoutError, ConnectionError):
                pass
        return asyncio.run(_parse(bytes(got)))

    def records(self) -> list[CallRecord]:
        """Those that came since the last look, oldest first."""
        return self.run(self._records())

    async def _records(self) -> list[CallRecord]:
        await self.house.runtime.journal.drained()
        found: list[CallRecord] = []
        for org in (self.house.org, GLOBAL):
            query = Query(CALLS, "by_org", {"org": org}, limit=500, descending=True)
            found += [r for r in (await self.house.runtime.store.find(query)).records if r.id not in self._known]
        self._known |= {record.id for record in found}
        return found[::-1]


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
