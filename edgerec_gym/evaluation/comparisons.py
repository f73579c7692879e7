"""Statistics of the benchmark: interquartile means, probabilities of improvement, corrected paired tests.

Interquartile means and probabilities of improvement, with stratified bootstrap intervals over training
seeds, follow rliable (Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice", NeurIPS 2021). Scores are (R, T): R training seeds on T tasks. The bootstrap resamples the seeds
of every task independently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from edgerec_gym.evaluation.intervals import CHUNK, LEVEL, Interval, resampled_means

RESAMPLES = 10_000
RESAMPLES_EACH = 100  # minimum per comparison, so that the smallest p-value survives the correction
TRIMMED = 0.25  # share of the scores trimmed at each end


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half of the scores of all tasks, (..., R, T) -> (...)."""
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = int(TRIMMED * flat.shape[-1])
    return flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)


def probability_of_improvement(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the probability that a run beats a run of the other policy, mean over tasks; ties count half.

    Args:
        own: (..., R, T) scores of the policy.
        other: (..., K, T) scores of the other policy.
    """
    better = own[..., :, None, :] > other[..., None, :, :]
    equal = own[..., :, None, :] == other[..., None, :, :]
    return (better + 0.5 * equal).mean(axis=(-3, -2, -1))


def stratified_interval(
    scores: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], *, seed: int = 0
) -> Interval:
    """Return a 95 % percentile bootstrap over training seeds, drawn independently per task and policy.

    Args:
        scores: (R, T) scores of each policy that the statistic takes; R may differ.
        statistic: maps arrays (..., R, T) to (...).
        seed: seed of the resampling.

    Returns:
        {"mean", "low", "high"}; low and high are nan if no policy has more than one training seed.
    """
    rng, nan = np.random.default_rng(seed), float("nan")
    mean = float(statistic(*scores))
    if max(len(values) for values in scores) < 2:
        return {"mean": mean, "low": nan, "high": nan}
    drawn = []
    for values in scores:
        seeds = rng.integers(len(values), size=(RESAMPLES, *values.shape))
        drawn.append(np.take_along_axis(values[None], seeds, axis=1))
    low, high = np.quantile(statistic(*drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": mean, "low": float(low), "high": float(high)}


@dataclass(frozen=True)
class Comparison:
    """Two policies compared on the same sessions.

    Attributes:
        better, worse: names of the policies, by mean.
        difference: difference of their means, with a 95 % interval.
        p: two-sided p-value of the bootstrap.
        p_holm: p-value corrected for all comparisons made.
    """

    better: str
    worse: str
    difference: Interval
    p: float
    p_holm: float


def compare_all(values: dict[str, np.ndarray], *, seed: int = 0) -> list[Comparison]:
    """Compare all pairs of policies by a paired bootstrap, with Holm's correction over all pairs.

    A resample draws sessions, which all policies share (common random numbers), and the training seeds of
    each policy. p is twice the share of resamples in which the difference does not have its sign.

    Args:
        values: (R, S) of each policy: R training seeds (1 if it is not trained) on the same S sessions.
        seed: seed of the resampling.

    Raises:
        ValueError: the policies have different numbers of sessions.
    """
    names = sorted(values, key=lambda name: -values[name].mean())
    pairs = list(combinations(names, 2))
    if not pairs:
        return []
    resamples = CHUNK * -(-max(RESAMPLES, RESAMPLES_EACH * len(pairs)) // CHUNK)
    rng = np.random.default_rng(seed)
    sessions = resampled_means(np.concatenate([values[name] for name in names]).T, rng, resamples)
    ends = np.cumsum([len(values[name]) for name in names])
    means = {}
    for name, part in zip(names, np.split(sessions, ends[:-1], axis=1), strict=True):
        drawn = rng.integers(part.shape[1], size=part.shape)
        means[name] = np.take_along_axis(part, drawn, axis=1).mean(axis=1)
    intervals, p = [], np.empty(len(pairs))
    for k, (better, worse) in enumerate(pairs):
        drawn = means[better] - means[worse]
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        mean = values[better].mean() - values[worse].mean()
        intervals.append({"mean": float(mean), "low": float(low), "high": float(high)})
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        p[k] = min(1.0, 2 * (1 + tail) / (1 + resamples))
    rows = zip(pairs, intervals, p.tolist(), holm(p).tolist(), strict=True)
    return [Comparison(*pair, *figures) for pair, *figures in rows]


def holm(p: np.ndarray) -> np.ndarray:
    """Apply Holm's step-down correction to p-values, (k,) -> (k,)."""
    order = np.argsort(p, kind="stable")
    corrected = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    found = np.empty(len(p))
    found[order] = np.minimum(corrected, 1.0)
    return found
