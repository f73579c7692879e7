"""Logs as padded sessions: the inputs that the environment would have built, and the answers.

A log that fits is read once; a larger one is read again, part by part, in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from edgerec_gym.catalog import Catalog
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.logs.store import LogReader

try:
    import torch
except ImportError:
    raise MissingExtraError("reading logs as sessions", "train") from None

from edgerec_gym.simulator.inputs import N_ACTIONS, SessionBatch
from edgerec_gym.simulator.model import LEVELS
from edgerec_gym.spaces import LEAST_CTR
from edgerec_gym.users.base import (
    CLICK,
    CONTEXT_SIZE,
    DWELL_BUCKETS,
    FOCUSED,
    HOUR,
    LAST_CLICKED,
    LEAVE,
    N_EXPOSURE_ACTIONS,
    N_EXPOSURES,
    N_PAGE_VIEW_ACTIONS,
    N_PAGE_VIEWS,
    PAGE_AGE,
    PAGE_REQUESTED,
    PAGE_VIEW,
    PAGE_VIEW_BUCKETS,
    SINCE_PAGE_VIEW,
    SLOT,
    WINDOW,
)

SCALAR_COLUMNS = ["price_level", "base_ctr", "base_cvr", "freshness"]
COLUMNS = [
    "session", "hour", "slot", "item", "page", "page_age", "page_requested", "user_features",
    *SCALAR_COLUMNS, "answered", "exposure_actions", "click", "page_view_actions", "leave",
]  # fmt: skip
PER_SESSION = ("answered", "session", "user")  # fields of Sessions
PER_SLOT = ("item", "scalars", "page", "context", "summary", "actions")
CACHED_SLOTS = 4_000_000  # about 0.6 GB; a larger log is streamed
# Levels that each action takes: e1..e6, click, d1..d11, leave.
ACTION_LEVELS = np.array(
    [DWELL_BUCKETS, *LEVELS, 2, PAGE_VIEW_BUCKETS, *[2] * (N_PAGE_VIEW_ACTIONS - 1), 2], np.float32
)


@dataclass(frozen=True)
class Sessions:
    """Whole sessions side by side (S sessions, P placed slots).

    Attributes:
        catalog: where the embeddings and types of the items are.
        n_types: T.
        starts: (S + 1,) int64 first placed slot of each session.
        answered: (S,) int64 answered slots; they come first in a session.
        session: (S,) int64 ids in the log.
        user: (S, U) float32.
        item: (P,) int32.
        scalars: (P, 4) float32.
        page: (P,) int32.
        context: (P, 8) float32, columns of users/base.py.
        summary: (P, 5) float32, of each slot's page (users/base.py).
        actions: (P, 19) float32 response rows up to `leave`; zero where not answered or not known.
    """

    catalog: Catalog
    n_types: int
    starts: np.ndarray
    answered: np.ndarray
    session: np.ndarray
    user: np.ndarray
    item: np.ndarray
    scalars: np.ndarray
    page: np.ndarray
    context: np.ndarray
    summary: np.ndarray
    actions: np.ndarray

    def __len__(self) -> int:
        return len(self.answered)

    @property
    def slots(self) -> int:
        """Answered slots."""
        return int(self.answered.sum())

    @classmethod
    def from_table(cls, table: pa.Table, config: FeedConfig, catalog: Catalog) -> Sessions:
        """Read rows of the log schema (sessions whole, slots in order); InputError names what is wrong."""
        session = table["session"].to_numpy()
        first = np.flatnonzero(np.diff(session, prepend=session[:1] - 1))
        starts = np.append(first, len(session))
        row_session = np.repeat(np.arange(len(first)), np.diff(starts))
        answered = table["answered"].to_numpy()
        broken = np.flatnonzero(~answered[:-1] & answered[1:] & (row_session[:-1] == row_session[1:]))
        if len(broken):
            raise InputError(
                f"log: session {session[broken[0]]} has an answered slot after one that was not answered"
            )
        actions = np.zeros((len(session), LEAVE + 1), np.float32)
        actions[:, :N_EXPOSURE_ACTIONS] = _lists(table, "exposure_actions", N_EXPOSURE_ACTIONS)
        actions[:, CLICK] = _flags(table, "click")
        actions[:, PAGE_VIEW:N_ACTIONS] = _lists(table, "page_view_actions", N_PAGE_VIEW_ACTIONS)
        actions[:, PAGE_VIEW:N_ACTIONS] *= actions[:, CLICK, None]
        actions[:, LEAVE] = _flags(table, "leave")
        actions[~answered] = 0
        actions[:] = np.round(actions * (ACTION_LEVELS - 1)) / (ACTION_LEVELS - 1)
        scalars = np.stack([table[c].to_numpy() for c in SCALAR_COLUMNS], 1).astype(np.float32)
        page = table["page"].to_numpy().astype(np.int32)
        return cls(
            catalog=catalog,
            n_types=config.n_types,
            starts=starts,
            answered=np.add.reduceat(answered.astype(np.int64), first),
            session=session[first],
            user=_lists(table, "user_features", config.n_user_features)[first],
            item=table["item"].to_numpy().astype(np.int32),
            scalars=scalars,
            page=page,
            context=_context(table, starts, row_session, actions[:, CLICK], config),
            summary=_page_summary(scalars, page, row_session, config),
            actions=actions,
        )

    @classmethod
    def concatenate(cls, parts: list[Sessions]) -> Sessions:
        """Put parts of one log together."""
        ends = np.cumsum([0] + [p.starts[-1] for p in parts])
        joined = {
            name: np.concatenate([getattr(p, name) for p in parts]) for name in (*PER_SESSION, *PER_SLOT)
        }
        starts = [part.starts[:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
        return cls(
            catalog=parts[0].catalog,
            n_types=parts[0].n_types,
            starts=np.concatenate([*starts, ends[-1:]]),
            **joined,
        )

    def select(self, index: np.ndarray) -> Sessions:
        """Keep some sessions, in the given order."""
        length = np.diff(self.starts)[index]
        starts = np.concatenate([[0], np.cumsum(length)])
        rows = np.repeat(self.starts[index] - starts[:-1], length) + np.arange(starts[-1])
        return Sessions(
            self.catalog,
            self.n_types,
            starts,
            *(getattr(self, name)[index] for name in PER_SESSION),
            *(getattr(self, name)[rows] for name in PER_SLOT),
        )

    def batch(self, index: np.ndarray, weight: np.ndarray) -> SessionBatch:
        """Pad the sessions `index` (B,) with their weights (B,) to tensors."""
        length = self.answered[index]
        at = np.arange(length.max())
        rows = np.minimum(self.starts[index, None] + at, len(self.item) - 1)
        valid = at < length[:, None]
        placed = np.arange(length.max() + WINDOW - 1) - FOCUSED
        card_rows = self.starts[index, None] + placed
        shown = (placed >= 0) & (card_rows < self.starts[index + 1, None])
        return SessionBatch(
            torch.from_numpy(self.cards(np.where(shown, card_rows, 0)) * shown[:, :, None]),
            torch.from_numpy(self.context[rows] * valid[:, :, None]),
            torch.from_numpy(self.user[index]),
            torch.from_numpy(self.actions[rows] * valid[:, :, None]),
            torch.from_numpy(length),
            torch.from_numpy(weight.astype(np.float32)),
            torch.from_numpy(self.summary[rows] * valid[:, :, None]),
        )

    def answered_rows(self, index: np.ndarray) -> np.ndarray:
        """Rows of the answered slots of some sessions, one session after the other."""
        count = self.answered[index]
        first = np.cumsum(count) - count
        return np.repeat(self.starts[index] - first, count) + np.arange(count.sum())

    def cards(self, rows: np.ndarray) -> np.ndarray:
        """Features and one-hot type of the cards at some placed slots (...) int64, (..., F + T) float32."""
        item = self.item[rows]
        types = np.eye(self.n_types, dtype=np.float32)
        return np.concatenate(
            [self.catalog.embeddings[item], self.scalars[rows], types[self.catalog.card_type[item]]], axis=-1
        )


def _flags(table: pa.Table, name: str) -> np.ndarray:
    """A nullable boolean column as 0 and 1, null = 0."""
    return table[name].fill_null(False).to_numpy().astype(np.float32)


def _lists(table: pa.Table, name: str, size: int) -> np.ndarray:
    """A nullable list column as (P, size) float32, null = zeros."""
    column = table[name].combine_chunks()
    present = column.is_valid().to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().drop_null().to_numpy(zero_copy_only=False)
    if len(lengths) and not (lengths == size).all():
        wrong = lengths[lengths != size][0]
        raise InputError(f"log: column {name!r} must hold lists of {size} numbers, found one of {wrong}")
    values = np.zeros((len(column), size), np.float32)
    values[present] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
    return values


def _context(
    table: pa.Table, starts: np.ndarray, row_session: np.ndarray, click: np.ndarray, config: FeedConfig
) -> np.ndarray:
    """Columns of Focus.context, (P, 8), as the feed writes them while it plays."""
    slot = table["slot"].to_numpy()
    rows, first = np.arange(len(slot)), starts[row_session]
    last_view = np.maximum.accumulate(np.where(click > 0, rows, -1))
    last_view = np.concatenate([[-1], last_view])[:-1]  # before this row
    before = np.concatenate([[0], np.cumsum(click)])
    context = np.zeros((len(slot), CONTEXT_SIZE), np.float32)
    context[:, SLOT] = slot
    context[:, PAGE_AGE] = table["page_age"].to_numpy()
    context[:, PAGE_REQUESTED] = table["page_requested"].to_numpy()
    context[:, HOUR] = table["hour"].to_numpy()
    context[:, N_EXPOSURES] = rows - first
    context[:, N_PAGE_VIEWS] = before[rows] - before[first]
    context[:, SINCE_PAGE_VIEW] = np.where(last_view >= first, rows - last_view, config.max_slots)
    context[:, LAST_CLICKED] = (rows > first) & (last_view == rows - 1)
    return context


def _page_summary(
    scalars: np.ndarray, page: np.ndarray, row_session: np.ndarray, config: FeedConfig
) -> np.ndarray:
    """Columns of Focus.pages for each slot, (P, 5), over the cards of its page that were placed."""
    first = (np.diff(row_session, prepend=-1) != 0) | (np.diff(page, prepend=-1) != 0)
    of, starts = np.cumsum(first) - 1, np.flatnonzero(first)
    size = np.diff(np.append(starts, len(page)))
    ctr = np.clip(scalars[:, 1], LEAST_CTR, 1 - LEAST_CTR)
    values = np.column_stack([scalars[:, 0], np.log(ctr / (1 - ctr)), scalars[:, 2:]])
    means = np.add.reduceat(values, starts, axis=0, dtype=np.float64) / size[:, None]
    return np.column_stack([means, np.log(size / config.page_size)]).astype(np.float32)[of]


class SessionStream:
    """The sessions of some days of a log.

    Args:
        reader: the log.
        days: days to read; None = all.
        keep: tells from session ids (S,) int64 which to keep; None = all.
        cached_slots: read once and keep if there are at most so many slots.
    """

    def __init__(
        self,
        reader: LogReader,
        days: list[int] | None,
        keep: Callable[[np.ndarray], np.ndarray] | None = None,
        cached_slots: int = CACHED_SLOTS,
    ) -> None:
        self.reader, self.days, self.keep, self.cached_slots = reader, days, keep, cached_slots
        self._cache: list[Sessions] | None = None

    def chunks(self) -> Iterator[Sessions]:
        """Yield all sessions, as one chunk if they fit, else as one chunk a part of the log."""
        if self._cache is not None:
            yield from self._cache
            return
        waiting: list[Sessions] = []
        streaming, slots = False, 0
        for table in self.reader.batches(COLUMNS, self.days):
            chunk = Sessions.from_table(table, self.reader.config, self.reader.catalog)
            if self.keep is not None:
                chunk = chunk.select(np.flatnonzero(self.keep(chunk.session)))
            if not len(chunk):
                continue
            slots += len(chunk.item)
            waiting.append(chunk)
            streaming = streaming or slots > self.cached_slots
            if streaming:
                yield from waiting
                waiting = []
        if not streaming and waiting:
            self._cache = [Sessions.concatenate(waiting)]
            yield from self._cache


def plan_batches(length: np.ndarray, slots: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Group sessions of like length, at most about `slots` padded slots a batch, in random order.

    Args:
        length: (S,) answered slots; sessions of length 0 are left out.
        slots: padded slots in a batch (a longer session is a batch of its own).
        rng: draws the grouping and the order.

    Returns:
        Arrays of session indices.
    """
    order = np.flatnonzero(length > 0)
    order = order[np.argsort(length[order] * rng.uniform(0.9, 1.1, len(order)))]
    batches, start = [], 0
    while start < len(order):
        longest, stop = 0, start
        while stop < len(order):
            longest = max(longest, int(length[order[stop]]))
            if stop > start and longest * (stop + 1 - start) > slots:
                break
            stop += 1
        batches.append(order[start:stop])
        start = stop
    return [batches[k] for k in rng.permutation(len(batches))]
