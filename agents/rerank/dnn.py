"""The pointwise baseline: a network that scores each candidate independently."""

from __future__ import annotations

from torch import Tensor, nn

from edgerec_gym.agents.learning.tensors import TensorObservation
from edgerec_gym.agents.rerank.losses import log_loss
from edgerec_gym.agents.rerank.reranker import ListInputs, ListScorer, RerankerConfig
from edgerec_gym.config import FeedConfig


class DNN(ListScorer):
    """Two hidden layers over a candidate, the user and the context, without list or behaviour."""

    objective = staticmethod(log_loss)

    def __init__(self, config: FeedConfig, settings: RerankerConfig) -> None:
        super().__init__(config, settings)
        hidden = settings.hidden
        self.inputs = ListInputs(config)
        self.network = nn.Sequential(
            nn.Linear(self.inputs.size, 2 * hidden),
            nn.ReLU(),
            nn.Linear(2 * hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )

    def logits(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Score pool rows (B, K): (B, K)."""
        return self.network(self.inputs(observation, rows)).squeeze(-1)
