"""The EB-NeRD adapter: on a small made-up bundle, and on the demo bundle where it is at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from places import SHARED_DATA
from small_ebnerd import BEGIN, MadeUp, bundle, convert, rows_of, save

from edgerec_gym.errors import InputError
from edgerec_gym.logs import ebnerd
from edgerec_gym.logs.ebnerd import FEED, convert_ebnerd, ebnerd_reference, is_ebnerd
from edgerec_gym.logs.store import LogReader

pytest.importorskip("sklearn")
pytest.importorskip("lightgbm")

DEMO = SHARED_DATA / "ebnerd_demo"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    folder = tmp_path_factory.mktemp("ebnerd")
    frames = bundle()
    return frames, folder, *convert(frames, folder)


def test_layout(made_up: MadeUp, tmp_path: Path) -> None:
    _, folder, _, _ = made_up
    assert is_ebnerd(folder / "bundle") and not is_ebnerd(folder / "log") and not is_ebnerd(folder / "no")
    with pytest.raises(InputError, match=r"train/behaviors\.parquet does not exist; an EB-NeRD bundle has"):
        convert_ebnerd(tmp_path, tmp_path / "log")


def test_every_impression_is_a_page(made_up: MadeUp) -> None:
    frames, folder, rows, counts = made_up
    impressions = pl.concat([frames[f"{split}/behaviors.parquet"] for split in ("train", "validation")])
    assert counts["impressions"] == 500 and counts["slots"] == len(rows)
    assert counts["clicks"] == 500 == rows["click"].sum()
    assert counts["clicks_without_read_time"] == impressions["next_read_time"].null_count() > 0
    assert not any(count for name, count in counts.items() if name.endswith("dropped"))
    reader = LogReader(folder / "log")
    assert (reader.config, reader.unidentified) == (FEED, ebnerd.UNIDENTIFIED)
    assert reader.provenance["counts"] == counts and reader.provenance["first_validation_day"] == 7
    # Every page is one impression of its user: same articles in the same order, same click.
    pages = rows.group_by("session", "page", maintain_order=True).agg("article", "click", "user", "page_age")
    found = {
        (user[0], tuple(articles), articles[click.index(True)])
        for articles, click, user in pages.select("article", "click", "user").iter_rows()
    }
    wanted = {
        (r["user_id"], tuple(r["article_ids_inview"]), r["article_ids_clicked"][0])
        for r in impressions.iter_rows(named=True)
    }
    assert found == wanted and len(pages) == 500
    assert all(ages == list(range(len(ages))) for ages in pages["page_age"].to_list())
    assert rows.filter(pl.col("day") < 7).height > 0 and rows["day"].max() == 13
    assert rows["exposure_actions"].null_count() == rows["leave"].null_count() == len(rows)


def test_sessions_days_and_hours(made_up: MadeUp) -> None:
    frames, _, rows, counts = made_up
    impressions = pl.concat([frames[f"{split}/behaviors.parquet"] for split in ("train", "validation")])
    starts = (
        impressions.group_by("user_id", "session_id", late=pl.col("impression_id") >= 1000)
        .agg(pl.col("impression_time").min(), pages=pl.len())
        .sort("impression_time")
    )
    sessions = rows.group_by("session", maintain_order=True).agg(
        pl.col("user", "day", "hour").first(), pages=pl.col("page").max() + 1, time=pl.col("time").first()
    )
    assert counts["sessions"] == len(sessions) == len(starts)
    assert sessions["user"].to_list() == starts["user_id"].to_list()
    assert sessions["pages"].to_list() == starts["pages"].to_list()
    assert sessions["day"].to_list() == [(t - BEGIN).days for t in starts["impression_time"]]
    assert sessions["hour"].to_list() == [t.hour for t in starts["impression_time"]]
    assert sessions["time"].to_list() == [0.0] * len(sessions)


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0, 0), (1.9, 0), (2, 1), (19.9, 3), (20, 4), (160, 7), (1797, 7)]
)
def test_page_view_durations(tmp_path: Path, seconds: float, bucket: int) -> None:
    frames = bundle()
    name = "train/behaviors.parquet"
    frames[name] = frames[name].with_columns(next_read_time=pl.lit(seconds, pl.Float32))
    rows, _ = convert(frames, tmp_path)
    clicks = rows.filter(pl.col("click") & (pl.col("day") < 7))
    assert np.allclose(np.stack(clicks["page_view_actions"].to_list()), [bucket / 7] + [0] * 10)
    assert rows.filter(~pl.col("click"))["page_view_actions"].null_count() == (~rows["click"]).sum()


def test_user_features(made_up: MadeUp) -> None:
    frames, folder, rows, _ = made_up
    d = FEED.embedding_size
    starts = rows.filter(pl.col("slot") == 0)
    assert rows["user_features"].null_count() == len(rows) - len(starts)
    features = np.stack(starts["user_features"].to_list())
    length = np.linalg.norm(features[:, :d], axis=1)
    assert np.all((np.abs(length - 1) < 1e-5) | (length == 0)) and (length > 0).mean() > 0.5
    user = starts["user"].to_numpy()
    assert np.array_equal(features[:, d], np.select([user % 4 == 1, user % 4 == 3], [-1, 1], 0))
    assert np.array_equal(features[:, d + 1], np.where(user % 5 == 0, 1, -1))
    assert np.array_equal(features[:, d + 3], np.where(user == 1, 0, np.where(user % 2 == 0, 1, -1)))
    history = frames["train/history.parquet"]
    n_read = dict(history.select("user_id", pl.col("article_id_fixed").list.n_unique()).iter_rows())
    early = starts["day"].to_numpy() < 7
    expected = [min(np.log10(1 + n_read[u]) / 1.5 - 1, 1) for u in user[early]]
    assert np.allclose(features[early, d + 2], expected, atol=1e-6)


def test_catalogue(made_up: MadeUp) -> None:
    frames, folder, rows, counts = made_up
    catalog = LogReader(folder / "log").catalog
    assert sorted(catalog.names) == sorted(rows["article"].unique()) and counts["articles"] == len(catalog)
    assert not catalog.card_type.any() and len(np.unique(catalog.category)) > 2
    assert counts["articles_with_embedding"] == catalog.embeddings.any(axis=1).sum() > 5
    unseen = ~np.isin(catalog.names, rows.filter(pl.col("day") < 7)["article"].unique())
    read = frames["train/history.parquet"]["article_id_fixed"].explode().unique().to_list()
    new = unseen & ~np.isin(catalog.names, read)
    assert new.any()
    scalars = catalog.scalars
    assert len(np.unique(scalars[new], axis=0)) == 1  # they share the scalars of a new article
    assert np.all(scalars[new, 3] == 1) and np.all(scalars[~unseen, 3] < 1) and not scalars[:, 2].any()


def test_long_sessions_continue_and_drops_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ebnerd, "FEED", FEED.replace(max_slots=9))
    frames = bundle()
    name = "train/behaviors.parquet"
    frame = frames[name].with_columns(session_id=pl.col("user_id"))
    odd = frame.head(4).with_columns(
        pl.Series("article_ids_inview", [[], [1, 2, 2, 3], list(range(10)), [4, 5]]),
        pl.Series("article_ids_clicked", [[1], [3, 3], [1], [7]]),
        impression_id=pl.Series([901, 902, 903, 904]),
    )
    rows, counts = convert(frames | {name: pl.concat([frame, odd])}, tmp_path)
    assert rows["slot"].max() == 8
    assert counts["impressions"] == 502 and counts["slots"] == len(rows)
    assert counts["impressions_without_articles_dropped"] == 1
    assert counts["impressions_above_max_slots_dropped"] == 1
    assert counts["repeated_inview_articles_dropped"] == 1
    assert counts["repeated_clicks_dropped"] == 1
    assert counts["clicks_not_in_view_dropped"] == 1
    whole = pl.concat([frame, frames["validation/behaviors.parquet"]])
    sessions = whole.select("user_id", "session_id", pl.col("impression_id") >= 1000).n_unique()
    assert counts["sessions"] == sessions + counts["sessions_added_by_max_slots"]
    assert counts["sessions_added_by_max_slots"] > 50
    assert rows.filter(pl.col("slot") == 0)["page_age"].to_list() == [0] * counts["sessions"]


def drop(name: str) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return lambda frame: frame.drop(name)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train/behaviors", drop("session_id"), "missing column 'session_id'"),
        ("validation/history", drop("article_id_fixed"), "missing column 'article_id_fixed'"),
        (
            "train/behaviors",
            lambda f: f.with_columns(pl.col("impression_time").cast(pl.String)),
            "column 'impression_time' must hold times, not String",
        ),
        (
            "train/behaviors",
            lambda f: f.with_columns(article_ids_inview=pl.lit(3)),
            "column 'article_ids_inview' must hold lists of whole numbers, not Int32",
        ),
        (
            "validation/behaviors",
            lambda f: f.with_columns(
                user_id=pl.when(pl.int_range(pl.len()) == 7).then(None).otherwise("user_id")
            ),
            "row 7: user_id is empty",
        ),
        (
            "train/behaviors",
            lambda f: f.with_columns(next_read_time=pl.when(pl.int_range(pl.len()) > 4).then(-1.0)),
            "row 5: next_read_time is -1.0; it must be at least 0",
        ),
        (
            "train/history",
            lambda f: f.with_columns(pl.col("article_id_fixed").list.head(1)),
            "article_id_fixed and impression_time_fixed differ in length",
        ),
        ("train/behaviors", lambda f: f.clear(), "has no rows"),
    ],
)
def test_broken_bundles(
    tmp_path: Path, name: str, change: Callable[[pl.DataFrame], pl.DataFrame], message: str
) -> None:
    frames = bundle()
    frames[f"{name}.parquet"] = change(frames[f"{name}.parquet"])
    with pytest.raises(InputError, match=rf"{name}\.parquet.*{message}"):
        convert(frames, tmp_path)


def test_truncated_and_swapped_files(tmp_path: Path) -> None:
    frames = bundle()
    source = save(frames, tmp_path / "bundle")
    path = source / "validation" / "history.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"history\.parquet is not a readable Parquet file"):
        convert_ebnerd(source, tmp_path / "log")
    swapped = {
        name.replace("train", "x").replace("validation", "train").replace("x", "validation"): frame
        for name, frame in frames.items()
    }
    with pytest.raises(InputError, match="validation week must begin after the train week ends"):
        convert(swapped, tmp_path / "swapped")


def test_interrupted_conversion_goes_on(
    made_up: MadeUp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, folder, _, counts = made_up
    monkeypatch.setattr(ebnerd, "SESSIONS_PER_PART", 100)
    done: list[int] = []

    def stop(sessions: int, total: int) -> None:
        assert total == counts["sessions"]
        done.append(sessions)
        if done == [100, 200]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_ebnerd(folder / "bundle", tmp_path, stop)
    assert not LogReader(tmp_path).complete
    assert convert_ebnerd(folder / "bundle", tmp_path, stop) == counts
    assert done == [100, 200, counts["sessions"]]
    assert rows_of(tmp_path).equals(rows_of(folder / "log"))
    assert convert_ebnerd(folder / "bundle", tmp_path, stop) == counts  # nothing left to do
    with pytest.raises(InputError, match="holds another log"):
        convert_ebnerd(save(bundle(seed=4), tmp_path / "other"), tmp_path)


@pytest.mark.skipif(not is_ebnerd(DEMO), reason="the EB-NeRD demo bundle is not here")
def test_demo_bundle(tmp_path: Path) -> None:
    """The real columns and types, on the impressions of some users."""
    frames = {}
    for split in ("train", "validation"):
        for name in ("behaviors", "history"):
            frame = pl.read_parquet(DEMO / split / f"{name}.parquet")
            frames[f"{split}/{name}.parquet"] = frame.filter(pl.col("user_id") % 4 == 0)
    rows, counts = convert(frames, tmp_path)
    weeks = [frames[f"{split}/behaviors.parquet"] for split in ("train", "validation")]
    assert counts["impressions"] == sum(week.height for week in weeks)
    slots = [int(week["article_ids_inview"].list.len().sum()) for week in weeks]
    assert counts["slots"] == len(rows) == sum(slots)
    assert set(rows["day"]) == set(range(14)) and rows["slot"].to_numpy().max() < FEED.max_slots
    assert rows.filter(pl.col("day") >= 7).height == slots[1]
    found = ebnerd_reference(tmp_path / "log")
    auc = {name: figures["impression_auc"] for name, figures in found.items()}
    assert 0.6 < auc["popularity"] < auc["boosted_trees"] < auc["lambdarank_trees"] < 0.8
    assert auc["lambdarank_trees"] < auc["lambdarank_trees_page"] < 0.82
