"""`/auth`: signing in, staying signed in, signing out, and passwords."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from ...catalog.calls import Person
from ...catalog.errors import (
    CrossSite,
    LinkInvalid,
    SecondFactorRequired,
    SignInFailed,
    Stale,
    TooManyRequests,
    Unauthenticated,
)
from ...catalog.records import SessionKind, User
from ...gateway.people.directory import Email, Password, PersonName
from ...gateway.people.signin import Attempt, SignedIn
from ...gateway.people.tokens import DEVICE_SECONDS
from ...gateway.scopes import ROLE_SCOPES
from .. import show
from ..examples import CHALLENGE, CODE, EMAIL, LINK_TOKEN, PASSWORD, REFRESH_TOKEN, SIGN_IN_TOKEN
from ..operation import NO_AUDIT, Context, Example, Reply, operation

DEVICE: Final = "-device"
"""Suffix of the cookie that tells a device from strangers'."""

Code = Annotated[str, msgspec.Meta(max_length=64)]
Secret = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
Device = Annotated[str, msgspec.Meta(max_length=200)]


class LoginIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`code`: of the authenticator app, or a recovery code, where a second factor is on. `device`: what an earlier
    sign-in gave back; with it somebody else's guessing does not slow this down."""

    email: Email
    password: Password
    code: Code = ""
    device: Device = ""


class CodeIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The second step: `challenge` as the first one gave it."""

    challenge: Secret
    code: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    device: Device = ""


class LinkIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A one-time sign-in link's token."""

    token: Secret
    code: Code = ""


class RefreshIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A refresh token, which is used up by this."""

    refresh_token: Secret


class MeIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What people say about themselves."""

    name: PersonName


class PasswordIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A new password, and the present one."""

    current_password: Password
    new_password: Password


class ForgotIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whose password is lost."""

    email: Email


class ResetIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A password by one-time link: `token` as the link has it."""

    token: Secret
    password: Password


class TokensOut(msgspec.Struct, kw_only=True):
    """`token` goes into `Authorization: Bearer`, for `expires_in` seconds; `refresh_token` gets the next pair, once."""

    token: str
    token_type: Literal["Bearer"]
    expires_in: int
    refresh_token: str
    session_id: str
    session_expires_at: show.Time
    device: str
    user: show.UserOut


class PageOut(msgspec.Struct, kw_only=True):
    """A page's sign-in: its secret is in a cookie that no script can read."""

    session_id: str
    session_expires_at: show.Time
    user: show.UserOut


class MeOut(msgspec.Struct, kw_only=True):
    """Who is signed in, and what they may do. `limited`: a second factor is asked for and is not set up yet."""

    user: show.UserOut
    org: str
    scopes: list[str]
    second_factor: bool
    recovery_codes_left: int
    limited: bool
    session_id: str


class DoneOut(msgspec.Struct, kw_only=True):
    """It is done; `sessions_ended` by it."""

    sessions_ended: int = 0


class ForgotOut(msgspec.Struct, kw_only=True):
    """The same whether there is such a person or not."""

    message: str


_FAILURES = (SignInFailed, SecondFactorRequired, TooManyRequests)
FORGOT: Final = "If somebody here has this address, they were sent a link, or an administrator was told to make one."


# -- signing in --------------------------------------------------------------------------------------------------
def _attempt(ctx: Context, device: str = "") -> Attempt:
    device = device or ctx.runtime.people.who.cookie(ctx.headers, DEVICE)
    return Attempt(ctx.ip, ctx.headers.get("User-Agent", ""), device)


def _concerns(ctx: Context, attempt: Attempt) -> None:
    """A refusal is put on the record of the person's organisation, once it is known whom it was about."""
    if attempt.user is not None:
        ctx.about, ctx.resource = attempt.user.org, attempt.user.id


def _came_in(ctx: Context, signed: SignedIn) -> None:
    user, session = signed.user, signed.session
    ctx.principal = Person(user.org, user.id, user.role, ROLE_SCOPES[user.role], session_id=session.id)
    ctx.resource = user.id
    ctx.details |= {"method": session.method, "session": session.id, "kind": session.kind}


def _tokens(ctx: Context, signed: SignedIn) -> Reply:
    _came_in(ctx, signed)
    return Reply(
        TokensOut(
            token=signed.access, token_type="Bearer", expires_in=ctx.runtime.people.settings.access_seconds,  # noqa: S106
            refresh_token=signed.refresh, session_id=signed.session.id,
            session_expires_at=show.moment(signed.session.expires_at), device=signed.device,
            user=show.user(signed.user),
        )
    )  # fmt: skip


def _page(ctx: Context, signed: SignedIn) -> Reply:
    _came_in(ctx, signed)
    who = ctx.runtime.people.who
    seconds = max(1, (signed.session.expires_at - ctx.runtime.people.sign_in.now()) // 1000)
    out = PageOut(
        session_id=signed.session.id, session_expires_at=show.moment(signed.session.expires_at),
        user=show.user(signed.user),
    )  # fmt: skip
    cookies = (
        who.set_cookie(ctx.headers, signed.cookie, seconds),
        who.set_cookie(ctx.headers, signed.device, DEVICE_SECONDS, DEVICE),
    )
    return Reply(out, cookies=cookies)


async def _with_password(ctx: Context, body: LoginIn, kind: SessionKind) -> SignedIn:
    attempt = _attempt(ctx, body.device)
    try:
        return await ctx.runtime.people.sign_in.with_password(body.email, body.password, body.code, attempt, kind)
    finally:
        _concerns(ctx, attempt)


async def _with_code(ctx: Context, body: CodeIn, kind: SessionKind) -> SignedIn:
    attempt = _attempt(ctx, body.device)
    try:
        return await ctx.runtime.people.sign_in.with_code(body.challenge, body.code, attempt, kind)
    finally:
        _concerns(ctx, attempt)


async def _with_link(ctx: Context, body: LinkIn, kind: SessionKind) -> SignedIn:
    attempt = _attempt(ctx)
    try:
        return await ctx.runtime.people.sign_in.with_link(body.token, body.code, attempt, kind)
    finally:
        _concerns(ctx, attempt)


@operation(
    "POST", "/auth/login", tag="auth", public=True, body=LoginIn, returns=TokensOut, audit="auth.login",
    errors=_FAILURES, example=Example(body={"email": EMAIL, "password": PASSWORD}),
)  # fmt: skip
async def login(ctx: Context, body: LoginIn) -> Reply:
    """Sign in with e-mail and password, for programs and command lines; pages use POST /auth/session.

    Where a second factor is on and no code is given: 401 SECOND_FACTOR_REQUIRED with a `challenge` for
    POST /auth/login/second-factor, valid for five minutes. Everything that is not right is 401 SIGN_IN_FAILED.
    """
    return _tokens(ctx, await _with_password(ctx, body, "token"))


@operation(
    "POST", "/auth/login/second-factor", tag="auth", public=True, body=CodeIn, returns=TokensOut, audit="auth.login",
    errors=(SignInFailed, Unauthenticated, TooManyRequests),
    example=Example(body={"challenge": CHALLENGE, "code": CODE}),
)  # fmt: skip
async def login_second_factor(ctx: Context, body: CodeIn) -> Reply:
    """The second step of signing in: the code of the app, or a recovery code. Each is taken once."""
    return _tokens(ctx, await _with_code(ctx, body, "token"))


@operation(
    "POST", "/auth/login/link", tag="auth", public=True, body=LinkIn, returns=TokensOut, audit="auth.login",
    errors=(LinkInvalid, *_FAILURES), example=Example(body={"token": SIGN_IN_TOKEN}),
)  # fmt: skip
async def login_link(ctx: Context, body: LinkIn) -> Reply:
    """Sign in with a one-time link, as the command line makes them. It stands for the password only."""
    return _tokens(ctx, await _with_link(ctx, body, "token"))


@operation(
    "POST", "/auth/session", tag="auth", public=True, body=LoginIn, returns=PageOut, audit="auth.login",
    errors=(*_FAILURES, CrossSite),
    example=Example(body={"email": EMAIL, "password": PASSWORD}, headers={"Sec-Fetch-Site": "same-origin"}),
)  # fmt: skip
async def open_session(ctx: Context, body: LoginIn) -> Reply:
    """Sign in for pages: a cookie that no script can read, taken from pages of this origin only."""
    ctx.runtime.people.who.check_page(ctx.headers)
    return _page(ctx, await _with_password(ctx, body, "page"))


@operation(
    "POST", "/auth/session/second-factor", tag="auth", public=True, body=CodeIn, returns=PageOut, audit="auth.login",
    errors=(SignInFailed, Unauthenticated, TooManyRequests, CrossSite),
    example=Example(body={"challenge": CHALLENGE, "code": CODE}, headers={"Sec-Fetch-Site": "same-origin"}),
)  # fmt: skip
async def open_session_second_factor(ctx: Context, body: CodeIn) -> Reply:
    """The second step of signing in for pages."""
    ctx.runtime.people.who.check_page(ctx.headers)
    return _page(ctx, await _with_code(ctx, body, "page"))


@operation(
    "POST", "/auth/session/link", tag="auth", public=True, body=LinkIn, returns=PageOut, audit="auth.login",
    errors=(LinkInvalid, *_FAILURES, CrossSite),
    example=Example(body={"token": SIGN_IN_TOKEN}, headers={"Sec-Fetch-Site": "same-origin"}),
)  # fmt: skip
async def open_session_link(ctx: Context, body: LinkIn) -> Reply:
    """Sign in for pages with a one-time link. The page asks first: a link that is merely fetched does nothing."""
    ctx.runtime.people.who.check_page(ctx.headers)
    return _page(ctx, await _with_link(ctx, body, "page"))


@operation(
    "POST", "/auth/refresh", tag="auth", public=True, body=RefreshIn, returns=TokensOut, audit="auth.refresh",
    errors=(Unauthenticated, TooManyRequests), example=Example(body={"refresh_token": REFRESH_TOKEN}),
)  # fmt: skip
async def refresh(ctx: Context, body: RefreshIn) -> Reply:
    """The next pair of tokens.

    A refresh token is good once: one that comes a second time was copied, so the whole sign-in ends. Refresh one at a
    time, and sign in again where the answer got lost.
    """
    attempt = _attempt(ctx)
    try:
        signed = await ctx.runtime.people.sign_in.refresh(body.refresh_token, attempt)
    finally:
        _concerns(ctx, attempt)
    return _tokens(ctx, signed)


# -- signing out -------------------------------------------------------------------------------------------------
@operation(
    "POST", "/auth/logout", tag="auth", person=True, returns=DoneOut, audit="auth.logout", example=Example(),
)  # fmt: skip
async def logout(ctx: Context) -> Reply:
    """End this sign-in. Its tokens and its cookie are worth nothing from here on."""
    person = ctx.person
    ctx.resource = person.user_id
    ctx.details["session"] = person.session_id
    await ctx.runtime.people.sign_in.logout(ctx.org, person.session_id)
    who = ctx.runtime.people.who
    cookies = (who.set_cookie(ctx.headers, "", 0),) if who.cookie(ctx.headers) else ()
    return Reply(DoneOut(sessions_ended=1), cookies=cookies)


@operation(
    "POST", "/auth/logout-everywhere", tag="auth", person=True, returns=DoneOut, audit="auth.logout_everywhere",
    example=Example(),
)  # fmt: skip
async def logout_everywhere(ctx: Context) -> Reply:
    """End every sign-in of yours, this one too."""
    user = await _me(ctx)
    ctx.resource = user.id
    return Reply(DoneOut(sessions_ended=await ctx.runtime.people.directory.sign_out(user)))


# -- oneself -----------------------------------------------------------------------------------------------------
async def _me(ctx: Context) -> User:
    return await ctx.runtime.people.directory.user(ctx.org, ctx.person.user_id)


async def _me_out(ctx: Context, user: User) -> MeOut:
    person = ctx.person
    factor = await ctx.runtime.people.factors.of(user)
    on = factor is not None and bool(factor.on_at)
    return MeOut(
        user=show.user(user), org=ctx.org, scopes=sorted(person.scopes), second_factor=on,
        recovery_codes_left=len(factor.recovery) if factor is not None and on else 0, limited=person.limited,
        session_id=person.session_id,
    )  # fmt: skip


@operation("GET", "/auth/me", tag="auth", person=True, returns=MeOut, example=Example())
async def get_me(ctx: Context) -> Reply:
    """Who is signed in, and what they may do now."""
    user = await _me(ctx)
    return Reply(await _me_out(ctx, user))


async def _me_now(ctx: Context, patch: Mapping[str, Any]) -> tuple[MeIn, int]:
    user = await _me(ctx)
    return MeIn(name=user.name), user.version


@operation(
    "PUT", "/auth/me", tag="auth", person=True, body=MeIn, returns=MeOut, current=_me_now, audit="user.rename",
    errors=(Stale,), example=Example(body={"name": "Olga Owner"}),
)  # fmt: skip
async def change_me(ctx: Context, body: MeIn) -> Reply:
    """Say your own name. Roles and addresses are for others to change."""
    user = await _me(ctx)
    ctx.match(user.version)
    ctx.resource = user.id
    return Reply(await _me_out(ctx, await ctx.runtime.people.directory.rename(user, body.name)))


@operation(
    "POST", "/auth/password", tag="auth", person=True, body=PasswordIn, returns=DoneOut, audit="auth.password",
    errors=(TooManyRequests, Stale),
    example=Example(body={"current_password": PASSWORD, "new_password": "a-longer-and-newer-one"}),
)  # fmt: skip
async def change_password(ctx: Context, body: PasswordIn) -> Reply:
    """Change your password. Every other sign-in of yours ends, and so do links that were made for you."""
    user = await _me(ctx)
    ctx.resource = user.id
    ended = await ctx.runtime.people.sign_in.change_password(
        user, body.current_password, body.new_password, ctx.person.session_id
    )
    ctx.details["sessions_ended"] = str(ended)
    return Reply(DoneOut(sessions_ended=ended))


# -- lost passwords ----------------------------------------------------------------------------------------------
@operation(
    "POST", "/auth/forgot-password", tag="auth", public=True, body=ForgotIn, returns=ForgotOut, audit=NO_AUDIT,
    errors=(TooManyRequests,), example=Example(body={"email": EMAIL}),
)  # fmt: skip
async def forgot_password(ctx: Context, body: ForgotIn) -> Reply:
    """Ask for a link to set a new password.

    The answer is the same, and comes as soon, whether anybody has this address or not. Where no mail is set up, the
    wish is on the audit, and an administrator makes the link (POST /api/users/{id}/link).
    """
    people = ctx.runtime.people
    people.throttle.source(ctx.ip)

    async def record(user: User | None) -> None:
        if user is not None:
            await ctx.note("auth.forgot_password", user.org, user.id)

    people.send_reset(body.email, record)
    return Reply(ForgotOut(message=FORGOT))


@operation(
    "POST", "/auth/reset-password", tag="auth", public=True, body=ResetIn, returns=DoneOut, audit="auth.reset_password",
    errors=(LinkInvalid, TooManyRequests),
    example=Example(body={"token": LINK_TOKEN, "password": "a-longer-and-newer-one"}),
)  # fmt: skip
async def reset_password(ctx: Context, body: ResetIn) -> Reply:
    """Set a password by one-time link. Every sign-in of the person ends; it signs nobody in."""
    attempt = _attempt(ctx)
    try:
        user = await ctx.runtime.people.sign_in.reset(body.token, body.password, attempt)
    finally:
        _concerns(ctx, attempt)
    ctx.principal = Person(user.org, user.id, user.role, frozenset(), session_id="")
    return Reply(DoneOut())
