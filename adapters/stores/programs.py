"""What happens inside one transaction, as generators: each yields a statement, is sent its `Answer`, and returns.

They know nothing of threads, loops or drivers. A driver begins a transaction, runs a program in it and commits; when
the program raises, it rolls back. A program is made anew for each attempt.
"""

# ruff: noqa: S608 - names are those of declared entities (`codec` checks them); values are always parameters
from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

from ...catalog.errors import Conflict, Stale, StoreError
from ...catalog.store import Encoded, Index, Record
from .checks import Adding, Deleting, Inserting, Plan, Prepared, Replacing, Stored, appended
from .schema import Added, Schema, Step
from .sql import Dialect, Statement, Table, build, build_indexes

T = TypeVar("T")

BACKFILL_PAGE: Final = 500


class Answer(NamedTuple):
    """`rows` of a SELECT; how many rows another statement `changed`."""

    rows: Sequence[Sequence[Any]]
    changed: int


class Duplicate(Exception):
    """A unique key is taken. A driver throws it into the program. `constraint` is its name, where the database says
    so and the transaction can run nothing more; "" where the program can still look for itself."""

    def __init__(self, constraint: str = "") -> None:
        super().__init__(constraint)
        self.constraint = constraint


Program = Generator[Statement, Answer, T]
Tables = Mapping[str, Table]


def drive(program: Program[T], run: Callable[[Statement], Answer]) -> T:
    """Run a program with a synchronous driver. An asynchronous one has the same ten lines with an `await`."""
    try:
        statement = next(program)
        while True:
            try:
                answer = run(statement)
            except Duplicate as duplicate:
                statement = program.throw(duplicate)
            else:
                statement = program.send(answer)
    except StopIteration as stop:
        value: T = stop.value
        return value


# -- conditional writes ------------------------------------------------------------------------------------------
def commit(tables: Tables, writes: Iterable[Prepared]) -> Program[list[Any]]:
    """Each write on the state that those before it leave; the first that fails raises."""
    results = []
    for write in writes:
        results.append((yield from _apply(tables, write)))  # noqa: PERF401 - no yield in a comprehension
    return results


def _apply(tables: Tables, write: Prepared) -> Program[Any]:
    if isinstance(write, Inserting):
        return (yield from _insert(tables[write.new.shape.name], write.new))
    if isinstance(write, Replacing):
        return (yield from _replace(tables[write.new.shape.name], write.new))
    if isinstance(write, Deleting):
        return (yield from _delete(tables[write.shape.name], write))
    return (yield from _increment(tables[write.shape.name], write))


def _insert(table: Table, new: Stored) -> Program[Any]:
    org, id_, *keys = new.row
    constraint = ""
    try:
        answer = yield table.insert, (org, id_, new.version, new.body, *keys)
        if answer.changed:
            return new.record
    except Duplicate as duplicate:
        constraint = duplicate.constraint
    return (yield from _conflict(table, new, constraint, inserting=True))


def _replace(table: Table, new: Stored) -> Program[Any]:
    org, id_, *keys = new.row
    constraint = ""
    try:
        answer = yield table.replace, (new.version, new.body, *keys, org, id_, new.version - 1)
        if not answer.changed:
            raise Stale(entity=table.shape.name, id=id_)
        return new.record
    except Duplicate as duplicate:
        constraint = duplicate.constraint
    return (yield from _conflict(table, new, constraint, inserting=False))


def _delete(table: Table, write: Deleting) -> Program[None]:
    if write.version is None:
        answer = yield table.delete, (write.org, write.id)
    else:
        answer = yield table.delete_version, (write.org, write.id, write.version)
    if not answer.changed:
        raise Stale(entity=table.shape.name, id=write.id)


def _increment(table: Table, write: Adding) -> Program[int]:
    address = write.write.org, write.write.id
    found = yield table.lock, address
    if not found.rows:
        new, value = write.first()
        org, id_, *keys = new.row
        constraint = ""
        try:
            answer = yield table.insert, (org, id_, new.version, new.body, *keys)
            if answer.changed:
                return value
        except Duplicate as duplicate:
            constraint = duplicate.constraint
        # Another transaction may have made it since the look (not in SQLite, where writers take turns).
        found = yield table.lock, address
        if not found.rows:
            yield from _conflict(table, new, constraint, inserting=True)
    version, body = found.rows[0]
    new, value = write.next(table.shape.decode(body, version), version)
    org, id_, *keys = new.row
    constraint = ""
    try:
        yield table.update, (new.version, new.body, *keys, org, id_)
        return value
    except Duplicate as duplicate:
        constraint = duplicate.constraint
    return (yield from _conflict(table, new, constraint, inserting=False))


def _conflict(table: Table, new: Stored, constraint: str, *, inserting: bool) -> Program[NoReturn]:
    """Raise the Conflict: "id" before the unique indexes, those in the order of their declaration."""
    if constraint:
        raise Conflict(constraint.removeprefix(f"{table.shape.name}__") if "__" in constraint else "id")
    org, id_ = new.row[:2]
    if inserting and (yield table.taken, (org, id_)).rows:
        raise Conflict("id")
    named = dict(zip(("org", "id", *table.shape.keys), new.row, strict=True))
    for index in table.shape.unique:
        values = [named[field] for field in index.fields]
        if None not in values and (yield table.conflict(index), (*values, org, id_)).rows:
            raise Conflict(index.name)
    raise Stale("A unique key was taken for a moment; try again.", entity=table.shape.name, id=id_)


# -- immutable records -------------------------------------------------------------------------------------------
def append(
    tables: Tables, table: Table, records: Sequence[Record | Encoded], guards: Iterable[Prepared], now: int, limit: int
) -> Program[None]:
    """Store records in statements of many rows, then the guards.

    Many rows a statement, because a driver on a thread gives up and regains the interpreter's lock with each one: row
    by row, a busy event loop would slow the journal to its own pace.
    """
    for start in range(0, len(records), table.chunk):
        rows = [appended(table.shape, record, now, limit) for record in records[start : start + table.chunk]]
        values = chain.from_iterable([(row[0], row[1], 1, body, *row[2:]) for row, body in rows])
        yield table.append(len(rows)), tuple(values)
    yield from commit(tables, guards)


def prune(table: Table, plan: Plan, limit: int) -> Program[int]:
    """Delete the first `limit` records of a plan over the index that tells their age."""
    found = yield table.select(plan, limit, "ids")
    ids = [row[0] for row in found.rows]
    for start in range(0, len(ids), BACKFILL_PAGE):
        part = ids[start : start + BACKFILL_PAGE]
        yield table.delete_many(len(part)), (plan.values[0], *part)
    return len(ids)


# -- migrations --------------------------------------------------------------------------------------------------
def migrate(schema: Schema, dialect: Dialect, now: int) -> Program[list[int]]:
    """Apply the steps that the database has not seen; their numbers."""
    for lock in dialect.migration_lock:
        yield lock, ()
    table, number, at = dialect.name("_migrations"), dialect.name("number"), dialect.name("applied_at")
    columns = f"{number} {dialect.integer} NOT NULL PRIMARY KEY, {at} {dialect.integer} NOT NULL"
    yield f"CREATE TABLE IF NOT EXISTS {table} ({columns})", ()
    seen = {row[0] for row in (yield f"SELECT {number} FROM {table}", ()).rows}
    refuse_newer(max(seen, default=0), schema.newest)
    steps = [step for step in schema.steps if step.number not in seen]
    for step in steps:
        yield from _step(dialect, step)
        yield dialect.place(f"INSERT INTO {table} ({number}, {at}) VALUES (?, ?)"), (step.number, now)
    return [step.number for step in steps]


def refuse_newer(stored: int, known: int) -> None:
    """StoreError when a store has seen a migration that this code does not know."""
    if stored > known:
        message = f"The database is at migration {stored}, this version knows {known}: it was used by a newer version."
        raise StoreError(message, stored=stored, known=known)


def _step(dialect: Dialect, step: Step) -> Program[None]:
    for added in step.added:
        for statement in build(added, dialect):
            yield statement, ()
        if added.keys and not added.fresh:
            yield from _backfill(dialect, added)
        for index in added.indexes:
            yield from _index(dialect, added, index)


def _index(dialect: Dialect, added: Added, index: Index) -> Program[None]:
    only = Added(added.shape, added.fresh, (), (index,))
    for statement in build_indexes(only, dialect):
        try:
            yield statement, ()
        except Duplicate as duplicate:
            message = f"Index {index.name!r} of {added.shape.name} cannot be made: two records have the same values."
            raise StoreError(message, entity=added.shape.name, index=index.name) from duplicate


def _backfill(dialect: Dialect, added: Added) -> Program[None]:
    """Fill the new key columns of the rows there are, from their bodies."""
    shape, name, table = added.shape, dialect.name, dialect.name(added.shape.name)
    address = dialect.names(("org", "id"))
    page = dialect.place(
        f"SELECT {address}, {name('body')} FROM {table} WHERE ({address}) > (?, ?) ORDER BY {address} LIMIT ?"
    )
    sets = ", ".join(f"{name(key)} = ?" for key in added.keys)
    update = dialect.place(f"UPDATE {table} SET {sets} WHERE {name('org')} = ? AND {name('id')} = ?")
    org, id_ = "", ""
    while rows := (yield page, (org, id_, BACKFILL_PAGE)).rows:
        for org, id_, body in rows:
            named = dict(zip(("org", "id", *shape.keys), shape.row(shape.decode(body, 0)), strict=True))
            yield update, (*(named[key] for key in added.keys), org, id_)
