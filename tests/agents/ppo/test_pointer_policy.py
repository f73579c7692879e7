from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import get_action_masks

from edgerec_gym.adapters.sb3 import FeedVecEnv, make_vec_env
from edgerec_gym.agents.ppo.pointer_policy import GroupedCategorical, PointerPolicy, infer_track
from edgerec_gym.errors import InputError
from edgerec_gym.scenario import Scenario

Tensors = dict[str, torch.Tensor]


def make(scenario: Any, env_id: str = "EdgeFeed-v0", num_envs: int = 8, **kwargs: Any) -> FeedVecEnv:
    return make_vec_env(env_id, num_envs, scenario=scenario, users="synthetic", **kwargs)


def make_policy(env: FeedVecEnv, **kwargs: Any) -> Any:
    return MaskablePPO(
        PointerPolicy, env, n_steps=2, batch_size=8, seed=0, device="cpu", policy_kwargs=kwargs
    ).policy


def played(env: FeedVecEnv, steps: int = 30) -> Tensors:
    """Observations with behaviour in them: uniform legal actions, so cards and requests take part."""
    generator = np.random.default_rng(0)
    observation: Any = env.reset()
    for _ in range(steps):
        masks = get_action_masks(env)
        observation, *_ = env.step((masks * generator.random(masks.shape)).argmax(axis=1))
    return {key: torch.as_tensor(value) for key, value in observation.items()}


def away_from_the_start(policy: Any) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


def logits(policy: Any, observation: Tensors) -> torch.Tensor:
    with torch.no_grad():
        return policy.get_distribution(observation).distribution.logits


def test_learns_and_evaluates(lite: Scenario, slot_id: str) -> None:
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


def test_plays_the_default_preset(slot_id: str) -> None:
    env = make("default", slot_id, num_envs=2)
    policy, observation = make_policy(env), played(env, steps=60)
    actions, values, log_prob = policy(observation, action_masks=observation["action_mask"])
    assert actions.shape == (2,) and values.shape == (2, 1) and log_prob.shape == (2,)
    assert observation["action_mask"][torch.arange(2), actions].all()
    assert torch.isfinite(values).all() and torch.isfinite(log_prob).all()


def test_one_seed_trains_one_policy(lite: Scenario) -> None:
    trained = []
    for _ in range(2):
        env = make(lite, num_envs=8, seed=3)
        model = MaskablePPO(PointerPolicy, env, n_steps=8, batch_size=32, n_epochs=2, seed=3, device="cpu")
        model.learn(128)
        trained.append(list(model.policy.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*trained, strict=True))


def test_untrained_it_draws_by_base_ctr_and_interests(lite: Scenario) -> None:
    env = make(lite, "EdgeFeedRerank-v0", num_envs=64)
    policy = make_policy(env)
    observation = {key: torch.as_tensor(value) for key, value in env.reset().items()}
    d = lite.config.embedding_size
    base = torch.logit(observation["pool"][:, :, d + 1])
    start = logits(policy, observation)
    assert torch.allclose(start - start.mean(1, keepdim=True), base - base.mean(1, keepdim=True), atol=0.15)
    # A long page view of a card like row 3: row 3 gains on the others.
    n_card = lite.config.n_item_features + lite.config.n_types
    observation["page_views"][:, 0, : n_card - lite.config.n_types] = observation["pool"][:, 3]
    observation["page_views"][:, 0, n_card - lite.config.n_types] = 1
    observation["page_views"][:, 0, n_card] = 0.9
    gain = logits(policy, observation) - start
    assert (gain.argmax(1) == 3).all()
    assert gain[:, 3].mean() > 0.2


def test_rows_share_their_scorer(lite: Scenario) -> None:
    """Permuting the pool permutes the logits, but for the first row: *keep* is part of the state."""
    env = make(lite, num_envs=4)
    policy, observation = make_policy(env), played(env)
    away_from_the_start(policy)
    n_pool = observation["pool"].shape[1]
    first = (observation["pool"] != 0).any(-1).to(torch.int64).argmax(1)
    order = torch.stack(
        [torch.randperm(n_pool, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    )
    for row, place in enumerate(first):  # the present rows in another order behind the first of them
        rest = [int(at) for at in order[row] if at > place]
        order[row] = torch.tensor([*range(place + 1), *rest])
    rows = torch.arange(4).unsqueeze(1)
    permuted = {**observation, "pool": observation["pool"][rows, order]}
    plain, moved = logits(policy, observation), logits(policy, permuted)
    assert torch.allclose(plain[:, :n_pool][rows, order], moved[:, :n_pool], atol=1e-4)
    assert torch.allclose(plain[:, n_pool:], moved[:, n_pool:], atol=1e-4), "cards and request see a set"
    assert plain.std() > 1e-3
    cards = {**observation, "cards": observation["cards"].flip(1)}
    flipped = logits(policy, cards)[:, n_pool:-1].flip(1)
    assert torch.allclose(plain[:, n_pool:-1], flipped, atol=1e-4)


def test_padding_has_no_influence(lite: Scenario) -> None:
    env = make(lite, num_envs=6)
    policy, observation = make_policy(env), played(env, steps=12)
    away_from_the_start(policy)
    moved = dict(observation)
    for name in ("exposures", "page_views"):
        rows = observation[name]
        assert (rows == 0).all(-1).any(), "there is padding to move"
        moved[name] = torch.stack(
            [torch.cat((row[(row == 0).all(-1)], row[(row != 0).any(-1)])) for row in rows]
        )
    assert torch.allclose(logits(policy, observation), logits(policy, moved), atol=1e-5)
    # Nor have the other sessions of the batch, some longer, some with an empty history.
    observation["exposures"][0] = observation["page_views"][0] = 0
    together = logits(policy, observation)
    for row in range(6):
        alone = logits(policy, {key: value[row : row + 1] for key, value in observation.items()})
        assert torch.allclose(together[row], alone[0], atol=1e-5)


def test_behaviour_counts(lite: Scenario) -> None:
    """Exposure and page-view actions reach the logits of rows, cards and request, and the value."""
    env = make(lite, num_envs=4)
    policy, observation = make_policy(env), played(env)
    away_from_the_start(policy)
    features = policy.extract_features(observation)
    for name in ("exposures", "page_views"):
        changed = observation[name].clone()
        changed[..., -4] = torch.where((changed != 0).any(-1), 1 - changed[..., -4], 0)
        other = policy.extract_features({**observation, name: changed})
        sizes = policy.features_extractor.group_sizes
        for part, (before, after) in enumerate(
            zip(features.split([*sizes, 32], 1), other.split([*sizes, 32], 1), strict=True)
        ):
            assert (before - after).abs().max() > 1e-6, (name, part)


def test_tells_the_track() -> None:
    assert infer_track(100, 8, 109) == "joint"
    assert infer_track(100, 8, 100) == "rerank"
    assert infer_track(100, 8, 9) == "mix"
    assert infer_track(100, 8, 2) == "request"
    assert infer_track(100, 1, 2, "mix") == "mix"
    with pytest.raises(InputError, match="fit mix and request; name the track of PointerPolicy: joint"):
        infer_track(100, 1, 2)
    with pytest.raises(InputError, match="7 actions with 100 pool rows and 8 cards fit no track; name"):
        infer_track(100, 8, 7)
    with pytest.raises(InputError, match="fit joint, not 'mix'"):
        infer_track(100, 8, 109, "mix")


def test_copes_with_other_sizes(lite: Scenario) -> None:
    variants: list[dict[str, Any]] = [{"lookahead": 0}, {"n_cards": 1, "pool_size": 30, "lookahead": 5}]
    for changes in variants:
        env = make(lite, num_envs=4, **changes)
        model = MaskablePPO(PointerPolicy, env, n_steps=4, batch_size=8, n_epochs=1, seed=0, device="cpu")
        model.learn(16)
        rebuilt = PointerPolicy(**model.policy._get_constructor_parameters())
        rebuilt.load_state_dict(model.policy.state_dict())


def test_mode_takes_the_group_first() -> None:
    distribution = GroupedCategorical([3, 1])
    distribution.proba_distribution(torch.log(torch.tensor([[0.2, 0.25, 0.2, 0.35], [0.1, 0.2, 0.1, 0.6]])))
    assert distribution.mode().tolist() == [1, 3]
    distribution.apply_masking(np.array([[1, 0, 1, 1], [1, 1, 1, 0]], bool))
    assert distribution.mode().tolist() == [0, 1]
