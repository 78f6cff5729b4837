"""Stories of plain HTTP upstreams: the same tool over REST and over MCP, judged alike."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from agenticmail_enterprise.catalog.errors import ValidationFailed
from agenticmail_enterprise.catalog.profiles import ArgumentRule, Profile, RateLimit, ToolRule
from agenticmail_enterprise.catalog.routes import Field, Route
from agenticmail_enterprise.gateway.upstream_spec import UpstreamSpec
from agenticmail_enterprise.tests.flows.house import Answer, House, official

ROUTES = (
    Route("GET", "/customers/{id}", "get_customer", "One customer.", (Field("id", "integer"),),
          (Field("expand"), Field("limit", "integer"))),
    Route("GET", "/customers/me", "whoami"),
    Route("POST", "/customers/{id}/invoices", "create_invoice", path_fields=(Field("id", "integer"),),
          body=(Field("amount", "number", True), Field("note"), Field("lines", "array"))),
    Route("DELETE", "/customers/{id}", "delete_customer"),
)  # fmt: skip
OPENAPI: dict[str, Any] = {
    "openapi": "3.1.0",
    "paths": {
        "/pets/{petId}": {
            "parameters": [{"name": "petId", "in": "path", "required": True, "schema": {"type": "integer"}}],
            "get": {"operationId": "showPet", "summary": "Show a pet."},
            "patch": {
                "operationId": "changePet",
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}}},
            },
        },
        "/upload": {"post": {"requestBody": {"content": {"multipart/form-data": {}}}}},
    },
    "components": {
        "schemas": {
            "Pet": {"type": "object", "required": ["name"], "additionalProperties": False,
                    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}},
        }
    },
}  # fmt: skip


class Api:
    """A REST API that says back what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.status = 200

    async def __aenter__(self) -> Api:
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.method, request.raw_path, dict(request.headers), body))
        said = {"did": f"{request.method} {request.raw_path}", "body": json.loads(body) if body else None}
        return web.json_response(said, status=self.status, headers={"Location": "http://127.0.0.1/else"})

    @property
    def asked(self) -> list[tuple[str, str, bytes]]:
        return [(method, target, body) for method, target, _, body in self.seen]


class Shop:
    def __init__(self, house: House, api: Api, key: str) -> None:
        self.house, self.api, self.key = house, api, key

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        sent = {"X-API-Key": self.key, **({"Content-Type": "application/json"} if body is not None else {}), **headers}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        url = aiohttp.client.URL(f"http://127.0.0.1:{self.house.server.port}{path}", encoded=True)
        async with self.house.http.request(method, url, data=data, headers=sent) as answer:
            return Answer(answer.status, answer.headers, await answer.read())


PROFILE = Profile(
    name="sales", tools=ToolRule(allow=("shop__*",), deny=("shop__delete_*",)), max_risk="critical",
    argument_rules=(ArgumentRule(name="small", tools=("shop__create_invoice",), field="amount", op="max", values=(100,)),
                    ArgumentRule(name="few", tools=("shop__get_customer",), field="limit", op="max", values=(10,))),
)  # fmt: skip


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with Api() as api, House(tmp_path) as house:
        secrets = {"Authorization": "Bearer of-the-gateway"}
        upstream = await house.upstream("shop", api.url, kind="http", routes=ROUTES, secrets=secrets)
        report = await house.runtime.upstreams.refresh(house.org, upstream)
        assert (report.ok, report.tools) == (True, 4)
        await house.runtime.epochs.look()
        yield Shop(house, api, await house.agent("seller", PROFILE))


async def test_a_request_is_forwarded_as_it_was_judged(shop: Shop) -> None:
    answer = await shop.ask(
        "POST", "/http/shop/customers/7/invoices", b'{ "amount" : 9.5, "note":"\\u0041" }', Cookie="a=b"
    )
    assert (answer.status, answer.json["body"]) == (200, {"amount": 9.5, "note": "A"})
    ((method, target, headers, body),) = shop.api.seen
    assert (method, target, body) == ("POST", "/v1/customers/7/invoices", b'{"amount":9.5,"note":"A"}')
    assert headers["Authorization"] == "Bearer of-the-gateway"
    assert shop.key not in str(headers)
    assert "Cookie" not in headers
    (record,) = await shop.house.records(1)
    assert (record.door, record.tool, record.outcome, record.upstream) == ("http", "shop__create_invoice", "ok", "shop")


REFUSED = [
    ("POST", "/http/shop/customers/7/invoices", {"amount": 900}, 403),
    ("POST", "/http/shop/customers/7/invoices", {"amount": "9"}, 422),
    ("POST", "/http/shop/customers/7/invoices", {"Amount": 900, "amount": 9}, 400),
    ("POST", "/http/shop/customers/7/invoices", {"Amount": 900}, 422),
    ("POST", "/http/shop/customers/7/invoices", {"amount": 9, "id": 8}, 422),
    ("POST", "/http/shop/customers/7/invoices", {"amount": 9, "admin": True}, 422),
    ("POST", "/http/shop/customers/7/invoices?amount=900", {"amount": 9}, 422),
    ("POST", "/http/shop/customers/7/invoices", None, 422),
    ("GET", "/http/shop/customers/7?limit=50", None, 403),
    ("GET", "/http/shop/customers/7?limit=+5", None, 422),
    ("GET", "/http/shop/customers/7?Limit=50", None, 422),
    ("GET", "/http/shop/customers/7?limit=5&limit=50", None, 400),
    ("GET", "/http/shop/customers/7?limit=5;limit=50", None, 400),
    ("GET", "/http/shop/customers/7", {"limit": 50}, 400),
    ("GET", "/http/shop/customers/ME", None, 400),
    ("GET", "/http/shop/customers/seven", None, 422),
    ("GET", "/http/shop/customers/..%2f8", None, 400),
    ("GET", "/http/shop/customers/7/", None, 400),
    ("GET", "/http/shop/customers", None, 403),
    ("PUT", "/http/shop/customers/7", {}, 403),
    ("DELETE", "/http/shop/customers/7", None, 403),
    ("GET", "/http/nowhere/customers/7", None, 404),
    ("GET", "/http/shop", None, 400),
    ("GET", "/http//shop/customers/7", None, 404),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), REFUSED)
async def test_what_is_not_documented_or_not_allowed_is_refused(
    shop: Shop, method: str, path: str, body: Any, status: int
) -> None:
    answer = await shop.ask(method, path, body)
    assert answer.status == status, answer.body
    assert shop.api.seen == []
    (record,) = await shop.house.records(1)
    assert (record.effect, record.door) == ("deny", "http")


async def test_the_same_tools_over_mcp_are_judged_the_same(shop: Shop) -> None:
    async with official(shop.house, shop.key, "/mcp") as client:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(listed) == {"shop__get_customer", "shop__whoami", "shop__create_invoice"}
        done = await client.call_tool("shop__create_invoice", {"id": 7, "amount": 9.5})
        assert (done.is_error, done.structured_content["body"]) == (False, {"amount": 9.5})
        read = await client.call_tool("shop__get_customer", {"id": 7, "limit": 5, "expand": "a b"})
        assert read.structured_content["did"] == "GET /v1/customers/7?expand=a%20b&limit=5"
        over = await client.call_tool("shop__create_invoice", {"id": 7, "amount": 900})
        assert over.is_error
        assert "ARGUMENT_DENIED" in over.content[0].text
        odd = await client.call_tool("shop__create_invoice", {"id": "7/../8", "amount": 9})
        assert odd.is_error
    await shop.ask("POST", "/http/shop/customers/7/invoices", {"amount": 9.5})
    first, *_, last = shop.api.asked
    assert first == last
    assert len(shop.api.seen) == 3
    rows = await shop.house.records(5)
    done = [row for row in rows if row.outcome == "ok" and row.tool == "shop__create_invoice"]
    assert len({row.args_digest for row in done}) == 1
    assert sorted(row.door for row in done) == ["http", "mcp"]


async def test_they_are_also_one_mcp_server(shop: Shop) -> None:
    for mode in ("auto", "legacy"):
        async with official(shop.house, shop.key, "/mcp/shop", mode) as client:
            assert "delete_customer" not in {tool.name for tool in (await client.list_tools()).tools}
            done = await client.call_tool("get_customer", {"id": 3})
            assert done.structured_content["did"] == "GET /v1/customers/3"


async def test_what_the_api_refuses_is_told(shop: Shop) -> None:
    shop.api.status = 404
    answer = await shop.ask("GET", "/http/shop/customers/7")
    assert (answer.status, "Location" in answer.headers) == (404, False)
    told = (await shop.house.call(shop.key, "/mcp/shop", "get_customer", {"id": 7})).json
    assert told["result"]["isError"] is True
    assert {row.outcome for row in await shop.house.records(2)} == {"error"}


async def test_an_api_that_is_away_is_a_clear_error(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        await house.upstream("shop", "http://127.0.0.1:1/v1", kind="http", routes=ROUTES)
        shop = Shop(house, Api(), await house.agent("seller", Profile(tools=ToolRule(allow=("shop__*",)), max_risk="critical", allow_unknown=True)))  # fmt: skip
        answer = await shop.ask("GET", "/http/shop/customers/7")
        assert (answer.status, answer.json["code"]) == (502, "UPSTREAM_UNREACHABLE")
        (record,) = await house.records(1)
        assert record.outcome == "not_sent"


async def test_rates_are_429_here(tmp_path: Path) -> None:
    async with Api() as api, House(tmp_path) as house:
        await house.upstream("shop", api.url, kind="http", routes=ROUTES)
        profile = Profile(tools=ToolRule(allow=("shop__*",)), max_risk="critical", allow_unknown=True,
                          rate_limits=(RateLimit(per_minute=1),))  # fmt: skip
        shop = Shop(house, api, await house.agent("seller", profile))
        assert (await shop.ask("GET", "/http/shop/customers/7")).status == 200
        answer = await shop.ask("GET", "/http/shop/customers/7")
        assert (answer.status, answer.json["code"]) == (429, "RATE_LIMITED")
        assert int(answer.headers["Retry-After"]) >= 1


async def test_an_openapi_document_registers_by_the_api(tmp_path: Path) -> None:
    async with Api() as api, House(tmp_path) as house:
        admin = await house.program("upstreams:write", "upstreams:read")
        body = {"name": "pets", "kind": "http", "url": api.url, "allow_private": True, "openapi": OPENAPI}
        made = await house.send("POST", "/api/gateway/upstreams", key=admin, body=body)
        assert made.status == 201, made.body
        data = made.json["data"]
        assert [route["tool"] for route in data["routes"]] == ["showPet", "changePet"]
        assert data["listing"]["tools"] == 2
        await house.runtime.epochs.look()
        shop = Shop(
            house, api, await house.agent("vet", Profile(tools=ToolRule(allow=("pets__*",)), max_risk="critical"))
        )
        assert (await shop.ask("PATCH", "/http/pets/pets/4", {"name": "Tom", "age": 3})).status == 200
        assert (await shop.ask("PATCH", "/http/pets/pets/4", {"name": "Tom", "wild": True})).status == 422
        assert (await shop.ask("POST", "/http/pets/upload", {})).status == 403
        path = f"/api/gateway/upstreams/{data['id']}"
        changed = await house.send("PUT", path, key=admin, body={**body, "timeout_ms": 5000}, headers={"If-Match": "*"})
        assert changed.status == 200, changed.body
        assert api.asked == [("PATCH", "/v1/pets/4", b'{"name":"Tom","age":3}')]


BAD: list[dict[str, Any]] = [
    {}, {"routes": (ROUTES[0], ROUTES[0])}, {"openapi": {"swagger": "2.0"}}, {"openapi": {"openapi": "3.0.0", "paths": {}}},
    {"routes": (Route("GET", "/a/../b", "x"),)}, {"routes": (Route("GET", "/a/{x}{y}", "x"),)},
    {"routes": (Route("GET", "/a/", "x"),)}, {"routes": (Route("GET", "/a", "x", body=(Field("b"),)),)},
    {"routes": (Route("POST", "/a/{x}", "x", body=(Field("x"),)),)}, {"routes": ROUTES, "catalog": "agenticmail"},
    {"routes": (Route("GET", "/a", "x", query=(Field("b", "array"),)),)},
    {"routes": (Route("GET", "/a/{x}", "x"), Route("GET", "/a/{y}", "y"))}, {"routes": ROUTES, "url": "http://127.0.0.1/?a=b"},
    {"routes": ROUTES, "kind": "mcp_http"},
]  # fmt: skip


@pytest.mark.parametrize("spec", BAD)
async def test_tables_that_are_not_exact_are_refused(tmp_path: Path, spec: dict[str, Any]) -> None:
    async with House(tmp_path) as house:
        given = {"kind": "http", "url": "http://127.0.0.1:9/", **spec}
        with pytest.raises(ValidationFailed):
            await house.runtime.registry.create(house.org, UpstreamSpec(name="x", allow_private=True, **given))
