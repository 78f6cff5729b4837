"""`check` and `doctor`: does everything open, and what is or may become a problem. `migrate`: the schema."""

from __future__ import annotations

import click

from .common import Common, opened, quiet, run, settings_options
from .findings import Finding, examine
from .output import STYLES, console, emit_json, pointing, say

MARKS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}


@click.command()
@settings_options
def check(common: Common) -> None:
    """Open everything that serving needs; exit 0 when all of it works.

    Settings, data folder, key, database and schema, plugins, servers. Changes nothing: pending migrations are told.
    """
    quiet()
    found = run(examine(common, everything=False))
    healthy = not any(finding.state == "problem" for finding in found)
    _report(common, found, healthy, hint="agenticmail-enterprise doctor says more.")


@click.command()
@settings_options
def doctor(common: Common) -> None:
    """Find what is or may become a problem, with the command that mends it. Exit 1 when there is a problem."""
    quiet()
    found = run(examine(common, everything=True))
    healthy = not any(finding.state == "problem" for finding in found)
    _report(common, found, healthy, hint="")


@click.command()
@settings_options
def migrate(common: Common) -> None:
    """Bring the database's schema to this version's. `serve` does it at its start; again, it changes nothing.

    Migrations only add. Stop workers of the version before when one adds an index: they would not fill it.
    """
    quiet()
    done = run(_migrated(common))
    if common.json:
        emit_json({"applied": done})
    else:
        say(f"Applied migrations {', '.join(map(str, done))}." if done else "The schema is current.")


async def _migrated(common: Common) -> list[int]:
    async with opened(common.load().settings, migrate=False) as store:
        return await store.migrate()


def _report(common: Common, found: list[Finding], healthy: bool, hint: str) -> None:
    if common.json:
        emit_json({"ok": healthy, "findings": found})
    else:
        _show(found)
        warnings = sum(finding.state == "warning" for finding in found)
        problems = sum(finding.state == "problem" for finding in found)
        say()
        if problems:
            say(f"{problems} problem{'s' if problems > 1 else ''}. {hint}".strip(), "red")
        else:
            say(
                "All is well."
                if not warnings
                else f"It works; {warnings} thing{'s' if warnings > 1 else ''} to look at.",
                "green",
            )
    if not healthy:
        raise SystemExit(1)


def _show(found: list[Finding]) -> None:
    from rich.text import Text

    width = max((len(finding.what) for finding in found), default=0)
    for finding in found:
        line = Text(f"{MARKS[finding.state]:<8}", style=STYLES.get(finding.state, ""))
        line += Text(f"{finding.what:<{width}}  {pointing(finding.says)}")
        console().print(line)
        if finding.mend and finding.state != "ok":
            console().print(Text(f"{'':8}{'':{width}}  mend: {finding.mend}", style="dim"))
