"""Cuts the rows of some users into sessions, pages and slots, and counts everything that is changed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl

from edgerec_gym.logs.table_checks import join_clicks
from edgerec_gym.logs.table_source import SourceTable


def cut_sessions(rows: pl.DataFrame, table: SourceTable) -> tuple[pl.DataFrame, Counter[str]]:
    """Sort rows in the order they were shown, and number sessions, pages and slots.

    Args:
        rows: rows of whole users, columns of :attr:`SourceTable.scan`, in the order of the file.
        table: the table they come from.

    Returns:
        The rows with columns session (0, 1, ...), start (seconds at which it began), page (within the
        session), page_age (place in the page) and slot, by user, then session, then slot; and counts of what
        was dropped and moved.

    Raises:
        InputError: two rows contradict each other; the message names them.
    """
    counts: Counter[str] = Counter()
    if table.mapping.columns.join_clicks:
        rows, counts["rows_of_clicks_joined"] = join_clicks(
            rows, table.mapping.columns.session_gap_minutes * 60
        )
    compared = [name for name in rows.columns if name not in ("row", "history")]
    kept = rows.unique(compared, keep="first", maintain_order=True)
    counts["duplicate_rows_dropped"] = rows.height - kept.height
    late = kept.select((pl.col("seconds") < pl.col("seconds").shift(1).over("user")).sum()).item()
    counts["rows_out_of_time_order_sorted"] = int(late)
    kept = _in_order(kept, table)
    kept = _sessions_and_pages(kept, table.mapping.columns.session_gap_minutes * 60)
    # An unseen card above a seen one was skipped; the user gave no answer to it.
    kept = kept.with_row_index("place")
    last_seen = pl.col("place").filter("seen").max().over("session")
    before = kept.height
    kept = kept.filter(pl.col("seen") | (pl.col("place") > last_seen).fill_null(True)).drop("place")
    counts["unseen_rows_above_a_seen_one_dropped"] = before - kept.height
    kept = kept.with_columns(page_age=_place_in_run(kept["page"].to_numpy()).astype(np.int32))
    return _numbered(kept), counts


def split_long(rows: pl.DataFrame, max_slots: int) -> pl.DataFrame:
    """Continue sessions of more than `max_slots` slots as new sessions; takes and returns numbered rows."""
    session = (rows["session"].to_numpy() << 32) + rows["slot"].to_numpy() // max_slots
    page = (rows["session"].to_numpy() << 32) + rows["page"].to_numpy()
    return _numbered(rows.with_columns(session=_runs(session), page=_runs(page)))


def _in_order(rows: pl.DataFrame, table: SourceTable) -> pl.DataFrame:
    """Sort by user, session, page and place; add page_start and page_end (seconds)."""
    visit = ["user", "session"] if "session" in rows.columns else ["user"]
    by_position = "position" in rows.columns
    if "list" in rows.columns:
        page = [*visit, "list"]
        rows = rows.with_columns(
            page_start=pl.col("seconds").min().over(page), page_end=pl.col("seconds").max().over(page)
        )
        _check_spans(rows, page, table)
        _check_once(rows, [*page, "position" if by_position else "item"], table)
        order = ["page_start", "list", "position" if by_position else "seconds", "row"]
    else:
        rows = rows.with_columns(page_start="seconds", page_end="seconds")
        _check_once(rows, [*visit, "seconds", "position"], table)
        order = ["seconds", "position", "row"]
    if "session" in rows.columns:
        rows = rows.with_columns(start=pl.col("seconds").min().over(visit))
        return rows.sort("user", "start", "session", *order)
    return rows.sort("user", *order)


def _check_spans(rows: pl.DataFrame, page: list[str], table: SourceTable) -> None:
    """Refuse list ids that are reused later: without sessions, they would join pages of different visits."""
    minutes = table.mapping.columns.session_gap_minutes
    late = rows.filter(pl.col("seconds") - pl.col("page_start") > minutes * 60)
    if "session" not in rows.columns and late.height:
        row, name, user = late.sort("row").select("row", "list", "user").row(0)
        table.fail(
            row,
            f"list {name!r} of user {user!r} began more than {minutes:g} minutes before; allowed: list ids "
            "that are not used again by the same user (or map 'session', or raise session_gap_minutes)",
        )


def _check_once(rows: pl.DataFrame, key: list[str], table: SourceTable) -> None:
    """Refuse rows that differ but have the same place: only one of them can have been shown there."""
    twice = rows.filter(pl.struct(key).is_duplicated()).sort("row")
    if twice.height:
        other = twice.filter(pl.struct(key) == pl.struct([pl.lit(twice[0, k]).alias(k) for k in key]))
        what = ", ".join(
            f"{table.mapping.columns.columns.get(k, k)} {twice[0, k]!r}" for k in key if k != "seconds"
        )
        table.fail(
            other[1, "row"],
            f"{what} is the same place as in row {table.row_of(other[0, 'row'])}, but the rows differ; "
            f"allowed: one row "
            'for each card shown, with its click ("join_clicks": true joins clicks that are rows of their '
            "own)",
        )


def _sessions_and_pages(rows: pl.DataFrame, gap: float) -> pl.DataFrame:
    """Number sessions and pages over all rows; `gap` seconds of inactivity end a session without an id."""
    rows = rows.with_columns(new=pl.col("user").ne_missing(pl.col("user").shift(1)))
    if "session" in rows.columns:
        rows = rows.with_columns(pl.col("new") | pl.col("session").ne_missing(pl.col("session").shift(1)))
    else:  # compare with the latest end so far, which need not be the previous row's
        silence = pl.col("page_start") - pl.col("page_end").cum_max().shift(1).over("user")
        rows = rows.with_columns(pl.col("new") | (silence > gap).fill_null(False))
    if "list" in rows.columns:
        turn = pl.col("list").ne_missing(pl.col("list").shift(1))
    else:
        turn = (pl.col("position") <= pl.col("position").shift(1)).fill_null(True)
    return rows.with_columns(
        session=pl.col("new").cast(pl.Int64).cum_sum() - 1,
        page=(pl.col("new") | turn).cast(pl.Int64).cum_sum(),
    )


def _numbered(rows: pl.DataFrame) -> pl.DataFrame:
    """Number slots and pages within sessions, given increasing session and page numbers over all rows."""
    session = _runs(rows["session"].to_numpy())
    slot = _place_in_run(session)
    page = _runs(rows["page"].to_numpy())
    page -= page[np.arange(len(page)) - slot]
    return rows.with_columns(
        session=session, slot=slot.astype(np.int32), page=page.astype(np.int32)
    ).with_columns(start=pl.col("seconds").min().over("session"))


def _runs(key: np.ndarray) -> np.ndarray:
    """Number the runs of equal keys from 0."""
    return np.cumsum(np.diff(key, prepend=key[:1]) != 0)


def _place_in_run(key: np.ndarray) -> np.ndarray:
    """Return the place of each entry in its run of equal keys, from 0."""
    at = np.arange(len(key))
    return at - np.maximum.accumulate(np.where(np.diff(key, prepend=key[:1] - 1) != 0, at, 0))
