"""Streaming features of the slots of any log folder, for click models without memory. All look strictly back.

A log tells the hour in which a session began, and seconds since then. So a slot counts in other sessions only
when it is over for certain: an hour later than its seconds after that full hour. Within a session, the slots
of earlier pages count. The slots of a page never count for each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from edgerec_gym.errors import InputError
from edgerec_gym.logs.ebnerd_features import decayed_before
from edgerec_gym.logs.schema import OPTIONAL
from edgerec_gym.logs.sessions import SCALAR_COLUMNS
from edgerec_gym.logs.store import LogReader

HOUR, DAY = 3600, 24 * 3600
HALF_LIVES = {"1h": 1.0 * HOUR, "6h": 6.0 * HOUR, "24h": 1.0 * DAY, "ever": np.inf}
USER_HALF_LIVES = {"24h": 1.0 * DAY, "ever": np.inf}
PAGES = {"3_pages": 3.0, "ever": np.inf}  # half-lives within a session, in pages
EVER = {"ever": np.inf}
PRIOR_VIEWS = 20.0  # at the rate of all items, added to the views of one item or user
COLUMNS = [
    "session", "user", "day", "hour", "time", "item", "page", "page_age", *SCALAR_COLUMNS, "answered", "click"
]  # fmt: skip
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class StreamingSlots:
    """The N answered slots of a log, in its order.

    Attributes:
        rows: (N,) columns of :attr:`PlacedSlots.rows`.
        features: (N,) Float32 columns, NaN where one does not apply. What never varies is left out.
        groups: names of the features by subject.
    """

    rows: pl.DataFrame
    features: pl.DataFrame
    groups: dict[str, list[str]]


class PlacedSlots:
    """All P placed slots of a log, and sums over those that were answered before.

    Args:
        reader: the log.

    Attributes:
        rows: columns of the log, and `moment`, the earliest second at which the slot's page may have begun,
            and `past`, the second at which the slot is over for certain; both since the log's day 0.
        item, user, session, page: (P,) int64 from 0; pages are unique in the log.
        views, clicks: (P,) float64, 1 where the slot was answered or clicked.

    Raises:
        InputError: the log does not tell times.
    """

    def __init__(self, reader: LogReader) -> None:
        self.reader = reader
        rows = pl.concat(pl.DataFrame(table) for table in reader.batches([*COLUMNS, *OPTIONAL]))
        if rows["time"].null_count():
            raise InputError(f"{reader.folder}: column 'time' is null; streaming features need times")
        begun = (pl.col("day").first().cast(pl.Int64) * 24 + pl.col("hour").first()).over("session") * HOUR
        seconds = pl.col("time").min().over("session", "page").floor().cast(pl.Int64)
        self.rows = rows.with_columns(
            pl.col("click").fill_null(False) & pl.col("answered"),
            moment=begun + seconds,
            past=begun + HOUR + pl.col("time").ceil().cast(pl.Int64),
        )
        self.item = self["item"].astype(np.int64)
        self.user = np.unique(self["user"], return_inverse=True)[1]
        self.session = np.unique(self["session"], return_inverse=True)[1]
        self.page = codes(self.session, self["page"])  # unique in the log
        self.views = self["answered"].astype(np.float64)
        self.clicks = self["click"].astype(np.float64)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.rows[name].to_numpy()

    def before(
        self, key: np.ndarray, half_lives: dict[str, float], moment: np.ndarray | None = None
    ) -> np.ndarray:
        """Sum decayed views and clicks of a key that are over for certain at `moment`, (2, half-lives, P)."""
        moment = self["moment"] if moment is None else moment
        # decayed_before counts strictly earlier seconds, and what is over at a moment may count in it.
        seconds = np.concatenate([self["past"] - 1, moment])
        nothing = np.zeros(len(key))
        both = [np.concatenate([w, nothing]) for w in (self.views, self.clicks)]
        return self._sums(seconds, np.tile(key, 2), both, half_lives)[:, :, len(key) :]

    def on_earlier_pages(self, key: np.ndarray, half_lives: dict[str, float]) -> np.ndarray:
        """Sum decayed views and clicks of a key on earlier pages of the session, (2, half-lives, P).

        Each value of the key belongs to one session.
        """
        return self._sums(self["page"].astype(np.int64), key, [self.views, self.clicks], half_lives)

    def by_user(self, of_user: np.ndarray, of_session: np.ndarray) -> np.ndarray:
        """Sum over the user's other sessions that are over for certain, and earlier pages of this one.

        Args:
            of_user: (P,) key over all sessions of a user.
            of_session: (P,) the same key within a session.
        """
        others = self.before(of_user, USER_HALF_LIVES) - self.before(of_session, USER_HALF_LIVES)
        return np.maximum(others, 0) + self.on_earlier_pages(of_session, EVER)

    @staticmethod
    def _sums(
        seconds: np.ndarray, key: np.ndarray, weights: list[np.ndarray], half_lives: dict[str, float]
    ) -> np.ndarray:
        weight = np.repeat(np.stack(weights, 1), len(half_lives), axis=1)
        lives = np.tile(np.array(list(half_lives.values())), len(weights))
        return decayed_before(seconds, key, weight, lives).T.reshape(len(weights), len(half_lives), -1)


def streaming_slots(slots: PlacedSlots) -> StreamingSlots:
    """Derive features of the answered slots of a log, from earlier slots only.

    Views, clicks and smoothed click rates, decayed, by item, user, user and item, and user and category; the
    item's rate of the day before, and its age since it was first seen; the session so far; how the item's
    embedding matches the user's features and what was seen and clicked in the session; the logged numbers;
    means over the page and its size; the hour; and the place in the page where the log tells it.
    """
    reader = slots.reader
    all_views, all_clicks = slots.before(np.zeros_like(slots.item), USER_HALF_LIVES)
    average = (all_clicks[1] + 1) / (all_views[1] + PRIOR_VIEWS)

    def told(name: str, sums: np.ndarray, half_lives: dict[str, float]) -> Columns:
        found: Columns = {}
        for (views, clicks), span in zip(sums.transpose(1, 0, 2), half_lives, strict=True):
            if not views.any():  # the rate would be the average of all items
                continue
            found[f"{name}_views_{span}"] = np.log1p(views)
            found[f"{name}_clicks_{span}"] = np.log1p(clicks)
            found[f"{name}_rate_{span}"] = smoothed(clicks, views, average)
        return found

    groups: dict[str, Columns] = {
        "item counts": told("item", slots.before(slots.item, HALF_LIVES), HALF_LIVES),
        "yesterday": _yesterday(slots, average),
        "item age": {"item_age": _item_age(slots)},
        "traffic": {
            "all_views_24h": np.log1p(all_views[0]),
            "all_rate_24h": (all_clicks[0] + 1) / (all_views[0] + PRIOR_VIEWS),
        },
        "session": told("session", slots.on_earlier_pages(slots.session, PAGES), PAGES),
        "user": told("user", slots.by_user(slots.user, slots.session), USER_HALF_LIVES),
        "user x item": told(
            "user_item",
            slots.by_user(codes(slots.user, slots.item), codes(slots.session, slots.item)),
            USER_HALF_LIVES,
        ),
    }
    if "categories" not in reader.unidentified:
        category = reader.catalog.category[slots.item]
        sums = slots.by_user(codes(slots.user, category), codes(slots.session, category))
        groups["user x category"] = told("user_category", sums, USER_HALF_LIVES)
    groups |= {
        "profile and match": _profile_and_match(reader, slots),
        "numbers": {name: slots[name] for name in SCALAR_COLUMNS},
        "item columns": _item_columns(reader, slots),
        "hour": {"hour": slots["hour"]},
    }
    own = {name: values for group in groups.values() for name, values in group.items()}
    told_by_page = [*SCALAR_COLUMNS, "item_rate_24h", "item_rate_ever", "item_views_6h", "item_age"]
    groups["page"] = _page(slots, {name: own[name] for name in told_by_page})
    if "position" not in reader.unidentified:
        groups["position"] = {"position": slots["page_age"]}
    answered = slots["answered"]
    every = {
        name: np.asarray(values[answered], np.float32)
        for group in groups.values()
        for name, values in group.items()
    }
    varies = {name for name, values in every.items() if len(np.unique(values)) > 1}
    return StreamingSlots(
        slots.rows.filter("answered"),
        pl.DataFrame({name: values for name, values in every.items() if name in varies}),
        {group: found for group, names in groups.items() if (found := [n for n in names if n in varies])},
    )


def daily_rate(slots: PlacedSlots, prior_views: float) -> np.ndarray:
    """Item's smoothed click rate of the days before, at the N answered slots."""
    return _rate_at(slots, np.inf, slots["day"].astype(np.int64) * DAY, prior_views)


def hourly_rate(slots: PlacedSlots, half_life: float, prior_views: float) -> np.ndarray:
    """Item's smoothed click rate when the hour began, halved every `half_life` seconds, (N,)."""
    return _rate_at(slots, half_life, slots["moment"] // HOUR * HOUR, prior_views)


def _rate_at(slots: PlacedSlots, half_life: float, moment: np.ndarray, prior_views: float) -> np.ndarray:
    [views], [clicks] = slots.before(slots.item, {"": half_life}, moment)
    [all_views], [all_clicks] = slots.before(np.zeros_like(slots.item), EVER, moment)
    average = (all_clicks + 1) / (all_views + PRIOR_VIEWS)
    return smoothed(clicks, views, average, prior_views)[slots["answered"]]


def answers_above(slots: PlacedSlots) -> pl.DataFrame:
    """What the network knows besides where a log tells the order of answers: clicks above on the page.

    Returns:
        (N,) Float32: clicks above on the page, and slots of the session since the last click (NaN before it).
    """
    rows = slots.rows.select("session", "page", "answered", "click").with_row_index("at")
    click = pl.col("click").cast(pl.Float32)
    clicked_at = pl.when("click").then(pl.col("at").cast(pl.Float32))
    return (
        rows.with_columns(
            clicks_above=(click.cum_sum() - click).over("session", "page"),
            since_click=pl.col("at") - clicked_at.shift(1).forward_fill().over("session"),
        )
        .filter("answered")
        .select("clicks_above", pl.col("since_click").cast(pl.Float32).fill_null(float("nan")))
    )


def smoothed(
    clicks: np.ndarray, views: np.ndarray, average: np.ndarray, prior_views: float = PRIOR_VIEWS
) -> np.ndarray:
    """Click rate with `prior_views` more views at the average rate, (N,)."""
    return (clicks + average * prior_views) / (views + prior_views)


def codes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number the different pairs of two keys (N,) of whole numbers from 0, (N,) int64."""
    pair = first.astype(np.int64) * (int(second.max()) + 1) + second
    return np.unique(pair, return_inverse=True)[1]


def _yesterday(slots: PlacedSlots, average: np.ndarray) -> Columns:
    today = slots["day"].astype(np.int64) * DAY
    until = slots.before(slots.item, EVER, today)[:, 0]
    views, clicks = until - slots.before(slots.item, EVER, today - DAY)[:, 0]
    return {
        "item_views_yesterday": np.log1p(views),
        "item_rate_yesterday": smoothed(clicks, views, average),
        "item_rate_days_before": smoothed(until[1], until[0], average),
    }


def _item_age(slots: PlacedSlots) -> np.ndarray:
    """Logarithm of the hours since the item was first placed, NaN if it was not yet."""
    first = np.full(int(slots.item.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, slots.item, slots["past"])
    first, moment = first[slots.item], slots["moment"]
    age = np.log1p((moment - np.minimum(first, moment)) / HOUR)
    return np.where(first <= moment, age, np.nan)


def _item_columns(reader: LogReader, slots: PlacedSlots) -> Columns:
    """What the log shipped of items with each page, as learned users read it."""
    shipped = slots.rows["item_columns"]
    if shipped.null_count() == len(shipped):
        return {}
    values = shipped.explode().to_numpy().reshape(len(shipped), -1)
    return {f"shipped_{name}": values[:, k] for k, name in enumerate(reader.config.item_columns)}


def _profile_and_match(reader: LogReader, slots: PlacedSlots) -> Columns:
    """User features besides the long-term estimate, and products of embeddings."""
    features, _ = reader.session_starts()
    d = reader.config.embedding_size
    known = slots.rows["embedding_known"].fill_null(True).to_numpy()
    item = reader.catalog.embeddings[slots.item].astype(np.float64) * known[:, None]
    found: Columns = {f"profile_{k}": features[slots.session, k] for k in range(d, features.shape[1])}
    found["match_long_term"] = (features[slots.session, :d] * item).sum(1)
    page = slots["page"].astype(np.int64)
    for name, weight in (("seen", slots.views), ("clicked", slots.clicks)):
        total = decayed_before(page, slots.session, item * weight[:, None], np.full(d, np.inf))
        length = np.linalg.norm(total, axis=1)
        found[f"match_{name}"] = (total * item).sum(1) / np.maximum(length, 1e-9)
    return found


def _page(slots: PlacedSlots, values: Columns) -> Columns:
    """Size of the slot's page, means over its placed cards, and differences from them."""
    size = np.bincount(slots.page)
    found: Columns = {"page_size": size[slots.page]}
    for name, value in values.items():
        known = np.nan_to_num(value)  # only the age of an item may be unknown: it is new
        mean = (np.bincount(slots.page, known) / size)[slots.page]
        found |= {f"page_{name}": mean, f"{name}_in_page": known - mean}
    return found
