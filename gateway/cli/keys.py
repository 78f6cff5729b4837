"""`keys`: create, list, revoke."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import click

from ...catalog.records import AGENTS, KEYS, Agent, ApiKey
from ..keys import DEFAULT_DAYS, KeySpec
from ..scopes import CALL, SCOPES
from .args import from_environment, from_files
from .common import ACTOR, Common, House, common_options, confirm, house, run
from .output import emit_json, facts, moment, say, table

DAY_MS = 24 * 3600 * 1000


@click.group()
def keys() -> None:
    """API keys: create, list, revoke. A key is shown once; only its digest is stored."""


@keys.command("create")
@click.option("--agent", metavar="AGENT", help="For this agent (name or id): calls through the gateway.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice([scope for scope in SCOPES if scope != CALL]),
              help="For a program: what it may do through the API. May be repeated.")  # fmt: skip
@click.option("--name", default="", help="What it is for.")
@click.option("--days", type=click.IntRange(1, 3650), default=DEFAULT_DAYS, show_default=True, help="Days it is valid.")
@click.option("--no-expiry", is_flag=True, help="Valid until revoked.")
@click.option("--allowed-ip", "allowed_ips", multiple=True, metavar="CIDR", help="Only from there. May be repeated.")
@common_options
def create(
    common: Common, agent: str | None, scopes: tuple[str, ...], name: str, days: int, no_expiry: bool,
    allowed_ips: tuple[str, ...],
) -> None:  # fmt: skip
    """Create a key for an agent (--agent) or a program (--scope), and show it once."""
    if (agent is None) == (not scopes):
        raise click.UsageError("Give --agent for an agent's key, or --scope for a program's.")

    async def work() -> tuple[ApiKey, str, str]:
        async with house(common) as own:
            owner = await own.agent(agent) if agent is not None else None
            spec = KeySpec(
                kind="agent" if owner else "program", agent_id=owner.id if owner else "", name=name, scopes=scopes,
                allowed_ips=allowed_ips, expires_at=0 if no_expiry else _in_days(days),
            )  # fmt: skip
            record, secret = await _mint(own, spec)
            return record, secret, owner.name if owner else ""

    record, secret, owner = run(work())
    if common.json:
        emit_json({**view(record, owner), "api_key": secret})
        return
    facts([("API key", secret), ("Id", record.id), ("For", owner or "a program"), ("Scopes", ", ".join(record.scopes)),
           ("Expires", moment(record.expires_at) or "never")])  # fmt: skip
    say("The key is shown this once. Keep it.", "bold")


@keys.command("adopt")
@click.option("--agent", metavar="AGENT", required=True, help="The agent (name or id) that the key stands for.")
@click.option("--from-env", "variable", metavar="VARIABLE", help="The environment variable that holds the key.")
@click.option("--from-file", "file", type=click.Path(exists=True, dir_okay=False), help="A file that holds it.")
@click.option("--name", default="", help="What it is for.")
@common_options
def adopt(common: Common, agent: str, variable: str | None, file: str | None, name: str) -> None:
    """Let an agent's own AgenticMail key (ak_...) stand for it at /api/agenticmail. Only a digest is stored."""
    if (variable is None) == (file is None):
        raise click.UsageError("Give --from-env or --from-file: a key on the command line would be seen by others.")
    source = from_environment((("key", variable),)) if variable else from_files((("key", str(file)),))

    async def work() -> tuple[ApiKey, str]:
        async with house(common) as own:
            owner = await own.agent(agent)
            async with own.deed("key.adopt") as deed:
                deed.details["agent"] = owner.id
                record: ApiKey = await own.accounts.adopt(
                    own.org, owner.id, source["key"].strip(), created_by=ACTOR, name=name
                )
                deed.resource = record.id
            return record, owner.name

    record, owner = run(work())
    if common.json:
        emit_json(view(record, owner))
        return
    say(f"The AgenticMail key ...{record.last4} stands for {owner} at /api/agenticmail ({record.id}).")


@keys.command("list")
@click.option("--agent", metavar="AGENT", help="Only this agent's.")
@click.option("--all", "everything", is_flag=True, help="Revoked and expired ones too.")
@common_options
def list_(common: Common, agent: str | None, everything: bool) -> None:
    """Keys that are live. Never the key itself: its first and last characters."""

    async def work() -> list[dict[str, Any]]:
        async with house(common) as own:
            if agent is not None:
                found = await own.every(KEYS, "by_agent", agent_id=(await own.agent(agent)).id)
            else:
                found = await own.every(KEYS, "by_org")
            names = {record.id: record.name for record in await own.every(AGENTS, "by_org")}
            chosen = found if everything else live_keys(found)
            return [view(key, names.get(key.agent_id, "")) for key in chosen]

    rows = run(work())
    if common.json:
        emit_json(rows)
        return
    table(
        ("KEY", "FOR", "STATE", "NAME", "SCOPES", "EXPIRES", "ID"),
        [(f"{row['prefix']}...{row['last4']}", row["agent"] or "(program)", row["state"], row["name"],
          ", ".join(row["scopes"]), moment(row["expires_at"]) or "never", row["id"]) for row in rows],
        "There are no live keys: agenticmail-enterprise keys create --agent NAME",
    )  # fmt: skip


@keys.command("revoke")
@click.argument("key_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
def revoke(common: Common, key_id: str, yes: bool) -> None:
    """Revoke a key by its id (see `keys list`), for good. Every worker refuses it within half a second."""
    confirm(f"Revoke the key {key_id}?", yes)

    async def work() -> ApiKey:
        async with house(common) as own, own.deed("key.revoke", key_id):
            return await own.accounts.revoke(own.org, key_id)

    record = run(work())
    if common.json:
        emit_json(view(record, ""))
        return
    say(f"Revoked {record.prefix}...{record.last4} ({record.id}).")


def _in_days(days: int) -> int:
    return int(time.time() * 1000) + days * DAY_MS


def live_keys(found: Iterable[ApiKey]) -> list[ApiKey]:
    """Those that still work."""
    return [key for key in found if state_of(key) == "active"]


def state_of(key: ApiKey) -> str:
    if key.revoked_at:
        return "revoked"
    return "expired" if key.expires_at and key.expires_at <= time.time() * 1000 else "active"


def view(key: ApiKey, agent: str) -> dict[str, Any]:
    """A key as it may be shown: without its digest."""
    shown = {name: getattr(key, name) for name in
             ("id", "kind", "agent_id", "name", "prefix", "last4", "scopes", "allowed_ips", "created_at", "expires_at",
              "revoked_at", "created_by")}  # fmt: skip
    return {**shown, "agent": agent, "state": state_of(key)}


async def mint_for(own: House, agent: Agent, name: str = "") -> tuple[ApiKey, str]:
    """A key for an agent, valid for the default time."""
    spec = KeySpec(agent_id=agent.id, name=name, expires_at=_in_days(DEFAULT_DAYS))
    return await _mint(own, spec)


async def _mint(own: House, spec: KeySpec) -> tuple[ApiKey, str]:
    async with own.deed("key.create") as deed:
        deed.details |= {"kind": spec.kind, "scopes": " ".join(spec.scopes), "agent": spec.agent_id}
        record, secret = await own.accounts.mint(own.org, spec, created_by=ACTOR)
        deed.resource = record.id
        deed.details["scopes"] = " ".join(record.scopes)
    return record, secret
