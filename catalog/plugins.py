"""The ports a plugin stands behind. Three kinds, one life: found by entry point, activated only by name in the
settings, given its typed config, provisioned, used, closed. Installing a package changes nothing.

* A **guard** is compiled per (agent, tool) into a plain synchronous function and runs on the hot path. It must not
  block, await or keep the call. None: no objection. A `Verdict` with effect deny or hold: objection.
  Raising, hanging beyond `guard_timeout` or returning anything else denies with POLICY_ERROR.
* A **gate** is asked asynchronously, after every guard agreed (external decision points; approvals from issue 3 on).
  None: no objection. Raising, `gate_timeout` passing or any other answer denies with POLICY_ERROR.
* An **observer** is told of finished calls, after the answer has left. Its faults are counted and never change a call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import msgspec

from .calls import AgentView, Call, Tool, Verdict
from .profiles import Profile
from .records import CallRecord

ENTRY_POINT_GROUP: Final = "agenticmail_enterprise.plugins"

GuardFunction = Callable[[Call], Verdict | None]
GateFunction = Callable[[Call], Awaitable[Verdict | None]]


class NoConfig(msgspec.Struct, forbid_unknown_fields=True):
    """For plugins without options."""


@runtime_checkable
class Plugin(Protocol):
    """Common to all kinds. `config` is a msgspec Struct with `forbid_unknown_fields=True`; a config that does not fit
    stops the start with the path of the wrong key. `__init__` must not do I/O; `provision` may, and may raise."""

    kind: ClassVar[str]
    config: ClassVar[type[msgspec.Struct]]

    def __init__(self, config: Any) -> None: ...

    async def provision(self) -> None: ...

    async def close(self) -> None: ...


@runtime_checkable
class Guard(Plugin, Protocol):
    """kind = "guard"."""

    def compile(self, agent: AgentView, profile: Profile, tool: Tool) -> GuardFunction | None:
        """A function for calls of `tool` by `agent`, or None when this guard has nothing to say about them."""


@runtime_checkable
class Gate(Plugin, Protocol):
    """kind = "gate"."""

    def compile(self, agent: AgentView, profile: Profile, tool: Tool) -> GateFunction | None: ...


@runtime_checkable
class Observer(Plugin, Protocol):
    """kind = "observer"."""

    def observe(self, call: CallRecord) -> None: ...
