"""What cards would earn at the slots ahead: predicted by ESAN, or read from the ground truth."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from edgerec_gym.agents.base import Observation
from edgerec_gym.agents.esan import ESAN
from edgerec_gym.agents.perception import candidate_cards
from edgerec_gym.agents.reranker import PLAY_BATCH, to_tensors, torch_threads
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.spaces import CONTEXT
from edgerec_gym.state import NO_ITEM
from edgerec_gym.users.base import FOCUSED, WINDOW
from edgerec_gym.users.synthetic import SyntheticUsers

SLOT, PAGE_AGE, IN_FLIGHT, ARRIVAL = (
    CONTEXT.index(name) for name in ("slot", "page_age", "in_flight", "arrival")
)


class SlotValues(NamedTuple):
    """Expected reward of B sessions in the T slots ahead, given that the slot is seen.

    Attributes:
        cards: (B, M, T) float64 of each card at each slot; 0 where there is no card.
        goods: (B, T) float64 of the goods that would stand there without cards.
        exposure: (B, T) float64 probability that the slot is seen; 0 for slots that will not be filled from
            this page.
    """

    cards: np.ndarray
    goods: np.ndarray
    exposure: np.ndarray


class ValueModel(Protocol):
    """Tells what cards are worth."""

    name: str

    def values(self, observation: Observation, order: np.ndarray, n_slots: int) -> SlotValues:
        """Value every card at the next `n_slots` slots, the pool being shown in `order` (B, N) int64."""


def slots_left(observation: Observation, config: FeedConfig) -> np.ndarray:
    """Slots (B,) int64 that will be filled from the present page, before another arrives or the session ends.

    With the automatic page only; a request makes it fewer.
    """
    context = observation["context"]
    age = np.rint(context[:, PAGE_AGE] * config.page_size)
    on_the_wire = np.rint(context[:, ARRIVAL] * config.request_latency)
    until_page = np.where(context[:, IN_FLIGHT] > 0, on_the_wire, config.page_size - age)
    slot = np.rint(context[:, SLOT] * config.max_slots)
    return np.clip(np.minimum(until_page, config.max_slots - slot), 0, None).astype(np.int64)


def cloud_order(observation: Observation) -> np.ndarray:
    """Pool rows as the cloud ranked them, those used up last; (B, N) int64."""
    return np.argsort(~(observation["pool"] != 0).any(axis=2), axis=1, kind="stable")


def displaced(values: SlotValues) -> np.ndarray:
    """Expected reward (B, T) that is lost by pushing down the goods from each slot on.

    Each good moves to a slot that is less probable to be seen, and the last one does not fit on the page.
    """
    exposure = values.exposure
    following = np.concatenate([exposure[:, 1:], np.zeros_like(exposure[:, :1])], axis=1)
    lost = (exposure - following) * values.goods
    return lost[:, ::-1].cumsum(axis=1)[:, ::-1]


class NetworkValues:
    """Values that ESAN predicts.

    Args:
        network: ESAN.
        threads: torch threads while it predicts.
    """

    name = "esan"

    def __init__(self, network: ESAN, threads: int = 1) -> None:
        self.network, self.threads = network.eval(), threads

    def values(self, observation: Observation, order: np.ndarray, n_slots: int) -> SlotValues:
        """Predict; see :class:`ValueModel`."""
        with torch_threads(self.threads), torch.inference_mode():
            parts = [
                predict_values(
                    self.network,
                    {key: value[at : at + PLAY_BATCH] for key, value in observation.items()},
                    order[at : at + PLAY_BATCH],
                    n_slots,
                )
                for at in range(0, len(order), PLAY_BATCH)
            ]
        cards, goods, exposure = (torch.cat(part).double().numpy() for part in zip(*parts, strict=True))
        left = slots_left(observation, self.network.config)
        return SlotValues(cards, goods, exposure * (np.arange(n_slots) < left[:, None]))


def predict_values(
    network: ESAN, observation: Observation, order: np.ndarray, n_slots: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values of cards (B, M, T) and goods (B, T), and exposure (B, T), with gradients if they are enabled."""
    needed = n_slots + network.below
    listed = np.take_along_axis(observation["pool"], order[:, :needed, None], axis=1)
    goods = candidate_cards(torch.from_numpy(listed), network.config.n_types)
    goods = torch.nn.functional.pad(goods, (0, 0, 0, needed - goods.shape[1]))
    cards = torch.from_numpy(np.ascontiguousarray(observation["cards"], np.float32))
    found = network.predict(to_tensors(observation) | {"cards": cards}, goods, n_slots)
    return network.values(found.cards, True), network.values(found.goods, False), found.exposure


class TrueValues:
    """Values in the user's present state, read from the ground truth, which nothing else may."""

    name = "oracle"

    def __init__(self) -> None:
        self._env: Any = None

    def bind(self, env: Any) -> None:
        """Take the environment whose latent state is read; InputError unless its users are synthetic."""
        users = env.unwrapped.users
        if not isinstance(users, SyntheticUsers):
            raise InputError("the oracle needs users='synthetic': learned users have no ground truth to read")
        self._env, self._users = env.unwrapped, users

    def values(self, observation: Observation, order: np.ndarray, n_slots: int) -> SlotValues:
        """Read; see :class:`ValueModel`. The observation must be of the bound environment, all rows."""
        if self._env is None:
            raise InputError("bind the oracle to an environment first: policy.bind(env)")
        feed, config = self._env.batch.arrays, self._env.config
        needed = n_slots + WINDOW - 1 - FOCUSED
        listed = np.full((len(order), needed), NO_ITEM, np.int32)
        rows = order[:, :needed]
        listed[:, : rows.shape[1]] = np.take_along_axis(feed.pool_items, rows, axis=1)
        probabilities, leave = self._users.true_place_values(feed, listed)
        reward = config.reward
        values = reward.click * probabilities[..., 0] + reward.purchase * probabilities[..., 1]
        values[:, :-1] += reward.insert_click * probabilities[:, :-1, :, 0]
        ahead = np.arange(n_slots) + config.lookahead
        exposure = (1 - leave[:, None]) ** ahead * (
            np.arange(n_slots) < slots_left(observation, config)[:, None]
        )
        exposure *= feed.slot[:, None] + ahead < config.max_slots
        return SlotValues(values[:, :-1], values[:, -1], exposure)
