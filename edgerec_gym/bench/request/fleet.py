"""One budget of requests for all sessions of a service, with constant traffic or traffic that doubles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.policy import Policy
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.synthetic import SyntheticUsers


@dataclass(frozen=True)
class Traffic:
    """Requests and live sessions of every tick; a tick is one slot of every live session.

    Attributes:
        requests: (ticks,) int64 requests that the policy sent.
        live: (ticks,) int64 live sessions.
    """

    requests: np.ndarray
    live: np.ndarray


def serve(
    policy: Policy,
    scenario: str | Scenario,
    *,
    concurrent: int,
    ticks: int,
    doubles: bool,
    seed: int = 0,
) -> Traffic:
    """Play many sessions at once; when one ends, the next one begins in its place.

    Args:
        policy: a policy of EdgeFeedRequest-v0.
        scenario: a scenario with synthetic users.
        concurrent: number of sessions at a time, at least 1.
        ticks: number of slots that every feed plays, at least 1.
        doubles: whether the second half of the ticks has twice as many sessions.
        seed: seed of the sessions, of the split `eval`.

    Raises:
        InputError: numbers out of range, or no synthetic users.
    """
    if concurrent < 1 or ticks < 1:
        raise InputError(f"concurrent = {concurrent} and ticks = {ticks} must be at least 1")
    scenario = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    if scenario.synthetic is None:
        raise InputError(f"scenario {scenario.name!r} has no synthetic users to serve")
    size = 2 * concurrent if doubles else concurrent
    users = SyntheticUsers(scenario.synthetic, scenario.config)
    batch = FeedBatch(size, "request", scenario.config, scenario.catalog, users, split="eval")
    rows = np.arange(size)
    batch.reset(rows, seed * CLI_SEED_STRIDE + rows)
    policy.reset(np.ones(size, np.bool_))
    requests, live = np.zeros((2, ticks), np.int64)
    for tick in range(ticks):
        active = concurrent if tick < ticks // 2 else size
        # Hide sessions that have not begun: the policy would count them as traffic.
        observation = {key: values[:active] for key, values in batch.observation(copy=False).items()}
        actions = np.zeros(size, np.int64)
        actions[:active] = _act(policy, observation, size)
        batch.step(actions, rows >= active)
        requests[tick] = int((batch.arrays.sent[:active] == 1).sum())
        live[tick] = active
        ended = (batch.arrays.terminated | batch.arrays.truncated) & (rows < active)
        if ended.any():
            batch.reset(np.flatnonzero(ended))
            policy.reset(ended)
    batch.close()
    return Traffic(requests, live)


def _act(policy: Policy, observation: dict[str, np.ndarray], size: int) -> np.ndarray:
    """Return a policy's actions for the live rows; the policy holds `size` rows, so the rest is padded."""
    active = len(observation["context"])
    if active == size:
        return policy.act(observation)
    padded = {}
    for key, values in observation.items():
        padded[key] = np.zeros((size, *values.shape[1:]), values.dtype)
        padded[key][:active] = values
    return policy.act(padded)[:active]
