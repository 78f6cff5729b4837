"""Running the command as a process of its own, without paying for a new interpreter each time."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SECONDS = 30.0


class Done:
    """What a command did: exit code and both outputs."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        """Standard output, which must be exactly one JSON value."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """Standard error, which must be exactly one JSON object with the three fields of an error."""
        found = json.loads(self.err)
        assert set(found) == {"error", "code", "details"}, self.err
        return found

    def __repr__(self) -> str:
        return f"<exit {self.code}\n--- out\n{self.out}\n--- err\n{self.err}>"


Run = Callable[..., Done]


@cache
def _warm() -> None:
    """Import what commands import, once for all forks."""
    from importlib import import_module

    from agenticmail_enterprise.gateway.cli.app import COMMANDS

    root = "agenticmail_enterprise"
    commands = [f"{root}.gateway.cli.{module}" for module, _, _ in COMMANDS.values()]
    others = [f"{root}.adapters.stores.sqlite", f"{root}.gateway.registry", "rich.table", "uvloop", "tomlkit"]
    for name in [*commands, *others]:
        import_module(name)


def run_forked(argv: tuple[str, ...], folder: Path, env: dict[str, str], stdin: str) -> Done:
    """Fork, become the command in `folder`, and collect what it said. A fork is a new process with warm imports."""
    from agenticmail_enterprise.gateway.cli import app

    _warm()

    names = [folder.parent / f"{folder.name}.{kind}" for kind in ("in", "out", "err")]
    names[0].write_text(stdin)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.chdir(folder)
            for name in [name for name in os.environ if name.startswith("AGENTICMAIL_")]:
                del os.environ[name]
            os.environ.update(env)
            for number, (name, flags) in enumerate(
                zip(names, (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT | os.O_TRUNC] * 2), strict=True)
            ):
                os.dup2(os.open(name, flags, 0o600), number)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            app.main(list(argv))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return Done(_ended(pid), names[1].read_text(), names[2].read_text())


def _ended(pid: int) -> int:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the command did not end")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture
def cli(folder: Path) -> Run:
    """`cli("agents", "list", "--json")` -> Done. Keyword arguments: `env`, `stdin`, `cwd`."""

    def run(*argv: str, env: dict[str, str] | None = None, stdin: str = "", cwd: Path | None = None) -> Done:
        return run_forked(argv, cwd or folder, env or {}, stdin)

    return run


@pytest.fixture(scope="session")
def _prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A gateway set up once; tests work on copies."""
    home = tmp_path_factory.mktemp("prepared") / "home"
    home.mkdir()
    arguments = (
        "--no-input",
        "--json",
        "--company",
        "Acme",
        "--email",
        "Owner@acme.test",
        "--database",
        "sqlite:///gw.db",
    )
    done = run_forked(("init", *arguments), home, {}, "")
    assert done.code == 0, done
    return home, done.json


@pytest.fixture
def made(_prepared: tuple[Path, dict[str, Any]], folder: Path) -> dict[str, Any]:
    """`folder` holds a gateway that was set up; what `init` printed."""
    import shutil

    shutil.copytree(_prepared[0], folder, dirs_exist_ok=True)
    return _prepared[1]
