"""Sends an approved call exactly once, whatever dies in between.

    approved --claim--> executing/claimed --check--> executing/sending --send--> executed
                              |                            |                     not_executed, unknown
                              +-- lease over: approved     +-- lease over: what the journal knows, else unknown

Every arrow is one conditional write: of two workers one gets it. A claim carries a lease and a fence; a worker that was
away for longer than its lease finds that its next write is Stale, and stops. What was marked as `sending` is never sent
again: after a crash the journal says how it ended, and where it does not know either, the approval says `unknown`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
import structlog

from ...catalog.approvals import Approval
from ...catalog.errors import EnterpriseError, NotFound, SecretError, Stale, StoreError
from ...catalog.ids import new_id
from ...catalog.records import CALLS, CallRecord
from .deciding import approve, close
from .desk import Desk
from .form import MAX_RESULT, Form, aad

log = structlog.get_logger()

LEASE_SHARE: Final = 0.8
"""Of the lease an execution may take: the rest is for storing how it ended."""

KEPT_ATTEMPTS: Final = 20
"""How often the end of an execution is tried to be stored, half a second apart, while the store is away."""


class Ended(msgspec.Struct, kw_only=True):
    """How a send ended. `state`: what can honestly be said. `answer`: `{"result": ...}` or `{"error": ...}`."""

    state: str
    outcome: str
    answer: dict[str, Any] | None = None
    error: str = ""


class Prepared(Protocol):
    """A call that could be sent this moment: checked, connected, its intent on record."""

    async def send(self) -> Ended:
        """Send it, once. Raises nothing but CancelledError."""

    async def drop(self) -> None:
        """It will not be sent after all."""


class Runner(Protocol):
    """Whoever carries calls out."""

    async def prepare(self, approval: Approval, form: Form, execution_id: str) -> Prepared | str:
        """Everything short of sending; a sentence when it may not or cannot be sent."""


Checkpoint = Callable[[str], None]


class Executor:
    """One per worker. `checkpoint` is told of each step that was taken (tests kill the process there)."""

    def __init__(self, engine: Desk, runner: Runner | None, worker: str) -> None:
        self._engine = engine
        self.runner = runner
        self._worker = worker
        self._running: dict[str, asyncio.Task[None]] = {}
        self.checkpoint: Checkpoint = lambda step: None

    def kick(self, org: str, approval_id: str) -> None:
        """See to an approved call now, in the background. One that is seen to already is left alone."""
        if self.runner is None or approval_id in self._running:
            return
        task = asyncio.get_running_loop().create_task(self._run(org, approval_id), name="approval")
        self._running[approval_id] = task
        task.add_done_callback(lambda _: self._running.pop(approval_id, None))

    async def stop(self, grace: float) -> None:
        """Let what is being sent finish within `grace` seconds; the rest is cut, and says so in the store."""
        tasks = list(self._running.values())
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _run(self, org: str, approval_id: str) -> None:
        try:
            await self.execute(org, approval_id)
        except (Stale, NotFound):
            return  # another worker has it
        except EnterpriseError as error:
            log.warning("approval_not_seen_to", approval=approval_id, reason=error.message)
        except Exception:
            log.exception("approval_failed", approval=approval_id)

    async def execute(self, org: str, approval_id: str) -> None:
        """Carry out an approved call. Stale when another worker has it; StoreError."""
        engine = self._engine
        approval = await engine.get(org, approval_id)
        if approval.state != "approved" or approval.kind == "check" or self.runner is None:
            return
        self.checkpoint("approved")
        lease = engine.settings.lease
        approval.state, approval.phase, approval.worker = "executing", "claimed", self._worker
        approval.fence += 1
        approval.execution_id = new_id("call")
        approval.watch = "on"
        approval.lease_until = approval.due_at = engine.now() + int(lease * 1000)
        approval = await engine.commit(approval)
        self.checkpoint("claimed")
        prepared = await self._prepare(approval, lease * LEASE_SHARE)
        if isinstance(prepared, str):
            approval.error, approval.outcome = prepared, "not_sent"
            close(approval, "not_executed", engine.now(), engine.settings.replay * 1000)
            await engine.commit(approval, "finished")
            return
        self.checkpoint("prepared")
        try:
            approval.phase = "sending"
            approval = await engine.commit(approval)
            if engine.now() >= approval.lease_until:
                raise Stale  # too late to send: it will be said to be unknown, and that must stay true
        except BaseException:
            await prepared.drop()
            raise
        self.checkpoint("marked")
        ended = await self._send(prepared, max(0.1, (approval.lease_until - engine.now()) / 1000 * LEASE_SHARE))
        self.checkpoint("sent")
        await self._keep(approval, ended)
        self.checkpoint("stored")

    async def _prepare(self, approval: Approval, seconds: float) -> Prepared | str:
        assert self.runner is not None  # noqa: S101 - asked before the claim
        try:
            form = self._engine.form(approval)
            async with asyncio.timeout(seconds):
                return await self.runner.prepare(approval, form, approval.execution_id)
        except TimeoutError:
            return "The server could not be made ready in time; nothing was sent."
        except SecretError as error:
            return f"{error.message} Nothing was sent."
        except StoreError as error:
            return f"The policy could not be read ({error.message}); nothing was sent."

    @staticmethod
    async def _send(prepared: Prepared, seconds: float) -> Ended:
        try:
            async with asyncio.timeout(seconds):
                return await prepared.send()
        except TimeoutError:
            return Ended(state="unknown", outcome="timeout", error="The server did not answer in time.")

    async def _keep(self, approval: Approval, ended: Ended) -> None:
        """Store how it ended; tried again while the store is away, since nobody else knows."""
        engine = self._engine
        approval.outcome, approval.error = ended.outcome, ended.error[:1000]
        if ended.answer is not None:
            text = msgspec.json.encode(ended.answer).decode()
            if len(text) > MAX_RESULT:
                approval.error = f"It ran; its result ({len(text)} bytes) is too large to be kept."
            else:
                approval.sealed_result = engine.vault.seal(text, aad(approval.org, approval.id, "result"))
        close(approval, ended.state, engine.now(), engine.settings.replay * 1000)
        for attempt in range(KEPT_ATTEMPTS):
            try:
                await engine.commit(approval, "finished")
                return
            except Stale:
                raise  # the lease ran out meanwhile, and somebody said what could be said
            except StoreError:
                if attempt + 1 == KEPT_ATTEMPTS:
                    raise
                await asyncio.sleep(0.5)

    # -- what a dead worker left ---------------------------------------------------------------------------------------
    async def recover(self, approval: Approval) -> None:
        """An execution whose lease is over. Stale when its worker was only slow, or another recovers it; StoreError."""
        engine = self._engine
        now = engine.now()
        if approval.state != "executing" or now < approval.lease_until:
            return
        if approval.phase == "claimed":
            approval.phase, approval.lease_until = "", 0
            approve(approval, now)
            stored = await engine.commit(approval)
            self.kick(stored.org, stored.id)
            return
        record: CallRecord | None = await engine.store.get(CALLS, approval.org, approval.execution_id)
        if record is None and now < approval.lease_until + int(engine.settings.lease * 1000):
            approval.due_at = now + 1000  # the journal of the dead worker may not have been read yet
            await engine.commit(approval)
            return
        known = record.outcome if record is not None else "unknown"
        if known in {"ok", "error"}:
            approval.outcome = known
            approval.error = "It ran, and the gateway died before its result was kept."
            close(approval, "executed", now, engine.settings.replay * 1000)
        elif known in {"not_sent", "denied"}:
            approval.outcome, approval.error = known, "It was not sent."
            close(approval, "not_executed", now, engine.settings.replay * 1000)
        else:
            approval.outcome = "unknown"
            approval.error = "The gateway died while it was being sent: it may have run, or not. It is not sent again."
            close(approval, "unknown", now, engine.settings.replay * 1000)
        await engine.commit(approval, "finished")
