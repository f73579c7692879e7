"""SASRec (Kang & McAuley, ICDM'18): causal self-attention over what a user did, oldest first."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class CausalBlock(nn.Module):
    """Self-attention that sees no later place, then a point-wise feed-forward layer, both with residuals.

    The normalisation comes before each part, as in the paper.

    Args:
        dim: width of a place.
        heads: number of attention heads; must divide `dim`.
        dropout: share of activations dropped in training.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention, self.before_feed_forward = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Encode places (B, L, dim); a place does not see those where `hidden` (B, L, L) bool is True."""
        normed = self.before_attention(x)
        query, key, value = (self._split(part(normed)) for part in (self.query, self.key, self.value))
        logits = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5)  # (B, heads, L, L)
        weight = logits.masked_fill(hidden.unsqueeze(1), torch.finfo(logits.dtype).min).softmax(-1)
        weight = functional.dropout(weight, self.dropout, self.training)
        found = (weight @ value).transpose(1, 2).flatten(2)
        x = x + functional.dropout(self.output(found), self.dropout, self.training)
        return x + self.feed_forward(self.before_feed_forward(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, dim / heads)


class CausalEncoder(nn.Module):
    """A stack of :class:`CausalBlock` with learned positions.

    Args:
        length: L, most places.
        dim: width.
        blocks: number of blocks.
        heads: of each block.
        dropout: share of activations dropped in training.
    """

    def __init__(self, length: int, dim: int, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.length, self.dropout = length, dropout
        self.position = nn.Parameter(torch.randn(length, dim) * 0.02)
        self.blocks = nn.ModuleList(CausalBlock(dim, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)

    def forward(self, places: Tensor, present: Tensor) -> Tensor:
        """Encode places (B, L', dim), L' <= L, of which some are `present` (B, L') bool: (B, L', dim).

        A place sees itself and earlier present ones. Absent places have arbitrary codes.
        """
        size = places.shape[1]
        place = torch.arange(size, device=places.device)
        later, other = place > place[:, None], place != place[:, None]
        hidden = later | (~present.unsqueeze(1) & other)
        x = functional.dropout(places + self.position[:size], self.dropout, self.training)
        for block in self.blocks:
            x = block(x, hidden)
        return self.norm(x)


class SASRec(nn.Module):
    """Predict the next item of a sequence.

    Args:
        n_items: I; item 0 is padding, items are 1..I.
        length: most items read, the last ones.
        dim: width of the embeddings.
        blocks: number of self-attention blocks.
        heads: of each block.
        dropout: share of activations dropped in training.
    """

    def __init__(
        self,
        n_items: int,
        length: int = 50,
        dim: int = 64,
        blocks: int = 2,
        heads: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.items = nn.Embedding(n_items + 1, dim, padding_idx=0)
        nn.init.normal_(self.items.weight, std=0.02)
        with torch.no_grad():
            self.items.weight[0] = 0
        self.encoder = CausalEncoder(length, dim, blocks, heads, dropout)

    def forward(self, sequence: Tensor) -> Tensor:
        """Return the state after each item of sequences (B, L) int64, padded with 0 in front: (B, L, dim)."""
        return self.encoder(self.items(sequence) * self.dim**0.5, sequence > 0)

    def loss(self, sequence: Tensor, following: Tensor) -> Tensor:
        """Return the mean cross-entropy of the items (B, L) that follow each place; 0 is none.

        The paper's loss takes one drawn negative per place. Cross-entropy over the catalogue is what
        present implementations use; with it SASRec is the better model (Klenitskiy & Vasilev, RecSys'23).
        """
        wanted = following > 0
        logits = self(sequence)[wanted] @ self.items.weight[1:].T
        return functional.cross_entropy(logits, following[wanted] - 1)

    def score(self, sequence: Tensor) -> Tensor:
        """Return scores of all items as the next one, (B, I)."""
        return self(sequence)[:, -1] @ self.items.weight[1:].T
