"""Two backends, one story: whatever is done, memory and SQLite answer the same, errors and cursors included."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agenticmail_enterprise.adapters.stores import sqlite
from agenticmail_enterprise.adapters.stores.memory import MemoryStore
from agenticmail_enterprise.catalog.errors import EnterpriseError
from agenticmail_enterprise.catalog.store import Delete, Increment, Insert, Query, Replace, Store, Write
from agenticmail_enterprise.tests.contract.suite import ITEMS, LINES, MIGRATIONS, Clock, Item, Line
from agenticmail_enterprise.tests.examples import UNSHRUNK

ORGS = st.sampled_from(["acme", "acme", "acme", "Acme"])
IDS = st.sampled_from(["a", "B", "b ", "ä"])
NAMES = st.sampled_from(["", "", "x", "X", "x ", "é"])
WORDS = st.sampled_from(["", "x", "X", "x ", "é"])
RANKS = st.integers(-2, 2)
ITEMS_OF = st.builds(
    Item,
    org=ORGS,
    id=IDS,
    version=st.sampled_from([0, 1, 1, 1, 2, 3]),
    name=NAMES,
    team=WORDS,
    email=st.none() | NAMES,
    rank=RANKS,
    on=st.booleans(),
    note=st.sampled_from(["", "\0"]),
)
LINES_OF = st.builds(Line, org=ORGS, id=IDS, seq=RANKS, agent=WORDS, created_at=st.integers(0, 5))
BOUNDS = st.none() | st.integers(1, 3)
WRITES = st.one_of(
    st.builds(Insert, st.just(ITEMS), ITEMS_OF),
    st.builds(Replace, st.just(ITEMS), ITEMS_OF),
    st.builds(Delete, st.just(ITEMS), ORGS, IDS, st.none() | st.integers(0, 3)),
    st.builds(
        Increment,
        st.just(ITEMS),
        ORGS,
        IDS,
        st.sampled_from(["amount", "rank"]),
        st.integers(-3, 3),
        BOUNDS,
        BOUNDS.map(lambda n: n and -n),
    ),
    st.builds(Insert, st.just(LINES), LINES_OF),
)
WHERE = {
    "name": st.fixed_dictionaries({"org": ORGS, "name": WORDS}),
    "email": st.fixed_dictionaries({"email": WORDS}),
    "by_org": st.fixed_dictionaries({"org": ORGS}),
    "by_team": st.fixed_dictionaries({"org": ORGS, "team": WORDS}),
    "by_rank": st.fixed_dictionaries({"org": ORGS}),
    "team_rank": st.fixed_dictionaries({"org": ORGS, "team": WORDS}),
    "by_on": st.fixed_dictionaries({"org": ORGS, "on": st.booleans()}),
    "everywhere": st.fixed_dictionaries({"team": WORDS}),
}


@st.composite
def queries(draw: st.DrawFn) -> Query:
    name = draw(st.sampled_from([*sorted(WHERE), "by_org", "by_rank", "by_on", "by_rank"]))
    bound = st.sampled_from([None, None, None, -1, 0, 2] if "rank" in name else [None, None, None, "B", "a", "b "])
    return Query(
        ITEMS,
        name,
        draw(WHERE[name]),
        limit=draw(st.integers(1, 4)),
        descending=draw(st.booleans()),
        since=draw(bound),
        until=draw(bound),
    )


async def _answer(work: Awaitable[Any]) -> Any:
    try:
        return await work
    except EnterpriseError as error:
        return type(error), error.message, getattr(error, "index", "")


class Pair(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.loop = asyncio.new_event_loop()
        self.stores: list[Store] = [
            MemoryStore(migrations=MIGRATIONS, clock=self.clock),
            sqlite.create("sqlite://", migrations=MIGRATIONS, clock=self.clock),
        ]
        for store in self.stores:
            self.loop.run_until_complete(store.open())
            self.loop.run_until_complete(store.migrate())

    def teardown(self) -> None:
        for store in self.stores:
            self.loop.run_until_complete(store.close())
        self.loop.close()

    def both(self, method: str, *arguments: Any, **options: Any) -> Any:
        self.clock.now += 1
        memory, other = (
            self.loop.run_until_complete(_answer(getattr(store, method)(*arguments, **options)))
            for store in self.stores
        )
        assert memory == other
        return memory

    @rule(writes=st.lists(WRITES, min_size=1, max_size=4))
    def commit(self, writes: list[Write]) -> None:
        self.both("commit", *writes)

    @initialize(org=ORGS, ranks=st.lists(RANKS, min_size=4, max_size=9), team=WORDS)
    def some_are_there(self, org: str, ranks: list[int], team: str) -> None:
        """Without these most pages would be the last, and most versions absent."""
        ids = ["a", "B", "b ", "ä", *"0123456789"]
        items = [Item(org=org, id=id, rank=rank, team=team) for id, rank in zip(ids, ranks, strict=False)]
        self.both("commit", *(Insert(ITEMS, item) for item in items))

    @rule(write=WRITES)
    def commit_one(self, write: Write) -> None:
        self.both("commit", write)

    @rule(org=ORGS, id=IDS, name=WORDS, email=st.none() | WORDS, team=WORDS)
    def change(self, org: str, id: str, name: str, email: str | None, team: str) -> None:
        found = self.both("get", ITEMS, org, id)
        if found is not None:
            self.both("commit", Replace(ITEMS, msgspec.structs.replace(found, name=name, email=email, team=team)))

    @rule(lines=st.lists(LINES_OF, max_size=5), guards=st.lists(WRITES, max_size=2))
    def append(self, lines: list[Line], guards: list[Write]) -> None:
        self.both("append", LINES, lines, *guards)

    @rule(org=ORGS, before=st.integers(0, 6), limit=st.integers(1, 3))
    def prune(self, org: str, before: int, limit: int) -> None:
        self.both("prune", LINES, org, before, limit=limit)

    @rule(query=queries(), writes=st.lists(WRITES, max_size=2))
    def read_through(self, query: Query, writes: list[Write]) -> None:
        self.both("count", query, cap=3)
        for _ in range(20):
            page = self.both("find", query)
            assert len(page.records) <= query.limit
            if not page.cursor:
                break
            query = msgspec.structs.replace(query, cursor=page.cursor)
            if writes:
                self.both("commit", writes.pop())

    @invariant()
    def the_same_is_stored(self) -> None:
        for org in ("acme", "Acme"):
            self.both("find", Query(ITEMS, "by_org", {"org": org}, limit=500))
            self.both("find", Query(LINES, "chain", {"org": org}, limit=500))


Pair.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=UNSHRUNK,
)
TestMemoryAndSqlite = Pair.TestCase
