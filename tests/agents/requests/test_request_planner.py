"""Prices, budgets, cool-downs: what the planner promises, and that it plays legally on both tracks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec_gym.agents.requests.planner import (
    OneExtra,
    PriceController,
    RequestPlanner,
    TrueEffectPlanner,
    price_of,
)
from edgerec_gym.agents.requests.scores import ChanceScore, IntentScore
from edgerec_gym.bench.request.fleet import serve
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import play
from edgerec_gym.policy import Policy
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario

QUANTILES = np.linspace(-1, 1, 101)


def age_score(observation: dict[str, np.ndarray]) -> np.ndarray:
    """A score that any test can compute: the age of the page."""
    return observation["context"][:, 3]


@given(rate=st.floats(0.001, 0.999), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_the_price_spends_the_rate(rate: float, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=4000)
    price = price_of(np.quantile(scores, np.linspace(0, 1, 401)), rate)
    assert (scores > price).mean() == pytest.approx(rate, abs=0.01)


def test_the_ends_of_the_budget() -> None:
    assert price_of(QUANTILES, 0.0) == np.inf
    assert price_of(QUANTILES, 1.0) == -np.inf
    for rate in (-0.1, 1.1, np.nan):
        with pytest.raises(InputError, match="must be a share of the moments"):
            price_of(QUANTILES, rate)
    for bad in ([0.0], [1.0, 0.0], [0.0, np.nan]):
        with pytest.raises(InputError, match="finite numbers that do not fall"):
            price_of(np.array(bad), 0.5)


@given(
    budget=st.integers(20, 200),
    shift=st.floats(-2, 2),
    grows=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 100),
)
@settings(max_examples=25, deadline=None)
def test_the_budget_is_met_whatever_scores_and_traffic_do(
    budget: int, shift: float, grows: int, seed: int
) -> None:
    """Scores shift away from what was replayed, traffic grows in the middle: within 2 %."""
    rng = np.random.default_rng(seed)
    controller = PriceController(float(budget), QUANTILES)
    spent = []
    for tick in range(200):
        moments = 2000 * (grows if tick >= 100 else 1)
        granted = controller.grant(shift + rng.normal(size=moments) * (1 + (tick >= 100)))
        assert granted.sum() <= np.ceil(1.5 * budget)
        spent.append(granted.sum())
    assert sum(spent) == controller.spent
    assert controller.spent == pytest.approx(controller.allowed, rel=0.02)


def test_the_best_are_granted_first() -> None:
    controller = PriceController(4.0, np.full(5, -10.0), most=1.0)
    scores = np.array([3.0, 9.0, 1.0, 7.0, 5.0, 8.0])
    assert np.array_equal(controller.grant(scores), scores >= 5.0)


def test_budget_0_never_requests() -> None:
    controller = PriceController(0.0, QUANTILES)
    assert not any(controller.grant(np.full(50, 1e9)).any() for _ in range(5))
    sessions = play(
        RequestPlanner("never", age_score, np.inf),
        env_id="EdgeFeedRequest-v0",
        scenario="lite",
        users="synthetic",
        sessions=20,
        seed=0,
    )
    assert sessions["requests"].sum() == 0


def test_a_budget_above_the_maximum_spends_all_there_is() -> None:
    controller = PriceController(1e6, QUANTILES)
    assert all(controller.grant(np.random.default_rng(0).normal(size=50)).all() for _ in range(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1.0}, "budget = -1.0"),
        ({"budget": np.nan}, "budget = nan"),
        ({"budget": 1.0, "recover": 0}, "recover = 0"),
        ({"budget": 1.0, "most": 0.5}, "most = 0.5"),
        ({"budget": 1.0, "quantiles": np.array([np.nan, 1.0])}, "finite numbers"),
    ],
)
def test_bad_budgets(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PriceController(**({"quantiles": QUANTILES} | options))


@given(cool_down=st.integers(0, 12), per_session=st.integers(0, 4), price=st.floats(0, 0.9))
@settings(max_examples=15, deadline=None)
def test_cool_down_and_session_budget_hold(cool_down: int, per_session: int, price: float) -> None:
    env = make_feeds("EdgeFeedRequest-v0", 8, scenario="lite", users="synthetic", split="eval")
    planner = RequestPlanner("p", age_score, price, cool_down=cool_down, per_session=per_session)
    observation, _ = env.reset(seed=4)
    planner.reset(np.ones(8, np.bool_))
    asked = []
    for _ in range(25):
        legal = observation["action_mask"][:, 1] > 0
        actions = planner.act(observation)
        assert (legal | (actions == 0)).all()
        free = observation["context"][:, 3] > price
        asked.append(actions.astype(bool))
        assert not (actions.astype(bool) & ~free).any()
        observation, *_ = env.step(actions)
    asked = np.array(asked)
    for row in asked.T:
        at = np.flatnonzero(row)
        assert len(at) <= 3 * per_session  # at most three sessions begin in 25 slots
        assert (np.diff(at) > max(cool_down, 2)).all() or len(at) > per_session


@pytest.mark.parametrize("env_id", ["EdgeFeedRequest-v0", "EdgeFeed-v0"])
def test_rules_play_both_tracks(lite: Scenario, env_id: str) -> None:
    rules: list[Policy] = [
        OneExtra(),
        RequestPlanner("intent", IntentScore(lite.config), 0.3),
        RequestPlanner("chance", ChanceScore(0), 0.8),
        TrueEffectPlanner(0.3, continuations=2),
    ]
    for rule in rules:
        found = play(rule, env_id=env_id, scenario=lite, users="synthetic", sessions=40, seed=0)
        assert found["requests"].sum() > 0 and found["violations"].sum() == 0
        assert sum(found[name].sum() for name in found if name.startswith("cards_")) == 0


def test_one_extra_request_in_each_automatic_page(lite: Scenario) -> None:
    env = make_feeds("EdgeFeedRequest-v0", 16, scenario=lite, users="synthetic")
    observation, _ = env.reset(seed=1)
    policy = OneExtra()
    for _ in range(40):
        actions = policy.act(observation)
        asked = actions == 1
        assert (observation["context"][asked, 7] == 0).all()
        np.testing.assert_allclose(observation["context"][asked, 3], 0.5)
        observation, *_ = env.step(actions)


def test_the_rate_by_chance_is_the_rate(lite: Scenario) -> None:
    planner = RequestPlanner("chance", ChanceScore(0), 0.9)
    found = play(planner, env_id="EdgeFeedRequest-v0", scenario=lite, users="synthetic", sessions=300, seed=0)
    slots = found["exposures"].sum()
    assert found["requests"].sum() / slots == pytest.approx(
        0.1 * 0.85, rel=0.15
    )  # not while one is in flight


def test_a_score_that_is_not_a_number_is_refused() -> None:
    planner = RequestPlanner("broken", lambda o: np.full(len(o["context"]), np.nan), 0.0)
    with pytest.raises(InputError, match="policy 'broken': the score of row 0 is not a number"):
        play(planner, env_id="EdgeFeedRequest-v0", scenario="lite", users="synthetic", sessions=4, seed=0)
    with pytest.raises(InputError, match="price must be a number"):
        RequestPlanner("p", age_score, float("nan"))
    with pytest.raises(InputError, match="must not be negative"):
        RequestPlanner("p", age_score, 0.0, cool_down=-1)
    with pytest.raises(InputError, match="bind the oracle"):
        observation, _ = make_feeds("EdgeFeedRequest-v0", 2, scenario="lite").reset(seed=0)
        oracle = TrueEffectPlanner(0.1)
        oracle.reset(np.ones(2, np.bool_))
        oracle.act(observation)


def test_one_budget_for_all_sessions_also_when_traffic_doubles(lite: Scenario) -> None:
    controller = PriceController(12.0, np.linspace(0, 1, 11))
    rng = np.random.default_rng(0)

    def score(observation: dict[str, np.ndarray]) -> np.ndarray:
        return observation["context"][:, 3] + 0.1 * rng.random(len(observation["context"]))

    planner = RequestPlanner("fleet", score, controller)
    traffic = serve(planner, lite, concurrent=300, ticks=80, doubles=True, seed=1)
    assert traffic.live[0] == 300 and traffic.live[-1] == 600
    assert traffic.requests.sum() == controller.spent
    assert traffic.requests.sum() == pytest.approx(12.0 * 80, rel=0.02)
    with pytest.raises(InputError, match="concurrent = 0"):
        serve(planner, lite, concurrent=0, ticks=1, doubles=False)
