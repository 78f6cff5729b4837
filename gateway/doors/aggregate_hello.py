"""How the aggregated door introduces itself, and its session ids, which say all that `initialize` said."""

from __future__ import annotations

import base64
from typing import Any, Final

import msgspec

from .held import TASKS
from .jsonrpc import RpcError, encode
from .mcpfacts import HANDSHAKE, INVALID_PARAMS, MODERN

SERVER_INFO: Final = {"name": "agenticmail-enterprise", "title": "AgenticMail Enterprise gateway", "version": "0.1.0"}
CAPABILITIES: Final[dict[str, Any]] = {
    "tools": {"listChanged": True}, "resources": {"listChanged": True, "subscribe": True},
    "prompts": {"listChanged": True}, "completions": {}, "logging": {},
}  # fmt: skip
INSTRUCTIONS: Final = "Tools and prompts are named server__name. A refused call says why and names its decision."
INTRODUCTION: Final = {"capabilities": CAPABILITIES, "serverInfo": SERVER_INFO, "instructions": INSTRUCTIONS}
DISCOVERED: Final = {
    "supportedVersions": [MODERN], **INTRODUCTION, "capabilities": {**CAPABILITIES, "extensions": {TASKS: {}}},
    "ttlMs": 0, "cacheScope": "private",
}  # fmt: skip
"""The result of `server/discover` (2026-07-28)."""

MAX_SESSION: Final = 2048

_said: Final = msgspec.json.Decoder(dict[str, Any]).decode


def begin(message: dict[str, Any], unique: str, worker: int) -> tuple[str, dict[str, Any]]:
    """(what the session id says, the result) of an `initialize`. Raises RpcError(INVALID_PARAMS)."""
    params = message.get("params") or {}
    asked = params.get("protocolVersion")
    version = asked if asked in HANDSHAKE else HANDSHAKE[0]
    capabilities = params.get("capabilities")
    info = params.get("clientInfo")
    if not isinstance(capabilities, dict) or not isinstance(info, dict):
        raise RpcError(INVALID_PARAMS, "initialize needs capabilities and clientInfo.", message["id"])
    client = {"name": str(info.get("name", ""))[:64], "version": str(info.get("version", ""))[:32]}
    said = encode({"v": version, "c": capabilities, "i": client, "n": unique, "w": worker})
    if len(said) > MAX_SESSION:
        raise RpcError(INVALID_PARAMS, "The capabilities are too large.", message["id"])
    payload = base64.urlsafe_b64encode(said).decode().rstrip("=")
    return payload, {"protocolVersion": version, **INTRODUCTION}


def unpack(payload: str) -> dict[str, Any]:
    """What a session id says: `v` revision, `c` capabilities, `i` client, `w` worker, `n` what makes it unique."""
    return _said(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
