"""A package written outside the checkout adds a re-ranker and a track, through entry points alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from edgerec_gym.logs.collect import collect

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "my-feed"
version = "1.0"

[project.entry-points."edgerec_gym.agents"]
mine = "my_feed:AGENT"
broken = "my_feed:NO_SUCH_THING"

[project.entry-points."edgerec_gym.tracks"]
mine = "my_feed:TRACK"

[tool.setuptools]
py-modules = ["my_feed"]
"""
MODULE = '''
from dataclasses import dataclass

import torch
from torch import nn

from edgerec_gym.agents.registry import reranker
from edgerec_gym.agents.rerank.losses import log_loss
from edgerec_gym.agents.rerank.reranker import ListInputs, ListScorer
from edgerec_gym.bench.setting import make_policy
from edgerec_gym.bench.track import Track
from edgerec_gym.evaluation.cache import Entry, row


class Mine(ListScorer):
    """One linear layer over what every candidate is."""

    objective = staticmethod(log_loss)

    def __init__(self, config, settings):
        super().__init__(config, settings)
        self.inputs = ListInputs(config)
        self.head = nn.Linear(self.inputs.size, 1)

    def logits(self, observation, rows):
        return self.head(self.inputs(observation, rows))[..., 0]


AGENT = reranker("mine", Mine, "one linear layer")


@dataclass(frozen=True)
class Sizes:
    sessions: int = 20


def policies():
    return ("keep", "greedy", "oracle")


def entries(setting, names):
    return [Entry(name, make_policy, {"name": name}) for name in names]


def train(setting, names, workers, progress):
    """Nothing is trained."""


def rows(setting, workers, progress):
    interval = {"mean": 1.0, "low": 0.0, "high": 2.0}
    return [row("greedy", "value", interval, setting.seeds, setting.sizes.sessions)]


def tables(rows):
    return {"mine": (["policy"], [[item["policy"]] for item in rows])}


TRACK = Track(
    name="mine", env_id="EdgeFeedRerank-v0", title="My own track", summary="Two baselines.",
    sizes={"lite": Sizes()}, quick=Sizes(10), policies=policies, entries=entries, train=train, rows=rows,
    tables=tables,
)
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with one that is built here."""
    source, site = tmp_path_factory.mktemp("my-feed"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "my_feed.py").write_text(MODULE)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    done = subprocess.run([*command, "--target", site, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site


def edgerec(installed: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}
    command = [sys.executable, "-m", "edgerec_gym.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_reranker_of_ones_own_is_trained_and_plays(installed: Path, tmp_path: Path) -> None:
    collect(tmp_path / "logs", preset_name="lite", sessions=150)
    arguments = ("--agent", "mine", "--logs", "logs", "--set", "epochs=1", "--out", "run")
    trained = edgerec(installed, tmp_path, "train", *arguments)
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "run" / "policy.json").read_text())["agent"] == "mine"
    options = ("--id", "EdgeFeedRerank-v0", "--scenario", "lite", "--sessions", 10, "--json")
    played = edgerec(installed, tmp_path, "evaluate", "run", *options)
    assert played.returncode == 0, played.stderr
    assert {"mine", "keep"} <= {row["policy"] for row in json.loads(played.stdout)}

    unknown = edgerec(installed, tmp_path, "train", "--agent", "min", "--out", "other")
    assert unknown.returncode == 2 and "unknown agent 'min'; did you mean 'mine'?" in unknown.stderr
    broken = edgerec(installed, tmp_path, "train", "--agent", "broken", "--out", "other")
    assert broken.returncode == 2 and broken.stderr.count("\n") == 1
    assert "agent 'broken' cannot be imported" in broken.stderr


def test_a_track_of_ones_own_is_played(installed: Path, tmp_path: Path) -> None:
    options = ("--track", "mine", "--quick", "--sessions", 10, "--shift", "none", "--workers", 1, "--json")
    whole = edgerec(installed, tmp_path, "bench", *options)
    assert whole.returncode == 0, whole.stderr
    found = json.loads(whole.stdout)["rows"]
    assert {row["policy"] for row in found if row["metric"] == "value"} == {"keep", "greedy", "oracle"}
    alone = edgerec(installed, tmp_path, "bench", "mine", "--quick", "--json")
    assert alone.returncode == 0, alone.stderr
    assert json.loads(alone.stdout)["about"]["track"] == "mine"
    report = edgerec(installed, tmp_path, "report", "benchmarks/results", "--json")
    assert report.returncode == 0 and "My own track: lite, quick" in json.loads(report.stdout)["sections"]
