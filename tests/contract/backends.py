"""The capability table: one row a backend, read by the contract tests.

A third-party adapter adds its row without touching this file: `CONTRACT_BACKENDS=my_package.contract:ROW pytest ...`
(several with commas).
"""

from __future__ import annotations

import os
import sqlite3
from importlib import import_module
from pathlib import Path
from typing import Any

from agenticmail_enterprise.adapters.stores import memory, sqlite
from agenticmail_enterprise.adapters.stores.checks import MAX_RECORD_BYTES
from agenticmail_enterprise.tests.contract.suite import Backend

_SPACES: dict[Path, memory.Space] = {}


def _memory(place: Path, migrations: Any, clock: Any) -> memory.MemoryStore:
    return memory.MemoryStore(space=_SPACES.setdefault(place, memory.Space()), migrations=migrations, clock=clock)


def _memory_schema(place: Path) -> Any:
    return {name: list(table.entries) for name, table in _SPACES[place].tables.items()}


def _sqlite(place: Path, migrations: Any, clock: Any) -> Any:
    return sqlite.create(f"sqlite:///{place}/store.db", migrations=migrations, clock=clock)


def _sqlite_schema(place: Path) -> Any:
    db = sqlite3.connect(place / "store.db")
    try:
        rows = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()
        tables = [row[1] for row in rows if row[0] == "table"]
        return rows, {table: db.execute(f'PRAGMA table_xinfo("{table}")').fetchall() for table in tables}
    finally:
        db.close()


BUILT_IN = (
    Backend(
        name="memory",
        create=_memory,
        abilities=frozenset(("durable", "shared", "atomic_append", "inspects")),
        max_bytes=MAX_RECORD_BYTES,
        describe=_memory_schema,
    ),
    Backend(
        name="sqlite",
        create=_sqlite,
        abilities=frozenset(("durable", "shared", "atomic_append", "inspects")),
        max_bytes=MAX_RECORD_BYTES,
        describe=_sqlite_schema,
    ),
    Backend(
        name="sqlite-in-memory",
        create=lambda place, migrations, clock: sqlite.create("sqlite://", migrations=migrations, clock=clock),
        abilities=frozenset(("atomic_append",)),
        max_bytes=MAX_RECORD_BYTES,
    ),
)


def _named(reference: str) -> Backend:
    module, _, name = reference.strip().partition(":")
    row = getattr(import_module(module), name)
    if not isinstance(row, Backend):
        raise TypeError(f"{reference} is no Backend row")
    return row


BACKENDS = (*BUILT_IN, *(_named(part) for part in os.environ.get("CONTRACT_BACKENDS", "").split(",") if part.strip()))
