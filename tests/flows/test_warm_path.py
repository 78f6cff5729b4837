"""What one warm call costs, in Python calls, suspensions, store accesses and log lines: none of it can creep up unseen.

The numbers are of a `tools/call` of a few hundred bytes with an argument rule, a rate limit and the journal on, on a
connection that was used before. A call that runs in C (msgspec, the HTTP parser, the event loop) is not counted.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import agenticmail_enterprise
from agenticmail_enterprise.catalog.profiles import ArgumentRule, Profile, RateLimit, ToolRule
from agenticmail_enterprise.gateway.lane import Lane
from agenticmail_enterprise.gateway.settings import JournalSettings
from tests.flows.house import House
from tests.flows.servers import Counting
from tests.security.wire import compact, read_reply, request

HOME = str(Path(agenticmail_enterprise.__file__).resolve().parent)
CALLS = 40
CLERK = Profile(
    name="clerk", tools=ToolRule(allow=("mail__*", "exec")), max_risk="critical", allow_unknown=True,
    argument_rules=(ArgumentRule(name="internal", tools=("mail__send_mail",), field="to", op="domain_in", values=("acme.test",)),),
    rate_limits=(RateLimit(per_minute=1_000_000),),
)  # fmt: skip
ARGUMENTS = {"to": "ada@acme.test", "subject": "Report", "body": "x" * 200}
DOORS = {
    "/mcp/mail": compact({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "send_mail", "arguments": ARGUMENTS}}),
    "/api/engine/check-permission": compact({"tool": "exec", "args": {"command": "ls"}}),
}  # fmt: skip
PINNED: dict[str, dict[str, int]] = {
    "/mcp/mail": {
        "catalog/calls.py": 3, "catalog/ids.py": 1, "gateway/doors/relay.py": 2, "gateway/doors/straight.py": 5,
        "gateway/drafts.py": 2, "gateway/journal.py": 3, "gateway/lane.py": 3, "gateway/metrics.py": 1,
        "gateway/pool.py": 3, "gateway/pool_answer.py": 1, "gateway/pool_connection.py": 3, "gateway/proxy.py": 1,
        "gateway/redaction.py": 1, "gateway/spool.py": 2, "gateway/upstreams.py": 1, "policies/chain.py": 1,
        "policies/limits.py": 3, "policies/operators.py": 2, "policies/rules.py": 2,
    },
    "/api/engine/check-permission": {
        "catalog/calls.py": 4, "catalog/ids.py": 1, "gateway/doors/checks.py": 1, "gateway/doors/checks_open.py": 2,
        "gateway/doors/checks_straight.py": 2, "gateway/drafts.py": 2, "gateway/journal.py": 2, "gateway/lane.py": 2,
        "gateway/redaction.py": 1, "gateway/spool.py": 1, "gateway/wire.py": 1, "policies/chain.py": 1,
        "policies/limits.py": 3,
    },
}  # fmt: skip
"""Python functions of ours that run for one call, by file (a coroutine counts again when it goes on). If a change makes
it fewer, lower the number; if more, every call of every agent pays: 0.05 to 0.1 microseconds each, and what they do."""

SLACK = 10
"""So many fewer calls than pinned mean that the pins are out of date."""

SUSPENSIONS = {"/mcp/mail": 0, "/api/engine/check-permission": 0}
"""Of the connection's task: the usual call needs none (gateway/doors/straight.py)."""


def is_ours(file: str) -> bool:
    return file.startswith(HOME) and "/tests/" not in file and "/.venv/" not in file


class Steps(Coroutine[Any, Any, Any]):
    """A coroutine that counts how often it suspends."""

    def __init__(self, inner: Coroutine[Any, Any, Any]) -> None:
        self._inner = inner
        self.taken = 0

    def send(self, value: Any) -> Any:
        yielded = self._inner.send(value)
        self.taken += 1
        return yielded

    def throw(self, *error: Any) -> Any:
        yielded = self._inner.throw(*error)
        self.taken += 1
        return yielded

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        return self._inner.__await__()


class Meter:
    """Watches one call at a time."""

    def __init__(self) -> None:
        self.ours: Counter[str] = Counter()
        self.logging: Counter[str] = Counter()
        self.tasks = 0
        self.lanes: list[Steps] = []

    @property
    def suspensions(self) -> int:
        """Of all connections' tasks: there is one connection."""
        return sum(lane.taken for lane in self.lanes)

    def note(self, frame: FrameType, event: str, arg: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        file = code.co_filename
        if is_ours(file):
            self.ours[f"{file.removeprefix(HOME + '/')}:{code.co_qualname}"] += 1
        elif "/structlog/" in file or "/logging/" in file:
            self.logging[f"{code.co_qualname}"] += 1

    def make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        self.tasks += is_ours(work.cr_code.co_filename)
        if getattr(work, "__qualname__", "") == Lane._work.__qualname__:
            work = Steps(work)
            self.lanes.append(work)
        return asyncio.Task(work, loop=loop, **options)


class Seen:
    """What one call did."""

    def __init__(self, ours: Counter[str], logged: int, tasks: int, suspended: int, store: int) -> None:
        self.ours = ours
        self.files: Counter[str] = Counter()
        for name, count in ours.items():
            self.files[name.partition(":")[0]] += count
        self.facts = (sum(ours.values()), logged, tasks, suspended, store)


class WatchedStore:
    """Counts accesses to a store."""

    def __init__(self, store: Any) -> None:
        self.accesses = 0
        for name in ("get", "find", "count", "commit", "append", "prune", "ping"):
            setattr(store, name, self._counting(getattr(store, name)))

    def _counting(self, method: Any) -> Any:
        async def counted(*args: Any, **named: Any) -> Any:
            self.accesses += 1
            return await method(*args, **named)

        return counted


async def measure(tmp_path: Path, path: str) -> list[Seen]:
    """Every call of a row on one connection, after a few that warm it up."""
    meter = Meter()
    quiet = JournalSettings(drain_interval=60.0)  # the drain is nobody's call: it comes after this
    async with Counting() as server, House(tmp_path, journal=quiet) as house:
        upstream = await house.upstream("mail", server.url)
        await house.runtime.upstreams.refresh(house.org, upstream)
        key = await house.agent("clerk", CLERK)
        sent = request(key, DOORS[path], line=f"POST {path} HTTP/1.1")
        loop = asyncio.get_running_loop()
        loop.set_task_factory(meter.make_task)  # type: ignore[arg-type]
        store = WatchedStore(house.runtime.store)
        reader, writer = await asyncio.open_connection("127.0.0.1", house.server.port)
        seen: list[Seen] = []
        try:
            for number in range(CALLS + 5):
                before = (meter.tasks, meter.suspensions, store.accesses)
                meter.ours, meter.logging = Counter(), Counter()
                sys.setprofile(meter.note)
                try:
                    writer.write(sent)
                    reply = await read_reply(reader)
                    await asyncio.sleep(0)  # what comes after the answer belongs to the call
                    await asyncio.sleep(0)
                finally:
                    sys.setprofile(None)
                assert reply is not None
                assert (reply.status, b'"isError": false' in reply.body or b'"allowed":true' in reply.body) == (
                    200,
                    True,
                )
                if number >= 5:
                    after = (meter.tasks, meter.suspensions, store.accesses)
                    tasks, suspended, stored = (now - then for now, then in zip(after, before, strict=True))
                    seen.append(Seen(meter.ours, sum(meter.logging.values()), tasks, suspended, stored))
        finally:
            writer.close()
            loop.set_task_factory(None)
        return seen


def usual(seen: list[Seen]) -> Seen:
    """What most of the calls did: now and then a timer of the gateway's own falls into one of them."""
    commonest, times = Counter(one.facts for one in seen).most_common(1)[0]
    assert times > CALLS // 2, Counter(one.facts for one in seen)
    return next(one for one in seen if one.facts == commonest)


@pytest.mark.parametrize("path", DOORS, ids=["mcp", "checks"])
async def test_a_warm_call_costs_what_it_is_known_to_cost(tmp_path: Path, path: str) -> None:
    one = usual(await measure(tmp_path, path))
    calls, logged, tasks, suspended, stored = one.facts
    assert stored == 0, f"a warm call goes to the store {stored} times"
    assert logged == 0, f"a warm call logs ({logged} calls into the logging libraries)"
    assert tasks == 0, f"a warm call starts {tasks} tasks"
    assert suspended == SUSPENSIONS[path], f"a warm call suspends {suspended} times, it was {SUSPENSIONS[path]}"
    pinned = PINNED[path]
    rose = [
        words(one, file, count, pinned.get(file, 0)) for file, count in one.files.items() if count > pinned.get(file, 0)
    ]
    assert not rose, "a warm call runs more Python than it did:\n" + "\n".join(rose)
    total = sum(pinned.values())
    assert calls > total - SLACK, (
        f"a warm call runs {calls} functions now, not {total}: lower PINNED to {dict(sorted(one.files.items()))}"
    )


def words(one: Seen, file: str, now: int, was: int) -> str:
    functions = ", ".join(
        f"{count} x {name.partition(':')[2]}" for name, count in sorted(one.ours.items()) if name.startswith(f"{file}:")
    )
    return f"  {file}: {now} calls, it was {was} ({functions})"


def test_the_message_says_what_rose() -> None:
    one = Seen(Counter({"gateway/lane.py:Lane._work": 2, "gateway/lane.py:Lane._after": 1}), 0, 0, 2, 0)
    assert one.files == {"gateway/lane.py": 3}
    assert (
        words(one, "gateway/lane.py", 3, 2) == "  gateway/lane.py: 3 calls, it was 2 (1 x Lane._after, 2 x Lane._work)"
    )
