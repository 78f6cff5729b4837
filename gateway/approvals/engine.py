"""`ApprovalEngine`: hold a call, let people decide, wait for the end, read it. A library: it needs a store and a vault,
and a `Runner` for calls that it is to execute itself; the gateway's is `executor.GatewayRunner`.

    engine = ApprovalEngine(store, Vault([key]), runner=my_runner)
    approval = await engine.hold(Ask(org="org_1", agent="agt_1", tool="send_email", arguments={...}), tool)
    await engine.decide("org_1", approval.id, decider, Deed(action="approve"))
    approval = await engine.wait("org_1", approval.id, 30.0)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ...catalog.approvals import APPROVALS, FINAL, Approval
from ...catalog.calls import Tool
from ...catalog.errors import Conflict, Forbidden, NotFound, Stale, ValidationFailed
from ...catalog.ids import new_id
from ...catalog.records import AGENTS, KEYS, USERS, Agent, ApiKey
from ...catalog.store import Insert, Query, Replace, Store
from ...policies.approvals import terms_of
from ..settings import ApprovalSettings
from ..vault import Vault
from .book import Book
from .canonical import digest_of
from .deciding import Deed, apply, check_digest, check_open, close, may_decide, stage_of
from .executor import Executor, Runner
from .form import Form, aad, differences, not_canonical, read, recorded, seal, twin_of, write
from .grants import release
from .notify import outbox
from .who import Decider, root_of

ATTEMPTS: Final = 6
LOOK_SECONDS: Final = 0.25
"""How often a waiter looks for what another worker decided."""

MAX_PENDING: Final = 1_000
"""Undecided calls of one agent: beyond it a held call is denied, so that nobody's inbox is flooded."""


class Ask(msgspec.Struct, kw_only=True):
    """A call that must be approved, as a door read it. `kind` is what it is (`tool`, `resource`, `prompt`), or `check`
    for one that the agent runs itself. `name` is its name at the upstream."""

    org: str
    agent: str
    tool: str
    arguments: dict[str, Any]
    agent_name: str = ""
    key: str = ""
    door: str = "mcp"
    upstream: str = ""
    kind: str = "tool"
    name: str = ""
    pin: str = ""
    rule: str = ""
    reason: str = ""
    call_id: str = ""
    request_id: str = ""
    trace_id: str = ""
    ip: str = ""


class ApprovalEngine:
    """One per worker. `clock` gives UNIX seconds."""

    def __init__(
        self, store: Store, vault: Vault, *, book: Book | None = None, runner: Runner | None = None,
        settings: ApprovalSettings | None = None, clock: Callable[[], float] = time.time, worker: str = "",
    ) -> None:  # fmt: skip
        self.store = store
        self.vault = vault
        self.book = book or Book(store, vault, clock=clock)
        self.settings = settings or ApprovalSettings()
        self._clock = clock
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.executor = Executor(self, runner, worker or new_id("request"))

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return int(self._clock() * 1000)

    # -- holding -----------------------------------------------------------------------------------------------------
    async def hold(self, ask: Ask, tool: Tool) -> tuple[Approval, bool]:
        """The approval of a call, and whether it was made now: a repeat of a call that is held, or was decided a short
        while ago, meets that one. ValidationFailed for arguments without a canonical form, Forbidden when too many
        wait, StoreError."""
        twin = self._twin(ask)
        for _ in range(ATTEMPTS):
            known = await self.find_twin(ask.org, twin)
            if known is not None:
                return known, False
            approval = await self._make(ask, tool, twin)
            try:
                stored = await self.commit(approval, "requested", insert=True)
            except Conflict as error:
                if error.index != "twin":
                    raise
                continue  # the same call at the same time: its approval is the one
            return stored, True
        raise Stale

    def _twin(self, ask: Ask) -> str:
        try:
            return twin_of(ask.org, ask.agent, ask.door, ask.tool, ask.arguments)
        except ValueError as error:
            raise not_canonical(error) from None

    async def find(self, org: str, agent: str, door: str, tool: str, arguments: dict[str, Any]) -> Approval | None:
        """The approval that a repeat of a call meets, or None. StoreError."""
        try:
            twin = twin_of(org, agent, door, tool, arguments)
        except ValueError:
            return None
        return await self.find_twin(org, twin)

    async def find_twin(self, org: str, twin: str) -> Approval | None:
        page = await self.store.find(Query(APPROVALS, "twin", {"org": org, "twin": twin}, limit=1))
        return page.records[0] if page.records else None

    async def _make(self, ask: Ask, tool: Tool, twin: str) -> Approval:
        mine = Query(APPROVALS, "by_agent_state", {"org": ask.org, "agent": ask.agent, "state": "pending"})
        if await self.store.count(mine, MAX_PENDING) >= MAX_PENDING:
            raise Forbidden(f"{MAX_PENDING} calls of this agent wait for approval already.")
        policy = await self.book.policy_for(ask.org, ask.agent, ask.agent_name, tool)
        terms = terms_of(policy)
        form = Form(
            org=ask.org, agent=ask.agent, upstream=ask.upstream, kind=ask.kind, name=ask.name or ask.tool,
            tool=ask.tool, pin=ask.pin, policy=terms.policy_id, policy_version=terms.policy_version,
            arguments=ask.arguments,
        )  # fmt: skip
        data = write(form)
        now = self.now()
        approval_id = new_id("approval")
        until = now + terms.stages[0].timeout * 1000
        return Approval(
            org=ask.org, id=approval_id, agent=ask.agent, agent_name=ask.agent_name, key=ask.key, door=ask.door,
            upstream=ask.upstream, kind=ask.kind, tool=ask.tool, pin=ask.pin, twin=twin, digest=digest_of(data),
            asked_digest=digest_of(data), sealed=seal(self.vault, data, ask.org, approval_id, "sealed"),
            risk=tool.risk, side_effects=tuple(tool.side_effects), rule=ask.rule, reason=ask.reason,
            call_id=ask.call_id, request_id=ask.request_id, trace_id=ask.trace_id, ip=ask.ip, terms=terms,
            stage_until=until, watch="on", due_at=until, created_at=now, updated_at=now,
        )  # fmt: skip

    async def release(
        self, org: str, agent: str, agent_name: str, tool: Tool, arguments: dict[str, Any], door: str
    ) -> str:
        """The rule by which a held call needs nobody (a standing grant, an auto-approve rule), or "". A grant is used
        up by one. StoreError."""
        return await release(self, org, agent, agent_name, tool, arguments, door)

    # -- reading -----------------------------------------------------------------------------------------------------
    async def get(self, org: str, approval_id: str) -> Approval:
        """NotFound."""
        approval: Approval | None = await self.store.get(APPROVALS, org, approval_id)
        if approval is None:
            raise NotFound("There is no such approval.")
        return approval

    def form(self, approval: Approval, *, asked: bool = False) -> Form:
        """The call itself, opened. SecretError when it was tampered with."""
        return read(self.vault, approval, asked=asked)

    def result(self, approval: Approval) -> dict[str, Any] | None:
        """`{"result": ...}` or `{"error": ...}` as the upstream gave it, None when there is none (or it was lost)."""
        if not approval.sealed_result:
            return None
        text = self.vault.open(approval.sealed_result, aad(approval.org, approval.id, "result"))
        found: dict[str, Any] = msgspec.json.decode(text)
        return found

    async def wait(self, org: str, approval_id: str, seconds: float) -> Approval:
        """The approval once it is final (a check's: once it is decided), or as it stands after so many seconds.
        NotFound, StoreError."""
        event = asyncio.Event()
        self._waiting.setdefault(approval_id, set()).add(event)
        deadline = time.monotonic() + seconds
        try:
            while True:
                event.clear()
                approval = await self.get(org, approval_id)
                left = deadline - time.monotonic()
                if approval.state in FINAL or left <= 0 or (approval.kind == "check" and approval.state == "approved"):
                    return approval
                try:
                    async with asyncio.timeout(min(left, LOOK_SECONDS)):
                        await event.wait()
                except TimeoutError:
                    continue
        finally:
            waiting = self._waiting.get(approval_id, set())
            waiting.discard(event)
            if not waiting:
                self._waiting.pop(approval_id, None)

    # -- deciding ----------------------------------------------------------------------------------------------------
    async def decide(
        self, org: str, approval_id: str, decider: Decider, deed: Deed, version: int | None = None
    ) -> Approval:
        """Do what somebody decided. NotFound, Forbidden, Decided (409), Stale, ValidationFailed, Conflict, StoreError.

        The decision counts once it is stored; what follows from it (the execution) goes on in the background, here or
        in any other worker.
        """
        for attempt in range(ATTEMPTS):
            approval = await self.get(org, approval_id)
            if version is not None and approval.version != version:
                raise Stale
            now = self.now()
            check_open(approval, now)
            await self._check_may(approval, decider)
            if deed.action == "delegate":
                await self._check_delegate(org, deed)
            if deed.action in {"approve", "edit"}:
                check_digest(approval, deed)
            changes = self._edit(approval, deed) if deed.action == "edit" else ()
            apply(approval, deed, decider, now, changes=changes)
            if approval.state == "rejected":
                approval.due_at = now + self.settings.replay * 1000
            event = "decided" if approval.state != "pending" else "escalated" if deed.action == "delegate" else ""
            try:
                stored = await self.commit(approval, event)
            except Stale:
                if attempt + 1 == ATTEMPTS:
                    raise
                continue
            if stored.state == "approved" and stored.kind != "check":
                self.executor.kick(stored.org, stored.id)
            return stored
        raise Stale

    async def _check_may(self, approval: Approval, decider: Decider) -> None:
        requester = await root_of(self.store, approval.org, approval.key) if approval.key else ""
        refusal = may_decide(approval, decider, requester)
        if refusal:
            raise Forbidden(refusal, stage=approval.stage + 1, role=stage_of(approval).role)

    async def check_grant(self, org: str, agent_id: str, tool: Tool, decider: Decider) -> None:
        """Only who could approve such a call alone may grant it ahead. Forbidden, NotFound for the agent."""
        agent: Agent | None = await self.store.get(AGENTS, org, agent_id)
        if agent is None:
            raise NotFound("There is no such agent.")
        terms = terms_of(await self.book.policy_for(org, agent.id, agent.name, tool))
        if terms.approvals > 1:
            raise Forbidden(f"Such calls need {terms.approvals} approvals each, so that nobody can grant them ahead.")
        if not decider.may(terms.stages[0]):
            raise Forbidden(f"Such calls are for the role {terms.stages[0].role} or the named approvers to decide.")
        if terms.separation_of_duties:
            raise Forbidden("Separation of duties: such calls are decided about one by one.")

    async def _check_delegate(self, org: str, deed: Deed) -> None:
        entity = USERS if deed.to.startswith("usr_") else KEYS
        record = await self.store.get(entity, org, deed.to) if deed.to else None
        if record is None or (isinstance(record, ApiKey) and (record.agent_id or record.revoked_at)):
            raise ValidationFailed([("/to", "unknown", "There is no such person or key to delegate to.")])

    def _edit(self, approval: Approval, deed: Deed) -> Any:
        """Put the edited form into the approval; the differences to what it was."""
        if approval.kind not in {"tool", "prompt"}:
            raise ValidationFailed([("/action", "unavailable", "Only calls that the gateway makes can be edited.")])
        if isinstance(deed.arguments, msgspec.UnsetType):
            raise ValidationFailed([("/arguments", "required", "Send all arguments anew, edited.")])
        old = self.form(approval)
        data = write(msgspec.structs.replace(old, arguments=deed.arguments))
        found = differences(old.arguments, deed.arguments)
        if not found:
            raise ValidationFailed([("/arguments", "unchanged", "These are the arguments as they are: approve them.")])
        if not approval.sealed_asked:
            asked = write(old)
            approval.sealed_asked = seal(self.vault, asked, approval.org, approval.id, "sealed_asked")
        approval.sealed = seal(self.vault, data, approval.org, approval.id, "sealed")
        approval.digest = digest_of(data)
        return recorded(found)

    async def cancel(self, org: str, approval_id: str, agent: str) -> Approval:
        """The agent takes its call back, while nobody has decided. NotFound for another agent's, Decided."""
        for _ in range(ATTEMPTS):
            approval = await self.get(org, approval_id)
            if approval.agent != agent:
                raise NotFound("There is no such approval.")
            check_open(approval, self.now())
            close(approval, "cancelled", self.now(), 0)
            try:
                return await self.commit(approval, "decided")
            except Stale:
                continue
        raise Stale

    async def take(self, approval: Approval) -> bool:
        """Use up the approval of a call that the agent runs itself: True for one caller only."""
        if approval.state != "approved" or approval.kind != "check":
            return False
        approval.outcome = "released"
        close(approval, "executed", self.now(), 0)
        approval.twin = ""
        try:
            await self.commit(approval, "finished")
        except Stale:
            return False
        return True

    # -- storing -----------------------------------------------------------------------------------------------------
    async def commit(self, approval: Approval, event: str = "", *, insert: bool = False) -> Approval:
        """Store an approval over the version it carries, together with what people are told. Stale, Conflict."""
        approval.updated_at = self.now()
        messages = []
        if event:
            channels = await self.book.channels(approval.org)
            messages = outbox(approval, channels, event, approval.updated_at, self.settings.public_url)
        write_ = Insert(APPROVALS, approval) if insert else Replace(APPROVALS, approval)
        stored: Approval = (await self.store.commit(write_, *messages))[0]
        for waiter in self._waiting.get(approval.id, ()):
            waiter.set()
        return stored
