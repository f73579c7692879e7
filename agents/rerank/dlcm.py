"""Deep listwise context model (DLCM; Ai et al., SIGIR'18)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgerec_gym.agents.learning.tensors import TensorObservation
from edgerec_gym.agents.perception.perception import take, to_front
from edgerec_gym.agents.rerank.losses import attention_rank_loss
from edgerec_gym.agents.rerank.reranker import ListInputs, ListScorer, RerankerConfig, pool_present
from edgerec_gym.config import FeedConfig


class DLCM(ListScorer):
    """A GRU reads the list from bottom to top; its last state is the local context of every candidate.

    score = w . (norm(h_i) * tanh(W s)), where h_i is the GRU's output at the candidate and s its last state.
    """

    objective, needs_click = staticmethod(attention_rank_loss), True

    def __init__(self, config: FeedConfig, settings: RerankerConfig) -> None:
        super().__init__(config, settings)
        hidden = settings.hidden
        self.inputs = ListInputs(config)
        self.gru = nn.GRU(self.inputs.size, hidden, settings.layers, batch_first=True)
        self.norm = nn.LayerNorm(hidden)
        self.context = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, 1, bias=False)

    def logits(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Score pool rows (B, K): (B, K)."""
        present = pool_present(observation).flip(1)  # the top of the list comes last
        order, count = to_front(present)
        outputs = self.gru(take(self.inputs(observation).flip(1), order))[0]
        state = take(outputs, (count - 1).clamp(min=0).unsqueeze(1))  # (B, 1, H)
        outputs = take(outputs, order.argsort(1)).flip(1)
        product = self.norm(take(outputs, rows)) * torch.tanh(self.context(state))
        return self.output(product).squeeze(-1)
