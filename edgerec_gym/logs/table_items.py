"""What a table tells about its items: rates by day, and the catalogue. No number uses later days."""

from __future__ import annotations

import numpy as np
import polars as pl

from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.logs.ebnerd_features import MIN_READERS, article_embeddings, unit_length
from edgerec_gym.logs.looking_back import HOUR, HOURS, HourlySums, distinct
from edgerec_gym.logs.table_source import SourceTable
from edgerec_gym.logs.text import ItemText

DAY = 24 * 3600
FIT_SHARE = 0.7  # share of the days, the first ones, that values shared by all rows are derived from
PRIOR_RATE, PRIOR_SHARE = 0.05, 20.0  # prior click rate, and its weight in views
STAND_IN_CATEGORIES, ITEMS_PER_CATEGORY = 20, 50  # for tables without categories, since retrieval needs them


def click_rate(sums: HourlySums, item: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Return clicks per view on earlier days, shrunk toward the rate of all items.

    Args:
        sums: of all items.
        item: (m,) int64, place of the item in the sorted ids.
        day: (m,) int64 days since 1970.

    Returns:
        (m,) float64.
    """
    return _rate_before(sums, ("clicks", "views"), item, day)


def purchase_rate(sums: HourlySums, item: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Return purchases per click, (m,) float64, like :func:`click_rate`."""
    return _rate_before(sums, ("purchases", "clicks"), item, day)


def _rate_before(sums: HourlySums, names: tuple[str, str], item: np.ndarray, day: np.ndarray) -> np.ndarray:
    item, hour, place = distinct(item, day * DAY // HOUR)
    hits, of = sums.before(item, hour, names=names).T
    return _smoothed(hits, of, *sums.of_all.before(np.zeros_like(hour), hour, names=names).T)[place]


def _smoothed(hits: np.ndarray, of: np.ndarray, all_hits: np.ndarray, all_of: np.ndarray) -> np.ndarray:
    rate = (all_hits + PRIOR_RATE * PRIOR_SHARE) / (all_of + PRIOR_SHARE)
    return (hits + rate * PRIOR_SHARE) / (of + PRIOR_SHARE)


def fixed_values(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the lowest and highest of each value that must be the same in all rows of an item."""
    names = [n for n in rows.columns if n in ("card_type", "category") or (n[0] == "e" and n[1:].isdigit())]
    lowest, highest = (pl.col(names).min().name.suffix(" low"), pl.col(names).max().name.suffix(" high"))
    return rows.group_by("item").agg(*((lowest, highest) if names else ()))


def check_fixed(items: pl.DataFrame, table: SourceTable) -> pl.DataFrame:
    """Return the fixed values of each item, sorted by item; InputError if an item has two.

    Args:
        items: results of :func:`fixed_values`, one or more rows per item.
        table: the table they come from.
    """
    names = [name.removesuffix(" low") for name in items.columns if name.endswith(" low")]
    low, high = pl.col("^.* low$").min(), pl.col("^.* high$").max()
    items = items.group_by("item").agg(*((low, high) if names else ())).sort("item")
    for name in names:
        two = items.filter(pl.col(f"{name} low") != pl.col(f"{name} high"))
        if two.height:
            item = two["item"][0]
            rows = table.collect(table.scan.filter(pl.col("item") == item).select("row", name)).sort("row")
            other = rows.filter(pl.col(name) != rows[name][0])
            column = table.mapping.columns.columns.get(name) or table.embedding[int(name[1:])]
            table.fail(
                other["row"][0],
                f"column {column!r} is {other[name][0]!r}, in row {table.row_of(rows['row'][0])} "
                f"{rows[name][0]!r}; "
                f"allowed: one value for each item, here {item!r}",
            )
    return items.select("item", *(pl.col(f"{name} low").alias(name) for name in names))


def price_level(price: np.ndarray, highest: float) -> np.ndarray:
    """Return the price in 0..1: log(1 + price) over log(1 + highest price of the first days)."""
    return np.minimum(np.log1p(price) / max(np.log1p(highest), 1e-9), 1.0)


def make_catalog(
    items: pl.DataFrame,
    sums: HourlySums,
    prices: pl.DataFrame,
    clicks: pl.DataFrame,
    text: ItemText | None,
    cut: int,
    size: int,
    table: SourceTable,
) -> tuple[Catalog, np.ndarray, float]:
    """Make the catalogue as it was when day `cut` began.

    Args:
        items: result of :func:`check_fixed`.
        sums: sums of the whole table.
        prices: columns day and price, the highest one; empty without prices.
        clicks: distinct (user, item, day) rows of clicks; item is the place in `items`.
        text: what the texts of the items tell, if there are any.
        cut: first day (since 1970) that derived values must not use.
        size: embedding size.
        table: the table they come from.

    Returns:
        The catalogue, the catalogue row of each item, and the highest price before `cut`.

    Raises:
        MissingExtraError: embeddings must be derived and scikit-learn is not installed.
    """
    n, columns = items.height, table.mapping.columns
    if table.embedding_size:
        vectors = unit_length(items.select(f"e{k}" for k in range(size)).to_numpy().astype(np.float64))
    elif text is not None:
        vectors = text.embeddings(size)
    else:
        vectors = np.zeros((n, size), np.float32)
        early = clicks.filter(pl.col("day") < cut).select("user", pl.col("item").alias("article")).unique()
        if early.height >= MIN_READERS:
            at, found = article_embeddings(early, early.clear(), np.zeros(0, np.int64), size)
            vectors[at] = found
    every, today = np.arange(n), np.full(n, cut)
    rate, scalars, highest = click_rate(sums, every, today), np.zeros((n, 4)), 0.0
    if columns.base_ctr:
        rate = _mean_before(sums, "ctr", "views", cut, n)
    if columns.price:
        before = prices.filter(pl.col("day") < cut)
        highest = float((before if before.height else prices)["price"].max())  # type: ignore[arg-type]
        scalars[:, 0] = price_level(_mean_before(sums, "price", "prices", cut, n), highest)
    if columns.purchase:
        scalars[:, 2] = purchase_rate(sums, every, today)
    rate = np.clip(rate, 1e-6, 1 - 1e-6)
    scalars[:, 1] = np.log(rate / (1 - rate))
    card_type, category = np.zeros(n, np.int32), every % min(STAND_IN_CATEGORIES, 1 + n // ITEMS_PER_CATEGORY)
    if columns.card_type:
        card_type = np.array([table.mapping.card_types[value] for value in items["card_type"]], np.int32)
    if columns.category:
        category = np.unique(items["category"].to_numpy(), return_inverse=True)[1]
    catalog, order = Catalog.sorted(vectors, scalars, card_type, category, item_names(items["item"]))
    place = np.empty(n, np.int64)
    place[order] = every
    return catalog, place, highest


def _mean_before(sums: HourlySums, total: str, count: str, cut: int, n: int) -> np.ndarray:
    """Return the mean of a value of each item before day `cut`, (n,) float64.

    Items that first appear later use all of their days, since a catalogue needs some value.
    """
    every = np.arange(n)
    early, late = (
        sums.before(every, np.full(n, hour), names=(total, count)) for hour in (cut * DAY // HOUR, HOURS - 1)
    )
    value, of = np.where(early[:, [1]] > 0, early, late).T
    mean: np.ndarray = value / np.maximum(of, 1)
    return mean


def item_names(items: pl.Series) -> np.ndarray:
    """Return the item ids if all are whole numbers, else their places in the sorted ids; (n,) int64."""
    numbers = items.cast(pl.Int64, strict=False)
    if numbers.null_count() or (numbers.cast(pl.String) != items.cast(pl.String)).any():
        return np.arange(len(items))
    return numbers.to_numpy()
