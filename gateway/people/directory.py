"""The people of an organisation: adding, changing, removing. Who may do that to whom is `gateway.scopes`' to say.

`actor` is the key or person that asks, None for the command line, which owns the store. Removing somebody, suspending
them or lowering their role also revokes the programs' keys that they made and that now reach beyond them, in the same
batch: whoever loses a role loses what they gave themselves by it. Agents' keys stay: they belong to the agents.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import msgspec

from ...catalog.calls import Person, Principal
from ...catalog.errors import Conflict, Forbidden, LastOwner, NotFound, Stale
from ...catalog.records import (
    KEYS,
    ROSTERS,
    SECOND_FACTORS,
    SESSIONS,
    USERS,
    ApiKey,
    Role,
    Roster,
    SecondFactor,
    Session,
    User,
    UserStatus,
)
from ...catalog.store import MAX_PAGE, Delete, Entity, Insert, Query, Replace, Store, Write
from ..accounts import PRINTABLE, Accounts
from ..changes import ATTEMPTS, ROOM, Changes, Clock
from ..scopes import EVERY, ROLE_SCOPES, covers_role, outranks
from .tickets import Link, Tickets

OWNERS: Final = "owners"

Email = Annotated[str, msgspec.Meta(min_length=3, max_length=254)]
PersonName = Annotated[str, msgspec.Meta(max_length=128, pattern=PRINTABLE)]
Password = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class NewUser(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Somebody to be added. Without a password they get a one-time link to set one, which is the better way."""

    email: Email
    name: PersonName = ""
    role: Role = "viewer"
    password: Password | msgspec.UnsetType = msgspec.UNSET


class UserChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A person said anew: a role or status left out stays, so no omission raises anybody."""

    name: PersonName
    role: Role | msgspec.UnsetType = msgspec.UNSET
    status: UserStatus | msgspec.UnsetType = msgspec.UNSET


class Directory:
    """One per worker. `on_change` runs after writes that can change what a key may do."""

    def __init__(
        self, store: Store, accounts: Accounts, tickets: Tickets, clock: Clock, on_change: Callable[[], None]
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._tickets = tickets
        self._changes = Changes(store, clock, on_change)

    # -- looking -------------------------------------------------------------------------------------------------
    async def user(self, org: str, user_id: str) -> User:
        """One person. NotFound when this organisation has none of that id."""
        found: User | None = await self._store.get(USERS, org, user_id)
        if found is None:
            raise NotFound(f"There is no user {user_id!r}.")
        return found

    async def by_email(self, email: str) -> User | None:
        """Whose address it is, in whichever organisation."""
        page = await self._store.find(Query(USERS, "email", {"email": email.strip().lower()}, limit=1))
        return page.records[0] if page.records else None

    # -- adding and changing -------------------------------------------------------------------------------------
    async def add(self, org: str, spec: NewUser, actor: Principal | None) -> tuple[User, Link | None]:
        """A new person, and without a password the link to set one. Forbidden for a role beyond the actor's own."""
        _may_give(actor, spec.role)
        password = None if isinstance(spec.password, msgspec.UnsetType) else spec.password
        by = actor.key_id if actor else "cli"
        user = await self._accounts.create_user(
            org, spec.email, password, name=spec.name, role=spec.role, created_by=by
        )  # fmt: skip
        link = await self._tickets.issue(user, "invite", by) if password is None else None
        return user, link

    async def change(
        self, org: str, user_id: str, spec: UserChange, actor: Principal | None, version: int | None = None
    ) -> User:
        """Say a person anew. Forbidden beyond the actor's reach or about the actor's own role; LastOwner; Stale."""

        async def attempt() -> User:
            user = _same_version(await self.user(org, user_id), version)
            role = user.role if isinstance(spec.role, msgspec.UnsetType) else spec.role
            status = user.status if isinstance(spec.status, msgspec.UnsetType) else spec.status
            standing = (role, status) != (user.role, user.status)
            _may_touch(actor, user, "No one changes their own role or status." if standing else "")
            _may_give(actor, role)
            guard = await self._guard(user) if _owns(user) and (role, status) != ("owner", "active") else []
            user.name, user.role, user.status = spec.name, role, status
            user.updated_at = self._changes.now()
            reach = ROLE_SCOPES[role] if status == "active" else frozenset[str]()
            revoked = await self._beyond(user, reach) if standing else []
            results = await self._commit(revoked, [Replace(USERS, user), *guard])
            changed: User = results[-1 - len(guard)]
            return changed

        user = await _retried(attempt, version)
        if user.status != "active":
            await self.sign_out(user)
            await self._tickets.forget(user)
        return user

    async def rename(self, user: User, name: str) -> User:
        """A person says their own name."""
        user.name, user.updated_at = name, self._changes.now()
        stored: User = (await self._store.commit(Replace(USERS, user)))[0]
        return stored

    async def remove(self, org: str, user_id: str, actor: Principal | None, version: int | None = None) -> User:
        """Remove a person: sessions, links and second factor go with them. Forbidden, LastOwner, Stale."""

        async def attempt() -> User:
            user = _same_version(await self.user(org, user_id), version)
            _may_touch(actor, user, "No one removes themselves; ask somebody else to.")
            guard = await self._guard(user) if _owns(user) else []
            revoked = await self._beyond(user, frozenset())
            await self._commit(revoked, [Delete(USERS, org, user.id, user.version), *guard])
            return user

        user = await _retried(attempt, version)
        await self.sign_out(user)
        await self._tickets.forget(user)
        factor: SecondFactor | None = await self._store.get(SECOND_FACTORS, org, user.id)
        if factor is not None:
            await self._drop(SECOND_FACTORS, factor)
        return user

    async def link_for(self, org: str, user_id: str, actor: Principal) -> Link:
        """A one-time link by which a person sets a new password. It lets its holder in, so it takes more than the
        person's own reach."""
        user = await self.user(org, user_id)
        self.may_stand_in(actor, user)
        if user.status != "active":
            raise Forbidden("This person is suspended; a link would not let them in.")
        return await self._tickets.issue(user, "reset" if user.password_hash else "invite", actor.key_id)

    @staticmethod
    def may_stand_in(actor: Principal, user: User) -> None:
        """Whether `actor` may do what could let them act as `user`. Forbidden."""
        if not outranks(actor.scopes, user.role):
            raise Forbidden("This needs a role above theirs.", role=user.role)

    @staticmethod
    def may_touch(actor: Principal, user: User) -> None:
        """Whether `actor` may change people of this one's role. Forbidden."""
        _may_touch(actor, user, "")

    # -- sessions ------------------------------------------------------------------------------------------------
    async def sessions(self, user: User) -> list[Session]:
        """The person's sign-ins, oldest first."""
        found: list[Session] = []
        cursor = ""
        while True:
            where = {"org": user.org, "user_id": user.id}
            page = await self._store.find(Query(SESSIONS, "by_user", where, limit=MAX_PAGE, cursor=cursor))
            found += page.records
            cursor = page.cursor
            if not cursor:
                return found

    async def sign_out(self, user: User, *, but: str = "") -> int:
        """End all sessions of a person but one; how many ended."""
        return sum([await self._drop(SESSIONS, item) for item in await self.sessions(user) if item.id != but])

    async def end_session(self, user: User, session_id: str) -> None:
        """End one sign-in. NotFound when it is not theirs."""
        found: Session | None = await self._store.get(SESSIONS, user.org, session_id)
        if found is None or found.user_id != user.id:
            raise NotFound(f"There is no session {session_id!r}.")
        await self._drop(SESSIONS, found)

    async def _drop(self, entity: Entity, record: Session | SecondFactor) -> bool:
        """Whether it was still there."""
        try:
            await self._store.commit(Delete(entity, record.org, record.id))
        except Stale:
            return False
        return True

    # -- what goes with a change ---------------------------------------------------------------------------------
    async def _guard(self, user: User) -> list[Write]:
        """The write that makes two removals of owners collide. LastOwner when nobody else is an active owner."""
        where = {"org": user.org, "role": "owner"}
        cursor, others = "", False
        while not others:
            page = await self._store.find(Query(USERS, "by_role", where, limit=MAX_PAGE, cursor=cursor))
            others = any(item.id != user.id and _owns(item) for item in page.records)
            cursor = page.cursor
            if not cursor:
                break
        if not others:
            raise LastOwner
        now = self._changes.now()
        roster: Roster | None = await self._store.get(ROSTERS, user.org, OWNERS)
        if roster is None:
            return [Insert(ROSTERS, Roster(org=user.org, id=OWNERS, changes=1, created_at=now, updated_at=now))]
        roster.changes, roster.updated_at = roster.changes + 1, now
        return [Replace(ROSTERS, roster)]

    async def _beyond(self, user: User, reach: frozenset[str]) -> list[Write]:
        """Revocations of the programs' keys that a person made and that hold a scope outside `reach`."""
        if EVERY in reach:
            return []
        found: list[ApiKey] = []
        cursor = ""
        while True:
            where = {"org": user.org, "created_by": user.id}
            page = await self._store.find(Query(KEYS, "by_creator", where, limit=MAX_PAGE, cursor=cursor))
            found += page.records
            cursor = page.cursor
            if not cursor:
                break
        now = self._changes.now()
        writes: list[Write] = []
        for key in found:
            if key.kind == "program" and not key.revoked_at and not frozenset(key.scopes) <= reach:
                key.revoked_at = key.updated_at = now
                writes.append(Replace(KEYS, key))
        return writes

    async def _commit(self, revoked: list[Write], last: list[Write]) -> list[Any]:
        """All in one batch; keys beyond its room before it, so that a crash in between leaves fewer live keys."""
        room = ROOM - len(last)
        while len(revoked) > room:
            await self._changes.commit(*revoked[:ROOM])
            del revoked[:ROOM]
        return await self._changes.commit(*revoked, *last)


def _owns(user: User) -> bool:
    return (user.role, user.status) == ("owner", "active")


def _may_give(actor: Principal | None, role: Role) -> None:
    if actor is not None and not covers_role(actor.scopes, role):
        raise Forbidden(f"Only those give the role {role} who may do all that it may.", role=role)


def _may_touch(actor: Principal | None, user: User, own: str) -> None:
    """Forbidden for somebody whose role the actor does not cover; `own`: why not even for oneself, "" when one may."""
    if actor is None:
        return
    if not covers_role(actor.scopes, user.role):
        raise Forbidden(f"Only those who may do all that the role {user.role} may change people of it.", role=user.role)
    if own and isinstance(actor, Person) and actor.user_id == user.id:
        raise Forbidden(own)


def _same_version(user: User, version: int | None) -> User:
    if version is not None and user.version != version:
        raise Stale
    return user


async def _retried(attempt: Callable[[], Awaitable[User]], version: int | None) -> User:
    """Run a read-decide-write again while others get in between, unless the caller named a version."""
    tries = ATTEMPTS if version is None else 1
    for last in range(tries - 1, -1, -1):
        try:
            return await attempt()
        except (Stale, Conflict) as error:
            if not last or (isinstance(error, Conflict) and error.index != "id"):
                raise
    raise Stale
