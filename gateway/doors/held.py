"""How an agent gets the result of a call that waits for a person.

The request stays open up to `hold_timeout`, with progress when its client asked for it; then it is answered as pending.
The same call made again meets the same approval: it waits on, or gets the stored result, marked as a repeat. Nothing is
sent from here: an approved call is the executor's, whether anybody waits or not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from aiohttp import web

from ...catalog.approvals import FINAL, Approval
from ...catalog.calls import Call, Verdict
from ...catalog.errors import EnterpriseError, NotFound, StoreError, StoreUnavailable
from ...policies.chain import NON_IDEMPOTENT, Chain
from ..approvals.engine import ApprovalEngine, Ask
from ..approvals.runner import pin_for
from ..holds import Ruling, State
from ..wire import RawStream, json_response
from .jsonrpc import encode, error_body
from .mcpfacts import INTERNAL_ERROR, INVALID_PARAMS, META_CAPABILITIES, POLICY_DENIED, TOOL, Subject
from .refusals import DECISION_META, decision_meta
from .sse import event

HELD_METHODS: Final = frozenset({"tools/call", "resources/read", "prompts/get"})
"""What can be carried out later. A subscription cannot: its request stays refused."""

TASK_METHODS: Final = frozenset({"tasks/get", "tasks/update", "tasks/cancel"})
APPROVAL_ID: Final = re.compile(r"apr_[0-9a-f]{32}")
POLL_MS: Final = 5_000
RETRY_AFTER: Final = 15.0
TASKS: Final = "io.modelcontextprotocol/tasks"

SENTENCES: Final = {
    "pending": "It waits for a person as {id}; nothing was done yet. Make the very same call again later to get its "
               "result: it runs once, after it is approved.",
    "approved": "It was approved as {id} and is about to run, once. Make the very same call again to get its result.",
    "executing": "It was approved as {id} and is running now. Make the very same call again to get its result.",
    "rejected": "A person rejected this call: {rejection} Do not make it again unchanged.",
    "expired": "Nobody decided about this call in time ({id}), so it was not made. Nothing was done.",
    "cancelled": "This call was taken back ({id}) before anybody decided. Nothing was done.",
    "not_executed": "It was approved, but not made ({id}): {error}",
    "unknown": "It was approved and may have been made, or not ({id}): {error} It is not made again by the gateway; "
               "find out whether it happened before you ask for it anew.",
    "executed": "It was approved and made ({id}), but its result was lost: {error}",
}  # fmt: skip


CHECKED: Final = {
    "pending": "It waits for a person as {id}; ask the very same again after it is approved.",
    "rejected": "A person rejected it: {rejection}",
    "expired": "Nobody decided about it in time ({id}).",
    "cancelled": "It was taken back ({id}).",
    "not_executed": "It was approved, and nobody came for it in time ({id}).",
    "executed": "Its approval ({id}) was used up; ask again for another.",
}


class Held:
    """One per worker. `Proxy.holds` and the doors use it."""

    def __init__(self, engine: ApprovalEngine, chain: Chain) -> None:
        self.engine = engine
        self._chain = chain

    # -- before a call is held ---------------------------------------------------------------------------------------
    async def release(self, call: Call, verdict: Verdict) -> Verdict:
        """A held call that needs nobody: by a grant, an auto-approve rule, or (a check) an approval that was given.
        Else the verdict as it is. Never raises: what cannot be read stays held."""
        if verdict.effect != "hold":
            return verdict
        try:
            if call.door == "checks":
                given = await self._taken(call)
                if given is not None:
                    return given
            if verdict.code == "PIN_CHANGED":
                return verdict
            who = call.principal
            _, tool = await self._chain.subject(who, call.tool)
            rule = await self.engine.release(who.org, who.agent_id, who.agent_name, tool, call.args, call.door)
        except (EnterpriseError, TimeoutError):
            return verdict
        if not rule:
            return verdict
        flags = ("released", NON_IDEMPOTENT) if tool.once else ("released",)
        return Verdict("allow", rule, "ALLOWED", "Needs nobody's approval.", 0.0, flags)

    async def _taken(self, call: Call) -> Verdict | None:
        """The approval of a tool that the agent runs itself, used up by one check."""
        who = call.principal
        approval = await self.engine.find(who.org, who.agent_id, call.door, call.tool, call.args)
        if approval is None:
            return None
        if approval.state == "approved" and await self.engine.take(approval):
            return Verdict(
                "allow", f"approval:{approval.id}", "ALLOWED", "A person approved this call.", 0.0, ("approved",)
            )
        return None

    async def hold(self, call: Call, verdict: Verdict, kind: str, name: str) -> tuple[Approval, bool]:
        """Have people asked about a call. Raises EnterpriseError, TimeoutError."""
        who = call.principal
        _, tool = await self._chain.subject(who, call.tool)
        ask = Ask(
            org=who.org, agent=who.agent_id, agent_name=who.agent_name, key=who.key_id, door=call.door,
            upstream=call.upstream, kind=kind, name=name, tool=call.tool, arguments=call.args,
            pin="" if kind == "check" else await pin_for(self.engine.store, who.org, call.tool), rule=verdict.rule,
            reason=verdict.reason, call_id=call.id, request_id=call.request_id, trace_id=call.trace_id, ip=call.ip,
        )  # fmt: skip
        return await self.engine.hold(ask, tool)

    async def checked(self, call: Call, verdict: Verdict) -> dict[str, Any]:
        """What the answer to a held check says besides: the approval to wait for, and how it stands. The same check
        made again after somebody approved it is allowed, once."""
        try:
            approval, _ = await self.hold(call, verdict, "check", call.tool)
        except (EnterpriseError, TimeoutError) as error:
            said = error.message if isinstance(error, EnterpriseError) else "The policy could not be read in time."
            return {"requires_approval": False, "reason": f"{verdict.reason} Nobody could be asked: {said}"}
        said = CHECKED.get(approval.state, CHECKED["pending"])
        reason = said.format(id=approval.id, rejection=_sentence(approval.rejection))
        waits = approval.state not in FINAL
        about = {"id": approval.id, "state": approval.state, "expires_at": approval.stage_until}
        answer: dict[str, Any] = {"requires_approval": waits, "reason": f"{verdict.reason} {reason}", "approval": about}
        if waits:
            answer["retry_after"] = RETRY_AFTER
        return answer

    # -- while it is held --------------------------------------------------------------------------------------------
    async def answer(
        self, visit: Any, message: dict[str, Any], subject: Subject, name: str, call: Call, verdict: Verdict
    ) -> web.StreamResponse:
        """The answer to a held MCP call, now or within `hold_timeout`. Raises ConnectionError, CancelledError."""
        rpc_id = message["id"]
        try:
            approval, made = await self.hold(call, verdict, subject.kind, name)
            repeat = not made and approval.state in FINAL
            if visit.modern and subject is TOOL and approval.state not in FINAL and wants_task(message):
                task = task_of(approval, True, self.engine.settings.replay)
                return json_response(200, encode({"jsonrpc": "2.0", "id": rpc_id, "result": task}))
            stream = None
            if approval.state not in FINAL:
                approval, stream = await self._park(visit, message, approval)
            body = self.body(subject, rpc_id, call.id, approval, verdict, visit.modern, repeat=repeat)
        except (EnterpriseError, TimeoutError) as error:
            said = error.message if isinstance(error, EnterpriseError) else "The policy could not be read in time."
            text = f"{verdict.reason} Nobody could be asked: {said} [{verdict.code}, decision {call.id}]"
            return json_response(200, said_no(subject, rpc_id, call.id, verdict.code, text, visit.modern))
        if stream is None:
            return json_response(200, body)
        await stream.write(event(body))
        await stream.finish()
        return stream

    async def task(self, visit: Any, message: dict[str, Any], task_id: str) -> web.StreamResponse:
        """The answer to `tasks/get`, `tasks/update` and `tasks/cancel` about a held call of this agent's."""
        rpc_id, who = message["id"], visit.principal
        try:
            approval = await self.engine.get(who.org, task_id)
            if approval.agent != who.agent_id:
                raise NotFound
            result: dict[str, Any] = {"resultType": "complete"}
            if message["method"] == "tasks/cancel":
                if approval.state == "pending":
                    await self.engine.cancel(who.org, task_id, who.agent_id)
            elif message["method"] == "tasks/get":
                result = task_of(approval, False, self.engine.settings.replay)
                if result["status"] == "completed":
                    held = Verdict("hold", approval.rule, "APPROVAL_REQUIRED", approval.reason)
                    body = self.body(TOOL, rpc_id, approval.call_id, approval, held, True, repeat=False)
                    said = msgspec.json.decode(body)
                    if "error" in said:
                        result["status"] = "failed"
                    result |= {key: said[key] for key in ("result", "error") if key in said}
        except NotFound:
            return json_response(200, error_body(INVALID_PARAMS, "There is no such task.", rpc_id))
        except EnterpriseError as error:
            return json_response(200, error_body(INTERNAL_ERROR, error.message, rpc_id))
        return json_response(200, encode({"jsonrpc": "2.0", "id": rpc_id, "result": result}))

    async def _park(self, visit: Any, message: dict[str, Any], approval: Approval) -> tuple[Approval, RawStream | None]:
        """Wait, telling the client from time to time if it asked to be told."""
        settings = self.engine.settings
        ends = visit.started / 1e9 + settings.hold_timeout
        token = progress_token(message)
        stream: RawStream | None = None
        if token is not None and "text/event-stream" in visit.request.headers.get("Accept", ""):
            headers = [(b"Content-Type", b"text/event-stream"), (b"Cache-Control", b"no-store")]
            stream = RawStream(visit.request, 200, headers)
            await stream.start()
        told = 0
        while True:
            if stream is not None:
                told += 1
                await stream.write(event(_progress(token, told, approval)))
            left = ends - time.perf_counter()
            approval = await self.engine.wait(
                approval.org, approval.id, min(left, settings.progress) if stream else left
            )
            if approval.state in FINAL or time.perf_counter() >= ends:
                return approval, stream

    def body(
        self, subject: Subject, rpc_id: Any, call_id: str, approval: Approval, verdict: Verdict, modern: bool,
        *, repeat: bool,
    ) -> bytes:  # fmt: skip
        """The JSON-RPC answer that says how a held call stands."""
        answer = self.engine.result(approval)
        about = {"id": approval.id, "state": approval.state, "repeat": repeat}
        if answer is not None and isinstance(answer.get("result"), dict):
            result = dict(answer["result"])
            if modern:
                result.setdefault("resultType", "complete")
            meta = {**decision_meta(call_id, "allow", "ALLOWED"), "approval": about}
            known = result.get("_meta")
            result["_meta"] = {**(known if isinstance(known, dict) else {}), DECISION_META: meta}
            return encode({"jsonrpc": "2.0", "id": rpc_id, "result": result})
        if answer is not None:
            return encode({"jsonrpc": "2.0", "id": rpc_id, "error": answer.get("error")})
        text = SENTENCES[approval.state].format(
            id=approval.id, rejection=_sentence(approval.rejection), error=_sentence(approval.error)
        )
        if approval.state not in FINAL:
            text = f"{verdict.reason} {text}"
        full = f"{text} [{verdict.code}, decision {call_id}]"
        return said_no(subject, rpc_id, call_id, verdict.code, full, modern, about)


RULINGS: Final[Mapping[str, tuple[State, str]]] = {
    "pending": ("pending", ""),
    "approved": ("approved", "A person approved this call."),
    "executed": ("approved", ""),  # used up: nobody can claim it again
    "rejected": ("denied", "A person rejected this call: {rejection}"),
    "cancelled": ("denied", "This call was taken back."),
    "expired": ("expired", ""),
    "not_executed": ("expired", ""),
}


class CheckHolds:
    """`gateway.holds.Holds` over the engine: for the checks of hooks, whose agents run their tools themselves."""

    def __init__(self, held: Held) -> None:
        self._held = held

    async def hold(self, call: Call, verdict: Verdict) -> str:
        """The approval's id. A repeat of a call that was decided a short while ago meets that decision."""
        try:
            approval, _ = await self._held.hold(call, verdict, "check", call.tool)
        except StoreError:
            raise
        except (EnterpriseError, TimeoutError):  # no canonical form, too many waiting: nobody can be asked
            raise StoreUnavailable from None
        return approval.id

    async def wait(self, org: str, approval_id: str, seconds: float) -> Ruling:
        """As `gateway.holds.Holds.wait`. NotFound where it was pruned meanwhile."""
        approval = await self._held.engine.wait(org, approval_id, seconds)
        state, reason = RULINGS[approval.state]
        return Ruling(state=state, reason=reason.format(rejection=_sentence(approval.rejection)))

    async def claim(self, org: str, approval_id: str) -> bool:
        engine = self._held.engine
        return await engine.take(await engine.get(org, approval_id))


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?" else f"{text}."


def _progress(token: Any, told: int, approval: Approval) -> bytes:
    params = {"progressToken": token, "progress": told, "message": f"Waiting for a person ({approval.id})."}
    return encode({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})


def progress_token(message: dict[str, Any]) -> Any:
    """What a client wants its progress notifications to carry; None when it wants none."""
    meta = (message.get("params") or {}).get("_meta")
    token = meta.get("progressToken") if isinstance(meta, dict) else None
    return token if isinstance(token, str | int) and not isinstance(token, bool) else None


def said_no(
    subject: Subject, rpc_id: Any, call_id: str, code: str, text: str, modern: bool, about: dict[str, Any] | None = None
) -> bytes:
    """A call that has no result (yet), in the words of its method."""
    waiting = about is not None and about["state"] not in FINAL
    meta = decision_meta(call_id, "hold", code, RETRY_AFTER if waiting else 0.0)
    if about is not None:
        meta["approval"] = about
    if subject is not TOOL:
        return error_body(POLICY_DENIED, text, rpc_id, {DECISION_META: meta})
    result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": True}
    if modern:
        result["resultType"] = "complete"
    result["_meta"] = {DECISION_META: meta}
    return encode({"jsonrpc": "2.0", "id": rpc_id, "result": result})


# -- the tasks extension (2026-07-28) ----------------------------------------------------------------------------
def wants_task(message: dict[str, Any]) -> bool:
    """Whether a client of 2026-07-28 said that it understands tasks."""
    meta = (message.get("params") or {}).get("_meta")
    capabilities = meta.get(META_CAPABILITIES) if isinstance(meta, dict) else None
    extensions = capabilities.get("extensions") if isinstance(capabilities, dict) else None
    return isinstance(extensions, dict) and TASKS in extensions


def task_of(approval: Approval, created: bool, replay: int) -> dict[str, Any]:
    """A held call as a task: the answer to the call itself (`created`), or the state in an answer to `tasks/get`."""
    final = approval.state in FINAL
    status = "cancelled" if approval.state == "cancelled" else "completed" if final else "working"
    task: dict[str, Any] = {
        "resultType": "task" if created else "complete",
        "taskId": approval.id,
        "status": status,
        "statusMessage": f"{approval.state.replace('_', ' ')}: {approval.tool}",
        "createdAt": _moment(approval.created_at),
        "lastUpdatedAt": _moment(approval.updated_at),
        "ttlMs": sum(stage.timeout for stage in approval.terms.stages) * 1000 + replay * 1000,
        "pollIntervalMs": POLL_MS,
    }
    return task


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def own_task(message: dict[str, Any]) -> str:
    """The id of a held call that a `tasks/...` request names; "" for an upstream's own tasks."""
    task_id = (message.get("params") or {}).get("taskId")
    return task_id if isinstance(task_id, str) and APPROVAL_ID.fullmatch(task_id) else ""


__all__ = ["HELD_METHODS", "TASK_METHODS", "Held", "own_task"]
