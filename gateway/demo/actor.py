"""The agent's process, seen from the gateway's. Imports next to nothing: it is started before all else, because the
agent's own imports take longer than everything that the gateway does until it serves.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any


class Actor:
    """`start` it early, `visit` once, `stop` it in any case."""

    def __init__(self) -> None:
        command = (sys.executable, "-m", f"{__package__}.agent")
        # A session of its own: Ctrl-C is for the gateway, which then stops its agent.
        self._process = subprocess.Popen(  # noqa: S603 - a module of ours, by the interpreter that runs us
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )

    async def visit(self, url: str, key: str, steps: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        """Send the agent to `url` with `steps` (`tool`, `args`); what it says happened."""
        import asyncio

        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: S101, PT018 - both are pipes
        try:
            stdin.write(json.dumps({"url": url, "key": key, "steps": steps}).encode() + b"\n")
            stdin.close()
        except BrokenPipeError:
            yield {"event": "failed", "reason": "its process did not start"}
            return
        while line := await asyncio.to_thread(stdout.readline):
            yield json.loads(line)
        if await asyncio.to_thread(self._process.wait) > 1:
            yield {"event": "failed", "reason": f"its process ended with exit code {self._process.returncode}"}

    def stop(self) -> None:
        """Also ends a `visit` that is under way."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                _close(pipe)


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        return  # what was still to be written has nobody to read it
