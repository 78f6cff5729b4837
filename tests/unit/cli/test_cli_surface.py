"""The command as a whole: help, versions, usage errors, and what an error looks like to people and to programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agenticmail_enterprise.gateway.cli.app import COMMANDS, NAME

from .conftest import Run

EXECUTABLE = Path(sys.executable).parent / NAME


def test_help_names_every_command_and_loads_none() -> None:
    program = (
        "import sys\n"
        "from agenticmail_enterprise.gateway.cli import app\n"
        "try: app.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'aiohttp', 'rich', 'structlog', 'msgspec', 'cryptography', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, (_, _, text) in COMMANDS.items():
        assert name in done.stdout
        assert text.split()[0] in done.stdout


def test_the_installed_command_runs_from_a_folder_with_packages_of_the_same_names(tmp_path: Path) -> None:
    for folder in ("gateway", "policies", "deploy", "adapters", "catalog"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("raise SystemExit('a user folder was imported')")
    done = subprocess.run([EXECUTABLE, "version", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"name":"agenticmail-enterprise"' in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(cli: Run, name: str) -> None:
    done = cli(name, "--help")
    assert done.code == 0, done
    assert f"{NAME} {name}" in done.out
    assert done.err == ""


def test_versions(cli: Run) -> None:
    assert cli("--version").out.startswith(f"{NAME} ")
    assert cli("version", "--json").json["name"] == NAME


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("agnets",), "Did you mean 'agents'?"),
        (("zzz",), "There is no command 'zzz'"),
        (("agents", "create"), "Missing argument"),
        (("agents", "list", "--nope"), "--nope"),
        (("serve", "--port", "99999"), "99999"),
        (("keys", "create"), "--agent"),
        (("keys", "create", "--agent", "a", "--scope", "calls:read"), "--agent"),
        (("agents", "profile", "set", "bot"), "--preset"),
        (("upstreams", "correct", "a__b"), "Say what to correct"),
        (("users", "change", "olga@acme.test"), "--role"),
        (("users", "create", "olga@acme.test", "--role", "root"), "root"),
        (("explain",), "--agent"),
    ],
)
def test_a_command_line_without_sense_is_exit_2(cli: Run, argv: tuple[str, ...], says: str) -> None:
    done = cli(*argv)
    assert done.code == 2, done
    assert says in done.err
    assert done.out == ""
    assert "Traceback" not in done.err


def test_a_usage_error_is_json_too_where_json_was_asked_for(cli: Run) -> None:
    done = cli("agents", "create", "--json")
    assert done.code == 2
    assert done.error["code"] == "USAGE"


def test_before_init_every_command_says_what_to_do(cli: Run, folder: Path) -> None:
    for argv in (("agents", "list"), ("keys", "list"), ("upstreams", "list"), ("calls", "list"), ("serve",),
                 ("explain", "--agent", "a", "--tool", "t")):  # fmt: skip
        done = cli(*argv)
        assert done.code == 1, done
        assert "agenticmail-enterprise init" in done.err
        assert "Traceback" not in done.err
    assert list(folder.iterdir()) == []  # asking made nothing


def test_errors_for_programs_are_one_object_on_standard_error(cli: Run) -> None:
    done = cli("agents", "list", "--json", "--database", "sqlite:///absent.db")
    assert done.code == 1
    assert done.out == ""
    assert done.error["code"] == "SETTINGS_ERROR"
    assert "absent.db" in done.error["error"]


def test_a_misspelt_setting_stops_every_command(cli: Run) -> None:
    done = cli("agents", "list", "--json", env={"AGENTICMAIL_DATABSE": "x"})
    assert done.code == 1
    assert done.error["code"] == "SETTINGS_ERROR"
    assert done.error["details"]["nearest"] == "AGENTICMAIL_DATABASE"


@pytest.mark.parametrize("url", ["nonsense", "oracle://h/d", "", "sqlite://host/x", "postgres://user:s3cret@h:x/d"])
def test_databases_that_nobody_stands_behind_are_refused_without_their_password(cli: Run, url: str) -> None:
    done = cli("agents", "list", "--database", url)
    assert done.code == 1, done
    assert "Traceback" not in done.err
    assert "s3cret" not in done.err


def test_the_unexpected_is_one_line_and_a_traceback_only_on_request(
    cli: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agenticmail_enterprise.gateway.cli import settings

    def broken(loaded: object) -> object:
        raise ZeroDivisionError("ek_topsecretkey0000 slipped")

    monkeypatch.setattr(settings, "effective", broken)
    done = cli("settings", "show")
    assert done.code == 1
    assert "ZeroDivisionError" in done.err
    assert "AGENTICMAIL_DEBUG=1" in done.err
    assert "Traceback" not in done.err
    assert "topsecretkey" not in done.err
    assert cli("settings", "show", "--json").error["code"] == "INTERNAL"
    assert "Traceback" in cli("settings", "show", env={"AGENTICMAIL_DEBUG": "1"}).err


def test_settings_show_says_where_each_value_was_said_and_masks_secrets(cli: Run, folder: Path) -> None:
    (folder / "agenticmail.toml").write_text('database = "postgres://u:s3cret@h/d"\n')
    secret = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U="
    env = {"AGENTICMAIL_SECRET_KEY": secret, "AGENTICMAIL_LOG_LEVEL": "debug"}
    done = cli("settings", "show", "--json", env=env)
    rows = {row["path"]: row for row in done.json}
    assert rows["database"]["value"] == "postgres://u:***@h/d"
    assert rows["database"]["origin"].endswith("agenticmail.toml")
    assert rows["secret_key"]["value"] == "***"
    assert rows["log.level"] == {"path": "log.level", "value": "debug", "origin": "environment AGENTICMAIL_LOG_LEVEL",
                                 "variable": "AGENTICMAIL_LOG_LEVEL"}  # fmt: skip
    people = cli("settings", "show", "--changed", env=env)
    assert people.code == 0
    for text in (done.out, people.out):
        assert secret not in text
        assert "s3cret" not in text
    assert "server.port" not in people.out


def test_plain_output_has_no_colours(cli: Run, made: dict[str, str]) -> None:
    for argv in (("agents", "list"), ("check",), ("doctor",), ("plugins", "list")):
        assert "\x1b" not in cli(*argv).out


def test_a_closed_pipe_is_no_traceback(made: dict[str, str], folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [EXECUTABLE, "settings", "show"], cwd=folder, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.stderr == b""
