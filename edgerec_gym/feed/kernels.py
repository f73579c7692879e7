"""The feed's dynamics as kernels over one row of the batch: begin, place, absorb.

A step decodes the action, puts a request on the wire, lands the card, lets the user answer the slot
`lookahead` above (users/), updates history, cloud and counters, delivers a page that is due, and checks for
the end of the session.
"""

from __future__ import annotations

from edgerec_gym.answers import (
    CLICK,
    CLICK_PROBABILITY,
    DELETE_REASON,
    DISLIKED,
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
    PURCHASE_PROBABILITY,
    RESPONSE_SIZE,
    SINCE_PAGE_VIEW,
    SLOT,
)
from edgerec_gym.cloud.interest import evidence_of, moved_interest
from edgerec_gym.cloud.retrieval import build_page, mark_shown
from edgerec_gym.cloud.supply import SUPPLY_CATALOGUE, SUPPLY_LOGGED, draw_visit
from edgerec_gym.cloud.wire import SYNC_INCREMENTAL, SYNC_PERIODIC, receive, send, upload
from edgerec_gym.compiled.jit import kernel
from edgerec_gym.compiled.random_stream import episode_key
from edgerec_gym.feed import reward
from edgerec_gym.feed.observe import append, clear_history, observe, pool_changed
from edgerec_gym.feed.rules import insertion_allowed
from edgerec_gym.spaces import MIX, REQUEST, RERANK
from edgerec_gym.state import NO_ITEM, UNUSED


@kernel
def next_episode(feed, row):
    """Count the episode and set its key."""
    feed.episode[row] += 1
    feed.key[row] = episode_key(feed.split, feed.seed[row], feed.episode[row])


@kernel
def clear_session(feed, row):
    """Forget the last session; the user's features, `hour` and `key` of the next one stay."""
    clear_history(feed, row)
    feed.slot[row] = 0
    feed.exposures[row] = 0
    feed.page_views[row] = 0
    feed.last_page_view[row] = -1
    feed.last_clicked[row] = 0
    feed.page[row] = 0
    feed.page_age[row] = 0
    feed.page_requested[row] = 0
    feed.wire[row] = 0
    feed.wire_requested[row] = 0
    feed.requests[row] = 0
    for k in range(feed.n_types):
        feed.type_count[row, k] = 0
        feed.type_last[row, k] = -1
    for k in range(feed.shown.shape[1]):
        feed.shown[row, k] = UNUSED
    for j in range(feed.window_items.shape[1]):
        feed.window_items[row, j] = NO_ITEM
        for k in range(feed.window_cards.shape[2]):
            feed.window_cards[row, j, k] = 0.0
    for k in range(feed.n_embedding):
        feed.interest[row, k] = 0.0
        feed.known_interest[row, k] = 0.0
        feed.wire_interest[row, k] = 0.0
    clear_outcome(feed, row)


@kernel
def begin(feed, cloud, row, worker):
    """Start a session and ship its first page; the user's features, `hour` and `key` must be in place."""
    clear_session(feed, row)
    n_visits = cloud.visit_slots.shape[0]
    if n_visits > 0:
        feed.visit[row] = draw_visit(feed.key[row], feed.split, cloud.held_out, n_visits)
    build_page(feed, cloud, row, worker)
    pool_changed(feed, row)
    observe(feed, row)


@kernel
def clear_outcome(feed, row):
    """Clear the outcome of the last step in this row."""
    reward.clear(feed, row)
    feed.reward[row] = 0.0
    feed.cost[row] = 0
    feed.invalid[row] = False
    feed.terminated[row] = False
    feed.truncated[row] = False
    feed.sent[row] = 0
    feed.arrived[row] = False
    feed.focus_active[row] = False
    feed.response[row, CLICK_PROBABILITY] = 0.0
    feed.response[row, PURCHASE_PROBABILITY] = 0.0
    for r in range(feed.n_responses):
        feed.response[row, RESPONSE_SIZE + r] = 0.0
    feed.placed_action[row] = -1
    feed.placed_item[row] = NO_ITEM


@kernel
def keep(feed, row):
    """Return the lowest unused pool row, following the cloud's order; -1 if there is none."""
    for r in range(feed.n_pool):
        if feed.pool_items[row, r] != NO_ITEM:
            return r
    return -1


@kernel
def place(feed, cloud, row, action):
    """Decode the action, send requests, land the card at the bottom of the screen, set the focus."""
    clear_outcome(feed, row)
    n_pool, track = feed.n_pool, feed.track
    where, request = -1, False  # a pool row 0..N-1, or N + card; -1 = keep
    if feed.observation_bytes[row, feed.mask_at + action] == 0:
        feed.invalid[row] = True
        feed.reward_terms[row, reward.TERM_INVALID] = 1.0
    elif track == RERANK:
        where = action
    elif track == MIX:
        where = n_pool + action - 1 if action > 0 else -1
    elif track == REQUEST:
        request = action == 1
    elif action == n_pool + feed.n_cards:
        request = True
    else:
        where = action
    if where < 0:
        where = keep(feed, row)
    if request:
        send(feed, cloud, row, 1)
        feed.requests[row] += 1
        feed.sent[row] = 1
        feed.reward_terms[row, reward.TERM_REQUEST] = 1.0
    elif (
        feed.wire[row] == 0
        and feed.page_age[row] >= feed.page_size - feed.latency
        and cloud.supply != SUPPLY_LOGGED  # whose pages differ in length: the next one comes at their end
    ):
        send(feed, cloud, row, 0)
        feed.sent[row] = 2
    _land(feed, row, where)
    _set_focus(feed, row)


@kernel
def _land(feed, row, where):
    """Move a card of the pool or of the cards to the bottom of the screen."""
    width, n_features, newest = feed.n_features + feed.n_types, feed.n_features, feed.newest
    for j in range(newest):
        feed.window_items[row, j] = feed.window_items[row, j + 1]
        feed.window_age[row, j] = feed.window_age[row, j + 1]
        feed.window_requested[row, j] = feed.window_requested[row, j + 1]
        for k in range(width):
            feed.window_cards[row, j, k] = feed.window_cards[row, j + 1, k]
        for k in range(feed.page_summary.shape[1]):
            feed.window_page[row, j, k] = feed.window_page[row, j + 1, k]
    if where < feed.n_pool:
        item, at, card_type = feed.pool_items[row, where], feed.pool_at + where * n_features, 0
        feed.pool_items[row, where] = NO_ITEM
        feed.pool_left[row] -= 1
    else:
        m = where - feed.n_pool
        item, at, card_type = feed.card_items[row, m], feed.cards_at + m * width, 1 + m % (feed.n_types - 1)
        feed.card_items[row, m] = NO_ITEM
        for k in range(n_features, width):
            feed.observation[row, at + k] = 0.0
    for k in range(n_features):
        feed.window_cards[row, newest, k] = feed.observation[row, at + k]
        feed.observation[row, at + k] = 0.0
    for k in range(n_features, width):
        feed.window_cards[row, newest, k] = 0.0
    feed.window_cards[row, newest, n_features + card_type] = 1.0
    if feed.penalty == 1 and card_type > 0 and not insertion_allowed(feed, row, card_type):
        feed.cost[row] = 1
    feed.window_items[row, newest] = item
    feed.window_age[row, newest] = feed.page_age[row]
    feed.window_requested[row, newest] = feed.page_requested[row]
    for k in range(feed.page_summary.shape[1]):
        feed.window_page[row, newest, k] = feed.page_summary[row, k]
    mark_shown(feed, row, item)
    feed.type_count[row, card_type] += 1
    feed.type_last[row, card_type] = feed.slot[row]
    feed.placed_action[row] = where
    feed.placed_item[row] = item
    feed.slot[row] += 1
    feed.page_age[row] += 1
    if where < feed.n_pool and feed.track <= RERANK:
        feed.observation_bytes[row, feed.mask_at + where] = 0


@kernel
def _set_focus(feed, row):
    """Set the focus: the card `lookahead` slots above the bottom, third in the window."""
    focused = feed.slot[row] - 1 - feed.lookahead
    feed.focus_active[row] = focused >= 0
    if focused >= 0:
        context = feed.focus_context
        context[row, SLOT] = focused
        context[row, PAGE_AGE] = feed.window_age[row, FOCUSED]
        context[row, PAGE_REQUESTED] = feed.window_requested[row, FOCUSED]
        context[row, HOUR] = feed.hour[row]
        context[row, N_EXPOSURES] = feed.exposures[row]
        context[row, N_PAGE_VIEWS] = feed.page_views[row]
        last = feed.last_page_view[row]
        context[row, SINCE_PAGE_VIEW] = focused - last if last >= 0 else feed.max_slots
        context[row, LAST_CLICKED] = feed.last_clicked[row]


@kernel
def _record_answer(feed, cloud, row):
    """Record the answer in the histories, the evidence for the cloud and the reward terms."""
    slot = int(feed.focus_context[row, SLOT])
    click = feed.response[row, CLICK]
    for k in range(feed.negative.shape[0]):
        if feed.response[row, feed.negative[k]] > 0:
            feed.response[row, DELETE_REASON] = max(feed.response[row, DELETE_REASON], DISLIKED)
    append(
        feed, row, slot, feed.exposures_at, feed.n_exposure_rows, feed.exposures[row],
        0, N_EXPOSURE_ACTIONS, feed.n_responses,
    )  # fmt: skip
    feed.exposures[row] += 1
    if click > 0:
        append(
            feed, row, slot, feed.page_views_at, feed.n_page_view_rows, feed.page_views[row],
            PAGE_VIEW, N_PAGE_VIEW_ACTIONS, 0,
        )  # fmt: skip
        feed.page_views[row] += 1
        feed.last_page_view[row] = slot
    feed.last_clicked[row] = int(click)
    evidence = evidence_of(cloud, feed.response, row)
    for k in range(feed.n_embedding):
        feed.interest[row, k] = moved_interest(
            cloud, feed.interest[row, k], evidence, feed.window_cards[row, FOCUSED, k]
        )
    reward.count_answer(feed, row, feed.window_cards[row, FOCUSED, feed.n_features] == 0)


@kernel
def _turn_page(feed, cloud, row, worker):
    """Ship the next page at once, as the last one has no candidate left."""
    if feed.wire[row] == 0:
        feed.wire_requested[row] = 0
    feed.wire[row] = 0
    receive(feed, row)
    build_page(feed, cloud, row, worker)
    pool_changed(feed, row)
    feed.arrived[row] = True


@kernel
def take_in(feed, cloud, row):
    """Process the answer, if there is one: histories, interest, and the end of the session."""
    if feed.focus_active[row]:
        _record_answer(feed, cloud, row)
        feed.terminated[row] = feed.response[row, LEAVE] > 0
        if cloud.visit_slots.shape[0] > 0:
            last = cloud.visit_slots[feed.visit[row]]
            feed.terminated[row] = feed.terminated[row] or (last > 0 and feed.exposures[row] >= last)
    feed.truncated[row] = feed.slot[row] >= feed.max_slots and not feed.terminated[row]


@kernel
def absorb(feed, cloud, row, worker):
    """Process the answer: update history, cloud, pages, end, reward and observation."""
    take_in(feed, cloud, row)
    slot = feed.slot[row]
    if cloud.sync == SYNC_INCREMENTAL or (cloud.sync == SYNC_PERIODIC and slot % cloud.sync_period == 0):
        upload(feed, row)
    if feed.wire[row] > 0:
        feed.wire[row] -= 1
        if feed.wire[row] == 0:
            receive(feed, row)
            build_page(feed, cloud, row, worker)
            pool_changed(feed, row)
            feed.arrived[row] = True
    if cloud.supply != SUPPLY_CATALOGUE and feed.pool_left[row] == 0:
        _turn_page(feed, cloud, row, worker)
    reward.settle(feed, row)
    observe(feed, row)
