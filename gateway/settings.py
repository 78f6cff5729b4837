"""Settings as typed data. Sources, weakest first: defaults, TOML file, environment `AGENTICMAIL_*`, flags.

An unknown or misspelt key is a `SettingsError` that names its path and where it came from.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class _Section(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    pass


class ServerSettings(_Section, kw_only=True, frozen=True):
    """`allowed_hosts`: Host names served besides loopback names and `host`; `*` serves any (put a proxy in front).
    `trusted_proxies`: CIDRs whose X-Forwarded-For is believed. Sizes in bytes, times in seconds."""

    host: str = "127.0.0.1"
    port: Port = 3000
    workers: Positive = 1
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    body_limit: Positive = 10 * 1024 * 1024
    stop_grace: Annotated[float, msgspec.Meta(ge=0)] = 10.0


class JournalSettings(_Section, kw_only=True, frozen=True):
    """`sync`: see docs/decisions; `arguments`: `none` keeps the digest only, `redacted` keeps arguments with secrets
    masked. `max_bytes` bounds one worker's spool; when it is full calls wait `full_wait` seconds, then are denied."""

    sync: Literal["none", "group", "always"] = "none"
    arguments: Literal["none", "redacted"] = "redacted"
    segment_bytes: Annotated[int, msgspec.Meta(ge=65536)] = 8 * 1024 * 1024
    max_bytes: Annotated[int, msgspec.Meta(ge=131072)] = 256 * 1024 * 1024
    full_wait: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    drain_interval: Annotated[float, msgspec.Meta(gt=0)] = 0.25


class PluginSettings(_Section, kw_only=True, frozen=True):
    """Names of active plugins, in running order, and each one's own table. Installing a package activates nothing."""

    guards: tuple[str, ...] = ("argument-rules", "rate-limits")
    gates: tuple[str, ...] = ()
    observers: tuple[str, ...] = ()
    guard_timeout: Annotated[float, msgspec.Meta(gt=0)] = 0.25
    gate_timeout: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    config: dict[str, dict[str, Any]] = {}


class PolicySettings(_Section, kw_only=True, frozen=True):
    """`refresh`: how often other processes' changes are looked for; `stale_grace`: how long the last known policy
    holds while the store cannot be read; then every call is denied with POLICY_STALE. Seconds."""

    refresh: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.25
    stale_grace: Annotated[float, msgspec.Meta(ge=0)] = 60.0


class HookSettings(_Section, kw_only=True, frozen=True):
    """Hooks in agents' own runtimes (docs/openclaw.md). `heartbeat`: how often one says that it is there; `silence`:
    after how long without, while its agent works, the alarm is raised; `on_silence`: what follows. Seconds."""

    heartbeat: Annotated[float, msgspec.Meta(ge=1, le=300)] = 15.0
    silence: Annotated[float, msgspec.Meta(ge=2, le=86_400)] = 60.0
    on_silence: Literal["pause", "alarm"] = "pause"


class LogSettings(_Section, kw_only=True, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Settings(_Section, kw_only=True, frozen=True):
    """Everything. `data_dir` holds the spool and the key file; `database` is a URL. `secret_key` (base64, 32 bytes)
    overrides the key file `data_dir/secret.key`; it is never printed."""

    database: str = "sqlite:///agenticmail-enterprise.db"
    data_dir: str = "./agenticmail-data"
    secret_key: str = ""
    server: ServerSettings = ServerSettings()
    journal: JournalSettings = JournalSettings()
    plugins: PluginSettings = PluginSettings()
    policy: PolicySettings = PolicySettings()
    hooks: HookSettings = HookSettings()
    log: LogSettings = LogSettings()
