"""A gateway that kills itself: `approvals_server.py SETTINGS STEP`. At the STEP of an execution it sends itself SIGKILL;
with "-" it lives. Prints its port when ready."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import msgspec
import uvloop

from agenticmail_enterprise.gateway.logs import configure
from agenticmail_enterprise.gateway.runtime import Runtime
from agenticmail_enterprise.gateway.server import listen, serve
from agenticmail_enterprise.gateway.settings import Settings


async def main(settings: Settings, fatal: str) -> None:
    configure(settings.log)
    runtime = await Runtime.open(settings)

    def reached(step: str) -> None:
        if step == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    runtime.approvals.executor.checkpoint = reached
    await serve(runtime, listen("127.0.0.1", 0), ready=lambda server: print(server.port, flush=True))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(msgspec.json.decode(sys.argv[1], type=Settings), sys.argv[2]))
