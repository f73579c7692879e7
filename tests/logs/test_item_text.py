"""Texts of items as item columns: side files, imports, and the way from a log to a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from command_line import fails_with, run_well
from small_log import catalog, write_log

from edgerec_gym.cloud.item_table import ITEM_TABLE, ItemTable
from edgerec_gym.env import EdgeFeedEnv
from edgerec_gym.errors import InputError
from edgerec_gym.logs import text
from edgerec_gym.logs.item_text import read_item_vectors, with_item_texts
from edgerec_gym.logs.store import LogReader
from edgerec_gym.logs.text import embedding_columns
from edgerec_gym.policy import Observation
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from tests import small_table as small

pytest.importorskip("sklearn")
NAMES = np.array([30, 10, 20, 40])
SIDE: dict[str, Any] = {"item": [10, 20, 30], "text": ["red lamp", "blue chair", "red chair"]}
COLORS, THINGS = ("red", "blue", "green"), ("lamp", "chair", "table", "sofa")


@pytest.fixture(autouse=True)
def ngrams(monkeypatch: pytest.MonkeyPatch) -> None:
    """No word vectors, whether they are installed or not."""
    monkeypatch.setattr(text, "_glove", lambda: None)


def saved(folder: Path, content: dict[str, Any], kind: str = ".parquet") -> Path:
    path, frame = folder / f"side{kind}", pl.DataFrame(content)
    {".parquet": frame.write_parquet, ".csv": frame.write_csv, ".jsonl": frame.write_ndjson}[kind](path)
    return path


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("size", [1, 2, 50])
def test_vectors_belong_to_the_items_that_the_file_names(tmp_path: Path, kind: str, size: int) -> None:
    found = read_item_vectors(saved(tmp_path, SIDE, kind), NAMES, size)
    assert found.shape == (4, size) and found.dtype == np.float32 and np.abs(found).max() <= 1
    lengths = np.linalg.norm(found, axis=1)
    assert np.allclose(lengths[:3], 1, atol=1e-5) and lengths[3] == 0  # item 40 has no text
    turned = {name: values[::-1] for name, values in SIDE.items()}
    assert np.array_equal(read_item_vectors(saved(tmp_path, turned, kind), NAMES, size), found)


def test_vectors_of_any_model_keep_their_angles(tmp_path: Path) -> None:
    """With as many columns as numbers, components are a rotation of the centred vectors."""
    rng = np.random.default_rng(0)
    given = rng.normal(size=(6, 4))
    side = {"item": np.arange(6)} | {f"v{k}": given[:, k] for k in range(4)}
    found = read_item_vectors(saved(tmp_path, side), np.arange(6), 4).astype(np.float64)
    unit = given / np.linalg.norm(given, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, centred @ centred.T, atol=1e-5)
    texts = {"item": np.arange(6), "text": [f"text {k}" for k in range(6)]}
    encoded = read_item_vectors(
        saved(tmp_path, texts), np.arange(6), 4, lambda some: given[[int(t.split()[1]) for t in some]]
    )
    np.testing.assert_allclose(encoded, found, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"item": [10, 11]} | {"text": ["a", "b"]}, "row 1: no item of the catalogue is named 11"),
        ({"item": [10, 10], "text": ["a", "b"]}, "row 0: item 10 has several rows; allowed: one"),
        ({"item": ["10"], "text": ["a"]}, "must hold whole numbers"),
        ({"item": [10], "text": [3]}, "column 'text' must hold text, not Int64"),
        ({"item": [10], "text": [" "]}, "every text is empty"),
        ({"name": [10], "text": ["a"]}, "needs the column 'item'"),
        ({"item": [10]}, "needs the column 'item', and 'text' or columns of numbers"),
        ({"item": [10], "v0": ["x"]}, "column 'v0' must be numeric"),
        ({"item": [10, 20], "v0": [1.0, None]}, "row 1: 'v0' is not a finite number"),
    ],
)
def test_bad_side_files_are_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_item_vectors(saved(tmp_path, content), NAMES, 2)


def test_other_bad_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "side.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "side.txt").write_text("item,text")
    for file, size, message in (
        ("side.parquet", 2, "side.parquet"),
        ("side.txt", 2, "unknown kind; allowed: .parquet, .csv, .jsonl"),
        ("none.csv", 2, "none.csv cannot be read"),
        ("none.csv", 51, "text columns is 51; allowed: 1 to 50"),
    ):
        with pytest.raises(InputError, match=message):
            read_item_vectors(tmp_path / file, NAMES, size)
    side = saved(tmp_path, SIDE)
    with pytest.raises(InputError, match="a row of finite numbers for each of 3 texts"):
        read_item_vectors(side, NAMES, 2, lambda some: np.full((3, 2), np.nan))


def test_texts_join_an_item_table_and_replace_older_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns, folds = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((4, 2), (4, 3, 2)))
    table, side = ItemTable(("a", "b"), columns, folds), saved(tmp_path, SIDE)
    wide = with_item_texts(table, side, NAMES, 3)
    assert wide.names == ("a", "b", *embedding_columns(3))
    assert np.array_equal(wide.columns[:, :2], columns) and np.array_equal(wide.folds[:, :, :2], folds)
    assert np.array_equal(wide.folds[:, :, 2:], np.repeat(wide.columns[:, None, 2:], 3, axis=1))
    narrow = with_item_texts(wide, side, NAMES, 1)
    assert narrow.names == ("a", "b", "text_embedding_0")
    assert np.array_equal(narrow.columns, with_item_texts(table, side, NAMES, 1).columns)


def test_the_command_attaches_texts_to_a_log(tmp_path: Path) -> None:
    folder, names = write_log(tmp_path / "log"), catalog().names
    side = saved(tmp_path, {"item": names, "text": [f"{COLORS[k % 3]} {THINGS[k % 4]}" for k in names]})
    run_well("items", folder, "--folds", 2)
    plain = LogReader(folder).config.item_columns
    run_well("items", folder, "--folds", 2, "--text", side, "--text-size", 4)
    reader = LogReader(folder)
    assert reader.config.item_columns == (*plain, *embedding_columns(4))
    expected = read_item_vectors(side, reader.catalog.names, 4)
    assert np.array_equal(reader.catalog.columns[:, -4:], expected)
    run_well("items", folder, "--folds", 2)
    assert LogReader(folder).config.item_columns == plain
    (folder / ITEM_TABLE).unlink()
    fails_with("side.csv", "items", folder, "--text", tmp_path / "side.csv")
    assert not (folder / ITEM_TABLE).exists()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> small.Place:
    return small.Place(tmp_path_factory.mktemp("texts"))


def titled() -> pl.DataFrame:
    """The small table with a title for each item; users like a kind of thing."""
    frame = small.table()
    titles = [f"{COLORS[sku % 3]} {THINGS[sku % 4]}" for sku in frame["sku"]]
    return frame.with_columns(title=pl.Series(titles))


def test_an_import_keeps_the_embedding_and_adds_columns(place: small.Place) -> None:
    frame = titled()
    place.run(frame, out="plain")
    plain = LogReader(place.out)
    result = place.run(frame, out="beside", text="title", text_embedding=3)
    beside = LogReader(place.out)
    assert np.array_equal(beside.catalog.embeddings, plain.catalog.embeddings)
    assert beside.config.item_columns == (*plain.config.item_columns, *embedding_columns(3))
    assert np.array_equal(beside.catalog.columns[:, :-3], plain.catalog.columns)
    vectors = beside.catalog.columns[:, -3:]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    log = place.read()
    shipped = np.stack(log["item_columns"].to_numpy())[:, -3:]
    assert np.array_equal(shipped, vectors[log["item"].to_numpy()])  # also on an item's first day
    title = beside.catalog.names % 12  # the colour is sku % 3, the thing sku % 4
    for kind in range(12):
        assert len(np.unique(vectors[title == kind], axis=0)) == 1
    assert len(np.unique(vectors.round(4), axis=0)) > 6
    assert any("item columns beside the embedding" in note for note in result["notes"])
    assert any("an SVD of the clicks" in note for note in result["notes"])
    fails_with("name texts in the mapping of its import", "items", place.out, "--text", "side.csv")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"text_embedding": 3}, "'text_embedding' needs 'text'"),
        ({"text": "title", "text_embedding": 51}, "text_embedding = 51 is out of range; allowed: 0 to 50"),
        ({"text": "title", "text_embedding": -1}, "text_embedding = -1 is out of range"),
    ],
)
def test_bad_mappings_are_refused(place: small.Place, mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        place.run(titled(), out="bad", **mapping)


def test_from_texts_to_a_phone(place: small.Place, tmp_path: Path) -> None:
    """Import, fit, train, export and play: the columns are there on every page."""
    pytest.importorskip("torch")
    from small_rerankers import train

    from edgerec_gym.agents.export.export import export
    from edgerec_gym.agents.find_policy import find_policy
    from edgerec_gym.evaluation.play import play
    from edgerec_gym.simulator.fit import fit

    place.run(titled(), out="logs", text="title", text_embedding=3)
    fit(place.out, tmp_path / "users", ensemble=1, epochs=1, hidden=8)
    scenario = Scenario.load(tmp_path / "users")
    config = scenario.config
    assert config.item_columns[-3:] == embedding_columns(3)
    at = config.n_item_features - 3
    known = {tuple(row) for row in scenario.catalog.columns[:, -3:]}
    for supply in ("logged", "daily", "catalogue"):
        env = EdgeFeedEnv(scenario=scenario, users="learned", cloud={"supply": supply})
        pool = env.reset(seed=0)[0]["pool"]
        rows = pool[pool.any(axis=1), at:]
        assert len(rows) and {tuple(row) for row in rows} <= known
    train(tmp_path / "run", place.out, agent="crban", epochs=1, hidden=8, batch_size=64)
    export(tmp_path / "run", tmp_path / "device", scenario=scenario)
    told = {"env_id": "EdgeFeedRerank-v0", "scenario": scenario, "users": "learned"}
    common: dict[str, Any] = {**told, "sessions": 8, "seed": 0}
    torch_policy, device = (
        find_policy(str(tmp_path / name), "EdgeFeedRerank-v0", scenario, "learned")
        for name in ("run", "device")
    )
    first, second = play(torch_policy, **common), play(device, **common)
    np.testing.assert_allclose(first["value"], second["value"])
    # The exported model reads the texts: other ones give other scores.
    feeds = make_feeds("EdgeFeedRerank-v0", 4, scenario=scenario, users="learned")
    observation = {key: values.copy() for key, values in feeds.reset(seed=0)[0].items()}
    before = scores_of(device, observation)
    observation["pool"][..., at:] *= -1
    assert not np.allclose(scores_of(device, observation), before)
    feeds.close()


def scores_of(device: Any, observation: Observation) -> np.ndarray:
    """Scores (B, N) of the pool in new sessions."""
    rows = len(observation["pool"])
    device.reset(np.ones(rows, np.bool_))
    device.act(observation)
    return np.stack([device.explain(row).scores for row in range(rows)])
