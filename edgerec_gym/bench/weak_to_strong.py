"""Policies from weak to strong, to see whether learned users order them as the ground truth does."""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.baselines import DeviceGreedy, FixedInterval, FixedSlot, Greedy, Keep, Random
from edgerec_gym.config import FeedConfig
from edgerec_gym.policy import Observation, Policy
from edgerec_gym.spaces import TRACKS


class Reversed:
    """Always plays the last candidate of the cloud's order, with no cards and no requests."""

    name = "reversed"

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: there is no state."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64."""
        n_pool = observation["pool"].shape[1]
        return n_pool - 1 - observation["action_mask"][:, n_pool - 1 :: -1].argmax(axis=1)


class Both:
    """Takes cards and requests from one policy, and otherwise the row that another chooses.

    Args:
        order: policy that chooses the row.
        other: policy that inserts cards or requests pages at some moments, and keeps otherwise.
    """

    def __init__(self, order: Policy, other: Policy) -> None:
        self.order, self.other = order, other
        self.name = f"{order.name} + {other.name.removeprefix('fixed-')}"

    def reset(self, mask: np.ndarray) -> None:
        """Restart the rows where `mask` (B,) is True."""
        self.order.reset(mask)
        self.other.reset(mask)

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64."""
        row, wanted = self.order.act(observation), self.other.act(observation)
        return np.where(wanted >= observation["pool"].shape[1], wanted, row)


def weak_to_strong(config: FeedConfig, seed: int = 0) -> list[Policy]:
    """Return policies of EdgeFeed-v0 from weak to strong, with distinct names.

    Args:
        config: the feed; intervals between requests are fractions of its page size.
        seed: seed of the random policy.
    """

    def order(strength: float) -> Policy:
        return _named(
            DeviceGreedy(strength=strength, item_columns=config.item_columns),
            f"device-greedy {strength:g}",
        )

    def slots(every: int) -> Policy:
        return _named(FixedSlot(TRACKS[0], every), f"fixed-slot {every}")

    def interval(share: float) -> Policy:
        every = max(1, round(share * config.page_size))
        return _named(FixedInterval(every), f"fixed-interval {every}")

    return [
        Keep(),
        Reversed(),
        Random(seed),
        order(-4.0),
        Greedy(config.item_columns),
        order(1.0),
        order(4.0),
        order(12.0),
        slots(3),
        slots(10),
        interval(0.2),
        interval(0.6),
        Both(order(4.0), slots(5)),
        Both(Reversed(), slots(3)),
        Both(order(4.0), interval(0.6)),
    ]


def _named(policy: Policy, name: str) -> Policy:
    policy.name = name
    return policy
