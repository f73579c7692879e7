"""Policies of mixed insertion: value every card at every slot ahead, then plan under the feed's rules.

A plan reaches to the end of the page, whose cards the device knows. It is made anew when something has
happened (:class:`~edgerec_gym.agents.list_policy.SlotBySlot`). The gain of a card at a slot is what it is
expected to earn there, minus the loss of the goods that it pushes down, minus a *price*. The price is the
dual variable of a cap on the share of page views: moving it brings any policy to the desired share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgerec_gym.agents.insertion.values import SlotValues, ValueModel, cloud_order, displaced
from edgerec_gym.agents.list_policy import Scorer, SlateBySlate, SlotBySlot
from edgerec_gym.agents.planner.problem import LEFT_OUT, MixBatch
from edgerec_gym.agents.planner.problem import insertions as planned_insertions
from edgerec_gym.agents.planner.solve import SOLVERS, DualPrices, plan_batch
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Explanation, Observation, Policy
from edgerec_gym.registration import SLATE
from edgerec_gym.spaces import CONTEXT

SLOT_COLUMN = CONTEXT.index("slot")
NEVER = -1  # last slot of a type that has not been shown


@dataclass(frozen=True)
class InsertionState:
    """State of B feeds that one plan hands to the next (C card types)."""

    slot: np.ndarray  # (B,) int64, the next slot of the session
    counts: np.ndarray  # (B, C) int64, cards of each type so far
    last_slots: np.ndarray  # (B, C) int64, session slot of the last card of the type; -1 = none

    @classmethod
    def from_observation(cls, observation: Observation, config: FeedConfig) -> InsertionState:
        """Read the state from the context of an observation.

        Slots since the last card are observed up to page_size; beyond it the last card counts as page_size
        slots ago, which matters only to gaps longer than a page.
        """
        context = np.asarray(observation["context"], np.float64)
        n_types = len(config.card_types)
        used, since = np.split(context[:, len(CONTEXT) :], [n_types], axis=1)
        slot = np.rint(context[:, SLOT_COLUMN] * config.max_slots).astype(np.int64)
        counts = np.rint(used * np.maximum(slot, config.page_size)[:, None]).astype(np.int64)
        last = slot[:, None] - np.rint(since * config.page_size).astype(np.int64)
        return cls(slot, counts, np.where(counts > 0, last, NEVER))


def feed_problems(
    config: FeedConfig,
    state: InsertionState,
    values: np.ndarray,
    types: np.ndarray,
    weights: np.ndarray | None = None,
    caps: np.ndarray | None = None,
    ordered: bool = False,
) -> MixBatch:
    """Make the problems of the next T slots of B feeds; their plans are legal in the environment.

    Args:
        config: the feed.
        state: state of the feeds.
        values: (B, M, T), -inf for cards that are used up.
        types: (B, M) or (M,), 0 = the first of config.card_types.
        weights: (B, T), exposure probabilities; None = 1.
        caps: (B, C), weight that a type may still take; None = no cap beyond the environment's own.
        ordered: whether the cards of a type are a queue.

    Raises:
        InputError: as :class:`~edgerec_gym.agents.planner.problem.MixProblem` does.
    """
    values = np.asarray(values, np.float64)
    rows, n_cards, horizon = values.shape
    shape = (rows, len(config.card_types))
    gaps = np.broadcast_to(config.gaps, shape)
    free_from = np.where(state.last_slots >= 0, state.last_slots + gaps, 0)
    first = np.maximum(np.array(config.first_slots), free_from) - state.slot[:, None]
    prefix = np.maximum(state.slot[:, None] + np.arange(1, horizon + 1), config.page_size)  # (B, T)
    # The environment's own cap, with its slack (feed/rules.py), less the cards shown before the plan.
    most = np.floor(np.array(config.share_caps)[:, None] * prefix[:, None, :] + 1e-9).astype(np.int64)
    return MixBatch(
        values=values,
        weights=np.ones((rows, horizon)) if weights is None else weights,
        types=np.broadcast_to(types, (rows, n_cards)),
        caps=np.full(shape, np.inf) if caps is None else caps,
        gaps=gaps,
        first_slots=np.maximum(first, 0),
        prefix_caps=np.maximum(most - state.counts[:, :, None], 0),
        ordered=ordered,
    )


TRACKS = ("mix", "joint", SLATE)  # tracks that insertion policies play
REPLAN_AFTER = 4  # number of exposures without a click
LEAST_GAIN = 1e-9  # a card that gains less is left out


class InsertionPlan:
    """Plan insertions to the end of the page; a :class:`~edgerec_gym.agents.list_policy.ListPolicy`.

    Args:
        name: the policy's name.
        value_model: predicts what cards are worth.
        config: the feed.
        solver: one of :data:`~edgerec_gym.agents.planner.solve.SOLVERS`.
        price: price of a card that is seen, in reward units.
        scorer: orders the pool as it will be shown; None: cloud order.
        horizon: slots that a plan looks ahead, at most to the end of the page; None: all of it.

    Raises:
        InputError: an unknown solver, a price that is not finite, or a horizon below 1.
    """

    def __init__(
        self,
        name: str,
        value_model: ValueModel,
        config: FeedConfig,
        *,
        solver: str = "exact",
        price: float = 0.0,
        scorer: Scorer | None = None,
        horizon: int | None = None,
    ) -> None:
        if solver not in SOLVERS:
            raise InputError(f"unknown solver {solver!r}; allowed: {', '.join(SOLVERS)}")
        if not np.isfinite(price):
            raise InputError(f"price = {price} must be finite, in reward units")
        if horizon is not None and horizon < 1:
            raise InputError(f"horizon = {horizon} must be at least 1 slot")
        self.name, self.value_model, self.config = name, value_model, config
        self.solver, self.price, self.scorer = solver, price, scorer
        self.n_slots = min(config.page_size, horizon or config.page_size)
        self.stateless = not hasattr(value_model, "bind") and getattr(scorer, "stateless", scorer is None)
        if hasattr(value_model, "bind"):  # an oracle
            self.bind = value_model.bind
        self._last: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # scores, gains, slots

    def reset(self, mask: np.ndarray) -> None:
        """Reset the scorer; the plans themselves keep no state."""
        if self.scorer is not None:
            self.scorer.reset(mask)

    def plan(self, observation: Observation) -> dict[str, np.ndarray]:
        """Return the plan; see :class:`~edgerec_gym.agents.list_policy.ListPolicy`."""
        score, values = self.values(observation)
        gain = net_gains(values, self.price)
        slots = solve(gain, values.exposure, observation, self.config, self.solver)
        self._last = score, gain, slots
        return {
            "order": score,
            "insert": insertions(slots, self.config.slate_size),
            "request": np.zeros(len(score), np.int64),
        }

    def explain(self, row: int) -> Explanation:
        """Report gains and slots of the cards that the last call planned in one of its rows."""
        assert self._last is not None
        score, gain, slots = self._last
        return Explanation(
            scores=None if self.scorer is None else score[row].copy(),
            matrix=gain[row].copy(),
            plan=slots[row].copy(),
        )

    def values(self, observation: Observation) -> tuple[np.ndarray, SlotValues]:
        """Scores (B, N) of the pool, and the values of cards among the goods in that order."""
        if self.scorer is None:
            order = cloud_order(observation)
            score = np.zeros(order.shape, np.float32)  # ties go to the item that the cloud ranked first
        else:
            score = self.scorer.scores(observation)
            present = (observation["pool"] != 0).any(axis=2)
            order = np.argsort(np.where(present, -score, np.inf), axis=1, kind="stable")
        return score, self.value_model.values(observation, order, self.n_slots)


def net_gains(values: SlotValues, price: float | np.ndarray) -> np.ndarray:
    """Expected gain (B, M, T) of each card at each slot over the goods alone; -inf where none can be placed.

    The price is a scalar, or broadcasts to (B, M, T).
    """
    seen = values.exposure[:, None]
    gain = seen * (values.cards - price) - displaced(values)[:, None]
    return np.where((seen > 0) & (values.cards > 0), gain, -np.inf)


def solve(
    gain: np.ndarray, exposure: np.ndarray, observation: Observation, config: FeedConfig, solver: str
) -> np.ndarray:
    """Plan under the feed's rules: the slots (B, M) int64 of the cards, -1 for those left out.

    Args:
        gain: (B, M, T) gain of each card at each slot.
        exposure: (B, T) probability that each slot is seen.
        observation: tells what was inserted before.
        config: the feed.
        solver: one of :data:`~edgerec_gym.agents.planner.solve.SOLVERS`.
    """
    state = InsertionState.from_observation(observation, config)
    types = np.arange(config.n_cards) % len(config.card_types)  # types of the card rows
    free = np.zeros(len(config.card_types))  # the gains are already net of the price
    problems = feed_problems(config, state, gain, types, exposure)
    return plan_batch(problems, solver, prices=DualPrices(free, free)).slots


def insertions(slots: np.ndarray, n_places: int) -> np.ndarray:
    """Cards of plans (B, M) at their first K slots, in the form of the slate space, (B, K) int64."""
    return planned_insertions(np.where(slots < n_places, slots, LEFT_OUT), n_places)


def policy_of(plan: InsertionPlan, track: str, every: int = REPLAN_AFTER) -> Policy:
    """Return the policy that plays plans on a track: slot by slot, or a plan at a time.

    Args:
        plan: makes the plans.
        track: one of :data:`TRACKS`.
        every: exposures without a click after which a plan is made anew; on slate, the environment decides.

    Raises:
        InputError: another track.
    """
    if track not in TRACKS:
        raise InputError(
            f"{plan.name!r} inserts cards; it plays the tracks {', '.join(TRACKS)}, not {track!r}"
        )
    if track == SLATE:
        return SlateBySlate(plan)
    return SlotBySlot(plan, every, mix=track == "mix")


def greedy_plan(
    config: FeedConfig,
    state: InsertionState,
    pool: np.ndarray,
    cards: np.ndarray,
    request: np.ndarray,
    margin: float,
) -> dict[str, np.ndarray]:
    """Order rows by value; insert at each slot the best legal card if it is worth `margin` more.

    Args:
        config: the feed.
        state: state of the feeds.
        pool: (B, N) values of the pool rows at the next slot, below all others where a row is empty.
        cards: (B, M) values of the cards, -1 where there is none.
        request: (B,) bool, where a page is requested.
        margin: in units of the values.

    Returns:
        The plan, an action of EdgeFeedSlate-v0.
    """
    gaps, first_slots, caps = (np.array(v) for v in (config.gaps, config.first_slots, config.share_caps))
    count, last, cards = state.counts.copy(), state.last_slots.copy(), cards.copy()
    card_type = np.arange(cards.shape[1]) % len(gaps)
    best_first, rows = -np.sort(-pool, axis=1), np.arange(len(pool))
    next_row = np.zeros(len(pool), np.int64)
    insert = np.zeros((len(pool), config.slate_size), np.int64)
    for k in range(config.slate_size):
        slot = state.slot[:, None] + k
        legal = (slot >= first_slots) & ((last < 0) | (slot - last >= gaps))
        legal &= count + 1 <= caps * np.maximum(slot + 1, config.page_size) + 1e-9
        value = np.where(legal[:, card_type], cards, -1.0)
        best = value.argmax(axis=1)
        placed = value[rows, best] > best_first[rows, next_row] + margin
        placed &= ~request | (k > 0)
        insert[:, k] = np.where(placed, best + 1, 0)
        count[rows[placed], card_type[best[placed]]] += 1
        last[rows[placed], card_type[best[placed]]] = slot[placed, 0]
        cards[rows[placed], best[placed]] = -1.0
        next_row = np.minimum(next_row + ~placed, pool.shape[1] - 1)
    return {"order": pool, "insert": insert, "request": request.astype(np.int64)}
