"""Train a policy on the feed with MaskablePPO, and load it back to play.

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
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgerec_gym import __version__
from edgerec_gym.agents.base import Explanation, Observation, check_observation
from edgerec_gym.atomic import make_folder, write_json
from edgerec_gym.config import SCHEMA_VERSION, Config, bounded
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.random_stream import CLI_SEED_STRIDE
from edgerec_gym.registration import IDS, track_of
from edgerec_gym.scenario import Scenario

try:
    import torch
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
    from stable_baselines3.common.callbacks import BaseCallback
except ImportError:
    raise MissingExtraError("training", "train") from None

from edgerec_gym.agents import checkpoint
from edgerec_gym.agents.pointer_policy import PointerPolicy
from edgerec_gym.agents.reranker import torch_threads
from edgerec_gym.sb3 import make_vec_env

POINTER, FLAT = AGENTS = ("pointer-ppo", "flat-ppo")
FIXED = (  # in a resumed run
    "agent", "id", "scenario", "users", "members", "seed", "num_envs", "hyper", "sizes",
)  # fmt: skip


@dataclass(frozen=True)
class PPOConfig(Config):
    """Hyper-parameters of MaskablePPO and of the policy network."""

    learning_rate: float = bounded(3e-3, 1e-7, 1.0)
    final_learning_rate: float = bounded(3e-4, 0.0, 1.0)  # reached linearly at the last step
    n_steps: int = bounded(32, 2, 100_000)  # slots per environment and update
    batch_size: int = bounded(512, 2, 1_000_000)  # slots per gradient step
    n_epochs: int = bounded(2, 1, 100)  # passes over each update's slots
    gamma: float = bounded(0.95, 0.0, 1.0)  # discount per slot
    gae_lambda: float = bounded(0.95, 0.0, 1.0)
    clip_range: float = bounded(0.2, 0.01, 1.0)
    ent_coef: float = bounded(0.01, 0.0, 10.0)
    vf_coef: float = bounded(0.5, 0.0, 10.0)
    max_grad_norm: float = bounded(0.5, 1e-3, 1e3)
    uncertainty_penalty: float = bounded(0.0, 0.0, 1e3)  # per unit of the ensemble's disagreement (MOPO)
    hidden: int = bounded(32, 2, 4096)  # width of the hidden layers
    heads: int = bounded(2, 1, 64)  # interest vectors per history (pointer-ppo)

    def schedule(self, progress_remaining: float) -> float:
        """Learning rate while 1..0 of the training remains."""
        return self.final_learning_rate + progress_remaining * (self.learning_rate - self.final_learning_rate)


def train(
    env_id: str,
    out: str | Path,
    *,
    agent: str = POINTER,
    scenario: Any = "default",
    users: str = "learned",
    members: Sequence[int] | None = None,
    steps: int = 50_000,
    num_envs: int = 128,
    seed: int = 0,
    checkpoint_every: int = 20_000,
    keep_checkpoints: int = checkpoint.KEEP_LAST,
    resume: bool = False,
    tensorboard: bool = True,
    progress: bool = False,
    threads: int = 1,
    **hyper: Any,
) -> dict[str, Any]:
    """Train on the split `train` and write the run's folder.

    The same arguments give the same policy (on one machine and library versions) unless interrupted. The
    caller's global random generators and torch threads are left as they were.

    Args:
        env_id: "EdgeFeed-v0", "EdgeFeedRerank-v0", ... or a track.
        out: the run's folder.
        agent: MaskablePPO with a network, "pointer-ppo" (PointerPolicy) or "flat-ppo" (MultiInputPolicy of
            stable-baselines3, a plain network over everything).
        scenario: a shipped name, a folder, or a Scenario.
        users: "learned" or "synthetic".
        members: networks of the ensemble of learned users that episodes draw from; None for all.
        steps: slots to play in all; the last update is finished, so up to n_steps x num_envs - 1 more.
        num_envs: environments stepped together.
        seed: of everything; row i plays the episodes of seed x 2^20 + i.
        checkpoint_every: slots from one checkpoint to the next, rounded up to whole updates.
        keep_checkpoints: how many of them stay, at least 1.
        resume: go on from the last complete checkpoint in `out`, if there is one.
        tensorboard: write event files.
        progress: show a progress bar on stderr.
        threads: torch threads.
        **hyper: fields of PPOConfig.

    Returns:
        The content of policy.json.

    Raises:
        InputError: unknown names, values out of range, `out` not writable or in use by another run.
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
    checkpoint.check_seed(seed)
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
        "sizes": _sizes(env),
        "steps": 0,
        "updates": 0,
        "versions": _versions(),
    }
    start = checkpoint.find_start(run, record, resume, FIXED)
    with torch_threads(threads), private_randomness(), Progress(
        TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(), console=Console(stderr=True), disable=not progress,
    ) as bar:  # fmt: skip
        model = _build(env, agent, settings, seed, run / "tensorboard" if tensorboard else None)
        if start is not None:
            checkpoint.restore_checkpoint(start, model.policy, model.policy.optimizer)
            _, earlier = checkpoint.read_run(start)
            record |= {key: earlier[key] for key in ("steps", "updates")}
            model.num_timesteps, model._n_updates = record["steps"], record["updates"]
            model.set_random_seed(seed + record["steps"])
        # Rows must not replay the episodes that an interrupted run has already learned from.
        fresh = record["steps"] // settings.n_steps
        env.seed(seed * CLI_SEED_STRIDE + fresh % (CLI_SEED_STRIDE - num_envs))
        if record["steps"] < steps:
            task = bar.add_task("", total=steps, status="")
            callback = _Callback(run, record, checkpoint_every, keep_checkpoints, bar, task)
            model.learn(steps - record["steps"], callback, reset_num_timesteps=False, tb_log_name="ppo")
            bar.update(task, completed=steps)
        record = _now(record, model)
        # So that a finished run can be extended.
        checkpoint.save_checkpoint(run, model.policy, record, model.policy.optimizer, keep=keep_checkpoints)
        checkpoint.save_parameters(run / checkpoint.PARAMETERS, model.policy)
        write_json(run / checkpoint.RECORD, record)
    env.close()
    return record


def digest(scenario: Scenario) -> str:
    """SHA-256 of what the scenario is made of (scenario.json holds the hashes of the simulator's files)."""
    users = scenario.synthetic and scenario.synthetic.to_dict()
    digest = hashlib.sha256(json.dumps([scenario.config.to_dict(), users]).encode())
    if scenario.path is not None:
        digest.update((scenario.path / "scenario.json").read_bytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    names = ("torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy")
    return {"edgerec_gym": __version__} | {name: version(name) for name in names}


def _feed(env: Any) -> Any:
    """The package's environment under a wrapper or a stable-baselines3 VecEnv."""
    return getattr(env, "venv", getattr(env, "unwrapped", env))


def _spaces(env: Any) -> tuple[spaces.Dict, spaces.Discrete]:
    """Observation and action space of one environment of a single or vector one."""
    if isinstance(env, VectorEnv):
        return env.single_observation_space, env.single_action_space  # type: ignore[return-value]
    return env.observation_space, env.action_space


def _sizes(env: Any) -> dict[str, Any]:
    observations, actions = _spaces(_feed(env))
    shapes = {key: list(space.shape or ()) for key, space in observations.items() if key != "action_mask"}
    return shapes | {"actions": int(actions.n)}


def _policy_kwargs(agent: str, track: str, settings: PPOConfig) -> dict[str, Any]:
    if agent == POINTER:
        return {"track": track, "hidden": settings.hidden, "heads": settings.heads}
    return {"net_arch": [settings.hidden, settings.hidden]}


def _policy_class(agent: str) -> type[Any]:
    return PointerPolicy if agent == POINTER else MaskableMultiInputActorCriticPolicy


def _build(env: Any, agent: str, settings: PPOConfig, seed: int, log: Path | None) -> MaskablePPO:
    return MaskablePPO(
        _policy_class(agent),
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
        policy_kwargs=_policy_kwargs(agent, env.venv.track, settings),
        seed=seed,
        device="cpu",  # networks this small gain nothing elsewhere
    )


def _now(record: dict[str, Any], model: Any) -> dict[str, Any]:
    return record | {"steps": int(model.num_timesteps), "updates": int(model._n_updates)}


@contextmanager
def private_randomness() -> Iterator[None]:
    """Put back the global generators, which stable-baselines3 seeds and uses."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class _Callback(BaseCallback):
    """Write checkpoints between updates, move the progress bar."""

    def __init__(
        self, run: Path, record: dict[str, Any], every: int, keep: int, bar: Progress, task: Any
    ) -> None:
        super().__init__()
        self.run, self.record, self.every, self.keep = run, record, every, keep
        self.bar, self.task = bar, task
        self.saved = record["steps"]

    def _on_rollout_start(self) -> None:
        # Here the last update is complete: parameters, optimizer and step count belong together.
        steps = self.model.num_timesteps
        if steps - self.saved >= self.every:
            policy, record = self.model.policy, _now(self.record, self.model)
            checkpoint.save_checkpoint(self.run, policy, record, policy.optimizer, keep=self.keep)
            self.saved = steps
        episodes = self.model.ep_info_buffer
        status = f"reward {np.mean([e['r'] for e in episodes]):.2f}" if episodes else ""
        self.bar.update(self.task, completed=steps, status=status)

    def _on_step(self) -> bool:
        return True


class TrainedPolicy:
    """A trained network as a Policy: the most probable legal action, batched."""

    stateless = True

    def __init__(self, name: str, network: Any, threads: int = 1) -> None:
        self.name, self.network, self.threads = name, network, threads
        self._seen: Observation = {}

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: the network has no state."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64, legal under the mask; InputError if the observation is not finite."""
        check_observation(observation)
        self._seen = observation
        with torch_threads(self.threads):
            actions, _ = self.network.predict(
                observation, deterministic=True, action_masks=observation["action_mask"]
            )
        return np.asarray(actions, np.int64)

    def log_probabilities(self, observation: Observation) -> np.ndarray:
        """Return (B, A) float32 of all actions; InputError if the observation is not finite."""
        check_observation(observation)
        with torch_threads(self.threads), torch.inference_mode():
            tensors, _ = self.network.obs_to_tensor(observation)
            drawn = self.network.get_distribution(tensors, action_masks=observation["action_mask"])
            return drawn.distribution.logits.numpy()

    def explain(self, row: int) -> Explanation | None:
        """Tell the logarithms of the probabilities of the pool rows, where they are actions of the track.

        Computed when asked for, so ask before the observation of the last call changes.
        """
        seen = {key: values[row : row + 1] for key, values in self._seen.items()}
        n_pool = seen["pool"].shape[1]
        if seen["action_mask"].shape[1] < n_pool:
            return None
        with torch_threads(self.threads), torch.inference_mode():
            tensors, _ = self.network.obs_to_tensor(seen)
            spread = self.network.get_distribution(tensors, action_masks=seen["action_mask"])
        return Explanation(scores=spread.distribution.logits[0, :n_pool].numpy())


def load_policy(folder: str | Path, env: Any, *, threads: int = 1) -> TrainedPolicy:
    """Load what :func:`train` wrote.

    Args:
        folder: the run's folder (finished, or with a complete checkpoint), or one checkpoint.
        env: the environment that it will play: any of the package's environments.
        threads: torch threads while it acts.

    Raises:
        InputError: nothing there, broken files, or a policy of another id or of other sizes.
    """
    folder, record = checkpoint.read_run(folder)
    agent, feed = record["agent"], _feed(env)
    if agent not in AGENTS:
        raise InputError(f"{folder} holds the agent {agent!r}, of another version; train {AGENTS[0]} anew")
    if record["track"] != feed.track:
        raise InputError(
            f"{folder} was trained for the track {record['track']!r}; this environment is {feed.track!r}"
        )
    for key, size in _sizes(feed).items():
        if record["sizes"].get(key) != size:
            raise InputError(
                f"{folder} was trained with {key} {record['sizes'].get(key)}; this environment has {size}"
            )
    settings = PPOConfig.from_dict(record["hyper"])
    with private_randomness():
        network = _policy_class(agent)(
            *_spaces(feed), settings.schedule, **_policy_kwargs(agent, feed.track, settings)
        )
    checkpoint.load_parameters(folder / checkpoint.PARAMETERS, network)
    network.set_training_mode(False)
    return TrainedPolicy(agent, network, threads)
