"""TODO."""

from __future__ import annotations

import numpy as np
import polars as pl


def impression_auc(score: np.ndarray, click: np.ndarray, impression: np.ndarray) -> float:
    """Average the AUC over the impressions with both a click and a miss; NaN if there is none.

    Ties count half.

    Args:
        score: (n,) higher = more likely.
        click: (n,) bool.
        impression: (n,) ids.
    """
    hits, misses = pl.col("hits"), pl.col("size") - pl.col("hits")
    auc = (
        pl.DataFrame({"score": score, "click": click, "impression": impression})
        .with_columns(rank=pl.col("score").rank().over("impression"))
        .group_by("impression", maintain_order=True)
        .agg(
            hits=pl.col("click").sum().cast(pl.Float64),
            size=pl.len(),
            ranks=pl.col("rank").filter("click").sum(),
        )
        .filter((hits > 0) & (misses > 0))
        .select((pl.col("ranks") - hits * (hits + 1) / 2) / (hits * misses))
        .to_series()
    )
    return float(auc.to_numpy().mean()) if len(auc) else float("nan")


def auc(score: np.ndarray, happened: np.ndarray) -> float:
    """Return the AUC of a score for whether something happened; NaN if it always or never did."""
    return impression_auc(score, happened, np.zeros(len(score), np.int64))
