"""Tables and statements of an entity in one SQL dialect.

A table has `org, id, version, body` and a column for each key field; its primary key is `(org, id)`, which also serves
the index `("org",)`. Strings compare by bytes. A unique index leaves out rows with NULL or "" in one of its fields;
queries repeat that condition, without which a planner may not use a partial index.

Statements are written with `?`; a dialect puts its own placeholders there, once, when a table is built.
"""

# ruff: noqa: S608 - names are those of declared entities (`codec` checks them); values are always parameters
from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

from ...catalog.store import Index
from .checks import Plan
from .codec import Shape, order_of
from .schema import Added

Statement = tuple[str, Sequence[Any]]

FIXED = ("org", "id", "version", "body")


class Dialect:
    """Where SQL databases differ. The defaults are what SQLite and PostgreSQL agree on; another one overrides."""

    #: Column types: a string compared by bytes, a 64-bit integer, JSON bytes of up to 16 MiB.
    text: ClassVar[str] = "TEXT"
    integer: ClassVar[str] = "BIGINT"
    body: ClassVar[str] = "BYTEA"
    #: Said of the columns that every row fills.
    required: ClassVar[str] = " NOT NULL"
    #: Put around names.
    mark: ClassVar[str] = '"'
    #: Added to a SELECT whose rows the same transaction changes.
    locking: ClassVar[str] = " FOR UPDATE"
    #: Ends an INSERT that is to store nothing, rather than to break the transaction, when a unique key is taken.
    or_nothing: ClassVar[str] = " ON CONFLICT DO NOTHING"
    #: Placeholders in one statement, at most.
    max_parameters: ClassVar[int] = 32_000
    #: Run first in the migrating transaction, so that of many starting processes one migrates and the rest wait.
    migration_lock: ClassVar[tuple[str, ...]] = ()

    def place(self, sql: str) -> str:
        """The statement with this dialect's placeholders. No statement here has a `?` of another meaning."""
        return sql

    def name(self, name: str) -> str:
        return f"{self.mark}{name}{self.mark}"

    def names(self, names: Sequence[str]) -> str:
        return ", ".join(map(self.name, names))

    def type_of(self, kind: type) -> str:
        return self.text if kind is str else self.integer

    def or_overwrite(self, columns: Sequence[str]) -> str:
        """Ends an INSERT that is to overwrite the row of the same `(org, id)`."""
        sets = ", ".join(f"{self.name(column)} = excluded.{self.name(column)}" for column in columns)
        return f" ON CONFLICT ({self.names(('org', 'id'))}) DO UPDATE SET {sets}"

    def present(self, shape: Shape, index: Index) -> str:
        """True for the rows that a unique index covers."""
        fields = [field for field in index.fields if field != "org"]
        strings = [field for field in fields if shape.kinds[field] is str]
        # A comparison with "" leaves NULL out as well.
        terms = [f"{self.name(field)} <> ''" for field in strings]
        return " AND ".join(terms + [f"{self.name(field)} IS NOT NULL" for field in fields if field not in strings])

    def create_index(self, shape: Shape, index: Index) -> str:
        name, table = self.name(f"{shape.name}__{index.name}"), self.name(shape.name)
        if index.unique:
            where = self.present(shape, index)
            tail = f" WHERE {where}" if where else ""
            return f"CREATE UNIQUE INDEX {name} ON {table} ({self.names(index.fields)}){tail}"
        return f"CREATE INDEX {name} ON {table} ({self.names((*index.fields, *order_of(index)))})"


class Table:
    """The statements of one entity. Parameters are in the order of the names in each comment."""

    def __init__(self, shape: Shape, dialect: Dialect) -> None:
        self.shape = shape
        self._dialect = dialect
        self.columns = (*FIXED, *shape.keys)
        name, place = dialect.name, dialect.place
        self.name = name(shape.name)
        one = f"WHERE {name('org')} = ? AND {name('id')} = ?"
        sets = ", ".join(f"{name(column)} = ?" for column in self.columns[2:])
        columns = f"INSERT INTO {self.name} ({dialect.names(self.columns)}) VALUES "
        self._rows = f"({', '.join('?' * len(self.columns))})"
        self._append = columns, dialect.or_overwrite(self.columns[2:])
        # org, id
        self.get = place(f"SELECT {dialect.names(('version', 'body'))} FROM {self.name} {one}")
        self.lock = self.get + dialect.locking
        self.delete = place(f"DELETE FROM {self.name} {one}")
        self.taken = place(f"SELECT 1 FROM {self.name} {one}")
        # org, id, version
        self.delete_version = place(f"DELETE FROM {self.name} {one} AND {name('version')} = ?")
        # org, id, version, body, *keys
        self.insert = place(columns + self._rows + dialect.or_nothing)
        # version, body, *keys, org, id; and the version that must be there
        self.update = place(f"UPDATE {self.name} SET {sets} {one}")
        self.replace = place(f"UPDATE {self.name} SET {sets} {one} AND {name('version')} = ?")
        # 256 rows are half a millisecond of Python between two statements, and enough that a busy loop costs little.
        self.chunk = max(1, min(256, dialect.max_parameters // len(self.columns)))
        self.append = cache(self._append_sql)
        self.find = cache(self._find_sql)

    def conflict(self, index: Index) -> str:
        """Whether another record has these values. Parameters: *fields, org, id (of the one being written)."""
        name = self._dialect.name
        terms = [f"{name(field)} = ?" for field in index.fields]
        terms.append(self._dialect.present(self.shape, index))
        terms.append(f"NOT ({name('org')} = ? AND {name('id')} = ?)")
        return self._dialect.place(f"SELECT 1 FROM {self.name} WHERE {' AND '.join(filter(None, terms))}")

    def _append_sql(self, count: int) -> str:
        """Insert or overwrite `count` rows. Parameters: org, id, version, body, *keys of each."""
        head, tail = self._append
        return self._dialect.place(head + ", ".join([self._rows] * count) + tail)

    def delete_many(self, count: int) -> str:
        """Parameters: org, then `count` ids."""
        name = self._dialect.name
        ids = ", ".join("?" * count)
        return self._dialect.place(f"DELETE FROM {self.name} WHERE {name('org')} = ? AND {name('id')} IN ({ids})")

    def _find_sql(self, index: Index, what: str, descending: bool, since: bool, until: bool, after: bool) -> str:
        """Parameters: *fields, since, until, *position where given; limit."""
        name = self._dialect.name
        order = order_of(index)
        terms = [f"{name(field)} = ?" for field in index.fields]
        if index.unique:
            terms.append(self._dialect.present(self.shape, index))
        terms += [f"{name(index.sort or 'id')} {sign} ?" for sign, on in ((">=", since), ("<", until)) if on]
        if after:
            marks = ", ".join("?" * len(order))
            terms.append(f"({self._dialect.names(order)}) {'<' if descending else '>'} ({marks})")
        tail = " DESC" if descending else ""
        by = ", ".join(name(field) + tail for field in order)
        where = " AND ".join(filter(None, terms))
        if what == "count":
            return self._dialect.place(
                f"SELECT COUNT(*) FROM (SELECT 1 FROM {self.name} WHERE {where} LIMIT ?) AS found"
            )
        columns = self._dialect.names(("id",) if what == "ids" else self.columns)
        return self._dialect.place(f"SELECT {columns} FROM {self.name} WHERE {where} ORDER BY {by} LIMIT ?")

    def select(self, plan: Plan, limit: int, what: str = "rows") -> Statement:
        """`what`: `rows` (all columns), `ids`, or `count` (one number, at most `limit`)."""
        since, until = plan.since is not None, plan.until is not None
        sql = self.find(plan.index, what, plan.descending, since, until, bool(plan.after))
        bounds = [bound for bound in (plan.since, plan.until) if bound is not None]
        return sql, (*plan.values, *bounds, *plan.after, limit)


def build(added: Added, dialect: Dialect) -> list[str]:
    """The statements of one step for one entity, up to its key columns. Its indexes come after the rows are filled."""
    shape, name = added.shape, dialect.name
    columns = [f"{name(key)} {dialect.type_of(shape.kinds[key])}" for key in added.keys]
    if not added.fresh:
        return [f"ALTER TABLE {name(shape.name)} ADD COLUMN {column}" for column in columns]
    fixed = [
        f"{name('org')} {dialect.text}{dialect.required}", f"{name('id')} {dialect.text}{dialect.required}",
        f"{name('version')} {dialect.integer}{dialect.required}", f"{name('body')} {dialect.body}{dialect.required}",
    ]  # fmt: skip
    key = f"PRIMARY KEY ({dialect.names(('org', 'id'))})"
    return [f"CREATE TABLE {name(shape.name)} ({', '.join([*fixed, *columns, key])})"]


def build_indexes(added: Added, dialect: Dialect) -> list[str]:
    """The statements for the indexes of one step; the primary key serves `("org",)` in order of id."""
    served = [
        index for index in added.indexes if index.fields == ("org",) and index.sort in ("", "id") and not index.unique
    ]
    return [dialect.create_index(added.shape, index) for index in added.indexes if index not in served]
