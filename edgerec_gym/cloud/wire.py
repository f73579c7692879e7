"""The cloud: builds a page from the catalogue with its own stale estimate of the user.

It knows the long-term estimate that it ships and the behaviour that was synchronised when the request was
*sent*. With `sync="page"` a request carries all behaviour so far. With "periodic" behaviour is uploaded every
`sync_period` slots and requests carry none. With "incremental" it is uploaded after every slot, which gives
the same pages as "page" at the cost of more traffic. Retrieval probes the best categories and scans at most
`scan_limit` items of each, so its cost does not depend on the number of environments and hardly on the size
of the catalogue.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.cloud.supply import Supply
from edgerec_gym.compiled.arrays import BoolVector, Float32Matrix, Int32Vector, Int64Matrix, Int64Vector
from edgerec_gym.compiled.jit import kernel
from edgerec_gym.compiled.selection import Ranking, make_ranking
from edgerec_gym.config import SUPPLIES, SYNC_MODES, FeedConfig
from edgerec_gym.errors import InputError

SYNC_PAGE, SYNC_PERIODIC, SYNC_INCREMENTAL = range(len(SYNC_MODES))


class CloudArrays(NamedTuple):
    """The catalogue (n items in G groups of one card type and category) and the cloud's settings."""

    items: Float32Matrix  # (n, d + 4): embedding, price level, base logit, base cvr, freshness
    item_columns: Float32Matrix  # (n, C), the item table
    group_bounds: Int64Vector  # (G + 1,), rows of the catalogue
    centroids: Float32Matrix  # (Gg, d), centroids of the groups of goods
    type_bounds: Int64Vector  # (T + 1,), rows of the catalogue
    supply: int  # what pages are made of (supply.py); the next arrays are empty without logged visits
    held_out: int  # first visit of the held-out period
    visit_slots: Int32Vector  # (V,), answered slots of a visit; 0 = users decide
    visit_pages: Int64Vector  # (V + 1,), first page
    day_entries: Int64Matrix  # (V, 2), entries of the visit's day
    page_entries: Int64Vector  # (G + 1,), first entry
    entry_items: Int32Vector  # (E,), rows of the catalogue
    entry_known: BoolVector  # (E,), whether the embedding was known
    entry_values: Float32Matrix  # (E, 4 + C), scalars and item columns as shipped
    sync: int
    sync_period: int
    long_term_weight: float
    recent_weight: float
    noise: float
    score_offset: float
    interest_decay: float
    dwell_weight: float
    click_weight: float
    page_view_weight: float
    probed_categories: int
    scan_limit: int

    def __deepcopy__(self, memo: object) -> CloudArrays:
        """Share the arrays, which never change, with the copies of a feed."""
        return self


_NUMBERS = CloudArrays._fields[CloudArrays._fields.index("sync_period") :]


def make_cloud(catalog: Catalog, config: FeedConfig) -> CloudArrays:
    """Index a catalogue for retrieval; InputError if pages could run out of goods."""
    if catalog.embeddings.shape[1] != config.embedding_size:
        raise InputError(
            f"embedding_size = {config.embedding_size} cannot be: the catalogue's embeddings have "
            f"{catalog.embeddings.shape[1]} columns"
        )
    if catalog.columns.shape[1] != len(config.item_columns):
        raise InputError(
            f"item_columns names {len(config.item_columns)} columns, the catalogue has "
            f"{catalog.columns.shape[1]}: they belong to the scenario and cannot be changed"
        )
    code = catalog.card_type.astype(np.int64) * (int(catalog.category.max()) + 1) + catalog.category
    group_bounds = np.append(np.flatnonzero(np.diff(code, prepend=-1)), len(catalog))
    goods = int((catalog.card_type[group_bounds[:-1]] == 0).sum())
    sizes = np.diff(group_bounds)
    sums = np.add.reduceat(catalog.embeddings, group_bounds[:goods], axis=0, dtype=np.float64)
    if goods < len(sizes):  # reduceat sums the last group to the end of the array
        sums[-1] = catalog.embeddings[group_bounds[goods - 1] : group_bounds[goods]].sum(axis=0)
    if catalog.card_type.max() >= config.n_types:
        raise InputError(
            f"catalogue has card_type {catalog.card_type.max()}, "
            f"the feed names only {len(config.card_types)} card types"
        )
    logged = catalog.supply
    if logged is None and config.cloud.supply != "catalogue":
        raise InputError(
            f"cloud.supply = {config.cloud.supply!r} needs logged visits, which this scenario lacks; "
            "allowed: 'catalogue'"
        )
    if logged is not None:
        _check_supply(logged, config)
    reachable = int(np.minimum(sizes[:goods], config.cloud.scan_limit).sum())
    needed = config.pool_size + config.max_slots
    if reachable < needed and config.cloud.supply == "catalogue":
        raise InputError(
            f"retrieval reaches {reachable} goods (scan_limit = {config.cloud.scan_limit} in each of {goods} "
            f"categories); pool_size + max_slots = {needed} are needed: use a larger catalogue or scan_limit"
        )
    return CloudArrays(
        items=np.concatenate([catalog.embeddings, catalog.scalars], axis=1),
        item_columns=np.ascontiguousarray(catalog.columns),
        group_bounds=group_bounds.astype(np.int64),
        centroids=(sums / sizes[:goods, None]).astype(np.float32),
        type_bounds=np.searchsorted(catalog.card_type, np.arange(config.n_types + 1)).astype(np.int64),
        supply=SUPPLIES.index(config.cloud.supply),
        **_supply_arrays(logged),
        sync=SYNC_MODES.index(config.cloud.sync),
        **{name: getattr(config.cloud, name) for name in _NUMBERS},
    )


def phone_cloud(config: FeedConfig) -> CloudArrays:
    """Return what a phone knows of the cloud: its settings, and no items."""
    d = config.embedding_size
    return CloudArrays(
        items=np.zeros((0, d + 4), np.float32),
        item_columns=np.zeros((0, len(config.item_columns)), np.float32),
        group_bounds=np.zeros(1, np.int64),
        centroids=np.zeros((0, d), np.float32),
        type_bounds=np.zeros(config.n_types + 1, np.int64),
        supply=SUPPLIES.index(config.cloud.supply),
        **_supply_arrays(None),
        sync=SYNC_MODES.index(config.cloud.sync),
        **{name: getattr(config.cloud, name) for name in _NUMBERS},
    )


def _check_supply(supply: Supply, config: FeedConfig) -> None:
    """Raise InputError if visits do not fit the feed: kernels read them by address."""
    if supply.features.shape[1] != config.n_user_features:
        raise InputError(
            f"the logged visits have {supply.features.shape[1]} user features, the feed "
            f"{config.n_user_features}"
        )
    if config.cloud.supply == "logged" and supply.most_entries > config.pool_size:
        raise InputError(
            f"pool_size = {config.pool_size} is too small for logged pages of up to {supply.most_entries} "
            "cards; use at least as many"
        )


def _supply_arrays(supply: Supply | None) -> dict[str, Any]:
    """Return the fields of CloudArrays about logged visits."""
    if supply is None:
        return dict(
            held_out=0,
            visit_slots=np.zeros(0, np.int32),
            visit_pages=np.zeros(0, np.int64),
            day_entries=np.zeros((0, 2), np.int64),
            page_entries=np.zeros(0, np.int64),
            entry_items=np.zeros(0, np.int32),
            entry_known=np.zeros(0, np.bool_),
            entry_values=np.zeros((0, 0), np.float32),
        )
    return dict(
        held_out=supply.held_out,
        visit_slots=supply.slots,
        visit_pages=supply.first_page,
        day_entries=supply.day_entries(),
        page_entries=supply.first_entry,
        entry_items=supply.item,
        entry_known=supply.known,
        entry_values=supply.values,
    )


def cloud_ranking(cloud: CloudArrays, config: FeedConfig, workers: int) -> Ranking:
    """Allocate the workspace for building pages in `workers` threads at once."""
    numbers = config.cloud
    enough = max(numbers.probed_categories * numbers.scan_limit, config.pool_size + config.max_slots)
    capacity = min(enough + numbers.scan_limit, len(cloud.items))
    return make_ranking(workers, capacity, len(cloud.centroids), config.embedding_size)


@kernel
def upload(feed, row):
    """Upload all behaviour so far to the cloud."""
    for k in range(feed.n_embedding):
        feed.known_interest[row, k] = feed.interest[row, k]


@kernel
def send(feed, cloud, row, requested):
    """Put a request on the wire; the page will be built from what the cloud knows now."""
    if cloud.sync == SYNC_PAGE:
        upload(feed, row)
    for k in range(feed.n_embedding):
        feed.wire_interest[row, k] = feed.known_interest[row, k]
    feed.wire[row] = feed.latency
    feed.wire_requested[row] = requested


@kernel
def receive(feed, row):
    """Record the arrival of the page on the wire, which the caller builds, and reset the page age."""
    feed.page[row] += 1
    feed.page_age[row] = 0
    feed.page_requested[row] = feed.wire_requested[row]
