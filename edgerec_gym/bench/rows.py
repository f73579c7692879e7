"""Rows of a contest: values, shares of the gap, exploitation, speed, aggregates over tasks, comparisons.

A task is the ground truth of a scenario, as it is or shifted. The score of a run on a task is the share of
the way from keep (0) to the oracle (1), in value, both on that task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgerec_gym.bench.contest import Contest
from edgerec_gym.bench.figures import Played, difference, exploitation_gap, gap_closed, mean, values_of
from edgerec_gym.config import SHIFTS
from edgerec_gym.evaluation.cache import Rows, row, table
from edgerec_gym.evaluation.comparisons import (
    compare_all,
    interquartile_mean,
    probability_of_improvement,
    stratified_interval,
)
from edgerec_gym.evaluation.intervals import Interval
from edgerec_gym.evaluation.play import Times

Taken = dict[tuple[str, int | None], Times]
FIGURES = {
    "clicks": "expected_clicks",
    "purchases": "expected_purchases",
    "requests": "requests",
    "length": "exposures",
}
NOT_SHIFTED = "none"
SIGNIFICANT = 0.05
COLUMNS = {
    "value": ".3f",
    "gain_over_keep": "+.3f 95%",
    "gap_closed": ".1%",
    **{f"gap_closed_{shift}": ".1%" for shift in SHIFTS},
    "interquartile_mean": ".1% 95%",
    "exploitation_gap": "+.1%",
    "better_than": ".0f",
    "policy_steps_per_second": ",.0f",
}


def policies_of(played: Played) -> list[str]:
    """Names in the order in which they play."""
    return list(dict.fromkeys(policy for policy, _ in played))


def figure_of(played: Played, policy: str, figure: str = "value") -> np.ndarray:
    """One figure of a policy, (R, S): training seeds, sessions."""
    return values_of(played, policy)(figure)


def shares(contest: Contest, played: Played) -> dict[str, np.ndarray]:
    """Share of the gap between keep and the oracle that each run closes, (R,) by policy."""
    keep, oracle = figure_of(played, contest.keep), figure_of(played, contest.oracle)
    gap = oracle.mean() - keep[:, : oracle.shape[1]].mean()
    return {
        policy: (figure_of(played, policy).mean(axis=1) - keep.mean()) / gap
        for policy in policies_of(played)
        if policy not in (contest.keep, contest.oracle)
    }


def value_rows(contest: Contest, played: Played, shift: str | None) -> Rows:
    """Value, gain over keep, share of the gap of every policy on one task; other figures unless shifted."""
    keep, oracle = figure_of(played, contest.keep), figure_of(played, contest.oracle)
    n_oracle, rows = oracle.shape[1], []
    for policy in policies_of(played):
        own = figure_of(played, policy)
        seeds, sessions = own.shape
        figures: dict[str, Interval] = {"value": mean(own)}
        if policy != contest.keep:
            figures["gain_over_keep"] = difference(own, keep[:, :sessions])
            figures["gap_closed"] = gap_closed(own[:, :n_oracle], keep[:, :n_oracle], oracle)
        if shift is None:
            for metric, name in FIGURES.items():
                figures[metric] = mean(figure_of(played, policy, name))
        for metric, interval in figures.items():
            more: dict[str, Any] = {"shift": shift or NOT_SHIFTED}
            if metric == "value":
                more["by_seed"] = own.mean(axis=1).round(6).tolist()
            rows.append(row(policy, metric, interval, seeds, sessions, **more))
    return rows


def exploitation_rows(contest: Contest, true: Played, learned: Played) -> Rows:
    """How much more the learned users promise than the ground truth gives, beyond keep."""
    rows: Rows = []
    kept = [figure_of(users, contest.keep) for users in (learned, true)]
    for policy in policies_of(learned):
        if policy != contest.keep:
            own = [figure_of(users, policy) for users in (learned, true)]
            found = exploitation_gap(*own, *kept)
            rows.append(row(policy, "exploitation_gap", found, *own[0].shape, shift=NOT_SHIFTED))
    return rows


def speed_rows(taken: Taken, sessions: int) -> Rows:
    """Steps a second of policy and environment, and seconds of both together; range over training seeds."""
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
    """Interquartile mean of each policy over tasks, and the probability that it is better than another one.

    Args:
        tasks: shares (R,) by policy, of each task; policies that do not play all tasks are left out.
        sessions: of the task with most.
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


def comparison_rows(contest: Contest, played: Played) -> Rows:
    """Differences in value of every two policies but the oracle, with corrected p-values."""
    values = {policy: figure_of(played, policy) for policy in policies_of(played) if policy != contest.oracle}
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


def leaderboards(rows: Rows) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Header and body of the table of each track and scenario, best policy first, by title.

    `better_than` counts the policies that one is significantly better than, after correction; the
    interquartile mean is that of the shares of the gap with users as they are and with all that are shifted.
    """
    found = {}
    for track, scenario in dict.fromkeys((item["track"], item["scenario"]) for item in rows):
        all_users = [item for item in rows if (item["track"], item["scenario"]) == (track, scenario)]
        own = [item for item in all_users if item.get("shift", NOT_SHIFTED) == NOT_SHIFTED]
        values = {item["policy"]: item["mean"] for item in own if item["metric"] == "value"}
        compared = [item for item in own if item["metric"] == "difference"]
        taking_part = {name for item in compared for name in (item["policy"], item["against"])}
        wins = {policy: 0 for policy in values if policy in taking_part}  # not the oracle
        for item in compared:
            wins[item["policy"]] += item["p_holm"] < SIGNIFICANT
        own += [
            {"policy": policy, "metric": "better_than", "mean": n, "low": n, "high": n}
            for policy, n in wins.items()
        ]
        own += [
            {**item, "metric": f"gap_closed_{item['shift']}"}
            for item in all_users
            if item["metric"] == "gap_closed" and item.get("shift") in SHIFTS
        ]
        order = sorted(own, key=lambda item: -values.get(item["policy"], 0.0))
        shown = [item for item in order if item["metric"] in COLUMNS]
        metrics = {name: form for name, form in COLUMNS.items() if any(i["metric"] == name for i in shown)}
        found[f"{track}, {scenario}"] = table(shown, metrics)
    return found
