"""LightGCN (He et al., SIGIR'20): embeddings of users and items, smoothed over the graph of choices."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


def normalised_adjacency(users: np.ndarray, items: np.ndarray, n_users: int, n_items: int) -> Tensor:
    """Return D^-1/2 A D^-1/2 of the bipartite graph, sparse rows (V + I, V + I) float32.

    Args:
        users: (E,) int64 user of each edge; an edge that appears twice counts once.
        items: (E,) int64 item of each edge.
        n_users: V; users are the first nodes.
        n_items: I.
    """
    edges = np.unique(np.stack([users, items + n_users]), axis=1)
    both = np.concatenate([edges, edges[::-1]], axis=1)
    degree = np.bincount(both[0], minlength=n_users + n_items).astype(np.float64)
    value = 1 / np.sqrt(degree[both[0]] * degree[both[1]])
    size = (n_users + n_items,) * 2
    indices, values = torch.from_numpy(both), torch.from_numpy(value.astype(np.float32))
    matrix = torch.sparse_coo_tensor(indices, values, size, check_invariants=True).coalesce()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return matrix.to_sparse_csr()  # multiplies six times as fast


class _Neighbours(torch.autograd.Function):
    """Product with a symmetric sparse matrix: its gradient needs no transposed copy."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, ctx.matrix @ gradients[0]


class LightGCN(nn.Module):
    """Users and items of a graph.

    A layer replaces every embedding by the normalised sum of its neighbours'; the result is the mean over all
    layers, the zeroth included. Scores are inner products.

    Args:
        adjacency: from :func:`normalised_adjacency`.
        n_users: V.
        dim: width of the embeddings.
        layers: number of propagations.
    """

    adjacency: Tensor

    def __init__(self, adjacency: Tensor, n_users: int, dim: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.n_users, self.layers = n_users, layers
        self.register_buffer("adjacency", adjacency, persistent=False)
        self.embedding = nn.Parameter(torch.randn(adjacency.shape[0], dim) * 0.1)

    def propagate(self) -> Tensor:
        """Return the embeddings of all nodes, users first: (V + I, dim)."""
        layer = total = self.embedding
        for _ in range(self.layers):
            layer = _Neighbours.apply(self.adjacency, layer)
            total = total + layer
        return total / (self.layers + 1)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the users (V, dim) and of the items (I, dim)."""
        nodes = self.propagate()
        return nodes[: self.n_users], nodes[self.n_users :]

    def loss(self, user: Tensor, positive: Tensor, negative: Tensor, penalty: float) -> Tensor:
        """Return the BPR loss of triples (B,) int64, with an L2 penalty of their own embeddings.

        Args:
            user: a user of an edge.
            positive: the item of that edge.
            negative: an item without an edge to the user.
            penalty: weight of half the squared norms, per triple.
        """
        users, items = self()
        margin = (users[user] * (items[positive] - items[negative])).sum(1)
        own = self.embedding[torch.cat((user, positive + self.n_users, negative + self.n_users))]
        return functional.softplus(-margin).mean() + penalty * 0.5 * own.square().sum() / len(user)


class EdgeSampler:
    """Draw triples for BPR: edges in random order, each with an item that its user did not choose.

    Args:
        users: (E,) int64.
        items: (E,) int64.
        n_items: I.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, n_items: int) -> None:
        code = np.unique(users.astype(np.int64) * n_items + items)
        self.code, self.n_items = code, n_items
        self.users, self.items = np.divmod(code, n_items)

    def __len__(self) -> int:
        return len(self.code)

    def epoch(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return users, chosen items and other items of all edges once, (E,) int64 each.

        A user who has chosen nearly everything may get a chosen item as negative: at most 20 draws are made.
        """
        order = rng.permutation(len(self.code))
        user, positive = self.users[order], self.items[order]
        negative = rng.integers(self.n_items, size=len(order))
        for _ in range(20):
            taken = self.is_edge(user, negative)
            if not taken.any():
                break
            negative[taken] = rng.integers(self.n_items, size=int(taken.sum()))
        return user, positive, negative

    def is_edge(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return whether users chose items, (...) bool."""
        wanted = users * self.n_items + items
        at = np.minimum(np.searchsorted(self.code, wanted), len(self.code) - 1)
        return np.asarray(self.code[at] == wanted)


def train_epoch(
    model: LightGCN,
    sampler: EdgeSampler,
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator,
    batch_size: int,
    penalty: float,
) -> float:
    """Train on every edge once; return the mean loss."""
    triples = [torch.from_numpy(part) for part in sampler.epoch(rng)]
    total = 0.0
    for at in range(0, len(sampler), batch_size):
        user, positive, negative = (part[at : at + batch_size] for part in triples)
        loss = model.loss(user, positive, negative, penalty)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(user)
    return total / len(sampler)
