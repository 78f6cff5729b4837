"""The load: N keep-alive connections, one request in flight on each, for a number of seconds. Prints one JSON line.

Every answer of a target has the same length, learnt from the first one; anything else is an error of the run.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop


class Connection(asyncio.Protocol):
    def __init__(self, request: bytes, run: Run) -> None:
        self.request = request
        self.run = run
        self.got = 0
        self.length = 0
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if not self.length:
            head, _, _ = data.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                self.run.fail(data[:400])
                return
            length = next(
                int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
            )
            self.length = len(head) + 4 + length
        self.got += len(data)
        if self.got < self.length:
            return
        if self.got != self.length:
            self.run.fail(b"an answer of another length: " + data[:300])
            return
        self.got = 0
        self.length = 0
        self.run.took.append(time.perf_counter() - self.sent)
        if self.run.going:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.run.going:
            self.run.fail(b"connection lost")


class Run:
    def __init__(self) -> None:
        self.took: list[float] = []
        self.going = True
        self.problem = b""

    def fail(self, what: bytes) -> None:
        self.problem = self.problem or what
        self.going = False


async def main(port: int, connections: int, seconds: float, paths: list[str]) -> None:
    run = Run()
    loop = asyncio.get_running_loop()
    requests = [bytes.fromhex(text) for text in paths]
    started = time.perf_counter()
    for number in range(connections):
        await loop.create_connection(lambda n=number: Connection(requests[n % len(requests)], run), "127.0.0.1", port)
    while run.going and time.perf_counter() - started < seconds:
        await asyncio.sleep(0.05)
    elapsed = time.perf_counter() - started
    run.going = False
    await asyncio.sleep(0.2)
    took = sorted(run.took)
    if run.problem or not took:
        print(json.dumps({"error": run.problem.decode("utf-8", "replace")}))
        return
    print(json.dumps({
        "requests": len(took), "rps": len(took) / elapsed, "p50_us": took[len(took) // 2] * 1e6,
        "p99_us": took[int(len(took) * 0.99)] * 1e6,
    }))  # fmt: skip


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.stdin.read().split()))
