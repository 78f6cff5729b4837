"""Plain HTTP upstreams and adopted AgenticMail keys, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Run

ROUTES = [{"method": "GET", "path": "/customers/{id}", "tool": "get_customer"}]
URL = "http://127.0.0.1:9/v1"
pytestmark = pytest.mark.usefixtures("made")


def test_an_api_is_registered_by_its_routes(cli: Run, folder: Path) -> None:
    (folder / "shop.json").write_text(json.dumps(ROUTES))
    added = cli("upstreams", "add", "api", "shop", URL, "--routes", "shop.json", "--allow-private", "--json")
    assert added.code == 0, added
    assert (added.json["kind"], added.json["routes"], added.json["refresh"]["tools"]) == ("http", 1, 1)
    (tool,) = cli("upstreams", "tools", "shop", "--json").json
    assert (tool["tool_id"], tool["risk"]) == ("shop__get_customer", "low")
    assert cli("upstreams", "disable", "shop", "--json").json["enabled"] is False
    assert "/http/two" in cli("upstreams", "add", "api", "two", URL, "--routes", "shop.json", "--allow-private").out


def test_what_is_no_table_is_refused(cli: Run, folder: Path) -> None:
    (folder / "bad.json").write_text('[{"method": "TRACE"}]')
    assert cli("upstreams", "add", "api", "shop", URL, "--routes", "bad.json", "--json").code == 2
    nothing = cli("upstreams", "add", "api", "shop", URL, "--allow-private", "--json")
    assert nothing.error["code"] == "VALIDATION_ERROR"
    (folder / "old.json").write_text('{"swagger": "2.0"}')
    old = cli("upstreams", "add", "api", "shop", URL, "--openapi", "old.json", "--allow-private", "--json")
    assert old.error["details"]["fields"][0]["path"] == "/openapi"


def test_an_agents_own_key_is_adopted_and_never_shown(cli: Run) -> None:
    cli("agents", "create", "bot", "--preset", "customer-support", "--json")
    key = "ak_0123456789abcdef0123"
    adopted = cli("keys", "adopt", "--agent", "bot", "--from-env", "MAIL_KEY", "--json", env={"MAIL_KEY": key})
    assert adopted.code == 0, adopted
    assert (adopted.json["prefix"], adopted.json["agent"]) == ("ak_", "bot")
    assert key not in adopted.out
    again = cli("keys", "adopt", "--agent", "bot", "--from-env", "MAIL_KEY", "--json", env={"MAIL_KEY": key})
    assert again.error["code"] == "CONFLICT"
    for odd in ("mk_0123456789abcdef0123", "ak_short", "ek_0123456789abcdef0123"):
        refused = cli("keys", "adopt", "--agent", "bot", "--from-env", "MAIL_KEY", "--json", env={"MAIL_KEY": odd})
        assert refused.error["code"] == "VALIDATION_ERROR"
    assert cli("keys", "adopt", "--agent", "bot", "--json").code == 2
    assert cli("keys", "revoke", adopted.json["id"], "--yes", "--json").code == 0
