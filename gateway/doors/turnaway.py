"""Requests that never become a call: who could not be identified, or what could not be read. Each leaves a record."""

from __future__ import annotations

import time
from typing import Final

from aiohttp import web

from ...catalog.calls import Call, Code, Principal, Verdict
from ...catalog.errors import EnterpriseError, Forbidden, NotFound, StoreUnavailable, Unauthenticated, UndocumentedRoute
from ...catalog.ids import new_id
from ...catalog.records import Door
from ...catalog.store import GLOBAL
from ..identity import CALL_SCOPE, Identity, ip_allowed
from ..proxy import Proxy
from ..wire import RawResponse
from .headers import api_key
from .refusals import http_refusal

NOBODY: Final = Principal(GLOBAL, "", "", "")
CODES: Final[dict[type[EnterpriseError], Code]] = {
    Unauthenticated: "UNAUTHENTICATED",
    NotFound: "NOT_FOUND",
    StoreUnavailable: "POLICY_STALE",
    UndocumentedRoute: "TOOL_UNKNOWN",
}


class Turnaway:
    """Identifies callers for the doors, and writes down those it turns away."""

    def __init__(self, proxy: Proxy, door: Door) -> None:
        self._proxy = proxy
        self._door: Door = door

    async def identify(self, identity: Identity, noted: dict[bytes, bytes], request: web.BaseRequest) -> Principal:
        """The agent behind a request. Raises Unauthenticated, or Forbidden for a key that may not call."""
        key = api_key(noted)
        principal = identity.known(key) if key else None
        if principal is None:
            principal = await identity.resolve(request.headers, request.remote or "")
        if principal.allowed_ips and not ip_allowed(request.remote or "", principal.allowed_ips):
            raise Unauthenticated("This API key may not be used from this address.")
        if CALL_SCOPE not in principal.scopes:
            raise Forbidden("This API key is not an agent's; calls need a key bound to an agent.")
        return principal

    async def refuse(
        self, request: web.BaseRequest, error: EnterpriseError, principal: Principal | None, upstream: str, started: int
    ) -> RawResponse:
        """Record and answer a request that failed before it was a call."""
        code: Code = CODES.get(type(error), "BAD_REQUEST")
        call_id = await self.note(
            principal or NOBODY, upstream, error.message, request.remote or "", "", 0, started, code
        )
        response = http_refusal(error, call_id)
        if not request.content.is_eof():
            response.force_close()  # the body was not read: what follows on this connection is not a request
        return response

    async def note(
        self, principal: Principal, upstream: str, reason: str, ip: str, request_id: str, size: int, started: int,
        code: Code = "BAD_REQUEST",
    ) -> str:  # fmt: skip
        """Record a refusal; the id of the record."""
        call_id = new_id("call")
        call = Call(
            principal, "", b"", id=call_id, at=time.time(), door=self._door, upstream=upstream[:63], ip=ip,
            request_id=request_id or call_id,
        )  # fmt: skip
        await self._proxy.note(call, Verdict("deny", "door", code, reason), "denied", size, started)
        self._proxy.metrics.refusal(self._door, code)
        return call_id
