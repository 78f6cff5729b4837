"""One-time links: to set a first password, to set a new one, or to sign in. Each works once, for one person, until it
expires or a newer one of its kind is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from ...catalog.errors import Conflict, LinkInvalid, Stale
from ...catalog.ids import new_id
from ...catalog.records import TICKETS, USERS, Ticket, TicketPurpose, User
from ...catalog.store import Delete, Insert, Query, Store, Write
from ..settings import AuthSettings
from .tokens import LINK_PREFIX, digest, new_secret

PAGES: Final[dict[TicketPurpose, str]] = {
    "invite": "/set-password", "reset": "/set-password", "sign_in": "/sign-in/link",
}  # fmt: skip
"""Where a link leads. The page there sends the token by POST: a link that is only fetched does nothing."""


class Link(msgspec.Struct, kw_only=True):
    """A one-time link as it is shown, once. `expires_at` in milliseconds."""

    token: str
    url: str
    purpose: TicketPurpose
    expires_at: int


class Tickets:
    """Makes and redeems. `now` gives milliseconds."""

    def __init__(self, store: Store, settings: AuthSettings, now: Callable[[], int]) -> None:
        self._store = store
        self._settings = settings
        self._now = now

    def _lifetime(self, purpose: TicketPurpose) -> int:
        minutes = {
            "invite": self._settings.invite_days * 24 * 60,
            "reset": self._settings.reset_minutes,
            "sign_in": self._settings.sign_in_minutes,
        }[purpose]
        return minutes * 60_000

    async def issue(self, user: User, purpose: TicketPurpose, created_by: str) -> Link:
        """A new link; earlier ones of the same kind end with it."""
        now = self._now()
        token = LINK_PREFIX + new_secret()
        ticket = Ticket(
            org=user.org, id=new_id("ticket"), user_id=user.id, purpose=purpose, digest=digest(token),
            expires_at=now + self._lifetime(purpose), created_by=created_by, created_at=now, updated_at=now,
        )  # fmt: skip
        older = [item for item in await self._of(user) if item.purpose == purpose]
        writes: list[Write] = [Delete(TICKETS, user.org, item.id) for item in older]
        try:
            await self._store.commit(Insert(TICKETS, ticket), *writes)
        except (Stale, Conflict):  # somebody redeemed or replaced an older one meanwhile
            await self._store.commit(Insert(TICKETS, ticket))
        url = f"{self._settings.public_url}{PAGES[purpose]}?token={token}"
        return Link(token=token, url=url, purpose=purpose, expires_at=ticket.expires_at)

    async def find(self, token: str, *purposes: TicketPurpose) -> tuple[Ticket, User]:
        """What a link stands for, still unused. Raises LinkInvalid, in one sentence for every reason."""
        if not token.startswith(LINK_PREFIX) or len(token) > 200:
            raise LinkInvalid
        page = await self._store.find(Query(TICKETS, "digest", {"digest": digest(token)}, limit=1))
        ticket: Ticket | None = page.records[0] if page.records else None
        if ticket is None or ticket.purpose not in purposes or ticket.expires_at <= self._now():
            raise LinkInvalid
        user: User | None = await self._store.get(USERS, ticket.org, ticket.user_id)
        if user is None or user.status != "active":
            raise LinkInvalid
        return ticket, user

    async def redeem(self, ticket: Ticket, *writes: Write) -> None:
        """Use a link up, together with what it allows. LinkInvalid when somebody was faster."""
        try:
            await self._store.commit(Delete(TICKETS, ticket.org, ticket.id, ticket.version), *writes)
        except Stale:
            raise LinkInvalid from None

    async def forget(self, user: User) -> None:
        """End all links of a person."""
        for ticket in await self._of(user):
            try:
                await self._store.commit(Delete(TICKETS, user.org, ticket.id))
            except Stale:
                continue

    async def _of(self, user: User) -> list[Ticket]:
        page = await self._store.find(Query(TICKETS, "by_user", {"org": user.org, "user_id": user.id}, limit=90))
        return page.records
