"""Answers as messages tell them and as rows of the feed."""

from __future__ import annotations

import numpy as np

from edgerec_gym.answers import (
    CLICK,
    LEAVE,
    N_EXPOSURE_ACTIONS,
    N_PAGE_VIEW_ACTIONS,
    PAGE_VIEW,
    RESPONSE_SIZE,
)
from edgerec_gym.errors import InputError
from edgerec_gym.protocol.coding import from_levels
from edgerec_gym.protocol.messages import Answer


def response_of(answer: Answer, n_responses: int) -> np.ndarray:
    """Return an answer as a row of the feed, (21 + R,) float32; probabilities are unknown and 0.

    Raises:
        InputError: another number of actions, or one beyond 1.
    """
    exposure, page_view = from_levels(answer.exposure), from_levels(answer.page_view)
    if len(exposure) != N_EXPOSURE_ACTIONS + n_responses:
        raise InputError(f"{len(exposure)} exposure actions; allowed: {N_EXPOSURE_ACTIONS + n_responses}")
    if len(page_view) not in (0, N_PAGE_VIEW_ACTIONS):
        raise InputError(f"{len(page_view)} page-view actions; allowed: 0 or {N_PAGE_VIEW_ACTIONS}")
    row = np.zeros(RESPONSE_SIZE + n_responses, np.float32)
    row[:N_EXPOSURE_ACTIONS] = exposure[:N_EXPOSURE_ACTIONS]
    row[RESPONSE_SIZE:] = exposure[N_EXPOSURE_ACTIONS:]
    row[LEAVE] = answer.leave
    if len(page_view):
        row[CLICK] = 1.0
        row[PAGE_VIEW : PAGE_VIEW + N_PAGE_VIEW_ACTIONS] = page_view
    return row
