"""Make a database for the run: organisations' worth of agents, profiles and upstreams; prints what the load needs."""

from __future__ import annotations

import asyncio
import json
import sys

from agenticmail_enterprise.catalog.profiles import ArgumentRule, Profile, RateLimit, ToolRule
from agenticmail_enterprise.gateway.accounts import Accounts, AgentSpec, Assignment
from agenticmail_enterprise.gateway.keys import KeySpec
from agenticmail_enterprise.gateway.registry import Registry
from agenticmail_enterprise.gateway.settings import Settings
from agenticmail_enterprise.gateway.stores import open_store
from agenticmail_enterprise.gateway.upstream_spec import UpstreamSpec
from agenticmail_enterprise.gateway.vault import Vault

DOMAIN = "acme.test"


def profile(number: int) -> Profile:
    """Permission, an argument rule and a rate limit that are all asked, and never in the way."""
    return Profile(
        name=f"bench-{number}", tools=ToolRule(allow=("mail__*", "exec")), max_risk="critical", allow_unknown=True,
        argument_rules=(
            ArgumentRule(name="internal", tools=("mail__send_email",), field="to", op="domain_in", values=(DOMAIN,)),
        ),
        rate_limits=(RateLimit(per_minute=1_000_000_000),),
    )  # fmt: skip


async def main(
    database: str, data_dir: str, upstream: str, agents: int, profiles: int, upstreams: int, keys: int
) -> None:
    store = open_store(database)
    await store.open()
    await store.migrate()
    accounts = Accounts(store)
    registry = Registry(store, Vault.load(Settings(data_dir=data_dir), create=True))
    org = (await accounts.create_org("Bench")).id
    await registry.create(org, UpstreamSpec(name="mail", url=upstream, allow_private=True))
    for number in range(1, upstreams):
        await registry.create(org, UpstreamSpec(name=f"other-{number}", url=upstream, allow_private=True))
    shared = [(await accounts.create_profile(org, f"bench-{n}", profile(n))).id for n in range(profiles)]
    secrets = []
    for number in range(agents):
        agent = await accounts.create_agent(
            org, AgentSpec(name=f"agent-{number}"), Assignment(profile_id=shared[number % profiles])
        )
        if number < keys:
            _, secret = await accounts.mint(org, KeySpec(agent_id=agent.id), created_by="bench")
            secrets.append(secret)
    await store.close()
    print(json.dumps({"org": org, "keys": secrets}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], *(int(text) for text in sys.argv[4:8])))  # type: ignore[arg-type]
