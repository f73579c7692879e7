"""A small made-up log, shared by the tests of log folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.config import FeedConfig
from edgerec_gym.logs.store import LogReader, LogWriter

CONFIG = FeedConfig(embedding_size=3, profile_size=1)
PROVENANCE = {"source": "test", "seed": 3, "nested": {"a": [1, 2]}}
N_GOODS, N_CARDS = 8, 4


def catalog() -> Catalog:
    n = N_GOODS + N_CARDS
    vectors = np.random.default_rng(0).normal(size=(n, 3))
    return Catalog(
        (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32),
        np.full((n, 4), 0.5, np.float32),
        np.repeat([0, 1], [N_GOODS, N_CARDS]).astype(np.int32),
        np.zeros(n, np.int32),
        np.arange(n),
    )


def columns(lengths: list[int], first: int = 0, seed: int = 0) -> dict[str, Any]:
    """Sessions of the given lengths with random answers; the last slot of each is not answered."""
    rng = np.random.default_rng(seed)
    session = np.repeat(np.arange(first, first + len(lengths)), lengths)
    slot = np.concatenate([np.arange(k) for k in lengths])
    n = len(slot)
    item = rng.integers(0, N_GOODS + N_CARDS, n)
    answered = slot < np.repeat(lengths, lengths) - 1
    click = answered & (rng.random(n) < 0.3)
    return {
        "session": session,
        "user": session % 3,
        "day": session % 4,
        "hour": session % 24,
        "slot": slot,
        "time": slot * 1.5,
        "item": item,
        "card_type": (item >= N_GOODS).astype(int),
        "page": slot // 5,
        "page_age": slot % 5,
        "page_requested": np.zeros(n, bool),
        "candidates": [[0, 1, 2] if s % 5 == 0 else None for s in slot],
        "cards": [[N_GOODS] if s % 5 == 0 else None for s in slot],
        "user_features": [rng.uniform(-1, 1, 4) if s == 0 else None for s in slot],
        **{name: rng.random(n) for name in ("price_level", "base_ctr", "base_cvr", "freshness")},
        "action": np.zeros(n, int),
        "propensity": np.full(n, 0.5),
        "randomised": np.ones(n, bool),
        "request": np.zeros(n, bool),
        "request_propensity": np.full(n, 0.1),
        "answered": answered,
        "exposure_actions": [rng.random(6) if a else None for a in answered],
        "click": [bool(c) if a else None for c, a in zip(click, answered, strict=True)],
        "page_view_actions": [rng.random(11) if c else None for c in click],
        "leave": [False if a else None for a in answered],
    }


def writer(folder: Path, **changes: Any) -> LogWriter:
    arguments: dict[str, Any] = {"config": CONFIG, "catalog": catalog(), "provenance": PROVENANCE}
    return LogWriter(folder, **(arguments | {"unidentified": ("leave",)} | changes))


def read(folder: Path, **arguments: Any) -> pa.Table:
    return pa.concat_tables(LogReader(folder).batches(**arguments))


def write_log(folder: Path) -> Path:
    """Two parts: sessions 0..4 and 5..6."""
    w = writer(folder)
    w.write(columns([3, 1, 7, 5, 6]))
    w.write(columns([4, 9], first=5, seed=1))
    w.finish()
    return folder
