"""What a phone's model reads is what the environment shows, bit for bit, whatever is decided where."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from msgspec import structs

from edgerec_gym.answers import RESPONSE_SIZE
from edgerec_gym.device.features import NOTHING, SessionFeatures
from edgerec_gym.errors import InputError
from edgerec_gym.protocol.coding import CODINGS
from edgerec_gym.protocol.messages import Answer, Page, PageRequest, encode, from_cloud
from edgerec_gym.scenario import Scenario
from edgerec_gym.service.pages import PageBuilder
from edgerec_gym.users.people import People

IDS = {
    "joint": "EdgeFeed-v0",
    "rerank": "EdgeFeedRerank-v0",
    "mix": "EdgeFeedMix-v0",
    "request": "EdgeFeedRequest-v0",
}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return Scenario.load("lite-v2")


@pytest.fixture(scope="module")
def builder(scenario: Scenario) -> PageBuilder:
    return PageBuilder(scenario)


def begun(
    scenario: Scenario, builder: PageBuilder, seed: int = 0, **request: Any
) -> tuple[SessionFeatures, Page]:
    """A session with its first page."""
    person = People(scenario, "synthetic").begin(0, seed)
    features = SessionFeatures(scenario.config)
    features.begin(person.session, person.features, person.hour)
    asked = structs.replace(PageRequest(0, 0, 0, [], "start"), **request)
    page = builder.build(person.session, person.user, asked, [])
    features.turn(page)
    return features, page


def assert_same(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert mine.keys() == theirs.keys()
    for key, values in theirs.items():
        assert mine[key][0].tobytes() == np.ascontiguousarray(values).tobytes(), key


@pytest.mark.parametrize("track", IDS)
@pytest.mark.parametrize("users", ["synthetic", "learned"])
def test_a_session_on_the_phone_is_that_of_the_environment(
    scenario: Scenario, track: str, users: str
) -> None:
    env: Any = gym.make(IDS[track], scenario="lite-v2", users=users, split="eval").unwrapped
    builder, people = PageBuilder(scenario, users), People(scenario, users)
    features = SessionFeatures(scenario.config, track)
    rng = np.random.default_rng(0)
    for seed in range(6):
        observation, _ = env.reset(seed=seed)
        person = people.begin(0, seed)
        features.begin(person.session, person.features, person.hour)
        answers: list[Answer] = []
        first = builder.build(person.session, person.user, PageRequest(0, 0, 0, [], "start"), answers)
        features.turn(first)
        waiting = None  # answers known when a page was asked for
        assert_same(features.observation(), observation)
        while not features.ended:
            action = int(rng.choice(np.flatnonzero(observation["action_mask"])))
            observation, reward, terminated, truncated, _ = env.step(action)
            known = features.answers
            if features.place(action) != NOTHING:
                waiting = known
            active = features.focus.active[0]
            told = features.answer(people.answer(0, features.focus) if active else None)
            answers += [told] if told else []
            if waiting is not None and not features.page_due:
                request = PageRequest(
                    features.page + 1, features.slot, waiting, features.items_since(waiting), "automatic"
                )
                page = builder.build(person.session, person.user, request, answers)
                received = from_cloud(encode(page))
                assert isinstance(received, Page)
                features.turn(received)
                waiting = None
            features.show()
            assert_same(features.observation(), observation)
            assert features.arrays.reward[0] == reward
            assert features.ended == (terminated or truncated)


def test_a_page_is_a_function_of_its_request(scenario: Scenario, builder: PageBuilder) -> None:
    person = People(scenario, "synthetic").begin(0, 3)
    features, _ = begun(scenario, builder, 3)
    asked = PageRequest(1, 12, 0, [4, 5], "automatic")
    page = builder.build(person.session, person.user, asked, [])
    begun(scenario, builder, 4)  # another session in between
    late = [Answer(1, 0, 0, 0, bytes(6))]  # not named by the request
    assert builder.build(person.session, person.user, asked, late) == page
    assert not set(np.frombuffer(page.items, np.int32)) & {4, 5}
    del features


@pytest.mark.parametrize("coding", CODINGS)
def test_smaller_pages_offer_the_same_items(scenario: Scenario, builder: PageBuilder, coding: str) -> None:
    exact, page = begun(scenario, builder)
    features, small = begun(scenario, builder, coding=coding)
    assert small.items == page.items and small.cards == page.cards
    assert len(small.pool) * {"float32": 1, "float16": 2, "uint8": 4}[coding] == len(page.pool)
    gap = np.abs(features.observation()["pool"] - exact.observation()["pool"]).max()
    assert gap <= {"float32": 0.0, "float16": 5e-4, "uint8": 0.5 / 127}[coding]
    assert (features.observation()["action_mask"] == exact.observation()["action_mask"]).all()


def test_what_was_shown_since_a_page_was_built_is_dropped(scenario: Scenario, builder: PageBuilder) -> None:
    features, first = begun(scenario, builder)
    features.place(0)
    features.answer(None)
    shown = int(np.frombuffer(first.items, np.int32)[0])
    stale = structs.replace(first, page=1)  # built before the card was placed
    features.turn(stale)
    left = features.arrays.pool_items[0]
    assert shown not in left and features.candidates == scenario.config.pool_size - 1
    assert not features.observation()["pool"][0, 0].any()
    assert features.observation()["action_mask"][0, 0] == 0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"page": 2}, "page 2 has come; expected is 1"),
        ({"items": b"1234"}, "4 bytes of pool"),
        ({"items": np.full(40, -1, np.int32).tobytes()}, "holds no candidate"),
        ({"items": np.zeros(40, np.int32).tobytes()}, "offers an item twice in its pool"),
        ({"pool": b""}, "features of 0 bytes"),
        ({"pool": np.full((40, 25), np.nan, np.float32).tobytes()}, "must lie in -1..1"),
        ({"pool": np.full((40, 25), 2, np.float32).tobytes()}, "must lie in -1..1"),
        ({"card_features": b"1"}, "features of 1 bytes"),
        ({"summary": np.full(5, np.inf, np.float32).tobytes()}, "a summary that is not finite"),
    ],
)
def test_a_page_that_does_not_fit_changes_nothing(
    scenario: Scenario, builder: PageBuilder, changes: dict[str, Any], error: str
) -> None:
    features, page = begun(scenario, builder)
    before = features.arrays.observation.copy()
    with pytest.raises(InputError, match=error):
        features.turn(structs.replace(page, **({"page": 1} | changes)))
    assert (features.arrays.observation == before).all() and features.page == 0


def test_actions_are_rounded_before_anything_reads_them(scenario: Scenario, builder: PageBuilder) -> None:
    features, _ = begun(scenario, builder)
    response = np.zeros(RESPONSE_SIZE, np.float32)
    response[:3] = 0.123, 0.5, 0.999
    told = None
    while told is None:
        features.place(int(features.observation()["action_mask"][0].argmax()))
        told = features.answer(response if features.focus.active[0] else None)
    features.show()
    row = features.observation()["exposures"][0, 0]
    width = scenario.config.n_item_features + scenario.config.n_types
    assert (row[width : width + 3] == np.frombuffer(told.exposure, np.uint8)[:3] / np.float32(84)).all()
    assert told.page_view == b""


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (None, "its answer is missing"),
        (np.full(RESPONSE_SIZE, np.nan, np.float32), "21 numbers in 0..1"),
        (np.zeros(3, np.float32), "21 numbers in 0..1"),
    ],
)
def test_a_wrong_answer_is_refused(
    scenario: Scenario, builder: PageBuilder, response: np.ndarray | None, error: str
) -> None:
    features, _ = begun(scenario, builder)
    with pytest.raises(InputError, match=error):
        while True:
            features.place(int(features.observation()["action_mask"][0].argmax()))
            features.answer(response if features.focus.active[0] else None)


def test_nothing_can_be_placed_from_an_empty_pool(scenario: Scenario) -> None:
    features = SessionFeatures(scenario.config)
    features.begin(5, np.zeros(scenario.config.n_user_features, np.float32), 3)
    with pytest.raises(InputError, match="no candidate is left"):
        features.place(0)
    with pytest.raises(InputError, match="the user has 2 features"):
        features.begin(5, np.zeros(2, np.float32), 3)
