"""What a write promises: one winner, all or nothing, counters that cannot pass their bounds."""

from __future__ import annotations

import asyncio

import pytest

from agenticmail_enterprise.catalog.errors import (
    Conflict,
    LimitReached,
    RecordTooLarge,
    Stale,
    StoreError,
    ValidationFailed,
)
from agenticmail_enterprise.catalog.store import Delete, Increment, Insert
from agenticmail_enterprise.tests.contract.suite import (
    HEADS,
    ITEMS,
    LINES,
    Bench,
    Head,
    Item,
    add,
    asked,
    check,
    gone,
    ids,
    item,
    line,
    over,
    put,
)

ODD_IDS = [
    "A",
    "B",
    "a",
    "b",
    "a ",
    "a  ",
    " a",
    "ä",
    "a\u0308",
    "Ä",
    "ß",
    "z",
    "😀",
    "\U0010ffff",
    "\uffff",
    "%",
    "_",
    "'",
    '"',
    "\\",
]


@check()
async def an_insert_returns_what_a_get_returns(bench: Bench) -> None:
    given = item("1", name="One", tags={"k": "v"}, on=True, rank=-5)
    [stored] = await bench.store.commit(Insert(ITEMS, given))
    assert (stored.version, stored.created_at, stored.updated_at) == (1, bench.clock.now, bench.clock.now)
    assert given.version == given.created_at == 0, "the caller's record is not the store's to change"
    assert stored == await bench.store.get(ITEMS, "acme", "1")
    assert type(stored) is Item


@check()
async def copies_go_in_and_come_out(bench: Bench) -> None:
    given = item("1", name="One", tags={"k": "v"})
    [stored] = await bench.store.commit(Insert(ITEMS, given))
    given.tags["k"] = stored.tags["k"] = "changed"
    first = await bench.store.get(ITEMS, "acme", "1")
    first.tags["k"] = "changed"
    first.name = "changed"
    again = await bench.store.get(ITEMS, "acme", "1")
    assert again.tags == {"k": "v"}
    assert again.name == "One"


@check()
async def times_are_set_by_the_store(bench: Bench) -> None:
    [stored] = await bench.store.commit(put("1", created_at=5))
    assert stored.created_at == 5
    bench.clock.now += 1000
    [changed] = await bench.store.commit(over(stored, note="x"))
    assert (changed.created_at, changed.updated_at, changed.version) == (5, bench.clock.now, 2)
    bench.clock.now += 1000
    await bench.store.commit(add("1"))
    after = await bench.store.get(ITEMS, "acme", "1")
    assert (after.created_at, after.updated_at, after.version) == (5, bench.clock.now, 2)


@check()
async def a_taken_id_is_a_conflict_on_id(bench: Bench) -> None:
    await bench.store.commit(put("1", name="One"))
    with pytest.raises(Conflict) as caught:
        await bench.store.commit(put("1", name="One"))
    assert caught.value.index == "id", "the id is named before the unique indexes that are taken too"
    assert len(await bench.store.commit(put("1", org="other", name="One"))) == 1


@check()
async def a_taken_unique_key_names_its_index(bench: Bench) -> None:
    await bench.store.commit(put("1", name="One", email="a@x"), put("2", name="Two"))
    for write, index in (
        (put("3", name="One"), "name"),
        (put("3", name="Three", email="a@x"), "email"),
        (put("3", name="One", email="a@x"), "name"),
        (put("3", org="other", name="One", email="a@x"), "email"),
    ):
        with pytest.raises(Conflict) as caught:
            await bench.store.commit(write)
        assert caught.value.index == index
    two = await bench.store.get(ITEMS, "acme", "2")
    with pytest.raises(Conflict) as caught:
        await bench.store.commit(over(two, name="One"))
    assert caught.value.index == "name"
    assert (await bench.store.get(ITEMS, "acme", "2")).name == "Two"
    await bench.store.commit(over(two, name="one"))


@check()
async def empty_and_absent_values_are_in_no_unique_index(bench: Bench) -> None:
    await bench.store.commit(
        *(put(str(n), name="", email=None) for n in range(3)), put("3", email=""), put("4", email="")
    )
    assert len(await ids(bench.store, asked())) == 5
    assert await ids(bench.store, asked("name", where={"org": "acme", "name": ""})) == []
    assert await ids(bench.store, asked("email", where={"email": ""})) == []
    assert await bench.store.count(asked("name", where={"org": "acme", "name": ""})) == 0


@check()
async def a_unique_key_is_free_again_after_delete_and_rename(bench: Bench) -> None:
    [one] = await bench.store.commit(put("1", name="One"))
    await bench.store.commit(over(one, name="Uno"))
    await bench.store.commit(put("2", name="One"))
    await bench.store.commit(gone("2"), put("3", name="One"))
    assert await ids(bench.store, asked("name", where={"org": "acme", "name": "One"})) == ["3"]


@check()
async def each_write_sees_those_before_it(bench: Bench) -> None:
    await bench.store.commit(put("1", name="One"))
    with pytest.raises(Conflict):
        await bench.store.commit(put("2", name="One"), gone("1"))
    with pytest.raises(Conflict) as caught:
        await bench.store.commit(put("2", name="Two"), put("3", name="Two"))
    assert caught.value.index == "name"
    assert await ids(bench.store, asked()) == ["1"]


@check()
async def a_stale_version_is_refused(bench: Bench) -> None:
    [one] = await bench.store.commit(put("1", name="One"))
    await bench.store.commit(over(one, note="new"))
    for write in (
        over(one, note="old"), over(one, version=3), over(one, version=0), over(one, version=-1),
        over(one, version=2**70), over(item("2"), version=1), gone("1", 1), gone("1", 2**70), gone("1", 0), gone("2"),
        gone("1", org="other"),
    ):  # fmt: skip
        with pytest.raises(Stale):
            await bench.store.commit(write)
    assert (await bench.store.get(ITEMS, "acme", "1")).note == "new"
    assert await bench.store.commit(gone("1", 2)) == [None]
    assert await bench.store.get(ITEMS, "acme", "1") is None


@check()
async def a_stale_replace_says_so_before_a_taken_key(bench: Bench) -> None:
    one, _ = await bench.store.commit(put("1", name="One"), put("2", name="Two"))
    with pytest.raises(Stale):
        await bench.store.commit(over(one, version=7, name="Two"))


@check()
async def a_batch_is_all_or_nothing_and_the_first_failure_decides(bench: Bench) -> None:
    [one] = await bench.store.commit(put("1", name="One", amount=5))
    good = [put("2", name="Two"), over(one, name="Uno"), add("3", 7), Increment(HEADS, "acme", "h", "seq")]
    failures = [
        (put("9", name="Two"), Conflict),
        (gone("8"), Stale),
        (add("4", 5, ceiling=4), LimitReached),
        (over(item("7"), version=1), Stale),
    ]
    for write, kind in failures:
        for other, _ in failures:
            if other is not write:
                with pytest.raises(kind):
                    await bench.store.commit(*good, write, other)
    assert [record.name for record in (await bench.store.find(asked())).records] == ["One"]
    assert await bench.store.get(HEADS, "acme", "h") is None
    results = await bench.store.commit(*good)
    assert (results[0].version, results[1].version, results[2], results[3]) == (1, 2, 7, 1)


@check()
async def a_batch_has_its_limits(bench: Bench) -> None:
    assert await bench.store.commit() == []
    assert len(await bench.store.commit(*(put(f"{n:03}") for n in range(100)))) == 100
    with pytest.raises(StoreError, match="at most 100"):
        await bench.store.commit(*(put(f"x{n:03}") for n in range(101)))
    for twice in ((put("y"), put("y")), (add("y"), gone("y")), (add("y"), add("y"))):
        with pytest.raises(StoreError, match="once"):
            await bench.store.commit(*twice)
    assert await bench.store.count(asked()) == 100
    assert len(await bench.store.commit(put("y"), put("y", org="other"), Insert(HEADS, Head(org="acme", id="y")))) == 3


@check()
async def an_increment_makes_what_is_absent(bench: Bench) -> None:
    assert await bench.store.commit(add("1", 3)) == [3]
    made = await bench.store.get(ITEMS, "acme", "1")
    assert made == item("1", amount=3, version=1, created_at=bench.clock.now, updated_at=bench.clock.now)
    assert await bench.store.commit(add("1", -5), add("2", 0)) == [-2, 0]
    [changed] = await bench.store.commit(over(made, note="x", amount=40))
    assert (await bench.store.commit(add("1", 2)), changed.version) == ([42], 2)


@check()
async def a_counter_stops_at_its_bounds(bench: Bench) -> None:
    assert await bench.store.commit(add("1", 5, ceiling=5)) == [5]
    for write in (add("1", 1, ceiling=5), add("1", -6, floor=0), add("new", 6, ceiling=5), add("new", -1, floor=0)):
        with pytest.raises(LimitReached):
            await bench.store.commit(write)
    assert await bench.store.get(ITEMS, "acme", "new") is None
    assert await bench.store.commit(add("1", -5, ceiling=-9, floor=0)) == [0], "a ceiling bounds only what rises"
    assert await bench.store.commit(add("1", 9, floor=99)) == [9], "a floor bounds only what falls"
    with pytest.raises(LimitReached):
        await bench.store.commit(add("1", 2**63 - 1))
    assert await bench.store.commit(add("1", 2**63 - 10)) == [2**63 - 1]


@check()
async def fifty_writers_share_a_counter(bench: Bench) -> None:
    async def one(by: int, **bounds: int) -> int:
        try:
            await bench.store.commit(add("c", by, **bounds))
        except LimitReached:
            return 0
        return 1

    rose = await asyncio.gather(*(one(3, ceiling=100) for _ in range(50)))
    assert sum(rose) == 33
    assert (await bench.store.get(ITEMS, "acme", "c")).amount == 99
    fell = await asyncio.gather(*(one(-2, floor=0) for _ in range(60)))
    assert sum(fell) == 49
    assert (await bench.store.get(ITEMS, "acme", "c")).amount == 1


@check()
async def an_indexed_counter_moves_in_its_index(bench: Bench) -> None:
    await bench.store.commit(put("1", rank=1), put("2", rank=2))
    assert await bench.store.commit(Increment(ITEMS, "acme", "1", "rank", 5)) == [6]
    assert await ids(bench.store, asked("by_rank")) == ["2", "1"]


@check()
async def only_integers_of_their_own_are_counters(bench: Bench) -> None:
    for field in ("name", "on", "version", "created_at", "org", "tags", "nope", "email"):
        with pytest.raises(StoreError, match="counter"):
            await bench.store.commit(Increment(ITEMS, "acme", "1", field))
    with pytest.raises(StoreError, match="append-only"):
        await bench.store.commit(Increment(LINES, "acme", "1", "seq"))
    assert await bench.store.get(ITEMS, "acme", "1") is None


@check()
async def one_claim_wins(bench: Bench) -> None:
    [job] = await bench.store.commit(put("job"))
    answers = await asyncio.gather(
        *(bench.store.commit(over(job, note=str(n))) for n in range(20)), return_exceptions=True
    )
    won = [answer[0] for answer in answers if isinstance(answer, list)]
    assert len(won) == 1
    assert all(isinstance(answer, Stale) for answer in answers if not isinstance(answer, list))
    assert await bench.store.get(ITEMS, "acme", "job") == won[0]


@check()
async def one_insert_wins(bench: Bench) -> None:
    answers = await asyncio.gather(
        *(bench.store.commit(put(str(n), name="same")) for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(answer, list) for answer in answers) == 1
    assert all(answer.index == "name" for answer in answers if isinstance(answer, Conflict))
    assert sum(isinstance(answer, Conflict) for answer in answers) == 19


@check()
async def many_commits_at_once_all_arrive(bench: Bench) -> None:
    await asyncio.gather(*(bench.store.commit(put(f"{n:03}", rank=n), add("sum", n)) for n in range(200)))
    assert len(await ids(bench.store, asked("by_rank", limit=70))) == 201
    assert (await bench.store.get(ITEMS, "acme", "sum")).amount == 19900


@check()
async def ids_are_compared_by_bytes(bench: Bench) -> None:
    await bench.store.commit(*(put(odd, name=odd, team=odd, note=odd) for odd in ODD_IDS))
    in_order = sorted(ODD_IDS, key=str.encode)
    assert await ids(bench.store, asked(limit=3)) == in_order
    assert await ids(bench.store, asked(limit=3, descending=True)) == in_order[::-1]
    for odd in ODD_IDS:
        assert (await bench.store.get(ITEMS, "acme", odd)).note == odd
        assert await ids(bench.store, asked("name", where={"org": "acme", "name": odd})) == [odd]
        assert await ids(bench.store, asked("by_team", where={"org": "acme", "team": odd})) == [odd]
    assert await bench.store.get(ITEMS, "ACME", "A") is None
    assert await bench.store.get(ITEMS, "acme ", "A") is None


@check()
async def bodies_hold_any_text_and_keys_no_nul(bench: Bench) -> None:
    text = "\0 \x1f \u2028 ' \" \\ 😀 \U0010ffff" + "\0"
    await bench.store.commit(put("1", note=text, tags={text: text}))
    found = await bench.store.get(ITEMS, "acme", "1")
    assert (found.note, found.tags) == (text, {text: text})
    for bad in ("\0", "a\0", "\ud800", "x" * 1025, "ä" * 513):
        for write in (put(bad), put("2", org=bad), put("2", name=bad), put("2", email=bad), add(bad), gone(bad)):
            with pytest.raises(ValidationFailed) as caught:
                await bench.store.commit(write)
            assert caught.value.details["fields"][0]["path"] in {"/id", "/org", "/name", "/email", ""}
        with pytest.raises(ValidationFailed):
            await bench.store.append(LINES, [line(bad)])
        assert await bench.store.get(ITEMS, "acme", bad) is None
        assert await bench.store.get(ITEMS, bad, "1") is None
        assert (await bench.store.find(asked("by_team", where={"org": "acme", "team": bad}))).records == []
    with pytest.raises(ValidationFailed):
        await bench.store.commit(put("2", note="\ud800"))
    long = "ä" * 512
    await bench.store.commit(put(long, name=long))
    assert await ids(bench.store, asked("name", where={"org": "acme", "name": long})) == [long]


@check()
async def what_could_not_be_read_again_is_not_stored(bench: Bench) -> None:
    for fields, path in (
        ({"rank": "1"}, "/rank"),
        ({"kind": "no"}, "/kind"),
        ({"tags": {"a": 1}}, "/tags"),
        ({"rank": 2**63}, "/rank"),
    ):
        with pytest.raises(ValidationFailed) as caught:
            await bench.store.commit(put("1", **fields))
        assert caught.value.details["fields"][0]["path"].startswith(path)
    for id, org in (("", "acme"), ("1", "")):
        with pytest.raises(ValidationFailed):
            await bench.store.commit(put(id, org))
    with pytest.raises(StoreError, match="holds Item"):
        await bench.store.commit(Insert(ITEMS, Head(org="acme", id="1")))
    assert await bench.store.count(asked()) == 0


@check()
async def large_records_up_to_the_limit(bench: Bench) -> None:
    large = "x" * min(400 * 1024, bench.backend.max_bytes - 1000)
    await bench.store.commit(put("1", note=large))
    assert (await bench.store.get(ITEMS, "acme", "1")).note == large
    too_large = "x" * bench.backend.max_bytes
    [small] = await bench.store.commit(put("2"))
    for write in (put("3", note=too_large), over(small, note=too_large)):
        with pytest.raises(RecordTooLarge):
            await bench.store.commit(put("4"), write)
    with pytest.raises(RecordTooLarge):
        await bench.store.append(LINES, [line("1", text="ok"), line("2", text=too_large)])
    assert await ids(bench.store, asked()) == ["1", "2"]


@check()
async def tenants_do_not_meet(bench: Bench) -> None:
    await bench.store.commit(
        put("1", name="One", team="t"), put("1", org="other", name="One", team="t"), put("2", org="other")
    )
    await bench.store.commit(gone("1", org="other"), add("2", 5, org="other"))
    mine = await bench.store.get(ITEMS, "acme", "1")
    assert mine.name == "One"
    assert await bench.store.get(ITEMS, "acme", "2") is None
    assert await ids(bench.store, asked("by_team", where={"org": "other", "team": "t"})) == []
    with pytest.raises(Stale):
        await bench.store.commit(over(mine, org="other"))
    with pytest.raises(Stale):
        await bench.store.commit(Delete(ITEMS, "acme", "2"))
    assert (await bench.store.get(ITEMS, "other", "2")).amount == 5
