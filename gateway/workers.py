"""Several workers on one port: a parent that only watches, and N children that each serve on their own.

* The parent opens no store, serves nothing and holds no secret; it forks, waits and restarts.
* Each child has its own socket with SO_REUSEPORT, its own event loop and its own runtime. The parent keeps the port
  reserved with a bound socket that never listens: a chosen or given port stays ours while children come and go.
* The first child starts alone: it migrates the store, and what is wrong with the settings is said once. The others
  follow when it is ready. A child that dies before all were ready for the first time ends everything; later it is
  started again, with a growing pause.
* SIGTERM and SIGINT are passed on, and the parent waits: a stop is as graceful as each child's. A second one, or a
  grace that has passed, kills. When the parent dies, the children notice (a pipe closes) and stop by themselves.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

import structlog

from ..catalog.errors import SettingsError

log = structlog.get_logger()

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
STEADY_SECONDS: Final = 30.0
"""A child that lived so long is restarted without a pause when it dies."""

KILL_MARGIN: Final = 5.0
"""Seconds beyond the children's own grace until they are killed."""

READY: Final = b"r"
OURS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
"""The signals that the parent acts on."""

FAILED_EXIT: Final = 70
"""Exit code of a child that broke (EX_SOFTWARE of sysexits.h)."""


def reserve(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen: holds the port for sockets of this user with SO_REUSEPORT.

    Raises SettingsError when somebody listens there already, another gateway of ours included: two of them would share
    the port without a word, and each would see half of the calls.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise SettingsError(f"server.host: {host!r} is not an address of this machine: {error.strerror}.") from error
    if port:
        _bound(family, kind, address, shared=False, host=host).close()
    return _bound(family, kind, address, shared=True, host=host)


def _bound(family: int, kind: int, address: tuple[object, ...], *, shared: bool, host: str) -> socket.socket:
    sock = socket.socket(family, kind)
    port = int(str(address[1]))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        taken = error.errno == errno.EADDRINUSE
        reason = "something else listens there already" if taken else str(error.strerror)
        raise SettingsError(
            f"Cannot serve on {host}:{port}: {reason}. Choose another port with --port.", port=port
        ) from error
    return sock


class Child:
    """One worker process, seen from the parent."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0
        self.started = 0.0
        self.pause = 0.0
        self.restart_at = 0.0
        self.ready = False
        self.channel = -1
        """The end of a pipe on which the child says that it is ready."""

    def down(self, now: float) -> None:
        """Note a death, and when to start again."""
        lived = now - self.started
        self.pause = 0.0 if lived >= STEADY_SECONDS else min(max(self.pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
        self.restart_at = now + self.pause
        self.pid = 0
        self.ready = False
        self.close()

    def close(self) -> None:
        if self.channel >= 0:
            os.close(self.channel)
            self.channel = -1


Serve = Callable[[int, Callable[[], None]], None]
"""`serve(number, ready)`: be worker `number`, call `ready` when serving, return after a graceful stop."""


class Supervisor:
    """Runs `count` children of `serve`. `on_ready` is called once, when all of them are ready for the first time."""

    def __init__(self, count: int, serve: Serve, grace: float, on_ready: Callable[[], None]) -> None:
        self._children = [Child(number) for number in range(count)]
        self._serve = serve
        self._grace = grace
        self._on_ready = on_ready
        self._announced = False
        self._stopping = False
        self._kill_at = 0.0
        self._failed = 0
        self._wake, self._waker = os.pipe()
        self._lifeline, self._life = os.pipe()
        self._signals: list[int] = []

    def run(self) -> int:
        """Until a signal, or until the start fails. The exit code: 0 after a stop that was asked for."""
        for end in (self._wake, self._waker):
            os.set_blocking(end, False)
        before = {number: signal.signal(number, self._note) for number in OURS}
        gc.freeze()  # what is here already is shared with the children for good: no collection shall touch it
        try:
            self._start(self._children[0])
            while any(child.pid for child in self._children) or not self._stopping:
                self._wait()
                self._reap()
                self._obey()
                self._tend()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for end in (self._wake, self._waker, self._lifeline, self._life):
                os.close(end)
            gc.unfreeze()
        return self._failed

    # -- events --------------------------------------------------------------------------------------------------
    def _note(self, number: int, frame: object) -> None:
        """A signal came: remember it and wake the loop. Nothing else is done in here."""
        if number != signal.SIGCHLD:
            self._signals.append(number)
        try:
            os.write(self._waker, b"!")
        except BlockingIOError:
            return  # the pipe is full of earlier wake-ups, which will do

    def _wait(self) -> None:
        now = time.monotonic()
        due = [child.restart_at for child in self._children if not child.pid and child.restart_at]
        if self._kill_at:
            due.append(self._kill_at)
        timeout = max(0.0, min(due) - now) if due else 5.0
        channels = {child.channel: child for child in self._children if child.channel >= 0}
        readable, _, _ = select.select([self._wake, *channels], [], [], timeout)
        for end in readable:
            data = os.read(end, 1024)
            child = channels.get(end)
            if child is not None:
                child.ready = child.ready or data == READY
                child.close()

    def _reap(self) -> None:
        for child in self._children:
            if not child.pid:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._buried(child, os.waitstatus_to_exitcode(status))

    def _buried(self, child: Child, code: int) -> None:
        child.down(time.monotonic())
        if self._stopping:
            return
        if not self._announced:
            self._failed = code if code > 0 else 1
            self._stop(signal.SIGTERM)
            return
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        log.error("worker_died", worker=child.number, how=how, restart_in=round(child.pause, 1))

    def _obey(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            self._stop(signal.SIGKILL if self._stopping else signal.SIGTERM)
            log.debug("stop_requested", signal=signal.Signals(number).name)

    def _stop(self, number: int) -> None:
        self._stopping = True
        self._kill_at = self._kill_at or time.monotonic() + self._grace + KILL_MARGIN
        for child in self._children:
            child.restart_at = 0.0
            if child.pid:
                os.kill(child.pid, number)

    def _tend(self) -> None:
        """Start what is due, announce, and kill what does not stop."""
        now = time.monotonic()
        if self._stopping:
            if self._kill_at and now >= self._kill_at:
                self._kill_at = now + KILL_MARGIN
                self._stop(signal.SIGKILL)
            return
        if not self._announced and self._children[0].ready:
            for child in self._children[1:]:
                if not child.pid:
                    self._start(child)
        if not self._announced and all(child.ready for child in self._children):
            self._announced = True
            self._on_ready()
        for child in self._children:
            if self._announced and not child.pid and now >= child.restart_at:
                self._start(child)

    # -- children ------------------------------------------------------------------------------------------------
    def _start(self, child: Child) -> None:
        heard, says = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal for the child must not meet the parent's handlers, which it has until it resets them: hold them back.
        signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
        pid = os.fork()
        if pid == 0:
            os.close(heard)
            self._be(child, says)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)
        os.close(says)
        child.pid, child.channel, child.started, child.restart_at = pid, heard, time.monotonic(), 0.0

    def _be(self, child: Child, says: int) -> None:
        """The child's life. Never returns."""
        code = FAILED_EXIT
        try:
            for number in OURS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)
            for end in (self._life, self._wake, self._waker):
                os.close(end)
            for other in self._children:
                other.close()
            _follow(self._lifeline)
            self._serve(child.number, lambda: _say_ready(says))
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException as error:  # whatever it is, it must not run the parent's code further up
            log.exception("worker_failed", worker=child.number, exc_info=error)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _say_ready(channel: int) -> None:
    os.write(channel, READY)
    os.close(channel)


def _follow(lifeline: int) -> None:
    """Stop when the parent is gone: its end of the pipe closes, whatever it died of."""
    import threading

    def watch() -> None:
        os.read(lifeline, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
