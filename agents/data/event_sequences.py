"""Whole sessions of a log as padded sequences, with item ids and what their users clicked on earlier days.

The phone forgets a session and knows no ids; the cloud keeps both. Here are the same events at the same
moments as in :class:`~edgerec_gym.agents.data.observed_log.ObservedLog`, for models that run in the cloud.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from edgerec_gym.agents.data.log_stream import Keep, LogStream, split_stream
from edgerec_gym.agents.data.observed_log import ObservedLog
from edgerec_gym.answers import CLICK, LEAVE
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Observation

ABSENT = 0  # id of padding; catalogue row k has the id k + 1


class UserHistory:
    """What users clicked, by day.

    Args:
        user: (E,) int64 user of each click.
        day: (E,) int64.
        item: (E,) int64 catalogue row.
        order: (E,) int64 place in the log, which orders the clicks of a day.
    """

    def __init__(self, user: np.ndarray, day: np.ndarray, item: np.ndarray, order: np.ndarray) -> None:
        by = np.lexsort((order, day, user))
        self.user, self.day, self.item = user[by], day[by], item[by]

    @classmethod
    def read(cls, reader: LogReader, keep: Keep | None = None) -> UserHistory:
        """Read the clicks of a log, of the sessions that `keep` selects by id."""
        parts: list[np.ndarray] = []
        for table in reader.batches(["session", "user", "day", "item", "click"]):
            chosen = table["click"].fill_null(False).to_numpy()
            if keep is not None:
                chosen = chosen & keep(table["session"].to_numpy())
            parts.append(np.stack([table[c].to_numpy()[chosen] for c in ("user", "day", "item")]))
        user, day, item = np.concatenate(parts, axis=1)
        return cls(user, day, item, np.arange(len(user)))

    def earlier(self, user: np.ndarray, day: np.ndarray, size: int) -> np.ndarray:
        """Return the ids of the last `size` clicks before `day` (B,) of `user` (B,), (B, size) int64.

        The latest comes last; :data:`ABSENT` in front where there are fewer. Clicks of the same day do not
        count, since a log does not tell which of its sessions came first.
        """
        span = int(self.day.max(initial=0)) + 2
        code = self.user * span + np.minimum(self.day, span - 1)
        end = np.searchsorted(code, user * span + np.clip(day, 0, span - 1))
        start = np.searchsorted(self.user, user)
        at = end[:, None] - size + np.arange(size)
        present = at >= start[:, None]
        return np.where(present, self.item[np.where(present, at, 0)] + 1 if len(self.item) else 0, ABSENT)


@dataclass(frozen=True)
class SequenceBatch:
    """B sessions, padded to T slots; slots are in order and padding comes last.

    Attributes:
        ids: (B, T) int64 item at each slot, :data:`ABSENT` for padding.
        cards: (B, T, F + T) float32 features as shipped, with the card's type.
        actions: (B, T, A) float32 in 0..1, what the user did: e1..e6, responses, click, d1..d11.
        known: (B, T) int64 number of cards whose answers are known before a slot is filled.
        context: (B, T, C) float32 as in the observation.
        user: (B, U) float32.
        earlier: (B, H) int64 ids clicked on earlier days, padded in front.
        target: (B, T) bool, answered goods of the pool.
        click: (B, T) float32.
    """

    ids: np.ndarray
    cards: np.ndarray
    actions: np.ndarray
    known: np.ndarray
    context: np.ndarray
    user: np.ndarray
    earlier: np.ndarray
    target: np.ndarray
    click: np.ndarray


@dataclass(frozen=True)
class PageBatch:
    """R moments at which a page's candidates are ranked.

    Attributes:
        session: (R,) int64 row of the :class:`SequenceBatch` made with it.
        known: (R,) int64 number of known answers.
        ids: (R, N) int64 candidates, :data:`ABSENT` where used up.
        pool: (R, N, F) float32, zero where used up.
        context: (R, C) float32.
    """

    session: np.ndarray
    known: np.ndarray
    ids: np.ndarray
    pool: np.ndarray
    context: np.ndarray


def n_event_actions(exposure_actions: int) -> int:
    """Return A, given the number of exposure actions with responses."""
    return exposure_actions + LEAVE - CLICK


class SessionSequences:
    """The sessions of one chunk of a log, batched on demand.

    Args:
        log: the chunk.
        history: earlier clicks.
        earlier: H, how many of them to give.
    """

    def __init__(self, log: ObservedLog, history: UserHistory, earlier: int) -> None:
        self.log, self.history, self.n_earlier = log, history, earlier
        sessions = log.sessions
        rest = sessions.actions[:, CLICK:LEAVE]
        self.actions = np.concatenate([log.exposures, rest], axis=1).astype(np.float32)
        length = np.diff(sessions.starts)
        self.session_of = np.repeat(np.arange(len(length)), length)
        slot = np.arange(len(self.session_of)) - sessions.starts[self.session_of]
        self.answered = slot < sessions.answered[self.session_of]
        self.known = np.clip(slot - log.config.lookahead, 0, sessions.answered[self.session_of])
        self.target = self.answered & (log.pages.pool_row >= 0)

    def __len__(self) -> int:
        return len(self.log.sessions)

    def batch(self, index: np.ndarray) -> SequenceBatch:
        """Build the batch of the sessions `index` (B,)."""
        log, sessions = self.log, self.log.sessions
        begin, length = sessions.starts[index], np.diff(sessions.starts)[index]
        size = int(length.max())
        there = np.arange(size) < length[:, None]
        rows = np.where(there, begin[:, None] + np.arange(size), 0)
        flat = rows[there]
        begins, known = sessions.starts[self.session_of[flat]], self.known[flat]
        values = log.context(begins, flat, known)
        context = np.zeros((*rows.shape, values.shape[1]), np.float32)
        context[there] = values
        shown = there & self.answered[rows]
        return SequenceBatch(
            ids=np.where(there, sessions.item[rows].astype(np.int64) + 1, ABSENT),
            cards=sessions.cards(rows) * there[..., None],
            actions=self.actions[rows] * shown[..., None],
            known=np.where(there, self.known[rows], 0),
            context=context,
            user=sessions.user[index],
            earlier=self.history.earlier(log.user[index], sessions.day[index], self.n_earlier),
            target=there & self.target[rows],
            click=(sessions.actions[rows, CLICK] * shown).astype(np.float32),
        )

    def moments(self, session: np.ndarray, slot: np.ndarray) -> tuple[SequenceBatch, PageBatch]:
        """Build the moments before `slot` (R,) of `session` (R,), and the sessions that they belong to."""
        log = self.log
        index, row = np.unique(session, return_inverse=True)
        now = log.sessions.starts[session] + slot
        observed: Observation = log.observations(session, slot)
        pool = observed["pool"]
        present = (pool != 0).any(-1)
        ids = np.where(present, log.pages.candidates[log.pages.of_slot[now]] + 1, ABSENT)
        page = PageBatch(row, self.known[now], ids, pool, observed["context"])
        return self.batch(index), page


class SequenceStream(LogStream[SessionSequences]):
    """The sessions of some days of a log, with ids.

    Args:
        reader: the log.
        days: days to read; None reads all.
        keep: maps session ids (S,) int64 to a bool mask of those to keep.
        history: earlier clicks.
        earlier: H.
        cached_slots: largest number of slots that is cached in memory.
    """

    def __init__(
        self,
        reader: LogReader,
        days: list[int] | None,
        keep: Keep,
        *,
        history: UserHistory,
        earlier: int,
        cached_slots: int | None = None,
    ) -> None:
        super().__init__(reader, days, keep, 0, cached_slots)
        self.history, self.earlier = history, earlier

    def _chunk(self, table: pa.Table, log: ObservedLog, rng: np.random.Generator) -> SessionSequences:
        return SessionSequences(log, self.history, self.earlier)


def split_sequences(
    reader: LogReader, history: UserHistory, earlier: int, held_out_from: int | None = None
) -> Sequence[SequenceStream]:
    """Split a log into training, early stopping and held-out streams, as re-rankers do."""
    return split_stream(SequenceStream, reader, held_out_from, history=history, earlier=earlier)


def page_arrivals(log: ObservedLog) -> tuple[np.ndarray, np.ndarray]:
    """Return session index and slot (R,) int64 each at which a page arrived."""
    first = log.pages.first
    session = log.sessions.session_of(first)
    return session, first - log.sessions.starts[session]
