"""Keys: what they look like, what is kept of them, and that none can be used to get a stronger one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.catalog.calls import Principal
from agenticmail_enterprise.catalog.errors import Forbidden, NotFound, Unauthenticated, ValidationFailed
from agenticmail_enterprise.catalog.records import KEYS, ApiKey
from agenticmail_enterprise.gateway.accounts import Accounts, AgentSpec
from agenticmail_enterprise.gateway.identity import Identity
from agenticmail_enterprise.gateway.keys import KeySpec, digest_of, new_secret, well_formed
from agenticmail_enterprise.gateway.scopes import CALL, ROLE_SCOPES, ROLES, SCOPES, covers, delegable


def minter(org: str = "org_a", *scopes: str, expires_at: int = 0, ips: tuple[str, ...] = ()) -> Principal:
    return Principal(org, "", "", "key_minter", scopes=scopes, expires_at=expires_at, allowed_ips=ips)


# -- the look of a key -------------------------------------------------------------------------------------------
def test_keys_have_their_form_and_differ() -> None:
    keys = [new_secret() for _ in range(200)]
    assert len(set(keys)) == 200
    for key in keys:
        assert key.startswith("ek_")
        assert len(key) == 52
        assert well_formed(key)


def test_one_wrong_character_is_seen_without_asking_the_store() -> None:
    key = new_secret()
    for place in range(3, len(key)):
        assert not well_formed(key[:place] + ("0" if key[place] != "0" else "1") + key[place + 1 :])
    assert not well_formed(key[:-1])
    assert not well_formed("")
    assert not well_formed("sk_" + key[3:])


@given(st.text(max_size=60))
def test_no_text_breaks_the_check(text: str) -> None:
    assert not well_formed(text)


# -- minting -----------------------------------------------------------------------------------------------------
async def test_an_agents_key_holds_one_scope_and_only_its_digest_is_stored(world: Any) -> None:
    agent = await world.accounts.create_agent(world.org, AgentSpec(name="bot"))
    record, secret = await world.accounts.mint(world.org, KeySpec(agent_id=agent.id, name="laptop"), created_by="usr_1")
    stored: ApiKey = await world.store.get(KEYS, world.org, record.id)
    assert stored.scopes == (CALL,)
    assert stored.digest == digest_of(secret)
    assert (stored.prefix, stored.last4) == (secret[:11], secret[-4:])
    assert secret not in str(stored)
    principal = await Identity(world.store, lambda: world.seconds).of_key(secret)
    assert (principal.org, principal.agent_id, principal.key_id) == (world.org, agent.id, record.id)


async def test_a_revoked_key_is_dead_at_once(world: Any) -> None:
    identity = Identity(world.store, lambda: world.seconds)
    accounts = Accounts(world.store, lambda: world.seconds, identity.forget)
    record, secret = await accounts.mint(world.org, KeySpec(kind="program", scopes=("agents:read",)), created_by="cli")
    assert await identity.of_key(secret)
    before = await world.epoch()
    revoked = await accounts.revoke(world.org, record.id)
    assert revoked.revoked_at == world.now
    assert await world.epoch() == before + 1
    with pytest.raises(Unauthenticated):
        await identity.of_key(secret)
    assert (await accounts.revoke(world.org, record.id)).revoked_at == revoked.revoked_at
    assert await world.epoch() == before + 1, "revoking again changes nothing"


async def test_all_that_is_wrong_with_a_key_is_said_at_once(world: Any) -> None:
    spec = KeySpec(
        kind="program", name="a\nb", scopes=("agents:read", "nonsense", CALL), allowed_ips=("10.0.0.0/8", "nowhere"),
        agent_id="agt_x", expires_at=world.now - 1,
    )  # fmt: skip
    with pytest.raises(ValidationFailed) as caught:
        await world.accounts.mint(world.org, spec, created_by="cli")
    paths = {field["path"] for field in caught.value.details["fields"]}
    assert paths == {"/name", "/scopes/1", "/scopes", "/allowed_ips/1", "/agent_id", "/expires_at"}


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        (KeySpec(kind="agent"), "/agent_id"),
        (KeySpec(kind="agent", agent_id="agt_unknown"), "/agent_id"),
        (KeySpec(kind="agent", agent_id="agt_x", scopes=("agents:read",)), "/scopes"),
        (KeySpec(kind="program"), "/scopes"),
        (KeySpec(kind="program", scopes=(CALL,)), "/scopes"),
    ],
)
async def test_keys_that_make_no_sense_are_refused(world: Any, spec: KeySpec, path: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        await world.accounts.mint(world.org, spec, created_by="cli")
    assert caught.value.details["fields"][0]["path"] == path


async def test_another_organisations_agent_is_unknown(world: Any) -> None:
    agent = await world.accounts.create_agent(world.other, AgentSpec(name="theirs"))
    with pytest.raises(ValidationFailed, match="not valid"):
        await world.accounts.mint(world.org, KeySpec(agent_id=agent.id), created_by="cli")
    record, _ = await world.accounts.mint(world.other, KeySpec(agent_id=agent.id), created_by="cli")
    for attempt in (world.accounts.key, world.accounts.revoke):
        with pytest.raises(NotFound):
            await attempt(world.org, record.id)


# -- keys that make keys -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("scope", sorted(set(SCOPES) - {"*", "keys:create"}))
async def test_no_single_scope_but_keys_create_mints(world: Any, scope: str) -> None:
    spec = KeySpec(kind="program", scopes=("agents:read",))
    with pytest.raises(Forbidden):
        await world.accounts.mint(world.org, spec, created_by="k", minter=minter(world.org, scope))


async def test_an_agents_key_never_mints_whatever_it_holds(world: Any) -> None:
    agent = Principal(world.org, "agt_1", "bot", "key_1", scopes=("*", "keys:create", CALL))
    with pytest.raises(Forbidden):
        await world.accounts.mint(
            world.org, KeySpec(kind="program", scopes=("agents:read",)), created_by="k", minter=agent
        )


@pytest.mark.parametrize("wanted", [("*",), ("keys:create",), ("agents:read", "keys:create"), ("upstreams:write",)])
async def test_nobody_gives_away_the_right_to_mint_or_what_he_does_not_hold(
    world: Any, wanted: tuple[str, ...]
) -> None:
    ordinary = minter(world.org, "keys:create", "agents:read")
    with pytest.raises(Forbidden):
        await world.accounts.mint(world.org, KeySpec(kind="program", scopes=wanted), created_by="k", minter=ordinary)
    if wanted != ("upstreams:write",):
        with pytest.raises(Forbidden):
            await world.accounts.mint(
                world.org, KeySpec(kind="program", scopes=wanted), created_by="k", minter=minter(world.org, "*")
            )


async def test_the_init_key_makes_agents_keys_and_programs_keys(world: Any) -> None:
    agent = await world.accounts.create_agent(world.org, AgentSpec(name="bot"))
    owner = minter(world.org, "*")
    made, _ = await world.accounts.mint(world.org, KeySpec(agent_id=agent.id), created_by="k", minter=owner)
    assert made.scopes == (CALL,)
    with pytest.raises(Forbidden):
        await world.accounts.mint(
            world.org,
            KeySpec(agent_id=agent.id),
            created_by="k",
            minter=minter(world.org, "keys:create", "agents:write"),
        )


async def test_a_made_key_is_no_wider_in_time_and_place_than_its_maker(world: Any) -> None:
    end = world.now + 1000
    owner = minter(world.org, "keys:create", "agents:read", expires_at=end, ips=("10.0.0.0/8", "2001:db8::/32"))

    async def mint(**fields: Any) -> ApiKey:
        spec = KeySpec(kind="program", scopes=("agents:read",), **fields)
        record, _ = await world.accounts.mint(world.org, spec, created_by="k", minter=owner)
        return record

    plain = await mint()
    assert plain.expires_at == end
    assert plain.allowed_ips == ("10.0.0.0/8", "2001:db8::/32")
    inside = await mint(expires_at=end - 1, allowed_ips=("10.1.0.0/16", "2001:db8:1::/48"))
    assert inside.expires_at == end - 1
    for wider in ({"expires_at": end + 1}, {"allowed_ips": ("0.0.0.0/0",)}, {"allowed_ips": ("10.1.0.0/16", "::/0")}):
        with pytest.raises(Forbidden):
            await mint(**wider)


async def test_a_key_makes_none_in_another_organisation(world: Any) -> None:
    with pytest.raises(NotFound):
        await world.accounts.mint(
            world.other, KeySpec(kind="program", scopes=("agents:read",)), created_by="k", minter=minter(world.org, "*")
        )


@given(st.sets(st.sampled_from(sorted(SCOPES))))
def test_generations_of_keys_only_ever_shrink(held: set[str]) -> None:
    given_away = delegable(held)
    assert not given_away & {"*", "keys:create"}
    assert not delegable(given_away), "a made key makes none"
    assert all(covers(held, scope) for scope in given_away)


# -- the table ---------------------------------------------------------------------------------------------------
def test_roles_grow_and_name_only_scopes_that_exist() -> None:
    for lower, higher in pairwise(ROLES):
        assert ROLE_SCOPES[lower] < ROLE_SCOPES[higher]
    assert frozenset(SCOPES) == ROLE_SCOPES["owner"]
