"""`/api/settings` and `/api/stats`: what the organisation has set for itself, and how much of everything there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from ...catalog.errors import PreconditionFailed, Stale
from ...catalog.records import (
    AGENTS,
    AUDIT,
    CHAIN_HEADS,
    KEYS,
    UPSTREAMS,
    USERS,
    AgentStatus,
    ChainHead,
    Company,
    Org,
    Role,
)
from ...catalog.store import Entity, Query
from ...gateway.people.company import SECRETS, CompanySpec, version_of
from ...gateway.upstream_spec import KEPT
from .. import show
from ..operation import Context, Example, Reply, operation


class SettingsOut(msgspec.Struct, kw_only=True):
    """The organisation's settings. `secrets` says which are set, never what they are."""

    org: str
    name: str
    domain: str
    contact: str
    timezone: str
    require_second_factor: bool
    session_hours: int
    mail_host: str
    mail_port: int
    mail_user: str
    mail_from: str
    secrets: dict[str, str | None]
    updated_at: show.Time | None
    version: str


class OverviewOut(msgspec.Struct, kw_only=True):
    """Counts, each up to 10,000 but `calls`, which is exact. `refused`: entries of the audit that are refusals."""

    agents: int
    agents_by_status: dict[str, int]
    users: int
    users_by_role: dict[str, int]
    keys: int
    upstreams: int
    calls: int
    audit_entries: int
    refused: int


def _settings(org: Org, company: Company) -> SettingsOut:
    return SettingsOut(
        org=org.id, name=org.name, domain=company.domain, contact=company.contact, timezone=company.timezone,
        require_second_factor=company.require_second_factor, session_hours=company.session_hours,
        mail_host=company.mail_host, mail_port=company.mail_port, mail_user=company.mail_user,
        mail_from=company.mail_from, secrets={name: KEPT if name in company.secrets else None for name in SECRETS},
        updated_at=show.moment_or_none(max(org.updated_at, company.updated_at)), version=version_of(org, company),
    )  # fmt: skip


@operation(
    "GET", "/api/settings", tag="company", scope="settings:read", role="admin", returns=SettingsOut, example=Example(),
)  # fmt: skip
async def get_settings(ctx: Context) -> Reply:
    """The organisation's settings. Secrets are written, never read: `set` or null."""
    org, company = await ctx.runtime.people.companies.read(ctx.org)
    return Reply(_settings(org, company), version_of(org, company))


async def _settings_now(ctx: Context, patch: Mapping[str, Any]) -> tuple[CompanySpec, str]:
    org, company = await ctx.runtime.people.companies.read(ctx.org)
    fields = {item.name: getattr(company, item.name) for item in msgspec.structs.fields(CompanySpec)
              if item.name not in {"name", "secrets"}}  # fmt: skip
    spec = CompanySpec(name=org.name, **fields)
    if "secrets" in patch:  # those that the patch does not name stay
        spec.secrets = dict.fromkeys(company.secrets, KEPT)
    return spec, version_of(org, company)


@operation(
    "PUT", "/api/settings", tag="company", scope="settings:write", role="admin", body=CompanySpec, returns=SettingsOut,
    current=_settings_now, careful=True, audit="settings.update", errors=(Stale, PreconditionFailed),
    example=Example(
        body={
            "name": "Acme", "domain": "acme.test", "timezone": "Europe/Berlin", "mail_host": "smtp.acme.test",
            "mail_from": "gateway@acme.test", "secrets": {"mail_password": "the-mail-servers-own"},
        }
    ),
)  # fmt: skip
async def replace_settings(ctx: Context, body: CompanySpec) -> Reply:
    """Say the organisation's settings anew. Secrets left out stay; given, they are all there are; `set` keeps one."""
    companies = ctx.runtime.people.companies
    before = _settings(*await companies.read(ctx.org))
    version = before.version if ctx.match(before.version) else None
    org, company = await companies.write(ctx.org, body, version)
    after = _settings(org, company)
    ctx.resource = ctx.org
    told = msgspec.structs.asdict(after)
    for name, old in msgspec.structs.asdict(before).items():
        if name not in {"version", "updated_at", "secrets"} and told[name] != old:
            ctx.details[name] = f"{old} -> {told[name]}"
    if not isinstance(body.secrets, msgspec.UnsetType):
        ctx.details["secrets"] = " ".join(sorted(body.secrets))
    return Reply(after, after.version)


@operation(
    "GET", "/api/stats", tag="company", scope="calls:read", returns=OverviewOut, example=Example(),
)  # fmt: skip
async def get_overview(ctx: Context) -> Reply:
    """How many agents, people, keys, servers and calls there are."""
    store, org = ctx.store, ctx.org

    async def count(entity: Entity, index: str = "by_org", **where: str) -> int:
        return await store.count(Query(entity, index, {"org": org, **where}))

    head: ChainHead | None = await store.get(CHAIN_HEADS, org, "calls")
    statuses = {status: await count(AGENTS, "by_status", status=status) for status in get_args(AgentStatus)}
    roles = {role: await count(USERS, "by_role", role=role) for role in get_args(Role)}
    return Reply(
        OverviewOut(
            agents=await count(AGENTS), agents_by_status=statuses, users=await count(USERS), users_by_role=roles,
            keys=await count(KEYS), upstreams=await count(UPSTREAMS), calls=head.seq if head else 0,
            audit_entries=await count(AUDIT), refused=await count(AUDIT, "by_outcome", outcome="refused"),
        )
    )  # fmt: skip
