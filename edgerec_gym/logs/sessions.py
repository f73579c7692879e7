"""Logs as concatenated sessions: the inputs that the environment would have built, and the answers.

A log that fits into memory is read once; a larger one is read again in every epoch, part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from edgerec_gym.answers import (
    CLICK,
    CONTEXT_SIZE,
    DELETE_REASON,
    DISLIKED,
    DWELL_BUCKETS,
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
    RESPONSE_SIZE,
    SINCE_PAGE_VIEW,
    SLOT,
    negative_responses,
)
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.logs.store import LogReader
from edgerec_gym.spaces import LEAST_CTR
from edgerec_gym.users.learned_layout import LEVELS, N_ACTIONS

SCALAR_COLUMNS = ["price_level", "base_ctr", "base_cvr", "freshness"]
COLUMNS = [
    "session", "hour", "slot", "item", "page", "page_age", "page_requested", "user_features",
    *SCALAR_COLUMNS, "answered", "exposure_actions", "click", "page_view_actions", "leave", "day",
    "item_columns", "embedding_known", "responses",
]  # fmt: skip
PER_SESSION = ("answered", "session", "day", "user")  # fields of LoggedSessions
PER_SLOT = (
    "item", "scalars", "columns", "known", "page", "context", "summary", "actions", "responses",
)  # fmt: skip
CACHED_SLOTS = 4_000_000  # about 0.6 GB; a larger log is streamed
HELD_OUT_SHARE = 7  # one day in 7 is held out, the last ones; if there is only one day, one session in 7
STOPPING_SHARE = 10  # one in 10 of the other sessions decides when to stop and is not trained on
# Number of levels of each action: e1..e6, click, d1..d11, leave.
ACTION_LEVELS = np.array(
    [DWELL_BUCKETS, *LEVELS, 2, PAGE_VIEW_BUCKETS, *[2] * (N_PAGE_VIEW_ACTIONS - 1), 2], np.float32
)


@dataclass(frozen=True)
class LoggedSessions:
    """Whole sessions, concatenated (S sessions, P placed slots).

    Attributes:
        catalog: holds the embeddings and types of the items.
        n_types: T.
        starts: (S + 1,) int64 first placed slot of each session, then P.
        answered: (S,) int64 number of answered slots, which come first in a session.
        session: (S,) int64 ids in the log.
        day: (S,) int32.
        user: (S, U) float32.
        item: (P,) int32.
        scalars: (P, 4) float32.
        columns: (P, C) float32, item columns as shipped with the page; C = 0 if those of the catalogue hold.
        known: (P,) bool, whether the item's embedding was known when its page was shown.
        page: (P,) int32.
        context: (P, 8) float32, columns of answers.py.
        summary: (P, 5) float32, of each slot's page (answers.py).
        actions: (P, 19) float32 response rows up to `leave`; zero where not answered or unknown.
        responses: (P, R) float32 named responses in 0..1; zero where not answered or unknown.
    """

    catalog: Catalog
    n_types: int
    starts: np.ndarray
    answered: np.ndarray
    session: np.ndarray
    day: np.ndarray
    user: np.ndarray
    item: np.ndarray
    scalars: np.ndarray
    columns: np.ndarray
    known: np.ndarray
    page: np.ndarray
    context: np.ndarray
    summary: np.ndarray
    actions: np.ndarray
    responses: np.ndarray

    def __len__(self) -> int:
        return len(self.answered)

    @property
    def slots(self) -> int:
        """Number of answered slots."""
        return int(self.answered.sum())

    @classmethod
    def from_table(cls, table: pa.Table, config: FeedConfig, catalog: Catalog) -> LoggedSessions:
        """Read rows of the log schema (whole sessions, slots in order); InputError names what is wrong."""
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
        responses = np.zeros((len(session), config.n_responses), np.float32)
        if config.responses:
            responses[answered] = _lists(table, "responses", config.n_responses)[answered]
        scalars = np.stack([table[c].to_numpy() for c in SCALAR_COLUMNS], 1).astype(np.float32)
        page = table["page"].to_numpy().astype(np.int32)
        return cls(
            catalog=catalog,
            n_types=config.n_types,
            starts=starts,
            answered=np.add.reduceat(answered.astype(np.int64), first),
            session=session[first],
            day=table["day"].to_numpy()[first].astype(np.int32),
            user=_lists(table, "user_features", config.n_user_features)[first],
            item=table["item"].to_numpy().astype(np.int32),
            scalars=scalars,
            columns=_item_columns(table, catalog),
            known=_known(table),
            page=page,
            context=_context(table, starts, row_session, actions[:, CLICK], config),
            summary=_page_summary(scalars, page, row_session, config),
            actions=actions,
            responses=responses,
        )

    @classmethod
    def concatenate(cls, parts: list[LoggedSessions]) -> LoggedSessions:
        """Concatenate parts of one log."""
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

    def select(self, index: np.ndarray) -> LoggedSessions:
        """Return some sessions, in the given order."""
        length = np.diff(self.starts)[index]
        starts = np.concatenate([[0], np.cumsum(length)])
        rows = np.repeat(self.starts[index] - starts[:-1], length) + np.arange(starts[-1])
        return LoggedSessions(
            self.catalog,
            self.n_types,
            starts,
            *(getattr(self, name)[index] for name in PER_SESSION),
            *(getattr(self, name)[rows] for name in PER_SLOT),
        )

    def answered_rows(self, index: np.ndarray) -> np.ndarray:
        """Return the rows of the answered slots of some sessions, one session after the other."""
        count = self.answered[index]
        first = np.cumsum(count) - count
        return np.repeat(self.starts[index] - first, count) + np.arange(count.sum())

    def cards(self, rows: np.ndarray) -> np.ndarray:
        """Return features and one-hot types of the cards at slots (...) int64, (..., F + T) float32."""
        item, catalog = self.item[rows], self.catalog
        session = self.session[self.session_of(rows)]
        columns = self.columns[rows] if self.columns.shape[1] else catalog.columns_of(item, session)
        types = np.eye(self.n_types, dtype=np.float32)[catalog.card_type[item]]
        embeddings = catalog.embeddings[item] * self.known[rows][..., None]
        return np.concatenate([embeddings, self.scalars[rows], columns, types], axis=-1)

    def exposure_actions(self, config: FeedConfig) -> np.ndarray:
        """Return e1..e6 and the named responses of each slot as the feed shows them, (P, 6 + R) float32."""
        values = np.concatenate([self.actions[:, :N_EXPOSURE_ACTIONS], self.responses], axis=1)
        negative = self.responses[:, negative_responses(config) - RESPONSE_SIZE]
        disliked = (negative > 0).any(axis=1)
        values[disliked, DELETE_REASON] = np.maximum(values[disliked, DELETE_REASON], DISLIKED)
        return values

    def session_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the index of the session of each slot (...), (...) int64."""
        return self._session_of_slot[rows]

    @cached_property
    def _session_of_slot(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def candidates(self, items: np.ndarray, session: np.ndarray) -> np.ndarray:
        """Return features of candidates (R, N) int64 of sessions (R,), (R, N, F) float32.

        The base ctr is the catalogue's base logit, which the caller replaces.
        """
        catalog = self.catalog
        columns = catalog.columns_of(items, self.session[session][:, None])
        return np.concatenate([catalog.embeddings[items], catalog.scalars[items], columns], axis=2)


def _item_columns(table: pa.Table, catalog: Catalog) -> np.ndarray:
    """Return the item columns that were shipped with the pages, (P, C) float32; C = 0 if the log has none."""
    name = "item_columns"
    if name not in table.column_names or table[name].null_count == table.num_rows:
        return np.zeros((table.num_rows, 0), np.float32)
    return _lists(table, name, catalog.columns.shape[1])


def _known(table: pa.Table) -> np.ndarray:
    """Return whether the items' embeddings were known, (P,) bool; all were in a log that does not tell."""
    name = "embedding_known"
    if name not in table.column_names:
        return np.ones(table.num_rows, np.bool_)
    known: np.ndarray = table[name].fill_null(True).to_numpy()
    return known


def _flags(table: pa.Table, name: str) -> np.ndarray:
    """Return a nullable boolean column as 0 and 1, null = 0."""
    return table[name].fill_null(False).to_numpy().astype(np.float32)


def _lists(table: pa.Table, name: str, size: int) -> np.ndarray:
    """Return a nullable list column as (P, size) float32, null = zeros."""
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
    """Return the columns of Focus.context, (P, 8), as the feed writes them while it plays."""
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
    """Return the columns of Focus.pages for each slot, (P, 5), over the placed cards of its page."""
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
        keep: maps session ids (S,) int64 to a mask of those to keep; None = all.
        cached_slots: maximum number of slots that are read once and kept in memory.
    """

    def __init__(
        self,
        reader: LogReader,
        days: list[int] | None,
        keep: Callable[[np.ndarray], np.ndarray] | None = None,
        cached_slots: int = CACHED_SLOTS,
    ) -> None:
        self.reader, self.days, self.keep, self.cached_slots = reader, days, keep, cached_slots
        self._cache: list[LoggedSessions] | None = None

    def chunks(self) -> Iterator[LoggedSessions]:
        """Yield all sessions, as one chunk if they fit into memory, else in one chunk per batch read."""
        if self._cache is not None:
            yield from self._cache
            return
        waiting: list[LoggedSessions] = []
        streaming, slots = False, 0
        for table in self.reader.batches(COLUMNS, self.days):
            chunk = LoggedSessions.from_table(table, self.reader.config, self.reader.catalog)
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
            self._cache = [LoggedSessions.concatenate(waiting)]
            yield from self._cache


def days_of(reader: LogReader, held_out_from: int | None) -> tuple[list[int], int | None]:
    """Return the days of a log and the first that is held out, by default the last seventh of the days.

    None for a log of one day, which holds out sessions instead.
    """
    days = sorted({int(d) for table in reader.batches(["day"]) for d in np.unique(table["day"].to_numpy())})
    if held_out_from is None and len(days) > 1:
        held_out_from = days[-max(1, round(len(days) / HELD_OUT_SHARE))]
    return days, held_out_from


def split_sessions(
    reader: LogReader, held_out_from: int | None
) -> tuple[SessionStream, SessionStream, SessionStream]:
    """Return the sessions to train on, those that decide when to stop, and those held out (last days)."""
    days, held_out_from = days_of(reader, held_out_from)
    if held_out_from is None:
        early, late, share = None, None, HELD_OUT_SHARE
    else:
        early, late = [d for d in days if d < held_out_from], [d for d in days if d >= held_out_from]
        share = 1
        if not early or not late:
            raise InputError(
                f"held_out_from = {held_out_from} leaves no days on one side; "
                f"the log has days {days[0]} to {days[-1]}"
            )

    def stream(days: list[int] | None, part: str) -> SessionStream:
        def keep(session: np.ndarray) -> np.ndarray:
            held_out = session % share == 0 if early is None else np.full(len(session), part == "held out")
            stopping = ~held_out & (session // share % STOPPING_SHARE == 0)
            return {"train": ~held_out & ~stopping, "stop": stopping, "held out": held_out}[part]

        return SessionStream(reader, days, keep=keep)

    return stream(early, "train"), stream(early, "stop"), stream(late, "held out")
