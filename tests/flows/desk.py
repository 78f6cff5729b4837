"""The engine of approvals, for tests alone: it keeps everything in memory and does what a story tells it to."""

from __future__ import annotations

import asyncio

from agenticmail_enterprise.catalog.calls import Call, Verdict
from agenticmail_enterprise.catalog.errors import StoreUnavailable
from agenticmail_enterprise.gateway.holds import Ruling

PENDING = Ruling(state="pending")


class Desk:
    """`await next()` gives the next approval's id; `approve`, `reject`, `expire` decide it."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.claims: list[str] = []
        self.waits: list[float] = []
        self.broken = False
        self._same: dict[tuple[str, str, str, bytes], str] = {}
        self._rulings: dict[str, Ruling] = {}
        self._arrived: asyncio.Queue[str] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def hold(self, call: Call, verdict: Verdict) -> str:
        if self.broken:
            raise StoreUnavailable
        assert verdict.effect == "hold"
        name = (call.principal.org, call.principal.agent_id, call.tool, bytes(call.raw))
        approval = self._same.get(name)
        used = approval in self.claims
        if approval is None or used or self._rulings.get(approval, PENDING).state in {"denied", "expired"}:
            approval = self._same[name] = f"apr_{len(self.calls) + 1}"
            self.calls[approval] = call
            self._arrived.put_nowait(approval)
        return approval

    async def wait(self, org: str, approval_id: str, seconds: float) -> Ruling:
        if self.broken:
            raise StoreUnavailable
        assert self.calls[approval_id].principal.org == org
        self.waits.append(seconds)
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: approval_id in self._rulings)
        except TimeoutError:
            return self._rulings.get(approval_id, PENDING)
        return self._rulings[approval_id]

    async def claim(self, org: str, approval_id: str) -> bool:
        self.claims.append(approval_id)
        return self.claims.count(approval_id) == 1

    async def next(self) -> str:
        return await self._arrived.get()

    def approve(self, approval: str, args: bytes | None = None) -> None:
        self._decide(approval, Ruling(state="approved", reason="Approved by Ana.", args=args))

    def reject(self, approval: str, reason: str) -> None:
        self._decide(approval, Ruling(state="denied", reason=reason))

    def expire(self, approval: str) -> None:
        self._decide(approval, Ruling(state="expired"))

    def _decide(self, approval: str, ruling: Ruling) -> None:
        self._rulings[approval] = ruling

        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
