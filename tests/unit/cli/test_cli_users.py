"""`users`: for whoever owns the host."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from .conftest import Run


def test_somebody_is_added_changed_and_removed(cli: Run, made: dict[str, str]) -> None:
    done = cli("users", "create", "Ana@Acme.test", "--role", "admin", "--name", "Ana", "--json")
    assert done.code == 0, done
    assert (done.json["email"], done.json["role"], done.json["has_password"]) == ("ana@acme.test", "admin", False)
    assert done.json["link"]["purpose"] == "invite"
    assert "password_hash" not in done.out
    assert cli("users", "change", "ana@acme.test", "--role", "viewer", "--json").json["role"] == "viewer"
    assert cli("users", "change", done.json["id"], "--status", "suspended", "--json").json["status"] == "suspended"
    people = {row["email"]: row["status"] for row in cli("users", "list", "--json").json}
    assert people["ana@acme.test"] == "suspended"
    assert "ana@acme.test" in cli("users", "list").out
    assert cli("users", "delete", "ana@acme.test", "--yes").code == 0
    assert "ana@acme.test" not in cli("users", "list").out


def test_the_last_owner_stays_also_for_the_command_line(cli: Run, made: dict[str, str]) -> None:
    owner = made["email"]
    for argv in (
        ("change", owner, "--role", "admin"),
        ("change", owner, "--status", "suspended"),
        ("delete", owner, "--yes"),
    ):
        done = cli("users", *argv, "--json")
        assert (done.code, done.error["code"]) == (1, "LAST_OWNER"), argv


def test_links_are_shown_once_and_kept_as_a_digest(cli: Run, made: dict[str, str], folder: Path) -> None:
    done = cli("users", "link", made["email"], "--json")
    token = done.json["link"]["token"]
    assert done.json["link"]["purpose"] == "sign_in"
    assert cli("users", "link", made["email"], "--reset", "--json").json["link"]["purpose"] == "reset"
    (file,) = folder.glob("*.db")
    stored = "".join(str(row) for row in sqlite3.connect(file).iterdump())
    assert "tkt_" in stored
    assert token.removeprefix("lk_") not in stored


def test_who_is_not_there_is_said_so(cli: Run, made: dict[str, str]) -> None:
    for argv in (("link", "nobody@acme.test"), ("change", "nobody@acme.test", "--role", "viewer"),
                 ("delete", "usr_x", "--yes"), ("disable-second-factor", "nobody@acme.test", "--yes")):  # fmt: skip
        done = cli("users", *argv, "--json")
        assert (done.code, done.error["code"]) == (1, "NOT_FOUND"), argv
    assert cli("users", "create", "no-address", "--json").error["code"] == "VALIDATION_ERROR"
    assert cli("users", "create", made["email"], "--json").error["code"] == "CONFLICT"
