"""What learned users do around the matrix products of their network: encode a slot, draw an answer.

The products are one ONNX graph (simulator/graph.py); everything else is here, since for one row a graph of a
hundred small nodes costs ten times what it computes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgerec_gym.arrays import reader
from edgerec_gym.jit import SOURCE_DIGEST, entry_point, kernel, product_kernel
from edgerec_gym.random_stream import uniform
from edgerec_gym.users.base import (
    CLICK,
    CLICK_PROBABILITY,
    CONTEXT_SIZE,
    DWELL_BUCKETS,
    FOCUSED,
    LEAVE,
    N_PAGE_VIEW_ACTIONS,
    PAGE_AGE,
    PAGE_VIEW,
    PAGE_VIEW_BUCKETS,
    PURCHASE_PROBABILITY,
    SLOT,
    WINDOW,
    Focus,
)
from edgerec_gym.users.learned_layout import (
    ANSWER_DRAW,
    BUY_BY_AT,
    CLICK_AT,
    CLICK_BY_AT,
    DWELL_AT,
    EXPOSURE_AT,
    LEAST_CTR,
    LEAVE_AT,
    LEVELS,
    MEMBER_DRAW,
    MOST_LEVELS,
    N_ACTIONS,
    N_ANSWER,
    N_FADING,
    N_SIGNS,
    OPENED,
    SIGNS_AT,
    START_DRAW,
    VIEW_AT,
    Block,
    Networks,
    SessionMemory,
)


@kernel
def _sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


@kernel
def _logit(ctr):
    ctr = min(max(ctr, LEAST_CTR), 1.0 - LEAST_CTR)
    return math.log(ctr / (1.0 - ctr))


@product_kernel
def _gather_evidence(net, memory, session, at, m):
    """Add the last card to the decayed evidence, as strongly as its answer says."""
    n_kinds, d = memory.evidence.shape[1], memory.evidence.shape[2]
    answer_at = memory.last.shape[1] - N_ANSWER
    for k in range(n_kinds):
        strength = net.strength_bias[m, k]
        for a in range(N_ANSWER):
            strength += net.strength[m, k, a] * memory.last[session, answer_at + a]
        decay = net.decay[m, k]
        for c in range(d):
            shown = strength * memory.last[session, c]
            memory.evidence[at, k, c] = decay * memory.evidence[at, k, c] + shown


@kernel
def _encode_cards(net, focus, session, m, seen, last):
    """Write window and logits of base ctr; returns the next column of `seen` after the window."""
    width = focus.cards.shape[2]
    for w in range(WINDOW):
        for c in range(width):
            seen[w * width + c] = focus.cards[session, w, c]
    for c in range(width):
        last[c] = focus.cards[session, FOCUSED, c] * net.card_scale[m, FOCUSED, c]
    return WINDOW * width


@kernel
def _encode_context(net, focus, session, m, last, at):
    """Write the context code: the context, what fades with an age, waves of the hour."""
    for c in range(CONTEXT_SIZE):
        last[at + c] = focus.context[session, c]
    for j in range(net.context.shape[2]):
        value = net.context_bias[m, j]
        for c in range(CONTEXT_SIZE):
            value += focus.context[session, c] * net.context[m, c, j]
        last[at + CONTEXT_SIZE + j] = math.exp(value) if j < N_FADING else math.sin(value)
    return CONTEXT_SIZE + net.context.shape[2]


@product_kernel
def _compare(net, focus, memory, session, evidence, evidence_row, m, seen, at, last):
    """Write how the focused card compares with its window and with the evidence."""
    width, n_pairs = focus.cards.shape[2], net.pair.shape[1]
    for w in range(WINDOW):
        for p in range(n_pairs):
            total = np.float32(0.0)
            for c in range(width):
                total += focus.cards[session, w, c] * net.card_scale[m, w, c] * last[c] * net.pair[m, p, c]
            seen[at + w * n_pairs + p] = total
    at += WINDOW * n_pairs
    n_kinds, d = evidence.shape[1], evidence.shape[2]
    for k in range(n_kinds):
        match, square = np.float32(0.0), np.float32(0.0)
        for c in range(d):
            match += evidence[evidence_row, k, c] * last[c]
            square += evidence[evidence_row, k, c] * evidence[evidence_row, k, c]
        size = math.sqrt(square)
        seen[at + k] = match
        seen[at + n_kinds + k] = size
        seen[at + 2 * n_kinds + k] = match / (size + 1)


@product_kernel
def _ask(net, memory, session, m, block, j, last):
    """Write the user's part of the queries, and the card that they are compared with."""
    n, n_user, d = net.query_by_user.shape[1], memory.user.shape[1], memory.evidence.shape[2]
    for q in range(n):
        total = net.query_bias[m, q]
        for c in range(n_user):
            total += net.query_by_user[m, q, c] * memory.user[session, c]
        block.user_query[j, q] = total
    for start in range(0, n, d):
        for c in range(d):
            block.focused[j, start + c] = last[c]


@kernel
def _see(net, focus, memory, block, j, session, follower):
    """Encode one slot into row j of the block; `follower` is the member if all follow, else -1."""
    m = memory.member[session] if follower < 0 else follower
    at = session if follower < 0 else follower * memory.n_sessions + session
    n_last = memory.last.shape[1]
    for c in range(n_last):
        block.past[j, c] = memory.last[session, c]
    for c in range(memory.memory.shape[1]):
        block.past[j, n_last + c] = memory.memory[at, c]
        block.memory[j, c] = memory.memory[at, c]
    _gather_evidence(net, memory, session, at, m)
    seen, last = block.seen[j], memory.next_last[session]
    width, n_user = focus.cards.shape[2], memory.user.shape[1]
    column = _encode_cards(net, focus, session, m, seen, last)
    _ask(net, memory, session, m, block, j, last)
    for c in range(n_user):
        seen[column + c] = memory.user[session, c]
    column += n_user
    for w in range(WINDOW):
        logit = _logit(focus.cards[session, w, memory.evidence.shape[2] + 1])
        seen[column + w] = logit
        last[width + w] = logit
    column += WINDOW
    n_code = _encode_context(net, focus, session, m, last, width + WINDOW)
    if memory.frozen_pages == 0:
        for c in range(n_code):
            seen[column + c] = last[width + WINDOW + c]
        _compare(net, focus, memory, session, memory.evidence, at, m, seen, column + n_code, last)
        return
    starts = focus.context[session, PAGE_AGE] * focus.context[session, SLOT] == 0
    block.page_starts[j, 0] = 1.0 if starts else 0.0
    for c in range(memory.memory.shape[1]):
        block.page_memory[j, c] = memory.page_memory[at, c]
    if starts:
        for c in range(n_code):
            memory.page_code[session, c] = last[width + WINDOW + c]
        for k in range(memory.evidence.shape[1]):
            for c in range(memory.evidence.shape[2]):
                memory.page_evidence[at, k, c] = memory.evidence[at, k, c]
    for c in range(n_code):
        seen[column + c] = memory.page_code[session, c]
    _compare(net, focus, memory, session, memory.page_evidence, at, m, seen, column + n_code, last)


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
    """Level drawn by u: how many levels it exceeds, 0..n-1."""
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
    """Draw e1..e6; returns the dwell bucket."""
    _softmax(logits, DWELL_AT, DWELL_BUCKETS, p)
    dwell = _exceeded(p, DWELL_BUCKETS, _draw(key, slot, item, 0))
    response[0] = dwell / (DWELL_BUCKETS - 1)
    for e in range(len(LEVELS)):
        at = EXPOSURE_AT + e * MOST_LEVELS
        for k in range(MOST_LEVELS):
            logits[at + k] += net.exposure_by_dwell[m, dwell, e * MOST_LEVELS + k]
        _softmax(logits, at, MOST_LEVELS, p)
        response[1 + e] = _exceeded(p, MOST_LEVELS, _draw(key, slot, item, 1 + e)) / (LEVELS[e] - 1)
    return dwell


@kernel
def _draw_page_view(net, m, logits, p, key, slot, item, response):
    """Draw d1..d11 of an opened card from its durations' probabilities p; returns the duration's bucket."""
    length = _exceeded(p, PAGE_VIEW_BUCKETS, _draw(key, slot, item, PAGE_VIEW))
    response[PAGE_VIEW] = length / (PAGE_VIEW_BUCKETS - 1)
    for k in range(N_SIGNS):
        chance = _sigmoid(logits[SIGNS_AT + k] + net.signs_by_page_view[m, length, k])
        response[PAGE_VIEW + 1 + k] = 1.0 if _draw(key, slot, item, PAGE_VIEW + 1 + k) < chance else 0.0
    return length


@kernel
def _expect(logits, at, by, n, p):
    """Softmax of n logits into p; returns the expectation of the sigmoids of the n logits from `by` on."""
    _softmax(logits, at, n, p)
    expected = 0.0
    for k in range(n):
        expected += p[k] * _sigmoid(logits[by + k])
    return expected


@kernel
def _give(net, focus, memory, block, j, session, follower, responses):
    """Draw an answer from row j of the block and remember it; one who only follows tells the click's odds."""
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
    chance = _sigmoid(logits[CLICK_AT] + net.click_by_dwell[m, dwell])
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
    last, answer_at = memory.next_last[session], memory.last.shape[1] - N_ANSWER
    for k in range(N_ANSWER):
        last[answer_at + k] = 0.0
    last[answer_at + dwell] = 1.0
    for k in range(N_ACTIONS):
        last[answer_at + DWELL_BUCKETS + k] = response[k]
    if click:
        last[answer_at + OPENED + length] = 1.0
    leave = logits[LEAVE_AT]
    for k in range(N_ANSWER):
        leave += net.leave_by_answer[m, k] * last[answer_at + k]
    response[LEAVE] = 1.0 if _draw(key, slot, item, LEAVE) < _sigmoid(leave) else 0.0
    if follower < 0:
        _remember(memory, session)


@kernel
def _remember(memory, session):
    """The slot just answered is the last one."""
    for c in range(memory.last.shape[1]):
        memory.last[session, c] = memory.next_last[session, c]


read_networks, read_memory = reader(Networks), reader(SessionMemory)
read_block, read_focus = reader(Block), reader(Focus)


def _entry_points(digest: str) -> tuple[Any, ...]:
    # The digest is part of numba's cache key: see jit.
    @entry_point
    def draw_starts(keys, n_starts, n_members, starts, members):
        _ = digest
        for j in range(keys.shape[0]):
            starts[j] = int(uniform(keys[j], 0, START_DRAW, 0) * n_starts)
            members[j] = int(uniform(keys[j], 0, MEMBER_DRAW, 0) * n_members)

    @entry_point
    def sort_sessions(focus_address, memory_address):
        """Order the active sessions by member."""
        _ = digest
        focus, memory = read_focus(focus_address), read_memory(memory_address)
        first, n_members = memory.first, memory.first.shape[0] - 1
        for m in range(n_members + 1):
            first[m] = 0
        at = 0
        for m in range(n_members):
            for session in range(memory.n_sessions):
                if memory.member[session] == m and focus.active[session]:
                    memory.order[at] = session
                    at += 1
            first[m + 1] = at

    @entry_point
    def see(networks_address, focus_address, memory_address, block_address, follower, start, stop):
        """Encode the slots of sessions order[start:stop] into the rows of a block."""
        _ = digest
        net, focus = read_networks(networks_address), read_focus(focus_address)
        memory, block = read_memory(memory_address), read_block(block_address)
        for j in range(stop - start):
            _see(net, focus, memory, block, j, memory.order[start + j], follower)

    @entry_point
    def give(
        networks_address, focus_address, memory_address, block_address, follower, start, stop, responses
    ):
        """Draw the answers of sessions order[start:stop] from the rows of a block."""
        _ = digest
        net, focus = read_networks(networks_address), read_focus(focus_address)
        memory, block = read_memory(memory_address), read_block(block_address)
        for j in range(stop - start):
            _give(net, focus, memory, block, j, memory.order[start + j], follower, responses)

    @entry_point
    def settle(focus_address, memory_address):
        """End a step that all members have followed."""
        _ = digest
        focus, memory = read_focus(focus_address), read_memory(memory_address)
        for session in range(memory.n_sessions):
            if focus.active[session]:
                _remember(memory, session)

    return draw_starts, sort_sessions, see, give, settle


draw_starts, sort_sessions, see, give, settle = _entry_points(SOURCE_DIGEST)
