"""A small made-up table of shown items, shared by the tests of `edgerec import`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

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
