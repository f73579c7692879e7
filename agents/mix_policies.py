"""Policies of mixed insertion: value every card at every slot ahead, then plan under the feed's rules.

A plan reaches to the end of the page, whose cards it knows; it is made anew when something has happened
(:class:`~edgerec_gym.agents.list_policy.SlotBySlot`). A card at a slot is worth what it is expected to earn
there, minus what the goods lose that it pushes down, minus a *price*. The price is what a share of the page
views costs (the dual variable of a cap on it): raised or lowered, it brings any policy to the share that is
wanted.
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.list_policy import Scorer, SlateBySlate, SlotBySlot
from edgerec_gym.agents.mix_feed import InsertionState, feed_problems
from edgerec_gym.agents.mix_planner import SOLVERS, DualPrices, plan_batch
from edgerec_gym.agents.mix_problem import LEFT_OUT
from edgerec_gym.agents.mix_problem import insertions as planned_insertions
from edgerec_gym.agents.mix_values import SlotValues, ValueModel, cloud_order, displaced
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Explanation, Observation, Policy
from edgerec_gym.registration import SLATE

TRACKS = ("mix", "joint", SLATE)  # that insertion policies play
REPLAN_AFTER = 4  # exposures without a click
LEAST_GAIN = 1e-9  # a card that is worth less stays out


class InsertionPlan:
    """Plans insertions to the end of the page; follows :class:`~edgerec_gym.agents.list_policy.ListPolicy`.

    Args:
        name: of the policy.
        value_model: what cards are worth.
        config: of the feed.
        solver: of :data:`~edgerec_gym.agents.mix_planner.SOLVERS`.
        price: of a card that is seen, in reward units.
        scorer: orders the pool, as it will be shown; None: cloud order.
        horizon: slots that a plan looks ahead, at most to the end of the page; None: all of it.

    Raises:
        InputError: an unknown solver, a price that is not finite, or no horizon.
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
        """Reset the scorer; the plans themselves have no memory."""
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
        """Tell the gains and slots of the cards that the last call has planned in one of its rows."""
        assert self._last is not None
        score, gain, slots = self._last
        return Explanation(
            scores=None if self.scorer is None else score[row].copy(),
            matrix=gain[row].copy(),
            plan=slots[row].copy(),
        )

    def values(self, observation: Observation) -> tuple[np.ndarray, SlotValues]:
        """Scores (B, N) of the pool, and what cards are worth among the goods in that order."""
        if self.scorer is None:
            order = cloud_order(observation)
            score = np.zeros(order.shape, np.float32)  # of equal scores the cloud's first
        else:
            score = self.scorer.scores(observation)
            present = (observation["pool"] != 0).any(axis=2)
            order = np.argsort(np.where(present, -score, np.inf), axis=1, kind="stable")
        return score, self.value_model.values(observation, order, self.n_slots)


def net_gains(values: SlotValues, price: float | np.ndarray) -> np.ndarray:
    """Expected gain (B, M, T) of each card at each slot over the goods alone; -inf where it cannot stand.

    The price is one for all, or broadcasts to (B, M, T).
    """
    seen = values.exposure[:, None]
    gain = seen * (values.cards - price) - displaced(values)[:, None]
    return np.where((seen > 0) & (values.cards > 0), gain, -np.inf)


def solve(
    gain: np.ndarray, exposure: np.ndarray, observation: Observation, config: FeedConfig, solver: str
) -> np.ndarray:
    """Plan under the feed's rules: the slots (B, M) int64 of the cards, -1 for those that stay out.

    Args:
        gain: (B, M, T) of each card at each slot.
        exposure: (B, T) probability that each slot is seen.
        observation: tells what was inserted before.
        config: of the feed.
        solver: of :data:`~edgerec_gym.agents.mix_planner.SOLVERS`.
    """
    state = InsertionState.from_observation(observation, config)
    types = np.arange(config.n_cards) % len(config.card_types)  # of the card rows
    free = np.zeros(len(config.card_types))  # the gains are net of the price already
    problems = feed_problems(config, state, gain, types, exposure)
    return plan_batch(problems, solver, prices=DualPrices(free, free)).slots


def insertions(slots: np.ndarray, n_places: int) -> np.ndarray:
    """Cards of plans (B, M) at their first K slots, as the slate space has them, (B, K) int64."""
    return planned_insertions(np.where(slots < n_places, slots, LEFT_OUT), n_places)


def policy_of(plan: InsertionPlan, track: str, every: int = REPLAN_AFTER) -> Policy:
    """Return the policy that plays plans on a track: slot by slot, or a plan at a time.

    Args:
        plan: makes the plans.
        track: of :data:`TRACKS`.
        every: exposures without a click after which a plan is made anew; the environment says when on slate.

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
