"""What a feed could know of items and users when it showed them: counts and rates of earlier hours.

Every value of a row uses rows of earlier hours (items) or of earlier visits (users) alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from edgerec_gym.logs.table_items import sums_before

HOUR = 3600
WINDOWS = {"hour": 1, "six_hours": 6, "day": 24}  # hours before the current one
PRIOR_VIEWS = 10.0  # views at the average rate that are added to those of an item or user
PRIOR_RATE = 0.05  # the average rate while nothing is known
LIFT_UNIT = 3.0  # log lift that is stored as 1
MOST_VIEWS = 1e5  # number of views that is stored as 1
MOST_HOURS = 24.0 * 365  # age that is stored as 1
ITEM_COLUMNS = (
    "age",  # log of the hours since the item first appeared
    "recency",  # log of the hours since it was last shown; 1 if never
    "views",  # log of the views so far
    "lift",  # log of the click rate so far over that of all items, shrunk
    *(f"{kind}_{window}" for window in WINDOWS for kind in ("views", "lift")),
)
CATEGORY_COLUMNS = ("category_lift", "category_lift_day")
# Beside the means of the page, which is known as a whole when it is shipped.
IN_PAGE = ("age", "recency", "lift", "lift_hour", "lift_six_hours", "lift_day", "views_six_hours")
PAGE_COLUMNS = tuple(f"{name}_in_page" for name in IN_PAGE)
USER_ITEM_COLUMNS = (
    "shown_before",  # log of how often the user was shown the item on earlier pages
    "clicked_before",  # log of how often the user clicked it on earlier visits
)
MOST_SHOWN = 20.0  # times that are stored as 1
USER_COLUMNS = (
    "views",  # log of the user's views on earlier visits
    "lift",  # log of the user's click rate over that of all users, shrunk
    "recency",  # log of the hours since the last visit; 1 at the first
)


@dataclass(frozen=True)
class HourlySums:
    """Views and clicks by key (an item or a category) and hour, sorted by (key, hour).

    Attributes:
        key: (n,) int64, from 0.
        hour: (n,) int64, hours since 1970.
        sums: (n, 2) float64, views and clicks of what was seen.
    """

    key: np.ndarray
    hour: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, key: np.ndarray, hour: np.ndarray, sums: np.ndarray) -> HourlySums:
        """Sum rows with the same key and hour."""
        order = np.lexsort((hour, key))
        key, hour, sums = key[order], hour[order], sums[order]
        first = np.flatnonzero((np.diff(key, prepend=-1) != 0) | (np.diff(hour, prepend=-1) != 0))
        return cls(key[first], hour[first], np.add.reduceat(sums, first, axis=0))

    def before(self, key: np.ndarray, hour: np.ndarray, window: int | None = None) -> np.ndarray:
        """Return views and clicks (m, 2) of the `window` hours before each hour; None = all before."""
        width = int(max(self.hour.max(), hour.max())) + 1
        begin = np.zeros_like(hour) if window is None else np.maximum(hour - window, 0)
        return sums_before(self.key * width + self.hour, self.sums, key * width + begin, hour - begin)

    def rate_before(self, hour: np.ndarray) -> np.ndarray:
        """Return the click rate of all keys before each hour, (m,) float64."""
        order = np.argsort(self.hour, kind="stable")
        views, clicks = sums_before(self.hour[order], self.sums[order], np.zeros_like(hour), hour).T
        return (clicks + PRIOR_RATE * PRIOR_VIEWS) / (views + PRIOR_VIEWS)

    def first_hour(self, key: np.ndarray) -> np.ndarray:
        """Return the first hour of each key (m,)."""
        return self.hour[np.searchsorted(self.key, key)]

    def last_before(self, key: np.ndarray, hour: np.ndarray) -> np.ndarray:
        """Return the last hour of each key before `hour`, (m,) int64; -1 if there is none."""
        width = int(max(self.hour.max(), hour.max())) + 1
        at = np.searchsorted(self.key * width + self.hour, key * width + hour) - 1
        known = (at >= 0) & (self.key[np.maximum(at, 0)] == key)
        return np.where(known, self.hour[np.maximum(at, 0)], -1)


def item_columns(sums: HourlySums, item: np.ndarray, hour: np.ndarray) -> np.ndarray:
    """Return :data:`ITEM_COLUMNS` of items (m,) as known when an hour (m,) began, (m, C) float32 in -1..1."""
    rate = sums.rate_before(hour)
    last = sums.last_before(item, hour)
    total = sums.before(item, hour)
    columns = [
        log_share(hour - np.minimum(sums.first_hour(item), hour), MOST_HOURS),
        np.where(last < 0, 1.0, log_share(hour - last, MOST_HOURS)),
        log_share(total[:, 0], MOST_VIEWS),
        lift(total, rate),
    ]
    for window in WINDOWS.values():
        found = sums.before(item, hour, window)
        columns += [log_share(found[:, 0], MOST_VIEWS), lift(found, rate)]
    return np.column_stack(columns).astype(np.float32)


def page_columns(columns: np.ndarray, page: np.ndarray) -> np.ndarray:
    """Return :data:`PAGE_COLUMNS`: item columns minus their means over the page, (m, 7) float32 in -1..1.

    Args:
        columns: (m, C) result of :func:`item_columns`.
        page: (m,) int64, the page of each row.
    """
    values = columns[:, [ITEM_COLUMNS.index(name) for name in IN_PAGE]].astype(np.float64)
    _, page, size = np.unique(page, return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(page, column) for column in values.T], axis=1) / size[:, None]
    return np.clip(values - means[page], -1, 1).astype(np.float32)


def user_item_columns(
    user: np.ndarray,
    item: np.ndarray,
    seconds: np.ndarray,
    click: np.ndarray,
    page_start: np.ndarray,
    start: np.ndarray,
) -> np.ndarray:
    """Return :data:`USER_ITEM_COLUMNS` of all rows of some users, (m, 2) float32 in 0..1.

    Args:
        user: (m,) int64.
        item: (m,) int64.
        seconds: (m,) time of each row.
        click: (m,) bool.
        page_start: (m,) seconds at which the page of each row began.
        start: (m,) seconds at which its visit began.
    """
    whole = np.floor(seconds).astype(np.int64)
    low, width = int(whole.min()), int(whole.max() - whole.min()) + 1
    pair = np.unique(user * (int(item.max()) + 1) + item, return_inverse=True)[1]
    key = pair * width + whole - low
    order = np.argsort(key, kind="stable")
    counted = np.column_stack([np.ones(len(key)), click]).astype(np.float64)[order]
    begun = [np.maximum(np.floor(time).astype(np.int64) - low, 0) for time in (page_start, start)]
    found = [
        sums_before(key[order], counted[:, [k]], pair * width, offset)[:, 0] for k, offset in enumerate(begun)
    ]
    return np.column_stack([log_share(count, MOST_SHOWN) for count in found]).astype(np.float32)


def category_columns(sums: HourlySums, category: np.ndarray, hour: np.ndarray) -> np.ndarray:
    """Return :data:`CATEGORY_COLUMNS` of categories (m,), (m, 2) float32 in -1..1."""
    rate = sums.rate_before(hour)
    windows = (sums.before(category, hour), sums.before(category, hour, WINDOWS["day"]))
    return np.column_stack([lift(found, rate) for found in windows]).astype(np.float32)


def hourly_sums(rows: pl.DataFrame) -> pl.DataFrame:
    """Sum the rows of one chunk by item and hour: columns item, hour, views, clicks."""
    seen = pl.col("seen")
    return rows.group_by("item", (pl.col("seconds") // HOUR).cast(pl.Int64).alias("hour")).agg(
        views=seen.sum().cast(pl.Float64), clicks=pl.col("click").filter(seen).sum().cast(pl.Float64)
    )


def user_columns(
    user: np.ndarray,
    seconds: np.ndarray,
    counted: np.ndarray,
    start: np.ndarray,
    of: np.ndarray,
    rate: np.ndarray,
) -> np.ndarray:
    """Return :data:`USER_COLUMNS` when visits begin, then the lift of every further count.

    Args:
        user: (n,) int64, by row.
        seconds: (n,) time of each row.
        counted: (n, 2 + k) views, clicks, then other responses (0 or 1).
        start: (m,) seconds at which visits begin.
        of: (m,) int64, the user of each visit.
        rate: (m, 1 + k) rates of all users, for the lifts.

    Returns:
        (m, 3 + k) float32 in -1..1.
    """
    whole, begin = np.floor(seconds).astype(np.int64), np.floor(start).astype(np.int64)
    width = int(max(whole.max(), begin.max())) + 1
    key = user * width + whole
    order = np.argsort(key, kind="stable")
    sums = sums_before(key[order], counted[order], of * width, begin)
    at = np.searchsorted(key[order], of * width + begin) - 1
    known = sums[:, 0] > 0
    last = np.where(known, whole[order][np.maximum(at, 0)], begin)
    columns = [
        log_share(sums[:, 0], MOST_VIEWS),
        lift(sums[:, :2], rate[:, 0]),
        np.where(known, log_share((begin - last) / HOUR, MOST_HOURS), 1.0),
    ]
    columns += [lift(sums[:, [0, 2 + k]], rate[:, 1 + k]) for k in range(counted.shape[1] - 2)]
    return np.column_stack(columns).astype(np.float32)


def lift(sums: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Return the log of a shrunk rate over `rate` (m,), in units of LIFT_UNIT and clipped, (m,).

    Args:
        sums: (m, 2) views and events.
        rate: (m,) rate to compare with, above 0.
    """
    views, events = sums.T
    shrunk = (events + PRIOR_VIEWS * rate) / (views + PRIOR_VIEWS)
    return np.clip(np.log(shrunk / rate) / LIFT_UNIT, -1, 1)


def log_share(value: np.ndarray, most: float) -> np.ndarray:
    """Return the log of 1 + value over that of `most`, at most 1."""
    return np.minimum(np.log1p(np.maximum(value, 0)) / np.log1p(most), 1.0)
