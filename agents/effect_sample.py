"""True effects of requests at moments drawn from whole sessions, beside what a device sees at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgerec_gym.agents.request_effects import HORIZONS, Effects, Futures
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Observation
from edgerec_gym.random_stream import CLI_SEED_STRIDE
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario

NUM_ENVS = 1024  # sessions played together


@dataclass(frozen=True)
class EffectSample:
    """R moments at which a request was legal, H horizons.

    Attributes:
        observation: what the device saw, every key (R, ...).
        session: (R,) int64.
        slot: (R,) int64.
        treated: (R,) bool, drawn with probability 1/2: whether `effects.drawn` is of a request now.
        effects: both futures.
        horizons: (H,) slots.
        intent_moved: (R,) float64, 1 - cosine of the intent now and when the page was first seen.
    """

    observation: Observation
    session: np.ndarray
    slot: np.ndarray
    treated: np.ndarray
    effects: Effects
    horizons: tuple[int, ...]
    intent_moved: np.ndarray

    def __len__(self) -> int:
        return len(self.session)

    def values(
        self, horizon: int, click: float, purchase: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Expected outcome kept (R,), requested (R,), and drawn (R,), in reward units."""
        h, weights = self.horizons.index(horizon), np.array([click, purchase])
        effects = self.effects
        return effects.kept[:, h] @ weights, effects.requested[:, h] @ weights, effects.drawn[:, h] @ weights


def true_effects(
    scenario: str | Scenario,
    sessions: int,
    *,
    seed: int = 0,
    split: str = "eval",
    share: float = 0.1,
    requests: float = 0.03,
    continuations: int = 8,
    horizons: Sequence[int] = HORIZONS,
) -> EffectSample:
    """Play sessions of synthetic users, and both futures at some of their moments.

    Args:
        scenario: with synthetic users.
        sessions: to play, at least 1.
        seed: of the sessions and of the moments.
        split: of the sessions' keys.
        share: probability that a moment is taken, in (0, 1].
        requests: probability of a request at each moment while the sessions are played, as in logs.
        continuations: of each moment, see :class:`~edgerec_gym.agents.request_effects.Futures`.
        horizons: slots to look ahead.

    Raises:
        InputError: numbers out of range, or no synthetic users.
    """
    if sessions < 1 or not 0 < share <= 1 or not 0 <= requests < 1:
        raise InputError(
            f"sessions = {sessions} must be at least 1, share = {share} in (0, 1] and requests = {requests} "
            "in [0, 1)"
        )
    parts: list[EffectSample] = []
    for first in range(0, sessions, NUM_ENVS):
        size = min(NUM_ENVS, sessions - first)
        env = make_feeds(
            "EdgeFeedRequest-v0", size, scenario=scenario, users="synthetic", split=split, copy=False
        )
        env.reset(seed=seed * CLI_SEED_STRIDE + first)
        rng = np.random.default_rng([seed, first])
        futures = Futures(env.batch, horizons, continuations)
        parts += _sample(futures, first, rng, share, requests)
        env.close()
    return _joined(parts)


def _sample(
    futures: Futures, first: int, rng: np.random.Generator, share: float, requests: float
) -> list[EffectSample]:
    batch, parts = futures.batch, []
    size = batch.num_envs
    done = np.zeros(size, np.bool_)
    while not done.all():
        observation = batch.observation(copy=False)
        legal = ~done & (observation["action_mask"][:, -1] > 0)
        taken, asks, coin = (rng.random(size) < p for p in (share, requests, 0.5))
        rows = np.flatnonzero(legal & taken)
        if len(rows):
            parts.append(
                EffectSample(
                    batch.observations_of(rows),
                    first + rows,
                    batch.arrays.slot[rows].astype(np.int64),
                    coin[rows],
                    futures.effects(rows, coin[rows]),
                    futures.horizons,
                    futures.users.intent_moved()[rows],
                )
            )
        batch.step((legal & asks).astype(np.int64), done)
        done |= batch.arrays.terminated | batch.arrays.truncated
    return parts


def _joined(parts: list[EffectSample]) -> EffectSample:
    if not parts:
        raise InputError("no moment was drawn: play more sessions or take a larger share")

    def joined(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays)

    effects = [vars(part.effects) for part in parts]
    keys = parts[0].observation
    return EffectSample(
        {key: joined([part.observation[key] for part in parts]) for key in keys},
        joined([part.session for part in parts]),
        joined([part.slot for part in parts]),
        joined([part.treated for part in parts]),
        Effects(**{name: joined([e[name] for e in effects]) for name in effects[0]}),
        parts[0].horizons,
        joined([part.intent_moved for part in parts]),
    )
