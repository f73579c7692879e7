"""Values of cards at the slots ahead, in the form that plans are made from; true values for oracles."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from edgerec_gym.answers import FOCUSED, WINDOW
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Observation
from edgerec_gym.spaces import CONTEXT
from edgerec_gym.state import NO_ITEM
from edgerec_gym.users.synthetic import SyntheticUsers

SLOT, PAGE_AGE, IN_FLIGHT, ARRIVAL = (
    CONTEXT.index(name) for name in ("slot", "page_age", "in_flight", "arrival")
)


class SlotValues(NamedTuple):
    """Expected reward of B sessions in the T slots ahead, given that the slot is seen.

    Attributes:
        cards: (B, M, T) float64 for each card at each slot; 0 where there is no card.
        goods: (B, T) float64 for the goods that would be shown there without cards.
        exposure: (B, T) float64 probability that the slot is seen; 0 for slots that will not be filled from
            this page.
    """

    cards: np.ndarray
    goods: np.ndarray
    exposure: np.ndarray


class ValueModel(Protocol):
    """Predicts what cards are worth."""

    name: str

    def values(self, observation: Observation, order: np.ndarray, n_slots: int) -> SlotValues:
        """Value every card at the next `n_slots` slots, with the pool shown in `order` (B, N) int64."""


def slots_left(observation: Observation, config: FeedConfig) -> np.ndarray:
    """Slots (B,) int64 that the current page will fill before another arrives or the session ends.

    Counts the automatic page only; a page request makes it fewer.
    """
    context = observation["context"]
    age = np.rint(context[:, PAGE_AGE] * config.page_size)
    on_the_wire = np.rint(context[:, ARRIVAL] * config.request_latency)
    until_page = np.where(context[:, IN_FLIGHT] > 0, on_the_wire, config.page_size - age)
    slot = np.rint(context[:, SLOT] * config.max_slots)
    return np.clip(np.minimum(until_page, config.max_slots - slot), 0, None).astype(np.int64)


def cloud_order(observation: Observation) -> np.ndarray:
    """Pool rows in the order of the cloud's ranking, used-up ones last; (B, N) int64."""
    return np.argsort(~(observation["pool"] != 0).any(axis=2), axis=1, kind="stable")


def pool_order(observation: Observation, scores: np.ndarray) -> np.ndarray:
    """Pool rows by scores (R, N), used-up ones last, ties in the cloud's order; (R, N) int64."""
    present = (observation["pool"] != 0).any(axis=2)
    return np.argsort(np.where(present, -scores, np.inf), axis=1, kind="stable")


def goods_in_order(pool: np.ndarray, order: np.ndarray, count: int, n_types: int) -> np.ndarray:
    """Goods cards (B, count, F + T) of pool rows (B, N, F) in `order` (B, N) int64; zero beyond the pool."""
    listed = np.take_along_axis(pool, order[:, :count, None], axis=1)
    goods = np.zeros((len(pool), count, pool.shape[2] + n_types), np.float32)
    goods[:, : listed.shape[1], : pool.shape[2]] = listed
    goods[:, : listed.shape[1], pool.shape[2]] = listed.any(2)
    return goods


def displaced(values: SlotValues) -> np.ndarray:
    """Expected reward (B, T) that is lost by pushing down the goods from each slot on.

    Each item moves to a slot that is less likely to be seen, and the last one no longer fits on the page.
    """
    exposure = values.exposure
    following = np.concatenate([exposure[:, 1:], np.zeros_like(exposure[:, :1])], axis=1)
    lost = (exposure - following) * values.goods
    return lost[:, ::-1].cumsum(axis=1)[:, ::-1]


class TrueValues:
    """Values read from the ground truth, which only oracles may use.

    They are those of the user's current state as long as the intent lasts. For the probability that it has
    jumped by the time of a slot, they are the mean over the cards or goods.
    """

    name = "oracle"

    def __init__(self) -> None:
        self._env: Any = None

    def bind(self, env: Any) -> None:
        """Bind to the environment whose latent state is read; InputError unless its users are synthetic."""
        users = env.unwrapped.users
        if not isinstance(users, SyntheticUsers):
            raise InputError("the oracle needs users='synthetic': learned users have no ground truth to read")
        self._env, self._users = env.unwrapped, users

    def values(self, observation: Observation, order: np.ndarray, n_slots: int) -> SlotValues:
        """Read; see :class:`ValueModel`. The observation must cover all rows of the environment."""
        if self._env is None:
            raise InputError("bind the oracle to an environment first: policy.bind(env)")
        feed, config = self._env.batch.arrays, self._env.config
        needed = n_slots + WINDOW - 1 - FOCUSED
        listed = np.full((len(order), needed), NO_ITEM, np.int32)
        rows = order[:, :needed]
        listed[:, : rows.shape[1]] = np.take_along_axis(feed.pool_items, rows, axis=1)
        probabilities, leave = self._users.true_place_values(feed, listed)
        is_card = np.arange(probabilities.shape[1])[:, None] < probabilities.shape[1] - 1
        values = config.reward.value(probabilities[..., 0], probabilities[..., 1], card=is_card)
        lasts = (1 - self._users.config.intent_switch) ** np.arange(n_slots)
        cards, goods = values[:, :-1], values[:, -1]
        there = cards > 0
        mean = cards.sum(1, keepdims=True) / np.maximum(there.sum(1, keepdims=True), 1)
        cards = np.where(there, lasts * cards + (1 - lasts) * mean, 0.0)
        goods = lasts * goods + (1 - lasts) * goods.mean(1, keepdims=True)
        ahead = np.arange(n_slots) + config.lookahead
        exposure = (1 - leave[:, None]) ** ahead * (feed.slot[:, None] + ahead < config.max_slots)
        exposure *= np.arange(n_slots) < slots_left(observation, config)[:, None]
        return SlotValues(cards, goods, exposure)
