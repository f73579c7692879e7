"""One budget for all sessions of a service: many feeds at once, and traffic that doubles in the middle."""

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
    """Requests and sessions of every tick (a tick = one slot of every live session).

    Attributes:
        requests: (ticks,) int64 sent by the policy.
        live: (ticks,) int64 sessions in play.
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
    """Play so many sessions at once; where one ends, the next one begins.

    Args:
        policy: of EdgeFeedRequest-v0.
        scenario: with synthetic users.
        concurrent: sessions at a time.
        ticks: slots that each of them plays.
        doubles: twice as many sessions in the second half of the ticks.
        seed: of the sessions, of the split `eval`.

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
        # Sessions that have not begun are not seen by the policy: they would be part of the traffic.
        observation = {key: values[:active] for key, values in batch.observation(copy=False).items()}
        actions = np.zeros(size, np.int64)
        actions[:active] = _act(policy, observation, size)
        batch.step(batch.check_actions(actions), rows >= active)
        requests[tick] = int((batch.arrays.sent[:active] == 1).sum())
        live[tick] = active
        ended = (batch.arrays.terminated | batch.arrays.truncated) & (rows < active)
        if ended.any():
            batch.reset(np.flatnonzero(ended))
            policy.reset(ended)
    batch.close()
    return Traffic(requests, live)


def _act(policy: Policy, observation: dict[str, np.ndarray], size: int) -> np.ndarray:
    """Ask a policy that keeps `size` rows about the first of them; the others stand still."""
    active = len(observation["context"])
    if active == size:
        return policy.act(observation)
    padded = {}
    for key, values in observation.items():
        padded[key] = np.zeros((size, *values.shape[1:]), values.dtype)
        padded[key][:active] = values
    return policy.act(padded)[:active]
