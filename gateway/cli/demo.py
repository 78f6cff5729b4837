"""`demo`: a gateway to look at, with an agent that plays against it."""

from __future__ import annotations

import gc
import socket
from importlib.util import find_spec
from pathlib import Path

import click

from ...catalog.errors import SettingsError
from ..demo.actor import Actor


@click.command()
@click.option(
    "--folder", default="demo-data", show_default=True, metavar="FOLDER", help="Where the demo keeps its data."
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="HOST", help="Address to serve on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=3000, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--once", is_flag=True, help="Stop after the agent's visit; exit 1 when it went wrong.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output after the play.")
def demo(folder: str, host: str, port: int, once: bool, as_json: bool) -> None:
    """Serve a demo organisation and watch an agent's calls being judged.

    A real agent (the official MCP client) works through the gateway on a real MCP server: calls that are allowed, one
    that is denied, why, what would allow it, and the record of all. Then it goes on serving until Ctrl-C. Everything
    stays in FOLDER and on this machine.
    """
    if find_spec("mcp") is None:
        raise SettingsError(
            "The demo's agent needs the official MCP client.", hint="pip install 'agenticmail-enterprise[demo]'"
        )  # fmt: skip
    actor = Actor()
    try:
        problem = _play(actor, folder, host, port, once=once, as_json=as_json)
    finally:
        actor.stop()
    if once and problem:
        raise SystemExit(1)


def _play(actor: Actor, folder: str, host: str, port: int, *, once: bool, as_json: bool) -> str:
    """Everything after the agent's start, imports included. What went wrong, or ""."""
    from ..logs import configure
    from ..settings import LogSettings

    configure(LogSettings(level="warning"))
    with _reserved(host, port) as held:
        from ..demo.play import run_demo
        from ..demo.stage import Shown, Silent, Stage
        from .output import console
        from .serve import loop_run

        gc.enable()
        stage: Stage = Silent() if as_json else Shown(console())
        bound = int(held.getsockname()[1])
        return loop_run(run_demo(actor, Path(folder), host, bound, stage, once=once)).problem


def _reserved(host: str, port: int) -> socket.socket:
    from ..workers import reserve

    try:
        return reserve(host, port)
    except SettingsError as error:
        error.details.setdefault("hint", f"agenticmail-enterprise demo --port {port + 1}, or: make run PORT={port + 1}")
        raise
