"""A walk over the table of operations: what holds for one of them holds for all."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from structlog.testing import capture_logs

from agenticmail_enterprise.admin_ui.api import OPERATIONS
from agenticmail_enterprise.admin_ui.openapi import errors_of
from agenticmail_enterprise.admin_ui.operation import Operation
from agenticmail_enterprise.catalog.records import AGENTS, KEYS
from agenticmail_enterprise.catalog.store import Query
from agenticmail_enterprise.gateway.accounts import AgentSpec
from agenticmail_enterprise.gateway.keys import KeySpec
from agenticmail_enterprise.gateway.scopes import EVERY, SCOPES

OURS = [operation for operation in OPERATIONS if operation.served_by == "admin"]
SCOPED = [operation for operation in OURS if operation.scope]
PERSONAL = [operation for operation in OURS if operation.person]
PUBLIC = [operation for operation in OURS if operation.public]
WITH_BODY = [operation for operation in OURS if operation.body is not None]
WITH_QUERY = [operation for operation in OURS if operation.query is not None and operation.listing]
WITH_ID = [operation for operation in SCOPED if "{id}" in operation.path and operation.tag != "catalog"]
OWN_LISTS = [item for item in SCOPED if item.listing and item.tag != "catalog" and "{" not in item.path]
MUTATIONS = [operation for operation in OURS if operation.audit]


def path_of(operation: Operation, **changed: str) -> str:
    values = {**operation.example.path, **changed}
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], operation.path)


async def send(site: Any, operation: Operation, **options: Any) -> Any:
    """The operation's own example, word for word but for codes and challenges, which change with time."""
    body = operation.example.body if operation.body is not None else None
    if isinstance(body, dict) and {"code", "challenge"} & body.keys():
        body = await site.timely(operation.name, body)
    query = {**operation.example.query, **options.pop("query", {})}
    return await call_as(site, operation, path_of(operation), body, query=query, **options)


async def call_as(site: Any, operation: Operation, path: str, body: Any = None, **options: Any) -> Any:
    """A request by whoever this operation is for: the owner's key, the owner, or nobody yet. `key` says otherwise."""
    headers = {**operation.example.headers, **options.pop("headers", {})}
    if "key" not in options and not operation.scope:
        options["key"] = ""
        if operation.person:
            headers.setdefault("Authorization", f"Bearer {site.token_of_owner}")
    return await site.call(operation.method, path, body, headers=headers, **options)


def named(operation: Operation) -> str:
    return operation.name


each = pytest.mark.parametrize("operation", OURS, ids=named)
each_guarded = pytest.mark.parametrize("operation", [*SCOPED, *PERSONAL], ids=named)
each_scoped = pytest.mark.parametrize("operation", SCOPED, ids=named)


# -- the example -------------------------------------------------------------------------------------------------
@each
async def test_the_documented_example_works_and_its_answer_is_as_documented(site: Any, operation: Operation) -> None:
    await site.furnish()
    answer = await send(site, operation)
    assert answer.status == operation.status, answer.json
    document = (await site.call("GET", "/api/openapi.json")).json
    described = document["paths"][operation.path][operation.method.lower()]["responses"][str(operation.status)]
    if "content" not in described:
        assert answer.body == b""
        return
    if operation.download:
        assert answer.headers["Content-Type"] in described["content"]
        assert answer.headers["Content-Disposition"].startswith("attachment; filename=")
        return
    schema = described["content"]["application/json"]["schema"] | {"components": document["components"]}
    jsonschema.validate(answer.json, schema, cls=jsonschema.Draft202012Validator)
    if operation.listing:
        assert set(answer.json["meta"]) == {"total", "page", "limit", "next_cursor", "has_more"}
    else:
        assert list(answer.json) == ["data"]


@each
async def test_every_answer_carries_the_headers_of_all_answers(site: Any, operation: Operation) -> None:
    await site.furnish()
    for answer in (await send(site, operation), await send(site, operation, key="")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert answer.headers["Cache-Control"] == "no-store"
        assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["X-Request-Id"])


# -- who may -----------------------------------------------------------------------------------------------------
@each_guarded
async def test_without_a_key_nothing_is_done(site: Any, operation: Operation) -> None:
    await site.furnish()
    before = await site.store.count(Query(AGENTS, "by_org", {"org": site.org}))
    for headers in ({}, {"X-API-Key": "ek_" + "x" * 49}, {"Authorization": "Bearer ak_other"}, {"Cookie": "a=b"}):
        answer = await send(site, operation, key="", headers=headers)
        assert (answer.status, answer.json["code"]) == (401, "UNAUTHENTICATED")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert await site.store.count(Query(AGENTS, "by_org", {"org": site.org})) == before


@each_scoped
async def test_every_scope_but_its_own_is_not_enough_and_its_own_is(site: Any, operation: Operation) -> None:
    await site.furnish()
    others = [scope for scope in SCOPES if scope not in {operation.scope, EVERY, "gateway:call"}]
    answer = await send(site, operation, key=await site.key(*others))
    assert (answer.status, answer.json["code"]) == (403, "FORBIDDEN")
    assert answer.json["details"]["scope"] == operation.scope
    assert (await site.audit())[-1].outcome == "refused"


@each_guarded
async def test_an_agents_key_administers_nothing(site: Any, operation: Operation) -> None:
    await site.furnish()
    agent = await site.accounts.create_agent(site.org, AgentSpec(name="bot"))
    _, key = await site.accounts.mint(site.org, KeySpec(agent_id=agent.id), created_by="cli")
    assert (await send(site, operation, key=key)).status == 403


@pytest.mark.parametrize("operation", WITH_ID, ids=named)
async def test_what_belongs_to_another_organisation_is_not_there(site: Any, operation: Operation) -> None:
    await site.furnish()
    answer = await send(site, operation, key=site.stranger)
    assert (answer.status, answer.json["code"]) == (404, "NOT_FOUND")
    mine = await send(site, operation)
    assert mine.status == operation.status, "nothing was changed by the stranger"


@pytest.mark.parametrize("operation", OWN_LISTS, ids=named)
async def test_lists_show_nothing_of_another_organisation(site: Any, operation: Operation) -> None:
    await site.furnish()
    answer = await site.call("GET", operation.path, key=site.stranger)
    own = 1 if operation.name == "list_keys" else 0  # the stranger's own key
    assert (answer.json["meta"]["total"], len(answer.json["data"])) == (own, own)


# -- bad input ---------------------------------------------------------------------------------------------------
MALFORMED = [
    b"", b"   ", b"{", b"{'a': 1}", b'{"a":1}x', b"\xff\xfe", b'\xef\xbb\xbf{"a":1}', b'{"a":NaN}', b"[" * 50_000,
    b'{"a":' * 2_000 + b"1" + b"}" * 2_000, b'{"name":"a","name":"b"}', b'{"x":{"y":1,"y":1}}', b'"\\ud800"',
    b'{"a":"\\ud800x"}', b"9" * 5_000, b'{"a":1e999}', "{}".encode("utf-16"), b'{"a":"\x01"}', b'{"a":1,}',
]  # fmt: skip


@pytest.mark.parametrize("operation", WITH_BODY, ids=named)
async def test_what_is_not_json_is_a_400(site: Any, operation: Operation) -> None:
    await site.furnish()
    for raw in MALFORMED:
        for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
            answer = await call_as(site, operation, path_of(operation), raw=raw, headers={"Content-Type": kind})
            assert (answer.status, answer.json["code"]) == (400, "INVALID_JSON"), raw[:40]


@pytest.mark.parametrize("operation", WITH_BODY, ids=named)
@pytest.mark.parametrize("value", [[], "text", 1, 1.5, True, None], ids=repr)
async def test_what_is_no_object_is_a_422(site: Any, operation: Operation, value: Any) -> None:
    await site.furnish()
    answer = await call_as(site, operation, path_of(operation), raw=json.dumps(value).encode())
    assert (answer.status, answer.fields) == (422, {"": "type"})


@pytest.mark.parametrize("operation", WITH_BODY, ids=named)
async def test_every_field_of_a_wrong_type_is_named_together_with_unknown_ones(site: Any, operation: Operation) -> None:
    await site.furnish()
    wrong = {name: {"not": ["this"]} for name in operation.example.body}
    answer = await call_as(site, operation, path_of(operation), {**wrong, "nonsense": 1})
    assert answer.status == 422
    assert answer.fields["/nonsense"] == "unknown_field"
    for name in wrong:
        assert any(path == f"/{name}" or path.startswith(f"/{name}/") for path in answer.fields), (name, answer.fields)
    for field in answer.json["details"]["fields"]:
        assert field["message"].endswith("."), field


@pytest.mark.parametrize("operation", WITH_BODY, ids=named)
async def test_a_body_beyond_the_limit_is_a_413_whether_announced_or_not(site: Any, operation: Operation) -> None:
    await site.furnish()
    huge = b'{"name":"' + b"x" * (1024 * 1024) + b'"}'
    answer = await call_as(site, operation, path_of(operation), raw=io.BytesIO(huge))
    assert (answer.status, answer.json["code"]) == (413, "BODY_TOO_LARGE")

    async def chunks() -> Any:
        for start in range(0, len(huge), 65536):
            yield huge[start : start + 65536]

    url, headers = site.url + path_of(operation), {"X-API-Key": site.owner}
    if operation.person:
        headers = {"Authorization": f"Bearer {site.token_of_owner}"}
    async with site.session.request(operation.method, url, data=chunks(), headers=headers) as response:
        assert response.status == 413


@pytest.mark.parametrize("operation", WITH_BODY, ids=named)
async def test_compressed_bodies_are_refused(site: Any, operation: Operation) -> None:
    await site.furnish()
    answer = await send(site, operation, headers={"Content-Encoding": "gzip"})
    assert (answer.status, answer.json["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("operation", WITH_QUERY, ids=named)
async def test_bad_query_parameters_are_named_all_of_them(site: Any, operation: Operation) -> None:
    await site.furnish()
    answer = await call_as(site, operation, path_of(operation) + "?limit=0&page=x&count=maybe&nonsense=1&limt=5")
    assert answer.status == 422
    assert answer.fields == {
        "/limit": "range", "/page": "type", "/count": "choice", "/nonsense": "unknown_field", "/limt": "unknown_field",
    }  # fmt: skip
    for query, path in (
        ("limit=1&limit=2", "/limit"),
        ("limit=201", "/limit"),
        ("page=-1", "/page"),
        ("page=", "/page"),
    ):
        answer = await call_as(site, operation, f"{path_of(operation)}?{query}")
        assert answer.status == 422
        assert path in answer.fields
    for query in ("limit=%ff", "&".join(["a=1"] * 100)):
        assert (await call_as(site, operation, f"{path_of(operation)}?{query}")).status == 400


@pytest.mark.parametrize("operation", WITH_QUERY, ids=named)
async def test_made_up_cursors_are_refused(site: Any, operation: Operation) -> None:
    await site.furnish()
    for cursor in ("x", "AAAA", "A" * 100, "====", "é", "0", "10"):
        answer = await call_as(site, operation, path_of(operation), query={"cursor": cursor})
        assert (answer.status, answer.json["code"]) == (400, "CURSOR_INVALID")


@pytest.mark.parametrize("operation", [item for item in OURS if item.query is None], ids=named)
async def test_parameters_where_none_are_taken_are_refused(site: Any, operation: Operation) -> None:
    await site.furnish()
    body = operation.example.body if operation.body is not None else None
    answer = await call_as(site, operation, path_of(operation) + "?force=true", body)
    assert (answer.status, answer.json["code"]) == (400, "BAD_REQUEST")


@each_scoped
async def test_identity_given_twice_is_refused(site: Any, operation: Operation) -> None:
    await site.furnish()
    url = site.url + path_of(operation)
    headers = [("X-API-Key", site.owner), ("X-API-Key", site.stranger)]
    async with site.session.request(operation.method, url, headers=headers) as response:
        assert response.status == 400
    answer = await send(site, operation, headers={"Authorization": f"Bearer {site.stranger}"})
    assert answer.status == 401


# -- methods -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", sorted({operation.path for operation in OPERATIONS}))
async def test_other_methods_are_a_405_that_says_which_there_are(site: Any, path: str) -> None:
    await site.furnish()
    here = {operation.method: operation for operation in OPERATIONS if operation.path == path}
    wanted = {*here, "OPTIONS"} | ({"HEAD"} if "GET" in here else set())
    real = path_of(next(iter(here.values())))
    for method in sorted({"GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"} - here.keys()):
        answer = await site.call(method, real)
        assert (answer.status, answer.json["code"]) == (405, "METHOD_NOT_ALLOWED")
        assert set(answer.headers["Allow"].split(", ")) == wanted
    options = await site.call("OPTIONS", real, key="")
    assert (options.status, options.body) == (204, b"")
    assert set(options.headers["Allow"].split(", ")) == wanted


@pytest.mark.parametrize("operation", [item for item in OURS if item.method == "GET" and not item.download], ids=named)
async def test_head_is_get_without_its_body(site: Any, operation: Operation) -> None:
    await site.furnish()
    url = site.url + path_of(operation)
    headers = {"Authorization": f"Bearer {site.token_of_owner if operation.person else site.owner}"}
    async with site.session.head(url, headers=headers) as response:
        full = await call_as(site, operation, path_of(operation))
        assert (response.status, await response.read()) == (full.status, b"")
        assert response.headers["Content-Length"] == str(len(full.body))


# -- the audit ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("operation", MUTATIONS, ids=named)
async def test_a_mutation_leaves_one_entry_and_a_refused_one_too(site: Any, operation: Operation) -> None:
    await site.furnish()
    answer = await send(site, operation, headers={"X-Request-Id": "trace-me-0001"})
    assert answer.headers["X-Request-Id"] == "trace-me-0001"
    (entry,) = await site.audit()
    keys = (await site.store.find(Query(KEYS, "by_org", {"org": site.org}))).records
    assert (entry.action, entry.outcome, entry.ip) == (operation.audit, "ok", "127.0.0.1")
    assert entry.request_id == "trace-me-0001"
    assert entry.resource
    everything = {record.id for record in keys if record.scopes == ("*",)}
    assert entry.actor in (everything if operation.scope else {site.owner_id})
    if operation.public:
        return  # what strangers are refused: test_people_as_attackers
    await site.call(operation.method, path_of(operation), key=await site.key("metrics:read"))
    refused = (await site.audit())[-1]
    assert (refused.action, refused.outcome, refused.details["code"]) == (operation.audit, "refused", "FORBIDDEN")


async def test_no_entry_ever_holds_a_secret(site: Any) -> None:
    await site.furnish()
    made: list[str] = []
    mutations = [item for item in MUTATIONS if item.scope]
    for operation in sorted(mutations, key=lambda item: len(item.path) * -1 if item.method == "DELETE" else -1000):
        answer = await send(site, operation)
        assert answer.status == operation.status
        if answer.json and "key" in answer.json.get("data", {}):
            made.append(answer.json["data"]["key"])
    text = str(await site.audit())
    assert made
    for secret in (*made, site.owner, "upstream-token", "Bearer", "the-mail-servers-own"):
        assert secret not in text


@pytest.mark.parametrize("operation", [item for item in OURS if item.tag in {"auth", "users"}], ids=named)
async def test_no_entry_and_no_line_of_the_log_holds_what_opens_something(site: Any, operation: Operation) -> None:
    await site.furnish()
    with capture_logs() as logs:
        answer = await send(site, operation)
        again = await send(site, operation)  # refused now, where it was good once
    sent = operation.example.body if isinstance(operation.example.body, dict) else {}
    names = {"password", "current_password", "new_password", "code", "token", "refresh_token"}
    secrets = [str(value) for name, value in sent.items() if name in names]
    for body in (answer.body, again.body):
        secrets += re.findall(r"(?:eyJ|rt_|lk_|ps_|dv_)[A-Za-z0-9_.-]{20,}", body.decode())
    text = f"{await site.audit()} {await site.audit('-')} {logs}"
    for secret in secrets:
        assert secret not in text


# -- the document ------------------------------------------------------------------------------------------------
async def test_the_document_is_valid_needs_no_key_and_has_a_tag(site: Any) -> None:
    answer = await site.call("GET", "/api/openapi.json", key="")
    assert answer.status == 200
    validate(answer.json, cls=OpenAPIV31SpecValidator)
    tag = answer.headers["ETag"]
    for header in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        again = await site.call("GET", "/api/openapi.json", key="", headers={"If-None-Match": header})
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag)
    assert (await site.call("GET", "/api/openapi.json", key="", headers={"If-None-Match": '"x"'})).status == 200


async def test_the_document_and_the_table_say_the_same(site: Any) -> None:
    document = (await site.call("GET", "/api/openapi.json")).json
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described == {(operation.method, operation.path) for operation in OPERATIONS}
    ids = [operation.name for operation in OPERATIONS]
    assert len(set(ids)) == len(ids)
    for operation in OPERATIONS:
        entry = document["paths"][operation.path][operation.method.lower()]
        assert entry["operationId"] == operation.name
        assert entry["summary"].endswith((".", "?"))
        assert entry["tags"] == [operation.tag]
        assert {str(error.status) for error in errors_of(operation)} <= set(entry["responses"])
        if operation.body is not None:
            assert entry["requestBody"]["content"]["application/json"]["examples"]["example"]["value"]


def test_every_path_that_the_product_promises_is_there() -> None:
    promised = {
        "/api/agents": {"GET", "POST"}, "/api/agents/{id}": {"GET", "PUT", "DELETE"},
        "/api/agents/{id}/profile": {"GET", "PUT"}, "/api/keys": {"GET", "POST"}, "/api/keys/{id}": {"GET", "DELETE"},
        "/api/gateway/upstreams": {"GET", "POST"}, "/api/gateway/upstreams/{id}": {"GET", "PUT", "DELETE"},
        "/api/engine/skills": {"GET"}, "/api/engine/skills/{id}": {"GET"}, "/api/engine/presets": {"GET"},
        "/api/engine/presets/{id}": {"GET"}, "/api/engine/tools": {"GET"}, "/api/engine/tool-policy": {"POST"},
        "/api/engine/check-permission": {"POST"}, "/api/engine/tool-calls": {"POST"}, "/api/engine/stats": {"GET"},
        "/api/calls": {"GET"}, "/api/openapi.json": {"GET"}, "/auth/login": {"POST"}, "/auth/refresh": {"POST"},
        "/auth/logout": {"POST"}, "/auth/me": {"GET"}, "/auth/reset-password": {"POST"}, "/auth/password": {"POST"},
        "/api/users": {"GET", "POST"}, "/api/users/{id}": {"GET", "PUT", "DELETE"}, "/api/settings": {"GET", "PUT"},
        "/api/stats": {"GET"}, "/api/audit": {"GET"}, "/api/audit/export": {"GET"},
    }  # fmt: skip
    table: dict[str, set[str]] = {}
    for operation in OPERATIONS:
        table.setdefault(operation.path, set()).add(operation.method)
    for path, methods in promised.items():
        assert methods <= table[path]
