"""JSON-RPC bodies have one reading, or none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticmail_enterprise.gateway.doors.jsonrpc import RpcError, check_envelope, decode, encode, subject_of
from agenticmail_enterprise.gateway.doors.mcpfacts import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    PARSE_ERROR,
    encode_header_value,
    header_value,
)

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "send", "arguments": {"to": "a@b.c"}}}


@pytest.mark.parametrize("body", [
    b"", b"{", b"nope", b"\xef\xbb\xbf{}", b'{"a":1} {"b":2}', b'{"a":NaN}', b'{"a":1e999}', b'{"a":"\xff"}',
    b'{"a":"\x01"}', '{"a":1}'.encode("utf-16"), b"[" * 100_000 + b"]" * 100_000,
    b'{"to":"ada@acme.test","to":"eve@evil.test"}', b'{"params":{"x":{"a":1, "a":2}}}',
    b'{"a" : 1, "\\u0061" : 2}', b"{'a':1}", b'{"a":1,}', b'{"a":"\\ud800"}',
])  # fmt: skip
def test_a_body_that_two_readers_could_read_differently_is_refused(body: bytes) -> None:
    with pytest.raises(RpcError) as refused:
        decode(body)
    assert refused.value.code == PARSE_ERROR


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_honest_json_is_read_as_json_reads_it(value: object) -> None:
    for text in (
        json.dumps(value),
        json.dumps(value, separators=(",", ":"), ensure_ascii=False),
        json.dumps(value, indent=2),
    ):
        try:
            data = text.encode()
        except UnicodeEncodeError:
            continue
        assert decode(data) == value


@pytest.mark.parametrize("message", [
    None, 1, "x", True, {}, {"jsonrpc": "1.0", "method": "x"}, {"jsonrpc": "2.0"}, {"jsonrpc": "2.0", "method": 1},
    {"jsonrpc": "2.0", "method": "x", "id": None}, {"jsonrpc": "2.0", "method": "x", "id": True},
    {"jsonrpc": "2.0", "method": "x", "id": {}}, {"jsonrpc": "2.0", "method": "x", "id": 1.5},
    {"jsonrpc": "2.0", "method": "x", "result": {}}, {**CALL, "Method": "tools/list"}, {**CALL, "PARAMS": {}},
    {**CALL, "param\u017f": {}},
])  # fmt: skip
def test_an_envelope_that_is_not_json_rpc_is_refused(message: object) -> None:
    with pytest.raises(RpcError) as refused:
        check_envelope(message)
    assert refused.value.code == INVALID_REQUEST


@pytest.mark.parametrize("params", [
    None, {}, {"name": ""}, {"name": 1}, {"name": None}, {"name": ["send"]}, {"name": "a\u0000b"}, {"name": "a\nb"},
    {"name": "\u202esend"}, {"name": "se\u200bnd"}, {"name": "x" * 5000}, {"name": "send", "arguments": []},
    {"name": "send", "arguments": "to"},
])  # fmt: skip
def test_a_call_names_its_tool_and_gives_an_object(params: object) -> None:
    with pytest.raises(RpcError) as refused:
        subject_of({**CALL, "params": params}, "name")
    assert refused.value.code == INVALID_PARAMS


@pytest.mark.parametrize("key", ["Name", "NAME", "Arguments", "argument\u017f"])
def test_a_second_name_in_other_case_is_refused(key: str) -> None:
    with pytest.raises(RpcError):
        subject_of({**CALL, "params": {"name": "read", key: "delete"}}, "name")


def test_a_call_is_taken_apart() -> None:
    assert subject_of(check_envelope(decode(encode(CALL))), "name") == ("send", {"to": "a@b.c"})
    assert subject_of({**CALL, "params": {"name": "send", "arguments": None}}, "name") == ("send", {})


@given(st.text(min_size=1))
@settings(max_examples=200, deadline=None)
def test_header_values_survive_their_wrapping(name: str) -> None:
    try:
        wrapped = encode_header_value(name)
    except UnicodeEncodeError:
        return  # lone surrogates are no text that could be sent
    assert wrapped.isascii()
    assert header_value(wrapped) == name


@pytest.mark.parametrize("raw", ["=?base64?!?=", "=?base64?YR==?=", "=?base64?/w==?="])
def test_a_malformed_wrapping_matches_nothing(raw: str) -> None:
    assert header_value(raw) is None
