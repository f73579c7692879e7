"""Metrics of estimated effects, by order and by size: Qini, AUUC, PEHE, calibration by decile.

Moments are sorted by the estimate, best first. Of the first k of n, T are treated and C are not, and their
outcomes sum to Y1 and Y0. Moments of equal score count as one step. All areas are over the share k / n in
0..1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import LEVEL, Interval

RESAMPLES = 300


def check_experiment(treated: np.ndarray, outcome: np.ndarray, propensity: np.ndarray, where: str) -> None:
    """Raise InputError unless (n,) decisions with outcomes (n, ...) identify an effect.

    Args:
        treated: 0 or 1.
        outcome: finite values.
        propensity: probability of a treatment, strictly between 0 and 1.
        where: name of the data, for messages.
    """
    for name, values in (("treated", treated), ("outcome", outcome), ("propensity", propensity)):
        if not np.isfinite(values).all():
            raise InputError(f"{where}: {name} holds values that are not finite")
    if not np.isin(treated, (0, 1)).all():
        raise InputError(f"{where}: treated must be 0 or 1")
    for value, name in ((1, "treated"), (0, "untreated")):
        if not (treated == value).any():
            raise InputError(f"{where} has no {name} rows; an effect needs treated and untreated ones")
    outside = (propensity <= 0) | (propensity >= 1)
    if outside.any():
        raise InputError(
            f"{where}: propensity {propensity[outside][0]:g} is not between 0 and 1; "
            "no effect can be learned without randomisation"
        )


class RankedSample:
    """A randomised sample in the order of a score, which measures that order.

    Args:
        score: (n,) estimated effects.
        treated: (n,) 0 or 1, drawn with the same probability for all.
        outcome: (n,) observed outcomes.

    Raises:
        InputError: a value is not finite, or one arm is empty.
    """

    def __init__(self, score: np.ndarray, treated: np.ndarray, outcome: np.ndarray) -> None:
        check_experiment(treated, outcome, np.full(len(treated), 0.5), "sample")
        if not np.isfinite(score).all():
            raise InputError("sample: score holds values that are not finite")
        self.order = np.argsort(-score, kind="stable")
        ranked = score[self.order]
        self.ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of runs of equal scores
        t = np.asarray(treated, np.float64)[self.order]
        y = np.asarray(outcome, np.float64)[self.order]
        self.columns = np.column_stack([t, 1 - t, t * y, (1 - t) * y])

    def _sums(self, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the share of rows (m + 1,) and T, C, Y1, Y0 (m + 1, 4) after each step, starting empty."""
        columns = self.columns if weight is None else self.columns * weight[self.order, None]
        sums = np.zeros((len(self.ends) + 1, 4))
        sums[1:] = np.cumsum(columns, axis=0)[self.ends]
        rows = sums[:, 0] + sums[:, 1]
        return rows / rows[-1], sums

    def gain(self, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the uplift curve: share of rows chosen, and gain per row of the sample (Y1/T - Y0/C) k/n."""
        share, sums = self._sums(weight)
        treated, control, y1, y0 = sums.T
        both = (treated > 0) & (control > 0)
        lift = np.where(both, y1 / np.maximum(treated, 1e-12) - y0 / np.maximum(control, 1e-12), 0.0)
        return share, lift * share

    def auuc(self, weight: np.ndarray | None = None) -> float:
        """Return the area under the uplift curve; half the average effect for a random order."""
        share, gain = self.gain(weight)
        return _area(share, gain)

    def qini_curve(self, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the Qini curve (Radcliffe, 2007): share of rows chosen, and Y1 - Y0 T/C per treated row."""
        share, sums = self._sums(weight)
        treated, control, y1, y0 = sums.T
        ratio = np.where(control > 0, treated / np.maximum(control, 1e-12), 0.0)
        return share, (y1 - y0 * ratio) / treated[-1]

    def qini(self, weight: np.ndarray | None = None) -> float:
        """Return the area between the Qini curve and the straight line to its end; 0 for a random order."""
        share, curve = self.qini_curve(weight)
        return _area(share, curve) - 0.5 * curve[-1]


def _area(x: np.ndarray, y: np.ndarray) -> float:
    return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())


def interval(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Return a 95 % percentile bootstrap of a statistic of weighted rows, resampling whole groups.

    Args:
        statistic: maps weights (n,) float64 to a number.
        groups: (n,) int64 group of each row, e.g. its session.
        seed: seed of the resampling; the same seed and groups give the same weights.
        resamples: number of resamples.
    """
    _, group = np.unique(groups, return_inverse=True)
    n_groups, rng = int(group.max()) + 1, np.random.default_rng(seed)
    even = np.full(n_groups, 1 / n_groups)
    values = [statistic(rng.multinomial(n_groups, even)[group].astype(np.float64)) for _ in range(resamples)]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": float(statistic(np.ones(len(groups)))), "low": float(low), "high": float(high)}


def true_qini(score: np.ndarray, tau: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return the area between the curve of true effects (n,) in a score's order and the line to its end."""
    order = np.argsort(-score, kind="stable")
    w = np.ones(len(tau)) if weight is None else weight[order]
    share = np.concatenate([[0.0], np.cumsum(w) / w.sum()])
    gained = np.concatenate([[0.0], np.cumsum(w * tau[order]) / w.sum()])
    return _area(share, gained) - 0.5 * float(gained[-1])


def squared_pehe(
    estimate: np.ndarray, tau: np.ndarray, error: np.ndarray, weight: np.ndarray | None = None
) -> float:
    """Return the mean squared error of estimated effects (n,), the square of PEHE (Hill, 2011).

    True effects are means over continuations, so the square of their standard error (n,) is subtracted.
    """
    return float(np.average((estimate - tau) ** 2 - error**2, weights=weight))


def calibration(estimate: np.ndarray, tau: np.ndarray, bins: int = 10) -> np.ndarray:
    """Return mean estimate and mean true effect of equal-sized bins, by rising estimate, (bins, 2)."""
    parts = np.array_split(np.argsort(estimate, kind="stable"), bins)
    return np.array([[estimate[part].mean(), tau[part].mean()] for part in parts if len(part)])
