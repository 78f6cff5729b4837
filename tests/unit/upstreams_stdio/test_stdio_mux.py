"""Many requests share one child and never see each other."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from agenticmail_enterprise.adapters.upstreams.mux import StdioMux, create
from agenticmail_enterprise.catalog import errors

SERVER = Path(__file__).with_name("muxserver.py")
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"


def line(method, request_id=1, **params):
    return msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


class Waiting:
    """One request: what came back for it."""

    def __init__(self):
        self.notes = []
        self.number = 0
        self._answer = asyncio.get_running_loop().create_future()

    def put(self, message, *, last):
        if last:
            self._answer.set_result(msgspec.json.decode(message))
        else:
            self.notes.append(msgspec.json.decode(message))

    def fail(self, error):
        self._answer.set_exception(error)

    async def answer(self):
        return await asyncio.wait_for(self._answer, 30)

    async def result(self):
        return (await self.answer())["result"]


class Kit:
    """A mux over a child of its own, and what belonged to nobody."""

    def __init__(self, upstream, **settings):
        self.upstream = upstream
        self.heard = asyncio.Queue()
        self.reasons = []
        self.mux = StdioMux(
            "shared", lambda message, method: self.heard.put_nowait(message), self.reasons.append, **settings
        )

    async def send(self, message):
        waiting = Waiting()
        waiting.number = await self.mux.request(message, waiting)
        return waiting

    async def ask(self, message):
        return await (await self.send(message)).result()


@pytest.fixture
async def muxes(quick):
    made = []

    async def make(**settings):
        kit = Kit(create(sys.executable, ["-S", str(SERVER)], "", {}, name="shared", limits=quick), **settings)
        made.append(kit)
        await kit.mux.open(kit.upstream)
        return kit

    yield make
    for kit in made:
        await kit.mux.close()
        await kit.upstream.close()


async def test_requests_with_the_same_id_get_their_own_answers_whatever_the_order(muxes):
    kit = await muxes()
    sent = [await kit.send(line("echo", "same", value=n, seconds=0.002 * (50 - n))) for n in range(50)]
    answers = [await waiting.answer() for waiting in sent]
    assert [answer["result"]["echo"] for answer in answers] == list(range(50))
    assert {answer["id"] for answer in answers} == {"same"}
    assert kit.mux.idle


async def test_progress_comes_to_its_request_with_its_own_token(muxes):
    kit = await muxes()
    sent = [await kit.send(line("echo", 1, _meta={"progressToken": token})) for token in ("same", "same", 7, "7")]
    for waiting in sent:
        await waiting.answer()
    assert [[note["params"]["progressToken"] for note in waiting.notes] for waiting in sent] == [
        ["same"],
        ["same"],
        [7],
        ["7"],
    ]


async def test_a_subscriptions_events_come_to_its_request_with_its_own_id(muxes):
    kit = await muxes()
    first, second = (
        await kit.send(line("subscriptions/listen", "sub-1")),
        await kit.send(line("subscriptions/listen", 8)),
    )
    assert kit.mux.waiting() == []  # they wait for no answer that is due
    for waiting, own in ((first, "sub-1"), (second, 8)):
        assert (await waiting.result())["_meta"][SUBSCRIPTION] == own
        assert [note["params"]["_meta"][SUBSCRIPTION] for note in waiting.notes] == [own]
    assert kit.heard.empty()


async def test_who_leaves_cancels_its_own_request_and_nobody_elses(muxes):
    kit = await muxes()
    other = await kit.send(line("echo", 5, seconds=0.3, value="x"))
    leaver = await kit.send(line("never", 5))
    kit.mux.cancel(leaver.number)
    kit.mux.cancel(leaver.number)  # twice is once
    assert (await other.result())["echo"] == "x"
    kit.mux.cancel(other.number)  # answered: there is nothing to cancel
    assert await kit.ask(line("cancelled")) == {"ids": [leaver.number]}


async def test_a_clients_own_cancellation_names_the_request_as_the_server_knows_it(muxes):
    kit = await muxes()
    for request_id in ("a", "b", "c"):
        waiting = await kit.send(line("never", request_id))
        if request_id == "b":
            wanted = waiting.number
    for named in ("b", "no such"):
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": named, "reason": "x"}}
        await kit.mux.tell(msgspec.json.encode(note))
    assert await kit.ask(line("cancelled")) == {"ids": [wanted]}


async def test_a_late_answer_is_a_stray(muxes):
    kit = await muxes()
    late = await kit.send(line("echo", seconds=0.2))
    kit.mux.cancel(late.number)
    async with asyncio.timeout(30):
        while kit.mux.strays != 1:
            await asyncio.sleep(0.02)


async def test_when_the_child_dies_all_who_wait_are_told(muxes):
    kit = await muxes()
    waiting = [await kit.send(line("never", n)) for n in range(10)]
    crash = await kit.send(line("crash"))
    for one in [*waiting, crash]:
        with pytest.raises(errors.UpstreamBroken, match="exit code 9"):
            await one.answer()
    assert len(kit.reasons) == 1
    assert not kit.mux.alive
    with pytest.raises(errors.UpstreamRefused):
        await kit.send(line("echo"))
    assert kit.mux.idle


async def test_what_the_server_says_of_its_own_accord_belongs_to_no_request(muxes):
    kit = await muxes()
    waiting = await kit.send(line("ask back", ask="roots/list"))
    question = msgspec.json.decode(await asyncio.wait_for(kit.heard.get(), 30))
    assert (question["id"], question["method"]) == ("q1", "roots/list")
    await kit.mux.tell(b'{"jsonrpc":"2.0","id":"q1","result":{"roots":[]}}')
    assert await waiting.result() == {"answer": {"roots": []}}
    await kit.mux.tell(b'{"jsonrpc":"2.0","method":"notifications/hello","params":{"x":1}}')
    assert msgspec.json.decode(await asyncio.wait_for(kit.heard.get(), 30))["params"] == {"x": 1}


@pytest.mark.parametrize(
    "bad", [b"nonsense", b"[]", b"7", b'{"method":"notifications/cancelled","params":{}}', b'{"method":7}']
)
async def test_what_is_no_message_is_not_sent(muxes, bad):
    kit = await muxes()
    with pytest.raises(errors.BadRequest):
        await kit.mux.tell(bad)


async def test_strays_are_counted_and_shown_to_nobody(muxes):
    kit = await muxes()
    waiting = await kit.send(line("strays"))
    await waiting.result()
    assert kit.mux.strays == 6
    assert waiting.notes == []
    assert kit.heard.empty()


async def test_requests_in_progress_are_bounded(muxes):
    kit = await muxes(max_pending=3)
    waiting = [await kit.send(line("never", n)) for n in range(3)]
    with pytest.raises(errors.UpstreamBusy):
        await kit.send(line("echo"))
    for one in waiting:
        kit.mux.cancel(one.number)
    assert (await kit.ask(line("echo", value=1)))["echo"] == 1


async def test_closing_tells_all_who_wait(muxes):
    kit = await muxes()
    waiting = await kit.send(line("never"))
    await kit.mux.close()
    with pytest.raises(errors.UpstreamBroken):
        await waiting.answer()
    with pytest.raises(errors.UpstreamRefused):
        await kit.send(line("echo"))


async def test_a_batch_of_the_older_revisions_is_taken_apart():
    heard = []
    mux = StdioMux("shared", lambda message, method: heard.append(method))
    mux._on_line(b'[{"jsonrpc":"2.0","method":"a"},{"jsonrpc":"2.0","method":"b"}]')
    assert heard == ["a", "b"]
    with pytest.raises(errors.UpstreamRefused, match="not been started"):
        await mux.tell(b'{"jsonrpc":"2.0","method":"a"}')
