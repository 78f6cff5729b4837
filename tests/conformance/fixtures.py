"""What the conformance suite expects an "everything" server to serve, as tables in wire form.

Each table is keyed by the name that the suite asks for; `everything.py` turns the rows into answers. The facts
come from the scenario descriptions in `@modelcontextprotocol/conformance` (`index.js list`, and the "Server
Implementation Requirements" of every scenario).

* `STATIC_TOOLS` - tools that always answer the same content.
* `ASKING_TOOLS` - 2026-07-28 tools that answer `input_required` until every question of theirs is answered.
* `ELICITING_TOOLS` - 2025-11-25 tools that ask the client for input during the call.
* `RESOURCES`, `TEMPLATE`, `PROMPTS` - what the lists show and what a read or a get returns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# One red pixel as PNG; an empty 8 kHz mono WAV. The suite checks presence and mime type, not the picture.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="

NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}


def text(value: str) -> dict[str, Any]:
    """One text content block."""
    return {"type": "text", "text": value}


def image() -> dict[str, Any]:
    """One image content block."""
    return {"type": "image", "data": PNG, "mimeType": "image/png"}


def embedded(uri: str, mime_type: str, value: str) -> dict[str, Any]:
    """One embedded text resource as a content block."""
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime_type, "text": value}}


def form(message: str, **properties: Any) -> dict[str, Any]:
    """An elicitation request with a form of required fields."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def sampling(prompt: str, max_tokens: int) -> dict[str, Any]:
    """A sampling request with one user message."""
    messages = [{"role": "user", "content": text(prompt)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": max_tokens}}


ROOTS: dict[str, Any] = {"method": "roots/list", "params": {}}
ASK_NAME = form("What is your name?", name={"type": "string"})
CONFIRM = form("Please confirm", ok={"type": "boolean"})

# The full vocabulary that the `json-schema-2020-12` scenario looks for in `tools/list`.
JSON_SCHEMA_2020_12: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


class StaticTool(NamedTuple):
    """A tool whose answer never changes."""

    description: str
    content: list[dict[str, Any]]
    is_error: bool = False
    input_schema: dict[str, Any] = NO_ARGUMENTS


# `test_simple_text` stays first: the header scenarios call the first listed tool with no arguments.
STATIC_TOOLS: dict[str, StaticTool] = {
    "test_simple_text": StaticTool("Answers one text.", [text("This is a simple text response for testing.")]),
    "test_image_content": StaticTool("Answers one image.", [image()]),
    "test_audio_content": StaticTool("Answers one sound.", [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]),
    "test_embedded_resource": StaticTool(
        "Answers one embedded resource.",
        [embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")],
    ),
    "test_multiple_content_types": StaticTool(
        "Answers a text, an image and a resource.",
        [
            text("Multiple content types test:"),
            image(),
            embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
        ],
    ),
    "test_error_handling": StaticTool(
        "Always fails.", [text("This tool intentionally returns an error for testing")], is_error=True
    ),
    "json_schema_2020_12_tool": StaticTool(
        "Lists a JSON Schema 2020-12 input schema.", [text("ok")], input_schema=JSON_SCHEMA_2020_12
    ),
}


class AskingTool(NamedTuple):
    """A tool that needs answers before it can complete (SEP-2322)."""

    description: str
    questions: dict[str, dict[str, Any]]
    state: str | None = None


ASKING_TOOLS: dict[str, AskingTool] = {
    "test_input_required_result_elicitation": AskingTool("Asks for a name.", {"user_name": ASK_NAME}),
    "test_input_required_result_sampling": AskingTool(
        "Asks the client's model.", {"capital_question": sampling("What is the capital of France?", 100)}
    ),
    "test_input_required_result_list_roots": AskingTool("Asks for the client's roots.", {"client_roots": ROOTS}),
    "test_input_required_result_request_state": AskingTool(
        "Asks, and wants its state back.", {"confirm": CONFIRM}, state="state-ok"
    ),
    "test_input_required_result_multiple_inputs": AskingTool(
        "Asks three questions of three kinds.",
        {"user_name": ASK_NAME, "greeting": sampling("Generate a greeting", 50), "client_roots": ROOTS},
        state="multiple-inputs",
    ),
    "test_input_required_result_tampered_state": AskingTool(
        "Asks, and refuses a changed state.", {"confirm": CONFIRM}, state="state-ok"
    ),
}

# The rounds of `test_input_required_result_multi_round`, in order: key of the question, the question.
ROUNDS: list[tuple[str, dict[str, Any]]] = [
    ("step1", form("Step 1: What is your name?", name={"type": "string"})),
    ("step2", form("Step 2: What is your favorite color?", color={"type": "string"})),
]

# `test_input_required_result_capabilities`: the capability that each question needs.
CAPABILITY_QUESTIONS: dict[str, dict[str, Any]] = {
    "sampling": sampling("Say hello", 50),
    "elicitation": ASK_NAME,
}


def _titled(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"const": value, "title": title} for value, title in pairs]


class ElicitingTool(NamedTuple):
    """A tool that sends `elicitation/create` while it runs (2025-11-25)."""

    description: str
    message: str
    properties: dict[str, Any]


ELICITING_TOOLS: dict[str, ElicitingTool] = {
    "test_elicitation": ElicitingTool(
        "Asks the user for two fields, with the given message.",
        "",
        {
            "username": {"type": "string", "description": "User's response"},
            "email": {"type": "string", "description": "User's email address"},
        },
    ),
    "test_elicitation_sep1034_defaults": ElicitingTool(
        "Asks with a default for every primitive type.",
        "Please review and update the form fields with defaults",
        {
            "name": {"type": "string", "description": "User name", "default": "John Doe"},
            "age": {"type": "integer", "description": "User age", "default": 30},
            "score": {"type": "number", "description": "User score", "default": 95.5},
            "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
            "verified": {"type": "boolean", "description": "Verification status", "default": True},
        },
    ),
    "test_elicitation_sep1330_enums": ElicitingTool(
        "Asks with every form of choice.",
        "Please select options from the enum fields",
        {
            "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
            "titledSingle": {
                "type": "string",
                "oneOf": _titled(("value1", "First Option"), ("value2", "Second Option"), ("value3", "Third Option")),
            },
            "legacyEnum": {
                "type": "string",
                "enum": ["opt1", "opt2", "opt3"],
                "enumNames": ["Option One", "Option Two", "Option Three"],
            },
            "untitledMulti": {
                "type": "array",
                "items": {"type": "string", "enum": ["option1", "option2", "option3"]},
            },
            "titledMulti": {
                "type": "array",
                "items": {"anyOf": _titled(("value1", "First Choice"), ("value2", "Second Choice"))},
            },
        },
    ),
}


class ResourceRow(NamedTuple):
    """One listed resource; `body` is merged into the `resources/read` contents."""

    name: str
    description: str
    mime_type: str
    body: dict[str, str]


RESOURCES: dict[str, ResourceRow] = {
    "test://static-text": ResourceRow(
        "Static text", "A text", "text/plain", {"text": "This is the content of the static text resource."}
    ),
    "test://static-binary": ResourceRow("Static binary", "A picture", "image/png", {"blob": PNG}),
    "test://watched-resource": ResourceRow(
        "Watched", "Can be subscribed to", "text/plain", {"text": "Watched resource content"}
    ),
}

TEMPLATE = {
    "uriTemplate": "test://template/{id}/data",
    "name": "Template",
    "description": "A resource with a parameter",
    "mimeType": "application/json",
}
TEMPLATE_PATTERN = r"test://template/(?P<id>[^/]+)/data"


class PromptRow(NamedTuple):
    """One prompt: its arguments (all required) and its messages, with `{argument}` in any string replaced."""

    description: str
    arguments: tuple[str, ...]
    messages: list[dict[str, Any]]


PROMPTS: dict[str, PromptRow] = {
    "test_simple_prompt": PromptRow("One text.", (), [text("This is a simple prompt for testing.")]),
    "test_prompt_with_arguments": PromptRow(
        "One text with two arguments.",
        ("arg1", "arg2"),
        [text("Prompt with arguments: arg1='{arg1}', arg2='{arg2}'")],
    ),
    "test_prompt_with_embedded_resource": PromptRow(
        "A resource and a text.",
        ("resourceUri",),
        [
            embedded("{resourceUri}", "text/plain", "Embedded resource content for testing."),
            text("Please process the embedded resource above."),
        ],
    ),
    "test_prompt_with_image": PromptRow("An image and a text.", (), [image(), text("Please analyze the image above.")]),
}

ASKING_PROMPT = "test_input_required_result_prompt"
ASKING_PROMPT_QUESTION = {
    "user_context": form("What context should the prompt use?", context={"type": "string"}),
}
