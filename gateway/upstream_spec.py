"""What may be said about an upstream, and what is wrong with it: one fault per field, all of them at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec

from ..catalog.errors import AddressRefused, FieldError, ValidationFailed
from ..catalog.records import PinPolicy, Upstream, UpstreamKind
from ..catalog.routes import Routes
from .addresses import check_url, split_url
from .doors.http.openapi import NotUsable, import_routes
from .doors.http.table import faults_of as route_faults
from .wire import HOP_BY_HOP

UPSTREAM_NAME: Final = r"^[a-z0-9][a-z0-9-]{0,62}$(?!\n)"
"""No underscore: `__` ends the upstream's name in a tool id, so ids of two upstreams never meet."""

_NAMED: Final = "A name is 1 to 63 of a-z, 0-9 and -, and does not begin with -."

KEPT: Final = "set"
"""How a stored secret is shown. Sent back as a value it keeps what is stored: GET, change, PUT loses nothing."""

RESERVED: Final = frozenset(name.decode() for name in HOP_BY_HOP) | {
    "host", "content-length", "content-type", "content-encoding", "accept", "accept-encoding", "expect", "origin",
    "mcp-session-id", "mcp-protocol-version", "mcp-method", "mcp-name", "traceparent", "tracestate", "x-request-id",
    "last-event-id",
}  # fmt: skip
"""Headers that belong to one hop or that the gateway writes itself."""

CREDENTIALS: Final = frozenset({"authorization", "cookie", "x-api-key", "api-key", "x-auth-token"})
"""Headers whose plain form would show a credential to everybody who may see upstreams."""

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
"""A token of RFC 9110 section 5.6.2."""

_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_MAX_VALUE: Final = 8192
MAX_ROUTES_SIZE: Final = 256 * 1024
"""Bytes of a route table as JSON: with the rest of its record it stays below DynamoDB's 400 KB an item."""


Named = Annotated[dict[str, str], msgspec.Meta(max_length=50)]
Argument = Annotated[str, msgspec.Meta(max_length=4096)]


class UpstreamSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An upstream as a person describes it. `command` is a program and its arguments, never a line for a shell.

    `headers` and `secrets` are header values (mcp_http, http, openclaw), `env` and `secrets` those of the environment
    (mcp_stdio).
    `routes` are a plain HTTP API's (http); `openapi`, an OpenAPI 3.x document, is read into routes and not kept.
    """

    name: Annotated[str, msgspec.Meta(pattern=UPSTREAM_NAME, description=_NAMED)]
    kind: UpstreamKind = "mcp_http"
    enabled: bool = True
    url: Annotated[str, msgspec.Meta(max_length=2048)] = ""
    command: Annotated[tuple[Argument, ...], msgspec.Meta(max_length=100)] = ()
    cwd: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    headers: Named = {}
    env: Named = {}
    secrets: Named | msgspec.UnsetType = msgspec.UNSET
    allow_private: bool = False
    verify_tls: bool = True
    timeout_ms: Annotated[int, msgspec.Meta(ge=100, le=3_600_000)] = 60_000
    connect_timeout_ms: Annotated[int, msgspec.Meta(ge=50, le=120_000)] = 5_000
    max_connections: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    pin_policy: PinPolicy = "flag"
    catalog: Literal["", "agenticmail"] = ""
    routes: Routes = ()
    openapi: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


def destination(spec: UpstreamSpec) -> tuple[str, ...]:
    """Where an upstream's secrets go: the origin of its URL, or the whole command line."""
    if spec.kind == "mcp_stdio":
        return ("stdio", *spec.command)
    try:
        parts = split_url(spec.url)
    except ValidationFailed:
        return ("invalid", spec.url)
    return (parts.scheme, (parts.hostname or "").lower(), str(parts.port or {"http": 80, "https": 443}[parts.scheme]))


def spec_of(record: Upstream) -> UpstreamSpec:
    """A record as the spec that would make it again; its secrets are left out, so that they stay."""
    names = [
        field.name
        for field in msgspec.structs.fields(UpstreamSpec)
        if field.name not in {"command", "secrets", "openapi"}
    ]
    fields = {name: getattr(record, name) for name in names}
    return UpstreamSpec(**fields, command=(record.command, *record.args) if record.command else ())


def faults_of(spec: UpstreamSpec) -> list[FieldError]:
    """Everything that is wrong with a spec; empty when nothing is. Types and bounds are checked here too."""
    faults = [*_bounds(spec)]
    faults += _stdio_faults(spec) if spec.kind == "mcp_stdio" else _http_faults(spec)
    if spec.kind == "http":
        faults += _route_faults(spec)
    else:
        faults += [
            (f"/{field}", "not_for_mcp", f"An upstream of kind {spec.kind} has no {field}.")
            for field, given in (("routes", spec.routes), ("openapi", not isinstance(spec.openapi, msgspec.UnsetType)))
            if given
        ]
    return faults


def routes_of(spec: UpstreamSpec) -> Routes:
    """The routes of an HTTP upstream: those given, or those of its OpenAPI document. Raises NotUsable."""
    return spec.routes if isinstance(spec.openapi, msgspec.UnsetType) else import_routes(spec.openapi)


def _route_faults(spec: UpstreamSpec) -> list[FieldError]:
    given = not isinstance(spec.openapi, msgspec.UnsetType)
    if spec.catalog:
        return [("/routes", "not_here", "AgenticMail's routes are known.")] if spec.routes or given else []
    if bool(spec.routes) == given:
        return [("/routes", "required", "Give routes, or an openapi document, and not both.")]
    try:
        routes = routes_of(spec)
    except NotUsable as error:
        return [("/openapi", "invalid", str(error))]
    if len(msgspec.json.encode(routes)) > MAX_ROUTES_SIZE:
        return [("/routes", "too_large", f"The routes are larger than {MAX_ROUTES_SIZE} bytes.")]
    faults = route_faults(routes)
    if "?" in spec.url:
        faults.append(("/url", "invalid", "The URL of an HTTP API has no query: it is where its routes begin."))
    return [("/openapi", "invalid", f"{path}: {text}") if given and path.startswith("/routes") else (path, code, text)
            for path, code, text in faults]  # fmt: skip


def _bounds(spec: UpstreamSpec) -> list[FieldError]:
    """For specs that were made in code: those that came as JSON were held to the same bounds already."""
    try:
        msgspec.convert(msgspec.to_builtins(spec), UpstreamSpec)
    except msgspec.ValidationError as error:
        sentence, _, where = str(error).partition(" - at `$")
        field = re.match(r"\.(\w+)", where)
        return [(f"/{field[1]}" if field else "", "invalid", f"{sentence}.")]
    return []


def _http_faults(spec: UpstreamSpec) -> list[FieldError]:
    faults = [
        (f"/{field}", "not_for_http", f"An upstream of kind {spec.kind} has no {field}.")
        for field in ("command", "cwd", "env")
        if getattr(spec, field)
    ]
    if not spec.url:
        faults.append(("/url", "required", "Say where the server is: http:// or https://."))
    else:
        try:
            check_url(spec.url, spec.allow_private)
        except ValidationFailed as error:
            faults += [(field["path"], field["code"], field["message"]) for field in error.details["fields"]]
        except AddressRefused as error:
            faults.append(("/url", "address_refused", error.message))
    if spec.kind == "openclaw" and spec.url.rstrip("/").endswith("/tools/invoke"):
        faults.append(("/url", "invalid", "Give the base of the OpenClaw gateway, without /tools/invoke."))
    secrets = {} if isinstance(spec.secrets, msgspec.UnsetType) else spec.secrets
    for name in spec.headers:
        if name.lower() in CREDENTIALS:
            faults.append((_at("headers", name), "secret", f"{name} is a credential: put it into secrets."))
    for part, values in (("headers", spec.headers), ("secrets", secrets)):
        faults += _header_faults(part, values)
    faults += _doubled({**spec.headers}, secrets, str.lower)
    return faults


def _header_faults(part: str, values: dict[str, str]) -> list[FieldError]:
    faults: list[FieldError] = []
    seen: set[str] = set()
    for name, value in values.items():
        if not _HEADER_NAME.fullmatch(name):
            faults.append((_at(part, name), "invalid_name", "This is no name of an HTTP header."))
        elif name.lower() in RESERVED:
            faults.append((_at(part, name), "reserved", f"The gateway sets {name} itself."))
        elif name.lower() in seen:
            faults.append((_at(part, name), "duplicate", f"{name} is given twice."))
        if len(value) > _MAX_VALUE or not _HEADER_VALUE.fullmatch(value):
            faults.append((_at(part, name), "invalid_value", "A header's value is printable ASCII on one line."))
        seen.add(name.lower())
    return faults


def _stdio_faults(spec: UpstreamSpec) -> list[FieldError]:
    faults = [
        (f"/{field}", "not_for_stdio", f"An upstream of kind mcp_stdio has no {field}.")
        for field in ("url", "headers", "allow_private")
        if getattr(spec, field)
    ]
    if not spec.command or not spec.command[0].strip():
        faults.append(("/command", "required", 'Say what to start, as a list: ["npx", "-y", "some-server"].'))
    texts = {f"/command/{place}": word for place, word in enumerate(spec.command)} | {"/cwd": spec.cwd}
    faults += [(path, "invalid", "NUL cannot be passed on.") for path, text in texts.items() if "\0" in text]
    if spec.cwd and not spec.cwd.startswith("/"):
        faults.append(("/cwd", "relative", "Give the working directory as an absolute path."))
    secrets = {} if isinstance(spec.secrets, msgspec.UnsetType) else spec.secrets
    for part, values in (("env", spec.env), ("secrets", secrets)):
        for name, value in values.items():
            if not _ENV_NAME.fullmatch(name):
                faults.append((_at(part, name), "invalid_name", "This is no name of an environment variable."))
            if "\0" in value or len(value) > _MAX_VALUE:
                faults.append((_at(part, name), "invalid_value", "NUL cannot be passed on, nor over 8192 characters."))
    faults += _doubled(spec.env, secrets, str)
    return faults


def _doubled(plain: dict[str, str], secrets: dict[str, str], fold: Callable[[str], str]) -> list[FieldError]:
    known = {fold(name) for name in plain}
    return [
        (_at("secrets", name), "duplicate", f"{name} is given in plain as well.")
        for name in secrets
        if fold(name) in known
    ]


def _at(part: str, name: str) -> str:
    """A JSON Pointer (RFC 6901) to a member."""
    return f"/{part}/{name.replace('~', '~0').replace('/', '~1')}"
