"""Effects of decisions, estimated where they were drawn at random, in logs and in rollouts alike.

Treated and control slots are weighted by the inverse probability of the drawn action, so both represent the
same slots: those where the treatment was possible. The control is always *keep* (the cloud's next).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from edgerec_gym.answers import BUY, CLICK
from edgerec_gym.config import FeedConfig
from edgerec_gym.evaluation.intervals import bootstrap
from edgerec_gym.fidelity.rollouts import LogSample
from edgerec_gym.logs.logging_policy import ORDER_PROBABILITY, RandomisedPolicy

HORIZON = 10  # slots, from the decision on, whose outcomes count
OUTCOMES = {"clicks": CLICK, "purchases": BUY}
INTERVENTIONS = {
    "order": "re-ranking: another row of the pool, uniformly",
    "insert": "insertion: a legal card, uniformly",
    "request": "request for a page",
}


def interventions(
    log: LogSample, simulated: LogSample, config: FeedConfig, randomise: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Compare the effects of decisions in the log and on the learned users.

    Args:
        log: sessions of the randomised policy, with propensities.
        simulated: sessions of the same policy on the learned users.
        config: configuration of the feed.
        randomise: decisions that the policy draws.
        seed: seed of the bootstrap.

    Returns:
        By drawn decision (order, insert, request) and outcome (clicks, purchases): `log` and `simulated`, the
        effect on the sum over the next HORIZON slots of the session as {"mean", "low", "high"} (95 %
        bootstrap by session); `treated`, the number of treated slots in the log; and `weak`, whether the
        intervals are disjoint.
    """
    report: dict[str, Any] = {}
    weights = [arms(played.table, config, randomise) for played in (log, simulated)]
    for decision in (name for name in INTERVENTIONS if name in randomise):
        report[decision] = {}
        for outcome in OUTCOMES:
            found = [
                _effect(played, *arm[decision], outcome, config, seed)
                for played, arm in zip((log, simulated), weights, strict=True)
            ]
            ours, theirs = found
            apart = ours["low"] > theirs["high"] or theirs["low"] > ours["high"]  # False with NaN
            treated = int((weights[0][decision][0] > 0).sum())
            report[decision][outcome] = {"log": ours, "simulated": theirs, "treated": treated, "weak": apart}
    return report


def arms(
    table: pa.Table, config: FeedConfig, randomise: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the weights of treated and control slots, (P,) float64 each, by decision; 0 = not in that arm.

    The log holds the probability of the drawn action. The number of rows left, keep's row, and hence whether
    a card was legal, follow from the pages and from the logging policy's rule
    (:class:`~edgerec_gym.logs.logging_policy.RandomisedPolicy`).
    """
    n_pool = config.pool_size
    action = table["action"].fill_null(-1).to_numpy()
    propensity = table["propensity"].fill_null(1.0).to_numpy()
    p_request = table["request_propensity"].fill_null(0.0).to_numpy()
    usable = table["randomised"].to_numpy() & (action >= 0) & (propensity > 0)
    ids, place = np.unique(table["session"].to_numpy(), return_inverse=True)
    habits = RandomisedPolicy(randomise).habits(ids)
    usable &= (habits.focus == 0)[place]  # rows of focused sessions are not drawn uniformly
    p_insert = (1 - p_request) * habits.insert[place]
    # The environment cuts the session at max_slots, and its last cards are not answered.
    usable &= table["slot"].to_numpy() <= config.max_slots - config.lookahead - HORIZON
    keep, rows = keep_rows(table, config)
    kept = usable & (action == keep)
    order = ORDER_PROBABILITY if "order" in randomise else 0.0
    without_cards = (1 - p_request) * (1 - order + order / np.maximum(rows, 1))  # P(keep) if none is legal
    card_legal = propensity < without_cards - 1e-6
    control = np.where(kept, 1 / propensity, 0.0)
    other = usable & (action < n_pool) & (action != keep)
    insert = usable & (action >= n_pool) & (action < n_pool + config.n_cards)
    request = usable & (action == n_pool + config.n_cards)

    def inverse(where: np.ndarray, probability: np.ndarray) -> np.ndarray:
        return np.where(where, 1 / np.maximum(probability, 1e-12), 0.0)

    return {
        # Rows are drawn uniformly: P(any other row) = number of other rows * P(one).
        "order": (inverse(other, propensity * (rows - 1)), np.where(rows > 1, control, 0.0)),
        "insert": (
            inverse(insert, p_insert),
            np.where(card_legal, control, 0.0),
        ),
        "request": (inverse(request, p_request), np.where(p_request > 0, control, 0.0)),
    }


def keep_rows(table: pa.Table, config: FeedConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the pool row that keep would place and the number of rows left at each slot, (P,) int64 each."""
    slot, action = table["slot"].to_numpy(), table["action"].fill_null(-1).to_numpy()
    new_page = table["page_age"].to_numpy() == 0
    shipped = table["candidates"].combine_chunks().value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(slot == 0)
    length = np.diff(np.append(starts, len(slot)))
    free = np.zeros((len(starts), config.pool_size), np.bool_)
    keep, rows = np.zeros(len(slot), np.int64), np.zeros(len(slot), np.int64)
    for t in range(int(length.max(initial=0))):
        live = np.flatnonzero(length > t)
        at = starts[live] + t
        fresh = new_page[at]
        free[live[fresh]] = np.arange(config.pool_size) < shipped[at[fresh], None]
        keep[at], rows[at] = free[live].argmax(axis=1), free[live].sum(axis=1)
        # A request also places keep's row; a card takes no row.
        taken = np.where(action[at] == config.pool_size + config.n_cards, keep[at], action[at])
        of_pool = (taken >= 0) & (taken < config.pool_size)
        free[live[of_pool], taken[of_pool]] = False
    return keep, rows


def _effect(
    played: LogSample, treated: np.ndarray, control: np.ndarray, outcome: str, config: FeedConfig, seed: int
) -> dict[str, float]:
    """Return the difference of the arms' weighted means, with its 95 % bootstrap interval by session."""
    sessions = played.sessions
    happened = sessions.actions[:, OUTCOMES[outcome]] * (sessions.actions[:, CLICK] > 0)
    before = np.concatenate([[0.0], np.cumsum(happened, dtype=np.float64)])
    lengths = np.diff(sessions.starts)
    end = np.minimum(np.arange(len(happened)) + HORIZON, np.repeat(sessions.starts[1:], lengths))
    later = before[end] - before[:-1]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    columns = [
        np.bincount(owner, weight * value, len(lengths))
        for weight in (treated, control)
        for value in (later, np.ones_like(later))
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        return bootstrap(
            np.column_stack(columns), lambda m: m[..., 0] / m[..., 1] - m[..., 2] / m[..., 3], seed=seed
        )
