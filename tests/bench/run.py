"""`make bench`: everything in one run, ratios one a line.

(a) plain aiohttp pass-through, (b) the gateway, (c) nginx where installed, (d) check-permission; the same upstream and
client for all. The server under test has a core of its own where there are two; client and upstream share the other.
Rounds alternate between targets, and medians are taken, because machines are noisy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
CALL = json.dumps({
    "jsonrpc": "2.0", "id": 7, "method": "tools/call",
    "params": {"name": "send_email", "arguments": {
        "to": "ada@acme.test", "subject": "The invoices of November",
        "text": "Please find the three invoices of November below, with the sums that we spoke about last week."}},
}, separators=(",", ":")).encode()  # fmt: skip
CHECK = json.dumps(
    {"tool": "exec", "args": {"command": "ls -la /srv/reports", "timeout": 30}}, separators=(",", ":")
).encode()
HERTZ = os.sysconf("SC_CLK_TCK")


def pinned(core: int) -> list[str]:
    return ["taskset", "-c", str(core)] if shutil.which("taskset") and (os.cpu_count() or 1) > 1 else []


class Service:
    """A server process: its port, and the CPU it has used."""

    def __init__(
        self,
        name: str,
        command: list[str],
        core: int,
        port: int = 0,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ):
        self.name = name
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [*pinned(core), *command], stdin=pipe, stdout=pipe, env={**os.environ, **(env or {})}, cwd=cwd
        )
        self.port = port
        if port:
            wait_for(port)
        else:
            assert self.process.stdout is not None
            self.port = int(self.process.stdout.readline())

    def cpu(self) -> float:
        """Seconds of CPU of the process and its children, by the kernel's accounting."""
        pids = [self.process.pid]
        with contextlib.suppress(OSError):
            pids += [
                int(pid)
                for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            ]
        total = 0.0
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / HERTZ
        return total

    def rss(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def wait_for(port: int) -> None:
    for _ in range(400):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.025)
    raise SystemExit(f"nothing listens on {port}")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def request(path: str, key: str, body: bytes) -> bytes:
    head = (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Accept: application/json, text/event-stream\r\n"
            f"User-Agent: bench\r\nX-API-Key: {key}\r\n"
            f"MCP-Protocol-Version: 2025-11-25\r\nContent-Length: {len(body)}\r\n\r\n")  # fmt: skip
    return head.encode() + body


def load(port: int, requests: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    command = [*pinned(1), sys.executable, str(HERE / "load.py"), str(port), str(connections), str(seconds)]
    done = subprocess.run(
        command, input=" ".join(r.hex() for r in requests), capture_output=True, text=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout)
    if "error" in result:
        raise SystemExit(f"the run is not valid: {result['error']}")
    return result


def measure(service: Service, requests: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    load(service.port, requests, connections, 0.5)
    before = service.cpu()
    result = load(service.port, requests, connections, seconds)
    result["cpu_us"] = (service.cpu() - before) / result["requests"] * 1e6
    return result


NGINX = """
worker_processes 1; daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder}; keepalive_requests 100000000;
  upstream behind {{ server 127.0.0.1:{upstream}; keepalive 100; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection ""; }} }} }}
"""


def nginx(folder: Path, upstream: int) -> Service | None:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        return None
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, upstream=upstream, port=port))
    return Service("c nginx", [binary, "-c", str(folder / "nginx.conf"), "-p", str(folder)], 0, port)


def gateway(
    name: str, folder: Path, upstream: int, scale: tuple[int, int, int], keys: int
) -> tuple[Service, list[str]]:
    folder.mkdir(parents=True, exist_ok=True)
    database = f"sqlite:///{folder}/gw.db"
    made = subprocess.run(
        [sys.executable, str(HERE / "gateway.py"), database, str(folder / "data"), f"http://127.0.0.1:{upstream}/mcp",
         *(str(n) for n in scale), str(keys)], capture_output=True, text=True, check=True,
    )  # fmt: skip
    secrets = json.loads(made.stdout.splitlines()[-1])["keys"]
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "agenticmail-enterprise"),
        "serve",
        "--port",
        str(port),
        "--database",
        database,
    ]
    env = {"AGENTICMAIL_DATA_DIR": str(folder / "data"), "AGENTICMAIL_LOG_LEVEL": "error"}
    return Service(name, command, 0, port, env, str(folder)), secrets


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", default="abcd", help="letters of the targets to run")
    parser.add_argument("--scale", action="store_true", help="also 10,000 agents, 1,000 profiles, 100 upstreams")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    behind = Service("upstream", [sys.executable, str(HERE / "upstream.py")], 1)
    services: list[Service] = [behind]
    targets: dict[str, tuple[Service, list[bytes]]] = {}
    try:
        if "a" in options.only:
            plain = Service(
                "a", [sys.executable, str(HERE / "passthrough.py"), f"http://127.0.0.1:{behind.port}/mcp"], 0
            )
            targets["a"] = (plain, [request("/mcp/mail", "ek_none", CALL)])
        if "b" in options.only or "d" in options.only:
            ours, keys = gateway("b", folder / "b", behind.port, (64, 16, 1), 64)
            targets["b"] = (ours, [request("/mcp/mail", key, CALL) for key in keys])
            targets["d"] = (ours, [request("/api/engine/check-permission", key, CHECK) for key in keys])
        if "c" in options.only and (proxy := nginx(folder, behind.port)) is not None:
            targets["c"] = (proxy, [request("/mcp", "ek_none", CALL)])
        if options.scale:
            big, keys = gateway("B", folder / "B", behind.port, (10_000, 1_000, 100), 10_000)
            everybody = [request("/mcp/mail", key, CALL) for key in keys]
            idle = big.rss()
            for start in range(0, len(everybody), 500):  # each agent has called: what a worker keeps of it is there
                load(big.port, everybody[start : start + 500], 500, 1.0)
            print(f"B rss {idle:.0f} MB idle, {big.rss():.0f} MB when all of {len(keys)} agents have called")
            targets["B"] = (big, everybody[:64])
        services += list({id(service): service for service, _ in targets.values()}.values())
        report(targets, options)
    finally:
        for service in reversed(services):
            service.stop()
        shutil.rmtree(folder, ignore_errors=True)


def report(targets: dict[str, tuple[Service, list[bytes]]], options: argparse.Namespace) -> None:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
    for _ in range(options.rounds):
        for name, (service, requests) in targets.items():
            results[name].append(measure(service, requests, options.connections, options.seconds))
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in results.items()
    }
    titles = {
        "a": "aiohttp pass-through",
        "b": "gateway",
        "c": "nginx",
        "d": "check-permission",
        "B": "gateway at scale",
    }
    for name, row in middle.items():
        print(
            f"{name} {titles[name]:22} {row['rps']:9.0f} req/s  p50 {row['p50_us']:7.0f} us  "
            f"p99 {row['p99_us']:7.0f} us  cpu {row['cpu_us']:6.1f} us/req  rss {targets[name][0].rss():.0f} MB"
        )
    for top, bottom, key, label in (
        ("b", "a", "rps", "b/a"), ("b", "a", "p99_us", "b/a p99"), ("b", "c", "cpu_us", "b/c cpu"),
        ("d", "a", "rps", "d/a"),
        ("B", "b", "rps", "scale/b"),
    ):  # fmt: skip
        if top in middle and bottom in middle:
            print(f"{label} {middle[top][key] / middle[bottom][key]:.2f}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
