"""Kernels that value candidates by the belief about a session."""

from __future__ import annotations

import math

from edgerec_gym.agents.attainable.answers import (
    INTEREST,
    NEXT,
    add_user_part,
    apart,
    beside,
    find_card,
)
from edgerec_gym.agents.attainable.arrays import LOWEST, N_POINTS, STEP
from edgerec_gym.agents.attainable.items import (
    card_type_of,
    expect_rates,
    form_query,
    rate_at,
    recognise,
)
from edgerec_gym.agents.attainable.particles import expect_switch
from edgerec_gym.compiled.jit import kernel, sigmoid
from edgerec_gym.users.synthetic_kernels import CARD_APPEAL, MEMORY, WEARINESS_MEMORY


@kernel
def is_empty(cards, r, d):
    """Whether a row of candidates is used up."""
    for k in range(d):
        if cards[r, k] != 0.0:
            return False
    return True


@kernel
def recognise_page(b, row):
    """Recognise the candidates of a page that has just arrived."""
    d, n_pool = b.query.shape[0], b.seen.pool.shape[1]
    form_query(b, row, b.arrival[row])
    for r in range(n_pool + b.seen.cards.shape[1]):
        if r < n_pool:
            cards, at = b.seen.pool[row], r
        else:
            cards, at = b.seen.cards[row], r - n_pool
        if not is_empty(cards, at, d):
            recognise(b.know, b.query, cards, at, b.candidate[row], r)
            expect_rates(b.know, b.candidate[row], r, b.rate[row])


@kernel
def weigh_next(b, row, ahead):
    """Write the particles' weights after `ahead` more answers into the workspace: intents may switch."""
    know, n = b.know, b.n_particles
    lasts = (1.0 - know.intent_switch) ** ahead
    expect_switch(b, row)
    old = 0.0
    for i in range(n):
        old += b.weight[row, i]
    for i in range(n):
        b.interest[NEXT, i] = lasts * b.weight[row, i]
    for c in range(b.switch.shape[0]):
        switched = (1.0 - lasts) * b.switch[c] / old
        b.interest[NEXT, n + c] = lasts * b.weight[row, n + c] + switched


@kernel
def average_leave(b, row):
    """Return the probability that the user leaves after the next answer."""
    leaves, total = 0.0, 0.0
    for i in range(b.weight.shape[1]):
        if b.weight[row, i] > 0.0:
            logit = b.leave[row, b.user[row, i]] + 5.0 * b.know.patience * b.boredom[row, i]
            leaves += b.weight[row, i] * sigmoid(logit)
            total += b.weight[row, i]
    return leaves / total


@kernel
def click_at(know, interest):
    """Return the click probability at an expected interest."""
    place = min(max((interest - LOWEST) / STEP, 0.0), N_POINTS - 1.001)
    g = int(place)
    share = place - g
    return (1.0 - share) * know.click[g] + share * know.click[g + 1]


@kernel
def found_at(know, rates, at, interest, match, click_value):
    """Return the expected reward of a candidate at an expected interest and match."""
    return click_at(know, interest) * (click_value + know.purchase_value * rate_at(rates, at, 0, match))


@kernel
def standing_shift(b, row, items, at, own_type, slot, ahead):
    """Return the part of the interest in an item that is the same for all particles, but for neighbours.

    Cards on screen are unlikely to be clicked; what they will do to satiation and weariness is left out.
    """
    know, d = b.know, b.query.shape[0]
    category = int(items[at, d + 2])
    shift = know.pseudo_click * items[at, d] - know.fatigue * slot / 100.0
    shift -= know.satiation * b.satiation[row, category] * MEMORY**ahead
    shift -= know.weariness * b.weariness[row, category] * WEARINESS_MEMORY**ahead
    return shift + (CARD_APPEAL if own_type > 0 else 0.0)


@kernel
def value_candidates(b, row, placed):
    """Write value and click probability of every candidate at the next slot."""
    know, d, n_pool = b.know, b.query.shape[0], b.seen.pool.shape[1]
    answered = b.answered[row]
    weigh_next(b, row, placed - answered)
    above = find_card(b, row, placed - 1, placed, answered, 1)
    for r in range(n_pool + b.seen.cards.shape[1]):
        b.value[row, r] = -1.0
        b.clicks[row, r] = 0.0
        if r < n_pool:
            cards, at = b.seen.pool[row], r
        else:
            cards, at = b.seen.cards[row], r - n_pool
        if is_empty(cards, at, d):
            continue
        own_type = 0 if r < n_pool else card_type_of(know, cards, at)
        shift = _add_interest(b, row, r, own_type, above, placed, placed - answered)
        _average(b, row, r, own_type, shift)


@kernel
def _add_interest(b, row, r, own_type, above, placed, ahead):
    """Write the interest in a candidate at the next slot into the workspace; returns its common part."""
    shift = standing_shift(b, row, b.candidate[row], r, own_type, placed, ahead)
    if above >= 0:
        for k in range(b.item.shape[1]):
            b.item[0, k] = b.candidate[row, r, k]
        shift += beside(b.know, b.item, 0, 1, own_type, above)
    shift += apart(b, row, placed - 2, placed, b.answered[row], own_type)
    add_user_part(b, row, b.candidate[row], r, own_type, shift, INTEREST)
    return shift


@kernel
def expect_interest(b, row, placed, r, interest):
    """Write the particles' interest in a candidate, were it answered now, into interest[row]."""
    own_type, n_pool = 0, b.seen.pool.shape[1]
    if r >= n_pool:
        own_type = card_type_of(b.know, b.seen.cards[row], r - n_pool)
    above = find_card(b, row, placed - 1, placed, b.answered[row], 1)
    _add_interest(b, row, r, own_type, above, placed, 0)
    for i in range(interest.shape[1]):
        interest[row, i] = b.interest[INTEREST, i]


@kernel
def _average(b, row, r, own_type, shift):
    """Write the value and the click probability of one candidate, averaged over the particles."""
    know, rates, value, clicks, square = b.know, b.rate[row], 0.0, 0.0, 0.0
    click_value = know.click_value + (know.insert_value if own_type > 0 else 0.0)
    for i in range(b.weight.shape[1]):
        interest = b.interest[INTEREST, i]
        click = click_at(know, interest)
        found = click * (click_value + know.purchase_value * rate_at(rates, r, 0, interest - shift))
        value += b.interest[NEXT, i] * found
        square += b.interest[NEXT, i] * found * found
        clicks += b.interest[NEXT, i] * click
    b.value[row, r] = value
    b.spread[row, r] = math.sqrt(max(0.0, square - value * value))
    b.clicks[row, r] = clicks


@kernel
def value_places(b, row, placed, order, cards, goods):
    """Write what cards (M, T) and goods (T,) would earn at the slots ahead, the pool shown in `order`."""
    know, d, n_pool = b.know, b.query.shape[0], b.seen.pool.shape[1]
    answered, n_cards = b.answered[row], b.seen.cards.shape[1]
    above = find_card(b, row, placed - 1, placed, answered, 2)
    for t in range(goods.shape[1]):
        weigh_next(b, row, placed - answered + t)
        goods[row, t] = 0.0
        if t > 0:
            above = _copy_good(b, row, order, t - 1, 2)
        here = _copy_good(b, row, order, t, 3)
        below = _copy_good(b, row, order, t + 1, 4)
        for m in range(n_cards + 1):
            if m < n_cards:
                cards[row, m, t] = 0.0
                if is_empty(b.seen.cards[row], m, d):
                    continue
                r, own_type, after, next_type = n_pool + m, card_type_of(know, b.seen.cards[row], m), 3, here
            else:
                if here < 0:
                    continue
                r, own_type, after, next_type = order[row, t], 0, 4, below
            for k in range(d + 3):
                b.item[0, k] = b.candidate[row, r, k]
            shift = standing_shift(b, row, b.candidate[row], r, own_type, placed + t, placed - answered + t)
            if above >= 0:
                shift += beside(know, b.item, 0, 2, own_type, above)
            if next_type >= 0:
                shift += beside(know, b.item, 0, after, own_type, next_type)
            if t == 0:
                shift += apart(b, row, placed - 2, placed, answered, own_type)
            add_user_part(b, row, b.candidate[row], r, own_type, shift, INTEREST)
            click_value = know.click_value + (know.insert_value if own_type > 0 else 0.0)
            value = 0.0
            for i in range(b.weight.shape[1]):
                interest = b.interest[INTEREST, i]
                found = found_at(know, b.rate[row], r, interest, interest - shift, click_value)
                value += b.interest[NEXT, i] * found
            if m < n_cards:
                cards[row, m, t] = value
            else:
                goods[row, t] = value


@kernel
def _copy_good(b, row, order, t, to):
    """Copy the good at place t of an order into the workspace; returns its type, -1 if there is none."""
    d = b.query.shape[0]
    if t >= order.shape[1] or is_empty(b.seen.pool[row], order[row, t], d):
        return -1
    for k in range(d + 3):
        b.item[to, k] = b.candidate[row, order[row, t], k]
    return 0
