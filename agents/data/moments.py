"""From a log to re-rank requests: what the device would have seen at a moment, and what was clicked next.

A device re-ranks when a page arrives and at triggers (EdgeRec, CIKM'20): a click, a deleted card, or some
exposures in a row without a click. A request is such a moment; its label is the click on each candidate that
was shown from the pool in the next K slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from edgerec_gym.agents.data.log_stream import Keep, LogStream, split_stream
from edgerec_gym.agents.data.observed_log import NOT_SHOWN, OBSERVED_COLUMNS, ObservedLog
from edgerec_gym.errors import InputError
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Observation


@dataclass(frozen=True)
class RerankBatch:
    """B re-rank requests.

    Attributes:
        observation: the keys user, pool, exposures, page_views, screen and context of the environment.
        shown: (B, K) int64 pool rows in the order in which they were shown and answered, then -1.
        click: (B, K) float32 1 where that card was clicked.
        session: (B,) int64 ids in the log.
        user: (B,) int64 ids in the log.
    """

    observation: Observation
    shown: np.ndarray
    click: np.ndarray
    session: np.ndarray
    user: np.ndarray


class RerankMoments:
    """The labelled requests of one chunk of a log, batched on demand."""

    def __init__(self, log: ObservedLog, session: np.ndarray, slot: np.ndarray, horizon: int) -> None:
        shown, click = log.labels(session, slot, horizon)
        kept = shown[:, 0] != NOT_SHOWN
        self.log, self.session, self.slot = log, session[kept], slot[kept]
        self.shown, self.click = shown[kept], click[kept]

    def __len__(self) -> int:
        return len(self.session)

    def batch(self, index: np.ndarray) -> RerankBatch:
        """Build the observations of the requests `index` (B,)."""
        session = self.session[index]
        return RerankBatch(
            self.log.observations(session, self.slot[index]),
            self.shown[index],
            self.click[index],
            self.log.sessions.session[session],
            self.log.user[session],
        )


class RerankStream(LogStream[RerankMoments]):
    """The re-rank requests of some days of a log.

    Args:
        reader: the log.
        days: days to read; None = all.
        keep: tells from session ids (S,) int64 which to keep.
        horizon: K, slots that a label looks ahead.
        no_click: exposures in a row without a click that trigger a request.
        per_session: requests of one session at most, drawn at random.
        seed: of that draw.
        cached_slots: kept in memory if there are at most so many slots.
    """

    columns = OBSERVED_COLUMNS
    cached_slots = 2_000_000

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
        # Where a page is answered at once, nothing is known between its cards.
        at_once = "order_within_page" in self.reader.unidentified
        session, slot = log.moments(self.no_click, at_once)
        order = np.lexsort((rng.random(len(session)), session))
        drawn = np.arange(len(session)) - np.searchsorted(session, session) < self.per_session
        chosen = np.sort(order[drawn])
        return RerankMoments(log, session[chosen], slot[chosen], self.horizon)


def split_moments(
    reader: LogReader, held_out_from: int | None = None, **settings: int
) -> tuple[RerankStream, RerankStream, RerankStream]:
    """Requests to train on, requests that decide when to stop, and requests held out, the last by day.

    Args:
        reader: the log.
        held_out_from: first held-out day; default: the last seventh of the days.
        **settings: horizon, no_click, per_session and seed of :class:`RerankStream`.
    """
    return split_stream(RerankStream, reader, held_out_from, **settings)
