"""Re-ranking moments of a log: what the device would have seen, and what was clicked next.

A device re-ranks when a page arrives and at triggers (EdgeRec, CIKM'20): a click, a deleted card, or a number
of exposures in a row without a click. The labels of such a moment are the clicks on the candidates that were
shown from the pool in the next K slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from edgerec_gym.agents.data.log_stream import Keep, LogStream, split_stream
from edgerec_gym.agents.data.observed_log import NOT_SHOWN, ObservedLog
from edgerec_gym.errors import InputError
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Observation


@dataclass(frozen=True)
class RerankBatch:
    """B re-ranking moments.

    Attributes:
        observation: the keys user, pool, exposures, page_views, screen and context of the environment.
        shown: (B, K) int64 pool rows that were shown and answered, in order, then -1.
        click: (B, K) float32, 1 where that card was clicked.
        session: (B,) int64 session ids in the log.
        user: (B,) int64 user ids in the log.
    """

    observation: Observation
    shown: np.ndarray
    click: np.ndarray
    session: np.ndarray
    user: np.ndarray


class RerankMoments:
    """The labelled re-ranking moments of one chunk of a log, batched on demand."""

    def __init__(self, log: ObservedLog, session: np.ndarray, slot: np.ndarray, horizon: int) -> None:
        shown, click = log.labels(session, slot, horizon)
        kept = shown[:, 0] != NOT_SHOWN
        self.log, self.session, self.slot = log, session[kept], slot[kept]
        self.shown, self.click = shown[kept], click[kept]

    def __len__(self) -> int:
        return len(self.session)

    def batch(self, index: np.ndarray) -> RerankBatch:
        """Build the batch of the moments `index` (B,)."""
        session = self.session[index]
        return RerankBatch(
            self.log.observations(session, self.slot[index]),
            self.shown[index],
            self.click[index],
            self.log.sessions.session[session],
            self.log.user[session],
        )


class RerankStream(LogStream[RerankMoments]):
    """The re-ranking moments of some days of a log.

    Args:
        reader: the log.
        days: days to read; None reads all.
        keep: maps session ids (S,) int64 to a bool mask of those to keep.
        horizon: K, the slots that the labels look ahead.
        no_click: exposures in a row without a click that trigger re-ranking.
        per_session: maximum number of moments per session, drawn at random.
        seed: seed of that draw.
        cached_slots: largest number of slots that is cached in memory.
    """

    def __init__(
        self,
        reader: LogReader,
        days: list[int] | None,
        keep: Keep,
        *,
        horizon: int,
        no_click: int,
        per_session: int,
        seed: int,
        cached_slots: int | None = None,
    ) -> None:
        for name, value in (("horizon", horizon), ("no_click", no_click), ("per_session", per_session)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        super().__init__(reader, days, keep, seed, cached_slots)
        self.horizon, self.no_click, self.per_session = horizon, no_click, per_session

    def _chunk(self, table: pa.Table, log: ObservedLog, rng: np.random.Generator) -> RerankMoments:
        # If a page is answered as a whole, there is no information between its cards.
        at_once = "order_within_page" in self.reader.unidentified
        session, slot = log.moments(self.no_click, at_once)
        order = np.lexsort((rng.random(len(session)), session))
        drawn = np.arange(len(session)) - np.searchsorted(session, session) < self.per_session
        chosen = np.sort(order[drawn])
        return RerankMoments(log, session[chosen], slot[chosen], self.horizon)


def split_moments(
    reader: LogReader, held_out_from: int | None = None, **settings: int
) -> tuple[RerankStream, RerankStream, RerankStream]:
    """Split re-ranking moments into training, early stopping and held-out streams, the last one by day.

    Args:
        reader: the log.
        held_out_from: first held-out day; by default, the last seventh of the days is held out.
        **settings: horizon, no_click, per_session and seed for :class:`RerankStream`.
    """
    return split_stream(RerankStream, reader, held_out_from, **settings)
