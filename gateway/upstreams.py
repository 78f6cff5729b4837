"""The servers behind the gateway, live: one entry per enabled `Upstream` record, rebuilt when the record changes.

`Live` is what a door forwards through. `sync` compares the store with what runs (at start and whenever the policy epoch
moves); `refresh` asks a server what it offers and tells the registry; `saw` does so in passing, from a list that an
agent asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
import structlog

from ..catalog.errors import EnterpriseError, NotFound, UpstreamError
from ..catalog.records import ORGS, UPSTREAMS, Org, Upstream, UpstreamKind
from ..catalog.store import GLOBAL, MAX_PAGE, Query, Store
from ..policies.resilience import CircuitBreaker
from .doors.http.live import HttpLive
from .doors.jsonrpc import encode
from .doors.mcpfacts import LISTS
from .mcpclient import Lines, Link
from .pool import Answer, Origin, Pool
from .registry import Registry

log = structlog.get_logger()

MCP_KINDS: Final = frozenset({"mcp_http", "mcp_stdio", "http"})
"""Upstreams whose tools are MCP tools; those of a plain HTTP API are made so by its routes."""

LISTING_TIMEOUT: Final = 20.0
MAX_LISTINGS: Final = 256
"""Digests of listings remembered per upstream, so that one seen before costs no store access."""


class ListingReport(msgspec.Struct):
    """What a refresh found."""

    ok: bool
    error: str = ""
    tools: int = 0
    changed: int = 0


class HttpWire:
    """Carries the gateway's own conversations with one HTTP upstream."""

    def __init__(self, live: Live) -> None:
        self._live = live

    async def exchange(self, method: bytes, lines: Lines, body: bytes, *, stream: bool) -> Answer:
        text = b"".join(b"%b: %b\r\n" % line for line in lines)
        return await self._live.send(self._live.head(method, text, len(body)), body, stream=stream)

    async def close(self) -> None:
        """Nothing is held between exchanges."""


class Live:
    """One upstream in service. `head` and `send` are the transparent door's; `link` the gateway's own."""

    kind = "mcp_http"

    def __init__(self, record: Upstream, pool: Pool, origin: Origin, injected: dict[str, str]) -> None:
        self.record = record
        self.org = record.org
        self.name = record.name
        self.prefix = f"{record.name}__"
        self.listings: dict[bytes, bool] = {}
        self.offers: dict[str, frozenset[str]] = {}
        self.pool = pool
        self.timeout = record.timeout_ms / 1000
        start = b" %b HTTP/1.1\r\n%b" % (origin.target.encode(), origin.host_line)
        own = b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in injected.items())
        self._starts = {method: method + start + own for method in (b"POST", b"GET", b"DELETE")}

    def head(self, method: bytes, lines: bytes, length: int) -> bytes:
        """A request head: request line, Host, the gateway's own credentials, then the lines that travel on."""
        if method == b"GET" or (method == b"DELETE" and not length):
            return b"%b%b\r\n" % (self._starts[method], lines)
        return b"%b%bContent-Length: %d\r\n\r\n" % (self._starts[method], lines, length)

    def start(self, method: bytes, lines: bytes) -> bytes:
        """A request head up to what differs from one request to the next: its length, and a blank line."""
        return self._starts[method] + lines

    def view(self, visit: Any) -> Live:
        """What one request forwards through: over HTTP every request is on its own."""
        return self

    @property
    def breaker_state(self) -> str:
        return str(self.pool.stats.breaker)

    def reap(self) -> None:
        """Idle connections are the pool's to close."""

    async def send(self, head: bytes, body: bytes, *, stream: bool = False) -> Answer:
        """See Pool.send. With `stream` there is no deadline for the answer's end."""
        return await self.pool.send(head, body, timeout=self.timeout, stream=stream)

    def link(self, *, owner: str = "", **options: Any) -> Link:
        """A conversation of the gateway's own with this server. `owner` is the agent it serves, "" for the gateway."""
        return Link(HttpWire(self), **options)

    async def close(self, grace: float) -> None:
        await self.pool.close(grace)


class Forwarder(Protocol):
    """What both kinds of live upstream offer."""

    record: Upstream
    org: str
    name: str
    prefix: str
    kind: str
    listings: dict[bytes, bool]
    offers: dict[str, frozenset[str]]

    @property
    def breaker_state(self) -> str: ...

    def view(self, visit: Any) -> Any: ...

    def reap(self) -> None: ...

    def link(self, *, owner: str = "", **options: Any) -> Link: ...

    async def close(self, grace: float) -> None: ...


Spawn = Callable[[Upstream, dict[str, str]], Forwarder]
"""Makes the live form of an mcp_stdio upstream from its record and its environment's secrets."""


class Upstreams:
    """All of them, by organisation and name. `changed` is called when a listing taught the catalog something."""

    def __init__(self, store: Store, registry: Registry, spawn: Spawn, changed: Callable[[], None]) -> None:
        self._store = store
        self._registry = registry
        self._spawn = spawn
        self._changed = changed
        self._live: dict[str, dict[str, Forwarder]] = {}
        self._others: dict[str, dict[str, Forwarder]] = {}  # those that do not speak MCP
        self._closing: set[asyncio.Task[None]] = set()
        self._syncing = asyncio.Lock()
        self.problems: dict[str, str] = {}

    def get(self, org: str, name: str) -> Any | None:
        """The live MCP server, or None when there is none of that name, or it is disabled."""
        own = self._live.get(org)
        return None if own is None else own.get(name)

    def of(self, org: str) -> list[Any]:
        """An organisation's live MCP servers in order of name."""
        return [live for _, live in sorted(self._live.get(org, {}).items())]

    def others(self, org: str, kind: UpstreamKind) -> list[Any]:
        """An organisation's live upstreams of another kind, in order of name."""
        return [live for _, live in sorted(self._others.get(org, {}).items()) if live.record.kind == kind]

    def all(self) -> list[Any]:
        return [live for table in (self._live, self._others) for own in table.values() for live in own.values()]

    async def sync(self) -> None:
        """Bring what runs in line with the store. One bad record is a problem of its own, not of the others."""
        async with self._syncing:
            wanted: dict[str, dict[str, Upstream]] = {}
            for org in await self._every(Query(ORGS, "by_org", {"org": GLOBAL}, limit=MAX_PAGE)):
                assert isinstance(org, Org)  # noqa: S101 - the entity's type
                for record in await self._every(Query(UPSTREAMS, "by_org", {"org": org.id}, limit=MAX_PAGE)):
                    if record.enabled:
                        wanted.setdefault(org.id, {})[record.name] = record
            for own in [*self._live.values(), *self._others.values()]:
                for name, live in list(own.items()):
                    record = wanted.get(live.org, {}).get(name)
                    if record is None or (record.id, record.version) != (live.record.id, live.record.version):
                        self._retire(own.pop(name))
            self.problems.clear()
            for org_id, records in wanted.items():
                for name, record in records.items():
                    table = self._live if record.kind in MCP_KINDS else self._others
                    own = table.setdefault(org_id, {})
                    if name not in own:
                        self._start(own, record)

    async def _every(self, query: Query) -> list[Any]:
        records: list[Any] = []
        while True:
            page = await self._store.find(query)
            records += page.records
            if not page.cursor:
                return records
            query = msgspec.structs.replace(query, cursor=page.cursor)

    def _start(self, own: dict[str, Forwarder], record: Upstream) -> None:
        try:
            own[record.name] = self._make(record)
        except EnterpriseError as error:
            self.problems[record.id] = error.message
            log.warning("upstream_not_started", upstream=record.name, reason=error.message)

    def _make(self, record: Upstream) -> Forwarder:
        secrets = self._registry.open_secrets(record)
        if record.kind == "mcp_stdio":
            return self._spawn(record, secrets)
        origin = Origin.parse(record.url)
        if record.kind == "openclaw":
            origin = Origin(origin.scheme, origin.host, origin.port, f"{origin.base_path}/tools/invoke")
        pool = Pool(
            origin, max_connections=record.max_connections, connect_timeout=record.connect_timeout_ms / 1000,
            allow_private=record.allow_private, verify_tls=record.verify_tls, breaker=CircuitBreaker(),
        )  # fmt: skip
        kind = HttpLive if record.kind == "http" else Live
        return kind(record, pool, origin, {**record.headers, **secrets})

    def _retire(self, live: Forwarder) -> None:
        """Close in the background: calls in flight may finish."""
        task = asyncio.get_running_loop().create_task(live.close(live.record.timeout_ms / 1000))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def reap(self) -> None:
        """Let go of what nobody has used for long (sessions of child processes)."""
        for live in self.all():
            live.reap()

    async def close(self, grace: float) -> None:
        lives = self.all()
        self._live.clear()
        self._others.clear()
        await asyncio.gather(*(live.close(grace) for live in lives), *self._closing, return_exceptions=True)

    # -- what they offer -----------------------------------------------------------------------------------------
    async def refresh(self, org: str, upstream_id: str) -> ListingReport:
        """Ask a server for everything it offers. A server that does not answer is a report, not an error.

        Raises NotFound for an id that is not this organisation's.
        """
        record: Upstream | None = await self._store.get(UPSTREAMS, org, upstream_id)
        if record is None:
            raise NotFound("There is no such upstream.")
        await self.sync()
        if record.kind not in MCP_KINDS:
            return await self._probe(record)
        live = self.get(org, record.name)
        if live is None:
            return ListingReport(False, self.problems.get(record.id, "The upstream is disabled."))
        link = live.link()
        try:
            async with asyncio.timeout(LISTING_TIMEOUT):
                await link.open()
                offered = {key: await link.list_all(method, key) for method, (key, _, _) in LISTS.items()}
        except (UpstreamError, TimeoutError) as error:
            reason = error.message if isinstance(error, UpstreamError) else f"No answer within {LISTING_TIMEOUT:.0f} s."
            return ListingReport(False, reason)
        finally:
            await link.close()
        for key, _, _ in LISTS.values():
            live.offers[key] = frozenset(str(item.get("uri") or item.get("uriTemplate") or "") for item in offered[key])
        changed = await self._registry.record_listing(org, record, offered, whole=True)
        if changed:
            self._changed()
        return ListingReport(True, "", sum(len(items) for items in offered.values()), changed)

    async def _probe(self, record: Upstream) -> ListingReport:
        """Whether an OpenClaw answers: its endpoint knows POST only, and says so."""
        live = next((live for live in self.others(record.org, record.kind) if live.name == record.name), None)
        if live is None:
            return ListingReport(False, self.problems.get(record.id, "The upstream is disabled."))
        try:
            async with asyncio.timeout(LISTING_TIMEOUT):
                answer = await live.send(live.head(b"GET", b"", 0), b"")
                answer.close()
        except (UpstreamError, TimeoutError) as error:
            reason = error.message if isinstance(error, UpstreamError) else f"No answer within {LISTING_TIMEOUT:.0f} s."
            return ListingReport(False, reason)
        if answer.status != 405:
            return ListingReport(False, f"It answers {answer.status} to GET /tools/invoke, where OpenClaw answers 405.")
        return ListingReport(True)

    async def saw(self, live: Forwarder, seen: dict[str, list[dict[str, Any]]], *, whole: bool) -> bool:
        """A listing passed by. True when it changed what the catalog knows (a new, changed or missing item)."""
        digest = hashlib.sha256(encode([whole, seen])).digest()
        if digest in live.listings:
            return False
        changed = await self._registry.record_listing(live.org, live.record, seen, whole=whole)
        if len(live.listings) >= MAX_LISTINGS:
            live.listings.clear()
        live.listings[digest] = True
        if changed:
            # Another listing seen before may now differ from what is recorded.
            live.listings = {digest: True}
            self._changed()
        return bool(changed)
