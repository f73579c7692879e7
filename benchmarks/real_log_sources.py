"""The real logs of the study (real_logs.py): each function turns its files into a log folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from edgerec_gym.documents import read_json
from edgerec_gym.errors import InputError
from edgerec_gym.files import atomic_path, make_folder, write_json
from edgerec_gym.logs.ebnerd import convert_ebnerd
from edgerec_gym.logs.table import import_table

EVERY = 4  # one user in this many of EB-NeRD exploded to rows


def short_video(data: Path, folder: Path) -> Path:
    """KuaiRand, rows with a like or a hate."""
    table = _csv(data / "logs/kuairand_like_hate/interactions.csv.gz")
    return _imported(table, _mapping(data, "kuairand27k_like_hate"), folder)


def hotel_search(data: Path, folder: Path) -> Path:
    """Expedia, with positions on screen and prices."""
    table = _csv(data / "logs/expedia_searches/searches.csv.gz", null_values="NULL")
    return _imported(table, _mapping(data, "expedia_searches"), folder)


def movies(data: Path, folder: Path) -> Path:
    """MovieLens 100k: a rating of at least 4 is a click."""
    table = _csv(data / "logs/ml-100k/ml-100k.inter", separator="\t")
    table = table.select(
        user="user_id:token",
        item="item_id:token",
        time=pl.col("timestamp:float").cast(pl.Int64),
        click=pl.col("rating:float") >= 4,
    )
    return _imported(table, _mapping(data, "recbole_ml100k"), folder)


def ebnerd_rows(data: Path, folder: Path) -> Path:
    """EB-NeRD as a table: a row for each article of an impression, every fourth user."""
    paths = [_file(data / "ebnerd_demo" / week / "behaviors.parquet") for week in ("train", "validation")]
    shown = pl.concat([pl.read_parquet(path) for path in paths], how="diagonal_relaxed")
    users = shown["user_id"].unique().sort().gather_every(EVERY)
    table = (
        shown.filter(pl.col("user_id").is_in(users.implode()))
        .explode("article_ids_inview")
        .select(
            "user_id",
            "impression_id",
            "impression_time",
            item="article_ids_inview",
            click=pl.col("article_ids_clicked").list.contains(pl.col("article_ids_inview")),
        )
    )
    return _imported(table, _mapping(data, "ebnerd_exploded"), folder)


def ebnerd(data: Path, folder: Path) -> Path:
    """EB-NeRD, the official bundle."""
    convert_ebnerd(data / "ebnerd_demo", folder / "logs")
    return folder / "logs"


def open_bandit(data: Path, folder: Path) -> Path:
    """Open Bandit: both policies and all campaigns; without users, so each exposure is one."""
    table = _csv(data / "open_bandit/exposures.csv.gz").with_row_index("user")
    table = table.with_columns(
        item=pl.format("{}-{}", "campaign", "item_id"),
        time=pl.col("timestamp").str.to_datetime(time_unit="us", time_zone="UTC"),
    )
    mapping = {"user": "user", "item": "item", "time": "time", "click": "click", "position": "position"}
    return _imported(table, mapping, folder)


SOURCES: dict[str, Callable[[Path, Path], Path]] = {
    "short-video": short_video,
    "hotel-search": hotel_search,
    "movies": movies,
    "ebnerd-rows": ebnerd_rows,
    "ebnerd": ebnerd,
    "open-bandit": open_bandit,
}


def _file(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    return path


def _csv(path: Path, **options: Any) -> pl.DataFrame:
    return pl.read_csv(_file(path), infer_schema_length=None, **options)


def _mapping(data: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = read_json(_file(data / "logs/mappings" / f"{name}.json"))
    return content


def _imported(table: pl.DataFrame, mapping: dict[str, Any], folder: Path) -> Path:
    """Import a table; the same table and mapping again are kept as they are."""
    make_folder(folder)
    path = folder / "table.parquet"
    with atomic_path(path) as temporary:
        table.write_parquet(temporary)
    write_json(folder / "mapping.json", mapping)
    import_table(path, folder / "mapping.json", folder / "logs")
    return folder / "logs"
