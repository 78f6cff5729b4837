"""Two workers on one store and one data folder: what lives in one of them is reached through the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mcp import types

from agenticmail_enterprise.catalog.profiles import Profile, ToolRule
from agenticmail_enterprise.gateway.doors.siblings import Siblings
from agenticmail_enterprise.gateway.runtime import Runtime
from agenticmail_enterprise.gateway.server import Server, listen
from agenticmail_enterprise.gateway.settings import ServerSettings
from tests.flows.house import House, official
from tests.flows.servers import Telling
from tests.flows.test_aggregated_door import ANY, everything
from tests.flows.test_aggregated_streams import LONG, TOOLS_CHANGED, VISIBLE, Raw, until
from tests.flows.test_stdio_door import NOSY

CALL = {"jsonrpc": "2.0", "id": 9, "method": "tools/call"}


def hello(**capabilities: Any) -> dict[str, Any]:
    params = {
        "protocolVersion": "2025-11-25",
        "capabilities": capabilities,
        "clientInfo": {"name": "t", "version": "1"},
    }
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}


class Pair:
    """A house, which is worker 0, and worker 1 beside it. `at(n, ...)` sends to worker n."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.second: Server

    async def open(self) -> None:
        runtime = await Runtime.open(self.house.settings, worker=1)
        self.second = Server(runtime, listen("127.0.0.1", 0))
        await self.second.start()
        self.ports = (self.house.server.port, self.second.port)

    def request(self, worker: int, method: str, path: str, key: str, body: Any = None, **headers: str) -> Any:
        sent = {"X-API-Key": key, "Accept": "application/json, text/event-stream", **headers}
        url = f"http://127.0.0.1:{self.ports[worker]}{path}"
        return self.house.http.request(method, url, json=body, headers=sent)

    async def at(
        self, worker: int, method: str, path: str, key: str, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        async with self.request(worker, method, path, key, body, **headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    async def session(self, worker: int, path: str, key: str, **capabilities: Any) -> dict[str, str]:
        async with self.request(worker, "POST", path, key, hello(**capabilities)) as answer:
            assert answer.status == 200, await answer.text()
            return {"Mcp-Session-Id": answer.headers["Mcp-Session-Id"]}

    async def know(self) -> None:
        """Both have heard of all that was registered."""
        await self.second.runtime.epochs.look()
        await self.second.runtime.upstreams.sync()


@contextlib.asynccontextmanager
async def two_workers(tmp_path: Path, **settings: Any) -> AsyncIterator[Pair]:
    async with House(tmp_path, server=ServerSettings(workers=2), **settings) as house:
        pair = Pair(house)
        await pair.open()
        try:
            yield pair
        finally:
            if not pair.second.edge.stopping:
                await pair.second.stop()


@pytest.mark.parametrize("home", [0, 1])
async def test_an_answer_reaches_the_call_that_waits_for_it_at_the_other_worker(tmp_path: Path, home: int) -> None:
    away = 1 - home
    async with everything() as url, two_workers(tmp_path) as pair:
        await pair.house.upstream("all", url)
        await pair.know()
        key = await pair.house.agent("any", ANY)
        at = await pair.session(home, "/mcp", key, elicitation={})
        call = {**CALL, "params": {"name": "all__test_elicitation", "arguments": {"message": "Who?"}}}
        async with pair.request(away, "POST", "/mcp", key, call, **at) as response:  # handed over, and streamed back
            stream = Raw(response)
            question = await stream.next()
            assert question["method"] == "elicitation/create"
            said = {"action": "accept", "content": {"username": "ada", "email": "ada@acme.test"}}
            answer = {"jsonrpc": "2.0", "id": question["id"], "result": said}
            assert (await pair.at(away, "POST", "/mcp", key, answer, **at))[0] == 202
            result = await stream.next()
            assert "ada@acme.test" in result["result"]["content"][0]["text"]
        (record,) = await pair.house.records(1)
        assert (record.tool, record.outcome) == ("all__test_elicitation", "ok")


async def test_a_sessions_stream_is_one_whichever_worker_it_is_asked_at(tmp_path: Path) -> None:
    async with Telling() as old, two_workers(tmp_path) as pair:
        await pair.house.upstream("old", old.url)
        await pair.know()
        key, thief = await pair.house.agent("any", ANY), await pair.house.agent("thief", ANY)
        at = await pair.session(0, "/mcp", key)
        assert (await pair.at(1, "GET", "/mcp", thief, **at))[0] == 404
        async with pair.request(1, "GET", "/mcp", key, **at) as response:
            stream = Raw(response)
            await until(lambda: old.streams)
            assert (await pair.at(1, "POST", "/mcp", key, {**CALL, "method": "tools/list"}, **at))[0] == 200
            old.tools[0] = dict(VISIBLE)
            old.tell(TOOLS_CHANGED)
            assert (await stream.next())["method"] == TOOLS_CHANGED
            assert (await pair.at(1, "DELETE", "/mcp", key, **at))[0] == 204
            assert await stream.next() is None


async def test_a_session_whose_worker_is_away_goes_on_at_the_other(tmp_path: Path) -> None:
    async with Telling() as old, two_workers(tmp_path) as pair:
        await pair.house.upstream("old", old.url)
        await pair.know()
        key = await pair.house.agent("any", ANY)
        at = await pair.session(1, "/mcp", key)
        call = {**CALL, "params": {"name": "old__read_mail", "arguments": {}}}
        assert (await pair.at(0, "POST", "/mcp", key, call, **at))[1]["result"]["isError"] is False
        await pair.second.stop()
        assert (await pair.at(0, "POST", "/mcp", key, call, **at))[1]["result"]["isError"] is False
        async with pair.request(0, "GET", "/mcp", key, **at) as response:
            await until(lambda: old.streams)
            await pair.open()  # it is back: the stream ends, so that the client asks for it where the session lives
            assert await Raw(response).next() is None
        assert [r.outcome for r in await pair.house.records(2)] == ["ok", "ok"]


async def test_a_child_of_one_worker_is_reached_through_the_other(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as pair:
        await pair.house.upstream("mail", kind="mcp_stdio", command=(sys.executable, "-c", NOSY))
        await pair.know()
        key, thief = await pair.house.agent("any", ANY), await pair.house.agent("thief", ANY)
        at = await pair.session(0, "/mcp/mail", key)
        call = {**CALL, "params": {"name": "look", "arguments": {}}}

        async def said(worker: int) -> Any:
            status, body = await pair.at(worker, "POST", "/mcp/mail", key, call, **at)
            assert status == 200, body
            return json.loads(body["result"]["content"][0]["text"])

        answers = [await said(worker) for worker in (0, 1, 1, 0)]
        assert [answer["seen"] for answer in answers] == [1, 2, 3, 4]
        assert len({answer["pid"] for answer in answers}) == 1
        assert (await pair.at(1, "POST", "/mcp/mail", thief, call, **at))[0] == 404
        note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert (await pair.at(1, "POST", "/mcp/mail", key, note, **at))[0] == 202
        assert (await pair.at(1, "DELETE", "/mcp/mail", key, **at))[0] == 200
        assert [(await pair.at(worker, "POST", "/mcp/mail", key, call, **at))[0] for worker in (0, 1)] == [404, 404]
        gone = await pair.session(1, "/mcp/mail", key)
        await pair.second.stop()
        assert (await pair.at(0, "POST", "/mcp/mail", key, call, **gone))[0] == 404  # its child went with its worker


@pytest.mark.parametrize(("network", "refused"), [("127.0.0.0/8", False), ("203.0.113.0/24", True)])
async def test_where_a_call_comes_from_is_told_by_the_connection_and_not_by_the_client(
    tmp_path: Path, network: str, refused: bool
) -> None:
    near = Profile(
        name="near", tools=ToolRule(allow=("*",)), max_risk="critical", allow_unknown=True, allowed_ips=(network,)
    )  # fmt: skip
    async with Telling() as old, two_workers(tmp_path) as pair:
        await pair.house.upstream("old", old.url)
        await pair.know()
        key = await pair.house.agent("near", near)
        at = await pair.session(0, "/mcp", key)
        call = {**CALL, "params": {"name": "old__read_mail", "arguments": {}}}
        for lie in ({}, {"X-AgenticMail-Client": "203.0.113.7"}):
            status, body = await pair.at(1, "POST", "/mcp", key, call, **at, **lie)
            assert (status, body["result"]["isError"]) == (200, refused), lie


async def test_a_data_folder_deeper_than_a_sockets_name_may_be_long(tmp_path: Path) -> None:
    deep = tmp_path / ("a" * 80) / ("b" * 80)
    async with Telling() as old, two_workers(tmp_path, data_dir=str(deep)) as pair:
        await pair.house.upstream("old", old.url)
        await pair.know()
        key = await pair.house.agent("any", ANY)
        at = await pair.session(0, "/mcp", key)
        assert (await pair.at(1, "POST", "/mcp", key, {**CALL, "method": "tools/list"}, **at))[0] == 200
        assert pair.second.runtime.siblings.there(0)
        assert (deep / "workers").stat().st_mode & 0o777 == 0o700


async def test_one_worker_opens_no_socket(tmp_path: Path) -> None:
    siblings = Siblings(tmp_path, 0, 1)
    await siblings.start({})
    assert not list(tmp_path.iterdir())
    assert [siblings.home(number) for number in (0, 3, None, "x")] == [0, 0, 0, 0]
    await siblings.close()


async def test_official_clients_are_asked_and_heard_with_real_workers(tmp_path: Path) -> None:
    """The kernel spreads connections over the workers: each client has several, so most sessions meet both."""
    people = 8

    async def elicit(context: Any, params: Any) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"username": "ada", "email": f"{params.message}@acme.test"})

    async with everything() as url, House(tmp_path) as house:
        await house.upstream("all", url)
        key = await house.agent("any", ANY)
        async with serve(tmp_path, house) as port:
            front: Any = SimpleNamespace(server=SimpleNamespace(port=port))

            async def talk(number: int) -> str:
                async with official(front, key, "/mcp", "legacy", elicitation_callback=elicit) as client:
                    answer = await client.call_tool("all__test_elicitation", {"message": f"nr{number}"})
                    return str(answer.content[0].text)

            async with asyncio.timeout(2 * LONG):
                texts = await asyncio.gather(*(talk(number) for number in range(people)))
            assert all(f"nr{number}@acme.test" in text for number, text in enumerate(texts))


@contextlib.asynccontextmanager
async def serve(tmp_path: Path, house: House) -> AsyncIterator[int]:
    """`serve --workers 2` on the house's store, with a data folder of its own and the house's key."""
    data = tmp_path / "served"
    data.mkdir(mode=0o700)
    (data / "secret.key").write_bytes((Path(house.settings.data_dir) / "secret.key").read_bytes())
    (data / "secret.key").chmod(0o600)
    config = tmp_path / "serve.toml"
    config.write_text(f"database = {json.dumps(house.settings.database)}\ndata_dir = {json.dumps(str(data))}\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agenticmail_enterprise.gateway.cli", "serve", "--config", str(config), "--port", "0",
        "--workers", "2", "--json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, cwd=tmp_path,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(2 * LONG):
            ready = json.loads(await process.stdout.readline())
        yield int(ready["url"].rpartition(":")[2])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(LONG):
            await process.wait()
