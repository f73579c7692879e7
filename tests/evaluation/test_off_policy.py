"""Off-policy estimates: exact on a process that can be enumerated, their properties, bad input."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.off_policy import (
    ESTIMATORS,
    LoggedDecisions,
    cross_fitted_values,
    doubly_robust,
    off_policy_estimates,
)

# A process of two decisions with two states and two actions: s0 -> a0 -> s1 -> a1, rewards of both.
START = np.array([0.3, 0.7])
NEXT = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.1, 0.9]]])  # of s0, a0
REWARD = np.array([[[1.0, -2.0], [0.5, 3.0]], [[0.0, 4.0], [2.0, -1.0]]])  # of decision, state, action
LOGGING = np.array([[[0.5, 0.5], [0.8, 0.2]], [[0.3, 0.7], [0.6, 0.4]]])  # of decision, state
TARGET = np.array([[[0.1, 0.9], [1.0, 0.0]], [[0.25, 0.75], [0.0, 1.0]]])


def every_session(target=TARGET):
    """All trajectories as a log, and the probability of each under the logging policy and the target."""
    paths = list(product((0, 1), repeat=4))
    states, actions = np.array([(s, t) for s, _, t, _ in paths]), np.array([(a, b) for _, a, _, b in paths])
    at, k = (np.repeat([[0, 1]], len(paths), axis=0), states)
    decisions = LoggedDecisions(
        session=np.repeat(np.arange(len(paths)), 2),
        action=actions.ravel(),
        logging=LOGGING[at, k].reshape(-1, 2),
        target=target[at, k].reshape(-1, 2),
        reward=REWARD[at, k, actions].ravel(),
        before=np.full(len(paths), 0.5),
        features=states.reshape(-1, 1).astype(float),
    )

    def probability(policy):
        world = START[states[:, 0]] * NEXT[states[:, 0], actions[:, 0], states[:, 1]]
        return world * policy[at, k, actions].prod(axis=1)

    return decisions, probability(LOGGING), probability(target)


def test_expectation_is_the_true_value():
    """Averaged over every session that a log may hold, IPS and DR with any values are the target's value."""
    decisions, logged, targeted = every_session()
    earned = decisions.before + decisions.spread(decisions.reward).sum(axis=1)
    assert logged.sum() == pytest.approx(1) and targeted.sum() == pytest.approx(1)
    truth = targeted @ earned
    assert abs(truth - logged @ earned) > 0.5  # the policies are not worth the same
    ips = decisions.before + (decisions.weights * decisions.spread(decisions.reward)).sum(axis=1)
    assert logged @ ips == pytest.approx(truth)
    by_state = np.random.default_rng(0).normal(size=(2, 2, 2))
    state = decisions.features[:, 0].astype(int)
    for values in (np.zeros((2, 2, 2)), by_state, 100 * by_state):
        robust = doubly_robust(decisions, values[decisions.step, state])
        assert logged @ robust == pytest.approx(truth)


def drawn_log(sessions, seed, target=TARGET):
    decisions, logged, targeted = every_session(target)
    pick = np.random.default_rng(seed).choice(len(logged), sessions, p=logged)
    rows = np.stack([2 * pick, 2 * pick + 1], axis=1).ravel()
    fields = {
        name: getattr(decisions, name)[rows] for name in ("action", "logging", "target", "reward", "features")
    }
    log = LoggedDecisions(np.repeat(np.arange(sessions), 2), before=decisions.before[pick], **fields)
    earned = decisions.before + decisions.spread(decisions.reward).sum(axis=1)
    return log, targeted @ earned


def test_large_logs_come_close_and_values_take_noise_out():
    log, truth = drawn_log(4000, 1)
    found = off_policy_estimates(log)
    width = {name: found[name]["high"] - found[name]["low"] for name in ESTIMATORS}
    for name in ESTIMATORS:
        assert abs(found[name]["mean"] - truth) < width[name]
    assert width["dr"] < 0.8 * width["ips"]
    assert found["sessions"] == 4000 and 200 < found["effective_sessions"] < 4000


def test_the_logging_policy_itself_is_the_mean():
    log, _ = drawn_log(500, 2, target=LOGGING)
    found = off_policy_estimates(log)
    earned = log.before + log.spread(log.reward).sum(axis=1)
    assert found["ips"] == found["logged"] and found["ips"]["mean"] == pytest.approx(earned.mean())
    assert found["snips"]["mean"] == pytest.approx(earned.mean())
    assert found["effective_sessions"] == pytest.approx(500)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(-5, 5))
def test_constant_rewards_are_found_exactly(seed, reward):
    log, _ = drawn_log(60, seed)
    log = replace(log, reward=np.full(120, reward), before=np.zeros(60))
    found = off_policy_estimates(log, seed)
    for end in ("mean", "low", "high"):
        assert found["snips"][end] == pytest.approx(2 * reward, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(-5, 5), st.floats(0.1, 3))
def test_estimates_move_with_the_reward(seed, shift, scale):
    """More reward before every first decision adds to all estimates; SNIPS and IPS scale with the reward."""
    log, _ = drawn_log(80, seed)
    plain = off_policy_estimates(log)
    moved = off_policy_estimates(replace(log, reward=scale * log.reward, before=scale * log.before + shift))
    for name in ESTIMATORS:
        for end in ("mean", "low", "high"):
            assert moved[name][end] == pytest.approx(scale * plain[name][end] + shift, abs=1e-9)


def test_values_are_fitted_on_other_sessions():
    log, _ = drawn_log(200, 3)
    values = cross_fitted_values(log, seed=4)
    other = log.reward.copy()
    other[:2] += 1000.0  # the first session's outcome
    changed = cross_fitted_values(replace(log, reward=other), seed=4)
    assert np.array_equal(changed[:2], values[:2]) and not np.allclose(changed[2:], values[2:])


def test_sessions_without_decisions_count():
    none = np.zeros((0, 2))
    log = LoggedDecisions(
        np.zeros(0, int), np.zeros(0, int), none, none, np.zeros(0), np.array([1.0, 3.0]), np.zeros((0, 0))
    )
    assert all(off_policy_estimates(log)[name]["mean"] == 2.0 for name in ESTIMATORS)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("logging", [[np.nan, np.nan]] * 4, "session 0, decision 0: its logging probabilities are missing"),
        ("logging", [[0.0, 1.0]] + [[0.5, 0.5]] * 3, "decision 0: action 0 was logged with propensity 0"),
        ("logging", [[0.5, 0.4]] * 4, "must be at least 0 and sum to 1"),
        ("target", [[0.5, 0.5]] * 3 + [[-1.0, 2.0]], "session 1, decision 1: its target probabilities"),
        ("target", [[0.5, 0.5]] * 3, "target has 3 rows for 4 decisions"),
        ("session", [1, 0, 1, 1], "must be non-decreasing"),
        ("action", [0, 2, 0, 0], "must lie in 0..1"),
        ("reward", [0, np.inf, 0, 0], "reward must be finite"),
        ("before", [], "at least one session"),
    ],
)
def test_bad_input_is_named(field, value, message):
    good = {
        "session": [0, 0, 1, 1], "action": [0, 1, 0, 0],
        "logging": [[0.5, 0.5]] * 4, "target": [[1.0, 0.0]] * 4,
        "reward": [1.0, 2.0, 3.0, 4.0], "before": [0.0, 0.0], "features": np.zeros((4, 0)),
    }  # fmt: skip
    LoggedDecisions(**{key: np.array(values) for key, values in good.items()})
    with pytest.raises(InputError, match=message):
        LoggedDecisions(**{key: np.array(values) for key, values in (good | {field: value}).items()})


def test_no_support_is_named_where_it_matters():
    fields = {
        "session": np.array([0, 0, 1]), "action": np.array([0, 0, 0]),
        "reward": np.ones(3), "before": np.zeros(2),
        "logging": np.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]), "features": np.zeros((3, 0)),
    }  # fmt: skip
    wants = LoggedDecisions(target=np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), **fields)
    with pytest.raises(InputError, match="session 0, decision 1: the policy takes action 1 .* no support"):
        off_policy_estimates(wants)
    elsewhere = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])  # this session has left the policy before
    with pytest.raises(InputError, match="no session of 2 decides as the policy does"):
        off_policy_estimates(LoggedDecisions(target=elsewhere, **fields))
