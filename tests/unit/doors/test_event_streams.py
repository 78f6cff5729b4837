"""Event streams are cut, looked into and passed on without losing a byte; lists in them are filtered."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from agenticmail_enterprise.gateway.doors.lists import filter_message
from agenticmail_enterprise.gateway.doors.relay import outcome_of, says_error
from agenticmail_enterprise.gateway.doors.sse import Splitter, data_of, event, with_data

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
FIELDS = st.sampled_from([b"data: {}", b"data:x", b": ping", b"event: message", b"id: 1", b"retry: 5", b"data"])


@given(st.lists(st.tuples(st.lists(FIELDS, min_size=1, max_size=4), ENDS), max_size=6), st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_any_chunking_gives_the_same_events_and_every_byte(parts: list[tuple[list[bytes], bytes]], step: int) -> None:
    events = [end.join(lines) + end + end for lines, end in parts]
    whole = b"".join(events)
    splitter = Splitter()
    cut: list[bytes] = []
    for start in range(0, len(whole), step):
        cut += splitter.feed(whole[start : start + step])
    assert b"".join(cut) + splitter.rest == whole
    again = Splitter()
    assert [data_of(e) for e in cut] == [data_of(e) for e in again.feed(whole)][: len(cut)]


def test_data_lines_join() -> None:
    assert data_of(b'event: message\r\ndata: {"a":\r\ndata: 1}\r\n\r\n') == b'{"a":\n1}'
    assert data_of(b": ping\n\n") == b""


def test_changed_data_keeps_the_event_id() -> None:
    changed = with_data(b'id: 42\nevent: message\ndata: {"old":1}\n\n', b'{"new":1}')
    assert changed == b'id: 42\nevent: message\ndata: {"new":1}\n\n'
    assert data_of(event(b"{}", "9")) == b"{}"


def listing(names: list[str], **extra: object) -> bytes:
    tools = [{"name": name, "inputSchema": {"type": "object", "x": 1.50}} for name in names]
    return json.dumps({"jsonrpc": "2.0", "id": 3, "result": {"tools": tools, **extra}}).encode()


def test_a_list_shows_only_what_the_agent_may_use_in_the_servers_order() -> None:
    filtered = filter_message(listing(["c", "a", "b"]), "mail", lambda tool: tool != "mail__a")
    assert filtered is not None
    assert [tool["name"] for tool in json.loads(filtered.body)["result"]["tools"]] == ["c", "b"]
    assert [tool["name"] for tool in filtered.seen["tools"]] == ["c", "a", "b"]
    assert filtered.whole


def test_a_list_with_nothing_hidden_passes_byte_for_byte() -> None:
    data = listing(["a"], nextCursor="2")
    filtered = filter_message(data, "mail", lambda tool: True)
    assert filtered is not None
    assert filtered.body == data
    assert not filtered.whole


def test_what_depends_on_the_agent_is_not_publicly_cacheable() -> None:
    filtered = filter_message(listing(["a"], cacheScope="public", ttlMs=9), "mail", lambda tool: True)
    assert filtered is not None
    assert json.loads(filtered.body)["result"]["cacheScope"] == "private"


def test_lists_in_batches_and_replayed_streams_are_filtered_by_shape() -> None:
    batch = b"[" + listing(["a", "b"]) + b',{"jsonrpc":"2.0","id":4,"result":{}}]'
    filtered = filter_message(batch, "mail", lambda tool: tool == "mail__b")
    assert filtered is not None
    first, second = json.loads(filtered.body)
    assert [tool["name"] for tool in first["result"]["tools"]] == ["b"]
    assert second == {"jsonrpc": "2.0", "id": 4, "result": {}}


def test_what_is_no_list_is_left_alone() -> None:
    assert filter_message(b'{"jsonrpc":"2.0","id":1,"result":{"content":[]}}', "mail", lambda tool: False) is None
    assert (
        filter_message(b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"\\"tools\\""}}', "m", lambda t: False)
        is None
    )


def test_an_error_is_recognised_where_it_is_and_not_where_it_is_talked_about() -> None:
    assert says_error(b'{"jsonrpc":"2.0","id":1,"result":{"content":[],"isError": true}}')
    assert says_error(b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"x"}}')
    assert not says_error(
        b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"text":"\\"isError\\":true"}],"isError":false}}'
    )
    assert not says_error(b'{"jsonrpc":"2.0","id":1,"result":{"structuredContent":{"error":{"a":1}}}}')
    assert outcome_of(502, b"") == "error"
    assert outcome_of(200, b"{}") == "ok"
