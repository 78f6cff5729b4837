"""The tools of the everything server, and what calls change. `TOOLS` holds them all, in the order of the list."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import fixtures
from mcp import types
from mcp.server import ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus, PromptsListChanged, ToolsListChanged
from mcp.shared.exceptions import MCPError

Context = ServerRequestContext[Any, Any]
ToolAnswer = types.CallToolResult | types.InputRequiredResult

STEP_SECONDS = 0.05  # the pause that the suite asks for between two notifications of one call
RECONNECT_SECONDS = 0.2  # how long `test_reconnection` works after it closed its stream
LOG_LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")


class World:
    """What calls change: lists that grow and shrink, log levels and subscriptions by session."""

    def __init__(self) -> None:
        self.bus = InMemorySubscriptionBus()
        self.extra_tool = False
        self.extra_prompt = False
        self.log_levels: dict[str | None, str] = {}
        self.subscriptions: set[tuple[str | None, str]] = set()


WORLD = World()


@dataclass(frozen=True)
class Call:
    """One `tools/call`: the context, the arguments and the answers that the client brought along."""

    ctx: Context
    params: types.CallToolRequestParams

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments, `{}` when the client sent none."""
        return self.params.arguments or {}

    async def log(self, message: str, level: str = "info") -> None:
        """Send a log notification on this call's stream, unless the session asked for higher levels only."""
        floor = WORLD.log_levels.get(session_id(self.ctx), "debug")
        if LOG_LEVELS.index(level) >= LOG_LEVELS.index(floor):
            await self.ctx.session.send_log_message(level, message, related_request_id=self.ctx.request_id)


def session_id(ctx: Context) -> str | None:
    """The session of the request, None in the era without sessions."""
    return ctx.request.headers.get("mcp-session-id") if ctx.request is not None else None


def said(value: str) -> types.CallToolResult:
    """A result of one text."""
    return types.CallToolResult(content=[types.TextContent(type="text", text=value)])


def asking(questions: dict[str, dict[str, Any]], state: str | None = None) -> types.InputRequiredResult:
    """An `input_required` result with these questions (SEP-2322)."""
    wire = {"inputRequests": questions, **({"requestState": state} if state is not None else {})}
    return types.InputRequiredResult.model_validate(wire)


ANSWER_TYPES: dict[str, type] = {
    "elicitation/create": types.ElicitResult,
    "sampling/createMessage": types.CreateMessageResult,
    "roots/list": types.ListRootsResult,
}


def answered(questions: dict[str, dict[str, Any]], answers: dict[str, Any] | None) -> bool:
    """Whether every question has an answer of the kind that its method returns."""
    given = answers or {}
    return all(isinstance(given.get(key), ANSWER_TYPES[asked["method"]]) for key, asked in questions.items())


def _require_capability(ctx: Context, name: str) -> None:
    """Refuse with -32021 unless the client declared the capability `name`."""
    declared = ctx.session.client_capabilities
    if declared is None or getattr(declared, name) is None:
        raise MCPError(
            code=types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            message=f"This tool requires the client capability {name!r}",
            data={"requiredCapabilities": {name: {}}},
        )


@dataclass(frozen=True)
class Tool:
    """A tool that runs code: its listing and its handler."""

    listing: types.Tool
    run: Callable[[Call], Awaitable[ToolAnswer]]


TOOLS: dict[str, Tool] = {}

_MESSAGE_ARGUMENT = {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]}


def listing(name: str, description: str, schema: dict[str, Any] = fixtures.NO_ARGUMENTS) -> types.Tool:
    """What `tools/list` shows of a tool."""
    return types.Tool(name=name, description=description, input_schema=schema)


def tool(description: str, **properties: dict[str, Any]) -> Callable[[Callable[[Call], Awaitable[ToolAnswer]]], None]:
    """Register the decorated coroutine as the tool of its name; `properties` are its required arguments."""

    def register(run: Callable[[Call], Awaitable[ToolAnswer]]) -> None:
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        TOOLS[run.__name__] = Tool(listing(run.__name__, description, schema), run)

    return register


def _register_static(name: str, row: fixtures.StaticTool) -> None:
    result = types.CallToolResult.model_validate({"content": row.content, "isError": row.is_error})

    async def run(call: Call) -> ToolAnswer:
        return result

    TOOLS[name] = Tool(listing(name, row.description, row.input_schema), run)


def _register_asking(name: str, row: fixtures.AskingTool) -> None:
    async def run(call: Call) -> ToolAnswer:
        # A changed state never gets here: RequestStateBoundary refuses it before the handler.
        given = call.params
        if not answered(row.questions, given.input_responses) or given.request_state != row.state:
            return asking(row.questions, row.state)
        return said(f"All answers are in; {row.state or 'no state'}")

    TOOLS[name] = Tool(listing(name, row.description), run)


def _register_eliciting(name: str, row: fixtures.ElicitingTool) -> None:
    async def run(call: Call) -> ToolAnswer:
        schema = {"type": "object", "properties": row.properties, "required": list(row.properties)}
        message = call.arguments.get("message", row.message)
        answer = await call.ctx.session.elicit_form(message, schema, related_request_id=call.ctx.request_id)
        return said(f"Elicitation completed: action={answer.action}, content={json.dumps(answer.content)}")

    arguments = fixtures.NO_ARGUMENTS if row.message else _MESSAGE_ARGUMENT
    TOOLS[name] = Tool(listing(name, row.description, arguments), run)


for _name, _static in fixtures.STATIC_TOOLS.items():
    _register_static(_name, _static)
for _name, _row in fixtures.ASKING_TOOLS.items():
    _register_asking(_name, _row)
for _name, _eliciting in fixtures.ELICITING_TOOLS.items():
    _register_eliciting(_name, _eliciting)


@tool("Sends three log messages while it runs.")
async def test_tool_with_logging(call: Call) -> ToolAnswer:
    await call.log("Tool execution started")
    await asyncio.sleep(STEP_SECONDS)
    await call.log("Tool processing data")
    await asyncio.sleep(STEP_SECONDS)
    await call.log("Tool execution completed")
    return said("Tool with logging executed successfully")


@tool("Reports progress 0, 50 and 100 of 100 while it runs.")
async def test_tool_with_progress(call: Call) -> ToolAnswer:
    for done in (0, 50, 100):
        await call.ctx.session.report_progress(done, 100, f"Completed step {done} of 100")
        await asyncio.sleep(STEP_SECONDS)
    return said("Tool with progress executed successfully")


@tool("Asks the client's model to answer a prompt.", prompt={"type": "string"})
async def test_sampling(call: Call) -> ToolAnswer:
    message = types.SamplingMessage(role="user", content=types.TextContent(type="text", text=call.arguments["prompt"]))
    answer = await call.ctx.session.create_message([message], max_tokens=100, related_request_id=call.ctx.request_id)
    return said(f"LLM response: {answer.model_dump_json()}")


@tool("Closes its own event stream and finishes while nobody listens (SEP-1699).")
async def test_reconnection(call: Call) -> ToolAnswer:
    await call.log("Before disconnect")
    if call.ctx.close_sse_stream is not None:
        await call.ctx.close_sse_stream()
    await asyncio.sleep(RECONNECT_SECONDS)
    await call.log("After reconnect")
    return said("Reconnection test completed")


@tool("Logs, which reaches only a client that asked for logs with this request.")
async def test_logging_tool(call: Call) -> ToolAnswer:
    await call.log("Only for those who asked")
    return said("Logged")


@tool("Needs the client capability 'sampling'.")
async def test_missing_capability(call: Call) -> ToolAnswer:
    _require_capability(call.ctx, "sampling")
    return said("The client declared sampling")


@tool("Asks for input in its result, never by a request of its own on the stream.")
async def test_streaming_elicitation(call: Call) -> ToolAnswer:
    _require_capability(call.ctx, "elicitation")
    return asking({"user_name": fixtures.ASK_NAME})


@tool("Its argument travels in the header Mcp-Param-Region too.", region={"type": "string", "x-mcp-header": "Region"})
async def test_x_mcp_header(call: Call) -> ToolAnswer:
    return said(f"region={call.arguments['region']}")


@tool("Adds or removes a tool and announces it.")
async def test_trigger_tool_change(call: Call) -> ToolAnswer:
    WORLD.extra_tool = not WORLD.extra_tool
    await WORLD.bus.publish(ToolsListChanged())
    return said("The list of tools has changed")


@tool("Adds or removes a prompt and announces it.")
async def test_trigger_prompt_change(call: Call) -> ToolAnswer:
    WORLD.extra_prompt = not WORLD.extra_prompt
    await WORLD.bus.publish(PromptsListChanged())
    return said("The list of prompts has changed")


@tool("Asks in two rounds, each with its own state.")
async def test_input_required_result_multi_round(call: Call) -> ToolAnswer:
    asked = int(call.params.request_state or 0)  # how many rounds the client says it has seen
    if asked and not answered(dict(fixtures.ROUNDS[asked - 1 : asked]), call.params.input_responses):
        asked -= 1
    if asked == len(fixtures.ROUNDS):
        return said("All rounds are answered")
    return asking(dict(fixtures.ROUNDS[asked : asked + 1]), state=str(asked + 1))


@tool("Asks only what the client declared it can answer.")
async def test_input_required_result_capabilities(call: Call) -> ToolAnswer:
    declared = call.ctx.session.client_capabilities
    able = {
        name: question
        for name, question in fixtures.CAPABILITY_QUESTIONS.items()
        if declared is not None and getattr(declared, name) is not None
    }
    return asking(able, state="by-capability")
