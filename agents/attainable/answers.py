"""Kernels that learn from the answer to one card, as the ground truth would have drawn it."""

from __future__ import annotations

import math

from edgerec_gym.agents.attainable.arrays import LOWEST, N_POINTS, REACH, STEP
from edgerec_gym.agents.attainable.items import NODES, WEIGHTS, card_type_of, form_query, look_up, recognise
from edgerec_gym.agents.attainable.particles import switch_intents, thin_out
from edgerec_gym.answers import (
    COUNT_LEVELS,
    DWELL_BUCKETS,
    N_PAGE_VIEW_ACTIONS,
    PAGE_VIEW_BUCKETS,
    SPEED_LEVELS,
)
from edgerec_gym.cloud.interest import DWELL_CENTRE
from edgerec_gym.compiled.jit import kernel, product_kernel, sigmoid
from edgerec_gym.users.synthetic_kernels import (
    CARD_APPEAL,
    MEMORY,
    PAGE_VIEW_RATES,
    REFRESH_MEMORY,
    WEARINESS_MEMORY,
)

BUY_ACTION = 2  # place of `buy` among the page-view actions
LEAST = 1e-12  # probabilities below it count as this much
LIKELIHOOD, BORED, LOG, SLOPE = range(4)  # rows of the workspace `point`
INTEREST, LOG_WEIGHT, NEXT = range(3)  # rows of the workspace `interest`


@kernel
def normal_below(x):
    """Return the standard normal distribution function."""
    return 0.5 * math.erfc(-0.7071067811865476 * x)


@kernel
def likelihood(interest, click_bias, bucket, count, speed, deleted, click):
    """Return the probability of e1, e2, e3, e6 and the click at an interest."""
    mean = 0.2 + 0.55 * interest
    high = 1.0 if bucket == DWELL_BUCKETS - 1 else normal_below((bucket - 1.0 - mean) / 0.9)
    low = 0.0 if bucket == 0 else normal_below((bucket - 2.0 - mean) / 0.9)
    found = max(high - low, LEAST)
    drawn_in = sigmoid(interest - 2.0)
    if count == 0:
        found *= 1.0 - 0.25 * drawn_in
    elif count == 1:
        found *= 0.17 * drawn_in
    else:
        found *= 0.08 * drawn_in
    power = 1.0 / (0.6 + drawn_in)
    found *= ((speed + 1.0) / SPEED_LEVELS) ** power - (speed / SPEED_LEVELS) ** power
    deletes = 0.02 * (1.0 - drawn_in)
    found *= deletes if deleted else 1.0 - deletes
    p = sigmoid(interest + click_bias)
    return max(found * (p if click else 1.0 - p), LEAST * LEAST)


@kernel
def view_likelihood(views, r, first, satisfied):
    """Return the probability of the page-view actions at columns `first` on, if the view satisfied or not."""
    bucket = int(round(float(views[r, first]) * (PAGE_VIEW_BUCKETS - 1)))
    if satisfied:
        found = 0.2 if bucket >= 3 else 0.0
    else:
        found = math.sqrt(min(1.0, (bucket + 1) / 3.5)) - math.sqrt(min(1.0, bucket / 3.5))
    for k in range(1, N_PAGE_VIEW_ACTIONS):
        done = views[r, first + k] > 0.5
        if k == BUY_ACTION:
            if done and not satisfied:
                found = 0.0
        else:
            rate = PAGE_VIEW_RATES[k] if satisfied else 0.1 * PAGE_VIEW_RATES[k]
            found *= rate if done else 1.0 - rate
    return found


@kernel
def at_point(table, r, interest):
    """Interpolate row r of a table over interest."""
    place = min(max((interest - LOWEST) / STEP, 0.0), N_POINTS - 1.001)
    g = int(place)
    share = place - g
    return (1.0 - share) * table[r, g] + share * table[r, g + 1]


@product_kernel
def add_products(totals, r, vectors, items, at, scale, size, n):
    """Add scale x (vectors[:, i] x items[at]) to totals[r, i] for i < n."""
    for k in range(size):
        part = scale * items[at, k]
        for i in range(n):
            totals[r, i] += part * vectors[k, i]


@kernel
def beside(know, items, at, other, own_type, other_type):
    """Return what the neighbour items[other] adds to the interest in items[at]."""
    d = items.shape[1] - 3
    contrast = min(2.0, max(-2.0, float(items[at, d]) - items[other, d]))
    effect = 0.12 * contrast + 0.5 * know.type_effect[own_type, other_type]
    if own_type > 0 and own_type == other_type:
        effect -= 0.6
    if items[at, d + 2] == items[other, d + 2]:
        effect -= 0.15
    return know.surroundings * effect


@kernel
def find_card(b, row, slot, placed, answered, r):
    """Recognise the card of a slot into item r of the workspace; returns its type, -1 if it is not in sight.

    `placed` and `answered` count the session's slots in the observation.
    """
    if slot < 0 or slot >= placed:
        return -1
    form_query(b, row, b.page_of[row, slot])
    if slot >= answered:
        at = b.seen.screen.shape[1] - placed + slot
        if at < 0:
            return -1
        recognise(b.know, b.query, b.seen.screen[row], at, b.item, r)
        return card_type_of(b.know, b.seen.screen[row], at)
    at = slot - max(0, answered - b.seen.exposures.shape[1])
    if at < 0:
        return -1
    recognise(b.know, b.query, b.seen.exposures[row], at, b.item, r)
    return card_type_of(b.know, b.seen.exposures[row], at)


@kernel
def apart(b, row, slot, placed, answered, own_type):
    """Return the effect of a card two slots away: one of the same type hurts."""
    if own_type <= 0 or slot < 0 or slot >= placed:
        return 0.0
    other = -1
    if slot >= answered:
        at = b.seen.screen.shape[1] - placed + slot
        if at >= 0:
            other = card_type_of(b.know, b.seen.screen[row], at)
    else:
        at = slot - max(0, answered - b.seen.exposures.shape[1])
        if at >= 0:
            other = card_type_of(b.know, b.seen.exposures[row], at)
    return -0.3 * b.know.surroundings if other == own_type else 0.0


@kernel
def add_user_part(b, row, items, at, card_type, shift, r):
    """Write the interest in an item into row r of the workspace: `shift` plus what particles differ in."""
    know, d, both = b.know, b.query.shape[0], b.weight.shape[1]
    hypotheses = b.taste.shape[1]
    for i in range(both):
        b.interest[r, i] = shift + know.refresh * b.response[row, i]
    add_products(b.interest, r, b.intent[row], items, at, know.intent, d, both)
    for h in range(hypotheses):
        part = 0.0
        for k in range(d):
            part += b.taste[row, h, k] * items[at, k]
        b.of_user[h] = know.taste * part
        if card_type > 0:
            b.of_user[h] += know.type_taste * b.type_taste[row, h, card_type]
    for i in range(both):
        b.interest[r, i] += b.of_user[b.user[row, i]]


@kernel
def learn(b, row, slot, placed, answered, exposure, view):
    """Update the belief by the answer to the card of a slot.

    `exposure` and `view` are rows of the histories; `view` is -1 without a click. `placed` and `answered`
    count the slots of the session in the observation.
    """
    know, d = b.know, b.query.shape[0]
    shown = min(placed, slot + know.lookahead + 1)  # what the user had on screen
    own_type = find_card(b, row, slot, placed, answered, 0)
    _notice_page(b, row, slot)
    category = int(b.item[0, d + 2])
    shift = know.pseudo_click * b.item[0, d] - know.fatigue * slot / 100.0
    shift -= know.satiation * b.satiation[row, category] + know.weariness * b.weariness[row, category]
    if own_type > 0:
        shift += CARD_APPEAL
    for step in range(-1, 2, 2):
        other_type = find_card(b, row, slot + step, shown, min(answered, shown), 1)
        if other_type >= 0:
            shift += beside(know, b.item, 0, 1, own_type, other_type)
    for step in range(-2, 3, 4):
        shift += apart(b, row, slot + step, shown, min(answered, shown), own_type)
    add_user_part(b, row, b.item, 0, own_type, shift, INTEREST)
    _tabulate(b, row, exposure, view, shift)
    satisfied = _weigh(b, row, view, shift)
    _advance(b, row, category, view >= 0, satisfied)
    _thin_and_switch(b, row, slot)
    _follow_evidence(b, row, exposure, view)
    b.answered[row] = slot + 1
    b.shown[row, slot] = look_up(know, b.seen.exposures[row], exposure)


@kernel
def _notice_page(b, row, slot):
    """React to a page at its first card, as users do."""
    both, d = b.weight.shape[1], b.query.shape[0]
    for i in range(both):
        b.response[row, i] *= REFRESH_MEMORY
    if slot == 0 or b.page_of[row, slot] != slot:
        return
    if b.asked_for[row, slot] == 1:
        for i in range(both):
            cosine = 0.0
            for k in range(d):
                cosine += b.intent[row, k, i] * b.page_intent[row, k, i]
            moved = 1.0 - cosine
            b.response[row, i] = b.sensitivity[row, b.user[row, i]] * (2.0 * moved - 0.4)
    for k in range(d):
        for i in range(both):
            b.page_intent[row, k, i] = b.intent[row, k, i]


@kernel
def _tabulate(b, row, exposure, view, shift):
    """Tabulate the answer's log likelihood over interest, its slope, and the boredom that goes with it.

    The item's traits and the intent's offset are uncertain: the tables are averages over them.
    """
    know, point, shown = b.know, b.point, b.seen.exposures[row]
    at = know.n_features + know.n_types
    bucket = int(round(float(shown[exposure, at]) * (DWELL_BUCKETS - 1)))
    count = int(round(float(shown[exposure, at + 1]) * (COUNT_LEVELS - 1)))
    speed = int(round(float(shown[exposure, at + 2]) * (SPEED_LEVELS - 1)))
    deleted = shown[exposure, at + 5] > 0.0
    for g in range(N_POINTS):
        interest = LOWEST + STEP * g
        p = likelihood(interest, know.click_bias, bucket, count, speed, deleted, view >= 0)
        point[LOG, g] = p
        point[SLOPE, g] = p * sigmoid(1.5 - interest)
    reach = REACH
    while reach > 0 and know.smooth_answer[REACH + reach] < 1e-5:
        reach -= 1
    for g in range(N_POINTS):
        total, bored = 0.0, 0.0
        for k in range(-reach, reach + 1):
            other = min(max(g + k, 0), N_POINTS - 1)
            total += know.smooth_answer[REACH + k] * point[LOG, other]
            bored += know.smooth_answer[REACH + k] * point[SLOPE, other]
        point[LIKELIHOOD, g] = total
        point[BORED, g] = bored / total
    for g in range(N_POINTS):
        point[LOG, g] = math.log(point[LIKELIHOOD, g])
    for g in range(N_POINTS):
        low, high = max(g - 1, 0), min(g + 1, N_POINTS - 1)
        point[SLOPE, g] = (point[LOG, high] - point[LOG, low]) / (STEP * (high - low))


@kernel
def _weigh(b, row, view, shift):
    """Weigh the particles by the answer and move their intents; returns the probability of satisfaction."""
    know, d, both = b.know, b.query.shape[0], b.weight.shape[1]
    liked, disliked, first = 0.0, 0.0, know.n_features + know.n_types
    if view >= 0:
        liked = view_likelihood(b.seen.page_views[row], view, first, True)
        disliked = view_likelihood(b.seen.page_views[row], view, first, False)
    best = -1e30
    for i in range(both):
        log = -1e30
        if b.weight[row, i] > 0.0:
            log = math.log(b.weight[row, i]) + at_point(b.point, LOG, b.interest[INTEREST, i])
        b.interest[LOG_WEIGHT, i] = log
        best = max(best, log)
    total, happy = 0.0, 0.0
    quality = b.item[0, d + 1] + know.trait_variance[2] * know.pseudo_click
    deviation = math.sqrt(know.trait_variance[1])
    for i in range(both):
        weight = math.exp(b.interest[LOG_WEIGHT, i] - best)
        if view >= 0 and weight > 0.0:
            match, p = b.interest[INTEREST, i] - shift, 0.0
            for n in range(5):
                p += WEIGHTS[n] * sigmoid(-0.9 + 1.4 * (quality + deviation * NODES[n]) + 0.4 * match)
            happy += weight * p * liked
            weight *= p * liked + (1.0 - p) * disliked
        b.weight[row, i] = weight
        total += weight
        b.boredom[row, i] = 0.93 * b.boredom[row, i] + 0.07 * at_point(
            b.point, BORED, b.interest[INTEREST, i]
        )
        # The offset of the intent from its centre is small and normal: one step to its posterior mean.
        move = know.offset_variance * know.intent * at_point(b.point, SLOPE, b.interest[INTEREST, i])
        for k in range(d):
            b.intent[row, k, i] += move * b.item[0, k]
    satisfied = happy / total if view >= 0 else 0.0
    for i in range(both):
        b.weight[row, i] /= total
    return satisfied


@kernel
def _advance(b, row, category, click, satisfied):
    """Advance satiation, weariness, boredom and the drift of the intent, as far as the user is satisfied."""
    know, both, d = b.know, b.weight.shape[1], b.query.shape[0]
    for c in range(b.switch.shape[0]):
        b.satiation[row, c] *= MEMORY
        b.weariness[row, c] *= WEARINESS_MEMORY
    b.satiation[row, category] += satisfied
    b.weariness[row, category] = 0.0 if click else b.weariness[row, category] + 1.0
    if not click:
        return
    step = know.intent_drift * satisfied
    for i in range(both):
        bored = b.boredom[row, i] * (1.0 - 0.5 * satisfied)
        b.boredom[row, i] = min(1.0, bored + 0.1 * (1.0 - satisfied))
        cosine = 0.0
        for k in range(d):
            cosine += b.intent[row, k, i] * b.item[0, k]
        length = math.sqrt(max((1.0 - step) ** 2 + step**2 + 2.0 * step * (1.0 - step) * cosine, 1e-6))
        for k in range(d):
            b.intent[row, k, i] = ((1.0 - step) * b.intent[row, k, i] + step * b.item[0, k]) / length


@kernel
def _thin_and_switch(b, row, slot):
    """Weigh by the fact that the user has stayed, thin out the particles and let intents switch."""
    total, both = 0.0, b.weight.shape[1]
    for i in range(both):
        if b.weight[row, i] > 0.0:
            leave = b.leave[row, b.user[row, i]] + 5.0 * b.know.patience * b.boredom[row, i]
            b.weight[row, i] *= 1.0 - sigmoid(leave)
        total += b.weight[row, i]
    for i in range(both):
        b.weight[row, i] /= total
    thin_out(b, row, slot)
    switch_intents(b, row, slot)


@kernel
def _follow_evidence(b, row, exposure, view):
    """Follow the device's interest, which requests for pages carry to the cloud (feed/kernels.py)."""
    know, n, at = b.know, b.answered[row], b.know.n_features + b.know.n_types
    evidence = know.dwell_weight * (b.seen.exposures[row, exposure, at] - DWELL_CENTRE)
    if view >= 0:
        looked = b.seen.page_views[row, view, at] - DWELL_CENTRE
        evidence += know.click_weight + know.page_view_weight * looked
    for k in range(b.query.shape[0]):
        seen = evidence * b.seen.exposures[row, exposure, k]
        b.evidence[row, n + 1, k] = know.interest_decay * b.evidence[row, n, k] + seen
