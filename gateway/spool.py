"""The spool: where a call is written down before it leaves. Files on the local disk, one folder a worker.

* **Segment**: a file of a fixed size, allocated before it is used (a full disk is an error at allocation and never a
  SIGBUS) and mapped into memory. Writing a frame is one copy into the mapping: no system call, and the kernel owns the
  page from then on, so that `kill -9` takes nothing that was written.
* **Frame**: `u32 length | u32 crc32 | payload`, payload = `u8 kind | u64 ticket | body`; length 0 ends a segment. The
  checksum starts from the segment's own random seed, which stands in its name: what an earlier use of the file left
  behind, and bytes that a caller made up to look like a frame, do not pass for one.
* **Position**: a place in the spool as one integer, `segment number * STRIDE + offset`.
* **Home**: a worker's folder, `<root>/<name>/`, with a lock that the living hold. A folder whose lock is free belongs
  to a process that is gone; `claim_orphans` hands it to one of the living.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import shutil
import struct
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from ..catalog.errors import JournalBroken, JournalFull
from ..catalog.ids import uuid7

INTENT: Final = 1
OUTCOME: Final = 2
COMPLETE: Final = 3
CARRIED: Final = 4
"""An intent written again, so that the segment where it stood first can go."""

STRIDE: Final = 1 << 32
HEAD: Final = struct.Struct("<II")
PREFIX: Final = struct.Struct("<BQ")
OVERHEAD: Final = HEAD.size + PREFIX.size
_END: Final = b"\0\0\0\0"
_BODY_MAX: Final = 64 * 1024
_CHUNK: Final = 256 * 1024
#: What a frame's first bytes look like: a length below 2^17, any checksum, a known kind, a ticket below 2^48.
_LOOKS_LIKE: Final = re.compile(rb"(?=..[\x00\x01]\x00....[\x01-\x04].{6}\x00\x00)", re.DOTALL)
_NAME: Final = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})\.seg")


def body_limit(segment_bytes: int) -> int:
    """The largest body of a frame in segments of this size: one never holds fewer than 7 frames."""
    return min(_BODY_MAX, segment_bytes // 8)


# -- reading -----------------------------------------------------------------------------------------------------
class Frame(NamedTuple):
    kind: int
    ticket: int
    body: bytes
    end: int
    """Offset in the segment just after the frame."""


class Damage(NamedTuple):
    """Bytes that are no frame. `torn`: nothing readable follows, as a killed process leaves it."""

    start: int
    end: int
    torn: bool


def read_frames(data: bytes, seed: int, start: int = 0) -> tuple[list[Frame], list[Damage]]:
    """The frames of a whole segment from an offset on. Never raises: what is damaged is passed over, to the next frame
    whose checksum holds."""
    frames: list[Frame] = []
    damages: list[Damage] = []
    at, size = start, len(data)
    while at + 4 <= size:
        frame = frame_at(data, seed, at)
        if frame is None:
            # Looked for behind a length of 0 too: a damaged length can be 0.
            found = _next_frame(data, seed, at + 1)
            if found < 0:
                if data[at : at + 4] != _END:
                    damages.append(Damage(at, size, torn=True))
                break
            damages.append(Damage(at, found, torn=False))
            at = found
            continue
        frames.append(frame)
        at = frame.end
    return frames, damages


def frame_at(data: bytes, seed: int, at: int) -> Frame | None:
    """The frame at an offset, or None when there is no whole and sound one."""
    if at + OVERHEAD > len(data):
        return None
    length, crc = HEAD.unpack_from(data, at)
    start, end = at + HEAD.size, at + HEAD.size + length
    if length < PREFIX.size or length > _BODY_MAX + PREFIX.size or end > len(data):
        return None
    payload = data[start:end]
    if zlib.crc32(payload, seed) != crc:
        return None
    kind, ticket = PREFIX.unpack_from(payload)
    return Frame(kind, ticket, payload[PREFIX.size :], end)


def _next_frame(data: bytes, seed: int, start: int) -> int:
    if not data[start:].rstrip(b"\0"):
        return -1
    for match in _LOOKS_LIKE.finditer(data, start):
        if frame_at(data, seed, match.start()) is not None:
            return match.start()
    return -1


# -- segments ----------------------------------------------------------------------------------------------------
class Segment:
    """One file. `number` orders the segments of a spool; `used` is the offset after the last frame once it is closed.

    OSError from `create` when the disk has no room or may not be written.
    """

    __slots__ = ("busy", "fd", "map", "named", "number", "path", "seed", "size", "used")

    def __init__(self, path: Path, number: int, seed: int, fd: int, size: int) -> None:
        self.path = path
        self.number = number
        self.seed = seed
        self.fd = fd
        self.size = size
        self.used = 0
        self.map: mmap.mmap | None = None
        #: Being synced by a thread: must stay open.
        self.busy = False
        #: Whether its name is on the disk. Without it a power cut would take the frames along.
        self.named = False

    @classmethod
    def create(cls, folder: Path, number: int, size: int) -> Segment:
        seed = int.from_bytes(os.urandom(4), "little")
        path = folder / f"{number:08x}-{seed:08x}.seg"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        segment = cls(path, number, seed, fd, size)
        try:
            allocate(fd, size)
            segment.map = mmap.mmap(fd, size)
        except OSError:
            segment.close()
            path.unlink()
            raise
        return segment

    @classmethod
    def open(cls, path: Path) -> Segment | None:
        """A segment that another process wrote, to be read; None when the name is none of ours."""
        match = _NAME.fullmatch(path.name)
        if match is None:
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(fd).st_size
        segment = cls(path, int(match[1], 16), int(match[2], 16), fd, size)
        segment.used = size
        return segment

    def reuse(self, number: int) -> None:
        """Make it the segment of another number: its pages are in memory already, a new file's would have to be faulted
        in one by one (0.4 us a frame)."""
        seed = int.from_bytes(os.urandom(4), "little")
        if self.map is None:
            self.map = mmap.mmap(self.fd, self.size)
        self.map[0:4] = _END
        path = self.path.with_name(f"{number:08x}-{seed:08x}.seg")
        self.path.rename(path)
        self.path, self.number, self.seed, self.used, self.named = path, number, seed, 0, False

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self.fd, count, offset)

    def read_all(self) -> bytes:
        parts, at = [], 0
        while part := os.pread(self.fd, 1 << 22, at):
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def unmap(self) -> None:
        if self.map is not None:
            self.map.close()
            self.map = None

    def close(self) -> None:
        self.unmap()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


def allocate(fd: int, size: int) -> None:
    """Reserve the file's blocks. OSError (ENOSPC, EFBIG) when there are not enough."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    zeros = bytes(1 << 20)
    for start in range(0, size, len(zeros)):
        os.pwrite(fd, zeros[: size - start], start)


def sync_file(segment: Segment) -> None:
    """Put what was written to a segment on the disk. OSError when the disk says that it could not."""
    if not segment.named:
        sync_folder(segment.path.parent)
        segment.named = True
    if sys.platform == "darwin":
        if segment.map is not None:
            segment.map.flush()
        fcntl.fcntl(segment.fd, fcntl.F_FULLFSYNC)
    else:
        # Linux writes the dirty pages of a shared mapping too; unlike mmap.flush this leaves other threads running.
        os.fdatasync(segment.fd)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# -- writing -----------------------------------------------------------------------------------------------------
class Spool:
    """What one worker writes. All of it belongs to the loop's thread, but `make`, which allocates and may run anywhere.

    `free`: bytes that can be written for certain without another segment. `closed`: full segments, oldest first, which
    stay until `retire`. `unsynced`: segments written to since they were last taken for a sync.
    """

    __slots__ = (
        "_map", "_next", "_pos", "_seed", "_size", "body_max", "closed", "current", "folder", "free",
        "segment_bytes", "spares", "unsynced",
    )  # fmt: skip

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        self.folder = folder
        self.segment_bytes = segment_bytes
        self.body_max = body_limit(segment_bytes)
        self.closed: deque[Segment] = deque()
        self.spares: deque[Segment] = deque()
        self._next = 1
        self.current = self.make(self.number())
        self.unsynced = [self.current]
        self.free = segment_bytes - len(_END)
        self._take(self.current)

    def _take(self, segment: Segment) -> None:
        if segment.map is None:
            raise JournalBroken("A spool segment is not mapped.")
        self._map, self._pos, self._seed, self._size = segment.map, 0, segment.seed, segment.size - len(_END)

    @property
    def written(self) -> int:
        """The position after the last frame."""
        return self.current.number * STRIDE + self._pos

    @property
    def held(self) -> int:
        """Bytes on the disk."""
        return (1 + len(self.spares) + len(self.closed)) * self.segment_bytes

    def append(self, kind: int, ticket: int, body: bytes) -> None:
        """Write one frame. JournalFull when neither this segment nor a spare has room."""
        payload = PREFIX.pack(kind, ticket) + body
        length = len(payload)
        start = self._pos
        end = start + 8 + length
        if end > self._size:
            self._rotate()
            start, end = 0, 8 + length
        # The zeros end the segment, whatever an earlier use of the file left there. The next frame overwrites them.
        self._map[start : end + 4] = HEAD.pack(length, zlib.crc32(payload, self._seed)) + payload + _END
        self._pos = end
        self.free -= length + 8

    def _rotate(self) -> None:
        if not self.spares:
            raise JournalFull
        full = self.current
        full.used = self._pos
        self.closed.append(full)
        if len(self.closed) > 2:
            # The backlog is on the disk, not in our resident memory.
            self.closed[-2].unmap()
        # A spare counts as one segment less the tail that a frame may not fit into.
        self.free += self.body_max + OVERHEAD - (self._size - self._pos)
        self.current = self.spares.popleft()
        self.unsynced.append(self.current)
        self._take(self.current)

    def number(self) -> int:
        self._next += 1
        return self._next - 1

    def make(self, number: int) -> Segment:
        """A new segment. OSError when the disk has no room."""
        return Segment.create(self.folder, number, self.segment_bytes)

    def add_spare(self, segment: Segment) -> None:
        self.spares.append(segment)
        self.free += segment.size - len(_END) - self.body_max - OVERHEAD

    def retire(self, *, reuse: bool) -> bool:
        """Let go of the oldest closed segment, as a spare when `reuse`. False while a thread is syncing it."""
        segment = self.closed[0]
        if segment.busy:
            return False
        self.closed.popleft()
        if segment in self.unsynced:
            self.unsynced.remove(segment)
        if not reuse:
            segment.remove()
            return True
        segment.reuse(self.number())
        self.add_spare(segment)
        return True

    def take_unsynced(self) -> list[Segment]:
        """The segments to sync now. The present one will be written to again and stays listed."""
        taken, self.unsynced = self.unsynced, [self.current]
        return taken

    def remaining(self) -> list[Segment]:
        return [*self.closed, self.current, *self.spares]

    def close(self) -> None:
        for segment in self.remaining():
            segment.close()


# -- homes -------------------------------------------------------------------------------------------------------
class Home:
    """A worker's folder and the lock on it. The kernel drops the lock when the process ends, however it ends.

    A forked child would share the lock: workers make their homes after they are forked.
    """

    __slots__ = ("_lock", "name", "path")

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.name = path.name
        self._lock = lock

    @classmethod
    def create(cls, root: Path) -> Home:
        """A new folder of this process. OSError when it cannot be made."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _census(root):
            path = root / f"{uuid7()}-{os.getpid()}"
            path.mkdir(mode=0o700)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return cls(path, lock)

    def segments(self) -> list[Segment]:
        """The segments there, oldest first. Files of other names are not touched."""
        found = [segment for path in self.path.iterdir() if (segment := Segment.open(path)) is not None]
        return sorted(found, key=lambda segment: segment.number)

    def set_aside(self, segment: Segment) -> Path:
        """Keep a damaged segment for people to look at, out of the way of `claim_orphans`."""
        folder = self.path.parent / "damaged"
        folder.mkdir(mode=0o700, exist_ok=True)
        kept = folder / f"{self.name}-{segment.path.name}"
        segment.path.rename(kept)
        segment.close()
        return kept

    def release(self) -> None:
        """Leave the folder to whoever claims it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def remove(self) -> None:
        """Remove the folder. Its segments must be gone, or be worth nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()


@contextmanager
def _census(root: Path) -> Iterator[None]:
    """Held while homes are made or claimed, so that nobody claims a folder between its making and its locking."""
    fd = os.open(root / "census.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def claim_orphans(root: Path) -> list[Home]:
    """The homes of processes that are gone, now locked by this one, oldest first. Each goes to one claimant only."""
    if not root.is_dir():
        return []
    with _census(root):
        folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name != "damaged")
        return [home for path in folders if (home := _claim(path)) is not None]


def _claim(path: Path) -> Home | None:
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        # Removed meanwhile, or another user's.
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last owner may have removed the folder between our two calls: then we hold the lock of nothing.
        if os.stat(path / "lock").st_ino == os.fstat(lock).st_ino:
            return Home(path, lock)
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None
