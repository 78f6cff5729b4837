"""The demo's agent: a process of its own on the official MCP client, as any agent would be.

Standard input: one line `{"url", "key", "steps": [{"tool", "args"}]}`, sent when the gateway is up (the client's import
takes most of a second, so the process is started before). Standard output: one JSON object a line, with `event`
connected, tools, call, failed or done.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client


def tell(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


async def visit(url: str, key: str, steps: list[dict[str, Any]]) -> None:
    """Connect, list the tools, make each call. A refusal by the gateway is a result with `is_error`, no exception."""
    async with (
        create_mcp_http_client(headers={"X-API-Key": key}) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        server = client.server_info
        tell("connected", server=server.name if server else "", protocol=str(client.protocol_version))
        listed = await client.list_tools()
        tell("tools", names=[tool.name for tool in listed.tools])
        for step in steps:
            began = time.perf_counter()
            result = await client.call_tool(step["tool"], step["args"])
            text = " ".join(getattr(block, "text", "") for block in result.content).strip()
            tell(
                "call", tool=step["tool"], args=step["args"], is_error=bool(result.is_error), text=text,
                ms=round((time.perf_counter() - began) * 1000, 1),
            )  # fmt: skip


def main() -> int:
    order = json.loads(sys.stdin.readline() or "{}")
    if not order:
        return 0  # the gateway never came up, and has said why
    try:
        asyncio.run(visit(order["url"], order["key"], order["steps"]))
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - whatever the client raises is what the spectator must see
        inner: BaseException = error
        while isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        tell("failed", reason=f"{type(inner).__name__}: {inner}")
        return 1
    tell("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
