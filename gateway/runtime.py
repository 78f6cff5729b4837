"""The composition root of one worker: everything is made here, once, and handed to whoever needs it.

Adapters and the admin module are found by name and never imported: what stands behind a port is the settings' choice.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ..catalog.errors import EnterpriseError, SettingsError, StoreError
from ..catalog.records import Upstream
from ..catalog.store import Store
from ..catalog.tools import TOOL_INDEX
from ..policies.catalogue import Catalog
from ..policies.chain import Chain
from ..policies.pluginhost import PluginHost
from .accounts import Accounts
from .approvals.book import Book
from .approvals.engine import ApprovalEngine
from .approvals.notify import Notifier
from .approvals.runner import GatewayRunner
from .approvals.sweep import Sweeper
from .doors.aggregate import AggregateDoor
from .doors.checks import ChecksDoor
from .doors.held import CheckHolds, Held
from .doors.hooks import HooksDoor
from .doors.http.door import HttpDoor
from .doors.mcp import McpDoor
from .doors.once import OnceDoor
from .doors.openclaw import OpenClawDoor
from .doors.siblings import Siblings
from .doors.stdio import StdioLive
from .doors.stdio_siblings import stdio_handlers
from .doors.turnaway import Turnaway
from .epochs import EpochWatcher
from .holds import Holds
from .hookwatch import HookWatch
from .identity import Identity
from .journal import Journal
from .metrics import Family, Gauge, Metrics
from .people.service import People
from .proxy import Proxy
from .registry import Registry
from .sessions import SessionSeal
from .settings import Settings
from .stores import adapter, serving_store
from .upstreams import Forwarder, Upstreams
from .vault import Vault


class Runtime:
    """One worker's parts. `await Runtime.open(settings)`, use, `await runtime.close()`."""

    settings: Settings
    worker: int
    started: float
    store: Store
    vault: Vault
    metrics: Metrics
    identity: Identity
    catalog: Catalog
    plugins: PluginHost
    chain: Chain
    journal: Journal
    proxy: Proxy
    registry: Registry
    upstreams: Upstreams
    accounts: Accounts
    people: People
    epochs: EpochWatcher
    approvals: ApprovalEngine
    mcp: McpDoor
    aggregate: AggregateDoor
    checks: ChecksDoor
    openclaw: OpenClawDoor
    heartbeats: HooksDoor
    hooks: HookWatch
    holds: Holds | None
    """The engine of approvals; None: held calls are refused."""
    rest: HttpDoor
    _opened: list[Any]

    @classmethod
    async def open(cls, settings: Settings, worker: int = 0, shared: Path | None = None) -> Runtime:
        """Make and start everything. What fails half-way is closed again. Raises EnterpriseError.

        `shared`: the folder in which workers that serve together leave their metrics.
        """
        self = cls()
        self.settings = settings
        self.worker = worker
        self.started = time.time()
        self._opened = []
        try:
            await self._open()
            if shared is not None:
                await self._share(shared)
        except BaseException:
            await self._undo()
            raise
        return self

    async def _open(self) -> None:
        settings = self.settings
        data = Path(settings.data_dir)
        self._make_data_dir(data)
        self.vault = Vault.load(settings)
        self.metrics = Metrics()
        self.store = serving_store(settings, self.metrics.store_operation)
        await self.store.open()
        self._opened.append(self.store.close)
        await self.store.migrate()
        self.identity = Identity(self.store)
        self._make_policy()
        await self.plugins.provision()
        self._opened.append(self.plugins.close)
        self.journal = Journal(self.store, settings.journal, data)
        if self.plugins.observers:
            self.journal.tell(self.plugins.observe)
        await self.journal.start()
        self._opened.append(self.journal.stop)
        self._make_services()
        self._make_doors()
        self._opened.append(self.people.settle)
        await self.upstreams.sync()
        await self.epochs.start()
        self._opened.append(self.epochs.stop)
        self._sweeper.start()
        self._opened.append(self._sweeper.stop)
        await self.siblings.start({"/mcp": self.aggregate.handle_here, **stdio_handlers(self.upstreams)})
        self._opened.append(self.siblings.close)
        self._gauges()

    @staticmethod
    def _make_data_dir(data: Path) -> None:
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise SettingsError(f"data_dir: {data} cannot be made: {error.strerror}.") from error
        if not os.access(data, os.W_OK | os.X_OK):
            raise SettingsError(f"data_dir: {data} is not writable.")

    def _make_policy(self) -> None:
        settings = self.settings
        plugins = settings.plugins
        config = dict(plugins.config)
        if settings.server.workers > 1 and "rate-limits" in plugins.guards:
            # Counters are per process: each worker grants its share of a ceiling, never more in sum.
            config["rate-limits"] = {"processes": settings.server.workers, **config.get("rate-limits", {})}
        self.catalog = Catalog(TOOL_INDEX, self.store)
        self.plugins = PluginHost(
            plugins.guards, plugins.gates, plugins.observers, config, guard_timeout=plugins.guard_timeout
        )
        self.chain = Chain(
            self.store,
            self.catalog,
            self.plugins,
            gate_timeout=plugins.gate_timeout,
            stale_grace=settings.policy.stale_grace,
        )

    def _make_services(self) -> None:
        settings = self.settings
        self.proxy = Proxy(self.chain, self.journal, self.metrics, settings.journal.full_wait)
        self.registry = Registry(self.store, self.vault, on_change=self.changed)
        self.siblings = Siblings(Path(settings.data_dir), self.worker, settings.server.workers)
        self.upstreams = Upstreams(self.store, self.registry, self._spawn, self.changed)
        self.accounts = Accounts(self.store, on_change=self.changed)
        self._make_approvals()
        self.people = People(
            self.store, self.vault, self.accounts, self.identity, settings.auth, workers=settings.server.workers,
            on_change=self.changed,
        )  # fmt: skip
        self.hooks = HookWatch(self.store, self.accounts, self.settings.hooks)
        self.sessions = SessionSeal(self.vault.derive(b"mcp-session"))
        self.epochs = EpochWatcher(
            self.store, settings.policy.refresh, self._apply, lambda ok: self.chain.freshen(ok, time.monotonic())
        )

    def _make_approvals(self) -> None:
        settings = self.settings.approvals
        book = Book(self.store, self.vault, lambda: self.chain.epoch, on_change=self.changed)
        runner = GatewayRunner(self.store, self.proxy, self.upstreams)
        self.approvals = ApprovalEngine(self.store, self.vault, book=book, runner=runner, settings=settings)
        self.chain.approvals = book.hold
        self.proxy.holds = self.held = Held(self.approvals, self.chain)
        self.proxy.once = frozenset({"mcp"})
        self.holds = CheckHolds(self.held)
        self.once = OnceDoor(self.store, self.vault, self.proxy, self.upstreams, settings)
        self._sweeper = Sweeper(self.approvals, Notifier(self.store, self.vault, settings), self.once.sweep)

    def _make_doors(self) -> None:
        limit = self.settings.server.body_limit
        self.mcp = McpDoor(
            self.proxy, self.chain, self.identity, self.upstreams, self.sessions, Turnaway(self.proxy, "mcp"), limit
        )
        self.aggregate = AggregateDoor(self.mcp, self.siblings)
        self.checks = ChecksDoor(
            self.proxy, self.identity, Turnaway(self.proxy, "checks"), limit, self.store,
            siblings=self.settings.server.workers > 1, holds=lambda: self.holds,
        )  # fmt: skip
        self.heartbeats = HooksDoor(
            self.hooks, self.identity, Turnaway(self.proxy, "checks"), self.settings.hooks.heartbeat
        )
        self.openclaw = OpenClawDoor(
            self.proxy, self.chain, self.identity, self.upstreams, Turnaway(self.proxy, "openclaw"), limit
        )
        self.rest = HttpDoor(self.proxy, self.identity, self.upstreams, limit)

        self.mcp.held = self.checks.held = self.held
        self.mcp.once = self.once

    def _spawn(self, record: Upstream, secrets: dict[str, str]) -> Forwarder:
        return StdioLive(record, secrets, adapter("upstreams.mux"), self.siblings)

    def changed(self) -> None:
        """A policy write happened in this process: drop what was compiled, at once, and let the watcher do the rest."""
        self.identity.forget()
        self.chain.invalidate()
        self.epochs.nudge()

    async def _apply(self) -> None:
        """The epoch moved, here or elsewhere."""
        self.identity.forget()
        self.chain.invalidate()
        await self.upstreams.sync()

    def _gauges(self) -> None:
        def breakers() -> list[tuple[tuple[str, ...], float]]:
            states = {"closed": 0.0, "half_open": 1.0, "open": 2.0}
            return [
                ((live.name,), states.get(state, 2.0)) for live in self.upstreams.all() if (state := live.breaker_state)
            ]

        def retries() -> int:
            found: int = getattr(self.store, "retries", 0)
            return found

        self.metrics.gauges += [
            Gauge(
                Family("agenticmail_in_flight", "Calls forwarded and not yet answered."),
                lambda: [((), self.proxy.in_flight)],
            ),
            Gauge(
                Family("agenticmail_journal_lag_records", "Records not yet drained to the store."),
                lambda: [((), self.journal.lag().records)],
            ),
            Gauge(
                Family("agenticmail_journal_lag_seconds", "Age of the oldest record not yet drained.", merge="max"),
                lambda: [((), self.journal.lag().seconds)],
            ),
            Gauge(
                Family("agenticmail_breaker_state", "0 closed, 1 half open, 2 open.", ("upstream",), merge="max"),
                breakers,
            ),
            Gauge(
                Family("agenticmail_plugin_faults", "Answers of plugins that were none, exceptions and time-outs.",
                       ("plugin",)),
                lambda: [((name,), count) for name, count in self.plugins.faults.items()],
                counts=True,
            ),
            Gauge(
                Family("agenticmail_store_retries", "Reads of the store that were tried again."),
                lambda: [((), retries())],
                counts=True,
            ),
            *self.hooks.gauges(),
        ]  # fmt: skip

    async def _share(self, folder: Path) -> None:
        from .metrics_share import Share

        share = Share(self.metrics, folder, self.worker)
        await share.start()
        self._opened.insert(0, share.stop)  # closed last: until then something may be counted

    async def ready(self) -> dict[str, str]:
        """What keeps this worker from serving: {part: sentence}, empty when it is ready."""
        problems: dict[str, str] = {}
        try:
            await self.store.ping()
        except StoreError as error:
            problems["store"] = error.message
        if self.journal.problem:
            problems["journal"] = self.journal.problem
        return problems

    async def close(self) -> None:
        """Stop in order: no upstream, nothing unrecorded, no store. The server has waited for calls in flight."""
        self.checks.close_all()
        await self.upstreams.close(1.0)
        await self._undo()

    async def _undo(self) -> None:
        problems: list[str] = []
        for close in reversed(self._opened):
            try:
                await close()
            except EnterpriseError as error:
                problems.append(error.message)
        self._opened.clear()
        if problems:
            raise StoreError("; ".join(problems))
