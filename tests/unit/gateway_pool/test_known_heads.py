"""What a pool remembers of response heads, and what it never does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from agenticmail_enterprise.gateway import pool_connection
from agenticmail_enterprise.gateway.pool_connection import MAX_KNOWN_HEAD, MAX_KNOWN_HEADS
from agenticmail_enterprise.gateway.pool_framing import MAX_BUFFERED

EVENTS = b"data: x\n\n"


@pytest.fixture(autouse=True)
def heads() -> Iterator[dict[bytes, Any]]:
    """The table, empty before and after: it is the process's."""
    table = pool_connection._heads
    table.clear()
    yield table
    table.clear()


async def asked(pool: Any, kit: Any, times: int, method: str = "POST", **options: Any) -> list[Any]:
    answers = []
    for _ in range(times):
        answer = await pool.send(*kit.request(method), timeout=5, **options)
        if answer.body is None:
            answer.body = await answer.read(1 << 20)
        answers.append(answer)
    return answers


def head_of(data: bytes) -> bytes:
    return data[: data.index(b"\r\n\r\n") + 4]


async def test_a_head_that_came_twice_is_known_the_third_time(
    serve: Any, make_pool: Any, kit: Any, heads: dict[bytes, Any]
) -> None:
    sent = [kit.ok(b"one", b"X-A: 1"), kit.ok(b"two", b"X-A: 1"), kit.ok(b"six", b"X-A: 1"), kit.ok(b"ten", b"X-A: 1")]
    pool = make_pool(await serve(kit.answering(*sent)))
    first = await asked(pool, kit, 1)
    assert not heads
    first += await asked(pool, kit, 1)
    assert list(heads) == [head_of(sent[0])]
    later = await asked(pool, kit, 2)
    assert [answer.known for answer in first] == [None, None]
    assert later[0].known is later[1].known is heads[head_of(sent[0])]
    assert [answer.body for answer in first + later] == [b"one", b"two", b"six", b"ten"]
    same = {
        (a.status, a.reason, tuple(a.headers), a.content_length, a.content_type, a.header(b"x-a"))
        for a in first + later
    }
    assert len(same) == 1, "a known head says what its first reading said"


@pytest.mark.parametrize(
    "status", [b"200 OK", b"201 Created", b"400 Bad Request", b"404 Not Found", b"500 Oh", b"503 No"]
)
@pytest.mark.parametrize("body", [b"{}", b"", b"x" * MAX_BUFFERED], ids=["small", "empty", "largest"])
async def test_every_ordinary_whole_answer_is_learnt(
    serve: Any, make_pool: Any, kit: Any, heads: dict[bytes, Any], status: bytes, body: bytes
) -> None:
    sent = kit.ok(body, b"Content-Type: application/json", status=status)
    pool = make_pool(await serve(kit.answering(sent)))
    for answer in await asked(pool, kit, 4):
        assert (b"%d" % answer.status, answer.body) == (status[:3], body)
    if len(body) < 10_000:  # the largest may come in pieces, and then has no head of its own
        assert list(heads) == [head_of(sent)]


async def test_answers_that_alternate_are_not_learnt(
    serve: Any, make_pool: Any, kit: Any, heads: dict[bytes, Any]
) -> None:
    pool = make_pool(await serve(kit.answering(*[kit.ok(b"ok", b"X: %d" % number) for number in range(20)])))
    for number, answer in enumerate(await asked(pool, kit, 20)):
        assert answer.header(b"x") == b"%d" % number
    assert not heads


NEVER = {
    "no content": b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n",
    "no content, though it says so": b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "empty chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    "1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "1.0 kept": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "events": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(EVENTS), EVENTS),
    "events, spelt otherwise": b"HTTP/1.1 200 OK\r\ncontent-type: Text/Event-Stream; x=1\r\nContent-Length: %d\r\n\r\n%b"
    % (len(EVENTS), EVENTS),
    "a large head": b"HTTP/1.1 200 OK\r\nX: %b\r\nContent-Length: 2\r\n\r\nok" % (b"x" * MAX_KNOWN_HEAD),
    "a large body": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (MAX_BUFFERED + 1, b"x" * (MAX_BUFFERED + 1)),
    "surplus": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\r\n",
    "a second answer": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" * 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", NEVER)
async def test_what_is_not_ordinary_is_never_learnt(
    serve: Any, make_pool: Any, kit: Any, heads: dict[bytes, Any], kind: str
) -> None:
    pool = make_pool(await serve(kit.answering(NEVER[kind])))
    answers = await asked(pool, kit, 5)
    assert not heads
    assert {answer.known for answer in answers} == {None}
    assert len({answer.body for answer in answers}) == 1


async def test_an_answer_to_head_is_never_learnt_nor_read_from_what_is_known(
    serve: Any, make_pool: Any, kit: Any, heads: dict[bytes, Any]
) -> None:
    async def script(peer: Any) -> None:
        while (got := await peer.request()) is not None:
            whole = kit.ok(b"ok", b"X: 1")
            await peer.send(head_of(whole) if got.startswith(b"HEAD ") else whole)

    pool = make_pool(await serve(script))
    for answer in await asked(pool, kit, 4, "HEAD"):
        assert (answer.body, answer.known) == (b"", None)
    assert not heads
    assert [answer.body for answer in await asked(pool, kit, 3)] == [b"ok"] * 3
    assert len(heads) == 1
    for answer in await asked(pool, kit, 3, "HEAD"):
        assert (answer.body, answer.content_length) == (b"", 2)
    assert [(answer.body, answer.known is None) for answer in await asked(pool, kit, 1)] == [(b"ok", False)]


async def test_a_head_in_pieces_and_a_body_in_pieces_are_the_same_answer(
    serve: Any, make_pool: Any, kit: Any, heads: dict[bytes, Any]
) -> None:
    whole = kit.ok(b"x" * 200, b"X: 1")
    cuts = [0, len(whole) - 200, 10, len(whole) - 1, 30, 0]

    async def script(peer: Any) -> None:
        while await peer.request() is not None:
            cut = cuts.pop(0)
            await peer.send(whole[:cut])
            await asyncio.sleep(0.02)
            await peer.send(whole[cut:])

    pool = make_pool(await serve(script))
    pool_connection._heads[head_of(whole)] = known = pool_connection.KnownHead(
        200, b"OK", [(b"Content-Length", b"200"), (b"X", b"1")], 200, b"", b""
    )
    answers = await asked(pool, kit, 6)
    assert [answer.body for answer in answers] == [b"x" * 200] * 6
    assert [answer.known is known for answer in answers] == [True, False, False, False, False, True]
    assert pool.stats.created == 1


async def test_a_known_head_with_another_length_of_body_is_no_hit(
    serve: Any, make_pool: Any, kit: Any, heads: dict[bytes, Any]
) -> None:
    """More than the head says spoils the connection."""
    usual = kit.ok(b"four", b"X: 1")
    pool = make_pool(await serve(kit.answering(usual, usual, usual, usual + b"more", usual)))
    answers = await asked(pool, kit, 6)
    assert [answer.body for answer in answers] == [b"four"] * 6
    assert [answer.known is not None for answer in answers] == [False, False, True, False, True, True]
    assert pool.stats.created == 2, "the connection was given up for its surplus"


async def test_a_streamed_request_does_not_take_the_short_way(
    serve: Any, make_pool: Any, kit: Any, heads: dict[bytes, Any]
) -> None:
    pool = make_pool(await serve(kit.answering(kit.ok(b"ok"))))
    await asked(pool, kit, 3)
    assert len(heads) == 1
    assert [(answer.known, answer.body) for answer in await asked(pool, kit, 2, stream=True)] == [(None, b"ok")] * 2


async def test_the_largest_head_of_a_pool_binds_known_heads_too(
    serve: Any, make_pool: Any, kit: Any, heads: dict[bytes, Any]
) -> None:
    """Two upstreams send the same; one of the pools takes smaller heads only."""
    from agenticmail_enterprise.catalog.errors import UpstreamProtocol

    upstream = await serve(kit.answering(kit.ok(b"ok", b"X: " + b"x" * 600)))
    await asked(make_pool(upstream), kit, 3)
    assert len(heads) == 1
    with pytest.raises(UpstreamProtocol):
        await asked(make_pool(upstream, max_head=512), kit, 1)


# -- what one upstream says is not another's ---------------------------------------------------------------------
async def test_a_hint_goes_to_the_pool_it_was_said_to_and_no_other(
    serve: Any, make_pool: Any, kit: Any, heads: dict[bytes, Any]
) -> None:
    hinting = make_pool(await serve(kit.answering(kit.ok(b"ok", b"Keep-Alive: timeout=7"))))
    silent = make_pool(await serve(kit.answering(kit.ok(b"ok"))))
    own = silent._limits.limit
    for _ in range(4):
        await asked(hinting, kit, 1)
        await asked(silent, kit, 1)
    assert len(heads) == 2
    assert hinting._limits._announced == 7.0
    assert (silent._limits._announced, silent._limits.limit) == (None, own)
    again = make_pool(await serve(kit.answering(kit.ok(b"ok", b"Keep-Alive: timeout=7"))))
    [answer] = await asked(again, kit, 1)
    assert answer.known is not None, "another upstream, the same head: nothing is parsed"
    assert again._limits._announced == 7.0, "and yet its own hint counts"


@pytest.mark.parametrize("hints", [(b"timeout=9", b"timeout=7"), (b"timeout=7", b"max=5"), (b"max=5", b"timeout=7")])
async def test_a_known_head_hints_what_its_reading_hinted(
    serve: Any, make_pool: Any, kit: Any, heads: dict[bytes, Any], hints: tuple[bytes, ...]
) -> None:
    pool = make_pool(await serve(kit.answering(kit.ok(b"ok", *(b"Keep-Alive: " + hint for hint in hints)))))
    await asked(pool, kit, 1)
    read = pool._limits._announced
    await asked(pool, kit, 4)
    assert pool._limits._announced == read
    fresh = make_pool(await serve(kit.answering(kit.ok(b"ok", *(b"Keep-Alive: " + hint for hint in hints)))))
    await asked(fresh, kit, 1)
    assert fresh._limits._announced == read


# -- the table ---------------------------------------------------------------------------------------------------
async def test_the_table_stays_bounded(serve: Any, make_pool: Any, kit: Any, heads: dict[bytes, Any]) -> None:
    sent = [kit.ok(b"ok", b"X: %d" % (number // 2)) for number in range(40)]
    for number in range(MAX_KNOWN_HEADS - 5):
        heads[b"%d" % number] = pool_connection.KnownHead(200, b"", [], 0, b"", b"")
    pool = make_pool(await serve(kit.answering(*sent)))
    for _ in range(40):
        await asked(pool, kit, 1)
        assert len(heads) <= MAX_KNOWN_HEADS
    assert 1 <= len(heads) <= 20, "it started afresh"
    assert head_of(sent[-1]) in heads
