"""Policy gradients for list generators: REINFORCE with a baseline from other lists, and clipped PPO.

The log-probability of a list's cards is weighted by its reward minus a baseline that does not depend on the
list: the reward of the greedy list (self-critical; Rennie et al., CVPR'17) or the mean of the other lists
drawn at the same moment (leave-one-out; Kool et al., 2019). Exact-K (KDD'19) adds demonstrations (RLfD), a
cross-entropy with clicked lists. Here, its weight fades so that the reward decides in the end (the paper's
published code has the reward switched off). Evaluator-Generator (2003.11941) uses PPO.

The evaluator can also be used by later methods; see :mod:`edgerec_gym.agents.lists.list_updates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

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

Update = Literal["reinforce", "goalrank", "dpo", "nlgr"]
UPDATES: tuple[Update, ...] = get_args(Update)


@dataclass(frozen=True)
class PolicyGradientConfig(Config):
    """Hyper-parameters of generators that learn from rewards or from a search."""

    update: Update = "reinforce"  # how lists are learned from; the others only for pointer-evaluator
    updates: int = bounded(300, 1, 1_000_000)
    learning_rate: float = bounded(1e-3, 1e-7, 1.0)  # of Adam
    final_rate: float = bounded(0.1, 0.0, 1.0)  # share of it left in the last update; linear decay
    sharpness: float = bounded(4.0, 0.01, 1000.0)  # factor on the starting generator's logits
    batch_size: int = bounded(64, 1, 1_000_000)  # logged moments or played sessions per update
    samples: int = bounded(4, 1, 1000)  # lists drawn per moment; 16 or so for goalrank and dpo
    self_critical: int = bounded(0, 0, 1)  # baseline: 1 = greedy list, 0 = mean of the other lists
    entropy: float = bounded(0.003, 0.0, 10.0)  # bonus per place
    ppo_epochs: int = bounded(0, 0, 100)  # passes over an update's lists with a clipped ratio; 0 = REINFORCE
    clip: float = bounded(0.2, 0.01, 1.0)  # range of PPO's ratio
    demonstrations: float = bounded(0.3, 0.0, 100.0)  # initial weight of the cross-entropy with clicked lists
    fade: float = bounded(0.5, 0.0, 1.0)  # share of the updates after which that weight is 0
    temperature: float = bounded(1.0, 0.01, 100.0)  # goalrank: of the reference policy; small = only the best
    rankers: int = bounded(1, 0, 1)  # goalrank: 1 adds the lists of four simple rankers to the drawn ones
    beta: float = bounded(0.1, 1e-4, 100.0)  # dpo: the smaller, the farther from the start
    pairs: int = bounded(1, 1, 500)  # dpo: best lists that are compared with as many worst ones
    neighbours: int = bounded(1, 1, 100)  # nlgr: neighbours judged per place of a list
    discount: float = bounded(0.95, 0.0, 1.0)  # discount per slot
    max_grad_norm: float = bounded(1.0, 1e-3, 1e6)
    checkpoint_every: int = bounded(50, 1, 1_000_000)  # in updates

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.self_critical and self.samples < 2 and self.update != "nlgr":
            raise InputError(
                "PolicyGradientConfig.samples = 1 has no other list to compare with; "
                "take at least 2, or self_critical = 1"
            )
        if self.update != "reinforce" and self.self_critical:
            raise InputError(
                f"PolicyGradientConfig.update = {self.update!r} has no baseline; leave self_critical at 0"
            )
        if self.update in ("goalrank", "dpo") and self.ppo_epochs:
            raise InputError(
                f"PolicyGradientConfig.update = {self.update!r} has no ratio to clip; leave ppo_epochs at 0"
            )
        if self.update == "dpo" and 2 * self.pairs > self.samples:
            raise InputError(
                f"PolicyGradientConfig.pairs = {self.pairs} needs at least {2 * self.pairs} samples, "
                f"got {self.samples}"
            )

    def rate(self, update: int) -> float:
        """Return the learning rate of an update, counted from 0."""
        return self.learning_rate * (1 - (1 - self.final_rate) * update / max(1, self.updates - 1))

    def demonstration_weight(self, update: int) -> float:
        """Return the linearly falling weight at an update, counted from 0."""
        last = self.fade * self.updates
        return self.demonstrations * max(0.0, 1.0 - update / last) if last else 0.0


@dataclass(frozen=True)
class Decisions:
    """Lists drawn from a generator with their advantages (B moments, S lists each, K places).

    Attributes:
        observation: observation of the moments.
        rows: (B, S, K) int64 pool rows, -1 after the end.
        log_probabilities: (B, S, K) float32 log-probabilities at the time of the draw.
        advantage: (B, S, K) float32 return minus baseline from each place on.
        counted: (B, S, K) bool, places that were played.
    """

    observation: TensorObservation
    rows: Tensor
    log_probabilities: Tensor
    advantage: Tensor
    counted: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> Decisions:
        """Return the moments `index`."""
        observation = {key: value[index] for key, value in self.observation.items()}
        return Decisions(
            observation,
            self.rows[index],
            self.log_probabilities[index],
            self.advantage[index],
            self.counted[index],
        )


def leave_one_out(reward: Tensor) -> Tensor:
    """Subtract from rewards (..., S) the mean of the other S - 1 lists, so no list is its own baseline."""
    n_lists = reward.shape[-1]
    return (reward - reward.mean(-1, keepdim=True)) * (n_lists / (n_lists - 1))


def follow(network: PointerNet, observation: TensorObservation, rows: Tensor) -> Decoded:
    """Follow S lists per moment (B, S, K), to differentiate their probability; every part is (B, S, K)."""
    candidates = network.encode(observation).repeat(rows.shape[1])
    decoded = network.forced(candidates, rows.flatten(0, 1))
    return Decoded(*(part.view_as(rows) for part in decoded))


def policy_loss(
    network: PointerNet, decisions: Decisions, entropy: float, clip: float | None = None
) -> Tensor:
    """Return the loss whose gradient is the negative policy gradient, mean over lists.

    Args:
        network: the generator.
        decisions: lists and their advantages.
        entropy: entropy bonus per place.
        clip: range of PPO's probability ratio; None for REINFORCE.
    """
    decoded = follow(network, decisions.observation, decisions.rows)
    log_p = decoded.log_probabilities
    if clip is None:
        gain = decisions.advantage * log_p
    else:
        ratio = torch.exp(log_p - decisions.log_probabilities)
        clipped = ratio.clamp(1 - clip, 1 + clip)
        gain = torch.minimum(ratio * decisions.advantage, clipped * decisions.advantage)
    bonus = entropy * decoded.entropies
    return -((gain + bonus) * decisions.counted).sum(-1).mean()


def scale_advantages(decisions: Decisions) -> Decisions:
    """Divide advantages by their root mean square, so that one learning rate fits all reward scales."""
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
    """Play every session several times with sampled plans, and compare the returns from each place on.

    The copies of a session share common random numbers, so they differ only in their plans. The return of
    place i of a plan is the discounted expected reward (from the users' click and purchase probabilities)
    from that slot on. Its baseline is the return of the greedy copy, or the mean of the other copies, from
    that slot on: zero once a session has ended.

    Args:
        network: makes the plans, without cards or requests.
        env: learned or synthetic users, (samples + self_critical) rows for each seed.
        seeds: seeds of the sessions.
        samples: number of copies with sampled plans.
        self_critical: whether one more copy plays greedy plans as the baseline.
        discount: discount per slot.
        generator: random generator for the plans.

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
    """Decode greedily where `greedy` (R,), and by sampling elsewhere."""
    with torch.no_grad():
        candidates = network.encode(to_tensors(observation))
        sampled = network.sample(candidates, k, generator)
        if not greedy.any():
            return sampled
        best, mask = network.greedy(candidates, k), torch.from_numpy(greedy).unsqueeze(1)
        return Decoded(*(torch.where(mask, a, b) for a, b in zip(best, sampled, strict=True)))


def _decisions(played: list[PlayedPlan], sampled: np.ndarray, advantage: np.ndarray) -> Decisions:
    """Convert the plans of the rows in `sampled` (B,) bool to decisions."""
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
