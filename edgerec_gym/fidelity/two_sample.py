"""Two-sample test: can a classifier tell simulated sessions from logged ones? An AUC of 0.5 is ideal."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from threadpoolctl import threadpool_limits

from edgerec_gym.answers import CLICK, LEAVE, PAGE_AGE, PAGE_VIEW, SINCE_PAGE_VIEW, SLOT
from edgerec_gym.config import RESPONSE_PREFIX
from edgerec_gym.evaluation.ranking import auc
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.simulator.losses import FLOOR_LEVEL

FOLDS = 5


# What a log must record for a feature; without it the value is made up on one side or the other.
NEEDS = {
    "left": "leave",
    "slot_of_clicks": "position",
    "page_age_of_clicks": "position",
    "gap_before_clicks": "position",
    "page_view_1": "page_view_duration",
}
NEEDS |= dict.fromkeys(
    ("dwell", "dwell_spread", "dwell_of_clicked", "base_ctr_of_long_looks"), "exposure_actions"
)


def session_features(
    sessions: LoggedSessions, unidentified: frozenset[str] = frozenset(), responses: tuple[str, ...] = ()
) -> tuple[np.ndarray, list[str]]:
    """Return features of sessions, (S, k) float64 (NaN where one does not apply), and their names.

    What a log does not tell (:data:`edgerec_gym.scenario.UNIDENTIFIED`) is left out. `responses` names the
    named responses of the feed, whose rates are features.
    """
    index = np.arange(len(sessions))
    rows = sessions.answered_rows(index)
    owner = np.repeat(index, sessions.answered)
    actions, context = sessions.actions[rows].astype(np.float64), sessions.context[rows].astype(np.float64)
    kind = sessions.catalog.card_type[sessions.item[rows]]
    click = actions[:, CLICK]
    base = sessions.scalars[rows, 1].astype(np.float64)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, values, len(sessions))

    def mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
        weights = total(weight)
        return np.where(weights > 0, total(values * weight) / np.maximum(weights, 1e-9), np.nan)

    every = np.ones(len(rows))
    spread = np.sqrt(np.maximum(mean(actions[:, 0] ** 2, every) - mean(actions[:, 0], every) ** 2, 0))
    columns = {
        "length": sessions.answered.astype(np.float64),
        "clicks": total(click),
        "left": total(actions[:, LEAVE]),
        "dwell": mean(actions[:, 0], every),
        "dwell_spread": spread,
        "dwell_of_clicked": mean(actions[:, 0], click),
        "slot_of_clicks": mean(context[:, SLOT], click),
        "page_age_of_clicks": mean(context[:, PAGE_AGE], click),
        "gap_before_clicks": mean(context[:, SINCE_PAGE_VIEW], click),
        "base_ctr": mean(base, every),
        "base_ctr_of_clicked": mean(base, click),
        "base_ctr_of_long_looks": mean(base, actions[:, 0]),
    }
    columns |= {f"exposure_{k + 1}": mean(actions[:, k], every) for k in range(1, CLICK)}
    columns |= {f"page_view_{k - PAGE_VIEW + 1}": mean(actions[:, k], click) for k in range(PAGE_VIEW, LEAVE)}
    columns |= {f"clicks_on_type_{k}": total(click * (kind == k)) for k in range(sessions.n_types)}
    for r, name in enumerate(responses):
        columns[RESPONSE_PREFIX + name] = mean(sessions.responses[rows, r].astype(np.float64), every)
    needs = NEEDS | {name: "exposure_actions" for name in columns if name.startswith("exposure_")}
    needs |= {name: "cards" for name in columns if name.startswith("clicks_on_type_")}
    needs |= {
        name: "page_view_actions"
        for name in columns
        if name.startswith("page_view_") and name != "page_view_1"
    }
    told = {name: values for name, values in columns.items() if needs.get(name) not in unidentified}
    return np.column_stack(list(told.values())), list(told)


def two_sample(
    log: LoggedSessions,
    simulated: LoggedSessions,
    unidentified: frozenset[str] = frozenset(),
    *,
    responses: tuple[str, ...] = (),
    repeats: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the cross-validated AUC of boosted trees that tell simulated sessions from logged ones.

    Args:
        log: logged sessions.
        simulated: simulated sessions, about as many.
        unidentified: what the log does not tell; no feature uses it.
        responses: named responses of the feed.
        repeats: number of random halves of the log that estimate the floor.
        seed: seed of folds, trees and halves.

    Returns:
        `auc`; `floor`, the AUC between random halves of the log (95th percentile of the distance from 0.5,
        added to 0.5); `weak`, whether the AUC is more than twice as far above 0.5 as the floor; and
        `most_telling`, the three features that separate both best on their own, with their AUC.
    """
    ours, names = session_features(log, unidentified, responses)
    theirs, _ = session_features(simulated, unidentified, responses)
    found = _cross_validated(ours, theirs, seed)
    rng, chance = np.random.default_rng(seed), []
    for _ in range(repeats):
        order = rng.permutation(len(ours))
        half = len(order) // 2
        chance.append(_cross_validated(ours[order[:half]], ours[order[half:]], seed))
    floor = 0.5 + float(np.quantile(np.abs(np.array(chance) - 0.5), FLOOR_LEVEL))
    single = {name: _single_auc(ours[:, k], theirs[:, k]) for k, name in enumerate(names)}
    telling = sorted(single, key=lambda name: -abs(single[name] - 0.5))[:3]
    return {
        "auc": found,
        "floor": floor,
        "weak": bool(found - 0.5 > 2 * (floor - 0.5)),
        "most_telling": {name: single[name] for name in telling},
    }


def _cross_validated(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    features = np.concatenate([a, b])
    label = np.repeat([0, 1], [len(a), len(b)])
    # Constant and all-NaN columns carry no information, and the latter make the trees warn.
    told = [len(np.unique(column[~np.isnan(column)])) > 1 for column in features.T]
    trees = HistGradientBoostingClassifier(
        max_iter=60, max_depth=4, learning_rate=0.1, min_samples_leaf=10, random_state=seed
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    with threadpool_limits(1):  # on a busy machine, OpenMP threads can wait for each other for minutes
        score = cross_val_predict(trees, features[:, told], label, cv=folds, method="predict_proba")[:, 1]
    return auc(score, label > 0)


def _single_auc(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a[~np.isnan(a)], b[~np.isnan(b)]
    if not len(a) or not len(b):
        return 0.5
    return auc(np.concatenate([a, b]), np.repeat([False, True], [len(a), len(b)]))
