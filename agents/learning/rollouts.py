"""Whole sessions of EdgeFeedSlate-v0 played by plans, and what followed each plan: rollouts for gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from edgerec_gym.policy import Observation
from edgerec_gym.slate_env import EdgeFeedSlateVectorEnv
from edgerec_gym.state import NO_ITEM


class PlayedPlan(NamedTuple):
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


def play_plans(
    env: EdgeFeedSlateVectorEnv, planner: Planner
) -> tuple[np.ndarray, np.ndarray, list[PlayedPlan]]:
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
        plans.append(PlayedPlan(kept, live, position))
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
