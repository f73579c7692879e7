"""Reads a Parquet or CSV table by a column mapping, and finds the first wrong value.

Rows are counted from 0, in a CSV file after its header. The file is never held in memory: one pass checks
every value, and :meth:`SourceTable.read` reads the rows of some users.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from edgerec_gym.errors import InputError, shown
from edgerec_gym.files import check_file
from edgerec_gym.logs.table_mapping import TableMapping
from edgerec_gym.parquet import check_parquet

SECONDS = {"s": 1.0, "ms": 1e-3}
LATEST = 1e11  # seconds since 1970; larger numbers must be milliseconds
LARGEST = 1e30  # larger numbers must be mistakes
TRUE, FALSE = ("1", "1.0", "true", "t", "yes"), ("0", "0.0", "false", "f", "no")
FLAGS = ("click", "seen", "leave", "purchase")
IDS = ("user", "item", "session", "list")
TEXTS = ("card_type", "category")
NUMBERS = {  # meaning -> (lowest, highest)
    "position": (-LARGEST, LARGEST),
    "dwell_seconds": (0.0, LARGEST),
    "page_view_seconds": (0.0, LARGEST),
    "price": (0.0, LARGEST),
    "base_ctr": (0.0, 1.0),
}


class SourceTable:
    """A checked table.

    Args:
        path: a .parquet or .csv file (UTF-8, comma separated, with a header).
        mapping: what its columns mean.

    Attributes:
        rows: number of rows in the file.
        embedding_size: number of columns of the item embedding; 0 without one.
        columns: column names of :attr:`scan`: row, user, item, seconds (since 1970), click, seen, what else
            the mapping names, then e0, e1, ...
        users: users and their number of rows, sorted by user.

    Raises:
        InputError: the table is wrong; the message names the file and the column, or the first offending row,
            its value and what is allowed.
    """

    def __init__(self, path: str | Path, mapping: TableMapping) -> None:
        self.path, self.mapping = Path(path), mapping
        if not self.path.is_file():
            raise InputError(f"{path} does not exist")
        raw = self._open()
        types = self._collect_schema(raw)
        self.raw = raw.with_row_index("row number")
        self.embedding = self._embedding(list(types))
        self.embedding_size = len(self.embedding)
        self._check_columns(types)
        expressions, wrong = self._expressions(types)
        self._check_values(wrong)
        self.scan = self.raw.select(pl.col("row number").cast(pl.Int64).alias("row"), *expressions)
        self.columns = self.scan.collect_schema().names()
        self.users = self.collect(self.scan.group_by("user").agg(rows=pl.len()).sort("user"))
        self.rows = int(self.users["rows"].sum())

    def _open(self) -> pl.LazyFrame:
        check_file(self.path)
        if self.path.suffix == ".parquet":
            try:
                check_parquet(self.path, whole=False)
            except InputError as error:
                raise InputError(str(error).replace("readable Parquet file", "readable table")) from None
            return pl.scan_parquet(self.path)
        if self.path.suffix == ".csv":  # as text: types from the mapping are stricter than inferred ones
            return pl.scan_csv(self.path, infer_schema=False)
        raise InputError(f"{self.path}: unknown kind of table; allowed: .parquet, .csv")

    def _collect_schema(self, raw: pl.LazyFrame) -> dict[str, pl.DataType]:
        try:
            return dict(raw.collect_schema())
        except (pl.exceptions.PolarsError, OSError) as error:
            self._unreadable(error)

    def _unreadable(self, error: Exception) -> NoReturn:
        raise InputError(f"{self.path} is not a readable table: {str(error).splitlines()[0]}") from None

    def collect(self, frame: pl.LazyFrame) -> pl.DataFrame:
        """Run a query in batches of rows; InputError if the file turns out to be broken."""
        try:
            return frame.collect(engine="streaming")
        except (pl.exceptions.PolarsError, OSError) as error:
            self._unreadable(error)

    def fail(self, row: int, message: str) -> NoReturn:
        """Raise InputError about a row."""
        raise InputError(f"{self.path}: row {row}: {message}")

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def chunks(self, rows: int) -> list[tuple[Any, Any]]:
        """Split the sorted users into ranges (first, last) of at least `rows` rows, except the last."""
        ranges, begin, total = [], 0, 0
        for k, n in enumerate(self.users["rows"].to_list()):
            total += n
            if total >= rows or k == len(self.users) - 1:
                ranges.append((self.users["user"][begin], self.users["user"][k]))
                begin, total = k + 1, 0
        return ranges

    def read(self, ranges: list[tuple[Any, Any]]) -> Iterator[pl.DataFrame]:
        """Yield the rows of each range of users, in the order of the file."""
        for first, last in ranges:
            yield self.collect(self.scan.filter(pl.col("user").is_between(pl.lit(first), pl.lit(last)))).sort(
                "row"
            )

    def _embedding(self, names: list[str]) -> list[str]:
        prefix = self.mapping.columns.embedding_prefix
        if not prefix:
            return []
        found = sorted((int(m[1]), n) for n in names if (m := re.fullmatch(re.escape(prefix) + r"(\d+)", n)))
        if not 2 <= len(found) <= 256:
            raise InputError(
                f"{self.path}: embedding_prefix {prefix!r} matches {len(found)} columns; allowed: 2 to 256, "
                f"named {prefix}0, {prefix}1, ..."
            )
        return [name for _, name in found]

    def _check_columns(self, types: dict[str, pl.DataType]) -> None:
        for meaning, name in self.mapping.columns.columns.items():
            if name not in types:
                close = difflib.get_close_matches(name, types, n=1)
                hint = (
                    f"did you mean {close[0]!r}?" if close else f"columns are {shown(', '.join(types), 200)}"
                )
                raise InputError(f"{self.path}: no column {shown(name)} for {meaning!r}; {hint}")
            kind, text = types[name], types[name] == pl.String
            if meaning in IDS or meaning in TEXTS:
                right, allowed = (
                    kind.is_integer() or kind in (pl.Categorical, pl.Enum),
                    "text or whole numbers",
                )
            elif meaning in FLAGS:
                right, allowed = kind == pl.Boolean or kind.is_numeric(), "true or false, or 0 and 1"
            elif meaning == "time":
                right = kind in (pl.Datetime, pl.Date) or kind.is_numeric()
                allowed = "times, or seconds or milliseconds since 1970"
            else:
                right, allowed = kind.is_numeric(), "numbers"
            if not right and not text:
                raise InputError(f"{self.path}: column {name!r} must hold {allowed}, not {kind}")
        for name in self.embedding:
            if not types[name].is_numeric() and types[name] != pl.String:
                raise InputError(f"{self.path}: column {name!r} must hold numbers, not {types[name]}")

    def _expressions(self, types: dict[str, pl.DataType]) -> tuple[list[pl.Expr], dict[str, tuple[Any, str]]]:
        """Return the scan's columns and, by table column, which rows are wrong and what is allowed."""
        wrong: dict[str, tuple[Any, str]] = {}
        out: list[pl.Expr] = []
        mapped = self.mapping.columns.columns
        for meaning, name in mapped.items():
            value = pl.col(name)
            if meaning in IDS or meaning in TEXTS:
                if not types[name].is_integer():
                    value = value.cast(pl.String)
                text = value.cast(pl.String)
                bad, allowed = text.is_null() | (text.str.strip_chars() == ""), "anything but empty"
                if meaning in ("list", "session", *TEXTS):
                    value = text
                if meaning == "card_type":
                    values = list(self.mapping.card_types)
                    bad, allowed = (
                        bad | ~text.is_in(values),
                        f"{', '.join(values)} (card_types of the mapping)",
                    )
                out.append(value.alias(meaning))
            elif meaning in FLAGS:
                text = value.cast(pl.String).str.to_lowercase()
                bad, allowed = text.is_null() | ~text.is_in([*TRUE, *FALSE]), "0, 1, false, true"
                out.append(text.is_in(TRUE).alias(meaning))
            elif meaning == "time":
                seconds = self._seconds(name, types[name])
                bad, allowed = ~seconds.is_between(0, LATEST).fill_null(False), f"times from 1970 on{_UNIT}"
                out.append(seconds.alias("seconds"))
            else:
                number = value.cast(pl.Float64, strict=False)
                low, high = NUMBERS[meaning]
                bad = ~number.is_between(low, high).fill_null(False)
                allowed = {"base_ctr": "0 to 1", "position": "a number"}.get(
                    meaning, "a number of at least 0"
                )
                if meaning in ("dwell_seconds", "page_view_seconds"):
                    # may be empty where nothing was seen or nothing was opened
                    needed = self._flag("seen" if meaning == "dwell_seconds" else "click")
                    bad = bad & (needed | value.is_not_null())
                    allowed += (
                        f", or empty where {'not seen' if meaning == 'dwell_seconds' else 'not clicked'}"
                    )
                out.append(number.alias(meaning))
            wrong[name] = (bad, allowed) if name not in wrong else (wrong[name][0] | bad, wrong[name][1])
        for k, name in enumerate(self.embedding):
            number = pl.col(name).cast(pl.Float64, strict=False)
            wrong[name] = (~number.is_between(-LARGEST, LARGEST).fill_null(False), "a number")
            out.append(number.alias(f"e{k}"))
        if "seen" not in mapped:
            out.append(pl.lit(True).alias("seen"))
        return out, wrong

    def _flag(self, meaning: str) -> pl.Expr:
        name = self.mapping.columns.columns.get(meaning)
        return pl.lit(True) if name is None else pl.col(name).cast(pl.String).str.to_lowercase().is_in(TRUE)

    def _seconds(self, name: str, kind: pl.DataType) -> pl.Expr:
        unit = SECONDS[self.mapping.columns.time_unit]
        column = pl.col(name)
        if kind.is_numeric():
            return column.cast(pl.Float64) * unit
        if kind == pl.String:
            first = self.collect(self.raw.select(name).drop_nulls().head(1))[name]
            if first.cast(pl.Float64, strict=False).is_not_null().all():
                return column.cast(pl.Float64, strict=False) * unit
            column = column.str.to_datetime(strict=False, time_unit="us", time_zone="UTC")
        return column.cast(pl.Datetime("us", getattr(kind, "time_zone", None))).dt.epoch("us") / 1e6

    def _check_values(self, wrong: dict[str, tuple[Any, str]]) -> None:
        """Raise InputError about the first offending row."""
        names = list(wrong)
        firsts = [pl.col("row number").filter(wrong[n][0]).min().alias(str(k)) for k, n in enumerate(names)]
        found = self.collect(self.raw.select(pl.len().alias("rows"), *firsts))
        if not found["rows"][0]:
            raise InputError(f"{self.path} has no rows")
        rows = {n: found[str(k)][0] for k, n in enumerate(names) if found[str(k)][0] is not None}
        if rows:
            name = min(rows, key=lambda n: rows[n])
            row = rows[name]
            value = self.collect(self.raw.filter(pl.col("row number") == row).select(name))[name][0]
            shown = "empty" if value is None or value == "" else repr(value)
            self.fail(row, f"column {name!r} is {shown}; allowed: {wrong[name][1]}")
        click, seen, purchase = (self._flag(meaning) for meaning in ("click", "seen", "purchase"))
        bought = purchase & ~click if "purchase" in self.mapping.columns.columns else pl.lit(False)
        number = pl.col("row number")
        flags = self.collect(
            self.raw.select(
                clicked=click.any(),
                unseen=number.filter(click & ~seen).min(),
                unopened=number.filter(bought).min(),
            )
        )
        if flags["unseen"][0] is not None:
            self.fail(flags["unseen"][0], "clicked, but not seen; allowed: a click on what was seen")
        if flags["unopened"][0] is not None:
            self.fail(flags["unopened"][0], "bought, but not clicked; allowed: a purchase after a click")
        if not flags["clicked"][0]:
            raise InputError(
                f"{self.path}: column {self.mapping.columns.click!r}: no row is clicked; nothing to learn"
            )


_UNIT = '; numbers count seconds, or with "time_unit": "ms" milliseconds'
