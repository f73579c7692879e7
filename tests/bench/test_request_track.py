"""The track request: savings by hand, one bootstrap for all, and every row of a tiny run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgerec_gym.agents.requests.uplift_models import ESTIMATORS
from edgerec_gym.bench.plots import draw_requests
from edgerec_gym.bench.request.curves import Curves, gained, saved
from edgerec_gym.bench.request.rows import tables
from edgerec_gym.bench.request.track import Sizes
from edgerec_gym.bench.training import run_track
from edgerec_gym.config import RewardConfig
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import seeds_interval
from edgerec_gym.scenario import Scenario

TINY = Sizes(
    log_sessions=150,
    sessions=12,
    oracle_sessions=6,
    effect_sessions=30,
    audit_sessions=8,
    ppo_steps=512,
    dqn_steps=600,
    concurrent=40,
    ticks=10,
    rates=(0.1, 0.4),
    waiting_rates=(0.04, 0.1),
    hyper={
        **{agent: {"epochs": 1, "behaviour": 0, "hidden": 4} for agent in ESTIMATORS},
        "request-dqn": {"learning_starts": 200},
        "pointer-ppo": {"n_steps": 4, "n_epochs": 1, "hidden": 8},
    },
)


def test_savings_by_hand() -> None:
    # keep earns 1; the rule 3 for 4 requests; the curve 2 for 1 request and 4 for 3.
    means = np.array([[1.0, 4.0, 3.0, 1.0, 2.0, 3.0, 4.0]])
    assert saved(means) == pytest.approx(1 - 2 / 4)
    assert np.isnan(gained(means))  # the curve ends before 4 requests
    means[0, 1] = 2.0
    assert gained(means) == pytest.approx(3 / 3 - 1)
    means[0, 2] = 9.0
    assert np.isnan(saved(means))


def test_many_curves_at_once_are_those_one_by_one() -> None:
    rng = np.random.default_rng(0)
    means = rng.random((400, 9))
    means[::2] = np.round(4 * means[::2]) / 4  # points of equal requests, rules on a point
    means[:, 1] *= 2  # some rules ask more often than any point of the curve
    many = saved(means), gained(means)
    finite = 0
    for row, less, more in zip(means, *many, strict=True):
        (x, y), xs, ys = row[1:3], [0.0, *row[3::2]], [row[0], *row[4::2]]
        order = np.argsort(xs, kind="stable")
        xs, ys = np.array(xs)[order], np.array(ys)[order]
        expected = np.interp(x, xs, ys) / y - 1 if y > 0 and x <= xs[-1] else np.nan
        np.testing.assert_equal(more, expected)
        k = int((ys >= y).argmax())  # the first point that earns as much as the rule
        reached = x > 0 and ys[k] >= y
        finite += reached
        needed = xs[0] if k == 0 else np.interp(y, ys[k - 1 : k + 1], xs[k - 1 : k + 1])
        assert less == pytest.approx(1 - needed / x if reached else np.nan, nan_ok=True)
    assert 100 < finite < 400


def test_one_bootstrap_for_all_is_that_of_seeds() -> None:
    rng = np.random.default_rng(0)
    names = ("requests", "expected_clicks", "expected_purchases", "value")
    played = {
        (policy, seed): {name: rng.random(200) for name in names}
        for policy, seeds in (("keep", (None,)), ("uplift", (0, 1, 2)))
        for seed in seeds
    }
    curves = Curves(played, RewardConfig(click=2.0, purchase=3.0))
    found = curves.interval([("uplift", "value"), ("keep", "value")], lambda m: m[..., 0] - m[..., 1])
    columns = [
        np.stack([s["value"] for (policy, _), s in played.items() if policy == name])
        for name in ("uplift", "keep")
    ]
    expected = seeds_interval(columns, lambda m: m[..., 0] - m[..., 1])
    assert found == pytest.approx(expected)
    own = played["keep", None]
    benefit = 2 * own["expected_clicks"] + 3 * own["expected_purchases"]
    assert curves.mean("keep", "benefit") == pytest.approx(benefit.mean())


@pytest.mark.slow
def test_every_row_of_a_tiny_run(tmp_path: Path, lite: Scenario) -> None:
    own = "edgerec_gym.agents.requests.planner:OneExtra"
    options = {"sizes": TINY, "seeds": 1, "workers": 1, "policies": [own]}
    rows = run_track("request", tmp_path, **options)
    for item in rows:
        assert {"policy", "metric", "mean", "low", "high", "seeds", "sessions"} <= item.keys()
    found = {(item["policy"], item["metric"]) for item in rows}
    for policy in (
        "one-extra",
        "chance 0.05",
        "intent 0.3",
        "uplift-x 0.1",
        "outcome 0.4",
        "pointer-ppo",
        "pointer-ppo 0.4",
        "request-dqn 0.1",
        "request-dqn",
    ):
        assert {(policy, name) for name in ("gain_over_keep", "purchases_over_keep")} <= found
    for agent in ESTIMATORS:
        for metric in ("qini", "auuc", "pehe", "auc_all", "auc_treatment", "true_effect_in_decile_10"):
            assert (agent, metric) in found
    assert ("one-extra", "negative_share") in found and ("one-extra", "naive_ratio_in_10") in found
    assert ("shared budget, traffic doubles", "spent_of_budget") in found
    against = {item.get("against") for item in rows}
    half = lite.config.page_size // 2
    assert {"one-extra", f"interval {half}"} <= against and (f"interval {half}", "true_effect") in found
    assert any(target.startswith("request-dqn") for target in against if target)
    gaps = {(item["policy"], item["metric"]): item["mean"] for item in rows}
    assert gaps["attainable", "attainable_gap_closed"] == gaps["true-effect 0.25", "gap_closed"] == 1
    for policy in ("one-extra", "uplift-x 0.1", "attainable", "true-effect 0.25"):
        assert {(policy, name) for name in ("attainable_gap_closed", "gap_closed")} <= found
    shown = tables(rows)
    for header, body in shown.values():
        assert header[0] == "policy" and body
        assert all(len(line) == len(header) for line in body)
    assert any("credits requests with users who were about to buy anyway" in title for title in shown)
    draw_requests(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    same = [
        {item["metric"]: item["mean"] for item in rows if item["policy"] == p} for p in (own, "one-extra")
    ]
    assert {name for name in same[0] if same[0][name] == same[1][name]} >= {"value", "true_effect"}
    assert str(run_track("request", tmp_path, **options)) == str(rows)  # what is there is used again


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="runs on lite, lite-v2; got the scenario 'default'"):
        run_track("request", tmp_path, scenario="default")
    with pytest.raises(InputError, match="seeds = 0"):
        run_track("request", tmp_path, seeds=0)
    with pytest.raises(InputError, match="unknown policy 'one-extr'"):
        run_track("request", tmp_path, policies=["one-extr"])
