"""Kernels that weigh a request: a page built now, as the cloud would build it, against the current page.

The cloud's catalogue as shipped, its query and its ranking are known; only its noise is drawn anew.
"""

from __future__ import annotations

from edgerec_gym.agents.attainable.answers import INTEREST, NEXT, add_user_part
from edgerec_gym.agents.attainable.items import dot_vector, form_query_at
from edgerec_gym.agents.attainable.values import average_leave, found_at, is_empty, standing_shift, weigh_next
from edgerec_gym.compiled.jit import kernel
from edgerec_gym.compiled.random_stream import below, fast_normal

(GROUP, OFFSET, RANK) = range(40, 43)  # purposes of the draws
NOW, LATER, OTHER = range(3)  # rows of `list_value`: the intents now, after a switch, and the current page


@kernel
def weigh_request(b, row, placed, in_order):
    """Return the expected gain of a request at slot `placed`, without its cost.

    Both futures last until the page after a requested one would arrive. What a page is worth fades as the
    user may leave or the intent may switch. With `in_order`, pages are shown in the cloud's order.
    """
    know = b.know
    age = placed - b.arrival[row]
    until = min(know.page_size - age, know.max_slots - placed)
    total = min(know.latency + know.page_size, know.max_slots - placed)
    if until <= know.latency:
        return 0.0
    weigh_next(b, row, placed - b.answered[row])
    fresh = _build_page(b, row, placed)
    kept = _list_current(b, row, in_order)
    stays = 1.0 - average_leave(b, row)
    lasts = 1.0 - know.intent_switch
    gain, seen, same = 0.0, 1.0, 1.0
    first = b.list_value[OTHER, 0]
    if not in_order:  # a request places the cloud's next item
        first = _value_of_first(b, row)
    _value_fresh(b, row, fresh, placed, True, in_order)
    for j in range(total):
        if j < know.latency:
            if kept > 0:
                gain += seen * (first if j == 0 else b.list_value[OTHER, min(j - 1 + in_order, kept - 1)])
        elif fresh > 0:
            k = min(j - know.latency, fresh - 1)
            gain += seen * (same * b.list_value[NOW, k] + (1.0 - same) * b.list_value[LATER, k])
        seen *= stays
        same *= lasts
    _value_fresh(b, row, fresh, placed, False, in_order)
    seen, same = 1.0, 1.0
    for j in range(total):
        if j == until:
            same = 1.0
        if j < until:
            if kept > 0:
                value = b.list_value[OTHER, min(j, kept - 1)]
                other = b.list_value[LATER, min(j, fresh - 1)] if fresh > 0 else 0.0
                gain -= seen * (same * value + (1.0 - same) * min(value, other))
        elif fresh > 0:
            k = min(j - until, fresh - 1)
            gain -= seen * (same * b.list_value[NOW, k] + (1.0 - same) * b.list_value[LATER, k])
        seen *= stays
        same *= lasts
    return gain


@kernel
def _build_page(b, row, placed):
    """List the goods of a page built now in the cloud's order; returns their number."""
    know, key, d = b.know, b.key[row], b.query.shape[0]
    form_query_at(b, row, placed)
    n_groups = know.centroids.shape[0]
    for g in range(n_groups):
        noise = know.noise * fast_normal(key, placed, GROUP, g)
        b.group_rank[g] = dot_vector(b.query, know.centroids, g, d) + noise
        b.group_taken[g] = 0
    n_pool, found = b.seen.pool.shape[1], 0
    for place in range(n_groups):
        if place >= know.probed_categories and found >= n_pool + placed:
            break
        g = 0
        for other in range(1, n_groups):
            if b.group_rank[other] > b.group_rank[g]:
                g = other
        b.group_rank[g] = -1e30
        start, n_items = know.group_bounds[g], know.group_bounds[g + 1] - know.group_bounds[g]
        first = below(n_items, key, placed, OFFSET, g)
        for j in range(min(n_items, know.scan_limit)):
            if found < b.scanned_rank.shape[0]:
                item = start + (first + j) % n_items
                score = dot_vector(b.query, know.catalogue, item, d) + know.catalogue[item, d + 1]
                b.scanned_rank[found] = score + know.noise * fast_normal(key, placed, RANK, item)
                b.scanned_item[found] = item
                b.scanned_group[found] = g
                found += 1
    return _take(b, row, placed, found, n_pool)


@kernel
def _take(b, row, placed, found, n_pool):
    """Take the best by quota that have not been shown, into `listed`; returns their number."""
    know = b.know
    for slot in range(placed):
        item = b.shown[row, slot]
        for j in range(found):
            if b.scanned_item[j] == item:
                b.scanned_rank[j] = -1e30
    quota, taken = max(1, -(-2 * n_pool // know.probed_categories)), 0
    while taken < n_pool:
        best = -1
        for j in range(found):
            if b.scanned_rank[j] > -1e29 and (best < 0 or b.scanned_rank[j] > b.scanned_rank[best]):
                best = j
        if best < 0:
            break
        b.scanned_rank[best] = -1e30
        g = b.scanned_group[best]
        if b.group_taken[g] < quota:
            b.group_taken[g] += 1
            b.listed[taken] = b.scanned_item[best]
            taken += 1
    return taken


@kernel
def _value_fresh(b, row, fresh, placed, requested, in_order):
    """Value the listed goods with today's intents and with switched ones, best first unless `in_order`."""
    know, both, n = b.know, b.weight.shape[1], b.n_particles
    for i in range(both):
        b.shift[i] = 0.0
        if requested:
            cosine = 0.0
            for k in range(b.query.shape[0]):
                cosine += b.intent[row, k, i] * b.page_intent[row, k, i]
            b.shift[i] = know.refresh * b.sensitivity[row, b.user[row, i]] * (1.6 - 2.0 * cosine)
    ahead = placed - b.answered[row]
    switched = 0.0
    for c in range(both - n):
        switched += b.switch[c]
    for j in range(fresh):
        item = b.listed[j]
        shift = standing_shift(b, row, know.expected, item, 0, placed, ahead)
        add_user_part(b, row, know.expected, item, 0, shift, INTEREST)
        now, later = 0.0, 0.0
        for i in range(both):
            interest = b.interest[INTEREST, i] + 0.9**j * b.shift[i] - know.refresh * b.response[row, i]
            match = b.interest[INTEREST, i] - shift
            value = found_at(know, know.expected_rate, item, interest, match, know.click_value)
            now += b.interest[NEXT, i] * value
            if i >= n:
                later += b.switch[i - n] * value
        b.list_value[NOW, j] = now
        b.list_value[LATER, j] = later / max(switched, 1e-9)
    if not in_order:
        _sort(b, NOW, fresh)
        _sort(b, LATER, fresh)


@kernel
def _list_current(b, row, in_order):
    """List the values of the current page's goods; returns their number."""
    kept, d = 0, b.query.shape[0]
    for r in range(b.seen.pool.shape[1]):
        if not is_empty(b.seen.pool[row], r, d):
            b.list_value[OTHER, kept] = b.value[row, r]
            kept += 1
    if not in_order:
        _sort(b, OTHER, kept)
    return kept


@kernel
def _value_of_first(b, row):
    for r in range(b.seen.pool.shape[1]):
        if not is_empty(b.seen.pool[row], r, b.query.shape[0]):
            return b.value[row, r]
    return 0.0


@kernel
def _sort(b, at, n):
    """Sort the first values of a list, the largest first."""
    for i in range(1, n):
        value, j = b.list_value[at, i], i
        while j > 0 and b.list_value[at, j - 1] < value:
            b.list_value[at, j] = b.list_value[at, j - 1]
            j -= 1
        b.list_value[at, j] = value
