"""What commands share: the options to find the gateway's settings, and the house that they open."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from ...catalog.errors import NotFound, SettingsError
from ...catalog.records import AGENTS, Agent, Org
from ...catalog.store import GLOBAL, MAX_PAGE, Entity, Query, Store
from ..settings import LogSettings, Settings
from ..settings_load import Loaded, load

if TYPE_CHECKING:
    from ..audit import Deed

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

ACTOR: Final = "cli"
"""Who made it, in records that commands make. The audit trail says which user of the system."""


class Common(msgspec.Struct, frozen=True):
    """The shared options of one command line."""

    config: str | None
    database: str | None
    org: str | None
    json: bool

    def load(self, **flags: Any) -> Loaded:
        """The settings. Raises SettingsError. Names of `flags` have `__` for the dot."""
        named = {name.replace("__", "."): value for name, value in flags.items()}
        return load(self.config, flags={"database": self.database, **named})


def common_options(function: F) -> F:
    """Add --config, --database, --org and --json; the function gets a `Common` first."""

    @click.option("--config", metavar="FILE", help="Settings file. [default: ./agenticmail.toml if it is there]")
    @click.option("--database", metavar="URL", help="Database, e.g. sqlite:///gw.db.")
    @click.option("--org", metavar="ORG", help="Organisation by name or id, where there are several.")
    @json_option
    def wrapper(
        config: str | None, database: str | None, org: str | None, as_json: bool, **rest: Any
    ) -> Any:  # fmt: skip
        return function(Common(config, database, org, as_json), **rest)

    return _wrapped(wrapper, function)


def settings_options(function: F) -> F:
    """Add --config, --database and --json: for commands that are about no organisation."""

    @click.option("--config", metavar="FILE", help="Settings file. [default: ./agenticmail.toml if it is there]")
    @click.option("--database", metavar="URL", help="Database, e.g. sqlite:///gw.db.")
    @json_option
    def wrapper(config: str | None, database: str | None, as_json: bool, **rest: Any) -> Any:
        return function(Common(config, database, None, as_json), **rest)

    return _wrapped(wrapper, function)


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="One JSON value on standard output.")(function)


def _wrapped(wrapper: Any, function: F) -> F:
    own = getattr(wrapper, "__click_params__", [])
    update_wrapper(wrapper, function)
    wrapper.__click_params__ = [*getattr(function, "__click_params__", []), *own]
    return wrapper  # type: ignore[no-any-return]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine."""
    gc.enable()
    return asyncio.run(work)


class House:
    """Settings, store and services for one command; `org` is the organisation it is about."""

    def __init__(self, loaded: Loaded, store: Store, org: Org) -> None:
        from ..accounts import Accounts

        self.loaded = loaded
        self.settings: Settings = loaded.settings
        self.store = store
        self.org = org.id
        self.org_name = org.name
        self.accounts = Accounts(store)

    def deed(self, action: str, resource: str = "") -> AbstractAsyncContextManager[Deed]:
        """`async with own.deed("agent.create") as deed:` around whatever changes something: it leaves an audit entry,
        as the same operation of the API does, also when it is refused."""
        from ..audit import Trail, shell_actor

        return Trail(self.store).deed(self.org, shell_actor(), action, resource)

    @property
    def registry(self) -> Any:
        """The registry of upstreams. Raises SecretError when the key of their secrets is not there."""
        from ..registry import Registry
        from ..vault import Vault

        return Registry(self.store, Vault.load(self.settings))

    async def every(self, entity: Entity, index: str, limit: int = 10_000, **where: Any) -> list[Any]:
        """Records of the organisation by an index, oldest first."""
        return await every(self.store, entity, index, {"org": self.org, **where}, limit)

    async def agent(self, wanted: str) -> Agent:
        """An agent by id or name. NotFound."""
        found: Agent | None = await self.store.get(AGENTS, self.org, wanted)
        if found is None:
            page = await self.store.find(Query(AGENTS, "name", {"org": self.org, "name": wanted}, limit=1))
            found = page.records[0] if page.records else None
        if found is None:
            raise NotFound(f"There is no agent {wanted!r}.", hint="agenticmail-enterprise agents list")
        return found


@asynccontextmanager
async def house(common: Common) -> AsyncIterator[House]:
    """Open the store that the settings name. Raises SettingsError when nothing was set up there."""
    quiet()
    loaded = common.load()
    async with opened(loaded.settings) as store:
        yield House(loaded, store, await the_org(store, common.org))


@asynccontextmanager
async def opened(settings: Settings, *, migrate: bool = True) -> AsyncIterator[Store]:
    """The store, migrated unless told otherwise. A database file that is not there is an error, and is not made."""
    from ..stores import database_file, database_url, open_store

    file = database_file(settings.database)
    if file is not None and not file.exists():
        raise SettingsError(
            f"There is no database {file}.",
            hint="agenticmail-enterprise init makes one; --database or --config name another.",
        )  # fmt: skip
    store = open_store(database_url(settings))
    await store.open()
    try:
        if migrate:
            await store.migrate()
        yield store
    finally:
        await store.close()


async def every(store: Store, entity: Entity, index: str, where: dict[str, Any], limit: int) -> list[Any]:
    """Up to `limit` records by an index, oldest first."""
    records: list[Any] = []
    cursor = ""
    while len(records) < limit:
        query = Query(entity, index, where, limit=min(MAX_PAGE, limit - len(records)), cursor=cursor)
        page = await store.find(query)
        records += page.records
        cursor = page.cursor
        if not cursor:
            break
    return records


async def organisations(store: Store) -> list[Org]:
    from ...catalog.records import ORGS

    return await every(store, ORGS, "by_org", {"org": GLOBAL}, 10_000)


async def the_org(store: Store, wanted: str | None) -> Org:
    """The organisation named, or the only one. Raises SettingsError or NotFound."""
    found = await organisations(store)
    if not found:
        raise SettingsError("Nothing is set up in this database yet.", hint="agenticmail-enterprise init sets it up.")
    if wanted is not None:
        chosen = [org for org in found if wanted in (org.id, org.name)]
        if len(chosen) != 1:
            known = ", ".join(sorted(org.name for org in found))
            raise NotFound(f"There is no organisation {wanted!r}, or several. There are: {known}.")
        return chosen[0]
    if len(found) > 1:
        names = ", ".join(sorted(org.name for org in found))
        raise SettingsError(f"There are several organisations: say which with --org ({names}).")
    return found[0]


def quiet() -> None:
    """Logs of a short command: problems only, on standard error."""
    from ..logs import configure

    configure(LogSettings(level="warning"))


def confirm(question: str, yes: bool) -> None:
    """Ask before something is lost, on a terminal; elsewhere --yes is required."""
    import sys

    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Add --yes to confirm.")
    click.confirm(question, abort=True, err=True)
