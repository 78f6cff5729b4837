"""What `check` and `doctor` look at: one list of probes, each a small function that yields findings.

A finding says what was looked at, whether it is `ok`, a `warning` (works today) or a `problem` (does not), and the
command that mends it. The first probes open what serving needs, in the order in which serving opens it: when one of
them fails, what stands on it is not tried.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

import msgspec

from ...catalog.errors import EnterpriseError, SecretError, SettingsError
from ...catalog.records import AGENTS, KEYS, UPSTREAMS, Org, Upstream
from ...catalog.store import Store
from ...policies.pluginhost import PluginHost
from ..addresses import DEFAULT_PORTS, canonical_host, resolve, split_url
from ..logs import masked_text
from ..registry import Registry
from ..settings import Settings
from ..settings_load import DEFAULT, Loaded
from ..stores import pending_migrations
from ..vault import KEY_FILE, Vault
from .common import Common, every, opened, organisations
from .keys import live_keys

COMMAND: Final = "agenticmail-enterprise"
SOON_MS: Final = 14 * 24 * 3600 * 1000
"""A key that expires within two weeks is worth a word."""

LOW_DISK: Final = 512 * 1024 * 1024
MANY: Final = 1_000
"""Records of one kind that are looked at."""

State = Literal["ok", "warning", "problem"]


class Finding(msgspec.Struct, frozen=True):
    """`mend` is a command, or "" where nothing needs mending."""

    what: str
    state: State
    says: str
    mend: str = ""


class Patient:
    """What has been opened so far; later probes stand on it."""

    def __init__(self, common: Common, stack: AsyncExitStack) -> None:
        self.common = common
        self.stack = stack
        self.loaded: Loaded
        self.store: Store
        self.vault: Vault
        self.orgs: list[Org] = []

    @property
    def settings(self) -> Settings:
        return self.loaded.settings


Found = AsyncIterator[Finding]
Probe = Callable[[Patient], Found]


# -- what serving needs, in its order ------------------------------------------------------------------------------
async def settings(patient: Patient) -> Found:
    patient.loaded = patient.common.load()
    said = [path for path, origin in patient.loaded.origins.items() if origin != DEFAULT]
    file = patient.loaded.file
    yield Finding("settings", "ok", f"{file or 'no settings file'}; {len(said)} settings are not at their default")


async def data_dir(patient: Patient) -> Found:
    folder = Path(patient.settings.data_dir)
    _require_folder(folder)
    yield Finding("data folder", "ok", str(folder))


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise SettingsError(f"The folder {folder} is not there.", mend=f"{COMMAND} init")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"The folder {folder} is not writable.", mend=f"chmod u+rwx {folder}")


async def key_file(patient: Patient) -> Found:
    try:
        patient.vault = Vault.load(patient.settings)
    except SecretError as error:
        file = Path(patient.settings.data_dir) / KEY_FILE
        mend = f"chmod 600 {file}" if file.exists() and file.stat().st_mode & 0o077 else f"{COMMAND} init"
        raise SecretError(error.message, mend=mend) from None
    where = "from the settings" if patient.settings.secret_key else str(Path(patient.settings.data_dir) / KEY_FILE)
    yield Finding("secret key", "ok", where)


async def store(patient: Patient) -> Found:
    try:
        patient.store = await patient.stack.enter_async_context(opened(patient.settings, migrate=False))
        await patient.store.ping()
        pending = await pending_migrations(patient.store)
    except EnterpriseError as error:
        mend = (
            f"{COMMAND} init"
            if isinstance(error, SettingsError)
            else "start the database, or name another: --database URL"
        )
        raise SettingsError(error.message, mend=mend) from None
    if pending:
        numbers = ", ".join(map(str, pending))
        raise SettingsError(f"Migrations are pending: {numbers}.", mend=f"{COMMAND} migrate")
    yield Finding("database", "ok", f"{masked_text(patient.settings.database)} answers, and its schema is current")
    patient.orgs = await organisations(patient.store)
    if not patient.orgs:
        raise SettingsError("The database holds no organisation.", mend=f"{COMMAND} init")
    yield Finding("organisation", "ok", ", ".join(org.name for org in patient.orgs))


async def plugins(patient: Patient) -> Found:
    named = patient.settings.plugins
    host = PluginHost(named.guards, named.gates, named.observers, named.config)
    try:
        await host.provision()
    finally:
        await host.close()
    active = (*named.guards, *named.gates, *named.observers)
    yield Finding("plugins", "ok", f"active: {', '.join(active) or 'none'}")
    for needed in ("argument-rules", "rate-limits"):
        if needed not in named.guards:
            yield Finding("plugins", "warning", f"{needed} is not active: calls under profiles that need it are denied",
                          f"{COMMAND} settings show   # then add it to plugins.guards")  # fmt: skip


async def upstreams(patient: Patient) -> Found:
    registry = Registry(patient.store, patient.vault)
    for org in patient.orgs:
        for record in await every(patient.store, UPSTREAMS, "by_org", {"org": org.id}, MANY):
            yield await _upstream(registry, record)


async def _upstream(registry: Registry, record: Upstream) -> Finding:
    what = f"server {record.name}"
    if not record.enabled:
        return Finding(what, "ok", "disabled")
    try:
        registry.open_secrets(record)
        return Finding(what, "ok", await _reach(record))
    except EnterpriseError as error:
        mend = f"{COMMAND} upstreams remove {record.name}   # and add it again, or: upstreams disable {record.name}"
        return Finding(what, "problem", error.message, mend)


async def _reach(record: Upstream) -> str:
    """Where an upstream is, as far as that can be found out without calling it. Raises EnterpriseError."""
    if record.kind != "mcp_stdio":
        parts = split_url(record.url)
        host = canonical_host(parts.hostname or "")
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        found = await resolve(host, port, allow_private=record.allow_private)
        return f"{record.url} is {found[0]}"
    return _program(record)


def _program(record: Upstream) -> str:
    program = shutil.which(record.command)
    if program is None:
        raise SettingsError(f"There is no program {record.command!r} on this machine.")
    if record.cwd and not Path(record.cwd).is_dir():
        raise SettingsError(f"Its working directory {record.cwd} is not there.")
    return f"starts {program}"


NEEDED: Final[tuple[tuple[str, Probe], ...]] = (
    ("settings", settings), ("data folder", data_dir), ("secret key", key_file), ("database", store),
    ("plugins", plugins), ("servers", upstreams),
)  # fmt: skip
"""Everything that serving opens, in its order."""


# -- what else is worth knowing ------------------------------------------------------------------------------------
async def machine(patient: Patient) -> Found:
    state: State
    try:
        loop, state = f"uvloop {version('uvloop')}", "ok"
    except PackageNotFoundError:
        loop, state = "without uvloop, which makes calls slower", "warning"
    yield Finding(
        "Python",
        state,
        f"{platform.python_version()}, {loop}",
        "" if state == "ok" else f"{sys.executable} -m pip install uvloop",
    )
    free = shutil.disk_usage(patient.settings.data_dir).free
    if free < LOW_DISK:
        yield Finding(
            "disk",
            "warning",
            f"{free // 2**20} MB are free below {patient.settings.data_dir}",
            f"df -h {patient.settings.data_dir}",
        )
    else:
        yield Finding("disk", "ok", f"{free // 2**30} GB are free")


async def port(patient: Patient) -> Found:
    server = patient.settings.server
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)  # noqa: S104 - compared
    try:
        with socket.create_connection((host, server.port), 1.0) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            ours = b'"status"' in _received(sock)
    except OSError:
        yield Finding("port", "ok", f"{server.host}:{server.port} is free; no gateway serves there now")
        return
    if ours:
        yield Finding("port", "ok", f"a gateway serves at {server.host}:{server.port}")
    else:
        yield Finding(
            "port",
            "problem",
            f"something else listens on {server.host}:{server.port}",
            f"{COMMAND} serve --port {server.port + 1}",
        )


def _received(sock: socket.socket) -> bytes:
    data = b""
    while len(data) < 4096:
        part = sock.recv(4096)
        if not part:
            break
        data += part
    return data


async def exposure(patient: Patient) -> Found:
    server = patient.settings.server
    if server.host in {"127.0.0.1", "localhost", "::1"}:
        yield Finding("exposure", "ok", f"serves {server.host}, this machine only")
    elif not server.allowed_hosts:
        yield Finding("exposure", "warning", f"serves {server.host} under any Host name",
                      "set server.allowed_hosts to the names that agents use")  # fmt: skip
    else:
        yield Finding("exposure", "ok", f"serves {server.host} as {', '.join(server.allowed_hosts)}")


async def agents(patient: Patient) -> Found:
    for org in patient.orgs:
        keys = live_keys(await every(patient.store, KEYS, "by_org", {"org": org.id}, MANY))
        with_key = {key.agent_id for key in keys}
        known = await every(patient.store, AGENTS, "by_org", {"org": org.id}, MANY)
        active = [agent for agent in known if agent.status == "active"]
        if not active:
            yield Finding("agents", "warning", f"{org.name} has no active agent",
                          f"{COMMAND} agents create NAME --preset research-assistant --key")  # fmt: skip
        for agent in active:
            if not agent.profile_id:
                yield Finding(f"agent {agent.name}", "warning", "has no profile, so it may do nothing",
                              f"{COMMAND} agents profile set {agent.name} --preset research-assistant")  # fmt: skip
            if agent.id not in with_key:
                yield Finding(f"agent {agent.name}", "warning", "has no live key, so it cannot call",
                              f"{COMMAND} keys create --agent {agent.name}")  # fmt: skip
        soon = time.time() * 1000 + SOON_MS
        for key in keys:
            if key.expires_at and key.expires_at < soon:
                days = max(0, int((key.expires_at - time.time() * 1000) / 86_400_000))
                owner = next((agent.name for agent in known if agent.id == key.agent_id), "")
                new = f"--agent {owner}" if owner else " ".join(f"--scope '{scope}'" for scope in key.scopes)
                yield Finding(
                    f"key {key.prefix}...{key.last4}",
                    "warning",
                    f"expires in {days} days",
                    f"{COMMAND} keys create {new}",
                )


async def tools(patient: Patient) -> Found:
    registry = Registry(patient.store, patient.vault)
    for org in patient.orgs:
        records = await every(patient.store, UPSTREAMS, "by_org", {"org": org.id}, MANY)
        if not records:
            yield Finding("servers", "warning", f"{org.name} has no server behind its gateway",
                          f"{COMMAND} upstreams add http NAME URL")  # fmt: skip
        for record in (record for record in records if record.enabled):
            known = await registry.tools.all(org.id, record.name)
            if not known:
                says = "none of its tools is known yet: calls to them are denied"
                yield Finding(f"server {record.name}", "warning", says, f"{COMMAND} upstreams refresh {record.name}")
            for tool in known:
                if tool.pin != tool.seen and not tool.gone:
                    effect = "its calls are held" if record.pin_policy == "hold" else "it is flagged"
                    says = f"changed since it was approved; {effect}"
                    mend = f"{COMMAND} upstreams correct {tool.tool_id} --accept-pin"
                    yield Finding(f"tool {tool.tool_id}", "warning", says, mend)


WORTH_KNOWING: Final[tuple[tuple[str, Probe], ...]] = (
    ("Python", machine), ("port", port), ("exposure", exposure), ("agents", agents), ("tools", tools),
)  # fmt: skip


async def examine(common: Common, *, everything: bool) -> list[Finding]:
    """All findings: what serving needs, and with `everything` what else is worth knowing. Raises nothing but faults."""
    found: list[Finding] = []
    async with AsyncExitStack() as stack:
        patient = Patient(common, stack)
        for probes in (NEEDED, WORTH_KNOWING if everything else ()):
            for what, probe in probes:
                try:
                    found += [finding async for finding in probe(patient)]
                except EnterpriseError as error:
                    mend = str(error.details.get("mend") or error.details.get("hint") or f"{COMMAND} settings show")
                    found.append(Finding(what, "problem", error.message, mend))
                    if what != "servers":
                        return found
    return found
