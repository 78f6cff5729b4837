"""No secret reaches a log line: by the name of its field, or by what it looks like."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.gateway.keys import new_secret
from agenticmail_enterprise.gateway.logs import configure, masked, masked_text
from agenticmail_enterprise.gateway.settings import LogSettings


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    "name", ["password", "PASSWORD", "api_key", "X-API-Key", "authorization", "secret", "client_secret", "token",
             "refresh-token", "secret_key", "Cookie", "apikey", "db.password"],
)  # fmt: skip
def test_fields_named_like_a_secret_are_masked(name: str) -> None:
    assert masked({name: "hunter2-value", "deep": [{name: {"a": "hunter2-value"}}]}) == {
        name: "***",
        "deep": [{name: "***"}],
    }


@pytest.mark.parametrize("name", ["token_count", "tokens_used", "secretary", "passing", "key_id", "compass"])
def test_fields_that_only_sound_alike_are_kept(name: str) -> None:
    assert masked({name: "value", "n": 3, "none": None, "yes": True}) == {
        name: "value",
        "n": 3,
        "none": None,
        "yes": True,
    }


@pytest.mark.parametrize(
    ("text", "kept", "gone"),
    [
        ("key ek_abcDEF123 used", "key ek_*** used", "abcDEF123"),
        ("Authorization: Bearer abcdefghijkl.mno", "Bearer ***", "abcdefghijkl"),
        ("postgres://user:p4ss@host/db", "postgres://user:***@host/db", "p4ss"),
        ("redis://:p4ss@host", "redis://:***@host", "p4ss"),
        ("libsql://h?authToken=abc&x=1", "authToken=***&x=1", "abc&"),
        ("ak_0123456789abcdef0123", "ak_***", "0123456789"),
    ],
)
def test_texts_that_look_like_a_secret_are_masked(text: str, kept: str, gone: str) -> None:
    assert kept in masked_text(text)
    assert gone not in masked_text(text)
    assert gone not in str(masked([b"x " + text.encode(), {"note": text}]))


@given(st.text(max_size=50), st.text(max_size=50))
def test_a_key_of_ours_never_survives_wherever_it_stands(before: str, after: str) -> None:
    secret = new_secret()
    assert secret[3:] not in masked_text(f"{before} {secret} {after}")


def test_lines_of_ours_and_of_the_standard_library_are_json_and_masked() -> None:
    stream = io.StringIO()
    configure(LogSettings(level="info", format="auto"), stream)
    structlog.contextvars.bind_contextvars(request_id="req_1")
    structlog.get_logger().info("hello", api_key="ek_secretsecret", url="sqlite://u:pw@h")
    logging.getLogger("aiohttp.server").error("bad key %s", "ek_secretsecret")
    try:
        raise ValueError("with ek_secretsecret inside")
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "secretsecret" not in stream.getvalue()
    ours, theirs, failed = lines(stream)
    assert ours["event"] == "hello"
    assert ours["level"] == "info"
    assert ours["request_id"] == theirs["request_id"] == "req_1"
    assert theirs["logger"] == "aiohttp.server"
    assert "ValueError: with ek_***" in str(failed["exception"])


def test_levels_below_the_setting_say_nothing() -> None:
    stream = io.StringIO()
    configure(LogSettings(level="warning"), stream)
    structlog.get_logger().info("quiet")
    logging.getLogger("some.library").info("quiet")
    logging.getLogger("asyncio").info("quiet")
    assert stream.getvalue() == ""
    structlog.get_logger().warning("loud")
    assert len(lines(stream)) == 1


def test_console_lines_have_no_colours_where_nobody_watches() -> None:
    stream = io.StringIO()
    configure(LogSettings(format="console"), stream)
    structlog.get_logger().info("serving", url="http://127.0.0.1:3000")
    assert "\x1b" not in stream.getvalue()
    assert "serving" in stream.getvalue()


def test_cycles_and_depth_end() -> None:
    loop: dict[str, object] = {}
    loop["again"] = loop
    assert "..." in str(masked(loop))
