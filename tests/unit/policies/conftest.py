"""What the policy tests share: a store with a count of reads, plugins from classes, calls from words."""

import itertools
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agenticmail_enterprise.adapters.stores.memory import create
from agenticmail_enterprise.catalog.calls import Call, Principal, Tool
from agenticmail_enterprise.catalog.errors import StoreUnavailable
from agenticmail_enterprise.catalog.plugins import ENTRY_POINT_GROUP, NoConfig
from agenticmail_enterprise.catalog.profiles import Profile
from agenticmail_enterprise.catalog.records import (
    AGENTS,
    PROFILES,
    TOOLS,
    UPSTREAMS,
    Agent,
    ProfileRecord,
    ToolRecord,
    Upstream,
)
from agenticmail_enterprise.catalog.store import Delete, Insert, Replace
from agenticmail_enterprise.policies.catalogue import Catalog
from agenticmail_enterprise.policies.chain import Chain
from agenticmail_enterprise.policies.pluginhost import PluginHost

OURS = {
    "argument-rules": "agenticmail_enterprise.policies.rules:ArgumentRules",
    "rate-limits": "agenticmail_enterprise.policies.limits:RateLimits",
}

MAIL = Tool(id="send_email", skills=("email-management",), risk="medium", side_effects=("sends-email",))
READ = Tool(id="read_inbox", skills=("email-management",), risk="low")
SHELL = Tool(id="exec", skills=("code-execution",), risk="critical", side_effects=("runs-code", "modifies-files"))
BUILTIN = {tool.id: tool for tool in (MAIL, READ, SHELL)}
NOON = 1_767_614_400.0  # Monday 2026-01-05 12:00 UTC

_numbers = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def _now(coroutine: Any) -> Any:
    """The result of a coroutine that awaits nothing, as the memory store's do."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it awaited")


class Shelf:
    """The real memory store, counting what is read; can be broken or slow."""

    def __init__(self) -> None:
        self.store = create()
        _now(self.store.open())
        _now(self.store.migrate())
        self.reads: list[str] = []
        self.broken = False
        self.before: Any = None

    def put(self, entity: Any, record: Any) -> None:
        """Store a record whether or not there is one."""
        old = _now(self.store.get(entity, record.org, record.id))
        record.version = 0 if old is None else old.version
        _now(self.store.commit((Insert if old is None else Replace)(entity, record)))

    def remove(self, entity: Any, org: str, id: str) -> None:
        _now(self.store.commit(Delete(entity, org, id)))

    async def _read(self, entity: Any, result: Any) -> Any:
        self.reads.append(entity.name)
        if self.before is not None:
            await self.before(entity.name)
        if self.broken:
            raise StoreUnavailable
        return result

    async def get(self, entity: Any, org: str, id: str) -> Any:
        return await self._read(entity, await self.store.get(entity, org, id))

    async def find(self, query: Any) -> Any:
        return await self._read(query.entity, await self.store.find(query))


def _plugin(name: str, kind: str, **methods: Any) -> tuple[str, type]:
    """A stranger's plugin as a class; `compile` or `observe` is among the methods."""

    async def nothing(self) -> None: ...

    body = {
        "kind": kind,
        "config": NoConfig,
        "__init__": lambda self, config: None,
        "provision": nothing,
        "close": nothing,
    }
    return name, type(name.title().replace("-", ""), (), body | methods)


class _Point(EntryPoint):
    """An entry point that loads a class at hand, as if its package were installed."""

    def load(self) -> Any:
        return CLASSES[self.value]


CLASSES: dict[str, type] = {}


def _points(*plugins: tuple[str, type]) -> list[EntryPoint]:
    found = [EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in OURS.items()]
    for name, kept in plugins:
        value = f"stranger{next(_numbers)}:{kept.__name__}"
        CLASSES[value] = kept
        found.append(_Point(name, value, ENTRY_POINT_GROUP))
    return found


def _guard(name: str, function: Any, **more: Any) -> tuple[str, type]:
    """A stranger's guard that runs `function(call)` on every tool."""
    return _plugin(name, "guard", compile=lambda self, agent, profile, tool: function, **more)


def _gate(name: str, function: Any, **more: Any) -> tuple[str, type]:
    return _plugin(name, "gate", compile=lambda self, agent, profile, tool: function, **more)


def _host(
    *plugins: tuple[str, type], ours: tuple[str, ...] = ("argument-rules", "rate-limits"), **options: Any
) -> PluginHost:
    by_kind = {kind: [name for name, kept in plugins if kept.kind == kind] for kind in ("guard", "gate", "observer")}
    return PluginHost(
        (*ours, *by_kind["guard"]), by_kind["gate"], by_kind["observer"], options.pop("config", None),
        points=_points(*plugins), **options,
    )  # fmt: skip


def _call(principal: Principal, tool: str = "send_email", args: Any = None, **fields: Any) -> Call:
    raw = args if isinstance(args, bytes) else msgspec.json.encode(args if args is not None else {})
    options = {"id": f"dec_{next(_numbers)}", "at": NOON, "ip": "127.0.0.1"} | fields
    return Call(principal, tool, raw, **options)


class House:
    """One organisation with an agent, its chain, and the means to change it all."""

    def __init__(
        self, *plugins: tuple[str, type], profile: Profile | None = None, host: PluginHost | None = None, **options: Any
    ):
        self.shelf = Shelf()
        self.clock = Clock()
        self.host = host or _host(*plugins, **options.pop("host_options", {}))
        self.catalog = Catalog(BUILTIN, self.shelf)
        self.chain = Chain(self.shelf, self.catalog, self.host, clock=self.clock, **options)
        self.principal = Principal("org1", "agt1", "mail-bot", "key1")
        self.agent()
        if profile is not None:
            self.profile(profile)

    def agent(self, id: str = "agt1", **fields: Any) -> Principal:
        options = {"name": "mail-bot", "profile_id": "prf1"} | fields
        self.shelf.put(AGENTS, Agent(org="org1", id=id, **options))
        self.chain.invalidate()
        return Principal("org1", id, options["name"], "key-" + id)

    def profile(self, profile: Profile, id: str = "prf1") -> None:
        self.shelf.put(PROFILES, ProfileRecord(org="org1", id=id, spec=profile))
        self.chain.invalidate()

    def tool(self, **fields: Any) -> None:
        self.shelf.put(TOOLS, ToolRecord(org="org1", id="tol_" + fields["tool_id"], **fields))
        self.chain.invalidate()

    def upstream(self, **fields: Any) -> None:
        self.shelf.put(UPSTREAMS, Upstream(org="org1", id="ups_" + fields["name"], **fields))
        self.chain.invalidate()

    def call(self, tool: str = "send_email", args: Any = None, **fields: Any) -> Call:
        return _call(fields.pop("principal", self.principal), tool, args, **fields)

    async def ask(self, tool: str = "send_email", args: Any = None, **fields: Any):
        """As the proxy does: decide, else settle."""
        call = self.call(tool, args, **fields)
        verdict = self.chain.decide(call)
        return verdict if verdict is not None else await self.chain.settle(call)


@pytest.fixture
def kit():
    return SimpleNamespace(
        House=House, Shelf=Shelf, Clock=Clock, plugin=_plugin, guard=_guard, gate=_gate, host=_host, points=_points,
        call=_call, BUILTIN=BUILTIN, MAIL=MAIL, READ=READ, SHELL=SHELL, NOON=NOON,
    )  # fmt: skip
