"""An organisation's tools: built-in facts, its own servers' tools, and which of the two wins."""

import asyncio

import pytest

from agenticmail_enterprise.catalog.errors import StoreUnavailable


@pytest.fixture
def house(kit):
    made = kit.House()
    made.upstream(name="crm")
    made.upstream(name="strict", pin_policy="hold")
    return made


async def test_a_servers_tool_is_known_once_registered(house):
    assert not (await house.catalog.load("org1", "crm__find")).known
    house.tool(tool_id="crm__find", upstream="crm", name="find", risk="low", skills=("crm",))
    tool = await house.catalog.load("org1", "crm__find")
    assert (tool.known, tool.risk, tool.skills, tool.upstream) == (True, "low", ("crm",), "crm")
    assert not (await house.catalog.load("org2", "crm__find")).known


async def test_a_server_cannot_lower_a_built_in_risk_but_a_person_can(house):
    house.tool(tool_id="exec", upstream="crm", risk="low", side_effects=(), skills=("email-management",))
    tool = await house.catalog.load("org1", "exec")
    assert (tool.risk, tool.skills, tool.upstream) == ("critical", ("code-execution",), "crm")
    house.tool(tool_id="exec", upstream="crm", risk="low", side_effects=(), corrected=True)
    assert (await house.catalog.load("org1", "exec")).risk == "low"


@pytest.mark.parametrize(
    ("upstream", "pin", "seen", "held"),
    [("strict", "a", "a", False), ("strict", "a", "b", True), ("crm", "a", "b", False), ("vanished", "a", "b", True)],
)
async def test_a_changed_tool_is_held_where_the_server_is_so_configured(house, upstream, pin, seen, held):
    house.tool(tool_id="t", upstream=upstream, pin=pin, seen=seen)
    assert (await house.catalog.load("org1", "t")).pin_held is held
    await house.catalog.load_all("org1")
    assert house.catalog.lookup("org1", "t").pin_held is held


async def test_each_tool_is_read_once_per_change(house):
    house.tool(tool_id="t", upstream="crm")
    house.shelf.reads.clear()
    for _ in range(3):
        await house.catalog.load("org1", "t")
        await house.catalog.load("org1", "absent")
    assert house.shelf.reads == ["tool", "tool"]
    house.catalog.invalidate()
    await house.catalog.load_all("org1")
    await house.catalog.load_all("org1")
    assert (await house.catalog.load("org1", "t")).known
    assert not (await house.catalog.load("org1", "absent")).known
    assert house.shelf.reads == ["tool"] * 3


async def test_all_pages_are_read(house):
    for number in range(1_203):
        house.tool(tool_id=f"t{number}", upstream="crm")
    await house.catalog.load_all("org1")
    assert all(house.catalog.lookup("org1", f"t{number}").known for number in range(1_203))


async def test_a_read_that_began_before_a_change_is_not_kept(house):
    house.tool(tool_id="t", upstream="crm", risk="low")
    release = asyncio.Event()
    house.shelf.before = lambda what: release.wait()
    early = asyncio.create_task(house.catalog.load("org1", "t"))
    await asyncio.sleep(0)
    house.tool(tool_id="t", upstream="crm", risk="critical")
    release.set()
    assert (await early).risk == "low"
    assert (await house.catalog.load("org1", "t")).risk == "critical"


async def test_looking_up_never_waits_and_uses_what_was_last_read(house):
    house.tool(tool_id="t", upstream="crm", risk="low")
    assert not house.catalog.lookup("org1", "t").known
    assert house.catalog.lookup("org1", "exec").known
    await house.catalog.load_all("org1")
    house.catalog.invalidate()
    assert house.catalog.lookup("org1", "t").known


async def test_a_store_that_is_away_is_said_so(house):
    house.shelf.broken = True
    with pytest.raises(StoreUnavailable):
        await house.catalog.load("org1", "exec")
