"""What commands change is on the audit trail, old records can go, and a check changes nothing."""

from __future__ import annotations

import asyncio
import os
import pwd
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from agenticmail_enterprise.catalog.records import (
    AUDIT,
    CALLS,
    CHAIN_HEADS,
    MIGRATIONS,
    AuditEntry,
    CallRecord,
    ChainHead,
)
from agenticmail_enterprise.catalog.store import Insert, Query, Store
from agenticmail_enterprise.gateway.chainverify import HEAD_ID, hash_of
from agenticmail_enterprise.gateway.stores import open_store

from .conftest import Run

T = TypeVar("T")
ME = f"cli:{pwd.getpwuid(os.geteuid()).pw_name}"
pytestmark = pytest.mark.usefixtures("made")


def on_store(folder: Path, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        store = open_store(f"sqlite:///{folder}/gw.db")
        await store.open()
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def trail(folder: Path, org: str) -> list[AuditEntry]:
    async def work(store: Store) -> list[AuditEntry]:
        return (await store.find(Query(AUDIT, "by_org", {"org": org}, limit=500))).records

    return on_store(folder, work)


# -- the audit trail ---------------------------------------------------------------------------------------------
def test_every_change_leaves_an_entry_with_who_and_what(cli: Run, folder: Path, made: dict[str, Any]) -> None:
    agent = cli("agents", "create", "bot", "--preset", "sandbox", "--key", "--json").json
    cli("agents", "status", "bot", "suspended")
    cli("agents", "profile", "set", "bot", "--preset", "developer")
    key = cli("keys", "create", "--scope", "agents:read", "--json").json
    cli("keys", "revoke", key["id"], "--yes")
    server = cli("upstreams", "add", "stdio", "mail", "--no-refresh", "--json", "--", "true").json
    cli("upstreams", "disable", "mail")
    cli("upstreams", "remove", "mail", "--yes")
    cli("agents", "delete", "bot", "--yes")
    entries = trail(folder, made["org"])
    assert {entry.actor for entry in entries} == {ME}
    assert {entry.outcome for entry in entries} == {"ok"}
    assert [(entry.action, entry.resource) for entry in entries] == [
        ("org.create", made["org"]), ("agent.create", agent["id"]), ("key.create", entries[2].resource),
        ("agent.update", agent["id"]), ("agent.profile", agent["id"]), ("key.create", key["id"]),
        ("key.revoke", key["id"]), ("upstream.create", server["id"]), ("upstream.update", server["id"]),
        ("upstream.delete", server["id"]), ("agent.delete", agent["id"]),
    ]  # fmt: skip
    assert entries[3].details == {"status": "suspended"}
    assert entries[5].details == {"kind": "program", "scopes": "agents:read", "agent": ""}
    assert key["api_key"] not in str(entries)


def test_what_is_refused_is_on_the_trail_too(cli: Run, folder: Path, made: dict[str, Any]) -> None:
    assert cli("agents", "create", "bot").code == 0
    assert cli("agents", "create", "bot").code == 1
    assert cli("keys", "revoke", "key_none", "--yes").code == 1
    taken, missing = trail(folder, made["org"])[-2:]
    assert (taken.action, taken.outcome, taken.details["code"]) == ("agent.create", "refused", "CONFLICT")
    assert (missing.action, missing.resource, missing.details["code"]) == ("key.revoke", "key_none", "NOT_FOUND")


def test_looking_leaves_nothing(cli: Run, folder: Path, made: dict[str, Any]) -> None:
    before = len(trail(folder, made["org"]))
    for argv in (("agents", "list"), ("keys", "list"), ("check",), ("audit", "verify"), ("calls", "list")):
        assert cli(*argv).code == 0
    assert len(trail(folder, made["org"])) == before


# -- retention ---------------------------------------------------------------------------------------------------
DAY = 86_400_000


def chained(folder: Path, org: str, days: int) -> list[CallRecord]:
    """A chain as the journal writes it: one record a day from 2026-01-01 on."""
    calls: list[CallRecord] = []
    for seq in range(1, days + 1):
        at = 1_767_225_600_000 + (seq - 1) * DAY
        call = CallRecord(org=org, id=f"dec_{at:012x}{seq:020x}", created_at=at, at=at * 1000, tool="t", seq=seq,
                          prev=calls[-1].hash if calls else "")  # fmt: skip
        call.hash = hash_of(call)
        calls.append(call)
    head = ChainHead(org=org, id=HEAD_ID, seq=days, hash=calls[-1].hash)
    on_store(folder, lambda store: store.append(CALLS, calls, Insert(CHAIN_HEADS, head)))
    return calls


def test_old_records_go_and_the_rest_verifies_from_the_anchor(cli: Run, folder: Path, made: dict[str, Any]) -> None:
    calls = chained(folder, made["org"], 31)
    ends = {call.seq: call.hash for call in calls}
    tried = cli("audit", "prune", "--before", "2026-01-11", "--dry-run", "--json").json
    assert (tried["pruned"], tried["anchor"]) == (10, None)
    assert len(cli("calls", "list", "--limit", "100", "--json").json) == 31
    assert cli("audit", "prune", "--before", "2026-01-11").code == 2  # asks, and nobody is there
    done = cli("audit", "prune", "--before", "2026-01-11", "--yes", "--json").json
    assert (done["pruned"], done["anchor"]["seq"], done["anchor"]["by"]) == (10, 10, ME)
    assert len(cli("calls", "list", "--limit", "100", "--json").json) == 21
    (chain,) = cli("audit", "verify", "--json").json["chains"]
    assert (chain["ok"], chain["checked"], chain["head_seq"]) == (True, 21, 31)
    said = cli("audit", "verify")
    assert said.code == 0
    assert "verified from anchor 10" in said.out
    assert ME in said.out
    entry = trail(folder, made["org"])[-1]
    assert (entry.action, entry.actor, entry.resource) == ("audit.prune", ME, done["anchor"]["id"])
    assert entry.details["pruned"] == "10"
    assert cli("audit", "verify", "--known", f"10:{ends[10]}").code == 0
    assert cli("audit", "verify", "--known", f"31:{ends[31]}").code == 0
    gone = cli("audit", "verify", "--known", f"9:{ends[9]}")
    assert gone.code == 1
    assert "was removed" in gone.out
    assert cli("audit", "verify", "--known", f"10:{ends[9]}").code == 1
    again = cli("audit", "prune", "--before", "2026-01-11", "--yes")
    assert "nothing to remove" in again.out


@pytest.mark.parametrize(("date", "code"), [("soon", 2), ("", 2), ("2999-01-01", 1), ("1969-12-31", 1)])
def test_a_date_that_makes_no_sense_is_refused(
    cli: Run, folder: Path, made: dict[str, Any], date: str, code: int
) -> None:
    chained(folder, made["org"], 3)
    done = cli("audit", "prune", "--before", date, "--yes")
    assert done.code == code, done
    assert "Traceback" not in done.err
    assert len(cli("calls", "list", "--json").json) == 3


def undo(db: sqlite3.Connection, entity_name: str, index_name: str) -> None:
    """Take an index away, and the columns that came with it: those that no other index of the table has."""
    entity = next(item for migration in MIGRATIONS for item in migration.entities if item.name == entity_name)
    late = {index for migration in MIGRATIONS for name, index in migration.indexes if name == entity_name}
    before = {field for index in entity.indexes if index.name not in late for field in index.fields}
    mine = [field for field in entity.index(index_name).fields if field not in before]
    found = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ?", (entity_name,))
    for name, sql in found.fetchall():
        if sql and any(f'"{field}"' in sql for field in mine):
            db.execute(f'DROP INDEX "{name}"')
    for field in mine:
        db.execute(f'ALTER TABLE "{entity_name}" DROP COLUMN "{field}"')


# -- check -------------------------------------------------------------------------------------------------------
def test_check_reports_pending_migrations_and_applies_none(cli: Run, folder: Path) -> None:
    def applied() -> list[int]:
        with sqlite3.connect(folder / "gw.db") as db:
            return [row[0] for row in db.execute("SELECT number FROM _migrations ORDER BY number")]

    assert cli("check").code == 0
    last = MIGRATIONS[-1]
    with sqlite3.connect(folder / "gw.db") as db:  # as a version before this one left it
        db.execute("DELETE FROM _migrations WHERE number = ?", (last.number,))
        for entity in last.entities:
            db.execute(f'DROP TABLE "{entity.name}"')
        for entity_name, index_name in last.indexes:
            undo(db, entity_name, index_name)
    db.close()
    before = applied()
    for command in ("check", "doctor"):
        done = cli(command, "--json")
        assert done.code == 1
        (problem,) = [finding for finding in done.json["findings"] if finding["state"] == "problem"]
        assert problem["what"] == "database"
        assert str(last.number) in problem["says"]
        assert problem["mend"] == "agenticmail-enterprise migrate"
        assert applied() == before
    assert cli("migrate", "--json").json == {"applied": [last.number]}
    assert cli("migrate").out == "The schema is current.\n"
    assert cli("check").code == 0
