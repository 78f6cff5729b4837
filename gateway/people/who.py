"""Who sends a request: a key, somebody with an access token, or somebody with a page's cookie.

What a person may do is read from the store at each request, never from the token: after a change of role, a removal, a
suspension or a sign-out the next request fails, in whichever worker it arrives.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Final, Protocol

from ...catalog.calls import Person, Principal
from ...catalog.errors import Unauthenticated
from ...catalog.records import SESSIONS, USERS, Session, User
from ...catalog.store import Store
from ..scopes import ROLE_SCOPES
from ..settings import AuthSettings
from .company import Companies
from .crosssite import SAFE_METHODS, check_same_origin
from .signin import ENDED, SignIn
from .tokens import ACCESS, Tokens, looks_like_jwt

COOKIE: Final = "agenticmail"
SECURE_PREFIX: Final = "__Host-"
"""Only this host, over TLS, for every path: a browser takes such a cookie from nobody else (RFC 6265bis)."""


class KeyHolder(Protocol):
    """Who sends an API key. Raises Unauthenticated."""

    async def resolve(self, headers: Mapping[str, str], ip: str) -> Principal: ...


class Who:
    """One per worker."""

    def __init__(
        self,
        store: Store,
        keys: KeyHolder,
        tokens: Tokens,
        sign_in: SignIn,
        companies: Companies,
        settings: AuthSettings,
    ) -> None:
        self._store = store
        self._keys = keys
        self._tokens = tokens
        self._sign_in = sign_in
        self._companies = companies
        self._settings = settings

    async def resolve(self, method: str, headers: Mapping[str, str], ip: str) -> Principal:
        """The principal of a request. A key or token in a header wins over a cookie, which browsers add by themselves.

        Raises Unauthenticated; CrossSite for a change with a cookie that another site's page asked for.
        """
        kind, _, token = headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer" and looks_like_jwt(token.strip()):
            if "X-API-Key" in headers:
                raise Unauthenticated("Send one credential: an API key or an access token, not both.")
            return await self.bearer(token.strip())
        cookie = self.cookie(headers)
        if not cookie or "X-API-Key" in headers or "Authorization" in headers:
            return await self._keys.resolve(headers, ip)
        if method not in SAFE_METHODS:
            self.check_page(headers)
        return await self.page(cookie)

    async def bearer(self, token: str) -> Person:
        """Whose access token it is. Raises Unauthenticated."""
        claims = self._tokens.read(ACCESS, token)
        session: Session | None = await self._store.get(SESSIONS, claims["org"], claims.get("sid", ""))
        if session is None or session.kind != "token" or session.user_id != claims["sub"]:
            raise Unauthenticated(ENDED)
        return await self._person(session)

    async def page(self, cookie: str) -> Person:
        """Whose cookie it is. Raises Unauthenticated."""
        return await self._person(await self._sign_in.page_session(cookie))

    async def _person(self, session: Session) -> Person:
        if session.expires_at <= self._sign_in.now():
            raise Unauthenticated(ENDED)
        user: User | None = await self._store.get(USERS, session.org, session.user_id)
        if user is None or user.status != "active":
            raise Unauthenticated(ENDED)
        limited = False
        if "+" not in session.method:
            limited = (await self._companies.company(user.org)).require_second_factor
        return Person(
            user.org, user.id, user.role, ROLE_SCOPES[user.role], session_id=session.id, email=user.email,
            name=user.name, limited=limited,
        )  # fmt: skip

    def check_page(self, headers: Mapping[str, str]) -> None:
        """Raises CrossSite unless one of our own pages sent this."""
        check_same_origin(headers, self._settings.public_url)

    # -- cookies -------------------------------------------------------------------------------------------------
    def _secure(self, headers: Mapping[str, str]) -> bool:
        return (
            self._settings.public_url.startswith("https://")
            or headers.get("X-Forwarded-Proto", "").strip().lower() == "https"
        )

    def cookie(self, headers: Mapping[str, str], suffix: str = "") -> str:
        """The value of our cookie, "" when there is none. Over TLS only the one that nobody else can set."""
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load(headers.get("Cookie", ""))
        except CookieError:
            return ""
        name = (SECURE_PREFIX if self._secure(headers) else "") + COOKIE + suffix
        return jar[name].value if name in jar else ""

    def set_cookie(self, headers: Mapping[str, str], value: str, seconds: int, suffix: str = "") -> str:
        """A Set-Cookie header. `seconds` 0 takes the cookie away."""
        secure = self._secure(headers)
        name = (SECURE_PREFIX if secure else "") + COOKIE + suffix
        text = f"{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}"
        return text + ("; Secure" if secure else "")
