"""`/metrics` for all workers: each leaves a copy of its numbers in a file of its own; the one scraped reads them all.

Not prometheus-client's multiprocess mode: that puts a write into a mapped file, with a lock, on the path of every call
and every label, and leaves a file for each process that ever lived. A copy twice a second costs a tenth of a
millisecond, off the path of calls (docs/decisions/0008).

* The files of one start of the gateway lie in `data_dir/metrics/RUN`; the parent makes the folder and removes it.
* A worker that takes the place of one that died carries on its numbers, under the same file: nothing is lost that was
  copied, and nothing counts twice. What a killed worker counted since its last copy, half a second at most, is gone.
* What is true only of a living process (calls in flight, journal lag, breakers) is left out once it is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog

from .metrics import Metrics, Snapshot

COPY_SECONDS: Final = 0.5
FOLDER: Final = "metrics"

log = structlog.get_logger(__name__)
_decode = msgspec.json.Decoder(Snapshot).decode


def begin(data_dir: str | Path) -> Path:
    """The folder of a new start, for the parent of the workers; those of starts whose parent is dead are removed."""
    home = Path(data_dir) / FOLDER
    Path(data_dir).mkdir(parents=True, exist_ok=True, mode=0o700)
    home.mkdir(exist_ok=True, mode=0o700)
    for old in home.iterdir():
        if not old.name.isdecimal() or int(old.name) == os.getpid() or not alive(int(old.name)):
            shutil.rmtree(old, ignore_errors=True)
    folder = home / str(os.getpid())
    folder.mkdir(mode=0o700)
    return folder


def end(folder: Path) -> None:
    """Remove the folder of this start: all workers have stopped."""
    shutil.rmtree(folder, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Share:
    """One worker's part. `start` takes over what a predecessor left; `stop` leaves the last numbers."""

    def __init__(self, metrics: Metrics, folder: Path, worker: int) -> None:
        self._metrics = metrics
        self._folder = folder
        self._file = folder / f"{worker}.json"
        self._last = b""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        last = _read(self._file)
        if last is not None:
            self._metrics.carry_on(last)
        self._metrics.others = self.others
        await self.copy()
        self._task = asyncio.get_running_loop().create_task(self._copy_on(), name="metrics-share")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            await self.copy()

    async def _copy_on(self) -> None:
        while True:
            await asyncio.sleep(COPY_SECONDS)
            await self.copy()

    async def copy(self) -> None:
        """Leave the present numbers for the others, if they have changed. A fault is counted."""
        data = msgspec.json.encode(self._metrics.snapshot(os.getpid()))
        if data == self._last:
            return
        try:
            await asyncio.to_thread(self._write, data)
        except OSError as error:
            self._metrics.fault("metrics_share")
            log.debug("metrics_not_shared", reason=error.strerror)
        else:
            self._last = data

    def _write(self, data: bytes) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_bytes(data)
        fresh.replace(self._file)

    def others(self) -> Iterator[Snapshot]:
        """The numbers that the other workers left."""
        for file in sorted(self._folder.glob("*.json")):
            if file == self._file:
                continue
            found = _read(file)
            if found is not None:
                if not alive(found.pid):
                    found.gauges = {}
                yield found


def _read(file: Path) -> Snapshot | None:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return _decode(file.read_bytes())
    return None
