"""Decisions of a log to request a page or not: what the device saw, what it did by chance, what came of it.

A decision is a slot at which the logging policy drew a request with a known probability between 0 and 1. Its
outcome is what was clicked and bought in the next n slots. Requests are rare, so only some of the slots
without one are kept, drawn at random; the propensity counts that draw too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from edgerec_gym.agents.data.log_stream import Keep, LogStream, split_stream
from edgerec_gym.agents.data.observed_log import OBSERVED_COLUMNS, ObservedLog
from edgerec_gym.answers import BUY, CLICK, PAGE_VIEW, PAGE_VIEW_BUCKETS
from edgerec_gym.errors import InputError
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Observation


@dataclass(frozen=True)
class DecisionBatch:
    """B decisions.

    Attributes:
        observation: the keys user, pool, exposures, page_views, screen and context of the environment.
        treated: (B,) float32, 1 = a page was requested.
        outcome: (B, 2) float32 clicks and purchases in the next n slots.
        propensity: (B,) float32 probability of a request among the decisions that were kept.
        session: (B,) int64 ids in the log.
    """

    observation: Observation
    treated: np.ndarray
    outcome: np.ndarray
    propensity: np.ndarray
    session: np.ndarray


class Decisions:
    """The decisions of one chunk of a log, batched on demand.

    Args:
        log: the chunk.
        propensity: (P,) float64 probability of a request at each placed slot of the chunk.
        horizon: n, slots that an outcome looks ahead.
        controls: slots without a request that are kept for each request.
        rng: draws them.
        purchase_rates: (8,) see :func:`purchase_rates`; None = purchases as they were drawn.
    """

    def __init__(
        self,
        log: ObservedLog,
        propensity: np.ndarray,
        horizon: int,
        controls: float,
        rng: np.random.Generator,
        purchase_rates: np.ndarray | None = None,
    ) -> None:
        self.log, sessions = log, log.sessions
        requested = np.diff(log.requests_before) > 0
        # A slot without a request is kept so often that each request finds `controls` of them.
        kept = np.minimum(1.0, controls * propensity / np.maximum(1 - propensity, 1e-9))
        rows = np.flatnonzero((propensity > 0) & (requested | (rng.random(len(requested)) < kept)))
        self.session = np.searchsorted(sessions.starts, rows, side="right") - 1
        self.slot = rows - sessions.starts[self.session]
        self.treated = requested[rows].astype(np.float32)
        p = propensity[rows]
        self.propensity = (p / np.maximum(p + (1 - p) * kept[rows], 1e-9)).astype(np.float32)
        self.outcome = _outcomes(sessions, rows, self.session, horizon, purchase_rates)

    def __len__(self) -> int:
        return len(self.session)

    def batch(self, index: np.ndarray) -> DecisionBatch:
        """Build the observations of the decisions `index` (B,)."""
        session = self.session[index]
        return DecisionBatch(
            self.log.observations(session, self.slot[index]),
            self.treated[index],
            self.outcome[index],
            self.propensity[index],
            self.log.sessions.session[session],
        )


def _outcomes(
    sessions: LoggedSessions, rows: np.ndarray, session: np.ndarray, horizon: int, rates: np.ndarray | None
) -> np.ndarray:
    """Clicks and purchases (R, 2) float32 in the `horizon` answered slots from `rows` (R,) on."""
    clicks = sessions.actions[:, CLICK] > 0
    bought = clicks * (sessions.actions[:, BUY] if rates is None else rates[_view_levels(sessions)])
    total = np.zeros((len(clicks) + 1, 2))
    total[1:] = np.cumsum(np.column_stack([clicks, bought]), axis=0)
    end = np.minimum(rows + horizon, sessions.starts[session] + sessions.answered[session])
    return (total[np.maximum(end, rows)] - total[rows]).astype(np.float32)


def _view_levels(sessions: LoggedSessions) -> np.ndarray:
    return np.rint(sessions.actions[:, PAGE_VIEW] * (PAGE_VIEW_BUCKETS - 1)).astype(np.int64)


def purchase_rates(sessions: LoggedSessions) -> np.ndarray:
    """Purchases per page view of each length, (8,) float64: what a page view is worth before luck decides.

    A purchase follows one page view in twenty, so effects on purchases drown in luck. How long a page was
    viewed is decided by what the user thinks of it, and says most of what can be said of a purchase: a
    surrogate outcome (Athey, Chetty, Imbens & Kang, 2019), right as far as a request changes purchases
    only through page views and their lengths.
    """
    clicked = sessions.actions[:, CLICK] > 0
    level = _view_levels(sessions)[clicked]
    views = np.bincount(level, minlength=PAGE_VIEW_BUCKETS)
    bought = np.bincount(level, sessions.actions[clicked, BUY], minlength=PAGE_VIEW_BUCKETS)
    return bought / np.maximum(views, 1)


class DecisionStream(LogStream[Decisions]):
    """The decisions of some days of a log.

    Args:
        reader: the log; its request propensities must be known.
        days: days to read; None = all.
        keep: tells from session ids (S,) int64 which to keep.
        horizon: n, slots that an outcome looks ahead.
        controls: slots without a request that are kept for each request.
        surrogate: replace purchases by :func:`purchase_rates` of the first chunk.
        seed: of the draw of those slots.
        cached_slots: kept in memory if there are at most so many slots.

    Raises:
        InputError: nothing was requested by chance, or propensities are unknown, 0 everywhere, or 1.
    """

    columns: ClassVar[list[str]] = [*OBSERVED_COLUMNS, "request_propensity"]
    cached_slots = 8_000_000  # about 1.5 GB

    def __init__(
        self,
        reader: LogReader,
        days: list[int] | None,
        keep: Keep,
        *,
        horizon: int,
        controls: float,
        surrogate: bool,
        seed: int,
        cached_slots: int | None = None,
    ) -> None:
        super().__init__(reader, days, keep, seed, cached_slots)
        self.horizon, self.controls, self.surrogate = horizon, controls, surrogate
        self.rates: np.ndarray | None = None

    def chunks(self) -> Iterator[Decisions]:
        """Yield all decisions, a chunk of sessions at a time, in the order of the log."""
        seen = np.zeros(2, np.int64)
        for chunk in super().chunks():
            seen += np.bincount(chunk.treated.astype(np.int64), minlength=2)
            yield chunk
        if not seen.all():
            raise InputError(
                f"{self.reader.folder} has {seen[1]} slots with a request drawn by chance and {seen[0]} "
                "without one; both are needed: collect with --randomise request"
            )

    def _chunk(self, table: pa.Table, log: ObservedLog, rng: np.random.Generator) -> Decisions:
        where = str(self.reader.folder)
        if table["request_propensity"].null_count:
            raise InputError(f"{where}: the probabilities of its requests are unknown (request_propensity)")
        if self.surrogate and self.rates is None:
            self.rates = purchase_rates(log.sessions)
        propensity = table["request_propensity"].to_numpy()
        chunk = Decisions(log, propensity, self.horizon, self.controls, rng, self.rates)
        if len(chunk) and chunk.propensity.max() >= 1:
            raise InputError(
                f"{where}: a slot was sure to request a page; chance must decide (propensity < 1)"
            )
        return chunk


def split_decisions(
    reader: LogReader, held_out_from: int | None = None, **settings: float
) -> tuple[DecisionStream, DecisionStream, DecisionStream]:
    """Decisions to train on, decisions that decide when to stop, and decisions held out, the last by day.

    Args:
        reader: the log.
        held_out_from: first held-out day; default: the last seventh of the days.
        **settings: horizon, controls, surrogate and seed of :class:`DecisionStream`.
    """
    return split_stream(DecisionStream, reader, held_out_from, **settings)
