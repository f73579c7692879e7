"""Log folders on disk: a writer that survives being killed, and a reader that streams.

A folder holds `logs.json` (schema version, feed config, provenance, what the data does not identify),
`catalog.parquet` and the parts `part-00000.parquet`, `part-00001.parquet`, ... (see schema.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Meta

from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.cloud.item_table import ITEM_TABLE, ItemTable
from edgerec_gym.config import SCHEMA_VERSION, FeedConfig
from edgerec_gym.documents import MOST_BYTES, OpenDocument, config_from, read_object
from edgerec_gym.errors import InputError, closest, shown
from edgerec_gym.files import atomic_path, json_ready, make_folder, write_json
from edgerec_gym.logs.checks import as_log_table, check_rows, check_schema, session_bounds
from edgerec_gym.logs.schema import OPTIONAL, SCHEMA
from edgerec_gym.parquet import check_parquet
from edgerec_gym.scenario import UNIDENTIFIED

KIND = "edgerec_gym logs"
Count = Annotated[int, Meta(ge=0)]
ROW_GROUP = 2**17  # slots read at once
_PART = re.compile(r"part-(\d{5,})\.parquet")


class Provenance(OpenDocument):
    """What is read of the origin of a log; it may tell more."""

    policy: str = ""
    preset: str | None = None
    scenario: str | None = None
    source: str = ""
    randomise: list[str] = []
    synthetic: dict[str, Any] | None = None
    first_validation_day: Count | None = None
    files: dict[str, Any] = {}
    counts: dict[str, Count] = {}
    notes: list[str] = []
    scalars: dict[str, str] = {}
    profile: list[str] = []


class Header(OpenDocument):
    """The content of logs.json that is read."""

    kind: str
    schema_version: int
    config: dict[str, Any]
    provenance: Provenance
    unidentified: list[str]
    complete: bool = False
    parts: Count | None = None
    sessions: Count | None = None
    slots: Count | None = None


class LogWriter:
    """Write a log folder part by part; reopened after a kill, it continues after the last complete part.

    Args:
        folder: created if needed. An existing log is continued if config, catalogue and provenance agree.
        config: the feed that was logged.
        catalog: the catalogue that `item` refers to.
        provenance: JSON-ready facts about the origin of the log.
        unidentified: what the data does not identify, from :data:`edgerec_gym.scenario.UNIDENTIFIED`.

    Attributes:
        parts, sessions, slots: numbers of those complete on disk.
        complete: whether the log is finished.

    Raises:
        InputError: the folder cannot be written to or holds another log.
    """

    def __init__(
        self,
        folder: str | Path,
        config: FeedConfig,
        catalog: Catalog,
        provenance: dict[str, Any],
        unidentified: tuple[str, ...] = (),
    ) -> None:
        _check_unidentified(unidentified, "unidentified")
        self.folder = make_folder(folder)
        self.config, self.catalog = config, catalog
        header = {
            "kind": KIND,
            "schema_version": SCHEMA_VERSION,
            "config": config.to_dict(),
            "provenance": provenance,
            "unidentified": list(unidentified),
        }
        # Via JSON, so that it compares equal to the content of a file.
        self._header = json.loads(json.dumps(json_ready(header)))
        self.parts = self.sessions = self.slots = 0
        self.complete = False
        self._last_session: int | None = None
        for leftover in self.folder.glob(".*.tmp"):
            if leftover.is_file():  # a folder is the scratch of the command that is running
                leftover.unlink()
        if (self.folder / "logs.json").exists():
            self._resume()
        elif _part_paths(self.folder):
            raise InputError(f"{self.folder} holds log parts but no logs.json; choose another folder")
        else:
            catalog.save(self.folder / "catalog.parquet", config.item_columns)
            write_json(self.folder / "logs.json", {**self._header, "complete": False})

    def _resume(self) -> None:
        reader = LogReader(self.folder, allow_empty=True)
        for name in ("config", "provenance", "unidentified"):
            found, wanted = reader.header[name], self._header[name]
            if found == wanted:
                continue
            if isinstance(found, dict):
                different = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))[0]
                name, found, wanted = f"{name} {different!r}", found.get(different), wanted.get(different)
            raise InputError(
                f"{self.folder} holds another log: its {name} is {found!r}, not {wanted!r}; choose another"
            )
        learned = (self.folder / ITEM_TABLE).exists()  # after the log was written
        for name in (
            "embeddings",
            "scalars",
            "card_type",
            "category",
            "names",
            *(() if learned else ("columns",)),
        ):
            if not np.array_equal(getattr(reader.catalog, name), getattr(self.catalog, name)):
                raise InputError(f"{self.folder} holds another log: its catalogue differs in {name}")
        self.complete = reader.complete
        for table in reader.batches(["session"]):
            session = table["session"].to_numpy()
            self.sessions += len(session_bounds(session)) - 1
            self.slots += len(session)
            self._last_session = int(session[-1])
        self.parts = len(reader.paths)

    def write(self, table: pa.Table | dict[str, Any]) -> None:
        """Write one part: whole sessions in increasing order, with the columns of :func:`log_schema`.

        Args:
            table: an Arrow table, or a dict of arrays or lists by column name.

        Raises:
            InputError: the part is wrong; the message names the part, column or row. Nothing is written.
        """
        path = self.folder / f"part-{self.parts:05d}.parquet"
        if self.complete:
            raise InputError(f"{self.folder} is complete; choose another folder")
        part = as_log_table(table, path, self.config)
        if not part.num_rows:
            raise InputError(f"{path}: a part needs at least one row")
        check_rows(part, path, 0, self.config, self.catalog)
        session = part["session"].to_numpy()
        if self._last_session is not None and session[0] <= self._last_session:
            raise InputError(
                f"{path}: row 0: session {session[0]} does not come after {self._last_session}, the last "
                "session of the previous part; sessions must be whole and in increasing order"
            )
        with atomic_path(path) as temporary:
            pq.write_table(part, temporary, compression="zstd", row_group_size=ROW_GROUP)
        self._last_session = int(session[-1])
        self.sessions += len(session_bounds(session)) - 1
        self.slots += len(session)
        self.parts += 1

    def finish(self) -> None:
        """Mark the log as complete."""
        if not self.parts:
            raise InputError(f"{self.folder}: a log needs at least one part")
        totals = {"complete": True, "parts": self.parts, "sessions": self.sessions, "slots": self.slots}
        write_json(self.folder / "logs.json", {**self._header, **totals})
        self.complete = True


class LogReader:
    """Read a log folder, at most one row group and the sessions in it at a time.

    Args:
        folder: a log folder; an incomplete one (its writer was killed) is read as far as it goes.
        allow_empty: accept a folder without any part.

    Attributes:
        config: FeedConfig of the logged feed, with the columns of the item table if the folder holds one.
        catalog: Catalog of the items; likewise.
        unidentified: what the data does not identify.
        provenance: JSON-ready facts about the origin of the log.
        complete: whether the writer finished.
        paths: the parts, in order.

    Raises:
        InputError: a file is missing, broken or of another schema version; the message names it.
    """

    def __init__(self, folder: str | Path, *, allow_empty: bool = False) -> None:
        self.folder = Path(folder)
        path = self.folder / "logs.json"
        self.header = read_object(path, most_bytes=MOST_BYTES)
        if self.header.get("kind") != KIND:
            raise InputError(f"{path}: kind is {shown(self.header.get('kind'))}; a log folder has {KIND!r}")
        version = self.header.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(f"{path} has log schema version {shown(version)}; supported: {SCHEMA_VERSION}")
        read_object(path, Header, most_bytes=MOST_BYTES)
        self.config = config_from(FeedConfig, self.header["config"], path, "config")
        self.provenance: dict[str, Any] = self.header["provenance"]
        self.unidentified = tuple(self.header["unidentified"])
        _check_unidentified(self.unidentified, f"{path}: unidentified")
        self.complete = self.header.get("complete") is True
        self.paths = _part_paths(self.folder)
        if self.complete and len(self.paths) != self.header.get("parts"):
            named = self.header.get("parts")
            raise InputError(f"{path} names {named} parts, the folder holds {len(self.paths)}")
        if not self.paths and not allow_empty:
            raise InputError(f"{self.folder} holds no log parts (part-00000.parquet, ...)")
        config = self.config
        self.catalog = Catalog.load(
            self.folder / "catalog.parquet", config.embedding_size, config.item_columns
        )
        self._optional = self._shipped_columns()
        if os.path.lexists(self.folder / ITEM_TABLE):
            if config.item_columns:
                raise InputError(
                    f"{self.folder / ITEM_TABLE}: this log ships item columns of its own with every "
                    "page; remove the file"
                )
            table = ItemTable.load(self.folder / ITEM_TABLE, len(self.catalog))
            self.config = config.replace(item_columns=table.names)
            self.catalog = self.catalog.with_table(table.columns, table.folds)
        self._totals: tuple[int, int] | None = None

    def _shipped_columns(self) -> list[str]:
        """Return the optional columns that the log's first part has."""
        if not self.paths:
            return []
        try:
            with pq.ParquetFile(self.paths[0]) as file:
                return [name for name in OPTIONAL if name in file.schema_arrow.names]
        except (pa.ArrowException, OSError):  # reading the rows tells what is wrong
            return []

    @property
    def sessions(self) -> int:
        """Number of sessions."""
        return self._count()[0]

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self._count()[1]

    def _count(self) -> tuple[int, int]:
        if self._totals is None:
            if self.complete:
                self._totals = self._named_totals()
            else:
                bounds = [session_bounds(table["session"].to_numpy()) for table in self.batches(["session"])]
                self._totals = sum(len(b) - 1 for b in bounds), sum(int(b[-1]) for b in bounds)
        return self._totals

    def _named_totals(self) -> tuple[int, int]:
        """Return the sessions and slots that logs.json names; raise InputError if the parts contradict."""
        path = self.folder / "logs.json"
        sessions, slots = self.header.get("sessions"), self.header.get("slots")
        if sessions is None or slots is None:
            missing = "sessions" if sessions is None else "slots"
            raise InputError(f"{path}: {missing} is missing, though the log is complete")
        held = sum(check_parquet(part, whole=False).num_rows for part in self.paths)
        if slots != held:
            raise InputError(f"{path} names {slots:,} slots; the parts hold {held:,}")
        if sessions > slots:
            raise InputError(
                f"{path}: sessions is {sessions:,}; allowed: at most one for each of {slots:,} slots"
            )
        return sessions, slots

    def batches(
        self, columns: Sequence[str] | None = None, days: Sequence[int] | None = None
    ) -> Iterator[pa.Table]:
        """Iterate over tables of whole sessions, in order; everything read is validated.

        Args:
            columns: names from :func:`log_schema` to read; None = all.
            days: keep the sessions that begin on these days; None = all.

        Yields:
            Tables with the requested columns and at least one row.

        Raises:
            InputError: the log is wrong; the message names the file and, if there is one, the first
                offending row.
        """
        wanted = [*SCHEMA.names, *self._optional] if columns is None else list(columns)
        for name in wanted:
            if name not in SCHEMA.names and name not in OPTIONAL:
                raise InputError(f"logs have no column {name!r}{closest(name, SCHEMA.names, 'columns are')}")
        extra = ["session", "slot"] if days is None else ["session", "slot", "day"]
        needed = list(dict.fromkeys(wanted + extra))
        last: int | None = None
        for path in self.paths:
            for first_row, table in _whole_sessions(path, needed, self.config):
                check_rows(table, path, first_row, self.config, self.catalog)
                session = table["session"].to_numpy()
                if last is not None and session[0] <= last:
                    problem = "appears in two parts" if session[0] == last else f"comes after {last}"
                    where = f"{path}: row {first_row}: session {session[0]}"
                    raise InputError(f"{where} {problem}; sessions must be whole and in increasing order")
                last = int(session[-1])
                if days is not None:
                    bounds = session_bounds(session)
                    kept = np.isin(table["day"].to_numpy()[bounds[:-1]], list(days))
                    table = table.filter(pa.array(np.repeat(kept, np.diff(bounds))))
                if table.num_rows:
                    yield table.select(wanted)

    def session_starts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what the cloud ships when a session starts, one row per session.

        Returns:
            features (S, U) float32 in [-1, 1], zero where the log has none; hour (S,) int32 in 0..23.
        """
        features, hours = [], []
        for table in self.batches(["slot", "hour", "user_features"]):
            first = table.filter(pa.array(table["slot"].to_numpy() == 0))
            column = first["user_features"].combine_chunks()
            rows = np.zeros((len(column), self.config.n_user_features), np.float32)
            known = column.is_valid().to_numpy(zero_copy_only=False)
            rows[known] = column.flatten().to_numpy().reshape(-1, rows.shape[1])
            features.append(rows)
            hours.append(first["hour"].to_numpy().astype(np.int32))
        if not features:
            raise InputError(f"{self.folder} holds no sessions")
        return np.concatenate(features), np.concatenate(hours)


def _check_unidentified(names: Sequence[str], where: str) -> None:
    for name in names:
        if name not in UNIDENTIFIED:
            raise InputError(f"{where}: {name!r} is unknown; allowed: {', '.join(UNIDENTIFIED)}")


def _part_paths(folder: Path) -> list[Path]:
    """Return the complete parts in order; InputError if one is missing between others."""
    numbers = sorted(int(m[1]) for p in folder.iterdir() if (m := _PART.fullmatch(p.name)))
    for expected, number in enumerate(numbers):
        if number != expected:
            raise InputError(f"{folder / f'part-{expected:05d}.parquet'} is missing")
    return [folder / f"part-{number:05d}.parquet" for number in numbers]


def _whole_sessions(path: Path, columns: list[str], config: FeedConfig) -> Iterator[tuple[int, pa.Table]]:
    """Read a part by row groups; a session that a row group cuts off is completed from the next one."""
    check_parquet(path, whole=False)
    try:
        with pq.ParquetFile(path) as file:
            check_schema(file.schema_arrow, path, config)
            present = [name for name in columns if name in file.schema_arrow.names]
            waiting, first_row = file.schema_arrow.empty_table().select(present), 0
            for group in range(file.num_row_groups):
                table = pa.concat_tables([waiting, file.read_row_group(group, columns=present)])
                whole = table.num_rows
                if whole and group < file.num_row_groups - 1:
                    session = table["session"].to_numpy()
                    whole = int(session_bounds(session)[-2])
                waiting = table.slice(whole)
                if whole:
                    yield first_row, _completed(table.slice(0, whole).combine_chunks(), columns)
                first_row += whole
    except (pa.ArrowException, OSError) as error:
        message = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable Parquet file: {message}") from None


def _completed(table: pa.Table, columns: list[str]) -> pa.Table:
    """Return the table with the optional columns that the file lacks, as null."""
    for name in columns:
        if name not in table.column_names:
            table = table.append_column(OPTIONAL[name], pa.nulls(table.num_rows, OPTIONAL[name].type))
    return table.select(columns)
