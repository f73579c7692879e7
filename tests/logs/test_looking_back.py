"""Derived columns: their values, and that no row ever knows what came later."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_table import BEGIN, DAYS, Place, table

from edgerec_gym.logs.ebnerd_features import MIN_READERS
from edgerec_gym.logs.looking_back import (
    CATEGORY_COLUMNS,
    HOUR,
    IN_PAGE,
    ITEM_COLUMNS,
    LIFT_UNIT,
    MOST_HOURS,
    MOST_SHOWN,
    MOST_VIEWS,
    PAGE_COLUMNS,
    PRIOR_RATE,
    PRIOR_VIEWS,
    USER_COLUMNS,
    USER_ITEM_COLUMNS,
    WINDOWS,
    HourlySums,
    category_columns,
    hourly_sums,
    item_columns,
    lift,
    log_share,
    user_columns,
)
from edgerec_gym.logs.store import LogReader
from edgerec_gym.logs.table_survey import MOST_LEVELS, _most_frequent

EVENTS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 60), st.booleans(), st.booleans()), min_size=1, max_size=40
)  # item, hour, seen, clicked


def sums_of(events: list[tuple[int, int, bool, bool]]) -> HourlySums:
    item, hour = (np.array([event[k] for event in events], np.int64) for k in (0, 1))
    counts = np.array([[seen, seen and click] for _, _, seen, click in events], np.float64)
    return HourlySums.of(item, hour, counts)


def reference_lift(clicks: float, views: float, rate: float) -> float:
    shrunk = (clicks + PRIOR_VIEWS * rate) / (views + PRIOR_VIEWS)
    return max(-1.0, min(1.0, math.log(shrunk / rate) / LIFT_UNIT))


def reference_share(value: float, most: float) -> float:
    return min(1.0, math.log(1 + value) / math.log(1 + most))


def reference_item(events: list[tuple[int, int, bool, bool]], item: int, hour: int) -> list[float]:
    """Columns of an item as known when an hour began, in plain Python."""
    earlier = [event for event in events if event[1] < hour]
    all_views = sum(seen for *_, seen, _ in earlier)
    all_clicks = sum(seen and click for *_, seen, click in earlier)
    rate = (all_clicks + PRIOR_RATE * PRIOR_VIEWS) / (all_views + PRIOR_VIEWS)
    own = [event for event in earlier if event[0] == item]
    hours = [event[1] for event in own]

    def views_and_lift(window: int) -> list[float]:
        within = [event for event in own if event[1] >= hour - window]
        views = sum(seen for *_, seen, _ in within)
        clicks = sum(seen and click for *_, seen, click in within)
        return [reference_share(views, MOST_VIEWS), reference_lift(clicks, views, rate)]

    return [
        reference_share(hour - min([*hours, hour]), MOST_HOURS),
        reference_share(hour - max(hours), MOST_HOURS) if hours else 1.0,
        *views_and_lift(10**6),
        *(value for window in WINDOWS.values() for value in views_and_lift(window)),
    ]


@given(EVENTS, st.integers(0, 70))
@settings(max_examples=60, deadline=None)
def test_item_columns_are_what_earlier_hours_tell(events, hour):
    sums = sums_of(events)
    items = np.unique([event[0] for event in events])
    found = item_columns(sums, items, np.full(len(items), hour))
    assert found.shape == (len(items), len(ITEM_COLUMNS)) and found.dtype == np.float32
    assert np.allclose(found, [reference_item(events, item, hour) for item in items], atol=1e-6)
    assert (np.abs(found) <= 1).all()
    whole_and_day = category_columns(sums, items, np.full(len(items), hour))
    assert whole_and_day.shape == (len(items), len(CATEGORY_COLUMNS))
    at = [ITEM_COLUMNS.index(name) for name in ("lift", "lift_day")]
    assert np.array_equal(whole_and_day, found[:, at])


@given(EVENTS, st.integers(0, 70), st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_hourly_sums_add_up(events, hour, window):
    sums = sums_of(events)
    key = sums.key * 1000 + sums.hour
    assert (np.diff(key) > 0).all()
    assert np.array_equal(sums.sums.sum(0), sums_of(events[::-1]).sums.sum(0))
    items = np.unique(sums.key)
    every, until = np.full(len(items), 1000), np.full(len(items), hour)
    assert np.array_equal(sums.before(items, every).sum(0), sums.sums.sum(0))
    whole, recent = sums.before(items, until), sums.before(items, until, window)
    older = sums.before(items, np.maximum(until - window, 0))
    assert np.array_equal(whole, recent + older)
    assert (recent >= 0).all() and (recent[:, 1] <= recent[:, 0]).all()
    last = sums.last_before(items, until)
    assert (last < until).all()
    assert np.array_equal(last >= 0, sums.first_hour(items) < until)


@given(EVENTS, st.integers(0, 60), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_later_hours_change_no_item_column(events, hour, random):
    """Rows of this hour and later ones may change their clicks, go, or be another item's."""
    first = {event[0]: (event[0], 0, False, False) for event in events}  # each item stays known
    events = [*first.values(), *events]

    def other(event: tuple[int, int, bool, bool]) -> tuple[int, int, bool, bool]:
        return random.choice(sorted(first)), random.randint(hour, 60), random.random() < 0.5, True

    earlier, later = [e for e in events if e[1] < hour], [e for e in events if e[1] >= hour]
    changed = [*(first.values()), *earlier, *(other(e) for e in later if random.random() < 0.7)]
    items = np.array(sorted(first))
    at = np.full(len(items), hour)
    if hour > 0:
        kept = [*first.values(), *events]
        assert np.array_equal(
            item_columns(sums_of(kept), items, at), item_columns(sums_of(changed), items, at)
        )


def test_a_chunk_is_summed_by_item_and_hour_over_what_was_seen():
    rows = pl.DataFrame(
        {
            "item": ["a", "a", "a", "b"],
            "seconds": [3600.0, 7199.9, 7200.0, 3600.0],
            "seen": [True, False, True, False],
            "click": [True, True, False, False],
        }
    )
    found = hourly_sums(rows).sort("item", "hour").rows()
    assert found == [("a", 1, 1.0, 1.0), ("a", 2, 1.0, 0.0), ("b", 1, 0.0, 0.0)]


def test_sums_of_a_chunk_hold_what_the_table_has():
    rows = pl.DataFrame(
        {
            "item": ["a"] * 4,
            "seconds": [0.0] * 4,
            "seen": [True, True, True, False],
            "click": [True, False, False, False],
            "purchase": [True, True, False, False],  # the second without a click
            "price": [1.0, 2.0, 3.0, 4.0],
            "base_ctr": [0.5, 0.25, 0.125, 1.0],
        }
    )
    assert hourly_sums(rows).to_dicts() == [
        {"item": "a", "hour": 0, "views": 3.0, "clicks": 1.0, "purchases": 1.0, "price": 10.0, "prices": 4.0}
        | {"ctr": 0.875}
    ]
    sums = HourlySums.of(
        np.array([1, 1]), np.array([5, 7]), np.array([[1.0, 2, 3], [4, 5, 6]]), ("a", "b", "c")
    )
    assert sums.before(np.array([1]), np.array([6]), names=("c", "a")).tolist() == [[3.0, 1.0]]
    assert sums.of_all.before(np.array([0]), np.array([8]), 1, ("b",)).tolist() == [[5.0]]


VISITS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 200_000), st.booleans(), st.booleans(), st.booleans()),
    min_size=1,
    max_size=30,
)  # user, second, seen, clicked, liked


@given(VISITS, st.integers(0, 2), st.integers(0, 250_000))
@settings(max_examples=80, deadline=None)
def test_user_columns_are_what_earlier_visits_tell(rows, user, start):
    rates = [0.1, 0.02]
    counted = [[seen, seen and click, seen and like] for _, _, seen, click, like in rows]
    found = user_columns(
        np.array([row[0] for row in rows]),
        np.array([row[1] for row in rows], np.float64),
        np.array(counted, np.float64),
        np.array([start], np.float64),
        np.array([user]),
        np.array([rates]),
    )
    own = [k for k, row in enumerate(rows) if row[0] == user and row[1] < start]
    views, clicks, likes = (sum(counted[k][c] for k in own) for c in range(3))
    last = max((rows[k][1] for k in own), default=0)
    expected = [
        reference_share(views, MOST_VIEWS),
        reference_lift(clicks, views, rates[0]),
        reference_share((start - last) / HOUR, MOST_HOURS) if views else 1.0,
        reference_lift(likes, views, rates[1]),
    ]
    assert found.shape == (1, len(USER_COLUMNS) + 1) and found.dtype == np.float32
    assert np.allclose(found[0], expected, atol=1e-6)


def test_lifts_and_shares_stay_in_their_ranges():
    assert lift(np.array([[0.0, 0.0]]), np.array([0.3])).item() == 0  # nothing known, nothing told
    assert lift(np.array([[1e9, 1e9]]), np.array([1e-4])).item() == 1
    assert lift(np.array([[1e9, 0.0]]), np.array([0.5])).item() == -1
    assert log_share(np.array([-1.0, 0.0, 1e5, 1e9]), MOST_VIEWS).tolist() == [0, 0, 1, 1]


def test_equally_frequent_levels_have_an_order():
    names = [f"level {k}" for k in range(MOST_LEVELS + 2)]
    forward, backward = Counter(names), Counter(names[::-1])
    forward[names[5]] = backward[names[5]] = 2
    assert _most_frequent(forward) == _most_frequent(backward)
    assert _most_frequent(forward) == [names[5], *names[:5], *names[6:MOST_LEVELS]]


# The whole import

FIRST_CHANGED_DAY = 7  # days before are shared by all rows: embeddings, units of numbers


def hourly_table() -> pl.DataFrame:
    """The two pages of a user come three hours apart, by user at one of three hours."""
    page = pl.col("page_id").str.slice(-1).cast(pl.Int64)
    user = pl.col("uid").str.slice(1).cast(pl.Int64)
    return table().with_columns(
        ts=BEGIN
        + (pl.col("ts") - BEGIN) // 86_400 * 86_400
        + (8 + 3 * page + user % 3) * 3600
        + user * 60
        + pl.col("rank"),
        topic=pl.col("sku") % 4,
        liked=(pl.col("clicked") * pl.col("sku") % 2),
    )


MAPPED = {"category": "topic", "responses": {"like": "liked"}}


def derived(place: Place, frame: pl.DataFrame) -> pl.DataFrame:
    """One row per row of the log, keyed by user, second and item, with everything that was derived."""
    place.run(frame, out="logs", **MAPPED)
    names = pl.read_parquet(place.out / "items.parquet")
    catalogue = pl.DataFrame(
        {"name": LogReader(place.out).catalog.names, "item": np.arange(len(names), dtype=np.int32)}
    )
    rows = place.read().join(catalogue, on="item")
    first = pl.col("user_features").first().over("session")
    start = pl.col("hour").first().over("session")
    return rows.select(
        "user", "day", "slot", "name", "item_columns", "freshness", "base_ctr", "embedding_known",
        user_features=first, hour=start,
    ).sort("user", "day", "hour", "slot")  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("looking back")
    frame = hourly_table()
    return folder, frame, derived(Place(folder), frame)


@given(
    st.integers(FIRST_CHANGED_DAY, DAYS - 1),
    st.integers(8, 13),
    st.sampled_from(["clicks", "permuted", "removed"]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
def test_an_import_never_looks_ahead(original, tmp_path_factory, day, hour, change, seed):
    """Clicks of an hour and of later ones tell nothing of pages shown in that hour or before."""
    _, frame, whole = original
    rng = np.random.default_rng(seed)
    begin = BEGIN + day * 86_400 + hour * 3600
    at = frame["ts"].to_numpy() >= begin
    clicked, sku, liked = (frame[name].to_numpy().copy() for name in ("clicked", "sku", "liked"))
    if change == "clicks":  # of the page itself, too
        clicked[at] = rng.integers(0, 2, at.sum())
        liked[at] = clicked[at] * rng.integers(0, 2, at.sum())
        changed, last_hour = frame.with_columns(clicked=clicked, liked=liked), hour
    elif change == "permuted":
        rows = np.flatnonzero(at)
        other = rng.permutation(rows.reshape(-1, 5)).ravel()  # whole pages, whose items differ
        for values in (sku, clicked, liked):
            values[rows] = values[other]
        topic = sku % 4
        changed, last_hour = frame.with_columns(sku=sku, clicked=clicked, liked=liked, topic=topic), hour - 1
    else:
        gone = at & (rng.random(len(at) // 5) < 0.5).repeat(5)  # whole pages
        gone &= frame["uid"].to_numpy() != "u0"  # each day stays a day of the log
        changed, last_hour = frame.filter(~pl.Series(gone)), hour
    found = derived(Place(tmp_path_factory.mktemp("changed")), changed)

    def before(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.filter((pl.col("day") < day) | (pl.col("day") == day) & (pl.col("hour") <= last_hour))

    theirs = before(found)
    ours = before(whole).join(theirs, on=["user", "day", "hour", "slot"], how="semi")
    assert ours.height == theirs.height > 0.6 * whole.height
    for name in ours.columns:
        a, b = (np.stack([np.asarray(v) for v in rows[name].to_list()]) for rows in (ours, theirs))
        assert np.allclose(a, b, atol=1e-6), name
    if change == "clicks" and day < DAYS - 1:  # while later pages do see them
        assert not whole["item_columns"].equals(found["item_columns"])


def test_the_log_holds_what_plain_python_derives(original):
    """Item columns, freshness, base_ctr and user columns of every row of one day."""
    folder, frame, rows = original
    config = LogReader(folder / "logs").config
    assert config.item_columns == (*ITEM_COLUMNS, *CATEGORY_COLUMNS, *PAGE_COLUMNS, *USER_ITEM_COLUMNS)
    assert config.profile_size == len(USER_COLUMNS) + 1  # and the lift of likes
    seconds, sku, clicked = (frame[name].to_list() for name in ("ts", "sku", "clicked"))
    events = [(s, t // HOUR, True, bool(c)) for s, t, c in zip(sku, seconds, clicked, strict=True)]
    users = sorted(frame["uid"].unique())
    first_day = BEGIN // 86_400
    for row in rows.filter((pl.col("day") == 8) & (pl.col("user") < 4)).to_dicts():
        hour = (first_day + row["day"]) * 24 + row["hour"]
        expected = reference_item(events, row["name"], hour)
        topics = [(s % 4, h, seen, click) for s, h, seen, click in events]
        topic = reference_item(topics, row["name"] % 4, hour)
        expected += [topic[ITEM_COLUMNS.index("lift")], topic[ITEM_COLUMNS.index("lift_day")]]
        of_page = rows.filter(*(pl.col(key) == row[key] for key in ("user", "day", "hour")))["item_columns"]
        means = np.mean([values[: len(ITEM_COLUMNS)] for values in of_page.to_list()], axis=0)
        expected += [expected[at] - means[at] for at in map(ITEM_COLUMNS.index, IN_PAGE)]
        page_start = hour * HOUR + int(users[row["user"]][1:]) * 60  # its visit begins with it
        shown = [
            c
            for u, s, t, c in zip(frame["uid"].to_list(), sku, seconds, clicked, strict=True)
            if (u, s) == (users[row["user"]], row["name"]) and t < page_start
        ]
        expected += [reference_share(count, MOST_SHOWN) for count in (len(shown), sum(shown))]
        assert np.allclose(row["item_columns"], expected, atol=1e-5)
        age = hour - min(h for s, h, *_ in events if s == row["name"])
        assert row["freshness"] == pytest.approx(1 / (1 + age / 24), abs=1e-6)
        today = (first_day + row["day"]) * 24
        earlier = [(s, click) for s, h, _, click in events if h < today]
        rate = (sum(click for _, click in earlier) + 0.05 * 20) / (len(earlier) + 20)
        own = [click for s, click in earlier if s == row["name"]]
        assert row["base_ctr"] == pytest.approx((sum(own) + rate * 20) / (len(own) + 20), abs=1e-6)
        assert row["embedding_known"] == (sum(own) >= MIN_READERS)
        name = users[row["user"]]
        visits = [
            (t, c)
            for t, c, u in zip(seconds, clicked, frame["uid"].to_list(), strict=True)
            if u == name and t < hour * HOUR
        ]
        begin = hour * HOUR + int(name[1:]) * 60
        all_views = [c for _, h, _, c in events if h < hour]
        rate = (sum(all_views) + PRIOR_RATE * PRIOR_VIEWS) / (len(all_views) + PRIOR_VIEWS)
        expected_user = [
            reference_share(len(visits), MOST_VIEWS),
            reference_lift(sum(c for _, c in visits), len(visits), rate),
            reference_share((begin - max(t for t, _ in visits)) / HOUR, MOST_HOURS),
        ]
        assert np.allclose(row["user_features"][config.embedding_size :][:3], expected_user, atol=1e-5)
