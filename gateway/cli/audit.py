"""`audit verify`: is the record of calls whole and unchanged?"""

from __future__ import annotations

from typing import Any

import click
import msgspec

from ...catalog.records import CALLS, CallRecord, Org
from ...catalog.store import Query, Store
from ..chainverify import Report, verify
from .common import Common, common_options, opened, organisations, quiet, run, the_org
from .output import emit_json, say


@click.group()
def audit() -> None:
    """Verify that the record of calls is whole and unchanged."""


@audit.command("verify")
@click.option("--known", metavar="SEQ:HASH", help="A place in the chain and its hash, noted down earlier.")
@common_options
def verify_(common: Common, known: str | None) -> None:
    """Check the hash chain of every organisation (or --org), record by record. Exit 1 when anything was changed.

    Who owns the database could recompute a whole chain: note the end that this prints somewhere else, and give it with
    --known next time.
    """
    noted = _noted(known)

    async def work() -> list[dict[str, Any]]:
        quiet()
        async with opened(common.load().settings) as store:
            orgs = await organisations(store)
            if common.org is not None or noted is not None or not orgs:
                orgs = [await the_org(store, common.org)]
            return [await _checked(store, org, noted) for org in orgs]

    found = run(work())
    if common.json:
        emit_json({"ok": all(row["ok"] for row in found), "chains": found})
    else:
        for row in found:
            _show(row)
    if not all(row["ok"] for row in found):
        raise SystemExit(1)


def _noted(known: str | None) -> tuple[int, str] | None:
    if known is None:
        return None
    seq, _, text = known.partition(":")
    if not seq.isdecimal() or len(text) != 64 or int(seq) < 1:
        raise click.UsageError(
            "--known is a number, a colon and a hash of 64 hex digits, as `audit verify` prints them."
        )
    return int(seq), text.lower()


async def _checked(store: Store, org: Org, noted: tuple[int, str] | None) -> dict[str, Any]:
    report = await verify(store, org.id)
    row = {"name": org.name, "ok": report.ok, **msgspec.structs.asdict(report), "sentence": _sentence(report)}
    if noted is not None and report.ok and await _hash_at(store, org.id, noted[0]) != noted[1]:
        row["ok"] = False
        row["sentence"] = f"Record {noted[0]} does not have the hash that was noted: the chain was written anew."
    return row


async def _hash_at(store: Store, org: str, seq: int) -> str:
    page = await store.find(Query(CALLS, "chain", {"org": org}, since=seq, until=seq + 1, limit=1))
    record: CallRecord | None = page.records[0] if page.records else None
    return record.hash if record is not None else ""


def _sentence(report: Report) -> str:
    if report.problem is None:
        return f"{report.checked} records, each linked to the one before, none changed."
    where = f"at number {report.problem.seq}" + (f" ({report.problem.id})" if report.problem.id else "")
    return f"{report.problem.sentence} This is {where}, after {report.checked} good records."


def _show(row: dict[str, Any]) -> None:
    say(f"{'ok' if row['ok'] else 'CHANGED'}  {row['name']}: {row['sentence']}", "green" if row["ok"] else "red")
    if row["ok"] and row["head_seq"]:
        say(f"    ends at {row['head_seq']}:{row['head_hash']}", "dim")
