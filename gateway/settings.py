"""Settings as typed data. Sources, weakest first: defaults, TOML file, environment `AGENTICMAIL_*`, flags.

An unknown or misspelt key is a `SettingsError` that names its path and where it came from.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


def url_of(host: str, port: int) -> str:
    """The URL to open for a server that listens there."""
    shown = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"


class _Section(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    pass


class ServerSettings(_Section, kw_only=True, frozen=True):
    """`api_rate`: requests a minute of one API key to the REST API, in each worker; 0: as many as it likes.
    `allowed_hosts`: Host names served besides loopback names and `host`; `*` serves any (put a proxy in front).
    `trusted_proxies`: CIDRs whose X-Forwarded-For is believed. Sizes in bytes, times in seconds."""

    host: str = "127.0.0.1"
    port: Port = 3000
    workers: Positive = 1
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    api_rate: Annotated[int, msgspec.Meta(ge=0)] = 1200
    body_limit: Positive = 10 * 1024 * 1024
    stop_grace: Annotated[float, msgspec.Meta(ge=0)] = 10.0


class JournalSettings(_Section, kw_only=True, frozen=True):
    """`sync`: see docs/decisions; `arguments`: `none` keeps the digest only, `redacted` keeps arguments with secrets
    masked. `max_bytes` bounds one worker's spool; when it is full calls wait `full_wait` seconds, then are denied."""

    sync: Literal["none", "group", "always"] = "none"
    arguments: Literal["none", "redacted"] = "redacted"
    segment_bytes: Annotated[int, msgspec.Meta(ge=65536)] = 2 * 1024 * 1024
    max_bytes: Annotated[int, msgspec.Meta(ge=131072)] = 256 * 1024 * 1024
    full_wait: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    drain_interval: Annotated[float, msgspec.Meta(gt=0)] = 0.5


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


class AuthSettings(_Section, kw_only=True, frozen=True):
    """How people stay signed in. An access token lives `access_seconds`, a refresh token `refresh_days` from its last
    use and at most `session_days` from the sign-in; a page session `page_hours` from its last use. One-time links live
    `reset_minutes` (password), `sign_in_minutes` or `invite_days`. `public_url`: where people reach this gateway, for
    links ("" makes them relative); with `https://` cookies are always Secure."""

    access_seconds: Annotated[int, msgspec.Meta(ge=30, le=86_400)] = 600
    refresh_days: Annotated[int, msgspec.Meta(ge=1, le=365)] = 30
    session_days: Annotated[int, msgspec.Meta(ge=1, le=365)] = 90
    page_hours: Annotated[int, msgspec.Meta(ge=1, le=720)] = 12
    reset_minutes: Annotated[int, msgspec.Meta(ge=5, le=1440)] = 60
    sign_in_minutes: Annotated[int, msgspec.Meta(ge=1, le=1440)] = 15
    invite_days: Annotated[int, msgspec.Meta(ge=1, le=30)] = 7
    public_url: Annotated[str, msgspec.Meta(pattern=r"^(https?://[^\s/?#@]+)?$(?!\n)")] = ""


class HookSettings(_Section, kw_only=True, frozen=True):
    """Hooks in agents' own runtimes (docs/openclaw.md). `heartbeat`: how often one says that it is there; `silence`:
    after how long without, while its agent works, the alarm is raised; `on_silence`: what follows. Seconds."""

    heartbeat: Annotated[float, msgspec.Meta(ge=1, le=300)] = 15.0
    silence: Annotated[float, msgspec.Meta(ge=2, le=86_400)] = 60.0
    on_silence: Literal["pause", "alarm"] = "pause"


class LogSettings(_Section, kw_only=True, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class ApprovalSettings(_Section, kw_only=True, frozen=True):
    """Seconds. `hold_timeout`: how long a held request stays open for its answer (most clients give up at 60);
    `progress`: how often its client hears of it meanwhile; `replay`: for how long a repeat of a decided call gets the
    same answer; `lease`: how long a worker has for one execution. `public_url` is what links in messages begin with.
    `idempotency`: how long a call that must not run twice is remembered."""

    hold_timeout: Annotated[float, msgspec.Meta(ge=0, le=600)] = 45.0
    progress: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    replay: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 600
    lease: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 120.0
    sweep: Annotated[float, msgspec.Meta(gt=0, le=60)] = 0.5
    idempotency: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 600
    public_url: str = ""
    smtp_host: str = ""
    smtp_port: Port = 587
    smtp_user: str = ""
    smtp_password: str = ""
    smtp_from: str = ""
    smtp_tls: Literal["starttls", "tls", "none"] = "starttls"


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
    auth: AuthSettings = AuthSettings()
    hooks: HookSettings = HookSettings()
    log: LogSettings = LogSettings()
    approvals: ApprovalSettings = ApprovalSettings()
