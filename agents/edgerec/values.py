"""Comparison of whole plans of the EdgeRec agent: with or without a request, cards, an order by live match.

Each decision has a value of its own, but they interact: a card that waits for a page that is replaced is
lost, and a request discards an order that has just been found. The value of a whole plan is learned from
rollouts: copies of a session of learned users share their random numbers, differ by one plan, and are then
continued by the unchanged agent. A phone can run neither the cloud nor the simulator, so the rollouts are
distilled into a linear function of a few features of the plan (ridge regression on differences from the plan
that the agent would have played). Another plan than the agent's own is played only if it is surely better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgerec_gym.agents.list_policy import PAGE_AGE
from edgerec_gym.agents.perception.live_interest import LiveInterest
from edgerec_gym.policy import NOT_SHOWN, Observation

FEATURES = (
    "request",
    "request_gain",  # estimated, beyond its price
    "request_page_age",  # in pages
    "cards",
    "cards_gain",  # planned, beyond their price and what they displace
    "cards_page_age",
    "live_order",
    "live_order_evidence",  # how much is known of the current interest
    "request_and_cards",
)
N_CANDIDATES = 6  # with both orders
SURE = 1.64  # standard errors by which another plan must be better
LEAST_SCALE = 1e-6


class Candidate(NamedTuple):
    """Plans of R moments.

    scores: (R, N) scores that order the pool.
    slots: (R, M) int64 slots ahead of the cards, -1 for those left out.
    asks: (R,) bool whether a page is requested.
    live: whether the order is that of live match.
    """

    scores: np.ndarray
    slots: np.ndarray
    asks: np.ndarray
    live: bool = False


def candidates(
    first: Candidate,
    observation: Observation,
    may_ask: np.ndarray,
    interest: LiveInterest,
    reorder: bool = True,
) -> list[Candidate]:
    """List the plans to compare, starting with `first`, the one from separate decisions.

    Args:
        first: the agent's plan.
        observation: observation of the R moments.
        may_ask: (R,) bool where a request is allowed.
        interest: scores the live order.
        reorder: False keeps the same order in all of them.
    """
    none = np.full_like(first.slots, NOT_SHOWN)
    other = may_ask & ~first.asks
    found = [
        first,
        first._replace(asks=other),
        first._replace(slots=none),
        first._replace(slots=none, asks=other),
    ]
    if reorder:
        live = interest.scores(observation).astype(np.float32)
        found += [first._replace(scores=live, live=True), first._replace(scores=live, live=True, asks=other)]
    return found


def features(
    planned: Sequence[Candidate],
    net: np.ndarray,
    gain: np.ndarray,
    observation: Observation,
    interest: LiveInterest,
) -> np.ndarray:
    """Features :data:`FEATURES` of plans, (R, P, 9) float64.

    Args:
        planned: P plans of R moments.
        net: (R, M, T) gain of each card at each slot, net of its price and of what it displaces.
        gain: (R,) gain of a request, net of its price.
        observation: observation of the moments.
        interest: estimates how much is known of the current interest.
    """
    age = observation["context"][:, PAGE_AGE].astype(np.float64)
    length = np.linalg.norm(interest.interest(observation), axis=1)
    evidence = length / (1 + length)
    told = []
    for plan in planned:
        asks, cards = plan.asks.astype(np.float64), (plan.slots >= 0).any(1).astype(np.float64)
        at = np.take_along_axis(net, np.maximum(plan.slots, 0)[..., None], 2)[..., 0]
        worth = np.where(plan.slots >= 0, at, 0.0).sum(1)
        live = np.full(len(age), float(plan.live))
        parts = (
            asks,
            asks * gain,
            asks * age,
            cards,
            worth,
            cards * age,
            live,
            live * evidence,
            asks * cards,
        )
        told.append(np.stack(parts, 1))
    return np.stack(told, 1)


@dataclass(frozen=True, eq=False)
class PlanValues:
    """Value of plans learned from rollouts, linear in their features (F), and its uncertainty.

    Attributes:
        weights: (F,) reward per unit.
        spread: (F, F) such that the standard error of `x @ weights` is the length of `spread @ x`.
    """

    weights: np.ndarray
    spread: np.ndarray

    def best(self, told: np.ndarray) -> np.ndarray:
        """Best plan (R,) by features (R, P, F); the first one where none is surely better."""
        more = told - told[:, :1]
        surely = more @ self.weights - SURE * np.linalg.norm(more @ self.spread.T, axis=2)
        return np.where(surely.max(1) > 0, surely.argmax(1), 0)


def fit(told: np.ndarray, worth: np.ndarray, penalty: float) -> PlanValues:
    """Ridge regression of the value of plans on their features, with standard errors clustered by session.

    Args:
        told: (R, P, F) features of the P plans of R moments; the first plan is the agent's own.
        worth: (R, P) reward that followed.
        penalty: of the weights, in plans whose features have unit variance.
    """
    x, y = told[:, 1:] - told[:, :1], worth[:, 1:] - worth[:, :1]  # equal plans carry no information
    scale = np.sqrt(np.mean(x**2, axis=(0, 1))) + LEAST_SCALE
    z = x / scale
    inverse = np.linalg.inv(np.einsum("rpf,rpg->fg", z, z) + penalty * np.eye(z.shape[2]))
    weights = inverse @ np.einsum("rpf,rp->f", z, y)
    of_moment = np.einsum("rpf,rp->rf", z, y - z @ weights)  # copies of a session share random numbers
    spread = np.linalg.cholesky(
        inverse @ (of_moment.T @ of_moment) @ inverse + LEAST_SCALE**2 * np.eye(len(scale))
    )
    return PlanValues(weights / scale, spread.T / scale)


class Branch:
    """Lets copy c of each session take candidate c at one plan, and the agent's own plan elsewhere.

    Args:
        at: (B,) int64 index of that plan, from 0.
    """

    def __init__(self, at: np.ndarray) -> None:
        self.at, self.copy = at, np.arange(len(at)) % N_CANDIDATES
        self.count = np.zeros(len(at), np.int64)
        self.slot = np.full(len(at), -1)
        self.told = np.zeros((len(at), N_CANDIDATES, len(FEATURES)))

    def __call__(self, rows: np.ndarray, told: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Choose plans for the rows (R,) that plan now, at `slots` (R,)."""
        now = self.count[rows] == self.at[rows]
        self.count[rows] += 1
        self.told[rows[now]] = told[now, :1]  # copies without a candidate play the agent's own plan
        self.told[rows[now], : told.shape[1]] = told[now]
        self.slot[rows[now]] = slots[now]
        return np.where(now & (self.copy[rows] < told.shape[1]), self.copy[rows], 0)
