"""The demo's stage: settings and database in a folder of its own, one organisation, one agent, one server, fresh keys.

Nothing outside the folder is read or written, and no variable of the environment is heeded: a demo must never find
somebody's real database. What a spectator changed (the profile, say) stays changed on the next run.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from ...catalog.errors import SettingsError
from ...catalog.profiles import ArgumentRule, Profile, RateLimit, ToolRule
from ...catalog.records import AGENTS, KEYS, ORGS, UPSTREAMS, Agent, Org, Upstream
from ...catalog.store import GLOBAL, MAX_PAGE, Query
from ..accounts import AgentSpec, Assignment
from ..keys import KeySpec
from ..runtime import Runtime
from ..settings import Settings
from ..settings_load import FILE_NAME, load
from ..setup import Answers, initialise
from ..upstream_spec import UpstreamSpec

COMPANY: Final = "Demo Company"
OWNER: Final = "owner@demo.test"
AGENT: Final = "support-bot"
SERVER: Final = "mail"
KEY_NAME: Final = "demo"
KEY_MS: Final = 24 * 3600 * 1000
"""A demo's keys end after a day, if no later run revokes them before."""

PROFILE: Final = Profile(
    name="Support mail",
    description="Reads and searches the mailbox; writes to colleagues only; deletes nothing.",
    tools=ToolRule(
        allow=("mail__list_inbox", "mail__read_email", "mail__search_emails", "mail__send_email"),
        deny=("mail__delete_*",),
    ),
    max_risk="medium",
    argument_rules=(
        ArgumentRule(
            name="colleagues-only", tools=("mail__send_email",), field="to", op="domain_in", values=("acme.test",),
            required=True,
        ),
    ),
    rate_limits=(RateLimit(per_minute=60, per_day=2000),),
)  # fmt: skip

OPERATOR_SCOPES: Final = (
    "agents:read",
    "profiles:read",
    "profiles:write",
    "upstreams:read",
    "catalog:read",
    "calls:read",
)


class Scene(msgspec.Struct, frozen=True):
    """Everything that is on stage. Both keys are in clear: they are shown, and end with the demo."""

    folder: str
    config: str
    org: str
    agent: Agent
    upstream: Upstream
    agent_key: str
    operator_key: str
    new: bool


def whole(folder: Path) -> Path:
    """A folder as an absolute path."""
    return folder.expanduser().absolute()


async def settings_of(folder: Path, host: str, port: int) -> tuple[Settings, bool]:
    """The settings of a demo folder, made on the first run (then True). Raises SettingsError."""
    folder = whole(folder)
    config = folder / FILE_NAME
    new = not config.exists()
    if new:
        settings = Settings(database=f"sqlite:///{folder}/demo.db", data_dir=str(folder / "data"))
        await initialise(Answers(company=COMPANY, email=OWNER, database=settings.database), settings, config)
    return load(config, environ={}, flags={"server.host": host, "server.port": port}).settings, new


async def set_up(runtime: Runtime, folder: Path, *, new: bool) -> Scene:
    """Put everything on stage that is not there yet, and change the keys. Raises SettingsError for another's folder."""
    org = await _organisation(runtime, folder)
    upstream = await _server(runtime, org.id, whole(folder))
    agent = await _agent(runtime, org.id)
    await _revoke_old_keys(runtime, org.id)
    expires = int(time.time() * 1000) + KEY_MS
    _, agent_key = await runtime.accounts.mint(
        org.id, KeySpec(agent_id=agent.id, name=KEY_NAME, expires_at=expires), created_by=KEY_NAME
    )
    _, operator_key = await runtime.accounts.mint(
        org.id, KeySpec(kind="program", name=KEY_NAME, scopes=OPERATOR_SCOPES, expires_at=expires), created_by=KEY_NAME
    )
    if not await runtime.registry.tools.all(org.id, SERVER):
        report = await runtime.upstreams.refresh(org.id, upstream.id)
        if not report.ok:
            raise SettingsError(f"The demo's mail server does not answer: {report.error}")
    return Scene(str(folder), str(folder / FILE_NAME), org.id, agent, upstream, agent_key, operator_key, new)


async def _organisation(runtime: Runtime, folder: Path) -> Org:
    orgs = (await runtime.store.find(Query(ORGS, "by_org", {"org": GLOBAL}, limit=2))).records
    if [org.name for org in orgs] != [COMPANY]:
        raise SettingsError(f"{folder} holds somebody's gateway, not the demo. Choose another folder with --folder.")
    found: Org = orgs[0]
    return found


async def _server(runtime: Runtime, org: str, folder: Path) -> Upstream:
    command = (sys.executable, "-m", f"{__package__}.mailserver", "--folder", str(folder / "mail"))
    spec = UpstreamSpec(name=SERVER, kind="mcp_stdio", command=command)
    page = await runtime.store.find(Query(UPSTREAMS, "name", {"org": org, "name": SERVER}, limit=1))
    if not page.records:
        return await runtime.registry.create(org, spec)
    record: Upstream = page.records[0]
    if (record.command, *record.args) == command:
        return record
    return await runtime.registry.replace(org, record.id, spec)  # the folder or the interpreter has moved


async def _agent(runtime: Runtime, org: str) -> Agent:
    page = await runtime.store.find(Query(AGENTS, "name", {"org": org, "name": AGENT}, limit=1))
    if page.records:
        found: Agent = page.records[0]
        return found
    spec = AgentSpec(name=AGENT, description="Answers customers' mail. Plays in the demo.")
    return await runtime.accounts.create_agent(org, spec, Assignment(profile=PROFILE))


async def _revoke_old_keys(runtime: Runtime, org: str) -> None:
    query = Query(KEYS, "by_org", {"org": org}, limit=MAX_PAGE)
    while True:
        page = await runtime.store.find(query)
        for key in page.records:
            if key.name == KEY_NAME and not key.revoked_at:
                await runtime.accounts.revoke(org, key.id)
        if not page.cursor:
            return
        query = msgspec.structs.replace(query, cursor=page.cursor)


def facts_of(scene: Scene, url: str) -> dict[str, Any]:
    """What a program needs to go on with the demo."""
    return {
        "url": url, "folder": scene.folder, "config": scene.config, "agent": scene.agent.name,
        "agent_key": scene.agent_key, "operator_key": scene.operator_key, "mcp": f"{url}/mcp/{SERVER}",
    }  # fmt: skip
