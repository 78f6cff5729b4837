"""MCP's methods, headers and error codes as tables. Source: the specification, revisions 2025-03-26 to 2026-07-28."""

from __future__ import annotations

import base64
import binascii
from typing import Final, Literal

import msgspec

MODERN: Final = "2026-07-28"
"""The stateless revision: every request carries its own envelope, there is no session."""

HANDSHAKE: Final = ("2025-11-25", "2025-06-18", "2025-03-26")
"""Revisions with `initialize` and sessions, newest first."""

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
HEADER_MISMATCH: Final = -32020
UNSUPPORTED_VERSION: Final = -32022
RESOURCE_NOT_FOUND: Final = -32002
POLICY_DENIED: Final = -32010
"""Ours, from the range JSON-RPC leaves to implementations: a read or prompt that policy refuses."""
UPSTREAM_FAILED: Final = -32011
"""Ours: the server behind the gateway did not answer as it should."""

STATUS_OF: Final = {
    PARSE_ERROR: 400, INVALID_REQUEST: 400, INVALID_PARAMS: 400, HEADER_MISMATCH: 400, UNSUPPORTED_VERSION: 400,
    METHOD_NOT_FOUND: 404,
}  # fmt: skip
"""HTTP status of an error at 2026-07-28; others travel with 200."""

Kind = Literal["tool", "resource", "prompt"]


class Subject(msgspec.Struct, frozen=True):
    """What a judged method names: `params[field]`, governed as `prefix` + that name."""

    kind: Kind
    field: str
    prefix: str


TOOL: Final = Subject("tool", "name", "")
RESOURCE: Final = Subject("resource", "uri", "resource:")
PROMPT: Final = Subject("prompt", "name", "prompt:")

JUDGED: Final = {
    "tools/call": TOOL,
    "resources/read": RESOURCE,
    "resources/subscribe": RESOURCE,
    "prompts/get": PROMPT,
}

LISTS: Final = {
    "tools/list": ("tools", "name", ""),
    "resources/list": ("resources", "uri", "resource:"),
    "resources/templates/list": ("resourceTemplates", "uriTemplate", "template:"),
    "prompts/list": ("prompts", "name", "prompt:"),
}
"""List method -> key of the list in its result, field that names an item, prefix of its governed id."""


class Change(msgspec.Struct, frozen=True):
    """A kind of change that a server tells of: notification, capability that promises it, lists that it means."""

    notification: str
    capability: str
    lists: tuple[str, ...]


CHANGES: Final = {
    "toolsListChanged": Change("notifications/tools/list_changed", "tools", ("tools/list",)),
    "promptsListChanged": Change("notifications/prompts/list_changed", "prompts", ("prompts/list",)),
    "resourcesListChanged": Change(
        "notifications/resources/list_changed", "resources", ("resources/list", "resources/templates/list")
    ),
}
"""By the flag of `subscriptions/listen` (2026-07-28) that asks for them; the handshake era sends them unasked."""

LISTEN: Final = "subscriptions/listen"
ACKNOWLEDGED: Final = "notifications/subscriptions/acknowledged"
UPDATED: Final = "notifications/resources/updated"
META_SUBSCRIPTION: Final = "io.modelcontextprotocol/subscriptionId"
"""In `_meta` of all that a listening stream yields: the id of the request that listens."""

NAMED: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""Methods whose subject `Mcp-Name` must repeat at 2026-07-28."""

META_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
META_CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
META_CLIENT: Final = "io.modelcontextprotocol/clientInfo"


def governed_id(server: str, prefix: str, name: str) -> str:
    """The catalog's id of something a server offers: `files__read_file`, `files__resource:file:///a`."""
    return f"{server}__{prefix}{name}"


def header_value(raw: str) -> str | None:
    """An `Mcp-Name` value decoded: plain, or `=?base64?...?=`. None for a malformed or non-canonical wrapping."""
    if not (raw.startswith("=?base64?") and raw.endswith("?=")):
        return raw
    payload = raw[9:-2]
    try:
        decoded = base64.b64decode(payload, validate=True)
        if base64.b64encode(decoded).decode() != payload:
            return None
        return decoded.decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return None


def encode_header_value(value: str) -> str:
    """The inverse: wrapped when it would not survive as a header value."""
    plain = value.isascii() and value.isprintable() and value == value.strip() and not value.startswith("=?base64?")
    return value if plain else f"=?base64?{base64.b64encode(value.encode()).decode()}?="
