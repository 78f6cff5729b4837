"""An upstream starts children, knows when not to, and leaves none behind."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from agenticmail_enterprise.adapters.upstreams import mcp_stdio, warden
from agenticmail_enterprise.adapters.upstreams.mcp_stdio import Limits
from agenticmail_enterprise.catalog import errors

STARTS_AND_WAITS = """
import asyncio, sys
from agenticmail_enterprise.adapters.upstreams.mcp_stdio import create

async def main():
    upstream = create(sys.executable, ["-S", *sys.argv[1:]], "", {}, name="fake")
    heard = asyncio.Queue()
    session = await upstream.open_session(heard.put_nowait, print)
    await session.send(b'{"jsonrpc":"2.0","id":1,"method":"grandchild"}')
    print(session.pid, (await heard.get()).decode().split('"pid":')[1].rstrip("}"), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


# -- what a child knows --------------------------------------------------------------------------------------------
async def test_a_child_knows_nothing_of_the_gateways_secrets(house, monkeypatch):
    for name in (
        "AGENTICMAIL_SECRET_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "DATABASE_URL",
        "PYTHONPATH",
        "HTTP_PROXY",
        "SSH_AUTH_SOCK",
    ):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("TMPDIR", "/tmp")
    client = await house.client(env={"API_TOKEN": "for the child", "LANG": "de_DE.UTF-8"})
    env = (await client.ask("who"))["env"]
    assert "secret" not in env.values()
    assert env["API_TOKEN"] == "for the child"
    assert env["LANG"] == "de_DE.UTF-8"
    assert env["TMPDIR"] == "/tmp"
    assert set(env) <= {
        "PATH",
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TERM",
        "TMPDIR",
        "USER",
        "LOGNAME",
        "SHELL",
        "API_TOKEN",
    }


async def test_a_child_inherits_no_file_of_the_gateway(house, tmp_path, client_of):
    upstream = house.upstream()
    with open(tmp_path / "database", "w") as file:
        os.set_inheritable(file.fileno(), True)
        first = await client_of(upstream).open()
        second = await client_of(upstream).open()
        for client in (first, second):
            answer = await client.ask("files")
            assert len(answer["files"]) == 4  # its three, and the one that lists them
            assert answer["sid"] == client.session.pid


async def test_arguments_reach_the_child_as_they_are_and_no_shell_reads_them(house, tmp_path):
    odd = ["$HOME", "; touch x", "a b", "*", "ü", ""]
    client = await house.client(*odd, cwd=str(tmp_path))
    answer = await client.ask("who")
    assert answer["argv"] == odd
    assert answer["cwd"] == str(tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"command": "no-such-program-anywhere"}, "not on the PATH"),
        ({"command": "/no/such/program"}, "does not exist"),
        ({"command": ""}, "No command"),
        ({"command": "a\0b"}, "No command"),
        ({"command": "/etc/passwd"}, "not executable"),
        ({"command": "/usr"}, "does not exist"),
        ({"cwd": "/no/such/folder"}, "working folder"),
        ({"env": {"A=B": "c"}}, "environment variable"),
        ({"env": {"A": "b\0"}}, "environment variable"),
        ({"env": {"": "b"}}, "environment variable"),
    ],
)
async def test_what_cannot_be_started_is_refused_in_words(house, settings, says):
    upstream = house.upstream(**settings)
    with pytest.raises(errors.UpstreamRefused, match=says) as refused:
        await upstream.open_session(print, print)
    assert refused.value.unsent
    assert upstream.sessions == 0


async def test_an_argument_with_nul_is_refused(house):
    with pytest.raises(errors.UpstreamRefused, match="Argument 3"):
        await house.upstream("\0").open_session(print, print)


async def test_a_file_that_is_no_program_is_refused_and_counts_as_a_failure(house, tmp_path):
    program = tmp_path / "program"
    program.write_bytes(b"\x00\x01\x02")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    upstream = house.upstream(command=str(program))
    with pytest.raises(errors.UpstreamRefused, match="cannot be started"):
        await upstream.open_session(print, print)
    with pytest.raises(errors.BreakerOpen):
        await upstream.open_session(print, print)


async def test_a_program_of_the_working_folder_is_found_there(house, tmp_path):
    program = tmp_path / "serve.sh"
    program.write_text('#!/bin/sh\nexec "$@"\n')
    program.chmod(0o755)
    upstream = mcp_stdio.create("./serve.sh", ["cat"], str(tmp_path), {}, name="local")
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    session = await upstream.open_session(heard.put_nowait, print)
    await session.send(b'{"a":1}')
    assert await asyncio.wait_for(heard.get(), 60) == b'{"a":1}'
    await upstream.close()


# -- children that die ---------------------------------------------------------------------------------------------
async def test_a_server_that_dies_at_start_is_not_started_again_at_once(house, client_of):
    upstream = house.upstream("dies at start", limits=Limits(backoff_base=60))
    client = await client_of(upstream).open()
    assert await client.ended() == "exit code 3; last line of stderr: cannot find the configuration"
    for _ in range(3):
        with pytest.raises(errors.BreakerOpen) as resting:
            await client_of(upstream).open()
        assert 20 < resting.value.details["retry_after"] <= 60
        assert "configuration" not in resting.value.message
    assert upstream.opened == 1
    assert "configuration" in upstream.last_death


async def test_after_a_rest_one_start_is_admitted_and_the_next_rest_is_longer(house, client_of):
    clock = Clock()
    upstream = house.upstream("dies at start", limits=Limits(backoff_base=1, backoff_cap=8), clock=clock)
    rests = []
    for _ in range(6):
        await (await client_of(upstream).open()).ended()
        rests.append(upstream.backoff.retry_after)
        clock.now += rests[-1]
    for rest, full in zip(rests, [1, 2, 4, 8, 8, 8], strict=True):
        assert full / 2 <= rest <= full


async def test_one_crashing_call_does_not_keep_other_agents_out(house, client_of):
    upstream = house.upstream(limits=Limits(backoff_base=60))
    for _ in range(3):
        client = await client_of(upstream).open()
        await client.ask("echo")
        await client.tell("crash", 2)
        await client.ended()
    other = await client_of(upstream).open()
    assert await other.ask("echo", ok=1) == {"ok": 1}


async def test_a_session_that_was_closed_is_no_failure(house, client_of):
    upstream = house.upstream()
    for _ in range(5):
        await (await client_of(upstream).open()).session.close()
    assert upstream.backoff.failures == 0
    assert upstream.deaths == 0


# -- bounds --------------------------------------------------------------------------------------------------------
async def test_fifty_sessions_at_once_and_not_one_more(house, client_of, quick, is_running):
    limits = Limits(max_sessions=50, stop_grace=5)
    upstream = house.upstream(limits=limits)
    asked = await asyncio.gather(*(client_of(upstream).open() for _ in range(60)), return_exceptions=True)
    clients = [client for client in asked if not isinstance(client, BaseException)]
    refused = [error for error in asked if isinstance(error, BaseException)]
    assert len(clients) == 50
    assert {type(error) for error in refused} == {errors.UpstreamBusy}
    answers = await asyncio.gather(*(client.ask("who") for client in clients))
    pids = {answer["pid"] for answer in answers}
    assert len(pids) == 50
    await clients[0].session.close()
    await asyncio.sleep(0)
    assert await (await client_of(upstream).open()).ask("echo", ok=1) == {"ok": 1}
    await upstream.close()
    assert not any(is_running(pid) for pid in pids)
    assert upstream.sessions == 0


async def test_starting_talking_and_ending_never_block_the_loop(house, client_of, quick):
    upstream = house.upstream("ignores the end of stdin")
    with blockbuster_ctx("agenticmail_enterprise.adapters"):
        client = await client_of(upstream).open()
        assert await client.ask("echo", text="x" * 300_000) == {"text": "x" * 300_000}
        await client.session.close()
        await upstream.close()


async def test_a_closed_upstream_starts_nothing(house):
    upstream = house.upstream()
    await upstream.close()
    with pytest.raises(errors.UpstreamRefused, match="closed"):
        await upstream.open_session(print, print)


async def test_closing_while_sessions_open_leaves_none(house, client_of, is_running):
    upstream = house.upstream()
    opening = [asyncio.create_task(client_of(upstream).open()) for _ in range(5)]
    await asyncio.sleep(0)
    await upstream.close()
    results = await asyncio.gather(*opening, return_exceptions=True)
    assert upstream.sessions == 0
    for result in results:
        if isinstance(result, BaseException):
            assert isinstance(result, errors.UpstreamRefused)
        else:
            assert not is_running(result.session.pid)


@pytest.mark.parametrize("ticks", [0, 1, 2, 3, 4])
async def test_a_caller_that_leaves_while_its_child_starts_leaves_no_child(house, client_of, zombies, ticks):
    upstream = house.upstream("ignores the end of stdin")
    await (await client_of(upstream).open()).session.close()  # the warden runs from here on
    before = children()
    opening = asyncio.create_task(client_of(upstream).open())
    for _ in range(ticks):
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    assert opening.cancelled()
    async with asyncio.timeout(60):
        while children() - before or upstream.sessions:
            await asyncio.sleep(0.02)
    assert upstream.deaths == 0


# -- the gateway's own death ---------------------------------------------------------------------------------------
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_kill_9_of_the_gateway_leaves_no_orphan(dies, is_running, tmp_path):
    server = Path(__file__).with_name("fakeserver.py")
    command = [sys.executable, "-c", STARTS_AND_WAITS, str(server), "ignores SIGTERM", "ignores the end of stdin"]
    gateway = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert gateway.stdout is not None
        child, grandchild = map(int, (await asyncio.wait_for(gateway.stdout.readline(), 60)).split())
        wardens = children(gateway.pid) - {child}
        assert is_running(child)
        assert is_running(grandchild)
        assert len(wardens) == 1
    finally:
        gateway.kill()
        await gateway.wait()
    for pid in (child, grandchild, *wardens):
        await dies(pid)


async def test_a_warden_that_was_killed_is_replaced_and_knows_the_living(house, client_of, dies):
    upstream = house.upstream("ignores the end of stdin")
    first = await client_of(upstream).open()
    old = warden.warden().pid
    os.kill(old, signal.SIGKILL)
    await dies(old)
    await client_of(upstream).open()
    assert warden.warden().pid not in {0, old}
    warden.warden()._process.stdin.close()  # what the gateway's death looks like to it
    assert await first.ended() == "killed by SIGTERM"


async def test_the_warden_ends_with_the_last_upstream(house, client_of, is_running):
    one, two = house.upstream(), house.upstream()
    await client_of(one).open()
    await client_of(two).open()
    pid = warden.warden().pid
    await one.close()
    assert is_running(pid)
    await two.close()
    assert not is_running(pid)
    assert warden.warden().pid == 0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def children(parent: int | None = None) -> set[int]:
    parent = parent or os.getpid()
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == parent:
                    found.add(int(entry))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
