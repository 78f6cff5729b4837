"""SQLite: one file, or memory. The store of a gateway on one machine, shared by its workers.

URLs: `sqlite:///relative.db`, `sqlite:////absolute/path.db`, `sqlite://` (in memory, gone at `close`). Parameters:
`synchronous=normal|full|extra` (normal: a power cut may lose the last commits, a killed process loses none; the file is
consistent either way), `busy_timeout` (ms to wait for other writers, then StoreUnavailable), `readers` (connections).

One connection writes and `readers` read, each on a thread of its own, one thread hop a call: a transaction is one
function on the writer's thread, so that neither a cancelled task nor another coroutine can come between its statements.
For that reason this stands on the standard library and not on aiosqlite, which hops once a statement and whose threads
keep a process from exiting when a connection was left open.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from ...catalog.errors import SettingsError, StoreError, StoreUnavailable
from ...catalog.records import MIGRATIONS, Migration
from .checks import MAX_RECORD_BYTES
from .codec import Clock, now_ms
from .programs import Answer, Duplicate, Program, drive
from .sql import Dialect, Statement
from .sqlstore import SqlStore

T = TypeVar("T")


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a URL says. `path` "": in memory. `busy_timeout` in milliseconds."""

    path: str = ""
    synchronous: Literal["normal", "full", "extra"] = "normal"
    busy_timeout: Annotated[int, msgspec.Meta(ge=0, le=600_000)] = 5_000
    readers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2


class SqliteDialect(Dialect):
    integer: ClassVar[str] = "INTEGER"
    body: ClassVar[str] = "BLOB"
    #: A constraint that can stop a statement of many rows half way makes SQLite keep a second journal for it, in a
    #: temporary file: about a quarter of what an append costs. `Shape.row` sees to it that nothing is missing.
    required: ClassVar[str] = ""
    #: The transaction has the database's only write lock from its beginning.
    locking: ClassVar[str] = ""


def create(url: str, *, migrations: Sequence[Migration] = MIGRATIONS, clock: Clock = now_ms) -> SqlStore:
    """A store for a URL; nothing is opened yet. SettingsError for a URL of another form."""
    return SqlStore(
        SqliteDriver(parse(url)), SqliteDialect(), migrations=migrations, clock=clock, max_bytes=MAX_RECORD_BYTES
    )


def parse(url: str) -> Options:
    """SettingsError for a host, an unknown parameter or a value out of range."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.scheme != "sqlite" or parts.netloc or parts.fragment or path == "/" or "\0" in path:
        raise SettingsError(
            f"{url!r} is no SQLite URL: sqlite:///relative.db, sqlite:////absolute/path.db or sqlite://."
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "path" in given:
        raise SettingsError(f"{url!r}: unknown parameter 'path'.")
    path = "" if path in ("", "/:memory:") else str(Path(path[1:]).absolute())
    try:
        return msgspec.convert({"path": path, **given}, Options, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{url!r}: {error}") from error


# -- errors ------------------------------------------------------------------------------------------------------
_UNIQUE: Final = (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
_WAIT: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_MEANING: Final[dict[int, tuple[type[StoreError], str]]] = {
    sqlite3.SQLITE_BUSY: (StoreUnavailable, "is locked by another process"),
    sqlite3.SQLITE_LOCKED: (StoreUnavailable, "is locked"),
    sqlite3.SQLITE_CANTOPEN: (StoreUnavailable, "cannot be opened"),
    sqlite3.SQLITE_PERM: (StoreUnavailable, "may not be opened"),
    sqlite3.SQLITE_READONLY: (StoreUnavailable, "is read-only"),
    sqlite3.SQLITE_FULL: (StoreUnavailable, "has no room: the disk is full"),
    sqlite3.SQLITE_IOERR: (StoreUnavailable, "cannot be read or written"),
    sqlite3.SQLITE_NOMEM: (StoreUnavailable, "has no memory"),
    sqlite3.SQLITE_CORRUPT: (StoreError, "is damaged"),
    sqlite3.SQLITE_NOTADB: (StoreError, "is no SQLite database, or is damaged"),
}
_OUTDATED: Final = ("no such table", "no such column", "has no column")


def translate(error: sqlite3.Error, path: str) -> StoreError:
    """A driver's error as one of ours, naming the file."""
    where = path or "in memory"
    code = _code(error) & 0xFF
    if code in _MEANING:
        kind, sentence = _MEANING[code]
        return kind(f"The database {where} {sentence} ({error}).", path=path)
    if any(text in str(error) for text in _OUTDATED):
        return StoreError(f"The database {where} lacks a migration ({error}).", path=path)
    return StoreError(f"The database {where} refused: {error}.", path=path)


def _code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0) or 0
    return code


# -- one connection ----------------------------------------------------------------------------------------------
class Connection:
    """A connection on a thread of its own. Its methods are for the loop; `_on_thread` ones run over there."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._deadline = options.busy_timeout / 1000
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._db: sqlite3.Connection | None = None
        self.pending = 0

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function on the thread. StoreUnavailable when closed; sqlite3's errors become ours."""
        try:
            work = asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        except RuntimeError as error:
            # The executor's answer once it was shut down.
            raise closed() from error
        self.pending += 1
        try:
            return await work
        except sqlite3.Error as error:
            raise translate(error, self._options.path) from error
        except OSError as error:
            raise StoreUnavailable(f"The database {self._options.path}: {error.strerror}.") from error
        finally:
            self.pending -= 1

    async def open(self, *, writing: bool) -> None:
        await self.run(self._open_on_thread, writing)

    async def close(self) -> None:
        """What was asked before is still done."""
        try:
            await self.run(self._close_on_thread)
        finally:
            self._threads.shutdown(wait=False)

    async def fetch(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        return await self.run(self._fetch_on_thread, sql, parameters)

    async def transact(self, make: Callable[[], Program[T]]) -> T:
        return await self.run(self._transact_on_thread, make)

    def _open_on_thread(self, writing: bool) -> None:
        path = self._options.path
        if path and writing:
            _make_private(path)
        db = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=self._deadline, cached_statements=256)
        try:
            self._waiting(lambda: self._set_up(db, writing))
        except BaseException:
            db.close()
            raise
        self._db = db

    def _set_up(self, db: sqlite3.Connection, writing: bool) -> None:
        # A call record has 800 bytes: with pages of 8 KiB it takes a sixth to a third less CPU to store than with 4.
        db.execute("PRAGMA page_size = 8192")
        db.execute("PRAGMA journal_mode = WAL")
        # Fewer, larger checkpoints: a page that many commits touched is copied back once. 32 MB of log at most.
        db.execute("PRAGMA wal_autocheckpoint = 4000")
        db.execute(f"PRAGMA synchronous = {self._options.synchronous}")
        if not writing:
            db.execute("PRAGMA query_only = ON")
        db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()

    def _close_on_thread(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _fetch_on_thread(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        return self._waiting(lambda: self._opened().execute(sql, parameters).fetchall())

    def _transact_on_thread(self, make: Callable[[], Program[T]]) -> T:
        db = self._opened()
        self._waiting(lambda: db.execute("BEGIN IMMEDIATE"))
        try:
            result = drive(make(), self._run_on_thread)
            self._waiting(lambda: db.execute("COMMIT"))
        except BaseException:
            # Some errors (a full disk) have ended the transaction already.
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return result

    def _run_on_thread(self, statement: Statement) -> Answer:
        try:
            cursor = self._opened().execute(*statement)
            return Answer(cursor.fetchall() if cursor.description else (), cursor.rowcount)
        except sqlite3.IntegrityError as error:
            if _code(error) in _UNIQUE:
                raise Duplicate from error
            raise

    def _waiting(self, step: Callable[[], T]) -> T:
        """Run one step, again while the file is busy, until the deadline. SQLite waits by itself in most cases, but
        not where it sees a deadlock coming, nor while a new file is put into WAL mode."""
        deadline = time.monotonic() + self._deadline
        while True:
            try:
                return step()
            except sqlite3.OperationalError as error:
                if _code(error) & 0xFF not in _WAIT or time.monotonic() >= deadline:
                    raise
            time.sleep(0.002 + random.random() * 0.01)  # noqa: S311 - spreads the writers, no secret

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            raise closed()
        return self._db


def closed() -> StoreUnavailable:
    return StoreUnavailable("The store is not open.")


def _make_private(path: str) -> None:
    """Make a new file readable by its owner alone; SQLite gives its -wal and -shm files the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return


# -- all connections ---------------------------------------------------------------------------------------------
class SqliteDriver:
    """`sqlstore.Driver` over one writing and some reading connections; in memory, over one that does both."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.writer: Connection | None = None
        self._readers: list[Connection] = []
        self._inode = (0, 0)
        self._changing = asyncio.Lock()

    async def open(self) -> None:
        async with self._changing:
            if self.writer is not None:
                return
            made: list[Connection] = []
            try:
                for number in range(1 + (self.options.readers if self.options.path else 0)):
                    made.append(Connection(self.options))
                    await made[-1].open(writing=number == 0)
                if self.options.path:
                    self._inode = await made[0].run(_inode, self.options.path)
            except BaseException:
                for connection in made:
                    await connection.close()
                raise
            self.writer, *self._readers = made

    async def close(self) -> None:
        async with self._changing:
            connections = [self.writer] if self.writer else []
            connections += self._readers
            self.writer, self._readers = None, []
            # The writer last: the last connection to close folds the log into the file.
            for connection in reversed(connections):
                await connection.close()

    async def ping(self) -> None:
        reader = self._reader()
        await reader.fetch("SELECT 1 FROM sqlite_master LIMIT 1", ())
        # An open file can be read after it was deleted or replaced, and everything written to it would be lost.
        if self.options.path and await reader.run(_inode, self.options.path) != self._inode:
            raise StoreUnavailable(f"The database {self.options.path} was replaced by another file.")

    async def fetch(self, sql: str, parameters: Sequence[Any]) -> Sequence[Sequence[Any]]:
        return await self._reader().fetch(sql, parameters)

    async def transact(self, make: Callable[[], Program[T]]) -> T:
        if self.writer is None:
            raise closed()
        return await self.writer.transact(make)

    def _reader(self) -> Connection:
        if self.writer is None:
            raise closed()
        if not self._readers:
            return self.writer
        return min(self._readers, key=_pending)


def _pending(connection: Connection) -> int:
    return connection.pending


def _inode(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
