"""Is a session through phone, connection and service the one that the environment plays? Bit by bit.

Both play the same policy with the same seeds. Compared are every observation, every action, every reward and
each of its terms.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from edgerec_gym.agents.device.runtime import Pace, Session
from edgerec_gym.answers import Focus
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link_settings import Phone
from edgerec_gym.policy import Observation, Policy
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.people import People

Make = Callable[[Any], Policy]  # from an environment, or whatever has its track and config


@dataclass
class Feed:
    """What a policy needs to know of an environment."""

    track: str
    config: Any
    scenario: Scenario


@dataclass
class Trajectory:
    """What is compared: a digest of each observation, then actions, rewards and terms of each slot."""

    observations: list[str] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    rewards: list[bytes] = field(default_factory=list)

    def differences(self, other: Trajectory) -> int:
        """Number of slots at which two trajectories differ, or are missing in one of them."""
        mine, theirs = self._slots(), other._slots()
        longest = max(len(mine), len(theirs))
        return sum(mine[k : k + 1] != theirs[k : k + 1] for k in range(longest))

    def _slots(self) -> list[tuple[Any, ...]]:
        ends = [*self.actions, -1], [*self.rewards, b""]
        return list(zip(self.observations, *ends, strict=True))


class Recorded:
    """A policy whose observations and actions are recorded; sees a batch of one."""

    def __init__(self, policy: Policy, trajectory: Trajectory) -> None:
        self.policy, self.trajectory, self.name = policy, trajectory, policy.name

    def reset(self, mask: np.ndarray) -> None:
        """Reset the policy."""
        self.policy.reset(mask)

    def act(self, observation: Observation) -> np.ndarray:
        """Record, and act."""
        self.trajectory.observations.append(digest(observation))
        action = self.policy.act(observation)
        self.trajectory.actions.append(int(action[0]))
        return action


def digest(observation: Observation) -> str:
    """Return a digest of an observation of a batch of one."""
    found = hashlib.sha256()
    for key in sorted(observation):
        found.update(np.ascontiguousarray(observation[key]).tobytes())
    return found.hexdigest()


def reward_bytes(reward: float, terms: Sequence[float]) -> bytes:
    """Return a reward and its terms as bytes."""
    return np.array([reward, *terms], np.float64).tobytes()


def play_environment(
    make: Make, env_id: str, scenario: str, users: str, seeds: Sequence[int]
) -> list[Trajectory]:
    """Play sessions in the environment, one after the other."""
    env: Any = gym.make(env_id, scenario=scenario, users=users, split="eval").unwrapped
    policy, found = make(env), []
    for seed in seeds:
        trajectory = Trajectory()
        recorded = Recorded(policy, trajectory)
        observation, _ = env.reset(seed=int(seed))
        recorded.reset(np.ones(1, np.bool_))
        ended = False
        while not ended:
            action = recorded.act({key: values[None] for key, values in observation.items()})
            observation, reward, terminated, truncated, info = env.step(int(action[0]))
            trajectory.rewards.append(reward_bytes(float(reward), list(info["reward_terms"].values())))
            ended = terminated or truncated
        trajectory.observations.append(digest({key: values[None] for key, values in observation.items()}))
        found.append(trajectory)
    env.close()
    return found


async def play_phones(
    make: Make,
    track: str,
    scenario: str,
    users: str,
    seeds: Sequence[int],
    phone_of: Callable[[int], Phone],
    folder: Path,
    phones: int = 4,
) -> list[Trajectory]:
    """Play the same sessions on phones that speak to a service, several phones at once.

    Args:
        make: makes the policy of a phone.
        track: what it decides.
        scenario: that the service serves.
        users: "synthetic" or "learned", as the service's.
        seeds: of the sessions.
        phone_of: returns who speaks for a user, and where the service is.
        folder: of the phones' stores.
        phones: number of phones.
    """
    world = Scenario.load(scenario)
    shares = [
        _play_phone(make, track, world, users, seeds[k::phones], phone_of, folder / f"phone-{k}.db")
        for k in range(phones)
    ]
    found: list[Trajectory] = [Trajectory()] * len(seeds)
    for k, share in enumerate(await asyncio.gather(*shares)):
        found[k::phones] = share
    return found


async def _play_phone(
    make: Make,
    track: str,
    world: Scenario,
    users: str,
    seeds: Sequence[int],
    phone_of: Callable[[int], Phone],
    file: Path,
) -> list[Trajectory]:
    """Play sessions one after the other on a phone of their own."""
    people, found = People(world, users), []
    policy = make(Feed(track, world.config, world))
    store = EventStore(file)
    for seed in seeds:
        trajectory = Trajectory()
        person = people.begin(0, int(seed))

        def watch(session: Session, trajectory: Trajectory = trajectory) -> None:
            a = session.features.arrays
            trajectory.rewards.append(reward_bytes(float(a.reward[0]), a.reward_terms[0].tolist()))

        session = Session(
            world.config,
            track,
            Recorded(policy, trajectory),
            phone_of(person.user),
            store,
            np.random.default_rng(int(seed)),
            pace=Pace(virtual=True),
            watch=watch,
        )

        def ask(focus: Focus) -> np.ndarray:
            return people.answer(0, focus)

        await session.play(person, ask, remind=ask)
        trajectory.observations.append(digest(session.features.observation()))
        found.append(trajectory)
    store.close()
    return found
