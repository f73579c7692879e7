"""DeepFM (Guo et al., IJCAI'17): a factorisation machine and a deep network over the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def second_order(fields: Tensor) -> Tensor:
    """Return the sum of inner products of all pairs of field vectors (..., M, k): (...).

    It takes half the difference of the square of the sum and the sum of squares (Rendle, ICDM'10).
    """
    return 0.5 * (fields.sum(-2).square() - fields.square().sum(-2)).sum(-1)


class DeepNetwork(nn.Module):
    """The deep part: a network over the concatenated field vectors.

    Args:
        size: width of the concatenation.
        hidden: widths of the hidden layers.
        dropout: share of activations dropped in training.
    """

    def __init__(self, size: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(dropout)]
            size = width
        self.layers, self.output = nn.Sequential(*layers), nn.Linear(size, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (...) and the last hidden layer (..., h) of inputs (..., size)."""
        hidden = self.layers(x)
        return self.output(hidden).squeeze(-1), hidden


class DeepFM(nn.Module):
    """Predict a click from categorical fields.

    Args:
        sizes: number of values of each of M fields.
        dim: k, width of a field's embedding.
        hidden: widths of the deep network.
        dropout: share of its activations dropped in training.
    """

    offsets: Tensor

    def __init__(
        self, sizes: Sequence[int], dim: int = 10, hidden: Sequence[int] = (128, 128), dropout: float = 0.2
    ) -> None:
        super().__init__()
        first = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("offsets", first, persistent=False)
        self.first_order = nn.Embedding(sum(sizes), 1)
        self.embedding = nn.Embedding(sum(sizes), dim)
        nn.init.zeros_(self.first_order.weight)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.bias = nn.Parameter(torch.zeros(()))
        self.deep = DeepNetwork(len(sizes) * dim, hidden, dropout)

    def forward(self, values: Tensor) -> Tensor:
        """Return logits (B,) of values (B, M, W) int64 and -1 where a field has fewer than W values.

        A field with several values has the mean of their embeddings.
        """
        given = (values >= 0).unsqueeze(-1)
        at = values.clamp(min=0) + self.offsets[:, None]
        count = given.sum(2).clamp(min=1)
        fields = (self.embedding(at) * given).sum(2) / count  # (B, M, k)
        linear = ((self.first_order(at) * given).sum(2) / count).sum((1, 2))
        deep, _ = self.deep(fields.flatten(1))
        return self.bias + linear + second_order(fields) + deep
