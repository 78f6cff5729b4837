"""A conformance ("everything") server on the official MCP SDK: the upstream of `make conformance`.

    python everything.py --port 0

serves streamable HTTP at `/mcp` on 127.0.0.1 in both eras (2025-11-25 with sessions, 2026-07-28 without) and
prints one JSON line, `{"port": 40123, "url": "http://127.0.0.1:40123/mcp"}`, once it accepts connections. With
`--until-stdin-closes` it ends when its standard input does, so that it cannot outlive the process that started it.

Called directly, the official suite counts 84 of 84 at 2025-11-25 and 152 of 152 at 2026-07-28; behind the gateway
it must count the same. What it serves is in `fixtures.py`, its tools run in `tools.py`; this file has the lists,
the other requests and the process.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import secrets
import socket
import sys
import threading
import warnings
from collections import deque
from typing import Any

import fixtures
import uvicorn
from mcp import types
from mcp.server.caching import CACHEABLE_METHODS, CacheHint
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.subscriptions import ListenHandler
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from tools import TOOLS, WORLD, Call, Context, ToolAnswer, answered, asking, listing, said, session_id

NAME = "agenticmail-conformance-server"
RETRY_MS = 100  # the `retry:` field of priming events: how soon a client reconnects
MAX_EVENTS = 10_000


class RingEventStore(EventStore):
    """The last `MAX_EVENTS` events of every stream, for `Last-Event-ID`.

    Stream ids are request ids, which the SDK does not scope to a session: good for a suite that runs one session
    at a time, not for production.
    """

    def __init__(self) -> None:
        self._events: deque[tuple[int, str, types.JSONRPCMessage | None]] = deque(maxlen=MAX_EVENTS)
        self._count = 0

    async def store_event(self, stream_id: str, message: types.JSONRPCMessage | None) -> str:
        """Keep one message (None: a priming event) and return its event id."""
        self._count += 1
        self._events.append((self._count, stream_id, message))
        return str(self._count)

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Send what the stream of `last_event_id` got after it; the stream's id, or None when it is not known."""
        stream = next((name for number, name, _ in self._events if str(number) == last_event_id), None)
        if stream is None:
            return None
        for number, name, message in list(self._events):
            if name == stream and number > int(last_event_id) and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


async def list_tools(ctx: Context, params: Any) -> types.ListToolsResult:
    """`tools/list`: everything registered, and the tool that comes and goes."""
    extra = [listing("test_dynamic_tool", "Comes and goes.")] if WORLD.extra_tool else []
    return types.ListToolsResult(tools=[entry.listing for entry in TOOLS.values()] + extra)


async def call_tool(ctx: Context, params: types.CallToolRequestParams) -> ToolAnswer:
    """`tools/call`: an unknown tool is -32602, a fault of a tool is a result with `isError`."""
    entry = TOOLS.get(params.name)
    if entry is None:
        raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown tool: {params.name}")
    try:
        return await entry.run(Call(ctx, params))
    except MCPError:
        raise
    except Exception as fault:
        result = said(f"{type(fault).__name__}: {fault}")
        return result.model_copy(update={"is_error": True})


async def list_resources(ctx: Context, params: Any) -> types.ListResourcesResult:
    """`resources/list`."""
    rows = [
        types.Resource(uri=uri, name=row.name, description=row.description, mime_type=row.mime_type)
        for uri, row in fixtures.RESOURCES.items()
    ]
    return types.ListResourcesResult(resources=rows)


async def list_templates(ctx: Context, params: Any) -> types.ListResourceTemplatesResult:
    """`resources/templates/list`."""
    return types.ListResourceTemplatesResult.model_validate({"resourceTemplates": [fixtures.TEMPLATE]})


async def read_resource(ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    """`resources/read`: an unknown uri is -32602 with the uri in `data` (SEP-2164)."""
    row = fixtures.RESOURCES.get(params.uri)
    if row is not None:
        contents = {"uri": params.uri, "mimeType": row.mime_type, **row.body}
    elif match := re.fullmatch(fixtures.TEMPLATE_PATTERN, params.uri):
        body = {"id": match["id"], "templateTest": True, "data": f"Data for ID: {match['id']}"}
        contents = {"uri": params.uri, "mimeType": "application/json", "text": json.dumps(body)}
    else:
        raise MCPError(code=types.INVALID_PARAMS, message="Resource not found", data={"uri": params.uri})
    return types.ReadResourceResult.model_validate({"contents": [contents]})


async def subscribe(ctx: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
    """`resources/subscribe` (2025-11-25)."""
    WORLD.subscriptions.add((session_id(ctx), params.uri))
    return types.EmptyResult()


async def unsubscribe(ctx: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
    """`resources/unsubscribe` (2025-11-25)."""
    WORLD.subscriptions.discard((session_id(ctx), params.uri))
    return types.EmptyResult()


async def set_level(ctx: Context, params: types.SetLevelRequestParams) -> types.EmptyResult:
    """`logging/setLevel` (2025-11-25)."""
    WORLD.log_levels[session_id(ctx)] = params.level
    return types.EmptyResult()


async def list_prompts(ctx: Context, params: Any) -> types.ListPromptsResult:
    """`prompts/list`: the table, the prompt that asks, and the one that comes and goes."""
    rows = [
        types.Prompt(
            name=name,
            description=row.description,
            arguments=[types.PromptArgument(name=argument, required=True) for argument in row.arguments],
        )
        for name, row in fixtures.PROMPTS.items()
    ]
    rows.append(types.Prompt(name=fixtures.ASKING_PROMPT, description="Asks for its context first."))
    if WORLD.extra_prompt:
        rows.append(types.Prompt(name="test_dynamic_prompt", description="Comes and goes."))
    return types.ListPromptsResult(prompts=rows)


def _filled(value: Any, arguments: dict[str, str]) -> Any:
    """`value` with `{argument}` replaced in every string of it."""
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda found: arguments.get(found[1], found[0]), value)
    if isinstance(value, dict):
        return {key: _filled(inner, arguments) for key, inner in value.items()}
    return value


async def get_prompt(
    ctx: Context, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
    """`prompts/get`: an unknown prompt or a missing argument is -32602."""
    if params.name == fixtures.ASKING_PROMPT:
        if not answered(fixtures.ASKING_PROMPT_QUESTION, params.input_responses):
            return asking(fixtures.ASKING_PROMPT_QUESTION)
        row, arguments = fixtures.PROMPTS["test_simple_prompt"], {}
    else:
        row, arguments = fixtures.PROMPTS.get(params.name), params.arguments or {}
    if row is None or not set(row.arguments) <= arguments.keys():
        raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown prompt or missing argument: {params.name}")
    messages = [{"role": "user", "content": _filled(content, arguments)} for content in row.messages]
    return types.GetPromptResult.model_validate({"messages": messages})


async def complete(ctx: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    """`completion/complete`: two endings of whatever was typed."""
    values = [f"{params.argument.value}{ending}" for ending in ("-one", "-two")]
    return types.CompleteResult(completion=types.Completion(values=values, total=len(values), has_more=False))


def build_server() -> Server[Any]:
    """The MCP server with every handler of both eras."""
    server: Server[Any] = Server(
        NAME,
        version="1.0.0",
        cache_hints={method: CacheHint(ttl_ms=1_000, scope="private") for method in CACHEABLE_METHODS},
        get_tool_input_schema=lambda name: TOOLS[name].listing.input_schema if name in TOOLS else None,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscribe_resource=subscribe,
        on_unsubscribe_resource=unsubscribe,
        on_subscriptions_listen=ListenHandler(WORLD.bus),
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_completion=complete,
    )
    server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, set_level)
    security = RequestStateSecurity(keys=[secrets.token_bytes(32)])
    server.middleware.append(RequestStateBoundary(security, default_audience=NAME))
    return server


class DemandHeaders:
    """ASGI: answers 401 to a request without the wanted headers, and counts.

    The suite swallows the failures of its clean-up requests, so passing every check would not prove that every
    request carried the header; the count does.
    """

    def __init__(self, app: ASGIApp, wanted: dict[str, str]) -> None:
        self.app = app
        self.wanted = {(name.lower().encode(), value.encode()) for name, value in wanted.items()}
        self.counts = {"requests": 0, "refused": 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count and serve, or refuse."""
        if scope["type"] == "http":
            self.counts["requests"] += 1
            if not self.wanted <= set(scope["headers"]):
                self.counts["refused"] += 1
                print(f"refused: {scope['method']} without {sorted(self.wanted)}", file=sys.stderr, flush=True)
                await Response("a demanded header is missing", status_code=401)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class AnnouncingServer(uvicorn.Server):
    """Uvicorn that prints where it listens once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then print the JSON line."""
        await super().startup(sockets=sockets)
        port = sockets[0].getsockname()[1] if sockets else None
        print(json.dumps({"port": port, "url": f"http://127.0.0.1:{port}/mcp"}), flush=True)

    def end_with_stdin(self) -> None:
        """Ask for the end of the server when standard input closes."""

        def wait() -> None:
            sys.stdin.buffer.read()
            self.should_exit = True

        threading.Thread(target=wait, daemon=True).start()


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="MCP conformance server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--until-stdin-closes", action="store_true")
    parser.add_argument("--demand", action="append", default=[], metavar="NAME=VALUE", help="a header to insist on")
    return parser.parse_args()


def main() -> None:
    """Serve until a signal (or the end of standard input), then print how many requests came and were refused."""
    options = parse_options()
    warnings.simplefilter("ignore", MCPDeprecationWarning)  # the old era is half of what is tested
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", options.port))
    mcp_app = build_server().streamable_http_app(
        host="127.0.0.1", event_store=RingEventStore(), retry_interval=RETRY_MS
    )
    app = DemandHeaders(mcp_app, dict(pair.split("=", 1) for pair in options.demand))
    # h11, not httptools: the latter leaves the spaces after a header value in place, and RFC 9110 5.5 (checked by
    # the suite on Mcp-Name) wants them gone.
    config = uvicorn.Config(app, http="h11", log_level="error", access_log=False, timeout_graceful_shutdown=1)
    server = AnnouncingServer(config)
    if options.until_stdin_closes:
        server.end_with_stdin()
    server.run(sockets=[listener])
    print(json.dumps(app.counts), flush=True)


if __name__ == "__main__":
    main()
