"""The command and its sub-commands, each in a module that is imported when it is asked for: `--help` costs nothing.

An error becomes a message here and nowhere else: one sentence for people, one JSON object for programs, never a
traceback (`AGENTICMAIL_DEBUG=1` shows it).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, Final, NoReturn

import click

from ...catalog.errors import EnterpriseError

NAME: Final = "agenticmail-enterprise"

COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "init": ("init", "init", "Set a gateway up: organisation, owner, database, keys."),
    "serve": ("serve", "serve", "Serve agents and the API until stopped."),
    "demo": ("demo", "demo", "Serve a demo organisation and watch an agent's calls being judged."),
    "check": ("health", "check", "Open everything that serving needs; exit 0 when all of it works."),
    "doctor": ("health", "doctor", "Find what is or may become a problem, with the command that mends it."),
    "migrate": ("health", "migrate", "Bring the database's schema to this version's."),
    "agents": ("agents", "agents", "Agents and what they may do."),
    "keys": ("keys", "keys", "API keys: create, list, revoke."),
    "users": ("users", "users", "People who sign in, and one-time links for who cannot."),
    "upstreams": ("upstreams", "upstreams", "MCP servers behind the gateway, and their tools."),
    "openclaw": ("openclaw", "openclaw", "OpenClaw's plugin for this gateway: its folder, and how to load it."),
    "plugins": ("plugins", "plugins", "Installed plugins, and which are active."),
    "calls": ("calls", "calls", "The record of calls."),
    "explain": ("explain", "explain", "Why a call is allowed or denied, and what would allow it."),
    "audit": ("audit", "audit", "Verify that the record of calls is whole and unchanged; remove old records."),
    "settings": ("settings", "settings", "The effective settings, and where each was said."),
    "version": ("settings", "version", "The version, and what it runs on."),
}
"""Name -> (module, attribute, what it does)."""


class Root(click.Group):
    """A group whose commands are imported by name. Their one-line helps stand in `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = COMMANDS.get(cmd_name)
        if found is None:
            return None
        command: click.Command = getattr(import_module(f".{found[0]}", __package__), found[1])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in COMMANDS.items()])


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from ... import __version__

        click.echo(f"{NAME} {__version__}")
        ctx.exit()


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def root() -> None:
    """A policy-enforcing gateway between AI agents and their tools.

    \b
    Start with:  agenticmail-enterprise demo      a gateway to look at, with an agent
                 agenticmail-enterprise init      a gateway of your own
    """


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    as_json = "--json" in argv[: argv.index("--")] if "--" in argv else "--json" in argv
    try:
        code = root.main(argv, prog_name=NAME, standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read our output has gone; keep the interpreter from complaining when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except BaseException as error:  # noqa: BLE001 - the end of the line: everything becomes a message or goes on below
        code = _report(error, as_json)
    sys.exit(code if isinstance(code, int) else 0)


def report_and_exit(error: BaseException) -> NoReturn:
    """For a process that is not the command's own (a worker): say what went wrong, and end it."""
    sys.exit(_report(error, as_json=False))


def _report(error: BaseException, as_json: bool) -> int:
    """Say what went wrong; the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        click.echo("Stopped.", err=True)
        return 130
    if os.environ.get("AGENTICMAIL_DEBUG") == "1" and not isinstance(error, click.ClickException):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        return _usage(error, as_json)
    if isinstance(error, EnterpriseError):
        return _refusal(error.message, error.code, error.details, as_json)
    message = f"Something unexpected went wrong: {type(error).__name__}: {error}"
    hint = "Set AGENTICMAIL_DEBUG=1 and run it again to see where."
    return _refusal(message, "INTERNAL", {"hint": hint}, as_json)


def _usage(error: click.ClickException, as_json: bool) -> int:
    if as_json:
        return _as_json(error.format_message(), "USAGE", {}, error.exit_code)
    error.show()
    return error.exit_code


def _refusal(message: str, code: str, details: dict[str, Any], as_json: bool) -> int:
    from ..logs import masked, masked_text

    if as_json:
        return _as_json(masked_text(message), code, masked(details), 1)
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    click.secho("error: ", fg="red" if colour else None, bold=colour, nl=False, err=True, color=colour)
    click.echo(masked_text(message), err=True)
    for field in details.get("fields", ()):
        text = f"{field['path'].lstrip('/').replace('/', '.') or 'input'}: {field['message']}"
        if field["message"] != message:
            click.echo(f"  {masked_text(text)}", err=True)
    if details.get("hint"):
        click.echo(f"  {details['hint']}", err=True)
    return 1


def _as_json(message: str, code: str, details: dict[str, Any], exit_code: int) -> int:
    import json

    click.echo(json.dumps({"error": message, "code": code, "details": details}, default=str), err=True)
    return exit_code
