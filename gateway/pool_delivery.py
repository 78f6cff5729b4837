"""Did the upstream's machine accept one byte of this request? Asked of the kernel when a connection closed unanswered.

An idle connection can be closed by the server in the very moment in which the next request is written. HTTP cannot tell
whether that request was processed, but TCP can, in the usual case: the server's kernel answers bytes for a connection
that has been closed with a reset and does not acknowledge them. So when

1. the end of the stream (FIN) arrived, and its acknowledgement number covers nothing of the request, and
2. the bytes were then answered with a reset, still unacknowledged, or had not even left this process,

the server's program never saw them, and they may be sent again whatever the method. Everything else stays unknown:
bytes that were acknowledged, a reset without a FIN before it (Linux does not keep its acknowledgement), a server that
closed only its sending side (its kernel acknowledges within 40 ms, which is why a proof waits for the reset).

Linux only (struct tcp_info since 4.1, include/uapi/linux/tcp.h). Elsewhere nothing is ever proven: the safe side.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import Final

_LINUX: Final = sys.platform == "linux"
_TCP_CLOSE: Final = 7
_ACKED_AT: Final = 120
_READ: Final = struct.Struct("=Q")
_COUNT: Final = struct.Struct("=i")
_NEEDED: Final = _ACKED_AT + _READ.size
_PAUSES: Final = (0.0, 0.002, 0.01, 0.05, 0.2, 0.75)
"""Seconds between looks: a reset takes one round trip."""
_MAX_DRAIN: Final = 256

Poll = Callable[[int], list[tuple[int, int]]]


def watcher(fd: int) -> Poll:
    """`watcher(fd)(0)` is non-empty when a read would not wait: bytes, an end or an error is there. 0.6 us a look."""
    poll = select.poll()
    poll.register(fd, select.POLLIN | getattr(select, "POLLRDHUP", 0))
    return poll.poll


def acknowledged(sock: socket.socket) -> int:
    """Bytes of ours that the peer has acknowledged, the SYN counted as one; -1 where this cannot be known."""
    if not _LINUX:
        return -1
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _NEEDED)
    except OSError:
        return -1
    return int(_READ.unpack_from(info, _ACKED_AT)[0]) if len(info) >= _NEEDED else -1


def _unacknowledged(sock: socket.socket) -> int:
    """Bytes of ours that the kernel has taken and the peer has not acknowledged; -1 where this cannot be known."""
    try:
        return _COUNT.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, _COUNT.pack(0)))[0]  # type: ignore[no-any-return]
    except OSError:
        return -1


def duplicate(fd: int) -> socket.socket | None:
    """A socket object over a duplicate of `fd`, which the caller closes; None where it would be of no use."""
    if not _LINUX or fd < 0:
        return None
    try:
        sock = socket.socket(fileno=os.dup(fd))
    except OSError:
        return None
    sock.setblocking(False)
    return sock


class Remains:
    """What is left of a connection that closed before it answered: its socket, kept until the question is settled.

    `acked` is what had been acknowledged before the request was written.
    """

    __slots__ = ("_acked", "_sock")

    def __init__(self, sock: socket.socket | None, acked: int) -> None:
        """Takes `sock` over. None, or a negative `acked`: nothing can be proven."""
        self._acked = acked
        self._sock = sock
        if acked < 0:
            self.close()

    async def untouched(self, patience: float) -> bool:
        """True when it is proven within `patience` seconds that nothing of the request was accepted."""
        try:
            for pause in _PAUSES:
                if pause > patience:
                    break
                patience -= pause
                await asyncio.sleep(pause)
                verdict = self._look()
                if verdict is not None:
                    return verdict
            return False
        finally:
            self.close()

    def _look(self) -> bool | None:
        """True: never accepted. False: cannot be proven. None: too early to say."""
        sock = self._sock
        if sock is None or acknowledged(sock) != self._acked:
            return False
        if _unacknowledged(sock) == 0:
            return True  # and the transport is aborted: what it still held will never be written
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSE:
            return None
        try:
            for _ in range(_MAX_DRAIN):  # an end after some last bytes (a TLS alert, an unread answer)
                if not sock.recv(65536):
                    return acknowledged(sock) == self._acked
        except OSError:
            return False
        return False

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
