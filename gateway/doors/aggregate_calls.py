"""One agent's side of the aggregated door: its links to upstreams, and how an answer and what precedes it come back."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Final, Protocol

from aiohttp import web

from ...catalog.calls import Principal
from ...catalog.errors import UpstreamError
from ..mcpclient import Lines, Link, OnMessage
from ..pool import Answer
from ..wire import RawStream, json_response
from .jsonrpc import encode
from .mcpfacts import INTERNAL_ERROR, MODERN, STATUS_OF
from .sse import event

ANSWER_SECONDS: Final = 300.0
"""How long a server's request (sampling, elicitation) waits for the agent's answer."""

LIST_SECONDS: Final = 20.0


class Sayer(Protocol):
    """A way to the agent."""

    async def say(self, message: dict[str, Any]) -> None:
        """Raises ConnectionError when the agent has left."""


class SessionStream(Protocol):
    """The stream of a session, as its conversation sees it."""

    async def hear(self, live: Any, link: Link) -> None: ...

    def end(self) -> None: ...


class Conversation:
    """What one agent has going: a session of the handshake era, or a single request of the stateless one."""

    def __init__(self, principal: Principal, version: str, capabilities: dict[str, Any], info: dict[str, Any]) -> None:
        self.principal = principal
        self.version = version
        self.capabilities = capabilities
        self.info = info
        self.uris: dict[str, str] = {}
        """Resources that the session has subscribed to: uri -> server. Events come on the session's stream."""
        self.listening: SessionStream | None = None
        self._links: dict[str, tuple[Any, Link]] = {}
        self._asked: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)

    @property
    def modern(self) -> bool:
        return self.version == MODERN

    def link(self, live: Any) -> Link:
        """The conversation with one upstream, with the agent's own capabilities. A rebuilt upstream gets a new one."""
        known = self._links.get(live.name)
        if known is not None and known[0] is live:
            return known[1]
        link: Link = live.link(
            owner=self.principal.agent_id, capabilities=self.capabilities, info=self.info or None,
            prefer_modern=self.modern,
        )  # fmt: skip
        self._links[live.name] = (live, link)
        return link

    async def list_from(self, live: Any, method: str, key: str) -> tuple[list[dict[str, Any]], str]:
        """(items, "") or ([], why not)."""
        link = self.link(live)
        try:
            async with asyncio.timeout(LIST_SECONDS):
                await link.open()
                return await link.list_all(method, key), ""
        except UpstreamError as error:
            return [], error.message
        except TimeoutError:
            return [], f"No answer within {LIST_SECONDS:.0f} s."

    async def broadcast(self, method: str, params: dict[str, Any]) -> None:
        """A request to every upstream talked to so far; those that do not know it are left alone."""
        for _, link in list(self._links.values()):
            try:
                await link.request(method, params)
            except UpstreamError:
                continue  # a server without logging has nothing to set

    async def heard(self, message: dict[str, Any]) -> None:
        """A notification or an answer from the agent."""
        if "method" not in message:
            future = self._asked.pop(str(message.get("id")), None)
            if future is not None and not future.done():
                future.set_result({key: message[key] for key in ("result", "error") if key in message})
            return
        if message["method"] == "notifications/roots/list_changed":
            for _, link in list(self._links.values()):
                try:
                    await link.notify(message["method"], message.get("params"))
                except UpstreamError:
                    continue  # it will ask again when it needs the roots

    # -- the session's own stream (GET) --------------------------------------------------------------------------
    def links(self) -> list[tuple[Any, Link]]:
        """The servers talked to so far."""
        return list(self._links.values())

    async def heed(self, live: Any, link: Link) -> None:
        """A link has been opened: what its server says outside of calls goes to the session's stream, if it is open."""
        if self.listening is not None:
            await self.listening.hear(live, link)

    async def ask(self, reply: Sayer, message: dict[str, Any]) -> dict[str, Any]:
        """Put a server's request to the agent, and wait for the answer."""
        number = f"gw-{next(self._numbers)}"
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            await reply.say({**message, "id": number})
            return await asyncio.wait_for(future, ANSWER_SECONDS)
        except TimeoutError:
            return {"error": {"code": INTERNAL_ERROR, "message": "The agent did not answer in time."}}
        finally:
            self._asked.pop(number, None)

    async def close(self) -> None:
        links = [link for _, link in self._links.values()]
        self.drop()
        await asyncio.gather(*(link.close() for link in links), return_exceptions=True)

    def drop(self) -> None:
        """Forget the links; upstream sessions end by themselves."""
        if self.listening is not None:
            self.listening.end()
        self._links.clear()
        for future in self._asked.values():
            future.cancel()
        self._asked.clear()


class CallSender:
    """Sends one judged request over a link. `send` is the proxy's; the link is opened there, after the intent."""

    def __init__(self, conversation: Conversation, live: Any, method: str, params: dict[str, Any]) -> None:
        self.name = ""
        self._conversation = conversation
        self._live = live
        self._link = conversation.link(live)
        self._method = method
        self._params = params
        self._id = 0

    async def send(self, head: bytes, body: bytes, *, stream: bool = False) -> Answer:
        del head, body, stream  # the request is written anew, in the server's era
        await self._link.open()
        await self._conversation.heed(self._live, self._link)
        self._id, lines, sent = self._prepare()
        return await self._link.exchange(lines, sent)

    def _prepare(self) -> tuple[int, Lines, bytes]:
        params = dict(self._params)
        meta = {
            key: value
            for key, value in (params.pop("_meta", None) or {}).items()
            if not key.startswith("io.modelcontextprotocol/")
        }
        if meta:
            params["_meta"] = meta
        return self._link.prepare(self._method, params)

    async def result(self, answer: Answer | None, on_message: OnMessage) -> dict[str, Any]:
        assert answer is not None  # noqa: S101 - Proxy.handle returned it
        return await self._link.read(answer, self._id, on_message)


class Reply:
    """The answer to one request of the agent: plain JSON, or a stream once the server says something before it."""

    def __init__(self, visit: Any, rpc_id: Any, conversation: Conversation) -> None:
        self.visit = visit
        self.rpc_id = rpc_id
        self.conversation = conversation
        self.stream: RawStream | None = None

    async def relay(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """What the server says in mid-call: notifications pass; its requests go to the agent, whose answer returns."""
        if "id" not in message:
            await self.say(message)
            return None
        if self.conversation.modern:
            return None  # the stateless era has no way back to the client: the server is told so
        return await self.conversation.ask(self, message)

    async def say(self, message: dict[str, Any]) -> None:
        if self.stream is None:
            headers = [(b"Content-Type", b"text/event-stream"), (b"Cache-Control", b"no-store")]
            self.stream = RawStream(self.visit.request, 200, headers)
            await self.stream.start()
        await self.stream.write(event(encode(message)))


async def answer_stream(reply: Reply, payload: dict[str, Any]) -> web.StreamResponse:
    """Write the final answer (`{"result": ...}` or `{"error": ...}`)."""
    message = {"jsonrpc": "2.0", "id": reply.rpc_id, **payload}
    if reply.stream is None:
        code = payload.get("error", {}).get("code", 0) if reply.conversation.modern else 0
        return json_response(STATUS_OF.get(code, 200), encode(message))
    await reply.stream.write(event(encode(message)))
    await reply.stream.finish()
    return reply.stream
