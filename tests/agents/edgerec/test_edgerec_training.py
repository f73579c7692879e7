"""The EdgeRec agent: joint training that resumes, runs that play by their rules, and the track joint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgerec_gym.agents.edgerec import load
from edgerec_gym.agents.edgerec import train as training
from edgerec_gym.agents.edgerec.agent import EdgeRec
from edgerec_gym.agents.edgerec.judges import load_parts
from edgerec_gym.agents.edgerec.rollouts import Explorer, play_sessions
from edgerec_gym.agents.edgerec.rules import rules_from
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.bench import joint
from edgerec_gym.bench.training import track_setting
from edgerec_gym.errors import InputError
from edgerec_gym.logs.collect import collect
from edgerec_gym.registration import make_feeds
from edgerec_gym.runs import PARAMETERS
from edgerec_gym.scenario import Scenario
from tests.small_edgerec import ID, results, stirred_network

TINY: dict[str, Any] = {
    "hidden": 8, "teach_sessions": 12, "teach_epochs": 2, "batch_size": 4, "samples": 2, "moments": 40,
    "select_every": 1, "select_sessions": 8, "compare_sessions": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of the three parts, hardly trained."""
    folder = tmp_path_factory.mktemp("parts")
    collect(folder / "logs", preset_name="lite", sessions=150, seed=1)
    small = {"epochs": 1, "hidden": 8}
    runs = {"crban": small, "esan": small, "uplift-x": {"epochs": 1, "hidden": 4, "behaviour": 4}}
    for agent, hyper in runs.items():
        train_agent(agent, folder / agent, logs=folder / "logs", seed=0, resume=False, threads=1, hyper=hyper)
    return [folder / agent for agent in runs]


def train(out: Path, parts: list[Path], updates: int, **options: Any) -> dict[str, Any]:
    lite = Scenario.load("lite")
    short = replace(lite, config=lite.config.replace(max_slots=16))
    hyper = TINY | {"updates": updates}
    return training.train(out, based_on=parts, scenario=short, resume=True, **options, **hyper)


@pytest.mark.slow
def test_training_resumes_to_the_same_parameters(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = train(tmp_path / "whole", parts, 2)
    assert len(record["held_out"]) == 3 and len(record["reward"]) == 2
    update = training.EdgeRecTrainer.update

    def killed(trainer: training.EdgeRecTrainer) -> None:
        if trainer.record["steps"] == 1:
            raise KeyboardInterrupt
        update(trainer)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training.EdgeRecTrainer, "update", killed)
        train(tmp_path / "killed", parts, 2)
    assert train(tmp_path / "killed", parts, 2) == record
    whole, resumed = (load_file(tmp_path / n / PARAMETERS) for n in ("whole", "killed"))
    for name, values in whole.items():
        np.testing.assert_array_equal(values, resumed[name])
    with pytest.raises(InputError, match="rules"):
        train(tmp_path / "whole", parts, 2, rules=rules_from({"decide": {"order": False}}))


def test_a_run_plays_by_the_rules_in_its_folder(parts: list[Path], lite: Scenario, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, parts, 1, rules=rules_from({"decide": {"request": False}}))
    policy = find_policy(str(out), ID, lite, "synthetic")
    assert isinstance(policy, EdgeRec) and not policy.rules.decide.request
    assert results(policy, lite)["requests"].sum() == 0
    eager = rules_from({"request": {"price": -5.0}})
    eager.save(out / "rules.toml")
    assert results(find_policy(str(out), ID, lite, "synthetic"), lite)["requests"].sum() > 0
    (out / "rules.toml").write_text("[request]\nprice = 'low'")
    with pytest.raises(InputError, match="rules.toml"):
        find_policy(str(out), ID, lite, "synthetic")
    with pytest.raises(InputError, match="EdgeFeed-v0"):
        find_policy(str(out), "EdgeFeedMix-v0", lite, "synthetic")


def test_noise_pulls_the_heads_toward_what_was_better(lite: Scenario) -> None:
    network = stirred_network(lite)
    generator = np.random.default_rng(0)
    judge = Explorer(network, generator, (0.3, 0.04, 0.05))
    env = make_feeds("joint", 16, scenario=lite, users="synthetic", split="train", copy=False)
    play_sessions(EdgeRec(judge, lite.config), env, np.arange(16))
    moments = training.joined(judge.moments)
    trainer = training.EdgeRecTrainer.__new__(training.EdgeRecTrainer)
    trainer.settings, trainer.network, trainer.taught = load.EdgeRecConfig(), network, network
    wished = moments.told["request_noise"]  # as if a request were always worth what the noise added
    (gradient,) = torch.autograd.grad(trainer.loss(moments, wished), network.effect)
    assert gradient[1] < 0  # descent raises the shift


@pytest.mark.parametrize(
    ("given", "told"),
    [([0, 1], "uplift-x"), ([0, 0, 1, 2], "one re-ranker"), ([1, 2], "crban")],
)
def test_missing_parts_are_named(given: list[int], told: str, parts: list[Path], lite: Scenario) -> None:
    with pytest.raises(InputError, match=told):
        load_parts([parts[k] for k in given], lite.config)


def test_rules_belong_to_the_agent_only(parts: list[Path], tmp_path: Path) -> None:
    common: dict[str, Any] = {"logs": None, "seed": 0, "resume": False, "threads": 1, "hyper": {}}
    with pytest.raises(InputError, match="has no rules"):
        train_agent("crban", tmp_path, rules="examples/edgerec.toml", **common)
    with pytest.raises(InputError, match="reads no logs"):
        train_agent("edgerec", tmp_path, **common | {"logs": tmp_path})


# --- the track ----------------------------------------------------------------------------------------


def test_rows_of_the_track() -> None:
    generator, n = np.random.default_rng(0), 50
    names = {"keep": 0.0, "dnn": 0.5, "edgerec": 1.0, "edgerec, no request": 0.8, "oracle": 4.0}
    keys = (
        "value",
        "expected_clicks",
        "expected_purchases",
        "exposures",
        "requests",
        "violations",
        "cards_ad",
    )

    def sessions(level: float) -> dict[str, np.ndarray]:
        return {key: level + 2 + generator.random(n) for key in keys}

    true = {(name, None): sessions(level) for name, level in names.items()}
    stale = {("edgerec", None): sessions(0.5)}
    rows = joint.make_rows(true, {}, stale)
    found = {(item["policy"], item["metric"]): item for item in rows}
    assert found["edgerec", "gain_over_best_single"]["single"] == "dnn"
    assert found["edgerec", "gain_over_best_single"]["low"] > 0
    assert found["edgerec, no request", "cost"]["mean"] == pytest.approx(0.2, abs=0.15)
    assert found["edgerec, stale cloud", "cost"]["low"] > 0
    titles = joint.tables(rows)
    assert len(titles) == 2 and all(body for _, body in titles.values())


def test_policies_of_the_track(tmp_path: Path) -> None:
    assert len(joint.POLICIES) - len(joint.ABLATIONS) >= 12
    setting = track_setting("joint", tmp_path, seeds=2)
    found = setting.track.code("entries")(setting, joint.POLICIES)
    assert {entry.seed for entry in found if entry.policy == "edgerec"} == {0, 1}
    with pytest.raises(InputError, match="unknown policy"):
        setting.track.code("entries")(setting, ["nobody"])
