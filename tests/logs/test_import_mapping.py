"""What a mapping can say: conditions, composite ids, side tables, responses, and what may be empty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import small_table as small
from small_table import Place

from edgerec_gym.config import CloudConfig, FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.logs.store import LogReader
from edgerec_gym.logs.table_mapping import read_mapping
from edgerec_gym.logs.table_source import SourceTable


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def scanned(place: Place, frame: pl.DataFrame, kind: str = ".parquet", **mapping: Any) -> pl.DataFrame:
    """The scan that an import would read."""
    path = small.save(frame, place.folder / f"table{kind}")
    scratch = place.folder / f"scratch{len(list(place.folder.iterdir()))}"
    scratch.mkdir()
    table = SourceTable(path, read_mapping(small.save_mapping(place.folder / "m.json", **mapping)), scratch)
    return table.collect(table.scan).sort("row")


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("flag", "values", "true"),
    [
        ("rating >= 4", [1.0, 4, 5, 3.5], [0, 1, 1, 0]),
        ("rating<2", [1.0, 4, 5, 3.5], [1, 0, 0, 0]),
        ("event = click", ["click", "view", "open", "buy"], [1, 0, 0, 0]),
        ("event != 'view'", ["click", "view", "open", "buy"], [1, 0, 1, 1]),
        ({"column": "event", "values": ["click", "open"]}, ["click", "view", "open", "buy"], [1, 0, 1, 0]),
        ({"column": "rating", "values": [1, 5]}, [1.0, 4, 5, 3.5], [1, 0, 1, 0]),
    ],
)
def test_every_flag_may_be_a_condition(place, kind, flag, values, true):
    name = flag["column"] if isinstance(flag, dict) else flag.split()[0].split("<")[0]
    frame = small.table().drop("clicked").with_columns(pl.Series(name, values * 300, strict=False))
    rows = scanned(place, frame, kind, click=flag, purchase=flag, responses={"like": flag})
    assert rows["click"].to_list() == [bool(v) for v in true] * 300
    assert rows["purchase"].equals(rows["click"].alias("purchase"))
    assert rows["response:like"].to_list() == [float(v) for v in true] * 300


def test_composite_ids_and_row_filters(place):
    frame = small.table().with_columns(shop=pl.col("sku") % 2, number=pl.col("sku") // 2)
    place.run(frame)
    expected = place.read()
    result = place.run(frame, out="other", item=["shop", "number"], rows=["rank != 4", "rank >= 0"])
    kept = frame.filter(pl.col("rank") != 4)
    log = place.read()
    assert log.height == kept.height and "240 rows do not fulfil 'rows'" in "\n".join(result["notes"])
    assert log["click"].sum() == kept["clicked"].sum() < expected["click"].sum()
    assert pl.read_parquet(place.out / "items.parquet")["item"][0] == "0|500"


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_what_may_be_empty(place, kind):
    n = small.table().height
    frame = small.table().with_columns(
        pl.lit(value).alias(name)
        for name, value in {"p": 0.25, "a": 3, "words": "q", "before": "1 2 3"}.items()
    )
    halves = {
        "like": [1, None],
        "cost": ["3.5", "NULL"],
        "age": [30, None],
        "town": ["x", ""],
        "title": ["t", None],
    }
    frame = frame.with_columns(pl.Series(name, pair * (n // 2)) for name, pair in halves.items())
    optional = {"numbers": ["cost"], "user_numbers": ["age"], "user_categories": ["town"], "query": "words"}
    more = {"propensity": "p", "action": "a", "responses": {"like": "like"}, "text": ["title", "words"]}
    rows = scanned(place, frame, kind, **optional, **more, history="before", missing=["NULL"])
    first, second = rows.row(0, named=True), rows.row(1, named=True)
    expected = {
        "propensity": 0.25,
        "action": 3,
        "response:like": 1.0,
        "number:cost": 3.5,
        "user_number:age": 30.0,
    }
    expected |= {"user_category:town": "x", "text": "t q", "query": "q", "history": ["1", "2", "3"]}
    assert expected.items() <= first.items()
    empty = ("response:like", "number:cost", "user_number:age")
    assert [second[name] for name in empty] == [None] * 3 and second["text"] == "q"
    place.run(frame, kind, propensity="p", responses={"like": "like"}, history="before")


def test_no_rating_is_not_a_rating_of_zero(place):
    stars = pl.when(pl.col("rank") % 2 == 1).then(pl.col("rank") / 4)
    frame = small.table().with_columns(stars=stars)
    with pytest.raises(
        InputError, match=r"row 0: column 'stars' is empty, but holds ratings .* \"stars >= 0.8\""
    ):
        place.run(frame, responses={"rating": "stars"})
    place.run(frame, out="high", responses={"rating": "stars >= 0.7"})
    given = place.read()["responses"].explode().to_list()
    assert given == [float(k == 3) for k in frame["rank"]]
    unseen = frame.with_columns(
        seen=pl.col("rank") % 2 == 1, clicked=pl.col("clicked") * (pl.col("rank") % 2)
    )
    place.run(unseen, out="unseen", responses={"rating": "stars"}, seen="seen")
    log = place.read()
    assert log.filter("answered")["responses"].explode().unique().sort().to_list() == [0.25, 0.75]


@pytest.mark.parametrize("where", ["mapping", "table"])
def test_side_tables_are_found_beside_the_mapping_or_the_table(place, where):
    frame = small.table().with_columns(
        shelf=pl.format("s{}", pl.col("sku") % 4), age=pl.col("uid").str.len_chars()
    )
    mapping = {"category": "shelf", "user_numbers": ["age"], "numbers": ["age2"]}
    items = frame.select(pl.format(" {} ", "sku").alias("id"), "shelf", age2="rank").unique(
        "id", maintain_order=True
    )
    items.write_csv(place.folder / "items.csv")
    frame.select("uid", "age").unique(maintain_order=True).write_parquet(place.folder / "people.parquet")
    sides = {"items": {"file": "items.csv", "key": "id"}, "users": {"file": "people.parquet"}}
    place.run(frame.with_columns(age2=pl.col("rank").first().over("sku")), **mapping)
    expected = place.read()
    place.run(frame.drop("shelf", "age"), ".csv", "other", **mapping, **sides)
    assert place.read().equals(expected)
    rows = scanned(place, frame.drop("shelf", "age"), **mapping, **sides)
    assert rows["user_number:age"].to_list() == frame["age"].cast(pl.Float64).to_list()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"file": "none.csv"}, "none.csv does not exist"),
        ({"file": "items.csv"}, "no column 'sku'; name the item's id as 'key'"),
        ({"file": "items.csv", "key": "id"}, "items.csv: 2 rows have the id '1000'; allowed: one"),
        ({"file": "items.csv", "kee": "id"}, "unknown field 'items.kee'"),
    ],
)
def test_one_message_for_each_wrong_side_table(place, items, message):
    (place.folder / "items.csv").write_text("id,shelf\n1000,a\n1000,b\n")
    with pytest.raises(InputError, match=message):
        place.run(small.table(), category="shelf", items=items)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"click": "rank >= x"}, "compares with 'x'; allowed: a number"),
        ({"click": "nothing >= 4"}, "no column 'nothing' for 'click'"),
        ({"click": {"column": "rank", "values": ["a"]}}, "column 'rank' holds numbers; allowed: numbers"),
        ({"rows": ["rank > 99"]}, "has no rows that fulfil 'rows'"),
        ({"propensity": "rank"}, "row 0: column 'rank' is 0; allowed: a probability above 0"),
        ({"action": "half"}, "row 0: column 'half' is 0.5; allowed: a whole number"),
        ({"responses": {"like": "rank"}}, "row 2: column 'rank' is 2; allowed: empty, 0 to 1"),
        ({"responses": {"Like": "rank"}}, "'Like' is no name of a response"),
        ({"responses": {"click": "rank"}}, "'click' is no name of a response"),
        ({"numbers": ["page_id"]}, "row 0: column 'page_id' is 'p0-0'; allowed: empty or a number"),
        ({"time_zone": "Mars"}, "time_zone 'Mars' is not known"),
        ({"separator": "a"}, "separator 'a' must be one character"),
        ({"time": ["ts"]}, "time names 1 columns"),
        ({"dwell_seconds": {"column": "rank", "unit": "h"}}, "dwell_seconds: the unit must be one of s, ms"),
    ],
)  # fmt: skip
def test_one_message_for_each_wrong_mapping(place, changes, message):
    with pytest.raises(InputError, match=message) as error:
        place.run(small.table().with_columns(half=pl.lit(0.5)), **changes)
    assert "\n" not in str(error.value)


def test_a_partial_nested_option_changes_only_what_it_names(place):
    place.run(small.table())
    plain = LogReader(place.out).config
    place.run(small.table(), out="other", feed={"cloud": {"noise": 5.0}})
    assert LogReader(place.out).config == plain.replace(cloud={"noise": 5.0})
    assert (
        plain.replace(cloud={"noise": 5.0}).cloud == plain.cloud.replace(noise=5.0) != CloudConfig(noise=5.0)
    )
    with pytest.raises(InputError, match="CloudConfig has no field 'noize'"):
        FeedConfig().replace(cloud={"noize": 1.0})


def test_a_purchase_needs_no_click(place):
    result = place.run(small.table().with_columns(b=pl.lit(True)), purchase="b")
    assert "purchases are in rows without a click; kept" in "\n".join(result["notes"])
    assert LogReader(place.out).catalog.scalars.shape[1] == 4
