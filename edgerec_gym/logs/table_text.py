"""Reads text tables in blocks of bytes, and counts their rows independently of any quotation marks.

One stray quotation mark makes a CSV reader swallow the rows up to the next one. So every line is looked at by
itself: it must have as many values as the header, either with quotes as the CSV convention has them
(RFC 4180), or with quotes as plain characters, or it must begin a quoted value that a later line ends.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from edgerec_gym.errors import InputError, shown
from edgerec_gym.files import check_file

BLOCK = 2**24  # bytes
LONGEST_LINE = 2**26  # bytes
MOST_LINES = 50  # of one row whose quoted value spans lines
FIRST_LINES = 1000  # of a JSON file, which name its columns
TYPED = re.compile(r"^(.+):(?:token|token_seq|float|float_seq)$")  # RecBole's header
SEPARATORS = ("\t", ",", ";", "|")
UNIT = "\x1f"  # stands in for a separator of several characters
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}


def convert(files: list[TextFile], folder: Path, names: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Write some columns of text files as Parquet files, one per block, as text.

    Returns:
        The Parquet files in order, and notes on what was read other than expected.

    Raises:
        InputError: the text is not readable; names the row and the line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    notes: list[str] = []
    rows = 0
    for file in files:
        file.first_row = rows
        for frame in file.frames(names):
            path = folder / f"{len(parts):06}.parquet"
            frame.write_parquet(path, compression="lz4", statistics=False)
            parts.append(path)
            rows += frame.height
        for text, count in file.counts.items():
            if count:
                notes.append(f"{file.path.name}: {count} {text}")
    if not rows:
        raise InputError(f"{files[0].path} has no rows")
    return parts, notes


def first_values(path: Path, separator: str = "") -> tuple[list[str], str]:
    """Return the values of the first line and what separates them ("" = to be found out).

    Raises:
        InputError: the first line is no text, or nothing separates values.
    """
    block = next(blocks(path), b"")
    first = next((line for line in block.split(b"\n") if line.strip()), b"")
    try:
        line = first.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a readable table: its first line is not UTF-8") from None
    if not line:
        raise InputError(f"{path} is not a readable table: it is empty")
    if "\0" in line:
        raise InputError(f"{path} is not a readable table: its first line is not text")
    separator = separator or sniff(line)
    return split(line, separator), separator


@dataclass
class TextFile:
    """One text file, or one file of JSON lines (no separator).

    Attributes:
        path: the file, which may be compressed.
        names: its columns.
        separator: between values; "" for JSON lines.
        headerless: whether the first line is a row.
        first_row: rows in the files before this one, for messages.
        counts: how many lines were read other than expected, by what was done with them.
    """

    path: Path
    names: list[str]
    separator: str
    headerless: bool
    first_row: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, separator: str, header: tuple[str, ...]) -> TextFile:
        """Read the first line; InputError if the columns cannot be told from it."""
        names, separator = first_values(path, separator)
        if header:
            if len(names) != len(header):
                raise InputError(
                    f"{path}: row 0 has {len(names)} values; 'header' of the mapping names {len(header)} "
                    f"columns"
                )
            names = list(header)
        elif all(map(TYPED.match, names)):
            names = [TYPED.sub(r"\1", name) for name in names]
        twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
        if twice is not None:
            raise InputError(
                f"{path}: two columns are named {shown(twice)}; allowed: different names (if the file has no "
                f"header, 'header' of the mapping names its {len(names)} columns)"
            )
        return cls(path, names, separator, bool(header))

    def keys(self) -> list[str]:
        """Return the keys of the first JSON lines."""
        names: dict[str, None] = {}
        for k, line in enumerate(next(blocks(self.path), b"").split(b"\n")[:FIRST_LINES]):
            if line.strip():
                names |= dict.fromkeys(self._object(line, k))
        if not names:
            raise InputError(f"{self.path} is not a readable table: it is empty")
        return list(names)

    def frames(self, names: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Yield some columns block by block, as text; InputError names the first row that is wrong."""
        read = self._lines if self.separator else self._json_lines
        row, line, rest, header = self.first_row, 1, b"", bool(self.separator) and not self.headerless
        for block in blocks(self.path):
            if header:  # the first line with anything on it
                at = len(block) - len(block.lstrip(b"\r\n"))
                end = block.index(b"\n", at) + 1
                line += block.count(b"\n", 0, end)
                block, header = block[end:], False
            data = rest + block.replace(b"\r\n", b"\n")
            frame, rest = read(data, names, row, line, False)
            line += data.count(b"\n", 0, len(data) - len(rest))
            row += frame.height
            if frame.height:
                yield frame
        if rest and (frame := read(rest, names, row, line, True)[0]).height:
            yield frame

    def _lines(
        self, data: bytes, names: Sequence[str], row: int, line: int, last: bool
    ) -> tuple[pl.DataFrame, bytes]:
        """Parse whole lines; returns the rows, and the bytes of a row that is not complete."""
        mark = self.separator
        if len(mark) > 1:
            data, mark = data.replace(mark.encode(), UNIT.encode()), UNIT
        wanted = len(self.names) - 1
        text = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(text == 10)
        starts = np.concatenate([ends[:0], [0], ends[:-1] + 1]) if len(ends) else ends
        found = _per_line(text == ord(mark), ends)
        empty = ends - starts == found  # blank, or separators only
        quoted = _per_line(text == ord('"'), ends) > 0 if b'"' in data else np.zeros(len(ends), np.bool_)
        plain, strict = np.flatnonzero(~quoted & ~empty), np.zeros(0, np.int64)
        joined: dict[int, bytes] = {}
        stop = len(ends)
        if quoted.any():
            strict, odd = _well_formed(data, starts, ends, np.flatnonzero(quoted), mark, wanted)
            joined, last_lines, literal, stop = self._joined(data, starts, ends, odd, found, mark, line, last)
            used = [j for k, until in last_lines.items() for j in range(k, until + 1)]
            strict = np.union1d(np.setdiff1d(strict, used), [*joined]).astype(np.int64)
            plain = np.setdiff1d(np.union1d(plain, literal), used).astype(np.int64)
            strict, plain = strict[strict < stop], plain[plain < stop]
            self._count("lines have a quotation mark that quotes nothing; read as it stands", len(literal))
        wrong = plain[found[plain] != wanted]
        if len(wrong):
            self._ragged(int(wrong[0]), found, empty, row, line)
        commas = int((empty & (ends > starts))[:stop].sum()) if wanted else 0
        self._count("lines hold nothing but separators; left out", commas)
        frame = self._parsed(_taken(data, starts, ends, plain), len(plain), names, mark, None)
        if len(strict):
            pieces = [joined.get(k) or data[starts[k] : ends[k] + 1] for k in strict.tolist()]
            other = self._parsed(b"".join(pieces), len(pieces), names, mark, '"')
            order = np.argsort(np.concatenate([plain, strict]), kind="stable")
            frame = pl.concat([frame, other])[order]
        rest = data[starts[stop] :] if stop < len(ends) else b""
        return frame, rest.replace(UNIT.encode(), self.separator.encode()) if mark == UNIT else rest

    def _joined(
        self,
        data: bytes,
        starts: np.ndarray,
        ends: np.ndarray,
        odd: np.ndarray,
        found: np.ndarray,
        mark: str,
        line: int,
        last: bool,
    ) -> tuple[dict[int, bytes], dict[int, int], list[int], int]:
        """Find what lines with quotes mean that are no whole row by themselves.

        Returns:
            The text of each row whose quoted value spans lines, by its first line; the last line of each; the
            lines where quotation marks are plain characters; and the line to stop at, which needs more text.
        """
        joined: dict[int, bytes] = {}
        until: dict[int, int] = {}
        literal: list[int] = []
        bar, end = re.escape(mark).encode(), -1
        value = rb'(?:[^"%b\n]*|"(?:[^"]|"")*")' % bar
        whole = re.compile(rb"%b(?:%b%b){%d}\n" % (value, bar, value, len(self.names) - 1))
        opens = re.compile(rb'%b(?:%b%b)*%b"(?:[^"]|"")*\n|"(?:[^"]|"")*\n' % (value, bar, value, bar))
        for k in odd.tolist():
            if k <= end:
                continue
            fits = found[k] == len(self.names) - 1
            if opens.fullmatch(data, starts[k], ends[k] + 1):
                most = min(k + MOST_LINES, len(ends))
                for j in range(k + 1, most):
                    if whole.fullmatch(data, starts[k], ends[j] + 1):
                        joined[k], until[k], end = data[starts[k] : ends[j] + 1], j, j
                        break
                else:
                    if most == len(ends) and not last:
                        return joined, until, literal, k
                    if not fits:
                        raise InputError(
                            f"{self.path}: line {line + k}: a quotation mark opens a value that does not "
                            f"end; "
                            'allowed: values in quotes, with "" for a quotation mark inside'
                        )
                    literal.append(k)
            else:  # also those with a wrong number of values, which are refused
                literal.append(k)
        return joined, until, literal, len(ends)

    def _parsed(
        self, data: bytes, rows: int, names: Sequence[str], mark: str, quote: str | None
    ) -> pl.DataFrame:
        if not rows:
            return pl.DataFrame(schema=dict.fromkeys(names, pl.String))
        places = [self.names.index(name) for name in names]
        codes = [f"column_{k}" for k in range(len(self.names))]
        try:
            frame = pl.read_csv(data, has_header=False, separator=mark, quote_char=quote, infer_schema=False,
                                new_columns=codes, columns=sorted(places))  # fmt: skip
        except pl.exceptions.PolarsError as error:
            self._not_utf8(data)
            raise InputError(f"{self.path} is not a readable table: {str(error).splitlines()[0]}") from None
        if frame.height != rows:  # rather than lose one
            raise InputError(f"{self.path} is not a readable table: {rows} lines gave {frame.height} rows")
        found = sorted(places)
        return frame.select(
            frame.to_series(found.index(place)).alias(name) for place, name in zip(places, names, strict=True)
        )

    def _ragged(self, k: int, found: np.ndarray, empty: np.ndarray, row: int, line: int) -> None:
        before = int((~empty[:k]).sum())
        many = "values" if found[k] else "value"
        raise InputError(
            f"{self.path}: row {row + before} (line {line + k}) has {found[k] + 1} {many}; "
            f"{'the header names' if not self.headerless else 'there are'} {len(self.names)} columns"
        )

    def _json_lines(
        self, data: bytes, names: Sequence[str], row: int, line: int, last: bool
    ) -> tuple[pl.DataFrame, bytes]:
        rows = sum(1 for piece in data.split(b"\n") if piece.strip())
        try:
            frame = pl.read_ndjson(data, schema=dict.fromkeys(names, pl.String)) if rows else None
        except pl.exceptions.PolarsError as error:
            found = str(error).splitlines()[0]
        else:
            if frame is None or frame.height == rows:
                return pl.DataFrame(schema=dict.fromkeys(names, pl.String)) if frame is None else frame, b""
            found = f"{rows} lines gave {frame.height} rows"
        for k, piece in enumerate(data.split(b"\n")):
            if piece.strip():
                self._object(piece, line + k - 1)
        raise InputError(f"{self.path} is not a readable table: {found}")

    def _object(self, line: bytes, k: int) -> dict[str, object]:
        try:
            return msgspec.json.decode(line, type=dict[str, object])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            message = str(error).splitlines()[0]
            raise InputError(f"{self.path}: line {k + 1} is not a JSON object: {message}") from None

    def _not_utf8(self, data: bytes) -> None:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            text = data[data.rfind(b"\n", 0, error.start) + 1 :].split(b"\n")[0]
            raise InputError(
                f"{self.path} is not UTF-8: {shown(text)}; allowed: UTF-8 (iconv converts other encodings)"
            ) from None

    def _count(self, what: str, n: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + n


def blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a text file, decompressed, in blocks of whole lines; InputError if it is broken."""
    check_file(path)
    rest: list[bytes] = []
    first = True
    try:
        with pa.input_stream(str(path), compression=COMPRESSION.get(path.suffix.lower())) as stream:
            while piece := stream.read(BLOCK):
                if first and piece.startswith(b"\xef\xbb\xbf"):
                    piece = piece[3:]
                first = False
                cut = piece.rfind(b"\n") + 1
                if cut:
                    yield b"".join([*rest, piece[:cut]])
                    rest = []
                rest.append(piece[cut:])
                if sum(map(len, rest)) > LONGEST_LINE:
                    raise InputError(
                        f"{path} is not a readable table: a line has over {LONGEST_LINE:,} bytes"
                    )
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is not a readable table: {str(error).splitlines()[0]}") from None
    if any(rest):
        yield b"".join(rest) + b"\n"


def sniff(line: str) -> str:
    """Return the separator of a header line: the one that cuts it into the most columns."""
    bare = re.sub(r'"[^"]*"', "", line)
    if "::" in bare:
        return "::"
    return max(SEPARATORS, key=lambda mark: (bare.count(mark), mark == ","))


def split(line: str, separator: str) -> list[str]:
    """Split one line into its values."""
    if len(separator) == 1:
        with suppress(csv.Error):  # a quotation mark that quotes nothing
            return next(csv.reader([line], delimiter=separator, strict=True))
    return line.split(separator)


def _per_line(hits: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return np.diff(np.searchsorted(np.flatnonzero(hits), ends), prepend=0)


def _taken(data: bytes, starts: np.ndarray, ends: np.ndarray, lines: np.ndarray) -> bytes:
    """Return some lines; all others are cut out."""
    if len(lines) == len(ends):
        return data
    wanted = np.zeros(len(ends), np.bool_)
    wanted[lines] = True
    mask = np.repeat(wanted, ends - starts + 1)
    return np.frombuffer(data, np.uint8)[: len(mask)][mask].tobytes()


def _well_formed(
    data: bytes, starts: np.ndarray, ends: np.ndarray, lines: np.ndarray, mark: str, wanted: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split lines into those that the CSV convention reads as one whole row, and the others."""
    texts = pl.Series([data[starts[k] : ends[k]] for k in lines.tolist()], dtype=pl.Binary)
    texts = texts.cast(pl.String, strict=False).fill_null('"')
    bar = re.escape(mark)
    value = rf'(?:[^"{bar}]*|"(?:[^"]|"")*")'
    whole = texts.str.contains(rf"^{value}(?:{bar}{value})*$")
    marks = texts.str.replace_all(r'"(?:[^"]|"")*"', "").str.count_matches(bar) == wanted
    good = (whole & marks).to_numpy()
    return lines[good], lines[~good]
