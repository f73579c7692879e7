"""The cloud: builds a page from the catalogue with its own stale estimate of the user.

It knows the long-term estimate that it ships, and the behaviour that has been synchronised when the
request was *sent*: with `sync="page"` a request carries all behaviour so far, with "periodic" behaviour is
uploaded every `sync_period` slots and requests carry none, with "incremental" after every slot (the same
pages as "page", at more traffic). Retrieval probes the best categories and scans at most `scan_limit` items
of each, so its cost depends neither on the number of environments nor, beyond that, on the catalogue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numba import njit
from numba.core import types
from numba.experimental import structref

from edgerec_gym.catalog import Catalog
from edgerec_gym.config import SYNC_MODES, FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.random_stream import (
    CARD_NOISE,
    CARD_PICK,
    PAGE_GROUP,
    PAGE_NOISE,
    PAGE_OFFSET,
    fast_normal,
    fold,
)
from edgerec_gym.state import NO_ITEM, UNUSED

SYNC_PAGE, SYNC_PERIODIC, SYNC_INCREMENTAL = range(len(SYNC_MODES))


@dataclass
class CloudArrays:
    """The catalogue (n items in G groups of one card type and category) and the cloud's numbers."""

    embeddings: np.ndarray  # (n, d) float32
    scalars: np.ndarray  # (n, 4) float32: price level, base logit, base cvr, freshness
    card_type: np.ndarray  # (n,) int32
    group_bounds: np.ndarray  # (G + 1,) int64, rows of the catalogue
    centroids: np.ndarray  # (Gg, d) float32, of the groups of goods
    type_bounds: np.ndarray  # (T + 1,) int64, rows of the catalogue
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


FIELDS = [f.name for f in fields(CloudArrays)]


@structref.register
class CloudStateType(types.StructRef):
    """Numba type of the struct."""

    def preprocess_fields(self, fields: Any) -> Any:
        """Fields hold values, not literal types."""
        return tuple((name, types.unliteral(kind)) for name, kind in fields)


class CloudState(structref.StructRefProxy):
    """The cloud as the kernels see it."""


structref.define_proxy(CloudState, CloudStateType, FIELDS)


@njit(cache=True)
def _pack(values):
    return CloudState(*values)


def make_cloud(catalog: Catalog, config: FeedConfig) -> CloudState:
    """Index a catalogue for retrieval; InputError if pages could run out of goods."""
    code = catalog.card_type.astype(np.int64) * (int(catalog.category.max()) + 1) + catalog.category
    group_bounds = np.append(np.flatnonzero(np.diff(code, prepend=-1)), len(catalog))
    goods = int((catalog.card_type[group_bounds[:-1]] == 0).sum())
    centroids = np.stack(
        [
            catalog.embeddings[a:b].mean(axis=0)
            for a, b in zip(group_bounds[:goods], group_bounds[1 : goods + 1], strict=True)
        ]
    )
    if catalog.card_type.max() >= config.n_types:
        raise InputError(
            f"catalogue has card_type {catalog.card_type.max()}, "
            f"the feed names only {len(config.card_types)} card types"
        )
    reachable = int(np.minimum(np.diff(group_bounds[: goods + 1]), config.cloud.scan_limit).sum())
    needed = config.pool_size + config.max_slots
    if reachable < needed:
        raise InputError(
            f"retrieval reaches {reachable} goods (scan_limit = {config.cloud.scan_limit} in each of {goods} "
            f"categories); pool_size + max_slots = {needed} are needed: use a larger catalogue or scan_limit"
        )
    values = CloudArrays(
        embeddings=catalog.embeddings,
        scalars=catalog.scalars,
        card_type=catalog.card_type,
        group_bounds=group_bounds.astype(np.int64),
        centroids=centroids.astype(np.float32),
        type_bounds=np.searchsorted(catalog.card_type, np.arange(config.n_types + 1)).astype(np.int64),
        sync=SYNC_MODES.index(config.cloud.sync),
        **{name: getattr(config.cloud, name) for name in FIELDS[FIELDS.index("sync_period") :]},
    )
    return _pack(tuple(getattr(values, name) for name in FIELDS))


@njit
def was_shown(shown, item):
    """Whether an item is in a session's hash set of placed items (open addressing)."""
    mask = shown.shape[0] - 1
    place = (item * 40503) & mask
    while shown[place] != UNUSED:
        if shown[place] == item:
            return True
        place = (place + 1) & mask
    return False


@njit
def mark_shown(state, row, item):
    """Remember that an item was placed this session."""
    mask = state.shown.shape[1] - 1
    place = (item * 40503) & mask
    while state.shown[row, place] != UNUSED:
        place = (place + 1) & mask
    state.shown[row, place] = item


@njit
def _query(state, cloud, row):
    """What the cloud looks for, (d,): its score of an embedding is the product with it, in logits.

    Little evidence of recent behaviour counts little, much evidence counts as a direction.
    """
    d = state.n_embedding
    user, recent = state.observation[row, state.user_at : state.user_at + d], state.wire_interest[row]
    length = 0.0
    for k in range(d):
        length += recent[k] ** 2
    scale = cloud.recent_weight / (1.0 + math.sqrt(length))
    query = np.empty(d)
    for k in range(d):
        query[k] = cloud.long_term_weight * user[k] + scale * recent[k]
    return query


@njit
def _match(query, vectors, i):
    """Score in logits of one embedding."""
    total = 0.0
    for k in range(query.shape[0]):
        total += query[k] * vectors[i, k]
    return total


@njit
def build_page(state, cloud, row):
    """Replace the pool and the cards of a row by a fresh page that repeats no item already shown."""
    query = _query(state, cloud, row)
    _fill_pool(state, cloud, row, query)
    _fill_cards(state, cloud, row, query)


@njit
def _fill_pool(state, cloud, row, query):
    embeddings, scalars, ranking_noise = cloud.embeddings, cloud.scalars, cloud.noise
    centroids, shown = cloud.centroids, state.shown[row]
    key, slot, n_pool = state.key[row], state.slot[row], state.n_pool
    n_groups = cloud.centroids.shape[0]
    group_score = np.empty(n_groups)
    for g in range(n_groups):
        noise = ranking_noise * fast_normal(key, slot, PAGE_GROUP, g)
        group_score[g] = -_match(query, centroids, g) - noise
    group_order = np.argsort(group_score)

    capacity = max(cloud.probed_categories * cloud.scan_limit, n_pool) + cloud.scan_limit
    item, group = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    score, rank = np.empty(capacity), np.empty(capacity)
    found = 0
    for place in range(n_groups):
        if place >= cloud.probed_categories and found >= n_pool:
            break
        g = group_order[place]
        start = cloud.group_bounds[g]
        size = cloud.group_bounds[g + 1] - start
        offset = fold(
            key, (np.uint64(slot) << np.uint64(32)) ^ (np.uint64(PAGE_OFFSET) << np.uint64(56)) ^ np.uint64(g)
        )
        first = np.int64(offset % np.uint64(size))
        for j in range(min(size, cloud.scan_limit)):
            i = start + (first + j) % size
            if was_shown(shown, i):
                continue
            item[found], group[found] = i, g
            score[found] = _match(query, embeddings, i) + scalars[i, 1]
            rank[found] = -score[found] - ranking_noise * fast_normal(key, slot, PAGE_NOISE, i)
            found += 1

    # Best first, at most `quota` of one category while others can fill the page.
    quota = max(1, -(-2 * n_pool // cloud.probed_categories))
    taken_of = np.zeros(n_groups, np.int64)
    order = np.argsort(rank[:found])
    taken = np.zeros(found, np.bool_)
    left = n_pool
    for j in order:
        if left > 0 and taken_of[group[j]] < quota:
            taken[j] = True
            taken_of[group[j]] += 1
            left -= 1
    for j in order:
        if left > 0 and not taken[j]:
            taken[j] = True
            left -= 1
    r = 0
    for j in order:
        if taken[j]:
            state.pool_items[row, r] = item[j]
            _write_item(state, cloud, row, state.pool_at + r * state.n_features, item[j], score[j])
            r += 1


@njit
def _fill_cards(state, cloud, row, query):
    """Card row m gets the best of a random handful of items of type 1 + m mod (T - 1)."""
    key, slot = state.key[row], state.slot[row]
    width = state.n_features + state.n_types
    for m in range(state.n_cards):
        card_type = 1 + m % (state.n_types - 1)
        start = cloud.type_bounds[card_type]
        size = cloud.type_bounds[card_type + 1] - start
        best, best_rank, best_score = NO_ITEM, -1e300, 0.0
        for j in range(min(size, cloud.scan_limit // 4)):
            draw = fold(
                key,
                (np.uint64(slot) << np.uint64(32))
                ^ (np.uint64(CARD_PICK) << np.uint64(56))
                ^ np.uint64(m * 65536 + j),
            )
            i = start + np.int64(draw % np.uint64(size))
            score = _match(query, cloud.embeddings, i) + cloud.scalars[i, 1]
            rank = score + cloud.noise * fast_normal(key, slot, CARD_NOISE, i)
            if rank > best_rank and not was_shown(state.shown[row], i) and not _on_cards(state, row, m, i):
                best, best_rank, best_score = i, rank, score
        state.card_items[row, m] = best
        at = state.cards_at + m * width
        for k in range(width):
            state.observation[row, at + k] = 0.0
        if best != NO_ITEM:
            _write_item(state, cloud, row, at, best, best_score)
            state.observation[row, at + state.n_features + card_type] = 1.0


@njit
def _on_cards(state, row, m, item):
    for j in range(m):
        if state.card_items[row, j] == item:
            return True
    return False


@njit
def _write_item(state, cloud, row, at, item, score):
    """Write the item features (embedding, price level, base ctr, base cvr, freshness) at a column."""
    d = state.n_embedding
    for k in range(d):
        state.observation[row, at + k] = cloud.embeddings[item, k]
    state.observation[row, at + d] = cloud.scalars[item, 0]
    state.observation[row, at + d + 1] = 1.0 / (1.0 + math.exp(-(score + cloud.score_offset)))
    state.observation[row, at + d + 2] = cloud.scalars[item, 2]
    state.observation[row, at + d + 3] = cloud.scalars[item, 3]


@njit
def upload(state, row):
    """All behaviour so far reaches the cloud."""
    for k in range(state.n_embedding):
        state.known_interest[row, k] = state.interest[row, k]


@njit
def send(state, cloud, row, requested):
    """Put a request on the wire; the page will be built from what the cloud knows now."""
    if cloud.sync == SYNC_PAGE:
        upload(state, row)
    for k in range(state.n_embedding):
        state.wire_interest[row, k] = state.known_interest[row, k]
    state.wire[row] = state.latency
    state.wire_requested[row] = requested


@njit
def receive(state, cloud, row):
    """The page on the wire arrives and restarts the count to the next automatic one."""
    state.page[row] += 1
    state.page_age[row] = 0
    state.page_requested[row] = state.wire_requested[row]
    build_page(state, cloud, row)
