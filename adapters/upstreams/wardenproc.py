"""The warden's program: ends the process groups it was told of when the pipe from the gateway closes.

Run by path with `python -I -S`, so it imports nothing of ours. It reads lines from stdin, `+GROUP` and `-GROUP`; the
end of stdin means that the gateway is gone, in whatever way. Then every group still on the list gets SIGTERM, and
two seconds later SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable

GRACE = 2.0
POLL = 0.05


def read_groups(lines: Iterable[bytes]) -> set[int]:
    """What is on the list when the lines end. A line that cannot be read changes nothing."""
    groups: set[int] = set()
    for line in lines:
        sign, number = line[:1], line[1:].strip()
        if not number.isdigit() or int(number) <= 1:
            continue
        if sign == b"+":
            groups.add(int(number))
        elif sign == b"-":
            groups.discard(int(number))
    return groups


def signal_all(groups: set[int], number: int) -> set[int]:
    """Send `number` to every group; those that are still there."""
    there = set()
    for group in groups:
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            continue
        except PermissionError:  # a member runs as somebody else; the others have the signal
            continue
        there.add(group)
    return there


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends when the gateway does, not before
        signal.signal(ignored, signal.SIG_IGN)
    groups = signal_all(read_groups(sys.stdin.buffer), signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while groups and time.monotonic() < deadline:
        time.sleep(POLL)
        groups = signal_all(groups, 0)
    signal_all(groups, signal.SIGKILL)


if __name__ == "__main__":
    main()
