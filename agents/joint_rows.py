"""Policies and rows of the benchmark's track joint."""

from __future__ import annotations

from typing import Any

from edgerec_gym.agents import edgerec_runs
from edgerec_gym.agents.track_figures import (
    Played,
    Values,
    difference,
    exploitation_gap,
    gap_closed,
    mean,
    ratio,
    values_of,
)
from edgerec_gym.benchmark import Rows, row, table
from edgerec_gym.metrics import Interval

ENV_ID = "EdgeFeed-v0"
KEEP, ORACLE = "keep", "oracle"
RERANKERS, ESAN, UPLIFT, PPO = ("dnn", "crban"), "esan", "uplift-x", "pointer-ppo"
PARTS = {  # that the agent is made of, by scenario; first the re-ranker that ranks held-out days best
    "lite": ("dnn", ESAN, UPLIFT),
    "default": ("crban", ESAN, UPLIFT),
}
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


def make_rows(true: Played, learned: Played, stale: Played) -> Rows:
    """Rows of all policies, of ablations beside the agent, and of the stale cloud."""
    names = list(dict.fromkeys(name for name, _ in true))
    single = [name for name in names if name in (*SINGLE, INSERT_ONLY, REQUEST_ONLY)]
    best = max(single, key=lambda name: values_of(true, name)("value").mean(), default=None)
    found: Rows = []
    for name in names:
        figures = _figures(name, true, learned)
        if best is not None and name in (TOGETHER, JOINT, JOINT_PLANS, PPO):
            figures["gain_over_best_single"] = _difference(true, name, true, best)
        if name in (*ABLATIONS, NO_PAGE_VIEWS, JOINT_PLANS, TOGETHER) and JOINT in names:
            figures["cost"] = _difference(true, JOINT, true, name)
        found += _rows(name, figures, values_of(true, name), {"gain_over_best_single": {"single": best}})
    for name in dict.fromkeys(name for name, _ in stale):
        figures = {"value": mean(values_of(stale, name)("value"))}
        if name in names:
            figures["cost"] = _difference(true, name, stale, name)
        found += _rows(name + STALE, figures, values_of(stale, name), {})
    return found


def _rows(name: str, figures: dict[str, Interval], own: Values, more: dict[str, dict[str, Any]]) -> Rows:
    n_seeds, n_sessions = own("value").shape
    more = {"value": {"by_seed": own("value").mean(axis=1).round(4).tolist()}, **more}
    return [
        row(name, metric, interval, n_seeds, n_sessions, **more.get(metric, {}))
        for metric, interval in figures.items()
    ]


def _difference(one: Played, name: str, other: Played, other_name: str) -> Interval:
    return difference(values_of(one, name)("value"), values_of(other, other_name)("value"))


def _figures(name: str, true: Played, learned: Played) -> dict[str, Interval]:
    own, keep, oracle = values_of(true, name), values_of(true, KEEP), values_of(true, ORACLE)
    names = {"clicks": "expected_clicks", "purchases": "expected_purchases", "length": "exposures"}
    figures = {metric: mean(own(key)) for metric, key in (names | {"requests": "requests"}).items()}
    figures["cards"] = ratio(own("cards"), own("exposures"))
    figures["value"] = mean(own("value"))
    total = float(own("violations").sum())
    figures["violations"] = {"mean": total, "low": total, "high": total}
    if name == KEEP:
        return figures
    figures["gain_over_keep"] = difference(own("value"), keep("value"))
    figures["gap_closed"] = gap_closed(own("value"), keep("value"), oracle("value"))
    if any(known == name for known, _ in learned):
        mine, kept = values_of(learned, name)("value"), values_of(learned, KEEP)("value")
        figures["exploitation_gap"] = exploitation_gap(mine, own("value"), kept, keep("value"))
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
