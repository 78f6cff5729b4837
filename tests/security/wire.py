"""A client that sends exactly the bytes it is given, and reads answers strictly."""

from __future__ import annotations

import asyncio
import json
from typing import Any

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "read_mail", "arguments": {"id": "1"}}}
TIMEOUT = 60.0


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class Reply:
    """One answer, as it stood on the wire. `headers` are lower-cased; `closed`: the server said that it closes."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def closed(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<{self.status} {self.body[:300]!r}>"


async def read_reply(reader: asyncio.StreamReader) -> Reply | None:
    """The next final answer (1xx are passed over), or None at the end. Raises ValueError for what is no HTTP/1.1 answer."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise ValueError(f"half an answer: {error.partial!r}") from None
            return None
        except ConnectionError:
            return None
        start, *lines = head[:-4].decode("latin-1").split("\r\n")
        version, status, _ = start.split(" ", 2)
        if not version.startswith("HTTP/1."):
            raise ValueError(f"no HTTP answer: {start!r}")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if int(status) >= 200:
            break
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif "chunked" in headers.get("transfer-encoding", ""):
        body = await _chunks(reader)
    elif headers.get("connection", "").lower() == "close":
        body = await reader.read()
    else:
        body = b""
    return Reply(int(status), headers, body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(parts)


async def exchange(port: int, *pieces: bytes, end: bool = True) -> list[Reply]:
    """Send the pieces, each as a write of its own, and read all answers until the server closes. With `end` our side is
    closed when all is sent, so that a server that waits for more has to say so."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    replies: list[Reply] = []
    try:
        async with asyncio.timeout(TIMEOUT):
            sending = asyncio.ensure_future(_send(writer, pieces, end))
            while (reply := await read_reply(reader)) is not None:
                replies.append(reply)
            await sending
    finally:
        writer.close()
    return replies


async def _send(writer: asyncio.StreamWriter, pieces: tuple[bytes, ...], end: bool) -> None:
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        if end and writer.can_write_eof():
            writer.write_eof()
    except ConnectionError:
        return  # the server has heard enough


async def ask(port: int, request: bytes) -> Reply:
    """One request, one answer: read as soon as it is there, then the connection is dropped."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(TIMEOUT):
            await _send(writer, (request,), False)
            reply = await read_reply(reader)
    finally:
        writer.close()
    assert reply is not None, "the server closed without an answer"
    return reply


def request(
    key: str = "", body: bytes | None = None, *, line: str = "POST /mcp/mail HTTP/1.1", headers: str = "",
    host: str = "Host: 127.0.0.1\r\n", length: str | None = None,
) -> bytes:  # fmt: skip
    """A request in which everything can be said differently. `headers` and `host` are whole lines, with CRLF."""
    body = compact(CALL) if body is None else body
    length = f"Content-Length: {len(body)}\r\n" if length is None else length
    auth = f"X-API-Key: {key}\r\n" if key else ""
    head = f"{line}\r\n{host}{auth}Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n{length}{headers}\r\n"
    return head.encode("latin-1") + body
