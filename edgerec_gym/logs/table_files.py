"""Finds and opens the files of a table: Parquet, text or JSON lines, one file, a folder of parts or a glob.

Parquet is scanned as it is. Text and JSON lines (also compressed) are first converted, block by block, to
Parquet files of text columns (:mod:`~edgerec_gym.logs.table_text`), since a table is read several times.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import polars as pl

from edgerec_gym.errors import InputError, shown
from edgerec_gym.files import check_file
from edgerec_gym.logs.table_text import TextFile, convert
from edgerec_gym.parquet import check_parquet

PARQUET = (".parquet", ".pq")
LINES = (".jsonl", ".ndjson")
ATOMIC = (".inter", ".user", ".item")  # RecBole: tabs, and headers such as user_id:token
TEXT = (".csv", ".tsv", ".txt", ".dat", ".data", *ATOMIC)
COMPRESSED = (".gz", ".zst")
KINDS = (
    ".parquet, .csv, .tsv, .jsonl, RecBole's .inter, text in any of these compressed as .gz or .zst, a "
    "folder of "
    "such parts; or any text file whose 'separator' the mapping names"
)


@dataclass
class TableFiles:
    """The files of one table.

    Attributes:
        path: as the user named it.
        files: the files, in the order of their names.
        names: the table's columns.
        separator: between the values of a text file; "" for other kinds.
        header: names of the columns of text files without a header line; empty = they have one.
        notes: what a reader of the table should know.
    """

    path: Path
    files: list[Path]
    names: list[str]
    separator: str = ""
    header: tuple[str, ...] = ()
    text: bool = False
    notes: list[str] = field(default_factory=list)

    def scan(self, scratch: Path, names: Collection[str] | None = None) -> pl.LazyFrame:
        """Return the table as a lazy frame.

        Args:
            scratch: folder for the converted text; it must outlive the frame.
            names: the columns to convert; None for all. Parquet files keep all of theirs.

        Raises:
            InputError: the table is not readable; names the first wrong row where there is one.
        """
        if not self.text:
            return pl.scan_parquet(self.files, glob=False, hive_partitioning=_is_hive(self.files))
        kept = [name for name in self.names if names is None or name in names]
        kept = kept or self.names[:1]  # rows are counted even if nothing else is needed
        parts, notes = convert(self._text_files(), scratch, kept)
        self.notes += notes
        return pl.scan_parquet(parts, glob=False)

    def sample(self, rows: int) -> pl.DataFrame:
        """Return about the first `rows` rows, with all columns; text stays text."""
        if not self.text:
            return self.scan(Path()).head(rows).collect()
        frames, n = [], 0
        for file in self._text_files():
            for frame in file.frames(self.names):
                frames.append(frame)
                if (n := n + frame.height) >= rows:
                    return pl.concat(frames).head(rows)
        return pl.concat(frames) if frames else pl.DataFrame(schema=dict.fromkeys(self.names, pl.String))

    def _text_files(self) -> list[TextFile]:
        return [TextFile(path, self.names, self.separator, bool(self.header)) for path in self.files]

    def digest(self) -> str:
        """Return the SHA-256 of the file, or of the digests of several."""
        found = []
        for path in self.files:
            with path.open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256"))
        if len(found) == 1:
            return found[0].hexdigest()
        return hashlib.sha256(b"".join(one.digest() for one in found)).hexdigest()


def open_table(path: str | Path, separator: str = "", header: Sequence[str] = ()) -> TableFiles:
    """Find the files of a table and read the names of its columns.

    Args:
        path: a file, a folder of parts (files that begin with _ or . are no parts) or a glob. A file of
            exactly this name comes before the glob.
        separator: between the values of a text file; "" = found in its first line.
        header: names of the columns of a text file without a header line.

    Raises:
        InputError: there is no such file, or it is no table that can be read.
    """
    path = Path(path)
    files = find_files(path)
    kinds = {kind_of(file, path): file for file in files}
    if "" in kinds and (separator or header):
        kinds = {kind or ".txt": file for kind, file in kinds.items()}
    if "" in kinds:
        raise InputError(f"{kinds['']}: unknown kind of table; allowed: {KINDS}")
    if len({_reader(kind) for kind in kinds}) > 1:
        raise InputError(f"{path} holds files of several kinds: {', '.join(sorted(kinds))}; allowed: one")
    kind = next(iter(kinds))
    if kind in PARQUET:
        for file in files:
            try:
                check_parquet(file, whole=False)
            except InputError as error:
                raise InputError(str(error).replace("readable Parquet file", "readable table")) from None
        raw = pl.scan_parquet(files, glob=False, hive_partitioning=_is_hive(files))
        return TableFiles(path, files, list(collect_schema(raw, path)))
    for file in files:
        check_file(file)
    if kind in LINES:
        names: dict[str, None] = {}
        for file in files[:8]:
            names |= dict.fromkeys(TextFile(file, [], "", False).keys())
        return TableFiles(path, files, list(names), text=True)
    found = [
        TextFile.open(file, separator or ("\t" if kind == ".tsv" else ""), tuple(header)) for file in files
    ]
    for other in found[1:]:
        if other.names != found[0].names:
            raise InputError(
                f"{other.path} has other columns than {found[0].path}: {shown(', '.join(other.names), 200)}"
            )
    return TableFiles(path, files, found[0].names, found[0].separator, tuple(header), text=True)


def find_files(path: Path) -> list[Path]:
    """Return the files that a path, a folder or a glob stands for; InputError if there is none."""
    if path.is_dir():
        parts = [p for p in path.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(path))]
        if not parts:
            raise InputError(f"{path} is a folder without files; allowed: a table, or a folder of its parts")
        return sorted(parts)
    if not path.exists() and glob.has_magic(str(path)):
        parts = [p for p in map(Path, sorted(glob.glob(str(path), recursive=True))) if not p.is_dir()]
        if not parts:
            raise InputError(f"no file matches {path}")
        return parts
    return [check_file(path)]


def kind_of(file: Path, table: Path) -> str:
    """Return the suffix that tells a file's kind, without that of its compression; "" if it is not known."""
    for path in (file, table):  # parts of a folder may have no suffix of their own
        suffixes = [suffix.lower() for suffix in path.suffixes]
        if suffixes and suffixes[-1] in COMPRESSED:
            suffixes.pop()
        if suffixes and suffixes[-1] in (*PARQUET, *LINES, *TEXT):
            return suffixes[-1]
    return ""


def collect_schema(raw: pl.LazyFrame, path: Path) -> dict[str, pl.DataType]:
    """Return the columns and types of a lazy frame; InputError if its files turn out to be broken."""
    try:
        return dict(raw.collect_schema())
    except (pl.exceptions.PolarsError, OSError) as error:
        unreadable(path, error)


def unreadable(path: Path, error: Exception) -> NoReturn:
    """Raise InputError about a file that a library cannot read."""
    raise InputError(f"{path} is not a readable table: {str(error).splitlines()[0]}") from None


def _reader(kind: str) -> str:
    return "parquet" if kind in PARQUET else "lines" if kind in LINES else "text"


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(("_", ".")) for part in path.parts)


def _is_hive(files: list[Path]) -> bool:
    return any("=" in part for part in files[0].parent.parts[-3:])
