"""Reads flags of a table: columns of 0 and 1, comparisons such as "rating >= 4", and values that mean yes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl

from edgerec_gym.errors import InputError, shown
from edgerec_gym.logs.table_mapping import COMPARISON, Flag, Values
from edgerec_gym.logs.table_time import literal

TRUE, FALSE = ("1", "1.0", "true", "t", "yes"), ("0", "0.0", "false", "f", "no")


class Reading(NamedTuple):
    """How a flag is read: where it is true, where it is wrong, and what is allowed."""

    true: pl.Expr
    wrong: pl.Expr
    allowed: str


@dataclass(frozen=True)
class Condition:
    """A flag as it is computed: `column` compared by `operator` ("" = the column itself) with `values`."""

    column: str
    operator: str = ""
    values: tuple[Any, ...] = ()

    @classmethod
    def of(cls, flag: Flag, names: Collection[str]) -> Condition:
        """Read a flag of a mapping; `names` are all columns. InputError if it compares with no number."""
        if isinstance(flag, Values):
            return cls(flag.column, "in", flag.values)
        found = COMPARISON.match(flag) if flag not in names else None
        if found is None:
            return cls(flag)
        name, operator, value = found.groups()
        value = value.strip("'\"") if value[:1] in "'\"" else value
        if operator in ("=", "==", "!="):
            return cls(name, "not in" if operator == "!=" else "in", (value,))
        try:
            return cls(name, operator, (float(value),))
        except ValueError:
            raise InputError(f"{shown(flag)} compares with {shown(value)}; allowed: a number") from None

    def read(self, kind: pl.DataType, where: str) -> Reading:
        """Return how to read the flag from a column of this type; InputError names the file `where`."""
        value = literal(self.column)
        if self.operator in ("in", "not in"):
            hit = self._is_in(value, kind, where)
            return Reading(hit if self.operator == "in" else ~hit, value.is_null(), "anything but empty")
        if self.operator:
            number, limit = value.cast(pl.Float64, strict=False), self.values[0]
            hit = {">=": number >= limit, "<=": number <= limit, ">": number > limit, "<": number < limit}[
                self.operator
            ]
            return Reading(hit, number.is_null() | number.is_nan(), "a number")
        if kind == pl.Boolean:
            return Reading(value, value.is_null(), "false, true")
        allowed = '0, 1, false, true (or map a comparison, such as "rating >= 4")'
        if kind.is_numeric():
            return Reading(value == 1, ~((value == 0) | (value == 1)).fill_null(False), allowed)
        text = value.cast(pl.String).str.to_lowercase()
        return Reading(text.is_in(TRUE), ~text.is_in([*TRUE, *FALSE]).fill_null(False), allowed)

    def _is_in(self, value: pl.Expr, kind: pl.DataType, where: str) -> pl.Expr:
        """Return where the column has one of the values."""
        if kind.is_numeric():
            try:
                return value.cast(pl.Float64).is_in([float(v) for v in self.values])
            except ValueError:
                raise InputError(
                    f"{where}: column {self.column!r} holds numbers; allowed: numbers to compare with, not "
                    f"{shown(list(self.values))}"
                ) from None
        known = [str(v).lower() if isinstance(v, bool) else str(v) for v in self.values]
        hit = value.cast(pl.String).str.strip_chars().is_in(known)
        numbers = [float(v) for v in self.values if isinstance(v, int | float)]
        if numbers and kind == pl.String:  # 1 also means 1.0
            hit = hit | value.cast(pl.Float64, strict=False).is_in(numbers).fill_null(False)
        return hit
