"""Who decides comes from the credential, and agents never do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from agenticmail_enterprise.adapters.stores import memory
from agenticmail_enterprise.catalog.calls import Principal
from agenticmail_enterprise.catalog.errors import Forbidden
from agenticmail_enterprise.catalog.records import KEYS, ApiKey
from agenticmail_enterprise.catalog.store import Insert
from agenticmail_enterprise.gateway.approvals.who import decider_of, root_of
from agenticmail_enterprise.gateway.scopes import ROLE_SCOPES


@pytest.fixture
async def store() -> AsyncIterator[Any]:
    made = memory.create("memory://")
    await made.open()
    await made.migrate()
    makers = {
        "key_1": "cli",
        "key_2": "key_1",
        "key_3": "key_2",
        "key_4": "usr_a",
        "key_5": "key_4",
        "key_6": "key_7",
        "key_7": "key_6",
    }
    await made.commit(*(Insert(KEYS, ApiKey(org="o", id=key, digest=key, created_by=by)) for key, by in makers.items()))
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("key", "root"),
    [("key_1", "key_1"), ("key_3", "key_1"), ("key_5", "usr_a"), ("usr_b", "usr_b"), ("key_x", "key_x")],
)
async def test_behind_a_key_stands_who_made_it(store: Any, key: str, root: str) -> None:
    assert await root_of(store, "o", key) == root
    assert await root_of(store, "other", "key_5") == "key_5"


async def test_a_circle_of_keys_ends(store: Any) -> None:
    assert await root_of(store, "o", "key_6") in {"key_6", "key_7"}


@pytest.mark.parametrize(
    ("scopes", "role"),
    [
        (("*",), "owner"),
        (("approvals:decide",), "member"),
        (tuple(ROLE_SCOPES["admin"]), "admin"),
        (tuple(ROLE_SCOPES["member"]), "member"),
    ],
)
async def test_a_key_has_the_role_whose_scopes_it_holds(store: Any, scopes: tuple[str, ...], role: str) -> None:
    assert (await decider_of(store, Principal("o", "", "", "key_3", scopes=scopes))).role == role


async def test_agents_and_keys_without_the_scope_decide_nothing(store: Any) -> None:
    for principal in (
        Principal("o", "agt_1", "bot", "key_3", scopes=("*",)),
        Principal("o", "", "", "key_3", scopes=("approvals:read",)),
    ):
        with pytest.raises(Forbidden):
            await decider_of(store, principal)


class Person(Principal):
    """As somebody who signed in comes: the role they have at this request."""

    def __init__(self, role: str) -> None:
        super().__init__("o", "", "", "usr_a", scopes=("approvals:decide",))
        self.role, self.name = role, "Ana"


@pytest.mark.parametrize(("role", "known"), [("owner", "owner"), ("member", "member"), ("viewer", None)])
async def test_a_person_decides_with_the_role_they_have(store: Any, role: str, known: str | None) -> None:
    decider = await decider_of(store, Person(role))
    assert (decider.id, decider.person, decider.role, decider.name) == ("usr_a", "usr_a", known, "Ana")
