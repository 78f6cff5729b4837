"""`calls`: the record of calls, newest first."""

from __future__ import annotations

from typing import Any, get_args

import click
import msgspec

from ...catalog.errors import NotFound
from ...catalog.records import CALLS, CallRecord, Effect
from ...catalog.store import MAX_PAGE, Query
from .common import Common, House, common_options, house, run
from .output import STYLES, duration, emit_json, facts, moment, pointing, say, table

MAX_LOOKED: int = 5_000
"""Records looked through at most for one filtered list."""


@click.group()
def calls() -> None:
    """The record of calls."""


@calls.command("list")
@click.option("--agent", metavar="AGENT", help="Only this agent's.")
@click.option("--effect", type=click.Choice(get_args(Effect)), help="Only those that were allowed, denied or held.")
@click.option("--limit", type=click.IntRange(1, MAX_PAGE), default=20, show_default=True)
@common_options
def list_(common: Common, agent: str | None, effect: str | None, limit: int) -> None:
    """The newest calls."""

    async def work() -> list[CallRecord]:
        async with house(common) as own:
            agent_id = (await own.agent(agent)).id if agent is not None else ""
            return await newest(own, limit, agent_id, effect)

    found = run(work())
    if common.json:
        emit_json([msgspec.structs.asdict(record) for record in found])
        return
    table(
        ("WHEN", "VERDICT", "TOOL", "OUTCOME", "TOOK", "RULE", "ID"),
        [(moment(record.at // 1000), record.effect, pointing(record.tool), record.outcome, duration(record.duration_us),
          pointing(record.rule), record.id) for record in found],
        "No calls yet." if agent is None and effect is None else "No such calls.",
    )  # fmt: skip


@calls.command("show")
@click.argument("call_id")
@common_options
def show(common: Common, call_id: str) -> None:
    """One call: the verdict and its reason, what was sent, what came of it."""

    async def work() -> CallRecord:
        async with house(common) as own:
            found: CallRecord | None = await own.store.get(CALLS, own.org, call_id)
            if found is None:
                raise NotFound(f"There is no call {call_id!r}.", hint="agenticmail-enterprise calls list")
            return found

    record = run(work())
    if common.json:
        emit_json(msgspec.structs.asdict(record))
        return
    say(pointing(f"{record.effect.upper()}  {record.tool}"), STYLES.get(record.effect, ""))
    facts(_facts(record))


def _facts(record: CallRecord) -> list[tuple[str, Any]]:
    rows = [
        ("Reason", record.reason), ("Rule", record.rule), ("Code", record.code), ("Outcome", record.outcome),
        ("Error", record.error), ("When", moment(record.at // 1000)), ("Agent", record.agent), ("Key", record.key),
        ("Door", record.door), ("Server", record.upstream), ("Arguments", record.args), ("Digest", record.args_digest),
        ("Status", record.status or ""), ("Took", duration(record.duration_us)),
        ("Server took", duration(record.upstream_us) if record.upstream_us else ""),
        ("Sizes", f"{record.request_bytes} bytes sent, {record.response_bytes} received"),
        ("Request", record.request_id), ("Trace", record.trace_id), ("Flags", ", ".join(record.flags)),
        ("Place in the chain", record.seq or ""), ("Hash", record.hash), ("Id", record.id),
    ]  # fmt: skip
    return [(name, pointing(str(value))) for name, value in rows]


async def newest(own: House, limit: int, agent_id: str = "", effect: str | None = None) -> list[CallRecord]:
    """The newest records, of one agent and one effect if named."""
    index, where = ("by_agent", {"org": own.org, "agent": agent_id}) if agent_id else ("by_org", {"org": own.org})
    query = Query(CALLS, index, where, limit=limit if effect is None else MAX_PAGE, descending=True)
    found: list[CallRecord] = []
    looked = 0
    while len(found) < limit and looked < MAX_LOOKED:
        page = await own.store.find(query)
        looked += len(page.records)
        found += [record for record in page.records if effect is None or record.effect == effect]
        if not page.cursor:
            break
        query = msgspec.structs.replace(query, cursor=page.cursor)
    return found[:limit]
