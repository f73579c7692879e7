from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.monitor import Monitor

from edgerec_gym.agents.pointer_policy import GroupedCategorical, PointerPolicy, infer_track
from edgerec_gym.errors import InputError
from edgerec_gym.sb3 import FeedVecEnv, make_vec_env
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
            returns[row] = lengths[row] = 0
    assert ended > 8


def test_infos_are_not_shared_between_rows(lite: Scenario) -> None:
    env = make(lite)
    env.reset()
    _, _, _, infos = env.step(keep(env))
    infos[0]["mine"] = 1
    assert "mine" not in infos[1]
    assert "mine" not in env.step(keep(env))[3][0]


def test_plans_are_refused(lite: Scenario) -> None:
    with pytest.raises(InputError, match="no Dict actions.*use EdgeFeed-v0"):
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


def test_pointer_policy_learns_and_evaluates(lite: Scenario, slot_id: str) -> None:
    env = make(lite, slot_id, num_envs=16)
    model = MaskablePPO(PointerPolicy, env, n_steps=32, batch_size=256, n_epochs=1, seed=0, device="cpu")
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(512)
    unused = [
        name
        for (name, p), old in zip(model.policy.named_parameters(), before, strict=True)
        if bool((p == old).all())
    ]
    assert unused == [], "every parameter takes part"
    observation: Any = env.reset()
    for _ in range(30):
        actions, _ = model.predict(observation, deterministic=True, action_masks=get_action_masks(env))
        assert observation["action_mask"][np.arange(16), actions].all()
        observation, _, _, _ = env.step(actions)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=16)
    assert np.isfinite(mean)


def test_untrained_pointer_policy_resembles_the_cloud(lite: Scenario) -> None:
    env = make(lite, "EdgeFeedRerank-v0", num_envs=64)
    model = MaskablePPO(PointerPolicy, env, n_steps=2, batch_size=16, seed=0, device="cpu")
    observation = env.reset()
    actions, _ = model.predict(observation, deterministic=True, action_masks=get_action_masks(env))
    best = observation["pool"][:, :, lite.config.embedding_size + 1].argmax(axis=1)
    assert (actions == best).mean() > 0.8


def test_pointer_policy_shares_its_scorer_between_rows(lite: Scenario) -> None:
    """Permuting the pool permutes the probabilities: the row itself carries no weight of its own."""
    import torch

    env = make(lite, "EdgeFeedRerank-v0", num_envs=4)
    policy: Any = MaskablePPO(PointerPolicy, env, n_steps=2, batch_size=8, seed=0, device="cpu").policy
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)  # away from the special start
    observation = {key: torch.as_tensor(value) for key, value in env.reset().items()}
    keep_first = torch.cat(
        [torch.zeros(1, dtype=torch.long), 1 + torch.randperm(19, generator=torch.Generator().manual_seed(0))]
    )
    permuted = {**observation, "pool": observation["pool"][:, keep_first]}
    with torch.no_grad():
        plain = policy.get_distribution(observation).distribution.probs
        moved = policy.get_distribution(permuted).distribution.probs
    assert torch.allclose(plain[:, keep_first], moved, atol=1e-5)
    assert plain.std() > 1e-4


def test_pointer_policy_tells_the_track() -> None:
    assert infer_track(100, 8, 109) == "joint"
    assert infer_track(100, 8, 100) == "rerank"
    assert infer_track(100, 8, 9) == "mix"
    assert infer_track(100, 8, 2) == "request"
    with pytest.raises(InputError, match="fit mix and request"):
        infer_track(100, 1, 2)


def test_pointer_policy_copes_with_other_sizes(lite: Scenario) -> None:
    variants: list[dict[str, Any]] = [{"lookahead": 0}, {"n_cards": 1, "pool_size": 30, "lookahead": 5}]
    for changes in variants:
        env = make(lite, num_envs=4, **changes)
        model = MaskablePPO(PointerPolicy, env, n_steps=4, batch_size=8, n_epochs=1, seed=0, device="cpu")
        model.learn(16)
        rebuilt = PointerPolicy(**model.policy._get_constructor_parameters())
        rebuilt.load_state_dict(model.policy.state_dict())


def test_mode_takes_the_group_first() -> None:
    import torch

    distribution = GroupedCategorical([3, 1])
    distribution.proba_distribution(torch.log(torch.tensor([[0.2, 0.25, 0.2, 0.35], [0.1, 0.2, 0.1, 0.6]])))
    assert distribution.mode().tolist() == [1, 3]
    distribution.apply_masking(np.array([[1, 0, 1, 1], [1, 1, 1, 0]], bool))
    assert distribution.mode().tolist() == [0, 1]
