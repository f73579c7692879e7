"""True effects of requests, at a random sample of moments and at the moments that a policy chooses.

"The purchase rate after a chosen request is 3.6 times that of an average moment" compares different moments:
a policy that only finds users who buy anyway would look just as good. Here every chosen moment is played
twice, with its request and without. The difference is the effect of the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgerec_gym.agents.requests.effects import HORIZONS, Effects, Futures
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import play
from edgerec_gym.policy import Observation, Policy, bind
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from edgerec_gym.vector_env import EdgeFeedVectorEnv

NUM_ENVS = 1024  # sessions played together


@dataclass(frozen=True)
class EffectSample:
    """R moments at which a request was legal, with their true effects over H horizons.

    Attributes:
        observation: observation of the device, every key (R, ...).
        session: (R,) int64.
        slot: (R,) int64.
        treated: (R,) bool, drawn with probability 1/2: whether `effects.drawn` has a request now.
        effects: outcomes of both futures.
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
        """Return the outcomes (R,) in reward units: expected without a request, with one, and drawn."""
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
    """Play sessions of synthetic users, and both futures at a random sample of their moments.

    Args:
        scenario: a scenario with synthetic users.
        sessions: number of sessions, at least 1.
        seed: seed of the sessions and of the sampling.
        split: split of the sessions' keys.
        share: probability of sampling a moment, in (0, 1].
        requests: probability of a request at each moment of play, in [0, 1); the default is that of logs.
        continuations: number per moment, see :class:`~edgerec_gym.agents.requests.effects.Futures`.
        horizons: numbers of slots to look ahead.

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


CONTINUATIONS = 48


class AuditedPolicy:
    """A policy that also plays both futures of every moment at which it requests a page.

    Args:
        policy: a policy of EdgeFeedRequest-v0.
        continuations: number per moment.
        horizons: numbers of slots to look ahead.
    """

    def __init__(
        self, policy: Policy, continuations: int = CONTINUATIONS, horizons: tuple[int, ...] = HORIZONS
    ) -> None:
        self.policy, self.name = policy, policy.name
        self.continuations, self.horizons = continuations, horizons
        self.effects: list[Effects] = []
        self.slots: list[np.ndarray] = []
        self.ages: list[np.ndarray] = []
        self.moved: list[np.ndarray] = []

    def bind(self, env: EdgeFeedVectorEnv) -> None:
        """Bind to the environment whose sessions are copied for the futures."""
        bind(self.policy, env)
        self._batch = env.unwrapped.batch
        self._futures = Futures(self._batch, self.horizons, self.continuations, own_key=False)

    def reset(self, mask: np.ndarray) -> None:
        """Restart the policy."""
        self.policy.reset(mask)
        self._slot = np.full(len(mask), -1)

    def act(self, observation: Observation) -> np.ndarray:
        """Return the policy's actions."""
        actions, feed = self.policy.act(observation), self._batch.arrays
        mask = observation["action_mask"]
        asks = (actions == mask.shape[1] - 1) & (mask[:, -1] > 0) & (feed.slot != self._slot)
        self._slot = feed.slot.copy()
        rows = np.flatnonzero(asks)
        if len(rows):
            self.effects.append(self._futures.effects(rows))
            self.slots.append(feed.slot[rows].copy())
            self.ages.append(feed.page_age[rows].copy())
            self.moved.append(self._futures.users.intent_moved()[rows])
        return actions


@dataclass(frozen=True)
class Audit:
    """The R requests of one policy, with their true effects over H horizons.

    Attributes:
        kept: (R, H, 2) expected clicks and purchases in the next slots without the request.
        requested: (R, H, 2) the same with the request.
        error: (R, H, 2) standard error of the difference.
        slot: (R,) slot of the request.
        page_age: (R,) slots since the page arrived.
        intent_moved: (R,) 1 - cosine of the latent intent now and when the page was first seen.
    """

    kept: np.ndarray
    requested: np.ndarray
    error: np.ndarray
    slot: np.ndarray
    page_age: np.ndarray
    intent_moved: np.ndarray


def audit(
    policy: Policy, scenario: str | Scenario, sessions: int, seed: int, continuations: int = CONTINUATIONS
) -> Audit:
    """Play sessions of the ground truth and both futures of every request.

    Args:
        policy: a policy of EdgeFeedRequest-v0.
        scenario: a scenario with synthetic users.
        sessions: number of sessions.
        seed: seed of the sessions.
        continuations: number per moment.
    """
    watched = AuditedPolicy(policy, continuations)
    play(
        watched,
        env_id="EdgeFeedRequest-v0",
        scenario=scenario,
        users="synthetic",
        sessions=sessions,
        seed=seed,
    )
    none = np.zeros((0, len(watched.horizons), 2))
    parts = {
        name: np.concatenate([none, *(getattr(e, name) for e in watched.effects)])
        for name in ("kept", "requested", "error")
    }
    flat = [np.concatenate([np.zeros(0), *part]) for part in (watched.slots, watched.ages, watched.moved)]
    return Audit(**parts, slot=flat[0], page_age=flat[1], intent_moved=flat[2])
