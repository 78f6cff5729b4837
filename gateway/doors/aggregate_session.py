"""A session of the handshake era at the aggregated door: its stream (GET), and its subscriptions to resources.

The stream carries what no request of the agent asked for: changes at any server (`aggregate_streams`), and what servers
say on the sessions that this agent has with them: log messages, and their requests (sampling, elicitation, roots).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from ...catalog.errors import UpstreamError
from ..mcpclient import Link, RpcFailure
from ..pool import Answer
from ..wire import RawStream
from .aggregate_calls import Conversation
from .aggregate_streams import AgentStream, Streams
from .mcpfacts import CHANGES, INTERNAL_ERROR, METHOD_NOT_FOUND, UPDATED
from .watch import FIRST_PAUSE, FLAG_OF, LONGEST_PAUSE

HEAR_SECONDS: Final = 2.0
"""How long the first call to a server waits until what the server says beside it would be heard."""

OWN_AFFAIR: Final = frozenset({UPDATED, "notifications/cancelled"})
"""Notifications that are not passed on from a server's session: resources are watched elsewhere, and request ids are
the gateway's own."""


class SessionStream:
    """The open stream of one session."""

    def __init__(self, streams: Streams, visit: Any, conversation: Conversation) -> None:
        self._streams = streams
        self._conversation = conversation
        self._stream = AgentStream(streams, visit, frozenset(CHANGES), conversation.uris)
        self._heard: dict[str, tuple[Link, asyncio.Task[None]]] = {}

    async def serve(self) -> RawStream:
        """Until the agent leaves (ConnectionError, CancelledError) or something ends it."""
        conversation, stream = self._conversation, self._stream
        try:
            await stream.start()
            if conversation.listening is not None:
                conversation.listening.end()  # a session has one stream: what is said is said once
            conversation.listening = self
            await asyncio.gather(*(self.hear(live, link) for live, link in conversation.links()))
            await stream.follow()
            out = await stream.run()
            await stream.finish()
            return out
        except asyncio.CancelledError:
            with contextlib.suppress(ConnectionError):
                await stream.finish()
            raise
        finally:
            if conversation.listening is self:
                conversation.listening = None
            for _, task in self._heard.values():
                task.cancel()
            stream.leave()

    def end(self) -> None:
        self._stream.end()

    def welcome(self, still: Callable[[], bool]) -> None:
        """Asked every few seconds: the stream ends when it says no."""
        self._stream.welcome = still

    async def follow(self, server: str) -> None:
        """The session's subscriptions changed."""
        await self._stream.follow(server)

    async def hear(self, live: Any, link: Link) -> None:
        """Hear what a server says on the session with it. Returns when it would be heard, or after HEAR_SECONDS."""
        known = self._heard.get(live.name)
        if (known is not None and known[0] is link) or link.modern or not link.session:
            return
        if known is not None:
            known[1].cancel()
        if not self._streams.may_hear(live):
            return
        stands = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._listen(live, link, stands))
        self._heard[live.name] = (link, task)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEAR_SECONDS):
                await stands.wait()

    async def _listen(self, live: Any, link: Link, stands: asyncio.Event) -> None:
        async def heard(message: dict[str, Any]) -> dict[str, Any] | None:
            return await self._pass(live.name, message)

        pause = FIRST_PAUSE
        with self._streams.hearing(live):
            while True:
                try:
                    if not await link.listen(heard, stands.set):
                        stands.set()
                        return
                    pause = FIRST_PAUSE
                except UpstreamError:
                    pause = min(pause * 2, LONGEST_PAUSE)
                except ConnectionError:
                    return  # the agent has left
                stands.set()
                await asyncio.sleep(pause)

    async def _pass(self, server: str, message: dict[str, Any]) -> dict[str, Any] | None:
        method = message["method"]
        if "id" in message:
            try:
                return await self._conversation.ask(self._stream, message)
            except ConnectionError:
                return {"error": {"code": INTERNAL_ERROR, "message": "The agent has left."}}
        flag = FLAG_OF.get(method)
        if flag is not None:
            watch = self._stream.watch(server)
            if watch is not None:
                watch.mark(flag)
        elif method not in OWN_AFFAIR:
            await self._stream.say(message)
        return None


class Subscriber:
    """`resources/subscribe`, after it was judged: a Sender, and the reader of its own answer, like `CallSender`."""

    def __init__(self, conversation: Conversation, live: Any, uri: str) -> None:
        self.name = ""
        self._conversation = conversation
        self._live = live
        self._uri = uri

    async def send(self, head: bytes, body: bytes, *, stream: bool = False) -> Answer:
        """Raises RpcFailure when the server offers no subscriptions, UpstreamError."""
        del head, body, stream
        link = self._conversation.link(self._live)
        await link.open()
        capabilities = link.server.get("capabilities")
        resources = capabilities.get("resources") if isinstance(capabilities, dict) else None
        if not isinstance(resources, dict) or resources.get("subscribe") is not True:
            said = f"The server {self._live.name!r} offers no subscriptions to resources."
            raise RpcFailure({"code": METHOD_NOT_FOUND, "message": said})
        self._conversation.uris[self._uri] = self._live.name
        await follow(self._conversation, self._live.name)
        return Answer(200, b"OK", [], b"{}", media=b"application/json")

    async def result(self, answer: Answer | None, on_message: Any) -> dict[str, Any]:
        del answer, on_message
        return {}


async def unsubscribe(conversation: Conversation, uri: str) -> None:
    server = conversation.uris.pop(uri, None)
    if server is not None:
        await follow(conversation, server)


async def follow(conversation: Conversation, server: str) -> None:
    """Let an open stream know of changed subscriptions. Without one there is nobody to tell events to."""
    listening = conversation.listening
    if isinstance(listening, SessionStream):
        await listening.follow(server)
