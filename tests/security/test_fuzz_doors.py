"""Bytes nobody would send, at both lanes of every door. Whatever they are: the gateway lives, answers no 5xx, and the
server behind it sees nothing but calls that the policy allows, read the same way by every kind of reader."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.examples import UNSHRUNK
from tests.security.stage import ALLOWED, Stage, anonymous
from tests.security.wire import CALL, Reply, compact, request

FUZZ = settings(max_examples=150, phases=UNSHRUNK, suppress_health_check=list(HealthCheck))
PATHS = ("/mcp/mail", "/mcp", "/api/engine/check-permission", "/api/engine/tool-calls")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("fuzz")) as made:
        yield made
        assert made.errors == []


def tool(name: str, arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


SEEDS = (
    compact(CALL), compact(tool("delete_mail", {"id": 1})), compact(tool("send_mail", {"to": "eve@evil.test"})),
    compact(tool("send_mail", {"to": "ada@acme.test"})), json.dumps(CALL, indent=1).encode(),
    compact([tool("read_mail", {}), tool("delete_mail", {})]), compact({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}),
    compact({"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": "mail://secret"}}),
    compact({"tool": "exec", "args": {"a": 1}}), compact({"checks": [{"tool": "exec"}, {"tool": "rm"}]}),
    compact({"decision_id": "dec_" + "0" * 32}), b"", b"{}",
)  # fmt: skip
TOKENS = (
    b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"\0", b" ", b":", b"\t", b"\xff", b"\xef\xbb\xbf", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"Connection: close\r\n",
    b"Connection: keep-alive\r\n", b"Connection: X-API-Key\r\n", b"Expect: 100-continue\r\n", b"Host: evil.test\r\n", b"Upgrade: h2c\r\n",
    b"Mcp-Name: delete_mail\r\n", b"Mcp-Method: ping\r\n", b"MCP-Protocol-Version: 2026-07-28\r\n", b"Content-Encoding: gzip\r\n",
    b"X-API-Key: ek_x\r\n", b"Mcp-Session-Id: a.b\r\n", b"HTTP/1.0", b"HTTP/2.0", b"GET ", b"POST ", b"/mcp/mail", b"?x", b"%2f", b"..", b'"', b"\\", b"{", b"}",
    b"[", b"]", b",", b'"name":"delete_mail",', b'"Name":"delete_mail",', b'"method":"tools/call",', b"\\u0000", b"\\ud800", b"1e999", b"null",
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """A few cuts, insertions and repetitions."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(("insert", "insert", "byte", "cut", "repeat", "overwrite")))
        length = draw(st.integers(1, 12))
        if kind == "insert":
            data[at:at] = draw(st.sampled_from(TOKENS))
        elif kind == "byte":
            data[at:at] = draw(st.binary(min_size=1, max_size=3))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length * 4]
        else:
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
    return bytes(data)


@st.composite
def conversation(draw: st.DrawFn, key: str, session: str, forced: str) -> list[bytes]:
    """One to three requests after each other, damaged, in pieces. `forced`: a header that decides the lane."""
    stream = bytearray()
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PATHS))
        method = draw(st.sampled_from(("POST", "POST", "POST", "POST", "GET", "DELETE")))
        body = draw(st.sampled_from(SEEDS))
        good = request(
            key, body, line=f"{method} {path} HTTP/1.1", headers=forced + (session if path == "/mcp" else "")
        )
        stream += draw(mutated(good))
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=3)))
    edges = [0, *cuts, len(stream)]
    pieces = [bytes(stream[start:end]) for start, end in itertools.pairwise(edges) if end > start]
    # So that a whole request is told apart from one that waits for more: this one is answered and ends it.
    return [*pieces, b"\r\n\r\nGET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"]


def hold(stage: Stage, replies: list[Reply]) -> None:
    """What is promised whatever was sent."""
    assert all(200 <= reply.status < 500 for reply in replies), replies
    records = stage.records()
    messages = [part for _, seen in stage.server.seen for part in (seen if isinstance(seen, list) else [seen])]
    bodies = stage.server.bodies[:]
    stage.server.seen.clear()
    stage.server.bodies.clear()
    for message in messages:
        may_pass(message)
    for body in bodies:
        one_reading(body)
    calls = sum(message.get("method") == "tools/call" for message in messages)
    allowed = [
        r
        for r in records
        if r.effect == "allow" and r.tool.startswith("mail__") and ":" not in r.tool and r.door == "mcp"
    ]
    assert len(allowed) == calls, (records, messages)
    (alive,) = stage.converse([request(stage.key, headers="Connection: close\r\n")])
    assert (alive.status, alive.json["result"]["isError"]) == (200, False)
    stage.server.seen.clear()
    stage.server.bodies.clear()
    stage.records()


def may_pass(message: dict[str, Any]) -> None:
    method, params = message.get("method"), message.get("params") or {}
    if method == "tools/call":
        assert params["name"] in ALLOWED, message
        if params["name"] == "send_mail":
            assert str(params["arguments"]["to"]).endswith("@acme.test"), message
    elif method in {"resources/read", "resources/subscribe"}:
        assert params["uri"] == "mail://inbox"
    elif isinstance(method, str):
        assert (
            method.casefold().strip() not in {"tools/call", "resources/read", "prompts/get"}
            or params.get("name") == "summary"
        )


def one_reading(body: bytes) -> None:
    """First key or last, cased or not: every reader finds the same call."""
    if not body:
        return

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in found]
        assert len(set(keys)) == len(keys), body
        return dict(found)

    message = json.loads(body.decode("utf-8"), object_pairs_hook=pairs)
    for part in message if isinstance(message, list) else [message]:
        judged = str(part.get("method")).casefold() in {
            "tools/call",
            "resources/read",
            "resources/subscribe",
            "prompts/get",
        }
        for holder in (part, (part.get("params") if judged else None) or {}):
            folded = [
                key.casefold()
                for key in holder
                if key.casefold() in {"jsonrpc", "method", "params", "id", "name", "uri", "arguments"}
            ]
            assert len(set(folded)) == len(folded), body


@pytest.mark.parametrize("forced", ["", "X-Forwarded-For: 192.0.2.1\r\n"], ids=["fast", "aiohttp"])
def test_whatever_bytes_are_sent(stage: Stage, forced: str) -> None:
    @FUZZ
    @given(st.data())
    def story(data: st.DataObject) -> None:
        hold(stage, stage.converse(data.draw(conversation(stage.key, stage.session, forced))))

    story()


@pytest.mark.parametrize("path", PATHS)
def test_bytes_that_are_no_http_at_all(stage: Stage, path: str) -> None:
    @settings(FUZZ, max_examples=30)
    @given(st.binary(max_size=200))
    def story(data: bytes) -> None:
        hold(stage, stage.converse([data, f"POST {path} HTTP/1.1\r\n\r\n".encode()]))

    story()


# -- JSON that is well-formed, and odd ---------------------------------------------------------------------------
KEYS = st.sampled_from(
    (
        "jsonrpc",
        "id",
        "method",
        "params",
        "name",
        "arguments",
        "uri",
        "_meta",
        "Method",
        "NAME",
        "params ",
        "na\u017fme",
        "x",
        "tool",
        "args",
        "checks",
    )
)
NAMES = st.just("read_mail") | st.sampled_from(
    (
        "read_mail",
        "delete_mail",
        "send_mail",
        "mail__read_mail",
        "mail__delete_mail",
        "READ_MAIL",
        "read_mail ",
        "",
        "r\u0435ad_mail",
        "exec",
    )
)
METHODS = st.just("tools/call") | st.sampled_from(
    (
        "tools/call",
        "tools/list",
        "ping",
        "initialize",
        "resources/read",
        "prompts/get",
        "Tools/Call",
        "tools/call ",
        "notifications/x",
        "subscriptions/listen",
    )
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    NAMES,
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def messages(draw: st.DrawFn) -> Any:
    """Nearly JSON-RPC: most parts right, some of another type, some more than belong there."""
    message: dict[str, Any] = {
        "jsonrpc": "2.0",
        "id": draw(st.just(1) | st.sampled_from(("a", None, 1.5, True, {}))),
        "method": draw(METHODS),
    }
    params: Any = {
        "name": draw(NAMES),
        "arguments": draw(
            st.dictionaries(
                st.sampled_from(("to", "id", "To")),
                VALUES | st.sampled_from(("ada@acme.test", "eve@evil.test")),
                max_size=2,
            )
        ),
    }
    if draw(st.booleans()):
        params[draw(st.sampled_from(("Name", "NAME", "Arguments")) | KEYS)] = draw(VALUES)
    message["params"] = params if draw(st.integers(0, 5)) else draw(VALUES)
    if not draw(st.integers(0, 3)):
        message[draw(KEYS)] = draw(VALUES)
    return message if draw(st.integers(0, 5)) else [message, draw(VALUES)]


def spelt(value: Any, style: int) -> bytes:
    """The same JSON in another spelling."""
    if style == 0:
        return compact(value)
    if style == 1:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    text = json.dumps(value, indent=1)
    if style == 3:
        return text.replace('"name":', '"name": "delete_mail", "name":', 1).encode()
    return text.replace("name", "n\\u0061me", 1).encode()


def aggregated(message: Any) -> None:
    """Name the server, as this door wants it."""
    params = message.get("params") if isinstance(message, dict) else None
    if isinstance(params, dict) and isinstance(params.get("name"), str) and "__" not in params["name"]:
        params["name"] = f"mail__{params['name']}"


@pytest.mark.parametrize("path", ["/mcp/mail", "/mcp", "/api/engine/check-permission"])
def test_whatever_json_is_sent(stage: Stage, path: str) -> None:
    @FUZZ
    @given(messages(), st.integers(0, 3), st.booleans())
    def story(message: Any, style: int, close: bool) -> None:
        headers = "Connection: close\r\n" if close else "MCP-Protocol-Version: 2025-03-26\r\n"
        if path == "/mcp":
            headers += stage.session
            aggregated(message)
        sent = request(stage.key, spelt(message, style), line=f"POST {path} HTTP/1.1", headers=headers)
        replies = stage.converse(
            [sent, *([] if close else [b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"])]
        )
        assert len(replies) >= 1
        hold(stage, replies)

    story()


# -- two lanes, one gateway --------------------------------------------------------------------------------------
ALIKE = ("agent", "key", "door", "upstream", "tool", "effect", "rule", "code", "reason", "args_digest", "args",
         "request_bytes", "outcome", "status", "error", "response_bytes", "flags")  # fmt: skip
LINES = st.lists(
    st.sampled_from(("Mcp-Method: tools/call", "Mcp-Method: ping", "Mcp-Name: read_mail", "Mcp-Name: delete_mail", "X-Request-Id: request-1",
                     "MCP-Protocol-Version: 2025-11-25", "MCP-Protocol-Version: 2026-07-28", "Content-Encoding: identity", "Origin: http://localhost",
                     "Origin: http://evil.test", "X-API-Key: ek_b", "Authorization: Bearer ek_b", "Mcp-Session-Id: x", "X-A:  b\t")),
    max_size=3,
)  # fmt: skip


@pytest.mark.parametrize("path", ["/mcp/mail", "/api/engine/check-permission"])
def test_both_lanes_say_and_record_the_same(stage: Stage, path: str) -> None:
    @settings(FUZZ, max_examples=120)
    @given(st.one_of(messages(), st.sampled_from(SEEDS)), st.integers(0, 2), LINES)
    def story(message: Any, style: int, lines: list[str]) -> None:
        body = message if isinstance(message, bytes) else spelt(message, style)
        assume(b"initialize" not in body)  # each gets a session of its own
        outcomes = []
        for lane in ("Connection: keep-alive\r\n", "Connection: close\r\n"):
            headers = "".join(f"{line}\r\n" for line in lines) + lane
            sent = request(stage.key, body, line=f"POST {path} HTTP/1.1", headers=headers)
            end = [] if "close" in lane else [b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"]
            reply = stage.converse([sent, *end])[0]
            heard = {
                name: value
                for name, value in reply.headers.items()
                if name not in {"connection", "date", "x-request-id", "content-length"}
            }
            seen = [
                (message, {k: v for k, v in headers.items() if k.lower() != "traceparent"})
                for headers, message in stage.server.seen
                if any(name.lower() == "traceparent" for name in headers)  # not the gateway's own look at the server
            ]
            stage.server.seen.clear()
            stage.server.bodies.clear()
            records = [tuple(getattr(record, name) for name in ALIKE) for record in stage.records()]
            outcomes.append((reply.status, heard, anonymous(reply.body), seen, records))
        fast, other = outcomes
        assert fast == other

    story()
