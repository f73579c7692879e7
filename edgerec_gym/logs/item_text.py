"""Texts or vectors of items from a side file, as columns of the item table.

Synthetic worlds have no texts, and a log may lack them: a file beside it tells what items are about. It has a
row for each item: its name in the catalogue (column `item`), and either its `text` or a vector of numbers in
all other columns, e.g. those of a language model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from edgerec_gym.cloud.catalog import MOST_ITEMS
from edgerec_gym.cloud.item_table import ItemTable
from edgerec_gym.errors import InputError, shown
from edgerec_gym.logs.ebnerd_features import unit_length
from edgerec_gym.logs.text import SIZE, TEXT_EMBEDDING, embedding_columns, fit_text
from edgerec_gym.parquet import check_parquet

ITEM, TEXT = "item", "text"
LEAST_STRENGTH = 1e-9  # of a component, relative to the first; below it is rounding
READERS: dict[str, Callable[..., pl.DataFrame]] = {
    ".parquet": pl.read_parquet,
    ".csv": pl.read_csv,
    ".jsonl": pl.read_ndjson,
}
Encoder = Callable[[list[str]], np.ndarray]


def with_item_texts(
    table: ItemTable, path: str | Path, names: np.ndarray, size: int, encoder: Encoder | None = None
) -> ItemTable:
    """Return an item table with the columns text_embedding_0, ..., which replace those that it has.

    Args:
        table: the table of n items.
        path: the side file: .parquet, .csv or .jsonl.
        names: (n,) int64 names of the items in the catalogue.
        size: number of columns, 1 to SIZE.
        encoder: maps texts (m) to vectors (m, v) of numbers; by default that of :mod:`edgerec_gym.logs.text`.

    Raises:
        InputError: the file is missing, broken or names other items; the message names the file and the row.
        MissingExtraError: the texts need scikit-learn, which is not installed.
    """
    vectors = read_item_vectors(path, names, size, encoder)
    kept = [k for k, name in enumerate(table.names) if not name.startswith(f"{TEXT_EMBEDDING}_")]
    n_folds = table.folds.shape[1]
    return ItemTable(
        (*(table.names[k] for k in kept), *embedding_columns(size)),
        np.concatenate([table.columns[:, kept], vectors], axis=1),
        # Texts tell nothing of sessions, so folds do not differ.
        np.concatenate([table.folds[:, :, kept], np.repeat(vectors[:, None], n_folds, axis=1)], axis=2),
    )


def read_item_vectors(
    path: str | Path, names: np.ndarray, size: int, encoder: Encoder | None = None
) -> np.ndarray:
    """Return the first `size` principal components of what a side file tells of items.

    Arguments and errors are those of :func:`with_item_texts`.

    Returns:
        (n, size) float32 in -1..1, of length 1; zero for items that the file lacks or has no text for.
    """
    if not 1 <= size <= SIZE:
        raise InputError(f"the number of text columns is {size}; allowed: 1 to {SIZE}")
    frame = _read(Path(path))
    place = _places(Path(path), frame, names)
    if TEXT in frame.columns:
        vectors = _embedded(Path(path), frame[TEXT], encoder)
    else:
        vectors = _numbers(Path(path), frame)
    found = np.zeros((len(names), size), np.float32)
    found[place] = _components(vectors, size)
    return found


def _read(path: Path) -> pl.DataFrame:
    reader = READERS.get(path.suffix)
    if reader is None:
        raise InputError(f"{path} is of an unknown kind; allowed: {', '.join(READERS)}")
    if path.suffix == ".parquet":
        check_parquet(path, most_rows=MOST_ITEMS)
    try:
        frame = reader(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if ITEM not in frame.columns or frame.width < 2:
        raise InputError(f"{path} needs the column 'item', and 'text' or columns of numbers; it has "
                         f"{shown(', '.join(frame.columns))}")  # fmt: skip
    return frame.sort(ITEM)  # so that results do not depend on the order of the rows


def _places(path: Path, frame: pl.DataFrame, names: np.ndarray) -> np.ndarray:
    """Return the catalogue row of each row of the file; InputError if it names others, or one twice."""
    items = frame[ITEM]
    if not items.dtype.is_integer() or items.null_count():
        raise InputError(f"{path}: column 'item' must hold whole numbers, the items' names in the catalogue")
    order = np.argsort(names, kind="stable")
    given = items.to_numpy()
    at = np.minimum(np.searchsorted(names, given, sorter=order), len(names) - 1)
    place = order[at]
    unknown = np.flatnonzero(names[place] != given)
    if len(unknown):
        raise InputError(f"{path}: row {unknown[0]}: no item of the catalogue is named {given[unknown[0]]}")
    twice = items.is_duplicated().arg_true()
    if len(twice):
        raise InputError(f"{path}: row {twice[0]}: item {given[twice[0]]} has several rows; allowed: one")
    return place


def _embedded(path: Path, column: pl.Series, encoder: Encoder | None) -> np.ndarray:
    if column.dtype != pl.String:
        raise InputError(f"{path}: column 'text' must hold text, not {column.dtype}")
    texts = column.fill_null("").to_list()
    some = [text for text in texts if text.strip()]
    if not some:
        raise InputError(f"{path}: every text is empty")
    if encoder is None:
        return fit_text(some).embed(texts).astype(np.float64)
    encoded = np.asarray(encoder(some), np.float64)
    if encoded.ndim != 2 or len(encoded) != len(some) or not np.isfinite(encoded).all():
        raise InputError(f"the encoder must give a row of finite numbers for each of {len(some)} texts")
    vectors = np.zeros((len(texts), encoded.shape[1]))
    vectors[[k for k, text in enumerate(texts) if text.strip()]] = encoded
    return vectors


def _numbers(path: Path, frame: pl.DataFrame) -> np.ndarray:
    columns = frame.drop(ITEM)
    for name, kind in zip(columns.columns, columns.dtypes, strict=True):
        if not kind.is_numeric():
            raise InputError(f"{path}: column {shown(name)} must be numeric, not {kind}")
    vectors = columns.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    wrong = np.argwhere(~np.isfinite(vectors))
    if len(wrong):
        row, column = wrong[0]
        raise InputError(f"{path}: row {row}: {shown(columns.columns[column])} is not a finite number")
    return vectors


def _components(vectors: np.ndarray, size: int) -> np.ndarray:
    """Return the first principal components of unit vectors (m, v), (m, size) of length 1 or zero."""
    given: np.ndarray = np.abs(vectors).sum(axis=1) > 0
    unit = unit_length(vectors).astype(np.float64)
    centred = np.where(given[:, None], unit - unit[given].mean(axis=0), 0.0) if given.any() else unit
    _, strength, directions = np.linalg.svd(centred.T @ centred)  # of the covariance: small, whatever m is
    directions = directions[:size][strength[:size] > LEAST_STRENGTH * max(1.0, strength.max())]
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    found = np.zeros((len(vectors), size))
    found[:, : len(directions)] = centred @ (directions * signs[:, None]).T
    return np.clip(unit_length(found), -1, 1)
