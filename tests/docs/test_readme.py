"""The README, held to its word: every block is run, every table is held against the code in both directions."""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from agenticmail_enterprise.admin_ui.api import OPERATIONS
from agenticmail_enterprise.gateway.cli.app import NAME, root
from agenticmail_enterprise.gateway.people import totp
from agenticmail_enterprise.gateway.settings_load import LEAVES, SECTIONS
from tests.docs.pages import ROOT, Block, Page, broken_links, spans
from tests.docs.story import Story

README = Page.read("README.md")
BLOCKS = README.blocks()
MCP_DOORS = {f"{method} /mcp{server}" for method in ("GET", "POST", "DELETE") for server in ("", "/{server}")}
HOT = MCP_DOORS | {
    "POST /tools/invoke",
    "POST /openclaw/{upstream}/tools/invoke",
    "GET /health",
    "GET /ready",
    "GET /metrics",
}
"""What the edge serves besides the operations."""

ENDPOINT = re.compile(r"(GET|POST|PUT|PATCH|DELETE) /\S*")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Somebody has read the README from top to bottom, and the gateway still runs."""
    told = Story(tmp_path_factory.mktemp("reader"))
    try:
        told.tell(BLOCKS)
        yield told
    finally:
        told.close()


# -- blocks ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_does_what_it_says(story: Story, block: Block) -> None:
    assert block.line not in story.problems, story.problems[block.line]


def test_what_the_reader_saves_is_used(story: Story) -> None:
    saved = [block.saved_as for block in BLOCKS if block.saved_as]
    assert saved
    for name in saved:
        assert any(name in line for line in story.ran), f"{name} is saved and never used"


def test_the_gateways_had_nothing_to_complain_about(story: Story) -> None:
    logged = "".join(server.err for server in story.servers if NAME in server.command[0])
    assert '"level": "info"' in logged
    for line in logged.splitlines():
        assert '"level": "info"' in line, line


# -- commands ----------------------------------------------------------------------------------------------------
def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that does something, by its words."""
    if not isinstance(command, click.Group):
        yield path
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from commands(found, (*path, name))


def words_of(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split() if re.fullmatch(r"[a-z-]+", word))


COMMANDS = list(commands(root))
PRINTED_COMMANDS = [span for row in README.table("command") for span in spans(row[0])]


def test_the_table_of_commands_is_the_command_line() -> None:
    assert sorted(map(words_of, PRINTED_COMMANDS)) == sorted(COMMANDS)


@pytest.mark.parametrize("printed", PRINTED_COMMANDS)
def test_a_printed_command_takes_the_arguments_that_are_printed(printed: str) -> None:
    command: click.Command = root
    for word in words_of(printed):
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None, printed
        command = found
    takes = [parameter.make_metavar(click.Context(command)).rstrip(".") for parameter in command.params
             if isinstance(parameter, click.Argument)]  # fmt: skip
    names = [re.split(r"[:.\[]", name.strip("{}[]"))[0] for name in takes]
    given = printed.split()[len(words_of(printed)) :]
    assert len(given) == len(names), (printed, names)


def test_flags_in_the_table_exist() -> None:
    for row in README.table("command"):
        params = {flag for words in map(words_of, spans(row[0])) for flag in flags_of(words)}
        for flag in re.findall(r"--[a-z-]+", " ".join(row)):
            assert flag in params, f"{row[0]} has no {flag}"


def flags_of(words: tuple[str, ...]) -> set[str]:
    command: Any = root
    for word in words:
        command = command.get_command(click.Context(command), word)
    return {option for parameter in command.params for option in parameter.opts}


COMMAND_LINES = """
doctor
migrate
audit prune --before 2020-01-01 --yes
agents list
agents show support-bot
agents profile show support-bot
agents create spare --profile-file support.json --key
agents profile set spare --preset sandbox
agents status spare suspended
agents delete spare --yes
keys create --scope calls:read --scope audit:read --name reports
keys list
upstreams list
upstreams refresh mail
upstreams disable mail-two
upstreams enable mail-two
upstreams correct mail__list_inbox --accept-pin
upstreams remove mail-two --yes
users list
users create spare@acme.test --role member --name Spare
users change spare@acme.test --role viewer
users link spare@acme.test --reset
users disable-second-factor spare@acme.test --yes
users delete spare@acme.test --yes
upstreams add openclaw claw http://127.0.0.1:18789 --allow-private --no-refresh
upstreams remove claw --yes
upstreams add api mails http://127.0.0.1:3100/api/agenticmail --catalog agenticmail --allow-private --no-refresh
keys adopt --agent support-bot --from-file agent.key
upstreams remove mails --yes
openclaw --expect support-bot
plugins list
calls list --agent support-bot --effect deny
version
settings show
""".strip().splitlines()
"""For commands of the table that no block shows."""


def test_every_command_of_the_table_runs(story: Story) -> None:
    ran = list(story.ran)
    story.shell(f"printf %s ak_{'0123456789abcdef' * 4} > agent.key; chmod 600 agent.key; echo made")
    for line in COMMAND_LINES:
        assert story.shell(f"{NAME} {line}"), line
        ran.append(f"{NAME} {line}")
    key = story.shell(f"{NAME} keys create --agent support-bot --json | field id").strip()
    call = story.shell(f"{NAME} calls list --json --limit 1 | grep -o 'dec_[0-9a-f]*' | head -1").strip()
    for line in (f"keys revoke {key} --yes", f"calls show {call}"):
        assert story.shell(f"{NAME} {line}"), line
        ran.append(f"{NAME} {line}")
    ran.append(f"{NAME} demo")  # what `make run` starts; see the block
    assert "make run" in ran
    for words in COMMANDS:
        assert any(f"{NAME} {' '.join(words)}" in line for line in ran), f"{' '.join(words)} was never run"


# -- endpoints ---------------------------------------------------------------------------------------------------
DECLARED = {f"{operation.method} {operation.path}": operation for operation in OPERATIONS}
PRINTED_ENDPOINTS = [span for row in README.table("endpoints") for span in spans(row[0])]


def test_the_table_of_endpoints_is_the_api() -> None:
    assert sorted(PRINTED_ENDPOINTS) == sorted(DECLARED)


def test_scopes_in_the_table_are_those_declared() -> None:
    for row in README.table("endpoints"):
        found = [DECLARED[endpoint] for endpoint in spans(row[0])]
        declared = {item.scope or ("a person" if item.person else "none") for item in found}
        assert set(spans(row[1]) or [row[1]]) == declared, row[0]


def test_every_endpoint_mentioned_anywhere_exists() -> None:
    for page in (README, *(Page.read(str(path.relative_to(ROOT))) for path in sorted((ROOT / "docs").glob("*.md")))):
        for span in spans(page.prose()):
            if ENDPOINT.fullmatch(span):
                path = span.partition("?")[0]
                assert path in DECLARED or path in HOT, f"{page.path.name}: {span}"
    for endpoint in HOT:
        page = Page.read("docs/mcp.md") if endpoint in MCP_DOORS else README
        assert f"`{endpoint}`" in page.text, f"{endpoint} is not in {page.path.name}"


def test_every_endpoint_of_the_table_answers(story: Story) -> None:
    """A tour of the running gateway: each endpoint is called at least once and does what it is for."""
    key = story.value("ADMIN_KEY")
    toured: set[str] = {"POST /api/engine/check-permission", "POST /api/engine/tool-calls"}  # blocks, with curl -f
    assert all(any(endpoint.split()[1] in line for line in story.ran) for endpoint in toured)

    def ask(endpoint: str, body: Any = None, status: int = 200, *, token: str = "", **path: str) -> Any:
        toured.add(endpoint)
        method, _, template = endpoint.partition(" ")
        headers = {"Authorization": f"Bearer {token}"} if token else {"X-API-Key": key}
        if template.startswith("/auth/session"):
            headers["Sec-Fetch-Site"] = "same-origin"
        answered, found = story.request(method, template.format(**path), body, headers)
        assert answered == status, (endpoint, answered, found)
        return found

    agent = ask("POST /api/agents", {"name": "tourist"}, 201)["data"]["id"]
    assert agent in {item["id"] for item in ask("GET /api/agents")["data"]}
    ask("GET /api/agents/{id}", id=agent)
    ask("PUT /api/agents/{id}", {"name": "tourist", "description": "Looks around."}, id=agent)
    ask("PUT /api/agents/{id}/profile", {"preset": "sandbox"}, id=agent)
    assert ask("GET /api/agents/{id}/profile", id=agent)["data"]["preset"] == "sandbox"
    assert ask("PATCH /api/agents/{id}", {"description": "Walks."}, id=agent)["data"]["name"] == "tourist"
    assert (
        ask("PATCH /api/agents/{id}/profile", {"profile": {"max_risk": "medium"}}, 428, id=agent)["code"]
        == "PRECONDITION_REQUIRED"
    )
    made = ask("POST /api/keys", {"kind": "agent", "agent_id": agent}, 201)["data"]["id"]
    assert made in {item["id"] for item in ask("GET /api/keys")["data"]}
    ask("GET /api/keys/{id}", id=made)
    ask("DELETE /api/keys/{id}", id=made)
    tour_of_approvals(ask, agent)
    assert ask("PUT /api/engine/hooks/{id}", id=agent)["data"]["state"] == "expected"
    assert agent in {item["agent_id"] for item in ask("GET /api/engine/hooks")["data"]}
    ask("DELETE /api/engine/hooks/{id}", status=204, id=agent)
    beat = story.request(
        "POST", "/api/engine/hooks/heartbeat", {"instance": "tour"}, {"X-API-Key": story.value("AGENT_KEY")}
    )
    assert beat[0] == 200, beat
    toured.add("POST /api/engine/hooks/heartbeat")
    ask("DELETE /api/agents/{id}", status=204, id=agent)

    stdio = {"name": "tour", "kind": "mcp_stdio", "command": ["python", "-m", "agenticmail_enterprise.gateway.demo.mailserver",
                                                              "--folder", "tour"]}  # fmt: skip
    server = ask("POST /api/gateway/upstreams", stdio, 201)["data"]
    assert server["listing"]["ok"], server
    assert "tour" in {item["name"] for item in ask("GET /api/gateway/upstreams")["data"]}
    ask("GET /api/gateway/upstreams/{id}", id=server["id"])
    ask("PUT /api/gateway/upstreams/{id}", {**stdio, "timeout_ms": 5000}, id=server["id"])
    assert (
        ask("PATCH /api/gateway/upstreams/{id}", {"timeout_ms": 6000}, id=server["id"])["data"]["kind"] == "mcp_stdio"
    )
    ask("POST /api/gateway/upstreams/{id}/refresh", id=server["id"])
    tool = ask("GET /api/gateway/upstreams/{id}/tools", id=server["id"])["data"][0]["id"]
    corrected = ask("PUT /api/gateway/upstreams/{id}/tools/{tool}", {"risk": "high"}, id=server["id"], tool=tool)
    assert corrected["data"]["risk"] == "high"
    ask("PATCH /api/gateway/upstreams/{id}/tools/{tool}", {"risk": "low"}, id=server["id"], tool=tool)
    ask("DELETE /api/gateway/upstreams/{id}", status=204, id=server["id"])

    assert ask("GET /api/engine/skills")["meta"]["total"] == 38
    assert ask("GET /api/engine/presets")["meta"]["total"] == 5
    ask("GET /api/engine/skills/{id}", id="crm")
    ask("GET /api/engine/presets/{id}", id="sandbox")
    ask("GET /api/engine/tools")
    ask("POST /api/engine/tool-policy", {"skills": ["web-search"]})
    ask("GET /api/engine/stats")
    ask("GET /api/calls/{id}", id=ask("GET /api/calls")["data"][0]["id"])
    assert "agent.create" in {item["action"] for item in ask("GET /api/audit")["data"]}
    assert set(ask("GET /api/openapi.json")["paths"]) == {operation.path for operation in OPERATIONS}
    tour_of_people(ask, story)
    assert toured == set(PRINTED_ENDPOINTS)
    for path in ("/health", "/ready", "/metrics"):
        assert story.get(path)[0] == 200


def tour_of_approvals(ask: Any, agent: str) -> None:
    policies, grants, channels = (f"/api/engine/approval-{kind}" for kind in ("policies", "grants", "channels"))
    policy = ask(f"POST {policies}", {"name": "tour", "tools": ["tour__*"]}, 201)["data"]["id"]
    assert policy in {item["id"] for item in ask(f"GET {policies}")["data"]}
    ask(f"GET {policies}/{{id}}", id=policy)
    ask(f"PUT {policies}/{{id}}", {"name": "tour", "tools": ["tour__*"], "approvals": 2}, id=policy)
    assert ask(f"PATCH {policies}/{{id}}", {"approvals": 1}, id=policy)["data"]["name"] == "tour"
    ask(f"DELETE {policies}/{{id}}", status=204, id=policy)
    call = {"agent_id": agent, "tool": "exec", "arguments": {"command": "ls"}}
    held = ask("POST /api/engine/approvals", call, 201)["data"]["id"]
    assert held in {item["id"] for item in ask("GET /api/engine/approvals")["data"]}
    assert ask("GET /api/engine/approvals/{id}", id=held)["data"]["arguments"] == {"command": "ls"}
    rejected = ask("PUT /api/engine/approvals/{id}", {"action": "reject", "reason": "Not now."}, id=held)
    assert rejected["data"]["state"] == "rejected"
    batch = {"decisions": [{"id": held, "action": "approve"}]}
    assert ask("POST /api/engine/approvals/decisions", batch)["data"]["items"][0]["code"] == "ALREADY_DECIDED"
    assert ask("GET /api/engine/approvals/{id}/result", id=held)["data"]["rejection"] == "Not now."
    condition = {"field": "command", "op": "equals", "values": ["ls"]}
    grant = ask(f"POST {grants}", {"agent_id": agent, "tool": "exec", "conditions": [condition]}, 201)["data"]["id"]
    assert grant in {item["id"] for item in ask(f"GET {grants}")["data"]}
    ask(f"GET {grants}/proposals")
    ask(f"DELETE {grants}/{{id}}", status=204, id=grant)
    channel = ask(f"POST {channels}", {"name": "tour", "url": "https://hooks.example.com/"}, 201)["data"]
    assert channel["secret"].startswith("whsec_")
    assert [item["name"] for item in ask(f"GET {channels}")["data"]] == ["tour"]
    ask(f"DELETE {channels}/{{id}}", status=204, id=channel["id"])


def tour_of_people(ask: Any, story: Story) -> None:
    """Somebody is added, sets a password, signs in each way there is, and is removed."""
    made = ask("POST /api/users", {"email": "tess@acme.test", "role": "admin"}, 201)["data"]
    tess, password = made["id"], "a password for a tour"
    assert tess in {item["id"] for item in ask("GET /api/users")["data"]}
    ask("POST /auth/reset-password", {"token": made["link"]["token"], "password": password})
    login = {"email": "tess@acme.test", "password": password}
    signed = ask("POST /auth/login", login)["data"]
    signed = ask("POST /auth/refresh", {"refresh_token": signed["refresh_token"]})["data"]
    token = signed["token"]
    assert ask("GET /auth/me", token=token)["data"]["user"]["role"] == "admin"
    ask("PUT /auth/me", {"name": "Tess Tour"}, token=token)
    ask("PATCH /auth/me", {"name": "Tess"}, token=token)
    (session,) = ask("GET /auth/sessions", token=token)["data"]
    secret = ask("POST /auth/2fa/setup", {"password": password}, token=token)["data"]["secret"]
    now = totp.code_at(secret, totp.step_of(time.time()))
    codes = ask("POST /auth/2fa/confirm", {"code": now}, token=token)["data"]["recovery_codes"]
    challenge = ask("POST /auth/login", login, 401)["details"]["challenge"]
    ask("POST /auth/login/second-factor", {"challenge": challenge, "code": codes[0]})
    ask("POST /auth/session", {**login, "code": codes[1]})
    ask("POST /auth/session/second-factor", {"challenge": challenge, "code": codes[2]})
    proof = {"password": password, "code": codes[3]}
    codes = ask("POST /auth/2fa/recovery-codes", proof, token=token)["data"]["recovery_codes"]
    ask("POST /auth/2fa/disable", {"password": password, "code": codes[0]}, token=token)
    for kind in ("login", "session"):
        link = json.loads(story.shell(f"{NAME} users link tess@acme.test --json"))["link"]
        ask(f"POST /auth/{kind}/link", {"token": link["token"]})
    ask("POST /auth/password", {"current_password": password, "new_password": password + "!"}, token=token)
    ask("POST /auth/forgot-password", {"email": "tess@acme.test"})
    ask("DELETE /auth/sessions/{id}", status=204, id=session["id"], token=token)
    for way in ("logout", "logout-everywhere"):
        token = ask("POST /auth/login", {**login, "password": password + "!"})["data"]["token"]
        ask(f"POST /auth/{way}", token=token)
    ask("PUT /api/users/{id}", {"name": "Tess", "role": "member"}, id=tess)
    ask("PATCH /api/users/{id}", {"role": "viewer"}, id=tess)
    assert ask("GET /api/users/{id}", id=tess)["data"]["role"] == "viewer"
    ask("POST /api/users/{id}/link", status=201, id=tess)
    ask("POST /api/users/{id}/sign-out", id=tess)
    ask("DELETE /api/users/{id}/2fa", status=204, id=tess)
    ask("DELETE /api/users/{id}", status=204, id=tess)
    name = ask("GET /api/settings")["data"]["name"]
    ask("PUT /api/settings", {"name": name, "timezone": "Europe/Berlin"})
    assert ask("PATCH /api/settings", {"domain": "acme.test"}, 428)["code"] == "PRECONDITION_REQUIRED"
    assert ask("GET /api/stats")["data"]["users"] >= 1
    entry = ask("GET /api/audit")["data"][0]["id"]
    ask("GET /api/audit/{id}", id=entry)
    ask("GET /api/audit/export")


def test_a_denial_on_the_wire_is_the_one_in_the_docs(story: Story) -> None:
    example = next(block for block in Page.read("docs/mcp.md").blocks() if block.kind == "json")
    version = "2026-07-28"
    meta = {"io.modelcontextprotocol/protocolVersion": version, "io.modelcontextprotocol/clientCapabilities": {}}
    arguments = {"to": "audit@evil.example", "subject": "x", "text": "y"}
    call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call",
            "params": {"name": "send_email", "arguments": arguments, "_meta": meta}}  # fmt: skip
    headers = {"X-API-Key": story.value("AGENT_KEY"), "MCP-Protocol-Version": version, "Mcp-Method": "tools/call",
               "Mcp-Name": "send_email"}  # fmt: skip
    status, answer = story.request("POST", "/mcp/mail", call, headers)
    assert status == 200
    shortened = re.sub(r"(dec_[0-9a-f]{4})[0-9a-f]+", "dec_01a2", json.dumps(answer))
    assert json.loads(shortened) == json.loads(example.text)


# -- settings ----------------------------------------------------------------------------------------------------
def test_the_table_of_settings_is_the_settings_with_their_defaults() -> None:
    printed = {}
    for row in README.table("setting"):
        assert row[2], f"{row[0]} is not explained"
        printed[spans(row[0])[0]] = tomllib.loads(f"value = {spans(row[1])[0]}")["value"]
    defaults = {path: list(value) if isinstance(value, tuple) else value for path, (_, value) in LEAVES.items()}
    assert printed == defaults


def test_settings_mentioned_in_any_page_exist() -> None:
    known = SECTIONS - {""}
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for span in spans(Page.read(str(file.relative_to(ROOT))).prose()):
            section, dot, _ = span.partition(".")
            if dot and section in known and re.fullmatch(r"[a-z_]+\.[a-z_]+", span):
                assert span in LEAVES or span.endswith((".md", ".py")) or span == "plugins.config", (
                    f"{file.name}: {span}"
                )


# -- the rest ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    ["README.md", "CHANGELOG.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))],
)
def test_links_lead_somewhere(name: str) -> None:
    assert broken_links(Page.read(name)) == []


def test_every_page_of_the_docs_can_be_reached_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in README.links() if ":" not in link}
    for path in (ROOT / "docs").glob("*.md"):
        assert path in linked, f"{path.name} is not linked"


def test_the_folders_in_the_table_are_those_that_exist() -> None:
    printed = [spans(row[0])[0].rstrip("/") for row in README.table("folder")]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(printed) == packages


def test_files_named_in_backticks_exist() -> None:
    for span in spans(README.prose()):
        if re.fullmatch(r"(gateway|policies|catalog|admin_ui|adapters|deploy|tests|docs)/[\w/.]+", span):
            assert (ROOT / span).exists(), span


def test_the_checks_themselves_find_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text(
        "# One\n\nSave this as `a.json`:\n\n```json\n{}\n```\n\n[a](b.md) [c](#two) [d](#one)\n"
    )
    page = Page(tmp_path / "x.md", (tmp_path / "x.md").read_text())
    assert [(block.kind, block.saved_as, block.line) for block in page.blocks()] == [("json", "a.json", 5)]
    assert broken_links(page) == ["b.md: no such file", "#two: no such heading"]
    story = Story(tmp_path)
    wrong = ["sh:false", "console:$ echo one\ntwo", "text:x", 'json:{"max_risk": "huge"}', "toml:[server]\nprot = 1",
             "python:raise SystemExit(3)", "sh:make coffee", "ruby:puts 1", "sh:echo noise >&2"]  # fmt: skip
    blocks = [Block(*item.split(":", 1), number, "") for number, item in enumerate(wrong)]
    story.tell(blocks)
    assert sorted(story.problems) == list(range(len(wrong)))
    right = [
        "sh:X=1; export Y=2",
        "console:$ echo $Y   three\n2 three\n",
        "console:$ echo a b c; echo d\na … c\n…\nd\n",
    ]
    story.problems.clear()
    story.tell([Block(*item.split(":", 1), number, "") for number, item in enumerate(right)])
    assert story.problems == {}
