"""Each command against a gateway that was set up: what it does, what it prints for programs, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from agenticmail_enterprise.catalog.records import CALLS, CallRecord
from agenticmail_enterprise.gateway.stores import open_store

from .conftest import Run

MAIL = ("--", sys.executable, "-m", "agenticmail_enterprise.gateway.demo.mailserver", "--folder")
NO_SUCH_GUARD = 'database = "sqlite:///gw.db"\nplugins.guards = ["nope"]\n'
pytestmark = pytest.mark.usefixtures("made")


def agent(cli: Run, name: str = "bot", *argv: str) -> dict[str, Any]:
    done = cli("agents", "create", name, "--json", *argv)
    assert done.code == 0, done
    found: dict[str, Any] = done.json
    return found


# -- agents ------------------------------------------------------------------------------------------------------
def test_an_agent_is_made_shown_changed_and_deleted_with_its_keys(cli: Run) -> None:
    made = agent(cli, "bot", "--preset", "research-assistant", "--metadata", "team=growth", "--key")
    assert made["api_key"].startswith("ek_")
    assert made["profile"] == "Research Assistant"
    assert [row["name"] for row in cli("agents", "list", "--json").json] == ["bot"]
    shown = cli("agents", "show", "bot", "--json").json
    assert shown["id"] == made["id"]
    assert shown["metadata"] == {"team": "growth"}
    assert len(shown["live_keys"]) == 1
    assert cli("agents", "status", "bot", "suspended", "--json").json["status"] == "suspended"
    assert cli("agents", "list", "--status", "active", "--json").json == []
    assert cli("agents", "profile", "set", made["id"], "--preset", "sandbox", "--json").json["profile"] == "Sandbox"
    assert cli("agents", "delete", "bot", "--yes", "--json").json == {"deleted": made["id"], "name": "bot"}
    assert cli("agents", "list", "--json").json == []
    assert [key["name"] for key in cli("keys", "list", "--json").json] == ["owner (from init)"]


def test_a_profile_of_its_own_travels_as_a_file(cli: Run, folder: Path) -> None:
    (folder / "p.toml").write_text('max_risk = "medium"\n[tools]\nallow = ["mail__*"]\n')
    agent(cli, "bot", "--profile-file", "p.toml")
    spec = cli("agents", "profile", "show", "bot").json
    assert spec == {"tools": {"allow": ["mail__*"]}, "max_risk": "medium"}
    spec["tools"]["deny"] = ["mail__delete_*"]
    again = cli("agents", "profile", "set", "bot", "--profile-file", "-", "--json", stdin=json.dumps(spec))
    assert again.json["spec"] == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"max_rsk": "low"}', "max_rsk"),
        ('{"max_risk": "huge"}', "huge"),
        ("{", "JSON"),
        ('{"argument_rules": [{"name": "n", "tools": ["a"], "field": "", "op": "equals"}]}', "field"),
        (
            '{"argument_rules": [{"name": "n", "tools": ["a"], "field": "x", "op": "matches", "values": ["("]}]}',
            "values",
        ),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused_by_name(cli: Run, text: str, says: str) -> None:
    done = cli("agents", "create", "bot", "--profile-file", "-", "--json", stdin=text)
    assert done.code == 1, done
    assert says in done.err
    assert cli("agents", "list", "--json").json == []


def test_names_that_are_taken_or_odd_are_refused(cli: Run) -> None:
    agent(cli)
    assert cli("agents", "create", "bot", "--json").error["code"] == "CONFLICT"
    for name in ("", " bot", "b\not", "x" * 129):
        assert cli("agents", "create", name, "--json").error["code"] == "VALIDATION_ERROR"
    assert cli("agents", "show", "nobody", "--json").error["code"] == "NOT_FOUND"


def test_what_is_lost_must_be_confirmed(cli: Run) -> None:
    agent(cli)
    done = cli("agents", "delete", "bot")
    assert done.code == 2
    assert "--yes" in done.err
    assert len(cli("agents", "list", "--json").json) == 1


# -- keys --------------------------------------------------------------------------------------------------------
def test_keys_are_shown_once_listed_by_their_ends_and_revoked(cli: Run) -> None:
    agent(cli)
    made = cli("keys", "create", "--agent", "bot", "--days", "1", "--allowed-ip", "10.0.0.0/8", "--json").json
    assert made["scopes"] == ["gateway:call"]
    assert made["allowed_ips"] == ["10.0.0.0/8"]
    listed = cli("keys", "list", "--agent", "bot", "--json")
    assert made["api_key"] not in listed.out
    (row,) = listed.json
    assert made["api_key"].startswith(row["prefix"])
    assert made["api_key"].endswith(row["last4"])
    assert "digest" not in row
    assert cli("keys", "revoke", made["id"], "--yes", "--json").json["state"] == "revoked"
    assert cli("keys", "list", "--agent", "bot", "--json").json == []
    assert [row["state"] for row in cli("keys", "list", "--agent", "bot", "--all", "--json").json] == ["revoked"]


def test_a_program_gets_the_scopes_that_are_named(cli: Run) -> None:
    made = cli("keys", "create", "--scope", "calls:read", "--scope", "agents:read", "--no-expiry", "--json").json
    assert made["kind"] == "program"
    assert made["scopes"] == ["calls:read", "agents:read"]
    assert made["expires_at"] == 0


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("create", "--agent", "nobody"), "NOT_FOUND"),
        (("create", "--scope", "calls:read", "--allowed-ip", "nonsense"), "VALIDATION_ERROR"),
        (("revoke", "key_absent", "--yes"), "NOT_FOUND"),
    ],
)
def test_keys_that_cannot_be_are_refused(cli: Run, argv: tuple[str, ...], code: str) -> None:
    assert cli("keys", *argv, "--json").error["code"] == code


# -- upstreams ---------------------------------------------------------------------------------------------------
def test_a_stdio_server_is_registered_asked_corrected_and_removed(cli: Run, folder: Path) -> None:
    added = cli("upstreams", "add", "stdio", "mail", "--json", *MAIL, str(folder / "mail"))
    assert added.code == 0, added
    assert added.json["refresh"]["ok"] is True
    tools = {tool["name"]: tool for tool in cli("upstreams", "tools", "mail", "--json").json}
    assert tools["list_inbox"]["risk"] == "low"
    assert tools["delete_email"]["risk"] == "high"
    assert tools["send_email"]["state"] == "pinned"
    fixed = cli(
        "upstreams", "correct", "mail__send_email", "--risk", "high", "--side-effect", "sends-email", "--json"
    ).json
    assert (fixed["risk"], fixed["side_effects"], fixed["state"]) == ("high", ["sends-email"], "corrected")
    again = cli("upstreams", "refresh", "mail", "--json").json
    assert (again["ok"], again["changed"]) == (True, 0)
    (row,) = cli("upstreams", "list", "--json").json
    assert row["tools"] == len(tools)
    assert cli("upstreams", "disable", "mail", "--json").json["enabled"] is False
    assert cli("upstreams", "refresh", "mail", "--json").error["code"] == "UPSTREAM_ERROR"
    assert cli("upstreams", "enable", "mail", "--json").json["enabled"] is True
    assert cli("upstreams", "remove", "mail", "--yes", "--json").code == 0
    assert cli("upstreams", "list", "--json").json == []


def test_a_server_that_does_not_answer_is_registered_and_said_so(cli: Run) -> None:
    done = cli("upstreams", "add", "http", "gone", "http://127.0.0.1:1/mcp", "--allow-private", "--json")
    assert done.code == 0
    assert done.json["refresh"]["ok"] is False
    assert cli("upstreams", "refresh", "gone", "--json").code == 1


def test_credentials_go_in_and_never_come_out(cli: Run, folder: Path) -> None:
    (folder / "token").write_text("hidden-in-a-file\n")
    done = cli(
        "upstreams", "add", "http", "crm", "https://crm.example/mcp", "--no-refresh", "--json",
        "--secret-env", "Authorization=CRM_TOKEN", "--secret-file", "X-Other=token",
        env={"CRM_TOKEN": "Bearer hidden-in-a-variable"},
    )  # fmt: skip
    assert done.json["secrets"] == {"Authorization": "set", "X-Other": "set"}
    whole = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "token")
    for secret in ("hidden-in-a-variable", "hidden-in-a-file"):
        assert secret not in done.out + cli("upstreams", "list", "--json").out
        assert secret.encode() not in whole
    assert cli("upstreams", "add", "http", "x", "https://x.example", "--secret-env", "A=UNSET_VARIABLE").code == 2


@pytest.mark.parametrize(
    ("argv", "path"),
    [
        (("http", "Bad_Name", "https://x.example"), "/name"),
        (("http", "x", "ftp://x.example"), "/url"),
        (("http", "x", "http://127.0.0.1:9/"), "/url"),
        (("http", "x", "http://169.254.169.254/", "--allow-private"), "/url"),
        (("http", "x", "https://x.example", "--header", "Authorization=plain"), "/headers/Authorization"),
        (("http", "x", "https://x.example", "--timeout-ms", "1"), "/timeout_ms"),
        (("stdio", "x", "--env", "BAD NAME=1", "--", "echo"), "/env/BAD NAME"),
    ],
)
def test_servers_that_may_not_be_registered(cli: Run, argv: tuple[str, ...], path: str) -> None:
    done = cli("upstreams", "add", *argv[:1], "--no-refresh", "--json", *argv[1:])
    assert done.code == 1, done
    assert path in [field["path"] for field in done.error["details"]["fields"]]
    assert cli("upstreams", "list", "--json").json == []


# -- plugins, health ---------------------------------------------------------------------------------------------
def test_plugins_are_listed_and_only_named_ones_are_active(cli: Run) -> None:
    rows = {row["name"]: row for row in cli("plugins", "list", "--json").json}
    assert rows["argument-rules"]["state"] == "active"
    assert rows["argument-rules"]["ours"] is True
    env = {"AGENTICMAIL_PLUGINS_GUARDS": "argument-rules,no-such-guard"}
    rows = {row["name"]: row for row in cli("plugins", "list", "--json", env=env).json}
    assert rows["no-such-guard"]["state"] == "missing"
    assert rows["rate-limits"]["state"] == "installed"


def test_check_passes_and_changes_nothing(cli: Run) -> None:
    done = cli("check", "--json")
    assert done.code == 0
    assert {finding["state"] for finding in done.json["findings"]} == {"ok"}


@pytest.mark.parametrize(
    ("break_it", "what"),
    [
        (lambda home: (home / "agenticmail-data" / "secret.key").unlink(), "secret key"),
        (lambda home: (home / "agenticmail-data" / "secret.key").chmod(0o644), "secret key"),
        (lambda home: (home / "agenticmail-data" / "secret.key").write_text("bm9uc2Vuc2U="), "secret key"),
        (lambda home: [file.unlink() for file in home.glob("gw.db*")], "database"),
        (lambda home: (home / "gw.db").write_bytes(b"this is no database, but it is long enough" * 100), "database"),
        (lambda home: (home / "agenticmail.toml").write_text("prot = 1"), "settings"),
        (
            lambda home: (home / "agenticmail.toml").write_text(
                'plugins.guards = ["nope"]\ndatabase="sqlite:///gw.db"'
            ),
            "plugins",
        ),
    ],
)
def test_check_finds_what_is_broken_and_doctor_says_how_to_mend_it(
    cli: Run, folder: Path, break_it: Any, what: str
) -> None:
    for file in folder.glob("gw.db-*"):
        file.unlink()
    break_it(folder)
    done = cli("check", "--json")
    assert done.code == 1, done
    (problem,) = [finding for finding in done.json["findings"] if finding["state"] == "problem"]
    assert problem["what"] == what
    advice = cli("doctor", "--json")
    assert advice.code == 1
    (problem,) = [finding for finding in advice.json["findings"] if finding["state"] == "problem"]
    assert problem["mend"]
    assert "Traceback" not in advice.err
    assert "mend: " in cli("doctor").out


def test_check_finds_a_server_that_cannot_be_reached_or_opened(cli: Run, folder: Path) -> None:
    (folder / "token").write_text("value")
    cli("upstreams", "add", "stdio", "ghost", "--no-refresh", "--", "no-such-program-anywhere")
    cli(
        "upstreams",
        "add",
        "http",
        "crm",
        "https://crm.invalid/mcp",
        "--no-refresh",
        "--secret-file",
        "X-A=token",
    )
    found = {finding["what"]: finding for finding in cli("check", "--json").json["findings"]}
    assert found["server ghost"]["state"] == "problem"
    assert found["server crm"]["state"] == "problem"
    cli("upstreams", "disable", "ghost")
    cli("upstreams", "remove", "crm", "--yes")
    assert cli("check", "--json").code == 0


def test_doctor_speaks_of_what_works_today_and_may_not_tomorrow(cli: Run) -> None:
    agent(cli, "idle")
    cli("keys", "create", "--scope", "calls:read", "--days", "3")
    done = cli("doctor", "--json", env={"AGENTICMAIL_SERVER_PORT": "1"})
    assert done.code == 0, done
    warnings = [finding for finding in done.json["findings"] if finding["state"] == "warning"]
    assert all(finding["mend"] for finding in warnings)
    said = " ".join(f"{finding['what']} {finding['says']}" for finding in warnings)
    for words in ("agent idle has no profile", "agent idle has no live key", "expires in 2 days", "no server behind"):
        assert words in said


# -- calls, explain ----------------------------------------------------------------------------------------------
def record_calls(folder: Path, org: str, count: int) -> None:
    async def work() -> None:
        store = open_store(f"sqlite:///{folder}/gw.db")
        await store.open()
        calls = [
            CallRecord(
                org=org, id=f"dec_{number:032x}", created_at=1000 + number, agent="agt_1", tool=f"t__{number}",
                at=1_000_000 + number, effect="allow" if number % 2 else "deny", outcome="ok", reason="because\x1b[31m",
            )
            for number in range(count)
        ]  # fmt: skip
        await store.append(CALLS, calls)
        await store.close()

    asyncio.run(work())


def test_calls_are_listed_newest_first_and_shown_whole(cli: Run, folder: Path, made: dict[str, Any]) -> None:
    assert cli("calls", "list", "--json").json == []
    record_calls(folder, made["org"], 7)
    rows = cli("calls", "list", "--limit", "3", "--json").json
    assert [row["tool"] for row in rows] == ["t__6", "t__5", "t__4"]
    denied = cli("calls", "list", "--effect", "deny", "--json").json
    assert [row["tool"] for row in denied] == ["t__6", "t__4", "t__2", "t__0"]
    shown = cli("calls", "show", rows[0]["id"], "--json").json
    assert (shown["tool"], shown["effect"], shown["flags"]) == ("t__6", "deny", [])  # defaults are said, too
    assert "\x1b" not in cli("calls", "show", rows[0]["id"]).out  # what an agent wrote cannot paint our terminal
    assert cli("calls", "show", "dec_absent", "--json").error["code"] == "NOT_FOUND"


def test_explain_names_the_rule_and_the_nearest_change(cli: Run, folder: Path) -> None:
    rule = {"name": "inside", "tools": ["mail__*"], "field": "to", "op": "domain_in", "values": ["acme.test"]}
    profile = {"tools": {"allow": ["mail__send_email"]}, "max_risk": "critical", "allow_unknown": True}
    (folder / "p.json").write_text(json.dumps({**profile, "argument_rules": [rule]}))
    agent(cli, "bot", "--profile-file", "p.json")
    ask = ("explain", "--agent", "bot", "--tool", "mail__send_email", "--json", "--args")
    assert cli(*ask, '{"to": "ana@acme.test"}').json["effect"] == "allow"
    denied = cli(*ask, '{"to": "x@evil.test"}').json
    assert denied["rule"] == "argument-rules:inside"
    assert denied["nearest"]
    (folder / "a.json").write_text('{"to": "x@evil.test"}')
    assert cli(*ask, "@a.json").json["effect"] == "deny"
    people = cli(*ask[:5], "--args", '{"to": "x@evil.test"}')
    assert people.out.startswith("DENY: bot may not call mail__send_email")
    assert "What would allow it" in people.out
    for wrong in ("{", "[]", "1", ""):
        assert cli(*ask, wrong).error["code"] == "BAD_REQUEST"
    assert cli("explain", "--agent", "nobody", "--tool", "x", "--json").error["code"] == "NOT_FOUND"


# -- organisations -----------------------------------------------------------------------------------------------
def test_with_several_organisations_one_must_be_named(cli: Run, folder: Path) -> None:
    async def work() -> None:
        from agenticmail_enterprise.gateway.accounts import Accounts

        store = open_store(f"sqlite:///{folder}/gw.db")
        await store.open()
        await Accounts(store).create_org("Beta")
        await store.close()

    asyncio.run(work())
    assert "--org" in cli("agents", "list", "--json").error["error"]
    assert cli("agents", "create", "b", "--org", "Beta", "--json").code == 0
    assert cli("agents", "list", "--org", "Acme", "--json").json == []
    assert cli("agents", "list", "--org", "Gamma", "--json").error["code"] == "NOT_FOUND"


# -- audit -------------------------------------------------------------------------------------------------------
def chained_calls(folder: Path, org: str, count: int, tamper: int = 0) -> str:
    """Write a chain as the journal does; with `tamper`, change that record afterwards. The last hash."""
    from agenticmail_enterprise.catalog.records import CHAIN_HEADS, ChainHead
    from agenticmail_enterprise.catalog.store import Insert
    from agenticmail_enterprise.gateway.chainverify import HEAD_ID, hash_of

    calls: list[CallRecord] = []
    for seq in range(1, count + 1):
        call = CallRecord(org=org, id=f"dec_{seq:032x}", created_at=seq, at=seq * 1000, tool=f"t__{seq}", seq=seq,
                          prev=calls[-1].hash if calls else "")  # fmt: skip
        call.hash = hash_of(call)
        calls.append(call)
    end = calls[-1].hash
    if tamper:
        calls[tamper - 1].tool = "t__harmless"

    async def work() -> None:
        store = open_store(f"sqlite:///{folder}/gw.db")
        await store.open()
        await store.append(CALLS, calls, Insert(CHAIN_HEADS, ChainHead(org=org, id=HEAD_ID, seq=count, hash=end)))
        await store.close()

    asyncio.run(work())
    return end


def test_a_whole_chain_verifies_and_says_where_it_ends(cli: Run, folder: Path, made: dict[str, Any]) -> None:
    assert cli("audit", "verify", "--json").json["ok"] is True  # an empty one too
    end = chained_calls(folder, made["org"], 5)
    done = cli("audit", "verify", "--json")
    assert done.code == 0, done
    (chain,) = done.json["chains"]
    assert (chain["checked"], chain["head_seq"], chain["head_hash"]) == (5, 5, end)
    assert f"5:{end}" in cli("audit", "verify").out
    assert cli("audit", "verify", "--known", f"5:{end}").code == 0
    rewritten = cli("audit", "verify", "--known", f"4:{end}")
    assert rewritten.code == 1
    assert "written anew" in rewritten.out
    assert cli("audit", "verify", "--known", "nonsense").code == 2


def test_one_changed_record_is_found_and_named(cli: Run, folder: Path, made: dict[str, Any]) -> None:
    chained_calls(folder, made["org"], 5, tamper=3)
    done = cli("audit", "verify", "--json")
    assert done.code == 1
    (chain,) = done.json["chains"]
    assert (chain["ok"], chain["checked"], chain["problem"]["seq"]) == (False, 2, 3)
    people = cli("audit", "verify", "--org", "Acme")
    assert people.code == 1
    assert people.out.startswith("CHANGED  Acme")
    assert f"dec_{3:032x}" in people.out
