"""Distilled students: runs of ordinary agents, the same for the same seed, resumed after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_teachers import SMALL_STUDENT, small_log, trained

from edgerec_gym.agents.distillation.train import distil
from edgerec_gym.agents.export.export import export
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.learning.parameters import checkpoints
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.rerank.train import load_reranker
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import play
from edgerec_gym.files import remove_folder
from edgerec_gym.logs.store import LogReader

PLAIN = {"ranking": 0.0, "embedding": 0.0, "interpolation": 0.0}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_log(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def teachers(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return trained(folder / "one", logs, epochs=1), trained(folder / "two", logs, seed=1, epochs=1)


def parameters(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "policy.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = parameters(one), parameters(other)
    return all(np.array_equal(values, second[key]) for key, values in first.items())


def student(out: Path, logs: Path, teacher: Path, **options: Any) -> Path:
    distil(out, logs, teacher, scenario="lite", **(SMALL_STUDENT | options))
    return out


@pytest.mark.parametrize("agent", ["crban", "dnn"])
def test_a_student_is_a_run_of_an_ordinary_agent(
    logs: Path, teachers: tuple[Path, Path], tmp_path: Path, agent: str
) -> None:
    run = student(tmp_path / "run", logs, teachers[0], student=agent)
    record = json.loads((run / "policy.json").read_text())
    assert record["agent"] == agent and record["distillation"]["teacher"] == "deepfm"
    assert len(record["ndcg"]) == 2
    load_reranker(run, LogReader(logs).config)
    policy = find_policy(str(run), "EdgeFeedRerank-v0", "lite", "synthetic", 0)
    played = play(policy, env_id="EdgeFeedRerank-v0", scenario="lite", users="synthetic", sessions=4, seed=0)
    assert np.isfinite(played["value"]).all()
    if agent == "crban":
        assert export(run, tmp_path / "device", scenario="lite")["agent"] == "crban"


def test_the_same_seed_gives_the_same_student_also_after_a_kill(
    logs: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    one, other = (student(tmp_path / name, logs, teachers[0]) for name in ("one", "other"))
    assert same(one, other)
    for left in ("policy.json", "policy.safetensors"):
        (other / left).unlink()
    load_reranker(other, LogReader(logs).config)  # its last checkpoint plays
    remove_folder(checkpoints(other)[-1])
    student(other, logs, teachers[0], resume=True)
    assert same(one, other)
    assert not same(one, student(tmp_path / "seed", logs, teachers[0], seed=1))


def test_without_any_term_the_teacher_does_not_matter(
    logs: Path, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    runs = [student(tmp_path / t.name, logs, t, distillation=PLAIN) for t in teachers]
    assert same(*runs)


@pytest.mark.parametrize("term", ["ranking", "embedding", "interpolation", "by_confidence"])
def test_every_term_changes_what_is_learned(
    logs: Path, teachers: tuple[Path, Path], tmp_path: Path, term: str
) -> None:
    full = student(tmp_path / "full", logs, teachers[0], epochs=1)
    without = student(tmp_path / "without", logs, teachers[0], epochs=1, distillation={term: 0})
    assert not same(full, without)


def test_bad_input_is_refused(logs: Path, teachers: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allowed: crban, dnn"):
        student(tmp_path / "a", logs, teachers[0], student="prm")
    with pytest.raises(InputError, match="interpolation"):
        student(tmp_path / "b", logs, teachers[0], distillation={"interpolation": 2.0})
    with pytest.raises(InputError, match="other sizes than the scenario"):
        distil(tmp_path / "c", logs, teachers[0], scenario="default")
    ordinary = tmp_path / "dnn"
    train_agent("dnn", ordinary, logs=logs, hyper={"epochs": 1, "hidden": 4})
    with pytest.raises(InputError, match="no teacher"):
        student(tmp_path / "d", logs, ordinary)
    run = student(tmp_path / "e", logs, teachers[0], epochs=1)
    with pytest.raises(InputError, match="cannot resume"):
        student(run, logs, teachers[1], epochs=1, resume=True)
