"""The observation of one row, updated in place: only what a step has changed is written."""

from __future__ import annotations

from edgerec_gym.answers import FOCUSED, N_EXPOSURE_ACTIONS, N_PAGE_VIEW_ACTIONS, RESPONSE_SIZE
from edgerec_gym.compiled.arrays import move
from edgerec_gym.compiled.jit import kernel
from edgerec_gym.feed.rules import insertion_allowed, request_allowed
from edgerec_gym.spaces import CONTEXT, JOINT, MIX, REQUEST, RERANK
from edgerec_gym.state import NO_ITEM

N_FIXED_CONTEXT = len(CONTEXT)


@kernel
def clear_history(feed, row):
    """Zero the history rows that the last session filled."""
    width = feed.n_features + feed.n_types + N_EXPOSURE_ACTIONS + feed.n_responses + 1
    for k in range(min(feed.exposures[row], feed.n_exposure_rows) * width):
        feed.observation[row, feed.exposures_at + k] = 0.0
    width = feed.n_features + feed.n_types + N_PAGE_VIEW_ACTIONS + 1
    for k in range(min(feed.page_views[row], feed.n_page_view_rows) * width):
        feed.observation[row, feed.page_views_at + k] = 0.0


@kernel
def append(feed, row, slot, at, n_rows, count, first_action, n_actions, n_responses):
    """Add the focused card and its answer to a history, oldest first; drops the oldest when full."""
    history, card_width = feed.observation, feed.n_features + feed.n_types
    width = card_width + n_actions + n_responses + 1
    if count < n_rows:
        at += count * width
    else:
        move(history[row], at, at + width, (n_rows - 1) * width)  # type: ignore[call-arg]
        at += (n_rows - 1) * width
    for k in range(card_width):
        history[row, at + k] = feed.window_cards[row, FOCUSED, k]
    for k in range(n_actions):
        history[row, at + card_width + k] = feed.response[row, first_action + k]
    for r in range(n_responses):
        history[row, at + card_width + n_actions + r] = feed.response[row, RESPONSE_SIZE + r]
    history[row, at + width - 1] = slot / feed.max_slots


@kernel
def pool_changed(feed, row):
    """Rewrite the pool's part of the mask; afterwards, rows are cleared one by one as they are placed."""
    if feed.track == JOINT or feed.track == RERANK:
        for r in range(feed.n_pool):
            feed.observation_bytes[row, feed.mask_at + r] = feed.pool_items[row, r] != NO_ITEM


@kernel
def observe(feed, row):
    """Write screen, context and the masks of cards and request."""
    width = feed.n_features + feed.n_types
    for j in range(feed.lookahead):
        at = feed.screen_at + j * width
        for k in range(width):
            feed.observation[row, at + k] = feed.window_cards[row, FOCUSED + 1 + j, k]
    _observe_context(feed, row)
    _observe_mask(feed, row)


@kernel
def _observe_context(feed, row):
    values, at, slot, n_caps = feed.observation, feed.context_at, feed.slot[row], feed.n_types - 1
    values[row, at] = slot / feed.max_slots
    values[row, at + 1] = feed.exposures[row] / feed.max_slots
    values[row, at + 2] = feed.page_views[row] / feed.max_slots
    values[row, at + 3] = feed.page_age[row] / feed.page_size
    values[row, at + 4] = 1.0 if feed.wire[row] > 0 else 0.0
    values[row, at + 5] = feed.wire[row] / feed.latency
    left = 1.0
    if feed.budget >= 0:
        left = (feed.budget - feed.requests[row]) / max(feed.budget, 1)
    values[row, at + 6] = left
    values[row, at + 7] = feed.page_requested[row]
    values[row, at + 8] = feed.hour[row] / 24.0
    prefix = max(slot, feed.page_size)
    for k in range(n_caps):
        values[row, at + N_FIXED_CONTEXT + k] = feed.type_count[row, k + 1] / prefix
        last = feed.type_last[row, k + 1]
        since = 1.0 if last < 0 else min(1.0, (slot - last) / feed.page_size)
        values[row, at + N_FIXED_CONTEXT + n_caps + k] = since


@kernel
def _observe_mask(feed, row):
    mask, at, n_caps = feed.observation_bytes, feed.mask_at, feed.n_types - 1
    if feed.track == JOINT:
        at += feed.n_pool
    elif feed.track == MIX or feed.track == REQUEST:
        mask[row, at] = 1
        at += 1
    if feed.track == JOINT or feed.track == MIX:
        for k in range(min(n_caps, feed.n_cards)):
            allowed = feed.penalty == 1 or insertion_allowed(feed, row, 1 + k)
            for m in range(k, feed.n_cards, n_caps):
                mask[row, at + m] = allowed and feed.card_items[row, m] != NO_ITEM
        at += feed.n_cards
    if feed.track == JOINT or feed.track == REQUEST:
        mask[row, at] = request_allowed(feed, row)


@kernel
def copy_observation(feed, row, copies):
    """Copy the row into a fresh array (B, width), unless that has no rows."""
    if copies.shape[0] > 0:
        for k in range(copies.shape[1]):
            copies[row, k] = feed.observation[row, k]
