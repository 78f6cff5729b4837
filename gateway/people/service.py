"""`People`: the parts put together, one per worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from ...catalog.errors import EnterpriseError
from ...catalog.records import User
from ...catalog.store import Store
from ..accounts import Accounts
from ..settings import AuthSettings
from ..vault import Vault
from .company import Companies
from .directory import Directory
from .factors import Factors
from .signin import SignIn
from .throttle import Throttle
from .tickets import Link, Tickets
from .tokens import Tokens
from .who import KeyHolder, Who

if TYPE_CHECKING:
    from ..passwords import Passwords

log = structlog.get_logger()


class Courier(Protocol):
    """Brings a one-time link to a person, by mail for instance."""

    async def bring(self, user: User, link: Link) -> None: ...


class People:
    """`courier`: who brings links to those who lost their password; None: nobody does, the wish is on the audit, and
    somebody with the right makes the link. `clock`: seconds since the epoch; `ticks`: seconds that never go back."""

    def __init__(
        self, store: Store, vault: Vault, accounts: Accounts, keys: KeyHolder, settings: AuthSettings, *,
        passwords: Passwords | None = None, workers: int = 1, on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time, ticks: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.settings = settings
        self._made_of = (vault, keys, passwords, clock, ticks)
        self.courier: Courier | None = None
        self.clock = clock
        self.tokens = Tokens(vault, clock)
        self.throttle = Throttle(workers, ticks)
        self.tickets = Tickets(store, settings, lambda: int(clock() * 1000))
        self.directory = Directory(store, accounts, self.tickets, clock, on_change)
        self.factors = Factors(store, vault, clock)
        self.companies = Companies(store, vault, clock)
        self.sign_in = SignIn(
            store, settings, passwords, self.directory, self.factors, self.tickets, self.companies,
            self.tokens, self.throttle, clock,
        )  # fmt: skip
        self.who = Who(store, keys, self.tokens, self.sign_in, self.companies, settings)
        self._errands: set[asyncio.Task[Any]] = set()

    def over(self, store: Store, accounts: Accounts) -> People:
        """The same over another store: one that keeps nothing, for a dry run."""
        vault, keys, passwords, clock, ticks = self._made_of
        return People(store, vault, accounts, keys, self.settings, passwords=passwords, clock=clock, ticks=ticks)

    def send_reset(self, email: str, then: Callable[[User | None], Awaitable[None]]) -> None:
        """Begin to bring a link to whoever lost their password, and return at once: how long it takes, and whether
        there is anybody, shows nowhere. `then` gets whom it was for."""
        task = asyncio.get_running_loop().create_task(self._send_reset(email, then))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _send_reset(self, email: str, then: Callable[[User | None], Awaitable[None]]) -> None:
        user: User | None = None
        try:
            found = await self.sign_in.forgotten(email)
            if found is not None:
                user, link = found
                if self.courier is not None:
                    await self.courier.bring(user, link)
        except EnterpriseError as error:
            log.warning("reset_link_not_sent", reason=error.message)
        except Exception:
            log.exception("reset_link_not_sent")
        await then(user)

    async def settle(self) -> None:
        """Wait for what `send_reset` began."""
        while self._errands:
            await asyncio.gather(*self._errands, return_exceptions=True)
