"""Policy gradients for generators of lists: REINFORCE with a baseline of other lists, and clipped PPO.

The reward of a list weighs the log-probability of its cards, minus a baseline that does not depend on the
list: that of the greedy list (self-critical; Rennie et al., CVPR'17) or the mean of the other lists drawn in
the same moment (leave-one-out; Kool et al., 2019). Exact-K (KDD'19) adds demonstrations (RLfD), a
cross-entropy to clicked lists, whose weight fades here so that the reward decides in the end (the published
code of the paper has the reward switched off). Evaluator-Generator (2003.11941) has PPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.agents.learning.rollouts import PlayedPlan, advantages, play_plans
from edgerec_gym.agents.learning.tensors import TensorObservation, to_tensors
from edgerec_gym.agents.list_policy import order_of
from edgerec_gym.agents.lists.pointer_net import Decoded, PointerNet
from edgerec_gym.config import Config, bounded
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Observation
from edgerec_gym.slate_env import EdgeFeedSlateVectorEnv


@dataclass(frozen=True)
class PolicyGradientConfig(Config):
    """Hyper-parameters of generators that learn from rewards or from a search."""

    updates: int = bounded(300, 1, 1_000_000)
    learning_rate: float = bounded(1e-3, 1e-7, 1.0)  # of Adam
    final_rate: float = bounded(0.1, 0.0, 1.0)  # share of it that is left in the last update; falls linearly
    sharpness: float = bounded(4.0, 0.01, 1000.0)  # times the logits of the start: draws near its greedy list
    batch_size: int = bounded(64, 1, 1_000_000)  # moments in an update: requests, or sessions that are played
    samples: int = bounded(4, 1, 1000)  # lists drawn in each moment
    self_critical: int = bounded(0, 0, 1)  # baseline: 1 the greedy list, 0 the mean of the other lists
    entropy: float = bounded(0.003, 0.0, 10.0)  # bonus, a place
    ppo_epochs: int = bounded(0, 0, 100)  # passes over an update's lists with a clipped ratio; 0 = REINFORCE
    clip: float = bounded(0.2, 0.01, 1.0)  # of PPO's ratio
    demonstrations: float = bounded(0.3, 0.0, 100.0)  # first weight of the cross-entropy to clicked lists
    fade: float = bounded(0.5, 0.0, 1.0)  # share of the updates after which that weight has come down to 0
    discount: float = bounded(0.95, 0.0, 1.0)  # a slot, of what users do later
    max_grad_norm: float = bounded(1.0, 1e-3, 1e6)
    checkpoint_every: int = bounded(50, 1, 1_000_000)  # updates

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.self_critical and self.samples < 2:
            raise InputError(
                "PolicyGradientConfig.samples = 1 has no other list to compare with; "
                "take at least 2, or self_critical = 1"
            )

    def rate(self, update: int) -> float:
        """Learning rate of an update, counted from 0."""
        return self.learning_rate * (1 - (1 - self.final_rate) * update / max(1, self.updates - 1))

    def demonstration_weight(self, update: int) -> float:
        """Weight at an update, counted from 0: falls linearly."""
        last = self.fade * self.updates
        return self.demonstrations * max(0.0, 1.0 - update / last) if last else 0.0


@dataclass(frozen=True)
class Decisions:
    """Lists drawn from a generator, and how good they were (B moments, S lists each, K places).

    Attributes:
        observation: of the moments.
        rows: (B, S, K) int64 pool rows, -1 behind the end.
        log_probabilities: (B, S, K) float32 when they were drawn.
        advantage: (B, S, K) float32 reward minus baseline that follows each place.
        counted: (B, S, K) bool; places that were played.
    """

    observation: TensorObservation
    rows: Tensor
    log_probabilities: Tensor
    advantage: Tensor
    counted: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> Decisions:
        """Return some moments."""
        observation = {key: value[index] for key, value in self.observation.items()}
        return Decisions(
            observation,
            self.rows[index],
            self.log_probabilities[index],
            self.advantage[index],
            self.counted[index],
        )


def leave_one_out(reward: Tensor) -> Tensor:
    """Rewards (..., S) minus the mean of the other S - 1 lists: no list is its own baseline."""
    n_lists = reward.shape[-1]
    return (reward - reward.mean(-1, keepdim=True)) * (n_lists / (n_lists - 1))


def policy_loss(
    network: PointerNet, decisions: Decisions, entropy: float, clip: float | None = None
) -> Tensor:
    """Loss whose gradient is the (negative) policy gradient, mean over lists.

    Args:
        network: the generator.
        decisions: lists and their advantages.
        entropy: bonus a place.
        clip: of PPO's probability ratio; None for REINFORCE.
    """
    n_lists, n_places = decisions.rows.shape[1:]
    candidates = network.encode(decisions.observation).repeat(n_lists)
    decoded = network.forced(candidates, decisions.rows.flatten(0, 1))
    log_p = decoded.log_probabilities.view(-1, n_lists, n_places)
    if clip is None:
        gain = decisions.advantage * log_p
    else:
        ratio = torch.exp(log_p - decisions.log_probabilities)
        clipped = ratio.clamp(1 - clip, 1 + clip)
        gain = torch.minimum(ratio * decisions.advantage, clipped * decisions.advantage)
    bonus = entropy * decoded.entropies.view_as(gain)
    return -((gain + bonus) * decisions.counted).sum(-1).mean()


def scale_advantages(decisions: Decisions) -> Decisions:
    """Divide advantages by their size, so that one learning rate fits clicks and values alike."""
    size = decisions.advantage[decisions.counted].square().mean().sqrt()
    return replace(decisions, advantage=decisions.advantage / (size + 1e-8))


def plan_decisions(
    network: PointerNet,
    env: EdgeFeedSlateVectorEnv,
    seeds: Sequence[int],
    samples: int,
    self_critical: bool,
    discount: float,
    generator: torch.Generator,
) -> tuple[Decisions, float]:
    """Play every session several times with sampled plans, and compare what followed each place.

    The copies of a session share its random numbers (common random numbers), so they differ by their plans
    only. What follows place i of a plan is the expected reward (the users' click and purchase probabilities)
    from that slot on, discounted. Its baseline is what the greedy copy, or the other copies on average, got
    from that slot on: nothing where their session had ended.

    Args:
        network: plans; no cards and no requests.
        env: learned or synthetic users, (samples + self_critical) rows for each seed.
        seeds: of the sessions.
        samples: copies with sampled plans.
        self_critical: one more copy plays greedy plans and is the baseline.
        discount: a slot.
        generator: of the plans.

    Returns:
        The sampled decisions (one list each), and the mean undiscounted reward of the sampled sessions.
    """
    copies = samples + self_critical
    env.reset(seed=np.repeat(np.asarray(seeds), copies).tolist())
    greedy = np.zeros((len(seeds), copies), np.bool_)
    greedy[:, samples:] = True
    of_row = greedy.ravel()
    config = env.config

    def plan(observation: Observation, live: np.ndarray) -> tuple[dict[str, np.ndarray], Any]:
        decoded = _decode(network, observation, of_row[live], config.slate_size, generator)
        order = order_of(decoded.rows.numpy(), config.pool_size)
        return {"order": order}, (observation, decoded)

    reward, _, played = play_plans(env, plan)
    reward = reward.reshape(len(seeds), copies, -1)  # (G, S, slots)
    advantage = advantages(reward, discount, samples if self_critical else None)
    mean = float(reward[:, :samples].sum(-1).mean())
    return _decisions(played, ~of_row, advantage.reshape(len(of_row), -1)), mean


def _decode(
    network: PointerNet, observation: Observation, greedy: np.ndarray, k: int, generator: torch.Generator
) -> Decoded:
    """Greedy lists where `greedy` (R,), sampled ones elsewhere."""
    with torch.no_grad():
        candidates = network.encode(to_tensors(observation))
        sampled = network.sample(candidates, k, generator)
        if not greedy.any():
            return sampled
        best, mask = network.greedy(candidates, k), torch.from_numpy(greedy).unsqueeze(1)
        return Decoded(*(torch.where(mask, a, b) for a, b in zip(best, sampled, strict=True)))


def _decisions(played: list[PlayedPlan], sampled: np.ndarray, advantage: np.ndarray) -> Decisions:
    """Plans of the rows that are `sampled` (B,) bool, as decisions."""
    kept = [sampled[part.rows] for part in played]
    observations = [
        to_tensors({key: value[some] for key, value in part.kept[0].items()})
        for part, some in zip(played, kept, strict=True)
    ]
    decoded = [
        Decoded(*(values[torch.from_numpy(some)] for values in part.kept[1]))
        for part, some in zip(played, kept, strict=True)
    ]

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts).unsqueeze(1)

    position = np.concatenate([part.position[some] for part, some in zip(played, kept, strict=True)])
    row = np.concatenate([part.rows[some] for part, some in zip(played, kept, strict=True)])
    followed = advantage[row[:, None], np.maximum(position, 0)]
    return Decisions(
        {key: torch.cat([part[key] for part in observations]) for key in observations[0]},
        joined([lists.rows for lists in decoded]),
        joined([lists.log_probabilities for lists in decoded]),
        torch.from_numpy(followed.astype(np.float32)).unsqueeze(1),
        torch.from_numpy(position >= 0).unsqueeze(1),
    )
