"""A stable-baselines3 VecEnv directly over the batch, without a wrapper or process per environment."""

from __future__ import annotations

import time
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.registration import IDS, SLATE, track_of
from edgerec_gym.vector_env import EdgeFeedVectorEnv

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecEnv
except ImportError:
    raise MissingExtraError("edgerec_gym.adapters.sb3", "train") from None

Indices = int | Iterable[int] | None


def make_vec_env(
    id_or_track: str,
    num_envs: int,
    *,
    seed: int | None = 0,
    scenario: Any = "default",
    users: str = "learned",
    **kwargs: Any,
) -> FeedVecEnv:
    """Make a stable-baselines3 VecEnv of `num_envs` feeds.

    Args:
        id_or_track: "EdgeFeed-v0", "EdgeFeedRerank-v0", ... or "joint", "rerank", "mix", "request"; not
            EdgeFeedSlate-v0, since stable-baselines3 has no algorithm for its actions.
        num_envs: number of environments.
        seed: row i of the first reset is seeded `seed + i`; None draws a seed.
        scenario: as in EdgeFeedVectorEnv.
        users: as in EdgeFeedVectorEnv.
        **kwargs: other arguments of EdgeFeedVectorEnv, including any FeedConfig field.

    Raises:
        MissingExtraError: stable-baselines3 is not installed (raised when this module is imported).
        InputError: as in EdgeFeedVectorEnv.
    """
    track = track_of(id_or_track)
    if track == SLATE:
        raise InputError(
            "stable-baselines3 takes no plans (it has no algorithms for Dict actions): use EdgeFeed-v0, or "
            "EdgeFeedSlate-v0 with gym.make_vec"
        )
    venv = EdgeFeedVectorEnv(
        num_envs,
        track=track,
        scenario=scenario,
        users=users,
        autoreset_mode=AutoresetMode.SAME_STEP,
        **kwargs,
    )
    spec = deepcopy(gym.spec(next(env_id for env_id, known in IDS.items() if known == track)))
    spec.kwargs |= {"scenario": scenario, "users": users, **kwargs}
    venv.spec = spec
    env = FeedVecEnv(venv)
    if seed is not None:
        env.seed(seed)
    return env


def _check_copies(copy: bool) -> None:
    if not copy:
        raise InputError(
            "copy must be True: stable-baselines3 keeps observations across steps, and with False the next "
            "step overwrites them"
        )


class FeedVecEnv(VecEnv):
    """A batch of feeds as a stable-baselines3 VecEnv, action masks included.

    Each `info` is empty except in rows that just ended. Those have "terminal_observation",
    "TimeLimit.truncated", "reward_terms" of the last step, "session_terms" (the terms summed over the
    session) and, as with VecMonitor, "episode" with return r, length l and seconds t. The observation
    returned for such a row is the first of its next episode.

    Args:
        venv: a vector environment with SAME_STEP autoreset and copy=True, since algorithms keep observations
            across steps.
    """

    def __init__(self, venv: EdgeFeedVectorEnv) -> None:
        if venv.autoreset_mode != AutoresetMode.SAME_STEP:
            raise InputError(f"FeedVecEnv needs autoreset_mode SAME_STEP, got {venv.autoreset_mode.name}")
        _check_copies(venv.copy)
        self.venv = venv
        super().__init__(venv.num_envs, venv.single_observation_space, venv.single_action_space)
        self._actions = np.zeros(self.num_envs, np.int64)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._terms = np.zeros((self.num_envs, len(venv.config.reward_terms)))
        self._started = time.monotonic()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in ("_actions", "_returns", "_lengths", "_terms"):  # those of a pickle may be read-only
            setattr(self, name, getattr(self, name).copy())

    def __repr__(self) -> str:
        """Return what tells this batch from others."""
        return f"{type(self).__name__}({self.num_envs} feeds, {self.venv.about})"

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Seed row i with `seed + i` at the next reset; None draws a seed."""
        if seed is None:
            seed = int(np.random.default_rng().integers(2**31))
        self._seeds = [seed + row for row in range(self.num_envs)]
        return self._seeds

    def reset(self) -> dict[str, np.ndarray]:
        """Start an episode in every row."""
        seeds = self._seeds if self._seeds[0] is not None else None
        observation, _ = self.venv.reset(seed=seeds, options=self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0
        self._lengths[:] = 0
        self._terms[:] = 0
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Store the actions, (B,) whole numbers, for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Play one slot in every row; rows that end start their next episode at once."""
        observation, rewards, terminated, truncated, step_infos = self.venv.step(self._actions)
        self._returns += rewards
        self._lengths += 1
        names = self.venv.config.reward_terms
        terms = np.column_stack([step_infos["reward_terms"][name] for name in names])  # (B, terms)
        self._terms += terms
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]  # fresh: callers may write to them
        for row in np.flatnonzero(dones):
            infos[row] = {
                "terminal_observation": step_infos["final_obs"][row],
                "TimeLimit.truncated": bool(truncated[row]),
                "reward_terms": dict(zip(names, terms[row].tolist(), strict=True)),
                "session_terms": dict(zip(names, self._terms[row].tolist(), strict=True)),
                "episode": {
                    "r": round(float(self._returns[row]), 6),
                    "l": int(self._lengths[row]),
                    "t": round(time.monotonic() - self._started, 6),
                },
            }
        self._returns[dones] = 0
        self._lengths[dones] = 0
        self._terms[dones] = 0
        return observation, rewards.astype(np.float32), dones, infos

    def get_images(self) -> list[np.ndarray | None]:
        """Return each row's frame, (760, 390, 3) uint8; None each without `render_mode="rgb_array"`."""
        frames = self.venv.render() if self.render_mode == "rgb_array" else None
        return [None] * self.num_envs if frames is None else list(frames)

    def close(self) -> None:
        """Close the batch."""
        self.venv.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute once per row; the rows share one batch, so the values are equal."""
        single = {"observation_space": "single_observation_space", "action_space": "single_action_space"}
        value = getattr(self.venv, single.get(attr_name, attr_name))
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the batch; it cannot be set for some rows only."""
        if sorted(self._get_indices(indices)) != list(range(self.num_envs)):
            raise InputError(f"{attr_name!r} belongs to the whole batch: set it without indices")
        if attr_name == "copy":
            _check_copies(value)
        setattr(self.venv, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Indices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the batch once and return each row's part, or all of it if it is not per row."""
        result = getattr(self.venv, method_name)(*args, **kwargs)
        by_row = isinstance(result, (np.ndarray, tuple, list)) and len(result) == self.num_envs
        return [result[row] if by_row else result for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """Return whether rows are wrapped; True for Monitor, since the infos hold its "episode" entry."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]
