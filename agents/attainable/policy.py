"""The attainable ceiling: how much a policy can earn that knows everything but the user and the items."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerec_gym.agents.attainable.arrays import allocate
from edgerec_gym.agents.attainable.kernels import consider
from edgerec_gym.agents.attainable.knowledge import gather
from edgerec_gym.cloud.wire import make_cloud
from edgerec_gym.compiled.arrays import AddressTable
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Observation, best_legal
from edgerec_gym.users.synthetic import SyntheticUsers
from edgerec_gym.vector_env import EdgeFeedVectorEnv


class AttainablePolicy:
    name = "attainable"

    def __init__(self, items="shipped", particles=256, retention=0.0, seed=0) -> None:
        self.items, self.particles, self.retention, self.seed = items, particles, retention, seed
        self._belief = None

    def bind(self, env: EdgeFeedVectorEnv) -> None:
        feed = env.unwrapped
        if not isinstance(feed.users, SyntheticUsers):
            raise InputError("needs synthetic")
        self._env = feed
        know = gather(feed.users, make_cloud(feed.scenario.catalog, feed.config).items, feed.config, self.items == "known")
        self._belief = allocate(know, feed.config, feed.num_envs, self.particles, max(16, self.particles // 4), self.seed)
        self._table = AddressTable(self._belief)

    def reset(self, mask):
        self._belief.slot[mask] = -1

    def act(self, observation: Observation) -> Any:
        b = self._belief
        for name, to in b.seen._asdict().items():
            np.copyto(to, observation[name])
        consider(self._table.address, self.retention)
        n = b.seen.pool.shape[1]
        return best_legal(b.value[:, :n], observation["action_mask"])
