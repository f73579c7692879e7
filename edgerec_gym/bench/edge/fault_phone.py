"""Phones for the study of faults: what each has perceived is written down, and the processes can be killed.

As a program it is a process that has everything loaded and splits off a process for each phone:
`python -m edgerec_gym.bench.edge.fault_phone SCENARIO`, one :class:`Order` a line as JSON. It ends a phone
with SIGKILL where the order says so, and writes a line when one has ended: the number of its order, and how.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import select
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from edgerec_gym.agents.device.runtime import Pace, Session, SessionReport
from edgerec_gym.answers import Focus
from edgerec_gym.bench.edge.parity import digest
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link_settings import LinkSettings, Phone
from edgerec_gym.policy import Observation
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.people import People

TRACK, USERS = "joint", "synthetic"
DATABASE, TOLD, FAULT, SHORT = "phone.db", "told", "fault", "short"  # files of a phone
MOST_SESSIONS = 50  # tries to deliver
SECONDS = 120.0  # for the network and the service to be there again
SETTINGS = LinkSettings(
    most_answers=4, most_seconds=0.02, reply_seconds=0.5, first_wait=0.01, longest_wait=0.2
)


class Order(msgspec.Struct, frozen=True):
    """A session that is to be played.

    Attributes:
        number: of the order.
        folder: of the phone.
        url: of the service, or of a bad network before it.
        token: of the user.
        seed: of the session.
        speed: how much faster than people the phone plays; 0 for virtual time.
        lag: the longest time that a message may be on its way, seconds.
        kill_after: seconds after which its process is killed; 0 to let it end.
    """

    number: int
    folder: str
    url: str
    token: str
    seed: int
    speed: float
    lag: float = 0.0
    kill_after: float = 0.0


class Wanderer:
    """Takes any legal action, the same for the same observation: cards and requests among them."""

    name = "wanderer"

    def reset(self, mask: np.ndarray) -> None:
        """Nothing to forget."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return an action drawn by the observation."""
        legal = np.flatnonzero(observation["action_mask"][0])
        told = abs(int(1000 * observation["context"].sum() + 1e6 * observation["pool"].sum()))
        return np.array([np.random.default_rng(told).choice(legal)])


class Witness(Wanderer):
    """Remembers a digest of every observation that it has decided on, and how many were written down."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.told = 0

    def act(self, observation: Observation) -> np.ndarray:
        """Remember, and act."""
        self.seen.append(digest(observation))
        return super().act(observation)


async def play(order: Order, world: Scenario, people: People, row: int = 0) -> SessionReport:
    """Play a session until the service has all of it; goes on where an earlier process was.

    After each slot the file `told` of the phone's folder gets a line: slot, digest of the observation that
    was decided on, number of acknowledged answers. A killed process leaves the lines of the slots before. In
    the end the file `short` gets the number of pages that were built from fewer answers than was asked for.
    """
    folder = Path(order.folder)
    written = os.open(folder / TOLD, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    store = EventStore(folder / DATABASE)
    settings = replace(SETTINGS, reply_seconds=SETTINGS.reply_seconds + 4 * order.lag)
    pace = Pace(order.speed == 0, order.speed or 1.0, 3.0, SECONDS, SECONDS)
    try:
        for attempt in range(MOST_SESSIONS):
            witness, person = Witness(), people.begin(row, order.seed)

            def watch(session: Session, witness: Witness = witness) -> None:
                assert session.link is not None
                acknowledged = session.link.acknowledged
                for slot in range(witness.told, len(witness.seen)):
                    os.write(written, f"{slot} {witness.seen[slot]} {acknowledged}\n".encode())
                witness.told = len(witness.seen)

            def ask(focus: Focus) -> np.ndarray:
                return people.answer(row, focus)

            session = Session(
                world.config,
                TRACK,
                witness,
                Phone(order.url, "phone-1", order.token),
                store,
                np.random.default_rng([order.seed, attempt]),
                link_settings=settings,
                pace=pace,
                watch=watch,
            )
            report = await session.play(person, ask, remind=ask)
            watch(session)
            if report.delivered or report.refused:
                break
        (folder / SHORT).write_text(str(report.short_pages), encoding="utf-8")
        return report
    finally:
        store.close()
        os.close(written)


def serve(world: Scenario) -> None:
    """Split off a process for each order on stdin until it ends; tell on stdout how each has ended."""
    people = People(world, USERS)
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    running: dict[int, int] = {}  # process -> order
    deaths: list[tuple[float, int]] = []  # when a process is killed
    waiting, is_open = b"", True
    while is_open or running:
        wait = max(0.0, deaths[0][0] - time.monotonic()) if deaths else None
        ready, _, _ = select.select([read, *([0] if is_open else [])], [], [], wait)
        if 0 in ready:
            data = os.read(0, 2**16)
            is_open = bool(data)
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                order = msgspec.json.decode(line, type=Order)
                process = os.fork()
                if process == 0:
                    _be_phone(order, world, people)
                running[process] = order.number
                if order.kill_after:
                    heapq.heappush(deaths, (time.monotonic() + order.kill_after, process))
        if read in ready:
            os.read(read, 2**16)
        while deaths and deaths[0][0] <= time.monotonic():
            _, process = heapq.heappop(deaths)
            if process in running:  # and not waited for, so that the number is still its own
                os.kill(process, signal.SIGKILL)
        for process in list(running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                print(running.pop(process), os.waitstatus_to_exitcode(status), flush=True)


def _be_phone(order: Order, world: Scenario, people: People) -> None:
    """Play an order in this process and end it; an exception is written into the phone's folder."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(0)
        asyncio.run(play(order, world, people))
        code = 0
    except BaseException:
        (Path(order.folder) / FAULT).write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(Scenario.load(sys.argv[1]))
