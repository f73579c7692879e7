"""Any table as a log folder: what is right is kept, what is wrong is named, and nothing looks ahead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import small_table as small
from command_line import fails_with, run, run_well
from small_table import Place

from edgerec_gym.answers import DELETE_REASON, DISLIKED
from edgerec_gym.errors import InputError
from edgerec_gym.logs import table as import_module
from edgerec_gym.logs.store import LogReader, LogWriter
from edgerec_gym.logs.table_items import PRIOR_RATE, PRIOR_SHARE
from edgerec_gym.logs.table_source import SourceTable

FORMATS = (".csv", ".parquet")
DAY = 86400


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def everything(seed: int = 0) -> tuple[pl.DataFrame, dict[str, Any]]:
    """A table with every column that a mapping can name, and its mapping."""
    frame = small.table(seed)
    rng = np.random.default_rng(seed + 1)
    n = frame.height
    frame = frame.with_columns(
        pl.from_epoch("ts", time_unit="s"),
        visit=pl.col("page_id").str.head(2),
        bottom=pl.col("rank") < 4,
        gone=(pl.col("rank") == 3) & pl.col("page_id").str.ends_with("-1"),
        look=pl.Series(rng.random(n) * 10),
        read=pl.Series(rng.random(n) * 100),
        bought=pl.Series(rng.random(n) < 0.3) & (pl.col("clicked") == 1),
        kind=pl.when(pl.col("sku") % 5 == 0).then(pl.lit("clip")).otherwise(pl.lit("thing")),
        shelf=pl.col("sku") % 4,
        cost=pl.Series(rng.random(n) * 30),
        score=pl.Series(rng.random(n)),
        v0=(pl.col("sku") % 7).cast(pl.Float64),
        v1=(pl.col("sku") % 3 + 1).cast(pl.Float64),
    ).with_columns(clicked=pl.col("clicked") * pl.col("bottom"), bought=pl.col("bought") & pl.col("bottom"))
    mapping = {
        "session": "visit", "seen": "bottom", "leave": "gone", "dwell_seconds": "look", "purchase": "bought",
        "page_view_seconds": "read", "card_type": "kind", "category": "shelf", "price": "cost",
        "base_ctr": "score", "embedding_prefix": "v", "card_types": {"thing": "goods", "clip": "video"},
    }  # fmt: skip
    return frame, mapping


@pytest.mark.parametrize("kind", FORMATS)
def test_a_plain_table(place, kind):
    frame = small.table()
    result = place.run(frame, kind)
    log, reader = place.read(), LogReader(place.out)
    assert reader.complete and reader.unidentified == tuple(result["unidentified"])
    assert {"leave", "cards", "categories", "exposure_actions"} <= set(result["unidentified"])
    assert "position" not in result["unidentified"]
    assert result["counts"] | {"sessions": 120, "users": 12, "days": 10, "pages": 240} == result["counts"]
    assert log.height == frame.height == result["counts"]["slots"]
    # Row for row what the table says: users are numbered in the order of their ids.
    expected = frame.sort("uid", "ts", "rank")
    names = reader.catalog.names[log["item"].to_numpy()]
    assert names.tolist() == expected["sku"].to_list()
    assert log["click"].cast(pl.Int64).to_list() == expected["clicked"].to_list()
    assert log["page_age"].to_list() == expected["rank"].to_list()
    assert log["slot"].to_list() == list(range(10)) * 120
    assert log["page"].to_list() == ([0] * 5 + [1] * 5) * 120
    assert log["time"].to_list() == ([0.0] * 5 + [60.0] * 5) * 120
    assert set(log["hour"]) == {12} and log["day"].unique().to_list() == list(range(10))
    assert log["leave"].is_null().all() and log["exposure_actions"].is_null().all()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_table_with_everything(place, kind):
    frame, mapping = everything()
    result = place.run(frame, kind, **mapping)
    log, reader = place.read(), LogReader(place.out)
    assert result["unidentified"] == []
    assert reader.config.card_types == ("video",) and reader.config.embedding_size == 2
    assert result["counts"]["unseen_rows_above_a_seen_one_dropped"] == 120  # the last of each first page
    kept = frame.filter(~((pl.col("rank") == 4) & pl.col("page_id").str.ends_with("-0")))
    kept = kept.sort("uid", "ts", "rank")
    item = log["item"].to_numpy()
    assert reader.catalog.names[item].tolist() == kept["sku"].to_list()
    assert log["card_type"].to_list() == (kept["kind"] == "clip").cast(pl.Int32).to_list()
    assert log["answered"].to_list() == kept["bottom"].to_list()
    assert log["click"].is_null().to_list() == (~kept["bottom"]).to_list()
    assert log["leave"].fill_null(False).to_list() == (kept["gone"] & kept["bottom"]).to_list()
    np.testing.assert_allclose(log["base_ctr"], kept["score"], rtol=1e-6)
    bought = log["page_view_actions"].list.get(2, null_on_oob=True).fill_null(0.0)
    assert bought.to_list() == kept["bought"].cast(pl.Float32).to_list()
    buckets = [int(np.searchsorted((0.5, 1, 2, 4, 8, 16, 32), s, side="right")) for s in kept["look"]]
    dwell = log["exposure_actions"].list.first()
    assert [None if d is None else round(d * 7) for d in dwell] == [
        b if seen else None for b, seen in zip(buckets, kept["bottom"], strict=True)
    ]
    raw = np.stack([reader.catalog.names % 7, reader.catalog.names % 3 + 1], axis=1)
    np.testing.assert_allclose(
        reader.catalog.embeddings, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-5
    )
    assert log["price_level"].is_between(0, 1).all() and log["price_level"].n_unique() > 100


def test_both_formats_and_every_size_of_part_give_the_same_log(place):
    frame, mapping = everything()
    logs = []
    for k, (kind, parts) in enumerate([(".csv", 10**6), (".parquet", 10**6), (".parquet", 150)]):
        place.run(frame, kind, f"logs{k}", parts, **mapping)
        logs.append(place.read())
    assert len(LogReader(place.out).paths) > 4
    assert logs[0].equals(logs[1]) and logs[0].equals(logs[2])


@pytest.mark.parametrize(
    "change",
    [
        pl.from_epoch("ts", time_unit="s"),
        pl.from_epoch("ts", time_unit="s").dt.cast_time_unit("ns").dt.replace_time_zone("UTC"),
        pl.from_epoch("ts", time_unit="s").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo"),
        pl.from_epoch("ts", time_unit="s").dt.to_string("%Y-%m-%dT%H:%M:%SZ").alias("ts"),
        pl.col("uid").cast(pl.Categorical),
        pl.col("uid").cast(pl.Enum([f"u{k}" for k in range(small.USERS)])),
        pl.col("sku").cast(pl.UInt64),
        pl.col("sku").cast(pl.String),
        pl.col("rank").cast(pl.Decimal(10, 2)),
        pl.col("clicked").cast(pl.Float32),
        pl.col("clicked").cast(pl.Boolean),
    ],
    ids=str,
)
def test_what_a_parquet_column_may_be(place, change):
    place.run(small.table())
    expected = place.read()
    place.run(small.table().with_columns(change), out="other")
    assert place.read().equals(expected)


def test_position_alone_tells_pages_and_gaps_tell_sessions(place):
    frame = small.table().drop("page_id")
    place.run(frame, list=None, session_gap_minutes=0.5)
    log = place.read()
    assert log["session"].n_unique() == 240 and log["page"].max() == 0
    place.run(frame, out="again", list=None)
    log = place.read()
    assert log["session"].n_unique() == 120 and log["page"].max() == 1


def test_without_positions_the_order_within_a_page_is_not_known(place):
    result = place.run(small.table(), position=None)
    assert {"position", "neighbours", "order_within_page"} <= set(result["unidentified"])


def test_an_import_that_was_killed_goes_on(place, monkeypatch):
    frame, mapping = everything()
    place.run(frame, parts=150, **mapping)
    whole = place.read()
    write, calls = LogWriter.write, []

    def killed(self: LogWriter, table: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(self, table)

    monkeypatch.setattr(LogWriter, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        place.run(frame, out="again", parts=150, **mapping)
    assert not LogReader(place.out).complete
    first = place.run(frame, out="again", parts=150, **mapping)
    assert place.read().equals(whole)
    assert place.run(frame, out="again", parts=150, **mapping) == first  # finished: nothing to do
    with pytest.raises(InputError, match="holds another log"):
        place.run(frame.head(1100), out="again", parts=150, **mapping)


# Nothing looks ahead


def test_base_ctr_is_the_click_rate_of_the_days_before(place):
    frame = small.table()
    place.run(frame)
    log, names = place.read(), LogReader(place.out).catalog.names
    rows = frame.with_columns(day=(pl.col("ts") - small.BEGIN) // DAY)
    for k in range(0, log.height, 37):
        day, item = log["day"][k], names[log["item"][k]]
        earlier = rows.filter(pl.col("day") < day)
        own = earlier.filter(pl.col("sku") == item)
        usual = (earlier["clicked"].sum() + PRIOR_RATE * PRIOR_SHARE) / (earlier.height + PRIOR_SHARE)
        expected = (own["clicked"].sum() + usual * PRIOR_SHARE) / (own.height + PRIOR_SHARE)
        assert log["base_ctr"][k] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("day", [3, 7, 9])
def test_what_happens_from_a_day_on_changes_nothing_before(place, day):
    frame = small.table()
    late = (frame["ts"] - small.BEGIN) // DAY >= day
    clicks = frame["clicked"].to_numpy().copy()
    clicks[late.to_numpy()] = np.random.default_rng(5).permutation(1 - clicks[late.to_numpy()])
    place.run(frame)
    log, catalog = place.read(), LogReader(place.out).catalog
    place.run(frame.with_columns(clicked=pl.Series(clicks)), out="other")
    other, other_catalog = place.read(), LogReader(place.out).catalog
    until = (log["day"] <= day).to_numpy()
    assert np.array_equal(log["base_ctr"].to_numpy()[until], other["base_ctr"].to_numpy()[until])
    assert (log["base_ctr"] != other["base_ctr"]).any() == (day < 9)
    assert np.array_equal(catalog.names, other_catalog.names)
    if day < 7:  # the first 70 % of the days are used
        assert not np.allclose(catalog.embeddings, other_catalog.embeddings)
        return
    assert catalog.embeddings.any()
    assert np.array_equal(catalog.embeddings, other_catalog.embeddings)
    assert np.array_equal(catalog.scalars, other_catalog.scalars)
    features = [
        np.array(t.filter(pl.col("slot") == 0).filter(pl.col("day") <= day)["user_features"].to_list())
        for t in (log, other)
    ]
    np.testing.assert_allclose(*features, atol=1e-6)
    assert features[0].any()


def test_a_session_over_midnight_does_not_know_its_own_clicks(place):
    shifted = small.table().with_columns(pl.col("ts") + 12 * 3600 - 65)  # the second pages end after midnight
    place.run(shifted)
    log = place.read()
    assert set(log["hour"]) == {23}
    flipped = shifted.with_columns(
        clicked=pl.when(pl.col("page_id") == "p9-1").then(1 - pl.col("clicked")).otherwise("clicked")
    )
    place.run(flipped, out="other")
    assert log["base_ctr"].equals(place.read()["base_ctr"])


# What is changed is counted


def counted(place: Place, frame: pl.DataFrame, **mapping: Any) -> tuple[dict[str, int], str]:
    result = place.run(frame, **mapping)
    return result["counts"], "\n".join(result["notes"])


def test_shuffled_rows_are_sorted_and_counted(place):
    place.run(small.table())
    expected = place.read()
    counts, notes = counted(place, small.table().sample(fraction=1.0, shuffle=True, seed=1), out="other")
    assert counts["rows_out_of_time_order_sorted"] > 100 and "out of time order" in notes
    assert place.read().equals(expected)


def test_equal_rows_are_dropped_and_counted(place):
    place.run(small.table())
    expected = place.read()
    doubled = pl.concat([small.table(), small.table().head(7)])
    counts, notes = counted(place, doubled, out="other")
    assert counts["duplicate_rows_dropped"] == 7 and "7 rows equal an earlier one" in notes
    assert counts["rows"] == 1207 and counts["slots"] == 1200
    assert place.read().equals(expected)


@pytest.mark.parametrize(
    ("keep", "note"),
    [
        (pl.col("uid") == "u3", "one user only"),
        (pl.col("page_id").str.starts_with("p4"), "one day only"),
        (pl.col("clicked") == 1, "every seen row is clicked"),
    ],
)
def test_what_a_log_lacks_is_noted(place, keep, note):
    assert note in counted(place, small.table().filter(keep))[1]
    assert note in "\n".join(LogReader(place.out).provenance["notes"])


def test_one_day_has_no_derived_values(place):
    place.run(small.table().filter(pl.col("page_id").str.starts_with("p4")))
    assert not LogReader(place.out).catalog.embeddings.any()
    assert place.read()["base_ctr"].unique().to_list() == [pytest.approx(PRIOR_RATE)]


def test_sessions_that_nobody_saw_are_kept_and_counted(place):
    frame = small.table().with_columns(seen=~pl.col("page_id").str.starts_with("p4"))
    frame = frame.with_columns(clicked=pl.col("clicked") * pl.col("seen"))
    counts, notes = counted(place, frame, seen="seen")
    assert counts["sessions_without_a_seen_row"] == 12 and "12 sessions have no seen row" in notes
    assert counts["slots"] == frame.height and counts["slots_seen"] == frame.height - 120


def test_long_sessions_continue_as_new_ones(place):
    counts, notes = counted(place, small.table(), feed={"max_slots": 7})
    log = place.read()
    assert counts["sessions_added_by_max_slots"] == 120 and "120 sessions were added" in notes
    assert counts["sessions"] == log["session"].n_unique() == 240
    assert log["slot"].max() == 6 and log["page_age"].to_list() == [0, 1, 2, 3, 4] * 240


# The command


def test_import_then_fit(place):
    table = small.save(small.table(), place.folder / "table.csv")
    mapping = small.save_mapping(place.folder / "mapping.json")
    out = place.folder / "logs"
    values = json.loads(run_well("import", table, "--mapping", mapping, "--out", out, "--json"))
    assert values["counts"]["slots"] == 1200 and values["out"] == str(out)
    again = run("import", table, "--mapping", mapping, "--out", out)
    assert again.exit_code == 0 and "slots: 1200" in again.stdout and "note: " in again.stderr
    pytest.importorskip("torch")
    scenario = place.folder / "scenario"
    fitted = run_well("fit", out, "--out", scenario, "--ensemble", 1, "--epochs", 1, "--json")
    assert json.loads(fitted)["sessions"] == 12
    fails_with("none.json", "import", table, "--mapping", place.folder / "none.json", "--out", out)


def test_a_log_of_clicks_only_fits_with_figures_left_empty(place):
    pytest.importorskip("torch")
    place.run(small.table().filter(pl.col("clicked") == 1))
    small_fit = ("--ensemble", 1, "--epochs", 1, "--json")
    figures = json.loads(run_well("fit", place.out, "--out", place.folder / "scenario", *small_fit))
    assert figures["click_rate"] == 1.0 and figures["click_auc"] is figures["impression_auc"] is None


class WithResponses(SourceTable):
    """A table whose columns tell of likes and hates; an order is a purchase without a click."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        like = pl.when(pl.col("item") == 1000).then(None).otherwise((pl.col("position") > 2).cast(pl.Float64))
        hate = (pl.col("position") == 1).cast(pl.Float64)
        bought = (pl.col("position") == 2) | pl.col("click")
        self.scan = self.scan.with_columns(like.alias("response:like"), hate.alias("response:hate"))
        if "purchase" in self.columns:
            self.scan = self.scan.with_columns(purchase=bought)
        self.columns = self.scan.collect_schema().names()


@pytest.mark.parametrize("orders", [False, True])
def test_named_responses_are_imported(place, monkeypatch, orders):
    monkeypatch.setattr(import_module, "SourceTable", WithResponses)
    frame, more = small.table(), {}
    if orders:
        frame, more = (
            frame.with_columns(buy="clicked", dwell="rank"),
            {
                "purchase": "buy",
                "dwell_seconds": "dwell",
                "feed": {"reward": {"purchase": 7.0}},
            },
        )
    notes = place.run(frame, **more)["notes"]
    reader = LogReader(place.out)
    names = ("like", "hate", "order") if orders else ("like", "hate")
    assert reader.config.responses == names
    assert dict(reader.config.reward.responses) == ({"order": 7.0} if orders else {})
    rank, empty = frame["rank"].to_numpy(), frame["sku"] == 1000
    rows = pl.from_arrow(pa.concat_tables(reader.batches()))
    given = np.stack(rows["responses"].to_numpy())
    assert given[:, 1].sum() == (rank == 1).sum()
    assert given[:, 0].sum() == (rank > 2)[~empty].sum()
    assert f"{int(empty.sum())} empty values of responses count as 0" in notes
    if orders:
        apart = int(((rank == 2) & (frame["clicked"] == 0).to_numpy()).sum())
        assert given[:, 2].sum() == apart
        assert (
            f"{apart} purchases without a click are the response 'order', with the weight of a purchase"
            in notes
        )
        deleted = np.stack(rows["exposure_actions"].to_numpy())[:, DELETE_REASON]
        np.testing.assert_array_equal(deleted, DISLIKED * given[:, 1])


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"responses": ["like"]}, "the mapped columns determine it"),
        ({"reward": {"responses": {"likes": 1}}}, "weights 'likes'"),
    ],
)
def test_responses_of_the_feed_are_those_of_the_columns(place, monkeypatch, feed, message):
    monkeypatch.setattr(import_module, "SourceTable", WithResponses)
    with pytest.raises(InputError, match=message):
        place.run(small.table(), feed=feed)
