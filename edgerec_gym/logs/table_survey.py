"""One pass over a table, chunk by chunk, for its catalogue, its sizes and its notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from edgerec_gym.logs.looking_back import HourlySums, hourly_sums
from edgerec_gym.logs.table_checks import Watch, check_actions
from edgerec_gym.logs.table_items import DAY, check_fixed, fixed_values
from edgerec_gym.logs.table_mapping import NUMBER, USER_CATEGORY, USER_NUMBER, response_columns
from edgerec_gym.logs.table_sessions import cut_sessions
from edgerec_gym.logs.table_source import SourceTable

Progress = Callable[[int, int], None]
MOST_LEVELS = 8  # values of a category of users that are told apart


@dataclass(frozen=True)
class NumberSums:
    """Sums of numbers by day, for their units.

    Attributes:
        day: (n,) int64 days since 1970.
        names: the scan's columns.
        sums: (n, 3 k) float64; count, sum and sum of squares of the inverse hyperbolic sine of each.
    """

    day: np.ndarray
    names: tuple[str, ...]
    sums: np.ndarray

    def units(self, cut: int) -> dict[str, tuple[float, float]]:
        """Return mean and spread of each column on the days before `cut`; of all days if that is none."""
        early = self.day < cut
        found = {}
        for k, name in enumerate(self.names):
            sums = self.sums[:, 3 * k : 3 * k + 3]
            n, total, squares = sums[early].sum(0) if sums[early, 0].sum() else sums.sum(0)
            mean = total / max(n, 1)
            found[name] = float(mean), float(np.sqrt(max(squares / max(n, 1) - mean**2, 1e-6)))
        return found


@dataclass(frozen=True)
class Survey:
    """Results of one pass over a table.

    Attributes:
        items: item, then the values shared by all its rows; sorted by item.
        texts: (items,) text of each item at its first row that has one, else null; of length 0 if not mapped.
        sums: sums by item (place in `items`) and hour.
        prices: columns day and price, the highest one; empty without prices.
        numbers: sums of the numbers of items and users.
        responses: columns day, seen (rows), and the sum of each further response over these.
        levels: the most frequent values of each category of users.
        clicks: distinct user (place in the sorted ids), item (place in `items`), day (since 1970).
        days: (d,) int64 sorted days since 1970 on which sessions begin.
        session_slots: (sessions,) int64 number of slots of each session.
        page_slots: (pages,) int64 number of slots of each page.
        highest_action: the highest of the logged actions; -1 without them.
        counts: counts of what was kept, moved and dropped.
    """

    items: pl.DataFrame
    texts: pl.Series
    sums: HourlySums
    prices: pl.DataFrame
    numbers: NumberSums
    responses: pl.DataFrame
    levels: dict[str, list[str]]
    clicks: pl.DataFrame
    days: np.ndarray
    session_slots: np.ndarray
    page_slots: np.ndarray
    highest_action: int
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
    sums, prices, items, texts, clicks, days, sessions, pages = [], [], [], [], [], [], [], []
    numeric = tuple(name for name in table.columns if name.startswith((NUMBER, USER_NUMBER)))
    responses = response_columns(table.columns)
    grouped = [name for name in table.columns if name.startswith(USER_CATEGORY)]
    highest_action = -1
    numbers, rates, levels = [], [], {name: Counter[str]() for name in grouped}
    watch = Watch(table)
    for k, chunk in enumerate(table.read(ranges)):
        rows, changes = cut_sessions(chunk, table)
        counts.update(changes)
        watch.add(rows)
        if "action" in rows.columns:
            check_actions(rows, table)
            highest_action = max(highest_action, int(rows["action"].max()))  # type: ignore[arg-type]
        sums.append(hourly_sums(rows))
        day = (pl.col("seconds") // DAY).cast(pl.Int64).alias("day")
        if "price" in rows.columns:
            prices.append(rows.group_by(day).agg(pl.col("price").max()))
        numbers.append(_number_sums(rows, numeric))
        rates.append(_response_sums(rows, responses))
        for name in grouped:
            levels[name].update(rows.select("user", name).unique()[name].drop_nulls().to_list())
        items.append(fixed_values(rows))
        if "text" in rows.columns:
            texts.append(_first_texts(rows))
        clicks.append(rows.filter("click").select("user", "item", day).unique())
        days.append(rows.select((pl.col("start") // DAY).cast(pl.Int64).unique()).to_series().to_numpy())
        sessions.append(rows.group_by("session").len()["len"].to_numpy().astype(np.int64))
        pages.append(rows.group_by("session", "page").len()["len"].to_numpy())
        unseen = rows.group_by("session").agg(pl.col("seen").any()).filter(~pl.col("seen"))
        seen = rows.filter("seen")
        if "purchase" in rows.columns and (
            apart := seen.filter(pl.col("purchase") & ~pl.col("click")).height
        ):
            counts["purchases_without_a_click"] += apart
        if empty := sum(seen[name].null_count() for name in responses):
            counts["empty_responses"] += empty
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
    text, several = _item_texts(texts, every["item"])
    if texts:
        counts["items_with_text"] = len(text) - text.null_count()
        counts["items_with_several_texts"] = several
    by_day = pl.concat(numbers).group_by("day").sum().sort("day")
    clicked = pl.concat(clicks).join(table.users.with_row_index("code"), on="user").join(place, on="item")
    return Survey(
        every,
        text,
        _hourly(sums, place),
        pl.concat(prices).group_by("day").max() if prices else pl.DataFrame(),
        NumberSums(by_day["day"].to_numpy(), numeric, by_day.drop("day").to_numpy()),
        pl.concat(rates).group_by("day").sum(),
        {name: _most_frequent(found) for name, found in levels.items()},
        clicked.select(pl.col("code").cast(pl.Int64).alias("user"), pl.col("place").alias("item"), "day"),
        np.unique(np.concatenate(days)),
        np.concatenate(sessions),
        np.concatenate(pages),
        highest_action,
        counts,
    )


def _hourly(parts: list[pl.DataFrame], place: pl.DataFrame) -> HourlySums:
    """Join the sums of the chunks; empties the list, since both together need much memory."""
    rows = pl.concat(parts)
    parts.clear()
    rows = rows.join(place, on="item").drop("item")
    names = tuple(name for name in rows.columns if name not in ("place", "hour"))
    return HourlySums.of(
        rows["place"].to_numpy(), rows["hour"].to_numpy(), rows.select(names).to_numpy(), names
    )


def _first_texts(rows: pl.DataFrame) -> pl.DataFrame:
    """Return when each item first had each of its texts: columns item, text, seconds."""
    given = rows.filter(pl.col("text").str.strip_chars() != "")
    return given.group_by("item", "text").agg(pl.col("seconds").min())


def _item_texts(found: list[pl.DataFrame], items: pl.Series) -> tuple[pl.Series, int]:
    """Return the first text of each item, and the number of items that have several."""
    if not found:
        return pl.Series(dtype=pl.String), 0
    every = pl.concat(found).group_by("item", "text").agg(pl.col("seconds").min()).sort("seconds", "text")
    first = every.group_by("item").agg(pl.col("text").first(), pl.len())
    texts = items.to_frame("item").join(first, on="item", how="left", maintain_order="left")["text"]
    return texts, int((first["len"] > 1).sum())


def _most_frequent(found: Counter[str]) -> list[str]:
    """Return the MOST_LEVELS most frequent values; ties in order of the values, as rows come in any order."""
    return sorted(found, key=lambda value: (-found[value], value))[:MOST_LEVELS]


def _number_sums(rows: pl.DataFrame, names: tuple[str, ...]) -> pl.DataFrame:
    """Sum the numbers of one chunk by day: columns day, then count, sum and sum of squares of each."""
    value = {name: pl.col(name).cast(pl.Float64).arcsinh() for name in names}
    return rows.group_by((pl.col("seconds") // DAY).cast(pl.Int64).alias("day")).agg(
        column.cast(pl.Float64)
        for name, x in value.items()
        for column in (
            x.count().alias(f"{name} count"),
            x.sum().alias(f"{name} sum"),
            (x**2).sum().alias(f"{name} squares"),
        )
    )


def _response_sums(rows: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Sum the responses of one chunk by day over what was seen: columns day, seen, then the names."""
    return (
        rows.filter("seen")
        .group_by((pl.col("seconds") // DAY).cast(pl.Int64).alias("day"))
        .agg(pl.len().cast(pl.Float64).alias("seen"), pl.col(names).cast(pl.Float64).sum())
    )
