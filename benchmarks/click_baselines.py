"""Click models without memory, on streaming features of any log: popularity, logistic regression, LightGBM.

Every choice is made on the last seventh of the training days; the chosen model is then fitted on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import log_loss

from benchmarks.streaming_features import (
    DAY,
    HOUR,
    PlacedSlots,
    StreamingSlots,
    answers_above,
    daily_rate,
    hourly_rate,
    streaming_slots,
)
from benchmarks.user_baselines import Rows, fit_logistic, fit_trees, tuned_logistic, tuned_trees
from edgerec_gym.errors import InputError
from edgerec_gym.logs.sessions import HELD_OUT_SHARE, STOPPING_SHARE
from edgerec_gym.logs.store import LogReader

PRIORS = (5.0, 20.0, 100.0)  # views added at the average rate
HALF_LIVES = (3.0 * HOUR, 12.0 * HOUR, 2.0 * DAY, 7.0 * DAY, np.inf)
TUNED_SLOTS = 60_000  # the last ones of the training slots that the grid is tried on
GRID = [{"num_leaves": leaves, "min_data_in_leaf": least} for leaves, least in product((7, 31), (20, 100))]


@dataclass
class ClickTask:
    """Predict the clicks of held-out sessions.

    Args:
        reader: the log.
        held_out: ids of the held-out sessions.
    """

    reader: LogReader
    held_out: np.ndarray

    def __post_init__(self) -> None:
        if not 0 < self.click[self.train].sum() < self.train.sum():
            raise InputError(f"{self.reader.folder} has no clicks, or only clicks, to train baselines on")

    @cached_property
    def placed(self) -> PlacedSlots:
        """All slots of the log."""
        return PlacedSlots(self.reader)

    @cached_property
    def slots(self) -> StreamingSlots:
        """Answered slots (N) with their features."""
        return streaming_slots(self.placed)

    @cached_property
    def inputs(self) -> np.ndarray:
        """All features, (N, k) float32."""
        return self.slots.features.to_numpy()

    @cached_property
    def click(self) -> np.ndarray:
        """Whether each slot was clicked, (N,) bool."""
        return self.placed["click"][self.placed["answered"]]

    @cached_property
    def late(self) -> np.ndarray:
        """Slots of held-out sessions, (N,) bool."""
        return np.isin(self._answered("session"), self.held_out)

    @cached_property
    def validation(self) -> np.ndarray:
        """Slots that choices are made on, (N,) bool: the last days before the held-out ones."""
        day = self._answered("day")
        days = np.unique(day[self.early])
        if len(days) > 1:
            return self.early & (day >= days[-max(1, round(len(days) / HELD_OUT_SHARE))])
        return self.early & (self._answered("session") % STOPPING_SHARE == 0)

    @cached_property
    def early(self) -> np.ndarray:
        """Slots to train on, (N,) bool: those before the held-out days, or beside the held-out sessions."""
        day = self._answered("day")
        if len(np.unique(day)) == 1:
            return ~self.late
        return day < day[self.late].min()

    @property
    def train(self) -> np.ndarray:
        """Slots to train on while a choice is made, (N,) bool."""
        return self.early & ~self.validation

    def rows(self, chosen: np.ndarray, inputs: np.ndarray | None = None) -> Rows:
        """Inputs (default: all features) and clicks of the `chosen` (N,) bool slots."""
        return Rows((self.inputs if inputs is None else inputs)[chosen], self.click[chosen])

    @cached_property
    def trees(self) -> tuple[dict[str, Any], int]:
        """Settings of the trees and number of rounds."""
        validation = self.rows(self.validation)
        order = np.argsort(self.placed["moment"][self.placed["answered"]], kind="stable")
        late = np.zeros_like(self.train)
        late[order[self.train[order]][-TUNED_SLOTS:]] = True
        _, chosen = tuned_trees(self.rows(late), validation, GRID, 0)
        model, _ = tuned_trees(self.rows(self.train), validation, [chosen], 0)
        return chosen, model.best_iteration

    def _answered(self, name: str) -> np.ndarray:
        return self.placed[name][self.placed["answered"]]

    def best_rate(self, rates: list[np.ndarray]) -> np.ndarray:
        """Of click rates (N,), those of the lowest log-loss on the validation slots; on held-out slots."""
        clicked = self.click[self.validation]
        clipped = [np.clip(rate, 1e-6, 1 - 1e-6) for rate in rates]
        losses = [log_loss(clicked, rate[self.validation], labels=[False, True]) for rate in clipped]
        return clipped[int(np.argmin(losses))][self.late]


def item_popularity(task: ClickTask, seed: int) -> np.ndarray:
    """Smoothed click rate of the days before."""
    return task.best_rate([daily_rate(task.placed, prior) for prior in PRIORS])


def hourly_popularity(task: ClickTask, seed: int) -> np.ndarray:
    """Smoothed and decayed click rate, updated at each hour."""
    return task.best_rate(
        [hourly_rate(task.placed, life, prior) for life, prior in product(HALF_LIVES, PRIORS)]
    )


def logistic_regression(task: ClickTask, seed: int) -> np.ndarray:
    """Logistic regression on streaming features."""
    _, penalty = tuned_logistic(task.rows(task.train), task.rows(task.validation))
    return fit_logistic(task.rows(task.early), penalty).predict_proba(task.inputs[task.late])[:, 1]


def boosted_trees(task: ClickTask, seed: int) -> np.ndarray:
    """LightGBM on streaming features."""
    return trees_on(task, task.inputs, seed)


def boosted_trees_answers_above(task: ClickTask, seed: int) -> np.ndarray:
    """The same, which also know the clicks above on the page."""
    return trees_on(task, np.concatenate([task.inputs, answers_above(task.placed).to_numpy()], 1), seed)


def trees_on(task: ClickTask, inputs: np.ndarray, seed: int) -> np.ndarray:
    """LightGBM on any inputs (N, k), with the settings tuned on all features; on held-out slots."""
    chosen, rounds = task.trees
    model = fit_trees(task.rows(task.early, inputs), {**chosen, "seed": seed}, rounds)
    return np.asarray(model.predict(inputs[task.late], num_threads=1))


class ClickBaseline(NamedTuple):
    """A model: click probabilities of the held-out slots, and whether its seed changes them.

    Attributes:
        needs_order: only where the log tells the order of answers within a page.
    """

    predict: Callable[[ClickTask, int], np.ndarray]
    random: bool = False
    needs_order: bool = False


TREES, ABOVE = "LightGBM", "LightGBM, answers above"
CLICK_BASELINES = {
    "item popularity": ClickBaseline(item_popularity),
    "hourly popularity": ClickBaseline(hourly_popularity),
    "logistic regression": ClickBaseline(logistic_regression),
    TREES: ClickBaseline(boosted_trees, random=True),
    ABOVE: ClickBaseline(boosted_trees_answers_above, random=True, needs_order=True),
}
