"""kill -9 at random moments: every call that reached the upstream is on record, once, and the chains hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agenticmail_enterprise.adapters.stores import sqlite
from agenticmail_enterprise.catalog.records import CallRecord
from agenticmail_enterprise.tests.unit.gateway_journal import journal_child
from agenticmail_enterprise.tests.unit.gateway_journal.journal_kit import marks, proven, recovered, spools

ORGS = [principal.org for principal in journal_child.ORGS]


def run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, journal_child.__file__, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


async def aftermath(folder: Path) -> list[CallRecord]:
    """What the next process makes of what is left."""
    store = sqlite.create(f"sqlite:///{folder}/calls.db")
    await store.open()
    await recovered(store, folder)
    found = await proven(store, *ORGS)
    assert (spools(folder), await marks(store)) == ([], 0)
    await store.close()
    return found


def ledger(folder: Path) -> tuple[set[str], set[str]]:
    lines = [line.split() for line in (folder / "ledger").read_text().splitlines()]
    return {id for what, id in lines if what == "B"}, {id for what, id in lines if what == "E"}


@pytest.mark.parametrize(
    ("rounds", "kind", "sync"), [(30, "whole", "none"), (12, "split", "none"), (6, "whole", "group")]
)
async def test_every_call_that_reached_the_upstream_is_on_record_once(
    tmp_path: Path, rounds: int, kind: str, sync: str
) -> None:
    run("crash", str(tmp_path), str(rounds), kind, sync)
    found = await aftermath(tmp_path)
    reached, answered = ledger(tmp_path)
    outcomes = {record.id: record.outcome for record in found}
    assert len(outcomes) == len(found)
    assert len(reached) > 10 * rounds
    assert reached <= set(outcomes)
    assert {outcomes[id] for id in answered} == {"ok"}
    # A call may have been written down and killed before it left; all others that have no end were in flight.
    assert {outcome for id, outcome in outcomes.items() if id not in answered} <= {"ok", "unknown"}
    assert "unknown" in outcomes.values()
    # Two workers at most in a round; in each one caller between the two, or all while they wait for the disk.
    assert sum(1 for id in outcomes if id not in reached) <= 2 * rounds * (12 if sync == "group" else 1)


async def test_two_processes_drain_into_one_chain(tmp_path: Path) -> None:
    run("race", str(tmp_path), "2", "60")
    found = await aftermath(tmp_path)
    _, answered = ledger(tmp_path)
    assert {record.id for record in found} == answered
    assert len(found) == 2 * 12 * 60
    assert {record.outcome for record in found} == {"ok"}
