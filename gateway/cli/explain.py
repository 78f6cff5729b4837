"""`explain`: every rule that speaks about a call, the one that decides, and the nearest change that would allow it."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from ...catalog.calls import Call, Principal
from ...catalog.errors import BadRequest
from ...catalog.ids import new_id
from ...catalog.tools import TOOL_INDEX
from ...policies.catalogue import Catalog
from ...policies.chain import Chain
from ...policies.explain import Explanation, explain_call
from ...policies.pluginhost import PluginHost
from ..approvals.book import finder
from .args import read_text
from .common import Common, House, common_options, house, run
from .output import STYLES, emit_json, pointing, say, table


@click.command()
@click.option("--agent", required=True, metavar="AGENT", help="Who would call (name or id).")
@click.option("--tool", required=True, metavar="TOOL", help="What (SERVER__TOOL, or an id of the catalog).")
@click.option("--args", "arguments", default="{}", metavar="JSON", help="With what: a JSON object, or @FILE.")
@click.option("--ip", default="127.0.0.1", show_default=True, help="From where.")
@common_options
def explain(common: Common, agent: str, tool: str, arguments: str, ip: str) -> None:
    """Why a call is allowed or denied, and what would allow it. Calls nothing, charges nothing."""
    raw = (read_text(arguments[1:]) if arguments.startswith("@") else arguments).encode()
    try:
        msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BadRequest(f"--args is not a JSON object: {error}.") from None

    async def work() -> Explanation:
        async with house(common) as own:
            return await explained(own, agent, tool, raw, ip)

    found = run(work())
    if common.json:
        emit_json(found)
        return
    show(found)


async def explained(own: House, agent: str, tool: str, raw: bytes, ip: str) -> Explanation:
    """Explain a call by an agent as policy stands in the store. NotFound for the agent, PluginError, StoreError."""
    who = await own.agent(agent)
    active = own.settings.plugins
    plugins = PluginHost(
        active.guards, active.gates, active.observers, active.config, guard_timeout=active.guard_timeout
    )  # fmt: skip
    chain = Chain(own.store, Catalog(TOOL_INDEX, own.store), plugins)
    chain.approvals = finder(own.store)
    principal = Principal(own.org, who.id, who.name, "")
    call = Call(principal, tool, raw, id=new_id("call"), at=time.time(), ip=ip)
    await plugins.provision()
    try:
        return await explain_call(chain, call)
    finally:
        await plugins.close()


def show(found: Explanation) -> None:
    """For people."""
    say(f"{found.effect.upper()}: {pointing(found.sentence)}", STYLES.get(found.effect, ""))
    say(f"Decided by {pointing(found.rule)} ({found.code})", "dim")
    say()
    table(
        ("STAGE", "SAYS", "RULE", "BECAUSE"),
        [
            (match.stage, match.effect, pointing(match.rule), pointing(match.detail))
            for match in found.matches
            if match.matched
        ],
        "No rule speaks about this call.",
    )
    if found.nearest:
        say()
        after = "allow it" if found.after == "allow" else "let a person approve it"
        say(f"What would {after}:", "bold")
        for change in found.nearest:
            say(f"  * {pointing(change.change)}  ({pointing(change.where)}, by {change.who})")
