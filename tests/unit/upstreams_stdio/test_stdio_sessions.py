"""A session is a child process: what goes in and out of it, and how it ends."""

from __future__ import annotations

import asyncio
import os

import msgspec
import pytest

from agenticmail_enterprise.adapters.upstreams.mcp_stdio import Limits
from agenticmail_enterprise.catalog import errors


async def test_a_message_goes_in_and_its_answer_comes_out(house):
    client = await house.client()
    assert await client.ask("echo", 5, text="häh? 😀") == {"text": "häh? 😀"}
    await client.session.close()
    assert client.reasons == ["closed"]
    assert not client.session.alive


async def test_a_message_on_several_lines_goes_in_as_one_and_keeps_its_numbers(house):
    client = await house.client()
    await client.session.send(
        b'{"jsonrpc": "2.0",\r\n "id": 1,\n "method": "echo",\n "params": {"n": 1234567890123456789012, "s": "a\\nb"}}'
    )
    assert await client.answer(1) == {"n": 1234567890123456789012, "s": "a\nb"}


@pytest.mark.parametrize(
    "bad",
    [b"", b"hello", b'{"id":1', b'{"a":1}{"b":2}', b'{"a":"x\ny"}', b'"text"', b"3", b'{"a":"\xff"}', b"[" * 5000],
)
async def test_what_is_no_json_message_is_never_written(house, bad):
    client = await house.client()
    with pytest.raises(errors.InvalidJson):
        await client.session.send(bad)
    assert await client.ask("echo", 2, still="here") == {"still": "here"}


async def test_a_message_over_the_limit_is_never_written(house):
    client = await house.client(limits=Limits(max_line=1000, stop_grace=0.4))
    with pytest.raises(errors.BodyTooLarge):
        await client.ask("echo", text="x" * 1000)


async def test_each_session_has_a_process_of_its_own(house, client_of):
    upstream = house.upstream()
    one, two = await client_of(upstream).open(), await client_of(upstream).open()
    assert (await one.ask("who"))["pid"] != (await two.ask("who"))["pid"]
    await two.tell("crash")
    await two.ended()
    assert await one.ask("echo", 9, fine=True) == {"fine": True}


async def test_a_death_in_mid_call_is_told_with_its_code_and_last_words(house):
    client = await house.client()
    await client.tell("crash")
    assert await client.ended() == "exit code 7; last line of stderr: Traceback: it all went wrong"
    with pytest.raises(errors.UpstreamRefused) as refused:
        await client.session.send(b'{"jsonrpc":"2.0","method":"x"}')
    assert refused.value.unsent
    assert "Traceback" not in refused.value.message  # an agent may read this


async def test_a_signal_is_named(house):
    client = await house.client()
    await client.tell("segfault")
    assert await client.ended() == "killed by SIGSEGV"


async def test_an_answer_without_a_line_end_just_before_the_exit_arrives_before_the_end(house):
    client = await house.client()
    assert await client.ask("last words") == {"said": "at the end"}
    assert await client.ended() == "exit code 0"


async def test_what_is_no_json_on_stdout_is_counted_and_kept_with_stderr(house):
    client = await house.client()
    await client.ask("write", text="Starting up...\n\n\r\n{broken\n\x1b[31mred\x07\n\xff\xfe\n42\n")
    assert client.session.noise == 5
    tail = client.session.stderr_tail()
    assert tail[0] == "(stdout) Starting up..."
    assert tail[2] == "(stdout) ?[31mred?"
    assert [message for message in client.heard if "result" not in message] == []


async def test_lines_may_end_with_carriage_returns_and_come_in_pieces(house):
    client = await house.client()
    await client.tell(
        "pieces", pieces=['{"jsonrpc":"2.0",', '"id":50,"result":', "{}}\r", '\n{"jsonrpc":"2.0","id":51,"re']
    )
    assert await client.answer(50) == {}
    await client.tell("pieces", pieces=['sult":{"x":1}}', "\r\n"])
    assert await client.answer(51) == {"x": 1}
    assert len(client.heard) == 2


async def test_a_flood_of_stderr_is_bounded_and_hinders_nothing(house):
    heard = []
    client = await house.client(on_stderr=heard.append)
    await client.ask("flood stderr", lines=20_000)
    assert await client.ask("echo", 2, ok=1) == {"ok": 1}
    await client.session.close()
    tail = client.session.stderr_tail()
    assert len(tail) == 200
    assert tail[-1].startswith("line 19999 ")
    assert len(heard) == 20_000
    assert client.upstream.stderr_tail()[-1] == tail[-1]


async def test_an_endless_line_of_stderr_is_cut(house):
    client = await house.client()
    await client.ask("write stderr", text="z" * 300_000)
    await client.session.close()
    tail = client.session.stderr_tail()
    assert {len(line) for line in tail[:-1]} == {4096}
    assert sum(map(len, tail)) <= 65_536


async def test_a_stderr_listener_that_raises_ends_nothing(house):
    def broken(line):
        raise RuntimeError(line)

    client = await house.client(on_stderr=broken)
    await client.ask("flood stderr", lines=3)
    assert await client.ask("echo", 2, ok=1) == {"ok": 1}


async def test_a_huge_line_ends_the_child(house, dies):
    client = await house.client(limits=Limits(max_line=100_000, stop_grace=0.4))
    assert len((await client.ask("huge line", 1, size=99_000))["text"]) == 99_000
    await client.tell("huge line", 2, size=100_001)
    assert await client.ended() == "it wrote a line of more than 100000 bytes; killed by SIGKILL"
    await dies(client.session.pid)


async def test_ten_megabytes_pass_whole(house):
    client = await house.client(limits=Limits())
    text = "abcdefghij" * 900_000
    assert (await client.ask("echo", text=text)) == {"text": text}


async def test_a_receiver_that_raises_ends_the_session(house, quick):
    def broken(line):
        raise ValueError("cannot take it")

    over = asyncio.get_running_loop().create_future()
    upstream = house.upstream()
    session = await upstream.open_session(broken, over.set_result)
    await session.send(b'{"jsonrpc":"2.0","id":1,"method":"echo"}')
    assert "ValueError: cannot take it" in await asyncio.wait_for(over, 60)


async def test_a_listener_for_the_end_that_raises_is_counted(house, dies):
    def broken(reason):
        raise ValueError(reason)

    upstream = house.upstream()
    session = await upstream.open_session(lambda line: None, broken)
    await session.close()
    assert upstream.faults == 1
    assert upstream.sessions == 0


# -- back-pressure -------------------------------------------------------------------------------------------------
async def test_a_child_that_never_reads_makes_writers_wait_and_then_fail(house):
    client = await house.client("never reads")
    big = msgspec.json.encode({"jsonrpc": "2.0", "method": "x", "params": {"text": "x" * 500_000}})
    with pytest.raises(errors.UpstreamTimeout) as late:
        await client.session.send(big)
    assert not late.value.unsent
    with pytest.raises(errors.UpstreamBusy) as busy:
        await client.session.send(big)
    assert busy.value.unsent
    await client.session.close()


async def test_writers_that_wait_are_told_when_the_child_dies(house):
    client = await house.client("never reads", limits=Limits(write_timeout=60, stop_grace=0.2, kill_grace=0.2))
    big = msgspec.json.encode({"jsonrpc": "2.0", "method": "x", "params": {"text": "x" * 500_000}})
    first = asyncio.create_task(client.session.send(big))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(client.session.send(big))
    await asyncio.sleep(0.05)
    assert not first.done()
    os.kill(client.session.pid, 9)
    with pytest.raises(errors.UpstreamBroken):
        await first
    with pytest.raises(errors.UpstreamRefused):
        await second


async def test_a_slow_reader_gets_every_message_whole(house):
    client = await house.client(limits=Limits(stop_grace=0.4))
    await client.tell("sleep", 1, seconds=0.3)
    texts = {number: chr(97 + number % 26) * 60_000 for number in range(2, 22)}
    await asyncio.gather(*(client.tell("echo", number, text=text) for number, text in texts.items()))
    for number, text in texts.items():
        assert await client.answer(number) == {"text": text}


# -- the end -------------------------------------------------------------------------------------------------------
async def test_closing_ends_stdin_first_so_that_a_server_may_end_in_its_own_way(house, zombies):
    client = await house.client(limits=Limits(stop_grace=30))
    async with asyncio.timeout(60):
        await client.session.close()
    assert client.reasons == ["closed"]
    assert zombies() == []


@pytest.mark.parametrize(
    "habits", [("ignores the end of stdin",), ("ignores SIGTERM", "ignores the end of stdin"), ("never reads",)]
)
async def test_closing_gets_stricter_until_the_child_is_gone(house, is_running, zombies, habits):
    client = await house.client(*habits)
    pid = client.session.pid
    await client.session.close()
    assert not is_running(pid)
    assert client.reasons == ["closed"]
    assert zombies() == []


async def test_grandchildren_end_with_the_session(house, is_running):
    client = await house.client("ignores the end of stdin")
    grandchild = (await client.ask("grandchild"))["pid"]
    assert is_running(grandchild)
    await client.session.close()
    assert not is_running(grandchild)


async def test_grandchildren_of_a_crashed_child_end_too_and_do_not_delay_the_news(house, dies, is_running):
    client = await house.client(limits=Limits(kill_grace=3.0, stop_grace=0.4))
    grandchild = (await client.ask("grandchild"))["pid"]
    await client.tell("crash", 2)
    await client.ended()
    assert is_running(grandchild)  # it holds stdout open and ignores SIGTERM until kill_grace is over
    assert client.upstream.sessions == 1  # its place is taken until nothing is left
    await dies(grandchild)


async def test_closing_twice_and_by_many_is_one_end(house):
    client = await house.client()
    await asyncio.gather(*(client.session.close() for _ in range(20)))
    await client.session.close()
    assert client.reasons == ["closed"]


async def test_a_closer_that_is_cancelled_does_not_stop_the_ending(house, dies):
    client = await house.client("ignores SIGTERM", "ignores the end of stdin")
    closing = asyncio.create_task(client.session.close())
    await asyncio.sleep(0.05)
    closing.cancel()
    await dies(client.session.pid)


async def test_the_receiver_may_close_the_session_from_within(house):
    tasks = []
    upstream = house.upstream()
    over = asyncio.get_running_loop().create_future()
    session = await upstream.open_session(
        lambda line: tasks.append(asyncio.create_task(session.close())), over.set_result
    )
    await session.send(b'{"jsonrpc":"2.0","id":1,"method":"echo"}')
    assert await asyncio.wait_for(over, 60) == "closed"
    await asyncio.gather(*tasks)
