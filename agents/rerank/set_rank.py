"""SetRank (Pang et al., SIGIR'20): a permutation-equivariant re-ranker."""

from __future__ import annotations

from torch import Tensor, nn

from edgerec_gym.agents.learning.tensors import TensorObservation
from edgerec_gym.agents.perception.attention import SelfAttentionBlock
from edgerec_gym.agents.perception.perception import take
from edgerec_gym.agents.rerank.losses import list_softmax_loss
from edgerec_gym.agents.rerank.reranker import ListInputs, ListScorer, RerankerConfig, pool_present, safe_mask
from edgerec_gym.config import FeedConfig


class SetRank(ListScorer):
    """Self-attention over the candidates as a set: permuting the pool only permutes the scores.

    Its loss is the cross-entropy between label attention and score attention; with binary clicks it equals
    the list softmax loss.
    """

    objective, needs_click = staticmethod(list_softmax_loss), True

    def __init__(self, config: FeedConfig, settings: RerankerConfig) -> None:
        super().__init__(config, settings)
        hidden = settings.hidden
        self.inputs = ListInputs(config)
        self.embed = nn.Linear(self.inputs.size, hidden)
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(hidden, settings.heads) for _ in range(settings.layers)
        )
        self.output = nn.Linear(hidden, 1)

    def logits(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Score pool rows (B, K): (B, K)."""
        present = safe_mask(pool_present(observation))
        codes = self.embed(self.inputs(observation))
        for block in self.blocks:
            codes = block(codes, present)
        return self.output(take(codes, rows)).squeeze(-1)
