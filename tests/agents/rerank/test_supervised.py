"""Training of re-rankers on logs: it learns, repeats, resumes, and its runs are loaded back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_rerankers import RERANKERS, build, train

from edgerec_gym.agents.data.moments import RerankMoments, split_moments
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.learning.epochs import log_record, moment_settings
from edgerec_gym.agents.learning.parameters import checkpoints
from edgerec_gym.agents.learning.tensors import to_tensors
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.rerank import train as training
from edgerec_gym.agents.rerank.reranker import RerankerConfig
from edgerec_gym.agents.rerank.train import Held, load_reranker
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import evaluate
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import Scenario

QUICK: dict[str, Any] = {"epochs": 2, "hidden": 8, "batch_size": 64}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    collect(folder, preset_name="lite", sessions=250, seed=1)
    return folder


def same(a: Path, b: Path) -> bool:
    first, second = load_file(a / "policy.safetensors"), load_file(b / "policy.safetensors")
    return all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.slow
@pytest.mark.parametrize("agent", RERANKERS)
def test_learns_a_few_requests_by_heart(logs: Path, agent: str) -> None:
    settings = RerankerConfig(learning_rate=0.01, hidden=16)
    reader = LogReader(logs)
    stream, _, _ = split_moments(reader, **moment_settings(settings, 0))
    few = Held.from_stream(stream, most=16)
    network = build(agent, reader.config, settings)
    before = few.gauc(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(0)
    tensors = to_tensors(few.batches[0].observation)
    shown, click = (torch.from_numpy(few.joined(name)) for name in ("shown", "click"))
    network.train()
    for step in range(1, 201):
        optimizer.zero_grad()
        network.loss(tensors, shown, click, generator).backward()
        optimizer.step()
        if step % 20 == 0 and few.gauc(network) > 0.97:
            break
    assert before < 0.85
    assert few.gauc(network) > 0.97


@pytest.mark.parametrize("agent", RERANKERS)
def test_a_run_is_loaded_back_and_played(logs: Path, lite: Scenario, tmp_path: Path, agent: str) -> None:
    record = train(tmp_path, logs, agent=agent, **QUICK)
    assert json.loads((tmp_path / "policy.json").read_text()) == record
    assert record["steps"] == 2 and len(record["gauc"]) == 2
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    reader = LogReader(logs)
    settings = RerankerConfig.from_dict(record["hyper"])
    _, stop, _ = split_moments(reader, **moment_settings(settings, 0))
    found = Held.from_stream(stop).gauc(load_reranker(tmp_path, reader.config))
    assert found == pytest.approx(max(record["gauc"]), abs=1e-9)
    policies = [find_policy(name, "EdgeFeedRerank-v0", lite, "synthetic") for name in ("keep", str(tmp_path))]
    results = evaluate(policies, env_id="EdgeFeedRerank-v0", scenario=lite, users=["synthetic"], sessions=8)
    assert [r["policy"] for r in results] == ["keep", agent]
    assert results[1]["violations"]["mean"] == 0 and results[1]["value"]["mean"] > 0


def test_some_misses_stand_for_all(logs: Path) -> None:
    def loss(misses: float, chunk: RerankMoments, index: np.ndarray) -> float:
        reader, settings = LogReader(logs), RerankerConfig(hidden=8, misses=misses)
        trainer = training.RerankTrainer(
            reader,
            log_record("dnn", "rerank", reader, 0, settings) | {"gauc": []},
            settings,
            training.build(RERANKERS["dnn"], reader.config, settings),
        )
        return float(trainer.loss(chunk, index, torch.Generator()).detach())

    reader = LogReader(logs)
    chunk = next(split_moments(reader, **moment_settings(RerankerConfig(), 0))[0].chunks())
    full = (chunk.shown >= 0).all(1)
    clicked = chunk.click.any(1)
    hits, miss = np.flatnonzero(full & clicked)[:3], np.flatnonzero(full & ~clicked)[0]
    index = np.concatenate([hits, np.repeat(miss, 8)])
    assert loss(0.25, chunk, index) == pytest.approx(loss(1.0, chunk, index), rel=1e-5)
    other = np.flatnonzero(full & ~clicked)[1]
    assert loss(0.25, chunk, np.append(index, other)) != loss(1.0, chunk, np.append(index, other))


def test_same_seed_same_parameters(logs: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, logs, agent="seq2slate", seed=seed, **QUICK)
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


def test_a_killed_run_ends_as_if_it_had_not_been(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = QUICK | {"epochs": 4}
    whole = train(tmp_path / "whole", logs, agent="dnn", **small)
    original, epochs = training.RerankTrainer.run_epoch, []

    def dies(self: training.RerankTrainer) -> None:
        if len(epochs) == 2:
            raise KeyboardInterrupt
        epochs.append(1)
        original(self)

    monkeypatch.setattr(training.RerankTrainer, "run_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", logs, agent="dnn", **small)
    monkeypatch.setattr(training.RerankTrainer, "run_epoch", original)
    assert not (tmp_path / "killed" / "policy.json").exists()
    assert [p.name for p in checkpoints(tmp_path / "killed")] == ["step-000000000001", "step-000000000002"]
    load_reranker(tmp_path / "killed", LogReader(logs).config)
    again = train(tmp_path / "killed", logs, agent="dnn", resume=True, **small)
    assert again["gauc"] == whole["gauc"] and len(again["gauc"]) == 4
    assert same(tmp_path / "whole", tmp_path / "killed")


def test_resuming_a_finished_run_changes_nothing(logs: Path, tmp_path: Path) -> None:
    first = train(tmp_path, logs, agent="dnn", **QUICK)
    assert train(tmp_path, logs, agent="dnn", resume=True, **QUICK) == first
    with pytest.raises(InputError, match="already holds a training run"):
        train(tmp_path, logs, agent="dnn", **QUICK)
    with pytest.raises(InputError, match="cannot resume .*: seed was 0, now it is 1"):
        train(tmp_path, logs, agent="dnn", seed=1, resume=True, **QUICK)


def test_stops_early_and_keeps_the_best(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    monkeypatch.setattr(Held, "gauc", lambda self, network: next(figures))
    record = train(tmp_path, logs, agent="dnn", **QUICK | {"epochs": 20, "patience": 2})
    assert record["gauc"] == [0.5, 0.7, 0.6, 0.65]
    training = load_file(checkpoints(tmp_path)[-1] / "training.safetensors")
    kept = load_file(tmp_path / "policy.safetensors")
    assert any(not np.array_equal(training[key], kept[key]) for key in kept)


def test_refuses_what_does_not_fit(logs: Path, lite: Scenario, tmp_path: Path) -> None:
    train(tmp_path / "run", logs, agent="dnn", **QUICK)
    run = str(tmp_path / "run")
    with pytest.raises(InputError, match="it plays the tracks joint, rerank, slate, not 'request'"):
        find_policy(run, "EdgeFeedRequest-v0", lite, "synthetic")
    with pytest.raises(InputError, match=r"trained with pool \[20, 20\]; this environment has \[100, 20\]"):
        find_policy(run, "EdgeFeed-v0", "default", "synthetic")
    parameters = tmp_path / "run" / "policy.safetensors"
    parameters.write_bytes(parameters.read_bytes()[:100])
    with pytest.raises(InputError, match="policy.safetensors is not a readable"):
        find_policy(run, "EdgeFeed-v0", lite, "synthetic")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 3}, "RerankerConfig has no field 'hidden_size'; did you mean 'hidden'"),
        ({"hidden": 1}, "hidden = 1 is out of range"),
        ({"seed": -1}, "seed = -1 is out of range"),
        ({"threads": 0}, "threads = 0"),
    ],
)
def test_bad_arguments(logs: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(tmp_path, logs, **changes)


def test_a_log_without_clicks_to_compare_is_refused(tmp_path: Path) -> None:
    collect(tmp_path / "logs", preset_name="lite", sessions=1)
    with pytest.raises(InputError, match="no re-ranking moment with both a click and a miss"):
        train(tmp_path / "run", tmp_path / "logs", agent="dnn", **QUICK)


def test_the_table_of_agents_says_what_is_missing(logs: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"seed": 0, "resume": True, "threads": 1, "hyper": {}}
    with pytest.raises(InputError, match="agent 'crban' learns from logs: give a log folder with --logs"):
        train_agent("crban", tmp_path, logs=None, **common)
    with pytest.raises(InputError, match="agent 'pointer-ppo' learns by playing and reads no logs"):
        train_agent("pointer-ppo", tmp_path, logs=logs, **common)
    with pytest.raises(InputError, match="unknown agent 'dqn'; did you mean 'dnn'"):
        train_agent("dqn", tmp_path, logs=logs, **common)
