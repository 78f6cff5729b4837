"""`init`: set a gateway up. Every question is also a flag and a key of an answers file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import click
import msgspec

from ...catalog.errors import ValidationFailed
from ..settings import LogSettings, Settings
from ..settings_load import FILE_NAME, load
from ..setup import Answers, Made, default_config, faults_of, initialise
from .app import NAME
from .args import read_struct
from .common import json_option, run
from .output import emit_json, facts, say

QUESTIONS: Final[dict[str, tuple[str, str]]] = {
    "company": ("Company (the organisation that owns agents and records)", ""),
    "email": ("Owner's e-mail address (signs in with it)", ""),
    "database": ("Database", Settings().database),
}
"""Field -> (question, default)."""


@click.command()
@click.option("--company", metavar="NAME", help="Name of the organisation.")
@click.option("--email", metavar="ADDRESS", help="The owner's e-mail address.")
@click.option("--database", metavar="URL", help=f"Database. [default: {Settings().database}]")
@click.option("--host", metavar="HOST", help="Address to serve on. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to serve on. [default: 3000]")
@click.option("--data-dir", metavar="FOLDER", help="Journal and key file. [default: ./agenticmail-data]")
@click.option("--answers", metavar="FILE", help="TOML file with the answers; flags win over it.")
@click.option("--config", metavar="FILE", help=f"Settings file to write. [default: ./{FILE_NAME}]")
@click.option("--password-stdin", is_flag=True, help="Read the owner's password; else one is generated and shown.")
@click.option("--no-input", is_flag=True, help="Ask nothing: what is not given has its default, or is an error.")
@json_option
def init(
    answers: str | None, config: str | None, password_stdin: bool, no_input: bool, as_json: bool,
    **given: str | int | None,
) -> None:  # fmt: skip
    """Set a gateway up: organisation, owner, database, keys.

    Asks on a terminal; elsewhere, or with --no-input, everything comes from flags and the answers file. Never
    overwrites what is there.
    """
    from ..logs import configure

    configure(LogSettings(level="warning"))
    said = read_struct(answers, Answers, "answers file") if answers else Answers()
    said = msgspec.structs.replace(said, **{name: value for name, value in given.items() if value is not None})
    if password_stdin:
        said.password = sys.stdin.readline().rstrip("\r\n")
        if not said.password:
            raise click.UsageError("--password-stdin: standard input held no password.")
    interactive = not (no_input or as_json or password_stdin) and sys.stdin.isatty()
    said = _asked(said) if interactive else _defaulted(said)
    target = Path(config).expanduser().absolute() if config else default_config()
    flags = {"database": said.database or None, "data_dir": said.data_dir or None, "server.host": said.host or None,
             "server.port": said.port}  # fmt: skip
    settings = load(_existing(config), flags=flags).settings
    made = run(initialise(said, settings, target))
    if as_json:
        emit_json(made)
    else:
        _show(made)


def _existing(config: str | None) -> str | None:
    """A settings file that is there already: `initialise` refuses it by name, so it only has to be readable."""
    return config if config and os.path.exists(config) else None


def _defaulted(said: Answers) -> Answers:
    for name, (_, default) in QUESTIONS.items():
        if default and not getattr(said, name) and f"AGENTICMAIL_{name.upper()}" not in os.environ:
            setattr(said, name, default)
    if not said.database:
        said.database = os.environ.get("AGENTICMAIL_DATABASE", "")
    missing: list[tuple[str, str, str]] = [
        (f"/{name}", "required", f"Give it with --{name}, or in the answers file.")
        for name in QUESTIONS
        if not getattr(said, name)
    ]
    if missing:
        names = ", ".join(path[1:] for path, _, _ in missing)
        raise ValidationFailed(missing, f"Not answered: {names}.")
    return said


def _asked(said: Answers) -> Answers:
    for name, (question, default) in QUESTIONS.items():
        while not getattr(said, name):
            reply = str(click.prompt(question, default=default or None, err=True)).strip()
            trial = msgspec.structs.replace(said, **{name: reply})
            problem = next((sentence for path, _, sentence in faults_of(trial) if path == f"/{name}"), "")
            if problem:
                click.echo(f"  {problem}", err=True)
            else:
                said = trial
    return said


def _show(made: Made) -> None:
    say(f"{made.company} is set up.", "bold")
    say()
    facts([
        ("Owner", made.email),
        ("Password", made.password or "(the one you gave)"),
        ("API key", made.api_key),
        ("Settings", made.config),
        ("Database", made.database),
        ("Keys and journal", made.data_dir),
    ])  # fmt: skip
    say()
    say("Password and API key are shown this once. Keep them.", "bold")
    say()
    say("Next:")
    say(f"  {NAME} serve                          serve at {made.url}")
    say(f"  {NAME} upstreams add http NAME URL    put an MCP server behind it")
    say(f"  {NAME} agents create NAME --preset research-assistant --key")
