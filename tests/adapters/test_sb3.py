from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.monitor import Monitor

from edgerec_gym.adapters.sb3 import FeedVecEnv, make_vec_env
from edgerec_gym.errors import InputError
from edgerec_gym.scenario import Scenario
from edgerec_gym.vector_env import EdgeFeedVectorEnv


def make(lite: Scenario, env_id: str = "EdgeFeed-v0", num_envs: int = 8, **kwargs: Any) -> FeedVecEnv:
    return make_vec_env(env_id, num_envs, scenario=lite, users="synthetic", **kwargs)


def keep(env: FeedVecEnv) -> np.ndarray:
    return get_action_masks(env).argmax(axis=1)


def test_steps_like_the_vector_env(lite: Scenario) -> None:
    env = make(lite, seed=5)
    feed = EdgeFeedVectorEnv(8, scenario=lite, users="synthetic", autoreset_mode="SameStep")
    observation: Any = env.reset()
    expected, _ = feed.reset(seed=5)
    returns, lengths, ended = np.zeros(8), np.zeros(8, int), 0
    sums = {name: np.zeros(8) for name in feed.config.reward_terms}
    for _ in range(80):
        for key in expected:
            assert np.array_equal(observation[key], expected[key])
        actions = keep(env)
        observation, rewards, dones, infos = env.step(actions)
        expected, expected_rewards, terminated, truncated, step_infos = feed.step(actions)
        assert np.allclose(rewards, expected_rewards)
        assert np.array_equal(dones, terminated | truncated)
        returns += expected_rewards
        lengths += 1
        for name, values in step_infos["reward_terms"].items():
            sums[name] += values
        for row, info in enumerate(infos):
            if not dones[row]:
                assert info == {}
                continue
            ended += 1
            assert info["TimeLimit.truncated"] == truncated[row]
            assert info["episode"]["r"] == pytest.approx(returns[row], abs=1e-5)
            assert info["episode"]["l"] == lengths[row]
            for key, value in step_infos["final_obs"][row].items():
                assert np.array_equal(info["terminal_observation"][key], value)
            terms = {name: values[row] for name, values in step_infos["reward_terms"].items()}
            assert info["reward_terms"] == terms
            assert info["session_terms"] == {name: pytest.approx(sums[name][row]) for name in sums}
            assert sum(info["session_terms"].values()) == pytest.approx(returns[row])
            returns[row] = lengths[row] = 0
            for values in sums.values():
                values[row] = 0
    assert ended > 8


def test_infos_are_not_shared_between_rows(lite: Scenario) -> None:
    env = make(lite)
    env.reset()
    _, _, _, infos = env.step(keep(env))
    infos[0]["mine"] = 1
    assert "mine" not in infos[1]
    assert "mine" not in env.step(keep(env))[3][0]


def test_plans_are_refused(lite: Scenario) -> None:
    with pytest.raises(InputError, match="no algorithms for Dict actions.*use EdgeFeed-v0"):
        make(lite, "EdgeFeedSlate-v0")


def test_masks_as_sb3_contrib_asks_for_them(lite: Scenario, slot_id: str) -> None:
    env = make(lite, slot_id)
    observation = env.reset()
    assert is_masking_supported(env)
    assert np.array_equal(get_action_masks(env), observation["action_mask"] == 1)
    masks = env.env_method("action_masks", indices=[2, 5])
    assert len(masks) == 2
    assert np.array_equal(masks[1], observation["action_mask"][5] == 1)


def test_attributes_and_seeds(lite: Scenario) -> None:
    env = make(lite, seed=None)
    assert env.get_attr("track", indices=1) == ["joint"]
    assert env.get_attr("action_space")[3] == env.action_space
    assert not env.has_attr("no_such_thing")
    with pytest.raises(InputError, match="whole batch"):
        env.set_attr("copy", False, indices=0)
    env.set_attr("copy", True)
    assert env.env_is_wrapped(Monitor) == [True] * 8
    assert env.seed(11) == list(range(11, 19))
    first = env.reset()["pool"]
    assert not np.array_equal(env.reset()["pool"], first), "without a seed the next episode starts"
    env.seed(11)
    assert np.array_equal(env.reset()["pool"], first)
    assert np.array_equal(make(lite, num_envs=1, seed=13).reset()["pool"][0], first[2])


def test_wrong_autoreset_and_unknown_id(lite: Scenario) -> None:
    with pytest.raises(InputError, match="SAME_STEP"):
        FeedVecEnv(EdgeFeedVectorEnv(2, scenario=lite, users="synthetic"))
    with pytest.raises(InputError, match="unknown id"):
        make_vec_env("EdgeFeeed-v0", 2)


@pytest.mark.parametrize("algorithm", ["ppo", "dqn", "maskable"])
def test_algorithms_learn_unmodified(lite: Scenario, slot_id: str, algorithm: str) -> None:
    env = make(lite, slot_id, num_envs=16)
    if algorithm == "dqn":
        model: Any = DQN(
            "MultiInputPolicy", env, buffer_size=512, learning_starts=64, train_freq=4, seed=0, device="cpu"
        )
    else:
        kind = PPO if algorithm == "ppo" else MaskablePPO
        model = kind("MultiInputPolicy", env, n_steps=32, batch_size=256, n_epochs=1, seed=0, device="cpu")
    model.learn(1024)
    assert model.num_timesteps == 1024
    assert len(model.ep_info_buffer) > 0
