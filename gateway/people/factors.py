"""The second factor: switching it on and off, and holding a code against it."""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from ...catalog.errors import BadRequest, Conflict, SignInFailed, Stale, ValidationFailed
from ...catalog.records import SECOND_FACTORS, SecondFactor, User
from ...catalog.store import Delete, Insert, Replace, Store
from ..vault import Aad, Vault
from . import totp
from .tokens import digest

RECOVERY_CODES: Final = 10
ISSUER: Final = "AgenticMail Enterprise"
ATTEMPTS: Final = 3


class Setup(msgspec.Struct, kw_only=True):
    """What goes into an authenticator app: `uri` as a QR code, or `secret` typed by hand."""

    secret: str
    uri: str


def new_recovery_code() -> str:
    """16 characters of base32 (80 random bits), in groups of four."""
    text = base64.b32encode(secrets.token_bytes(10)).decode().lower()
    return "-".join(text[start : start + 4] for start in range(0, 16, 4))


def _plain(code: str) -> str:
    return "".join(code.split()).replace("-", "").lower()


class Factors:
    """`clock` gives seconds since the epoch."""

    def __init__(self, store: Store, vault: Vault, clock: Callable[[], float]) -> None:
        self._store = store
        self._vault = vault
        self._clock = clock

    async def of(self, user: User) -> SecondFactor | None:
        """The person's second factor, switched on or begun; None for neither."""
        found: SecondFactor | None = await self._store.get(SECOND_FACTORS, user.org, user.id)
        return found

    async def is_on(self, user: User) -> bool:
        """Whether signing in takes a code."""
        factor = await self.of(user)
        return factor is not None and bool(factor.on_at)

    async def begin(self, user: User) -> Setup:
        """A new secret, which counts once it is confirmed. One that is on stays on until then."""
        secret = totp.new_secret()
        await self.keep_pending(user, secret)
        return Setup(secret=secret, uri=totp.uri(secret, user.email, ISSUER))

    async def keep_pending(self, user: User, secret: str) -> None:
        """Note a secret that is not confirmed yet."""
        now = int(self._clock() * 1000)
        sealed = self._vault.seal(secret, _aad(user))
        factor = await self.of(user)
        if factor is None:
            made = SecondFactor(org=user.org, id=user.id, pending=sealed, created_at=now, updated_at=now)
            await self._store.commit(Insert(SECOND_FACTORS, made))
            return
        factor.pending, factor.updated_at = sealed, now
        await self._store.commit(Replace(SECOND_FACTORS, factor))

    async def confirm(self, user: User, code: str) -> list[str]:
        """Switch it on: the app shows the right code. The recovery codes, shown once."""
        factor = await self.of(user)
        if factor is None or not factor.pending:
            raise BadRequest("Begin with POST /auth/2fa/setup: there is no secret to confirm.")
        secret = self._vault.open(factor.pending, _aad(user))
        step = totp.matching_step(secret, code, self._clock(), 0)
        if step is None:
            raise ValidationFailed([("/code", "wrong_code", "This is not the code that the app shows now.")])
        codes = [new_recovery_code() for _ in range(RECOVERY_CODES)]
        factor.secret, factor.pending, factor.last_step = factor.pending, "", step
        factor.on_at = factor.updated_at = int(self._clock() * 1000)
        factor.recovery = tuple(digest(_plain(item)) for item in codes)
        await self._store.commit(Replace(SECOND_FACTORS, factor))
        return codes

    async def renew_codes(self, user: User) -> list[str]:
        """New recovery codes; the old ones are worth nothing from here on. BadRequest when it is not on."""
        factor = await self.of(user)
        if factor is None or not factor.on_at:
            raise BadRequest("The second factor is not on.")
        codes = [new_recovery_code() for _ in range(RECOVERY_CODES)]
        factor.recovery = tuple(digest(_plain(item)) for item in codes)
        factor.updated_at = int(self._clock() * 1000)
        await self._store.commit(Replace(SECOND_FACTORS, factor))
        return codes

    async def check(self, user: User, code: str) -> str:
        """Take a code, once: "totp" or "recovery". Raises SignInFailed for a wrong or used one."""
        for _ in range(ATTEMPTS):
            factor = await self.of(user)
            if factor is None or not factor.on_at:
                raise SignInFailed
            kind = self._take(user, factor, code)
            try:
                await self._store.commit(Replace(SECOND_FACTORS, factor))
            except (Stale, Conflict):
                continue  # a code was taken meanwhile: perhaps this very one
            return kind
        raise SignInFailed

    def _take(self, user: User, factor: SecondFactor, code: str) -> str:
        """Mark a code as used in the record. SignInFailed when it is none."""
        plain = _plain(code)
        if len(plain) == totp.DIGITS:
            secret = self._vault.open(factor.secret, _aad(user))
            step = totp.matching_step(secret, plain, self._clock(), factor.last_step)
            if step is None:
                raise SignInFailed
            factor.last_step = step
            return "totp"
        given = digest(plain)
        left = tuple(item for item in factor.recovery if not hmac.compare_digest(item, given))
        if len(left) == len(factor.recovery):
            raise SignInFailed
        factor.recovery = left
        return "recovery"

    async def remove(self, user: User) -> bool:
        """Switch it off and forget the secret; whether there was one."""
        factor = await self.of(user)
        if factor is None:
            return False
        try:
            await self._store.commit(Delete(SECOND_FACTORS, user.org, user.id))
        except Stale:
            return False
        return bool(factor.on_at)


def _aad(user: User) -> Aad:
    return (user.org, "second_factor", "secret", user.id)
