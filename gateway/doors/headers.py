"""Request and response headers crossing the gateway: one table says what each one's fate is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from ...catalog.errors import BadRequest, Unauthenticated, UnsupportedMedia
from ..wire import HOP_BY_HOP

DROP: Final = 0
NOTE: Final = 1
NOTE_AND_PASS: Final = 2

FATE: Final[dict[bytes, int]] = {
    # ours alone: the agent's credentials never travel on, the gateway injects its own
    b"x-api-key": NOTE,
    b"authorization": NOTE,
    b"cookie": DROP,
    # set anew by the gateway
    b"host": DROP,
    b"content-length": DROP,
    b"mcp-session-id": NOTE,
    # bodies reach upstreams as the bytes that were judged, answers come back as bytes that can be read
    b"content-encoding": NOTE,
    b"accept-encoding": DROP,
    b"expect": DROP,
    # addressed to this hop: checked at the edge, or about the way here
    b"origin": DROP,
    b"x-forwarded-for": DROP,
    b"x-forwarded-host": DROP,
    b"x-forwarded-proto": DROP,
    b"x-forwarded-port": DROP,
    b"x-real-ip": DROP,
    b"forwarded": DROP,
    # read here and passed on
    b"content-type": NOTE_AND_PASS,
    b"mcp-method": NOTE_AND_PASS,
    b"mcp-name": NOTE_AND_PASS,
    b"mcp-protocol-version": NOTE_AND_PASS,
    b"idempotency-key": NOTE_AND_PASS,
    b"traceparent": NOTE,
    b"x-request-id": NOTE_AND_PASS,
    **dict.fromkeys(HOP_BY_HOP, DROP),
}
"""Every other header passes as it is."""

SINGLE: Final = frozenset({
    b"x-api-key", b"authorization", b"mcp-session-id", b"content-type", b"mcp-method", b"mcp-name",
    b"mcp-protocol-version", b"content-encoding", b"idempotency-key",
})  # fmt: skip
"""Given twice, first-copy and last-copy readers would disagree: refused."""

RESPONSE_DROP: Final = HOP_BY_HOP | {b"content-length", b"set-cookie", b"x-request-id", b"alt-svc"}

_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{8,128}")
_UTF8: Final = frozenset({b"utf-8", b"utf8", b'"utf-8"', b'"utf8"'})


class Scan:
    """The headers of one request after one pass. `lines` are those that travel on, ready to be written."""

    __slots__ = ("lines", "noted")

    def __init__(self, lines: list[bytes], noted: dict[bytes, bytes]) -> None:
        self.lines = lines
        self.noted = noted

    def text(self, name: bytes) -> str:
        """A noted header as text, "" when absent."""
        value = self.noted.get(name)
        return value.decode("latin-1").strip() if value is not None else ""


def scan(raw_headers: Sequence[tuple[bytes, bytes]]) -> Scan:
    """One pass over a request's headers. Raises BadRequest for a doubled header that must be single."""
    lines: list[bytes] = []
    noted: dict[bytes, bytes] = {}
    named_by_connection: set[bytes] | None = None
    for name, value in raw_headers:
        low = name.lower()
        fate = FATE.get(low)
        if fate is None:
            lines.append(b"%b: %b\r\n" % (name, value))
        elif fate == DROP:
            if low == b"connection" and value.lower() not in {b"keep-alive", b"close"}:
                named_by_connection = {token.strip().lower() for token in value.split(b",")}
        else:
            if low in noted and low in SINGLE:
                raise BadRequest(f"The header {low.decode()} is given twice.")
            noted[low] = value
            if fate == NOTE_AND_PASS:
                lines.append(b"%b: %b\r\n" % (name, value))
    if named_by_connection:
        lines = [line for line in lines if line.partition(b":")[0].lower() not in named_by_connection]
    return Scan(lines, noted)


def api_key(noted: dict[bytes, bytes]) -> str:
    """The key a request carries, "" for none. Raises Unauthenticated when two headers carry different ones."""
    direct = noted.get(b"x-api-key")
    bearer = noted.get(b"authorization")
    token = b""
    if bearer is not None and bearer[:7].lower() == b"bearer ":
        token = bearer[7:].strip()
        if not token.startswith(b"ek_"):
            token = b""
    if direct is None:
        return token.decode("latin-1")
    direct = direct.strip()
    if token and token != direct:
        raise Unauthenticated("X-API-Key and Authorization carry different keys.")
    return direct.decode("latin-1")


def check_body_headers(noted: dict[bytes, bytes]) -> None:
    """Refuse what would make an upstream read other bytes than we judge. Raises UnsupportedMedia."""
    if b"content-encoding" in noted and noted[b"content-encoding"].strip().lower() not in {b"", b"identity"}:
        raise UnsupportedMedia("Send the body without a Content-Encoding.")
    kind = noted.get(b"content-type", b"")
    if b"charset" in kind.lower():
        charset = kind.lower().partition(b"charset=")[2].partition(b";")[0].strip()
        if charset not in _UTF8:
            raise UnsupportedMedia("The body must be UTF-8.")


def trace(noted: dict[bytes, bytes], call_id: str) -> tuple[str, bytes]:
    """(trace id, traceparent line to send on). A valid one passes as it is; else the call's own id begins a trace."""
    given = noted.get(b"traceparent")
    if given is not None:
        match = _TRACEPARENT.fullmatch(given)
        if match is not None and given[:2] != b"ff":
            return match[1].decode(), b"traceparent: %b\r\n" % given
    own = call_id[-32:]
    return own, f"traceparent: 00-{own}-{own[16:]}-01\r\n".encode()


def request_id(noted: dict[bytes, bytes], fallback: str) -> str:
    """The caller's X-Request-Id when it is one we would print, else `fallback`."""
    given = noted.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode()
    return fallback
