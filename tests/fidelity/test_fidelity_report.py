"""How true learned users are: replay, rollouts, interventions, ranking, and the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from command_line import fails_with, run_well
from safetensors.numpy import load_file, save_file

from edgerec_gym.answers import CLICK, DWELL_BUCKETS
from edgerec_gym.bench.weak_to_strong import weak_to_strong
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.fidelity import expected
from edgerec_gym.fidelity.expected import event_figures, replay
from edgerec_gym.fidelity.interventions import arms, interventions, keep_rows
from edgerec_gym.fidelity.report import fidelity_report, rank_policies
from edgerec_gym.fidelity.rollouts import LogSample, compare, held_out, simulate
from edgerec_gym.fidelity.two_sample import session_features, two_sample
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.logging_policy import DECISIONS, ORDER_PROBABILITY, session_habits
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import Scenario, _sha256
from edgerec_gym.simulator.fit import fit
from edgerec_gym.users.learned_layout import CLICK_AT
from edgerec_gym.users.learned_layout import DWELL_BUCKETS as N_DWELL
from edgerec_gym.vector_env import EdgeFeedVectorEnv

ALL = frozenset[str]()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 90 sessions and a quickly fitted scenario; days 3 to 6 are held out."""
    folder = tmp_path_factory.mktemp("fidelity")
    collect(folder / "logs", preset_name="lite", sessions=90)
    fit(folder / "logs", folder / "scenario", ensemble=2, epochs=2, hidden=8, held_out_from=3)
    return folder


@pytest.fixture(scope="module")
def scenario(folder: Path) -> Scenario:
    return Scenario.load(folder / "scenario")


@pytest.fixture(scope="module")
def log(folder: Path, scenario: Scenario) -> LogSample:
    """All sessions of the log."""
    return held_out(LogReader(folder / "logs"), scenario, 1000, whole=True)


def part(log: LogSample, index: np.ndarray) -> LogSample:
    return LogSample(log.sessions.select(index), log.table)


@pytest.fixture(scope="module")
def broken(folder: Path) -> Scenario:
    """The same users, who click far more often."""
    out = folder / "broken"
    shutil.copytree(folder / "scenario", out)
    tensors = load_file(out / "simulator.safetensors")
    for name in tensors:
        if name.endswith(".heads.bias"):
            tensors[name][CLICK_AT : CLICK_AT + 1 + N_DWELL] += 2.0
    save_file(tensors, out / "simulator.safetensors")
    values = json.loads((out / "scenario.json").read_text())
    values["sha256"] = {name: _sha256(out / name) for name in values["sha256"]}
    (out / "scenario.json").write_text(json.dumps(values))
    return Scenario.load(out)


def test_replay_expects_what_the_networks_did(folder, scenario):
    """The run-time graph, fed with what was done, gives the figures that the fit measured with torch."""
    sessions = held_out(LogReader(folder / "logs"), scenario, 1000).sessions
    assert len(sessions) == scenario.fidelity["sessions"]
    click = event_figures(scenario, sessions, ALL)["click"]
    assert click["slots"] == scenario.fidelity["slots"]
    assert click["auc"] == pytest.approx(scenario.fidelity["click_auc"], abs=1e-3)
    assert click["ece"] == pytest.approx(scenario.fidelity["click_ece"], abs=1e-3)
    assert click["rate_predicted"] == pytest.approx(scenario.fidelity["click_rate_predicted"], abs=1e-5)


def test_replay_in_blocks_is_the_same(log, scenario, monkeypatch):
    whole = replay(scenario, log.sessions)
    monkeypatch.setattr(expected, "BLOCK", 40)  # 90 sessions: three blocks, the last one smaller
    for event, probability in replay(scenario, log.sessions).items():
        np.testing.assert_allclose(probability, whole[event], rtol=1e-5, err_msg=event)


def test_distances_are_those_of_scipy(log, scenario):
    ours, theirs = part(log, np.arange(0, 40)), part(log, np.arange(40, 90))
    found = compare(ours, theirs, scenario, ALL)
    length = ours.sessions.answered, theirs.sessions.answered
    dwell = []
    for played in (ours, theirs):
        rows = played.sessions.answered_rows(np.arange(len(played.sessions)))
        dwell.append(np.rint(played.sessions.actions[rows, 0] * (DWELL_BUCKETS - 1)))
    for name, (a, b) in {"session_length": length, "dwell": dwell}.items():
        assert found[name]["ks"] == pytest.approx(scipy.stats.ks_2samp(a, b).statistic)
        assert found[name]["wasserstein"] == pytest.approx(scipy.stats.wasserstein_distance(a, b))
        assert found[name]["log"]["mean"] == pytest.approx(a.mean())


def test_a_log_is_like_another_of_the_same_users(log, scenario, tmp_path):
    collect(tmp_path / "again", preset_name="lite", sessions=90, seed=1)
    again = held_out(LogReader(tmp_path / "again"), scenario, 1000, whole=True)
    found = compare(log, again, scenario, ALL)
    assert not any(figures["weak"] for figures in found.values())
    assert all(figures["ks"] == 0 for figures in compare(log, log, scenario, ALL).values())
    told = two_sample(log.sessions, again.sessions, repeats=5)
    assert abs(told["auc"] - 0.5) < 0.1 and not told["weak"]
    features, names = session_features(log.sessions)
    assert features.shape == (90, len(names)) and not np.isnan(features[:, 0]).any()


def test_users_who_click_too_much_are_found_out(folder, log, broken):
    report = fidelity_report(broken, folder / "logs", whole_log=True, repeats=2)
    assert {"calibration of click", "clicks", "two_sample"} <= set(report["weak"])
    assert report["click_ece"] > 0.1 and report["two_sample_auc"] > 0.8
    clicks = report["distributions"]["clicks"]
    assert clicks["log"]["mean"] == pytest.approx(log.sessions.actions[:, CLICK].sum() / 90)
    assert clicks["simulated"]["mean"] > 2 * clicks["log"]["mean"]
    assert report["kendall_tau"] is None and report["policies"] is None


def test_what_the_log_cannot_tell_is_left_out(log, scenario):
    unknown = frozenset({"leave", "exposure_actions", "cards", "position"})
    assert set(event_figures(scenario, log.sessions, unknown)) == {"click", "purchase", "long_page_view"}
    assert set(compare(log, log, scenario, unknown)) == {"clicks", "click_rate_by_slot", "click_gap"}


def test_arms_follow_the_logging_policy(log, scenario):
    """Keep's row and the number of rows left, rebuilt from the pages, explain every propensity."""
    config, table = scenario.config, log.table
    action, propensity = table["action"].to_numpy(), table["propensity"].to_numpy()
    p_request = table["request_propensity"].to_numpy()
    keep, rows = keep_rows(table, config)
    ids, place = np.unique(table["session"].to_numpy(), return_inverse=True)
    habits = session_habits(ids)
    plain = (habits.focus == 0)[place]
    kept, other = plain & (action == keep), plain & (action < config.pool_size) & (action != keep)
    for p_insert in (0.0, habits.insert[place]):  # no card is legal, or one is
        p_order = (1 - p_request) * (1 - p_insert) * ORDER_PROBABILITY
        explained = np.isclose(propensity, p_order / rows) & other
        explained |= np.isclose(propensity, p_order / rows + p_order) & kept
        assert explained.sum() > 50
        kept, other = kept & ~explained, other & ~explained
    assert not kept.any() and not other.any()
    for treated, control in arms(table, config, DECISIONS).values():
        # Both arms stand for the same slots.
        assert treated.sum() == pytest.approx(control.sum(), rel=0.2)
        assert not ((treated > 0) & (control > 0)).any()


def test_interventions_have_the_same_effect_on_the_same_users(log, scenario):
    found = interventions(log, log, scenario.config, DECISIONS)
    assert set(found) == {"order", "insert", "request"}
    for outcomes in found.values():
        assert not outcomes["clicks"]["weak"] and outcomes["clicks"]["treated"] > 20
        assert outcomes["clicks"]["log"] == outcomes["clicks"]["simulated"]
        assert outcomes["clicks"]["log"]["low"] < outcomes["clicks"]["log"]["mean"]


def test_rollouts_are_as_many_as_asked_for(scenario):
    played = simulate(scenario, 23, ["order"])
    assert len(played.sessions) == 23 and played.table["propensity"].null_count == 0
    assert not played.table["request"].to_numpy().any()


def test_ranking_counts_pairs_that_are_certain(scenario):
    policies = weak_to_strong(scenario.config)
    labels: list[str] = []
    found = rank_policies(policies, scenario, 30, progress=lambda done, label: labels.append(label))
    names = [policy.name for policy in policies]
    assert [row["policy"] for row in found["policies"]] == names == list(found["exploitation_gap"])
    assert len(set(names)) == len(names) >= 10 and len(set(labels)) == 2 * len(names)
    assert 0 < found["certain_pairs"] <= found["pairs"] == len(names) * (len(names) - 1) // 2
    assert -1 <= found["kendall_tau"] <= 1 and found["span"] > 0.4
    assert found["exploitation_gap"]["keep"]["mean"] == 0


def test_the_zoo_plays_legal_actions(lite):
    env = EdgeFeedVectorEnv(6, track="joint", scenario=lite, users="synthetic")
    for policy in weak_to_strong(lite.config):
        observation, _ = env.reset(seed=1)
        policy.reset(np.ones(6, np.bool_))
        for _ in range(12):
            actions = policy.act(observation)
            assert (observation["action_mask"][np.arange(6), actions] == 1).all(), policy.name
            observation, *_ = env.step(actions)


def test_a_ranking_needs_policies(folder, scenario):
    zoo = weak_to_strong(FeedConfig(page_size=10))
    with pytest.raises(InputError, match="at least 10 policies"):
        fidelity_report(scenario, folder / "logs", policies=zoo[:9])
    with pytest.raises(InputError, match="must include 'keep'"):
        fidelity_report(scenario, folder / "logs", policies=zoo[1:])


@pytest.mark.slow
def test_the_command_writes_a_report(folder, tmp_path):
    arguments = "fidelity", folder / "scenario", folder / "logs", "--quick", "--policy-sessions", 10
    report = json.loads(run_well(*arguments, "--out", tmp_path / "out", "--json"))
    assert report == json.loads((tmp_path / "out" / "fidelity.json").read_text())
    for key in ("click_ece", "two_sample_auc", "kendall_tau", "policies", "exploitation_gap"):
        assert report[key] is not None
    files = {"fidelity.json", "reliability.png", "click_rate.png", "policies.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    shown = run_well(*arguments)
    assert "Kendall tau" in shown and "weak:" in shown and "two-sample AUC" in shown


@pytest.mark.parametrize(
    ("message", "scenario", "logs"),
    [
        ("no scenario 'nowhere'", "nowhere", "logs"),
        ("nowhere/logs.json does not exist", "scenario", "nowhere"),
        ("page_size is 10, but 50 in the scenario", "default", "logs"),
        ("logs/scenario.json does not exist", "logs", "logs"),
    ],
)
def test_errors_are_one_line(message, scenario, logs, folder):
    scenario = folder / scenario if (folder / scenario).exists() else scenario
    fails_with(message, "fidelity", scenario, folder / logs)


def test_too_few_sessions_are_named(scenario, tmp_path):
    collect(tmp_path / "few", preset_name="lite", sessions=5)
    with pytest.raises(InputError, match="has 5 held-out sessions; at least 20"):
        held_out(LogReader(tmp_path / "few"), scenario, 100, whole=True)
