"""Validation of log parts; every error names the file and the first offending row (counted from 0)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from edgerec_gym.answers import N_EXPOSURE_ACTIONS, N_PAGE_VIEW_ACTIONS
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.config import SCHEMA_VERSION, FeedConfig
from edgerec_gym.errors import InputError, closest
from edgerec_gym.logs.schema import OPTIONAL, SCHEMA, VERSION_KEY, log_schema

TOLERANCE = 1e-6  # allows for float32 rounding at the ends of a range
WHOLE_NUMBERS = 2**31 - 1


def check_schema(schema: pa.Schema, where: Path, config: FeedConfig) -> None:
    """Check the schema version, the column names and their types against those of the feed's logs."""
    version = (schema.metadata or {}).get(VERSION_KEY, b"none").decode(errors="replace")
    if version != str(SCHEMA_VERSION):
        raise InputError(f"{where} has log schema version {version}; supported: {SCHEMA_VERSION}")
    for name in _required(config):
        if name not in schema.names:
            raise InputError(f"{where}: missing column {name!r}")
    for field in log_schema(schema.names):
        if schema.names.count(field.name) > 1:
            raise InputError(f"{where}: column {field.name!r} is there twice; allowed: once")
        found = schema.field(field.name).type
        if found != field.type:
            raise InputError(f"{where}: column {field.name!r} has type {found}; it must be {field.type}")


def _required(config: FeedConfig) -> list[str]:
    """Return the columns that a log of the feed must have."""
    return [*SCHEMA.names, *(["responses"] if config.responses else [])]


def as_log_table(table: pa.Table | dict[str, Any], where: Path, config: FeedConfig) -> pa.Table:
    """Return the columns in schema order and types; InputError names a missing or wrong column."""
    names = list(table) if isinstance(table, dict) else table.column_names
    for name in _required(config):
        if name not in names:
            raise InputError(f"{where}: missing column {name!r}")
    schema = log_schema(names)
    for name in names:
        if name not in schema.names:
            raise InputError(f"{where}: unknown column {name!r}{closest(name, SCHEMA.names, 'columns are')}")
    columns = []
    for field in schema:
        try:
            values = table[field.name]
            if isinstance(values, (pa.Array, pa.ChunkedArray)):
                columns.append(values.cast(field.type))
            else:
                columns.append(pa.array(values, field.type))
        except (pa.ArrowException, TypeError, ValueError) as error:
            message = str(error).splitlines()[0]
            raise InputError(f"{where}: column {field.name!r} must be {field.type}: {message}") from None
    try:
        return pa.Table.from_arrays(columns, schema=schema)
    except pa.ArrowInvalid as error:
        raise InputError(f"{where}: columns differ in length: {error}") from None


def check_rows(table: pa.Table, where: Path, first_row: int, config: FeedConfig, catalog: Catalog) -> None:
    """Check the values of the columns that are present; `session` and `slot` must be.

    Args:
        table: whole sessions, with any subset of the columns of the feed's logs.
        where: the file, for the message.
        first_row: row of the file at which the table starts.
        config: gives the numbers of user features, card types and actions.
        catalog: the catalogue that `item` refers to.

    Raises:
        InputError: a value is wrong; the message names the file, the first offending row and what is allowed.
    """
    place = _Place(where, first_row)
    for name in table.column_names:
        if name not in OPTIONAL and not SCHEMA.field(name).nullable and table[name].null_count:
            place.fail(np.flatnonzero(table[name].is_null().to_numpy())[0], f"{name} is empty")
    _check_sessions(table, place)
    numbers = {
        "day": (0, WHOLE_NUMBERS),
        "hour": (0, 23),
        "time": (0, np.finfo(np.float64).max),
        "item": (0, len(catalog) - 1),
        "card_type": (0, config.n_types - 1),
        "page": (0, WHOLE_NUMBERS),
        "page_age": (0, WHOLE_NUMBERS),
        "price_level": (0, 1),
        "base_ctr": (0, 1),
        "base_cvr": (0, 1),
        "freshness": (0, 1),
        "action": (0, config.pool_size + config.n_cards),
        "propensity": (0, 1),
        "request_propensity": (0, 1),
    }
    for name, (low, high) in numbers.items():
        if name in table.column_names:
            rows, values = _present(table[name])
            _check_range(name, values, rows, low, high, place)
    lists = {
        "candidates": (None, 0, len(catalog) - 1),
        "cards": (None, 0, len(catalog) - 1),
        "candidate_ctr": (None, 0, 1),
        "user_features": (config.n_user_features, -1, 1),
        "exposure_actions": (N_EXPOSURE_ACTIONS, 0, 1),
        "page_view_actions": (N_PAGE_VIEW_ACTIONS, 0, 1),
        "item_columns": (len(config.item_columns), -1, 1),
        "responses": (config.n_responses, 0, 1),
    }
    for name, (size, low, high) in lists.items():
        if name in table.column_names:
            _check_lists(name, table[name], size, low, high, place)
    if {"candidates", "candidate_ctr"} <= set(table.column_names):
        _check_lengths(table, "candidate_ctr", "candidates", place)
    if {"item", "card_type"} <= set(table.column_names):
        expected = catalog.card_type[table["item"].to_numpy()]
        found = table["card_type"].to_numpy()
        for row in np.flatnonzero(found != expected)[:1]:
            place.fail(
                row, f"card_type {found[row]} differs from the catalogue's {expected[row]} for that item"
            )
    if {"answered", "click"} <= set(table.column_names):
        unknown = table["answered"].to_numpy() & table["click"].is_null().to_numpy()
        for row in np.flatnonzero(unknown)[:1]:
            place.fail(row, "answered, but click is empty")
    if config.responses and {"answered", "responses"} <= set(table.column_names):
        unknown = table["answered"].to_numpy() & table["responses"].is_null().to_numpy()
        for row in np.flatnonzero(unknown)[:1]:
            place.fail(row, f"answered, but responses is empty; the feed's are {', '.join(config.responses)}")


def session_bounds(session: np.ndarray) -> np.ndarray:
    """Return the first row of each session, then the number of rows."""
    changes = np.flatnonzero(session[1:] != session[:-1]) + 1
    return np.concatenate([[0], changes, [len(session)]])


class _Place:
    """Where a table comes from, for error messages."""

    def __init__(self, where: Path, first_row: int) -> None:
        self.where, self.first_row = where, first_row

    def fail(self, row: int, message: str) -> None:
        raise InputError(f"{self.where}: row {self.first_row + int(row)}: {message}")


def _check_sessions(table: pa.Table, place: _Place) -> None:
    session, slot = table["session"].to_numpy(), table["slot"].to_numpy()
    bounds = session_bounds(session)
    starts = bounds[:-1]
    for k in np.flatnonzero(session[starts[1:]] < session[starts[:-1]])[:1]:
        row = starts[k + 1]
        place.fail(row, f"session {session[row]} comes after session {session[row - 1]}; ids must increase")
    for row in np.flatnonzero(slot < 0)[:1]:
        place.fail(row, f"slot {slot[row]} is negative")
    expected = np.arange(len(slot)) - np.repeat(starts, np.diff(bounds))
    for row in np.flatnonzero(slot != expected)[:1]:
        place.fail(
            row,
            f"slot {slot[row]} of session {session[row]} should be {expected[row]}; a session's slots are "
            "consecutive from 0",
        )


def _present(column: pa.ChunkedArray) -> tuple[np.ndarray | None, np.ndarray]:
    """Return rows and values of the entries that are not null; rows is None if that is all of them."""
    if not column.null_count:
        return None, column.to_numpy()
    return np.flatnonzero(column.is_valid().to_numpy()), column.drop_null().to_numpy()


def _check_range(
    name: str, values: np.ndarray, rows: np.ndarray | None, low: float, high: float, place: _Place
) -> None:
    if not len(values) or (values.min() >= low and values.max() <= high):  # False if there is a NaN
        return
    margin = TOLERANCE if values.dtype.kind == "f" else 0
    for k in np.flatnonzero(~((values >= low - margin) & (values <= high + margin)))[:1]:
        row = k if rows is None else rows[k]
        place.fail(row, f"{name} {values[k]} is out of range; allowed: {low} to {high}")


def _check_lengths(table: pa.Table, name: str, of: str, place: _Place) -> None:
    """Refuse lists that are there and have another length than those of another column."""
    own, others = (table[column].combine_chunks().value_lengths().fill_null(-1) for column in (name, of))
    found, needed = own.to_numpy(zero_copy_only=False), others.to_numpy(zero_copy_only=False)
    for row in np.flatnonzero((found >= 0) & (found != needed))[:1]:
        place.fail(row, f"{name} has {found[row]} numbers; {of} has {max(needed[row], 0)}")


def _check_lists(
    name: str, column: pa.ChunkedArray, size: int | None, low: float, high: float, place: _Place
) -> None:
    flat = column.combine_chunks()
    rows = np.flatnonzero(flat.is_valid().to_numpy(zero_copy_only=False))
    lengths = flat.drop_null().value_lengths().to_numpy(zero_copy_only=False)
    if size is not None:
        for k in np.flatnonzero(lengths != size)[:1]:
            place.fail(rows[k], f"{name} has {lengths[k]} numbers; it needs {size}")
    values = flat.flatten().to_numpy(zero_copy_only=False)  # a null inside a list becomes NaN
    _check_range(name, values, np.repeat(rows, lengths), low, high, place)
