"""The mapping file: a small JSON or TOML file that says what the columns of a table mean."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgerec_gym.config import FeedConfig
from edgerec_gym.documents import Document, read_object
from edgerec_gym.errors import InputError, shown

REQUIRED = ("user", "item", "time", "click")
FLAGS = ("click", "seen", "leave", "purchase")
IDS = ("user", "item", "session", "list")
TEXTS = ("card_type", "category")
DURATIONS = ("dwell_seconds", "page_view_seconds")
NUMBERS = ("position", "price", "base_ctr", "propensity", "action")
OPTIONAL = (
    "list", "position", "session", "seen", "leave", "dwell_seconds", "page_view_seconds", "purchase",
    "card_type", "category", "price", "base_ctr", "propensity", "action",
)  # fmt: skip
GOODS = "goods"
MOST_POOL = 1000  # FeedConfig.pool_size
# What the names of the scan's optional columns begin with; then the name in the mapping.
NUMBER, USER_NUMBER, USER_CATEGORY, RESPONSE = "number:", "user_number:", "user_category:", "response:"
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
COMPARISON = re.compile(r"^\s*(\S.*?)\s*(>=|<=|!=|==|=|>|<)\s*(\S.*?)\s*$")
Names = tuple[str, ...]


class Values(Document):
    """A flag: true where the column has one of these values."""

    column: str
    values: tuple[str | int | float | bool, ...]


class Duration(Document):
    """A column of durations that says its unit: s, ms, us or ns."""

    column: str
    unit: str


class SideTable(Document):
    """A table with one row per item or user, beside the mapping file or the table.

    Attributes:
        file: the file, a folder of parts or a glob.
        key: its column with the id; "" = the column is named as in the table of what was shown.
        separator, header: as in the mapping.
    """

    file: str
    key: str = ""
    separator: str = ""
    header: Names = ()


class ListColumn(Document):
    """A table with one row per list: a column holds the items, the first shown first.

    Attributes:
        items: the column, a list, or text with blanks, commas or | between the ids.
        form: "item" = ids; "item-click" = ids that end in -1 where they were clicked and in -0 where not.
        clicked: the column of the clicked ones of these items, a list or one id.
        clicks: the column of 0 and 1, a list with one for each item.
        order: "screen" = the place in the list is the position on the screen; "" = it means nothing.
    """

    items: str
    form: str = "item"
    clicked: str = ""
    clicks: str = ""
    order: str = ""


Column = str | Names
Flag = str | Values


class Mapping(Document):
    """The columns of a table by meaning; "" = the table has no such column.

    An id may be a list of columns. A flag is a column of 0 and 1, a comparison such as "rating >= 4", or
    {"column": "event", "values": ["click", "open"]}.

    Attributes:
        user, item, time, click: who was shown what, when, and whether it was opened. Times are dates, or
            numbers in `time_unit` since 1970 (UTC), or [date, hour of the day].
        list: id of the page that a row belongs to, unique per user (or per session, if there are sessions);
            "row number" makes every row a page of its own.
        position: place in that page, increasing; without `list`, a page begins where it does not increase.
        session: id of the visit; without it, a visit ends after `session_gap_minutes` of inactivity.
        seen: whether the user looked at the row; without it, every row counts as seen.
        leave: whether the user left at this row.
        dwell_seconds: time on the card in the feed; {"column": ..., "unit": "ms"} for other units.
        page_view_seconds: time on the page that the click opened; units as for `dwell_seconds`.
        purchase: whether the item was bought.
        card_type, category: of the item; the same in all of its rows.
        price: price at that time; at least 0, in any currency.
        base_ctr: the ranker's click probability in 0..1.
        propensity: probability with which the logging policy showed this item here, above 0 and up to 1.
        action: the logging policy's choice: the index of the shown item among its candidates, from 0. Without
            it, a page's candidates are known by the place that they were shown at.
        responses: further responses by name, each a flag or a column of numbers in 0..1; empty = not known.
        numbers: numeric columns of the item at that time; may be empty.
        user_numbers, user_categories: columns of the user at that time, numeric and text; may be empty.
        text: text of the item, one or more columns, which its embedding comes from; may be empty.
        query: what the user searched for, as text, which is matched with that of the item; may be empty.
        history: ids of the items that the user had clicked before, as a list column.
        items, users: tables beside this one that may hold any column of the item or of the user.
        embedding_prefix: prefix of the columns prefix0, prefix1, ... that hold the item's embedding.
        list_column: for a table with one row per list instead of one row per item.
        join_clicks: clicks (and other responses) are rows of their own, after the row of what was shown.
        rows: conditions, written as flags, that rows must fulfil; others are left out.
        missing: texts that stand for a missing value, besides the empty one.
        time_unit: of numbers: s, ms, us or ns.
        time_zone: of dates without one, such as "Asia/Shanghai".
        time_format: of dates, as of Python's strptime, such as "%d/%m/%Y %H:%M"; also for 20240131.
        separator, header: of text files: what stands between values; the column names if there is no header.
        card_types: maps values of the column card_type to "goods" or the name of a mix-in type.
        feed: fields of :class:`~edgerec_gym.config.FeedConfig` that the table does not determine.
    """

    user: Column = ""
    item: Column = ""
    time: Column = ""
    click: Flag = ""
    list: Column = ""
    position: str = ""
    session: Column = ""
    seen: Flag = ""
    leave: Flag = ""
    dwell_seconds: str | Duration = ""
    page_view_seconds: str | Duration = ""
    purchase: Flag = ""
    card_type: str = ""
    category: str = ""
    price: str = ""
    base_ctr: str = ""
    propensity: str = ""
    action: str = ""
    responses: dict[str, Flag] = {}
    numbers: Names = ()
    user_numbers: Names = ()
    user_categories: Names = ()
    text: Column = ""
    query: str = ""
    history: str = ""
    items: SideTable | None = None
    users: SideTable | None = None
    embedding_prefix: str = ""
    list_column: ListColumn | None = None
    join_clicks: bool = False
    rows: tuple[Flag, ...] = ()
    missing: Names = ()
    time_unit: str = "s"
    time_zone: str = ""
    time_format: str = ""
    separator: str = ""
    header: Names = ()
    session_gap_minutes: float = 30.0
    card_types: dict[str, Any] = {}
    feed: dict[str, Any] = {}

    @property
    def columns(self) -> dict[str, str]:
        """What names the column of each meaning, for messages; without missing ones and the embedding."""
        return {
            name: described(getattr(self, name)) for name in (*REQUIRED, *OPTIONAL) if getattr(self, name)
        }

    @property
    def unidentified(self) -> tuple[str, ...]:
        """What these columns do not identify (:data:`edgerec_gym.scenario.UNIDENTIFIED`)."""
        lacking = {
            "position": ("position", "neighbours", "order_within_page"),
            "dwell_seconds": ("exposure_actions",),
            "page_view_seconds": ("page_view_duration",),
            "purchase": ("page_view_actions",),
            "leave": ("leave",),
            "category": ("categories",),
            "card_type": ("cards",),
        }
        return tuple(
            reason for name, reasons in lacking.items() if not getattr(self, name) for reason in reasons
        )


@dataclass(frozen=True)
class TableMapping:
    """A mapping file.

    Attributes:
        columns: the columns and how to read them.
        card_types: maps values of the column card_type to card types: 0 = goods, k = feed card type k - 1.
        feed: fields of FeedConfig to set, including `card_types` if the file names any.
        content: the unchanged content of the file, for the provenance.
        folder: the folder of the file, where side tables are looked for.
    """

    columns: Mapping
    card_types: dict[str, int] = field(default_factory=dict)
    feed: dict[str, Any] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()


def read_mapping(path: str | Path) -> TableMapping:
    """Read and check a mapping file; TOML if its name ends in .toml, else JSON.

    Raises:
        InputError: a field is missing, unknown or wrong; the message names the file and the field.
    """
    content = read_object(path, Mapping, toml=Path(path).suffix == ".toml")
    return mapping_from(content, path)


def mapping_from(content: dict[str, Any], path: str | Path) -> TableMapping:
    """Check the content of a mapping file; errors as of :func:`read_mapping`."""
    columns = msgspec.convert(content, Mapping)
    columns = _with_list_column(columns)
    for name in REQUIRED:
        if not getattr(columns, name):
            raise InputError(f"{path}: {name!r} is missing; required are {', '.join(REQUIRED)}")
    try:
        _check(columns)
        types = _card_types(columns, columns.card_types)
        feed = dict(columns.feed)
        if types:
            names = [name for name in dict.fromkeys(columns.card_types.values()) if name != GOODS]
            n = len(names)  # the table does not tell the feed's rules, so there are none
            feed = {
                "card_types": names,
                "share_caps": [1.0] * n,
                "gaps": [0] * n,
                "first_slots": [0] * n,
            } | feed
        if columns.embedding_prefix and "embedding_size" in feed:
            raise InputError("feed.embedding_size: embedding_prefix already determines it; leave it out")
        if feed.get("profile_size"):
            raise InputError(
                f"feed.profile_size is {shown(feed['profile_size'])}; the table determines it; leave it out"
            )
        # The other sizes, and which responses there are, come from the table.
        FeedConfig().replace(**({"pool_size": 1000, "responses": _weighted(feed)} | feed))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not columns.list and not columns.position:
        raise InputError(
            f"{path}: name a column for 'list' or for 'position'; nothing else tells pages apart"
        )
    return TableMapping(columns, types, feed, content, Path(path).parent)


def response_columns(columns: Iterable[str]) -> list[str]:
    """Return the scan's columns that hold responses besides the click."""
    return [name for name in columns if name == "purchase" or name.startswith(RESPONSE)]


def described(value: Any) -> str:
    """Return what names a column, in one line."""
    if isinstance(value, tuple):
        return ", ".join(value)
    return value.column if isinstance(value, Values | Duration) else value


LIST_ITEM, LIST_CLICK, LIST_PLACE, ROW = (
    "item of the list",
    "click in the list",
    "place in the list",
    "row number",
)


def _with_list_column(columns: Mapping) -> Mapping:
    """Name the columns that an exploded list gets (:mod:`edgerec_gym.logs.table_lists`)."""
    if columns.list_column is None:
        return columns
    return msgspec.structs.replace(
        columns,
        item=LIST_ITEM,
        click=LIST_CLICK,
        list=columns.list or ROW,
        position=LIST_PLACE if columns.list_column.order else "",
    )


def _check(columns: Mapping) -> None:
    for name, value, allowed in (
        ("time_unit", columns.time_unit, UNITS),
        *((n, v.unit, UNITS) for n in DURATIONS if isinstance(v := getattr(columns, n), Duration)),
    ):
        if value not in allowed:
            raise InputError(f"{name}: the unit must be one of {', '.join(allowed)}, got {shown(value)}")
    if not 0.1 <= columns.session_gap_minutes <= 24 * 60:
        raise InputError(
            f"session_gap_minutes = {columns.session_gap_minutes:g} is out of range; allowed: 0.1 to "
            f"{24 * 60}"
        )
    if columns.time_zone:
        try:
            zoneinfo.ZoneInfo(columns.time_zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise InputError(
                f"time_zone {shown(columns.time_zone)} is not known; allowed: names such as 'Asia/Shanghai'"
            ) from None
    if isinstance(columns.time, tuple) and len(columns.time) != 2:
        raise InputError(f"time names {len(columns.time)} columns; allowed: one, or [date, hour of the day]")
    for name, side in (("", columns), ("items.", columns.items), ("users.", columns.users)):
        if side is not None and side.separator and not _is_separator(side.separator):
            raise InputError(
                f"{name}separator {shown(side.separator)} must be one character that is no letter, digit, "
                f"quote "
                "or line end; or several, such as '::'"
            )
    lists = columns.list_column
    if lists is not None:
        if lists.form not in ("item", "item-click"):
            raise InputError(f"list_column.form must be one of item, item-click, got {shown(lists.form)}")
        if lists.order not in ("", "screen"):
            raise InputError(f"list_column.order must be 'screen' or left out, got {shown(lists.order)}")
        told = bool(lists.clicked) + bool(lists.clicks) + (lists.form == "item-click")
        if told != 1:
            raise InputError(
                "list_column needs one of 'clicked', 'clicks' and \"form\": \"item-click\", which say what "
                "was "
                f"clicked; it has {told}"
            )
    for name in columns.responses:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or name in (*FLAGS, *DURATIONS):
            raise InputError(
                f"responses: {shown(name)} is no name of a response; allowed: up to 40 small letters, "
                f"digits and "
                f"_, other than {', '.join((*FLAGS, *DURATIONS))}"
            )


def _is_separator(text: str) -> bool:
    return 0 < len(text) <= 8 and text.isascii() and not re.search(r'[A-Za-z0-9"\r\n\x1f]', text)


def _weighted(feed: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the responses that the feed's reward weights."""
    reward = feed.get("reward")
    weights = reward.get("responses") if isinstance(reward, dict) else None
    return tuple(weights) if isinstance(weights, dict) else ()


def _card_types(columns: Mapping, values: dict[str, Any]) -> dict[str, int]:
    """Return the card type of each value of the column."""
    if bool(values) != bool(columns.card_type):
        raise InputError("'card_type' and 'card_types' need each other: a column, and what its values mean")
    for name in values.values():
        if not isinstance(name, str) or not name:
            raise InputError(f"card_types: {shown(name)} must be {GOODS!r} or the name of a mix-in type")
    if values and GOODS not in values.values():
        raise InputError(f"card_types: no value means {GOODS!r}; a feed needs goods")
    mixed = [name for name in dict.fromkeys(values.values()) if name != GOODS]
    if values and not mixed:
        raise InputError("card_types: names no mix-in type; leave out 'card_type' where all are goods")
    return {value: 0 if name == GOODS else 1 + mixed.index(name) for value, name in values.items()}
