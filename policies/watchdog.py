"""What breaks a stranger's guard that hangs. The gateway's own guards run without it.

A guard runs on the event loop's thread, so while it hangs nothing else there does, and no timer of the loop can help. A
second thread looks at a number that each guarded call sets on entry and clears on leaving; a call seen running for the
whole timeout is condemned, and an exception is raised inside it:

* on the main thread by a signal, whose Python handler runs between two bytecodes of the interrupted code. This also
  ends `time.sleep` and other system calls. The handler looks at the interrupted stack and raises only below
  `_inside`, so the exception starts within the guard and ends in the `except` around it; it cannot come up anywhere
  else.
* on any other thread by CPython's asynchronous exception, which takes effect when the guard next runs a bytecode (a
  blocking call is sat out). A handshake makes sure that one sent late still comes up before the call leaves.

A guard that hung once is tripped: for `cooldown` seconds its calls are denied at once. Limits: C code that neither
checks for signals nor releases the interpreter (a long `re` match, `sum(range(10**12))`) is not interrupted by
anything.
"""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

Function = Callable[[Any], Any]

INTERRUPT: Final = signal.SIGRTMIN + 5 if sys.platform == "linux" else signal.SIGUSR2
TICKS: Final = 4
"""Looks per timeout: a hang is seen after 1 to 1 + 2/TICKS timeouts."""

FLUSH: Final = 8
"""Backward jumps, at the first of which CPython raises a pending asynchronous exception."""


class GuardTimeout(BaseException):
    """The guard did not answer in time. Not an Exception, so that its own `except Exception` does not catch it."""


class GuardTripped(Exception):
    """The guard hung a short while ago and is not asked until its rest is over."""


FAULTS: Final = (Exception, GuardTimeout, SystemExit, GeneratorExit, asyncio.CancelledError)
"""What counts as a plugin's fault. All but KeyboardInterrupt: Ctrl-C may come while a guard runs."""


def _inside(function: Function, argument: Any) -> Any:
    return function(argument)


_INSIDE: Final = _inside.__code__
_raise_in: Final = ctypes.pythonapi.PyThreadState_SetAsyncExc


class Ward:
    """One plugin under watch: whether it is tripped, and since when it may be asked again."""

    __slots__ = ("name", "rests_until", "trips")

    def __init__(self, name: str) -> None:
        self.name = name
        self.rests_until = 0.0
        self.trips = 0


class Watchdog:
    """One per process. `start` binds it to the calling thread, which is the only one that may run guarded functions."""

    def __init__(self, timeout: float, cooldown: float = 30.0) -> None:
        """Both in seconds. Wall time, not CPU time: a guard that waits hangs as well."""
        self.timeout = timeout
        self.cooldown = cooldown
        self.running = 0
        self._serial = 0
        self._condemned = 0
        self._sent = 0
        self._target = 0
        self._by_signal = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch. Call on the thread that runs the guards."""
        if self._thread is not None:
            return
        self._target = threading.get_ident()
        self._by_signal = threading.current_thread() is threading.main_thread()
        if self._by_signal:
            _watching.add(self)
            signal.signal(INTERRUPT, _on_signal)
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="guard-watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the watch; idempotent. Guarded functions still work, unwatched."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        _watching.discard(self)

    # -- the guarded call ------------------------------------------------------------------------------------------
    def guarded(self, ward: Ward, function: Function) -> Function:
        """`function` under watch. Raises what it raises, GuardTimeout when it hung, GuardTripped when it hung
        lately."""
        watched = self._run

        def run(argument: Any) -> Any:
            return watched(ward, function, argument)

        return run

    def run(self, ward: Ward, function: Callable[[], Any]) -> Any:
        """Call `function()` once under watch, for the rarer steps of a plugin's life (compiling, observing)."""
        return self._run(ward, lambda _: function(), None)

    def _run(self, ward: Ward, function: Function, argument: Any) -> Any:
        if ward.rests_until and time.monotonic() < ward.rests_until:
            raise GuardTripped(f"{ward.name} hung a short while ago and is not asked now")
        self._serial = serial = self._serial + 1
        try:
            try:
                self.running = serial
                return _inside(function, argument)
            finally:
                self.running = 0
                if self._condemned == serial:
                    self._settle(serial)
        except GuardTimeout:
            self.running = 0
            ward.trips += 1
            ward.rests_until = time.monotonic() + self.cooldown
            raise

    def _settle(self, serial: int) -> None:
        """The call leaves while it is being condemned. By signal: withdraw, the handler raises nowhere else anyway.
        By asynchronous exception: wait until the watcher has sent it or thought better of it, and let it come up
        here, where the caller's `except` is still around. Not by taking it back: CPython 3.11 then never clears the
        flag that makes every jump look for pending work, and a profiler set later spins on it for good."""
        if not self._by_signal:
            while self._condemned == serial and self._sent != serial:
                time.sleep(0)
            for _ in range(FLUSH):
                pass
        self._condemned = 0

    # -- the watching thread ---------------------------------------------------------------------------------------
    def _watch(self) -> None:
        seen, since = 0, 0.0
        while not self._stop.wait(self.timeout / TICKS):
            running, now = self.running, time.monotonic()
            if not running or running != seen:
                seen, since = running, now
            elif now - since >= self.timeout:
                self._condemn(running)

    def _condemn(self, serial: int) -> None:
        """Repeated every tick while the call still runs: a guard with a bare `except:` may swallow the first one."""
        self._sent = 0
        self._condemned = serial
        if self._by_signal:
            signal.pthread_kill(self._target, INTERRUPT)
        elif self.running == serial:  # after the announcement: whoever cleared `running` since has seen it
            _raise_in(ctypes.c_ulong(self._target), ctypes.py_object(GuardTimeout))
            self._sent = serial
        else:
            self._condemned = 0

    def interrupted(self, frame: FrameType | None) -> None:
        """The signal has come, on the main thread, in the middle of `frame`. Raises GuardTimeout if that is the
        guard."""
        condemned, self._condemned = self._condemned, 0
        if not condemned or condemned != self.running:
            return
        while frame is not None:
            if frame.f_code is _INSIDE:
                raise GuardTimeout("the guard did not answer in time")
            frame = frame.f_back


_watching: Final[set[Watchdog]] = set()
"""Those that watch the main thread. There is one signal for all of them, and its handler stays for good: its default
action would end the process, and one may still be on its way when a watchdog is closed."""


def _on_signal(number: int, frame: FrameType | None) -> None:
    for watchdog in tuple(_watching):
        watchdog.interrupted(frame)
