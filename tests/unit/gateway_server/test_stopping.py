"""A stop loses no record: what was refused while the server stopped is written down before the journal closes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from agenticmail_enterprise.catalog.records import CALLS
from agenticmail_enterprise.catalog.store import GLOBAL, Query
from agenticmail_enterprise.gateway.stores import open_store
from tests.flows.house import House
from tests.security.wire import ask


async def test_a_malformed_request_that_is_refused_as_the_server_stops_is_on_record(tmp_path: Path) -> None:
    order: list[str] = []
    begun, connections_cut = asyncio.Event(), asyncio.Event()
    async with House(tmp_path) as house:
        refuse, cut, close = house.server.edge.turnaway.refuse, house.server._lanes.cut, house.runtime.close

        async def refuse_late(*facts: Any) -> Any:
            begun.set()
            await connections_cut.wait()
            response = await refuse(*facts)
            order.append("recorded")
            return response

        async def cut_and_go_on() -> None:
            await cut()
            connections_cut.set()

        async def close_then() -> None:
            order.append("closed")
            await close()

        house.server.edge.turnaway.refuse = refuse_late  # type: ignore[method-assign]
        house.server._lanes.cut = cut_and_go_on  # type: ignore[method-assign]
        house.runtime.close = close_then  # type: ignore[method-assign]
        reply = await ask(house.server.port, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nbad header\r\n\r\n")
        assert reply.status == 400
        await begun.wait()
    assert order == ["recorded", "closed"]
    store = open_store(house.settings.database)
    await store.open()
    try:
        (record,) = (await store.find(Query(CALLS, "by_org", {"org": GLOBAL}, limit=10))).records
    finally:
        await store.close()
    assert (record.effect, record.outcome, record.code) == ("deny", "denied", "BAD_REQUEST")
