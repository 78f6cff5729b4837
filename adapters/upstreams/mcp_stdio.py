"""MCP servers as child processes: the port that a door speaks to when an upstream is a program.

    upstream = create("uvx", ["mcp-server-time"], "", {}, name="time")
    session = await upstream.open_session(on_message, on_close)
    await session.send(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    await session.close()
    await upstream.close()

What a session carries is JSON-RPC, one message at a time and as it is; MCP's own words are the door's business.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...catalog import errors
from .backoff import Backoff
from .childenv import check_arguments, child_environment, find_program, working_folder
from .lines import StderrRing, one_line
from .process import Child, Limits, without_stderr
from .warden import Warden, warden

Clock = Callable[[], float]


def create(
    command: str, args: Iterable[str], cwd: str, env: Mapping[str, str], *, name: str,
    on_stderr: Callable[[str], Any] | None = None, limits: Limits | None = None, clock: Clock = time.monotonic,
) -> StdioUpstream:  # fmt: skip
    """An upstream whose server is `command` with `args`. Nothing is started or looked up before the first session.

    `cwd` "" is the gateway's own folder; `env` is added to a short inherited list (`childenv.INHERITED`).
    `on_stderr` hears each line of any child's stderr.
    """
    return StdioUpstream(
        command, tuple(args), cwd, dict(env), name=name, on_stderr=on_stderr, limits=limits or Limits(), clock=clock
    )


class StdioUpstream:
    """One configured server. Each session is a child process of its own, `limits.max_sessions` of them at most."""

    def __init__(
        self, command: str, args: tuple[str, ...], cwd: str, env: dict[str, str], *, name: str,
        on_stderr: Callable[[str], Any] | None, limits: Limits, clock: Clock,
    ) -> None:  # fmt: skip
        self._command = command
        self._args = args
        self._cwd = cwd
        self._env = env
        self._clock = clock
        self._sessions: set[StdioSession] = set()
        self._opening = 0
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False
        self._warden: Warden | None = None
        self._acquiring = asyncio.Lock()
        self._stderr = StderrRing(limits.stderr_lines, limits.stderr_size, on_stderr)
        self._last_death = ""
        self.name = name
        self.limits = limits
        self.backoff = Backoff(
            base=limits.backoff_base, cap=limits.backoff_cap, healthy_after=limits.healthy_after, clock=clock
        )
        self.opened = 0
        self.deaths = 0
        self.faults = 0

    async def open_session(self, on_message: Callable[[bytes], Any], on_close: Callable[[str], Any]) -> StdioSession:
        """Start a child. `on_message` gets each JSON-RPC message it writes (no line end); `on_close` is called once,
        with the reason, when the session is over, however it ended (for a child that dies at once, that may be before
        this returns). The reason is for operators: it quotes stderr. Both run on the loop and must not block.

        Raises UpstreamRefused (closed; no such command, folder or right), UpstreamBusy (`max_sessions` are open),
        BreakerOpen (children died early; details: `retry_after` seconds). Nothing was sent in any of these cases.
        """
        self._admit()
        session = StdioSession(self, on_message, on_close, self._stderr)
        self._opening += 1
        launch = asyncio.get_running_loop().create_task(self._launch(session), name=f"start {self.name}")
        try:
            await asyncio.shield(launch)
        except asyncio.CancelledError:  # the caller left; a process that is half started is started first, then ended
            session.closing = True
            self._leaving = {task for task in self._leaving if not task.done()}
            self._leaving.add(asyncio.get_running_loop().create_task(self._abandon(launch, session)))
            raise
        if self._closed:  # while it started
            await session.close()
            raise errors.UpstreamRefused(f"The upstream {self.name!r} is closed.", upstream=self.name)
        self.opened += 1
        return session

    async def _launch(self, session: StdioSession) -> None:
        try:
            argv, folder, env = await asyncio.to_thread(self._plan)  # it looks at files
            await self._have_warden()
            await self._start(session, argv, folder, env)
        finally:
            self._opening -= 1

    async def _abandon(self, launch: asyncio.Task[None], session: StdioSession) -> None:
        await asyncio.wait([launch])
        if launch.cancelled() or launch.exception() is not None:
            return
        await session.close()

    def _admit(self) -> None:
        if self._closed:
            raise errors.UpstreamRefused(f"The upstream {self.name!r} is closed.", upstream=self.name)
        limit = self.limits.max_sessions
        if self.sessions >= limit:
            raise errors.UpstreamBusy(
                f"All {limit} processes of {self.name!r} are in use.", upstream=self.name, limit=limit
            )
        if self.backoff.failures:
            for session in self._sessions:
                if session.alive:
                    self.backoff.survived(session.started)
        self.backoff.enter()

    def _plan(self) -> tuple[tuple[str, ...], str | None, dict[str, str]]:
        """What to start, looked up anew each time: a command that is installed later is found without a restart."""
        folder = working_folder(self._cwd)
        env = child_environment(self._env, os.environ)
        check_arguments(self._args)
        program = find_program(self._command, folder=folder, path=env["PATH"])
        return (program, *self._args), folder, env

    async def _have_warden(self) -> None:
        async with self._acquiring:
            if self._warden is None:
                found = warden()
                await found.acquire()
                self._warden = found
                return
        await self._warden.ensure()

    async def _start(
        self, session: StdioSession, argv: tuple[str, ...], folder: str | None, env: dict[str, str]
    ) -> None:
        session.started = self._clock()
        try:
            await session.child.start(argv, cwd=folder, env=env)
        except errors.UpstreamError as error:
            self._last_death = error.message
            self.backoff.died(self._clock(), spoke=False)
            raise
        self._sessions.add(session)
        if self._warden is not None:
            self._warden.watch(session.child.pid)
        session.watch()

    def ended(self, session: StdioSession, reason: str) -> None:
        """A session's child is dead (the session says so). Deaths that nobody asked for count against new starts."""
        if session.closing:
            self.backoff.survived(session.started)
            return
        self.deaths += 1
        self._last_death = reason
        self.backoff.died(session.started, spoke=session.child.messages > 0)

    def gone(self, session: StdioSession) -> None:
        """Nothing is left of a session's processes: its place is free."""
        self._sessions.discard(session)
        if self._warden is not None:
            self._warden.forget(session.child.pid)

    @property
    def sessions(self) -> int:
        """Places taken: sessions that are open, starting, or not yet dead to the last grandchild."""
        return len(self._sessions) + self._opening

    @property
    def last_death(self) -> str:
        """Why the last child died that nobody had asked to, or "". For operators: it quotes the child's stderr."""
        return self._last_death

    def stderr_tail(self) -> list[str]:
        """The last lines that any child wrote to stderr, oldest first."""
        return self._stderr.tail()

    async def close(self) -> None:
        """End all sessions, at the same time, and start none any more. Bounded by the grace periods."""
        self._closed = True
        while self._sessions or self._opening:
            await asyncio.gather(*(session.close() for session in list(self._sessions)))
            await asyncio.sleep(0 if self._sessions else 0.01)
        async with self._acquiring:
            found, self._warden = self._warden, None
        if found is not None:
            await found.release()


class StdioSession:
    """One client's connection to a child of its own."""

    def __init__(
        self, upstream: StdioUpstream, on_message: Callable[[bytes], Any], on_close: Callable[[str], Any],
        shared: StderrRing,
    ) -> None:  # fmt: skip
        limits = upstream.limits
        self._upstream = upstream
        self._on_message = on_message
        self._on_close = on_close
        self._stderr = StderrRing(limits.stderr_lines, limits.stderr_size, shared.keep)
        self._watching: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self.child = Child(limits, self._stderr, self._heard, self._ended)
        self.started = 0.0
        self.closing = False
        self.reason = ""

    @property
    def alive(self) -> bool:
        """True while a message may be sent."""
        return self.child.alive and not self.closing

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def noise(self) -> int:
        """Lines of stdout that were no JSON-RPC and went to the tail of stderr."""
        return self.child.noise

    def stderr_tail(self) -> list[str]:
        """The last lines of this child's stderr, oldest first."""
        return self._stderr.tail()

    async def send(self, message: bytes) -> None:
        """Write one message: one JSON object, or array of them. Returns when the child reads on (back-pressure).

        Raises InvalidJson, BodyTooLarge; UpstreamRefused, UpstreamBusy: nothing was written; UpstreamBroken,
        UpstreamTimeout: it may have been read. A cancelled send either wrote all of the message or nothing.
        """
        line = one_line(message, self._upstream.limits.max_line)
        if not self.alive:
            raise errors.UpstreamRefused(f"The server's process has ended ({without_stderr(self.reason) or 'closed'}).")
        await self.child.write(line)

    async def close(self) -> None:
        """End the child in the protocol's order. Returns when nothing is left of its process group.

        Any number of callers may wait for it; one that is cancelled does not stop the ending.
        """
        self.closing = True
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self.child.stop(), name=f"stop {self.pid}")
        await asyncio.shield(self._stopping)

    def watch(self) -> None:
        """Free the place when nothing is left. Called once, when the child runs."""
        self._watching = asyncio.get_running_loop().create_task(self._until_gone(), name=f"watch {self.pid}")

    async def _until_gone(self) -> None:
        await self.child.gone.wait()
        self._upstream.gone(self)

    def _heard(self, message: bytes) -> None:
        if self.child.messages == 1:
            self._upstream.backoff.spoke()
        self._on_message(message)

    def _ended(self, reason: str) -> None:
        self.reason = reason
        self._upstream.ended(self, reason)
        try:
            self._on_close(reason)
        except Exception:  # noqa: BLE001 - counted: the ending of processes goes on whatever the receiver does
            self._upstream.faults += 1


__all__ = ["Limits", "StdioSession", "StdioUpstream", "create", "without_stderr"]
