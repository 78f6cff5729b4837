"""`upstreams`: servers behind the gateway, MCP or plain HTTP, and the tools they offer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from ...catalog.errors import Conflict, NotFound, UpstreamError
from ...catalog.profiles import Risk, SideEffect
from ...catalog.records import PinPolicy, ToolRecord, Upstream
from ...catalog.routes import Route
from ..tools_registry import Correction
from ..upstream_spec import KEPT, UpstreamSpec, spec_of
from ..upstreams import ListingReport, Upstreams
from .args import PAIR, from_environment, from_files
from .common import Common, House, common_options, confirm, house, run
from .output import emit_json, pointing, say, table

Pairs = tuple[tuple[str, str], ...]


@click.group()
def upstreams() -> None:
    """Servers behind the gateway (MCP, or plain HTTP APIs), and their tools."""


@upstreams.group("add")
def add() -> None:
    """Register a server. Agents reach it at /mcp/NAME and, with all others, at /mcp."""


def _add_options(function: Any) -> Any:
    for option in (
        click.option("--secret-env", type=PAIR, multiple=True, metavar="NAME=VARIABLE",
                     help="A credential (header or variable NAME) whose value is in VARIABLE. Encrypted at rest."),
        click.option("--secret-file", type=PAIR, multiple=True, metavar="NAME=FILE", help="The same, from a file."),
        click.option("--timeout-ms", type=int, default=60_000, show_default=True, help="Deadline of a call."),
        click.option("--pin-policy", type=click.Choice(get_args(PinPolicy)), default="flag", show_default=True,
                     help="A tool whose definition changed: flag it, or hold its calls."),
        click.option("--catalog", type=click.Choice(["agenticmail"]), help="Its tools are those of the catalog."),
        click.option("--disabled", is_flag=True, help="Register it without serving it."),
        click.option("--no-refresh", is_flag=True, help="Do not ask it for its tools now."),
    ):  # fmt: skip
        function = option(function)
    return function


@add.command("http")
@click.argument("name")
@click.argument("url")
@click.option("--header", "headers", type=PAIR, multiple=True, help="A plain header to send. May be repeated.")
@click.option("--allow-private", is_flag=True, help="Permit loopback and private addresses.")
@click.option("--no-verify-tls", is_flag=True, help="Accept any certificate.")
@click.option("--max-connections", type=int, default=100, show_default=True)
@_add_options
@common_options
def add_http(
    common: Common, name: str, url: str, headers: Pairs, allow_private: bool, no_verify_tls: bool, max_connections: int,
    **shared: Any,
) -> None:  # fmt: skip
    """Register a server that speaks MCP over streamable HTTP."""
    spec = UpstreamSpec(
        name=name, kind="mcp_http", url=url, headers=dict(headers), allow_private=allow_private,
        verify_tls=not no_verify_tls, max_connections=max_connections, **_shared(shared),
    )  # fmt: skip
    _add(common, spec, refresh=not (shared["no_refresh"] or shared["disabled"]))


@add.command("openclaw")
@click.argument("name")
@click.argument("url")
@click.option("--header", "headers", type=PAIR, multiple=True, help="A plain header to send. May be repeated.")
@click.option("--allow-private", is_flag=True, help="Permit loopback and private addresses.")
@_add_options
@common_options
def add_openclaw(common: Common, name: str, url: str, headers: Pairs, allow_private: bool, **shared: Any) -> None:
    """Register an OpenClaw gateway, for POST /tools/invoke. Its token: --secret-env Authorization=VARIABLE."""
    spec = UpstreamSpec(
        name=name, kind="openclaw", url=url, headers=dict(headers), allow_private=allow_private, **_shared(shared)
    )
    _add(common, spec, refresh=not (shared["no_refresh"] or shared["disabled"]))


@add.command("api")
@click.argument("name")
@click.argument("url")
@click.option("--routes", "routes_file", type=click.Path(exists=True, dir_okay=False), help="A JSON file of routes.")
@click.option(
    "--openapi", "openapi_file", type=click.Path(exists=True, dir_okay=False), help="An OpenAPI 3.x document, as JSON."
)
@click.option("--header", "headers", type=PAIR, multiple=True, help="A plain header to send. May be repeated.")
@click.option("--allow-private", is_flag=True, help="Permit loopback and private addresses.")
@click.option("--no-verify-tls", is_flag=True, help="Accept any certificate.")
@_add_options
@common_options
def add_api(
    common: Common, name: str, url: str, routes_file: str | None, openapi_file: str | None, headers: Pairs,
    allow_private: bool, no_verify_tls: bool, **shared: Any,
) -> None:  # fmt: skip
    """Register a plain HTTP API, by its routes or its OpenAPI document; or AgenticMail's (--catalog agenticmail).

    Agents reach it at /http/NAME/... and as tools at /mcp; AgenticMail's at /api/agenticmail/...
    """
    given: dict[str, Any] = {}
    if routes_file:
        given["routes"] = _read(routes_file, tuple[Route, ...])
    if openapi_file:
        given["openapi"] = _read(openapi_file, dict[str, Any])
    spec = UpstreamSpec(
        name=name, kind="http", url=url, headers=dict(headers), allow_private=allow_private,
        verify_tls=not no_verify_tls, **given, **_shared(shared),
    )  # fmt: skip
    _add(common, spec, refresh=not (shared["no_refresh"] or shared["disabled"]))


def _read(file: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(Path(file).read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeError) as error:
        raise click.UsageError(f"{file} cannot be read: {error}") from None


@add.command("stdio", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", nargs=-1, required=True)
@click.option("--cwd", default="", help="Working directory.")
@click.option("--env", "variables", type=PAIR, multiple=True, help="A plain variable for it. May be repeated.")
@_add_options
@common_options
def add_stdio(
    common: Common, name: str, command: tuple[str, ...], cwd: str, variables: Pairs, **shared: Any
) -> None:  # fmt: skip
    """Register a server that the gateway starts itself: NAME -- PROGRAM ARGUMENT..."""
    folder = str(Path(cwd).expanduser().absolute()) if cwd else ""
    spec = UpstreamSpec(
        name=name, kind="mcp_stdio", command=command, cwd=folder, env=dict(variables), **_shared(shared)
    )  # fmt: skip
    _add(common, spec, refresh=not (shared["no_refresh"] or shared["disabled"]))


def _shared(given: dict[str, Any]) -> dict[str, Any]:
    secrets = {**from_environment(given["secret_env"]), **from_files(given["secret_file"])}
    return {
        "secrets": secrets or msgspec.UNSET, "timeout_ms": given["timeout_ms"], "pin_policy": given["pin_policy"],
        "catalog": given["catalog"] or "", "enabled": not given["disabled"],
    }  # fmt: skip


def _add(common: Common, spec: UpstreamSpec, *, refresh: bool) -> None:
    async def work() -> tuple[Upstream, ListingReport | None]:
        async with house(common) as own:
            async with own.deed("upstream.create") as deed:
                deed.details |= {"name": spec.name, "kind": spec.kind}
                try:
                    record = await own.registry.create(own.org, spec)
                except Conflict as error:
                    raise Conflict(error.index, f"There is a server named {spec.name!r} already.") from None
                deed.resource = record.id
            return record, await refreshed(own, record) if refresh else None

    record, report = run(work())
    if common.json:
        emit_json({**view(record), "refresh": report})
        return
    say(f"Registered {record.name}: agents reach it at {_reached(record)}.")
    if report is not None:
        _say_report(record, report)


def _reached(record: Upstream) -> str:
    if record.kind != "http":
        return f"/mcp/{record.name}"
    return "/api/agenticmail" if record.catalog else f"/http/{record.name}, and its tools at /mcp"


@upstreams.command("list")
@common_options
def list_(common: Common) -> None:
    """All registered servers."""

    async def work() -> list[dict[str, Any]]:
        async with house(common) as own:
            registry = own.registry
            return [
                {**view(record), "tools": sum(not tool.gone for tool in await registry.tools.all(own.org, record.name))}
                for record in await registry.all(own.org)
            ]

    rows = run(work())
    if common.json:
        emit_json(rows)
        return
    table(
        ("NAME", "KIND", "STATE", "TOOLS", "WHERE"),
        [
            (row["name"], row["kind"], "active" if row["enabled"] else "disabled", row["tools"], where(row))
            for row in rows
        ],
        "No servers yet: agenticmail-enterprise upstreams add http NAME URL",
    )


@upstreams.command("refresh")
@click.argument("name")
@common_options
def refresh_(common: Common, name: str) -> None:
    """Ask a server what it offers, now. Exit 1 when it does not answer."""

    async def work() -> tuple[Upstream, ListingReport]:
        async with house(common) as own:
            record = await own.registry.by_name(own.org, name)
            async with own.deed("upstream.refresh", record.id):
                return record, await refreshed(own, record)

    record, report = run(work())
    if not report.ok:
        raise UpstreamError(f"{record.name} did not say what it offers: {report.error}", upstream=record.name)
    if common.json:
        emit_json(report)
        return
    _say_report(record, report)


@upstreams.command("remove")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
def remove(common: Common, name: str, yes: bool) -> None:
    """Remove a server and what is known of its tools. Records of calls stay."""
    confirm(f"Remove the server {name!r}?", yes)

    async def work() -> Upstream:
        async with house(common) as own:
            registry = own.registry
            record: Upstream = await registry.by_name(own.org, name)
            async with own.deed("upstream.delete", record.id) as deed:
                deed.details["name"] = record.name
                await registry.delete(own.org, record.id)
            return record

    record = run(work())
    if common.json:
        emit_json({"removed": record.id, "name": record.name})
        return
    say(f"Removed {record.name}.")


@upstreams.command("enable")
@click.argument("name")
@common_options
def enable(common: Common, name: str) -> None:
    """Serve a registered server again."""
    _switch(common, name, enabled=True)


@upstreams.command("disable")
@click.argument("name")
@common_options
def disable(common: Common, name: str) -> None:
    """Keep a server registered, but let no call through to it."""
    _switch(common, name, enabled=False)


def _switch(common: Common, name: str, *, enabled: bool) -> None:
    async def work() -> Upstream:
        async with house(common) as own:
            registry = own.registry
            record = await registry.by_name(own.org, name)
            spec = msgspec.structs.replace(spec_of(record), enabled=enabled)
            async with own.deed("upstream.update", record.id) as deed:
                deed.details |= {"name": record.name, "kind": record.kind, "enabled": str(enabled).lower()}
                changed: Upstream = await registry.replace(own.org, record.id, spec, record.version)
            return changed

    record = run(work())
    if common.json:
        emit_json(view(record))
        return
    say(f"{record.name} is {'served' if record.enabled else 'not served any more'}.")


@upstreams.command("tools")
@click.argument("name")
@common_options
def tools(common: Common, name: str) -> None:
    """What a server offers, as the gateway knows it: id, risk, side effects, pin."""

    async def work() -> list[ToolRecord]:
        async with house(common) as own:
            registry = own.registry
            record = await registry.by_name(own.org, name)
            found: list[ToolRecord] = await registry.tools.all(own.org, record.name)
            return found

    found = run(work())
    if common.json:
        emit_json([tool_view(tool) for tool in found])
        return
    table(
        ("TOOL", "KIND", "RISK", "SIDE EFFECTS", "STATE", "DESCRIPTION"),
        [(tool.tool_id, tool.kind, tool.risk, ", ".join(tool.side_effects), tool_state(tool),
          pointing(tool.title or tool.description.partition("\n")[0])[:60]) for tool in found],
        f"Nothing is known of it yet: agenticmail-enterprise upstreams refresh {name}",
    )  # fmt: skip


@upstreams.command("correct")
@click.argument("tool_id")
@click.option("--risk", type=click.Choice(get_args(Risk)), help="What its risk really is.")
@click.option(
    "--side-effect", "effects", multiple=True, type=click.Choice(get_args(SideEffect)), help="May be repeated."
)
@click.option("--no-side-effects", is_flag=True, help="It has none.")
@click.option("--skill", "skills", multiple=True, help="A skill it belongs to. May be repeated.")
@click.option("--accept-pin", is_flag=True, help="Approve the definition that the server offers now.")
@common_options
def correct(
    common: Common, tool_id: str, risk: Risk | None, effects: tuple[SideEffect, ...], no_side_effects: bool,
    skills: tuple[str, ...], accept_pin: bool,
) -> None:  # fmt: skip
    """Correct what is known of a tool (SERVER__TOOL), or approve its changed definition."""
    correction = Correction(
        risk=risk or msgspec.UNSET, side_effects=effects if effects or no_side_effects else msgspec.UNSET,
        skills=skills or msgspec.UNSET, accept_pin=accept_pin,
    )  # fmt: skip
    if correction == Correction():
        raise click.UsageError(
            "Say what to correct: --risk, --side-effect, --no-side-effects, --skill or --accept-pin."
        )

    async def work() -> ToolRecord:
        async with house(common) as own:
            registry = own.registry
            upstream, record = await _tool(own, registry, tool_id)
            async with own.deed("tool.correct", record.id) as deed:
                changed: ToolRecord = await registry.tools.correct(upstream, record.id, correction, record.version)
                deed.details |= {"tool": changed.tool_id, "risk": changed.risk, "accepted": str(accept_pin).lower()}
            return changed

    record = run(work())
    if common.json:
        emit_json(tool_view(record))
        return
    effects_now = ", ".join(record.side_effects) or "none"
    say(f"{record.tool_id}: risk {record.risk}, side effects {effects_now}, {tool_state(record)}.")


async def _tool(own: House, registry: Any, tool_id: str) -> tuple[Upstream, ToolRecord]:
    for upstream in await registry.all(own.org):
        for record in await registry.tools.all(own.org, upstream.name):
            if record.tool_id == tool_id:
                return upstream, record
    raise NotFound(f"No server offers {tool_id!r}.", hint="agenticmail-enterprise upstreams tools NAME lists them.")


# -- asking servers ----------------------------------------------------------------------------------------------
async def refreshed(own: House, record: Upstream) -> ListingReport:
    """Ask a server what it offers and note it. A server that does not answer is a report."""
    async with asking(own) as live:
        return await live.refresh(own.org, record.id)


@asynccontextmanager
async def asking(own: House) -> AsyncIterator[Upstreams]:
    """Conversations of this command's own with servers, through the same doors as the gateway's."""
    from ..doors.stdio import StdioLive
    from ..stores import adapter

    live = Upstreams(
        own.store, own.registry, lambda record, secrets: StdioLive(record, secrets, adapter("upstreams.mux")),
        lambda: None,
    )  # fmt: skip
    try:
        yield live
    finally:
        await live.close(1.0)


def _say_report(record: Upstream, report: ListingReport) -> None:
    if report.ok:
        say(f"It offers {report.tools} tools, resources and prompts; {report.changed} of them new or changed.")
    else:
        say(f"It does not answer yet: {pointing(report.error)}")
        say(f"When it does: agenticmail-enterprise upstreams refresh {record.name}")


# -- how they are shown ------------------------------------------------------------------------------------------
def view(record: Upstream) -> dict[str, Any]:
    """An upstream as it may be shown: a stored secret is `set`."""
    shown = {
        name: getattr(record, name)
        for name in ("id", "name", "kind", "enabled", "url", "cwd", "headers", "env", "allow_private", "verify_tls",
                     "timeout_ms", "connect_timeout_ms", "max_connections", "pin_policy", "catalog", "created_at")
    }  # fmt: skip
    command = [record.command, *record.args] if record.command else []
    return {**shown, "command": command, "routes": len(record.routes),
            "secrets": dict.fromkeys(record.secrets, KEPT)}  # fmt: skip


def where(row: dict[str, Any]) -> str:
    return str(row["url"]) or " ".join(row["command"])


def tool_state(tool: ToolRecord) -> str:
    """In one word: gone, changed since it was approved, corrected by a person, or as first seen."""
    if tool.gone:
        return "gone"
    if tool.pin != tool.seen:
        return "changed"
    return "corrected" if tool.corrected else "pinned"


def tool_view(tool: ToolRecord) -> dict[str, Any]:
    shown = {name: getattr(tool, name) for name in
             ("id", "tool_id", "upstream", "kind", "name", "title", "description", "risk", "side_effects", "skills",
              "corrected", "pin", "seen", "gone")}  # fmt: skip
    return {**shown, "state": tool_state(tool)}
