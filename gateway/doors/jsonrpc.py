"""Strict reading of JSON-RPC bodies. What our reader and an upstream's could read differently is refused.

An attack on a gateway is a body that says one thing to the judge and another to the server behind it: a key given
twice, `Name` beside `name` for readers that ignore case, bytes that are not UTF-8. After `decode` there is one reading.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from .mcpfacts import INVALID_PARAMS, INVALID_REQUEST, JUDGED, LISTS, PARSE_ERROR

ENVELOPE: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
GOVERNED: Final = frozenset({*JUDGED, *LISTS, "subscriptions/listen"})
"""Methods whose answer or passage depends on policy."""

_decode: Final = msgspec.json.Decoder().decode
encode: Final = msgspec.json.Encoder().encode
MAX_NAME: Final = 2048
ODD: Final = (msgspec.MsgspecError, UnicodeError, ValueError, TypeError, OverflowError, RecursionError)
"""What reading or writing JSON anew may raise."""


class RpcError(Exception):
    """A request that is refused before any policy is asked: JSON-RPC code, sentence, and the id to answer to."""

    def __init__(self, code: int, message: str, request_id: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id


def decode(body: bytes) -> Any:
    """A JSON value with no key given twice. Raises RpcError(PARSE_ERROR).

    When encoding the value again gives the very bytes back, no key can have been dropped: true of every compact
    sender, and cheaper than any scan. Other spellings (spaces, escapes) take the careful way.
    """
    try:
        value = _decode(body)
        if encode(value) != body:
            json.loads(body, object_pairs_hook=_unique)
    except (msgspec.MsgspecError, UnicodeError, ValueError) as error:
        raise RpcError(PARSE_ERROR, f"The body is not valid JSON: {error}") from None
    except RecursionError:
        raise RpcError(PARSE_ERROR, "The body is nested too deeply.") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def check_envelope(message: Any) -> dict[str, Any]:
    """One JSON-RPC 2.0 request, notification or response. Raises RpcError(INVALID_REQUEST)."""
    if not isinstance(message, dict):
        raise RpcError(INVALID_REQUEST, "A JSON-RPC message is an object.")
    request_id = message.get("id")
    usable = request_id if isinstance(request_id, str | int) and not isinstance(request_id, bool) else None
    if message.get("jsonrpc") != "2.0":
        raise RpcError(INVALID_REQUEST, 'A JSON-RPC message says "jsonrpc": "2.0".', usable)
    if not message.keys() <= ENVELOPE:
        odd_case(message, ENVELOPE, usable)
    method = message.get("method")
    if method is None:
        if "result" in message or "error" in message:
            return message
        raise RpcError(INVALID_REQUEST, "A JSON-RPC message has a method, a result or an error.", usable)
    if not isinstance(method, str) or "result" in message or "error" in message:
        raise RpcError(INVALID_REQUEST, "The method of a JSON-RPC request is a string, and it has no result.", usable)
    if method not in GOVERNED:
        odd_method(method, usable)
    if "id" in message and usable is None:
        raise RpcError(INVALID_REQUEST, "The id of a JSON-RPC request is a string or an integer.")
    if not isinstance(message.get("params", {}), dict):
        raise RpcError(INVALID_PARAMS, "The params of an MCP request are an object.", usable)
    return message


def odd_case(found: dict[str, Any], known: frozenset[str], request_id: Any) -> None:
    """Refuse keys that equal a known one but for case: some readers would take them for it."""
    for key in found:
        if key not in known and key.casefold() in known:
            raise RpcError(INVALID_REQUEST, f"The key {key!r} is not spelt {key.casefold()!r}.", request_id)


def odd_method(method: str, request_id: Any) -> None:
    """Refuse a method that we forward unjudged and a careless reader would take for one that is judged or filtered."""
    if not method.isprintable() or any(char.isspace() for char in method):
        raise RpcError(INVALID_REQUEST, "The method has spaces or control characters.", request_id)
    if method.casefold().strip("/") in GOVERNED:
        raise RpcError(INVALID_REQUEST, f"The method is not spelt {method.casefold().strip('/')!r}.", request_id)


PARAM_KEYS: Final = frozenset({"name", "uri", "arguments", "_meta", "task", "ref", "argument"})


def subject_of(message: dict[str, Any], field: str) -> tuple[str, dict[str, Any]]:
    """The name a judged request is about, and its arguments. Raises RpcError(INVALID_PARAMS)."""
    params = message.get("params")
    request_id = message.get("id")
    if not params:
        raise RpcError(INVALID_PARAMS, f"params.{field} is missing.", request_id)
    name = params.get(field)
    if not isinstance(name, str) or not name:
        raise RpcError(INVALID_PARAMS, f"params.{field} must be a non-empty string.", request_id)
    if len(name) > MAX_NAME or not name.isprintable():
        raise RpcError(INVALID_PARAMS, f"params.{field} is too long or has control characters.", request_id)
    if not params.keys() <= PARAM_KEYS:
        odd_case(params, PARAM_KEYS, request_id)
    arguments = params.get("arguments")
    if arguments is None:
        return name, {}
    if not isinstance(arguments, dict):
        raise RpcError(INVALID_PARAMS, "params.arguments must be an object.", request_id)
    return name, arguments


CALL_KEYS: Final = frozenset({"jsonrpc", "id", "method", "params"})
CALL_PARAMS: Final = frozenset({"name", "arguments", "_meta"})


def plain_call(message: Any) -> tuple[str, dict[str, Any]] | None:
    """`subject_of` for the commonest message, a `tools/call` with nothing odd about it, in a tenth of the steps.
    None for anything else, which then takes the careful way."""
    if type(message) is not dict or message.keys() != CALL_KEYS or message["method"] != "tools/call":
        return None
    params = message["params"]
    if type(params) is not dict or not params.keys() <= CALL_PARAMS or message["jsonrpc"] != "2.0":
        return None
    name = params.get("name")
    arguments = params.get("arguments")
    if type(name) is not str or type(arguments) is not dict or type(message["id"]) not in {int, str}:
        return None
    if not name or len(name) > MAX_NAME or not name.isprintable():
        return None
    return name, arguments


def error_body(code: int, message: str, request_id: Any, data: Any = None) -> bytes:
    """A JSON-RPC error response. `id` is null when the request's could not be read."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return encode({"jsonrpc": "2.0", "id": request_id, "error": error})
