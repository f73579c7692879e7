"""The fault table, row by row: the real phone against the real service."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn")

from broken_devices import seal, shift_golden, spoil
from small_devices import crban
from small_phones import FAST, OFFLINE, QUICK, VIRTUAL, WORLD, Cloud, Played, expected, later_seed, user_of

from edgerec_gym.agents.device.policy import DevicePolicy
from edgerec_gym.agents.device.runtime import Pace, Session
from edgerec_gym.agents.export.export import export_network
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.bench.edge.faults import KILLED_SERVICE, Study, answers_of, placed_of, plan, rows_of, tables
from edgerec_gym.bench.edge.parity import Feed
from edgerec_gym.device import backoff
from edgerec_gym.device.description import digest_of, feature_digest
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link_settings import LinkSettings
from edgerec_gym.device.registry import ModelRegistry
from edgerec_gym.device.session import load
from edgerec_gym.faults.lag_proxy import LagProxy
from edgerec_gym.faults.schedule import DIRECTIONS, CutAtByte, Duplicate, Reorder, Schedule
from edgerec_gym.protocol.messages import ModelChunk, ModelFile, ModelWant, Page, common_version
from edgerec_gym.service import exchange
from edgerec_gym.service.local import local_service
from edgerec_gym.service.models import OfferedModel

DAY = 86_400.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    state = tmp_path_factory.mktemp("service")
    with local_service("lite", state) as service:
        yield Cloud(service, state)


@pytest.fixture
def cloud(running: Cloud) -> Cloud:
    running.forget()
    return running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EventStore]:
    with closing(EventStore(tmp_path / "phone.db")) as kept:
        yield kept


# Connection cut, any byte: play goes on; after reconnection the cloud's events are the phone's.


def test_a_connection_cut_at_any_byte(cloud: Cloud, tmp_path: Path) -> None:
    """Play is the environment's, bit for bit."""
    seeds = list(range(24))

    async def one(seed: int) -> tuple[Played, int]:
        direction = DIRECTIONS[seed % 2]
        byte = (seed // 2) * (150 if direction == "up" else 700)
        cuts = Schedule(faults=(CutAtByte(direction, byte), CutAtByte(direction, byte + 333)))
        with closing(EventStore(tmp_path / f"{seed}.db")) as kept:
            async with LagProxy(cloud.port, cuts) as network:
                played = Played(cloud.phone(user_of(seed), network), seed, kept)
                report = await played.play()
            assert report.delivered and played.is_in(cloud)
        return played, network.happened["CutAtByte"]

    async def work() -> list[tuple[Played, int]]:
        return await asyncio.gather(*map(one, seeds))

    found = asyncio.run(work())
    assert sum(cuts for _, cuts in found) > 30
    for played, wanted in zip((played for played, _ in found), expected(seeds), strict=True):
        assert played.trajectory.differences(wanted) == 0


# Lag, jitter, reordering: decisions before the arrival of a page are unchanged; a late page is ignored.


class Immediate(Session):
    """Gets every page before the next slot."""

    async def _pass_time(self, response: np.ndarray | None, link: Any) -> None:
        while self._asked is not None and link._page is None:
            await asyncio.sleep(0.001)


class Cut(Session):
    """Gets no page but the first: whatever comes later is held back until nothing is left to show."""

    async def _page_between_slots(self, link: Any) -> None:
        if self._asked is not None:
            self.features.wait_for_page()
        self.features.show()


def test_decisions_before_a_page_arrives_are_unchanged(cloud: Cloud, tmp_path: Path) -> None:
    bad = Schedule(
        up=0.02, down=0.06, jitter=0.04, faults=tuple(Reorder("down", k, 2) for k in range(2, 40, 3))
    )
    seen = {}
    for kind, network in ((Immediate, Schedule()), (Session, bad), (Cut, Schedule())):

        async def work(kind: type[Session] = kind, network: Schedule = network) -> None:
            cloud.forget()
            with closing(EventStore(tmp_path / f"{kind.__name__}.db")) as kept:
                async with LagProxy(cloud.port, network) as proxy:
                    settings = replace(QUICK, reply_seconds=10.0)
                    phone = cloud.phone(user_of(4), proxy)
                    played = Played(phone, 4, kept, FAST, settings, kind=kind)
                    assert (await played.play()).delivered and played.is_in(cloud)
                seen[kind] = played.trajectory.observations, played.turns

        asyncio.run(work())
    (early, early_turns), (late, late_turns), (never, never_turns) = seen.values()
    assert 0 < early_turns[1] < late_turns[1] <= never_turns[1]
    assert early[: early_turns[1]] == late[: early_turns[1]] == never[: early_turns[1]]
    assert early[early_turns[1]] != late[early_turns[1]]
    assert late[: late_turns[1]] == never[: late_turns[1]]


class Impatient(Session):
    """Waits for the first page until it has been asked for, and no longer; at slot 6 until it has come."""

    async def _wait_page(self, link: Any, seconds: float) -> Page | None:
        if self.features.page < 0:
            while ("up", "request") not in link.traffic.amounts:
                await asyncio.sleep(0.001)
            return None
        return await super()._wait_page(link, seconds)

    async def _pass_time(self, response: np.ndarray | None, link: Any) -> None:
        while self.features.slot == 6 and not link.counts.late_pages:
            await asyncio.sleep(0.001)


def test_a_late_first_page_is_ignored(cloud: Cloud, store: EventStore) -> None:
    """The session began with the last page of an earlier one, also when the phone is started again."""
    first, second = 7, later_seed(7)

    async def work() -> tuple[Played, Played]:
        await Played(cloud.phone(user_of(7)), first, store, FAST).play()
        held = Schedule(faults=(Reorder("down", 1),), hold=30.0)  # behind the first acknowledgement
        async with LagProxy(cloud.port, held) as network:
            late = Played(cloud.phone(user_of(7), network), second, store, FAST, kind=Impatient)
            with pytest.raises(Killed):
                late.session.watch = kill_after(8)
                await late.play()
            again = Played(cloud.phone(user_of(7), network), second, store, FAST)
            assert (await again.play()).delivered
        return late, again

    late, again = asyncio.run(work())
    kept, before = store.page(late.key, 0), store.page(store.sessions()[0].session)
    assert kept is not None and before is not None and kept.items == before.items
    assert late.session.link is not None and late.session.link.counts.late_pages == 1
    assert again.trajectory.observations[:8] == late.trajectory.observations[:8]
    assert again.is_in(cloud)


class Killed(BaseException):
    """The process ends here."""


def kill_after(slots: int) -> Callable[[Session], None]:
    def watch(session: Session) -> None:
        if session.features.slot >= slots:
            raise Killed

    return watch


# Duplicates: the state of the service is bit-identical.


def test_duplicates_change_nothing(cloud: Cloud, tmp_path: Path) -> None:
    twice = Schedule(faults=tuple(Duplicate(way, k, 2) for way in DIRECTIONS for k in range(1, 60)))
    rows, trajectories = [], []
    for name, faults in (("once", Schedule()), ("often", twice)):

        async def work(name: str = name, faults: Schedule = faults) -> None:
            cloud.forget()
            with closing(EventStore(tmp_path / f"{name}.db")) as kept:
                async with LagProxy(cloud.port, faults) as network:
                    played = Played(cloud.phone(user_of(2), network), 2, kept)
                    assert (await played.play()).delivered and played.is_in(cloud)
            trajectories.append(played.trajectory)
            assert network.happened["Duplicate"] > 10 or name == "once"

        asyncio.run(work())
        rows.append(cloud.rows())
    assert rows[0] == rows[1] and all(rows[0].values())
    assert trajectories[0].differences(trajectories[1]) == 0


# kill -9 of phone or cloud, anywhere: no acknowledged event is lost.


def test_killed_phones_and_a_killed_service(tmp_path: Path) -> None:
    plans = [plan(number, seed=5) for number in (3, 13, 18, 23)]
    assert all(each.service_killed for each in plans) and KILLED_SERVICE == 5
    outcomes = asyncio.run(Study(tmp_path, len(plans)).run(plans, lambda done, total: None))
    assert [outcome.crash for outcome in outcomes] == [""] * len(plans)
    everything = rows_of(outcomes)[-1]
    assert everything["answers"] > 60 and everything["schedules"] == len(plans)
    for what in ("lost", "differing", "features", "crashes", "undelivered"):
        assert everything[what] == 0, what
    assert sum(outcome.happened["PhoneKilled"] for outcome in outcomes) > 0
    ((header, body),) = tables(rows_of(outcomes)).values()
    assert len(body) == 9 and len(header) == len(body[0])


def test_a_session_that_was_given_up_is_delivered_and_not_played_on(cloud: Cloud, store: EventStore) -> None:
    """Its last page was used up while there was no network; then the phone was killed."""

    async def work() -> tuple[Played, Played]:
        async with LagProxy(cloud.port) as network:

            def lose(session: Session) -> None:
                if session.features.slot == 4:
                    network.refuse(1000)
                    network.cut()

            phone, pace = cloud.phone(user_of(2), network), replace(OFFLINE, first_page_seconds=30.0)
            given_up = Played(phone, 2, store, pace, watch=lose)
            report = await given_up.play()
            assert report.starved and not report.delivered and 4 < report.slots < 36
            network.refuse(0)
            again = Played(phone, 2, store, FAST)
            report = await again.play()
            assert report.delivered and report.slots == given_up.session.report.slots
        return given_up, again

    given_up, again = asyncio.run(work())
    assert again.is_in(cloud) and again.trajectory.actions == given_up.trajectory.actions


def test_a_page_that_is_damaged_on_disk_ends_its_session_only(cloud: Cloud, store: EventStore) -> None:
    lost = Played(cloud.phone(user_of(7)), 7, store, FAST, kind=Immediate, watch=kill_after(16))
    with pytest.raises(Killed):
        asyncio.run(lost.play())
    assert store.page(lost.key, 1) is not None
    store._database.execute("UPDATE pages SET data = x'93a4' WHERE page = 1")
    again = Played(cloud.phone(user_of(7)), 7, store, FAST)
    assert asyncio.run(again.play()).starved
    assert answers_of(cloud.state, again.key) == store.answers(again.key)
    later = Played(cloud.phone(user_of(7)), later_seed(7), store, FAST)
    assert asyncio.run(later.play()).delivered and later.is_in(cloud)


# Power loss: the phone may lose its last commits, the cloud none.


def lose_power(path: Path, to: Path, frames: int) -> int:
    """Copy a store without the last frames of its log, as a loss of power leaves it; returns their number."""
    to.parent.mkdir()
    shutil.copyfile(path, to)
    log = path.with_name(path.name + "-wal").read_bytes()
    size = 24 + int.from_bytes(log[8:12], "big")
    kept = max(0, (len(log) - 32) // size - frames)
    to.with_name(to.name + "-wal").write_bytes(log[: 32 + kept * size])
    return (len(log) - 32) // size - kept


@pytest.mark.parametrize("frames", [1, 12, 40])
@pytest.mark.parametrize("offline", [False, True])
def test_a_loss_of_power_takes_the_last_commits(
    cloud: Cloud, tmp_path: Path, frames: int, offline: bool
) -> None:
    """Offline, the user answers other cards in the place of the lost ones before the cloud is met again."""
    seed, path = 7, tmp_path / "before" / "phone.db"
    another = later_seed(seed)
    phone = cloud.phone(user_of(seed))

    async def work() -> None:
        with closing(EventStore(path)) as kept:

            class Flushing(Session):
                """Lets the cloud have every answer before the next slot."""

                async def _pass_time(self, response: np.ndarray | None, link: Any) -> None:
                    await link.flushed()

            lost = Played(phone, seed, kept, VIRTUAL, kind=Flushing, watch=kill_after(14))
            with pytest.raises(Killed):
                await lost.play()
            told = answers_of(cloud.state, lost.key)
            assert len(told) >= 10
            assert lose_power(path, tmp_path / "after" / "phone.db", frames) == frames
        with closing(EventStore(tmp_path / "after" / "phone.db")) as kept:
            left = len(kept.answers(lost.key))
            assert (left < len(told)) == (frames > 1)
            nobody = replace(phone, url="ws://127.0.0.1:9/v1/feed")
            if offline:
                await Played(nobody, seed, kept, OFFLINE).play()
            again = Played(phone, seed, kept, FAST)
            report = await again.play()
            if left < len(told) and not offline:
                assert report.refused.startswith("session: the cloud has") and not report.delivered
            assert (await Played(phone, another, kept, FAST).play()).delivered
            assert all(session.ended for session in kept.sessions())
            held = answers_of(cloud.state, lost.key)
            assert held[: len(told)] == told  # the cloud loses none of them
            if report.refused:
                assert held == told and kept.answers(lost.key) == told[:left]
            assert placed_of(cloud.state, lost.key) is not None

    asyncio.run(work())


# Phone behind the cloud, or ahead: both versions are served, or Refuse and the cloud's order.


@pytest.mark.parametrize(("phone", "service"), [((1, 1), (1, 2)), ((1, 2), (1, 1)), ((2, 2), (1, 2))])
def test_two_versions_are_served(
    cloud: Cloud,
    store: EventStore,
    monkeypatch: pytest.MonkeyPatch,
    phone: tuple[int, int],
    service: tuple[int, int],
) -> None:
    monkeypatch.setattr(exchange, "common_version", lambda theirs: common_version(theirs, service))
    played = Played(cloud.phone(user_of(3)), 3, store, settings=replace(QUICK, versions=phone))
    assert asyncio.run(played.play()).delivered and played.is_in(cloud)
    assert played.session.link is not None and played.session.link.welcome is not None
    assert played.session.link.welcome.version == min(phone[1], service[1])
    assert played.trajectory.differences(expected([3])[0]) == 0


@pytest.mark.parametrize(("phone", "service"), [((1, 1), (2, 3)), ((2, 2), (1, 1))])
def test_other_versions_are_refused_and_play_goes_on(
    cloud: Cloud,
    store: EventStore,
    monkeypatch: pytest.MonkeyPatch,
    phone: tuple[int, int],
    service: tuple[int, int],
) -> None:
    """What the cloud sent last is what there is to play; later the session is delivered."""
    asyncio.run(Played(cloud.phone(user_of(7)), 7, store, FAST).play())
    monkeypatch.setattr(exchange, "common_version", lambda theirs: common_version(theirs, service))
    settings = replace(QUICK, versions=phone)
    refused = Played(cloud.phone(user_of(7)), later_seed(7), store, FAST, settings)
    report = asyncio.run(refused.play())
    assert report.refused.startswith("version: ") and report.slots > 3 and not report.delivered
    monkeypatch.undo()
    later = Played(cloud.phone(user_of(7)), later_seed(later_seed(7)), store, FAST)
    assert asyncio.run(later.play()).delivered and refused.is_in(cloud)


# A model that is truncated, bit-flipped, of other sizes, NaN, or answers otherwise: refused in one line.


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, network, places in (("old", crban(), 6), ("new", crban(), 5), ("sizes", crban(layers=2), 6)):
        export_network(network, folder / name, find_agent("crban"), "lite", WORLD.config, places)
    return folder


def of_other_sizes(folder: Path) -> None:
    shutil.copyfile(folder.parent / "sizes/crban.exposures.onnx", folder / "crban.exposures.onnx")
    seal(folder)


def truncated(patch: pytest.MonkeyPatch) -> None:
    make = OfferedModel.__init__

    def offer(self: OfferedModel, *arguments: Any) -> None:
        make(self, *arguments)
        self._files["crban.scores.onnx"] = self._files["crban.scores.onnx"][:-100]
        files = [ModelFile(name, len(data)) for name, data in self._files.items()]
        self.offer = type(self.offer)(self.digest, files)

    patch.setattr(OfferedModel, "__init__", offer)


def bit_flipped(patch: pytest.MonkeyPatch) -> None:
    tell = OfferedModel.chunk

    def chunk(self: OfferedModel, wanted: ModelWant) -> ModelChunk | None:
        found = tell(self, wanted)
        if found is None or wanted.name != "crban.scores.onnx":
            return found
        data = bytearray(found.data)
        data[len(data) // 2] ^= 4
        return ModelChunk(found.digest, found.name, found.offset, bytes(data))

    patch.setattr(OfferedModel, "chunk", chunk)


WRONG: dict[str, tuple[Callable[[Path], None] | None, Callable[[pytest.MonkeyPatch], None] | None, str]] = {
    "truncated": (None, truncated, "crban.scores.onnx is corrupted: it has"),
    "bit-flipped": (None, bit_flipped, "crban.scores.onnx is corrupted: its content"),
    "other sizes": (of_other_sizes, None, "crban.exposures.onnx: input 'hidden"),
    "not finite": (lambda f: spoil(f, "crban.scores.onnx"), None, "gives values that are not finite"),
    "other answers": (lambda f: shift_golden(f, "crban.scores/1/out/scores"), None, "differs from its go"),
}  # fmt: skip


class Curious(Session):
    """Passes no time at slot 3 until a model has been taken or refused."""

    async def _pass_time(self, response: np.ndarray | None, link: Any) -> None:
        while self.features.slot == 3 and not self.said and self._next_model is None:
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_model_is_refused_and_the_old_one_plays(
    kind: str, models: Path, store: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, on_its_way, message = WRONG[kind]
    for name in ("new", "sizes"):
        shutil.copytree(models / name, tmp_path / name)
    if wrong is not None:
        wrong(tmp_path / "new")
    if on_its_way is not None:
        on_its_way(monkeypatch)
    registry = ModelRegistry(tmp_path / "models", feature_digest(WORLD.config))
    policy = DevicePolicy("crban", load(models / "old"), Feed("rerank", WORLD.config, WORLD))
    old = policy.model.digest
    with local_service("lite", tmp_path / "service", models=tmp_path / "new") as service:
        played = Played(service.phone(user_of(2)), 2, store, FAST, kind=Curious)
        played.session = session = Curious(
            WORLD.config, "rerank", policy, service.phone(user_of(2)), store, np.random.default_rng(2),
            pace=FAST, link_settings=QUICK, models=registry,
        )  # fmt: skip
        assert asyncio.run(played.play()).delivered
        assert message in session.said and "\n" not in session.said
        assert list(registry.state.rejected) == [digest_of(tmp_path / "new")] and not registry.active
        assert {decision.model for decision in store.decisions(played.key)} == {old} == {policy.model.digest}
        again = Played(service.phone(user_of(3)), 3, store, FAST)
        again.session = Session(
            WORLD.config, "rerank", policy, service.phone(user_of(3)), store, np.random.default_rng(3),
            pace=FAST, link_settings=QUICK, models=registry,
        )  # fmt: skip
        assert asyncio.run(again.play()).delivered
        assert again.session.link is not None and ("up", "want") not in again.session.link.traffic.amounts


# A full disk: play is read-only, and that is said once.


def test_a_full_disk_stops_no_session(cloud: Cloud, tmp_path: Path) -> None:
    """The cloud gets what was kept; when there is room again, sessions are kept again."""
    said: list[str] = []
    kept = EventStore(tmp_path / "phone.db", say=said.append)
    database = kept._database

    def fill(session: Session) -> None:
        if session.features.slot == 6:
            pages = database.execute("PRAGMA page_count").fetchone()[0]
            database.execute(f"PRAGMA max_page_count = {pages}")

    full = Played(cloud.phone(user_of(7)), 7, kept, FAST, watch=fill, kind=Immediate)
    report = asyncio.run(full.play())
    assert report.slots > 15 and report.pages > 1 and not report.starved
    assert len(said) == 1 and "read-only" in said[0] and "full" in said[0] and "\n" not in said[0]
    answers = answers_of(cloud.state, full.key)
    assert 4 <= len(answers) < report.answers and kept.answers(full.key) == answers
    placed = placed_of(cloud.state, full.key)
    assert placed is not None and len(placed) == report.slots - len(answers)
    database.execute("PRAGMA max_page_count = 1000000")
    later = Played(cloud.phone(user_of(7)), later_seed(7), kept, FAST)
    assert asyncio.run(later.play()).delivered and later.is_in(cloud) and len(said) == 1
    kept.close()


def test_a_disk_that_is_full_from_the_start(cloud: Cloud, tmp_path: Path) -> None:
    said: list[str] = []
    with closing(EventStore(tmp_path / "phone.db", say=said.append)) as kept:
        kept._database.execute("PRAGMA query_only = 1")
        played = Played(cloud.phone(user_of(7)), 7, kept, FAST)
        report = asyncio.run(played.play())
    assert report.slots > 15 and report.delivered and len(said) == 1
    placed = placed_of(cloud.state, played.key)
    assert placed is not None and len(placed) == report.slots and not answers_of(cloud.state, played.key)


def test_a_phone_killed_after_its_disk_was_full_goes_on(cloud: Cloud, tmp_path: Path) -> None:
    """There was room again in the middle of the session: what lies behind the gap is not replayed."""
    with closing(EventStore(tmp_path / "phone.db", say=lambda line: None)) as kept:
        database = kept._database

        def fill(session: Session) -> None:
            slot = session.features.slot
            if slot in (5, 9):
                database.execute(f"PRAGMA query_only = {int(slot == 5)}")
            if slot == 9:
                kept.read_only = ""  # as the delivery of an earlier session does
            if slot >= 12:
                raise Killed

        with pytest.raises(Killed):
            asyncio.run(Played(cloud.phone(user_of(7)), 7, kept, FAST, watch=fill).play())
    for _ in range(2):
        with closing(EventStore(tmp_path / "phone.db")) as kept:
            again = Played(cloud.phone(user_of(7)), 7, kept, FAST, watch=kill_after(14))
            try:
                asyncio.run(again.play())
            except Killed:
                continue
    with closing(EventStore(tmp_path / "phone.db")) as kept:
        last = Played(cloud.phone(user_of(7)), 7, kept, FAST)
        assert asyncio.run(last.play()).delivered and last.is_in(cloud)


# Clock jumps: numbers, not clocks, order events.


def test_clocks_that_jump_change_nothing(
    cloud: Cloud, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back and forth by hours, for phone and service: a token counts days."""
    jumps, real = np.random.default_rng(0), time.time
    noon = (real() // DAY + 0.5) * DAY
    monkeypatch.setattr(time, "time", lambda: noon + float(jumps.uniform(-11, 11)) * 3600)

    async def work() -> Played:
        async with LagProxy(
            cloud.port, Schedule(faults=(CutAtByte("up", 900), CutAtByte("up", 1500)))
        ) as network:
            played = Played(cloud.phone(user_of(2), network), 2, store)
            assert (await played.play()).delivered
        return played

    played = asyncio.run(work())
    assert played.is_in(cloud) and played.trajectory.differences(expected([2])[0]) == 0


def test_a_token_ends_by_day_and_play_does_not(
    cloud: Cloud, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weeks forward in a session: refused, played to its end, delivered when the clock is back."""
    real, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])

    async def work() -> tuple[Played, Played]:
        async with LagProxy(cloud.port) as network:

            def jump(session: Session) -> None:
                if session.features.slot == 5:
                    ahead[0] = 31 * DAY
                    network.cut()

            played = Played(cloud.phone(user_of(7), network), 7, store, FAST, watch=jump)
            report = await played.play()
            assert report.slots > 6 and report.refused.startswith("token:")
            ahead[0] = 0.0
            later = Played(cloud.phone(user_of(7), network), later_seed(7), store, FAST)
            ahead[0] = -1000 * DAY
            assert (await later.play()).delivered
        return played, later

    played, later = asyncio.run(work())
    assert played.is_in(cloud) and later.is_in(cloud)


# 1,000 reconnects at once: here 30, which all come back at times of their own.


def test_phones_that_were_cut_off_together_return_one_by_one(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: dict[int, list[float]] = {}
    draw = backoff.Backoff.draw

    def noted(self: backoff.Backoff) -> float:
        waits.setdefault(id(self), []).append(draw(self))
        kept.append(self)
        return waits[id(self)][-1]

    kept: list[backoff.Backoff] = []  # so that no id comes twice
    monkeypatch.setattr(backoff.Backoff, "draw", noted)
    phones = 30
    settings = LinkSettings(most_seconds=0.005, first_wait=0.05, longest_wait=0.2)

    async def work() -> None:
        stores = [EventStore(tmp_path / f"{seed}.db") for seed in range(phones)]
        slots = 0
        async with LagProxy(cloud.port) as network:

            def cut(session: Session) -> None:
                nonlocal slots
                slots += 1
                if slots == 3 * phones:
                    network.refuse(0.6)
                    network.cut()

            everyone = [
                Played(cloud.phone(user_of(seed), network), seed, stores[seed], Pace(True), settings, cut)
                for seed in range(phones)
            ]
            reports = await asyncio.gather(*(played.play() for played in everyone))
        assert all(report.delivered for report in reports)
        assert all(played.is_in(cloud) for played in everyone)
        for each in stores:
            each.close()

    asyncio.run(work())
    cut_off = [waited for waited in waits.values() if waited]
    assert len(cut_off) > phones // 2
    assert len({waited[0] for waited in cut_off}) == len(cut_off)
    for waited in cut_off:
        assert all(wait <= min(0.05 * 2**tries, 0.2) for tries, wait in enumerate(waited))
