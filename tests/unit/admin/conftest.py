"""The admin module over real services and a store in memory, behind a real HTTP server on a port of its own."""

from __future__ import annotations

import itertools
import time
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
from agenticmail_enterprise.catalog.approvals import (
    APPROVAL_POLICIES,
    APPROVALS,
    CHANNELS,
    GRANTS,
    Approval,
    ApprovalPolicy,
    ApprovalPolicySpec,
    Channel,
    Grant,
)
from agenticmail_enterprise.catalog.calls import Principal
from agenticmail_enterprise.catalog.records import (
    AGENTS,
    AUDIT,
    CALLS,
    CHAIN_HEADS,
    HOOKS,
    KEYS,
    SESSIONS,
    TICKETS,
    TOOLS,
    UPSTREAMS,
    USERS,
    Agent,
    ApiKey,
    AuditEntry,
    CallRecord,
    ChainHead,
    HookPresence,
    Org,
    Session,
    Ticket,
    ToolRecord,
    Upstream,
    User,
)
from agenticmail_enterprise.catalog.store import Insert, Query
from agenticmail_enterprise.gateway.accounts import Accounts
from agenticmail_enterprise.gateway.approvals.canonical import digest_of
from agenticmail_enterprise.gateway.approvals.engine import ApprovalEngine
from agenticmail_enterprise.gateway.approvals.form import Form, seal, write
from agenticmail_enterprise.gateway.hookwatch import HookWatch
from agenticmail_enterprise.gateway.identity import Identity
from agenticmail_enterprise.gateway.keys import KeySpec
from agenticmail_enterprise.gateway.metrics import Metrics
from agenticmail_enterprise.gateway.passwords import Passwords
from agenticmail_enterprise.gateway.people import totp
from agenticmail_enterprise.gateway.people.service import People
from agenticmail_enterprise.gateway.people.tokens import digest, split_refresh
from agenticmail_enterprise.gateway.registry import Registry
from agenticmail_enterprise.gateway.settings import Settings
from agenticmail_enterprise.gateway.tools_registry import pin_of
from agenticmail_enterprise.gateway.vault import Vault

PASSWORD = examples.PASSWORD
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
        self.json: Any = (
            msgspec.json.decode(body) if body and response.content_type.endswith(("/json", "+json")) else None
        )

    @property
    def fields(self) -> dict[str, str]:
        """Faults of a 422: path -> code."""
        return {field["path"]: field["code"] for field in self.json["details"]["fields"]}


class Clock:
    """Time that moves when it is told to."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


class Site:
    """The running server, its services, and two organisations: `org` with an owner's key, and `other` with one."""

    def __init__(self, store: Any) -> None:
        self.runtime = SimpleNamespace(settings=Settings(), store=store, metrics=Metrics(), vault=Vault([b"k" * 32]))
        self.runtime.identity = Identity(store)
        changed = self.runtime.identity.forget
        cheap = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        self.accounts_ = self.runtime.accounts = Accounts(store, on_change=changed, passwords=cheap)
        self.runtime.registry = Registry(store, self.runtime.vault, on_change=changed)
        self.runtime.upstreams = self.refresher = Refresher()
        self.runtime.approvals = ApprovalEngine(store, self.runtime.vault)
        self.clock, self.ticks = Clock(time.time()), Clock(0.0)
        self.people = self.runtime.people = People(
            store, self.runtime.vault, self.accounts_, self.runtime.identity, Settings().auth, passwords=cheap,
            on_change=changed, clock=self.clock, ticks=self.ticks,
        )  # fmt: skip
        self.runtime.hooks = HookWatch(store, self.runtime.accounts, self.runtime.settings.hooks)
        self.store = store
        self.accounts: Accounts = self.runtime.accounts
        self.admin: Admin = create(self.runtime)
        self._numbers = itertools.count(1)
        self.token_of_owner = self.owner_id = ""
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

    async def person(self, role: str = "owner", email: str = "", *, org: str = "", password: str = PASSWORD) -> User:
        """Somebody with a password."""
        made: User = await self.accounts.create_user(
            org or self.org, email or f"{role}-{next(self._numbers)}@acme.test", password, role=role
        )
        return made

    async def token(self, user: User) -> str:
        """An access token of a new session of theirs."""
        return (await self.signed(user))["token"]

    async def signed(self, user: User) -> dict[str, Any]:
        """What signing in gave them."""
        answer = await self.call("POST", "/auth/login", {"email": user.email, "password": PASSWORD}, key="")
        assert answer.status == 200, answer.json
        self.ticks.pass_(3600)
        return answer.json["data"]

    async def as_(self, token: str, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """A request with an access token."""
        headers = {"Authorization": f"Bearer {token}", **options.pop("headers", {})}
        return await self.call(method, path, body, key="", headers=headers, **options)

    async def audit(self, org: str = "") -> list[AuditEntry]:
        found = (await self.store.find(Query(AUDIT, "by_org", {"org": org or self.org}, limit=500))).records
        return [entry for entry in found if entry.id != examples.AUDIT_ID]

    async def timely(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """An example's body with a code and a challenge that are good now, and the second factor that they are for."""
        user = await self.people.directory.user(self.org, self.owner_id)
        on = "login" not in name and "setup" not in name and "confirm" not in name
        on = on or ("second_factor" in name and name not in {"setup_second_factor", "confirm_second_factor"})
        secret = totp.new_secret()
        factors = self.people.factors
        if not await factors.is_on(user):
            await factors.keep_pending(user, secret)
            if on:
                await factors.confirm(user, totp.code_at(secret, totp.step_of(self.clock())))
                self.clock.pass_(60)
        body = {**body, "code": totp.code_at(secret, totp.step_of(self.clock()))}
        if "challenge" in body:
            body["challenge"] = self.people.sign_in.challenge(user, "password")
        return body

    async def _furnish_people(self, org: str) -> None:
        """The owner whose e-mail, password, sessions and links the examples name, and a member."""
        owner = await self.person("owner", examples.EMAIL, org=org)
        self.owner_id = owner.id
        member = User(org=org, id=examples.USER_ID, email="mia@acme.test", name="Mia", role="member")
        family, secret = split_refresh(examples.REFRESH_TOKEN)
        now = int(self.clock() * 1000)
        later = now + 86_400_000
        await self.store.commit(
            Insert(USERS, member),
            Insert(SESSIONS, Session(
                org=org, id=examples.SESSION_ID, user_id=owner.id, lookup=digest(family), current=digest(secret),
                expires_at=later, created_at=now, method="password")),
            Insert(SESSIONS, Session(
                org=org, id="ses_own", user_id=owner.id, lookup="l", expires_at=later, created_at=now, method="password")),
            Insert(TICKETS, Ticket(
                org=org, id="tkt_a", user_id=owner.id, digest=digest(examples.LINK_TOKEN), expires_at=later)),
            Insert(TICKETS, Ticket(
                org=org, id="tkt_b", user_id=owner.id, purpose="sign_in", digest=digest(examples.SIGN_IN_TOKEN),
                expires_at=later)),
        )  # fmt: skip
        own = await self.store.get(SESSIONS, org, "ses_own")
        self.token_of_owner = self.people.sign_in.access_token(own)

    async def furnish(self, org: str = "") -> None:
        """Records under the ids that the examples speak of."""
        org = org or self.org
        await self._furnish_people(org)
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
        form = Form(org=org, agent=examples.AGENT_ID, upstream="mail", kind="tool", name="send", tool="mail__send",
                    pin=pin, policy="", policy_version=0, arguments={"to": "ana@acme.test"})  # fmt: skip
        data = write(form)
        vault = self.runtime.vault
        await self.store.commit(
            Insert(APPROVALS, Approval(
                org=org, id=examples.APPROVAL_ID, agent=examples.AGENT_ID, tool="mail__send", upstream="mail", pin=pin,
                digest=digest_of(data), asked_digest=digest_of(data), stage_until=4_000_000_000_000,
                sealed=seal(vault, data, org, examples.APPROVAL_ID, "sealed"))),
            Insert(APPROVAL_POLICIES, ApprovalPolicy(
                org=org, id=examples.APPROVAL_POLICY_ID, name="first", spec=ApprovalPolicySpec(name="first", risks=("high",)))),
            Insert(GRANTS, Grant(org=org, id=examples.GRANT_ID, agent=examples.AGENT_ID, tool="exec",
                                 pair=f"{examples.AGENT_ID} exec", limit=3, expires_at=4_000_000_000_000)),
            Insert(CHANNELS, Channel(org=org, id=examples.CHANNEL_ID, name="first", events=("requested",))),
        )  # fmt: skip
        record = CallRecord(
            org=org, id=examples.CALL_ID, agent=examples.AGENT_ID, tool="mail__send", at=1_795_000_000_123_456,
            effect="allow", args='{"to":"ana@acme.test"}', outcome="ok", status=200, duration_us=1500, seq=1,
        )  # fmt: skip
        await self.store.append(CALLS, [record])
        entry = AuditEntry(org=org, id=examples.AUDIT_ID, at=1_795_000_000_000, action="x")
        await self.store.append(AUDIT, [entry])


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
