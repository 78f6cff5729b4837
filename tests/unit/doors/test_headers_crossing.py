"""Headers at the door: what travels on, what stays, what is refused."""

from __future__ import annotations

import pytest

from agenticmail_enterprise.catalog.errors import BadRequest, Unauthenticated, UnsupportedMedia
from agenticmail_enterprise.gateway.doors.headers import api_key, check_body_headers, request_id, scan, trace

KEY = b"ek_" + b"a" * 49


def test_credentials_and_hop_headers_stay_here() -> None:
    found = scan([
        (b"Host", b"gw"), (b"X-API-Key", KEY), (b"Authorization", b"Bearer other"), (b"Cookie", b"a=b"),
        (b"Connection", b"keep-alive, X-Secret"), (b"X-Secret", b"1"), (b"Transfer-Encoding", b"chunked"),
        (b"Content-Length", b"3"), (b"Accept-Encoding", b"gzip"), (b"Origin", b"http://gw"), (b"X-Forwarded-For", b"1.2.3.4"),
        (b"Accept", b"application/json"), (b"X-Custom", b"kept"), (b"Last-Event-ID", b"7"), (b"Mcp-Method", b"tools/call"),
    ])  # fmt: skip
    assert found.lines == [
        b"Accept: application/json\r\n", b"X-Custom: kept\r\n", b"Last-Event-ID: 7\r\n", b"Mcp-Method: tools/call\r\n",
    ]  # fmt: skip
    assert found.text(b"x-api-key") == KEY.decode()


@pytest.mark.parametrize("name", [b"Mcp-Name", b"X-API-Key", b"Content-Type", b"mcp-SESSION-id", b"Authorization"])
def test_a_header_that_must_be_single_is_refused_when_doubled(name: bytes) -> None:
    with pytest.raises(BadRequest):
        scan([(name, b"a"), (name.swapcase(), b"b")])


def test_the_key_may_come_either_way_but_not_two_ways_that_differ() -> None:
    assert api_key({b"x-api-key": KEY}) == KEY.decode()
    assert api_key({b"authorization": b"Bearer " + KEY}) == KEY.decode()
    assert api_key({b"authorization": b"bearer " + KEY, b"x-api-key": KEY}) == KEY.decode()
    assert api_key({b"authorization": b"Bearer somebody-elses"}) == ""
    assert api_key({}) == ""
    with pytest.raises(Unauthenticated):
        api_key({b"authorization": b"Bearer " + KEY, b"x-api-key": b"ek_other"})


@pytest.mark.parametrize("noted", [
    {b"content-encoding": b"gzip"}, {b"content-encoding": b"br"}, {b"content-type": b"application/json; charset=utf-16"},
    {b"content-type": b'application/json; Charset="latin-1"'},
])  # fmt: skip
def test_bodies_that_an_upstream_would_read_differently_are_refused(noted: dict[bytes, bytes]) -> None:
    with pytest.raises(UnsupportedMedia):
        check_body_headers(noted)


def test_plain_json_passes() -> None:
    check_body_headers({b"content-type": b"application/json; charset=UTF-8"})
    check_body_headers({b"content-encoding": b"identity"})


def test_trace_context_passes_or_begins() -> None:
    given = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert trace({b"traceparent": given}, "dec_" + "1" * 32) == (
        "4bf92f3577b34da6a3ce929d0e0e4736",
        b"traceparent: " + given + b"\r\n",
    )
    own, line = trace({b"traceparent": b"ff-nonsense"}, "dec_" + "a" * 32)
    assert own == "a" * 32
    assert line.startswith(b"traceparent: 00-" + b"a" * 32)


def test_a_request_id_is_taken_when_it_is_printable() -> None:
    assert request_id({b"x-request-id": b"abcdefgh-1"}, "own") == "abcdefgh-1"
    assert request_id({b"x-request-id": b"short"}, "own") == "own"
    assert request_id({b"x-request-id": b"with space and more"}, "own") == "own"
