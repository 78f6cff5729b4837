"""`users`: people who sign in. For whoever owns the host: no role holds them back, but the last owner stays."""

from __future__ import annotations

from typing import Any

import click

from ...catalog.errors import NotFound
from ...catalog.records import USERS, User
from .common import ACTOR, Common, House, common_options, confirm, house, run
from .output import emit_json, facts, moment, say, table

ROLES = ("viewer", "member", "admin", "owner")


@click.group()
def users() -> None:
    """People: list, create, change, remove; one-time links for who cannot sign in."""


def people(own: House) -> Any:
    """The services of people. Raises SecretError when the key file is not there."""
    from ..identity import Identity
    from ..people.service import People
    from ..vault import Vault

    vault = Vault.load(own.settings)
    return People(own.store, vault, own.accounts, Identity(own.store), own.settings.auth)


async def named(own: House, wanted: str) -> User:
    """A person of this organisation by e-mail or id. NotFound."""
    service = people(own)
    found: User | None = await own.store.get(USERS, own.org, wanted)
    if found is None:
        found = await service.directory.by_email(wanted)
    if found is None or found.org != own.org:
        raise NotFound(f"There is no user {wanted!r}.", hint="agenticmail-enterprise users list")
    return found


def view(user: User) -> dict[str, Any]:
    """A person as they may be shown: without the hash of their password."""
    shown = {
        name: getattr(user, name) for name in ("id", "email", "name", "role", "status", "created_by", "created_at")
    }
    return {**shown, "has_password": bool(user.password_hash)}


@users.command("list")
@common_options
def list_(common: Common) -> None:
    """Everybody, oldest first."""

    async def work() -> list[dict[str, Any]]:
        async with house(common) as own:
            return [view(user) for user in await own.every(USERS, "by_org")]

    rows = run(work())
    if common.json:
        emit_json(rows)
        return
    table(
        ("E-MAIL", "ROLE", "STATUS", "NAME", "PASSWORD", "ID"),
        [(row["email"], row["role"], row["status"], row["name"], "set" if row["has_password"] else "not yet", row["id"])
         for row in rows],
        "There is nobody: agenticmail-enterprise users create EMAIL",
    )  # fmt: skip


@users.command("create")
@click.argument("email")
@click.option("--role", type=click.Choice(ROLES), default="viewer", show_default=True, help="What they may do.")
@click.option("--name", default="", help="Their name.")
@common_options
def create(common: Common, email: str, role: Any, name: str) -> None:
    """Add somebody, and show the one-time link by which they set a password."""

    async def work() -> tuple[User, Any]:
        from ..people.directory import NewUser

        async with house(common) as own:
            async with own.deed("user.create") as deed:
                spec = NewUser(email=email, name=name, role=role)
                user, link = await people(own).directory.add(own.org, spec, None)
                deed.resource, deed.details = user.id, {"email": user.email, "role": user.role}
            return user, link

    user, link = run(work())
    _show(common, user, link)


@users.command("link")
@click.argument("user")
@click.option("--reset", is_flag=True, help="To set a new password, instead of to sign in.")
@common_options
def link(common: Common, user: str, reset: bool) -> None:
    """A one-time link for somebody (e-mail or id) who cannot sign in. It ends earlier ones of its kind.

    A second factor is still asked for: users disable-second-factor takes it away.
    """

    async def work() -> tuple[User, Any]:
        async with house(common) as own:
            found = await named(own, user)
            purpose: Any = "reset" if reset else "sign_in"
            async with own.deed("user.link", found.id) as deed:
                deed.details["purpose"] = purpose
                return found, await people(own).tickets.issue(found, purpose, ACTOR)

    found, made = run(work())
    _show(common, found, made)


def _show(common: Common, user: User, made: Any) -> None:
    if common.json:
        shown = {"token": made.token, "url": made.url, "purpose": made.purpose, "expires_at": made.expires_at}
        emit_json({**view(user), "link": shown})
        return
    facts([("For", f"{user.email} ({user.role})"), ("Link", made.url), ("Token", made.token),
           ("Good for", made.purpose.replace("_", "-")), ("Until", moment(made.expires_at))])  # fmt: skip
    say("Whoever has the link can come in. It works once.", "bold")


@users.command("change")
@click.argument("user")
@click.option("--role", type=click.Choice(ROLES), help="Another role.")
@click.option("--status", type=click.Choice(("active", "suspended")), help="Whether they may sign in.")
@common_options
def change(common: Common, user: str, role: Any, status: Any) -> None:
    """Give somebody another role or status, from their next request on."""
    if role is None and status is None:
        raise click.UsageError("Say what to change: --role or --status.")

    async def work() -> User:
        import msgspec

        from ..people.directory import UserChange

        async with house(common) as own:
            found = await named(own, user)
            spec = UserChange(name=found.name, role=role or msgspec.UNSET, status=status or msgspec.UNSET)
            async with own.deed("user.update", found.id) as deed:
                changed: User = await people(own).directory.change(own.org, found.id, spec, None)
                deed.details = {
                    name: f"{getattr(found, name)} -> {getattr(changed, name)}" for name in ("role", "status")
                }
            return changed

    changed = run(work())
    if common.json:
        emit_json(view(changed))
        return
    say(f"{changed.email} is {changed.role}, {changed.status}.")


@users.command("disable-second-factor")
@click.argument("user")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
def disable_second_factor(common: Common, user: str, yes: bool) -> None:
    """Take away the second factor of somebody who lost app and recovery codes."""
    confirm(f"Take away the second factor of {user}?", yes)

    async def work() -> tuple[User, bool]:
        async with house(common) as own:
            found = await named(own, user)
            async with own.deed("user.2fa_off", found.id):
                return found, await people(own).factors.remove(found)

    found, was_on = run(work())
    if common.json:
        emit_json({**view(found), "second_factor": False, "was_on": was_on})
        return
    say(f"{found.email} signs in without a code now." if was_on else f"{found.email} had no second factor.")


@users.command("delete")
@click.argument("user")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
def delete(common: Common, user: str, yes: bool) -> None:
    """Remove somebody, with their sign-ins and the programs' keys that they made."""
    confirm(f"Remove {user}?", yes)

    async def work() -> User:
        async with house(common) as own:
            found = await named(own, user)
            async with own.deed("user.delete", found.id) as deed:
                deed.details = {"email": found.email, "role": found.role}
                removed: User = await people(own).directory.remove(own.org, found.id, None)
            return removed

    removed = run(work())
    if common.json:
        emit_json(view(removed))
        return
    say(f"Removed {removed.email}.")
