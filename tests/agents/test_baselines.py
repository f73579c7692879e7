from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgerec_gym.agents.baselines import BASELINES, DeviceGreedy, baselines_of, make_policy
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Policy
from edgerec_gym.registration import IDS, SLATE, make_feeds, track_of
from edgerec_gym.scenario import Scenario
from edgerec_gym.vector_env import EdgeFeedVectorEnv

PAIRS = [(env_id, name) for env_id in IDS for name in baselines_of(track_of(env_id))]
SLOT_PAIRS = [(env_id, name) for env_id, name in PAIRS if track_of(env_id) != SLATE]
SLOTS = 25


def make_env(scenario: Scenario, env_id: str, num_envs: int = 16, **config: Any) -> EdgeFeedVectorEnv:
    return make_feeds(env_id, num_envs, scenario=scenario, users="synthetic", **config)


def play(env: EdgeFeedVectorEnv, policy: Policy, slots: int = SLOTS) -> tuple[np.ndarray, list[dict]]:
    """Actions (slots, B) and observations; rows that end are forgotten by the policy and restart."""
    observation, _ = env.reset(seed=3)
    policy.reset(np.ones(env.num_envs, np.bool_))
    actions, observations = [], []
    for _ in range(slots):
        observations.append(observation)
        actions.append(policy.act(observation))
        observation, _, terminated, truncated, _ = env.step(actions[-1])
        policy.reset(terminated | truncated)
    return np.array(actions), observations


@pytest.mark.parametrize(("env_id", "name"), SLOT_PAIRS)
def test_plays_legal_actions(lite: Scenario, env_id: str, name: str) -> None:
    env, policy = make_env(lite, env_id), make_policy(name, env_id, seed=1)
    assert isinstance(policy, Policy)
    assert policy.name == name
    actions, observations = play(env, policy)
    assert actions.dtype == np.int64
    for action, observation in zip(actions, observations, strict=True):
        assert observation["action_mask"][np.arange(len(action)), action].all()


@pytest.mark.parametrize(("env_id", "name"), PAIRS)
def test_same_seed_same_actions(lite: Scenario, env_id: str, name: str) -> None:
    first, _ = play(make_env(lite, env_id), make_policy(name, env_id, seed=1))
    again, _ = play(make_env(lite, env_id), make_policy(name, env_id, seed=1))
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a) if isinstance(a, dict) else np.array_equal(a, b)


def test_random_is_uniform_over_legal_actions() -> None:
    mask = np.tile(np.array([0, 1, 0, 1, 1], np.int8), (30_000, 1))
    actions = make_policy("random", "joint", seed=0).act({"action_mask": mask})
    share = np.bincount(actions, minlength=5) / len(actions)
    assert share[[0, 2]].tolist() == [0, 0]
    assert np.allclose(share[[1, 3, 4]], 1 / 3, atol=0.015)
    other = make_policy("random", "joint", seed=1).act({"action_mask": mask})
    assert not np.array_equal(actions, other)


def test_greedy_places_the_highest_base_ctr(lite: Scenario) -> None:
    actions, observations = play(make_env(lite, "EdgeFeed-v0"), make_policy("greedy", "EdgeFeed-v0"))
    for action, observation in zip(actions, observations, strict=True):
        ctr = observation["pool"][:, :, lite.config.embedding_size + 1]
        assert np.array_equal(ctr[np.arange(len(action)), action], ctr.max(axis=1))


def test_fixed_slot_takes_every_kth_slot_and_turns(lite: Scenario) -> None:
    lite = replace(lite, synthetic=lite.synthetic.replace(leave_bias=-20))  # nobody leaves
    env = make_env(lite, "EdgeFeedMix-v0", first_slots=(0, 0, 0, 0), share_caps=(1.0,) * 4, gaps=(0,) * 4)
    policy = make_policy("fixed-slot", "mix", every=4)
    actions, observations = play(env, policy, slots=12)
    assert ((actions > 0) == (np.arange(12) % 4 == 3)[:, None]).all()
    features = lite.config.n_item_features
    types = [observations[t]["cards"][0, actions[t, 0] - 1, features:].argmax() for t in (3, 7, 11)]
    assert types == [1, 2, 3]


def test_fixed_slot_skips_a_type_that_is_not_legal(lite: Scenario) -> None:
    env = make_env(lite, "EdgeFeed-v0", first_slots=(50, 0, 0, 0), share_caps=(1.0,) * 4, gaps=(0,) * 4)
    actions, observations = play(env, make_policy("fixed-slot", "joint", every=2), slots=2)
    pool, features = lite.config.pool_size, lite.config.n_item_features
    placed = actions[1] - pool
    assert (placed >= 0).all()
    assert (observations[1]["cards"][np.arange(16), placed, features:].argmax(axis=1) == 2).all()


def test_fixed_interval_requests_at_the_age_of_the_page(lite: Scenario) -> None:
    env = make_env(lite, "EdgeFeedRequest-v0")
    actions, observations = play(env, make_policy("fixed-interval", "request", every=3))
    asked = 0
    for action, observation in zip(actions, observations, strict=True):
        age = np.rint(observation["context"][:, 3] * lite.config.page_size)
        assert np.array_equal(action == 1, (age >= 3) & (observation["action_mask"][:, 1] == 1))
        asked += int(action.sum())
    assert asked > 16
    default, observations = play(env, make_policy("fixed-interval", "request"))
    age = np.array([o["context"][:, 3] for o in observations])
    assert age[default == 1].min() == 0.5


def interesting(lite: Scenario, dwell: float) -> dict[str, np.ndarray]:
    """One row: item A was exposed with this dwell; the pool holds B (opposite), then A's twin."""
    config = lite.config
    d, features = config.embedding_size, config.n_item_features
    env = make_env(lite, "EdgeFeedRerank-v0", num_envs=1)
    observation, _ = env.reset(seed=0)
    observation = {key: np.zeros_like(value) for key, value in observation.items()}
    embedding = np.zeros(d, np.float32)
    embedding[0] = 1
    observation["exposures"][0, 0, :d] = embedding
    observation["exposures"][0, 0, features] = 1  # goods
    observation["exposures"][0, 0, features + config.n_types] = dwell
    observation["pool"][0, 0, :d], observation["pool"][0, 1, :d] = -embedding, embedding
    observation["pool"][0, :2, d + 1] = 0.05
    observation["context"][0, [0, 1]] = 3 / config.max_slots, 1 / config.max_slots  # slot, exposures
    observation["action_mask"][0, :2] = 1
    return observation


@pytest.mark.parametrize(("dwell", "expected"), [(1.0, 1), (0.0, 0)])
def test_device_greedy_follows_dwell(lite: Scenario, dwell: float, expected: int) -> None:
    policy = DeviceGreedy()
    assert policy.act(interesting(lite, dwell)).tolist() == [expected]


def test_unknown_names_are_one_line_errors() -> None:
    with pytest.raises(InputError, match="unknown policy 'gready'.*greedy"):
        make_policy("gready", "joint")
    with pytest.raises(InputError, match="unknown id 'EdgeFeed-v9'"):
        make_policy("keep", "EdgeFeed-v9")
    with pytest.raises(InputError, match="'fixed-slot' plays the tracks joint, mix, not 'rerank'"):
        make_policy("fixed-slot", "EdgeFeedRerank-v0")
    with pytest.raises(InputError, match="no option 'k'.*every"):
        make_policy("fixed-slot", "mix", k=3)
    with pytest.raises(InputError, match="every = 0"):
        make_policy("fixed-slot", "mix", every=0)
    with pytest.raises(InputError, match="cannot import 'no_such_module'"):
        make_policy("no_such_module:Policy", "joint")
    with pytest.raises(InputError, match="no 'Missing'"):
        make_policy("edgerec_gym.agents.baselines:Missing", "joint")
    with pytest.raises(InputError, match="needs reset"):
        make_policy("edgerec_gym.scenario:Scenario", "joint")


def test_policy_of_ones_own() -> None:
    policy = make_policy("edgerec_gym.agents.baselines:FixedInterval", "request", every=7)
    assert policy.every == 7  # type: ignore[attr-defined]


def test_every_track_has_keep_and_random() -> None:
    for track in set(IDS.values()):
        assert {"keep", "random"} <= set(baselines_of(track)) <= set(BASELINES)
