"""People at a whole gateway: over real HTTP, across workers that share a database, at the doors that are not theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agenticmail_enterprise.catalog.records import AUDIT
from agenticmail_enterprise.catalog.store import Query
from agenticmail_enterprise.gateway.people.directory import UserChange
from agenticmail_enterprise.gateway.runtime import Runtime
from agenticmail_enterprise.gateway.server import Server, listen
from tests.flows.house import House

PASSWORD = "a long enough password"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    from agenticmail_enterprise.gateway.settings import ServerSettings

    async with House(tmp_path, server=ServerSettings(trusted_proxies=("127.0.0.0/8",))) as made:
        yield made


async def signed_in(house: House, role: str, **headers: str) -> tuple[Any, dict[str, Any]]:
    email = f"{role}@acme.test"
    user = await house.runtime.people.directory.by_email(email)
    if user is None:
        user = await house.runtime.accounts.create_user(house.org, email, PASSWORD, role=role)  # type: ignore[arg-type]
    body = {"email": email, "password": PASSWORD}
    answer = await house.send("POST", "/auth/login", body=body, headers=headers)
    assert answer.status == 200, answer.json
    return user, answer.json["data"]


def bearer(data: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {data['token']}"}


async def test_somebody_signs_in_works_and_signs_out(house: House) -> None:
    user, data = await signed_in(house, "admin", **{"X-Forwarded-For": "6.6.6.6, 203.0.113.7"})
    assert data["expires_in"] == 600
    made = await house.send("POST", "/api/agents", body={"name": "bot"}, headers=bearer(data))
    assert made.status == 201
    assert (await house.send("GET", "/auth/me", headers=bearer(data))).json["data"]["user"]["id"] == user.id
    assert (await house.send("POST", "/auth/logout", headers=bearer(data))).status == 200
    assert (await house.send("GET", "/auth/me", headers=bearer(data))).status == 401
    page = await house.runtime.store.find(Query(AUDIT, "by_org", {"org": house.org}))
    told = [(entry.action, entry.actor, entry.outcome) for entry in page.records]
    assert told == [("auth.login", user.id, "ok"), ("agent.create", user.id, "ok"), ("auth.logout", user.id, "ok")]
    assert page.records[0].ip == "203.0.113.7", "the last address that no proxy of ours wrote, and none before it"


async def test_what_one_worker_takes_away_is_gone_in_the_other_at_once(house: House) -> None:
    """Two workers over one database: no half second of grace, because nothing about people is remembered."""
    other = await Runtime.open(house.settings, worker=1)
    server = Server(other, listen("127.0.0.1", 0))
    await server.start()
    try:
        await signed_in(house, "owner")
        user, data = await signed_in(house, "admin")
        url = f"http://127.0.0.1:{server.port}"
        async with house.http.get(f"{url}/api/users", headers=bearer(data)) as answer:
            assert answer.status == 200, "a token of one worker is good in all of them"
        await house.runtime.people.directory.change(house.org, user.id, UserChange(name="", role="viewer"), None)
        async with house.http.get(f"{url}/api/users", headers=bearer(data)) as answer:
            assert answer.status == 403
        await house.runtime.people.directory.remove(house.org, user.id, None)
        async with house.http.get(f"{url}/api/agents", headers=bearer(data)) as answer:
            assert answer.status == 401
    finally:
        await server.stop()


async def test_an_access_token_makes_no_calls(house: House) -> None:
    _, data = await signed_in(house, "owner")
    for path, body in (
        ("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "ping"}), ("/api/engine/check-permission", {"tool": "read"}),
        ("/api/engine/tool-calls", {"decision_id": "dec_x", "outcome": "ok"}),
    ):  # fmt: skip
        for headers in (bearer(data), {"X-API-Key": data["token"]}):
            answer = await house.send("POST", path, body=body, headers=headers)
            assert answer.status == 401, path


async def test_an_agents_key_signs_nobody_in(house: House) -> None:
    key = await house.agent("bot", "sandbox")
    for path in ("/auth/me", "/api/users", "/api/settings", "/api/stats", "/api/audit"):
        assert (await house.send("GET", path, key=key)).status == 403, path


async def test_pages_of_other_origins_do_not_even_reach_it(house: House) -> None:
    answer = await house.send(
        "POST", "/auth/session", body={"email": "a@b.c", "password": "x"}, headers={"Origin": "https://evil.example"}
    )
    assert (answer.status, answer.json["code"]) == (403, "HOST_REFUSED")


async def test_a_database_from_before_there_were_people_is_brought_forward(tmp_path: Path) -> None:
    from agenticmail_enterprise.adapters.stores import sqlite
    from agenticmail_enterprise.catalog.records import MIGRATIONS, USERS, Migration, User
    from agenticmail_enterprise.catalog.store import Insert

    late = {named for migration in MIGRATIONS[1:] for named in migration.indexes}
    before = tuple(
        msgspec.structs.replace(
            entity, indexes=tuple(index for index in entity.indexes if (entity.name, index.name) not in late)
        )
        for entity in MIGRATIONS[0].entities
    )
    old_users = next(entity for entity in before if entity.name == "user")
    url = f"sqlite:///{tmp_path}/old.db"
    old = sqlite.create(url, migrations=(Migration(1, before),))
    await old.open()
    await old.migrate()
    await old.commit(Insert(old_users, User(org="org_a", id="usr_a", email="olga@acme.test", role="owner")))
    await old.close()
    new = sqlite.create(url)
    await new.open()
    assert await new.migrate() == [migration.number for migration in MIGRATIONS[1:]]
    page = await new.find(Query(USERS, "by_role", {"org": "org_a", "role": "owner"}))
    assert [(user.id, user.status) for user in page.records] == [("usr_a", "active")]
    await new.close()
