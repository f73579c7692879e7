"""Plans of EdgeFeedSlate-v0: their format, their outcomes, and the kernels that lead from one to the other.

A plan is shorthand for up to K actions of EdgeFeed-v0, one per slot (:func:`planned_action`), which the
kernels of EdgeFeed-v0 play.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from edgerec_gym.answers import BUY, CLICK, CLICK_PROBABILITY, FOCUSED, PURCHASE_PROBABILITY, RESPONSE_SIZE
from edgerec_gym.compiled.arrays import (
    BoolMatrix,
    BoolVector,
    Float32Cube,
    Float32Matrix,
    Float64Matrix,
    Float64Vector,
    Int32Matrix,
    Int32Vector,
)
from edgerec_gym.compiled.jit import kernel
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.state import NO_ITEM

# Why a plan stopped; if several reasons apply in one slot, the last one counts.
STOPPED_BY = ("plan", "page", "click", "end")
PLAN, PAGE, ANSWERED_CLICK, END = range(len(STOPPED_BY))


class Plan(NamedTuple):
    """What one step plays in every row (B rows, N pool rows, K slots)."""

    order: np.ndarray  # (B, N) float32, finite scores of the pool rows
    insert: np.ndarray  # (B, K) int64, 0 = no card, m = card row m - 1
    request: np.ndarray  # (B,) int64, 0 or 1


class SlateArrays(NamedTuple):
    """Outcomes of the last plan of every row (B rows, K slots of a plan); -1 where nothing happened."""

    size: int  # K
    slots: Int32Vector  # (B,), slots played
    stopped_by: Int32Vector  # (B,), index into STOPPED_BY
    reward: Float64Vector  # (B,), sum over the slots
    reward_terms: Float64Matrix  # (B, 7 + R), sums over the slots
    invalid: BoolVector  # (B,), whether an action of the plan was illegal
    cost: Int32Vector  # (B,), rule violations played under rules="penalty"
    sent: Int32Vector  # (B,), 0 nothing, 1 the policy's request, 2 an automatic one; never both in one plan
    # --- slot by slot ---------------------------------------------------------------------------
    positions: Int32Matrix  # (B, K), slot of the session
    placed_action: Int32Matrix  # (B, K), index in the joint action space, request not counted
    placed_item: Int32Matrix  # (B, K)
    invalid_positions: BoolMatrix  # (B, K)
    answered_item: Int32Matrix  # (B, K), the card answered in that slot
    clicked: BoolMatrix  # (B, K), whether that card was clicked
    purchased: BoolMatrix  # (B, K)
    click_probability: Float32Matrix  # (B, K), of that card
    purchase_probability: Float32Matrix  # (B, K)
    uncertainty: Float32Matrix  # (B, K), of learned users about that click
    responses: Float32Cube  # (B, K, R), named responses to that card


def allocate_slates(config: FeedConfig, num_envs: int) -> SlateArrays:
    """Allocate the arrays of `num_envs` rows."""
    by_slot = (num_envs, config.slate_size)

    def ints(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.int32)

    return SlateArrays(
        size=config.slate_size,
        slots=ints(num_envs),
        stopped_by=ints(num_envs),
        reward=np.zeros(num_envs),
        reward_terms=np.zeros((num_envs, len(config.reward_terms))),
        invalid=np.zeros(num_envs, np.bool_),
        cost=ints(num_envs),
        sent=ints(num_envs),
        positions=ints(*by_slot),
        placed_action=ints(*by_slot),
        placed_item=ints(*by_slot),
        invalid_positions=np.zeros(by_slot, np.bool_),
        answered_item=ints(*by_slot),
        clicked=np.zeros(by_slot, np.bool_),
        purchased=np.zeros(by_slot, np.bool_),
        click_probability=np.zeros(by_slot, np.float32),
        purchase_probability=np.zeros(by_slot, np.float32),
        uncertainty=np.zeros(by_slot, np.float32),
        responses=np.zeros((*by_slot, config.n_responses), np.float32),
    )


def check_plan(
    action: Any, n_pool: int, n_cards: int, slate_size: int | None, num_envs: int | None = None
) -> Plan:
    """Return an action of the slate space as a Plan of new arrays, batch first.

    Args:
        action: dict of order, insert and request, or a Plan; scores need not lie in -1..1, as only their
            order counts.
        n_pool: N.
        n_cards: M.
        slate_size: K; None accepts any.
        num_envs: B; None for the action of a single environment, which becomes a batch of one.

    Raises:
        InputError: a part is wrong; the message names it, its place and what is allowed.
    """
    if isinstance(action, Plan):
        action = action._asdict()
    if not isinstance(action, Mapping) or set(action) != set(Plan._fields):
        found = f"the keys {', '.join(map(str, action))}" if isinstance(action, Mapping) else repr(action)
        raise InputError(f"a plan must be a dict of {', '.join(Plan._fields)}; got {found}")
    rows = 1 if num_envs is None else num_envs
    batched = num_envs is not None
    with np.errstate(over="ignore"):  # values too large for float32 become infinite and are refused
        order = _array(action, "order", (rows, n_pool), "fiu", "numbers", batched).astype(np.float32, "C")
    size = np.size(action["insert"]) // rows if slate_size is None else slate_size
    insert = _array(action, "insert", (rows, size), "iu", "whole numbers", batched).astype(np.int64, "C")
    request = _array(action, "request", (rows,), "iu", "whole numbers", batched).astype(np.int64, "C")
    _refuse("order", order, ~np.isfinite(order), "finite scores", batched)
    cards = f"0 (no card) to {n_cards}"
    _refuse("insert", insert, (insert < 0) | (insert > n_cards), cards, batched)
    _refuse("request", request, (request < 0) | (request > 1), "0 or 1", batched)
    return Plan(order, insert, request)


def _array(
    action: Mapping[str, Any], name: str, shape: tuple[int, ...], kinds: str, what: str, batched: bool
) -> np.ndarray:
    """Return one part of a plan as an array of `shape`."""
    try:
        values = np.asarray(action[name])
    except ValueError:  # rows of different lengths
        values = np.array(None)
    wanted = shape if batched else shape[1:]
    if values.shape != wanted or values.dtype.kind not in kinds:
        raise InputError(
            f"{name} must be {what} of shape {wanted}, got shape {values.shape} of {values.dtype}"
        )
    return values.reshape(shape)


def _refuse(name: str, values: np.ndarray, wrong: np.ndarray, allowed: str, batched: bool) -> None:
    """Raise InputError for the first wrong value, if any."""
    if not wrong.any():
        return
    row, *place = np.argwhere(wrong)[0].tolist()
    where = "".join(f"[{k}]" for k in place) + (f" of row {row}" if batched else "")
    raise InputError(f"{name}{where} is {values[(row, *place)]}; allowed: {allowed}")


@kernel
def planned_action(feed, row, order, insert, request, k):
    """Return the EdgeFeed-v0 action of a plan at its k-th slot."""
    if k == 0 and request[row] == 1:
        return feed.n_pool + feed.n_cards
    if insert[row, k] > 0:
        return feed.n_pool + insert[row, k] - 1
    best = -1
    for r in range(feed.n_pool):
        if feed.pool_items[row, r] != NO_ITEM and (best < 0 or order[row, r] > order[row, best]):
            best = r  # equal scores stay in cloud order
    return best


@kernel
def clear_slate(slates, row):
    """Clear the outcomes of a row's last plan."""
    slates.slots[row] = 0
    slates.stopped_by[row] = PLAN
    slates.reward[row] = 0.0
    for term in range(slates.reward_terms.shape[1]):
        slates.reward_terms[row, term] = 0.0
    slates.invalid[row] = False
    slates.cost[row] = 0
    slates.sent[row] = 0
    for k in range(slates.size):
        slates.positions[row, k] = -1
        slates.placed_action[row, k] = -1
        slates.placed_item[row, k] = NO_ITEM
        slates.invalid_positions[row, k] = False
        slates.answered_item[row, k] = NO_ITEM
        slates.clicked[row, k] = False
        slates.purchased[row, k] = False
        slates.click_probability[row, k] = 0.0
        slates.purchase_probability[row, k] = 0.0
        slates.uncertainty[row, k] = 0.0
        for r in range(slates.responses.shape[2]):
            slates.responses[row, k, r] = 0.0


@kernel
def record_slot(feed, slates, row, k):
    """Record the outcome of the k-th slot; returns whether the plan goes on."""
    slates.slots[row] = k + 1
    slates.reward[row] += feed.reward[row]
    for term in range(slates.reward_terms.shape[1]):
        slates.reward_terms[row, term] += feed.reward_terms[row, term]
    slates.cost[row] += feed.cost[row]
    slates.sent[row] = max(slates.sent[row], feed.sent[row])
    slates.positions[row, k] = feed.slot[row] - 1
    slates.placed_action[row, k] = feed.placed_action[row]
    slates.placed_item[row, k] = feed.placed_item[row]
    if feed.invalid[row]:
        slates.invalid[row] = True
        slates.invalid_positions[row, k] = True
    clicked = False
    if feed.focus_active[row]:
        clicked = feed.response[row, CLICK] > 0
        slates.answered_item[row, k] = feed.window_items[row, FOCUSED]
        slates.clicked[row, k] = clicked
        slates.purchased[row, k] = feed.response[row, BUY] > 0
        slates.click_probability[row, k] = feed.response[row, CLICK_PROBABILITY]
        slates.purchase_probability[row, k] = feed.response[row, PURCHASE_PROBABILITY]
        slates.uncertainty[row, k] = feed.uncertainty[row]
        for r in range(feed.n_responses):
            slates.responses[row, k, r] = feed.response[row, RESPONSE_SIZE + r]
    if feed.terminated[row] or feed.truncated[row]:
        slates.stopped_by[row] = END
    elif clicked:
        slates.stopped_by[row] = ANSWERED_CLICK
    elif feed.arrived[row]:
        slates.stopped_by[row] = PAGE
    return slates.stopped_by[row] == PLAN and k + 1 < slates.size
