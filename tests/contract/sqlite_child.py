"""Child processes of the SQLite tests: `python -m ...tests.contract.sqlite_child JOB URL NUMBER`."""

from __future__ import annotations

import asyncio
import sys
from itertools import count as count_from

from agenticmail_enterprise.adapters.stores import sqlite
from agenticmail_enterprise.catalog.errors import LimitReached
from agenticmail_enterprise.catalog.store import Increment
from agenticmail_enterprise.tests.contract.suite import HEADS, LINES, MIGRATIONS, add, line, over, put

ROWS = 2000
"""Rows of one append: enough that a kill at a random moment meets one half done."""


async def count(url: str, times: int) -> None:
    """Add 1 `times` times; print how many of them were below the ceiling."""
    store = sqlite.create(url, migrations=MIGRATIONS)
    await store.open()
    await store.migrate()
    done = 0
    for _ in range(times):
        try:
            await store.commit(add("sum", ceiling=250))
        except LimitReached:
            continue
        done += 1
    await store.close()
    print(done, flush=True)


async def write(url: str, first: int) -> None:
    """Commit for ever, and print each number once its commit has returned."""
    store = sqlite.create(url, migrations=MIGRATIONS)
    await store.open()
    await store.migrate()
    await store.commit(Increment(HEADS, "acme", "calls", "seq", 0))
    head = await store.get(HEADS, "acme", "calls")
    print("ready", flush=True)
    for number in count_from(first):
        await store.commit(put(f"a{number}"), put(f"b{number}"), add("sum"))
        await store.append(LINES, [line(f"{number:06}-{n:04}", n) for n in range(ROWS)], over(head, HEADS, seq=number))
        head = await store.get(HEADS, "acme", "calls")
        print(number, flush=True)


if __name__ == "__main__":
    asyncio.run({"count": count, "write": write}[sys.argv[1]](sys.argv[2], int(sys.argv[3])))
