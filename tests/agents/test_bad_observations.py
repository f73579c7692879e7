"""Observations that no environment gives: policies say what is wrong with them, or play on as documented."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_rerankers import RERANKERS, build

from edgerec_gym.agents.baselines import DeviceGreedy, Greedy
from edgerec_gym.agents.list_policy import EmittedList, ScoredList, SlateBySlate, SlotBySlot
from edgerec_gym.agents.ppo.trained_policy import TrainedPolicy
from edgerec_gym.agents.rerank.reranker import ABSENT, RerankerConfig, RerankPolicy
from edgerec_gym.errors import InputError
from edgerec_gym.policy import best_legal, check_finite, check_observation
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario

KEYS = ("user", "pool", "exposures", "page_views", "screen", "context")


def observations(scenario: str = "lite", env_id: str = "EdgeFeedRerank-v0") -> dict[str, np.ndarray]:
    env = make_feeds(env_id, 3, scenario=scenario, users="synthetic")
    observation, _ = env.reset(seed=0)
    for _ in range(4):
        observation, *_ = env.step(observation["action_mask"].argmax(1))
    return {key: values.copy() for key, values in observation.items()}


def policy(agent: str = "crban") -> RerankPolicy:
    return RerankPolicy(agent, build(agent, Scenario.load("lite").config, RerankerConfig(hidden=8)))


@pytest.mark.parametrize("agent", RERANKERS)
@pytest.mark.parametrize("key", KEYS)
def test_re_rankers_name_the_key_that_is_not_finite(agent: str, key: str) -> None:
    observation = observations()
    observation[key][1, ..., 0] = np.nan
    with pytest.raises(InputError, match=rf"observation '{key}' is nan at \[1, .*0\]; it must be finite"):
        policy(agent).act(observation)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_lists_are_not_planned_from_what_is_not_finite(value: float) -> None:
    observation = observations()
    observation["pool"][2, 4, 1] = value
    players: list[Any] = [SlateBySlate(ScoredList(Greedy(), 5)), SlotBySlot(ScoredList(DeviceGreedy(), 5))]
    players += [
        SlateBySlate(EmittedList(policy("pointer"), 5)),
        SlotBySlot(EmittedList(policy("pointer"), 5)),
    ]
    for player in players:
        player.reset(np.ones(3, np.bool_))
        with pytest.raises(InputError, match=rf"observation 'pool' is {value} at \[2, 4, 1\]"):
            player.act(observation)
    with pytest.raises(InputError, match="observation 'pool' is"):
        policy("pointer").lists(observation, 5)
    with pytest.raises(InputError, match="observation 'pool' is"):
        TrainedPolicy("ppo", None, 1).act(observation)  # type: ignore[arg-type]


def test_sums_that_overflow_are_finite_values() -> None:
    check_finite("pool", np.full((2, 3), 3e38, np.float32))
    check_observation({"pool": np.full((2, 3), -3e38, np.float32), "action_mask": np.ones((2, 3), np.int8)})


def test_re_rankers_name_the_key_of_another_size() -> None:
    with pytest.raises(
        InputError, match=r"'pool' has the shape \(100, 20\) per session; 'crban' reads \(20, 20\)"
    ):
        policy().act(observations("default"))
    observation = observations()
    del observation["context"]
    with pytest.raises(InputError, match="'context' has the shape None per session"):
        policy().act(observation)


@pytest.mark.parametrize("agent", RERANKERS)
def test_when_no_row_may_be_placed(agent: str) -> None:
    observation = observations()
    observation["action_mask"][1] = 0
    with pytest.raises(InputError, match="action_mask of session 1 allows no pool row"):
        policy(agent).act(observation)


@pytest.mark.parametrize("agent", RERANKERS)
def test_an_empty_pool_has_scores_and_lists_of_nothing(agent: str) -> None:
    """And of the rows that are left, in a pool with fewer than K."""
    observation = observations()
    observation["pool"][0] = 0
    observation["pool"][1, 2:] = 0
    there = (observation["pool"] != 0).any(2)
    player = policy(agent)
    if hasattr(player.reranker, "emit"):
        lists = player.lists(observation, 6)
        for found, present in zip(lists, there, strict=True):
            n = min(6, int(present.sum()))
            assert (found[n:] == -1).all() and len(set(found[:n])) == n and present[found[:n]].all()
    else:
        scores = player.scores(observation)
        assert np.isfinite(scores).all() and ((scores > ABSENT) == there).all()
    assert best_legal(np.zeros((1, 3)), np.array([[0, 1, 1, 1]])).tolist() == [1]
