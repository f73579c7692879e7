"""Curves of earnings against requests, and what families of budgets save and gain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgerec_gym.bench.comparison import ATTAINABLE
from edgerec_gym.bench.rows import Played
from edgerec_gym.config import RewardConfig
from edgerec_gym.evaluation.cache import Rows, row
from edgerec_gym.evaluation.intervals import LEVEL, RESAMPLES, Interval, Statistic, resampled_means

FIGURES = {  # of a session -> its name in `play`; benefit is computed from clicks and purchases
    "requests": "requests",
    "benefit": "",
    "clicks": "expected_clicks",
    "purchases": "expected_purchases",
    "value": "value",
}
LEARNERS = ("pointer-ppo", "request-dqn")


def family(policy: str) -> str:
    """Return the name of a policy without its budget."""
    return policy.split(" ")[0]


class Curves:
    """Figures of policies with their bootstrap resamples, drawn once for all policies.

    The bootstrap is that of :func:`~edgerec_gym.evaluation.intervals.seeds_interval`. Every resample draws
    training seeds, then sessions. All policies share these draws, so differences are paired.

    Args:
        played: results of `edgerec_gym.evaluation.cache.played`, the same sessions for all.
        reward: weights of clicks and purchases in "benefit", which leaves the cost of requests out.
        seed: seed of the resampling.
    """

    def __init__(self, played: Played, reward: RewardConfig, seed: int = 0) -> None:
        self.policies = list(dict.fromkeys(policy for policy, _ in played))
        self.values = {
            (policy, figure): _figure(played, policy, figure, reward)
            for policy in self.policies
            for figure in FIGURES
        }
        self.sessions = next(iter(self.values.values())).shape[1]
        resampled = resampled_means(
            np.concatenate(list(self.values.values())).T, np.random.default_rng(seed)
        )  # (RESAMPLES, all)
        ends = np.cumsum([len(value) for value in self.values.values()])
        parts = dict(zip(self.values, np.split(resampled, ends[:-1], axis=1), strict=True))
        n_seeds = max(len(value) for value in self.values.values())
        drawn = np.random.default_rng(seed).integers(n_seeds, size=(RESAMPLES, n_seeds))
        self._means = {
            key: np.take_along_axis(part, drawn % part.shape[1], axis=1).mean(axis=1)
            for key, part in parts.items()
        }

    def mean(self, policy: str, figure: str) -> float:
        """Return the mean of a policy's figure over seeds and sessions."""
        return float(self.values[policy, figure].mean())

    def seeds(self, policy: str) -> int:
        """Return the number of training seeds of a policy, 1 if it is not trained."""
        return len(self.values[policy, "value"])

    def interval(self, keys: Sequence[tuple[str, str]], statistic: Statistic) -> Interval:
        """Return the 95 % interval of a statistic of the means (..., k) of k pairs (policy, figure).

        The ends are nan if the statistic is undefined in more than 2.5 % of the resamples.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = float(statistic(np.array([self.mean(*key) for key in keys])))
            values = statistic(np.stack([self._means[key] for key in keys], axis=-1))
        finite = values[np.isfinite(values)]
        if not np.isfinite(mean) or len(finite) < len(values) * (1 + LEVEL) / 2:
            return {"mean": mean, "low": float("nan"), "high": float("nan")}
        low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return {"mean": mean, "low": float(low), "high": float(high)}

    def members(self, name: str) -> list[str]:
        """Return the policies of a family, in rising order of requests."""
        found = [policy for policy in self.policies if family(policy) == name]
        return sorted(found, key=lambda policy: self.mean(policy, "requests"))


def _figure(played: Played, policy: str, figure: str, reward: RewardConfig) -> np.ndarray:
    """Return one figure of a policy, (seeds, sessions) float64."""
    sessions = [s for (found, _), s in played.items() if found == policy]
    if figure == "benefit":
        parts = [reward.value(s["expected_clicks"], s["expected_purchases"]) for s in sessions]
    else:
        parts = [s[FIGURES[figure]] for s in sessions]
    return np.stack(parts).astype(np.float64)


def curve_rows(scored: Played, oracle: Played, best: str, reward: RewardConfig) -> Rows:
    """Return every policy's figures, and what families of budgets save and gain against rules and learners.

    Args:
        scored: sessions of all policies.
        oracle: sessions of the oracle at several prices, the first of the shared ones.
        best: the oracle whose gain over keep is the whole gap.
        reward: see :class:`Curves`.
    """
    curves = Curves(scored, reward)
    rows = _figure_rows(curves.policies, curves)
    rows += _gap_rows(curves.policies, curves, "attainable_gap_closed", ATTAINABLE)
    targets = ["one-extra", *curves.members("interval"), *curves.members("chance")]
    extra = curves.mean("one-extra", "requests")
    for learner in filter(curves.members, LEARNERS):  # at the budget closest to one-extra's requests
        targets.append(min(curves.members(learner), key=lambda p: abs(curves.mean(p, "requests") - extra)))
    for name in dict.fromkeys(map(family, curves.policies)):
        if len(curves.members(name)) > 1 and name not in ("interval", "chance"):
            rows += _comparison_rows(curves, name, [t for t in targets if family(t) != name])
    sessions = len(next(iter(oracle.values()))["value"])
    fewer = {k: {n: v[:sessions] for n, v in s.items()} for k, s in scored.items()}
    both = Curves(fewer | oracle, reward)
    rows += _gap_rows(both.policies, both, "gap_closed", best)
    own = [policy for policy, _ in oracle]
    rows += _gap_rows(own, both, "attainable_gap_closed", ATTAINABLE)
    return rows + _figure_rows(own, both) + _comparison_rows(both, family(best), ["one-extra"])


def _figure_rows(own: Sequence[str], curves: Curves) -> Rows:
    rows: Rows = []
    for policy in own:
        figures = {name: curves.interval([(policy, name)], lambda m: m[..., 0]) for name in FIGURES}
        if policy != "keep":
            pair = [(policy, "value"), ("keep", "value")]
            figures["gain_over_keep"] = curves.interval(pair, lambda m: m[..., 0] - m[..., 1])
            for name in ("benefit", "purchases"):
                pair = [(policy, name), ("keep", name)]
                figures[f"{name}_over_keep"] = curves.interval(pair, lambda m: m[..., 0] - m[..., 1])
            three = [(policy, "benefit"), ("keep", "benefit"), (policy, "requests")]
            figures["gain_per_request"] = curves.interval(
                three, lambda m: (m[..., 0] - m[..., 1]) / m[..., 2]
            )
        by_seed = curves.values[policy, "value"].mean(axis=1).round(4).tolist()
        rows += [
            row(
                policy,
                metric,
                found,
                curves.seeds(policy),
                curves.sessions,
                **({"by_seed": by_seed} if metric == "value" else {}),
            )
            for metric, found in figures.items()
        ]
    return rows


def _gap_rows(own: Sequence[str], curves: Curves, metric: str, best: str) -> Rows:
    """Return the share of the gap from keep to the best policy that each of the others closes."""
    keys = [("keep", "value"), (best, "value")]
    return [
        row(
            policy,
            metric,
            curves.interval(
                [(policy, "value"), *keys], lambda m: (m[..., 0] - m[..., 1]) / (m[..., 2] - m[..., 1])
            ),
            curves.seeds(policy),
            curves.sessions,
        )
        for policy in own
        if policy != "keep"
    ]


def _comparison_rows(curves: Curves, name: str, targets: Sequence[str]) -> Rows:
    """Return the requests a family saves at equal benefit or purchases, and its gain at equal requests."""
    rows: Rows = []
    members = curves.members(name)
    for target in targets:
        for figure in ("benefit", "purchases"):
            keys = [("keep", figure), (target, "requests"), (target, figure)]
            for member in members:
                keys += [(member, "requests"), (member, figure)]
            suffix = "" if figure == "benefit" else "_at_equal_purchases"
            found = {
                f"requests_saved{suffix}": curves.interval(keys, saved),
                f"{figure}_gained_at_equal_requests": curves.interval(keys, gained),
            }
            seeds = max(map(curves.seeds, (target, *members)))
            rows += [
                row(name, metric, value, seeds, curves.sessions, against=target)
                for metric, value in found.items()
            ]
    return rows


def saved(means: np.ndarray) -> np.ndarray:
    """Return the share of a rule's requests that a curve saves where it earns the same.

    Args:
        means: (..., 3 + 2 k): earnings of keep; requests and earnings of the rule; requests and earnings of k
            points of the curve, in rising order of requests. The curve is linear between keep and the points.

    Returns:
        (...) 1 - requests / requests of the rule; nan where the curve does not reach the rule.
    """
    x, y, xs, ys = _curve(means)
    reached = ys >= y[..., None]
    k = reached.argmax(axis=-1)  # 0 also where nothing is reached
    (x0, y0), (x1, y1) = _point(xs, ys, np.maximum(k - 1, 0)), _point(xs, ys, k)
    with np.errstate(invalid="ignore", divide="ignore"):
        needed = np.where(k > 0, x0 + (x1 - x0) * (y - y0) / (y1 - y0), x1)
        return np.where(reached.any(axis=-1) & (x > 0), 1 - needed / x, np.nan)


def gained(means: np.ndarray) -> np.ndarray:
    """Return how much more a curve earns than a rule at equal requests, as a share; nan past its end."""
    x, y, xs, ys = _curve(means)
    k = (xs <= x[..., None]).sum(axis=-1) - 1
    (x0, y0), (x1, y1) = _point(xs, ys, k), _point(xs, ys, np.minimum(k + 1, xs.shape[-1] - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        earned = np.where(x == x0, y0, (y1 - y0) / (x1 - x0) * (x - x0) + y0)
        return np.where((y > 0) & (x <= xs[..., -1]), earned / y - 1, np.nan)


def _curve(means: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return requests and earnings of the rule (...), and of the curve's points (..., 1 + k), sorted."""
    keep = means[..., :1]
    xs = np.concatenate([np.zeros_like(keep), means[..., 3::2]], axis=-1)
    ys = np.concatenate([keep, means[..., 4::2]], axis=-1)
    order = np.argsort(xs, axis=-1, kind="stable")
    return means[..., 1], means[..., 2], *(np.take_along_axis(part, order, axis=-1) for part in (xs, ys))


def _point(xs: np.ndarray, ys: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.take_along_axis(part, k[..., None], axis=-1)[..., 0] for part in (xs, ys))
    return x, y
