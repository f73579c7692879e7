"""Proposes what the columns of a table mean, by their names, types and values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import polars as pl

from edgerec_gym.errors import InputError
from edgerec_gym.logs.table_files import TableFiles, open_table
from edgerec_gym.logs.table_flags import FALSE, TRUE
from edgerec_gym.logs.table_lists import TOKEN
from edgerec_gym.logs.table_mapping import FLAGS, REQUIRED, UNITS
from edgerec_gym.logs.table_names import (
    CLICKS,
    NAMES,
    OUTCOME,
    RESPONSES,
    SHOWN,
    TEXT,
    USER_CATEGORY,
    USER_NUMBER,
)
from edgerec_gym.logs.table_time import DATE_NUMBERS, FIRST, LAST, SHAPES

SIDE_ROWS = 100_000  # rows of a side table that are looked at
MOST_NUMBERS = 40


class Proposal:
    """A mapping by the names, types and values of columns.

    Args:
        files: the table.
        sample: its first rows, text as text.
        header: the names that its columns were given, if it has no header.

    Raises:
        InputError: there are no rows, or no column looks like one that is needed.
    """

    def __init__(self, files: TableFiles, sample: pl.DataFrame, header: list[str]) -> None:
        if not sample.height:
            raise InputError(f"{files.path} has no rows")
        self.files, self.sample, self.header = files, sample, header
        self.doubts: list[str] = []
        self.used: set[str] = set()
        self.missing = [
            text for text in ("NULL", "null", "NA", "N/A", "NaN", "nan", "None", "\\N", "-")
            if any((sample[n] == text).any() for n in sample.columns if sample[n].dtype == pl.String)
        ]  # fmt: skip
        self.numbers = {
            name: number for name in sample.columns if (number := self._number(sample[name])) is not None
        }

    def _number(self, column: pl.Series) -> pl.Series | None:
        """Return a column as numbers, if it holds numbers only."""
        if column.dtype.is_numeric():
            return column.cast(pl.Float64)
        if column.dtype == pl.Boolean:
            return column.cast(pl.Float64)
        if column.dtype != pl.String:
            return None
        text = column.filter(~column.is_in(self.missing).fill_null(True) & (column != ""))
        number = text.cast(pl.Float64, strict=False)
        if not len(text) or number.null_count():
            return None
        return column.cast(pl.Float64, strict=False)

    def propose(self) -> tuple[dict[str, Any], list[str]]:
        """Return the content of the mapping file, not tried yet, and what is doubtful about it."""
        content: dict[str, Any] = {}
        if self.files.separator not in ("", ",", "\t") or self.header:
            content["separator"] = self.files.separator
        if self.header:
            content["header"] = self.header
            self.doubts.append("the table has no header: its columns are told by their values and order")
        if self.missing:
            content["missing"] = self.missing
        lists = self._list_column(content)
        time = self._time(content)
        history = self._named("history")
        if history is None and self.header and lists:
            history = next((n for n in self._left() if self._holds_lists(n)), None)
        self._ids(content, bool(lists))
        if not lists:
            self._click(content)
        self._pages(content, time, lists)
        if history:
            content["history"] = self._use(history)
        self._rest(content)
        order = [*REQUIRED, "list_column", "list", "session", "position"]
        first = [n for n in order if n in content]
        return {n: content[n] for n in (*first, *(n for n in content if n not in order))}, self.doubts

    # Helpers

    def _left(self) -> list[str]:
        return [name for name in self.sample.columns if name not in self.used]

    def _use(self, name: str) -> str:
        self.used.add(name)
        return name

    def _candidates(self, meaning: str) -> Iterator[tuple[int, str]]:
        """Yield the unused columns whose name fits a meaning, and how sure it is (0 = surest)."""
        given: set[str] = set()
        for sure, pattern in enumerate(NAMES[meaning]):
            for name in self._left():
                if name not in given and re.fullmatch(pattern, key_of(name)):
                    given.add(name)
                    yield sure, name

    def _named(self, meaning: str) -> str | None:
        return next((name for _, name in self._candidates(meaning)), None)

    def _is_flag(self, name: str) -> bool:
        if name in self.numbers:
            return (
                self.numbers[name].drop_nulls().is_in([0.0, 1.0]).all()
                and not self.numbers[name].null_count()
            )
        text = self.sample[name]
        return (
            text.dtype == pl.String
            and not text.null_count()
            and text.str.to_lowercase().is_in([*TRUE, *FALSE]).all()
        )

    def _holds_lists(self, name: str) -> bool:
        """Whether a column holds lists, also as text."""
        column = self.sample[name]
        if isinstance(column.dtype, pl.List):
            return True
        if column.dtype != pl.String or name in self.numbers:
            return False
        text = column.drop_nulls().head(1000)
        if looks_like_time(str(text.first())) or not len(text):
            return False
        counts = text.str.count_matches(TOKEN)
        ids = text.str.extract_all(TOKEN).explode().drop_nulls()
        return bool((counts.median() or 0) >= 2 and len(ids) and ids.str.contains(r"\d").mean() > 0.95)  # type: ignore[operator]

    # The parts of a mapping

    def _list_column(self, content: dict[str, Any]) -> dict[str, Any] | None:
        names = [name for name in self._left() if self._holds_lists(name)]
        for name in names:
            text = self.sample[name]
            if (
                text.dtype == pl.String
                and text.drop_nulls().head(1000).str.contains(r"^(\S+-[01])( \S+-[01])*$").all()
            ):
                content["list_column"] = {"items": self._use(name), "form": "item-click"}
                self.doubts.append(
                    "list_column: nothing tells whether the order of a list is that on the screen: no "
                    "position"
                )
                return content["list_column"]
        clicked = [
            n for n in names if re.search(r"click", key_of(n)) and not re.search(r"hist|before", key_of(n))
        ]
        shown = [
            n
            for n in names
            if re.search(
                r"in_?view|impress|shown|items|candidates|slate|list|expos|displayed|articles|products|videos",
                key_of(n),
            )
            and n not in clicked
        ]
        if clicked and shown:
            content["list_column"] = {"items": self._use(shown[0]), "clicked": self._use(clicked[0])}
            if isinstance(self.sample[clicked[0]].dtype, pl.List):
                flags = self.sample[clicked[0]].explode().drop_nulls()
                same = (
                    (self.sample[clicked[0]].list.len() == self.sample[shown[0]].list.len()).all()
                    if isinstance(self.sample[shown[0]].dtype, pl.List)
                    else False
                )
                if same and flags.cast(pl.String).is_in([*TRUE, *FALSE]).all():
                    content["list_column"] = {"items": shown[0], "clicks": clicked[0]}
            self.doubts.append(
                "list_column: nothing tells whether the order of a list is that on the screen: no position"
            )
            return content["list_column"]
        return None

    def _time(self, content: dict[str, Any]) -> list[str]:
        """Find the time: of the columns that hold times, the one of the surest name and the finest values."""
        found: list[tuple[float, str, dict[str, Any]]] = []
        for sure, name in [*self._candidates("time"), *((9, n) for n in self._left() if self.header)]:
            if (how := self._as_time(name)) is not None:
                coarse = 0 if self.sample[name].n_unique() > 31 else 5
                found.append((sure + coarse, name, how))
        found.sort(key=lambda entry: entry[0])
        if not found:
            raise InputError(
                f"{self.files.path}: no column looks like a time; columns are "
                f"{', '.join(self.sample.columns)[:300]}"
            )
        _, name, how = found[0]
        clock = next(
            (
                n
                for n in self._left()
                if n != name
                and re.fullmatch(r"hour(_?min(ute)?)?|hh(mm)?|clock|time(_of_day)?|hourmin", key_of(n))
                and n in self.numbers
            ),
            None,
        )
        if how.get("time_format") == "%Y%m%d" and clock is not None and self.numbers[clock].max() <= 2400:  # type: ignore[operator]
            content["time"] = [self._use(name), self._use(clock)]
            self.doubts.append(
                f"time: {name!r} and {clock!r} are taken as UTC; name 'time_zone' if they are not"
            )
            return content["time"]
        content |= {"time": self._use(name)} | how
        self.used |= {n for _, n, _ in found}
        if "time_unit" not in how and name not in self.numbers:
            self.doubts.append(
                f"time: {name!r} is taken as UTC unless it says otherwise; name 'time_zone' if it is not"
            )
        return [name]

    def _as_time(self, name: str) -> dict[str, Any] | None:
        """Return the mapping's settings if a column holds times."""
        column = self.sample[name]
        if isinstance(column.dtype, pl.Datetime | pl.Date):
            return {}
        if name in self.numbers:
            number = self.numbers[name].drop_nulls()
            if not len(number) or column.dtype == pl.Float32:
                return None
            low, high = float(number.min()), float(number.max())  # type: ignore[arg-type]
            digits = number.cast(pl.Int64, strict=False).cast(pl.String)
            for pattern, form in DATE_NUMBERS:
                if digits.str.contains(f"^(?:{pattern})$").all():
                    return {"time_format": form}
            unit = next((u for u, s in UNITS.items() if FIRST <= low * s and high * s <= LAST), None)
            return None if unit is None else {} if unit == "s" else {"time_unit": unit}
        if column.dtype != pl.String:
            return None
        first = str(column.drop_nulls().first()).strip()
        form = next((f for shape, f in SHAPES if re.fullmatch(shape, first)), "")
        if not form:
            return None
        if form.startswith("D/M"):
            parts = column.str.extract_groups(r"^(\d+)[/.-](\d+)")
            one, two = ((parts.struct.field(k).cast(pl.Int64) > 12).any() for k in "12")
            if one == two:
                text, rest = first, form.removeprefix("D/M/").replace("%.f", "")
                mark = re.search(r"[/.-]", text)
                day_first = mark is not None and mark[0] == "." or not re.search("%p", rest)
                order = "%d{0}%m" if day_first else "%m{0}%d"
                assert mark is not None
                self.doubts.append(
                    f"time: {name!r} ({text}): no row tells whether the day or the month comes first; "
                    f"taken as {order.format('/')}"
                )
                return {"time_format": order.format(mark[0]) + mark[0] + rest}
        return {}

    def _ids(self, content: dict[str, Any], lists: bool) -> None:
        by_values = [n for n in self._left() if self.header and not self._holds_lists(n)]
        user = next((n for _, n in self._candidates("user") if self._is_id(n)), None)
        if user is None and self.header:
            user = next(
                (
                    n
                    for n in by_values
                    if self.sample[n].n_unique() < self.sample.height * (0.9 if not lists else 1.0)
                ),
                None,
            )
            self.doubts.append(f"user: {user!r}, by its place; check it")
        if not lists:
            found = [n for _, n in self._candidates("item") if self._is_id(n) and n != user]
            if {"site_id", "app_id"} <= {key_of(n) for n in self.sample.columns}:  # where an ad was shown
                found = [n for n in found if key_of(n) not in ("site_id", "app_id")]
            item = found[0] if found else None
            if item is None and self.header:
                item = next((n for n in by_values if n != user), None)
                self.doubts.append(f"item: {item!r}, by its place; check it")
            if item is None:
                raise InputError(
                    f"{self.files.path}: no column looks like the id of an item; columns are "
                    f"{', '.join(self.sample.columns)[:300]}"
                )
            if len(found) > 1:
                self.doubts.append(f"item: {item!r}; {', '.join(map(repr, found[1:4]))} could be it, too")
            content["item"] = self._use(item)
            campaign = next(
                (n for n in self._left() if key_of(n) in ("campaign", "campaign_id", "market", "site")), None
            )
            if (
                campaign
                and 1 < self.sample[campaign].n_unique() <= 50
                and not self.sample[campaign].null_count()
            ):
                pairs = self.sample.select(pl.struct(campaign, item).n_unique()).item()
                if pairs > 1.5 * self.sample[item].n_unique():
                    content["item"] = [self._use(campaign), item]
                    self.doubts.append(
                        f"item: its ids come again in every {campaign!r}, so that both make the id"
                    )
        if user is None:
            user = next((n for _, n in self._candidates("session")), None) or next(
                (n for _, n in self._candidates("list")), None
            )
            if user is not None:
                content["user"] = user
                self.doubts.append(f"user: no column of users; every {user!r} counts as a user of its own")
            else:
                content["user"] = content["time"]
                self.doubts.append("user: no column of users; every moment counts as a user of its own")
        else:
            content["user"] = self._use(user)

    def _is_id(self, name: str) -> bool:
        kind = self.sample[name].dtype
        return (
            (kind == pl.String or kind.is_integer() or kind in (pl.Categorical, pl.Enum))
            and self.sample[name].n_unique() > 1
            and not self.sample[name].null_count()
        )

    def _click(self, content: dict[str, Any]) -> None:
        for sure, name in self._candidates("click"):
            if self._is_flag(name) and self._both(name):
                content["click"] = self._use(name)
                if sure:
                    self.doubts.append(f"click: {name!r} is taken as the click")
                return
        for name in [*(n for _, n in self._candidates("event")), *self._events_without_header()]:
            values = self.sample[name].cast(pl.String).drop_nulls().unique().to_list()
            hits = [v for v in values if re.fullmatch(CLICKS, key_of(v))]
            shown = [v for v in values if re.fullmatch(SHOWN, key_of(v)) and v not in hits]
            unnamed = not hits and bool(shown)
            if unnamed:  # views and what follows them, such as carts and orders
                hits = [v for v in values if _is_response(v)]
            if len(values) <= 50 and hits and len(values) > len(hits):
                content["click"] = {"column": self._use(name), "values": sorted(hits)}
                others = ", ".join(sorted(set(values) - set(hits)))
                self.doubts.append(
                    f"click: {name!r} is {' or '.join(sorted(hits))}; other values are {others}"
                    + ("; no value is called a click, so that any of these counts as one" if unnamed else "")
                )
                if not shown:
                    self.doubts.append(
                        "no value says that an item was only shown: the click rate may mean nothing"
                    )
                self._events(content, name, values)
                return
        for name in self._left():
            if (self.header or re.search(r"click", key_of(name))) and self._is_time_or_zero(name):
                content["click"] = f"{self._use(name)} > 0"
                self.doubts.append(
                    f"click: {name!r} is 0 or a time; where it is a time, it counts as a click"
                )
                return
        unnamed_ratings = [n for n in self._left() if self.header and self._is_rating(n)]
        for name in [*(n for _, n in self._candidates("rating")), *unnamed_ratings]:
            number = self.numbers.get(name)
            if number is None or number.null_count() or not 2 <= number.n_unique() <= 100:
                continue
            low, high = float(number.min()), float(number.max())  # type: ignore[arg-type]
            levels = number.unique().sort()
            limit = float(levels.filter(levels >= low + 0.75 * (high - low)).to_list()[0])
            content["click"] = f"{self._use(name)} >= {limit:g}"
            self.doubts.append(
                f"click: {name!r} ({low:g} to {high:g}) of at least {limit:g} counts as a click"
            )
            return
        flags = [n for n in self._left() if self._is_flag(n) and self._both(n)]
        if not flags or not self.header:  # a name that says something else is not to be overruled
            told = f"columns of 0 and 1 are {', '.join(flags)}; " if flags else ""
            raise InputError(
                f"{self.files.path}: no column looks like a click; {told}columns are "
                f"{', '.join(self.sample.columns)[:300]}"
            )
        content["click"] = self._use(flags[0])
        self.doubts.append(f"click: {flags[0]!r}, a column of 0 and 1; no name says what was clicked")

    def _both(self, name: str) -> bool:
        return self.sample[name].n_unique() > 1

    def _events_without_header(self) -> list[str]:
        """Return the unnamed columns all of whose values are known names of events."""
        if not self.header:
            return []
        return [
            name
            for name in self._left()
            if name not in self.numbers
            and self.sample[name].dtype == pl.String
            and 1 < self.sample[name].n_unique() <= 20
            and all(
                _is_response(v) or re.fullmatch(f"{CLICKS}|{SHOWN}", key_of(v))
                for v in self.sample[name].drop_nulls().unique()
            )
        ]

    def _is_rating(self, name: str) -> bool:
        """Whether an unnamed column holds ratings: up to 11 steps of a whole or a half, up to 10."""
        if name not in self.numbers:
            return False
        levels = self.numbers[name].drop_nulls().unique().sort()
        step = levels.diff().drop_nulls().unique().to_list()
        return 2 < len(levels) <= 11 and 0 <= levels[0] and levels[-1] <= 10 and step in ([1.0], [0.5])

    def _is_time_or_zero(self, name: str) -> bool:
        number = self.numbers.get(name)
        if number is None or number.null_count() or number.min() != 0:
            return False
        later = number.filter(number != 0)
        return bool(len(later)) and any(
            FIRST <= float(later.min()) * s and float(later.max()) * s <= LAST  # type: ignore[arg-type]
            for s in UNITS.values()
        )

    def _events(self, content: dict[str, Any], name: str, values: list[str]) -> None:
        """Take further values of an event column as responses."""
        for response, pattern in RESPONSES.items():
            if hits := [v for v in values if re.fullmatch(pattern, key_of(v))]:
                content.setdefault("responses", {})[response] = {"column": name, "values": sorted(hits)}
        if hits := [v for v in values if any(re.fullmatch(p, key_of(v)) for p in NAMES["purchase"])]:
            content["purchase"] = {"column": name, "values": sorted(hits)}

    def _pages(self, content: dict[str, Any], time: list[str], lists: dict[str, Any] | None) -> None:
        for meaning in ("list", "session"):
            name = next(
                (n for _, n in self._candidates(meaning) if self._is_id(n) or n == content["user"]), None
            )
            if name is None and meaning == "list" and content["user"] in self.sample.columns:
                same = any(re.fullmatch(p, key_of(content["user"])) for p in NAMES["list"])
                name = content["user"] if same else None
            if name is not None and not (meaning == "session" and name == content["user"]):
                content[meaning] = self._use(name)
        if lists is None:
            position = next(
                (
                    n
                    for _, n in self._candidates("position")
                    if n in self.numbers and not self.numbers[n].null_count()
                ),
                None,
            )
            if position is not None:
                content["position"] = self._use(position)
        if "list" not in content and "position" not in content and lists is None:
            content["list"] = time if len(time) > 1 else time[0]
            self.doubts.append(
                "list: nothing tells pages apart; rows of a user at one moment count as one page"
            )

    def _rest(self, content: dict[str, Any]) -> None:
        if "list_column" in content:  # what stands beside a list is not of one item
            self._features(content)
            return
        for meaning in (
            "purchase",
            "category",
            "price",
            "base_ctr",
            "propensity",
            "query",
            "dwell_seconds",
            "page_view_seconds",
        ):
            if meaning in content:
                continue
            name = self._named(meaning)
            if name is None:
                continue
            number = self.numbers.get(name)
            if meaning in FLAGS and not (self._is_flag(name) and self._both(name)):
                continue
            if meaning in ("price", "base_ctr", "propensity") and (number is None or number.null_count()):
                continue
            if meaning in ("dwell_seconds", "page_view_seconds") and number is None:
                continue
            if meaning == "category" and self._holds_lists(name):
                continue
            content[meaning] = self._use(name)
            if (
                number is not None
                and meaning.endswith("_seconds")
                and (re.search(r"ms$|milli", key_of(name)) or (number > 1000).mean() > 0.5)  # type: ignore[operator]
            ):
                content[meaning] = {"column": name, "unit": "ms"}
                self.doubts.append(f"{meaning}: {name!r} is taken to count milliseconds")
        responses = content.setdefault("responses", {})
        for response, pattern in RESPONSES.items():
            name = next(
                (
                    n
                    for n in self._left()
                    if re.fullmatch(pattern, key_of(n)) and self._is_flag(n) and self._both(n)
                ),
                None,
            )
            if name is not None and response not in responses:
                responses[response] = self._use(name)
        if not responses:
            del content["responses"]
        self._features(content)

    def _features(self, content: dict[str, Any]) -> None:
        """Map what else is known of users and items, but nothing that comes after the click."""
        outcome = [n for n in self._left() if re.search(OUTCOME, key_of(n))]
        self.used |= set(outcome)
        texts = [
            n
            for n in self._left()
            if re.fullmatch(TEXT, key_of(n)) and n not in self.numbers and self.sample[n].dtype == pl.String
        ]
        if "item" in content and (written := [n for n in texts if not self._is_of_items(n, content["item"])]):
            self.doubts.append(
                f"text: {', '.join(map(repr, written))} differ between the rows of an item, as reviews do; "
                "not used"
            )
            texts = [n for n in texts if n not in written]
            self.used |= set(written)
        if texts:
            content["text"] = [self._use(n) for n in texts[:2]]
        categories = [
            n
            for n in self._left()
            if re.fullmatch(USER_CATEGORY, key_of(n)) and not self.sample[n].dtype.is_nested()
        ]
        ages = [n for n in self._left() if re.fullmatch(USER_NUMBER, key_of(n)) and n in self.numbers]
        numbers = (
            []
            if self.header
            else [
                n
                for n in self._left()
                if n in self.numbers and n not in categories + ages and self.numbers[n].n_unique() > 2
            ][:MOST_NUMBERS]
        )
        for meaning, names in (("user_categories", categories), ("user_numbers", ages), ("numbers", numbers)):
            if names:
                content[meaning] = [self._use(n) for n in names]
        self._side_tables(content)
        if numbers:
            self.doubts.append(f"numbers: {', '.join(numbers)} are taken as known before the click")
        if outcome or self._left():
            self.doubts.append(f"not used: {', '.join([*outcome, *self._left()])}")

    def _is_of_items(self, name: str, item: str | list[str]) -> bool:
        """Whether a text is the item's: the same in most rows of an item."""
        of = self.sample.group_by(item).agg(rows=pl.len(), texts=pl.col(name).n_unique())
        several = of.filter(pl.col("rows") > 1)
        return not several.height or several["texts"].sum() <= 0.5 * several["rows"].sum()

    def _side_tables(self, content: dict[str, Any]) -> None:
        """Use RecBole's .item and .user files, and MIND's news.tsv, beside the table."""
        for meaning in ("item", "user"):
            beside, key = self.files.path.with_suffix(f".{meaning}"), content.get(meaning)
            header: list[str] = []
            if meaning == "item" and self.header and "list_column" in content:
                beside = self.files.path.with_name("news.tsv")
                header = [
                    "id",
                    "category",
                    "subcategory",
                    "title",
                    "abstract",
                    "url",
                    "title_entities",
                    "abstract_entities",
                ]
            elif self.files.path.suffix != ".inter":
                continue
            if not beside.is_file():
                continue
            with suppress(InputError):
                side = open_table(beside, "\t", header)
                content[f"{meaning}s"] = {"file": beside.name, "key": side.names[0]} | (
                    {"separator": "\t", "header": header} if header else {}
                )
                rows = side.sample(SIDE_ROWS)
                for name in side.names[1:]:
                    if name in self.sample.columns or key is None and not header:
                        continue
                    number = rows[name].cast(pl.Float64, strict=False).null_count() == rows[name].null_count()
                    if meaning == "user":
                        if not re.search(r"zip|post_?code", name):
                            kind = (
                                "user_numbers" if number and rows[name].n_unique() > 20 else "user_categories"
                            )
                            content.setdefault(kind, []).append(name)
                    elif re.fullmatch(TEXT, key_of(name)) and "text" not in content:
                        content["text"] = [name]
                    elif re.fullmatch(NAMES["category"][0], key_of(name)) and "category" not in content:
                        content["category"] = name
                    elif number and rows[name].n_unique() > 2:
                        content.setdefault("numbers", []).append(name)


def key_of(name: str) -> str:
    """Return a column name in small letters, words joined by _."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")


def _is_response(value: str) -> bool:
    """Whether a value of a column of events names a response to a card."""
    patterns = (*RESPONSES.values(), *NAMES["purchase"])
    return any(re.fullmatch(pattern, key_of(value)) for pattern in patterns)


def looks_like_time(text: str) -> bool:
    """Whether a text has one of the shapes of a date or a time."""
    return any(re.fullmatch(shape, text) for shape, _ in SHAPES)
