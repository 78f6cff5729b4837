"""The audit trail: one entry per mutation, and per refusal of who is not allowed or of a mutation that failed.

The entries themselves are `gateway.audit`'s, as those of the command line are. Strangers without a key could fill the
store with refusals, so theirs are stored up to a rate and counted beyond it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ..catalog.calls import Principal
from ..catalog.errors import EnterpriseError
from ..catalog.store import GLOBAL
from ..gateway.audit import Trail, refusal
from ..gateway.metrics import Metrics
from .operation import Context, Operation, Runtime

STRANGERS_PER_MINUTE: Final = 60
ANONYMOUS: Final = "anonymous"


class AuditTrail:
    """One per worker."""

    def __init__(self, runtime: Runtime, clock: Callable[[], float] = time.time) -> None:
        self._metrics: Metrics = runtime.metrics
        self._trail = Trail(runtime.store, clock, lambda: self._metrics.fault("audit"))
        self._clock = clock
        self._minute = 0
        self._strangers = 0

    async def done(self, ctx: Context) -> None:
        """A mutation succeeded."""
        await self._write(ctx.principal, ctx.operation.audit, ctx.resource, ctx.details, ctx.ip, ctx.request_id)

    async def noted(self, ctx: Context, action: str, org: str, resource: str) -> None:
        """Something that a stranger asked for came about, in an organisation."""
        if self._room_for_stranger():
            await self._write(None, action, resource, ctx.details, ctx.ip, ctx.request_id, about=org)
        else:
            self._metrics.fault("audit_strangers")

    async def refused(
        self, operation: Operation, principal: Principal | None, error: EnterpriseError, *, resource: str, ip: str,
        request_id: str, about: str = "",
    ) -> None:  # fmt: skip
        """Somebody was not allowed, or a mutation failed. Nothing is written for a failed read. `about`: in whose
        organisation, where nobody is signed in but it is known whom the attempt was about."""
        if not operation.audit and error.status not in {401, 403}:
            return
        if principal is None and not self._room_for_stranger():
            self._metrics.fault("audit_strangers")
            return
        action = operation.audit or f"{operation.tag}.read"
        await self._write(principal, action, resource, refusal(error), ip, request_id, refused=True, about=about)

    def _room_for_stranger(self) -> bool:
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute, self._strangers = minute, 0
        self._strangers += 1
        return self._strangers <= STRANGERS_PER_MINUTE

    async def _write(
        self, principal: Principal | None, action: str, resource: str, details: dict[str, str], ip: str,
        request_id: str, *, refused: bool = False, about: str = "",
    ) -> None:  # fmt: skip
        await self._trail.write(
            principal.org if principal else about or GLOBAL, (principal.key_id if principal else "") or ANONYMOUS,
            action, resource, details, ip=ip, request_id=request_id, refused=refused,
        )  # fmt: skip
