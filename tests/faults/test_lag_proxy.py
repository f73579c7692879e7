"""The proxy does what its schedule says, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import schedules
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage
from websockets.frames import Frame, Opcode

from edgerec_gym.errors import InputError
from edgerec_gym.faults import lag_proxy, schedule
from edgerec_gym.faults.frames import Splitter
from edgerec_gym.faults.lag_proxy import LagProxy
from edgerec_gym.faults.schedule import (
    CutAtByte,
    CutAtTime,
    Direction,
    Duplicate,
    Refusal,
    Reorder,
    Schedule,
)

PATIENCE = 20  # seconds; a test that waits for so long has failed
HEAD = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"
FAST = settings(deadline=None, max_examples=40, derandomize=True)


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await work

    asyncio.run(bounded())


async def bytes_through(data: bytes, plan: Schedule) -> bytes:
    """What a plain TCP service gets of bytes through a proxy."""
    got, over = bytearray(), asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(1000):
            got.extend(part)
        writer.close()
        over.set()

    server = await asyncio.start_server(take, lag_proxy.HOST, 0)
    async with LagProxy(server.sockets[0].getsockname()[1], plan) as proxy:
        reader, writer = await asyncio.open_connection(lag_proxy.HOST, proxy.port)
        writer.write(data)
        writer.write_eof()
        await over.wait()
        assert proxy.passed["up", "bytes"] == len(got)
        writer.close()
    server.close()
    await server.wait_closed()
    return bytes(got)


async def echoes(plan: Schedule, use: Callable[[LagProxy, list[str]], Awaitable[None]]) -> list[str]:
    """Use a proxy to a service that sends every message back; returns what the service got."""
    got: list[str] = []

    async def echo(connection: ServerConnection) -> None:
        try:
            async for message in connection:
                got.append(str(message))
                await connection.send(message)
        except ConnectionClosed:
            pass

    async with serve(echo, lag_proxy.HOST, 0, compression=None, close_timeout=0.1) as server:
        async with LagProxy(next(iter(server.sockets)).getsockname()[1], plan) as proxy:
            await use(proxy, got)
    return got


def told(plan: Schedule, messages: int, expected: int) -> tuple[list[str], list[str], LagProxy]:
    """Send numbered messages; returns what the service got, what came back, and the proxy."""
    back: list[str] = []
    used: list[LagProxy] = []

    async def use(proxy: LagProxy, got: list[str]) -> None:
        used.append(proxy)
        async with connect(proxy.url(), compression=None, proxy=None, close_timeout=0.1) as client:
            for number in range(messages):
                await client.send(str(number))
            while len(back) < expected:
                back.append(str(await client.recv()))

    got: list[str] = []

    async def work() -> None:
        got.extend(await echoes(plan, use))

    run(work())
    return got, back, used[0]


@FAST
@given(
    st.lists(st.tuples(st.binary(max_size=300), st.booleans(), st.sampled_from(list(Opcode))), max_size=8),
    st.lists(st.integers(1, 400), max_size=20),
)
def test_pieces_are_the_frames(frames: list[tuple[bytes, bool, Opcode]], chunks: list[int]) -> None:
    """However the bytes are cut into chunks."""
    expected = [HEAD]
    for data, masked, opcode in frames:
        expected.append(Frame(opcode, data).serialize(mask=masked))
    data, splitter, found = b"".join(expected), Splitter(), []
    while data:
        size = chunks.pop() if chunks else 1000
        found += splitter.feed(data[:size])
        data = data[size:]
    assert [piece.data for piece in found] == expected and splitter.rest() == b""
    messages = [opcode in (Opcode.TEXT, Opcode.BINARY) for _, _, opcode in frames]
    assert [piece.is_message for piece in found] == [False, *messages]


@FAST
@given(st.lists(st.binary(max_size=200), max_size=10), st.booleans())
def test_pieces_add_up_to_the_bytes(chunks: list[bytes], is_websocket: bool) -> None:
    chunks = [HEAD, *chunks] if is_websocket else chunks
    splitter = Splitter()
    found = b"".join(piece.data for chunk in chunks for piece in splitter.feed(chunk))
    assert found + splitter.rest() == b"".join(chunks)


def test_a_large_frame_is_one_message() -> None:
    frame = Frame(Opcode.BINARY, bytes(70_000)).serialize(mask=True)
    splitter = Splitter()
    splitter.feed(HEAD)
    assert splitter.feed(frame[:-1]) == []
    assert splitter.feed(frame[-1:]) == [(frame, True)]


@FAST
@given(st.binary(max_size=3000), st.integers(0, 3500), st.sampled_from([0.0, 500_000.0]), st.booleans())
def test_a_connection_is_cut_at_the_byte(data: bytes, byte: int, speed: float, jitters: bool) -> None:
    async def work() -> None:
        plan = Schedule(
            jitter=0.002 if jitters else 0, bytes_per_second=speed, faults=(CutAtByte("up", byte),)
        )
        assert await bytes_through(data, plan) == data[:byte]

    run(work())


@FAST
@given(
    st.binary(max_size=5000), st.sampled_from([0.0, 0.003]), st.sampled_from([0.0, 300_000.0]), st.integers(0)
)
def test_lag_jitter_and_speed_change_no_byte(data: bytes, lag: float, speed: float, seed: int) -> None:
    async def work() -> None:
        assert await bytes_through(data, Schedule(seed, lag, lag, lag, speed)) == data

    run(work())


def test_a_message_takes_as_long_as_the_lags() -> None:
    async def use(proxy: LagProxy, got: list[str]) -> None:
        loop = asyncio.get_running_loop()
        async with connect(proxy.url(), proxy=None, close_timeout=0.1) as client:
            begin = loop.time()
            await client.send("0")
            await client.recv()
            assert loop.time() - begin >= 0.05
            proxy.set_lag(0, 0)
            await client.send("1")
            assert await client.recv() == "1"

    async def work() -> None:
        assert await echoes(Schedule(up=0.02, down=0.03), use) == ["0", "1"]

    run(work())


@pytest.mark.parametrize("direction", ["up", "down"])
def test_messages_are_duplicated_and_reordered(direction: Direction) -> None:
    faults = (Duplicate(direction, 1, 2), Reorder(direction, 3, 2), Reorder(direction, 7, 5))
    got, back, proxy = told(Schedule(faults=faults), 8, 10)
    expected = "0 1 1 1 2 4 5 3 6 7".split()
    assert back == expected
    assert got == (expected if direction == "up" else [str(number) for number in range(8)])
    assert proxy.happened == {"Duplicate": 1, "Reorder": 2}
    assert proxy.passed["up", "messages"] == 8


@FAST
@given(schedules())
def test_only_what_is_scheduled_happens(plan: Schedule) -> None:
    """Without cuts every message arrives, as often as the schedule says."""
    faults = tuple(fault for fault in plan.faults if isinstance(fault, Duplicate | Reorder))
    copies: dict[str, list[int]] = {"up": [1] * 200, "down": [1] * 200}
    for fault in faults:
        if isinstance(fault, Duplicate):
            copies[fault.direction][fault.message] += fault.copies
    n_up = sum(copies["up"][:12])
    n_down = sum(copies["down"][:n_up])
    plan = Schedule(plan.seed, plan.up, plan.down, plan.jitter, plan.bytes_per_second, faults, plan.hold)
    got, back, _ = told(plan, 12, n_down)
    assert sorted(got) == sorted(str(number) for number in range(12) for _ in range(copies["up"][number]))
    assert len(back) == n_down and set(back) == set(got)
    if not any(isinstance(fault, Reorder) for fault in faults):
        assert got == sorted(got, key=int)


def test_a_cut_by_hand_ends_connections_and_new_ones_work() -> None:
    async def use(proxy: LagProxy, got: list[str]) -> None:
        async with connect(proxy.url(), proxy=None) as client:
            await client.send("0")
            await client.recv()
            proxy.cut()
            with pytest.raises(ConnectionClosed):
                await client.recv()
        async with connect(proxy.url(), proxy=None, close_timeout=0.1) as client:
            await client.send("1")
            assert await client.recv() == "1"
        assert proxy.happened == {"CutAtTime": 1}

    async def work() -> None:
        assert await echoes(Schedule(), use) == ["0", "1"]

    run(work())


def test_connections_are_refused_for_a_while() -> None:
    async def use(proxy: LagProxy, got: list[str]) -> None:
        while not proxy.happened["Refusal"]:
            await asyncio.sleep(0.001)
        with pytest.raises((OSError, EOFError, InvalidHandshake, InvalidMessage)):
            await connect(proxy.url(), proxy=None)
        proxy.refuse(0)
        async with connect(proxy.url(), proxy=None, close_timeout=0.1) as client:
            await client.send("1")
            assert await client.recv() == "1"

    async def work() -> None:
        assert await echoes(Schedule(faults=(Refusal(0.0, 1000.0),)), use) == ["1"]

    run(work())


def test_a_cut_by_time() -> None:
    async def use(proxy: LagProxy, got: list[str]) -> None:
        async with connect(proxy.url(), proxy=None) as client:
            with pytest.raises(ConnectionClosed):
                await client.recv()

    async def work() -> None:
        await echoes(Schedule(faults=(CutAtTime(0.05),)), use)

    run(work())


def test_without_a_service_connections_end() -> None:
    async def work() -> None:
        server = await asyncio.start_server(lambda reader, writer: None, lag_proxy.HOST, 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        async with LagProxy(port) as proxy:
            with pytest.raises((OSError, EOFError, InvalidHandshake, InvalidMessage)):
                await connect(proxy.url(), proxy=None)

    run(work())


def test_it_listens_on_this_machine_only() -> None:
    async def work() -> None:
        async with LagProxy(1) as proxy:
            assert proxy._server is not None
            assert {socket.getsockname()[0] for socket in proxy._server.sockets} == {"127.0.0.1"}

    run(work())


@FAST
@given(schedules())
def test_a_schedule_prints_as_what_makes_it(plan: Schedule) -> None:
    assert eval(repr(plan), vars(schedule)) == plan


def test_a_seed_draws_one_schedule() -> None:
    drawn = [schedule.draw(seed) for seed in range(50)]
    assert drawn == [schedule.draw(seed) for seed in range(50)]
    assert len(set(drawn)) == 50
    kinds = {type(fault) for plan in drawn for fault in plan.faults}
    assert kinds == {CutAtByte, CutAtTime, Refusal, Duplicate, Reorder}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Schedule(up=-1.0),
        lambda: Schedule(jitter=float("nan")),
        lambda: Schedule(faults=(CutAtByte("up", -1),)),
        lambda: Schedule(faults=(Duplicate("left", 1),)),  # type: ignore[arg-type]
        lambda: LagProxy(1).set_lag(0, -1),
    ],
)
def test_a_schedule_without_sense_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="allowed"):
        make()
