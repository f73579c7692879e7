"""`edgerec import`: converts any table of shown items, Parquet or CSV, to a log folder.

Each row of the table is an item that a user was shown; a mapping file names its columns (table_mapping.py).
The table is read in batches of rows: to check every value, then by users to count, then by users to write.
One chunk of users, the items and the distinct clicks are held in memory.

Derived values only look back: base_ctr, base_cvr and user features use the days before the session's day.
Item embeddings come from columns, else from texts (text.py), else from a truncated SVD of user x item clicks.
What is fitted for them, and the scale of prices, use the first 70 % of the days, which `edgerec fit` never
holds out by itself. Within these days an embedding from clicks also depends on the clicks of the same and
later days. Days are in UTC.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from edgerec_gym.answers import (
    DELETE_REASON,
    DISLIKED,
    DWELL_BUCKETS,
    DWELL_EDGES,
    N_EXPOSURE_ACTIONS,
    N_PAGE_VIEW_ACTIONS,
    NEGATIVE_RESPONSES,
    PAGE_VIEW_BUCKETS,
    PAGE_VIEW_EDGES,
)
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.config import CloudConfig, FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.files import atomic_path, one_writer, scratch_folder
from edgerec_gym.logs.ebnerd_features import MIN_READERS, unit_length
from edgerec_gym.logs.looking_back import HOUR, distinct, sums_before
from edgerec_gym.logs.schema import list_column
from edgerec_gym.logs.store import LogReader, LogWriter
from edgerec_gym.logs.table_derived import DerivedColumns
from edgerec_gym.logs.table_items import (
    DAY,
    FIT_SHARE,
    click_rate,
    item_names,
    make_catalog,
    price_level,
    purchase_rate,
)
from edgerec_gym.logs.table_mapping import MOST_POOL, RESPONSE, TableMapping, read_mapping
from edgerec_gym.logs.table_sessions import cut_sessions, split_long
from edgerec_gym.logs.table_source import SourceTable
from edgerec_gym.logs.table_survey import Progress, Survey, take_survey
from edgerec_gym.logs.text import ItemText, item_text

ROWS_PER_PART = 500_000  # rows of the table; a part may have more, since it holds whole users
SCAN_LIMIT = 256
ORDER = "order"  # the named response that purchases without a click become


@one_writer("out_folder")
def import_table(
    table_path: str | Path,
    mapping_path: str | Path,
    out_folder: str | Path,
    progress: Progress | None = None,
    rows_per_part: int = ROWS_PER_PART,
) -> dict[str, Any]:
    """Write a table as a log folder; continues an unfinished log and keeps a finished one.

    Args:
        table_path: a table with one row per item shown, or per list (:mod:`~edgerec_gym.logs.table_files`).
        mapping_path: JSON or TOML file, see :class:`~edgerec_gym.logs.table_mapping.Mapping`.
        out_folder: log folder, which also gets `items.parquet`: the item id of each name in the catalogue.
        progress: called with (parts read or written, total).
        rows_per_part: minimum number of rows of the table in memory at a time.

    Returns:
        A dict of counts (of everything kept, changed and dropped), notes (a list of text) and unidentified.

    Raises:
        InputError: the table or mapping is wrong; the message names the file, and the column or the first
            offending row. Nothing is written.
        MissingExtraError: embeddings must be derived and scikit-learn is not installed.
    """
    mapping = read_mapping(mapping_path)
    with scratch_folder(out_folder) as scratch:
        table = SourceTable(table_path, mapping, scratch)
        return _import(table, mapping, Path(out_folder), progress, rows_per_part)


def _import(
    table: SourceTable, mapping: TableMapping, out: Path, progress: Progress | None, rows_per_part: int
) -> dict[str, Any]:
    provenance: dict[str, Any] = {
        "source": "table",
        "file": table.path.name,
        "digest": table.digest(),
        "mapping": mapping.content,
        "rows_per_part": rows_per_part,
    }
    if (out / "logs.json").exists():
        found = LogReader(out, allow_empty=True)
        if found.complete and all(found.provenance.get(name) == value for name, value in provenance.items()):
            return _result(found.provenance, found.unidentified)
    ranges = table.chunks(rows_per_part)
    survey = take_survey(table, ranges, progress)
    n_fit = int(FIT_SHARE * len(survey.days))
    cut = int(survey.days[n_fit])
    size = table.embedding_size or int(mapping.feed.get("embedding_size", FeedConfig().embedding_size))
    early = np.unique(survey.sums.key[survey.sums.hour < cut * DAY // HOUR])
    wanted = mapping.columns.query or not table.embedding_size
    text = item_text(survey.texts, early) if wanted else None
    catalog, place, highest = make_catalog(
        survey.items, survey.sums, survey.prices, survey.clicks, text, cut, size, table
    )
    derived = DerivedColumns(
        survey, catalog.category[place] if mapping.columns.category else None, text, cut, table
    )
    catalog = catalog.with_table(derived.of_catalogue(np.argsort(place), cut))
    config = _config(mapping, survey, catalog, size, derived, table)
    lengths = survey.session_slots
    known = int(catalog.embeddings.any(axis=1).sum())
    counts = dict(survey.counts) | {
        "sessions": int((-(-lengths // config.max_slots)).sum()),
        "sessions_added_by_max_slots": int((-(-lengths // config.max_slots) - 1).sum()),
        "users": len(table.users),
        "items": len(catalog),
        "items_with_embedding": known,
        "days": len(survey.days),
    }
    provenance |= {
        "counts": counts,
        "first_day": str(datetime.date(1970, 1, 1) + datetime.timedelta(days=int(survey.days[0]))),
        "notes": _notes(table, counts, config, text),
    }
    unidentified = mapping.columns.unidentified
    writer = LogWriter(out, config, catalog, provenance, unidentified)
    with atomic_path(out / "items.parquet") as temporary:
        names = item_names(survey.items["item"])
        pl.DataFrame({"name": names, "item": survey.items["item"]}).write_parquet(temporary)
    done = writer.parts
    for k, rows in enumerate(table.read(ranges[done:]), start=done):
        rows = split_long(_coded(cut_sessions(rows, table)[0], table, survey.items), config.max_slots)
        writer.write(_part(rows, writer.sessions, survey, catalog, place, highest, derived, text, table))
        if progress:
            progress(len(ranges) + k + 1, 2 * len(ranges))
    writer.finish()
    return _result(provenance, unidentified)


def _result(provenance: dict[str, Any], unidentified: tuple[str, ...]) -> dict[str, Any]:
    return {
        "counts": dict(provenance["counts"]),
        "notes": list(provenance["notes"]),
        "unidentified": list(unidentified),
    }


def _config(
    mapping: TableMapping,
    survey: Survey,
    catalog: Catalog,
    size: int,
    derived: DerivedColumns,
    table: SourceTable,
) -> FeedConfig:
    """Return the feed's config: sizes from the mapping file, else as large as the table's items allow."""
    goods = np.bincount(catalog.category[catalog.card_type == 0])
    cloud = CloudConfig(  # the logged feed's ranking is unknown, so the cloud ranks by base_ctr alone
        long_term_weight=0.0,
        recent_weight=0.0,
        probed_categories=int(min(max(len(goods), int(catalog.category.max()) + 1), 10_000)),
        scan_limit=SCAN_LIMIT,
    )
    feed = dict(mapping.feed)
    names = _response_names(survey.counts, table)
    if "responses" in feed:
        raise InputError(f"{table.path}: feed.responses: the mapped columns determine it; leave it out")
    cloud = cloud.replace(**({"supply": "logged"} | feed.pop("cloud", {})))
    reachable = int(np.minimum(goods, SCAN_LIMIT).sum())
    page = int(feed.get("page_size", np.clip(np.median(survey.page_slots), 2, 500)))
    # Nothing is below the card in focus where pages are not known as they were on screen.
    lookahead = int(feed.get("lookahead", FeedConfig().lookahead if mapping.columns.position else 0))
    latency = int(feed.get("request_latency", min(FeedConfig().request_latency, page - 1)))
    # Twice the longest session, since a session that reaches max_slots counts as truncated.
    slots = int(feed.get("max_slots", np.clip(2 * survey.session_slots.max(), 4 + lookahead, 200)))
    least = max(3, int(survey.page_slots.max()), page + latency, survey.highest_action + 1)
    if mapping.columns.propensity:  # off-policy estimates need all items of a day as candidates
        day = distinct(survey.sums.hour * HOUR // DAY, survey.sums.key)[0]
        daily = int(np.bincount(day - day.min()).max())
        least = max(least, daily) if daily <= MOST_POOL else least
    pool = int(feed.get("pool_size", least))
    if cloud.supply != "logged":
        least = page + latency
        slots = int(feed.get("max_slots", min(slots, reachable - least)))
        pool = int(feed.get("pool_size", np.clip(reachable - slots, least, min(3 * page, MOST_POOL))))
        if slots < 4 or pool + slots > reachable:
            raise InputError(
                f"{table.path}: {reachable} goods are too few for pages of {page}: pool_size + max_slots = "
                f"{pool + max(slots, 4)} different ones are needed; set smaller sizes under 'feed' of the "
                "mapping"
            )
    elif pool > MOST_POOL:
        raise InputError(
            f"{table.path}: a page has {pool:,} rows; allowed: up to {MOST_POOL:,}; is "
            f"{mapping.columns.list!r} the id of a page?"
        )
    sizes = {
        "page_size": page,
        "pool_size": pool,
        "max_slots": slots,
        "lookahead": lookahead,
        "request_latency": latency,
        "embedding_size": size,
        "profile_size": len(derived.user_names),
        "item_columns": derived.item_names,
        "responses": names,
    }
    config = FeedConfig(cloud=cloud).replace(**(sizes | feed))
    weights = dict(config.reward.responses)
    if ORDER in names and ORDER not in weights:  # each purchase counts once, and the same
        weights[ORDER] = config.reward.purchase
        config = config.replace(reward=config.reward.replace(responses=weights))
    return config


def _response_names(counts: Mapping[str, int], table: SourceTable) -> tuple[str, ...]:
    """Return the named responses: the mapped ones, and orders if there are purchases without a click."""
    names = [name.removeprefix(RESPONSE) for name in table.columns if name.startswith(RESPONSE)]
    if counts.get("purchases_without_a_click") and ORDER not in names:
        names.append(ORDER)
    return tuple(names)


def _notes(
    table: SourceTable, counts: dict[str, int], config: FeedConfig, text: ItemText | None
) -> list[str]:
    """Return what a reader of the log should know, in words."""
    columns = table.mapping.columns
    early = counts["days"] > 1
    apart, empty = (counts.get(name, 0) for name in ("purchases_without_a_click", "empty_responses"))
    several = counts.get("items_with_several_texts", 0)
    vectors = "" if text is None else text.description
    from_clicks = not table.embedding_size and text is None
    notes = {
        f"{counts['duplicate_rows_dropped']} rows equal an earlier one in every mapped column; dropped": (
            counts["duplicate_rows_dropped"]
        ),
        f"{counts['rows_out_of_time_order_sorted']} rows are out of time order within their user; sorted": (
            counts["rows_out_of_time_order_sorted"]
        ),
        f"{counts['unseen_rows_above_a_seen_one_dropped']} unseen rows above a seen one were dropped": (
            counts["unseen_rows_above_a_seen_one_dropped"]
        ),
        f"{counts['sessions_without_a_seen_row']} sessions have no seen row; kept, but they teach nothing": (
            counts["sessions_without_a_seen_row"]
        ),
        f"{counts['sessions_added_by_max_slots']} sessions were added: longer ones continue after "
        f"{config.max_slots} slots": counts["sessions_added_by_max_slots"],
        "one user only: no other users to hold out; the learned user is this one": counts["users"] == 1,
        "one day only: some sessions of that day are held out; no earlier day for base_ctr": not early,
        "every seen row is clicked: rows without a click are missing; the click rate means nothing": (
            counts["clicks"] == counts["slots_seen"]
        ),
        "no column 'seen': every row counts as looked at": not columns.seen,
        "no item embeddings: zeros, as there is no earlier day with enough clicks": (
            not counts["items_with_embedding"]
        ),
        "item embeddings are an SVD of the clicks of the first 70 % of the days": (
            from_clicks and counts["items_with_embedding"]
        ),
        f"item embeddings come from texts: {vectors}": not table.embedding_size and text is not None,
        f"the query's match with the items' texts is an item column: {vectors}": columns.query
        and text is not None,
        "text of the items: not used, since there are columns for their embeddings, and no queries": (
            columns.text and table.embedding_size and not columns.query
        ),
        "text of the items: every one is empty; not used": columns.text and not counts["items_with_text"],
        "query: not used, since the items have no text to match it with": columns.query and text is None,
        f"{several} items have several texts; the first one counts": several,
        "item embeddings were scaled to length 1": table.embedding_size,
        "base_ctr is the item's smoothed click rate of the days before": not columns.base_ctr,
        "price_level is 0: no column 'price'": not columns.price,
        "base_cvr is 0: no column 'purchase'": not columns.purchase,
        "freshness is 1 / (1 + days since the item first appeared)": True,
        "of the exposure actions only the duration is known; the others are 0": columns.dwell_seconds,
        "of the page-view actions besides the duration only buy is known; the others are 0": columns.purchase,
        "the feed's rules for mix-in cards are not known: none": columns.card_type,
        f"{apart} purchases without a click are the response {ORDER!r}, with the weight of a purchase": (
            apart and f"{RESPONSE}{ORDER}" not in table.columns
        ),
        f"{apart} purchases without a click do not count: the response {ORDER!r} is another column": (
            apart and f"{RESPONSE}{ORDER}" in table.columns
        ),
        f"{empty} empty values of responses count as 0": empty,
    }
    return [*table.notes, *(text for text, applies in notes.items() if applies)]


def _coded(rows: pl.DataFrame, table: SourceTable, items: pl.DataFrame) -> pl.DataFrame:
    """Replace users and items by their places in the sorted ids."""
    users = table.users.select("user", user_code=pl.int_range(pl.len(), dtype=pl.Int64))
    places = items.select("item", item_code=pl.int_range(pl.len(), dtype=pl.Int64))
    rows = rows.join(users, on="user", maintain_order="left").join(places, on="item", maintain_order="left")
    return rows.drop("user", "item").rename({"user_code": "user", "item_code": "item"})


def _part(
    rows: pl.DataFrame,
    first_session: int,
    survey: Survey,
    catalog: Catalog,
    place: np.ndarray,
    highest: float,
    derived: DerivedColumns,
    text: ItemText | None,
    table: SourceTable,
) -> dict[str, Any]:
    """Return columns of the log schema for coded rows."""
    columns, n = table.mapping.columns, rows.height
    seen, click, item = (rows[name].to_numpy() for name in ("seen", "click", "item"))
    start, seconds = rows["start"].to_numpy(), rows["seconds"].to_numpy()
    day = (start // DAY).astype(np.int64)
    no, nothing = np.zeros(n, np.bool_), pa.nulls(n)
    slot = rows["slot"].to_numpy()
    answers: dict[str, Any] = {"exposure_actions": nothing, "page_view_actions": nothing, "leave": nothing}
    names = _response_names(survey.counts, table)
    given = _responses(rows, names)
    if names:
        answers["responses"] = list_column(given, seen)
    if columns.dwell_seconds:
        exposure = np.zeros((n, N_EXPOSURE_ACTIONS), np.float32)
        for name, values in zip(names, given.T, strict=True):
            if name in NEGATIVE_RESPONSES:
                exposure[values > 0, DELETE_REASON] = DISLIKED
        exposure[:, 0] = _bucket(rows["dwell_seconds"], DWELL_EDGES) / (DWELL_BUCKETS - 1)
        answers["exposure_actions"] = list_column(exposure, seen)
    if columns.page_view_seconds or columns.purchase:
        actions = np.zeros((n, N_PAGE_VIEW_ACTIONS), np.float32)
        if columns.page_view_seconds:
            actions[:, 0] = _bucket(rows["page_view_seconds"], PAGE_VIEW_EDGES) / (PAGE_VIEW_BUCKETS - 1)
        if columns.purchase:
            actions[:, 2] = rows["purchase"].to_numpy()
        answers["page_view_actions"] = list_column(actions, click)
    if columns.leave:
        answers["leave"] = pa.array(rows["leave"].to_numpy(), mask=~seen)
    first_hour = rows["page_start"].to_numpy().astype(np.int64) // HOUR
    shipped = derived.of_rows(rows, item, first_hour)
    # An embedding derived from clicks exists because of them, so it is hidden until enough were made.
    known = np.full(n, True)
    if not table.embedding_size and text is None:
        one, hour, at = distinct(item, day * DAY // HOUR)
        known = (survey.sums.before(one, hour)[:, 1] >= MIN_READERS)[at]
    ctr = rows["base_ctr"].to_numpy() if columns.base_ctr else click_rate(survey.sums, item, day)
    return answers | {
        "session": first_session + rows["session"].to_numpy(),
        "user": rows["user"].to_numpy(),
        "day": day - survey.days[0],
        "hour": start % DAY // 3600,
        "slot": slot,
        "time": seconds - start,
        "item": place[item],
        "card_type": catalog.card_type[place[item]],
        "page": rows["page"].to_numpy(),
        "page_age": rows["page_age"].to_numpy(),
        "page_requested": no,
        "candidates": nothing,  # the table does not hold the other candidates
        "cards": nothing,
        "user_features": _user_features(rows, day, slot == 0, survey, catalog.embeddings[place], derived),
        "embedding_known": known,
        "item_columns": list_column(shipped, np.ones(n, np.bool_)),
        "price_level": price_level(rows["price"].to_numpy(), highest) if columns.price else np.zeros(n),
        "base_ctr": ctr,
        "base_cvr": purchase_rate(survey.sums, item, day) if columns.purchase else np.zeros(n),
        "freshness": derived.freshness(item, first_hour),
        "action": rows["action"].to_numpy() if columns.action else nothing,
        "propensity": rows["propensity"].to_numpy() if columns.propensity else nothing,
        "randomised": rows["propensity"].to_numpy() < 1 if columns.propensity else no,
        "request": no,
        "request_propensity": nothing,
        "answered": seen,
        "click": pa.array(click, mask=~seen),
    }


def _responses(rows: pl.DataFrame, names: tuple[str, ...]) -> np.ndarray:
    """Return the named responses of each row, (n, R) float32; empty ones are 0."""
    values = np.zeros((rows.height, len(names)), np.float32)
    for k, name in enumerate(names):
        if RESPONSE + name in rows.columns:
            values[:, k] = rows[RESPONSE + name].cast(pl.Float64).fill_null(0.0).to_numpy()
        else:  # orders
            values[:, k] = (rows["purchase"] & ~rows["click"]).to_numpy()
    return values


def _user_features(
    rows: pl.DataFrame,
    day: np.ndarray,
    first: np.ndarray,
    survey: Survey,
    embeddings: np.ndarray,
    derived: DerivedColumns,
) -> pa.Array:
    """Return the user features, on each session's first slot.

    These are the mean direction of the user's clicks on earlier days, with those that the log tells of before
    its first day, then what else is known of the user.
    """
    user = rows["user"].to_numpy()
    low, high = int(user.min()), int(user.max())
    clicks = survey.clicks.filter(pl.col("user").is_between(low, high)).sort("user", "day", "item")
    width = int(survey.sums.hour.max()) * HOUR // DAY + 2
    key = clicks["user"].to_numpy() * width + clicks["day"].to_numpy()
    sums = sums_before(key, embeddings[clicks["item"].to_numpy()], user[first] * width, day[first])
    sums += derived.history(rows, first, embeddings)
    values = np.zeros((len(user), embeddings.shape[1] + len(derived.user_names)), np.float32)
    values[first] = np.concatenate([unit_length(sums), derived.of_users(rows, first)], axis=1)
    return list_column(values, first)


def _bucket(seconds: pl.Series, edges: tuple[float, ...]) -> np.ndarray:
    return np.searchsorted(edges, seconds.fill_null(0.0).to_numpy(), side="right")
