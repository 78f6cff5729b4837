"""`audit verify`: is the record of calls whole and unchanged? `audit prune`: old records go, the rest is provable."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from ...catalog.records import CALLS, CallRecord, ChainAnchor, Org
from ...catalog.store import Query, Store
from ..audit import shell_actor
from ..chainverify import Report, verify
from ..retention import Cut, prune
from .common import Common, common_options, confirm, house, opened, organisations, quiet, run, the_org
from .output import emit_json, moment, say


@click.group()
def audit() -> None:
    """Verify that the record of calls is whole and unchanged; remove old records."""


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
    fault = await _not_as_noted(store, report, noted) if noted is not None and report.ok else ""
    if fault:
        row |= {"ok": False, "sentence": fault}
    return row


async def _not_as_noted(store: Store, report: Report, noted: tuple[int, str]) -> str:
    """What is wrong with a place in the chain that was noted down, or ""."""
    seq, digest = noted
    anchor = report.anchor
    if anchor is not None and seq < anchor.seq:
        return f"Record {seq} was removed by {anchor.by} at {moment(anchor.at)}: give a place from {anchor.seq} on."
    found = anchor.hash if anchor is not None and seq == anchor.seq else await _hash_at(store, report.org, seq)
    return "" if found == digest else f"Record {seq} does not have the hash that was noted: the chain was written anew."


async def _hash_at(store: Store, org: str, seq: int) -> str:
    page = await store.find(Query(CALLS, "chain", {"org": org}, since=seq, until=seq + 1, limit=1))
    record: CallRecord | None = page.records[0] if page.records else None
    return record.hash if record is not None else ""


def _sentence(report: Report) -> str:
    if report.problem is None:
        whole = f"{report.checked} records, each linked to the one before, none changed"
        return f"{whole}{_from_anchor(report.anchor)}."
    where = f"at number {report.problem.seq}" + (f" ({report.problem.id})" if report.problem.id else "")
    return f"{report.problem.sentence} This is {where}, after {report.checked} good records."


def _from_anchor(anchor: ChainAnchor | None) -> str:
    if anchor is None:
        return ""
    day = moment(anchor.before)
    return f"; verified from anchor {anchor.seq}: {anchor.by} removed what was before {day}, at {moment(anchor.at)}"


def _show(row: dict[str, Any]) -> None:
    say(f"{'ok' if row['ok'] else 'CHANGED'}  {row['name']}: {row['sentence']}", "green" if row["ok"] else "red")
    if row["ok"] and row["head_seq"]:
        say(f"    ends at {row['head_seq']}:{row['head_hash']}", "dim")


# -- retention ---------------------------------------------------------------------------------------------------
@audit.command("prune")
@click.option("--before", required=True, metavar="DATE", help="2026-01-31 (its midnight, UTC) or 2026-01-31T12:00:00Z.")
@click.option("--dry-run", is_flag=True, help="Only say how many records would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
def prune_(common: Common, before: str, dry_run: bool, yes: bool) -> None:
    """Remove an organisation's records of calls from before a date, for good.

    What goes is verified first, and an anchor is written: where the chain was cut, by whom and when, with the last
    hash. `audit verify` then checks from there. A gateway may be serving meanwhile.
    """
    limit = _moment(before)
    if not dry_run:
        confirm(f"Remove all records of calls from before {moment(limit)} for good?", yes)

    async def work() -> tuple[str, Cut]:
        async with house(common) as own:
            if dry_run:
                return own.org_name, await prune(own.store, own.org, limit, by=shell_actor(), dry_run=True)
            async with own.deed("audit.prune") as deed:
                deed.details["before"] = moment(limit)
                cut = await prune(own.store, own.org, limit, by=shell_actor())
                deed.resource = cut.anchor.id if cut.pruned and cut.anchor else ""
                deed.details["pruned"] = str(cut.pruned)
            return own.org_name, cut

    name, cut = run(work())
    if common.json:
        emit_json({"org": cut.org, "name": name, "pruned": cut.pruned, "dry_run": dry_run, "anchor": cut.anchor})
        return
    if dry_run:
        say(f"{name}: {cut.pruned} records would go.")
    elif not cut.pruned or cut.anchor is None:
        say(f"{name}: nothing to remove before {moment(limit)}.")
    else:
        say(f"{name}: removed {cut.pruned} records; the chain begins behind {cut.anchor.seq}:{cut.anchor.hash}")


def _moment(text: str) -> int:
    """Milliseconds of a date (its midnight) or of a time with a zone, UTC where it names none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"--before: {text!r} is no date such as 2026-01-31 or 2026-01-31T12:00:00Z.") from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)
