"""MCP session ids bound to their agent, without state.

An upstream's `Mcp-Session-Id` leaves the gateway with a keyed digest over (organisation, agent, upstream, id) in front.
Only that agent can use it, on any worker and after any restart; a stolen or guessed id of another agent is refused.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Final

MAC_LENGTH: Final = 22
"""Characters of base64url for the first 16 bytes of HMAC-SHA-256."""

MAX_CACHE: Final = 50_000


class SessionSeal:
    """`seal` what goes out, `open` what comes in. The cache saves an HMAC per request; it is never the authority."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cache: dict[tuple[str, str, str, str], str] = {}

    def _mac(self, org: str, agent: str, upstream: str, session: str) -> str:
        text = "\n".join((org, agent, upstream, session)).encode()
        digest = hmac.digest(self._key, text, hashlib.sha256)[:16]
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def seal(self, org: str, agent: str, upstream: str, session: str) -> str:
        """What the agent is given."""
        return f"{self._mac(org, agent, upstream, session)}.{session}"

    def open(self, org: str, agent: str, upstream: str, sealed: str) -> str | None:
        """The upstream's own id, or None when this agent was never given `sealed`."""
        key = (org, agent, upstream, sealed)
        known = self._cache.get(key)
        if known is not None:
            return known
        mac, dot, session = sealed.partition(".")
        if not dot or len(mac) != MAC_LENGTH or not sealed.isascii():
            return None
        if not hmac.compare_digest(mac, self._mac(org, agent, upstream, session)):
            return None
        if len(self._cache) >= MAX_CACHE:
            self._cache.clear()
        self._cache[key] = session
        return session
