"""How many phones does a service carry, and what happens beyond: pace, capacity, overload, stampede.

| stage | what |
| --- | --- |
| pace | phones that are played at people's own pace |
| capacity | phones as fast as they can, each waiting for its pages: a closed loop |
| overload | twice what the service can carry; then what it can carry again |
| stampede | all workers are killed at once, and all phones come back |

Each stage has a service of its own with an empty state. Afterwards the answers of all phones are compared
with the service's files.
"""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.agents.phones.simulated import phone_policy
from edgerec_gym.bench.edge.compared import compare
from edgerec_gym.bench.edge.fleet import Fleet, FleetSettings
from edgerec_gym.bench.edge.served import Served, memory, quantile, raise_open_files
from edgerec_gym.device.link_settings import LinkSettings, Phone
from edgerec_gym.errors import InputError, closest
from edgerec_gym.protocol.tokens import read_secret
from edgerec_gym.scenario import Scenario
from edgerec_gym.service.server import SECRET

STAGES = ("pace", "capacity", "overload", "stampede")
FILES_PER_PHONE = 2
OTHER_FILES = 200
ARRIVALS = 50.0  # phones a second that come
SETTLE_SECONDS = 2.0  # between the last arrival and the first figure
CONNECTED, CONNECT_SECONDS = 0.95, 60.0  # share of the phones that is waited for, and how long
DELIVER_SECONDS = 120.0
HELD = 1 / 3  # share of its time that an overloaded service has, so that the fleet can offer twice as much
TWICE = 2.0
LEAST_RETURN, MOST_RETURN = 15.0, 120.0  # seconds that are looked at after the kill
POLL_SECONDS = 0.05
STEADY_SECONDS = 10.0  # least time that is looked at before a kill and after it
WARM_SECONDS = 3.0
WARM_SEED, SEED_STEP = 10**6, 10_000

Row = dict[str, Any]
Tell = Callable[[str], object]


@dataclass(frozen=True)
class LoadSettings:
    """What is measured.

    Attributes:
        phones: sizes of the fleets that are played at people's pace.
        workers: numbers of processes that serve.
        seconds: of each measurement.
        scenario: that is served.
        users: "synthetic" or "learned".
        policy: of whole phones.
        sync: when phones tell the cloud (:class:`~edgerec_gym.device.link_settings.LinkSettings`).
        light_from: number of phones from which they are light.
        closed: phones of the closed loop.
        stampede: phones that come back at once, also those of the overload.
        seed: of everything random.
        url: address of a service that runs already; None to start one for each stage.
        secret: file with its secret.
        state: its folder, to compare answers; None to trust what it has acknowledged.
        stages: those of :data:`STAGES` that are played; pace and capacity alone with a service that runs.
    """

    phones: tuple[int, ...] = (100, 500, 2000)
    workers: tuple[int, ...] = (1, 2)
    seconds: float = 60.0
    scenario: str = "lite-v2"
    users: str = "synthetic"
    policy: str = "keep"
    sync: str = "incremental"
    light_from: int = 1000
    closed: int = 200
    stampede: int = 1000
    seed: int = 0
    url: str | None = None
    secret: Path | None = None
    state: Path | None = None
    stages: tuple[str, ...] = STAGES

    def __post_init__(self) -> None:
        for stage in self.stages:
            if stage not in STAGES:
                raise InputError(f"unknown stage {stage!r}{closest(stage, STAGES)}")
        if not self.phones or min(self.phones) < 1 or not self.workers or min(self.workers) < 1:
            raise InputError("phones and workers must be 1 or more")
        if not 1 <= self.seconds <= 3600:
            raise InputError(f"seconds = {self.seconds}; allowed: 1 to 3600")
        if self.url is not None and self.secret is None:
            raise InputError("a service that runs already (--url) needs --secret, the file with its secret")


def run(settings: LoadSettings, tell: Tell = lambda text: None) -> list[Row]:
    """Measure everything; `tell` hears of each stage.

    Raises:
        InputError: scenario, policy or secret cannot be used, the service does not begin, or the system
            allows too few open files.
    """
    _check(settings)
    rows: list[Row] = []
    own = _Memory()

    def stage(name: str, workers: int, play: Callable[[_Place], Any]) -> None:
        kind = name.partition(",")[0]
        if kind in settings.stages:
            tell(name)
            load = round(os.getloadavg()[0], 2)
            row = _stage(settings, workers, len(rows), own, play)
            rows.append({"stage": kind, "workers": workers, "load_average_before": load, **row})

    for workers in settings.workers if settings.url is None else (0,):
        told = f"{workers} worker{'s' if workers > 1 else ''}" if workers else str(settings.url)
        for phones in settings.phones:
            stage(f"pace, {phones} phones, {told}", workers, partial(_pace, phones=phones))
        stage(f"capacity, {told}", workers, _capacity)
    if settings.url is None:
        stage("overload", settings.workers[0], _overload)
        stage("stampede", max(2, *settings.workers), _stampede)
    return rows


def _check(settings: LoadSettings) -> None:
    """Raise InputError for whatever can be known to be wrong before the work starts."""
    raise_open_files(
        FILES_PER_PHONE * max(*settings.phones, settings.closed, settings.stampede) + OTHER_FILES
    )
    if settings.secret is not None:
        read_secret(settings.secret)
    if settings.url is not None:
        Phone(settings.url, "fleet", "")
    Scenario.load(settings.scenario)
    phone_policy(settings.policy, "EdgeFeed-v0", settings.scenario, settings.users)


@dataclass
class _Memory:
    """Memory of this process: before any fleet, and the most so far, bytes."""

    before: float = float("nan")
    most: float = 0.0

    def begin(self) -> None:
        """Note what is used before the first fleet."""
        if not self.most:
            self.before = self.most = memory(os.getpid())

    def per_phone(self, phones: int) -> float:
        """Return bytes per phone; nan if an earlier fleet took more, whose memory this one has reused."""
        now = memory(os.getpid())
        larger = now > self.most
        self.most = max(self.most, now)
        return (now - self.before) / phones if larger else float("nan")


@dataclass
class _Place:
    """Where a stage is played."""

    settings: LoadSettings
    served: Served | None
    secret: bytes
    state: Path | None
    seed: int
    own: _Memory

    async def gather(self, fleet: Fleet, arrival: float) -> None:
        """Let the phones of a fleet come, and wait until nearly all are connected."""
        fleet.start()
        await fleet.measure(arrival + SETTLE_SECONDS)
        wanted = CONNECTED * len(fleet.phones)
        await fleet.measure(CONNECT_SECONDS, lambda: fleet.connected >= wanted)

    def fleet(self, phones: int, *, light: bool, speed: float, arrival: float, seed: int = 0) -> Fleet:
        """Return a fleet of this place; `seed` tells it from the others of the stage."""
        settings = self.settings
        url = settings.url if self.served is None else self.served.url
        assert url is not None
        return Fleet(
            FleetSettings(
                phones,
                url,
                self.secret,
                settings.scenario,
                settings.users,
                settings.policy,
                light=light,
                speed=speed,
                arrival_seconds=arrival,
                seed=self.seed + seed,
                link=LinkSettings(sync=settings.sync),
            )
        )

    async def figures(
        self, fleet: Fleet, seconds: float, until: Callable[[], bool] | None = None, *, ask: bool = True
    ) -> Row:
        """Return what fleet and service do in so many seconds; `ask`: the service tells its counters."""
        served = self.served if ask else None
        own, cpu = time.process_time(), self.processor_seconds()
        before = {} if served is None else await asyncio.to_thread(served.counters)
        row = await fleet.measure(seconds, until)
        after = {} if served is None else await asyncio.to_thread(served.counters)
        took = row["seconds"]
        row["fleet_cpu"] = (time.process_time() - own) / took
        row["service_cpu"] = (self.processor_seconds() - cpu) / took
        rate = row["pages_per_second"] or float("nan")
        row["service_ms_per_page"] = 1000 * row["service_cpu"] / rate
        row["served_p50_ms"] = 1000 * quantile(before, after, "edgerec_page_seconds", 0.5)
        row["served_p99_ms"] = 1000 * quantile(before, after, "edgerec_page_seconds", 0.99)
        commits = after.get("edgerec_commit_writes_count", 0) - before.get("edgerec_commit_writes_count", 0)
        writes = after.get("edgerec_commit_writes_sum", 0) - before.get("edgerec_commit_writes_sum", 0)
        row["writes_per_commit"] = writes / commits if commits else float("nan")
        row["service_errors"] = after.get("edgerec_errors_total", 0.0)
        return row

    def processor_seconds(self) -> float:
        """Return the processor time of the service, nan if it is not ours."""
        return float("nan") if self.served is None else self.served.processor_seconds()

    def memory(self) -> float:
        """Return the memory of the service, nan if it is not ours."""
        return float("nan") if self.served is None else self.served.memory()

    async def put_away(self, fleet: Fleet) -> Row:
        """Stop a fleet, deliver what the cloud lacks, compare, and return what was found."""
        await fleet.stop()
        stores = [phone.store for phone in fleet.phones]
        stopped = None if self.state is None else compare(stores, self.state)
        undelivered = await fleet.deliver(DELIVER_SECONDS)
        row: Row = {"undelivered": undelivered, "refused": dict(fleet.tally.refused)}
        if self.state is not None and stopped is not None:
            found = compare(stores, self.state)
            row |= {f"compared_{name}": count for name, count in asdict(found).items()}
            row["lost_when_stopped"] = stopped.lost
            row["exactly_once"] = found.exactly_once and stopped.safe
        row["sessions_given_up"] = fleet.tally.given_up
        fleet.close()
        return row


def _stage(
    settings: LoadSettings, workers: int, number: int, own: _Memory, play: Callable[[_Place], Any]
) -> Row:
    """Play a stage with a service of its own, or with the one that runs."""
    seed = settings.seed * SEED_STEP * 100 + number * SEED_STEP
    if settings.url is not None:
        assert settings.secret is not None
        place = _Place(settings, None, read_secret(settings.secret), settings.state, seed, own)
        asyncio.run(_warm_up(place))
        row: Row = asyncio.run(play(place))
        return row
    with tempfile.TemporaryDirectory(prefix="edgerec-load-") as folder:
        state = Path(folder)
        served = Served(settings.scenario, state, workers, settings.users)
        try:
            place = _Place(settings, served, read_secret(state / SECRET), state, seed, own)
            asyncio.run(_warm_up(place))
            row = asyncio.run(play(place))
            row["service_lives"] = served.lives
        finally:
            served.stop()
    gc.collect()
    return row


async def _warm_up(place: _Place) -> None:
    """Play on one phone of each kind, so that kernels are loaded on both sides."""
    for light in (False, True):
        fleet = place.fleet(4, light=light, speed=100.0, arrival=0.0, seed=WARM_SEED)
        fleet.start()
        await fleet.measure(WARM_SECONDS)
        await fleet.stop()
        await fleet.deliver(DELIVER_SECONDS)
        fleet.close()


async def _pace(place: _Place, phones: int) -> Row:
    settings = place.settings
    gc.collect()
    light, arrival = phones >= settings.light_from, phones / ARRIVALS
    place.own.begin()
    served_before = place.memory()
    fleet = place.fleet(phones, light=light, speed=1.0, arrival=arrival)
    await place.gather(fleet, arrival)
    row = await place.figures(fleet, settings.seconds)
    row["fleet_kb_per_phone"] = place.own.per_phone(phones) / 1e3
    row["service_kb_per_phone"] = (place.memory() - served_before) / phones / 1e3
    return {"phones": phones, "kind": "light" if light else "whole", **row, **await place.put_away(fleet)}


async def _capacity(place: _Place) -> Row:
    settings = place.settings
    fleet = place.fleet(settings.closed, light=True, speed=float("inf"), arrival=1.0)
    fleet.start()
    await fleet.measure(1.0 + SETTLE_SECONDS)
    row = await place.figures(fleet, settings.seconds / 2)
    return {"phones": settings.closed, "kind": "light", **row, **await place.put_away(fleet)}


async def _overload(place: _Place) -> Row:
    settings, served = place.settings, place.served
    assert served is not None
    with served.held_to(HELD):
        fleet = place.fleet(settings.closed, light=True, speed=float("inf"), arrival=1.0)
        fleet.start()
        await fleet.measure(1.0 + SETTLE_SECONDS)
        carried = (await fleet.measure(settings.seconds / 3))["pages_per_second"]
        await fleet.stop()
    await fleet.deliver(DELIVER_SECONDS)
    fleet.close()
    phones = settings.stampede
    speed = TWICE * max(carried, 0.1) * fleet.page_seconds / phones
    arrival = min(5.0, settings.seconds / 3)
    fleet = place.fleet(phones, light=True, speed=speed, arrival=arrival, seed=settings.closed)
    fleet.start()
    before = place.memory()
    with served.held_to(HELD):
        await fleet.measure(arrival + SETTLE_SECONDS)
        row = await place.figures(fleet, settings.seconds)
    row["service_growth_mb"] = (place.memory() - before) / 1e6
    await fleet.measure(settings.seconds / 3)
    after = await place.figures(fleet, settings.seconds / 3)
    return {
        "phones": phones,
        "kind": "light",
        "held_to": HELD,
        "carried": carried,
        "offered": TWICE * carried,
        **row,
        "recovered_pages_per_second": after["pages_per_second"],
        "recovered_p99_ms": after["page_p99_ms"],
        **await place.put_away(fleet),
    }


async def _stampede(place: _Place) -> Row:
    settings, served = place.settings, place.served
    assert served is not None
    phones = settings.stampede
    arrival = phones / ARRIVALS
    fleet = place.fleet(phones, light=True, speed=1.0, arrival=arrival)
    await place.gather(fleet, arrival)
    before = await place.figures(fleet, max(STEADY_SECONDS, settings.seconds / 3))
    welcomes = [phone.total_welcomes() for phone in fleet.phones]
    returned = np.full(phones, np.nan)
    killed = served.kill_workers()
    began = time.monotonic()

    async def look() -> None:
        while np.isnan(returned).any():
            now = time.monotonic() - began
            for number in np.flatnonzero(np.isnan(returned)).tolist():
                phone, known = fleet.phones[number], welcomes[number]
                if phone.total_welcomes() > known and phone.link is not None and phone.link.connected:
                    returned[number] = now
            await asyncio.sleep(POLL_SECONDS)

    looking = asyncio.create_task(look())
    row = await place.figures(
        fleet, MOST_RETURN, lambda: looking.done() and time.monotonic() > began + LEAST_RETURN, ask=False
    )
    looking.cancel()
    after = await place.figures(fleet, max(STEADY_SECONDS, settings.seconds / 3))
    missing = int(np.isnan(returned).sum())
    times = returned[~np.isnan(returned)]
    return {
        "phones": phones,
        "kind": "light",
        "killed": killed,
        "returned": phones - missing,
        "return_p50_seconds": float(np.percentile(times, 50)) if len(times) else float("nan"),
        "return_p99_seconds": float(np.percentile(times, 99)) if len(times) else float("nan"),
        "all_returned_seconds": float("nan") if missing else float(times.max()),
        **row,
        "service_cpu": float("nan"),  # of processes that have gone
        "service_ms_per_page": float("nan"),
        "before_p99_ms": before["page_p99_ms"],
        "after_p99_ms": after["page_p99_ms"],
        **await place.put_away(fleet),
    }


_NUMBERS = {
    "pages/s": ("pages_per_second", ".1f"),
    "answers/s": ("answers_per_second", ".0f"),
    "page p50 ms": ("page_p50_ms", ".1f"),
    "page p99 ms": ("page_p99_ms", ".0f"),
    "service p99 ms": ("served_p99_ms", ".0f"),
    "service cores": ("service_cpu", ".2f"),
    "fleet cores": ("fleet_cpu", ".2f"),
    "kB/phone": ("service_kb_per_phone", ".0f"),
    "lost": ("compared_lost", "d"),
    "exactly once": ("exactly_once", ""),
}


def tables(rows: list[Row]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return the tables of a run by title."""
    body = [
        [
            f"{row['stage']}, {row['phones']} {row['kind']}, {row['workers']} workers",
            *(_cell(row.get(key), form) for key, form in _NUMBERS.values()),
        ]
        for row in rows
    ]
    found = {"load": (["stage, phones", *_NUMBERS], body)}
    for row in rows:
        if row["stage"] == "overload":
            keys = [
                "carried",
                "offered",
                "pages_per_second",
                "recovered_pages_per_second",
                "recovered_p99_ms",
            ]
        elif row["stage"] == "stampede":
            keys = ["all_returned_seconds", "return_p50_seconds", "return_p99_seconds"]
            keys += ["before_p99_ms", "page_p99_ms", "after_p99_ms"]
        else:
            continue
        names = [key.replace("_", " ") for key in keys]
        found[row["stage"]] = ["", *names], [[row["stage"], *(_cell(row.get(key), ".1f") for key in keys)]]
    return found


def _cell(value: Any, form: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if value is None or value != value:
        return ""
    return f"{value:{form}}"
