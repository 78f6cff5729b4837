"""`agents`: create, list, show, change their status and profile, delete."""

from __future__ import annotations

from typing import Any, get_args

import click
import msgspec

from ...catalog.errors import Conflict
from ...catalog.presets import PRESET_PROFILES
from ...catalog.profiles import Profile
from ...catalog.records import AGENTS, KEYS, PROFILES, Agent, AgentStatus, ApiKey, ProfileRecord
from ..accounts import AgentSpec, Assignment
from .args import PAIR, read_struct
from .common import Common, House, common_options, confirm, house, run
from .keys import live_keys, mint_for
from .output import emit_json, facts, moment, say, table

PRESETS = tuple(preset.id for preset in PRESET_PROFILES)


@click.group()
def agents() -> None:
    """Agents and what they may do. An agent without a profile may do nothing."""


def _profile_options(function: Any) -> Any:
    for option in (
        click.option("--preset", type=click.Choice(PRESETS), help="One of the five preset profiles."),
        click.option("--profile-file", metavar="FILE", help="A profile of its own, TOML or JSON (- reads JSON)."),
        click.option("--profile-id", metavar="ID", help="A profile that agents share."),
    ):
        function = option(function)
    return function


def _assignment(preset: str | None, profile_file: str | None, profile_id: str | None) -> Assignment | None:
    given = [value for value in (preset, profile_file, profile_id) if value is not None]
    if not given:
        return None
    if len(given) > 1:
        raise click.UsageError("Give one of --preset, --profile-file and --profile-id.")
    if profile_file is not None:
        return Assignment(profile=read_struct(profile_file, Profile, "profile"))
    return Assignment(preset=preset) if preset is not None else Assignment(profile_id=profile_id or "")


@agents.command("create")
@click.argument("name")
@_profile_options
@click.option("--description", default="", help="One line about it.")
@click.option("--metadata", type=PAIR, multiple=True, help="Free facts about it.")
@click.option("--key", is_flag=True, help="Make an API key for it at once, and show it.")
@common_options
def create(
    common: Common, name: str, preset: str | None, profile_file: str | None, profile_id: str | None, description: str,
    metadata: tuple[tuple[str, str], ...], key: bool,
) -> None:  # fmt: skip
    """Create an agent. Without a profile it may do nothing."""
    assignment = _assignment(preset, profile_file, profile_id)
    spec = AgentSpec(name=name, description=description, metadata=dict(metadata))

    async def work() -> tuple[dict[str, Any], str | None]:
        async with house(common) as own:
            async with own.deed("agent.create") as deed:
                deed.details["name"] = name
                try:
                    agent = await own.accounts.create_agent(own.org, spec, assignment)
                except Conflict as error:
                    raise Conflict(error.index, f"There is an agent named {name!r} already.") from None
                deed.resource = agent.id
            secret = (await mint_for(own, agent))[1] if key else None
            return await _view(own, agent), secret

    view, secret = run(work())
    if common.json:
        emit_json({**view, "api_key": secret} if key else view)
        return
    say(f"Created {view['name']} ({view['id']}), profile: {view['profile'] or 'none, so it may do nothing'}.")
    if secret:
        facts([("API key", f"{secret}   (shown this once)")])


@agents.command("list")
@click.option("--status", type=click.Choice(get_args(AgentStatus)), help="Only those.")
@common_options
def list_(common: Common, status: str | None) -> None:
    """All agents."""

    async def work() -> list[dict[str, Any]]:
        async with house(common) as own:
            records = (
                await own.every(AGENTS, "by_status", status=status) if status else await own.every(AGENTS, "by_org")
            )
            names = {record.id: record.name for record in await own.every(PROFILES, "by_org")}
            return [{**_plain(agent), "profile": names.get(agent.profile_id, "")} for agent in records]

    rows = run(work())
    if common.json:
        emit_json(rows)
        return
    table(
        ("NAME", "STATUS", "PROFILE", "ID", "CREATED"),
        [
            (row["name"], row["status"], row["profile"] or "(none)", row["id"], moment(row["created_at"]))
            for row in rows
        ],
        "There are no agents yet: agenticmail-enterprise agents create NAME --preset research-assistant --key",
    )


@agents.command("show")
@click.argument("agent")
@common_options
def show(common: Common, agent: str) -> None:
    """One agent, by name or id: its profile and its keys."""

    async def work() -> tuple[dict[str, Any], ProfileRecord | None, list[ApiKey]]:
        async with house(common) as own:
            found = await own.agent(agent)
            keys = await own.every(KEYS, "by_agent", agent_id=found.id)
            return await _view(own, found), await own.accounts.profile_of(found), keys

    view, record, keys = run(work())
    live = live_keys(keys)
    if common.json:
        emit_json({**view, "spec": record.spec if record else None, "live_keys": [key.id for key in live]})
        return
    facts([
        ("Name", view["name"]), ("Id", view["id"]), ("Status", view["status"]), ("Description", view["description"]),
        ("Profile", view["profile"] or "none: it may do nothing"), ("Profile id", view["profile_id"]),
        ("Live keys", ", ".join(f"{key.prefix}...{key.last4}" for key in live) or "none"),
        ("Metadata", ", ".join(f"{name}={value}" for name, value in view["metadata"].items())),
        ("Created", moment(view["created_at"])),
    ])  # fmt: skip
    if record is not None:
        _show_spec(record.spec)


@agents.command("status")
@click.argument("agent")
@click.argument("status", type=click.Choice(get_args(AgentStatus)))
@common_options
def status_(common: Common, agent: str, status: AgentStatus) -> None:
    """Set an agent's status. A suspended or archived agent may do nothing."""

    async def work() -> dict[str, Any]:
        async with house(common) as own:
            found = await own.agent(agent)
            spec = AgentSpec(name=found.name, description=found.description, status=status, metadata=found.metadata)
            async with own.deed("agent.update", found.id) as deed:
                deed.details["status"] = status
                changed = await own.accounts.replace_agent(own.org, found.id, spec, found.version)
            return await _view(own, changed)

    view = run(work())
    if common.json:
        emit_json(view)
        return
    say(f"{view['name']} is {view['status']}.")


@agents.command("delete")
@click.argument("agent")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
def delete(common: Common, agent: str, yes: bool) -> None:
    """Delete an agent with its own profile, and revoke its keys. Its records stay."""
    confirm(f"Delete the agent {agent!r} and revoke its keys?", yes)

    async def work() -> Agent:
        async with house(common) as own:
            found = await own.agent(agent)
            async with own.deed("agent.delete", found.id) as deed:
                deed.details["name"] = found.name
                await own.accounts.delete_agent(own.org, found.id)
            return found

    gone = run(work())
    if common.json:
        emit_json({"deleted": gone.id, "name": gone.name})
        return
    say(f"Deleted {gone.name} ({gone.id}); its keys are revoked.")


@agents.group("profile")
def profile() -> None:
    """What an agent may do."""


@profile.command("set")
@click.argument("agent")
@_profile_options
@common_options
def profile_set(
    common: Common, agent: str, preset: str | None, profile_file: str | None, profile_id: str | None
) -> None:  # fmt: skip
    """Give an agent another profile. It is in force within half a second."""
    assignment = _assignment(preset, profile_file, profile_id)
    if assignment is None:
        raise click.UsageError("Give one of --preset, --profile-file and --profile-id.")

    async def work() -> tuple[Agent, ProfileRecord]:
        async with house(common) as own:
            found = await own.agent(agent)
            async with own.deed("agent.profile", found.id) as deed:
                changed, record = await own.accounts.assign(own.org, found.id, assignment)
                deed.details["profile"] = record.preset or record.id
            return changed, record

    owner, record = run(work())
    if common.json:
        emit_json(
            {
                "agent": owner.id,
                "name": owner.name,
                "profile_id": record.id,
                "profile": record.name,
                "spec": record.spec,
            }
        )
        return
    say(f"{owner.name} has the profile {record.name} ({record.id}).")


@profile.command("show")
@click.argument("agent")
@common_options
def profile_show(common: Common, agent: str) -> None:
    """The profile of an agent, as JSON fit for `agents profile set --profile-file`."""

    async def work() -> ProfileRecord | None:
        async with house(common) as own:
            return await own.accounts.profile_of(await own.agent(agent))

    record = run(work())
    emit_json(record.spec if record is not None else Profile())


def _plain(agent: Agent) -> dict[str, Any]:
    return {name: getattr(agent, name) for name in
            ("id", "name", "description", "status", "profile_id", "metadata", "created_at", "updated_at")}  # fmt: skip


async def _view(own: House, agent: Agent) -> dict[str, Any]:
    record = await own.accounts.profile_of(agent)
    return {**_plain(agent), "profile": record.name if record is not None else ""}


def _show_spec(spec: Profile) -> None:
    """What a profile says, without what it leaves open."""
    say()
    say("What it may do", "bold")
    said = {name: value for name, value in msgspec.to_builtins(spec).items() if name not in ("name", "description")}
    facts(
        (name, value if isinstance(value, str) else msgspec.json.encode(value).decode()) for name, value in said.items()
    )
