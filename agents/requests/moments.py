"""A policy that acts at a few moments of a session only, as in a log with few random decisions."""

from __future__ import annotations

import numpy as np

from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.logs.logging_policy import moment_age
from edgerec_gym.policy import Observation, Policy
from edgerec_gym.spaces import CONTEXT

SLOT, PAGE_AGE = CONTEXT.index("slot"), CONTEXT.index("page_age")


class AtMoments:
    """Follow a policy when half a page has been shown and a request is legal; otherwise keep.

    The value of this policy is what `edgerec off-policy --at-moments` estimates on a log of few moments.

    Args:
        policy: plays EdgeFeedRequest-v0; one with `stateless` is called at the moments only.
        config: the feed.
        moments: maximum number of moments in a session; None = no limit.

    Raises:
        InputError: moments below 1.
    """

    def __init__(self, policy: Policy, config: FeedConfig, moments: int | None = None) -> None:
        if moments is not None and moments < 1:
            raise InputError(f"moments = {moments} must be at least 1")
        self.name, self.policy, self.config, self.moments = policy.name, policy, config, moments
        self._used = np.zeros(0, np.int64)
        self._slot = np.zeros(0)

    def reset(self, mask: np.ndarray) -> None:
        """Restart the rows where `mask` (B,) is True."""
        if len(self._used) != len(mask):
            self._used, self._slot = np.zeros(len(mask), np.int64), np.zeros(len(mask))
        self._used[mask] = 0
        self._slot[mask] = -1
        self.policy.reset(mask)

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64: 1 = request a page."""
        mask, context = observation["action_mask"], observation["context"]
        age = np.rint(context[:, PAGE_AGE].astype(np.float64) * self.config.page_size)
        at = (mask[:, -1] > 0) & (age == moment_age(self.config)) & (context[:, SLOT] != self._slot)
        if self.moments is not None:
            at &= self._used < self.moments
        self._slot = context[:, SLOT].copy()
        self._used += at
        if not getattr(self.policy, "stateless", False):
            return np.where(at, self.policy.act(observation), 0)
        rows = np.flatnonzero(at)
        action = np.zeros(len(at), np.int64)
        if len(rows):
            action[rows] = self.policy.act({key: values[rows] for key, values in observation.items()})
        return action
