"""Curves of what is bought against what is requested, and what families of budgets save and gain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgerec_gym.benchmark import Rows, row
from edgerec_gym.config import RewardConfig
from edgerec_gym.evaluate import Sessions
from edgerec_gym.metrics import Interval, seeds_interval

Played = dict[tuple[str, int | None], Sessions]
Figure = Callable[[float, float, float, np.ndarray, np.ndarray], float]  # of keep, a rule, a curve
FIGURES = {
    "clicks": "expected_clicks",
    "purchases": "expected_purchases",
    "value": "value",
    "requests": "requests",
}


def family(policy: str) -> str:
    """Name of a policy without its budget."""
    return policy.split(" ")[0]


class Curves:
    """What policies have played, by figure: (seeds, sessions) each.

    Args:
        played: results of `edgerec_gym.benchmark.played`.
        reward: weights of clicks and purchases in the benefit, which leaves the cost of requests out.
    """

    def __init__(self, played: Played, reward: RewardConfig) -> None:
        self.played, self.reward = played, reward
        self.policies = list(dict.fromkeys(policy for policy, _ in played))

    def of(self, policy: str, figure: str) -> np.ndarray:
        """One figure of a policy; "benefit" is click and purchase value without the cost."""
        if figure == "benefit":
            weights = self.reward.click, self.reward.purchase
            return weights[0] * self.of(policy, "clicks") + weights[1] * self.of(policy, "purchases")
        name = FIGURES[figure]
        return np.stack([s[name] for (found, _), s in self.played.items() if found == policy]).astype(float)

    def members(self, name: str) -> list[str]:
        """Policies of a family, by rising number of requests."""
        found = [policy for policy in self.policies if family(policy) == name]
        return sorted(found, key=lambda policy: self.of(policy, "requests").mean())


def curve_rows(scored: Played, oracle: Played, reward: RewardConfig) -> Rows:
    """Figures of every policy, and what families of budgets save and gain against rules and learners."""
    curves = Curves(scored, reward)
    rows = _figure_rows(curves, curves)
    sessions = next(iter(oracle.values()))["value"].shape[0] if oracle else 0
    first = {key: {n: v[:sessions] for n, v in s.items()} for key, s in scored.items()}
    both = Curves(first | oracle, reward)
    rows += _figure_rows(Curves(oracle, reward), both)
    targets = ["one-extra", *curves.members("interval"), *curves.members("chance")]
    targets += [name for name in curves.policies if name in ("maskable-ppo", "request-dqn")]
    for name in dict.fromkeys(map(family, curves.policies)):
        if len(curves.members(name)) > 1 and name not in ("interval", "chance"):
            rows += _comparison_rows(curves, name, targets)
    return rows + _comparison_rows(both, "true-effect", ["one-extra"])


def _figure_rows(own: Curves, reference: Curves) -> Rows:
    rows: Rows = []
    for policy in own.policies:
        seeds, sessions = own.of(policy, "value").shape
        figures: dict[str, Interval] = {
            name: seeds_interval([own.of(policy, name)], lambda m: m[..., 0])
            for name in ("requests", "benefit", "clicks", "purchases", "value")
        }
        if policy != "keep":
            pair = [own.of(policy, "value"), reference.of("keep", "value")]
            figures["gain_over_keep"] = seeds_interval(pair, lambda m: m[..., 0] - m[..., 1])
            three = [own.of(policy, "benefit"), reference.of("keep", "benefit"), own.of(policy, "requests")]
            figures["gain_per_request"] = seeds_interval(three, lambda m: (m[..., 0] - m[..., 1]) / m[..., 2])
        by_seed = own.of(policy, "value").mean(axis=1).round(4).tolist()
        rows += [
            row(policy, metric, found, seeds, sessions, **({"by_seed": by_seed} if metric == "value" else {}))
            for metric, found in figures.items()
        ]
    return rows


def _comparison_rows(curves: Curves, name: str, targets: Sequence[str]) -> Rows:
    """Requests that a family saves at equal benefit and purchases, and what it gains at equal requests."""
    rows: Rows = []
    members = curves.members(name)
    for target in targets:
        for figure in ("benefit", "purchases"):
            columns = [curves.of("keep", figure), curves.of(target, "requests"), curves.of(target, figure)]
            for member in members:
                columns += [curves.of(member, "requests"), curves.of(member, figure)]
            seeds, sessions = max(len(c) for c in columns), columns[0].shape[1]
            suffix = "" if figure == "benefit" else "_at_equal_purchases"
            found = {
                f"requests_saved{suffix}": seeds_interval(columns, saved),
                f"{figure}_gained_at_equal_requests": seeds_interval(columns, gained),
            }
            rows += [
                row(name, metric, value, seeds, sessions, against=target) for metric, value in found.items()
            ]
    return rows


def saved(means: np.ndarray) -> np.ndarray:
    """Share of a rule's requests that a curve saves where it earns the same.

    Args:
        means: (..., 3 + 2 k): what keep earns; requests and earnings of the rule; the same of k points of the
            curve, by rising requests. Between points, and from keep on, the curve is straight.

    Returns:
        (...) 1 - requests / requests of the rule; nan where the curve does not reach the rule.
    """
    return _each(means, lambda keep, x, y, xs, ys: 1 - _first_reach(xs, ys, y) / x if x > 0 else np.nan)


def gained(means: np.ndarray) -> np.ndarray:
    """Share by which a curve earns more than a rule at the same requests; nan beyond the curve's end."""
    return _each(
        means, lambda keep, x, y, xs, ys: np.interp(x, xs, ys) / y - 1 if y > 0 and x <= xs[-1] else np.nan
    )


def _each(means: np.ndarray, figure: Figure) -> np.ndarray:
    flat = means.reshape(-1, means.shape[-1])
    values = np.empty(len(flat))
    for k, (keep, x, y, *points) in enumerate(flat):
        xs, ys = np.array([0.0, *points[0::2]]), np.array([keep, *points[1::2]])
        order = np.argsort(xs, kind="stable")
        values[k] = figure(keep, x, y, xs[order], ys[order])
    return values.reshape(means.shape[:-1])


def _first_reach(xs: np.ndarray, ys: np.ndarray, y: float) -> float:
    """Smallest x at which the broken line reaches y; nan if it does not."""
    reached = np.flatnonzero(ys >= y)
    if not len(reached):
        return np.nan
    k = reached[0]
    if k == 0:
        return float(xs[0])
    return float(xs[k - 1] + (xs[k] - xs[k - 1]) * (y - ys[k - 1]) / (ys[k] - ys[k - 1]))
