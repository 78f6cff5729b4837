"""Running what was compiled: guards in a row, gates in a row, and what becomes of an answer. Everything unsound
denies."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, Final

from ..catalog.calls import Call, Verdict
from ..catalog.plugins import GateFunction, GuardFunction
from .pluginhost import PluginHost
from .snapshot import Ready
from .verdicts import fault, is_objection, shown
from .watchdog import FAULTS, GuardTimeout, GuardTripped

_abandoned: Final[set[asyncio.Task[Any]]] = set()
"""Gates that were cancelled and have not ended yet; held here because the loop holds tasks weakly."""


def run_guards(call: Call, ready: Ready, plugins: PluginHost) -> Verdict:
    """The verdict after all guards. The same loop as `Chain.decide`, for calls that are cold anyway."""
    guard = None
    try:
        for guard in ready.guards:
            objection = guard(call)
            if objection is not None:
                return weigh(call, ready, plugins, guard, objection)
    except FAULTS as error:
        return guard_fault(call, ready, plugins, guard, error)
    return ready.verdict


def weigh(call: Call, ready: Ready, plugins: PluginHost, guard: GuardFunction, objection: Any) -> Verdict:
    """A guard spoke up. A deny decides; a hold waits for what the remaining guards say."""
    held: Verdict | None = None
    at = ready.guards.index(guard)
    while True:
        if objection is not None:
            if not is_objection(objection):
                return guard_fault(call, ready, plugins, guard, nonsense(objection))
            verdict: Verdict = objection
            if verdict.effect == "deny":
                return verdict
            held = held or verdict
        at += 1
        if at == len(ready.guards):
            return held or ready.verdict
        guard = ready.guards[at]
        try:
            objection = guard(call)
        except FAULTS as error:
            return guard_fault(call, ready, plugins, guard, error)


def guard_fault(
    call: Call, ready: Ready, plugins: PluginHost, guard: GuardFunction | None, error: BaseException
) -> Verdict:
    name = ready.names[ready.guards.index(guard)] if guard in ready.guards else "chain"
    plugins.note_fault(name, error)
    what = "failed"
    if isinstance(error, GuardTimeout):
        what = "did not answer in time"
    elif isinstance(error, GuardTripped):
        what = "is resting after it did not answer in time"
    return fault(name, call.principal.agent_name, call.tool, f"the check {shown(name)} {what}")


async def ask_gates(call: Call, ready: Ready, plugins: PluginHost, seconds: float) -> Verdict | None:
    """The first gate's deny, else the first hold, else None. Each gate has `seconds`. Raises only CancelledError."""
    held: Verdict | None = None
    for name, gate in ready.gates:
        verdict = await _ask(call, name, gate, plugins, seconds)
        if verdict is not None and verdict.effect == "deny":
            return verdict
        held = held or verdict
    return held


async def _ask(call: Call, name: str, gate: GateFunction, plugins: PluginHost, seconds: float) -> Verdict | None:
    task = asyncio.ensure_future(_answer(gate, call))
    try:
        # Not wait_for, which waits for the cancelled gate to end, and it may refuse to.
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            _abandon(task)
    error: BaseException
    if not done:
        error = TimeoutError("the gate did not answer in time")
    else:
        answer, raised = task.result()
        if raised is None and (answer is None or is_objection(answer)):
            verdict: Verdict | None = answer
            return verdict
        error = raised or nonsense(answer)
    plugins.note_fault(name, error)
    what = "failed" if done else "did not answer in time"
    return fault(name, call.principal.agent_name, call.tool, f"the check {shown(name)} {what}")


async def _answer(gate: GateFunction, call: Call) -> tuple[Any, BaseException | None]:
    """What the gate answers or raises, as a value: a SystemExit that leaves a task would end the event loop."""
    try:
        return await gate(call), None
    except FAULTS as error:
        return None, error


def _abandon(task: asyncio.Task[Any]) -> None:
    """Cancel a task nobody waits for any more."""
    _abandoned.add(task)
    task.add_done_callback(_abandoned.discard)
    task.cancel()


def nonsense(answer: Any) -> TypeError:
    if inspect.iscoroutine(answer):
        answer.close()
    return TypeError(f"the answer is neither None nor a sound deny or hold, but of type {type(answer).__name__}")
