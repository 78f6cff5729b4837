"""Lists: pages while near the front, cursors as far as one likes, each bound to its list and its tenant."""

from __future__ import annotations

from typing import Any

import pytest

from agenticmail_enterprise.catalog.ids import new_id
from agenticmail_enterprise.catalog.records import AGENTS, CALLS, CHAIN_HEADS, Agent, CallRecord, ChainHead
from agenticmail_enterprise.catalog.store import Insert


async def fill(site: Any, count: int, **fields: Any) -> list[str]:
    agents = [Agent(org=site.org, id=new_id("agent"), name=f"bot {number:05}", **fields) for number in range(count)]
    for start in range(0, count, 100):
        await site.store.commit(*(Insert(AGENTS, agent) for agent in agents[start : start + 100]))
    return [agent.id for agent in agents]


async def walk(site: Any, path: str, **query: str) -> list[str]:
    seen: list[str] = []
    cursor = ""
    while True:
        answer = await site.call("GET", path, query={**query, **({"cursor": cursor} if cursor else {})})
        assert answer.status == 200, answer.json
        seen += [item["id"] for item in answer.json["data"]]
        cursor = answer.json["meta"]["next_cursor"] or ""
        assert answer.json["meta"]["has_more"] == bool(cursor)
        if not cursor:
            return seen


@pytest.mark.parametrize("limit", ["1", "7", "25", "26", "200"])
async def test_a_walk_by_cursor_sees_everything_once_and_in_order(site: Any, limit: str) -> None:
    made = await fill(site, 25)
    assert await walk(site, "/api/agents", limit=limit) == made


async def test_pages_and_cursors_show_the_same(site: Any) -> None:
    made = await fill(site, 23)
    by_page: list[str] = []
    for page in (1, 2, 3, 4):
        answer = await site.call("GET", f"/api/agents?limit=10&page={page}")
        assert answer.json["meta"] | {"next_cursor": None, "has_more": None} == {
            "total": 23, "page": page, "limit": 10, "next_cursor": None, "has_more": None,
        }  # fmt: skip
        by_page += [item["id"] for item in answer.json["data"]]
    assert by_page == made


async def test_an_agent_made_meanwhile_is_neither_doubled_nor_does_it_hide_another(site: Any) -> None:
    made = await fill(site, 10)
    first = await site.call("GET", "/api/agents?limit=5")
    await site.call("DELETE", f"/api/agents/{made[1]}")
    await fill(site, 0)
    second = await site.call("GET", "/api/agents", query={"limit": "5", "cursor": first.json["meta"]["next_cursor"]})
    assert [item["id"] for item in second.json["data"]] == made[5:10]


async def test_a_cursor_works_in_its_own_list_and_tenant_only(site: Any) -> None:
    await fill(site, 5)
    cursor = (await site.call("GET", "/api/agents?limit=2")).json["meta"]["next_cursor"]
    for path, key in (
        ("/api/agents?status=active", site.owner), ("/api/keys", site.owner), ("/api/calls", site.owner),
        ("/api/engine/tools", site.owner), ("/api/agents", site.stranger),
    ):  # fmt: skip
        joint = "&" if "?" in path else "?"
        answer = await site.call("GET", f"{path}{joint}cursor={cursor}", key=key)
        assert (answer.status, answer.json["code"]) == (400, "CURSOR_INVALID"), path


async def test_a_cursor_with_one_changed_character_is_refused(site: Any) -> None:
    await fill(site, 5)
    cursor = (await site.call("GET", "/api/agents?limit=2")).json["meta"]["next_cursor"]
    for place in range(0, len(cursor) - 1, 5):
        changed = cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :]
        assert (await site.call("GET", "/api/agents", query={"cursor": changed})).status == 400


async def test_far_pages_ask_for_a_cursor_and_pages_past_the_end_are_empty(site: Any) -> None:
    await fill(site, 3)
    far = await site.call("GET", "/api/agents?limit=200&page=52")
    assert (far.status, far.json["code"]) == (400, "USE_CURSOR")
    past = await site.call("GET", "/api/agents?limit=200&page=51")
    assert (past.status, past.json["data"], past.json["meta"]["total"]) == (200, [], 3)


async def test_counting_can_be_left_out(site: Any) -> None:
    await fill(site, 3)
    assert (await site.call("GET", "/api/agents?count=none")).json["meta"]["total"] is None
    assert (await site.call("GET", "/api/engine/skills?count=none")).json["meta"]["total"] is None


async def test_filters_filter_and_do_not_combine(site: Any) -> None:
    await fill(site, 3)
    await site.call("POST", "/api/agents", {"name": "asleep", "status": "suspended"})
    answer = await site.call("GET", "/api/agents?status=suspended")
    assert [item["name"] for item in answer.json["data"]] == ["asleep"]
    assert answer.json["meta"]["total"] == 1
    assert (await site.call("GET", "/api/agents?status=asleep")).fields == {"/status": "choice"}
    assert (await site.call("GET", "/api/agents?status=active&profile_id=x")).status == 400
    assert (await site.call("GET", "/api/agents?profile_id=")).json["meta"]["total"] == 4


async def test_a_list_in_memory_pages_like_a_stored_one(site: Any) -> None:
    everything = await site.call("GET", "/api/engine/skills?limit=200")
    ids = [item["id"] for item in everything.json["data"]]
    assert len(ids) == 38 == everything.json["meta"]["total"]
    assert await walk(site, "/api/engine/skills", limit="7") == ids
    assert (await site.call("GET", "/api/engine/skills?page=4&limit=10")).json["data"][-1]["id"] == ids[-1]
    assert (await site.call("GET", "/api/engine/skills?page=5&limit=10")).json["data"] == []


# -- the record --------------------------------------------------------------------------------------------------
async def test_calls_are_newest_first_and_only_what_the_chain_vouches_for(site: Any) -> None:
    start = 1_795_000_000_000
    records = [
        CallRecord(org=site.org, id=f"dec_{start + number * 1000:012x}{number:020x}", agent=f"agt_{number % 2}",
                   seq=number + 1, at=(start + number * 1000) * 1000, effect="deny", reason="no", outcome="denied")
        for number in range(6)
    ]  # fmt: skip
    await site.store.append(CALLS, records)
    await site.store.commit(Insert(CHAIN_HEADS, ChainHead(org=site.org, id="calls", seq=5)))
    newest = [item["seq"] for item in (await site.call("GET", "/api/calls")).json["data"]]
    assert newest == [5, 4, 3, 2, 1]
    assert (await site.call("GET", f"/api/calls/{records[5].id}")).status == 404
    own = (await site.call("GET", "/api/calls?agent_id=agt_1&order=oldest")).json["data"]
    assert [item["seq"] for item in own] == [2, 4]
    span = (await site.call("GET", "/api/calls?since=2026-11-18T08:53:21Z&until=2026-11-18T08:53:23Z")).json
    times = [item["at"] for item in span["data"]]
    assert all("2026-11-18T08:53:21" <= at < "2026-11-18T08:53:23" for at in times)
    assert (await site.call("GET", "/api/calls?since=2026-11-18")).fields == {"/since": "format"}


async def test_stats_count_what_is_there(site: Any) -> None:
    await site.furnish()
    data = (await site.call("GET", "/api/engine/stats")).json["data"]
    assert (data["agents"], data["agents_by_status"]["active"], data["upstreams"], data["tools_registered"]) == (
        1,
        1,
        1,
        1,
    )
    assert (data["skills"], data["presets"], data["calls"]) == (38, 5, 1)
    assert (data["recent_effects"], data["recent_outcomes"]) == ({"allow": 1}, {"ok": 1})
    other = (await site.call("GET", "/api/engine/stats", key=site.stranger)).json["data"]
    assert (other["agents"], other["calls"], other["recent_effects"]) == (0, 0, {})
