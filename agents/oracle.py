"""The reference policy of each track: it alone may read the latent state of the ground truth.

It is myopic, so a policy that plans ahead may beat it. `bind(env)` accepts only synthetic users.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerec_gym.agents.insertion.policies import InsertionPlan, InsertionState, greedy_plan, policy_of
from edgerec_gym.agents.insertion.values import TrueValues
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Explanation, Observation, Policy
from edgerec_gym.registration import SLATE
from edgerec_gym.users.synthetic import SyntheticUsers
from edgerec_gym.vector_env import EdgeFeedVectorEnv

INSERTION_HORIZON = 20  # slots ahead that plans consider


class OraclePolicy:
    """Greedy by true value in the decisions that the track leaves to the policy.

    - Order: the pool row with the highest true value (click and purchase probability x reward weights).
    - Insertion: in EdgeFeedMix-v0, exact plans over true values, renewed at every slot, with a price of
      `margin` per card. Elsewhere, the best legal card if it is worth `margin` more than the row it
      displaces (under the rules a card now costs a card later, hence the margin).
    - Request: when the device's evidence matches the true intent better than the evidence behind the current
      page does, by `knowledge_gain` (difference of two cosines, shrunk where there is little evidence).

    Args:
        margin: least gain of an inserted card, in reward units.
        knowledge_gain: least gain in match that justifies a request, in 0..2.
    """

    name = "oracle"

    def __init__(self, margin: float = 0.05, knowledge_gain: float = 0.2) -> None:
        self.margin, self.knowledge_gain = margin, knowledge_gain
        self._env: EdgeFeedVectorEnv | None = None
        self._inserter: Policy | None = None
        self._last = np.zeros((0, 0))  # true values (B, N + M) of the last call

    def bind(self, env: EdgeFeedVectorEnv) -> None:
        """Set the environment whose latent state is read; raise InputError unless its users are synthetic."""
        users = env.unwrapped.users
        if not isinstance(users, SyntheticUsers):
            raise InputError("the oracle needs users='synthetic': learned users have no ground truth to read")
        self._env, self._users = env.unwrapped, users
        if self._env.track == "mix":
            values, config = TrueValues(), self._env.config
            values.bind(env)
            plan = InsertionPlan(self.name, values, config, price=self.margin, horizon=INSERTION_HORIZON)
            self._inserter = policy_of(plan, "mix", every=1)

    def reset(self, mask: np.ndarray) -> None:
        """Forget the plans of the rows where `mask` (B,) is True."""
        if self._inserter is not None:
            self._inserter.reset(mask)

    def act(self, observation: Observation) -> Any:
        """Return (B,) int64; in EdgeFeedSlate-v0, a plan by the same rules and the current values."""
        if self._env is None:
            raise InputError("bind the oracle to an environment first: policy.bind(env)")
        track, n_pool = self._env.track, self._env.config.pool_size
        if track == "mix":
            assert self._inserter is not None
            return self._inserter.act(observation)
        mask = observation["action_mask"] != 0
        value = self._last = self._values()
        pool, cards = value[:, :n_pool], value[:, n_pool:]
        rows = np.arange(len(value))
        place = pool.argmax(axis=1) if track in ("joint", "rerank") else (pool >= 0).argmax(axis=1)
        if track == "rerank":
            return place
        wants = self._wants_page()
        if track == SLATE:
            feed = self._env.batch.arrays
            state = InsertionState(feed.slot, feed.type_count[:, 1:], feed.type_last[:, 1:])
            return greedy_plan(self._env.config, state, pool, cards, wants & mask[:, -1], self.margin)
        if track == "request":
            return (wants & mask[:, 1]).astype(np.int64)
        legal = np.where(mask[:, n_pool : n_pool + cards.shape[1]], cards, -np.inf)
        best = legal.argmax(axis=1)
        insert = legal[rows, best] > pool[rows, place] + self.margin
        action = np.where(insert, n_pool + best, place)
        return np.where(wants & mask[:, -1], mask.shape[1] - 1, action)

    def explain(self, row: int) -> Explanation:
        """Return the true values that the last call compared in one row."""
        if self._inserter is not None:
            return self._inserter.explain(row)  # type: ignore[attr-defined]
        assert self._env is not None
        pool, cards = np.split(self._last[row], [self._env.config.pool_size])
        if self._env.track in ("rerank", "request"):
            return Explanation(scores=pool)
        return Explanation(scores=pool, matrix=np.where(cards < 0, -np.inf, cards)[:, None])

    def _values(self) -> np.ndarray:
        """Return every candidate's true value at the next slot, (B, N + M) in reward units; -1 if empty."""
        assert self._env is not None
        env, reward = self._env, self._env.config.reward
        n_pool = env.config.pool_size
        probabilities = self._users.true_values(env.batch.arrays)
        is_card = np.arange(probabilities.shape[1]) >= n_pool
        value = reward.value(probabilities[..., 0], probabilities[..., 1], card=is_card)
        return np.where(probabilities[..., 0] > 0, value, -1.0)

    def _wants_page(self) -> np.ndarray:
        assert self._env is not None
        feed, intent = self._env.batch.arrays, self._users.arrays.intent_now

        def match(evidence: np.ndarray) -> np.ndarray:
            return (evidence * intent).sum(axis=1) / (1 + np.linalg.norm(evidence, axis=1))

        gain = match(feed.interest) - match(feed.wire_interest)
        return (gain > self.knowledge_gain) & (feed.wire == 0) & (feed.page_age > 1)
