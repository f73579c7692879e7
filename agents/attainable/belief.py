"""Beliefs about a batch of sessions, updated from observations, and the values of decisions under them."""

from __future__ import annotations

import numpy as np

from edgerec_gym.agents.attainable.arrays import allocate
from edgerec_gym.agents.attainable.kernels import CONSIDER, EXPECT, INTEREST, PLACE, REQUEST, run
from edgerec_gym.agents.attainable.knowledge import gather
from edgerec_gym.agents.insertion.values import SlotValues, slots_left
from edgerec_gym.cloud.wire import make_cloud
from edgerec_gym.compiled.arrays import AddressTable
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Observation
from edgerec_gym.spaces import CONTEXT
from edgerec_gym.users.synthetic import SyntheticUsers
from edgerec_gym.vector_env import EdgeFeedVectorEnv

SLOT = CONTEXT.index("slot")
LEAST_HYPOTHESES = 16
_NO_CHOICE, _NONE = np.zeros((1, 1), np.int64), np.zeros((1, 1))


class Beliefs:
    """What is known of B sessions from their observations, under the ground truth's equations.

    Args:
        env: tells configuration and distributions; no state of its sessions is read.
        exact: whether the items' true factors and traits are known.
        particles: P, number of intents that a belief keeps.
        seed: seed of the random stream.

    Raises:
        InputError: the users are not synthetic.

    Attributes:
        arrays: the beliefs (:class:`~edgerec_gym.agents.attainable.arrays.Belief`).
    """

    name = "attainable"

    def __init__(self, env: EdgeFeedVectorEnv, exact: bool, particles: int, seed: int) -> None:
        feed = env.unwrapped
        if not isinstance(feed.users, SyntheticUsers):
            raise InputError(
                "the attainable ceiling needs users='synthetic': nobody knows the equations of learned users"
            )
        self.config = feed.config
        know = gather(feed.users, make_cloud(feed.scenario.catalog, feed.config), feed.config, exact)
        hypotheses = max(LEAST_HYPOTHESES, particles // 4)
        self.arrays = allocate(know, feed.config, feed.num_envs, particles, hypotheses, seed)
        self._table = AddressTable(self.arrays)
        self._run(EXPECT)

    def reset(self, mask: np.ndarray) -> None:
        """Forget the sessions where `mask` (B,) is True."""
        self.arrays.slot[mask] = -1

    def follow(self, observation: Observation) -> None:
        """Learn from what is new in the observation, and value the candidates at the next slot."""
        for name, seen in self.arrays.seen._asdict().items():
            if seen.size:
                np.copyto(seen, observation[name])
        self._run(CONSIDER)

    def values(self, observation: Observation, order: np.ndarray, n_slots: int) -> SlotValues:
        """Value cards at the slots ahead (:class:`~edgerec_gym.agents.insertion.values.ValueModel`).

        The observation must be the one that was followed last, with all its sessions.
        """
        if len(order) != len(self.arrays.slot):
            raise InputError(
                f"{len(order)} sessions were given, of {len(self.arrays.slot)} that are followed"
            )
        config, rows = self.config, len(order)
        cards = np.zeros((rows, config.n_cards, n_slots))
        goods, leave = np.zeros((rows, n_slots)), np.zeros(rows)
        self._run(PLACE, order, cards, goods, leave)
        ahead = np.arange(n_slots) + config.lookahead
        slot = np.rint(observation["context"][:, SLOT] * config.max_slots)
        exposure = (1 - leave[:, None]) ** ahead * (slot[:, None] + ahead < config.max_slots)
        exposure *= np.arange(n_slots) < slots_left(observation, config)[:, None]
        return SlotValues(cards, goods, exposure)

    def request_gains(self, legal: np.ndarray, in_order: bool) -> np.ndarray:
        """Return what a request now is expected to gain before its cost, (B,) float64; 0 if not `legal`.

        Args:
            legal: (B,) bool.
            in_order: whether pages are shown in the cloud's order, not best first.
        """
        gains = np.zeros(len(legal))
        self._run(REQUEST, np.where(legal, 2 if in_order else 1, 0)[:, None], number=gains)
        return gains

    def interests(self, chosen: np.ndarray) -> np.ndarray:
        """Return each particle's interest in one candidate per session, were it answered now.

        Interest is the click logit above the users' click bias, without what is uncertain about the item.

        Args:
            chosen: (B,) candidates, pool rows then cards.

        Returns:
            (B, P + K) float64.
        """
        found = np.zeros(self.arrays.weight.shape)
        self._run(INTEREST, np.asarray(chosen)[:, None], goods=found)
        return found

    def _run(
        self,
        task: int,
        choice: np.ndarray = _NO_CHOICE,
        cards: np.ndarray = _NONE[:, :, None],
        goods: np.ndarray = _NONE,
        number: np.ndarray = _NONE[0],
    ) -> None:
        run(self._table.address, task, np.ascontiguousarray(choice, np.int64), cards, goods, number)
