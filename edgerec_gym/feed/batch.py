"""FeedBatch: the only implementation of the dynamics. Every environment class is a view of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgerec_gym.answers import CLICK_PROBABILITY, PURCHASE_PROBABILITY, Focus, UserModel
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.cloud.wire import CloudArrays, cloud_ranking, make_cloud
from edgerec_gym.compiled.arrays import AddressTable, reader
from edgerec_gym.compiled.jit import SOURCE_DIGEST, entry_point, kernel
from edgerec_gym.compiled.random_stream import SPLITS
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.feed.kernels import absorb, begin, next_episode, place
from edgerec_gym.feed.observe import copy_observation
from edgerec_gym.spaces import n_actions, observation_layout
from edgerec_gym.state import FeedArrays, allocate
from edgerec_gym.users.synthetic import read_users
from edgerec_gym.users.synthetic_kernels import answer, start_user

MIN_ROWS_PER_THREAD = 64  # with fewer rows, distributing the work costs more than it saves
_NO_ROWS = np.zeros(0, np.int64)
# What a row does: play its action, begin its next episode, wait while others play, or (in resets) nothing.
PLAY, BEGIN, WAIT, UNTOUCHED = range(4)


read_feed, read_cloud = reader(FeedArrays), reader(CloudArrays)


@kernel
def begin_synthetic(feed, cloud, users, row, worker):
    """Start the row's next episode with a synthetic user."""
    next_episode(feed, row)
    start_user(users, row, feed.key[row], feed.split)
    feed.hour[row] = users.hour[row]
    for k in range(feed.n_user):
        feed.observation[row, feed.user_at + k] = users.shipped[users.user[row], k]
    begin(feed, cloud, row, worker)


def _entry_points(digest: str) -> tuple[Any, ...]:
    # The digest becomes part of numba's cache key; see compiled/jit.py.
    @entry_point
    def step_synthetic(
        feed_address, cloud_address, users_address, actions, modes, copies, start, stop, worker
    ):
        _ = digest
        feed, cloud, users = read_feed(feed_address), read_cloud(cloud_address), read_users(users_address)
        for row in range(start, stop):
            if modes[row] == PLAY:
                place(feed, cloud, row, actions[row])
                if feed.focus_active[row]:
                    answer(users, row, feed.window_items, feed.focus_context, feed.response)
                absorb(feed, cloud, row, worker)
            elif modes[row] == BEGIN:
                begin_synthetic(feed, cloud, users, row, worker)
            copy_observation(feed, row, copies)

    @entry_point
    def place_rows(feed_address, cloud_address, actions, modes, start, stop, _worker):
        _ = digest
        feed, cloud = read_feed(feed_address), read_cloud(cloud_address)
        for row in range(start, stop):
            if modes[row] == PLAY:
                place(feed, cloud, row, actions[row])
            elif modes[row] == BEGIN:
                next_episode(feed, row)
                feed.focus_active[row] = False
            elif modes[row] == WAIT:
                feed.focus_active[row] = False

    @entry_point
    def absorb_rows(feed_address, cloud_address, modes, copies, start, stop, worker):
        _ = digest
        feed, cloud = read_feed(feed_address), read_cloud(cloud_address)
        for row in range(start, stop):
            if modes[row] == PLAY:
                absorb(feed, cloud, row, worker)
            elif modes[row] == BEGIN:
                begin(feed, cloud, row, worker)
            copy_observation(feed, row, copies)

    return step_synthetic, place_rows, absorb_rows


_step_synthetic, _place_rows, _absorb_rows = _entry_points(SOURCE_DIGEST)


class FeedBatch:
    """B feeds stepped together.

    Args:
        num_envs: B.
        track: one of :data:`edgerec_gym.spaces.TRACKS`.
        config: the feed.
        catalog: what the cloud retrieves from.
        users: the users who answer.
        split: "log", "train" or "eval"; their episodes never overlap.
        threads: worker threads for large batches; results do not depend on their number.

    Attributes:
        arrays: the state (:class:`~edgerec_gym.state.FeedArrays`); these arrays are never replaced.
        reward, reward_terms: of the last step, (B,) and (B, 7) float64; never replaced either.
        outcomes: other outcomes of the last step, by their names in `info`; (B, ...) each.
        watcher: called with the (B,) modes after every slot and reset, for rendering; None for none.
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
        self._layout = observation_layout(config, track)
        n_workers = max(1, min(threads, num_envs // MIN_ROWS_PER_THREAD))
        self._workers = Workers(num_envs, n_workers)
        cloud = make_cloud(catalog, config)
        ranking = cloud_ranking(cloud, config, n_workers)
        self.arrays = a = allocate(config, track, num_envs, self.split, ranking)
        users.allocate(num_envs, config, self._workers)
        self._compiled_users: AddressTable | None = getattr(users, "kernel_state", None)
        self._feed, self._cloud = AddressTable(a), AddressTable(cloud)
        self._focus = Focus(
            a.focus_active, a.window_cards, a.window_items, a.focus_context, a.key, a.window_page
        )
        self._play = np.full(num_envs, PLAY, np.int8)
        self._no_actions: Any = np.zeros(num_envs, np.int64)
        self._no_copies = a.observation[:0]
        self._live = self._views(a.observation)
        self.watcher: Callable[[np.ndarray], None] | None = None
        self.reward, self.reward_terms = a.reward, a.reward_terms
        self.outcomes = {
            "invalid_action": a.invalid,
            "cost": a.cost,
            "click_probability": a.response[:, CLICK_PROBABILITY],
            "purchase_probability": a.response[:, PURCHASE_PROBABILITY],
            "page_arrived": a.arrived,
            "request_sent": a.sent,
            "placed_item": a.placed_item,
            "placed_action": a.placed_action,
            "answered": a.focus_active,
            "uncertainty": a.uncertainty,
        }

    def reset(self, rows: np.ndarray, seeds: np.ndarray | None = None) -> None:
        """Start new episodes in some rows: the first of the seeds (R,) if given, else each row's next."""
        if seeds is not None:
            self.arrays.seed[rows] = seeds
            self.arrays.episode[rows] = -1
        modes = np.full(self.num_envs, UNTOUCHED, np.int8)
        modes[rows] = BEGIN
        self._advance(self._no_actions, modes, self._no_copies, rows, answer=False)

    def step(self, actions: Any, skip: np.ndarray | None = None) -> None:
        """Play one slot in every row that is not skipped; the outcome is in `arrays`.

        Args:
            actions: (B,) int64 inside the action space (see :meth:`check_actions`).
            skip: (B,) bool, rows that wait.
        """
        modes = self._play if skip is None else np.where(skip, WAIT, PLAY).astype(np.int8)
        self._advance(actions, modes, self._no_copies)

    def step_or_restart(self, actions: Any, ended: np.ndarray, copy: bool) -> dict[str, np.ndarray]:
        """Play one slot in every row, but start the next episode in rows that have ended, (B,) bool.

        Returns the observation as :meth:`observation` does. Copying while a row is in the cache is cheap.
        """
        copies = np.empty_like(self.arrays.observation) if copy else self._no_copies
        self._advance(actions, ended.view(np.int8), copies, np.flatnonzero(ended))
        return self._views(copies) if copy else self._live.copy()

    def _advance(
        self,
        actions: Any,
        modes: np.ndarray,
        copies: np.ndarray,
        begun: np.ndarray = _NO_ROWS,
        answer: bool = True,
    ) -> None:
        feed, cloud = self._feed.address, self._cloud.address
        if self._compiled_users is not None:
            users = self._compiled_users.address
            self._workers.run(_step_synthetic, feed, cloud, users, actions, modes, copies)
        else:
            self._advance_apart(actions, modes, copies, begun, answer)
        if self.watcher is not None:
            self.watcher(modes)

    def _advance_apart(
        self, actions: Any, modes: np.ndarray, copies: np.ndarray, begun: np.ndarray, answer: bool
    ) -> None:
        """Place cards, let users without a kernel answer the whole batch, and absorb the answers."""
        feed, cloud, a = self._feed.address, self._cloud.address, self.arrays
        self._workers.run(_place_rows, feed, cloud, actions, modes)
        if len(begun):
            start = self.users.reset(begun, a.key[begun], self.split)
            a.hour[begun] = start.hour
            a.observation[begun, a.user_at : a.user_at + a.n_user] = start.features
        if answer:
            self.users.respond(self._focus, a.response)
            if self.users.uncertainty is not None:
                a.uncertainty[:] = self.users.uncertainty
        self._workers.run(_absorb_rows, feed, cloud, modes, copies)

    def check_actions(self, actions: Any) -> Any:
        """Return actions as (B,) int64, or raise InputError naming the first row outside the space."""
        values = np.asarray(actions)
        if values.shape != (self.num_envs,) or values.dtype.kind not in "iu":
            raise InputError(
                f"actions must be {self.num_envs} whole numbers, got shape {values.shape} of {values.dtype}"
            )
        values = np.ascontiguousarray(values, np.int64)
        if values.view(np.uint64).max() >= self.n_actions:  # as uint64, negative numbers are large
            row = int(np.flatnonzero((values < 0) | (values >= self.n_actions))[0])
            raise InputError(
                f"action {values[row]} of row {row} is outside the action space; "
                f"allowed: 0 to {self.n_actions - 1}"
            )
        return values

    def observation(self, copy: bool = True) -> dict[str, np.ndarray]:
        """Return the observation, each key (B, ...), as views of one fresh copy or of the live buffer."""
        return self._views(self.arrays.observation.copy()) if copy else self._live.copy()

    def observations_of(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return a fresh copy of some rows of the observation, each key (R, ...)."""
        return self._views(self.arrays.observation[rows])

    def _views(self, buffer: np.ndarray) -> dict[str, np.ndarray]:
        """Return each key as a view into observation rows, (R, width) float32."""
        rows, stride = buffer.shape[0], buffer.strides[0]
        return {
            key: np.ndarray((rows, *shape), dtype, buffer, offset, (stride, *strides))
            for key, (dtype, shape, offset, strides) in self._layout.items()
        }

    def close(self) -> None:
        """Stop the worker threads."""
        self._workers.close()
