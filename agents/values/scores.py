"""Values of candidates from the value network, as :class:`ValuePolicy` asks for them."""

from __future__ import annotations

import numpy as np
import torch

from edgerec_gym.agents.learning.tensors import PLAY_BATCH, to_tensors, torch_threads
from edgerec_gym.agents.values.network import ValueNetwork
from edgerec_gym.policy import Observation


class ValueScore:
    """Value candidates at the next slot.

    Args:
        network: the value network.
        threads: torch threads.
    """

    def __init__(self, network: ValueNetwork, threads: int = 1) -> None:
        self.network, self.threads = network.eval(), threads

    def __call__(self, observation: Observation, cards: np.ndarray) -> np.ndarray:
        """Value cards (B, n, F + T): (B, n) float32, far below all others where there is no card."""
        with torch_threads(self.threads), torch.inference_mode():
            parts = [
                self.network.values(
                    to_tensors(observation, slice(at, at + PLAY_BATCH)),
                    torch.from_numpy(cards[at : at + PLAY_BATCH]),
                )
                for at in range(0, len(cards), PLAY_BATCH)
            ]
        return torch.cat(parts).numpy()
