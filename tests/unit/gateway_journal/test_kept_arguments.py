"""What of the arguments is kept: no secret that its name or its beginning gives away."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.gateway.redaction import (
    MASK,
    READ_MAX,
    STRING_MAX,
    TEXT_MAX,
    is_secret,
    kept_arguments,
)
from agenticmail_enterprise.tests.unit.gateway_journal.journal_kit import new_call

SECRET = "hunter2-hunter2"
NAMES = [
    "password", "Password", "user_password", "passwd", "passphrase", "secret", "client_secret", "clientSecret", "token",
    "access_token", "refreshToken", "api_key", "apiKey", "API-KEY", "x-api-key", "authorization", "Authorization",
    "private_key", "credentials", "cookie", "Set-Cookie", "pwd", "pin", "otp", "cvv", "jwt", "session_id",
    "pass\u0077ord", "connection_string",
]  # fmt: skip
HARMLESS = ["to", "subject", "key", "author", "max_tokens", "page_token", "compass", "spin", "path", "authority"]


def kept(args: Any, raw: bytes | None = None) -> str:
    return kept_arguments(new_call(raw=json.dumps(args).encode() if raw is None else raw))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"a": x}, lambda x: {"a": [{"b": x}]}], ids=["0", "1", "2"])
def test_a_secrets_name_masks_its_value(name: str, wrap: Any) -> None:
    for value in (SECRET, [SECRET], {"deep": SECRET}, 12345):
        text = kept(wrap({"to": "bob", name: value, "n": 1}))
        assert SECRET not in text
        assert "12345" not in text
        assert MASK in text
        assert '"to":"bob"' in text
    assert SECRET not in kept(wrap({name: SECRET}))


@pytest.mark.parametrize("name", HARMLESS)
def test_other_names_keep_their_values(name: str) -> None:
    for _ in range(2):
        assert kept({name: "value"}) == f'{{"{name}":"value"}}'
    assert not is_secret(name)


@pytest.mark.parametrize(
    "value", ["Bearer abc", "ek_live_123", "sk-abc", "ghp_abc", "AKIAXYZ", "eyJhbGciOi", "-----BEGIN RSA"]
)
def test_a_string_that_begins_like_a_credential_is_masked(value: str) -> None:
    for _ in range(2):
        assert kept({"note": value}) == f'{{"note":"{MASK}"}}'
        assert kept({"notes": ["x", value]}) == f'{{"notes":["x","{MASK}"]}}'


def test_pairs_of_name_and_value_are_understood() -> None:
    text = kept({"headers": [{"name": "Authorization", "value": SECRET}, {"name": "Accept", "value": "text/html"}]})
    assert SECRET not in text
    assert "text/html" in text


def test_escapes_and_repeated_names_hide_nothing() -> None:
    assert SECRET not in kept(None, rb'{"pass\u0077ord":"hunter2-hunter2"}')
    assert SECRET not in kept(None, b'{"to":{"password":"hunter2-hunter2"},"to":"bob"}')


def test_long_values_are_cut() -> None:
    text = kept({"body": "x" * 5000})
    assert len(text) < STRING_MAX + 100
    assert "[+3976 characters]" in text
    many = kept({f"f{n}": "y" * 1000 for n in range(50)})
    assert len(many) < TEXT_MAX + 50
    assert many.endswith(" characters]")
    assert kept({"body": "x" * READ_MAX}) == f"[{READ_MAX + 12} bytes, not kept]"


def test_deep_arguments_end_somewhere() -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = {"a": deep}
    assert "[too deep]" in kept(deep)


def test_no_arguments_are_nothing() -> None:
    assert kept({}) == "{}"
    assert kept_arguments(new_call(raw=msgspec.Raw(b'{"a":1}'))) == '{"a":1}'


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=20), json_values, max_size=5))
def test_whatever_is_sent_something_is_kept(args: dict[str, Any]) -> None:
    assert kept(None, json.dumps(args).encode())


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_no_error(raw: bytes) -> None:
    assert isinstance(kept(None, raw), str)


@given(st.dictionaries(st.text(max_size=20), json_values, max_size=5), st.sampled_from(NAMES))
def test_a_secret_among_anything_is_masked(args: dict[str, Any], name: str) -> None:
    assert SECRET not in kept({**args, "wrapped": [{name: SECRET}], name: SECRET})


def test_a_pair_that_names_a_secret_is_masked_however_often_its_names_were_seen() -> None:
    assert json.loads(kept({"name": "x", "value": "y"})) == {"name": "x", "value": "y"}
    assert SECRET not in kept({"name": "Authorization", "value": SECRET})
