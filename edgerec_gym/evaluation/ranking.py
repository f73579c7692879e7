"""How well scores rank: AUC over everything, within groups, and per re-ranking moment (GAUC).

GAUC is that of EdgeRec (CIKM'20, section 5.1).
"""

from __future__ import annotations

import numpy as np
import polars as pl

CHUNK = 20_000  # moments compared at once, to bound memory


def moment_auc(score: np.ndarray, click: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUC of each re-ranking moment.

    Args:
        score: (R, K) scores of the cards; ties count half.
        click: (R, K) 0 or 1.
        shown: (R, K) bool, the cards that count.

    Returns:
        AUC (R,) float64, and impressions (R,) float64: the number of shown cards of a moment with both a
        click and a miss, else 0 (its AUC is then 0 and must not count).
    """
    parts = [
        _pairwise(*(a[at : at + CHUNK] for a in (score, click, shown))) for at in range(0, len(score), CHUNK)
    ]
    if not parts:
        return np.zeros(0), np.zeros(0)
    return np.concatenate([auc for auc, _ in parts]), np.concatenate([n for _, n in parts])


def _pairwise(score: np.ndarray, click: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hit, miss = shown & (click > 0), shown & (click == 0)
    pairs = hit[:, :, None] & miss[:, None, :]  # (R, K, K)
    above = (score[:, :, None] > score[:, None, :]) + 0.5 * (score[:, :, None] == score[:, None, :])
    count = pairs.sum((1, 2))
    auc = (above * pairs).sum((1, 2)) / np.maximum(count, 1)
    return auc, np.where(count > 0, shown.sum(1), 0).astype(np.float64)


def gauc(score: np.ndarray, click: np.ndarray, shown: np.ndarray) -> float:
    """Return the mean AUC of moments weighted by impressions; NaN if none has both a click and a miss."""
    auc, impressions = moment_auc(score, click, shown)
    total = impressions.sum()
    return float((auc * impressions).sum() / total) if total else float("nan")


def grouped_auc(score: np.ndarray, click: np.ndarray, group: np.ndarray) -> float:
    """Average the AUC over the groups with both a click and a miss; NaN if there is none.

    Args and ties are those of :func:`auc_by_group`.
    """
    auc, _ = auc_by_group(score, click, group)
    return float(auc.mean()) if len(auc) else float("nan")


def auc_by_group(score: np.ndarray, click: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUC of each group with both a click and a miss, (g,) float64, and these groups, (g,).

    Ties count half.

    Args:
        score: (n,) higher = more likely.
        click: (n,) bool.
        group: (n,) ids, such as those of impressions.
    """
    hits, misses = pl.col("hits"), pl.col("size") - pl.col("hits")
    found = (
        pl.DataFrame({"score": score, "click": click, "group": group})
        .with_columns(rank=pl.col("score").rank().over("group"))
        .group_by("group", maintain_order=True)
        .agg(
            hits=pl.col("click").sum().cast(pl.Float64),
            size=pl.len(),
            ranks=pl.col("rank").filter("click").sum(),
        )
        .filter((hits > 0) & (misses > 0))
        .select("group", auc=(pl.col("ranks") - hits * (hits + 1) / 2) / (hits * misses))
    )
    return found["auc"].to_numpy(), found["group"].to_numpy()


def auc(score: np.ndarray, happened: np.ndarray) -> float:
    """Return the AUC of a score for whether something happened; NaN if it always or never did."""
    return grouped_auc(score, happened, np.zeros(len(score), np.int64))


def ndcg(score: np.ndarray, gain: np.ndarray, shown: np.ndarray, cut: int = 10) -> np.ndarray:
    """Return the NDCG of each list, (R,) float64; NaN where nothing can be gained.

    Args:
        score: (R, K); of equal scores, the first counts as higher.
        gain: (R, K) not negative, linear: a click, or the probability of one.
        shown: (R, K) bool, the entries that are ranked.
        cut: places that count; the one at rank r from 0 counts 1 / log2(r + 2) (Järvelin & Kekäläinen, 2002).
    """
    gain = np.where(shown, gain, 0.0)
    order = np.argsort(np.where(shown, -score, np.inf), axis=1, kind="stable")[:, :cut]
    discount = 1 / np.log2(np.arange(order.shape[1]) + 2)
    found = np.take_along_axis(gain, order, 1) @ discount
    best = -np.sort(-gain, axis=1)[:, : order.shape[1]] @ discount
    return np.divide(found, best, out=np.full(len(gain), np.nan), where=best > 0)
