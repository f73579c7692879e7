"""Statistics of the benchmark, against scipy and against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, trim_mean, ttest_rel

from edgerec_gym.evaluation.comparisons import (
    compare_all,
    holm,
    interquartile_mean,
    probability_of_improvement,
    stratified_interval,
)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_definitions_of_rliable(seeds: int, others: int, tasks: int, draw: int) -> None:
    rng = np.random.default_rng(draw)
    own, other = rng.integers(5, size=(seeds, tasks)) / 4, rng.integers(5, size=(others, tasks)) / 4
    assert interquartile_mean(own) == pytest.approx(trim_mean(own, 0.25, axis=None))
    wins = [mannwhitneyu(own[:, t], other[:, t]).statistic / (seeds * others) for t in range(tasks)]
    assert probability_of_improvement(own, other) == pytest.approx(np.mean(wins))
    many = np.stack([own, own + 1])
    assert interquartile_mean(many) == pytest.approx([interquartile_mean(m) for m in many])


def test_the_bootstrap_draws_seeds_in_every_task() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(3, 4)) + [0.0, 5.0, 10.0, 15.0]
    found = stratified_interval([scores], lambda s: s.mean(axis=(-2, -1)))
    drawn = [
        np.mean([rng.choice(scores[:, task], 3).mean() for task in range(4)]) for _ in range(4000)
    ]  # never one task for another
    assert found["mean"] == pytest.approx(scores.mean())
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.05)
    alone = stratified_interval([scores[:1]], interquartile_mean)
    assert np.isfinite(alone["mean"]) and np.isnan(alone["low"])
    two = stratified_interval([scores, scores[:1] - 100], probability_of_improvement)
    assert two == {"mean": 1.0, "low": 1.0, "high": 1.0}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_step_by_step(p: list[float]) -> None:
    values = np.array(p)
    corrected = holm(values)
    for level in (0.01, 0.05, 0.2):
        rejected = np.zeros(len(p), bool)
        for k, index in enumerate(np.argsort(values, kind="stable")):
            if values[index] * (len(p) - k) > level:
                break
            rejected[index] = True
        assert np.array_equal(corrected <= level, rejected)


def test_paired_comparisons() -> None:
    rng = np.random.default_rng(2)
    luck = rng.normal(scale=3.0, size=600)  # common to all: pairing removes it
    values = {
        "low": (luck + rng.normal(scale=0.1, size=600))[None],
        "high": luck + rng.normal(scale=0.1, size=(3, 600)) + [[0.2], [0.25], [0.3]],
        "same": (luck + rng.normal(scale=0.1, size=600))[None],
    }
    found = {frozenset((c.better, c.worse)): c for c in compare_all(values)}
    assert len(found) == 3
    clear, none = found[frozenset(("low", "high"))], found[frozenset(("low", "same"))]
    assert clear.better == "high" and clear.difference["low"] > 0.15 and clear.p_holm < 0.001
    assert none.p_holm > 0.05 and none.difference["low"] < 0 < none.difference["high"]
    assert all(c.p <= c.p_holm <= 1 for c in found.values())
    # With one seed each it is the paired test of means.
    assert none.p == pytest.approx(ttest_rel(values["low"][0], values["same"][0]).pvalue, abs=0.03)


def test_seeds_that_disagree_are_not_significant() -> None:
    luck = np.random.default_rng(3).normal(size=500)
    [found] = compare_all({"keep": luck[None], "mine": luck + np.array([[1.0], [1.0], [-0.5]])})
    assert found.better == "mine" and found.p > 0.02  # a draw of the third seed alone has odds of 1 in 27
