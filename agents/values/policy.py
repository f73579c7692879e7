"""Play the best value: the order, and in EdgeFeed-v0 also which cards to insert, and requests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgerec_gym.agents.requests.planner import Score
from edgerec_gym.config import FeedConfig
from edgerec_gym.policy import Explanation, Observation, check_observation
from edgerec_gym.spaces import CONTEXT

PAGE_AGE = CONTEXT.index("page_age")
Values = Callable[[Observation, np.ndarray], np.ndarray]  # observation, cards (B, N, F + T) -> values (B, N)


class ValuePolicy:
    """Place the best pool row, or the best legal card if that is worth a margin more; request pages that pay.

    A request places the cloud's next row, not the best one.

    Args:
        name: name of the policy.
        config: the feed.
        values: values pool rows and cards.
        margin: reward that a card must earn beyond the best pool row.
        gain: estimates what a request gains before its cost, from observations; None requests nothing.
        price: gain that pays a request, in reward units.
        least_age: slots since the page arrived before the next request.
    """

    stateless = True

    def __init__(
        self,
        name: str,
        config: FeedConfig,
        values: Values,
        margin: float,
        gain: Score | None = None,
        price: float = 0.0,
        least_age: int = 0,
    ) -> None:
        self.name, self.config, self.values, self.margin = name, config, values, margin
        self.gain, self.price, self.least_age = gain, price, least_age
        self._last = np.zeros((0, 0), np.float32)  # values of pool rows and cards

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: the policy has no state."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64 actions of EdgeFeed-v0, legal under the mask."""
        check_observation(observation)
        cards = candidates_of(observation, self.config.n_types)
        self._last = self.values(observation, cards)
        legal = observation["action_mask"][:, : cards.shape[1]] != 0
        prices = prices_of(cards.shape[1], self.config.pool_size, self.margin)
        best = best_of(self._last, legal, prices)
        return np.where(self._requests(observation), observation["action_mask"].shape[1] - 1, best)

    def _requests(self, observation: Observation) -> np.ndarray:
        """Return where a request pays, (B,) bool."""
        age = observation["context"][:, PAGE_AGE] * self.config.page_size
        may: np.ndarray = (observation["action_mask"][:, -1] != 0) & (age > self.least_age - 0.5)
        if self.gain is None or not may.any():
            return np.zeros_like(may)
        some = {key: part[may] for key, part in observation.items()}
        may[may] = self.gain(some) > self.price
        return may

    def explain(self, row: int) -> Explanation:
        """Return the values of the last call in one row."""
        n_pool = self.config.pool_size
        return Explanation(scores=self._last[row, :n_pool], matrix=self._last[row, n_pool:, None])


def candidates_of(observation: Observation, n_types: int) -> np.ndarray:
    """Return pool rows, then mix-in cards, as cards (B, N + M, F + T) float32."""
    pool, cards = observation["pool"], observation["cards"]
    types = np.zeros((*pool.shape[:2], n_types), np.float32)
    types[:, :, 0] = pool.any(axis=2)
    return np.concatenate([np.concatenate([pool, types], axis=2), cards], axis=1)


def prices_of(n_candidates: int, n_pool: int, margin: float) -> np.ndarray:
    """Return what each candidate must earn beyond a pool row, (N + M,): `margin` reward units for cards.

    Under the rules, a card now costs a card later.
    """
    return np.where(np.arange(n_candidates) < n_pool, 0.0, margin)


def best_of(value: np.ndarray, legal: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Return the candidate to place, (B,): the best pool row, or the best card if worth its price more.

    Args:
        value: (B, N + M) values of pool rows and cards, or (B, N).
        legal: like `value`, bool.
        prices: of :func:`prices_of`.
    """
    best: np.ndarray = np.where(legal, value - prices, -np.inf).argmax(axis=1)
    return best
