"""EB-NeRD (Ekstra Bladet news, official bundle layout) as a log folder.

An impression is one page. Its in-view articles are consecutive slots in listed order, which is not their
order on screen. A session is EB-NeRD's (user, session_id) in order of time; a session with more slots than
`FeedConfig.max_slots` continues as a new one at the next page. The train week is days 0..6 and the validation
week days 7..13; day and hour are those of the session's start. A click's page-view duration is
`next_read_time`, the reading time of the first clicked article; for further clicks in the same impression it
is unknown. Scroll percentages have no counterpart among the page-view actions and are left out.

Item scalars (:data:`SCALARS`) are streaming: they use impressions of earlier seconds only, see
:mod:`edgerec_gym.logs.ebnerd_features`. User features are the unit-length mean embedding of the articles
read before the week, then :data:`PROFILE`. The catalogue holds all articles that were ever in view, with
their scalars at the start of the validation week. Articles not seen by then have the scalars of a new one.

:data:`UNIDENTIFIED` lists what the data does not identify. There are further limitations. Impressions without
a click were not published. Most articles are newer than the reads that embeddings are derived from, so they
have none. Which articles count as in view, and how many, may depend on how far the user scrolled before the
click.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from edgerec_gym.answers import N_PAGE_VIEW_ACTIONS, PAGE_VIEW_BUCKETS, PAGE_VIEW_EDGES
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.config import CloudConfig, FeedConfig
from edgerec_gym.files import one_writer
from edgerec_gym.logs import ebnerd_features as features
from edgerec_gym.logs.ebnerd_reference import ebnerd_reference, write_reference
from edgerec_gym.logs.ebnerd_source import FILES, SPLITS, Bundle, read_bundle
from edgerec_gym.logs.looking_back import (
    HOUR,
    ITEM_COLUMNS,
    PAGE_COLUMNS,
    USER_ITEM_COLUMNS,
    HourlySums,
    item_columns,
    page_columns,
    user_item_columns,
)
from edgerec_gym.logs.schema import list_column
from edgerec_gym.logs.store import LogReader, LogWriter

__all__ = ["convert_ebnerd", "ebnerd_reference", "is_ebnerd"]

UNIDENTIFIED = (
    "position",
    "neighbours",
    "exposure_actions",
    "page_view_actions",
    "leave",
    "categories",
    "cards",
    "order_within_page",
)
SCALARS = {
    "base_ctr": "popularity: sigmoid of a logit of decayed click and view shares",
    "base_cvr": "repeats: how often the user was shown the article before, 0..4, divided by 4",
    "freshness": "exp(-age / 24 h); age since first shown, or first read before the train week",
    "price_level": "share of all recent views, half-life 30 minutes: log(1 + 4000 x share) / log(4001)",
}
PROFILE = (
    "device: desktop -1, mobile or unknown 0, tablet 1",
    "subscriber: no -1, unknown 0, yes 1",
    "articles read before the week: log10(1 + n) / 1.5 - 1, at most 1",
    "single sign-on: no -1, unknown 0, yes 1",
)
KNOWN_CATEGORIES, UNKNOWN_CATEGORIES = 6, 14
# Pages are the logged ones; else the cloud ranks by popularity (base_ctr) alone and probes every category.
FEED = FeedConfig(
    page_size=10,
    pool_size=100,
    lookahead=0,
    n_cards=4,
    exposure_history=20,
    page_view_history=10,
    max_slots=100,
    profile_size=len(PROFILE),
    item_columns=(*ITEM_COLUMNS, *PAGE_COLUMNS, *USER_ITEM_COLUMNS),
    cloud=CloudConfig(
        supply="logged",
        long_term_weight=0.0,
        recent_weight=0.0,
        probed_categories=KNOWN_CATEGORIES + UNKNOWN_CATEGORIES,
        scan_limit=256,
    ),
)
SESSIONS_PER_PART = 2000


def is_ebnerd(folder: str | Path) -> bool:
    """Return whether a folder has the bundle layout: train|validation/{behaviors,history}.parquet."""
    return all((Path(folder) / name).is_file() for name in FILES)


@one_writer("out_folder")
def convert_ebnerd(
    source: str | Path, out_folder: str | Path, progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Write an EB-NeRD bundle as a log folder; continues an unfinished log and keeps a finished one.

    All impressions are held in memory while the log is written.

    Args:
        source: folder of the bundle.
        out_folder: log folder, which also gets `reference.parquet` for :func:`ebnerd_reference`.
        progress: called with (sessions written, total).

    Returns:
        Counts of everything that was kept, changed and dropped; also in the log's provenance.

    Raises:
        InputError: the bundle is wrong; the message names the file, column or row.
        MissingExtraError: scikit-learn is not installed.
    """
    source, out_folder = Path(source), Path(out_folder)
    digests = {name: _digest(source / name) for name in FILES if (source / name).is_file()}
    if (out_folder / "logs.json").exists():
        found = LogReader(out_folder, allow_empty=True)
        if found.complete and found.provenance.get("files") == digests:
            return dict(found.provenance["counts"])
    bundle = read_bundle(source, FEED.max_slots)
    rows, at_end = _signals(bundle)
    before_train, before_validation = (
        bundle.reads[split].select("user", "article").unique() for split in SPLITS
    )
    articles, embeddings = features.article_embeddings(
        before_train,
        before_validation,
        bundle.articles[np.unique(bundle.item[~bundle.column("validation")])],
        FEED.embedding_size,
    )
    catalog, place = _catalog(bundle, at_end, articles, embeddings)
    known = int(catalog.embeddings.any(axis=1).sum())
    counts = bundle.counts | {"articles": len(catalog), "articles_with_embedding": known}
    provenance = {
        "source": "EB-NeRD",
        "files": digests,
        "counts": counts,
        "first_validation_day": int(bundle.column("day")[bundle.column("validation")].min()),
        "scalars": SCALARS,
        "profile": list(PROFILE),
    }
    shipped, at_validation = _item_columns(bundle, len(catalog))
    catalog = catalog.with_table(at_validation[np.argsort(place)])
    writer = LogWriter(out_folder, FEED, catalog, provenance, UNIDENTIFIED)
    write_reference(out_folder, bundle, rows)
    users = _user_features(bundle, articles, embeddings)
    bounds = np.append(np.flatnonzero(bundle.slot == 0), len(bundle.slot))
    sessions = len(bounds) - 1
    item, scalars = place[bundle.item], rows.scalars()
    scalars[:, 1] = 1 / (1 + np.exp(-scalars[:, 1]))
    for first in range(writer.parts * SESSIONS_PER_PART, sessions, SESSIONS_PER_PART):
        last = min(first + SESSIONS_PER_PART, sessions)
        writer.write(_part(bundle, slice(bounds[first], bounds[last]), item, scalars, shipped, users))
        if progress:
            progress(last, sessions)
    writer.finish()
    return counts


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _signals(bundle: Bundle) -> tuple[features.ItemSignals, features.ItemSignals]:
    """Return the signals of every slot, and of every article when the validation week begins."""
    first = bundle.reads["train"].group_by("article").agg(pl.col("seconds").min())
    first = first.filter(pl.col("article").is_in(bundle.articles.tolist()))
    first_read = np.full(len(bundle.articles), np.inf)
    first_read[np.searchsorted(bundle.articles, first["article"].to_numpy())] = first["seconds"].to_numpy()
    seconds = bundle.column("seconds")
    begin = int(seconds[bundle.column("validation")].min())
    user = np.unique(bundle.column("user"), return_inverse=True)[1]
    return features.item_signals(seconds, user, bundle.item, bundle.click, first_read, begin)


def _catalog(
    bundle: Bundle, signals: features.ItemSignals, articles: np.ndarray, embeddings: np.ndarray
) -> tuple[Catalog, np.ndarray]:
    """Return the catalogue and the catalogue row of each of the bundle's articles."""
    names = bundle.articles
    vectors = np.zeros((len(names), FEED.embedding_size), np.float32)
    at = np.flatnonzero(np.isin(names, articles))
    vectors[at] = embeddings[np.searchsorted(articles, names[at])]
    early = np.zeros(len(names), np.bool_)
    early[bundle.item[~bundle.column("validation")]] = True
    category = features.clusters(vectors, early, KNOWN_CATEGORIES, UNKNOWN_CATEGORIES)
    goods = np.zeros(len(names), np.int32)
    catalog, order = Catalog.sorted(vectors, signals.scalars(), goods, category, names)
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    return catalog, place


def _item_columns(bundle: Bundle, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the item columns of every slot, and of every article when the validation week begins."""
    seconds, item, click = bundle.column("seconds"), bundle.item, bundle.click
    hour = seconds.astype(np.int64) // HOUR
    sums = HourlySums.of(item, hour, np.column_stack([np.ones(len(item)), click]))
    values = item_columns(sums, item, hour)
    user = np.unique(bundle.column("user"), return_inverse=True)[1]
    begun = bundle.column("start")
    columns = (
        values,
        page_columns(values, bundle.page_row),
        user_item_columns(user, item, seconds, click, seconds, begun),
    )
    cut = np.full(n_items, int(seconds[bundle.column("validation")].min()) // HOUR)
    later = item_columns(sums, np.arange(n_items), cut)
    unknown = np.zeros((n_items, len(PAGE_COLUMNS) + len(USER_ITEM_COLUMNS)), np.float32)
    return np.concatenate(columns, axis=1), np.concatenate([later, unknown], axis=1)


def _user_features(bundle: Bundle, articles: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Return the user features of each impression, (impressions, U) float32."""
    pages = bundle.impressions
    rows = np.zeros((pages.height, FEED.n_user_features), np.float32)
    late, user = pages["validation"].to_numpy(), pages["user"].to_numpy()
    for split, chosen in zip(SPLITS, (~late, late), strict=True):
        reads = bundle.reads[split].select("user", "article").unique().sort("user", "article")
        ids, of = np.unique(user[chosen], return_inverse=True)
        n_read = np.zeros(len(ids))
        seen = reads.filter(pl.col("user").is_in(ids.tolist()))["user"].to_numpy()
        np.add.at(n_read, np.searchsorted(ids, seen), 1)
        d = FEED.embedding_size
        rows[chosen, :d] = features.mean_embeddings(reads, ids, articles, embeddings)[of]
        rows[chosen, d + 2] = np.minimum(np.log10(1 + n_read) / 1.5 - 1, 1)[of]
    device = pages["device_type"].fill_null(0).to_numpy()
    rows[:, d] = (device == 3).astype(np.float32) - (device == 1)
    for column, name in ((d + 1, "is_subscriber"), (d + 3, "is_sso_user")):
        rows[:, column] = pages[name].cast(pl.Float32).fill_null(0.5).to_numpy() * 2 - 1
    return rows


def _part(
    bundle: Bundle,
    part: slice,
    item: np.ndarray,
    scalars: np.ndarray,
    shipped: np.ndarray,
    users: np.ndarray,
) -> dict[str, object]:
    """Return columns of the log schema for some rows of the bundle."""
    page = bundle.impressions[bundle.page_row[part]]
    click, slot = bundle.click[part], bundle.slot[part]
    n = len(slot)
    actions = np.zeros((n, N_PAGE_VIEW_ACTIONS), np.float32)
    bucket = np.searchsorted(PAGE_VIEW_EDGES, page["next_read_time"].to_numpy(), side="right")
    actions[:, 0] = bucket / (PAGE_VIEW_BUCKETS - 1)
    nothing = pa.nulls(n)
    no = np.zeros(n, np.bool_)
    return {
        "session": page["session"].to_numpy(),
        "user": page["user"].to_numpy(),
        "day": page["day"].to_numpy(),
        "hour": page["hour"].to_numpy(),
        "slot": slot,
        "time": (page["seconds"] - page["start"]).to_numpy(),
        "item": item[part],
        "card_type": np.zeros(n, np.int32),
        "page": page["page"].to_numpy(),
        "page_age": bundle.page_age[part],
        "page_requested": no,
        "candidates": nothing,  # the other candidates were not published
        "cards": nothing,
        "user_features": list_column(users[bundle.page_row[part]], slot == 0),
        "price_level": scalars[part, 0],
        "base_ctr": scalars[part, 1],
        "base_cvr": scalars[part, 2],
        "freshness": scalars[part, 3],
        "item_columns": list_column(shipped[part], ~no),
        "action": nothing,
        "propensity": nothing,
        "randomised": no,
        "request": no,
        "request_propensity": nothing,
        "answered": ~no,
        "exposure_actions": nothing,
        "click": click,
        "page_view_actions": list_column(actions, bundle.timed[part]),
        "leave": nothing,
    }
