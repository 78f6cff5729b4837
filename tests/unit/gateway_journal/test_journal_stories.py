"""What a worker's journal does while all goes well."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.adapters.stores.memory import MemoryStore
from agenticmail_enterprise.catalog.calls import Verdict
from agenticmail_enterprise.catalog.errors import JournalBroken, SettingsError
from agenticmail_enterprise.catalog.records import CallRecord
from agenticmail_enterprise.gateway.chainverify import Ending, Intent, encode, joined, link
from agenticmail_enterprise.gateway.drafts import ENDING_MAX
from agenticmail_enterprise.gateway.drafts import ending as ending_bytes
from agenticmail_enterprise.gateway.journal import Journal
from agenticmail_enterprise.gateway.spool import STRIDE
from agenticmail_enterprise.tests.unit.gateway_journal.conftest import Opener
from agenticmail_enterprise.tests.unit.gateway_journal.journal_kit import (
    ALLOW,
    DENY,
    RAW,
    SEGMENT,
    Gate,
    marks,
    new_call,
    proven,
    settings,
    spools,
)


async def test_a_forwarded_call_is_on_record(opened: Opener, store: MemoryStore) -> None:
    journal = await opened()
    call = new_call(upstream="mail", request_id="req_1", trace_id="abc")
    ticket = journal.begin(call, ALLOW, 321)
    journal.finish(ticket, "ok", status=200, duration_us=1500, upstream_us=1400, response_bytes=99)
    await journal.drained()
    [record] = await proven(store)
    assert msgspec.structs.asdict(record) == {
        **msgspec.structs.asdict(record),
        "org": "org_a", "id": call.id, "agent": "agt_1", "key": "key_1", "door": "mcp", "upstream": "mail",
        "tool": "send_email", "at": int(call.at * 1e6), "effect": "allow", "rule": ALLOW.rule, "code": "ALLOWED",
        "reason": ALLOW.reason, "args_digest": hashlib.sha256(RAW).hexdigest(), "args": RAW.decode(), "outcome": "ok",
        "status": 200, "error": "", "duration_us": 1500, "upstream_us": 1400, "request_bytes": 321,
        "response_bytes": 99, "request_id": "req_1", "trace_id": "abc", "flags": (), "seq": 1, "prev": "",
    }  # fmt: skip
    assert record.created_at == record.at // 1000


async def test_a_refusal_is_one_frame_and_one_record(opened: Opener, store: MemoryStore) -> None:
    journal = await opened()
    journal.record(new_call(), DENY, "denied", duration_us=7, request_bytes=3)
    await journal.drained()
    [record] = await proven(store)
    assert (record.effect, record.outcome, record.code, record.duration_us) == ("deny", "denied", "TOOL_NOT_GRANTED", 7)


async def test_flags_of_the_verdict_and_of_the_end_are_both_kept(opened: Opener, store: MemoryStore) -> None:
    journal = await opened()
    flagged = Verdict("allow", "r", "ALLOWED", "fine", flags=("pin_changed",))
    journal.finish(journal.begin(new_call(), flagged, 1), "ok", flags=("truncated",))
    journal.record(new_call(), flagged, "denied", flags=("late",))
    await journal.drained()
    assert [record.flags for record in await proven(store)] == [("pin_changed", "truncated"), ("pin_changed", "late")]


async def test_outcomes_in_any_order_find_their_intents(opened: Opener, store: MemoryStore) -> None:
    journal = await opened(segment_bytes=16 * SEGMENT, max_bytes=64 * SEGMENT)
    calls = [new_call() for _ in range(300)]
    tickets = [journal.begin(call, ALLOW, number) for number, call in enumerate(calls)]
    for number in (*range(299, 0, -2), *range(0, 300, 2)):
        journal.finish(tickets[number], "ok", status=number)
    await journal.drained()
    found = {record.id: record for record in await proven(store)}
    assert {id: record.status for id, record in found.items()} == {call.id: n for n, call in enumerate(calls)}
    assert all(record.request_bytes == record.status for record in found.values())


async def test_each_organisation_has_a_chain_of_its_own(opened: Opener, store: MemoryStore) -> None:
    journal = await opened(segment_bytes=16 * SEGMENT, max_bytes=64 * SEGMENT)
    # More than the heads that fit one commit.
    for number in range(250):
        journal.record(new_call(f"org_{number % 125}"), DENY, "denied")
    await journal.drained()
    for number in range(125):
        assert len(await proven(store, f"org_{number}")) == 2


async def test_a_call_of_nobody_is_on_record_too(opened: Opener, store: MemoryStore) -> None:
    journal = await opened()
    journal.record(new_call("", agent=""), DENY, "denied")
    await journal.drained()
    assert len(await proven(store, "-")) == 1


async def test_a_quiet_stop_leaves_nothing(opened: Opener, store: MemoryStore, tmp_path: Path) -> None:
    journal = await opened()
    for _ in range(50):
        journal.finish(journal.begin(new_call(), ALLOW), "ok")
    assert await journal.stop()
    assert len(await proven(store)) == 50
    assert spools(tmp_path) == []
    assert await marks(store) == 0
    assert await journal.stop()


async def test_a_worker_that_wrote_nothing_leaves_nothing(opened: Opener, store: MemoryStore, tmp_path: Path) -> None:
    journal = await opened()
    assert await journal.stop()
    assert (spools(tmp_path), await marks(store)) == ([], 0)


async def test_calls_still_open_at_the_stop_read_unknown(opened: Opener, store: MemoryStore) -> None:
    journal = await opened()
    ended, open_ = new_call(), new_call()
    journal.finish(journal.begin(ended, ALLOW), "ok")
    ticket = journal.begin(open_, Verdict("allow", "r", "ALLOWED", "fine", flags=("pin_changed",)))
    assert await journal.stop()
    found = {record.id: record for record in await proven(store)}
    assert found[ended.id].outcome == "ok"
    assert (found[open_.id].outcome, found[open_.id].error) == ("unknown", "NO_OUTCOME")
    assert found[open_.id].flags == ("pin_changed",)
    journal.finish(ticket, "ok")
    assert journal.counts.late_outcomes == 1


async def test_before_the_start_and_after_the_stop_nothing_may_be_called(store: MemoryStore, tmp_path: Path) -> None:
    journal = Journal(store, settings(), tmp_path)
    assert journal.problem
    with pytest.raises(JournalBroken):
        journal.begin(new_call(), ALLOW)
    await journal.start()
    assert not journal.problem
    await journal.stop()
    for write in (lambda: journal.begin(new_call(), ALLOW), lambda: journal.record(new_call(), DENY, "denied")):
        with pytest.raises(JournalBroken):
            write()
    assert not await journal.room(0.01)


async def test_a_second_outcome_is_counted_and_not_written(opened: Opener, store: MemoryStore) -> None:
    journal = await opened()
    ticket = journal.begin(new_call(), ALLOW)
    journal.finish(ticket, "ok")
    journal.finish(ticket, "error")
    journal.finish(999, "ok")
    await journal.drained()
    assert [record.outcome for record in await proven(store)] == ["ok"]
    assert journal.counts.late_outcomes == 2
    assert journal.counts.lost_intents == 0


async def test_a_spool_that_cannot_be_made_stops_the_start(store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("in the way")
    with pytest.raises(JournalBroken, match="cannot be made"):
        await Journal(store, settings(), tmp_path).start()


def test_a_spool_smaller_than_two_segments_is_refused(store: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="twice"):
        Journal(store, settings(max_bytes=2 * SEGMENT - 1), tmp_path)


async def test_the_lag_grows_while_the_store_is_away_and_falls_to_nothing(opened: Opener, store: MemoryStore) -> None:
    began = time.monotonic()
    gate = Gate(store)
    journal = await opened(store=gate)
    assert (journal.lag().records, journal.lag().seconds) == (0, 0.0)
    for _ in range(3):
        journal.record(new_call(), DENY, "denied")
    await asyncio.sleep(0.05)
    lag = journal.lag()
    assert (lag.records, lag.bytes) == (3, 2 * SEGMENT)
    assert 0 < lag.seconds <= time.monotonic() - began
    gate.open_gate.set()
    await journal.drained()
    assert (journal.lag().records, journal.lag().seconds) == (0, 0.0)


async def test_the_digest_alone_is_kept_where_arguments_are_not(opened: Opener, store: MemoryStore) -> None:
    journal = await opened(arguments="none")
    journal.record(new_call(), DENY, "denied")
    journal.record(new_call(raw=b""), DENY, "denied")
    await journal.drained()
    first, second = await proven(store)
    assert (first.args, first.args_digest) == ("", hashlib.sha256(RAW).hexdigest())
    assert (second.args, second.args_digest) == ("", "")


# -- odd input ---------------------------------------------------------------------------------------------------
ODD = ["x" * 200_000, "\ud800", "\0" * 50_000, 'quote " and \\ slash\n', "\u2028\U0001f600" * 20_000, ""]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
async def test_whatever_callers_send_is_recorded(opened: Opener, store: MemoryStore, odd: str) -> None:
    """Strings of any length and kind: cut and escaped where they must be, never an error, never a call unrecorded."""
    journal = await opened()
    first, second = (new_call(tool=odd, request_id=odd, trace_id=odd, upstream=odd) for _ in range(2))
    verdict = Verdict("allow", odd, "ALLOWED", odd, flags=(odd[:1000].encode("utf-8", "replace").decode(),) * 3)
    journal.finish(journal.begin(first, verdict), "error", error=odd, flags=(odd,) * 40, response_bytes=2**70)
    journal.record(second, DENY, "denied", error=odd, flags=(odd,))
    ticket = journal.begin(new_call(tool=odd), ALLOW)
    assert ticket
    assert await journal.stop()
    found = await proven(store)
    assert [record.outcome for record in found] == ["error", "denied", "unknown"]
    assert journal.counts.mended == 0


@pytest.mark.parametrize(
    "raw", [b"[1]", b"{", b"\xff", b'{"n":' + b"9" * 400 + b"}", b'{"a":' + b"[" * 9000 + b"]" * 9000 + b"}"]
)
async def test_arguments_that_are_no_object_are_recorded(opened: Opener, store: MemoryStore, raw: bytes) -> None:
    journal = await opened()
    journal.record(new_call(raw=raw), DENY, "denied")
    await journal.drained()
    [record] = await proven(store)
    assert record.args_digest == hashlib.sha256(raw).hexdigest()
    assert "not readable" in record.args or record.args.startswith("{")


async def test_an_outcome_of_no_known_kind_does_not_hold_up_the_journal(opened: Opener, store: MemoryStore) -> None:
    journal = await opened()
    wrong: Any = "exploded"
    journal.finish(journal.begin(new_call(), ALLOW), wrong, status=7)
    journal.record(new_call(), DENY, "denied")
    await journal.drained()
    first, second = await proven(store)
    assert (first.outcome, first.flags, first.status) == ("unknown", ("mended",), 7)
    assert second.outcome == "denied"
    assert journal.counts.mended == 1


text = st.text(max_size=40)
number = st.integers(0, 2**40)


@given(
    intent=st.builds(Intent, text, text, number, text, text, st.sampled_from(("mcp", "checks")), text, text, number,
                     st.sampled_from(("allow", "deny", "hold")), text, text, text, text, text, number, text, text),
    ending=st.builds(Ending, st.sampled_from(("ok", "unknown", "denied")), number, text, number, number, number,
                     st.lists(text, max_size=3).map(tuple)),
    seq=st.integers(1, 2**50), prev=st.sampled_from(("", "a" * 64)),
)  # fmt: skip
def test_two_halves_joined_are_the_whole_records_bytes(intent: Intent, ending: Ending, seq: int, prev: str) -> None:
    """The drain never decodes the halves, and what it hashes is what a checker will make of the stored record."""
    body, _ = link(joined(encode(intent), encode(ending)), seq, prev.encode())
    fields = {**msgspec.structs.asdict(intent), **msgspec.structs.asdict(ending), "seq": seq, "prev": prev}
    assert body == encode(CallRecord(**fields))
    assert encode(msgspec.json.decode(body, type=CallRecord)) == body


def test_the_halves_are_the_records_fields_in_its_order() -> None:
    own = [*Intent.__struct_fields__, *Ending.__struct_fields__, "seq", "prev", "hash"]
    whole = [name for name in CallRecord.__struct_fields__ if name not in ("version", "updated_at")]
    assert whole[: len(own)] == own
    defaults = {field.name: field.default for field in msgspec.structs.fields(CallRecord)}
    for half in (Intent, Ending):
        for field in msgspec.structs.fields(half):
            if field.name not in ("org", "id"):
                assert defaults[field.name] == field.default, field.name


@given(st.builds(Ending, st.text(max_size=60), st.integers(), st.text(), st.integers(), st.integers(), st.integers(),
                 st.lists(st.text(), max_size=50).map(tuple)))  # fmt: skip
def test_an_outcome_never_takes_more_than_was_set_aside(ending: Ending) -> None:
    body = ending_bytes(ending)
    assert len(body) <= ENDING_MAX
    assert msgspec.json.decode(body)


async def test_segments_are_let_go_and_used_again(opened: Opener, store: MemoryStore, tmp_path: Path) -> None:
    journal = await opened()
    for _ in range(40):
        for _ in range(30):
            ticket = journal.begin(new_call(), ALLOW)
            journal.finish(ticket, "ok")
        await journal.drained()
    assert journal.spool.written // STRIDE > 5
    assert journal.spool.held <= 4 * SEGMENT
    files = list((tmp_path / "spool").glob("*/*.seg"))
    assert len(files) * SEGMENT == journal.spool.held
    assert len(await proven(store)) == 1200
