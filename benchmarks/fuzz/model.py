"""A model of the feed's rules, written apart from the feed's kernels and compared with every step.

It follows each session from what the environment shows: it knows which items a page brought, and decides on
its own what an action places, what is legal next, when pages arrive, what a step pays and when sessions end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgerec_gym.answers import BUY, CLICK, LEAVE
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.compiled.arrays import (
    BoolMatrix,
    BoolVector,
    Float32Matrix,
    Float32Vector,
    Float64Matrix,
    Float64Vector,
    Int8Matrix,
    Int32Matrix,
    Int32Vector,
    Int64Vector,
    reader,
)
from edgerec_gym.compiled.jit import SOURCE_DIGEST, entry_point, kernel
from edgerec_gym.config import FeedConfig
from edgerec_gym.feed.slate_batch import SlateBatch
from edgerec_gym.spaces import TRACKS, observation_dtype, observation_space
from edgerec_gym.state import FeedArrays

FAULTS = (
    "",
    "observation outside its space",
    "action_mask wrong",
    "no legal action",
    "invalid_action wrong",
    "placed_action wrong",
    "placed_item wrong",
    "item shown twice",
    "card of another type",
    "rule of insertion broken",
    "cost wrong",
    "request_sent wrong",
    "request budget exceeded",
    "page_arrived wrong",
    "page with holes, repeated or shown items",
    "truncated wrong",
    "terminated wrong",
    "reward is not the sum of its terms",
    "a reward term wrong",
    "context wrong",
    "outcome not cleared by a reset",
    "slots of the plan wrong",
)
(
    _, OUTSIDE, MASK, NO_ACTION, INVALID, ACTION, ITEM, TWICE, TYPE, RULE, COST, SENT, BUDGET, ARRIVED, PAGE,
    TRUNCATED, TERMINATED, SUM, TERM, CONTEXT, CLEARED, PLAN,
) = range(len(FAULTS))  # fmt: skip
PLACED, ON_PAGE = 1, 2  # marks of an item in a session
JOINT, RERANK, MIX, REQUEST = range(len(TRACKS))
STRIPE = 16  # each step, one row in so many has its whole observation checked


class Rules(NamedTuple):
    """What the config says."""

    track: int
    penalty: int
    n_pool: int
    n_cards: int
    n_caps: int
    page_size: int
    latency: int
    budget: int
    max_slots: int
    lookahead: int
    caps: Float64Vector
    gaps: Int64Vector
    firsts: Int64Vector
    weights: Float64Vector
    card_type: Int64Vector  # (n,) of every item
    low: Float32Vector  # (width,) bounds of the float columns of an observation
    high: Float32Vector
    context_at: int
    mask_at: int
    n_actions: int


class Followed(NamedTuple):
    """The sessions as the model sees them (B rows)."""

    slot: Int32Vector
    page_age: Int32Vector
    requested: Int32Vector  # whether the policy asked for the current page
    wire: Int32Vector
    wire_requested: Int32Vector
    requests: Int32Vector
    views: Int32Vector
    count: Int32Matrix  # type: ignore[assignment]  # (B, T - 1)
    last: Int32Matrix  # (B, T - 1), -1 if none
    pool: Int32Matrix  # (B, N) items left, -1 once used
    cards: Int32Matrix  # (B, M)
    page: Int32Matrix  # (B, N + M) items that the page brought
    marks: Int8Matrix  # (B, n)


class Shown(NamedTuple):
    """What the environment shows after a step: its own arrays."""

    observation: Float32Matrix
    bytes: Int8Matrix
    pool_items: Int32Matrix
    card_items: Int32Matrix
    hour: Int32Vector
    reward: Float64Vector
    reward_terms: Float64Matrix
    cost: Int32Vector
    invalid: BoolVector
    terminated: BoolVector
    truncated: BoolVector
    placed_action: Int32Matrix  # (B, K), with K = 1 without plans
    placed_item: Int32Matrix
    sent: Int32Vector
    arrived: BoolVector
    focus_active: BoolVector
    response: Float32Matrix


class PlansShown(NamedTuple):
    """What a slate environment shows besides."""

    slots: Int32Vector
    positions: Int32Matrix
    invalid_positions: BoolMatrix
    clicked: BoolMatrix
    purchased: BoolMatrix
    answered_item: Int32Matrix


def make_rules(config: FeedConfig, track: str, catalog: Catalog) -> Rules:
    """Take the rules from a config."""
    dtype = observation_dtype(config, track)
    offsets: dict[str, int] = {name: place[1] for name, place in (dtype.fields or {}).items()}
    space = observation_space(config, track)
    low = np.full(dtype.itemsize // 4, -np.inf, np.float32)
    high = np.full(dtype.itemsize // 4, np.inf, np.float32)
    for key, box in space.spaces.items():
        if key != "action_mask":
            at, bounds = offsets[key] // 4, box
            size = int(np.prod(box.shape or ()))
            low[at : at + size], high[at : at + size] = bounds.low.ravel(), bounds.high.ravel()  # type: ignore[attr-defined]
    mask: Any = space.spaces["action_mask"]
    terms = ("click", "purchase", "request", "invalid", "insert_click", "leave", "uncertainty")
    return Rules(
        track=TRACKS.index(track),
        penalty=int(config.rules == "penalty"),
        n_pool=config.pool_size,
        n_cards=config.n_cards,
        n_caps=len(config.card_types),
        page_size=config.page_size,
        latency=config.request_latency,
        budget=-1 if config.request_budget is None else config.request_budget,
        max_slots=config.max_slots,
        lookahead=config.lookahead,
        caps=np.array(config.share_caps, np.float64),
        gaps=np.array(config.gaps, np.int64),
        firsts=np.array(config.first_slots, np.int64),
        weights=np.array([getattr(config.reward, term) for term in terms], np.float64),
        card_type=catalog.card_type.astype(np.int64),
        low=low,
        high=high,
        context_at=offsets["context"] // 4,
        mask_at=offsets["action_mask"],
        n_actions=mask.shape[0],
    )


def make_followed(rules: Rules, rows: int) -> Followed:
    """Sessions that have not begun."""

    def ints(*shape: int) -> np.ndarray:
        return np.zeros((rows, *shape), np.int32)

    return Followed(
        **{name: ints() for name in Followed._fields[:7]},
        count=ints(rules.n_caps),
        last=ints(rules.n_caps),
        pool=ints(rules.n_pool),
        cards=ints(rules.n_cards),
        page=np.full((rows, rules.n_pool + rules.n_cards), -1, np.int32),
        marks=np.zeros((rows, len(rules.card_type)), np.int8),
    )


def what_is_shown(batch: Any) -> tuple[Shown, PlansShown | None]:
    """The arrays of a batch that hold what a step has shown."""
    a: FeedArrays = batch.arrays
    plans, source = None, {name: getattr(a, name) for name in Shown._fields if hasattr(a, name)}
    if isinstance(batch, SlateBatch):
        s = batch.slates
        plans = PlansShown(*(getattr(s, name) for name in PlansShown._fields))
        source |= {n: getattr(s, n) for n in ("reward", "reward_terms", "cost", "invalid", "sent")}
        source |= {n: getattr(s, n) for n in ("placed_action", "placed_item")}
    for name in ("placed_action", "placed_item"):
        source[name] = source[name].reshape(len(a.slot), -1)
    return Shown(**source, bytes=a.observation_bytes), plans


read_rules, read_followed = reader(Rules), reader(Followed)
read_shown, read_plans = reader(Shown), reader(PlansShown)


@kernel
def _insertion_allowed(rules, f, row, kind):
    slot, last = f.slot[row], f.last[row, kind]
    if slot < rules.firsts[kind] or (last >= 0 and slot - last < rules.gaps[kind]):
        return False
    return f.count[row, kind] + 1 <= rules.caps[kind] * max(slot + 1, rules.page_size) + 1e-9


@kernel
def _request_allowed(rules, f, row):
    return f.wire[row] == 0 and (rules.budget < 0 or f.requests[row] < rules.budget)


@kernel
def _legal_card(rules, f, row, m):
    return f.cards[row, m] >= 0 and (
        rules.penalty == 1 or _insertion_allowed(rules, f, row, m % rules.n_caps)
    )


@kernel
def _legal(rules, f, row, action):
    """Whether an action of the track is legal now."""
    if rules.track == RERANK or (rules.track == JOINT and action < rules.n_pool):
        return f.pool[row, action] >= 0
    if rules.track == REQUEST:
        return action == 0 or _request_allowed(rules, f, row)
    if rules.track == MIX:
        return action == 0 or _legal_card(rules, f, row, action - 1)
    if action < rules.n_pool + rules.n_cards:
        return _legal_card(rules, f, row, action - rules.n_pool)
    return _request_allowed(rules, f, row)


@kernel
def _take_page(rules, f, shown, row):
    """Take over a page that has arrived; returns a fault."""
    fault = 0
    for k in range(rules.n_pool + rules.n_cards):
        if f.page[row, k] >= 0:
            f.marks[row, f.page[row, k]] &= PLACED
    for k in range(rules.n_pool + rules.n_cards):
        if k < rules.n_pool:
            item, kind = shown.pool_items[row, k], 0
            f.pool[row, k] = item
            if item < 0:
                fault = PAGE
        else:
            m = k - rules.n_pool
            item, kind = shown.card_items[row, m], 1 + m % rules.n_caps
            f.cards[row, m] = item
        f.page[row, k] = item
        if item >= rules.card_type.shape[0]:
            return PAGE
        if item >= 0:
            if f.marks[row, item] != 0:
                fault = PAGE
            if rules.card_type[item] != kind:
                fault = TYPE
            f.marks[row, item] |= ON_PAGE
    return fault


@kernel
def _begin(rules, f, shown, row):
    f.slot[row] = 0
    f.page_age[row] = 0
    f.requested[row] = 0
    f.wire[row] = 0
    f.wire_requested[row] = 0
    f.requests[row] = 0
    f.views[row] = 0
    for k in range(rules.n_caps):
        f.count[row, k] = 0
        f.last[row, k] = -1
    for k in range(rules.n_pool + rules.n_cards):
        f.page[row, k] = -1
    for k in range(rules.card_type.shape[0]):
        f.marks[row, k] = 0
    fault = _take_page(rules, f, shown, row)
    if shown.reward[row] != 0 or shown.terminated[row] or shown.truncated[row] or shown.invalid[row]:
        fault = CLEARED
    if shown.cost[row] != 0 or shown.sent[row] != 0 or shown.arrived[row]:
        fault = CLEARED
    return fault


@kernel
def _place(rules, f, row, where, request, invalid, placed_action, placed_item):
    """Play a slot in the model and compare what it placed; returns (fault, cost, sent, arrived)."""
    fault, cost, sent, arrived = 0, 0, 0, False
    if where < 0:
        for r in range(rules.n_pool):
            if f.pool[row, r] >= 0:
                where = r
                break
    if request:
        f.requests[row] += 1
        f.wire[row] = rules.latency
        f.wire_requested[row] = 1
        sent = 1
        if rules.budget >= 0 and f.requests[row] > rules.budget:
            fault = BUDGET
    elif f.wire[row] == 0 and f.page_age[row] >= rules.page_size - rules.latency:
        f.wire[row] = rules.latency
        f.wire_requested[row] = 0
        sent = 2
    if placed_action != where:
        return ACTION, cost, sent, arrived
    if where < rules.n_pool:
        item, kind = f.pool[row, where], -1
        f.pool[row, where] = -1
    else:
        m = where - rules.n_pool
        item, kind = f.cards[row, m], m % rules.n_caps
        f.cards[row, m] = -1
    if placed_item != item or item < 0:
        return ITEM, cost, sent, arrived
    if f.marks[row, item] & PLACED:
        fault = TWICE
    f.marks[row, item] |= PLACED
    if rules.card_type[item] != kind + 1:
        fault = TYPE
    if kind >= 0:
        if not _insertion_allowed(rules, f, row, kind):
            cost = 1
            if rules.penalty == 0:
                fault = RULE
        f.count[row, kind] += 1
        f.last[row, kind] = f.slot[row]
    f.slot[row] += 1
    f.page_age[row] += 1
    if f.wire[row] > 0:
        f.wire[row] -= 1
        if f.wire[row] == 0:
            arrived = True
            f.page_age[row] = 0
            f.requested[row] = f.wire_requested[row]
    return fault, cost, sent, arrived


@kernel
def _check_ends(rules, f, shown, row, active, clicks, buys, left, sent_by_policy, invalid, whole):
    """Compare what the step paid and whether the session ended."""
    slot = f.slot[row]
    if shown.terminated[row] != left:
        return TERMINATED
    if shown.truncated[row] != (slot >= rules.max_slots and not left):
        return TRUNCATED
    total, scale = 0.0, 1.0
    for k in range(shown.reward_terms.shape[1]):
        total += shown.reward_terms[row, k]
        scale += abs(shown.reward_terms[row, k])
    if not abs(total - shown.reward[row]) <= (1e-12 * scale if whole else 0.0):
        return SUM
    w, terms = rules.weights, shown.reward_terms
    near = 1e-9 * (1 + abs(w[0]) + abs(w[1]) + abs(w[2]) + abs(w[3]) + abs(w[5])) * 100
    for k, count in ((0, clicks), (1, buys), (2, sent_by_policy), (3, invalid)):
        if not abs(terms[row, k] - count * w[k]) <= near:
            return TERM
    if not abs(terms[row, 5] - (w[5] if left else 0.0)) <= near:
        return TERM
    return 0


@kernel
def _check_observation(rules, f, shown, row, everything):
    """Compare mask and context, and the bounds of the whole observation if asked."""
    at, any_legal = rules.mask_at, False
    for action in range(rules.n_actions):
        found = shown.bytes[row, at + action]
        if found != (1 if _legal(rules, f, row, action) else 0):
            return MASK
        any_legal = any_legal or found == 1
    ended = shown.terminated[row] or shown.truncated[row]
    if not any_legal and not ended:
        return NO_ACTION
    c, o = rules.context_at, shown.observation
    slot = f.slot[row]
    left = 1.0
    if rules.budget >= 0:
        left = (rules.budget - f.requests[row]) / max(rules.budget, 1)
    fixed = (
        slot / rules.max_slots,
        max(0, slot - rules.lookahead) / rules.max_slots,
        f.views[row] / rules.max_slots,
        f.page_age[row] / rules.page_size,
        1.0 if f.wire[row] > 0 else 0.0,
        f.wire[row] / rules.latency,
        left,
        float(f.requested[row]),
        shown.hour[row] / 24.0,
    )
    for k in range(9):
        if not abs(o[row, c + k] - fixed[k]) < 1e-6:
            return CONTEXT
    for k in range(rules.n_caps):
        share = f.count[row, k] / max(slot, rules.page_size)
        last = f.last[row, k]
        since = 1.0 if last < 0 else min(1.0, (slot - last) / rules.page_size)
        if not (
            abs(o[row, c + 9 + k] - share) < 1e-6 and abs(o[row, c + 9 + rules.n_caps + k] - since) < 1e-6
        ):
            return CONTEXT
    if everything:
        for k in range(rules.low.shape[0]):
            if rules.low[k] > -np.inf and not rules.low[k] <= o[row, k] <= rules.high[k]:
                return OUTSIDE
    return 0


def _entry_points(digest: str) -> tuple[Any, ...]:
    # The digest becomes part of numba's cache key; see edgerec_gym/compiled/jit.py.
    @entry_point
    def follow(rules_at, f_at, shown_at, actions, ended, step, faults):
        """Compare a step of one slot in every row; the first fault of each is written to `faults` (B,)."""
        _ = digest
        rules, f, shown = read_rules(rules_at), read_followed(f_at), read_shown(shown_at)
        for row in range(len(actions)):
            if ended[row]:
                fault = _begin(rules, f, shown, row)
            else:
                action, where, request = actions[row], -1, False
                invalid = not _legal(rules, f, row, action)
                if not invalid:
                    if rules.track == RERANK:
                        where = action
                    elif rules.track == MIX:
                        where = rules.n_pool + action - 1 if action > 0 else -1
                    elif rules.track == REQUEST:
                        request = action == 1
                    elif action == rules.n_pool + rules.n_cards:
                        request = True
                    else:
                        where = action
                fault, cost, sent, arrived = _place(
                    rules,
                    f,
                    row,
                    where,
                    request,
                    invalid,
                    shown.placed_action[row, 0],
                    shown.placed_item[row, 0],
                )
                if fault == 0 and shown.invalid[row] != invalid:
                    fault = INVALID
                if fault == 0 and shown.cost[row] != cost:
                    fault = COST
                if fault == 0 and shown.sent[row] != sent:
                    fault = SENT
                if fault == 0 and shown.arrived[row] != arrived:
                    fault = ARRIVED
                if fault == 0 and arrived:
                    fault = _take_page(rules, f, shown, row)
                active = f.slot[row] - 1 - rules.lookahead >= 0
                clicks, buys, left = 0.0, 0.0, False
                if active:
                    clicks, buys = shown.response[row, CLICK], shown.response[row, BUY]
                    left = shown.response[row, LEAVE] > 0
                    f.views[row] += int(clicks)
                if fault == 0:
                    fault = _check_ends(
                        rules, f, shown, row, active, clicks, buys, left, 1.0 if sent == 1 else 0.0,
                        1.0 if invalid else 0.0, False,
                    )  # fmt: skip
            if fault == 0:
                fault = _check_observation(rules, f, shown, row, (row + step) % STRIPE == 0)
            faults[row] = fault

    @entry_point
    def follow_plans(rules_at, f_at, shown_at, plans_at, order, insert, request, ended, step, faults):
        """Compare a step of a plan in every row."""
        _ = digest
        rules, f, shown = read_rules(rules_at), read_followed(f_at), read_shown(shown_at)
        plans = read_plans(plans_at)
        for row in range(len(request)):
            fault = 0
            if ended[row]:
                fault = _begin(rules, f, shown, row)
            else:
                n, clicks, buys, requested, invalids, costs, sent_most = (
                    plans.slots[row],
                    0.0,
                    0.0,
                    0.0,
                    0.0,
                    0,
                    0,
                )
                left, active, any_invalid = False, False, False
                if n < 1 or n > insert.shape[1]:
                    fault = PLAN
                for k in range(n):
                    if fault != 0:
                        break
                    where, asks, invalid = -1, False, False
                    if k == 0 and request[row] == 1:
                        asks = _request_allowed(rules, f, row)
                        invalid = not asks
                    elif insert[row, k] > 0:
                        m = insert[row, k] - 1
                        invalid = not _legal_card(rules, f, row, m)
                        if not invalid:
                            where = rules.n_pool + m
                    else:
                        for r in range(rules.n_pool):
                            if f.pool[row, r] >= 0 and (where < 0 or order[row, r] > order[row, where]):
                                where = r
                    if plans.positions[row, k] != f.slot[row]:
                        fault = PLAN
                        break
                    fault, cost, sent, arrived = _place(
                        rules,
                        f,
                        row,
                        where,
                        asks,
                        invalid,
                        shown.placed_action[row, k],
                        shown.placed_item[row, k],
                    )
                    if fault == 0 and plans.invalid_positions[row, k] != invalid:
                        fault = INVALID
                    requested += 1.0 if sent == 1 else 0.0
                    invalids += 1.0 if invalid else 0.0
                    any_invalid = any_invalid or invalid
                    costs += cost
                    sent_most = max(sent_most, sent)
                    active = f.slot[row] - 1 - rules.lookahead >= 0
                    if fault == 0 and (plans.answered_item[row, k] >= 0) != active:
                        fault = PLAN
                    clicks += 1.0 if plans.clicked[row, k] else 0.0
                    buys += 1.0 if plans.purchased[row, k] else 0.0
                    f.views[row] += 1 if plans.clicked[row, k] else 0
                    left = active and shown.terminated[row] and k == n - 1
                    ends = left or f.slot[row] >= rules.max_slots
                    if fault == 0 and arrived:
                        if not shown.arrived[row] or k < n - 1:
                            fault = ARRIVED
                        else:
                            fault = _take_page(rules, f, shown, row)
                    stops = ends or arrived or plans.clicked[row, k] or k + 1 == insert.shape[1]
                    if fault == 0 and stops != (k == n - 1):
                        fault = PLAN
                if fault == 0 and shown.invalid[row] != any_invalid:
                    fault = INVALID
                if fault == 0 and shown.cost[row] != costs:
                    fault = COST
                if fault == 0 and shown.sent[row] != sent_most:
                    fault = SENT
                if fault == 0:
                    left = active and shown.response[row, LEAVE] > 0
                    fault = _check_ends(
                        rules, f, shown, row, active, clicks, buys, left, requested, invalids, True
                    )  # fmt: skip
            if fault == 0:
                fault = _check_observation(rules, f, shown, row, (row + step) % STRIPE == 0)
            faults[row] = fault

    @entry_point
    def draw_actions(rules_at, f_at, draws, wrong, cards, requests, actions):
        """Draw an action for every row: any with probability `wrong`, else a legal one with a taste for some.

        Args:
            draws: (B, 2) uniform numbers.
            wrong: share of actions that are drawn without a look at the mask.
            cards: share of cards among the others.
            requests: share of requests.
            actions: (B,) int64, written.
        """
        _ = digest
        rules, f = read_rules(rules_at), read_followed(f_at)
        n = rules.n_actions
        for row in range(len(actions)):
            u, start = draws[row, 0], int(draws[row, 1] * n)
            if u >= wrong:
                u = (u - wrong) / (1 - wrong) if wrong < 1 else 0.0
                if u < requests and (rules.track == JOINT or rules.track == REQUEST):
                    start = n - 1
                elif u < requests + cards and rules.track == JOINT:
                    start = rules.n_pool + int(draws[row, 1] * rules.n_cards)
                for _ in range(n):
                    if _legal(rules, f, row, start):
                        break
                    start = (start + 1) % n
            actions[row] = start

    return follow, follow_plans, draw_actions


follow, follow_plans, draw_actions = _entry_points(SOURCE_DIGEST)
