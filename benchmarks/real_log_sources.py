"""The real logs of the study (real_logs.py): each function turns its files into a log folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from edgerec_gym.errors import InputError
from edgerec_gym.files import atomic_path, make_folder
from edgerec_gym.logs.ebnerd import convert_ebnerd
from edgerec_gym.logs.table import import_table

EVERY = 4  # one user in this many of EB-NeRD as a table
MAPPINGS = Path(__file__).parent / "mappings"


def short_video(data: Path, folder: Path) -> Path:
    """KuaiRand, rows with a like or a hate."""
    return _imported(data / "logs/kuairand_like_hate/interactions.csv.gz", "short_video", folder)


def hotel_search(data: Path, folder: Path) -> Path:
    """Expedia, with positions on screen and prices."""
    return _imported(data / "logs/expedia_searches/searches.csv.gz", "hotel_search", folder)


def movies(data: Path, folder: Path) -> Path:
    """MovieLens 100k: a rating of at least 4 is a click."""
    return _imported(data / "logs/ml-100k/ml-100k.inter", "movies", folder)


def ebnerd_lists(data: Path, folder: Path) -> Path:
    """EB-NeRD as a table with one row per impression, every fourth user, without the bundle's history."""
    paths = [_file(data / "ebnerd_demo" / week / "behaviors.parquet") for week in ("train", "validation")]
    shown = pl.concat([pl.read_parquet(path) for path in paths], how="diagonal_relaxed")
    users = shown["user_id"].unique().sort().gather_every(EVERY)
    make_folder(folder)
    table = folder / "table.parquet"
    with atomic_path(table) as temporary:
        shown.filter(pl.col("user_id").is_in(users.implode())).write_parquet(temporary)
    return _imported(table, "ebnerd_lists", folder)


def ebnerd(data: Path, folder: Path) -> Path:
    """EB-NeRD, the official bundle."""
    convert_ebnerd(data / "ebnerd_demo", folder / "logs")
    return folder / "logs"


def open_bandit(data: Path, folder: Path) -> Path:
    """Open Bandit: both policies and all campaigns; without users, so each exposure is one."""
    return _imported(data / "open_bandit/exposures.csv.gz", "open_bandit", folder)


SOURCES: dict[str, Callable[[Path, Path], Path]] = {
    "short-video": short_video,
    "hotel-search": hotel_search,
    "movies": movies,
    "ebnerd-lists": ebnerd_lists,
    "ebnerd": ebnerd,
    "open-bandit": open_bandit,
}


def _file(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    return path


def _imported(table: Path, mapping: str, folder: Path) -> Path:
    """Import a table with a mapping of the folder mappings/; what is finished is kept as it is."""
    import_table(_file(table), MAPPINGS / f"{mapping}.json", folder / "logs")
    return folder / "logs"
