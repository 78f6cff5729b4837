"""`openclaw`: where the OpenClaw plugin is, and what to put into `openclaw.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from .common import Common, common_options, house, run
from .output import emit_json, facts, say

FOLDER: Final = Path(__file__).resolve().parents[2] / "adapters" / "openclaw_plugin"
PLUGIN: Final = "agenticmail-enterprise"
KEY_VARIABLE: Final = "AGENTICMAIL_API_KEY"
HOOK_MS: Final = 600_000


def snippet(url: str) -> dict[str, Any]:
    """The part of `openclaw.json` that loads the plugin. The key stays in the environment of OpenClaw."""
    return {
        "plugins": {
            "load": {"paths": [str(FOLDER)]},
            "entries": {
                PLUGIN: {
                    "enabled": True,
                    "config": {"apiUrl": url},
                    "hooks": {"timeouts": {"before_tool_call": HOOK_MS}},
                }
            },
        }
    }


@click.command()
@click.option(
    "--url", metavar="URL", help="Where OpenClaw reaches this gateway, if not by the settings' host and port."
)
@click.option("--expect", metavar="AGENT", help="From now on the alarm is raised when this agent works without a hook.")
@common_options
def openclaw(common: Common, url: str | None, expect: str | None) -> None:
    """The plugin that makes OpenClaw ask this gateway before every tool call: its folder, and how to load it."""
    if expect is not None:
        name = run(_expect(common, expect))
    server = common.load().settings.server
    host = "127.0.0.1" if server.host in {"", "0.0.0.0", "::"} else server.host  # noqa: S104 - compared, not bound
    found = url or f"http://{f'[{host}]' if ':' in host else host}:{server.port}"
    config = snippet(found.rstrip("/"))
    if common.json:
        emit_json({"plugin": str(FOLDER), "key_variable": KEY_VARIABLE, "config": config})
        return
    import json

    facts([("Plugin", str(FOLDER)), ("Key", f"an agent's key, in OpenClaw's environment as {KEY_VARIABLE}")])
    say("Merge into openclaw.json:")
    click.echo(json.dumps(config, indent=2))
    say("Then: openclaw plugins inspect agenticmail-enterprise --runtime")
    if expect is not None:
        say(f"A hook of {name} is expected from now on.")


async def _expect(common: Common, wanted: str) -> str:
    from ..hookwatch import HookWatch

    async with house(common) as own:
        agent = await own.agent(wanted)
        await HookWatch(own.store, own.accounts, own.settings.hooks).expect(own.org, agent.id)
        return agent.name
