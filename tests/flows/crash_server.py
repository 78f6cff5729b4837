"""A gateway in a process of its own that a test may kill: `crash_server.py SETTINGS` (JSON). Prints its port when ready."""

from __future__ import annotations

import asyncio
import sys

import msgspec
import uvloop

from agenticmail_enterprise.gateway.logs import configure
from agenticmail_enterprise.gateway.runtime import Runtime
from agenticmail_enterprise.gateway.server import listen, serve
from agenticmail_enterprise.gateway.settings import Settings


async def main(settings: Settings) -> None:
    configure(settings.log)
    runtime = await Runtime.open(settings)
    await serve(runtime, listen("127.0.0.1", 0), ready=lambda server: print(server.port, flush=True))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(msgspec.json.decode(sys.argv[1], type=Settings)))
