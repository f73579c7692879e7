"""Play an exported re-ranker in the environment, one phone per session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.agents.list_policy import EmittedList, ScoredList, SlateBySlate, SlotBySlot
from edgerec_gym.device.description import CRBAN, SEQUENCES
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.device.session import DeviceSession, load
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Observation, Policy, best_legal, check_observation
from edgerec_gym.registration import SLATE
from edgerec_gym.spaces import CONTEXT, observation_layout

TRACKS = ("joint", "rerank", SLATE)
COUNTS = {name: CONTEXT.index(name) for name in SEQUENCES}


class DevicePolicy:
    """Run one phone session per row; each appends events as they appear in the observation.

    As long as a session fits into the histories, the policy plays as the torch policy does; after that the
    phone remembers more. At every slot it plays its top row (a sequence search plays its lists). It inserts
    no cards and makes no requests.

    Args:
        name: name of the policy.
        model: the exported model to run.
        max_slots: the environment's max_slots, the scale of the event counts in the context.
    """

    def __init__(self, name: str, model: DeviceModel, max_slots: int) -> None:
        self.name, self.model, self.max_slots = name, model, max_slots
        self.sessions: list[DeviceSession] = []

    def reset(self, mask: np.ndarray) -> None:
        """Start new sessions where `mask` (B,) is True."""
        if len(self.sessions) != len(mask):
            self.sessions = [DeviceSession(self.model) for _ in mask]
        for row in np.flatnonzero(mask):
            self.sessions[row] = DeviceSession(self.model)

    def scores(self, observation: Observation) -> np.ndarray:
        """Return (B, N) float32; CRBAN only."""
        return np.stack([session.scores(one) for session, one in self._followed(observation)])

    def lists(self, observation: Observation, k: int) -> np.ndarray:
        """Return (B, k) int64 pool rows, -1 after the end of a list."""
        return np.stack([session.rerank(one, k) for session, one in self._followed(observation)])

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64 pool rows, legal under the mask."""
        n_pool = observation["pool"].shape[1]
        if CRBAN in self.model.graphs:
            score = self.scores(observation)
        else:
            score = (self.lists(observation, 1) == np.arange(n_pool)).astype(np.float32)
        return best_legal(score, observation["action_mask"])

    def _followed(self, observation: Observation) -> list[tuple[DeviceSession, Observation]]:
        """Bring the sessions up to date; return each with its observation."""
        check_observation(observation)
        if len(self.sessions) != len(observation["context"]):
            self.reset(np.ones(len(observation["context"]), np.bool_))
        both = []
        for row in range(len(self.sessions)):
            one = {key: values[row] for key, values in observation.items()}
            total = {
                name: round(float(one["context"][column]) * self.max_slots) for name, column in COUNTS.items()
            }
            if any(total[name] < self.sessions[row].count[name] for name in SEQUENCES):
                self.sessions[row] = DeviceSession(self.model)  # a new session began without a reset
            session = self.sessions[row]
            for name in SEQUENCES:
                new = total[name] - session.count[name]
                events = one[name][one[name].any(axis=1)]
                for event in events[max(0, len(events) - new) :]:
                    session.append(name, event)
                session.count[name] = total[name]  # including events that have left the history
            both.append((session, one))
        return both


def load_policy(folder: str | Path, env: Any) -> Policy:
    """Load an exported re-ranker to play the joint, rerank or slate track.

    Raises:
        InputError: if files are broken, or the environment has another track or other sizes.
    """
    feed = getattr(env, "unwrapped", env)
    if feed.track not in TRACKS:
        raise InputError(f"{folder} re-ranks; it plays the tracks {', '.join(TRACKS)}, not {feed.track!r}")
    model = load(folder)
    for key, part in observation_layout(feed.config, "joint").items():
        if key in ("cards", "action_mask"):
            continue
        if part.shape != model.sizes.get(key):
            raise InputError(
                f"{folder} was exported for the scenario {model.described.scenario!r} with {key} "
                f"{list(model.sizes.get(key, ()))}; this environment has {list(part.shape)}"
            )
    policy = DevicePolicy(f"{model.agent} on device", model, feed.config.max_slots)
    if feed.track != SLATE and model.search is None:
        return policy
    if CRBAN in model.graphs:
        return SlateBySlate(ScoredList(policy, feed.config.slate_size))
    if feed.config.slate_size > model.places:
        raise InputError(
            f"{folder} was exported for lists of {model.places} cards; this environment asks for "
            f"{feed.config.slate_size}"
        )
    lists = EmittedList(policy, feed.config.slate_size)
    if feed.track == SLATE or model.search is None:
        return SlateBySlate(lists)
    return SlotBySlot(lists, model.search.settings.every)
