"""The demo from end to end: a real agent through the gateway to a real server, twice in one folder, and stopped."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

DEMO = (sys.executable, "-m", "agenticmail_enterprise.gateway.cli", "demo", "--folder", "stage")


def demo(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEMO, *argv], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def call_api(url: str, key: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"X-API-Key": key}), timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_an_agent_is_allowed_and_denied_and_all_of_it_is_on_record(tmp_path: Path) -> None:
    done = demo(tmp_path, "--port", "0", "--once", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    assert seen["problem"] == ""
    assert [(call["tool"], call["allowed"]) for call in seen["calls"]] == [
        ("list_inbox", True), ("read_email", True), ("send_email", True), ("send_email", False),
    ]  # fmt: skip
    denied = seen["calls"][-1]
    assert "acme.test" in denied["text"]  # the agent is told what it may do instead
    assert denied["why"]["rule"] == "argument-rules:colleagues-only"
    assert denied["why"]["nearest"]
    assert denied["why"]["after"] == "allow"
    assert [(record["effect"], record["outcome"]) for record in seen["records"]] == [
        ("allow", "ok"), ("allow", "ok"), ("allow", "ok"), ("deny", "denied"),
    ]  # fmt: skip
    sent = [file.read_text() for file in (tmp_path / "stage" / "mail" / "outbox").glob("*.eml")]
    assert len(sent) == 1
    assert "miro@acme.test" in sent[0]
    assert {file.name for file in tmp_path.iterdir()} == {"stage"}
    verified = subprocess.run(
        [*DEMO[:3], "audit", "verify", "--json", "--config", "stage/agenticmail.toml"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified
    assert json.loads(verified.stdout)["chains"][0]["checked"] >= 4


def test_it_plays_again_on_what_is_there_with_new_keys_and_goes_on_serving(tmp_path: Path) -> None:
    first = json.loads(demo(tmp_path, "--port", "0", "--once", "--json").stdout)
    process = subprocess.Popen([*DEMO, "--port", "0", "--json"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        second = json.loads(process.stdout.readline())
        assert [call["allowed"] for call in second["calls"]] == [True, True, True, False]
        assert len(second["records"]) == 4  # this run's only
        calls = f"{second['url']}/api/calls?limit=50"
        assert call_api(calls, first["operator_key"])[0] == 401  # the keys of the run before are dead
        status, body = call_api(calls, second["operator_key"])
        assert status == 200
        assert body["meta"]["total"] == 8
        assert call_api(f"{second['url']}/api/keys", second["operator_key"])[0] == 403  # it reads, it mints nothing
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_people_see_reason_remedy_record_and_what_to_try(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*DEMO, "--port", "0"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if "goes on serving" in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    text = "\n".join(lines)
    first_call = next(number for number, line in enumerate(lines) if line.startswith("ALLOWED"))
    assert first_call <= 12
    assert sum(line.startswith("ALLOWED") for line in lines) == 3
    assert sum(line.startswith("DENIED") for line in lines) == 1
    for words in ("would allow", "The record of these calls", "Try next", "curl -s", "X-API-Key: ek_", "audit verify"):
        assert words in text
    assert "\x1b" not in text
    assert max(len(line) for line in lines) < 400


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_a_taken_port_is_said_with_what_to_do(tmp_path: Path, json_flag: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = demo(tmp_path, "--port", str(port), *json_flag)
    assert done.returncode == 1
    assert f"PORT={port + 1}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_gateway_is_not_a_stage(tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    stage.mkdir()
    arguments = ("--no-input", "--json", "--company", "Acme", "--email", "a@acme.test", "--database", "sqlite:///gw.db")
    subprocess.run([*DEMO[:3], "init", *arguments], cwd=stage, check=True, capture_output=True)
    done = demo(tmp_path, "--port", "0", "--once")
    assert done.returncode == 1
    assert "somebody's gateway" in done.stderr
    assert "Traceback" not in done.stderr
