"""A small made-up table of shown items, shared by the tests of `edgerec import`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from edgerec_gym.logs.store import LogReader
from edgerec_gym.logs.table import import_table

MAPPING = {
    "user": "uid",
    "item": "sku",
    "time": "ts",
    "click": "clicked",
    "list": "page_id",
    "position": "rank",
}
USERS, ITEMS, DAYS, PAGE = 12, 60, 10, 5
BEGIN = 1_700_006_400  # midnight


def table(seed: int = 0) -> pl.DataFrame:
    """Each user sees two pages at noon of each day, a minute apart."""
    rng = np.random.default_rng(seed)
    shape = (DAYS, USERS, 2, PAGE)
    day, user, page, rank = (axis.ravel() for axis in np.indices(shape))
    n = len(day)
    item = np.argsort(rng.random((DAYS * USERS * 2, ITEMS)), axis=1)[:, :PAGE].ravel()
    liked = item % 3 == user % 3
    return pl.DataFrame(
        {
            "uid": [f"u{k}" for k in user],
            "sku": item + 1000,
            "ts": BEGIN + day * 86400 + 12 * 3600 + page * 60 + user,
            "page_id": [f"p{d}-{p}" for d, p in zip(day, page, strict=True)],
            "rank": rank,
            "clicked": (rng.random(n) < np.where(liked, 0.4, 0.1)).astype(np.int64),
        }
    )


def save(frame: pl.DataFrame, path: Path) -> Path:
    """Write a .parquet or .csv file."""
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)
    return path


def save_mapping(path: Path, **changes: Any) -> Path:
    """Write the mapping with changes; a field of None is left out."""
    path.write_text(json.dumps({k: v for k, v in (MAPPING | changes).items() if v is not None}))
    return path


class Place:
    """Imports tables in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "logs"

    def run(
        self,
        frame: pl.DataFrame,
        kind: str = ".parquet",
        out: str = "logs",
        parts: int = 10**6,
        **mapping: Any,
    ) -> dict[str, Any]:
        path = save(frame, self.folder / f"table{kind}")
        self.out = self.folder / out
        return import_table(
            path, save_mapping(self.folder / "mapping.json", **mapping), self.out, rows_per_part=parts
        )

    def read(self) -> pl.DataFrame:
        return pl.DataFrame(pl.from_arrow(pa.concat_tables(LogReader(self.out).batches())))
