"""Several workers on one store: one sends. A worker that was away for longer than its lease can do no harm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agenticmail_enterprise.adapters.stores import memory
from agenticmail_enterprise.catalog.approvals import APPROVALS, Approval
from agenticmail_enterprise.catalog.calls import Tool
from agenticmail_enterprise.catalog.errors import Stale, StoreUnavailable
from agenticmail_enterprise.catalog.records import CALLS, CallRecord
from agenticmail_enterprise.gateway.approvals.deciding import Deed
from agenticmail_enterprise.gateway.approvals.engine import ApprovalEngine, Ask
from agenticmail_enterprise.gateway.approvals.executor import Ended
from agenticmail_enterprise.gateway.approvals.sweep import sweep
from agenticmail_enterprise.gateway.approvals.who import Decider
from agenticmail_enterprise.gateway.settings import ApprovalSettings
from agenticmail_enterprise.gateway.vault import Vault

ANA = Decider(id="usr_a", role="owner", person="usr_a", name="Ana")
TOOL = Tool(id="send_email", risk="high")


class Sent:
    def __init__(self, world: World) -> None:
        self._world = world

    async def send(self) -> Ended:
        self._world.sent += 1
        await self._world.sending()
        return Ended(state="executed", outcome="ok", answer={"result": {"n": self._world.sent}})

    async def drop(self) -> None:
        self._world.dropped += 1


class World:
    """A store, a clock, an upstream that counts, and as many workers as wanted."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.now = 1_800_000_000.0
        self.sent = self.dropped = 0
        self.preparing: Callable[[], Any] = self._nothing
        self.sending: Callable[[], Any] = self._nothing
        self.refusal = ""

    async def _nothing(self) -> None:
        await asyncio.sleep(0)

    async def prepare(self, approval: Approval, form: Any, execution_id: str) -> Any:
        await self.preparing()
        return self.refusal or Sent(self)

    def worker(self, name: str) -> ApprovalEngine:
        settings = ApprovalSettings(lease=60.0, replay=100)
        return ApprovalEngine(
            self.store, Vault([b"k" * 32]), runner=self, settings=settings, clock=lambda: self.now, worker=name
        )

    async def approved(self, engine: ApprovalEngine, **arguments: Any) -> Approval:
        """A held call that was approved, and that nobody has seen to yet."""
        approval, _ = await engine.hold(Ask(org="o", agent="agt_1", tool="send_email", arguments=arguments), TOOL)
        engine.executor.runner, runner = None, engine.executor.runner
        decided = await engine.decide("o", approval.id, ANA, Deed(action="approve"))
        engine.executor.runner = runner
        return decided

    async def state(self, approval: Approval) -> Approval:
        found: Approval = await self.store.get(APPROVALS, "o", approval.id)
        return found


@pytest.fixture
async def world() -> AsyncIterator[World]:
    store = memory.create("memory://")
    await store.open()
    await store.migrate()
    yield World(store)
    await store.close()


async def test_of_many_workers_one_sends(world: World) -> None:
    workers = [world.worker(f"w{number}") for number in range(8)]
    approval = await world.approved(workers[0], n=1)
    done = await asyncio.gather(
        *(worker.executor.execute("o", approval.id) for worker in workers), return_exceptions=True
    )
    assert world.sent == 1
    assert {type(one) for one in done} <= {type(None), Stale}
    assert (await world.state(approval)).state == "executed"


async def test_what_was_approved_by_a_worker_that_died_is_sent_by_the_next_sweep(world: World) -> None:
    approval = await world.approved(world.worker("dead"), n=1)
    other = world.worker("alive")
    await sweep(other)
    found = await other.wait("o", approval.id, 30.0)
    assert (found.state, world.sent) == ("executed", 1)
    assert other.result(found) == {"result": {"n": 1}}


async def test_a_worker_that_slept_past_its_lease_before_the_mark_sends_nothing(world: World) -> None:
    slow, quick = world.worker("slow"), world.worker("quick")
    approval = await world.approved(slow, n=1)
    asleep, awake = asyncio.Event(), asyncio.Event()

    async def sleep() -> None:
        if not asleep.is_set():
            asleep.set()
            await awake.wait()

    world.preparing = sleep
    work = asyncio.create_task(slow.executor.execute("o", approval.id))
    await asyncio.wait_for(asleep.wait(), 30)
    world.now += 61
    await sweep(quick)
    assert (await quick.wait("o", approval.id, 30.0)).state == "executed"
    awake.set()
    with pytest.raises(Stale):
        await work
    assert (world.sent, world.dropped) == (1, 1)
    assert (await world.state(approval)).fence == 2


async def test_a_worker_that_slept_past_its_lease_while_sending_cannot_rewrite_what_was_said(world: World) -> None:
    slow, quick = world.worker("slow"), world.worker("quick")
    approval = await world.approved(slow, n=1)
    asleep, awake = asyncio.Event(), asyncio.Event()

    async def sleep() -> None:
        asleep.set()
        await awake.wait()

    world.sending = sleep
    work = asyncio.create_task(slow.executor.execute("o", approval.id))
    await asyncio.wait_for(asleep.wait(), 30)
    world.now += 61
    await sweep(quick)
    assert (await world.state(approval)).state == "executing", "the dead worker's journal may still come"
    world.now += 61
    await sweep(quick)
    assert (await world.state(approval)).state == "unknown"
    awake.set()
    with pytest.raises(Stale):
        await work
    assert ((await world.state(approval)).state, world.sent) == ("unknown", 1)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        ("ok", "executed"),
        ("error", "executed"),
        ("not_sent", "not_executed"),
        ("timeout", "unknown"),
        ("unknown", "unknown"),
    ],
)
async def test_the_journal_says_how_it_ended_where_the_worker_cannot(world: World, outcome: Any, state: str) -> None:
    engine = world.worker("w")
    approval = await world.approved(engine, n=1)

    async def die() -> None:
        raise asyncio.CancelledError

    world.sending = die
    with pytest.raises(asyncio.CancelledError):
        await engine.executor.execute("o", approval.id)
    left = await world.state(approval)
    assert (left.state, left.phase) == ("executing", "sending")
    await world.store.append(CALLS, [CallRecord(org="o", id=left.execution_id, outcome=outcome)])
    world.now += 61
    await sweep(world.worker("next"))
    assert ((await world.state(approval)).state, world.sent) == (state, 1)


async def test_what_may_not_be_sent_is_not_and_says_why(world: World) -> None:
    engine = world.worker("w")
    approval = await world.approved(engine, n=1)
    world.refusal = "Policy no longer allows it."
    await engine.executor.execute("o", approval.id)
    found = await world.state(approval)
    assert (found.state, found.error, world.sent) == ("not_executed", world.refusal, 0)


async def test_the_end_is_kept_although_the_store_was_away_for_a_moment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = world.worker("w")
    approval = await world.approved(engine, n=1)
    commit, failures = world.store.commit, 3

    async def flaky(*writes: Any) -> Any:
        nonlocal failures
        if world.sent and failures:
            failures -= 1
            raise StoreUnavailable
        return await commit(*writes)

    async def at_once(seconds: float) -> None:
        return None

    monkeypatch.setattr(world.store, "commit", flaky)
    monkeypatch.setattr("agenticmail_enterprise.gateway.approvals.executor.asyncio.sleep", at_once)
    world.sending = _done
    await engine.executor.execute("o", approval.id)
    assert ((await world.state(approval)).state, failures) == ("executed", 0)


async def _done() -> None:
    return None


async def test_a_repeat_replays_inside_the_window_and_asks_anew_after_it(world: World) -> None:
    engine = world.worker("w")
    ask = Ask(org="o", agent="agt_1", tool="send_email", arguments={"n": 1})
    approval = await world.approved(engine, n=1)
    await engine.executor.execute("o", approval.id)
    again, made = await engine.hold(ask, TOOL)
    assert (again.id, made) == (approval.id, False)
    world.now += 101
    await sweep(engine)
    anew, made = await engine.hold(ask, TOOL)
    assert (anew.state, made, anew.id != approval.id) == ("pending", True, True)
