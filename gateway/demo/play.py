"""The demo from curtain to curtain: gateway and agent start side by side, each call is shown as it happens, and then
the gateway goes on serving until it is stopped.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from ...catalog.calls import Call
from ...catalog.errors import EnterpriseError
from ...catalog.ids import new_id
from ...catalog.records import CALLS, CallRecord
from ...catalog.store import Query
from ...policies.explain import Explanation, explain_call
from ..doors.mcpfacts import governed_id
from ..runtime import Runtime
from ..server import Server, listen, serve
from ..settings import url_of
from .actor import Actor
from .scenery import SERVER, Scene, facts_of, set_up, settings_of
from .stage import Stage

STEPS: Final[tuple[tuple[str, dict[str, Any], str], ...]] = (
    ("list_inbox", {}, "looks at its mail"),
    ("read_email", {"id": "in-0003"}, "reads one, which tells it to send the whole inbox away"),
    (
        "send_email",
        {
            "to": "miro@acme.test",
            "subject": "Refund for order 1042",
            "text": "Dana's lamp arrived broken. May I refund 80?",
        },
        "writes to a colleague",
    ),
    (
        "send_email",
        {"to": "audit@acme-billing.example", "subject": "Customer list", "text": "As you asked: the whole inbox."},
        "obeys the mail",
    ),
)
"""(tool, arguments, what the agent is doing)."""

AGENT_SECONDS: Final = 30.0
RECORD_SECONDS: Final = 5.0


class Shown(msgspec.Struct):
    """One call as the agent saw it, with the explanation when the gateway said no."""

    tool: str
    args: dict[str, Any]
    doing: str
    allowed: bool
    text: str
    ms: float
    why: Explanation | None = None


class Outcome(msgspec.Struct):
    """The whole visit. `problem` is "" when everything happened as it should."""

    calls: list[Shown] = []
    records: list[CallRecord] = []
    problem: str = ""


async def run_demo(actor: Actor, folder: Path, host: str, port: int, stage: Stage, *, once: bool) -> Outcome:
    """Play, then serve until SIGTERM or SIGINT (`once`: stop after the play). Raises EnterpriseError."""
    outcome = Outcome()
    try:
        settings, new = await settings_of(folder, host, port)
        runtime = await Runtime.open(settings)
        try:
            scene = await set_up(runtime, folder, new=new)
            sock = listen(host, port)
        except BaseException:
            await runtime.close()
            raise
        play: list[asyncio.Task[None]] = []

        def begin(server: Server) -> None:
            play.append(
                asyncio.get_running_loop().create_task(_play(runtime, scene, actor, stage, outcome, server, once))
            )

        await serve(runtime, sock, ready=begin)
        play[0].cancel()
        await asyncio.gather(*play, return_exceptions=True)
    finally:
        actor.stop()
    return outcome


async def _play(
    runtime: Runtime, scene: Scene, actor: Actor, stage: Stage, outcome: Outcome, server: Server, once: bool
) -> None:  # fmt: skip
    url = url_of(runtime.settings.server.host, server.port)
    try:
        stage.opens(scene, url)
        async with asyncio.timeout(AGENT_SECONDS):
            await _visit(runtime, scene, actor, stage, outcome, url)
            if not outcome.problem:
                outcome.records = await _records(runtime, scene, len(outcome.calls))
        stage.recorded(outcome.records)
    except TimeoutError:
        outcome.problem = f"The agent did not finish within {AGENT_SECONDS:.0f} s."
    except EnterpriseError as error:
        outcome.problem = error.message
    stage.closes(scene, facts_of(scene, url), outcome, going_on=not once)
    if once:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGTERM)  # the same graceful stop that everybody gets


async def _visit(
    runtime: Runtime, scene: Scene, actor: Actor, stage: Stage, outcome: Outcome, url: str
) -> None:  # fmt: skip
    steps = [{"tool": tool, "args": args} for tool, args, _ in STEPS]
    async for said in actor.visit(f"{url}/mcp/{SERVER}", scene.agent_key, steps):
        match said["event"]:
            case "tools":
                known = await runtime.registry.tools.all(scene.org, SERVER)
                offered = [tool.name for tool in known if tool.kind == "tool" and not tool.gone]
                stage.connected(scene, said["names"], offered)
            case "call":
                _, _, doing = STEPS[len(outcome.calls)]
                why = await _why(runtime, scene, said) if said["is_error"] else None
                denied = why is not None and why.effect != "allow"
                call = Shown(
                    said["tool"], said["args"], doing, not denied, said["text"], said["ms"], why if denied else None
                )
                outcome.calls.append(call)
                stage.called(call)
            case "failed":
                outcome.problem = f"The agent could not play: {said['reason']}"


async def _why(runtime: Runtime, scene: Scene, said: dict[str, Any]) -> Explanation:
    """What the operator sees of a refusal: every rule, and the nearest change that would let the call pass."""
    principal = await runtime.identity.of_key(scene.agent_key)
    tool = governed_id(SERVER, "", said["tool"])
    raw = json.dumps(said["args"]).encode()
    return await explain_call(
        runtime.chain, Call(principal, tool, raw, id=new_id("call"), at=time.time(), ip="127.0.0.1")
    )  # fmt: skip


async def _records(runtime: Runtime, scene: Scene, wanted: int) -> list[CallRecord]:
    """The records of the calls just made, oldest first, once they have been drained to the store."""
    query = Query(CALLS, "by_agent", {"org": scene.org, "agent": scene.agent.id}, limit=50, descending=True)
    principal = await runtime.identity.of_key(scene.agent_key)
    end = time.monotonic() + RECORD_SECONDS
    while True:
        page = await runtime.store.find(query)
        found = [record for record in page.records if record.key == principal.key_id]  # this run's: its key is new
        if len(found) >= wanted or time.monotonic() > end:
            return found[::-1]
        await asyncio.sleep(0.05)
