"""Rows of the track request: quality of the estimates, true effects of requests, and the shared budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import save_file

from edgerec_gym.agents.requests.effects import HORIZONS
from edgerec_gym.agents.requests.planner import PriceController, RequestPlanner
from edgerec_gym.agents.requests.scores import UpliftScore, decision_inputs
from edgerec_gym.agents.requests.train import load_model, uplift
from edgerec_gym.agents.requests.uplift_models import UpliftModel
from edgerec_gym.bench.request.effects import Audit, EffectSample, audit
from edgerec_gym.bench.request.fleet import serve
from edgerec_gym.config import RewardConfig
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import Entry, Place, Rows, content_key, row, table
from edgerec_gym.evaluation.intervals import ratio_interval
from edgerec_gym.evaluation.ranking import auc
from edgerec_gym.evaluation.uplift import RankedSample, calibration, interval, squared_pehe, true_qini
from edgerec_gym.files import atomic_path, make_folder
from edgerec_gym.runs import read_run
from edgerec_gym.scenario import Scenario
from edgerec_gym.tensors import read_tensors

FLEET_RATE = 0.04  # shared budget: requests per tick and session of the usual traffic
CAUSAL_OR_NAIVE = (
    "causal ratio: purchases with the request over those without it at the same moments; naive ratio: over "
    "those at an average moment, which credits requests with users who were about to buy anyway"
)
DECILE = "true_effect_in_decile_"
Item = TypeVar("Item")
POLICY_METRICS = {
    "requests": ".2f",
    "benefit": ".3f",
    "purchases": ".4f",
    "value": ".3f",
    "gain_over_keep": "+.3f 95%",
    "attainable_gap_closed": ".0%",
    "gap_closed": ".0%",
    "gain_per_request": "+.3f",
}
AUDIT_METRICS = {
    "true_effect": "+.3f 95%",
    "negative_share": ".0%",
    "purchases_caused_in_10": "+.4f 95%",
    "causal_ratio_in_10": ".2f 95%",
    "naive_ratio_in_10": ".2f 95%",
}
QUALITY_METRICS = {
    "qini": "+.4f 95%",
    "auuc_over_chance": "+.4f",
    "true_qini": "+.4f 95%",
    "pehe": ".3f",
    "pehe_of_mean": ".3f",
    "auc_all": ".3f",
    "auc_control": ".3f",
    "auc_treatment": ".3f",
}
SAVING_METRICS = {
    "requests_saved": "+.0% 95%",
    "requests_saved_at_equal_purchases": "+.0% 95%",
    "benefit_gained_at_equal_requests": "+.1% 95%",
    "purchases_gained_at_equal_requests": "+.1% 95%",
}
BUDGET_METRICS = {"spent_of_budget": ".1%", "spent_of_budget_second_half": ".1%"}


def quality_rows(
    models: dict[str, list[UpliftModel]], sample: EffectSample, horizon: int, reward: RewardConfig
) -> Rows:
    """Return Qini, AUUC, PEHE, calibration and AUC of the estimators, one network per training seed."""
    kept, requested, drawn = sample.values(horizon, *reward.outcome_weights)
    tau, h = requested - kept, sample.horizons.index(horizon)
    error = np.sqrt(sample.effects.error[:, h] ** 2 @ np.array(reward.outcome_weights) ** 2)
    bought = sample.effects.drawn[:, h, 1] > 0
    observation = decision_inputs(sample.observation)
    rows: Rows = []
    for agent, networks in models.items():
        effects = [[part.double().numpy() for part in uplift(network, observation)] for network in networks]
        scores = [effect[0] for effect in effects]
        rows += _order_rows(agent, scores, sample, tau, drawn)
        mean = float(tau.mean())
        for name, estimates in (("pehe", scores), ("pehe_of_mean", [np.full(len(tau), mean)])):
            found = interval(
                lambda w, e=estimates: _mean_over(
                    e, lambda s: np.sqrt(max(squared_pehe(s, tau, error, w), 0.0))
                ),  # type: ignore[misc]
                sample.session,
            )
            rows.append(row(agent, name, found, len(estimates), len(tau)))
        table = np.mean([calibration(score, tau) for score in scores], axis=0)
        for k, (estimate, true) in enumerate(table):
            flat = {"mean": float(true), "low": float("nan"), "high": float("nan")}
            rows.append(
                row(
                    agent,
                    f"{DECILE}{k + 1}",
                    flat,
                    len(scores),
                    len(tau),
                    estimate=float(estimate),
                )
            )
        for name, arm in (("all", None), ("control", False), ("treatment", True)):
            rows.append(_auc_row(agent, name, arm, effects, sample, bought))
    return rows


def _mean_over(values: Sequence[Item], figure: Callable[[Item], float]) -> float:
    return float(np.mean([figure(value) for value in values]))


def _order_rows(
    agent: str, scores: Sequence[np.ndarray], sample: EffectSample, tau: np.ndarray, drawn: np.ndarray
) -> Rows:
    """Return Qini and AUUC of drawn outcomes, and the Qini of true effects relative to the true order."""
    ranked = [RankedSample(score, sample.treated, drawn) for score in scores]
    order = {
        "qini": lambda w: _mean_over(ranked, lambda r: r.qini(w)),
        "auuc": lambda w: _mean_over(ranked, lambda r: r.auuc(w)),
        "auuc_over_chance": lambda w: _mean_over(ranked, lambda r: r.auuc(w) - 0.5 * r.gain(w)[1][-1]),
        "true_qini": lambda w: _mean_over(scores, lambda s: true_qini(s, tau, w)),
    }
    found = {name: interval(statistic, sample.session) for name, statistic in order.items()}
    return [row(agent, name, value, len(scores), len(tau)) for name, value in found.items()]


def _auc_row(
    agent: str,
    name: str,
    arm: bool | None,
    effects: list[list[np.ndarray]],
    sample: EffectSample,
    bought: np.ndarray,
) -> dict[str, Any]:
    rows = np.ones(len(bought), np.bool_) if arm is None else sample.treated == arm

    def figure(effect: list[np.ndarray]) -> float:
        outcome = np.where(sample.treated, effect[2], effect[1])
        return auc(outcome[rows], bought[rows])

    values = [figure(effect) for effect in effects]
    found = {"mean": float(np.mean(values)), "low": float(np.min(values)), "high": float(np.max(values))}
    return row(agent, f"auc_{name}", found, len(effects), int(rows.sum()), spread="range over seeds")


# --- true effects of requests ---------------------------------------------------------------------------


def audit_rows(entries: Sequence[Entry], sample: EffectSample, place: Place, out: Path, horizon: int) -> Rows:
    """Return treated minus control at the moments that each policy chose, and the naive ratio."""
    reward = Scenario.load(place.scenario).config.reward
    rows: Rows = []
    for entry in entries:
        found = cached_audit(entry, place, out)
        if len(found.slot):
            rows += _audit_rows(entry.policy, found, sample, reward, horizon)
    return rows


def cached_audit(entry: Entry, place: Place, out: Path) -> Audit:
    """Audit an entry, or read its cached audit."""
    folder = make_folder(out / "audits")
    name = "".join(c if c.isalnum() else "-" for c in str(entry))
    file = folder / f"{name}-{content_key(entry, place)}.safetensors"
    if not file.exists():
        found = audit(entry.make(place, **entry.arguments), place.scenario, place.sessions, place.seed)
        with atomic_path(file) as temporary:
            save_file({key: np.ascontiguousarray(value) for key, value in vars(found).items()}, temporary)
    read, effects = read_tensors(file), (None, len(HORIZONS), 2)
    wanted: dict[str, tuple[int | None, ...]] = {"kept": effects, "requested": effects, "error": effects}
    wanted |= {"slot": (None,), "page_age": (None,), "intent_moved": (None,)}
    rows = {len(values) if values.ndim else -1 for values in read.values()}
    for name in wanted.keys() | read.keys():
        fits = name in wanted and name in read and read[name].shape[1:] == wanted[name][1:]
        if not fits or len(rows) != 1:
            raise InputError(f"{file}: {name!r} is missing, unknown or has another shape; remove the file")
    return Audit(**read)


def _audit_rows(policy: str, found: Audit, sample: EffectSample, reward: RewardConfig, horizon: int) -> Rows:
    """Return the effect in reward units at `horizon`, and figures of purchases at every horizon."""
    n = len(found.slot)
    rows: Rows = []
    ones, weights = np.ones(n), np.array(reward.outcome_weights)
    tau = (found.requested - found.kept) @ weights
    at = HORIZONS.index(horizon)
    rows.append(row(policy, "true_effect", ratio_interval(tau[:, at], ones), 1, n))
    rows.append(row(policy, "negative_share", ratio_interval((tau[:, at] < 0) * 1.0, ones), 1, n))
    for h, slots in enumerate(HORIZONS):
        kept, requested = found.kept[:, h, 1], found.requested[:, h, 1]
        average = float(sample.effects.kept[:, sample.horizons.index(slots), 1].mean())
        figures = {
            "purchases_without": ratio_interval(kept, ones),
            "purchases_with": ratio_interval(requested, ones),
            "purchases_caused": ratio_interval(requested - kept, ones),
            "causal_ratio": ratio_interval(requested, kept),
            "naive_ratio": ratio_interval(requested, average * ones),
        }
        rows += [row(policy, f"{name}_in_{slots}", value, 1, n) for name, value in figures.items()]
    return rows


# --- the shared budget ------------------------------------------------------------------------------------


def fleet_rows(runs: dict[int, Path], scenario: str, *, concurrent: int, ticks: int, cool_down: int) -> Rows:
    """Return spent over allowed requests of one shared budget, with constant and with doubling traffic."""
    config = Scenario.load(scenario).config
    rows: Rows = []
    for doubles in (False, True):
        ratios, halves = [], []
        for seed, run in runs.items():
            quantiles = np.array(read_run(run).record["quantiles"])
            controller = PriceController(FLEET_RATE * concurrent, quantiles)
            planner = RequestPlanner(
                "fleet", UpliftScore(load_model(run, config)), controller, cool_down=cool_down
            )
            traffic = serve(planner, scenario, concurrent=concurrent, ticks=ticks, doubles=doubles, seed=seed)
            budget = FLEET_RATE * concurrent * ticks
            ratios.append(traffic.requests.sum() / budget)
            halves.append(traffic.requests[ticks // 2 :].sum() / (budget / 2))
        name = "traffic doubles" if doubles else "constant traffic"
        for metric, values in (("spent_of_budget", ratios), ("spent_of_budget_second_half", halves)):
            found = {"mean": float(np.mean(values)), "low": float(min(values)), "high": float(max(values))}
            more = {"spread": "range over seeds", "concurrent": concurrent, "ticks": ticks}
            rows.append(row(f"shared budget, {name}", metric, found, len(values), concurrent, **more))
    return rows


def tables(rows: Rows) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return header and body of the tables, by title."""
    found = {}
    parts = {
        "policies; benefit: clicks + 5 purchases, expected, without the cost of requests": POLICY_METRICS,
        "estimates of the effect of a request": QUALITY_METRICS,
        f"requests of each policy, played with and without; {CAUSAL_OR_NAIVE}": AUDIT_METRICS,
        "one budget for all sessions": BUDGET_METRICS,
    }
    for title, metrics in parts.items():
        found[title] = table([item for item in rows if item["metric"] in metrics], metrics)
    found["true effects by decile of the estimate: estimated, true"] = _calibration_table(rows)
    for target in dict.fromkeys(item["against"] for item in rows if "against" in item):
        if target.startswith("chance"):  # these rows appear only in the file
            continue
        chosen = [
            item
            for item in rows
            if item.get("against") == target
            and item["metric"] in SAVING_METRICS
            and np.isfinite(item["mean"])
        ]
        if chosen:  # else no curve reaches it
            found[f"against {target}"] = table(chosen, SAVING_METRICS)
    return found


def _calibration_table(rows: Rows) -> tuple[list[str], list[list[str]]]:
    deciles = {
        (item["policy"], item["metric"].removeprefix(DECILE)): f"{item['estimate']:+.2f}, {item['mean']:+.2f}"
        for item in rows
        if item["metric"].startswith(DECILE)
    }
    header = ["policy", *dict.fromkeys(decile for _, decile in deciles)]
    policies = dict.fromkeys(policy for policy, _ in deciles)
    return header, [[policy, *(deciles[policy, decile] for decile in header[1:])] for policy in policies]
