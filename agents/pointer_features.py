"""What the pointer policy knows of candidates: how the history is read, and how a candidate is scored.

The behaviour history is encoded by :class:`~edgerec_gym.agents.perception.Perception` and read in three ways.
*Interest vectors* are sums of the embeddings in the history, weighted by how each card was received; a
candidate's match with them is the residual on which everything else builds. *Attention* lets a candidate look
up the cards like it and read how they were received. The *newest codes* are the state of the session.
"""

from __future__ import annotations

from edgerec_gym.errors import MissingExtraError

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    raise MissingExtraError("PointerPolicy", "train") from None

from edgerec_gym.agents.attention import DotProductAttention
from edgerec_gym.agents.perception import BehaviourCodes, card_features
from edgerec_gym.spaces import N_SCALARS, ObservationSizes

MATCH_SCALE = 10.0  # on matches with the interest vectors: a larger unit learns faster
SHARPNESS = 3.0  # logits per unit of likeness, by which attention starts to look up similar cards
DWELL_CENTRE = 0.4  # looks shorter than this (of 0..1) speak against the item
EVIDENCE = {"exposures": (1.0, -DWELL_CENTRE), "page_views": (2.0, 1.0 - 2 * DWELL_CENTRE)}


class BehaviourReader(nn.Module):
    """What the policy reads from one encoded sequence.

    A row is described by its actions, type, scalars and age and by its codes. Its weight in an interest
    vector is read from that, plus a linear part that starts as the cloud's own evidence:
    `offset + slope * duration`, decayed with age, each head at its own rate. Attention is CRBAN's (Gong et
    al., EdgeRec, CIKM'20; query: candidate, key: code of a card, value: cards and actions), by dot products;
    the likeness of embeddings is its residual, so it finds similar cards from the start.

    Args:
        sizes: of the observation.
        n_columns: columns of actions, the slot included.
        codes: H of the perception.
        heads: interest vectors.
        hidden: width of a row's description.
        slope: evidence of a duration.
        offset: evidence of an event.
    """

    def __init__(
        self, sizes: ObservationSizes, n_columns: int, codes: int, heads: int, hidden: int, slope: float,
        offset: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.d, self.n_types = sizes.embedding_size, sizes.n_types
        n_card = sizes.n_item_features + sizes.n_types
        n_actions = n_columns - 1  # the last column is the slot
        n_inputs = n_card - self.d + n_actions + 2 + 2 * codes
        self.rows = nn.Sequential(nn.Linear(n_inputs, hidden), nn.ReLU())
        self.weights = nn.Linear(hidden, heads)
        self.evidence = nn.Linear(n_actions, heads)
        self.decay = nn.Parameter(torch.linspace(1.5, 3.0, heads))  # log of the rate per max_slots
        self.attention = DotProductAttention(n_card, codes, hidden)
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))
        nn.init.orthogonal_(self.weights.weight, 0.1)
        for parameter in (self.weights.bias, self.evidence.weight):
            nn.init.zeros_(parameter)
        nn.init.constant_(self.evidence.bias, offset)
        with torch.no_grad():
            self.evidence.weight[:, 0] = slope

    def forward(self, rows: Tensor, codes: BehaviourCodes, slot: Tensor) -> Tensor:
        """Describe rows (B, K, W) with their codes; slot (B, 1) is now: (B, K, hidden), 0 for padding."""
        n_card = self.d + N_SCALARS + self.n_types
        cards = card_features(rows[..., :n_card], self.d)
        age = slot.unsqueeze(1) - rows[..., -1:]
        inputs = (cards[..., self.d :], rows[..., n_card:-1], age, torch.exp(-10 * age), codes.values)
        return self.rows(torch.cat(inputs, -1)) * codes.present.unsqueeze(-1)

    def interests(self, rows: Tensor, described: Tensor, slot: Tensor) -> Tensor:
        """Interest vectors (B, heads, d) from rows and their descriptions; padding has no embedding."""
        age = slot.unsqueeze(1) - rows[..., -1:]
        actions = rows[..., self.d + N_SCALARS + self.n_types : -1]
        weights = self.evidence(actions) + self.weights(described)
        weights = weights * torch.exp(-age * self.decay.exp())
        interests = weights.transpose(1, 2) @ rows[..., : self.d]
        # Little evidence counts little, much evidence counts as a direction.
        return MATCH_SCALE * interests / (1 + interests.square().sum(-1, keepdim=True).add(1e-6).sqrt())

    def attend(self, candidates: Tensor, rows: Tensor, codes: BehaviourCodes, described: Tensor) -> Tensor:
        """Descriptions of the rows that candidates (B, N, F + T) resemble, (B, N, hidden)."""
        alike = candidates[..., : self.d] @ rows[..., : self.d].transpose(1, 2)  # (B, N, K)
        return self.attention(candidates, codes.items, described, codes.present, bias=self.sharpness * alike)


class Scorer(nn.Module):
    """Score of every candidate (B, n, features) in a state (B, hidden): (B, n).

    A linear part plus a small network; it starts as the linear part with the weights `prior` (features,).
    """

    def __init__(self, prior: Tensor, hidden: int) -> None:
        super().__init__()
        n_features = len(prior)
        self.linear = nn.Linear(n_features, 1)
        self.candidate = nn.Linear(n_features, hidden)
        self.state = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, 1, bias=False)
        nn.init.orthogonal_(self.out.weight, 0.01)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.weight.copy_(prior)

    def forward(self, candidates: Tensor, state: Tensor) -> Tensor:
        """Score."""
        hidden = torch.relu(self.candidate(candidates) + self.state(state).unsqueeze(1))
        return (self.linear(candidates) + self.out(hidden)).squeeze(-1)
