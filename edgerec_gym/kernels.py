"""The feed's dynamics as kernels over one row of the batch: begin, place, absorb, observe.

The order within a step: decode; a request joins the wire; the card lands; the user
answers the slot `lookahead` above (users/); history, cloud and counters update; a due page arrives; the end.
"""

from __future__ import annotations

from numba import njit

from edgerec_gym import reward
from edgerec_gym.cloud import SYNC_INCREMENTAL, SYNC_PERIODIC, build_page, mark_shown, receive, send, upload
from edgerec_gym.rules import insertion_allowed, request_allowed
from edgerec_gym.spaces import CONTEXT, JOINT, MIX, REQUEST, RERANK
from edgerec_gym.state import NO_ITEM, UNUSED
from edgerec_gym.users.base import (
    CLICK,
    FOCUSED,
    HOUR,
    LAST_CLICKED,
    LEAVE,
    N_EXPOSURE_ACTIONS,
    N_EXPOSURES,
    N_PAGE_VIEW_ACTIONS,
    N_PAGE_VIEWS,
    PAGE_AGE,
    PAGE_REQUESTED,
    PAGE_VIEW,
    SINCE_PAGE_VIEW,
    SLOT,
    WINDOW,
)

N_FIXED_CONTEXT = len(CONTEXT)
DWELL_CENTRE = 0.4  # of e1 and d1 in 0..1: shorter looks speak against the item


@njit
def begin(state, cloud, row):
    """Start a session: the user's features, `hour` and `key` are in place; ship the first page."""
    state.observation[row, state.pool_at : state.context_at] = 0.0
    state.slot[row] = 0
    state.exposures[row] = 0
    state.page_views[row] = 0
    state.last_page_view[row] = -1
    state.last_clicked[row] = 0
    state.page[row] = 0
    state.page_age[row] = 0
    state.page_requested[row] = 0
    state.wire[row] = 0
    state.wire_requested[row] = 0
    state.requests[row] = 0
    state.type_count[row] = 0
    state.type_last[row] = -1
    state.shown[row] = UNUSED
    state.window_cards[row] = 0.0
    state.window_items[row] = NO_ITEM
    state.interest[row] = 0.0
    state.known_interest[row] = 0.0
    state.wire_interest[row] = 0.0
    build_page(state, cloud, row)
    clear_outcome(state, row)
    observe(state, row)


@njit
def clear_outcome(state, row):
    """Nothing happened in this row (after a reset)."""
    reward.clear(state, row)
    state.reward[row] = 0.0
    state.cost[row] = 0
    state.invalid[row] = False
    state.terminated[row] = False
    state.truncated[row] = False
    state.sent[row] = 0
    state.arrived[row] = False
    state.focus_active[row] = False
    state.placed_action[row] = -1
    state.placed_item[row] = NO_ITEM


@njit
def keep(state, row):
    """Lowest unused pool row: the cloud's order."""
    for r in range(state.n_pool):
        if state.pool_items[row, r] != NO_ITEM:
            return r
    return -1


@njit
def _decode(state, row, action):
    """Return (place, request): a pool row 0..N-1 or N + card, and whether to request."""
    n = state.n_pool
    if state.track == RERANK:
        return action, False
    if state.track == MIX:
        return (keep(state, row) if action == 0 else n + action - 1), False
    if state.track == REQUEST:
        return keep(state, row), action == 1
    if action == n + state.n_cards:
        return keep(state, row), True
    return action, False


@njit
def place(state, cloud, row, action):
    """Decode the action, send requests, land the card at the bottom of the screen, set the focus."""
    clear_outcome(state, row)
    if state.observation_bytes[row, state.mask_at + action] == 0:
        state.invalid[row] = True
        state.reward_terms[row, reward.TERM_INVALID] = 1.0
        where, request = keep(state, row), False
    else:
        where, request = _decode(state, row, action)
    if request:
        send(state, cloud, row, 1)
        state.requests[row] += 1
        state.sent[row] = 1
        state.reward_terms[row, reward.TERM_REQUEST] = 1.0
    elif state.wire[row] == 0 and state.page_age[row] >= state.page_size - state.latency:
        send(state, cloud, row, 0)
        state.sent[row] = 2
    _land(state, cloud, row, where)
    _set_focus(state, row)


@njit
def _land(state, cloud, row, where):
    width = state.n_features + state.n_types
    last = state.window_items.shape[1] - 1
    for j in range(last):
        state.window_items[row, j] = state.window_items[row, j + 1]
        state.window_age[row, j] = state.window_age[row, j + 1]
        state.window_requested[row, j] = state.window_requested[row, j + 1]
        for k in range(width):
            state.window_cards[row, j, k] = state.window_cards[row, j + 1, k]
    if where < state.n_pool:
        item, at, columns = (
            state.pool_items[row, where],
            state.pool_at + where * state.n_features,
            state.n_features,
        )
        state.pool_items[row, where] = NO_ITEM
    else:
        m = where - state.n_pool
        item, at, columns = state.card_items[row, m], state.cards_at + m * width, width
        state.card_items[row, m] = NO_ITEM
    card_type = cloud.card_type[item]
    for k in range(width):
        state.window_cards[row, last, k] = 0.0
    for k in range(columns):
        state.window_cards[row, last, k] = state.observation[row, at + k]
        state.observation[row, at + k] = 0.0
    state.window_cards[row, last, state.n_features + card_type] = 1.0
    if state.penalty == 1 and card_type > 0 and not insertion_allowed(state, row, card_type):
        state.cost[row] = 1
    state.window_items[row, last] = item
    state.window_age[row, last] = state.page_age[row]
    state.window_requested[row, last] = state.page_requested[row]
    mark_shown(state, row, item)
    state.type_count[row, card_type] += 1
    state.type_last[row, card_type] = state.slot[row]
    state.placed_action[row] = where
    state.placed_item[row] = item
    state.slot[row] += 1
    state.page_age[row] += 1


@njit
def _set_focus(state, row):
    """The focused card stands `lookahead` slots above the bottom, third in the window."""
    focused = state.slot[row] - 1 - state.lookahead
    state.focus_active[row] = focused >= 0
    if focused < 0:
        return
    known = state.window_items.shape[1]
    for j in range(WINDOW):
        here = j < known
        state.focus_items[row, j] = state.window_items[row, j] if here else NO_ITEM
        for k in range(state.n_features + state.n_types):
            state.focus_cards[row, j, k] = state.window_cards[row, j, k] if here else 0.0
    context = state.focus_context
    context[row, SLOT] = focused
    context[row, PAGE_AGE] = state.window_age[row, FOCUSED]
    context[row, PAGE_REQUESTED] = state.window_requested[row, FOCUSED]
    context[row, HOUR] = state.hour[row]
    context[row, N_EXPOSURES] = state.exposures[row]
    context[row, N_PAGE_VIEWS] = state.page_views[row]
    last = state.last_page_view[row]
    context[row, SINCE_PAGE_VIEW] = focused - last if last >= 0 else state.max_slots
    context[row, LAST_CLICKED] = state.last_clicked[row]


@njit
def _append(state, row, at, n_rows, width, count):
    """Column of a new history row, oldest first; drops the oldest when full."""
    if count < n_rows:
        return at + count * width
    history = state.observation[row]
    for k in range(at, at + (n_rows - 1) * width):
        history[k] = history[k + width]
    return at + (n_rows - 1) * width


@njit
def _record_answer(state, cloud, row):
    """Histories, evidence for the cloud, reward terms."""
    card_width = state.n_features + state.n_types
    response, history = state.response[row], state.observation[row]
    slot = state.focus_context[row, SLOT]
    width = card_width + N_EXPOSURE_ACTIONS + 1
    at = _append(state, row, state.exposures_at, state.n_exposure_rows, width, state.exposures[row])
    for k in range(card_width):
        history[at + k] = state.focus_cards[row, FOCUSED, k]
    for k in range(N_EXPOSURE_ACTIONS):
        history[at + card_width + k] = response[k]
    history[at + width - 1] = slot / state.max_slots
    state.exposures[row] += 1

    evidence = cloud.dwell_weight * (response[0] - DWELL_CENTRE) + cloud.click_weight * response[CLICK]
    if response[CLICK] > 0:
        width = card_width + N_PAGE_VIEW_ACTIONS + 1
        at = _append(state, row, state.page_views_at, state.n_page_view_rows, width, state.page_views[row])
        for k in range(card_width):
            history[at + k] = state.focus_cards[row, FOCUSED, k]
        for k in range(N_PAGE_VIEW_ACTIONS):
            history[at + card_width + k] = response[PAGE_VIEW + k]
        history[at + width - 1] = slot / state.max_slots
        state.page_views[row] += 1
        state.last_page_view[row] = int(slot)
        evidence += cloud.page_view_weight * (response[PAGE_VIEW] - DWELL_CENTRE)
    state.last_clicked[row] = int(response[CLICK])
    for k in range(state.n_embedding):
        seen = state.focus_cards[row, FOCUSED, k]
        state.interest[row, k] = cloud.interest_decay * state.interest[row, k] + evidence * seen
    goods = state.focus_cards[row, FOCUSED, state.n_features] > 0
    reward.count_answer(state, row, not goods)


@njit
def absorb(state, cloud, row):
    """Take in the answer: history, cloud, arrival, end, reward, next observation."""
    if state.focus_active[row]:
        _record_answer(state, cloud, row)
        state.terminated[row] = state.response[row, LEAVE] > 0
    state.truncated[row] = state.slot[row] >= state.max_slots and not state.terminated[row]
    if cloud.sync == SYNC_INCREMENTAL or (
        cloud.sync == SYNC_PERIODIC and state.slot[row] % cloud.sync_period == 0
    ):
        upload(state, row)
    if state.wire[row] > 0:
        state.wire[row] -= 1
        if state.wire[row] == 0:
            receive(state, cloud, row)
            state.arrived[row] = True
    reward.settle(state, row)
    observe(state, row)


@njit
def observe(state, row):
    """Refresh the parts of the observation that are not kept up to date in place."""
    _observe_screen(state, row)
    _observe_context(state, row)
    _observe_mask(state, row)


@njit
def _observe_screen(state, row):
    width = state.n_features + state.n_types
    first = state.window_items.shape[1] - state.lookahead
    for j in range(state.lookahead):
        at = state.screen_at + j * width
        for k in range(width):
            state.observation[row, at + k] = state.window_cards[row, first + j, k]


@njit
def _observe_context(state, row):
    at, row_values = state.context_at, state.observation[row]
    slot, n_caps = state.slot[row], state.n_types - 1
    row_values[at] = slot / state.max_slots
    row_values[at + 1] = state.exposures[row] / state.max_slots
    row_values[at + 2] = state.page_views[row] / state.max_slots
    row_values[at + 3] = state.page_age[row] / state.page_size
    row_values[at + 4] = 1.0 if state.wire[row] > 0 else 0.0
    row_values[at + 5] = state.wire[row] / state.latency
    left = 1.0
    if state.budget >= 0:
        left = (state.budget - state.requests[row]) / max(state.budget, 1)
    row_values[at + 6] = left
    row_values[at + 7] = state.page_requested[row]
    row_values[at + 8] = state.hour[row] / 24.0
    prefix = max(slot, state.page_size)
    for k in range(n_caps):
        row_values[at + N_FIXED_CONTEXT + k] = state.type_count[row, k + 1] / prefix
        last = state.type_last[row, k + 1]
        since = 1.0 if last < 0 else min(1.0, (slot - last) / state.page_size)
        row_values[at + N_FIXED_CONTEXT + n_caps + k] = since


@njit
def _observe_mask(state, row):
    mask, at = state.observation_bytes[row], state.mask_at
    if state.track == JOINT or state.track == RERANK:
        for r in range(state.n_pool):
            mask[at + r] = 1 if state.pool_items[row, r] != NO_ITEM else 0
        at += state.n_pool
    if state.track == MIX:
        mask[at] = 1
        at += 1
    if state.track == JOINT or state.track == MIX:
        for m in range(state.n_cards):
            legal = state.card_items[row, m] != NO_ITEM
            if legal and state.penalty == 0:
                legal = insertion_allowed(state, row, 1 + m % (state.n_types - 1))
            mask[at + m] = 1 if legal else 0
        at += state.n_cards
    if state.track == REQUEST:
        mask[at] = 1
        at += 1
    if state.track == JOINT or state.track == REQUEST:
        mask[at] = 1 if request_allowed(state, row) else 0
