"""The cloud: builds a page from the catalogue with its own stale estimate of the user.

It knows the long-term estimate that it ships, and the behaviour that has been synchronised when the
request was *sent*: with `sync="page"` a request carries all behaviour so far, with "periodic" behaviour is
uploaded every `sync_period` slots and requests carry none, with "incremental" after every slot (the same
pages as "page", at more traffic). Retrieval probes the best categories and scans at most `scan_limit` items
of each, so its cost depends neither on the number of environments nor, beyond that, on the catalogue.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from edgerec_gym.arrays import Float32Matrix, Float32Vector, Int32Vector, Int64Vector
from edgerec_gym.catalog import Catalog
from edgerec_gym.config import SYNC_MODES, FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.jit import kernel, product_kernel
from edgerec_gym.random_stream import (
    CARD_NOISE,
    CARD_PICK,
    PAGE_GROUP,
    PAGE_NOISE,
    PAGE_OFFSET,
    below,
    fast_normal,
)
from edgerec_gym.selection import Ranking, best_first, make_ranking
from edgerec_gym.state import NO_ITEM, UNUSED

SYNC_PAGE, SYNC_PERIODIC, SYNC_INCREMENTAL = range(len(SYNC_MODES))
WAS_SHOWN, LEFT_BY_QUOTA, TAKEN = range(3)


class CloudArrays(NamedTuple):
    """The catalogue (n items in G groups of one card type and category) and the cloud's numbers."""

    embeddings: Float32Matrix  # (n, d)
    scalars: Float32Matrix  # (n, 4): price level, base logit, base cvr, freshness
    base_logit: Float32Vector  # (n,), the same
    card_type: Int32Vector  # (n,)
    group: Int32Vector  # (n,)
    group_bounds: Int64Vector  # (G + 1,), rows of the catalogue
    centroids: Float32Matrix  # (Gg, d), of the groups of goods
    type_bounds: Int64Vector  # (T + 1,), rows of the catalogue
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


_NUMBERS = CloudArrays._fields[CloudArrays._fields.index("sync_period") :]


def make_cloud(catalog: Catalog, config: FeedConfig) -> CloudArrays:
    """Index a catalogue for retrieval; InputError if pages could run out of goods."""
    code = catalog.card_type.astype(np.int64) * (int(catalog.category.max()) + 1) + catalog.category
    group_bounds = np.append(np.flatnonzero(np.diff(code, prepend=-1)), len(catalog))
    goods = int((catalog.card_type[group_bounds[:-1]] == 0).sum())
    sizes = np.diff(group_bounds)
    sums = np.add.reduceat(catalog.embeddings, group_bounds[:goods], axis=0, dtype=np.float64)
    if goods < len(sizes):  # reduceat lets the last group run on to the end
        sums[-1] = catalog.embeddings[group_bounds[goods - 1] : group_bounds[goods]].sum(axis=0)
    if catalog.card_type.max() >= config.n_types:
        raise InputError(
            f"catalogue has card_type {catalog.card_type.max()}, "
            f"the feed names only {len(config.card_types)} card types"
        )
    reachable = int(np.minimum(sizes[:goods], config.cloud.scan_limit).sum())
    needed = config.pool_size + config.max_slots
    if reachable < needed:
        raise InputError(
            f"retrieval reaches {reachable} goods (scan_limit = {config.cloud.scan_limit} in each of {goods} "
            f"categories); pool_size + max_slots = {needed} are needed: use a larger catalogue or scan_limit"
        )
    return CloudArrays(
        embeddings=catalog.embeddings,
        scalars=catalog.scalars,
        base_logit=catalog.scalars[:, 1].copy(),
        card_type=catalog.card_type,
        group=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        group_bounds=group_bounds.astype(np.int64),
        centroids=(sums / sizes[:goods, None]).astype(np.float32),
        type_bounds=np.searchsorted(catalog.card_type, np.arange(config.n_types + 1)).astype(np.int64),
        sync=SYNC_MODES.index(config.cloud.sync),
        **{name: getattr(config.cloud, name) for name in _NUMBERS},
    )


def cloud_ranking(cloud: CloudArrays, config: FeedConfig, workers: int) -> Ranking:
    """Workspace for building pages in some worker threads at once."""
    numbers = config.cloud
    enough = max(numbers.probed_categories * numbers.scan_limit, config.pool_size + config.max_slots)
    capacity = min(enough + numbers.scan_limit, len(cloud.group))
    return make_ranking(workers, capacity, len(cloud.centroids), config.embedding_size)


@kernel
def was_shown(shown, row, item):
    """Whether an item is in a session's hash set of placed items (open addressing)."""
    mask = shown.shape[1] - 1
    place = (item * 40503) & mask
    while shown[row, place] != UNUSED:
        if shown[row, place] == item:
            return True
        place = (place + 1) & mask
    return False


@kernel
def mark_shown(feed, row, item):
    """Remember that an item was placed this session."""
    mask = feed.shown.shape[1] - 1
    place = (item * 40503) & mask
    while feed.shown[row, place] != UNUSED:
        place = (place + 1) & mask
    feed.shown[row, place] = item


@kernel
def _form_query(feed, cloud, row, worker):
    """What the cloud looks for: its score of an embedding is the product with it, in logits.

    Little evidence of recent behaviour counts little, much evidence counts as a direction.
    """
    length = 0.0
    for k in range(feed.n_embedding):
        length += feed.wire_interest[row, k] ** 2
    scale = cloud.recent_weight / (1.0 + math.sqrt(length))
    for k in range(feed.n_embedding):
        user = feed.observation[row, feed.user_at + k]
        feed.ranking.query[worker, k] = cloud.long_term_weight * user + scale * feed.wire_interest[row, k]


@product_kernel
def _match(query, worker, vectors, i, size):
    """Score in logits of one embedding."""
    total = np.float32(0.0)
    for k in range(size):
        total += query[worker, k] * vectors[i, k]
    return total


@kernel
def build_page(feed, cloud, row, worker):
    """Replace the pool and the cards of a row by a fresh page that repeats no item already shown."""
    _form_query(feed, cloud, row, worker)
    found = _scan_groups(feed, cloud, row, worker)
    _fill_pool(feed, cloud, row, worker, found)
    _fill_cards(feed, cloud, row, worker)


@kernel
def _scan_groups(feed, cloud, row, worker):
    """Score at most `scan_limit` items, from a random one on, of each of the best groups; how many."""
    ranking, key, slot, size = feed.ranking, feed.key[row], feed.slot[row], feed.n_embedding
    n_groups, enough = cloud.centroids.shape[0], feed.n_pool + slot  # `slot` items may have been shown
    for g in range(n_groups):
        noise = cloud.noise * fast_normal(key, slot, PAGE_GROUP, g)
        ranking.group_rank[worker, g] = _match(ranking.query, worker, cloud.centroids, g, size) + noise
    found = 0
    for place in range(n_groups):
        if place >= cloud.probed_categories and found >= enough:
            break
        g = _take_best(ranking.group_rank, worker, n_groups)
        start = cloud.group_bounds[g]
        n_items = cloud.group_bounds[g + 1] - start
        first = below(n_items, key, slot, PAGE_OFFSET, g)
        scanned = min(n_items, cloud.scan_limit)
        before_wrap = min(scanned, n_items - first)
        _scan(cloud, ranking, worker, key, slot, start + first, before_wrap, found, size)
        _scan(cloud, ranking, worker, key, slot, start, scanned - before_wrap, found + before_wrap, size)
        found += scanned
    return found


@kernel
def _take_best(values, worker, n):
    """Index of the largest value, which is struck out."""
    best = 0
    for g in range(1, n):
        if values[worker, g] > values[worker, best]:
            best = g
    values[worker, best] = -np.inf
    return best


@kernel
def _scan(cloud, ranking, worker, key, slot, first, n_items, found, size):
    """Score neighbouring catalogue rows; in two loops, since only the second one is integer work."""
    for j in range(n_items):
        i = first + j
        score = _match(ranking.query, worker, cloud.embeddings, i, size) + cloud.base_logit[i]
        ranking.item[worker, found + j] = i
        ranking.score[worker, found + j] = score
    noise = np.float32(cloud.noise)
    for j in range(n_items):
        ranking.rank[worker, found + j] = ranking.score[worker, found + j] + noise * np.float32(
            fast_normal(key, slot, PAGE_NOISE, first + j)
        )


@kernel
def _fill_pool(feed, cloud, row, worker, found):
    """Best first, at most `quota` of one category while others can fill the page."""
    ranking, n_pool = feed.ranking, feed.n_pool
    order, taken = ranking.order[worker], ranking.bucket[worker]
    best_first(ranking.rank[worker], found, order, taken, ranking.first[worker])
    quota = max(1, -(-2 * n_pool // cloud.probed_categories))
    seen, left = _take_by_quota(feed, cloud, row, worker, found, quota)
    for at in range(seen):
        if left > 0 and taken[at] == LEFT_BY_QUOTA:
            taken[at] = TAKEN
            left -= 1
    r = 0
    for at in range(seen):
        if taken[at] == TAKEN:
            j = order[at]
            item = ranking.item[worker, j]
            feed.pool_items[row, r] = item
            _write_item(feed, cloud, row, feed.pool_at + r * feed.n_features, item, ranking.score[worker, j])
            r += 1


@kernel
def _take_by_quota(feed, cloud, row, worker, found, quota):
    """Mark what the page takes of the ordered candidates; how many it looked at, how many places are left."""
    ranking, left, at = feed.ranking, feed.n_pool, 0
    for g in range(cloud.centroids.shape[0]):
        ranking.group_taken[worker, g] = 0
    while left > 0 and at < found:
        item = ranking.item[worker, ranking.order[worker, at]]
        g = cloud.group[item]
        verdict = WAS_SHOWN
        if not was_shown(feed.shown, row, item):
            verdict = LEFT_BY_QUOTA
            if ranking.group_taken[worker, g] < quota:
                verdict = TAKEN
                ranking.group_taken[worker, g] += 1
                left -= 1
        ranking.bucket[worker, at] = verdict
        at += 1
    return at, left


@kernel
def _fill_cards(feed, cloud, row, worker):
    """Card row m gets the best of a random handful of items of type 1 + m mod (T - 1)."""
    key, slot, size = feed.key[row], feed.slot[row], feed.n_embedding
    width, tries = feed.n_features + feed.n_types, cloud.scan_limit // 4
    for m in range(feed.n_cards):
        card_type = 1 + m % (feed.n_types - 1)
        start = cloud.type_bounds[card_type]
        n_items = cloud.type_bounds[card_type + 1] - start
        best, best_rank, best_score = NO_ITEM, -1e300, 0.0
        for j in range(min(n_items, tries)):
            i = start + below(n_items, key, slot, CARD_PICK, m * 65536 + j)
            score = _match(feed.ranking.query, worker, cloud.embeddings, i, size) + cloud.base_logit[i]
            rank = score + cloud.noise * fast_normal(key, slot, CARD_NOISE, i)
            if rank > best_rank and not was_shown(feed.shown, row, i) and not _on_cards(feed, row, m, i):
                best, best_rank, best_score = i, rank, score
        feed.card_items[row, m] = best
        at = feed.cards_at + m * width
        for k in range(width):
            feed.observation[row, at + k] = 0.0
        if best != NO_ITEM:
            _write_item(feed, cloud, row, at, best, best_score)
            feed.observation[row, at + feed.n_features + card_type] = 1.0


@kernel
def _on_cards(feed, row, m, item):
    for j in range(m):
        if feed.card_items[row, j] == item:
            return True
    return False


@kernel
def _write_item(feed, cloud, row, at, item, score):
    """Write the item features (embedding, price level, base ctr, base cvr, freshness) at a column."""
    d = feed.n_embedding
    for k in range(d):
        feed.observation[row, at + k] = cloud.embeddings[item, k]
    feed.observation[row, at + d] = cloud.scalars[item, 0]
    feed.observation[row, at + d + 1] = 1.0 / (1.0 + math.exp(-(score + cloud.score_offset)))
    feed.observation[row, at + d + 2] = cloud.scalars[item, 2]
    feed.observation[row, at + d + 3] = cloud.scalars[item, 3]


@kernel
def upload(feed, row):
    """All behaviour so far reaches the cloud."""
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
    """The page on the wire has arrived (the caller builds it) and restarts the count to the next one."""
    feed.page[row] += 1
    feed.page_age[row] = 0
    feed.page_requested[row] = feed.wire_requested[row]
