"""Phones and a service for the tests of faults: sessions that are played, and what became of them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgerec_gym.agents.device.runtime import Pace, Session, SessionReport
from edgerec_gym.answers import Focus
from edgerec_gym.bench.edge.fault_phone import Wanderer
from edgerec_gym.bench.edge.faults import answers_of, placed_of
from edgerec_gym.bench.edge.parity import Recorded, Trajectory, digest, play_environment, reward_bytes
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link_settings import LinkSettings, Phone
from edgerec_gym.faults.lag_proxy import LagProxy
from edgerec_gym.protocol.messages import Answer
from edgerec_gym.scenario import Scenario
from edgerec_gym.service.local import LocalService
from edgerec_gym.users.people import People

WORLD = Scenario.load("lite")
PATIENCE = 120  # seconds; a test that waits for so long has failed
VIRTUAL = Pace(virtual=True, patience_seconds=60.0, deliver_seconds=30.0)
FAST = Pace(speed=float("inf"), first_page_seconds=30.0, patience_seconds=60.0, deliver_seconds=30.0)
OFFLINE = Pace(speed=float("inf"), first_page_seconds=0.0, patience_seconds=0.0, deliver_seconds=0.0)
QUICK = LinkSettings(most_seconds=0.005, first_wait=0.01, longest_wait=0.05)
people = People(WORLD, "synthetic")


@dataclass
class Cloud:
    """A service and its folder."""

    service: LocalService
    state: Path

    @property
    def port(self) -> int:
        return int(self.service.url.rsplit(":", 1)[1].split("/")[0])

    def phone(self, user: int, network: LagProxy | None = None) -> Phone:
        phone = self.service.phone(user)
        return phone if network is None else Phone(network.url(), phone.device, phone.token)

    def forget(self) -> None:
        """Empty the store, so that a session can be played again."""
        with closing(sqlite3.connect(self.state / "worker-0.db", timeout=30)) as database:
            with database:
                for table in ("sessions", "answers", "pages"):
                    database.execute(f"DELETE FROM {table}")

    def rows(self) -> dict[str, list[Any]]:
        """Everything that it holds."""
        with closing(sqlite3.connect(self.state / "worker-0.db", timeout=30)) as database:
            return {
                table: database.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
                for table in ("sessions", "answers", "pages")
            }


class Played:
    """A session on a phone, and what it was."""

    def __init__(
        self,
        phone: Phone,
        seed: int,
        store: EventStore,
        pace: Pace = VIRTUAL,
        settings: LinkSettings = QUICK,
        watch: Callable[[Session], None] | None = None,
        kind: type[Session] = Session,
    ) -> None:
        self.people = People(WORLD, "synthetic")
        self.person = self.people.begin(0, seed)
        self.trajectory, self.store = Trajectory(), store

        def see(session: Session) -> None:
            a = session.features.arrays
            self.trajectory.rewards.append(reward_bytes(float(a.reward[0]), a.reward_terms[0].tolist()))
            if watch is not None:
                watch(session)

        self.session = kind(
            WORLD.config, "joint", Recorded(Wanderer(), self.trajectory), phone, store,
            np.random.default_rng(seed), link_settings=settings, pace=pace, watch=see,
        )  # fmt: skip

    async def play(self) -> SessionReport:
        def ask(focus: Focus) -> np.ndarray:
            return self.people.answer(0, focus)

        async with asyncio.timeout(PATIENCE):
            report = await self.session.play(self.person, ask, remind=ask)
        self.trajectory.observations.append(digest(self.session.features.observation()))
        return report

    @property
    def key(self) -> int:
        return self.person.session

    @property
    def turns(self) -> list[int]:
        """Slot at which each page was first played."""
        pages = [
            msgspec.msgpack.decode(decision.card, type=Answer).page
            for decision in self.store.decisions(self.key)
        ]
        return [pages.index(page) for page in dict.fromkeys(pages)]

    def is_in(self, cloud: Cloud) -> bool:
        """Whether the service has the session as the phone has it: exactly once, in order, with its end."""
        known = self.store.session(self.key)
        assert known is not None
        same = answers_of(cloud.state, self.key) == self.store.answers(self.key)
        return same and known.ended and placed_of(cloud.state, self.key) == known.placed


def user_of(seed: int) -> int:
    return people.begin(0, seed).user


def later_seed(seed: int) -> int:
    """The seed of another session of the same user."""
    user = user_of(seed)
    return next(other for other in count(seed + 1) if user_of(other) == user)


def expected(seeds: list[int]) -> list[Trajectory]:
    return play_environment(lambda _: Wanderer(), "EdgeFeed-v0", "lite", "synthetic", seeds)
