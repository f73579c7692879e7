"""Whole sessions of EdgeFeedSlate-v0, planned by a generator, as decisions with advantages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.agents.base import Observation
from edgerec_gym.agents.list_policy import order_of
from edgerec_gym.agents.pointer_net import Decoded, PointerNet
from edgerec_gym.agents.policy_gradient import Decisions
from edgerec_gym.agents.reranker import to_tensors
from edgerec_gym.slate_batch import SlateBatch
from edgerec_gym.slate_env import EdgeFeedSlateVectorEnv
from edgerec_gym.state import NO_ITEM


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
    reward, plans = _play(network, env.batch, greedy.ravel(), env.config.reward, generator)
    reward = reward.reshape(len(seeds), copies, -1)  # (G, S, slots)
    ahead = np.zeros((*reward.shape[:2], reward.shape[2] + 1))
    for slot in range(reward.shape[2] - 1, -1, -1):
        ahead[..., slot] = reward[..., slot] + discount * ahead[..., slot + 1]
    if self_critical:
        baseline = np.broadcast_to(ahead[:, samples:], ahead.shape)
    else:
        baseline = (ahead.sum(1, keepdims=True) - ahead) / (copies - 1)
    advantage = (ahead - baseline).reshape(len(seeds) * copies, -1)
    mean = float(reward[:, :samples].sum(-1).mean())
    return _decisions(plans, advantage), mean


Played = tuple[
    Observation, Decoded, np.ndarray, np.ndarray
]  # observation, lists, rows (R,), positions (R, K)


def _play(
    network: PointerNet, batch: SlateBatch, greedy: np.ndarray, reward: Any, generator: torch.Generator
) -> tuple[np.ndarray, list[Played]]:
    """Play all rows to their ends: expected reward (B, slots) of every slot, and the sampled plans."""
    n_rows, config = len(greedy), batch.config
    earned = np.zeros((n_rows, config.max_slots))
    done = np.zeros(n_rows, np.bool_)
    plans: list[Played] = []
    insert = np.zeros((n_rows, config.slate_size), np.int64)
    while not done.all():
        live = np.flatnonzero(~done)
        observation = {key: value[live] for key, value in batch.observation(copy=False).items()}
        decoded = _decode(network, observation, greedy[live], config.slate_size, generator)
        order = np.zeros((n_rows, config.pool_size), np.float32)
        order[live] = order_of(decoded.rows.numpy(), config.pool_size)
        plan = {"order": order, "insert": insert, "request": np.zeros(n_rows, np.int64)}
        batch.step(batch.check_actions(plan), done)
        slates = batch.slates
        position = slates.positions[live]
        answered = (position >= 0) & (slates.answered_item[live] != NO_ITEM)
        value = reward.click * slates.click_probability + reward.purchase * slates.purchase_probability
        row, place = np.nonzero(answered)
        earned[live[row], position[row, place]] = value[live[row], place]
        kept = ~greedy[live]
        lists = Decoded(*(part[torch.from_numpy(kept)] for part in decoded))
        plans.append(({k: v[kept] for k, v in observation.items()}, lists, live[kept], position[kept]))
        done |= batch.arrays.terminated | batch.arrays.truncated
    return earned, plans


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


def _decisions(plans: list[Played], advantage: np.ndarray) -> Decisions:
    observations = [to_tensors(observation) for observation, *_ in plans]

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts).unsqueeze(1)

    position = np.concatenate([p for *_, p in plans])
    row = np.concatenate([r for _, _, r, _ in plans])
    followed = advantage[row[:, None], np.maximum(position, 0)]
    return Decisions(
        {key: torch.cat([part[key] for part in observations]) for key in observations[0]},
        joined([lists.rows for _, lists, _, _ in plans]),
        joined([lists.log_probabilities for _, lists, _, _ in plans]),
        torch.from_numpy(followed.astype(np.float32)).unsqueeze(1),
        torch.from_numpy(position >= 0).unsqueeze(1),
    )
