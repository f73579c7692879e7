"""Sessions through bad networks, killed phones and a killed service: is anything lost, and does play go on?

A schedule is a bad network (:func:`edgerec_gym.faults.schedule.draw`) and what is killed meanwhile. Each is
played by a phone (agents/device/runtime.py) against `edgerec serve`, through a proxy of its own. Phones that
are killed are processes of their own, and end by SIGKILL at a random time; the service is killed likewise and
started again on the same folder and port.

Once all of a session has been delivered:

- *lost*: answers that the phone had seen acknowledged, and that the service does not hold as the phone does;
- *differing*: answers and placed cards that are not the same on both sides, exactly once and in order;
- *features*: slots at which a phone that was started again perceived something else than before it was
  killed, or, in virtual time, than `EdgeFeed-v0` with the same seed.

A request may overtake the answers that it names on a bad network. The service waits 50 ms for them, then
builds the page from what it has, as the protocol says. Sessions with such a *short page* are not those of the
environment, and are counted instead.
"""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgerec_gym.bench.edge.fault_phone import DATABASE, FAULT, SHORT, TOLD, USERS, Order, Wanderer, play
from edgerec_gym.bench.edge.parity import play_environment
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.errors import InputError
from edgerec_gym.faults.lag_proxy import LagProxy
from edgerec_gym.faults.schedule import Schedule, draw
from edgerec_gym.files import make_folder
from edgerec_gym.protocol.messages import Answer
from edgerec_gym.protocol.tokens import make_token, read_secret
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.people import People

SCENARIO, ENV_ID = "lite", "EdgeFeed-v0"
SPEEDS = (0.0, 1e6, 2000.0, 500.0)  # of phones, 0: virtual time
LONG_LAG = 2.0  # seconds, each way
LONG_LAGS = 25  # one schedule in so many has lags up to that
KILLED_SERVICE = 5  # one schedule in so many sees the service killed
MOST_DEATHS = 3  # of a phone in a session
FIRST_DEATH, LAST_DEATH = 0.02, 1.5  # seconds after its start at which a phone is killed
FIRST_END, LAST_END = 0.1, 1.5  # seconds after the phones' start at which the service is killed
PATIENCE = 600.0  # seconds; a session that takes longer counts as a crash
START_SECONDS = 120.0
NAMES = {
    "CutAtByte": "connection cut at a byte",
    "CutAtTime": "connection cut at a time",
    "Refusal": "no connection for a while",
    "Duplicate": "message twice or more",
    "Reorder": "messages reordered",
    "LongLag": "lag up to 2 s",
    "PhoneKilled": "phone killed (SIGKILL)",
    "ServiceKilled": "service killed (SIGKILL)",
}
ALL = "all"

_answer = msgspec.msgpack.Decoder(Answer)
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Plan:
    """A schedule: a network, and what is killed.

    Attributes:
        number: of the schedule.
        seed: of the session.
        network: what goes wrong on the network.
        speed: of the phone, see :class:`~edgerec_gym.bench.edge.fault_phone.Order`.
        deaths: seconds after the phone's starts at which it is killed.
        service_killed: whether the service is killed meanwhile.
    """

    number: int
    seed: int
    network: Schedule
    speed: float
    deaths: tuple[float, ...]
    service_killed: bool

    @property
    def lag(self) -> float:
        """The longest time of a message on its way, seconds."""
        return max(self.network.up, self.network.down) + self.network.jitter


@dataclass
class Outcome:
    """What became of a schedule.

    Attributes:
        happened: how often each fault did, by the keys of :data:`NAMES`.
        answers: answers of the session.
        lost, differing, features: see the head of this file.
        short: pages that were built from fewer answers than was asked for.
        delivered: whether the service has the session and its end.
        crash: an exception that reached play; "" for none.
        seen: digests of what the phone has perceived, slot by slot.
    """

    happened: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    lost: int = 0
    differing: int = 0
    features: int = 0
    short: int = 0
    delivered: bool = False
    crash: str = ""
    seen: list[str] = field(default_factory=list)


def plan(number: int, seed: int) -> Plan:
    """Draw a schedule: the same one for the same arguments."""
    generator = np.random.default_rng([seed, number])
    network = draw(int(generator.integers(2**31)), faults=8, messages=30, most_bytes=12_000, seconds=0.6)
    if number % LONG_LAGS == 0:
        up, down, jitter = (round(float(part), 3) for part in generator.uniform(0, LONG_LAG / 2, 3))
        network = msgspec.structs.replace(network, up=up, down=down, jitter=jitter)
    deaths: tuple[float, ...] = ()
    if number % 2:
        count = generator.integers(1, MOST_DEATHS + 1)
        deaths = tuple(np.exp(generator.uniform(np.log(FIRST_DEATH), np.log(LAST_DEATH), count)).tolist())
    return Plan(
        number,
        int(seed * 1_000_000 + number),
        network,
        SPEEDS[number // 2 % len(SPEEDS)],
        deaths,
        number % KILLED_SERVICE == 3,
    )


class KilledService:
    """`edgerec serve` as a process that can be killed and started again on the same folder and port.

    Args:
        state: its folder.
    """

    def __init__(self, state: Path) -> None:
        self.state, self.port = make_folder(state), 0
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, and wait until it serves; InputError if it does not."""
        command = [sys.executable, "-m", "edgerec_gym.cli", "serve", SCENARIO, "--users", USERS]
        with (self.state / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--state", str(self.state), "--port", str(self.port)],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(self._process.stdout.readline), START_SECONDS)
        if not line.startswith(b"serving "):
            self.stop()
            raise InputError(f"the service has not started; {self.state / 'log'} says why")
        self.port = int(line.rsplit(b":", 1)[1].split(b"/")[0])

    def kill(self) -> None:
        """End it with SIGKILL."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise InputError(f"the service has ended by itself; {self.state / 'log'} says why")
        self._process.kill()
        self._close()

    def stop(self) -> int:
        """End it with SIGTERM; returns its exit code."""
        if self._process is None:
            return 0
        self._process.terminate()
        return self._close()

    def _close(self) -> int:
        process, self._process = self._process, None
        assert process is not None and process.stdout is not None
        process.stdout.close()
        return process.wait()

    def said(self) -> str:
        """Return what it has written to stderr: it has nothing to say as long as all is well."""
        file = self.state / "log"
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def answers_of(state: Path, session: int) -> list[Answer]:
    """Return the answers that a service holds in its folder, in order; it may run or not."""
    with closing(_database(state)) as database:
        rows = database.execute(
            "SELECT number, data FROM answers WHERE session = ? ORDER BY number", (session,)
        ).fetchall()
    if [number for number, _ in rows] != list(range(len(rows))):
        raise InputError(f"{state}: the answers of the session {session} have gaps")
    return [_answer.decode(data) for _, data in rows]


def placed_of(state: Path, session: int) -> list[Answer] | None:
    """Return the cards without answers that a service holds; None if the session has not ended."""
    with closing(_database(state)) as database:
        rows = database.execute("SELECT placed FROM sessions WHERE session = ?", (session,)).fetchall()
    if not rows or rows[0][0] is None:
        return None
    return [_answer.decode(data) for data in msgspec.msgpack.decode(rows[0][0], type=list[bytes])]


def _database(state: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{state / 'worker-0.db'}?mode=ro", uri=True, timeout=10.0)


class PhoneProcesses:
    """Phones as processes of their own; an asynchronous context manager."""

    async def __aenter__(self) -> PhoneProcesses:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edgerec_gym.bench.edge.fault_phone",
            SCENARIO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._ended: dict[int, asyncio.Future[int]] = {}
        self._hearing = asyncio.create_task(self._hear())
        self._orders = 0
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._hearing

    async def play(self, order: Order) -> int:
        """Play an order; returns how its process has ended, -9 if it was killed."""
        self._orders += 1
        number = self._orders
        future = self._ended[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(msgspec.structs.replace(order, number=number)) + b"\n")
        return await future

    async def _hear(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            number, code = map(int, line.split())
            self._ended.pop(number).set_result(code)
        for future in self._ended.values():
            future.set_exception(InputError("the process of the phones has ended"))


class Study:
    """Plays schedules and checks what became of them.

    Args:
        folder: of all phones and services; should be empty.
        phones: number of phones at once.
    """

    def __init__(self, folder: Path, phones: int) -> None:
        self.folder, self.phones = folder, phones
        self._world = Scenario.load(SCENARIO)
        self._people, self._asked = People(self._world, USERS, phones), People(self._world, USERS)
        self._acknowledged: dict[int, int] = {}  # by schedule, when the service was killed

    async def run(self, plans: Sequence[Plan], progress: Progress) -> list[Outcome]:
        """Play schedules; returns what became of each.

        Raises:
            InputError: the service does not start, or ends by itself.
        """
        found: dict[int, Outcome] = {}
        steady, killed = KilledService(self.folder / "steady"), KilledService(self.folder / "killed")
        async with PhoneProcesses() as processes:
            try:
                rows = asyncio.Queue[int]()
                for row in range(self.phones):
                    rows.put_nowait(row)

                async def one(each: Plan, service: KilledService) -> None:
                    row = await rows.get()
                    try:
                        found[each.number] = await self._play(each, service, processes, row)
                    finally:
                        rows.put_nowait(row)
                        progress(len(found), len(plans))

                others = [each for each in plans if not each.service_killed]
                if others:
                    await steady.start()
                    await asyncio.gather(*(one(each, steady) for each in others))
                doomed = [each for each in plans if each.service_killed]
                if doomed:
                    await killed.start()
                for first in range(0, len(doomed), self.phones):
                    part = doomed[first : first + self.phones]
                    playing = asyncio.gather(*(one(each, killed) for each in part))
                    await self._kill(killed, part, found)
                    await playing
            finally:
                codes = [service.stop() for service in (steady, killed)]
        if any(codes) or steady.said() or killed.said():
            raise InputError(f"the service has complained: {self.folder}/steady/log and killed/log say how")
        self._check_features([each for each in plans if each.speed == 0], found)
        return [found[each.number] for each in plans]

    async def _kill(self, service: KilledService, plans: Sequence[Plan], found: dict[int, Outcome]) -> None:
        """Kill the service in the middle of sessions, see what it holds, and start it again."""
        generator = np.random.default_rng([plans[0].seed, 9])
        await asyncio.sleep(float(generator.uniform(FIRST_END, LAST_END)))
        playing = [each for each in plans if each.number not in found]
        service.kill()
        for each in playing:
            told = acknowledged(self._folder(each))
            held = len(answers_of(service.state, self._session(each)[0]))
            self._acknowledged[each.number] = max(0, told - held)
        await service.start()

    def _folder(self, each: Plan) -> Path:
        return self.folder / "phones" / str(each.number)

    def _session(self, each: Plan) -> tuple[int, int]:
        """Return the key of a session and its user."""
        person = self._asked.begin(0, each.seed)
        return person.session, person.user

    async def _play(self, each: Plan, service: KilledService, processes: PhoneProcesses, row: int) -> Outcome:
        """Play a schedule to its end, and compare both sides."""
        outcome, folder = Outcome(), make_folder(self._folder(each))
        session, user = self._session(each)
        async with LagProxy(service.port, each.network) as network:
            token = make_token(read_secret(service.state / "secret"), "phone-1", user)
            order = Order(0, str(folder), network.url(), token, each.seed, each.speed, each.lag)
            try:
                async with asyncio.timeout(PATIENCE):
                    for kill_after in (*each.deaths, 0.0) if each.deaths else ():
                        code = await processes.play(msgspec.structs.replace(order, kill_after=kill_after))
                        outcome.happened["PhoneKilled"] += code == -9
                        if code not in (0, -9):
                            outcome.crash = (folder / FAULT).read_text(encoding="utf-8")
                        if code != -9:
                            break
                    if not each.deaths:
                        await play(order, self._world, self._people, row)
            except Exception as error:  # whatever reaches play is what is looked for
                outcome.crash = f"{type(error).__name__}: {error}"
            outcome.happened += network.happened
        outcome.happened["LongLag"] += each.number % LONG_LAGS == 0
        outcome.happened["ServiceKilled"] += each.number in self._acknowledged
        outcome.lost = self._acknowledged.get(each.number, 0)
        compare(outcome, folder, session, service.state)
        return outcome

    def _check_features(self, plans: Sequence[Plan], found: dict[int, Outcome]) -> None:
        """Compare sessions in virtual time with those of the environment."""
        seeds = [each.seed for each in plans]
        for each, expected in zip(
            plans, play_environment(lambda _: Wanderer(), ENV_ID, SCENARIO, USERS, seeds), strict=True
        ):
            outcome, wanted = found[each.number], expected.observations[:-1]
            if outcome.short:
                continue
            outcome.features += sum(a != b for a, b in zip(outcome.seen, wanted, strict=False))
            outcome.features += abs(len(outcome.seen) - len(wanted))


def lines_of(folder: Path) -> list[str]:
    """Return what a phone has written down; nothing if it was killed before."""
    file = folder / TOLD
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def acknowledged(folder: Path) -> int:
    """Return how many answers a phone has seen acknowledged."""
    return max((int(line.split()[2]) for line in lines_of(folder)), default=0)


def compare(outcome: Outcome, folder: Path, session: int, state: Path) -> None:
    """Compare what a phone and the service have of a session, and what the phone has perceived."""
    with closing(EventStore(folder / DATABASE)) as store:
        known, answers = store.session(session), store.answers(session)
    held, placed = answers_of(state, session), placed_of(state, session)
    told = acknowledged(folder)
    outcome.answers = len(answers)
    outcome.short = int((folder / SHORT).read_text(encoding="utf-8")) if (folder / SHORT).exists() else 0
    outcome.delivered = placed is not None and known is not None and known.ended
    outcome.lost += max(0, told - len(held)) + sum(
        mine != theirs for mine, theirs in zip(answers[:told], held[:told], strict=False)
    )
    outcome.differing = sum(mine != theirs for mine, theirs in zip(answers, held, strict=False))
    outcome.differing += abs(len(answers) - len(held))
    outcome.differing += known is not None and (known.placed or []) != (placed or [])
    for line in lines_of(folder):
        slot, digest = int(line.split()[0]), line.split()[1]
        if slot == len(outcome.seen):
            outcome.seen.append(digest)
        else:
            outcome.features += slot > len(outcome.seen) or outcome.seen[slot] != digest


def rows_of(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return a row for each fault: in how many schedules it happened, how often, and what came of these."""
    rows = []
    for key, name in (*NAMES.items(), ("", ALL)):
        met = [outcome for outcome in outcomes if not key or outcome.happened[key]]
        rows.append(
            {
                "fault": name,
                "schedules": len(met),
                "times": sum(outcome.happened[key] if key else outcome.happened.total() for outcome in met),
                "answers": sum(outcome.answers for outcome in met),
                "lost": sum(outcome.lost for outcome in met),
                "differing": sum(outcome.differing for outcome in met),
                "features": sum(outcome.features for outcome in met),
                "short pages": sum(outcome.short for outcome in met),
                "crashes": sum(bool(outcome.crash) for outcome in met),
                "undelivered": sum(not outcome.delivered for outcome in met),
            }
        )
    return rows


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return header and body of the table."""
    header = list(rows[0])
    body = [[row[key] if key == "fault" else f"{row[key]:,}" for key in header] for row in rows]
    return {"Faults and what came of them": (header, body)}


def run(
    folder: Path, schedules: int, seed: int, phones: int, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Play schedules.

    Args:
        folder: of phones and services; must be missing or empty.
        schedules: number of schedules.
        seed: of all of them.
        phones: number of phones at once.
        progress: told how many schedules are done, and of how many.

    Returns:
        The rows, and what else is to be known of the run.

    Raises:
        InputError: the folder is not empty, or the service does not start, ends by itself or complains.
    """
    if any(make_folder(folder).iterdir()):
        raise InputError(f"{folder} is not empty; choose another --out")
    began = time.monotonic()
    plans = [plan(number, seed) for number in range(schedules)]
    outcomes = asyncio.run(Study(folder, phones).run(plans, progress))
    wrong = {
        str(each.number): {"crash": outcome.crash, "network": repr(each.network), "deaths": each.deaths}
        for each, outcome in zip(plans, outcomes, strict=True)
        if outcome.crash or outcome.lost or outcome.differing or outcome.features or not outcome.delivered
    }
    about = {"minutes": round((time.monotonic() - began) / 60, 1), "phones": phones, "wrong": wrong}
    return rows_of(outcomes), about
