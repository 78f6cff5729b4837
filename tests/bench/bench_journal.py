"""What the journal costs: `python tests/bench/bench_journal.py [--dir FOLDER] [--seconds 3] [--json]`.

Three tables, for docs/decisions/0003-journal-sync.md:

* **hot**: microseconds of `begin`, `finish` and `record` on the loop's thread (best of five rounds; no draining);
* **whole**: CPU microseconds of a call from `begin` to its row in SQLite, all threads, from the process's own accounting;
* **sync**: calls a second and latency of a call that only writes (begin, flushed, finish), by `sync` and by callers.

FOLDER must be on the disk that is meant: a tmpfs syncs in no time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agenticmail_enterprise.adapters.stores import memory, sqlite
from agenticmail_enterprise.catalog.calls import Call, Principal, Verdict
from agenticmail_enterprise.catalog.ids import new_id
from agenticmail_enterprise.gateway.journal import Journal
from agenticmail_enterprise.gateway.settings import JournalSettings

RAW = b'{"to":"bob@example.com","subject":"The quarterly figures","body":"' + b"lorem ipsum dolor sit amet " * 8 + b'"}'
AGENTS = [Principal(new_id("org"), new_id("agent"), f"agent {n}", new_id("key")) for n in range(20)]
ALLOW = Verdict("allow", "skill:email-management", "ALLOWED", "The skill email-management grants send_email.")


def new_call(number: int) -> Call:
    return Call(
        AGENTS[number % len(AGENTS)], "mail__send_email", RAW, id=new_id("call"), at=time.time(), upstream="mail",
        request_id=new_id("request"), trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
    )  # fmt: skip


def settings(**changes: Any) -> JournalSettings:
    return JournalSettings(**{"segment_bytes": 4 << 20, "max_bytes": 256 << 20, **changes})


async def hot(folder: Path) -> dict[str, float]:
    """Microseconds on the loop's thread; `call` is what making the Call itself takes, not part of the others."""
    best: dict[str, float] = {}
    count = 5_000
    for arguments in ("redacted", "none"):
        for _ in range(5):
            store = memory.create("memory://")
            await store.open()
            await store.migrate()
            journal = Journal(store, settings(segment_bytes=16 << 20, arguments=arguments), folder / "hot")
            await journal.start()
            await asyncio.sleep(0.05)
            calls = [new_call(number) for number in range(count)]
            for call in calls:
                # The argument rule has read them by then.
                assert call.args
            times = [time.perf_counter()]
            tickets = [journal.begin(call, ALLOW, 300) for call in calls]
            times.append(time.perf_counter())
            for ticket in tickets:
                journal.finish(ticket, "ok", status=200, duration_us=1234, upstream_us=1200, response_bytes=512)
            times.append(time.perf_counter())
            for call in calls:
                journal.record(call, ALLOW, "denied", duration_us=12, request_bytes=300)
            times.append(time.perf_counter())
            for name, start, end in zip(("begin", "finish", "record"), times, times[1:], strict=False):
                cost = (end - start) / count * 1e6
                key = f"{name} ({arguments})"
                best[key] = min(best.get(key, cost), cost)
            await journal.stop()
    return best


async def whole(folder: Path, name: str, url: str) -> dict[str, float]:
    """CPU of a call, all threads. In bursts of 50, as a loop that serves sockets would bring them."""
    store = sqlite.create(url) if name == "sqlite" else memory.create(url)
    await store.open()
    await store.migrate()
    journal = Journal(store, settings(), folder / "whole")
    await journal.start()
    count, calls, longest = 40_000, [new_call(number) for number in range(1000)], 0.0
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(count // 50):
        for call in calls[:50]:
            call.id = new_id("call")
            ticket = journal.begin(call, ALLOW, 300)
            journal.finish(ticket, "ok", status=200, duration_us=1234, upstream_us=1200, response_bytes=512)
        before = time.perf_counter()
        await asyncio.sleep(0.005)
        longest = max(longest, time.perf_counter() - before - 0.005)
    await journal.drained()
    used = (time.process_time() - cpu) / count * 1e6
    idle = time.process_time()
    for _ in range(count // 50):
        for _ in range(50):
            new_id("call")
        await asyncio.sleep(0.005)
    used -= (time.process_time() - idle) / count * 1e6
    await journal.stop()
    await store.close()
    return {
        "cpu_us": used, "calls_per_s": count / (time.perf_counter() - began), "longest_wait_ms": longest * 1e3,
        "stale": journal.counts.stale,
    }  # fmt: skip


async def sync(folder: Path, mode: str, callers: int, seconds: float) -> dict[str, float]:
    store = sqlite.create(f"sqlite:///{folder}/sync-{mode}-{callers}.db")
    await store.open()
    await store.migrate()
    journal = Journal(store, settings(sync=mode), folder / "sync")
    await journal.start()
    await asyncio.sleep(0.1)
    waits: list[float] = []
    ends = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        while time.perf_counter() < ends:
            call = new_call(number)
            assert call.args
            began = time.perf_counter()
            if not await journal.room(5):
                raise SystemExit("The journal stayed full.")
            ticket = journal.begin(call, ALLOW, 300)
            if journal.needs_wait:
                await journal.flushed()
            # The upstream: 2 ms away.
            waited = time.perf_counter() - began
            await asyncio.sleep(0.002)
            began = time.perf_counter()
            journal.finish(ticket, "ok", status=200, duration_us=1234, upstream_us=1200, response_bytes=512)
            if journal.waits_outcome:
                await journal.flushed()
            waits.append(waited + time.perf_counter() - began)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    took, used = time.perf_counter() - began, time.process_time() - cpu
    rounds = journal._sync.rounds
    await journal.stop(60)
    await store.close()
    waits.sort()
    return {
        "calls_per_s": len(waits) / took, "p50_us": waits[len(waits) // 2] * 1e6,
        "p99_us": waits[len(waits) * 99 // 100] * 1e6, "max_ms": waits[-1] * 1e3, "cpu_us": used / len(waits) * 1e6,
        "syncs_per_s": rounds / took,
    }  # fmt: skip


def table(title: str, rows: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}")
    for name, row in rows.items():
        print(f"  {name:22s}" + "".join(f"  {key} {value:,.1f}" for key, value in row.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", default=".", help="a folder on the disk to measure")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=("hot", "whole", "sync"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-journal-", dir=options.dir)).absolute()
    result: dict[str, dict[str, dict[str, float]]] = {}
    try:
        if options.only in (None, "hot"):
            result["hot (us)"] = {name: {"us": cost} for name, cost in asyncio.run(hot(folder)).items()}
        if options.only in (None, "whole"):
            result["whole"] = {
                "sqlite": asyncio.run(whole(folder, "sqlite", f"sqlite:///{folder}/whole.db")),
                "memory": asyncio.run(whole(folder, "memory", "memory://")),
            }
        if options.only in (None, "sync"):
            result["sync"] = {
                f"{mode}, {callers} callers": asyncio.run(sync(folder, mode, callers, options.seconds))
                for callers in (16, 64)
                for mode in ("none", "group", "always")
            }
    finally:
        shutil.rmtree(folder)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        return
    for title, rows in result.items():
        table(title, rows)


if __name__ == "__main__":
    main()
