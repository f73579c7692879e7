"""Page arrivals on which rankings are judged: what cloud and phone know then, and what was clicked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgerec_gym.agents.data.event_sequences import (
    PageBatch,
    SequenceBatch,
    SequenceStream,
    page_arrivals,
)
from edgerec_gym.agents.data.observed_log import NOT_SHOWN
from edgerec_gym.evaluation.ranking import ndcg
from edgerec_gym.policy import Observation

BATCH = 256  # pages prepared together
MOST = 20_000  # pages; about 0.5 GB with the paper's sizes


@dataclass(frozen=True)
class JudgedPages:
    """R page arrivals.

    Attributes:
        sessions: their sessions, for models of the cloud.
        pages: the moments, likewise.
        observation: what the phone sees, with the keys that models read.
        shown: (R, K) int64 pool rows that were shown from the page and answered, in order, then -1.
        click: (R, K) float32.
        session: (R,) int64 session ids in the log.
        slot: (R,) int64.
        user: (R,) int64 user ids in the log.
    """

    sessions: SequenceBatch
    pages: PageBatch
    observation: Observation
    shown: np.ndarray
    click: np.ndarray
    session: np.ndarray
    slot: np.ndarray
    user: np.ndarray

    def __len__(self) -> int:
        return len(self.session)


def read_pages(stream: SequenceStream, *, clicked: bool, most: int = MOST) -> list[JudgedPages]:
    """Prepare the page arrivals of a stream, in order.

    Args:
        stream: sessions that are not trained on.
        clicked: keep only pages with both a click and a miss among the cards that were shown.
        most: largest number of pages; the first ones are kept.
    """
    found: list[JudgedPages] = []
    left = most
    for chunk in stream.chunks():
        log = chunk.log
        session, slot = page_arrivals(log)
        shown, click = log.labels(session, slot, log.config.page_size)
        if clicked:
            clicks = click.sum(1)
            kept = np.flatnonzero((clicks > 0) & (clicks < (shown != NOT_SHOWN).sum(1)))
        else:
            kept = np.arange(len(session))
        kept = kept[:left]
        left -= len(kept)
        for at in range(0, len(kept), BATCH):
            rows = kept[at : at + BATCH]
            sessions, pages = chunk.moments(session[rows], slot[rows])
            found.append(
                JudgedPages(
                    sessions,
                    pages,
                    log.observations(session[rows], slot[rows]),
                    shown[rows],
                    click[rows],
                    log.sessions.session[session[rows]],
                    slot[rows],
                    log.user[session[rows]],
                )
            )
        if not left:
            break
    return found


def click_ndcg(pages: list[JudgedPages], score: Callable[[JudgedPages], np.ndarray]) -> np.ndarray:
    """Return the NDCG@10 of each page among the cards that were shown, (R,); NaN without a click.

    Args:
        pages: page arrivals.
        score: returns scores (R, N) of the pool rows.
    """
    parts = [
        ndcg(np.take_along_axis(score(p), np.maximum(p.shown, 0), 1), p.click, p.shown != NOT_SHOWN)
        for p in pages
    ]
    return np.concatenate(parts) if parts else np.zeros(0)
