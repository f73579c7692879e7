"""The mapping file: a small JSON file that says what the columns of a table mean."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgerec_gym.config import Config, FeedConfig, bounded
from edgerec_gym.documents import OpenDocument, read_object
from edgerec_gym.errors import InputError, shown

REQUIRED = ("user", "item", "time", "click")
OPTIONAL = (
    "list", "position", "session", "seen", "leave", "dwell_seconds", "page_view_seconds", "purchase",
    "card_type", "category", "price", "base_ctr",
)  # fmt: skip
GOODS = "goods"


@dataclass(frozen=True)
class Mapping(Config):
    """The columns of a table by meaning; "" = the table has no such column.

    Attributes:
        user, item, time, click: who was shown what, when (dates, or numbers in `time_unit` since 1970, UTC),
            and whether it was opened.
        list: id of the page that a row belongs to, unique per user (or per session, if there are sessions).
        position: place in that page, increasing; without `list`, a page begins where it does not increase.
        session: id of the visit; without it, a visit ends after `session_gap_minutes` of inactivity.
        seen: whether the user looked at the row; without it, every row counts as seen.
        leave: whether the user left at this row.
        dwell_seconds: time on the card in the feed.
        page_view_seconds: time on the page that the click opened.
        purchase: whether the item was bought in that page view.
        card_type, category: of the item; the same in all of its rows.
        price: price at that time; at least 0, in any currency.
        base_ctr: the ranker's click probability in 0..1.
        embedding_prefix: prefix of the columns prefix0, prefix1, ... that hold the item's embedding.
        card_types: maps values of the column card_type to "goods" or the name of a mix-in type.
        feed: fields of :class:`~edgerec_gym.config.FeedConfig` that the table does not determine.
    """

    user: str
    item: str
    time: str
    click: str
    list: str = ""
    position: str = ""
    session: str = ""
    seen: str = ""
    leave: str = ""
    dwell_seconds: str = ""
    page_view_seconds: str = ""
    purchase: str = ""
    card_type: str = ""
    category: str = ""
    price: str = ""
    base_ctr: str = ""
    embedding_prefix: str = ""
    time_unit: Literal["s", "ms"] = "s"
    session_gap_minutes: float = bounded(30.0, 0.1, 24 * 60)

    @property
    def columns(self) -> dict[str, str]:
        """Column names of the table by meaning, without missing ones and the embedding."""
        return {name: getattr(self, name) for name in (*REQUIRED, *OPTIONAL) if getattr(self, name)}

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


class _Objects(OpenDocument):
    """The fields of a mapping file that are objects; the others are those of Mapping."""

    card_types: dict[str, Any] = {}
    feed: dict[str, Any] = {}


@dataclass(frozen=True)
class TableMapping:
    """A mapping file.

    Attributes:
        columns: the columns and how to read them.
        card_types: maps values of the column card_type to card types: 0 = goods, k = feed card type k - 1.
        feed: fields of FeedConfig to set, including `card_types` if the file names any.
        content: the unchanged content of the file, for the provenance.
    """

    columns: Mapping
    card_types: dict[str, int] = field(default_factory=dict)
    feed: dict[str, Any] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)


def read_mapping(path: str | Path) -> TableMapping:
    """Read and check a mapping file.

    Raises:
        InputError: a field is missing, unknown or wrong; the message names the file and the field.
    """
    content = read_object(path, _Objects)
    values = dict(content)
    card_types, feed = values.pop("card_types", {}), values.pop("feed", {})
    known = [
        *REQUIRED,
        *OPTIONAL,
        "embedding_prefix",
        "time_unit",
        "session_gap_minutes",
        "card_types",
        "feed",
    ]
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"fields are {', '.join(known)}"
            raise InputError(f"{path}: unknown field {shown(name)}; {hint}")
    for name in REQUIRED:
        if not values.get(name):
            raise InputError(f"{path}: {name!r} is missing; required are {', '.join(REQUIRED)}")
    try:
        columns = Mapping.from_dict(values)
        types = _card_types(columns, card_types)
        if types:
            names = [name for name in dict.fromkeys(card_types.values()) if name != GOODS]
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
                f"feed.profile_size is {shown(feed['profile_size'])}; a table has no profile; allowed: 0"
            )
        # The other sizes, and which responses there are, come from the table.
        FeedConfig().replace(**({"pool_size": 1000, "responses": _weighted(feed)} | feed))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not columns.list and not columns.position:
        raise InputError(
            f"{path}: name a column for 'list' or for 'position'; nothing else tells pages apart"
        )
    return TableMapping(columns, types, feed, content)


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
