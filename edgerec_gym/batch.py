"""FeedBatch: the one implementation of the dynamics. Every environment class is a view of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit

from edgerec_gym.catalog import Catalog
from edgerec_gym.cloud import make_cloud
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.kernel_cache import SOURCE_DIGEST
from edgerec_gym.kernels import absorb, begin, place
from edgerec_gym.random_stream import SPLITS, episode_key
from edgerec_gym.spaces import n_actions, observation_dtype, observation_keys
from edgerec_gym.state import allocate, pack
from edgerec_gym.users.base import Focus, UserModel
from edgerec_gym.users.synthetic import SyntheticUsers
from edgerec_gym.users.synthetic_kernels import answer

MIN_ROWS_PER_THREAD = 64  # below that, handing out work costs more than it saves


def _kernels(digest: str) -> tuple[Any, ...]:
    # The digest is part of numba's cache key: see kernel_cache.
    @njit(cache=True, nogil=True)
    def step_synthetic(state, cloud, users, actions, skip, start, stop):
        _ = digest
        for row in range(start, stop):
            if not skip[row]:
                place(state, cloud, row, actions[row])
                if state.focus_active[row]:
                    items, context = state.focus_items[row], state.focus_context[row]
                    answer(users, row, items, context, state.response[row])
                absorb(state, cloud, row)

    @njit(cache=True, nogil=True)
    def place_rows(state, cloud, actions, skip, start, stop):
        _ = digest
        for row in range(start, stop):
            if skip[row]:
                state.focus_active[row] = False
            else:
                place(state, cloud, row, actions[row])

    @njit(cache=True, nogil=True)
    def absorb_rows(state, cloud, skip, start, stop):
        _ = digest
        for row in range(start, stop):
            if not skip[row]:
                absorb(state, cloud, row)

    @njit(cache=True, nogil=True)
    def begin_rows(state, cloud, rows):
        _ = digest
        for j in range(rows.shape[0]):
            begin(state, cloud, rows[j])

    @njit(cache=True)
    def episode_keys(split, seeds, episodes, rows, keys):
        _ = digest
        for j in range(rows.shape[0]):
            keys[j] = episode_key(split, seeds[rows[j]], episodes[rows[j]])

    return step_synthetic, place_rows, absorb_rows, begin_rows, episode_keys


_step_synthetic, _place_rows, _absorb_rows, _begin_rows, _episode_keys = _kernels(SOURCE_DIGEST)


class FeedBatch:
    """B feeds stepped together.

    Args:
        num_envs: B.
        track: one of :data:`edgerec_gym.spaces.TRACKS`.
        config: the feed.
        catalog: what the cloud retrieves from.
        users: who answers.
        split: "log", "train" or "eval"; their episodes never meet.
        threads: worker threads for large batches; results do not depend on it.

    Attributes:
        arrays: the state, see :class:`~edgerec_gym.state.FeedArrays`.
    """

    def __init__(
        self,
        num_envs: int,
        track: str,
        config: FeedConfig,
        catalog: Catalog,
        users: UserModel,
        *,
        split: str = "train",
        threads: int = 1,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise InputError(f"num_envs must be a whole number of at least 1, got {num_envs!r}")
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}; splits are {', '.join(SPLITS)}")
        if not isinstance(threads, int) or threads < 1:
            raise InputError(f"threads must be a whole number of at least 1, got {threads!r}")
        self.num_envs, self.track, self.config = num_envs, track, config
        self.users, self.split, self.threads = users, SPLITS.index(split), threads
        self.n_actions = n_actions(config, track)
        self.dtype = observation_dtype(config, track)
        self.keys = observation_keys(config)
        self.arrays = allocate(config, track, num_envs)
        self.state = pack(self.arrays)
        self.cloud = make_cloud(catalog, config)
        users.allocate(num_envs, config)
        self.seeds = np.zeros(num_envs, np.int64)
        self.episodes = np.zeros(num_envs, np.int64)
        self._none = np.zeros(num_envs, np.bool_)
        a = self.arrays
        self._focus = Focus(a.focus_active, a.focus_cards, a.focus_items, a.focus_context, a.key)
        workers = min(threads, num_envs // MIN_ROWS_PER_THREAD)
        self._pool = ThreadPoolExecutor(workers - 1) if workers > 1 else None
        edges = np.linspace(0, num_envs, max(workers, 1) + 1).astype(np.int64)
        self._chunks = [(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    def reset(self, rows: np.ndarray, seeds: np.ndarray | None = None) -> None:
        """Start new episodes in some rows; with seeds (R,) as their first, else each row's next."""
        if seeds is None:
            self.episodes[rows] += 1
        else:
            self.seeds[rows] = seeds
            self.episodes[rows] = 0
        keys = np.empty(len(rows), np.uint64)
        _episode_keys(self.split, self.seeds, self.episodes, rows, keys)
        start = self.users.reset(rows, keys, self.split)
        a = self.arrays
        a.key[rows] = keys
        a.hour[rows] = start.hour
        a.observation[rows, a.user_at : a.user_at + a.n_user] = start.features
        _begin_rows(self.state, self.cloud, rows)

    def step(self, actions: np.ndarray, skip: np.ndarray | None = None) -> None:
        """Play one slot in every row not skipped; the outcome is in `arrays`.

        Args:
            actions: (B,) int64 inside the action space (see :meth:`check_actions`).
            skip: (B,) bool rows that stand still.
        """
        skip = self._none if skip is None else skip
        if isinstance(self.users, SyntheticUsers):
            self._run(_step_synthetic, self.state, self.cloud, self.users.state, actions, skip)
            return
        self._run(_place_rows, self.state, self.cloud, actions, skip)
        self.users.respond(self._focus, self.arrays.response)
        self._run(_absorb_rows, self.state, self.cloud, skip)

    def _run(self, kernel: Callable[..., None], *args: Any) -> None:
        if self._pool is None:
            kernel(*args, 0, self.num_envs)
            return
        waiting = [self._pool.submit(kernel, *args, *chunk) for chunk in self._chunks[1:]]
        kernel(*args, *self._chunks[0])
        for future in waiting:
            future.result()

    def check_actions(self, actions: Any) -> np.ndarray:
        """Return actions as (B,) int64, or raise InputError naming the row outside the space."""
        values = np.asarray(actions)
        if values.shape != (self.num_envs,) or values.dtype.kind not in "iu":
            raise InputError(
                f"actions must be {self.num_envs} whole numbers, got shape {values.shape} of {values.dtype}"
            )
        values = values.astype(np.int64, copy=False)
        if values.min() < 0 or values.max() >= self.n_actions:
            row = int(np.flatnonzero((values < 0) | (values >= self.n_actions))[0])
            raise InputError(
                f"action {values[row]} of row {row} is outside the action space; "
                f"allowed: 0 to {self.n_actions - 1}"
            )
        return values

    def observation(self, copy: bool = True) -> dict[str, np.ndarray]:
        """Return the observation, each key (B, ...): views of one fresh copy, or of the live buffer."""
        buffer = self.arrays.observation
        rows = (buffer.copy() if copy else buffer).view(self.dtype)
        return {key: rows[key][:, 0] for key in self.keys}

    def close(self) -> None:
        """Stop the worker threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
            self._chunks = [(0, self.num_envs)]
