"""One pass over a table, chunk by chunk, for its catalogue, its sizes and its notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from edgerec_gym.logs.table_checks import Watch
from edgerec_gym.logs.table_items import DAY, SUMS, ItemDays, check_fixed, daily_sums, fixed_values
from edgerec_gym.logs.table_sessions import cut_sessions
from edgerec_gym.logs.table_source import SourceTable

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Survey:
    """Results of one pass over a table.

    Attributes:
        items: item, then the values shared by all its rows; sorted by item.
        sums: sums by item and day.
        clicks: distinct user (place in the sorted ids), item (place in `items`), day (since 1970).
        days: (d,) int64 sorted days since 1970 on which sessions begin.
        session_slots: (sessions,) int64 number of slots of each session.
        page_slots: (pages,) int64 number of slots of each page.
        counts: counts of what was kept, moved and dropped.
    """

    items: pl.DataFrame
    sums: ItemDays
    clicks: pl.DataFrame
    days: np.ndarray
    session_slots: np.ndarray
    page_slots: np.ndarray
    counts: Counter[str]


def take_survey(table: SourceTable, ranges: list[tuple[Any, Any]], progress: Progress | None) -> Survey:
    """Read all rows once.

    Args:
        table: the checked table.
        ranges: ranges of users, one per chunk.
        progress: called with (chunks read, twice the number of chunks).

    Raises:
        InputError: two rows contradict each other; the message names them.
    """
    counts: Counter[str] = Counter(rows=table.rows)
    sums, items, clicks, days, sessions, pages = [], [], [], [], [], []
    watch = Watch(table)
    for k, chunk in enumerate(table.read(ranges)):
        rows, changes = cut_sessions(chunk, table)
        counts.update(changes)
        watch.add(rows)
        sums.append(daily_sums(rows))
        items.append(fixed_values(rows))
        day = (pl.col("seconds") // DAY).cast(pl.Int64).alias("day")
        clicks.append(rows.filter("click").select("user", "item", day).unique())
        days.append(rows.select((pl.col("start") // DAY).cast(pl.Int64).unique()).to_series().to_numpy())
        sessions.append(rows.group_by("session").len()["len"].to_numpy().astype(np.int64))
        pages.append(rows.group_by("session", "page").len()["len"].to_numpy())
        unseen = rows.group_by("session").agg(pl.col("seen").any()).filter(~pl.col("seen"))
        seen = rows.filter("seen")
        counts.update(
            slots=rows.height,
            slots_seen=seen.height,
            clicks=int(seen["click"].sum()),
            sessions_without_a_seen_row=unseen.height,
            pages=len(pages[-1]),
        )
        if progress:
            progress(k + 1, 2 * len(ranges))
    watch.finish()
    every = check_fixed(pl.concat(items), table)
    place = every.select("item", place=pl.int_range(pl.len(), dtype=pl.Int64))
    total = pl.concat(sums).group_by("item", "day").agg(pl.col(SUMS[:-1]).sum(), pl.col(SUMS[-1]).max())
    total = total.join(place, on="item").sort("place", "day")
    clicked = pl.concat(clicks).join(table.users.with_row_index("code"), on="user").join(place, on="item")
    return Survey(
        every,
        ItemDays(total["place"].to_numpy(), total["day"].to_numpy(), total.select(SUMS).to_numpy()),
        clicked.select(pl.col("code").cast(pl.Int64).alias("user"), pl.col("place").alias("item"), "day"),
        np.unique(np.concatenate(days)),
        np.concatenate(sessions),
        np.concatenate(pages),
        counts,
    )
