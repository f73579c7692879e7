"""Context-aware re-ranking with behaviour attention networks (CRBAN; Gong et al., EdgeRec, CIKM'20)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgerec_gym.agents.learning.tensors import TensorObservation
from edgerec_gym.agents.perception.attention import AdditiveAttention
from edgerec_gym.agents.perception.interest_match import BehaviourMatch
from edgerec_gym.agents.perception.perception import (
    SEQUENCES,
    Perception,
    candidate_cards,
    card_features,
    take,
    to_front,
)
from edgerec_gym.agents.rerank.losses import log_loss
from edgerec_gym.agents.rerank.reranker import ListInputs, ListScorer, RerankerConfig, pool_present
from edgerec_gym.config import FeedConfig

GROUP = 64  # sessions encoded together


class CandidateEncoder(nn.Module):
    """A GRU over the candidates in the cloud's order.

    Args:
        config: gives the sizes.
        hidden: H.
        layers: layers of the GRU.
    """

    def __init__(self, config: FeedConfig, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding_size, self.n_types = config.embedding_size, config.n_types
        self.gru = nn.GRU(config.n_item_features + config.n_types, hidden, layers, batch_first=True)

    def forward(self, observation: TensorObservation) -> tuple[Tensor, Tensor]:
        """Return codes (B, N, H) of the pool rows, and the final state (B, H): the local ranking context.

        Used-up rows are skipped; their codes are arbitrary.
        """
        pool = observation["pool"]
        cards = card_features(candidate_cards(pool, self.n_types), self.embedding_size)
        order, count = to_front(pool_present(observation))
        codes = self.gru(take(cards, order))[0]
        last = (count - 1).clamp(min=0).unsqueeze(1)
        final = take(codes, last)[:, 0] * (count > 0).unsqueeze(1)
        return take(codes, order.argsort(1)), final


class CRBAN(ListScorer):
    """Each candidate attends to the user's behaviour, with the list as context.

    Query: the candidate's code. Key: the code of a card in the history. Value: the codes of that card and of
    the user's actions on it. So a candidate finds similar cards and reads how they were received. The
    settings `exposures`, `page_views` and `actions` ablate parts, as in the paper's Table 2. The setting
    `match`, which is not in the paper, adds the match with the interest shown by behaviour
    (:class:`~edgerec_gym.agents.perception.interest_match.InterestMatch`).
    """

    objective = staticmethod(log_loss)

    def __init__(self, config: FeedConfig, settings: RerankerConfig) -> None:
        super().__init__(config, settings)
        hidden = settings.hidden
        used = tuple(name for name in SEQUENCES if getattr(settings, name))
        self.perception = Perception(config, hidden, settings.layers, used, bool(settings.actions))
        self.candidates = CandidateEncoder(config, hidden, settings.layers)
        self.attention = nn.ModuleDict({name: AdditiveAttention(hidden, hidden, hidden) for name in used})
        self.inputs = ListInputs(config) if settings.raw_inputs else None
        width = len(used) * hidden * (2 if settings.actions else 1) + 2 * hidden
        width += 0 if self.inputs is None else self.inputs.size
        self.match = BehaviourMatch(config, used if settings.match else (), bool(settings.actions))
        width += self.match.size
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def logits(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Score pool rows (B, K): (B, K)."""
        codes, final = self.candidates(observation)
        query = take(codes, rows)  # (B, K, H)
        parts = [self._attended(name, observation[name], query) for name in self.perception.sequences]
        parts += [query, final.unsqueeze(1).expand(-1, rows.shape[1], -1)]
        if self.inputs is not None:
            parts.append(self.inputs(observation, rows))
        if self.match:
            parts.append(self.match(observation, take(observation["pool"], rows)))
        return self.head(torch.cat(parts, -1)).squeeze(-1)

    def _attended(self, name: str, history: Tensor, query: Tensor) -> Tensor:
        """Attend from queries (B, K, H) to a history (B, L, W): (B, K, V).

        Sessions of similar length are encoded together, since padding costs as much time as behaviour.
        """
        order = (history != 0).any(-1).sum(1).argsort()
        parts = []
        for group in order.split(GROUP):
            found = self.perception.encoder(name)(history[group])
            parts.append(self.attention[name](query[group], found.items, found.values, found.present))
        return torch.cat(parts)[order.argsort()]
