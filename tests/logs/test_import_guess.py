"""`edgerec import --guess`: tables in the styles of others are understood, and what is unsure is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import small_table as small
from command_line import fails_with, run, run_well

from edgerec_gym.errors import InputError
from edgerec_gym.logs.table_guess import guess_mapping

TS = pl.from_epoch("ts", time_unit="s")
LOGS = Path("/work/shared/data")


def columns(**names: Any) -> pl.DataFrame:
    return small.table().select(**names)


def rating(frame: pl.DataFrame) -> pl.Expr:
    return pl.col("clicked") * 3 + pl.col("rank") % 3


MIND = pl.format("{}-{}", pl.format("N{}", "sku"), "clicked")
STYLES: dict[str, tuple[str, pl.DataFrame, dict[str, Any], str]] = {
    "english": (
        "shop.csv",
        columns(
            customer_id="uid",
            sku="sku",
            created_at=TS.dt.to_string("%Y-%m-%dT%H:%M:%SZ"),
            request_id="page_id",
            rank="rank",
            is_clicked=pl.col("clicked") == 1,
            price=pl.col("rank") + 1.5,
        ),
        {
            "user": "customer_id",
            "item": "sku",
            "time": "created_at",
            "click": "is_clicked",
            "list": "request_id",
            "position": "rank",
            "price": "price",
        },
        "",
    ),
    "video": (
        "video.csv",
        columns(
            user_id="uid",
            video_id="sku",
            time_ms=pl.col("ts") * 1000 + pl.col("rank"),
            is_click="clicked",
            is_like=1 - pl.col("clicked"),
            play_time_ms=pl.col("rank") * 9000 + 2000,
        ),
        {
            "time_unit": "ms",
            "responses": {"like": "is_like"},
            "list": "time_ms",
            "page_view_seconds": {"column": "play_time_ms", "unit": "ms"},
        },
        "nothing tells pages apart",
    ),
    "ratings": (
        "ratings.csv",
        columns(
            userId="uid",
            movieId="sku",
            rating=rating(small.table()) + 1,
            timestamp=pl.col("ts") + pl.col("rank"),
        ),
        {"click": "rating >= 5"},
        "of at least 5 counts as a click",
    ),
    "hours": (
        "avazu.csv",
        columns(
            hour=TS.dt.to_string("%y%m%d%H").cast(pl.Int64), click="clicked", device_id="uid", ad_id="sku"
        ),
        {"time_format": "%y%m%d%H", "user": "device_id", "item": "ad_id"},
        "",
    ),
    "lists": (
        "lists.parquet",
        small.table()
        .group_by("uid", "page_id", maintain_order=True)
        .agg(pl.col("ts").first(), pl.col("sku", "clicked"))
        .rename(
            {"sku": "article_ids_inview", "clicked": "clicks", "page_id": "impression_id", "uid": "user_id"}
        ),
        {"list_column": {"items": "article_ids_inview", "clicks": "clicks"}, "list": "impression_id"},
        "order of a list",
    ),
    "events": (
        "events.csv",
        pl.concat(
            [
                columns(visitorid="uid", itemid="sku", timestamp="ts", event=pl.lit("view")),
                small.table()
                .filter(pl.col("clicked") == 1)
                .select(visitorid="uid", itemid="sku", timestamp=pl.col("ts") + 9, event=pl.lit("click")),
            ]
        ),
        {"click": {"column": "event", "values": ["click"]}, "join_clicks": True},
        "rows of their own",
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_the_styles_of_others(tmp_path, style):
    name, frame, expected, said = STYLES[style]
    guess = guess_mapping(small.save(frame, tmp_path / name))
    assert guess.content == guess.content | expected
    assert said in "\n".join(guess.doubts)
    assert guess.rows is not None and guess.rows.height == 10
    out = tmp_path / "logs"
    values = json.loads(run_well("import", tmp_path / name, "--guess", "--out", out, "--json"))
    assert values["mapping"] == json.loads((out / "mapping.json").read_text()) == guess.content
    assert values["counts"]["slots"] == small.table().height


def test_mind_without_a_header(tmp_path):
    pages = small.table().with_columns(pair=MIND).group_by("uid", "page_id", maintain_order=True)
    frame = pages.agg(TS.dt.to_string("%m/%d/%Y %I:%M:%S %p").first(), history=pl.lit("N1 N2"), pairs="pair")
    frame = frame.with_columns(pl.col("pairs").list.join(" ")).with_row_index().drop("page_id")
    frame.write_csv(tmp_path / "behaviors.tsv", separator="\t", include_header=False)
    news = "\n".join(f'N{k}\tnews\tlocal\t"Stray {k}\tabstract\turl\t[]\t[]' for k in range(1000, 1060))
    (tmp_path / "news.tsv").write_text(news)
    guess = guess_mapping(tmp_path / "behaviors.tsv")
    assert guess.content["list_column"] == {"items": "column 5", "form": "item-click"}
    assert guess.content["history"] == "column 4" and guess.content["items"]["file"] == "news.tsv"
    assert guess.rows is not None and guess.rows["text"][0].startswith('"Stray')
    assert "has no header" in "\n".join(guess.doubts)


@pytest.mark.parametrize("separator", ["\t", "::"])
def test_ratings_without_a_header(tmp_path, separator):
    rows = columns(u="uid", i="sku", r=rating(small.table()) + 1, t=pl.col("ts") + pl.col("rank")).rows()
    (tmp_path / "u.data").write_text(
        "\n".join(separator.join(map(str, row)).replace("u", "") for row in rows)
    )
    content = guess_mapping(tmp_path / "u.data").content
    assert (content["user"], content["item"], content["click"], content["time"]) == (
        "column 1", "column 2", "column 3 >= 5", "column 4",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("ts", "no column looks like a time"),
        ("sku", "no column looks like the id of an item"),
        ("clicked", "a click"),
    ],
)
def test_what_a_table_lacks(tmp_path, drop, message):
    small.save(small.table().drop(drop, "rank"), tmp_path / "table.csv")
    fails_with(message, "import", tmp_path / "table.csv", "--guess")


def test_the_command(tmp_path):
    path = small.save(small.table(), tmp_path / "table.csv")
    shown = run("import", path, "--guess")
    assert (
        shown.exit_code == 0
        and '"item": "sku"' in shown.stdout
        and "first rows, as understood" in shown.stdout
    )
    assert not list(tmp_path.glob("*/"))
    fails_with("omit --mapping", "import", path, "--guess", "--mapping", path)
    fails_with("--out is missing", "import", path, "--mapping", path)
    fails_with("--guess proposes one", "import", path, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("logs/kuairand_like_hate/interactions.csv.gz", {"click": "is_click", "time_unit": "ms"}),
        (
            "logs/expedia_searches/searches.csv.gz",
            {"position": "position", "price": "price_usd", "user": "srch_id"},
        ),
        (
            "logs/ml-100k/ml-100k.inter",
            {"click": "rating >= 4", "text": ["movie_title"], "user_numbers": ["age"]},
        ),
        ("open_bandit/exposures.csv.gz", {"item": ["campaign", "item_id"], "propensity": "propensity_score"}),
        ("ebnerd_demo/train/behaviors.parquet", {"list": "impression_id", "session": "session_id"}),
    ],
)
def test_real_logs(name, expected):
    if not (LOGS / name).exists():
        pytest.skip("research data is not here")
    content = guess_mapping(LOGS / name).content
    assert content == content | expected


def test_a_folder_is_no_guess(tmp_path):
    with pytest.raises(InputError, match="a folder without files"):
        guess_mapping(tmp_path)
