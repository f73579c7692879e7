"""Whole sessions of EdgeFeedSlate-v0 played by plans, and what followed each plan: rollouts for gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.agents.list_policy import order_of
from edgerec_gym.agents.pointer_net import Decoded, PointerNet
from edgerec_gym.agents.policy_gradient import Decisions
from edgerec_gym.agents.reranker import to_tensors
from edgerec_gym.policy import Observation
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


class Played(NamedTuple):
    """Plans of R sessions, made at the same time.

    Attributes:
        kept: what the planner wanted to be kept.
        rows: (R,) int64 of the batch.
        position: (R, K) int32 slot of the session at each place, -1 where the plan was not played.
    """

    kept: Any
    rows: np.ndarray
    position: np.ndarray


Planner = Callable[[Observation, np.ndarray], tuple[dict[str, np.ndarray], Any]]


def play_plans(env: EdgeFeedSlateVectorEnv, planner: Planner) -> tuple[np.ndarray, np.ndarray, list[Played]]:
    """Play all rows to their ends.

    Args:
        env: just reset.
        planner: called with the observation of the rows that go on, and these rows (R,); returns their plan,
            what is missing being no card and no request in cloud order, and whatever is to be kept.

    Returns:
        What came with every slot, (B, slots): expected reward, and mix-in cards that were answered; and the
        plans.
    """
    batch, config, reward = env.batch, env.config, env.config.reward
    n_rows = batch.num_envs
    earned, cards = np.zeros((2, n_rows, config.max_slots))
    done = np.zeros(n_rows, np.bool_)
    plans: list[Played] = []
    types = env.scenario.catalog.card_type
    while not done.all():
        live = np.flatnonzero(~done)
        observation = {key: value[live] for key, value in batch.observation(copy=False).items()}
        made, kept = planner(observation, live)
        plan: dict[str, np.ndarray] = {
            "order": np.zeros((n_rows, config.pool_size), np.float32),
            "insert": np.zeros((n_rows, config.slate_size), np.int64),
            "request": np.zeros(n_rows, np.int64),
        }
        for key, values in made.items():
            plan[key][live] = values
        batch.step(batch.check_actions(plan), done)
        slates = batch.slates
        position = slates.positions[live]
        answered = (position >= 0) & (slates.answered_item[live] != NO_ITEM)
        click = slates.click_probability[live].astype(np.float64)
        card = types[np.where(answered, slates.answered_item[live], 0)] > 0
        value = reward.value(click, slates.purchase_probability[live], card=card)
        row, place = np.nonzero(answered)
        earned[live[row], position[row, place]] = value[row, place]
        cards[live[row], position[row, place]] = card[row, place]
        plans.append(Played(kept, live, position))
        done |= batch.arrays.terminated | batch.arrays.truncated
    return earned, cards, plans


def advantages(reward: np.ndarray, discount: float, samples: int | None = None) -> np.ndarray:
    """What follows each slot, discounted, minus its baseline.

    Args:
        reward: (G, S, slots) of S copies of each session.
        discount: a slot.
        samples: the copies after so many are the baseline; None: the mean of the other copies.

    Returns:
        (G, S, slots + 1).
    """
    ahead = discounted(reward, discount)
    if samples is not None:
        return ahead - ahead[:, samples:]
    copies = reward.shape[1]
    return ahead - (ahead.sum(1, keepdims=True) - ahead) / (copies - 1)


def discounted(reward: np.ndarray, discount: float) -> np.ndarray:
    """What follows each slot (..., slots + 1), the reward (..., slots) of the slot itself included."""
    ahead = np.zeros((*reward.shape[:-1], reward.shape[-1] + 1))
    for slot in range(reward.shape[-1] - 1, -1, -1):
        ahead[..., slot] = reward[..., slot] + discount * ahead[..., slot + 1]
    return ahead


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


def _decisions(played: list[Played], sampled: np.ndarray, advantage: np.ndarray) -> Decisions:
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
