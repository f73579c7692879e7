"""The EB-NeRD adapter: on a small made-up bundle, and on the demo bundle where it is at hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from edgerec_gym.errors import InputError
from edgerec_gym.logs import ebnerd, ebnerd_features
from edgerec_gym.logs.ebnerd import FEED, convert_ebnerd, ebnerd_reference, is_ebnerd
from edgerec_gym.logs.ebnerd_features import decayed_before
from edgerec_gym.logs.reference import impression_auc
from edgerec_gym.logs.store import LogReader

pytest.importorskip("sklearn")
pytest.importorskip("lightgbm")

DEMO = Path(__file__).parents[2] / "shared" / "data" / "ebnerd_demo"
BEGIN = datetime(2023, 5, 18, 7)
WEEK = timedelta(days=7)
N_USERS, N_ARTICLES = 30, 60
Frames = dict[str, pl.DataFrame]


def bundle(seed: int = 0) -> Frames:
    """Two weeks in the official layout; an article is older the smaller its id, popular ones are even."""
    rng = np.random.default_rng(seed)
    frames = {}
    for week, split in enumerate(("train", "validation")):
        begin = BEGIN + week * WEEK
        rows: list[dict[str, Any]] = []
        for k in range(250):
            second = int(rng.integers(0, 7 * 24 * 3600)) if k else 3
            newest = 20 + 20 * week + second // (7 * 24 * 180)  # 20 new articles a week
            shown = rng.choice(np.arange(max(0, newest - 25), newest), rng.integers(2, 9), replace=False)
            weight = np.where(shown % 2 == 0, 5.0, 1.0)
            clicked = rng.choice(shown, p=weight / weight.sum())
            user = int(rng.integers(N_USERS))
            rows.append(
                {
                    "impression_id": 1000 * week + k,
                    "impression_time": begin + timedelta(seconds=second),
                    "article_ids_inview": shown.tolist(),
                    "article_ids_clicked": [int(clicked)],
                    "user_id": user,
                    "session_id": user * 10 + second // (24 * 3600),
                    "next_read_time": float(rng.integers(0, 300)) if rng.random() < 0.9 else None,
                    "device_type": user % 4,
                    "is_subscriber": user % 5 == 0,
                    "is_sso_user": None if user == 1 else user % 2 == 0,
                }
            )
        types = {"device_type": pl.Int8, "next_read_time": pl.Float32}
        frames[f"{split}/behaviors.parquet"] = pl.DataFrame(rows, schema_overrides=types)
        reads: list[dict[str, Any]] = []
        for user in range(N_USERS):
            count = int(rng.integers(0, 20))
            times = np.sort(rng.integers(0, 21 * 24 * 3600, count))
            reads.append(
                {
                    "user_id": user,
                    "impression_time_fixed": [begin - timedelta(seconds=int(t) + 1) for t in times[::-1]],
                    "article_id_fixed": rng.integers(0, 20 + 20 * week, count).tolist(),
                }
            )
        history = {
            "user_id": pl.Int64,
            "impression_time_fixed": pl.List(pl.Datetime("us")),
            "article_id_fixed": pl.List(pl.Int64),
        }
        frames[f"{split}/history.parquet"] = pl.DataFrame(reads, schema=history)
    return frames


def save(frames: Frames, folder: Path) -> Path:
    for name, frame in frames.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(folder / name)
    return folder


def convert(frames: Frames, folder: Path) -> tuple[pl.DataFrame, dict[str, int]]:
    """Log rows with article ids and embeddings, and the counts."""
    counts = convert_ebnerd(save(frames, folder / "bundle"), folder / "log")
    return rows_of(folder / "log"), counts


def rows_of(log: Path) -> pl.DataFrame:
    reader = LogReader(log)
    frame = pl.concat([pl.from_arrow(table) for table in reader.batches()])  # type: ignore[type-var]
    assert isinstance(frame, pl.DataFrame)
    item = frame["item"].to_numpy()
    return frame.with_columns(
        article=reader.catalog.names[item], embedding=pl.Series(reader.catalog.embeddings[item].tolist())
    )


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> tuple[Frames, Path, pl.DataFrame, dict[str, int]]:
    folder = tmp_path_factory.mktemp("ebnerd")
    frames = bundle()
    return frames, folder, *convert(frames, folder)


def test_layout(made_up: tuple[Frames, Path, pl.DataFrame, dict[str, int]], tmp_path: Path) -> None:
    _, folder, _, _ = made_up
    assert is_ebnerd(folder / "bundle") and not is_ebnerd(folder / "log") and not is_ebnerd(folder / "no")
    with pytest.raises(InputError, match=r"train/behaviors\.parquet does not exist; an EB-NeRD bundle has"):
        convert_ebnerd(tmp_path, tmp_path / "log")


def test_every_impression_is_a_page(made_up: tuple[Frames, Path, pl.DataFrame, dict[str, int]]) -> None:
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


def test_sessions_days_and_hours(made_up: tuple[Frames, Path, pl.DataFrame, dict[str, int]]) -> None:
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


def test_scalars_against_direct_sums(made_up: tuple[Frames, Path, pl.DataFrame, dict[str, int]]) -> None:
    """Recompute repeats, freshness, recent click rate and popularity of some rows from the bundle."""
    frames, _, rows, _ = made_up
    events = [
        (r["impression_time"], r["user_id"], a, a in r["article_ids_clicked"])
        for split in ("train", "validation")
        for r in frames[f"{split}/behaviors.parquet"].iter_rows(named=True)
        for a in r["article_ids_inview"]
    ]
    time = np.array([(t - BEGIN).total_seconds() for t, *_ in events])
    user, article, click = (np.array([e[k] for e in events]) for k in (1, 2, 3))
    reads = frames["train/history.parquet"].explode("impression_time_fixed", "article_id_fixed")
    first_read = dict(
        reads.group_by("article_id_fixed").agg(pl.col("impression_time_fixed").min()).iter_rows()
    )
    clock = _clock(frames, rows)
    rng = np.random.default_rng(2)
    for k in rng.choice(len(rows), 40, replace=False):
        row, now = rows.row(int(k), named=True), clock[k]
        earlier = time < now
        same = earlier & (article == row["article"])

        def decayed(mask: np.ndarray, hours: float, now: float = now) -> float:
            return float(np.sum(0.5 ** ((now - time[mask]) / (hours * 3600))))

        assert row["base_cvr"] == pytest.approx(min((same & (user == row["user"])).sum(), 4) / 4)
        seen = [time[article == row["article"]].min()]
        if row["article"] in first_read:
            seen.append((first_read[row["article"]] - BEGIN).total_seconds())
        assert row["freshness"] == pytest.approx(np.exp(-max(now - min(seen), 0) / 86400), abs=1e-5)
        rate = (decayed(same & click, 0.5) + 0.1) / (decayed(same, 0.5) + 1)
        assert row["price_level"] == pytest.approx(rate, rel=1e-4)
        clicks = decayed(same & click, 4) / max(decayed(earlier & click, 4), 1)
        views = decayed(same, 2) / max(decayed(earlier, 2), 1)
        logit = -0.87 + 0.49 * (np.log(clicks + 1e-4) - np.log(views + 1e-3) / 2)
        assert row["base_ctr"] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-4)


def _clock(frames: Frames, rows: pl.DataFrame) -> np.ndarray:
    """Seconds since BEGIN of each log row, through the session's start."""
    starts = (
        pl.concat([frames[f"{split}/behaviors.parquet"] for split in ("train", "validation")])
        .group_by("user_id", "session_id", late=pl.col("impression_id") >= 1000)
        .agg(pl.col("impression_time").min())
        .sort("impression_time")["impression_time"]
    )
    rank = rows["session"].rank("dense").to_numpy() - 1
    start = np.array([(t - BEGIN).total_seconds() for t in starts])
    return start[rank.astype(int)] + rows["time"].to_numpy()


def test_decayed_sums_against_a_double_loop() -> None:
    rng = np.random.default_rng(0)
    seconds, key = rng.integers(0, 40, 200), rng.integers(0, 6, 200)
    weight, half_life = rng.random((200, 2)), np.array([7.0, np.inf])
    found = decayed_before(seconds, key, weight, half_life)
    for i in range(200):
        earlier = (seconds < seconds[i]) & (key == key[i])
        decay = 0.5 ** ((seconds[i] - seconds[earlier, None]) / half_life)
        assert found[i] == pytest.approx((weight[earlier] * decay).sum(axis=0))


FEATURES = ["user_features", "price_level", "base_ctr", "base_cvr", "freshness", "embedding"]


def reverse_clicks(frame: pl.DataFrame, after: datetime) -> pl.DataFrame:
    """From some moment on, another article is clicked; who was shown what and when stays."""
    late = pl.col("impression_time") >= after
    return frame.with_columns(
        article_ids_clicked=pl.when(late)
        .then(pl.col("article_ids_inview").list.slice(0, 1))
        .otherwise("article_ids_clicked")
    )


def test_nothing_depends_on_the_future(
    made_up: tuple[Frames, Path, pl.DataFrame, dict[str, int]], tmp_path: Path
) -> None:
    frames, _, rows, _ = made_up
    clock = _clock(frames, rows)
    train, validation = "train/behaviors.parquet", "validation/behaviors.parquet"
    for day in (2, 5, 9):
        moment = BEGIN + timedelta(days=day)
        changed = frames | {name: reverse_clicks(frames[name], moment) for name in (train, validation)}
        other, _ = convert(changed, tmp_path / str(day))
        before = clock <= day * 86400
        assert 0 < before.sum() < len(rows)
        assert other.filter(before).select(FEATURES).equals(rows.filter(before).select(FEATURES))
        assert not other.filter(~before).select(FEATURES).equals(rows.filter(~before).select(FEATURES))


def test_the_train_week_knows_nothing_of_the_validation_week(
    made_up: tuple[Frames, Path, pl.DataFrame, dict[str, int]], tmp_path: Path
) -> None:
    """Not of its impressions, nor of the reads before it, part of which happened in the train week."""
    frames, _, rows, _ = made_up
    other_frames = bundle(seed=9)
    changed = frames | {name: other_frames[name] for name in frames if name.startswith("validation")}
    other, _ = convert(changed, tmp_path)
    train, other_train = rows.filter(pl.col("day") < 7), other.filter(pl.col("day") < 7)
    columns = [*FEATURES, "session", "user", "day", "slot", "article", "click", "time"]
    assert other_train.select(columns).equals(train.select(columns))
    assert train.select(pl.col("embedding").list.eval(pl.element().abs()).list.sum() > 0).to_series().any()


def test_user_features(made_up: tuple[Frames, Path, pl.DataFrame, dict[str, int]]) -> None:
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


def test_catalogue(made_up: tuple[Frames, Path, pl.DataFrame, dict[str, int]]) -> None:
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
    made_up: tuple[Frames, Path, pl.DataFrame, dict[str, int]],
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


def test_impression_auc_against_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    impression = rng.integers(0, 50, 400)
    click, score = rng.random(400) < 0.2, np.round(rng.random(400), 1)  # with ties
    click[impression == 3] = False  # has no AUC and does not count
    expected = [
        roc_auc_score(click[rows], score[rows])
        for k in range(50)
        if 0 < click[rows := impression == k].sum() < rows.sum()
    ]
    assert len(expected) < 50
    assert impression_auc(score, click, impression) == pytest.approx(np.mean(expected))


def test_reference(made_up: tuple[Frames, Path, pl.DataFrame, dict[str, int]], tmp_path: Path) -> None:
    _, folder, rows, _ = made_up
    late = rows.filter(pl.col("day") >= 7)
    page = late.select(pl.struct("session", "page").rank("dense")).to_series().to_numpy()
    popularity = impression_auc(late["base_ctr"].to_numpy(), late["click"].to_numpy(), page)
    found = ebnerd_reference(folder / "log")
    assert found["popularity"] == pytest.approx(popularity, abs=1e-4)
    assert popularity > 0.52 and found["boosted_trees"] > 0.52  # even articles are clicked more
    with pytest.raises(InputError, match=r"reference\.parquet is not readable; convert the bundle again"):
        ebnerd_reference(tmp_path)


def test_stand_in_categories_deal_out_what_has_no_embedding() -> None:
    vectors = np.zeros((20, 2), np.float32)
    vectors[:4], vectors[4:8] = (1, 0), (0, 1)
    early = np.arange(20) < 6
    category = ebnerd_features.clusters(vectors, early, n_known=6, n_unknown=3)
    assert len(set(category[:4])) == len(set(category[4:8])) == 1 and category[0] != category[4]
    assert sorted(category[8:]) == [2] * 4 + [3] * 4 + [4] * 4


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
    assert counts["slots"] == len(rows) == sum(week["article_ids_inview"].list.len().sum() for week in weeks)
    assert set(rows["day"]) == set(range(14)) and rows["slot"].max() < FEED.max_slots
    late = rows.filter(pl.col("day") >= 7)
    assert late.height == weeks[1]["article_ids_inview"].list.len().sum()
    found = ebnerd_reference(tmp_path / "log")
    assert 0.6 < found["popularity"] < found["boosted_trees"] < 0.8
