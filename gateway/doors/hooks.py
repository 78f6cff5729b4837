"""`POST /api/engine/hooks/heartbeat`: a hook says that it is there. Not a call: only what is refused is on record."""

from __future__ import annotations

import time

from aiohttp import web

from ...catalog.calls import Principal
from ...catalog.errors import BodyTooLarge, EnterpriseError, InvalidJson, MethodNotAllowed
from ..hookwatch import Beat, HookWatch
from ..identity import Identity
from ..wire import json_response, read_body
from .checks import convert
from .headers import check_body_headers, scan
from .jsonrpc import RpcError, decode, encode
from .turnaway import Turnaway

MAX_BODY = 16 * 1024


class HooksDoor:
    """One per worker. `heartbeat`: seconds between signs of life, as hooks are told."""

    def __init__(self, watch: HookWatch, identity: Identity, turnaway: Turnaway, heartbeat: float) -> None:
        self._watch = watch
        self._identity = identity
        self._turnaway = turnaway
        self._heartbeat = heartbeat

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Raises nothing but ConnectionError and CancelledError."""
        started = time.perf_counter_ns()
        principal: Principal | None = None
        try:
            noted = scan(request.raw_headers).noted
            principal = await self._turnaway.identify(self._identity, noted, request)
            if request.method != "POST":
                raise MethodNotAllowed("Use POST here.", allow="POST")
            check_body_headers(noted)
            body = await read_body(request, MAX_BODY)
            if body is None:
                raise BodyTooLarge(limit=MAX_BODY)
            try:
                beat: Beat = convert(decode(body), Beat)
            except RpcError as error:
                raise InvalidJson(error.message) from None
            record = await self._watch.beat(principal, beat)
            answer = {"agent_id": record.id, "state": record.state, "heartbeat": self._heartbeat}
            return json_response(200, encode({"data": answer}))
        except EnterpriseError as error:
            return await self._turnaway.refuse(request, error, principal, "", started)


__all__ = ["MAX_BODY", "HooksDoor"]
