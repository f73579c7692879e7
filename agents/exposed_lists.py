"""From a log to exposed lists: the cards shown in the K slots after a request, and what was answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgerec_gym.agents.rerank_data import Requests
from edgerec_gym.policy import Observation
from edgerec_gym.users.base import BUY, CLICK, LEAVE, PAGE_VIEW

LONG_PAGE_VIEW = 0.5  # page-view duration, of 0..1, from which a click is no pseudo-click: about 20 s
OUTCOMES = ("click", "purchase", "long_page_view", "leave")


@dataclass(frozen=True)
class ListBatch:
    """B exposed lists of up to K cards, goods and mix-in cards alike, in the order in which they stood.

    Attributes:
        observation: what the device saw when the list began, as in
            :class:`~edgerec_gym.agents.rerank_data.RequestBatch`.
        cards: (B, K, F + T) float32, zero where no card was placed.
        outcomes: (B, K, 4) float32 in 0..1, columns :data:`OUTCOMES`; zero where nothing was answered.
        placed: (B, K) bool; the placed cards come first. A list ends with its page or with the session.
        answered: (B, K) bool; the last cards of a session are placed, but never answered.
    """

    observation: Observation
    cards: np.ndarray
    outcomes: np.ndarray
    placed: np.ndarray
    answered: np.ndarray


def exposed_lists(
    requests: Requests,
    index: np.ndarray,
    horizon: int,
    purchase: Callable[[np.ndarray], np.ndarray] | None = None,
) -> ListBatch:
    """Read the lists of K = `horizon` slots that follow the requests `index` (B,) int64.

    Args:
        requests: of a log.
        index: which of them.
        horizon: K.
        purchase: expected purchases behind response rows; None: those that were made.
    """
    log, session, slot = requests.log, requests.session[index], requests.slot[index]
    sessions, page = log.sessions, log.pages.of_slot
    begin = sessions.starts[session]
    now = begin + slot
    rows = now[:, None] + np.arange(horizon)
    placed = rows < sessions.starts[session + 1][:, None]
    rows = np.minimum(rows, len(sessions.item) - 1)
    placed &= page[rows] == page[now][:, None]
    answered = placed & (rows < (begin + sessions.answered[session])[:, None])
    actions = sessions.actions[rows]
    clicked = actions[..., CLICK] > 0
    bought = actions[..., BUY] > 0 if purchase is None else purchase(actions)
    outcomes = np.stack(
        [
            clicked,
            clicked * bought,
            clicked & (actions[..., PAGE_VIEW] >= LONG_PAGE_VIEW),
            actions[..., LEAVE] > 0,
        ],
        -1,
    )
    return ListBatch(
        log.observations(session, slot),
        sessions.cards(rows) * placed[..., None],
        (outcomes * answered[..., None]).astype(np.float32),
        placed,
        answered,
    )
