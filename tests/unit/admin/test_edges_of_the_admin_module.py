"""Odd requests, broken parts, clients that leave: each ends in a clear answer or a kept promise."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agenticmail_enterprise.admin_ui.api import OPERATIONS
from agenticmail_enterprise.admin_ui.audit import STRANGERS_PER_MINUTE
from agenticmail_enterprise.admin_ui.operation import Example, Operation, operation
from agenticmail_enterprise.admin_ui.router import Router
from agenticmail_enterprise.catalog.errors import StoreUnavailable
from agenticmail_enterprise.catalog.records import AGENTS
from agenticmail_enterprise.catalog.store import GLOBAL, Query


async def raw(site: Any, text: bytes) -> bytes:
    """What the server answers to these very bytes, until it closes or falls silent."""
    host, port = site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(text)
    await writer.drain()
    try:
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    finally:
        writer.close()


# -- paths -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path",
    ["/", "/api", "/api/", "/api/agents/", "//api/agents", "/API/agents", "/api/Agents", "/api/agents/x/y/z",
     "/api/nothing", "/api/agents/../keys", "/api/./agents", "/api/agents%2f", "/api%2Fagents", "/api/agents/%ff",
     "/api/agents/%00", "/api/agents/%0d%0aSet-Cookie:x", "/favicon.ico", "/api/agents//profile",
     "/api/agents/" + "x" * 600, "/.env"],
)  # fmt: skip
async def test_paths_are_exact(site: Any, path: str) -> None:
    head = await raw(site, f"GET {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {site.owner}\r\n\r\n".encode())
    assert head.startswith(b"HTTP/1.1 404 "), head
    assert b"Set-Cookie" not in head


async def test_an_encoded_slash_stays_inside_its_segment(site: Any) -> None:
    head = await raw(
        site, f"GET /api/agents/a%2Fprofile HTTP/1.1\r\nHost: x\r\nX-API-Key: {site.owner}\r\n\r\n".encode()
    )
    assert head.startswith(b"HTTP/1.1 404 ")
    answer = await site.call("GET", "/api/agents/%61gt_x")
    assert "'agt_x'" in answer.json["error"]


async def test_what_the_gateway_serves_itself_is_not_answered_here(site: Any) -> None:
    for path in ("/api/engine/check-permission?x=1", "/api/engine/tool-calls"):
        answer = await site.call("POST", path, {"tool": "x"})
        assert (answer.status, answer.json["code"]) == (400, "BAD_REQUEST")


# -- request ids and errors --------------------------------------------------------------------------------------
@pytest.mark.parametrize("given_id", ["short", "x" * 129, "has space", "é" * 8, "a/b/c/d/e", ""])
async def test_request_ids_that_could_confuse_a_log_are_replaced(site: Any, given_id: str) -> None:
    answer = await site.call("GET", "/api/agents", headers={"X-Request-Id": given_id})
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["X-Request-Id"])


async def test_errors_come_as_problem_details_for_those_who_ask(site: Any) -> None:
    answer = await site.call("GET", "/api/agents/agt_x", headers={"Accept": "application/problem+json"})
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json | {"request_id": ""} == {
        "type": "about:blank", "title": "There is no such thing here.", "status": 404, "code": "NOT_FOUND",
        "detail": "There is no agent 'agt_x'.", "instance": "/api/agents/agt_x", "details": {}, "request_id": "",
    }  # fmt: skip


async def test_a_fault_of_ours_is_told_without_detail_and_logged_whole(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(org: str, agent_id: str) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(site.accounts, "agent", broken)
    with capture_logs() as logs:
        answer = await site.call("GET", "/api/agents/agt_x")
    assert (answer.status, answer.json["code"], answer.json["details"]) == (500, "INTERNAL", {})
    assert b"hunter2" not in answer.body
    logged = next(entry for entry in logs if entry["event"] == "admin_request_failed")
    assert logged["request_id"] == answer.json["request_id"]
    assert logged["exc_info"]


async def test_an_unreachable_store_is_a_503_that_says_when_to_try_again(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await site.call("GET", "/api/agents")).status == 200

    async def gone(*args: Any, **kwargs: Any) -> None:
        raise StoreUnavailable

    for name in ("find", "get", "count", "commit", "append"):
        monkeypatch.setattr(site.store, name, gone)
    for method, path, body in (("GET", "/api/agents", None), ("POST", "/api/agents", {"name": "bot"})):
        answer = await site.call(method, path, body)
        assert (answer.status, answer.json["code"]) == (503, "STORE_UNAVAILABLE")
        assert answer.headers["Retry-After"] == "1"
    assert site.runtime.metrics.faults["audit"] == 1, "the entry that could not be stored is counted"


async def test_an_entry_that_cannot_be_stored_does_not_undo_what_was_done(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*args: Any, **kwargs: Any) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(site.store, "append", gone)
    with capture_logs() as logs:
        assert (await site.call("POST", "/api/agents", {"name": "bot"})).status == 201
    assert [entry["action"] for entry in logs if entry["event"] == "audit_entry_lost"] == ["agent.create"]
    assert site.runtime.metrics.faults["audit"] == 1


async def test_strangers_cannot_fill_the_store_with_refusals(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.admin._audit, "_clock", lambda: 1_795_000_000.0)
    for _ in range(STRANGERS_PER_MINUTE + 15):
        assert (await site.call("GET", "/api/agents", key="")).status == 401
    entries = await site.audit(GLOBAL)
    assert len(entries) == STRANGERS_PER_MINUTE
    assert {(entry.actor, entry.outcome) for entry in entries} == {("anonymous", "refused")}
    assert site.runtime.metrics.faults["audit_strangers"] == 15
    monkeypatch.setattr(site.admin._audit, "_clock", lambda: 1_795_000_060.0)
    await site.call("GET", "/api/agents", key="")
    assert len(await site.audit(GLOBAL)) == STRANGERS_PER_MINUTE + 1


# -- bodies and connections --------------------------------------------------------------------------------------
async def test_a_client_that_leaves_does_not_leave_a_change_without_its_entry(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()
    commit = site.store.commit

    async def slow(*writes: Any) -> Any:
        entered.set()
        await leave.wait()
        return await commit(*writes)

    monkeypatch.setattr(site.store, "commit", slow)
    task = asyncio.create_task(site.call("POST", "/api/agents", {"name": "bot"}))
    await entered.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.05)
    leave.set()
    for _ in range(3000):
        if await site.audit():
            break
        await asyncio.sleep(0.01)
    assert [entry.action for entry in await site.audit()] == ["agent.create"]
    assert await site.store.count(Query(AGENTS, "by_org", {"org": site.org})) == 1


async def test_after_an_unread_body_the_connection_is_not_used_again(site: Any) -> None:
    smuggled = b"GET /api/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    head = await raw(
        site, b"POST /api/agents HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n" + smuggled
    )  # fmt: skip
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"Connection: close" in head


async def test_requests_on_one_connection_follow_each_other(site: Any) -> None:
    for _ in range(3):
        assert (await site.call("POST", "/api/engine/tool-policy", {"skills": ["web-search"]})).status == 200
        assert (await site.call("GET", "/api/nothing")).status == 404
        assert (await site.call("POST", "/api/agents", raw=b"{")).status == 400


async def test_a_body_that_stops_arriving_is_given_up(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agenticmail_enterprise.admin_ui.mount.BODY_SECONDS", 0.05)
    text = f"POST /api/agents HTTP/1.1\r\nHost: x\r\nX-API-Key: {site.owner}\r\nContent-Length: 100\r\n\r\n{{"
    assert (await raw(site, text.encode())).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "lengths",
    ["Content-Length: 2\r\nContent-Length: 20", "Content-Length: 2, 20", "Content-Length: -1", "Content-Length: +2",
     "Content-Length: 2\r\nTransfer-Encoding: chunked"],
)  # fmt: skip
async def test_conflicting_lengths_never_reach_an_operation(site: Any, lengths: str) -> None:
    text = (
        f"POST /api/agents HTTP/1.1\r\nHost: x\r\nX-API-Key: {site.owner}\r\n{lengths}\r\n\r\n" + '{"name":"smuggled"}'
    )
    assert re.match(rb"HTTP/1\.[01] 400 ", await raw(site, text.encode()))
    assert await site.store.count(Query(AGENTS, "by_org", {"org": site.org})) == 0


_LINE = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_request_breaks_it(site: Any, data: Any) -> None:
    """Any method, path segment, query and body: an answer in JSON, below 500."""
    op = data.draw(st.sampled_from([item for item in OPERATIONS if item.served_by == "admin"]))
    segment = data.draw(st.text(max_size=12))
    path = re.sub(r"\{\w+\}", lambda _: quote(segment, safe="") or "x", op.path)
    query = data.draw(
        st.dictionaries(st.sampled_from(["limit", "page", "cursor", "status", "x", "since"]), _LINE, max_size=3)
    )
    body = data.draw(st.one_of(st.binary(max_size=60), st.just(b'{"name":"x"}'), st.just(b"{}")))
    answer = await site.call(op.method, path, raw=body or None, query=query)
    assert answer.status < 500
    if answer.status >= 400:
        assert set(answer.json) == {"error", "code", "details", "request_id"}


# -- declarations ------------------------------------------------------------------------------------------------
def test_declarations_that_contradict_themselves_are_refused_at_import() -> None:
    common: dict[str, Any] = {"tag": "agents", "returns": None, "example": Example()}
    with pytest.raises(ValueError, match="not the first role that has"):
        operation("GET", "/api/x", scope="nonsense", **common)
    with pytest.raises(ValueError, match="not the first role that has"):
        operation("GET", "/api/x", scope="agents:write", role="viewer", **common)
    with pytest.raises(ValueError, match="audit"):
        operation("POST", "/api/x", scope="agents:write", role="member", **common)
    with pytest.raises(ValueError, match="twice"):
        Router([OPERATIONS[0], OPERATIONS[0]])


def test_a_fixed_segment_wins_over_a_variable_one() -> None:
    def declared(name: str, path: str) -> Operation:
        return Operation(
            name=name, method="GET", path=path, summary="", description="", tag="meta", scope="", role="viewer",
            returns=None, handler=None, example=Example(),
        )  # fmt: skip

    router = Router([declared("variable", "/a/{id}"), declared("fixed", "/a/b")])
    route, found = router.route("/a/b")
    assert (router.operation(route, "GET").name, found) == ("fixed", {})
    route, found = router.route("/a/c%20d")
    assert (router.operation(route, "GET").name, found) == ("variable", {"id": "c d"})
