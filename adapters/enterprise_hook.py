"""A hook for agents written in Python: ask the gateway before a tool runs, say how it went after. Fails closed.

    hook = create_enterprise_hook("http://127.0.0.1:3000", "ek_...", "support-bot")
    verdict = hook.before_tool_call("send_email", {"to": "ana@acme.test"})
    if verdict["allowed"]:
        hook.after_tool_call("send_email", result=send_email(...), duration_ms=12.5)

`hook.aio` has the same two methods as coroutines, on the same cache. Neither raises for what the gateway says or for a
gateway that cannot be asked: then nothing is allowed. With `fail_open=True` a gateway that cannot be reached lets calls
pass (one that refuses the question, for a wrong key say, does not), and `reason` says so.

The cache keeps verdicts about one tool with one set of arguments for `cache_seconds`, because agents ask in loops. What
is kept is a denial, and only where time alone cannot change it: an allowed call is asked about each time, so that it is
counted, recorded, and revocable at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final, TypedDict
from urllib.parse import urlsplit

import msgspec

from ..catalog.errors import ValidationFailed

CHECK: Final = "/api/engine/check-permission"
REPORT: Final = "/api/engine/tool-calls"
MAX_CACHED: Final = 1024
MAX_OPEN: Final = 10_000
ROUND_SECONDS: Final = 25.0
"""One round of waiting for an approval: below what proxies and clients take for a dead connection."""

MAX_ANSWER: Final = 4 * 1024 * 1024
UNREACHABLE: Final = "GATEWAY_UNREACHABLE"
LASTING: Final = frozenset(
    {"TOOL_UNKNOWN", "TOOL_DENIED", "TOOL_NOT_GRANTED", "RISK_TOO_HIGH", "SIDE_EFFECT_BLOCKED", "ARGUMENT_DENIED"}
)
"""Codes of denials that the same question would get again at once; rates, schedules and approvals are no such."""

_encode: Final = msgspec.json.Encoder(order="deterministic").encode


class HookDecision(TypedDict):
    """What may happen. Anything but `allowed` means: do not run the tool. `args` are what it may run with: a reviewer
    may have changed them. `decision_id` names the record, `tool_call_id` the call; `cached`: nobody was asked."""

    allowed: bool
    requires_approval: bool
    reason: str
    code: str
    decision_id: str
    tool_call_id: str
    args: dict[str, Any]
    cached: bool


class _Said(msgspec.Struct):
    """The part of the gateway's answer that is relied on."""

    allowed: bool
    requires_approval: bool
    reason: str
    code: str
    decision_id: str
    pending: bool = False
    args: dict[str, Any] | None = None


class _Data(msgspec.Struct):
    data: _Said


class Unanswered(Exception):
    """The gateway could not be asked; the sentence says why. `refused`: it was there, and would not be asked so."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class EnterpriseHook:
    """Safe to use from several threads. Made by `create_enterprise_hook`."""

    def __init__(
        self, api_url: str, api_key: str, agent_id: str, *, fail_open: bool, cache_seconds: float, timeout: float,
        approval_wait: float, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        parts = urlsplit(api_url)
        self._tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port
        self._base = parts.path.rstrip("/")
        self._key = api_key
        self._agent = agent_id
        self._fail_open = fail_open
        self._cache_seconds = cache_seconds
        self._timeout = timeout
        self._approval_wait = approval_wait
        self._clock = clock
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, tuple[float, HookDecision]] = OrderedDict()
        self._open: OrderedDict[tuple[str, str], str] = OrderedDict()
        self.aio = AsyncHook(self)

    def __repr__(self) -> str:
        return f"<EnterpriseHook {self._host} for {self._agent}>"

    # -- the two questions -----------------------------------------------------------------------------------------
    def before_tool_call(
        self, tool: str, args: dict[str, Any] | None = None, *, tool_call_id: str = "", run_id: str = "",
        session_id: str = "",
    ) -> HookDecision:  # fmt: skip
        """May this tool run with these arguments? Waits for an approval up to `approval_wait` seconds. Never raises for
        the gateway's sake; TypeError for arguments that are no JSON."""
        given: dict[str, Any] = args or {}
        question: dict[str, Any] = {"tool": tool, "args": given, "agent_id": self._agent}
        known = self._cached(question)
        if known is not None:
            return known
        tool_call_id = tool_call_id or f"py_{secrets.token_hex(12)}"
        question |= {"tool_call_id": tool_call_id, "run_id": run_id, "session_id": session_id}
        try:
            answer = self._decided(question)
        except Unanswered as error:
            return self._unanswered(error, tool_call_id, given)
        except (msgspec.MsgspecError, UnicodeError):
            wrong = Unanswered("its answer is not understood", refused=True)
            return self._unanswered(wrong, tool_call_id, given)
        decision = HookDecision(
            allowed=answer.allowed, requires_approval=answer.requires_approval, reason=answer.reason, code=answer.code,
            decision_id=answer.decision_id, tool_call_id=tool_call_id,
            args=given if answer.args is None else answer.args, cached=False,
        )  # fmt: skip
        self._keep(question, decision)
        return decision

    def _decided(self, question: dict[str, Any]) -> _Said:
        """The gateway's answer, asked for in rounds while it is pending. Raises Unanswered, MsgspecError."""
        until = self._clock() + self._approval_wait
        while True:
            left = max(0.0, min(ROUND_SECONDS, until - self._clock()))
            question["wait"] = left
            answer = msgspec.json.decode(self._ask(CHECK, question, self._timeout + left), type=_Data).data
            if not answer.pending or left <= 0:
                return answer

    def after_tool_call(
        self, tool: str, result: Any = None, duration_ms: float = 0.0, *, error: BaseException | str | None = None,
        decision_id: str = "", tool_call_id: str = "",
    ) -> bool:  # fmt: skip
        """Report how an allowed call ended; whether the gateway took it. `result` stays here. Without an id it is the
        newest allowed call of that tool. A report that is lost leaves a record that reads `unknown`; never raises."""
        decision = self._decision_of(tool, decision_id, tool_call_id)
        if not decision:
            return False
        text = "" if error is None else (str(error) or type(error).__name__)[:2000]
        report = {
            "decision_id": decision, "outcome": "ok" if error is None else "error", "error": text,
            "duration_ms": min(max(float(duration_ms), 0.0), 86_400_000.0),
        }  # fmt: skip
        try:
            self._ask(REPORT, report, self._timeout)
        except Unanswered:
            return False
        return True

    # -- the cache ---------------------------------------------------------------------------------------------------
    def _cached(self, question: dict[str, Any]) -> HookDecision | None:
        name = _digest(question)
        with self._lock:
            found = self._cache.get(name)
            if found is None:
                return None
            if found[0] <= self._clock():
                del self._cache[name]
                return None
            return HookDecision(**{**found[1], "cached": True})

    def _keep(self, question: dict[str, Any], decision: HookDecision) -> None:
        with self._lock:
            if decision["allowed"]:
                self._open[question["tool"], decision["tool_call_id"]] = decision["decision_id"]
                if len(self._open) > MAX_OPEN:
                    self._open.popitem(last=False)
            elif decision["code"] in LASTING and self._cache_seconds > 0:
                self._cache[_digest(question)] = (self._clock() + self._cache_seconds, decision)
                if len(self._cache) > MAX_CACHED:
                    self._cache.popitem(last=False)

    def _decision_of(self, tool: str, decision_id: str, tool_call_id: str) -> str:
        """The open decision that a report is about, which then is open no longer; "" for none."""
        with self._lock:
            for name in reversed(self._open):
                decision = self._open[name]
                if name[0] != tool or (decision_id and decision != decision_id):
                    continue
                if tool_call_id and name[1] != tool_call_id:
                    continue
                del self._open[name]
                return decision
        return decision_id

    def _unanswered(self, error: Unanswered, tool_call_id: str, args: dict[str, Any]) -> HookDecision:
        passes = self._fail_open and not error.refused
        reason = f"The gateway could not be asked ({error}), so the call is {'let pass' if passes else 'refused'}."
        return HookDecision(
            allowed=passes, requires_approval=False, reason=reason, code=UNREACHABLE, decision_id="",
            tool_call_id=tool_call_id, args=args, cached=False,
        )  # fmt: skip

    # -- the wire ------------------------------------------------------------------------------------------------------
    def _ask(self, path: str, body: dict[str, Any], timeout: float) -> bytes:
        """One POST on a connection of its own. Raises Unanswered."""
        connect = HTTPSConnection if self._tls else HTTPConnection
        connection = connect(self._host, self._port, timeout=timeout)
        headers = {"Content-Type": "application/json", "Accept": "application/json", "X-API-Key": self._key}
        try:
            connection.request("POST", self._base + path, _encode(body), headers)
            response = connection.getresponse()
            data = response.read(MAX_ANSWER)
        except TimeoutError:
            raise Unanswered("it did not answer in time") from None
        except (OSError, HTTPException) as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from None
        finally:
            connection.close()
        if response.status != 200:
            raise Unanswered(_sentence(response.status, data), refused=response.status < 500)
        return data


class AsyncHook:
    """The same questions as coroutines. The network is waited for on a thread, so that no loop is held up."""

    def __init__(self, hook: EnterpriseHook) -> None:
        self._hook = hook

    async def before_tool_call(self, tool: str, args: dict[str, Any] | None = None, **ids: str) -> HookDecision:
        """See `EnterpriseHook.before_tool_call`."""
        return await asyncio.to_thread(self._hook.before_tool_call, tool, args, **ids)

    async def after_tool_call(self, tool: str, result: Any = None, duration_ms: float = 0.0, **facts: Any) -> bool:
        """See `EnterpriseHook.after_tool_call`."""
        return await asyncio.to_thread(self._hook.after_tool_call, tool, result, duration_ms, **facts)


class _Refusal(msgspec.Struct):
    error: str = ""


def _sentence(status: int, body: bytes) -> str:
    try:
        said = msgspec.json.decode(body, type=_Refusal).error
    except (msgspec.MsgspecError, UnicodeError):
        said = ""
    return f"it answered {status}" + (f": {said}" if said else "")


def _digest(question: dict[str, Any]) -> bytes:
    return hashlib.sha256(_encode([question["tool"], question["args"]])).digest()


def create_enterprise_hook(
    api_url: str, api_key: str, agent_id: str, *, fail_open: bool = False, cache_seconds: float = 5.0,
    timeout: float = 10.0, approval_wait: float = 0.0,
) -> EnterpriseHook:  # fmt: skip
    """A hook for one agent. `agent_id` is its id or name, and must be the key's. Times in seconds; `approval_wait` (at
    most 600): how long a held call may wait for a person. ValidationFailed names what is wrong with an argument."""
    faults = []
    parts = urlsplit(api_url)
    try:
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.username or parts.password or parts.query or parts.fragment:
        faults.append(("/api_url", "invalid", "Give the gateway's base URL: http://... or https://..."))
    if not api_key.startswith("ek_") or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        faults.append(("/api_key", "invalid", "Give the agent's API key: ek_..."))
    if not agent_id.strip():
        faults.append(("/agent_id", "required", "Name the agent, by its id or its name."))
    for name, value, least, most in (
        ("cache_seconds", cache_seconds, 0.0, 300.0), ("timeout", timeout, 0.05, 120.0),
        ("approval_wait", approval_wait, 0.0, 600.0),
    ):  # fmt: skip
        if not least <= value <= most:
            faults.append((f"/{name}", "out_of_range", f"{name} is {least:g} to {most:g} seconds."))
    if faults:
        raise ValidationFailed(faults)
    return EnterpriseHook(
        api_url, api_key, agent_id, fail_open=fail_open, cache_seconds=cache_seconds, timeout=timeout,
        approval_wait=approval_wait,
    )  # fmt: skip


__all__ = ["AsyncHook", "EnterpriseHook", "HookDecision", "create_enterprise_hook"]
