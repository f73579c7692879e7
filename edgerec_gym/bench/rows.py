"""Figures of policies that played the same sessions, and the rows of their comparison.

A task is the ground truth of a scenario, unshifted or shifted. The score of a run on a task is the share of
the gap in value between keep (0) and the oracle (1) that it closes on that task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgerec_gym.bench.comparison import ATTAINABLE, Comparison
from edgerec_gym.config import RESPONSE_PREFIX
from edgerec_gym.evaluation.cache import Rows, row
from edgerec_gym.evaluation.comparisons import (
    compare_all,
    interquartile_mean,
    probability_of_improvement,
    stratified_interval,
)
from edgerec_gym.evaluation.intervals import Interval, seeds_interval
from edgerec_gym.evaluation.play import Sessions, Times

Played = dict[tuple[str, int | None], Sessions]  # by (policy, training seed)
Values = Callable[[str], np.ndarray]


def values_of(played: Played, policy: str) -> Values:
    """Return a function from a figure's name to its values (seeds, sessions); "cards" counts all types."""
    seeds = [sessions for (name, _), sessions in played.items() if name == policy]
    return lambda figure: np.stack([cards_seen(s) if figure == "cards" else s[figure] for s in seeds])


def mean(values: np.ndarray) -> Interval:
    """Return the mean of values (seeds, sessions)."""
    return seeds_interval([values], lambda m: m[..., 0])


def difference(one: np.ndarray, other: np.ndarray) -> Interval:
    """Return the mean of `one` minus that of `other`, both (seeds, sessions), paired by session."""
    return seeds_interval([one, other], lambda m: m[..., 0] - m[..., 1])


def ratio(one: np.ndarray, other: np.ndarray) -> Interval:
    """Return the mean of `one` over that of `other`, both (seeds, sessions)."""
    return seeds_interval([one, other], lambda m: m[..., 0] / m[..., 1])


def gap_closed(own: np.ndarray, keep: np.ndarray, oracle: np.ndarray) -> Interval:
    """Return the share of the gap from keep to the oracle that is closed, of values (seeds, sessions)."""
    return seeds_interval([own, keep, oracle], lambda m: (m[..., 0] - m[..., 1]) / (m[..., 2] - m[..., 1]))


def attainable_gap_closed(played: Played, own: np.ndarray, keep: np.ndarray) -> dict[str, Interval]:
    """Return the share of the gap from keep to the attainable ceiling that is closed, if that has played."""
    if not any(policy == ATTAINABLE for policy, _ in played):
        return {}
    ceiling = values_of(played, ATTAINABLE)("value")
    fewer = min(own.shape[1], ceiling.shape[1])
    return {"attainable_gap_closed": gap_closed(own[:, :fewer], keep[:, :fewer], ceiling[:, :fewer])}


def exploitation_gap(
    learned: np.ndarray, true: np.ndarray, kept_learned: np.ndarray, kept_true: np.ndarray
) -> Interval:
    """Return by how much learned users overrate a policy relative to keep.

    The gap is learned / true value of the policy, minus the same ratio of keep. All values are (seeds,
    sessions). Of the true values, only the first sessions count, as many as were played on learned users.
    """
    n_sessions = learned.shape[1]
    true, kept_true = true[:, :n_sessions], kept_true[:, :n_sessions]
    return seeds_interval(
        [learned, true, kept_learned, kept_true], lambda m: m[..., 0] / m[..., 1] - m[..., 2] / m[..., 3]
    )


def cards_seen(sessions: Sessions) -> np.ndarray:
    """Return the number of answered mix-in cards of every session."""
    return np.sum([values for name, values in sessions.items() if name.startswith("cards_")], axis=0)


# --- rows of a comparison -----------------------------------------------------------------------------------

Taken = dict[tuple[str, int | None], Times]
FIGURES = {
    "clicks": "expected_clicks",
    "purchases": "expected_purchases",
    "requests": "requests",
    "length": "exposures",
}
NOT_SHIFTED = "none"


def policies_of(played: Played) -> list[str]:
    """Return the names of the policies in order of play."""
    return list(dict.fromkeys(policy for policy, _ in played))


def figure_of(played: Played, policy: str, figure: str = "value") -> np.ndarray:
    """Return one figure of a policy, (R, S): training seeds, sessions."""
    return values_of(played, policy)(figure)


def shares(comparison: Comparison, played: Played) -> dict[str, np.ndarray]:
    """Return the share of the gap between keep and the oracle that each run closes, (R,) by policy."""
    keep, oracle = figure_of(played, comparison.keep), figure_of(played, comparison.oracle)
    gap = oracle.mean() - keep[:, : oracle.shape[1]].mean()
    return {
        policy: (figure_of(played, policy).mean(axis=1) - keep.mean()) / gap
        for policy in policies_of(played)
        if policy not in (comparison.keep, comparison.oracle, ATTAINABLE)
    }


def value_rows(comparison: Comparison, played: Played, shift: str | None) -> Rows:
    """Return value, gain over keep and gaps closed of every policy on one task; more figures if unshifted."""
    keep, oracle = figure_of(played, comparison.keep), figure_of(played, comparison.oracle)
    n_oracle, rows = oracle.shape[1], []
    for policy in policies_of(played):
        own = figure_of(played, policy)
        seeds, sessions = own.shape
        figures: dict[str, Interval] = {"value": mean(own)}
        if policy != comparison.keep:
            figures["gain_over_keep"] = difference(own, keep[:, :sessions])
            figures["gap_closed"] = gap_closed(own[:, :n_oracle], keep[:, :n_oracle], oracle)
            figures |= attainable_gap_closed(played, own, keep)
        if shift is None:
            for metric, name in FIGURES.items():
                figures[metric] = mean(figure_of(played, policy, name))
            own_figures = next(found for (name, _), found in played.items() if name == policy)
            for name in (name for name in own_figures if name.startswith(RESPONSE_PREFIX)):
                figures[name] = mean(figure_of(played, policy, name))
        for metric, interval in figures.items():
            more: dict[str, Any] = {"shift": shift or NOT_SHIFTED}
            if metric == "value":
                more["by_seed"] = own.mean(axis=1).round(6).tolist()
            rows.append(row(policy, metric, interval, seeds, sessions, **more))
    return rows


def exploitation_rows(comparison: Comparison, true: Played, learned: Played) -> Rows:
    """Return the exploitation gap of every policy that played learned users."""
    rows: Rows = []
    kept = [figure_of(users, comparison.keep) for users in (learned, true)]
    for policy in policies_of(learned):
        if policy != comparison.keep:
            own = [figure_of(users, policy) for users in (learned, true)]
            found = exploitation_gap(*own, *kept)
            rows.append(row(policy, "exploitation_gap", found, *own[0].shape, shift=NOT_SHIFTED))
    return rows


def speed_rows(taken: Taken, sessions: int) -> Rows:
    """Return steps per second of policy and environment, and their total seconds, ranging over seeds."""
    rows: Rows = []
    for policy in dict.fromkeys(name for name, _ in taken):
        own = [times for (name, _), times in taken.items() if name == policy]
        figures = {
            "policy_steps_per_second": [times.steps / max(times.policy, 1e-9) for times in own],
            "env_steps_per_second": [times.steps / max(times.env, 1e-9) for times in own],
            "seconds": [times.policy + times.env for times in own],
        }
        for metric, values in figures.items():
            found = {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}
            more = {"spread": "range over seeds", "shift": NOT_SHIFTED}
            rows.append(row(policy, metric, found, len(own), sessions, **more))
    return rows


def aggregate_rows(tasks: Sequence[dict[str, np.ndarray]], sessions: int) -> Rows:
    """Return each policy's interquartile mean over tasks, and its probability of improvement over others.

    Args:
        tasks: shares (R,) by policy, for each task; policies that do not play all tasks are left out.
        sessions: number of sessions of the largest task.
    """
    scores = {
        policy: np.stack([task[policy] for task in tasks], axis=1)
        for policy in tasks[0]
        if all(policy in task for task in tasks)
    }
    rows: Rows = []
    for policy, own in scores.items():
        found = stratified_interval([own], interquartile_mean)
        rows.append(row(policy, "interquartile_mean", found, len(own), sessions, tasks=len(tasks)))
        for other, others in scores.items():
            if interquartile_mean(own) > interquartile_mean(others):
                found = stratified_interval([own, others], probability_of_improvement)
                more: dict[str, Any] = {"against": other, "tasks": len(tasks)}
                rows.append(row(policy, "probability_of_improvement", found, len(own), sessions, **more))
    return rows


def comparison_rows(comparison: Comparison, played: Played) -> Rows:
    """Return the differences in value of all pairs of policies but references, with corrected p-values."""
    values = {
        policy: figure_of(played, policy)
        for policy in policies_of(played)
        if policy not in (comparison.oracle, ATTAINABLE)
    }
    rows: Rows = []
    for found in compare_all(values):
        more: dict[str, Any] = {
            "against": found.worse,
            "p": found.p,
            "p_holm": found.p_holm,
            "shift": NOT_SHIFTED,
        }
        rows.append(row(found.better, "difference", found.difference, *values[found.better].shape, **more))
    return rows
