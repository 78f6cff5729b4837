"""An upstream that answers every POST with the same `tools/call` result, as cheaply as Python can."""

from __future__ import annotations

import asyncio
import json
import sys

import httptools
import uvloop

TEXT = "The message was filed under invoices; three others from the same sender wait in the inbox. " * 2
RESULT = {"content": [{"type": "text", "text": TEXT}], "isError": False}
BODY = json.dumps({"jsonrpc": "2.0", "id": 7, "result": RESULT}, separators=(",", ":")).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class Upstream(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.transport.write(ANSWER)  # type: ignore[attr-defined]


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main())
