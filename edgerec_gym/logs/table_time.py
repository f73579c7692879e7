"""Reads times: numbers since 1970 in a unit, dates as text, or a date and the hour of the day.

Whatever would put the log into a wrong year is refused with the unit or format that would be right.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Any, NoReturn

import polars as pl

from edgerec_gym.answers import DWELL_EDGES, PAGE_VIEW_EDGES
from edgerec_gym.errors import InputError, shown
from edgerec_gym.logs.table_mapping import DURATIONS, UNITS, Mapping

FIRST, LAST = 631_152_000.0, 4_102_444_800.0  # seconds since 1970 at the beginning of 1990 and of 2100
ZONE = r"(?: ?(?:UTC|GMT|Z))"
YEAR_FIRST = r"\d{4}[-/]\d{1,2}[-/]\d{1,2}"
CLOCK = r"[ T]\d{1,2}:\d{2}"
# Shapes of the first value, and the format of all once "T" is a blank, "/" in a year-first date "-", and a
# UTC suffix cut off.
SHAPES: tuple[tuple[str, str], ...] = (
    (rf"{YEAR_FIRST}{CLOCK}:\d{{2}}(?:[.,]\d+)?{ZONE}?", "%Y-%m-%d %H:%M:%S%.f"),
    (rf"{YEAR_FIRST}{CLOCK}:\d{{2}}(?:[.,]\d+)? ?[+-]\d\d:?(?:\d\d)?", "%Y-%m-%d %H:%M:%S%.f%#z"),
    (rf"{YEAR_FIRST}{CLOCK}{ZONE}?", "%Y-%m-%d %H:%M"),
    (rf"{YEAR_FIRST}{ZONE}?", "%Y-%m-%d"),
    (r"[A-Z][a-z]{2} [A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d [+-]\d{4} \d{4}", "%a %b %d %H:%M:%S %z %Y"),
    (r"\d{1,2}[/.-]\d{1,2}[/.-]\d{4}", "D/M/%Y"),
    (r"\d{1,2}[/.-]\d{1,2}[/.-]\d{4} \d{1,2}:\d{2}", "D/M/%Y %H:%M"),
    (r"\d{1,2}[/.-]\d{1,2}[/.-]\d{4} \d{1,2}:\d{2}:\d{2}(?:\.\d+)?", "D/M/%Y %H:%M:%S%.f"),
    (r"\d{1,2}[/.-]\d{1,2}[/.-]\d{4} \d{1,2}:\d{2} [AaPp][Mm]", "D/M/%Y %I:%M %p"),
    (r"\d{1,2}[/.-]\d{1,2}[/.-]\d{4} \d{1,2}:\d{2}:\d{2} [AaPp][Mm]", "D/M/%Y %I:%M:%S %p"),
)  # fmt: skip
_YEAR, _MONTH, _DAY, _HOUR = (
    r"(?:19[7-9]\d|20\d\d)",
    r"(?:0[1-9]|1[0-2])",
    r"(?:0[1-9]|[12]\d|3[01])",
    r"(?:[01]\d|2[0-3])",
)
DATE_NUMBERS = (  # numbers that are dates in all rows
    (rf"{_YEAR}{_MONTH}{_DAY}", "%Y%m%d"),
    (rf"{_YEAR}{_MONTH}{_DAY}{_HOUR}", "%Y%m%d%H"),
    (rf"{_YEAR}{_MONTH}{_DAY}{_HOUR}[0-5]\d", "%Y%m%d%H%M"),
    (rf"{_YEAR}{_MONTH}{_DAY}{_HOUR}[0-5]\d[0-5]\d", "%Y%m%d%H%M%S"),
    (rf"\d\d{_MONTH}{_DAY}{_HOUR}", "%y%m%d%H"),
    (rf"\d\d{_MONTH}{_DAY}{_HOUR}[0-5]\d", "%y%m%d%H%M"),
)


TOP = {"dwell_seconds": DWELL_EDGES[-1], "page_view_seconds": PAGE_VIEW_EDGES[-1]}  # seconds
# Of a feed in seconds some rows are short. Where nine in ten are beyond the last bucket, or nearly nothing,
# the unit is another one, unless the mapping says it.
UNLIKELY_SHARE, NOTHING = 0.9, 0.05
LEAST_DURATIONS = 20  # of which a unit can be told


@dataclass(frozen=True)
class Time:
    """How a time column is read.

    Attributes:
        seconds: expression, float64 seconds since 1970; null where it cannot be read.
        allowed: what a value must be, for messages.
        note: what a reader should know, or "".
    """

    seconds: pl.Expr
    allowed: str
    note: str = ""

    @property
    def wrong(self) -> pl.Expr:
        """Rows whose time cannot be right."""
        return ~self.seconds.is_between(FIRST, LAST).fill_null(False)


def read_time(values: pl.LazyFrame, names: tuple[str, ...], mapping: Mapping, where: str) -> Time:
    """Find out how to read the time.

    Args:
        values: the table.
        names: the columns of time, one, or a date and an hour of the day, as expressions name them.
        mapping: its time_unit, time_zone and time_format are used.
        where: the file, for messages.

    Raises:
        InputError: what the column holds is not what the mapping says, or can be read in two ways.
    """
    kinds = values.collect_schema()
    reader = _Reader(values, mapping, where)
    if len(names) == 2:
        return reader.pair(names[0], kinds[names[0]], names[1], kinds[names[1]])
    return reader.one(names[0], kinds[names[0]])


class _Reader:
    def __init__(self, values: pl.LazyFrame, mapping: Mapping, where: str) -> None:
        self.values, self.mapping, self.where = values, mapping, where

    def fail(self, name: str, message: str) -> NoReturn:
        raise InputError(f"{self.where}: column {shown(name)} {message}")

    def ask(self, **questions: pl.Expr) -> dict[str, object]:
        found: dict[str, object] = self.values.select(**questions).collect(engine="streaming").to_dicts()[0]
        return found

    def one(self, name: str, kind: pl.DataType) -> Time:
        column = literal(name)
        if isinstance(kind, pl.Date | pl.Datetime):
            return self._dates(name, kind)
        if kind == pl.Float32:
            self.fail(
                name,
                "holds times as float32, in steps of 128 seconds; allowed: whole numbers, float64, or dates",
            )
        if kind.is_numeric():
            text = column.cast(pl.Int64, strict=False).cast(pl.String)
            return self._formatted(name, text) if self.mapping.time_format else self._numbers(name, text)
        text = column.cast(pl.String).str.strip_chars()
        if self.mapping.time_format:
            return self._formatted(name, text)
        first = self.ask(first=text.drop_nulls().first())["first"]
        if first is None or re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", str(first)):
            return self._numbers(name, text)
        return self._text(name, text, str(first))

    def _numbers(self, name: str, text: pl.Expr) -> Time:
        unit = self.mapping.time_unit
        number = literal(name).cast(pl.Float64, strict=False)
        digits = text.str.strip_suffix(".0")
        found = self.ask(low=number.min(), high=number.max(), first=digits.drop_nulls().first(),
                         n=number.count(), **{f"as{k}": digits.str.contains(f"^(?:{pattern})$").sum()
                                              for k, (pattern, _) in enumerate(DATE_NUMBERS)})  # fmt: skip
        for k, (_, form) in enumerate(DATE_NUMBERS):
            if found["n"] and found[f"as{k}"] == found["n"]:
                example = _parsed(str(found["first"]), form)
                self.fail(
                    name,
                    f"holds dates as numbers such as {found['first']}, which do not count {unit} since 1970; "
                    f'write "time_format": "{form}" ({example})'
                    + (", or [date, hour of the day] as 'time'" if form == "%Y%m%d" else ""),
                )
        if self.mapping.time_zone:
            self.fail(name, "holds numbers since 1970, which are in UTC; leave out 'time_zone'")
        allowed = (
            'times from 1990 on, before 2100; numbers count seconds, or with "time_unit": "ms" milliseconds '
            '(also "us", "ns")'
        )
        low = found["low"]
        if isinstance(low, float) and not FIRST <= low * UNITS[unit] <= LAST:
            right = next((u for u, s in UNITS.items() if FIRST <= low * s <= LAST), None)
            if right is not None:
                year = datetime.datetime.fromtimestamp(low * UNITS[right], datetime.UTC).year
                allowed += f'; with "time_unit": "{right}" this would be in {year}'
        return Time(number * UNITS[unit], allowed)

    def _dates(self, name: str, kind: pl.DataType) -> Time:
        zone = getattr(kind, "time_zone", None)
        if self.mapping.time_zone and zone:
            self.fail(name, f"already is in the time zone {zone}; leave out 'time_zone'")
        note = _days_only(name) if kind == pl.Date else ""
        return Time(self._epoch(literal(name), bool(zone)), "times from 1990 on, before 2100", note)

    def _epoch(self, dates: pl.Expr, aware: bool) -> pl.Expr:
        """Return seconds since 1970 of dates, which are in the mapping's time zone if they have none."""
        if self.mapping.time_zone and not aware:
            dates = dates.cast(pl.Datetime("us")).dt.replace_time_zone(
                self.mapping.time_zone, ambiguous="earliest", non_existent="null"
            )
        return (dates if aware else dates.cast(pl.Datetime("us", self.mapping.time_zone or None))).dt.epoch(
            "us"
        ) / 1e6

    def _formatted(self, name: str, text: pl.Expr) -> Time:
        form = self.mapping.time_format
        if not re.search(r"%[YysDFc]", form):
            self.fail(
                name,
                f"is read by time_format {shown(form)}, which has no year; allowed: such as '%Y-%m-%d %H:%M'",
            )
        text, note = text.str.strip_suffix(".0"), ""
        if re.search(r"%[HI]", form) and "%M" not in form:  # polars wants minutes beside hours
            text, form = text + " 00", form + " %M"
        elif not re.search(r"%[HIsTRcX]", form):
            note = _days_only(name)
        return Time(
            self._epoch(self._strptime(text, form), "z" in form),
            f"times as {shown(self.mapping.time_format)}",
            note,
        )

    def _strptime(self, text: pl.Expr, form: str) -> pl.Expr:
        zone = "UTC" if "z" in form else None
        try:
            pl.Series(["x"]).str.to_datetime(form, strict=False, time_unit="us", time_zone=zone)
        except pl.exceptions.PolarsError as error:
            raise InputError(
                f"{self.where}: time_format {shown(form)} is wrong: {str(error).splitlines()[0]}"
            ) from None
        return text.str.to_datetime(form, strict=False, time_unit="us", time_zone=zone)

    def _text(self, name: str, text: pl.Expr, first: str) -> Time:
        form = next((form for shape, form in SHAPES if re.fullmatch(shape, first)), None)
        if form is None:
            self.fail(
                name,
                f"begins with {shown(first)}; allowed: times such as 2024-01-31 18:30:00, numbers since "
                f'1970, or any with "time_format", such as "%d.%m.%y %H:%M"',
            )
        note = "" if ":" in form else _days_only(name)
        if form.startswith("D/M"):
            text = text.str.replace_all(r"^(\d+)[/.-](\d+)[/.-](\d{4})", "${1}/${2}/${3}")
            form = self._day_and_month(name, text, form, first)
            note = note or f"column {name!r} is read as {form}"
        elif form[1] == "Y":
            if re.fullmatch(r".*(?:UTC|GMT|Z)", first):
                if self.mapping.time_zone:
                    self.fail(name, f"already names its time zone, {shown(first)}; leave out 'time_zone'")
                text = text.str.replace(rf"{ZONE}$", "")
            text = text.str.replace(
                r"^(\d{4})[/-](\d{1,2})[/-](\d{1,2})(?:T| +)?", "${1}-${2}-${3} "
            ).str.strip_chars()
            text = text.str.replace(",", ".", literal=True).str.replace(r" ([+-]\d\d:?\d*)$", "${1}")
        if "z" in form and self.mapping.time_zone:
            self.fail(name, f"already names its time zone, {shown(first)}; leave out 'time_zone'")
        return Time(self._epoch(self._strptime(text, form), "z" in form), f"times such as {first}", note)

    def _day_and_month(self, name: str, text: pl.Expr, form: str, first: str) -> str:
        """Return the format with its days and months in order, which some row must tell."""
        parts = text.str.extract_groups(r"^(\d+)/(\d+)/")
        found = self.ask(
            one=parts.struct.field("1").cast(pl.Int64).max(), two=parts.struct.field("2").cast(pl.Int64).max()
        )
        one, two = int(str(found["one"] or 0)), int(str(found["two"] or 0))
        if (one > 12) == (two > 12):
            rest = form.removeprefix("D/M/").replace("%.f", "")
            self.fail(
                name,
                f'holds dates such as {first}, whose day may come first or second; write "time_format": '
                f'"%d/%m/{rest}" or "%m/%d/{rest}" ',
            )
        return form.replace("D/M", "%d/%m" if one > 12 else "%m/%d")

    def pair(self, date: str, date_kind: pl.DataType, clock: str, clock_kind: pl.DataType) -> Time:
        """Read a date, as a date, text or a number such as 20240131, and a clock time beside it."""
        column = literal(date)
        if isinstance(date_kind, pl.Date | pl.Datetime):
            days = column.cast(pl.Date)
        else:
            text = (column.cast(pl.Int64) if date_kind.is_numeric() else column).cast(pl.String)
            text = text.str.strip_chars().str.strip_suffix(".0")
            form = self.mapping.time_format
            if not form:
                first = str(self.ask(first=text.drop_nulls().first())["first"])
                form = "%Y%m%d" if re.fullmatch(r"\d{8}", first) else "%Y-%m-%d"
                text = text.str.replace_all("/", "-", literal=True)
            days = text.str.to_date(form, strict=False)
        if clock_kind == pl.Time:
            seconds = literal(clock).cast(pl.Int64) / 1e9
        else:
            seconds = self._clock(
                clock, literal(clock).cast(pl.String).str.strip_chars().str.strip_suffix(".0")
            )
        whole = days.cast(pl.Datetime("us")) + pl.duration(
            microseconds=(seconds * 1e6).round().cast(pl.Int64)
        )
        return Time(
            self._epoch(whole, False),
            "a date such as 2024-01-31 or 20240131, and an hour of the day: 18, 1830 or 18:30",
        )

    def _clock(self, name: str, text: pl.Expr) -> pl.Expr:
        first = self.ask(first=text.drop_nulls().first())["first"]
        if ":" in str(first):
            parts = text.str.extract_groups(r"^(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?$")
            hour, minute = (parts.struct.field(k).cast(pl.Float64) for k in "12")
            second = parts.struct.field("3").cast(pl.Float64).fill_null(0.0)
        else:
            number = text.cast(pl.Int64, strict=False)
            high = self.ask(high=number.max())["high"]
            high = int(str(high or 0))
            # Numbers up to 23 in all rows are hours, up to 2359 hours and minutes, else with seconds.
            scale = 10_000 if high < 24 else 100 if high < 2400 else 1
            number = number * scale
            hour, minute, second = number // 10_000, number // 100 % 100, (number % 100).cast(pl.Float64)
        right = hour.is_between(0, 23) & minute.is_between(0, 59) & (second < 60)
        return pl.when(right).then(hour * 3600 + minute * 60 + second)


def duration_questions(columns: Mapping) -> list[pl.Expr]:
    """Return what :func:`check_durations` needs of durations whose unit the mapping leaves open."""
    questions = []
    for meaning in DURATIONS:
        name = getattr(columns, meaning)
        if not isinstance(name, str) or not name:
            continue
        number = literal(name).cast(pl.Float64, strict=False)
        questions += [
            (number > 0).sum().alias(f"{meaning} given"),
            (number > TOP[meaning]).sum().alias(f"{meaning} long"),
            ((number > 0) & (number < NOTHING)).sum().alias(f"{meaning} short"),
        ]
    return questions


def check_durations(found: dict[str, Any], columns: Mapping, where: str) -> None:
    """Raise InputError if durations cannot be seconds.

    Args:
        found: answers to :func:`duration_questions` by their names.
        columns: the mapping.
        where: the file, for messages.
    """
    for meaning in DURATIONS:
        n = found.get(f"{meaning} given", 0)
        if n < LEAST_DURATIONS:
            continue
        long, short = found[f"{meaning} long"] / n, found[f"{meaning} short"] / n
        if max(long, short) <= UNLIKELY_SHARE:
            continue
        name = getattr(columns, meaning)
        what = f"above {TOP[meaning]:g}" if long > short else f"below {NOTHING}"
        other = '"ms" if they are milliseconds ("us", "ns"), or ' if long > short else ""
        raise InputError(
            f"{where}: column {name!r}: {100 * max(long, short):.1f} % of the values are {what} seconds; "
            f'write "{meaning}": {{"column": "{name}", "unit": ...}}, with {other}"s" if they are seconds'
        )


def literal(name: str) -> pl.Expr:
    """Return a column by its name, also one that polars would take for a pattern."""
    special = name == "*" or (name.startswith("^") and name.endswith("$"))
    return pl.col(f"^{re.escape(name)}$") if special else pl.col(name)


def _parsed(number: str, form: str) -> str:
    try:
        return f"{datetime.datetime.strptime(number, form):%Y-%m-%d %H:%M}"
    except ValueError:
        return "as Python's strptime reads it"


def _days_only(name: str) -> str:
    return f"column {name!r} tells the day only, not the hour: rows of a day are one moment"
