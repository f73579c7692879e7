"""DQN (Mnih et al., 2015) for requests: in EdgeFeedRequest-v0 the cost of a request is its price.

The input is a vector: the intent signals (intent_change.py), the profile of the user and the context. Plain
DQN has no action masks: a request while a page is on its way is played as *keep* and costs a little. A run is
a folder with policy.json and policy.safetensors, and nothing pickled; an interrupted run starts over.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import VecEnvWrapper
from torch import Tensor

from edgerec_gym.adapters.sb3 import FeedVecEnv, make_vec_env
from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.tensors import private_randomness, torch_seed, torch_threads
from edgerec_gym.agents.perception.intent_change import SIGNALS, state_vector
from edgerec_gym.agents.registry import Progress
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.config import SCHEMA_VERSION, Config, FeedConfig, bounded
from edgerec_gym.errors import InputError
from edgerec_gym.files import make_folder, one_writer
from edgerec_gym.policy import Observation
from edgerec_gym.runs import (
    PARAMETERS,
    Run,
    check_seed,
    check_sizes,
    is_finished,
    model_sizes,
    read_run,
    write_record,
)
from edgerec_gym.scenario import Scenario
from edgerec_gym.spaces import context_size

AGENT = "request-dqn"


@dataclass(frozen=True)
class DQNConfig(Config):
    """Hyper-parameters of DQN."""

    learning_rate: float = bounded(1e-3, 1e-7, 1.0)
    buffer_size: int = bounded(50_000, 100, 10_000_000)  # slots
    learning_starts: int = bounded(2000, 0, 10_000_000)  # slots
    batch_size: int = bounded(256, 1, 1_000_000)  # slots in a gradient step
    target_update: int = bounded(50, 1, 1_000_000)  # gradient steps
    gamma: float = bounded(0.97, 0.0, 1.0)  # discount per slot
    exploration: float = bounded(0.5, 0.0, 1.0)  # share of the slots over which exploration falls to 5 %
    hidden: int = bounded(64, 2, 4096)


def state_size(config: FeedConfig) -> int:
    """Width of the vector that DQN reads."""
    return len(SIGNALS) + config.profile_size + context_size(config)


class StateVectors(VecEnvWrapper):
    """A vector environment whose observations are state vectors."""

    def __init__(self, feeds: FeedVecEnv) -> None:
        self.config = feeds.venv.config
        bound = np.full(state_size(self.config), np.inf, np.float32)
        super().__init__(feeds, spaces.Box(-bound, bound))

    def reset(self) -> np.ndarray:
        """Start an episode in every row."""
        return state_vector(self.venv.reset(), self.config)  # type: ignore[arg-type]

    def step_wait(self) -> Any:
        """Play one slot in every row."""
        observation, rewards, dones, infos = self.venv.step_wait()
        for row in np.flatnonzero(dones):
            final = infos[row]["terminal_observation"]
            batch = {key: values[None] for key, values in final.items()}
            infos[row]["terminal_observation"] = state_vector(batch, self.config)[0]
        return state_vector(observation, self.config), rewards, dones, infos  # type: ignore[arg-type]


@one_writer("out")
def train(
    out: str | Path,
    *,
    agent: str = AGENT,
    scenario: str | Scenario = "default",
    users: str = "learned",
    steps: int = 100_000,
    num_envs: int = 32,
    seed: int = 0,
    resume: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
    **hyper: Any,
) -> dict[str, Any]:
    """Train on the split `train` and write the run's folder.

    Args:
        out: the run's folder.
        agent: the agent's name.
        scenario: a shipped name, a folder, or a Scenario.
        users: "learned" or "synthetic".
        steps: total number of slots to play.
        num_envs: environments stepped together; one gradient step follows each joint step.
        seed: seed of everything random.
        resume: return a finished run as it is; an unfinished one starts over.
        threads: torch threads.
        progress: called with (slots played, slots in all, text), at the start and at the end.
        **hyper: fields of :class:`DQNConfig`.

    Returns:
        The content of policy.json.

    Raises:
        InputError: values out of range, or `out` holds another run.
    """
    if steps < 1 or num_envs < 1:
        raise InputError(f"steps = {steps} and num_envs = {num_envs} must be at least 1")
    check_seed(seed)
    settings = DQNConfig.from_dict(hyper)
    scenario = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    run = make_folder(out)
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "agent": agent,
        "track": "request",
        "scenario": scenario.name,
        "users": users,
        "seed": seed,
        "num_envs": num_envs,
        "hyper": settings.to_dict(),
        "sizes": model_sizes(scenario.config),
        "steps": steps,
    }
    if is_finished(run):
        earlier = read_run(run).record
        if resume and earlier == record:
            return earlier
        raise InputError(f"{run} already holds a training run with other settings: choose another folder")
    feeds = make_vec_env("request", num_envs, seed=seed * CLI_SEED_STRIDE, scenario=scenario, users=users)
    with torch_threads(threads), private_randomness():
        env = StateVectors(feeds)
        model = _model(env, settings, seed)
        if progress is not None:
            progress(0, steps, "")
        model.learn(steps)
        if progress is not None:
            progress(steps, steps, "")
    feeds.close()
    parameters.save_parameters(run / PARAMETERS, model.q_net)
    write_record(run, record)
    return record


def _model(env: StateVectors, settings: DQNConfig, seed: int) -> DQN:
    return DQN(
        "MlpPolicy",
        env,
        learning_rate=settings.learning_rate,
        buffer_size=settings.buffer_size,
        learning_starts=settings.learning_starts,
        batch_size=settings.batch_size,
        train_freq=1,
        gradient_steps=1,
        target_update_interval=settings.target_update,
        gamma=settings.gamma,
        exploration_fraction=settings.exploration,
        policy_kwargs={"net_arch": [settings.hidden, settings.hidden]},
        seed=seed,
        device="cpu",
    )


def make_network(config: FeedConfig, hidden: int, seed: int = 0) -> torch.nn.Module:
    """Make a network whose `q_net` gives the values of keeping and of a request, (B, 2)."""
    network = torch.nn.Module()
    with torch_seed(seed):
        network.q_net = torch.nn.Sequential(  # names and order as in stable-baselines3
            torch.nn.Linear(state_size(config), hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, 2),
        )
    return network


def load_network(folder: str | Path | Run, config: FeedConfig) -> torch.nn.Module:
    """Load the network of a run; InputError if files are broken or made for other sizes."""
    run = read_run(folder)
    check_sizes(run, config)
    network = make_network(config, DQNConfig.from_dict(run.record["hyper"]).hidden)
    parameters.load_parameters(run.parameters, network)
    return network


class DQNScore:
    """Score of a request: its discounted value minus that of keeping, as a run has learned them.

    Args:
        network: of :func:`load_network`.
        config: the feed to play.
        threads: torch threads.
    """

    def __init__(self, network: torch.nn.Module, config: FeedConfig, threads: int = 1) -> None:
        self.network, self.config, self.threads = network, config, threads

    def __call__(self, observation: Observation) -> np.ndarray:
        """Score (R,) float32."""
        state = torch.from_numpy(state_vector(observation, self.config))
        with torch_threads(self.threads), torch.inference_mode():
            values: Tensor = self.network.q_net(state)  # type: ignore[operator]
        return (values[:, 1] - values[:, 0]).numpy()
