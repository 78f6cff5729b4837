"""Adapters by name, and the store that the settings mean. Light: a short command needs this and not a whole runtime.

Adapters are never imported: what stands behind a port is the settings' choice.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from ..catalog.errors import SettingsError
from ..catalog.store import Store
from .settings import Settings

ROOT: Final = __package__.rpartition(".")[0]

STORES: Final = {"sqlite": "sqlite", "memory": "memory"}
"""URL scheme -> module of adapters.stores."""

DURABLE: Final = {"sqlite": ("synchronous", "full")}
"""URL scheme -> the parameter with which a commit waits for the disk, where it does not do so anyway."""

READ_ATTEMPTS: Final = 3
"""How often a read is tried while the store cannot be reached, with pauses of 50 and 100 ms."""

Report = Callable[[str, str, float, str], None]
"""(operation, entity or "", seconds, error code or "")."""


def adapter(path: str) -> Any:
    """A module of `adapters`, by name."""
    return import_module(f"{ROOT}.adapters.{path}")


def open_store(url: str) -> Store:
    """The store of a database URL, not opened yet. Raises SettingsError for one nobody stands behind."""
    scheme = _scheme(url)
    module = STORES.get(scheme)
    if module is None:
        known = ", ".join(f"{name}://" for name in STORES)
        raise SettingsError(f"database: {scheme or url!r} is not a supported database (supported: {known}).")
    store: Store = adapter(f"stores.{module}").create(url)
    return store


def database_url(settings: Settings) -> str:
    """The database URL as it is opened.

    `journal.sync` group and always promise that a power cut loses no call. A record leaves the spool once it is
    committed, so the store must keep that promise too: its commits wait for the disk, unless the URL says otherwise.
    """
    url = settings.database
    durable = DURABLE.get(_scheme(url))
    if durable is None or settings.journal.sync == "none" or durable[0] in dict(parse_qsl(urlsplit(url).query)):
        return url
    return f"{url}{'&' if urlsplit(url).query else '?'}{durable[0]}={durable[1]}"


def serving_store(settings: Settings, report: Report) -> Store:
    """The store of a worker, not opened yet: every operation is reported, and reads are tried again.

    Writes are never repeated here: the drain reads its mark before it appends again, and whoever changes policy is
    told that it failed. A read that succeeds at the second try is as good as one at the first, for epochs too.
    """
    observed = adapter("stores.observed").Observed(open_store(database_url(settings)), report)
    store: Store = adapter("stores.retried").Retried(observed, attempts=READ_ATTEMPTS)
    return store


def database_file(url: str) -> Path | None:
    """The file of a SQLite URL, None for every other database."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if _scheme(url) != "sqlite" or len(path) < 2 or path == "/:memory:":
        return None
    return Path(path[1:]).absolute()


async def pending_migrations(store: Store) -> list[int]:
    """Numbers of the migrations that an open store has not seen. Changes nothing. Raises StoreUnavailable."""
    found: list[int] = await adapter("stores.pending").pending(store)
    return found


def _scheme(url: str) -> str:
    return urlsplit(url).scheme.partition("+")[0]
