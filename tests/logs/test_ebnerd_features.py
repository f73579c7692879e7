"""What the EB-NeRD adapter says of articles: right, and from the past only."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_ebnerd import BEGIN, Frames, MadeUp, bundle, convert

from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.ranking import grouped_auc
from edgerec_gym.logs import ebnerd_features
from edgerec_gym.logs.ebnerd import ebnerd_reference
from edgerec_gym.logs.ebnerd_features import article_embeddings, decayed_before
from edgerec_gym.logs.store import LogReader

pytest.importorskip("sklearn")
pytest.importorskip("lightgbm")


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    folder = tmp_path_factory.mktemp("ebnerd")
    frames = bundle()
    return frames, folder, *convert(frames, folder)


def test_scalars_against_direct_sums(made_up: MadeUp) -> None:
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
        share = decayed(same, 0.5) / max(decayed(earlier, 0.5), 1)
        assert row["price_level"] == pytest.approx(np.log(1 + 4000 * share) / np.log(4001), rel=1e-4)
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


def test_nothing_depends_on_the_future(made_up: MadeUp, tmp_path: Path) -> None:
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


def rewrite_from(frames: Frames, moment: datetime, seed: int) -> Frames:
    """Other clicks and reading times from a second on; after it also other articles, half as many pages."""
    rng = np.random.default_rng(seed)
    changed = {}
    for name, frame in frames.items():
        if "history" in name:
            # Reads of the train week are in the validation week's history.
            replace = name.startswith("validation") and moment < BEGIN + timedelta(days=7)
            changed[name] = bundle(seed + 1)[name] if replace else frame
            continue
        time = frame["impression_time"]
        shuffled = frame["article_ids_inview"].gather(_shuffle_after(time, moment, rng))
        kept = (time <= moment).to_numpy() | (rng.random(len(frame)) < 0.5)
        late = pl.col("impression_time") >= moment
        frame = frame.with_columns(
            article_ids_inview=shuffled,
            next_read_time=pl.when(late).then(pl.lit(7.0, pl.Float32)).otherwise("next_read_time"),
            device_type=pl.when(pl.col("impression_time") > moment)
            .then(pl.lit(1, pl.Int8))
            .otherwise("device_type"),
        )
        changed[name] = reverse_clicks(frame, moment).filter(kept)
    return changed


def _shuffle_after(time: pl.Series, moment: datetime, rng: np.random.Generator) -> np.ndarray:
    order, after = np.arange(len(time)), np.flatnonzero((time > moment).to_numpy())
    order[after] = rng.permutation(after)
    return order


def model_inputs(frames: Frames, folder: Path, rows: pl.DataFrame) -> pl.DataFrame:
    """What a network makes of every slot before its answer, by user, second and article."""
    torch = pytest.importorskip("torch")
    from edgerec_gym.logs.sessions import SessionStream
    from edgerec_gym.simulator.dataset import padded
    from edgerec_gym.simulator.model import UserNetwork

    reader = LogReader(folder / "log")
    [sessions] = SessionStream(reader, None).chunks()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = UserNetwork(reader.config, reader.unidentified, hidden=12)
        network.heads.weight.mul_(30)
        batch = padded(sessions, np.arange(len(sessions)), np.ones(len(sessions)))
        probability = network.forward_sequence(batch)[0]["click_probability"].double().numpy()
    placed = sessions.answered_rows(np.arange(len(sessions)))
    return rows.select("user", "article", *FEATURES[1:]).with_columns(
        clock=_clock(frames, rows),
        page=pl.Series(sessions.summary[placed].tolist()),
        probability=probability,
    )


@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.generate],  # to shrink an example takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(place=st.floats(0.02, 0.98), seed=st.integers(0, 1000))
def test_inputs_of_an_impression_know_neither_its_answer_nor_what_comes_later(
    made_up: MadeUp, tmp_path_factory: pytest.TempPathFactory, place: float, seed: int
) -> None:
    """Everything that the model reads, and so what it expects, is the same for it and all earlier ones."""
    frames, folder, rows, _ = made_up
    times = pl.concat([frames[f"{split}/behaviors.parquet"] for split in ("train", "validation")])
    moment = times["impression_time"].sort()[int(place * len(times))]
    changed = rewrite_from(frames, moment, seed)
    other_folder = tmp_path_factory.mktemp("changed")
    other_rows, _ = convert(changed, other_folder)
    second = (moment - BEGIN).total_seconds()
    found, wanted = (
        model_inputs(*of).filter(pl.col("clock") <= second).sort("clock", "user", "article")
        for of in ((changed, other_folder, other_rows), (frames, folder, rows))
    )
    assert found["clock"].max() == second and found["probability"].n_unique() > len(found) / 2
    assert found.drop("probability", "page").equals(wanted.drop("probability", "page"))
    for column in ("page", "probability"):
        pair = (np.stack(frame[column].to_list()) for frame in (found, wanted))
        np.testing.assert_allclose(*pair, atol=1e-6)


def test_the_train_week_knows_nothing_of_the_validation_week(made_up: MadeUp, tmp_path: Path) -> None:
    """Not of its impressions, nor of the reads before it, part of which happened in the train week."""
    frames, _, rows, _ = made_up
    other_frames = bundle(seed=9)
    changed = frames | {name: other_frames[name] for name in frames if name.startswith("validation")}
    other, _ = convert(changed, tmp_path)
    train, other_train = rows.filter(pl.col("day") < 7), other.filter(pl.col("day") < 7)
    columns = [*FEATURES, "session", "user", "day", "slot", "article", "click", "time"]
    assert other_train.select(columns).equals(train.select(columns))
    assert train.select(pl.col("embedding").list.eval(pl.element().abs()).list.sum() > 0).to_series().any()


def test_embeddings_take_reads_of_both_periods_only_where_no_train_row_sees_them() -> None:
    def reads(of: dict[int, list[int]]) -> pl.DataFrame:
        pairs = [(user, article) for article, users in of.items() for user in users]
        return pl.DataFrame(pairs, schema=["user", "article"], orient="row")

    groups = {1: [0, 1, 2, 3], 2: [0, 1, 2, 3], 3: [4, 5, 6, 7], 4: [4, 5, 6], 5: [0, 7]}
    later = {6: [4, 5, 6, 7], 7: [4, 5, 6, 7], 5: [0, 1, 2], 8: [20, 21, 22]}
    articles, vectors = article_embeddings(reads(groups), reads(later), np.array([1, 5, 7]), size=2)
    # 5 and 7 were shown in the train week and had too few readers by then; nobody knows the readers of 8.
    assert articles.tolist() == [1, 2, 3, 4, 6] and vectors.shape == (5, 2)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    cosine = vectors @ vectors.T
    assert np.allclose(cosine[0, 1], 1) and np.allclose(cosine[2, 4], 1)  # the same readers
    assert cosine[2, 3] > 0.9 and abs(cosine[0, 3]) < 0.5


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
    assert grouped_auc(score, click, impression) == pytest.approx(np.mean(expected))


def test_reference(made_up: MadeUp, tmp_path: Path) -> None:
    _, folder, rows, _ = made_up
    late = rows.filter(pl.col("day") >= 7)
    page = late.select(pl.struct("session", "page").rank("dense")).to_series().to_numpy()
    popularity = grouped_auc(late["base_ctr"].to_numpy(), late["click"].to_numpy(), page)
    found = ebnerd_reference(folder / "log")
    assert found["popularity"]["impression_auc"] == pytest.approx(popularity, abs=1e-4)
    for figures in found.values():
        assert figures["impression_auc"] > 0.52  # even articles are clicked more
    with pytest.raises(InputError, match=r"reference\.parquet does not exist"):
        ebnerd_reference(tmp_path)


def test_stand_in_categories_deal_out_what_has_no_embedding() -> None:
    vectors = np.zeros((20, 2), np.float32)
    vectors[:4], vectors[4:8] = (1, 0), (0, 1)
    early = np.arange(20) < 6
    category = ebnerd_features.clusters(vectors, early, n_known=6, n_unknown=3)
    assert len(set(category[:4])) == len(set(category[4:8])) == 1 and category[0] != category[4]
    assert sorted(category[8:]) == [2] * 4 + [3] * 4 + [4] * 4
