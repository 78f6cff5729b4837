"""What servers tell about changes, for all agents that listen: one connection a server and worker, however many do.

A `Watch` listens at one server in that server's era: `subscriptions/listen` (2026-07-28), or the stream of a session of
the gateway's own with `resources/subscribe`. After each change of a list it reads the list anew, so that each listener
can tell whether what *it* may see has changed. A server that breaks off is listened at again, with growing pauses, and
what may have been missed meanwhile is told then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol

from ...catalog.errors import EnterpriseError, UpstreamBroken, UpstreamError
from ..mcpclient import Link, RpcFailure
from .mcpfacts import ACKNOWLEDGED, CHANGES, LISTEN, LISTS, UPDATED

OPEN_SECONDS: Final = 15.0
LIST_SECONDS: Final = 20.0
TICK: Final = 2.0
"""How soon a server that was replaced in the registry is noticed."""

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 60.0
STEADY_SECONDS: Final = 30.0
"""A stream that stood so long is opened again at once, at the first pause."""

LEAST_ROOM: Final = 4
"""`max_connections` of a server from which one of them may be spent on listening: calls come first."""

FLAG_OF: Final = {change.notification: flag for flag, change in CHANGES.items()}

Learn = Callable[[Any, str, list[dict[str, Any]]], Awaitable[None]]
"""`await learn(live, list key, items)`: a whole list of a server passed by."""


class Listener(Protocol):
    """Who wants to know. `uris` are the resources it watches: uri -> name of the server."""

    uris: dict[str, str]

    def lists_changed(self, server: str, flag: str) -> None: ...

    def updated(self, server: str, uri: str) -> None: ...


class Watch:
    """One server, watched. `problem` says why nothing is heard now, "" while all is well."""

    def __init__(self, name: str, owner: str, current: Callable[[], Any | None], learn: Learn) -> None:
        """`current()` is the live upstream of that name, or None. `owner`: the agent that listens, where each has a
        server process of its own; "" where one listens for all."""
        self.name = name
        self.owner = owner
        self.problem = ""
        self.listeners: set[Listener] = set()
        self.lists: dict[str, list[dict[str, Any]]] = {}
        self.flags: frozenset[str] = frozenset()
        self.watchable = True
        """False when the server is known to offer no subscriptions to resources."""
        self._current = current
        self._learn = learn
        self._missed = False
        self._asked = 1
        self._answered = 0
        self._step = asyncio.Event()
        self._changed = asyncio.Event()
        self._dirty: set[str] = set()
        self._stale = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"watch {name}")

    # -- for listeners -------------------------------------------------------------------------------------------
    def add(self, listener: Listener) -> None:
        self.listeners.add(listener)
        self.refresh()

    def refresh(self) -> None:
        """A listener's `uris` changed."""
        self._asked += 1
        self._changed.set()

    async def ready(self, seconds: float = OPEN_SECONDS) -> None:
        """Until what was asked for so far is in force, or known not to be, or `seconds` have passed."""
        asked = self._asked
        try:
            async with asyncio.timeout(seconds):
                while self._answered < asked:
                    await self._step.wait()
        except TimeoutError:
            self.problem = self.problem or f"No answer within {seconds:.0f} s."

    def mark(self, flag: str) -> None:
        """The lists of this kind are to be read anew."""
        self._dirty.update(CHANGES[flag].lists)
        self._stale.set()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, *self._closing, return_exceptions=True)

    # -- listening -----------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            live = self._current()
            try:
                if live is None:
                    raise UpstreamBroken(f"{self.name!r} is not in service.")
                await self._attend(live)
            except EnterpriseError as error:
                self.problem = error.message
            except TimeoutError:
                self.problem = f"No answer within {OPEN_SECONDS:.0f} s."
            self._missed = True
            pause = FIRST_PAUSE if time.monotonic() - began > STEADY_SECONDS else min(pause * 2, LONGEST_PAUSE)
            await self._rest(pause)

    async def _rest(self, seconds: float) -> None:
        """Wait, but let nobody wait for us: who asks meanwhile hears of the problem."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    self._changed.clear()
                    self._advance(self._asked)
                    await self._changed.wait()
        except TimeoutError:
            return

    async def _attend(self, live: Any) -> None:
        """One connection, until it ends. Returns when the server was replaced; raises UpstreamError, TimeoutError."""
        if live.record.max_connections < LEAST_ROOM:
            raise UpstreamBroken(f"max_connections of {self.name!r} is below {LEAST_ROOM}: none is left for listening.")
        link: Link = live.link(owner=self.owner)
        relisting: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await link.open()
            self.flags = frozenset(
                flag for flag, change in CHANGES.items() if _promises(link, change.capability, "listChanged")
            )
            self.watchable = _promises(link, "resources", "subscribe")
            self._dirty.clear()
            relisting = asyncio.get_running_loop().create_task(self._relist(live, link))
            await self._listen(live, link)
        finally:
            if relisting is not None:
                relisting.cancel()
            task = asyncio.get_running_loop().create_task(_close(link))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _listen(self, live: Any, link: Link) -> None:
        stream: asyncio.Task[None] | None = None
        watched: frozenset[str] = frozenset()
        first = True
        try:
            while True:
                self._changed.clear()
                asked, wanted = self._asked, self._wanted()
                if stream is None or wanted != watched:
                    stream, watched = await self._tune(link, stream, watched, wanted), wanted
                if first:
                    await self._catch_up(live, link, wanted)
                    first = False
                self._advance(asked)
                if not await self._until(live, stream):
                    return
                if stream is not None and stream.done() and not self._changed.is_set():
                    stream.result()  # raises what ended it
                    raise UpstreamBroken(f"{self.name!r} ended its stream.")
        finally:
            if stream is not None:
                stream.cancel()

    async def _tune(
        self, link: Link, stream: asyncio.Task[None] | None, watched: frozenset[str], wanted: frozenset[str]
    ) -> asyncio.Task[None] | None:
        """Listen for `wanted` resources from here on. The new stream stands before the old one goes."""
        if link.modern:
            fresh = await self._open(self._stateless(link, wanted)) if wanted or self.flags else None
            if stream is not None:
                stream.cancel()
            return fresh
        if stream is None and (wanted or self.flags):
            stream = await self._open(self._session(link))
        for method, uris in (("resources/subscribe", wanted - watched), ("resources/unsubscribe", watched - wanted)):
            for uri in sorted(uris):
                try:
                    await link.request(method, {"uri": uri})
                except RpcFailure:
                    continue  # a resource that the server does not know cannot change
        return stream

    async def _open(self, opening: Callable[[asyncio.Event], Awaitable[None]]) -> asyncio.Task[None]:
        stands = asyncio.Event()

        async def carry() -> None:
            await opening(stands)

        task = asyncio.get_running_loop().create_task(carry())
        waiting = asyncio.get_running_loop().create_task(stands.wait())
        try:
            await asyncio.wait({task, waiting}, timeout=OPEN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            task.cancel()
            raise
        finally:
            waiting.cancel()
        if task.done():
            task.result()
        return task

    def _stateless(self, link: Link, wanted: frozenset[str]) -> Callable[[asyncio.Event], Awaitable[None]]:
        """2026-07-28: the answer to one request is the stream."""
        notifications: dict[str, Any] = dict.fromkeys(sorted(self.flags), True)
        if wanted:
            notifications["resourceSubscriptions"] = sorted(wanted)

        async def opening(stands: asyncio.Event) -> None:
            async def heard(message: dict[str, Any]) -> dict[str, Any] | None:
                if message["method"] == ACKNOWLEDGED:
                    stands.set()
                elif "id" not in message:
                    self._hear(message)
                return None

            await link.stream(LISTEN, {"notifications": notifications}, heard)

        return opening

    def _session(self, link: Link) -> Callable[[asyncio.Event], Awaitable[None]]:
        """Handshake era: the session's own stream."""

        async def opening(stands: asyncio.Event) -> None:
            async def heard(message: dict[str, Any]) -> dict[str, Any] | None:
                if "id" not in message:
                    self._hear(message)
                return None

            if not await link.listen(heard, stands.set):
                stands.set()
                await asyncio.Event().wait()  # it has no stream: there is nothing to hear, and nothing to try again

        return opening

    async def _until(self, live: Any, stream: asyncio.Task[None] | None) -> bool:
        """Until there is something to do. False when the server was replaced."""
        changed = asyncio.get_running_loop().create_task(self._changed.wait())
        try:
            while not changed.done() and (stream is None or not stream.done()):
                if self._current() is not live:
                    return False
                await asyncio.wait(
                    {changed} if stream is None else {changed, stream}, timeout=TICK,
                    return_when=asyncio.FIRST_COMPLETED,
                )  # fmt: skip
            return True
        finally:
            changed.cancel()

    # -- what it says --------------------------------------------------------------------------------------------
    def _hear(self, message: dict[str, Any]) -> None:
        flag = FLAG_OF.get(message["method"])
        if flag is not None:
            self.mark(flag)
        elif message["method"] == UPDATED:
            uri = (message.get("params") or {}).get("uri")
            if isinstance(uri, str):
                for listener in list(self.listeners):
                    listener.updated(self.name, uri)

    async def _catch_up(self, live: Any, link: Link, watched: Iterable[str]) -> None:
        """A stream stands: know the lists, and tell what may have been missed while there was none."""
        if self.flags:
            methods = {method for flag in self.flags for method in CHANGES[flag].lists}
            await self._read(live, link, methods)
        self.problem = ""
        for listener in list(self.listeners):
            for flag in self.flags:
                listener.lists_changed(self.name, flag)  # each knows what it saw before, and tells only news
            for uri in watched if self._missed else ():
                listener.updated(self.name, uri)
        self._missed = False

    async def _relist(self, live: Any, link: Link) -> None:
        """Read lists anew when they changed, one after the other: a server that changes all the time is asked no faster
        than it answers."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            dirty, self._dirty = self._dirty, set()
            try:
                await self._read(live, link, dirty)
            except (EnterpriseError, TimeoutError):
                for method in dirty:
                    self.lists.pop(method, None)  # unknown: whoever saw anything there is told
            for flag, change in CHANGES.items():
                if dirty & set(change.lists):
                    for listener in list(self.listeners):
                        listener.lists_changed(self.name, flag)

    async def _read(self, live: Any, link: Link, methods: Iterable[str]) -> None:
        async with asyncio.timeout(LIST_SECONDS):
            for method in sorted(methods):
                key = LISTS[method][0]
                self.lists[method] = items = await link.list_all(method, key)
                await self._learn(live, key, items)

    def _wanted(self) -> frozenset[str]:
        if not self.watchable:
            return frozenset()
        return frozenset(
            uri for listener in self.listeners for uri, server in listener.uris.items() if server == self.name
        )

    def _advance(self, answered: int) -> None:
        self._answered = answered
        step, self._step = self._step, asyncio.Event()
        step.set()


class Watches:
    """All of a worker's, made when somebody listens and ended when nobody does."""

    def __init__(self, current: Callable[[str, str], Any | None], learn: Learn) -> None:
        self._current = current
        self._learn = learn
        self._watches: dict[tuple[str, str, str], Watch] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def join(self, org: str, name: str, agent: str, listener: Listener) -> Watch:
        """Listen at a server. One that is a child process is listened at in the agent's own child."""
        live = self._current(org, name)
        owner = agent if live is not None and live.kind == "mcp_stdio" else ""
        watch = self._watches.get((org, name, owner))
        if watch is None:
            watch = Watch(name, owner, lambda: self._current(org, name), self._learn)
            self._watches[org, name, owner] = watch
        watch.add(listener)
        return watch

    def leave(self, org: str, watch: Watch, listener: Listener) -> None:
        watch.listeners.discard(listener)
        if watch.listeners:
            watch.refresh()
            return
        if self._watches.get((org, watch.name, watch.owner)) is watch:
            del self._watches[org, watch.name, watch.owner]
        task = asyncio.get_running_loop().create_task(watch.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def __len__(self) -> int:
        return len(self._watches)


def _promises(link: Link, capability: str, what: str) -> bool:
    capabilities = link.server.get("capabilities")
    promised = capabilities.get(capability) if isinstance(capabilities, dict) else None
    return isinstance(promised, dict) and promised.get(what) is True


async def _close(link: Link) -> None:
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            await link.close()
    except (UpstreamError, TimeoutError):
        return  # the server forgets the session by itself
