"""What a feed could know of items and users when it showed them: counts and rates of earlier hours.

Every value of a row uses rows of earlier hours (items) or of earlier visits (users) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

HOUR = 3600
HOURS = 2**21  # more than there are between 1970 and 2200
RATE = ("views", "clicks")
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
    """Sums by key (an item or a category) and hour.

    Attributes:
        at: (n,) int64, key * HOURS + hour since 1970; sorted, without duplicates.
        totals: (n + 1, k) float64, sums of the rows before each.
        names: of the k columns; views and clicks of what was seen come first.
    """

    at: np.ndarray
    totals: np.ndarray
    names: tuple[str, ...] = RATE

    @classmethod
    def of(
        cls, key: np.ndarray, hour: np.ndarray, sums: np.ndarray, names: tuple[str, ...] = RATE
    ) -> HourlySums:
        """Sum rows (n, k) with the same key and hour, both (n,) int64 of at least 0."""
        at = key * HOURS + hour
        order = np.argsort(at, kind="stable")
        at = at[order]
        first = np.flatnonzero(np.diff(at, prepend=-1))
        return cls(at[first], _totals(np.add.reduceat(sums[order], first, axis=0)), names)

    @property
    def key(self) -> np.ndarray:
        """The key of each sum, (n,) int64."""
        return self.at // HOURS

    @property
    def hour(self) -> np.ndarray:
        """The hour of each sum, (n,) int64."""
        return self.at % HOURS

    @property
    def sums(self) -> np.ndarray:
        """The sums, (n, k) float64."""
        return np.diff(self.totals, axis=0)

    @cached_property
    def of_all(self) -> HourlySums:
        """The sums of all keys by hour, under the key 0."""
        hour = self.hour
        return HourlySums.of(np.zeros_like(hour), hour, self.sums, self.names)

    def before(
        self, key: np.ndarray, hour: np.ndarray, window: int | None = None, names: tuple[str, ...] = RATE
    ) -> np.ndarray:
        """Return sums of the `window` hours before each hour; None = all before.

        Args:
            key: (m,) int64.
            hour: (m,) int64 hours since 1970; fastest if sorted by key and hour.
            window: in hours.
            names: columns.

        Returns:
            (m, names) float64.
        """
        begin = np.zeros_like(hour) if window is None else np.maximum(hour - window, 0)
        low, high = (np.searchsorted(self.at, key * HOURS + time) for time in (begin, hour))
        columns = [self.names.index(name) for name in names]
        return np.column_stack([self.totals[high, k] - self.totals[low, k] for k in columns])

    def rate_before(self, hour: np.ndarray) -> np.ndarray:
        """Return the click rate of all keys before each hour, (m,) float64."""
        views, clicks = self.of_all.before(np.zeros_like(hour), hour).T
        return (clicks + PRIOR_RATE * PRIOR_VIEWS) / (views + PRIOR_VIEWS)

    def first_hour(self, key: np.ndarray) -> np.ndarray:
        """Return the first hour of each key (m,)."""
        return self.at[np.searchsorted(self.at, key * HOURS)] % HOURS

    def last_before(self, key: np.ndarray, hour: np.ndarray) -> np.ndarray:
        """Return the last hour of each key before `hour`, (m,) int64; -1 if there is none."""
        at = self.at[np.maximum(np.searchsorted(self.at, key * HOURS + hour) - 1, 0)]
        return np.where((at // HOURS == key) & (at % HOURS < hour), at % HOURS, -1)


def distinct(key: np.ndarray, hour: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct pairs sorted by key and hour, and the place of each given pair among them."""
    at, place = np.unique(key * HOURS + hour, return_inverse=True)
    return at // HOURS, at % HOURS, place


def sums_before(key: np.ndarray, values: np.ndarray, base: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Sum the rows whose key is at least `base` and below `base + offset`.

    Args:
        key: (n,) int64 sorted.
        values: (n, k).
        base: (m,) int64.
        offset: (m,) int64.

    Returns:
        (m, k) float64.
    """
    totals = _totals(values)
    return totals[np.searchsorted(key, base + offset)] - totals[np.searchsorted(key, base)]


def _totals(values: np.ndarray) -> np.ndarray:
    """Return the sums of the rows before each, (n + 1, k) float64."""
    totals = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=totals[1:])
    return totals


def item_columns(sums: HourlySums, item: np.ndarray, hour: np.ndarray) -> np.ndarray:
    """Return :data:`ITEM_COLUMNS` of items (m,) as known when an hour (m,) began, (m, C) float32 in -1..1."""
    item, hour, place = distinct(item, hour)
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
    return np.column_stack(columns).astype(np.float32)[place]


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
    category, hour, place = distinct(category, hour)
    rate = sums.rate_before(hour)
    windows = (sums.before(category, hour), sums.before(category, hour, WINDOWS["day"]))
    return np.column_stack([lift(found, rate) for found in windows]).astype(np.float32)[place]


def hourly_sums(rows: pl.DataFrame) -> pl.DataFrame:
    """Sum the rows of one chunk by item and hour.

    Returns:
        Columns item, hour, views and clicks of what was seen. As far as the table has them, also purchases
        among these clicks, the sum of `price` and number of `prices`, and `ctr`, the sum of `base_ctr`.
    """
    seen, purchase = pl.col("seen"), pl.col("purchase") & pl.col("click")
    sums = {"views": seen.sum(), "clicks": pl.col("click").filter(seen).sum()}
    if "purchase" in rows.columns:  # per click, so that purchases without one do not count here
        sums["purchases"] = purchase.filter(seen).sum()
    if "price" in rows.columns:
        sums |= {"price": pl.col("price").sum(), "prices": pl.len()}
    if "base_ctr" in rows.columns:
        sums["ctr"] = pl.col("base_ctr").filter(seen).sum()
    hour = (pl.col("seconds") // HOUR).cast(pl.Int64).alias("hour")
    return rows.group_by("item", hour).agg(sum.cast(pl.Float64).alias(name) for name, sum in sums.items())


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
