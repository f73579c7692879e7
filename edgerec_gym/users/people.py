"""People who hold phones: the users of a scenario, asked one at a time.

In an environment the users answer a whole batch. Phones move each at its own pace, so here one of them is
asked while the others wait.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgerec_gym.answers import CONTEXT_SIZE, PAGE_SUMMARY, Focus, check_start, response_size, wrong_answer
from edgerec_gym.compiled.arrays import read_only
from edgerec_gym.compiled.random_stream import SPLITS, episode_key
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError, closest
from edgerec_gym.scenario import Scenario
from edgerec_gym.users import make_users

SIGNED = 2**63  # from which on a key is negative as a signed number


class Person(NamedTuple):
    """Who uses a phone in a session.

    Attributes:
        session: key of the session, signed.
        user: number of the user.
        features: (U,) float32, what the cloud ships about the user.
        hour: 0..23.
    """

    session: int
    user: int
    features: np.ndarray
    hour: int


def user_table(scenario: Scenario, kind: str) -> np.ndarray:
    """Return what the cloud ships about every user of a scenario, (V, U) float32.

    Args:
        scenario: the scenario.
        kind: "synthetic" or "learned": whose numbers count.
    """
    table: np.ndarray = make_users(kind, scenario, scenario.config).shipped  # type: ignore[attr-defined]
    return table


class People:
    """Users of a scenario, each in a session of its own.

    Args:
        scenario: where they come from.
        kind: "synthetic" or "learned".
        count: number of sessions at the same time.
        split: "log", "train" or "eval"; the same seeds give the same sessions as in an environment.
    """

    def __init__(self, scenario: Scenario, kind: str, count: int = 1, split: str = "eval") -> None:
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}{closest(split, SPLITS, 'splits are')}")
        self.config: FeedConfig = scenario.config
        self.users = make_users(kind, scenario, scenario.config)
        self.split, self.count = SPLITS.index(split), count
        self.users.allocate(count, scenario.config, Workers(count, 1))
        config = scenario.config
        width, window = config.n_item_features + config.n_types, max(5, config.lookahead + 3)
        self._own = Focus(
            active=np.zeros(count, np.bool_),
            cards=np.zeros((count, window, width), np.float32),
            items=np.full((count, window), -1, np.int32),
            context=np.zeros((count, CONTEXT_SIZE), np.float32),
            keys=np.zeros(count, np.uint64),
            pages=np.zeros((count, window, len(PAGE_SUMMARY)), np.float32),
        )
        self._focus = Focus(*map(read_only, self._own))
        self._response = np.zeros((count, response_size(config)), np.float32)

    def begin(self, row: int, seed: int, episode: int = 0) -> Person:
        """Begin the session that an environment plays with this seed.

        Args:
            row: which of the sessions.
            seed: seed of the environment's reset.
            episode: episodes since that reset.
        """
        key = np.uint64(episode_key(self.split, np.int64(seed), np.int64(episode)))
        rows = np.array([row], np.int64)
        start = check_start(
            self.users.reset(rows, np.array([key]), self.split), 1, self.config.n_user_features
        )
        self._own.keys[row] = key
        number = int(self.users.numbers[row])  # type: ignore[attr-defined]
        signed = int(key) - 2 * SIGNED if int(key) >= SIGNED else int(key)
        return Person(signed, number, start.features[0].astype(np.float32), int(start.hour[0]))

    def answer(self, row: int, focus: Focus) -> np.ndarray:
        """Return the answer to the card in focus, (21 + R,) float32, a copy.

        Args:
            row: who is asked.
            focus: what is seen, a batch of one.
        """
        own = self._own
        for mine, seen in zip(own[1:], focus[1:], strict=True):
            mine[row] = seen[0]
        own.active[row] = True
        try:
            self._response[row] = 0.0
            self.users.respond(self._focus, self._response)
        finally:
            own.active[row] = False
        answer = self._response[row].copy()
        if not ((answer >= 0) & (answer <= 1)).all():
            raise wrong_answer(answer, row)
        return answer
