"""Values of cards at the slots ahead, predicted by ESAN."""

from __future__ import annotations

import numpy as np
import torch

from edgerec_gym.agents.insertion.esan import ESAN
from edgerec_gym.agents.insertion.values import SlotValues, slots_left
from edgerec_gym.agents.learning.tensors import PLAY_BATCH, to_tensors, torch_threads
from edgerec_gym.agents.perception.perception import candidate_cards
from edgerec_gym.policy import Observation


class NetworkValues:
    """Values predicted by ESAN.

    Args:
        network: the ESAN.
        threads: torch threads during prediction.
    """

    name = "esan"

    def __init__(self, network: ESAN, threads: int = 1) -> None:
        self.network, self.threads = network.eval(), threads

    def values(self, observation: Observation, order: np.ndarray, n_slots: int) -> SlotValues:
        """Predict the values; see :class:`~edgerec_gym.agents.insertion.values.ValueModel`."""
        with torch_threads(self.threads), torch.inference_mode():
            parts = [
                predict_values(
                    self.network,
                    {key: value[at : at + PLAY_BATCH] for key, value in observation.items()},
                    order[at : at + PLAY_BATCH],
                    n_slots,
                )
                for at in range(0, len(order), PLAY_BATCH)
            ]
        cards, goods, exposure = (torch.cat(part).double().numpy() for part in zip(*parts, strict=True))
        left = slots_left(observation, self.network.config)
        return SlotValues(cards, goods, exposure * (np.arange(n_slots) < left[:, None]))


def predict_values(
    network: ESAN, observation: Observation, order: np.ndarray, n_slots: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values of cards (B, M, T) and goods (B, T), and exposure (B, T); with gradients if they are enabled."""
    needed = n_slots + network.below
    listed = np.take_along_axis(observation["pool"], order[:, :needed, None], axis=1)
    goods = candidate_cards(torch.from_numpy(listed), network.config.n_types)
    goods = torch.nn.functional.pad(goods, (0, 0, 0, needed - goods.shape[1]))
    cards = torch.from_numpy(np.array(observation["cards"], np.float32, order="C"))
    found = network.predict(to_tensors(observation) | {"cards": cards}, goods, n_slots)
    return network.values(found.cards, True), network.values(found.goods, False), found.exposure
