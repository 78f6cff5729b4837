"""Build the wheel, install it with its dependencies in an empty environment, and use it as a stranger would.

    .venv/bin/python tests/wheel/check.py

The stranger's folder has a `deploy/`, a `policies/` and a `catalog.py` of its own: neither may be taken for ours, and
ours not for theirs. Prints each thing that was checked; the first that does not hold ends it with exit code 1. Needs a
package index (for the build backend and the dependencies), and leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "agenticmail_enterprise"
COMMAND = "agenticmail-enterprise"
NOT_SHIPPED = ("tests", "docs", ".ci")
LEFT_OUT = shutil.ignore_patterns(
    ".venv", ".git", ".cache", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "*.egg-info", "node_modules",
    "demo-data", "*.db", "*.db-*",
)  # fmt: skip
STRANGERS = ("deploy/__init__.py", "policies/__init__.py", "gateway/__init__.py", "catalog.py", "adapters.py")

PROBE = """
import importlib, json, pkgutil, sys
import agenticmail_enterprise as ours
missing, absent = [], []
for name in ours.__all__:
    if getattr(ours, name, None) is None:
        missing.append(name)
for module in pkgutil.walk_packages(ours.__path__, ours.__name__ + "."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            absent.append([module.name, error.name])
theirs = [name for name in ("deploy", "policies", "gateway", "catalog", "adapters") if name in sys.modules]
import catalog, deploy, policies
print(json.dumps({
    "file": ours.__file__, "version": ours.__version__, "missing": missing, "absent": absent, "theirs": theirs,
    "tools": len(ours.ALL_TOOLS), "skills": len(ours.BUILTIN_SKILLS), "presets": len(ours.PRESET_PROFILES),
    "modules": sum(name.startswith(ours.__name__) for name in sys.modules),
    "elsewhere": [name for name, module in sys.modules.items() if name.startswith(ours.__name__)
                  and not str(getattr(module, "__file__", "")).startswith(ours.__path__[0])],
    "own": [catalog.WHOSE, deploy.WHOSE, policies.WHOSE],
}))
"""


class Failed(Exception):
    """Something that must hold does not; the message says what."""


def must(holds: bool, what: str, facts: object = "") -> None:
    """Print what was checked, or raise Failed."""
    if not holds:
        raise Failed(f"{what}: {facts}" if facts else what)
    print(f"ok  {what}", flush=True)


def run(command: list[str | Path], cwd: Path, *, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command with a clean environment. Failed when its exit code is another one."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AGENTICMAIL_", "PYTHON", "VIRTUAL_ENV"))
    }
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    if done.returncode != code:
        raise Failed(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def built(folder: Path) -> Path:
    """The wheel of a copy of the tree, so that nothing is left in the tree itself."""
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=LEFT_OUT, symlinks=True)
    run([sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", source], folder)
    wheels = list((folder / "dist").glob("*.whl"))
    must(len(wheels) == 1, "the wheel is built", wheels)
    return wheels[0]


def inspect(wheel: Path) -> None:
    """What is in the wheel, and what is not."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        points = archive.read(f"{info}/entry_points.txt").decode()
    tops = {name.partition("/")[0] for name in names}
    must(tops == {PACKAGE, info}, f"it holds one import name, {PACKAGE}", tops)
    inside = {name.removeprefix(f"{PACKAGE}/") for name in names if name.startswith(f"{PACKAGE}/")}
    expected = {path.relative_to(ROOT).as_posix() for path in (*modules(), *openclaw_plugin())} | {"py.typed"}
    must(
        inside == expected,
        "it holds every module of the tree, OpenClaw's plugin, py.typed, and nothing else",
        sorted(inside ^ expected),
    )
    must(not any(name.startswith(NOT_SHIPPED) for name in inside), f"it holds none of {', '.join(NOT_SHIPPED)}")
    must(any(re.fullmatch(rf"{re.escape(info)}/licenses/LICENSE", name) for name in names), "it holds the licence")
    must(f"{COMMAND} = " in points, "it declares the command", points)
    for plugin in ("argument-rules", "rate-limits"):
        must(f"{plugin} = {PACKAGE}." in points, f"it declares the plugin {plugin}", points)
    must(metadata["Requires-Python"] == ">=3.11", "it says which Python it needs", metadata["Requires-Python"])
    must("## Quick start" in str(metadata.get_payload()), "its description is the README")


def modules() -> list[Path]:
    """The Python files that belong into the wheel."""
    packages = [path for path in ROOT.iterdir() if (path / "__init__.py").is_file() and path.name not in NOT_SHIPPED]
    return [ROOT / "__init__.py", *(file for package in packages for file in package.rglob("*.py"))]


def openclaw_plugin() -> list[Path]:
    """The plugin for OpenClaw: JavaScript, shipped as data."""
    return [path for path in (ROOT / "adapters" / "openclaw_plugin").iterdir() if path.suffix in {".js", ".json"}]


def installed(wheel: Path, folder: Path) -> Path:
    """The folder of the programs of an empty environment that has the wheel and what the wheel says it needs."""
    environment = folder / "venv"
    venv.create(environment, with_pip=True)
    programs = environment / "bin"
    pip: list[str | Path] = [programs / "python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "install", wheel], folder)
    run([*pip, "check"], folder)
    must((programs / COMMAND).is_file(), "it installs with its dependencies, and they agree")
    return programs


def stranger(folder: Path) -> Path:
    """A folder whose modules have the names of ours."""
    home = folder / "home"
    for name in STRANGERS:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("WHOSE = 'theirs'\n")
    return home


def use(programs: Path, home: Path) -> None:
    """The command and the library, from the stranger's folder."""
    command = programs / COMMAND
    must("Commands:" in run([command, "--help"], home).stdout, "the command explains itself")
    shown = json.loads(run([command, "openclaw", "--json"], home).stdout)
    must((Path(shown["plugin"]) / "openclaw.plugin.json").is_file(), "it shows where OpenClaw finds the plugin", shown)
    version = json.loads(run([command, "version", "--json"], home).stdout)["version"]
    found = json.loads(run([programs / "python", "-c", PROBE], home).stdout)
    must(found["file"].startswith(str(programs.parent)), "the library comes from the wheel", found["file"])
    must(found["version"] == version, f"command and library are one version, {version}", found["version"])
    must(not found["missing"], "every public name is there", found["missing"])
    must((found["tools"], found["skills"], found["presets"]) == (167, 38, 5), "the catalog is whole", found)
    must(not found["elsewhere"], f"all {found['modules']} of its modules are its own", found["elsewhere"])
    must(not found["theirs"], "none of the stranger's modules was imported for ours", found["theirs"])
    must(found["own"] == ["theirs"] * 3, "the stranger's own imports are the stranger's", found["own"])
    extras = {name for _, name in found["absent"]}
    must(extras <= {"mcp", "asyncpg"}, "every module imports, but for what an extra brings", found["absent"])
    made = run([command, "init", "--no-input", "--json", "--company", "Acme", "--email", "owner@acme.test",
                "--database", "sqlite:///gw.db"], home)  # fmt: skip
    facts = json.loads(made.stdout)
    must({"url", "email", "password", "api_key"} <= facts.keys(), "init prints one object", sorted(facts))
    run([command, "check"], home)
    must(run([command, "agents", "list", "--json"], home).stdout.strip() == "[]", "check passes; commands work")
    serve(command, home, facts["api_key"])
    told = run([command, "demo", "--once"], home, code=1)
    must("agenticmail-enterprise[demo]" in told.stderr, "the demo says which extra it needs", told.stderr)


def serve(command: Path, home: Path, key: str) -> None:
    """Start it, ask it, stop it."""
    with subprocess.Popen([command, "serve", "--port", "0", "--json"], cwd=home, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            must(answer(f"{url}/ready", "")["status"] == "ready", "it serves")
            must(answer(f"{url}/api/engine/stats", key)["data"]["skills"] == 38, "its API answers")
            process.send_signal(signal.SIGTERM)
            must(process.wait(60) == 0, "it stops when it is told to")
        finally:
            process.kill()


def answer(url: str, key: str) -> Any:
    request = urllib.request.Request(url, headers={"X-API-Key": key} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())
    except urllib.error.URLError as error:
        raise Failed(f"{url}: {error}") from error


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wheel-") as scratch:
        folder = Path(scratch)
        try:
            wheel = built(folder)
            inspect(wheel)
            use(installed(wheel, folder), stranger(folder))
        except Failed as failure:
            print(f"FAILED  {failure}", file=sys.stderr)
            return 1
        print(f"wheel: ok ({wheel.name}, {time.monotonic() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
