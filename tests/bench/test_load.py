"""Fleets against a real service, and what the bench finds when answers are lost."""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("websockets")

from command_line import fails_with, run_well

from edgerec_gym.bench.edge import load, served
from edgerec_gym.bench.edge.compared import compare
from edgerec_gym.bench.edge.fleet import Fleet, FleetSettings
from edgerec_gym.bench.edge.light_phone import record_people, seconds_of_page
from edgerec_gym.bench.edge.load import LoadSettings
from edgerec_gym.bench.edge.served import Served, quantile
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link_settings import LinkSettings
from edgerec_gym.device.phone_schema import PhoneSession
from edgerec_gym.errors import InputError
from edgerec_gym.protocol.messages import Answer
from edgerec_gym.protocol.tokens import read_secret
from edgerec_gym.scenario import Scenario

SCENARIO = "lite-v2"
LINK = LinkSettings(sync="incremental", first_wait=0.05, longest_wait=0.5)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    started = Served(SCENARIO, tmp_path_factory.mktemp("served"), workers=2)
    yield started
    started.stop()


def fleet_of(service: Served, phones: int, seed: int, **settings: object) -> Fleet:
    secret = read_secret(service.state / "secret")
    told: dict = {"speed": 200.0, "arrival_seconds": 0.1, "link": LINK} | settings
    return Fleet(FleetSettings(phones, service.url, secret, SCENARIO, seed=seed, **told))


async def until(fleet: Fleet, sessions: int) -> None:
    await fleet.measure(60, lambda: fleet.tally.sessions >= sessions)
    assert fleet.tally.sessions >= sessions, fleet.tally.refused


@pytest.mark.parametrize("light", [False, True])
def test_a_small_fleet_is_served_exactly_once(service: Served, light: bool, tmp_path: Path) -> None:
    fleet = fleet_of(service, 5, 100 + light, light=light, folder=None if light else tmp_path)

    async def play() -> None:
        fleet.start()
        figures = asyncio.create_task(fleet.measure(60, lambda: fleet.tally.sessions >= 8))
        row = await figures
        await fleet.stop()
        stores = [phone.store for phone in fleet.phones]
        stopped = compare(stores, service.state)
        assert stopped.safe and stopped.open > 0  # whoever played on is in the middle of a session
        assert await fleet.deliver(30) == 0
        found = compare(stores, service.state)
        assert found.exactly_once and found.missing == 0
        assert found.sessions >= 8 and found.answers > 100
        assert row["pages"] >= 8 and row["page_p50_ms"] > 0
        assert row["bytes_down"] > row["bytes_up"] > 0
        assert row["acknowledged"] > 0 and row["refusals"].keys() <= {"elsewhere"}
        assert math.isnan(row["decision_p50_ms"]) == light
        assert fleet.counts().acknowledged <= fleet.counts().answers == found.answers
        assert not fleet.tally.refused and fleet.tally.given_up == 0

    asyncio.run(play())
    fleet.close()
    assert len(list(tmp_path.glob("phone-*.db"))) == (0 if light else 5)


def test_killed_workers_lose_nothing_that_was_acknowledged(service: Served) -> None:
    fleet = fleet_of(service, 6, 300, light=True, speed=50.0)

    async def play() -> None:
        fleet.start()
        await until(fleet, 3)
        welcomes = [phone.total_welcomes() for phone in fleet.phones]
        assert service.kill_workers() == 2
        await fleet.measure(
            60,
            lambda: all(
                phone.total_welcomes() > known for phone, known in zip(fleet.phones, welcomes, strict=True)
            ),
        )
        assert all(p.total_welcomes() > w for p, w in zip(fleet.phones, welcomes, strict=True))
        await fleet.stop()
        assert await fleet.deliver(30) == 0

    asyncio.run(play())
    assert fleet.counts().failures > 0
    assert compare([phone.store for phone in fleet.phones], service.state).exactly_once
    assert service.lives
    fleet.close()


def test_the_command_measures_a_service_that_runs(service: Served, tmp_path: Path) -> None:
    results = tmp_path / "load.json"
    out = run_well(
        *("bench", "load", "--phones", 3, "--closed", 3, "--seconds", 2, "--seed", 7),
        *("--url", service.url, "--secret", service.state / "secret", "--state", service.state),
        *("--results", results),
    )
    assert "pace, 3 whole" in out and "NO" not in out
    rows = json.loads(results.read_text())["rows"]
    assert [row["stage"] for row in rows] == ["pace", "capacity"]
    assert all(row["exactly_once"] and row["undelivered"] == 0 for row in rows)
    assert rows[1]["pages_per_second"] > 0


def test_overload_and_stampede_end_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LEAST_RETURN", "STEADY_SECONDS", "WARM_SECONDS", "SETTLE_SECONDS"):
        monkeypatch.setattr(load, name, 0.5)
    stages = ("overload", "stampede")
    settings = LoadSettings(phones=(2,), workers=(1,), seconds=1.5, closed=4, stampede=6, stages=stages)
    told: list[str] = []
    rows = {row["stage"]: row for row in load.run(settings, told.append)}
    assert list(rows) == list(stages) == told
    assert all(row["exactly_once"] and row["service_lives"] for row in rows.values())
    assert rows["overload"]["offered"] == 2 * rows["overload"]["carried"] > 0
    assert rows["overload"]["recovered_pages_per_second"] > 0
    assert rows["stampede"]["killed"] == 2 and rows["stampede"]["returned"] == 6
    assert 0 < rows["stampede"]["all_returned_seconds"] < 60
    assert set(load.tables(list(rows.values()))) == {"load", "overload", "stampede"}


def test_what_is_lost_changed_or_surplus_is_found(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "phone.db")
    with closing(sqlite3.connect(tmp_path / "worker-0.db")) as cloud, cloud:
        cloud.execute("CREATE TABLE sessions (session, placed)")
        cloud.execute("CREATE TABLE answers (session, number, data)")
    answers = [Answer(item, 0, item, -1, bytes(6)) for item in range(4)]
    store.begin(PhoneSession(1, 0, 0, 0))
    for answer in answers:
        store.append(1, answer)
    store.acknowledge(1, 3)

    def tell(held: list[Answer], ended: bool = True) -> None:
        import msgspec

        with closing(sqlite3.connect(tmp_path / "worker-0.db")) as cloud, cloud:
            cloud.execute("DELETE FROM sessions")
            cloud.execute("DELETE FROM answers")
            cloud.execute("INSERT INTO sessions VALUES (1, ?)", (b"" if ended else None,))
            rows = [(1, number, msgspec.msgpack.encode(answer)) for number, answer in enumerate(held)]
            cloud.executemany("INSERT INTO answers VALUES (?, ?, ?)", rows)

    tell(answers)
    assert compare([store], tmp_path).exactly_once
    tell(answers, ended=False)
    found = compare([store], tmp_path)
    assert found.safe and not found.exactly_once and found.open == 1
    tell(answers[:3])
    found = compare([store], tmp_path)
    assert (found.lost, found.missing, found.safe, found.exactly_once) == (0, 1, True, False)
    tell(answers[:2])
    found = compare([store], tmp_path)
    assert (found.lost, found.missing, found.safe) == (1, 2, False)
    tell([*answers, answers[3]])
    found = compare([store], tmp_path)
    assert found.surplus == 1 and not found.safe
    tell([answers[1], *answers[1:]])
    found = compare([store], tmp_path)
    assert found.different == 1 and not found.safe
    assert not compare([], tmp_path).exactly_once  # nothing compared is nothing proved
    store.close()
    with pytest.raises(InputError, match="cannot be trusted"):
        compare([store], tmp_path)
    with pytest.raises(InputError, match="no worker"):
        compare([store], tmp_path / "elsewhere")


def test_people_are_recorded_card_by_card() -> None:
    scenario = Scenario.load(SCENARIO)
    scripts = record_people(scenario, "synthetic", 20)
    assert scripts == record_people(scenario, "synthetic", 20) != record_people(scenario, "synthetic", 20, 1)
    told = [card for script in scripts for card in script]
    assert all(len(script) <= scenario.config.max_slots for script in scripts)
    assert 0 < sum(bool(card.page_view) for card in told) < len(told)
    assert all(card.urgent for card in told if card.page_view)
    assert all(card.seconds > 0 for card in told)
    longest = max(sum(card.seconds for card in script) for script in scripts)
    assert 0 < seconds_of_page(scripts, scenario.config.page_size) <= longest


def test_a_quantile_is_that_of_what_was_counted_since() -> None:
    name = "edgerec_page_seconds"

    def buckets(*counts: float) -> dict[str, float]:
        edges = ("0.1", "0.2", "+Inf")
        return {f'{name}_bucket{{le="{edge}"}}': c for edge, c in zip(edges, counts, strict=True)}

    assert quantile(buckets(5, 5, 5), buckets(15, 15, 15), name, 0.5) == pytest.approx(0.05)
    assert quantile(buckets(5, 5, 5), buckets(5, 15, 15), name, 0.5) == pytest.approx(0.15)
    assert quantile(buckets(0, 0, 0), buckets(0, 0, 4), name, 0.5) == 0.2
    assert math.isnan(quantile(buckets(5, 5, 5), buckets(5, 5, 5), name, 0.5))
    assert math.isnan(quantile({}, {}, name, 0.5))


def test_more_files_than_the_system_allows_are_refused() -> None:
    with pytest.raises(InputError, match="open files are needed"):
        served.raise_open_files(2**62)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("'nobody' is not one of 'learned', 'synthetic'", ("--users", "nobody")),
        ("'never' is not one of 'page', 'periodic', 'incremental'", ("--sync", "never")),
        ("--url needs --secret", ("--url", "ws://127.0.0.1:1/v1/feed")),
        ("unknown stage 'sleep'", ("--stage", "sleep")),
        ("they need --url", ("--secret", "secret")),
        ("does not exist", ("--url", "ws://127.0.0.1:1/v1/feed", "--secret", "no-such-secret")),
        ("allowed: ws://HOST", ("--url", "http://127.0.0.1:1", "--secret", "SECRET")),
        ("no-such-scenario", ("--scenario", "no-such-scenario", "--seconds", 1)),
        ("unknown policy", ("--policy", "no-such-policy", "--url", "ws://127.0.0.1:1", "--secret", "SECRET")),
    ],
)
def test_bad_options_end_in_one_line(
    message: str, options: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "SECRET").write_text("a secret of tests, long enough")
    monkeypatch.chdir(tmp_path)
    fails_with(message, "bench", "load", "--results", tmp_path / "load.json", *options)
