"""The command line: policies are trained, evaluated, replayed and reported."""

from __future__ import annotations

import json
import sys

import pytest
from command_line import fails_with, run_well
from places import ROOT


@pytest.mark.parametrize("env_id", ["EdgeFeed-v0", "EdgeFeedSlate-v0"])
def test_evaluate_prints_json_or_a_table_and_writes_a_report(tmp_path, env_id):
    arguments = ("evaluate", "greedy", "--id", env_id, "--scenario", "lite", "--users", "synthetic")
    arguments += ("--sessions", 12)
    rows = json.loads(run_well(*arguments, "--json", "--out", tmp_path / "report"))
    assert [row["policy"] for row in rows] == ["keep", "greedy", "oracle"]
    assert json.loads((tmp_path / "report" / "results.json").read_text())["results"] == rows
    text = run_well(*arguments)
    assert "synthetic users (ground truth), 12 sessions" in text
    assert f"{rows[2]['value']['mean']:.2f}" in text
    other = json.loads(run_well(*arguments, "--json", "--seed", 1))
    assert other[0]["value"] != rows[0]["value"]


def test_evaluate_keeps_a_policys_rows_through_a_last_smaller_batch():
    arguments = ("evaluate", "fixed-slot", "--scenario", "lite", "--users", "synthetic", "--json")
    once = json.loads(run_well(*arguments, "--sessions", 12))
    batches = json.loads(run_well(*arguments, "--sessions", 12, "--num-envs", 5))
    assert once == batches


def test_evaluate_imports_a_policy_from_the_working_directory(tmp_path, monkeypatch):
    code = "class Mine:\n name = 'mine'\n def reset(self, mask): pass\n"
    code += " def act(self, observation): return observation['action_mask'].argmax(axis=1)\n"
    (tmp_path / "my_policies.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = ("--scenario", "lite", "--users", "synthetic", "--sessions", 5, "--json")
    keep, mine, _ = json.loads(run_well("evaluate", "my_policies:Mine", *arguments))
    assert mine["policy"] == "mine" and mine["value"] == keep["value"]


def test_train_resumes_and_its_run_is_evaluated(tmp_path):
    pytest.importorskip("sb3_contrib")
    out = tmp_path / "run"
    arguments = ("train", "--id", "EdgeFeedRequest-v0", "--scenario", "lite", "--users", "synthetic")
    small = ("--out", out, "--num-envs", 4, "--set", "n_steps=8", "--set", "batch_size=16", "--json")
    assert json.loads(run_well(*arguments, *small, "--steps", 32))["steps"] == 32
    assert json.loads(run_well(*arguments, *small, "--steps", 64))["steps"] == 64
    fails_with("already holds a training run", *arguments, *small, "--steps", 64, "--no-resume")
    fails_with("cannot resume", *arguments, *small, "--steps", 64, "--seed", 1)
    evaluation = ("evaluate", out, "--scenario", "lite", "--users", "synthetic", "--sessions", 5, "--json")
    rows = json.loads(run_well(*evaluation))
    assert [row["policy"] for row in rows] == ["keep", "pointer-ppo", "oracle"]
    assert {row["env_id"] for row in rows} == {"EdgeFeedRequest-v0"}
    fails_with("was trained for the track 'request'", *evaluation, "--id", "EdgeFeed-v0")


def test_a_reranker_is_trained_on_logs_and_evaluated(tmp_path):
    pytest.importorskip("torch")
    logs, out = tmp_path / "logs", tmp_path / "run"
    run_well("collect", "--preset", "lite", "--sessions", 150, "--out", logs)
    small = ("--out", out, "--set", "epochs=1", "--set", "hidden=4")
    assert "1 epochs, GAUC 0." in run_well("train", "--agent", "dnn", "--logs", logs, *small)
    evaluation = ("evaluate", out, "--scenario", "lite", "--users", "synthetic", "--sessions", 5, "--json")
    for env_id in ("EdgeFeedRerank-v0", "EdgeFeed-v0"):
        rows = json.loads(run_well(*evaluation, "--id", env_id))
        assert [row["policy"] for row in rows] == ["keep", "dnn", "oracle"]
    fails_with("it plays the tracks joint, rerank, slate, not 'mix'", *evaluation, "--id", "EdgeFeedMix-v0")


def test_replay_tells_the_session_of_an_evaluation(tmp_path):
    arguments = ("--scenario", "lite", "--seed", 2)
    out = tmp_path / "new" / "replay.html"
    told = json.loads(run_well("replay", "greedy", *arguments, "--session", 1, "--out", out, "--json"))
    assert (told["users"], told["session"], told["policy"]) == ("synthetic", 1, "greedy")
    text = run_well("replay", "greedy", *arguments, "--session", 1, "--out", out)
    assert f"{told['slots']} slots, {told['clicks']} clicks, reward {told['reward']:.2f}" in text
    assert text.rstrip().endswith(f"replay: {out}") and out.read_text().startswith("<!doctype html>")


def test_report_plays_the_checkpoints_of_a_training_once(tmp_path):
    pytest.importorskip("sb3_contrib")
    out = tmp_path / "run"
    small = ("--num-envs", 4, "--steps", 64, "--set", "n_steps=8", "--set", "batch_size=16")
    run_well("train", "--scenario", "lite", "--out", out, *small)
    told = json.loads(run_well("report", out, "--sessions", 4, "--json"))
    assert told["sections"] == ["Learning curves", "Training: pointer-ppo"]
    curve = json.loads((out / "learning_curve.json").read_text())
    (point,) = curve["checkpoints"]
    assert point["slots"] == 64 and point["synthetic"]["low"] <= point["synthetic"]["mean"]
    written = (out / "learning_curve.json").stat().st_mtime_ns
    run_well("report", out, "--sessions", 4)
    assert (out / "learning_curve.json").stat().st_mtime_ns == written
    fails_with("holds no training", "report", ROOT / "benchmarks" / "results", "--scenario", "lite")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("NoName", "policy 'odd_policies:NoName' has no name"),
        ("WantsPath", "policy 'odd_policies:WantsPath' cannot be made: its argument 'path' has no default"),
        ("MADE", "policy 'odd_policies:MADE' is not a policy class"),
    ],
)
def test_a_policy_that_cannot_be_made_is_one_line(policy, message, tmp_path, monkeypatch):
    code = "class NoName:\n def reset(self, mask): pass\n"
    code += " def act(self, observation): return observation['action_mask'].argmax(axis=1)\n"
    code += "class WantsPath(NoName):\n name = 'path'\n def __init__(self, path): pass\nMADE = NoName()\n"
    (tmp_path / "odd_policies.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    fails_with(message, "evaluate", f"odd_policies:{policy}", "--scenario", "lite", "--users", "synthetic")
