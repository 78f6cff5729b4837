"""Who is calling? A key's digest, looked up in memory; the store is asked once per key and policy epoch.

Secrets are never compared: the digest of a 256-bit random key is a dictionary key, so there is nothing to time.
"""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections.abc import Callable, Mapping
from typing import Final

from cachetools import TTLCache

from ..catalog.calls import Principal
from ..catalog.errors import Unauthenticated
from ..catalog.records import AGENTS, KEYS, Agent, ApiKey
from ..catalog.store import Query, Store
from .doors.headers import api_key
from .keys import foreign_digest, well_formed
from .scopes import CALL as CALL_SCOPE

MAX_PRINCIPALS: Final = 50_000
UNKNOWN_SECONDS: Final = 10.0

Clock = Callable[[], float]


def key_from_headers(headers: Mapping[str, str]) -> str:
    """The API key of `X-API-Key: ek_...` or `Authorization: Bearer ek_...`, "" for neither."""
    noted = {
        name.lower().encode(): value.encode("latin-1", "replace")
        for name, value in headers.items()
        if name.lower() in {"x-api-key", "authorization"}
    }
    return api_key(noted)


class Identity:
    """Principals by key digest. `known` is the warm path; `resolve` asks the store on a miss."""

    def __init__(self, store: Store, clock: Clock = time.time) -> None:
        self._store = store
        self._clock = clock
        self._principals: dict[bytes, Principal] = {}
        self._unknown: TTLCache[bytes, bool] = TTLCache(maxsize=10_000, ttl=UNKNOWN_SECONDS)
        self.generation = 0

    def forget(self) -> None:
        """Drop everything cached. Called when the policy epoch moved: a revoked key is dead from here on."""
        self.generation += 1
        self._principals.clear()
        self._unknown.clear()

    def known(self, key: str) -> Principal | None:
        """The principal of a key seen before in this epoch and still valid, else None (then `resolve` decides)."""
        principal = self._principals.get(hashlib.sha256(key.encode("utf-8", "replace")).digest())
        if principal is not None and principal.expired(self._clock()):
            return None
        return principal

    async def resolve(self, headers: Mapping[str, str], ip: str) -> Principal:
        """Who sends these headers. Raises Unauthenticated, in one sentence for every kind of bad key."""
        key = key_from_headers(headers)
        if not key:
            raise Unauthenticated("Send an API key: X-API-Key: ek_... or Authorization: Bearer ek_...")
        principal = await self.of_key(key)
        if principal.allowed_ips and not ip_allowed(ip, principal.allowed_ips):
            raise Unauthenticated("This API key may not be used from this address.")
        return principal

    async def of_key(self, key: str) -> Principal:
        """The principal of a key. Raises Unauthenticated; StoreUnavailable when nobody can say."""
        principal = self.known(key)
        if principal is not None:
            return principal
        if not well_formed(key):
            raise Unauthenticated("This API key is not valid.")
        return await self._of_digest(hashlib.sha256(key.encode("utf-8", "replace")).digest())

    async def of_foreign(self, key: str) -> Principal:
        """The principal that a key of another product stands for (`Accounts.adopt`). Raises as `of_key`. Its digest is
        of another kind than our own keys', so at no other door does it mean anything."""
        digest = bytes.fromhex(foreign_digest(key))
        principal = self._principals.get(digest)
        if principal is not None and not principal.expired(self._clock()):
            return principal
        return await self._of_digest(digest)

    async def _of_digest(self, digest: bytes) -> Principal:
        if digest in self._unknown:
            raise Unauthenticated("This API key is not valid.")
        generation = self.generation
        principal = await self._load(digest)
        if principal is None:
            self._unknown[digest] = True
            raise Unauthenticated("This API key is not valid.")
        if generation == self.generation:  # else a change came in while we read: do not keep what may be old
            if len(self._principals) >= MAX_PRINCIPALS:
                self._principals.clear()
            self._principals[digest] = principal
        return principal

    async def _load(self, digest: bytes) -> Principal | None:
        page = await self._store.find(Query(KEYS, "digest", {"digest": digest.hex()}, limit=1))
        if not page.records:
            return None
        key: ApiKey = page.records[0]
        if key.revoked_at or (key.expires_at and key.expires_at <= self._clock() * 1000):
            return None
        name = ""
        if key.kind == "agent":
            agent: Agent | None = await self._store.get(AGENTS, key.org, key.agent_id)
            if agent is None:
                return None
            name = agent.name
        return Principal(
            key.org,
            key.agent_id,
            name,
            key.id,
            scopes=key.scopes,
            expires_at=key.expires_at,
            allowed_ips=key.allowed_ips,
        )


def ip_allowed(ip: str, allowed: tuple[str, ...]) -> bool:
    """Whether an address lies in one of the networks. Anything unreadable is outside."""
    try:
        address = ipaddress.ip_address(ip)
        return any(address in ipaddress.ip_network(network, strict=False) for network in allowed)
    except ValueError:
        return False


__all__ = ["CALL_SCOPE", "Identity", "ip_allowed", "key_from_headers"]
