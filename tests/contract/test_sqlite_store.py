"""What is SQLite's own: the file, its rights and faults, other processes, plans of queries."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from agenticmail_enterprise.adapters.stores import sqlite
from agenticmail_enterprise.adapters.stores.checks import plan
from agenticmail_enterprise.adapters.stores.schema import Schema
from agenticmail_enterprise.adapters.stores.sql import Table
from agenticmail_enterprise.adapters.stores.sqlstore import SqlStore
from agenticmail_enterprise.catalog.errors import Conflict, SettingsError, StoreError, StoreUnavailable
from agenticmail_enterprise.catalog.records import MIGRATIONS as RELEASED
from agenticmail_enterprise.catalog.store import Query
from agenticmail_enterprise.tests.contract.sqlite_child import ROWS
from agenticmail_enterprise.tests.contract.suite import HEADS, ITEMS, LINES, MIGRATIONS, add, asked, ids, line, put

CHILD = [sys.executable, "-m", "agenticmail_enterprise.tests.contract.sqlite_child"]


@asynccontextmanager
async def opened(url: str, *, migrate: bool = True) -> AsyncIterator[SqlStore]:
    store = sqlite.create(url, migrations=MIGRATIONS)
    try:
        await store.open()
        if migrate:
            await store.migrate()
        yield store
    finally:
        await store.close()


def on_writer(store: SqlStore, sql: str) -> object:
    """Run a PRAGMA on the writing connection."""
    driver = store.driver
    assert isinstance(driver, sqlite.SqliteDriver)
    assert driver.writer
    return driver.writer.run(driver.writer._fetch_on_thread, sql, ())


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read and write whatever the mode says; put that aside."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# -- urls --------------------------------------------------------------------------------------------------------
def test_urls_name_a_file_or_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert sqlite.parse("sqlite:///gw.db").path == str(tmp_path / "gw.db")
    assert sqlite.parse("sqlite:////var/lib/gw.db").path == "/var/lib/gw.db"
    assert sqlite.parse("sqlite:////a%20b/%3F.db").path == "/a b/?.db"
    assert sqlite.parse("sqlite://").path == sqlite.parse("sqlite:///:memory:").path == ""
    options = sqlite.parse("sqlite:///a.db?synchronous=full&busy_timeout=250&readers=3")
    assert (options.synchronous, options.busy_timeout, options.readers) == ("full", 250, 3)
    assert sqlite.parse("sqlite:///a.db").synchronous == "normal"


@pytest.mark.parametrize(
    "url",
    ["sqlite://host/a.db", "sqlite:///", "sqlite:///a.db?sync=full", "sqlite:///a.db?synchronous=off", "mysql:///a.db",
     "sqlite:///a.db?readers=0", "sqlite:///a.db?busy_timeout=x", "sqlite:///a.db?path=/etc/x", "sqlite:///a.db#x",
     "sqlite:///a%00.db", ""],
)  # fmt: skip
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        sqlite.create(url)


async def test_the_url_sets_the_pragmas(tmp_path: Path) -> None:
    for name, number in (("normal", 1), ("full", 2), ("extra", 3)):
        async with opened(f"sqlite:///{tmp_path}/{name}.db?synchronous={name}") as store:
            assert await on_writer(store, "PRAGMA synchronous") == [(number,)]
            assert await on_writer(store, "PRAGMA journal_mode") == [("wal",)]


# -- the file ----------------------------------------------------------------------------------------------------
async def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with opened(f"sqlite:///{tmp_path}/a.db") as store:
            await store.commit(put("1"))
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"a.db": 0o600, "a.db-wal": 0o600, "a.db-shm": 0o600}


async def test_the_mode_of_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.touch()
    path.chmod(0o640)
    async with opened(f"sqlite:///{path}") as store:
        await store.commit(put("1"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["missing/a.db", ".", "file/a.db"])
async def test_a_place_that_cannot_hold_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    store = sqlite.create(f"sqlite:///{tmp_path}/{name}")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=str(tmp_path)):
            await store.open()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    await store.close()


async def test_it_opens_once_the_place_is_there(tmp_path: Path) -> None:
    store = sqlite.create(f"sqlite:///{tmp_path}/later/a.db", migrations=MIGRATIONS)
    with pytest.raises(StoreUnavailable):
        await store.open()
    (tmp_path / "later").mkdir()
    await store.open()
    assert await store.migrate() == [1]
    await store.close()


async def test_a_file_without_write_permission() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "a.db"
        async with opened(f"sqlite:///{path}") as store:
            await store.commit(put("1"))
        path.chmod(0o444)
        folder.chmod(0o555)
        with as_nobody(), pytest.raises(StoreUnavailable, match=r"a\.db"):
            async with opened(f"sqlite:///{path}") as store:
                await store.commit(put("2"))
        async with opened(f"sqlite:///{path}", migrate=False) as store:
            assert await ids(store, asked()) == ["1"]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


async def test_a_file_that_turns_read_only(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/a.db") as store:
        await store.commit(put("1"))
        await on_writer(store, "PRAGMA query_only = ON")
        with pytest.raises(StoreUnavailable, match="read-only"):
            await store.commit(put("2"))
        assert await ids(store, asked()) == ["1"]
        await on_writer(store, "PRAGMA query_only = OFF")
        await store.commit(put("2"))


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"this is a letter and no database\n" * 1000)
    with pytest.raises(StoreError, match="no SQLite database"):
        async with opened(f"sqlite:///{tmp_path}/a.db"):
            raise AssertionError("it opened")
    assert (tmp_path / "a.db").read_bytes().startswith(b"this is a letter")


async def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(f"sqlite:///{path}") as store:
        await store.append(LINES, [line(f"{n:04}", n, text="x" * 500) for n in range(2000)])
    size = path.stat().st_size
    with path.open("r+b") as file:
        for page in range(8, size // 8192):
            file.seek(page * 8192)
            file.write(b"\xee" * 200)
    async with opened(f"sqlite:///{path}", migrate=False) as store:
        with pytest.raises(StoreError, match="damaged"):
            await ids(store, asked("chain", LINES, limit=500))


async def test_a_full_disk_loses_nothing_that_was_there(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/a.db") as store:
        await store.commit(put("1"))
        await on_writer(store, "PRAGMA max_page_count = 30")
        with pytest.raises(StoreUnavailable, match="full"):
            await store.append(LINES, [line(str(n), text="x" * 1000) for n in range(2000)], add("mark"))
        assert await store.count(asked("by_org", LINES)) == 0
        assert await ids(store, asked()) == ["1"]
        await on_writer(store, "PRAGMA max_page_count = 1000000")
        await store.append(LINES, [line(str(n), text="x" * 1000) for n in range(2000)], add("mark"))
        assert await ids(store, asked()) == ["1", "mark"]


async def test_a_file_that_was_replaced_is_not_healthy(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(f"sqlite:///{path}") as store:
        await store.ping()
        path.rename(tmp_path / "b.db")
        with pytest.raises(StoreUnavailable, match=r"a\.db"):
            await store.ping()
        path.touch()
        with pytest.raises(StoreUnavailable, match="replaced"):
            await store.ping()


def test_every_error_of_the_driver_is_one_of_ours() -> None:
    for error in (
        sqlite3.OperationalError("x"),
        sqlite3.InterfaceError("x"),
        sqlite3.DatabaseError("x"),
        sqlite3.Warning("x"),
    ):
        if isinstance(error, sqlite3.Error):
            assert type(sqlite.translate(error, "p")) is StoreError
    wide = sqlite3.OperationalError("disk I/O error")
    wide.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    assert type(sqlite.translate(wide, "p")) is StoreUnavailable


# -- others on the same file -------------------------------------------------------------------------------------
async def test_a_locked_file_is_waited_for_and_then_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(f"sqlite:///{path}?busy_timeout=60") as store:
        await store.commit(put("1"))
        other = sqlite3.connect(path, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked"):
                await store.commit(put("2"))
            assert await ids(store, asked()) == ["1"], "readers do not wait for a writer"
            await store.ping()
            other.execute("ROLLBACK")
        finally:
            other.close()
        await store.commit(put("2"))
        assert await ids(store, asked()) == ["1", "2"]


async def test_only_a_busy_file_is_tried_again(tmp_path: Path) -> None:
    connection = sqlite.Connection(sqlite.parse(f"sqlite:///{tmp_path}/a.db"))
    tries = []

    def broken() -> None:
        tries.append(1)
        error = sqlite3.OperationalError("x")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY_RECOVERY if len(tries) < 3 else sqlite3.SQLITE_IOERR
        raise error

    with pytest.raises(StoreUnavailable, match="read or written"):
        await connection.run(connection._waiting, broken)
    assert len(tries) == 3
    await connection.close()


async def test_a_lock_that_ends_in_time_is_not_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(f"sqlite:///{path}") as store:
        other = sqlite3.connect(path, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            work = asyncio.ensure_future(store.commit(put("1")))
            await asyncio.sleep(0.05)
            assert not work.done()
            other.execute("ROLLBACK")
            assert (await work)[0].version == 1
        finally:
            other.close()


async def test_two_processes_share_a_counter(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db?busy_timeout=30000"
    children = [
        await asyncio.create_subprocess_exec(*CHILD, "count", url, "150", stdout=subprocess.PIPE) for _ in range(2)
    ]
    done = [int((await child.communicate())[0]) for child in children]
    assert sum(done) == 250
    async with opened(url) as store:
        assert (await store.get(ITEMS, "acme", "sum")).amount == 250


async def test_kill_in_mid_commit_leaves_all_or_nothing(tmp_path: Path) -> None:
    url, rng = f"sqlite:///{tmp_path}/a.db", random.Random()
    said: list[int] = []
    for round_ in range(1, 6):
        child = await asyncio.create_subprocess_exec(*CHILD, "write", url, str(round_ * 1000), stdout=subprocess.PIPE)
        assert child.stdout
        assert await child.stdout.readline() == b"ready\n"
        if round_ == 1:
            said.append(int(await child.stdout.readline()))  # however slow it is, it was at work
        await asyncio.sleep(rng.random() * 0.3)
        child.send_signal(signal.SIGKILL)
        said += map(int, (await child.communicate())[0].split())
        async with opened(url) as store:
            await _whole(store, said)
    assert said, "it was killed at work and not before"


async def _whole(store: SqlStore, said: list[int]) -> None:
    found = await ids(store, asked(limit=500))
    pairs = {id[1:] for id in found if id[0] == "a"}
    assert pairs == {id[1:] for id in found if id[0] == "b"}
    counter = await store.get(ITEMS, "acme", "sum")
    assert (counter.amount if counter else 0) == len(pairs)
    assert {str(number) for number in said} <= pairs, "what was reported as done is there"
    rows: dict[str, int] = {}
    for id in await ids(store, asked("by_org", LINES, limit=500)):
        rows[id[:6]] = rows.get(id[:6], 0) + 1
    assert set(rows.values()) <= {ROWS}
    assert {f"{number:06}" for number in said} <= rows.keys()
    head = await store.get(HEADS, "acme", "calls")
    assert head.seq == max(map(int, rows), default=0), "rows and the head that vouches for them come together"


# -- the loop, the planner ---------------------------------------------------------------------------------------
async def test_the_loop_is_never_blocked(tmp_path: Path) -> None:
    with blockbuster_ctx():
        async with opened(f"sqlite:///{tmp_path}/a.db") as store:
            await store.commit(put("1", name="One"))
            with pytest.raises(Conflict):
                await store.commit(put("2", name="One"))
            await store.append(LINES, [line(str(n)) for n in range(300)], add("x"))
            assert await store.get(ITEMS, "acme", "1")
            assert await store.count(asked("by_org", LINES)) == 300
            assert await store.prune(LINES, "acme", 2**60) == 300
            await store.ping()


async def test_no_process_hangs_on_a_store_left_open(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from agenticmail_enterprise.adapters.stores import sqlite\n"
        "async def main():\n"
        "    store = sqlite.create(sys.argv[1]); await store.open(); await store.migrate(); sys.exit(7)\n"
        "asyncio.run(main())"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, f"sqlite:///{tmp_path}/a.db")
    assert await asyncio.wait_for(child.wait(), 60) == 7


@pytest.mark.parametrize("migrations", [RELEASED, MIGRATIONS], ids=["released", "suite"])
async def test_every_declared_query_runs_on_its_index(tmp_path: Path, migrations: object) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    store = sqlite.create(url, migrations=migrations)  # type: ignore[arg-type]
    await store.open()
    await store.migrate()
    await store.close()
    schema = Schema(migrations)  # type: ignore[arg-type]
    db = sqlite3.connect(tmp_path / "a.db")
    seen = 0
    for shape in schema.shapes.values():
        table = Table(shape, sqlite.SqliteDialect())
        for index in shape.entity.indexes:
            where = {name: {str: "x", int: 1, bool: True}[shape.kinds[name]] for name in index.fields}
            for descending in (False, True):
                query = Query(shape.entity, index.name, where, descending=descending)
                for what in ("rows", "count"):
                    sql, parameters = table.select(plan(schema, query), 10, what)
                    steps = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
                    assert not any("TEMP B-TREE" in step for step in steps), (index, steps)
                    assert any(f"SEARCH {shape.name} USING" in step and "INDEX" in step for step in steps), (
                        index,
                        steps,
                    )
                    seen += 1
    db.close()
    assert seen >= 32
