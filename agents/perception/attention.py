"""Attention blocks shared by the re-rankers; all of them ignore padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def attend(logits: Tensor, value: Tensor, present: Tensor) -> Tensor:
    """Average values (B, L, V) by the softmax of logits (B, Q, L) over present places (B, L): (B, Q, V).

    The result is zero where nothing is present.
    """
    lowest = torch.finfo(logits.dtype).min
    weight = logits.masked_fill(~present.unsqueeze(1), lowest).softmax(-1)
    return (weight * present.unsqueeze(1)) @ value


class AdditiveAttention(nn.Module):
    """Attention with logits v . tanh(W query + U key) (Bahdanau et al., ICLR'15).

    Args:
        query_size: width of a query.
        key_size: width of a key.
        hidden: width of the comparison.
    """

    def __init__(self, query_size: int, key_size: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_size, hidden)
        self.key = nn.Linear(key_size, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Compare queries (B, Q, .) with keys (B, L, .): (B, Q, L)."""
        return self.compare(query, self.key(key))

    def compare(self, query: Tensor, projected: Tensor) -> Tensor:
        """Like :meth:`logits`, with keys (B, L, hidden) already projected by `key`."""
        both = self.query(query).unsqueeze(2) + projected.unsqueeze(1)  # (B, Q, L, hidden)
        return self.score(torch.tanh(both)).squeeze(-1)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, present: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Average the values (B, L, V) that are present (B, L): (B, Q, V); zero if none is.

        `bias` (B, L) is added to the logits of the keys.
        """
        logits = self.logits(query, key)
        return attend(logits if bias is None else logits + bias.unsqueeze(1), value, present)


class DotProductAttention(nn.Module):
    """Attention with logits (W query) . (U key) / sqrt(hidden) + bias (Vaswani et al., NeurIPS'17).

    It is cheaper than :class:`AdditiveAttention`, since it needs no (B, Q, L, hidden) tensor.

    Args:
        query_size: width of a query.
        key_size: width of a key.
        hidden: width of the comparison.
    """

    def __init__(self, query_size: int, key_size: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_size, hidden)
        self.key = nn.Linear(key_size, hidden, bias=False)
        self.scale = hidden**-0.5

    def forward(self, query: Tensor, key: Tensor, value: Tensor, present: Tensor, bias: Tensor) -> Tensor:
        """Like :meth:`AdditiveAttention.forward`; `bias` (B, Q, L) is added to the logits."""
        logits = (self.query(query) * self.scale) @ self.key(key).transpose(1, 2)
        return attend(logits + bias, value, present)


class BehaviourAttention(nn.Module):
    """Candidates attend to a behaviour sequence: to similar cards and how they were received.

    The first part is CRBAN's attention (query: candidate, key: item code, value: item and action code), with
    a bias that falls with age, since a code carries no information about later events. A weighted mean tells
    how similar cards were received, but not how many there were, and hardly how similar. So the second part
    is unnormalised linear attention: `heads` sums over behaviour of (candidate . item) x weight of the value,
    decayed with age.

    Args:
        query_size: width of a candidate's query.
        hidden: width of item codes and of the hidden layer.
        value_size: width of the values.
        heads: number of sums, each with its own weights and decay.
    """

    def __init__(self, query_size: int, hidden: int, value_size: int, heads: int = 4) -> None:
        super().__init__()
        self.additive = AdditiveAttention(query_size, hidden, hidden)
        self.age = nn.Parameter(torch.tensor(0.1))  # logits lost per event
        self.query = nn.Linear(query_size, hidden, bias=False)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.weight = nn.Linear(value_size, heads)
        self.decay = nn.Parameter(torch.linspace(-3.0, -0.5, heads))  # log of the rate per event
        self.size = value_size + heads

    def forward(self, query: Tensor, items: Tensor, values: Tensor, present: Tensor) -> Tensor:
        """Attend to the behaviour.

        Args:
            query: (B, Q, query_size).
            items: (B, L, hidden) codes of the cards, oldest first.
            values: (B, L, value_size) codes of cards and actions.
            present: (B, L) bool; padding comes last.

        Returns:
            (B, Q, size); zero where there is no behaviour.
        """
        events = torch.arange(present.shape[1], device=present.device)
        age = (present.sum(1, keepdim=True) - 1 - events).clamp(min=0).to(values.dtype)  # (B, L)
        found = self.additive(query, items, values, present, -self.age * age)
        weight = self.weight(values) * torch.exp(-age.unsqueeze(-1) * self.decay.exp())
        weight = weight * present.unsqueeze(-1)  # (B, L, heads)
        memory = self.key(items).transpose(1, 2) @ weight  # (B, hidden, heads)
        return torch.cat((found, self.query(query) @ memory / items.shape[2] ** 0.5), -1)


class SelfAttentionBlock(nn.Module):
    """Multi-head self-attention and a feed-forward layer, each with a residual and layer normalisation.

    Args:
        size: width of an element.
        heads: number of attention heads; must divide `size`.
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(size, heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(size, 2 * size), nn.ReLU(), nn.Linear(2 * size, size))
        self.after_attention, self.after_feed_forward = nn.LayerNorm(size), nn.LayerNorm(size)

    def forward(self, elements: Tensor, present: Tensor) -> Tensor:
        """Encode elements (B, N, size) among those present (B, N); every row needs at least one."""
        attended, _ = self.attention(
            elements, elements, elements, key_padding_mask=~present, need_weights=False
        )
        elements = self.after_attention(elements + attended)
        return self.after_feed_forward(elements + self.feed_forward(elements))
