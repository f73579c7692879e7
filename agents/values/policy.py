"""Play the best value: the order, and in EdgeFeed-v0 also which cards to insert, and requests."""

from __future__ import annotations

import numpy as np
import torch

from edgerec_gym.agents.learning.tensors import PLAY_BATCH, to_tensors, torch_threads
from edgerec_gym.agents.requests.scores import Score
from edgerec_gym.agents.rerank.reranker import PAGE_AGE
from edgerec_gym.agents.values.network import ValueNetwork
from edgerec_gym.agents.values.play import best_of, candidates_of, prices_of
from edgerec_gym.policy import Explanation, Observation, check_observation


class ValuePolicy:
    """Place the best pool row, or the best legal card if that is worth a margin more; request pages that pay.

    A request places the cloud's next row, not the best one.

    Args:
        name: name of the policy.
        network: values pool rows and cards.
        margin: reward that a card must earn beyond the best pool row.
        gain: estimates what a request gains before its cost, from observations; None requests nothing.
        price: gain that pays a request, in reward units.
        least_age: slots since the page arrived before the next request.
        threads: torch threads while acting.
    """

    stateless = True

    def __init__(
        self,
        name: str,
        network: ValueNetwork,
        margin: float,
        gain: Score | None = None,
        price: float = 0.0,
        least_age: int = 0,
        threads: int = 1,
    ) -> None:
        self.name, self.network, self.margin, self.threads = name, network.eval(), margin, threads
        self.gain, self.price, self.least_age = gain, price, least_age
        self._last = np.zeros((0, 0), np.float32)  # values of pool rows and cards

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: the policy has no state."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64 actions of EdgeFeed-v0, legal under the mask."""
        check_observation(observation)
        cards = candidates_of(observation, self.network.config.n_types)
        with torch_threads(self.threads), torch.inference_mode():
            parts = [
                self.network.values(
                    to_tensors(observation, slice(at, at + PLAY_BATCH)),
                    torch.from_numpy(cards[at : at + PLAY_BATCH]),
                )
                for at in range(0, len(cards), PLAY_BATCH)
            ]
        self._last = torch.cat(parts).numpy()
        legal = observation["action_mask"][:, : cards.shape[1]] != 0
        prices = prices_of(cards.shape[1], self.network.config.pool_size, self.margin)
        best = best_of(self._last, legal, prices)
        return np.where(self._requests(observation), observation["action_mask"].shape[1] - 1, best)

    def _requests(self, observation: Observation) -> np.ndarray:
        """Return where a request pays, (B,) bool."""
        age = observation["context"][:, PAGE_AGE] * self.network.config.page_size
        may: np.ndarray = (observation["action_mask"][:, -1] != 0) & (age > self.least_age - 0.5)
        if self.gain is None or not may.any():
            return np.zeros_like(may)
        some = {key: part[may] for key, part in observation.items()}
        may[may] = self.gain(some) > self.price
        return may

    def explain(self, row: int) -> Explanation:
        """Return the values of the last call in one row."""
        n_pool = self.network.config.pool_size
        return Explanation(scores=self._last[row, :n_pool], matrix=self._last[row, n_pool:, None])
