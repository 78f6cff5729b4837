"""A stranger's guard that hangs: broken off, denied, tripped; and nothing else is ever interrupted in its place."""

import asyncio
import signal
import subprocess
import sys
import threading
import time

import pytest
import uvloop

from agenticmail_enterprise.policies.watchdog import INTERRUPT, GuardTimeout, GuardTripped, Ward, Watchdog

TIMEOUT = 0.25
EDGE = 0.005
"""A limit for calls that take about as long."""

AFTERWARDS = """
import sys, threading, time
from agenticmail_enterprise.policies.watchdog import GuardTimeout, Ward, Watchdog

def work():
    dog = Watchdog(0.005, cooldown=0.0)
    dog.start()
    for turn in range(150):
        until = time.monotonic() + 0.005 + turn % 9 * 0.0006
        def busy(call):
            while time.monotonic() < until:
                pass
        try:
            dog.guarded(Ward("w"), busy)(None)
        except GuardTimeout:
            pass
    dog.close()

thread = threading.Thread(target=work)
thread.start()
thread.join()

def function():
    return sum(number for number in range(10))

sys.setprofile(lambda frame, event, arg: None)
function()
sys.setprofile(None)
print("profiled")
"""


@pytest.fixture
def watchdog():
    made = Watchdog(TIMEOUT, cooldown=60.0)
    made.start()
    yield made
    made.close()


def spin(call):
    while True:
        pass


def sleep(call):
    time.sleep(60)


def swallow(call):
    """Catches everything a few times, as careless code does."""
    for _ in range(3):
        try:
            while True:
                pass
        except:  # noqa: E722
            pass
    return "done"


def swallow_exceptions(call):
    while True:
        try:
            spin(call)
        except Exception:
            pass


def recurse(call, depth=0):
    return recurse(call, depth + 1) if depth < 300 else spin(call)


@pytest.mark.parametrize("hang", [spin, sleep, swallow_exceptions, recurse, time.sleep])
def test_a_hang_on_the_main_thread_is_broken_off(watchdog, hang):
    with pytest.raises(GuardTimeout):
        watchdog.guarded(Ward("w"), hang)(60)


def test_one_that_swallows_the_interruption_is_interrupted_again(watchdog):
    assert watchdog.guarded(Ward("w"), swallow)(None) == "done"


@pytest.mark.parametrize("hang", [spin, swallow_exceptions, recurse])
def test_a_hang_on_another_thread_is_broken_off(hang):
    outcome = []

    def work():
        watchdog = Watchdog(TIMEOUT)
        watchdog.start()
        try:
            watchdog.guarded(Ward("w"), hang)(None)
        except GuardTimeout:
            outcome.append("broken off")
        finally:
            watchdog.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert outcome == ["broken off"]


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_the_loop_lives_on(runner):
    """Under both loops, with timers, sockets and sub-threads beside it: the guard is broken off and all else goes on."""

    async def story():
        watchdog = Watchdog(TIMEOUT, cooldown=0.0)
        watchdog.start()
        ticks = []

        async def tick():
            while True:
                await asyncio.sleep(0.005)
                ticks.append(1)

        beside = asyncio.create_task(tick())
        broken = 0
        for hang in (spin, sleep, spin):
            try:
                watchdog.guarded(Ward("w"), hang)(None)
            except GuardTimeout:
                broken += 1
            before = len(ticks)
            await asyncio.sleep(0.03)
            assert len(ticks) > before
            assert await asyncio.to_thread(lambda: 7) == 7
        beside.cancel()
        watchdog.close()
        return broken

    assert runner(story()) == 3


def test_a_tripped_guard_is_not_asked_again_until_it_has_rested(watchdog):
    ward, calls = Ward("w"), []

    def once(call):
        calls.append(call)
        if len(calls) == 1:
            spin(call)
        return "fine"

    guard = watchdog.guarded(ward, once)
    with pytest.raises(GuardTimeout):
        guard(1)
    with pytest.raises(GuardTripped):
        guard(2)
    assert watchdog.guarded(Ward("another"), lambda call: "fine")(3) == "fine"
    ward.rests_until = time.monotonic() - 1
    assert guard(4) == "fine"
    assert (calls, ward.trips) == ([1, 4], 1)


def test_what_a_guard_returns_and_raises_passes_through(watchdog):
    assert watchdog.guarded(Ward("w"), lambda call: call + 1)(1) == 2
    with pytest.raises(ZeroDivisionError):
        watchdog.guarded(Ward("w"), lambda call: 1 // 0)(1)
    assert watchdog.running == 0


class TestRaces:
    """Guards that end just when they are condemned. The interruption may hit them or not; it never hits anything else."""

    def edge(self, watchdog, rounds):
        """Calls that run for about as long as it takes to be condemned. Anything raised outside a guard fails the test."""
        hit = 0
        for turn in range(rounds):
            until = time.monotonic() + EDGE * (1.0 + turn % 7 * 0.1)

            def busy(call, until=until):
                while time.monotonic() < until:
                    pass

            try:
                watchdog.guarded(Ward("w"), busy)(None)
            except GuardTimeout:
                hit += 1
            for _ in range(200):  # bytecodes for a late interruption to come up in
                pass
        return hit

    def test_on_the_main_thread(self):
        watchdog = Watchdog(EDGE, cooldown=0.0)
        watchdog.start()
        try:
            hit = self.edge(watchdog, 60)
            assert watchdog.running == 0
        finally:
            watchdog.close()
        assert 0 <= hit <= 60

    def test_on_another_thread(self):
        outcome = []

        def work():
            watchdog = Watchdog(EDGE, cooldown=0.0)
            watchdog.start()
            try:
                outcome.append(self.edge(watchdog, 60))
                sum(range(10_000))
            except BaseException as error:
                outcome.append(error)
            finally:
                watchdog.close()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(30)
        assert isinstance(outcome[0], int), outcome
        assert len(outcome) == 1

    def test_the_interpreter_is_left_as_it_was(self):
        """In a process of its own, because what is looked for is an interpreter that spins: see `Watchdog._settle`."""
        done = subprocess.run(
            [sys.executable, "-c", AFTERWARDS], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout.strip() == "profiled", done.stderr

    def test_a_signal_outside_a_guard_does_nothing(self, watchdog):
        for condemned in (0, 1, 99):
            watchdog._condemned = condemned
            signal.raise_signal(INTERRUPT)
            assert watchdog._condemned == 0

    def test_a_signal_between_entry_and_guard_does_nothing(self, watchdog):
        """The call counts as running, but the interrupted code is not the guard's."""
        watchdog.running = watchdog._condemned = 7
        signal.raise_signal(INTERRUPT)
        watchdog.running = 0

    def test_a_signal_meant_for_an_earlier_call_spares_the_next(self, watchdog):
        def next_call(call):
            watchdog._condemned = watchdog.running - 1
            signal.raise_signal(INTERRUPT)
            return "spared"

        assert watchdog.guarded(Ward("w"), next_call)(None) == "spared"

    def test_one_watchdog_does_not_blind_another(self):
        first, second = Watchdog(TIMEOUT), Watchdog(TIMEOUT)
        first.start()
        second.start()
        first.close()
        with pytest.raises(GuardTimeout):
            second.guarded(Ward("w"), spin)(None)
        second.close()

    def test_a_late_signal_after_closing_does_not_end_the_process(self):
        watchdog = Watchdog(TIMEOUT)
        watchdog.start()
        watchdog.close()
        watchdog.close()
        signal.raise_signal(INTERRUPT)
        assert watchdog.guarded(Ward("w"), lambda call: 1)(None) == 1
