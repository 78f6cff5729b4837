"""`/api/users`: the people of the organisation. Who may do what to whom: `gateway.scopes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...catalog.errors import Conflict, LastOwner, PreconditionFailed, Stale
from ...catalog.records import USERS, Role, User
from ...catalog.store import Query
from ...gateway.people.directory import NewUser, UserChange
from ...gateway.people.tickets import Link
from .. import show
from ..examples import USER_ID
from ..operation import Context, Example, Listing, Reply, operation
from ..paging import PageQuery, View, listing


class UserQuery(PageQuery, kw_only=True):
    """`role`: only people of it. `email`: only whose address this is."""

    role: Role | msgspec.UnsetType = msgspec.UNSET
    email: str | msgspec.UnsetType = msgspec.UNSET


class LinkOut(msgspec.Struct, kw_only=True):
    """A one-time link, shown this once. Give it to the person on a way that only they can read. Null in an answer that
    is given again (Idempotency-Key) and in a dry run."""

    token: str | None
    url: str | None
    purpose: str
    expires_at: show.Time


class NewUserOut(show.UserOut, kw_only=True):
    """A person just added. `link` to set a password, null where one was given."""

    link: LinkOut | None


class UserDetailOut(show.UserOut, kw_only=True):
    """A person, and how they sign in."""

    second_factor: bool
    sessions: int
    last_seen_at: show.Time | None


class EndedOut(msgspec.Struct, kw_only=True):
    """How many sign-ins ended."""

    sessions_ended: int


def _link(link: Link) -> LinkOut:
    return LinkOut(token=link.token, url=link.url, purpose=link.purpose, expires_at=show.moment(link.expires_at))


async def _detail(ctx: Context, user: User) -> UserDetailOut:
    people = ctx.runtime.people
    now = people.sign_in.now()
    live = [item for item in await people.directory.sessions(user) if item.expires_at > now]
    seen = max((item.seen_at for item in live), default=0)
    return UserDetailOut(
        **msgspec.structs.asdict(show.user(user)), second_factor=await people.factors.is_on(user), sessions=len(live),
        last_seen_at=show.moment_or_none(seen),
    )  # fmt: skip


@operation(
    "GET", "/api/users", tag="users", scope="users:read", role="admin", query=UserQuery, returns=show.UserOut,
    listing=True, example=Example(query={"role": "admin", "limit": "20"}),
)  # fmt: skip
async def list_users(ctx: Context, query: UserQuery) -> Listing:
    """The people of this organisation, oldest first."""
    view = View(entity=USERS, index="by_org", where={"org": ctx.org})
    if not isinstance(query.role, msgspec.UnsetType):
        view = View(entity=USERS, index="by_role", where={"org": ctx.org, "role": query.role})
    if not isinstance(query.email, msgspec.UnsetType):
        # The index is across organisations; whoever is in another one is not there.
        where = {"email": query.email.strip().lower()}
        found = [item for item in (await ctx.store.find(_by_email(where))).records if item.org == ctx.org]
        if not isinstance(query.role, msgspec.UnsetType):
            found = [item for item in found if item.role == query.role]
        return Listing([show.user(item) for item in found], query.limit, len(found), 1)
    return await listing(ctx, query, view, show.user)


def _by_email(where: dict[str, str]) -> Query:
    return Query(USERS, "email", where, limit=1)


@operation(
    "POST", "/api/users", tag="users", scope="users:write", role="admin", body=NewUser, returns=NewUserOut, status=201,
    audit="user.create", once=("link",), errors=(Conflict,),
    example=Example(body={"email": "new.colleague@acme.test", "name": "Nia New", "role": "member"}),
)  # fmt: skip
async def create_user(ctx: Context, body: NewUser) -> Reply:
    """Add somebody.

    Without a password the answer has a one-time link by which they set one. A role is given by those alone who may do
    all that it may: admins make admins, members and viewers, owners make owners too, a key no role beyond its scopes.
    """
    user, link = await ctx.runtime.people.directory.add(ctx.org, body, ctx.principal)
    ctx.resource = user.id
    ctx.details |= {"email": user.email, "role": user.role}
    shown = NewUserOut(**msgspec.structs.asdict(show.user(user)), link=_link(link) if link else None)
    return Reply(shown, user.version, f"/api/users/{user.id}")


@operation(
    "GET", "/api/users/{id}", tag="users", scope="users:read", role="admin", returns=UserDetailOut,
    example=Example(path={"id": USER_ID}),
)  # fmt: skip
async def get_user(ctx: Context) -> Reply:
    """One person: role, status, second factor, sign-ins."""
    user = await ctx.runtime.people.directory.user(ctx.org, ctx.path["id"])
    return Reply(await _detail(ctx, user), user.version)


async def _user_now(ctx: Context, patch: Mapping[str, Any]) -> tuple[UserChange, int]:
    user = await ctx.runtime.people.directory.user(ctx.org, ctx.path["id"])
    return UserChange(name=user.name, role=user.role, status=user.status), user.version


@operation(
    "PUT", "/api/users/{id}", tag="users", scope="users:write", role="admin", body=UserChange, returns=UserDetailOut,
    current=_user_now, audit="user.update", errors=(LastOwner, Stale, PreconditionFailed),
    example=Example(path={"id": USER_ID}, body={"name": "Mia Member", "role": "viewer", "status": "active"}),
)  # fmt: skip
async def replace_user(ctx: Context, body: UserChange) -> Reply:
    """Change a person's name, role or status. It holds from their next request on.

    Nobody changes their own role or status. Who is suspended, or gets a lesser role, also loses the programs' keys that
    they made and that now reach beyond them. An organisation keeps at least one active owner.
    """
    directory = ctx.runtime.people.directory
    stored = await directory.user(ctx.org, ctx.path["id"])
    version = stored.version if ctx.match(stored.version) else None
    user = await directory.change(ctx.org, stored.id, body, ctx.principal, version)
    ctx.details |= {"role": f"{stored.role} -> {user.role}", "status": f"{stored.status} -> {user.status}"}
    return Reply(await _detail(ctx, user), user.version)


@operation(
    "DELETE", "/api/users/{id}", tag="users", scope="users:write", role="admin", returns=None, status=204,
    audit="user.delete", errors=(LastOwner, Stale, PreconditionFailed), example=Example(path={"id": USER_ID}),
)  # fmt: skip
async def delete_user(ctx: Context) -> None:
    """Remove a person. Sign-ins, links and the programs' keys that they made end with them; agents' keys stay."""
    directory = ctx.runtime.people.directory
    stored = await directory.user(ctx.org, ctx.path["id"])
    version = stored.version if ctx.match(stored.version) else None
    user = await directory.remove(ctx.org, stored.id, ctx.principal, version)
    ctx.details |= {"email": user.email, "role": user.role}


@operation(
    "POST", "/api/users/{id}/link", tag="users", scope="users:write", role="admin", returns=LinkOut, status=201,
    audit="user.link", once=("token", "url"), example=Example(path={"id": USER_ID}),
)  # fmt: skip
async def create_link(ctx: Context) -> Reply:
    """Make a one-time link by which a person sets a new password; earlier ones end.

    Who has the link can come in as this person, so it takes a role above theirs: admins for members and viewers, owners
    for everybody. Where a second factor is on, it is still asked for.
    """
    link = await ctx.runtime.people.directory.link_for(ctx.org, ctx.path["id"], ctx.principal)
    ctx.details["purpose"] = link.purpose
    return Reply(_link(link))


@operation(
    "POST", "/api/users/{id}/sign-out", tag="users", scope="users:write", role="admin", returns=EndedOut,
    audit="user.sign_out", example=Example(path={"id": USER_ID}),
)  # fmt: skip
async def sign_user_out(ctx: Context) -> Reply:
    """End every sign-in of a person."""
    directory = ctx.runtime.people.directory
    user = await directory.user(ctx.org, ctx.path["id"])
    directory.may_touch(ctx.principal, user)
    ended = await directory.sign_out(user)
    ctx.details["sessions_ended"] = str(ended)
    return Reply(EndedOut(sessions_ended=ended))


@operation(
    "DELETE", "/api/users/{id}/2fa", tag="users", scope="users:write", role="admin", returns=None, status=204,
    audit="user.2fa_off", example=Example(path={"id": USER_ID}),
)  # fmt: skip
async def remove_second_factor(ctx: Context) -> None:
    """Take a person's second factor away, where app and recovery codes are lost. It takes a role above theirs."""
    people = ctx.runtime.people
    user = await people.directory.user(ctx.org, ctx.path["id"])
    people.directory.may_stand_in(ctx.principal, user)
    await people.factors.remove(user)
