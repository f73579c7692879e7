"""The attainable ceiling: what a policy can earn that knows everything but the user and the items at hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerec_gym.agents.attainable.belief import Beliefs
from edgerec_gym.agents.insertion.policies import InsertionPlan, InsertionState, greedy_plan, policy_of
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Explanation, Observation, Policy
from edgerec_gym.registration import SLATE
from edgerec_gym.spaces import CONTEXT
from edgerec_gym.vector_env import EdgeFeedVectorEnv

INSERTION_HORIZON = 20  # slots ahead that plans consider
NAMES = {"attainable": "shipped", "attainable, items known": "known"}  # policy -> how items are known
IN_FLIGHT, PAGE_AGE = CONTEXT.index("in_flight"), CONTEXT.index("page_age")


class AttainablePolicy:
    """Greedy by expected value, given all that the observations of a session tell about user and items.

    Where the :class:`~edgerec_gym.agents.oracle.OraclePolicy` reads the latent state, this policy infers it.
    It knows the equations and constants of the ground truth and how traits and tastes are distributed, and
    keeps a particle filter for every session. What the oracle earns more, nobody can earn.

    - Order: the pool row with the highest expected value.
    - Insertion: as the oracle, with expected values.
    - Request: when a page built now is expected to earn more than the current one, cost included.

    Args:
        items: "shipped": items are known by what the cloud ships of them; "known": exactly, as they would be
            from unlimited logs.
        particles: number of intents that a belief keeps; at least 2.
        margin: least gain of an inserted card, in reward units.
        request_margin: least gain of a request beyond its cost, in reward units; later may be better.
        exploration: worth of a standard deviation of a candidate's value over the possible intents: answers
            to uncertain candidates tell more about the intent.
        seed: seed of the random stream.

    Raises:
        InputError: a number or a name that is not allowed.
    """

    def __init__(
        self,
        items: str = "shipped",
        particles: int = 256,
        margin: float = 0.0,
        request_margin: float = 0.15,
        exploration: float = 0.25,
        seed: int = 0,
    ) -> None:
        names = {how: name for name, how in NAMES.items()}
        if items not in names:
            raise InputError(f"items = {items!r} cannot be; allowed: {', '.join(names)}")
        if particles != int(particles) or not 2 <= particles <= 100_000:
            raise InputError(f"particles = {particles!r} must be a whole number from 2 to 100000")
        self.name = names[items]
        self.items, self.particles, self.seed = items, int(particles), int(seed)
        self.margin, self.request_margin = margin, request_margin
        self.exploration = exploration
        self._beliefs: Beliefs | None = None
        self._inserter: Policy | None = None

    def bind(self, env: EdgeFeedVectorEnv) -> None:
        """Learn the equations from the environment; raise InputError unless its users are synthetic."""
        feed = env.unwrapped
        self.track, self.config = feed.track, feed.config
        self._beliefs = Beliefs(env, self.items == "known", self.particles, self.seed)
        if self.track == "mix":
            plan = InsertionPlan(
                self.name, self._beliefs, self.config, price=self.margin, horizon=INSERTION_HORIZON
            )
            plan.stateless = False  # the beliefs are those of all sessions, not of those that need a plan
            self._inserter = policy_of(plan, "mix", every=1)

    @property
    def beliefs(self) -> Beliefs:
        """The beliefs about the sessions; InputError before :meth:`bind`."""
        if self._beliefs is None:
            raise InputError("bind the policy to an environment first: policy.bind(env)")
        return self._beliefs

    def reset(self, mask: np.ndarray) -> None:
        """Forget the sessions where `mask` (B,) is True."""
        self.beliefs.reset(mask)
        if self._inserter is not None:
            self._inserter.reset(mask)

    def act(self, observation: Observation) -> Any:
        """Return (B,) int64; in EdgeFeedSlate-v0, a plan by the same rules and the current values."""
        beliefs, track, n_pool = self.beliefs, self.track, self.config.pool_size
        beliefs.follow(observation)
        if track == "mix":
            assert self._inserter is not None
            return self._inserter.act(observation)
        mask, b = observation["action_mask"] != 0, beliefs.arrays
        score = np.where(b.value < 0, -1.0, b.value + self.exploration * b.spread).astype(np.float64)
        pool, cards = score[:, :n_pool], score[:, n_pool:]
        place = pool.argmax(axis=1)
        if track == "rerank":
            return place
        wants = self._wants_page(observation, mask[:, -1])
        if track == "request":
            return wants.astype(np.int64)
        if track == SLATE:
            state = InsertionState.from_observation(observation, self.config)
            return greedy_plan(self.config, state, pool, cards, wants, self.margin)
        legal = np.where(mask[:, n_pool : n_pool + cards.shape[1]], cards, -np.inf)
        best, rows = legal.argmax(axis=1), np.arange(len(mask))
        insert = legal[rows, best] > pool[rows, place] + self.margin
        action = np.where(insert, n_pool + best, place)
        return np.where(wants, mask.shape[1] - 1, action)

    def explain(self, row: int) -> Explanation:
        """Return the expected values that the last call compared in one row."""
        if self._inserter is not None:
            return self._inserter.explain(row)  # type: ignore[attr-defined]
        pool, cards = np.split(self.beliefs.arrays.value[row], [self.config.pool_size])
        if self.track in ("rerank", "request"):
            return Explanation(scores=pool)
        return Explanation(scores=pool, matrix=np.where(cards < 0, -np.inf, cards)[:, None])

    def _wants_page(self, observation: Observation, legal: np.ndarray) -> np.ndarray:
        """Return (B,) bool, where a request is expected to pay."""
        context = observation["context"]
        age = np.rint(context[:, PAGE_AGE] * self.config.page_size)
        able = legal & (context[:, IN_FLIGHT] == 0) & (age > 1)
        gain = self.beliefs.request_gains(able, self.track == "request")
        return able & (gain + self.config.reward.cost(1.0) > self.request_margin)
