"""A proxy between phone and service that makes the network bad: lag, cuts, duplicates, reordering.

It works on any TCP connection; of a WebSocket it also knows the messages. It listens on 127.0.0.1 only.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import numpy as np

from edgerec_gym.errors import InputError
from edgerec_gym.faults.frames import Piece, Splitter
from edgerec_gym.faults.schedule import (
    DIRECTIONS,
    CutAtByte,
    CutAtTime,
    Direction,
    Duplicate,
    Refusal,
    Reorder,
    Schedule,
)

HOST = "127.0.0.1"
CHUNK = 2**16  # bytes read at once
MOST_ON_THE_WAY = 1024  # pieces in a direction of a connection


@dataclass
class _Held:
    """A message that waits until others have passed."""

    piece: Piece
    behind: int
    until: float  # time of the loop


class _Pair:
    """A connection of the phone and the proxy's own to the service."""

    def __init__(self, phone: asyncio.StreamWriter, service: asyncio.StreamWriter) -> None:
        self.writers = (phone, service)

    def cut(self) -> None:
        """End both at once; what is on its way is lost."""
        for writer in self.writers:
            writer.transport.abort()

    def close(self) -> None:
        """End both after what has been written."""
        for writer in self.writers:
            writer.close()


class LagProxy:
    """A bad network to a service; an asynchronous context manager.

    Args:
        port: port of the service on this machine.
        schedule: what goes wrong; times count from the start.

    Attributes:
        port: port that the proxy listens on, once it has started.
        passed: bytes and messages by direction, as ("up", "bytes").
        happened: number of faults by name; what was called by hand counts too.
    """

    def __init__(self, port: int, schedule: Schedule | None = None) -> None:
        schedule = schedule or Schedule()
        self.port = 0
        self.passed: Counter[tuple[Direction, str]] = Counter()
        self.happened: Counter[str] = Counter()
        self._service, self._hold = port, schedule.hold
        self._lags: dict[Direction, float] = {"up": schedule.up, "down": schedule.down}
        self._jitter, self._speed = schedule.jitter, schedule.bytes_per_second
        self._draws = {
            direction: np.random.default_rng([schedule.seed, place])
            for place, direction in enumerate(DIRECTIONS)
        }
        self._cuts: dict[Direction, list[int]] = {"up": [], "down": []}  # bytes, the next one last
        self._of_message: dict[tuple[Direction, int], list[Duplicate | Reorder]] = {}
        self._timed: list[CutAtTime | Refusal] = []
        for fault in schedule.faults:
            if isinstance(fault, CutAtByte):
                self._cuts[fault.direction].append(fault.byte)
            elif isinstance(fault, Duplicate | Reorder):
                self._of_message.setdefault((fault.direction, fault.message), []).append(fault)
            else:
                self._timed.append(fault)
        for cuts in self._cuts.values():
            cuts.sort(reverse=True)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pairs: set[_Pair] = set()
        self._refuses_until = 0.0  # time of the loop

    async def __aenter__(self) -> LagProxy:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        for fault in self._timed:
            self._keep(asyncio.create_task(self._act_later(fault)))

    async def close(self) -> None:
        """End all connections and stop listening."""
        if self._server is not None:
            self._server.close()
        for pair in self._pairs:
            pair.cut()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def url(self, path: str = "/v1/feed") -> str:
        """Return the address for a phone."""
        return f"ws://{HOST}:{self.port}{path}"

    def cut(self) -> None:
        """End all connections now."""
        self.happened["CutAtTime"] += 1
        for pair in list(self._pairs):
            pair.cut()

    def refuse(self, seconds: float) -> None:
        """Take no connection for a while: each is ended at once. 0 takes them again."""
        if seconds > 0:
            self.happened["Refusal"] += 1
        self._refuses_until = asyncio.get_running_loop().time() + seconds

    def set_lag(self, up: float, down: float, jitter: float = 0.0) -> None:
        """Set the lags and the jitter, seconds, for what comes from now on."""
        if min(up, down, jitter) < 0:
            raise InputError(f"lags of {up}, {down} and {jitter} s; allowed: 0 or more")
        self._lags, self._jitter = {"up": up, "down": down}, jitter

    async def _act_later(self, fault: CutAtTime | Refusal) -> None:
        await asyncio.sleep(fault.seconds)
        if isinstance(fault, Refusal):
            self.refuse(fault.lasts)
        else:
            self.cut()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until it ends, or `close` cancels it."""
        task = asyncio.current_task()
        if task is not None:
            self._keep(task)
        try:
            await self._carry(reader, writer)
        except asyncio.CancelledError:  # asyncio's streams would report it as an error
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asyncio.get_running_loop().time() < self._refuses_until:
            writer.transport.abort()
            return
        try:
            back_reader, back_writer = await asyncio.open_connection(HOST, self._service)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, back_writer)
        self._pairs.add(pair)
        pumps = [
            asyncio.create_task(self._pump("up", reader, back_writer, pair)),
            asyncio.create_task(self._pump("down", back_reader, writer, pair)),
        ]
        try:
            await asyncio.wait(pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            pair.close()
            self._pairs.discard(pair)

    async def _pump(
        self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: _Pair
    ) -> None:
        """Carry one direction until its sender ends it or the connection is cut."""
        way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MOST_ON_THE_WAY)
        reading = asyncio.create_task(self._read(direction, reader, way))
        delivery = asyncio.create_task(self._deliver(direction, way, writer, pair))
        try:
            await asyncio.wait({delivery})
        finally:
            for task in (reading, delivery):
                task.cancel()
            await asyncio.gather(reading, delivery, return_exceptions=True)

    async def _read(
        self, direction: Direction, reader: asyncio.StreamReader, way: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        """Put what comes on its way, with the faults of messages."""
        loop = asyncio.get_running_loop()
        splitter, held = Splitter(), list[_Held]()
        latest = 0.0

        async def send(data: bytes) -> None:
            nonlocal latest
            lag = self._lags[direction] + self._draws[direction].uniform(0, self._jitter)
            latest = max(latest, loop.time() + lag)
            await way.put((latest, data))

        while True:
            wait = min((message.until for message in held), default=None)
            data: bytes | None = None
            try:
                async with asyncio.timeout_at(wait):
                    data = await reader.read(CHUNK)
            except TimeoutError:
                pass
            except OSError:
                data = b""
            for piece in splitter.feed(data or b""):
                for part in self._with_faults(direction, piece, held, loop.time()):
                    await send(part.data)
            over = [message for message in held if data == b"" or message.until <= loop.time()]
            for message in over:
                held.remove(message)
                await send(message.piece.data)
            if data == b"":
                if rest := splitter.rest():
                    await send(rest)
                await way.put((latest, b""))
                return

    def _with_faults(self, direction: Direction, piece: Piece, held: list[_Held], now: float) -> list[Piece]:
        """Return what arrives in place of a piece; a message may be held back, or release others."""
        if not piece.is_message:
            return [piece]
        number = self.passed[direction, "messages"]
        self.passed[direction, "messages"] += 1
        copies, behind = 1, 0
        for fault in self._of_message.get((direction, number), ()):
            self.happened[type(fault).__name__] += 1
            if isinstance(fault, Duplicate):
                copies += fault.copies
            else:
                behind = max(behind, fault.behind)
        for message in held:
            message.behind -= 1
        free = [message for message in held if message.behind <= 0]
        for message in free:
            held.remove(message)
        if behind:
            held.extend(_Held(piece, behind, now + self._hold) for _ in range(copies))
        return ([] if behind else [piece] * copies) + [message.piece for message in free]

    async def _deliver(
        self,
        direction: Direction,
        way: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        pair: _Pair,
    ) -> None:
        """Write what has been on its way for long enough; cut the connection where it should be."""
        loop = asyncio.get_running_loop()
        while True:
            at, data = await way.get()
            if not data:
                pair.close()
                return
            wait = at - loop.time() + (len(data) / self._speed if self._speed else 0)
            if wait > 0:
                await asyncio.sleep(wait)
            cuts, passed = self._cuts[direction], self.passed[direction, "bytes"]
            is_cut = bool(cuts) and cuts[-1] <= passed + len(data)
            if is_cut:
                data = data[: max(0, cuts.pop() - passed)]
                self.happened["CutAtByte"] += 1
            self.passed[direction, "bytes"] += len(data)
            try:
                writer.write(data)
                await writer.drain()
            except OSError:
                is_cut = True
            if is_cut:
                pair.close()
                return
