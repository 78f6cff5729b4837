"""Our gateway in front of the everything server, for the conformance suite: a fresh database, one agent who may do all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path


async def _prepare(database: str, data_dir: str, upstream: str) -> str:
    from agenticmail_enterprise.gateway.accounts import Accounts, AgentSpec, Assignment
    from agenticmail_enterprise.gateway.keys import KeySpec
    from agenticmail_enterprise.gateway.registry import Registry
    from agenticmail_enterprise.gateway.settings import Settings
    from agenticmail_enterprise.gateway.stores import open_store
    from agenticmail_enterprise.gateway.upstream_spec import UpstreamSpec
    from agenticmail_enterprise.gateway.vault import Vault

    store = open_store(database)
    await store.open()
    await store.migrate()
    accounts = Accounts(store)
    registry = Registry(store, Vault.load(Settings(data_dir=data_dir), create=True))
    org = (await accounts.create_org("Conformance")).id
    await registry.create(org, UpstreamSpec(name="everything", url=upstream, allow_private=True))
    agent = await accounts.create_agent(org, AgentSpec(name="suite"), Assignment(preset="full-access"))
    _, secret = await accounts.mint(org, KeySpec(agent_id=agent.id), created_by="tests")
    await store.close()
    return secret


def start_gateway(upstream_url: str) -> tuple[str, dict[str, str], Callable[[], None]]:
    """(the URL to test, headers every request needs, a function that stops it all)."""
    folder = tempfile.TemporaryDirectory(prefix="conformance-")
    database = f"sqlite:///{folder.name}/gw.db"
    key = asyncio.run(_prepare(database, f"{folder.name}/data", upstream_url))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "agenticmail-enterprise"),
        "serve",
        "--port",
        str(port),
        "--database",
        database,
    ]
    env = {**os.environ, "AGENTICMAIL_DATA_DIR": f"{folder.name}/data", "AGENTICMAIL_LOG_LEVEL": "warning"}
    process = subprocess.Popen(command, env=env, cwd=folder.name)
    for _ in range(400):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1):
            break
        if process.poll() is not None:
            raise SystemExit(f"the gateway did not start (exit {process.returncode})")
        time.sleep(0.05)

    def stop() -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        folder.cleanup()

    return f"http://127.0.0.1:{port}/mcp/everything", {"X-API-Key": key}, stop


__all__ = ["start_gateway"]
