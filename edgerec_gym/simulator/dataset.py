"""Batches of logged sessions, padded to tensors, for training users."""

from __future__ import annotations

import numpy as np

from edgerec_gym.answers import FOCUSED, WINDOW
from edgerec_gym.errors import MissingExtraError
from edgerec_gym.logs.sessions import LoggedSessions

try:
    import torch
except ImportError:
    raise MissingExtraError("fitting users", "train") from None

from edgerec_gym.simulator.inputs import SessionBatch


def padded(sessions: LoggedSessions, index: np.ndarray, weight: np.ndarray) -> SessionBatch:
    """Pad the sessions `index` (B,) with their weights (B,) to tensors."""
    length = sessions.answered[index]
    at = np.arange(length.max())
    rows = np.minimum(sessions.starts[index, None] + at, len(sessions.item) - 1)
    valid = at < length[:, None]
    placed = np.arange(length.max() + WINDOW - 1) - FOCUSED
    card_rows = sessions.starts[index, None] + placed
    shown = (placed >= 0) & (card_rows < sessions.starts[index + 1, None])
    actions = np.concatenate([sessions.actions[rows], sessions.responses[rows]], axis=2)
    return SessionBatch(
        torch.from_numpy(sessions.cards(np.where(shown, card_rows, 0)) * shown[:, :, None]),
        torch.from_numpy(sessions.context[rows] * valid[:, :, None]),
        torch.from_numpy(sessions.user[index]),
        torch.from_numpy(actions * valid[:, :, None]),
        torch.from_numpy(length),
        torch.from_numpy(weight.astype(np.float32)),
        torch.from_numpy(sessions.summary[rows] * valid[:, :, None]),
    )


def plan_batches(length: np.ndarray, slots: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Group sessions of similar length into batches of at most `slots` padded slots, in random order.

    Args:
        length: (S,) answered slots; sessions of length 0 are left out.
        slots: maximum number of padded slots in a batch (a longer session is a batch of its own).
        rng: draws the grouping and the order.

    Returns:
        Arrays of session indices.
    """
    order = np.flatnonzero(length > 0)
    order = order[np.argsort(length[order] * rng.uniform(0.9, 1.1, len(order)))]
    batches, start = [], 0
    while start < len(order):
        longest, stop = 0, start
        while stop < len(order):
            longest = max(longest, int(length[order[stop]]))
            if stop > start and longest * (stop + 1 - start) > slots:
                break
            stop += 1
        batches.append(order[start:stop])
        start = stop
    return [batches[k] for k in rng.permutation(len(batches))]
