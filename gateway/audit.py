"""The audit trail: one entry per mutation, and per refusal. The one place where entries are written, for the API and
for the command line alike.

It reports, it does not decide: an entry that cannot be stored is counted and logged, and what was done stands.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import structlog

from ..catalog.errors import EnterpriseError
from ..catalog.ids import new_id
from ..catalog.records import AUDIT, AuditEntry
from ..catalog.store import Store

log = structlog.get_logger(__name__)

MAX_DETAIL: Final = 500


class Deed(msgspec.Struct):
    """What an entry will say of something that is being done."""

    resource: str = ""
    details: dict[str, str] = {}


class Trail:
    """Writes entries. `lost` is called for each that the store did not take."""

    def __init__(
        self, store: Store, clock: Callable[[], float] = time.time, lost: Callable[[], None] = lambda: None
    ) -> None:
        self._store = store
        self._clock = clock
        self._lost = lost

    async def write(
        self, org: str, actor: str, action: str, resource: str, details: dict[str, str], *, ip: str = "",
        request_id: str = "", refused: bool = False,
    ) -> None:  # fmt: skip
        """One entry. Raises nothing that the store raises."""
        now = int(self._clock() * 1000)
        entry = AuditEntry(
            org=org, id=new_id("audit"), created_at=now, updated_at=now, at=now, actor=actor[:MAX_DETAIL],
            action=action, resource=resource[:MAX_DETAIL], outcome="refused" if refused else "ok",
            details={name: value[:MAX_DETAIL] for name, value in details.items()}, ip=ip, request_id=request_id,
        )  # fmt: skip
        try:
            await self._store.append(AUDIT, [entry])
        except EnterpriseError as error:
            self._lost()
            log.warning(
                "audit_entry_lost", action=action, resource=resource, request_id=request_id, reason=error.message
            )

    @asynccontextmanager
    async def deed(self, org: str, actor: str, action: str, resource: str = "") -> AsyncIterator[Deed]:
        """What is done inside leaves an entry, also when it is refused; `resource` and `details` may be added."""
        deed = Deed(resource)
        try:
            yield deed
        except EnterpriseError as error:
            await self.write(org, actor, action, deed.resource, {**deed.details, **refusal(error)}, refused=True)
            raise
        await self.write(org, actor, action, deed.resource, deed.details)


def refusal(error: EnterpriseError) -> dict[str, str]:
    """What an entry says of a refusal."""
    return {"code": error.code, "status": str(error.status), "error": error.message}


def shell_actor() -> str:
    """Who works at the command line: `cli:` and the name of the process's own user (not of a variable's)."""
    import pwd

    try:
        return f"cli:{pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:  # a container's user need not have a name
        return f"cli:{os.geteuid()}"
