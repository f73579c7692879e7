"""A fleet: many phones in one process, each with a link and a store of its own.

A phone plays one session after the other. It is either whole, with what the runtime does (features, policy,
decisions, people who answer), or light: the same link and store, and answers that people gave before. Times
include those of the fleet's own process, so `lag` tells how late its loop was.

Stores are SQLite in memory, unless a folder is given: on real phones their files lie on other disks than the
service's, whose commits they would delay here.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.agents.device.policy import DevicePolicy
from edgerec_gym.agents.device.runtime import Pace, Session
from edgerec_gym.agents.phones.simulated import phone_policy
from edgerec_gym.bench.edge.light_phone import LightSession, Told, record_people, seconds_of_page
from edgerec_gym.device.budget import TimedDecisions
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link import Link
from edgerec_gym.device.link_settings import Heard, LinkSettings, Phone
from edgerec_gym.device.phone_schema import PhoneSession
from edgerec_gym.errors import InputError
from edgerec_gym.files import make_folder
from edgerec_gym.policy import Policy
from edgerec_gym.protocol.messages import Answer
from edgerec_gym.protocol.tokens import make_token
from edgerec_gym.registration import track_of
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.people import People, user_table

KEPT = 10**6  # sessions in a store: none is removed, so that all can be compared with the cloud's
SCRIPTS = 100  # sessions that light phones play
SAMPLE_SECONDS = 0.25
DELIVER_AT_ONCE = 64  # phones
CANCEL_SECONDS = 5.0
AGAIN_SECONDS = 1.0  # between a session that failed and the next one


@dataclass(frozen=True)
class FleetSettings:
    """A fleet, and who holds its phones.

    Attributes:
        phones: number of phones.
        url: address of the service.
        secret: of the service's tokens.
        scenario: that the service serves.
        users: "synthetic" or "learned", as the service's.
        policy: of whole phones: a baseline, or the folder of an exported agent.
        env_id: what is decided on the phone.
        light: whether phones are without features and policy.
        speed: how much faster than people the phones play; inf: as fast as they can.
        arrival_seconds: within which the phones come, at times drawn uniformly.
        seed: of the sessions and everything random; fleets of one service need seeds of their own.
        folder: of the stores, a file a phone; None for stores in memory.
        link: settings of the links; None for those of the scenario.
    """

    phones: int
    url: str
    secret: bytes
    scenario: str
    users: str = "synthetic"
    policy: str = "keep"
    env_id: str = "EdgeFeed-v0"
    light: bool = False
    speed: float = 1.0
    arrival_seconds: float = 10.0
    seed: int = 0
    folder: Path | None = None
    link: LinkSettings | None = None

    def __post_init__(self) -> None:
        if self.phones < 1:
            raise InputError(f"a fleet of {self.phones} phones; allowed: 1 or more")
        if not self.speed > 0:
            raise InputError(f"speed = {self.speed}; allowed: above 0")


@dataclass
class Counts:
    """What links have done.

    Attributes:
        welcomes: connections on which the cloud has welcomed a phone.
        failures, violations: connections that broke, and that the phone closed for a breach of the protocol.
        resent: answers that were sent again.
        requests: requests sent, those that were repeated included.
        answers, acknowledged: answers kept on phones and committed by the cloud.
        bytes_up, bytes_down: at the socket.
        refusals: by code.
    """

    welcomes: int = 0
    failures: int = 0
    violations: int = 0
    resent: int = 0
    requests: int = 0
    answers: int = 0
    acknowledged: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    refusals: Counter[str] = field(default_factory=Counter)

    def add_link(self, link: Link) -> None:
        """Add what a link has done."""
        counts, sent = link.counts, link.traffic.amounts.get(("up", "request"))
        self.welcomes += counts.welcomes
        self.failures += counts.failures
        self.violations += counts.violations
        self.resent += counts.resent
        self.requests += 0 if sent is None else sent.messages
        self.answers += link.answers
        self.acknowledged += link.acknowledged
        self.bytes_up += link.traffic.socket["up"]
        self.bytes_down += link.traffic.socket["down"]
        self.refusals += counts.refusals

    def since(self, before: Counts) -> dict[str, Any]:
        """Return what was added to an earlier state."""
        told = {
            name: value - getattr(before, name) for name, value in vars(self).items() if name != "refusals"
        }
        return told | {"refusals": dict(self.refusals - before.refusals)}


@dataclass
class Tally:
    """What all phones of a fleet write down.

    Attributes:
        page_seconds: seconds from each request to its page, since the last look.
        decision_ms: milliseconds of each decision.
        past: what the links of earlier sessions have done.
        sessions: sessions that were played to their end.
        given_up: sessions that were given up, since no page came.
        refused: why the cloud did not serve a session, by its words.
    """

    page_seconds: list[float] = field(default_factory=list)
    decision_ms: list[float] = field(default_factory=list)
    past: Counts = field(default_factory=Counts)
    sessions: int = 0
    given_up: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass
class World:
    """What the phones of a fleet share."""

    settings: FleetSettings
    scenario: Scenario
    tally: Tally
    n_users: int
    people: People | None = None
    scripts: list[list[Told]] = field(default_factory=list)


class FleetPhone:
    """A phone of a fleet.

    Args:
        world: what the phones share.
        number: of the phone.
        policy: that decides; None for a light phone.

    Attributes:
        store: what it keeps.
        welcomes: connections of earlier sessions on which the cloud has welcomed it.
    """

    def __init__(self, world: World, number: int, policy: Policy | None) -> None:
        settings = world.settings
        folder = settings.folder
        self.store = EventStore(":memory:" if folder is None else folder / f"phone-{number}.db", KEPT)
        self._world, self._number, self._policy = world, number, policy
        self._device = f"fleet-{settings.seed}-{number}"
        self._generator = np.random.default_rng([settings.seed, number, 2])
        self._settings = settings.link or LinkSettings(
            sync=world.scenario.config.cloud.sync, period=world.scenario.config.cloud.sync_period
        )
        self._played = 0
        self._whole: Session | None = None
        self._link: Link | None = None
        self.welcomes = 0

    @property
    def link(self) -> Link | None:
        """The link of the session that is played; None between sessions."""
        return self._link if self._whole is None else self._whole.link

    def total_welcomes(self) -> int:
        """Number of connections on which the cloud has welcomed the phone."""
        return self.welcomes + (0 if self.link is None else self.link.counts.welcomes)

    async def play(self) -> None:
        """Arrive, then play one session after the other, until cancelled."""
        await asyncio.sleep(float(self._generator.uniform(0, self._world.settings.arrival_seconds)))
        while True:
            good = await (self._play_light() if self._policy is None else self._play_whole(self._policy))
            self._played += 1
            self._fold()
            if not good:
                await asyncio.sleep(AGAIN_SECONDS)

    async def _play_whole(self, policy: Policy) -> bool:
        world, settings = self._world, self._world.settings
        people, tally = world.people, world.tally
        assert people is not None
        row = self._number
        person = people.begin(row, settings.seed + row, self._played)
        self._whole = session = Session(
            world.scenario.config,
            track_of(settings.env_id),
            policy,
            self._phone(person.user),
            self.store,
            self._generator,
            link_settings=self._settings,
            pace=Pace(speed=settings.speed),
        )
        session.report.page_seconds, session.report.decision_ms = tally.page_seconds, tally.decision_ms
        report = await session.play(person, lambda focus: people.answer(row, focus))
        self._note(report.delivered, report.starved, report.refused)
        return report.delivered

    async def _play_light(self) -> bool:
        world = self._world
        draw = self._generator.integers
        script = world.scripts[int(draw(len(world.scripts)))]
        session = PhoneSession(
            int(draw(-(2**63), 2**63)), int(draw(world.n_users)), 0, int(draw(24)), features=""
        )
        light = LightSession(world.scenario.config, session, script, world.settings.speed)
        light.page_seconds = world.tally.page_seconds
        self._link = link = Link(
            self._phone(session.user),
            session,
            self.store,
            self._generator,
            self._settings,
            Heard(page=light.came),
        )
        talking = asyncio.create_task(link.run())
        try:
            await light.play(link)
        finally:
            link.stop()
            await talking
        self._note(link.done, False, link.refused)
        return link.done

    def _phone(self, user: int) -> Phone:
        settings = self._world.settings
        return Phone(settings.url, self._device, make_token(settings.secret, self._device, user))

    def _note(self, delivered: bool, starved: bool, refused: str) -> None:
        tally = self._world.tally
        tally.sessions += delivered
        tally.given_up += starved
        if refused:
            tally.refused[refused] += 1

    def _fold(self) -> None:
        """Keep the counts of a session that has ended, and let go of it."""
        if self.link is not None:
            self.welcomes += self.link.counts.welcomes
            self._world.tally.past.add_link(self.link)
        self._link = self._whole = None

    async def deliver(self) -> bool:
        """Put the phone away: end what is played, and bring the cloud whatever it lacks."""
        placed: list[Answer] = []
        if self._whole is not None and self._whole.link is not None:
            placed = self._whole.features.placed_since(self._whole.link.answers)
        self._fold()
        for session in self.store.sessions():
            if session.ended:
                continue
            link = Link(self._phone(session.user), session, self.store, self._generator, self._settings)
            link.end(placed if session.placed is None else ())
            await link.run()
            if not link.done:
                self._world.tally.refused[link.refused or "not delivered"] += 1
                return False
        return True


class Fleet:
    """Phones that play until they are put away.

    Args:
        settings: the fleet.
        clock: seconds, for times of pages and samples.

    Attributes:
        phones: the phones.
        tally: what they write down.
        page_seconds: seconds that people take for a page, of a fleet of light phones.

    Raises:
        InputError: the scenario or the policy cannot be used.
    """

    def __init__(self, settings: FleetSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self._clock = settings, clock
        scenario = Scenario.load(settings.scenario)
        self.tally = Tally()
        world = World(settings, scenario, self.tally, len(user_table(scenario, settings.users)))
        if settings.folder is not None:
            make_folder(settings.folder)
        policies: list[Policy | None] = [None] * settings.phones
        if settings.light:
            world.scripts = record_people(scenario, settings.users, SCRIPTS, settings.seed)
            self.page_seconds = seconds_of_page(world.scripts, scenario.config.page_size)
        else:
            world.people = People(scenario, settings.users, settings.phones)
            policies = [*_policies(settings)]
        self.phones = [FleetPhone(world, number, policy) for number, policy in enumerate(policies)]
        self._tasks: list[asyncio.Task[None]] = []
        self._sampling: asyncio.Task[None] | None = None
        self._pages: list[tuple[float, float]] = []  # time, seconds
        self._samples: list[tuple[float, float, int, int]] = []  # time, lag, connected, most unacknowledged

    @property
    def connected(self) -> int:
        """Number of phones that are connected."""
        return sum(phone.link is not None and phone.link.connected for phone in self.phones)

    def counts(self) -> Counts:
        """Return what all links have done so far."""
        past = self.tally.past
        found = Counts(**{**vars(past), "refusals": past.refusals.copy()})
        for phone in self.phones:
            if phone.link is not None:
                found.add_link(phone.link)
        return found

    def start(self) -> None:
        """Let the phones come."""
        self._tasks = [asyncio.create_task(phone.play()) for phone in self.phones]
        self._sampling = asyncio.create_task(self._sample())

    async def measure(self, seconds: float, until: Callable[[], bool] | None = None) -> dict[str, Any]:
        """Return the figures of the next so many seconds, or of the time until something holds.

        Raises:
            Exception: of a phone that has failed by a fault of this package.
        """
        self._look(0.0)  # so that pages that came before do not count
        began, before, decided = self._clock(), self.counts(), len(self.tally.decision_ms)
        ends = began + seconds
        while (now := self._clock()) < ends and not (until is not None and until()):
            self._raise_faults()
            await asyncio.sleep(min(SAMPLE_SECONDS, ends - now))
        self._look(0.0)
        took = self._clock() - began
        pages = np.array([seconds for at, seconds in self._pages if at > began] or [np.nan])
        samples = [sample for sample in self._samples if sample[0] > began]
        counts = self.counts().since(before)
        decisions = np.array(self.tally.decision_ms[decided:] or [np.nan])
        served = int(np.isfinite(pages).sum())
        return {
            "seconds": took,
            "pages": served,
            "pages_per_second": served / took,
            "answers_per_second": counts["answers"] / took,
            "page_p50_ms": 1000 * float(np.percentile(pages, 50)),
            "page_p99_ms": 1000 * float(np.percentile(pages, 99)),
            "page_max_ms": 1000 * float(pages.max()),
            "decision_p50_ms": float(np.percentile(decisions, 50)),
            "decision_p99_ms": float(np.percentile(decisions, 99)),
            "lag_p99_ms": 1000 * float(np.percentile([sample[1] for sample in samples], 99)),
            "least_connected": min(sample[2] for sample in samples),
            "most_unacknowledged": max(sample[3] for sample in samples),
            **counts,
        }

    async def stop(self) -> None:
        """Let the phones be as they are, in the middle of their sessions."""
        await _cancel([*self._tasks, *([] if self._sampling is None else [self._sampling])])
        self._tasks, self._sampling = [], None

    async def deliver(self, seconds: float) -> int:
        """End all sessions and deliver what the cloud lacks; returns the phones that could not."""
        turns = asyncio.Semaphore(DELIVER_AT_ONCE)

        async def one(phone: FleetPhone) -> bool:
            async with turns:
                return await phone.deliver()

        tasks = [asyncio.create_task(one(phone)) for phone in self.phones]
        await asyncio.wait(tasks, timeout=seconds)
        await _cancel([task for task in tasks if not task.done()])
        done = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, Exception):
                raise outcome
        return sum(outcome is not True for outcome in done)

    def close(self) -> None:
        """Close the stores."""
        for phone in self.phones:
            phone.store.close()

    def _raise_faults(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _sample(self) -> None:
        while True:
            began = self._clock()
            await asyncio.sleep(SAMPLE_SECONDS)
            self._look(self._clock() - began - SAMPLE_SECONDS)

    def _look(self, lag: float) -> None:
        """Note pages that came, and how the links do."""
        now = self._clock()
        taken = self.tally.page_seconds[:]
        del self.tally.page_seconds[:]
        self._pages += [(now, seconds) for seconds in taken]
        links = [phone.link for phone in self.phones if phone.link is not None]
        waiting = max((link.answers - link.acknowledged for link in links), default=0)
        self._samples.append((now, lag, sum(link.connected for link in links), waiting))


def _policies(settings: FleetSettings) -> list[Policy]:
    """Return a policy for each phone; exported agents share their graphs."""
    arguments = settings.policy, settings.env_id, settings.scenario, settings.users
    first = phone_policy(*arguments)
    if not isinstance(first, DevicePolicy):
        return [first, *(phone_policy(*arguments, seed) for seed in range(1, settings.phones))]
    budget = None if first.timed is None else first.timed.budget
    return [
        first,
        *(
            DevicePolicy(
                first.name, first.model, first.feed, None if budget is None else TimedDecisions(budget)
            )
            for _ in range(1, settings.phones)
        ),
    ]


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended: libraries may swallow a cancellation."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_SECONDS)
