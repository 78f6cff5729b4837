"""A gateway in this process, on a free port, with a database of its own. `async with House(tmp_path) as house: ...`"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from agenticmail_enterprise.catalog.errors import StoreUnavailable
from agenticmail_enterprise.catalog.profiles import Profile
from agenticmail_enterprise.catalog.records import CALLS, CallRecord
from agenticmail_enterprise.catalog.store import GLOBAL, Query
from agenticmail_enterprise.gateway.accounts import AgentSpec, Assignment
from agenticmail_enterprise.gateway.keys import KeySpec
from agenticmail_enterprise.gateway.runtime import Runtime
from agenticmail_enterprise.gateway.server import Server, listen
from agenticmail_enterprise.gateway.settings import Settings
from agenticmail_enterprise.gateway.upstream_spec import UpstreamSpec
from agenticmail_enterprise.gateway.vault import Vault


class Answer:
    """A response read to its end."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The JSON body, or the last message of an event stream."""
        if "text/event-stream" in self.headers.get("Content-Type", ""):
            return self.messages[-1]
        return json.loads(self.body)

    @property
    def messages(self) -> list[Any]:
        lines = [line[5:].strip() for line in self.body.decode().splitlines() if line.startswith("data:")]
        return [json.loads(line) for line in lines if line]


class House:
    """Everything a story needs. Settings other than the defaults are given as keyword arguments."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = Settings(
            **{"database": f"sqlite:///{folder}/gw.db", "data_dir": str(folder / "data"), **settings}
        )
        self.org = ""
        self.runtime: Runtime
        self.server: Server
        self.http: aiohttp.ClientSession

    async def __aenter__(self) -> House:
        Vault.load(self.settings, create=True)
        self.runtime = await Runtime.open(self.settings)
        self.server = Server(self.runtime, listen("127.0.0.1", 0))
        await self.server.start()
        self.http = aiohttp.ClientSession(f"http://127.0.0.1:{self.server.port}")
        self.org = (await self.runtime.accounts.create_org("Acme")).id
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.close()
        await self.server.stop()

    async def upstream(self, name: str, url: str = "", **spec: Any) -> str:
        """Register a server; its id."""
        record = await self.runtime.registry.create(
            self.org, UpstreamSpec(name=name, url=url, allow_private=bool(url), **spec)
        )
        await self.runtime.epochs.look()
        return record.id

    async def agent(self, name: str, profile: Profile | str | None = None, **spec: Any) -> str:
        """Employ an agent; its key."""
        assignment = None
        if isinstance(profile, str):
            assignment = Assignment(preset=profile)
        elif profile is not None:
            assignment = Assignment(profile=profile)
        agent = await self.runtime.accounts.create_agent(self.org, AgentSpec(name=name, **spec), assignment)
        return await self.key(agent.id)

    async def key(self, agent_id: str) -> str:
        _, secret = await self.runtime.accounts.mint(self.org, KeySpec(agent_id=agent_id), created_by="tests")
        await self.runtime.epochs.look()  # what follows from our own writes is done before the story goes on
        return secret

    async def program(self, *scopes: str) -> str:
        """A key for a program."""
        spec = KeySpec(kind="program", scopes=scopes, name="tests")
        _, secret = await self.runtime.accounts.mint(self.org, spec, created_by="tests")
        return secret

    async def send(
        self, method: str, path: str, *, key: str = "", body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request; `body` bytes as they are, anything else as JSON."""
        data = (
            body
            if isinstance(body, bytes)
            else None
            if body is None
            else json.dumps(body, separators=(",", ":")).encode()
        )
        sent = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json", **(headers or {})}
        if key:
            sent["X-API-Key"] = key
        async with self.http.request(method, path, data=data, headers=sent) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def call(
        self, key: str, path: str, tool: str, arguments: dict[str, Any] | None = None, **options: Any
    ) -> Answer:
        message = {
            "jsonrpc": "2.0",
            "id": 7,
            "method": "tools/call",
            "params": {"name": tool, "arguments": arguments or {}},
        }
        return await self.send("POST", path, key=key, body=message, **options)

    async def records(self, expected: int, *, org: str = "") -> list[CallRecord]:
        """The journal's records in the store, oldest first, once there are `expected` of them."""
        for _ in range(1500):  # half a minute, should it have to be
            page = await self.runtime.store.find(Query(CALLS, "by_org", {"org": org or self.org}, limit=500))
            if len(page.records) >= expected:
                break
            await asyncio.sleep(0.02)
        assert len(page.records) == expected, [(r.tool, r.outcome, r.reason) for r in page.records]
        return page.records

    async def nobodys(self, expected: int) -> list[CallRecord]:
        """Records of requests that could not be attributed to anybody."""
        return await self.records(expected, org=GLOBAL)


class Outage:
    """While it lasts, the store cannot be reached: every access raises StoreUnavailable. `with Outage(house.runtime.store):`"""

    METHODS = ("get", "find", "count", "commit", "append", "prune", "ping")

    def __init__(self, store: Any) -> None:
        self._store = store
        self.refused = 0

    def __enter__(self) -> Outage:
        async def refuse(*args: Any, **named: Any) -> Any:
            self.refused += 1
            raise StoreUnavailable

        for method in self.METHODS:
            setattr(self._store, method, refuse)
        return self

    def __exit__(self, *_: object) -> None:
        for method in self.METHODS:
            delattr(self._store, method)


@contextlib.asynccontextmanager
async def official(house: House, key: str, path: str, mode: str = "auto", **options: Any) -> AsyncIterator[Any]:
    """The official client at one of the house's doors. `mode`: "auto" (2026-07-28 where offered) or "legacy"."""
    from mcp.client.client import Client
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared._httpx_utils import create_mcp_http_client

    url = f"http://127.0.0.1:{house.server.port}{path}"
    async with (
        create_mcp_http_client(headers={"X-API-Key": key}) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode, **options) as client,
    ):
        yield client
