"""The straight way (gateway/doors/straight.py) under upstreams, clients and policies that do not do what is usual.

Every call here goes over one warm connection, with a head that came before, so that no coroutine is begun for it; and
each story asserts that it was so. What an upstream does is asked for in the call's arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import socket
import struct
import warnings
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from agenticmail_enterprise.catalog.errors import JournalFull
from agenticmail_enterprise.catalog.profiles import Profile, RateLimit, ToolRule
from agenticmail_enterprise.catalog.records import CALLS, CallRecord
from agenticmail_enterprise.catalog.store import Query
from agenticmail_enterprise.gateway.accounts import Assignment
from agenticmail_enterprise.gateway.doors import straight
from agenticmail_enterprise.gateway.doors.checks_straight import PlainChecks
from agenticmail_enterprise.gateway.doors.straight import Straight
from agenticmail_enterprise.gateway.settings import JournalSettings, ServerSettings
from agenticmail_enterprise.gateway.upstream_spec import UpstreamSpec
from tests.flows.house import House
from tests.security.wire import Reply, compact, read_reply, request

PATIENCE = 20.0
BIG = 60_000
"""Bytes of a large answer that is still handed over whole."""

CLERK = Profile(name="clerk", tools=ToolRule(allow=("mail__*",)), max_risk="critical", allow_unknown=True)


def arguments(number: int, do: str = "ok") -> bytes:
    """Always of one length, so that all calls have one head."""
    return compact({"n": number + 100_000, "do": do, "pad": "x" * (20 - len(do))})


def body_of(number: int, do: str = "ok") -> bytes:
    params = b'{"name":"read_mail","arguments":%b}' % arguments(number, do)
    return b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":%b}' % params


def answer_to(number: int) -> bytes:
    """The body of the answer to a call; of one length, so that all answers have one head."""
    return b'{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"%d"}]}}' % (number + 100_000)


def framed(body: bytes, *lines: bytes, status: bytes = b"200 OK", length: int | None = None) -> bytes:
    head = b"".join(line + b"\r\n" for line in (b"Content-Type: application/json", *lines))
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
        status, head, len(body) if length is None else length, body,
    )  # fmt: skip


class Stage:
    """An upstream that does what its calls ask for. `seen`: their numbers, in order of arrival."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.lost: list[int] = []
        self.connections = 0
        self.gate = asyncio.Event()
        self.delay: Callable[[], float] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Stage:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/mcp"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        message = json.loads(await reader.readexactly(length))
        if message.get("method") != "tools/call":
            writer.write(framed(compact({"jsonrpc": "2.0", "id": message.get("id"), "result": {}})))
            return True
        given = message["params"]["arguments"]
        number = given["n"] - 100_000
        self.seen.append(number)
        if self.delay is not None:
            await asyncio.sleep(self.delay())
        part = getattr(self, f"_{given['do']}", None)
        if part is None:
            writer.write(self.usual(given["do"], number))
            return True
        return bool(await part(reader, writer, number))

    @staticmethod
    def usual(do: str, number: int) -> bytes:
        """What is sent at once, in one piece."""
        body = answer_to(number)
        half = len(body) // 2
        table: dict[str, bytes] = {
            "ok": framed(body),
            "big": framed(body + b" " * (BIG - len(body))),
            "chunked": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (half, body[:half], len(body) - half, body[half:]),
            "continue": b"HTTP/1.1 100 Continue\r\n\r\n" + framed(body),
            "extra": framed(body) + b"junk\r\n\r\n",
            "blank": framed(body) + b"\r\n",
            "other": framed(body, b"X-Served-By: another"),
            "longer": framed(body + b"  ", length=len(body)),
            "twice": framed(body) + framed(answer_to(999_999 - 100_000)),
            "events": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"%x\r\ndata: %b\n\n\r\n0\r\n\r\n" % (len(body) + 8, body),
            "fails": framed(body, status=b"500 Internal Server Error"),
            "nothing": b"HTTP/1.1 204 No Content\r\n\r\n",
            "session": framed(body, b"Mcp-Session-Id: upstream-1"),
            "deep": framed(b'{"jsonrpc":"2.0","id":7,"result":{"isError":true,"x":%b}}' % (b"[" * 20_000 + b"]" * 20_000)),
        }  # fmt: skip
        return table[do]

    async def _close(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        return False

    async def _reset(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        return False

    async def _half(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        writer.write(framed(answer_to(number))[:-10])
        await writer.drain()
        return False

    async def _halfhead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        writer.write(framed(answer_to(number))[:20])
        await writer.drain()
        return False

    async def _pieces(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        whole = framed(answer_to(number))
        for start in range(0, len(whole), 40):
            writer.write(whole[start : start + 40])
            await writer.drain()
            await asyncio.sleep(0.002)
        return True

    async def _unframed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + answer_to(number))
        await writer.drain()
        return False

    async def _hang(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        if await self._left(reader):
            self.lost.append(number)
            return False
        writer.write(framed(answer_to(number)))
        return True

    async def _openstream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        """An event stream whose answer comes when the gate is opened."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: one\n\n")
        if await self._left(reader):
            self.lost.append(number)
            return False
        writer.write(b"data: %b\n\n" % answer_to(number))
        return False

    async def _late(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        """Held back like `hang`, then an event stream: an answer for which a coroutine takes over."""
        if await self._left(reader):
            self.lost.append(number)
            return False
        writer.write(self.usual("events", number))
        return True

    async def _latebreak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        await self.gate.wait()
        return False

    async def _left(self, reader: asyncio.StreamReader) -> bool:
        """Wait for the gate; True when the gateway cut the connection before."""
        opened = asyncio.ensure_future(self.gate.wait())
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({opened, gone}, return_when=asyncio.FIRST_COMPLETED)
            return gone.done()
        finally:
            for task in (opened, gone):
                task.cancel()
            await asyncio.gather(opened, gone, return_exceptions=True)


class Client:
    """One keep-alive connection of an agent."""

    def __init__(self, story: Story, key: str) -> None:
        self.story = story
        self.key = key
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def open(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.story.house.server.port)
        return self

    def send(self, number: int, do: str = "ok") -> None:
        self.writer.write(request(self.key, body_of(number, do)))

    async def reply(self) -> Reply:
        async with asyncio.timeout(PATIENCE):
            found = await read_reply(self.reader)
        assert found is not None, "the gateway closed the connection without an answer"
        return found

    async def call(self, number: int, do: str = "ok") -> Reply:
        self.send(number, do)
        return await self.reply()

    async def straight(self, number: int, do: str = "ok") -> Reply:
        """A call that must take the straight way."""
        before = len(self.story.ways)
        found = await self.call(number, do)
        assert self.story.ways[before:] == [True], "this call was not taken by the straight way"
        return found

    async def warm(self) -> Client:
        for number in range(3):
            assert (await self.call(number)).body == answer_to(number)
        assert self.story.ways[-1], "the connection is not warm"
        return self

    def abort(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Story:
    """A house, a stage, an agent; `ways`: for each request that was offered to the straight way, whether it took it."""

    def __init__(self, house: House, stage: Stage, key: str, upstream: str, ways: list[bool]) -> None:
        self.house = house
        self.stage = stage
        self.key = key
        self.upstream = upstream
        self.ways = ways
        self.clients: list[Client] = []

    @property
    def in_flight(self) -> int:
        return self.house.runtime.proxy.in_flight

    async def client(self, key: str = "", *, warm: bool = True) -> Client:
        made = await Client(self, key or self.key).open()
        self.clients.append(made)
        return await made.warm() if warm else made

    async def records(self) -> list[CallRecord]:
        """All of them, oldest first, once all that has ended is drained."""
        async with asyncio.timeout(PATIENCE):
            await self.house.runtime.journal.drained()
        found: list[CallRecord] = []
        query = Query(CALLS, "by_org", {"org": self.house.org}, limit=500)
        page = await self.house.runtime.store.find(query)
        found += page.records
        assert not page.cursor
        return found

    async def record(self, number: int, do: str = "ok") -> CallRecord:
        """The one record of a call."""
        digest = sha256(arguments(number, do)).hexdigest()
        found = [record for record in await self.records() if record.args_digest == digest]
        assert len(found) == 1, found
        return found[0]

    async def calm(self) -> None:
        await until(lambda: self.in_flight == 0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    taken: list[bool] = []
    original = Straight.__call__

    def counted(self: Straight, *given: Any) -> bool:
        took = original(self, *given)
        taken.append(took)
        return took

    monkeypatch.setattr(Straight, "__call__", counted)
    return taken


@contextlib.asynccontextmanager
async def story(
    folder: Path, ways: list[bool], profile: Profile = CLERK, *, upstream: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Story]:
    settings.setdefault("journal", JournalSettings(drain_interval=0.02))
    async with Stage() as stage, House(folder, **settings) as house:
        found = await house.upstream("mail", stage.url, **(upstream or {}))
        made = Story(house, stage, await house.agent("clerk", profile), found, ways)
        try:
            yield made
        finally:
            for client in made.clients:
                client.writer.close()
            await made.calm()
    gc.collect()  # what was never awaited or closed says so now, and pytest makes it an error


# -- what upstreams do -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "do", ["chunked", "unframed", "continue", "extra", "blank", "other", "longer", "twice", "pieces"]
)
async def test_an_answer_in_another_framing_is_the_answer_to_its_own_call(
    tmp_path: Path, ways: list[bool], do: str
) -> None:
    async with story(tmp_path, ways) as told:
        client = await told.client()
        for number in (10, 12):  # the second on a connection that the first may have spoilt
            assert (await client.straight(number, do)).body == answer_to(number)
            assert (await client.call(number + 1)).body == answer_to(number + 1)
        records = [await told.record(10, do), await told.record(11), await told.record(12, do), await told.record(13)]
        assert [record.outcome for record in records] == ["ok"] * 4
        assert all(record.upstream_us > 0 and record.response_bytes == len(answer_to(1)) for record in records)
        assert told.stage.seen == [0, 1, 2, 10, 11, 12, 13]


@pytest.mark.parametrize("do", ["close", "reset", "half", "halfhead"])
async def test_an_answer_that_does_not_come_whole_is_recorded_as_broken(
    tmp_path: Path, ways: list[bool], do: str
) -> None:
    async with story(tmp_path, ways) as told:
        client = await told.client()
        reply = await client.straight(10, do)
        assert reply.status == 200
        assert reply.json["id"] == 7
        assert reply.json["result"]["isError"] is True
        assert (await client.call(11)).body == answer_to(11)
        record = await told.record(10, do)
        assert (record.outcome, record.status, record.error) == ("broken", 0, "UPSTREAM_BROKEN")
        assert record.upstream_us > 0
        assert told.stage.seen == [0, 1, 2, 10, 11], "what may have been processed was sent again"


async def test_an_event_stream_and_a_server_s_error_pass(tmp_path: Path, ways: list[bool]) -> None:
    async with story(tmp_path, ways) as told:
        client = await told.client()
        for number in (10, 11):
            assert (await client.straight(number, "events")).body == b"data: %b\n\n" % answer_to(number)
        for number in (12, 13, 14):
            reply = await client.straight(number, "fails")
            assert (reply.status, reply.body) == (500, answer_to(number))
        records = [await told.record(10, "events"), await told.record(11, "events")]
        assert [(record.outcome, record.status) for record in records] == [("ok", 200)] * 2
        assert {
            ((await told.record(n, "fails")).outcome, (await told.record(n, "fails")).status) for n in (12, 13)
        } == {("error", 500)}
        assert (await client.straight(15)).body == answer_to(15)


async def test_an_answer_without_content_has_no_length(tmp_path: Path, ways: list[bool]) -> None:
    async with story(tmp_path, ways) as told:
        client = await told.client()
        for number in (10, 11, 12):
            reply = await client.straight(number, "nothing")
            assert (reply.status, "content-length" in reply.headers) == (204, False)  # RFC 9110, section 8.6
        assert (await client.straight(13)).body == answer_to(13)
        assert ((await told.record(11, "nothing")).outcome, (await told.record(11, "nothing")).status) == ("ok", 204)


async def test_a_session_in_an_answer_is_bound_to_the_agent_every_time(tmp_path: Path, ways: list[bool]) -> None:
    async with story(tmp_path, ways) as told:
        client = await told.client()
        for number in range(10, 15):
            reply = await client.straight(number, "session")
            assert reply.body == answer_to(number)
            assert reply.headers["mcp-session-id"] not in {"", "upstream-1"}


async def test_an_answer_that_is_nested_without_end_leaves_no_call_open(tmp_path: Path, ways: list[bool]) -> None:
    async with story(tmp_path, ways) as told:
        client = await told.client()
        client.send(10, "deep")
        with contextlib.suppress(AssertionError):
            await client.reply()
        await told.calm()
        assert ways[-1]
        assert (await told.record(10, "deep")).outcome in {"ok", "error", "broken"}


async def test_a_call_that_hangs_ends_at_the_timeout(tmp_path: Path, ways: list[bool]) -> None:
    async with story(tmp_path, ways, upstream={"timeout_ms": 300}) as told:
        client = await told.client()
        reply = await client.straight(10, "hang")
        assert reply.json["result"]["isError"] is True
        await until(lambda: told.stage.lost == [10])
        record = await told.record(10, "hang")
        assert (record.outcome, record.error, record.status) == ("timeout", "UPSTREAM_TIMEOUT", 0)
        assert record.upstream_us >= 290_000, "the upstream's time is the time that it took"
        assert record.duration_us >= record.upstream_us
        assert (await client.straight(11)).body == answer_to(11)
        told.stage.gate.set()


# -- what clients do ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("do", ["hang", "late", "openstream"])
@pytest.mark.parametrize("rude", [False, True])
async def test_a_client_that_leaves_cancels_its_call(tmp_path: Path, ways: list[bool], do: str, rude: bool) -> None:
    async with story(tmp_path, ways) as told:
        client = await told.client()
        before = told.house.runtime.upstreams.get(told.house.org, "mail").pool.stats.open
        client.send(10, do)
        await until(lambda: 10 in told.stage.seen)
        if do == "openstream":
            await client.reader.readuntil(b": one")
        assert ways[-1]
        assert told.in_flight == 1
        client.abort() if rude else client.writer.close()
        await until(lambda: told.stage.lost == [10])
        await told.calm()
        record = await told.record(10, do)
        assert (record.outcome, record.error) == ("cancelled", "CLIENT_LEFT")
        assert record.upstream_us > 0
        assert told.house.runtime.upstreams.get(told.house.org, "mail").pool.stats.open == before - 1


async def test_pipelined_calls_are_answered_in_order(tmp_path: Path, ways: list[bool]) -> None:
    async with story(tmp_path, ways) as told:
        client = await told.client()
        client.writer.write(b"".join(request(told.key, body_of(n)) for n in range(10, 20)))
        for number in range(10, 20):
            assert (await client.reply()).body == answer_to(number)
        client.send(20, "hang")
        await until(lambda: 20 in told.stage.seen)
        assert ways[-1]
        for number in range(21, 25):
            client.send(number)
        await asyncio.sleep(0.02)
        assert told.stage.seen[-1] == 20, "one call at a time"
        told.stage.gate.set()
        for number in range(20, 25):
            assert (await client.reply()).body == answer_to(number)
        assert [record.outcome for record in await told.records()] == ["ok"] * 18
        assert (await client.straight(30)).body == answer_to(30)


async def test_the_next_request_in_pieces_and_another_kind_in_between(tmp_path: Path, ways: list[bool]) -> None:
    async with story(tmp_path, ways) as told:
        client = await told.client()
        client.send(10, "hang")
        await until(lambda: 10 in told.stage.seen)
        assert ways[-1]
        whole = request(told.key, body_of(11)) + request(
            told.key, compact({"jsonrpc": "2.0", "id": 9, "method": "ping"})
        )
        for start in range(0, len(whole), 50):
            client.writer.write(whole[start : start + 50])
            await asyncio.sleep(0.002)
            if start == 200:
                told.stage.gate.set()
        assert (await client.reply()).body == answer_to(10)
        assert (await client.reply()).body == answer_to(11)
        assert (await client.reply()).json == {"jsonrpc": "2.0", "id": 9, "result": {}}
        assert (await client.straight(12)).body == answer_to(12)
        told.stage.gate.clear()
        client.send(13, "hang")  # and what is not the lane's at all, while a call is in flight
        await until(lambda: 13 in told.stage.seen)
        client.writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + request(told.key, body_of(14)))
        await asyncio.sleep(0.02)
        told.stage.gate.set()
        assert (await client.reply()).body == answer_to(13)
        assert (await client.reply()).json == {"status": "ok"}
        assert (await client.reply()).body == answer_to(14)
        assert len(await told.records()) == 8


# -- what policies do --------------------------------------------------------------------------------------------
async def test_a_revoked_key_a_changed_profile_a_disabled_upstream_count_at_once(
    tmp_path: Path, ways: list[bool]
) -> None:
    async with story(tmp_path, ways) as told:
        house = told.house
        client = await told.client()
        agent = next(iter(await house.runtime.accounts._all(*_agents(house.org))))
        shut = Profile(name="shut", tools=ToolRule(deny=("mail__*",)), max_risk="critical", allow_unknown=True)
        await house.runtime.accounts.assign(house.org, agent.id, Assignment(profile=shut))
        denied = await client.call(10)
        assert b'isError":true' in denied.body
        assert 10 not in told.stage.seen
        await house.runtime.accounts.assign(house.org, agent.id, Assignment(profile=CLERK))
        await client.warm()
        record = await house.runtime.registry.upstream(house.org, told.upstream)
        spec = UpstreamSpec(name="mail", url=told.stage.url, allow_private=True, enabled=False)
        await house.runtime.registry.replace(house.org, told.upstream, spec, record.version)
        await house.runtime.epochs.look()
        assert (await client.call(11)).status == 404
        async with Stage() as other:
            spec = UpstreamSpec(name="mail", url=other.url, allow_private=True)
            await house.runtime.registry.replace(house.org, told.upstream, spec)
            await house.runtime.epochs.look()
            for number in range(12, 16):
                assert (await client.call(number)).body == answer_to(number)
            assert ways[-1]
            assert other.seen == [12, 13, 14, 15]
            key = (await house.runtime.accounts._all(*_keys(house.org)))[0]
            await house.runtime.accounts.revoke(house.org, key.id)
            assert (await client.call(16)).status == 401
            assert other.seen == [12, 13, 14, 15]
        assert (await told.record(10)).outcome == "denied"


def _agents(org: str) -> tuple[Any, str, dict[str, str]]:
    from agenticmail_enterprise.catalog.records import AGENTS

    return AGENTS, "by_org", {"org": org}


def _keys(org: str) -> tuple[Any, str, dict[str, str]]:
    from agenticmail_enterprise.catalog.records import KEYS

    return KEYS, "by_org", {"org": org}


@pytest.mark.parametrize("do", ["hang", "late", "latebreak"])
async def test_a_key_that_is_revoked_while_its_call_is_in_flight(tmp_path: Path, ways: list[bool], do: str) -> None:
    """Another request with the same head has found the key revoked meanwhile; this call was made before."""
    async with story(tmp_path, ways) as told:
        first = await told.client()
        second = await told.client()
        first.send(10, do)
        await until(lambda: 10 in told.stage.seen)
        assert ways[-1]
        key = (await told.house.runtime.accounts._all(*_keys(told.house.org)))[0]
        await told.house.runtime.accounts.revoke(told.house.org, key.id)
        assert (await second.call(11)).status == 401
        told.stage.gate.set()
        reply = await first.reply()
        assert reply.status == 200
        assert (answer_to(10) in reply.body) == (do != "latebreak")
        await told.calm()
        assert (await told.record(10, do)).outcome == ("broken" if do == "latebreak" else "ok")
        assert (await first.call(12)).status == 401


async def test_a_limit_is_charged_once_for_each_call(tmp_path: Path, ways: list[bool]) -> None:
    limited = Profile(
        name="limited", tools=ToolRule(allow=("mail__*",)), max_risk="critical", allow_unknown=True,
        rate_limits=(RateLimit(per_day=9),),
    )  # fmt: skip
    async with story(tmp_path, ways, limited) as told:
        client = await told.client()  # three
        assert b"data: " in (await client.straight(3, "events")).body
        assert (await client.straight(4, "close")).status == 200
        assert (await client.straight(5, "other")).body == answer_to(5)
        assert (await client.straight(6, "half")).status == 200
        assert (await client.straight(7)).body == answer_to(7)
        journal = told.house.runtime.journal
        begin, refused = journal.begin_as, []

        def full(*given: Any) -> int:
            refused.append(given)
            raise JournalFull

        journal.begin_as = full  # type: ignore[method-assign]
        try:  # judged, then carried on by a coroutine
            assert (await client.straight(8)).body == answer_to(8)
        finally:
            journal.begin_as = begin  # type: ignore[method-assign]
        assert len(refused) == 1
        for number in (9, 10):
            reply = await client.straight(number)
            assert b'isError":true' in reply.body
        records = await told.records()
        assert len(records) == 11
        assert [(record.outcome, record.code) for record in records[-2:]] == [("denied", "RATE_LIMITED")] * 2
        assert told.stage.seen == list(range(9))


# -- what journals do --------------------------------------------------------------------------------------------
async def test_a_full_journal_refuses_and_recovers(tmp_path: Path, ways: list[bool]) -> None:
    journal = JournalSettings(drain_interval=0.02, segment_bytes=65536, max_bytes=131072, full_wait=0.1)
    async with story(tmp_path, ways, journal=journal) as told:
        client = await told.client()
        spool = told.house.runtime.journal
        spool._reserved += 10**9
        reply = await client.straight(10)
        assert b"JOURNAL_FULL" in reply.body
        assert told.in_flight == 0
        assert 10 not in told.stage.seen
        spool._reserved -= 10**9
        assert (await client.straight(11)).body == answer_to(11)
        assert len(await told.records()) == 4


async def test_a_broken_journal_refuses(tmp_path: Path, ways: list[bool]) -> None:
    async with story(tmp_path, ways) as told:
        client = await told.client()
        client.send(10, "hang")
        await until(lambda: 10 in told.stage.seen)
        told.house.runtime.journal._break("The disk is gone.")
        told.stage.gate.set()
        assert (await client.reply()).body == answer_to(10)  # its intent was written
        reply = await client.straight(11)
        assert b"JOURNAL_FULL" in reply.body
        assert 11 not in told.stage.seen
        assert told.in_flight == 0
        told.house.runtime.journal._shut = ""
        assert (await told.record(10, "hang")).outcome == "ok"


# -- the end -----------------------------------------------------------------------------------------------------
async def test_a_graceful_stop_lets_a_call_finish(tmp_path: Path, ways: list[bool]) -> None:
    settings = ServerSettings(stop_grace=PATIENCE)
    async with story(tmp_path, ways, server=settings) as told:
        client = await told.client()
        client.send(10, "hang")
        await until(lambda: 10 in told.stage.seen)
        assert ways[-1]
        stopping = asyncio.ensure_future(told.house.server.stop())
        await until(lambda: told.house.server._lanes.stopping)
        told.stage.gate.set()
        assert (await client.reply()).body == answer_to(10)
        assert await client.reader.read() == b""
        await stopping
        assert told.in_flight == 0
    await _only("ok", tmp_path, told, 10, "hang")


@pytest.mark.parametrize("do", ["hang", "late", "openstream"])
async def test_a_hard_stop_records_what_it_cuts(tmp_path: Path, ways: list[bool], do: str) -> None:
    settings = ServerSettings(stop_grace=0.05)
    async with story(tmp_path, ways, server=settings) as told:
        client = await told.client()
        client.send(10, do)
        await until(lambda: 10 in told.stage.seen)
        assert ways[-1]
        await told.house.server.stop()
        assert told.in_flight == 0
    await _only("cancelled", tmp_path, told, 10, do)


async def _only(outcome: str, folder: Path, told: Story, number: int, do: str) -> None:
    from agenticmail_enterprise.gateway.stores import open_store

    store = open_store(f"sqlite:///{folder}/gw.db")
    await store.open()
    try:
        page = await store.find(Query(CALLS, "by_org", {"org": told.house.org}, limit=100))
    finally:
        await store.close()
    digest = sha256(arguments(number, do)).hexdigest()
    assert [record.outcome for record in page.records if record.args_digest == digest] == [outcome]
    assert len(page.records) == 4


async def test_many_connections_with_clients_that_leave(tmp_path: Path, ways: list[bool]) -> None:
    """Every call that the upstream saw has one record, and every record says what happened to its client."""
    dice = random.Random(20)
    kinds = ["ok"] * 8 + [
        "chunked",
        "events",
        "close",
        "half",
        "extra",
        "twice",
        "pieces",
        "fails",
        "other",
        "unframed",
    ]
    async with story(tmp_path, ways) as told:
        told.stage.delay = lambda: dice.random() * 0.01
        got: dict[int, tuple[str, Reply | None]] = {}
        counter = iter(range(100, 10_000))

        async def agent() -> None:
            for _ in range(3):
                client = await told.client(warm=False)
                for _ in range(dice.randrange(1, 8)):
                    number, do = next(counter), dice.choice(kinds)
                    client.send(number, do)
                    if dice.random() < 0.2:
                        got[number] = (do, None)
                        await asyncio.sleep(dice.random() * 0.01)
                        client.abort()
                        break
                    got[number] = (do, await client.reply())

        tasks = asyncio.all_tasks()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await asyncio.gather(*(agent() for _ in range(32)))
            await told.calm()
            for client in told.clients:
                client.writer.close()
            lanes = told.house.server._lanes
            await until(lambda: not lanes.open)
            gc.collect()
        assert sum(ways) > len(ways) // 2 > 0
        records = {record.args_digest: record for record in await told.records()}
        assert len(records) == len(await told.records())
        for number, (do, reply) in got.items():
            record = records.pop(sha256(arguments(number, do)).hexdigest(), None)
            if record is None:
                assert reply is None
                assert number not in told.stage.seen, "a call that the upstream saw is not on record"
                continue
            usual = {"close": "broken", "half": "broken", "fails": "error"}.get(do, "ok")
            if reply is None:
                assert record.outcome in {usual, "cancelled"}, (do, record)
            else:
                assert record.outcome == usual, (do, record)
                assert (answer_to(number) in reply.body) == (usual != "broken"), (do, reply)
        assert not records, "records of calls that nobody made"
        assert len(told.stage.seen) == len(set(told.stage.seen)), "a call was sent twice"
        await until(lambda: not [t for t in asyncio.all_tasks() - tasks if "Lane" in repr(t.get_coro())])


async def test_answers_that_nobody_reads_do_not_pile_up(tmp_path: Path, ways: list[bool]) -> None:
    """A client that calls and calls and reads nothing is served no further than its socket takes."""
    async with story(tmp_path, ways) as told:
        client = await told.client()
        [lane] = told.house.server._lanes.open
        transport = lane.transport
        assert transport is not None
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        largest = 0
        for number in range(10, 1000):
            before = len(told.stage.seen), len(lane._buffer)
            client.send(number, "big")
            async with asyncio.timeout(PATIENCE):  # taken up, or put aside
                while len(told.stage.seen) == before[0] and len(lane._buffer) == before[1]:
                    await asyncio.sleep(0.001)
                while told.in_flight:
                    await asyncio.sleep(0.001)
            largest = max(largest, transport.get_write_buffer_size())
            if lane._drain and (number > 600 or largest > 8 * BIG):
                break
        assert lane._drain is not None
        assert largest < 4 * BIG, "answers wait in memory for a client that does not read"
        served = len(told.stage.seen)
        assert served < 600
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        for sent in range(10, number + 1):  # and not one of them is lost
            assert (await client.reply()).body.startswith(answer_to(sent))
        assert told.stage.seen[3:] == list(range(10, number + 1))
        assert (await client.straight(2000)).body == answer_to(2000)


async def test_names_and_heads_that_agents_choose_take_bounded_memory(
    tmp_path: Path, ways: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(straight, "MAX_ROUTES", 30)
    async with story(tmp_path, ways) as told:
        client = await told.client()
        largest = 0
        for length in range(1, 12):
            for number in range(7):
                named = body_of(10).replace(b"read_mail", b"%d" % number + b"x" * length)
                client.writer.write(request(told.key, named))
                assert (await client.reply()).body == answer_to(10)
            known = told.house.server._lanes.heads.values()
            largest = max(largest, sum(len(one.straight._routes) for one in known if one.straight is not None))  # type: ignore[attr-defined]
        assert len(told.house.server._lanes.heads) >= 11
        assert 20 < largest <= 30


# -- the checks door, which has a straight way of its own ----------------------------------------------------------
CHECK = "POST /api/engine/check-permission HTTP/1.1"


async def checked(client: Client, number: int, tool: str = "mail__read_mail") -> Reply:
    body = b'{"tool":"%b","args":%b}' % (tool.encode(), arguments(number))
    client.writer.write(request(client.key, body, line=CHECK))
    return await client.reply()


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    taken: list[bool] = []
    original = PlainChecks.__call__

    def counted(self: PlainChecks, *given: Any) -> bool:
        took = original(self, *given)
        taken.append(took)
        return took

    monkeypatch.setattr(PlainChecks, "__call__", counted)
    return taken


async def test_plain_checks_are_charged_once_recorded_once_and_end_with_their_key(
    tmp_path: Path, ways: list[bool], quick_checks: list[bool]
) -> None:
    limited = Profile(
        name="limited", tools=ToolRule(allow=("mail__*",)), max_risk="critical", allow_unknown=True,
        rate_limits=(RateLimit(per_day=7),),
    )  # fmt: skip
    async with story(tmp_path, ways, limited) as told:
        client = await told.client(warm=False)
        for number in range(5):
            assert (await checked(client, number)).json["data"]["allowed"] is True
        journal = told.house.runtime.journal
        begin = journal.begin_as

        def full(*_: Any) -> int:
            raise JournalFull

        journal.begin_as = full  # type: ignore[method-assign]
        try:
            assert (await checked(client, 5)).json["data"]["allowed"] is True
        finally:
            journal.begin_as = begin  # type: ignore[method-assign]
        assert (await checked(client, 6)).json["data"]["allowed"] is True
        for number in (7, 8):
            assert (await checked(client, number)).json["data"]["code"] == "RATE_LIMITED"
        assert quick_checks[-6:] == [True] * 6
        told.house.runtime.checks.close_all()
        records = await told.records()
        assert sorted(record.outcome for record in records) == ["denied"] * 2 + ["unknown"] * 7
        assert {record.args_digest for record in records} == {
            sha256(arguments(number)).hexdigest() for number in range(9)
        }
        key = (await told.house.runtime.accounts._all(*_keys(told.house.org)))[0]
        await told.house.runtime.accounts.revoke(told.house.org, key.id)
        assert (await checked(client, 9)).status == 401


async def test_checks_of_two_agents_with_one_profile_are_each_their_own(
    tmp_path: Path, ways: list[bool], quick_checks: list[bool]
) -> None:
    """Verdicts may be shared between agents; what is written from drafts must not be."""
    async with story(tmp_path, ways) as told:
        other = await told.house.agent("other", CLERK)
        one, two = await told.client(warm=False), await told.client(other, warm=False)
        for number in range(6):
            await checked(one, number * 2)
            await checked(two, number * 2 + 1)
        assert quick_checks[-2:] == [True, True]
        for number in range(6):
            await one.call(100 + number)
            await two.call(200 + number)
        assert ways[-2:] == [True, True]
        told.house.runtime.checks.close_all()
        agents = {agent.name: agent.id for agent in await told.house.runtime.accounts._all(*_agents(told.house.org))}
        keys = {key.agent_id: key.id for key in await told.house.runtime.accounts._all(*_keys(told.house.org))}
        of = {record.args_digest: (record.agent, record.key) for record in await told.records()}
        assert len(of) == 24
        for number in [*range(12), *range(100, 106), *range(200, 206)]:
            mine = (number < 12 and number % 2 == 0) or 100 <= number < 200
            agent = agents["clerk" if mine else "other"]
            assert of[sha256(arguments(number)).hexdigest()] == (agent, keys[agent])


@pytest.mark.parametrize("body", [
    b'{"tool":"mail__read_mail","args":{"a":1},"args":{"a":2}}', b'{"tool":"mail__read_mail","args":{"a":1,"a":2}}',
    b'{"tool":"mail__read_mail", "args":{"a":1}}', b'{"args":{"a":1},"tool":"mail__read_mail"}',
    b'{"tool":"mail__read_mail","args":{"a":1},"x":1}', b'{"tool":"mail__read_mail","args":[1]}', b'{"tool":"","args":{"a":1}}',
    b'{"tool":"a\\u0000b","args":{"a":1}}', b'{"tool":"mail__read_mail","args":{"a":1}', b"", b"[]", b"\xff\xfe",
    b'{"tool":",\\"args\\":{","args":{"a":1}} ', b'{"tool":"mail__read_mail","args":{"a":%b1%b}}' % (b"[" * 5000, b"]" * 5000),
])  # fmt: skip
async def test_a_check_that_is_not_plain_is_read_with_care(
    tmp_path: Path, ways: list[bool], quick_checks: list[bool], body: bytes
) -> None:
    async with story(tmp_path, ways) as told:
        client = await told.client(warm=False)
        statuses = []
        for _ in range(3):  # the same head each time
            client.writer.write(request(client.key, body, line=CHECK))
            statuses.append((await client.reply()).status)
        assert len(set(statuses)) == 1
        assert statuses[0] in {200, 400, 422}
        assert not any(quick_checks)
        told.house.runtime.checks.close_all()
