"""How a page is built: score items of the best categories, sort them, take the best by quota.

The catalogue is sorted by category, so the items of a category are contiguous. The query is matched with the
centroids first, then with at most `scan_limit` items of each of the best categories. The cost depends neither
on the number of environments nor on the size of the catalogue.
"""

from __future__ import annotations

import math

import numpy as np

from edgerec_gym.cloud.supply import (
    SUPPLY_CATALOGUE,
    SUPPLY_DAILY,
    TRIES,
    draw_entry,
    logged_page,
)
from edgerec_gym.compiled.jit import kernel, product_kernel, sigmoid
from edgerec_gym.compiled.random_stream import (
    CARD_NOISE,
    CARD_PICK,
    PAGE_GROUP,
    PAGE_NOISE,
    PAGE_OFFSET,
    below,
    fast_normal,
)
from edgerec_gym.compiled.selection import best_first
from edgerec_gym.spaces import LEAST_CTR
from edgerec_gym.state import NO_ITEM, UNUSED

WAS_SHOWN, LEFT_BY_QUOTA, TAKEN = range(3)
PRICE_LEVEL, BASE_LOGIT, BASE_CVR, FRESHNESS = range(4)  # columns of an item's scalars, after the embedding
N_MEANS = 4  # the same columns in a page's summary
MOST_LOGIT = math.log(1 / LEAST_CTR - 1)


@kernel
def ctr_logit(ctr):
    """Return the logit of a base ctr, clipped."""
    ctr = min(max(ctr, LEAST_CTR), 1.0 - LEAST_CTR)
    return math.log(ctr / (1.0 - ctr))


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
    """Form the cloud's query; its product with an embedding is the score in logits.

    Little evidence from recent behaviour has little weight; much evidence counts as a direction.
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
    """Return the score of one embedding, in logits."""
    total = np.float32(0.0)
    for k in range(size):
        total += query[worker, k] * vectors[i, k]
    return total


@kernel
def build_page(feed, cloud, row, worker):
    """Replace the pool and the cards of a row with a fresh page that repeats no item already shown."""
    if cloud.supply == SUPPLY_CATALOGUE:
        _form_query(feed, cloud, row, worker)
        found = _scan_groups(feed, cloud, row, worker)
        _fill_pool(feed, cloud, row, worker, found)
        _fill_cards(feed, cloud, row, worker)
        return
    _clear_page(feed, row)
    if cloud.supply == SUPPLY_DAILY:
        _draw_page(feed, cloud, row)
    else:
        _repeat_page(feed, cloud, row)


@kernel
def _clear_page(feed, row):
    """Empty the pool, the cards and the summary of the page."""
    for at in range(feed.pool_at, feed.pool_at + feed.n_pool * feed.n_features):
        feed.observation[row, at] = 0.0
    for at in range(feed.cards_at, feed.cards_at + feed.n_cards * (feed.n_features + feed.n_types)):
        feed.observation[row, at] = 0.0
    for r in range(feed.n_pool):
        feed.pool_items[row, r] = NO_ITEM
    for m in range(feed.n_cards):
        feed.card_items[row, m] = NO_ITEM
    feed.pool_left[row] = 0


@kernel
def _repeat_page(feed, cloud, row):
    """Offer what the visit's next logged page held, in its order."""
    page = logged_page(cloud, feed.visit[row], feed.page[row])
    first, end = cloud.page_entries[page], cloud.page_entries[page + 1]
    for e in range(first, end):
        _offer(feed, cloud, row, e)
    _summarise(feed, cloud, row, first, end)


@kernel
def _summarise(feed, cloud, row, first, end):
    """Write the means of a logged page's cards and its size, as they are read from a log."""
    n = end - first
    for k in range(N_MEANS):
        total = 0.0
        for e in range(first, end):
            value = cloud.entry_values[e, k]
            total += ctr_logit(value) if k == BASE_LOGIT else value
        feed.page_summary[row, k] = total / n
    feed.page_summary[row, N_MEANS] = math.log(n / feed.page_size)


@kernel
def _draw_page(feed, cloud, row):
    """Offer what was shown on the visit's day, each item as often as it was shown."""
    key, slot = feed.key[row], feed.slot[row]
    for j in range(TRIES * (feed.n_pool + feed.n_cards)):
        e = draw_entry(cloud, feed.visit[row], key, slot, j)
        if not _on_page(feed, row, cloud.entry_items[e]):
            _offer(feed, cloud, row, e)
    e = cloud.day_entries[feed.visit[row], 0]
    while feed.pool_left[row] == 0:  # all were shown in this session before; each day has goods
        if cloud.entry_items[e] < cloud.type_bounds[1]:
            _offer(feed, cloud, row, e)
        e += 1
    at, n = feed.pool_at + feed.n_embedding, min(feed.pool_left[row], feed.page_size)
    for k in range(N_MEANS):
        total = 0.0
        for r in range(n):
            value = feed.observation[row, at + r * feed.n_features + k]
            total += ctr_logit(value) if k == BASE_LOGIT else value
        feed.page_summary[row, k] = total / max(n, 1)
    feed.page_summary[row, N_MEANS] = 0.0


@kernel
def _on_page(feed, row, item):
    """Whether an item is on the page already or was placed this session."""
    if was_shown(feed.shown, row, item):
        return True
    for r in range(feed.pool_left[row]):
        if feed.pool_items[row, r] == item:
            return True
    return _on_cards(feed, row, feed.n_cards, item)


@kernel
def _offer(feed, cloud, row, entry):
    """Add a logged entry to the pool, or to the first free row of cards of its type; if full, drop it."""
    item = cloud.entry_items[entry]
    card_type = 0
    while item >= cloud.type_bounds[card_type + 1]:
        card_type += 1
    if card_type == 0:
        r = feed.pool_left[row]
        if r < feed.n_pool:
            feed.pool_items[row, r] = item
            feed.pool_left[row] += 1
            _write_entry(feed, cloud, row, feed.pool_at + r * feed.n_features, entry)
        return
    width = feed.n_features + feed.n_types
    for m in range(card_type - 1, feed.n_cards, feed.n_types - 1):
        if feed.card_items[row, m] == NO_ITEM:
            at = feed.cards_at + m * width
            feed.card_items[row, m] = item
            _write_entry(feed, cloud, row, at, entry)
            feed.observation[row, at + feed.n_features + card_type] = 1.0
            return


@kernel
def _write_entry(feed, cloud, row, at, entry):
    """Write the features of a logged entry: its embedding if it was known, other values as they were."""
    d, item = feed.n_embedding, cloud.entry_items[entry]
    for k in range(d):
        feed.observation[row, at + k] = cloud.items[item, k] if cloud.entry_known[entry] else 0.0
    for k in range(cloud.entry_values.shape[1]):
        feed.observation[row, at + d + k] = cloud.entry_values[entry, k]


@kernel
def _scan_groups(feed, cloud, row, worker):
    """Score up to `scan_limit` items of each of the best groups, from a random one on; returns how many."""
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
        _scan(cloud, ranking, worker, key, slot, start + first, before_wrap, found, size, g)
        _scan(cloud, ranking, worker, key, slot, start, scanned - before_wrap, found + before_wrap, size, g)
        found += scanned
    return found


@kernel
def _take_best(values, worker, n):
    """Return the index of the largest value, and strike it out."""
    best = 0
    for g in range(1, n):
        if values[worker, g] > values[worker, best]:
            best = g
    values[worker, best] = -np.inf
    return best


@kernel
def _scan(cloud, ranking, worker, key, slot, first, n_items, found, size, group):
    """Score contiguous catalogue rows, in two loops, since only the second one is integer work."""
    for j in range(n_items):
        i = first + j
        score = _match(ranking.query, worker, cloud.items, i, size) + cloud.items[i, size + BASE_LOGIT]
        ranking.group[worker, found + j] = group
        ranking.item[worker, found + j] = i
        ranking.score[worker, found + j] = score
    noise = np.float32(cloud.noise)
    for j in range(n_items):
        ranking.rank[worker, found + j] = ranking.score[worker, found + j] + noise * np.float32(
            fast_normal(key, slot, PAGE_NOISE, first + j)
        )


@kernel
def _fill_pool(feed, cloud, row, worker, found):
    """Fill the pool best first, with at most `quota` of one category while others can fill the page."""
    for k in range(N_MEANS):
        feed.page_summary[row, k] = 0.0
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
            if r < feed.page_size:
                _add_to_summary(feed, cloud, row, item, ranking.score[worker, j])
            r += 1
    feed.pool_left[row] = r


@kernel
def _add_to_summary(feed, cloud, row, item, score):
    """Add one of the page's first candidates to the means of the page."""
    at, share = feed.n_embedding, 1.0 / feed.page_size
    logit = min(max(score + cloud.score_offset, -MOST_LOGIT), MOST_LOGIT)
    feed.page_summary[row, PRICE_LEVEL] += share * cloud.items[item, at + PRICE_LEVEL]
    feed.page_summary[row, BASE_LOGIT] += share * logit
    feed.page_summary[row, BASE_CVR] += share * cloud.items[item, at + BASE_CVR]
    feed.page_summary[row, FRESHNESS] += share * cloud.items[item, at + FRESHNESS]


@kernel
def _take_by_quota(feed, cloud, row, worker, found, quota):
    """Mark the sorted candidates that the page takes; returns how many it looked at and places left."""
    ranking, left, at = feed.ranking, feed.n_pool, 0
    for g in range(cloud.centroids.shape[0]):
        ranking.group_taken[worker, g] = 0
    while left > 0 and at < found:
        j = ranking.order[worker, at]
        item = ranking.item[worker, j]
        g = ranking.group[worker, j]
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
    """Fill each card row m with the best of a random handful of items of type 1 + m mod (T - 1)."""
    key, slot, size = feed.key[row], feed.slot[row], feed.n_embedding
    width, tries = feed.n_features + feed.n_types, cloud.scan_limit // 4
    for m in range(feed.n_cards):
        card_type = 1 + m % (feed.n_types - 1)
        start = cloud.type_bounds[card_type]
        n_items = cloud.type_bounds[card_type + 1] - start
        best, best_rank, best_score = NO_ITEM, -1e300, 0.0
        for j in range(min(n_items, tries)):
            i = start + below(n_items, key, slot, CARD_PICK, m * 65536 + j)
            score = _match(feed.ranking.query, worker, cloud.items, i, size)
            score += cloud.items[i, size + BASE_LOGIT]
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
    """Write the item features (embedding, price level, base ctr, base cvr, freshness, item columns)."""
    d = feed.n_embedding
    for k in range(d):
        feed.observation[row, at + k] = cloud.items[item, k]
    feed.observation[row, at + d] = cloud.items[item, d]
    feed.observation[row, at + d + 1] = sigmoid(score + cloud.score_offset)
    feed.observation[row, at + d + 2] = cloud.items[item, d + 2]
    feed.observation[row, at + d + 3] = cloud.items[item, d + 3]
    for k in range(cloud.item_columns.shape[1]):
        feed.observation[row, at + d + 4 + k] = cloud.item_columns[item, k]
