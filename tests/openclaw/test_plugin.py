"""The plugin's JavaScript: `node --test`, and what it ships."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from . import real

HERE = Path(__file__).resolve().parent


def _node() -> str:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed: the plugin's own tests cannot run")
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.match(r"v(\d+)\.", said)
    if match is None or int(match[1]) < 20:
        pytest.skip(f"Node 20 or newer is needed for the plugin's own tests, and this is {said.strip()}")
    return node


def test_the_plugins_own_tests_pass() -> None:
    env = {**os.environ, "PLUGIN_DIR": str(real.PLUGIN)}
    env.pop("NODE_OPTIONS", None)
    done = subprocess.run(
        [_node(), "--test", str(HERE / "plugin.test.mjs")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"^# pass 18$", done.stdout, re.MULTILINE) or re.search(r"pass 18", done.stdout)


def test_it_says_one_version_everywhere_and_needs_nothing() -> None:
    package = json.loads((real.PLUGIN / "package.json").read_text())
    manifest = json.loads((real.PLUGIN / "openclaw.plugin.json").read_text())
    settings = (real.PLUGIN / "settings.js").read_text()
    assert package["version"] == manifest["version"] == re.search(r'VERSION = "(.+?)"', settings)[1]  # type: ignore[index]
    assert not {"dependencies", "scripts", "devDependencies"} & package.keys()
    assert set(manifest["configSchema"]["properties"]) == set(
        re.search(r"KNOWN = new Set\(\[(.+?)\]", settings)[1].replace('"', "").split(", ")
    )  # type: ignore[index]
    for script in real.PLUGIN.glob("*.js"):
        for wanted in re.findall(r'from "(.+?)"', script.read_text()):
            assert wanted.startswith(("./", "node:")), wanted
