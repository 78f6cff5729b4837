"""`serve`: quiet when healthy, one clear sentence when not, one worker or several, and changes made beside it are seen."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run

pytestmark = pytest.mark.usefixtures("made")
COMMAND = (sys.executable, "-m", "agenticmail_enterprise.gateway.cli", "serve")


class Served:
    """A `serve` process that is ready."""

    def __init__(self, folder: Path, *argv: str) -> None:
        self.log = folder / "serve.err"
        with self.log.open("w") as err:
            self.process = subprocess.Popen(
                [*COMMAND, "--port", "0", "--json", *argv], cwd=folder, stdout=subprocess.PIPE, stderr=err, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.ready: dict[str, Any] = json.loads(line)
        self.url: str = self.ready["url"]

    def get(self, path: str) -> tuple[int, Any]:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.status, json.loads(answer.read())

    def check(self, key: str) -> int:
        """The status of a permission check with a key."""
        request = urllib.request.Request(
            f"{self.url}/api/engine/check-permission", b'{"tool":"exec"}', {"X-API-Key": key}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def becomes(self, key: str, status: int) -> bool:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if self.check(key) == status:
                return True
            time.sleep(0.05)
        return False

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        assert self.process.stdout.read() == ""
        self.process.stdout.close()
        return code


@pytest.fixture
def started() -> Iterator[list[Served]]:
    running: list[Served] = []
    yield running
    for server in running:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        if server.process.stdout is not None:
            server.process.stdout.close()


def start(started: list[Served], folder: Path, *argv: str) -> Served:
    started.append(Served(folder, *argv))
    return started[-1]


def workers_of(server: Served) -> list[int]:
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if children.exists():
        return [int(text) for text in children.read_text().split()]
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(text) for text in found.stdout.split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_healthy_start_says_where_it_serves_and_stops_gracefully(
    started: list[Served], folder: Path, number: int
) -> None:
    server = start(started, folder)
    assert server.ready == {"url": server.url, "workers": 1}
    assert server.get("/health")[0] == 200
    assert server.get("/ready")[0] == 200
    lines = server.lines()
    assert 1 <= len(lines) <= 12
    assert {line["level"] for line in lines} == {"info"}
    assert next(line for line in lines if line["event"] == "serving")["url"] == server.url
    assert server.stop(number) == 0


def test_changes_made_beside_a_running_server_are_seen(started: list[Served], folder: Path, cli: Run) -> None:
    server = start(started, folder)
    made = cli("agents", "create", "bot", "--preset", "sandbox", "--key", "--json").json
    assert server.becomes(made["api_key"], 200)
    (key,) = cli("keys", "list", "--agent", "bot", "--json").json
    assert cli("keys", "revoke", key["id"], "--yes").code == 0
    assert server.becomes(made["api_key"], 401)
    found = {finding["what"]: finding for finding in cli("check", "--json").json["findings"]}
    assert found["database"]["state"] == "ok"  # a check beside a running server disturbs nothing
    assert server.stop() == 0


def test_two_workers_share_a_port_and_one_that_dies_comes_back(started: list[Served], folder: Path, cli: Run) -> None:
    server = start(started, folder, "--workers", "2")
    assert server.ready["workers"] == 2
    assert len(server.lines()) <= 12
    before = workers_of(server)
    assert len(before) == 2
    made = cli("agents", "create", "bot", "--preset", "sandbox", "--key", "--json").json
    assert server.becomes(made["api_key"], 200)
    os.kill(before[0], signal.SIGKILL)
    end = time.monotonic() + 60
    while time.monotonic() < end and (len(workers_of(server)) < 2 or before[0] in workers_of(server)):
        time.sleep(0.05)
    assert len(workers_of(server)) == 2
    assert server.becomes(made["api_key"], 200)
    assert server.stop() == 0
    assert "worker_died" in server.log.read_text()


def calls_counted(server: Served) -> int:
    """What one scrape, of whichever worker takes it, says of calls."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("agenticmail_calls_total{"))


def settles_at(server: Served, calls: int) -> bool:
    """Whether scrapes come to say so, whichever worker takes them: ten in a row, each on a connection of its own."""
    end, row = time.monotonic() + 60, 0
    while time.monotonic() < end and row < 10:
        row = row + 1 if calls_counted(server) == calls else 0
        time.sleep(0.02)
    return row >= 10


def test_a_scrape_answers_for_all_workers_and_a_killed_one_is_not_lost(
    started: list[Served], folder: Path, cli: Run
) -> None:
    server = start(started, folder, "--workers", "2")
    made = cli("agents", "create", "bot", "--preset", "sandbox", "--key", "--json").json
    assert server.becomes(made["api_key"], 200)
    before = calls_counted(server)
    for _ in range(30):
        assert server.check(made["api_key"]) == 200
    total = before + 30
    end = time.monotonic() + 60
    while time.monotonic() < end and not settles_at(server, total):
        total = max(total, calls_counted(server))  # the first count may have missed what the other had not yet copied
    assert settles_at(server, total)
    old = workers_of(server)
    os.kill(old[0], signal.SIGKILL)
    end = time.monotonic() + 60
    while time.monotonic() < end and (len(workers_of(server)) < 2 or old[0] in workers_of(server)):
        time.sleep(0.05)
    assert settles_at(server, total)
    assert (folder / "agenticmail-data" / "metrics" / str(server.process.pid)).is_dir()
    assert server.stop() == 0
    assert list((folder / "agenticmail-data" / "metrics").iterdir()) == []


def test_a_port_that_is_taken_is_said_with_what_to_do(cli: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for workers in ("1", "2"):
            done = cli("serve", "--port", str(port), "--workers", workers)
            assert done.code == 1
            assert f"127.0.0.1:{port}" in done.err
            assert "--port" in done.err


def test_a_second_gateway_on_the_same_port_is_refused(started: list[Served], folder: Path, cli: Run) -> None:
    server = start(started, folder)
    done = cli("serve", "--port", server.url.rpartition(":")[2])
    assert done.code == 1
    assert "something else listens there already" in done.err
    assert server.get("/health")[0] == 200
    assert server.stop() == 0


@pytest.mark.parametrize("workers", ["1", "3"])
def test_what_keeps_it_from_starting_is_said_once(cli: Run, folder: Path, workers: str) -> None:
    (folder / "agenticmail-data" / "secret.key").unlink()
    done = cli("serve", "--port", "0", "--workers", workers)
    assert done.code == 1, done
    assert done.err.count("secret.key") == 1
    assert "Traceback" not in done.err
    bad_plugin = cli("serve", "--port", "0", "--workers", workers, env={"AGENTICMAIL_PLUGINS_GUARDS": "nope"})
    assert bad_plugin.code == 1
