"""Users of one's own, as anyone may write them: random, repeatable answers and the ends of their ranges."""

from __future__ import annotations

import numpy as np

from edgerec_gym.answers import (
    BUY,
    CLICK,
    CLICK_PROBABILITY,
    LEAVE,
    N_EXPOSURE_ACTIONS,
    N_PAGE_VIEW_ACTIONS,
    PAGE_VIEW,
    PURCHASE_PROBABILITY,
    RESPONSE_SIZE,
    SLOT,
    Focus,
    UserStart,
)
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.config import FeedConfig

_MIX = np.uint64(0x9E3779B97F4A7C15)


class ScriptedUsers:
    """Answers are a function of the episode's key and the slot, so a row does not depend on its batch.

    Args:
        habit: decides how often they click, buy and leave.
    """

    name = "scripted"
    uncertainty = None

    def __init__(self, habit: int) -> None:
        self.click = (0.0, 0.1, 0.5, 1.0)[habit % 4]
        self.leave = (0.0, 0.02, 0.2)[habit % 3]
        self.extreme = habit % 2 == 0  # all actions 0 or 1

    def allocate(self, num_envs: int, config: FeedConfig, workers: Workers) -> None:
        """Keep the sizes."""
        self._n_user = config.n_user_features

    def reset(self, rows: np.ndarray, keys: np.ndarray, split: int) -> UserStart:
        """Ship features that are a function of the key."""
        features = _uniforms(keys, np.zeros(len(keys)), self._n_user) * 2 - 1
        return UserStart(features.astype(np.float32), (keys % np.uint64(24)).astype(np.int32))

    def respond(self, focus: Focus, response: np.ndarray) -> None:
        """Answer the active rows."""
        rows = np.flatnonzero(focus.active)
        u = _uniforms(focus.keys[rows], focus.context[rows, SLOT], RESPONSE_SIZE)
        actions = np.round(u) if self.extreme else u
        out = np.zeros((len(rows), RESPONSE_SIZE), np.float32)
        out[:, :N_EXPOSURE_ACTIONS] = actions[:, :N_EXPOSURE_ACTIONS]
        click = u[:, CLICK] < self.click
        out[:, CLICK] = click
        views = slice(PAGE_VIEW, PAGE_VIEW + N_PAGE_VIEW_ACTIONS)
        out[:, views] = actions[:, views] * click[:, None]
        out[:, BUY] = (u[:, BUY] < 0.3) & click
        out[:, LEAVE] = u[:, LEAVE] < self.leave
        out[:, CLICK_PROBABILITY], out[:, PURCHASE_PROBABILITY] = self.click, 0.3 * self.click
        response[rows] = out


def _uniforms(keys: np.ndarray, slots: np.ndarray, columns: int) -> np.ndarray:
    """Numbers in [0, 1), (R, columns)."""
    with np.errstate(over="ignore"):
        z = keys[:, None] + slots.astype(np.uint64)[:, None] * _MIX
        z = (z + (np.arange(columns, dtype=np.uint64) + np.uint64(1))) * _MIX
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53
