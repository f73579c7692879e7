"""How learned users answer: draws from the logits of their graph, using the counter-based stream."""

from __future__ import annotations

import math

from edgerec_gym.answers import (
    CLICK,
    CLICK_PROBABILITY,
    DWELL_BUCKETS,
    FOCUSED,
    LEAVE,
    N_PAGE_VIEW_ACTIONS,
    PAGE_VIEW,
    PAGE_VIEW_BUCKETS,
    PURCHASE_PROBABILITY,
    RESPONSE_SIZE,
    SLOT,
)
from edgerec_gym.compiled.jit import kernel, sigmoid
from edgerec_gym.compiled.random_stream import uniform
from edgerec_gym.users.learned_layout import (
    ANSWER_DRAW,
    BUY_BY_AT,
    CLICK_AT,
    CLICK_BY_AT,
    DWELL_AT,
    EXPOSURE_AT,
    LEAVE_AT,
    LEVELS,
    MOST_LEVELS,
    N_ACTIONS,
    N_ANSWER,
    N_LOGITS,
    N_SIGNS,
    OPENED,
    RESPONSE_DRAW,
    SIGNS_AT,
    VIEW_AT,
)


@kernel
def _softmax(logits, at, n, probability):
    highest = logits[at]
    for k in range(1, n):
        highest = max(highest, logits[at + k])
    total = 0.0
    for k in range(n):
        probability[k] = math.exp(logits[at + k] - highest)
        total += probability[k]
    for k in range(n):
        probability[k] /= total


@kernel
def _exceeded(probability, n, u):
    """Return the level that u in [0, 1) draws, 0..n-1."""
    level, cumulative = 0, 0.0
    for k in range(n - 1):
        cumulative += probability[k]
        level += cumulative <= u
    return level


@kernel
def _draw(key, slot, item, action):
    return uniform(key, slot, ANSWER_DRAW + action, item)


@kernel
def _draw_exposure(net, m, logits, p, key, slot, item, response):
    """Draw e1..e6 from the dwell buckets' probabilities p, which is overwritten; returns the dwell bucket."""
    dwell = _exceeded(p, DWELL_BUCKETS, _draw(key, slot, item, 0))
    response[0] = dwell / (DWELL_BUCKETS - 1)
    for e in range(len(LEVELS)):
        at = EXPOSURE_AT + e * MOST_LEVELS
        for k in range(MOST_LEVELS):
            logits[at + k] += net.exposure_by_dwell[m, dwell, e * MOST_LEVELS + k]
        _softmax(logits, at, MOST_LEVELS, p)
        # Only among levels that exist: rounded probabilities may add up to less than the draw.
        response[1 + e] = _exceeded(p, LEVELS[e], _draw(key, slot, item, 1 + e)) / (LEVELS[e] - 1)
    return dwell


@kernel
def _draw_page_view(net, m, logits, p, key, slot, item, response):
    """Draw d1..d11 of an opened card from its durations' probabilities p; returns the duration's bucket."""
    length = _exceeded(p, PAGE_VIEW_BUCKETS, _draw(key, slot, item, PAGE_VIEW))
    response[PAGE_VIEW] = length / (PAGE_VIEW_BUCKETS - 1)
    for k in range(N_SIGNS):
        chance = sigmoid(logits[SIGNS_AT + k] + net.signs_by_page_view[m, length, k])
        response[PAGE_VIEW + 1 + k] = 1.0 if _draw(key, slot, item, PAGE_VIEW + 1 + k) < chance else 0.0
    return length


@kernel
def _draw_responses(net, m, logits, last, answer_at, key, slot, item, response):
    """Draw the named responses, given the rest of the answer in `last`, and add them to it."""
    for r in range(net.responses_by_answer.shape[1]):
        chance = logits[N_LOGITS + r]
        for k in range(N_ANSWER):
            chance += net.responses_by_answer[m, r, k] * last[answer_at + k]
        drawn = 1.0 if _draw(key, slot, item, RESPONSE_DRAW + r) < sigmoid(chance) else 0.0
        response[RESPONSE_SIZE + r] = drawn
        last[answer_at + N_ANSWER + r] = drawn


@kernel
def _expect(logits, at, by, n, p):
    """Softmax of n logits into p; returns the expectation of the sigmoids of the n logits from `by` on."""
    _softmax(logits, at, n, p)
    expected = 0.0
    for k in range(n):
        expected += p[k] * sigmoid(logits[by + k])
    return expected


@kernel
def give_answer(net, focus, memory, block, j, session, follower, responses):
    """Draw and remember an answer from row j of the block; followers only report the click probability."""
    m = memory.member[session] if follower < 0 else follower
    at = session if follower < 0 else follower * memory.n_sessions + session
    for c in range(memory.memory.shape[1]):
        memory.memory[at, c] = block.new_memory[j, c]
        if memory.frozen_pages == 1:
            memory.page_memory[at, c] = block.new_page_memory[j, c]
    logits, p, response = block.logits[j], block.probability[j], responses[session]
    p_click = _expect(logits, DWELL_AT, CLICK_BY_AT, DWELL_BUCKETS, p)
    memory.click_probability[at] = p_click
    if memory.member[session] != m:
        return
    key, item, slot = focus.keys[session], focus.items[session, FOCUSED], int(focus.context[session, SLOT])
    dwell = _draw_exposure(net, m, logits, p, key, slot, item, response)
    chance = sigmoid(logits[CLICK_AT] + net.click_by_dwell[m, dwell])
    click = _draw(key, slot, item, CLICK) < chance
    p_buy = _expect(logits, VIEW_AT, BUY_BY_AT, PAGE_VIEW_BUCKETS, p)
    response[CLICK] = 1.0 if click else 0.0
    length = -1
    for k in range(N_PAGE_VIEW_ACTIONS):
        response[PAGE_VIEW + k] = 0.0
    if click:
        length = _draw_page_view(net, m, logits, p, key, slot, item, response)
    response[CLICK_PROBABILITY] = p_click
    response[PURCHASE_PROBABILITY] = p_click * p_buy
    n_responses = net.responses_by_answer.shape[1]
    last, answer_at = memory.next_last[session], memory.last.shape[1] - n_responses - N_ANSWER
    for k in range(N_ANSWER):
        last[answer_at + k] = 0.0
    last[answer_at + dwell] = 1.0
    for k in range(N_ACTIONS):
        last[answer_at + DWELL_BUCKETS + k] = response[k]
    if click:
        last[answer_at + OPENED + length] = 1.0
    _draw_responses(net, m, logits, last, answer_at, key, slot, item, response)
    leave = logits[LEAVE_AT]
    for k in range(N_ANSWER + n_responses):
        leave += net.leave_by_answer[m, k] * last[answer_at + k]
    response[LEAVE] = 1.0 if _draw(key, slot, item, LEAVE) < sigmoid(leave) else 0.0
    if follower < 0:
        remember(memory, session)


@kernel
def remember(memory, session):
    """Make the slot just answered the last one."""
    for c in range(memory.last.shape[1]):
        memory.last[session, c] = memory.next_last[session, c]
