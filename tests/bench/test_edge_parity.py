"""Sessions through phone, connection and service are those of the environment."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerec_gym.agents.baselines import Keep
from edgerec_gym.agents.device.policy import DevicePolicy
from edgerec_gym.agents.export.export import export
from edgerec_gym.bench.edge.parity import Trajectory, play_environment, play_phones
from edgerec_gym.device.session import load
from edgerec_gym.policy import Observation
from edgerec_gym.scenario import SHIPPED_FOLDER, Scenario

pytest.importorskip("uvicorn")
from edgerec_gym.service.local import local_service  # noqa: E402


class Anything:
    """Draws legal actions, the same for the same observations."""

    name = "anything"

    def reset(self, mask: np.ndarray) -> None:
        """Nothing to forget."""

    def act(self, observation: Observation) -> np.ndarray:
        mask = observation["action_mask"][0]
        told = int(1000 * observation["context"].sum() + 1e6 * observation["pool"].sum())
        return np.array([np.random.default_rng(abs(told)).choice(np.flatnonzero(mask))])


def compare(make: Any, env_id: str, track: str, scenario: str, users: str, seeds: range, folder: Path) -> int:
    """Slots played; all of them must be the same."""
    expected = play_environment(make, env_id, scenario, users, seeds)
    with local_service(scenario, folder / "service", users=users) as service:
        found = asyncio.run(play_phones(make, track, scenario, users, seeds, service.phone, folder))
    assert [a.differences(b) for a, b in zip(expected, found, strict=True)] == [0] * len(seeds)
    return sum(len(trajectory.actions) for trajectory in expected)


def test_two_hundred_sessions(tmp_path: Path) -> None:
    slots = compare(lambda _: Anything(), "EdgeFeed-v0", "joint", "lite", "synthetic", range(200), tmp_path)
    assert slots > 4000


@pytest.mark.parametrize("sync", ["periodic", "incremental"])
def test_every_way_of_telling_the_cloud(tmp_path: Path, sync: str) -> None:
    folder = tmp_path / "scenario"
    shutil.copytree(SHIPPED_FOLDER / "lite", folder, ignore=shutil.ignore_patterns("agents"))
    described = json.loads((folder / "scenario.json").read_text())
    described["config"]["cloud"] |= {"sync": sync, "sync_period": 7}
    (folder / "scenario.json").write_text(json.dumps(described))
    compare(lambda _: Anything(), "EdgeFeed-v0", "joint", str(folder), "synthetic", range(15), tmp_path)


def test_a_trained_agent_that_takes_all_decisions(tmp_path: Path) -> None:
    run = SHIPPED_FOLDER / "lite" / "agents" / "joint" / "runs" / "edgerec-0"
    export(run, tmp_path / "model", scenario=Scenario.load("lite"))
    model = load(tmp_path / "model")
    slots = compare(
        lambda env: DevicePolicy("edgerec", model, env), "EdgeFeed-v0", "joint", "lite", "synthetic",
        range(500, 506), tmp_path,
    )  # fmt: skip
    assert slots > 60


def test_learned_users_hold_the_phone(tmp_path: Path) -> None:
    compare(lambda _: Keep(), "EdgeFeedRerank-v0", "rerank", "lite", "learned", range(5), tmp_path)


def test_differences_are_found() -> None:
    one = Trajectory(["a", "b", "c"], [1, 2], [b"x", b"y"])
    assert one.differences(Trajectory(["a", "b", "c"], [1, 2], [b"x", b"y"])) == 0
    assert one.differences(Trajectory(["a", "b", "c"], [1, 3], [b"x", b"y"])) == 1
    assert one.differences(Trajectory(["a", "b", "d"], [1, 2], [b"x", b"y"])) == 1
    assert one.differences(Trajectory(["a", "b"], [1], [b"x"])) == 2
