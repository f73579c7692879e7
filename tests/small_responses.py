"""Users who give named responses by a rule, shared by the tests of environments, logs and agents."""

from __future__ import annotations

import numpy as np

from edgerec_gym.answers import CLICK, LEAVE, PAGE_VIEW, RESPONSE_SIZE, SLOT, Focus, UserStart
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.config import FeedConfig


class Responding:
    """Users who give every response to every third card, click every fourth and leave after 20."""

    name, uncertainty = "responding", None

    def allocate(self, num_envs: int, config: FeedConfig, workers: Workers) -> None:
        self.n_user, self.size = config.n_user_features, RESPONSE_SIZE + config.n_responses

    def reset(self, rows: np.ndarray, keys: np.ndarray, split: int) -> UserStart:
        return UserStart(np.zeros((len(rows), self.n_user), np.float32), np.zeros(len(rows), np.int32))

    def respond(self, focus: Focus, response: np.ndarray) -> None:
        assert response.shape[1] == self.size
        slot = focus.context[:, SLOT]
        response[focus.active & (slot % 3 == 0), RESPONSE_SIZE:] = 1.0
        clicked = focus.active & (slot % 4 == 1)
        response[clicked, CLICK] = response[clicked, PAGE_VIEW] = 1.0
        response[focus.active & (slot >= 20), LEAVE] = 1.0
