"""Kernels that value candidates by the belief about a session."""

from __future__ import annotations

import math

from edgerec_gym.agents.attainable.answers import (
    CARD_APPEAL,
    INTEREST,
    NEXT,
    add_user_part,
    apart,
    beside,
    find_card,
)
from edgerec_gym.agents.attainable.arrays import LOWEST, N_POINTS, N_RATES, STEP
from edgerec_gym.agents.attainable.items import (
    card_type_of,
    expect_rates,
    form_query,
    rate_at,
    recognise,
)
from edgerec_gym.agents.attainable.particles import expect_switch
from edgerec_gym.compiled.jit import kernel, sigmoid
from edgerec_gym.users.synthetic_kernels import MEMORY, WEARINESS_MEMORY


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
    old, new = 0.0, 0.0
    for i in range(n):
        old += b.weight[row, i]
    for i in range(n):
        b.interest[NEXT, i] = lasts * b.weight[row, i]
    for c in range(b.switch.shape[0]):
        new = lasts * b.weight[row, n + c] + (1.0 - lasts) * b.switch[c] / old
        b.interest[NEXT, n + c] = new


@kernel
def value_candidates(b, row, placed, retention):
    """Write value and click probability of every candidate at the next slot."""
    know, d, n_pool = b.know, b.query.shape[0], b.seen.pool.shape[1]
    answered, both = b.answered[row], b.weight.shape[1]
    ahead = placed - answered
    weigh_next(b, row, ahead)
    above = find_card(b, row, placed - 1, placed, answered, 1)
    bored = 0.0
    for i in range(both):
        bored += b.interest[NEXT, i] * b.boredom[row, i]
    price = retention * _price_of_boredom(b, row, placed)
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
        shift = standing_shift(b, row, b.candidate[row], r, own_type, placed, ahead)
        if above >= 0:
            for k in range(d + 3):
                b.item[0, k] = b.candidate[row, r, k]
            shift += beside(know, b.item, 0, 1, own_type, above)
        shift += apart(b, row, placed - 2, placed, answered, own_type)
        _value(b, row, r, own_type, shift, bored, price)


@kernel
def standing_shift(b, row, items, at, own_type, slot, ahead):
    """Return the part of the interest in an item that is the same for all particles, but for neighbours."""
    know, d = b.know, b.query.shape[0]
    category = int(items[at, d + 2])
    shift = know.pseudo_click * items[at, d] - know.fatigue * slot / 100.0
    shift -= know.satiation * b.satiation[row, category] * MEMORY**ahead
    # Cards on screen will most likely not be clicked; they are not counted.
    shift -= know.weariness * b.weariness[row, category] * WEARINESS_MEMORY**ahead
    return shift + (CARD_APPEAL if own_type > 0 else 0.0)


@kernel
def _price_of_boredom(b, row, placed):
    """Return how much reward a unit of boredom costs: it makes users leave for as long as it lasts."""
    know, leaves = b.know, 0.0
    for i in range(b.weight.shape[1]):
        logit = b.leave[row, b.user[row, i]] + 5.0 * know.patience * b.boredom[row, i]
        leaves += b.interest[NEXT, i] * sigmoid(logit)
    left = know.max_slots - placed
    slots = (1.0 - (1.0 - leaves) ** left) / leaves
    lasting = 1.0 / (1.0 - 0.93 * (1.0 - leaves))
    return 5.0 * know.patience * leaves * (1.0 - leaves) * lasting * slots


@kernel
def _value(b, row, r, own_type, shift, bored, price):
    """Write the value of one candidate."""
    know, both = b.know, b.weight.shape[1]
    add_user_part(b, row, b.candidate[row], r, own_type, shift, INTEREST)
    click_value = know.click_value + (know.insert_value if own_type > 0 else 0.0)
    value, clicks, rates = 0.0, 0.0, b.rate[row]
    for i in range(both):
        interest = b.interest[INTEREST, i]
        place = min(max((interest - LOWEST) / STEP, 0.0), N_POINTS - 1.001)
        g = int(place)
        share = place - g
        click = (1.0 - share) * know.click[g] + share * know.click[g + 1]
        dull = (1.0 - share) * know.dull[g] + share * know.dull[g + 1]
        match = interest - shift
        found = click * (click_value + know.purchase_value * rate_at(rates, r, 0, match))
        if price > 0.0:
            satisfied = click * rate_at(rates, r, N_RATES, match)
            found -= price * (0.07 * dull - 0.5 * bored * satisfied + 0.1 * (click - satisfied))
        value += b.interest[NEXT, i] * found
        clicks += b.interest[NEXT, i] * click
    b.value[row, r] = value
    b.clicks[row, r] = clicks
