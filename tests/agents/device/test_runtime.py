"""The phone plays on, whatever happens to the network, the cloud, the model and itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerec_gym.agents.baselines import Keep
from edgerec_gym.agents.device.policy import DevicePolicy
from edgerec_gym.agents.device.runtime import Pace, Session, SessionReport
from edgerec_gym.agents.export.export import export_network
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.answers import Focus
from edgerec_gym.bench.edge.parity import Feed
from edgerec_gym.device.description import feature_digest
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link_settings import LinkSettings, Phone
from edgerec_gym.device.registry import ModelRegistry
from edgerec_gym.device.session import load
from edgerec_gym.errors import InputError
from edgerec_gym.faults.lag_proxy import LagProxy
from edgerec_gym.policy import Policy
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.people import People
from tests.small_devices import crban

pytest.importorskip("uvicorn")
from edgerec_gym.service.local import LocalService, local_service  # noqa: E402

SCENARIO = "lite"
NOBODY = Phone("ws://127.0.0.1:9/v1/feed", "phone-1", "no token")
QUICK = LinkSettings(first_wait=0.01, longest_wait=0.05, open_seconds=2.0)
FAST = Pace(speed=float("inf"), first_page_seconds=20.0, patience_seconds=20.0, deliver_seconds=20.0)
OFFLINE = Pace(speed=float("inf"), first_page_seconds=0.1, patience_seconds=0.1, deliver_seconds=0.0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    with local_service(SCENARIO, tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EventStore]:
    kept = EventStore(tmp_path / "phone.db")
    yield kept
    kept.close()


def session(store: EventStore, phone: Phone, policy: Policy | None = None, **more: Any) -> Session:
    config = Scenario.load(SCENARIO).config
    more = {"pace": FAST, "link_settings": QUICK} | more
    return Session(config, "joint", policy or Keep(), phone, store, np.random.default_rng(0), **more)


async def play(one: Session, seed: int, people: People | None = None) -> SessionReport:
    people = people or People(Scenario.load(SCENARIO), "synthetic")
    person = people.begin(0, seed)

    def ask(focus: Focus) -> np.ndarray:
        return people.answer(0, focus)

    return await one.play(person, ask, remind=ask)


def phone_of(service: LocalService, seed: int) -> Phone:
    return service.phone(People(Scenario.load(SCENARIO), "synthetic").begin(0, seed).user)


def test_a_session_is_played_and_delivered(service: LocalService, store: EventStore) -> None:
    one = session(store, phone_of(service, 1))
    report = asyncio.run(play(one, 1))
    assert report.delivered and not report.starved and not report.refused
    assert report.slots == len(store.decisions(store.sessions()[0].session)) > 3
    assert report.answers == store.sessions()[0].answers == store.sessions()[0].acknowledged
    assert report.pages >= 1 and len(report.decision_ms) == report.slots


def test_without_a_network_the_last_page_is_played_and_delivered_later(
    service: LocalService, store: EventStore
) -> None:
    """The same user's next session begins with the page that the last one ended with."""
    asyncio.run(play(session(store, phone_of(service, 11)), 11))
    people = People(Scenario.load(SCENARIO), "synthetic")
    user = people.begin(0, 11).user
    seed = next(seed for seed in range(100, 4000) if people.begin(0, seed).user == user)
    report = asyncio.run(play(session(store, NOBODY, pace=OFFLINE), seed, people))
    assert report.slots > 3 and report.offline_slots == report.slots and not report.delivered
    again = next(k for k in range(seed + 1, 8000) if people.begin(0, k).user == user)
    asyncio.run(play(session(store, service.phone(user)), again, people))
    assert all(kept.ended for kept in store.sessions())


def test_a_first_page_that_comes_late_breaks_nothing(service: LocalService, store: EventStore) -> None:
    """A session that began with a kept page goes on with it, over one connection."""
    asyncio.run(play(session(store, phone_of(service, 13)), 13))
    people = People(Scenario.load(SCENARIO), "synthetic")
    user = people.begin(0, 13).user
    seed = next(seed for seed in range(200, 4000) if people.begin(0, seed).user == user)

    async def offline_at_first() -> Session:
        async with LagProxy(int(service.url.split(":")[2].split("/")[0])) as proxy:
            proxy.refuse(1e9)

            async def until_delivered(seconds: float) -> None:
                if one.features.slot == 3:
                    proxy.refuse(0)
                    async with asyncio.timeout(20):
                        assert one.link is not None
                        while one.link.acknowledged < one.link.answers or one.store.page(key) is None:
                            await asyncio.sleep(0.01)

            key = people.begin(0, seed).session
            phone = Phone(proxy.url(), "phone-1", service.phone(user).token)
            pace = Pace(first_page_seconds=0.3, sleep=until_delivered)
            one = session(store, phone, pace=pace)
            await play(one, seed, people)
            return one

    one = asyncio.run(offline_at_first())
    assert one.link is not None
    assert one.report.offline_slots >= 3 and one.report.delivered
    assert one.link.counts.violations == 0 and one.link.counts.welcomes == 1


def test_without_any_page_there_is_nothing_to_show(store: EventStore) -> None:
    report = asyncio.run(play(session(store, NOBODY, pace=OFFLINE), 1))
    assert report.starved and report.slots == 0 and not report.delivered


def test_a_phone_that_may_not_speak_plays_nothing(service: LocalService, store: EventStore) -> None:
    report = asyncio.run(play(session(store, Phone(service.url, "phone-1", "forged"), pace=OFFLINE), 1))
    assert report.refused.startswith("token:")


class Failing(Keep):
    """Fails at every third slot."""

    def __init__(self) -> None:
        self.calls = 0

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        self.calls += 1
        if self.calls % 3 == 0:
            raise InputError("scores are not finite")
        return super().act(observation)


def test_the_feed_goes_on_in_its_own_order_when_a_model_fails(
    service: LocalService, store: EventStore
) -> None:
    report = asyncio.run(play(session(store, phone_of(service, 12), Failing()), 12))
    assert report.delivered and report.slots > 3
    triggers = [decision.trigger for decision in store.decisions(store.sessions()[0].session)]
    assert triggers[2] == "the model failed: scores are not finite"


class Killed(BaseException):
    """The process ends here."""


def kill_after(slots: int) -> Callable[[Session], None]:
    def watch(one: Session) -> None:
        if one.features.slot >= slots:
            raise Killed

    return watch


@pytest.mark.parametrize("virtual", [True, False])
def test_a_killed_phone_goes_on_where_it_was(
    service: LocalService, store: EventStore, tmp_path: Path, virtual: bool
) -> None:
    """Killed every four slots, a session in virtual time is still the same."""
    pace = (
        Pace(virtual=True, first_page_seconds=20.0, patience_seconds=20.0, deliver_seconds=20.0)
        if virtual
        else FAST
    )
    seed = 21 + virtual
    whole = EventStore(tmp_path / "whole.db")
    expected = asyncio.run(play(session(whole, phone_of(service, seed), pace=pace), seed))
    with local_service(SCENARIO, tmp_path / "another") as other:
        phone, report, kills = phone_of(other, seed), None, 0
        for slots in range(4, 200, 4):
            one = session(store, phone, pace=pace, watch=kill_after(slots))
            try:
                report = asyncio.run(play(one, seed))
                break
            except Killed:
                kills += 1
    assert report is not None and report.delivered and kills > 1
    key = store.sessions()[0].session
    if virtual:
        assert report.slots == expected.slots and report.reward == pytest.approx(expected.reward)
        assert store.answers(key) == whole.answers(key)
    whole.close()


def test_a_model_from_the_cloud_takes_over_in_the_middle_of_a_session(
    store: EventStore, tmp_path: Path
) -> None:
    """One that is broken does not, and is not asked for again."""
    scenario = Scenario.load(SCENARIO)
    for name, places in (("old", 6), ("new", 5)):
        export_network(crban(), tmp_path / name, find_agent("crban"), SCENARIO, scenario.config, places)
    with local_service(SCENARIO, tmp_path / "service", models=tmp_path / "new") as service:
        models = ModelRegistry(tmp_path / "models", feature_digest(scenario.config))
        policy = DevicePolicy("crban", load(tmp_path / "old"), Feed("rerank", scenario.config, scenario))
        old = policy.model.digest
        one = Session(
            scenario.config, "rerank", policy, phone_of(service, 2), store, np.random.default_rng(0),
            pace=Pace(speed=200.0), models=models,
        )  # fmt: skip
        asyncio.run(play(one, 2))
        assert one.said == "" and policy.model.digest == models.active != old
        used = [decision.model for decision in store.decisions(store.sessions()[0].session)]
        assert used[0] == old and used[-1] == models.active
        models.reject(models.active, "it is bad")
        policy.swap(load(tmp_path / "old"))
        again = Session(
            scenario.config, "rerank", policy, phone_of(service, 3), store, np.random.default_rng(0),
            pace=Pace(speed=200.0), models=models,
        )  # fmt: skip
        asyncio.run(play(again, 3))
        assert policy.model.digest == old
