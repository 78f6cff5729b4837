"""Real child processes for the stories of this folder, told on uvloop, and those of a session on asyncio's loop too."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from agenticmail_enterprise.adapters.upstreams.mcp_stdio import Limits, StdioSession, StdioUpstream, create

FAKE_SERVER = Path(__file__).with_name("fakeserver.py")
QUICK = Limits(stop_grace=0.2, kill_grace=0.2, write_timeout=0.3, backoff_base=0.05, backoff_cap=0.4)


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    both = item.path.name == "test_stdio_sessions.py"
    return {"uvloop": uvloop.new_event_loop} | ({"asyncio": asyncio.new_event_loop} if both else {})


class Client:
    """One session, and all it heard."""

    def __init__(self, session_of: StdioUpstream) -> None:
        self.upstream = session_of
        self.heard: list[dict[str, Any]] = []
        self.reasons: list[str] = []
        self.news = asyncio.Event()
        self.over = asyncio.Event()
        self.session: StdioSession

    async def open(self) -> Client:
        self.session = await self.upstream.open_session(self._message, self._closed)
        return self

    def _message(self, line: bytes) -> None:
        self.heard.append(msgspec.json.decode(line))
        self.news.set()

    def _closed(self, reason: str) -> None:
        self.reasons.append(reason)
        self.over.set()

    async def ask(self, method: str, request_id: int = 1, **params: Any) -> dict[str, Any]:
        """The answer's result."""
        await self.tell(method, request_id, **params)
        return await self.answer(request_id)

    async def tell(self, method: str, request_id: int = 1, **params: Any) -> None:
        message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        await self.session.send(msgspec.json.encode(message))

    async def answer(self, request_id: int) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while True:
                for message in self.heard:
                    if message.get("id") == request_id and "result" in message:
                        return message["result"]
                self.news.clear()
                await self.news.wait()

    async def ended(self) -> str:
        async with asyncio.timeout(60):
            await self.over.wait()
        return self.reasons[0]


class House:
    """Makes upstreams, and closes them at the end of the test."""

    def __init__(self, tmp_path: Path) -> None:
        self.upstreams: list[StdioUpstream] = []
        self.folder = tmp_path

    def upstream(self, *args: str, limits: Limits = QUICK, **more: Any) -> StdioUpstream:
        settings = {"command": sys.executable, "cwd": "", "env": {}, "name": "fake", **more}
        upstream = create(args=["-S", str(FAKE_SERVER), *args], limits=limits, **settings)
        self.upstreams.append(upstream)
        return upstream

    async def client(self, *args: str, **more: Any) -> Client:
        return await Client(self.upstream(*args, **more)).open()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    yield made
    await asyncio.gather(*(upstream.close() for upstream in made.upstreams))


@pytest.fixture
def client_of() -> type[Client]:
    return Client


@pytest.fixture
def quick() -> Limits:
    return QUICK


def running(pid: int) -> bool:
    """True for a process that lives; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def is_running() -> Callable[[int], bool]:
    return running


@pytest.fixture
def dies() -> Callable[[int], Any]:
    """Wait until a process is gone."""

    async def wait(pid: int, seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while running(pid):
                await asyncio.sleep(0.02)

    return wait


@pytest.fixture
def zombies() -> Callable[[], list[int]]:
    """Our children that nobody has waited for."""

    def find() -> list[int]:
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat") as stat:
                        fields = stat.read().rpartition(")")[2].split()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if fields[0] == "Z" and int(fields[1]) == os.getpid():
                    found.append(int(entry))
        return found

    return find
