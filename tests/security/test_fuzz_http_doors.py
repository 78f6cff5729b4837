"""Fuzzing of the HTTP doors: whatever is forwarded, a generous upstream reads as the very call that was judged."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any
from urllib.parse import parse_qsl, unquote

from hypothesis import given, settings
from hypothesis import strategies as st

from agenticmail_enterprise.catalog.errors import EnterpriseError
from agenticmail_enterprise.catalog.routes import Route
from agenticmail_enterprise.gateway.doors.http import agenticmail
from agenticmail_enterprise.gateway.doors.http.agenticmail_table import SLASHES, routes
from agenticmail_enterprise.gateway.doors.http.arguments import gather, read_object, write
from agenticmail_enterprise.gateway.doors.http.openapi import NotUsable, import_routes
from agenticmail_enterprise.gateway.doors.http.redaction import redact
from agenticmail_enterprise.gateway.doors.http.table import RouteTable, faults_of, template
from agenticmail_enterprise.gateway.doors.http.targets import read_target

ROUTES = routes()
TABLE = RouteTable(ROUTES, SLASHES)
JSON_HEAD = {b"content-type": b"application/json"}
MANY = settings(max_examples=400, deadline=None)

PIECES = st.sampled_from([
    "mail", "send", "drafts", "templates", "accounts", "me", "ME", "directory", "folders", "messages", "memory", "context",
    "stats", "tags", "inbox", "1", "a b", "%20", "%2F", "%2f", "%2e%2e", "%6De", "..", ".", "", ";x", "%00", "%C3%A9", "%FF",
    "\u0130nbox", "me ", "me%20", "%", "\\", "a+b", "@", "%25", "%3f",
])  # fmt: skip
SEGMENTS = st.one_of(PIECES, st.tuples(PIECES, PIECES).map("".join), st.text(max_size=6))
QUERIES = st.one_of(st.just(""), st.text(max_size=20).map("?".__add__), st.lists(
    st.tuples(st.sampled_from(["a", "A", "limit", "to", "folder", "a[]", "a.b", ""]), st.text(max_size=5)), max_size=3,
).map(lambda pairs: "?" + "&".join(f"{key}={value}" for key, value in pairs)))  # fmt: skip
TARGETS = st.tuples(st.lists(SEGMENTS, min_size=1, max_size=5), QUERIES).map(lambda t: "/" + "/".join(t[0]) + t[1])
REAL = st.sampled_from(ROUTES).flatmap(
    lambda route: st.tuples(*(st.just(word) if word else SEGMENTS for word, _ in template(route.path))).map(
        lambda parts: "/" + "/".join(parts)
    )
)
METHODS = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "get"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.text(max_size=8))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
ADDRESSES = st.one_of(
    st.sampled_from(
        ["a@b.c", "A <a@B.c>", '"x, y" <a@b.c>', "a@b.c, d@e.f", "g: a@b.c;", "a@b.c (x)", "a@b@c", "<a@b.c>"]
    ),
    st.text(alphabet='ab@.,<>"() :;\\\u0430', max_size=14),
)
BODIES = st.dictionaries(
    st.sampled_from(["to", "cc", "bcc", "replyTo", "subject", "text", "attachments", "To", "raw", "wake", "recipients"]),
    st.one_of(ADDRESSES, VALUES, st.lists(ADDRESSES, max_size=3)), max_size=5,
)  # fmt: skip


def generous(method: str, target: str) -> tuple[Route, dict[str, str]] | None:
    """How Express reads a target: case and a trailing slash do not matter, first route wins, parameters decoded."""
    path = target.partition("?")[0]
    for route in sorted(ROUTES, key=lambda one: [bool(name) for _, name in template(one.path)]):
        pattern = "".join(
            "/" + (re.escape(word) if word else f"(?P<{name}>[^/]+)") for word, name in template(route.path)
        )
        found = re.fullmatch(pattern + "/?", path, re.IGNORECASE)
        if found and route.method == method:
            return route, {name: unquote(value) for name, value in found.groupdict().items()}
    return None


def refused(error: EnterpriseError) -> None:
    """A refusal says so to the client: never a fault of ours."""
    assert 400 <= error.status < 500


@MANY
@given(METHODS, st.one_of(TARGETS, REAL), st.one_of(st.none(), BODIES))
def test_what_is_forwarded_is_read_as_what_was_judged(method: str, raw: str, body: dict[str, Any] | None) -> None:
    try:
        target = read_target(raw)
        route, path = TABLE.match(method, target)
        value = read_object(JSON_HEAD, json.dumps(body).encode() if body is not None else b"")
        arguments = agenticmail.shape(route, gather(route, path, target, value))
        sent, written = write(route, arguments, tuple(target.query), bodied=value is not None, slashes=SLASHES)
    except EnterpriseError as error:
        refused(error)
        return
    read = generous(method, sent)
    assert read is not None
    assert read[0] is route
    assert read[1] == {name: str(arguments[name]) for name in read[1]}
    query = dict(parse_qsl(sent.partition("?")[2], keep_blank_values=True))
    carried = {**read[1], **query, **(json.loads(written) if written else {})}
    assert {name: str(value) for name, value in carried.items()} == {name: str(v) for name, v in arguments.items()}
    assert agenticmail.judged(route, arguments).keys() >= arguments.keys()


@MANY
@given(st.one_of(st.binary(max_size=60), VALUES.map(lambda value: json.dumps(value).encode()),
                 VALUES.map(lambda value: json.dumps(value).encode("utf-16"))), st.sampled_from(
    [b"application/json", b"application/json; charset=utf-16", b"text/plain", b"application/x-www-form-urlencoded", b""]))  # fmt: skip
def test_bodies_are_json_objects_or_refused(body: bytes, kind: bytes) -> None:
    try:
        value = read_object({b"content-type": kind}, body)
    except EnterpriseError as error:
        refused(error)
        return
    assert value is None or (isinstance(value, dict) and json.loads(body) == value)


@MANY
@given(ADDRESSES)
def test_addresses_are_spelt_in_one_way(text: str) -> None:
    route, _ = TABLE.match("POST", read_target("/mail/send"))
    try:
        shaped = agenticmail.shape(route, {"to": text, "subject": "s"})
    except EnterpriseError as error:
        refused(error)
        return
    assert agenticmail.shape(route, shaped) == shaped
    recipients = agenticmail.judged(route, shaped)["recipients"]
    assert recipients
    assert shaped["to"].count("@") == text.count("@")
    assert all(address in shaped["to"] for address in recipients)


@MANY
@given(st.recursive(SCALARS | st.sampled_from(["object", "string", "#/components/schemas/A", True]), lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(st.sampled_from([
        "$ref", "type", "properties", "required", "allOf", "in", "name", "schema", "content", "application/json",
        "requestBody", "parameters", "operationId", "get", "post", "components", "schemas", "A"]), inner, max_size=4),
    max_leaves=20))  # fmt: skip
def test_documents_are_read_or_refused(item: Any) -> None:
    document = {"openapi": "3.1.0", "paths": {"/a/{id}": item}, "components": {"schemas": {"A": item}}}
    with contextlib.suppress(NotUsable):
        found = import_routes(document)
        faults_of(found)


@MANY
@given(VALUES)
def test_redaction_leaves_what_holds_no_key(value: Any) -> None:
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    if "k_" not in body and "\\u00" not in body:
        with contextlib.suppress(UnicodeEncodeError):
            assert redact(body.encode()) == body.encode()
    key = "ak_0123456789abcdef"
    hidden = json.dumps({"a": [key, value]}).encode("utf-8", "surrogatepass")
    with contextlib.suppress(EnterpriseError):
        assert key.encode() not in redact(hidden)
