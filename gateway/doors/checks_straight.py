"""The straight way of the checks door: one plain check on a fast lane, answered without a coroutine. See `straight`.

Plain is `{"tool": ..., "args": {...}}`, written compactly, by a key whose head came before. All else, and every verdict
that is not `allow`, goes on in `ChecksDoor`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from ...catalog.calls import Call, Verdict
from ...catalog.errors import JournalFull
from ...catalog.ids import CALL_PREFIX, uuid7
from ..drafts import Draft
from ..identity import Identity
from ..lane import Known, Lane, LaneRequest
from ..proxy import Proxy
from ..wire import json_response, whole_response
from .checks_open import OpenChecks, Opened
from .jsonrpc import ODD, encode

MAX_DRAFTS: Final = 10_000
MAX_TOOL: Final = 512

Judged = Callable[[Call, Verdict, int], Awaitable[dict[str, Any]]]
"""(call, verdict, since when in perf_counter_ns) -> the answer, once the verdict that counts is written down."""

Say = Callable[[Call, Verdict], dict[str, Any]]


class Plain(msgspec.Struct, forbid_unknown_fields=True):
    """A check with nothing but what every check has."""

    tool: str
    args: dict[str, Any]


_plain: Final = msgspec.json.Decoder(Plain).decode
_ARGS: Final = b',"args":'


class PlainChecks:
    """Call it with a lane, a head and a body: False, and nothing was done, for what is not plain."""

    def __init__(self, proxy: Proxy, identity: Identity, opened: OpenChecks, judged: Judged, say: Say) -> None:
        self._proxy = proxy
        self._identity = identity
        self._open = opened
        self._judged = judged
        self._say = say
        self._drafts: dict[tuple[str, str], Draft] = {}

    def __call__(self, lane: Lane, known: Known, body: bytes) -> bool:
        started = time.perf_counter_ns()
        generation, _, who = known.door
        now = time.time()
        if generation != self._identity.generation or who.watched(now) or self._proxy.journal.needs_wait:
            return False
        try:
            check = _plain(body)
            if encode(check) != body:  # other spellings, and keys given twice
                return False
        except ODD:
            return False
        tool = check.tool
        if not check.args or not tool or len(tool) > MAX_TOOL or not tool.isprintable():
            return False
        raw = body[body.index(_ARGS) + len(_ARGS) : -1]
        call_id = uuid7(CALL_PREFIX)
        call = Call(who, tool, raw, call_id, now, "checks", "", lane.remote, call_id, call_id[-32:], check.args)
        verdict = self._proxy.chain.decide(call)
        if verdict is None:
            return False
        if verdict.effect == "allow":
            try:
                ticket = self._proxy.journal.begin_as(self._draft(call, verdict), call, verdict, raw, len(raw))
            except JournalFull:
                ticket = 0
            if ticket:
                self._open.add(call_id, Opened(who, ticket, now))
                lane.answered(whole_response(encode({"data": self._say(call, verdict)})))
                return True
        lane.go_on(LaneRequest(lane, known, body), self._rest(call, verdict, started))
        return True

    def _draft(self, call: Call, verdict: Verdict) -> Draft | None:
        key = (call.principal.key_id, call.tool)
        draft = self._drafts.get(key)
        if draft is None or draft.verdict is not verdict:
            draft = Draft.of(call, verdict)
            if draft is not None:
                if len(self._drafts) >= MAX_DRAFTS:
                    self._drafts.clear()
                self._drafts[key] = draft
        return draft

    async def _rest(self, call: Call, verdict: Verdict, started: int) -> web.StreamResponse:
        """Refused or held, or the journal has no room now."""
        return json_response(200, encode({"data": await self._judged(call, verdict, started)}))
