"""GAUC: how well a re-ranker orders the cards of each moment (EdgeRec, CIKM'20, section 5.1)."""

from __future__ import annotations

import numpy as np

CHUNK = 20_000  # moments compared at once, to bound memory


def request_auc(score: np.ndarray, click: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUC of each re-ranking moment.

    Args:
        score: (R, K) scores of the cards; ties count half.
        click: (R, K) 0 or 1.
        shown: (R, K) bool, the cards that count.

    Returns:
        AUC (R,) float64, and impressions (R,) float64: the number of shown cards of a moment with both a
        click and a miss, else 0 (its AUC is then 0 and must not count).
    """
    parts = [_auc(*(a[at : at + CHUNK] for a in (score, click, shown))) for at in range(0, len(score), CHUNK)]
    if not parts:
        return np.zeros(0), np.zeros(0)
    return np.concatenate([auc for auc, _ in parts]), np.concatenate([n for _, n in parts])


def _auc(score: np.ndarray, click: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hit, miss = shown & (click > 0), shown & (click == 0)
    pairs = hit[:, :, None] & miss[:, None, :]  # (R, K, K)
    above = (score[:, :, None] > score[:, None, :]) + 0.5 * (score[:, :, None] == score[:, None, :])
    count = pairs.sum((1, 2))
    auc = (above * pairs).sum((1, 2)) / np.maximum(count, 1)
    return auc, np.where(count > 0, shown.sum(1), 0).astype(np.float64)


def gauc(score: np.ndarray, click: np.ndarray, shown: np.ndarray) -> float:
    """Return the mean AUC of moments weighted by impressions; NaN if none has both a click and a miss."""
    auc, impressions = request_auc(score, click, shown)
    total = impressions.sum()
    return float((auc * impressions).sum() / total) if total else float("nan")
