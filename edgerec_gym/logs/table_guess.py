"""Proposes a mapping for a table by the names, types and values of its columns, and tries it on a sample.

What fails the checks is repaired (a unit, clicks in rows of their own) or left out, and said. What no check
can tell, such as which of two columns is the click, is said too.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from edgerec_gym.errors import InputError
from edgerec_gym.logs.table_files import TableFiles, find_files, open_table
from edgerec_gym.logs.table_mapping import REQUIRED, ROW, mapping_from
from edgerec_gym.logs.table_names import NAMES
from edgerec_gym.logs.table_proposal import Proposal, key_of, looks_like_time
from edgerec_gym.logs.table_source import SourceTable
from edgerec_gym.logs.table_survey import take_survey
from edgerec_gym.logs.table_text import first_values

SAMPLE = 100_000  # rows
TRIES = 30
SHOWN_ROWS = 10


@dataclass
class Guess:
    """A proposed mapping.

    Attributes:
        content: of the mapping file.
        doubts: what could not be checked, or was left out, in words.
        rows: ten rows as understood.
    """

    content: dict[str, Any]
    doubts: list[str] = field(default_factory=list)
    rows: pl.DataFrame | None = None


def guess_mapping(path: str | Path) -> Guess:
    """Propose a mapping for a table.

    Args:
        path: a file, a folder of parts or a glob.

    Returns:
        The mapping, doubts, and ten rows as understood.

    Raises:
        InputError: the file is no table, or no column looks like one that is needed.
    """
    files, header = _open(path)
    sample = _shrunk(files.sample(SAMPLE))
    guess = Guess(*Proposal(files, sample, header).propose())
    with TemporaryDirectory() as folder:
        # Side tables are looked for beside the table, so that the sample must say where they are.
        part = Path(folder) / f"sample{'.inter' if files.path.suffix == '.inter' else ''}.parquet"
        sample.write_parquet(part)
        for number in range(TRIES):
            try:
                guess.rows = _understood(guess.content, part, Path(folder) / str(number), files.path)
                break
            except InputError as error:
                repair(guess, error)
    return guess


def repair(guess: Guess, error: InputError) -> None:
    """Change a mapping that fails a check, and say so; raises the error if there is no way.

    Args:
        guess: it is changed in place.
        error: of the import with this mapping.
    """
    text, content = str(error), guess.content
    said = re.sub(r"^(\S*?(/|\\))?\S+?: ", "", text)
    if "clicks seem to be rows of their own" in text and not content.get("join_clicks"):
        content["join_clicks"] = True
        guess.doubts.append(
            f"clicks are taken as rows of their own, and joined to what was shown: {said[:120]}"
        )
        return
    if found := re.search(r"leave it out with \"rows\": \[\"(.*)\"\]", text):
        content["rows"] = [*content.get("rows", []), found[1]]
        guess.doubts.append(f"rows are left out: {said}")
        return
    for name in ("dwell_seconds", "page_view_seconds"):
        if f'"{name}": {{' in text and isinstance(content.get(name), str):
            long = "above" in text
            content[name] = {"column": content[name], "unit": "ms" if long else "s"}
            guess.doubts.append(
                f"{name} is taken to count {'milliseconds' if long else 'seconds'}: {said[:120]}"
            )
            return
    if "began more than" in text and "list" in content and content["list"] != content["time"]:
        content["list"] = list(dict.fromkeys([*_all(content["list"]), *_all(content["time"])]))
        guess.doubts.append(f"ids of lists are used again, so that the time is part of them: {said[:120]}")
        return
    if "is the same place as" in text:
        for name in ("position", "session"):
            if name in content and ("list" in content or name == "session"):
                del content[name]
                guess.doubts.append(f"{name} is left out: {said[:160]}")
                return
        if content.get("list") != ROW and "list_column" not in content:
            content.pop("position", None)
            content["list"] = ROW
            guess.doubts.append(f"list: every row counts as a page of its own: {said[:160]}")
            return
    named = re.search(r"(?:no )?column (['\"])(.+?)\1", text)
    if named:
        for name in [n for n in content if n not in (*REQUIRED, "list_column", "missing", "rows")]:
            value = content[name]
            if value == named[2] or (isinstance(value, dict) and value.get("column") == named[2]):
                del content[name]
            elif isinstance(value, list) and named[2] in value and name != "list":
                content[name] = [v for v in value if v != named[2]]
            elif name == "responses" and named[2] in [_column(v) for v in value.values()]:
                content[name] = {k: v for k, v in value.items() if _column(v) != named[2]}
            else:
                continue
            guess.doubts.append(f"{name}: column {named[2]!r} is left out: {said[:160]}")
            if not content.get(name, True):
                del content[name]
            return
    raise error


def _understood(content: dict[str, Any], table: Path, scratch: Path, original: Path) -> pl.DataFrame:
    """Try a mapping on a sample; returns ten rows as understood."""
    scratch.mkdir()
    plain = {k: v for k, v in content.items() if k not in ("header", "separator")}
    mapping = mapping_from(plain, original)
    try:
        source = SourceTable(table, mapping, scratch)
        take_survey(source, source.chunks(10**9), None)
    except InputError as error:
        raise InputError(str(error).replace(str(table), str(original))) from None
    rows = source.collect(source.scan.head(SHOWN_ROWS).sort("row"))
    rows = rows.with_columns(pl.col("row").map_elements(source.row_of, pl.Int64))
    return rows.with_columns(
        pl.from_epoch((pl.col("seconds") * 1e6).cast(pl.Int64), "us").alias("time (UTC)")
    ).drop("seconds")


def _open(path: str | Path) -> tuple[TableFiles, list[str]]:
    """Open a table; if its first line is a row and no header, name the columns."""
    try:
        files = open_table(path)
    except InputError as error:
        if "two columns are named" not in str(error):
            raise
        names, separator = first_values(find_files(Path(path))[0])  # a row may hold a value twice
        if not _is_row(names):
            raise
    else:
        names, separator = files.names, files.separator
        if not files.text or not separator or not _is_row(names):
            return files, []
    header = [f"column {k + 1}" for k in range(len(names))]
    return open_table(path, separator, header), header


def _is_row(values: list[str]) -> bool:
    """Whether a first line holds values, and no names of columns."""
    if any(re.fullmatch(p, key_of(n)) for n in values for p in NAMES["user"]):
        return False
    plain = [n for n in values if re.fullmatch(r"[+-]?\d+(\.\d+)?|", n) or re.search(r"\S-[01]( |$)", n)]
    return any(map(looks_like_time, values)) or len(plain) * 2 >= len(values)


def _shrunk(sample: pl.DataFrame) -> pl.DataFrame:
    """Leave out columns that hold nothing."""
    return sample.select(name for name in sample.columns if sample[name].null_count() < sample.height)


def _all(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _column(flag: Any) -> str:
    return str(flag["column"]) if isinstance(flag, dict) else str(flag)


def as_json(content: dict[str, Any]) -> str:
    """Return a mapping as the text of its file, one field a line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}"
