"""The catalogue: what the cloud knows about every item. Rows are sorted by (card type, category)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from edgerec_gym.cloud.supply import VALUES, Supply
from edgerec_gym.errors import InputError
from edgerec_gym.files import atomic_path
from edgerec_gym.parquet import check_parquet

MOST_ITEMS = 10_000_000
SCALARS = ("price_level", "base_logit", "base_cvr", "freshness")


@dataclass(frozen=True)
class Catalog:
    """Items as the cloud ships them (n items, d embedding size).

    Attributes:
        embeddings: (n, d) float32, each of length 1, or 0 if unknown.
        scalars: (n, 4) float32; price level in 0..1, base click logit in -20..20, base conversion
            score in 0..1, freshness in 0..1.
        card_type: (n,) int32; 0 = goods, k = card_types[k - 1].
        category: (n,) int32, from 0.
        names: (n,) int64, the data set's own item ids.
        columns: (n, C) float32 in -1..1, the item table (:mod:`edgerec_gym.cloud.item_table`); C may be 0.
        folds: (n, K, C) float32, the same learned without the sessions of each fold, to train on the sessions
            that the table was learned from; K = 0 otherwise.
        supply: what a logged feed had on offer; None where pages come from the catalogue alone.
    """

    embeddings: np.ndarray
    scalars: np.ndarray
    card_type: np.ndarray
    category: np.ndarray
    names: np.ndarray
    columns: np.ndarray = None  # type: ignore[assignment]
    folds: np.ndarray = None  # type: ignore[assignment]
    supply: Supply | None = None

    def __post_init__(self) -> None:
        n = len(self.embeddings)
        if self.columns is None:
            object.__setattr__(self, "columns", np.zeros((n, 0), np.float32))
        if self.folds is None:
            object.__setattr__(self, "folds", np.zeros((n, 0, self.columns.shape[1]), np.float32))
        for name in ("columns", "folds"):
            values = getattr(self, name)
            if len(values) != n or not (np.abs(values) <= 1).all():  # false for NaN
                raise InputError(f"catalogue: {name} must lie in -1..1, with a row for each of {n} items")
        for name in ("embeddings", "scalars"):
            values = getattr(self, name)
            bad = np.flatnonzero(~np.isfinite(values).reshape(n, -1).all(axis=1))
            if len(bad):
                raise InputError(f"catalogue: {name} of item row {bad[0]} is not finite")
        if n == 0 or not (self.card_type == 0).any():
            raise InputError("catalogue: no goods (card_type 0)")
        for name in ("card_type", "category"):
            if getattr(self, name).min() < 0:
                raise InputError(f"catalogue: {name} must not be negative")
        if np.any(np.abs(np.linalg.norm(self.embeddings, axis=1) - 0.5) > 0.501):
            raise InputError("catalogue: embeddings must have length 1 (or 0 where unknown)")
        for column, low, high in ((0, 0, 1), (1, -20, 20), (2, 0, 1), (3, 0, 1)):
            values = self.scalars[:, column]
            if values.min() < low or values.max() > high:
                raise InputError(f"catalogue: {SCALARS[column]} must lie in {low}..{high}")

    def __deepcopy__(self, memo: object) -> Catalog:
        """Share the items, which never change, with the copies of an environment."""
        return self

    def __len__(self) -> int:
        return len(self.embeddings)

    @classmethod
    def sorted(
        cls,
        embeddings: np.ndarray,
        scalars: np.ndarray,
        card_type: np.ndarray,
        category: np.ndarray,
        names: np.ndarray,
    ) -> tuple[Catalog, np.ndarray]:
        """Sort items by (card type, category); returns the catalogue and the order applied."""
        order = np.lexsort((names, category, card_type))
        catalog = cls(
            np.ascontiguousarray(embeddings[order], np.float32),
            np.ascontiguousarray(scalars[order], np.float32),
            card_type[order].astype(np.int32),
            category[order].astype(np.int32),
            names[order].astype(np.int64),
        )
        return catalog, order

    def with_table(self, columns: np.ndarray, folds: np.ndarray | None = None) -> Catalog:
        """Return the catalogue with another item table; InputError if it does not fit."""
        folds = np.zeros((len(self), 0, columns.shape[1]), np.float32) if folds is None else folds
        return replace(self, columns=np.ascontiguousarray(columns, np.float32), folds=folds)

    def with_supply(self, supply: Supply) -> Catalog:
        """Return the catalogue with what a log had on offer; InputError if it does not fit."""
        wanted = VALUES + self.columns.shape[1]
        if supply.values.shape[1] != wanted:
            raise InputError(f"supply: values has {supply.values.shape[1]} columns; it needs {wanted}")
        if supply.item.max() >= len(self):
            raise InputError(
                f"supply: item {supply.item.max()} is not one of the catalogue's {len(self)} items"
            )
        goods = np.logical_or.reduceat(self.card_type[supply.item] == 0, supply.first_entry[:-1])
        if not goods.all():  # kernels rely on a candidate to place
            raise InputError(f"supply: page {goods.argmin()} holds no goods; each must hold some")
        return replace(self, supply=supply)

    def columns_of(self, item: np.ndarray, session: np.ndarray) -> np.ndarray:
        """Return the item table as sessions may see it: without what they have told themselves.

        Args:
            item: (...) rows.
            session: (...) ids of the sessions, of the same shape or one that broadcasts.

        Returns:
            (..., C) float32.
        """
        n_folds = self.folds.shape[1]
        return self.folds[item, session % n_folds] if n_folds else self.columns[item]

    def save(self, path: str | Path, item_columns: Sequence[str] = ()) -> None:
        """Write `catalog.parquet` atomically; `item_columns` names the C columns."""
        columns = {f"e{k}": self.embeddings[:, k] for k in range(self.embeddings.shape[1])}
        columns |= {f"item.{name}": self.columns[:, k] for k, name in enumerate(item_columns)}
        columns |= {name: self.scalars[:, k] for k, name in enumerate(SCALARS)}
        columns |= {"card_type": self.card_type, "category": self.category, "name": self.names}
        with atomic_path(path) as temporary:
            pl.DataFrame(columns).write_parquet(temporary, compression="zstd", compression_level=9)

    @classmethod
    def load(cls, path: str | Path, embedding_size: int, item_columns: Sequence[str] = ()) -> Catalog:
        """Read and validate `catalog.parquet`; InputError names the file, column or row at fault."""
        check_parquet(path, most_rows=MOST_ITEMS)
        try:
            frame = pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
        embedding = [f"e{k}" for k in range(embedding_size)]
        table = [f"item.{name}" for name in item_columns]
        for name in (*embedding, *SCALARS, "card_type", "category", "name", *table):
            if name not in frame.columns:
                raise InputError(f"{path}: missing column {name!r}")
            if not frame[name].dtype.is_numeric():
                raise InputError(f"{path}: column {name!r} must be numeric, not {frame[name].dtype}")
            if frame[name].null_count():
                raise InputError(f"{path}: column {name!r} has empty values")
        for name, most in (("card_type", 2**31 - 1), ("category", 2**31 - 1), ("name", 2**63 - 1)):
            if not frame[name].dtype.is_integer():
                raise InputError(f"{path}: column {name!r} must hold whole numbers, not {frame[name].dtype}")
            for row in frame.select(~pl.col(name).is_between(-most, most)).to_series().arg_true()[:1]:
                raise InputError(f"{path}: row {row}: {name} is {frame[name][row]}; allowed: up to {most}")
        try:
            catalog = cls(
                frame.select(embedding).to_numpy().astype(np.float32, order="C"),
                frame.select(SCALARS).to_numpy().astype(np.float32, order="C"),
                frame["card_type"].to_numpy().astype(np.int32),
                frame["category"].to_numpy().astype(np.int32),
                frame["name"].to_numpy().astype(np.int64),
                frame.select(table).to_numpy().astype(np.float32, order="C").reshape(len(frame), len(table)),
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if np.any(
            np.diff(catalog.card_type.astype(np.int64) * (int(catalog.category.max()) + 1) + catalog.category)
            < 0
        ):
            raise InputError(f"{path}: rows must be sorted by card_type, then category")
        return catalog
