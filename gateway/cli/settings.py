"""`settings show` and `version`."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Any

import click
import msgspec

from ..logs import MASK, masked_text
from ..settings_load import DEFAULT, LEAVES, SECRET_PATHS, Loaded, variable_of
from .app import NAME
from .common import Common, json_option, settings_options
from .output import emit_json, facts, say, table


@click.group()
def settings() -> None:
    """The effective settings, and where each was said."""


@settings.command("show")
@click.option("--changed", is_flag=True, help="Only those that are not at their default.")
@settings_options
def show(common: Common, changed: bool) -> None:
    """Every setting: its value, where it comes from, and the variable that would set it. Secrets are masked."""
    loaded = common.load()
    rows = [row for row in effective(loaded) if not changed or row["origin"] != DEFAULT]
    if common.json:
        emit_json(rows)
        return
    table(
        ("SETTING", "VALUE", "SAID BY", "VARIABLE"),
        [(row["path"], text_of(row["value"]), row["origin"], row["variable"]) for row in rows],
        "Everything is at its default.",
    )


def effective(loaded: Loaded) -> list[dict[str, Any]]:
    """Every setting with its origin, secrets masked."""
    values = msgspec.to_builtins(loaded.settings)
    rows = []
    for path in LEAVES:
        value: Any = values
        for part in path.split("."):
            value = value[part]
        if path in SECRET_PATHS:
            value = MASK if value else ""
        elif isinstance(value, str):
            value = masked_text(value)
        elif path == "plugins.config":
            from ..logs import masked

            value = masked(value)
        rows.append({"path": path, "value": value, "origin": loaded.origins[path], "variable": variable_of(path)})
    return rows


def text_of(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or "(none)"
    return msgspec.json.encode(value).decode()


@click.command()
@json_option
def version(as_json: bool) -> None:
    """The version, and what it runs on."""
    from ... import __version__

    parts = {name: _installed(name) for name in ("aiohttp", "uvloop", "httptools", "msgspec", "mcp")}
    if as_json:
        emit_json({"name": NAME, "version": __version__, "python": platform.python_version(), "libraries": parts})
        return
    say(f"{NAME} {__version__}")
    facts([("Python", f"{platform.python_version()} ({sys.executable})"), ("Platform", platform.platform()),
           *((name, found or "not installed") for name, found in parts.items())])  # fmt: skip


def _installed(name: str) -> str | None:
    try:
        return installed(name)
    except PackageNotFoundError:
        return None
