"""What the spectator sees. A `Stage` is told what happens: `Shown` tells people, `Silent` tells programs at the end."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...catalog.records import CallRecord
from .scenery import SERVER, Scene

COMMAND: Final = "agenticmail-enterprise"
STYLES: Final = {"allow": "green", "deny": "red", "hold": "yellow"}
MARKS: Final = {True: ("ALLOWED", "bold green"), False: ("DENIED ", "bold red")}
LONGEST: Final = 96


class Stage(Protocol):
    """What there is to be seen, in order."""

    def opens(self, scene: Scene, url: str) -> None: ...

    def connected(self, scene: Scene, names: Sequence[str], offered: Sequence[str]) -> None: ...

    def called(self, call: Any) -> None: ...

    def recorded(self, records: Sequence[CallRecord]) -> None: ...

    def closes(self, scene: Scene, facts: dict[str, Any], outcome: Any, *, going_on: bool) -> None: ...


class Silent:
    """For `--json`: one object at the end of the play."""

    def opens(self, scene: Scene, url: str) -> None:
        """Nothing to say."""

    def connected(self, scene: Scene, names: Sequence[str], offered: Sequence[str]) -> None:
        """Nothing to say."""

    def called(self, call: Any) -> None:
        """Nothing to say."""

    def recorded(self, records: Sequence[CallRecord]) -> None:
        """Nothing to say."""

    def closes(self, scene: Scene, facts: dict[str, Any], outcome: Any, *, going_on: bool) -> None:
        import click
        import msgspec

        records = [msgspec.structs.asdict(record) for record in outcome.records]  # defaults are facts here: say them
        whole = {**facts, "calls": outcome.calls, "records": records, "problem": outcome.problem}
        click.echo(msgspec.json.encode(whole).decode())


class Shown:
    """For people: compact, coloured where colours are wanted, plain elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def _say(self, text: Text | str = "", indent: int = 0, style: str = "") -> None:
        shown = Text(text, style=style) if isinstance(text, str) else text
        self._console.print(Padding(shown, (0, 0, 0, indent), expand=False) if indent else shown)

    def opens(self, scene: Scene, url: str) -> None:
        self._say(Text.assemble(("AgenticMail Enterprise", "bold"), " serves at ", (url, "bold cyan"),
                                (f"   (demo data in {scene.folder})", "dim")))  # fmt: skip

    def connected(self, scene: Scene, names: Sequence[str], offered: Sequence[str]) -> None:
        hidden = sorted(set(offered) - set(names))
        self._say(Text.assemble(
            "The agent ", (scene.agent.name, "bold"), f" connects through it to the MCP server {SERVER!r} and sees ",
            f"{len(names)} of its {len(offered)} tools", (f" (not {', '.join(hidden)})" if hidden else "", "dim"), ".",
        ))  # fmt: skip
        self._say()

    def called(self, call: Any) -> None:
        line = Text.assemble(MARKS[call.allowed], " ", (call.tool, "bold"), f" {_brief(call.args)}")
        self._say(line.append(f"   {call.ms:.1f} ms", "dim"))
        self._say(f"the agent {call.doing}", 8, "dim")
        if call.why is None:
            return
        self._say(Text.assemble(("it is told  ", "dim"), call.text), 8)
        self._say(Text.assemble(("rule        ", "dim"), call.why.rule), 8)
        for place, change in enumerate(call.why.nearest):
            label = "would allow " if not place else "        and "
            self._say(Text.assemble((label, "dim"), change.change, (f"  ({change.where}, by {change.who})", "dim")), 8)

    def recorded(self, records: Sequence[CallRecord]) -> None:
        if not records:
            return
        self._say()
        self._say("The record of these calls, each linked to the one before by its hash:")
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for column in ("#", "verdict", "tool", "outcome", "rule", "took", "hash", "id"):
            table.add_column(column, no_wrap=True)
        for record in records:
            table.add_row(
                str(record.seq), Text(record.effect, style=STYLES.get(record.effect, "")), record.tool, record.outcome,
                record.rule, f"{record.duration_us / 1000:.1f} ms", record.hash[:10], record.id,
            )  # fmt: skip
        self._console.print(table)

    def closes(self, scene: Scene, facts: dict[str, Any], outcome: Any, *, going_on: bool) -> None:
        self._say()
        if outcome.problem:
            self._say(outcome.problem, style="bold red")
        if not going_on:
            return
        self._say("Try next", style="bold")
        for what, line in _suggestions(scene, facts):
            if what:
                self._say(f"# {what}", 2, "dim")
            self._say(line, 2)
        self._say()
        self._say(
            "It goes on serving. Ctrl-C stops it. These keys end with the next demo, or after a day.", style="dim"
        )


def _brief(args: dict[str, Any]) -> str:
    text = ", ".join(f"{name}={value!r}" for name, value in args.items())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _suggestions(scene: Scene, facts: dict[str, Any]) -> list[tuple[str, str]]:
    """(what for, a line to copy). Every line works as it stands while the demo serves."""
    url, own, agent = facts["url"], command_name(), scene.agent.name
    config = f"--config {shlex.quote(scene.config)}"
    check = '{"tool":"mail__delete_email","args":{"id":"in-0001"}}'
    client = {"mcpServers": {SERVER: {"type": "http", "url": facts["mcp"], "headers": {"X-API-Key": scene.agent_key}}}}
    explained = f'--agent {agent} --tool mail__delete_email --args \'{{"id":"in-0001"}}\''
    return [
        (
            "may the agent delete a mail? (its own key)",
            f"curl -s {url}/api/engine/check-permission -H 'X-API-Key: {scene.agent_key}' -d '{check}'",
        ),
        ("why not, and what would allow it?", f"{own} explain {explained} {config}"),
        (
            "the record, through the API (an operator's key) and from the shell",
            f"curl -s '{url}/api/calls?limit=5' -H 'X-API-Key: {scene.operator_key}'",
        ),
        ("", f"{own} calls list {config}"),
        ("prove that nobody changed it", f"{own} audit verify {config}"),
        (
            "change the agent's rules (in force within half a second)",
            f"{own} agents profile show {agent} {config} > profile.json",
        ),
        ("", f"{own} agents profile set {agent} --profile-file profile.json {config}"),
        ("put an MCP client of yours in the agent's place", json.dumps(client)),
        ("what the agent has sent", f"ls {shlex.quote(str(Path(scene.folder) / 'mail' / 'outbox'))}"),
        ("a gateway of your own", f"{own} init"),
    ]


def command_name() -> str:
    """How this command is called from here: its name where the shell finds it, else its path."""
    if shutil.which(COMMAND):
        return COMMAND
    called = Path(sys.argv[0])
    if called.name == COMMAND:
        return str(called.relative_to(Path.cwd())) if called.is_relative_to(Path.cwd()) else str(called)
    return f"{sys.executable} -m {__package__.rpartition('.')[0]}.cli"
