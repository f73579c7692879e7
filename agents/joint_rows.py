"""Policies and rows of the benchmark's track joint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgerec_gym.agents import edgerec_runs
from edgerec_gym.benchmark import Rows, row, table
from edgerec_gym.metrics import Interval, seeds_interval

ENV_ID = "EdgeFeed-v0"
KEEP, ORACLE = "keep", "oracle"
RERANKERS, ESAN, UPLIFT, PPO = ("dnn", "crban"), "esan", "uplift-x", "pointer-ppo"
PARTS = (RERANKERS[0], ESAN, UPLIFT)  # that the agent is made of
JOINT, BLIND = edgerec_runs.AGENT, "edgerec-no-page-views"
SINGLE = ("greedy", "device-greedy", "fixed-slot", "fixed-interval", *RERANKERS, "dpp on dnn")
INSERT_ONLY, REQUEST_ONLY = "esan + exact, cards only", "uplift-x, requests only"
TOGETHER, JOINT_PLANS = "parts together", "edgerec, whole plans"
LEARNED = (  # also on learned users
    KEEP, "greedy", "device-greedy", *RERANKERS, PPO, TOGETHER, JOINT, JOINT_PLANS,
)  # fmt: skip
ABLATIONS: dict[str, dict[str, Any]] = {  # of the jointly trained agent -> rules that differ
    "edgerec, no re-rank": {"decide": {"order": False}},
    "edgerec, no insertion": {"decide": {"insert": False}},
    "edgerec, no request": {"decide": {"request": False}},
    "edgerec, plans every slot": {"triggers": {"every_slot": True}},
    "edgerec, plans at page ends": {
        "triggers": {"click": False, "deletion": False, "quiet_exposures": False}
    },
}
NO_PAGE_VIEWS = "edgerec, no page views"
STALE = ", stale cloud"  # behaviour reaches it every 20 slots; by default with every request for a page
STALE_POLICIES = (KEEP, JOINT)
METRICS = {
    "clicks": ".3f",
    "purchases": ".4f",
    "requests": ".2f",
    "cards": ".1%",
    "value": ".3f",
    "gain_over_keep": "+.3f 95%",
    "gap_closed": ".0%",
    "gain_over_best_single": "+.3f 95%",
    "exploitation_gap": "+.1%",
    "violations": ".0f",
}
ABLATION_METRICS = {"value": ".3f", "cost": "+.3f 95%"}


Played = dict[tuple[str, int | None], dict[str, np.ndarray]]
Values = Callable[[str], np.ndarray]


def _of(found: Played, policy: str) -> Values:
    """Function from the name of a figure to its values (seeds, sessions); "cards" counts all types."""

    def values(name: str) -> np.ndarray:
        seeds = [sessions for (known, _), sessions in found.items() if known == policy]
        if name == "cards":
            return np.stack([sum(v for k, v in s.items() if k.startswith("cards_")) for s in seeds])
        return np.stack([sessions[name] for sessions in seeds])

    return values


def make_rows(true: Played, learned: Played, stale: Played) -> Rows:
    """Rows of all policies, of ablations beside the agent, and of the stale cloud."""
    names = list(dict.fromkeys(name for name, _ in true))
    single = [name for name in names if name in (*SINGLE, INSERT_ONLY, REQUEST_ONLY)]
    best = max(single, key=lambda name: _of(true, name)("value").mean(), default=None)
    found: Rows = []
    for name in names:
        figures = _figures(name, true, learned)
        if best is not None and name in (TOGETHER, JOINT, JOINT_PLANS, PPO):
            figures["gain_over_best_single"] = _difference(_of(true, name), _of(true, best))
        if name in (*ABLATIONS, NO_PAGE_VIEWS, JOINT_PLANS, TOGETHER) and JOINT in names:
            figures["cost"] = _difference(_of(true, JOINT), _of(true, name))
        found += _rows(name, figures, _of(true, name), {"gain_over_best_single": {"single": best}})
    for name in dict.fromkeys(name for name, _ in stale):
        figures = {"value": _mean(_of(stale, name)("value"))}
        if name in names:
            figures["cost"] = _difference(_of(true, name), _of(stale, name))
        found += _rows(name + STALE, figures, _of(stale, name), {})
    return found


def _rows(name: str, figures: dict[str, Interval], own: Values, more: dict[str, dict[str, Any]]) -> Rows:
    n_seeds, n_sessions = own("value").shape
    more = {"value": {"by_seed": own("value").mean(axis=1).round(4).tolist()}, **more}
    return [
        row(name, metric, interval, n_seeds, n_sessions, **more.get(metric, {}))
        for metric, interval in figures.items()
    ]


def _mean(values: np.ndarray) -> Interval:
    return seeds_interval([values], lambda m: m[..., 0])


def _difference(one: Values, other: Values) -> Interval:
    return seeds_interval([one("value"), other("value")], lambda m: m[..., 0] - m[..., 1])


def _figures(name: str, true: Played, learned: Played) -> dict[str, Interval]:
    own, keep, oracle = _of(true, name), _of(true, KEEP), _of(true, ORACLE)
    names = {"clicks": "expected_clicks", "purchases": "expected_purchases", "length": "exposures"}
    figures = {metric: _mean(own(key)) for metric, key in (names | {"requests": "requests"}).items()}
    figures["cards"] = seeds_interval([own("cards"), own("exposures")], lambda m: m[..., 0] / m[..., 1])
    figures["value"] = _mean(own("value"))
    total = float(own("violations").sum())
    figures["violations"] = {"mean": total, "low": total, "high": total}
    if name == KEEP:
        return figures
    figures["gain_over_keep"] = _difference(own, keep)
    figures["gap_closed"] = seeds_interval(
        [own("value"), keep("value"), oracle("value")],
        lambda m: (m[..., 0] - m[..., 1]) / (m[..., 2] - m[..., 1]),
    )
    if any(known == name for known, _ in learned):
        mine, kept = _of(learned, name)("value"), _of(learned, KEEP)("value")
        n = mine.shape[1]
        figures["exploitation_gap"] = seeds_interval(
            [mine, own("value")[:, :n], kept, keep("value")[:, :n]],
            lambda m: m[..., 0] / m[..., 1] - m[..., 2] / m[..., 3],
        )
    return figures


def tables(rows: Rows) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Header and body of the tables, by title."""
    costly = {item["policy"] for item in rows if item["metric"] == "cost"} | {JOINT}
    apart = {*ABLATIONS, NO_PAGE_VIEWS}
    whole = [r for r in rows if r["policy"] not in apart and not r["policy"].endswith(STALE)]
    return {
        ENV_ID: table(whole, METRICS),
        "ablations; cost: what the agent earns more": table(
            [r for r in rows if r["policy"] in costly], ABLATION_METRICS
        ),
    }
