"""One child process: started in a session of its own, read line by line, written with back-pressure, ended for certain.

Callbacks instead of streams: the end of the child is told by itself, while the end of a stream may never come (a
grandchild can hold the pipe), and what is read is split and bounded in one place.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from ...catalog import errors
from .lines import LineSplitter, OversizeError, StderrRing, is_message
from .spawning import on_exit, spawn

POLL: Final = 0.02
"""Seconds between two looks whether a group without its leader is empty: no event tells."""

LAST_WORDS: Final = 0.5
"""Seconds that the pipes of a dead child are read on when a grandchild holds them open."""

BURIAL: Final = 0.5
"""Seconds that killed grandchildren are waited for. Under an init that buries nobody they stay in it for ever."""

STDERR_SAYS: Final = "last line of stderr: "

WRITE_HIGH: Final = 256 * 1024


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one upstream's children. Seconds and bytes; the grace periods are the protocol's own order of ending.

    `max_line` bounds a message in either direction. `write_timeout`: how long a child may leave its stdin unread.
    """

    max_sessions: int = 100
    max_line: int = 10_000_000
    stderr_lines: int = 200
    stderr_size: int = 65_536
    stop_grace: float = 2.0
    kill_grace: float = 2.0
    write_timeout: float = 30.0
    healthy_after: float = 30.0
    backoff_base: float = 0.5
    backoff_cap: float = 60.0


class _Reader(asyncio.Protocol):
    """One of the child's outputs."""

    def __init__(self, take: Callable[[bytes], None], end: Callable[[], None]) -> None:
        self._take = take
        self._end = end
        self.transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._end()


class _Writer(asyncio.BaseProtocol):
    """The child's input. `writable` is set while it may be written, and when nobody will ever read again."""

    def __init__(self) -> None:
        self.writable = asyncio.Event()
        self.writable.set()
        self.transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one by conduct, not by class
        self.transport.set_write_buffer_limits(high=WRITE_HIGH)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.writable.set()


class Child:
    """A running child. `on_line` gets each message of its stdout; `on_end` is called once, with why it ended.

    Lines of stdout that are no JSON are counted in `noise` and kept with stderr. If `on_line` raises, the child is
    ended: a message that nobody took must not be passed over in silence.
    """

    def __init__(
        self, limits: Limits, stderr: StderrRing, on_line: Callable[[bytes], Any], on_end: Callable[[str], Any]
    ) -> None:
        self._limits = limits
        self._stderr = stderr
        self._on_line = on_line
        self._on_end = on_end
        self._splitter = LineSplitter(limits.max_line)
        self._process: subprocess.Popen[bytes] | None = None
        self._stdin = _Writer()
        self._outputs = (_Reader(self._hear, self._output_ended), _Reader(stderr.feed, self._output_ended))
        self._open_outputs = len(self._outputs)
        self._exited = asyncio.Event()
        self._flushed = asyncio.Event()
        self._deaf = False
        self._fault = ""
        self._stopping = False
        self._ending: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()
        self.pid = 0
        self.noise = 0
        self.messages = 0

    async def start(self, argv: tuple[str, ...], *, cwd: str | None, env: dict[str, str]) -> None:
        """Raises UpstreamRefused when the system will not start it. Not to be cancelled: let it finish, then `stop`."""
        process = self._process = await asyncio.to_thread(spawn, argv, cwd=cwd, env=env)
        self.pid = process.pid
        loop = asyncio.get_running_loop()
        on_exit(process, self._exit)
        await loop.connect_write_pipe(lambda: self._stdin, process.stdin)
        await loop.connect_read_pipe(lambda: self._outputs[0], process.stdout)
        await loop.connect_read_pipe(lambda: self._outputs[1], process.stderr)

    # -- what the loop tells -----------------------------------------------------------------------------------------
    def _hear(self, data: bytes) -> None:
        if self._deaf:
            return
        try:
            lines = self._splitter.feed(data)
        except OversizeError:
            self.kill(f"it wrote a line of more than {self._limits.max_line} bytes")
            return
        for line in lines:
            if not self._deaf:
                self._take(line)

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        if not is_message(line):
            self.noise += 1
            self._stderr.add(b"(stdout) " + line[:1000])
            return
        self.messages += 1
        try:
            self._on_line(line)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever the receiver's fault, the session ends
            self.kill(f"its message could not be taken ({type(error).__name__}: {error})")

    def _output_ended(self) -> None:
        self._open_outputs -= 1
        if not self._open_outputs:
            self._flushed.set()

    def _exit(self) -> None:
        self._exited.set()
        self._stdin.writable.set()  # those who wait shall see that it is over
        self._ending = asyncio.get_running_loop().create_task(self._end(), name=f"end of process {self.pid}")

    # -- writing -----------------------------------------------------------------------------------------------------
    async def write(self, line: bytes) -> None:
        """Write a whole line; return when the child reads on. Not atomic with other writers' order, always whole.

        Raises UpstreamRefused (UpstreamBusy when the child has left its stdin unread for `write_timeout`): nothing
        was written. UpstreamBroken, UpstreamTimeout: the line may have been read.
        """
        await self._drain(errors.UpstreamBusy)
        pipe = self._input()
        if pipe is None:
            raise errors.UpstreamRefused("The server's process no longer reads.")
        pipe.write(line)
        if not self._stdin.writable.is_set():
            await self._drain(errors.UpstreamTimeout)
            if self._input() is None:
                raise errors.UpstreamBroken("The server's process ended while the message was being written.")

    async def _drain(self, late: type[errors.UpstreamError]) -> None:
        if self._stdin.writable.is_set():
            return
        wait = self._limits.write_timeout
        try:
            async with asyncio.timeout(wait):
                await self._stdin.writable.wait()
        except TimeoutError:
            raise late(f"The server's process has not read its input for {wait:g} s.") from None

    def _input(self) -> asyncio.WriteTransport | None:
        pipe = self._stdin.transport
        if pipe is None or pipe.is_closing() or self._exited.is_set() or self._stopping:
            return None
        return pipe

    # -- ending ------------------------------------------------------------------------------------------------------
    def kill(self, why: str) -> None:
        """At once, because of what it did."""
        self._deaf = True
        self._fault = self._fault or why
        self._signal(signal.SIGKILL)

    async def stop(self) -> None:
        """The protocol's order: close stdin, wait, SIGTERM, wait, SIGKILL. Returns when the whole group is gone."""
        self._deaf = True
        self._stopping = True
        self._stdin.writable.set()
        if self._stdin.transport is not None:
            self._stdin.transport.close()
        if not await self._exits_within(self._limits.stop_grace):
            self._signal(signal.SIGTERM)
            if not await self._exits_within(self._limits.kill_grace):
                self._signal(signal.SIGKILL)
        await self.gone.wait()

    async def _exits_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._exited.wait()
        except TimeoutError:
            return False
        return True

    def _signal(self, number: int) -> None:
        if not self._exited.is_set():
            _signal_group(self.pid, number)

    async def _end(self) -> None:
        """The leader is dead: end what it left behind, hear its last words, say so."""
        rest = asyncio.get_running_loop().create_task(self._clear_group(), name=f"end of group {self.pid}")
        try:
            async with asyncio.timeout(LAST_WORDS):
                await self._flushed.wait()
        except TimeoutError:
            pass  # a grandchild holds the pipes; what it says from here on is not the server's word
        try:
            self._hear_last()
            self._on_end(self.reason())
        finally:
            await rest
            self._close_pipes()
            self.gone.set()

    def _close_pipes(self) -> None:
        if self._stdin.transport is not None:
            self._stdin.transport.abort()  # what was not read never will be
        for output in self._outputs:
            if output.transport is not None:
                output.transport.close()

    def _hear_last(self) -> None:
        """A last message without a line end counts, if it is whole; half of one is no JSON."""
        rest = self._splitter.end()
        if rest and not self._deaf:
            self._take(rest)
        self._deaf = True
        self._stderr.end()

    async def _clear_group(self) -> None:
        """End what the leader left in its group.

        The number of a group cannot be given to another as long as one member lives, so the group is looked at in
        short steps and never signalled again once it was seen empty.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._limits.kill_grace
        number: int = signal.SIGTERM
        while _signal_group(self.pid, number) and clock() < deadline + BURIAL:
            number = signal.SIGKILL if clock() >= deadline else 0
            await asyncio.sleep(POLL)

    @property
    def alive(self) -> bool:
        return not self._exited.is_set()

    def reason(self) -> str:
        """Why it ended: what it did, its exit, and its last line of stderr (see `without_stderr`)."""
        code = self._process.returncode if self._process is not None else None
        if self._stopping and not self._fault:
            return "closed"
        parts = [self._fault] if self._fault else []
        parts.append(describe_exit(code))
        last = self._stderr.last()
        if last:
            parts.append(f"{STDERR_SAYS}{last[:500]}")
        return "; ".join(parts)


def _signal_group(group: int, number: int) -> bool:
    """False when there is no such group. 0 and 1 are never meant: they are our own group, and everybody."""
    if group <= 1:
        return False
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # every member runs as somebody else (setuid): it is out of our hands
        return False
    return True


def without_stderr(reason: str) -> str:
    """A reason as agents may see it: stderr can quote paths and secrets of the machine."""
    return reason.partition(f"; {STDERR_SAYS}")[0]


def describe_exit(code: int | None) -> str:
    """An exit status in words: `exit code 3`, `killed by SIGSEGV`."""
    if code is None:
        return "its end was not seen"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
