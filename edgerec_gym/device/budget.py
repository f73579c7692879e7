"""The latency budget of a decision on the device, and what is shown when it is missed.

A decision that takes longer than its budget is dropped, and what was decided before stays. It isn't kept for
the next slot either: that slot decides anew, from what the user has answered meanwhile. So a device that is
always late shows the cloud's order rather than orders that are one answer old. Only an agent that plans
several slots goes on with a late plan, from the next slot on. What the device has perceived (the state of its
networks) is never dropped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from edgerec_gym.config import Config, FeedConfig, bounded
from edgerec_gym.documents import read_object
from edgerec_gym.errors import InputError

RULES = "rules.toml"  # in a device model's folder; its section [budget] is read here
MOST_RULES = 64 * 1024  # bytes
MOST_MISSES = 10_000  # records kept; the counts go on
EVENTS, DECISION = "events", "decision"  # what took the time
Clock = Callable[[], float]
T = TypeVar("T")


@dataclass(frozen=True)
class Budget(Config):
    """Section [budget] of a rules file: the time that a decision may take, and what stands if it is late."""

    # Milliseconds; left out: the scenario's FeedConfig.latency_budget_ms
    ms: float | None = bounded(None, 0.001, 60_000.0)
    fallback: Literal["standing plan", "cloud order"] = "standing plan"

    def of(self, config: FeedConfig) -> Budget | None:
        """Return the budget in a feed, None if neither this nor the feed sets a time."""
        ms = config.latency_budget_ms if self.ms is None else self.ms
        return None if ms is None else self.replace(ms=ms)


def read_budget(folder: Path, config: FeedConfig) -> Budget | None:
    """Return the budget of a device model in a feed, by its rules.toml if it has one.

    Raises:
        InputError: a bad rules file; names the file, the field and what is allowed.
    """
    file = folder / RULES
    section = read_object(file, most_bytes=MOST_RULES, toml=True).get("budget", {}) if file.is_file() else {}
    try:
        return Budget.from_dict(section).of(config)
    except InputError as error:
        raise InputError(f"{file}: {str(error).replace('Budget', '[budget]', 1)}") from None


@dataclass(frozen=True)
class Miss:
    """A decision that was late.

    Attributes:
        row: the session's row in the batch.
        slot: slot that was decided, from 0.
        ms: milliseconds until the decision was given up or there.
        reason: "events" if taking in new events used up the budget, so that nothing was decided; "decision"
            if the result came too late.
    """

    row: int
    slot: int
    ms: float
    reason: str


class TimedDecisions:
    """Measures the decisions of a batch of sessions, drops the late ones, and counts them.

    Args:
        budget: the budget; `ms` is set.
        clock: seconds that never go back; tests pass their own.

    Attributes:
        decisions, missed: (B,) int64, counts of each row's session.
        misses: the last :data:`MOST_MISSES` misses.
    """

    def __init__(self, budget: Budget, clock: Clock = time.perf_counter) -> None:
        if budget.ms is None:
            raise InputError("Budget.ms is left out; TimedDecisions needs a number of milliseconds")
        self.budget, self.clock, self.ms = budget, clock, float(budget.ms)
        self.decisions, self.missed = np.zeros((2, 0), np.int64)
        self.misses: deque[Miss] = deque(maxlen=MOST_MISSES)

    def reset(self, mask: np.ndarray) -> None:
        """Start new sessions where `mask` (B,) bool is True."""
        if len(self.decisions) != len(mask):
            self.decisions, self.missed = np.zeros((2, len(mask)), np.int64)
        self.decisions[mask] = 0
        self.missed[mask] = 0

    def decide(
        self, row: int, slot: int, started: float, compute: Callable[[], T], fallback: Callable[[], T]
    ) -> tuple[T, bool]:
        """Return what is to be shown, and whether it was decided within the budget.

        Args:
            row: the session's row.
            slot: the slot that is decided.
            started: time of the clock when the observation reached the device.
            compute: decides; not called if the time is over already.
            fallback: returns what stands if the decision is late.
        """
        self.decisions[row] += 1
        spent, reason = self._since(started), EVENTS
        if spent <= self.ms:
            decided = compute()
            spent, reason = self._since(started), DECISION
            if spent <= self.ms:
                return decided, True
        self.missed[row] += 1
        self.misses.append(Miss(row, slot, spent, reason))
        return fallback(), False

    def _since(self, started: float) -> float:
        return 1000.0 * (self.clock() - started)


class StandingOrder:
    """The order that a session last decided in time; before the first one, the cloud's.

    Args:
        fallback: "standing plan" or "cloud order", which ignores what was decided.
    """

    def __init__(self, fallback: str) -> None:
        self._keeps = fallback == "standing plan"
        self._rows: np.ndarray | None = None
        self._pool = np.zeros((0, 0), np.float32)

    def keep(self, rows: np.ndarray, pool: np.ndarray) -> None:
        """Let an order stand: pool rows (n,) int64 of a pool (N, F), without duplicates."""
        if self._keeps:
            self._rows, self._pool = rows.copy(), pool.copy()

    def order(self, pool: np.ndarray) -> np.ndarray:
        """Return the rows of a pool that hold candidates: first what stands, then the others in cloud order.

        A row that another page has filled again does not stand.

        Args:
            pool: (N, F); rows of zeros are empty.

        Returns:
            (n,) int64.
        """
        present = np.flatnonzero(pool.any(axis=1))
        if self._rows is None or self._pool.shape != pool.shape:
            return present
        same = pool.any(axis=1) & (pool == self._pool).all(axis=1)
        first = self._rows[same[self._rows]]
        return np.concatenate([first, present[~np.isin(present, first)]])
