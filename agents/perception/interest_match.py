"""Match of candidates with the interest shown by behaviour, built in rather than learned from clicks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgerec_gym.agents.perception.perception import action_columns, compact
from edgerec_gym.config import FeedConfig

MATCH_SCALE = 3.0  # scales products of interests and embeddings to order 1


class InterestMatch(nn.Module):
    """Match of candidates with the interest shown by behaviour, in the space of the shipped embeddings.

    The interest is a sum of the embeddings of past cards, weighted by what the user did with them, decayed
    with the number of events since, and squashed to a norm below 1. The match is its product with the
    candidate. This is linear attention that starts in the form of the hand-made rule of
    :class:`~edgerec_gym.agents.baselines.DeviceGreedy`: that similar embeddings mean similar cards need not
    be learned from clicks, which are scarce.

    Args:
        embedding_size: d.
        n_action: number of action columns.
        heads: number of interests, each with its own weights and decay.
    """

    def __init__(self, embedding_size: int, n_action: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.metric = nn.Parameter(torch.eye(embedding_size))
        self.weight = nn.Linear(n_action, heads)
        self.decay = nn.Parameter(torch.linspace(-3.5, -1.0, heads))  # log of the rate per event

    def forward(self, candidates: Tensor, items: Tensor, actions: Tensor, present: Tensor) -> Tensor:
        """Match candidates with behaviour.

        Args:
            candidates: (B, K, d) embeddings.
            items: (B, L, d) embeddings of past cards, oldest first.
            actions: (B, L, A) what the user did with them.
            present: (B, L) bool; padding comes last.

        Returns:
            (B, K, heads) of order 1; zero where there is no behaviour.
        """
        events = torch.arange(present.shape[1], device=present.device)
        age = (present.sum(1, keepdim=True) - 1 - events).clamp(min=0).to(items.dtype)  # (B, L)
        weight = self.weight(actions) * torch.exp(-age.unsqueeze(-1) * self.decay.exp())
        interest = items.transpose(1, 2) @ (weight * present.unsqueeze(-1))  # (B, d, heads)
        # The square root has no gradient at zero.
        length = (interest.square().sum(1, keepdim=True) + 1e-12).sqrt()
        return MATCH_SCALE * candidates @ self.metric @ (interest / (1 + length))


class BehaviourMatch(nn.ModuleDict):
    """Match with the interests from each history of the observation.

    Args:
        config: gives the sizes.
        sequences: histories to read; without any, the module is empty and must not be called.
        actions: whether to read the user's actions, not only the cards.
    """

    def __init__(self, config: FeedConfig, sequences: Sequence[str], actions: bool = True) -> None:
        columns = action_columns(config)
        super().__init__({name: InterestMatch(config.embedding_size, columns[name]) for name in sequences})
        self.n_actions = {name: columns[name] for name in sequences}
        self.embedding_size, self.n_features = config.embedding_size, config.n_item_features
        self.actions = actions

    @property
    def size(self) -> int:
        """Number of columns of the result."""
        return sum(match.heads for match in self.values() if isinstance(match, InterestMatch))

    def forward(self, observation: dict[str, Tensor], cards: Tensor) -> Tensor:
        """Match cards (B, K, at least d), embeddings first: (B, K, size)."""
        d, parts = self.embedding_size, []
        for name, match in self.items():
            history, present = compact(observation[name])
            actions = history[..., -self.n_actions[name] :]
            known = actions if self.actions else torch.zeros_like(actions)
            parts.append(match(cards[..., :d], history[..., :d], known, present))
        return torch.cat(parts, -1)
