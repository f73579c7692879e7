"""EdgeFeedVectorEnv: the batch as a Gymnasium vector environment."""

from __future__ import annotations

import copy as copies
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from edgerec_gym.answers import UserModel
from edgerec_gym.compiled.arrays import read_only
from edgerec_gym.compiled.random_stream import SPLITS
from edgerec_gym.config import FeedConfig, check_options, differences
from edgerec_gym.drawing.render import FPS, RENDER_MODES, Renderer
from edgerec_gym.drawing.screen import Screen
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import FeedBatch, refuse_shallow_copy
from edgerec_gym.scenario import Scenario
from edgerec_gym.spaces import action_space, observation_space
from edgerec_gym.users import make_users


def with_max_slots(spec: EnvSpec | None, config: FeedConfig) -> EnvSpec | None:
    """Return a copy of an environment's spec that tells how many steps an episode has at most."""
    if spec is not None:
        spec = copies.copy(spec)
        spec.max_episode_steps = config.max_slots
    return spec


class EdgeFeedVectorEnv(VectorEnv):
    """Many feeds, stepped by one kernel call; row i equals the single environment seeded `seed + i`.

    Args:
        num_envs: number of environments.
        track: "joint" (EdgeFeed), "rerank", "mix" or "request".
        scenario: a shipped name, a scenario folder, or a Scenario.
        users: "learned" (the simulator fitted on logs), "synthetic" (the hidden ground truth), or your own
            :class:`~edgerec_gym.answers.UserModel`, which serves one environment only.
        split: "log", "train" or "eval"; their episodes never overlap.
        autoreset_mode: NEXT_STEP (the step after an end resets and ignores its action), SAME_STEP (the ended
            row's last observation is in `info["final_obs"]`) or DISABLED (reset rows through
            `reset(options={"reset_mask": mask})`).
        copy: return fresh arrays; with False, read-only views, which the next step overwrites.
        threads: worker threads for large batches; results do not depend on their number.
        render_mode: None, "ansi" (text), "rgb_array" (each row as a phone, 760 x 390 pixels) or "human" (a
            window with the first three).
        uncertainty: report in `infos` how far the ensemble of learned users disagrees about the click on the
            last answered card (a standard deviation; several times slower).
        members: networks of the ensemble that an episode of learned users draws from; None for all.
        shift: name in :data:`~edgerec_gym.config.SHIFTS` of synthetic users with other parameters; None for
            the users that the scenario's logs came from.
        **config: any FeedConfig field, e.g. `pool_size=60`.

    Infos hold arrays of length `num_envs` (with Gymnasium's `_key` masks): `action_mask`, `reward_terms` (a
    dict of arrays, in reward units), `invalid_action`, `cost`, `click_probability` and
    `purchase_probability` of the card answered in this step (0 if none), `page_arrived`, `request_sent`
    (0 none, 1 the policy's, 2 automatic), `placed_item`, `placed_action`, `answered`, `responses` (B, R) if
    the feed has any (FeedConfig.responses), and `uncertainty` if enabled.
    """

    _spec: EnvSpec | None = None
    metadata = {
        "render_modes": list(RENDER_MODES),
        "render_fps": FPS,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        track: str = "joint",
        scenario: str | Scenario = "default",
        users: str | UserModel = "learned",
        split: str = "train",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        threads: int = 1,
        render_mode: str | None = None,
        uncertainty: bool = False,
        members: Sequence[int] | None = None,
        shift: str | None = None,
        **config: Any,
    ) -> None:
        limit = config.pop("max_episode_steps", None)  # gym.make_vec(env.spec) passes it on
        check_options(type(self).__name__, config, EdgeFeedVectorEnv)
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise InputError(
                f"render_mode must be None or one of {', '.join(RENDER_MODES)}, got {render_mode!r}"
            )
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            allowed = ", ".join(mode.value for mode in AutoresetMode)
            raise InputError(f"autoreset_mode must be one of {allowed}, got {autoreset_mode!r}") from None
        self.scenario = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
        if shift is not None:
            if users != "synthetic":
                raise InputError("shift applies to synthetic users only")
            self.scenario = self.scenario.shifted(shift)
        self.config = self.scenario.config.replace(**config)
        if limit is not None and limit != self.config.max_slots:
            raise InputError(
                f"max_episode_steps = {limit} must be max_slots = {self.config.max_slots}: shorten a session "
                "with max_slots"
            )
        self.users = make_users(users, self.scenario, self.config, uncertainty, members)
        self.batch = self._make_batch(num_envs, track, split, threads)
        self.num_envs, self.track, self.copy, self.render_mode = num_envs, track, copy, render_mode
        self._renderer: Renderer | None = None
        if render_mode is not None:
            self._renderer = Renderer(render_mode, self.batch, self.scenario.catalog, "edgerec_gym")
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = observation_space(self.config, track)
        self.single_action_space = action_space(self.config, track)
        self._ended = np.zeros(num_envs, np.bool_)  # rows waiting for a reset
        self._told = [name for name in self.batch.outcomes if uncertainty or name != "uncertainty"]
        self._info_masks = [f"_{key}" for key in ("action_mask", "reward_terms", *self._told)]
        self._started = False
        self._link()

    def _link(self) -> None:
        """Make what points into the batch."""
        self._all = read_only(np.ones(self.num_envs, np.bool_))
        self._outcomes = {name: self.batch.outcomes[name] for name in self._told}
        self._turn = self.batch.turn

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy starts from; a copy does not render."""
        return self.__dict__ | {
            "_renderer": None,
            "render_mode": None,
            "_all": None,
            "_outcomes": None,
            "_turn": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ended = self._ended.copy()
        self._link()

    def __copy__(self) -> NoReturn:
        refuse_shallow_copy(self)

    def __repr__(self) -> str:
        """Return what tells this batch from others."""
        return f"{type(self).__name__}({self.num_envs} feeds, {self.about})"

    @property
    def about(self) -> str:
        """Track, scenario, users, split, and the fields of the config that differ from the scenario's."""
        changed = differences(self.config, self.scenario.config).items()
        told = [f"track={self.track!r}", f"scenario={self.scenario.name!r}", f"users={self.users.name!r}"]
        told += [f"split={SPLITS[self.batch.split]!r}", *(f"{name}={value!r}" for name, value in changed)]
        return ", ".join(told)

    @property
    def spec(self) -> EnvSpec | None:
        """What gym.make_vec made this from; `max_episode_steps` is the feed's max_slots."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = with_max_slots(spec, self.config)

    def _make_batch(self, num_envs: int, track: str, split: str, threads: int) -> FeedBatch:
        return FeedBatch(
            num_envs, track, self.config, self.scenario.catalog, self.users, split=split, threads=threads
        )

    @cached_property
    def observation_space(self) -> spaces.Space[Any]:  # type: ignore[override]
        """Space of the whole batch; made on demand, since its bounds take twice an observation's memory."""
        return batch_space(self.single_observation_space, self.num_envs)

    @cached_property
    def action_space(self) -> spaces.Space[Any]:  # type: ignore[override]
        """Space of the whole batch."""
        return batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start new episodes; an int seed gives row i the seed `seed + i`.

        `options={"reset_mask": (B,) bool}` resets only those rows.
        """
        rows = self._rows_to_reset(options)
        seeds = None if seed is None else self._seeds(seed)[rows]
        with self._turn:
            if seed is None and not self._started:
                self._np_random_seed = int(np.random.default_rng().integers(2**31))
                seeds = self._np_random_seed + rows
            self.batch._reset(rows, seeds)
            self._started = True
            self._ended[rows] = False
            observation = self.batch.observation(self.copy)
            return observation, self._infos(observation, rows)

    def _rows_to_reset(self, options: dict[str, Any] | None) -> np.ndarray:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.arange(self.num_envs)
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise InputError(f'options["reset_mask"] must be {self.num_envs} booleans, got {mask!r}')
        if not self._started and not mask.all():
            raise InputError("the first reset must start every row")
        return np.flatnonzero(mask)

    def _seeds(self, seed: int | list[int | None]) -> np.ndarray:
        values = (
            [seed + i for i in range(self.num_envs)] if isinstance(seed, (int, np.integer)) else list(seed)
        )
        if len(values) != self.num_envs or any(
            isinstance(v, bool) or not isinstance(v, (int, np.integer)) or v < 0 for v in values
        ):
            raise InputError(f"seed must be a whole number >= 0 or {self.num_envs} of them, got {seed!r}")
        return np.array(values, np.int64)

    def step(
        self, actions: Any
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Play one slot in every row; see the class for `infos`."""
        if not self._started:
            raise InputError("call reset before step")
        actions = self.batch.check_actions(actions)
        with self._turn:
            return self._step(actions)

    def _step(
        self, actions: Any
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        batch, arrays = self.batch, self.batch.arrays
        same_step = self.autoreset_mode == AutoresetMode.SAME_STEP
        if self.autoreset_mode == AutoresetMode.DISABLED and self._ended.any():
            raise InputError(f"row {int(self._ended.argmax())} has ended: reset it before the next step")
        # NEXT_STEP: a row that has ended ignores its action and starts its next episode.
        observation = batch._play_or_restart(actions, self._ended, copy=self.copy and not same_step)
        rewards, terminated, truncated = (
            batch.reward.copy(),
            arrays.terminated.copy(),
            arrays.truncated.copy(),
        )
        self._ended = terminated | truncated
        if not same_step:
            return observation, rewards, terminated, truncated, self._infos(observation)
        rows = np.flatnonzero(self._ended)
        infos = self._infos(observation, copy=self.copy or len(rows) > 0)  # a reset overwrites the originals
        if len(rows):
            self._add_final(infos, rows)
            batch._reset(rows)
            self._ended = np.zeros(self.num_envs, np.bool_)
        observation = batch.observation(self.copy)
        infos["action_mask"] = observation["action_mask"]
        return observation, rewards, terminated, truncated, infos

    def _add_final(self, infos: dict[str, Any], rows: np.ndarray) -> None:
        """Add the last observation and info of rows that have ended, before they are reset."""
        ended = self._ended.copy()
        final = self.batch.observations_of(rows)
        observations = np.full(self.num_envs, None, object)
        for k, row in enumerate(rows):
            observations[row] = {key: value[k] for key, value in final.items()}
        final_info = {key: value for key, value in infos.items() if not key.startswith("_")}
        final_info["action_mask"] = infos["action_mask"].copy()
        final_info |= {f"_{key}": ended for key in final_info}
        infos.update(final_obs=observations, _final_obs=ended, final_info=final_info, _final_info=ended)

    def _infos(
        self, observation: dict[str, np.ndarray], rows: np.ndarray | None = None, copy: bool | None = None
    ) -> dict[str, Any]:
        """Return the infos of the last step; `rows` restricts the masks to rows that were just reset."""
        copy = self.copy if copy is None else copy
        terms = self.batch.reward_terms.copy() if copy else self.batch.reward_terms
        infos: dict[str, Any] = {
            "action_mask": observation["action_mask"],
            "reward_terms": {name: terms[:, k] for k, name in enumerate(self.config.reward_terms)},
        }
        for name, values in self._outcomes.items():
            infos[name] = values.copy() if copy else values
        present = self._all
        if rows is not None:
            present = np.zeros(self.num_envs, np.bool_)
            present[rows] = True
        for key in self._info_masks:
            infos[key] = present
        return infos

    def _mask(self) -> np.ndarray:
        a = self.batch.arrays
        return a.observation_bytes[:, a.mask_at : a.mask_at + self.batch.n_actions] != 0

    def action_masks(self) -> np.ndarray:
        """Return the legal actions of every row, (B, A) bool; sb3-contrib expects this name."""
        return self._mask()

    def render(self) -> tuple[Any, ...] | None:
        """Return each row's screen: text with "ansi", a frame (760, 390, 3) uint8 with "rgb_array".

        Return None without a render mode, and with "human", where the window follows every step.
        """
        return None if self._renderer is None else self._renderer.render()

    def screen(self, row: int = 0) -> Screen:
        """Return what is on one row's screen as plain values; InputError without a render mode."""
        if self._renderer is None:
            raise InputError(f"screens need a render_mode; allowed: {', '.join(RENDER_MODES)}")
        return self._renderer.recorder.screen(row)

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the worker threads and close the window."""
        self.batch.close()
        if self._renderer is not None:
            self._renderer.close()
