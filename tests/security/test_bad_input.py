"""Bad input at every door: a clear 4xx, a record in the journal, and nothing forwarded."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agenticmail_enterprise.catalog.profiles import Profile, ToolRule
from agenticmail_enterprise.catalog.records import CALLS, CallRecord
from agenticmail_enterprise.catalog.store import GLOBAL, Query
from agenticmail_enterprise.gateway.server import means_a_hot_door
from tests.flows.house import House
from tests.flows.servers import Counting
from tests.security.wire import CALL, Reply, ask, compact, request

ALL = Profile(name="all", tools=ToolRule(allow=("mail__*", "exec")), max_risk="critical", allow_unknown=True)
GOOD = compact(CALL)
SIZE = len(GOOD)
LIMIT = 10 * 1024 * 1024


HELLO = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
    "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}  # fmt: skip


class Scene:
    """A gateway with one server and one agent, the records that came since the last look. `session` is a header line
    for `/mcp`."""

    def __init__(self, house: House, server: Counting, key: str) -> None:
        self.house = house
        self.server = server
        self.key = key
        self.session = ""
        self._known: set[str] = set()

    async def new_records(self) -> list[CallRecord]:
        await self.house.runtime.journal.drained()
        found: list[CallRecord] = []
        for org in (self.house.org, GLOBAL):
            query = Query(CALLS, "by_org", {"org": org}, limit=100, descending=True)
            page = await self.house.runtime.store.find(query)
            found += [record for record in page.records if record.id not in self._known]
        self._known |= {record.id for record in found}
        return found

    async def refuses(self, bad: bytes, name: str, statuses: range | tuple[int, ...] = range(400, 500)) -> Reply:
        """Hold one bad request to all that is promised."""
        self.server.seen.clear()
        reply = await ask(self.house.server.port, bad)
        assert reply.status in statuses, (name, reply)
        assert self.server.seen == [], f"{name}: forwarded"
        if reply.body:
            said = reply.json
            told = said["error"]["message"] if isinstance(said["error"], dict) else said["error"]
            assert len(told) > 10, (name, reply)
            assert "Traceback" not in told
        for record in (records := await self.new_records()):
            assert (record.effect, record.outcome) == ("deny", "denied"), (name, record)
            assert record.reason, name
        assert records, f"{name}: no record"
        return reply

    async def still_serves(self) -> None:
        reply = await ask(self.house.server.port, request(self.key))
        assert (reply.status, reply.json["result"]["isError"]) == (200, False)


@asynccontextmanager
async def scene(folder: Path, **settings: Any) -> AsyncIterator[Scene]:
    async with Counting() as server, House(folder, **settings) as house:
        await house.upstream("mail", server.url)
        key = await house.agent("clerk", ALL)
        stage = Scene(house, server, key)
        await stage.still_serves()
        hello = await ask(house.server.port, request(key, compact(HELLO), line="POST /mcp HTTP/1.1"))
        stage.session = f"Mcp-Session-Id: {hello.headers['mcp-session-id']}\r\n"
        await stage.new_records()
        yield stage
        await stage.still_serves()


# -- bodies ------------------------------------------------------------------------------------------------------
def changed(**parts: Any) -> bytes:
    """The good call with parts of the message replaced; None leaves one out."""
    message = {name: value for name, value in {**CALL, **parts}.items() if value is not None}
    return compact(message)


def params(**parts: Any) -> bytes:
    kept = {**CALL["params"], **parts}  # type: ignore[dict-item]
    return changed(params={name: value for name, value in kept.items() if value is not ...})


NO_JSON: dict[str, bytes] = {
    "empty": b"", "cut": GOOD[:-3], "two documents": GOOD + GOOD, "a NUL after it": GOOD + b"\0", "a comment": b"/*x*/" + GOOD,
    "single quotes": GOOD.replace(b'"', b"'"), "a trailing comma": GOOD.replace(b'"1"}', b'"1",}'),
    "NaN": GOOD.replace(b'"1"}', b"NaN}"), "Infinity": GOOD.replace(b'"1"}', b"Infinity}"), "1e999": GOOD.replace(b'"1"}', b"1e999}"),
    "5000 digits": GOOD.replace(b'"1"}', b"1" * 5000 + b"}"), "a form": b"jsonrpc=2.0&method=tools/call",
    "100,000 brackets": b"[" * 100_000 + b"]" * 100_000, "deep arguments": GOOD.replace(b'"1"}', b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "UTF-16": json.dumps(CALL).encode("utf-16"), "UTF-16 without a mark": json.dumps(CALL).encode("utf-16-le"),
    "UTF-32": json.dumps(CALL).encode("utf-32"), "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "Latin-1": GOOD.replace(b"read_mail", b"read\xffmail"), "an overlong slash": GOOD.replace(b"read_mail", b"read\xc0\xafmail"),
    "half a surrogate": GOOD.replace(b"read_mail", b"read\\ud800mail"), "gzip without a header": gzip.compress(GOOD),
    "id twice": GOOD.replace(b'"id":1', b'"id":1,"id":2'), "method twice": GOOD.replace(b'"id":1', b'"id":1,"method":"ping"'),
    "name twice": GOOD.replace(b'"name":', b'"name":"delete_mail","name":'),
    "name twice, once escaped": GOOD.replace(b'"name":', b'"n\\u0061me":"delete_mail","name":'),
    "an argument twice": GOOD.replace(b'{"id":"1"}', b'{"id":"1","id":"2"}'),
}  # fmt: skip

NO_CALL: dict[str, bytes] = {
    "a string": b'"x"', "a number": b"1", "null": b"null", "true": b"true", "an empty object": b"{}", "an empty batch": b"[]",
    "a batch of batches": b"[[]]", "a batch of nulls": b"[null]", "version 1.0": changed(jsonrpc="1.0"),
    "version 2.0 as a number": changed(jsonrpc=2.0), "no version": changed(jsonrpc=None), "method 5": changed(method=5),
    "method []": changed(method=[]), "no method": changed(method=None), "id null": GOOD.replace(b'"id":1', b'"id":null'),
    "id {}": changed(id={}), "id []": changed(id=[]), "id 1.5": changed(id=1.5), "id true": changed(id=True), "no id": changed(id=None),
    "params []": changed(params=[]), "params a string": changed(params="x"), "params null": GOOD.replace(compact(CALL["params"]), b"null"),
    "no params": changed(params=None), "a result as well": changed(result={}), "an error as well": changed(error={}),
    "METHOD beside method": changed(METHOD="ping"), "Id beside id": changed(Id=2), "Params beside params": changed(Params={}),
    "Tools/Call": changed(method="Tools/Call"), "a space after the method": changed(method="tools/call "),
    "a NUL in the method": changed(method="tools/call\0"), "a line end in the method": changed(method="tools/call\n"),
    "TOOLS/LIST": changed(method="TOOLS/LIST"), "a slash around the method": changed(method="/tools/call"),
    "name 5": params(name=5), "name null": params(name=None), "no name": params(name=...), "name empty": params(name=""),
    "name []": params(name=["read_mail"]), "arguments []": params(arguments=[]), "arguments a string": params(arguments="x"),
    "Name beside name": params(Name="delete_mail"), "Arguments beside arguments": params(Arguments={}),
    "a NUL in the name": params(name="read\0mail"), "a line end in the name": params(name="read\nmail"),
    "an escape code in the name": params(name="\x1b[2Jread_mail"), "right to left in the name": params(name="read\u202email"),
    "an isolate in the name": params(name="read\u2066mail"), "a zero-width space in the name": params(name="read\u200bmail"),
    "a line separator in the name": params(name="read\u2028mail"), "a private character in the name": params(name="read\ue000mail"),
    "a tag character in the name": params(name="read\U000e0041mail"), "3000 characters of name": params(name="x" * 3000),
}  # fmt: skip


@pytest.mark.parametrize("extra", ["", "Connection: close\r\n"], ids=["fast", "aiohttp"])
@pytest.mark.parametrize("path", ["/mcp/mail", "/mcp"])
async def test_bodies_that_are_no_call_are_refused_at_the_mcp_doors(tmp_path: Path, path: str, extra: str) -> None:
    async with scene(tmp_path) as stage:
        for name, body in {**NO_JSON, **NO_CALL}.items():
            session = stage.session if path == "/mcp" else ""
            bad = request(stage.key, body, line=f"POST {path} HTTP/1.1", headers=extra + session)
            reply = await stage.refuses(bad, f"{path} {name}")
            assert reply.status in {400, 404, 413}, (name, reply)
            assert b"Mcp-Session-Id" not in reply.body


CHECKS_BAD: dict[str, bytes] = {
    **NO_JSON,
    "a string": b'"x"', "null": b"null", "a list": b"[]", "no tool": b"{}", "tool 5": b'{"tool":5}', "tool empty": b'{"tool":""}',
    "tool null": b'{"tool":null}', "a long tool": compact({"tool": "x" * 600}), "args a list": b'{"tool":"exec","args":[]}',
    "args a string": b'{"tool":"exec","args":"ls"}', "an unknown field": b'{"tool":"exec","arg":{}}', "Tool beside tool": b'{"tool":"exec","Tool":"x"}',
    "no checks": b'{"checks":[]}', "checks and a tool": b'{"checks":[{"tool":"exec"}],"tool":"exec"}', "a check that is none": b'{"checks":[5]}',
    "101 checks": compact({"checks": [{"tool": "exec"}] * 101}), "a NUL in the tool": b'{"tool":"ex\\u0000ec"}',
    "right to left in the tool": compact({"tool": "ex\u202eec"}), "a bad one among good ones": b'{"checks":[{"tool":"exec"},{"tool":""}]}',
    "somebody else": b'{"tool":"exec","agent_id":"agt_1"}',
}  # fmt: skip
REPORTS_BAD: dict[str, bytes] = {
    **NO_JSON,
    "a list": b"[]", "no id": b"{}", "id 5": b'{"decision_id":5}', "id empty": b'{"decision_id":""}',
    "a long id": compact({"decision_id": "x" * 65}), "an unknown outcome": b'{"decision_id":"dec_1","outcome":"fine"}',
    "denied, which is ours to say": b'{"decision_id":"dec_1","outcome":"denied"}', "a negative duration": b'{"decision_id":"dec_1","duration_ms":-1}',
    "no number": b'{"decision_id":"dec_1","duration_ms":"1"}', "a long error": compact({"decision_id": "dec_1", "error": "x" * 2001}),
    "no such decision": b'{"decision_id":"dec_1"}', "an unknown field": b'{"decision_id":"dec_1","result":1}',
}  # fmt: skip


@pytest.mark.parametrize("extra", ["", "Connection: close\r\n"], ids=["fast", "aiohttp"])
@pytest.mark.parametrize(
    ("path", "bodies"), [("check-permission", CHECKS_BAD), ("tool-calls", REPORTS_BAD)], ids=["check", "report"]
)
async def test_bodies_that_are_no_question_are_refused_at_the_checks_door(
    tmp_path: Path, path: str, bodies: dict[str, bytes], extra: str
) -> None:
    async with scene(tmp_path) as stage:
        for name, body in bodies.items():
            bad = request(stage.key, body, line=f"POST /api/engine/{path} HTTP/1.1", headers=extra)
            reply = await stage.refuses(bad, name)
            assert reply.status in {400, 404, 422}, (name, reply)
            assert reply.json["code"] in {"INVALID_JSON", "VALIDATION_ERROR", "NOT_FOUND"}


# -- the request around it ---------------------------------------------------------------------------------------
PATHS = (
    "/MCP/mail", "/Mcp/mail", "//mcp/mail", "/mcp//mail", "/mcp/mail/", "/mcp/mail//", "/mcp/Mail", "/mcp/MAIL", "/mcp/%6dail",
    "/%6dcp/mail", "/%256dcp/mail", "/mcp/../api", "/mcp/../mcp/mail", "/x/../mcp/mail", "/./mcp/mail", "/mcp/./mail", "/mcp%2fmail",
    "/mcp%2Fmail", "/mcp/mail%2f", "/mcp/mail%00", "/mcp/mail%20", "/mcp/mail%0d%0a", "/mcp/mail?x=1", "/mcp/mail?", "/mcp/mail#x",
    "/mcp/mail;a=b", "/mcp/mail.", "/mcp\\mail", "/\\mcp/mail", "/mcp/nosuch", "/mcp/", "/mcp?x", "/mcp.json", "/mcp/" + "a" * 64,
    "/mcp/-mail", "/mcp/m_ail", "http://127.0.0.1/mcp/mail", "http://evil.test/mcp/mail", "HTTP://127.0.0.1/mcp/mail",
    "/api/engine/check-permission/", "/api/engine/Check-Permission", "//api/engine/check-permission", "/api//engine/check-permission",
    "/api/engine/check-permission?x=1", "/api/engine/%63heck-permission", "/api/x/../engine/check-permission", "/API/ENGINE/TOOL-CALLS",
    "/api/engine/tool-calls/", "mcp/mail", "*", "\\mcp\\mail", "/mcp/m\u00e4il",
)  # fmt: skip


async def test_only_exact_paths_lead_anywhere(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        for path in PATHS:
            await stage.refuses(request(stage.key, line=f"POST {path} HTTP/1.1"), path, (400, 404))


@pytest.mark.parametrize("path", ["/api/agents", "/api/gateway/upstreams?url=http://h/mcp", "/", "/health", "/api/engine/tools/mcp", "/x/mcp"])  # fmt: skip
def test_other_paths_are_not_taken_for_a_door(path: str) -> None:
    assert not means_a_hot_door(path)


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, GOOD)
FRAMING: dict[str, tuple[bytes, str]] = {
    "two lengths, the same": (GOOD, f"Content-Length: {SIZE}\r\nContent-Length: {SIZE}\r\n"),
    "two lengths, different": (GOOD, f"Content-Length: {SIZE}\r\nContent-Length: {SIZE - 1}\r\n"),
    "two lengths, case aside": (GOOD, f"Content-Length: {SIZE}\r\ncontent-length: 0\r\n"),
    "a list of lengths": (GOOD, f"Content-Length: {SIZE}, {SIZE}\r\n"), "a signed length": (GOOD, f"Content-Length: +{SIZE}\r\n"),
    "a negative length": (GOOD, "Content-Length: -1\r\n"), "a hexadecimal length": (GOOD, "Content-Length: 0x10\r\n"),
    "a length with a letter": (GOOD, f"Content-Length: {SIZE}a\r\n"), "a length of 20 digits": (GOOD, "Content-Length: 99999999999999999999\r\n"),
    "an empty length": (GOOD, "Content-Length: \r\n"), "a space before the colon": (GOOD, f"Content-Length : {SIZE}\r\n"),
    "no length": (GOOD, ""), "length and chunks": (CHUNKED, f"Content-Length: {len(CHUNKED)}\r\nTransfer-Encoding: chunked\r\n"),
    "chunks and length": (CHUNKED, f"Transfer-Encoding: chunked\r\nContent-Length: {SIZE}\r\n"),
    "chunked twice": (CHUNKED, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    "chunked, chunked": (CHUNKED, "Transfer-Encoding: chunked, chunked\r\n"), "identity": (GOOD, f"Transfer-Encoding: identity\r\nContent-Length: {SIZE}\r\n"),
    "gzip, chunked": (CHUNKED, "Transfer-Encoding: gzip, chunked\r\n"), "chunked, identity": (CHUNKED, "Transfer-Encoding: chunked, identity\r\n"),
    "xchunked": (CHUNKED, "Transfer-Encoding: xchunked\r\n"), "a vertical tab before chunked": (CHUNKED, "Transfer-Encoding: \x0bchunked\r\n"),
    "chunked in quotes": (CHUNKED, 'Transfer-Encoding: "chunked"\r\n'), "a chunk size of zz": (b"zz\r\n" + GOOD, "Transfer-Encoding: chunked\r\n"),
    "a negative chunk": (b"-1\r\n" + GOOD, "Transfer-Encoding: chunked\r\n"),
    "a chunk too long for its size": (b"5\r\n" + GOOD + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n"),
}  # fmt: skip


async def test_a_body_has_one_length(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        for name, (body, lines) in FRAMING.items():
            reply = await stage.refuses(request(stage.key, body, length=lines), name, (400, 411, 413))
            assert reply.closed, f"{name}: what follows on this connection is not a request"


HEADERS: dict[str, str] = {
    "a host of somebody else's": "", "gzip": "Content-Encoding: gzip\r\n", "deflate": "Content-Encoding: deflate\r\n",
    "two codings": "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n",
    "an origin of somebody else's": "Origin: https://evil.test\r\n", "no origin at all": "Origin: null\r\n",
    "two origins": "Origin: http://127.0.0.1\r\nOrigin: https://evil.test\r\n",
    "two origins, the other way": "Origin: https://evil.test\r\nOrigin: http://127.0.0.1\r\n",
    "an origin that ends like ours": "Origin: http://127.0.0.1.evil.test\r\n",
    "two keys": "X-API-Key: ek_other\r\n", "another bearer": "Authorization: Bearer ek_other\r\n",
    "content type twice": "Content-Type: text/plain\r\n", "an expectation of a teapot": "Expect: teapot\r\n",
    "a control character": "X-A: a\x01b\r\n", "a NUL": "X-A: a\x00b\r\n", "DEL": "X-A: a\x7fb\r\n", "a folded line": "X-A: a\r\n b\r\n",
    "a bare LF": "X-A: a\nX-B: b\r\n", "a bare CR": "X-A: a\rX-B: b\r\n", "no colon": "X-A\r\n", "no name": ": x\r\n",
    "a space in a name": "X A: 1\r\n", "a space before the colon": "X-A : 1\r\n", "1000 headers": "".join(f"X-{n}: 1\r\n" for n in range(1000)),
    "20,000 headers": "".join(f"X-{n}: 1\r\n" for n in range(20_000)), "17 KB in one": "X-A: " + "a" * 17_000 + "\r\n",
    "a session nobody gave": "Mcp-Session-Id: 12345\r\n", "two sessions": "Mcp-Session-Id: a\r\nMcp-Session-Id: b\r\n",
    "two versions": "MCP-Protocol-Version: 2025-11-25\r\nMCP-Protocol-Version: 2026-07-28\r\n",
}  # fmt: skip


async def test_headers_mean_one_thing_or_are_refused(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        for name, lines in HEADERS.items():
            host = "Host: evil.test\r\n" if not lines else "Host: 127.0.0.1\r\n"
            await stage.refuses(request(stage.key, headers=lines, host=host), name)
        for host in (
            "",
            "Host: \r\n",
            "Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n",
            "Host: 127.0.0.1.evil.test\r\n",
            "Host: a b\r\n",
        ):
            await stage.refuses(request(stage.key, host=host), f"host {host!r}")
        utf7 = request(stage.key).replace(b"application/json\r\n", b"application/json; charset=utf-7\r\n", 1)
        assert (await stage.refuses(utf7, "charset utf-7")).status == 415
        for coding, body in (("gzip", gzip.compress(GOOD)), ("deflate", zlib.compress(GOOD)), ("br", GOOD)):
            reply = await stage.refuses(request(stage.key, body, headers=f"Content-Encoding: {coding}\r\n"), coding)
            assert reply.status == 415


async def test_only_http_is_spoken_here(tmp_path: Path) -> None:
    lines = (
        "POST /mcp/mail HTTP/2.0", "POST /mcp/mail HTTP/1.2", "POST /mcp/mail HTTP/0.9", "POST /mcp/mail HTTP/9.9",
        "POST /mcp/mail http/1.1", "POST\t/mcp/mail HTTP/1.1",
        "POST /mcp/mail", "POST", "post /mcp/mail HTTP/1.1", "P\x00ST /mcp/mail HTTP/1.1", " POST /mcp/mail HTTP/1.1",
        "PUT /mcp/mail HTTP/1.1", "PATCH /mcp/mail HTTP/1.1", "OPTIONS /mcp/mail HTTP/1.1", "TRACE /mcp/mail HTTP/1.1",
        "CONNECT /mcp/mail HTTP/1.1", "CONNECT 127.0.0.1:80 HTTP/1.1", "GET /mcp HTTP/1.1", "GET /api/engine/check-permission HTTP/1.1",
        "PUT /api/engine/tool-calls HTTP/1.1",
    )  # fmt: skip
    async with scene(tmp_path) as stage:
        for line in lines:
            await stage.refuses(request(stage.key, line=line), line)
        await stage.refuses(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "the preface of HTTP/2")
        await stage.refuses(bytes.fromhex("16030100c8010000c40303") + b"\0" * 40, "TLS")
        await stage.refuses(request(stage.key).replace(b"\r\n", b"\n"), "lines without CR")
        old = request(stage.key, CHUNKED, line="POST /mcp/mail HTTP/1.0", length="Transfer-Encoding: chunked\r\n")
        await stage.refuses(old, "chunks in HTTP/1.0")
        await stage.refuses(request("", GOOD), "no key", (401,))
        await stage.refuses(request("ek_" + "a" * 49, GOOD), "a key that is none", (401,))


async def test_a_body_above_the_limit_is_not_read(tmp_path: Path) -> None:
    from agenticmail_enterprise.gateway.settings import ServerSettings

    async with scene(tmp_path, server=ServerSettings(body_limit=2000)) as stage:
        large = params(arguments={"text": "x" * 3000})
        for path in ("/mcp/mail", "/mcp", "/api/engine/check-permission", "/api/engine/tool-calls"):
            await stage.refuses(request(stage.key, large, line=f"POST {path} HTTP/1.1"), path, (413,))
            announced = request(stage.key, b"", line=f"POST {path} HTTP/1.1", length="Content-Length: 999999999\r\n")
            assert (await stage.refuses(announced, f"{path} announced", (413,))).closed
            chunks = b"".join(b"%x\r\n%b\r\n" % (500, b"x" * 500) for _ in range(5))
            endless = request(stage.key, chunks, line=f"POST {path} HTTP/1.1", length="Transfer-Encoding: chunked\r\n")
            assert (await stage.refuses(endless, f"{path} endless", (413,))).closed


NAMED = (("tools/call", "delete_mail"), ("ping", "read_mail"), ("tools/list", "read_mail"), ("tools/call", "READ_MAIL"),
         ("tools/call", "read_mail "[:-1] + "x"), ("Tools/Call", "read_mail"), ("tools/call", "=?base64?ZGVsZXRlX21haWw=?="),
         ("tools/call", "=?base64?cmVhZF9tYWl?="), ("tools/call", "=?base64?cmVhZF9tYWlsCg==?="), ("tools/call", ""))  # fmt: skip


@pytest.mark.parametrize("version", ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", ""])
async def test_routing_headers_say_what_the_body_says(tmp_path: Path, version: str) -> None:
    era = f"MCP-Protocol-Version: {version}\r\n" if version else ""
    async with scene(tmp_path) as stage:
        for path in ("/mcp/mail", "/mcp"):
            line = f"POST {path} HTTP/1.1"
            for method, name in NAMED:
                lines = f"{era}Mcp-Method: {method}\r\nMcp-Name: {name}\r\n"
                reply = await stage.refuses(request(stage.key, line=line, headers=lines), f"{method} {name}", (400,))
                assert reply.json["error"]["code"] == -32020
                assert reply.json["error"]["message"].startswith("The Mcp-")
            twice = f"{era}Mcp-Method: tools/call\r\nMcp-Name: read_mail\r\nMcp-Name: read_mail\r\n"
            await stage.refuses(request(stage.key, line=line, headers=twice), "name twice", (400,))
            if version == "2026-07-28":
                for lines in (era, f"{era}Mcp-Method: tools/call\r\n", f"{era}Mcp-Name: read_mail\r\n"):
                    await stage.refuses(request(stage.key, line=line, headers=lines), f"only {lines!r}", (400,))


# -- what is odd and still plain ---------------------------------------------------------------------------------
FINE: dict[str, bytes] = {
    "chunks": request("{key}", CHUNKED, length="Transfer-Encoding: chunked\r\n"),
    "many small chunks": request("{key}", b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + b"0\r\n\r\n", length="Transfer-Encoding: Chunked\r\n"),
    "HTTP/1.0": request("{key}", line="POST /mcp/mail HTTP/1.0"), "a large head": request("{key}", headers="".join(f"X-{n}: 1\r\n" for n in range(101))),
    "text/plain": request("{key}").replace(b"application/json\r\n", b"text/plain\r\n", 1), "charset": request("{key}").replace(b"application/json\r\n", b"application/json; charset=UTF-8\r\n", 1),
    "spaces": request("{key}", json.dumps(CALL, indent=2).encode()), "escapes": request("{key}", GOOD.replace(b"read_mail", b"r\\u0065ad_mail")),
    "the base64 form": request("{key}", headers="Mcp-Method: tools/call\r\nMcp-Name: =?base64?cmVhZF9tYWls?=\r\n"), "an upper-case host": request("{key}", host="Host: LOCALHOST\r\n"),
    "spaces in the first line": request("{key}", line="POST  /mcp/mail  HTTP/1.1"),
    "our own origin": request("{key}", headers="Origin: http://127.0.0.1:3000\r\n"), "a protocol nobody speaks": request("{key}", headers="Connection: Upgrade\r\nUpgrade: websocket\r\n"),
}  # fmt: skip


async def test_what_is_only_unusual_passes_and_is_judged_all_the_same(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        for name, text in FINE.items():
            stage.server.seen.clear()
            reply = await ask(stage.house.server.port, text.replace(b"{key}", stage.key.encode()))
            assert (reply.status, reply.json["result"]["isError"]) == (200, False), (name, reply)
            ((_, message),) = stage.server.seen
            assert message == CALL, name
            (record,) = await stage.new_records()
            assert (record.tool, record.outcome) == ("mail__read_mail", "ok"), name


async def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(tmp_path: Path) -> None:
    import asyncio

    async with scene(tmp_path) as stage:
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.house.server.port)
        try:
            async with asyncio.timeout(60):
                writer.write(
                    request(stage.key, b"", length=f"Content-Length: {SIZE}\r\n", headers="Expect: 100-continue\r\n")
                )
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                writer.write(GOOD)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        finally:
            writer.close()
        (record,) = await stage.new_records()
        assert record.outcome == "ok"
        # What is refused by its head alone is refused before a byte of the body is asked for.
        headers = "Expect: 100-continue\r\nContent-Encoding: gzip\r\n"
        await stage.refuses(
            request(stage.key, b"", length=f"Content-Length: {SIZE}\r\n", headers=headers), "expect", (415,)
        )
