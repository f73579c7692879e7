"""A small made-up EB-NeRD bundle, shared by the tests of its adapter."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from edgerec_gym.logs.ebnerd import convert_ebnerd
from edgerec_gym.logs.store import LogReader

BEGIN = datetime(2023, 5, 18, 7)
WEEK = timedelta(days=7)
N_USERS, N_ARTICLES = 30, 60
Frames = dict[str, pl.DataFrame]
MadeUp = tuple[Frames, Path, pl.DataFrame, dict[str, int]]  # bundle, folder, rows, counts


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
        history: dict[str, Any] = {
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
