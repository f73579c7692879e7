"""Logs with few random requests, and what another policy would have done in them."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from command_line import fails_with, run_well
from places import SHARED_DATA

from benchmarks.off_policy import HalfPage, part
from benchmarks.open_bandit import campaign_rows, import_campaign
from edgerec_gym.agents.baselines import FixedInterval, Keep, Random
from edgerec_gym.agents.data.log_stream import log_tables
from edgerec_gym.agents.data.logged_decisions import read_decisions
from edgerec_gym.agents.requests.moments import AtMoments
from edgerec_gym.config import preset
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.off_policy import ESTIMATORS, off_policy_estimates
from edgerec_gym.evaluation.play import play
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.logging_policy import RandomisedPolicy, moment_age
from edgerec_gym.logs.store import LogReader

SESSIONS, SEED, MOMENTS = 150, 4, 2
OPEN_BANDIT = SHARED_DATA / "open_bandit"


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    few = {"randomise": ["request"], "moments": MOMENTS}
    collect(folder / "few", preset_name="lite", sessions=SESSIONS, seed=SEED, **few)
    collect(folder / "all", preset_name="lite", sessions=5, seed=SEED)
    collect(folder / "keep", preset_name="lite", sessions=5, seed=SEED, policy=Keep())
    return folder


def test_a_log_with_few_moments_is_sure_elsewhere(logs):
    reader = LogReader(logs / "few")
    assert reader.provenance["moments"] == MOMENTS
    table = next(reader.batches())
    drawn = table["randomised"].to_numpy()
    p = table["request_propensity"].to_numpy()
    assert set(p[drawn]) == {0.5} and set(p[~drawn]) == {0.0}
    assert (table["page_age"].to_numpy()[drawn] == moment_age(reader.config)).all()
    request = table["request"].to_numpy()
    assert not request[~drawn].any() and abs(request[drawn].mean() - 0.5) < 0.15
    per_session = np.bincount(table["session"].to_numpy(), drawn)
    assert per_session.max() == MOMENTS and per_session.mean() > 1


@pytest.mark.parametrize("make", [Keep, HalfPage, FixedInterval])
def test_sessions_that_decide_as_the_policy_are_the_sessions_it_plays(logs, make):
    """The same luck, the same decisions: so rewards, and what the policy is said to do, must be the same."""
    reader = LogReader(logs / "few")
    decisions = read_decisions(reader, make(), at_moments=True)
    played = play(
        AtMoments(make(), reader.config, MOMENTS),
        env_id="EdgeFeedRequest-v0",
        scenario="lite",
        users="synthetic",
        sessions=SESSIONS,
        seed=SEED,
        split="log",
    )
    weight = decisions.weights[:, -1]
    earned = decisions.before + decisions.spread(decisions.reward).sum(axis=1)
    same = weight > 0
    assert 20 < same.sum() < SESSIONS
    np.testing.assert_allclose(earned[same], played["reward"][same])
    taken = np.bincount(decisions.session, decisions.action, minlength=SESSIONS)
    np.testing.assert_array_equal(taken[same], played["requests"][same])
    assert not np.allclose(earned[~same], played["reward"][~same])


def test_estimates_come_from_the_log_in_parts_or_whole(logs, monkeypatch):
    reader = LogReader(logs / "few")
    whole = read_decisions(reader, Random(), at_moments=True)
    found = off_policy_estimates(whole)
    assert found["ips"] == found["logged"]  # at the moments it draws as the log did
    monkeypatch.setitem(log_tables.__globals__, "CHUNK_SLOTS", 500)
    monkeypatch.setitem(read_decisions.__globals__, "BLOCK", 64)
    monkeypatch.setitem(read_decisions.__globals__, "ROWS", 8)
    again = read_decisions(reader, FixedInterval(), at_moments=True)
    for name in ("session", "action", "logging", "reward", "before", "features"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    first = part(whole, 10, 20)
    assert len(first.before) == 20 and first.session[0] == 0
    np.testing.assert_array_equal(first.weights[:, -1], whole.weights[10:30, -1])


@pytest.mark.parametrize(
    ("log", "policy", "message"),
    [
        (
            "few",
            HalfPage(),
            r"session \d+, slot \d+: policy 'every half page' requests a page where the log never",
        ),
        ("few", FixedInterval(3), "'fixed-interval' requests a page where the log never does"),
        ("keep", Keep(), "propensities are missing"),
        ("all", Keep(), "more than the request was randomised there"),
    ],
)
def test_what_a_log_cannot_judge_is_named(logs, log, policy, message):
    with pytest.raises(InputError, match=message):
        read_decisions(LogReader(logs / log), policy)


@pytest.mark.parametrize(("decisions", "moments"), [(["request"], 0), (["order", "request"], 2), ([], 1)])
def test_moments_need_requests_alone(decisions, moments):
    with pytest.raises(InputError, match="moments = "):
        RandomisedPolicy(decisions, moments)
    with pytest.raises(InputError, match="at least 1"):
        AtMoments(Keep(), preset("lite")[0], 0)


def test_the_commands(logs, tmp_path):
    judge = ["off-policy", logs / "few", "--policy", "keep", "--policy", "fixed-interval"]
    shown = run_well(*judge, "--at-moments")
    assert "effective sessions" in shown and "fixed-interval" in shown
    rows = json.loads(run_well(*judge, "--at-moments", "--json"))
    assert [row["policy"] for row in rows] == ["keep", "fixed-interval"]
    assert {*ESTIMATORS, "logged", "effective_sessions"} <= set(rows[0]) and rows[0]["sessions"] == SESSIONS
    for arguments, message in (
        (["off-policy", logs / "few", "--policy", "fixed-interval"], "--at-moments judges it"),
        (["off-policy", logs / "keep", "--policy", "keep"], "propensities are missing"),
        (["off-policy", logs / "few", "--policy", "greedy"], "not 'request'"),
        (["off-policy", tmp_path, "--policy", "keep"], "logs.json does not exist"),
        (["export-logs", logs / "few", "--out", tmp_path / "bad"], "cannot name a data set"),
    ):
        fails_with(message, *arguments)
    pytest.importorskip("minari")
    out = tmp_path / "feed-v0"
    options = ("--id", "EdgeFeedRequest-v0", "--sessions", 3, "--json")
    done = json.loads(run_well("export-logs", logs / "few", "--out", out, *options))
    assert done["episodes"] == 3 and (out / "data" / "main_data.hdf5").is_file()


@pytest.mark.skipif(not OPEN_BANDIT.is_dir(), reason="no Open Bandit data")
def test_open_bandit_intervals_hold_what_bts_earned(tmp_path):
    every = campaign_rows(OPEN_BANDIT, "men", tmp_path)
    assert [row["position"] for row in every[::5]] == ["all", 1, 2, 3]
    rows = every[:5]
    exposures = pl.read_csv(OPEN_BANDIT / "exposures.csv.gz").filter(pl.col("campaign") == "men")
    rates = dict(exposures.group_by("policy").agg(pl.col("click").mean()).iter_rows())
    assert rows[0]["estimator"] == "on-policy" and rows[0]["mean"] == pytest.approx(rates["bts"])
    assert rows[-1]["estimator"] == "logged" and rows[-1]["mean"] == pytest.approx(rates["random"])
    for row in rows:
        if row["estimator"] in ESTIMATORS:
            assert row["low"] < rates["bts"] < row["high"]
            assert abs(row["relative_error"]) < 0.5
    shown = exposures.filter(pl.col("policy") == "bts").group_by("position", "item_id").len("n")
    share = shown.with_columns(target=pl.col("n") / pl.col("n").sum().over("position"))
    judged = exposures.filter(pl.col("policy") == "random").join(
        share, on=["position", "item_id"], how="left"
    )
    ips = (judged["click"] * judged["target"].fill_null(0.0) / judged["propensity_score"]).mean()
    assert next(row["mean"] for row in rows if row["estimator"] == "ips") == pytest.approx(ips)
    with pytest.raises(InputError, match="exposures.csv.gz does not exist"):
        import_campaign(OPEN_BANDIT / "nowhere", "bts", "men", tmp_path)
