"""The true effect of a request now: both futures of the same moment, on the ground truth.

Every draw of a session is a function of its key, the slot and the purpose. So a moment is copied, state and
all, into two sessions: one requests a page, the other does not, and both continue alike. Under one key they
share their random draws (common random numbers). The key may be replaced at the moment, since the past is in
the state by then. Several keys give several continuations of the same moment, and their average is the best
that a device could know of the effect. Outcomes sum click and purchase probabilities instead of draws, which
has the same mean and less noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerec_gym.answers import BUY, CLICK, CLICK_PROBABILITY, PURCHASE_PROBABILITY, SLOT
from edgerec_gym.compiled.jit import cached
from edgerec_gym.compiled.random_stream import SPLITS, fold
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.state import FeedArrays
from edgerec_gym.users.synthetic import SyntheticArrays, SyntheticUsers

HORIZONS = (5, 10, 15, 20)  # slots that an outcome looks ahead
OUTCOMES = ("clicks", "purchases")
BRANCHES = 4096  # number of sessions played at once
TRACKS = ("joint", "request")  # the tracks that have requests
_FEED_ROWS = FeedArrays._fields[FeedArrays._fields.index("observation") : FeedArrays._fields.index("ranking")]
_USER_ROWS = SyntheticArrays._fields[SyntheticArrays._fields.index("key") :]

Continue = Callable[[FeedBatch], np.ndarray]


@cached()
def _continuation_keys(keys, words, out):
    for j in range(len(keys)):
        out[j] = fold(keys[j], words[j])


def keep_on(batch: FeedBatch) -> np.ndarray:
    """Continue in the cloud's order, with automatic pages only; (B,) int64."""
    return np.asarray(batch.observation(copy=False)["action_mask"].argmax(axis=1))


@dataclass(frozen=True)
class Effects:
    """Outcomes of both futures of R moments: H horizons, mean of K continuations; clicks and purchases.

    Attributes:
        kept: (R, H, 2) expected clicks and purchases in the next slots without a request now.
        requested: (R, H, 2) the same with a request now.
        error: (R, H, 2) standard error of their difference, over continuations; NaN for one continuation.
        drawn: (R, H, 2) clicks and purchases drawn in the first continuation (the session's own key by
            default); with a request where `requested_now` says so.
    """

    kept: np.ndarray
    requested: np.ndarray
    error: np.ndarray
    drawn: np.ndarray

    @property
    def tau(self) -> np.ndarray:
        """Effect of a request now, (R, H, 2)."""
        return self.requested - self.kept


class Futures:
    """Plays both futures of moments of a batch of synthetic users.

    Args:
        batch: ongoing sessions of the track joint or request; they are read, never changed.
        horizons: slots to look ahead, ascending.
        continuations: K, number of keys per moment.
        own_key: whether the first key is the session's own, which gives its actual future.
        go_on: decides in both futures after the moment; default: :func:`keep_on`.

    Raises:
        InputError: users that are not synthetic, another track, horizons or continuations out of range.
    """

    def __init__(
        self,
        batch: FeedBatch,
        horizons: Sequence[int] = HORIZONS,
        continuations: int = 8,
        own_key: bool = True,
        go_on: Continue = keep_on,
    ) -> None:
        if not isinstance(batch.users, SyntheticUsers):
            raise InputError("true effects need users='synthetic': learned users have no ground truth")
        if batch.track not in TRACKS:
            raise InputError(f"the track {batch.track!r} has no requests; tracks: {', '.join(TRACKS)}")
        if continuations < 1 or not horizons or min(horizons) < 1 or list(horizons) != sorted(horizons):
            raise InputError(
                f"continuations = {continuations} and horizons = {tuple(horizons)} must be at least 1, "
                "horizons ascending"
            )
        self.users: SyntheticUsers = batch.users
        self.batch, self.horizons, self.continuations = batch, tuple(horizons), continuations
        self.go_on, self.first_key = go_on, 0 if own_key else 1
        self._branches: FeedBatch | None = None

    def effects(self, rows: np.ndarray, requested_now: np.ndarray | None = None) -> Effects:
        """Play both futures of some rows.

        Args:
            rows: (R,) int64, where a request is legal now.
            requested_now: (R,) bool which of the two futures `drawn` describes; default: without a request.

        Raises:
            InputError: a row where no request is legal.
        """
        legal = self.batch.observation(copy=False)["action_mask"][rows, -1] > 0
        if not legal.all():
            raise InputError(f"no request is legal in row {rows[~legal][0]} now, so it has no effect")
        asked = np.zeros(len(rows), np.bool_) if requested_now is None else requested_now
        k, sums = self.continuations, []
        per_play = max(1, BRANCHES // (2 * k))
        for at in range(0, len(rows), per_play):
            sums.append(self._play(rows[at : at + per_play]))
        if not sums:
            sums.append(np.zeros((0, k, 2, len(self.horizons), 4)))
        played = np.concatenate(sums)  # (R, K, 2 arms, H, 4)
        kept, requested = played[:, :, 0, :, :2], played[:, :, 1, :, :2]
        spread = (requested - kept).std(axis=1, ddof=1) if k > 1 else np.full(kept[:, 0].shape, np.nan)
        drawn = np.where(asked[:, None, None], played[:, 0, 1, :, 2:], played[:, 0, 0, :, 2:])
        return Effects(kept.mean(axis=1), requested.mean(axis=1), spread / np.sqrt(k), drawn)

    def _play(self, rows: np.ndarray) -> np.ndarray:
        """Sums (R, K, 2, H, 4): expected clicks and purchases, drawn clicks and purchases."""
        k = self.continuations
        branches = self._copies(
            np.repeat(rows, 2 * k), np.tile(np.repeat(np.arange(k), 2) + self.first_key, len(rows))
        )
        n, a = len(rows) * 2 * k, branches.arrays
        done = np.arange(branches.num_envs) >= n
        begin = a.slot.copy()
        sums = np.zeros((len(self.horizons), branches.num_envs, 4))
        for step in range(self.horizons[-1] + branches.config.lookahead):
            actions = self.go_on(branches)
            if step == 0:
                actions = keep_on(branches)
                actions[1:n:2] = branches.n_actions - 1
            branches.step(actions, done)
            ahead = a.focus_context[:, SLOT].astype(np.int64) - begin
            answered = ~done & a.focus_active & (ahead >= 0)
            seen = a.response[:, [CLICK_PROBABILITY, PURCHASE_PROBABILITY, CLICK, BUY]] * answered[:, None]
            for h, horizon in enumerate(self.horizons):
                sums[h] += seen * (ahead < horizon)[:, None]
            done = done | a.terminated | a.truncated
            if done.all():
                break
        return np.moveaxis(sums[:, :n], 0, 1).reshape(len(rows), k, 2, len(self.horizons), 4)

    def _copies(self, rows: np.ndarray, continuation: np.ndarray) -> FeedBatch:
        """Return a batch whose first n sessions copy `rows` (n,), with new keys where `continuation` > 0."""
        source, branches = self.batch, self._room()
        users = source.users
        assert isinstance(users, SyntheticUsers) and isinstance(branches.users, SyntheticUsers)
        n = len(rows)
        for name in _FEED_ROWS:
            getattr(branches.arrays, name)[:n] = getattr(source.arrays, name)[rows]
        for name in _USER_ROWS:
            getattr(branches.users.arrays, name)[:n] = getattr(users.arrays, name)[rows]
        keys = source.arrays.key[rows]
        _continuation_keys(keys, continuation.astype(np.uint64), keys_out := np.empty_like(keys))
        keys = np.where(continuation > 0, keys_out, keys)
        branches.arrays.key[:n] = keys
        branches.users.arrays.key[:n] = keys
        branches.mark_begun(np.arange(n))
        return branches

    def _room(self) -> FeedBatch:
        if self._branches is None:
            size = max(2 * self.continuations, BRANCHES - BRANCHES % (2 * self.continuations))
            source: Any = self.batch
            self._branches = FeedBatch(
                min(size, 2 * self.continuations * source.num_envs),
                source.track,
                source.config,
                self._catalog(),
                SyntheticUsers(source.users.config, source.config),
                split=SPLITS[source.split],
            )
        return self._branches

    def _catalog(self) -> Any:
        users = self.batch.users
        assert isinstance(users, SyntheticUsers)
        return users.world.catalog.with_table(self.batch.item_table)
