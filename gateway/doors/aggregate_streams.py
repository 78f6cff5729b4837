"""Streams of the aggregated door's own: `subscriptions/listen` (2026-07-28) and the GET stream of a session.

Both tell one agent of changes at all servers, and of nothing that it may not see: a changed list is told only when the
part of it that this agent sees has changed, an updated resource only while the agent may read it. A server that dies
ends nothing: the others go on, and when it is back, what changed meanwhile is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from ...catalog.calls import Principal, Verdict
from ...catalog.errors import EnterpriseError, StoreError, TooManyRequests
from ...catalog.ids import new_id
from ..wire import RawResponse, RawStream, json_response
from .aggregate_lists import owner_of_uri, remember
from .jsonrpc import RpcError, encode, odd_case
from .mcpfacts import (
    ACKNOWLEDGED,
    CHANGES,
    INVALID_PARAMS,
    JUDGED,
    LISTS,
    META_SUBSCRIPTION,
    UPDATED,
    governed_id,
)
from .refusals import denied_body
from .sse import event
from .watch import TICK, Watch, Watches

BEAT_SECONDS: Final = 15.0
"""A comment is sent after so long a silence, so that proxies keep the connection and we notice who has left."""

MAX_PER_AGENT: Final = 64
MAX_URIS: Final = 1000
HEADERS: Final = [(b"Content-Type", b"text/event-stream"), (b"Cache-Control", b"no-store")]
UNAVAILABLE: Final = "enterprise.agenticmail/unavailable"
REFUSED: Final = "enterprise.agenticmail/refused"

_SUBSCRIBE: Final = JUDGED["resources/subscribe"]


class Wanted(msgspec.Struct):
    """What a `subscriptions/listen` asks for: flags of `mcpfacts.CHANGES`, and resources."""

    flags: frozenset[str]
    uris: tuple[str, ...]


def read_wanted(message: dict[str, Any]) -> Wanted:
    """The filter of a `subscriptions/listen`. Raises RpcError(INVALID_PARAMS)."""
    params = message.get("params") or {}
    asked = params.get("notifications")
    rpc_id = message["id"]
    odd_case(params, frozenset({"notifications", "_meta"}), rpc_id)
    if not isinstance(asked, dict):
        raise RpcError(INVALID_PARAMS, "params.notifications must say what to listen for.", rpc_id)
    known = {*CHANGES, "resourceSubscriptions"}
    folded = {name.casefold(): name for name in known}
    for name in asked:
        if name not in known and name.casefold() in folded:
            raise RpcError(INVALID_PARAMS, f"{name!r} is not spelt {folded[name.casefold()]!r}.", rpc_id)
    flags = {name: asked.get(name) for name in CHANGES}
    uris = asked.get("resourceSubscriptions")
    uris = [] if uris is None else uris
    if any(value is not None and not isinstance(value, bool) for value in flags.values()):
        raise RpcError(INVALID_PARAMS, "The flags of params.notifications are true or false.", rpc_id)
    if not isinstance(uris, list) or not all(isinstance(uri, str) and uri and uri.isprintable() for uri in uris):
        raise RpcError(INVALID_PARAMS, "resourceSubscriptions must be a list of printable URIs.", rpc_id)
    if len(uris) > MAX_URIS:
        raise RpcError(INVALID_PARAMS, f"resourceSubscriptions has more than {MAX_URIS} URIs.", rpc_id)
    return Wanted(frozenset(name for name, value in flags.items() if value), tuple(dict.fromkeys(uris)))


class Streams:
    """All open streams of one worker, and what they listen through."""

    def __init__(self, door: Any) -> None:
        self.door = door
        self.watches = Watches(door.upstreams.get, self._learn)
        self.running: set[AgentStream] = set()
        self._open: Counter[tuple[str, str]] = Counter()
        self._hearing: Counter[tuple[str, str]] = Counter()

    async def _learn(self, live: Any, key: str, items: list[dict[str, Any]]) -> None:
        remember(live, key, items)
        await self.door.upstreams.saw(live, {key: items}, whole=True)

    def end(self) -> None:
        for stream in self.running:
            stream.end()

    @contextlib.contextmanager
    def place(self, principal: Principal) -> Iterator[None]:
        """One of an agent's streams. Raises TooManyRequests."""
        agent = (principal.org, principal.agent_id)
        if self._open[agent] >= MAX_PER_AGENT:
            raise TooManyRequests(f"This agent has {MAX_PER_AGENT} streams open already.", retry_after=BEAT_SECONDS)
        self._open[agent] += 1
        try:
            yield
        finally:
            self._open[agent] -= 1
            if not self._open[agent]:
                del self._open[agent]

    def may_hear(self, live: Any) -> bool:
        """Whether one more of a server's connections may be held to hear one session. Calls keep half of them; a child
        process needs none."""
        if live.kind != "mcp_http":
            return True
        most: int = live.record.max_connections // 2
        return self._hearing[live.org, live.name] < most

    @contextlib.contextmanager
    def hearing(self, live: Any) -> Iterator[None]:
        """While a connection is held so."""
        self._hearing[live.org, live.name] += 1
        try:
            yield
        finally:
            self._hearing[live.org, live.name] -= 1


class AgentStream:
    """One open stream to one agent. `uris` may change while it is open; call `follow` then."""

    def __init__(self, streams: Streams, visit: Any, flags: frozenset[str], uris: dict[str, str]) -> None:
        self.uris = uris
        self._streams = streams
        self._door = streams.door
        self._visit = visit
        self._flags = flags
        self._principal: Principal = visit.principal
        self._watches: dict[str, Watch] = {}
        self._pending: dict[tuple[str, str, str], None] = {}
        self._seen: dict[tuple[str, str], bytes] = {}
        self._wake = asyncio.Event()
        self._over = False
        self._spoke = 0.0
        self._out = RawStream(visit.request, 200, [*HEADERS, (b"X-Request-Id", visit.request_id.encode())])
        self.stamp: dict[str, Any] = {}
        """Goes into `_meta` of all that is said."""
        self.welcome: Callable[[], bool] = lambda: True

    # -- what the watches say ------------------------------------------------------------------------------------
    def lists_changed(self, server: str, flag: str) -> None:
        if flag in self._flags:
            self._pending[server, flag, ""] = None
            self._wake.set()

    def updated(self, server: str, uri: str) -> None:
        if any(uri == own or uri.startswith(own.rstrip("/") + "/") for own, at in self.uris.items() if at == server):
            self._pending[server, "", uri] = None
            self._wake.set()

    # -- for the door --------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Send the head. Raises ConnectionError."""
        self._streams.running.add(self)
        await self._out.start()

    async def follow(self, server: str = "") -> None:
        """Watch all servers of the organisation (or one of them anew, for its resources), and wait until they are
        watched. Raises nothing: a server that cannot be watched says why in its Watch."""
        if server:
            watch = self._watches.get(server)
            if watch is not None:
                watch.refresh()
                await watch.ready()
            return
        added = self._join()
        await asyncio.gather(*(watch.ready() for watch in added))
        try:
            await self._admit()
        except EnterpriseError:
            self.end()  # the stream has begun: there is no other answer any more
            return
        for watch in added:
            for flag in self._flags:
                self._seen[watch.name, flag] = self._visible(watch, flag)
                self._pending.pop((watch.name, flag, ""), None)

    def watch(self, server: str) -> Watch | None:
        return self._watches.get(server)

    @property
    def problems(self) -> dict[str, str]:
        """Servers that cannot be watched now, and why."""
        return {name: watch.problem for name, watch in self._watches.items() if watch.problem}

    async def say(self, message: dict[str, Any]) -> None:
        """Write one message. Raises ConnectionError when the agent has left."""
        self._spoke = time.monotonic()
        await self._out.write(event(encode(message)))

    def notice(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """A notification with the stream's stamp."""
        body = dict(params or {})
        if self.stamp:
            body["_meta"] = {**body.get("_meta", {}), **self.stamp}
        return {"jsonrpc": "2.0", "method": method, **({"params": body} if body else {})}

    def end(self) -> None:
        """Let `run` return soon."""
        self._over = True
        self._wake.set()

    async def run(self) -> RawStream:
        """Tell what happens, until the agent leaves (ConnectionError), `end` is called, or the agent may no longer
        work. What the protocol says at the end is the caller's; then call `finish`."""
        self._spoke = time.monotonic()
        while not self._over:
            while self._pending and not self._over:
                what = next(iter(self._pending))
                del self._pending[what]
                await self._deliver(*what)
            self._wake.clear()
            if self._pending or self._over:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await self._wake.wait()
            await self._tick()
        return self._out

    async def finish(self, last: dict[str, Any] | None = None) -> None:
        if last is not None:
            await self.say(last)
        await self._out.finish()

    def leave(self) -> None:
        """Stop watching."""
        self._streams.running.discard(self)
        for watch in self._watches.values():
            self._streams.watches.leave(self._principal.org, watch, self)
        self._watches.clear()

    # -- inside --------------------------------------------------------------------------------------------------
    def _join(self) -> list[Watch]:
        org = self._principal.org
        live = {live.name for live in self._door.upstreams.of(org)}
        for name in self._watches.keys() - live:
            self._streams.watches.leave(org, self._watches.pop(name), self)
            for flag in self._flags:
                if self._seen.pop((name, flag), NOTHING) != NOTHING:
                    self._pending["", flag, ""] = None  # it was seen, and is gone
        agent = self._principal.agent_id
        added = [self._streams.watches.join(org, name, agent, self) for name in sorted(live - self._watches.keys())]
        self._watches.update((watch.name, watch) for watch in added)
        return added

    async def _tick(self) -> None:
        """Small chores: is the agent still welcome, are there other servers than before, is anybody there?"""
        door, visit = self._door, self._visit
        if not self.welcome():
            self.end()
            return
        try:
            self._principal = await door.turnaway.identify(door.identity, visit.entry.noted, visit.request)
            await self._admit()
        except StoreError:
            return  # nobody can say; while that lasts, nothing is told either
        except EnterpriseError:
            self.end()
            return
        for watch in self._join():  # a server that came while we listen: what it offers is news
            for flag in self._flags:
                self._seen[watch.name, flag] = NOTHING
                self._pending[watch.name, flag, ""] = None
        if time.monotonic() - self._spoke > BEAT_SECONDS:
            self._spoke = time.monotonic()
            await self._out.write(b": still here\n\n")

    async def _admit(self) -> None:
        await self._door.chain.admit(self._principal)

    async def _deliver(self, server: str, flag: str, uri: str) -> None:
        try:
            await self._admit()
        except EnterpriseError:
            self.end()
            return
        if uri:
            visible = self._door.chain.viewer(self._principal)
            subscribed = [own for own in self.uris if uri == own or uri.startswith(own.rstrip("/") + "/")]
            if subscribed and all(visible(governed_id(server, _SUBSCRIBE.prefix, at)) for at in (subscribed[0], uri)):
                await self.say(self.notice(UPDATED, {"uri": uri}))
            return
        watch = self._watches.get(server)
        if watch is not None:
            before, now = self._seen.get((server, flag), NOTHING), self._visible(watch, flag)
            if now == before:
                return
            self._seen[server, flag] = now
        await self.say(self.notice(CHANGES[flag].notification))

    def _visible(self, watch: Watch, flag: str) -> bytes:
        """A digest of what this agent sees of a server's lists. While a list cannot be read: something else, if the
        agent saw anything."""
        visible = self._door.chain.viewer(self._principal)
        shown: list[Any] = []
        for method in CHANGES[flag].lists:
            _, field, prefix = LISTS[method]
            items = watch.lists.get(method)
            if items is None:
                before = self._seen.get((watch.name, flag), NOTHING)
                return before if before == NOTHING else UNKNOWN
            for item in items:
                name = item.get(field)
                if isinstance(name, str) and visible(governed_id(watch.name, prefix, name)):
                    shown.append(item)
        return hashlib.sha256(encode(shown)).digest() if shown else NOTHING


NOTHING: Final = b""
UNKNOWN: Final = b"?"


async def listen(streams: Streams, visit: Any, message: dict[str, Any], lives: list[Any]) -> RawResponse:
    """Serve one `subscriptions/listen`. Raises RpcError, EnterpriseError before the stream begins; ConnectionError,
    CancelledError when the agent leaves."""
    wanted = read_wanted(message)
    rpc_id = message["id"]
    uris, refused = await _judge(streams.door, visit, wanted, lives)
    if refused and not uris and not wanted.flags:
        verdict, call_id = next(iter(refused.values()))
        return json_response(200, denied_body(_SUBSCRIBE, rpc_id, call_id, verdict, modern=True))
    stream = AgentStream(streams, visit, wanted.flags, uris)
    stream.stamp = {META_SUBSCRIPTION: rpc_id}
    last = {"jsonrpc": "2.0", "id": rpc_id, "result": {"resultType": "complete", "_meta": stream.stamp}}
    with streams.place(visit.principal):
        try:
            await stream.start()
            await stream.follow()
            honoured: dict[str, Any] = {name: True for name in CHANGES if name in wanted.flags}
            if kept := [uri for uri in wanted.uris if uri in uris and stream.watch(uris[uri]).watchable]:  # type: ignore[union-attr]
                honoured["resourceSubscriptions"] = kept
            said = {"notifications": honoured, "_meta": _explained(stream, refused)}
            await stream.say(stream.notice(ACKNOWLEDGED, said))
            out = await stream.run()
            await stream.finish(last)
            return out
        except asyncio.CancelledError:  # the agent left, or the gateway stops: then say so
            with contextlib.suppress(ConnectionError):
                await stream.finish(last)
            raise
        finally:
            stream.leave()


def _explained(stream: AgentStream, refused: dict[str, tuple[Verdict, str]]) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    if stream.problems:
        meta[UNAVAILABLE] = stream.problems
    if refused:
        meta[REFUSED] = {uri: f"{verdict.reason} [decision {call}]" for uri, (verdict, call) in refused.items()}
    return meta


async def _judge(
    door: Any, visit: Any, wanted: Wanted, lives: list[Any]
) -> tuple[dict[str, str], dict[str, tuple[Verdict, str]]]:
    """Each resource to watch, judged and recorded like a read of it: (uri -> server, uri -> why not)."""
    uris: dict[str, str] = {}
    refused: dict[str, tuple[Verdict, str]] = {}
    for uri in wanted.uris:
        live = owner_of_uri(lives, uri)
        visit.live = live or NOWHERE
        call = door.call(visit, new_id("call"), _SUBSCRIBE, uri, {})
        verdict = door.chain.decide(call) or await door.chain.settle(call)
        if verdict.effect == "allow" and live is None:
            verdict = Verdict("deny", "door", "NOT_FOUND", f"No server offers the resource {uri!r}.")
        outcome = {"allow": "ok", "hold": "held"}.get(verdict.effect, "denied")
        verdict = await door.proxy.note(call, verdict, outcome, 0, visit.started)
        if verdict.effect == "allow" and live is not None:
            uris[uri] = live.name
        else:
            refused[uri] = (verdict, call.id)
    return uris, refused


class Nowhere:
    """Stands for the missing server when a name leads nowhere."""

    name = ""
    prefix = ""


NOWHERE: Final = Nowhere()
