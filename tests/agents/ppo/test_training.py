from __future__ import annotations

import dataclasses
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgerec_gym.agents.ppo.train import train
from edgerec_gym.agents.ppo.trained_policy import AGENTS, PPOConfig, load_policy
from edgerec_gym.config import RewardConfig
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Policy
from edgerec_gym.registration import track_of
from edgerec_gym.runs import checkpoints, read_run
from edgerec_gym.scenario import Scenario
from edgerec_gym.vector_env import EdgeFeedVectorEnv

UPDATE = 8 * 8  # slots of an update in these tests
SMALL: dict[str, Any] = {"num_envs": 8, "n_steps": 8, "batch_size": 32, "n_epochs": 1, "tensorboard": False}


def quick(lite: Scenario, out: Path, env_id: str = "EdgeFeed-v0", **changes: Any) -> dict[str, Any]:
    arguments = {"scenario": lite, "users": "synthetic", "steps": 4 * UPDATE, **SMALL, **changes}
    return train(out, env_id=env_id, **arguments)


def make_env(lite: Scenario, env_id: str = "EdgeFeed-v0", **config: Any) -> EdgeFeedVectorEnv:
    return EdgeFeedVectorEnv(16, track=track_of(env_id), scenario=lite, users="synthetic", **config)


def test_histories_can_be_read_without_recurrence(lite: Scenario, tmp_path: Path) -> None:
    quick(lite, tmp_path, "EdgeFeedRerank-v0", recurrent=0)
    names = load_file(tmp_path / "policy.safetensors").keys()
    assert not any("gru" in name or "weight_hh" in name for name in names)
    env = make_env(lite, "EdgeFeedRerank-v0")
    observation, _ = env.reset(seed=0)
    actions = load_policy(tmp_path, env).act(observation)
    assert observation["action_mask"][np.arange(16), actions].all()


@pytest.mark.parametrize("agent", AGENTS)
def test_trains_and_loads(lite: Scenario, tmp_path: Path, slot_id: str, agent: str) -> None:
    record = quick(lite, tmp_path, slot_id, agent=agent, seed=2)
    assert json.loads((tmp_path / "policy.json").read_text()) == record
    assert (record["id"], record["steps"], record["seed"]) == (slot_id, 4 * UPDATE, 2)
    env = make_env(lite, slot_id)
    loaded = load_policy(tmp_path, env)
    assert isinstance(loaded, Policy)
    observation, _ = env.reset(seed=0)
    loaded.reset(np.ones(16, np.bool_))
    for _ in range(20):
        actions = loaded.act(observation)
        assert actions.dtype == np.int64
        assert observation["action_mask"][np.arange(16), actions].all()
        observation, *_ = env.step(actions)
    assert np.array_equal(loaded.act(observation), load_policy(tmp_path, env).act(observation))


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "recurrent"), [("EdgeFeed-v0", 1), ("EdgeFeedRequest-v0", 0)])
def test_learns_what_pays(lite: Scenario, tmp_path: Path, env_id: str, recurrent: int) -> None:
    """Where only requests pay, the trained policy asks whenever it may."""
    pays = RewardConfig(click=0, purchase=0, request=1, invalid=0)
    scenario = dataclasses.replace(lite, config=lite.config.replace(reward=pays))
    hyper = {"learning_rate": 1e-2, "gamma": 0.5, "hidden": 16, "recurrent": recurrent}
    rollout = {"num_envs": 16, "n_steps": 16, "batch_size": 128, "n_epochs": 4}
    quick(scenario, tmp_path, env_id, steps=2048, **hyper, **rollout)
    env = make_env(lite, env_id)
    policy = load_policy(tmp_path, env)
    observation, _ = env.reset(seed=0)
    asked, could = 0, 0
    for _ in range(20):
        actions = policy.act(observation)
        could += int(observation["action_mask"][:, -1].sum())
        asked += int((actions == observation["action_mask"].shape[1] - 1).sum())
        observation, *_ = env.step(actions)
    assert asked > 0.95 * could > 50


def test_same_seed_same_policy(lite: Scenario, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        quick(lite, tmp_path / name, seed=seed)
    a, b, c = (load_file(tmp_path / name / "policy.safetensors") for name in "abc")
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert any(not np.array_equal(a[key], c[key]) for key in a)


def test_leaves_global_generators_and_threads_alone(lite: Scenario, tmp_path: Path) -> None:
    random.seed(4)
    np.random.seed(4)
    torch.manual_seed(4)
    expected = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(4)
    np.random.seed(4)
    torch.manual_seed(4)
    threads = torch.get_num_threads()
    quick(lite, tmp_path, steps=UPDATE, threads=threads + 1)
    load_policy(tmp_path, make_env(lite))
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
    assert torch.get_num_threads() == threads


def test_resumes_from_the_last_complete_checkpoint(lite: Scenario, tmp_path: Path) -> None:
    quick(lite, tmp_path, checkpoint_every=UPDATE)
    kept = checkpoints(tmp_path)
    assert [path.name for path in kept] == [f"step-{n * UPDATE:012d}" for n in (3, 4)]
    before = load_file(kept[-1] / "optimizer.safetensors")
    # A killed writer's leftovers: no final model, and a half-written checkpoint.
    (tmp_path / "policy.json").unlink()
    half = tmp_path / "checkpoints" / f".step-000000000999.{platform.node()}.{2**30}.tmp"
    half.mkdir()
    (half / "policy.safetensors").write_bytes(b"half")
    assert load_policy(tmp_path, make_env(lite)).name == "pointer-ppo"
    record = quick(lite, tmp_path, steps=6 * UPDATE, checkpoint_every=UPDATE, resume=True)
    assert record["steps"] == 6 * UPDATE
    assert record["updates"] == 6
    assert not half.exists()
    after = load_file(checkpoints(tmp_path)[-1] / "optimizer.safetensors")
    assert after["0.step"] == before["0.step"] * 6 / 4, "the optimizer went on, it did not start over"


def test_resuming_a_finished_run_changes_nothing(lite: Scenario, tmp_path: Path) -> None:
    quick(lite, tmp_path)
    before = (tmp_path / "policy.safetensors").read_bytes()
    assert quick(lite, tmp_path, resume=True)["steps"] == 4 * UPDATE
    assert (tmp_path / "policy.safetensors").read_bytes() == before


def test_kill_leaves_a_run_that_loads_and_resumes(lite: Scenario, tmp_path: Path) -> None:
    code = f"""
from edgerec_gym.agents.ppo.train import train
train({str(tmp_path)!r}, env_id="EdgeFeed-v0", scenario="lite", users="synthetic", steps=10**9,
      checkpoint_every=1, **{SMALL!r})
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while len(checkpoints(tmp_path)) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, "training ended by itself"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = read_run(tmp_path).record["steps"]
    assert reached > 0
    load_policy(tmp_path, make_env(lite))
    assert quick(lite, tmp_path, steps=reached + UPDATE, resume=True)["steps"] == reached + UPDATE


def test_learning_rate_falls_linearly() -> None:
    settings = PPOConfig(learning_rate=3e-3, final_learning_rate=1e-3)
    assert [settings.schedule(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([3e-3, 2e-3, 1e-3])


def test_tensorboard_files(lite: Scenario, tmp_path: Path) -> None:
    quick(lite, tmp_path, tensorboard=True)
    assert list((tmp_path / "tensorboard").glob("*/events.out.tfevents.*"))


def test_refuses_another_environment(lite: Scenario, tmp_path: Path) -> None:
    quick(lite, tmp_path, "EdgeFeedRerank-v0")
    with pytest.raises(InputError, match="trained for the track 'rerank'; this environment is 'joint'"):
        load_policy(tmp_path, make_env(lite))
    with pytest.raises(InputError, match=r"pool \[20, 20\]; this environment has \[24, 20\]"):
        load_policy(tmp_path, make_env(lite, "EdgeFeedRerank-v0", pool_size=24))


def test_refuses_what_does_not_belong_together(lite: Scenario, tmp_path: Path) -> None:
    quick(lite, tmp_path)
    with pytest.raises(InputError, match="already holds a training run"):
        quick(lite, tmp_path)
    with pytest.raises(InputError, match="cannot resume .*: seed was 0, now it is 1"):
        quick(lite, tmp_path, resume=True, seed=1)
    with pytest.raises(InputError, match="cannot resume .*: hyper was"):
        quick(lite, tmp_path, resume=True, gamma=0.5)


def test_runs_of_earlier_versions_are_refused(lite: Scenario, tmp_path: Path) -> None:
    record = quick(lite, tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps(record | {"agent": "maskable-ppo"}))
    with pytest.raises(InputError, match="holds the agent 'maskable-ppo', of another version; train pointer"):
        load_policy(tmp_path, make_env(lite))


def test_broken_files_are_named(lite: Scenario, tmp_path: Path) -> None:
    env = make_env(lite)
    with pytest.raises(InputError, match="holds no trained policy"):
        load_policy(tmp_path, env)
    quick(lite, tmp_path)
    parameters = tmp_path / "policy.safetensors"
    whole = parameters.read_bytes()
    parameters.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="policy.safetensors is not a readable"):
        load_policy(tmp_path, env)
    parameters.unlink()
    with pytest.raises(InputError, match="policy.safetensors does not exist"):
        load_policy(tmp_path, env)
    (tmp_path / "policy.json").write_text("{")
    with pytest.raises(InputError, match="policy.json is not valid JSON"):
        load_policy(tmp_path, env)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": "a2c"}, "unknown agent 'a2c'; allowed: pointer-ppo, flat-ppo"),
        ({"gama": 0.9}, "no field 'gama'; did you mean 'gamma'"),
        ({"gamma": 1.5}, "gamma = 1.5 is out of range"),
        ({"steps": 0}, "steps = 0 must be at least 1"),
        ({"seed": -1}, "seed = -1 is out of range"),
        ({"threads": 0}, "threads = 0"),
    ],
)
def test_bad_arguments(lite: Scenario, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quick(lite, tmp_path, **changes)


def test_no_pickle_in_a_run(lite: Scenario, tmp_path: Path) -> None:
    quick(lite, tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
