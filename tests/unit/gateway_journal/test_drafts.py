"""What a draft writes is byte for byte what encoding the whole would give: a record's hash is of its bytes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agenticmail_enterprise.adapters.stores.memory import MemoryStore
from agenticmail_enterprise.catalog.calls import Call, Principal, Verdict
from agenticmail_enterprise.catalog.ids import new_id
from agenticmail_enterprise.catalog.store import GLOBAL
from agenticmail_enterprise.gateway.chainverify import Ending, Intent, encode, joined
from agenticmail_enterprise.gateway.drafts import (
    ENDING_MAX,
    MAX_DRAFTED,
    MAX_STRINGS,
    Draft,
    ending,
    flag_line,
    intent,
    quoted,
)
from agenticmail_enterprise.gateway.journal import Journal
from agenticmail_enterprise.gateway.redaction import is_plain, kept_arguments
from agenticmail_enterprise.gateway.settings import JournalSettings
from agenticmail_enterprise.gateway.spool import body_limit
from agenticmail_enterprise.tests.unit.gateway_journal.journal_kit import proven

ROOM = 64 * 1024
SMALLEST = 65536
"""`journal.segment_bytes` may not be less."""

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
odd = st.text(max_size=60)
"""Also with lone surrogates, which are no Unicode."""
flags = st.lists(text, max_size=5).map(tuple)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | text
arguments = st.dictionaries(text, scalars, min_size=1, max_size=8)
times = st.floats(1.0, 4e9)


def called(args: dict[str, Any], tool: str = "mail__read", at: float = 1.7e9, **more: Any) -> Call:
    call_id = new_id("call")
    who = Principal(more.pop("org", "org_a"), more.pop("agent", "agt_1"), "one", more.pop("key", "key_1"))
    return Call(
        who, tool, encode(args), call_id, at, more.pop("door", "mcp"), more.pop("upstream", "mail"), "", call_id,
        call_id[-32:], args,
    )  # fmt: skip


def filled(draft: Draft, call: Call, size: int, keep: bool) -> bytes:
    raw = bytes(call.raw)
    return draft.fill(call.id.encode(), int(call.at * 1e6), raw, quoted(raw) if keep else b"", size)


def whole(call: Call, verdict: Verdict, size: int, keep: bool) -> bytes:
    """The intent, written field by field from the type."""
    who, at = call.principal, int(call.at * 1e6)
    return bytes(
        encode(
            Intent(
                org=who.org or GLOBAL, id=call.id, created_at=at // 1000, agent=who.agent_id, key=who.key_id,
                door=call.door, upstream=call.upstream, tool=call.tool, at=at, effect=verdict.effect, rule=verdict.rule,
                code=verdict.code, reason=verdict.reason, args_digest=sha256(bytes(call.raw)).hexdigest(),
                args=bytes(call.raw).decode() if keep else "", request_bytes=size, request_id=call.id,
                trace_id=call.id[-32:],
            )
        )
    )  # fmt: skip


@given(
    args=arguments, tool=text, rule=text, reason=text, flagged=flags, org=text, agent=text, key=text, upstream=text,
    door=st.sampled_from(["mcp", "checks"]), effect=st.sampled_from(["allow", "deny", "hold"]), at=times,
    size=st.integers(1, 2**40), keep=st.booleans(),
)  # fmt: skip
@example(
    args={'"\\': '\\"\x00\x1f\x7f\u2028é\U0001f600</'}, tool='"\\\n', rule="%b%d%", reason="%", flagged=("a\nb", '"'),
    org="%d", agent='"', key="\\", upstream="", door="mcp", effect="allow", at=1.0, size=1, keep=True,
)  # fmt: skip
def test_a_filled_draft_is_the_encoded_intent(
    args: dict[str, Any], tool: str, rule: str, reason: str, flagged: tuple[str, ...], org: str, agent: str, key: str,
    upstream: str, door: str, effect: Any, at: float, size: int, keep: bool,
) -> None:  # fmt: skip
    call = called(args, tool, at, org=org, agent=agent, key=key, upstream=upstream, door=door)
    verdict = Verdict(effect, rule, "ALLOWED", reason, 0.0, flagged)
    draft = Draft.of(call, verdict)
    assert draft is not None
    assert filled(draft, call, size, keep) == whole(call, verdict, size, keep) + flag_line(flagged)
    again = called(
        {**args, "more": "x" * 300}, tool, at + 1, org=org, agent=agent, key=key, upstream=upstream, door=door
    )
    assert filled(draft, again, size + 1, keep) == whole(again, verdict, size + 1, keep) + flag_line(flagged)


@given(args=arguments, size=st.integers(1, 10_000))
def test_the_arguments_that_are_kept_are_the_same_either_way(args: dict[str, Any], size: int) -> None:
    call = called(args)
    kept_arguments(call)  # now their names are known
    if not is_plain(call.args):
        return
    verdict = Verdict("allow", "r", "ALLOWED", "because")
    draft = Draft.of(call, verdict)
    assert draft is not None
    assert filled(draft, call, size, True) == intent(call, verdict, size, ROOM, True)


@given(tool=odd, rule=odd, reason=odd, flagged=st.lists(odd, max_size=3).map(tuple), org=odd, key=odd)
def test_strings_that_are_no_unicode_make_no_draft_and_no_error(
    tool: str, rule: str, reason: str, flagged: tuple[str, ...], org: str, key: str
) -> None:
    call = called({"a": 1}, tool, org=org, key=key)
    verdict = Verdict("allow", rule, "ALLOWED", reason, 0.0, flagged)
    draft = Draft.of(call, verdict)
    try:
        "".join((tool, rule, reason, org, key)).encode()
    except UnicodeEncodeError:
        assert draft is None
    else:
        assert draft is not None
        assert filled(draft, call, 5, False) == whole(call, verdict, 5, False) + flag_line(flagged)


@pytest.mark.parametrize("length", [MAX_STRINGS - 10, MAX_STRINGS + 1])
def test_long_strings_make_no_draft(length: int) -> None:
    verdict = Verdict("allow", "", "ALLOWED", "x" * length)
    assert (Draft.of(called({"a": 1}, ""), verdict) is None) == (length > MAX_STRINGS)


class Tape:
    """A spool that keeps what is written, with all the room of the world."""

    def __init__(self, segment: int) -> None:
        self.body_max = body_limit(segment)
        self.free = 2**40
        self.frames: list[bytes] = []

    def append(self, kind: int, ticket: int, body: bytes) -> None:
        self.frames.append(body)


def taped(segment: int = 4 * 1024 * 1024, *, keep: bool = True) -> tuple[Journal, Tape]:
    journal = Journal(MemoryStore(), JournalSettings(segment_bytes=segment, max_bytes=16 * segment), "/tmp/never-made")
    tape = Tape(segment)
    journal.spool = tape  # type: ignore[assignment]
    journal.keeps_arguments = keep
    journal._shut = ""
    return journal, tape


numbers = st.integers(0, 2**53)


@given(
    outcome=st.sampled_from(["ok", "error", "timeout", "broken", "cancelled", "not_sent"]),
    status=st.sampled_from([0, 200, 204, 500]), error=st.sampled_from(["", "UPSTREAM_BROKEN"]),
    duration=numbers, upstream=numbers, size=numbers, of_verdict=flags, added=st.lists(odd, max_size=2).map(tuple),
)  # fmt: skip
@example(outcome="ok", status=200, error="", duration=1, upstream=1, size=1, of_verdict=("x" * 400,) * 3, added=())
@example(outcome="ok", status=200, error="", duration=1, upstream=1, size=1, of_verdict=(), added=("\ud800",))
def test_an_ending_is_the_encoded_ending_and_fits_its_place(
    outcome: Any, status: int, error: str, duration: int, upstream: int, size: int, of_verdict: tuple[str, ...],
    added: tuple[str, ...],
) -> None:  # fmt: skip
    journal, tape = taped()
    verdict = Verdict("allow", "r", "ALLOWED", "because", 0.0, of_verdict)
    ticket = journal.begin(called({"a": 1}), verdict, 5)
    journal.finish(ticket, outcome, status, error, duration, upstream, size, added)
    ends = tape.frames[1]
    assert ends == ending(Ending(outcome, status, error, duration, upstream, size, of_verdict + added))
    assert len(ends) <= ENDING_MAX, "more than was set aside for it"
    assert journal._reserved == 0
    if "trimmed" not in msgspec.json.decode(ends).get("flags", ()):
        assert ends == encode(Ending(outcome, status, error, duration, upstream, size, of_verdict + added))


@given(flagged=st.lists(odd, max_size=9).map(tuple))
@example(flagged=("x" * 5000,))
@example(flagged=("\ud800",))
def test_a_line_of_flags_is_one_line_and_short(flagged: tuple[str, ...]) -> None:
    line = flag_line(flagged)
    assert line.count(b"\n") == bool(flagged)
    assert len(line) <= ENDING_MAX + 1
    if flagged:
        assert type(msgspec.json.decode(line)) is list


@pytest.mark.parametrize("segment", [SMALLEST, 4 * 1024 * 1024])
@pytest.mark.parametrize("filling", ["x", '"', "\\", "é", "\x01"])
@pytest.mark.parametrize("reason", ["short", "\x01" * 900, "é" * 900])
@pytest.mark.parametrize("length", [10, 500, 1000])
def test_a_drafted_frame_fits_where_a_written_one_would(segment: int, filling: str, reason: str, length: int) -> None:
    names = [f"a{number}" for number in range(40)]
    args = dict.fromkeys(names, filling * (length // 40))
    journal, tape = taped(segment)
    verdict = Verdict("allow", "r", "ALLOWED", reason)
    call = called(args)
    kept_arguments(call)
    raw = bytes(call.raw)
    assert is_plain(args)
    assert len(raw) <= MAX_DRAFTED or filling == "\x01"
    journal.begin_as(Draft.of(call, verdict), call, verdict, raw, 7)
    journal.begin(call, verdict, 7)
    assert tape.frames[0] == tape.frames[1]
    assert len(tape.frames[0]) <= tape.body_max - 2 * ENDING_MAX


Opener = Callable[..., Awaitable[Journal]]


@pytest.mark.parametrize("keep", ["redacted", "none"])
async def test_records_written_either_way_are_equal_and_their_chain_holds(
    opened: Opener, store: MemoryStore, keep: str
) -> None:
    journal = await opened(arguments=keep)
    some: list[dict[str, Any]] = [
        {"to": "ada@acme.test"}, {"to": '"\\\n\x00é\U0001f600\u2028'}, {"n": -1, "f": 1.5, "t": True, "z": None},
        {"password": "hunter2-hunter2"}, {"to": "Bearer abc"}, {"deep": {"token": "x"}}, {"list": [1, 2]},
        {"to": "x" * 1025}, {"to": "x" * 5000}, {'k"\\': 1}, {"": ""},
    ]  # fmt: skip
    for flagged in ((), ("seen",), ("a", "b", "c", "d"), ("x" * 600,), ('"\n',)):
        for args in some * 2:  # the second time, their names are known
            verdict = Verdict("allow", "r", "ALLOWED", 'because "é"', 0.0, flagged)
            one, two = called(args), called(args)
            two.at = one.at
            tickets = (
                journal.begin(one, verdict, 7),
                journal.begin_as(Draft.of(two, verdict), two, verdict, bytes(two.raw), 7),
            )
            for ticket in tickets:
                journal.finish(ticket, "ok", 200, "", 12, 11, 10)
            await journal.drained()
    records = await proven(store)
    assert len(records) == 2 * 5 * 2 * len(some)
    own = {"id": "", "request_id": "", "trace_id": "", "seq": 0, "prev": "", "hash": ""}
    for one, two in zip(records[::2], records[1::2], strict=True):
        assert msgspec.structs.replace(one, **own) == msgspec.structs.replace(two, **own)
        assert (one.request_id, one.trace_id, two.request_id, two.trace_id) == (
            one.id, one.id[-32:], two.id, two.id[-32:],
        )  # fmt: skip
        assert bool(one.args) == (keep == "redacted")
        assert "hunter2" not in two.args


def test_two_halves_are_one_record() -> None:
    call, verdict = called({"a": 1}), Verdict("allow", "r", "ALLOWED", "because")
    draft = Draft.of(call, verdict)
    assert draft is not None
    body = joined(filled(draft, call, 5, False), ending(Ending("ok", 200, "", 3, 2, 1)))
    assert msgspec.json.decode(body)["upstream_us"] == 2
