"""The fast lane reads what it surely understands and leaves the rest, with every byte, to aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticmail_enterprise.gateway.lane import Lanes, learn
from agenticmail_enterprise.gateway.wire import json_response
from tests.examples import UNSHRUNK


def head(path: str = "/mcp/mail", length: int | str = 2, extra: str = "", start: str = "") -> bytes:
    line = start or f"POST {path} HTTP/1.1"
    return f"{line}\r\nHost: gw\r\nContent-Length: {length}\r\n{extra}\r\n".encode()


class Edge:
    """Answers with what it was asked; `gate` holds answers back."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.elsewhere: list[str] = []
        self.cancelled = 0
        self.gate: asyncio.Event | None = None

    async def quick(self, request: Any, rest: Any = None) -> web.StreamResponse:
        self.asked.append((request.raw_path, request.body))
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return json_response(200, b'{"lane":true}')

    def serves(self, headers: Any) -> bool:
        return dict(headers)[b"Host"] == b"gw"

    async def other(self, request: web.BaseRequest) -> web.StreamResponse:
        self.elsewhere.append(f"{request.method} {request.raw_path}")
        return web.Response(text="aiohttp")


@asynccontextmanager
async def lanes(body_limit: int = 1000) -> AsyncIterator[tuple[Edge, int, Lanes]]:
    edge = Edge()
    http = web.Server(edge.other, access_log=None)
    made = Lanes(edge, http, body_limit, 60.0)
    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    try:
        yield edge, server.sockets[0].getsockname()[1], made
    finally:
        server.close()
        await made.cut()
        await http.shutdown(0.1)


async def answer(reader: asyncio.StreamReader) -> bytes:
    got = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    length = next(int(line.split(b":")[1]) for line in got.lower().split(b"\r\n") if line.startswith(b"content-length"))
    return await asyncio.wait_for(reader.readexactly(length), 30)


@pytest.mark.parametrize("bad", [
    head(start="GET /mcp/mail HTTP/1.1"), head(start="POST /mcp/mail HTTP/1.0"), head(start="POST /mcp/Mail HTTP/1.1"),
    head(start="POST /mcp/mail?x=1 HTTP/1.1"), head(start="POST /api/agents HTTP/1.1"), head(start="POST  /mcp/mail HTTP/1.1"),
    head(length="+2"), head(length=" 2 3"), head(length="2\r\nContent-Length: 2"), head(length="0x2"), head(length="-1"),
    head(extra="Transfer-Encoding: chunked\r\n"), head(extra="Expect: 100-continue\r\n"), head(extra="Upgrade: h2c\r\n"),
    head(extra="Connection: close\r\n"), head(extra="Connection: X-API-Key\r\n"), head(extra="Content-Encoding: gzip\r\n"),
    head(extra="Host: other\r\n"), head(extra=" folded: x\r\n"), head(extra="Na me: x\r\n"), head(extra="Name : x\r\n"),
    head(extra="Name: a\rb\r\n"), head(extra="Name: a\x00b\r\n"), head(extra="Name\r\n"), head(extra=": x\r\n"),
    b"POST /mcp/mail HTTP/1.1\nHost: gw\nContent-Length: 2\n\r\n\r\n", b"POST /mcp/mail HTTP/1.1\r\nContent-Length: 2\r\n\r\n",
])  # fmt: skip
def test_what_is_not_plainly_a_hot_post_is_not_read_here(bad: bytes) -> None:
    assert learn(bad) is None


def test_a_plain_head_is_read() -> None:
    known = learn(head(extra="X-API-Key:  ek_1 \r\nAccept:\r\n", length=12))
    assert known is not None
    assert (known.path, known.length) == ("/mcp/mail", 12)
    assert known.headers == ((b"Host", b"gw"), (b"Content-Length", b"12"), (b"X-API-Key", b"ek_1"), (b"Accept", b""))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None, phases=UNSHRUNK)
def test_however_requests_are_cut_into_pieces_each_is_answered_once_in_order(cuts: list[int]) -> None:
    async def story() -> None:
        async with lanes() as (edge, port, _):
            stream = (
                head(length=2) + b"{}" + head(length=7) + b'{"a":1}' + head(length=0) + head(path="/mcp/other") + b"[]"
            )
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            place = 0
            while place < len(stream):
                step = cuts[place % len(cuts)]
                writer.write(stream[place : place + step])
                await writer.drain()
                place += step
            for _ in range(4):
                assert await answer(reader) == b'{"lane":true}'
            assert edge.asked == [
                ("/mcp/mail", b"{}"),
                ("/mcp/mail", b'{"a":1}'),
                ("/mcp/mail", b""),
                ("/mcp/other", b"[]"),
            ]
            writer.close()

    asyncio.run(story())


async def test_one_connection_may_go_from_the_lane_to_aiohttp_without_losing_a_byte() -> None:
    async with lanes() as (edge, port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head() + b"{}" + b"GET /health HTTP/1.1\r\nHost: gw\r\n\r\n" + head() + b"{}")
        assert await answer(reader) == b'{"lane":true}'
        assert await answer(reader) == b"aiohttp"
        assert await answer(reader) == b"aiohttp"
        assert edge.elsewhere == ["GET /health", "POST /mcp/mail"]
        writer.close()


async def test_a_foreign_host_and_a_large_body_are_left_to_aiohttp() -> None:
    async with lanes(body_limit=10) as (edge, port, _):
        for request in (head().replace(b"gw", b"evil") + b"{}", head(length=11) + b"x" * 11):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            assert await answer(reader) == b"aiohttp"
            writer.close()
        assert edge.asked == []


async def test_a_repeated_head_is_read_once_and_a_unique_one_is_not_kept() -> None:
    async with lanes() as (_, port, made):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(5):
            writer.write(head() + b"{}" + head(extra=f"traceparent: {number}\r\n") + b"{}")
            await answer(reader)
            await answer(reader)
        assert len(made.heads) == 1
        writer.close()


async def test_a_client_that_leaves_in_mid_call_cancels_it() -> None:
    async with lanes() as (edge, port, made):
        edge.gate = asyncio.Event()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head() + b"{}")
        while not edge.asked:
            await asyncio.sleep(0.01)
        writer.close()
        while not edge.cancelled:
            await asyncio.sleep(0.01)
        assert made.open == set()


async def test_stopping_answers_what_is_in_flight_and_closes_what_is_idle() -> None:
    async with lanes() as (edge, port, made):
        edge.gate = asyncio.Event()
        busy, busy_writer = await asyncio.open_connection("127.0.0.1", port)
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        busy_writer.write(head() + b"{}")
        while not edge.asked or len(made.open) < 2:
            await asyncio.sleep(0.01)
        made.stop()
        assert await asyncio.wait_for(idle.read(), 30) == b""
        edge.gate.set()
        assert await answer(busy) == b'{"lane":true}'
        assert await asyncio.wait_for(busy.read(), 30) == b""
        idle_writer.close()
        busy_writer.close()


async def test_half_a_request_and_an_idle_connection_do_not_stay_for_ever() -> None:
    async with lanes() as (_, port, made):
        first, first_writer = await asyncio.open_connection("127.0.0.1", port)
        second, second_writer = await asyncio.open_connection("127.0.0.1", port)
        first_writer.write(head()[:20])
        while len(made.open) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        now = asyncio.get_running_loop().time()
        made.sweep(now + 31)
        assert await asyncio.wait_for(first.read(), 30) == b""
        assert len(made.open) == 1
        made.sweep(now + 61)
        assert await asyncio.wait_for(second.read(), 30) == b""
        first_writer.close()
        second_writer.close()
