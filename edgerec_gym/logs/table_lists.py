"""Tables with one row per list: a column holds the items of the list, as a list or as text."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from edgerec_gym.errors import InputError
from edgerec_gym.logs.table_mapping import LIST_CLICK, LIST_ITEM, LIST_PLACE, ListColumn
from edgerec_gym.logs.table_time import literal

TOKEN = r"""[^\s,;|\[\](){}'"]+"""


def tokens(name: str, kind: pl.DataType) -> pl.Expr:
    """Return a column of lists as lists of text; text is split at blanks, commas, semicolons and |."""
    column = literal(name)
    if isinstance(kind, pl.List):
        return column.cast(pl.List(pl.String))
    return column.cast(pl.String).str.extract_all(TOKEN)


def explode(
    raw: pl.LazyFrame,
    lists: ListColumn,
    also: list[str],
    fail: Callable[[int, str], None],
    row: str,
    where: str,
) -> pl.LazyFrame:
    """Return one row per item, with the columns :data:`LIST_ITEM`, :data:`LIST_CLICK` and :data:`LIST_PLACE`.

    Args:
        raw: the table.
        lists: which columns hold the lists.
        also: further columns of lists, with one value for each item.
        fail: raises InputError about a row.
        row: the column of row numbers.
        where: the file, for messages.

    Raises:
        InputError: a column holds no lists, or lists that belong together have different lengths.
    """
    kinds = raw.collect_schema()
    for name in (lists.items, lists.clicked, lists.clicks):
        if name and kinds[name].is_nested() and not isinstance(kinds[name], pl.List):
            raise InputError(f"{where}: column {name!r} must hold lists, not {kinds[name]}")
    kind = kinds[lists.items]
    integers = isinstance(kind, pl.List) and kind.inner.is_integer()
    items = literal(lists.items) if integers else tokens(lists.items, kind)
    raw = raw.with_columns(items.alias(LIST_ITEM)).filter(pl.col(LIST_ITEM).list.len() > 0)
    raw = raw.with_columns(pl.int_ranges(pl.col(LIST_ITEM).list.len()).alias(LIST_PLACE))
    together = [LIST_ITEM, LIST_PLACE, *also]
    if lists.clicks:
        raw = raw.with_columns(tokens(lists.clicks, kinds[lists.clicks]).alias(LIST_CLICK))
        together.append(LIST_CLICK)
    for name in together[2:]:
        uneven = pl.col(LIST_ITEM).list.len() != literal(name).list.len().fill_null(0)
        first = raw.select(pl.col(row).filter(uneven).min()).collect(engine="streaming").item()
        if first is not None:
            shown = lists.clicks if name == LIST_CLICK else name
            fail(
                int(first),
                f"the lists {lists.items!r} and {shown!r} have different lengths; allowed: equal ones",
            )
    if lists.clicked:
        raw = raw.with_columns(tokens(lists.clicked, kinds[lists.clicked]).fill_null([]).alias(LIST_CLICK))
    raw = raw.explode(together, empty_as_null=False)
    if lists.clicked:
        return raw.with_columns(pl.col(LIST_ITEM).cast(pl.String).is_in(pl.col(LIST_CLICK)).alias(LIST_CLICK))
    if lists.form == "item-click":
        parts = pl.col(LIST_ITEM).str.extract_groups(r"^(.+)[-:_=]([01])$")
        return raw.with_columns(
            parts.struct.field("1").alias(LIST_ITEM), parts.struct.field("2").alias(LIST_CLICK)
        )
    return raw
