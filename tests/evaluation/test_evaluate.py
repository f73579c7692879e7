import numpy as np
import pytest

from edgerec_gym.agents.baselines import Keep, Random
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import (
    bias_interval,
    exploitation_interval,
    gap_closed_interval,
    mean_interval,
    ratio_interval,
)
from edgerec_gym.evaluation.play import evaluate, play


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for k in range(200):
        result = mean_interval(rng.normal(1.0, 2.0, 200), seed=k)
        hits += result["low"] <= 1.0 <= result["high"]
    assert 180 <= hits <= 199


def test_ratio_resamples_sessions_together():
    exposures = np.arange(1.0, 201.0)
    result = ratio_interval(0.05 * exposures, exposures)
    assert result == pytest.approx({"mean": 0.05, "low": 0.05, "high": 0.05})


def test_gap_closed_is_zero_for_keep_and_one_for_the_reference():
    rng = np.random.default_rng(0)
    keep = rng.normal(3, 1, 500)
    oracle = keep + rng.normal(2, 1, 500)
    assert gap_closed_interval(keep, keep, oracle)["mean"] == 0
    assert gap_closed_interval(oracle, keep, oracle)["mean"] == 1
    half = gap_closed_interval((keep + oracle) / 2, keep, oracle)
    assert half == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})


def test_bias_and_exploitation_gap_by_hand():
    true, learned = np.full(10, 2.0), np.full(20, 3.0)
    assert bias_interval(learned, true)["mean"] == pytest.approx(0.5)
    gap = exploitation_interval(learned, true, np.full(20, 2.2), np.full(10, 2.0))
    assert gap == pytest.approx({"mean": 0.4, "low": 0.4, "high": 0.4})


def test_undefined_ratios_are_nan_not_an_error():
    assert np.isnan(ratio_interval(np.zeros(5), np.zeros(5))["mean"])


def test_evaluate_scores_on_both_kinds_of_users():
    rows = evaluate([Keep(), Random(seed=0)], scenario="lite", sessions=60, num_envs=32)
    assert [(row["policy"], row["users"]) for row in rows] == [
        ("keep", "learned"), ("keep", "synthetic"), ("random", "learned"), ("random", "synthetic"),
    ]  # fmt: skip
    by = {(row["policy"], row["users"]): row for row in rows}
    assert by["keep", "learned"]["gain_over_keep"] == {"mean": 0, "low": 0, "high": 0}
    assert by["keep", "learned"]["exploitation_gap"]["mean"] == 0
    assert "bias" in by["random", "learned"] and "bias" not in by["random", "synthetic"]
    assert by["keep", "synthetic"]["requests"]["mean"] == 0 == by["keep", "synthetic"]["share_ad"]["mean"]
    assert by["random", "synthetic"]["share_ad"]["mean"] > 0
    for row in rows:
        for name, metric in row.items():
            if isinstance(metric, dict):
                assert metric["low"] <= metric["mean"] <= metric["high"], name


def test_sessions_do_not_depend_on_the_batch_size():
    def run(num_envs):
        return play(
            Keep(),
            env_id="EdgeFeed-v0",
            scenario="lite",
            users="synthetic",
            sessions=50,
            seed=3,
            num_envs=num_envs,
        )

    a, b = run(16), run(50)
    for key in a:
        assert np.array_equal(a[key], b[key]), key


def test_two_policies_meet_the_same_sessions():
    a, b = (
        play(p, env_id="EdgeFeedRequest-v0", scenario="lite", users="synthetic", sessions=40, seed=0)
        for p in (Keep(), Keep())
    )
    assert np.array_equal(a["reward"], b["reward"])


def test_no_sessions():
    with pytest.raises(InputError, match="sessions must be at least 1"):
        evaluate([Keep()], scenario="lite", sessions=0)
