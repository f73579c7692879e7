"""`edgerec_gym.train`, `evaluate` and `plot`, and what the package exports on first use."""

import ast
import subprocess
import sys

import pytest
from places import ROOT

import edgerec_gym as eg
from edgerec_gym.agents.baselines import make_policy
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation import play


def test_names_are_there_without_torch():
    code = (
        "import sys, edgerec_gym as eg\n"
        "assert set(eg.LAZY) <= set(dir(eg)) and eg.__all__ == list(eg.LAZY)\n"
        "eg.EdgeFeedEnv, eg.FeedConfig, eg.RewardConfig, eg.Scenario, eg.train, eg.evaluate, eg.plot\n"
        "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_stub_shows_the_same_names():
    stub = ast.parse((ROOT / "edgerec_gym" / "__init__.pyi").read_text())
    shown = {n.names[0].name: n.module for n in stub.body if isinstance(n, ast.ImportFrom)}
    assert shown == eg.LAZY
    with pytest.raises(AttributeError, match="module 'edgerec_gym' has no attribute 'evaluat'"):
        eg.evaluat  # noqa: B018


def test_train_evaluate_plot(tmp_path):
    pytest.importorskip("sb3_contrib")
    run = tmp_path / "ppo"
    record = eg.train("pointer-ppo", run, scenario="lite", steps=16, num_envs=4, n_steps=4, batch_size=16)
    assert record["steps"] == 16 and record["scenario"]["name"] == "lite"
    results = eg.evaluate(["device-greedy", run], sessions=6, seed=3)  # the run tells the scenario
    assert {row["scenario"] for row in results} == {"lite"}
    assert {row["policy"] for row in results} == {"keep", "device-greedy", "pointer-ppo", "oracle"}
    figure = eg.plot(results, tmp_path / "values.png")
    assert figure.axes and (tmp_path / "values.png").read_bytes()[:4] == b"\x89PNG"
    text = repr(results)
    assert "synthetic users (ground truth), 6 sessions" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("keep", "oracle"))] == [
        "keep",
        "keep",
        "oracle",
    ]


def test_evaluate_is_that_of_the_evaluation():
    mine = make_policy("keep", "EdgeFeedMix-v0")
    mine.name = "mine"
    found = eg.evaluate(mine, env_id="EdgeFeedMix-v0", scenario="lite", users=["synthetic"], sessions=5)
    values = {row["policy"]: row["value"] for row in found}
    assert values["mine"] == values["keep"] and "oracle" in values
    same = play.evaluate(
        [make_policy("keep", "EdgeFeedMix-v0")],
        env_id="EdgeFeedMix-v0",
        scenario="lite",
        users=["synthetic"],
        sessions=5,
    )
    assert same[0]["value"] == values["keep"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eg.train("crbn", "x"), "unknown agent 'crbn'; did you mean 'crban'?"),
        (lambda: eg.train("dnn", "x", steps=5), "agent 'dnn' does not read 'steps'; leave it out"),
        (lambda: eg.train("dnn", "x"), "agent 'dnn' learns from logs"),
        (lambda: eg.evaluate("kep", scenario="lite"), "unknown policy 'kep'; did you mean 'keep'?"),
        (lambda: eg.evaluate("runs/nothing", scenario="lite"), "no such folder: runs/nothing"),
        (lambda: eg.plot([]), "no results to plot"),
    ],
)
def test_mistakes(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        call()
    assert list(tmp_path.iterdir()) == []
