"""Diversity on top of a pointwise score: maximal marginal relevance and determinantal point processes.

Both build a list greedily and treat the cards shown last as its beginning, so they also play slot by slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from edgerec_gym.agents.perception.live_interest import embedding_size
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Observation

BASE_CTR = 1
LEAST_VARIANCE = 1e-9  # below this, a card is a linear combination of earlier ones

Scorer = Callable[[Observation], np.ndarray]


def base_ctr_score(observation: Observation, item_columns: Sequence[str] = ()) -> np.ndarray:
    """Return the logit of the base ctr of every pool row, (B, N)."""
    d = embedding_size(observation, item_columns)
    ctr = np.clip(observation["pool"][:, :, d + BASE_CTR].astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(ctr / (1 - ctr))


def last_shown(observation: Observation, window: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings of the last cards placed, (B, window, d), and which are present, (B, window)."""
    cards = [observation["exposures"][:, :, :d]]
    if "screen" in observation:
        cards.append(observation["screen"][:, :, :d])
    rows = np.concatenate(cards, axis=1)
    present = (rows != 0).any(axis=2)
    order = np.argsort(present, axis=1, kind="stable")[:, max(0, rows.shape[1] - window) :]
    return np.take_along_axis(rows, order[..., None], 1), np.take_along_axis(present, order, 1)


class _Nearest:
    """Cosine between each card and the most similar card on the list; 0 while the list is empty."""

    def __init__(self, cards: np.ndarray) -> None:
        self.cards = cards  # (B, L, d)
        self.value = np.zeros(cards.shape[:2])

    def add(self, row: np.ndarray, present: np.ndarray) -> None:
        """Add card `row` (B,) to the list where `present` (B,)."""
        cosine = similarity(self.cards, row)
        self.value = np.where(present[:, None], np.maximum(self.value, cosine), self.value)


class _Volume:
    """Log of the volume that each card would add to the list (Chen et al., NeurIPS'18).

    The kernel is (1 + cosine) / 2; the list's Cholesky factor grows by one row per card.
    """

    def __init__(self, cards: np.ndarray) -> None:
        self.cards = cards  # (B, L, d)
        self.variance = np.ones(cards.shape[:2])
        self.factor = np.zeros((*cards.shape[:2], 0))  # (B, L, cards on the list)

    @property
    def value(self) -> np.ndarray:
        """Log of the added volume, (B, L)."""
        return np.log(self.variance)

    def add(self, row: np.ndarray, present: np.ndarray) -> None:
        """Add card `row` (B,) to the list where `present` (B,)."""
        kernel = (1 + similarity(self.cards, row)) / 2
        every = np.arange(len(row))
        known = (self.factor @ self.factor[every, row][:, :, None])[:, :, 0]
        step = (kernel - known) / np.sqrt(self.variance[every, row])[:, None] * present[:, None]
        self.factor = np.concatenate([self.factor, step[:, :, None]], axis=2)
        self.variance = np.maximum(self.variance - step**2, LEAST_VARIANCE)


def similarity(cards: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return cosines (B, L) of card `row` (B,) with all cards (B, L, d), which have unit length."""
    return (cards @ cards[np.arange(len(row)), row][:, :, None])[:, :, 0]


class _GreedyList:
    """Greedily maximise relevance x score + (1 - relevance) x weight x diversity."""

    name = ""
    memory: type[_Nearest] | type[_Volume]
    weight = 0.0
    stateless = True

    def __init__(
        self,
        relevance: float = 0.7,
        window: int = 4,
        scorer: Scorer | None = None,
        item_columns: Sequence[str] = (),
    ) -> None:
        if not 0 <= relevance <= 1:
            raise InputError(f"policy option relevance = {relevance!r} is out of range; allowed: 0 to 1")
        if int(window) != window or window < 0:
            raise InputError(f"policy option window = {window!r} must be a whole number of cards, at least 0")
        self.relevance, self.window, self.item_columns = relevance, int(window), item_columns
        self.scorer = partial(base_ctr_score, item_columns=item_columns) if scorer is None else scorer

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: the observation holds the cards shown last."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return the next legal pool row, (B,) int64."""
        return self.emit(observation, 1)[:, 0]

    def emit(self, observation: Observation, k: int) -> np.ndarray:
        """Return k distinct legal pool rows in order, (B, k) int64; -1 where the pool has fewer."""
        d = embedding_size(observation, self.item_columns)
        score = self.scorer(observation)
        left = observation["action_mask"][:, : score.shape[1]] > 0
        shown, present = last_shown(observation, self.window, d)
        before = shown.shape[1]
        pool = observation["pool"][:, :, : shown.shape[2]]
        memory = self.memory(np.concatenate([shown, pool], axis=1).astype(np.float64))
        for place in range(before):
            memory.add(np.full(len(score), place), present[:, place])
        rows, emitted = np.arange(len(score)), []
        for _ in range(k):
            value = self.relevance * score + (1 - self.relevance) * self.weight * memory.value[:, before:]
            best = np.where(left, value, -np.inf).argmax(axis=1)
            there = np.asarray(left.any(axis=1))
            emitted.append(np.where(there, best, -1))
            left[rows, best] = False
            memory.add(before + best, there)
        return np.stack(emitted, axis=1)


class MaximalMarginalRelevance(_GreedyList):
    """Score minus similarity to the most similar card on the list (Carbonell and Goldstein, SIGIR'98).

    Args:
        relevance: lambda, in 0..1; 1 uses the score alone.
        window: how many of the last cards shown count as the list's beginning.
        scorer: observation -> (B, N); default: the logit of the base ctr.
        item_columns: names of the columns of the feed's item table (`config.item_columns`).
    """

    name, memory, weight = "mmr", _Nearest, -1.0


class DeterminantalPointProcess(_GreedyList):
    """Greedy maximum a posteriori list of a determinantal point process (Chen et al., NeurIPS'18).

    Args:
        relevance: theta, in 0..1; 1 uses the score alone.
        window: how many of the last cards shown count as the list's beginning.
        scorer: observation -> (B, N), in logits; default: the logit of the base ctr.
        item_columns: names of the columns of the feed's item table (`config.item_columns`).
    """

    name, memory, weight = "dpp", _Volume, 1.0
