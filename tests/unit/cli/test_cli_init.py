"""`init`: one command from nothing to a gateway that can serve; it never overwrites and knows no default password."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run

ARGUMENTS = ("--no-input", "--json", "--company", "Acme", "--email", "owner@acme.test", "--database", "sqlite:///gw.db")


def test_one_object_with_everything_that_is_needed(made: dict[str, Any], folder: Path, cli: Run) -> None:
    assert made["url"] == "http://127.0.0.1:3000"
    assert made["email"] == "owner@acme.test"
    assert len(made["password"]) >= 20
    assert made["api_key"].startswith("ek_")
    assert tomllib.loads((folder / "agenticmail.toml").read_text()) == {
        "database": "sqlite:///gw.db",
        "data_dir": "./agenticmail-data",
    }
    assert cli("check", "--json").json["ok"] is True


def test_files_are_for_their_owner_only_and_hold_no_secret_in_clear(made: dict[str, Any], folder: Path) -> None:
    for file in (folder / "agenticmail.toml", folder / "agenticmail-data" / "secret.key"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    whole = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert made["password"].encode() not in whole
    assert made["api_key"].encode() not in whole


def test_a_second_run_names_what_exists_and_changes_nothing(made: dict[str, Any], folder: Path, cli: Run) -> None:
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and "gw.db" not in file.name}
    done = cli("init", *ARGUMENTS)
    assert done.code == 1
    assert done.error["code"] == "SETTINGS_ERROR"
    assert any("agenticmail.toml" in name for name in done.error["details"]["exists"])
    assert any("secret.key" in name for name in done.error["details"]["exists"])
    assert before == {file: file.read_bytes() for file in before}
    assert [org["state"] for org in cli("keys", "list", "--json").json] == ["active"]


def test_a_database_that_holds_somebody_is_refused_and_nothing_is_left_behind(
    made: dict[str, Any], folder: Path, cli: Run
) -> None:
    other = folder / "other"
    other.mkdir()
    done = cli("init", *ARGUMENTS[:-1], f"sqlite:///{folder}/gw.db", cwd=other)
    assert done.code == 1
    assert "'Acme'" in done.error["error"]
    assert not (other / "agenticmail.toml").exists()
    assert not (other / "agenticmail-data" / "secret.key").exists()


def test_answers_come_from_a_file_and_flags_win(folder: Path, cli: Run) -> None:
    (folder / "answers.toml").write_text(
        'company = "From file"\nemail = "file@acme.test"\n'
        'database = "sqlite:///a.db"\npassword = "a long enough one 17"\n'
    )
    done = cli("init", "--no-input", "--json", "--answers", "answers.toml", "--company", "From flag", "--port", "3999")
    assert done.code == 0, done
    assert done.json["company"] == "From flag"
    assert done.json["email"] == "file@acme.test"
    assert done.json["password"] is None  # whoever gave it has it
    assert done.json["url"] == "http://127.0.0.1:3999"
    assert "a long enough one 17" not in done.out + done.err


def test_an_unknown_answer_is_an_error(folder: Path, cli: Run) -> None:
    (folder / "answers.toml").write_text('compny = "Acme"\n')
    done = cli("init", "--no-input", "--json", "--answers", "answers.toml")
    assert done.code == 1
    assert "compny" in str(done.error)


def test_the_password_may_come_from_standard_input(cli: Run) -> None:
    done = cli("init", *ARGUMENTS, "--password-stdin", stdin="a long enough one 17\n")
    assert done.code == 0, done
    assert done.json["password"] is None


@pytest.mark.parametrize("password", ["short", "passwordpassword", "aaaaaaaaaaaaaaaa"])
def test_a_weak_password_is_refused_before_anything_is_made(cli: Run, folder: Path, password: str) -> None:
    done = cli("init", *ARGUMENTS, "--password-stdin", stdin=f"{password}\n")
    assert done.code == 1
    assert done.error["details"]["fields"][0]["path"] == "/password"
    assert list(folder.iterdir()) == []


def test_two_setups_never_share_a_secret(folder: Path, cli: Run) -> None:
    seen = []
    for name in ("a", "b"):
        (folder / name).mkdir()
        seen.append(cli("init", *ARGUMENTS, cwd=folder / name).json)
    for field in ("password", "api_key", "org"):
        assert seen[0][field] != seen[1][field]
    keys = [(folder / name / "agenticmail-data" / "secret.key").read_bytes() for name in ("a", "b")]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("argv", "path"),
    [
        (("--email", "owner@acme.test"), "/company"),
        (("--company", "Acme"), "/email"),
        (("--company", "Acme", "--email", "no address"), "/email"),
        (("--company", "Ac\nme", "--email", "owner@acme.test"), "/company"),
        (("--company", " ", "--email", "owner@acme.test"), "/company"),
        (("--company", "x" * 129, "--email", "owner@acme.test"), "/company"),
    ],
)
def test_what_is_missing_or_wrong_is_named_and_nothing_is_made(
    cli: Run, folder: Path, argv: tuple[str, ...], path: str
) -> None:
    done = cli("init", "--no-input", "--json", *argv)
    assert done.code == 1, done
    assert path in [field["path"] for field in done.error["details"]["fields"]]
    assert list(folder.iterdir()) == []


def test_without_a_terminal_nothing_is_asked(cli: Run) -> None:
    done = cli("init", stdin="Acme\nowner@acme.test\n\n")
    assert done.code == 1
    assert "Not answered: company, email" in done.err


def test_people_are_shown_the_secrets_once_and_what_to_do_next(cli: Run) -> None:
    done = cli("init", "--no-input", "--company", "Acme", "--email", "owner@acme.test")
    assert done.code == 0, done
    assert "ek_" in done.out
    assert "once" in done.out
    assert "agenticmail-enterprise serve" in done.out
    assert done.err == ""


def test_a_settings_file_elsewhere_finds_its_data_from_anywhere(folder: Path, cli: Run) -> None:
    (folder / "etc").mkdir()
    done = cli("init", *ARGUMENTS, "--config", "etc/my.toml")
    assert done.code == 0, done
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    found = cli("check", "--json", "--config", str(folder / "etc" / "my.toml"), cwd=elsewhere)
    assert found.json["ok"] is True, found


def test_a_folder_that_cannot_be_written_is_a_clear_error(folder: Path, cli: Run) -> None:
    (folder / "file").write_text("")
    done = cli("init", *ARGUMENTS, "--data-dir", "file/below")
    assert done.code == 1
    assert "cannot be made" in done.error["error"]


def on_a_terminal(folder: Path, typed: bytes, *argv: str) -> tuple[int, str]:
    """Run `init` with a terminal, type into it, and return exit code and what the terminal showed."""
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "agenticmail_enterprise.gateway.cli", "init", *argv], cwd=folder, stdin=inner,
        stdout=inner, stderr=inner, start_new_session=True,
    )  # fmt: skip
    os.close(inner)
    os.write(terminal, typed)
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # Linux reports the other side's end as an error
        assert shown
    os.close(terminal)
    return process.wait(60), shown.decode()


def test_on_a_terminal_it_asks_checks_each_answer_and_takes_enter_for_the_default(folder: Path) -> None:
    code, shown = on_a_terminal(folder, b"Acme\nno address\nowner@acme.test\n\n")
    assert code == 0, shown
    assert "'no address' is no e-mail address." in shown
    assert "sqlite:///agenticmail-enterprise.db" in shown
    assert "Acme is set up." in shown
    assert (folder / "agenticmail-enterprise.db").exists()


def test_no_question_is_asked_that_was_answered_and_leaving_makes_nothing(folder: Path) -> None:
    code, shown = on_a_terminal(folder, b"\x04", "--company", "Acme", "--email", "owner@acme.test")
    assert code == 130, shown
    assert "Company" not in shown
    assert "Traceback" not in shown
    assert list(folder.iterdir()) == []
