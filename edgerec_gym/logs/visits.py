"""A sample of a log's visits: what was on offer, to whom and when (cloud/supply.py)."""

from __future__ import annotations

import numpy as np

from edgerec_gym.answers import HOUR
from edgerec_gym.cloud.supply import Supply
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.logs.sessions import LoggedSessions, SessionStream, split_sessions
from edgerec_gym.logs.store import LogReader

MOST_VISITS = 20_000  # of a period; of more, a sample
MOST_ENTRIES = 1_000_000  # of a period


def needs_supply(config: FeedConfig, unidentified: tuple[str, ...]) -> bool:
    """Whether sessions play logged visits: for their pages, or as nothing else tells when users leave."""
    return config.cloud.supply != "catalogue" or "leave" in unidentified


def sample_visits(reader: LogReader, held_out_from: int | None, seed: int) -> Supply:
    """Sample the visits of a log, some of the days before the held-out ones and some of these.

    Args:
        reader: the log.
        held_out_from: first held-out day; None for the rule of `split_sessions`.
        seed: seed of the sample.

    Raises:
        InputError: a period has no visit with an answered slot on a page with goods.
    """
    train, stop, held_out = split_sessions(reader, held_out_from)
    known_leave = "leave" not in reader.unidentified
    periods = []
    for number, streams in enumerate(((train, stop), (held_out,))):
        found = _sampled(streams, np.random.default_rng([seed, 4, number]))
        if found is None:
            raise InputError(f"{reader.folder} has no visit with goods on one side of the held-out days")
        periods.append(found)
    sessions = LoggedSessions.concatenate(periods)
    rows = np.arange(len(sessions.item))
    owner = sessions.session_of(rows)
    first = np.diff(owner, prepend=-1) + np.abs(np.diff(sessions.page, prepend=-1)) > 0
    page = np.cumsum(first) - 1
    # A page without goods leaves nothing to choose from.
    with_goods = np.bincount(page, sessions.catalog.card_type[sessions.item] == 0) > 0
    kept = with_goods[page]
    page, owner = np.unique(page[kept], return_inverse=True)[1], owner[kept]
    page_owner = owner[np.flatnonzero(np.diff(page, prepend=-1))]
    columns = sessions.columns if sessions.columns.shape[1] else sessions.catalog.columns[sessions.item]
    return Supply(
        features=sessions.user,
        hour=sessions.context[sessions.starts[:-1], HOUR].astype(np.int32),
        day=sessions.day,
        slots=np.zeros(len(sessions), np.int32) if known_leave else sessions.answered.astype(np.int32),
        first_page=np.searchsorted(page_owner, np.arange(len(sessions) + 1)).astype(np.int64),
        first_entry=np.append(np.flatnonzero(np.diff(page, prepend=-1)), len(page)).astype(np.int64),
        item=sessions.item[kept],
        values=np.concatenate([sessions.scalars, columns], axis=1)[kept],
        held_out=len(periods[0]),
    )


def _sampled(streams: tuple[SessionStream, ...], rng: np.random.Generator) -> LoggedSessions | None:
    """Return a sample of the sessions with answers and goods, sorted by day; None if there are none."""
    kept: LoggedSessions | None = None
    draws = np.zeros(0)
    for stream in streams:
        for chunk in stream.chunks():
            goods = np.add.reduceat(chunk.catalog.card_type[chunk.item] == 0, chunk.starts[:-1])
            usable = np.flatnonzero((chunk.answered > 0) & (goods > 0))
            if not len(usable):
                continue
            new = chunk.select(usable)
            draws = np.concatenate([draws, rng.random(len(new))])
            kept = new if kept is None else LoggedSessions.concatenate([kept, new])
            lowest = np.sort(np.argsort(draws, kind="stable")[:MOST_VISITS])
            entries = np.diff(kept.starts)[lowest]
            share = entries.sum() / MOST_ENTRIES
            if share > 1:  # as many of the lowest draws as fit
                fewer = np.argsort(draws[lowest], kind="stable")[: int(len(lowest) / share)]
                lowest = lowest[np.sort(fewer)]
            if len(lowest) < len(kept):
                kept, draws = kept.select(lowest), draws[lowest]
    if kept is None:
        return None
    return kept.select(np.lexsort((kept.session, kept.day)))
