"""What only all rows together tell: padded lists, clicks in rows of their own, telling file order."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from edgerec_gym.errors import InputError
from edgerec_gym.logs.table_mapping import DURATIONS, RESPONSE, response_columns
from edgerec_gym.logs.table_source import SourceTable

SOON = 600.0  # seconds in which a click that is a row of its own follows what was shown
LEAST = 20  # clicks, or pages, below which nothing is said
Z_LIMIT = 5.0  # standard deviations; chance exceeds them once in two million tables
PADDED_SHARE = 0.2  # of the pages in which one item stands twice


def is_answer(rows: pl.DataFrame) -> pl.Expr:
    """Rows in which the user did something."""
    done = [pl.col("click"), *([pl.col("purchase")] if "purchase" in rows.columns else [])]
    done += [pl.col(name).fill_null(0) > 0 for name in rows.columns if name.startswith(RESPONSE)]
    return pl.any_horizontal(done)


class Watch:
    """Adds up what chunks of rows show, and judges it at the end.

    Args:
        table: the table that the rows come from.
    """

    def __init__(self, table: SourceTable) -> None:
        self.table = table
        self.pages = self.twice = 0
        self.twice_by_item: dict[object, int] = {}
        self.clicked = self.clicked_after = self.other = self.other_after = 0
        self.rank_sum = self.rank_mean = self.rank_variance = 0.0

    def add(self, rows: pl.DataFrame) -> None:
        """Take in one chunk of whole sessions, a result of `cut_sessions`."""
        again = rows.group_by("session", "page", "item").len().filter(pl.col("len") > 1)
        self.twice += int((again["len"] - 1).sum())
        for item, n in again["item"].value_counts().iter_rows():
            self.twice_by_item[item] = self.twice_by_item.get(item, 0) + n
        self._clicks_after(rows)
        self._file_order(rows)

    def _clicks_after(self, rows: pl.DataFrame) -> None:
        """Count rows before which the same user was shown the same item, and did nothing."""
        same = ["user", "item"]
        rows = rows.select(*same, "seconds", "row", "click", answer=is_answer(rows)).sort(
            *same, "seconds", "row"
        )
        after = _again_within(same, SOON) & ~pl.col("answer").shift(1, fill_value=False)
        found = rows.select(
            clicked=pl.col("click").sum(), clicked_after=(pl.col("click") & after).sum(),
            other=(~pl.col("answer")).sum(), other_after=(~pl.col("answer") & after).sum(),
        ).row(0)  # fmt: skip
        self.clicked += found[0]
        self.clicked_after += found[1]
        self.other += found[2]
        self.other_after += found[3]

    def _file_order(self, rows: pl.DataFrame) -> None:
        """Add up the ranks of clicked rows in their pages, in the order of the file."""
        rank = pl.col("row").rank("ordinal")
        pages = (
            rows.filter("seen")
            .group_by("session", "page")
            .agg(n=pl.len(), c=pl.col("click").sum(), s=rank.filter("click").sum())
        )
        self.pages += pages.height
        n, c, s = (pages[name].to_numpy().astype(np.float64) for name in "ncs")
        self.rank_sum += float(s.sum())
        self.rank_mean += float((c * (n + 1) / 2).sum())
        self.rank_variance += float((c * (n - c) * (n + 1) / 12).sum())

    def finish(self) -> None:
        """Add notes to the table; InputError where the log cannot be what the mapping says."""
        columns, notes = self.table.mapping.columns, self.table.notes
        if self.twice:
            item = max(self.twice_by_item, key=lambda k: self.twice_by_item[k])
            if self.pages >= LEAST and self.twice_by_item[item] > PADDED_SHARE * self.pages:
                raise InputError(
                    f"{self.table.path}: item {item!r} stands twice or more in {self.twice_by_item[item]} of "
                    f'{self.pages} pages: it pads lists; leave it out with "rows": '
                    f'["{columns.columns["item"]} != {item}"]'
                )
            notes.append(
                f"{self.twice} rows show an item that their page already holds (the same item twice); kept"
            )
        share, usual = self.clicked_after / max(self.clicked, 1), self.other_after / max(self.other, 1)
        if self.clicked_after >= LEAST and share > 0.5 and usual < share / 4:
            raise InputError(
                f"{self.table.path}: {100 * share:.0f} % of the clicked rows come within {SOON / 60:g} "
                f"minutes after a row "
                "without a click of the same user and item: clicks seem to be rows of their own; write "
                '"join_clicks": true to join them to what was shown'
            )
        z = (self.rank_sum - self.rank_mean) / math.sqrt(self.rank_variance) if self.rank_variance else 0.0
        from_file = not columns.position or columns.list_column is not None
        if from_file and abs(z) > Z_LIMIT:
            where = "before" if z < 0 else "after"
            unused = "it is not used as a position; map 'position' if you have it"
            used = "unless it is the order on the screen, leave out list_column.order"
            notes.append(
                f"the order of rows within a page tells what was clicked (clicked rows stand {where} the "
                f"others, "
                f"z = {z:.0f}): {used if columns.position else unused}"
            )


def check_actions(rows: pl.DataFrame, table: SourceTable) -> None:
    """Refuse two items of a page that have the same index among its candidates."""
    place = ["session", "page", "action"]
    twice = rows.filter(pl.col("item").n_unique().over(place) > 1).sort(*place, "row")
    if twice.height:
        first = twice.row(0, named=True)
        other = twice.filter(pl.col("item") != first["item"]).row(0, named=True)
        table.fail(
            other["row"],
            f"column {table.mapping.columns.action!r} is {other['action']}, as in row "
            f"{table.row_of(first['row'])} of the same page, but the items differ; allowed: the index of the "
            "shown item among the page's candidates",
        )


def join_clicks(rows: pl.DataFrame, gap: float) -> tuple[pl.DataFrame, int]:
    """Join rows that are an answer of their own to the last row before that showed the user the item.

    Args:
        rows: rows of whole users, columns of :attr:`~edgerec_gym.logs.table_source.SourceTable.scan`.
        gap: seconds after which a row belongs to what was shown no more.

    Returns:
        The rows of what was shown, with the answers (the highest value of each), in the order of the
        file; and the number of rows that were joined. An answer without a row before it stays as it is.
    """
    same = ["user", "item"]
    rows = rows.with_columns(answer=is_answer(rows)).sort(*same, "seconds", "row")
    rows = rows.with_columns(shown=(~_again_within(same, gap) | ~pl.col("answer")).cum_sum())
    answers = {"click", *DURATIONS, "leave", *response_columns(rows.columns)}
    highest = [name for name in rows.columns if name in answers]
    others = [name for name in rows.columns if name not in (*highest, "shown", "answer")]
    joined = rows.group_by("shown", maintain_order=True).agg(pl.col(others).first(), pl.col(highest).max())
    columns = [name for name in rows.columns if name not in ("shown", "answer")]
    return joined.select(columns).sort("row"), rows.height - joined.height


def _again_within(same: list[str], gap: float) -> pl.Expr:
    """Rows, sorted by `same` and time, that equal the row before in `same`, at most `gap` seconds later."""
    equal = [pl.col(name) == pl.col(name).shift(1) for name in same]
    soon = pl.col("seconds") - pl.col("seconds").shift(1) <= gap
    return pl.all_horizontal(*equal, soon).fill_null(False)
