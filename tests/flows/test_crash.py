"""`kill -9` under load, at random moments: what reached a server is on record, once, and what was answered is true."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import secrets
import sqlite3
from collections import Counter
from hashlib import sha256
from pathlib import Path

import aiohttp
import pytest

from agenticmail_enterprise.catalog.profiles import Profile, ToolRule
from agenticmail_enterprise.catalog.records import CallRecord
from agenticmail_enterprise.gateway.chainverify import verify
from agenticmail_enterprise.gateway.settings import JournalSettings
from tests.flows.crash_kit import Mortal
from tests.flows.servers import Counting

ROUNDS = 20
CALLERS = 12
CHECKERS = 4
ALL = Profile(name="all", tools=ToolRule(allow=("mail__*", "exec")), max_risk="critical", allow_unknown=True)


def digest(nonce: str) -> str:
    """What the record holds of `{"nonce": ...}`."""
    return sha256(json.dumps({"nonce": nonce}, separators=(",", ":")).encode()).hexdigest()


class Load:
    """Agents that call without pause, and remember what they were told. `nonce` -> what the record must say."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.answered: dict[str, str] = {}
        self.reported: dict[str, str] = {}
        self._numbers = itertools.count()

    def nonce(self) -> str:
        return f"n{next(self._numbers)}-{secrets.token_hex(4)}"

    async def run(self, url: str) -> None:
        """Until the gateway is gone."""
        headers = {"X-API-Key": self.key, "Accept": "application/json, text/event-stream"}
        async with aiohttp.ClientSession(url, headers=headers) as http:
            work = [self._call(http) for _ in range(CALLERS)] + [self._check(http) for _ in range(CHECKERS)]
            await asyncio.gather(*work)

    async def _call(self, http: aiohttp.ClientSession) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            while True:
                nonce = self.nonce()
                message = {
                    "jsonrpc": "2.0", "id": 1, "method": "tools/call",
                    "params": {"name": "read_mail", "arguments": {"nonce": nonce}},
                }  # fmt: skip
                async with http.post("/mcp/mail", json=message) as answer:
                    result = (await answer.json())["result"]
                    assert result["isError"] is False, result
                    self.answered[nonce] = "ok"

    async def _check(self, http: aiohttp.ClientSession) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            for number in itertools.count():
                nonce = self.nonce()
                question = {"tool": "exec", "args": {"nonce": nonce}}
                async with http.post("/api/engine/check-permission", json=question) as answer:
                    said = (await answer.json())["data"]
                    assert said["allowed"] is True, said
                    self.answered[nonce] = "unknown"
                if number % 2:
                    continue  # this one is never reported
                report = {"decision_id": said["decision_id"], "outcome": "error", "error": nonce}
                self.answered[nonce] = "either"
                async with http.post("/api/engine/tool-calls", json=report) as answer:
                    assert answer.status == 200, await answer.text()
                    self.answered[nonce] = "error"


def judge(records: list[CallRecord], load: Load, upstream: Counting) -> None:
    """Hold the journal against what both sides saw."""
    assert all(record.effect == "allow" for record in records)
    times = Counter(record.args_digest for record in records)
    assert [twice for twice, count in times.items() if count > 1] == []
    by_digest = {record.args_digest: record for record in records}
    seen = [message["params"]["arguments"]["nonce"] for message in upstream.calls]
    assert len(seen) == len(set(seen)), "a call was sent twice"
    assert [nonce for nonce in seen if digest(nonce) not in by_digest] == [], "a server saw calls without a record"
    assert [nonce for nonce in load.answered if digest(nonce) not in by_digest] == []
    for nonce, outcome in load.answered.items():
        record = by_digest[digest(nonce)]
        wanted = {"error", "unknown"} if outcome == "either" else {outcome}
        assert record.outcome in wanted, (nonce, outcome, record)
        assert nonce in record.args
    assert {record.outcome for record in records} <= {"ok", "error", "unknown"}
    for record in records:
        if record.outcome == "unknown":
            assert record.duration_us == record.status == 0
            assert record.error == "NO_OUTCOME"


@pytest.mark.slow
async def test_killed_twenty_times_under_load_the_journal_tells_the_truth(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    moments = random.Random(seed)
    print(f"seed {seed}")
    gateway = Mortal(
        tmp_path, journal=JournalSettings(drain_interval=0.05, segment_bytes=256 * 1024, max_bytes=4 * 1024 * 1024)
    )
    async with Counting() as upstream:

        async def some_time() -> None:
            await asyncio.sleep(moments.random() * 0.02)

        upstream.before = some_time
        load = Load(await gateway.prepare(upstream.url, ALL))
        for _ in range(ROUNDS):
            async with gateway.running():
                work = asyncio.create_task(load.run(gateway.url))
                await asyncio.sleep(moments.random() * 0.6)
                await gateway.kill()
                await work
        async with gateway.opened() as runtime:
            records = await gateway.records(runtime)
            judge(records, load, upstream)
            assert len(upstream.calls) > 20 * CALLERS
            assert any(record.outcome == "unknown" and record.door == "mcp" for record in records)
            report = await verify(runtime.store, gateway.org)
            assert report.ok, report.problem
            assert (report.checked, report.beyond) == (len(records), 0)
            await found_out(gateway, runtime, records)
    assert "Traceback" not in gateway.log.read_text()


async def found_out(gateway: Mortal, runtime: object, records: list[CallRecord]) -> None:
    """One record in the middle is changed behind the gateway's back."""
    victim = records[len(records) // 2]
    with contextlib.closing(sqlite3.connect(gateway.database)) as database, database:
        (body,) = database.execute("SELECT body FROM call WHERE id = ?", (victim.id,)).fetchone()
        forged = bytes(body).replace(b'"tool":"', b'"tool":"x', 1)
        assert forged != bytes(body)
        database.execute("UPDATE call SET body = ? WHERE id = ?", (forged, victim.id))
    report = await verify(runtime.store, gateway.org)  # type: ignore[attr-defined]
    assert report.problem is not None
    assert (report.problem.kind, report.problem.id) == ("altered", victim.id)
    assert report.problem.seq == victim.seq


@pytest.mark.parametrize("fault", ["missing", "twice", "wrong outcome", "lost report", "not ours"])
def test_the_judge_above_finds_what_is_wrong(fault: str) -> None:
    def record(nonce: str, outcome: str) -> CallRecord:
        facts = {} if outcome != "unknown" else {"error": "NO_OUTCOME"}
        return CallRecord(
            org="o", id=f"dec_{nonce}", effect="allow", outcome=outcome, args_digest=digest(nonce), args=nonce, **facts
        )  # type: ignore[arg-type]

    load, upstream = Load(""), Counting()
    load.answered = {"a": "ok", "c": "error"}
    for nonce in ("a", "b"):
        upstream.seen.append(({}, {"method": "tools/call", "params": {"arguments": {"nonce": nonce}}}))
    good = [record("a", "ok"), record("b", "unknown"), record("c", "error")]
    judge(good, load, upstream)
    bad = {
        "missing": [good[0], good[2]], "twice": [*good, record("b", "ok")], "wrong outcome": [record("a", "unknown"), *good[1:]],
        "lost report": [*good[:2], record("c", "unknown")], "not ours": [*good, record("d", "cancelled")],
    }  # fmt: skip
    with pytest.raises(AssertionError):
        judge(bad[fault], load, upstream)
