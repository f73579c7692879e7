"""Copies of environments and batches: they go on as the original would, alone, also in another process."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from actions import random_action
from gymnasium.utils.env_checker import data_equivalence

import edgerec_gym  # noqa: F401  (registers the ids)
from edgerec_gym.adapters.sb3 import make_vec_env
from edgerec_gym.errors import InputError


def lent(values: Any) -> Any:
    """A copy over read-only memory of somebody else, as Ray's object store lends it."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(values, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])


WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda values: pickle.loads(pickle.dumps(values)), "lent": lent}


@pytest.fixture(params=sorted(WAYS))
def duplicate(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Every way to copy in turn."""
    return WAYS[request.param]


def play(env: Any, observation: Any, steps: int, seed: int) -> list[Any]:
    rng, seen = np.random.default_rng(seed), []
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(random_action(env, observation, rng))
        seen.append((observation, reward, terminated, truncated, info))
        if np.ndim(terminated) == 0 and (terminated or truncated):
            observation, info = env.reset()
            seen.append((observation, info))
    return seen


def test_pickled_environments_of_every_id(env_id):
    """Gymnasium's own test of pickling."""
    env = gym.make(env_id, scenario="lite", users="synthetic")
    twin = pickle.loads(pickle.dumps(env))
    assert data_equivalence(env.reset(seed=3), twin.reset(seed=3))
    action = env.action_space.sample()
    assert data_equivalence(env.step(action), twin.step(action))
    env.close()
    twin.close()


def test_a_copy_goes_on_as_the_original_and_alone(env_id, users):
    duplicate = WAYS["deepcopy" if users == "learned" else "pickle"]
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(env_id, scenario="lite", users=users))
    env.reset(seed=0)
    observation = play(env, env.reset()[0], 7, 0)[-1][0]
    twin, third = duplicate(env), duplicate(env)
    play(third, observation, 5, 1)
    expected = play(twin, observation, 30, 2)
    for (*told, info), (*other, other_info) in zip(play(env, observation, 30, 2), expected, strict=True):
        info.pop("episode", None), other_info.pop("episode", None)  # holds a time
        assert data_equivalence(told, other) and data_equivalence(info, other_info)
    assert not np.shares_memory(env.unwrapped.batch.arrays.slot, twin.unwrapped.batch.arrays.slot)


def test_a_copied_batch_branches_at_every_id(env_id, duplicate):
    """A tree search tries several futures from one state, and the original then plays as if alone."""
    env, alone = (gym.make_vec(env_id, num_envs=3, scenario="lite", users="synthetic") for _ in range(2))
    first, _ = env.reset(seed=4)
    alone.reset(seed=4)
    first, other = play(env, first, 4, 0)[-1][0], play(alone, first, 4, 0)[-1][0]
    futures = [play(duplicate(env), first, 12, seed) for seed in (1, 1, 2)]
    assert data_equivalence(futures[0], futures[1])
    assert not data_equivalence(futures[0], futures[2])
    assert data_equivalence(play(env, first, 12, 2), futures[2])
    assert data_equivalence(play(alone, other, 12, 2), futures[2])


@pytest.mark.parametrize("batch_id", ["EdgeFeed-v0", "EdgeFeedSlate-v0"])
def test_a_copied_batch_goes_on_as_the_original_and_alone(batch_id, users, duplicate):
    watched = users == "learned"  # by the whole ensemble
    env = gym.make_vec(
        batch_id, num_envs=130, threads=2, scenario="lite", users=users, uncertainty=watched, copy=not watched
    )
    env.reset(seed=0)
    batch = env.unwrapped.batch
    play(env, batch.observation(), 3, 0)
    twin, feeds = duplicate(env), duplicate(batch)
    assert type(feeds) is type(batch) and feeds.users is not batch.users
    start = batch.observation()
    rng = np.random.default_rng(2)
    for _ in range(3):
        actions = random_action(env, batch.observation(), rng)
        told = copy.deepcopy(env.step(actions))
        assert data_equivalence(told, copy.deepcopy(twin.step(actions)))
    assert data_equivalence(start, feeds.observation(copy=False))
    feeds.step(actions)
    assert (feeds.arrays.slot != batch.arrays.slot).any()


def step_in_another_process(data: bytes, actions: Any) -> bytes:
    return pickle.dumps(pickle.loads(data).step(actions))


@pytest.mark.parametrize("kind", ["synthetic", "learned"])
def test_a_copy_goes_on_in_another_process(kind):
    env = gym.make("EdgeFeed-v0", scenario="lite", users=kind)
    observation, _ = env.reset(seed=0)
    play(env, observation, 6, 0)
    action = int(env.unwrapped.action_masks().argmax())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        told = pool.apply(step_in_another_process, (cloudpickle.dumps(env), action))
    assert data_equivalence(pickle.loads(told), env.step(action))


def test_the_view_of_stable_baselines3_branches_too(slot_id, users, duplicate):
    env = make_vec_env(slot_id, 3, scenario="lite", users=users)
    env.reset()
    rewards = []
    for _ in range(5):
        env.step(env.venv.action_masks().argmax(axis=1))
    twin, third = duplicate(env), duplicate(env)
    for _ in range(5):
        third.step(third.venv.action_masks()[:, ::-1].argmax(axis=1))  # another future
    for _ in range(60):  # beyond the end of sessions, whose returns and lengths are copied, too
        told = [e.step(e.venv.action_masks().argmax(axis=1)) for e in (env, twin)]
        for *_, infos in told:
            for info in infos:
                info.get("episode", {}).pop("t", None)
        assert data_equivalence(*told)
        rewards.append(told[0][1])
    assert np.any(rewards)


def test_a_copy_does_not_render():
    env = gym.make("EdgeFeed-v0", scenario="lite", users="synthetic", render_mode="human")
    env.reset(seed=0)
    twin = copy.deepcopy(env)
    assert twin.render_mode is None and twin.render() is None
    twin.step(0)
    assert env.unwrapped.screen().slot == 0
    env.close()


def test_a_shallow_copy_is_refused(env_id):
    single = gym.make(env_id, scenario="lite", users="synthetic").unwrapped
    vector = gym.make_vec(env_id, num_envs=2, scenario="lite", users="synthetic").unwrapped
    for values in (single, vector, vector.batch):
        with pytest.raises(InputError, match=r"use copy\.deepcopy"):
            copy.copy(values)


def test_a_copy_lives_longer_than_its_original(users):
    env = gym.make_vec("EdgeFeed-v0", num_envs=4, scenario="lite", users=users)
    observation, _ = env.reset(seed=0)
    expected = play(copy.deepcopy(env), observation, 8, 0)
    twin = copy.deepcopy(env)
    del env
    gc.collect()
    assert data_equivalence(play(twin, observation, 8, 0), expected)
