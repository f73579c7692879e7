"""Play an exported agent in the environment, one phone per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.agents.device.players import player
from edgerec_gym.device.description import SEQUENCES
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.device.session import DeviceSession, load
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Explanation, Observation, Policy, check_observation
from edgerec_gym.spaces import CONTEXT, observation_layout

SLOT = CONTEXT.index("slot")
COUNTS = {name: CONTEXT.index(name) for name in SEQUENCES}
ONLY = np.ones(1, np.bool_)  # a phone has one session
Player = Callable[[DeviceSession], Policy]


class Phone:
    """One user's session on a phone: events as they happen, and the agent's decisions.

    Args:
        model: the exported model.
        make: makes the policy that plays it, for one session.
        max_slots: the environment's max_slots, the scale of the event counts in the context.

    Attributes:
        session: what the phone keeps.
        policy: decides, from observations of a batch of one.
    """

    def __init__(self, model: DeviceModel, make: Player, max_slots: int) -> None:
        self.session, self.max_slots = DeviceSession(model), max_slots
        self.policy = make(self.session)
        self.policy.reset(ONLY)

    def began_again(self, observation: Observation) -> bool:
        """Whether an observation of a batch of one tells of fewer events than there were."""
        total = self._counts(observation)
        return any(total[name] < self.session.count[name] for name in SEQUENCES)

    def follow(self, observation: Observation) -> None:
        """Append the events that are new in an observation of a batch of one."""
        total = self._counts(observation)
        for name in SEQUENCES:
            new = total[name] - self.session.count[name]
            if new:
                rows = observation[name][0]
                events = rows[rows.any(axis=1)]
                for event in events[max(0, len(events) - new) :]:
                    self.session.append(name, event)
                self.session.count[name] = total[name]  # including events that have left the history

    def act(self, observation: Observation) -> Any:
        """Follow an observation of a batch of one, and act on it."""
        self.follow(observation)
        return self.policy.act(observation)

    def _counts(self, observation: Observation) -> dict[str, int]:
        context = observation["context"][0]
        return {name: round(float(context[column]) * self.max_slots) for name, column in COUNTS.items()}


class DevicePolicy:
    """Run one phone per row; each appends events as they appear in the observation, and decides by itself.

    The phone plays as the torch policy does. Only CRBAN, the generators and the sequence search remember more
    than the torch policy once a session no longer fits into the histories.

    Args:
        name: name of the policy.
        model: the exported model to run.
        make: makes the policy that plays it, for one session.
        max_slots: the environment's max_slots.
    """

    def __init__(self, name: str, model: DeviceModel, make: Player, max_slots: int) -> None:
        self.name, self.model, self.make, self.max_slots = name, model, make, max_slots
        self.phones: list[Phone] = []
        self._slot = np.zeros(0, np.float32)
        self._last: list[Any] = []

    def reset(self, mask: np.ndarray) -> None:
        """Start new sessions where `mask` (B,) is True."""
        if len(self.phones) != len(mask):
            mask = np.ones(len(mask), np.bool_)
            self.phones = [self._phone() for _ in mask]
            self._slot, self._last = np.full(len(mask), -1, np.float32), [None] * len(mask)
            return
        for row in np.flatnonzero(mask):
            self.phones[row] = self._phone()
        self._slot[mask] = -1

    def act(self, observation: Observation) -> Any:
        """Return what the agent's own policy returns; sessions that have ended repeat their last action."""
        check_observation(observation)
        context = observation["context"]
        if len(self.phones) != len(context):
            self.reset(np.ones(len(context), np.bool_))
        for row in np.flatnonzero(context[:, SLOT] != self._slot).tolist():
            one = {key: values[row : row + 1] for key, values in observation.items()}
            if self.phones[row].began_again(one):  # without a reset
                self.phones[row] = self._phone()
            self._last[row] = self.phones[row].act(one)
        self._slot = context[:, SLOT].copy()
        if isinstance(self._last[0], dict):
            return {key: np.concatenate([action[key] for action in self._last]) for key in self._last[0]}
        return np.concatenate(self._last)

    def explain(self, row: int) -> Explanation | None:
        """Return the explanation of the last action in one row."""
        policy: Any = self.phones[row].policy
        return policy.explain(0) if hasattr(policy, "explain") else None

    def _phone(self) -> Phone:
        return Phone(self.model, self.make, self.max_slots)


def load_policy(folder: str | Path, env: Any) -> Policy:
    """Load an exported agent to play the tracks that it plays in torch.

    Raises:
        InputError: if files are broken, or the environment has another track or other sizes.
    """
    feed = getattr(env, "unwrapped", env)
    model = load(folder)
    make = player(model, feed)
    for key, part in observation_layout(feed.config, "joint").items():
        if key != "action_mask" and part.shape != model.sizes.get(key):
            raise InputError(
                f"{folder} was exported for the scenario {model.described.scenario!r} with {key} "
                f"{list(model.sizes.get(key, ()))}; this environment has {list(part.shape)}"
            )
    return DevicePolicy(f"{model.agent} on device", model, make, feed.config.max_slots)
