"""Parquet files, checked by their footer before they are decoded: a small file can hold billions of rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from edgerec_gym import memory
from edgerec_gym.errors import InputError
from edgerec_gym.files import check_file

MOST_COLUMNS = 10_000
MOST_FOOTER = 2**26  # bytes
COPIES = 2  # while a file is decoded


def check_parquet(path: str | Path, *, whole: bool = True, most_rows: int | None = None) -> pq.FileMetaData:
    """Check the footer of a Parquet file; returns it.

    Args:
        path: the file.
        whole: the file is read at once; False for one row group at a time.
        most_rows: maximum number of rows; None for any.

    Raises:
        InputError: the file is missing, broken or no regular file, or would not fit into memory.
    """
    path = check_file(path)
    try:
        with pq.ParquetFile(
            path, thrift_string_size_limit=MOST_FOOTER, thrift_container_size_limit=MOST_FOOTER
        ) as file:
            found = file.metadata
            groups = [_decoded_bytes(found.row_group(k)) for k in range(found.num_row_groups)]
            rows = sum(found.row_group(k).num_rows for k in range(found.num_row_groups))
    except (pa.ArrowException, OSError, OverflowError, ValueError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a readable Parquet file: {message}") from None
    if found.num_columns > MOST_COLUMNS:
        raise InputError(f"{path} has {found.num_columns:,} columns; allowed: up to {MOST_COLUMNS:,}")
    if rows != found.num_rows or rows < 0:
        raise InputError(f"{path} names {found.num_rows:,} rows; its row groups hold {rows:,}")
    if most_rows is not None and rows > most_rows:
        raise InputError(f"{path} has {rows:,} rows; allowed: up to {most_rows:,}")
    memory.check(COPIES * (sum(groups) if whole else max(groups, default=0)), f"reading {path}")
    return found


def _decoded_bytes(group: pq.RowGroupMetaData) -> int:
    """Return about how many bytes a row group has once decoded: repeated values take no place in a file."""
    total = 0
    for k in range(group.num_columns):
        column = group.column(k)
        if column.num_values < 0 or column.total_uncompressed_size < 0:
            raise ValueError("a column has a negative size")
        total += max(
            column.num_values * _WIDTHS.get(column.physical_type, 16), column.total_uncompressed_size
        )
    return total


_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}
