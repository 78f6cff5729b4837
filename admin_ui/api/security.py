"""`/auth/2fa` and `/auth/sessions`: one's own second factor and sign-ins."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ...catalog.errors import BadRequest, SecondFactorRequired, SignInFailed, Stale, TooManyRequests, ValidationFailed
from ...catalog.records import Session, User
from ...gateway.people.directory import Password
from .. import show
from ..examples import CODE, PASSWORD, SESSION_ID
from ..operation import Context, Example, Listing, Reply, operation
from ..paging import PageQuery, of_sequence
from .auth import Code


class ProofIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Your password again, and a code where a second factor is on."""

    password: Password
    code: Code = ""


class ConfirmIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the authenticator app shows now."""

    code: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class SetupOut(msgspec.Struct, kw_only=True):
    """For the authenticator app: `uri` as a QR code, or `secret` by hand. It counts once a code confirmed it."""

    secret: str
    uri: str


class CodesOut(msgspec.Struct, kw_only=True):
    """Recovery codes, each good once, for when the app is lost. Shown this once."""

    recovery_codes: list[str]


class FactorOut(msgspec.Struct, kw_only=True):
    """Whether a second factor is on."""

    second_factor: bool


class SessionOut(msgspec.Struct, kw_only=True):
    """One sign-in. `current`: this very one."""

    id: str
    kind: str
    method: str
    ip: str
    agent: str
    created_at: show.Time
    seen_at: show.Time
    expires_at: show.Time
    current: bool


async def _user(ctx: Context) -> User:
    user = await ctx.runtime.people.directory.user(ctx.org, ctx.person.user_id)
    ctx.resource = user.id
    return user


async def _prove(ctx: Context, user: User, body: ProofIn) -> None:
    """The password, and a code where a second factor is on. ValidationFailed, SecondFactorRequired, TooManyRequests."""
    people = ctx.runtime.people
    await people.sign_in.confirm_password(user, body.password)
    if not await people.factors.is_on(user):
        return
    if not body.code:
        raise SecondFactorRequired
    people.throttle.code(ctx.ip, user.id, ctx.person.session_id)
    try:
        await people.factors.check(user, body.code)
    except SignInFailed:
        raise ValidationFailed([("/code", "wrong_code", "This code is wrong, or was used already.")]) from None


@operation(
    "POST", "/auth/2fa/setup", tag="auth", person=True, body=ProofIn, returns=SetupOut, audit="auth.2fa_setup",
    errors=(SecondFactorRequired, TooManyRequests, Stale), example=Example(body={"password": PASSWORD, "code": CODE}),
)  # fmt: skip
async def setup_second_factor(ctx: Context, body: ProofIn) -> Reply:
    """Begin with a second factor, or with a new one in place of the old, which stays on until the new is confirmed."""
    user = await _user(ctx)
    await _prove(ctx, user, body)
    setup = await ctx.runtime.people.factors.begin(user)
    return Reply(SetupOut(secret=setup.secret, uri=setup.uri))


@operation(
    "POST", "/auth/2fa/confirm", tag="auth", person=True, body=ConfirmIn, returns=CodesOut, audit="auth.2fa_on",
    errors=(TooManyRequests, BadRequest, Stale), example=Example(body={"code": CODE}),
)  # fmt: skip
async def confirm_second_factor(ctx: Context, body: ConfirmIn) -> Reply:
    """Switch the second factor on: the app shows the right code. The recovery codes are shown this once."""
    user = await _user(ctx)
    people = ctx.runtime.people
    people.throttle.code(ctx.ip, user.id, ctx.person.session_id)
    codes = await people.factors.confirm(user, body.code)
    await people.sign_in.upgrade(ctx.person.session_id, ctx.org)
    return Reply(CodesOut(recovery_codes=codes))


@operation(
    "POST", "/auth/2fa/recovery-codes", tag="auth", person=True, body=ProofIn, returns=CodesOut,
    audit="auth.recovery_codes", errors=(SecondFactorRequired, TooManyRequests, BadRequest, Stale),
    example=Example(body={"password": PASSWORD, "code": CODE}),
)  # fmt: skip
async def renew_recovery_codes(ctx: Context, body: ProofIn) -> Reply:
    """New recovery codes; the old ones are worth nothing from here on."""
    user = await _user(ctx)
    await _prove(ctx, user, body)
    return Reply(CodesOut(recovery_codes=await ctx.runtime.people.factors.renew_codes(user)))


@operation(
    "POST", "/auth/2fa/disable", tag="auth", person=True, body=ProofIn, returns=FactorOut, audit="auth.2fa_off",
    errors=(SecondFactorRequired, TooManyRequests), example=Example(body={"password": PASSWORD, "code": CODE}),
)  # fmt: skip
async def disable_second_factor(ctx: Context, body: ProofIn) -> Reply:
    """Switch the second factor off."""
    user = await _user(ctx)
    await _prove(ctx, user, body)
    await ctx.runtime.people.factors.remove(user)
    return Reply(FactorOut(second_factor=False))


# -- sign-ins ----------------------------------------------------------------------------------------------------
def _session(record: Session, own: str) -> SessionOut:
    return SessionOut(
        id=record.id, kind=record.kind, method=record.method, ip=record.ip, agent=record.agent,
        created_at=show.moment(record.created_at), seen_at=show.moment(record.seen_at),
        expires_at=show.moment(record.expires_at), current=record.id == own,
    )  # fmt: skip


@operation(
    "GET", "/auth/sessions", tag="auth", person=True, query=PageQuery, returns=SessionOut, listing=True,
    example=Example(),
)  # fmt: skip
async def list_my_sessions(ctx: Context, query: PageQuery) -> Listing:
    """Where you are signed in, oldest first."""
    user = await _user(ctx)
    now = ctx.runtime.people.sign_in.now()
    live = [item for item in await ctx.runtime.people.directory.sessions(user) if item.expires_at > now]
    own = ctx.person.session_id
    return of_sequence(ctx, query, [_session(item, own) for item in live], f"sessions:{user.id}")


@operation(
    "DELETE", "/auth/sessions/{id}", tag="auth", person=True, returns=None, status=204, audit="auth.session_end",
    example=Example(path={"id": SESSION_ID}),
)  # fmt: skip
async def end_my_session(ctx: Context) -> None:
    """End one of your sign-ins."""
    user = await _user(ctx)
    ctx.resource = ctx.path["id"]
    await ctx.runtime.people.directory.end_session(user, ctx.path["id"])
