"""A newcomer's shell: every block of a page is copied into it, from top to bottom. What does not work is a problem.

Only three things differ from a reader's machine: ports are free ones, what goes on serving goes on in the background
(and stops when the reader is told to stop it), and `make run` starts what the Makefile says that it starts.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from agenticmail_enterprise.catalog.errors import EnterpriseError
from agenticmail_enterprise.catalog.profiles import Profile
from agenticmail_enterprise.gateway.settings_load import load
from agenticmail_enterprise.policies.validation import validate_profile

from .pages import ROOT, Block, agrees

SECONDS = 60.0
GATEWAYS = {"make run": ["demo"], "agenticmail-enterprise serve &": ["serve"]}
"""What goes on serving, and as which command."""

PRINTED_PORTS = (3000, 8010)


class Wrong(AssertionError):
    """A block does not do what the page says."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Background:
    """Something that goes on serving."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str], log: Path) -> None:
        self.command = command
        self.log = log
        with log.open("w") as out, log.with_suffix(".err").open("w") as err:
            self.process = subprocess.Popen(
                command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )

    @property
    def out(self) -> str:
        return self.log.read_text()

    @property
    def err(self) -> str:
        return self.log.with_suffix(".err").read_text()

    def until(self, ready: Any) -> None:
        end = time.monotonic() + SECONDS
        while not ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise Wrong(f"{self.command} did not come up:\n{self.out}{self.err}")
            time.sleep(0.05)

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise


class Story:
    """`tell(blocks)` runs them all; `problems` says by line what did not work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {printed: free_port() for printed in PRINTED_PORTS}
        self.problems: dict[int, str] = {}
        self.ran: list[str] = []
        """Every command line that was run, as printed."""
        self.servers: list[Background] = []
        self.gateway: Background | None = None
        self._state = folder / "state.sh"
        start = folder / "clone"
        start.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENTICMAIL_")}
        kept |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}", "HOME": str(folder)}
        kept |= {"AGENTICMAIL_SERVER_PORT": str(self.ports[3000]), "NO_COLOR": "1"}
        self._env = kept
        self._state.write_text(f"cd '{start}'\n")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[3000]}"

    def tell(self, blocks: Sequence[Block]) -> None:
        handlers = {"sh": self._sh, "console": self._console, "json": self._json, "toml": self._toml,
                    "python": self._python}  # fmt: skip
        last: Block | None = None
        for block in blocks:
            try:
                if block.kind == "text":
                    self._printed(block, last)
                elif block.kind in handlers:
                    handlers[block.kind](block)
                else:
                    raise Wrong(f"nobody knows what to do with a block of kind {block.kind!r}")
            except (Wrong, EnterpriseError, ValueError, OSError, subprocess.TimeoutExpired) as error:
                self.problems[block.line] = f"{type(error).__name__}: {error}"
            last = block

    def close(self) -> None:
        for server in reversed(self.servers):
            server.stop()

    # -- the shell -----------------------------------------------------------------------------------------------
    def shell(self, text: str) -> str:
        """Run a script in the reader's shell: folder, variables and functions stay for the next one. Its output."""
        keep = f"{{ export -p; declare -f; printf 'cd %q\\n' \"$PWD\"; }} > '{self._state}.new'"
        script = f"set -euo pipefail\n. '{self._state}'\n{self.local(text)}\n{keep}\n"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-c", script], env=self._env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Wrong(f"exit {done.returncode} of\n{text}\n{done.stdout}{done.stderr}")
        if done.stderr:
            raise Wrong(f"{text}\nsays on standard error:\n{done.stderr}")
        Path(f"{self._state}.new").replace(self._state)
        return self.printed(done.stdout)

    def value(self, name: str) -> str:
        """A variable of the reader's shell."""
        return self.shell(f'printf %s "${name}"')

    def local(self, text: str) -> str:
        for printed, own in self.ports.items():
            text = re.sub(rf"(127\.0\.0\.1:|--http ){printed}\b", rf"\g<1>{own}", text)
        return text

    def printed(self, text: str) -> str:
        for printed, own in self.ports.items():
            text = text.replace(f"127.0.0.1:{own}", f"127.0.0.1:{printed}")
        return text

    def _sh(self, block: Block) -> None:
        text = block.text.strip()
        if text in GATEWAYS:
            self._serve(text)
        elif "demo.mailserver" in text and "--http" in text:
            server = self._start(self.local(text).removesuffix("&").split())
            server.until(lambda: "/mcp" in server.out)
        elif all(line.startswith("make ") for line in block.commands):
            self._known_targets(block)
        else:
            self.shell(block.text)
            self.ran += block.commands

    def _console(self, block: Block) -> None:
        for turn in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, expected = turn.partition("\n")
            actual = self.shell(command)
            self.ran.append(command)
            if expected.strip() and not agrees(expected, actual):
                raise Wrong(f"{command}\nprints\n{actual}\nand not\n{expected}")

    def _known_targets(self, block: Block) -> None:
        makefile = (ROOT / "Makefile").read_text()
        for line in block.commands:
            target = line.split()[1]
            if re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE) is None:
                raise Wrong(f"the Makefile has no target {target!r}")

    # -- what goes on serving ------------------------------------------------------------------------------------
    def _start(self, command: list[str]) -> Background:
        folder = Path(self.shell("pwd").strip())
        env = dict(line.split("=", 1) for line in self.shell("env -0").split("\0") if "=" in line)
        server = Background(command, folder, env, self.folder / f"server-{len(self.servers)}.out")
        self.servers.append(server)
        return server

    def _serve(self, text: str) -> None:
        """A gateway, in place of the one before."""
        if self.gateway is not None:
            code = self.gateway.stop()
            if code not in (0, 130):
                raise Wrong(f"stopped with Ctrl-C, {self.gateway.command} ended with {code}: {self.gateway.err}")
        command = ["agenticmail-enterprise", *GATEWAYS[text]]
        if text == "make run":
            recipe = re.search(r"^run:.*\n\t@exec \$\(BIN\)/(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
            if recipe is None or not recipe[1].startswith(" ".join(command)):
                raise Wrong(f"`make run` does not start {command}")
            command += ["--port", str(self.ports[3000])]
        self.gateway = gateway = self._start([str(Path(sys.executable).parent / command[0]), *command[1:]])
        gateway.until(lambda: self.get("/ready")[0] == 200)
        if text == "make run":
            gateway.until(lambda: "Ctrl-C" in gateway.out)
        self.ran.append(text)

    def _printed(self, block: Block, last: Block | None) -> None:
        if last is None or last.text.strip() not in GATEWAYS or self.gateway is None:
            raise Wrong("a block of kind text is what a server prints, and there is none before it")
        if not agrees(block.text, self.printed(self.gateway.out), whole=False):
            raise Wrong(f"it prints\n{self.gateway.out}")

    # -- examples ------------------------------------------------------------------------------------------------
    def _save(self, block: Block) -> None:
        (Path(self.shell("pwd").strip()) / block.saved_as).write_text(self.local(block.text))

    def _json(self, block: Block) -> None:
        try:
            values = [json.loads(block.text)]
        except ValueError:
            values = [json.loads(line) for line in block.text.splitlines()]
        for value in values:
            clients = value.get("mcpServers") or value.get("servers") or value.get("mcp", {}).get("servers")
            if clients is not None:
                for entry in clients.values():
                    self._connects(entry)
            elif "max_risk" in value:
                validate_profile(msgspec.convert(value, Profile))
            else:
                raise Wrong(f"nobody knows what to do with this JSON: {value}")
        if block.saved_as:
            self._save(block)

    def _connects(self, entry: dict[str, Any]) -> None:
        """Make the request that a client with this entry makes first."""
        headers = {
            name: re.sub(r"\$\{(env:)?AGENT_KEY\}|\$\{input:agent-key\}", self.value("AGENT_KEY"), value)
            for name, value in entry["headers"].items()
        }
        hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "reader", "version": "1"}}}  # fmt: skip
        status, body = self.request("POST", self.local(entry["url"]).removeprefix(self.url), hello, headers)
        if status != 200 or "serverInfo" not in str(body):
            raise Wrong(f"{entry['url']} answers {status} {body}")

    def _toml(self, block: Block) -> None:
        file = self.folder / f"example-{block.line}.toml"
        file.write_text(block.text)
        load(file, environ={}, folder=self.folder)

    def _python(self, block: Block) -> None:
        if block.saved_as:
            self._save(block)
            return
        file = self.folder / f"example-{block.line}.py"
        file.write_text(block.text)
        self.shell(f"python '{file}'")

    # -- asking the gateway --------------------------------------------------------------------------------------
    def get(self, path: str, key: str = "") -> tuple[int, Any]:
        return self.request("GET", path, None, {"X-API-Key": key} if key else {})

    def request(self, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        """Status and decoded body; 0 where nobody listens."""
        data = json.dumps(body).encode() if body is not None else None
        accept = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, {**accept, **headers}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, _decoded(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _decoded(error.read())
        except urllib.error.URLError:
            return 0, None


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return body.decode()
