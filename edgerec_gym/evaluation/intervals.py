"""Statistics of evaluations: bootstrap intervals over sessions and seeds, paired by common random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
CHUNK = 50  # resamples drawn at once, to bound memory

Interval = dict[str, float]
Statistic = Callable[[np.ndarray], np.ndarray]


def interval_text(interval: Interval, form: str) -> str:
    """Return an interval as "mean [low, high]", each number in a format such as ".3f"."""
    return f"{interval['mean']:{form}} [{interval['low']:{form}}, {interval['high']:{form}}]"


def bootstrap(columns: np.ndarray, statistic: Statistic, *, seed: int = 0) -> Interval:
    """Return a 95 % percentile bootstrap interval over sessions.

    Args:
        columns: (S, k) float64, per-session sums.
        statistic: maps (..., k) means of the columns to (...) values; ratios of means are allowed.
        seed: seed of the resampling; the same seed and S give the same resamples, so intervals are paired.

    Returns:
        {"mean", "low", "high"}; mean is the statistic of the full sample. NaN where it is undefined.
    """
    columns = np.asarray(columns, np.float64)
    values = statistic(resampled_means(columns, np.random.default_rng(seed)))
    return percentile_interval(float(statistic(columns.mean(axis=0))), values)


def mean_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """Return the mean per session of `values` (S,) with its 95 % bootstrap interval."""
    return bootstrap(values[:, None], lambda means: means[..., 0], seed=seed)


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, seed: int = 0) -> Interval:
    """Return the ratio of two per-session sums (S,), with sessions resampled jointly."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return bootstrap(
            np.column_stack([numerator, denominator]), lambda means: means[..., 0] / means[..., 1], seed=seed
        )


def seeds_interval(columns: Sequence[np.ndarray], statistic: Statistic, *, seed: int = 0) -> Interval:
    """Return a 95 % percentile bootstrap interval over training seeds and sessions.

    Every resample draws training seeds, then sessions, with replacement. All seeds and columns share the
    sessions (common random numbers), so differences are paired.

    Args:
        columns: k arrays (R, S) of per-session values with R training seeds each; R = 1 for policies that
            are not trained, e.g. keep. Columns with the same R > 1 share their seeds.
        statistic: maps (..., k) means over seeds and sessions to (...) values.
        seed: seed of the resampling.
    """
    rng = np.random.default_rng(seed)
    sessions, n_seeds = columns[0].shape[1], max(len(column) for column in columns)
    stacked = np.stack([np.broadcast_to(column, (n_seeds, sessions)) for column in columns], axis=2)
    flat = np.moveaxis(stacked, 0, 1).reshape(sessions, -1)  # the same sessions for all seeds
    of_seed = np.moveaxis(
        resampled_means(flat, np.random.default_rng(seed)).reshape(RESAMPLES, n_seeds, -1), 1, 0
    )
    drawn = rng.integers(n_seeds, size=(RESAMPLES, n_seeds))
    means = of_seed[drawn, np.arange(RESAMPLES)[:, None]].mean(axis=1)  # (RESAMPLES, k)
    with np.errstate(invalid="ignore", divide="ignore"):
        return percentile_interval(float(statistic(stacked.mean(axis=(0, 1)))), statistic(means))


def gap_closed_interval(
    value: np.ndarray, keep: np.ndarray, reference: np.ndarray, seed: int = 0
) -> Interval:
    """Return the share of the gap from keep (0) to reference (1) that a policy closes; all (S,), paired."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return bootstrap(
            np.column_stack([value, keep, reference]),
            lambda m: (m[..., 0] - m[..., 1]) / (m[..., 2] - m[..., 1]),
            seed=seed,
        )


def bias_interval(learned: np.ndarray, true: np.ndarray, seed: int = 0) -> Interval:
    """Return (value on learned users - true value) / true value, from two independent samples (S,)."""
    return _two_samples(learned[:, None], true[:, None], lambda ratio: ratio[..., 0] - 1, seed)


def exploitation_interval(
    learned: np.ndarray, true: np.ndarray, keep_learned: np.ndarray, keep_true: np.ndarray, seed: int = 0
) -> Interval:
    """Return bias(policy) - bias(keep); (S,) each, policy and keep paired within each kind of users."""
    return _two_samples(
        np.column_stack([learned, keep_learned]),
        np.column_stack([true, keep_true]),
        lambda ratio: ratio[..., 0] - ratio[..., 1],
        seed,
    )


def _two_samples(learned: np.ndarray, true: np.ndarray, statistic: Statistic, seed: int) -> Interval:
    """Bootstrap a statistic of the ratio of two samples' column means."""
    rng = np.random.default_rng(seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = statistic(resampled_means(learned, rng) / resampled_means(true, rng))
        mean = float(statistic(learned.mean(axis=0) / true.mean(axis=0)))
    return percentile_interval(mean, values)


def resampled_means(columns: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Return (resamples, k) means of `columns` (S, k) over resampled sessions, in chunks of CHUNK."""
    sessions = len(columns)
    even = np.full(sessions, 1.0 / sessions)
    draws = [rng.multinomial(sessions, even, size=CHUNK) @ columns for _ in range(resamples // CHUNK)]
    return np.concatenate(draws) / sessions


def percentile_interval(mean: float, values: np.ndarray) -> Interval:
    """Return `mean` with the 95 % interval of resampled `values` (n,), ignoring undefined ones."""
    finite = values[np.isfinite(values)]
    if not len(finite) or not np.isfinite(mean):
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan")}
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": mean, "low": float(low), "high": float(high)}
