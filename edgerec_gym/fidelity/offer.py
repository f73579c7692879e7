"""Do rollouts show what the log showed? Click rate, session length and items of the logging policy.

Learned users may predict every logged slot well and still be asked about pages that no log has seen. This
check plays the logged order on pages as the scenario builds them, and compares sessions as a whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.answers import CLICK
from edgerec_gym.errors import MissingExtraError
from edgerec_gym.evaluation.intervals import percentile_interval, resampled_means

try:
    import sklearn  # noqa: F401
    import torch  # noqa: F401
except ImportError:
    raise MissingExtraError("judging learned users", "train") from None

from edgerec_gym.fidelity.rollouts import held_out, simulate
from edgerec_gym.fidelity.two_sample import two_sample
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import Scenario
from edgerec_gym.simulator.losses import FLOOR_LEVEL

ALLOWED = {"click_rate": 0.05, "length": 0.10}  # relative difference that is not called weak
MOST_SESSIONS = 2000
LEAST_ROLLOUTS = 1000  # more than a short log has sessions, so that chance is not taken for a difference
MOST_AUC = 0.65  # of the two-sample test, beyond which rollouts are called weak


def offer_figures(log: LoggedSessions, simulated: LoggedSessions, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Compare the click rate, the length and the items of logged and simulated sessions.

    Args:
        log: held-out sessions of the log.
        simulated: sessions of the logging policy on learned users.
        seed: seed of the resamples.

    Returns:
        `click_rate` (per answered slot) and `length` (answered slots): `log`, `simulated`, the relative
        `difference` with its 95 % interval (`low`, `high`) over sessions, and `weak`, whether it exceeds
        what :data:`ALLOWED` says and the interval excludes 0. `items`: the total variation `distance` of the
        items shown, the `floor` that a resample of the log's own sessions stays below, and `weak`.
    """
    rng = np.random.default_rng([seed, 17])
    ours, theirs = _totals(log), _totals(simulated)
    figures: dict[str, dict[str, Any]] = {}
    draws = [resampled_means(totals, rng) for totals in (ours, theirs)]
    for name, (over, under) in {"click_rate": (1, 0), "length": (0, 2)}.items():
        found = [totals[:, over].sum() / totals[:, under].sum() for totals in (ours, theirs)]
        change = _relative(*(means[:, over] / means[:, under] for means in draws))
        difference = percentile_interval(float(_relative(*found)), change)
        figures[name] = {
            "log": float(found[0]),
            "simulated": float(found[1]),
            "difference": difference["mean"],
            "low": difference["low"],
            "high": difference["high"],
            "weak": abs(difference["mean"]) > ALLOWED[name]
            and (difference["low"] > 0 or difference["high"] < 0),
        }
    figures["items"] = _items(log, simulated, rng)
    return figures


def _relative(log: np.ndarray, simulated: np.ndarray) -> np.ndarray:
    """Return the relative difference; 0 if both are 0."""
    return (simulated - log) / np.maximum(log, 1e-12)


def _totals(sessions: LoggedSessions) -> np.ndarray:
    """Return slots, clicks and 1 of each session, (S, 3) float64."""
    index = np.arange(len(sessions))
    rows = sessions.answered_rows(index)
    owner = np.repeat(index, sessions.answered)
    clicks = np.bincount(owner, sessions.actions[rows, CLICK], len(index))
    return np.column_stack([sessions.answered, clicks, np.ones(len(index))]).astype(np.float64)


def _items(log: LoggedSessions, simulated: LoggedSessions, rng: np.random.Generator) -> dict[str, Any]:
    n_items = len(log.catalog)
    index = np.arange(len(log))
    rows = log.answered_rows(index)
    owner, item = np.repeat(index, log.answered), log.item[rows]
    mix = np.bincount(item, minlength=n_items) / len(item)

    def distance(shown: np.ndarray) -> float:
        return float(np.abs(shown / shown.sum() - mix).sum() / 2)

    theirs = simulated.item[simulated.answered_rows(np.arange(len(simulated)))]
    chance = []
    for _ in range(200):
        weight = np.bincount(rng.integers(0, len(log), len(simulated)), minlength=len(log))
        chance.append(distance(np.bincount(item, weight[owner], n_items)))
    floor = float(np.quantile(chance, FLOOR_LEVEL))
    found = distance(np.bincount(theirs, minlength=n_items).astype(np.float64))
    return {"distance": found, "floor": floor, "weak": bool(found > 2 * floor)}


def check_offer(scenario: Scenario, log_folder: str | Path, seed: int = 0) -> dict[str, Any]:
    """Play the logged order on a scenario's learned users and compare with the log's held-out sessions.

    Returns:
        The figures of :func:`offer_figures`, `two_sample` with `auc` and `most_telling`, and `weak`, a list
        of texts that each name what does not meet and its size. None of this uses what the log does not tell.

    Raises:
        InputError: the log is not that of the scenario, or too short.
    """
    reader = LogReader(log_folder)
    log = held_out(reader, scenario, MOST_SESSIONS)
    n = len(log.sessions)
    simulated = simulate(scenario, max(n, LEAST_ROLLOUTS), [], seed)
    figures: dict[str, Any] = dict(offer_figures(log.sessions, simulated.sessions, seed))
    weak = weak_offer(figures)
    unidentified = frozenset(reader.unidentified) | frozenset(scenario.unidentified)
    as_many = simulated.sessions.select(np.arange(n))
    responses = scenario.config.responses
    told = two_sample(log.sessions, as_many, unidentified, responses=responses, repeats=2, seed=seed)
    if told["auc"] > MOST_AUC and told["weak"]:
        name = next(iter(told["most_telling"]))
        weak.append(f"a classifier tells rollouts from the log, AUC {told['auc']:.2f}, most of all by {name}")
    return figures | {"two_sample": told, "weak": weak}


def weak_offer(figures: dict[str, Any]) -> list[str]:
    """Return a text for each figure of :func:`offer_figures` that is weak."""
    texts = []
    for name, what in (("click_rate", "click rate"), ("length", "session length")):
        found = figures[name]
        if found["weak"]:
            texts.append(
                f"{what} {found['simulated']:.3g} in rollouts, {found['log']:.3g} in the log "
                f"({found['difference']:+.0%})"
            )
    if figures["items"]["weak"]:
        texts.append(
            f"items shown differ from the log's by {figures['items']['distance']:.2f} "
            f"(chance: {figures['items']['floor']:.2f})"
        )
    return texts
