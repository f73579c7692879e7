"""One clear message for each kind of wrong table or mapping; nothing is written then."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import small_table as small
from small_table import Place

from edgerec_gym.errors import InputError
from edgerec_gym.logs.table import import_table

FORMATS = (".csv", ".parquet")
Change = Callable[[pl.DataFrame], pl.DataFrame]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def with_value(column: str, row: int, value: Any) -> Change:
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        values = frame[column].to_list()
        values[row] = value
        return frame.with_columns(pl.Series(column, values, strict=True))

    return change


def with_column(name: str, low: Any, row: int, value: Any) -> Change:
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        return with_value(name, row, value)(frame.with_columns(pl.lit(low).alias(name)))

    return change


VALUES: list[tuple[str, Change, dict[str, Any], str]] = [
    ("no user", with_value("uid", 7, None), {}, "row 7: column 'uid' is empty; allowed: anything but empty"),
    ("blank user", with_value("uid", 7, " "), {}, "row 7: column 'uid' is ' '; allowed"),
    ("no item", with_value("sku", 1199, None), {}, "row 1199: column 'sku' is empty"),
    ("no list", with_value("page_id", 7, None), {}, "row 7: column 'page_id' is empty"),
    ("no position", with_value("rank", 7, None), {}, "row 7: column 'rank' is empty; allowed: a number"),
    ("no time", with_value("ts", 0, None), {}, "row 0: column 'ts' is empty; allowed: times from 1990 on"),
    ("early time", with_value("ts", 3, -5), {}, "row 3: column 'ts' is -5; allowed: times from 1990"),
    (
        "late time",
        with_value("ts", 3, 17 * 10**11),
        {},
        'row 3: column \'ts\' is 1700000000000; .*"time_unit": "ms"',
    ),
    ("no click", with_value("clicked", 5, None), {}, "row 5: column 'clicked' is empty; allowed: 0, 1"),
    ("click of 2", with_value("clicked", 5, 2), {}, "row 5: column 'clicked' is 2; allowed: 0, 1"),
    (
        "dwell",
        with_column("d", 1.0, 5, -0.5),
        {"dwell_seconds": "d"},
        "row 5: column 'd' is -0.5; .*at least 0",
    ),
    (
        "no dwell",
        with_column("d", 1.0, 5, None),
        {"dwell_seconds": "d"},
        "row 5: column 'd' is empty; allowed: a",
    ),
    ("price", with_column("p", 1.0, 5, -2.0), {"price": "p"}, "row 5: column 'p' is -2.0; .*at least 0"),
    ("ctr", with_column("c", 0.5, 5, 1.5), {"base_ctr": "c"}, "row 5: column 'c' is 1.5; allowed: 0 to 1"),
    (
        "ctr nan",
        with_column("c", 0.5, 5, float("nan")),
        {"base_ctr": "c"},
        "row 5: column 'c' is nan; .* 0 to 1",
    ),
    ("no session", with_column("s", 3, 5, None), {"session": "s"}, "row 5: column 's' is empty"),
    (
        "type",
        with_column("k", "a", 5, "b"),
        {"card_type": "k", "card_types": {"a": "goods", "v": "video"}},
        "row 5: column 'k' is 'b'; allowed: a, v",
    ),
    (
        "category",
        with_column("k", "a", 5, "b"),
        {"category": "k"},
        "column 'k' is '.', in row .* one value for each",
    ),
    (
        "unseen",
        lambda f: f.with_columns(s=1 - pl.col("clicked")),
        {"seen": "s"},
        "row .*: clicked, but not seen",
    ),
    (
        "never clicked",
        lambda f: f.with_columns(clicked=pl.lit(0)),
        {},
        "column 'clicked': no row is clicked; nothing",
    ),
    ("no rows", lambda f: f.head(0), {}, "has no rows"),
    ("same rank", with_value("rank", 1, 0), {}, "row 1: .*rank 0.* is the same place as in row 0, but"),
    (
        "twice",
        lambda f: pl.concat([f, f.head(1).with_columns(clicked=1 - pl.col("clicked"))]),
        {},
        "row 1200: .* is the same place as in row 0, but the rows differ",
    ),
    (
        "list again",
        lambda f: f.with_columns(pl.col("page_id").str.tail(1)),
        {},
        "row .*: list '.' of user 'u0' began",
    ),
    (
        "few items",
        lambda f: f.filter(pl.col("sku") < 1008),
        {"feed": {"page_size": 5, "cloud": {"supply": "catalogue"}}},
        "8 goods are too few",
    ),
    (
        "missing",
        lambda f: f.rename({"clicked": "click_ed"}),
        {},
        "no column 'clicked' for 'click'; did you mean 'click_ed'",
    ),
    (
        "embedding",
        lambda f: f.with_columns(v0=1.0),
        {"embedding_prefix": "v"},
        "'v' matches 1 columns; allowed: 2 to",
    ),
    (
        "embedding nan",
        lambda f: with_column("v0", 1.0, 5, float("inf"))(f.with_columns(v1=1.0)),
        {"embedding_prefix": "v"},
        "row 5: column 'v0' is inf; allowed: a number",
    ),
]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("change", "mapping", "message"), [c[1:] for c in VALUES], ids=[c[0] for c in VALUES]
)
def test_one_message_for_each_wrong_table(place, kind, change, mapping, message):
    with pytest.raises(InputError) as error:
        place.run(change(small.table()), kind, **mapping)
    text = str(error.value)
    # A value of a CSV file is text, so it stands in quotes.
    assert re.search(message.replace("'", ""), text.replace("'", ""), re.IGNORECASE), text
    assert "\n" not in text and f"table{kind}" in text
    assert not place.out.exists()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("uid", "column 'uid' must hold text or whole numbers, not Float64"),
        ("sku", "column 'sku' must hold text or whole numbers, not Float64"),
        ("clicked", "column 'clicked' must hold true or false, or 0 and 1, not List"),
        ("ts", "column 'ts' must hold times, or seconds .* not List"),
        ("rank", "column 'rank' must hold numbers, not Boolean"),
    ],
)
def test_wrong_types_of_a_parquet_table(place, column, message):
    values = {"uid": 1.0, "sku": 1.0, "rank": True}.get(column, [1])
    with pytest.raises(InputError, match=message):
        place.run(small.table().with_columns(pl.lit(pl.Series([values])).first().alias(column)))


def test_text_that_is_no_time(place):
    frame = small.table().with_columns(pl.from_epoch("ts", time_unit="s").cast(pl.String))
    place.run(frame, ".csv")
    with pytest.raises(InputError, match="row 9: column 'ts' is 'noon'; allowed: times"):
        place.run(with_value("ts", 9, "noon")(frame), ".csv", out="other")


def test_milliseconds(place):
    place.run(small.table())
    expected = place.read()
    place.run(small.table().with_columns(pl.col("ts") * 1000), out="other", time_unit="ms")
    assert place.read().equals(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clik": "x"}, "unknown field 'clik'; did you mean 'click'"),
        ({"user": None}, "'user' is missing; required are user, item, time, click"),
        ({"list": None, "position": None}, "name a column for 'list' or for 'position'"),
        ({"user": 5}, "user must be text or a list, got 5"),
        ({"time_unit": "h"}, "time_unit: the unit must be one of s, ms, us, ns"),
        ({"session_gap_minutes": 0}, "session_gap_minutes = 0 is out of range"),
        ({"card_type": "k"}, "'card_type' and 'card_types' need each other"),
        ({"card_types": 5}, "card_types must be an object"),
        ({"card_type": "k", "card_types": {"a": "video"}}, "no value means 'goods'"),
        ({"card_type": "k", "card_types": {"a": "goods"}}, "names no mix-in type"),
        ({"card_type": "k", "card_types": {"a": "goods", "b": 3}}, "3 must be 'goods' or the name"),
        ({"feed": {"page_sise": 3}}, "FeedConfig has no field 'page_sise'; did you mean 'page_size'"),
        ({"feed": {"profile_size": 3}}, "the table determines it"),
        ({"feed": {"embedding_size": 3}, "embedding_prefix": "v"}, "embedding_prefix already determines it"),
    ],
)
def test_one_message_for_each_wrong_mapping(place, changes, message):
    with pytest.raises(InputError, match=message) as error:
        place.run(small.table(), **changes)
    assert "mapping.json" in str(error.value)


def test_files_that_are_no_tables(place):
    mapping = small.save_mapping(place.folder / "mapping.json")
    for name, content, message in [
        ("a.parquet", "no", "a.parquet is not a readable table"),
        ("a.csv", "", "a.csv is not a readable table"),
        (
            "b.csv",
            "uid,sku,ts,clicked,page_id,rank\nu,1\nu,1,2,1,p,1,7,8\n",
            "b.csv is not a readable table|row 0",
        ),
        ("a.xlsx", "no", "unknown kind of table; allowed: .parquet, .csv"),
    ]:
        (place.folder / name).write_text(content)
        with pytest.raises(InputError, match=message):
            import_table(place.folder / name, mapping, place.out)
    with pytest.raises(InputError, match="none.csv does not exist"):
        import_table(place.folder / "none.csv", mapping, place.out)
