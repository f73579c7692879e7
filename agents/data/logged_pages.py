"""The pages of a log as the cloud shipped them: candidates, base ctr, and when each was placed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from edgerec_gym.answers import CLICK, PAGE_VIEW
from edgerec_gym.cloud.interest import DWELL_CENTRE
from edgerec_gym.config import FeedConfig
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.policy import NOT_SHOWN

NOT_IN_POOL = -1
BLOCK = 256  # pages processed at once, to bound memory
BASE_LOGIT, BASE_CTR = 1, 1  # columns of the catalogue's and of the log's item scalars


@dataclass(frozen=True)
class LoggedPages:
    """The pages of some sessions (P placed slots, G pages, N pool rows).

    Attributes:
        of_slot: (P,) int64 page of each placed slot.
        first: (G,) int64 first placed slot of each page.
        candidates: (G, N) int64 catalogue rows in cloud order, -1 where a page is shorter.
        base_ctr: (G, N) float32 base ctr as shipped.
        pool_row: (P,) int64 pool row placed at each slot, -1 for a mix-in card.
        shown_at: (G, N) int64 placed slot at which a candidate was shown, -1 if it was not.
        sent: (G,) int64 placed slot at which the request for the next page was sent; P if none was.
    """

    of_slot: np.ndarray
    first: np.ndarray
    candidates: np.ndarray
    base_ctr: np.ndarray
    pool_row: np.ndarray
    shown_at: np.ndarray
    sent: np.ndarray

    @classmethod
    def from_table(cls, table: pa.Table, sessions: LoggedSessions, config: FeedConfig) -> LoggedPages:
        """Read the pages from a table of the log schema and the sessions made from it.

        A page without logged candidates (imported logs) consists of the goods that it showed: at the rows
        that the logged actions tell, else in the order in which they were shown. A candidate's
        base ctr is the logged one where the log holds it (`candidate_ctr`) or where it was placed, else the
        cloud's score (:class:`~edgerec_gym.config.CloudConfig`) for the user and the behaviour that had been
        synchronised when the page was requested.
        """
        page = table["page"].to_numpy()
        start = np.zeros(len(page), np.bool_)
        start[sessions.starts[:-1]] = True
        start[1:] |= page[1:] != page[:-1]
        first = np.flatnonzero(start)
        of_slot = np.cumsum(start) - 1
        candidates, logged = _candidates(table, sessions, first, of_slot, config)
        goods = sessions.catalog.card_type[sessions.item] == 0
        pool_row = pool_rows(sessions.item, goods, candidates[of_slot])
        base_ctr = np.zeros(candidates.shape, np.float32)
        if logged.any():
            base_ctr[logged] = cloud_scores(sessions, candidates, first, of_slot, config)[logged]
        _read_scores(table, first, base_ctr)
        placed = np.flatnonzero(pool_row >= 0)
        base_ctr[of_slot[placed], pool_row[placed]] = sessions.scalars[placed, BASE_CTR]
        shown_at = np.full(candidates.shape, NOT_SHOWN, np.int64)
        shown_at[of_slot[placed[::-1]], pool_row[placed[::-1]]] = placed[::-1]  # the first time counts
        sends = table["request"].to_numpy() | (
            table["page_age"].to_numpy() >= config.page_size - config.request_latency
        )
        sent = np.minimum.reduceat(np.where(sends, np.arange(len(page)), len(page)), first)
        return cls(of_slot, first, candidates, base_ctr, pool_row, shown_at, sent)


def with_candidates(table: pa.Table, sessions: LoggedSessions, config: FeedConfig) -> pa.Table:
    """Return the table with the candidates of all its pages, as :meth:`LoggedPages.from_table` reads them."""
    pages = LoggedPages.from_table(table, sessions, config)
    lists: list[list[int] | None] = [None] * table.num_rows
    for first, row in zip(pages.first, pages.candidates, strict=True):
        lists[first] = row[: int(np.flatnonzero(row >= 0).max(initial=-1)) + 1].tolist()
    at = table.column_names.index("candidates")
    return table.set_column(at, "candidates", pa.array(lists, pa.list_(pa.int32())))


def _candidates(
    table: pa.Table, sessions: LoggedSessions, first: np.ndarray, of_slot: np.ndarray, config: FeedConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return candidates (G, N), -1 where absent, and whether each page's candidates were logged (G,)."""
    column = table["candidates"].combine_chunks().take(pa.array(first))
    logged = column.is_valid().to_numpy(zero_copy_only=False)
    candidates = np.full((len(first), config.pool_size), NOT_IN_POOL, np.int64)
    lengths = np.where(logged, column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), 0)
    page = np.repeat(np.arange(len(first)), lengths)
    at = np.arange(len(page)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    fits = at < config.pool_size
    items = column.flatten().to_numpy(zero_copy_only=False)
    candidates[page[fits], at[fits]] = items[fits]
    goods = np.flatnonzero((sessions.catalog.card_type[sessions.item] == 0) & ~logged[of_slot])
    page = of_slot[goods]
    at = np.arange(len(goods)) - np.searchsorted(page, page)  # in display order
    if not table["action"].null_count:
        action = table["action"].to_numpy()[goods].astype(np.int64)
        if (action < config.pool_size).all():  # else requests are actions, too, and not all are pool rows
            at = action
    fits = at < config.pool_size
    candidates[page[fits], at[fits]] = sessions.item[goods[fits]]
    return candidates, logged


def _read_scores(table: pa.Table, first: np.ndarray, base_ctr: np.ndarray) -> None:
    """Write the base ctr of candidates (G, N) where the log holds it."""
    if "candidate_ctr" not in table.column_names:
        return
    column = table["candidate_ctr"].combine_chunks().take(pa.array(first))
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    page = np.repeat(np.arange(len(first)), lengths)
    at = np.arange(len(page)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    fits = at < base_ctr.shape[1]
    base_ctr[page[fits], at[fits]] = column.flatten().to_numpy(zero_copy_only=False)[fits]


def pool_rows(item: np.ndarray, goods: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the row of each placed item (P,) among its page's candidates (P, N), -1 if it is not there."""
    found = candidates == item[:, None]
    return np.where(goods & found.any(axis=1), found.argmax(axis=1), NOT_IN_POOL)


def cloud_scores(
    sessions: LoggedSessions,
    candidates: np.ndarray,
    first: np.ndarray,
    of_slot: np.ndarray,
    config: FeedConfig,
) -> np.ndarray:
    """Return the base ctr that the cloud ships with every page, (G, N) float32."""
    cloud, d = config.cloud, config.embedding_size
    session = np.searchsorted(sessions.starts, first, side="right") - 1
    begin = sessions.starts[session]
    interest = _interests(sessions, begin, _synchronised(sessions, session, first - begin, config), config)
    scale = cloud.recent_weight / (1.0 + np.linalg.norm(interest, axis=1, keepdims=True))
    query = cloud.long_term_weight * sessions.user[session, :d] + scale * interest
    catalog = sessions.catalog
    logits = np.einsum("gd,gnd->gn", query, catalog.embeddings[candidates], dtype=np.float64)
    logits += catalog.scalars[candidates, BASE_LOGIT] + cloud.score_offset
    return (1 / (1 + np.exp(-np.clip(logits, -60, 60)))).astype(np.float32)


def _synchronised(
    sessions: LoggedSessions, session: np.ndarray, slot: np.ndarray, config: FeedConfig
) -> np.ndarray:
    """Count the answers (G,) known to the cloud when the pages that arrived at `slot` (G,) were requested."""
    sent = slot - config.request_latency
    if config.cloud.sync == "periodic":
        sent = sent // config.cloud.sync_period * config.cloud.sync_period
    return np.where(slot > 0, np.clip(sent - config.lookahead, 0, sessions.answered[session]), 0)


def _interests(
    sessions: LoggedSessions, begin: np.ndarray, count: np.ndarray, config: FeedConfig
) -> np.ndarray:
    """Sum the decayed evidence (G, d) of the first `count` (G,) answers of sessions from `begin` (G,)."""
    cloud, actions = config.cloud, sessions.actions
    evidence = cloud.dwell_weight * (actions[:, 0] - DWELL_CENTRE) + actions[:, CLICK] * (
        cloud.click_weight + cloud.page_view_weight * (actions[:, PAGE_VIEW] - DWELL_CENTRE)
    )
    interest = np.zeros((len(begin), config.embedding_size))
    for at in range(0, len(begin), BLOCK):
        block = slice(at, at + BLOCK)
        age = np.arange(max(1, count[block].max()))  # 0 = the latest answer
        rows = begin[block, None] + count[block, None] - 1 - age
        known = age < count[block, None]
        rows = np.where(known, rows, 0)
        weight = np.where(known, evidence[rows] * cloud.interest_decay**age, 0.0)
        seen = sessions.catalog.embeddings[sessions.item[rows]]
        interest[block] = np.einsum("ga,gad->gd", weight, seen)
    return interest
