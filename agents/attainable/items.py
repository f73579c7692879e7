"""Kernels that recognise items from what is shipped, and the cloud's query that their base ctr contains."""

from __future__ import annotations

import math

from edgerec_gym.agents.attainable.arrays import (
    LOWEST_MATCH,
    MATCH_STEP,
    N_RATES,
)
from edgerec_gym.compiled.jit import kernel, product_kernel, sigmoid

PRICE_LEVEL, BASE_CTR, BASE_CVR = range(3)  # item columns after the embedding
# Gauss-Hermite quadrature: nodes in standard deviations, and weights.
NODES = (-2.8569700138728056, -1.355626179974266, 0.0, 1.355626179974266, 2.8569700138728056)
WEIGHTS = (
    0.011257411327720688, 0.2220759220056126, 0.5333333333333333, 0.2220759220056126, 0.011257411327720688,
)  # fmt: skip


@kernel
def form_query(b, row, arrival):
    """Write the cloud's query behind the page that arrived at slot `arrival` into the workspace."""
    # The request left with the card of slot arrival - latency.
    form_query_at(b, row, arrival - b.know.latency if arrival > 0 else 0)


@kernel
def form_query_at(b, row, slot):
    """Write the cloud's query for a request sent with the card of a slot into the workspace."""
    know, d = b.know, b.query.shape[0]
    if know.upload_period > 0:
        slot = slot // know.upload_period * know.upload_period
    answers = max(0, slot - know.lookahead)
    length = 0.0
    for k in range(d):
        length += b.evidence[row, answers, k] ** 2
    scale = know.recent_weight / (1.0 + math.sqrt(length))
    for k in range(d):
        b.query[k] = know.long_term_weight * b.seen.user[row, k] + scale * b.evidence[row, answers, k]


@product_kernel
def dot(a, i, b, j, size):
    """Return the product of the first `size` columns of a[i] and b[j]."""
    total = 0.0
    for k in range(size):
        total += a[i, k] * b[j, k]
    return total


@product_kernel
def dot_vector(a, b, j, size):
    """Return the product of a vector with the first `size` columns of b[j]."""
    total = 0.0
    for k in range(size):
        total += a[k] * b[j, k]
    return total


@kernel
def recognise(know, query, cards, r, items, at):
    """Write what is expected of cards[r] into items[at]: factor (d), attractiveness, quality, category."""
    d = query.shape[0]
    found = look_up(know, cards, r) if know.exact == 1 else -1
    if found >= 0:
        _copy_traits(know, found, items, at, d)
        return
    ctr = min(max(float(cards[r, d + BASE_CTR]), 1e-7), 1.0 - 1e-7)
    logit = math.log(ctr / (1.0 - ctr)) - know.score_offset
    _expect_factor(know, cards, r, items, at, d)
    _expect_traits(know, cards, r, logit - dot_vector(query, cards, r, d), items, at, d)


@kernel
def recognise_good(know, row, items, at):
    """Write what is expected of a good of the catalogue into items[at], as `recognise` does."""
    d = know.centres.shape[1]
    if know.exact == 1:
        _copy_traits(know, row, items, at, d)
        return
    _expect_factor(know, know.catalogue, row, items, at, d)
    _expect_traits(know, know.catalogue, row, float(know.catalogue[row, d + BASE_CTR]), items, at, d)


@kernel
def _copy_traits(know, row, items, at, d):
    for k in range(d):
        items[at, k] = know.factors[row, k]
    for k in range(3):
        items[at, d + k] = know.traits[row, k]


@kernel
def _expect_traits(know, cards, r, base, items, at, d):
    """Write expected attractiveness and quality, given the item's own logit of base ctr and its columns."""
    for k in range(2):
        total = float(know.regression[k, 0])
        for x in range(know.regression.shape[1] - 1):
            value = float(cards[r, d + x])
            if x == BASE_CTR:
                value = base
            elif x == BASE_CVR:
                value = min(max(value, 1e-6), 1.0 - 1e-6)
                value = math.log(value / (1.0 - value))
            total += know.regression[k, 1 + x] * value
        items[at, d + k] = total


@kernel
def _expect_factor(know, cards, r, items, at, d):
    """Write the expected factor and the likeliest category."""
    n_categories = know.centres.shape[0]
    best, most = 0, -1e30
    for c in range(n_categories):
        match = dot(know.centres, c, cards, r, d)
        if match > most:
            best, most = c, match
    for k in range(d):
        items[at, k] = 0.0
    total = 0.0
    for c in range(n_categories):
        odds = know.sharpness * (dot(know.centres, c, cards, r, d) - most)
        if odds > -8.0:
            odds = math.exp(odds)
            total += odds
            for k in range(d):
                items[at, k] += odds * know.centres[c, k]
    for k in range(d):
        items[at, k] = know.of_centre * items[at, k] / total + know.of_shipped * cards[r, k]
    items[at, d + 2] = best


@kernel
def look_up(know, cards, r):
    """Return the catalogue row of cards[r], -1 if it is none."""
    d, low, high = know.shipped.shape[1], 0, know.shipped.shape[0]
    first = cards[r, 0]
    while low < high:
        middle = (low + high) // 2
        if know.shipped[middle, 0] < first:
            low = middle + 1
        else:
            high = middle
    while low < know.shipped.shape[0] and know.shipped[low, 0] == first:
        same = True
        for k in range(d):
            same = same and know.shipped[low, k] == cards[r, k]
        if same:
            return know.row_of[low]
        low += 1
    return -1


@kernel
def expect_rates(know, items, at, rates):
    """Write the purchases and satisfied page views per click of items[at] at every match of its table."""
    d = items.shape[1] - 3
    # Who clicks an item whose attractiveness is uncertain has probably seen an attractive one.
    quality = items[at, d + 1] + know.trait_variance[2] * know.pseudo_click
    deviation = math.sqrt(know.trait_variance[1])
    for m in range(N_RATES):
        match = LOWEST_MATCH + MATCH_STEP * m
        purchases, satisfied = 0.0, 0.0
        for n in range(5):
            q = quality + deviation * NODES[n]
            share = WEIGHTS[n] * sigmoid(-0.9 + 1.4 * q + 0.4 * match)
            satisfied += share
            purchases += share * know.purchase * sigmoid(-1.6 + 0.5 * q)
        rates[at, m] = purchases
        rates[at, N_RATES + m] = satisfied


@kernel
def rate_at(rates, at, first, match):
    """Return an item's purchases (first = 0) or satisfied views (first = N_RATES) per click at a match."""
    place = min(max((match - LOWEST_MATCH) / MATCH_STEP, 0.0), N_RATES - 1.001)
    m = int(place)
    share = place - m
    return (1.0 - share) * rates[at, first + m] + share * rates[at, first + m + 1]


@kernel
def card_type_of(know, cards, r):
    """Return a card's type, 0 for goods."""
    for k in range(1, know.n_types):
        if cards[r, know.n_features + k] > 0.5:
            return k
    return 0
