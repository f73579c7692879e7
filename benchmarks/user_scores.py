"""Scores of predictions on held-out slots, with intervals over training seeds and over sessions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student
from sklearn.metrics import log_loss

from edgerec_gym.evaluation.intervals import CHUNK, LEVEL, RESAMPLES, percentile_interval, resampled_means
from edgerec_gym.evaluation.ranking import auc, auc_by_group, grouped_auc
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.simulator.losses import calibration_error, reliability

Predictions = dict[str, np.ndarray]  # (N,) probability by event


class Truth(NamedTuple):
    """What happened at N held-out slots.

    Attributes:
        happened: (N,) bool by event; events that the log does not hold are absent.
        page: (N,) int64 page number across all sessions.
        session: (N,) int64 in 0 .. S - 1.
    """

    happened: dict[str, np.ndarray]
    page: np.ndarray
    session: np.ndarray


def held_out_truth(sessions: LoggedSessions, happened: dict[str, np.ndarray]) -> Truth:
    """Number the sessions and pages of the answered slots."""
    index = np.flatnonzero(sessions.answered > 0)
    session = np.repeat(np.arange(len(index)), sessions.answered[index])
    page = sessions.page[sessions.answered_rows(index)].astype(np.int64)
    return Truth(happened, session * (page.max() + 1) + page, session)


def figures(predicted: Predictions, truth: Truth) -> dict[str, float | None]:
    """Scores of one fit; None where the log or the sessions do not determine them.

    Returns:
        `click_auc`, `click_log_loss` (nats per slot), `click_ece` (expected calibration error),
        `click_auc_within_page` (mean over the pages with a click and a miss), `leave_auc`, `long_look_auc`.
    """
    click = truth.happened["click"]
    probability = predicted["click"].astype(np.float64)
    found = {
        "click_auc": auc(probability, click),
        "click_log_loss": float(log_loss(click, probability, labels=[False, True])),
        "click_ece": calibration_error(reliability(probability, click)),
        "click_auc_within_page": grouped_auc(probability, click, truth.page),
    }
    for event in ("leave", "long_look"):
        happened = truth.happened.get(event)
        found[f"{event}_auc"] = np.nan if happened is None else auc(predicted[event], happened)
    return {name: None if np.isnan(value) else float(value) for name, value in found.items()}


def over_seeds(values: list[float | None]) -> dict[str, Any]:
    """Mean over training seeds with its 95 % t interval, which needs two seeds (otherwise null)."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {"mean": None, "low": None, "high": None, "by_seed": values}
    mean, half = float(np.mean(known)), None
    if len(known) > 1:
        quantile = float(student.ppf((1 + LEVEL) / 2, len(known) - 1))
        half = quantile * float(np.std(known, ddof=1)) / len(known) ** 0.5
    ends = {"low": None, "high": None} if half is None else {"low": mean - half, "high": mean + half}
    return {"mean": mean, **ends, "by_seed": values}


def resampled_auc(score: np.ndarray, truth: Truth, seed: int = 0) -> np.ndarray:
    """Click AUC of resampled sessions, (RESAMPLES,); the same seed and sessions give the same resamples."""
    order = np.argsort(score, kind="stable")
    tied = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # starts of groups of equal scores
    click, owner = truth.happened["click"][order], truth.session[order]
    rng, sessions = np.random.default_rng(seed), int(truth.session.max()) + 1
    even, found = np.full(sessions, 1 / sessions), []
    for _ in range(RESAMPLES // CHUNK):
        weight = rng.multinomial(sessions, even, size=CHUNK)[:, owner].astype(np.float64)
        hits = np.add.reduceat(weight * click, tied, axis=1)
        misses = np.add.reduceat(weight * ~click, tied, axis=1)
        below = np.cumsum(misses, axis=1) - misses / 2
        with np.errstate(invalid="ignore"):  # resamples without a click
            found.append((hits * below).sum(1) / (hits.sum(1) * misses.sum(1)))
    return np.concatenate(found)


def resampled_page_auc(score: np.ndarray, truth: Truth, seed: int = 0) -> np.ndarray:
    """Mean click AUC within a page of resampled sessions, (RESAMPLES,); the resamples of resampled_auc."""
    found, page = auc_by_group(score, truth.happened["click"], truth.page)
    sessions = int(truth.session.max()) + 1
    of_page = np.zeros(int(truth.page.max()) + 1, np.int64)
    of_page[truth.page] = truth.session
    sums = [np.bincount(of_page[page], weight, sessions) for weight in (found, np.ones_like(found))]
    with np.errstate(invalid="ignore"):  # resamples without such a page
        total, pages = resampled_means(np.stack(sums, 1), np.random.default_rng(seed)).T
        return total / pages


def auc_differences(
    models: dict[str, list[Predictions]], reference: str, truth: Truth, within_page: bool = False
) -> dict[str, Any]:
    """Click AUC minus that of the reference, mean over seeds, with 95 % bootstrap intervals over sessions.

    Args:
        models: predictions of each model by training seed; a single one stands for all seeds.
        reference: name of one of them.
        truth: truth of the held-out slots.
        within_page: compare the mean AUC within a page, not that over all slots.

    Returns:
        By model {"mean", "low", "high"}; seeds are fixed, and sessions resampled alike for all models.
    """

    def exact(predicted: Predictions) -> float:
        click = truth.happened["click"]
        if within_page:
            return grouped_auc(predicted["click"], click, truth.page)
        return auc(predicted["click"], click)

    resampled = resampled_page_auc if within_page else resampled_auc
    seeds = len(models[reference])
    scores = {name: [exact(p) for p in fits] for name, fits in models.items()}
    drawn = {name: [resampled(p["click"], truth) for p in fits] for name, fits in models.items()}
    found = {}
    for name in [name for name in models if name != reference]:
        pairs = [(min(k, len(models[name]) - 1), k) for k in range(seeds)]
        mean = np.mean([scores[name][a] - scores[reference][b] for a, b in pairs])
        draws = np.mean([drawn[name][a] - drawn[reference][b] for a, b in pairs], axis=0)
        found[name] = percentile_interval(float(mean), draws)
    return found
