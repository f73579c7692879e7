"""Reads and checks an EB-NeRD bundle, and cuts it into sessions, pages and slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from edgerec_gym.errors import InputError
from edgerec_gym.parquet import check_parquet

SPLITS = ("train", "validation")
FILES = tuple(f"{split}/{name}.parquet" for split in SPLITS for name in ("behaviors", "history"))
DAY = 24 * 3600

KINDS: dict[str, Callable[[pl.DataType], bool]] = {
    "whole numbers": lambda t: t.is_integer(),
    "numbers": lambda t: t.is_numeric(),
    "true or false": lambda t: t == pl.Boolean,
    "times": lambda t: isinstance(t, pl.Datetime),
    "lists of whole numbers": lambda t: isinstance(t, pl.List) and t.inner.is_integer(),
    "lists of times": lambda t: isinstance(t, pl.List) and isinstance(t.inner, pl.Datetime),
}
# Column -> (kind, may be empty)
BEHAVIORS = {
    "impression_id": ("whole numbers", False),
    "user_id": ("whole numbers", False),
    "session_id": ("whole numbers", False),
    "impression_time": ("times", False),
    "article_ids_inview": ("lists of whole numbers", False),
    "article_ids_clicked": ("lists of whole numbers", False),
    "next_read_time": ("numbers", True),
    "device_type": ("whole numbers", True),
    "is_subscriber": ("true or false", True),
    "is_sso_user": ("true or false", True),
}
HISTORY = {
    "user_id": ("whole numbers", False),
    "impression_time_fixed": ("lists of times", False),
    "article_id_fixed": ("lists of whole numbers", False),
}


@dataclass(frozen=True)
class Bundle:
    """A bundle in log order: sessions by start time, then pages, then slots.

    Attributes:
        impressions: one row per page: validation (bool), session, page, user, seconds (since 1970), start
            (seconds of its session), day, hour, device_type, is_subscriber, is_sso_user and
            next_read_time (seconds).
        page_row: (n,) int64, each slot's row in `impressions`.
        item: (n,) int64, each slot's place in `articles`.
        click: (n,) bool.
        timed: (n,) bool, clicks whose page view lasted next_read_time.
        page_age: (n,) int32, place in the page.
        slot: (n,) int32, place in the session.
        articles: (A,) int64, sorted ids of all articles in view.
        reads: by split, rows (user, article, seconds) of reads before that week.
        counts: counts of what was kept, changed and dropped.
    """

    impressions: pl.DataFrame
    page_row: np.ndarray
    item: np.ndarray
    click: np.ndarray
    timed: np.ndarray
    page_age: np.ndarray
    slot: np.ndarray
    articles: np.ndarray
    reads: dict[str, pl.DataFrame]
    counts: dict[str, int]

    def column(self, name: str) -> np.ndarray:
        """Return a column of `impressions` for each slot."""
        return self.impressions[name].to_numpy()[self.page_row]


def read_bundle(source: Path, max_slots: int) -> Bundle:
    """Read a bundle.

    Args:
        source: folder with the four files.
        max_slots: maximum session length; a longer session continues as a new one at the next page.

    Raises:
        InputError: the bundle is wrong; the message names the file, and the column or row.
    """
    for name in FILES:
        if not (source / name).is_file():
            raise InputError(f"{source / name} does not exist; an EB-NeRD bundle has {', '.join(FILES)}")
    weeks = {split: _read_week(source / split / "behaviors.parquet") for split in SPLITS}
    begins = {split: int(week["seconds"].min()) for split, week in weeks.items()}  # type: ignore[arg-type]
    if begins["validation"] <= weeks["train"]["seconds"].max():  # type: ignore[operator]
        raise InputError(f"{source}: the validation week must begin after the train week ends")
    counts: dict[str, int] = {}
    frame = pl.concat([week.with_columns(validation=pl.lit(k == 1)) for k, week in enumerate(weeks.values())])
    reads = {}
    for split in SPLITS:
        every = _read_history(source / split / "history.parquet")
        reads[split] = every.filter(pl.col("seconds") < begins[split])
        counts[f"{split}_history_reads_too_late_dropped"] = every.height - reads[split].height
    frame = _clean(frame, max_slots, counts)
    frame = _sessions(frame, max_slots, counts)
    frame = _days(frame, begins)
    return _slots(frame, reads, counts)


def _read(path: Path, columns: dict[str, tuple[str, bool]]) -> pl.DataFrame:
    check_parquet(path)
    try:
        schema = pl.read_parquet_schema(path)
        for name, (kind, _) in columns.items():
            if name not in schema:
                raise InputError(f"{path}: missing column {name!r}")
            if not KINDS[kind](schema[name]):
                raise InputError(f"{path}: column {name!r} must hold {kind}, not {schema[name]}")
        frame = pl.read_parquet(path, columns=list(columns))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
    if not frame.height:
        raise InputError(f"{path} has no rows")
    for name, (kind, optional) in columns.items():
        empty = frame[name].is_null()
        if kind.startswith("lists"):
            empty |= frame[name].list.eval(pl.element().is_null()).list.any()
        if not optional and empty.any():
            raise InputError(f"{path}: row {empty.arg_true()[0]}: {name} is empty or has an empty entry")
    return frame


def _read_week(path: Path) -> pl.DataFrame:
    frame = _read(path, BEHAVIORS)
    wrong = ~(pl.col("next_read_time").is_between(0, float("inf"), closed="left"))
    rows = frame.select(wrong.fill_null(False)).to_series().arg_true()
    if len(rows):
        value = frame["next_read_time"][rows[0]]
        raise InputError(f"{path}: row {rows[0]}: next_read_time is {value}; it must be at least 0 seconds")
    return frame.select(
        pl.col("impression_id", "session_id").cast(pl.Int64),
        pl.col("user_id").cast(pl.Int64).alias("user"),
        pl.col("impression_time").dt.epoch("s").alias("seconds"),
        pl.col("article_ids_inview", "article_ids_clicked").cast(pl.List(pl.Int64)),
        pl.col("next_read_time").cast(pl.Float64),
        pl.col("device_type").cast(pl.Int64),
        "is_subscriber",
        "is_sso_user",
    )


def _read_history(path: Path) -> pl.DataFrame:
    frame = _read(path, HISTORY)
    lengths = frame["article_id_fixed"].list.len() != frame["impression_time_fixed"].list.len()
    if lengths.any():
        row = lengths.arg_true()[0]
        raise InputError(f"{path}: row {row}: article_id_fixed and impression_time_fixed differ in length")
    return (
        frame.explode("article_id_fixed", "impression_time_fixed")
        .drop_nulls()  # from empty lists
        .select(
            pl.col("user_id").cast(pl.Int64).alias("user"),
            pl.col("article_id_fixed").cast(pl.Int64).alias("article"),
            pl.col("impression_time_fixed").dt.epoch("s").alias("seconds"),
        )
    )


def _clean(frame: pl.DataFrame, max_slots: int, counts: dict[str, int]) -> pl.DataFrame:
    """Drop and count what cannot be a page of a session."""

    def total(column: str) -> int:
        return int(frame[column].list.len().sum())

    for column, name in (("article_ids_inview", "inview_articles"), ("article_ids_clicked", "clicks")):
        before = total(column)
        frame = frame.with_columns(pl.col(column).list.unique(maintain_order=True))
        counts[f"repeated_{name}_dropped"] = before - total(column)
    size = frame["article_ids_inview"].list.len()
    counts["impressions_without_articles_dropped"] = int((size == 0).sum())
    counts["impressions_above_max_slots_dropped"] = int((size > max_slots).sum())
    frame = frame.filter((size > 0) & (size <= max_slots))
    clicks = total("article_ids_clicked")
    first_click = pl.col("article_ids_clicked").list.first().alias("first_click")
    inside = pl.col("article_ids_clicked").list.set_intersection("article_ids_inview")
    frame = frame.with_columns(first_click, inside)
    counts["clicks_not_in_view_dropped"] = clicks - total("article_ids_clicked")
    return frame


def _sessions(frame: pl.DataFrame, max_slots: int, counts: dict[str, int]) -> pl.DataFrame:
    """Number sessions in order of their start, and pages within them."""
    frame = frame.sort("validation", "user", "session_id", "seconds", "impression_id")
    key = frame.select(pl.struct("validation", "user", "session_id").rle_id()).to_series().to_numpy()
    size = frame["article_ids_inview"].list.len().to_numpy()
    starts = np.zeros(len(key), np.bool_)
    used = 0
    for row in range(len(key)):
        new = row == 0 or key[row] != key[row - 1]
        starts[row] = new or used + size[row] > max_slots
        used = int(size[row]) if starts[row] else used + int(size[row])
    first = np.flatnonzero(starts)
    counts["sessions_added_by_max_slots"] = len(first) - (int(key[-1]) + 1)
    seconds = frame["seconds"].to_numpy()[first]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(seconds, kind="stable")] = np.arange(len(first))
    of = np.cumsum(starts) - 1
    return frame.with_columns(
        session=rank[of], start=seconds[of], page=(np.arange(len(of)) - first[of]).astype(np.int32)
    ).sort("session", "page")


def _days(frame: pl.DataFrame, begins: dict[str, int]) -> pl.DataFrame:
    """Number days of 24 h from the hour a week begins; the validation week follows the train week."""
    origin = {split: begin - begin % 3600 for split, begin in begins.items()}
    start, late = frame["start"].to_numpy(), frame["validation"].to_numpy()
    day = (start - np.where(late, origin["validation"], origin["train"])) // DAY
    week = max(-(-(origin["validation"] - origin["train"]) // DAY), int(day[~late].max()) + 1)
    day = day + np.where(late, week, 0)
    return frame.with_columns(day=day.astype(np.int32), hour=(start % DAY // 3600).astype(np.int32))


def _slots(frame: pl.DataFrame, reads: dict[str, pl.DataFrame], counts: dict[str, int]) -> Bundle:
    size = frame["article_ids_inview"].list.len().to_numpy().astype(np.int64)
    page_row = np.repeat(np.arange(len(size)), size)
    slots = frame.select("article_ids_inview", "article_ids_clicked", "first_click").explode(
        "article_ids_inview"
    )
    click = (
        slots.select(pl.col("article_ids_inview").is_in(pl.col("article_ids_clicked"))).to_series().to_numpy()
    )
    articles, item = np.unique(slots["article_ids_inview"].to_numpy(), return_inverse=True)
    rows = np.arange(len(page_row))
    page_start = np.cumsum(size) - size
    first_page = np.flatnonzero(frame["page"].to_numpy() == 0)
    session_start = np.repeat(page_start[first_page], np.diff(np.append(first_page, len(size))))
    columns: dict[str, Any] = {
        "page_row": page_row,
        "item": item,
        "click": click,
        "page_age": (rows - page_start[page_row]).astype(np.int32),
        "slot": (rows - session_start[page_row]).astype(np.int32),
    }
    first = slots.select(pl.col("article_ids_inview") == pl.col("first_click")).to_series().fill_null(False)
    timed = click & first.to_numpy() & frame["next_read_time"].is_not_null().to_numpy()[page_row]
    counts |= {
        "sessions": len(first_page),
        "impressions": len(size),
        "slots": len(page_row),
        "clicks": int(click.sum()),
        "clicks_without_read_time": int(click.sum()) - int(timed.sum()),
    }
    impressions = frame.drop(
        "article_ids_inview", "article_ids_clicked", "first_click", "impression_id", "session_id"
    )
    return Bundle(impressions, timed=timed, articles=articles, reads=reads, counts=counts, **columns)
