"""`plugins`: what is installed, and what is active by the settings."""

from __future__ import annotations

from typing import Any

import click

from ...policies.pluginhost import available, is_ours
from ..settings import PluginSettings
from .common import Common, settings_options
from .output import emit_json, table


@click.group()
def plugins() -> None:
    """Installed plugins, and which are active. Installing one activates nothing."""


@plugins.command("list")
@settings_options
def list_(common: Common) -> None:
    """Every installed plugin, and every one that the settings name."""
    rows = inventory(common.load().settings.plugins)
    if common.json:
        emit_json(rows)
        return
    table(
        ("PLUGIN", "STATE", "AS", "FROM"),
        [(row["name"], row["state"], row["kind"], row["package"] or row["value"]) for row in rows],
        "No plugins are installed.",
        "Activate one by its name in plugins.guards, plugins.gates or plugins.observers of the settings.",
    )


def inventory(settings: PluginSettings) -> list[dict[str, Any]]:
    """Active ones first, in running order, then those that are merely installed. Loads none of them."""
    points = available()
    active = [(name, kind) for kind, names in (("guard", settings.guards), ("gate", settings.gates),
                                               ("observer", settings.observers)) for name in names]  # fmt: skip
    rows = []
    for name, kind in [*active, *((name, "") for name in points if name not in {named for named, _ in active})]:
        point = points.get(name)
        rows.append({
            "name": name,
            "state": ("active" if kind else "installed") if point is not None else "missing",
            "kind": kind,
            "value": point.value if point is not None else "",
            "package": point.dist.name if point is not None and point.dist is not None else "",
            "ours": point is not None and is_ours(point),
        })  # fmt: skip
    return rows
