"""Arrays of the learned users: columns, weights, memory, and the blocks of rows of a graph call.

Layouts (d embedding size, W = F + T features of a card, U user features, K kinds of evidence, P pairs, Q
queries, R named responses, H memory):

- seen: window of cards (5 W), user (U), logits of base ctr (5), context code, pairs (5 P), matches (K), sizes
  (K), cosines (K), counts (3 or none), bins of numbers
- last: focused card (W), logits of base ctr (5), context code, answer
- answer: one-hot dwell (8), actions (18), one-hot page-view duration if clicked (8), named responses (R)
- logits: dwell (8), e2..e6 (25), click (1), click by dwell (8), page-view duration (8), d2..d11 (10), buy by
  page-view duration (8), leave (1), named responses (R)
"""

from __future__ import annotations

from typing import NamedTuple

from edgerec_gym.answers import (
    COUNT_LEVELS,
    DELETE_REASONS,
    DWELL_BUCKETS,
    LEAVE,
    N_PAGE_VIEW_ACTIONS,
    PAGE_VIEW_BUCKETS,
    SPEED_LEVELS,
)
from edgerec_gym.compiled.arrays import Float32Cube, Float32Matrix, Float32Vector, Int64Vector

# Purposes of the random stream, above those of the synthetic users.
START_DRAW, MEMBER_DRAW, ANSWER_DRAW = 128, 129, 130
RESPONSE_DRAW = LEAVE + 1  # of the first named response, counted from ANSWER_DRAW like the actions

N_ACTIONS = LEAVE  # e1..e6, click, d1..d11: a response row up to `leave`
N_SIGNS = N_PAGE_VIEW_ACTIONS - 1  # binary page-view actions d2..d11
N_ANSWER = DWELL_BUCKETS + N_ACTIONS + PAGE_VIEW_BUCKETS  # without the named responses, which follow
OPENED = DWELL_BUCKETS + N_ACTIONS  # first column of the one-hot page-view duration in an answer
LEVELS = (COUNT_LEVELS, SPEED_LEVELS, SPEED_LEVELS, COUNT_LEVELS, len(DELETE_REASONS))  # of e2..e6
MOST_LEVELS = max(LEVELS)
N_WAVES = 2  # last columns of the context code: waves of the hour; the columns before them decay with an age
# Counts before the page: log of exposures, log of clicks, and their smoothed rate.
N_COUNTS = 3
PRIOR_CLICKS, PRIOR_VIEWS = 1.0, 10.0

# Columns of the logits.
DWELL_AT = 0
EXPOSURE_AT = DWELL_AT + DWELL_BUCKETS
CLICK_AT = EXPOSURE_AT + len(LEVELS) * MOST_LEVELS
CLICK_BY_AT = CLICK_AT + 1
VIEW_AT = CLICK_BY_AT + DWELL_BUCKETS
SIGNS_AT = VIEW_AT + PAGE_VIEW_BUCKETS
BUY_BY_AT = SIGNS_AT + N_SIGNS
LEAVE_AT = BUY_BY_AT + PAGE_VIEW_BUCKETS
N_LOGITS = LEAVE_AT + 1  # without those of the named responses, which follow


class Networks(NamedTuple):
    """Weights of all M members outside the graph."""

    card_scale: Float32Cube  # (M, 5, W)
    context: Float32Cube  # (M, 8, fading and waves)
    context_bias: Float32Matrix  # (M, fading and waves)
    query_by_user: Float32Cube  # (M, Q d, U)
    query_bias: Float32Matrix  # (M, Q d)
    pair: Float32Cube  # (M, P, W)
    decay: Float32Matrix  # (M, K)
    strength: Float32Cube  # (M, K, answer)
    strength_bias: Float32Matrix  # (M, K)
    exposure_by_dwell: Float32Cube  # (M, 8, 25)
    click_by_dwell: Float32Matrix  # (M, 8)
    signs_by_page_view: Float32Cube  # (M, 8, 10)
    leave_by_answer: Float32Matrix  # (M, answer)
    responses_by_answer: Float32Cube  # (M, R, answer without responses)
    count_scale: Float32Matrix  # (M, 3), or (M, 0) if the network does not read counts
    bin_start: Float32Cube  # (M, numbers, bins), of card, user and page; (M, 0, 0) if it reads no bins
    bin_factor: Float32Cube  # (M, numbers, bins), 1 over the width, or 0 for a bin that does not exist


class SessionMemory(NamedTuple):
    """Memory of B sessions in M' members: only the drawn one, or all (then row = m * B + session)."""

    n_sessions: int
    frozen_pages: int  # 1 if all answers on a page are based on the memory at the page's start
    member: Int64Vector  # (B,), the member drawn
    user: Float32Matrix  # (B, U)
    last: Float32Matrix  # (B, last), the last slot with its answer
    next_last: Float32Matrix  # (B, last), the next value of `last`, while a step writes it
    memory: Float32Matrix  # (M' B, H)
    evidence: Float32Cube  # (M' B, K, d)
    page_memory: Float32Matrix  # (M' B, H), memory at the page's start; likewise the next two
    page_evidence: Float32Cube  # (M' B, K, d)
    page_code: Float32Matrix  # (B, context code and counts)
    click_probability: Float32Vector  # (M' B,)
    first: Int64Vector  # (M + 1,), where the sessions of each member begin in `order`
    order: Int64Vector  # (B,), active sessions by member


class Block(NamedTuple):
    """Inputs and outputs of a graph call for at most C rows; one block per worker thread."""

    past: Float32Matrix  # (C, last + H)
    memory: Float32Matrix  # (C, H)
    seen: Float32Matrix  # (C, seen)
    user_query: Float32Matrix  # (C, Q d)
    focused: Float32Matrix  # (C, Q d), the embedding of the focused card, repeated Q times
    page_memory: Float32Matrix  # (C, H)
    page_starts: Float32Matrix  # (C, 1), 1 if the slot begins a page
    page: Float32Matrix  # (C, 5), summary of the focused card's page
    new_memory: Float32Matrix  # (C, H)
    new_page_memory: Float32Matrix  # (C, H)
    logits: Float32Matrix  # (C, N_LOGITS + R)
    probability: Float32Matrix  # (C, 8), workspace
