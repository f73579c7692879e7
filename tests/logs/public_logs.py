"""Small made-up tables in the formats of well-known public logs, as their documentation describes them."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import small_table as small

TS = pl.from_epoch("ts", time_unit="s")
NUMBER = pl.col("uid").str.slice(1).cast(pl.Int64) + 1
CLICKED = pl.col("clicked") == 1
EVENTS = pl.col("rank") % 3 + pl.col("clicked")  # 0 to 3


def base() -> pl.DataFrame:
    """The small table, with moments of its own for the rows of a page."""
    return small.table().with_columns(at=pl.col("ts") + 2 * pl.col("rank"), number=NUMBER)


def text(path: Path, frame: pl.DataFrame, separator: str = ",", header: bool = True) -> Path:
    lines = [separator.join(frame.columns)] if header else []
    lines += [separator.join("" if v is None else str(v) for v in row) for row in frame.rows()]
    path.write_text("\n".join(lines) + "\n")
    return path


def mind(folder: Path) -> Path:
    """Impression, user, time, history and shown items; no header."""
    pages = base().with_columns(pair=pl.format("N{}-{}", "sku", "clicked"))
    pages = pages.group_by("uid", "page_id", maintain_order=True).agg(
        TS.first(), pl.col("pair").str.join(" ")
    )
    frame = pages.with_row_index("n").select(
        "n", pl.format("U{}", "uid"), at=pl.col("ts").dt.to_string("%m/%d/%Y %I:%M:%S %p"),
        history=pl.lit("N1001 N1002"), pairs="pair",
    )  # fmt: skip
    return text(folder / "behaviors.tsv", frame, "\t", header=False)


def movielens(folder: Path) -> Path:
    """User, movie, rating and second, divided by ::, no header; the first line holds a value twice."""
    rating = pl.col("clicked") * 2 + pl.col("rank") % 3 + 1
    frame = base().select("number", pl.col("sku") - 998, rating=rating, at="at")
    first = frame.filter(pl.col("number") == pl.col("rating"))
    return text(
        folder / "ratings.dat", pl.concat([first, frame]).unique(maintain_order=True), "::", header=False
    )


def kuairand(folder: Path) -> Path:
    frame = base().select(
        user_id="number",
        video_id="sku",
        date=TS.dt.to_string("%Y%m%d"),
        hourmin=TS.dt.to_string("%H00"),
        time_ms=pl.col("at") * 1000 + 7,
        is_click="clicked",
        is_like=(pl.col("rank") == 1).cast(pl.Int8),
        is_follow=(pl.col("rank") == 2).cast(pl.Int8),
        is_comment=pl.lit(0),
        is_forward=pl.lit(0),
        is_hate=(pl.col("rank") == 3).cast(pl.Int8),
        long_view=pl.col("clicked") * (pl.col("rank") > 2),
        play_time_ms=pl.col("clicked") * (9000 + 5000 * pl.col("rank")),
        duration_ms=pl.col("sku") * 100,
        profile_stay_time=pl.lit(0),
        comment_stay_time=pl.lit(0),
        is_profile_enter=pl.lit(0),
        is_rand=pl.lit(0),
        tab=pl.col("rank"),
    )
    return text(folder / "log_standard_4_08_to_4_21_1k.csv", frame)


def user_behavior(folder: Path) -> Path:
    """Taobao: user, item, category, behaviour, seconds; no header, and pv is a view of the item's page."""
    kind = pl.lit("pv").alias("kind")
    views = base().select("number", "sku", category=pl.col("sku") % 20 + 100, kind=kind, at="at")
    further = views.with_columns(kind=pl.lit("fav"), at=pl.col("at") + 1).filter(base()["clicked"] == 1)
    further = further.with_columns(
        kind=pl.when(pl.col("sku") % 3 == 0).then(pl.lit("buy")).when(pl.col("sku") % 3 == 1)
        .then(pl.lit("cart")).otherwise(pl.lit("fav"))
    )  # fmt: skip
    return text(folder / "UserBehavior.csv", pl.concat([views, further]), header=False)


def retailrocket(folder: Path) -> Path:
    shown = base().select(
        timestamp=pl.col("at") * 1000, visitorid="number", event=pl.lit("view"), itemid="sku",
        transactionid=pl.lit(None, pl.Int64),
    )  # fmt: skip
    more = base().filter(CLICKED).select(
        timestamp=pl.col("at") * 1000 + 900,
        visitorid="number",
        event=pl.when(pl.col("sku") % 4 == 0).then(pl.lit("transaction")).otherwise(pl.lit("addtocart")),
        itemid="sku",
        transactionid=pl.when(pl.col("sku") % 4 == 0).then(pl.col("sku")),
    )  # fmt: skip
    return text(folder / "events.csv", pl.concat([shown, more]))


def alimama(folder: Path) -> Path:
    frame = base().select(
        user="number", time_stamp="at", adgroup_id="sku",
        pid=pl.format("430539_{}", pl.col("rank") % 2 + 1007),
        nonclk=1 - pl.col("clicked"), clk="clicked",
    )  # fmt: skip
    return text(folder / "raw_sample.csv", frame)


def zhihurec(folder: Path) -> Path:
    """User, answer, second of the impression, second of the click or 0; no header."""
    click = pl.when(CLICKED).then(pl.col("at") + 11).otherwise(0)
    return text(
        folder / "inter_impression.csv", base().select("number", "sku", "at", click=click), header=False
    )


def amazon_2023(folder: Path) -> Path:
    rows = base().select(
        rating=(pl.col("clicked") * 2 + pl.col("rank") % 3 + 1).cast(pl.Float64),
        title=pl.format("Review {} of {}", "number", "at"),
        text=pl.format("I like {} and {}", "number", "at"),
        asin=pl.format("B00{}", "sku"),
        parent_asin=pl.format("B00{}", pl.col("sku") // 2),
        user_id=pl.format("AG{}", "number"),
        timestamp=pl.col("at") * 1000 + 123,
        helpful_vote=pl.col("rank"),
        verified_purchase=pl.col("rank") > 1,
    )
    path = folder / "All_Beauty.jsonl"
    path.write_text("\n".join(json.dumps(row | {"images": []}) for row in rows.to_dicts()))
    return path


def amazon_2018(folder: Path) -> Path:
    rows = base().select(
        overall=(pl.col("clicked") * 2 + pl.col("rank") % 3 + 1).cast(pl.Float64),
        verified=pl.col("rank") > 1,
        reviewTime=TS.dt.to_string("%m %d, %Y"),
        reviewerID=pl.format("A{}", "number"),
        asin=pl.format("B00{}", "sku"),
        reviewerName=pl.format("N {}", "number"),
        reviewText=pl.format("I like {} and {}", "number", "at"),
        summary=pl.format("Review {} of {}", "number", "at"),
        unixReviewTime="at",
    )
    path = folder / "Luxury_Beauty_5.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows.to_dicts()))
    return path


def xing(folder: Path) -> Path:
    """RecSys Challenge 2017: 0 shown, 1 clicked, 2 bookmarked, 3 replied, 4 deleted; tabs in a .csv."""
    kind = pl.when(CLICKED).then(1).when(pl.col("rank") == 4).then(4).otherwise(0)
    frame = base().select(user_id="number", item_id="sku", interaction_type=kind, created_at="at")
    return text(folder / "interactions.csv", frame, "\t")


def recbole(folder: Path) -> Path:
    frame = base().select("number", "sku", "clicked", at=pl.col("at").cast(pl.Float64))
    frame.columns = ["user_id:token", "item_id:token", "label:float", "timestamp:float"]
    return text(folder / "feed.inter", frame, "\t")


def avazu(folder: Path) -> Path:
    """Ads on sites and in apps; no column is called the ad's."""
    frame = base().select(
        id="at", click="clicked", hour=TS.dt.to_string("%y%m%d%H"), C1=pl.lit(1005), banner_pos="rank",
        site_id=pl.format("{}fbe01fe", "rank"), site_domain=pl.lit("f3845767"),
        site_category=pl.lit("28905ebd"),
        app_id=pl.format("{}ecad2386", "rank"), app_domain=pl.lit("7801e8d9"), device_id="uid",
        device_ip=pl.format("ip{}", "number"), device_model=pl.lit("44956a24"), device_type=pl.lit(1),
        C14="sku",
    )  # fmt: skip
    return text(folder / "train.csv", frame)


def criteo(folder: Path) -> Path:
    frame = base().select(
        "clicked", i1="rank", i2=pl.col("sku") % 50, i3=pl.col("number"), c1=pl.format("68fd1e6{}", "rank"),
        c2=pl.format("80e26c9{}", pl.col("sku") % 10), c3=pl.format("fb93617{}", pl.col("number") % 10),
    )  # fmt: skip
    return text(folder / "train.txt", frame, "\t", header=False)


def tenrec(folder: Path) -> Path:
    frame = base().select(
        user_id="number", item_id="sku", click="clicked", follow=pl.lit(0), like=pl.lit(0), share=pl.lit(0),
        video_category=pl.col("sku") % 2, watching_times=pl.col("clicked"), gender=pl.col("number") % 2,
        age=pl.col("number") % 7,
    )  # fmt: skip
    return text(folder / "QB-video.csv", frame)


def yambda(folder: Path) -> Path:
    """Seconds since the log began, and listening: nothing tells what was shown."""
    frame = base().select(
        uid="number", timestamp=(pl.col("at") - small.BEGIN) // 5 * 5, item_id="sku",
        event_type=pl.when(CLICKED).then(pl.lit("like")).otherwise(pl.lit("listen")),
        is_organic=pl.col("rank") % 2, played_ratio_pct=pl.col("rank") * 25,
    )  # fmt: skip
    frame.write_parquet(folder / "multi_event.parquet")
    return folder / "multi_event.parquet"


def adressa(folder: Path) -> Path:
    rows = base().select(
        eventId="at", city=pl.lit("trondheim"), activeTime=pl.col("rank") * 9,
        url=pl.format("http://a.no/{}", "sku"),
        time="at", userId=pl.format("cx:{}", "number"), sessionStart=pl.col("rank") == 0,
        sessionStop=pl.col("rank") == 4, deviceType=pl.lit("Mobile"), title=pl.format("News {}", "sku"),
    )  # fmt: skip
    path = folder / "20170101.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows.to_dicts()))
    return path


def yoochoose(folder: Path) -> Path:
    frame = base().select(
        pl.col("number") * 100 + pl.col("page_id").str.slice(1, 1).cast(pl.Int64),
        at=pl.from_epoch("at").dt.to_string("%Y-%m-%dT%H:%M:%S.000Z"), item="sku",
        category=pl.col("sku") % 13,
    )  # fmt: skip
    return text(folder / "yoochoose-clicks.dat", frame, header=False)


def lastfm(folder: Path) -> Path:
    frame = base().select(
        pl.format("user_{}", "number"), at=pl.from_epoch("at").dt.to_string("%Y-%m-%dT%H:%M:%SZ"),
        artist=pl.format("a-{}", pl.col("sku") % 9), name=pl.format("Band {}", pl.col("sku") % 9),
        track=pl.format("t-{}", "sku"), title=pl.format("Song {}", "sku"),
    )  # fmt: skip
    return text(folder / "userid-timestamp-artid-artname-traid-traname.tsv", frame, "\t", header=False)


def diginetica(folder: Path) -> Path:
    frame = base().select(
        sessionId="page_id", userId=pl.lit("NA"), itemId="sku", timeframe=pl.col("rank") * 1000,
        eventdate=TS.dt.to_string("%Y-%m-%d"),
    )  # fmt: skip
    return text(folder / "train-item-views.csv", frame, ";")
