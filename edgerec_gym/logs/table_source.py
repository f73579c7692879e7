"""Reads a table by a column mapping, and finds the first wrong value.

Rows are counted from 0, in a text file after its header. The table is never held in memory: one pass checks
every value, one writes the rows in parts by user, and :meth:`SourceTable.read` reads these.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from edgerec_gym.errors import InputError, closest, shown
from edgerec_gym.logs.table_files import TableFiles, collect_schema, kind_of, open_table, unreadable
from edgerec_gym.logs.table_flags import FALSE, TRUE, Condition
from edgerec_gym.logs.table_lists import explode, tokens
from edgerec_gym.logs.table_mapping import (
    DURATIONS,
    FLAGS,
    IDS,
    LIST_CLICK,
    LIST_ITEM,
    LIST_PLACE,
    MOST_POOL,
    NUMBER,
    RESPONSE,
    ROW,
    TEXTS,
    UNITS,
    USER_CATEGORY,
    USER_NUMBER,
    Duration,
    SideTable,
    TableMapping,
    described,
)
from edgerec_gym.logs.table_time import check_durations, duration_questions, literal, read_time

LARGEST = 1e30  # larger numbers must be mistakes
MOST_ITEMS = 2**20  # of a list
RANGES = {  # meaning -> (lowest, highest, allowed)
    "position": (-LARGEST, LARGEST, "a number"),
    "dwell_seconds": (0.0, LARGEST, "a number of at least 0"),
    "page_view_seconds": (0.0, LARGEST, "a number of at least 0"),
    "price": (0.0, LARGEST, "a number of at least 0"),
    "base_ctr": (0.0, 1.0, "0 to 1"),
    "propensity": (5e-324, 1.0, "a probability above 0, up to 1"),
    "action": (0.0, MOST_POOL - 1.0, f"a whole number of 0 to {MOST_POOL - 1}"),
}


@dataclass(frozen=True)
class _Check:
    """What a column must fulfil: the wrong rows, what is allowed, and the value to show."""

    name: str
    wrong: pl.Expr
    allowed: str
    value: pl.Expr


class SourceTable:
    """A checked table.

    Args:
        path: a file, a folder of parts, or a glob (:mod:`~edgerec_gym.logs.table_files`).
        mapping: what its columns mean.
        scratch: an existing folder for temporary files, which the caller removes.

    Attributes:
        rows: number of rows.
        embedding_size: number of columns of the item embedding; 0 without one.
        columns: column names of :attr:`scan`: row, user, item, seconds (since 1970), click, seen, what else
            the mapping names, then e0, e1, ... Responses are `response:NAME` (float64, 0 to 1), numbers
            `number:NAME` and `user_number:NAME` (float64), `user_category:NAME`, `text` and `query` (text),
            and `history` (lists of text); all of these may be null.
        users: users and their number of rows, sorted by user.
        notes: what a reader of the log should know, in words.

    Raises:
        InputError: the table is wrong; the message names the file and the column, or the first offending row,
            its value and what is allowed.
    """

    def __init__(self, path: str | Path, mapping: TableMapping, scratch: str | Path) -> None:
        self.path, self.mapping, self.scratch = Path(path), mapping, Path(scratch)
        columns = mapping.columns
        self.files = open_table(path, columns.separator, columns.header)
        self.sides = self._side_tables()
        self.notes: list[str] = []
        names = self._names()
        self.embedding = self._embedding(names)
        self.embedding_size = len(self.embedding)
        self.flags = {
            name: Condition.of(getattr(columns, name), names) for name in FLAGS if getattr(columns, name)
        }
        self.responses = {name: Condition.of(flag, names) for name, flag in columns.responses.items()}
        self.kept = [Condition.of(flag, names) for flag in columns.rows]
        wanted = self._wanted()
        self._check_names(wanted, names)
        self.raw = self._raw({name for _, name in wanted})
        types = collect_schema(self.raw, self.path)
        self._check_types(wanted, types)
        self.levels: dict[str, pl.Expr] = {}  # columns of responses that may be ratings, as numbers
        checks, expressions = self._expressions(types)
        self._check_values(checks, types)
        self.scan = self.raw.select(*expressions)
        self.columns = self.scan.collect_schema().names()
        self.users = self.collect(self.scan.group_by("user").agg(rows=pl.len()).sort("user"))
        self.rows = int(self.users["rows"].sum())
        self.notes = [
            *self.files.notes,
            *(n for side in self.sides.values() for n in side[0].notes),
            *self.notes,
        ]
        self._parts: dict[Any, Path | None] = {}

    def collect(self, frame: pl.LazyFrame) -> pl.DataFrame:
        """Run a query in batches of rows; InputError if the file turns out to be broken."""
        try:
            return frame.collect(engine="streaming")
        except (pl.exceptions.PolarsError, OSError) as error:
            unreadable(self.path, error)

    def fail(self, row: int, message: str) -> NoReturn:
        """Raise InputError about a row of :attr:`scan`."""
        self._refuse(self.row_of(row), message)

    def row_of(self, row: int) -> int:
        """Return the row of the file that a row of :attr:`scan` comes from."""
        return row // MOST_ITEMS if self.mapping.columns.list_column is not None else row

    def _refuse(self, row: int, message: str) -> NoReturn:
        raise InputError(f"{self.path}: row {row}: {message}")

    def digest(self) -> str:
        """Return the SHA-256 of the file, or of the digests of its parts and side tables."""
        found = [self.files.digest(), *(side[0].digest() for side in self.sides.values())]
        return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()

    def chunks(self, rows: int) -> list[tuple[Any, Any]]:
        """Split the sorted users into ranges (first, last) of at least `rows` rows, except the last."""
        ranges: list[tuple[Any, Any]] = []
        chunk: list[int] = []
        begin = total = 0
        for k, n in enumerate(self.users["rows"].to_list()):
            total += n
            chunk.append(len(ranges))
            if total >= rows or k == len(self.users) - 1:
                ranges.append((self.users["user"][begin], self.users["user"][k]))
                begin, total = k + 1, 0
        self._part(ranges, pl.Series("chunk", chunk, pl.UInt32))
        return ranges

    def _part(self, ranges: list[tuple[Any, Any]], chunk: pl.Series) -> None:
        """Write the rows of each range to a file, so that reading one does not read the whole table."""
        if len(ranges) == 1:
            self._parts = {ranges[0][0]: None}
            return
        folder = self.scratch / "parts"
        of_user = self.users.select("user", chunk).lazy()
        try:
            self.scan.join(of_user, on="user", how="left").sink_parquet(
                pl.PartitionBy(folder, key="chunk", include_key=False, approximate_bytes_per_file=None),
                compression="lz4", statistics=False, mkdir=True, maintain_order=False, engine="streaming",
            )  # fmt: skip
        except (pl.exceptions.PolarsError, OSError) as error:
            unreadable(self.path, error)
        self._parts = {first: folder / f"chunk={k}" for k, (first, _) in enumerate(ranges)}

    def read(self, ranges: list[tuple[Any, Any]]) -> Iterator[pl.DataFrame]:
        """Yield the rows of each range of users that :meth:`chunks` returned, in the order of the file."""
        for first, _ in ranges:
            part = self._parts[first]
            rows = self.scan if part is None else pl.scan_parquet(sorted(part.glob("*.parquet")), glob=False)
            yield self.collect(rows).sort("row")

    # The columns, and where they are

    def _side_tables(self) -> dict[str, tuple[TableFiles, str, str]]:
        """Open the tables beside this one: by the meaning of their key, files, key column and column here."""
        columns, found = self.mapping.columns, {}
        for meaning, side in (("item", columns.items), ("user", columns.users)):
            here = getattr(columns, meaning)
            if side is None:
                beside = self.path.with_suffix(f".{meaning}")
                if kind_of(self.path, self.path) != ".inter" or not beside.is_file():
                    continue
                side = SideTable(str(beside.absolute()))
            if not isinstance(here, str):
                raise InputError(
                    f"{meaning}s.key: the {meaning} is made of several columns; a side table needs one"
                )
            files = open_table(self._beside(side.file), side.separator, side.header)
            key = side.key or here
            if key not in files.names:
                if columns.items is None and columns.users is None:
                    continue  # found by its name only
                raise InputError(
                    f"{files.path}: no column {shown(key)}; name the {meaning}'s id as 'key'; "
                    f"columns are {shown(', '.join(files.names), 200)}"
                )
            found[meaning] = (files, key, here)
        return found

    def _beside(self, name: str) -> Path:
        places = [folder / name for folder in (self.mapping.folder, self.path.parent)]
        return next((place for place in places if place.exists()), places[0])

    def _names(self) -> list[str]:
        """Return the names of all columns, also of side tables and of exploded lists."""
        names = dict.fromkeys(self.files.names)
        for files, _, _ in self.sides.values():
            names |= dict.fromkeys(files.names)
        names |= {ROW: None}
        if self.mapping.columns.list_column is not None:
            names |= dict.fromkeys((LIST_ITEM, LIST_CLICK, LIST_PLACE))
        return list(names)

    def _wanted(self) -> list[tuple[str, str]]:
        """Return the (meaning, column) pairs that the mapping names."""
        columns, pairs = self.mapping.columns, []
        for meaning in columns.columns:
            value = getattr(columns, meaning)
            if meaning in FLAGS:
                pairs.append((meaning, self.flags[meaning].column))
            else:
                pairs += [
                    (meaning, name) for name in (value if isinstance(value, tuple) else (described(value),))
                ]
        pairs += [(f"responses.{name}", flag.column) for name, flag in self.responses.items()]
        pairs += [("rows", flag.column) for flag in self.kept]
        for meaning in ("numbers", "user_numbers", "user_categories"):
            pairs += [(meaning, name) for name in getattr(columns, meaning)]
        pairs += [("text", name) for name in _texts(columns.text)]
        pairs += [
            (meaning, getattr(columns, meaning))
            for meaning in ("query", "history")
            if getattr(columns, meaning)
        ]
        if columns.list_column is not None:
            lists = columns.list_column
            pairs += [("list_column", name) for name in (lists.items, lists.clicked, lists.clicks) if name]
        pairs += [("embedding_prefix", name) for name in self.embedding]
        return pairs

    def _check_names(self, wanted: list[tuple[str, str]], names: list[str]) -> None:
        for meaning, name in wanted:
            if name not in names:
                hint = closest(name, names, "columns are", most=200)
                raise InputError(f"{self.path}: no column {shown(name)} for {meaning!r}{hint}")

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

    # The rows, before they are checked

    def _raw(self, wanted: set[str]) -> pl.LazyFrame:
        """Return the wanted columns of all rows, lists exploded, side tables joined, conditions applied."""
        columns = self.mapping.columns
        here = wanted | {key for _, _, key in self.sides.values()}
        raw = self._with_missing(self.files.scan(self.scratch / "table", here))
        raw = raw.with_row_index(ROW).with_columns(pl.col(ROW).cast(pl.Int64))
        if columns.list_column is not None:
            lists, kinds = columns.list_column, collect_schema(raw, self.path)
            whole = {lists.items, lists.clicked, lists.clicks, columns.history}
            also = [n for n in kinds if n in wanted - whole and isinstance(kinds[n], pl.List)]
            before = raw
            raw = explode(raw, lists, also, self._refuse, ROW, str(self.path))
            empty = self.collect(
                before.select((tokens(lists.items, kinds[lists.items]).list.len().fill_null(0) == 0).sum())
            ).item()
            if empty:
                self.notes.append(f"{empty} lists are empty; left out")
        known = set(collect_schema(raw, self.path))
        for meaning, (files, key, name) in self.sides.items():
            names = [n for n in files.names if n in wanted - known and n != key]
            if names:
                raw = self._joined(raw, meaning, files, key, name, names)
                known |= set(names)
        before = raw
        for condition in self.kept:
            kind = collect_schema(raw, self.path)[condition.column]
            raw = raw.filter(condition.read(kind, str(self.path)).true)
        if self.kept:
            out = self.collect(before.select(pl.len())).item() - self.collect(raw.select(pl.len())).item()
            self.notes.append(f"{out} rows do not fulfil 'rows' of the mapping; left out")
        return raw

    def _with_missing(self, raw: pl.LazyFrame) -> pl.LazyFrame:
        """Make the texts that stand for a missing value null."""
        missing = list(self.mapping.columns.missing)
        names = (
            [n for n, kind in collect_schema(raw, self.path).items() if kind == pl.String] if missing else []
        )
        none = pl.lit(None, pl.String)
        return raw.with_columns(
            pl.when(literal(n).is_in(missing)).then(none).otherwise(literal(n)).alias(n) for n in names
        )

    def _joined(
        self, raw: pl.LazyFrame, meaning: str, files: TableFiles, key: str, name: str, names: list[str]
    ) -> pl.LazyFrame:
        """Join columns of a side table."""
        side = self._with_missing(files.scan(self.scratch / f"{meaning}s", {key, *names}))
        side = side.select(_plain_id(literal(key)).alias("side key"), *(literal(n) for n in names))
        twice = self.collect(side.group_by("side key").len().filter(pl.col("len") > 1).head(1))
        if twice.height:
            raise InputError(
                f"{files.path}: {twice['len'][0]} rows have the {key} {shown(twice['side key'][0])}; "
                f"allowed: one"
            )
        raw = raw.with_columns(_plain_id(literal(name)).alias("side key"))
        return raw.join(side, on="side key", how="left").drop("side key")

    # The checks

    def _check_types(self, wanted: list[tuple[str, str]], types: dict[str, pl.DataType]) -> None:
        for meaning, name in wanted:
            kind = types[name] if name in types else pl.String()
            if kind == pl.String or meaning in ("list_column", "history", "rows"):
                continue
            if meaning in IDS or meaning in TEXTS or meaning in ("user_categories", "text", "query"):
                whole = kind.is_integer() or (isinstance(kind, pl.Decimal) and not kind.scale)
                right, allowed = whole or kind in (pl.Categorical, pl.Enum), "text or whole numbers"
                if meaning in ("user_categories", "text", "query"):
                    right = not kind.is_nested()
            elif meaning in FLAGS or meaning.startswith("responses."):
                flag = self.flags.get(meaning) or self.responses.get(meaning.removeprefix("responses."))
                right = kind == pl.Boolean or kind.is_numeric() or bool(flag and flag.operator)
                allowed = "true or false, or 0 and 1"
            elif meaning == "time":
                right = isinstance(kind, pl.Datetime | pl.Date | pl.Time) or kind.is_numeric()
                allowed = "times, or seconds or milliseconds since 1970"
            else:
                right, allowed = kind.is_numeric(), "numbers"
            if not right:
                raise InputError(f"{self.path}: column {name!r} must hold {allowed}, not {kind}")

    def _expressions(self, types: dict[str, pl.DataType]) -> tuple[list[_Check], list[pl.Expr]]:
        """Return what to check, and the columns of the scan."""
        columns = self.mapping.columns
        checks: list[_Check] = []
        row = pl.col(ROW)
        if columns.list_column is not None:  # in the order of the lists
            row = row * MOST_ITEMS + pl.col(LIST_PLACE)
        out: list[pl.Expr] = [row.alias("row")]
        for meaning, name in columns.columns.items():
            if meaning in IDS:
                value = self._id(meaning, types)
                text = value.cast(pl.String)
                checks.append(
                    _Check(name, text.is_null() | (text == ""), "anything but empty", self._shown(meaning))
                )
                out.append((text if meaning in ("list", "session") else value).alias(meaning))
            elif meaning in TEXTS:
                text, known = literal(name).cast(pl.String), list(self.mapping.card_types)
                wrong, allowed = text.is_null() | (text.str.strip_chars() == ""), "anything but empty"
                if meaning == "card_type":
                    wrong, allowed = (
                        wrong | ~text.is_in(known),
                        f"{', '.join(known)} (card_types of the mapping)",
                    )
                checks.append(_Check(name, wrong, allowed, literal(name)))
                out.append(text.alias(meaning))
            elif meaning in FLAGS:
                flag = self.flags[meaning]
                true, wrong, allowed = flag.read(types[flag.column], str(self.path))
                checks.append(_Check(flag.column, wrong, allowed, literal(flag.column)))
                out.append(true.alias(meaning))
            elif meaning == "time":
                time = read_time(self.raw, _texts(columns.time), columns, str(self.path))
                checks.append(_Check(name, time.wrong, time.allowed, self._shown("time")))
                out.append(time.seconds.alias("seconds"))
                self.notes += [time.note] if time.note else []
            else:
                check, value = self._number(meaning, name, types)
                checks.append(check)
                out.append(value.alias(meaning))
        for k, name in enumerate(self.embedding):
            number = literal(name).cast(pl.Float64, strict=False)
            wrong = ~number.is_between(-LARGEST, LARGEST).fill_null(False)
            checks.append(_Check(name, wrong, "a number", literal(name)))
            out.append(number.alias(f"e{k}"))
        if not columns.seen:
            out.append(pl.lit(True).alias("seen"))
        return self._optional(types, checks, out)

    def _optional(
        self, types: dict[str, pl.DataType], checks: list[_Check], out: list[pl.Expr]
    ) -> tuple[list[_Check], list[pl.Expr]]:
        """Add the columns that may be empty."""
        columns = self.mapping.columns
        for name, flag in self.responses.items():
            kind = types[flag.column]
            value = literal(flag.column)
            if flag.operator or kind == pl.Boolean:
                number = flag.read(kind, str(self.path)).true.cast(pl.Float64)
            else:
                number = value.cast(pl.Float64, strict=False)
                if kind == pl.String:
                    text = value.str.to_lowercase()
                    number = (
                        pl.when(text.is_in(TRUE))
                        .then(1.0)
                        .when(text.is_in(FALSE))
                        .then(0.0)
                        .otherwise(number)
                    )
                wrong = value.is_not_null() & ~number.is_between(0, 1).fill_null(False)
                allowed = 'empty, 0 to 1, false, true (or map a comparison, such as "rating >= 4")'
                checks.append(_Check(flag.column, wrong, allowed, value))
                self.levels[flag.column] = number
            out.append(number.alias(RESPONSE + name))
        for meaning, prefix in (("numbers", NUMBER), ("user_numbers", USER_NUMBER)):
            for name in getattr(columns, meaning):
                value, number = literal(name), literal(name).cast(pl.Float64, strict=False)
                wrong = value.is_not_null() & ~(
                    number.is_between(-LARGEST, LARGEST) | number.is_nan()
                ).fill_null(False)
                checks.append(
                    _Check(name, wrong, 'empty or a number ("missing" names texts that mean empty)', value)
                )
                out.append(number.fill_nan(None).alias(prefix + name))
        out += [literal(n).cast(pl.String).alias(USER_CATEGORY + n) for n in columns.user_categories]
        if columns.text:
            parts = [literal(n).cast(pl.String) for n in _texts(columns.text)]
            out.append(pl.concat_str(parts, separator=" ", ignore_nulls=True).alias("text"))
        if columns.query:
            out.append(literal(columns.query).cast(pl.String).alias("query"))
        if columns.history:
            out.append(tokens(columns.history, types[columns.history]).alias("history"))
        return checks, out

    def _shown(self, meaning: str) -> pl.Expr:
        names = _texts(getattr(self.mapping.columns, meaning))
        if len(names) == 1:
            return literal(names[0])
        return pl.concat_list([literal(n).cast(pl.String) for n in names])

    def _id(self, meaning: str, types: dict[str, pl.DataType]) -> pl.Expr:
        """Return an id: text, or whole numbers as they are; the same id has the same spelling."""
        names = _texts(getattr(self.mapping.columns, meaning))
        if len(names) == 1 and types[names[0]].is_integer():
            return literal(names[0])
        parts = [self._spelled(name, types[name]) for name in names]
        return parts[0] if len(parts) == 1 else pl.concat_str(parts, separator="|")

    def _spelled(self, name: str, kind: pl.DataType) -> pl.Expr:
        text = literal(name).cast(pl.String)
        if kind != pl.String:
            return text
        bare = text.str.strip_chars()
        found = self.collect(
            self.raw.select(
                blank=(text != bare).sum(), whole=(bare != "").sum(), zero=bare.str.ends_with(".0").sum()
            )
        )
        if found["blank"][0] and found["blank"][0] != found["whole"][0]:
            self.notes.append(f"column {name!r}: {found['blank'][0]} ids have blanks around them; left out")
        if found["zero"][0]:  # 12.0 beside 12: one column of whole numbers, written as two types
            numbers = self.collect(self.raw.select(bare.str.contains(r"^-?\d+(\.0)?$").all())).item()
            if numbers:
                self.notes.append(f"column {name!r}: {found['zero'][0]} ids end in .0; read as whole numbers")
                return bare.str.strip_suffix(".0")
        return bare

    def _number(self, meaning: str, name: str, types: dict[str, pl.DataType]) -> tuple[_Check, pl.Expr]:
        value = literal(name)
        number = value.cast(pl.Float64, strict=False)
        low, high, allowed = RANGES[meaning]
        wrong = ~number.is_between(low, high).fill_null(False)
        if meaning == "action":
            wrong = wrong | (number != number.round())
        if meaning in DURATIONS:
            needed = self._true("seen" if meaning == "dwell_seconds" else "click", types)
            # may be empty where nothing was seen or nothing was opened
            wrong = wrong & (needed | value.is_not_null())
            allowed += f", or empty where {'not seen' if meaning == 'dwell_seconds' else 'not clicked'}"
            given = getattr(self.mapping.columns, meaning)
            number = number * UNITS[given.unit if isinstance(given, Duration) else "s"]
        if meaning == "action":
            number = number.cast(pl.Int64, strict=False)
        return _Check(name, wrong, allowed, value), number

    def _true(self, meaning: str, types: dict[str, pl.DataType]) -> pl.Expr:
        flag = self.flags.get(meaning)
        if flag is None:
            return pl.lit(True)
        return flag.read(types[flag.column], str(self.path)).true.fill_null(False)

    def _check_values(self, checks: list[_Check], types: dict[str, pl.DataType]) -> None:
        """Raise InputError about the first offending row."""
        number = pl.col(ROW)
        firsts = [
            number.filter(check.wrong.fill_null(True)).min().alias(str(k)) for k, check in enumerate(checks)
        ]
        click, seen, purchase = (self._true(meaning, types) for meaning in ("click", "seen", "purchase"))
        bought = purchase & ~click if self.mapping.columns.purchase else pl.lit(False)
        levels = {
            f"{name}:{k}": question
            for k, level in enumerate(self.levels.values())
            for name, question in (
                ("between", ((level > 0) & (level < 1)).any()),
                ("unrated", number.filter(level.is_null() & seen).min()),
            )
        }
        found = self.collect(
            self.raw.select(
                pl.len().alias("rows"), *firsts, *duration_questions(self.mapping.columns),
                clicked=click.any(), unseen=number.filter(click & ~seen).min(),
                unopened=number.filter(bought).len(), **levels,
            )
        ).to_dicts()[0]  # fmt: skip
        if not found["rows"]:
            raise InputError(
                f"{self.path} has no rows" + (" that fulfil 'rows' of the mapping" if self.kept else "")
            )
        rows = [(found[str(k)], check) for k, check in enumerate(checks) if found[str(k)] is not None]
        if rows:
            row, check = min(rows, key=lambda pair: pair[0])
            first = self.collect(
                self.raw.filter((number == row) & check.wrong.fill_null(True)).select(check.value)
            )
            value = first.to_series()[0]
            value = value.to_list() if isinstance(value, pl.Series) else value
            text = "empty" if value is None or value == "" else shown(value)
            self._refuse(row, f"column {check.name!r} is {text}; allowed: {check.allowed}")
        check_durations(found, self.mapping.columns, str(self.path))
        if found["unseen"] is not None:
            self._refuse(found["unseen"], "clicked, but not seen; allowed: a click on what was seen")
        for k, name in enumerate(self.levels):
            if found[f"between:{k}"] and (row := found[f"unrated:{k}"]) is not None:
                self._refuse(
                    row,
                    f"column {name!r} is empty, but holds ratings between 0 and 1; no rating is not a "
                    f'rating of 0; allowed: a rating in every seen row, or a comparison such as "{name} >= '
                    '0.8", which an empty value does not fulfil',
                )
        if found["unopened"]:
            self.notes.append(f"{found['unopened']} purchases are in rows without a click; kept")
        if not found["clicked"]:
            raise InputError(
                f"{self.path}: column {described(self.mapping.columns.click)!r}: no row is clicked; "
                f"nothing to learn"
            )


def _plain_id(value: pl.Expr) -> pl.Expr:
    """Return an id as text, in one spelling."""
    return value.cast(pl.String).str.strip_chars().str.strip_suffix(".0")


def _texts(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (value,) if value else ()
