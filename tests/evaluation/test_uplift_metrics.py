"""Qini, AUUC, PEHE and calibration against hand computations; bad samples are refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.uplift import (
    RankedSample,
    calibration,
    check_experiment,
    interval,
    squared_pehe,
    true_qini,
)

SCORE = np.array([4.0, 3.0, 2.0, 1.0])
TREATED = np.array([1, 0, 1, 0])
OUTCOME = np.array([3.0, 1.0, 2.0, 4.0])


def test_curves_by_hand():
    sample = RankedSample(SCORE, TREATED, OUTCOME)
    share, gain = sample.gain()
    # Top 2: 3/1 - 1/1 = 2 at a share of 1/2; top 3: 5/2 - 1 = 1.5; all: 5/2 - 5/2 = 0.
    np.testing.assert_allclose(share, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(gain, [0, 0, 2 * 0.5, 1.5 * 0.75, 0])
    assert sample.auuc() == pytest.approx(0.25 * (1.0 + 1.125))
    # Qini: Y1 - Y0 T / C over the 2 treated: 3, 3 - 1, 5 - 1 * 2, 5 - 5.
    _, curve = sample.qini_curve()
    np.testing.assert_allclose(curve, [0, 1.5, 1.0, 1.5, 0])
    assert sample.qini() == pytest.approx(0.25 * (1.5 + 1.0 + 1.5))


def test_equal_scores_are_one_step():
    tied = RankedSample(np.zeros(4), TREATED, OUTCOME)
    share, gain = tied.gain()
    np.testing.assert_allclose(share, [0, 1])
    assert tied.qini() == pytest.approx(0)
    assert tied.auuc() == pytest.approx(gain[-1] / 2)


def test_weights_repeat_rows():
    weight = np.array([2.0, 1.0, 0.0, 3.0])
    rows = np.repeat(np.arange(4), weight.astype(int))
    weighted, repeated = (
        RankedSample(SCORE, TREATED, OUTCOME),
        RankedSample(SCORE[rows], TREATED[rows], OUTCOME[rows]),
    )
    assert weighted.auuc(weight) == pytest.approx(repeated.auuc())
    assert weighted.qini(weight) == pytest.approx(repeated.qini())


def test_a_good_order_scores_above_chance_and_a_reversed_one_below():
    rng = np.random.default_rng(0)
    tau = rng.normal(size=20_000)
    treated = rng.random(len(tau)) < 0.5
    outcome = tau * treated + rng.normal(size=len(tau))
    good, bad = (RankedSample(s, treated, outcome).qini() for s in (tau, -tau))
    found = interval(RankedSample(tau, treated, outcome).qini, np.arange(len(tau)) // 4, resamples=50)
    assert bad < 0 < found["low"] < good < found["high"]
    assert good == pytest.approx(true_qini(tau, tau), rel=0.1)
    assert interval(RankedSample(tau, treated, outcome).qini, np.arange(len(tau)) // 4, resamples=50) == found


def test_true_qini_by_hand():
    # Gains a row after 0, 1, 2 of 2: 0, 1, 1; area 1/4 + 1/2; the straight line: 1/2.
    assert true_qini(np.array([1.0, 0.0]), np.array([2.0, 0.0])) == pytest.approx(0.25)
    assert true_qini(np.array([0.0, 1.0]), np.array([2.0, 0.0])) == pytest.approx(-0.25)


def test_pehe_takes_off_what_the_truth_is_uncertain_about():
    rng = np.random.default_rng(1)
    tau, estimate = rng.normal(size=(2, 50_000))
    error = np.full(len(tau), 0.5)
    measured = tau + error * rng.normal(size=len(tau))
    assert squared_pehe(estimate, measured, error) == pytest.approx(2.0, rel=0.03)
    assert squared_pehe(tau, measured, error) == pytest.approx(0.0, abs=0.01)


def test_calibration_by_hand():
    table = calibration(np.array([3.0, 1.0, 2.0, 4.0]), np.array([30.0, 10.0, 20.0, 40.0]), bins=2)
    np.testing.assert_allclose(table, [[1.5, 15.0], [3.5, 35.0]])


@pytest.mark.parametrize(
    ("treated", "outcome", "propensity", "message"),
    [
        ([0, 0], [1.0, 0.0], [0.5, 0.5], "no treated rows"),
        ([1, 1], [1.0, 0.0], [0.5, 0.5], "no untreated rows"),
        ([0, 1], [1.0, np.nan], [0.5, 0.5], "outcome holds values that are not finite"),
        ([0, 1], [1.0, 0.0], [0.0, 0.5], "propensity 0 is not between 0 and 1"),
        ([0, 1], [1.0, 0.0], [0.5, 1.0], "propensity 1 is not between 0 and 1"),
        ([0, 1], [1.0, 0.0], [0.5, np.nan], "propensity holds values that are not finite"),
        ([0, 2], [1.0, 0.0], [0.5, 0.5], "treated must be 0 or 1"),
    ],
)
def test_bad_experiments(treated, outcome, propensity, message):
    with pytest.raises(InputError, match=message):
        check_experiment(np.array(treated), np.array(outcome), np.array(propensity), "table")


def test_a_score_must_be_a_number():
    with pytest.raises(InputError, match="score holds values that are not finite"):
        RankedSample(np.array([np.nan, 1.0]), np.array([0, 1]), np.array([0.0, 1.0]))
