"""What a test needs to kill a gateway: its database made ready, the process, and its records read afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from agenticmail_enterprise.catalog.profiles import Profile
from agenticmail_enterprise.catalog.records import CALLS, CallRecord
from agenticmail_enterprise.catalog.store import Query
from agenticmail_enterprise.gateway.accounts import Accounts, AgentSpec, Assignment
from agenticmail_enterprise.gateway.keys import KeySpec
from agenticmail_enterprise.gateway.registry import Registry
from agenticmail_enterprise.gateway.runtime import Runtime
from agenticmail_enterprise.gateway.settings import Settings
from agenticmail_enterprise.gateway.stores import open_store
from agenticmail_enterprise.gateway.upstream_spec import UpstreamSpec
from agenticmail_enterprise.gateway.vault import Vault

SERVER = Path(__file__).with_name("crash_server.py")


class Mortal:
    """A gateway's settings, and the process that runs on them, as often as it is killed."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = Settings(
            **{"database": f"sqlite:///{folder}/gw.db", "data_dir": str(folder / "data"), **settings}
        )
        self.database = folder / "gw.db"
        self.log = folder / "gateway.log"
        self.org = ""
        self.port = 0
        self.process: asyncio.subprocess.Process | None = None

    async def prepare(self, upstream: str, profile: Profile) -> str:
        """A database with one organisation, the server `mail` and one agent; the agent's key."""
        store = open_store(self.settings.database)
        await store.open()
        await store.migrate()
        accounts = Accounts(store)
        registry = Registry(store, Vault.load(self.settings, create=True))
        self.org = (await accounts.create_org("Acme")).id
        await registry.create(self.org, UpstreamSpec(name="mail", url=upstream, allow_private=True))
        agent = await accounts.create_agent(self.org, AgentSpec(name="clerk"), Assignment(profile=profile))
        _, secret = await accounts.mint(self.org, KeySpec(agent_id=agent.id), created_by="tests")
        await store.close()
        return secret

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Run it, until it answers."""
        text = msgspec.json.encode(self.settings).decode()
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, str(SERVER), text, stdout=asyncio.subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 30)
        assert line.strip().isdigit(), self.log.read_text()[-2000:]
        self.port = int(line)

    async def kill(self) -> None:
        """`kill -9`."""
        await self.end(signal.SIGKILL)

    async def end(self, number: int) -> int:
        """Send a signal and wait; the exit status."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 30)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Mortal]:
        """Started, and dead at the end whatever happens."""
        await self.start()
        try:
            yield self
        finally:
            if self.process is not None and self.process.returncode is None:
                await self.kill()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Runtime]:
        """The same gateway in this process, once everything that was left behind is in the store."""
        runtime = await Runtime.open(self.settings)
        try:
            await runtime.journal.drained()
            yield runtime
        finally:
            await runtime.close()

    async def records(self, runtime: Runtime) -> list[CallRecord]:
        """Every record of the organisation, oldest first."""
        found: list[CallRecord] = []
        query = Query(CALLS, "by_org", {"org": self.org}, limit=500)
        while True:
            page = await runtime.store.find(query)
            found += page.records
            if not page.cursor:
                return found
            query = msgspec.structs.replace(query, cursor=page.cursor)
