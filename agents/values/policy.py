"""Play the best value: the order, and in EdgeFeed-v0 also which cards to insert."""

from __future__ import annotations

import numpy as np
import torch

from edgerec_gym.agents.learning.tensors import PLAY_BATCH, to_tensors, torch_threads
from edgerec_gym.agents.values.network import ValueNetwork
from edgerec_gym.agents.values.play import best_of, candidates_of
from edgerec_gym.policy import Explanation, Observation, check_observation


class ValuePolicy:
    """Place the best pool row, or the best legal card if it is worth more by a margin; request nothing.

    Args:
        name: name of the policy.
        network: values pool rows and cards.
        margin: reward that a card must earn beyond the best pool row.
        threads: torch threads while acting.
    """

    stateless = True

    def __init__(self, name: str, network: ValueNetwork, margin: float, threads: int = 1) -> None:
        self.name, self.network, self.margin, self.threads = name, network.eval(), margin, threads
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
        return best_of(self._last, legal, self.network.config.pool_size, self.margin)

    def explain(self, row: int) -> Explanation:
        """Return the values of the last call in one row."""
        n_pool = self.network.config.pool_size
        return Explanation(scores=self._last[row, :n_pool], matrix=self._last[row, n_pool:, None])
