"""How often does the cloud notice that a user's mood has changed, and how soon?

A mood switch is a change of the ground truth's intent to another direction (cosine of old and new below
:data:`OTHER_MOOD`). It is captured within H slots if the estimate of the user's interest is nearer to the new
mood than to the old one at some slot until then. Only switches count after which session and mood last for H
slots. The cloud's estimate is what it has been told; the phone's own is the ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgerec_gym.agents.baselines import Keep
from edgerec_gym.config import SYNC_MODES
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import Interval, ratio_interval
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.synthetic import SyntheticUsers

OTHER_MOOD = 0.5
BATCH = 250
HORIZONS = (5, 10, 15, 20)
CLOUD, PHONE = "cloud", "phone"


@dataclass(frozen=True)
class Switches:
    """Mood switches of many sessions (n of them).

    Attributes:
        session: (n,) int64.
        lasted: (n,) int64, slots until the next switch or the end of the session.
        noticed: {"cloud" or "phone": (n,) int64, slots until the estimate is nearer to the new mood; a large
            number if it never is before the next switch}.
        sessions: number of sessions.
    """

    session: np.ndarray
    lasted: np.ndarray
    noticed: dict[str, np.ndarray]
    sessions: int

    def rate(self, horizon: int, where: str = CLOUD) -> Interval:
        """Return the capture rate within so many slots, with an interval over sessions."""
        counts = self.lasted >= horizon
        captured, n = counts & (self.noticed[where] <= horizon), self.sessions
        return ratio_interval(
            np.bincount(self.session, captured, n),
            np.bincount(self.session, counts, n),
        )

    def count(self, horizon: int) -> int:
        """Number of switches that count for a horizon."""
        return int((self.lasted >= horizon).sum())


def find_switches(scenario: Scenario, sync: str, seeds: Sequence[int], split: str = "eval") -> Switches:
    """Play the cloud's order and find the mood switches.

    Args:
        scenario: one with a ground truth.
        sync: when behaviour reaches the cloud, one of :data:`edgerec_gym.config.SYNC_MODES`.
        seeds: one session each.
        split: of the users.

    Raises:
        InputError: no ground truth, or an unknown mode.
    """
    if scenario.synthetic is None:
        raise InputError(f"scenario {scenario.name!r} has no ground truth: nobody knows its users' moods")
    if sync not in SYNC_MODES:
        raise InputError(f"unknown sync {sync!r}; allowed: {', '.join(SYNC_MODES)}")
    config = scenario.config.replace(cloud={"sync": sync})
    found: list[tuple[int, ...]] = []
    for first in range(0, len(seeds), BATCH):
        part = np.asarray(seeds[first : first + BATCH], np.int64)
        users = SyntheticUsers(scenario.synthetic, config)
        batch = FeedBatch(len(part), "joint", config, scenario.catalog, users, split=split)
        found += [(first + row, *rest) for row, *rest in _play(batch, users, part)]
        batch.close()
    table = np.array(found, np.int64).reshape(-1, 4)
    return Switches(table[:, 0], table[:, 1], {CLOUD: table[:, 2], PHONE: table[:, 3]}, len(seeds))


def _play(batch: FeedBatch, users: SyntheticUsers, seeds: np.ndarray) -> list[list[int]]:
    """Play one session in every row; returns row, slots that the mood lasted, and when it was noticed."""
    rows = np.arange(len(seeds))
    batch.reset(rows, seeds)
    keep, arrays = Keep(), batch.arrays
    ended = np.zeros(len(seeds), np.bool_)
    moods = users.arrays.intent_now
    open_: dict[int, _Open] = {}
    found: list[list[int]] = []
    slot = 0
    while not ended.all():
        before = moods.copy()
        actions = np.asarray(keep.act(batch.observation(copy=False)))
        batch.step(np.where(ended, 0, actions), skip=ended)
        slot += 1
        over = (arrays.terminated | arrays.truncated) & ~ended
        for row in np.flatnonzero(~ended).tolist():
            state = open_.get(row)
            if state is not None:
                state.look(slot, arrays.known_interest[row], arrays.interest[row])
            changed = float(before[row] @ moods[row]) < OTHER_MOOD
            if state is not None and (changed or over[row]):
                found.append([row, slot - state.begun, *state.noticed])
                del open_[row]
            if changed and not over[row]:
                open_[row] = _Open(slot, before[row], moods[row].copy())
        ended |= over
    return found


class _Open:
    """A mood that goes on."""

    def __init__(self, begun: int, old: np.ndarray, new: np.ndarray) -> None:
        self.begun, self._towards = begun, new - old
        self.noticed = [2**31, 2**31]

    def look(self, slot: int, *estimates: np.ndarray) -> None:
        for k, estimate in enumerate(estimates):
            if self.noticed[k] == 2**31 and float(estimate @ self._towards) > 0:
                self.noticed[k] = slot - self.begun
