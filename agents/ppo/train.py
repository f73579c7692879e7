"""Train a policy on the feed with MaskablePPO.

A run is a folder:

| file | content |
| --- | --- |
| policy.json | agent, id, scenario, sizes, hyper-parameters, steps, seed, versions |
| policy.safetensors | the parameters |
| checkpoints/step-000000020480/ | the same two files, and optimizer.safetensors |
| tensorboard/ | event files |

Nothing is pickled: stable-baselines3's own zip files hold cloudpickled objects, so they are not used. A
killed run resumes from its last complete checkpoint, with new episodes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym import __version__
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.config import SCHEMA_VERSION
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.files import make_folder, one_writer
from edgerec_gym.registration import IDS, track_of
from edgerec_gym.runs import PARAMETERS, check_seed, find_start, read_run, write_record
from edgerec_gym.scenario import Scenario

try:
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.callbacks import BaseCallback
except ImportError:
    raise MissingExtraError("training", "train") from None

from edgerec_gym.adapters.sb3 import make_vec_env
from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.tensors import private_randomness, torch_threads
from edgerec_gym.agents.ppo.trained_policy import (
    AGENTS,
    POINTER,
    PPOConfig,
    policy_class,
    policy_kwargs,
    sizes_of,
)
from edgerec_gym.agents.registry import Progress

FIXED = (  # must not change in a resumed run
    "agent", "id", "scenario", "users", "members", "seed", "num_envs", "hyper", "sizes",
)  # fmt: skip


@one_writer("out")
def train(
    out: str | Path,
    *,
    env_id: str,
    agent: str = POINTER,
    scenario: Any = "default",
    users: str = "learned",
    members: Sequence[int] | None = None,
    steps: int = 50_000,
    num_envs: int = 128,
    seed: int = 0,
    checkpoint_every: int = 20_000,
    keep_checkpoints: int = parameters.KEEP_LAST,
    resume: bool = False,
    tensorboard: bool = True,
    progress: Progress | None = None,
    threads: int = 1,
    **hyper: Any,
) -> dict[str, Any]:
    """Train on the split `train` and write the run's folder.

    Without interruption, the same arguments give the same policy (on the same machine and library versions).
    The caller's global random generators and torch threads are restored.

    Args:
        out: the run's folder.
        env_id: "EdgeFeed-v0", "EdgeFeedRerank-v0", ... or a track.
        agent: "pointer-ppo" (PointerPolicy) or "flat-ppo" (MultiInputPolicy of stable-baselines3, a plain
            network over the whole observation).
        scenario: a shipped name, a folder, or a Scenario.
        users: "learned" or "synthetic".
        members: members of the ensemble of learned users that episodes draw from; None uses all.
        steps: total slots to play; completing the last update may add up to n_steps x num_envs - 1.
        num_envs: number of environments stepped together.
        seed: seed of all randomness; row i plays the episodes of seed x 2^20 + i.
        checkpoint_every: slots between checkpoints, rounded up to whole updates.
        keep_checkpoints: number of checkpoints to keep, at least 1.
        resume: continue from the last complete checkpoint in `out`, if any.
        tensorboard: whether to write event files.
        progress: called with (slots played, total, text).
        threads: number of torch threads.
        **hyper: fields of PPOConfig.

    Returns:
        The content of policy.json.

    Raises:
        InputError: if a name is unknown, a value is out of range, or `out` is not writable or holds another
            run.
    """
    track = track_of(env_id)
    if agent not in AGENTS:
        raise InputError(f"unknown agent {agent!r}; allowed: {', '.join(AGENTS)}")
    for name, value in (
        ("steps", steps),
        ("num_envs", num_envs),
        ("checkpoint_every", checkpoint_every),
        ("keep_checkpoints", keep_checkpoints),
    ):
        if value < 1:
            raise InputError(f"{name} = {value} must be at least 1")
    check_seed(seed)
    settings = PPOConfig.from_dict(hyper)
    scenario = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    run = make_folder(out)
    reward = scenario.config.reward.replace(uncertainty=-settings.uncertainty_penalty)
    env = make_vec_env(
        track,
        num_envs,
        seed=None,
        scenario=scenario,
        users=users,
        members=members,
        split="train",
        reward=reward,
    )
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "agent": agent,
        "id": next(name for name, its_track in IDS.items() if its_track == track),
        "track": track,
        "scenario": {"name": scenario.name, "sha256": digest(scenario)},
        "users": users,
        "members": None if members is None else list(members),
        "seed": seed,
        "num_envs": num_envs,
        "hyper": settings.to_dict(),
        "sizes": sizes_of(env),
        "steps": 0,
        "updates": 0,
        "versions": _versions(),
    }
    start = find_start(run, record, resume, FIXED)
    with torch_threads(threads), private_randomness():
        model = _build(env, agent, settings, seed, run / "tensorboard" if tensorboard else None)
        if start is not None:
            parameters.restore_checkpoint(start, model.policy, model.policy.optimizer)
            earlier = read_run(start).record
            record |= {key: earlier[key] for key in ("steps", "updates")}
            model.num_timesteps, model._n_updates = record["steps"], record["updates"]
            model.set_random_seed(seed + record["steps"])
        # Rows must not replay the episodes that an interrupted run has already learned from.
        fresh = record["steps"] // settings.n_steps
        env.seed(seed * CLI_SEED_STRIDE + fresh % (CLI_SEED_STRIDE - num_envs))
        if record["steps"] < steps:
            callback = _Callback(run, record, checkpoint_every, keep_checkpoints, steps, progress)
            model.learn(steps - record["steps"], callback, reset_num_timesteps=False, tb_log_name="ppo")
            callback.tell(steps)
        record = _now(record, model)
        # Allows a finished run to be extended.
        parameters.save_checkpoint(run, model.policy, record, model.policy.optimizer, keep=keep_checkpoints)
        parameters.save_parameters(run / PARAMETERS, model.policy)
        write_record(run, record)
    env.close()
    return record


def digest(scenario: Scenario) -> str:
    """Return the SHA-256 of the scenario's content (scenario.json holds hashes of the simulator's files)."""
    users = scenario.synthetic and scenario.synthetic.to_dict()
    digest = hashlib.sha256(json.dumps([scenario.config.to_dict(), users]).encode())
    if scenario.path is not None:
        digest.update((scenario.path / "scenario.json").read_bytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    names = ("torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy")
    return {"edgerec_gym": __version__} | {name: version(name) for name in names}


def _build(env: Any, agent: str, settings: PPOConfig, seed: int, log: Path | None) -> MaskablePPO:
    return MaskablePPO(
        policy_class(agent),
        env,
        learning_rate=settings.schedule,
        n_steps=settings.n_steps,
        batch_size=settings.batch_size,
        n_epochs=settings.n_epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip_range,
        ent_coef=settings.ent_coef,
        vf_coef=settings.vf_coef,
        max_grad_norm=settings.max_grad_norm,
        tensorboard_log=None if log is None else str(log),
        policy_kwargs=policy_kwargs(agent, env.venv.track, settings),
        seed=seed,
        device="cpu",  # networks this small gain nothing from a GPU
    )


def _now(record: dict[str, Any], model: Any) -> dict[str, Any]:
    return record | {"steps": int(model.num_timesteps), "updates": int(model._n_updates)}


class _Callback(BaseCallback):
    """Write checkpoints between updates, and report progress."""

    def __init__(
        self,
        run: Path,
        record: dict[str, Any],
        every: int,
        keep: int,
        total: int,
        progress: Progress | None,
    ) -> None:
        super().__init__()
        self.run, self.record, self.every, self.keep = run, record, every, keep
        self.total, self.progress = total, progress
        self.saved = record["steps"]

    def _on_rollout_start(self) -> None:
        # The last update is complete here, so parameters, optimizer and step count are consistent.
        steps = self.model.num_timesteps
        if steps - self.saved >= self.every:
            policy, record = self.model.policy, _now(self.record, self.model)
            parameters.save_checkpoint(self.run, policy, record, policy.optimizer, keep=self.keep)
            self.saved = steps
        self.tell(steps)

    def tell(self, steps: int) -> None:
        """Report the slots played and the mean reward of recent episodes."""
        if self.progress is not None:
            episodes = self.model.ep_info_buffer
            status = f"reward {np.mean([e['r'] for e in episodes]):.2f}" if episodes else ""
            self.progress(min(steps, self.total), self.total, status)

    def _on_step(self) -> bool:
        return True
