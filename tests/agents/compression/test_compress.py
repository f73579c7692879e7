"""From a run to a compressed device model: runs that repeat and resume, and one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import fails_with, run_well
from safetensors.numpy import load_file
from small_rerankers import train

from edgerec_gym.agents.compression import compress as module
from edgerec_gym.agents.compression.compress import Compression, compress, train_smaller
from edgerec_gym.agents.compression.fine_tuning import SelfDistiller, TuningConfig, play_observations
from edgerec_gym.agents.compression.rounding import round_in_place
from edgerec_gym.agents.export.export import export
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.learning.epochs import EpochTrainer
from edgerec_gym.agents.learning.parameters import save_parameters
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.rerank.train import load_reranker
from edgerec_gym.agents.values.train import load_network
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import play
from edgerec_gym.logs.collect import collect
from edgerec_gym.registration import make_feeds
from edgerec_gym.runs import read_run
from edgerec_gym.scenario import Scenario
from tests.small_pools import stir

TUNING = TuningConfig(epochs=2, sessions=10, num_envs=10, batch_size=64, share=0.3)
VALUES: dict[str, Any] = {"hidden": 16, "keys": 8, "heads": 2, "queries": 2} | {
    "updates": 1, "sessions": 4, "batch_size": 4, "select_every": 1, "select_sessions": 4, "replays": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    collect(folder, preset_name="lite", sessions=60)
    return folder


@pytest.fixture(scope="module")
def crban(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Path:
    folder = tmp_path_factory.mktemp("crban")
    train(folder, logs, agent="crban", hidden=16, epochs=1, batch_size=64)
    return folder


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("values")
    train_agent("distilled-values", folder, scenario="lite", env_id="EdgeFeedRerank-v0", hyper=VALUES)
    network = stir(load_network(folder, Scenario.load("lite").config), size=0.3)
    save_parameters(folder / "policy.safetensors", network)
    return folder


def smaller(out: Path, base: Path, lite: Scenario, how: Compression, **options: Any) -> dict[str, Any]:
    return train_smaller(out, read_run(base), how, scenario=lite, **options)


def same(one: Path, other: Path) -> bool:
    left, right = (load_file(folder / "policy.safetensors") for folder in (one, other))
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("from_logs", [True, False])
def test_a_compressed_run_is_an_ordinary_one(
    crban: Path, logs: Path, lite: Scenario, tmp_path: Path, from_logs: bool
) -> None:
    how = Compression(8, 0.5, tuning=TUNING)
    record = smaller(tmp_path / "run", crban, lite, how, logs=logs if from_logs else None)
    assert record["network"]["hidden"] == 8 and record["hyper"]["hidden"] == 16
    assert record["compression"]["prune"] == 0.5 and record["compression"]["bits"] == 8
    assert record["compression"]["base"] == module._digest(read_run(crban))
    assert len(record["gauc" if from_logs else "distance"]) == 2
    network = load_reranker(tmp_path / "run", lite.config)
    assert network.settings.hidden == 8
    # Its weights lie on the grid of 8 bits: rounding them again changes nothing.
    weight = network.get_parameter("head.0.weight").detach().numpy()
    steps = weight / np.abs(weight).max(axis=1, keepdims=True) * 127
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    policy = find_policy(str(tmp_path / "run"), "EdgeFeedRerank-v0", lite, "synthetic")
    found = play(policy, env_id="EdgeFeedRerank-v0", scenario=lite, users="synthetic", sessions=4, seed=0)
    assert found["value"].mean() > 0 and not found["violations"].any()
    sizes = [export(run, tmp_path / "device", scenario=lite)["bytes"] for run in (crban, tmp_path / "run")]
    assert sizes[1] < sizes[0]


def test_fine_tuning_nears_the_network_before(values: Path, lite: Scenario, tmp_path: Path) -> None:
    run, tuning = read_run(values), TuningConfig(epochs=4, sessions=20, num_envs=20)
    network = load_network(run, lite.config)
    played = play_observations(run, network, lite, tuning, seed=0)
    again = play_observations(run, network, lite, tuning, seed=0)
    np.testing.assert_array_equal(played.logits, again.logits)
    record = {"seed": 0, "steps": 0, "distance": []}
    assert SelfDistiller(record, tuning, network, played, 32).stopping_figure() == pytest.approx(0, abs=1e-9)
    rounding = SelfDistiller(record, tuning, network, played, 4).stopping_figure()
    assert rounding > 1e-6
    record = smaller(tmp_path / "run", values, lite, Compression(4, 0.0, tuning=tuning))
    assert record["before"] == pytest.approx(rounding, rel=0.1)  # kept state is rounded, too
    assert min(record["distance"]) < 0.9 * record["before"]
    record = smaller(tmp_path / "pruned", values, lite, Compression(32, 0.5, tuning=tuning))
    assert record["distance"][-1] < record["distance"][0] and record["network"]["hidden"] == 8
    assert load_network(tmp_path / "pruned", lite.config).settings.hidden == 8


def test_a_network_that_training_makes_worse_stays_as_it_was(
    values: Path, lite: Scenario, tmp_path: Path
) -> None:
    wild = TuningConfig(epochs=1, sessions=10, num_envs=10, learning_rate=1.0, max_grad_norm=1e6)
    record = smaller(tmp_path / "run", values, lite, Compression(8, 0.0, tuning=wild))
    assert record["before"] < record["distance"][0]
    kept, original = (load_network(folder, lite.config) for folder in (tmp_path / "run", values))
    round_in_place(original, 8)
    for name, parameter in kept.named_parameters():
        torch.testing.assert_close(parameter, original.get_parameter(name), msg=name)


def test_the_same_seed_gives_the_same_run_also_after_an_interruption(
    crban: Path, lite: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Compression(4, 0.5, tuning=TUNING)
    smaller(tmp_path / "a", crban, lite, how)
    original, count = EpochTrainer.run_epoch, []

    def dies(self: EpochTrainer[Any]) -> None:
        if count:
            raise KeyboardInterrupt
        count.append(1)
        original(self)

    monkeypatch.setattr(EpochTrainer, "run_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        smaller(tmp_path / "b", crban, lite, how)
    monkeypatch.setattr(EpochTrainer, "run_epoch", original)
    smaller(tmp_path / "b", crban, lite, how)
    smaller(tmp_path / "c", crban, lite, how, seed=1)
    assert same(tmp_path / "a", tmp_path / "b") and not same(tmp_path / "a", tmp_path / "c")
    before = (tmp_path / "a" / "policy.json").read_bytes()
    smaller(tmp_path / "a", crban, lite, how)  # finished: nothing is done again
    assert (tmp_path / "a" / "policy.json").read_bytes() == before
    with pytest.raises(InputError, match="cannot resume .*: compression was"):
        smaller(tmp_path / "a", crban, lite, Compression(8, 0.5, tuning=TUNING))


@pytest.mark.parametrize(("engine", "package"), [("onnxruntime", "onnxruntime"), ("mnn", "MNN")])
def test_device_models_of_fewer_bits_are_smaller_and_answer_alike(
    crban: Path, lite: Scenario, tmp_path: Path, engine: str, package: str
) -> None:
    pytest.importorskip(package)
    sizes, scores = {}, {}
    env_id = "EdgeFeedRerank-v0"
    env = make_feeds(env_id, 6, scenario=lite, users="synthetic")
    observation, _ = env.reset(seed=0)
    for _ in range(8):
        observation, *_ = env.step(observation["action_mask"].argmax(axis=1))
    for bits in (32, 8, 4):
        folder = tmp_path / str(bits)
        described = compress(crban, folder, Compression(bits, qat=False), scenario=lite, engine=engine)
        assert {graph["bits"] for graph in described["graphs"].values()} == {bits}
        assert {graph["engine"] for graph in described["graphs"].values()} == {engine}
        DeviceModel(folder).check_golden()
        sizes[bits] = described["bytes"]
        policy: Any = find_policy(str(folder), env_id, lite, "synthetic")
        policy.act(observation)
        scores[bits] = np.stack([
            phone.session.scores({key: values[row] for key, values in observation.items()})
            for row, phone in enumerate(policy.phones)
        ])  # fmt: skip
    assert sizes[4] < sizes[8] < sizes[32]
    there = scores[32] > -1e8
    spread = scores[32][there].std()
    for bits, most in ((8, 0.2), (4, 1.0)):
        assert 0 < np.abs(scores[bits] - scores[32])[there].max() < most * spread


@pytest.mark.parametrize(
    "name", ["rerank/prm", "rerank/seq2slate", "rerank/sequence-search", "joint/edgerec", "joint/values",
             "mix/esan", "request/uplift-x", "request/request-dqn", "request/pointer-ppo"]
)  # fmt: skip
def test_every_kind_of_agent_is_rounded_at_export(name: str, lite: Scenario, tmp_path: Path) -> None:
    """Their graphs pass the golden test of four bits, the coarsest."""
    track, _, agent = name.partition("/")
    run = Path(lite.path or "") / "agents" / track / "runs" / f"{agent}-0"
    plain = export(run, tmp_path / "plain", scenario=lite, places=6)
    small = compress(run, tmp_path / "small", Compression(4, qat=False), scenario=lite, places=6)
    assert small["bytes"] < plain["bytes"]  # of the estimator, whose weights are small, by a tenth only
    assert {graph["bits"] for graph in small["graphs"].values()} == {4}


def test_the_command_writes_a_device_model(crban: Path, tmp_path: Path) -> None:
    hyper = [
        part for pair in ("epochs=1", "sessions=10", "num_envs=10", "share=0.2") for part in ("--set", pair)
    ]
    command = ["compress", crban, "--prune", 0.5, "--scenario", "lite", "--out", tmp_path / "phone", *hyper]
    assert "crban for onnxruntime, 8 bits, 50% of the units pruned" in run_well(*command)
    told = json.loads((tmp_path / "phone" / "device.json").read_text())
    assert told["origin"]["run"]["compression"]["prune"] == 0.5
    assert (tmp_path / "phone-run" / "policy.json").is_file()
    run_well(*command)  # the run is not trained again, the model is replaced


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", 3], "bits = 3 is not possible; allowed: 4, 8, 32"),
        (["--prune", 1.5], "prune = 1.5 is out of range; allowed: 0 to below 1"),
        (["--prune", -0.1], "prune = -0.1 is out of range"),
        (["--engine", "tflite"], "'tflite' is not one of 'onnxruntime', 'mnn'"),
        (["--importance", "luck"], "'luck' is not one of 'taylor', 'norm'"),
        (["--set", "epochs=0"], "epochs"),
        (["--scenario", "lite-v2"], "was trained with pool"),
    ],
)
def test_bad_options_end_in_one_line(crban: Path, tmp_path: Path, options: list[Any], message: str) -> None:
    options = [*options, *([] if "--scenario" in options else ["--scenario", "lite"])]
    fails_with(message, "compress", crban, "--out", tmp_path / "phone", *options)
    assert not (tmp_path / "phone").exists()


def test_agents_that_cannot_be_compressed_are_named(values: Path, tmp_path: Path, lite: Scenario) -> None:
    runs = Path(lite.path or "") / "agents" / "rerank" / "runs"
    judge = tmp_path / "evaluator"
    judge.mkdir()
    record = json.loads((runs / "dnn-0" / "policy.json").read_text()) | {"agent": "evaluator"}
    (judge / "policy.json").write_text(json.dumps(record))
    fails_with(
        "holds the agent 'evaluator', which cannot be exported to a device",
        *("compress", judge, "--scenario", "lite", "--out", tmp_path / "phone"),
    )
    fails_with(
        "holds the agent 'pointer', which cannot be pruned or fine-tuned; allowed: dnn, crban",
        *("compress", runs / "pointer-0", "--scenario", "lite", "--out", tmp_path / "phone"),
    )
    with pytest.raises(InputError, match="nothing is fine-tuned; leave --logs out"):
        compress(values, tmp_path / "phone", Compression(qat=False), scenario=lite, logs=tmp_path)
    with pytest.raises(InputError, match="is fine-tuned on sessions that it plays; leave --logs out"):
        smaller(tmp_path / "run", values, lite, Compression(tuning=TUNING), logs=tmp_path)
