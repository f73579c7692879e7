"""Imported logs with propensities: the items among which the logging policy chose, day by day."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pyarrow as pa

from edgerec_gym.agents.data.logged_observations import TrackLog
from edgerec_gym.agents.data.logged_pages import NOT_IN_POOL, pool_rows
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.logs.sessions import SCALAR_COLUMNS, LoggedSessions
from edgerec_gym.logs.store import LogReader

_COLUMNS = [
    "session", "slot", "day", "hour", "time", "item", "card_type", *SCALAR_COLUMNS, "item_columns",
    "embedding_known", "action",
]  # fmt: skip


def has_item_propensities(reader: LogReader) -> bool:
    """Return whether the log knows the probability of each item, but draws no requests: an import."""
    table = next(reader.batches(["session", "slot", "propensity", "request_propensity"]), None)
    return (
        table is not None
        and not table["propensity"].null_count
        and table["request_propensity"].null_count == table.num_rows
    )


@dataclass(frozen=True)
class DailyItems:
    """The goods that a log showed on each day, in the order of the logged actions.

    Without these, they are in the cloud's order: the highest base ctr first.

    What a policy sees of an item must not depend on whether the log showed it at that slot. So all items of a
    day have the features that were shipped when they were first shown on that day.

    Attributes:
        day: (n,) int64, sorted.
        item: (n,) int64 catalogue rows.
        row: (n,) int64 pool row of each item on its day.
        features: (n, F) float32 item features; without item columns if the log ships none.
    """

    day: np.ndarray
    item: np.ndarray
    row: np.ndarray
    features: np.ndarray

    @classmethod
    def of(cls, reader: LogReader) -> DailyItems:
        """Read a log once.

        Raises:
            InputError: the log shows mix-in cards, or more items on a day than a pool holds, or an action
                means two items on a day, or an item has two actions.
        """
        found = pl.DataFrame()
        for table in reader.batches(_COLUMNS):
            rows = pl.DataFrame(pl.from_arrow(table))
            if (rows["card_type"] > 0).any():
                raise InputError(f"{reader.folder}: off-policy estimates need a log without mix-in cards")
            found = pl.concat([found, rows]) if len(found) else rows
            found = found.sort("hour", "time", maintain_order=True).unique(
                ["day", "item", "action"], keep="first", maintain_order=True
            )
        found = found.sort("day", "base_ctr", "item", descending=[False, True, False])
        if not found["action"].null_count():
            _check_actions(found, reader)
        day, item = (found[name].to_numpy().astype(np.int64) for name in ("day", "item"))
        row = np.arange(len(day)) - np.searchsorted(day, day)
        if not found["action"].null_count():
            row = found["action"].to_numpy().astype(np.int64)
        most, size = int(np.bincount(day).max(initial=0)), reader.config.pool_size
        if most > size:
            raise InputError(
                f"{reader.folder}: day {np.bincount(day).argmax()} shows {most:,} items, but pool_size is "
                f"{size:,}; off-policy estimates need pools that hold all of them (feed.pool_size of the "
                "mapping; fewer items by 'rows')"
            )
        catalog = reader.catalog
        known = np.ones(len(item), np.bool_)
        if "embedding_known" in found.columns:
            known = found["embedding_known"].fill_null(True).to_numpy()
        parts = [catalog.embeddings[item] * known[:, None], found.select(SCALAR_COLUMNS).to_numpy()]
        if "item_columns" in found.columns and found["item_columns"].null_count() == 0:
            values = found["item_columns"].explode(empty_as_null=False).to_numpy()
            parts.append(values.reshape(len(item), -1))
        return cls(day, item, row, np.concatenate(parts, axis=1).astype(np.float32))

    def rows(self, day: np.ndarray, size: int) -> np.ndarray:
        """Return the entries of the items of each day (G,) by pool row, (G, size) int64; -1 for none."""
        days, of = np.unique(self.day, return_inverse=True)
        rows = np.full((len(days), size), NOT_IN_POOL)
        rows[of, self.row] = np.arange(len(of))
        return rows[np.searchsorted(days, day)]


def _check_actions(found: pl.DataFrame, reader: LogReader) -> None:
    """Refuse actions that do not tell the items of a day apart."""
    for one, other in (("item", "action"), ("action", "item")):
        several = found.filter(pl.col(other).n_unique().over("day", one) > 1).sort("day", one, other)
        if several.height:
            day, key = several.row(0, named=True)["day"], several.row(0, named=True)[one]
            values = several.filter((pl.col("day") == day) & (pl.col(one) == key))[other]
            raise InputError(
                f"{reader.folder}: on day {day}, the {one} {key} has the {other}s {values[0]} and "
                f"{values[1]}; off-policy estimates need one action for each item of a day; leave 'action' "
                "out of the mapping if it is an index of something else"
            )


class DailyLog(TrackLog):
    """Sessions of a log whose pages hold all items of their day.

    Args:
        table, sessions, config, track: as for :class:`TrackLog`.
        items: the items of the whole log.
    """

    def __init__(
        self, table: pa.Table, sessions: LoggedSessions, config: FeedConfig, track: str, items: DailyItems
    ) -> None:
        super().__init__(table, sessions, config, track)
        self.items = items
        self.rows = items.rows(sessions.day[sessions.session_of(self.pages.first)], config.pool_size)
        candidates = np.where(self.rows >= 0, items.item[self.rows], NOT_IN_POOL)
        goods = np.ones(len(sessions.item), np.bool_)
        placed = pool_rows(sessions.item, goods, candidates[self.pages.of_slot])
        self.pages = replace(self.pages, candidates=candidates, pool_row=placed)

    def _features(self, now: np.ndarray) -> np.ndarray:
        page = self.pages.of_slot[now]
        features = self.items.features[self.rows[page]]
        if features.shape[2] < self.config.n_item_features:  # a table of the whole log, by session
            session = self.sessions.session[self.sessions.session_of(now)]
            columns = self.sessions.catalog.columns_of(self.pages.candidates[page], session[:, None])
            features = np.concatenate([features, columns], axis=2)
        return features
