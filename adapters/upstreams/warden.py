"""Our children end when the gateway is killed with -9, grandchildren too: a small process holds the list and a pipe.

Two other ways were weighed. `prctl(PR_SET_PDEATHSIG)` needs code between fork and exec (unsafe in a process with
threads) or a launcher in front of every child, is Linux only, and reaches no grandchild: `npx` and `uvx` run the
server as one. The end of stdin, which every child sees when the gateway dies, is enough for servers that follow the
protocol, and for no other. So: one more process, 20 ms to start, which nothing waits for.

A gateway that forks workers must fork before it opens sessions: a forked copy would keep the pipe open.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import weakref
from typing import Final

from .spawning import spawn

_PROGRAM: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "wardenproc.py")


class Warden:
    """One per event loop, shared by all upstreams that `acquire` it; it ends when the last one has released it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = asyncio.Lock()
        self._groups: set[int] = set()
        self._users = 0
        self.faults = 0

    async def acquire(self) -> None:
        """Raises UpstreamRefused when the process cannot be started: children that may be orphaned are not started."""
        async with self._starting:
            await self._ensure()
            self._users += 1

    async def ensure(self) -> None:
        """Start it again if somebody has killed it. Raises UpstreamRefused."""
        if self._pipe() is None:
            async with self._starting:
                await self._ensure()

    async def _ensure(self) -> None:
        if self._pipe() is not None:
            return
        await self._bury()
        argv = (sys.executable, "-I", "-S", _PROGRAM)
        self._process = await asyncio.to_thread(spawn, argv, cwd=os.sep, env={}, output=subprocess.DEVNULL)
        pipe = self._pipe()
        if pipe is not None:
            os.set_blocking(pipe, False)  # the loop never waits for it; a list is far smaller than a pipe
        for group in self._groups:
            self._tell(b"+", group)

    async def _bury(self) -> None:
        """Close the pipe, which ends it, and wait for that."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            await asyncio.to_thread(process.wait)

    @property
    def pid(self) -> int:
        """0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def _pipe(self) -> int | None:
        process = self._process
        if process is None or process.stdin is None or process.stdin.closed or process.poll() is not None:
            return None
        return process.stdin.fileno()

    def _tell(self, sign: bytes, group: int) -> None:
        pipe = self._pipe()
        try:
            if pipe is not None:
                os.write(pipe, b"%b%d\n" % (sign, group))
        except OSError:  # it was killed a moment ago: the next one gets the whole list
            self.faults += 1

    def watch(self, group: int) -> None:
        """`group` ends with the gateway from now on."""
        self._groups.add(group)
        self._tell(b"+", group)

    def forget(self, group: int) -> None:
        """`group` has ended: its number may soon be somebody else's."""
        self._groups.discard(group)
        self._tell(b"-", group)

    async def release(self) -> None:
        """One user less. With the last one the process ends, and is waited for."""
        async with self._starting:
            self._users -= 1
            if self._users <= 0:
                await self._bury()


_wardens: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Warden] = weakref.WeakKeyDictionary()


def warden() -> Warden:
    """The running loop's warden."""
    loop = asyncio.get_running_loop()
    found = _wardens.get(loop)
    if found is None:
        found = _wardens[loop] = Warden()
    return found
