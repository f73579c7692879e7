"""Randomised decisions in a log to request a page or not, with what the device saw and the outcome.

A decision is a slot at which the logging policy drew a request with a known probability between 0 and 1. Its
outcome is the number of clicks and purchases in the next n slots. Requests are rare, so only a random sample
of the slots without one is kept; the propensity accounts for this sampling.
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
        treated: (B,) float32, 1 if a page was requested.
        outcome: (B, 2) float32 clicks and purchases in the next n slots.
        propensity: (B,) float32 probability of a request among the decisions that were kept.
        session: (B,) int64 session ids in the log.
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
        horizon: n, the slots counted in an outcome.
        controls: slots without a request to keep per request.
        rng: generator that draws these slots.
        purchase_rates: (8,) rates from :func:`purchase_rates`; None uses the logged purchases.
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
        # Keep slots without a request at a rate that leaves `controls` of them per request.
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
        """Build the batch of the decisions `index` (B,)."""
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
    """Return clicks and purchases (R, 2) float32 in the `horizon` answered slots from `rows` (R,) on."""
    clicks = sessions.actions[:, CLICK] > 0
    bought = clicks * (sessions.actions[:, BUY] if rates is None else rates[_view_levels(sessions)])
    total = np.zeros((len(clicks) + 1, 2))
    total[1:] = np.cumsum(np.column_stack([clicks, bought]), axis=0)
    end = np.minimum(rows + horizon, sessions.starts[session] + sessions.answered[session])
    return (total[np.maximum(end, rows)] - total[rows]).astype(np.float32)


def _view_levels(sessions: LoggedSessions) -> np.ndarray:
    return np.rint(sessions.actions[:, PAGE_VIEW] * (PAGE_VIEW_BUCKETS - 1)).astype(np.int64)


def purchase_rates(sessions: LoggedSessions) -> np.ndarray:
    """Return purchases per page view by length bucket, (8,) float64: an expected value for each page view.

    Only one page view in twenty leads to a purchase, so effects on purchases drown in noise. The length of a
    page view reflects the user's interest and carries most of the information about a purchase. It serves as
    a surrogate outcome (Athey, Chetty, Imbens & Kang, 2019), valid if a request changes purchases only
    through page views and their lengths.
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
        days: days to read; None reads all.
        keep: maps session ids (S,) int64 to a bool mask of those to keep.
        horizon: n, the slots counted in an outcome.
        controls: slots without a request to keep per request.
        surrogate: replace purchases by :func:`purchase_rates` of the first chunk.
        seed: seed of the sampling of these slots.
        cached_slots: largest number of slots that is cached in memory.

    Raises:
        InputError: if no request was random, or propensities are unknown, 0 everywhere, or 1.
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
            raise InputError(f"{where}: request_propensity has missing values; every slot needs one")
        if self.surrogate and self.rates is None:
            self.rates = purchase_rates(log.sessions)
        propensity = table["request_propensity"].to_numpy()
        chunk = Decisions(log, propensity, self.horizon, self.controls, rng, self.rates)
        if len(chunk) and chunk.propensity.max() >= 1:
            raise InputError(
                f"{where}: a slot requests a page with certainty; request_propensity must be below 1"
            )
        return chunk


def split_decisions(
    reader: LogReader, held_out_from: int | None = None, **settings: float
) -> tuple[DecisionStream, DecisionStream, DecisionStream]:
    """Split decisions into training, early stopping and held-out streams, the last one by day.

    Args:
        reader: the log.
        held_out_from: first held-out day; by default, the last seventh of the days is held out.
        **settings: horizon, controls, surrogate and seed for :class:`DecisionStream`.
    """
    return split_stream(DecisionStream, reader, held_out_from, **settings)
