"""Rollouts for policy gradients: whole sessions of EdgeFeedSlate-v0, and the return after each slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from edgerec_gym.policy import Observation
from edgerec_gym.slate_env import EdgeFeedSlateVectorEnv
from edgerec_gym.state import NO_ITEM


class PlayedPlan(NamedTuple):
    """Plans of R sessions, made in the same step.

    Attributes:
        kept: data that the planner asked to keep.
        rows: (R,) int64 batch rows.
        position: (R, K) int32 session slot of each place of the plan, -1 where it was not played.
    """

    kept: Any
    rows: np.ndarray
    position: np.ndarray


Planner = Callable[[Observation, np.ndarray], tuple[dict[str, np.ndarray], Any]]


def play_plans(
    env: EdgeFeedSlateVectorEnv, planner: Planner
) -> tuple[np.ndarray, np.ndarray, list[PlayedPlan]]:
    """Play all rows until their sessions end.

    Args:
        env: environment that has just been reset.
        planner: called with the observation of the live rows and their indices (R,). It returns their plan
            and any data to keep. Missing parts of the plan default to cloud order, no cards, no request.

    Returns:
        Expected reward of every slot (B, slots), whether an answered mix-in card stood there (B, slots), and
        the plans.
    """
    batch, config, reward = env.batch, env.config, env.config.reward
    n_rows = batch.num_envs
    earned, cards = np.zeros((2, n_rows, config.max_slots))
    done = np.zeros(n_rows, np.bool_)
    plans: list[PlayedPlan] = []
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
        batch.step(plan, done)
        slates = batch.slates
        position = slates.positions[live]
        answered = (position >= 0) & (slates.answered_item[live] != NO_ITEM)
        click = slates.click_probability[live].astype(np.float64)
        card = types[np.where(answered, slates.answered_item[live], 0)] > 0
        value = reward.value(click, slates.purchase_probability[live], card=card)
        row, place = np.nonzero(answered)
        earned[live[row], position[row, place]] = value[row, place]
        cards[live[row], position[row, place]] = card[row, place]
        plans.append(PlayedPlan(kept, live, position))
        done |= batch.arrays.terminated | batch.arrays.truncated
    return earned, cards, plans


def advantages(reward: np.ndarray, discount: float, samples: int | None = None) -> np.ndarray:
    """Return the discounted return from each slot on, minus its baseline.

    Args:
        reward: (G, S, slots) rewards of S copies of each of G sessions.
        discount: discount per slot.
        samples: number of copies before the baseline copy; None uses the mean of the other copies.

    Returns:
        (G, S, slots + 1) advantages.
    """
    ahead = discounted(reward, discount)
    if samples is not None:
        return ahead - ahead[:, samples:]
    return leave_one_out(ahead)


def leave_one_out(returns: np.ndarray) -> np.ndarray:
    """Return returns (G, S, slots) of S >= 2 copies of each of G sessions, less the mean of the others."""
    copies = returns.shape[1]
    return returns - (returns.sum(1, keepdims=True) - returns) / (copies - 1)


def discounted(reward: np.ndarray, discount: float) -> np.ndarray:
    """Return the discounted return (..., slots + 1) from each slot on, including its reward (..., slots)."""
    ahead = np.zeros((*reward.shape[:-1], reward.shape[-1] + 1))
    for slot in range(reward.shape[-1] - 1, -1, -1):
        ahead[..., slot] = reward[..., slot] + discount * ahead[..., slot + 1]
    return ahead
