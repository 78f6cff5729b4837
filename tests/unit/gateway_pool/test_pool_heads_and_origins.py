"""URLs taken apart, and request heads that cannot hold a second request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.catalog.errors import BadRequest, ValidationFailed
from agenticmail_enterprise.gateway.pool import Origin, build_head
from agenticmail_enterprise.gateway.pool_idle import IdleLimit, parse_keep_alive


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "base", "target", "line"),
    [
        ("http://Example.COM/mcp", "http", "example.com", 80, "/mcp", "/mcp", b"Host: example.com\r\n"),
        ("https://example.com", "https", "example.com", 443, "", "/", b"Host: example.com\r\n"),
        ("https://example.com:8443/a/b/?x=1&y", "https", "example.com", 8443, "/a/b", "/a/b/?x=1&y",
         b"Host: example.com:8443\r\n"),
        ("http://[2001:DB8::1]:8080/x", "http", "2001:db8::1", 8080, "/x", "/x", b"Host: [2001:db8::1]:8080\r\n"),
        ("http://bücher.example/", "http", "xn--bcher-kva.example", 80, "", "/", b"Host: xn--bcher-kva.example\r\n"),
        ("http://example.com./x%20y", "http", "example.com", 80, "/x%20y", "/x%20y", b"Host: example.com\r\n"),
        ("https://example.com:443/", "https", "example.com", 443, "", "/", b"Host: example.com\r\n"),
    ],
)  # fmt: skip
def test_urls(url: str, scheme: str, host: str, port: int, base: str, target: str, line: bytes) -> None:
    origin = Origin.parse(url)
    assert (origin.scheme, origin.host, origin.port, origin.base_path) == (scheme, host, port, base)
    assert (origin.target, origin.host_line) == (target, line)
    assert Origin.parse(origin.url).url == origin.url


@pytest.mark.parametrize(
    "url",
    ["", "example.com", "ftp://example.com/", "file:///etc/passwd", "http://", "http:///x", "http://user@example.com/",
     "http://user:pass@example.com/", "http://example.com/#part", "http://example.com:0/", "http://example.com:70000/",
     "http://example.com:x/", "http://exa mple.com/", "http://example.com/a b", "http://example.com/\r\nX: y",
     "http://example.com/\x00", "http://example.com\\@evil.test/", "http://[::1", "http://[nonsense]/", "http://a..b/",
     "http://-a.test/", "http://a.test-/", "http://" + "a" * 64 + ".test/", "http://" + "a." * 130 + "test/",
     "http://exa%6dple.com/", "http://example.com/ü", "http://example.com/?q=ü", "gopher://x/", "http://*.test/"],
)  # fmt: skip
def test_what_is_no_url_of_an_upstream(url: str) -> None:
    with pytest.raises(ValidationFailed) as refusal:
        Origin.parse(url)
    assert refusal.value.details["fields"][0]["path"] == "/url"


def test_a_head_is_written_in_its_order_and_case() -> None:
    head = build_head(
        "POST", "/mcp?x=1", [(b"Host", b"a.test"), (b"X-B", b"2"), (b"x-a", b"\x80 1"), (b"Content-Length", b"2")]
    )
    assert head == b"POST /mcp?x=1 HTTP/1.1\r\nHost: a.test\r\nX-B: 2\r\nx-a: \x80 1\r\nContent-Length: 2\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GE T", "/", []), ("GET\r\nX: y", "/", []), ("", "/", []), ("GËT", "/", []),
        ("GET", "x", []), ("GET", "", []), ("GET", "/a b", []), ("GET", "/\r\nX: y", []), ("GET", "/\x00", []),
        ("GET", "/ü", []), ("GET", "//ok\x7f", []), ("GET", "*x", []),
        ("GET", "/", [(b"", b"x")]), ("GET", "/", [(b"X y", b"x")]), ("GET", "/", [(b"X:", b"x")]),
        ("GET", "/", [(b"X\r\nY", b"x")]), ("GET", "/", [(b"X", b"a\r\nY: b")]), ("GET", "/", [(b"X", b"a\nb")]),
        ("GET", "/", [(b"X", b"a\rb")]), ("GET", "/", [(b"X", b"a\x00b")]), ("GET", "/", [(b"X", b"a\x0bb")]),
        ("GET", "/", [(b"X", b"a\n")]), ("GET", "/", [(b"X\n", b"a")]),
        ("GET", "/", [(b"Connection", b"close")]), ("GET", "/", [(b"TRANSFER-ENCODING", b"chunked")]),
        ("GET", "/", [(b"Upgrade", b"h2c")]), ("GET", "/", [(b"TE", b"trailers")]), ("GET", "/", [(b"Trailer", b"x")]),
        ("GET", "/", [(b"Keep-Alive", b"x")]), ("GET", "/", [(b"Proxy-Authorization", b"x")]),
        ("GET", "/", [(b"Proxy-Connection", b"x")]), ("GET", "/", [(b"Expect", b"100-continue")]),
        ("GET", "/", [(b"Content-Length", b"1"), (b"content-length", b"1")]),
        ("GET", "/", [(b"Content-Length", b"-1")]), ("GET", "/", [(b"Content-Length", b"1, 1")]),
        ("GET", "/", [(b"Content-Length", b"")]), ("GET", "/", [(b"Host", b"a"), (b"HOST", b"b")]),
    ],
)  # fmt: skip
def test_heads_that_are_never_written(method: str, target: str, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(BadRequest):
        build_head(method, target, headers)


@given(
    st.text(max_size=8),
    st.text(max_size=12),
    st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=12)), max_size=4),
)
def test_whatever_is_put_in_a_head_has_as_many_lines_as_headers(
    method: str, target: str, headers: list[tuple[bytes, bytes]]
) -> None:
    try:
        head = build_head(method, target, headers)
    except BadRequest:
        return
    lines = head.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    assert len(lines) == len(headers) + 3
    assert b"\n" not in head.replace(b"\r\n", b"")
    assert len(lines[0].split(b" ")) == 3
    assert [line.partition(b": ")[0] for line in lines[1:-2]] == [name for name, _ in headers]


# -- how long a connection may rest ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"timeout=5", 5), (b"timeout=5, max=100", 5), (b"max=100,timeout=15", 15), (b"Timeout = 7", 7),
     (b'timeout="9"', 9), (b"timeout=0", 0), (b"max=5", None), (b"", None), (b"timeout=x", None),
     (b"timeout=-1", None), (b"xtimeout=4", None)],
)  # fmt: skip
def test_keep_alive_headers(value: bytes, seconds: float | None) -> None:
    assert parse_keep_alive(value) == seconds


@pytest.mark.parametrize(("announced", "limit"), [(5, 4.0), (2, 1.0), (1, 0.5), (0, 0.0), (75, 30.0)])
def test_an_announced_limit_less_a_margin(announced: float, limit: float) -> None:
    limits = IdleLimit(30.0)
    assert (limits.limit, limits.cautious) == (30.0, 4.0)
    limits.announce(announced)
    assert (limits.limit, limits.cautious) == (limit, limit)


def test_a_limit_is_learned_from_two_closes_alike() -> None:
    limits = IdleLimit(30.0)
    limits.observe(10.0, 100.0)
    assert limits.limit == 30.0
    limits.observe(3.0, 200.0)  # nothing alike
    assert limits.limit == 30.0
    limits.observe(9.8, 300.0)
    assert (limits.limit, limits.cautious) == (8.8, 8.8)
    limits.announce(5)
    assert limits.limit == 4.0


def test_a_restart_of_the_server_teaches_nothing() -> None:
    limits = IdleLimit(30.0)
    for number in range(50):  # all at once, at whatever age
        limits.observe(0.1 * number, 100.0 + number / 1000)
    assert limits.limit == 30.0


def test_what_was_learned_is_forgotten() -> None:
    limits = IdleLimit(30.0)
    for at in (1.0, 2.0):
        limits.observe(0.001, at)
    assert limits.limit == 0.0  # it keeps nothing: no connection is used twice
    limits.refresh(200.0)
    assert limits.limit == 0.0
    limits.refresh(303.0)
    assert limits.limit == 30.0


def test_memory_of_closes_is_bounded() -> None:
    limits = IdleLimit(30.0)
    for number in range(1000):
        limits.observe(1000.0 * 2**number if number < 500 else 0.5 + number, float(number))
    assert len(limits._samples) <= 8
