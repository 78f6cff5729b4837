"""Starting a process, and hearing that it ended: what the event loops do differently, or not well enough.

uvloop passes every inheritable file of the gateway on to its children and runs Python between fork and exec, and
asyncio waits for each child in a thread. `subprocess.Popen` closes all files and needs no Python in the child; a pidfd
tells of the end without a thread (Linux; elsewhere a thread waits).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable

from ...catalog import errors


def spawn(
    argv: tuple[str, ...], *, cwd: str | None, env: dict[str, str], output: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own, with pipes and no other file. Blocks for about 2 ms: call it in a thread.

    Raises UpstreamRefused when the system will not start it.
    """
    try:
        return subprocess.Popen(  # noqa: S603 - an argument list, no shell; what is in it an administrator configured
            argv, cwd=cwd, env=env, start_new_session=True, close_fds=True, bufsize=0,
            stdin=subprocess.PIPE, stdout=output, stderr=output,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise errors.UpstreamRefused(f"{argv[0]!r} cannot be started: {error}", command=argv[0]) from None


def on_exit(process: subprocess.Popen[bytes], then: Callable[[], None]) -> None:
    """Call `then` on the running loop, once, when `process` has ended and was waited for (`returncode` is set)."""
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        threading.Thread(target=_wait, args=(process, loop, then), daemon=True).start()
        return

    def ended() -> None:
        if process.poll() is None:
            return
        loop.remove_reader(pidfd)
        os.close(pidfd)
        then()

    loop.add_reader(pidfd, ended)


def _wait(process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> None:
    process.wait()
    if not loop.is_closed():
        loop.call_soon_threadsafe(then)
