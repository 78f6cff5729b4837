"""`/api/gateway/upstreams`: the servers behind the gateway and the tools they offer. Changes hold without a restart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...catalog.errors import Conflict, EnterpriseError, PreconditionFailed, Stale
from ...catalog.records import TOOLS, UPSTREAMS, Upstream
from ...gateway.scopes import STDIO
from ...gateway.tools_registry import Correction
from ...gateway.upstream_spec import KEPT, UpstreamSpec, spec_of
from .. import show
from ..examples import TOOL_ID, UPSTREAM_ID
from ..operation import Context, Example, Listing, Reply, operation
from ..paging import PageQuery, View, listing

_BODY = {
    "name": "files",
    "kind": "mcp_http",
    "url": "https://mcp.example.com/mcp",
    "headers": {"X-Team": "growth"},
    "secrets": {"Authorization": "Bearer upstream-token"},
}


@operation(
    "GET", "/api/gateway/upstreams", tag="upstreams", scope="upstreams:read", query=PageQuery,
    returns=show.UpstreamOut, listing=True, example=Example(query={"limit": "20"}),
)  # fmt: skip
async def list_upstreams(ctx: Context, query: PageQuery) -> Listing:
    """The registered servers, oldest first."""
    return await listing(ctx, query, View(entity=UPSTREAMS, index="by_org", where={"org": ctx.org}), show.upstream)


@operation(
    "POST", "/api/gateway/upstreams", tag="upstreams", scope="upstreams:write", role="admin", body=UpstreamSpec,
    returns=show.UpstreamOut, status=201, audit="upstream.create", errors=(Conflict,), example=Example(body=_BODY),
)  # fmt: skip
async def create_upstream(ctx: Context, body: UpstreamSpec) -> Reply:
    """Register a server, and ask it at once what it offers.

    `secrets` are headers (mcp_http) or environment variables (mcp_stdio) that are encrypted at rest and never shown
    again. A server that is started as a child process (mcp_stdio) also needs the scope upstreams:stdio. A server that
    does not answer is registered all the same; `listing` says what came of asking.
    """
    _require_stdio(ctx, body)
    record = await ctx.runtime.registry.create(ctx.org, body)
    ctx.resource = record.id
    ctx.details |= {"name": record.name, "kind": record.kind}
    found = await _refresh(ctx, record)
    return Reply(show.upstream(record, found), record.version, f"/api/gateway/upstreams/{record.id}")


@operation(
    "GET", "/api/gateway/upstreams/{id}", tag="upstreams", scope="upstreams:read", returns=show.UpstreamOut,
    example=Example(path={"id": UPSTREAM_ID}),
)  # fmt: skip
async def get_upstream(ctx: Context) -> Reply:
    """One server."""
    record = await ctx.runtime.registry.upstream(ctx.org, ctx.path["id"])
    return Reply(show.upstream(record), record.version)


async def _upstream_now(ctx: Context, patch: Mapping[str, Any]) -> tuple[UpstreamSpec, int]:
    record = await ctx.runtime.registry.upstream(ctx.org, ctx.path["id"])
    spec = spec_of(record)
    if "secrets" in patch:  # those that the patch does not name stay
        spec.secrets = dict.fromkeys(record.secrets, KEPT)
    if "openapi" in patch or patch.get("kind", record.kind) != "http":
        spec.routes = ()  # read anew from the document, or meant for another kind
    return spec, record.version


@operation(
    "PUT", "/api/gateway/upstreams/{id}", tag="upstreams", scope="upstreams:write", role="admin", body=UpstreamSpec,
    returns=show.UpstreamOut, current=_upstream_now, audit="upstream.update", errors=(Stale, PreconditionFailed),
    example=Example(
        path={"id": UPSTREAM_ID},
        body={"name": "mail", "url": "https://mcp.example.com/v2", "secrets": {"Authorization": "set"}},
    ),
)  # fmt: skip
async def replace_upstream(ctx: Context, body: UpstreamSpec) -> Reply:
    """Say everything about a server anew, and ask it again what it offers.

    Its name stays. `secrets` left out: all of them stay; a value of `set` keeps that one; names left out are removed.
    When the server moves to another host or command, its secrets must be sent again.
    """
    _require_stdio(ctx, body)
    registry = ctx.runtime.registry
    stored = await registry.upstream(ctx.org, ctx.path["id"])
    version = stored.version if ctx.match(stored.version) else None
    record = await registry.replace(ctx.org, stored.id, body, version)
    ctx.details |= {"name": record.name, "kind": record.kind}
    return Reply(show.upstream(record, await _refresh(ctx, record)), record.version)


@operation(
    "DELETE", "/api/gateway/upstreams/{id}", tag="upstreams", scope="upstreams:write", role="admin", returns=None,
    status=204, audit="upstream.delete", errors=(Stale, PreconditionFailed), example=Example(path={"id": UPSTREAM_ID}),
)  # fmt: skip
async def delete_upstream(ctx: Context) -> None:
    """Remove a server and all that is known of its tools. Calls to it are denied from here on."""
    registry = ctx.runtime.registry
    stored = await registry.upstream(ctx.org, ctx.path["id"])
    ctx.details["name"] = stored.name
    await registry.delete(ctx.org, stored.id, stored.version if ctx.match(stored.version) else None)


@operation(
    "POST", "/api/gateway/upstreams/{id}/refresh", tag="upstreams", scope="upstreams:write", role="admin",
    returns=show.ListingOut, audit="upstream.refresh", example=Example(path={"id": UPSTREAM_ID}),
)  # fmt: skip
async def refresh_upstream(ctx: Context) -> Reply:
    """Ask a server again what it offers."""
    record = await ctx.runtime.registry.upstream(ctx.org, ctx.path["id"])
    return Reply(await _refresh(ctx, record))


@operation(
    "GET", "/api/gateway/upstreams/{id}/tools", tag="upstreams", scope="upstreams:read", query=PageQuery,
    returns=show.UpstreamToolOut, listing=True, example=Example(path={"id": UPSTREAM_ID}, query={"limit": "100"}),
)  # fmt: skip
async def list_upstream_tools(ctx: Context, query: PageQuery) -> Listing:
    """What a server offers: tools, resources, templates and prompts, with the risk that is believed of each."""
    record = await ctx.runtime.registry.upstream(ctx.org, ctx.path["id"])
    view = View(entity=TOOLS, index="by_upstream", where={"org": ctx.org, "upstream": record.name})
    return await listing(ctx, query, view, show.upstream_tool)


async def _tool_now(ctx: Context, patch: Mapping[str, Any]) -> tuple[Correction, int]:
    registry = ctx.runtime.registry
    upstream = await registry.upstream(ctx.org, ctx.path["id"])
    return Correction(), (await registry.tools.tool(ctx.org, upstream.name, ctx.path["tool"])).version


@operation(
    "PUT", "/api/gateway/upstreams/{id}/tools/{tool}", tag="upstreams", scope="upstreams:write", role="admin",
    body=Correction, returns=show.UpstreamToolOut, current=_tool_now, audit="tool.correct",
    errors=(Stale, PreconditionFailed),
    example=Example(
        path={"id": UPSTREAM_ID, "tool": TOOL_ID},
        body={"risk": "high", "side_effects": ["sends-email"], "skills": ["email-management"], "accept_pin": True},
    ),
)  # fmt: skip
async def correct_tool(ctx: Context, body: Correction) -> Reply:
    """Correct what is believed of a tool, or accept its changed definition.

    What is left out stays. Risk, side effects and skills that a person set are kept whatever the server says later.
    """
    registry = ctx.runtime.registry
    upstream = await registry.upstream(ctx.org, ctx.path["id"])
    stored = await registry.tools.tool(ctx.org, upstream.name, ctx.path["tool"])
    version = stored.version if ctx.match(stored.version) else None
    record = await registry.tools.correct(upstream, stored.id, body, version)
    ctx.resource = record.id
    ctx.details |= {"tool": record.tool_id[:200], "risk": record.risk, "accepted": str(body.accept_pin).lower()}
    return Reply(show.upstream_tool(record), record.version)


def _require_stdio(ctx: Context, body: UpstreamSpec) -> None:
    if body.kind == "mcp_stdio":
        ctx.require(STDIO)


async def _refresh(ctx: Context, record: Upstream) -> show.ListingOut:
    """Ask a server what it offers. Whatever comes of it, the server's registration stands."""
    try:
        report = await ctx.runtime.upstreams.refresh(ctx.org, record.id)
    except EnterpriseError as error:
        return show.ListingOut(ok=False, error=error.message, tools=0)
    return show.ListingOut(ok=report.ok, error=report.error, tools=report.tools)
