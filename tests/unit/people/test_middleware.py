"""The exported middleware, in a server of somebody's own."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web
from structlog.testing import capture_logs

import agenticmail_enterprise as public
from agenticmail_enterprise.adapters.stores import memory
from agenticmail_enterprise.admin_ui.middleware import ID, NONCE, PRINCIPAL
from agenticmail_enterprise.catalog.calls import Person, Principal
from agenticmail_enterprise.catalog.errors import NotFound, StoreUnavailable, Unauthenticated
from agenticmail_enterprise.catalog.records import AUDIT
from agenticmail_enterprise.catalog.store import Query
from agenticmail_enterprise.gateway.scopes import ROLE_SCOPES


class Order(msgspec.Struct, forbid_unknown_fields=True):
    item: str
    count: int


class Resolver:
    """Bearer ROLE is somebody of that role."""

    async def resolve(self, method: str, headers: Any, ip: str) -> Principal:
        role = headers.get("Authorization", "").removeprefix("Bearer ")
        if role == "key":
            return Principal("org_a", "", "", "key_a", scopes=("agents:read",))
        if role not in ROLE_SCOPES:
            raise Unauthenticated
        return Person("org_a", f"usr_{role}", role, ROLE_SCOPES[role], session_id="s")


class Ticks:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Shop:
    def __init__(self, store: Any) -> None:
        self.store = store
        self.ticks = Ticks()
        self.url = ""
        self.http: ClientSession

    def app(self) -> web.Application:
        proxies = ("127.0.0.0/8",)
        app = web.Application(middlewares=[
            public.request_id(), public.request_logger(trusted_proxies=proxies),
            public.security_headers(trusted_proxies=True), public.cors(["https://app.acme.test"], credentials=True),
            public.rate_limiter(per_ip=5, per_key=3, window=10, trusted_proxies=proxies, clock=self.ticks),
            public.error_handler(), public.audit_logger(self.store, "org_a", trusted_proxies=proxies),
            public.authenticate(Resolver(), optional=True),
        ])  # fmt: skip

        @public.require_role("admin")
        @public.validate(Order)
        async def create(request: web.Request, order: Order) -> web.StreamResponse:
            return web.json_response({"item": order.item, "by": request[PRINCIPAL].key_id}, status=201)

        async def look(request: web.Request) -> web.StreamResponse:
            return web.json_response({"id": request[ID], "nonce": request[NONCE]})

        async def broken(request: web.Request) -> web.StreamResponse:
            match request.match_info["how"]:
                case "fault":
                    raise RuntimeError("the password is hunter2")
                case "gone":
                    raise NotFound("There is no such order.")
                case "aiohttp":
                    raise web.HTTPConflict
                case _:
                    raise web.HTTPFound("/look")

        app.router.add_post("/orders/{id}", create)
        app.router.add_get("/look", look)
        app.router.add_get("/broken/{how}", broken)
        return app

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
        async with self.http.request(method, self.url + path, allow_redirects=False, **options) as answer:
            body = await answer.read()
            kind = answer.content_type == "application/json"
            return answer.status, answer.headers, msgspec.json.decode(body) if kind and body else body


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    store = memory.create("memory://")
    await store.open()
    await store.migrate()
    made = Shop(store)
    runner = web.AppRunner(made.app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with ClientSession() as session:
        made.http = session
        yield made
    await runner.cleanup()
    await store.close()


async def audit(shop: Shop) -> list[Any]:
    return (await shop.store.find(Query(AUDIT, "by_org", {"org": "org_a"}))).records


async def test_roles_and_bodies_are_checked_in_that_order(shop: Shop) -> None:
    good = {"item": "tea", "count": 2}
    assert (await shop.call("POST", "/orders/1", json=good))[0] == 401
    for role, status in (("viewer", 403), ("member", 403), ("key", 403), ("admin", 201)):
        shop.ticks.now += 100
        found = await shop.call("POST", "/orders/1", json=good, headers={"Authorization": f"Bearer {role}"})
        assert found[0] == status, role
    shop.ticks.now += 100
    owner = {"Authorization": "Bearer owner"}
    status, _, body = await shop.call("POST", "/orders/1", json={"item": 1, "cuont": 2}, headers=owner)
    assert status == 422
    assert {field["path"] for field in body["details"]["fields"]} == {"/item", "/count", "/cuont"}
    assert (await shop.call("POST", "/orders/1", data=b"{", headers=owner))[2]["code"] == "INVALID_JSON"
    status, _, body = await shop.call("POST", "/orders/1", data=io.BytesIO(b"x" * 2_000_000), headers=owner)
    assert (status, body["code"]) == (413, "BODY_TOO_LARGE")
    assert (await shop.call("GET", "/look", headers={"Authorization": "Bearer nobody"}))[0] == 401
    with pytest.raises(ValueError, match="no role"):
        public.require_role("root")  # type: ignore[arg-type]


async def test_every_answer_has_an_id_and_the_headers_that_browsers_heed(shop: Shop) -> None:
    nonces = set()
    for path in ("/look", "/broken/fault", "/broken/gone", "/broken/aiohttp", "/broken/moved", "/nothing"):
        shop.ticks.now += 100
        status, headers, body = await shop.call("GET", path, headers={"X-Request-Id": "my-own-id-1"})
        assert headers["X-Request-Id"] == "my-own-id-1"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Strict-Transport-Security" not in headers, "not over plain HTTP"
        nonces.add(headers["Content-Security-Policy"].partition("'nonce-")[2].partition("'")[0])
        assert "RateLimit" in headers
        if status >= 400:
            assert body["request_id"] == "my-own-id-1"
            assert b"hunter2" not in msgspec.json.encode(body)
    assert len(nonces) == 6
    _, headers, body = await shop.call("GET", "/look", headers={"X-Request-Id": "bad id", "X-Forwarded-Proto": "https"})
    assert headers["X-Request-Id"].startswith("req_")
    assert body["nonce"] in headers["Content-Security-Policy"]
    assert headers["Strict-Transport-Security"].startswith("max-age=")


async def test_limits_hold_per_address_and_per_credential_and_say_so(shop: Shop) -> None:
    seen = []
    for number in range(4):
        status, headers, _ = await shop.call(
            "GET", "/look", headers={"Authorization": "Bearer owner", "X-Forwarded-For": f"203.0.113.{number}"}
        )
        seen.append((status, headers["RateLimit"]))
    assert seen == [
        (200, '"ip";r=4;t=2, "key";r=2;t=4'), (200, '"ip";r=4;t=2, "key";r=1;t=7'),
        (200, '"ip";r=4;t=2, "key";r=0;t=10'), (429, '"ip";r=4;t=2, "key";r=0;t=10'),
    ]  # fmt: skip
    assert headers["RateLimit-Policy"] == '"ip";q=5;w=10, "key";q=3;w=10'
    assert int(headers["Retry-After"]) >= 1
    statuses = [
        (await shop.call("GET", "/look", headers={"X-API-Key": f"invented-{n}", "X-Forwarded-For": "203.0.113.99"}))[0]
        for n in range(7)
    ]
    assert statuses[5:] == [429, 429], "inventing keys buys nothing"
    shop.ticks.now += 10
    answer = await shop.call("GET", "/look", headers={"X-Forwarded-For": "203.0.113.99"})
    assert answer[0] == 200


async def test_other_sites_pages_may_read_what_they_were_named_for(shop: Shop) -> None:
    for origin, allowed in (("https://app.acme.test", True), ("https://APP.acme.test", True), ("https://evil.example", False),
                            ("https://app.acme.test.evil.example", False), ("null", False)):  # fmt: skip
        shop.ticks.now += 100
        _, headers, _ = await shop.call("GET", "/look", headers={"Origin": origin})
        assert headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
        assert "Origin" in headers["Vary"]
        ask = {"Origin": origin, "Access-Control-Request-Method": "DELETE"}
        status, headers, _ = await shop.call("OPTIONS", "/look", headers=ask)
        assert (status, "Access-Control-Allow-Methods" in headers) == (204, allowed)
    with pytest.raises(ValueError, match="origins"):
        public.cors(["*"], credentials=True)


async def test_changes_and_refusals_are_on_the_audit_and_reads_are_not(shop: Shop) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.7", "X-Request-Id": "an-id-of-mine"}
    await shop.call("GET", "/look", headers=forwarded)
    await shop.call(
        "POST", "/orders/7", json={"item": "tea", "count": 1}, headers={**forwarded, "Authorization": "Bearer admin"}
    )
    await shop.call("POST", "/orders/8", json={}, headers={**forwarded, "Authorization": "Bearer viewer"})
    await shop.call("GET", "/look", headers={**forwarded, "Authorization": "Bearer nobody"})
    entries = await audit(shop)
    told = [(entry.actor, entry.action, entry.resource, entry.outcome, entry.details["status"]) for entry in entries]
    assert told == [
        ("usr_admin", "POST /orders/{id}", "7", "ok", "201"), ("usr_viewer", "POST /orders/{id}", "8", "refused", "403"),
        ("anonymous", "GET /look", "/look", "refused", "401"),
    ]  # fmt: skip
    assert {(entry.ip, entry.request_id) for entry in entries} == {("203.0.113.7", "an-id-of-mine")}


async def test_an_entry_that_cannot_be_stored_does_not_undo_what_was_done(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*args: Any) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(shop.store, "append", gone)
    with capture_logs() as logs:
        body = {"item": "tea", "count": 1}
        assert (await shop.call("POST", "/orders/7", json=body, headers={"Authorization": "Bearer admin"}))[0] == 201
    assert any(entry["event"] == "audit_entry_lost" for entry in logs)


async def test_one_line_per_request_without_its_query(shop: Shop) -> None:
    with capture_logs() as logs:
        await shop.call("GET", "/look?token=hunter2", headers={"X-Forwarded-For": "203.0.113.7"})
        await shop.call("GET", "/broken/fault")
    lines = [entry for entry in logs if entry["event"] == "request"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GET", "/look", 200),
        ("GET", "/broken/fault", 500),
    ]
    assert lines[0]["ip"] == "203.0.113.7"
    assert "hunter2" not in str(lines)
