"""Policies trained by MaskablePPO: hyper-parameters, network sizes, and loading a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from edgerec_gym.agents.learning.tensors import private_randomness
from edgerec_gym.config import Config, bounded
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.policy import Explanation, Observation, check_observation
from edgerec_gym.runs import Run, check_sizes, read_run

try:
    import torch
    from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
except ImportError:
    raise MissingExtraError("training", "train") from None

from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.tensors import torch_threads
from edgerec_gym.agents.ppo.pointer_policy import PointerPolicy

POINTER, FLAT = AGENTS = ("pointer-ppo", "flat-ppo")


@dataclass(frozen=True)
class PPOConfig(Config):
    """Hyper-parameters of MaskablePPO and the policy network."""

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
    recurrent: int = bounded(1, 0, 1)  # 0 reads histories without GRUs, 1.5 times as fast (pointer-ppo)

    def schedule(self, progress_remaining: float) -> float:
        """Return the learning rate; `progress_remaining` falls from 1 to 0 during training."""
        return self.final_learning_rate + progress_remaining * (self.learning_rate - self.final_learning_rate)


def _feed(env: Any) -> Any:
    """Return the package's environment under a wrapper or a stable-baselines3 VecEnv."""
    return getattr(env, "venv", getattr(env, "unwrapped", env))


def _spaces(env: Any) -> tuple[spaces.Dict, spaces.Discrete]:
    """Return the observation and action space of a single environment, also for a vector environment."""
    if isinstance(env, VectorEnv):
        return env.single_observation_space, env.single_action_space  # type: ignore[return-value]
    return env.observation_space, env.action_space


def sizes_of(env: Any) -> dict[str, Any]:
    """Return the observation shapes and the number of actions that a network is built for."""
    return _sizes(*_spaces(_feed(env)))


def _sizes(observations: spaces.Dict, actions: spaces.Discrete) -> dict[str, Any]:
    shapes = {key: list(space.shape or ()) for key, space in observations.items() if key != "action_mask"}
    return shapes | {"actions": int(actions.n)}


def policy_kwargs(agent: str, track: str, settings: PPOConfig) -> dict[str, Any]:
    """Return the arguments of :func:`policy_class` besides spaces and learning rate."""
    if agent == POINTER:
        more = {"heads": settings.heads, "recurrent": bool(settings.recurrent)}
        return {"track": track, "hidden": settings.hidden, **more}
    return {"net_arch": [settings.hidden, settings.hidden]}


def policy_class(agent: str) -> type[Any]:
    """Return the network class of one of :data:`AGENTS`."""
    return PointerPolicy if agent == POINTER else MaskableMultiInputActorCriticPolicy


class TrainedPolicy:
    """Play the most probable legal action of a trained network, batched."""

    stateless = True

    def __init__(self, name: str, network: Any, threads: int = 1) -> None:
        self.name, self.network, self.threads = name, network, threads
        self._seen: Observation = {}

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: the network has no state."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64, legal under the mask; raise InputError if the observation is not finite."""
        check_observation(observation)
        self._seen = observation
        with torch_threads(self.threads):
            actions, _ = self.network.predict(
                observation, deterministic=True, action_masks=observation["action_mask"].copy()
            )
        return np.asarray(actions, np.int64)

    def log_probabilities(self, observation: Observation) -> np.ndarray:
        """Return (B, A) float32 for all actions; raise InputError if the observation is not finite."""
        check_observation(observation)
        with torch_threads(self.threads), torch.inference_mode():
            tensors, _ = self.network.obs_to_tensor(observation)
            drawn = self.network.get_distribution(tensors, action_masks=observation["action_mask"].copy())
            return drawn.distribution.logits.numpy()

    def explain(self, row: int) -> Explanation | None:
        """Return the log-probabilities of the pool rows, if they are actions of the track.

        They are computed on demand, so call this before the last observation's arrays change.
        """
        seen = {key: values[row : row + 1] for key, values in self._seen.items()}
        n_pool = seen["pool"].shape[1]
        if seen["action_mask"].shape[1] < n_pool:
            return None
        with torch_threads(self.threads), torch.inference_mode():
            tensors, _ = self.network.obs_to_tensor(seen)
            spread = self.network.get_distribution(tensors, action_masks=seen["action_mask"].copy())
        return Explanation(scores=spread.distribution.logits[0, :n_pool].numpy())


def load_policy(folder: str | Path | Run, env: Any, *, threads: int = 1) -> TrainedPolicy:
    """Load a run of :func:`~edgerec_gym.agents.ppo.train.train`.

    Args:
        folder: a run's folder (finished, or with a complete checkpoint), or a single checkpoint.
        env: environment to play, any of the package's.
        threads: number of torch threads while acting.

    Raises:
        InputError: if there is no run, files are broken, or the policy is for another id or other sizes.
    """
    run, feed = read_run(folder), _feed(env)
    if run.agent not in AGENTS:
        raise InputError(
            f"{run.folder} holds the agent {run.agent!r}, of another version; train {AGENTS[0]} anew"
        )
    track = run.record["track"]
    if track != feed.track:
        raise InputError(
            f"{run.folder} was trained for the track {track!r}; this environment is {feed.track!r}"
        )
    return TrainedPolicy(run.agent, load_network(run, *_spaces(feed)), threads)


def load_network(run: Run, observations: spaces.Dict, actions: spaces.Discrete) -> Any:
    """Load the network of a run for the spaces of its track; InputError if files or sizes are wrong."""
    check_sizes(run, _sizes(observations, actions))
    settings = PPOConfig.from_dict(run.record["hyper"])
    kwargs = policy_kwargs(run.agent, run.record["track"], settings)
    with private_randomness():
        network = policy_class(run.agent)(observations, actions, settings.schedule, **kwargs)
    parameters.load_parameters(run.parameters, network)
    network.set_training_mode(False)
    return network
