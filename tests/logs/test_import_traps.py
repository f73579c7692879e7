"""Tables that look right and are not: each is refused or noted in words that tell what to do."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small_table as small
from small_table import Place

from edgerec_gym.errors import InputError

TS = pl.from_epoch("ts", time_unit="s")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def shown_as(form: str) -> pl.Expr:
    return TS.dt.to_string(form).alias("ts")


# Times


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("change", "mapping"),
    [
        (pl.col("ts") * 10**6, {"time_unit": "us"}),
        (pl.col("ts") * 10**9, {"time_unit": "ns"}),
        (shown_as("%Y-%m-%d %H:%M:%S UTC"), {}),
        (shown_as("%Y-%m-%dT%H:%M:%S.000+00:00"), {}),
        (shown_as("%Y/%m/%d %H:%M:%S"), {}),
        (shown_as("%m/%d/%Y %I:%M:%S %p"), {}),
        (shown_as("%d.%m.%Y %H:%M:%S"), {}),
        (shown_as("%d.%m.%y %H:%M:%S"), {"time_format": "%d.%m.%y %H:%M:%S"}),
        (shown_as("%Y%m%d%H%M%S"), {"time_format": "%Y%m%d%H%M%S"}),
        (
            (TS + pl.duration(hours=8)).dt.to_string("%Y-%m-%d %H:%M:%S").alias("ts"),
            {"time_zone": "Asia/Shanghai"},
        ),
        ((TS + pl.duration(hours=8)).alias("ts"), {"time_zone": "Asia/Shanghai"}),
    ],
)
def test_times_in_other_forms_give_the_same_log(place, kind, change, mapping):
    place.run(small.table())
    expected = place.read()
    place.run(small.table().with_columns(change), kind, "other", **mapping)
    assert place.read().equals(expected)


@pytest.mark.parametrize("clock", ["%H", "%H%M", "%H%M%S", "%H:%M:%S"])
@pytest.mark.parametrize("number", [True, False])
def test_a_date_and_a_clock(place, clock, number):
    if number and ":" in clock:
        pytest.skip("no number")
    frame = small.table()
    step = {"%H": 3600, "%H%M": 60}.get(clock, 1)
    frame = frame.with_columns(pl.col("ts") // step * step).unique(["uid", "ts", "rank"], maintain_order=True)
    place.run(frame)
    expected = place.read()
    kind = pl.Int64 if number else pl.String
    frame = frame.with_columns(
        day=TS.dt.to_string("%Y%m%d").cast(kind), clock=TS.dt.to_string(clock).cast(kind)
    )
    place.run(frame.drop("ts"), out="other", time=["day", "clock"])
    assert place.read().equals(expected)


@pytest.mark.parametrize(
    ("change", "mapping", "message"),
    [
        (
            shown_as("%Y%m%d").cast(pl.Int64),
            {},
            r'dates as numbers such as 20231115.* "time_format": "%Y%m%d"',
        ),
        (
            shown_as("%y%m%d%H").cast(pl.Int64),
            {},
            r'numbers such as 23111512.*"%y%m%d%H" \(2023-11-15 12:00\)',
        ),
        (shown_as("%Y%m%d%H"), {}, r'"time_format": "%Y%m%d%H"'),
        (shown_as("%Y%m%d%H%M%S"), {}, r'"time_format": "%Y%m%d%H%M%S"'),
        (pl.col("ts") * 1000, {}, r'"time_unit": "ms" this would be in 2023'),
        (pl.col("ts"), {"time_unit": "ms"}, r'before 2100.*"time_unit": "s" this would be in 2023'),
        (pl.col("ts") * 1000, {"time_unit": "us"}, r'"time_unit": "ms" this would be in 2023'),
        (pl.col("ts").cast(pl.Float32), {}, "float32, in steps of 128 seconds"),
        (pl.col("ts"), {"time_zone": "Asia/Tokyo"}, "numbers since 1970, which are in UTC"),
        (shown_as("%Y-%m-%d %H:%M:%SZ"), {"time_zone": "Asia/Tokyo"}, "already names its time zone"),
        (TS.dt.replace_time_zone("UTC"), {"time_zone": "Asia/Tokyo"}, "already is in the time zone UTC"),
        (shown_as("%H:%M:%S"), {}, "column 'ts' begins with '12:00:00'; allowed: times such as"),
        (shown_as("%H:%M"), {"time_format": "%H:%M"}, "which has no year"),
        (shown_as("%Y"), {"time_format": "%Q%Y"}, "allowed: times as '%Q%Y'"),
        (pl.lit(datetime.datetime(1989, 12, 31)).alias("ts"), {}, "allowed: times from 1990 on"),
    ],
)
def test_times_of_a_wrong_year_are_refused(place, change, mapping, message):
    with pytest.raises(InputError, match=message):
        place.run(small.table().with_columns(change), **mapping)
    assert not place.out.exists()


def test_days_and_months_in_an_order_that_no_row_tells(place):
    frame = small.table().with_columns(pl.col("ts") - 12 * 86400)  # 3 to 12 November
    with pytest.raises(InputError, match='"time_format": "%d/%m/%Y %H:%M" or "%m/%d/%Y %H:%M"'):
        place.run(frame.with_columns(shown_as("%m/%d/%Y %H:%M")))
    place.run(frame.with_columns(shown_as("%d/%m/%Y %H:%M:%S")), time_format="%d/%m/%Y %H:%M:%S")
    assert place.read()["day"].n_unique() == 10


def test_dates_without_a_clock_are_noted(place):
    result = place.run(small.table().with_columns(TS.dt.date().alias("ts")))
    assert "tells the day only" in "\n".join(result["notes"])


# Units of durations


@pytest.mark.parametrize("meaning", ["dwell_seconds", "page_view_seconds"])
def test_milliseconds_as_seconds_name_the_unit(place, meaning):
    frame = small.table().with_columns(t=pl.Series(np.random.default_rng(0).integers(300, 90_000, 1200)))
    with pytest.raises(
        InputError, match=r'column "?\'?t.*% of the values are above .* seconds; .*"ms" if they are'
    ):
        place.run(frame, **{meaning: "t"})
    place.run(frame, **{meaning: {"column": "t", "unit": "ms"}})
    place.run(frame, out="sure", **{meaning: {"column": "t", "unit": "s"}})
    with pytest.raises(InputError, match="are below 0.05 seconds"):
        place.run(frame.with_columns(pl.col("t") / 1e7), out="third", **{meaning: "t"})


# Ids


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (pl.format("{} ", "sku"), "1200 ids"),
        (pl.format("{} ", "sku"), "blanks"),
        (pl.format("{}.0", "sku"), "600 ids end in .0"),
    ],
)
def test_one_id_in_two_spellings_is_one_id(place, change, note):
    place.run(small.table())
    expected = place.read()
    text = pl.col("sku").cast(pl.String)
    half = pl.when(pl.int_range(pl.len()) % 2 == 0).then(change).otherwise(text).alias("sku")
    result = place.run(small.table().with_columns(half), out="other")
    assert place.read().equals(expected)
    assert note.replace("1200", "600") in "\n".join(result["notes"])


@pytest.mark.parametrize("name", ["^uid$", "*", "a b", "^.*$"])
def test_columns_may_be_named_like_patterns(place, name):
    place.run(small.table())
    expected = place.read()
    for kind in (".csv", ".parquet"):
        place.run(small.table().rename({"uid": name}), kind, f"other{kind}", user=name)
        assert place.read().equals(expected)


@pytest.mark.parametrize("columns", [["uid2", "sku"], ["clicked"], ["rank"]])
def test_decimals(place, columns):
    frame = small.table().with_columns(uid2=pl.col("uid").str.slice(1).cast(pl.Int64))
    place.run(frame.with_columns(pl.col(columns).cast(pl.Decimal(38, 0))), user="uid2")
    place.run(frame.with_columns(clicked=pl.col("clicked").cast(pl.Decimal(10, 2))), out="other", user="uid2")
    assert place.read()["click"].sum() == frame["clicked"].sum()


# What only all rows tell


def test_padded_lists_name_the_rows_to_leave_out(place):
    padded = small.table().with_columns(
        sku=pl.when(pl.col("rank") >= 3).then(0).otherwise("sku"),
        clicked=pl.when(pl.col("rank") >= 3).then(0).otherwise("clicked"),
    )
    with pytest.raises(
        InputError, match=r"item 0 stands twice .* 240 of 240 pages.*\"rows\": \[\"sku != 0\"\]"
    ):
        place.run(padded)
    place.run(padded, rows=["sku != 0"])
    twice = small.table().with_columns(sku=pl.when(pl.col("page_id") == "p0-0").then(1000).otherwise("sku"))
    assert "48 rows show an item that their page already holds" in "\n".join(
        place.run(twice, out="b")["notes"]
    )


def as_events(frame: pl.DataFrame) -> pl.DataFrame:
    shown = frame.with_columns(event=pl.lit("view"))
    clicks = frame.filter(pl.col("clicked") == 1).with_columns(pl.col("ts") + 5, event=pl.lit("click"))
    return pl.concat([shown, clicks]).drop("clicked", "page_id", "rank").sort("ts", maintain_order=True)


def test_clicks_as_rows_of_their_own(place):
    rng = np.random.default_rng(0)
    place.run(small.table())
    expected = place.read()
    mapping = {"click": "event = click", "list": "ts", "position": None}
    with pytest.raises(InputError, match='100 % of the clicked rows .* write "join_clicks": true'):
        place.run(as_events(small.table()), **mapping, out="refused")
    result = place.run(as_events(small.table()), **mapping, out="other", join_clicks=True)
    assert place.read().height == expected.height and place.read()["click"].sum() == expected["click"].sum()
    assert result["counts"]["rows_of_clicks_joined"] == expected["click"].sum()
    often = small.table().with_columns(
        sku=pl.Series(rng.integers(1000, 1005, 1200))
    )  # few items, shown again
    place.run(often.with_columns(page_id=pl.int_range(pl.len())), out="often", position=None)


def test_file_order_that_knows_the_clicks_is_noted(place):
    frame = small.table()
    said = "the order of rows within a page tells what was clicked"
    assert said not in "\n".join(place.run(frame, position=None)["notes"])
    first = frame.sort("page_id", "uid", -pl.col("clicked"), maintain_order=True)
    notes = "\n".join(place.run(first, position=None, out="other")["notes"])
    assert said in notes and "stand before the others" in notes
    assert said not in "\n".join(place.run(first, out="third")["notes"])  # a position of its own
