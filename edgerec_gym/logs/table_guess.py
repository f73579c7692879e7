"""Proposes a mapping for a table by the names, types and values of its columns.

The proposal is tried on a sample of the table. What fails the checks is repaired (a unit, clicks that are rows of
their own) or left out, and said. What no check can tell, such as which of two columns is the click, is said too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from edgerec_gym.errors import InputError
from edgerec_gym.logs.table_files import TableFiles, open_table
from edgerec_gym.logs.table_lists import TOKEN
from edgerec_gym.logs.table_mapping import FLAGS, REQUIRED, ROW, UNITS, mapping_from
from edgerec_gym.logs.table_source import FALSE, TRUE, SourceTable
from edgerec_gym.logs.table_survey import take_survey
from edgerec_gym.logs.table_time import DATE_NUMBERS, FIRST, LAST, SHAPES

SAMPLE = 100_000  # rows
MOST_NUMBERS = 40
TRIES = 30
SHOWN_ROWS = 10

# Names of columns by meaning, the surest first; matched against the name in small letters, words joined by _.
NAMES: dict[str, tuple[str, ...]] = {
    "user": (r"user(_?id)?", r"(user|u)_?(id|key|hash|idx|no|code)|uid", r"(visitor|customer|client|member|account|reader|viewer|shopper|profile|person|subscriber|player|listener|guest|consumer|cookie|buyer)s?(_?(id|key|hash|idx))?", r"(device|distinct|anonymous|browser|machine)_?id|uuid|device_ip|.*user_?id"),
    "item": (r"item(_?id)?", r"(item|i)_?(id|key|hash|idx|no|code)|iid|sku", r"(product|article|news|video|photo|movie|film|document|doc|content|song|track|music|listing|hotel|prop|property|offer|post|note|book|asin|goods|good|ad|creative|banner|story|recipe|game|app|course|job|card|episode|clip|show|media|merchandise|stream(er)?)s?(_?(id|key|hash|idx|code|uuid|guid))?|pid|vid|nid|aid|adgroup_id", r"(.*_)?(item|product|video|article|ad|content)_?id|url|feed_?id"),
    "time": (r"time_?stamp(_?(ms|s|us|utc))?|time_?ms|ts(_?ms)?", r"(event|impression|request|log|view|click|action|server|show|exposure|served|shown|created|date|search|visit|logged|rating)_?(time|at|ts|timestamp|datetime)(_?(ms|utc))?|date_?time|time", r"(.*_)?(time|timestamp|datetime|at|ts)", r"hour|date|day|dt|event_?date"),
    "click": (r"(is_?)?click(ed)?(_?(bool|flag|label))?|clk", r"label|target|y|is_?open(ed)?|opened|(is_)?tap(ped)?|click_?through|ctr_label|(has_|did_|was_)?click(ed|s)?(_.*)?", r"(is_)?(view(ed)?|watched|valid_play|read|play(ed)?|engaged|interacted|positive|feedback|response|reward)|is_?valid"),
    "list": (r"(list|page|slate|request|req|impression|impr|imp|search|srch|serp|display|feed|query|q|bundle|recommendation|rec|batch|screen|auction)_?(id|uuid|key)|qid|reqid", r"impression|slate|request|page(_?(no|number|view_?id))?"),
    "session": (r"(session|visit|sess)(_?(id|key|uuid|no))?",),
    "position": (r"pos(ition)?|rank|slot|place", r"(.*_)?(position|rank|pos|slot)(_?(id|no|idx|index|in_list|in_page|on_page))?|(item_)?(index|order|idx)"),
    "purchase": (r"(is_?|has_?)?(purchase[ds]?|bought|buy|order(ed)?|convert(ed)?|conversion|booking|booked|paid|transaction)(_?(bool|flag|label))?",),
    "dwell_seconds": (r"(dwell|exposure|visible|view(able)?|screen|on_screen)_?(time|seconds|sec|secs|s|ms|duration)(_?(ms|s|sec|seconds))?|dwell",),
    "page_view_seconds": (r"(play(ing)?|watch(ed|ing)?|read(ing)?|listen(ing)?|stay|active|page(_?view)?|view(ing)?)_?(time|seconds|sec|secs|ms|duration)(_?(ms|s|sec|seconds))?|watch_?s(ec)?",),
    "card_type": (),
    "category": (r"(.*_)?(category|cat|genre|topic|class|section|department|vertical)(_?(id|name|code|1|l1))?", r"(sub_?category|tag|type|brand|genres)(_?id)?"),
    "price": (r"(item_|product_|sale_|unit_)?price(_?(usd|eur|gbp|cny|amount))?", r"(?!.*(log|hist)).*_price|cost|amount"),
    "base_ctr": (r"(base_?|p|pred(icted)?_?|model_?)ctr(_?score)?|ctr",),
    "propensity": (r"propensity(_?score)?|p_?score|(action|logging|behaviou?r)_?prob(ability)?|prob(ability)?",),
    "query": (r"(search_?)?(query|keywords?|search_?term|phrase)(_?text)?",),
    "history": (r"(.*_)?(history|hist|clicked_(news|items|articles|before))(_?(ids|list))?",),
    "rating": (r"rating|stars|score|review_?(score|rating)|user_?rating",),
    "event": (r"(event|action|behaviou?r|interaction|activity|feedback)(_?(type|name|kind|code))?|type",),
}  # fmt: skip
RESPONSES: dict[str, str] = {
    "like": r"(is_?)?(like[ds]?|thumbs?_?up|upvote[ds]?|heart)",
    "follow": r"(is_?)?(follow(ed|s)?|subscribe[ds]?)",
    "share": r"(is_?)?(share[ds]?|forward(ed|s)?|repost(ed)?|retweet(ed)?)",
    "comment": r"(is_?)?(comment(ed|s)?|reply|replied)",
    "long_view": r"(is_?)?(long_?view|complete[d]?|finish(ed)?|valid_?play|full_?play|watched_?through)",
    "hate": r"(is_?)?(hate[ds]?|dislike[ds]?|thumbs?_?down|downvote[ds]?|not_?interested|negative(_feedback)?|report(ed)?|block(ed)?|hide|hidden)",
    "save": r"(is_?)?(save[ds]?|collect(ed)?|favou?rite[ds]?|bookmark(ed)?|wish_?list(ed)?|add_?to_?(cart|fav|wishlist|basket)|cart|download(ed)?)",
    "profile": r"(is_?)?(profile(_?enter|_?visit)?|is_profile_enter)",
}  # fmt: skip
CLICKS = r"click(ed|s)?|clk|open(ed)?|tap(ped)?|view_?item|detail(_?view)?|play|watch|read|1|true"
SHOWN = r"view(ed)?|impression|imp(ressed)?|show(n)?|expos(e|ed|ure)|display(ed)?|serve[d]?|seen|pv|0|false|skip(ped)?"
OUTCOME = (
    r"play|watch|stay|dwell|active|read_?time|scroll|next_|gross|revenue|reward|label|click|view|session|spent"
    r"|_id$|^id_?|index|^unnamed|zip|post_?code|phone|hour|date|minute|lat(itude)?$|lon(gitude)?$"
)
TEXT = r"(.*_)?(title|headline|text|name|caption|description|subtitle)"
USER_CATEGORY = r"(user_)?(gender|sex|country|city|region|occupation|job|device(_type)?|os|platform|language|locale|browser|state|membership|segment|plan)(_.*)?|user_(feature|cat|type|level).*|is_(sso_user|subscriber)"
USER_NUMBER = r"(user_)?(age|income|tenure|days_since_.*|register_days)(_.*)?"


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
    guess = _Guesser(files, sample, header).guess()
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
    files = open_table(path)
    if not files.text or not files.separator:
        return files, []
    names = files.names
    plain = [
        n
        for n in names
        if re.fullmatch(r"[+-]?\d+(\.\d+)?|", n) or _is_time(n) or re.search(r"\S-[01]( |$)", n)
    ]
    if len(plain) * 2 < len(names) or any(re.fullmatch(p, _key(n)) for n in names for p in NAMES["user"]):
        return files, []
    header = [f"column {k + 1}" for k in range(len(names))]
    return open_table(path, files.separator, header), header


def _is_time(text: str) -> bool:
    return any(re.fullmatch(shape, text) for shape, _ in SHAPES)


def _shrunk(sample: pl.DataFrame) -> pl.DataFrame:
    """Leave out columns that hold nothing."""
    return sample.select(name for name in sample.columns if sample[name].null_count() < sample.height)


class _Guesser:
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

    def guess(self) -> Guess:
        """Return the mapping before it is tried."""
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
            history = next((n for n in self._left() if self._is_tokens(n)), None)
        self._ids(content, bool(lists))
        if not lists:
            self._click(content)
        self._pages(content, time, lists)
        if history:
            content["history"] = self._use(history)
        self._rest(content)
        order = [*REQUIRED, "list_column", "list", "session", "position"]
        return Guess(
            {
                k: content[k]
                for k in [*[n for n in order if n in content], *[n for n in content if n not in order]]
            },
            self.doubts,
        )

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
                if name not in given and re.fullmatch(pattern, _key(name)):
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

    def _is_tokens(self, name: str) -> bool:
        """Whether a column holds lists, also as text."""
        column = self.sample[name]
        if isinstance(column.dtype, pl.List):
            return True
        if column.dtype != pl.String or name in self.numbers:
            return False
        text = column.drop_nulls().head(1000)
        if _is_time(str(text.first())) or not len(text):
            return False
        counts = text.str.count_matches(TOKEN)
        ids = text.str.extract_all(TOKEN).explode().drop_nulls()
        return bool((counts.median() or 0) >= 2 and len(ids) and ids.str.contains(r"\d").mean() > 0.95)  # type: ignore[operator]

    # The parts of a mapping

    def _list_column(self, content: dict[str, Any]) -> dict[str, Any] | None:
        names = [name for name in self._left() if self._is_tokens(name)]
        for name in names:
            text = self.sample[name]
            if (
                text.dtype == pl.String
                and text.drop_nulls().head(1000).str.contains(r"^(\S+-[01])( \S+-[01])*$").all()
            ):
                content["list_column"] = {"items": self._use(name), "form": "item-click"}
                self.doubts.append(
                    "list_column: nothing tells whether the order of a list is that on the screen: no position"
                )
                return content["list_column"]
        clicked = [
            n for n in names if re.search(r"click", _key(n)) and not re.search(r"hist|before", _key(n))
        ]
        shown = [
            n
            for n in names
            if re.search(
                r"in_?view|impress|shown|items|candidates|slate|list|expos|displayed|articles|products|videos",
                _key(n),
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
                f"{self.files.path}: no column looks like a time; columns are {', '.join(self.sample.columns)[:300]}"
            )
        _, name, how = found[0]
        clock = next(
            (
                n
                for n in self._left()
                if n != name
                and re.fullmatch(r"hour(_?min(ute)?)?|hh(mm)?|clock|time(_of_day)?|hourmin", _key(n))
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
        first = column.drop_nulls().first()
        form = next((f for shape, f in SHAPES if re.fullmatch(shape, str(first).strip())), None)
        if form is None:
            return None
        if form.startswith("D/M"):
            parts = column.str.extract_groups(r"^(\d+)[/.-](\d+)")
            one, two = (parts.struct.field(k).cast(pl.Int64).max() or 0 for k in "12")  # type: ignore[attr-defined]
            if (one > 12) == (two > 12):  # type: ignore[operator]
                text, rest = str(first), form.removeprefix("D/M/").replace("%.f", "")
                mark = re.search(r"[/.-]", text)
                day_first = mark is not None and mark[0] == "." or not re.search("%p", rest)
                order = "%d{0}%m" if day_first else "%m{0}%d"
                assert mark is not None
                self.doubts.append(
                    f"time: {name!r} ({text}): no row tells whether the day or the month comes first; taken as {order.format('/')}"
                )
                return {"time_format": order.format(mark[0]) + mark[0] + rest}
        return {}

    def _ids(self, content: dict[str, Any], lists: bool) -> None:
        by_values = [n for n in self._left() if self.header and not self._is_tokens(n)]
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
                (n for n in self._left() if _key(n) in ("campaign", "campaign_id", "market", "site")), None
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
        for _, name in self._candidates("event"):
            values = self.sample[name].cast(pl.String).drop_nulls().unique().to_list()
            hits = [v for v in values if re.fullmatch(CLICKS, _key(v))]
            shown = [v for v in values if re.fullmatch(SHOWN, _key(v)) and v not in hits]
            if len(values) <= 50 and hits and len(values) > len(hits):
                content["click"] = {"column": self._use(name), "values": sorted(hits)}
                self.doubts.append(
                    f"click: {name!r} is {' or '.join(sorted(hits))}; other values are {', '.join(sorted(set(values) - set(hits)))}"
                )
                if not shown:
                    self.doubts.append(
                        "no value says that an item was only shown: the click rate may mean nothing"
                    )
                self._events(content, name, values)
                return
        for name in [*(n for _, n in self._candidates("rating")), *(n for n in self._left() if self.header)]:
            number = self.numbers.get(name)
            if number is None or number.null_count() or not 2 <= number.n_unique() <= 100:
                continue
            low, high = float(number.min()), float(number.max())  # type: ignore[arg-type]
            values = number.unique().sort()
            limit = float(values.filter(values >= low + 0.75 * (high - low)).first())  # type: ignore[arg-type]
            content["click"] = f"{self._use(name)} >= {limit:g}"
            self.doubts.append(
                f"click: {name!r} ({low:g} to {high:g}) of at least {limit:g} counts as a click"
            )
            return
        flags = [n for n in self._left() if self._is_flag(n) and self._both(n)]
        if not flags:
            raise InputError(
                f"{self.files.path}: no column looks like a click; columns are {', '.join(self.sample.columns)[:300]}"
            )
        content["click"] = self._use(flags[0])
        self.doubts.append(f"click: {flags[0]!r}, a column of 0 and 1; no name says what was clicked")

    def _both(self, name: str) -> bool:
        return self.sample[name].n_unique() > 1

    def _events(self, content: dict[str, Any], name: str, values: list[str]) -> None:
        """Take further values of an event column as responses."""
        for response, pattern in RESPONSES.items():
            if hits := [v for v in values if re.fullmatch(pattern, _key(v))]:
                content.setdefault("responses", {})[response] = {"column": name, "values": sorted(hits)}
        if hits := [v for v in values if any(re.fullmatch(p, _key(v)) for p in NAMES["purchase"])]:
            content["purchase"] = {"column": name, "values": sorted(hits)}

    def _pages(self, content: dict[str, Any], time: list[str], lists: dict[str, Any] | None) -> None:
        for meaning in ("list", "session"):
            name = next(
                (n for _, n in self._candidates(meaning) if self._is_id(n) or n == content["user"]), None
            )
            if name is None and meaning == "list" and content["user"] in self.sample.columns:
                same = any(re.fullmatch(p, _key(content["user"])) for p in NAMES["list"])
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
            if meaning == "category" and self._is_tokens(name):
                continue
            content[meaning] = self._use(name)
            if (
                number is not None
                and meaning.endswith("_seconds")
                and (re.search(r"ms$|milli", _key(name)) or (number.median() or 0) > 1000)
            ):  # type: ignore[operator]
                content[meaning] = {"column": name, "unit": "ms"}
                self.doubts.append(f"{meaning}: {name!r} is taken to count milliseconds")
        responses = content.setdefault("responses", {})
        for response, pattern in RESPONSES.items():
            name = next(
                (
                    n
                    for n in self._left()
                    if re.fullmatch(pattern, _key(n)) and self._is_flag(n) and self._both(n)
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
        outcome = [n for n in self._left() if re.search(OUTCOME, _key(n))]
        self.used |= set(outcome)
        texts = [
            n
            for n in self._left()
            if re.fullmatch(TEXT, _key(n)) and n not in self.numbers and self.sample[n].dtype == pl.String
        ]
        if texts:
            content["text"] = [self._use(n) for n in texts[:2]]
        categories = [
            n
            for n in self._left()
            if re.fullmatch(USER_CATEGORY, _key(n)) and not self.sample[n].dtype.is_nested()
        ]
        ages = [n for n in self._left() if re.fullmatch(USER_NUMBER, _key(n)) and n in self.numbers]
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
                rows = side.sample(SAMPLE)
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
                    elif re.fullmatch(TEXT, _key(name)) and "text" not in content:
                        content["text"] = [name]
                    elif re.fullmatch(NAMES["category"][0], _key(name)) and "category" not in content:
                        content["category"] = name
                    elif number and rows[name].n_unique() > 2:
                        content.setdefault("numbers", []).append(name)


def _key(name: str) -> str:
    """Return a column name in small letters, words joined by _."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")


def _all(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _column(flag: Any) -> str:
    return str(flag["column"]) if isinstance(flag, dict) else str(flag)


def as_json(content: dict[str, Any]) -> str:
    """Return a mapping as the text of its file, one field a line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}"
