"""What falls due: reminders, escalations, expiries, executions that nobody sees to, repeats that no longer replay.

Due-times are in the store and in nobody's memory. Every worker sweeps; each change is conditional, so that of two only
one does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from ...catalog.approvals import APPROVALS, FINAL, Approval
from ...catalog.errors import EnterpriseError, Stale, StoreError
from ...catalog.store import Query
from .deciding import close, fall_due
from .engine import ApprovalEngine
from .notify import Notifier

log = structlog.get_logger()

Chore = Callable[[], Awaitable[None]]

BATCH: Final = 100
EVENTS: Final = {"snooze": "reminded", "escalate": "escalated", "expire": "expired"}
STOP_SECONDS: Final = 2.0
"""The server has waited for calls in flight by then; what is still being sent is cut, and said to be unknown."""

PICK_UP_MS: Final = 15 * 60_000
"""How long an agent has to come for the approval of a call that it runs itself."""


async def sweep(engine: ApprovalEngine) -> int:
    """See to what is due; how many. StoreError."""
    now = engine.now()
    page = await engine.store.find(Query(APPROVALS, "due", {"watch": "on"}, limit=BATCH, until=now + 1))
    for approval in page.records:
        try:
            await _one(engine, approval, now)
        except Stale:
            continue  # another worker was first
        except StoreError:
            raise
        except EnterpriseError as error:
            log.warning("approval_not_swept", approval=approval.id, reason=error.message)
    return len(page.records)


async def _one(engine: ApprovalEngine, approval: Approval, now: int) -> None:
    if approval.state in FINAL:
        approval.twin, approval.watch, approval.due_at = "", "", 0
        await engine.commit(approval)
    elif approval.state == "executing":
        await engine.executor.recover(approval)
    elif approval.state == "approved" and approval.kind == "check":
        if now < approval.decided_at + PICK_UP_MS:
            approval.due_at = approval.decided_at + PICK_UP_MS
            await engine.commit(approval)
            return
        approval.error = "The agent did not come for it."
        close(approval, "not_executed", now, 0)
        await engine.commit(approval, "finished")
    elif approval.state == "approved":
        engine.executor.kick(approval.org, approval.id)
    else:
        kind = fall_due(approval, now)
        if approval.state == "expired":
            approval.due_at = now + engine.settings.replay * 1000
        await engine.commit(approval, EVENTS.get(kind or "", ""))


class Sweeper:
    """Sweeps and empties the outbox every `settings.sweep` seconds, until it is stopped."""

    def __init__(self, engine: ApprovalEngine, notifier: Notifier | None, *chores: Chore) -> None:
        """`chores` are done besides, as often."""
        self._chores = chores
        self._engine = engine
        self._notifier = notifier
        self._task: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._sweep(), name="approvals-sweep")
        if self._notifier is not None:
            self._telling = loop.create_task(self._tell(self._notifier), name="approvals-tell")

    async def stop(self) -> None:
        tasks = [task for task in (self._task, self._telling) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._engine.executor.stop(STOP_SECONDS)

    async def _sweep(self) -> None:
        while True:
            try:
                await sweep(self._engine)
                for chore in self._chores:
                    await chore()
            except EnterpriseError as error:
                log.debug("approvals_sweep_failed", reason=error.message)
            except Exception:
                log.exception("approvals_sweep_failed")
            await asyncio.sleep(self._engine.settings.sweep)

    async def _tell(self, notifier: Notifier) -> None:
        while True:
            try:
                await notifier.deliver(self._engine.now())
            except EnterpriseError as error:
                log.debug("approvals_tell_failed", reason=error.message)
            except Exception:
                log.exception("approvals_tell_failed")
            await asyncio.sleep(self._engine.settings.sweep)
