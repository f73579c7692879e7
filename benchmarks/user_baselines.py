"""Simpler user models: click rates by position, logistic regression, boosted trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import lightgbm
import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks.user_features import own_answers, slot_features
from edgerec_gym.answers import CLICK, DWELL_BUCKETS, LEAVE, PAGE_AGE, SLOT
from edgerec_gym.fidelity.expected import LONG_LOOK
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.simulator.inputs import InputEncoder

EVENTS = {"click": None, "leave": "leave", "long_look": "exposure_actions"}  # event: field it needs
PRIOR_SLOTS = 100.0  # slots at the average rate that are added to those of every position
PENALTIES = (1e-4, 1e-3, 1e-2)  # C of the logistic regression: inverse strength of the L2 penalty
LEAVES = (7, 31)
ROUNDS, PATIENCE = 1000, 30  # maximum boosting rounds, and rounds without improvement before stopping
TREES = {
    "objective": "binary",
    "learning_rate": 0.06,
    "max_bin": 63,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


class Slots(NamedTuple):
    """Answered slots (N) of some sessions.

    Attributes:
        position: (N, 2) int64 slot and page age.
        features: (N, k) float32, see :func:`~benchmarks.user_features.slot_features`.
        answers: (N, k') float32 what was done at the slot.
        happened: (N,) bool by event.
    """

    position: np.ndarray
    features: np.ndarray
    answers: np.ndarray
    happened: dict[str, np.ndarray]

    def inputs(self, event: str) -> np.ndarray:
        """Inputs available when the event is predicted; for leaving, these include the slot's own answer."""
        return np.concatenate([self.features, self.answers], 1) if event == "leave" else self.features

    def rows(self, event: str) -> Rows:
        """Inputs and outcomes of an event."""
        return Rows(self.inputs(event), self.happened[event])


class Parts(NamedTuple):
    """Slots to fit, to tune and to judge models on."""

    train: Slots
    stop: Slots
    held_out: Slots


def answered_slots(sessions: LoggedSessions, encoder: InputEncoder, frozen_pages: bool) -> Slots:
    """Collect the answered slots of sessions, in order; see slot_features for the arguments."""
    rows = sessions.answered_rows(np.arange(len(sessions)))
    position = sessions.context[rows][:, [SLOT, PAGE_AGE]].astype(np.int64)
    features = slot_features(sessions, encoder, frozen_pages)
    return Slots(position, features, own_answers(sessions), events_of(sessions))


def events_of(sessions: LoggedSessions) -> dict[str, np.ndarray]:
    """Which events happened at the answered slots of sessions, in order, (N,) bool each."""
    actions = sessions.actions[sessions.answered_rows(np.arange(len(sessions)))]
    return {
        "click": actions[:, CLICK] > 0,
        "leave": actions[:, LEAVE] > 0,
        "long_look": np.rint(actions[:, 0] * (DWELL_BUCKETS - 1)) >= LONG_LOOK,
    }


def position_rates(parts: Parts, event: str, seed: int) -> np.ndarray:
    """Rate at the slot times rate at the page age, divided by the average rate; `seed` has no effect."""
    happened = parts.train.happened[event].astype(np.float64)
    average = (happened.sum() + 1) / (len(happened) + 2)
    predicted = np.full(len(parts.held_out.position), average)
    for k in range(parts.train.position.shape[1]):
        at, where = parts.train.position[:, k], parts.held_out.position[:, k]
        size = int(max(at.max(), where.max())) + 1
        slots, events = np.bincount(at, minlength=size), np.bincount(at, happened, size)
        rate = (events + PRIOR_SLOTS * average) / (slots + PRIOR_SLOTS)
        predicted *= rate[where] / average
    return np.clip(predicted, 1e-6, 1 - 1e-6)


class Rows(NamedTuple):
    """Inputs (N, k) float32 (NaN where unknown), and whether the event happened, (N,) bool."""

    inputs: np.ndarray
    happened: np.ndarray


def fit_logistic(train: Rows, penalty: float) -> Pipeline:
    """L2-penalised logistic regression, on standardised inputs; `penalty` is C, its inverse strength."""
    model = make_pipeline(
        SimpleImputer(add_indicator=True), StandardScaler(), LogisticRegression(C=penalty, max_iter=1000)
    )
    with threadpool_limits(1):  # on a busy machine, the threads of small products wait for each other
        return model.fit(*train)


def tuned_logistic(train: Rows, stop: Rows) -> tuple[Pipeline, float]:
    """Fit with each of :data:`PENALTIES`; returns the best model on `stop`, and its penalty."""

    def loss(model: Pipeline) -> float:
        return log_loss(stop.happened, model.predict_proba(stop.inputs)[:, 1], labels=[False, True])

    fits = [(fit_logistic(train, penalty), penalty) for penalty in PENALTIES]
    return min(fits, key=lambda fit: loss(fit[0]))


def fit_trees(train: Rows, settings: dict[str, Any], rounds: int) -> lightgbm.Booster:
    """LightGBM with `settings` beside :data:`TREES`."""
    settings = {**TREES, **settings}
    return lightgbm.train(settings, lightgbm.Dataset(*train, params=settings), rounds)


def tuned_trees(
    train: Rows, stop: Rows, grid: Sequence[dict[str, Any]], seed: int
) -> tuple[lightgbm.Booster, dict[str, Any]]:
    """LightGBM; the number of rounds and the settings of the grid are tuned on `stop`.

    Returns:
        The best model, and its settings of the grid; its `best_iteration` is the number of rounds.
    """

    def fit(chosen: dict[str, Any]) -> tuple[lightgbm.Booster, dict[str, Any]]:
        settings = {**TREES, "seed": seed, **chosen}
        data = lightgbm.Dataset(*train, params=settings)
        model = lightgbm.train(
            settings,
            data,
            ROUNDS,
            valid_sets=[lightgbm.Dataset(*stop, reference=data)],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )
        return model, chosen

    return min(map(fit, grid), key=lambda found: found[0].best_score["valid_0"]["binary_logloss"])


def logistic_regression(parts: Parts, event: str, seed: int) -> np.ndarray:
    """Logistic regression, tuned on the stopping sessions; ignores `seed`."""
    model, _ = tuned_logistic(parts.train.rows(event), parts.stop.rows(event))
    return model.predict_proba(parts.held_out.inputs(event))[:, 1]


def boosted_trees(parts: Parts, event: str, seed: int) -> np.ndarray:
    """LightGBM; leaves per tree and number of rounds are tuned on the stopping sessions."""
    grid = [{"num_leaves": leaves} for leaves in LEAVES]
    model, _ = tuned_trees(parts.train.rows(event), parts.stop.rows(event), grid, seed)
    return np.asarray(model.predict(parts.held_out.inputs(event), num_threads=1))


class Baseline(NamedTuple):
    """A model: probabilities of an event on the held-out slots, (N,), and whether its seed changes them."""

    predict: Callable[[Parts, str, int], np.ndarray]
    random: bool


BASELINES = {
    "rates by position": Baseline(position_rates, random=False),
    "logistic regression": Baseline(logistic_regression, random=False),
    "boosted trees": Baseline(boosted_trees, random=True),
}
