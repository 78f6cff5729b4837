"""The admin module over real services and a store in memory, behind a real HTTP server on a port of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiohttp import ClientResponse, ClientSession, web
from argon2 import PasswordHasher

from agenticmail_enterprise.adapters.stores import memory
from agenticmail_enterprise.admin_ui import examples
from agenticmail_enterprise.admin_ui.mount import Admin, create
from agenticmail_enterprise.catalog.calls import Principal
from agenticmail_enterprise.catalog.records import (
    AGENTS,
    AUDIT,
    CALLS,
    CHAIN_HEADS,
    HOOKS,
    KEYS,
    TOOLS,
    UPSTREAMS,
    Agent,
    ApiKey,
    AuditEntry,
    CallRecord,
    ChainHead,
    HookPresence,
    Org,
    ToolRecord,
    Upstream,
)
from agenticmail_enterprise.catalog.store import Insert, Query
from agenticmail_enterprise.gateway.accounts import Accounts
from agenticmail_enterprise.gateway.hookwatch import HookWatch
from agenticmail_enterprise.gateway.identity import Identity
from agenticmail_enterprise.gateway.keys import KeySpec
from agenticmail_enterprise.gateway.metrics import Metrics
from agenticmail_enterprise.gateway.passwords import Passwords
from agenticmail_enterprise.gateway.registry import Registry
from agenticmail_enterprise.gateway.settings import Settings
from agenticmail_enterprise.gateway.tools_registry import pin_of
from agenticmail_enterprise.gateway.vault import Vault

OWNER = Principal("-", "", "", "init", scopes=("*",))


class Report(msgspec.Struct):
    """What the gateway's live upstreams report of a listing."""

    ok: bool = True
    error: str = ""
    tools: int = 0


class Refresher:
    """Stands where the live upstreams stand: notes who was asked, and answers as told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answer: Report | Exception = Report(tools=3)

    async def refresh(self, org: str, upstream_id: str) -> Report:
        self.asked.append((org, upstream_id))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Answer:
    """One answer: status, headers, and the JSON of its body (None when it has none)."""

    def __init__(self, response: ClientResponse, body: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = body
        self.json: Any = msgspec.json.decode(body) if body else None

    @property
    def fields(self) -> dict[str, str]:
        """Faults of a 422: path -> code."""
        return {field["path"]: field["code"] for field in self.json["details"]["fields"]}


class Site:
    """The running server, its services, and two organisations: `org` with an owner's key, and `other` with one."""

    def __init__(self, store: Any) -> None:
        self.runtime = SimpleNamespace(settings=Settings(), store=store, metrics=Metrics(), vault=Vault([b"k" * 32]))
        self.runtime.identity = Identity(store)
        changed = self.runtime.identity.forget
        cheap = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        self.runtime.accounts = Accounts(store, on_change=changed, passwords=cheap)
        self.runtime.registry = Registry(store, self.runtime.vault, on_change=changed)
        self.runtime.upstreams = self.refresher = Refresher()
        self.runtime.hooks = HookWatch(store, self.runtime.accounts, self.runtime.settings.hooks)
        self.store = store
        self.accounts: Accounts = self.runtime.accounts
        self.admin: Admin = create(self.runtime)
        self.org = self.other = self.owner = self.stranger = self.url = ""
        self.session: ClientSession

    async def start(self) -> None:
        orgs: list[Org] = [await self.accounts.create_org(name) for name in ("Acme", "Other")]
        self.org, self.other = orgs[0].id, orgs[1].id
        self.owner, self.stranger = await self.key("*"), await self.key("*", org=self.other)

    async def key(self, *scopes: str, org: str = "", **fields: Any) -> str:
        """A program's key with these scopes, made as the command line does."""
        spec = KeySpec(kind="program", scopes=scopes, **fields)
        return (await self.accounts.mint(org or self.org, spec, created_by="cli"))[1]

    async def call(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, raw: Any = None,
        headers: dict[str, str] | None = None, query: dict[str, str] | None = None,
    ) -> Answer:  # fmt: skip
        """Send a request with the owner's key, or `key` ("" for none). `raw` is sent as it is."""
        sent = dict(headers or {})
        key = self.owner if key is None else key
        if key:
            sent.setdefault("X-API-Key", key)
        data = raw if raw is not None else (msgspec.json.encode(body) if body is not None else None)
        async with self.session.request(method, self.url + path, data=data, headers=sent, params=query) as response:
            return Answer(response, await response.read())

    async def audit(self, org: str = "") -> list[AuditEntry]:
        return (await self.store.find(Query(AUDIT, "by_org", {"org": org or self.org}, limit=500))).records

    async def furnish(self, org: str = "") -> None:
        """Records under the ids that the examples speak of."""
        org = org or self.org
        raw = {"name": "send", "description": "Send mail."}
        pin = pin_of(raw)
        await self.store.commit(
            Insert(AGENTS, Agent(org=org, id=examples.AGENT_ID, name="research-bot")),
            Insert(KEYS, ApiKey(org=org, id=examples.KEY_ID, digest="d" * 64, agent_id=examples.AGENT_ID)),
            Insert(
                UPSTREAMS,
                Upstream(
                    org=org, id=examples.UPSTREAM_ID, name="mail", url="https://mcp.example.com/mcp",
                    secrets={"Authorization": self.runtime.vault.seal(
                        "Bearer x", (org, "upstream", "secrets.Authorization", examples.UPSTREAM_ID))},
                ),
            ),
            Insert(
                TOOLS,
                ToolRecord(
                    org=org, id=examples.TOOL_ID, upstream="mail", name="send", tool_id="mail__send", pin=pin, seen=pin,
                    definition=msgspec.json.encode(raw).decode(),
                ),
            ),
            Insert(HOOKS, HookPresence(org=org, id=examples.AGENT_ID, state="alive", seen_at=1_795_000_000_000)),
            Insert(CHAIN_HEADS, ChainHead(org=org, id="calls", seq=1, hash="h")),
        )  # fmt: skip
        record = CallRecord(
            org=org, id=examples.CALL_ID, agent=examples.AGENT_ID, tool="mail__send", at=1_795_000_000_123_456,
            effect="allow", args='{"to":"ana@acme.test"}', outcome="ok", status=200, duration_us=1500, seq=1,
        )  # fmt: skip
        await self.store.append(CALLS, [record])


@pytest.fixture
async def store() -> AsyncIterator[Any]:
    made = memory.create("memory://")
    await made.open()
    await made.migrate()
    yield made
    await made.close()


@pytest.fixture
async def site(store: Any) -> AsyncIterator[Site]:
    made = Site(store)
    await made.start()
    server = web.Server(made.admin.handle, auto_decompress=False, handler_cancellation=True)
    runner = web.ServerRunner(server)
    await runner.setup()
    listening = web.TCPSite(runner, "127.0.0.1", 0)
    await listening.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with ClientSession() as session:
        made.session = session
        yield made
    await runner.cleanup()
