"""The parent of several workers: starts them in turn, restarts what dies, passes a stop on, and waits for them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenticmail_enterprise.catalog.errors import SettingsError
from agenticmail_enterprise.gateway.workers import reserve

PROGRAM = """
import os, signal, sys, time
from agenticmail_enterprise.gateway.logs import configure
from agenticmail_enterprise.gateway.settings import LogSettings
from agenticmail_enterprise.gateway.workers import Supervisor

configure(LogSettings())
count, behaviour = int(sys.argv[1]), sys.argv[2]

def serve(number, ready):
    stopping = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "deaf" else lambda *_: stopping.append(1))
    print("start", number, os.getpid(), flush=True)
    if behaviour == "broken" or (behaviour == "second-broken" and number == 1):
        raise SystemExit(7)
    if behaviour == "raises":
        raise RuntimeError("worker fell over")
    ready()
    while not stopping:
        time.sleep(0.01)
    print("stop", number, os.getpid(), flush=True)

sys.exit(Supervisor(count, serve, 0.1, lambda: print("ready", os.getpid(), flush=True)).run())
"""


class Parent:
    def __init__(self, folder: Path, count: int, behaviour: str) -> None:
        self.out = folder / "out"
        program = folder / "program.py"
        program.write_text(PROGRAM.replace("KILL", ""))
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(program), str(count), behaviour], stdout=out, stderr=subprocess.STDOUT
            )

    def lines(self, word: str) -> list[list[str]]:
        return [line.split() for line in self.out.read_text().splitlines() if line.startswith(word)]

    def wait_for(self, word: str, count: int, seconds: float = 60.0) -> list[list[str]]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.lines(word)
            if len(found) >= count:
                return found
            time.sleep(0.02)
        raise AssertionError(f"{count} x {word!r} did not come: {self.out.read_text()}")

    def ended(self) -> int:
        return self.process.wait(60)


@pytest.fixture
def parents(tmp_path: Path) -> Iterator[list[Parent]]:
    started: list[Parent] = []
    yield started
    for parent in started:
        if parent.process.poll() is None:
            parent.process.kill()
            parent.process.wait()


def start(parents: list[Parent], folder: Path, count: int, behaviour: str = "well") -> Parent:
    parents.append(Parent(folder, count, behaviour))
    return parents[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_passed_on_and_waited_for(parents: list[Parent], tmp_path: Path, number: int) -> None:
    parent = start(parents, tmp_path, 3)
    parent.wait_for("ready", 1)
    assert sorted(line[1] for line in parent.lines("start")) == ["0", "1", "2"]
    parent.process.send_signal(number)
    assert parent.ended() == 0
    assert sorted(line[1] for line in parent.lines("stop")) == ["0", "1", "2"]


def test_a_worker_that_is_killed_is_started_again_and_the_others_stay(parents: list[Parent], tmp_path: Path) -> None:
    parent = start(parents, tmp_path, 2)
    parent.wait_for("ready", 1)
    victim = next(line for line in parent.lines("start") if line[1] == "1")
    os.kill(int(victim[2]), signal.SIGKILL)
    starts = parent.wait_for("start", 3)
    assert [line[1] for line in starts].count("1") == 2
    assert len(parent.lines("ready")) == 1
    assert "worker_died" in parent.out.read_text()
    parent.process.terminate()
    assert parent.ended() == 0


@pytest.mark.parametrize(("behaviour", "code"), [("broken", 7), ("second-broken", 7), ("raises", 70)])
def test_a_start_that_fails_ends_everything_with_its_exit_code(
    parents: list[Parent], tmp_path: Path, behaviour: str, code: int
) -> None:
    parent = start(parents, tmp_path, 3, behaviour)
    assert parent.ended() == code
    assert not parent.lines("ready")
    first = [line for line in parent.lines("start") if line[1] == "0"]
    assert len(first) == 1  # the fault is said once, not once a worker


def test_a_worker_deaf_to_the_stop_is_killed_by_a_second_one(parents: list[Parent], tmp_path: Path) -> None:
    parent = start(parents, tmp_path, 2, "deaf")
    parent.wait_for("ready", 1)
    parent.process.terminate()
    time.sleep(0.2)
    assert parent.process.poll() is None
    for _ in range(300):  # two that come before the first is handled are one to the system
        parent.process.terminate()
        time.sleep(0.1)
        if parent.process.poll() is not None:
            break
    assert parent.ended() == 0


def test_workers_stop_when_their_parent_is_killed(parents: list[Parent], tmp_path: Path) -> None:
    parent = start(parents, tmp_path, 2)
    parent.wait_for("ready", 1)
    parent.process.kill()
    parent.process.wait()
    assert len(parent.wait_for("stop", 2)) == 2


def test_a_reserved_port_takes_workers_and_refuses_strangers() -> None:
    with reserve("127.0.0.1", 0) as held, socket.socket() as worker, socket.socket() as stranger:
        address = held.getsockname()
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.bind(address)
        worker.listen()
        with pytest.raises(OSError, match="in use"):
            stranger.bind(address)
        with pytest.raises(SettingsError, match=r"something else listens there already.*--port"):
            reserve("127.0.0.1", address[1])
        with socket.create_connection(address, 5) as client:  # the reservation itself takes no connection
            accepted, _ = worker.accept()
            accepted.close()
            client.close()


def test_an_address_that_is_not_ours_is_a_clear_error() -> None:
    with pytest.raises(SettingsError, match=r"Cannot serve on 192\.0\.2\.1:0"):
        reserve("192.0.2.1", 0)
    with pytest.raises(SettingsError, match=r"no-such-host"):
        reserve("no-such-host.invalid", 0)
