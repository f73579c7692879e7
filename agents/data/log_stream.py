"""Parts of a log as chunks of whole sessions, cached in memory if they fit, else read anew each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa

from edgerec_gym.agents.data.observed_log import OBSERVED_COLUMNS, ObservedLog
from edgerec_gym.logs.sessions import LoggedSessions, split_sessions
from edgerec_gym.logs.store import LogReader

CHUNK_SLOTS = 200_000  # read and shuffled together; about 100 MB with the paper's sizes

Chunk = TypeVar("Chunk")
Stream = TypeVar("Stream", bound="LogStream[Any]")
Keep = Callable[[np.ndarray], np.ndarray]  # session ids (S,) int64 -> (S,) bool


class LogStream(Generic[Chunk]):
    """Training data from some days of a log, one chunk of sessions at a time.

    A subclass builds the chunks, and may read other columns or cache another number of slots.

    Args:
        reader: the log.
        days: days to read; None reads all.
        keep: maps session ids (S,) int64 to a bool mask of those to keep.
        seed: seed of the random draws in each chunk.
        cached_slots: largest number of slots that is cached in memory; None uses the class's default.
    """

    columns: ClassVar[list[str]] = OBSERVED_COLUMNS
    cached_slots: int = 2_000_000

    def __init__(
        self, reader: LogReader, days: list[int] | None, keep: Keep, seed: int, cached_slots: int | None
    ) -> None:
        self.reader, self.days, self.keep, self.seed = reader, days, keep, seed
        if cached_slots is not None:
            self.cached_slots = cached_slots
        self._cache: list[Chunk] | None = None

    def chunks(self) -> Iterator[Chunk]:
        """Yield all chunks, in the order of the log."""
        if self._cache is not None:
            yield from self._cache
            return
        kept: list[Chunk] = []
        slots, config = 0, self.reader.config
        for table in log_tables(self.reader, self.days, self.keep, self.columns):
            log = ObservedLog(table, LoggedSessions.from_table(table, config, self.reader.catalog), config)
            rng = np.random.default_rng([self.seed, int(log.sessions.session[0])])
            chunk = self._chunk(table, log, rng)
            slots += table.num_rows
            if slots <= self.cached_slots:
                kept.append(chunk)
            else:
                kept.clear()
            yield chunk
        if slots <= self.cached_slots:
            self._cache = kept

    def _chunk(self, table: pa.Table, log: ObservedLog, rng: np.random.Generator) -> Chunk:
        raise NotImplementedError


def log_tables(
    reader: LogReader, days: list[int] | None, keep: Keep, columns: list[str]
) -> Iterator[pa.Table]:
    """Yield tables of about :data:`CHUNK_SLOTS` rows: whole sessions that `keep` selects by id."""
    waiting: list[pa.Table] = []
    for table in reader.batches(columns, days):
        kept = table.filter(pa.array(keep(table["session"].to_numpy())))
        if kept.num_rows:
            waiting.append(kept)
        if sum(part.num_rows for part in waiting) >= CHUNK_SLOTS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def split_stream(
    make: Callable[..., Stream], reader: LogReader, held_out_from: int | None, **settings: Any
) -> tuple[Stream, Stream, Stream]:
    """Split a log into training, early stopping and held-out streams, the last one by day.

    The split is the same as for learned users (:func:`~edgerec_gym.logs.sessions.split_sessions`).

    Args:
        make: called as make(reader, days, keep, **settings).
        reader: the log.
        held_out_from: first held-out day; by default, the last seventh of the days is held out.
        **settings: settings of the stream.
    """
    if held_out_from is None:
        held_out_from = reader.provenance.get("first_validation_day")
    train, stop, held_out = (
        make(reader, part.days, part.keep, **settings) for part in split_sessions(reader, held_out_from)
    )
    return train, stop, held_out
