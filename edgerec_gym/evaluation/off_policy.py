"""Off-policy estimates: the value of a policy from the log of another one.

If a log draws few decisions per session at random, with known probabilities, it tells what another policy
would have earned: sessions that happen to decide like that policy stand in for those that do not. The weight
of a reward is the product of target over logging probability of the decisions *before* it. Three fair coins
per session give weights of at most 8; with a hundred, no session would be left to count.

- *IPS* (per-decision importance sampling, Precup, Sutton & Singh, ICML 2000) is unbiased.
- *SNIPS* (self-normalised IPS, a weighted mean per decision) is slightly biased and less noisy.
- *DR* (doubly robust, Jiang & Li, ICML 2016) subtracts the noise that a fitted value of every decision
  explains. It is unbiased whatever that value is, since it is fitted on other sessions (cross-fitting).

Intervals are 95 % percentile bootstraps over sessions (:mod:`edgerec_gym.evaluation.intervals`). The values
are not refitted per resample.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import percentile_interval, resampled_means

ESTIMATORS = ("ips", "snips", "dr")
FOLDS = 5  # of the cross-fitting
PENALTY = 300.0  # of the ridge regression, in decisions; high, since a session's earnings are mostly luck
ROUNDING = 1e-6  # tolerance for probabilities that must sum to 1


@dataclass(frozen=True)
class LoggedDecisions:
    """M random decisions of S sessions, and all rewards of these sessions.

    Sessions without a decision count too: their reward is in `before`.

    Attributes:
        session: (M,) int64 index 0..S-1 of each decision's session, non-decreasing; decisions of a session
            are in order.
        action: (M,) int64 drawn action, 0..A-1.
        logging: (M, A) float64 probability of every action under the logging policy.
        target: (M, A) float64 probability of every action under the target policy.
        reward: (M,) float64 sum of the rewards from this decision to the next one.
        before: (S,) float64 sum of the rewards before the first decision.
        features: (M, d) float64 features of the fitted values; d may be 0.
        names: (M,) text that names each decision in messages; if empty, numbers do.

    Raises:
        InputError: shapes do not match, probabilities are missing, negative or do not sum to 1, or a logged
            action has propensity 0.
    """

    session: np.ndarray
    action: np.ndarray
    logging: np.ndarray
    target: np.ndarray
    reward: np.ndarray
    before: np.ndarray
    features: np.ndarray
    names: np.ndarray = field(default_factory=lambda: np.zeros(0, np.str_))

    def __post_init__(self) -> None:
        decisions, sessions = len(self.session), len(self.before)
        if not sessions:
            raise InputError("off-policy estimates need at least one session")
        for name in ("action", "logging", "target", "reward", "features"):
            if len(getattr(self, name)) != decisions:
                raise InputError(f"{name} has {len(getattr(self, name))} rows for {decisions} decisions")
        if self.logging.ndim != 2 or self.logging.shape != self.target.shape:
            raise InputError(
                f"logging {self.logging.shape} and target {self.target.shape} must be (decisions, actions)"
            )
        if not decisions:
            return
        if self.session[0] < 0 or self.session[-1] >= sessions or (np.diff(self.session) < 0).any():
            raise InputError(f"session must be non-decreasing and lie in 0..{sessions - 1}")
        if self.action.min() < 0 or self.action.max() >= self.logging.shape[1]:
            raise InputError(f"action must lie in 0..{self.logging.shape[1] - 1}")
        for name in ("logging", "target"):
            self._check_probabilities(name, getattr(self, name))
        for name in ("reward", "before", "features"):
            if not np.isfinite(getattr(self, name)).all():
                raise InputError(f"{name} must be finite")
        zero = np.flatnonzero(_of_action(self.logging, self.action) == 0)
        if len(zero):
            raise InputError(
                f"{self.name(zero[0])}: action {self.action[zero[0]]} was logged with propensity 0"
            )

    def _check_probabilities(self, name: str, values: np.ndarray) -> None:
        missing = np.flatnonzero(np.isnan(values).any(axis=1))
        if len(missing):
            raise InputError(f"{self.name(missing[0])}: its {name} probabilities are missing")
        wrong = np.flatnonzero((values < 0).any(axis=1) | (np.abs(values.sum(axis=1) - 1) > ROUNDING))
        if len(wrong):
            raise InputError(
                f"{self.name(wrong[0])}: its {name} probabilities {values[wrong[0]].tolist()} must be at "
                "least 0 and sum to 1"
            )

    def name(self, decision: int) -> str:
        """Return the name of a decision for messages."""
        if len(self.names):
            return str(self.names[decision])
        return f"session {self.session[decision]}, decision {self.step[decision]}"

    @cached_property
    def step(self) -> np.ndarray:
        """Index of each decision within its session, from 0, (M,) int64."""
        return np.arange(len(self.session)) - np.searchsorted(self.session, self.session)

    @cached_property
    def weights(self) -> np.ndarray:
        """Importance weight of the rewards after each decision of each session, (S, K) float64.

        K is the largest number of decisions in a session; a session with fewer keeps its last weight.
        """
        ratio = np.ones((len(self.before), int(self.step.max(initial=-1)) + 1))
        ratio[self.session, self.step] = _of_action(self.target, self.action) / _of_action(
            self.logging, self.action
        )
        return np.cumprod(ratio, axis=1)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Lay out values of decisions (M,) as (S, K) float64, zero where a session has fewer."""
        full = np.zeros(self.weights.shape)
        full[self.session, self.step] = values
        return full

    @property
    def prior(self) -> np.ndarray:
        """Weight of each session before each of its decisions, (M,) float64."""
        before = np.concatenate([np.ones((len(self.before), 1)), self.weights], axis=1)
        return before[self.session, self.step]

    def unsupported(self) -> int | None:
        """Return the first decision at which the target may take an action that the log never does, or None.

        Decisions of sessions whose weight is already 0 do not matter.
        """
        found = np.flatnonzero(((self.target > 0) & (self.logging == 0)).any(axis=1) & (self.prior > 0))
        return int(found[0]) if len(found) else None


def off_policy_estimates(decisions: LoggedDecisions, seed: int = 0) -> dict[str, Any]:
    """Estimate the reward per session of the target policy.

    Args:
        decisions: decisions of the log, with the probabilities of both policies.
        seed: seed of the folds and of the bootstrap; the same seed and log give the same resamples.

    Returns:
        ips, snips, dr and logged (the reward of the log itself), each {"mean", "low", "high"} in reward per
        session; sessions; decisions; and effective_sessions, (sum w)^2 / sum w^2 of the weights of whole
        sessions (Kish): a log of this many sessions of the target policy would be about as informative.

    Raises:
        InputError: the target takes an action that the log never does, or no logged session decides like
            the target.
    """
    bad = decisions.unsupported()
    if bad is not None:
        action = int(((decisions.target[bad] > 0) & (decisions.logging[bad] == 0)).argmax())
        raise InputError(
            f"{decisions.name(bad)}: the policy takes action {action} with probability "
            f"{decisions.target[bad, action]:.3g}, but the log never does: no support"
        )
    weights, before = decisions.weights, decisions.before
    last = weights[:, -1] if weights.shape[1] else np.ones(len(before))
    if not (weights.sum(axis=0) > 0).all():
        raise InputError(
            f"no session of {len(before)} decides as the policy does to its end; use a log with fewer random "
            "decisions per session, or more sessions"
        )
    reward = decisions.spread(decisions.reward)
    weighted = weights * reward
    robust = doubly_robust(decisions, cross_fitted_values(decisions, seed=seed))
    columns = np.column_stack(
        [before + weighted.sum(axis=1), robust, before + reward.sum(axis=1), before, weighted, weights]
    )
    means = columns.mean(axis=0)
    resampled = resampled_means(columns, np.random.default_rng(seed))  # the same sessions for all estimators
    found: dict[str, Any] = {
        name: percentile_interval(float(means[k]), resampled[:, k])
        for k, name in enumerate(("ips", "dr", "logged"))
    }
    snips = percentile_interval(float(_normalised(means[3:])), _normalised(resampled[:, 3:]))
    return {
        **{name: snips if name == "snips" else found[name] for name in (*ESTIMATORS, "logged")},
        "sessions": len(before),
        "decisions": len(decisions.session),
        "effective_sessions": float(last.sum() ** 2 / (last**2).sum()),
    }


def _normalised(means: np.ndarray) -> np.ndarray:
    """Return SNIPS of means (..., 1 + 2 K): reward before, weighted rewards, weights."""
    k = means.shape[-1] // 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return means[..., 0] + (means[..., 1 : 1 + k] / means[..., 1 + k :]).sum(axis=-1)


def doubly_robust(decisions: LoggedDecisions, values: np.ndarray) -> np.ndarray:
    """Return the DR estimate of each session, (S,) float64.

    Args:
        decisions: decisions of the log.
        values: (M, A) expected reward from each decision to the end of the session, by action. The mean is
            unbiased for any values that do not depend on the session's own outcome.
    """
    expected = (decisions.target * values).sum(axis=1)
    weight = decisions.weights[decisions.session, decisions.step]
    gain = weight * (decisions.reward - _of_action(values, decisions.action)) + decisions.prior * expected
    return decisions.before + decisions.spread(gain).sum(axis=1)


def cross_fitted_values(decisions: LoggedDecisions, folds: int = FOLDS, seed: int = 0) -> np.ndarray:
    """Fit the value of every action at every decision under the target policy, (M, A) float64.

    Fitted Q evaluation goes backward over the decisions of a session. For each index of a decision, a ridge
    model regresses the reward up to the next decision plus the target's value there on the features. Every
    session is valued by models that were fitted on the sessions of the other folds.
    """
    steps = decisions.step
    fold = np.random.default_rng(seed).permutation(len(decisions.before)) % folds
    of_decision = fold[decisions.session]
    found = np.zeros(decisions.target.shape)
    for held_out in range(min(folds, len(decisions.before))):
        values = np.zeros(decisions.target.shape)
        following = np.zeros(len(decisions.session))  # the target's value at the next decision
        for step in range(steps.max(initial=-1), -1, -1):
            rows = np.flatnonzero(steps == step)
            train = rows[of_decision[rows] != held_out]
            values[rows] = _ridge(decisions, train, (decisions.reward + following)[train], rows)
            if step:  # the previous decision is the previous row
                following[rows - 1] = (decisions.target[rows] * values[rows]).sum(axis=1)
        found[of_decision == held_out] = values[of_decision == held_out]
    return found


def _ridge(
    decisions: LoggedDecisions, train: np.ndarray, outcome: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Predict the outcome of every action at `rows`, (R, A).

    A model common to all actions is fitted first, so that rarely logged actions fall back on it.
    """
    n_actions = decisions.target.shape[1]
    if not len(train):
        return np.zeros((len(rows), n_actions))
    seen = decisions.features[train]
    centre, scale = seen.mean(axis=0), seen.std(axis=0)
    scale[scale < 1e-9] = 1.0
    x = np.column_stack([np.ones(len(train)), (seen - centre) / scale])
    at = np.column_stack([np.ones(len(rows)), (decisions.features[rows] - centre) / scale])
    penalty = np.full(x.shape[1], PENALTY)
    penalty[0] = 0.0
    common = np.linalg.solve(x.T @ x + np.diag(penalty), x.T @ outcome)
    left = outcome - x @ common
    predicted = np.repeat((at @ common)[:, None], n_actions, axis=1)
    penalty[0] = PENALTY
    if decisions.action.max() == decisions.action.min():  # actions cannot be told apart
        return predicted
    for action in range(n_actions):
        own = decisions.action[train] == action
        if own.any():
            z = x[own]
            predicted[:, action] += at @ np.linalg.solve(z.T @ z + np.diag(penalty), z.T @ left[own])
    return predicted


def _of_action(values: np.ndarray, action: np.ndarray) -> np.ndarray:
    return values[np.arange(len(action)), action]
