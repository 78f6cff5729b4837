"""Signing in and staying signed in: a session per sign-in, refresh tokens that change with each use, page cookies.

A session is a record; it ends when that goes. Of a refresh token one part stays and finds the session, the other is
good for one use: whoever shows a used one has copied it or was copied from, so the whole session ends, on record.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Final

import msgspec

from ...catalog.errors import (
    EnterpriseError,
    SecondFactorRequired,
    SignInFailed,
    Stale,
    TooManyRequests,
    Unauthenticated,
    ValidationFailed,
)
from ...catalog.ids import new_id
from ...catalog.records import SESSIONS, USERS, Company, Session, SessionKind, User
from ...catalog.store import Delete, Insert, Query, Replace, Store
from ..settings import AuthSettings
from .company import Companies
from .directory import Directory
from .factors import Factors
from .throttle import Throttle, account_of, source_of
from .tickets import Link, Tickets
from .tokens import ACCESS, CHALLENGE, PAGE_PREFIX, Tokens, digest, new_secret, refresh_token, split_refresh

if TYPE_CHECKING:
    from ..passwords import Passwords

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
CHALLENGE_SECONDS: Final = 300
MAX_HASHING: Final = 50
"""Passwords of strangers that may wait to be hashed, in one worker: some four seconds' worth."""

MAX_SESSIONS: Final = 50
"""Per person; the oldest ends when one more begins."""

ENDED: Final = "This sign-in has ended. Sign in again."


class Attempt:
    """Who tries, from where. `user` is filled in once it is known whom it is about, whatever comes of it."""

    __slots__ = ("agent", "device", "ip", "user")

    def __init__(self, ip: str, agent: str = "", device: str = "") -> None:
        self.ip = ip
        self.agent = "".join(char for char in agent if char.isprintable())[:200]
        self.device = device
        self.user: User | None = None


class SignedIn(msgspec.Struct, kw_only=True):
    """What a person holds after signing in. Of kind `page`: `cookie`; of kind `token`: the two tokens."""

    user: User
    session: Session
    device: str = ""
    access: str = ""
    refresh: str = ""
    cookie: str = ""


class SignIn:
    """One per worker. `clock` gives seconds since the epoch."""

    def __init__(
        self, store: Store, settings: AuthSettings, passwords: Passwords | None, directory: Directory, factors: Factors,
        tickets: Tickets, companies: Companies, tokens: Tokens, throttle: Throttle, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._store = store
        self._settings = settings
        self._given = passwords
        self._directory = directory
        self._factors = factors
        self._tickets = tickets
        self._companies = companies
        self._tokens = tokens
        self._throttle = throttle
        self._clock = clock
        self._dummy = ""
        self._hashing = 0

    @cached_property
    def _passwords(self) -> Passwords:
        from ..passwords import Passwords  # argon2 is not loaded by a worker that nobody signs in at

        return self._given or Passwords()

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return int(self._clock() * 1000)

    # -- signing in ----------------------------------------------------------------------------------------------
    async def with_password(
        self, email: str, password: str, code: str, attempt: Attempt, kind: SessionKind
    ) -> SignedIn:  # fmt: skip
        """E-mail and password, and the code where a second factor is on (else SecondFactorRequired, with a challenge).

        SignInFailed in one sentence for everything that is not right; TooManyRequests.
        """
        account = account_of(email)
        attempt.device = self._tokens.device_of(account, attempt.device)
        user = attempt.user = await self._directory.by_email(email)

        async def familiar() -> bool:
            return user is not None and await self._seen_at(user, attempt.ip)

        await self._throttle.sign_in(attempt.ip, account, attempt.device, familiar)
        right = await self._verified(user, password, attempt)
        if user is None or not right or not user.password_hash or user.status != "active":
            raise SignInFailed
        if self._passwords.is_outdated(user.password_hash):
            user = await self._rehash(user, password)
        method = "password"
        if await self._factors.is_on(user):
            if not code:
                raise SecondFactorRequired(challenge=self.challenge(user, method))
            method = f"{method}+{await self._code(user, code, attempt)}"
        return await self._begin(user, method, attempt, kind)

    async def with_code(self, challenge: str, code: str, attempt: Attempt, kind: SessionKind) -> SignedIn:
        """The second step: the code that a challenge asked for. SignInFailed, TooManyRequests."""
        claims = self._tokens.read(CHALLENGE, challenge)
        user: User | None = await self._store.get(USERS, claims["org"], claims["sub"])
        if user is None or user.status != "active" or claims.get("seal") != _seal(user):
            raise Unauthenticated(ENDED)
        attempt.user = user
        attempt.device = self._tokens.device_of(account_of(user.email), attempt.device)
        method = f"{claims.get('method', 'password')}+{await self._code(user, code, attempt)}"
        return await self._begin(user, method, attempt, kind)

    async def with_link(self, token: str, code: str, attempt: Attempt, kind: SessionKind) -> SignedIn:
        """A one-time sign-in link. It stands for the password, not for the second factor. LinkInvalid."""
        self._throttle.source(attempt.ip)
        ticket, user = await self._tickets.find(token, "sign_in")
        attempt.user = user
        needed = await self._factors.is_on(user)
        if needed and code:
            method = f"link+{await self._code(user, code, attempt)}"
            await self._tickets.redeem(ticket)
        else:
            method = "link"
            await self._tickets.redeem(ticket)
            if needed:
                raise SecondFactorRequired(challenge=self.challenge(user, method))
        return await self._begin(user, method, attempt, kind)

    async def _code(self, user: User, code: str, attempt: Attempt) -> str:
        self._throttle.code(attempt.ip, user.id, attempt.device)
        return await self._factors.check(user, code)

    def challenge(self, user: User, method: str) -> str:
        """For the second step: who came through the first one, by `method`, and when."""
        return self._tokens.sign(CHALLENGE, user.id, user.org, CHALLENGE_SECONDS, method=method, seal=_seal(user))

    async def _verified(self, user: User | None, password: str, attempt: Attempt) -> bool:
        """Whether it is the password. Hashing is slow by design: of a flood from everywhere strangers are turned away
        before the queue is longer than anybody waits, and whoever comes with a known device is not."""
        if self._hashing >= MAX_HASHING and not attempt.device:
            raise TooManyRequests(retry_after=5)
        self._hashing += 1
        try:
            return await self._passwords.verify(await self._hash_of(user), password)
        finally:
            self._hashing -= 1

    async def _hash_of(self, user: User | None) -> str:
        """The hash to hold a password against: somebody's, or one of nobody's that costs the same. The latter is made
        at the first attempt, whosoever that is."""
        if not self._dummy:
            self._dummy = await self._passwords.hash(new_secret())
        return user.password_hash if user is not None and user.password_hash else self._dummy

    async def _rehash(self, user: User, password: str) -> User:
        """Hash anew at today's costs, if we can: somebody else's change meanwhile is more important, and a password
        from before today's rules stays as it is."""
        before = user.password_hash
        try:
            user.password_hash = await self._passwords.hash(password)
            stored: User = (await self._store.commit(Replace(USERS, user)))[0]
        except (Stale, ValidationFailed):
            user.password_hash = before
            return user
        return stored

    async def _seen_at(self, user: User, ip: str) -> bool:
        place, now = source_of(ip), self.now()
        return any(
            source_of(item.ip) == place and item.expires_at > now for item in await self._directory.sessions(user)
        )

    # -- sessions ------------------------------------------------------------------------------------------------
    async def _begin(self, user: User, method: str, attempt: Attempt, kind: SessionKind) -> SignedIn:
        now = self.now()
        lookup, secret = new_secret(), new_secret()
        session = Session(
            org=user.org, id=new_id("session"), user_id=user.id, kind=kind, lookup=digest(lookup),
            current=digest(secret) if kind == "token" else "", seen_at=now, ip=attempt.ip, agent=attempt.agent,
            method=method, created_at=now, updated_at=now,
        )  # fmt: skip
        company = await self._companies.company(user.org)
        session.expires_at = self._until(session, company)
        await self._make_room(user)
        stored: Session = (await self._store.commit(Insert(SESSIONS, session)))[0]
        await self._still_welcome(user, stored)
        signed = SignedIn(user=user, session=stored, device=self._tokens.device(account_of(user.email)))
        if kind == "page":
            signed.cookie = PAGE_PREFIX + lookup
        else:
            signed.access, signed.refresh = self.access_token(stored), refresh_token(lookup, secret)
        return signed

    async def _still_welcome(self, user: User, session: Session) -> None:
        """A new password or a removal ends the sessions it finds. One that it came too early to find ends here."""
        latest: User | None = await self._store.get(USERS, user.org, user.id)
        if latest is None or latest.status != "active" or latest.password_at != user.password_at:
            await self._end(session)
            raise SignInFailed

    def access_token(self, session: Session) -> str:
        """A JWT for a session: who, not what they may do."""
        return self._tokens.sign(
            ACCESS, session.user_id, session.org, self._settings.access_seconds, sid=session.id
        )  # fmt: skip

    def _until(self, session: Session, company: Company) -> int:
        """When a session ends that is used now."""
        hours = self._settings.session_days * 24
        longest = min(hours, company.session_hours) if company.session_hours else hours
        kept = self._settings.page_hours * HOUR_MS if session.kind == "page" else self._settings.refresh_days * DAY_MS
        return min(self.now() + kept, session.created_at + longest * HOUR_MS)

    async def _make_room(self, user: User) -> None:
        """Clear away what has run out, and the oldest beyond the limit."""
        now = self.now()
        sessions = await self._directory.sessions(user)
        live = [item for item in sessions if item.expires_at > now]
        over = [item for item in sessions if item.expires_at <= now]
        for item in [*over, *live[: max(0, len(live) - MAX_SESSIONS + 1)]]:
            await self._end(item)

    async def _end(self, session: Session) -> None:
        try:
            await self._store.commit(Delete(SESSIONS, session.org, session.id))
        except Stale:
            return

    async def refresh(self, token: str, attempt: Attempt) -> SignedIn:
        """New tokens for a refresh token, which is used up. Unauthenticated; a used one also ends the session."""
        family, secret = split_refresh(token)
        session = await self._by_lookup(family, "token") if family else None
        if session is None:
            self._throttle.source(attempt.ip)
            raise Unauthenticated(ENDED)
        user: User | None = await self._store.get(USERS, session.org, session.user_id)
        attempt.user = user
        if not hmac.compare_digest(session.current, digest(secret)):
            await self._end(session)
            raise Unauthenticated("This refresh token was used before: the sign-in has ended. Sign in again.")
        if user is None or user.status != "active":
            await self._end(session)
            raise Unauthenticated(ENDED)
        following = new_secret()
        session.current, session.seen_at = digest(following), self.now()
        session.updated_at, session.ip = session.seen_at, attempt.ip
        session.expires_at = self._until(session, await self._companies.company(session.org))
        try:
            stored: Session = (await self._store.commit(Replace(SESSIONS, session)))[0]
        except Stale:  # used twice at the same time: the other one was first, or it was ended
            await self._end(session)
            raise Unauthenticated("This refresh token was used twice: the sign-in has ended. Sign in again.") from None
        return SignedIn(
            user=user, session=stored, access=self.access_token(stored), refresh=refresh_token(family, following)
        )  # fmt: skip

    async def _by_lookup(self, secret: str, kind: SessionKind) -> Session | None:
        """A live session by the secret that finds it."""
        page = await self._store.find(Query(SESSIONS, "lookup", {"lookup": digest(secret)}, limit=1))
        session: Session | None = page.records[0] if page.records else None
        if session is None or session.kind != kind or session.expires_at <= self.now():
            return None
        return session

    async def page_session(self, cookie: str) -> Session:
        """The live session of a cookie, whose end moves with its use. Raises Unauthenticated."""
        session = None
        if cookie.startswith(PAGE_PREFIX) and len(cookie) <= 200:
            session = await self._by_lookup(cookie.removeprefix(PAGE_PREFIX), "page")
        if session is None:
            raise Unauthenticated(ENDED)
        if self.now() - session.seen_at > MINUTE_MS:
            session.seen_at = session.updated_at = self.now()
            session.expires_at = self._until(session, await self._companies.company(session.org))
            try:
                await self._store.commit(Replace(SESSIONS, session))
            except EnterpriseError:
                pass  # used or ended elsewhere meanwhile; whether it still is there is asked again by whoever needs it
        return session

    async def logout(self, org: str, session_id: str) -> None:
        """End a session. One that has ended already stays so."""
        try:
            await self._store.commit(Delete(SESSIONS, org, session_id))
        except Stale:
            return

    # -- passwords -----------------------------------------------------------------------------------------------
    async def confirm_password(self, user: User, password: str, path: str = "/password") -> None:
        """Somebody signed in says their password again, before something that matters. ValidationFailed when wrong."""
        self._throttle.password(user.id)
        if not await self._passwords.verify(await self._hash_of(user), password) or not user.password_hash:
            raise ValidationFailed([(path, "wrong_password", "This is not your password.")])

    async def change_password(self, user: User, current: str, new: str, keep_session: str) -> int:
        """A new password; all other sessions and all links end. How many sessions ended. ValidationFailed, Stale."""
        await self.confirm_password(user, current, "/current_password")
        if hmac.compare_digest(current.encode("utf-8", "replace"), new.encode("utf-8", "replace")):
            raise ValidationFailed([("/new_password", "unchanged", "This is the present password.")])
        await self._set(user, new, "/new_password")
        await self._store.commit(Replace(USERS, user))
        await self._tickets.forget(user)
        return await self._directory.sign_out(user, but=keep_session)

    async def reset(self, token: str, password: str, attempt: Attempt) -> User:
        """A password by one-time link; all sessions end. It signs nobody in. LinkInvalid, ValidationFailed."""
        self._throttle.source(attempt.ip)
        ticket, user = await self._tickets.find(token, "reset", "invite")
        attempt.user = user
        await self._set(user, password, "/password")
        try:
            await self._tickets.redeem(ticket, Replace(USERS, user))
        finally:
            await self._directory.sign_out(user)
        await self._tickets.forget(user)
        return user

    async def _set(self, user: User, password: str, path: str) -> None:
        from ..passwords import check_strength

        check_strength(password, path)
        if user.email in password.lower():
            raise ValidationFailed([(path, "too_common", "A password must not hold the e-mail address.")])
        user.password_hash = await self._passwords.hash(password)
        user.password_at = user.updated_at = self.now()

    async def forgotten(self, email: str) -> tuple[User, Link] | None:
        """A link for whoever lost their password; None when nobody has this address, or had too many. The caller must
        answer the same in every case, and before this has run."""
        user = await self._directory.by_email(email)
        if user is None or user.status != "active" or not self._throttle.mail(account_of(email)):
            return None
        return user, await self._tickets.issue(user, "reset" if user.password_hash else "invite", "self")

    async def upgrade(self, session_id: str, org: str) -> None:
        """The session's person has switched a second factor on: it counts for this session too."""
        session: Session | None = await self._store.get(SESSIONS, org, session_id)
        if session is not None and "+" not in session.method:
            session.method += "+totp"
            await self._store.commit(Replace(SESSIONS, session))


def _seal(user: User) -> str:
    """Changes with the password: a challenge from before is worth nothing."""
    return hashlib.sha256(f"challenge:{user.id}:{user.password_hash}".encode()).hexdigest()[:16]
