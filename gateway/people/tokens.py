"""What people are handed: access tokens (JWT), refresh tokens, one-time links, cookies, device marks.

A JWT is signed with a key derived from the vault's, and names it (`kid`): a new key put first signs from the next start
on, and what older keys signed stays valid while they are listed. The algorithm is pinned to HS256, the kind of token to
its `typ`, and neither is taken from the token. All other secrets are 256 random bits; only their SHA-256 is stored.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Any, Final, Literal

from ...catalog.errors import Unauthenticated
from ..vault import Vault

ALGORITHM: Final = "HS256"
ISSUER: Final = "agenticmail-enterprise"
MAX_TOKEN: Final = 2048
"""Characters. Ours have under 500."""

SKEW: Final = 30
"""Seconds by which a token may seem to come from the future: workers on several machines."""

Kind = Literal["at+jwt", "challenge+jwt"]
ACCESS: Final[Kind] = "at+jwt"
CHALLENGE: Final[Kind] = "challenge+jwt"

REFRESH_PREFIX: Final = "rt_"
LINK_PREFIX: Final = "lk_"
PAGE_PREFIX: Final = "ps_"
DEVICE_PREFIX: Final = "dv_"
DEVICE_SECONDS: Final = 180 * 24 * 3600

_NOT_VALID: Final = "This token is not valid, or no longer. Sign in again."
_CLAIMS: Final = ("iss", "sub", "org", "iat", "exp")


def new_secret() -> str:
    """43 characters with 256 random bits."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is stored of a secret: SHA-256, hex."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def looks_like_jwt(text: str) -> bool:
    """Whether a credential is meant as a JWT (its header is a JSON object in base64url)."""
    return text.startswith("eyJ") and text.count(".") == 2


def refresh_token(family: str, secret: str) -> str:
    """The two parts: `family` stays as long as the session, `secret` changes with each use."""
    return f"{REFRESH_PREFIX}{family}.{secret}"


def split_refresh(token: str) -> tuple[str, str]:
    """(family, secret), ("", "") for what is no refresh token."""
    family, dot, secret = token.removeprefix(REFRESH_PREFIX).partition(".")
    if not token.startswith(REFRESH_PREFIX) or not dot or not family or not secret or len(token) > MAX_TOKEN:
        return "", ""
    return family, secret


class Tokens:
    """Signs and reads. `clock` gives seconds since the epoch."""

    def __init__(self, vault: Vault, clock: Callable[[], float]) -> None:
        self._current = vault.current
        self._keys = vault.derived(b"jwt")
        self._device_keys = vault.derived(b"device")
        self._clock = clock

    def sign(self, kind: Kind, user_id: str, org: str, seconds: int, **claims: str) -> str:
        """A token of a kind that is valid for some seconds."""
        import jwt  # not loaded by a worker that nobody signs in at

        now = int(self._clock())
        payload = {"iss": ISSUER, "sub": user_id, "org": org, "iat": now, "exp": now + seconds, **claims}
        key = self._keys[self._current]
        return jwt.encode(payload, key, algorithm=ALGORITHM, headers={"kid": self._current, "typ": kind})

    def read(self, kind: Kind, token: str) -> dict[str, str]:
        """The claims of a valid token of that kind, as texts. Unauthenticated, in one sentence for every fault."""
        import jwt

        try:
            if len(token) > MAX_TOKEN:
                raise Unauthenticated(_NOT_VALID)
            header = jwt.get_unverified_header(token)
            key = self._keys.get(str(header.get("kid")))
            if key is None or header.get("typ") != kind or header.get("alg") != ALGORITHM or "crit" in header:
                raise Unauthenticated(_NOT_VALID)
            # Times are held against our own clock, below.
            options: Any = {"require": list(_CLAIMS), "verify_exp": False, "verify_iat": False, "verify_nbf": False}
            claims: dict[str, Any] = jwt.decode(
                token, key, algorithms=[ALGORITHM], issuer=ISSUER, options=options
            )  # fmt: skip
        except (jwt.PyJWTError, ValueError, UnicodeError, RecursionError):
            raise Unauthenticated(_NOT_VALID) from None
        now = self._clock()
        issued, until = claims["iat"], claims["exp"]
        if not isinstance(until, int) or not isinstance(issued, int) or until <= now or issued > now + SKEW:
            raise Unauthenticated(_NOT_VALID)
        return {name: value for name, value in claims.items() if isinstance(value, str)}

    # -- devices -------------------------------------------------------------------------------------------------
    def device(self, account: str) -> str:
        """A mark for a device on which somebody signed in: it opens nothing, it only tells them from strangers."""
        body = f"{secrets.token_urlsafe(12)}.{int(self._clock())}"
        return f"{DEVICE_PREFIX}{body}.{self._mark(self._current, account, body)}"

    def device_of(self, account: str, mark: str) -> str:
        """The name of the device that a mark was given to for this account, "" when it was not, or too long ago."""
        body, dot, given = mark.removeprefix(DEVICE_PREFIX).rpartition(".")
        name, _, issued = body.partition(".")
        if not mark.startswith(DEVICE_PREFIX) or not dot or not issued.isascii() or not issued.isdigit():
            return ""
        if len(mark) > 200 or int(issued) + DEVICE_SECONDS <= self._clock():
            return ""
        known = (self._mark(key_id, account, body) for key_id in self._device_keys)
        return name if any(hmac.compare_digest(mine.encode(), given.encode()) for mine in known) else ""

    def _mark(self, key_id: str, account: str, body: str) -> str:
        text = f"{account}\n{body}".encode("utf-8", "replace")
        return hmac.new(self._device_keys[key_id], text, hashlib.sha256).hexdigest()[:32]
