"""Many callers share one child and never see each other."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from agenticmail_enterprise.adapters.upstreams.mcp_stdio import Limits, create
from agenticmail_enterprise.adapters.upstreams.mux import StdioMux
from agenticmail_enterprise.catalog import errors

SERVER = Path(__file__).with_name("muxserver.py")
SDK_SERVER = """
from mcp.server.mcpserver import MCPServer
server = MCPServer("shop")

@server.tool()
def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b

server.run("stdio")
"""


def line(method, request_id=1, **params):
    return msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def result(response):
    return msgspec.json.decode(response)["result"]


@pytest.fixture
async def muxes(quick):
    made = []

    def make(*habits, limits=quick, **settings):
        upstream = create(sys.executable, ["-S", str(SERVER), *habits], "", {}, name="shared", limits=limits)
        made.append((mux := StdioMux(upstream, **settings), upstream))
        return mux

    yield make
    for mux, upstream in made:
        await mux.close()
        await upstream.close()


async def test_callers_with_the_same_id_get_their_own_answers_whatever_the_order(muxes):
    mux = muxes()
    answers = await asyncio.gather(
        *(mux.request(line("echo", "same", value=n, seconds=0.002 * (50 - n)), timeout=10) for n in range(50))
    )
    assert [result(answer)["echo"] for answer in answers] == list(range(50))
    assert {msgspec.json.decode(answer)["id"] for answer in answers} == {"same"}
    assert len({result(answer)["pid"] for answer in answers}) == 1


async def test_progress_comes_to_its_caller_with_its_own_token(muxes):
    mux = muxes()
    heard = {"a": [], "b": []}
    await asyncio.gather(
        *(
            mux.request(line("echo", 1, _meta={"progressToken": token}), timeout=10, on_notify=heard[name].append)
            for name, token in {"a": "same", "b": "same"}.items()
        )
    )
    for name in heard:
        assert [msgspec.json.decode(m)["params"]["progressToken"] for m in heard[name]] == ["same"]


async def test_a_subscriptions_events_come_to_its_caller_only(muxes):
    others = []
    mux = muxes(on_notification=others.append)
    events = []
    end = await mux.request(line("subscriptions/listen", "sub-1"), timeout=None, on_notify=events.append)
    key = "io.modelcontextprotocol/subscriptionId"
    assert [msgspec.json.decode(event)["params"]["_meta"][key] for event in events] == ["sub-1"]
    assert result(end)["_meta"][key] == "sub-1"
    assert others == []


async def test_a_caller_that_leaves_cancels_its_request_at_the_server_and_nobody_elses(muxes):
    mux = muxes()
    await mux.request(line("echo"), timeout=10)  # the child is ready, and two ids are used: ours, and this one's
    other = asyncio.create_task(mux.request(line("echo", 5, seconds=0.3, value="x"), timeout=10))
    await asyncio.sleep(0)
    leaver = asyncio.create_task(mux.request(line("never", 5), timeout=10))
    while mux._last < 4:
        await asyncio.sleep(0.01)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    assert leaver.cancelled()
    assert result(await other)["echo"] == "x"
    assert result(await mux.request(line("cancelled"), timeout=10)) == {"ids": [4]}


async def test_a_late_answer_is_a_timeout_and_then_a_stray(muxes):
    mux = muxes()
    await mux.request(line("echo"), timeout=10)
    with pytest.raises(errors.UpstreamTimeout) as late:
        await mux.request(line("echo", seconds=0.2), timeout=0.05)
    assert not late.value.unsent
    async with asyncio.timeout(10):
        while mux.strays != 1:
            await asyncio.sleep(0.02)


async def test_when_the_child_dies_all_who_wait_are_told_and_the_next_gets_a_new_child(muxes):
    mux = muxes()
    first = result(await mux.request(line("echo"), timeout=10))["pid"]
    waiting = [asyncio.create_task(mux.request(line("never", n), timeout=10)) for n in range(10)]
    await asyncio.sleep(0.02)
    with pytest.raises(errors.UpstreamBroken, match="exit code 9"):
        await mux.request(line("crash"), timeout=10)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {errors.UpstreamBroken}
    assert result(await mux.request(line("echo"), timeout=10))["pid"] != first


async def test_a_child_that_keeps_dying_is_left_alone_for_a_while(muxes):
    mux = muxes("dies at discover", "never ready", era="modern", limits=Limits(backoff_base=60))
    with pytest.raises(errors.UpstreamBroken):
        await mux.request(line("echo"), timeout=10)
    with pytest.raises(errors.BreakerOpen):
        await mux.request(line("echo"), timeout=10)


async def test_a_stateless_server_is_recognised_and_asked_with_the_envelope(muxes):
    mux = muxes(client={"name": "us", "version": "9"})
    answer = await mux.ask("echo", {"value": 1}, timeout=10)
    assert (mux.era, mux.version) == ("modern", "2026-07-28")
    assert answer["meta"]["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
    assert answer["meta"]["io.modelcontextprotocol/clientInfo"] == {"name": "us", "version": "9"}


@pytest.mark.parametrize("habit", ["handshake only", "dies at discover", "deaf to discover"])
async def test_an_older_server_is_given_its_handshake(muxes, habit):
    mux = muxes(habit, probe_timeout=0.2)
    answer = await mux.ask("echo", {"value": 1}, timeout=10)
    assert answer["meta"] == {}
    assert (mux.era, mux.version) == ("handshake", "2025-11-25")
    assert mux.server["serverInfo"] == {"name": "m"}


async def test_a_server_that_is_never_ready_is_refused_and_ended(muxes):
    mux = muxes("never ready", "handshake only", start_timeout=0.3)
    with pytest.raises(errors.UpstreamRefused, match="not ready") as refused:
        await mux.request(line("echo"), timeout=10)
    assert refused.value.unsent


async def test_a_caller_whose_time_is_up_before_the_child_is_ready_knows_that_nothing_was_sent(muxes):
    mux = muxes("never ready", "handshake only")
    with pytest.raises(errors.UpstreamBusy) as busy:
        await mux.request(line("echo"), timeout=0.2)
    assert busy.value.unsent


async def test_an_error_to_our_own_question_is_one_of_ours(muxes):
    with pytest.raises(errors.UpstreamProtocol, match="Method not found") as failed:
        await muxes().ask("no/such/method", {}, timeout=10)
    assert failed.value.details["code"] == -32601


@pytest.mark.parametrize(("method", "answer"), [("ping", {}), ("sampling/createMessage", {"code": -32601})])
async def test_what_the_server_asks_is_answered_even_if_nobody_listens(muxes, method, answer):
    mux = muxes()
    given = result(await mux.request(line("ask back", ask=method), timeout=10))["answer"]
    assert {key: given[key] for key in answer} == answer


async def test_what_the_server_asks_goes_to_the_handler(muxes):
    async def handler(message):
        request = msgspec.json.decode(message)
        return msgspec.json.encode({"jsonrpc": "2.0", "id": request["id"], "result": {"roots": [request["method"]]}})

    mux = muxes(on_request=handler)
    given = result(await mux.request(line("ask back", ask="roots/list"), timeout=10))
    assert given == {"answer": {"roots": ["roots/list"]}}


async def test_a_handler_that_raises_is_counted_and_the_server_hears_of_it(muxes):
    async def handler(message):
        raise ValueError

    mux = muxes(on_request=handler)
    given = result(await mux.request(line("ask back", ask="roots/list"), timeout=10))["answer"]
    assert given["code"] == -32603
    assert mux.faults == 1


async def test_notifications_pass_and_foreign_cancellations_do_not(muxes):
    heard = asyncio.Queue()
    mux = muxes(on_notification=heard.put_nowait)
    await mux.notify(b'{"jsonrpc":"2.0","method":"notifications/hello","params":{"x":1}}')
    assert msgspec.json.decode(await asyncio.wait_for(heard.get(), 10))["params"] == {"x": 1}
    for bad in (b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}', b"nonsense", b"[]"):
        with pytest.raises(errors.BadRequest):
            await mux.notify(bad)


async def test_strays_are_counted_and_shown_to_nobody(muxes):
    seen = []
    mux = muxes(on_notification=seen.append)
    await mux.request(line("strays"), timeout=10, on_notify=seen.append)
    assert mux.strays == 6
    assert seen == []


async def test_requests_in_progress_are_bounded(muxes):
    mux = muxes(max_pending=3)
    await mux.request(line("echo"), timeout=10)
    waiting = [asyncio.create_task(mux.request(line("never", n), timeout=10)) for n in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(errors.UpstreamBusy):
        await mux.request(line("echo"), timeout=10)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert result(await mux.request(line("echo", value=1), timeout=10))["echo"] == 1


async def test_closing_tells_all_who_wait(muxes):
    mux = muxes()
    await mux.request(line("echo"), timeout=10)
    waiting = asyncio.create_task(mux.request(line("never"), timeout=10))
    await asyncio.sleep(0.02)
    await mux.close()
    with pytest.raises(errors.UpstreamBroken):
        await waiting
    with pytest.raises(errors.UpstreamRefused):
        await mux.request(line("echo"), timeout=10)


async def test_closing_while_a_child_starts_leaves_none(muxes):
    mux = muxes("never ready", "handshake only")
    waiting = asyncio.create_task(mux.request(line("echo"), timeout=10))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        await mux.close()
    outcome = await asyncio.gather(waiting, return_exceptions=True)
    assert isinstance(outcome[0], errors.UpstreamRefused | asyncio.CancelledError)


async def test_a_batch_of_the_older_revisions_is_taken_apart(house):
    upstream = house.upstream()
    mux = StdioMux(upstream, era="handshake", on_notification=(notes := []).append)
    mux._on_line(b'[{"jsonrpc":"2.0","method":"a"},{"jsonrpc":"2.0","method":"b"}]')
    assert [msgspec.json.decode(note)["method"] for note in notes] == ["a", "b"]


@pytest.mark.parametrize("era", [None, "handshake"])
async def test_the_official_sdks_server_is_understood(tmp_path, era):
    program = tmp_path / "shop.py"
    program.write_text(SDK_SERVER)
    upstream = create(sys.executable, [str(program)], "", {}, name="shop")
    mux = StdioMux(upstream, era=era)
    tools = await mux.ask("tools/list", {}, timeout=30)
    assert [tool["name"] for tool in tools["tools"]] == ["add"]
    assert mux.era == (era or "modern")
    answers = await asyncio.gather(
        *(mux.ask("tools/call", {"name": "add", "arguments": {"a": n, "b": 1}}, timeout=30) for n in range(20))
    )
    assert [answer["structuredContent"]["result"] for answer in answers] == list(range(1, 21))
    await mux.close()
    await upstream.close()
