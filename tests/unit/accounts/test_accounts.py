"""Agents, their profiles and people: every change is noticed, nothing is left behind, nobody sees another tenant."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agenticmail_enterprise.catalog.errors import Conflict, NotFound, Stale, StoreUnavailable, ValidationFailed
from agenticmail_enterprise.catalog.presets import PRESET_PROFILES, get_preset
from agenticmail_enterprise.catalog.profiles import ArgumentRule, Profile, SkillRule
from agenticmail_enterprise.catalog.records import AGENTS, KEYS, PROFILES, USERS
from agenticmail_enterprise.catalog.store import Query, Replace
from agenticmail_enterprise.gateway.accounts import Accounts, AgentChange, AgentSpec, Assignment
from agenticmail_enterprise.gateway.keys import KeySpec

OWN = Profile(name="Own", skills=SkillRule(list=("email-management",)))


async def profiles(world: Any) -> list[Any]:
    return (await world.store.find(Query(PROFILES, "by_org", {"org": world.org}))).records


async def test_every_change_raises_the_epoch_in_the_same_commit_and_tells_this_process(world: Any) -> None:
    agent = await world.accounts.create_agent(world.org, AgentSpec(name="bot"))
    steps = [
        world.accounts.replace_agent(world.org, agent.id, AgentChange(name="bot", status="suspended")),
        world.accounts.assign(world.org, agent.id, Assignment(preset="sandbox")),
        world.accounts.mint(world.org, KeySpec(agent_id=agent.id), created_by="cli"),
        world.accounts.create_profile(world.org, "shared", OWN),
        world.accounts.delete_agent(world.org, agent.id),
    ]
    assert (await world.epoch(), world.told) == (1, 1)
    for number, step in enumerate(steps, 2):
        await step
        assert (await world.epoch(), world.told) == (number, number)


async def test_this_process_is_told_also_when_a_commit_seemed_to_fail(world: Any) -> None:
    class Torn:
        def __init__(self, store: Any) -> None:
            self.store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self.store, name)

        async def commit(self, *writes: Any) -> list[Any]:
            await self.store.commit(*writes)
            raise StoreUnavailable("the connection broke after the commit")

    accounts = Accounts(Torn(world.store), lambda: world.seconds, world.tell)
    with pytest.raises(StoreUnavailable):
        await accounts.create_agent(world.org, AgentSpec(name="bot"))
    assert world.told == 1


async def test_a_name_is_taken_once_per_organisation(world: Any) -> None:
    await world.accounts.create_agent(world.org, AgentSpec(name="bot"))
    await world.accounts.create_agent(world.other, AgentSpec(name="bot"))
    await world.accounts.create_agent(world.org, AgentSpec(name="Bot"))
    with pytest.raises(Conflict) as caught:
        await world.accounts.create_agent(world.org, AgentSpec(name="bot"))
    assert caught.value.index == "name"


@pytest.mark.parametrize("name", ["", " bot", "bot ", "a\nb", "bot\n", "a\x00b", "x" * 129, "\u2028", "\u00a0bot"])
async def test_names_that_look_like_others_or_break_lines_are_refused(world: Any, name: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        await world.accounts.create_agent(world.org, AgentSpec(name=name))
    assert caught.value.details["fields"][0]["path"] == "/name"


async def test_the_other_organisation_sees_and_changes_nothing(world: Any) -> None:
    agent = await world.accounts.create_agent(world.org, AgentSpec(name="bot"), Assignment(preset="sandbox"))
    theirs = world.other
    for attempt in (
        world.accounts.agent(theirs, agent.id),
        world.accounts.replace_agent(theirs, agent.id, AgentChange(name="mine")),
        world.accounts.delete_agent(theirs, agent.id),
        world.accounts.assign(theirs, agent.id, Assignment(preset="full-access")),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert (await world.accounts.agent(world.org, agent.id)).name == "bot"


async def test_leaving_out_the_status_does_not_wake_a_suspended_agent(world: Any) -> None:
    agent = await world.accounts.create_agent(world.org, AgentSpec(name="bot", status="suspended"))
    changed = await world.accounts.replace_agent(world.org, agent.id, AgentChange(name="new name"))
    assert (changed.name, changed.status) == ("new name", "suspended")


async def test_an_old_version_changes_nothing(world: Any) -> None:
    agent = await world.accounts.create_agent(world.org, AgentSpec(name="bot"))
    await world.accounts.replace_agent(world.org, agent.id, AgentChange(name="b"), agent.version)
    for attempt in (
        world.accounts.replace_agent(world.org, agent.id, AgentChange(name="c"), agent.version),
        world.accounts.delete_agent(world.org, agent.id, agent.version),
        world.accounts.assign(world.org, agent.id, Assignment(preset="sandbox"), agent.version),
    ):
        with pytest.raises(Stale):
            await attempt


# -- deleting ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [0, 3, 97, 98, 250])
async def test_deleting_an_agent_revokes_its_keys_however_many_and_nobody_elses(world: Any, count: int) -> None:
    agent = await world.accounts.create_agent(world.org, AgentSpec(name="bot"), Assignment(profile=OWN))
    other = await world.accounts.create_agent(world.org, AgentSpec(name="other"))
    spared, _ = await world.accounts.mint(world.org, KeySpec(agent_id=other.id), created_by="cli")
    for _ in range(count):
        await world.accounts.mint(world.org, KeySpec(agent_id=agent.id), created_by="cli")
    await world.accounts.delete_agent(world.org, agent.id)
    keys = (
        await world.store.find(Query(KEYS, "by_agent", {"org": world.org, "agent_id": agent.id}, limit=500))
    ).records
    assert len(keys) == count
    assert all(key.revoked_at for key in keys)
    assert not (await world.store.get(KEYS, world.org, spared.id)).revoked_at
    assert await profiles(world) == []


async def test_keys_that_were_revoked_before_keep_their_time(world: Any) -> None:
    agent = await world.accounts.create_agent(world.org, AgentSpec(name="bot"))
    record, _ = await world.accounts.mint(world.org, KeySpec(agent_id=agent.id), created_by="cli")
    first = (await world.accounts.revoke(world.org, record.id)).revoked_at
    world.seconds += 10
    await world.accounts.delete_agent(world.org, agent.id)
    assert (await world.store.get(KEYS, world.org, record.id)).revoked_at == first


# -- profiles ----------------------------------------------------------------------------------------------------
async def test_agents_with_one_preset_share_one_record_that_says_what_the_preset_says(world: Any) -> None:
    for number in range(3):
        await world.accounts.create_agent(world.org, AgentSpec(name=f"bot {number}"), Assignment(preset="sandbox"))
    stored = await profiles(world)
    assert [record.preset for record in stored] == ["sandbox"]
    assert stored[0].spec == get_preset("sandbox").profile


@pytest.mark.parametrize("preset", [preset.id for preset in PRESET_PROFILES])
async def test_every_preset_can_be_assigned(world: Any, preset: str) -> None:
    agent = await world.accounts.create_agent(world.org, AgentSpec(name="bot"))
    changed, record = await world.accounts.assign(world.org, agent.id, Assignment(preset=preset))
    assert changed.profile_id == record.id
    assert (await world.accounts.profile_of(changed)).spec == get_preset(preset).profile


async def test_a_preset_of_an_older_release_is_brought_up_to_date_when_assigned(world: Any) -> None:
    await world.accounts.create_agent(world.org, AgentSpec(name="first"), Assignment(preset="sandbox"))
    (record,) = await profiles(world)
    record.spec = Profile(name="what it said once")
    await world.store.commit(Replace(PROFILES, record))
    await world.accounts.create_agent(world.org, AgentSpec(name="second"), Assignment(preset="sandbox"))
    (record,) = await profiles(world)
    assert record.spec == get_preset("sandbox").profile


async def test_a_profile_of_its_own_is_changed_in_place_and_goes_when_another_is_assigned(world: Any) -> None:
    agent = await world.accounts.create_agent(world.org, AgentSpec(name="bot"))
    _, first = await world.accounts.assign(world.org, agent.id, Assignment(profile=OWN))
    changed, second = await world.accounts.assign(world.org, agent.id, Assignment(profile=Profile(max_risk="high")))
    assert (first.id, first.owner) == (second.id, agent.id)
    assert (second.version, second.spec.max_risk, changed.profile_id) == (2, "high", first.id)
    await world.accounts.assign(world.org, agent.id, Assignment(preset="sandbox"))
    assert [record.preset for record in await profiles(world)] == ["sandbox"]


async def test_shared_profiles_can_be_assigned_and_other_agents_own_ones_cannot(world: Any) -> None:
    shared = await world.accounts.create_profile(world.org, "shared", OWN)
    one = await world.accounts.create_agent(world.org, AgentSpec(name="one"), Assignment(profile_id=shared.id))
    assert one.profile_id == shared.id
    _, private = await world.accounts.assign(world.org, one.id, Assignment(profile=OWN))
    assert await world.store.get(PROFILES, world.org, shared.id), "a shared profile stays when an agent leaves it"
    theirs = await world.accounts.create_profile(world.other, "theirs", OWN)
    for wrong in (private.id, theirs.id, "prf_unknown", ""):
        with pytest.raises(ValidationFailed) as caught:
            await world.accounts.create_agent(world.org, AgentSpec(name="two"), Assignment(profile_id=wrong))
        assert caught.value.details["fields"][0]["path"] == "/profile_id"


@pytest.mark.parametrize(
    "assignment", [Assignment(), Assignment(preset="sandbox", profile_id="prf_x"), Assignment(preset="none")]
)
async def test_an_assignment_means_exactly_one_thing(world: Any, assignment: Assignment) -> None:
    agent = await world.accounts.create_agent(world.org, AgentSpec(name="bot"))
    with pytest.raises(ValidationFailed):
        await world.accounts.assign(world.org, agent.id, assignment)


async def test_a_profile_that_cannot_be_compiled_is_refused_with_its_place(world: Any) -> None:
    rule = ArgumentRule(name="bad", tools=("*",), field="to", op="matches", values=("(",))
    agent = await world.accounts.create_agent(world.org, AgentSpec(name="bot"))
    with pytest.raises(ValidationFailed) as caught:
        await world.accounts.assign(world.org, agent.id, Assignment(profile=Profile(argument_rules=(rule,))))
    assert caught.value.details["fields"][0]["path"].startswith("/profile/argument_rules/0")


async def test_agents_made_at_once_with_one_preset_all_get_it(world: Any) -> None:
    made = await asyncio.gather(*(
        world.accounts.create_agent(world.org, AgentSpec(name=f"bot {number}"), Assignment(preset="developer"))
        for number in range(10)
    ))  # fmt: skip
    assert {agent.profile_id for agent in made} == {(await profiles(world))[0].id}
    assert await world.store.count(Query(AGENTS, "by_org", {"org": world.org})) == 10


# -- organisations and people ------------------------------------------------------------------------------------
async def test_an_owner_is_created_with_a_hashed_password(world: Any) -> None:
    org = await world.accounts.create_org("Acme")
    user = await world.accounts.create_user(org.id, " Owner@Acme.test ", "a fine long password", name="Ana")
    stored = await world.store.get(USERS, org.id, user.id)
    assert (stored.email, stored.role) == ("owner@acme.test", "owner")
    assert stored.password_hash.startswith("$argon2id$")
    with pytest.raises(Conflict):
        await world.accounts.create_user(world.other, "OWNER@acme.test", "another fine password")


@pytest.mark.parametrize("email", ["", "owner", "@acme.test", "a@", "a b@c.d", "a@b@c", "a@b\n"])
async def test_what_is_no_address_is_refused(world: Any, email: str) -> None:
    if email == "a@b\n":
        email = "a\n@b"
    with pytest.raises(ValidationFailed):
        await world.accounts.create_user(world.org, email, "a fine long password")


async def test_an_organisation_needs_a_name(world: Any) -> None:
    for name in ("", "a\nb", "x" * 129):
        with pytest.raises(ValidationFailed):
            await world.accounts.create_org(name)
