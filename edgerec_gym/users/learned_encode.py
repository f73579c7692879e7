"""What learned users read: encodes slots as input rows of their graph (simulator/graph.py).

The encoding is not part of the graph because, for one row, the overhead of a hundred small nodes is ten times
the cost of what they compute.
"""

from __future__ import annotations

import math

import numpy as np

from edgerec_gym.answers import (
    CONTEXT_SIZE,
    FOCUSED,
    N_EXPOSURES,
    N_PAGE_VIEWS,
    PAGE_AGE,
    SLOT,
    WINDOW,
)
from edgerec_gym.cloud.retrieval import ctr_logit
from edgerec_gym.compiled.jit import kernel, product_kernel
from edgerec_gym.users.learned_layout import (
    N_ANSWER,
    N_WAVES,
    PRIOR_CLICKS,
    PRIOR_VIEWS,
)


@product_kernel
def _gather_evidence(net, memory, session, at, m):
    """Add the last card to the decayed evidence, weighted by its answer."""
    n_kinds, d = memory.evidence.shape[1], memory.evidence.shape[2]
    n_responses = net.responses_by_answer.shape[1]
    answer_at = memory.last.shape[1] - n_responses - N_ANSWER
    for k in range(n_kinds):
        strength = net.strength_bias[m, k]
        # Two loops: a sum of constant length is added up in an order of its own, as it was without responses.
        for a in range(N_ANSWER):
            strength += net.strength[m, k, a] * memory.last[session, answer_at + a]
        for a in range(N_ANSWER, N_ANSWER + n_responses):
            strength += net.strength[m, k, a] * memory.last[session, answer_at + a]
        decay = net.decay[m, k]
        for c in range(d):
            shown = strength * memory.last[session, c]
            memory.evidence[at, k, c] = decay * memory.evidence[at, k, c] + shown


@kernel
def _encode_cards(net, focus, session, m, seen, last):
    """Write the window and the focused card; returns the column of `seen` after the window."""
    width = focus.cards.shape[2]
    for w in range(WINDOW):
        for c in range(width):
            seen[w * width + c] = focus.cards[session, w, c]
    for c in range(width):
        last[c] = focus.cards[session, FOCUSED, c] * net.card_scale[m, FOCUSED, c]
    return WINDOW * width


@kernel
def _encode_context(net, focus, session, m, last, at):
    """Write the context code: the context, decays with ages, waves of the hour."""
    for c in range(CONTEXT_SIZE):
        last[at + c] = focus.context[session, c]
    n_fading = net.context.shape[2] - N_WAVES
    for j in range(net.context.shape[2]):
        value = net.context_bias[m, j]
        for c in range(CONTEXT_SIZE):
            value += focus.context[session, c] * net.context[m, c, j]
        last[at + CONTEXT_SIZE + j] = math.exp(value) if j < n_fading else math.sin(value)
    return CONTEXT_SIZE + net.context.shape[2]


@kernel
def _encode_counts(net, focus, session, m, code, at):
    """Write what was seen and clicked before this slot."""
    seen, clicked = focus.context[session, N_EXPOSURES], focus.context[session, N_PAGE_VIEWS]
    code[at] = math.log1p(seen) * net.count_scale[m, 0]
    code[at + 1] = math.log1p(clicked) * net.count_scale[m, 1]
    code[at + 2] = (clicked + PRIOR_CLICKS) / (seen + PRIOR_VIEWS) * net.count_scale[m, 2]


@product_kernel
def _match(focus, memory, session):
    """Return the product of the embeddings of user and focused card."""
    match = np.float32(0.0)
    for c in range(memory.evidence.shape[2]):
        match += focus.cards[session, FOCUSED, c] * memory.user[session, c]
    return match


@kernel
def _encode_bins(net, focus, memory, session, m, seen, at):
    """Write how far the numbers of card, user and page have come through each of their bins."""
    n_numbers, n_bins = net.bin_start.shape[1], net.bin_start.shape[2]
    d, of_user, of_page = memory.evidence.shape[2], memory.user.shape[1] - memory.evidence.shape[2], 0
    if memory.frozen_pages == 1:
        of_page = focus.pages.shape[2]
    of_card = n_numbers - of_user - 1 - of_page
    for k in range(n_numbers):
        if k < of_card:
            value = focus.cards[session, FOCUSED, d + k]
        elif k < of_card + of_user:
            value = memory.user[session, d + k - of_card]
        elif k == of_card + of_user:
            value = _match(focus, memory, session)
        else:
            value = focus.pages[session, FOCUSED, k - of_card - of_user - 1]
        for b in range(n_bins):
            part = (value - net.bin_start[m, k, b]) * net.bin_factor[m, k, b]
            seen[at + k * n_bins + b] = min(max(part, np.float32(0.0)), np.float32(1.0))


@product_kernel
def _compare(net, focus, memory, session, evidence, evidence_row, m, seen, at, last):
    """Write how the focused card compares with its window and with the evidence; returns the next column."""
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
    return at + 3 * n_kinds


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
def see_slot(net, focus, memory, block, j, session, follower):
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
        logit = ctr_logit(focus.cards[session, w, memory.evidence.shape[2] + 1])
        seen[column + w] = logit
        last[width + w] = logit
    column += WINDOW
    n_code = _encode_context(net, focus, session, m, last, width + WINDOW)
    if memory.frozen_pages == 0:
        for c in range(n_code):
            seen[column + c] = last[width + WINDOW + c]
        column = _compare(net, focus, memory, session, memory.evidence, at, m, seen, column + n_code, last)
        if net.count_scale.shape[1]:
            _encode_counts(net, focus, session, m, seen, column)
        _encode_bins(net, focus, memory, session, m, seen, column + net.count_scale.shape[1])
        return
    starts = focus.context[session, PAGE_AGE] * focus.context[session, SLOT] == 0
    block.page_starts[j, 0] = 1.0 if starts else 0.0
    for c in range(block.page.shape[1]):
        block.page[j, c] = focus.pages[session, FOCUSED, c]
    for c in range(memory.memory.shape[1]):
        block.page_memory[j, c] = memory.page_memory[at, c]
    if starts:
        for c in range(n_code):
            memory.page_code[session, c] = last[width + WINDOW + c]
        if net.count_scale.shape[1]:
            _encode_counts(net, focus, session, m, memory.page_code[session], n_code)
        for k in range(memory.evidence.shape[1]):
            for c in range(memory.evidence.shape[2]):
                memory.page_evidence[at, k, c] = memory.evidence[at, k, c]
    for c in range(n_code):
        seen[column + c] = memory.page_code[session, c]
    column = _compare(net, focus, memory, session, memory.page_evidence, at, m, seen, column + n_code, last)
    for c in range(net.count_scale.shape[1]):
        seen[column + c] = memory.page_code[session, n_code + c]
    _encode_bins(net, focus, memory, session, m, seen, column + net.count_scale.shape[1])
