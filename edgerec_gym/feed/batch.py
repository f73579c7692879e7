"""FeedBatch: the only implementation of the dynamics. Every environment class is a view of it.

Kernels do not check what they are given, so this class does: actions, masks and rows are checked and copied,
what users tell is checked, and what the caller gets is a copy or read-only.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np

from edgerec_gym import memory
from edgerec_gym.answers import (
    CLICK_PROBABILITY,
    PURCHASE_PROBABILITY,
    RESPONSE_SIZE,
    Focus,
    UserModel,
    check_start,
    wrong_answer,
)
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.cloud.wire import CloudArrays, cloud_ranking, make_cloud
from edgerec_gym.compiled.arrays import AddressTable, Float32Matrix, Int64Vector, owned, read_only, reader
from edgerec_gym.compiled.jit import SOURCE_DIGEST, entry_point, kernel
from edgerec_gym.compiled.random_stream import SPLITS
from edgerec_gym.compiled.selection import make_ranking
from edgerec_gym.compiled.workers import Turn, Workers
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError, closest
from edgerec_gym.feed.kernels import absorb, begin, next_episode, place
from edgerec_gym.feed.observe import copy_observation
from edgerec_gym.policy import check_finite
from edgerec_gym.spaces import n_actions, observation_layout
from edgerec_gym.state import FeedArrays, allocate
from edgerec_gym.users.synthetic import SyntheticArrays, read_users
from edgerec_gym.users.synthetic_kernels import answer, start_user

MIN_ROWS_PER_THREAD = 64  # with fewer rows, distributing the work costs more than it saves
ASK_FOR_MEMORY = 4096  # rows from which memory may be short
_NO_ROWS = np.zeros(0, np.int64)
# What a row does: play its action, begin its next episode, wait while others play, or (in resets) nothing.
PLAY, BEGIN, WAIT, UNTOUCHED = range(4)


class Answers(NamedTuple):
    """What users without a kernel have answered, until it is checked.

    Attributes:
        values: (B, 21 + R) float32; theirs to write, hence copied once and checked as a copy.
        wrong: (workers,) int64; 1 + the first row of a worker's share with a number outside 0..1, or 0.
    """

    values: Float32Matrix
    wrong: Int64Vector


read_feed, read_cloud, read_answers = reader(FeedArrays), reader(CloudArrays), reader(Answers)


@kernel
def begin_synthetic(feed, cloud, users, row, worker):
    """Start the row's next episode with a synthetic user."""
    next_episode(feed, row)
    start_user(users, row, feed.key[row], feed.split)
    feed.hour[row] = users.hour[row]
    for k in range(feed.n_user):
        feed.observation[row, feed.user_at + k] = users.shipped[users.user[row], k]
    begin(feed, cloud, row, worker)


@kernel
def take_answer(feed, answers, row):
    """Move the row's answer into the feed; return whether all of it lies in 0..1."""
    legal = True
    for k in range(answers.values.shape[1]):
        value = answers.values[row, k]
        answers.values[row, k] = 0.0
        feed.response[row, k] = value
        legal = legal and 0.0 <= value <= 1.0  # false for NaN
    return legal


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
    def absorb_rows(feed_address, cloud_address, answers_address, modes, copies, start, stop, worker):
        _ = digest
        feed, cloud = read_feed(feed_address), read_cloud(cloud_address)
        answers = read_answers(answers_address)
        for row in range(start, stop):
            if modes[row] == PLAY:
                if feed.focus_active[row] and not take_answer(feed, answers, row):
                    answers.wrong[worker] = row + 1
                    return
                absorb(feed, cloud, row, worker)
            elif modes[row] == BEGIN:
                begin(feed, cloud, row, worker)
            copy_observation(feed, row, copies)

    return step_synthetic, place_rows, absorb_rows


_step_synthetic, _place_rows, _absorb_rows = _entry_points(SOURCE_DIGEST)


def check_memory(num_envs: int, track: str, config: FeedConfig) -> None:
    """Raise InputError if the state of so many feeds, with one copy of the observation, has no place."""
    if num_envs >= ASK_FOR_MEMORY:
        one = allocate(config, track, 1, 0, make_ranking(1, 1, 1, 1))
        bytes_ = one.observation.nbytes + sum(
            v.nbytes for v in one if isinstance(v, np.ndarray) and v.base is None
        )
        memory.check(bytes_ * num_envs, f"num_envs = {num_envs}")


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

    `copy.deepcopy` and pickle copy the feeds as they stand, users included, but no watcher.

    Attributes:
        arrays: the state (:class:`~edgerec_gym.state.FeedArrays`); these arrays are never replaced. They are
            internal: kernels trust them, so writing to them can crash the process.
        reward, reward_terms: of the last step, (B,) and (B, 7 + R) float64, read-only; never replaced either.
        outcomes: other outcomes of the last step, by their names in `info`; (B, ...) each, read-only.
        turn: the right to step, for who uses more than one method at once.
        watcher: called with the (B,) modes after every slot and reset, for rendering; None for none.
    """

    _living: weakref.WeakSet[FeedBatch] = weakref.WeakSet()

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
            raise InputError(f"unknown split {split!r}{closest(split, SPLITS, 'splits are')}")
        if not isinstance(threads, int) or threads < 1:
            raise InputError(f"threads must be a whole number of at least 1, got {threads!r}")
        check_memory(num_envs, track, config)
        self.num_envs, self.track, self.config = num_envs, track, config
        self.users, self.split, self.threads = users, SPLITS.index(split), threads
        if any(other.users is users for other in tuple(self._living)):
            raise InputError("this user model serves another environment: make one for each environment")
        self.n_actions = n_actions(config, track)
        n_workers = max(1, min(threads, num_envs // MIN_ROWS_PER_THREAD))
        self._workers = Workers(num_envs, n_workers)
        cloud = make_cloud(catalog, config)
        ranking = cloud_ranking(cloud, config, n_workers)
        self.arrays = allocate(config, track, num_envs, self.split, ranking)
        self._cloud = AddressTable(cloud)
        self._begun = np.zeros(num_envs, np.bool_)  # rows that may play
        self._all_begun = False
        users.allocate(num_envs, config, self._workers)
        self._check_kernel_state(len(catalog))
        self._link()

    def _check_kernel_state(self, n_items: int) -> None:
        """Raise InputError if the kernel cannot step the users through a catalogue of `n_items`."""
        table = getattr(self.users, "kernel_state", None)
        if table is None:
            return
        if not (isinstance(table, AddressTable) and isinstance(table.values, SyntheticArrays)):
            raise InputError("kernel_state of the users must be an AddressTable of SyntheticArrays")
        if len(table.values.key) != self.num_envs:
            raise InputError(
                f"the users have {len(table.values.key)} sessions, the environment {self.num_envs}"
            )
        if len(table.values.traits) < n_items:
            raise InputError(
                f"the users know {len(table.values.traits)} items, the catalogue has {n_items}: they belong "
                "to another scenario"
            )

    def _link(self) -> None:
        """Make what points into the arrays: tables of addresses, views, outcomes."""
        a = self.arrays
        self.turn = Turn()
        self._layout = observation_layout(self.config, self.track)
        self._feed = AddressTable(a)
        self._compiled_users: AddressTable | None = getattr(self.users, "kernel_state", None)
        seen = (a.focus_active, a.window_cards, a.window_items, a.focus_context, a.key, a.window_page)
        self._focus = Focus(*map(read_only, seen))
        self._answers = Answers(np.zeros_like(a.response), np.zeros(len(self._workers), np.int64))
        self._answers_table = AddressTable(self._answers)
        self._play_all = np.full(self.num_envs, PLAY, np.int8)
        self._no_actions: Any = np.zeros(self.num_envs, np.int64)
        self._no_copies = a.observation[:0]
        self._live = {key: read_only(view) for key, view in self._views(a.observation).items()}
        self.watcher: Callable[[np.ndarray], None] | None = None
        self.reward, self.reward_terms = read_only(a.reward), read_only(a.reward_terms)
        outcomes = {
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
        if self.config.responses:
            outcomes["responses"] = a.response[:, RESPONSE_SIZE:]
        self.outcomes = {name: read_only(values) for name, values in outcomes.items()}
        self._living.add(self)

    @property
    def item_table(self) -> np.ndarray:
        """The catalogue's item columns, (n, C) float32."""
        table: np.ndarray = self._cloud.values.item_columns
        return table

    def __getstate__(self) -> dict[str, Any]:
        names = ["num_envs", "track", "config", "users", "split", "threads", "n_actions"]
        names += ["_workers", "_cloud", "_begun", "_all_begun"]
        arrays = self.arrays._replace(observation_bytes=self.arrays.observation_bytes[:0])
        return {name: getattr(self, name) for name in names} | {"arrays": arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begun = self._begun.copy()
        arrays = owned(self.arrays)
        self.arrays = arrays._replace(observation_bytes=arrays.observation.view(np.int8))
        self._link()

    def __copy__(self) -> NoReturn:
        refuse_shallow_copy(self)

    def reset(self, rows: np.ndarray, seeds: np.ndarray | None = None) -> None:
        """Start new episodes in some rows: the first of the seeds (R,) if given, else each row's next."""
        found = np.asarray(rows)
        rows = found.astype(np.int64)
        legal = found.ndim == 1 and (found.dtype.kind in "iu" or not found.size)
        if not legal or (rows < 0).any() or (rows >= self.num_envs).any():
            raise InputError(f"rows must be whole numbers from 0 to {self.num_envs - 1}, got {found}")
        with self.turn:
            self._reset(rows, seeds)

    def _reset(self, rows: np.ndarray, seeds: np.ndarray | None = None) -> None:
        """Reset, for who holds the turn and knows that `rows` (R,) int64 are rows."""
        if seeds is not None:
            self.arrays.seed[rows] = seeds
            self.arrays.episode[rows] = -1
        modes = np.full(self.num_envs, UNTOUCHED, np.int8)
        modes[rows] = BEGIN
        self._move(self._no_actions, modes, self._no_copies, rows, answer=False)
        self.mark_begun(rows)

    def mark_begun(self, rows: np.ndarray) -> None:
        """Let rows (R,) int64 play: they were reset, or their whole state was written into `arrays`."""
        self._begun[rows] = True
        self._all_begun = bool(self._begun.all())

    def step(self, actions: Any, skip: np.ndarray | None = None) -> None:
        """Play one slot in every row that is not skipped; the outcome is in `arrays`.

        Args:
            actions: (B,) whole numbers inside the action space, also in rows that wait.
            skip: (B,) bool, rows that wait.

        Raises:
            InputError: wrong actions, or a row that plays must be reset first.
        """
        actions = self.check_actions(actions)
        modes = self._play_all
        if skip is not None:
            skip = np.asarray(skip)
            if skip.shape != (self.num_envs,) or skip.dtype != np.bool_:
                raise InputError(
                    f"skip must be {self.num_envs} booleans, got shape {skip.shape} of {skip.dtype}"
                )
            modes = np.where(skip, WAIT, PLAY).astype(np.int8)
        with self.turn:
            late = (modes == PLAY) & (self.arrays.slot >= self.config.max_slots)
            if late.any():
                raise InputError(f"row {int(late.argmax())} has ended: reset it before the next step")
            self._play(actions, modes)

    def _play(self, actions: Any, modes: np.ndarray | None = None) -> None:
        """Play one slot of sessions that go on, for who holds the turn.

        Args:
            actions: what :meth:`check_actions` returned.
            modes: (B,) int8, what each row does; None if all play.
        """
        modes = self._play_all if modes is None else modes
        if not self._all_begun:
            self._check_begun(modes == PLAY)
        try:
            self._advance(actions, modes, self._no_copies)
        except BaseException:
            self._fail()
            raise

    def _play_or_restart(self, actions: Any, ended: np.ndarray, copy: bool) -> dict[str, np.ndarray]:
        """Play one slot in every row, but start the next episode in rows that have ended, (B,) bool.

        For who holds the turn; `actions` are what :meth:`check_actions` returned. Returns the observation as
        :meth:`observation` does. Copying while a row is in the cache is cheap.
        """
        if not self._all_begun:
            self._check_begun(np.ones(self.num_envs, np.bool_))
        copies = np.empty_like(self.arrays.observation) if copy else self._no_copies
        self._move(actions, ended.view(np.int8), copies, np.flatnonzero(ended))
        return self._views(copies) if copy else self._live.copy()

    def _check_begun(self, playing: np.ndarray) -> None:
        """Raise InputError if a row is to play that was not reset since the start or a failure."""
        waiting = playing & ~self._begun
        if waiting.any():
            raise InputError(
                f"reset row {int(waiting.argmax())} first: it has not started, or a step or reset has failed "
                "half-way"
            )

    def _move(
        self,
        actions: Any,
        modes: np.ndarray,
        copies: np.ndarray,
        begun: np.ndarray = _NO_ROWS,
        answer: bool = True,
    ) -> None:
        """Advance; a failure half-way leaves every row to be reset."""
        try:
            self._advance(actions, modes, copies, begun, answer)
        except BaseException:
            self._fail()
            raise

    def _fail(self) -> None:
        """Leave every row to be reset."""
        self._begun[:] = self._all_begun = False
        self._answers.values[:] = 0.0

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
        values, wrong = self._answers
        self._workers.run(_place_rows, feed, cloud, actions, modes)
        if len(begun):
            start = check_start(
                self.users.reset(begun.copy(), a.key[begun], self.split), len(begun), a.n_user
            )
            a.hour[begun] = start.hour
            a.observation[begun, a.user_at : a.user_at + a.n_user] = start.features
        if answer:
            self.users.respond(self._focus, values)
            if self.users.uncertainty is not None:
                a.uncertainty[:] = self.users.uncertainty
                check_finite("uncertainty of the users", a.uncertainty)
        self._workers.run(_absorb_rows, feed, cloud, self._answers_table.address, modes, copies)
        if any(wrong.tolist()):
            row = int(wrong[wrong > 0].min()) - 1
            wrong[:] = 0
            raise wrong_answer(a.response[row], row)

    def check_actions(self, actions: Any) -> Any:
        """Return a copy of the actions, (B,) int64; InputError names the first row outside the space."""
        values = np.asarray(actions)
        if values.shape != (self.num_envs,) or values.dtype.kind not in "iu":
            raise InputError(
                f"actions must be {self.num_envs} whole numbers, got shape {values.shape} of {values.dtype}"
            )
        values = values.astype(np.int64, "C")  # a copy, which nobody else can change after the check
        if values.view(np.uint64).max() >= self.n_actions:  # as uint64, negative numbers are large
            row = int(np.flatnonzero((values < 0) | (values >= self.n_actions))[0])
            raise InputError(
                f"action {values[row]} of row {row} is outside the action space; "
                f"allowed: 0 to {self.n_actions - 1}"
            )
        return values

    def observation(self, copy: bool = True) -> dict[str, np.ndarray]:
        """Return the observation, each key (B, ...): a fresh copy, or read-only views of the buffer."""
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


def refuse_shallow_copy(values: object) -> NoReturn:
    """Raise InputError, since two environments over the same arrays would play into each other."""
    raise InputError(f"copy.copy({type(values).__name__}) would share its memory: use copy.deepcopy")
