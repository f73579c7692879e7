"""The ground truth's behaviour as kernels over one row: start, answer, and the true probabilities.

Every effect is a term with a weight in SyntheticUserConfig; 0 switches it off.
"""

from __future__ import annotations

import math

import numpy as np

from edgerec_gym.answers import (
    BUY,
    CLICK,
    CLICK_PROBABILITY,
    COUNT_LEVELS,
    DWELL_BUCKETS,
    FOCUSED,
    LEAVE,
    N_PAGE_VIEW_ACTIONS,
    PAGE_AGE,
    PAGE_REQUESTED,
    PAGE_VIEW,
    PAGE_VIEW_BUCKETS,
    PURCHASE_PROBABILITY,
    SLOT,
    SPEED_LEVELS,
    WINDOW,
)
from edgerec_gym.compiled import random_stream as draws
from edgerec_gym.compiled.jit import kernel, product_kernel, sigmoid
from edgerec_gym.compiled.random_stream import fast_normal, fold, uniform

ATTRACTIVENESS, QUALITY, CATEGORY, CARD_TYPE = range(4)  # columns of the items' traits
ACTIVE_SHARE = 0.2  # share of active users; `activity` is their share of the events
HELD_OUT = 5  # every fifth user appears in the `eval` split only
MEMORY = 0.97  # decay of satiation per slot
WEARINESS_MEMORY = 0.9  # decay of weariness per slot
REFRESH_MEMORY = 0.9  # decay per slot of the response to a requested page
CARD_APPEAL = 0.35  # logits that a card of another type gains over goods
# Probability of d2..d11 after a satisfied page view (d3, buy, is drawn separately); otherwise a tenth of it.
PAGE_VIEW_RATES = np.array([0.0, 0.30, 0.0, 0.20, 0.12, 0.35, 0.10, 0.08, 0.60, 0.15, 0.20])


@kernel
def _category(users, item):
    return int(users.traits[item, CATEGORY])


@kernel
def _card_type(users, item):
    return int(users.traits[item, CARD_TYPE])


@kernel
def start_user(users, row, key, split):
    """Draw user, day, hour and the first intent of a session."""
    users.key[row] = key
    n_users = users.world_taste.shape[0]
    users.user[row] = _pick_user(key, split, n_users, users.activity)
    user = users.user[row]
    half = users.n_days // 2
    first, days = (half, users.n_days - half) if split == 2 else (0, half)
    day = first + int(uniform(key, 0, draws.USER_DAY, 0) * days)
    users.day[row] = day
    users.hour[row] = int(24 * uniform(key, 0, draws.USER_HOUR, 0))
    drift_key = fold(np.uint64(user), np.uint64(day))
    total = 0.0
    d = users.taste_now.shape[1]
    for k in range(d):
        move = users.day_drift * fast_normal(drift_key, 0, draws.INTENT_NOISE, k) / math.sqrt(d)
        users.taste_now[row, k] = users.world_taste[user, k] + move
        total += users.taste_now[row, k] ** 2
    for k in range(d):
        users.taste_now[row, k] /= math.sqrt(total)
    for c in range(users.satiation_now.shape[1]):
        users.satiation_now[row, c] = 0.0
        users.weariness_now[row, c] = 0.0
    users.boredom[row] = 0.0
    users.refresh_now[row] = 0.0
    switch_intent(users, row, 0)
    for k in range(d):
        users.page_intent[row, k] = users.intent_now[row, k]


@kernel
def _pick_user(key, split, n_users, activity):
    """Draw a user: the first fifth are active; within a stratum, users are equally likely."""
    active = max(HELD_OUT, int(ACTIVE_SHARE * n_users))
    # Active users also have longer sessions (leave_probability), so they need a smaller share of them.
    share = activity * (1.0 - 0.3 * (activity - ACTIVE_SHARE))
    first, count = (0, active) if uniform(key, 0, draws.USER_PICK, 0) < share else (active, n_users - active)
    u = uniform(key, 0, draws.USER_PICK, 1)
    if split == 2:
        return first + HELD_OUT * int(u * (count // HELD_OUT))
    place = int(u * (count - count // HELD_OUT))
    return min(n_users - 1, first + place + place // (HELD_OUT - 1) + 1)


@product_kernel
def _cosine(a, b, i, j, size):
    total = 0.0
    for k in range(size):
        total += a[i, k] * b[j, k]
    return total


@kernel
def switch_intent(users, row, slot):
    """Draw a new intent: a category, likelier if it suits the user's taste, with a personal offset."""
    n_categories, d = users.centres.shape
    total = 0.0
    for c in range(n_categories):
        users.odds[row, c] = math.exp(3.0 * _cosine(users.taste_now, users.centres, row, c, d))
        total += users.odds[row, c]
    left = total * uniform(users.key[row], slot, draws.INTENT_PICK, 0)
    category = 0
    while category < n_categories - 1 and left >= users.odds[row, category]:
        left -= users.odds[row, category]
        category += 1
    total = 0.0
    for k in range(d):
        noise = 0.35 * fast_normal(users.key[row], slot, draws.INTENT_NOISE, k) / math.sqrt(d)
        users.intent_now[row, k] = users.centres[category, k] + noise
        total += users.intent_now[row, k] ** 2
    for k in range(d):
        users.intent_now[row, k] /= math.sqrt(total)


@product_kernel
def relevance(users, row, item):
    """Return how well an item matches intent and taste, in logits."""
    intent, taste = 0.0, 0.0
    for k in range(users.factors.shape[1]):
        intent += users.intent_now[row, k] * users.factors[item, k]
        taste += users.taste_now[row, k] * users.factors[item, k]
    return users.intent * intent + users.taste * taste


@kernel
def click_logit(users, row, item, match, window, at, slot):
    """Return the true click logit of an item of relevance `match` amid window[at] (-1 = unknown)."""
    card_type = _card_type(users, item)
    category = _category(users, item)
    logit = users.click_bias + match + users.pseudo_click * users.traits[item, ATTRACTIVENESS]
    if card_type > 0:
        logit += CARD_APPEAL + users.type_taste * users.world_type_taste[users.user[row], card_type]
    logit -= users.satiation * users.satiation_now[row, category]
    logit -= users.weariness * users.weariness_now[row, category]
    logit -= users.fatigue * slot / 100.0
    logit += users.refresh * users.refresh_now[row]
    return logit + users.surroundings * _surroundings(users, item, window, at)


@kernel
def _surroundings(users, item, window, at):
    """Return the neighbours' effect: same-type cards hurt, types interact, and dull neighbours help."""
    effect = 0.0
    card_type = _card_type(users, item)
    for j in range(WINDOW):
        neighbour = window[at, j]
        if j == FOCUSED or neighbour < 0:
            continue
        near = abs(j - FOCUSED) == 1
        other = _card_type(users, neighbour)
        if card_type > 0 and other == card_type:
            effect -= 0.6 if near else 0.3
        if near:
            effect += 0.5 * users.type_effect[card_type, other]
            contrast = users.traits[item, ATTRACTIVENESS] - users.traits[neighbour, ATTRACTIVENESS]
            effect += 0.12 * min(2.0, max(-2.0, contrast))
            if _category(users, neighbour) == _category(users, item):
                effect -= 0.15
    return effect


@kernel
def satisfaction(users, item, match):
    """Return the probability that an opened item of relevance `match` satisfies the user."""
    return sigmoid(-0.9 + 1.4 * users.traits[item, QUALITY] + 0.4 * match)


@kernel
def purchase_rate(users, item):
    """Return the probability of a purchase after a satisfied page view."""
    return users.purchase * sigmoid(-1.6 + 0.5 * users.traits[item, QUALITY])


@kernel
def answer(users, row, items, context, response):
    """Answer the focused card of one row; writes that row of the response and advances the user.

    `items`, `context` and `response` are batches, see :class:`~edgerec_gym.answers.Focus`.
    """
    key, item = users.key[row], items[row, FOCUSED]
    slot = int(context[row, SLOT])
    _notice_page(users, row, context)
    match = relevance(users, row, item)
    logit = click_logit(users, row, item, match, items, row, slot)
    probability = sigmoid(logit)
    interest = logit - users.click_bias
    _look(users, row, slot, item, interest, response)
    click = uniform(key, slot, draws.CLICK_DRAW, item) < probability
    p_satisfied = satisfaction(users, item, match)
    response[row, CLICK_PROBABILITY] = probability
    response[row, PURCHASE_PROBABILITY] = probability * p_satisfied * purchase_rate(users, item)
    satisfied = click and uniform(key, slot, draws.SATISFIED, item) < p_satisfied
    response[row, CLICK] = 1.0 if click else 0.0
    _open(users, row, slot, item, click, satisfied, response)
    _advance(users, row, slot, item, interest, click, satisfied)
    leave = uniform(key, slot, draws.LEAVE_DRAW, 0) < leave_probability(users, row)
    response[row, LEAVE] = 1.0 if leave else 0.0


@kernel
def leave_probability(users, row):
    """Return the probability that the user leaves after a card, given their current boredom."""
    logit = (
        users.leave_bias
        - 0.5 * users.world_patience[users.user[row]]
        + users.patience * 5.0 * users.boredom[row]
    )
    if users.user[row] >= int(ACTIVE_SHARE * users.world_taste.shape[0]):
        logit += 1.2 * (users.activity - ACTIVE_SHARE)
    return sigmoid(logit)


@kernel
def _notice_page(users, row, context):
    """React to a page at its first card: requested pages please or annoy, by user and change of intent."""
    users.refresh_now[row] *= REFRESH_MEMORY
    if context[row, PAGE_AGE] > 0 or context[row, SLOT] == 0:
        return
    if context[row, PAGE_REQUESTED] > 0:
        sensitivity = 0.5 + 0.5 * users.world_refresh[users.user[row]]
        users.refresh_now[row] = sensitivity * (2.0 * intent_moved(users, row) - 0.4)
    for k in range(users.intent_now.shape[1]):
        users.page_intent[row, k] = users.intent_now[row, k]


@kernel
def intent_moved(users, row):
    """Return 1 - cosine of the intent now and at the last page's first card, in 0..2."""
    cosine = 0.0
    for k in range(users.intent_now.shape[1]):
        cosine += users.intent_now[row, k] * users.page_intent[row, k]
    return 1.0 - cosine


@kernel
def _look(users, row, slot, item, interest, response):
    """Draw exposure actions e1..e6; dwell is a frequent but noisy sign of interest."""
    key = users.key[row]
    log2_seconds = 0.2 + 0.55 * interest + 0.9 * fast_normal(key, slot, draws.DWELL, item)
    bucket = min(DWELL_BUCKETS - 1, max(0, int(math.floor(log2_seconds)) + 2))
    drawn_in = sigmoid(interest - 2.0)
    u = uniform(key, slot, draws.EXPOSURE_COUNT, item)
    count = 0 if u > 0.25 * drawn_in else (1 if u > 0.08 * drawn_in else 2)
    u = uniform(key, slot, draws.SCROLL_SPEED, item)
    speed = min(SPEED_LEVELS - 1, int(SPEED_LEVELS * u ** (0.6 + drawn_in)))
    duration = min(
        SPEED_LEVELS - 1, int(0.5 * bucket + 2.0 * uniform(key, slot, draws.SCROLL_DURATION, item))
    )
    scrolls = min(COUNT_LEVELS - 1, count + int(2.0 * uniform(key, slot, draws.SCROLL_COUNT, item)))
    reason = 0
    if uniform(key, slot, draws.DELETE, item) < 0.02 * (1.0 - drawn_in):
        tired = users.weariness_now[row, _category(users, item)] > 2.0
        reason = 2 if tired or uniform(key, slot, draws.DELETE_REASON, item) < 0.3 else 1
    response[row, 0] = bucket / (DWELL_BUCKETS - 1)
    response[row, 1] = count / (COUNT_LEVELS - 1)
    response[row, 2] = speed / (SPEED_LEVELS - 1)
    response[row, 3] = duration / (SPEED_LEVELS - 1)
    response[row, 4] = scrolls / (COUNT_LEVELS - 1)
    response[row, 5] = reason / 2.0


@kernel
def _open(users, row, slot, item, click, satisfied, response):
    """Draw page-view actions d1..d11; users leave unsatisfying pages at once."""
    for k in range(N_PAGE_VIEW_ACTIONS):
        response[row, PAGE_VIEW + k] = 0.0
    if not click:
        return
    key = users.key[row]
    u = uniform(key, slot, draws.PAGE_VIEW_DURATION, item)
    bucket = 3 + int(5.0 * u) if satisfied else int(3.5 * u * u)
    response[row, PAGE_VIEW] = bucket / (PAGE_VIEW_BUCKETS - 1)
    for k in range(1, N_PAGE_VIEW_ACTIONS):
        rate = PAGE_VIEW_RATES[k] if satisfied else 0.1 * PAGE_VIEW_RATES[k]
        done = uniform(key, slot, draws.PAGE_VIEW_ACTION, item * 16 + k) < rate
        response[row, PAGE_VIEW + k] = 1.0 if done else 0.0
    buys = satisfied and uniform(key, slot, draws.BUY_DRAW, item) < purchase_rate(users, item)
    response[row, BUY] = 1.0 if buys else 0.0


@kernel
def _advance(users, row, slot, item, interest, click, satisfied):
    """Advance satiation, weariness, boredom, and the intent's drift and jumps."""
    category = _category(users, item)
    for c in range(users.satiation_now.shape[1]):
        users.satiation_now[row, c] *= MEMORY
        users.weariness_now[row, c] *= WEARINESS_MEMORY
    if satisfied:
        users.satiation_now[row, category] += 1.0
    if click:
        users.weariness_now[row, category] = 0.0
    else:
        users.weariness_now[row, category] += 1.0
    users.boredom[row] = 0.93 * users.boredom[row] + 0.07 * (1.0 - sigmoid(interest - 1.5))
    if satisfied:
        users.boredom[row] *= 0.5
        _drift_intent(users, row, item)
    elif click:
        users.boredom[row] = min(1.0, users.boredom[row] + 0.1)
    if uniform(users.key[row], slot, draws.INTENT_SWITCH, 0) < users.intent_switch:
        switch_intent(users, row, slot + 1)


@kernel
def _drift_intent(users, row, item):
    total, step = 0.0, users.intent_drift
    for k in range(users.intent_now.shape[1]):
        moved = (1.0 - step) * users.intent_now[row, k] + step * users.factors[item, k]
        users.intent_now[row, k] = moved
        total += moved * moved
    for k in range(users.intent_now.shape[1]):
        users.intent_now[row, k] /= math.sqrt(total)
