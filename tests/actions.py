"""Actions for the tests of every id, single or batch, by what an observation says."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerec_gym.registration import SLATE


def random_action(env: Any, observation: dict[str, np.ndarray], rng: np.random.Generator) -> Any:
    """A legal action of each row, or a plan whose later cards may be illegal when their slots come."""
    mask, feed = observation["action_mask"], env.unwrapped
    if feed.track != SLATE:
        return (rng.random(mask.shape) * mask).argmax(axis=-1)
    rows, config = mask.shape[:-1], feed.config
    cards = rng.integers(config.n_cards + 1, size=(*rows, config.slate_size))
    return {
        "order": rng.random((*rows, config.pool_size), np.float32),
        "insert": np.where(rng.random(cards.shape) < 0.2, cards, 0),
        "request": ((rng.random(rows) < 0.2) & (mask[..., -1] == 1)).astype(np.int64),
    }


def keep_action(env: Any, observation: dict[str, np.ndarray]) -> Any:
    """Cloud order, no cards, no requests."""
    mask, feed = observation["action_mask"], env.unwrapped
    if feed.track != SLATE:
        return mask.argmax(axis=-1)
    rows, config = mask.shape[:-1], feed.config
    return {
        "order": np.zeros((*rows, config.pool_size), np.float32),
        "insert": np.zeros((*rows, config.slate_size), np.int64),
        "request": np.zeros(rows, np.int64),
    }


def rows_of(actions: Any, rows: Any) -> Any:
    """Some rows of a batch's actions, or one."""
    return {k: v[rows] for k, v in actions.items()} if isinstance(actions, dict) else actions[rows]
