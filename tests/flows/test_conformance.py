"""The conformance harness itself: it scores full without the gateway, it cannot mistake less for full, and its
header injection reaches every client library that the suite uses and no other origin."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

CONFORMANCE = Path(__file__).resolve().parents[1] / "conformance"
RUN = CONFORMANCE / "run.py"
NO_SUITE = 2  # the exit code of run.py when the suite or its Node cannot be had


def _load_runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conformance_run", RUN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


runner = _load_runner()


def _suite():
    try:
        return runner.find_suite()
    except runner.Unavailable as reason:
        pytest.skip(f"the conformance suite cannot be had: {reason}")


@pytest.mark.slow
def test_without_the_gateway_the_everything_server_scores_full() -> None:
    done = subprocess.run(
        [sys.executable, str(RUN), "--direct"], capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode == NO_SUITE:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("2025-11-25: 84/84 ") for line in lines)
    assert any(line.startswith("2026-07-28: 152/152 ") for line in lines)
    seen, total = lines[-1].removeprefix("injected header: on ").removesuffix(" requests").split(" of ")
    assert seen == total


@pytest.mark.parametrize(
    ("passed", "failed", "good"),
    [
        (84, 0, True),
        (83, 1, False),
        (80, 0, False),  # a scenario broke early: nothing failed, four checks never ran
        (85, 0, False),  # the suite has grown: the pinned number must be looked at again
        (84, 1, False),
        (0, 0, False),
    ],
)
def test_only_the_pinned_number_of_passed_checks_is_full(passed: int, failed: int, good: bool) -> None:
    assert runner.Score("2025-11-25", passed, failed, 1.0).good is good


def test_what_did_not_pass_is_named_with_its_scenario(tmp_path: Path) -> None:
    checks = [
        {"id": "a", "name": "A", "status": "SUCCESS", "description": "fine"},
        {"id": "b", "name": "B", "status": "INFO", "description": "no verdict"},
        {"id": "c", "name": "C", "status": "FAILURE", "description": "said", "errorMessage": "got 500"},
        {"id": "d", "name": "D", "status": "WARNING", "description": "should have"},
    ]
    folder = tmp_path / "server-server-sse-polling-2026-11-22T20-00-42-546Z"
    folder.mkdir()
    (folder / "checks.json").write_text(json.dumps(checks))
    assert runner._complaints(tmp_path) == [
        "server-sse-polling: FAILURE c (C): got 500",
        "server-sse-polling: WARNING d (D): should have",
    ]


class _Recorder(BaseHTTPRequestHandler):
    """Remembers the value of X-API-Key by request path."""

    def do_GET(self) -> None:
        self.server.keys[self.path] = self.headers.get_all("X-API-Key")
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def _recorder() -> Iterator[tuple[str, dict[str, list[str] | None]]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Recorder) as server:
        server.keys = {}
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server.keys
        finally:
            server.shutdown()
            thread.join()


PROGRAM = """
import http, { get } from 'node:http';
const [undici, ...origins] = process.argv.slice(2);
const { request } = await import(undici);
const over = (call) => new Promise((done, fail) => call((answer) => answer.resume().on('end', done)).on('error', fail));
for (const origin of origins) {
  const { hostname, port } = new URL(origin);
  const liar = { Host: 'evil.example.com' };
  await fetch(`${origin}/fetch`);
  await fetch(`${origin}/own`, { headers: { 'x-api-key': 'mine' } });
  await (await request(`${origin}/undici`, { headers: liar })).body.dump();
  await (await request(`${origin}/undici-own`, { headers: { 'X-Api-Key': 'mine' } })).body.dump();
  await over((then) => get(`${origin}/http-url`, then));
  await over((then) => http.get({ hostname, port, path: '/http-options', headers: liar }, then));
  const own = { hostname, port, path: '/http-own', headers: { 'x-API-key': 'mine' } };
  await over((then) => http.request(own, then).end());
}
process.exit(0);
"""


def test_injected_headers_reach_every_client_and_only_the_target(tmp_path: Path) -> None:
    suite = _suite()
    program = tmp_path / "program.mjs"
    program.write_text(PROGRAM)
    undici = suite.script.parents[3] / "undici" / "index.js"
    with _recorder() as (target, seen), _recorder() as (other, spilled):
        environment = {"INJECT_ORIGIN": target, "INJECT_HEADERS": json.dumps({"X-API-Key": "secret"})}
        command = [suite.node, "--import", CONFORMANCE / "inject.mjs", program, undici, target, other]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    own = {"/own": ["mine"], "/undici-own": ["mine"], "/http-own": ["mine"]}
    without_own = ("/fetch", "/undici", "/http-url", "/http-options")
    assert seen == own | {path: ["secret"] for path in without_own}
    assert spilled == own | dict.fromkeys(without_own)


def test_injection_without_its_settings_stops_the_program(tmp_path: Path) -> None:
    suite = _suite()
    program = tmp_path / "program.mjs"
    program.write_text("console.log('ran');")
    command = [suite.node, "--import", CONFORMANCE / "inject.mjs", program]
    done = subprocess.run(command, env={}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "INJECT_ORIGIN is not set" in done.stderr
    assert "ran" not in done.stdout
