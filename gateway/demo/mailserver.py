"""The demo's mail server: a real MCP server on plain JSON-RPC, without any SDK.

    python -m agenticmail_enterprise.gateway.demo.mailserver --folder DIR              over stdio
    python -m agenticmail_enterprise.gateway.demo.mailserver --folder DIR --http 8010  over streamable HTTP, loopback

`MailServer.handle` takes a message and returns its answer; the transports carry bytes to it and from it. It keeps no
state between messages, so one server serves the revisions with a handshake (2025-11-25, 06-18, 03-26) and the
stateless one (2026-07-28), whose requests are known by the envelope in their `_meta`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from ..doors import mcpfacts as mcp
from . import mailtools
from .mailbox import Mailbox, MailFault

Params = dict[str, Any]
Result = dict[str, Any]

SERVER_INFO: Final = {"name": "demo-mail", "title": "Demo mail", "version": "1.0.0"}
META_SERVER: Final = "io.modelcontextprotocol/serverInfo"
CAPABILITIES: Final[dict[str, Any]] = {"tools": {}, "resources": {}, "prompts": {}}
INSTRUCTIONS: Final = "A mailbox in a local folder. Mails that are sent are written into its outbox."
MAX_LINE: Final = 10_000_000
MAX_BATCH: Final = 100

FRESH: Final = {"ttlMs": 0, "cacheScope": "private"}
"""What 2026-07-28 wants of lists and reads: never to be kept, since any call may change them."""


class RpcFault(Exception):
    """A request that is answered with a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.error: dict[str, Any] = {"code": code, "message": message}
        if data is not None:
            self.error["data"] = data


class MailServer:
    """One mailbox as an MCP server."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._methods: dict[str, Callable[[Params], Result]] = {
            "tools/list": self._tools,
            "tools/call": self._call,
            "resources/list": self._resources,
            "resources/templates/list": self._templates,
            "resources/read": self._read,
            "prompts/list": self._prompts,
            "prompts/get": self._prompt,
        }
        self._handshake_only: dict[str, Callable[[Params], Result]] = {
            "initialize": _initialize,
            "ping": lambda params: {},
        }
        self._modern_only: dict[str, Callable[[Params], Result]] = {"server/discover": _discover}

    def handle(self, message: Any) -> dict[str, Any] | list[dict[str, Any]] | None:
        """The answer to a message that was read from JSON: an object, a list of them for a batch (2025-03-26), or
        None when none is due (notifications, and answers to requests that we never make)."""
        if isinstance(message, list):
            if not 1 <= len(message) <= MAX_BATCH:
                return _error(None, mcp.INVALID_REQUEST, f"A batch has 1 to {MAX_BATCH} messages.")
            answers = [answer for answer in map(self._one, message) if answer is not None]
            return answers or None
        return self._one(message)

    def _one(self, message: Any) -> dict[str, Any] | None:
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return _error(None, mcp.INVALID_REQUEST, "This is not a JSON-RPC 2.0 message.")
        request_id, method = message.get("id"), message.get("method")
        if method is None and ("result" in message or "error" in message):
            return None
        if "id" in message and (isinstance(request_id, bool) or not isinstance(request_id, str | int)):
            return _error(None, mcp.INVALID_REQUEST, "An id is a string or an integer.")
        if not isinstance(method, str):
            return _error(request_id, mcp.INVALID_REQUEST, "The method is a string.")
        if "id" not in message:
            return None
        try:
            result = self._answer(method, message.get("params", {}))
        except RpcFault as fault:
            return {"jsonrpc": "2.0", "id": request_id, "error": fault.error}
        except Exception as error:  # noqa: BLE001 - the boundary: the client must get an answer, and no traceback
            print(f"mailserver: {method}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return _error(request_id, mcp.INTERNAL_ERROR, "The server could not do that.")
        return {"jsonrpc": "2.0", "id": request_id, "result": result}

    def _answer(self, method: str, params: Any) -> Result:
        if not isinstance(params, dict):
            raise RpcFault(mcp.INVALID_PARAMS, "The params are an object.")
        modern = method != "initialize" and enveloped(params)
        own = self._modern_only if modern else self._handshake_only
        run = self._methods.get(method) or own.get(method)
        if run is None:
            raise RpcFault(mcp.METHOD_NOT_FOUND, f"There is no method {method!r} here.")
        try:
            result = run(params)
        except MailFault as fault:
            gone = mcp.INVALID_PARAMS if modern or method != "resources/read" else mcp.RESOURCE_NOT_FOUND
            raise RpcFault(gone, str(fault)) from None
        if not modern:
            return result
        kept = {} if method in {"tools/call", "prompts/get"} else FRESH
        return {**result, **kept, "resultType": "complete", "_meta": {META_SERVER: SERVER_INFO}}

    # -- the methods -------------------------------------------------------------------------------------------------
    def _tools(self, params: Params) -> Result:
        _one_page(params)
        return {"tools": [mailtools.describe(tool) for tool in mailtools.TOOLS]}

    def _call(self, params: Params) -> Result:
        tool = mailtools.BY_NAME.get(_named(params, "name"))
        if tool is None:
            raise RpcFault(mcp.INVALID_PARAMS, f"There is no tool {params['name']!r}.")
        return mailtools.call(self._mailbox, tool, _arguments(params))

    def _resources(self, params: Params) -> Result:
        _one_page(params)
        return {
            "resources": [
                {"uri": uri, "name": name, "description": description, "mimeType": "application/json"}
                for uri, (name, description) in mailtools.RESOURCES.items()
            ]
        }

    def _templates(self, params: Params) -> Result:
        _one_page(params)
        template = {"uriTemplate": mailtools.MESSAGE_URI + "{id}", "name": "message", "mimeType": "text/plain"}
        return {"resourceTemplates": [template | {"description": "The text of one mail."}]}

    def _read(self, params: Params) -> Result:
        uri = _named(params, "uri")
        media, text = mailtools.resource_text(self._mailbox, uri)
        return {"contents": [{"uri": uri, "mimeType": media, "text": text}]}

    def _prompts(self, params: Params) -> Result:
        _one_page(params)
        return {"prompts": [mailtools.PROMPT]}

    def _prompt(self, params: Params) -> Result:
        if _named(params, "name") != mailtools.PROMPT["name"]:
            raise RpcFault(mcp.INVALID_PARAMS, f"There is no prompt {params['name']!r}.")
        arguments = _arguments(params)
        if arguments.keys() != {"id"}:
            raise RpcFault(mcp.INVALID_PARAMS, "This prompt takes one argument, 'id'.")
        text = mailtools.prompt_text(self._mailbox, _named(arguments, "id"))
        message = {"role": "user", "content": {"type": "text", "text": text}}
        return {"description": mailtools.PROMPT["description"], "messages": [message]}


def _initialize(params: Params) -> Result:
    asked = _named(params, "protocolVersion")
    return {
        "protocolVersion": asked if asked in mcp.HANDSHAKE else mcp.HANDSHAKE[0],
        "capabilities": CAPABILITIES, "serverInfo": SERVER_INFO, "instructions": INSTRUCTIONS,
    }  # fmt: skip


def _discover(params: Params) -> Result:
    return {"supportedVersions": [mcp.MODERN], "capabilities": CAPABILITIES, "instructions": INSTRUCTIONS}


def enveloped(params: Params) -> bool:
    """True for a request of the stateless revision. Raises RpcFault for half an envelope, or another revision's."""
    meta = params.get("_meta")
    if not isinstance(meta, dict) or mcp.META_VERSION not in meta:
        return False
    version = meta[mcp.META_VERSION]
    if not isinstance(version, str) or not isinstance(meta.get(mcp.META_CAPABILITIES), dict):
        raise RpcFault(mcp.INVALID_PARAMS, f"_meta needs {mcp.META_VERSION} and {mcp.META_CAPABILITIES}.")
    if version != mcp.MODERN:
        known = {"supported": [mcp.MODERN], "requested": version}
        raise RpcFault(mcp.UNSUPPORTED_VERSION, "This revision is not spoken here.", known)
    return True


def _named(params: Params, field: str) -> str:
    value = params.get(field)
    if not isinstance(value, str) or not value:
        raise RpcFault(mcp.INVALID_PARAMS, f"{field!r} must be a non-empty string.")
    return value


def _arguments(params: Params) -> dict[str, Any]:
    arguments = params.get("arguments")
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise RpcFault(mcp.INVALID_PARAMS, "'arguments' must be an object.")
    return arguments


def _one_page(params: Params) -> None:
    if params.get("cursor") is not None:
        raise RpcFault(mcp.INVALID_PARAMS, "No list here has a second page.")


def _error(request_id: Any, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}


# -- bytes ---------------------------------------------------------------------------------------------------------
def read_json(data: bytes) -> Any:
    """Strict: UTF-8, no key twice, no NaN, not nested too deeply. Raises RpcFault(PARSE_ERROR)."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RpcFault(mcp.PARSE_ERROR, f"This is not valid JSON: {str(error)[:200]}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def write_json(answer: Any) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode("ascii")


def serve_stdio(server: MailServer, source: BinaryIO, sink: BinaryIO) -> None:
    """One message a line, until the end of `source`."""
    while line := source.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            while not line.endswith(b"\n") and (line := source.readline(MAX_LINE)):
                pass
            answer: Any = _error(None, mcp.PARSE_ERROR, f"A line has at most {MAX_LINE} bytes.")
        elif not line.strip():
            continue
        else:
            try:
                answer = server.handle(read_json(line))
            except RpcFault as fault:
                answer = {"jsonrpc": "2.0", "id": None, "error": fault.error}
        if answer is not None:
            sink.write(write_json(answer) + b"\n")
            sink.flush()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mailserver", description="A small MCP server: a mailbox in a folder.")
    parser.add_argument("--folder", required=True, type=Path, help="where the mails are; made if it is not there")
    parser.add_argument(
        "--http", type=int, metavar="PORT", help="serve streamable HTTP on 127.0.0.1 (0: any free port)"
    )
    options = parser.parse_args(argv)
    try:
        server = MailServer(Mailbox(options.folder))
    except OSError as error:
        print(f"mailserver: {options.folder}: {error.strerror}", file=sys.stderr)
        return 1
    try:
        if options.http is None:
            serve_stdio(server, sys.stdin.buffer, sys.stdout.buffer)
        else:
            from .mailhttp import serve_http  # only here: aiohttp takes longer to import than all the rest

            serve_http(server, options.http)
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
