"""The item table: what logs have told of each item, which the cloud ships with every page.

EdgeRec keeps such statistics and embeddings in a key-value store of the cloud and sends them with a page's
candidates. Here they are columns of an item's features, named by `FeedConfig.item_columns` and learned by
:mod:`edgerec_gym.logs.item_statistics`. A log folder holds them in `item_table.parquet`, a scenario in its
catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from edgerec_gym.errors import InputError, shown
from edgerec_gym.files import atomic_path
from edgerec_gym.parquet import check_parquet

ITEM_TABLE = "item_table.parquet"  # in a log folder
WHOLE = -1  # `fold` of rows that were learned from all sessions
MOST_FOLDS = 100
LIFT_SCALE = 4.0  # log-odds, or levels of dwell, per unit of a lift
COUNT_SCALE = 12.0  # of log(1 + count)


@dataclass(frozen=True)
class ItemTable:
    """Columns of n items.

    Attributes:
        names: names of the C columns.
        columns: (n, C) float32 in -1..1, learned from all sessions.
        folds: (n, K, C) float32; entry k is learned without the sessions whose id is k modulo K.
    """

    names: tuple[str, ...]
    columns: np.ndarray
    folds: np.ndarray

    def save(self, path: str | Path) -> None:
        """Write `item_table.parquet` atomically."""
        n, n_folds, _ = self.folds.shape
        values = np.concatenate([self.columns[:, None], self.folds], axis=1).reshape(n * (1 + n_folds), -1)
        frame = {"item": np.repeat(np.arange(n), 1 + n_folds), "fold": np.tile(np.arange(-1, n_folds), n)}
        frame |= {name: values[:, k] for k, name in enumerate(self.names)}
        with atomic_path(path) as temporary:
            pl.DataFrame(frame).write_parquet(temporary, compression="zstd")

    @classmethod
    def load(cls, path: str | Path, n_items: int) -> ItemTable:
        """Read `item_table.parquet` of a catalogue of `n_items`; InputError names what is wrong."""
        check_parquet(path, most_rows=n_items * (1 + MOST_FOLDS))
        try:
            frame = pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
        if frame.columns[:2] != ["item", "fold"] or any(not kind.is_numeric() for kind in frame.dtypes):
            raise InputError(f"{path}: the columns must be item, fold, and numbers")
        names = tuple(frame.columns[2:])
        rows, extra = divmod(len(frame), n_items)
        item, fold = np.divmod(np.arange(len(frame)), max(rows, 1))
        whole = frame["item"].dtype.is_integer() and frame["fold"].dtype.is_integer()
        if extra or not rows or not whole or frame["item"].null_count() or frame["fold"].null_count():
            raise InputError(f"{path} has {len(frame)} rows; it needs as many for each of {n_items} items")
        if (frame["item"].to_numpy() != item).any() or (frame["fold"].to_numpy() != fold + WHOLE).any():
            raise InputError(f"{path}: the rows must be sorted by item and fold, from -1")
        values = frame.select(names).fill_null(float("nan")).to_numpy().astype(np.float32)
        wrong = np.argwhere(~(np.abs(values) <= 1))  # NaN is wrong, too
        if len(wrong):
            row, column = wrong[0]
            raise InputError(
                f"{path}: row {row}: {shown(names[column])} is {values[row, column]}; allowed: -1 to 1"
            )
        values = values.reshape(n_items, rows, len(names))
        return cls(names, np.ascontiguousarray(values[:, 0]), np.ascontiguousarray(values[:, 1:]))
