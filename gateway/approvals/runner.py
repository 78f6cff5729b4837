"""How the gateway carries out an approved call: over a conversation of its own with the upstream, judged again, its
intent in the journal before it leaves, its outcome after."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from ...catalog.approvals import Approval
from ...catalog.calls import Call, Principal, Verdict
from ...catalog.errors import JournalFull, UpstreamError
from ...catalog.records import AGENTS, KEYS, TOOLS, Agent, ApiKey, ToolRecord
from ...catalog.store import Query, Store
from ..doors.jsonrpc import encode
from ..mcpclient import Link, RpcFailure
from ..proxy import Passed, Proxy, outcome_of
from ..tools_registry import pin_of
from ..upstreams import Upstreams
from .executor import Ended, Prepared
from .form import Form

METHODS: Final = {"tool": "tools/call", "resource": "resources/read", "prompt": "prompts/get"}
UNSENT: Final = frozenset({"not_sent"})


async def pin_for(store: Store, org: str, tool: str) -> str:
    """The digest of what the server last said of a tool: what an approver sees and approves. "" when it is unknown."""
    record = await tool_record(store, org, tool)
    return record.seen if record is not None else ""


async def tool_record(store: Store, org: str, tool: str) -> ToolRecord | None:
    page = await store.find(Query(TOOLS, "tool_id", {"org": org, "tool_id": tool}, limit=1))
    return page.records[0] if page.records else None


class GatewayRunner:
    """One per worker."""

    def __init__(self, store: Store, proxy: Proxy, upstreams: Upstreams) -> None:
        self._store = store
        self._proxy = proxy
        self._upstreams = upstreams

    async def prepare(self, approval: Approval, form: Form, execution_id: str) -> Prepared | str:
        """Judge again, check the pin against the record and the server itself, connect, write the intent. A sentence
        when it may not or cannot be sent. Raises StoreError, TimeoutError."""
        principal, problem = await self._principal(approval)
        if principal is None:
            return problem
        call = self._call(approval, form, principal, execution_id)
        verdict = await self._proxy.chain.recheck(call)
        if verdict.effect == "deny":
            return f"Policy no longer allows it: {verdict.reason}"
        live = self._upstreams.get(form.org, form.upstream)
        if live is None:
            return f"There is no server {form.upstream!r} any more; nothing was sent."
        link: Link = live.link()
        try:
            await link.open()
            problem = await self._check_pin(form, link)
        except UpstreamError as error:
            problem = f"{error.message} Nothing was sent."
        if not problem:
            body = encode(form.arguments)
            rule = Verdict("allow", f"approval:{approval.id}", "ALLOWED", "Approved.", 0.0, ("approved",))
            try:
                passed = await self._proxy.open(call, rule, len(body), time.perf_counter_ns())
                return Ready(self._proxy, passed, link, METHODS[form.kind], _params(form))
            except JournalFull as error:
                problem = f"{error.message} Nothing was sent."
        await _closed(link)
        return problem

    async def _principal(self, approval: Approval) -> tuple[Principal | None, str]:
        """The agent as it was when it asked, if its key still stands."""
        agent: Agent | None = await self._store.get(AGENTS, approval.org, approval.agent)
        if agent is None:
            return None, "The agent is no longer there; nothing was sent."
        key: ApiKey | None = await self._store.get(KEYS, approval.org, approval.key) if approval.key else None
        now = int(time.time() * 1000)
        if approval.key and (key is None or key.revoked_at or (key.expires_at and key.expires_at <= now)):
            return None, "The agent's key was revoked or has run out; nothing was sent."
        allowed = key.allowed_ips if key is not None else ()
        return Principal(approval.org, agent.id, agent.name, approval.key, allowed_ips=allowed), ""

    @staticmethod
    def _call(approval: Approval, form: Form, principal: Principal, execution_id: str) -> Call:
        return Call(
            principal, form.tool, encode(form.arguments) if form.arguments else b"", id=execution_id, at=time.time(),
            door="mcp", upstream=form.upstream, ip=approval.ip, request_id=approval.request_id,
            trace_id=approval.trace_id, args=form.arguments,
        )  # fmt: skip

    async def _check_pin(self, form: Form, link: Link) -> str:
        """The tool must be what it was when the call was held: in our record, and in what the server says now."""
        if not form.pin:
            return ""
        changed = "The tool is no longer what was approved (its description or schema changed); nothing was sent."
        record = await tool_record(self._store, form.org, form.tool)
        if record is None or record.gone or record.seen != form.pin:
            return changed
        if form.kind != "tool":
            return ""
        offered = await link.list_all("tools/list", "tools")
        now = next((item for item in offered if item.get("name") == form.name), None)
        return "" if now is not None and pin_of(now) == form.pin else changed


def _params(form: Form) -> dict[str, Any]:
    if form.kind == "resource":
        return {"uri": form.name}
    return {"name": form.name, "arguments": form.arguments}


async def _closed(link: Link) -> None:
    try:
        await link.close()
    except UpstreamError:
        return  # the server forgets the session by itself


class Ready:
    """A call whose intent is on record."""

    def __init__(
        self, proxy: Proxy, passed: Passed, link: Link, method: str, params: dict[str, Any], key: str = ""
    ) -> None:
        """`key`: an Idempotency-Key to pass on."""
        self._proxy = proxy
        self._passed = passed
        self._link = link
        self._method = method
        self._params = params
        self._key = key

    async def drop(self) -> None:
        self._proxy.finish(self._passed, "not_sent", 0, 0, "NOT_SENT")
        await _closed(self._link)

    async def send(self) -> Ended:
        sent = time.perf_counter_ns()
        passed = self._passed
        try:
            result = await self._request()
        except RpcFailure as failure:
            ended = Ended(state="executed", outcome="error", answer={"error": failure.error})
            self._finish(sent, "error", "RPC_ERROR")
        except UpstreamError as error:
            outcome = outcome_of(error)
            state = "not_executed" if outcome in UNSENT else "unknown"
            ended = Ended(state=state, outcome=outcome, error=error.message)
            self._finish(sent, outcome, error.code)
        except asyncio.CancelledError:
            self._finish(sent, "timeout", "CANCELLED")
            raise
        else:
            failed = result.get("isError") is True
            ended = Ended(state="executed", outcome="error" if failed else "ok", answer={"result": result})
            passed.upstream_us = (time.perf_counter_ns() - sent) // 1000
            self._proxy.finish(passed, "error" if failed else "ok", 200, len(encode(result)))
        await _closed(self._link)
        return ended

    async def _request(self) -> dict[str, Any]:
        number, lines, body = self._link.prepare(self._method, self._params)
        if self._key:
            lines = [*lines, (b"Idempotency-Key", self._key.encode("latin-1"))]
        return await self._link.read(await self._link.exchange(lines, body), number)

    def _finish(self, sent: int, outcome: Any, code: str) -> None:
        self._passed.upstream_us = (time.perf_counter_ns() - sent) // 1000
        self._proxy.finish(self._passed, outcome, 0, 0, code)
