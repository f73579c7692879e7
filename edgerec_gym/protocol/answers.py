"""Answers as messages tell them and as rows of the feed."""

from __future__ import annotations

from collections.abc import Sequence

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


def responses_of(answers: Sequence[Answer], n_responses: int) -> np.ndarray:
    """Return answers as rows of the feed, (n, 21 + R) float32; probabilities are unknown and 0.

    Raises:
        InputError: another number of actions, or one beyond 1.
    """
    width = N_EXPOSURE_ACTIONS + n_responses
    for answer in answers:
        if len(answer.exposure) != width:
            raise InputError(f"{len(answer.exposure)} exposure actions; allowed: {width}")
        if len(answer.page_view) not in (0, N_PAGE_VIEW_ACTIONS):
            raise InputError(
                f"{len(answer.page_view)} page-view actions; allowed: 0 or {N_PAGE_VIEW_ACTIONS}"
            )
    rows = np.zeros((len(answers), RESPONSE_SIZE + n_responses), np.float32)
    exposure = from_levels(b"".join(answer.exposure for answer in answers)).reshape(-1, width)
    rows[:, :N_EXPOSURE_ACTIONS] = exposure[:, :N_EXPOSURE_ACTIONS]
    rows[:, RESPONSE_SIZE:] = exposure[:, N_EXPOSURE_ACTIONS:]
    clicked = [number for number, answer in enumerate(answers) if answer.page_view]
    rows[clicked, CLICK] = 1.0
    rows[:, LEAVE] = [answer.leave for answer in answers]
    page_views = from_levels(b"".join(answer.page_view for answer in answers))
    rows[clicked, PAGE_VIEW : PAGE_VIEW + N_PAGE_VIEW_ACTIONS] = page_views.reshape(-1, N_PAGE_VIEW_ACTIONS)
    return rows


def response_of(answer: Answer, n_responses: int) -> np.ndarray:
    """Return an answer as a row of the feed, (21 + R,) float32; InputError as :func:`responses_of`."""
    row: np.ndarray = responses_of([answer], n_responses)[0]
    return row
