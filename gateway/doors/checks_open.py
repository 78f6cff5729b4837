"""Decisions that wait for something: an allowed check for its outcome report, a held one for its approval.

In the memory of one worker. What is forgotten here is not lost: an unreported decision reads `unknown`, and a held call
that is asked about again is held again, which the engine recognises as the same.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from ...catalog.calls import Principal
from ..journal import Ticket

MAX_OPEN: Final = 20_000
"""Checks waiting for their outcome report, per worker; the oldest beyond it are closed as `unknown`."""

MAX_PARKED: Final = 10_000
OPEN_SECONDS: Final = 3600.0

CallKey = tuple[str, str, str, str]
"""(org, agent, run id, tool call id): what names a call within a hook. Tool call ids are the model's own words, and
not unique beyond a run."""


def call_key(principal: Principal, run_id: str, tool_call_id: str) -> CallKey:
    return (principal.org, principal.agent_id, run_id, tool_call_id)


def alias(key: CallKey) -> str:
    """A name for a hook's call that has a decision id's form, so that reports by either find their way."""
    return "dec_" + hashlib.sha256("\0".join(key).encode("utf-8", "replace")).hexdigest()[:32]


def digest(tool: str, raw: bytes) -> str:
    """What a call is: its tool and the bytes of its arguments."""
    return hashlib.sha256(tool.encode("utf-8", "replace") + b"\0" + raw).hexdigest()


class Opened:
    """An allowed check without its report. `at` is UNIX time in seconds."""

    __slots__ = ("agent", "alias", "at", "inner", "org", "ticket")

    def __init__(self, principal: Principal, ticket: Ticket, at: float) -> None:
        self.org = principal.org
        self.agent = principal.agent_id
        self.ticket = ticket
        self.at = at
        self.alias = ""
        self.inner: CallKey | None = None


class Parked:
    """A held call whose agent waits. `until` is UNIX time in seconds: nobody waits longer."""

    __slots__ = ("approval", "decision", "digest", "until")

    def __init__(self, approval: str, decision: str, digest: str, until: float) -> None:
        self.approval = approval
        self.decision = decision
        self.digest = digest
        self.until = until


class OpenChecks:
    """`close(ticket, id)` is called for what falls out unreported."""

    def __init__(self, unreported: Callable[[Ticket], None]) -> None:
        self._unreported = unreported
        self._open: OrderedDict[str, Opened] = OrderedDict()
        self._aliases: dict[str, str] = {}
        self._inside: dict[CallKey, str] = {}
        self._parked: OrderedDict[CallKey, Parked] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, name: str) -> bool:
        return name in self._open or name in self._aliases

    # -- reports ---------------------------------------------------------------------------------------------------
    def add(self, decision: str, opened: Opened, *, key: CallKey | None = None, inside: str = "") -> None:
        """Remember an open decision. `inside`: the digest of the call within, which may come by itself (`enter`)."""
        self._open[decision] = opened
        if key is not None:
            opened.alias = alias(key)
            self._aliases[opened.alias] = decision
            if inside:
                opened.inner = (*key[:3], inside)
                self._inside[opened.inner] = decision
        if len(self._open) > MAX_OPEN:
            self._drop_oldest()

    def enter(self, key: CallKey, inside: str) -> str:
        """The open decision that a wrapper got for this very call, once; "" for none. Its report may now also come
        under this call's own id."""
        decision = self._inside.pop((*key[:3], inside), "")
        if decision:
            self._aliases.pop(self._open[decision].alias, None)
            self._open[decision].alias = alias(key)
            self._aliases[alias(key)] = decision
        return decision

    def take(self, org: str, agent: str, name: str) -> Opened | None:
        """The open decision of a report, which then is no longer open. None: there is none, or it is another's."""
        decision = self._aliases.get(name, name)
        opened = self._open.get(decision)
        if opened is None or (opened.org, opened.agent) != (org, agent):
            return None
        self._forget(decision)
        return opened

    def _forget(self, decision: str) -> Opened:
        opened = self._open.pop(decision)
        if self._aliases.get(opened.alias) == decision:
            del self._aliases[opened.alias]
        if opened.inner is not None and self._inside.get(opened.inner) == decision:
            del self._inside[opened.inner]
        return opened

    def _drop_oldest(self) -> None:
        self._unreported(self._forget(next(iter(self._open))).ticket)

    def sweep(self, now: float) -> None:
        """Close what has waited too long for its report."""
        while self._open and now - next(iter(self._open.values())).at >= OPEN_SECONDS:
            self._drop_oldest()
        for key in [key for key, parked in self._parked.items() if parked.until <= now]:
            del self._parked[key]

    def clear(self) -> None:
        """At stop: what was not reported is unknown."""
        while self._open:
            self._drop_oldest()

    # -- holds -----------------------------------------------------------------------------------------------------
    def park(self, key: CallKey, parked: Parked) -> None:
        self._parked[key] = parked
        if len(self._parked) > MAX_PARKED:
            self._parked.popitem(last=False)

    def parked(self, key: CallKey, what: str, now: float) -> Parked | None:
        """The hold that this very call waits for."""
        found = self._parked.get(key)
        return found if found is not None and found.digest == what and found.until > now else None

    def unpark(self, key: CallKey) -> None:
        self._parked.pop(key, None)
