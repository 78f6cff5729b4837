"""`kill -9` at every step of an approved call's execution, against an upstream that counts: never twice, never lost, and
what the gateway says afterwards is what the upstream saw, or an honest `unknown`."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from pathlib import Path

import aiohttp
import msgspec
import pytest

from agenticmail_enterprise.catalog.approvals import APPROVALS, FINAL, Approval
from agenticmail_enterprise.catalog.profiles import ApprovalRule, Profile, ToolRule
from agenticmail_enterprise.catalog.store import Query
from agenticmail_enterprise.gateway.accounts import Accounts
from agenticmail_enterprise.gateway.keys import KeySpec
from agenticmail_enterprise.gateway.settings import ApprovalSettings, LogSettings
from agenticmail_enterprise.gateway.stores import open_store
from tests.flows.crash_kit import Mortal
from tests.flows.servers import Counting

SERVER = Path(__file__).with_name("approvals_server.py")
ASKS = Profile(name="asks", tools=ToolRule(allow=("mail__*",)), max_risk="critical", allow_unknown=True,
               approval=ApprovalRule(tools=("mail__send_mail",)))  # fmt: skip
SETTINGS = ApprovalSettings(hold_timeout=0.0, sweep=0.05, lease=3.0)
STEPS = {
    "approved": {("executed", 1)},
    "claimed": {("executed", 1)},
    "prepared": {("executed", 1)},
    "marked": {("unknown", 0)},
    "sent": {("executed", 1)},
    "stored": {("executed", 1)},
    "answering": {("unknown", 1)},
}
"""Step -> what the approval may say afterwards, and how often the upstream saw the call."""


class Doomed(Mortal):
    """A gateway that dies at a step."""

    fatal = "-"

    async def start(self) -> None:
        text = msgspec.json.encode(self.settings).decode()
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, str(SERVER), text, self.fatal, stdout=asyncio.subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 60)
        assert line.strip().isdigit(), self.log.read_text()[-2000:]
        self.port = int(line)

    async def died(self) -> None:
        assert self.process is not None
        await asyncio.wait_for(self.process.wait(), 60)

    async def owner(self) -> str:
        store = open_store(self.settings.database)
        await store.open()
        _, secret = await Accounts(store).mint(self.org, KeySpec(kind="program", scopes=("*",)), created_by="cli")
        await store.close()
        return secret

    async def approvals(self) -> list[Approval]:
        store = open_store(self.settings.database)
        await store.open()
        try:
            return (await store.find(Query(APPROVALS, "by_org", {"org": self.org}, limit=500))).records
        finally:
            await store.close()

    async def settled(self) -> list[Approval]:
        """Once every approval is final."""
        for _ in range(1200):
            found = await self.approvals()
            if found and all(one.state in FINAL for one in found):
                return found
            await asyncio.sleep(0.05)
        raise AssertionError([(one.state, one.phase, one.error) for one in await self.approvals()])


async def call(gateway: Doomed, key: str, number: int) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
               "params": {"name": "send_mail", "arguments": {"n": number}}}  # fmt: skip
    async with aiohttp.ClientSession() as http, http.post(
        f"{gateway.url}/mcp/mail", json=message, headers={"X-API-Key": key, "Accept": "application/json, text/event-stream"}
    ) as answer:  # fmt: skip
        await answer.read()


async def approve(gateway: Doomed, owner: str, approval_id: str) -> None:
    """Approve over HTTP; the answer may never come when the gateway dies of it."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http, http.put(
            f"{gateway.url}/api/engine/approvals/{approval_id}", json={"action": "approve"}, headers={"X-API-Key": owner}
        ) as answer:  # fmt: skip
            assert answer.status == 200, await answer.text()


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_a_step_it_ran_once_or_is_honestly_unknown(tmp_path: Path, step: str) -> None:
    async with Counting() as server:
        gateway = Doomed(tmp_path, approvals=SETTINGS, log=LogSettings(level="error"))
        key = await gateway.prepare(server.url, ASKS)
        owner = await gateway.owner()
        gateway.fatal = step
        if step == "answering":

            async def cut() -> None:
                await gateway.kill()

            server.before = cut
        async with gateway.running():
            await call(gateway, key, 1)
            (approval,) = await gateway.approvals()
            await approve(gateway, owner, approval.id)
            await gateway.died()
        server.before = None
        gateway.fatal = "-"
        async with gateway.running():
            (settled,) = await gateway.settled()
        seen = len(server.calls)
        assert seen <= 1, "an approved call ran twice"
        honest = STEPS[step] | {("unknown", 0), ("unknown", 1)}  # a slow machine may outlast the lease
        assert (settled.state, seen) in honest, settled.error


@pytest.mark.slow
async def test_fifty_random_deaths_send_nothing_twice_and_lose_nothing(tmp_path: Path) -> None:
    rng = random.Random(7)
    async with Counting() as server:
        gateway = Doomed(tmp_path, approvals=SETTINGS, log=LogSettings(level="error"))
        key = await gateway.prepare(server.url, ASKS)
        owner = await gateway.owner()
        total = 50
        async with gateway.running():
            for number in range(total):
                await call(gateway, key, number)
        pending = [one.id for one in await gateway.approvals()]
        assert len(pending) == total
        steps = [name for name in STEPS if name != "answering"]
        while pending:
            gateway.fatal = rng.choice(steps)
            async with gateway.running():
                while pending and gateway.process is not None and gateway.process.returncode is None:
                    await approve(gateway, owner, pending[-1])
                    fresh = {one.id for one in await gateway.approvals() if one.state == "pending"}
                    pending = [one for one in pending if one in fresh]
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(gateway.process.wait(), 0.5)
        gateway.fatal = "-"
        async with gateway.running():
            settled = await gateway.settled()
        counts: dict[int, int] = {}
        for one in server.calls:
            number = one["params"]["arguments"]["n"]
            counts[number] = counts.get(number, 0) + 1
        assert max(counts.values(), default=0) == 1, "something ran twice"
        states = [one.state for one in settled]
        assert len(states) == total
        assert set(states) <= {"executed", "unknown"}
        assert states.count("executed") <= len(counts) <= states.count("executed") + states.count("unknown")
