"""The pure parts: backoff, lines, environments, ids."""

from __future__ import annotations

import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.adapters.upstreams import remap, wardenproc
from agenticmail_enterprise.adapters.upstreams.backoff import LENIENT, Backoff
from agenticmail_enterprise.adapters.upstreams.childenv import child_environment, find_program
from agenticmail_enterprise.adapters.upstreams.lines import LineSplitter, OversizeError, StderrRing, is_message
from agenticmail_enterprise.adapters.upstreams.process import describe_exit, without_stderr
from agenticmail_enterprise.catalog import errors


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backoff(clock: Clock) -> Backoff:
    return Backoff(base=1, cap=10, healthy_after=30, clock=clock, jitter=lambda: 1.0)


# -- backoff -------------------------------------------------------------------------------------------------------
def test_rests_double_up_to_the_cap(backoff, clock):
    rests = []
    for _ in range(6):
        backoff.died(clock(), spoke=False)
        rests.append(backoff.retry_after)
        clock.now += rests[-1]
        backoff.enter()
        clock.now += 0.01
    assert rests == pytest.approx([1, 2, 4, 8, 10, 10])


def test_after_a_rest_starts_are_admitted_one_at_a_time_until_a_child_answers(backoff, clock):
    backoff.died(clock(), spoke=False)
    clock.now += 1
    backoff.enter()
    with pytest.raises(errors.BreakerOpen) as resting:
        backoff.enter()
    assert resting.value.details == {"retry_after": 1.0, "failures": 1}
    backoff.spoke()
    backoff.enter()
    backoff.enter()


def test_children_that_fall_together_are_one_failure(backoff, clock):
    started = clock()
    clock.now += 5
    for _ in range(50):
        backoff.died(started, spoke=False)
    assert backoff.failures == 1


def test_deaths_after_an_answer_are_forgiven_a_few_times(backoff, clock):
    for _ in range(LENIENT):
        backoff.died(clock(), spoke=True)
        backoff.enter()
        clock.now += 1
    backoff.died(clock(), spoke=True)
    with pytest.raises(errors.BreakerOpen):
        backoff.enter()


def test_a_healthy_run_resets(backoff, clock):
    for _ in range(5):
        backoff.died(clock(), spoke=False)
        clock.now += 20
    started = clock()
    clock.now += 29
    backoff.survived(started)
    assert backoff.failures == 5
    clock.now += 1
    backoff.died(started, spoke=False)  # not early
    assert backoff.failures == 0
    backoff.enter()


def test_the_health_of_an_older_child_says_nothing_about_new_ones(backoff, clock):
    old = clock()
    clock.now += 100
    backoff.died(clock(), spoke=False)
    backoff.survived(old)
    assert backoff.failures == 1


def test_many_failures_overflow_nothing(backoff, clock):
    for _ in range(2000):
        backoff.died(clock(), spoke=False)
        clock.now += 1
    assert backoff.retry_after <= 10


# -- lines ---------------------------------------------------------------------------------------------------------
@given(st.lists(st.binary(max_size=20)), st.data())
def test_lines_come_out_the_same_however_they_are_cut(lines, data):
    lines = [line.replace(b"\n", b"").removesuffix(b"\r") for line in lines]
    stream = b"".join(line + data.draw(st.sampled_from([b"\n", b"\r\n"])) for line in lines)
    splitter, found, at = LineSplitter(100), [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, 30))
        found += splitter.feed(stream[at : at + step])
        at += step
    assert [line.removesuffix(b"\r") for line in found] == [line.removesuffix(b"\r") for line in lines]
    assert splitter.end() == b""


def test_a_line_over_its_bound_is_refused_whole_or_in_pieces():
    assert LineSplitter(10).feed(b"x" * 10 + b"\n") == [b"x" * 10]
    with pytest.raises(OversizeError):
        LineSplitter(10).feed(b"x" * 11 + b"\n")
    with pytest.raises(OversizeError):
        LineSplitter(10).feed(b"ok\n" + b"x" * 11 + b"\nok\n")
    splitter = LineSplitter(10)
    splitter.feed(b"x" * 10)
    with pytest.raises(OversizeError):
        splitter.feed(b"x")


@given(st.lists(st.binary(max_size=300)))
def test_the_ring_is_bounded_and_printable_whatever_comes(chunks):
    ring = StderrRing(5, 400)
    for chunk in chunks:
        ring.feed(chunk)
    ring.end()
    tail = ring.tail()
    assert len(tail) <= 5
    assert sum(map(len, tail)) <= 400
    assert all(line.isprintable() for line in tail)


@pytest.mark.parametrize("line", [b'{"a":1}', b" [1,2]", '{"ä":"😀"}'.encode(), b"{}"])
def test_objects_and_arrays_may_be_messages(line):
    assert is_message(line)


@pytest.mark.parametrize(
    "line", [b"", b"{", b"null", b"1", b'"a"', b"{} {}", b'{"a":"\xff"}', b"\xef\xbb\xbf{}", b"[" * 100_000, b"{'a':1}"]
)
def test_anything_else_is_noise(line):
    assert not is_message(line)


def test_exits_in_words():
    assert describe_exit(0) == "exit code 0"
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-250) == "killed by signal 250"
    assert describe_exit(None) == "its end was not seen"
    assert without_stderr("exit code 3; last line of stderr: token=abc; def") == "exit code 3"


# -- environments --------------------------------------------------------------------------------------------------
def test_an_environment_without_anything_has_a_path_and_a_language():
    assert child_environment({}, {}) == {"PATH": "/bin:/usr/bin", "LANG": "C.UTF-8"}


def test_functions_of_a_shell_do_not_pass():
    assert "TERM" not in child_environment({}, {"TERM": "() { :; }; echo x"})


def test_a_program_is_looked_up_where_the_child_would_look(tmp_path):
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_program("tool", folder=None, path=str(tmp_path)) == str(program)
    assert find_program("./tool", folder=str(tmp_path), path="") == str(program)
    with pytest.raises(errors.UpstreamRefused):
        find_program("tool", folder=str(tmp_path), path="/usr/bin")


# -- ids -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("original", [b'"a-7"', b"1", b"-3", b'"\\u00e4"', b'"1"', b"12345678901234567"])
def test_a_request_gets_our_id_and_its_answer_the_callers_in_the_same_bytes(original):
    message = (
        b'{"jsonrpc":"2.0","id":%b,"method":"m","params":{"n":1.50,"big":123456789012345678901234567890}}' % original
    )
    sent = remap.readdress(message, 42)
    assert sent.line == message.replace(b'"id":%b' % original, b'"id":42')
    [fields] = remap.split(b'{"jsonrpc":"2.0","id":42,"result":{"x":1.0}}')
    assert remap.own_id(fields["id"]) == 42
    assert remap.restore_response(fields, sent) == b'{"jsonrpc":"2.0","id":%b,"result":{"x":1.0}}' % original


def test_a_progress_token_is_replaced_and_restored():
    message = b'{"jsonrpc":"2.0","id":"a","method":"m","params":{"x":[1, 2],"_meta":{"progressToken":"tok","other":1}}}'
    sent = remap.readdress(message, 42)
    assert msgspec.json.decode(sent.line)["params"] == {"x": [1, 2], "_meta": {"progressToken": 42, "other": 1}}
    [fields] = remap.split(
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":42,"progress":0.50}}'
    )
    assert remap.owner_of(fields, remap.PROGRESS) == 42
    restored = remap.restore_notification(fields, remap.PROGRESS, sent)
    assert (
        restored
        == b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"tok","progress":0.50}}'
    )


def test_a_subscriptions_events_and_end_carry_the_callers_id_again():
    sent = remap.readdress(b'{"jsonrpc":"2.0","id":"sub","method":"subscriptions/listen","params":{}}', 42)
    key = remap.SUBSCRIPTION_ID.encode()
    [event] = remap.split(
        b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"%b":42}}}' % key
    )
    assert remap.owner_of(event, "notifications/tools/list_changed") == 42
    restored = remap.restore_notification(event, "notifications/tools/list_changed", sent)
    assert msgspec.json.decode(restored)["params"]["_meta"] == {remap.SUBSCRIPTION_ID: "sub"}
    [end] = remap.split(b'{"jsonrpc":"2.0","id":42,"result":{"_meta":{"%b":42},"resultType":"complete"}}' % key)
    assert msgspec.json.decode(remap.restore_response(end, sent)) == {
        "jsonrpc": "2.0", "id": "sub", "result": {"_meta": {remap.SUBSCRIPTION_ID: "sub"}, "resultType": "complete"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        b"", b"[]", b"7", b'{"id":1}', b'{"method":"m"}', b'{"id":null,"method":"m"}', b'{"id":{},"method":"m"}',
        b'{"id":1,"method":2}', b'{"id":1,"method":"m","params":[1]}', b'{"id":1,"method":"m","params":{"_meta":1}}',
        b'{"id":1,"method":"m","params":{"_meta":{"progressToken":{}}}}', b'{"id":true,"method":"m"}',
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(message):
    with pytest.raises(errors.BadRequest):
        remap.readdress(message, 1)


# -- the warden's list ---------------------------------------------------------------------------------------------
def test_the_warden_keeps_its_list_and_never_lists_everybody():
    lines = io.BytesIO(b"+10\n+11\n-10\n+0\n+1\n+-1\nnonsense\n\n+12\n-99\n+13")
    assert wardenproc.read_groups(lines) == {11, 12, 13}


def test_the_warden_forgets_groups_that_are_gone():
    assert wardenproc.signal_all({2**22 + 5}, 0) == set()
