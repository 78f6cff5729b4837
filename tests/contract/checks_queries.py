"""What a query promises: declared or refused, in order, in pages that stay put."""

from __future__ import annotations

import random

import msgspec
import pytest

from agenticmail_enterprise.catalog.errors import BadRequest, CursorInvalid, StoreError, UndeclaredQuery
from agenticmail_enterprise.tests.contract.suite import (
    ITEMS,
    LINES,
    STRANGER,
    Bench,
    asked,
    check,
    gone,
    ids,
    line,
    put,
)


@check()
async def equality_on_all_fields_of_an_index(bench: Bench) -> None:
    await bench.store.commit(
        put("1", team="red", on=True), put("2", team="red"), put("3", team="", on=True),
        put("4", org="other", team="red"), put("5", email="E@x"),
    )  # fmt: skip
    assert await ids(bench.store, asked("by_team", where={"org": "acme", "team": "red"})) == ["1", "2"]
    assert await ids(bench.store, asked("by_team", where={"team": "", "org": "acme"})) == ["3", "5"]
    assert await ids(bench.store, asked("by_on", where={"org": "acme", "on": True})) == ["1", "3"]
    assert await ids(bench.store, asked("by_on", where={"org": "acme", "on": False})) == ["2", "5"]
    assert await ids(bench.store, asked("everywhere", where={"team": "red"})) == ["1", "2", "4"]
    assert await ids(bench.store, asked("email", where={"email": "E@x"})) == ["5"]
    assert await ids(bench.store, asked("email", where={"email": "e@x"})) == []
    assert await ids(bench.store, asked(where={"org": ""})) == []


@check()
async def an_undeclared_query_is_refused(bench: Bench) -> None:
    for query in (
        asked("nope"), asked("_created"), asked("_created", LINES), asked("by_team"), asked(where={}),
        asked(where={"org": "acme", "rank": 1}), asked("by_team", where={"org": "acme", "team": None}),
        asked("by_team", where={"org": "acme", "team": 1}), asked("by_on", where={"org": "acme", "on": 1}),
        asked("by_rank", since="1"), asked("by_rank", until=1.5), asked(since=1), asked("by_rank", since=True),
    ):  # fmt: skip
        with pytest.raises(UndeclaredQuery):
            await bench.store.find(query)
        with pytest.raises(UndeclaredQuery):
            await bench.store.count(query)
    for bad in (0, -1, 501, 2**70):
        with pytest.raises(BadRequest):
            await bench.store.find(asked(limit=bad))
    for query in (asked("by_rank", since=2**63), asked(until="\0")):
        with pytest.raises(BadRequest):
            await bench.store.find(query)
    with pytest.raises(BadRequest):
        await bench.store.count(asked(), cap=0)
    with pytest.raises(StoreError, match="stranger"):
        await bench.store.get(STRANGER, "acme", "1")
    with pytest.raises(StoreError, match="not part"):
        await bench.store.get(msgspec.structs.replace(ITEMS, indexes=()), "acme", "1")


@check()
async def results_run_in_order_of_sort_then_id(bench: Bench) -> None:
    ranks = {"a": 3, "b": -1, "c": 3, "d": 0, "e": 2**62, "f": -(2**63), "g": 0}
    await bench.store.commit(*(put(id, rank=rank, team="t") for id, rank in ranks.items()))
    in_order = ["f", "b", "d", "g", "a", "c", "e"]
    for limit in (1, 2, 3, 500):
        assert await ids(bench.store, asked("by_rank", limit=limit)) == in_order
        assert await ids(bench.store, asked("by_rank", limit=limit, descending=True)) == in_order[::-1]
        where = {"org": "acme", "team": "t"}
        assert await ids(bench.store, asked("team_rank", where=where, limit=limit, descending=True)) == in_order[::-1]


@check()
async def one_id_in_many_tenants_keeps_its_place_across(bench: Bench) -> None:
    for org in ("a", "b", "c", "d"):
        await bench.store.commit(put("1", org=org, team="t"), put("2", org=org, team="t"))
    for descending in (False, True):
        seen = []
        query = asked("everywhere", where={"team": "t"}, limit=3, descending=descending)
        while True:
            page = await bench.store.find(query)
            seen += [(record.id, record.org) for record in page.records]
            if not page.cursor:
                break
            query = msgspec.structs.replace(query, cursor=page.cursor)
        assert seen == sorted(seen, reverse=descending)
        assert len(set(seen)) == len(seen) == 8


@check()
async def bounds_include_since_and_leave_out_until(bench: Bench) -> None:
    await bench.store.commit(*(put(f"{n}", rank=n * 10, team="t") for n in range(6)))
    assert await ids(bench.store, asked("by_rank", since=20, until=40)) == ["2", "3"]
    assert await ids(bench.store, asked("by_rank", since=20, until=40, descending=True, limit=1)) == ["3", "2"]
    assert await ids(bench.store, asked("by_rank", since=41)) == ["5"]
    assert await ids(bench.store, asked("by_rank", until=0)) == []
    assert await ids(bench.store, asked("by_rank", since=40, until=20)) == []
    assert await ids(bench.store, asked("by_rank", since=0, until=0)) == []
    assert await ids(bench.store, asked(since="2", until="4", limit=1)) == ["2", "3"]
    assert await ids(bench.store, asked("by_team", where={"org": "acme", "team": "t"}, since="4")) == ["4", "5"]
    assert await bench.store.count(asked("by_rank", since=20, until=40)) == 2


@check()
async def the_last_page_has_no_cursor(bench: Bench) -> None:
    assert (await bench.store.find(asked())).cursor == ""
    await bench.store.commit(*(put(str(n)) for n in range(4)))
    first = await bench.store.find(asked(limit=2))
    assert first.cursor
    second = await bench.store.find(asked(limit=2, cursor=first.cursor))
    assert [record.id for record in second.records] == ["2", "3"]
    assert second.cursor == ""
    assert (await bench.store.find(asked(limit=4))).cursor == ""


@check()
async def a_cursor_is_a_place_and_not_a_number(bench: Bench) -> None:
    await bench.store.commit(*(put(f"{n:02}", rank=n) for n in range(0, 40, 2)))
    for descending in (False, True):
        query = asked("by_rank", limit=5, descending=descending)
        page = await bench.store.find(query)
        seen = [record.id for record in page.records]
        # The record under the cursor goes; others come and go before and behind it.
        await bench.store.commit(
            gone(seen[-1]), gone(seen[0]), put("01", rank=1), put("39", rank=39), put("21", rank=21)
        )
        rest = await ids(bench.store, msgspec.structs.replace(query, cursor=page.cursor))
        behind = [id for id in await ids(bench.store, query) if (id < seen[-1] if descending else id > seen[-1])]
        assert rest == behind
        assert "21" in rest
        await bench.store.commit(
            gone("01"), gone("39"), gone("21"), *(put(id, rank=int(id)) for id in (seen[0], seen[-1]))
        )


@check()
async def a_cursor_belongs_to_one_query(bench: Bench) -> None:
    await bench.store.commit(
        *(put(f"{n}", rank=n, team="t", on=True) for n in range(5)), *(put(f"{n}", org="other") for n in range(5))
    )
    cursor = (await bench.store.find(asked("by_rank", limit=2))).cursor
    assert (await bench.store.find(asked("by_rank", limit=500, cursor=cursor))).records[0].id == "2", (
        "the limit may change"
    )
    for query in (
        asked(cursor=cursor),
        asked("by_rank", cursor=cursor, descending=True),
        asked("by_rank", cursor=cursor, since=0),
        asked("by_rank", cursor=cursor, until=9),
        asked("by_rank", where={"org": "other"}, cursor=cursor),
        asked("chain", LINES, cursor=cursor),
    ):
        with pytest.raises(CursorInvalid):
            await bench.store.find(query)


@check()
async def a_garbled_cursor_is_refused(bench: Bench) -> None:
    await bench.store.commit(*(put(f"{n}", rank=n) for n in range(5)))
    cursor = (await bench.store.find(asked("by_rank", limit=2))).cursor
    rng = random.Random(1)
    garbled = {
        "x",
        "====",
        "!",
        "ä",
        "\0",
        cursor + "=",
        cursor + "A",
        cursor[:-1],
        cursor[1:],
        cursor + "\n",
        " " + cursor,
        "A" * 9000,
    }
    for _ in range(60):
        at = rng.randrange(len(cursor))
        garbled.add(cursor[:at] + rng.choice("ABCabc019-_ .") + cursor[at + 1 :])
    for bad in garbled - {cursor}:
        with pytest.raises(CursorInvalid):
            await bench.store.find(asked("by_rank", limit=2, cursor=bad))


@check()
async def counting_stops_at_its_cap(bench: Bench) -> None:
    await bench.store.append(LINES, [line(f"{n:03}", n, agent="a") for n in range(120)])
    query = asked("by_agent", LINES, where={"org": "acme", "agent": "a"}, limit=10)
    assert await bench.store.count(query) == 120
    assert await bench.store.count(query, cap=100) == 100
    assert await bench.store.count(query, cap=2**70) == 120
    page = await bench.store.find(query)
    after = msgspec.structs.replace(query, cursor=page.cursor, limit=1)
    assert await bench.store.count(after) == 120, "a count is of the query, not of the page"


@check()
async def a_changed_record_moves_between_indexes(bench: Bench) -> None:
    [one] = await bench.store.commit(put("1", team="red", rank=1, name="n"))
    one.team, one.rank, one.name = "blue", 9, "m"
    from agenticmail_enterprise.catalog.store import Replace

    await bench.store.commit(put("2", team="red", rank=5), Replace(ITEMS, one))
    assert await ids(bench.store, asked("by_team", where={"org": "acme", "team": "red"})) == ["2"]
    assert await ids(bench.store, asked("by_team", where={"org": "acme", "team": "blue"})) == ["1"]
    assert await ids(bench.store, asked("by_rank")) == ["2", "1"]
    assert await ids(bench.store, asked("name", where={"org": "acme", "name": "n"})) == []
    await bench.store.commit(gone("1"))
    assert await ids(bench.store, asked("everywhere", where={"team": "blue"})) == []


@check()
async def a_page_of_the_largest_size(bench: Bench) -> None:
    await bench.store.append(LINES, [line(f"{n:04}", n) for n in range(501)])
    page = await bench.store.find(asked("chain", LINES, limit=500, descending=True))
    assert (len(page.records), page.records[0].id, bool(page.cursor)) == (500, "0500", True)
