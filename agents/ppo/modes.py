"""The action that a policy over groups of actions plays; without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def best_of_groups(probabilities: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Return the most probable action of the most probable group, (B,) int64.

    Args:
        probabilities: (B, A) of the actions, group by group.
        sizes: number of actions of each group.
    """
    groups = np.split(probabilities, np.cumsum(sizes)[:-1], axis=1)
    starts = np.cumsum([0, *sizes[:-1]])
    best = np.stack([group.argmax(1) + start for group, start in zip(groups, starts, strict=True)], 1)
    chosen = np.stack([group.sum(1) for group in groups], 1).argmax(1)
    return np.take_along_axis(best, chosen[:, None], 1)[:, 0].astype(np.int64)


def legal_probabilities(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the probabilities (B, A) of legal actions (mask (B, A), 0 = illegal) by their logits."""
    shifted = np.where(mask != 0, logits, -np.inf)
    weight = np.exp(shifted - shifted.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)
