"""`/api/keys`: API keys are made (shown once), listed and revoked. None can be read again, changed or widened."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Annotated

import msgspec

from ...catalog.errors import PreconditionFailed
from ...catalog.records import KEYS, KeyKind
from ...gateway.accounts import PRINTABLE
from ...gateway.keys import DEFAULT_DAYS, KeySpec
from .. import show
from ..examples import AGENT_ID, KEY_ID
from ..operation import Context, Example, Listing, Reply, operation
from ..paging import Moment, PageQuery, View, listing


class KeyIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A key to be made. An agent's key needs `agent_id` and no scopes; a program's needs `scopes`. `expires_at` left
    out: in 90 days, or with the key that makes it, whichever is first; null: as late as the key that makes it."""

    kind: KeyKind
    agent_id: str = ""
    name: Annotated[str, msgspec.Meta(max_length=128, pattern=PRINTABLE)] = ""
    scopes: Annotated[tuple[str, ...], msgspec.Meta(max_length=50)] = ()
    allowed_ips: Annotated[tuple[str, ...], msgspec.Meta(max_length=50)] = ()
    expires_at: Moment | msgspec.UnsetType | None = msgspec.UNSET


class KeyQuery(PageQuery, kw_only=True):
    """`agent_id`: only that agent's keys."""

    agent_id: str | msgspec.UnsetType = msgspec.UNSET


def _now() -> int:
    return int(time.time() * 1000)


@operation(
    "GET", "/api/keys", tag="keys", scope="keys:read", role="admin", query=KeyQuery, returns=show.KeyOut, listing=True,
    example=Example(query={"agent_id": AGENT_ID}),
)  # fmt: skip
async def list_keys(ctx: Context, query: KeyQuery) -> Listing:
    """The API keys of this organisation, oldest first, revoked ones included. Never a key itself."""
    where = {"org": ctx.org}
    index = "by_org"
    if not isinstance(query.agent_id, msgspec.UnsetType):
        where, index = {"org": ctx.org, "agent_id": query.agent_id}, "by_agent"
    now = _now()
    return await listing(ctx, query, View(entity=KEYS, index=index, where=where), lambda record: show.key(record, now))


@operation(
    "POST", "/api/keys", tag="keys", scope="keys:create", role="admin", body=KeyIn, returns=show.NewKeyOut, status=201,
    audit="key.create", once=("key",),
    example=Example(body={"kind": "agent", "agent_id": AGENT_ID, "name": "laptop", "allowed_ips": ["203.0.113.0/24"]}),
)  # fmt: skip
async def create_key(ctx: Context, body: KeyIn) -> Reply:
    """Make an API key. It is shown in this answer and never again.

    A key makes keys only with the scope keys:create, and only lesser ones: scopes from its own without keys:create and
    *, an expiry no later and addresses no wider than its own. So an agent's key, and a program's key without that
    scope, can make none, and no key can widen itself. Only a key that holds * makes agents' keys. The command line
    makes any.
    """
    now = _now()
    spec = KeySpec(
        kind=body.kind, agent_id=body.agent_id, name=body.name, scopes=body.scopes, allowed_ips=body.allowed_ips,
        expires_at=_expiry(body.expires_at, now, ctx.principal.expires_at),
    )  # fmt: skip
    record, secret = await ctx.runtime.accounts.mint(
        ctx.org, spec, created_by=ctx.principal.key_id, minter=ctx.principal
    )  # fmt: skip
    ctx.resource = record.id
    ctx.details |= {"kind": record.kind, "scopes": " ".join(record.scopes), "agent": record.agent_id}
    return Reply(show.new_key(record, secret, now), record.version, f"/api/keys/{record.id}")


def _expiry(wanted: datetime | msgspec.UnsetType | None, now: int, own: int) -> int:
    """When the key ends, in milliseconds; 0 for never (the minter's own end still holds)."""
    if wanted is None:
        return 0
    if isinstance(wanted, msgspec.UnsetType):
        usual = now + int(timedelta(days=DEFAULT_DAYS).total_seconds() * 1000)
        return min(usual, own) if own else usual
    return max(1, int(wanted.timestamp() * 1000))


@operation(
    "GET", "/api/keys/{id}", tag="keys", scope="keys:read", role="admin", returns=show.KeyOut,
    example=Example(path={"id": KEY_ID}),
)  # fmt: skip
async def get_key(ctx: Context) -> Reply:
    """One API key: what it may do, for whom and until when."""
    record = await ctx.runtime.accounts.key(ctx.org, ctx.path["id"])
    return Reply(show.key(record, _now()), record.version)


@operation(
    "DELETE", "/api/keys/{id}", tag="keys", scope="keys:revoke", role="admin", returns=show.KeyOut,
    audit="key.revoke", errors=(PreconditionFailed,), example=Example(path={"id": KEY_ID}),
)  # fmt: skip
async def revoke_key(ctx: Context) -> Reply:
    """Revoke an API key, at once and for good.

    It stays in the list, so that records which name it can be read. Revoking it again changes nothing.
    """
    accounts = ctx.runtime.accounts
    ctx.match((await accounts.key(ctx.org, ctx.path["id"])).version)
    record = await accounts.revoke(ctx.org, ctx.path["id"])
    return Reply(show.key(record, _now()), record.version)
